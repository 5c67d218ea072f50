"""How different snapshots are from each other, and the choice of a few that are diverse and good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.arrays import plain
from ensemblekit.averaging.gram import Gram
from ensemblekit.averaging.run import reduce
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import exponent_of, ldexp, power_of_two, representable
from ensemblekit.source import ReplicaSet, SnapshotSource, as_source

Metric = Literal["euclidean", "cosine", "correlation", "disagreement"] | Callable[[Any, Any], float]
Method = Literal["max-min", "volume", "score"]

RANK_TOLERANCE = 1e-10
"""Of the largest diagonal: a snapshot whose remaining volume is below lies in the span of those chosen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DiverseSubset(Result):
    """A few of n snapshots, in the order they were chosen."""

    indices: np.ndarray
    """Shape (k,), whole numbers, the snapshots chosen."""
    separation: float
    """Smallest distance between two chosen; NaN for one."""
    radius: float
    """Largest distance from any snapshot to the nearest one chosen."""
    objective: float
    """What the method made large: `separation` for "max-min", the log-determinant for "volume", the mean score plus
    tradeoff times the mean distance for "score"."""
    method: Method


def pairwise(snapshots: object, metric: Metric = "euclidean", *, engine: Engine | None = None) -> np.ndarray:
    """Distances between all pairs of snapshots, (n, n), symmetric with a zero diagonal.

    Arguments:
        snapshots: an array (n, *item) or a source of one field, larger than memory for the metrics that are
            functions of the Gram matrix (read once in slabs of space).
        metric: "euclidean"; "cosine", 1 - cos of the angle; "correlation", the same of items less their own mean over
            elements (arrays only); "disagreement", the share of elements whose labels (whole numbers or booleans)
            differ (arrays only); or a function of two snapshots (arrays only), called once for each pair.

    Raises:
        InputError: values that are not finite numbers, labels that are not whole numbers, an unknown metric.
        StatisticsError: an angle with a snapshot of length zero.
    """
    if metric in ("euclidean", "cosine"):
        if metric == "cosine":      # an angle is that of divided snapshots
            return from_gram(_gram(snapshots, "none", engine)[0], metric)
        gram, e = gram_over(snapshots, "first", engine=engine)
        return representable(from_gram(gram), e, "a distance")
    if isinstance(snapshots, SnapshotSource):
        raise InputError(f"{metric!r} takes an array in memory; from a source: \"euclidean\" or \"cosine\"")
    x = as_array(snapshots, "snapshots", kinds=None)
    if x.ndim == 0 or len(x) == 0:
        raise InputError(f"snapshots lie along axis 0 of an array; got shape {x.shape}")
    if callable(metric):
        return _called(x, metric)
    flat = x.reshape(len(x), -1)
    if metric == "correlation":
        flat = _each_over_its_own(flat.astype(np.float64))
        return from_gram(_gram(flat - flat.mean(axis=1, keepdims=True), "none", engine)[0], "cosine")
    if metric == "disagreement":
        return _disagreement(flat)
    raise InputError('metric is "euclidean", "cosine", "correlation", "disagreement" or a function of two snapshots; '
                     f"got {metric!r}")


def from_gram(gram: np.ndarray, metric: Literal["euclidean", "cosine"] = "euclidean") -> np.ndarray:
    """Distances (n, n) from inner products (n, n): √(G_ii + G_jj - 2 G_ij), or 1 - G_ij/√(G_ii G_jj).

    For "euclidean" take Gram(center="first") or "mean": the same distances, fewer digits lost.
    """
    g = as_array(gram, "the Gram matrix", named_axes=True).real.astype(np.float64)
    if g.ndim != 2 or g.shape[0] != g.shape[1]:
        raise InputError(f"a Gram matrix is (n, n); got shape {g.shape}")
    if not np.isfinite(g).all():
        raise InputError("the inner products are not finite: some snapshot holds NaN or infinity")
    own = np.diag(g)
    # the root of a power of two that is even comes out of a distance, a power for each snapshot cancels from an angle
    if metric == "euclidean":
        half = power_of_two(g) // 2
        g = ldexp(g, -2 * half)
        own = np.diag(g)
        d = np.sqrt(np.maximum(own[:, None] + own[None] - 2 * g, 0.0))
        d = representable(d, half, "a distance")
    elif metric == "cosine":
        if (own <= 0).any():
            raise StatisticsError(f"snapshot {int(np.argmax(own <= 0))} has length zero, so no angle with the others")
        each = np.asarray(exponent_of(own)) // 2
        g = ldexp(g, -(each[:, None] + each))
        own = np.diag(g)
        d = np.clip(1 - g / np.sqrt(own[:, None] * own[None]), 0.0, 2.0)
    else:
        raise InputError(f'metric is "euclidean" or "cosine"; got {metric!r}')
    d = (d + d.T) / 2
    np.fill_diagonal(d, 0.0)
    return d


def diverse_subset(snapshots: object, k: int, *, scores: ArrayLike | None = None, method: Method = "max-min",
                   metric: Metric = "euclidean", tradeoff: float = 1.0, engine: Engine | None = None) -> DiverseSubset:
    """Choose k of n snapshots that are far from each other, and good where scores are given; deterministic.

    Arguments:
        snapshots, metric: as :func:`pairwise`.
        k: how many, 1 to n.
        scores: (n,), larger is better. "max-min" starts from the best; "volume" multiplies the similarity of i and j
            by exp((score_i + score_j)/2) (quality times diversity); "score" needs them.
        method: "max-min": always the snapshot farthest from those chosen (Gonzalez 1985): `radius` is at most twice
            and `separation` at least half of the best possible. "volume": the largest determinant of the similarity
            matrix exp(-d²/2s²), s the median distance (greedy; Chen, Zhang & Zhou, NeurIPS 2018). "score": mean score
            + tradeoff × mean distance among those chosen, greedy, then exchanged while that helps.

    Raises:
        InputError: k outside 1 to n, scores that are missing or do not fit, an unknown method.
        StatisticsError: "volume" with k above the number of different snapshots.
    """
    d = pairwise(snapshots, metric, engine=engine)
    return choose(d, k, scores=scores, method=method, tradeoff=tradeoff)


def choose(distances: np.ndarray, k: int, *, scores: ArrayLike | None = None, method: Method = "max-min",
           tradeoff: float = 1.0) -> DiverseSubset:
    """:func:`diverse_subset` from distances (n, n) that are already there."""
    d = as_array(distances, "distances", dtype=np.float64, named_axes=True)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or not np.isfinite(d).all() or (d < 0).any():
        raise InputError(f"distances are (n, n), finite and not negative; got shape {d.shape}")
    n = len(d)
    if not isinstance(k, int | np.integer) or not 1 <= k <= n:
        raise InputError(f"k is a whole number from 1 to {n}, the number of snapshots; got {k!r}")
    s = None
    if scores is not None:
        s = as_array(scores, "scores", dtype=np.float64)
        if s.shape != (n,) or not np.isfinite(s).all():
            raise InputError(f"scores are one finite number a snapshot, shape ({n},); got shape {s.shape}")
    if method == "max-min":
        chosen = farthest_points(d, k, None if s is None else int(np.argmax(s)))
        objective = _separation(d, chosen)
    elif method == "volume":
        kernel = _similarity(d)
        if s is not None:
            quality = np.exp((s - s.max()) / 2)
            kernel = kernel * quality[:, None] * quality[None]
        chosen = largest_volume(kernel, k)
        objective = float(np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1]) + (k * s.max() if s is not None else 0)
    elif method == "score":
        if s is None:
            raise InputError('method="score" needs scores=, one number a snapshot, larger is better')
        chosen = _score_and_distance(d, s, k, tradeoff)
        objective = _score(d, s, chosen, tradeoff)
    else:
        raise InputError(f'method is "max-min", "volume" or "score"; got {method!r}')
    return DiverseSubset(indices=chosen, separation=_separation(d, chosen), radius=float(d[:, chosen].min(1).max()),
                         objective=float(objective), method=method)


def farthest_points(distances: np.ndarray, k: int, first: int | None = None) -> np.ndarray:
    """Gonzalez' greedy choice of k, (k,): each the farthest from those before, ties to the lowest index.

    `first`: where to start; None: an end of the largest distance.
    """
    if first is None:
        first = int(np.argmax(distances.max(axis=1)))
    chosen, nearest = [first], distances[first].copy()
    for _ in range(k - 1):
        nearest[chosen] = -1.0      # duplicates come last, but no snapshot twice
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return np.array(chosen)


def largest_volume(kernel: np.ndarray, k: int) -> np.ndarray:
    """Greedy choice of k, (k,), with the largest determinant of kernel[chosen, chosen]; positive semidefinite (n, n).

    One row of the Cholesky factor a step: O(n k²) in all (Chen, Zhang & Zhou 2018, algorithm 1).
    """
    n = len(kernel)
    left = np.diag(kernel).astype(np.float64).copy()
    enough = RANK_TOLERANCE * left.max()
    rows = np.zeros((k, n))
    chosen: list[int] = []
    for step in range(k):
        best = int(np.argmax(left))
        if left[best] <= enough:
            raise StatisticsError(f"only {step} snapshots span a volume, {k} were asked for: the others are copies or "
                                  'combinations of them. Ask for fewer, or use method="max-min"')
        rows[step] = (kernel[best] - rows[:step, best] @ rows[:step]) / np.sqrt(left[best])
        left -= rows[step] ** 2
        chosen.append(best)
        left[chosen] = -np.inf
    return np.array(chosen)


def _score_and_distance(d: np.ndarray, scores: np.ndarray, k: int, tradeoff: float) -> np.ndarray:
    """Greedy, then the best exchange of one chosen for another while it improves the objective."""
    pairs = k * (k - 1) / 2
    weight = tradeoff / pairs if pairs else 0.0
    chosen: list[int] = []
    reach = np.zeros(len(d))        # sum of distances to those chosen
    for _ in range(k):
        # half of the score: the greedy choice is then at least half as good as the best (Borodin, Lee & Ye 2012)
        gain = scores / (2 * k) + weight * reach
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        reach = reach + d[chosen[-1]]
    for _ in range(len(d) * k):     # each exchange improves; the bound only guards against rounding
        inside = np.array(chosen)
        # out of j, in of i: scores and distances to the others that stay
        gain = (scores[None, :] - scores[inside][:, None]) / k \
            + weight * (reach[None, :] - d[inside] - reach[inside][:, None])
        gain[:, inside] = -np.inf
        out, new = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if not gain[out, new] > 1e-12 * (abs(scores).max() + tradeoff * d.max()):
            break
        reach = reach - d[chosen[out]] + d[new]
        chosen[out] = int(new)
    return np.array(chosen)


def _score(d: np.ndarray, scores: np.ndarray, chosen: np.ndarray, tradeoff: float) -> float:
    k = len(chosen)
    spread = d[np.ix_(chosen, chosen)].sum() / (k * (k - 1)) if k > 1 else 0.0
    return float(scores[chosen].mean() + tradeoff * spread)


def _separation(d: np.ndarray, chosen: np.ndarray) -> float:
    if len(chosen) < 2:
        return float("nan")
    return float(d[np.ix_(chosen, chosen)][np.triu_indices(len(chosen), 1)].min())


def _similarity(d: np.ndarray) -> np.ndarray:
    """exp(-d²/2s²) with s the median distance between different snapshots."""
    apart = d[d > 0]
    scale = np.median(apart) if apart.size else 1.0
    return np.exp(-0.5 * (d / scale) ** 2)


class _DividedGram(Gram):
    """Inner products as (matrix, exponents) of snapshots divided by powers of two."""

    def result(self) -> Any:
        matrix = np.asarray(plain(self.matrix)) if self.matrix is not None else super().result()
        return matrix, np.zeros(len(matrix), np.int64) if self.exponent is None else self.exponent


def gram_over(snapshots: object, center: Literal["none", "mean", "first"], *,
              engine: Engine | None = None) -> tuple[np.ndarray, int]:
    """Inner products (n, n) over 4**e, and e: 0 but where they would be beyond the range of float64."""
    gram, each = _gram(snapshots, center, engine)
    if not each.any():
        return gram, 0
    largest = int(each[np.diag(gram) != 0].max(initial=each.min()))
    return ldexp(gram, each[:, None] + each - 2 * largest), largest


def _gram(snapshots: object, center: Literal["none", "mean", "first"], engine: Engine | None) -> tuple[np.ndarray, np.ndarray]:
    source = as_source(snapshots)
    if isinstance(source, ReplicaSet):
        source = source.stacked()
    return reduce(source, _DividedGram(center=center), cut="space", engine=engine)


def _each_over_its_own(x: np.ndarray) -> np.ndarray:
    """Snapshots over a power of two each: their angles stay the same."""
    e = power_of_two(x.reshape(len(x), -1), 1)
    return ldexp(x, -e.reshape(-1, *[1] * (x.ndim - 1))) if e.any() else x


def _called(x: np.ndarray, metric: Callable[[Any, Any], float]) -> np.ndarray:
    d = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        for j in range(i):
            d[i, j] = d[j, i] = metric(x[i], x[j])
    if not np.isfinite(d).all():
        i, j = np.argwhere(~np.isfinite(d))[0]
        raise InputError(f"the metric gives {d[i, j]} for snapshots {min(i, j)} and {max(i, j)}")
    return d


def _disagreement(labels: np.ndarray) -> np.ndarray:
    """Matches counted by one matrix product a label."""
    if labels.dtype.kind not in "biu":
        raise InputError(f"disagreement compares labels, whole numbers or booleans; got dtype {labels.dtype}. Take "
                         "argmax over the classes first")
    same = np.zeros((len(labels), len(labels)))
    for label in np.unique(labels):
        hit = (labels == label).astype(np.float64)
        same += hit @ hit.T
    return 1 - same / labels.shape[1]
