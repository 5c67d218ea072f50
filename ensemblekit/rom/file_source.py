"""Flow files as a source: snapshots of a series of files, read where they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ensemblekit.intake_labels import Labels
from ensemblekit.rom.mesh import Mesh
from ensemblekit.rom.readers.labelled import LabelledReader
from ensemblekit.rom.readers.reader import NamedReader, Reader, chosen
from ensemblekit.source import Access, BaseSource, Block, Cut, Field, Piece, cuts_of
from ensemblekit.source_cuts import WHOLE, Cuts, check_window
from ensemblekit.source_labelled import block_edges, joined_chunks
from ensemblekit.store.stored import StoredSource

BATCH = 16 << 20
"""Bytes of snapshots read at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some snapshots of one reader."""

    reader: Reader
    rows: range


@dataclass(frozen=True, eq=False)
class FileSource(BaseSource):
    """Snapshots in files, read on the fly by whoever needs them; every reader opens its files for itself."""

    parts: tuple[Part, ...]
    names: tuple[str, ...]
    times: np.ndarray | None = None
    """(n,) in ``time_unit``; None where the files have none."""
    time_unit: str = ""
    units: Mapping[str, str] | None = None
    """Field -> unit, before what the files say."""
    on: Mesh | None = None
    """The mesh, where it is given and not the files' own."""
    meshed: bool = True

    @property
    def fields(self) -> Mapping[str, Field]:
        fields = self.parts[0].reader.fields
        units = self.units or {}
        return {name: replace(fields[name], unit=units[name]) if name in units else fields[name] for name in self.names}

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self),)

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    @property
    def access(self) -> Access:
        return "tiles" if all(part.reader.tiles for part in self.parts) else "rows"

    @property
    def labels(self) -> Labels | None:
        """Names of axes, coordinates and the epoch of the times, where the files say any; see ``Basis.to_xarray``."""
        reader = self.parts[0].reader
        labels = reader.labels if isinstance(reader, NamedReader) else None
        if not isinstance(labels, Labels):      # OpenFOAM's are names of folders
            return None
        return labels.only(self.names) if self.times is not None else replace(labels.only(self.names), epoch="")

    def _chunks(self, names: Sequence[str]) -> list[int]:
        """Where chunks of the files begin and end among the snapshots; none where they are not known."""
        edges, offset = [0], 0
        for part in self.parts:
            if not isinstance(part.reader, LabelledReader) or part.reader.tiles or part.rows.step != 1:
                return []
            edges += [offset + edge - part.rows.start for edge in part.reader.chunk_edges(names)
                      if part.rows.start < edge < part.rows.stop]
            offset += len(part.rows)
            edges.append(offset)
        return edges

    @property
    def mesh(self) -> Mesh | None:
        """The mesh of the snapshots; None where the files have none. Read when it is first asked for."""
        if self.on is not None or not self.meshed:
            return self.on
        return self.parts[0].reader.mesh()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(part.reader.path for part in self.parts)

    def __getitem__(self, name: str) -> FileSource:
        """One field of several."""
        return replace(self, names=tuple(chosen([name], self.names, self.paths[0])))

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> FileSource:
        check_window(start, stop, step)
        kept, offset = [], 0
        wanted = range(*slice(start, stop, step).indices(len(self)))
        for part in self.parts:
            first = max(0, -(-(offset - wanted.start) // step))
            begin, end = wanted.start + first * step - offset, min(len(part.rows), wanted.stop - offset)
            if begin < end:
                kept.append(Part(part.reader, part.rows[begin:end:step]))
            offset += len(part.rows)
        times = None if self.times is None else self.times[wanted.start:wanted.stop:step]
        return replace(self, parts=tuple(kept) or (Part(self.parts[0].reader, range(0)),), times=times)

    def rows(self, start: int, stop: int) -> tuple[Part, ...]:
        """The parts that hold snapshots start to stop - 1."""
        kept, offset = [], 0
        for part in self.parts:
            begin, end = max(0, start - offset), min(len(part.rows), stop - offset)
            if begin < end:
                kept.append(Part(part.reader, part.rows[begin:end]))
            offset += len(part.rows)
        return tuple(kept)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        tiles = self.access == "tiles"
        cuts = cuts_of(self.fields, names, len(self), cut if tiles else "time", tiled and tiles, limit)
        chunks = self._chunks(names)
        if chunks:      # pieces end where chunks do, as a part of a chunk costs the whole of it
            ends = joined_chunks(chunks, cuts.rows[1] if len(cuts.rows) > 1 else 1)
            cuts = Cuts(tuple(ends), cuts.tiles)
        for start, stop, tile in cuts:
            yield FilePiece(0, start, stop, tile, self.rows(start, stop), tuple(names), self.fields,
                            None if self.times is None else self.times[start:stop], limit,
                            tuple(edge - start for edge in chunks if start <= edge <= stop))

    def read(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Snapshots start to stop - 1 of every field, (n, *item). Raises SnapshotFileError where a file cannot be read."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return _joined(self.rows(start, stop), self.names, self.fields, None)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {field.shape}" + (f" {field.unit}" if field.unit else "")
                           for name, field in self.fields.items())
        return f"<{len(self)} snapshots of {fields} from {os.path.basename(self.paths[0])}>"


@dataclass(frozen=True, eq=False, slots=True)
class FilePiece:
    """Some consecutive snapshots of files."""

    run: int
    start: int
    stop: int
    tile: slice
    parts: tuple[Part, ...]
    names: tuple[str, ...]
    fields: Mapping[str, Field]
    times: np.ndarray | None
    limit: int
    chunks: tuple[int, ...] = ()
    """Where chunks begin and end, from the first snapshot of the piece on; none where they are not known."""

    def prefetch(self) -> None:
        """Nothing: the readers read as they are asked."""

    def blocks(self) -> Iterator[Block]:
        whole = self.tile == WHOLE
        a_row = sum(self.fields[name].nbytes if whole else (self.tile.stop - self.tile.start) * self.fields[name].dtype.itemsize
                    for name in self.names)
        n = self.stop - self.start
        step = max(1, min(BATCH, self.limit) // max(1, a_row)) if whole else n
        ranges = block_edges(n, a_row, self.chunks, self.limit) if self.chunks and whole else (
            (at, min(n, at + step)) for at in range(0, n, step))
        for at, end in ranges:
            parts = _rows(self.parts, at, end)
            values = _joined(parts, self.names, self.fields, None if whole else self.tile)
            yield Block(values, self.start + at, self.tile, None, None if self.times is None else self.times[at:end])


def _rows(parts: Sequence[Part], start: int, stop: int) -> list[Part]:
    kept, offset = [], 0
    for part in parts:
        begin, end = max(0, start - offset), min(len(part.rows), stop - offset)
        if begin < end:
            kept.append(Part(part.reader, part.rows[begin:end]))
        offset += len(part.rows)
    return kept


def _joined(parts: Sequence[Part], names: Sequence[str], fields: Mapping[str, Field], tile: slice | None
            ) -> dict[str, np.ndarray]:
    read = [part.reader.read(names, part.rows, tile) for part in parts]
    if not read:
        return {name: np.empty((0, *fields[name].shape), fields[name].dtype) for name in names}
    if len(read) == 1:
        return read[0]
    return {name: np.concatenate([r[name] for r in read]).astype(fields[name].dtype, copy=False) for name in names}


@dataclass(frozen=True, eq=False)
class MeshedSource(BaseSource):
    """A stored source with a mesh beside it, or fewer of its fields."""

    stored: StoredSource
    mesh: Mesh | None = None
    units: Mapping[str, str] | None = None
    dated: bool = True
    """Whether the times are those of the store, counted from the epoch that it says."""

    @property
    def fields(self) -> Mapping[str, Field]:
        units = self.units or {}
        return {name: replace(f, unit=units[name]) if name in units else f for name, f in self.stored.fields.items()}

    @property
    def labels(self) -> Labels | None:
        """Names of axes, coordinates and the epoch of the times, where the store was made with any."""
        labels = self.stored.labels
        return labels if labels is None or self.dated else replace(labels, epoch="", calendar="")

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.stored.lengths

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def access(self) -> Access:
        return self.stored.access

    @property
    def times(self) -> np.ndarray | None:
        return self.stored.times

    @property
    def time_unit(self) -> str:
        return self.stored.time_unit

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(part.path for part in self.stored.table.parts)

    def __getitem__(self, name: str) -> MeshedSource:
        return replace(self, stored=replace(self.stored, names=tuple(chosen([name], self.stored.names, ""))))

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> MeshedSource:
        return replace(self, stored=self.stored.window(start, stop, step))

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        return self.stored.pieces(names, cut, tiled, limit)

    def read(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        start, stop, _ = slice(start, stop).indices(len(self))
        columns: dict[str, list[np.ndarray]] = {name: [] for name in self.fields}
        for piece in self.stored.window(start, stop).pieces(list(self.fields), "time", False, BATCH):
            for block in piece.blocks():
                for name, values in block.fields.items():
                    columns[name].append(np.array(values))
        return {name: np.concatenate(values) if values else np.empty((0, *self.fields[name].shape), self.fields[name].dtype)
                for name, values in columns.items()}

    def __repr__(self) -> str:
        return f"<{len(self)} snapshots of {', '.join(self.fields)} from {os.path.basename(self.paths[0])}>"
