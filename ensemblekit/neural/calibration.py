"""Does a model that says 90 % err one time in ten?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError

Edges = Literal["right", "left"]


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Items binned by the probability of the model's first choice."""

    edges: np.ndarray
    """(n_bins + 1,)."""
    counts: np.ndarray
    """(n_bins,)."""
    confidence: np.ndarray
    """(n_bins,): mean probability of the first choice; NaN in empty bins."""
    accuracy: np.ndarray
    """(n_bins,): share of first choices that were right; NaN in empty bins."""


def reliability(preds: Any, target: Any, n_bins: int = 15, edges: Edges = "right") -> Reliability:
    """Accuracy against confidence in bins of equal width.

    Arguments:
        preds: (n, classes) probabilities.
        target: (n,) labels.
        edges: "right": bins (lo, hi], as Guo et al. 2017; "left": [lo, hi), as torchmetrics, with 1 in the last.

    Raises InputError where shapes do not fit, probabilities are none, or labels are out of range.
    """
    p, labels = checked(preds, target)
    if n_bins < 1:
        raise InputError(f"n_bins is 1 or more; got {n_bins!r}")
    if edges not in ("right", "left"):
        raise InputError(f'edges is "right" or "left"; got {edges!r}')
    bounds = np.linspace(0, 1, n_bins + 1)
    first = p.max(1)
    right = p.argmax(1) == labels
    where = bin_of(first, n_bins, edges)
    counts = np.bincount(where, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        return Reliability(bounds, counts, np.bincount(where, first, n_bins) / counts,
                           np.bincount(where, right, n_bins) / counts)


def bin_of(confidence: np.ndarray, n_bins: int, edges: Edges = "right") -> np.ndarray:
    """The bin each confidence falls into."""
    bounds = np.linspace(0, 1, n_bins + 1)
    side: Literal["left", "right"] = "left" if edges == "right" else "right"
    return np.clip(np.searchsorted(bounds, confidence, side=side) - 1, 0, n_bins - 1)


def calibration_error(preds: Any, target: Any, n_bins: int = 15, norm: Literal["l1", "l2", "max"] = "l1",
                      edges: Edges = "right") -> float:
    """Expected calibration error: |accuracy - confidence| over bins, weighted by their share of the items.

    norm: "l1" the mean (ECE), "l2" the root mean square, "max" the largest. Arguments as :func:`reliability`.
    """
    if norm not in ("l1", "l2", "max"):
        raise InputError(f'norm is "l1", "l2" or "max"; got {norm!r}')
    bins = reliability(preds, target, n_bins, edges)
    full = bins.counts > 0
    gap = np.abs(bins.accuracy - bins.confidence)[full]
    share = bins.counts[full] / bins.counts.sum()
    if norm == "max":
        return float(gap.max())
    return float(share @ gap) if norm == "l1" else float(np.sqrt(share @ gap**2))


def checked(preds: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, classes) in float64 and labels (n,), or an InputError that says what is wrong."""
    p, labels = np.asarray(preds, np.float64), np.asarray(target)
    if p.ndim != 2 or labels.shape != p.shape[:1] or not len(p):
        raise InputError(f"preds are (n, classes) with n labels, n > 0; got {p.shape} and {labels.shape}")
    if not ((p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-4)):
        raise InputError("preds are probabilities, not below 0 and 1 in sum; apply a softmax to logits first")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= p.shape[1]:
        raise InputError(f"labels are whole numbers 0 to {p.shape[1] - 1}; got {labels.dtype}, "
                         f"{labels.min()} to {labels.max()}")
    return p, labels
