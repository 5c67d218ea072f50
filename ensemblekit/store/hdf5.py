"""HDF5 files: creating segments, reading their layout, and reading what cannot be mapped."""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import h5py
import numpy as np
import xxhash

from ensemblekit import __version__
from ensemblekit.errors import EnsemblekitError, StoreDamagedError, StoreError, one_line
from ensemblekit.files import replacing
from ensemblekit.source import Field
from ensemblekit.store import guarded
from ensemblekit.store.chunks import END_OF_FILE_AT, ChunkTree
from ensemblekit.store.guarded import Look, door
from ensemblekit.store.places import ENTRIES, ENTRY, aligned
from ensemblekit.store.schema import (
    CLOSED,
    CONSTANTS,
    FORMAT,
    LARGEST_SCHEMA,
    MAIN,
    PADDING,
    PARTICLES,
    PLACES,
    SCHEMA,
    SCHEMA_SUM,
    Column,
    Schema,
)

lock = threading.RLock()        # libhdf5 can crash where two threads open and read files at once

SECTOR = 512                    # what a disk writes in one piece
COMPACT_HEADER = 272            # of a dataset that stands in its own header, without its bytes
EXTENT_IN_HEADER = 32           # where a header holds the number of rows
DATASPACE_MESSAGE, LAYOUT_MESSAGE, CONTINUATION_MESSAGE = 1, 8, 16
MOST_BLOCKS = 64                # of an object header
FEW_TICKS = 4 << 20             # steps or times of a stranger's file that are read when it is opened
LARGEST_HEADER = 1 << 20        # bytes of one part of an object's header
LIBVER = ("earliest", "v110")   # version 1 object headers: no checksum over the extents, readable by old programs


class NotInPlace(StoreError):
    """Here rows cannot be committed by writing an extent in place; files must be written whole."""


class Identity(NamedTuple):
    """Which file a name stood for."""

    device: int
    inode: int
    token: int
    """Of a file of ours the checksum of its description, in which there is a random number; else its size."""
    token_at: int
    """Byte of that checksum; -1: none."""

    def is_of(self, file: str | int) -> bool:
        """Whether this is the identity of a file, by its descriptor or name."""
        stat = os.stat(file)
        if (stat.st_dev, stat.st_ino) != self[:2]:
            return False
        if self.token_at < 0:
            return stat.st_size == self.token
        fd = file if isinstance(file, int) else os.open(file, os.O_RDONLY)
        try:
            return os.pread(fd, 8, self.token_at) == struct.pack("<Q", self.token)
        finally:
            if fd != file:
                os.close(fd)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Where one dataset stands in a file."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    unit: str
    offset: int | None
    """Byte of row 0 where rows lie evenly spaced and can be mapped; else None."""
    stride: int
    """Bytes from row to row."""
    rows: int
    """Rows that are allocated, committed or not."""
    extent_at: int | None
    """Byte of the number of rows in the file (8 bytes, aligned), where it can be patched."""
    root: int | None = None
    """Address of the chunk index (a version 1 B-tree) in a file that grows."""
    external: bool = False
    """Its values may be read from other files that the file points to."""
    within: slice | None = None
    """Which numbers of the dataset's rows these values are, where fields share it; else None: all."""

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One file of ours: its schema and where its datasets stand."""

    path: str
    schema: Schema
    datasets: Mapping[str, Dataset]
    identity: Identity
    """Another file under the same name has another one."""
    places: Mapping[str, int]
    """Clock -> byte of its table of places; empty where rows are read through h5py, or lie where ``datasets`` says."""


Fill = Callable[[str], Iterable[tuple[int, Mapping[str, np.ndarray]]]]
"""clock -> its rows, part by part: the first row, and path -> values."""
Filters = Callable[[Column], Mapping[str, Any]]
View = Callable[[h5py.File], None]
"""Adds what other programs read to a file that is otherwise complete but for its rows."""


def write_filtered(path: str, schema: Schema, fill: Fill, filters: Filters, constants: Mapping[str, np.ndarray],
                   view: View | None) -> None:
    """Write a whole new file with the rows of `fill`, compressed by libhdf5. Raises OSError."""
    with new_file(path, libver=LIBVER, rdcc_nbytes=64 << 20) as f:
        _write_file(f, schema, filters, True)
        for name, values in constants.items():
            f.create_dataset(f"{CONSTANTS}/{name}", data=values)
        if view is not None:
            view(f)
        for clock in schema.clocks:
            for start, rows in fill(clock):
                for name, values in rows.items():
                    f[name][start:start + len(values)] = values


def write_empty(path: str, schema: Schema, whole: bool, constants: Mapping[str, np.ndarray], view: View | None) -> None:
    """Write a new file without rows at `path`: everything else, in front of where they will be.

    libhdf5 makes the metadata, in memory; the chunk indexes, tables and constants are added here, and all goes to the
    disk by plain writes. So the errors of a disk never reach libhdf5, which can die of them. Raises OSError.
    """
    memory = io.BytesIO()
    # Aligned, as extents are written by one word each, and groups with names beyond ASCII are of odd lengths; of the block
    # of metadata it gives back what was not used.
    with lock, h5py.File(memory, "w", libver=LIBVER, meta_block_size=1 << 20, alignment_threshold=1, alignment_interval=8) as f:
        addresses = _write_file(f, schema, None, whole)
        tables = {clock: _unwritten(f, f"{PLACES}/{clock}", (ENTRIES + 1, len(ENTRY.names or ())), np.dtype("<u8"))
                  for clock in schema.clocks}
        arrays = {name: _unwritten(f, f"{CONSTANTS}/{name}", values.shape, values.dtype)
                  for name, values in (constants or {}).items()}
        if view is not None:
            view(f)
    head = bytearray(memory.getvalue())
    if head[8] != 0:
        raise NotInPlace("its superblock is not of version 0")
    end = aligned(len(head))
    pieces: list[tuple[int, Any]] = []

    def place(header: int, kind: int, data: Any) -> None:
        """Where a dataset's chunk index (kind 2) or its bytes (1) stand, into its header."""
        nonlocal end
        for message, at, _ in messages(lambda a, n: bytes(head[a:a + n]), header):
            if message == LAYOUT_MESSAGE and head[at] == 3 and head[at + 1] == kind:
                struct.pack_into("<Q", head, at + (3 if kind == 2 else 2), end)
                pieces.append((end, data))
                end = aligned(end + memoryview(data).nbytes)
                return
        raise NotInPlace("a layout message is not as expected")

    capacity = schema.capacity or {}
    for clock in schema.clocks:
        for column in schema.columns(clock, capacity[clock]):
            tree = ChunkTree(end, column.shape, column.chunk, column.dtype.itemsize, capacity[clock])
            place(addresses[column.path], 2, tree.empty())
    first = True
    sizes = sum(aligned((ENTRIES + 1) * ENTRY.itemsize) for _ in tables) + sum(aligned(v.nbytes) for v in constants.values())
    for header in tables.values():
        table = np.zeros(ENTRIES + 1, ENTRY)
        if first:
            table["address"][0] = end + sizes
        place(header, 1, table.tobytes())
        first = False
    for name, header in arrays.items():
        if constants[name].nbytes:
            place(header, 1, np.ascontiguousarray(constants[name]).reshape(-1).view(np.uint8))
    struct.pack_into("<Q", head, END_OF_FILE_AT, end)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.ftruncate(fd, end)
        write_all(fd, head, 0)
        for at, data in pieces:
            write_all(fd, data, at)
    finally:
        os.close(fd)


def _unwritten(f: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """A contiguous dataset that has no bytes yet; returns the address of its header."""
    return int(h5py.h5o.get_info(f.create_dataset(name, shape, dtype).id).addr)


def _write_file(f: h5py.File, schema: Schema, filters: Filters | None, whole: bool) -> dict[str, int]:
    """All of a file but its rows, tables and constants; returns the addresses of the columns' headers."""
    capacity = schema.capacity or {}
    _write_head(f, schema)
    columns = {clock: schema.columns(clock, capacity[clock]) for clock in schema.clocks}
    made: dict[str, h5py.Dataset] = {}
    for clock, (*values, step, time, weight, sums) in columns.items():
        if filters is None:
            for column in columns[clock]:
                f.require_group(column.path.rpartition("/")[0])
            made[time.path] = _create_column(f, time, 0, None)
            _pad_to_sector(f, clock)
            for column in (step, values[0], *values[1:], weight, sums):     # the first may begin a group, by a node behind it
                made[column.path] = _create_column(f, column, 0, None)
        else:
            for column in columns[clock]:
                made[column.path] = _create_column(f, column, capacity[clock], filters)
    for *values, step, time, weight, _ in columns.values():
        for column in (*values, step, time, weight):
            if column.unit:     # variable-length text: MDAnalysis refuses the fixed-length form
                made[column.path].attrs["unit"] = column.unit
        ticks = {b"step": made[step.path].id, b"time": made[time.path].id}
        for column in values:
            if len(column.fields) > 1:
                _create_views(f, schema, column, ticks)
        home = step.path.rpartition("/")[0]
        for element in (column.path.rpartition("/")[0] for column in (*values, weight) if len(column.fields) < 2):
            for name, target in ticks.items() if element != home else ():
                h5py.h5o.link(target, f[element].id, name)
    headers = {name: int(h5py.h5o.get_info(dataset.id).addr) for name, dataset in made.items()}
    text = np.frombuffer(schema.to_json(), np.uint8)
    f.create_dataset(SCHEMA, data=text)
    f.create_dataset(SCHEMA_SUM, data=np.uint64(xxhash.xxh3_64_intdigest(text.tobytes())))
    f.create_dataset(CLOSED, data=closed_record([capacity[c] for c in schema.clocks], schema.segment + 1) if whole
                     else open_record(len(schema.clocks)))
    f.attrs["ensemblekit"] = __version__
    return headers


def write_all(fd: int, data: Any, at: int) -> None:
    """pwrite until everything is written; a short write is how a full disk begins."""
    view = memoryview(data)
    if view.nbytes and (view.ndim != 1 or view.itemsize != 1):
        view = view.cast("B")
    while view.nbytes:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def _pad_to_sector(f: h5py.File, clock: str) -> None:
    """Fill metadata up so that the extents of the next two datasets lie in one sector of the disk.

    Those of a clock's first field and of its step are committed by one write, which a sector keeps in one piece.
    """
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.COMPACT)
    parent = f.require_group(f"{PADDING}/{clock}")

    def pad(name: bytes, size: int) -> int:
        made = h5py.h5d.create(parent.id, name, h5py.h5t.STD_U8LE, h5py.h5s.create_simple((size,)), how)
        return h5py.h5o.get_info(made).addr

    pad(b"first", 8)            # makes the group's own node, so that headers follow each other from here
    following = pad(b"probe", 8) + COMPACT_HEADER + 8
    left = -(following + COMPACT_HEADER + EXTENT_IN_HEADER) % SECTOR
    pad(b"filler", left if left >= 8 else left + SECTOR)


def closed_record(counts: Sequence[int], files: int | None) -> np.ndarray:
    """Snapshots of each clock at a clean close, the files that the store had at least, and the checksum of these numbers.

    Arguments:
        files: None in the record of format 1, which does not have them.
    """
    record = np.array([*counts, *([] if files is None else [files]), 0], "<u8")
    record[-1] = xxhash.xxh3_64_intdigest(record[:-1].tobytes()) | 1    # never zero, so empty stores close too
    return record


def open_record(clocks: int, format: int = FORMAT) -> np.ndarray:
    """All zero: a store is open for writing, or its writer died."""
    return np.zeros(clocks + (1 if format == 1 else 2), "<u8")


def files_in(record: np.ndarray, clocks: int) -> int:
    """The files that a store had at least, by a record of its last clean close; 0 where it does not say."""
    if len(record) != clocks + 2 or not np.array_equal(record, closed_record(record[:-2].tolist(), int(record[-2]))):
        return 0
    return int(record[-2])


def _write_head(f: h5py.File, schema: Schema) -> None:
    h5md = f.create_group("h5md")
    h5md.attrs["version"] = np.array([1, 1], "i4")
    h5md.create_group("author").attrs["name"] = np.bytes_(schema.author.encode("ascii", "replace") or b"unknown")
    creator = h5md.create_group("creator")
    creator.attrs["name"] = np.bytes_("ensemblekit")
    creator.attrs["version"] = np.bytes_(__version__)
    units = h5md.create_group("modules/units")
    units.attrs["version"] = np.array([1, 0], "i4")
    units.attrs["system"] = np.bytes_("SI")
    kinds = {field.kind for field in schema.fields.values()}
    if kinds - {"observable"}:
        box = f.create_group(f"{PARTICLES}/box")
        box.attrs["dimension"] = 3
        box.attrs["boundary"] = np.array([b"periodic" if "box" in kinds else b"none"] * 3)


def _create_column(f: h5py.File, column: Column, rows: int,
                   filters: Callable[[Column], Mapping[str, Any]] | None) -> h5py.Dataset:
    group, _, name = column.path.rpartition("/")
    parent = f.require_group(group)
    if filters is not None:
        dataset = parent.create_dataset(name, (rows, *column.shape), column.dtype, maxshape=(None, *column.shape),
                                        chunks=column.chunk, **filters(column))
    else:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(column.chunk)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((rows, *column.shape), (h5py.h5s.UNLIMITED, *column.shape))
        kind = h5py.h5t.py_create(column.dtype, logical=True)
        dataset = h5py.Dataset(h5py.h5d.create(parent.id, name.encode(), kind, space, plist))
    return dataset


def _create_views(f: h5py.File, schema: Schema, column: Column, ticks: Mapping[bytes, Any]) -> None:
    """The elements of fields that share a dataset: their values are virtual datasets, which are as long as it is.

    By libhdf5's own calls, and in groups that hold their links in their headers: there may be thousands.
    """
    text, one = h5py.string_dtype(), h5py.h5s.create(h5py.h5s.SCALAR)
    stored_text = h5py.h5t.py_create(text, logical=True)
    kind = h5py.h5t.py_create(column.dtype, logical=True)
    named = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    named.set_char_encoding(h5py.h5t.CSET_UTF8)
    compact = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    compact.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED)
    unlimited = h5py.h5s.UNLIMITED
    parents: dict[str, Any] = {}
    for name, start, stop in schema.parts(column):
        parent, _, element = schema.element(name).rpartition("/")
        if parent not in parents:
            parents[parent] = f.require_group(parent).id
        above, label = parents[parent], element.encode()
        there = above.links.exists(label)       # the clock's step and time stand in that of its first field
        group = h5py.h5g.open(above, label) if there else h5py.h5g.create(above, label, named, compact)
        shape = schema.fields[name].shape
        source, view = (h5py.h5s.create_simple((0, *s), (unlimited, *s)) for s in (column.shape, shape))
        source.select_hyperslab((0, start), (unlimited, 1), (1, 1), (1, stop - start))
        view.select_hyperslab((0,) * (1 + len(shape)), (unlimited, *(1 for _ in shape)), None, (1, *shape))
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        how.set_virtual(view, b".", f"/{guarded.literal(column.path)}".encode(), source)
        values = h5py.h5d.create(group, b"value", kind, h5py.h5s.create_simple((0, *shape), (unlimited, *shape)), how)
        unit = schema.fields[name].unit
        if unit:
            h5py.h5a.create(values, b"unit", stored_text, one).write(np.array(unit, dtype=text))
        for tick, target in ticks.items():
            if not there:
                h5py.h5o.link(target, group, tick)


def read_layout(path: str) -> Layout | None:
    """The layout of a file of ours; None for any other HDF5 file. h5py is closed again before this returns.

    Raises StoreError where the file cannot be opened, StoreDamagedError where its description is not what was written.
    """
    with opened(path) as f:
        return _layout_in(f, path) if SCHEMA in f else None


def read_file(path: str, external: bool = False) -> Layout | dict[str, Foreign]:
    """The layout of a file of ours, or the fields of any other H5MD or plain HDF5 file.

    Fields that share length, steps and times share a clock. What cannot be read of them is left out, with a word in the log.

    Raises StoreError where that leaves nothing or the file cannot be opened, StoreDamagedError as :func:`read_layout`.
    """
    with opened(path, external) as f:
        if SCHEMA not in f:
            return _foreign_in(f, path)
        if not external:
            return _layout_in(f, path)
    layout = read_layout(path)      # nothing of a store of ours stands in other files
    if layout is None:
        raise StoreError(f"{path}: its description stands in another file")
    return layout


def _layout_in(f: guarded.File, path: str) -> Layout:
    # The bytes are read from the file that libhdf5 has open, as the name may stand for another one by now.
    with open(os.dup(f.id.get_vfd_handle()), "rb") as raw:
        described = f[SCHEMA]
        if described.dtype != np.uint8 or described.ndim != 1 or len(described) > LARGEST_SCHEMA:
            raise StoreDamagedError(f"{path}: {SCHEMA!r} is {described.dtype} of shape {described.shape}, where a description "
                                    f"is up to {LARGEST_SCHEMA} bytes of text")
        text = described[...].tobytes()
        if int(f[SCHEMA_SUM][()]) != xxhash.xxh3_64_intdigest(text):
            raise StoreDamagedError(f"{path}: the description of the store does not match its checksum. "
                                    "Restore the file from a copy; the snapshots may still be whole")
        f._look.at = SCHEMA
        try:
            schema = Schema.from_json(text)
        except StoreDamagedError as error:
            raise StoreDamagedError(f"{path}: {error}") from error
        token_at = f[SCHEMA_SUM].id.get_offset()
        stat = os.fstat(raw.fileno())
        identity = Identity(stat.st_dev, stat.st_ino, xxhash.xxh3_64_intdigest(text), -1 if token_at is None else token_at)
        places = {}
        datasets = {}
        for clock in schema.clocks:
            table = f.get(f"{PLACES}/{clock}") if schema.format > 1 else None
            if table is not None and table.id.get_offset() is not None:
                places[clock] = table.id.get_offset()
            for column in schema.columns(clock, (schema.capacity or {})[clock]):
                datasets[column.path] = _fitting(path, column, _locate(f, column.path, raw, stat.st_size, clock in places))
        closed = f[CLOSED]
        if closed.dtype != np.dtype("<u8") or closed.shape != open_record(len(schema.clocks), schema.format).shape:
            raise StoreDamagedError(f"{path}: {CLOSED!r} is {closed.dtype} of shape {closed.shape}, not the counts "
                                    "of its clocks")
        datasets[CLOSED] = Dataset(CLOSED, closed.shape, closed.dtype, "", closed.id.get_offset(), 8, closed.shape[0],
                                   None)
        return Layout(path, schema, datasets, identity, places)


class NewFile(io.RawIOBase):
    """A file that libhdf5 writes without ever hearing of an error, as it dies of a disk that is full.

    The first error is kept in ``error``; what is written after it is dropped.
    """

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self.at, self.size = 0, 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        got = os.pread(self.fd, len(view), self.at)
        view[:len(got)] = got
        view[len(got):] = bytes(len(view) - len(got))
        self.at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += os.pwrite(self.fd, view[done:], self.at + done)
            except OSError as error:
                self.error = error
        self.at += len(view)
        self.size = max(self.size, self.at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self.fd, self.size)
            except OSError as error:
                self.error = error
        return self.size

    def close(self) -> None:
        if not self.closed:
            os.close(self.fd)
        super().close()


@contextmanager
def new_file(path: str, **options: Any) -> Iterator[h5py.File]:
    """A new file to fill, with the library's lock held meanwhile. Raises OSError where it could not all be written."""
    with lock, NewFile(path) as raw:
        with h5py.File(raw, "w", **options) as f:
            yield f
        if raw.error is not None:
            raise raw.error


def identity_of(file: str | int) -> Identity:
    """The identity of a file that is not ours."""
    stat = os.stat(file)
    return Identity(stat.st_dev, stat.st_ino, stat.st_size, -1)


@contextmanager
def opened(path: str, external: bool = False) -> Iterator[guarded.File]:
    """The file for reading, with the library's lock held meanwhile; or a StoreError, also for what goes wrong inside.

    Nothing outside the file is read unless `external`.
    """
    import hdf5plugin  # noqa: F401  (its import registers the filters of compressed files)

    with lock:
        try:
            look = Look(path, external)
            file = _open(path, look)
        except FileNotFoundError as error:
            raise StoreError(f"no file {path!r}") from error
        except EnsemblekitError:
            raise
        except guarded.ODD as error:
            raise StoreError(f"{path}: HDF5 cannot open it ({one_line(error)}). If it is no HDF5 file, ingest it first; if it "
                             "was damaged, `ensemblekit verify` says where") from error
        with door(look), file:
            yield file


def is_hdf5(path: str) -> bool:
    """Whether a file is one of HDF5, by its first bytes."""
    return bool(h5py.is_hdf5(path))


def check_inside(path: str) -> None:
    """Raise StoreError where anything in an HDF5 file points to another one; for files that another library reads then."""
    if h5py.is_hdf5(path):
        with opened(path) as f:
            for _ in guarded.walk(f, f._look):
                pass


def _open(path: str, look: Look) -> guarded.File:
    """With HDF5's own locks (shared, so they do not stop our writer); as the caller has it, where it is open already."""
    try:
        return guarded.File(path, look)
    except OSError as error:
        if "locking flag values don't match" not in str(error):
            raise
        return guarded.File(path, look, locking=False)


def _fitting(path: str, column: Column, found: Dataset) -> Dataset:
    """The dataset of a column, or a StoreDamagedError where it is not what the description says."""
    if found.shape[1:] != column.shape or len(found.shape) != len(column.shape) + 1 or found.dtype != column.dtype:
        raise StoreDamagedError(f"{path}: {column.path!r} is {found.dtype} of shape {found.shape}; the description of the "
                                f"store says {column.dtype} of (snapshots, {', '.join(map(str, column.shape))})")
    return found


def _locate(f: guarded.File, path: str, raw: Any, size: int, listed: bool = False, d: Any = None) -> Dataset:
    """Where a dataset stands, from its chunk index.

    Arguments:
        listed: its rows stand in a table of places.
        d: the dataset itself, where it was found before: looking a name up takes as long as all the rest.
    """
    try:
        d = f[path] if d is None else d
    except KeyError:
        raise StoreDamagedError(f"{f.filename}: the dataset {path!r} that its description names is missing") from None
    shape, dtype = d.shape, d.dtype
    item = dtype.itemsize * math.prod(shape[1:])
    if listed:
        where, root = _in_header(d, raw)
        return Dataset(path, shape, dtype, _unit(d), None, item, shape[0], where, root)
    how = d.id.get_create_plist()
    filtered = how.get_nfilters() > 0
    virtual = how.get_layout() == h5py.h5d.VIRTUAL
    plain = dtype.isnative and not virtual and not how.get_external_count() and not filtered
    offset, stride, rows = (_even_rows(d, item) if plain else None) or (None, item, shape[0])
    aligned = offset is not None and offset % dtype.alignment == 0 and stride % dtype.alignment == 0
    if not aligned or rows < shape[0] or offset + rows * stride > size:       # type: ignore[operator]
        offset = None
    return Dataset(path, shape, dtype, _unit(d), offset, stride, rows, None if filtered else _in_header(d, raw)[0],
                   external=f._look.external)


def _even_rows(d: guarded.Values, item: int) -> tuple[int, int, int] | None:
    """(offset of row 0, stride, rows allocated) where all rows lie evenly spaced in the file, each in one piece."""
    if d.chunks is None:
        offset = d.id.get_offset()
        return None if offset is None else (offset, item, len(d))
    parts = [-(-n // c) for n, c in zip(d.shape[1:], d.chunks[1:], strict=True)]
    a_row = math.prod(parts)        # chunks that one snapshot, or one stack of them, is cut into
    if a_row > 1 and not (d.chunks[0] == 1 and _follow(d.shape[1:], d.chunks[1:])):
        return None
    if a_row == 1 and d.chunks[1:] != d.shape[1:]:
        return None
    found: list[tuple[int, int]] = []
    look = d._look
    rows, *tile = d.chunks          # h5py asks the file each time

    def note(chunk: Any) -> None:
        look.step()
        number = chunk.chunk_offset[0] // rows
        for at, extent, n in zip(chunk.chunk_offset[1:], tile, parts, strict=True):
            number = number * n + at // extent
        found.append((number, chunk.byte_offset))

    d.id.chunk_iter(note)
    if not found or len(found) % a_row:
        return None
    found.sort()
    first, nbytes = found[0][1], math.prod(d.chunks) * d.dtype.itemsize
    if any(chunk != (k, first + k * nbytes) for k, chunk in enumerate(found)):
        return None
    return first, nbytes * a_row // d.chunks[0], len(found) // a_row * d.chunks[0]


def _follow(item: tuple[int, ...], chunk: tuple[int, ...]) -> bool:
    """Whether the tiles of one snapshot, in their order, are its bytes in order (with a gap behind it at the most)."""
    axis = max(k for k, (n, c) in enumerate(zip(item, chunk, strict=True)) if c < n)
    return all(c == 1 for c in chunk[:axis]) and (item[axis] % chunk[axis] == 0 or math.prod(item[:axis]) == 1)


def messages(read: Callable[[int, int], bytes], address: int) -> Iterator[tuple[int, int, int]]:
    """(kind, where its data begin, their length) of the messages in a version 1 object header; none in any other."""
    head = read(address, 16)
    if len(head) < 16 or head[0] != 1:
        return
    blocks = [(address + 16, struct.unpack_from("<I", head, 8)[0])]
    seen: set[int] = set()
    while blocks and len(seen) < MOST_BLOCKS:
        start, length = blocks.pop(0)
        if start in seen or length > LARGEST_HEADER or start >> 62:
            return
        seen.add(start)
        body = read(start, length)
        at = 0
        while at + 8 <= len(body):
            kind, size, _ = struct.unpack_from("<HHB", body, at)
            if kind == CONTINUATION_MESSAGE and at + 24 <= len(body):
                blocks.append(struct.unpack_from("<QQ", body, at + 8))
            yield kind, start + at + 8, size
            at += 8 + size


def _in_header(d: h5py.Dataset, raw: Any) -> tuple[int | None, int | None]:
    """The byte of dim[0], where it can be patched, and the address of the chunk index; None where not as expected."""

    def read(at: int, n: int) -> bytes:
        raw.seek(at)
        return raw.read(min(n, 1 << 20))

    extent = root = None
    for kind, at, _ in messages(read, int(h5py.h5o.get_info(d.id).addr)):
        data = read(at, 16)
        if len(data) < 16:
            break
        if kind == DATASPACE_MESSAGE and extent is None:
            where = at + (8 if data[0] == 1 else 4)
            extent = where if where % 8 == 0 and data[1] == d.ndim > 0 else None
        if kind == LAYOUT_MESSAGE and data[0] == 3 and data[1] == 2:
            root = struct.unpack_from("<Q", data, 3)[0]
    return extent, root


def read_constants(path: str, schema: Schema) -> dict[str, np.ndarray]:
    """The arrays of a run that do not change with time, from its first file. Raises StoreDamagedError."""
    found = {}
    with opened(path) as f:
        for name, digest in (schema.constants or {}).items():
            if f"{CONSTANTS}/{name}" not in f:
                raise StoreDamagedError(f"{path}: the constant {name!r} that its description names is missing")
            found[name] = f[f"{CONSTANTS}/{name}"][...]
            if xxhash.xxh3_64_intdigest(found[name].tobytes()) != digest:
                raise StoreDamagedError(f"{path}: the constant {name!r} is not what was written")
    return found


def shapes_seen(path: str, names: list[str]) -> dict[str, tuple[int, int]]:
    """The number of rows that libhdf5 sees in each dataset, and the place of its first chunk."""
    with opened(path) as f:
        seen = {name: f[name] for name in names}
        return {name: (d.shape[0], d.id.get_chunk_info_by_coord((0,) * d.ndim).byte_offset) for name, d in seen.items()}


def lengths_seen(path: str, names: list[str]) -> list[int]:
    """The number of rows that libhdf5 sees in each dataset."""
    if not names:
        return []
    with opened(path) as f:
        return [len(f[name]) for name in names]


def read_rows(path: str, name: str, rows: slice, tile: slice | None = None, external: bool = False) -> np.ndarray:
    """Rows of a dataset through h5py; with `tile`, a range of the flattened item."""
    with opened(path, external) as f:
        f._look.asked = True
        d = f[name]
        if tile is None or d.ndim == 1:
            return d[rows]
        if d.ndim == 2:
            return d[rows, tile]
        # Only the part of the first item axis that holds the tile is read.
        inner = math.prod(d.shape[2:])
        a, b = tile.start // inner, -(-tile.stop // inner)
        part = d[rows, a:b]
        return part.reshape(len(part), -1)[:, tile.start - a * inner:tile.stop - a * inner]


def write_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """A new HDF5 file of arrays by their paths in it, by temporary file and rename: a result kept whole or not at all."""
    try:
        with replacing(path, durable=True, follow=True) as temporary, new_file(temporary) as f:
            for name, values in arrays.items():
                f.create_dataset(name, data=np.ascontiguousarray(values))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def read_arrays(path: str, group: str) -> dict[str, np.ndarray]:
    """All arrays below a group, by their paths in it; empty where there is no such group."""
    found: dict[str, np.ndarray] = {}
    with opened(path) as f:
        if group in f:
            for name, node in guarded.walk(f[group], f._look):
                if isinstance(node, h5py.Dataset):
                    f._look.at = f"{group}/{name}"
                    found[name] = node[()]
    return found


@dataclass(frozen=True, slots=True)
class Counted:
    """Steps or times at even distances: numbers that are made where they are asked for."""

    n: int
    increment: float = 1
    offset: float = 0
    dtype: str = "i8"

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice) -> np.ndarray:
        asked = range(self.n)[rows]
        try:
            return (np.arange(asked.start, asked.stop, asked.step) * self.increment + self.offset).astype(self.dtype)
        except MemoryError:
            raise StoreError(f"{len(asked)} steps or times do not fit into memory; ask for a window of them") from None


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Steps or times that a file lists, too many to be read before they are asked for."""

    path: str
    dataset: Dataset
    n: int
    dtype: str

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice) -> np.ndarray:
        asked = range(self.n)[rows]
        return read_rows(self.path, self.dataset.path, slice(asked.start, asked.stop, asked.step),
                         external=self.dataset.external).astype(self.dtype)


Ticks = np.ndarray | Counted | Listed
"""The steps or times of a clock of somebody else's file, as an array where they are few."""


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A field of somebody else's file: where its values stand and what its clock is."""

    name: str
    field: Field
    dataset: Dataset
    n: int
    steps: Ticks
    times: Ticks | None
    time_unit: str
    place: str
    """Of the values in the file."""


@dataclass(frozen=True, slots=True, eq=False)
class Particles:
    """A particles group of somebody else's H5MD file."""

    name: str
    fields: Mapping[str, str]
    """Kind ("position", "velocity", "force", "box") -> the field of that name in the store."""
    edges: np.ndarray | None
    """(3, 3) vectors of a box that stays; None where it has none, or one that varies ("box" is a field then)."""


def particles_in(path: str, foreign: Mapping[str, Foreign], external: bool = False) -> list[Particles]:
    """The particles groups of a file whose fields `foreign` are; StoreError where a box is periodic along some axes only."""
    kinds = ("position", "velocity", "force", "box")
    names = dict.fromkeys(one.place.split("/")[1] for one in foreign.values() if one.place.startswith("particles/"))
    groups = []
    with opened(path, external) as f:
        for name in names:
            fields: dict[str, str] = {str(one.field.kind): label for label, one in foreign.items()
                                      if one.place.startswith(f"particles/{name}/") and one.field.kind in kinds}
            box = f.get(f"particles/{name}/box")
            with door(f._look):
                periodic = isinstance(box, guarded.Group) and _periodic(f, box)
                edges = _fixed_edges(box) if periodic and "box" not in fields else None
            if not periodic:
                fields.pop("box", None)
            groups.append(Particles(name, fields, edges))
    return groups


def _periodic(f: guarded.File, box: guarded.Group) -> bool:
    """Whether a box is: along all axes or none."""
    words = guarded.texts_attribute(box, "boundary", f._look)
    if len(set(words)) > 1:
        raise StoreError(f"{f.filename}: the boundary of {one_line(box.name)!r} is {', '.join(map(one_line, words))}; boxes "
                         "that are periodic along some of their axes only are not known here")
    return words != ["none"] * len(words)


def _fixed_edges(box: guarded.Group) -> np.ndarray | None:
    """Vectors (3, 3) of a box that stays: a dataset, or (H5MD 1.0) an attribute, of three lengths or three vectors."""
    node = box.get("edges")
    if isinstance(node, guarded.Values) and node.shape in ((3,), (3, 3)):
        edges = np.asarray(node[()])
    elif "edges" in box.attrs:
        edges = np.asarray(guarded.small_attribute(box, "edges"))
    else:
        return None
    if edges.shape not in ((3,), (3, 3)) or edges.dtype.kind not in "iuf" or not np.isfinite(edges).all():
        raise StoreError(f"{one_line(box.name)!r}: the edges of a box are three finite lengths, or three vectors")
    return np.diag(edges).astype(np.float64) if edges.ndim == 1 else edges.astype(np.float64)


def _foreign_in(f: guarded.File, path: str) -> dict[str, Foreign]:
    """The fields of a file that is not ours, see :func:`read_file`."""
    left_out: list[str] = []
    with open(os.dup(f.id.get_vfd_handle()), "rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        result: dict[str, Foreign] = {}
        clocks: dict[tuple[Any, ...], int] = {}
        for label, (node, group, kind) in _values_in(f, left_out).items():
            f._look.at = label[:guarded.LONGEST_NAME]
            try:
                with door(f._look):
                    steps, n = _ticks(f, group, "step", node.shape[0], "i8", raw, size)
                    times, n = _ticks(f, group, "time", n, "f8", raw, size)
                    if n == 0:
                        continue
                    assert steps is not None
                    steps, times = _first(steps, n), None if times is None else _first(times, n)
                    at = clocks.setdefault((n, _key(steps), _key(times)), len(clocks))
                    field = Field(node.shape[1:], node.dtype.newbyteorder("="), _unit(node), kind,  # type: ignore[arg-type]
                                  MAIN if at == 0 else f"clock{at + 1}")
                    result[label] = Foreign(label, field, _locate(f, node.name.strip("/"), raw, size, d=node), n, steps, times,
                                            "" if times is None else _unit(group["time"]), node.name.strip("/"))
            except EnsemblekitError as error:
                left_out.append(str(error))
    if left_out:
        words = "; ".join(one_line(problem).removeprefix(f"{path}: ") for problem in left_out[:3])
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        if not result:
            raise StoreError(f"{path}: no field can be read: {words}{more}")
        logging.getLogger("ensemblekit").warning("%s: left out, as they cannot be read: %s%s", path, words, more)
    return result


def _values_in(f: guarded.File, left_out: list[str]) -> dict[str, tuple[guarded.Values, Any, str]]:
    """Field -> (its values, the group that has its step and time or None, its kind)."""
    found: dict[str, tuple[guarded.Values, Any, str]] = {}
    taken: dict[str, int] = {}
    groups: dict[str, Any] = {"": f}
    for name, node in guarded.walk(f, f._look, left_out):
        parts = name.split("/")
        if isinstance(node, guarded.Group):
            groups[name] = node
        try:
            if not isinstance(node, guarded.Values) or parts[0] in ("h5md", "ensemblekit") or not node.shape:
                continue
            if node.dtype.kind not in "biufc" or node.shape[0] == 0 or math.prod(node.shape) == 0:
                continue
            group = groups["/".join(parts[:-1])]
            if parts[-1] in ("step", "time") and "value" in group:
                continue
            kind = "observable"
            if parts[-1] == "value" and len(parts) > 1:
                label = parts[-2]
                if parts[0] == "particles":
                    label = "box" if label == "edges" else label
                    kind = label if label in ("position", "velocity", "force", "box") else "observable"
                label = "/".join(parts[1:-1]) if parts[0] == "observables" else label
                again = taken[label] = taken.get(label, -1) + 1
                found[label + "'" * again if again < 8 else f"{label}'{again}"] = node, group, kind
            elif parts[0] not in ("particles", "parameters", "connectivity"):
                found[name] = (node, None, kind)
        except guarded.ODD as error:
            left_out.append(str(error) if isinstance(error, EnsemblekitError) else f"{name!r} ({one_line(error)})")
    return found


def _ticks(f: guarded.File, group: Any, name: str, n: int, dtype: str, raw: Any, size: int) -> tuple[Ticks | None, int]:
    """(steps or times, snapshots that have them): as listed, from the scalar increment and offset of H5MD 1.1, or
    steps counted where they are missing."""
    node = None if group is None else group.get(name)
    if node is None:
        return (Counted(n) if n > FEW_TICKS else np.arange(n)) if name == "step" else None, n
    f._look.at = str(node.name)
    if not isinstance(node, guarded.Values) or node.shape is None or node.dtype.kind not in "biuf" or node.ndim > 1:
        raise StoreError(f"{f.filename}: {one_line(node.name)!r} is no row of numbers")
    if node.ndim == 0:
        given = guarded.number_attribute(node, "offset")
        increment, offset = node[()], given
        if not (np.isfinite(increment) and np.isfinite(offset)):
            raise StoreError(f"{f.filename}: {one_line(node.name)!r} has the increment {increment} and the offset {offset}")
        counted = Counted(n, increment.item(), offset, dtype)
        return counted if n > FEW_TICKS else counted[:], n
    n = min(n, len(node))
    if n > FEW_TICKS:
        # by the way it was found, as with `external` the name may be one in another file
        return Listed(f.filename, _locate(f, f"{group.name}/{name}".strip("/"), raw, size, d=node), n, dtype), n
    f._look.check_size(node)
    return node[:n].astype(dtype), n


def _first(ticks: Ticks, n: int) -> Ticks:
    return ticks[:n] if isinstance(ticks, np.ndarray) else replace(ticks, n=n)


def _key(ticks: Ticks | None) -> Any:
    """The same for two fields whose steps (times) are the same."""
    if isinstance(ticks, np.ndarray):
        return xxhash.xxh3_128_digest(ticks.tobytes())
    return (ticks.dataset.path, ticks.dataset.offset) if isinstance(ticks, Listed) else ticks


def _unit(node: Any) -> str:
    return guarded.text_attribute(node, "unit", node._look)
