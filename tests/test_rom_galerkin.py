"""Galerkin projection: operators are the equation's own, between the modes."""

from __future__ import annotations

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError


@pytest.fixture(scope="module")
def front() -> tuple[rom.Basis, rom.QuadraticModel]:
    flow = rom.testbeds.burgers(0.05, cells=128, drift=0.3)
    basis = rom.pod(rom.testbeds.record(flow, 60, 0.01), 6)
    return basis, rom.galerkin(basis, rom.equations.burgers(0.05))


def test_burgers_on_modes_is_the_projected_equation(front: tuple[rom.Basis, rom.QuadraticModel]) -> None:
    basis, model = front
    equation = rom.equations.burgers(0.05)
    assert model.form == "cAH", "the mean enters the constant and the linear term"
    for a in np.random.default_rng(0).normal(size=(5, 6)):
        q = basis.reconstruct(a[None])[0]
        wanted = basis.project(equation.linear(q) + equation.bilinear(q, q) + basis.mean)
        assert np.abs(model.dynamics.rate(a[None])[0] - wanted).max() < 1e-12 * np.abs(wanted).max() * 10
    assert model.energy_violation < 1e-13


def test_burgers_is_the_testbed_and_foretells_it(front: tuple[rom.Basis, rom.QuadraticModel]) -> None:
    basis, model = front
    assert model.fit.residual < 0.02, "modes left out, and little else"
    wrong = rom.galerkin(basis, rom.equations.burgers(0.1))
    assert wrong.fit.residual > 5 * model.fit.residual
    assert "leaves" in str(model)
    error = model.error_against(basis)
    assert error.total < 0.03
    assert not error.worse_than_trivial


@pytest.mark.parametrize("dimensions", [1, 2])
def test_heat_on_sine_modes_decays_at_the_rates_of_the_grid(dimensions: int) -> None:
    flow = rom.testbeds.heat(16, diffusivity=0.7, dimensions=dimensions)
    k = np.arange(1, 4)
    one = np.sqrt(2 / 16) * np.sin(np.pi * np.outer(k, flow.x))
    modes = one if dimensions == 1 else np.array([np.outer(a, b) for a in one for b in one])
    weights = np.linspace(3, 1, len(modes))
    snapshots = np.concatenate([w * np.array([m, -m]) for w, m in zip(weights, modes, strict=True)])
    basis = rom.pod(ek.ArraySource.of(snapshots), len(modes), center="none")
    model = rom.galerkin(basis, rom.equations.heat(0.7))
    rates = flow.rates()[:3] if dimensions == 1 else flow.rates()[:3, :3].ravel()
    assert np.abs(np.sort(-model.eigenvalues.growth) / np.sort(rates) - 1).max() < 1e-10


def test_the_inner_product_is_the_test_product() -> None:
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.5, 2, 12)
    a = rng.normal(size=(12, 12)) - 5 * np.eye(12)
    basis = rom.pod(ek.ArraySource.of(rng.normal(size=(30, 12))), 3, inner_product=weights)
    model = rom.galerkin(basis, rom.equations.linear(a, np.ones((12, 1))))
    v = basis.modes
    assert np.allclose(model.A, (v * weights) @ a @ v.T)
    assert np.allclose(model.c, (v * weights) @ a @ basis.mean)
    assert np.allclose(model.B[:, 0], v @ weights)
    assert not np.allclose(model.A, v @ a @ v.T), "without the weights it is another"
    assert model.inputs == ("u",)


def test_an_equation_of_several_fields() -> None:
    rng = np.random.default_rng(2)
    fields = {"U": rng.normal(size=(20, 5, 2)), "T": rng.normal(size=(20, 5))}
    basis = rom.pod(fields, 4)
    equation = rom.equations.quadratic(
        linear=lambda q: {"U": -q["U"], "T": -2 * q["T"]},
        bilinear=lambda p, q: {"U": p["U"] * q["T"][:, None], "T": p["T"] * q["T"]})
    model = rom.galerkin(basis, equation)
    a = rng.normal(size=4)
    q = {name: x[0] for name, x in basis.reconstruct(a[None]).items()}
    right = {"U": -q["U"] + q["U"] * q["T"][:, None], "T": -2 * q["T"] + q["T"] ** 2}
    shifted = {part.name: right[part.name] + part.mean for part in basis.parts()}
    assert np.allclose(model.dynamics.rate(a[None])[0], basis.project(shifted), atol=1e-12)


def test_sparse_operators_and_functions_are_taken() -> None:
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import aslinearoperator

    rng = np.random.default_rng(1)
    basis = rom.pod(ek.ArraySource.of(rng.normal(size=(30, 12))), 3, center="none")
    a = diags_array([np.ones(11), -2 * np.ones(12)], offsets=[1, 0])
    forms = [rom.galerkin(basis, rom.equations.linear(one)).A for one in (a, a.toarray(), aslinearoperator(a), lambda q: a @ q)]
    assert all(np.allclose(one, forms[0]) for one in forms)


@pytest.mark.parametrize(("make", "match"), [
    (lambda b: rom.galerkin(b, rom.equations.linear(np.eye(5))), r"A is of shape \(5, 5\); a snapshot has 12"),
    (lambda b: rom.galerkin(b, rom.equations.quadratic(linear=lambda q: q[:3])), r"gives shape \(3,\)"),
    (lambda b: rom.galerkin(b, np.eye(12)), "an equation of rom.equations"),
    (lambda b: rom.equations.quadratic(), "at least one term"),
    (lambda b: rom.equations.heat(-1.0), "above 0"),
    (lambda b: rom.galerkin(b, rom.equations.linear(np.eye(12)), inputs=["x"]), "0 inputs, and 1 names"),
])
def test_bad_input_is_named(make: object, match: str) -> None:
    basis = rom.pod(ek.ArraySource.of(np.random.default_rng(1).normal(size=(30, 12))), 3)
    with pytest.raises(InputError, match=match):
        make(basis)


# -- Navier and Stokes ----------------------------------------------------------------------------------------------


def eddies(n: int, cells: int = 32, seed: int = 0) -> np.ndarray:
    """(n, cells, cells, 2) random velocities without divergence, of waves up to 4: their products are resolved."""
    rng = np.random.default_rng(seed)
    k = np.fft.fftfreq(cells, 1 / cells)
    low = (np.abs(k)[:, None] <= 4) & (np.abs(k)[None] <= 4)
    stream = np.fft.fft2(rng.normal(size=(n, cells, cells))) * low
    return np.stack([np.fft.ifft2(1j * k[:, None] * stream).real, np.fft.ifft2(-1j * k[None] * stream).real], axis=-1)


def test_navier_stokes_on_modes_is_what_the_spectral_solver_does() -> None:
    """Pressure and all: modes without divergence have no part in it."""
    from scipy.fft import rfft2

    from ensemblekit.rom.testbeds.kolmogorov import _Spectral

    flow = rom.testbeds.kolmogorov_flow(30.0, cells=32, waves=2)
    solver = _Spectral(flow)
    fields = eddies(12)
    basis = rom.pod(ek.ArraySource.of(fields), 6)
    force = np.zeros((32, 32, 2))
    force[..., 0] = np.sin(2 * flow.y)[:, None]
    model = rom.galerkin(basis, rom.equations.navier_stokes(1 / 30, force=force))
    assert model.energy_violation < 1e-12
    for a in np.random.default_rng(1).normal(size=(4, 6)):
        u = basis.reconstruct(a[None])[0]
        w = 1j * solver.kx * rfft2(u[..., 1]) - 1j * solver.ky * rfft2(u[..., 0])
        rate = solver.velocity(solver.advected(w) + solver.force - solver.nu * solver.k2 * w)
        wanted = basis.project(rate + basis.mean)
        assert np.abs(model.dynamics.rate(a[None])[0] - wanted).max() < 1e-9 * np.abs(wanted).max()


def test_a_taylor_green_vortex_decays_at_its_rate() -> None:
    x = 2 * np.pi * np.arange(24) / 24
    vortex = np.stack([np.sin(x[:, None]) * np.cos(x[None]), -np.cos(x[:, None]) * np.sin(x[None])], axis=-1)
    t = 0.1 * np.arange(20)
    basis = rom.pod(ek.ArraySource.of(np.exp(-2 * 0.05 * t)[:, None, None, None] * vortex, times=t), 1, center="none")
    model = rom.galerkin(basis, rom.equations.navier_stokes(0.05))
    assert model.A[0, 0] == pytest.approx(-2 * 0.05, rel=1e-12)
    assert model.fit.residual < 1e-6
    stretched = rom.galerkin(basis, rom.equations.navier_stokes(0.05, spacing=(x[1], 2 * x[1])))
    assert stretched.A[0, 0] == pytest.approx(-1.25 * 0.05, rel=1e-12), "half the waves along x"


def test_an_open_grid_takes_differences_that_are_exact_for_parabolas() -> None:
    y, x = 0.3 * np.arange(9.0), 0.2 * np.arange(7.0)
    equation = rom.equations.navier_stokes(0.5, boundary="open", spacing=(0.3, 0.2))
    bent = np.stack([y[:, None] ** 2 + 0 * x, 3 * x[None] ** 2 + 0 * y[:, None]], axis=-1)
    np.testing.assert_allclose(equation.linear(bent), np.broadcast_to([1.0, 3.0], bent.shape), atol=1e-10)
    turning = np.stack([y[:, None] + 0 * x, x[None] + 0 * y[:, None]], axis=-1)
    carried = -np.stack([x[None] + 0 * y[:, None], y[:, None] + 0 * x], axis=-1)
    np.testing.assert_allclose(equation.bilinear(turning, turning), carried, atol=1e-12)


@pytest.mark.parametrize(("options", "match"), [
    ({"viscosity": 0.0}, "viscosity is a number above 0"), ({"boundary": "wall"}, 'boundary is "periodic" or "open"'),
    ({"boundary": "open"}, "needs the spacing"), ({"spacing": -1.0}, "numbers above 0"),
])
def test_bad_equations_are_named(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        rom.equations.navier_stokes(**{"viscosity": 0.1, **options})
    scalar = rom.pod(ek.ArraySource.of(np.random.default_rng(0).normal(size=(9, 5, 5))), 2)
    with pytest.raises(InputError, match=r"velocities \(ny, nx, 2\)"):
        rom.galerkin(scalar, rom.equations.navier_stokes(0.1))


def test_equations_are_projected_from_the_shell(tmp_path: object) -> None:
    from typer.testing import CliRunner

    from ensemblekit.cli import app

    basis = rom.pod(ek.ArraySource.of(eddies(10), times=np.arange(10.0)), 3)
    path = f"{tmp_path}/run.h5.basis.h5"
    basis.save(path)
    words = ["rom", "galerkin", path, "--equation", "navier-stokes", "--viscosity", "0.02"]
    found = CliRunner().invoke(app, [*words, "--csv", "-"])
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("mode,growth,frequency")
    held = rom.load(f"{tmp_path}/run.h5.model.h5")
    np.testing.assert_array_equal(held.matrix, rom.galerkin(basis, rom.equations.navier_stokes(0.02)).matrix)
    without = ["rom", "galerkin", path, "--equation", "heat", "-o", f"{tmp_path}/x.h5"]
    for wanted, match in ((words, "--overwrite"), (without, "--equation heat needs --diffusivity")):
        wrong = CliRunner().invoke(app, wanted)
        assert wrong.exit_code == 2
        assert match in " ".join(wrong.stderr.split())
