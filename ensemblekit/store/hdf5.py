"""The only file that knows h5py: creating segments, reading their layout, and reading what cannot be mapped."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (its import registers the filters of compressed files)
import numpy as np
import xxhash

import ensemblekit
from ensemblekit.errors import StoreDamagedError, StoreError
from ensemblekit.source import Field
from ensemblekit.store.schema import CLOSED, MAIN, PARTICLES, SCHEMA, SCHEMA_SUM, Column, Schema

LIBVER = ("earliest", "v110")   # version 1 object headers: no checksum over the extents, readable by old programs


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


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One file of ours: its schema and where its datasets stand."""

    path: str
    schema: Schema
    datasets: Mapping[str, Dataset]
    size: int
    sealed: bool


def create_segment(path: str, schema: Schema, sealed: Mapping[str, Mapping[str, Any]] | None = None,
                   filters: Callable[[Column], Mapping[str, Any]] | None = None) -> None:
    """Write a whole new file at `path` with all chunks allocated, not filled, and extents at capacity."""
    capacity = schema.capacity or {}
    chunks = sum(-(-rows // max(1, c.chunk[0])) * max(1, math.prod(c.shape) // max(1, math.prod(c.chunk[1:])))
                 for clock, rows in capacity.items() for c in schema.columns(clock, rows))
    # One block of metadata large enough for every B-tree node, so that the chunks of a dataset are adjacent.
    block = max(1 << 20, 1 << (256 * chunks - 1).bit_length() if chunks else 0)
    with h5py.File(path, "w", libver=LIBVER, meta_block_size=min(block, 1 << 30), locking=False) as f:
        _write_head(f, schema)
        for clock, names in schema.clocks.items():
            columns = schema.columns(clock, capacity[clock])
            made = {}
            # Wide numbers first: whatever the shapes, every dataset then begins where its numbers are aligned.
            for column in sorted(columns, key=lambda c: -c.dtype.itemsize):
                made[column.path] = _create_column(f, column, capacity[clock], filters)
            step, time = columns[len(names)].path, columns[len(names) + 1].path
            for element in (*(schema.element(n) for n in names[1:]), columns[len(names) + 2].path.rpartition("/")[0]):
                f[element]["step"] = f[step]
                f[element]["time"] = f[time]
            if sealed is not None:
                for path_, values in sealed[clock].items():
                    made[path_][...] = values
        text = np.frombuffer(schema.to_json(), np.uint8)
        f.create_dataset(SCHEMA, data=text)
        f.create_dataset(SCHEMA_SUM, data=np.uint64(xxhash.xxh3_64_intdigest(text.tobytes())))
        f.create_dataset(CLOSED, data=closed_record([capacity[c] for c in schema.clocks] if sealed is not None else
                                                    [0] * len(schema.clocks), sealed is not None))
        f.attrs["ensemblekit"] = ensemblekit.__version__


def closed_record(counts: list[int], closed: bool = True) -> np.ndarray:
    """Counts and their checksum; all zero while the store is open for writing."""
    record = np.zeros(len(counts) + 1, "<u8")
    if closed:
        record[:-1] = counts
        record[-1] = xxhash.xxh3_64_intdigest(record[:-1].tobytes()) | 1    # never zero, so empty stores close too
    return record


def _write_head(f: h5py.File, schema: Schema) -> None:
    h5md = f.create_group("h5md")
    h5md.attrs["version"] = np.array([1, 1], "i4")
    h5md.create_group("author").attrs["name"] = np.bytes_(schema.author.encode("ascii", "replace") or b"unknown")
    creator = h5md.create_group("creator")
    creator.attrs["name"] = np.bytes_("ensemblekit")
    creator.attrs["version"] = np.bytes_(ensemblekit.__version__)
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
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((rows, *column.shape), (h5py.h5s.UNLIMITED, *column.shape))
        kind = h5py.h5t.py_create(column.dtype, logical=True)
        dataset = h5py.Dataset(h5py.h5d.create(parent.id, name.encode(), kind, space, plist))
    if column.unit:
        dataset.attrs["unit"] = column.unit     # variable-length text: MDAnalysis refuses the fixed-length form
    return dataset


def read_layout(path: str) -> Layout | None:
    """The layout of a file of ours; None for any other HDF5 file. h5py is closed again before this returns.

    Raises StoreError where the file cannot be opened, StoreDamagedError where its description is not what was written.
    """
    with opened(path) as f:
        if SCHEMA not in f:
            return None
        text = f[SCHEMA][...].tobytes()
        if int(f[SCHEMA_SUM][()]) != xxhash.xxh3_64_intdigest(text):
            raise StoreDamagedError(f"{path}: the description of the store does not match its checksum. "
                                    "Restore the file from a copy; the snapshots may still be whole")
        schema = Schema.from_json(text)
        size = os.stat(path).st_size
        datasets = {}
        sealed = False
        with open(path, "rb") as raw:
            for clock in schema.clocks:
                for column in schema.columns(clock, (schema.capacity or {})[clock]):
                    found = _locate(f, column.path, raw, size)
                    datasets[column.path] = found
                    sealed = sealed or found.extent_at is None
            closed = f[CLOSED]
            datasets[CLOSED] = Dataset(CLOSED, closed.shape, closed.dtype, "", closed.id.get_offset(), 8,
                                       closed.shape[0], None)
        return Layout(path, schema, datasets, size, sealed)


def opened(path: str) -> h5py.File:
    """The file for reading, without a lock (readers must not stop a writer), or a StoreError."""
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError as error:
        raise StoreError(f"no file {path!r}") from error
    except OSError as error:
        raise StoreError(f"{path}: HDF5 cannot open it ({error}). If it is no HDF5 file, ingest it first; if it was "
                         "damaged, `ensemblekit verify` says where") from error


def _locate(f: h5py.File, path: str, raw: Any, size: int) -> Dataset:
    """Where a dataset stands, from its chunk index."""
    if path not in f:
        raise StoreDamagedError(f"{f.filename}: the dataset {path!r} that its description names is missing")
    d = f[path]
    item = d.dtype.itemsize * math.prod(d.shape[1:])
    runs, rows = _even_rows(d, item) if d.dtype.isnative else (None, 0)
    offset, stride = runs if runs else (None, item)
    if offset is not None and (offset % d.dtype.alignment or offset + rows * stride > size):
        offset = None
    unit = d.attrs.get("unit", "")
    return Dataset(path, d.shape, d.dtype, unit.decode() if isinstance(unit, bytes) else str(unit), offset, stride,
                   rows, None if _filtered(d) else extent_at(f, path, raw))


def _filtered(d: h5py.Dataset) -> bool:
    return d.id.get_create_plist().get_nfilters() > 0


def _even_rows(d: h5py.Dataset, item: int) -> tuple[tuple[int, int] | None, int]:
    """(offset, stride) and the rows allocated, where all chunks follow each other; (None, n) where not."""
    if d.shape and _filtered(d):
        return None, d.shape[0]
    if d.chunks is None:
        offset = d.id.get_offset()
        return (None if offset is None else (offset, item)), d.shape[0]
    found: list[tuple[tuple[int, ...], int, int]] = []
    d.id.chunk_iter(lambda c: found.append((c.chunk_offset, c.byte_offset, c.size)))
    if not found:
        return None, 0
    found.sort()
    rows = found[-1][0][0] + d.chunks[0]
    offset, nbytes = found[0][1], found[0][2]
    if any(at != offset + k * nbytes for k, (_, at, _) in enumerate(found)):
        return None, rows
    whole = all(c == s for c, s in zip(d.chunks[1:], d.shape[1:], strict=True))
    if whole:
        return (offset, item), rows
    per_row = len(found) // max(1, len({c[0][0] for c in found}))
    # Tiles of one axis follow each other; a last tile that is not full leaves a gap at the end of a snapshot only
    # where no axis before the tiled one is longer than one.
    axis = next(k for k, (c, s) in enumerate(zip(d.chunks[1:], d.shape[1:], strict=True), 1) if c not in (1, s) or (
        c == 1 and s > 1 and d.chunks[k + 1:] == d.shape[k + 1:]))
    inner_whole = d.chunks[axis + 1:] == d.shape[axis + 1:]
    divides = d.shape[axis] % d.chunks[axis] == 0
    outer_one = math.prod(d.shape[1:axis]) == 1
    if d.chunks[0] == 1 and inner_whole and (divides or outer_one):
        return (offset, per_row * nbytes), rows
    return None, rows


def extent_at(f: h5py.File, path: str, raw: Any) -> int | None:
    """The byte of dim[0] in the dataspace message of a version 1 object header; None where it is not as expected."""
    address = h5py.h5o.get_info(f[path].id).addr

    def read(at: int, n: int) -> bytes:
        raw.seek(at)
        return raw.read(n)

    head = read(address, 16)
    if len(head) < 16 or head[0] != 1:
        return None
    blocks = [(address + 16, struct.unpack_from("<I", head, 8)[0])]
    while blocks:
        start, length = blocks.pop(0)
        body = read(start, length)
        at = 0
        while at + 8 <= len(body):
            kind, size, _ = struct.unpack_from("<HHB", body, at)
            data = at + 8
            if kind == 0x10 and data + 16 <= len(body):
                blocks.append(struct.unpack_from("<QQ", body, data))
            if kind == 0x01 and data + 16 <= len(body):
                where = start + data + (8 if body[data] == 1 else 4)
                (value,) = struct.unpack("<Q", read(where, 8))
                return where if where % 8 == 0 and value == f[path].shape[0] else None
            at = data + size
    return None


def shapes_seen(path: str, names: list[str]) -> list[int]:
    """The number of rows that libhdf5 sees in each dataset."""
    with opened(path) as f:
        return [f[name].shape[0] for name in names]


def read_rows(path: str, name: str, rows: slice, tile: slice | None = None) -> np.ndarray:
    """Rows of a dataset through h5py; with `tile`, a range of the flattened item."""
    with opened(path) as f:
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


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A field of somebody else's file: where its values stand and what its clock is."""

    name: str
    field: Field
    dataset: Dataset
    steps: np.ndarray
    times: np.ndarray | None
    time_unit: str


def read_foreign(path: str) -> dict[str, Foreign]:
    """The fields of any H5MD or plain HDF5 file. Fields that share length, steps and times share a clock."""
    with opened(path) as f, open(path, "rb") as raw:
        size = os.stat(path).st_size
        found: dict[str, tuple[h5py.Dataset, Any, Any, str]] = {}

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Group):
                return
            parts = name.split("/")
            if parts[0] == "h5md" or node.ndim == 0 or node.dtype.kind not in "biufc" or node.shape[0] == 0:
                return
            parent = node.parent
            if parts[-1] in ("step", "time") and "value" in parent:
                return
            kind = "observable"
            if parts[-1] == "value":
                label = parts[-2]
                if parts[0] == "particles":
                    label = "box" if label == "edges" else label
                    kind = label if label in ("position", "velocity", "force", "box") else "observable"
                label = "/".join(parts[1:-1]) if parts[0] == "observables" else label
                while label in found:
                    label = f"{label}'"
                found[label] = (node, parent.get("step"), parent.get("time"), kind)
            elif parts[0] not in ("particles", "parameters", "connectivity", "ensemblekit"):
                found[name] = (node, None, None, kind)

        f.visititems(visit)
        result: dict[str, Foreign] = {}
        clocks: list[tuple[int, bytes]] = []
        for label, (node, step, time, kind) in found.items():
            n = node.shape[0]
            steps = _ticks(step, n, np.int64)
            times = None if time is None else _ticks(time, n, np.float64)
            n = min(n, len(steps), len(times) if times is not None else n)
            if n == 0:
                continue
            steps, times = steps[:n], None if times is None else times[:n]
            key = (n, steps.tobytes() + (b"" if times is None else times.tobytes()))
            if key not in clocks:
                clocks.append(key)
            at = clocks.index(key)
            field = Field(node.shape[1:], node.dtype.newbyteorder("="), _unit(node), kind,   # type: ignore[arg-type]
                          MAIN if at == 0 else f"clock{at + 1}")
            result[label] = Foreign(label, field, _locate(f, node.name.strip("/"), raw, size), steps, times,
                                    "" if time is None else _unit(time))
        return result


def _ticks(node: Any, n: int, dtype: Any) -> np.ndarray:
    """Steps or times: as listed, from the scalar increment and offset of H5MD 1.1, or counted where missing."""
    if node is None:
        return np.arange(n, dtype=dtype)
    if node.ndim == 0:
        increment, offset = node[()], node.attrs.get("offset", 0)
        return (np.arange(n) * increment + offset).astype(dtype)
    return node[...].astype(dtype)


def _unit(node: Any) -> str:
    unit = node.attrs.get("unit", "")
    return unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
