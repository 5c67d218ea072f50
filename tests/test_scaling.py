"""Values of any size: an answer of scaled values is the scaled answer, to the last bit where the scale is a power of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ensemblekit as ek
import ensemblekit.rom
from ensemblekit import statistics as of
from ensemblekit.averaging.estimate import rounded
from ensemblekit.errors import StatisticsError
from ensemblekit.scaling import ldexp

N = 240
POWERS = [960, -960]


class Statistic(NamedTuple):
    """A public statistic and how its answers grow with the values."""

    name: str
    call: Callable[[np.ndarray], Any]
    """Values (N,) or (N, *item) -> name -> (numbers, degree): 1 where they double with the values, 0 where they stay."""
    item: tuple[int, ...] = ()
    kind: str = "f8"


def estimate(e: ek.Estimate) -> dict[str, tuple[Any, int]]:
    return {"mean": (e.mean, 1), "stderr": (e.stderr, 1), "low": (e.low, 1), "high": (e.high, 1), "n_eff": (e.n_eff, 0),
            "g": (e.statistical_inefficiency, 0), "dof": (e.dof, 0), "converged": (e.converged, 0),
            **{name: (x, 1) for name, x in e.estimators.items()}}


def moments(r: Any) -> dict[str, tuple[Any, int]]:
    fields = {"mean": (r.mean, 1), "std": (r.std, 1), "variance": (r.variance, 2), "n_eff": (r.n_eff, 0)}
    return fields | ({} if r.skewness is None else {"skewness": (r.skewness, 0), "kurtosis": (r.kurtosis, 0)})


def streamed(reducer: Any, x: Any, weights: Any = None, cut: int = 70) -> Any:
    """In two states of two blocks each, one of them through its saved form, merged."""
    states = []
    for half in (0, N // 2):
        state = reducer.empty()
        for a in range(half, half + N // 2, cut):
            rows = slice(a, min(a + cut, half + N // 2))
            state.update(x[rows], a, None if weights is None else weights[rows])
        states.append(state)
    first, later = states
    first = first.restored(first.state())
    first.merge(later)
    return first.result()


W = np.random.default_rng(5).random(N) + 0.1


def resampled(r: Any) -> dict[str, tuple[Any, int]]:
    return {"value": (r.value, 1), "stderr": (r.stderr, 1), "bias": (r.bias, 1), "low": (r.interval[0], 1),
            "high": (r.interval[1], 1), "block": (r.block_length, 0)}


def correlation(x: np.ndarray, method: Any) -> dict[str, tuple[Any, int]]:
    r = of.statistical_inefficiency(x, method, tolerance=0.0)
    return {"g": (r.g, 0), "stderr": (r.stderr, 1), "window": (r.window, 0), "variance": (r.variance, 2)}


def blocks(r: Any) -> dict[str, tuple[Any, int]]:
    return {"mean": (r.mean, 1), "variances": (r.variances, 2), "stderr": (r.stderr, 1), "g": (r.inefficiency, 0),
            "neighbours": (r.neighbours, 0), "chosen": (r.chosen().stderr, 1), "level": (r.chosen().level, 0)}


def covariance(r: Any) -> dict[str, tuple[Any, int]]:
    return {"mean": (r.mean, 1), "covariance": (r.covariance, 2), "correlation": (r.correlation, 0)}


def ergodic(x: np.ndarray) -> dict[str, tuple[Any, int]]:
    runs = x.reshape(4, -1)
    r, m = of.ergodicity(runs), of.fluctuation_metric(runs)
    return {"verdict": (r.verdict == "ergodic within error", 0), "means": (r.means, 1), "stderrs": (r.stderrs, 1),
            "n_eff": (r.n_eff, 0), "within": (r.within, 2), "between": (r.between, 2), "rhat": (r.rhat, 0),
            "together": (r.consensus.mean, 1), "dark": (r.consensus.dark, 1), "breaking": (r.breaking, 0),
            "p": ([t.p_value for t in r.tests.values()], 0), "omega": (m.omega, 2), "exponent": (m.exponent, 0),
            "rate": (m.rate, 0), "lag": (of.ergodicity_breaking(runs, lag=3), 0)}


def flow(x: np.ndarray, statistics: Any, weights: Any = None) -> dict[str, tuple[Any, int]]:
    averages = ek.rom.average(ek.ArraySource.of(x, weights=weights), statistics)
    return {f"{name} {key}": number for name, e in averages.items() for key, number in estimate(e).items()}


def quantiles(r: Any) -> dict[str, tuple[Any, int]]:
    return {"values": (r.values, 1), "lower": (r.lower, 1), "upper": (r.upper, 1)}


STATISTICS = [
    Statistic("average", lambda x: estimate(ek.average(x))),
    Statistic("average, weights", lambda x: estimate(ek.average(x, weights=W))),
    Statistic("average, array", lambda x: estimate(ek.average(x)), (7,)),
    Statistic("average, array, weights", lambda x: estimate(ek.average(x, weights=W)), (7,)),
    Statistic("average, runs", lambda x: estimate(ek.average(ek.ReplicaSet.of(list(x.reshape(4, -1)))))),
    Statistic("average, runs of arrays", lambda x: estimate(ek.average(ek.ReplicaSet.of(list(x.reshape(4, -1, 3))))), (3,)),
    Statistic("difference", lambda x: estimate(ek.average(x[:120], equilibration=0) - ek.average(x[120:], equilibration=0))),
    Statistic("Moments", lambda x: moments(streamed(ek.Moments(), x)), (40,)),
    Statistic("Moments, narrow", lambda x: moments(streamed(ek.Moments(), np.tile(x, (10, 1)))), (2,)),
    Statistic("Moments, complex", lambda x: moments(streamed(ek.Moments(), x)), (3,), "c16"),
    Statistic("Moments, weights", lambda x: moments(streamed(ek.Moments(), x, W)), (3,)),
    Statistic("Moments, order 4", lambda x: moments(streamed(ek.Moments(4), x)), (3,)),
    Statistic("Moments, order 4, weights", lambda x: moments(streamed(ek.Moments(4), x, W)), (3,)),
    Statistic("Moments, tensors", lambda x: moments(streamed(ek.Moments(4), torch.as_tensor(x))), (3,)),
    Statistic("Covariance", lambda x: covariance(streamed(ek.Covariance(), x)), (4,)),
    Statistic("Covariance, complex", lambda x: covariance(streamed(ek.Covariance(), x)), (4,), "c16"),
    Statistic("Covariance, weights", lambda x: covariance(streamed(ek.Covariance(), x, W)), (4,)),
    Statistic("Exponential", lambda x: {"": (streamed(ek.Exponential(0.9), x), 1)}, (4,)),
    Statistic("Window", lambda x: {"": (streamed(ek.Window(30), x), 1)}, (4,)),
    Statistic("blocking", lambda x: blocks(of.blocking(x))),
    Statistic("blocking, weights", lambda x: blocks(of.blocking(x, W)), (3,)),
    Statistic("BlockSums", lambda x: blocks(streamed(ek.BlockSums(), x)), (3,)),
    Statistic("BlockSums, weights", lambda x: blocks(streamed(ek.BlockSums(), x, W)), (3,)),
    *(Statistic(f"correlation, {m}", lambda x, m=m: correlation(x, m))
      for m in ("geyer-convex", "geyer-monotone", "geyer-positive", "sokal", "chodera")),
    Statistic("autocorrelation", lambda x: {"": (of.autocorrelation(x, 40), 0)}, (2,)),
    Statistic("equilibration", lambda x: {"start": ((found := of.detect_equilibration(x)).start, 0), "g": (found.g, 0)}),
    Statistic("equilibration, mser", lambda x: {"start": (of.detect_equilibration(x, method="mser").start, 0)}),
    Statistic("rhat", lambda x: {"rank": (of.rhat(x.reshape(4, -1)), 0), "split": (of.rhat(x.reshape(4, -1), "split"), 0)}),
    Statistic("ess", lambda x: {k: (of.ess(x.reshape(4, -1), k), 0) for k in ("bulk", "tail", "mean")}),
    Statistic("mcse", lambda x: {"": (of.mcse(x.reshape(4, -1)), 1)}),
    Statistic("ergodicity", ergodic),
    Statistic("bootstrap", lambda x: resampled(of.block_bootstrap(x, n_resamples=50))),
    Statistic("bootstrap, weights", lambda x: resampled(of.block_bootstrap(x, weights=W, n_resamples=50, interval="basic"))),
    Statistic("jackknife", lambda x: resampled(of.jackknife(x))),
    Statistic("jackknife, ratio", lambda x: {"stderr": (of.jackknife(x, lambda m: m[0] / m[1]).stderr, 0)}, (2,)),
    Statistic("block length", lambda x: {"": (of.optimal_block_length(x), 0)}),
    Statistic("consensus", lambda x: {"mean": ((c := of.consensus(x[:6], abs(x[6:12]))).mean, 1), "stderr": (c.stderr, 1),
                                      "dark": (c.dark, 1), "q": (c.q, 0), "weights": (c.weights, 0)}),
    Statistic("quantiles", lambda x: quantiles(streamed(ek.Quantiles(), x)), (3,)),
    Statistic("quantile sketch", lambda x: quantiles(streamed(ek.QuantileSketch(size=20), x))),
    Statistic("distances", lambda x: {"": (of.pairwise(x[:9]), 1)}, (11,)),
    Statistic("distances, from a source", lambda x: {"": (of.pairwise(ek.ArraySource.of(x[:9])), 1)}, (11,)),
    Statistic("angles", lambda x: {"": (of.pairwise(x[:9], "cosine"), 0)}, (11,)),
    Statistic("angles of deviations", lambda x: {"": (of.pairwise(x[:9], "correlation"), 0)}, (11,)),
    *(Statistic(f"Moments, order {order}, weights of {size:g}", lambda x, order=order, size=size: moments(
        streamed(ek.Moments(order), x, W * size)), (3,)) for order in (2, 4) for size in (1e200, 1e-200)),
    *(Statistic(f"average, weights of {size:g}", lambda x, size=size: estimate(ek.average(x, weights=W * size)))
      for size in (1e200, 1e-200)),
    Statistic("rom.average", lambda x: flow(x, ("mean", "rms")), (4, 2)),
    Statistic("rom.average, weights", lambda x: flow(x, ("mean", "rms"), W), (4,)),
    *(Statistic(f"diverse, {m}", lambda x, m=m: {"which": (of.diverse_subset(x[:20], 4, method=m).indices, 0)}, (11,))
      for m in ("max-min", "volume")),
]
"""Add a row for each new statistic."""


def values(statistic: Statistic, seed: int = 3) -> np.ndarray:
    """An autoregressive series a little off zero, in each element."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, *statistic.item))
    if statistic.kind == "c16":
        x = x + 1j * rng.standard_normal((N, *statistic.item))
    for t in range(1, N):
        x[t] += 0.5 * x[t - 1]
    return x + 0.3


@cache
def unscaled(statistic: Statistic) -> list[tuple[str, np.ndarray, int]]:
    """The answers for values of ordinary size, once for all scales."""
    return list(answers(statistic, values(statistic)))


def answers(statistic: Statistic, x: np.ndarray) -> Iterator[tuple[str, np.ndarray, int]]:
    for name, (numbers, degree) in statistic.call(x).items():
        yield name, np.asarray(numbers), degree


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.name)
def test_a_power_of_two_goes_through_to_the_last_bit(statistic: Statistic) -> None:
    x = values(statistic)
    plain = unscaled(statistic)
    for power in POWERS:
        for (name, wanted, degree), (_, got, _) in zip(plain, answers(statistic, ldexp(x, power)), strict=True):
            wanted = ldexp(wanted, degree * power) if degree else wanted
            if name in ("exponent", "rate"):       # through logarithms, of numbers over another power of two
                np.testing.assert_allclose(got, wanted, rtol=1e-12)
                continue
            tiny = np.abs(wanted) < 1e-300         # subnormal: bits are lost in the answer itself
            np.testing.assert_array_equal(np.where(tiny, 0, got), np.where(tiny, 0, wanted), f"{name} * 2**{power}")


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.name)
def test_decimal_scales_change_nothing_but_the_scale(statistic: Statistic) -> None:
    x = values(statistic)
    plain = unscaled(statistic)
    for scale in (1e290, 1e-290):
        for (name, wanted, degree), (_, got, _) in zip(plain, answers(statistic, x * scale), strict=True):
            if degree < 2 and name != "bias" and statistic.name != "quantiles":    # nothing but rounding; bins of powers of two
                np.testing.assert_allclose(got / (scale if degree else 1.0), wanted.astype(wanted.dtype), rtol=1e-6,
                                           atol=1e-9 * np.nanmax(np.abs(wanted), initial=0.0), err_msg=f"{name} * {scale}")


@pytest.mark.parametrize("scale", [1e-170, 1e160, 1e-290])
def test_an_archive_keeps_its_tolerance_at_any_size(scale: float) -> None:
    t, x = np.linspace(0, 10, 40)[:, None], np.linspace(0, 1, 60)
    field = 1 + np.sin(6 * x + t) + 0.3 * np.cos(11 * x - 2 * t)
    archive = ek.rom.compress(field * scale, tolerance=0.01)
    off = np.asarray(ek.rom.decompress(archive)) / scale - field
    error = np.linalg.norm(off) / np.linalg.norm(field - field.mean(0))
    assert 0 < error <= 0.01
    assert archive.error == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize(("value", "bar", "wanted"), [(1.2e-170, 3e-172, ("1.200e-170", "0.030e-170")), (1e308, 1e307, None),
                                                (1e-310, 2e-312, None)])
def test_numbers_of_any_size_are_printed(value: float, bar: float, wanted: Any) -> None:
    got = rounded(value, bar)
    assert wanted is None or got == wanted
    assert float(got[0]) == pytest.approx(value, rel=0.1)


def test_elements_of_different_size_each_have_their_own_scale() -> None:
    x = np.random.default_rng(2).standard_normal((N, 6)) + 1.0
    factor = 2.0 ** np.array([-900, 0, 900, 300, -300, -700])
    for order in (2, 4):
        plain, got = streamed(ek.Moments(order), x), streamed(ek.Moments(order), x * factor)
        np.testing.assert_array_equal(got.std, plain.std * factor)
        assert got.notes
        assert not plain.notes
    np.testing.assert_array_equal(ek.average(x * factor).stderr, ek.average(x).stderr * factor)


def test_answers_beyond_float64_are_refused_or_kept_over_a_power_of_two() -> None:
    x = values(Statistic("", dict, (4, 2)))
    gram = ek.reduce(x[:9], ek.Gram(), cut="space")
    np.testing.assert_array_equal(ek.reduce(ldexp(x[:9], -450), ek.Gram(), cut="space"), ldexp(gram, -900))
    with pytest.raises(StatisticsError, match="beyond the range of float64"):
        ek.reduce(ldexp(x[:9], 960), ek.Gram(), cut="space")
    stress = ek.rom.average(x, "reynolds_stress")["reynolds_stress"]
    np.testing.assert_array_equal(ek.rom.average(ldexp(x, -450), "reynolds_stress")["reynolds_stress"].stderr,
                                  ldexp(stress.stderr, -900))
    with pytest.raises(StatisticsError, match=r"reynolds_stress.*beyond the range of float64"):
        ek.rom.average(ldexp(x, 960), "reynolds_stress")
    each = 2.0 ** np.array([-900, 900, 300, 0, -300, 700, -700, 500, 10])[:, None, None]
    np.testing.assert_array_equal(of.pairwise(ek.ArraySource.of(x[:9] * each), "cosine"), of.pairwise(x[:9], "cosine"))


@pytest.mark.parametrize("power", POWERS)
def test_lineages_displacements_dipoles_and_logits(power: int) -> None:
    from ensemblekit.averaging.populations import LineageTree, lineage_average
    from ensemblekit.md.displacement import slope_of, squared_displacements
    from ensemblekit.md.observables.dipole import _with_length
    from ensemblekit.neural import TemperatureScaler

    rng = np.random.default_rng(4)
    trait, scale = rng.standard_normal(24), 2.0**power
    parent = np.array([-1] * 8 + [i for i in range(8) for _ in (0, 1)])
    birth = np.where(parent < 0, 0.0, 1.0 + 0.125 * parent)
    division = np.where(parent < 0, 1.0 + 0.125 * np.arange(24), np.inf)
    plain = lineage_average(LineageTree(parent, birth, division), trait, 2.5, since=0.5)
    got = lineage_average(LineageTree(parent, birth * scale, division * scale), trait * scale, 2.5 * scale, since=0.5 * scale)
    assert (got.mean, got.stderr) == (plain.mean * scale, plain.stderr * scale)

    paths = rng.standard_normal((40, 12, 3)).cumsum(0)
    groups, half = np.arange(12) % 6, power // 2
    squares, _ = squared_displacements(paths, groups)
    np.testing.assert_array_equal(squared_displacements(ldexp(paths, half), groups)[0], ldexp(squares, 2 * half))
    lags, times = np.arange(1, 9), np.arange(40.0)
    one = slope_of(squares, np.full(6, 2.0), times, lags, 40, 3, independent=12.0)
    other = slope_of(ldexp(squares, power), np.full(6, 2.0), times, lags, 40, 3, independent=12.0)
    assert (other.slope, other.intercept) == (one.slope * scale, one.intercept * scale)
    assert (other.stderr, other.dof) == (one.stderr * scale, one.dof)
    assert (other.exponent, other.exponent_stderr) == pytest.approx((one.exponent, one.exponent_stderr), rel=1e-9)

    vectors = rng.standard_normal((5, 3))
    np.testing.assert_array_equal(_with_length(lambda m: m * scale, vectors), _with_length(lambda m: m, vectors) * scale)

    logits, labels = np.sign(rng.standard_normal((50, 4))) * 1.7e308, rng.integers(0, 4, 50)
    assert np.isfinite(TemperatureScaler("logits").fit_transform(logits, labels)).all()


@pytest.mark.parametrize("statistic", [s for s in STATISTICS if s.name in ("Moments", "average, array", "BlockSums, weights")],
                         ids=lambda s: s.name)
def test_any_series_over_any_power(statistic: Statistic) -> None:
    @settings(max_examples=3, derandomize=True, database=None)
    @given(power=st.integers(-940, 940), seed=st.integers(0, 2**20))
    def scaled_alike(power: int, seed: int) -> None:
        x = values(statistic, seed)
        for (name, wanted, degree), (_, got, _) in zip(answers(statistic, x), answers(statistic, ldexp(x, power)), strict=True):
            wanted = ldexp(wanted, degree * power) if degree else wanted
            tiny = np.abs(wanted) < 1e-300
            np.testing.assert_array_equal(np.where(tiny, 0, got), np.where(tiny, 0, wanted), f"{name} * 2**{power}")

    scaled_alike()
