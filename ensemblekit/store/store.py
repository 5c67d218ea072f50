"""The snapshot store: one run in one or more HDF5 files, appended to by one writer, read by anyone at any time."""

from __future__ import annotations

import os
import threading
import time as clock_time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from ensemblekit.errors import (
    ClosedError,
    EnsemblekitError,
    InputError,
    LengthError,
    StoreBusyError,
    StoreDamagedError,
    StoreError,
    UnknownFieldError,
)
from ensemblekit.files import most_bytes, sync_folder
from ensemblekit.intake import as_array
from ensemblekit.parts import STEP_NAMES, TIME_NAMES, warn_of_restart, written_once
from ensemblekit.source import WHOLE, Access, Cut, Field, Piece, check_window, cuts_of
from ensemblekit.store.blocks import SlabPiece, Span, StoredPiece, check_identity
from ensemblekit.store.hdf5 import (
    FEW_TICKS,
    Dataset,
    Foreign,
    Identity,
    Layout,
    Ticks,
    identity_of,
    read_constants,
    read_file,
    read_layout,
)
from ensemblekit.store.places import Run, groups_of, read_table, runs_in, stretches
from ensemblekit.store.schema import MAIN, Schema, check_constants, check_fields
from ensemblekit.store.segments import (
    Lock,
    NotInPlace,
    Segment,
    checksums,
    digest_of,
    files_of,
    first_of,
    folder_of,
    missing_files,
    new_segment,
    next_capacity,
    remove_leftovers,
    segment_path,
    segments_of,
    set_files,
    share,
    unlock,
)

Durability = Literal["process", "disk"]
LOOKS = 10                  # times a reader looks again where files change under it
LARGEST_LOG = 700.0         # of a weight that is stored
WHOLE_BATCH = 64 << 20      # bytes that the whole-segment fallback gathers before it writes a file


class Stretch(NamedTuple):
    """Consecutive rows of a dataset that lie evenly spaced in its file."""

    start: int
    stop: int
    dataset: Dataset
    """With the place that row 0 would have."""


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
                                                  part.first + first - offset, -(-(last - first) // step),
                                                  step))
                begin = end
            offset += part.n
        return spans

    def column(self, column: str, start: int, stop: int, step: int) -> np.ndarray:
        parts = [span.view() for span in self.spans(column, start, stop, step)]
        if not parts:
            return np.empty(0)
        return np.concatenate(parts) if len(parts) > 1 else np.array(parts[0])


@dataclass(frozen=True, eq=False)
class StoredSource:
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
    def weights(self) -> np.ndarray | None:
        """Statistical weights, float64 (n,); None where every one is 1."""
        if not self.table.parts or " weight" not in self.table.parts[0].columns:
            return None
        weights = self.table.column(" weight", self.start, self.stop, self.step)
        return None if (weights == 1.0).all() else weights

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> StoredSource:
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

    def __getitem__(self, key: Any) -> np.ndarray:
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

    def _numbers_of(self, rows: Any) -> np.ndarray:
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

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"<stored field {self.names[0]!r}: {len(self)} snapshots of {self.field.shape} {self.dtype}{unit}>"


class Stored(NamedTuple):
    """The fields of a clock whose values one dataset holds."""

    names: tuple[str, ...]
    field: Field
    """The only one, or all of them as if they were one."""
    scalars: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None
    """Takes the values of all of them from a snapshot, where they are several and each is a number."""

    @classmethod
    def of(cls, names: tuple[str, ...], fields: Mapping[str, Field]) -> Stored:
        first = fields[names[0]]
        if len(names) == 1:
            return cls(names, first, None)
        together = Field((sum(fields[name].size for name in names),), first.dtype,
                         finite=any(fields[name].finite for name in names))
        return cls(names, together, itemgetter(*names) if not any(fields[name].shape for name in names) else None)


class _Change:
    """One call that changes a store: others wait for it, and a signal handler that interrupts it is refused another."""

    __slots__ = ("guard", "store")

    def __init__(self, store: Store):
        self.store, self.guard = store, store._guard    # the same to the end, also in a child forked in the middle

    def __enter__(self) -> None:
        store = self.store
        if store.mode != "a" or not store._owned:
            store._check_writing("")        # refused, and without a lock that another thread of the parent may hold
        self.guard.acquire()
        if store._changing:
            self.guard.release()
            raise store._within()
        store._changing = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        store = self.store
        store._changing = False
        try:
            if kind is not None and not issubclass(kind, EnsemblekitError):
                store._interrupted()
            if store._close_after:
                store._close()
        finally:
            self.guard.release()


class Store:
    """One run of snapshots in a file, or several files that continue each other. Made by ``ek.create`` and ``ek.open``.

    A snapshot whose ``append`` returned survives the death of the process (with ``durability="disk"`` also the loss
    of power); a half-written one is never visible; readers may follow (``refresh``). See docs/file-format.md.

    Threads may share it: their calls follow one another. A store open for appending belongs to its process: it cannot be
    pickled or copied, and in a forked child it can only be read; there every writing call raises StoreError.
    """

    def __init__(self, path: str, schema: Schema | None, mode: Literal["r", "a"], durability: Durability = "process",
                 capacity: int | Mapping[str, int] | None = None):
        # the real path: links, and a later change of folder, lead to the same lock, segments and folder
        self.path, self.mode, self.durability, self.capacity = os.path.realpath(path), mode, durability, capacity
        self._guard = threading.RLock()     # one call at a time changes the store, or counts its snapshots meanwhile
        self._owner = os.getpid()
        self._owned = True                  # until a fork: in the child False
        self._changing = False              # a signal handler may run in the middle of an append, in the same thread
        self._close_after = False
        self._stale = False                 # look at the files again before the next change
        self._schema = schema
        self._layouts: list[Layout] = []
        self._foreign: dict[str, Foreign] = {}
        self._segment: Segment | None = None
        self._lock: Lock | None = None
        self._shares: list[int] = []        # shared locks on the files that are full
        self._last: dict[str, tuple[int, float]] = {}
        self._pending: dict[str, list[list[np.ndarray]]] = {}
        self._whole = False
        self._incomplete = False            # files may be missing: what is there is read
        self._closed = False
        self._tables: dict[str, Table] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._clocks: dict[str, list[str]] = {}
        self._arrays = {} if schema is None else {
            clock: [Stored.of(names, schema.fields) for names in some]
            for clock, some in schema.at(0, {}, {}).stored.items()}     # as new files hold them

    # -- opening and closing ---------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | os.PathLike[str], fields: Mapping[str, Field], *,
               capacity: int | Mapping[str, int] | None = None, run: str | None = None, replica: str | None = None,
               provenance: Mapping[str, Any] | None = None, time_unit: str = "", durability: Durability = "process",
               author: str = "unknown", in_place: bool = True, constants: Mapping[str, Any] | None = None) -> Store:
        """See :func:`ensemblekit.create`; ``in_place=False`` writes every file whole, as is done by itself where rows
        cannot be committed in place: then a snapshot is safe when ``flush`` or ``extend`` returned."""
        path = os.fspath(path)
        fields = check_fields(fields)
        _check_options(durability, capacity)
        if not isinstance(time_unit, str) or not isinstance(author, str):
            raise InputError(f"time_unit and author are text; got {time_unit!r}, {author!r}")
        md = any(f.kind == "position" for f in fields.values())
        if md and not path.endswith(".h5md"):
            raise InputError(f"a store of particle positions ends in .h5md, as MDAnalysis goes by the suffix; got {path!r}. "
                             f"Call it {Path(path).with_suffix('.h5md').name!r}")
        for taken in (path, segment_path(path, 1)):
            if os.path.lexists(taken):
                raise StoreError(f"{taken} is there already; ek.open(path, \"a\") appends to a store, or delete it first")
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise StoreError(f"the folder of {path!r} does not exist; make it first")
        try:
            import json

            made = json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(f"provenance is data that JSON can hold (text, numbers, lists, mappings): {error}") from error
        made.setdefault("created", clock_time.strftime("%Y-%m-%dT%H:%M:%SZ", clock_time.gmtime()))
        fixed = check_constants(constants or {})
        schema = Schema(fields, run or uuid.uuid4().hex, None if replica is None else str(replica),
                        time_unit or ("ps" if md else ""), made, author,
                        constants={name: digest_of(values) for name, values in fixed.items()} or None)
        store = cls(path, schema, "a", durability, capacity)
        store._lock = Lock(store.path)
        _writers.add(store)
        try:
            remove_leftovers(store.path)
            store._whole = not in_place
            store._start_segment({}, fixed)
            store._lock.hold()
        except BaseException:
            store._lock.release()
            raise
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str], mode: Literal["r", "a"] = "r", *, durability: Durability = "process",
             capacity: int | Mapping[str, int] | None = None, incomplete: bool = False, external: bool = False) -> Store:
        """See :func:`ensemblekit.open`."""
        path = os.path.realpath(path)       # its other files stand beside the file itself, not beside a link to it
        if mode not in ("r", "a"):
            raise InputError(f'mode is "r" (read) or "a" (append); got {mode!r}. A new store: ek.create')
        _check_options(durability, capacity)
        first = read_file(path, external)
        if isinstance(first, dict):
            if mode == "a":
                raise StoreError(f"{path} was not written by ensemblekit: it opens for reading only. "
                                 "Append to a store made by ek.create")
            store = cls(path, None, mode)
            store._foreign = first
            if not store._foreign:
                raise StoreError(f"{path} holds no numeric dataset with snapshots along its first axis")
            store._tables = _foreign_tables(path, store._foreign)
            return store
        if first.schema.segment:
            raise StoreError(f"{path} is part {first.schema.segment + 1} of a store, not the whole: open its first file"
                             f"{first_of(path)}")
        if incomplete and mode == "a":
            raise InputError("a store that lacks files opens for reading only")
        store = cls(path, first.schema, mode, durability, capacity)
        store._incomplete = incomplete
        if mode == "a":
            store._lock = Lock(path)
            _writers.add(store)
        else:
            store._layouts = [first]        # as it was just read; looked at again where the file has changed since
        try:
            store.refresh()
            if mode == "a":
                store._open_to_append()
        except BaseException:
            store.close()
            raise
        return store

    def _open_to_append(self) -> None:
        remove_leftovers(self.path)
        last = self._layouts[-1]
        if last.schema.sealed:
            for extra in segments_of(self.path)[1:]:        # a seal that was killed before it had removed them
                os.unlink(extra)
            raise StoreError(f"{self.path} is sealed, that is complete: it opens for reading only. To go on, create a "
                             "new store with the same run id and open both: ek.open([old, new])")
        self._whole = not last.schema.in_place
        self._shares = [share(layout.path) for layout in self._layouts[:-1]]
        if not self._whole:
            self._segment = Segment(last, self.durability == "disk")
            self._segment.settle()
        else:
            self._shares.append(share(last.path))

    def close(self) -> None:
        """Write what is pending and let go of the files. Closing twice does nothing.

        In a forked child nothing is written or released: that is left to the process that opened the store. Within an
        append (in a signal handler) it takes place as soon as that append is over.
        """
        if not self._owned:
            self._disown()
            self._closed = True
            return
        with self._guard:
            if self._changing:
                self._close_after = True
                return
            self._close()

    def _close(self) -> None:
        if self._closed:
            return
        try:
            if any(self._pending.values()):
                self._flush()
            elif self._schema is not None and self.mode == "a":
                self._check_files()
        finally:
            self._end()

    def _end(self) -> None:
        """Let go of all files."""
        self._let_go()
        self._closed = True
        if self._lock is not None:
            self._lock.release()

    def _check_files(self) -> None:
        """Raise StoreError where a file that is being written was removed, renamed or replaced."""
        for layout in self._layouts:
            if not os.path.exists(layout.path) or not layout.identity.is_of(layout.path):
                what = "was replaced by another file" if os.path.exists(layout.path) else "was removed or renamed"
                raise StoreError(f"{layout.path} {what} while this store was being written: the snapshots in it are no longer "
                                 "there under this name. Put it back, or write them again to a new store")

    def _let_go(self) -> None:
        try:
            if self._segment is not None:
                self._segment.close()
        finally:
            self._segment = None
            if self.writable and len(self._layouts) > 1:
                with suppress(OSError):     # the next to last file says so in any case
                    set_files(self._layouts[0], len(self._layouts), self.durability == "disk")
            for fd in self._shares:
                unlock(fd)
                os.close(fd)
            self._shares.clear()

    def _disown(self) -> None:
        """In a forked child: what is left is a reader of the store, without any of the descriptors of its parent."""
        self._owned = False
        self._guard = threading.RLock()     # another thread of the parent may have held it
        self._changing = False
        if self._segment is not None:
            self._segment.disown()
            self._segment = None
        for fd in self._shares:
            os.close(fd)
        self._shares.clear()
        if self._lock is not None:
            self._lock.disown()
            self._lock = None
        self._pending.clear()
        self._stale = True

    def __getstate__(self) -> dict[str, Any]:
        if self.writable:
            raise StoreError(f"{self.path} is open for appending, and a writer stays in the process and the object that "
                             f"opened it: it is neither pickled nor copied. Send the path and read there with "
                             f"ek.open({self.path!r}), send snapshots back to append them here, or close it first")
        if self._stale:
            self.refresh()
        state = self.__dict__.copy()
        del state["_guard"]
        return state | {"mode": "r", "_lock": None, "_stale": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _guard=threading.RLock())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is there ---------------------------------------------------------------------------------------------

    @property
    def fields(self) -> Mapping[str, Field]:
        """Fields of the first clock: what the store is a source of. ``store.clock(name)`` gives those of another."""
        fields = self.all_fields
        return {name: fields[name] for name in next(iter(self.clocks.values()), [])}

    @property
    def all_fields(self) -> Mapping[str, Field]:
        """Fields of every clock: what ``store[name]`` gives."""
        return self._schema.fields if self._schema else {name: f.field for name, f in self._foreign.items()}

    @property
    def clocks(self) -> dict[str, list[str]]:
        """Clock -> its fields."""
        if not self._clocks and self._schema is not None:
            self._clocks = self._schema.clocks
        elif not self._clocks:
            for name, field in self.all_fields.items():
                self._clocks.setdefault(field.clock, []).append(name)
        return self._clocks

    @property
    def run(self) -> str:
        return self._schema.run if self._schema else ""

    @property
    def replica(self) -> str | None:
        return self._schema.replica if self._schema else None

    @property
    def provenance(self) -> Mapping[str, Any]:
        return dict(self._schema.provenance or {}) if self._schema else {}

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The arrays of the run that do not change with time, as given to ``ek.create``: name -> array, read-only."""
        return constants_of(self._layouts[0]) if self._layouts else {}

    @property
    def folder(self) -> Path:
        """The folder beside the store for what is overwritten or derived; made when first asked for."""
        folder = folder_of(self.path)
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def segments(self) -> list[str]:
        """The files of this store, in order."""
        return [layout.path for layout in self._layouts] or [self.path]

    @property
    def sealed(self) -> bool:
        return any(layout.schema.sealed for layout in self._layouts)

    @property
    def writable(self) -> bool:
        return self.mode == "a" and not self._closed and self._owned

    def __len__(self) -> int:
        """Committed snapshots of the main clock (of the first clock where there is no main).

        Raises LengthError where another program's file says it has more than its bytes can hold.
        """
        (n,) = self.lengths
        if self._schema is None and n > most_bytes(self.path):
            raise LengthError(f"{self.path} says it has {n} snapshots, more than its bytes can hold: len() does not stand for "
                              "them. store.lengths has the number")
        return n

    def __bool__(self) -> bool:
        return self.lengths != (0,)

    def clock(self, name: str = MAIN) -> StoredSource:
        """All fields of one clock as a source."""
        if name not in self.clocks:
            raise UnknownFieldError(name, self.clocks)
        table = self._table(name)
        return StoredSource(table, tuple(table.fields), 0, table.n, 1, self.run)

    def __getitem__(self, name: str) -> StoredField:
        """The one-field view. Raises UnknownFieldError, which lists the fields there are."""
        if name not in self.all_fields:
            raise UnknownFieldError(name, self.all_fields)
        table = self._table(self.all_fields[name].clock)
        return StoredField(table, (name,), 0, table.n, 1, self.run)

    def __contains__(self, name: object) -> bool:
        return name in self.all_fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.all_fields)

    # -- as a source: the fields of the first clock ----------------------------------------------------------------

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self._table(next(iter(self.clocks))).n,)

    @property
    def access(self) -> Access:
        return "tiles"

    @property
    def time_unit(self) -> str:
        return self._table(next(iter(self.clocks))).time_unit

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> StoredSource:
        return self.clock(next(iter(self.clocks))).window(start, stop, step)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        return self.clock(next(iter(self.clocks))).pieces(names, cut, tiled, limit)

    @property
    def times(self) -> np.ndarray | None:
        return self.clock(next(iter(self.clocks))).times

    @property
    def steps(self) -> np.ndarray:
        return self.clock(next(iter(self.clocks))).steps

    @property
    def weights(self) -> np.ndarray | None:
        return self.clock(next(iter(self.clocks))).weights

    def _table(self, clock: str) -> Table:
        if self._closed and self._schema is not None and not self._layouts:
            raise ClosedError(f"{self.path} is closed")
        if self.mode != "a":
            return self._tables[clock]
        with self._guard:
            if self._stale and not self._owned:
                self._stale = False
                self.refresh()
            # the writer itself always sees what it committed; but not a signal handler between two files of it
            if self._segment is not None and self._segment.layout.path == self._layouts[-1].path:
                now = (len(self._layouts), self._segment.counts[clock])
                if self._seen.get(clock) != now:
                    self._tables[clock] = self._make_table(clock, [self._rows(layout)[clock] for layout in self._layouts])
                    self._seen[clock] = now
            return self._tables[clock]

    def _rows(self, layout: Layout) -> dict[str, Rows]:
        """What is committed in a file, and where: by the extent of each clock's first field, and its table of places."""
        segment = self._segment
        if segment is not None and segment.layout is layout:
            return {c: Rows(n, segment.space.clocks[c].runs) for c, n in segment.counts.items()}
        with open(layout.path, "rb") as raw:
            check_identity(layout.path, layout.identity, raw.fileno())
            rows = {clock: rows_in(raw.fileno(), layout, clock) for clock in layout.schema.clocks}
        for clock, (n, _) in rows.items():
            room = (layout.schema.capacity or {})[clock]
            if n > room:
                raise StoreDamagedError(f"{layout.path}: {n} snapshots of clock {clock!r}, where there is room for {room}: the "
                                        "extents are damaged. `ensemblekit verify` says more")
        return rows

    def _make_table(self, clock: str, rows: Sequence[Rows]) -> Table:
        assert self._schema is not None
        parts = []
        for layout, (n, runs) in zip(self._layouts, rows, strict=True):
            if n:
                parts.append(Part(layout.path, layout.identity, n, _stretches(layout, clock, n, runs)))
        fields = {name: self._schema.fields[name] for name in self._schema.clocks[clock]}
        return Table(fields, tuple(parts), self._schema.time_unit, home=self._layouts[0] if self._layouts else None)

    def refresh(self) -> int:
        """Look again at a store that another process writes; returns the snapshots of the first clock there are now."""
        if self._schema is None:
            return self.lengths[0]
        with self._guard:
            return self.lengths[0] if self._changing else self._refresh()     # in a signal handler: as is

    def _refresh(self) -> int:
        for again in range(LOOKS, -1, -1):
            try:
                layouts = self._look()
                rows = [self._rows(layout) for layout in layouts]
                break
            except (FileNotFoundError, StoreError):     # a file was replaced or removed while we looked
                if not again:
                    raise
                clock_time.sleep(0.01)
        self._layouts = layouts
        self._seen.clear()
        self._tables = {c: self._make_table(c, [one[c] for one in rows]) for c in self.clocks}
        return self._tables[next(iter(self.clocks))].n

    def _look(self) -> list[Layout]:
        """The layouts of the files there are now, those that have not changed as they are known."""
        assert self._schema is not None
        known = {layout.path: layout for layout in self._layouts}
        layouts: list[Layout] = []
        listed = segments_of(self.path)
        for k, path in enumerate(listed):
            layout = known.get(path)
            if layout is None or not layout.identity.is_of(path):
                layout = read_layout(path)
            if layout is None or layout.schema.run != self._schema.run or layout.schema.segment != k:
                if k == 0:
                    raise StoreError(f"{path} was replaced by another file")
                break       # a leftover of another run: it does not continue this one
            layouts.append(layout)
            if layout.schema.sealed:
                break       # complete: further files are leftovers of a seal that was killed
        if not layouts[-1].schema.sealed and not self._incomplete:
            missing = missing_files(self.path, len(layouts), max(map(files_of, layouts)))
            begun = len(listed) == len(layouts) and os.path.lexists(segment_path(self.path, len(layouts)))
            if missing and not begun:       # else a writer has added it since they were listed
                raise StoreError(f"{missing}. Put it back from where the store was copied or moved; "
                                 "ek.open(path, incomplete=True) reads the snapshots that are there")
        return layouts

    def __repr__(self) -> str:
        state = "closed" if self._closed else "writing" if self.writable else "sealed" if self.sealed else "reading"
        names = ", ".join(f"{name} {field.shape}" for name, field in self.all_fields.items())
        return f"<Store {os.path.basename(self.path)!r} ({state}): {self.lengths[0]} snapshots of {names}>"

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, snapshot: Mapping[str, Any], time: float | None = None, step: int | None = None,
               weight: float = 1.0, clock: str = MAIN, log_weight: float | None = None) -> None:
        """Commit one snapshot: a value for every field of the clock.

        Arguments:
            snapshot: field name -> array of the field's shape.
            time: in ``time_unit``; not before the last. By default the step number.
            step: above the last step. By default the last step + 1.
            weight: statistical weight, 0 or more.
            log_weight: its natural logarithm instead, -inf for 0; beyond float64 (±700) it is refused, as what counts is by
                how much the logarithms of a run differ.

        Raises:
            InputError, UnknownFieldError: what does not fit, and how to mend it; the file stays as it was.
            StoreError: the disk is full or cannot be written; nothing was committed.
            ClosedError: the store is closed or open for reading.
        """
        with self._guard:                   # as _Change, at a third of its time
            if self._changing:
                raise self._within()
            self._changing = True
            try:
                if log_weight is not None:
                    if weight != 1.0:
                        raise InputError("pass either weight= or log_weight=, not both")
                    (weight,) = _from_logs([log_weight], 1)
                self._append(snapshot, time, step, weight, clock)
            except EnsemblekitError:
                raise
            except BaseException:
                self._interrupted()
                raise
            finally:
                self._changing = False
                if self._close_after:
                    self._close()

    def _within(self) -> StoreBusyError:
        return StoreBusyError(f"{self.path} is in the middle of an append or another change, which a signal handler has "
                              "interrupted: set a flag in the handler, and write when that is over (close may be called: "
                              "it waits for it)")

    def _interrupted(self) -> None:
        """An interrupt may have come after the commit, or between two files: look again before the next change."""
        self._last.clear()
        self._stale = True

    def _append(self, snapshot: Mapping[str, Any], time: float | None, step: int | None, weight: float,
                clock: str) -> None:
        names = self._check_writing(clock)
        arrays = [self._checked(some.names[0], snapshot, None) if len(some.names) == 1 else self._values(some, snapshot, None)
                  for some in self._arrays[clock]]
        if len(snapshot) != len(names):
            self._refuse_names(snapshot, names, clock)
        last_step, last_time = self._last_of(clock)
        step = last_step + 1 if step is None else self._check_step(step, last_step)
        at = float(step) if time is None else _number(time, "time")
        if not (at >= last_time) or at == float("inf"):
            raise InputError(f"time {at:g} comes after time {last_time:g}: time runs forward and is finite. To cut the "
                             "store back to a checkpoint: store.truncate(n)")
        weight = _number(weight, "weight")
        if not 0.0 <= weight < float("inf"):
            raise InputError(f"a weight is finite and not negative; got {weight!r}")
        meta = np.array([(step, at, weight)], dtype=META)
        self._commit(clock, arrays, meta, 1, at_once=False)
        self._last[clock] = (step, at)

    def extend(self, snapshots: Mapping[str, Any], times: Any = None, steps: Any = None, weights: Any = None,
               clock: str = MAIN, log_weights: Any = None) -> None:
        """Commit many snapshots at once: arrays (n, *field shape); one commit a file. Else as :meth:`append`."""
        if log_weights is not None:
            if weights is not None:
                raise InputError("pass either weights= or log_weights=, not both")
            weights = _from_logs(log_weights, None)
        with _Change(self):
            self._extend(snapshots, times, steps, weights, clock)

    def _extend(self, snapshots: Mapping[str, Any], times: Any, steps: Any, weights: Any, clock: str) -> None:
        names = self._check_writing(clock)
        if not isinstance(snapshots, Mapping):
            raise InputError(f"snapshots are a mapping of field to array, with {names}; got {type(snapshots).__name__}")
        snapshots = {name: values if type(values) is np.ndarray else as_array(values, f"field {name!r}", kinds=None)
                     for name, values in snapshots.items()}
        lengths = {name: len(snapshots[name]) for name in names if name in snapshots and np.ndim(snapshots[name])}
        n = next(iter(lengths.values()), 0)
        if len(set(lengths.values())) > 1:
            raise InputError(f"the fields differ in their number of snapshots: {lengths}")
        arrays = [self._values(some, snapshots, n) for some in self._arrays[clock]]
        if len(snapshots) != len(names):
            self._refuse_names(snapshots, names, clock)
        if n == 0:
            return
        last_step, last_time = self._last_of(clock)
        meta = np.empty(n, META)
        if steps is None:
            meta["step"] = np.arange(last_step + 1, last_step + 1 + n)
        else:
            given = as_array(steps, "steps")
            if given.shape != (n,) or given.dtype.kind not in "iu":
                raise InputError(f"steps are {n} whole numbers; got shape {given.shape}, dtype {given.dtype}")
            if (np.diff(given.astype(np.int64), prepend=np.int64(last_step)) <= 0).any():
                raise InputError(f"steps must rise, from above {last_step}, the last step of the store")
            meta["step"] = given
        meta["time"] = meta["step"] if times is None else _numbers(times, n, "times")
        if (np.diff(meta["time"], prepend=last_time) < 0).any() or not np.isfinite(meta["time"]).all():
            since = f" after {last_time:g}, the last time of the store" if np.isfinite(last_time) else ""
            raise InputError(f"times must be finite and must not run backwards{since}{_backwards(meta['time'])}. Sort the "
                             "snapshots, or write independent runs into stores of their own")
        meta["weight"] = 1.0 if weights is None else _numbers(weights, n, "weights")
        if not (np.isfinite(meta["weight"]) & (meta["weight"] >= 0)).all():
            raise InputError("weights are finite and not negative")
        self._commit(clock, arrays, meta, n, at_once=True)
        self._last[clock] = (int(meta["step"][-1]), float(meta["time"][-1]))

    def _check_writing(self, clock: str) -> list[str]:
        if self._closed:
            raise ClosedError(f"{self.path} is closed; open it again with ek.open(path, \"a\")")
        if self.mode != "a" or self._schema is None:
            raise ClosedError(f"{self.path} is open for reading; open it with ek.open(path, \"a\") to append")
        if not self._owned:
            raise StoreError(f"{self.path} was opened for appending by process {self._owner}, and a writer stays in its "
                             f"process; this one is {os.getpid()}. Send snapshots there, or open the store here once it is "
                             "closed there")
        if self._stale:
            self._resume()
        names = self.clocks.get(clock)
        if names is None:
            raise InputError(f"no clock {clock!r}; the clocks are {list(self.clocks)}")
        return names

    def _checked(self, name: str, snapshot: Mapping[str, Any], n: int | None) -> np.ndarray:
        """The values of a field as they are stored, or an error that says what does not fit."""
        field = self.all_fields[name]
        try:
            value = snapshot[name]
        except (KeyError, TypeError, IndexError):
            raise InputError(f"the snapshot lacks the field {name!r}; it needs {self.clocks[field.clock]}") from None
        want = field.shape if n is None else (n, *field.shape)
        array = value if type(value) is np.ndarray else as_array(
            value, f"field {name!r}", kinds=None, named_axes=n is None)
        if array.shape != want:
            raise InputError(f"field {name!r} came with shape {array.shape}; this store holds {want}"
                             f"{'' if n is None else ' (snapshots first)'}. Reshape it, or create a store for the new shape")
        return self._as_stored(name, field, array)

    @staticmethod
    def _as_stored(name: str, field: Field, array: np.ndarray) -> np.ndarray:
        """An array of the field's shape in the type of number that is stored."""
        if array.dtype != field.dtype:
            if array.dtype.kind not in "biufc" or not np.can_cast(array.dtype, field.dtype, "same_kind"):
                raise InputError(f"field {name!r} came as {array.dtype}; this store holds {field.dtype}, and the cast "
                                 f"loses more than precision. Convert it: values.astype({field.dtype.str!r})")
            with np.errstate(over="ignore"):
                cast = array.astype(field.dtype)
            if field.dtype.kind in "iu":
                if not np.array_equal(cast, array):
                    raise InputError(f"field {name!r} holds numbers that do not fit {field.dtype}")
            elif field.dtype.itemsize < array.dtype.itemsize and not np.array_equal(np.isfinite(cast), np.isfinite(array)):
                raise InputError(f"field {name!r} holds numbers too large for {field.dtype}")
            array = cast
        if field.finite and not np.isfinite(array).all():
            raise InputError(f"field {name!r} holds NaN or infinity, which it was created to refuse (finite=True)")
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        return np.ascontiguousarray(array)

    def _values(self, stored: Stored, snapshot: Mapping[str, Any], n: int | None) -> np.ndarray:
        """The values of the fields of one dataset as they are stored: one field's, or (n, numbers) of several."""
        if len(stored.names) == 1:
            return self._checked(stored.names[0], snapshot, n)
        if n is None and stored.scalars is not None:
            with suppress(LookupError, TypeError, InputError):      # one by one, that the field is named
                values = stored.scalars(snapshot)
                kind = type(values[0])
                if (kind in (float, int, bool) or issubclass(kind, np.number | np.bool_)) and set(map(type, values)) == {kind}:
                    return self._as_stored("", stored.field, np.array(values)).reshape(1, -1)
        rows = 1 if n is None else n
        return np.concatenate([self._checked(name, snapshot, n).reshape(rows, -1) for name in stored.names], axis=1)

    def _refuse_names(self, snapshot: Mapping[str, Any], names: Sequence[str], clock: str) -> None:
        extra = [name for name in snapshot if name not in names]
        if any(name in self.all_fields for name in extra):
            raise InputError(f"{extra} run on another clock than {clock!r}; append them with clock="
                             f"{self.all_fields[next(n for n in extra if n in self.all_fields)].clock!r}")
        raise UnknownFieldError(extra[0], names)

    @staticmethod
    def _check_step(step: int, last: int) -> int:
        if not isinstance(step, int | np.integer) or not last < step < 1 << 63:
            raise InputError(f"a step is a whole number of 64 bits above the last one, {last}; got {step!r}")
        return int(step)

    def _last_of(self, clock: str) -> tuple[int, float]:
        if clock not in self._last and self._pending.get(clock):
            *_, steps, times, _weights, _sums = self._pending[clock][-1]
            self._last[clock] = int(steps[-1]), float(times[-1])
        if clock not in self._last:
            source = self.clock(clock)
            tail = source.window(max(0, len(source) - 1))
            self._last[clock] = (int(tail.steps[0]), float(tail.times[0])) if len(tail) else (  # type: ignore[index]
                -1, -float("inf"))
        return self._last[clock]

    def _commit(self, clock: str, arrays: list[np.ndarray], meta: np.ndarray, n: int, at_once: bool) -> None:
        sums = checksums(arrays, meta, n)
        rows = [*arrays, np.ascontiguousarray(meta["step"]), np.ascontiguousarray(meta["time"]),
                np.ascontiguousarray(meta["weight"]), sums]
        if self._whole:
            self._hold(clock, rows, n, at_once)
            return
        try:
            self._commit_rows(clock, rows, n)
        except BaseException:
            self._last.pop(clock, None)     # part of the batch may be committed: look again
            raise

    def _resume(self) -> None:
        """After an interrupt, which may have come between a new file and what this object knows of it."""
        self._let_go()
        self._refresh()
        self._last.clear()
        self._open_to_append()
        self._stale = False

    def _hold(self, clock: str, rows: list[np.ndarray], n: int, at_once: bool) -> None:
        """Keep rows for the next file of a store that writes whole files; write it where it is time to."""
        held = self._pending.setdefault(clock, [])
        columns = self._schema.at(0, {}, {}).columns(clock, n)      # type: ignore[union-attr]
        held.append([np.array(r).reshape(n, *column.shape) for r, column in zip(rows, columns, strict=True)])
        if at_once or sum(r.nbytes for batch in held for r in batch) > WHOLE_BATCH:
            try:
                self._flush()
            except BaseException:
                held.pop()      # refused as a whole, so that it can be given again
                raise

    def _commit_rows(self, clock: str, rows: list[np.ndarray], n: int) -> None:
        done = 0
        while done < n:
            assert self._segment is not None
            room = self._segment.room(clock)
            if room == 0:
                self._check_files()
                self._start_segment({clock: n - done})
                continue
            k = min(room, n - done)
            part = rows if k == n else [r[done:done + k] for r in rows]
            schema = self._segment.layout.schema
            if schema.format == 1:
                part = self._as_in_first_format(schema, clock, part, k)
            self._segment.write(clock, part, k)
            done += k

    def _as_in_first_format(self, schema: Schema, clock: str, rows: list[np.ndarray], n: int) -> list[np.ndarray]:
        """Rows of columns as new files have them as those of a file in which every field has a dataset."""
        if len(rows) == len(schema.clocks[clock]) + 4:
            return rows
        *values, steps, times, weights, _ = rows
        alone: dict[str, np.ndarray] = {}
        for (names, *_), value in zip(self._arrays[clock], values, strict=True):
            ends = np.cumsum([self.all_fields[name].size for name in names])
            alone |= zip(names, np.split(value, ends[:-1], axis=1) if len(names) > 1 else [value], strict=True)
        arrays = [np.ascontiguousarray(alone[name]).reshape(n, *self.all_fields[name].shape) for name in schema.clocks[clock]]
        return _with_checksums(arrays, steps, times, weights)

    def _start_segment(self, wanted: Mapping[str, int], constants: Mapping[str, np.ndarray] | None = None) -> None:
        """The next file: with room for rows, or the first, empty one of a store that writes whole files."""
        assert self._schema is not None
        index = len(self._layouts)
        starts = {clock: self._table(clock).n if self._layouts else 0 for clock in self.clocks}
        durable = self.durability == "disk"
        path = segment_path(self.path, index)
        if not self._whole:
            capacity = next_capacity(self._schema, wanted, self.capacity, index)
            try:
                layout = new_segment(path, self._schema.at(index, starts, capacity), durable, constants=constants)
            except NotInPlace:
                if index:
                    raise
                self._whole = True
        if self._whole:
            none = dict.fromkeys(self.clocks, 0)
            self._schema = replace(self._schema, in_place=False)
            new_segment(path, self._schema.at(0, none, none), durable, lambda clock: (), constants=constants)
            self._shares.append(share(path))
            self._refresh()
            return
        before = self._segment
        self._segment = Segment(layout, durable)
        if before is not None:
            self._shares.append(share(before.layout.path))
            before.files = index + 1        # it says so only now that the next one is there
            before.close()
        self._layouts.append(layout)

    def flush(self) -> None:
        """Commit what a store that writes whole files still holds; elsewhere every append is committed already.

        Raises StoreError where a file of the store was removed, renamed or replaced meanwhile.
        """
        with _Change(self):
            self._flush()

    def _flush(self) -> None:
        self._check_writing(next(iter(self.clocks)))
        self._check_files()
        if not any(self._pending.values()):
            return
        assert self._schema is not None
        starts = {clock: self._table(clock).n for clock in self.clocks}
        first = len(self._layouts) == 1 and not any(starts.values())    # the empty file of the beginning is replaced:
        index = 0 if first else len(self._layouts)                      # other programs open no file without frames
        held = {clock: [np.concatenate(part) for part in zip(*self._pending[clock], strict=True)]
                for clock in self.clocks if self._pending.get(clock)}
        capacity = {clock: len(held[clock][0]) if clock in held else 0 for clock in self.clocks}
        schema = self._schema.at(index, starts, capacity)

        def fill(clock: str) -> list[tuple[int, dict[str, np.ndarray]]]:
            paths = [column.path for column in schema.columns(clock, capacity[clock])]
            return [(0, dict(zip(paths, held[clock], strict=True)))] if clock in held else []

        path = segment_path(self.path, index)
        new_segment(path, schema, self.durability == "disk", fill, over=first, constants=self.constants if first else None)
        if first:
            os.close(self._shares.pop())
        elif self._layouts:
            set_files(self._layouts[-1], index + 1, self.durability == "disk")
        self._shares.append(share(path))
        if first and self._lock is not None:
            self._lock.hold()
        self._pending.clear()
        self._refresh()

    def truncate(self, n: int | Mapping[str, int], clock: str = MAIN) -> None:
        """Cut back to the first n snapshots of a clock: the checkpoint a restarted run continues from.

        Arguments:
            n: snapshots to keep; or clock -> snapshots to keep, for several clocks at once.
            clock: the one that is cut, where n is a number. Other clocks keep all they have.
        """
        with _Change(self):
            try:
                self._truncate(n, clock)
            except StoreError:
                self._stale = True      # some files may be cut
                raise

    def _truncate(self, n: int | Mapping[str, int], clock: str) -> None:
        wanted = n if isinstance(n, Mapping) else {clock: n}
        for name, keep in wanted.items():
            self._check_writing(name)
            total = self._table(name).n + sum(len(batch[-1]) for batch in self._pending.get(name, []))
            if not isinstance(keep, int | np.integer) or isinstance(keep, bool) or not 0 <= keep <= total:
                raise InputError(f"truncate(n) keeps between 0 and {total} snapshots; got {keep!r}")
        self._flush()
        for name in wanted:
            self._last.pop(name, None)
        counts = [{c: one.n for c, one in self._rows(layout).items()} for layout in self._layouts]
        starts = dict.fromkeys(self.clocks, 0)
        left = []
        for have in counts:
            left.append({c: max(0, min(have[c], int(wanted[c]) - starts[c])) if c in wanted else have[c] for c in have})
            starts = {c: starts[c] + have[c] for c in starts}
        for k in reversed(range(len(counts))):      # the newest first, so that what is there is always a beginning
            # a file in the middle stays, empty, where a later one holds snapshots of another clock
            if k and k == len(self._layouts) - 1 and not any(left[k].values()):
                self._drop_last()
            elif left[k] != counts[k]:
                self._cut(k, left[k])
        self._refresh()

    def _drop_last(self) -> None:
        """Remove the newest file, which is to hold nothing any more, and write on in the one before it."""
        durable = self.durability == "disk"
        path = self._layouts.pop().path
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        for layout in {id(one): one for one in (self._layouts[0], self._layouts[-1])}.values():
            set_files(layout, len(self._layouts), durable)      # before it goes: none is missed that was not lost
        os.close(self._shares.pop())
        os.unlink(path)
        if durable:
            sync_folder(path)       # before rows are written that the file would follow again after a loss of power
        self._seen.clear()
        if not self._whole:
            self._segment = Segment(self._layouts[-1], durable)

    def _cut(self, k: int, left: Mapping[str, int]) -> None:
        """Keep only the first rows of file k."""
        layout, durable = self._layouts[k], self.durability == "disk"
        if self._whole:
            self._rewrite(k, left)
            return
        newest = self._segment is not None and k == len(self._layouts) - 1
        segment = self._segment if newest and self._segment is not None else Segment(layout, durable)
        for clock, n in left.items():
            if segment.counts[clock] != n:
                segment.cut(clock, n)
        if not newest:
            segment.close()
        self._seen.clear()

    def _rewrite(self, k: int, left: Mapping[str, int]) -> None:
        """File k of a store that writes whole files, written again with fewer rows."""
        layout = self._layouts[k]
        assert layout.schema.capacity is not None

        have = self._rows(layout)
        schema = layout.schema.at(k, layout.schema.starts or {}, left)

        def fill(clock: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
            columns = dict(zip((c.path for c in layout.schema.columns(clock, 1)),
                               _column_stretches(layout, clock, *have[clock]), strict=True))
            table = Table({}, (Part(layout.path, layout.identity, have[clock].n, columns),), "")
            step = max(1, WHOLE_BATCH // sum(some[0].dataset.stride for some in columns.values()))
            for a in range(0, left[clock], step):
                b = min(left[clock], a + step)
                rows = [table.column(path, a, b, 1) for path in columns]
                if layout.schema.stored[clock] != schema.stored[clock]:     # of the first format
                    *values, steps, times, weights, _ = rows
                    rows = _with_checksums(schema.packed(clock, values, b - a), steps, times, weights)
                yield a, dict(zip((c.path for c in schema.columns(clock, 1)), rows, strict=True))

        self._layouts[k] = new_segment(layout.path, schema, self.durability == "disk", fill, over=True,
                                       constants=self.constants if k == 0 else None)
        set_files(self._layouts[k], len(self._layouts), self.durability == "disk")
        os.close(self._shares[k])
        self._shares[k] = share(layout.path)
        if k == 0 and self._lock is not None:
            self._lock.hold()
        self._seen.clear()

    def seal(self, path: str | os.PathLike[str] | None = None, compression: Any = None) -> Store:
        """Write one compact file, with what was allocated ahead left out; returns it open for reading.

        Arguments:
            path: of the new file; by default it takes the place of this store and its segments.
            compression: None, "lossless" (byte shuffle and zstd), or ("round", k): floats are rounded, then as
                lossless. A whole number k of 1 to 52 keeps that many bits of the significand (relative error
                2**-(k + 1)); a fraction such as 1e-4 is the largest relative error allowed.
        """
        from ensemblekit.store.sealing import seal

        if self.mode != "a" or not self._owned:
            return seal(self, path, compression)
        with _Change(self):
            return seal(self, path, compression)

    def publish(self, path: str | os.PathLike[str] | None = None) -> str:
        """Write a small file beside the store through which ParaView and pyvista see the snapshots of this moment.

        It holds no values of its own but points to the store's files, so it has to stay beside them. Publish again to
        show more. A sealed store needs none: it opens there itself.

        Arguments:
            path: of the new file, ending in .vtkhdf; by default ``<store>.view.vtkhdf``.

        Returns the path. Raises InputError where the store has no mesh (constants "mesh/..."), or the name has
        another suffix.
        """
        from ensemblekit.store.vtkhdf import publish

        return publish(self, path)

    def verify(self, timeout: float = 60.0) -> Any:
        """Compare every byte that matters with its checksum, with libhdf5 in a child process; see ``Report``."""
        from ensemblekit.store.verify import verify

        return verify(self.path, timeout=timeout)


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


def _stretches(layout: Layout, clock: str, n: int, runs: Sequence[Sequence[Run]] | None) -> dict[str, tuple[Stretch, ...]]:
    """Field, or " step", " time", " weight", " checksums" -> its n committed rows in a file."""
    schema = layout.schema
    columns = schema.columns(clock, (schema.capacity or {})[clock])
    rows = _column_stretches(layout, clock, n, runs)
    found = dict(zip((" step", " time", " weight", " checksums"), rows[-4:], strict=True))
    for column, some in zip(columns[:-4], rows, strict=False):
        if len(column.fields) == 1:
            found[column.fields[0]] = some
            continue
        for name, start, stop in schema.parts(column):
            found[name] = tuple(Stretch(a, b, _part_of(d, schema.fields[name].shape, start, stop)) for a, b, d in some)
    return found


def _part_of(d: Dataset, shape: tuple[int, ...], start: int, stop: int) -> Dataset:
    """The numbers from start to stop of a dataset's rows, as a dataset of its own."""
    offset = None if d.offset is None else d.offset + start * d.dtype.itemsize
    return replace(d, shape=(d.shape[0], *shape), offset=offset, within=slice(start, stop))


def _column_stretches(layout: Layout, clock: str, n: int,
                      runs: Sequence[Sequence[Run]] | None) -> list[tuple[Stretch, ...]]:
    """The n committed rows in a file of each column of a clock."""
    schema = layout.schema
    columns = schema.columns(clock, (schema.capacity or {})[clock])
    datasets = [layout.datasets[c.path] for c in columns]
    if runs is None:
        return [(Stretch(0, n, d),) for d in datasets]
    found: dict[int, tuple[Stretch, ...]] = {}
    for group, some in zip(groups_of(schema, clock), runs, strict=True):
        for k, (number, stride) in enumerate(zip(group.numbers, group.strides, strict=True)):
            found[number] = tuple(Stretch(a, b, replace(datasets[number], offset=base, stride=stride, rows=b))
                                  for a, b, base in stretches(group, some, k, n))
    return [found[number] for number in range(len(columns))]


@lru_cache(maxsize=4)
def _constants_in(layout: Layout) -> Mapping[str, np.ndarray]:
    found = read_constants(layout.path, layout.schema)
    for values in found.values():
        values.flags.writeable = False
    return MappingProxyType(found)


def constants_of(layout: Layout) -> Mapping[str, np.ndarray]:
    """The arrays in a store's first file that do not change with time, kept for who asks next."""
    return _constants_in(layout) if layout.schema.constants else {}


_writers: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked child keeps none of its parent's locks and descriptors: they would outlive the parent."""
    for store in list(_writers):
        store._disown()


os.register_at_fork(after_in_child=_after_fork)

META = np.dtype([("step", "<i8"), ("time", "<f8"), ("weight", "<f8")])


def _with_checksums(arrays: list[np.ndarray], steps: np.ndarray, times: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """All columns of rows of a clock."""
    n = len(steps)
    meta = np.empty(n, META)
    meta["step"], meta["time"], meta["weight"] = steps, times, weights
    return [*arrays, steps, times, weights, checksums(arrays, meta, n)]


def _check_options(durability: Any, capacity: Any) -> None:
    if durability not in ("process", "disk"):
        raise InputError(f'durability is "process" or "disk"; got {durability!r}')
    for rows in capacity.values() if isinstance(capacity, Mapping) else [] if capacity is None else [capacity]:
        if not isinstance(rows, int | np.integer) or isinstance(rows, bool) or rows < 1:
            raise InputError("capacity is the number of snapshots a file has room for, above 0, or clock -> that number; "
                             f"got {capacity!r}")


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{what} is a number; got {value!r}") from None


def _numbers(values: Any, n: int, what: str) -> np.ndarray:
    array = as_array(values, what)
    if array.shape != (n,) or array.dtype.kind not in "iuf":
        raise InputError(f"{what} are {n} real numbers; got shape {array.shape}, dtype {array.dtype}")
    return array.astype(np.float64)


def _from_logs(log_weights: Any, n: int | None) -> np.ndarray:
    """Weights from their natural logarithms as they are: those of a store are on one scale, whenever they came."""
    logs = as_array(log_weights, "log_weights", kinds="biuf", dtype=np.float64)
    if logs.ndim != 1 or n not in (None, len(logs)):
        raise InputError(f"log_weights are one number a snapshot; got shape {logs.shape}")
    beyond = ~((np.abs(logs) <= LARGEST_LOG) | (logs == -np.inf))
    if beyond.any():
        k = int(np.argmax(beyond))
        raise InputError(f"log_weights are numbers within ±{LARGEST_LOG:g}, or -inf for a weight of 0; number {k} is "
                         f"{logs[k]:g}, a weight that float64 does not hold. Subtract one number from those of all snapshots "
                         "of the run, such as the largest: weights count only against each other")
    return np.exp(logs)


def _foreign_tables(path: str, found: Mapping[str, Foreign]) -> dict[str, Table]:
    tables = {}
    identity = identity_of(path)
    for clock in dict.fromkeys(f.field.clock for f in found.values()):
        mine = {name: f for name, f in found.items() if f.field.clock == clock}
        one = next(iter(mine.values()))
        unit = next((f.time_unit for f in mine.values() if f.time_unit), "")
        part = Part(path, identity, one.n, {name: (Stretch(0, one.n, f.dataset),) for name, f in mine.items()})
        table = Table({name: f.field for name, f in mine.items()}, (part,), unit, one.steps, one.times, one.times is not None)
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


def _backwards(times: np.ndarray) -> str:
    """Which of these times is before the one before it, in words; nothing where none is."""
    back = np.flatnonzero(np.diff(times) < 0)
    return f"; {times[back[0] + 1]:g} comes after {times[back[0]]:g}" if len(back) else ""
