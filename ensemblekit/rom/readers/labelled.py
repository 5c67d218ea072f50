"""Files that xarray reads: NetCDF 3 and 4, Zarr, GRIB; and arrays of xarray that are there already.

Coordinates, units, packed numbers, missing values and calendars are xarray's to decode. What a file may make it read is
looked at before: nothing outside the file, nothing that its bytes do not justify.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.errors import EnsemblekitError, InputError, MissingExtraError, SnapshotFileError, UnknownFieldError
from ensemblekit.files import why_unreadable
from ensemblekit.intake_labels import LabelledArrays, Labels, is_dataset, is_lazy, labelled_arrays
from ensemblekit.rom.grid import grid_of
from ensemblekit.rom.mesh import Mesh
from ensemblekit.rom.readers.classic import check_classic
from ensemblekit.rom.readers.reader import MissingFieldError, Options, known_times
from ensemblekit.source import Field
from ensemblekit.source_labelled import edges_of_chunks, loaded
from ensemblekit.store.hdf5 import check_inside

GRIB = (".grib", ".grb", ".grib2", ".grb2")
ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata", ".zarray")
CLASSIC, CLASSIC_64, HDF5 = (b"CDF\x01", b"CDF\x02"), b"CDF\x05", b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class LabelledReader:
    """Snapshots of one file that xarray reads, or of one DataArray or Dataset."""

    path: str
    given: LabelledArrays
    timed: bool = True

    @property
    def fields(self) -> Mapping[str, Field]:
        return {name: Field(tuple(x.shape[1:]), np.dtype(x.dtype).newbyteorder("="), self.given.units[name])
                for name, x in self.given.arrays.items()}

    @property
    def n(self) -> int:
        return int(next(iter(self.given.arrays.values())).shape[0])

    @property
    def times(self) -> np.ndarray | None:
        return self.given.times

    @property
    def time_unit(self) -> str:
        return self.given.time_unit

    @property
    def epoch(self) -> str:
        """What times are counted from, and the calendar: "1900-01-01 noleap"."""
        labels = self.given.labels
        return f"{labels.epoch} {labels.calendar}".strip() if labels.epoch else ""

    @property
    def labels(self) -> Labels:
        return self.given.labels

    @property
    def tiles(self) -> bool:
        return not any(map(is_lazy, self.given.arrays.values()))

    def chunk_edges(self, names: Sequence[str]) -> list[int]:
        """Where chunks begin and end along the snapshots, of the field whose chunks hold the most."""
        return max((edges_of_chunks(self.given.arrays[name]) for name in names), key=lambda edges: -len(edges))

    def mesh(self) -> Mesh | None:
        return grid_of(self.given.labels, tuple(self.given.arrays))

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        cut = slice(rows.start, rows.stop, rows.step)
        try:
            values = loaded({name: self.given.arrays[name][cut] for name in names})
        except SnapshotFileError as error:
            raise SnapshotFileError(self.path, f"snapshots {rows.start} to {rows.stop - 1}: {error.problem}") from error
        return values if tile is None else {name: x.reshape(len(x), -1)[:, tile] for name, x in values.items()}


def open_labelled(path: str, options: Options) -> LabelledReader:
    """The variables of a file over its time dimension, looked at and not read."""
    with opening(path):
        dataset = opened(path, options)
    return reader_of(dataset, path, options)


def reader_of(x: Any, path: str, options: Options) -> LabelledReader:
    """A reader of a DataArray or Dataset.

    Arguments:
        path: what it is called in errors.
    """
    time = options.time
    if options.snapshot_axis is not None:
        variables = [x] if not is_dataset(x) else [one for one in x.data_vars.values() if one.dims]
        if options.fields is not None and is_dataset(x):
            variables = [x[name] for name in options.fields if name in x.data_vars]
        largest = max(variables, key=lambda one: one.ndim, default=None)
        if largest is None or not -largest.ndim <= options.snapshot_axis < largest.ndim:
            raise InputError(f"{path}: snapshot_axis={options.snapshot_axis} of variables with the axes "
                             f"{ {str(one.name): one.dims for one in variables} }")
        time = str(largest.dims[options.snapshot_axis])
    elif time is None and is_dataset(x):
        time = _unlimited(x)
    try:
        given = labelled_arrays(x, time, options.fields, options.area)
    except UnknownFieldError as error:
        raise MissingFieldError(error.name, error.present, path) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except EnsemblekitError:
        raise
    except Exception as error:      # coordinates are read here
        raise SnapshotFileError(path, f"its coordinates cannot be read ({type(error).__name__}: {error})") from error
    clock = given.labels.time
    if options.timed and given.times is None and clock in x.coords and x[clock].dtype.kind in "iuf":
        known_times(x[clock].to_numpy().astype(np.float64), path)       # says which are missing
    if not options.timed:
        given = replace(given, times=None, time_unit="", labels=replace(given.labels, epoch="", calendar=""))
    return LabelledReader(path, given, options.timed)


def _unlimited(dataset: Any) -> str | None:
    """The unlimited dimension of a file, where nothing else is called a time."""
    from ensemblekit.intake_labels import snapshot_axis

    unlimited = [str(name) for name in dataset.encoding.get("unlimited_dims", ()) if name in dataset.sizes]
    try:
        snapshot_axis(dict(dataset.sizes), {str(k): v for k, v in dataset.variables.items()})
    except InputError:
        return unlimited[0] if len(unlimited) == 1 else None
    return None


@contextmanager
def opening(path: str) -> Any:
    """Whatever goes wrong while a file is opened leaves as a SnapshotFileError that names it."""
    try:
        yield
    except EnsemblekitError:
        raise
    except ImportError as error:
        raise MissingExtraError(str(error.name or "xarray"), "xarray") from error
    except Exception as error:      # each backend raises its own
        raise SnapshotFileError(path, f"cannot be read, or is cut short ({type(error).__name__}: {error})") from error


def opened(path: str, options: Options) -> Any:
    """The Dataset of a file, its numbers unread: times stay numbers, all else is decoded."""
    try:
        import xarray
    except ImportError as error:
        raise MissingExtraError("xarray", "xarray") from error
    engine, more = _engine(path, options.external)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*consolidated metadata.*")
        return xarray.open_dataset(path, engine=engine, decode_times=False, decode_timedelta=False, decode_coords="all",
                                   cache=False, chunks=None, **more)


def _engine(path: str, external: bool) -> tuple[str, dict[str, Any]]:
    """The backend of xarray for a file, which is looked at first, and the options that go with it."""
    if is_zarr(path):
        _check("zarr", "xarray")
        return "zarr", {}
    if "://" in path:
        _check("h5netcdf", "xarray")
        return "h5netcdf", {}
    why = why_unreadable(path)
    if why:
        raise SnapshotFileError(path, why)
    if path.lower().endswith(GRIB):
        _check("cfgrib", "grib")
        return "cfgrib", {"backend_kwargs": {"indexpath": ""}}
    with open(path, "rb") as file:
        head = file.read(8)
    if head[:4] in CLASSIC:
        check_classic(path)
        return "scipy", {}
    if head[:4] == CLASSIC_64:
        try:
            _check("netCDF4", "xarray")
        except MissingExtraError as error:
            raise SnapshotFileError(path, "is NetCDF of the kind CDF-5, which needs the package netCDF4 (pip install netCDF4); "
                                          "or turn it into NetCDF 4: nccopy -k nc4") from error
        return "netcdf4", {}
    if head == HDF5:
        _check("h5netcdf", "xarray")
        if not external:
            check_inside(path)
        return "h5netcdf", {"phony_dims": "access"}
    raise SnapshotFileError(path, "is not a NetCDF file of version 3 or 4, or is cut short")


def _check(package: str, extra: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra)


def is_zarr(path: str) -> bool:
    """Whether a folder (or an address) is of Zarr, by its name or what is in it."""
    if path.rstrip("/").lower().endswith((".zarr", ".zarr.zip")):
        return True
    return os.path.isdir(path) and any(os.path.exists(os.path.join(path, mark)) for mark in ZARR_MARKS)
