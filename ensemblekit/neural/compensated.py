"""Averages in pairs of float32, for devices without float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from ensemblekit.averaging.arrays import copied, join, wide
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import Array, is_torch

LEAST, MOST = -40, 100
"""Numbers whose largest magnitude lies in 2**LEAST ... 2**MOST are kept in float32 as they are: the rounding of one, squared,
is above its least number, and 4097 times one (Dekker) below its largest."""


class Compensated:
    """Mean, or with `decay` the exponential average begun at the first snapshot, in pairs of float32.

    For devices without float64: the pair (high, low) carries twice the digits of one, so that steps far below the
    rounding of the average are not lost (sums by Knuth, products by Dekker 1971). Numbers so large or small that float32
    does not hold them, or their rounding, are divided by a power of two in both.
    Torch tensors or arrays; the mean merges in any order, the exponential not at all.
    """

    def __init__(self, decay: float | None = None):
        if decay is not None and not 0 < decay < 1:
            raise InputError(f"decay lies between 0 and 1; got {decay!r}")
        self.decay = decay
        if decay is not None:
            self.merge = None       # type: ignore[method-assign,assignment]  # Python's way to say that it has none
        self.weight, self.n = 0.0, 0
        self.high: Array = None
        self.low: Array = None
        self.exponent = 0

    def empty(self) -> Self:
        return type(self)(self.decay)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
        for row, weight in zip(values, w.tolist(), strict=True):
            self.n += 1
            if weight == 0:
                continue
            x = self._single(row)
            if self.high is None:
                self.high, self.low, self.weight = copied(x), x * 0, weight
                continue
            self.weight += weight
            self._move(x, 0 * x, weight / self.weight if self.decay is None else 1 - self.decay)

    def _single(self, row: Array) -> Array:
        """The numbers over the power of two that suits them and those before, in float32."""
        row = row if is_torch(row) else np.asarray(row)
        if self.high is None or not is_torch(row) or row.device.type == "cpu":     # elsewhere a look at every row costs a wait
            e = power_of_two(row, always=True)
            e = 0 if LEAST <= e <= MOST else e
            # steps may be far smaller than the average
            self._divide(e if self.high is None or (e and not bool((self.high != 0).any())) else max(e, self.exponent))
        row = ldexp(row, -self.exponent)
        return row.float() if is_torch(row) else row.astype(np.float32)

    def _divide(self, exponent: int) -> None:
        step = self.exponent - exponent
        if step and self.high is not None:
            self.high, self.low = ldexp(self.high, step), ldexp(self.low, step)
        self.exponent = exponent

    def _move(self, high: Array, low: Array, share: float) -> None:
        """By `share` of the way to the pair given, in pairs throughout."""
        gap, lost = _added(high, -self.high)
        step, rest = _times(gap, share)
        rest = rest + (lost + (low - self.low)) * _single(share, gap)
        total, left = _added(self.high, step)
        self.high, self.low = _added(total, left + rest + self.low)

    def merge(self, later: Self) -> None:
        self.n += later.n
        if later.high is None:
            return
        if self.high is None:
            self.high, self.low, self.weight = copied(later.high), copied(later.low), later.weight
            self.exponent = later.exponent
            return
        self.weight += later.weight
        self._divide(max(self.exponent, later.exponent))
        step = later.exponent - self.exponent
        self._move(ldexp(later.high, step), ldexp(later.low, step), later.weight / self.weight)

    def join(self, right: Self) -> None:
        if right.high is not None:
            self._divide(max(self.exponent, right.exponent))
            step = right.exponent - self.exponent
            self.high = join(self.high, ldexp(right.high, step))
            self.low = join(self.low, ldexp(right.low, step))

    def reshape(self, item: tuple[int, ...]) -> None:
        if self.high is not None:
            self.high, self.low = self.high.reshape(item), self.low.reshape(item)

    def result(self) -> Array:
        """The average: float64 where the device has it. Raises StatisticsError where no snapshot was seen."""
        if self.high is None:
            raise StatisticsError("no snapshots with a weight above 0")
        if is_torch(self.high) and self.high.device.type == "mps":
            return ldexp(self.high + self.low, self.exponent)
        return ldexp(wide(self.high) + wide(self.low), self.exponent)

    def state(self) -> dict[str, Array]:
        kept = {"n": np.array(self.n), "weight": np.array(self.weight),
                **({"exponent": np.array(self.exponent)} if self.exponent else {})}
        return kept if self.high is None else {**kept, "high": copied(self.high), "low": copied(self.low)}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.weight = int(state["n"]), float(state["weight"])
        new.exponent = int(state.get("exponent", 0))
        if "high" in state:
            new.high, new.low = copied(state["high"]), copied(state["low"])
        return new


def _column(share: np.ndarray, like: Array) -> Array:
    column = share.reshape(-1, *[1] * (like.ndim - 1))
    return torch.as_tensor(column, device=like.device) if is_torch(like) else column


def _added(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b in float32, and what its rounding lost."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _times(a: Array, share: float) -> tuple[Array, Array]:
    """share * a, and what its rounding lost."""
    high = np.float32(share)
    low = np.float32(share - float(high))
    product = a * _single(high, a)
    a1, a2 = _halves(a)
    b1, b2 = (np.float32(x) for x in _halves(high))
    lost = ((a1 * _single(b1, a) - product) + a1 * _single(b2, a) + a2 * _single(b1, a)) + a2 * _single(b2, a)
    return product, lost + a * _single(low, a)


def _halves(a: Array) -> tuple[Array, Array]:
    """a as two numbers of half the digits, whose products are exact."""
    scaled = a * _single(4097.0, a)
    first = scaled - (scaled - a)
    return first, a - first


def _single(share: Array, like: Array) -> Any:
    return float(share) if is_torch(like) else np.float32(share)
