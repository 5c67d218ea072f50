"""Models of coefficients larger than memory: the answers of those that fit, from two reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError
from ensemblekit.rom import equation_rows
from ensemblekit.rom.opinf import GRID

SMALL = 1000
"""Bytes: less than any equations take."""


def driven(n: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy driven oscillation with products (n, 3), and its input (n,)."""
    rng = np.random.default_rng(seed)
    a = np.array([[0.95, -0.25, 0.0], [0.25, 0.95, 0.05], [0.0, 0.0, 0.8]])
    x, u = np.zeros((n, 3)), np.sin(0.05 * np.arange(n)) + rng.normal(size=n)
    for k in range(1, n):
        y = x[k - 1]
        x[k] = a @ y + 0.01 * np.array([y[0] * y[1], -y[0] ** 2, y[1] * y[2]]) + 0.1 * np.array([0, 1, 0.5]) * u[k - 1]
        x[k] = np.clip(x[k] + 0.02 * rng.normal(size=3), -3, 3)
    return x, u


def stored(path: Path, x: np.ndarray, times: np.ndarray) -> Any:
    with ek.create(path, {"coefficients": ek.Field((x.shape[1],), "f8")}, time_unit="s") as store:
        store.extend({"coefficients": x}, times=times)
    return ek.open(path)["coefficients"]


def assert_same_model(large: rom.QuadraticModel, held: rom.QuadraticModel, tolerance: float = 1e-10) -> None:
    assert np.abs(large.matrix - held.matrix).max() < tolerance * np.abs(held.matrix).max()
    np.testing.assert_allclose(large.fit.residual, held.fit.residual, rtol=1e-9)
    np.testing.assert_allclose(large.fit.condition_number, held.fit.condition_number, rtol=1e-6)
    for name in ("mean", "last", "last_inputs"):
        np.testing.assert_allclose(getattr(large.training, name), getattr(held.training, name), rtol=1e-11, atol=1e-13)
    for name in ("n", "runs", "time", "interval", "span", "fluctuation", "largest"):
        assert getattr(large.training, name) == pytest.approx(getattr(held.training, name), rel=1e-11)
    assert large.fit.n_equations == held.fit.n_equations


@pytest.mark.parametrize("options", [
    {"form": "cAHB", "time": "discrete"}, {"form": "AB", "time": "discrete"}, {"form": "cAB", "time": "continuous"},
    {"form": "cAHBN", "time": "continuous", "ddt": "backward"}, {"form": "cAB", "time": "continuous", "ddt": 2},
], ids=str)
@pytest.mark.filterwarnings("ignore:inputs")
def test_the_operators_are_those_of_the_states_in_memory(options: dict[str, Any], tmp_path: Path) -> None:
    x, u = driven()
    source = stored(tmp_path / "a.h5", x, 0.1 * np.arange(len(x)))
    options = {**options, "inputs": u, "regularisation": 1e-3, "n_resamples": 0, "outputs": x[:, :1] + 2 * u[:, None]}
    held = rom.operator_inference(source, **options)
    large = rom.operator_inference(source, **options, memory_limit=SMALL)
    assert_same_model(large, held)
    np.testing.assert_allclose(large.readout, held.readout, atol=1e-10)
    assert f"fitted in two reads of {len(x)} states" in str(large)
    assert "two reads" not in str(held)


def test_gaps_and_several_runs_are_not_bridged(tmp_path: Path) -> None:
    x, _ = driven(3000)
    times = 0.1 * np.arange(3000) + 7.0 * (np.arange(3000) >= 1234) + 3.0 * (np.arange(3000) >= 1240)
    gapped = stored(tmp_path / "a.h5", x, times)
    other = ek.ArraySource.of({"coefficients": driven(700, 1)[0]}, times=0.1 * np.arange(700), time_unit="s")
    for given in (gapped, [gapped, other], ek.ReplicaSet.of([gapped, other])):
        options: dict[str, Any] = {"form": "cAH", "time": "discrete", "regularisation": 0.0, "n_resamples": 0}
        held = rom.operator_inference(given, **options)
        large = rom.operator_inference(given, **options, memory_limit=SMALL)
        assert_same_model(large, held)
        assert "2 gaps or restarts" in str(large)


def test_a_basis_whose_equations_are_too_large_is_summed_up_too() -> None:
    x, _ = driven(2000)
    modes = np.linalg.qr(np.random.default_rng(3).normal(size=(20, 3)))[0].T
    basis = rom.pod(ek.ArraySource.of(x @ modes, times=0.1 * np.arange(2000)), 3)
    options: dict[str, Any] = {"form": "cAH", "time": "discrete", "regularisation": 0.0}
    large = rom.operator_inference(basis, **options, memory_limit="2kB")
    assert_same_model(large, rom.operator_inference(basis, **options, n_resamples=0))
    assert large.basis is basis


def test_the_search_tries_and_finds_the_same(tmp_path: Path) -> None:
    x, _ = driven(2500)
    t = 0.1 * np.arange(2500)
    x = np.stack([np.cos(t), np.sin(t), 0.3 * np.cos(2 * t)], axis=1) + 0.002 * x
    source = stored(tmp_path / "a.h5", x, t)
    options: dict[str, Any] = {"form": "cA", "time": "discrete", "n_resamples": 0, "horizon": 1.0}
    held, large = (rom.operator_inference(source, **options, memory_limit=limit) for limit in ("1GiB", SMALL))
    grid = 1 + len(GRID)        # after it the simplex follows differences of rounding where the error is flat
    np.testing.assert_allclose(large.fit.search[:grid], held.fit.search[:grid], rtol=1e-5)
    np.testing.assert_allclose(large.matrix, held.matrix, rtol=1e-5, atol=1e-6)


def test_dynamic_modes_with_inputs_known_and_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a, b = np.array([[0.9, 0.2], [-0.2, 0.9]]), np.array([[1.0], [0.5]])
    u, x = rng.normal(size=(3000, 1)), [np.zeros(2)]
    for one in u[:-1]:
        x.append(a @ x[-1] + b @ one)
    modes = np.linalg.qr(rng.normal(size=(20, 2)))[0].T
    basis = rom.pod(ek.ArraySource.of(np.array(x) @ modes), 2, center="none")
    source = stored(tmp_path / "a.h5", basis.project(np.array(x) @ modes), np.arange(3000.0))
    turned = basis.modes @ modes.T
    for matrix in (None, turned @ b):
        model = rom.dmd(source, inputs=u, input_matrix=matrix, basis=basis, memory_limit=SMALL)
        assert np.abs(model.A - turned @ a @ turned.T).max() < 1e-12
        assert np.abs(model.B - turned @ b).max() < 1e-12
        assert model.basis is basis
        assert model.simulate(np.array(x[5]) @ modes, [0.0, 1.0], u[5:7]).fields().shape == (2, 20)
    held = rom.dmd(source, inputs=u, input_matrix=turned @ b, basis=basis)
    assert held.eigenvalues.interval is not None, "blocks are resampled where the inputs' part is known as well"
    with pytest.raises(InputError, match="goes with snapshots or a Basis"):
        rom.dmd(source, 5, inputs=u, basis=basis)


def test_intervals_from_the_blocks_of_the_read_are_those_of_rows(tmp_path: Path) -> None:
    x, u = driven(20_000)
    source = stored(tmp_path / "a.h5", x, 0.1 * np.arange(len(x)))
    held, large = (rom.operator_inference(source, form="AB", inputs=u, time="discrete", regularisation=0.0, n_resamples=400,
                                          memory_limit=limit) for limit in ("1GiB", SMALL))
    one, two = (model.resamples.matrices.std(axis=0) for model in (held, large))
    assert large.resamples.n_blocks > 30
    # a standard deviation from 400 resamples of 64 blocks is good to 10 %; three of them, and the 12 numbers differ
    assert 0.7 < (two / one).min()
    assert (two / one).max() < 1.4
    assert large.predict(20, inputs=np.zeros(20)).low.shape == (20, 3)


def test_blocks_shorter_than_the_correlation_are_taken_together() -> None:
    from ensemblekit.averaging.regression import RegressionResult
    from ensemblekit.rom.least_squares import Problem, resampled_blocks, stacked

    rng = np.random.default_rng(5)
    slow = np.zeros(6400)
    for k in range(1, len(slow)):
        slow[k] = 0.995 * slow[k - 1] + rng.normal()
    d = np.ones((6400, 1))
    rows = np.stack([d[:, 0], slow], axis=1)
    blocks = [RegressionResult(triangle=np.linalg.qr(rows[a:a + 50], mode="r"), n=50, n_regressors=1)
              for a in range(0, 6400, 50)]
    total = stacked(blocks)
    problem = Problem.of_triangle(total.triangle, total.n, 1)
    mean = problem.solved(np.zeros(1))
    np.testing.assert_allclose(mean, [[slow.mean()]], rtol=1e-10)
    options: dict[str, Any] = {"residuals": np.empty((0, 1)), "n_resamples": 400, "rng": 0}
    kept = resampled_blocks([blocks], mean, np.zeros(1), problem, **options)
    assert kept.block_length > 150, "200 steps are correlated, blocks of 50 are too short"
    few = resampled_blocks([blocks[:9]], mean, np.zeros(1), problem, **options)
    assert "blocks" in few.reason
    assert not few.known


def test_what_is_wrong_is_named_as_in_memory(tmp_path: Path) -> None:
    x, u = driven(2000)
    holed = x.copy()
    holed[1717, 1] = np.nan
    source = stored(tmp_path / "a.h5", holed, np.arange(2000.0))
    with pytest.raises(InputError, match=r"state 1717 \(time 1717\) holds NaN"):
        rom.operator_inference(source, form="A", regularisation=0.0, memory_limit=SMALL)
    clean = stored(tmp_path / "b.h5", x, np.arange(2000.0))
    with pytest.raises(InputError, match="it is a feedback"):
        rom.operator_inference(clean, form="AB", inputs=x @ [1.0, 2.0, 3.0], regularisation=0.0, memory_limit=SMALL)
    with pytest.warns(UserWarning, match="inputs later by one sample fit better"):
        rom.operator_inference(clean, form="AB", inputs=np.roll(u, 1), regularisation=0.0, n_resamples=0, memory_limit=SMALL)
    with pytest.raises(InputError, match="1999 rows, the states 2000"):
        rom.operator_inference(clean, form="AB", inputs=u[1:], regularisation=0.0, memory_limit=SMALL)
    uneven = ek.ArraySource.of(x, times=np.cumsum(1 + np.arange(2000.0) % 3))
    with pytest.raises(InputError, match=r'times are uneven.*operator_inference\(time="continuous"\)'):
        rom.operator_inference(uneven, form="A", memory_limit=SMALL)


def test_states_are_read_twice_and_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = driven(60_000)
    read: list[int] = []

    class Counted(ek.ArraySource):
        def pieces(self, names: Any, cut: Any, tiled: bool, limit: int) -> Any:
            for piece in super().pieces(names, cut, tiled, limit):
                read.append(piece.stop - piece.start)
                yield piece

    large = rom.operator_inference(Counted.of(x), form="cAH", time="discrete", regularisation=0.0, memory_limit="1MB")
    windows = (equation_rows.WINDOWS + 1) * equation_rows.WINDOW + 1
    assert sum(read) <= 2 * len(x) + windows
    assert large.fit.n_equations == len(x) - 1
