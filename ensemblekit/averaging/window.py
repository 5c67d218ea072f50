"""Average of the last few snapshots; merges in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import copied, join, same_item, weighted_sum
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.source import Array, is_torch


class Window:
    """Mean of the last `length` snapshots (the latest-weights average, LAWA, of a training run); keeps just those."""

    def __init__(self, length: int):
        if not isinstance(length, int | np.integer) or length < 1:
            raise InputError(f"length is a whole number of snapshots above 0; got {length!r}")
        self.length = int(length)
        self.values: Array = None
        self.weights = np.empty(0)

    def empty(self) -> Self:
        return type(self)(self.length)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values):
            w = np.ones(len(values)) if weights is None else as_array(weights, "weights", dtype=np.float64)
            self._absorb(copied(values[-self.length:]), w[-self.length:].copy())

    def merge(self, later: Self) -> None:
        if later.values is not None:
            self._absorb(later.values, later.weights)

    def _absorb(self, values: Array, weights: np.ndarray) -> None:
        if self.values is not None:
            same_item(self.values.shape[1:], values, "Window")
            values, weights = join(self.values, values), np.concatenate([self.weights, weights])
        self.values, self.weights = values[-self.length:], weights[-self.length:]

    def join(self, right: Self) -> None:
        if right.values is not None:
            self.values = join(self.values, right.values, 1)

    def reshape(self, item: tuple[int, ...]) -> None:
        if self.values is not None:
            self.values = self.values.reshape(len(self.values), *item)

    def result(self) -> Array:
        """The weighted mean, float64, shape (*item,). Raises StatisticsError where there is nothing to average."""
        total = self.weights.sum()
        if self.values is None or total == 0.0:
            raise StatisticsError("no snapshots with a weight above 0 in the window")
        return weighted_sum(self.weights / total, self.values)

    def state(self) -> dict[str, Array]:
        return {} if self.values is None else {"values": copied(self.values), "weights": self.weights.copy()}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        if "values" in state:
            new.values = copied(state["values"]) if is_torch(state["values"]) else np.array(state["values"])
            new.weights = np.array(state["weights"], dtype=np.float64)
        return new
