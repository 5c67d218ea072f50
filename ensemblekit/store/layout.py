"""The layout of a file: the schema of one of ours and where its datasets stand, or the fields of somebody else's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

from ensemblekit.errors import StoreDamagedError, StoreError
from ensemblekit.store import guarded
from ensemblekit.store.closing import open_record
from ensemblekit.store.datasets import Dataset, Identity, locate
from ensemblekit.store.foreign import Foreign, foreign_in
from ensemblekit.store.hdf5 import opened
from ensemblekit.store.schema import CLOSED, CONSTANTS, LARGEST_SCHEMA, PLACES, SCHEMA, SCHEMA_SUM, Column, Schema


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
            return foreign_in(f, path)
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
                datasets[column.path] = _fitting(path, column, locate(f, column.path, raw, stat.st_size, clock in places))
        closed = f[CLOSED]
        if closed.dtype != np.dtype("<u8") or closed.shape != open_record(len(schema.clocks), schema.format).shape:
            raise StoreDamagedError(f"{path}: {CLOSED!r} is {closed.dtype} of shape {closed.shape}, not the counts "
                                    "of its clocks")
        datasets[CLOSED] = Dataset(CLOSED, closed.shape, closed.dtype, "", closed.id.get_offset(), 8, closed.shape[0],
                                   None)
        return Layout(path, schema, datasets, identity, places)


def _fitting(path: str, column: Column, dataset: Dataset) -> Dataset:
    """The dataset of a column, or a StoreDamagedError where it is not what the description says."""
    if dataset.shape[1:] != column.shape or len(dataset.shape) != len(column.shape) + 1 or dataset.dtype != column.dtype:
        raise StoreDamagedError(f"{path}: {column.path!r} is {dataset.dtype} of shape {dataset.shape}; the description of the "
                                f"store says {column.dtype} of (snapshots, {', '.join(map(str, column.shape))})")
    return dataset


def read_constants(path: str, schema: Schema) -> dict[str, np.ndarray]:
    """The arrays of a run that do not change with time, from its first file. Raises StoreDamagedError."""
    constants = {}
    with opened(path) as f:
        for name, digest in (schema.constants or {}).items():
            if f"{CONSTANTS}/{name}" not in f:
                raise StoreDamagedError(f"{path}: the constant {name!r} that its description names is missing")
            constants[name] = f[f"{CONSTANTS}/{name}"][...]
            if xxhash.xxh3_64_intdigest(constants[name].tobytes()) != digest:
                raise StoreDamagedError(f"{path}: the constant {name!r} is not what was written")
    return constants
