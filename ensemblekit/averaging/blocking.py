"""Errors of means by blocking: variances of the means of 1, 2, 4, ... snapshots, for arrays of any shape, in one pass.

Bins are aligned at multiples of their length *of the snapshot index in the run*, and a bin that waits for its partner
is kept at either end, so that neighbouring states merge exactly: any cut of the snapshots gives the same bins.

Weights: the mean is the ratio Σwx / Σw, whose error is that of the mean of the residual z = w (x - μ) / mean(w)
(delta method). μ is known at the end only, so bins hold w and w (x - c) with a fixed c near μ, and second moments of
both and between both, from which the variance of z is put together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.guard import MOST_BLOCKS, half_widths, matched, of_blocks
from ensemblekit.averaging.rows import rows_of
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import FREE, common, ldexp, power_of_two, scaled, weight_exponent
from ensemblekit.source import Array
from ensemblekit.source_clock import chosen_weights

FEWEST = 4
"""Blocks below which a level is not used: Student's t with fewer says nothing."""


def joined_in_pairs(means: np.ndarray, length: float) -> tuple[list[float], list[int], list[np.ndarray]]:
    """Means of stretches (n, size) of a length, joined in pairs again and again: length, count and variance each time."""
    lengths, counts, variances = [], [], []
    while len(means) >= 2:
        lengths.append(length)
        counts.append(len(means))
        variances.append(means.var(axis=0, ddof=1))
        means = 0.5 * (means[: len(means) // 2 * 2: 2] + means[1::2])
        length *= 2
    return lengths, counts, variances


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockResult(Result):
    """Variance of block means against block length (Flyvbjerg & Petersen, J. Chem. Phys. 91, 461, 1989)."""

    FIGURE = "averages.blocking"

    mean: Array
    """Weighted mean of all snapshots, shape (*item,)."""
    n: int
    """Snapshots."""
    lengths: np.ndarray
    """Snapshots in a block, (levels,): 1, 2, 4, ..."""
    counts: np.ndarray
    """Whole blocks of each length, (levels,); at least 2."""
    variances: Array
    """Unbiased variance of block means (with weights: of the residual), (levels, *item)."""
    exponent: Array | None = None
    """Set where values are so large or small that a variance may leave float64 (infinity or 0 then stand in it): whole
    numbers e of the item's shape with variances = `reduced` * 4**e. All but `variances` is right for all the same."""
    reduced: Array | None = None
    """Variances over 4**exponent, (levels, *item), where `exponent` is set."""

    def over_power_of_two(self) -> tuple[BlockResult, Any]:
        """(the result of the values divided by 2**e, e)."""
        if self.exponent is None:
            return self, 0
        return replace(self, mean=ldexp(self.mean, -self.exponent), variances=self.reduced, exponent=None,
                       reduced=None), self.exponent

    @property
    def stderr(self) -> Array:
        """Standard error of the mean at each level, (levels, *item): flat where blocks are independent."""
        if self.exponent is not None:
            return ldexp(self.over_power_of_two()[0].stderr, self.exponent)
        scale = self.lengths / self.n
        return np.sqrt(self.variances * _along(scale, self.variances))

    @property
    def stderr_error(self) -> Array:
        """Standard error of `stderr`, (levels, *item): stderr / sqrt(2 (count - 1))."""
        return self.stderr / np.sqrt(2.0 * _along(self.counts - 1, self.variances))

    @property
    def inefficiency(self) -> Array:
        """What each level shows of g, (levels, *item): B times the variance of its blocks over that of snapshots."""
        variances = self.variances if self.reduced is None else self.reduced
        with np.errstate(invalid="ignore", divide="ignore"):
            return variances * _along(self.lengths, variances) / variances[:1]

    @property
    def neighbours(self) -> Array:
        """Correlation of neighbouring blocks at each level but the last, (levels - 1, *item): log-binned C(t).

        2 v(2B) / v(B) - 1, so that lags up to the length of the run are seen of a series that was never kept.
        """
        variances = self.variances if self.reduced is None else self.reduced
        with np.errstate(invalid="ignore", divide="ignore"):
            return 2.0 * variances[1:] / variances[:-1] - 1.0

    def chosen(self) -> BlockError:
        """The error at the level each element needs, (*item,).

        The block is the shortest with B³ > 2 n g² (Wolff, Comput. Phys. Commun. 156, 143, 2004; Lee et al., Phys. Rev.
        E 83, 066706, 2011), g being the inefficiency this level shows, with at least four blocks. What blocks of that
        length still miss, were the correlation exponential, is added: a share (1 + 1/m) (g - 1/g) / (2 B). Degrees of
        freedom are such that Student's t times this error is half the interval of :meth:`half_width`.
        """
        if self.exponent is not None:
            block = self.over_power_of_two()[0].chosen()
            return block._replace(stderr=ldexp(block.stderr, self.exponent))
        if not len(self.counts) or self.counts[0] < FEWEST:
            raise StatisticsError(f"blocking needs at least {FEWEST} snapshots; got {self.n}")
        first = np.asarray(self.variances[0])
        shape = first.shape
        error, level = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        settled = np.zeros(shape, dtype=bool)
        with np.errstate(invalid="ignore", divide="ignore"):
            for k, (b, m) in enumerate(zip(self.lengths, self.counts, strict=True)):
                if m < FEWEST:
                    break
                v = np.asarray(self.variances[k])
                g = np.maximum(np.where(first > 0, b * v / first, 1.0), 1.0)
                missed = np.minimum((1 + 1 / m) * (g - 1 / g) / (2 * b), 0.5)
                error = np.where(settled, error, b * v / (1 - missed) / self.n)
                level = np.where(settled, level, k)
                settled = settled | (float(b) ** 3 > 2 * self.n * g**2)
            stderr, dof = matched(np.sqrt(error), self.half_width())
            g = np.where(first > 0, stderr**2 * self.n / first, 1.0)
        return BlockError(stderr, dof, g, level, settled)

    def half_width(self, floor: Any = None) -> np.ndarray:
        """Half the 95 % interval of the mean, (*item,), from the longest blocks: see :mod:`~ensemblekit.averaging.guard`.

        Sums of squares between the longest blocks of which there are four, and within pairs of all shorter ones down to those
        of which there are 16 to 31. floor: the least n var(mean), by default that of a periodic series.
        """
        last = max(k for k, m in enumerate(self.counts) if m >= FEWEST)
        first = next((k for k, m in enumerate(self.counts) if m <= MOST_BLOCKS), last)
        first = min(first, last)
        counts = self.counts[first:last + 1]
        lengths = self.lengths[first:last + 1]
        squares = self.variances[first:last + 1] * _along(lengths * (counts - 1), self.variances)
        squares[:-1] -= squares[1:]
        floor = np.asarray(self.variances[0]) / self.n if floor is None else floor
        guard = of_blocks(tuple(map(int, lengths)), tuple(map(int, counts)), self.n)
        return half_widths(squares, guard, floor) / np.sqrt(self.n)


class BlockError(NamedTuple):
    """Errors at the levels chosen; each an array of the shape of the item."""

    stderr: np.ndarray
    dof: np.ndarray
    """For Student's t at 95 %."""
    g: np.ndarray
    """Statistical inefficiency."""
    level: np.ndarray
    settled: np.ndarray
    """Whether the rule was met; else the longest block with four of its kind was taken."""


class BlockSums:
    """Second moments of block means at every power of two, streaming. Merges in order; O(item * log n) memory.

    Real numbers only. NaN or infinity in an element makes the answer of that element NaN.
    """

    def __init__(self) -> None:
        self.segment: _Segment | None = None
        self.item: tuple[int, ...] = ()
        self.exponent: np.ndarray | None = None     # powers of two that the values are divided by in the sums; None: none is
        self.weight_exponent = 0

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        values = as_array(values, "values")
        if values.dtype.kind not in "biuf":
            raise InputError(f"blocking is for real numbers; got dtype {values.dtype}. "
                             "Map complex numbers to their real and imaginary parts")
        item = values.shape[1:]
        if self.segment is not None and item != self.item:
            raise InputError(f"blocks of one field have one item shape; first {self.item}, now {item}")
        self.item = item
        if values.dtype == bool:
            values = values.view(np.uint8)
        w = None if weights is None else self._weighed(as_array(weights, "weights", dtype=np.float64))
        with np.errstate(invalid="ignore", over="ignore"):
            segment = None if self.exponent is not None else self._segment_of(values, start, w)
            wide = values.dtype.kind == "f" and values.dtype.itemsize > 4
            if segment is None or (wide and _unsafe(segment)):
                flat = values.reshape(len(values), -1).astype(np.float64)
                largest = np.abs(flat).max(axis=0)
                e = np.where(largest == 0, FREE, power_of_two(flat, 0))
                e = common(e, FREE if self.segment is None else self._free_exponents())
                self._rescale(e)
                if segment is None or e.any():
                    segment = self._segment_of(ldexp(flat, -e), start, w)
            self._absorb(segment)

    def _segment_of(self, values: np.ndarray, start: int, w: np.ndarray | None) -> _Segment:
        if w is None:
            return _plain_segment(values, start)
        x = values.reshape(len(values), -1).astype(np.float64)
        centre = x.mean(axis=0) if self.segment is None else self.segment.centre
        return _levels((x - centre) * w[:, None], start, w, centre)

    def _weighed(self, w: np.ndarray) -> np.ndarray:
        """Weights over the power of two that suits all so far."""
        self._weigh(weight_exponent(w, self.weight_exponent, self.segment is None or not self.segment.w_mean))
        return ldexp(w, -self.weight_exponent)

    def _weigh(self, exponent: int) -> None:
        if self.segment is not None and exponent != self.weight_exponent:
            self.segment = self.segment.over(0, exponent - self.weight_exponent)
        self.weight_exponent = exponent

    def _free_exponents(self) -> np.ndarray:
        """Powers of two of the elements, `FREE` where nothing but zeros was seen."""
        s = self.segment
        assert s is not None
        e = np.zeros(len(s.mean), np.int64) if self.exponent is None else self.exponent
        return np.where((s.mean == 0) & (s.m2[0] == 0) & (s.centre == 0), FREE, e)

    def _rescale(self, e: np.ndarray) -> None:
        old = np.zeros(len(e), np.int64) if self.exponent is None else self.exponent
        if self.segment is not None and (e != old).any():
            self.segment = self.segment.over(e - old, 0)
        self.exponent = e if e.any() else None

    def merge(self, later: Self) -> None:
        if later.segment is None:
            return
        if self.segment is None:        # a copy: what I hold is changed in place
            self.item, self.segment = later.item, _Segment.of_arrays(later.segment.arrays())
            self.exponent, self.weight_exponent = later.exponent, later.weight_exponent
            return
        segment = later.segment
        with np.errstate(invalid="ignore", over="ignore"):
            if self.weight_exponent != later.weight_exponent:
                self._weigh(max(self.weight_exponent, later.weight_exponent) if self.segment.w_mean
                            else later.weight_exponent)
                segment = segment.over(0, self.weight_exponent - later.weight_exponent)
            if self.exponent is not None or later.exponent is not None:
                e = common(self._free_exponents(), later._free_exponents())
                self._rescale(e)
                segment = segment.over(e - (0 if later.exponent is None else later.exponent), 0)
            self._absorb(segment)

    def _absorb(self, later: _Segment) -> None:
        mine = self.segment
        if mine is None:
            self.segment = later
            return
        if mine.stop != later.start:
            raise InputError(f"block sums merge in time order: mine end at snapshot {mine.stop}, the later ones begin "
                             f"at {later.start}")
        self.segment = _joined(mine, later)

    def part(self, at: slice) -> Self:
        """The sums of some of the elements, flat; a copy."""
        new = self.empty()
        if self.segment is not None:
            new.segment = self.segment.on(lambda x: x[at].copy())
            new.exponent = None if self.exponent is None else self.exponent[at].copy()
            new.weight_exponent, new.item = self.weight_exponent, (len(new.segment.mean),)
        return new

    def spread(self, places: np.ndarray, width: int) -> Self:
        """The sums of `width` elements of which mine are those at `places`, and the others have been 0 all the time."""
        def placed(x: np.ndarray) -> np.ndarray:
            wide = np.zeros(width, x.dtype)
            wide[places] = x
            return wide

        new = self.empty()
        if self.segment is not None:
            new.segment, new.item = self.segment.on(placed), (width,)
            new.exponent = None if self.exponent is None else placed(self.exponent)
            new.weight_exponent = self.weight_exponent
        return new

    def join(self, right: Self) -> None:
        mine, other = self.segment, right.segment
        if mine is None or other is None:
            self.segment = mine or other
            return
        if self.exponent is not None or right.exponent is not None:
            self.exponent = np.concatenate([np.zeros(len(s.mean), np.int64) if e is None else e
                                            for s, e in ((mine, self.exponent), (other, right.exponent))])
        self.segment = mine.join(other)
        self.item = (len(self.segment.mean),)

    def reshape(self, item: tuple[int, ...]) -> None:
        self.item = tuple(item)

    def result(self) -> BlockResult:
        s = self.segment
        if s is None:
            raise StatisticsError("block sums have seen no snapshot")
        counts = [max(0, (s.stop >> k) - -(-s.start >> k)) for k in range(len(s.m2))]
        kept = [k for k, m in enumerate(counts) if m >= 2]
        mean, rows = s.mean.copy(), []
        offset = np.zeros_like(mean)
        if s.weighted:
            if s.w_mean == 0:
                raise StatisticsError("all weights are zero: no snapshot is left to average over")
            offset = s.mean / s.w_mean
            mean = s.centre + offset
        for k in kept:
            m2 = s.m2[k]
            if s.weighted:
                m2 = np.maximum(m2 - 2 * offset * s.cross[k] + offset**2 * s.w2[k], 0.0) / s.w_mean**2
            rows.append(m2 / (counts[k] - 1))
        shape = (len(kept), *self.item)
        variances = np.array(rows).reshape(shape)
        e = None if self.exponent is None else self.exponent.reshape(self.item)
        return BlockResult(mean=mean.reshape(self.item) if e is None else ldexp(mean.reshape(self.item), e),
                           n=s.stop - s.start, lengths=2 ** np.array(kept, dtype=np.int64),
                           counts=np.array([counts[k] for k in kept], dtype=np.int64),
                           variances=variances if e is None else ldexp(variances, 2 * e), exponent=e,
                           reduced=None if e is None else variances)

    def state(self) -> dict[str, Array]:
        if self.segment is None:
            return {}
        return {"item": np.array(self.item, dtype=np.int64), **self.segment.arrays(),
                **({} if self.exponent is None else {"exponent": self.exponent.copy()}),
                **({"weight_exponent": np.array(self.weight_exponent)} if self.weight_exponent else {})}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        if "item" in state:
            new.item = tuple(int(k) for k in state["item"])
            new.segment = _Segment.of_arrays(state)
            new.exponent = np.array(state["exponent"]) if "exponent" in state else None
            new.weight_exponent = int(state.get("weight_exponent", 0))
        return new


@dataclass(slots=True, eq=False)
class _Segment:
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

    def centred(self, centre: np.ndarray) -> _Segment:
        """The same about another centre: w (x - c') = w (x - c) - (c' - c) w."""
        if not self.weighted:
            return self
        d = centre - self.centre
        return _Segment(self.start, self.stop, self.mean - d * self.w_mean,
                        [a - 2 * d * b + d**2 * c for a, b, c in zip(self.m2, self.cross, self.w2, strict=True)],
                        {k: v - d * self.w_low[k] for k, v in self.low.items()},
                        {k: v - d * self.w_high[k] for k, v in self.high.items()}, True, centre, self.w_mean,
                        [b - d * c for b, c in zip(self.cross, self.w2, strict=True)], self.w2, self.w_low, self.w_high)

    def over(self, step: int | np.ndarray, w_step: int) -> _Segment:
        """The same with values divided by 2**step, element by element, and weights by 2**w_step."""
        one = step + w_step if self.weighted else step
        return _Segment(self.start, self.stop, ldexp(self.mean, -one), [ldexp(x, -2 * one) for x in self.m2],
                        {k: ldexp(x, -one) for k, x in self.low.items()},
                        {k: ldexp(x, -one) for k, x in self.high.items()}, self.weighted, ldexp(self.centre, -step),
                        ldexp(self.w_mean, -w_step), [ldexp(x, -one - w_step) for x in self.cross],
                        [ldexp(x, -2 * w_step) for x in self.w2], {k: ldexp(x, -w_step) for k, x in self.w_low.items()},
                        {k: ldexp(x, -w_step) for k, x in self.w_high.items()})

    def join(self, right: _Segment) -> _Segment:
        """The same snapshots with the elements of `right` after mine."""
        both = np.concatenate
        return _Segment(self.start, self.stop, both([self.mean, right.mean]),
                        [both(p) for p in zip(self.m2, right.m2, strict=True)],
                        {k: both([v, right.low[k]]) for k, v in self.low.items()},
                        {k: both([v, right.high[k]]) for k, v in self.high.items()}, self.weighted,
                        both([self.centre, right.centre]), self.w_mean,
                        [both(p) for p in zip(self.cross, right.cross, strict=True)], self.w2, self.w_low, self.w_high)

    def on(self, change: Callable[[np.ndarray], np.ndarray]) -> _Segment:
        """The same snapshots of the elements that `change` makes of mine."""
        return _Segment(self.start, self.stop, change(self.mean), [change(x) for x in self.m2],
                        {k: change(x) for k, x in self.low.items()}, {k: change(x) for k, x in self.high.items()},
                        self.weighted, change(self.centre), self.w_mean, [change(x) for x in self.cross], list(self.w2),
                        dict(self.w_low), dict(self.w_high))

    def arrays(self) -> dict[str, np.ndarray]:
        named: dict[str, Any] = {"range": np.array([self.start, self.stop, self.weighted, len(self.m2)]),
                                 "mean": self.mean.copy(), "m2": np.array(self.m2)}
        for name, ends in (("low", self.low), ("high", self.high)):
            named[f"{name}_levels"] = np.array(sorted(ends), dtype=np.int64)
            named[name] = np.array([ends[k] for k in sorted(ends)]).reshape(-1, len(self.mean))
        if self.weighted:
            named |= {"centre": self.centre.copy(), "w_mean": np.array(self.w_mean), "cross": np.array(self.cross),
                      "w2": np.array(self.w2), "w_low": np.array([self.w_low[k] for k in sorted(self.w_low)]),
                      "w_high": np.array([self.w_high[k] for k in sorted(self.w_high)])}
        return named

    @classmethod
    def of_arrays(cls, state: Mapping[str, Any]) -> _Segment:
        start, stop, weighted, _ = (int(k) for k in state["range"])
        at = {name: [int(k) for k in state[f"{name}_levels"]] for name in ("low", "high")}
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


def _unsafe(segment: _Segment) -> bool:
    """Whether a sum of squares may have over- or underflowed, for zeros too."""
    from ensemblekit.averaging.kernels import mark_unsafe

    mean = segment.centre if segment.weighted else segment.mean
    return bool(mark_unsafe(mean, segment.m2[0], np.empty(len(mean), np.uint8)))


def _plain_segment(values: np.ndarray, start: int) -> _Segment:
    """Unweighted snapshots: whole chunks of 64 by the compiled loop, the ends level by level."""
    from ensemblekit.averaging.kernels_blocking import LEVELS, ROWS, add_chunks

    n = len(values)
    head = min(n, -start % ROWS)
    chunks = (n - head) // ROWS
    if not chunks:
        return _levels(values.reshape(n, -1).astype(np.float64), start)
    rows = rows_of(values[head:head + chunks * ROWS])
    squares, means = np.zeros((LEVELS, rows.width)), np.empty((chunks, rows.width))
    add_chunks(rows.flat, rows.stride, chunks, rows.width, squares, means)
    above = _plain_segment(means, (start + head) // ROWS)
    upper = above.m2[0]
    for k in reversed(range(LEVELS)):
        squares[k] *= 0.5
        squares[k] += 2.0 * upper
        upper = squares[k]
    middle = _Segment(start + head, start + head + chunks * ROWS, above.mean, [*squares, *above.m2],
                      {k + LEVELS: v for k, v in above.low.items()}, {k + LEVELS: v for k, v in above.high.items()},
                      False, above.centre, 1.0, [], [], {}, {})
    if head:
        middle = _joined(_levels(values[:head].reshape(head, -1).astype(np.float64), start), middle)
    rest = n - head - chunks * ROWS
    if rest:
        tail = values[n - rest:].reshape(rest, -1).astype(np.float64)
        middle = _joined(middle, _levels(tail, start + n - rest))
    return middle


def _levels(bins: np.ndarray, start: int, w: np.ndarray | None = None,
            centre: np.ndarray | None = None) -> _Segment:
    """All levels of float64 rows (n, width), a weight sum w (n,) beside each, by plain pair averages."""
    from ensemblekit.averaging.kernels_blocking import climb_level

    n = len(bins)
    bins = np.ascontiguousarray(bins)
    made = _Segment(start, start + n, bins.mean(axis=0), [], {}, {}, w is not None,
                    np.zeros(bins.shape[1]) if centre is None else centre, 1.0 if w is None else float(w.mean()),
                    [], [], {}, {})
    at, k = start, 0
    while len(bins):
        skip = at % 2
        pairs = (len(bins) - skip) // 2
        m2, above = np.empty(bins.shape[1]), np.empty((pairs, bins.shape[1]))
        climb_level(bins, skip, m2, above)
        made.m2.append(m2)
        if skip:
            made.low[k] = bins[0].copy()
        if (len(bins) - skip) % 2:
            made.high[k] = bins[-1].copy()
        if w is not None:
            w_off = w - w.mean()
            made.cross.append(w_off @ (bins - bins.mean(axis=0)))
            made.w2.append(float(w_off @ w_off))
            if skip:
                made.w_low[k] = float(w[0])
            if (len(bins) - skip) % 2:
                made.w_high[k] = float(w[-1])
            w = 0.5 * (w[skip:skip + 2 * pairs:2] + w[skip + 1:skip + 2 * pairs:2])
        bins, at, k = above, (at + skip) // 2, k + 1
    return made


class _Seam(NamedTuple):
    """A bin next to the place where two segments meet."""

    at: int
    value: np.ndarray
    w: float


def _joined(a: _Segment, b: _Segment) -> _Segment:
    """Two neighbours as one, in the arrays of `a`: bins that met at the seam are paired, level by level."""
    if a.weighted != b.weighted:
        raise InputError("some snapshots of this run carry weights and some do not; give weights to all or to none")
    b = b.centred(a.centre)
    share = (b.stop - b.start) / (b.stop - a.start)
    made = _Segment(a.start, b.stop, a.mean + (b.mean - a.mean) * share, a.m2, {}, {}, a.weighted, a.centre,
                    a.w_mean + (b.w_mean - a.w_mean) * share, a.cross, a.w2, {}, {})
    left, right = _Rest(a), _Rest(b)
    seam: _Seam | None = None       # the bin of this level that straddles the seam
    k = 0
    while k < max(len(a.m2), len(b.m2)) or seam is not None:
        _pool(made, b, k, left, right, seam)
        near = [s for s in (_Seam((a.stop >> k) - 1, a.high[k], a.w_high.get(k, 1.0)) if k in a.high else None, seam,
                            _Seam(-(-b.start >> k), b.low[k], b.w_low.get(k, 1.0)) if k in b.low else None)
                if s is not None]
        if k in a.low:
            made.low[k], made.w_low[k] = a.low[k], a.w_low.get(k, 1.0)
        if k in b.high:
            made.high[k], made.w_high[k] = b.high[k], b.w_high.get(k, 1.0)
        left.climb(k)
        right.climb(k)
        seam = None
        while near:
            index, value, w = near.pop(0)
            if index % 2 == 0 and near and near[0].at == index + 1:
                other = near.pop(0)
                seam = _Seam(index // 2, 0.5 * (value + other.value), 0.5 * (w + other.w))
            elif index % 2:
                made.low[k], made.w_low[k] = value, w
            else:
                made.high[k], made.w_high[k] = value, w
        k += 1
    if not a.weighted:
        made.w_low, made.w_high = {}, {}
    return made


class _Rest:
    """The sum of the snapshots that whole bins of one level cover: all, less the bins left over at the levels below."""

    def __init__(self, s: _Segment):
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


def _pool(made: _Segment, b: _Segment, k: int, left: _Rest, right: _Rest, seam: _Seam | None) -> None:
    """The moments of level k: those of both sides and of the bin at the seam, by Chan, Golub & LeVeque (1983)."""
    from ensemblekit.averaging.kernels_blocking import join_level

    n, n_later = left.count(k), right.count(k)
    if k == len(made.m2):
        made.m2.append(np.zeros_like(made.mean))
        if made.weighted:
            made.cross.append(np.zeros_like(made.mean))
            made.w2.append(0.0)
    later = b.m2[k] if k < len(b.m2) else np.zeros_like(made.mean)
    if not made.weighted:
        join_level(made.m2[k], later, left.total, right.total, n, n_later, 2.0**k,
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
        made.m2[k] = made.m2[k] + m2 + gap * gap * share
        made.cross[k] = made.cross[k] + m_cross + gap * (w_gap * share)
        made.w2[k] += m_w2 + w_gap**2 * share
        count += m
        mean, w_mean = mean + gap * (m / count), w_mean + w_gap * (m / count)


def jonsson_level(x: Any, confidence: float = 0.99) -> int:
    """Level of the plateau by Jonsson's test of whiteness (Phys. Rev. E 98, 043304, 2018).

    The smallest k with M_k = Σ_{j>=k} n_j [(n_j - 1) s_j / n_j² + γ_j(1)]² / s_j² below the chi-squared quantile of
    d - k degrees of freedom, where the last 2^d snapshots are used (the start of a run is its worst part). The term
    (n_j - 1) s_j / n_j² is the paper's; its published script leaves it out.

    Raises:
        StatisticsError: fewer than 4 snapshots, or a constant series.
    """
    from scipy.stats import chi2

    from ensemblekit.averaging.correlation import _rounding, _series

    x = scaled(_series(x))[0]
    if len(x) < 4:
        raise StatisticsError(f"blocking needs at least 4 snapshots; got {len(x)}")
    depth = len(x).bit_length() - 1
    bins = x[len(x) - (1 << depth):]
    if np.ptp(bins) ** 2 <= float(_rounding(x)):
        raise StatisticsError("the series is constant: blocking finds no plateau")
    terms = np.zeros(depth)
    for j in range(depth):
        n = len(bins)
        off = bins - bins.mean()
        s = float(off @ off) / n
        neighbour = float(off[1:] @ off[:-1]) / n
        terms[j] = n * ((n - 1) * s / n**2 + neighbour) ** 2 / s**2 if s > 0 else 0.0
        bins = 0.5 * (bins[::2] + bins[1::2])
    tests = np.cumsum(terms[::-1])[::-1]
    below = tests < chi2.ppf(confidence, depth - np.arange(depth))
    return int(np.argmax(below)) if below.any() else depth - 1


def blocking(x: Any, weights: ArrayLike | None = None, *, log_weights: ArrayLike | None = None) -> BlockResult:
    """The blocking curve of one series x (n,) or of every element of x (n, *item); see :class:`BlockResult`."""
    sums = BlockSums()
    x = as_array(x, "the series")
    if x.ndim == 0:
        raise InputError("the series is a single number; its values lie along axis 0")
    sums.update(x, 0, chosen_weights(weights, log_weights, len(x)))
    return sums.result()


def _along(numbers: np.ndarray, values: Array) -> np.ndarray:
    return np.asarray(numbers, dtype=np.float64).reshape(-1, *[1] * (values.ndim - 1))


