"""Variances about the mean of a run: what the mean takes from them is put back, and their intervals cover."""

from __future__ import annotations

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.average import estimate_of
from ensemblekit.averaging.function_of_mean import SecondMoment, function_of_mean
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.observed import Observed
from ensemblekit.averaging.second import interval_above, kept_together, selection, share_kept, stretches
from ensemblekit.source import ArraySource


def ar1(n, g, shape, seed):
    phi = (g - 1) / (g + 1)
    x = np.random.default_rng(seed).normal(size=(n, *shape))
    x[1:] *= np.sqrt(1 - phi**2)
    for t in range(1, n):
        x[t] += phi * x[t - 1]
    return x


def products(block):
    x = block.fields["values"]
    return np.stack([x, x * x], axis=-1)


def variance(mean, kept):
    return (mean[:, 1] - mean[:, 0] ** 2) / kept


@pytest.mark.parametrize("independent", [25, 80])
def test_the_variance_of_a_short_run_is_covered(independent):
    """1200 series of 800 snapshots; two standard deviations of a count of 1200 are 1.3 %."""
    x = ar1(800, 800 / independent, (1200,), 7)
    read = ek.partials(ArraySource.of(x), {"a": (products, Observed())})[0]
    base = estimate_of(read, "a", shown=False, equilibration=None)
    estimate = function_of_mean(read, "a", SecondMoment(variance, np.s_[:, 0]), base)
    plain = function_of_mean(read, "a", SecondMoment(variance, np.s_[:, 0], corrected=False), base)
    assert plain.mean.mean() < 1 - 0.5 / independent
    assert abs(estimate.mean.mean() - 1) < 0.6 / independent
    assert 0.93 < ((estimate.low < 1) & (estimate.high > 1)).mean() < 0.98
    assert (estimate.low > 0).all()
    few = int(estimate.verdict.split(" of ")[0]) if estimate.verdict else 0
    assert (few > 200) if independent == 25 else (few < 10)
    assert estimate.converged == (not few)


@pytest.mark.parametrize("independent", [25, 80])
def test_fluctuations_of_atoms_are_covered(independent):
    from ensemblekit.md.observables.base import Reading
    from ensemblekit.md.observables.rmsf import SharesKept, fluctuation

    x = ar1(800, 800 / independent, (600, 3), 8) * [1, 2, 3]
    reading = Reading(ek.partials(ArraySource.of(x), {"moments": ("values", Moments())})[0], None, 0.95)
    rmsf, bfactor = (fluctuation(kind, None, True, SharesKept(1), reading) for kind in ("rmsf", "bfactor"))
    for estimate, truth in ((rmsf, np.sqrt(14)), (bfactor, 8 * np.pi**2 / 3 * 14)):
        assert 0.93 < ((estimate.low < truth) & (estimate.high > truth)).mean() < 0.985
        assert estimate.mean.mean() == pytest.approx(truth, rel=1 / independent)
    plain = fluctuation("bfactor", None, False, SharesKept(1), reading)
    assert plain.mean.mean() < bfactor.mean.mean() * (1 - 0.5 / independent)
    of_residues = fluctuation("rmsf", (np.arange(600) // 60, np.ones(600)), True, SharesKept(1), reading)
    assert of_residues.mean.shape == (10,)
    assert np.isfinite(of_residues.high).all()


def test_too_few_stretches_are_refused():
    x = ar1(800, 100, (50,), 9)
    read = ek.partials(ArraySource.of(x), {"a": (products, Observed())})[0]
    base = estimate_of(read, "a", shown=False, equilibration=None)
    estimate = function_of_mean(read, "a", SecondMoment(variance, np.s_[:, 0]), base)
    assert not estimate.converged
    assert "fewer than 20 independent" in estimate.verdict


def test_shares():
    np.testing.assert_allclose(share_kept([19.0, 0.1, 1e9, np.nan], 1000), [0.95, 0.5, 0.999, 1.0])
    np.testing.assert_allclose(stretches([0.95, 1.0]), [20, np.nan])
    slow = kept_together(np.array([0.9, 0.999, 0.999]), np.array([100.0, 1, 1]))      # one slow component is most of it
    assert stretches(slow) == pytest.approx(10.2, abs=0.1)
    low, high = interval_above([1.0, -np.inf], [1.5, 0.5], [0.1, 0.4], 30.0, 0.95)
    assert 1 < low[0] < 1.5 < high[0]
    assert high[0] - 1.5 > 1.5 - low[0]
    assert low[1] < 0 < high[1]
    assert high[1] - 0.5 == pytest.approx(0.5 - low[1])


def test_intervals_near_the_limit_make_up_for_their_selection():
    np.testing.assert_allclose(selection([20.0, 3.0, 1e6, np.nan, np.inf]), [1.15, 1.15, 1, 1, 1])
    plain, near = (interval_above(0.0, 1.5, 0.1, 30.0, 0.95, independent=m) for m in (np.inf, 20.0))
    assert near[0] < plain[0] < plain[1] < near[1]
    assert near[1] - near[0] == pytest.approx(1.15 * (plain[1] - plain[0]), rel=0.02)
