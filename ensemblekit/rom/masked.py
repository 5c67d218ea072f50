"""A source without some of its numbers: NaN in every snapshot, which a POD leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ensemblekit.rom.mesh import mesh_of
from ensemblekit.source import Block, Cut, Field, Piece
from ensemblekit.source_cuts import WHOLE
from ensemblekit.source_protocol import SourceView
from ensemblekit.source_views import PieceView


@dataclass(frozen=True, eq=False)
class MaskedSource(SourceView):
    """A source whose numbers are NaN where `keep` is False."""

    keep: Mapping[str, np.ndarray]
    """Field -> (size,) bool; all of fields that are not named."""

    @property
    def fields(self) -> Mapping[str, Field]:
        return {name: replace(one, dtype=np.dtype("f8")) if one.dtype.kind in "biu" and not self._whole(name) else one
                for name, one in self.source.fields.items()}

    def _whole(self, name: str) -> bool:
        return name not in self.keep or bool(self.keep[name].all())

    @property
    def mesh(self) -> object:
        return mesh_of(self.source)

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> MaskedSource:
        return MaskedSource(self.source.window(start, stop, step), self.keep)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for piece in self.source.pieces(names, cut, tiled, limit):
            yield PieceView(piece, partial(_masked, keep=self.keep))


def _masked(block: Block, keep: Mapping[str, np.ndarray]) -> Block:
    fields = {}
    for name, values in block.fields.items():
        own = keep.get(name)
        if own is None or own.all():
            fields[name] = values
            continue
        flat = np.asarray(values).reshape(len(values), -1)
        shown = own if block.tile == WHOLE else own[block.tile]
        missing = np.asarray(np.nan, flat.dtype if flat.dtype.kind in "fc" else np.float64)
        fields[name] = np.where(shown, flat, missing).reshape(np.shape(values))
    return Block(fields, block.start, block.tile, block.weights, block.times)
