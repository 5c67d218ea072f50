"""How good are predictions, and is one set better than another? Items are independent; errors are over items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import reduce
from ensemblekit.errors import InputError
from ensemblekit.neural.calibration import bin_of, calibration_error, checked
from ensemblekit.neural.ensemble import Prediction

RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Comparison:
    """A score, or a paired difference of scores, with its error over items."""

    value: float
    stderr: float
    low: float
    """Of the 95 % interval."""
    high: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def scores(prediction: Prediction, *, n_bins: int = 15, seed: int = 0) -> dict[str, Comparison]:
    """Accuracy, NLL (nats an item), Brier score and ECE with 95 % intervals; of ECE by resampling items."""
    p, labels = _of(prediction)
    found = {name: _mean(score(p, labels)) for name, score in SCORES.items()}
    found["ece"] = _spread(calibration_error(p, labels, n_bins), _resampled(p, labels, n_bins, seed), len(p))
    return found


def compare(a: Prediction, b: Prediction, *, n_bins: int = 15, seed: int = 0) -> dict[str, Comparison]:
    """The scores of a minus those of b on the same items: pairing removes what is hard for both.

    Raises InputError where the two are not about the same items.
    """
    p, labels = _of(a)
    q, others = _of(b)
    if p.shape != q.shape or not np.array_equal(labels, others):
        raise InputError(f"two predictions of the same items in the same order; got {p.shape} and {q.shape}"
                         + ("" if p.shape != q.shape else " with other labels"))
    found = {name: _mean(score(p, labels) - score(q, labels)) for name, score in SCORES.items()}
    resampled = _resampled(p, labels, n_bins, seed) - _resampled(q, labels, n_bins, seed)
    difference = calibration_error(p, labels, n_bins) - calibration_error(q, labels, n_bins)
    found["ece"] = _spread(difference, resampled, len(p))
    return found


def _correct(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (p.argmax(1) == labels).astype(float)


def _nll(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(p[np.arange(len(p)), labels], np.finfo(float).tiny))


def _brier(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return ((p - np.eye(p.shape[1])[labels]) ** 2).sum(1)


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"accuracy": _correct, "nll": _nll, "brier": _brier}
"""Score of each item, (n,), from probabilities and labels."""


def _of(prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    if prediction.target is None:
        raise InputError("these predictions have no labels; predict from a loader of (input, label)")
    return checked(prediction.probabilities, prediction.target)


def _mean(items: np.ndarray) -> Comparison:
    from scipy.special import stdtrit

    n = len(items)
    if n < 2:
        raise InputError("an error over items needs two items or more")
    found = reduce(items, Moments())
    value, stderr = float(found.mean), float(np.sqrt(found.variance / n))
    half = float(stdtrit(n - 1, 0.975)) * stderr
    return Comparison(value, stderr, value - half, value + half, n)


def _resampled(p: np.ndarray, labels: np.ndarray, n_bins: int, seed: int) -> np.ndarray:
    """(RESAMPLES,): ECE of items drawn with replacement, the same items for every model that has the seed."""
    n = len(p)
    gaps = np.zeros((n, n_bins))        # an item's part in |accuracy - confidence| of its bin, times n
    first = p.max(1)
    gaps[np.arange(n), bin_of(first, n_bins)] = (p.argmax(1) == labels) - first
    times_drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return np.abs(times_drawn @ gaps).sum(1) / n


def _spread(value: float, resampled: np.ndarray, n: int) -> Comparison:
    """An interval about the value from the resamples' spread (their mean is biased for ECE, the spread is not)."""
    stderr = float(np.std(resampled, ddof=1))
    return Comparison(value, stderr, value - 1.96 * stderr, value + 1.96 * stderr, n)
