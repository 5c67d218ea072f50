"""Scores of several independent trainings: means whose intervals hold for other trainings too."""

import numpy as np
import pytest

from ensemblekit import neural
from ensemblekit.averaging.crossed import crossed, crossed_difference
from ensemblekit.errors import InputError
from ensemblekit.neural.prediction import RegressionPrediction


def trainings(seed, r, n=400, luck=0.3, classes=4):
    """[(probabilities, labels)]: the same items, logits with a noise of their own and a luck of each training."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    sure = 2 + rng.standard_normal(n)
    runs_of = []
    for _k in range(r):
        z = 0.5 * rng.standard_normal((n, classes))
        z[np.arange(n), labels] += sure + luck * rng.standard_normal()
        runs_of.append((np.exp(z) / np.exp(z).sum(1, keepdims=True), labels))
    return runs_of


def test_means_of_runs_have_the_error_of_both_samples():
    runs = trainings(0, 4)
    scores = neural.scores(runs)
    nll = np.array([-np.log(p[np.arange(400), y]) for p, y in runs])
    want = crossed(nll)
    assert (scores["nll"].value, scores["nll"].stderr) == pytest.approx((want.mean, want.stderr))
    assert (scores["nll"].low, scores["nll"].high) == pytest.approx(want.interval)
    assert scores["nll"].stderr_runs == pytest.approx(want.stderr_runs)
    assert scores["nll"].stderr_runs > scores["nll"].stderr_items / 10
    assert "4 runs" in str(scores)
    single = [neural.scores(run) for run in runs]
    for name in scores:
        assert scores[name].value == pytest.approx(np.mean([s[name].value for s in single]))
        assert scores[name].stderr_items**2 + scores[name].stderr_runs**2 == pytest.approx(scores[name].stderr**2)
        assert scores[name].low <= scores[name].value <= scores[name].high


def test_one_run_says_that_luck_is_not_covered():
    runs = trainings(0, 1)
    scores, plain = neural.scores(runs), neural.scores(runs[0])
    assert "luck of the training is not covered" in str(scores)
    assert dict(scores) == dict(plain)
    assert plain["nll"].stderr_runs == 0
    assert plain["nll"].stderr_items == plain["nll"].stderr
    assert "not covered" in str(neural.compare(runs, runs[0]))


def test_a_difference_of_runs_pairs_items_and_not_runs():
    a, b = trainings(0, 4), trainings(0, 3)
    scores = neural.compare(a, b)
    nll = [np.array([-np.log(p[np.arange(400), y]) for p, y in runs]) for runs in (a, b)]
    want = crossed_difference(*nll)
    assert (scores["nll"].value, scores["nll"].stderr) == pytest.approx((want.mean, want.stderr))
    assert "one run of b" in str(neural.compare(a, b[0]))
    assert neural.compare(a, a)["ece"].value == 0
    assert scores["ece"].stderr_runs > 0


def test_numbers_of_several_runs():
    rng = np.random.default_rng(0)
    target = rng.standard_normal(200)
    runs = [RegressionPrediction(target + 0.3 * rng.standard_normal(200) + 0.2 * rng.standard_normal(), np.full(200, 0.1),
                                 np.zeros(200), target) for _ in range(3)]
    scores = neural.scores(runs)
    assert scores["mse"].value == pytest.approx(np.mean([neural.scores(r)["mse"].value for r in runs]))
    assert scores["mse"].stderr_runs > 0
    assert neural.compare(runs, runs)["mse"].value == 0


def test_groups_of_items_count_once():
    runs = trainings(0, 4)
    four = [(p.repeat(4, axis=0), y.repeat(4)) for p, y in runs]
    alone, grouped = neural.scores(runs), neural.scores(four, groups=np.arange(400).repeat(4))
    assert grouped["nll"].stderr == pytest.approx(alone["nll"].stderr)


def test_runs_on_other_items_are_refused():
    a, b = trainings(0, 2), trainings(1, 2)
    with pytest.raises(InputError, match=r"run 1 .*with other labels"):
        neural.scores([a[0], b[1]])
    with pytest.raises(InputError, match="same items in the same order"):
        neural.compare(a, b)
