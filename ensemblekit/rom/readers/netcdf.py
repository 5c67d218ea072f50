"""NetCDF: classic files through scipy, NetCDF-4 (which is HDF5) as they are. Missing values become NaN."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.files import most_bytes
from ensemblekit.rom.mesh import Mesh
from ensemblekit.rom.readers.reader import Options, chosen, known_times, lean
from ensemblekit.source import Field
from ensemblekit.store.hdf5 import opened

TIME_DIMENSIONS = ("time", "t", "Time", "times", "TIME")


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """One variable's axes and how its numbers are packed."""

    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attributes: Mapping[str, Any]

    @property
    def unpacked(self) -> np.dtype:
        """floating where numbers are scaled or may be missing."""
        scale = [self.attributes[k] for k in ("scale_factor", "add_offset") if k in self.attributes]
        if scale:
            return np.result_type(np.float32, *[np.asarray(s).dtype for s in scale])
        if self.dtype.kind in "iu" and ({"_FillValue", "missing_value"} & set(self.attributes)):
            return np.dtype("f8") if self.dtype.itemsize > 2 else np.dtype("f4")
        return self.dtype.newbyteorder("=")

    def unpack(self, values: np.ndarray) -> np.ndarray:
        dtype = self.unpacked
        missing = np.zeros(values.shape, bool)
        for key in ("_FillValue", "missing_value"):
            if key in self.attributes:
                for mark in np.atleast_1d(np.asarray(self.attributes[key])):
                    missing |= values == mark
        out = values.astype(dtype)
        if "scale_factor" in self.attributes:
            out *= np.asarray(self.attributes["scale_factor"]).astype(dtype).reshape(())
        if "add_offset" in self.attributes:
            out += np.asarray(self.attributes["add_offset"]).astype(dtype).reshape(())
        if missing.any() and dtype.kind == "f":
            out[missing] = np.nan
        return out


@dataclass(frozen=True, eq=False)
class NetCDF:
    """The variables of one file that have the time dimension."""

    path: str
    classic: bool
    variables: Mapping[str, Variable]
    axes: Mapping[str, int]
    n: int
    times: np.ndarray | None
    time_unit: str
    on: Mesh | None = None
    external: bool = False
    tiles: bool = False
    epoch: str = ""
    """What times are counted from, as the file says it ("1900-01-01"), and the calendar: "1900-01-01 noleap"."""
    __getstate__ = lean

    @property
    def fields(self) -> Mapping[str, Field]:
        return {name: Field(tuple(s for k, s in enumerate(v.shape) if k != self.axes[name]), v.unpacked,
                            text(v.attributes.get("units", ""))) for name, v in self.variables.items()}

    def mesh(self) -> Mesh | None:
        return self.on

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        found = {}
        with _datasets(self.path, self.classic, self.external) as get:
            for name in names:
                axis = self.axes[name]
                key = (*[slice(None)] * axis, slice(rows.start, rows.stop, rows.step))
                try:
                    values = np.array(get(name)[key])
                except (OSError, ValueError, IndexError) as error:
                    raise SnapshotFileError(self.path, f"snapshots {rows.start} to {rows.stop - 1} cannot be read: "
                                                       f"{error}") from error
                found[name] = self.variables[name].unpack(np.moveaxis(values, axis, 0))
        return found


@contextmanager
def _datasets(path: str, classic: bool, external: bool) -> Any:
    if classic:
        from scipy.io import netcdf_file

        with netcdf_file(path, "r", mmap=True) as file:     # mapped: only the snapshots asked for are read
            yield lambda name: file.variables[name].data
    else:
        with opened(path, external) as f:
            f._look.asked = True
            yield lambda name: f[name]


def open_netcdf(path: str, options: Options) -> NetCDF:
    """The variables over the time dimension: the unlimited one, or one that is called time."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head[:3] == b"CDF" and head[3:4] in b"\x01\x02":
        classic, variables, unlimited, get = True, *classic_header(path)
    elif head == b"\x89HDF\r\n\x1a\n":
        classic, variables, unlimited, get = False, *_hdf5(path, options.external)
    else:
        raise SnapshotFileError(path, "is not a NetCDF file of version 3 or 4, or is cut short")
    dimension = next((d for d in TIME_DIMENSIONS if any(d in v.dimensions for v in variables.values())), unlimited)
    if options.snapshot_axis is not None:
        axes = {name: options.snapshot_axis % len(v.dimensions) for name, v in variables.items() if v.dimensions}
    elif dimension is None:
        raise InputError(f"{path}: no dimension is called {TIME_DIMENSIONS[0]!r} and none is unlimited; say snapshot_axis=. "
                         f"The variables are { {name: v.dimensions for name, v in variables.items()} }")
    else:
        axes = {name: v.dimensions.index(dimension) for name, v in variables.items() if dimension in v.dimensions}
    timed = variables.get(dimension) if dimension is not None else None
    present = [name for name in axes if name != dimension and not name.endswith(("_bnds", "_bounds"))
               and variables[name].dtype.kind in "biuf" and 0 not in variables[name].shape]
    if options.fields is None:
        largest = max((len(variables[name].dimensions) for name in present), default=0)
        present = [name for name in present if len(variables[name].dimensions) == largest] or present
    names = chosen(options.fields, present if options.fields is None else
                   [name for name in axes if variables[name].dtype.kind in "biuf" and 0 not in variables[name].shape], path)
    counts = {name: variables[name].shape[axes[name]] for name in names}
    if len(set(counts.values())) > 1:
        raise InputError(f"{path}: the fields differ in their number of snapshots: {counts}")
    times, unit, epoch = None, "", ""
    if timed is None and dimension is not None:
        timed = next((variables[name] for name in TIME_DIMENSIONS if name in variables
                      and variables[name].dimensions == (dimension,)), None)
    if timed is not None and timed.dimensions == (dimension,) and timed.dtype.kind in "iuf":
        times = timed.unpack(get[next(n for n, v in variables.items() if v is timed)]).astype(np.float64)
        unit, _, epoch = text(timed.attributes.get("units", "")).partition(" since ")
        unit, epoch = unit.strip(), f"{epoch.strip()} {text(timed.attributes.get('calendar', ''))}".strip() if epoch else ""
        times = known_times(times, path) if options.timed else None
    on = _grid([variables[name] for name in names], [axes[name] for name in names], variables, get)
    return NetCDF(path, classic, {name: variables[name] for name in names}, {name: axes[name] for name in names},
                  next(iter(counts.values())), times, unit, on.with_fields(dict.fromkeys(names, "point")) if on else None,
                  options.external, epoch=epoch)


def _grid(fields: Sequence[Variable], axes: Sequence[int], variables: Mapping[str, Variable],
          values: Mapping[str, np.ndarray]) -> Mesh | None:
    """The mesh of coordinate variables: latitude by longitude on the unit sphere, or x, y, z; None where there are none."""
    dimensions = {tuple(d for k, d in enumerate(v.dimensions) if k != axis) for v, axis in zip(fields, axes, strict=True)}
    if len(dimensions) != 1:
        return None
    (names,) = dimensions
    if not 1 <= len(names) <= 3 or any(name not in values or variables[name].dimensions != (name,) for name in names):
        return None
    lines = [np.asarray(values[name], np.float64) for name in names]
    if any(len(x) < 2 or not ((np.diff(x) > 0).all() or (np.diff(x) < 0).all()) for x in lines):
        return None
    kinds = [_direction(name, variables[name]) for name in names]
    if kinds == ["lat", "lon"]:
        return _sphere(*lines)
    if all(kind == "length" for kind in kinds):
        return Mesh.rectilinear(*lines[::-1])
    return None


def _direction(name: str, variable: Variable) -> str:
    unit = text(variable.attributes.get("units", "")).lower()
    if unit.startswith("degrees_n") or unit.startswith("degree_n") or name.lower() in ("lat", "latitude"):
        return "lat"
    if unit.startswith("degrees_e") or unit.startswith("degree_e") or name.lower() in ("lon", "longitude"):
        return "lon"
    if unit in ("m", "km", "cm", "mm", "metre", "meter", "meters", "metres"):
        return "length"
    return "length" if name in ("x", "y", "z") and unit in ("", "1") else ""


def _sphere(lat: np.ndarray, lon: np.ndarray) -> Mesh:
    """Points on the unit sphere; each weighs as the box of latitude and longitude around it, which the cosine approximates."""
    phi, theta = np.deg2rad(lat), np.deg2rad(lon)
    grid = np.stack([np.cos(phi)[:, None] * np.cos(theta), np.cos(phi)[:, None] * np.sin(theta),
                     np.sin(phi)[:, None] * np.ones_like(theta)], -1)
    middle = (phi[1:] + phi[:-1]) / 2
    edges = np.clip(np.concatenate([[2 * phi[0] - middle[0]], middle, [2 * phi[-1] - middle[-1]]]), -np.pi / 2, np.pi / 2)
    heights = np.abs(np.diff(np.sin(edges)))
    between = np.abs(np.diff(theta))
    widths = (np.append(between, between[-1]) + np.append(between[0], between)) / 2
    areas = np.maximum(heights, 1e-12)[:, None] * widths
    return Mesh.structured(grid, given_point_volumes=areas.ravel())


def classic_header(path: str) -> tuple[dict[str, Variable], str | None, dict[str, np.ndarray]]:
    """The variables of a classic file, the unlimited dimension, and the values of those along one dimension.

    Raises SnapshotFileError where the file does not hold what its header says.
    """
    from scipy.io import netcdf_file

    if os.path.getsize(path) > most_bytes(path):
        raise SnapshotFileError(path, f"says it has {os.path.getsize(path)} bytes, most of them holes; it is not read")
    try:
        with netcdf_file(path, "r", mmap=True) as file:
            variables = {name: Variable(tuple(v.dimensions), tuple(v.shape), v.data.dtype,
                                        {k: x for k, x in v._attributes.items()}) for name, v in file.variables.items()}
            unlimited = next((name for name, size in file.dimensions.items() if size is None), None)
            small = {name: np.array(v.data) for name, v in file.variables.items() if len(v.dimensions) == 1}
    except Exception as error:      # scipy's parser raises whatever it trips over
        raise SnapshotFileError(path, f"cannot be read as NetCDF, or is cut short ({type(error).__name__}: {error})") from error
    return variables, unlimited, small


def _hdf5(path: str, external: bool) -> tuple[dict[str, Variable], str | None, dict[str, np.ndarray]]:
    variables, small, unlimited = {}, {}, None
    with opened(path, external) as f:
        names: dict[int, str] = {}
        for name, node in f.items():
            if getattr(node, "dtype", None) is None:
                continue
            if b"DIMENSION_SCALE" in bytes(node.attrs.get("CLASS", b"")) and "_Netcdf4Dimid" in node.attrs:
                names[int(node.attrs["_Netcdf4Dimid"])] = name
        for name, node in f.items():
            if getattr(node, "dtype", None) is None or text(node.attrs.get("NAME", "")).startswith("This is a netCDF dim"):
                continue
            dimensions = []
            listed = node.attrs.get("DIMENSION_LIST")
            for k in range(node.ndim):
                label = f"{name}:{k}"
                if listed is not None and len(listed[k]):
                    label = f[listed[k][0]].name.strip("/")
                elif listed is None and node.ndim == 1 and "CLASS" in node.attrs:
                    label = name
                dimensions.append(label)
                if node.maxshape[k] is None and unlimited is None:
                    unlimited = label
            keep = {k: node.attrs[k] for k in ("units", "_FillValue", "missing_value", "scale_factor", "add_offset", "calendar")
                    if k in node.attrs}
            variables[name] = Variable(tuple(dimensions), node.shape, node.dtype, keep)
            if node.ndim == 1 and node.dtype.kind in "biuf":
                small[name] = node[...]
    return variables, unlimited, small


def text(x: Any) -> str:
    return x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x)
