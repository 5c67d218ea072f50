"""A scale and a shift of each class's log-probability, applied after pooling (Guo et al. 2017)."""

from __future__ import annotations

from dataclasses import replace
from typing import Self, overload

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.evidence import cluster_of
from ensemblekit.neural.items import Items, Values, as_numpy, items_of
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.temperature import fold_of, scaled
from ensemblekit.neural.uncertainty import entropy_of

TINY = 1e-12


class VectorScaler:
    """p -> softmax(a ∘ log p + b) with the a and b (classes,) that make the labels of the fitted items most likely.

    Unlike a temperature, it may change an item's first choice. `prior`: weight of a Gaussian prior of unit variance about
    (1, 0), in items; without it classes that no item shows would get a shift without end. For an ensemble fit on its
    *pooled* predictions.
    """

    def __init__(self, prior: float = 1.0):
        if not (np.isfinite(prior) and prior >= 0):
            raise InputError(f"a prior is a number of items, 0 or more; got {prior!r}")
        self.prior = prior
        self.scale: np.ndarray = np.ones(0)
        """a, (classes,)."""
        self.shift: np.ndarray = np.zeros(0)
        """b, (classes,)."""
        self.fitted = False

    def fit(self, preds: Prediction | Values, target: Values | None = None) -> Self:
        """Find a and b on held-out items: a Prediction with labels, or probabilities (n, classes, ...) with target (n, ...)."""
        items = items_of(preds, target)
        self.scale, self.shift = _best(items, np.ones(len(items.labels), bool), self.prior)
        self.fitted = True
        return self

    @overload
    def transform(self, preds: Prediction) -> Prediction: ...
    @overload
    def transform(self, preds: Values) -> np.ndarray: ...
    def transform(self, preds: Prediction | Values) -> Prediction | np.ndarray:
        """Scaled probabilities: a Prediction where one came, else an array like `preds`."""
        if not self.fitted:
            raise InputError("fit a scale and a shift first, on items that are not those to be scaled")
        if isinstance(preds, Prediction):
            return _with(preds, _moved(preds.probabilities, self.scale, self.shift))
        return _moved(as_numpy(preds, "preds"), self.scale, self.shift)

    def cross_fit(self, prediction: Prediction, *, folds: int = 2, groups: ArrayLike | None = None,
                  seed: int = 0) -> Prediction:
        """Each item scaled by what the other folds ask for, so that no label is used on its own item.

        `scale` and `shift` become the means of the folds'. Raises InputError with fewer items or groups than folds.
        """
        items = items_of(prediction, groups=groups)
        owner = cluster_of(groups, len(prediction))
        fold = fold_of(int(owner.max()) + 1, folds, seed)
        target = np.asarray(prediction.target)
        kept = np.ones(target.shape, bool) if prediction.ignore_index is None else target != prediction.ignore_index
        rows_fold = np.broadcast_to(fold[owner].reshape(-1, *[1] * (target.ndim - 1)), target.shape)[kept]
        out = np.empty(prediction.probabilities.shape)
        fits = []
        for f in range(folds):
            others = rows_fold != f
            if not others.any():
                raise InputError("a fold holds all the labels; take fewer folds or more items")
            fits.append(_best(items, others, self.prior))
            inside = fold[owner] == f
            out[inside] = _moved(prediction.probabilities[inside], *fits[-1])
        self.scale, self.shift = (np.mean(x, axis=0) for x in zip(*fits, strict=True))
        self.fitted = True
        return replace(_with(prediction, out), tempered=True)


def _best(items: Items, kept: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) at the least of the mean NLL of some rows, plus the prior's share; convex."""
    from scipy.optimize import minimize

    logs, labels = np.log(np.maximum(items.p[kept], TINY)), items.labels[kept]
    n, classes = logs.shape
    strength = prior / len(np.unique(items.cluster[kept]))
    at = np.arange(n)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = x[:classes], x[classes:]
        z = a * logs + b
        z = z - z.max(1, keepdims=True)
        e = np.exp(z)
        p = e / e.sum(1, keepdims=True)
        value = float((np.log(e.sum(1)) - z[at, labels]).mean()) + 0.5 * strength * float(((a - 1) ** 2).sum() + (b**2).sum())
        p[at, labels] -= 1
        return value, np.concatenate([(p * logs).mean(0) + strength * (a - 1), p.mean(0) + strength * b])

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    optimum = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9})
    return optimum.x[:classes], optimum.x[classes:]


def _moved(p: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    if p.ndim < 2 or p.shape[1] != len(scale):
        raise InputError(f"preds are (n, classes, ...) of the {len(scale)} classes of the fit; got shape {p.shape}")
    column = (-1, *[1] * (p.ndim - 2))
    return scaled(scale.reshape(column) * np.log(np.maximum(p.astype(np.float64), TINY)) + shift.reshape(column), 1.0)


def _with(prediction: Prediction, probabilities: np.ndarray) -> Prediction:
    probabilities = probabilities.astype(prediction.probabilities.dtype)
    return replace(prediction, probabilities=probabilities,
                   aleatoric=np.minimum(prediction.aleatoric, entropy_of(probabilities)))
