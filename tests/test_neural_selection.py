"""The choice of members: nothing leaks, nothing is gained where nothing is to be gained, and harm is left out."""

import itertools

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import neural
from ensemblekit.errors import InputError
from ensemblekit.neural.saved import SavedPredictions, save_predictions
from ensemblekit.neural.weightings import _of_labels

METHODS = ("all", "last", "best", "greedy", "diverse", "stacking", "exhaustive")


def exchangeable(seed, n, m=8, bad=0, noise=1.0):
    """Members (m, n, 2) that differ by chance alone, by so much; the first `bad` of them know nothing."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal(n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int)
    logit = z + noise * rng.standard_normal((m, n))
    logit[:bad] = 3 * rng.standard_normal((bad, n))
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p], axis=2), labels


@pytest.mark.parametrize("method", ["auto", *METHODS[1:]])
def test_labels_of_a_fold_have_no_part_in_its_weights(method):
    p, y = exchangeable(1, 60 if method != "stacking" else 120, m=4, bad=1)
    options = {"method": method, "temperature": True, "folds": 3}
    selection = neural.select(p, target=y, **options)
    for f in range(3):
        inside = np.flatnonzero(selection.fold[0] == f)
        moved = y.copy()
        moved[inside] = np.random.default_rng(0).permutation(y[inside])
        assert not np.array_equal(moved, y)
        again = neural.select(p, target=moved, **options)
        assert np.array_equal(again.fold_weights[0, f], selection.fold_weights[0, f])
        assert again.fold_temperatures[0, f] == selection.fold_temperatures[0, f]
        assert again.methods[f] == selection.methods[f]


def test_each_item_is_pooled_by_the_weights_of_its_fold():
    p, y = exchangeable(1, 60, m=4, bad=1)
    selection = neural.select(p, target=y, method="stacking")
    want = np.einsum("im,mic->ic", selection.fold_weights[0][selection.fold[0]], p)
    np.testing.assert_allclose(selection.prediction.probabilities, want)
    assert selection.scores["nll"].value == pytest.approx(-np.log(want[np.arange(60), y]).mean())
    assert selection.optimism == pytest.approx(selection.scores["nll"].value - selection.in_sample)
    np.testing.assert_allclose(selection.stability, (selection.fold_weights[0] > 0).mean(0))


@pytest.mark.parametrize("method", METHODS)
def test_labels_that_say_nothing_give_no_gain(method):
    gains = []
    for seed in range(10):
        p, y = exchangeable(seed, 120, m=6)
        y = np.random.default_rng(seed + 100).permutation(y)
        gains.append(-neural.select(p, target=y, method=method).differences["all members"]["nll"].value)
    assert np.mean(gains) <= 2 * np.std(gains) / np.sqrt(len(gains)) + 1e-12
    if method == "all":
        assert not np.any(gains)


def test_auto_keeps_all_members_where_they_differ_by_chance():
    selections = [neural.select(*exchangeable(seed, 200)[:1], target=exchangeable(seed, 200)[1]) for seed in range(6)]
    assert sum(f.method == "all" for f in selections) >= 4
    stacked = neural.select(exchangeable(0, 200)[0], target=exchangeable(0, 200)[1], method="stacking")
    assert "gains nothing on items it has not seen" in str(stacked)
    assert stacked.optimism > 0


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1.0, 0.3])
@pytest.mark.parametrize(("n", "share"), [(200, 0.8), (1000, 0.9)])
def test_auto_keeps_all_members_over_other_seeds(n, share, noise):
    kept, seeds = 0, range(60, 120 if n == 200 else 180)        # not those that the rule was chosen by
    for seed in seeds:
        p, y = exchangeable(seed, n, noise=noise)
        kept += neural.select(p, target=y).method == "all"
    assert kept / len(seeds) >= share


@pytest.mark.slow
def test_auto_never_keeps_three_bad_members_over_sixty_seeds():
    for seed in range(60):
        p, y = exchangeable(seed, 1000, bad=3)
        assert neural.select(p, target=y).method != "all"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_labels_that_say_nothing_give_no_gain_over_thirty_seeds(method):
    gains = []
    for seed in range(30):
        p, y = exchangeable(seed, 200)
        y = np.random.default_rng(seed + 100).permutation(y)
        gains.append(-neural.select(p, target=y, method=method).differences["all members"]["nll"].value)
    assert np.mean(gains) <= 2 * np.std(gains) / np.sqrt(30) + 1e-12


def gain_covered(seeds, n, method, noise):
    """Share of the intervals of the gain out of fold that hold the gain of the weights on other items."""
    p, y = exchangeable(10**6, 50_000, noise=noise)
    own = p[:, np.arange(len(y)), y]
    held = 0
    for seed in range(seeds):
        p, y = exchangeable(seed, n, noise=noise)
        selection = neural.select(p, target=y, method=method)
        truth = np.log(own.mean(0)).mean() - np.log(selection.weights @ own).mean()
        gap = selection.differences["all members"]["nll"]
        held += gap.low <= truth <= gap.high
    return held / seeds


def test_the_interval_of_the_gain_knows_that_the_choice_was_made_on_items_too():
    assert gain_covered(24, 200, "stacking", 0.3) >= 0.87        # 73 % where each item counts as one that was not chosen by


@pytest.mark.slow
@pytest.mark.parametrize(("n", "method"), [(200, "stacking"), (1000, "stacking"), (200, "greedy"), (200, "last")])
def test_the_interval_of_the_gain_covers_over_many_seeds(n, method):
    assert gain_covered(120, n, method, 0.3) >= 0.88


def test_a_choice_that_nobody_made_has_no_error_of_its_own():
    p, y = exchangeable(1, 200)
    selection = neural.select(p, target=y, method="last", k=2)
    plain = neural.compare((p[-2:].mean(0), y), (p.mean(0), y))["nll"]
    gap = selection.differences["all members"]["nll"]
    assert (gap.value, gap.low, gap.high) == pytest.approx((plain.value, plain.low, plain.high))
    free = neural.select(p, target=y, method="stacking")
    want = neural.compare((free.prediction.probabilities, y), (p.mean(0), y))["nll"]
    assert free.choice_variance == pytest.approx(max(len(free.indices) - 1, 1) / 200**2)
    factor = np.sqrt(1 + min(free.choice_variance / want.stderr**2, 1.25))
    assert factor > 1.01
    assert free.differences["all members"]["nll"].stderr == pytest.approx(factor * want.stderr)
    assert free.differences["all members"]["nll"].low == pytest.approx(want.value - factor * (want.value - want.low))


def test_auto_leaves_members_out_that_do_harm():
    for seed in range(3):
        p, y = exchangeable(seed, 300, bad=3)
        selection = neural.select(p, target=y)
        assert selection.method != "all"
        assert selection.differences["all members"]["nll"].high < 0
        assert selection.weights[:3].sum() < 0.1
        assert "minus all members" in str(selection).splitlines()[0]


def test_methods_are_what_they_say():
    p, y = exchangeable(2, 200, m=5, bad=1)
    own = p[:, np.arange(200), y]
    losses = -np.log(own).mean(1)

    def loss(chosen):
        return -np.log(own[list(chosen)].mean(0)).mean()

    def chosen(method, **options):
        return neural.select(p, target=y, method=method, **options)

    assert list(chosen("best").indices) == [int(np.argmin(losses))]
    assert list(chosen("last", k=2).indices) == [3, 4]
    best_last = min(range(1, 6), key=lambda k: loss(range(5 - k, 5)))
    assert len(chosen("last").indices) == best_last
    subsets = [c for k in range(1, 6) for c in itertools.combinations(range(5), k)]
    assert tuple(chosen("exhaustive").indices) == min(subsets, key=loss)
    assert tuple(chosen("exhaustive", k=2).indices) == min((c for c in subsets if len(c) == 2), key=loss)
    picked, counts = [], np.zeros(5)
    for _ in range(100):
        picked.append(min(range(5), key=lambda new: loss([*picked, new])))
    best = min(range(1, 101), key=lambda k: loss(picked[:k]))
    np.add.at(counts, picked[:best], 1)
    np.testing.assert_allclose(chosen("greedy").weights, counts / best)
    assert chosen("diverse", k=2).weights.max() == 0.5
    stacked = chosen("stacking")
    assert -np.log(stacked.weights @ own).mean() <= min(map(loss, subsets)) + 1e-9
    assert stacked.in_sample == pytest.approx(-np.log(stacked.weights @ own).mean())


def test_greedy_steps_are_those_of_the_plain_algorithm_whatever_the_size_of_the_probabilities():
    rng = np.random.default_rng(0)
    own = rng.random((6, 37))
    own[:, 5], own[2, 5], own[:, 9] = 1e-300, 0.7, 1e-305
    own[1, 11] = 0
    order, path = _of_labels(own, 30)
    least = np.finfo(float).tiny
    total = np.zeros(37)
    for step, (new, loss) in enumerate(zip(order, path, strict=True), 1):
        losses = -np.log(np.maximum(total + np.maximum(own, least), least)).mean(1) + np.log(step)
        assert losses[new] == pytest.approx(losses.min(), abs=1e-12)
        assert loss == pytest.approx(losses[new], rel=1e-12)
        total += np.maximum(own[new], least)
    assert len(set(order)) > 2
    assert set(_of_labels(own[[0, 0, 1, 1]], 30)[0]) <= {0, 2}          # ties to the lowest number


def test_stacking_of_logits_is_at_its_optimum():
    p, y = exchangeable(2, 300, m=4, bad=1)
    selection = neural.select(p, target=y, method="stacking", space="logit")

    def loss(w):
        z = np.tensordot(w, np.log(p), 1)
        return (np.log(np.exp(z).sum(1)) - z[np.arange(300), y]).mean()

    best = loss(selection.weights)
    assert selection.in_sample == pytest.approx(best)
    for m in range(4):
        assert loss(selection.weights + 1e-4 * (np.eye(4)[m] - selection.weights)) >= best - 1e-9


@pytest.mark.parametrize("score", ["brier", "accuracy"])
def test_other_scores(score):
    p, y = exchangeable(2, 200, m=5, bad=2)
    selection = neural.select(p, target=y, method="greedy", score=score)
    assert selection.weights[:2].sum() < 0.2
    assert score in str(selection)


def test_maps_are_chosen_on_by_pixels_and_folds_are_of_images():
    p, y = exchangeable(2, 640, m=3, bad=1)
    maps = np.moveaxis(p.reshape(3, 10, 64, 2), 3, 2).reshape(3, 10, 2, 8, 8)
    selection = neural.select(maps, target=y.reshape(10, 8, 8), method="stacking")
    assert selection.fold.shape == (1, 10)
    assert selection.prediction.probabilities.shape == (10, 2, 8, 8)
    assert selection.weights[0] < 0.2


def test_groups_stay_whole_and_the_same_seed_gives_the_same_bits():
    p, y = exchangeable(2, 60, m=3)
    groups = np.arange(60) // 4
    selection = neural.select(p, target=y, groups=groups, repeats=2)
    for fold in selection.fold:
        assert all(len(np.unique(fold[groups == g])) == 1 for g in range(15))
    again = neural.select(p, target=y, groups=groups, repeats=2)
    assert np.array_equal(selection.prediction.probabilities, again.prediction.probabilities)
    assert selection.to_dict() == again.to_dict()


def test_members_that_all_say_the_same_are_said_to():
    p, y = exchangeable(2, 60, m=1)
    selection = neural.select(p.repeat(4, axis=0), target=y)
    assert "all members say the same" in str(selection)
    np.testing.assert_allclose(selection.weights, 0.25)
    assert "one member" in str(neural.select(p, target=y))


def test_saved_predictions_and_their_space():
    p, y = exchangeable(2, 60, m=3)
    saved = SavedPredictions(p, np.full(3, 1 / 3), y, {}, "logit", None)
    assert neural.select(saved, method="stacking").prediction.space == "logit"
    with pytest.raises(InputError, match="saved for pooling in logit space; got space='probability'"):
        neural.select(saved, space="probability")


def _nan(p):
    p = p.copy()
    p[2, 7] = np.nan
    return p


@pytest.mark.parametrize(("change", "options", "words"), [
    (lambda p: p, {"target": None}, "no labels"),
    (lambda p: p[:, :4], {"folds": 5}, "folds is a whole number from 2 to the number of items or groups, 4"),
    (_nan, {}, "member 2 is not finite at item 7"),
    (lambda p: 3 * p, {}, "member 0 holds no probabilities"),
    (lambda p: p[:, :0], {}, "empty"),
    (lambda p: p[0], {}, r"\(members, n, classes, ...\)"),
    (lambda p: p, {"method": "magic"}, "method is one of"),
    (lambda p: p, {"score": "f1"}, "score is one of"),
    (lambda p: p, {"k": 9, "method": "last"}, "k is a whole number"),
    (lambda p: p.repeat(5, axis=0), {"method": "exhaustive"}, "at most 12 members; got 15"),
    (lambda p: p, {"groups": np.arange(3)}, "groups are one name an item"),
    (lambda p: p, {"groups": np.arange(40) % 3}, "items or groups, 3"),
])
def test_refusals(change, options, words):
    p, y = exchangeable(2, 40, m=3)
    p = change(p)
    with pytest.raises(InputError, match=words):
        neural.select(p, **{"target": y[:p.shape[1]] if p.ndim > 2 else y, **options})


def test_a_vector_scaler_mends_a_class_that_is_off():
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal((2000, 3))
    labels = np.array([rng.choice(3, p=q) for q in np.exp(z) / np.exp(z).sum(1, keepdims=True)])
    off = z * np.array([1.0, 0.5, 1.0]) + np.array([0.0, 0.0, 1.5])
    p = np.exp(off) / np.exp(off).sum(1, keepdims=True)
    scaler = neural.VectorScaler().fit(p[:1000], labels[:1000])
    after = neural.scores((scaler.transform(p[1000:]), labels[1000:]))["nll"].value
    assert after < neural.scores((p[1000:], labels[1000:]))["nll"].value - 0.1
    assert after < 1.12 * -np.log((np.exp(z) / np.exp(z).sum(1, keepdims=True))[np.arange(2000), labels])[1000:].mean()
    assert scaler.shift[2] < scaler.shift[0] - 1


def test_a_vector_scaler_across_folds_never_sees_an_items_label():
    p, y = exchangeable(2, 60, m=3)
    saved = SavedPredictions(p, np.full(3, 1 / 3), y, {}, "probability", None).pooled()
    scaled = neural.VectorScaler().cross_fit(saved, folds=3)
    assert scaled.tempered
    from dataclasses import replace

    moved = y.copy()
    moved[0] = 1 - y[0]
    again = neural.VectorScaler().cross_fit(replace(saved, target=moved), folds=3)
    np.testing.assert_array_equal(again.probabilities[0], scaled.probabilities[0])
    with pytest.raises(InputError, match="fit a scale"):
        neural.VectorScaler().transform(p[0])
    with pytest.raises(InputError, match="prior"):
        neural.VectorScaler(prior=-1)


def test_auto_takes_the_simplest_within_one_standard_error_of_the_lowest():
    from ensemblekit.neural.evidence import evidence_of, rows_of
    from ensemblekit.neural.weightings import SIMPLEST_FIRST, Choice, fitted_weights, inner_folds, simplest

    lowest_is_not_taken = 0
    for seed in range(6):
        p, y = exchangeable(seed, 150, m=4)
        p[0] = 0.6 * p[0] + 0.2       # a little worse, which 150 items hardly tell
        rows = rows_of(evidence_of(p, y))
        task = Choice(rows, rows.own, "nll", "probability", None, 3, 0.0, "disagreement", 1.0, 0)
        everything = np.arange(150)
        losses = np.empty((4, 150))
        for train, held in inner_folds(task, everything):
            for k, name in enumerate(SIMPLEST_FIRST):
                losses[k, held] = -np.log(fitted_weights(task, name, train) @ rows.own[:, held])
        gap = losses - losses[losses.mean(1).argmin()]
        first = int(np.argmax(gap.mean(1) <= gap.std(1, ddof=1) / np.sqrt(150)))
        assert simplest(task, everything) == SIMPLEST_FIRST[first]
        lowest_is_not_taken += first != losses.mean(1).argmin()
    assert lowest_is_not_taken


def test_the_row_of_a_report_has_the_error_of_the_choice(tmp_path):
    p, y = exchangeable(1, 200, m=4)
    saved = SavedPredictions(p, np.full(4, 0.25), y, {}, "probability", None)
    ek.create(tmp_path / "run.h5", {"parameters": ek.Field((3,), "f4")}).close()
    save_predictions(tmp_path / "run.h5", "predictions", p, saved.pooled(), saved.weights)
    report = neural.report(tmp_path / "run.h5", select="stacking")
    chosen = neural.select(saved, method="stacking").differences["last"]["nll"]
    row = report.differences["selected"]["nll"]
    assert (row.value, row.low, row.high) == pytest.approx((chosen.value, chosen.low, chosen.high))
