"""Models by themselves: operators, integrators, runs that diverge, errors against snapshots, files."""

from __future__ import annotations

import dataclasses
import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import ensemblekit
from ensemblekit import rom
from ensemblekit.errors import InputError, StoreError
from ensemblekit.rom.operators import compressed, tensor
from tests import oracles_rom as oracles

DATA = Path(os.environ.get("ENSEMBLEKIT_DATA", "/nonexistent"))


def quadratic(r: int = 3, m: int = 2, seed: int = 0, period: float | None = None) -> rom.QuadraticModel:
    rng = np.random.default_rng(seed)
    c, a = 0.1 * rng.normal(size=r), rng.normal(size=(r, r))
    return rom.QuadraticModel.of(c=c, A=0.3 * a if period else a - 2 * np.eye(r), H=0.05 * rng.normal(size=(r, r, r)),
                                 B=rng.normal(size=(r, m)), N=0.05 * rng.normal(size=(m, r, r)), period=period, time_unit="s")


def right_side(model: rom.QuadraticModel, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The definition, with the full tensor."""
    return (model.c + model.A @ x + np.einsum("ijk,j,k", model.tensor, x, x) + model.B @ u
            + np.einsum("m,mij,j", u, model.N, x))


def test_operators_are_what_the_definition_says() -> None:
    rng = np.random.default_rng(3)
    h = rng.normal(size=(3, 3, 3))
    assert np.allclose(tensor(compressed(h, 3)), (h + h.transpose(0, 2, 1)) / 2)
    assert np.allclose(compressed(h.reshape(3, 9), 3), compressed(h, 3))
    model = quadratic()
    x, u = rng.normal(size=3), rng.normal(size=2)
    assert np.allclose(model.dynamics.rate(x[None], u[None])[0], right_side(model, x, u))
    step = 1e-6 * np.eye(3)
    slope = [(right_side(model, x + d, u) - right_side(model, x - d, u)) / 2e-6 for d in step]
    assert np.allclose(model.dynamics.jacobian(x, u), np.array(slope).T, atol=1e-8)


def test_a_discrete_run_is_the_map_applied() -> None:
    model = quadratic(period=0.5)
    rng = np.random.default_rng(1)
    x, u = rng.normal(size=3), rng.normal(size=(8, 2))
    run = model.simulate(x, 0.5 * np.arange(8), u)
    for k in range(8):
        assert np.allclose(run.coefficients[k], x, rtol=1e-12), "inputs[k] acts from times[k] to times[k + 1]"
        x = right_side(model, x, u[k])
    assert np.array_equal(model.simulate(run.coefficients[0], 0.5 * np.arange(8), u[:7]).coefficients, run.coefficients)


def test_continuous_runs_agree_with_scipy() -> None:
    from scipy.integrate import solve_ivp

    model = quadratic()
    times = np.linspace(0, 3, 31)
    inputs = np.stack([np.sin(times), np.cos(2 * times)], axis=1)

    def at(t: float) -> np.ndarray:
        return np.array([np.interp(t, times, inputs[:, j]) for j in range(2)])

    x0 = np.array([1.0, -1.0, 0.5])
    truth = [x0]
    for a, b in pairwise(times):        # kinks of the inputs between
        truth.append(solve_ivp(lambda t, x: right_side(model, x, at(t)), (a, b), truth[-1], rtol=1e-11, atol=1e-13).y[:, -1])
    for method, step, tolerance in (("auto", None, 1e-7), ("rk4", 0.01, 1e-7), ("midpoint", 0.002, 1e-5)):
        run = model.simulate(x0, times, inputs, method=method, step=step)
        assert np.abs(run.coefficients - truth).max() < tolerance, method
        assert run.diverged_at is None


def test_orders_of_the_integrators() -> None:
    a, h = oracles.lotka_volterra()
    model = rom.QuadraticModel.of(A=a, H=h)
    end = np.array([0.0, 4.0])
    exact = model.simulate([0.5, 1.0], end, rtol=1e-12).coefficients[-1]
    for method, order in (("rk4", 4), ("midpoint", 2)):
        errors = [np.abs(model.simulate([0.5, 1.0], end, method=method, step=step).coefficients[-1] - exact).max()
                  for step in (0.1, 0.05)]
        assert order - 0.3 < np.log2(errors[0] / errors[1]) < order + 0.5, method


def test_the_midpoint_rule_keeps_quadratic_invariants() -> None:
    # the Euler top: x·H(x, x) = 0, so |x| stays
    h = np.zeros((3, 3, 3))
    h[0, 1, 2], h[1, 0, 2], h[2, 0, 1] = 1.0, -2.0, 1.0
    top = rom.QuadraticModel.of(H=h)
    assert top.energy_violation < 1e-15
    run = top.simulate([1.0, 0.2, 0.5], np.arange(0, 200, 0.5), method="midpoint")
    assert np.ptp((run.coefficients**2).sum(1)) < 1e-11
    assert np.ptp((top.simulate([1.0, 0.2, 0.5], np.arange(0, 200, 0.5), method="rk4").coefficients ** 2).sum(1)) > 1e-5


def test_a_batch_is_its_members() -> None:
    model = quadratic()
    starts = np.random.default_rng(2).normal(size=(4, 3))
    times, inputs = np.linspace(0, 1, 5), np.ones((5, 2))
    many = model.simulate(starts, times, inputs)
    assert many.coefficients.shape == (5, 4, 3)
    for k in range(4):
        assert np.array_equal(many.coefficients[:, k], model.simulate(starts[k], times, inputs).coefficients)


def test_a_run_that_diverges_says_when() -> None:
    blows_up = rom.QuadraticModel.of(H=np.array([[1.0]]))       # x' = x²: infinite at t = 1
    run = blows_up.simulate([1.0], np.linspace(0, 2, 21))
    assert run.diverged_at == pytest.approx(1.0, abs=1e-3)
    assert np.isfinite(run.coefficients).all()
    assert len(run.times) == 10 + (run.times[-1] == 1.0)
    assert "DIVERGED" in str(run)
    grows = rom.QuadraticModel.of(A=np.array([[2.0]]), period=1.0)
    run = grows.simulate([1.0], np.arange(1000.0))
    assert 300 < run.diverged_at < 360
    many = blows_up.simulate([[1.0], [-1.0]], np.linspace(0, 2, 21))
    assert list(many.diverged) == [0]


def test_eigenvalues_are_of_the_linear_part_about_the_fixed_point() -> None:
    a, h = oracles.lotka_volterra()
    shifted = rom.QuadraticModel.of(A=a, H=h)
    assert np.allclose(shifted.fixed_point, 0)
    assert shifted.stability.verdict == "unstable"
    turn = rom.QuadraticModel.of(A=np.array([[-0.1, 2 * np.pi], [-2 * np.pi, -0.1]]), time_unit="s")
    assert np.allclose(turn.eigenvalues.growth, -0.1)
    assert np.allclose(turn.eigenvalues.frequency, [1, -1])
    assert turn.stable
    assert "per s" in str(turn)
    sampled = rom.QuadraticModel.of(A=np.diag([0.5, 0.9]), period=0.1)
    assert np.allclose(sampled.eigenvalues.growth, np.log([0.9, 0.5]) / 0.1)
    assert np.allclose(sampled.eigenvalues.discrete, [0.9, 0.5])


def burgers_basis(rank: int = 6) -> tuple[rom.Basis, np.ndarray]:
    snapshots = rom.testbeds.record(rom.testbeds.burgers(0.05, cells=64), 40, 0.02)
    return rom.pod(snapshots, rank), snapshots.arrays["velocity"]


def test_errors_split_exactly() -> None:
    basis, fields = burgers_basis()
    model = rom.QuadraticModel.of(A=-0.9 * np.eye(6), period=0.02, basis=basis)
    error = model.error_against(rom.testbeds.record(rom.testbeds.burgers(0.05, cells=64), 40, 0.02), start=3, horizon=20)
    run = model.simulate(fields[3], error.times)
    direct = np.sqrt(((run.fields() - fields[3:24]) ** 2).sum(axis=1))
    assert np.abs(error.field / direct - 1).max() < 1e-10
    assert np.allclose(error.projection, np.linalg.norm(fields[3:24] - basis.reconstruct(slice(3, 24)), axis=1), rtol=1e-6)
    assert error.worse_than_trivial
    assert "WORSE" in str(error)
    assert 0 <= error.valid_time < 0.4
    with pytest.raises(InputError, match="is of"):
        model.error_against(np.zeros((5, 63)))


def test_a_start_may_be_a_snapshot_and_its_errors_name_what_it_may_be() -> None:
    basis, fields = burgers_basis()
    model = rom.QuadraticModel.of(A=0.9 * np.eye(6), period=1.0, basis=basis)
    times = np.arange(3.0)
    assert np.allclose(model.simulate(fields[0], times).coefficients, model.simulate(basis.coefficients[0], times).coefficients)
    with pytest.raises(InputError, match=r"6 coefficients, shape \(6,\).*snapshot of shape \(64,\).*got shape \(5,\)"):
        model.simulate(np.zeros(5), times)
    with pytest.raises(InputError, match="whole numbers of periods"):
        model.simulate(fields[0], times / 2)
    with pytest.raises(InputError, match="no inputs"):
        model.simulate(fields[0], times, np.ones(3))
    with pytest.raises(InputError, match="stepped, not integrated"):
        model.simulate(fields[0], times, method="rk4")


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = quadratic()
    with pytest.raises(InputError, match=r"pass inputs=, \(4, 2\)"):
        model.simulate(np.zeros(3), np.arange(4.0))
    with pytest.raises(InputError, match="one row fewer"):
        model.simulate(np.zeros(3), np.arange(4.0), np.zeros((6, 2)))
    with pytest.raises(InputError, match="not finite"):
        model.simulate(np.zeros(3), np.arange(4.0), np.full((4, 2), np.nan))
    with pytest.raises(InputError, match="not fitted to data"):
        model.predict(10)


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    basis, _ = burgers_basis(3)
    model = quadratic(period=0.02)
    model = dataclasses.replace(model, basis=basis)
    path = model.save(tmp_path / "wake.model.h5")
    back = rom.load(path)
    assert isinstance(back, rom.QuadraticModel)
    assert np.array_equal(back.matrix, model.matrix)
    assert (back.form, back.period, back.inputs, back.time_unit) == (model.form, 0.02, model.inputs, "s")
    assert np.array_equal(back.basis.modes, basis.modes)
    basis.save(tmp_path / "b.h5")
    assert isinstance(rom.load(tmp_path / "b.h5"), rom.Basis)
    import h5py

    with h5py.File(path) as f:
        assert np.array_equal(f["rom/model/operators/A"], model.A)
        about = json.loads(bytes(f["rom/model/about"][()]))
    assert about["provenance"]["ensemblekit"] == ensemblekit.__version__
    assert about["provenance"]["date"]
    assert not list(tmp_path.glob("*.tmp*"))
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["x"] = 1
    with pytest.raises(StoreError, match="neither a basis nor a model"):
        rom.load(tmp_path / "other.h5")


def test_the_basis_of_replicas_knows_its_runs(tmp_path: Path) -> None:
    import ensemblekit as ek

    rng = np.random.default_rng(0)
    runs = ek.ReplicaSet.of([ek.ArraySource.of(rng.normal(size=(n, 8)), times=np.arange(n) * 0.5) for n in (7, 5)])
    basis = rom.pod(runs, 2)
    assert basis.run_lengths == (7, 5)
    assert np.array_equal(basis.run_times, np.r_[np.arange(7), np.arange(5)] * 0.5)
    basis.save(tmp_path / "b.h5")
    assert rom.Basis.load(tmp_path / "b.h5").run_lengths == (7, 5)


def test_figures_of_models() -> None:
    pytest.importorskip("matplotlib")
    model = rom.QuadraticModel.of(A=np.array([[-0.1, 1.0], [-1.0, 0.1]]))
    model.plot().figure.canvas.draw()
    model.simulate([1.0, 0.0], np.arange(5.0)).plot().figure.canvas.draw()
    model.error_against(np.random.default_rng(0).normal(size=(5, 2))).plot().figure.canvas.draw()
    with pytest.raises(InputError, match="not fitted"):
        model.plot(kind="forecast")


@pytest.mark.skipif(not (DATA / "wake_re100_galerkin").exists(), reason="needs $ENSEMBLEKIT_DATA")
@pytest.mark.parametrize("modes", [3, 9])
def test_published_operators_of_the_wake_give_its_limit_cycle(modes: int) -> None:
    from scipy.io import loadmat

    folder = DATA / "wake_re100_galerkin"
    held = loadmat(folder / f"galerkin{modes}.mat")
    q = held["Q"]
    model = rom.QuadraticModel.of(A=held["L"], H=q)
    every = sum(q.transpose(axes) for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))) / 6
    assert np.abs(every).max() / np.abs(q).max() == pytest.approx(oracles.WAKE_VIOLATIONS[modes], rel=0.01)
    assert model.energy_violation == pytest.approx({3: 2.56e-3, 9: 1.38e-3}[modes], rel=0.01)
    first = np.loadtxt(folder / "vonKarman_a.dat", max_rows=1)[1:]
    run = model.simulate(first if modes == 9 else first[[0, 1, -1]], np.arange(0, 1000, 0.1))
    x = run.coefficients[-4000:]
    phase = np.unwrap(np.arctan2(x[:, 1], x[:, 0]))
    cycle = oracles.WAKE_CYCLES[modes]
    assert abs(phase[-1] - phase[0]) / (0.1 * 3999 * 2 * np.pi) == pytest.approx(cycle.frequency, abs=2e-4)
    assert np.hypot(x[:, 0], x[:, 1]).mean() == pytest.approx(cycle.radius, abs=0.02)
    assert x[:, -1].mean() == pytest.approx(cycle.last, abs=0.02)
