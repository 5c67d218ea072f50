"""Averages of angles on the circle."""

import numpy as np
import pytest

from ensemblekit.averaging.circular import circular_average
from ensemblekit.averaging.pooling import near_by_periods
from ensemblekit.errors import InputError


def walk(n, phi, seed, middle, width):
    """Correlated angles (an Ornstein-Uhlenbeck process) about `middle`, wrapped into -180 to 180."""
    rng = np.random.default_rng(seed)
    x = np.empty(n)
    x[0] = rng.normal()
    for t, e in enumerate(rng.normal(size=n - 1) * np.sqrt(1 - phi**2), 1):
        x[t] = phi * x[t - 1] + e
    return (middle + width * x + 180) % 360 - 180


@pytest.mark.parametrize("middle", [0.0, 60.0, 179.0, -178.0])
def test_the_mean_knows_no_seam(middle):
    circular = circular_average(walk(4000, 0.8, 1, middle, 20))
    here = circular_average(walk(4000, 0.8, 1, 0.0, 20))
    assert (circular.mean.mean - middle + 180) % 360 - 180 == pytest.approx(here.mean.mean, abs=1e-9)
    assert circular.mean.stderr == pytest.approx(here.mean.stderr, rel=1e-9)
    assert circular.resultant.mean == pytest.approx(np.exp(-np.radians(20) ** 2 / 2), abs=0.01)    # a wrapped Gaussian
    assert circular.spread == pytest.approx(20, rel=0.1)
    assert -180 <= circular.mean.mean <= 180


def test_the_error_is_that_of_the_angles_where_they_spread_little():
    """For narrow angles the circle is a line: the error of a plain mean."""
    import ensemblekit as ek

    x = walk(4000, 0.9, 2, 10.0, 4)
    plain, estimate = ek.average(x), circular_average(x).mean
    assert estimate.mean == pytest.approx(plain.mean, abs=0.02)
    assert estimate.stderr == pytest.approx(plain.stderr, rel=0.02)


def test_intervals_cover_the_truth():
    """95 of 100 intervals of 300 correlated series hold the true direction; 3 standard errors of that share allowed."""
    hits = 0
    for seed in range(300):
        low, high = circular_average(walk(600, 0.7, seed, 175.0, 30)).mean.interval
        hits += any(low <= 175.0 + turn <= high for turn in (-360.0, 0.0))
    assert abs(hits / 300 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 300)


def test_angles_spread_evenly_have_no_direction():
    estimate = circular_average(np.random.default_rng(3).uniform(-180, 180, 500)).mean
    assert not estimate.converged
    assert "no mean direction" in estimate.verdict


def test_weights_and_what_is_discarded():
    x = walk(500, 0.5, 4, 170.0, 10)
    w = np.random.default_rng(5).uniform(0, 2, 500)
    circular = circular_average(x, weights=w, equilibration=100)
    vector = np.average(np.exp(1j * np.radians(x[100:])), weights=w[100:])
    assert circular.mean.mean == pytest.approx(np.degrees(np.angle(vector)), abs=1e-9)
    assert circular.mean.n_discarded == 100
    assert len(circular.mean.series) == 500


def test_fixed_angles_and_radians():
    fixed = circular_average(np.full(50, 33.0))
    assert fixed.mean.mean == pytest.approx(33.0)
    assert fixed.mean.stderr == 0
    assert fixed.spread == pytest.approx(0, abs=1e-5)
    radians = circular_average(np.radians(walk(100, 0.1, 6, 90, 3)), period=2 * np.pi)
    assert radians.mean.mean == pytest.approx(np.pi / 2, abs=0.02)
    with pytest.raises(InputError, match="period"):
        circular_average([1.0, 2.0, 3.0, 4.0], period=0)


def test_an_estimate_is_turned_with_its_interval_and_series():
    estimate = circular_average(walk(400, 0.3, 7, 178.0, 5)).mean
    moved = near_by_periods(estimate, 360.0, -170.0)
    assert moved.mean == pytest.approx(estimate.mean - 360)
    assert moved.high - moved.low == pytest.approx(estimate.high - estimate.low)
    assert abs(moved.series - moved.mean).max() < 180
