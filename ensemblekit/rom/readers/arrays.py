"""numpy's own files: .npy (mapped, never read whole) and .npz."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.rom.readers.reader import NUMBER, TIME_NAMES, Held, Options, chosen
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
        values = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise SnapshotFileError(path, f"cannot be read as .npy, or is cut short ({error})") from error
    return along(0, values[None], path) if axis is None else along(axis, values, path)


def along(axis: int, values: Any, path: str) -> Any:
    """The array with its snapshots along axis 0."""
    if not values.ndim or not -values.ndim <= axis < values.ndim:
        raise InputError(f"{path}: snapshot_axis={axis} of an array of shape {values.shape}")
    if values.dtype.kind not in "biufc":
        raise SnapshotFileError(path, f"holds no numbers but {values.dtype}")
    return np.moveaxis(values, axis, 0)


def open_npz(path: str, options: Options) -> Held:
    """Several arrays with snapshots along `snapshot_axis` (0), and their times where one is named "time" or "t"."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:      # zipfile, zlib and numpy each raise their own
        raise SnapshotFileError(path, f"cannot be read as .npz, or is cut short ({error})") from error
    return held(path, arrays, options, options.snapshot_axis or 0)


def held(path: str, arrays: Mapping[str, np.ndarray], options: Options, axis: int) -> Held:
    """A reader of arrays in memory: those that share the number of snapshots of the first that is asked for."""
    numeric = {name: x for name, x in arrays.items() if x.dtype.kind in "biufc" and x.ndim}
    times = next((np.asarray(numeric[name], np.float64).ravel() for name in TIME_NAMES
                  if name in numeric and numeric[name].size == max(numeric[name].shape)), None)
    spaces = {name: x for name, x in numeric.items() if not (name in TIME_NAMES and times is not None)}
    names = chosen(options.fields, spaces, path)
    found = {name: along(axis, spaces[name], path) for name in names}
    if times is not None and options.fields is None:
        fitting = {name: x for name, x in found.items() if len(x) == len(times)}
        found = fitting or found
    n = len(max(found.values(), key=lambda x: x.size))
    if options.fields is None:
        found = {name: x for name, x in found.items() if len(x) == n}
    counts = {name: len(x) for name, x in found.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{path}: the fields differ in their number of snapshots along axis {axis}: {counts}")
    if times is not None and len(times) != n:
        times = None
    fields = {name: Field(x.shape[1:], x.dtype.newbyteorder("=")) for name, x in found.items()}
    return Held(path, fields, n, times, "", partial(of, found))


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
