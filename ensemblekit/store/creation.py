"""New files of a store: all but their rows, laid out so that rows are committed by one aligned write."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import xxhash

from ensemblekit import __version__
from ensemblekit.errors import StoreError
from ensemblekit.store import guarded
from ensemblekit.store.chunks import END_OF_FILE_AT, ChunkTree
from ensemblekit.store.closing import closed_record, open_record
from ensemblekit.store.datasets import LAYOUT_MESSAGE, messages
from ensemblekit.store.hdf5 import lock, new_file, write_all
from ensemblekit.store.places import ENTRIES, ENTRY, aligned
from ensemblekit.store.schema import CLOSED, CONSTANTS, PADDING, PARTICLES, PLACES, SCHEMA, SCHEMA_SUM, Column, Schema

if TYPE_CHECKING:
    from typing_extensions import Buffer

SECTOR = 512                    # what a disk writes in one piece
COMPACT_HEADER = 272            # of a dataset that stands in its own header, without its bytes
EXTENT_IN_HEADER = 32           # where a header holds the number of rows
LIBVER = ("earliest", "v110")   # version 1 object headers: no checksum over the extents, readable by old programs
Fill = Callable[[str], Iterable[tuple[int, Mapping[str, np.ndarray]]]]
"""clock -> its rows, part by part: the first row, and path -> values."""
Filters = Callable[[Column], Mapping[str, Any]]
View = Callable[[h5py.File], None]
"""Adds what other programs read to a file that is otherwise complete but for its rows."""


class NotInPlace(StoreError):
    """Here rows cannot be committed by writing an extent in place; files must be written whole."""


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
    pieces: list[tuple[int, Buffer]] = []

    def place(header: int, kind: int, data: Buffer) -> None:
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
            place(header, 1, np.ascontiguousarray(constants[name]).reshape(-1).view(np.uint8).data)
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
    datasets: dict[str, h5py.Dataset] = {}
    for clock, (*values, step, time, weight, sums) in columns.items():
        if filters is None:
            for column in columns[clock]:
                f.require_group(column.path.rpartition("/")[0])
            datasets[time.path] = _create_column(f, time, 0, None)
            _pad_to_sector(f, clock)
            for column in (step, values[0], *values[1:], weight, sums):     # the first may begin a group, by a node behind it
                datasets[column.path] = _create_column(f, column, 0, None)
        else:
            for column in columns[clock]:
                datasets[column.path] = _create_column(f, column, capacity[clock], filters)
    for *values, step, time, weight, _ in columns.values():
        for column in (*values, step, time, weight):
            if column.unit:     # variable-length text: MDAnalysis refuses the fixed-length form
                datasets[column.path].attrs["unit"] = column.unit
        ticks = {b"step": datasets[step.path].id, b"time": datasets[time.path].id}
        for column in values:
            if len(column.fields) > 1:
                _create_views(f, schema, column, ticks)
        home = step.path.rpartition("/")[0]
        for element in (column.path.rpartition("/")[0] for column in (*values, weight) if len(column.fields) < 2):
            for name, target in ticks.items() if element != home else ():
                h5py.h5o.link(target, f[element].id, name)
    headers = {name: int(h5py.h5o.get_info(dataset.id).addr) for name, dataset in datasets.items()}
    text = np.frombuffer(schema.to_json(), np.uint8)
    f.create_dataset(SCHEMA, data=text)
    f.create_dataset(SCHEMA_SUM, data=np.uint64(xxhash.xxh3_64_intdigest(text.tobytes())))
    f.create_dataset(CLOSED, data=closed_record([capacity[c] for c in schema.clocks], schema.segment + 1) if whole
                     else open_record(len(schema.clocks)))
    f.attrs["ensemblekit"] = __version__
    return headers


def _pad_to_sector(f: h5py.File, clock: str) -> None:
    """Fill metadata up so that the extents of the next two datasets lie in one sector of the disk.

    Those of a clock's first field and of its step are committed by one write, which a sector keeps in one piece.
    """
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.COMPACT)
    parent = f.require_group(f"{PADDING}/{clock}")

    def pad(name: bytes, size: int) -> int:
        dataset = h5py.h5d.create(parent.id, name, h5py.h5t.STD_U8LE, h5py.h5s.create_simple((size,)), how)
        return h5py.h5o.get_info(dataset).addr

    pad(b"first", 8)            # makes the group's own node, so that headers follow each other from here
    following = pad(b"probe", 8) + COMPACT_HEADER + 8
    left = -(following + COMPACT_HEADER + EXTENT_IN_HEADER) % SECTOR
    pad(b"filler", left if left >= 8 else left + SECTOR)


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
