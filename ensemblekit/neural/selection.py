"""Which members of an ensemble, and how much of each: chosen on some items, judged on others.

Greedy forward selection: Caruana et al., ICML 2004. Stacking of predictive distributions: Yao et al. 2018. A choice made
on items looks better on those than it is; so all that is printed is out of fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.diversity import Metric
from ensemblekit.errors import InputError
from ensemblekit.neural.compare import mean_differences
from ensemblekit.neural.evidence import Evidence, Source, cluster_of, evidence_of, rows_of
from ensemblekit.neural.items import Values
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.saved import pooled
from ensemblekit.neural.scores import Score, Scores, mean_scores
from ensemblekit.neural.temperature import best_temperature, fold_of, scaled
from ensemblekit.neural.weightings import (
    STEPS,
    TINY,
    Choice,
    choice_variance,
    cross_fitted,
    fitted_weights,
    inner_folds,
    simplest,
)
from ensemblekit.results import Result

Method = Literal["auto", "all", "last", "best", "greedy", "diverse", "stacking", "exhaustive"]
METHODS = ("auto", "all", "last", "best", "greedy", "diverse", "stacking", "exhaustive")
LOSSES = ("nll", "brier", "accuracy")
MOST = 12
"""Members whose subsets are all tried."""


def check_method(name: str | None) -> Method | None:
    """The name as that of a method, None as it is. Raises InputError for any other."""
    if name is not None and name not in METHODS:
        raise InputError(f"method is one of {', '.join(METHODS)}; got {name!r}")
    return name         # type: ignore[return-value]


@dataclass(frozen=True, slots=True, eq=False)
class Selection(Result):
    """Weights of members, with what they gain on items that had no part in the choice."""

    FIGURE: ClassVar[str] = "neural_evidence.selection"

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
    """Minus "all members", "last" and "best single" (chosen out of fold as well), paired item by item. The error covers that
    the choice was made on items too, which folds share."""
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
    choice_variance: float
    """Of a difference in NLL, nats squared: what the choice adds to the variance over items."""
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

    def _facts(self) -> dict[str, object]:
        def plain(by_name: Mapping[str, Score]) -> dict[str, dict[str, float]]:
            return {name: {"value": s.value, "stderr": s.stderr, "low": s.low, "high": s.high, "n": s.n} for name,
                    s in by_name.items()}
        return {"method": self.method, "weights": self.weights.tolist(), "indices": self.indices.tolist(),
                "temperature": self.temperature, "scores": plain(self.scores),
                "differences": {name: plain(x) for name, x in self.differences.items()}, "in_sample": self.in_sample,
                "optimism": self.optimism, "stability": self.stability.tolist(), "methods": list(self.methods),
                "fold_weights": self.fold_weights.tolist(), "fold_temperatures": self.fold_temperatures.tolist(),
                "choice_variance": self.choice_variance, "score": self.score, "notes": list(self.notes)}


def select(source: Source, *, method: Method = "auto", k: int | None = None, score: str = "nll", folds: int = 5,
           repeats: int = 1, prior: float = 0.0, space: str | None = None, metric: Metric = "disagreement",
           tradeoff: float = 1.0, temperature: bool = False, target: Values | None = None, groups: ArrayLike | None = None,
           seed: int = 0) -> Selection:
    """Choose and weight the members of an ensemble, with the gain on items that had no part in it.

    Everything is fitted inside folds: what an item is pooled by never saw its label.

    Arguments:
        source: SavedPredictions, a store or its path with saved predictions, or an array (M, n, classes, ...) with `target`.
        method: "all" members; the "last" k; the "best" one; "greedy", forward with replacement, up to 100 steps, the best
        prefix kept;
            "diverse", mean score + tradeoff × mean distance by `metric`; "stacking", the most likely mixture;
            "exhaustive", the best subset of at most 12 members; "auto", the simplest of all, last, greedy and stacking (in
            this order) whose cross-fitted score is within one standard error of the lowest, an error that covers the choice.
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
    check_method(method)
    if score not in LOSSES:
        raise InputError(f"score is one of {', '.join(LOSSES)}; got {score!r}")
    if not isinstance(repeats, int | np.integer) or repeats < 1:
        raise InputError(f"repeats is a whole number of 1 or more; got {repeats!r}")
    evidence = evidence_of(source, target, space=space)
    rows = rows_of(evidence, groups, seed)
    m = len(evidence.members)
    if k is not None and (not isinstance(k, int | np.integer) or not 1 <= k <= (STEPS if method == "greedy" else m)):
        raise InputError(f"k is a whole number from 1 to {m}, the members; got {k!r}")
    if method == "exhaustive" and m > MOST:
        raise InputError(f"method=\"exhaustive\" tries all subsets of at most {MOST} members; got {m}. Take \"greedy\" or "
                         f"\"stacking\"")
    task = Choice(rows, rows.own, score, evidence.space, k, folds, prior, metric, tradeoff, seed)
    fold_of(rows.n, folds, seed)        # refused here, before any work
    return _selected(task, evidence, method, repeats, temperature, groups)


def _selected(task: Choice, evidence: Evidence, method: str, repeats: int, temperature: bool,
              groups: ArrayLike | None) -> Selection:
    rows, m = task.rows, len(evidence.members)
    everything = np.arange(len(rows.labels))
    total, single = np.zeros(evidence.members.shape[1:]), np.zeros(evidence.members.shape[1:])
    chosen: list[np.ndarray] = []
    methods: list[str] = []
    temperatures, folds = [], []
    for repeat in range(repeats):
        item_fold, row_fold = _folds(task, evidence, groups, repeat)
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
            best.append(fitted_weights(task, "best", train))
        total += _pooled_by_fold(evidence, weights, hot, item_fold) / repeats
        single += _pooled_by_fold(evidence, best, [1.0] * task.folds, item_fold) / repeats
        chosen += weights
        methods += used
        temperatures += hot
        folds.append(item_fold)
    w, name, t = _fitted(task, method, everything, temperature)
    plain = pooled(evidence.members, None, evidence.target, evidence.space, evidence.ignore_index)
    equal = _pooled_by_fold(evidence, [np.full(m, 1 / m)], [1.0], np.zeros(len(plain), int))
    plain = _with(plain, equal)         # by the arithmetic of the selection: the same weights differ by nothing
    prediction = _with(plain, total)
    against = {"all members": plain, "last": _with(plain, evidence.members[-1]), "best single": _with(plain, single)}
    scores = mean_scores(prediction, groups)
    fixed = method == "all" or (method == "last" and task.k is not None)
    choice = 0.0 if fixed else choice_variance(task, w, task.rows.n)
    differences = {}
    for label, other in against.items():
        gap = mean_differences(prediction, other, groups)
        # the best single one is chosen in the folds, too
        differences[label] = with_choice(gap, np.inf if label == "best single" else choice, task.folds)
    inside = float(task.losses(w, everything).mean()) if t == 1 else float(
        task.loss(scaled(np.log(np.maximum(task.pool(w, everything), TINY)), t), everything).mean())
    outside = 1 - scores["accuracy"].value if task.score == "accuracy" else scores[task.score].value
    return Selection(name, w, t, prediction, scores, differences, inside, outside - inside,
                     np.mean([one > 0 for one in chosen], axis=0), tuple(methods), np.array(folds),
                     np.array(chosen).reshape(repeats, task.folds, m), np.array(temperatures).reshape(repeats, task.folds),
                     choice, task.score,
                     _notes(task, evidence, differences["all members"], name, m, method))


def _notes(task: Choice, evidence: Evidence, gain: Scores, name: str, m: int, method: str) -> tuple[str, ...]:
    notes = []
    if m == 1:
        notes.append("there is one member, so nothing to choose")
    elif all(np.array_equal(evidence.members[0], one) for one in evidence.members[1:]):
        notes.append("all members say the same: no choice or weighting of them can gain anything")
    elif name != "all":
        value = gain[task.score].value * (-1 if task.score == "accuracy" else 1)
        if value >= 0:
            notes.append(f"{name!r} gains nothing on items it has not seen: keep all members")
        elif not gain[task.score].significant:
            notes.append("the gain out of fold is not told from chance")
    elif method == "auto":
        notes.append("no choice is better than all members by more than one standard error: they are kept")
    if evidence.members.ndim > 3:
        notes.append("choices were made on up to 4096 pixels an image; scores are of all of them")
    return tuple(notes)


def _folds(task: Choice, evidence: Evidence, groups: ArrayLike | None, repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """The fold of each item (n,) and of each row."""
    owner = cluster_of(groups, len(evidence.labels()))
    names = np.unique(owner)
    fold = fold_of(len(names), task.folds, task.seed + repeat)[np.searchsorted(names, owner)]
    if len(names) == task.rows.n:
        return fold, fold_of(len(names), task.folds, task.seed + repeat)[task.rows.cluster]
    # items or groups without a label that counts have no rows
    return fold, fold_of(task.rows.n, task.folds, task.seed + repeat)[task.rows.cluster]


def _fitted(task: Choice, method: str, train: np.ndarray, temperature: bool) -> tuple[np.ndarray, str, float]:
    """Weights (M,), the method and the temperature that rows `train` ask for."""
    name = simplest(task, train) if method == "auto" else method
    w = fitted_weights(task, name, train)
    if not temperature:
        return w, name, 1.0
    logs = np.empty((len(train), task.rows.p.shape[2]))
    for inner, held in inner_folds(task, train):
        logs[held] = np.log(np.maximum(task.pool(fitted_weights(task, name, inner), train[held]), TINY))
    return w, name, best_temperature(logs, task.rows.labels[train], len(np.unique(task.rows.cluster[train])))


def _pooled_by_fold(evidence: Evidence, weights: list[np.ndarray], temperatures: list[float], fold: np.ndarray) -> np.ndarray:
    """(n, classes, ...): each item by the weights and the temperature of its fold."""
    out = np.empty(evidence.members.shape[1:])
    for f, (w, t) in enumerate(zip(weights, temperatures, strict=True)):
        at = np.flatnonzero(fold == f)
        used = np.flatnonzero(w)
        part = np.zeros((len(at), *evidence.members.shape[2:]))
        for m in used:
            one = np.asarray(evidence.members[m, at], np.float64)
            part += w[m] * (one if evidence.space == "probability" else np.log(np.maximum(one, TINY)))
        if evidence.space == "logit":
            part = scaled(part, 1.0)
        out[at] = part if t == 1 else scaled(np.log(np.maximum(part, TINY)), t)
    return out


def _with(plain: Prediction, probabilities: np.ndarray) -> Prediction:
    dtype = plain.probabilities.dtype
    return replace(plain, probabilities=np.asarray(probabilities).astype(dtype))


def with_choice(differences: Scores, choice: float, folds: int) -> Scores:
    """Differences of a prediction that was chosen in so many folds, with the error of the choice, which has that variance in
    NLL; other scores' errors grow by the same factor."""
    factor = cross_fitted(differences["nll"].stderr, choice, folds)

    def widened(name: str, one: Score) -> Score:
        most = 1.0 if name == "accuracy" else np.inf
        return replace(one, stderr=factor * one.stderr, stderr_items=factor * one.stderr,
                       low=max(one.value - factor * (one.value - one.low), -most),
                       high=min(one.value + factor * (one.high - one.value), most))

    return Scores({name: widened(name, one) for name, one in differences.items()}, paired=True, notes=differences.notes)
