import os
from pathlib import Path

import numpy as np
import pytest

from ensemblekit.averaging.diagnostics import ess, mcse, rhat
from ensemblekit.errors import InputError, StatisticsError


def ar1(rng, phi, m, n):
    from scipy.signal import lfilter

    start = rng.normal(size=(m, 1)) / np.sqrt(1 - phi**2)
    return lfilter([1], [1, -phi], rng.normal(size=(m, n)), axis=1, zi=phi * start)[0]


@pytest.mark.skipif("ENSEMBLEKIT_DATA" not in os.environ, reason="ENSEMBLEKIT_DATA is not set")
def test_published_values_of_arviz_stats():
    runs = np.load(Path(os.environ["ENSEMBLEKIT_DATA"]) / "stats_equilibration" / "example_timeseries.npy")
    assert rhat(runs) == pytest.approx(1.0174684, abs=5e-8)
    assert ess(runs, "bulk") == pytest.approx(242.309, abs=5e-4)
    assert ess(runs, "mean") == pytest.approx(289.486, abs=5e-4)
    assert ess(runs, "tail") == pytest.approx(619.105, abs=5e-4)
    assert mcse(runs) == pytest.approx(2.155981, abs=5e-7)


def plain_ess(x):
    """Vehtari et al. 2021, equations 3.1 and 10 to 13, written out lag by lag."""
    n = x.shape[1]
    centred = x - x.mean(1, keepdims=True)
    gamma = np.array([np.mean([c[: n - t] @ c[t:] / n for c in centred]) for t in range(n)])
    within = gamma[0] * n / (n - 1)
    total = within * (n - 1) / n + x.mean(1).var(ddof=1)
    rho = np.concatenate([[1.0], 1 - (within - gamma[1:]) / total])
    tau, previous, t = -1.0, np.inf, 0
    while t < n - 4 and rho[t] + rho[t + 1] > 0:
        previous = min(previous, rho[t] + rho[t + 1])
        tau, t = tau + 2 * previous, t + 2
    return x.size / (tau + max(rho[t], 0))


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.7])
def test_ess_is_the_formula(phi):
    x = ar1(np.random.default_rng(1), phi, 4, 500)
    halves = np.concatenate([x[:, :250], x[:, 250:]])
    assert ess(x, "mean") == pytest.approx(plain_ess(halves), rel=1e-10)


@pytest.mark.parametrize("n", [100, 102])
def test_runs_that_disagree_are_summed_up_to_the_last_lags(n):
    """The autocorrelation across runs far apart never falls below zero; the halves have an even and an odd length."""
    x = np.random.default_rng(8).normal(size=(3, n)) + np.array([[0.0], [5], [10]])
    halves = np.concatenate([x[:, :n // 2], x[:, -(n // 2):]])
    assert ess(x, "mean") == pytest.approx(plain_ess(halves), rel=1e-10)


@pytest.mark.parametrize("phi", [-0.4, 0.5, 0.9])
def test_ess_of_ar1_is_near_its_closed_form(phi):
    x = ar1(np.random.default_rng(2), phi, 4, 20_000)
    assert ess(x, "mean") == pytest.approx(x.size * (1 - phi) / (1 + phi), rel=0.12)
    assert ess(x, "bulk") == pytest.approx(x.size * (1 - phi) / (1 + phi), rel=0.12)


def test_ranks_see_what_values_cannot():
    rng = np.random.default_rng(5)
    cauchy = rng.standard_cauchy((4, 1000))
    assert rhat(cauchy) < 1.02
    width = rng.normal(size=(4, 1000)) * np.array([[1], [1], [1], [3]])
    assert rhat(width) > 1.05 > rhat(width, "split")        # only the folded ranks see a run that is wider
    moved = rng.normal(size=(4, 1000)) + np.array([[0], [0], [0], [1]])
    assert rhat(moved) > 1.05
    assert rhat(moved, "split") > 1.05


def test_any_monotone_map_leaves_the_ranks_alone():
    x = ar1(np.random.default_rng(6), 0.6, 3, 400)
    assert ess(np.exp(x)) == pytest.approx(ess(x), rel=1e-12)


def test_odd_lengths_leave_out_the_middle():
    x = ar1(np.random.default_rng(7), 0.6, 3, 401)
    assert ess(x, "mean") == pytest.approx(ess(np.delete(x, 200, axis=1), "mean"), rel=1e-12)


def test_constant_runs():
    assert ess(np.ones((2, 10))) == 20
    assert np.isnan(rhat(np.ones((2, 10))))
    assert np.isinf(rhat(np.repeat([[0.0], [1.0]], 10, axis=1), "split"))


@pytest.mark.parametrize(("runs", "message"), [
    (np.ones(5), "shape"), (np.ones((2, 2, 9)), "shape"), (np.ones((2, 9), complex), "real"),
    ([[1, 2, np.nan, 4], [1, 2, 3, 4]], "snapshot 2 of run 0 is nan")])
def test_bad_runs_are_refused(runs, message):
    with pytest.raises(InputError, match=message):
        rhat(runs)


def test_too_short_and_unknown():
    with pytest.raises(StatisticsError, match="at least 4"):
        ess(np.ones((2, 3)))
    with pytest.raises(InputError, match="kind"):
        ess(np.ones((2, 9)), "sd")
    with pytest.raises(InputError, match="method"):
        rhat(np.ones((2, 9)), "folded")
