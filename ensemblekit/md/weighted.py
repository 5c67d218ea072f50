"""Frames with weights of one's own, and frames picked by number: thin covers over any source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ensemblekit.source import Access, Block, Cut, Piece, cuts_of
from ensemblekit.source_cuts import WHOLE, check_window
from ensemblekit.source_protocol import SourceView
from ensemblekit.source_views import Weighted
from ensemblekit.store.stored import StoredField, StoredSource


@dataclass(frozen=True, eq=False)
class WeightedSource(SourceView):
    """Another source of one run whose frames have these weights in the place of their own."""

    given: np.ndarray
    """(n,)"""

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.given),)

    @property
    def access(self) -> Access:
        return "rows"

    @property
    def weights(self) -> np.ndarray:
        return self.given

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> WeightedSource:
        check_window(start, stop, step)
        return WeightedSource(self.source.window(start, stop, step), self.given[start:stop:step])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for piece in self.source.pieces(names, "time", False, limit):
            yield Weighted.piece(piece, self.given)


@dataclass(frozen=True, eq=False)
class PickedSource(SourceView):
    """Some frames of a stored run, by rising numbers."""

    source: StoredSource
    rows: np.ndarray

    @property
    def access(self) -> Access:
        return "rows"

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.rows),)

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
    source: StoredSource
    rows: np.ndarray
    names: tuple[str, ...]
    limit: int
    weights: np.ndarray | None
    times: np.ndarray | None

    def prefetch(self) -> None:
        """Nothing: the frames lie apart."""

    def blocks(self) -> Iterator[Block]:
        s = self.source
        columns = {name: StoredField(s.table, (name,), s.start, s.stop, s.step, s.run) for name in self.names}
        step = max(1, self.limit // max(1, sum(s.fields[name].nbytes for name in self.names)))
        for a in range(0, len(self.rows), step):
            b = min(a + step, len(self.rows))
            yield Block({name: column[self.rows[a:b]] for name, column in columns.items()}, self.start + a, WHOLE,
                        None if self.weights is None else self.weights[a:b], None if self.times is None else self.times[a:b])
