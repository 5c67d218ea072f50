"""Errors of means by blocking: variances of the means of 1, 2, 4, ... snapshots, for arrays of any shape, in one pass.

Bins are aligned at multiples of their length *of the snapshot index in the run*, and a bin that waits for its partner
is kept at either end, so that neighbouring states merge exactly: any cut of the snapshots gives the same bins.

Weights: the mean is the ratio Σwx / Σw, whose error is that of the mean of the residual z = w (x - μ) / mean(w)
(delta method). μ is known at the end only, so bins hold w and w (x - c) with a fixed c near μ, and second moments of
both and between both, from which the variance of z is put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.guard import MOST_BLOCKS, half_widths, matched, of_blocks
from ensemblekit.averaging.segments import Segment, along_rows, beyond_squares, joined_segments, levels_of, segment_of
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
        return np.sqrt(self.variances * along_rows(scale, self.variances))

    @property
    def stderr_error(self) -> Array:
        """Standard error of `stderr`, (levels, *item): stderr / sqrt(2 (count - 1))."""
        return self.stderr / np.sqrt(2.0 * along_rows(self.counts - 1, self.variances))

    @property
    def inefficiency(self) -> Array:
        """What each level shows of g, (levels, *item): B times the variance of its blocks over that of snapshots."""
        variances = self.variances if self.reduced is None else self.reduced
        with np.errstate(invalid="ignore", divide="ignore"):
            return variances * along_rows(self.lengths, variances) / variances[:1]

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

    def of_independent(self, n_eff: float) -> BlockError:
        """The error where the snapshots are in no order, (*item,): that of independent ones, by the first level alone.

        SE² = Σ w² (x - μ)² / (Σ w)² · n_eff / (n_eff - 1), with n_eff - 1 degrees of freedom.

        n_eff: snapshots of equal weight that they are worth (Kish); n where they weigh alike.
        """
        if self.exponent is not None:
            error = self.over_power_of_two()[0].of_independent(n_eff)
            return error._replace(stderr=ldexp(error.stderr, self.exponent))
        if not len(self.counts) or self.counts[0] < FEWEST:
            raise StatisticsError(f"an error needs at least {FEWEST} snapshots; got {self.n}")
        first, count = np.asarray(self.variances[0]), float(self.counts[0])
        worth = min(n_eff, count)
        shape = first.shape
        squared = np.full(shape, np.nan)
        if worth > 1:
            squared = first * (count - 1) / count**2 * worth / (worth - 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            g = np.where(first > 0, squared * self.n / first, 1.0)
        return BlockError(np.sqrt(squared), np.full(shape, max(worth - 1, 1.0)), g, np.zeros(shape, dtype=np.int64),
                          np.ones(shape, dtype=bool))

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
        squares = self.variances[first:last + 1] * along_rows(lengths * (counts - 1), self.variances)
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
        self.segment: Segment | None = None
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
            if segment is None or (wide and beyond_squares(segment)):
                flat = values.reshape(len(values), -1).astype(np.float64)
                largest = np.abs(flat).max(axis=0)
                e = np.where(largest == 0, FREE, power_of_two(flat, 0))
                e = common(e, FREE if self.segment is None else self._free_exponents())
                self._rescale(e)
                if segment is None or e.any():
                    segment = self._segment_of(ldexp(flat, -e), start, w)
            self._absorb(segment)

    def _segment_of(self, values: np.ndarray, start: int, w: np.ndarray | None) -> Segment:
        if w is None:
            return segment_of(values, start)
        x = values.reshape(len(values), -1).astype(np.float64)
        centre = x.mean(axis=0) if self.segment is None else self.segment.centre
        return levels_of((x - centre) * w[:, None], start, w, centre)

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
            self.item, self.segment = later.item, Segment.of_arrays(later.segment.arrays())
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

    def _absorb(self, later: Segment) -> None:
        earlier = self.segment
        if earlier is None:
            self.segment = later
            return
        if earlier.stop != later.start:
            raise InputError(f"block sums merge in time order: mine end at snapshot {earlier.stop}, the later ones begin "
                             f"at {later.start}")
        self.segment = joined_segments(earlier, later)

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
        left, other = self.segment, right.segment
        if left is None or other is None:
            self.segment = left or other
            return
        if self.exponent is not None or right.exponent is not None:
            self.exponent = np.concatenate([np.zeros(len(s.mean), np.int64) if e is None else e
                                            for s, e in ((left, self.exponent), (other, right.exponent))])
        self.segment = left.join(other)
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
            new.segment = Segment.of_arrays(state)
            new.exponent = np.array(state["exponent"]) if "exponent" in state else None
            new.weight_exponent = int(state.get("weight_exponent", 0))
        return new


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


