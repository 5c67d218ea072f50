"""Which members of an ensemble, and how much of each: chosen on some items, judged on others.

Greedy forward selection: Caruana et al., ICML 2004. Stacking of predictive distributions: Yao et al. 2018. A choice made
on items
looks better on those than it is; so all that is printed is out of fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ensemblekit.averaging.diversity import choose, pairwise
from ensemblekit.averaging.mixture import mixture_weights
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.neural.evidence import Evidence, Rows, cluster_of, evidence_of, rows_of
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.saved import pooled
from ensemblekit.neural.scores import SCORES, Score, Scores, given, mean_scores, paired_share, ratio
from ensemblekit.neural.temperature import best_temperature, fold_of, scaled

Method = Literal["auto", "all", "last", "best", "greedy", "diverse", "stacking", "exhaustive"]
METHODS = ("auto", "all", "last", "best", "greedy", "diverse", "stacking", "exhaustive")
SIMPLEST_FIRST = ("all", "last", "greedy", "stacking")
"""What "auto" chooses from."""
LOSSES = ("nll", "brier", "accuracy")
STEPS = 100
"""Of the greedy choice."""
MOST = 12
"""Members whose subsets are all tried."""
TINY = 1e-12
"""Probabilities are raised to it where their logarithms are averaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Weights of members, with what they gain on items that had no part in the choice."""

    method: str
    """That was used for `weights`."""
    weights: np.ndarray
    """(M,), 1 in sum, refitted on all items: for ``Ensemble.from_store(..., weights=)``."""
    temperature: float
    """Fitted to out-of-fold pools; 1 where none was asked for."""
    prediction: Prediction
    """Each item pooled by weights that never saw it."""
    scores: Scores
    """Of `prediction`."""
    differences: Mapping[str, Scores]
    """Minus "all members", "last" and "best single" (chosen out of fold as well), paired item by item."""
    in_sample: float
    """Loss of `weights` on the items they were fitted on: too good."""
    optimism: float
    """Out-of-fold loss minus `in_sample`."""
    stability: np.ndarray
    """(M,): share of the folds that took each member."""
    methods: tuple[str, ...]
    """That each fold used."""
    fold: np.ndarray
    """(repeats, n): the fold of each item."""
    fold_weights: np.ndarray
    """(repeats, folds, M): by which the items of each fold were pooled."""
    fold_temperatures: np.ndarray
    """(repeats, folds)."""
    score: str
    notes: tuple[str, ...]

    @property
    def indices(self) -> np.ndarray:
        """Numbers of the members with a weight."""
        return np.flatnonzero(self.weights > 0)

    def __str__(self) -> str:
        gain = self.differences["all members"][self.score]
        kept = ", ".join(f"{k} ({self.weights[k]:.3g})" for k in self.indices)
        lines = [f"{self.score} out of fold, minus all members: {gain.value:+.4g} ({gain.low:+.4g} to {gain.high:+.4g}) by "
                 f"{self.method!r}",
                 f"  members and weights: {kept}"]
        for name in ("last", "best single"):
            one = self.differences[name][self.score]
            lines.append(f"  minus {name}: {one.value:+.4g} ({one.low:+.4g} to {one.high:+.4g})")
        lines.append(f"  {self.score} {self.scores[self.score]} out of fold; {self.in_sample:.4g} on the items of the "
                     f"choice, too good "
                     f"by {self.optimism:.2g}" if self.score != "accuracy" else
                     f"  {self.score} {self.scores[self.score]} out of fold; error {self.in_sample:.4g} on the items of "
                     f"the choice, too "
                     f"good by {self.optimism:.2g}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        def plain(found: Mapping[str, Score]) -> dict[str, Any]:
            return {name: {"value": s.value, "stderr": s.stderr, "low": s.low, "high": s.high, "n": s.n} for name,
                    s in found.items()}
        return {"method": self.method, "weights": self.weights.tolist(), "indices": self.indices.tolist(),
                "temperature": self.temperature, "scores": plain(self.scores),
                "differences": {name: plain(x) for name, x in self.differences.items()}, "in_sample": self.in_sample,
                "optimism": self.optimism, "stability": self.stability.tolist(), "methods": list(self.methods),
                "fold_weights": self.fold_weights.tolist(), "fold_temperatures": self.fold_temperatures.tolist(),
                "score": self.score,
                "notes": list(self.notes)}


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be chosen, and how."""

    rows: Rows
    own: np.ndarray         # (M, k): probabilities of the labels
    score: str
    space: str
    k: int | None
    folds: int
    prior: float
    metric: str
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


def select(source: Any, *, method: Method = "auto", k: int | None = None, score: str = "nll", folds: int = 5, repeats: int = 1,
           prior: float = 0.0, space: str | None = None, metric: str = "disagreement", tradeoff: float = 1.0,
           temperature: bool = False, target: Any = None, groups: Any = None, seed: int = 0) -> Selection:
    """Choose and weight the members of an ensemble, with the gain on items that had no part in it.

    Everything is fitted inside folds: what an item is pooled by never saw its label.

    Arguments:
        source: SavedPredictions, a store or its path with saved predictions, or an array (M, n, classes, ...) with `target`.
        method: "all" members; the "last" k; the "best" one; "greedy", forward with replacement, up to 100 steps, the best
        prefix kept;
            "diverse", mean score + tradeoff × mean distance by `metric`; "stacking", the most likely mixture;
            "exhaustive", the best
            subset of at most 12 members; "auto", the simplest of all, last, greedy and stacking (in this order) whose
            cross-fitted score is within one standard error of the lowest.
        k: number of members of "last", "greedy" (steps), "diverse" and "exhaustive"; None: found inside the fit.
        score: "nll", "brier" or "accuracy", by which choices are made; stacking always goes by the likelihood.
        folds, repeats: of items or groups; predictions are means over the repeats.
        prior: of stacking, towards equal weights, in items.
        space: that members are pooled in; None: that of the saved predictions, "probability" for arrays.
        temperature: scale the pool too, by a temperature fitted to pools of inner folds.
        groups: (n,) what each item belongs to; groups stay whole.

    Raises:
        InputError: no labels, fewer items or groups than folds, members that hold no probabilities, settings out of range.
    """
    if method not in METHODS:
        raise InputError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    if score not in LOSSES:
        raise InputError(f"score is one of {', '.join(LOSSES)}; got {score!r}")
    if not isinstance(repeats, int | np.integer) or repeats < 1:
        raise InputError(f"repeats is a whole number of 1 or more; got {repeats!r}")
    found = evidence_of(source, target, space=space)
    rows = rows_of(found, groups, seed)
    m = len(found.members)
    if k is not None and (not isinstance(k, int | np.integer) or not 1 <= k <= (STEPS if method == "greedy" else m)):
        raise InputError(f"k is a whole number from 1 to {m}, the members; got {k!r}")
    if method == "exhaustive" and m > MOST:
        raise InputError(f"method=\"exhaustive\" tries all subsets of at most {MOST} members; got {m}. Take \"greedy\" or "
                         f"\"stacking\"")
    task = _Task(rows, rows.own, score, found.space, k, folds, prior, metric, tradeoff, seed)
    fold_of(rows.n, folds, seed)        # refused here, before any work
    return _selected(task, found, method, repeats, temperature, groups)


def _selected(task: _Task, found: Evidence, method: str, repeats: int, temperature: bool, groups: Any) -> Selection:
    rows, m = task.rows, len(found.members)
    everything = np.arange(len(rows.labels))
    total, single = np.zeros(found.members.shape[1:]), np.zeros(found.members.shape[1:])
    chosen: list[np.ndarray] = []
    methods: list[str] = []
    temperatures, folds = [], []
    for repeat in range(repeats):
        item_fold, row_fold = _folds(task, found, groups, repeat)
        weights: list[np.ndarray] = []
        best: list[np.ndarray] = []
        hot: list[float] = []
        used: list[str] = []
        for f in range(task.folds):
            train = np.flatnonzero(row_fold != f)
            if not len(train):
                raise InputError("a fold holds all the labels; take fewer folds or more items")
            w, name, t = _fitted(task, method, train, temperature)
            weights.append(w)
            used.append(name)
            hot.append(t)
            best.append(_weights(task, "best", train))
        total += _pooled_by_fold(found, weights, hot, item_fold) / repeats
        single += _pooled_by_fold(found, best, [1.0] * task.folds, item_fold) / repeats
        chosen += weights
        methods += used
        temperatures += hot
        folds.append(item_fold)
    w, name, t = _fitted(task, method, everything, temperature)
    plain = pooled(found.members, None, found.target, found.space, found.ignore_index)
    equal = _pooled_by_fold(found, [np.full(m, 1 / m)], [1.0], np.zeros(len(plain), int))
    plain = _with(plain, equal)         # by the arithmetic of the selection: the same weights differ by nothing
    prediction = _with(plain, total)
    against = {"all members": plain, "last": _with(plain, found.members[-1]), "best single": _with(plain, single)}
    differences = {label: _difference(prediction, other, groups) for label, other in against.items()}
    scores = mean_scores(prediction, groups)
    inside = float(task.losses(w, everything).mean()) if t == 1 else float(
        task.loss(scaled(np.log(np.maximum(task.pool(w, everything), TINY)), t), everything).mean())
    outside = 1 - scores["accuracy"].value if task.score == "accuracy" else scores[task.score].value
    return Selection(name, w, t, prediction, scores, differences, inside, outside - inside,
                     np.mean([one > 0 for one in chosen], axis=0), tuple(methods), np.array(folds),
                     np.array(chosen).reshape(repeats, task.folds, m), np.array(temperatures).reshape(repeats, task.folds),
                     task.score,
                     _notes(task, found, differences["all members"], name, m, method))


def _notes(task: _Task, found: Evidence, gain: Scores, name: str, m: int, method: str) -> tuple[str, ...]:
    notes = []
    if m == 1:
        notes.append("there is one member, so nothing to choose")
    elif all(np.array_equal(found.members[0], one) for one in found.members[1:]):
        notes.append("all members say the same: no choice or weighting of them can gain anything")
    elif name != "all":
        value = gain[task.score].value * (-1 if task.score == "accuracy" else 1)
        if value >= 0:
            notes.append(f"{name!r} gains nothing on items it has not seen: keep all members")
        elif not gain[task.score].significant:
            notes.append("the gain out of fold is not told from chance")
    elif method == "auto":
        notes.append("no choice is better than all members by more than one standard error: they are kept")
    if found.members.ndim > 3:
        notes.append("choices were made on up to 4096 pixels an image; scores are of all of them")
    return tuple(notes)


def _folds(task: _Task, found: Evidence, groups: Any, repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """The fold of each item (n,) and of each row."""
    owner = cluster_of(groups, len(found.labels()))
    names = np.unique(owner)
    fold = fold_of(len(names), task.folds, task.seed + repeat)[np.searchsorted(names, owner)]
    if len(names) == task.rows.n:
        return fold, fold_of(len(names), task.folds, task.seed + repeat)[task.rows.cluster]
    # items or groups without a label that counts have no rows
    return fold, fold_of(task.rows.n, task.folds, task.seed + repeat)[task.rows.cluster]


def _fitted(task: _Task, method: str, train: np.ndarray, temperature: bool) -> tuple[np.ndarray, str, float]:
    """Weights (M,), the method and the temperature that rows `train` ask for."""
    name = _simplest(task, train) if method == "auto" else method
    w = _weights(task, name, train)
    if not temperature:
        return w, name, 1.0
    logs = np.empty((len(train), task.rows.p.shape[2]))
    for inner, held in _inner(task, train):
        logs[held] = np.log(np.maximum(task.pool(_weights(task, name, inner), train[held]), TINY))
    return w, name, best_temperature(logs, task.rows.labels[train], len(np.unique(task.rows.cluster[train])))


def _inner(task: _Task, train: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on, and the places in `train` of those held out, of each inner fold."""
    names, cluster = np.unique(task.rows.cluster[train], return_inverse=True)
    folds = min(task.folds, len(names))
    if folds < 2:
        raise StatisticsError("choices inside a fold need two items or groups; take more items or fewer folds")
    fold = fold_of(len(names), folds, task.seed + 7919)[cluster.reshape(-1)]
    for f in range(folds):
        yield train[fold != f], np.flatnonzero(fold == f)


def _simplest(task: _Task, train: np.ndarray) -> str:
    """The first method whose cross-fitted loss is within one standard error (paired, over clusters) of the lowest."""
    if len(task.own) == 1:
        return "all"
    losses = np.empty((len(SIMPLEST_FIRST), len(train)))
    for inner, held in _inner(task, train):
        for row, name in enumerate(SIMPLEST_FIRST):
            losses[row, held] = task.losses(_weights(task, name, inner), train[held])
    names, cluster = np.unique(task.rows.cluster[train], return_inverse=True)
    sizes = np.bincount(cluster.reshape(-1)).astype(float)
    best = int(losses.mean(1).argmin())
    for row, name in enumerate(SIMPLEST_FIRST):
        gap = ratio(np.bincount(cluster.reshape(-1), losses[row] - losses[best], len(names)), sizes)
        if row == best or gap.value <= gap.stderr:
            return name
    return SIMPLEST_FIRST[best]


def _weights(task: _Task, name: str, train: np.ndarray) -> np.ndarray:
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


def _best_of(task: _Task, candidates: list[np.ndarray], train: np.ndarray) -> np.ndarray:
    return candidates[int(np.argmin([task.losses(w, train).mean() for w in candidates]))]


def _greedy(task: _Task, train: np.ndarray) -> np.ndarray:
    """Caruana's: the member that helps most, again and again, with replacement; the best prefix, ties to the lowest number."""
    m = len(task.own)
    steps = STEPS if task.k is None else task.k
    if task.direct:
        parts = task.own[:, train]
    elif task.space == "probability":
        parts = np.asarray(task.rows.p[:, train], np.float64)
    else:
        parts = np.log(np.maximum(np.asarray(task.rows.p[:, train], np.float64), TINY))
    total = np.zeros(parts.shape[1:])
    counts = np.zeros(m)
    order: list[int] = []
    path: list[float] = []
    for step in range(1, steps + 1):
        if task.direct:     # a product of up to so many numbers needs one logarithm
            losses = -_sum_of_logs(total + parts) / len(train)
        else:
            losses = np.array([task.loss((total + one) / step if task.space == "probability" else scaled((total + one) / step,
                                                                                                         1.0),
                                         train).mean() for one in parts])
        new = int(np.argmin(losses))
        total = total + parts[new]
        order.append(new)
        path.append(float(losses[new]) + (float(np.log(step)) if task.direct else 0.0))
    best = int(np.argmin(np.array(path))) if task.k is None else steps - 1
    for new in order[:best + 1]:
        counts[new] += 1
    return counts / counts.sum()


def _sum_of_logs(x: np.ndarray) -> np.ndarray:
    """(M,): sums of logarithms of positive numbers (M, k), by products of a few of their mantissas at a time."""
    mantissa, exponent = np.frexp(np.maximum(x, np.finfo(float).tiny))
    most = 512
    whole = mantissa.shape[1] // most * most
    blocks = mantissa[:, :whole].reshape(len(x), -1, most).prod(axis=2) if whole else np.ones((len(x), 1))
    return np.log(blocks).sum(1) + np.log(mantissa[:, whole:]).sum(1) + np.log(2) * exponent.sum(1)


def _diverse(task: _Task, train: np.ndarray) -> np.ndarray:
    m = len(task.own)
    snapshots = task.rows.p[:, train].argmax(2) if task.metric == "disagreement" else task.rows.p[:, train]
    distances = pairwise(snapshots, task.metric)        # type: ignore[arg-type]
    quality = -np.array([task.losses(one, train).mean() for one in np.eye(m)])
    candidates = []
    for k in range(1, m + 1) if task.k is None else [task.k]:
        chosen = choose(distances, k, scores=quality, method="score", tradeoff=task.tradeoff).indices
        candidates.append(np.bincount(chosen, minlength=m) / k)
    return _best_of(task, candidates, train)


def _logit_stacking(task: _Task, train: np.ndarray) -> np.ndarray:
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
    found = minimize(loss, np.full(m, 1 / m), jac=True, method="SLSQP", bounds=[(least, 1.0)] * m,
                     constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(m)},
                     options={"maxiter": 500, "ftol": 1e-13})
    w = np.maximum(found.x, 0.0)
    w = np.where(w > 1e-9, w, 0.0)
    return w / w.sum()


def _pooled_by_fold(found: Evidence, weights: list[np.ndarray], temperatures: list[float], fold: np.ndarray) -> np.ndarray:
    """(n, classes, ...): each item by the weights and the temperature of its fold."""
    out = np.empty(found.members.shape[1:])
    for f, (w, t) in enumerate(zip(weights, temperatures, strict=True)):
        at = np.flatnonzero(fold == f)
        used = np.flatnonzero(w)
        part = np.zeros((len(at), *found.members.shape[2:]))
        for m in used:
            one = np.asarray(found.members[m, at], np.float64)
            part += w[m] * (one if found.space == "probability" else np.log(np.maximum(one, TINY)))
        if found.space == "logit":
            part = scaled(part, 1.0)
        out[at] = part if t == 1 else scaled(np.log(np.maximum(part, TINY)), t)
    return out


def _with(plain: Prediction, probabilities: np.ndarray) -> Prediction:
    dtype = plain.probabilities.dtype
    return replace(plain, probabilities=np.asarray(probabilities).astype(dtype))


def _difference(a: Prediction, b: Prediction, groups: Any) -> Scores:
    """Accuracy, nll and brier of a minus b, paired."""
    p, q = given(a, groups), given(b, groups)
    found = {}
    for name, score in SCORES.items():
        gap = score(p.p, p.labels) - score(q.p, q.labels)
        found[name] = paired_share(p.sums(gap > 0), p.sums(gap < 0), p.sizes) if name == "accuracy" else ratio(p.sums(gap),
                                                                                                               p.sizes)
    return Scores(found, paired=True)
