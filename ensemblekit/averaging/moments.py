"""Mean, variance, skewness and kurtosis of every element, weighted or not; merges in any order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import as_numbers, flat_pieces, in_range, join, one_row, plain, same_item
from ensemblekit.averaging.central_sums import (
    UNGUARDED,
    as_item,
    as_table,
    central_sums,
    folded_sums,
    free_exponents,
    has_wide_values,
    is_wide,
    needs_scale,
    over_powers,
    real_pairs,
    torch_sums,
    zeros_like,
)
from ensemblekit.averaging.rows import Rows, folded, rows_of
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import FREE, common, ldexp, power_of_two, weight_exponent
from ensemblekit.source import Array, Field, is_torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MomentsResult(Result):
    """Mean and spread of the snapshots given. Arrays have the shape of the item."""

    FIGURE = "averages.moments"

    mean: Array
    """Weighted mean, float64 (complex128 for complex fields)."""
    variance: Array
    """Unbiased: the sum of squares over n - 1, with weights over W - Σw²/W; NaN where that is 0. Complex: E|x - μ|²."""
    n: int
    """Snapshots, those of weight 0 included."""
    sum_weights: float
    """W = Σw; n where there are no weights."""
    n_eff: float
    """Kish's effective number of snapshots, (Σw)² / Σw²; says nothing about correlation in time."""
    skewness: Array | None = None
    """Third standardised moment m3 / m2^1.5 (population form); None for order 2."""
    kurtosis: Array | None = None
    """Excess m4 / m2² - 3 (population form), 0 for a Gaussian; None for order 2."""
    exponent: Array | None = None
    """Set where the variance of some element is too large or too small for float64 (infinity, 0 or a number of few digits
    then stand in it): whole numbers e of the item's shape with variance = `reduced` * 4**e. ``std`` is right for all the
    same."""
    reduced: Array | None = None
    """Variance over 4**exponent, where `exponent` is set."""

    @property
    def std(self) -> Array:
        """Square root of the variance: the spread of snapshots, not the error of their mean."""
        return self.variance**0.5 if self.reduced is None else ldexp(self.reduced**0.5, self.exponent)

    def variance_over(self, exponent: Array) -> Array:
        """Variance of the values divided by 2**exponent."""
        if self.reduced is None:
            return ldexp(self.variance, -2 * np.asarray(exponent))
        return ldexp(self.reduced, 2 * (self.exponent - np.asarray(exponent)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of the numbers: variances beyond the range of float64."""
        if self.reduced is None:
            return ()
        lost = _beyond(self.variance, self.reduced)
        return (f"the variance of {int(lost.sum())} of {math.prod(lost.shape)} elements is beyond the range of float64 "
                "(1e-308 ... 1e308) and stands as infinity, 0 or with few digits; std is right, and variance = "
                "reduced * 4**exponent",)


class Moments:
    """Mean and variance in one pass; ``order=4`` adds skewness and kurtosis at a third of the speed.

    State: float64 mean and sums of powers of the deviation from it, never raw sums of squares, merged as Chan, Golub
    & LeVeque (1983) and Pébay (SAND2008-6212) say. Any order of merging gives the same to rounding.
    """

    def __init__(self, order: int = 2):
        if order not in (2, 4):
            raise InputError(f"order is 2 (mean, variance) or 4 (skewness and kurtosis too); got {order!r}")
        self.order = order
        self.n = 0
        self.weight = 0.0
        self.weight2 = 0.0
        self.item: tuple[int, ...] = ()
        self.complex = False
        self.sums: list[Array] = []     # [mean, M2] or [mean, M2, M3, M4], flat; complex numbers as pairs
        self.buffers: list[np.ndarray] = []     # of the whole item, where its tiles are taken in place
        self.span = slice(0, 0)                 # which part of them is mine
        self.exponent: np.ndarray | None = None
        """Powers of two that the numbers are divided by in the sums, each element its own; None: none is."""
        self.weight_exponent = 0                # the same of the weights

    def empty(self) -> Self:
        return type(self)(self.order)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        if self.sums:
            same_item(self.item, values, "Moments")
        self.item = tuple(values.shape[1:])
        weight = weight2 = float(len(values))
        if weights is not None:
            weights, weight, weight2 = self._weighed(as_array(weights, "weights", dtype=np.float64))
        if weight == 0.0:
            self.n += len(values)
        elif is_torch(values):
            self.complex = values.is_complex()
            self._absorb_block(lambda x: torch_sums(x, weights, weight, self.order), values, weight, weight2)
        else:
            self.complex = as_array(values, "values").dtype.kind == "c"
            self._update_numpy(rows_of(values), weights, weight, weight2)

    def add(self, pieces: Sequence[Array]) -> None:
        """Take one snapshot that comes as several arrays or tensors, flat items one after the other, in place.

        The same as ``update`` with one row of their concatenation, without making that: for weights of a network,
        which are many small tensors. Real, finite numbers; order 2.
        """
        if self.order != 2:
            raise InputError("snapshots in pieces are for order 2")
        width = sum(math.prod(piece.shape) for piece in pieces)
        if self.exponent is not None or needs_scale(pieces):
            self.update(one_row(pieces), 0)
            return
        if not self.sums or self.weight == 0.0:
            mean = one_row(pieces)[0]
            self.sums, self.item = [mean, zeros_like(mean)], (width,)
            self.n, self.weight, self.weight2 = self.n + 1, 1.0, 1.0
            return
        if self.complex or self.item != (width,):
            raise InputError(f"Moments of snapshots of shape {self.item} cannot take in one of shape ({width},)")
        mean, m2 = self.sums
        at = 0
        for piece, numbers in flat_pieces(pieces, mean):
            rows = slice(at, at + len(piece))
            at += len(piece)
            if numbers:
                from ensemblekit.averaging import kernels

                kernels.add_row(piece, self.weight, as_numbers(mean)[rows], as_numbers(m2)[rows])
            else:
                gap = piece - mean[rows]
                mean[rows].add_(gap, alpha=1.0 / (self.weight + 1.0))
                m2[rows].addcmul_(gap, gap, value=self.weight / (self.weight + 1.0))
        self.n, self.weight, self.weight2 = self.n + 1, self.weight + 1.0, self.weight2 + 1.0

    def _update_numpy(self, rows: Rows, weights: Array | None, weight: float, weight2: float) -> None:

        if self.order == 4:
            if self.complex:
                raise InputError("skewness and kurtosis need real numbers; map to abs, real or imag first")
            each = np.ones(rows.n) if weights is None else np.ascontiguousarray(weights, dtype=np.float64)
            self._absorb_block(lambda x: central_sums(x, each), as_table(rows), weight, weight2)
            return
        if weights is None:
            narrow, k = folded(rows)
            if k > 1:
                done = narrow.n * k
                self._absorb_block(lambda x: folded_sums(x, k), as_table(rows)[:done], float(done), float(done))
                if done == rows.n:
                    return
                rows = rows_of(as_table(rows)[done:])
                weight = weight2 = float(rows.n)
        if not self.sums:
            self.sums = [buffer[self.span] for buffer in self.buffers]
            if not self.sums or len(self.sums[0]) != rows.width:        # the block is not what the field had said
                self.sums = [np.zeros(rows.width), np.zeros(rows.width)]
        w = None if weights is None else np.ascontiguousarray(weights, dtype=np.float64)
        unsafe = UNGUARDED
        if is_wide(rows.flat.dtype):
            unsafe = np.zeros(rows.width, np.uint8) if self.exponent is None else (self.exponent != 0).astype(np.uint8)
        elif self.exponent is not None:
            unsafe = (self.exponent != 0).astype(np.uint8)
        if self._add(rows, w, self.sums, unsafe):
            self._add_scaled(rows, w, unsafe)
        self.n += rows.n
        self.weight += weight
        self.weight2 += weight2

    def _add(self, rows: Rows, weights: np.ndarray | None, sums: list[Array], unsafe: np.ndarray) -> int:
        from ensemblekit.averaging import kernels

        room = np.empty((4, kernels.TILE))
        if weights is None:
            return kernels.add_moments(rows.flat, rows.stride, rows.n, rows.width, self.weight, sums[0], sums[1],
                                       unsafe, room)
        return kernels.add_weighted_moments(rows.flat, rows.stride, weights, rows.width, self.weight, sums[0],
                                            sums[1], unsafe, room)

    def _add_scaled(self, rows: Rows, weights: np.ndarray | None, unsafe: np.ndarray) -> None:
        """Take in the columns that were left out, each over a power of two of its own."""
        from ensemblekit.averaging import kernels

        largest = np.zeros(rows.width)
        kernels.marked_largest(rows.flat, rows.stride, rows.n, rows.width, unsafe, largest)
        mean, m2 = self.sums
        zero = (largest == 0) & (mean == 0) & (m2 == 0)
        at = np.flatnonzero((unsafe != 0) & ~zero)
        if not len(at):
            return
        values = as_table(rows)[:, at]
        old = np.zeros(len(at), np.int64) if self.exponent is None else self.exponent[at]
        part = [mean[at], m2[at]]
        e = common(free_exponents(old, part), np.where(largest[at] == 0, FREE, power_of_two(values, 0)))
        part = over_powers(part, e - old)
        if e.any():
            values = ldexp(values, -e)
        self._add(rows_of(values), weights, part, UNGUARDED)
        mean[at], m2[at] = part
        self._set_exponent(at, e)

    def _set_exponent(self, at: Any, e: np.ndarray) -> None:
        exponent = np.zeros(len(self.sums[0]), np.int64) if self.exponent is None else self.exponent.copy()
        exponent[at] = e
        self.exponent = exponent if exponent.any() else None

    def _absorb_block(self, sums_of: Any, values: Array, weight: float, weight2: float) -> None:
        """Merge what `sums_of` gives of a block, of the block over powers of two where its sums over- or underflowed."""
        sums, e = sums_of(values), None
        if self.exponent is not None or (has_wide_values(values) and not in_range(abs(sums[0]), sums[-1], self.order)):
            flat = real_pairs(values)
            e = power_of_two(flat, 0)
            largest = abs(flat).max(0)
            largest = largest.values if is_torch(flat) else largest
            e = np.where(np.asarray(largest.cpu() if is_torch(largest) else largest) == 0, FREE, e)
            e = common(e, free_exponents(self._exponents(), self.sums) if self.sums else FREE)
            if e.any():
                sums = sums_of(as_item(ldexp(flat, -e), values))
        self._absorb(len(values), weight, weight2, sums, e)

    def _exponents(self) -> np.ndarray:
        return np.zeros(len(self.sums[0]), np.int64) if self.exponent is None else self.exponent

    def _weighed(self, w: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Weights over the power of two that suits all so far, their sum and the sum of their squares."""
        self._weigh(weight_exponent(w, self.weight_exponent, self.weight == 0.0))
        if self.weight_exponent:
            w = ldexp(w, -self.weight_exponent)
        return w, float(w.sum()), float((w * w).sum())

    def _weigh(self, exponent: int) -> None:
        step = self.weight_exponent - exponent
        if step and self.sums:
            self.weight, self.weight2 = ldexp(self.weight, step), ldexp(self.weight2, 2 * step)
            self.sums = [self.sums[0], *(ldexp(x, step) for x in self.sums[1:])]
        self.weight_exponent = exponent

    def merge(self, later: Self) -> None:
        if later.sums:
            if self.sums and self.item != later.item:
                raise InputError(f"Moments of snapshots of shape {self.item} cannot take in those of {later.item}")
            self.item, self.complex = later.item, later.complex
            weight, weight2, sums = later.weight, later.weight2, later.sums
            if self.weight_exponent != later.weight_exponent:
                self._weigh(later.weight_exponent if self.weight == 0.0
                            else max(self.weight_exponent, later.weight_exponent))
                step = later.weight_exponent - self.weight_exponent
                weight, weight2 = ldexp(weight, step), ldexp(weight2, 2 * step)
                sums = [sums[0], *(ldexp(x, step) for x in sums[1:])]
            self._absorb(later.n, weight, weight2, sums, later.exponent)
        else:
            self.n += later.n

    def _absorb(self, n: int, w: float, w2: float, sums: list[Array], exponent: np.ndarray | None = None) -> None:
        """Pébay's pairwise formulas; with order 2 they are Chan's. `exponent`: powers of two the numbers were divided by."""
        if self.sums and (exponent is not None or self.exponent is not None):
            own, its = self._exponents(), np.zeros(len(sums[0]), np.int64) if exponent is None else exponent
            e = common(free_exponents(own, self.sums), free_exponents(its, sums))
            self.sums, sums = over_powers(self.sums, e - own), over_powers(sums, e - its)
            self._set_exponent(slice(None), e)
        if not self.sums:
            self.sums = [x + 0.0 for x in sums]
            self.exponent = None if exponent is None or not exponent.any() else exponent.copy()
        else:
            total = self.weight + w
            p, q = self.weight / total, w / total
            mean, m2, *high = self.sums
            mean_b, m2_b, *high_b = sums
            gap = mean_b - mean
            if high:
                m3, m4 = high
                m3_b, m4_b = high_b
                self.sums[3] = (m4 + m4_b + gap**4 * (self.weight * q * (p * p - p * q + q * q))
                                + 6 * gap**2 * (p * p * m2_b + q * q * m2) + 4 * gap * (p * m3_b - q * m3))
                self.sums[2] = m3 + m3_b + gap**3 * (self.weight * q * (p - q)) + 3 * gap * (p * m2_b - q * m2)
            self.sums[1] = m2 + m2_b + gap * gap * (self.weight * q)
            self.sums[0] = mean + gap * q
        self.n += n
        self.weight += w
        self.weight2 += w2

    @property
    def mean(self) -> Array:
        """The mean so far, as ``result`` has it, without a copy where the numbers are real: later updates change it.

        Raises StatisticsError where there is none.
        """
        if not self.sums or self.complex:
            return self.result().mean
        return self._shape(self.sums[0] if self.exponent is None else ldexp(self.sums[0], self.exponent))

    def preallocate(self, field: Field) -> Self:
        """A pattern with memory for a whole item of the field, whose slots are parts of it: to join them copies nothing."""
        new = self.empty()
        complex, size = field.dtype.kind == "c", field.size
        if self.order == 2:
            new.buffers = [np.zeros(size * (1 + complex)), np.zeros(size * (1 + complex))]
            new.complex = complex
        return new

    def slot(self, tile: slice) -> Self:
        """An empty state for these numbers of the item, in the memory of a preallocated pattern; no two may overlap."""
        new = self.empty()
        if not self.buffers:
            return new
        new.buffers, each = self.buffers, 1 + self.complex
        new.span = slice(tile.start * each, tile.stop * each)
        return new

    def _placed(self) -> bool:
        return bool(self.buffers and self.sums) and all(
            x.base is buffer for x, buffer in zip(self.sums, self.buffers, strict=True))

    def part(self, at: slice) -> Self:
        """The sums of some of the elements of a numpy item, flat; a copy."""
        return self._with([x[at].copy() for x in self.sums], None if self.exponent is None else self.exponent[at].copy())

    def spread(self, places: np.ndarray, width: int) -> Self:
        """The sums of `width` elements of which mine are those at `places`, and the others have been 0 all the time."""
        def placed(x: np.ndarray) -> np.ndarray:
            wide = np.zeros(width, x.dtype)
            wide[places] = x
            return wide

        return self._with([placed(x) for x in self.sums], None if self.exponent is None else placed(self.exponent))

    def _with(self, sums: list[np.ndarray], exponent: np.ndarray | None) -> Self:
        new = self.empty()
        new.n, new.weight, new.weight2, new.weight_exponent = self.n, self.weight, self.weight2, self.weight_exponent
        if sums:
            new.sums, new.exponent, new.item = sums, exponent, (len(sums[0]),)
        return new

    def join(self, right: Self) -> None:
        if right.sums:
            if self.exponent is not None or right.exponent is not None:
                self.exponent = np.concatenate([self._exponents(), right._exponents()])
            if self._placed() and right._placed() and self.buffers is right.buffers and self.span.stop == right.span.start:
                self.span = slice(self.span.start, right.span.stop)
                self.sums = [buffer[self.span] for buffer in self.buffers]
            else:
                self.sums = [join(a, b) for a, b in zip(self.sums, right.sums, strict=True)]
            self.complex = right.complex
            self.item = (self.item[0] + right.item[0],)

    def reshape(self, item: tuple[int, ...]) -> None:
        self.item = tuple(item)

    def result(self) -> MomentsResult:
        """Raises StatisticsError where no snapshot, or none with a weight above 0, was seen."""
        return self._answer(own=False)

    def take_result(self) -> MomentsResult:
        """The same as `result`, made in place of the state where it can be: for the last use of a state of large items."""
        return self._answer(own=True)

    def _answer(self, own: bool) -> MomentsResult:
        if not self.sums:
            raise StatisticsError("no snapshots" if self.n == 0 else f"all weights of {self.n} snapshots are 0")
        mean: Array = self.sums[0]
        m2: Array = self.sums[1]
        e = self.exponent
        if e is not None and self.complex:      # both parts over one power of two
            pairs = free_exponents(e, self.sums).reshape(-1, 2).max(1, keepdims=True)
            e = np.broadcast_to(np.where(pairs == FREE, 0, pairs), (len(pairs), 2)).reshape(-1)
            mean, m2 = over_powers([mean, m2], e - self._exponents())
        if e is not None:
            mean = ldexp(mean, e)
        if self.complex:
            pairs = mean.reshape(-1, 2)
            mean = pairs[:, 0] + 1j * pairs[:, 1]
            m2 = m2.reshape(-1, 2).sum(1)
            e = e if e is None else e[::2]
        freedom = self.weight - self.weight2 / self.weight
        tiny = freedom <= 1e-12 * self.weight
        freedom = float("nan") if tiny else freedom
        own = own and self.order == 2 and not is_torch(m2)
        variance = np.divide(m2, freedom, out=m2) if own and e is None else m2 / freedom
        reduced, variance = variance, variance if e is None else ldexp(variance, 2 * e)
        beyond = e is not None and bool(_beyond(variance, reduced).any())
        skewness = kurtosis = None
        if self.order == 4:
            _, _, m3, m4 = self.sums
            with np.errstate(invalid="ignore", divide="ignore"):
                skewness = self._shape(m3 * self.weight**0.5 / m2**1.5)
                kurtosis = self._shape(m4 * self.weight / (m2 * m2) - 3.0)
        mean = mean if self.complex or own else plain(mean)
        return MomentsResult(mean=self._shape(mean), variance=self._shape(variance), n=self.n,
                             sum_weights=ldexp(self.weight, self.weight_exponent), n_eff=self.weight**2 / self.weight2,
                             skewness=skewness, kurtosis=kurtosis, exponent=self._shape(e) if beyond else None,
                             reduced=self._shape(reduced) if beyond else None)

    def _shape(self, flat: Array) -> Array:
        out = flat.reshape(self.item)
        return out if is_torch(out) or out.ndim else out[()]

    def state(self) -> dict[str, Array]:
        return {"n": np.array(self.n), "weight": np.array(self.weight), "weight2": np.array(self.weight2),
                "item": np.array(self.item, dtype=np.int64), "complex": np.array(self.complex),
                **({} if self.exponent is None else {"exponent": self.exponent.copy()}),
                **({"weight_exponent": np.array(self.weight_exponent)} if self.weight_exponent else {}),
                **{f"sum{k + 1}": plain(x) for k, x in enumerate(self.sums)}}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.weight, new.weight2 = int(state["n"]), float(state["weight"]), float(state["weight2"])
        new.item, new.complex = tuple(int(k) for k in state["item"]), bool(state["complex"])
        new.exponent = np.array(state["exponent"]) if "exponent" in state else None
        new.weight_exponent = int(state.get("weight_exponent", 0))
        new.sums = [plain(state[f"sum{k + 1}"]) for k in range(self.order) if f"sum{k + 1}" in state]
        return new


def _beyond(variance: Array, reduced: Array) -> Array:
    """Which variances are not what `reduced` says, for want of range; below the least normal number digits are lost."""
    size = abs(variance)
    return ((size < np.finfo(np.float64).tiny) & (reduced != 0)) | ((size == np.inf) & (abs(reduced) < np.inf))


