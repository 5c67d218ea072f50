"""Test items as they are scored: rows of probabilities, labels, and which rows must stay together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.prediction import Predicted, Prediction

Values = torch.Tensor | ArrayLike
"""Numbers: an array, a tensor on any device, a list."""
Scored = Predicted | tuple[Values, Values]
"""What has scores: a prediction with labels, or probabilities and labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """k rows to score (items, or the pixels of items) in `n` independent clusters (items, or groups of them)."""

    p: np.ndarray
    """(k, classes) probabilities."""
    labels: np.ndarray
    """(k,)."""
    cluster: np.ndarray
    """(k,): 0 to n - 1."""
    n: int
    """Clusters: what is resampled."""
    rounding: float
    """Of the type in which the probabilities came."""
    tempered: bool = False
    """Whether each was scaled by a temperature of the others."""

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(n,): values (k,) summed over each cluster."""
        return np.bincount(self.cluster, values, self.n)

    @property
    def sizes(self) -> np.ndarray:
        """(n,): rows of each cluster."""
        return np.bincount(self.cluster, minlength=self.n).astype(float)


def items_of(preds: Predicted | Values, target: Values | None = None, groups: ArrayLike | None = None) -> Items:
    """From a Prediction, or from probabilities (n, classes, ...) with labels (n, ...).

    Arguments:
        groups: (n,) names of what items belong to, a patient or a video: items of a group are resampled together.
            Pixels of one item always are. Labels equal to the prediction's `ignore_index` are left out.

    Raises InputError where there are no labels, shapes do not fit, probabilities are none, labels are out of range,
    or nothing is left to score.
    """
    ignore, tempered = None, False
    if isinstance(preds, Prediction):
        tempered = preds.tempered and target is None        # by labels of its own
        if target is None:
            target = preds.target
        ignore, preds = preds.ignore_index, preds.probabilities
        if target is None:
            raise InputError("these predictions have no labels; predict from a loader of (input, label)")
    p, labels = as_numpy(preds, "preds"), as_numpy(target, "labels")
    if p.ndim < 2 or labels.shape != p.shape[:1] + p.shape[2:] or not len(p):
        raise InputError(f"preds are (n, classes, ...) with labels (n, ...), n > 0; got {p.shape} and {labels.shape}")
    owner = np.arange(len(p))
    if groups is not None:
        names = as_array(groups, "groups", kinds=None)
        if names.shape != (len(p),):
            raise InputError(f"groups are one name an item, shape ({len(p)},); got {names.shape}")
        owner = np.unique(names, return_inverse=True)[1]
    cluster = owner.repeat(labels[0].size)
    rounding = float(np.finfo(p.dtype).eps) if p.dtype.kind == "f" else float(np.finfo(np.float64).eps)
    rows = np.moveaxis(p, 1, -1).reshape(-1, p.shape[1])
    flat = labels.reshape(-1)
    if ignore is not None:
        kept = flat != ignore
        if not kept.any():
            raise InputError(f"every label is ignore_index, {ignore}: nothing is left to score")
        rows, flat, cluster = rows[kept], flat[kept], cluster[kept]
        cluster = np.unique(cluster, return_inverse=True)[1]
    rows, flat = checked(rows, flat)
    return Items(rows, flat, cluster, int(cluster.max()) + 1, rounding, tempered)


def checked(preds: Values, target: Values) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, classes) in float64 and labels (n,), or an InputError that says what is wrong."""
    p, labels = np.asarray(as_numpy(preds, "preds"), np.float64), as_numpy(target, "labels")
    if p.ndim != 2 or labels.shape != p.shape[:1] or not len(p):
        raise InputError(f"preds are (n, classes) with n labels, n > 0; got {p.shape} and {labels.shape}")
    if not np.isfinite(p).all():
        raise InputError(f"preds are probabilities; those of item {int(np.argmin(np.isfinite(p).all(1)))} are not finite")
    if not ((p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-4)):
        raise InputError("preds are probabilities, not below 0 and 1 in sum; apply a softmax to logits first")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= p.shape[1]:
        raise InputError(f"labels are whole numbers 0 to {p.shape[1] - 1}; got {labels.dtype}, "
                         f"{labels.min()} to {labels.max()}")
    return p, labels


def as_numpy(x: object, what: str = "preds and labels") -> np.ndarray:
    """Arrays, tensors on any device, lists."""
    values: np.ndarray = as_array(x, what)
    return values.astype(np.float32) if values.dtype == np.float16 else values
