"""Weights of an ensemble's members that some rows ask for, by each way of choosing.

Greedy forward selection: Caruana et al., ICML 2004. Stacking of predictive distributions: Yao et al. 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ensemblekit.averaging.diversity import Metric, choose, pairwise
from ensemblekit.averaging.mixture import mixture_weights
from ensemblekit.errors import StatisticsError
from ensemblekit.neural.evidence import Rows
from ensemblekit.neural.scores import ratio
from ensemblekit.neural.summed import SCORES
from ensemblekit.neural.temperature import fold_of, scaled

SIMPLEST_FIRST = ("all", "last", "greedy", "stacking")
"""What "auto" chooses from."""
STEPS = 100
"""Of the greedy choice."""
PRODUCT = 16
"""Numbers whose product's logarithm is taken."""
TINY = 1e-12
"""Probabilities are raised to it where their logarithms are averaged."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be chosen, and how."""

    rows: Rows
    own: np.ndarray         # (M, k): probabilities of the labels
    score: str
    space: str
    k: int | None
    folds: int
    prior: float
    metric: Metric
    tradeoff: float
    seed: int

    @property
    def direct(self) -> bool:
        """Whether probabilities of the labels are all that is needed."""
        return self.score == "nll" and self.space == "probability"

    def losses(self, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
        """(len(at),): of rows pooled by weights (M,)."""
        if self.direct:
            return -np.log(np.maximum(weights @ self.own[:, at], np.finfo(float).tiny))
        return self.loss(self.pool(weights, at), at)

    def loss(self, p: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Of probabilities (len(at), classes)."""
        value = SCORES[self.score](p, self.rows.labels[at])
        return 1 - value if self.score == "accuracy" else value

    def pool(self, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
        """(len(at), classes)."""
        used = np.flatnonzero(weights)
        total = np.zeros((len(at), self.rows.p.shape[2]))
        for m in used:
            one = np.asarray(self.rows.p[m, at], np.float64)
            total += weights[m] * (one if self.space == "probability" else np.log(np.maximum(one, TINY)))
        return total if self.space == "probability" else scaled(total, 1.0)


def inner_folds(task: Choice, train: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on, and the places in `train` of those held out, of each inner fold."""
    names, cluster = np.unique(task.rows.cluster[train], return_inverse=True)
    folds = min(task.folds, len(names))
    if folds < 2:
        raise StatisticsError("choices inside a fold need two items or groups; take more items or fewer folds")
    fold = fold_of(len(names), folds, task.seed + 7919)[cluster.reshape(-1)]
    for f in range(folds):
        yield train[fold != f], np.flatnonzero(fold == f)


def cross_fitted(stderr: float, choice: float, folds: int) -> float:
    """What the standard error over items of a cross-fitted difference in NLL is multiplied by.

    Folds share most of what they are fitted on, so that what is chosen by chance is chosen in all of them. Where all of a
    difference is chance, it is a sum over pairs of items, one that was chosen by and one that was judged, and each pair comes
    twice: its variance is twice that over items. The second half is `choice`, :func:`choice_variance`; where members differ in
    truth it is small beside the first. Never more than folds/(folds - 1) times the first (Nadeau & Bengio, Machine Learning 52,
    239, 2003).
    """
    if not stderr > 0:
        return 1.0
    return float(np.sqrt(1 + min(max(choice, 0.0) / stderr**2, folds / (folds - 1))))


def choice_variance(task: Choice, weights: np.ndarray, n: int) -> float:
    """Variance in nats² that a choice made on n items adds to a difference in NLL: 1/n² for each free weight, each of which
    gains 1/(2n) in sample, as in any likelihood. Infinite, so that the bound holds, where another score chose."""
    return max(float(np.count_nonzero(weights)) - 1, 1.0) / n**2 if task.score == "nll" else np.inf


def simplest(task: Choice, train: np.ndarray) -> str:
    """The first method whose cross-fitted loss is within one standard error (paired, over clusters) of the lowest."""
    if len(task.own) == 1:
        return "all"
    losses = np.empty((len(SIMPLEST_FIRST), len(train)))
    choices = np.zeros(len(SIMPLEST_FIRST))
    names, cluster = np.unique(task.rows.cluster[train], return_inverse=True)
    folds = min(task.folds, len(names))
    for inner, held in inner_folds(task, train):
        for row, name in enumerate(SIMPLEST_FIRST):
            w = fitted_weights(task, name, inner)
            losses[row, held] = task.losses(w, train[held])
            choices[row] += 0.0 if name == "all" else choice_variance(task, w, len(names)) / folds
    sizes = np.bincount(cluster.reshape(-1)).astype(float)
    best = int(losses.mean(1).argmin())
    for row, name in enumerate(SIMPLEST_FIRST):
        gap = ratio(np.bincount(cluster.reshape(-1), losses[row] - losses[best], len(names)), sizes)
        if row == best or gap.value <= cross_fitted(gap.stderr, max(choices[row], choices[best]), folds) * gap.stderr:
            return name
    return SIMPLEST_FIRST[best]


def fitted_weights(task: Choice, name: str, train: np.ndarray) -> np.ndarray:
    """(M,), fitted on rows `train`."""
    m = len(task.own)
    if name == "all" or m == 1:
        return np.full(m, 1 / m)
    if name == "last":
        counts = range(1, m + 1) if task.k is None else [task.k]
        return _best_of(task, [np.where(np.arange(m) >= m - c, 1 / c, 0.0) for c in counts], train)
    if name == "best":
        return _best_of(task, list(np.eye(m)), train)
    if name == "greedy":
        return _greedy(task, train)
    if name == "diverse":
        return _diverse(task, train)
    if name == "exhaustive":
        subsets = ((np.arange(1, 1 << m)[:, None] >> np.arange(m)) & 1).astype(float)
        if task.k is not None:
            subsets = subsets[subsets.sum(1) == task.k]
        # fewest members first: ties go to the smaller subset
        return _best_of(task, list((subsets / subsets.sum(1, keepdims=True))[np.argsort(subsets.sum(1), kind="stable")]), train)
    if task.space == "probability":
        return mixture_weights(np.maximum(task.own[:, train], np.finfo(float).tiny), prior=task.prior).weights
    return _logit_stacking(task, train)


def _best_of(task: Choice, candidates: list[np.ndarray], train: np.ndarray) -> np.ndarray:
    return candidates[int(np.argmin([task.losses(w, train).mean() for w in candidates]))]


def _greedy(task: Choice, train: np.ndarray) -> np.ndarray:
    """Caruana's: the member that helps most, again and again, with replacement; the best prefix, ties to the lowest number."""
    steps = STEPS if task.k is None else task.k
    order, path = _of_labels(task.own[:, train], steps) if task.direct else _of_classes(task, train, steps)
    best = int(np.argmin(np.array(path))) if task.k is None else steps - 1
    counts = np.bincount(order[:best + 1], minlength=len(task.own))
    return counts / counts.sum()


def _of_classes(task: Choice, train: np.ndarray, steps: int) -> tuple[list[int], list[float]]:
    """Members in the order they are taken, and the loss after each, from probabilities of all classes."""
    parts = np.asarray(task.rows.p[:, train], np.float64)
    if task.space != "probability":
        parts = np.log(np.maximum(parts, TINY))
    total = np.zeros(parts.shape[1:])
    order: list[int] = []
    path: list[float] = []
    for step in range(1, steps + 1):
        losses = np.array([task.loss((total + one) / step if task.space == "probability" else scaled((total + one) / step, 1.0),
                                     train).mean() for one in parts])
        order.append(int(np.argmin(losses)))
        path.append(float(losses[order[-1]]))
        total = total + parts[order[-1]]
    return order, path


def _of_labels(own: np.ndarray, steps: int) -> tuple[list[int], list[float]]:
    """The same for the NLL of mixtures, from the probabilities (M, k) of the labels.

    log(total + p) is log(total), the same for all members, and log(1 + p/total): of numbers not below 1, so that a product of
    16 needs one logarithm. Ten times as fast as a logarithm each (50 members, 10 000 items).
    """
    m, k = own.shape
    parts = np.zeros((m, -(-k // PRODUCT) * PRODUCT))
    parts[:, :k] = np.maximum(own, np.finfo(float).tiny)
    largest, total = parts.max(axis=0), np.ones(parts.shape[1])
    losses = -np.log(parts[:, :k]).sum(1)
    order = [int(np.argmin(losses))]
    path = [float(losses[order[0]]) / k]
    total[:k] = parts[order[0], :k]
    ratio_of = np.empty_like(parts)
    for step in range(2, steps + 1):
        np.multiply(parts, 1 / total, out=ratio_of)
        gains = np.zeros(m)
        far = np.flatnonzero(largest > 1e18 * total)        # whose products would leave float64
        if len(far):
            gains = np.log1p(ratio_of[:, far]).sum(1)
            ratio_of[:, far] = 0
        ratio_of += 1
        gains += np.log(ratio_of.reshape(m, PRODUCT, -1).prod(axis=1)).sum(1)
        order.append(int(np.argmax(gains)))
        path.append(float(np.log(step) - (np.log(total[:k]).sum() + gains[order[-1]]) / k))
        total[:k] += parts[order[-1], :k]
    return order, path


def _diverse(task: Choice, train: np.ndarray) -> np.ndarray:
    m = len(task.own)
    snapshots = task.rows.p[:, train].argmax(2) if task.metric == "disagreement" else task.rows.p[:, train]
    distances = pairwise(snapshots, task.metric)
    quality = -np.array([task.losses(one, train).mean() for one in np.eye(m)])
    candidates = []
    for k in range(1, m + 1) if task.k is None else [task.k]:
        chosen = choose(distances, k, scores=quality, method="score", tradeoff=task.tradeoff).indices
        candidates.append(np.bincount(chosen, minlength=m) / k)
    return _best_of(task, candidates, train)


def _logit_stacking(task: Choice, train: np.ndarray) -> np.ndarray:
    """Weights of log-probabilities that make the labels most likely: convex on the simplex."""
    from scipy.optimize import minimize

    z = np.log(np.maximum(np.asarray(task.rows.p[:, train], np.float64), TINY))
    own = z[:, np.arange(len(train)), task.rows.labels[train]].mean(1)
    m, strength = len(z), task.prior / len(train)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        total = np.tensordot(w, z, 1)
        most = total.max(1, keepdims=True)
        e = np.exp(total - most)
        norm = e.sum(1, keepdims=True)
        value = float((np.log(norm) + most).mean() - own @ w)
        slope = np.einsum("kc,mkc->m", e / norm, z) / len(train) - own
        if strength:
            value -= strength * float(np.log(w).mean())
            slope = slope - strength / (m * w)
        return value, slope

    least = 1e-12 if strength else 0.0
    optimum = minimize(loss, np.full(m, 1 / m), jac=True, method="SLSQP", bounds=[(least, 1.0)] * m,
                       constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(m)},
                       options={"maxiter": 500, "ftol": 1e-13})
    w = np.maximum(optimum.x, 0.0)
    w = np.where(w > 1e-9, w, 0.0)
    return w / w.sum()
