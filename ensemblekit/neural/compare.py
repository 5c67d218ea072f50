"""Is one set of predictions better than another, on the same items?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.items import Scored
from ensemblekit.neural.prediction import RegressionPrediction
from ensemblekit.neural.scores import (
    NAMES,
    Scores,
    binned,
    draws,
    error_exponent,
    given,
    in_unit,
    item_scores,
    paired_share,
    ratio,
    regression_parts,
    resampled,
    spread,
    without_variance,
)


def compare(a: Scored, b: Scored, *, groups: ArrayLike | None = None, n_bins: int = 15, seed: int = 0) -> Scores:
    """The scores of a minus those of b, item by item: pairing removes what is hard for both.

    Below zero a is better in nll, brier and calibration errors, above zero in accuracy. Names, arguments and intervals
    as :func:`scores`.

    Raises InputError where the two are not about the same items in the same order, or as :func:`scores`.
    """
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
    p, q = given(a, groups), given(b, groups)
    if p.p.shape != q.p.shape or not np.array_equal(p.labels, q.labels):
        raise InputError(f"two predictions of the same items in the same order; got {p.p.shape} and {q.p.shape}"
                         + ("" if p.p.shape != q.p.shape else " with other labels"))
    ours, theirs = item_scores(p, seed), item_scores(q, seed)
    found = {name: ratio(p.sums(ours[name] - theirs[name]), p.sizes) for name in ours}
    gap = ours["accuracy"] - theirs["accuracy"]
    found["accuracy"] = paired_share(p.sums(gap > 0), p.sums(gap < 0), p.sizes)
    drawn = draws(p.n, seed)
    left, right = binned(p, n_bins), binned(q, n_bins)
    for name in left:
        value, sample = resampled(p, *left[name], drawn)
        other, other_sample = resampled(q, *right[name], drawn)
        found[name] = spread(value - other, sample - other_sample, p.sizes)
    return Scores({name: found[name] for name in NAMES}, paired=True)
