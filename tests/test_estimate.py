"""What an Estimate prints, gives away and does."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import chi2

from ensemblekit.averaging.estimate import Estimate, bounded_interval, quantile, rounded, spread_interval, student_interval
from ensemblekit.errors import InputError


def estimate(mean=18.2655, stderr=1.24, dof=4.0, **more) -> Estimate:
    facts = {"n": 98, "n_eff": 2.7, "statistical_inefficiency": 36.0, "correlation_time": 18.0, "unit": "Å",
             "estimators": {"cosine": stderr, "blocking": 2 * stderr}}
    return Estimate(mean=mean, stderr=stderr, interval=student_interval(mean, stderr, dof, 0.95), confidence=0.95,
                    dof=dof, **(facts | more))


@pytest.mark.parametrize(("value", "bar", "want"), [
    (18.2655, 3.153, ("18.3", "3.2")), (18.2655, 0.0996, ("18.27", "0.10")), (1234.5, 321.0, ("1230", "320")),
    (-0.00123, 0.00045, ("-0.00123", "0.00045")), (5.0, 0.0, ("5", "0")), (3.2e9, 4e6, ("3.2000e+09", "0.0040e+09")),
    (1.5e-9, 2e-10, ("1.50e-09", "0.20e-09")), (0.0, 9.96, ("0", "10")), (math.nan, math.nan, ("nan", "nan")),
])
def test_only_significant_digits(value: float, bar: float, want: tuple[str, str]) -> None:
    assert rounded(value, bar) == want


def test_the_line_it_prints() -> None:
    e = estimate(converged=False, verdict="only 2.7 independent snapshots", n_discarded=4)
    assert str(e) == ("18.3 ± 3.4 Å (95 % CI; n_eff 2.7 of 98; g 36; 4 discarded; "
                      "NOT CONVERGED: only 2.7 independent snapshots)")
    assert repr(e) == str(e)
    many = estimate(mean=np.array([[1.0, 2.0]]), stderr=np.array([[0.1, np.nan]]), dof=np.array([[9.0, 9.0]]),
                    n_eff=np.array([[20.0, np.nan]]), statistical_inefficiency=np.array([[5.0, np.nan]]))
    assert "shape (1, 2) in Å: 1 to 2" in str(many)
    assert "<td>blocking</td>" in e._repr_html_()
    assert "&lt;b&gt;" in estimate(unit="<b>")._repr_html_()


def test_the_table_of_estimators_says_how_they_disagree() -> None:
    text = estimate().summary()
    assert "blocking   2.48" in text
    assert text.endswith("disagreement: largest over smallest 2.00, more than 1.5")


def test_students_t() -> None:
    assert quantile(0.95, 10.0) == pytest.approx(2.228138852)      # tables
    assert quantile(0.95, np.inf) == pytest.approx(1.959963985)
    assert quantile(0.99, 2.0) == pytest.approx(9.924843201)


def test_a_difference_of_independent_estimates() -> None:
    a, b = estimate(10.0, 0.3, 9.0), estimate(8.0, 0.4, 16.0)
    d = a - b
    assert (d.mean, d.stderr) == (pytest.approx(2.0), pytest.approx(0.5))
    assert d.dof == pytest.approx(0.5**4 / (0.3**4 / 9 + 0.4**4 / 16))
    assert d.high - d.mean == pytest.approx(float(quantile(0.95, d.dof)) * 0.5)
    assert not (a - estimate(converged=False, verdict="short")).converged
    arrays = estimate(np.ones(3), np.ones(3), np.full(3, 9.0)) - estimate(np.zeros(3), np.ones(3), np.full(3, 9.0))
    np.testing.assert_allclose(arrays.stderr, np.sqrt(2))
    with pytest.raises(InputError, match="one unit"):
        a - estimate(unit="nm")
    with pytest.raises(InputError, match="one shape"):
        a - estimate(np.ones(3), np.ones(3), np.ones(3))
    with pytest.raises(TypeError):
        a - "1.0"
    assert (a - 1.0).mean == a.mean - 1


def test_to_dict_is_json() -> None:
    e = estimate(np.array([1.0, np.nan]), np.array([0.1, np.nan]), np.array([3.0, 3.0]),
                 coords={"x": (np.arange(2), "nm")})
    back = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    assert back["mean"] == [1.0, None]
    assert back["coords"]["x"] == {"values": [0.0, 1.0], "unit": "nm"}


def test_it_is_frozen() -> None:
    with pytest.raises(AttributeError):
        estimate().mean = 1.0       # type: ignore[misc]


@pytest.mark.parametrize("bounds", [(0.0, None), (0.0, 1.0), (1.0, None)])
def test_an_interval_stays_within_its_bounds(bounds: tuple[float, float | None]) -> None:
    mean = np.array([0.0, 0.02, 0.4, 0.98, 1.0]) + bounds[0]
    half = np.array([0.1, 0.05, 0.001, 0.05, 0.1])
    low, high = bounded_interval(mean, (mean - half, mean + half), bounds)
    assert (low >= bounds[0]).all()
    assert (low <= mean).all()
    assert (high >= mean).all()
    assert bounds[1] is None or (high <= bounds[1]).all()
    assert high[1] - mean[1] > half[1] > mean[1] - low[1]                   # longer on the side away from zero
    np.testing.assert_allclose((low[2], high[2]), (mean[2] - half[2], mean[2] + half[2]), atol=1e-6)
    nothing = bounded_interval(1.0, (math.nan, math.nan), bounds)
    assert math.isnan(nothing[0])
    assert math.isnan(nothing[1])


def test_bounded_intervals_of_variances_hold_the_truth_more_often() -> None:
    """Variances of 20 degrees of freedom scatter by their own size: the root scale knows that."""
    variances = np.random.default_rng(5).gamma(10.0, 0.1, 20_000)
    plain = student_interval(variances, variances / np.sqrt(10.0), np.inf, 0.95)
    low, high = bounded_interval(variances, plain, (0.0, None))
    held = [float(np.mean((a <= 1) & (b >= 1))) for a, b in (plain, (low, high))]
    assert held[1] > held[0] + 0.015
    assert held[1] > 0.92


@pytest.mark.parametrize("dof", [10, 38, 400])
def test_the_interval_of_a_variance_is_that_of_chi_squared(dof: int) -> None:
    """Exact where the error is known: dof / chi-squared quantiles, and their roots for a standard deviation."""
    want = dof / chi2.ppf([0.975, 0.025], dof)
    np.testing.assert_allclose(spread_interval(1.0, math.sqrt(2 / dof), math.inf, 0.95), want, rtol=0.01)
    np.testing.assert_allclose(spread_interval(1.0, math.sqrt(0.5 / dof), math.inf, 0.95, 2), np.sqrt(want), rtol=0.01)


def test_the_interval_of_a_variance_holds_it_whatever_its_error() -> None:
    error = np.geomspace(1e-3, 1e3, 50)
    low, high = spread_interval(np.ones(50), error, 5.0, 0.95)
    assert ((low > 0) & (low < 1) & (high > 1)).all()
    assert (np.diff(low) <= 0).all()
    assert (np.diff(high) >= 0).all()
    assert spread_interval(0.0, 0.5, math.inf, 0.95)[0] == pytest.approx(-0.98, abs=0.01)
