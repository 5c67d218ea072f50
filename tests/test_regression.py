"""Least squares over consecutive snapshots: any cut gives the plain answer, and a large run takes little memory."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ensemblekit as ek
from ensemblekit.averaging.regression import CHUNK
from ensemblekit.errors import InputError, ReductionError, StatisticsError
from tests import strategies


def next_state(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([np.ones((len(x) - 1, 1)), x[:-1]], axis=1), x[1:]


def fourth_difference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([np.ones((len(x) - 4, 1)), x[2:-2] ** 2], axis=1), (x[:-4] - 8 * x[1:-3] + 8 * x[3:-1] - x[4:]) / 12


def own_row(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x[:, :1], x[:, 1:]


KINDS = {"next": (next_state, 1), "difference": (fourth_difference, 4), "row": (own_row, 0)}


def fed_in_pieces(pattern: ek.statistics.Regression, x: np.ndarray, edges: list[int]) -> ek.statistics.Regression:
    total = pattern.empty()
    for a, b in itertools.pairwise(edges):
        part, middle = pattern.empty(), (a + b) // 2
        part.update(x[a:middle], a)
        part.update(x[middle:b], middle)
        total.merge(part)
    return total


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=40)
@given(st.data())
def test_any_cut_gives_the_least_squares_of_all_rows(name: str, data: st.DataObject) -> None:
    equations, reach = KINDS[name]
    x = np.random.default_rng(data.draw(st.integers(0, 999))).normal(size=(data.draw(st.integers(12, 40)), 3))
    result = fed_in_pieces(ek.statistics.Regression(equations, reach), x, data.draw(strategies.cuts(len(x)))).result()
    d, y = equations(x)
    solution = np.linalg.lstsq(d, y, rcond=None)[0]
    assert result.n == len(d)
    np.testing.assert_allclose(result.coefficients, solution, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(result.residual, np.sqrt(((y - d @ solution) ** 2).mean(axis=0)), rtol=1e-9)
    rows = np.concatenate([d, y], axis=1)
    np.testing.assert_allclose(result.triangle.T @ result.triangle, rows.T @ rows, rtol=1e-9, atol=1e-10)
    assert (np.diag(result.triangle) >= 0).all()


def test_merging_is_associative_with_pieces_shorter_than_the_reach() -> None:
    x = np.random.default_rng(0).normal(size=(23, 2))
    pattern = ek.statistics.Regression(fourth_difference, 4)
    single = [fed_in_pieces(pattern, x[k:k + 1], [0, 1]) for k in range(len(x))]
    while len(single) > 1:      # neighbours two by two, from the right
        single = [*single[:-2], _merged(single[-2], single[-1])]
    whole = fed_in_pieces(pattern, x, [0, 23])
    np.testing.assert_allclose(single[0].result().triangle, whole.result().triangle, rtol=1e-10, atol=1e-12)
    assert single[0].result().n == 19


def _merged(left: ek.statistics.Regression, right: ek.statistics.Regression) -> ek.statistics.Regression:
    left.merge(right)
    return left


def test_the_condition_is_that_of_the_data_not_its_square() -> None:
    rng = np.random.default_rng(1)
    t = rng.uniform(size=4000)
    columns = np.stack([t**k for k in range(9)], axis=1)
    truth = rng.normal(size=(9, 1))
    x = np.concatenate([columns, columns @ truth], axis=1)
    result = ek.reduce(x, ek.statistics.Regression(_last_column))
    assert 1e5 < result.condition < 1e7
    assert np.abs(result.coefficients - truth).max() < 1e-16 * result.condition * 100
    gram = np.linalg.solve(columns.T @ columns, columns.T @ x[:, 9:])
    assert np.abs(gram - truth).max() > 100 * np.abs(result.coefficients - truth).max(), "normal equations lose more"


def _last_column(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x[:, :-1], x[:, -1:]


def test_complex_and_single_precision_values() -> None:
    rng = np.random.default_rng(2)
    a = np.array([[0.9 * np.exp(0.3j), 0.1], [0, 0.8 * np.exp(-0.2j)]])
    x = [np.array([1.0 + 0.5j, -1.0j])]
    for _ in range(40):
        x.append(a @ x[-1])
    result = ek.reduce(np.array(x), ek.statistics.Regression(_step, 1))
    np.testing.assert_allclose(result.coefficients.T, a, atol=1e-12)
    assert (np.diag(result.triangle).real >= 0).all()
    single = rng.normal(size=(50, 2)).astype("f4")
    np.testing.assert_array_equal(ek.reduce(single, ek.statistics.Regression(_step, 1)).triangle,
                                  ek.reduce(single.astype("f8"), ek.statistics.Regression(_step, 1)).triangle)


def _step(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x[:-1], x[1:]


def test_dependent_regressors_give_the_solution_of_least_norm_and_say_so() -> None:
    x = np.random.default_rng(3).normal(size=(30, 1))
    result = ek.reduce(np.concatenate([x, x, 2 * x], axis=1), ek.statistics.Regression(_last_column))
    np.testing.assert_allclose(result.coefficients, [[1.0], [1.0]])
    assert result.condition > 1e15


def test_every_engine_gives_the_same_bits_and_states_travel() -> None:
    x = np.random.default_rng(4).normal(size=(3000, 3))
    pattern = ek.statistics.Regression(next_state, 1)
    answers = [ek.reduce(x, pattern, engine=engine).triangle for engine in (ek.Serial(), ek.Threads(2), ek.Threads(5))]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    state = fed_in_pieces(pattern, x, [0, 1000])
    copy = pattern.restored(pickle.loads(pickle.dumps(state.state())))
    for one in (state, copy):
        one.update(x[1000:], 1000)
    np.testing.assert_array_equal(state.result().triangle, copy.result().triangle)


def test_partial_states_hold_the_equations_of_their_part_and_together_all() -> None:
    x = np.random.default_rng(5).normal(size=(4096, 2))
    (run,) = ek.partials(x, {"fit": ek.statistics.Regression(next_state, 1)})
    parts = [state["fit"][0] for state in run.states]
    assert len(parts) > 10
    assert sum(part.n for part in parts) == 4095 - (len(parts) - 1), "those across the cuts are made where parts meet"
    total = parts[0].empty()
    for part in parts:
        total.merge(part)
    assert total.n == 4095


def test_memory_does_not_grow_with_the_block() -> None:
    rows = []

    def wide_equations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows.append(len(x))
        return np.repeat(x, 100, axis=1), x[:, :1]

    state = ek.statistics.Regression(wide_equations)
    state.update(np.random.default_rng(6).normal(size=(40_000, 1)), 0)
    assert max(rows) <= CHUNK // (8 * 101) + 1
    assert sum(rows) == 40_000


@pytest.mark.parametrize(("equations", "reach"), [(lambda x: (x, x), 1), (lambda x: (x[:, 0], x[:, :1]), 0)])
def test_equations_of_another_shape_are_named(equations: object, reach: int) -> None:
    state = ek.statistics.Regression(equations, reach)     # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"are \d+ rows of D \(n, d\) and of Y \(n, r\); got shapes"):
        state.update(np.zeros((40, 2)), 0)
    with pytest.raises((InputError, ReductionError), match="got shapes"):
        ek.reduce(np.zeros((40, 2)), ek.statistics.Regression(equations, reach))       # type: ignore[arg-type]


def test_what_makes_no_equation_is_refused() -> None:
    with pytest.raises(StatisticsError, match="3 snapshots make no equation that needs 5 of them"):
        fed_in_pieces(ek.statistics.Regression(fourth_difference, 4), np.zeros((3, 1)), [0, 1, 3]).result()
    with pytest.raises(InputError, match="reach is a whole number"):
        ek.statistics.Regression(next_state, -1)
