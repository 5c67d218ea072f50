"""The committed snapshots of a store as a source: spans of rows in its files, nothing read before it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import EllipsisType, MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike

from ensemblekit.errors import StoreDamagedError
from ensemblekit.intake_labels import Labels
from ensemblekit.parts import STEP_NAMES, TIME_NAMES, warn_of_restart, written_once
from ensemblekit.source import Access, BaseSource, Cut, Field, Piece, cuts_of
from ensemblekit.source_cuts import WHOLE, check_window
from ensemblekit.store.blocks import SlabPiece, Span, StoredPiece
from ensemblekit.store.datasets import Dataset, Identity, identity_of
from ensemblekit.store.foreign import FEW_TICKS, Foreign, Ticks
from ensemblekit.store.labels import labels_in
from ensemblekit.store.layout import Layout, read_constants
from ensemblekit.store.places import Run, groups_of, read_table, runs_in, stretches


class Stretch(NamedTuple):
    """Consecutive rows of a dataset that lie evenly spaced in its file."""

    start: int
    stop: int
    dataset: Dataset
    """With the place that row 0 would have."""

Key = int | slice | EllipsisType | Sequence[int] | np.ndarray | tuple[Any, ...]
"""Snapshots, and further axes behind, as in numpy."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The rows of one clock in one file."""

    path: str
    identity: Identity
    n: int
    columns: Mapping[str, tuple[Stretch, ...]]
    """Field, or "step", "time", "weight", "checksums" with a leading space, to its rows, all of them in order."""
    first: int = 0
    """Number in the file of the first of these rows; above 0 in a foreign file, of which a later stretch is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All committed snapshots of one clock, file after file."""

    fields: Mapping[str, Field]
    parts: tuple[Part, ...]
    time_unit: str
    steps: Ticks | None = None      # of foreign files
    times: Ticks | None = None
    timed: bool = True
    home: Layout | None = None
    """The store's first file, which has the constants; None for foreign files."""

    @property
    def n(self) -> int:
        return sum(part.n for part in self.parts)

    def kept(self, rows: np.ndarray) -> Table:
        """Some snapshots of a foreign file's clock that is still whole, by their rising numbers."""
        (part,) = self.parts
        stretches = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        parts = tuple(replace(part, n=len(some), first=int(some[0]), columns={
            name: (Stretch(0, len(some), whole.dataset),) for name, (whole,) in part.columns.items()}) for some in stretches)
        steps, times = (None if ticks is None else ticks[:][rows] for ticks in (self.steps, self.times))
        return replace(self, parts=parts, steps=steps, times=times)

    def spans(self, column: str, start: int, stop: int, step: int) -> list[Span]:
        """The rows start, start + step, ... below stop, as spans of files."""
        return self.cut_alike([column], start, stop, step)[column]

    def cut_alike(self, columns: Sequence[str], start: int, stop: int, step: int) -> dict[str, list[Span]]:
        """The rows start, start + step, ... below stop of several columns, as spans that begin and end at the same rows."""
        spans: dict[str, list[Span]] = {column: [] for column in columns}
        offset = 0
        for part in self.parts:
            ends = sorted({stretch.stop for column in columns for stretch in part.columns[column]})
            at = dict.fromkeys(columns, 0)
            begin = 0
            for end in ends:
                first = max(start, offset + begin)
                first += (start - first) % step
                last = min(stop, offset + end)
                for column in columns:
                    while part.columns[column][at[column]].stop <= begin:
                        at[column] += 1
                    if first < last:
                        spans[column].append(Span(part.path, part.identity, part.columns[column][at[column]].dataset,
                                                  part.first + first - offset, -(-(last - first) // step), step))
                begin = end
            offset += part.n
        return spans

    def column(self, column: str, start: int, stop: int, step: int) -> np.ndarray:
        parts = [span.view() for span in self.spans(column, start, stop, step)]
        if not parts:
            return np.empty(0)
        return np.concatenate(parts) if len(parts) > 1 else np.array(parts[0])


@dataclass(frozen=True, eq=False)
class StoredSource(BaseSource):
    """Some or all stored fields of one clock, perhaps fewer of their snapshots: a source, nothing read yet."""

    table: Table
    names: tuple[str, ...]
    start: int
    stop: int
    step: int
    run: str

    @property
    def fields(self) -> Mapping[str, Field]:
        return {name: self.table.fields[name] for name in self.names}

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self),)

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))

    @property
    def access(self) -> Access:
        return "tiles"

    @property
    def time_unit(self) -> str:
        return self.table.time_unit

    @property
    def times(self) -> np.ndarray | None:
        """Times of the snapshots, float64 (n,), in ``time_unit``; None where the file has none."""
        if self.table.times is not None:
            return self.table.times[self.start:self.stop:self.step]
        return self.table.column(" time", self.start, self.stop, self.step) if self.table.timed else None

    @property
    def stamps(self) -> np.ndarray:
        """What stands in the time column of a store, (n,): the times, or the count where the snapshots have none."""
        return self.table.column(" time", self.start, self.stop, self.step)

    @property
    def steps(self) -> np.ndarray:
        """Step numbers of the snapshots, int64 (n,)."""
        if self.table.steps is not None:
            return self.table.steps[self.start:self.stop:self.step]
        return self.table.column(" step", self.start, self.stop, self.step).astype(np.int64)

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The arrays of the run that do not change with time, as given to ``ek.create``."""
        return constants_of(self.table.home) if self.table.home is not None else {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the store was made of, as given to ``ek.create``; {} of another program's file."""
        return dict(self.table.home.schema.provenance or {}) if self.table.home is not None else {}

    @property
    def labels(self) -> Labels | None:
        """Names of axes, coordinates and the epoch of the times, where the store was made with any."""
        labels = _labels_in(self.table.home) if self.table.home is not None else None
        if labels is None:
            return None
        return labels.only(self.names) if self.table.timed else replace(labels.only(self.names), epoch="", calendar="")

    @property
    def weights(self) -> np.ndarray | None:
        """Statistical weights, float64 (n,); None where every one is 1."""
        if not self.table.parts or " weight" not in self.table.parts[0].columns:
            return None
        weights = self.table.column(" weight", self.start, self.stop, self.step)
        return None if (weights == 1.0).all() else weights

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> Self:
        check_window(start, stop, step)
        rows = range(self.start, self.stop, self.step)[start:stop:step]
        return type(self)(self.table, self.names, rows.start, rows.stop, rows.step, self.run)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        n = len(self)
        weights, times = self.weights, self.times
        size = self.fields[names[0]].size if names and names[0] in self.fields else 0
        for start, stop, tile in cuts_of(self.fields, names, n, cut, tiled, limit):
            a, b = self.start + start * self.step, min(self.stop, self.start + stop * self.step)
            spans = {name: tuple(some) for name, some in self.table.cut_alike(names, a, b, self.step).items()}
            w = None if weights is None else weights[start:stop]
            t = None if times is None else times[start:stop]
            if cut == "space":
                yield SlabPiece(0, start, stop, tile, names[0], spans[names[0]], w, t)
            else:
                yield StoredPiece(0, start, stop, tile, spans, w, t, limit, tile == WHOLE or tile.stop == size)


class StoredField(StoredSource):
    """The one-field view of a store: an array on disk (``u.shape``, ``u[10:20]``) and a source of its snapshots."""

    @property
    def field(self) -> Field:
        return self.table.fields[self.names[0]]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *item)."""
        return (len(self), *self.field.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.field.dtype

    @property
    def unit(self) -> str:
        return self.field.unit

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Key) -> np.ndarray:
        """Snapshots as an array: by number, slice, list, mask, with further axes behind as in numpy."""
        rows, *rest = key if isinstance(key, tuple) else (key,)
        n = len(self)
        if isinstance(rows, int | np.integer):
            if not -n <= rows < n:
                raise IndexError(f"snapshot {rows} of {n}")
            values = self._rows(int(rows) % n, int(rows) % n + 1, 1)[0]
            return values[tuple(rest)] if rest else values
        if isinstance(rows, slice):
            start, stop, step = rows.indices(n)
            if step < 0:
                return self[(slice(stop + 1, start + 1), *rest)][::step] if start > stop else self[(slice(0, 0), *rest)]
            values = self._rows(start, stop, step)
        elif rows is Ellipsis:
            return self[:][(..., *rest)]
        else:
            values = self._picked(self._numbers_of(rows))
        return values[(slice(None), *rest)] if rest else values

    def _numbers_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """A list or mask of snapshots as their numbers from 0, checked."""
        index, n = np.asarray(rows), len(self)
        if index.dtype == bool:
            if index.shape != (n,):
                raise IndexError(f"a mask of snapshots has shape ({n},); got {index.shape}")
            return np.flatnonzero(index)
        if index.ndim != 1 or (index.dtype.kind not in "iu" and len(index)):
            raise IndexError(f"snapshots are picked by a number, a slice, a list of numbers or a mask; got {rows!r}")
        if len(index) and not (-n <= index.min() and index.max() < n):
            raise IndexError(f"snapshots {index.min()} to {index.max()} of {n}")
        return index.astype(np.int64) % max(n, 1)

    def _picked(self, numbers: np.ndarray) -> np.ndarray:
        values = np.empty((len(numbers), *self.field.shape), self.dtype)
        done = 0
        for span in self.table.spans(self.names[0], self.start, self.stop, self.step):
            here = np.flatnonzero((numbers >= done) & (numbers < done + span.n))
            if span.dataset.offset is not None:
                values[here] = span.view()[numbers[here] - done]
            else:
                for k in here:
                    values[k] = span.view(int(numbers[k]) - done, int(numbers[k]) - done + 1)[0]
            done += span.n
        return values

    def _rows(self, start: int, stop: int, step: int) -> np.ndarray:
        a, b, k = self.start + start * self.step, self.start + stop * self.step, self.step * step
        parts = [span.view() for span in self.table.spans(self.names[0], a, min(b, self.stop), k)]
        if not parts:
            return np.empty((0, *self.field.shape), self.dtype)
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values.astype(self.dtype) if values is parts[0] else values.astype(self.dtype, copy=False)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"<stored field {self.names[0]!r}: {len(self)} snapshots of {self.field.shape} {self.dtype}{unit}>"

class Rows(NamedTuple):
    """The committed rows of a clock in a file."""

    n: int
    runs: Sequence[Sequence[Run]] | None
    """Where each group of its columns lies; None where the datasets say so."""


def rows_in(fd: int, layout: Layout, clock: str) -> Rows:
    """The committed rows of a clock in an open file."""
    schema = layout.schema
    first = layout.datasets[schema.columns(clock, 1)[0].path]
    n = first.shape[0]
    if first.extent_at is not None and (clock in layout.places or (schema.in_place and not schema.sealed)):
        n = int.from_bytes(os.pread(fd, 8, first.extent_at), "little")
    if clock not in layout.places or not n:
        return Rows(n, None)
    return Rows(n, runs_in(read_table(fd, layout.places[clock]), sum(map(bool, schema.groups(clock)))))


def stretches_of(layout: Layout, clock: str, n: int, runs: Sequence[Sequence[Run]] | None) -> dict[str, tuple[Stretch, ...]]:
    """Field, or " step", " time", " weight", " checksums" -> its n committed rows in a file."""
    schema = layout.schema
    columns = schema.columns(clock, (schema.capacity or {})[clock])
    rows = column_stretches(layout, clock, n, runs)
    by_field = dict(zip((" step", " time", " weight", " checksums"), rows[-4:], strict=True))
    for column, some in zip(columns[:-4], rows, strict=False):
        if len(column.fields) == 1:
            by_field[column.fields[0]] = some
            continue
        for name, start, stop in schema.parts(column):
            by_field[name] = tuple(Stretch(a, b, _part_of(d, schema.fields[name].shape, start, stop)) for a, b, d in some)
    return by_field


def _part_of(d: Dataset, shape: tuple[int, ...], start: int, stop: int) -> Dataset:
    """The numbers from start to stop of a dataset's rows, as a dataset of its own."""
    offset = None if d.offset is None else d.offset + start * d.dtype.itemsize
    return replace(d, shape=(d.shape[0], *shape), offset=offset, within=slice(start, stop))


def column_stretches(layout: Layout, clock: str, n: int,
                      runs: Sequence[Sequence[Run]] | None) -> list[tuple[Stretch, ...]]:
    """The n committed rows in a file of each column of a clock."""
    schema = layout.schema
    columns = schema.columns(clock, (schema.capacity or {})[clock])
    datasets = [layout.datasets[c.path] for c in columns]
    if runs is None:
        return [(Stretch(0, n, d),) for d in datasets]
    by_number: dict[int, tuple[Stretch, ...]] = {}
    for group, some in zip(groups_of(schema, clock), runs, strict=True):
        for k, (number, stride) in enumerate(zip(group.numbers, group.strides, strict=True)):
            by_number[number] = tuple(Stretch(a, b, replace(datasets[number], offset=base, stride=stride, rows=b))
                                      for a, b, base in stretches(group, some, k, n))
    return [by_number[number] for number in range(len(columns))]


@lru_cache(maxsize=4)
def _constants_in(layout: Layout) -> Mapping[str, np.ndarray]:
    constants = read_constants(layout.path, layout.schema)
    for values in constants.values():
        values.flags.writeable = False
    return MappingProxyType(constants)


def constants_of(layout: Layout) -> Mapping[str, np.ndarray]:
    """The arrays in a store's first file that do not change with time, kept for who asks next."""
    return _constants_in(layout) if layout.schema.constants else {}


@lru_cache(maxsize=4)
def _labels_in(layout: Layout) -> Labels | None:
    try:
        return labels_in(constants_of(layout))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreDamagedError(f"{layout.path}: the names of axes and the coordinates that it has cannot be read ({error}); "
                                "values, steps and times can: ek.open(path)[field][:] gives them") from error


def foreign_tables(path: str, fields: Mapping[str, Foreign]) -> dict[str, Table]:
    """Clock -> what another program's file holds of it."""
    tables = {}
    identity = identity_of(path)
    for clock in dict.fromkeys(f.field.clock for f in fields.values()):
        same = {name: f for name, f in fields.items() if f.field.clock == clock}
        one = next(iter(same.values()))
        unit = next((f.time_unit for f in same.values() if f.time_unit), "")
        part = Part(path, identity, one.n, {name: (Stretch(0, one.n, f.dataset),) for name, f in same.items()})
        table = Table({name: f.field for name, f in same.items()}, (part,), unit, one.steps, one.times, one.times is not None)
        tables[clock] = _once(table, path)
    return tables


def _once(table: Table, path: str) -> Table:
    """The table without the snapshots of a foreign file that a continued run wrote again, by their times, else their steps;
    where these are too many to be read on opening, as it is."""
    ticks = next((ticks for ticks in _ticks_of(table) if np.isfinite(ticks).all()), None)
    kept = None if ticks is None else written_once(ticks)
    if ticks is None or kept is None or kept.all():
        return table
    warn_of_restart(ticks, kept, os.path.basename(path), stacklevel=7)
    return table.kept(np.flatnonzero(kept))


def _ticks_of(table: Table) -> Iterator[np.ndarray]:
    """Times and steps of a foreign file: its own, or those that a plain one lists among its datasets; few enough to be read."""
    if isinstance(table.times, np.ndarray):
        yield table.times
    for known, kinds in ((TIME_NAMES, "iuf"), (STEP_NAMES, "iu")) if table.times is None and table.n <= FEW_TICKS else ():
        for name, field in table.fields.items():
            if field.shape == () and field.dtype.kind in kinds and name.rpartition("/")[2] in known and len(table.fields) > 1:
                yield table.column(name, 0, table.n, 1)
    if isinstance(table.steps, np.ndarray):
        yield table.steps
