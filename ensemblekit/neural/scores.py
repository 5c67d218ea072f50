"""How good are predictions? Errors are over test items: never over pixels of one item, never over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.crossed import CrossedMean, crossed_ratio
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.dense import DenseSums
from ensemblekit.neural.intervals import (
    NORMAL,
    degrees_of_freedom,
    paired_share_interval,
    share_interval,
    standard_error,
    student,
    widening,
)
from ensemblekit.neural.items import Items, Scored, items_of
from ensemblekit.neural.prediction import Prediction, RegressionPrediction
from ensemblekit.neural.result_files import Saved
from ensemblekit.neural.summed import (
    SCORES,
    Summed,
    calibration_curves,
    cluster_sums,
    notes_of,
    shape_and_labels,
    summed,
)
from ensemblekit.results import Result
from ensemblekit.scaling import exponent_of, ldexp

RESAMPLES = 400
NAMES = ("accuracy", "nll", "calibrated_nll", "brier", "ece", "ece_adaptive", "ece_classwise")
RANGES: Mapping[str, tuple[float, float]] = {
    "accuracy": (0.0, 1.0), "nll": (0.0, np.inf), "calibrated_nll": (0.0, np.inf), "brier": (0.0, 2.0)}
RANGES_OF_NUMBERS: Mapping[str, tuple[float, float]] = {"mse": (0.0, np.inf), "coverage": (0.0, 1.0)}
"""What a score can be at all; the NLL of a density has no least."""


@dataclass(frozen=True, slots=True)
class Score(Saved, Result):
    """A score, or a paired difference of scores, with its error over items, and over runs where several were given."""

    value: float
    stderr: float
    low: float
    """Of the 95 % interval."""
    high: float
    n: int
    """Independent items, or groups of items."""
    bias: float = 0.0
    """By how much such a value is too large on average (calibration errors of few items); the interval knows."""
    stderr_items: float = float("nan")
    """The part of `stderr` over items, with these runs: all of it for one run."""
    stderr_runs: float = 0.0
    """The part of `stderr` over independent runs; 0 for one run, whose luck in training is not covered."""

    def __post_init__(self) -> None:
        if self.stderr_items != self.stderr_items and not self.stderr_runs:
            object.__setattr__(self, "stderr_items", self.stderr)

    @property
    def significant(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    __repr__ = __str__


class Scores(dict[str, Score], Saved):
    """Name -> :class:`Score`. Prints as a table; `paired` where they are differences, with * where zero lies outside.

    `notes`: what is to be known of the numbers.
    """

    def __init__(self, scores: Mapping[str, Score], *, paired: bool = False, notes: tuple[str, ...] = ()):
        super().__init__(scores)
        self.paired = paired
        self.notes = notes

    def __str__(self) -> str:
        if not self:
            return "no scores"
        first = next(iter(self.values()))
        about = f"a - b, paired over {first.n} items or groups" if self.paired else f"{first.n} items or groups"
        width = max(map(len, self)) + 2
        rows = [(name, f"{s.value:.4g}", f"{s.low:.4g}", f"{s.high:.4g}", "*" if self.paired and s.significant else "")
                for name, s in self.items()]
        lines = [f"{'':{width}}{'value':>12}{'95 % low':>12}{'high':>12}   {about}",
                 *(f"{name:{width}}{value:>12}{low:>12}{high:>12} {star}".rstrip() for name, value, low, high, star in rows),
                 *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines)

    __repr__ = __str__


def scores(prediction: Scored, *, groups: ArrayLike | None = None, n_bins: int = 15, seed: int = 0) -> Scores:
    """Scores of a prediction with labels, each with a 95 % interval over items.

    Classes: accuracy; nll (nats an item); calibrated_nll, the same after temperature scaling fitted on the other half
    of the items (five random halvings; Ashukha et al. 2020), or just the nll where the prediction is already
    ``cross_fit``; brier (summed over classes); ece, ece_adaptive and
    ece_classwise, whose intervals come from resampling items and allow for their bias. Regression: mse, nll (of the
    Gaussian of mean and variance) and coverage of its 95 % interval, with a note where answers have no variance.

    Shares (accuracy, coverage) have intervals by Clopper and Pearson. Few groups, or groups of uneven sizes, widen them all.

    Arguments:
        prediction: of ``predict``, or a tuple (probabilities, labels); or a list of such, one an independent training on the
            same items: the scores are then means over the runs, and intervals hold for other trainings too.
        groups: (n,) what each item belongs to, where items are not independent: patients, videos.

    Raises InputError without labels, with labels out of range, or with fewer than two items or groups.
    """
    if is_runs(prediction):
        return _of_runs(prediction, groups, n_bins, seed)
    if isinstance(prediction, RegressionPrediction):
        exponent = error_exponent(prediction)
        parts, sizes = regression_parts(prediction, groups, exponent)
        return in_unit({name: share(sums, sizes) if name == "coverage" else within(name, ratio(sums, sizes), RANGES_OF_NUMBERS)
                        for name, sums in parts.items()}, exponent, notes=without_variance(prediction))
    return scores_of(summed(prediction, groups, n_bins), n_bins, seed)


def scores_of(items: Summed, n_bins: int = 15, seed: int = 0) -> Scores:
    """Scores of rows that stay together in clusters, or of sums over the pixels of images."""
    found = {name: mean_of(name, sums, items.sizes) for name, sums in cluster_sums(items, seed).items()}
    drawn = draws(items.n, seed)
    for name, curves in calibration_curves(items, n_bins).items():
        value, sample = resampled(curves, items.sizes, drawn)
        found[name] = spread(value, sample, items.sizes, positive=True)
    return Scores({name: found[name] for name in NAMES}, notes=notes_of(items))


ONE_RUN = "one run: the intervals are over items alone; the luck of the training is not covered"


def is_runs(prediction: Any) -> bool:
    """Whether these are predictions of several runs in a list, and not one of them."""
    single = (Prediction, RegressionPrediction)
    return (isinstance(prediction, list) and bool(prediction) and all(isinstance(x, (*single, tuple)) for x in prediction)) or (
        isinstance(prediction, tuple) and bool(prediction) and all(isinstance(x, single) for x in prediction))


def sums_of_runs(runs: Any, groups: Any, seed: int, exponent: int | None = None, n_bins: int = 15
                 ) -> tuple[dict[str, np.ndarray], np.ndarray, list[Summed]]:
    """Name -> sums (R, n) over each item or group, the sizes (n,) of those, and the items of each run (none for numbers).

    Raises InputError where runs are not about the same items in the same order.
    """
    if all(isinstance(x, RegressionPrediction) for x in runs):
        e = error_exponent(*runs) if exponent is None else exponent
        parts = [regression_parts(x, groups, e) for x in runs]
        for k, x in enumerate(runs):
            if not np.array_equal(x.target, runs[0].target):
                raise InputError(f"runs are scored on the same items in the same order; the targets of run {k} differ "
                                 f"from those "
                                 "of run 0")
        return {name: np.array([part[name] for part, _ in parts]) for name in parts[0][0]}, parts[0][1], []
    if any(isinstance(x, RegressionPrediction) for x in runs):
        raise InputError("a prediction of numbers cannot be scored with one of classes")
    shapes = [shape_and_labels(x) for x in runs]
    for k, (shape, labels) in enumerate(shapes):
        if shape != shapes[0][0] or not np.array_equal(labels, shapes[0][1]):
            raise InputError(f"runs are scored on the same items in the same order; run {k} has {shape}, run 0 "
                             f"{shapes[0][0]}" + ("" if shape != shapes[0][0] else " with other labels"))
    items = [summed(x, groups, n_bins) for x in runs]
    rows = [cluster_sums(one, seed) for one in items]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, items[0].sizes, items


def _of_runs(runs: Any, groups: Any, n_bins: int, seed: int) -> Scores:
    """Mean scores of independent runs on the same items, with the error of both samples."""
    if len(runs) == 1:
        one = scores(runs[0], groups=groups, n_bins=n_bins, seed=seed)
        return Scores(one, notes=(*one.notes, ONE_RUN))
    numbers = all(isinstance(x, RegressionPrediction) for x in runs)
    exponent = error_exponent(*runs) if numbers else 0
    sums, sizes, items = sums_of_runs(runs, groups, seed, exponent, n_bins)
    _check_clusters(len(sizes))
    mean = f"means of {len(runs)} runs; the intervals are over runs and items"
    every = {name: within(name, both(crossed_ratio(x, sizes, degrees_of_freedom(sizes))),
                          RANGES_OF_NUMBERS if numbers else RANGES) for name, x in sums.items() if np.isfinite(x).all()}
    every.update({name: Score(float(x.sum() / sizes.sum() / len(x)), np.nan, np.nan, np.nan, len(sizes))
                  for name, x in sums.items() if name not in every})
    if numbers:
        return in_unit(every, exponent, notes=(mean, *without_variance(*runs)))
    drawn = draws(items[0].n, seed)
    for name, (values, sample) in binned_of_runs(items, n_bins, drawn).items():
        every[name] = over_runs(spread(float(values.mean()), sample, sizes, positive=True), [values])
    return Scores({name: every[name] for name in NAMES}, notes=(mean, *notes_of(items[0])))


def binned_of_runs(items: list[Summed], n_bins: int, drawn: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Calibration errors (R,) of each run, and the mean over runs of each resample of clusters."""
    errors: dict[str, list[tuple[float, np.ndarray]]] = {}
    for one in items:
        for name, curves in calibration_curves(one, n_bins).items():
            errors.setdefault(name, []).append(resampled(curves, one.sizes, drawn))
    return {name: (np.array([value for value, _ in x]), np.mean([sample for _, sample in x], axis=0)) for name,
            x in errors.items()}


def both(mean: CrossedMean) -> Score:
    """The score that a mean over runs and items is."""
    low, high = mean.interval
    return Score(mean.mean, mean.stderr, low, high, mean.n_items, 0.0, mean.stderr_items, mean.stderr_runs)


def over_runs(score: Score, runs: list[np.ndarray]) -> Score:
    """A score over items, widened by the scatter of the values (R,) of one or two samples of runs."""
    from scipy.special import stdtrit

    parts = [(float(x.var(ddof=1)) / len(x), len(x) - 1) for x in runs if len(x) > 1]
    variance = sum(v for v, _ in parts)
    if not variance > 0:
        return score
    half = float(stdtrit(variance**2 / sum(v**2 / f for v, f in parts), 0.975)) * float(np.sqrt(variance))
    return Score(score.value, float(np.hypot(score.stderr, np.sqrt(variance))),
                 score.value - float(np.hypot(score.value - score.low, half)),
                 score.value + float(np.hypot(score.high - score.value, half)), score.n, score.bias, score.stderr,
                 float(np.sqrt(variance)))


def within(name: str, score: Score, ranges: Mapping[str, tuple[float, float]] | None = None) -> Score:
    """The interval cut to what the score can be: with few errors Student's, which is symmetric, reaches past it."""
    least, most = (RANGES if ranges is None else ranges).get(name, (-np.inf, np.inf))
    return replace(score, low=max(score.low, min(least, score.value)), high=min(score.high, max(most, score.value)))


def given(prediction: Scored, groups: ArrayLike | None = None) -> Items:
    """Items of a Prediction or of a tuple (probabilities, labels)."""
    preds, target = prediction if isinstance(prediction, tuple) else (prediction, None)
    return items_of(preds, target, groups)


def mean_scores(prediction: Scored, groups: ArrayLike | None = None) -> Scores:
    """Accuracy, nll and brier alone, which need no resampling."""
    items = summed(prediction, groups, temperatures=False)
    sums = items.score_sums() if isinstance(items, DenseSums) else {
        name: items.sums(score(items.p, items.labels)) for name, score in SCORES.items()}
    return Scores({name: mean_of(name, sums[name], items.sizes) for name in SCORES})


def mean_of(name: str, sums: np.ndarray, sizes: np.ndarray) -> Score:
    """A score that is a mean over rows, from its sums (n,) over clusters, with its interval."""
    return share(sums, sizes) if name == "accuracy" else within(name, ratio(sums, sizes))


def without_variance(*predictions: RegressionPrediction) -> tuple[str, ...]:
    """A note where answers come without a variance: such a density excludes every error, and its NLL is infinite."""
    bad = [np.asarray(one.std, np.float64) <= 0 for one in predictions]
    worst = max(bad, key=np.count_nonzero)
    if not worst.any():
        return ()
    count = "no answer has a variance" if worst.all() else f"{np.count_nonzero(worst)} of {worst.size} answers have no variance"
    return (f"nll and coverage: {count}, which excludes every error. Give them one, with a model that answers (mean, variance) "
            "or a distribution, or with two members that differ",)


def errors_of(prediction: RegressionPrediction) -> np.ndarray:
    """(n, ...): answers less targets. Raises InputError where there are no targets, or they do not fit or are not finite."""
    if prediction.target is None:
        raise InputError("these predictions have no targets; predict from a loader of (input, target)")
    mean, target = (as_array(x, what, dtype=np.float64) for x, what in ((prediction.mean, "answers"),
                                                                         (prediction.target, "targets")))
    if mean.shape != target.shape or not len(mean):
        raise InputError(f"targets have the shape of the answers, n > 0; got {target.shape} and {mean.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(target).all()):
        raise InputError("answers and targets must be finite numbers")
    return mean - target


def error_exponent(*predictions: RegressionPrediction) -> int:
    """Power of two to divide all errors by, so that their squares are numbers."""
    return exponent_of(max(float(abs(errors_of(one)).max(initial=0.0)) for one in predictions))


def regression_parts(prediction: RegressionPrediction, groups: ArrayLike | None = None,
                     exponent: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Name -> sums (n,) over each item or group, the squared errors over 4**exponent, and the numbers in each."""
    gap = errors_of(prediction)
    std = as_array(prediction.std, "std", dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        far = np.where(gap == 0, 0.0, abs(gap) / std)       # a variance of 0 excludes all errors
        std = np.where(std > 0, std, np.finfo(np.float64).tiny ** 0.5)
        rows = {"mse": ldexp(gap, -exponent) ** 2, "nll": 0.5 * np.log(2 * np.pi) + np.log(std) + 0.5 * far**2,
                "coverage": (far <= 1.959963984540054).astype(float)}
    owner = np.arange(len(gap))
    if groups is not None:
        names = as_array(groups, "groups", kinds=None)
        if names.shape != (len(gap),):
            raise InputError(f"groups are one name an item, shape ({len(gap)},); got {names.shape}")
        owner = np.unique(names, return_inverse=True)[1]
    n, width = int(owner.max()) + 1, gap[0].size
    sums = {name: np.bincount(owner, x.reshape(len(gap), -1).sum(1), n) for name, x in rows.items()}
    return sums, np.bincount(owner, minlength=n).astype(float) * width


def in_unit(by_name: Mapping[str, Score], exponent: int, *, paired: bool = False, notes: tuple[str, ...] = ()) -> Scores:
    """Scores of numbers, the mean squared error times 4**exponent; a note where that is beyond the range of float64."""
    mse, e = by_name["mse"], 2 * exponent
    full = Score(ldexp(mse.value, e), ldexp(mse.stderr, e), ldexp(mse.low, e), ldexp(mse.high, e), mse.n, ldexp(mse.bias, e),
                 ldexp(mse.stderr_items, e), ldexp(mse.stderr_runs, e))
    beyond = mse.value != 0 and not np.finfo(np.float64).tiny <= abs(full.value) < np.inf
    note = (f"the mean squared error, {mse.value:.3g} * 2**{e}, is beyond the range of float64 (1e-308 ... 1e308) and stands "
            "as infinity, 0 or with few digits; the other scores are right")
    return Scores({**by_name, "mse": full}, paired=paired, notes=(*notes, note) if beyond else notes)


def ratio(sums: np.ndarray, sizes: np.ndarray) -> Score:
    """Sum over sum of independent clusters, with its jackknife error and Student's t of as many as their sizes leave.

    With one row a cluster it is the mean and its standard error.
    """
    _check_clusters(len(sums))
    value = float(sums.sum() / sizes.sum())
    if not np.isfinite(value):      # a density at an error that a variance of 0 excludes
        return Score(value, np.nan, np.nan, np.nan, len(sums))
    stderr = standard_error(sums, sizes)
    half = student(sizes) * stderr
    return Score(value, stderr, value - half, value + half, len(sums))


def share(sums: np.ndarray, sizes: np.ndarray) -> Score:
    """Share of rows in independent clusters, such as the accuracy; see :func:`share_interval`."""
    score = ratio(sums, sizes)
    low, high = share_interval(score.value, score.stderr, sizes)
    return replace(score, low=low, high=high)


def paired_share(gained: np.ndarray, lost: np.ndarray, sizes: np.ndarray) -> Score:
    """Difference of two shares of the same rows, from the numbers of rows (n,) that only one of them holds, and the other."""
    score = ratio(gained - lost, sizes)
    total = float(sizes.sum())
    low, high = paired_share_interval(float(gained.sum()) / total, float(lost.sum()) / total, score.stderr, sizes)
    return replace(score, low=low, high=high)


def _check_clusters(n: int) -> None:
    if n < 2:
        raise InputError(f"an error over items needs two items or groups of items, or more; got {n}")


@lru_cache(maxsize=1)
def draws(n: int, seed: int) -> np.ndarray:
    """(RESAMPLES, n): how often each cluster is drawn; the same for every model, so that differences are paired."""
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    drawn += np.arange(RESAMPLES)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(float)


def resampled(curves: Iterable[np.ndarray], sizes: np.ndarray, drawn: np.ndarray) -> tuple[float, np.ndarray]:
    """Calibration error (l1) and that of each resample of clusters of `sizes` rows, averaged over the curves (n, n_bins)."""
    value, sample, count = 0.0, np.zeros(len(drawn)), 0
    total, rows = drawn @ sizes, float(sizes.sum())
    for parts in curves:
        used = parts.any(axis=0)
        value += float(abs(parts.sum(0)).sum()) / rows
        sample += abs(drawn @ parts[:, used]).sum(1) / total
        count += 1
    return value / count, sample / count


def spread(value: float, sample: np.ndarray, sizes: np.ndarray, *, positive: bool = False) -> Score:
    """An interval from resamples of clusters, of `sizes` rows (n,): a normal one, wider where clusters are few.

    Resamples of a sum of absolute values lie too high by its bias, and so may the value: by nothing where every bin is clearly
    off, by up to twice as much where none is. The interval takes both in.
    """
    n = len(sizes)
    _check_clusters(n)
    bias, stderr = float(sample.mean()) - value, float(np.std(sample, ddof=1))
    half = NORMAL * widening(sizes) * stderr
    low, high = min(value, value - 2 * bias) - half, max(value, value - 2 * bias) + half
    if positive:
        low, high = max(low, 0.0), min(max(high, 0.0), 1.0)
    return Score(value, stderr, min(low, value), max(high, value), n, bias)
