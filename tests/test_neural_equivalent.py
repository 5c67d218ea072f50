"""The deep-ensemble equivalent: exact where it must be, covered where the truth is known, never extrapolated."""

import itertools

import numpy as np
import pytest

from ensemblekit import neural
from ensemblekit.errors import InputError
from ensemblekit.neural.equivalent import _Curve, _curve, _inverse, _monotone
from ensemblekit.neural.evidence import evidence_of, rows_of
from ensemblekit.neural.pools import ClassPools, NumberPools
from ensemblekit.neural.prediction import RegressionPrediction
from ensemblekit.neural.saved import SavedPredictions
from ensemblekit.neural.scores import given
from ensemblekit.neural.temperature import scaled_nll


def binary(logit):
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p], axis=-1)


def members_and_seeds(seed, m, rho, k=5, n=1500, uneven=False):
    """Members of one run whose errors have the correlation `rho`, and k independent networks; pooled as logits."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal(n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int)
    common = 0.5 * rng.standard_normal(n)
    spread = 2 * np.exp(rng.standard_normal(k) / 4) if uneven else np.full(k, 2.0)
    seeds = z + common + spread[:, None] * rng.standard_normal((k, n))
    e = np.sqrt(rho) * rng.standard_normal(n) + np.sqrt(1 - rho) * rng.standard_normal((m, n))
    run = SavedPredictions(binary(z + common + 2 * e), np.full(m, 1 / m), labels, {}, "logit", None)
    return run, [(binary(row), labels) for row in seeds]


def trials(seeds, m, rho, score="nll", **options):
    return [neural.deep_ensemble_equivalent(*members_and_seeds(seed, m, rho, **options), score=score) for seed in range(seeds)]


def test_members_are_worth_as_many_as_theory_says():
    equivalents = trials(8, 6, 0.2, n=600)
    assert 2.2 < np.median([f.value for f in equivalents]) < 3.9         # 3
    assert sum(f.low <= 3 <= f.high for f in equivalents) >= 6


@pytest.mark.slow
@pytest.mark.parametrize(("m", "rho", "worth", "uneven"), [(4, 1 / 3, 2, False), (6, 0.2, 3, False), (6, 0.2, 3, True)])
def test_members_are_worth_as_many_over_sixty_seeds(m, rho, worth, uneven):
    equivalents = trials(60, m, rho, "calibrated_nll", uneven=uneven)
    assert np.median([f.value for f in equivalents]) == pytest.approx(worth, rel=0.15)
    assert np.mean([f.low <= worth <= f.high for f in equivalents]) >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("uneven", [False, True])
def test_one_network_and_more_than_there_are_over_sixty_seeds(uneven):
    one = trials(60, 1, 0.0, "calibrated_nll", uneven=uneven)
    assert np.mean([f.low <= 1 <= f.high for f in one]) >= 0.92
    eight = trials(60, 8, 0.0, "calibrated_nll", uneven=uneven)
    assert np.mean([f.high == np.inf for f in eight]) >= 0.92
    assert np.mean([f.beyond == "above" for f in eight]) >= 0.5


def test_off_the_ends_nothing_is_extrapolated():
    above = trials(1, 8, 0.0)[0]
    assert (above.value, above.beyond, above.high) == (5, "above", np.inf)
    assert "> 5" in str(above)
    one = trials(4, 1, 0.0)
    assert all(f.low <= 1 <= f.high for f in one)
    run, seeds = members_and_seeds(0, 1, 0.0)
    far = (0.2 * binary(np.zeros(1500)) + 0.8 * run.members[0][::-1], run.target)
    below = neural.deep_ensemble_equivalent(far, seeds, space="logit", score="nll")
    assert (below.value, below.beyond, below.low, below.high) == (1, "below", 0, 1)
    assert "< 1" in str(below)


@pytest.mark.parametrize("score", ["calibrated_nll", "nll", "brier", "accuracy"])
@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_pools_of_so_many_seeds_are_worth_so_many(size, score, space):
    _, seeds = members_and_seeds(0, 1, 0.0, k=4, n=300)
    labels = seeds[0][1]
    pools = []
    for chosen in itertools.combinations(range(4), size):
        p = np.stack([seeds[k][0] for k in chosen])
        pool = p.mean(0) if space == "probability" else np.exp(np.log(p).mean(0))
        pools.append((pool / pool.sum(1, keepdims=True), labels))
    equivalent = neural.deep_ensemble_equivalent(pools, seeds, score=score, space=space)
    want = size if score != "accuracy" else equivalent.value         # of accuracies, others may be as good
    assert equivalent.value == pytest.approx(want, abs=1e-9)
    assert equivalent.low <= equivalent.value <= equivalent.high
    if score != "accuracy":
        assert equivalent.method_score == pytest.approx(equivalent.curve[size - 1][1], abs=1e-12)


@pytest.mark.parametrize(("score", "space"), [("nll", "probability"), ("nll", "logit"), ("brier", "probability")])
def test_more_networks_are_never_worse_before_calibration(score, space):
    _, seeds = members_and_seeds(1, 1, 0.0, k=6, n=200, uneven=True)
    labels = seeds[0][1]
    p = np.stack([one for one, _ in seeds])
    rows = rows_of(evidence_of(p, labels))
    problem = ClassPools(p if space == "probability" else np.log(p), [], [], rows, score, space, 0)
    value = _curve(problem, 64, 0).value
    assert (np.diff(value) <= 1e-12).all()
    assert value[-1] < value[0]


def test_the_temperature_found_from_a_neighbour_is_the_one_of_scores():
    run, seeds = members_and_seeds(1, 1, 0.0, n=300)
    rows = rows_of(evidence_of(run.members, run.target))
    problem = ClassPools(run.members, [], [], rows, "calibrated_nll", "probability", 0)
    for p, labels in seeds:
        np.testing.assert_allclose(problem.loss(p), scaled_nll(given((p, labels))), atol=1e-9)


def test_subsets_of_many_seeds_use_each_equally_often():
    from ensemblekit.neural.equivalent import _subsets

    for size in range(1, 12):
        chosen = _subsets(11, size, 64, 0)
        counts = np.bincount(np.concatenate([list(c) for c in chosen]), minlength=11)
        assert len(set(counts)) == 1
        assert all(len(set(c)) == size for c in chosen)
    _, seeds = members_and_seeds(1, 1, 0.0, k=10, n=100)
    equivalent = neural.deep_ensemble_equivalent(seeds[:3], seeds[:9] + seeds[9:], score="nll", subsets=20)
    assert equivalent.n_seeds == 10
    assert equivalent.n_runs == 3


def test_neighbours_that_rise_are_pooled_before_the_inverse():
    value = np.array([5.0, 3.0, 4.0, 2.0])
    np.testing.assert_allclose(_monotone(value) @ value, [5, 3.5, 3.5, 2])
    curve = _Curve(np.zeros((4, 1)), value, np.zeros((4, 4)), _monotone(value))
    assert [_inverse(curve, x) for x in (5, 4.25, 3.5, 2.75, 2, 6, 1)] == [
        (1, ""), (1.5, ""), (2, ""), (3.5, ""), (4, ""), (1, "below"), (4, "above")]


def test_squared_errors_fall_as_theory_says():
    rng = np.random.default_rng(0)
    target = rng.standard_normal(4000)
    bias = 0.5 * rng.standard_normal(4000)
    seeds = target + bias + rng.standard_normal((5, 4000))
    method = target + bias + rng.standard_normal((2, 4000)).mean(0)
    equivalent = neural.deep_ensemble_equivalent([method], list(seeds), score="mse", target=target)
    for size, mean, stderr in equivalent.curve:
        assert abs(mean - (0.25 + 1 / size)) < 4 * stderr
    assert equivalent.low <= 2 <= equivalent.high
    assert equivalent.value == pytest.approx(2, rel=0.15)
    large = neural.deep_ensemble_equivalent([method * 1e200], list(seeds * 1e200), score="mse", target=target * 1e200)
    assert large.value == pytest.approx(equivalent.value)
    answers = [RegressionPrediction(row, np.zeros(4000), np.zeros(4000), target) for row in seeds]
    assert neural.deep_ensemble_equivalent(RegressionPrediction(method, np.zeros(4000), np.zeros(4000), target), answers,
                                           score="mse").value == equivalent.value
    problem = NumberPools(seeds[:, :, None], [], [], target[:, None], np.arange(4000))
    assert (np.diff(_curve(problem, 64, 0).value) < 0).all()


def test_several_runs_widen_the_interval_and_one_run_says_so():
    _, seeds = members_and_seeds(0, 1, 0.0, k=5, n=300)
    run, _ = members_and_seeds(0, 3, 0.3, n=300)
    alone = neural.deep_ensemble_equivalent(run, seeds)
    assert "luck of its training" in str(alone)
    assert len(alone.by_members) == 3
    assert alone.by_members[-1] == pytest.approx(alone.value)
    several = neural.deep_ensemble_equivalent([run, *seeds[:2]], seeds, space="logit")
    assert several.n_runs == 3
    assert several.to_dict()["by_members"] == []
    assert "luck" not in str(several)


def test_groups_stay_together():
    run, seeds = members_and_seeds(0, 3, 0.3, n=150)
    alone = neural.deep_ensemble_equivalent(run, seeds, score="nll")
    four = SavedPredictions(run.members.repeat(4, axis=1), run.weights, run.target.repeat(4), {}, "logit", None)
    grouped = neural.deep_ensemble_equivalent(four, [(p.repeat(4, axis=0), y.repeat(4)) for p, y in seeds], score="nll",
                                              groups=np.arange(150).repeat(4))
    assert (grouped.value, grouped.low, grouped.high) == pytest.approx((alone.value, alone.low, alone.high))


@pytest.mark.parametrize(("change", "words"), [
    (lambda run, seeds: (run, seeds[:2]), "three or more; got 2"),
    (lambda run, seeds: (run, [*seeds, seeds[1]]), "reference seeds 1 and 5 say the same"),
    (lambda run, seeds: (run, [(p[:50], y[:50]) for p, y in seeds]), "same items and classes; reference seed 0"),
    (lambda run, seeds: (run, [(p, 1 - y) for p, y in seeds]), "the labels of reference seed 0 differ"),
    (lambda run, seeds: (run.members, [p for p, _ in seeds]), "no labels"),
    (lambda run, seeds: (run, [(np.where(np.arange(2) > 0, np.nan, p), y) for p, y in seeds]), "member 0 is not finite"),
])
def test_refusals(change, words):
    run, seeds = members_and_seeds(0, 3, 0.3, n=80)
    with pytest.raises(InputError, match=words):
        neural.deep_ensemble_equivalent(*change(run, seeds))


def test_settings_that_are_refused():
    run, seeds = members_and_seeds(0, 3, 0.3, n=80)
    for options, words in (({"score": "f1"}, "score is one of"), ({"confidence": 95}, "confidence"), ({"subsets": 0},
                                                                                                      "subsets"),
                           ({"space": "probability"}, "saved for pooling in logit")):
        with pytest.raises(InputError, match=words):
            neural.deep_ensemble_equivalent(run, seeds, **options)


def test_a_curve_that_rises_by_chance_is_made_monotone():
    class Pools:
        seeds = np.zeros((4, 1, 1))
        sizes = np.ones(2)

        def pool(self, which):
            return len(which)

        def loss(self, size):
            return np.full(2, [5.0, 3.0, 4.0, 2.0][size - 1])

    curve = _curve(Pools(), 64, 0)
    np.testing.assert_allclose(curve.monotone @ curve.value, [5, 3.5, 3.5, 2])
