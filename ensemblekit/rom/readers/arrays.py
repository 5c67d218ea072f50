"""numpy's own files: .npy (mapped, never read whole) and .npz."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.lib.format import open_memmap, read_array_header_1_0, read_array_header_2_0, read_magic

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.files import most_bytes
from ensemblekit.parts import TIME_NAMES
from ensemblekit.rom.readers.reader import NUMBER, Held, Options, chosen
from ensemblekit.source import Field


def open_npy(path: str, options: Options, one_of_many: bool = False) -> Held:
    """One array, snapshots along `snapshot_axis` (0); its field is named after the file (without number in a series)."""
    name = _without_number(path) if one_of_many else os.path.splitext(os.path.basename(path))[0]
    chosen(options.fields, [name], path)
    axis = options.snapshot_axis or 0
    values = load_npy(axis, path, name)
    return Held(path, {name: Field(values.shape[1:], values.dtype.newbyteorder("="))}, len(values), None, "",
                partial(load_npy, axis))


def load_npy(axis: int | None, path: str, name: str) -> np.ndarray:
    """Mapped, snapshots along axis 0; with axis None the whole is one snapshot."""
    try:
        with open(path, "rb") as file:
            _header(file)
        values = open_memmap(path, mode="r")        # never unpickles
    except Exception as error:      # the parser of its header raises whatever it trips over
        raise SnapshotFileError(path, f"cannot be read as .npy, or is cut short ({error})") from error
    if not values.size:
        raise SnapshotFileError(path, f"holds no numbers: its shape is {values.shape}")
    return along(0, values[None], path) if axis is None else along(axis, values, path)


def along(axis: int, values: np.ndarray, path: str) -> Any:
    """The array with its snapshots along axis 0."""
    if not values.ndim or not -values.ndim <= axis < values.ndim:
        raise InputError(f"{path}: snapshot_axis={axis} of an array of shape {values.shape}")
    if values.dtype.kind not in "biufc":
        raise SnapshotFileError(path, f"holds no numbers but {values.dtype}")
    return np.moveaxis(values, axis, 0)


def open_npz(path: str, options: Options) -> Held:
    """Several arrays with snapshots along `snapshot_axis` (0), and their times where one is named "time" or "t"."""
    try:
        with zipfile.ZipFile(path) as file:
            arrays = {member.filename.removesuffix(".npy"): values for member in _members(file, path)
                      if (values := _member(file, member)) is not None}
    except SnapshotFileError:
        raise
    except Exception as error:      # zipfile, zlib and numpy each raise their own
        raise SnapshotFileError(path, f"cannot be read as .npz, or is cut short ({error})") from error
    return held(path, arrays, options, options.snapshot_axis or 0)


def _members(file: zipfile.ZipFile, path: str) -> Iterator[zipfile.ZipInfo]:
    """The arrays of a .npz, those refused that say they are larger than the file's bytes can be unpacked to."""
    packed = total = 0
    for member in file.infolist():
        if not member.filename.endswith(".npy"):
            continue
        packed, total = packed + member.compress_size, total + member.file_size
        if packed > os.path.getsize(path) or total > most_bytes(path):
            raise SnapshotFileError(path, f"its array {member.filename.removesuffix('.npy')!r} says it has {member.file_size} "
                                          f"bytes, and those before it {total - member.file_size}, where the file has "
                                          f"{os.path.getsize(path)}; it is not read")
        yield member


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns follow each other, and type of an array whose .npy begins here."""
    version = read_magic(file)
    shape, by_columns, dtype = (read_array_header_1_0 if version == (1, 0) else read_array_header_2_0)(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    return shape, by_columns, dtype


def _member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray | None:
    """An array of numbers; None where it holds other things, which are not looked at: objects are never unpickled."""
    with file.open(member) as opened:
        shape, by_columns, dtype = _header(opened)
        if dtype.kind not in "biufc":
            return None
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > member.file_size:
            raise ValueError(f"{member.filename} says it has the shape {shape}, and has {member.file_size} bytes")
        data = bytearray(opened.read(nbytes))
        if len(data) < nbytes or opened.read(1):        # which also compares the checksum
            raise ValueError(f"{member.filename} has not the {nbytes} bytes of its shape {shape}")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


def held(path: str, arrays: Mapping[str, np.ndarray], options: Options, axis: int) -> Held:
    """A reader of arrays in memory: those that share the number of snapshots of the first that is asked for."""
    numeric = {name: x for name, x in arrays.items() if x.dtype.kind in "biufc" and x.ndim and x.size}
    times = next((np.asarray(numeric[name], np.float64).ravel() for name in TIME_NAMES
                  if name in numeric and numeric[name].size == max(numeric[name].shape)), None)
    spaces = {name: x for name, x in numeric.items() if not (name in TIME_NAMES and times is not None)}
    names = chosen(options.fields, spaces, path)
    candidates = {name: along(axis, spaces[name], path) for name in names}
    if times is not None and options.fields is None:
        fitting = {name: x for name, x in candidates.items() if len(x) == len(times)}
        candidates = fitting or candidates
    n = len(max(candidates.values(), key=lambda x: x.size))
    if options.fields is None:
        candidates = {name: x for name, x in candidates.items() if len(x) == n}
    counts = {name: len(x) for name, x in candidates.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{path}: the fields differ in their number of snapshots along axis {axis}: {counts}")
    if times is not None and len(times) != n:
        times = None
    fields = {name: Field(x.shape[1:], x.dtype.newbyteorder("=")) for name, x in candidates.items()}
    return Held(path, fields, n, times, "", partial(of, candidates))


def of(arrays: Mapping[str, np.ndarray], path: str, name: str) -> np.ndarray:
    return arrays[name]


def open_snapshot(path: str, options: Options) -> Held:
    """A .npy that is one snapshot of a series; the field is named after the file without its number."""
    name = _without_number(path)
    chosen(options.fields, [name], path)
    values = load_one(path, name)
    return Held(path, {name: Field(values.shape[1:], values.dtype.newbyteorder("="))}, 1, None, "", load_one)


def _without_number(path: str) -> str:
    stem = os.path.splitext(os.path.basename(path))[0]
    return re.sub(rf"[-_.]*(?:{NUMBER.pattern})[-_.]*", "_", stem).strip("_-.") or "values"


def load_one(path: str, name: str) -> np.ndarray:
    return load_npy(None, path, name)
