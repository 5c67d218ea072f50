"""The conformers of an ensemble as a source: models in memory, in no order in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ensemblekit.md.topology import Topology
from ensemblekit.md.trajectory import FrameSource
from ensemblekit.source import Cut, Field, HeldPiece, Piece, cuts_of
from ensemblekit.source_cuts import check_window


@dataclass(frozen=True, eq=False, repr=False)
class ConformerSource(FrameSource):
    """Models of one molecule, each independent of the others."""

    position: np.ndarray
    """(models, atoms, 3), angstrom."""
    topology: Topology
    weights: np.ndarray | None = None
    """(models,) statistical weights."""
    words: str = ""
    """What every average of them says; :attr:`caveat`."""
    kinds: tuple[str, ...] = ("position",)
    whole: bool = True

    in_memory: ClassVar[bool] = True

    @property
    def ordered(self) -> bool:
        return False

    @property
    def caveat(self) -> str:
        return self.words

    @property
    def timed(self) -> bool:
        return False

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.position),)

    @property
    def fields(self) -> Mapping[str, Field]:
        return {"position": replace(super().fields["position"], dtype=self.position.dtype)}

    def reweighted(self, weights: np.ndarray) -> ConformerSource:
        return replace(self, weights=weights)

    def picked(self, which: slice | np.ndarray) -> ConformerSource:
        return replace(self, position=self.position[which], weights=None if self.weights is None else self.weights[which])

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> ConformerSource:
        check_window(start, stop, step)
        return self.picked(slice(start, stop, step))

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for start, stop, tile in cuts_of(self.fields, names, len(self.position), "time", False, limit):
            rows = slice(start, stop)
            yield HeldPiece(0, start, stop, tile, {"position": self.position[rows]},
                            None if self.weights is None else self.weights[rows], None)
