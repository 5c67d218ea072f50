"""Correlation times against closed forms, published digits and plain sums."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

import ensemblekit as ek
from ensemblekit.averaging.correlation import METHODS, ShortSeriesError, autocovariance, statistical_inefficiency
from ensemblekit.averaging.kernels_series import geyer_sums
from ensemblekit.errors import InputError, StatisticsError


def ar1(phi: float, n: int, seed: int = 0) -> np.ndarray:
    """Unit variance, g = (1 + phi) / (1 - phi)."""
    noise = np.random.default_rng(seed).standard_normal(n + 2000)
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise)[2000:]


def plain_autocovariance(x: np.ndarray) -> np.ndarray:
    y = x - x.mean()
    return np.array([y[:len(y) - k] @ y[k:] for k in range(len(y))]) / len(y)


@pytest.mark.parametrize("n", [1, 2, 5, 300])
def test_autocovariance_is_the_plain_sum(n: int) -> None:
    x = ar1(0.8, n) + 1e3
    np.testing.assert_allclose(autocovariance(x), plain_autocovariance(x), atol=1e-9)


def test_few_lags_of_a_long_series_are_those_of_all() -> None:
    x = ar1(0.9, 200_003)
    np.testing.assert_allclose(autocovariance(x, 1024), autocovariance(x)[:1024], atol=1e-13)


def test_autocovariance_of_every_element() -> None:
    x = np.stack([ar1(0.5, 500, k) for k in range(6)], axis=1).reshape(500, 2, 3)
    np.testing.assert_allclose(autocovariance(x, 20)[:, 1, 2], autocovariance(x[:, 1, 2], 20), atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_closed_form_of_an_autoregression(method, phi: float) -> None:
    n, g = 400_000, (1 + phi) / (1 - phi)
    inefficiency = statistical_inefficiency(ar1(phi, n, 3), method, dt=0.5, unit="ps")
    # statistical error of g: about g sqrt(2 (2M + 1) / n) with M the window; 5 sigma
    assert inefficiency.g == pytest.approx(g, abs=5 * g * np.sqrt(2 * (2 * inefficiency.window + 1) / n))
    assert inefficiency.tau == pytest.approx(inefficiency.g / 2 * 0.5)
    assert inefficiency.n_eff == pytest.approx(n / inefficiency.g)
    assert inefficiency.stderr == pytest.approx(np.sqrt(inefficiency.g * inefficiency.variance / n))


def test_snapshots_repeated_sixteen_times_are_worth_a_sixteenth() -> None:
    inefficiency = statistical_inefficiency(np.repeat(np.random.default_rng(0).standard_normal(8000), 16), "geyer-monotone")
    assert inefficiency.g == pytest.approx(16, rel=0.12)


def test_anticorrelated_is_flagged() -> None:
    noise = np.random.default_rng(0).standard_normal(100_001)
    x = noise[1:] - 0.5 * noise[:-1]          # g = 0.25 / 1.25
    inefficiency = statistical_inefficiency(x, "geyer-positive")
    assert inefficiency.anticorrelated
    assert inefficiency.g == pytest.approx(0.2, abs=0.05)
    assert statistical_inefficiency(x, "chodera").g == 1.0


def test_geyer_sums_of_a_known_sequence() -> None:
    gamma = np.array([3.0, 1.0, 0.5, 0.5, 1.5, 0.5, 0.4, 0.1, -0.2, -0.3, 0.0, 0.0])     # Γ: 4, 1, 2, 0.5, -0.5
    positive, monotone, convex, pairs, ended = geyer_sums(gamma)
    assert (pairs, ended) == (4, True)
    assert positive == pytest.approx(2 * 7.5 - 3)
    assert monotone == pytest.approx(2 * 6.5 - 3)
    # minorant of 4, 1, 1, .5, 0 at 0..4: corners 0, 1, 4, and on the line 2/3, 1/3 between
    assert convex == pytest.approx(2 * (4 + 1 + 2 / 3 + 1 / 3) - 3)


def test_windows_of_sokal_and_chodera_are_their_definitions() -> None:
    x = ar1(0.8, 30_000, 1)
    rho = plain_autocovariance(x[:4000])
    rho = rho / rho[0]
    g, window = 1.0, 0
    while window < 5 * g:
        window += 1
        g += 2 * rho[window]
    assert statistical_inefficiency(x[:4000], "sokal").g == pytest.approx(g, rel=1e-10)
    g = 1.0
    for k in range(1, 3999):
        if rho[k] <= 0 and k > 3:
            break
        g += 2 * rho[k]
    assert statistical_inefficiency(x[:4000], "chodera").g == pytest.approx(g, rel=1e-10)


def test_sokal_refuses_a_short_series_and_says_tau() -> None:
    with pytest.raises(ShortSeriesError, match="Sample longer") as caught:
        statistical_inefficiency(ar1(0.99, 1000), "sokal")
    assert caught.value.n < 100 * caught.value.tau
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.tau, again.n) == (caught.value.tau, caught.value.n)
    assert ek.statistics.integrated_time(ar1(0.99, 1000), tolerance=0) == pytest.approx(caught.value.tau)


@pytest.mark.parametrize(("x", "error", "says"), [
    (np.ones(100), StatisticsError, "constant"),
    (np.full(100, 1e9) + np.arange(100) % 2 * 1e-8, StatisticsError, "constant"),
    ([1.0, 2.0, 3.0], StatisticsError, "at least 4"),
    ([], StatisticsError, "empty"),
    ([1.0, np.nan, 2.0, 3.0, 4.0], InputError, "snapshot 1"),
    ([1.0, np.inf, 2.0, 3.0, 4.0], InputError, "not finite"),
    (np.ones((5, 2)), InputError, "shape"),
    (np.ones(5) * 1j, InputError, "complex"),
    (["a"] * 5, InputError, "real numbers"),
])
def test_what_cannot_be_answered(x, error, says: str) -> None:
    with pytest.raises(error, match=says):
        statistical_inefficiency(np.asarray(x))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="geyer-convex"):
        statistical_inefficiency(np.arange(10.0), "guess")      # type: ignore[arg-type]


def test_whole_numbers_are_numbers() -> None:
    assert statistical_inefficiency(np.random.default_rng(0).integers(0, 9, 1000)).g == pytest.approx(1, abs=0.3)


@pytest.mark.skipif("ENSEMBLEKIT_DATA" not in os.environ, reason="ENSEMBLEKIT_DATA is not set")
def test_published_digits() -> None:
    """Geyer's values are R's (mcmc::initseq); g and tau are pymbar's and emcee's, as measured with them."""
    path = Path(os.environ["ENSEMBLEKIT_DATA"]) / "stats_equilibration" / "example_timeseries.npy"
    x = np.load(path).mean(axis=0)
    for method, want in (("geyer-positive", 27304.776049686046), ("geyer-monotone", 24216.32288181667),
                         ("geyer-convex", 21898.6178149005)):
        inefficiency = statistical_inefficiency(x, method)         # type: ignore[arg-type]
        assert inefficiency.g * inefficiency.variance == pytest.approx(want, rel=1e-12)
    assert statistical_inefficiency(x, "chodera").g == pytest.approx(84.357, abs=1e-3)
    with pytest.raises(ShortSeriesError) as caught:
        statistical_inefficiency(x, "sokal")
    assert 2 * caught.value.tau == pytest.approx(85.6887, abs=1e-4)
