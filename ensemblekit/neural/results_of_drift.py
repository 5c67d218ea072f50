"""One model under one condition, as sums by item: what means over conditions and paired differences are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.evidence import cluster_of
from ensemblekit.neural.prediction import Predicted, Prediction, RegressionPrediction
from ensemblekit.neural.scores import (
    RANGES,
    RANGES_OF_NUMBERS,
    Scores,
    draws,
    in_unit,
    mean_of,
    ratio,
    regression_parts,
    resampled,
    spread,
    within,
)
from ensemblekit.neural.summed import calibration_curves, cluster_sums, summed
from ensemblekit.neural.temperature import TemperatureScaler, fold_of, safe_log, scaled


@dataclass(frozen=True, slots=True, eq=False)
class Temperatures:
    """Of the clean items: each half's, and the half in which an item is."""

    of_fold: np.ndarray
    """(2,): fitted on the items of the other half."""
    fold: np.ndarray
    """(n,): 0 or 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Scores of one model on the items as one corruption and severity leaves them, or the mean over corruptions."""

    sums: dict[str, np.ndarray]
    """Score that is a mean over rows -> (n,) sums over each item or group."""
    sizes: np.ndarray
    """(n,)."""
    errors: dict[str, tuple[float, np.ndarray]]
    """Calibration error -> its value and that of each resample of items."""
    exponent: int | None = None
    """Of numbers: squared errors are over 4**exponent. None for classes."""

    def scores(self) -> Scores:
        """With intervals over items."""
        if self.exponent is not None:
            return in_unit({name: within(name, ratio(x, self.sizes), RANGES_OF_NUMBERS) for name, x in self.sums.items()},
                           self.exponent)
        found = {name: mean_of(name, x, self.sizes) if name in RANGES else within("nll", ratio(x, self.sizes))
                 for name, x in self.sums.items()}
        found |= {name: spread(value, sample, self.sizes, positive=True) for name, (value, sample) in self.errors.items()}
        return Scores(found)


def condition_of(answer: Predicted, groups: ArrayLike | None, n_bins: int, seed: int, heat: Temperatures | None,
                 exponent: int, same: bool) -> Condition:
    """Sums and calibration errors of a prediction; at the clean temperature too, by `fold` where the items are the `same`."""
    if answer.target is None:
        raise InputError("drift is about scores: the loader gives no labels")
    if isinstance(answer, RegressionPrediction):
        sums, sizes = regression_parts(answer, groups, exponent)
        return Condition(sums, sizes, {}, exponent)
    items = summed(answer, groups, n_bins, temperatures=False) if answer.probabilities.ndim > 2 else summed(answer, groups)
    drawn = draws(items.n, seed)
    sums = cluster_sums(items, seed)
    errors = {name: resampled(curves, items.sizes, drawn) for name, curves in calibration_curves(items, n_bins).items()}
    if heat is not None:
        cooled = summed(_scaled(answer, heat, same), groups, n_bins, temperatures=False)
        sums["nll_clean_t"] = cluster_sums(cooled, seed)["nll"]
        errors["ece_clean_t"] = resampled(calibration_curves(cooled, n_bins)["ece"], cooled.sizes, drawn)
    return Condition(sums, items.sizes, errors)


def temperatures_of(answer: Predicted, groups: ArrayLike | None, seed: int) -> Temperatures | None:
    """Temperatures of two halves of the clean items, groups kept together; None for numbers and for too few items."""
    if not isinstance(answer, Prediction):
        return None
    if answer.target is None:
        raise InputError("drift is about scores: the loader gives no labels")
    cluster = cluster_of(groups, len(answer))
    if cluster.max() < 1:
        raise InputError(f"an error over items needs two items or groups of items, or more; got {int(cluster.max()) + 1}")
    fold = fold_of(int(cluster.max()) + 1, 2, seed)[cluster]
    halves = [TemperatureScaler().fit(_part(answer, fold != k)).temperature for k in (0, 1)]
    return Temperatures(np.array(halves), fold)


def mean_of_conditions(found: Sequence[Condition]) -> Condition:
    """Each item's scores averaged over conditions of the same items."""
    one = found[0]
    return Condition({name: np.mean([x.sums[name] for x in found], axis=0) for name in one.sums}, one.sizes,
                     {name: (float(np.mean([x.errors[name][0] for x in found])),
                             np.mean([x.errors[name][1] for x in found], axis=0)) for name in one.errors}, one.exponent)


def difference(a: Condition, b: Condition) -> Scores:
    """a minus b, paired by item."""
    with np.errstate(invalid="ignore"):
        found = {name: ratio(a.sums[name] - b.sums[name], a.sizes) for name in a.sums}
    if a.exponent is not None:
        return in_unit(found, a.exponent, paired=True)
    for name, (value, sample) in a.errors.items():
        other, others = b.errors[name]
        found[name] = spread(value - other, sample - others, a.sizes)
    return Scores(found, paired=True)


def _scaled(answer: Prediction, heat: Temperatures, same: bool) -> Prediction:
    """At the temperature of the half of the clean items that an item is not in; other items at the mean of both."""
    if same:
        t = heat.of_fold[heat.fold]
    else:
        t = np.full(len(answer), np.exp(np.mean(np.log(heat.of_fold))))
    logs = safe_log(answer.probabilities) / t.reshape(-1, *(1,) * (answer.probabilities.ndim - 1))
    return replace(answer, probabilities=scaled(logs, 1.0).astype(answer.probabilities.dtype))


def _part(answer: Prediction, chosen: np.ndarray) -> Prediction:
    return replace(answer, probabilities=answer.probabilities[chosen], target=np.asarray(answer.target)[chosen],
                   aleatoric=answer.aleatoric[chosen], disagreement=answer.disagreement[chosen], variation_ratio=None,
                   index=None)
