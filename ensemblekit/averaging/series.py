"""The values themselves, one a snapshot: for time series of observables. Merges in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import copied, same_item
from ensemblekit.source import Array, is_torch


class Series:
    """Keeps every value; the result is one array (n, *item) in the type it came in. Memory grows with n."""

    def __init__(self) -> None:
        self.parts: list[Array] = []

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values):
            if self.parts:
                same_item(self.parts[0].shape[1:], values, "Series")
            self.parts.append(copied(values))       # a mapped block is given back once it was read

    def merge(self, later: Self) -> None:
        self.parts = self.parts + later.parts

    def result(self) -> Array:
        """All values, (n, *item); an empty array where there were no snapshots."""
        if not self.parts:
            return np.empty(0)
        if is_torch(self.parts[0]):
            import torch

            return torch.cat(self.parts)
        return np.concatenate(self.parts)

    def state(self) -> dict[str, Array]:
        return {"values": self.result()} if self.parts else {}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        if "values" in state:
            new.parts = [copied(state["values"])]
        return new


class SeriesOf(Series):
    """Keeps a function of the values, such as one number of an array: (n, *item) -> (n, *any)."""

    def __init__(self, function: Callable[[Array], Array]) -> None:
        super().__init__()
        self.function = function

    def empty(self) -> Self:
        return type(self)(self.function)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values):
            super().update(self.function(values), start, weights)
