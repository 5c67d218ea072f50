"""Frames with weights of one's own, and frames picked by number: thin covers over any source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.source import Access, Block, Cut, Field, Piece, cuts_of
from ensemblekit.source_cuts import WHOLE, check_window
from ensemblekit.source_views import SourceView, Weighted


@dataclass(frozen=True, eq=False)
class WeightedSource(SourceView):
    """Another source of one run whose frames have these weights."""

    source: Any
    weights: np.ndarray

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.weights),)

    @property
    def access(self) -> Access:
        return "rows"

    @property
    def times(self) -> np.ndarray | None:
        return self.source.times

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> WeightedSource:
        check_window(start, stop, step)
        return WeightedSource(self.source.window(start, stop, step), self.weights[start:stop:step])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for piece in self.source.pieces(names, "time", False, limit):
            yield Weighted.piece(piece, self.weights)


@dataclass(frozen=True, eq=False)
class PickedSource:
    """Some frames of a stored run, by rising numbers."""

    source: Any
    """A StoredSource."""
    rows: np.ndarray
    access: Access = "rows"

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.source.fields

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.rows),)

    @property
    def time_unit(self) -> str:
        return self.source.time_unit

    @property
    def times(self) -> np.ndarray | None:
        times = self.source.times
        return None if times is None else times[self.rows]

    @property
    def weights(self) -> np.ndarray | None:
        weights = self.source.weights
        return None if weights is None else weights[self.rows]

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> PickedSource:
        check_window(start, stop, step)
        return replace(self, rows=self.rows[start:stop:step])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        times, weights = self.times, self.weights
        for start, stop, _ in cuts_of(self.fields, names, len(self.rows), "time", False, limit):
            yield PickedPiece(0, start, stop, WHOLE, self.source, self.rows[start:stop], tuple(names), min(limit, 8 << 20),
                              None if weights is None else weights[start:stop], None if times is None else times[start:stop])


@dataclass(frozen=True, eq=False, slots=True)
class PickedPiece:
    """Frames of a stored run by their numbers."""

    run: int
    start: int
    stop: int
    tile: slice
    source: Any
    rows: np.ndarray
    names: tuple[str, ...]
    limit: int
    weights: np.ndarray | None
    times: np.ndarray | None

    def prefetch(self) -> None:
        """Nothing: the frames lie apart."""

    def blocks(self) -> Iterator[Block]:
        from ensemblekit.store.stored import StoredField

        s = self.source
        columns = {name: StoredField(s.table, (name,), s.start, s.stop, s.step, s.run) for name in self.names}
        step = max(1, self.limit // max(1, sum(s.fields[name].nbytes for name in self.names)))
        for a in range(0, len(self.rows), step):
            b = min(a + step, len(self.rows))
            yield Block({name: column[self.rows[a:b]] for name, column in columns.items()}, self.start + a, WHOLE,
                        None if self.weights is None else self.weights[a:b], None if self.times is None else self.times[a:b])
