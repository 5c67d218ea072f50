"""What none of the answers about an ensemble's worth can be had from, refused in words, or said in the answer."""

import numpy as np
import pytest

from ensemblekit import neural
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.neural.saved import SavedPredictions


def members(seed=0, m=4, n=60, classes=3):
    """(m, n, classes) probabilities."""
    rng = np.random.default_rng(seed)
    p = rng.random((m, n, classes)) + 0.5 * np.eye(classes)[LABELS[:n] % classes]
    return p / p.sum(2, keepdims=True)


LABELS = np.random.default_rng(9).integers(0, 3, 60)


def select(p, y, **options):
    return neural.select(p, target=y, method="stacking", **options)


def equivalent(p, y, **options):
    return neural.deep_ensemble_equivalent(p, [members(k, 1, 60)[0] for k in range(10, 13)], target=y, score="nll", **options)


def reference(p, y, **options):
    """The bad one is the second of the reference networks."""
    seeds = [members(10, 1)[0], p[0], members(12, 1)[0]]
    return neural.deep_ensemble_equivalent(members(1), seeds, target=y, score="nll", **options)


def ergodicity(p, y, **options):
    return neural.training_ergodicity([members(1), members(2), p], target=y, **options)


def detection(p, y, **options):
    return neural.error_detection(p, target=y, **options)


EVERY = [select, equivalent, reference, ergodicity, detection]


@pytest.mark.parametrize("ask", EVERY)
def test_a_member_with_a_nan_is_numbered(ask):
    p = members()
    p[0 if ask is reference else 2, 7, 1] = np.nan
    with pytest.raises(InputError, match=f"member {0 if ask is reference else 2} is not finite at item 7"):
        ask(p, LABELS)


@pytest.mark.parametrize("ask", EVERY)
def test_an_empty_loader_is_named(ask):
    with pytest.raises(InputError, match="no items came; was the loader used up before"):
        ask(members()[:, :0], LABELS if ask in (reference, ergodicity) else LABELS[:0])


@pytest.mark.parametrize("ask", [select, equivalent, detection])
def test_labels_that_are_missing(ask):
    with pytest.raises(InputError, match=r"no labels; save them from a loader of \(input, label\), or pass target="):
        ask(members(), None)


@pytest.mark.parametrize("ask", EVERY)
def test_labels_of_another_number_of_items(ask):
    with pytest.raises(InputError, match=r"got labels \(59,\)"):
        ask(members(), LABELS[:59])


@pytest.mark.parametrize("ask", EVERY)
def test_logits_in_place_of_probabilities(ask):
    with pytest.raises(InputError, match=r"member 0 holds no probabilities .* apply a softmax"):
        ask(np.log(members()) + 0.5, LABELS)


@pytest.mark.parametrize("ask", [select, equivalent, ergodicity, detection])
def test_groups_of_another_number_of_items(ask):
    with pytest.raises(InputError, match=r"one name an item|one name an item, shape \(60,\)"):
        ask(members(), LABELS, **{"groups": np.arange(59)})


@pytest.mark.parametrize(("part", "words"), [
    (lambda p: p[:3], r"run 2 has \(3, 60, 3\), run 0 \(4, 60, 3\)"),
    (lambda p: p[:, :50], r"labels \(n, ...\); got labels|run 2 has \(4, 50, 3\)"),
    (lambda p: p[:, :, :2] / p[:, :, :2].sum(2, keepdims=True), r"run 2 has \(4, 60, 2\)"),
])
def test_runs_of_other_members_items_or_classes(part, words):
    with pytest.raises(InputError, match=words):
        ergodicity(part(members()), LABELS)
    with pytest.raises(InputError, match=words):
        neural.training_ergodicity([members(1), members(2), part(members())])


@pytest.mark.parametrize("ask", ["method", "reference"])
def test_method_and_reference_on_other_items_or_classes(ask):
    few, y = members(1, n=50), LABELS[:50]
    two = members(1)[:, :, :2] / members(1)[:, :, :2].sum(2, keepdims=True)
    seeds = [(members(k, 1)[0], LABELS) for k in range(10, 13)]
    run = SavedPredictions(members(0), np.full(4, 0.25), LABELS, {}, "probability", None)
    for bad in ((few.mean(0), y), (two.mean(0), np.minimum(LABELS, 1))):
        given = ([run, bad], seeds) if ask == "method" else (run, [*seeds, bad])
        with pytest.raises(InputError, match="method and reference are about the same items and classes; "
                                             + ("run 1 of the method" if ask == "method" else "reference seed 3")):
            neural.deep_ensemble_equivalent(*given, score="nll")
    moved = (run.members.mean(0), 2 - LABELS)
    given = ([run, moved], seeds) if ask == "method" else (run, [*seeds, moved])
    with pytest.raises(InputError, match=r"same items in the same order; the labels of .* differ"):
        neural.deep_ensemble_equivalent(*given, score="nll")


@pytest.mark.parametrize("ask", [lambda p, y: neural.select(p, target=y, folds=61), lambda p, y: neural.select(
    p, target=y, groups=np.arange(60) % 4), lambda p, y: neural.VectorScaler().cross_fit(
    SavedPredictions(p, np.full(4, 0.25), y, {}, "probability", None).pooled(), folds=61)])
def test_fewer_items_or_groups_than_folds(ask):
    with pytest.raises(InputError, match=r"folds is a whole number from 2 to the number of items or groups, (60|4)"):
        ask(members(), LABELS)


def test_members_that_all_say_the_same():
    p = members(0, 1).repeat(4, axis=0)
    assert "all members say the same: no choice or weighting of them can gain anything" in str(select(p, LABELS))
    for method in ("greedy", "diverse", "exhaustive", "auto", "best", "last"):
        gain = neural.select(p, target=LABELS, method=method).differences["all members"]["nll"]
        assert abs(gain.value) < 1e-12
    runs = [members(k, 1).repeat(4, axis=0) for k in range(3)]
    verdict = neural.training_ergodicity(runs, target=LABELS)
    assert verdict.members == pytest.approx(1, abs=1e-12)
    assert verdict.function_space.n_eff_interval == pytest.approx((1, 1), abs=1e-9)
    worth = equivalent(p, LABELS)
    assert len(set(np.round(worth.by_members, 9))) == 1
    known = detection(p, LABELS)
    assert 0 < known.error < 1
    assert known["disagreement"].auroc.value == 0.5
    for answer in (verdict, worth, known):
        assert "nan" not in str(answer)


def test_one_member():
    p = members(0, 1)
    assert "one member, so nothing to choose" in str(neural.select(p, target=LABELS))
    with pytest.raises(StatisticsError, match="two snapshots or more"):
        neural.training_ergodicity([members(k, 1) for k in range(3)], target=LABELS)
    assert equivalent(p, LABELS).by_members == ()
    assert "one member has none" in str(detection(p, LABELS))


def test_a_reference_network_that_is_a_copy():
    seeds = [(members(k, 1)[0], LABELS) for k in range(10, 13)]
    with pytest.raises(InputError, match="reference seeds 1 and 3 say the same on every item: one is a copy of the other, "
                                         "not an independent training"):
        neural.deep_ensemble_equivalent((members().mean(0), LABELS), [*seeds, seeds[1]])


def test_predictions_saved_for_another_space():
    saved = SavedPredictions(members(), np.full(4, 0.25), LABELS, {}, "logit", None)
    seeds = [(members(k, 1)[0], LABELS) for k in range(10, 13)]
    for ask in (lambda: neural.select(saved, space="probability"),
                lambda: neural.deep_ensemble_equivalent(saved, seeds, space="probability")):
        with pytest.raises(InputError, match=r"were saved for pooling in logit space; got space='probability'\. Pass "
                                             r"space='logit', or the array"):
            ask()
    other = SavedPredictions(members(1), np.full(4, 0.25), LABELS, {}, "probability", None)
    with pytest.raises(InputError, match="runs are pooled in one space; that of run 1 is probability, that of run 0 logit"):
        neural.training_ergodicity([saved, other])
