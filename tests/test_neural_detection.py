"""Errors found by doubt: against scikit-learn, closed forms and all orders of ties."""

import itertools

import numpy as np
import pytest

from ensemblekit import neural
from ensemblekit.errors import InputError
from ensemblekit.neural.detection import _areas, _harmonic, _tail
from ensemblekit.neural.saved import SavedPredictions


def answers(seed, n, error=0.2, ties=0, members=3):
    """Saved predictions of `members` on n items of two classes, wrong with about that chance."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    sure = -np.log(error / (1 - error)) * (0.5 + rng.random(n))
    right = rng.random(n) < 1 / (1 + np.exp(-sure))
    logit = np.where(right, sure, -sure) * np.where(labels, 1, -1) + 0.3 * rng.standard_normal((members, n))
    if ties:
        logit = np.round(logit * ties) / ties
    p = 1 / (1 + np.exp(-logit))
    return SavedPredictions(np.stack([1 - p, p], 2), np.full(members, 1 / members), labels, {}, "probability", None)


def plain(doubt, wrong):
    """AURC and AUGRC of one order without ties."""
    errors = np.cumsum(wrong[np.argsort(doubt, kind="stable")])
    k = np.arange(1, len(wrong) + 1)
    return (errors / k).mean(), (errors / len(wrong)).mean()


@pytest.mark.parametrize("ties", [0, 2])
def test_auroc_is_that_of_scikit_learn(ties):
    from sklearn.metrics import roc_auc_score

    saved = answers(0, 300, ties=ties)
    one = saved.pooled()
    detection = neural.error_detection(one)
    wrong = one.choice != one.target
    for name, doubt in (("confidence", 1 - one.probabilities.max(1)), ("entropy", one.entropy), ("epistemic", one.epistemic),
                        ("disagreement", one.disagreement)):
        assert detection[name].auroc.value == pytest.approx(roc_auc_score(wrong, doubt), abs=1e-12)
        assert detection[name].auroc.low <= detection[name].auroc.value <= detection[name].auroc.high


@pytest.mark.parametrize("ties", [0, 2])
def test_augrc_follows_from_auroc(ties):
    detection = neural.error_detection(answers(1, 200, ties=ties))
    e, n = detection.error, 200
    for name in detection:
        one = detection[name]
        want = (1 - one.auroc.value) * e * (1 - e) + e**2 / 2 + e / (2 * n)
        assert one.augrc.value == pytest.approx(want, abs=1e-12)


def test_areas_without_ties_are_the_plain_sums():
    one = answers(1, 200).pooled()
    measure = neural.error_detection(one)["entropy"]
    wrong = (one.choice != one.target).astype(float)
    aurc, augrc = plain(one.entropy, wrong)
    assert (measure.aurc.value, measure.augrc.value) == pytest.approx((aurc, augrc), abs=1e-12)
    assert measure.e_aurc.value == pytest.approx(aurc - plain(wrong, wrong)[0], abs=1e-12)


def test_ties_count_by_their_mean_over_all_orders():
    doubt = np.array([0, 0, 1, 1, 1, 2])
    wrong = np.array([0, 1, 1, 0, 0, 1.0])
    every = []
    for first in itertools.permutations([0, 1]):
        for second in itertools.permutations([2, 3, 4]):
            every.append(plain(np.arange(6), wrong[[*first, *second, 5]]))
    want = np.mean(every, axis=0)
    sizes, errors = np.bincount(doubt).astype(float)[None], np.bincount(doubt, wrong)[None]
    areas = _areas(sizes, errors, _harmonic(6))[:, 0]
    assert (areas[1], areas[3]) == pytest.approx(tuple(want), abs=1e-14)


def test_constant_doubt_has_the_error_for_its_risk():
    saved = answers(2, 100, members=1)
    p = np.where(saved.members[0] > 0.5, 0.75, 0.25)
    detection = neural.error_detection((p, saved.target))
    one = detection["confidence"]
    assert one.aurc.value == pytest.approx(detection.error, abs=1e-15)
    assert one.auroc.value == 0.5
    assert "no members" in str(detection)
    assert list(detection) == ["confidence", "entropy"]


def test_an_item_twice_is_an_item_drawn_twice():
    """The areas of resampled items are those of the items repeated."""
    rng = np.random.default_rng(0)
    doubt, wrong, counts = rng.permutation(20), (rng.random(20) < 0.3).astype(float), rng.integers(0, 4, 20)
    order = np.argsort(doubt)
    weighted = _areas(counts[order][None].astype(float), (counts * wrong)[order][None], _harmonic(80))[:, 0]
    every = doubt.repeat(counts)
    sizes, errors = np.bincount(every).astype(float), np.bincount(every, wrong.repeat(counts))
    np.testing.assert_allclose(weighted, _areas(sizes[None], errors[None], _harmonic(80))[:, 0])


def test_the_curve_and_its_inverse():
    measure = neural.error_detection(answers(3, 200))["confidence"]
    _coverage, risk = measure.curve
    assert measure.aurc.value == pytest.approx(risk.mean())
    assert measure.risk_at(1.0) == pytest.approx(risk[-1])
    assert measure.risk_at(0.5) == pytest.approx(risk[99])
    at = measure.coverage_at(0.1)
    assert risk[round(at * 200) - 1] <= 0.1
    assert (risk[round(at * 200):] > 0.1).all()
    assert measure.coverage_at(0.0) < 1
    with pytest.raises(InputError, match="coverage"):
        measure.risk_at(0)
    with pytest.raises(InputError, match="risk"):
        measure.coverage_at(2)


@pytest.mark.parametrize("which", ["no", "all"])
def test_nothing_to_tell_apart_is_said(which):
    saved = answers(3, 50)
    choice = saved.pooled().choice
    labels = choice if which == "no" else 1 - choice
    detection = neural.error_detection(saved.members, target=labels)
    assert np.isnan(detection["entropy"].auroc.value)
    assert f"{which} answers are wrong" in str(detection)
    assert detection["entropy"].aurc.value == (0 if which == "no" else 1)


def test_groups_are_resampled_together():
    saved = answers(4, 60)
    four = SavedPredictions(saved.members.repeat(4, axis=1), saved.weights, saved.target.repeat(4), {}, "probability", None)
    alone, grouped = neural.error_detection(saved), neural.error_detection(four, groups=np.arange(60).repeat(4))
    assert grouped["entropy"].auroc.stderr == pytest.approx(alone["entropy"].auroc.stderr)
    assert grouped.n == 60


def test_maps_count_pixels_and_resample_images():
    saved = answers(4, 160)
    maps = np.moveaxis(saved.members.reshape(3, 10, 16, 2), 3, 2).reshape(3, 10, 2, 4, 4)
    labels = saved.target.reshape(10, 4, 4).copy()
    labels[0, 0, 0] = 9
    detection = neural.error_detection(SavedPredictions(maps, saved.weights, labels, {}, "probability", 9))
    plainly = neural.error_detection(saved.members[:, 1:], target=saved.target[1:])
    assert detection.n == 10
    assert detection["epistemic"].auroc.value == pytest.approx(plainly["epistemic"].auroc.value)


def covered(n, error, seeds):
    truth = neural.error_detection(answers(10**6, 200_000, error).pooled(), measures="confidence")["confidence"]
    hits = np.zeros(2)
    for seed in range(seeds):
        one = neural.error_detection(answers(seed, n, error).pooled(), measures="confidence")["confidence"]
        hits += [one.auroc.low <= truth.auroc.value <= one.auroc.high, one.aurc.low <= truth.aurc.value <= one.aurc.high]
    return hits / seeds


@pytest.mark.slow
@pytest.mark.parametrize(("n", "error"), [(300, 0.05), (300, 0.2), (1000, 0.05), (1000, 0.2)])
def test_intervals_cover_over_many_seeds(n, error):
    auroc, aurc = covered(n, error, 400)
    assert 0.92 <= auroc <= 0.97
    assert 0.90 <= aurc <= 0.97


def test_few_errors_move_the_ends_out_and_are_named():
    assert _tail(10**6) == pytest.approx(0.025, rel=1e-4)
    assert _tail(15) == pytest.approx(0.0132, abs=2e-4)           # t of 14 and the root of 15/14
    p, labels = np.full((200, 2), 0.5), np.zeros(200, int)
    p[:, 0] += 0.4 * np.random.default_rng(0).random(200)
    p[:, 1] = 1 - p[:, 0]
    labels[[3, 50, 70]] = 1
    detection = neural.error_detection((p, labels))
    assert "only 3 answers are wrong" in str(detection)
    assert "only 3 answers are right" in str(neural.error_detection((p, 1 - labels)))
    assert "only" not in str(neural.error_detection(answers(0, 300)))


@pytest.mark.parametrize(("options", "words"), [({"measures": ["doubt"]}, "measures are"), ({"groups": np.zeros(40)},
                                                                                            "two items or groups"),
                                                ({"target": None}, "no labels"),
                                                ({"groups": np.arange(3)}, "groups are one name")])
def test_refusals(options, words):
    saved = answers(3, 40)
    with pytest.raises(InputError, match=words):
        neural.error_detection(saved.members, **{"target": saved.target, **options})


def test_one_member_and_measures_that_are_not_there():
    detection = neural.error_detection(answers(3, 40, members=1))
    assert "one member has none" in str(detection)
    with pytest.raises(InputError, match="no measure 'doubt' here"):
        detection["doubt"]
    assert set(detection.to_dict()["measures"]) == set(detection)
