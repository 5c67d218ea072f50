"""One number that makes a model as sure as it should be, applied after pooling.

Guo et al. 2017; that pooling comes first: Rahaman & Thiery, NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.items import Items, Values, as_numpy, checked, items_of
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.uncertainty import entropy_of

HOTTEST = 100.0
"""Temperatures between 1/100 and 100 are looked at."""
LOWEST = 1e290
"""Logits lower than the first by more stand for this, whose multiples and sums are finite."""
PRIOR = 1.0
"""Weight of the prior on 1/T in items. Without it a set on which every first choice is right has no best temperature but
0, at which one error on other items costs hundreds of nats."""


class TemperatureScaler:
    """p -> softmax(log p / T) with the T above 0 that makes the labels of the fitted items most likely.

    ::

        scaler = neural.TemperatureScaler().fit(ensemble.predict(validation))
        calibrated = scaler.transform(ensemble.predict(test))

    T is the mode under a weak prior, 1/T from Gamma(2, 1) with its mode at T = 1: the weight of one item, on which the
    model errs by 1/T nats (as Laplace's rule of succession and Platt's 1999 targets allow for one error not yet seen).
    So T is finite, and sensible, where the fitted items are all right; with many items the prior does not show.

    For an ensemble fit on its *pooled* predictions. The first choice of every item stays. Without a validation set
    :meth:`cross_fit` scales each item by a T found on others.

    `inputs`: "probabilities" or "logits", what arrays hold; nothing is guessed.
    """

    def __init__(self, inputs: Literal["probabilities", "logits"] = "probabilities"):
        if inputs not in ("probabilities", "logits"):
            raise InputError(f'inputs is "probabilities" or "logits"; got {inputs!r}')
        self.inputs = inputs
        self.temperature = 1.0
        """T; 1 before ``fit``."""
        self.fitted = False

    def fit(self, preds: Prediction | Values, target: Values | None = None) -> Self:
        """Find T on held-out items: a Prediction with labels, or preds (n, classes, ...) with target (n, ...)."""
        logs, labels, n = self._logs(preds, target)
        self.temperature = best_temperature(logs, labels, n)
        self.fitted = True
        return self

    @overload
    def transform(self, preds: Prediction) -> Prediction: ...
    @overload
    def transform(self, preds: Values) -> np.ndarray: ...

    def transform(self, preds: Prediction | Values) -> Prediction | np.ndarray:
        """Scaled probabilities: a Prediction where one came, else an array like `preds`.

        The doubt of a scaled Prediction is that of the pool alone: members are not scaled, so its `aleatoric` is kept
        below the new entropy.
        """
        if not self.fitted:
            raise InputError("fit a temperature first, on items that are not those to be scaled")
        if isinstance(preds, Prediction):
            return _with(preds, scaled(safe_log(preds.probabilities), self.temperature))
        x = as_numpy(preds, "preds").astype(np.float64)
        if x.ndim < 2:
            raise InputError(f"preds are (n, classes, ...); got shape {x.shape}")
        return scaled(x if self.inputs == "logits" else safe_log(_probabilities(x)), self.temperature)

    def fit_transform(self, preds: Prediction | Values, target: Values | None = None) -> Prediction | np.ndarray:
        """Fit and scale the same items; optimistic, for a look only. Use :meth:`cross_fit` to report."""
        return self.fit(preds, target).transform(preds)

    def cross_fit(self, prediction: Prediction, *, folds: int = 2, groups: ArrayLike | None = None,
                  seed: int = 0) -> Prediction:
        """Each item scaled by the T of the other folds, so that no label is used on its own item.

        `temperature` becomes the mean of the folds' (geometric). Raises InputError with fewer items or groups than
        folds.
        """
        items = items_of(prediction, groups=groups)
        owner = np.arange(len(prediction)) if groups is None else np.unique(
            as_array(groups, "groups", kinds=None), return_inverse=True)[1]
        fold = fold_of(int(owner.max()) + 1, folds, seed)
        kept = _item_rows(prediction)
        logs = safe_log(prediction.probabilities)
        calibrated = np.empty_like(logs)
        rows_fold = fold[owner][kept]
        item_fold = fold[owner]
        temperatures = []
        rows = np.log(np.maximum(items.p, _floor(items.rounding)))
        for k in range(folds):
            others = rows_fold != k
            if not others.any():
                raise InputError("a fold holds all the labels; take fewer folds or more items")
            t = best_temperature(rows[others], items.labels[others], len(np.unique(items.cluster[others])))
            temperatures.append(t)
            calibrated[item_fold == k] = scaled(logs[item_fold == k], t)
        self.temperature = float(np.exp(np.mean(np.log(temperatures))))
        self.fitted = True
        return replace(_with(prediction, calibrated), tempered=True)

    def _logs(self, preds: Prediction | Values, target: Values | None) -> tuple[np.ndarray, np.ndarray, int]:
        """Rows, labels, and how many independent items they are."""
        if isinstance(preds, Prediction) or self.inputs == "probabilities":
            items = items_of(preds, target)
            return np.log(np.maximum(items.p, _floor(items.rounding))), items.labels, items.n
        x, labels = as_numpy(preds).astype(np.float64), as_numpy(target)
        if x.ndim < 2 or labels.shape != x.shape[:1] + x.shape[2:]:
            raise InputError(f"preds are (n, classes, ...) with labels (n, ...); got {x.shape} and {labels.shape}")
        rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
        return rows, checked(scaled(rows, 1.0), labels.reshape(-1))[1], len(x)


def best_temperature(logs: np.ndarray, labels: np.ndarray, n: int | None = None, prior: float = PRIOR) -> float:
    """The T that minimises the mean of logsumexp(z/T) - z_label/T, plus the prior's (1/T + log T) prior / n.

    Both are convex in 1/T, and the zero of their slope is found by bracketing.

    Arguments:
        n: independent items, where rows are pixels of items or come in groups.
        prior: its weight, in items; 0 is maximum likelihood, within the bounds of 1 / HOTTEST and HOTTEST.
    """
    with np.errstate(over="ignore"):
        z = np.maximum(logs - logs.max(1, keepdims=True), -LOWEST)
    own = z[np.arange(len(z)), labels].mean()
    share = prior / (len(z) if n is None else n)

    def slope(beta: float) -> float:
        e = np.exp(beta * z)
        return float(((e * z).sum(1) / e.sum(1)).mean() - own) + share * (1 - 1 / beta)

    low, high = 1 / HOTTEST, HOTTEST
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return 1 / HOTTEST
    from scipy.optimize import brentq

    return float(np.exp(-brentq(lambda t: slope(float(np.exp(t))), np.log(low), np.log(high), xtol=1e-10)))


def scaled(logs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logs / T) over axis 1."""
    with np.errstate(over="ignore"):
        z = (logs - logs.max(1, keepdims=True)) / temperature
    e = np.exp(z)
    return e / e.sum(1, keepdims=True)


def fold_of(n: int, folds: int, seed: int) -> np.ndarray:
    """(n,): a random fold for each, of sizes that differ by one at most."""
    if not isinstance(folds, int | np.integer) or folds < 2 or folds > n:
        raise InputError(f"folds is a whole number from 2 to the number of items or groups, {n}; got {folds!r}")
    return np.random.default_rng(seed).permutation(n) % folds


def scaled_nll(items: Items, *, folds: int = 2, repeats: int = 5, seed: int = 0) -> np.ndarray:
    """(k,): NLL of each row at a temperature of other items, the mean over several random divisions.

    The calibrated log-likelihood of Ashukha et al., ICLR 2020, by which models of different sharpness are comparable.
    """
    logs = np.log(np.maximum(items.p, _floor(items.rounding)))
    total = np.zeros(len(logs))
    if items.n < folds:
        raise InputError(f"an error over items needs two items or groups of items, or more; got {items.n}")
    for k in range(repeats):
        fold = fold_of(items.n, folds, seed + k)[items.cluster]
        for f in range(folds):
            inside = fold == f
            t = best_temperature(logs[~inside], items.labels[~inside], len(np.unique(items.cluster[~inside])))
            z = logs[inside] / t
            z = z - z.max(1, keepdims=True)
            total[inside] += np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), items.labels[inside]]
    return total / repeats


def _item_rows(prediction: Prediction) -> np.ndarray:
    """(k,): the item of each row that ``items_of`` keeps."""
    target = as_array(prediction.target, "labels")
    item = np.arange(len(target)).repeat(target[0].size)
    return item if prediction.ignore_index is None else item[target.reshape(-1) != prediction.ignore_index]


def _with(prediction: Prediction, probabilities: np.ndarray) -> Prediction:
    probabilities = probabilities.astype(prediction.probabilities.dtype)
    return replace(prediction, probabilities=probabilities,
                   aleatoric=np.minimum(prediction.aleatoric, entropy_of(probabilities)))


def _floor(rounding: float) -> float:
    """A probability of 0 is one too small for its type: float32 cannot say below 1e-38."""
    return float(np.finfo(np.float32 if rounding > 1e-10 else np.float64).tiny)


def safe_log(p: np.ndarray) -> np.ndarray:
    """Logarithms in float64, with the smallest number of its type in place of 0."""
    p = as_array(p, "probabilities")
    return np.log(np.maximum(p.astype(np.float64), _floor(float(np.finfo(p.dtype).eps))))


def _probabilities(x: np.ndarray) -> np.ndarray:
    if (x < 0).any() or not np.allclose(x.sum(1), 1, atol=1e-4):
        raise InputError('preds are probabilities, not below 0 and 1 in sum; for logits: TemperatureScaler("logits")')
    return x
