"""How many independently trained networks an ensemble is worth: the deep-ensemble equivalent (Ashukha et al., ICLR 2020)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.crossed import crossed_ratio
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.evidence import Evidence, Source, cluster_of, evidence_of, rows_of
from ensemblekit.neural.intervals import degrees_of_freedom, standard_error
from ensemblekit.neural.items import Values
from ensemblekit.neural.pools import TINY, ClassPools, NumberPools
from ensemblekit.neural.prediction import Prediction, RegressionPrediction
from ensemblekit.neural.saved import SavedPredictions
from ensemblekit.neural.scores import is_runs
from ensemblekit.neural.temperature import scaled
from ensemblekit.neural.uncertainty import check_space
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.store.store import Store

Score = Literal["calibrated_nll", "nll", "brier", "accuracy", "mse"]
SCORES_HERE = ("calibrated_nll", "nll", "brier", "accuracy", "mse")
Judged = Prediction | RegressionPrediction | tuple[Values, Values] | Source
"""One run of a method, or one network."""
ALL_SUBSETS = 8
"""Seeds of which all subsets are pooled."""


@dataclass(frozen=True, slots=True, eq=False)
class Equivalent(Result):
    """The number of independently trained networks whose ensemble scores as well."""

    FIGURE: ClassVar[str] = "neural_evidence.equivalent"

    value: float
    """1 to K, the number of reference seeds; see `beyond`."""
    low: float
    """Of the interval; 0 where even one network is not told from the method on that side."""
    high: float
    """Infinite where K networks are not told from the method on that side."""
    beyond: Literal["", "below", "above"]
    """"below": worse than one network; "above": better than K. Nothing is extrapolated."""
    curve: tuple[tuple[int, float, float], ...]
    """(l, mean, standard error) of the score of l networks, made monotone."""
    method_score: float
    """Mean over its runs."""
    method_stderr: float
    """Over items, and over runs where there are several."""
    score: str
    by_members: tuple[float, ...]
    """Of the last 1, 2, ... M members, where members were given."""
    confidence: float
    n_seeds: int
    n_runs: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        value = {"": f"{self.value:.3g}", "below": "< 1", "above": f"> {self.n_seeds}"}[self.beyond]
        lines = [f"worth {value} independently trained networks ({self.low:.3g} to {self.high:.3g}, {self.confidence:.0%} "
                 f"interval) by "
                 f"{self.score}",
                 f"  {self.score} {self.method_score:.4g}; of " + ", ".join(f"{k}: {mean:.4g}" for k, mean, _ in self.curve)]
        if self.by_members:
            lines.append("  last members: " + ", ".join(f"{k + 1}: {v:.3g}" for k, v in enumerate(self.by_members)))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__


class _Curve(NamedTuple):
    """Losses of pools of l = 1 ... K seeds."""

    items: np.ndarray       # (K, n): sums over each item or group, mean over the pools of l
    value: np.ndarray       # (K,)
    influence: np.ndarray   # (K, seeds): what leaving a seed out moves the value by
    monotone: np.ndarray    # (K, K): that makes the value non-increasing, a mean over neighbours


def deep_ensemble_equivalent(method: Judged | Sequence[Judged], reference: Judged | Sequence[Judged], *,
                             score: Score = "calibrated_nll", subsets: int = 64, target: Values | None = None,
                             groups: ArrayLike | None = None, confidence: float = 0.95, seed: int = 0,
                             space: str | None = None) -> Equivalent:
    """How many independently trained networks score as well as a method, with an interval over items, seeds and runs.

    c(l) is the mean score of pools of l of the K reference seeds (each pool with its own cross-fitted temperature by
    default), joined linearly between whole l and made monotone; the answer is the least l with c(l) as good as the method.
    The interval holds every l whose difference from the method is not told from 0 by Student's test.

    Arguments:
        method: a Prediction or (probabilities, labels); a list of such, one an independent run; or the members of a run
        (SavedPredictions,
            a store or its path, an array (M, n, classes, ...)), which give `by_members` too. For "mse" predictions of numbers.
        reference: predictions of K >= 3 independently trained networks on the same items: a list of the same kinds or an array
            (K, n, classes, ...). Of a run with several members the last is taken.
        score: "calibrated_nll", "nll", "brier", "accuracy"; "mse" for numbers.
        subsets: pools of each l where K is above 8; all of them else.
        target: labels, where arrays come without.
        space: that members are pooled in; None: that of the method.

    Raises:
        InputError: fewer than three seeds, seeds that are copies, other items or classes, no labels.
    """
    if score not in SCORES_HERE:
        raise InputError(f"score is one of {', '.join(SCORES_HERE)}; got {score!r}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
    if not isinstance(subsets, int | np.integer) or subsets < 1:
        raise InputError(f"subsets is a whole number of 1 or more; got {subsets!r}")
    notes: list[str] = []
    problem: ClassPools | NumberPools = _numbers(method, reference, target, groups) if score == "mse" else \
        _classes(method, reference, target, groups, space, score, seed, notes)
    k = len(problem.seeds)
    if k < 3:
        raise InputError(f"an interval over reference seeds needs three or more; got {k}. Train more, or compare the two with "
                         "neural.compare")
    _refuse_copies(problem.seeds)
    if len(problem.runs) == 1:
        notes.append("one run of the method: the luck of its training is not covered")
    curve = _curve(problem, subsets, seed)
    ours = np.array([problem.loss(pool) for pool in problem.runs])
    result = _inverted(curve, ours, problem.sizes, confidence)
    members = tuple(_inverse(curve, float(problem.loss(pool).sum() / problem.sizes.sum()))[0] for pool in problem.by_members)
    return _as_score(replace(result, score=score, by_members=members, n_seeds=k, notes=tuple(notes)), problem.exponent)


def _as_score(result: Equivalent, exponent: int) -> Equivalent:
    """Losses as what they are called: the accuracy is 1 less its loss, the squared error has its unit back."""
    if result.score == "accuracy":
        return replace(result, method_score=1 - result.method_score,
                       curve=tuple((k, 1 - mean, e) for k, mean, e in result.curve))
    e = 2 * exponent
    return replace(result, method_score=ldexp(result.method_score, e), method_stderr=ldexp(result.method_stderr, e),
                   curve=tuple((k, ldexp(mean, e), ldexp(error, e)) for k, mean, error in result.curve))


def _classes(method: Judged | Sequence[Judged], reference: Judged | Sequence[Judged], target: Values | None,
             groups: ArrayLike | None, space: str | None, score: str, seed: int, notes: list[str]) -> ClassPools:
    given = [_evidence(one, target, space, f"run {k} of the method") for k, one in enumerate(_listed(method))]
    pooling = given[0].space if space is None else check_space(space)
    last, several = [], False
    for k, one in enumerate(_listed(reference, seeds=True)):
        evidence = _evidence(one, target, None, f"reference seed {k}")
        several |= len(evidence.members) > 1
        last.append(replace(evidence, members=evidence.members[-1:]))
    if several:
        notes.append("a reference run has several members; its last one is taken")
    if not last:
        raise InputError("no reference came; give predictions of three or more independently trained networks")
    labels = next((one.target for one in (*given, *last) if one.target is not None), None)
    for k, one in enumerate((*given, *last)):
        name = f"run {k} of the method" if k < len(given) else f"reference seed {k - len(given)}"
        if one.members.shape[1:] != given[0].members.shape[1:]:
            raise InputError(f"method and reference are about the same items and classes; {name} is "
                             f"{one.members.shape[1:]}, run 0 of "
                             f"the method {given[0].members.shape[1:]}")
        if one.target is not None and labels is not None and not np.array_equal(one.target, labels):
            raise InputError(f"method and reference are about the same items in the same order; the labels of {name} differ")
    ignore = next((one.ignore_index for one in (*given, *last) if one.ignore_index is not None), None)
    together = Evidence(np.concatenate([one.members for one in last]), labels, pooling, ignore)
    rows = rows_of(together, groups, seed)

    def of(members: np.ndarray) -> np.ndarray:
        p = np.asarray(rows_of(replace(together, members=members), groups, seed).p, np.float64)
        return p if pooling == "probability" else np.log(np.maximum(p, TINY))

    def pool(p: np.ndarray) -> np.ndarray:
        mean = p.mean(axis=0)
        return mean if pooling == "probability" else scaled(mean, 1.0)

    parts = [of(one.members) for one in given]
    m = len(parts[0])
    curve = [pool(parts[0][m - k:]) for k in range(1, m + 1)] if len(parts) == 1 and m > 1 else []
    if together.members.ndim > 3:
        notes.append("maps are scored on up to 4096 pixels an image")
    return ClassPools(of(together.members), [pool(p) for p in parts], curve, rows, score, pooling, seed)


def _numbers(method: Judged | Sequence[Judged], reference: Judged | Sequence[Judged], target: Values | None,
             groups: ArrayLike | None) -> NumberPools:
    runs = _listed(method)
    labels = target
    if labels is None:
        labels = next((one.target for one in (*runs, *_listed(reference, seeds=True))
                       if isinstance(one, RegressionPrediction) and one.target is not None), None)
    if labels is None:
        raise InputError("these predictions have no targets; pass target=")
    want = as_array(labels, "targets", dtype=np.float64)

    def members(one: Judged, what: str) -> np.ndarray:
        x = one.mean if isinstance(one, RegressionPrediction) else one
        x = as_array(x, what, dtype=np.float64)
        x = x[None] if x.ndim == want.ndim else x
        if x.shape[1:] != want.shape:
            raise InputError(f"{what} is (n, ...) or (members, n, ...) like the targets, {want.shape}; got {x.shape}")
        if isinstance(one, RegressionPrediction) and one.target is not None and not np.array_equal(one.target, want):
            raise InputError(f"method and reference are about the same items in the same order; the targets of {what} differ")
        if not np.isfinite(x).all():
            raise InputError(f"{what} holds a number that is not finite, in member {int(np.argwhere(~np.isfinite(x))[0][0])}")
        return x.reshape(len(x), len(want), -1)

    ours = [members(one, f"run {k} of the method") for k, one in enumerate(runs)]
    seeds = np.concatenate([members(one, f"reference seed {k}")[-1:] for k, one in enumerate(_listed(reference, seeds=True))])
    flat = want.reshape(len(want), -1)
    e = int(power_of_two(np.concatenate([seeds - flat, *(x - flat for x in ours)])))
    m = len(ours[0])
    curve = [ldexp(ours[0][m - k:].mean(0), -e) for k in range(1, m + 1)] if len(ours) == 1 and m > 1 else []
    return NumberPools(ldexp(seeds, -e), [ldexp(x.mean(0), -e) for x in ours], curve, ldexp(flat, -e), cluster_of(groups,
                                                                                                               len(want)), e)


def _listed(given: Judged | Sequence[Judged], seeds: bool = False) -> list[Judged]:
    """Runs of the method, or seeds: what is no list is one run, or an array of seeds."""
    if isinstance(given, list):
        return given
    if isinstance(given, tuple):
        return list(given) if is_runs(given) else [given]
    if isinstance(given, str | os.PathLike | Prediction | RegressionPrediction | SavedPredictions | Store | Evidence):
        return [given]
    array = as_array(given, "the reference" if seeds else "the method")
    return list(array) if seeds else [array]


def _evidence(one: Judged, target: Values | None, space: str | None, what: str) -> Evidence:
    if isinstance(one, RegressionPrediction):
        raise InputError(f"{what} is of numbers; ask for score=\"mse\"")
    if isinstance(one, tuple) and len(one) == 2:
        one, target = one
    if isinstance(one, Prediction):
        labels = one.target if target is None else target
        return evidence_of(one.probabilities[None], labels, what=what, space=space or one.space, ignore_index=one.ignore_index)
    if isinstance(one, SavedPredictions | Store | Evidence | str | os.PathLike):
        return evidence_of(one, target, what=what, space=space)
    x = as_array(one, what)
    labels = None if target is None else as_array(target, "labels")
    if x.ndim == 2 or (labels is not None and x.ndim == labels.ndim + 1):
        x = x[None]
    return evidence_of(x, labels, what=what, space=space)


def _refuse_copies(seeds: np.ndarray) -> None:
    for i, j in itertools.combinations(range(len(seeds)), 2):
        if np.array_equal(seeds[i], seeds[j]):
            raise InputError(f"reference seeds {i} and {j} say the same on every item: one is a copy of the other, not an "
                             f"independent "
                             "training")


# -- the curve and its inverse ---------------------------------------------------------------------------------------


def _subsets(k: int, size: int, wanted: int, seed: int) -> list[tuple[int, ...]]:
    """Pools of that size, every seed equally often."""
    if k <= ALL_SUBSETS or size in (1, k - 1, k):
        return list(itertools.combinations(range(k), size))
    rng = np.random.default_rng([seed, size])
    subsets = []
    for _ in range(-(-wanted // k)):        # windows round a permutation
        order = rng.permutation(k)
        subsets += [tuple(sorted(order[(start + np.arange(size)) % k].tolist())) for start in range(k)]
    return subsets


def _curve(problem: ClassPools | NumberPools, wanted: int, seed: int) -> _Curve:
    k, total = len(problem.seeds), problem.sizes.sum()
    items, value, influence = [], np.empty(k), np.zeros((k, k))
    for size in range(1, k + 1):
        chosen = _subsets(k, size, wanted, seed)
        mean = np.zeros(len(problem.sizes))
        losses = np.empty(len(chosen))
        for i, which in enumerate(chosen):
            one = problem.loss(problem.pool(which))
            mean += one / len(chosen)
            losses[i] = one.sum() / total
        items.append(mean)
        value[size - 1] = losses.mean()
        if size < k:
            held = np.array([[s in which for which in chosen] for s in range(k)])
            influence[size - 1] = [losses[~row].mean() for row in held] - value[size - 1]
    influence[k - 1] = influence[k - 2]
    return _Curve(np.array(items), value, influence, _monotone(value))


def _monotone(value: np.ndarray) -> np.ndarray:
    """(K, K): means over neighbours after which `value` never rises (pool adjacent violators)."""
    blocks: list[list[int]] = []
    for k in range(len(value)):
        blocks.append([k])
        while len(blocks) > 1 and value[blocks[-1]].mean() > value[blocks[-2]].mean():
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    out = np.zeros((len(value), len(value)))
    for block in blocks:
        out[np.ix_(block, block)] = 1 / len(block)
    return out


def _inverse(curve: _Curve, loss: float) -> tuple[float, Literal["", "below", "above"]]:
    """The least l with c(l) <= loss, and on which side of the ends it lies."""
    c = curve.monotone @ curve.value
    if loss > c[0]:
        return 1.0, "below"
    if loss < c[-1]:
        return float(len(c)), "above"
    k = int(np.argmax(c <= loss))
    if k == 0:
        return 1.0, ""
    return k + float((c[k - 1] - loss) / (c[k - 1] - c[k])), ""


def _inverted(curve: _Curve, ours: np.ndarray, sizes: np.ndarray, confidence: float) -> Equivalent:
    from scipy.special import stdtrit

    k, total, few = len(curve.value), sizes.sum(), degrees_of_freedom(sizes)
    mean = ours.mean(0)
    loss = float(mean.sum() / total)
    runs = crossed_ratio(ours, sizes, few).stderr_runs if len(ours) > 1 else 0.0
    value, beyond = _inverse(curve, loss)
    items = curve.monotone @ curve.items
    moved = curve.monotone @ curve.influence
    grid = np.unique(np.concatenate([np.linspace(1, k, 40 * (k - 1) + 1), [value]]))

    def test(at: float) -> tuple[float, float]:
        """The difference, and how large it may be by chance."""
        below = min(int(at) - 1, k - 2)
        share = at - 1 - below
        c = (1 - share) * items[below] + share * items[below + 1]
        influence = (1 - share) * moved[below] + share * moved[below + 1]
        parts = [(standard_error(mean - c, sizes) ** 2, few),
                 ((k - 1) / k * float(((influence - influence.mean()) ** 2).sum()), k - 1.0), (runs**2, max(len(ours) - 1.0,
                                                                                                            1.0))]
        variance = sum(v for v, _ in parts)
        gap = float((mean - c).sum() / total)
        if not variance > 0:
            return gap, 0.0
        dof = variance**2 / sum(v**2 / f for v, f in parts)
        return gap, float(stdtrit(dof, 0.5 + confidence / 2)) * float(np.sqrt(variance))

    tests = np.array([test(at) for at in grid])
    held = abs(tests[:, 0]) <= tests[:, 1]
    if held.any():
        low = 0.0 if held[0] else float(grid[held][0])
        high = float("inf") if held[-1] else float(grid[held][-1])
    elif tests[0, 0] > 0:
        low, high = 0.0, 1.0
    else:
        low, high = float(k), float("inf")
    shown = []
    for size in range(k):
        error = np.hypot(standard_error(items[size], sizes),
                         np.sqrt((k - 1) / k * ((moved[size] - moved[size].mean()) ** 2).sum()))
        shown.append((size + 1, float(items[size].sum() / total), float(error)))
    return Equivalent(value, low, high, beyond, tuple(shown), loss, float(np.hypot(standard_error(mean, sizes), runs)), "",
                      (), confidence,
                      k, len(ours), ())
