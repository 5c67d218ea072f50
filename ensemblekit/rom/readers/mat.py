"""MATLAB's files: version 4 to 7.2 by their formats, 7.3 (which is HDF5) read as MATLAB shows it."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.files import most_bytes
from ensemblekit.foreign import AnyArray
from ensemblekit.parts import TIME_NAMES
from ensemblekit.rom.readers.arrays import held
from ensemblekit.rom.readers.hdf5 import AlongAxis
from ensemblekit.rom.readers.matfile import arrays_in
from ensemblekit.rom.readers.reader import Options, Reader, chosen
from ensemblekit.source import Field
from ensemblekit.store.hdf5 import opened


def open_mat(path: str, options: Options) -> Reader:
    """Arrays with snapshots along `snapshot_axis`; by default the axis as long as the time vector, else the last."""
    with open(path, "rb") as file:
        head = file.read(128)
    if b"MATLAB 7.3" in head or head[:8] == b"\x89HDF\r\n\x1a\n":
        return _open_hdf5(path, options)
    try:
        arrays = dict(arrays_in(memoryview(np.memmap(path, np.uint8, "r").data), most_bytes(path)))
    except (ValueError, OSError, struct.error, zlib.error, MemoryError) as error:
        raise SnapshotFileError(path, f"cannot be read as a .mat file, or is cut short ({error})") from error
    return held(path, arrays, options, _axis({name: x.shape for name, x in arrays.items()}, options))


def _axis(shapes: dict[str, tuple[int, ...]], options: Options) -> int:
    if options.snapshot_axis is not None:
        return options.snapshot_axis
    times = next((int(np.prod(shapes[name])) for name in TIME_NAMES if name in shapes), None)
    names = options.fields or [name for name in shapes if name not in TIME_NAMES]
    largest = max((shapes[name] for name in names if name in shapes), key=np.prod, default=())
    if times is not None:
        fits = [k for k, size in enumerate(largest) if size == times]
        if len(fits) == 1:
            return fits[0] if fits[0] != len(largest) - 1 else -1
    return -1


def _open_hdf5(path: str, options: Options) -> AlongAxis:
    with opened(path, options.external) as f:
        shapes, dtypes = {}, {}
        for name, node in f.items():
            if name.startswith("#") or not isinstance(node, AnyArray) or not node.shape:      # groups are structs
                continue
            dtype = node.dtype
            if dtype.kind in "biuf" or dtype.names == ("real", "imag"):
                shapes[name] = node.shape[::-1]
                dtypes[name] = np.dtype("c16") if dtype.names else dtype
        axis = _axis(shapes, options)
        times = next((f[name][...].ravel().astype(np.float64) for name in TIME_NAMES if name in shapes
                      and int(np.prod(shapes[name])) == max(shapes[name])), None)
        names = chosen(options.fields, [n for n in shapes if not (n in TIME_NAMES and times is not None)], path)
        where = {}
        for name in names:
            if not -len(shapes[name]) <= axis < len(shapes[name]):
                raise InputError(f"{path}: snapshot_axis={axis} of {name!r} of shape {shapes[name]}")
            where[name] = axis % len(shapes[name])
        counts = {name: shapes[name][where[name]] for name in names}
        n = len(times) if times is not None and len(times) in counts.values() else max(
            names, key=lambda name: np.prod(shapes[name])) and counts[max(names, key=lambda name: np.prod(shapes[name]))]
        if options.fields is None:
            names = [name for name in names if counts[name] == n]
        elif len(set(counts.values())) > 1:
            raise InputError(f"{path}: the fields differ in their number of snapshots: {counts}")
        fields = {name: Field(tuple(s for k, s in enumerate(shapes[name]) if k != where[name]),
                              dtypes[name].newbyteorder("=")) for name in names}
        if times is not None and len(times) != n:
            times = None
        # MATLAB's first axis is HDF5's last
        return AlongAxis(path, fields, int(n), times, {name: len(shapes[name]) - 1 - where[name] for name in names},
                         turned=True, external=options.external)
