"""Operator inference over design parameters together with inputs, and products that conserve energy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError
from ensemblekit.rom.energy import conditions
from tests import oracles_rom as oracles

TIMES = 2e-3 * np.arange(501)
INPUTS = {0.5: 1 + np.sin(4 * np.pi * TIMES) / 4, 1.0: np.cos(3 * TIMES) * (1 - np.exp(-8 * TIMES)), 2.0: 2 * TIMES}


@pytest.fixture(scope="module")
def rods() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Runs at three diffusivities, a fourth, and its input."""
    u = np.exp(-2 * TIMES) + 0.5 * np.sin(7 * TIMES)
    return [oracles.rod_at(mu, own) for mu, own in INPUTS.items()], oracles.rod_at(1.4, u), u


@pytest.mark.filterwarnings("ignore:inputs")
@pytest.mark.parametrize("rank", [3, 5, 8])
def test_a_run_at_another_parameter_under_another_input_is_predicted(rods: Any, rank: int) -> None:
    """To 1.2 times what the modes leave out."""
    runs, truth, u = rods
    v = np.linalg.svd(np.concatenate(runs), full_matrices=False)[2][:rank]
    sources = [ek.ArraySource.of(run @ v.T, times=TIMES) for run in runs]
    family = rom.operator_inference(sources, form={"A": ["mu"], "B": ["mu"]}, inputs=list(INPUTS.values()), time="continuous",
                                    ddt="backward", regularisation=0.0, n_resamples=0, parameters=list(INPUTS))
    model = family.at(1.4)
    implicit = np.linalg.inv(np.eye(rank) - 2e-3 * model.A)
    a = [truth[0] @ v.T]
    for one in u[1:]:
        a.append(implicit @ (a[-1] + 2e-3 * model.B[:, 0] * one))
    projection = np.linalg.norm(truth - truth @ v.T @ v) / np.linalg.norm(truth)
    assert projection < 10 * oracles.AFFINE_PROJECTION[rank]
    error = np.linalg.norm(truth - np.array(a) @ v) / np.linalg.norm(truth)
    assert error < 1.2 * projection
    constant = rom.operator_inference(sources, form="AB", inputs=list(INPUTS.values()), time="continuous", ddt="backward",
                                      regularisation=0.0, n_resamples=0)
    assert np.abs(constant.A - model.A).max() > 0.05 * np.abs(model.A).max(), "the parameter matters"


def test_a_family_knows_its_functions_and_has_intervals_and_a_search() -> None:
    rng = np.random.default_rng(0)
    a0, a1 = np.array([[0.9, 0.2], [-0.2, 0.9]]), np.array([[-0.1, 0.0], [0.1, -0.1]])
    mus, runs = [0.0, 0.5, 1.0, 1.5], []
    for mu in mus:
        x = [rng.normal(size=2)]
        for _ in range(299):
            x.append((a0 + mu**2 * a1) @ x[-1] + 0.1 * rng.normal(size=2))
        runs.append(np.array(x))
    options: dict[str, Any] = {"time": "discrete", "parameters": {"mach": mus}}
    family = rom.operator_inference(runs, form={"A": ["1", "mach**2"]}, regularisation=0.0, **options)
    model = family.at({"mach": 0.7})
    assert np.abs(model.A - a0 - 0.49 * a1).max() < 0.05
    low, high = model.eigenvalues.interval["growth"]
    truth = np.log(np.linalg.eigvals(a0 + 0.49 * a1)).real
    assert (low < truth).all()
    assert (truth < high).all()
    assert "mach 0 to 1.5 from 4 runs; functions of A: 1, mach**2" in str(family)
    called = rom.operator_inference(runs, form={"A": ["1", lambda mach: mach * mach]}, regularisation=0.0, **options)
    np.testing.assert_allclose(called.at(0.7).A, model.A, rtol=1e-12)
    searched = rom.operator_inference(runs, form={"A": ["1", "mach**2"]}, n_resamples=0, horizon=0.5, bound=3.0, **options)
    assert searched.fit.search is not None
    assert np.abs(searched.at(0.7).A - model.A).max() < 0.1


@pytest.mark.parametrize(("change", "match"), [
    ({"parameters": None}, "goes with parameters="), ({"parameters": [1.0]}, "a row a run, for 2 runs"),
    ({"parameters": [1.0, np.nan]}, "finite numbers"),
    ({"parameters": [1.0, 1.0]}, "2 functions .* need runs at as many; these are at 1"),
    ({"form": {"A": []}}, "at least one function"), ({"form": {"A": ["nu", "1"]}}, "sums, products, quotients and powers of"),
    ({"form": {"A": ["__import__('os')", "1"]}}, "sums, products"), ({"form": {"A": ["1 / (mu - 1)", "1"]}}, "sums, products"),
    ({"form": {"G": ["1"]}}, "Cubic terms"), ({"one": True}, "several runs"), ({"stable": "energy"}, "without parameters="),
], ids=lambda x: "" if isinstance(x, str) else str(x)[:40])
def test_bad_families_are_named(change: dict[str, Any], match: str) -> None:
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"form": {"A": ["1", "mu"]}, "parameters": [1.0, 2.0], "regularisation": 0.0} | change
    runs: Any = [rng.normal(size=(40, 2)), rng.normal(size=(40, 2))]
    if options.pop("one", False):
        runs = runs[0]
    with pytest.raises(InputError, match=match):
        rom.operator_inference(runs, **options)


# -- energy ---------------------------------------------------------------------------------------------------------


def triad(n: int = 400, noise: float = 1e-3) -> tuple[ek.ArraySource, np.ndarray]:
    """A damped triad whose products conserve energy (n, 3), noisy, and its H (3, 3, 3)."""
    h = np.zeros((3, 3, 3))
    h[0, 1, 2], h[1, 0, 2], h[2, 0, 1] = 1.0, 0.5, -1.5
    truth = rom.QuadraticModel.of(A=[[-0.02, 1.0, 0], [-1.0, -0.03, 0], [0, 0, -0.05]], H=h)
    run = truth.simulate([1.0, 0.5, -0.7], 0.05 * np.arange(n), rtol=1e-11)
    noisy = run.coefficients + noise * np.random.default_rng(0).normal(size=run.coefficients.shape)
    return ek.ArraySource.of(noisy, times=run.times), (h + h.transpose(0, 2, 1)) / 2


def test_products_conserve_energy_where_they_are_told_to() -> None:
    source, h = triad()
    options: dict[str, Any] = {"form": "AH", "time": "continuous", "regularisation": 1e-3, "n_resamples": 30}
    free = rom.operator_inference(source, **options)
    held = rom.operator_inference(source, stable="energy", **options)
    assert free.energy_violation > 1e-4
    assert held.energy_violation < 1e-12
    x = np.random.default_rng(1).normal(size=(50, 3))
    made = np.einsum("ni,ijk,nj,nk->n", x, held.tensor, x, x)
    assert np.abs(made).max() < 1e-12
    assert np.abs(held.tensor - h).max() < 1.2 * np.abs(free.tensor - h).max()
    for matrix in held.resamples.matrices:
        assert rom.QuadraticModel(form="AH", matrix=matrix).energy_violation < 1e-10
    # the least squares under the conditions: no step within them is better
    assert free.fit.residual <= held.fit.residual * (1 + 1e-9) < 1.1 * free.fit.residual


def test_the_answer_is_the_constrained_least_squares() -> None:
    """Against the equations of Lagrange, solved whole."""
    from ensemblekit.rom.least_squares import Problem
    from ensemblekit.rom.operators import blocks, terms

    rng = np.random.default_rng(2)
    r = 3
    d = terms(rng.normal(size=(200, r)), np.zeros((200, 0)), "cAH")
    y = rng.normal(size=(200, r))
    rows = blocks("cAH", r, 0)["H"]
    operators = replace(Problem.of(d, y), energy=rows).solved(np.zeros(d.shape[1]))
    limits = conditions(r)
    whole = np.zeros((len(limits), r, d.shape[1]))
    whole[:, :, rows] = limits.transpose(0, 2, 1)
    flat = whole.reshape(len(limits), -1)
    normal = np.kron(np.eye(r), d.T @ d)
    system = np.block([[normal, flat.T], [flat, np.zeros((len(flat), len(flat)))]])
    solution = np.linalg.solve(system, np.append((d.T @ y).T.ravel(), np.zeros(len(flat))))
    np.testing.assert_allclose(operators.T.ravel(), solution[:d.shape[1] * r], atol=1e-10)


def test_only_products_conserve_energy() -> None:
    source, _ = triad(60)
    with pytest.raises(InputError, match="a form with H"):
        rom.operator_inference(source, form="A", stable="energy")
    with pytest.raises(InputError, match='stable is None or "energy"'):
        rom.operator_inference(source, form="AH", stable="always")
