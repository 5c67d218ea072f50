"""Smallest and largest value of every element, and the snapshot where it stands; merges in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import copied, join, plain, real_only, same_item
from ensemblekit.averaging.rows import rows_of
from ensemblekit.errors import StatisticsError
from ensemblekit.results import Result
from ensemblekit.source import Array, is_torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExtremesResult(Result):
    """Arrays of the item's shape. As in numpy, NaN is the smallest and the largest of all where there is one."""

    low: Array
    """Smallest value, in the field's type."""
    high: Array
    """Largest value."""
    at_low: Array
    """Snapshot of the run (int64) with the smallest value; the first of equals."""
    at_high: Array
    """Snapshot with the largest value; the first of equals."""
    n: int


class Extremes:
    """Minimum and maximum with where. Weights do not enter: a snapshot of weight 0 counts as seen."""

    def __init__(self) -> None:
        self.n = 0
        self.item: tuple[int, ...] = ()
        self.parts: list[Array] = []        # low, high, at_low, at_high, flat

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        real_only(values, "Extremes")
        if self.parts:
            same_item(self.item, values, "Extremes")
        self.item = tuple(values.shape[1:])
        if is_torch(values):
            flat = values.reshape(len(values), -1)
            low, at_low = flat.min(0)
            high, at_high = flat.max(0)
            self._absorb([low, high, at_low + start, at_high + start])
        else:
            from ensemblekit.averaging import kernels

            rows = rows_of(values)
            if not self.parts:
                first = rows.flat[:rows.width]
                at = np.full(rows.width, start, dtype=np.int64)
                self.parts = [first.copy(), first.copy(), at, at.copy()]
            kernels.add_extremes(rows.flat, rows.stride, rows.n, rows.width, start, *self.parts)
        self.n += len(values)

    def merge(self, later: Self) -> None:
        if later.parts:
            self.item = later.item
            self._absorb([copied(x) for x in later.parts])
            self.n += later.n

    def _absorb(self, parts: list[Array]) -> None:
        if not self.parts:
            self.parts = parts
            return
        low, high, at_low, at_high = self.parts
        less = (parts[0] < low) | ((parts[0] != parts[0]) & (low == low))
        more = (parts[1] > high) | ((parts[1] != parts[1]) & (high == high))
        where = __import__("torch").where if is_torch(low) else np.where
        self.parts = [where(less, parts[0], low), where(more, parts[1], high),
                      where(less, parts[2], at_low), where(more, parts[3], at_high)]

    def join(self, right: Self) -> None:
        if right.parts:
            self.parts = [join(a, b) for a, b in zip(self.parts, right.parts, strict=True)]
            self.item = (self.item[0] + right.item[0],)

    def reshape(self, item: tuple[int, ...]) -> None:
        self.item = tuple(item)

    def result(self) -> ExtremesResult:
        """Raises StatisticsError where no snapshot was seen."""
        if not self.parts:
            raise StatisticsError("no snapshots")
        low, high, at_low, at_high = (copied(x).reshape(self.item) for x in self.parts)
        return ExtremesResult(low=low, high=high, at_low=at_low, at_high=at_high, n=self.n)

    def state(self) -> dict[str, Array]:
        return {"n": np.array(self.n), "item": np.array(self.item, dtype=np.int64),
                **{f"part{k}": plain(x) for k, x in enumerate(self.parts)}}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.item = int(state["n"]), tuple(int(k) for k in state["item"])
        new.parts = [copied(state[f"part{k}"]) for k in range(4) if f"part{k}" in state]
        return new
