import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.special import ndtr

import ensemblekit as ek
from ensemblekit.averaging.distribution import histogram_estimate
from ensemblekit.errors import EnsemblekitError, InputError


def ar1(rng, phi, n):
    return lfilter([1], [1, -phi], np.sqrt(1 - phi**2) * rng.normal(size=n), zi=[phi * rng.normal()])[0]


def test_bars_are_those_of_numpy():
    x = np.random.default_rng(1).normal(size=(300, 4))
    edges = np.array([-2, -1, 0, 0.5, 3.0])
    counts = np.histogram(x, edges)[0]
    share = histogram_estimate(x, edges, density=False, equilibration=None)
    np.testing.assert_allclose(share.mean, counts / x.size, rtol=1e-12)
    dense = histogram_estimate(ek.ArraySource.of(x, unit="nm"), edges, equilibration=None)
    np.testing.assert_allclose(dense.mean, counts / x.size / np.diff(edges), rtol=1e-12)
    np.testing.assert_array_equal(dense.coords["value"][0], [-1.5, -0.5, 0.25, 1.75])
    assert (dense.unit, dense.coords["value"][1]) == ("1/nm", "nm")


def test_both_ends_of_the_last_bin_belong_to_it():
    x = np.array([0.0, 1, 1, 2, 2, 2, 3, -1])
    np.testing.assert_allclose(histogram_estimate(x, [0, 1, 2], density=False).mean, [1 / 8, 5 / 8])


def test_bars_cover_the_truth_although_snapshots_are_correlated():
    """Share of a standard normal AR(1) in each bin; 95 % bars over 60 runs of 4 bins."""
    rng, edges = np.random.default_rng(2), np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    truth, hits, naive = np.diff(ndtr(edges)), 0, 0
    for _ in range(60):
        histogram = histogram_estimate(ar1(rng, 0.9, 4000), edges, density=False, equilibration=None)
        hits += ((histogram.low <= truth) & (truth <= histogram.high)).sum()
        naive += (abs(histogram.mean - truth) < 1.96 * np.sqrt(truth * (1 - truth) / 4000)).sum()
    assert hits >= 210          # 95 % of 240 is 228; bins of one run are correlated, so count them as 60
    assert naive < 180


def test_weights_and_maps_enter():
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(200, 2)), rng.uniform(size=200)
    histogram = histogram_estimate(ek.ArraySource.of(x, weights=w), [-1, 0, 1], map=lambda b: b.only[:, 0] * 2,
                                   density=False, equilibration=None)
    inside = [(2 * x[:, 0] >= a) & (2 * x[:, 0] < a + 1) for a in (-1, 0)]
    np.testing.assert_allclose(histogram.mean, [np.average(i, weights=w) for i in inside], rtol=1e-12)


@pytest.mark.parametrize("edges", [[1.0], [0, 0, 1], [1, 0], [0, np.nan], [[0, 1]]])
def test_bad_edges_are_refused(edges):
    with pytest.raises(InputError, match="edges"):
        histogram_estimate(np.ones(9), edges)


def test_values_without_an_order_are_refused():
    with pytest.raises(EnsemblekitError, match="snapshot 1 holds NaN"):
        histogram_estimate(np.array([0, np.nan, 1, 1, 1]), [0, 1])
    with pytest.raises(EnsemblekitError, match="complex"):
        histogram_estimate(1j * np.ones(9), [0, 1])
