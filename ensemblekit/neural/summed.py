"""What scores are made of: rows of items, or sums over the pixels of images, as sums over each independent cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.calibration import adaptive_bins, bin_of
from ensemblekit.neural.dense import NOTE as FINE_BINS
from ensemblekit.neural.dense import DenseSums, dense_of, is_dense, maps_of
from ensemblekit.neural.items import Items, Scored, items_of
from ensemblekit.neural.temperature import scaled_nll

Summed = Items | DenseSums
"""What is scored: rows in clusters, or sums over the pixels of each image."""


def summed(prediction: Scored, groups: ArrayLike | None = None, n_bins: int = 15, *, temperatures: bool = True) -> Summed:
    """Items of predictions; of maps one row of sums an image, from one look at its pixels."""
    preds, target = prediction if isinstance(prediction, tuple) else (prediction, None)
    if is_dense(preds):
        return dense_of(preds, target, groups, n_bins, temperatures=temperatures)
    return items_of(preds, target, groups)


def shape_and_labels(prediction: Scored) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape of the probabilities that are scored, and their labels."""
    preds, target = prediction if isinstance(prediction, tuple) else (prediction, None)
    if is_dense(preds):
        p, labels, _, _ = maps_of(preds, target)
        return p.shape, labels
    items = items_of(preds, target)
    return items.p.shape, items.labels


def notes_of(items: Summed) -> tuple[str, ...]:
    """What is to be known of scores of such items."""
    return (FINE_BINS,) if isinstance(items, DenseSums) else ()


def cluster_sums(items: Summed, seed: int = 0) -> dict[str, np.ndarray]:
    """Name -> sums (n,) over each cluster of the scores that are means over rows."""
    if isinstance(items, DenseSums):
        return items.score_sums(seed)
    return {name: items.sums(values) for name, values in item_scores(items, seed).items()}


def calibration_curves(items: Summed, n_bins: int) -> dict[str, Iterator[np.ndarray]]:
    """Calibration error -> for each of its curves the sums (n, n_bins) over each cluster of right answer less confidence."""
    if isinstance(items, DenseSums):
        return items.calibration_curves()
    return {name: _curves(items, *parts) for name, parts in binned(items, n_bins).items()}


def _curves(items: Items, where: np.ndarray, gap: np.ndarray, n_bins: int) -> Iterator[np.ndarray]:
    for c in range(gap.shape[1]):
        yield np.bincount(items.cluster * n_bins + where[:, c], gap[:, c], items.n * n_bins).reshape(items.n, n_bins)


def item_scores(items: Items, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores that are means over items, (k,) of each row."""
    found = {name: score(items.p, items.labels) for name, score in SCORES.items()}
    return {**found, "calibrated_nll": found["nll"] if items.tempered else scaled_nll(items, seed=seed)}


def _correct(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (p.argmax(1) == labels).astype(float)


def _nll(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(p[np.arange(len(p)), labels], np.finfo(float).tiny))


def _brier(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    own = p[np.arange(len(p)), labels]
    return np.einsum("ij,ij->i", p, p) - 2 * own + 1


SCORES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _correct, "nll": _nll, "brier": _brier}
"""Score of each row, (k,), from probabilities and labels."""


def binned(items: Items, n_bins: int) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Calibration errors as bin (k, c), gap (k, c) and number of bins of each of c curves."""
    if not isinstance(n_bins, int | np.integer) or n_bins < 1:
        raise InputError(f"n_bins is a whole number of 1 or more; got {n_bins!r}")
    first = items.p.max(1)
    gap = ((items.p.argmax(1) == items.labels) - first)[:, None]
    every = (items.labels[:, None] == np.arange(items.p.shape[1])) - items.p
    return {"ece": (bin_of(first, n_bins, "right", items.rounding)[:, None], gap, n_bins),
            "ece_adaptive": (adaptive_bins(first, n_bins)[:, None], gap, n_bins),
            "ece_classwise": (bin_of(items.p, n_bins, "right", items.rounding), every, n_bins)}
