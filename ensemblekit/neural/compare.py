"""Is one set of predictions better than another, on the same items?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.crossed import crossed_ratio_difference
from ensemblekit.errors import InputError
from ensemblekit.neural.dense import pixels_gained_and_lost
from ensemblekit.neural.intervals import degrees_of_freedom
from ensemblekit.neural.items import Items, Scored
from ensemblekit.neural.prediction import RegressionPrediction
from ensemblekit.neural.scores import (
    NAMES,
    ONE_RUN,
    Score,
    Scores,
    binned_of_runs,
    both,
    draws,
    error_exponent,
    in_unit,
    is_runs,
    over_runs,
    paired_share,
    ratio,
    regression_parts,
    resampled,
    spread,
    sums_of_runs,
    without_variance,
)
from ensemblekit.neural.summed import (
    SCORES,
    Summed,
    calibration_curves,
    cluster_sums,
    item_scores,
    notes_of,
    shape_and_labels,
    summed,
)


def compare(a: Scored, b: Scored, *, groups: ArrayLike | None = None, n_bins: int = 15, seed: int = 0) -> Scores:
    """The scores of a minus those of b, item by item: pairing removes what is hard for both.

    Below zero a is better in nll, brier and calibration errors, above zero in accuracy. Names, arguments and intervals
    as :func:`scores`. Where a or b is a list of predictions of independent runs on these items, the items stay paired and the
    runs are two samples; the interval then holds for other trainings too.

    Raises InputError where the two are not about the same items in the same order, or as :func:`scores`.
    """
    if is_runs(a) or is_runs(b):
        return _of_runs(a if is_runs(a) else [a], b if is_runs(b) else [b], groups, n_bins, seed)
    if isinstance(a, RegressionPrediction) or isinstance(b, RegressionPrediction):
        if not (isinstance(a, RegressionPrediction) and isinstance(b, RegressionPrediction)):
            raise InputError("a prediction of numbers cannot be compared with one of classes")
        exponent = error_exponent(a, b)
        ours, sizes = regression_parts(a, groups, exponent)
        theirs, _ = regression_parts(b, groups, exponent)
        if a.target is None or b.target is None or not np.array_equal(a.target, b.target):
            raise InputError("two predictions of the same items in the same order are needed; their targets differ")
        with np.errstate(invalid="ignore"):     # two densities that exclude what came: infinity less infinity
            gaps = {name: ours[name] - theirs[name] for name in ours}
        return in_unit({name: ratio(gap, sizes) for name, gap in gaps.items()}, exponent, paired=True,
                       notes=without_variance(a, b))
    _same_items(a, b)
    p, q = summed(a, groups, n_bins), summed(b, groups, n_bins)
    if isinstance(p, Items) and isinstance(q, Items):
        differences = _paired(p, item_scores(p, seed), item_scores(q, seed))
    else:
        differences = _paired_maps(p, q, a, b, groups, seed)
    drawn = draws(p.n, seed)
    left, right = calibration_curves(p, n_bins), calibration_curves(q, n_bins)
    for name in left:
        value, sample = resampled(left[name], p.sizes, drawn)
        other, other_sample = resampled(right[name], q.sizes, drawn)
        differences[name] = spread(value - other, sample - other_sample, p.sizes)
    return Scores({name: differences[name] for name in NAMES}, paired=True, notes=notes_of(p))


def mean_differences(a: Scored, b: Scored, groups: ArrayLike | None = None) -> Scores:
    """Accuracy, nll and brier of a minus b alone, which need no resampling."""
    p, q = (summed(x, groups, temperatures=False) for x in (a, b))
    if isinstance(p, Items) and isinstance(q, Items):
        ours, theirs = ({name: score(x.p, x.labels) for name, score in SCORES.items()} for x in (p, q))
        found = _paired(p, ours, theirs)
    else:
        found = _paired_maps(p, q, a, b, groups)
    return Scores({name: found[name] for name in SCORES}, paired=True)


def _paired(p: Items, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, Score]:
    """Differences of the scores of rows, name -> (k,) each."""
    found = {name: ratio(p.sums(ours[name] - theirs[name]), p.sizes) for name in ours}
    gap = ours["accuracy"] - theirs["accuracy"]
    found["accuracy"] = paired_share(p.sums(gap > 0), p.sums(gap < 0), p.sizes)
    return found


def _paired_maps(p: Summed, q: Summed, a: Scored, b: Scored, groups: ArrayLike | None, seed: int = 0) -> dict[str, Score]:
    """Differences of the sums over pixels of each image."""
    if not np.array_equal(p.sizes, q.sizes):
        raise InputError("two predictions of the same items are scored on the same pixels; their ignore_index differ")
    ours, theirs = cluster_sums(p, seed), cluster_sums(q, seed)
    found = {name: ratio(ours[name] - theirs[name], p.sizes) for name in ours}
    found["accuracy"] = paired_share(*pixels_gained_and_lost(a, b, groups), p.sizes)
    return found


def _of_runs(a: Any, b: Any, groups: Any, n_bins: int, seed: int) -> Scores:
    """Mean scores of the runs a minus those of the runs b."""
    notes: tuple[str, ...] = ()
    if len(a) == len(b) == 1:
        one = compare(a[0], b[0], groups=groups, n_bins=n_bins, seed=seed)
        return Scores(one, paired=True, notes=(*one.notes, ONE_RUN))
    numbers = all(isinstance(x, RegressionPrediction) for x in (*a, *b))
    exponent = error_exponent(*a, *b) if numbers else 0
    _same_items(a[0], b[0])
    ours, sizes, items = sums_of_runs(a, groups, seed, exponent, n_bins)
    theirs, _, others = sums_of_runs(b, groups, seed, exponent, n_bins)
    for which, runs in (("a", a), ("b", b)):
        if len(runs) == 1:
            notes += (f"one run of {which}: the luck of its training is not covered",)
    notes += (f"means of {len(a)} and {len(b)} runs, which are two samples; the items are paired",)
    scores = {}
    for name in ours:
        if np.isfinite(ours[name]).all() and np.isfinite(theirs[name]).all():
            scores[name] = both(crossed_ratio_difference(ours[name], theirs[name], sizes, degrees_of_freedom(sizes)))
        else:           # densities that exclude what came
            scores[name] = Score(np.nan, np.nan, np.nan, np.nan, len(sizes))
    if numbers:
        return in_unit(scores, exponent, paired=True, notes=(*notes, *without_variance(*a, *b)))
    drawn = draws(items[0].n, seed)
    left, right = binned_of_runs(items, n_bins, drawn), binned_of_runs(others, n_bins, drawn)
    for name, (values, sample) in left.items():
        other, other_sample = right[name]
        scores[name] = over_runs(spread(float(values.mean() - other.mean()), sample - other_sample, sizes), [values, other])
    return Scores({name: scores[name] for name in NAMES}, paired=True, notes=(*notes, *notes_of(items[0])))


def _same_items(a: Any, b: Any) -> None:
    if isinstance(a, RegressionPrediction) != isinstance(b, RegressionPrediction):
        raise InputError("a prediction of numbers cannot be compared with one of classes")
    if isinstance(a, RegressionPrediction):
        if not np.array_equal(np.asarray(a.target), np.asarray(b.target)):
            raise InputError("two predictions of the same items in the same order are needed; their targets differ")
        return
    (ours, labels), (theirs, others) = shape_and_labels(a), shape_and_labels(b)
    if ours != theirs or not np.array_equal(labels, others):
        raise InputError(f"two predictions of the same items in the same order; got {ours} and {theirs}"
                         + ("" if ours != theirs else " with other labels"))
