"""Pieces of the sources in memory and of several runs: one that holds its snapshots, one of a run, a tile of several joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ensemblekit.source_cuts import WHOLE
from ensemblekit.source_joined import JoinedField
from ensemblekit.source_protocol import Array, Block, Piece


@dataclass(frozen=True, eq=False, slots=True)
class HeldPiece:
    """A piece that holds its snapshots."""

    run: int
    start: int
    stop: int
    tile: slice
    arrays: Mapping[str, Array]
    weights: np.ndarray | None
    times: np.ndarray | None

    def prefetch(self) -> None:
        """Nothing: what is in memory needs no disk."""

    def blocks(self) -> Iterator[Block]:
        arrays = self.arrays
        if self.tile != WHOLE:
            arrays = {name: x.reshape(len(x), -1)[:, self.tile] for name, x in arrays.items()}
        yield Block(arrays, self.start, self.tile, self.weights, self.times)


@dataclass(frozen=True, eq=False, slots=True)
class RunPiece:
    """A piece of one run of several, at another place in time or under another run number."""

    run: int
    start: int
    stop: int
    tile: slice
    piece: Piece
    timed: bool = True

    def prefetch(self) -> None:
        self.piece.prefetch()

    def blocks(self) -> Iterator[Block]:
        shift = self.start - self.piece.start
        for block in self.piece.blocks():
            # not _replace: it counts members by len(), which for a block counts snapshots
            times = block.times if self.timed else None
            yield Block(block.fields, block.start + shift, block.tile, block.weights, times)


@dataclass(frozen=True, eq=False, slots=True)
class JoinedPiece:
    """The same tile of several runs, joined in time."""

    run: int
    start: int
    stop: int
    tile: slice
    parts: tuple[Piece, ...]

    def prefetch(self) -> None:
        for part in self.parts:
            part.prefetch()

    def blocks(self) -> Iterator[Block]:
        blocks = [block for part in self.parts for block in part.blocks()]
        (name,) = blocks[0].fields
        values = [part for block in blocks for part in (
            block.fields.parts if isinstance(block.fields, JoinedField) else [block.fields[name]])]
        weights = None if blocks[0].weights is None else np.concatenate([b.weights for b in blocks])
        yield Block(JoinedField(name, values), 0, self.tile, weights, None)
