"""Mean, variance, skewness and kurtosis of every element, weighted or not; merges in any order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import along, as_numbers, flat_pieces, join, like, one_row, plain, same_item, wide
from ensemblekit.averaging.rows import Rows, folded, rows_of
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.source import Array, Field, is_torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MomentsResult:
    """Mean and spread of the snapshots given. Arrays have the shape of the item."""

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

    @property
    def std(self) -> Array:
        """Square root of the variance: the spread of snapshots, not the error of their mean."""
        return self.variance**0.5


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

    def empty(self) -> Self:
        return type(self)(self.order)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        if self.sums:
            same_item(self.item, values, "Moments")
        self.item = tuple(values.shape[1:])
        weight, weight2 = _weight_sums(len(values), weights)
        if weight == 0.0:
            self.n += len(values)
        elif is_torch(values):
            self.complex = values.is_complex()
            self._absorb(len(values), weight, weight2, _torch_sums(values, weights, weight, self.order))
        else:
            self.complex = np.asarray(values).dtype.kind == "c"
            self._update_numpy(rows_of(values), weights, weight, weight2)

    def add(self, pieces: Sequence[Array]) -> None:
        """Take one snapshot that comes as several arrays or tensors, flat items one after the other, in place.

        The same as ``update`` with one row of their concatenation, without making that: for weights of a network,
        which are many small tensors. Real, finite numbers; order 2.
        """
        if self.order != 2:
            raise InputError("snapshots in pieces are for order 2")
        width = sum(math.prod(piece.shape) for piece in pieces)
        if not self.sums or self.weight == 0.0:
            mean = one_row(pieces)[0]
            self.sums, self.item = [mean, _zeros_like(mean)], (width,)
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
        from ensemblekit.averaging import kernels

        if self.order == 4:
            if self.complex:
                raise InputError("skewness and kurtosis need real numbers; map to abs, real or imag first")
            sums = [np.empty(rows.width) for _ in range(4)]
            w = np.ones(rows.n) if weights is None else np.ascontiguousarray(weights, dtype=np.float64)
            kernels.central_sums(rows.flat, rows.stride, w, rows.width, *sums)
            self._absorb(rows.n, weight, weight2, sums)
            return
        if weights is None:
            narrow, k = folded(rows)
            if k > 1:
                self._update_folded(rows, narrow, k)
                return
        if not self.sums:
            self.sums = [buffer[self.span] for buffer in self.buffers]
            if not self.sums or len(self.sums[0]) != rows.width:        # the block is not what the field had said
                self.sums = [np.zeros(rows.width), np.zeros(rows.width)]
        if weights is None:
            kernels.add_moments(rows.flat, rows.stride, rows.n, rows.width, self.weight, *self.sums)
        else:
            w = np.ascontiguousarray(weights, dtype=np.float64)
            kernels.add_weighted_moments(rows.flat, rows.stride, w, rows.width, self.weight, *self.sums)
        self.n += rows.n
        self.weight += weight
        self.weight2 += weight2

    def _update_folded(self, rows: Rows, narrow: Rows, k: int) -> None:
        """Narrow items: k interleaved series side by side, merged at the end; then the rows left over."""
        from ensemblekit.averaging import kernels

        mean, m2 = np.zeros(narrow.width), np.zeros(narrow.width)
        kernels.add_moments(narrow.flat, narrow.stride, narrow.n, narrow.width, 0.0, mean, m2)
        means, squares = mean.reshape(k, -1), m2.reshape(k, -1)
        middle = means.mean(axis=0)
        spread = squares.sum(axis=0) + narrow.n * ((means - middle) ** 2).sum(axis=0)
        done = narrow.n * k
        self._absorb(done, float(done), float(done), [middle, spread])
        left = rows.n - done
        if left:
            kernels.add_moments(rows.flat[done * rows.width:], rows.stride, left, rows.width, self.weight, *self.sums)
            self.n, self.weight, self.weight2 = self.n + left, self.weight + left, self.weight2 + left

    def merge(self, later: Self) -> None:
        if later.sums:
            if self.sums and self.item != later.item:
                raise InputError(f"Moments of snapshots of shape {self.item} cannot take in those of {later.item}")
            self.item, self.complex = later.item, later.complex
            self._absorb(later.n, later.weight, later.weight2, later.sums)
        else:
            self.n += later.n

    def _absorb(self, n: int, w: float, w2: float, sums: list[Array]) -> None:
        """Pébay's pairwise formulas; with order 2 they are Chan's."""
        if not self.sums:
            self.sums = [x + 0.0 for x in sums]
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
        return self._shape(self.sums[0])

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

    def join(self, right: Self) -> None:
        if right.sums:
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
        if self.complex:
            pairs = mean.reshape(-1, 2)
            mean = pairs[:, 0] + 1j * pairs[:, 1]
            m2 = m2.reshape(-1, 2).sum(1)
        freedom = self.weight - self.weight2 / self.weight
        tiny = freedom <= 1e-12 * self.weight
        freedom = float("nan") if tiny else freedom
        own = own and self.order == 2 and not is_torch(m2)
        variance = np.divide(m2, freedom, out=m2) if own else m2 / freedom
        skewness = kurtosis = None
        if self.order == 4:
            _, _, m3, m4 = self.sums
            with np.errstate(invalid="ignore", divide="ignore"):
                skewness = self._shape(m3 * self.weight**0.5 / m2**1.5)
                kurtosis = self._shape(m4 * self.weight / (m2 * m2) - 3.0)
        mean = mean if self.complex or own else plain(mean)
        return MomentsResult(mean=self._shape(mean), variance=self._shape(variance), n=self.n,
                             sum_weights=self.weight, n_eff=self.weight**2 / self.weight2,
                             skewness=skewness, kurtosis=kurtosis)

    def _shape(self, flat: Array) -> Array:
        out = flat.reshape(self.item)
        return out if is_torch(out) or out.ndim else out[()]

    def state(self) -> dict[str, Array]:
        return {"n": np.array(self.n), "weight": np.array(self.weight), "weight2": np.array(self.weight2),
                "item": np.array(self.item, dtype=np.int64), "complex": np.array(self.complex),
                **{f"sum{k + 1}": plain(x) for k, x in enumerate(self.sums)}}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.weight, new.weight2 = int(state["n"]), float(state["weight"]), float(state["weight2"])
        new.item, new.complex = tuple(int(k) for k in state["item"]), bool(state["complex"])
        new.sums = [plain(state[f"sum{k + 1}"]) for k in range(self.order) if f"sum{k + 1}" in state]
        return new


def _zeros_like(mean: Array) -> Array:
    """In main memory through numpy, whose zeros take no memory before they are written to."""
    if not is_torch(mean):
        return np.zeros(mean.shape)
    if mean.device.type == "cpu":
        import torch

        return torch.from_numpy(np.zeros(mean.shape))
    return mean.new_zeros(mean.shape)


def _weight_sums(n: int, weights: Array | None) -> tuple[float, float]:
    if weights is None:
        return float(n), float(n)
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum()), float((w * w).sum())


def _torch_sums(values: Array, weights: Array | None, weight: float, order: int) -> list[Array]:
    """Mean and central sums of one block of tensors, flat, on their device."""
    import torch

    x = values
    if x.is_complex():
        if order == 4:
            raise InputError("skewness and kurtosis need real numbers; map to abs, real or imag first")
        x = torch.view_as_real(x.resolve_conj())
    x = wide(x.reshape(len(x), -1))
    if weights is None and len(x) == 1:
        return [x[0], *[torch.zeros_like(x[0])] * (order - 1)]
    if weights is None and order == 2:
        mean = x.mean(0)
        return [mean, (x - mean).square_().sum(0)] if not x.requires_grad else [mean, (x - mean).square().sum(0)]
    w = along(like(x, np.ones(len(x)) if weights is None else weights), x)
    mean = (x * (w / weight)).sum(0)
    gap = x - mean
    return [mean, *((w * gap**k).sum(0) for k in range(2, order + 1))]
