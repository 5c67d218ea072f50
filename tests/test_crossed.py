"""The mean of runs by items: its error covers other runs and other items, whatever their share in the scatter."""

import numpy as np
import pytest

from ensemblekit.averaging.crossed import crossed, crossed_difference, crossed_ratio
from ensemblekit.errors import InputError, StatisticsError

CASES = [(5, 300, 0.1, 1.0, 0.5), (5, 300, 0.3, 1.0, 0.5), (3, 1000, 0.05, 1.0, 0.5), (5, 300, 0.0, 1.0, 0.5)]


def table(rng, runs, items, sd_runs, sd_items, sd_rest):
    return (sd_runs * rng.standard_normal((runs, 1)) + sd_items * rng.standard_normal((1, items))
            + sd_rest * rng.standard_normal((runs, items)))


def covered(case, seeds):
    intervals = [crossed(table(np.random.default_rng(seed), *case)).interval for seed in range(seeds)]
    return np.mean([low <= 0 <= high for low, high in intervals])


@pytest.mark.parametrize("case", CASES)
def test_the_interval_covers_the_mean_of_other_runs_and_items(case):
    assert 0.90 <= covered(case, 300) <= 0.985         # 3.5 binomial deviations of 300 from 95 %


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_interval_covers_over_two_thousand_tables(case):
    assert 0.93 <= covered(case, 2000) <= 0.97


def test_the_error_is_that_of_the_two_way_table():
    x = table(np.random.default_rng(1), 4, 50, 0.3, 1, 0.5)
    r, n = x.shape
    by_run, by_item, mean = x.mean(1), x.mean(0), x.mean()
    ms_runs, ms_items = n * by_run.var(ddof=1), r * by_item.var(ddof=1)
    ms_rest = sum((x[i, j] - by_run[i] - by_item[j] + mean) ** 2 for i in range(r) for j in range(n)) / ((r - 1) * (n - 1))
    anova = crossed(x)
    assert anova.mean == pytest.approx(mean)
    assert anova.stderr**2 == pytest.approx((ms_runs + ms_items - ms_rest) / (r * n))
    assert anova.stderr_items**2 + anova.stderr_runs**2 == pytest.approx(anova.stderr**2)
    assert anova.stderr_runs**2 == pytest.approx((ms_runs - ms_rest) / (r * n))
    assert (anova.runs, anova.items, anova.rest) == pytest.approx(((ms_runs - ms_rest) / n, (ms_items - ms_rest) / r, ms_rest))
    assert "4 runs, 50 items" in str(anova)
    assert anova.to_dict()["n_runs"] == 4


def test_where_the_rest_is_larger_than_both_the_larger_of_them_counts():
    x = np.array([[1.0, -1.0], [-1.0, 1.0]]) + np.array([[0.01], [0.0]])
    result = crossed(x)
    assert result.stderr**2 == pytest.approx(2 * np.var([0.01, 0.0], ddof=1) / 4)
    assert result.dof == 1


def test_two_runs_are_said_to_be_few():
    x = table(np.random.default_rng(1), 2, 50, 0.3, 1, 0.5)
    assert "two runs" in str(crossed(x))
    assert not crossed(table(np.random.default_rng(1), 3, 50, 0.3, 1, 0.5)).notes


@pytest.mark.parametrize("runs", [(5, 5), (3, 4), (5, 1)])
def test_a_difference_pairs_the_items_and_not_the_runs(runs):
    hit = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        items = 3 * rng.standard_normal(200)           # large, and gone from the difference
        a, b = (0.1 * rng.standard_normal((r, 1)) * (r > 1) + items + 0.5 * rng.standard_normal((r, 200)) for r in runs)
        difference = crossed_difference(a, b)
        hit += difference.interval[0] <= 0 <= difference.interval[1]
        assert difference.stderr < 0.2                      # unpaired: 0.3
    assert 0.90 <= hit / 300 <= 0.99
    assert ("one run of the second" in str(difference)) == (runs[1] == 1)


def test_clusters_of_one_size_are_items():
    x = table(np.random.default_rng(1), 4, 60, 0.3, 1, 0.5)
    plain = crossed(x)
    sized = crossed_ratio(3 * x, np.full(60, 3.0), 59.0)
    assert (sized.mean, sized.stderr, sized.dof) == pytest.approx((plain.mean, plain.stderr, plain.dof))


@pytest.mark.parametrize("factor", [1e200, 1e-200])
def test_numbers_of_any_size(factor):
    x = table(np.random.default_rng(1), 4, 50, 0.3, 1, 0.5)
    plain, large = crossed(x), crossed(x * factor)
    assert large.mean == pytest.approx(plain.mean * factor, rel=1e-12)
    assert large.interval == pytest.approx([v * factor for v in plain.interval], rel=1e-12)
    assert "leave float64" in str(large)
    assert crossed_difference(x * factor, x[:3] * factor).stderr == pytest.approx(crossed_difference(x, x[:3]).stderr * factor)


def test_a_mean_far_from_zero_loses_no_digits_of_the_error():
    x = table(np.random.default_rng(1), 4, 50, 0.3, 1, 0.5)
    assert crossed(x + 1e6).stderr == pytest.approx(crossed(x).stderr, rel=1e-8)


@pytest.mark.parametrize(("values", "error", "words"), [
    (np.zeros((1, 5)), StatisticsError, "two of each; got 1 runs and 5 items"),
    (np.zeros((3, 1)), StatisticsError, "two of each"),
    (np.zeros(5), InputError, r"\(runs, items\)"),
    ([[1.0, 2.0], [3.0, np.nan]], InputError, "item 1 of run 1 is nan"),
    ([["a", "b"], ["c", "d"]], InputError, "values"),
])
def test_what_is_no_table_is_refused_by_name(values, error, words):
    with pytest.raises(error, match=words):
        crossed(values)


def test_other_refusals():
    with pytest.raises(InputError, match="same items; got 5 and 4"):
        crossed_difference(np.zeros((3, 5)), np.zeros((3, 4)))
    with pytest.raises(InputError, match="confidence"):
        crossed(np.eye(3), confidence=95)
