"""Consecutive snapshots as sums over blocks of every length, aligned at powers of two, with the ends that have no pair yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ensemblekit.averaging.arrays import in_range
from ensemblekit.averaging.rows import rows_of
from ensemblekit.errors import InputError
from ensemblekit.scaling import ldexp
from ensemblekit.source import Array


@dataclass(slots=True, eq=False)
class Segment:
    """Snapshots [start, stop): their bins at every level, as flat float64 arrays (width,).

    What is averaged is x, or w (x - centre) where there are weights.
    """

    start: int
    stop: int
    mean: np.ndarray
    m2: list[np.ndarray]                # of the complete bins of each level
    low: dict[int, np.ndarray]          # level -> the odd bin at the left end, whose partner is before `start`
    high: dict[int, np.ndarray]         # level -> the even bin at the right end, whose partner is to come
    weighted: bool
    centre: np.ndarray
    w_mean: float
    cross: list[np.ndarray]             # co-moments of both means
    w2: list[float]
    w_low: dict[int, float]
    w_high: dict[int, float]

    def centred(self, centre: np.ndarray) -> Segment:
        """The same about another centre: w (x - c') = w (x - c) - (c' - c) w."""
        if not self.weighted:
            return self
        d = centre - self.centre
        return Segment(self.start, self.stop, self.mean - d * self.w_mean,
                        [a - 2 * d * b + d**2 * c for a, b, c in zip(self.m2, self.cross, self.w2, strict=True)],
                        {k: v - d * self.w_low[k] for k, v in self.low.items()},
                        {k: v - d * self.w_high[k] for k, v in self.high.items()}, True, centre, self.w_mean,
                        [b - d * c for b, c in zip(self.cross, self.w2, strict=True)], self.w2, self.w_low, self.w_high)

    def over(self, step: int | np.ndarray, w_step: int) -> Segment:
        """The same with values divided by 2**step, element by element, and weights by 2**w_step."""
        one = step + w_step if self.weighted else step
        return Segment(self.start, self.stop, ldexp(self.mean, -one), [ldexp(x, -2 * one) for x in self.m2],
                        {k: ldexp(x, -one) for k, x in self.low.items()},
                        {k: ldexp(x, -one) for k, x in self.high.items()}, self.weighted, ldexp(self.centre, -step),
                        ldexp(self.w_mean, -w_step), [ldexp(x, -one - w_step) for x in self.cross],
                        [ldexp(x, -2 * w_step) for x in self.w2], {k: ldexp(x, -w_step) for k, x in self.w_low.items()},
                        {k: ldexp(x, -w_step) for k, x in self.w_high.items()})

    def join(self, right: Segment) -> Segment:
        """The same snapshots with the elements of `right` after mine."""
        both = np.concatenate
        return Segment(self.start, self.stop, both([self.mean, right.mean]),
                        [both(p) for p in zip(self.m2, right.m2, strict=True)],
                        {k: both([v, right.low[k]]) for k, v in self.low.items()},
                        {k: both([v, right.high[k]]) for k, v in self.high.items()}, self.weighted,
                        both([self.centre, right.centre]), self.w_mean,
                        [both(p) for p in zip(self.cross, right.cross, strict=True)], self.w2, self.w_low, self.w_high)

    def on(self, change: Callable[[np.ndarray], np.ndarray]) -> Segment:
        """The same snapshots of the elements that `change` makes of mine."""
        return Segment(self.start, self.stop, change(self.mean), [change(x) for x in self.m2],
                        {k: change(x) for k, x in self.low.items()}, {k: change(x) for k, x in self.high.items()},
                        self.weighted, change(self.centre), self.w_mean, [change(x) for x in self.cross], list(self.w2),
                        dict(self.w_low), dict(self.w_high))

    def arrays(self) -> dict[str, np.ndarray]:
        named: dict[str, Any] = {"range": np.array([self.start, self.stop, self.weighted, len(self.m2)]),
                                 "mean": self.mean.copy(), "m2": np.array(self.m2)}
        for name, ends in (("low", self.low), ("high", self.high)):
            named[f"{name}levels_of"] = np.array(sorted(ends), dtype=np.int64)
            named[name] = np.array([ends[k] for k in sorted(ends)]).reshape(-1, len(self.mean))
        if self.weighted:
            named |= {"centre": self.centre.copy(), "w_mean": np.array(self.w_mean), "cross": np.array(self.cross),
                      "w2": np.array(self.w2), "w_low": np.array([self.w_low[k] for k in sorted(self.w_low)]),
                      "w_high": np.array([self.w_high[k] for k in sorted(self.w_high)])}
        return named

    @classmethod
    def of_arrays(cls, state: Mapping[str, Any]) -> Segment:
        start, stop, weighted, _ = (int(k) for k in state["range"])
        at = {name: [int(k) for k in state[f"{name}levels_of"]] for name in ("low", "high")}
        ends = {name: {k: np.array(v) for k, v in zip(levels, state[name], strict=True)} for name, levels in at.items()}
        mean = np.array(state["mean"])
        if not weighted:
            return cls(start, stop, mean, list(np.array(state["m2"])), ends["low"], ends["high"], False,
                       np.zeros(len(mean)), 1.0, [], [], {}, {})
        w_ends = {name: {k: float(v) for k, v in zip(levels, state[f"w_{name}"], strict=True)}
                  for name, levels in at.items()}
        return cls(start, stop, mean, list(np.array(state["m2"])), ends["low"], ends["high"], True,
                   np.array(state["centre"]), float(state["w_mean"]), list(np.array(state["cross"])),
                   [float(v) for v in state["w2"]], w_ends["low"], w_ends["high"])


def beyond_squares(segment: Segment) -> bool:
    """Whether a sum of squares may have over- or underflowed, for zeros too."""
    mean = segment.centre if segment.weighted else segment.mean
    return not in_range(abs(mean), segment.m2[0])


def segment_of(values: np.ndarray, start: int) -> Segment:
    """Unweighted snapshots: whole chunks of 64 by the compiled loop, the ends level by level."""
    from ensemblekit.averaging.kernels_blocking import LEVELS, ROWS, TILE, add_chunks

    n = len(values)
    head = min(n, -start % ROWS)
    chunks = (n - head) // ROWS
    if not chunks:
        return levels_of(values.reshape(n, -1).astype(np.float64), start)
    rows = rows_of(values[head:head + chunks * ROWS])
    squares, means = np.zeros((LEVELS, rows.width)), np.empty((chunks, rows.width))
    add_chunks(rows.flat, rows.stride, chunks, rows.width, squares, means, np.empty((8, TILE)))
    above = segment_of(means, (start + head) // ROWS)
    upper = above.m2[0]
    for k in reversed(range(LEVELS)):
        squares[k] *= 0.5
        squares[k] += 2.0 * upper
        upper = squares[k]
    middle = Segment(start + head, start + head + chunks * ROWS, above.mean, [*squares, *above.m2],
                      {k + LEVELS: v for k, v in above.low.items()}, {k + LEVELS: v for k, v in above.high.items()},
                      False, above.centre, 1.0, [], [], {}, {})
    if head:
        middle = joined_segments(levels_of(values[:head].reshape(head, -1).astype(np.float64), start), middle)
    rest = n - head - chunks * ROWS
    if rest:
        tail = values[n - rest:].reshape(rest, -1).astype(np.float64)
        middle = joined_segments(middle, levels_of(tail, start + n - rest))
    return middle


def levels_of(bins: np.ndarray, start: int, w: np.ndarray | None = None,
            centre: np.ndarray | None = None) -> Segment:
    """All levels of float64 rows (n, width), a weight sum w (n,) beside each, by plain pair averages."""
    from ensemblekit.averaging.kernels_blocking import TILE, climb_level

    n = len(bins)
    bins = np.ascontiguousarray(bins)
    segment = Segment(start, start + n, bins.mean(axis=0), [], {}, {}, w is not None,
                    np.zeros(bins.shape[1]) if centre is None else centre, 1.0 if w is None else float(w.mean()),
                    [], [], {}, {})
    at, k, room = start, 0, np.empty(TILE)
    while len(bins):
        skip = at % 2
        pairs = (len(bins) - skip) // 2
        m2, above = np.empty(bins.shape[1]), np.empty((pairs, bins.shape[1]))
        climb_level(bins.reshape(-1), len(bins), skip, m2, above.reshape(-1), pairs, room)
        segment.m2.append(m2)
        if skip:
            segment.low[k] = bins[0].copy()
        if (len(bins) - skip) % 2:
            segment.high[k] = bins[-1].copy()
        if w is not None:
            w_off = w - w.mean()
            segment.cross.append(w_off @ (bins - bins.mean(axis=0)))
            segment.w2.append(float(w_off @ w_off))
            if skip:
                segment.w_low[k] = float(w[0])
            if (len(bins) - skip) % 2:
                segment.w_high[k] = float(w[-1])
            w = 0.5 * (w[skip:skip + 2 * pairs:2] + w[skip + 1:skip + 2 * pairs:2])
        bins, at, k = above, (at + skip) // 2, k + 1
    return segment


class Seam(NamedTuple):
    """A bin next to the place where two segments meet."""

    at: int
    value: np.ndarray
    w: float


def joined_segments(a: Segment, b: Segment) -> Segment:
    """Two neighbours as one, in the arrays of `a`: bins that met at the seam are paired, level by level."""
    if a.weighted != b.weighted:
        raise InputError("some snapshots of this run carry weights and some do not; give weights to all or to none")
    b = b.centred(a.centre)
    share = (b.stop - b.start) / (b.stop - a.start)
    segment = Segment(a.start, b.stop, a.mean + (b.mean - a.mean) * share, a.m2, {}, {}, a.weighted, a.centre,
                    a.w_mean + (b.w_mean - a.w_mean) * share, a.cross, a.w2, {}, {})
    left, right = Unpaired(a), Unpaired(b)
    seam: Seam | None = None       # the bin of this level that straddles the seam
    k = 0
    while k < max(len(a.m2), len(b.m2)) or seam is not None:
        pool_level(segment, b, k, left, right, seam)
        near = [s for s in (Seam((a.stop >> k) - 1, a.high[k], a.w_high.get(k, 1.0)) if k in a.high else None, seam,
                            Seam(-(-b.start >> k), b.low[k], b.w_low.get(k, 1.0)) if k in b.low else None)
                if s is not None]
        if k in a.low:
            segment.low[k], segment.w_low[k] = a.low[k], a.w_low.get(k, 1.0)
        if k in b.high:
            segment.high[k], segment.w_high[k] = b.high[k], b.w_high.get(k, 1.0)
        left.climb(k)
        right.climb(k)
        seam = None
        while near:
            index, value, w = near.pop(0)
            if index % 2 == 0 and near and near[0].at == index + 1:
                other = near.pop(0)
                seam = Seam(index // 2, 0.5 * (value + other.value), 0.5 * (w + other.w))
            elif index % 2:
                segment.low[k], segment.w_low[k] = value, w
            else:
                segment.high[k], segment.w_high[k] = value, w
        k += 1
    if not a.weighted:
        segment.w_low, segment.w_high = {}, {}
    return segment


class Unpaired:
    """The sum of the snapshots that whole bins of one level cover: all, less the bins left over at the levels below."""

    def __init__(self, s: Segment):
        self.s = s
        self.total, self.w_total = s.mean * (s.stop - s.start), s.w_mean * (s.stop - s.start)

    def count(self, k: int) -> int:
        return max(0, (self.s.stop >> k) - -(-self.s.start >> k))

    def climb(self, k: int) -> None:
        """From level k to the next."""
        for ends, w_ends in ((self.s.low, self.s.w_low), (self.s.high, self.s.w_high)):
            if k in ends:
                self.total = self.total - ends[k] * 2.0**k
                self.w_total -= w_ends.get(k, 1.0) * 2.0**k


def pool_level(segment: Segment, b: Segment, k: int, left: Unpaired, right: Unpaired, seam: Seam | None) -> None:
    """The moments of level k: those of both sides and of the bin at the seam, by Chan, Golub & LeVeque (1983)."""
    from ensemblekit.averaging.kernels_blocking import join_level

    n, n_later = left.count(k), right.count(k)
    if k == len(segment.m2):
        segment.m2.append(np.zeros_like(segment.mean))
        if segment.weighted:
            segment.cross.append(np.zeros_like(segment.mean))
            segment.w2.append(0.0)
    later = b.m2[k] if k < len(b.m2) else np.zeros_like(segment.mean)
    if not segment.weighted:
        join_level(segment.m2[k], later, left.total, right.total, n, n_later, 2.0**k,
                   left.total if seam is None else seam.value, 0 if seam is None else 1)
        return
    cross, w2 = (b.cross[k], b.w2[k]) if k < len(b.m2) else (0.0, 0.0)
    parts = [(n, left.total, left.w_total, 0.0, 0.0, 0.0), (n_later, right.total, right.w_total, later, cross, w2)]
    if seam is not None:
        parts.append((1, seam.value * 2.0**k, seam.w * 2.0**k, 0.0, 0.0, 0.0))
    count, w_mean = 0, 0.0
    mean: Any = 0.0
    for m, total, w_total, m2, m_cross, m_w2 in parts:
        if m == 0:
            continue
        gap, w_gap = total / (m * 2.0**k) - mean, w_total / (m * 2.0**k) - w_mean
        share = count * m / (count + m)
        segment.m2[k] = segment.m2[k] + m2 + gap * gap * share
        segment.cross[k] = segment.cross[k] + m_cross + gap * (w_gap * share)
        segment.w2[k] += m_w2 + w_gap**2 * share
        count += m
        mean, w_mean = mean + gap * (m / count), w_mean + w_gap * (m / count)


def along_rows(numbers: np.ndarray, values: Array) -> np.ndarray:
    return np.asarray(numbers, dtype=np.float64).reshape(-1, *[1] * (values.ndim - 1))
