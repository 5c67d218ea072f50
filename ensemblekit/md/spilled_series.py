"""Values of every frame kept for a second look, in memory while they are few, else in a nameless temporary file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.source import Array

HELD_BYTES = 1 << 20
"""What one state keeps in memory: a run has up to about a hundred."""


class SpilledSeries:
    """Keeps every value, (n, *item), as it came; result: (n, *item), mapped from disk where it is large. Merges in order.

    Unlike Series it does not grow in memory; the file has no name and goes when nobody looks at it any more.
    """

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        values = np.array(values, order="C")        # a mapped block is given back once it was read
        if self.parts and self.parts[0].shape[1:] != values.shape[1:]:
            raise InputError(f"values of shape {values.shape[1:]} after {self.parts[0].shape[1:]}")
        self.parts.append(values)
        held = [p for p in self.parts if not isinstance(p, np.memmap)]
        if sum(p.nbytes for p in held) > HELD_BYTES:
            self._spill()

    def _spill(self) -> None:
        together = self._joined()
        with tempfile.TemporaryFile(prefix="ensemblekit-") as file:
            together.tofile(file)
            file.flush()
            self.parts = [*self._mapped(), np.memmap(file, together.dtype, "r", 0, together.shape)]

    def _joined(self) -> np.ndarray:
        return np.concatenate([p for p in self.parts if not isinstance(p, np.memmap)])

    def _mapped(self) -> list[np.ndarray]:
        return [p for p in self.parts if isinstance(p, np.memmap)]

    def merge(self, later: Self) -> None:
        self.parts = self.parts + later.parts

    def result(self) -> Parts:
        """All values, part by part."""
        return Parts(list(self.parts))

    def state(self) -> dict[str, Array]:
        return {"values": np.concatenate(self.parts)} if self.parts else {}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        if "values" in state:
            new.parts = [np.asarray(state["values"])]
        return new


class Parts:
    """Consecutive arrays (n_k, *item) as one, of which columns are read."""

    def __init__(self, parts: list[np.ndarray]):
        self.parts = parts
        self.shape = (sum(map(len, parts)), *(parts[0].shape[1:] if parts else ()))

    def __len__(self) -> int:
        return self.shape[0]

    def after(self, start: int) -> Parts:
        """Without the first `start` values."""
        kept = []
        for part in self.parts:
            if start < len(part):
                kept.append(part[start:])
            start = max(0, start - len(part))
        return Parts(kept)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (self.parts[0].itemsize if self.parts else 0)

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        """[:, a:b]: all frames of some columns, a copy."""
        rows, columns = where
        if rows != slice(None):
            raise InputError("parts are read whole in time")
        return np.concatenate([p[:, columns] for p in self.parts])
