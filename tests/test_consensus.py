import numpy as np
import pytest

from ensemblekit.averaging.consensus import consensus
from ensemblekit.errors import InputError

# BCG vaccine trials (Colditz et al. 1994): cases and others among treated, cases and others among controls.
BCG = np.array([[4, 119, 11, 128], [6, 300, 29, 274], [3, 228, 11, 209], [62, 13536, 248, 12619],
                [33, 5036, 47, 5761], [180, 1361, 372, 1079], [8, 2537, 10, 619], [505, 87886, 499, 87892],
                [29, 7470, 45, 7232], [17, 1699, 65, 1600], [186, 50448, 141, 27197], [5, 2493, 3, 2338],
                [27, 16886, 29, 17825]])


def bcg():
    a, b, c, d = BCG.T
    return np.log(a / (a + b) / (c / (c + d))), np.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))


@pytest.mark.parametrize(("method", "variance", "mean"), [
    ("reml", 0.3132, -0.7145), ("ml", 0.2800, -0.7112), ("dl", 0.3088, -0.7141)])
def test_published_between_trial_variance(method, variance, mean):
    """The values the R package metafor prints for these data (its documentation of rma)."""
    result = consensus(*bcg(), method=method)
    assert result.dark**2 == pytest.approx(variance, abs=5e-5)
    assert result.mean == pytest.approx(mean, abs=5e-5)
    assert result.q == pytest.approx(152.2330, abs=5e-5)


def test_published_knapp_hartung_interval():
    result = consensus(*bcg())
    assert result.stderr == pytest.approx(0.1808, abs=5e-5)
    assert result.interval == pytest.approx((-1.1084, -0.3206), abs=5e-5)


def test_results_that_agree_have_no_dark_variance():
    for method in ("reml", "ml", "dl"):
        result = consensus([1.0, 1.1, 0.95], [0.5, 0.4, 0.6], method=method)
        assert result.dark == pytest.approx(0, abs=1e-6)
        assert result.stderr == pytest.approx(1 / np.sqrt(np.sum(1 / np.array([0.5, 0.4, 0.6]) ** 2)))


def test_the_maximum_of_the_restricted_likelihood_for_equal_errors():
    """Equal σ: REML is the plain sample variance less σ², ML the one divided by k."""
    t, s = np.array([1.0, 2.0, 4.0, 7.0]), np.full(4, 0.5)
    assert consensus(t, s, method="reml").dark ** 2 == pytest.approx(t.var(ddof=1) - 0.25, rel=1e-6)
    assert consensus(t, s, method="ml").dark ** 2 == pytest.approx(t.var() - 0.25, rel=1e-6)
    assert consensus(t, s, method="dl").dark ** 2 == pytest.approx(t.var(ddof=1) - 0.25, rel=1e-12)


def test_coverage_with_dark_variance():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        s = rng.uniform(0.1, 0.5, 6)
        low, high = consensus(rng.normal(0, np.hypot(s, 0.4)), s).interval
        hits += low < 0 < high
    assert 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / 300) < hits / 300


@pytest.mark.parametrize(("means", "errors", "message"), [
    ([1.0], [0.1], "k ≥ 2"), ([1, 2], [0.1], "k ≥ 2"), ([1, np.nan], [1, 1], "finite"), ([1, 2], [1, 0], "above zero")])
def test_bad_results_are_refused(means, errors, message):
    with pytest.raises(InputError, match=message):
        consensus(means, errors)


def test_unknown_method_and_confidence():
    with pytest.raises(InputError, match="method"):
        consensus([1, 2], [1, 1], method="mp")
    with pytest.raises(InputError, match="confidence"):
        consensus([1, 2], [1, 1], confidence=95)
