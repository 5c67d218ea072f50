"""ek.average: the interval holds the truth as often as it says, and every odd input has a clear answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

import ensemblekit as ek
from ensemblekit.averaging.series import SeriesOf
from ensemblekit.errors import InputError, StatisticsError


def ar1(phi: float, n: int, runs: int = 1, seed: int = 0) -> np.ndarray:
    """(n, runs), unit variance, mean 0."""
    noise = np.random.default_rng(seed).standard_normal((n + 1000, runs))
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise, axis=0)[1000:]


def covered(estimates: list[ek.Estimate], truth: float = 0.0) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


@pytest.mark.parametrize("runs", [300, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("phi", "n"), [(0.0, 50), (0.5, 150), (0.9, 950)])
def test_coverage_at_fifty_independent_snapshots(phi: float, n: int, runs: int) -> None:
    """Within three sigma of the binomial. benchmarks/bench_coverage.py has the full table."""
    x = ar1(phi, n, 1000, 7)
    assert abs(covered([ek.average(s) for s in x.T[:runs]]) - 0.95) <= 3 * np.sqrt(0.95 * 0.05 / runs)
    e = ek.average(x, equilibration=None)
    assert 0.929 <= np.mean((e.low <= 0) & (0 <= e.high)) <= 0.971
    assert float(np.median(e.n_eff)) == pytest.approx(50, rel=0.3)


def test_coverage_of_weighted_correlated_averages() -> None:
    x = ar1(0.9, 950, 300, 8)
    w = np.exp(0.5 * np.random.default_rng(1).standard_normal(x.shape))
    held = covered([ek.average(s, weights=v) for s, v in zip(x.T, w.T, strict=True)])
    assert abs(held - 0.95) <= 3 * np.sqrt(0.95 * 0.05 / 300)


def test_one_element_of_a_weighted_array() -> None:
    x = ar1(0.9, 950, 800, 9)
    w = np.exp(0.5 * ar1(0.5, 950, 1, 10)[:, 0])
    e = ek.average(x, weights=w, equilibration=None)
    assert 0.92 <= np.mean((e.low <= 0) & (0 <= e.high)) <= 0.98
    np.testing.assert_allclose(e.mean, w @ x / w.sum(), rtol=1e-10, atol=1e-14)


def test_the_numbers_of_a_scalar() -> None:
    x = ar1(0.9, 100_000)[:, 0] + 300.0
    times = np.arange(100_000) * 0.5
    e = ek.average(ek.ArraySource.of(x, times=times, unit="K", time_unit="ps"))
    assert e.mean == pytest.approx(x.mean())
    assert e.statistical_inefficiency == pytest.approx(19, rel=0.15)
    assert e.correlation_time == pytest.approx(9.5 * 0.5, rel=0.15)
    assert e.n_eff == pytest.approx(100_000 / 19, rel=0.15)
    assert e.stderr == pytest.approx(np.sqrt(19 / 1e5), rel=0.08)
    assert set(e.estimators) == {"cosine", "blocking", "geyer", "sokal", "chodera"}
    assert all(v == pytest.approx(e.stderr, rel=0.2) for v in e.estimators.values())
    assert (e.converged, e.verdict, e.unit, e.time_unit) == (True, "", "K", "ps")
    np.testing.assert_array_equal(e.series, x)
    np.testing.assert_array_equal(e.times, times)


def test_a_scalar_through_a_store_like_source_is_the_same() -> None:
    x = ar1(0.8, 3000)[:, 0]
    direct, mapped = ek.average(x), ek.average(x, map=lambda block: block.only)
    assert (direct.mean, direct.interval) == (mapped.mean, mapped.interval)


@pytest.mark.parametrize("engine", [ek.Serial(), ek.Threads(2)])
def test_any_engine_gives_the_same_bits(engine) -> None:
    x = ar1(0.8, 3000, 7)
    a, b = ek.average(x, engine=engine), ek.average(x, engine=ek.Threads(3))
    np.testing.assert_array_equal(a.stderr, b.stderr)


def test_the_transient_is_discarded_in_scalars_and_at_one_point_in_arrays() -> None:
    fall = 20 * np.exp(-np.arange(4000) / 60)
    x = ar1(0.8, 4000, 5, 3)
    times = np.arange(4000) * 2.0
    e = ek.average(ek.ArraySource.of(x[:, 0] + fall, times=times))
    assert 150 <= e.n_discarded <= 1000
    assert e.equilibration_time == 2.0 * e.n_discarded
    assert abs(e.mean) < 5 * e.stderr
    many = ek.average(ek.ArraySource.of(x + fall[:, None], times=times))
    assert 150 <= many.n_discarded <= 1000
    assert many.n == 4000 - many.n_discarded
    assert (np.abs(many.mean) < 5 * many.stderr).all()
    np.testing.assert_allclose(many.mean, (x + fall[:, None])[many.n_discarded:].mean(axis=0), rtol=1e-10)


def test_equilibration_by_count_by_time_and_not_at_all() -> None:
    x = ar1(0.5, 1000)[:, 0] + np.linspace(50, 0, 1000)
    source = ek.ArraySource.of(x, times=np.arange(1000) * 0.5)
    assert ek.average(source, equilibration=None).n_discarded == 0
    assert ek.average(source, equilibration=0).n_discarded == 0
    assert ek.average(source, equilibration=123).n_discarded == 123
    assert ek.average(source, equilibration=100.0).n_discarded == 200
    assert ek.average(np.stack([x, x], axis=1), equilibration=100).n_discarded == 112       # rounded up to a piece
    for wrong in ("soon", -1, True, -2.0, [1]):
        with pytest.raises(InputError, match="equilibration"):
            ek.average(source, equilibration=wrong)
    with pytest.raises(InputError, match="no times"):
        ek.average(x, equilibration=100.0)
    with pytest.raises(StatisticsError, match="leaves none"):
        ek.average(source, equilibration=1000)


def test_too_short_a_series_is_refused() -> None:
    e = ek.average(ar1(0.99, 400, seed=5)[:, 0])
    assert not e.converged
    assert "independent snapshots" in e.verdict
    assert "NOT CONVERGED" in str(e)


def test_skewed_snapshots_have_a_skewed_interval() -> None:
    x = np.random.default_rng(0).exponential(size=60)
    e = ek.average(x)
    assert e.high - e.mean > 1.1 * (e.mean - e.low)


def test_replicas_are_combined() -> None:
    x = ar1(0.9, 2000, 4, 2)
    together = ek.average(ek.ReplicaSet.of(list(x.T)))
    assert together.mean == pytest.approx(x.mean())
    assert together.stderr == pytest.approx(np.sqrt(19 / 8000), rel=0.25)
    assert set(together.estimators) == {"within runs", "between runs"}
    apart = ek.average(ek.ReplicaSet.of(list((x + np.array([0, 0, 5, 5])).T)))
    assert "disagree" in apart.verdict
    assert apart.dof == pytest.approx(3, rel=1e-3)
    arrays = ek.average(ek.ReplicaSet.of([x[:1000], x[1000:1900]]))
    np.testing.assert_allclose(arrays.mean, x[:1900].mean(axis=0))


def test_coords_name_the_axes() -> None:
    x = ar1(0.5, 500, 3)
    e = ek.average(x, coords={"r": (np.array([1.0, 2.0, 3.0]), "nm")}, unit="m")
    assert e.coords["r"][1] == "nm"
    assert e.unit == "m"
    with pytest.raises(InputError, match="axes"):
        ek.average(x, coords={"r": np.arange(4)})


@pytest.mark.parametrize(("x", "says"), [
    (np.ones(50), "the same"),
    (np.full(50, 1e9), "the same"),
    (np.array([7.0]), "1 snapshots"),
    (np.array([1.0, 2.0, 4.0]), "3 snapshots"),
    (np.array([1.0, np.nan] * 20), "not finite"),
    (np.array([1.0, np.inf] * 20), "not finite"),
    (np.array([1.0, np.inf, -np.inf] * 20), "not finite"),
    (np.ones((50, 3)), "never change"),
    (np.ones((2, 3)), "2 snapshots"),
])
def test_what_gets_a_mean_and_a_refusal(x: np.ndarray, says: str) -> None:
    e = ek.average(x)
    assert not e.converged
    assert says in e.verdict
    assert str(e)
    assert e.summary()
    assert e.to_dict()


def test_one_bad_element_leaves_the_others_alone() -> None:
    x = ar1(0.5, 500, 3)
    x[7, 1] = np.nan
    e = ek.average(x)
    assert "1 of 3 elements are not finite" in e.verdict
    np.testing.assert_allclose(e.stderr[[0, 2]], ek.average(x[:, [0, 2]], equilibration=None).stderr, rtol=1e-9)


@pytest.mark.parametrize("values", [np.random.default_rng(0).integers(0, 10, 400), np.arange(400) % 2 == 0,
                                    np.random.default_rng(0).random(400).astype("f4"),
                                    np.random.default_rng(0).random(400).astype("f2")], ids=["int", "bool", "f4", "f2"])
def test_other_types_are_averaged_in_double_precision(values: np.ndarray) -> None:
    wide = values.astype(float)
    assert ek.average(values).mean == wide.mean()
    np.testing.assert_allclose(ek.average(np.stack([values, values], axis=1)).mean, wide.mean(), rtol=1e-12)


@pytest.mark.parametrize(("source", "error", "says"), [
    (np.array([]), StatisticsError, "no snapshots"),
    (np.empty((0, 3)), StatisticsError, "no snapshots"),
    (np.ones(20) * 1j, InputError, "complex"),
    (np.ones((20, 2)) * 1j, ek.EnsemblekitError, "complex"),
    ({"a": np.ones(5), "b": np.ones(5)}, InputError, "average one of them"),
    ("file.h5", InputError, "open it first"),
])
def test_what_is_refused(source, error, says: str) -> None:
    with pytest.raises(error, match=says):
        ek.average(ek.ArraySource.of(source) if isinstance(source, dict) else source)


def test_weights_that_do_not_fit() -> None:
    x = ar1(0.5, 100)[:, 0]
    for wrong, says in ((np.ones(99), "shape"), (-np.ones(100), "negative"), (np.full(100, np.nan), "finite")):
        with pytest.raises(InputError, match=says):
            ek.average(x, weights=wrong)
    with pytest.raises(StatisticsError, match="all weights are zero"):
        ek.average(x, weights=np.zeros(100))
    with pytest.raises(StatisticsError, match="all weights are zero"):
        ek.average(np.stack([x, x], axis=1), weights=np.zeros(100))
    with pytest.raises(InputError, match="its own weights"):
        ek.average(ek.ArraySource.of(x), weights=np.ones(100))
    with pytest.raises(InputError, match="backwards"):
        ek.ArraySource.of(x, times=-np.arange(100.0))
    lone = np.zeros(100)
    lone[3] = 1.0
    e = ek.average(x, weights=lone)
    assert e.mean == pytest.approx(x[3])
    assert not e.converged
    equal = ek.average(x, weights=np.full(100, 1e-300))
    assert equal.interval == pytest.approx(ek.average(x).interval)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -1])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(InputError, match="confidence"):
        ek.average(np.arange(9.0), confidence=confidence)


def test_a_wider_confidence_is_a_wider_interval() -> None:
    x = ar1(0.5, 500)[:, 0]
    low, high = ek.average(x, confidence=0.68), ek.average(x, confidence=0.99)
    assert high.high - high.low > 2 * (low.high - low.low)


def test_a_series_of_a_function_of_the_values() -> None:
    x = np.random.default_rng(2).standard_normal((1000, 3))
    result = ek.reduce(ek.ArraySource.of(x), SeriesOf(lambda v: np.abs(v).sum(axis=1)))
    np.testing.assert_array_equal(result, np.abs(x).sum(axis=1))
