"""HDF5 of any kind that is no other format: a store of ours, H5MD, or plain datasets with snapshots along an axis."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.foreign import AnyArray
from ensemblekit.parts import TIME_NAMES
from ensemblekit.rom.readers.reader import Options, bookkeeping, chosen, known_times
from ensemblekit.source import Field
from ensemblekit.store.hdf5 import opened
from ensemblekit.store.store import Store
from ensemblekit.store.stored import StoredSource


def open_stored(path: str, options: Options) -> StoredSource:
    """The fields of a store, or of any H5MD or plain HDF5 file with snapshots along axis 0: mapped, not copied."""
    store = Store.open(path, external=options.external)
    clocks = store.clocks
    if options.fields is None:
        clock = max(clocks, key=lambda c: sum(store.all_fields[name].nbytes for name in clocks[c]))
        names = [name for name in clocks[clock] if not bookkeeping(name, store.all_fields[name].dtype)] or clocks[clock]
    else:
        names = chosen(options.fields, store.all_fields, path)
        used = {store.all_fields[name].clock for name in names}
        if len(used) > 1:
            raise InputError(f"{path}: the fields {names} differ in their number or times of snapshots; read them one by one")
        (clock,) = used
    source = store.clock(clock)
    table = source.table
    listed = [name for name, field in table.fields.items() if name.rpartition("/")[2] in TIME_NAMES and field.shape == ()
              and field.dtype.kind in "iuf"]
    if table.times is None and not store.run and listed and len(table.fields) > len(listed) and options.timed:
        times = known_times(np.asarray(store[listed[0]][:], np.float64), path, stacklevel=7)
        if times is not None and (np.diff(times) < 0).any():
            k = int(np.argmax(np.diff(times) < 0))
            warnings.warn(f"{path}: {listed[0]!r} runs backwards, from {times[k]:g} to {times[k + 1]:g}: snapshots are counted "
                          "instead. Independent runs are replicas, a file each", stacklevel=6)
        elif times is not None:
            table = replace(table, times=times, timed=True, time_unit=table.fields[listed[0]].unit)
            names = [name for name in names if name != listed[0] or options.fields is not None]
    return StoredSource(table, tuple(names), 0, table.n, 1, source.run)


def open_hdf5(path: str, options: Options) -> Any:
    if not options.snapshot_axis:
        return open_stored(path, options)
    with opened(path, options.external) as f:
        shapes: dict[str, tuple[Any, np.dtype]] = {}

        def visit(name: str, node: Any) -> None:
            if isinstance(node, AnyArray) and node.shape and node.dtype.kind in "biufc":
                shapes[name] = (node.shape, node.dtype)

        f.visititems(visit)
        times = {name: f[name][...].ravel() for name in shapes if name.rpartition("/")[2] in TIME_NAMES
                 and int(np.prod(shapes[name][0])) == max(shapes[name][0])}
    names = chosen(options.fields, [name for name in shapes if name not in times], path)
    axis = options.snapshot_axis
    fields, axes, counts = {}, {}, {}
    for name in names:
        shape, dtype = shapes[name]
        if not -len(shape) <= axis < len(shape):
            if options.fields is None:
                continue
            raise InputError(f"{path}: snapshot_axis={axis} of {name!r} of shape {shape}")
        axes[name] = axis % len(shape)
        counts[name] = shape[axes[name]]
        fields[name] = Field(tuple(s for k, s in enumerate(shape) if k != axes[name]), dtype.newbyteorder("="))
    if not fields:
        raise SnapshotFileError(path, f"no dataset has an axis {axis}")
    if len(set(counts.values())) > 1:
        if options.fields is not None:
            raise InputError(f"{path}: the fields differ in their number of snapshots: {counts}")
        n = counts[max(fields, key=lambda name: fields[name].size)]
        fields = {name: field for name, field in fields.items() if counts[name] == n}
    n = counts[next(iter(fields))]
    clock = next((np.asarray(t, np.float64) for t in times.values() if len(t) == n), None)
    return AlongAxis(path, fields, n, clock, axes, external=options.external)


@dataclass(frozen=True, eq=False)
class AlongAxis:
    """Plain datasets with snapshots along another axis than the first, and MATLAB's of version 7.3."""

    path: str
    fields: Mapping[str, Field]
    n: int
    times: np.ndarray | None
    axes: Mapping[str, int]
    turned: bool = False
    """Whether the axes of an item come in reverse, as MATLAB writes them."""
    time_unit: str = ""
    tiles: bool = False
    external: bool = False

    def mesh(self) -> None:
        return None

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        arrays = {}
        with opened(self.path, self.external) as f:
            f._look.asked = True
            for name in names:
                key = (*[slice(None)] * self.axes[name], slice(rows.start, rows.stop, rows.step))
                values = f[name][key]
                if values.dtype.names == ("real", "imag"):      # MATLAB's complex numbers
                    values = values["real"] + 1j * values["imag"]
                values = np.moveaxis(values, self.axes[name], 0)
                if self.turned:
                    values = values.transpose(0, *range(values.ndim - 1, 0, -1))
                arrays[name] = values.astype(self.fields[name].dtype, copy=False)
        return arrays
