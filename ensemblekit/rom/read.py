"""Snapshot files of any kind as a source: one file, a case, or a series, looked at without copying."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.foreign import AnyArray
from ensemblekit.intake_labels import Labels, is_labelled
from ensemblekit.parts import Order, check_order, natural_key, order_of
from ensemblekit.rom.file_series import NEK, SLACK, file_series
from ensemblekit.rom.file_source import FileSource, MeshedSource
from ensemblekit.rom.mesh import Mesh, mesh_of
from ensemblekit.rom.readers.labelled import GRIB, is_zarr, open_labelled, reader_of
from ensemblekit.rom.readers.reader import Options, Reader, check_readable
from ensemblekit.source import Field, SnapshotSource
from ensemblekit.source_clock import check_times
from ensemblekit.store.stored import StoredSource

ARRAYS = (".npy", ".npz", ".mat")
HDF5 = (".h5", ".hdf5", ".h5md", ".he5", ".vtkhdf", ".hdf")
NETCDF = (".nc", ".nc4", ".cdf", ".netcdf", ".nc3", *GRIB)
ZARR = (".zarr",)
NEK_LISTS = (".nek5000", ".nek")
NEK_OLD = re.compile(r"\.fld\d{2,}\Z", re.IGNORECASE)
FLUENT = re.compile(r"\.(cas|dat)(\.h5|\.gz)?\Z", re.IGNORECASE)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How the address of remote data begins, which xarray reads through fsspec."""
FOAM = (".foam", ".openfoam")


Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A path, a pattern, or a list of paths."""


def known() -> str:
    """The suffixes that ``read`` knows, for messages."""
    from ensemblekit.rom.readers import vtk

    names = [*ARRAYS, *HDF5, *NETCDF, *ZARR, ".f00001 (Nek5000)", *NEK_LISTS, *FOAM, "an OpenFOAM case folder", ".pvd",
             ".series", *vtk.SINGLE, *(s for s in vtk.TEMPORAL if s not in HDF5)]
    return ", ".join(names)


def read(path: Paths, fields: Sequence[str] | str | None = None, *, begin: float | None = None, end: float | None = None,
         step: int = 1, region: str | None = None, patch: str | None = None, zone: str | None = None, zero: bool = False,
         moving: bool = False, snapshot_axis: int | None = None, times: ArrayLike | None = None, time_unit: str | None = None,
         units: Mapping[str, str] | None = None, mesh: Mesh | Paths | None = None,
         external: bool = False, order: Order = "auto", time: str | None = None,
         weights: str | None = None) -> FileSource | MeshedSource:
    """Snapshot files as a source: nothing is copied, files are read when the source is.

    The suffix says the format: .npy .npz .mat; .h5 .h5md and other HDF5; with the extra ``xarray`` .nc (NetCDF 3 and 4) and
    .zarr, with ``grib`` .grib; Nek5000 field files; .vtkhdf; an OpenFOAM case folder (or a .foam file in it); with the extra
    ``cfd`` what VTK reads (.vtu .vti .vtr .vts .vtp .vtk and their parallel forms, .pvd, .series, EnSight .case, CGNS, Exodus,
    XDMF). A DataArray or Dataset of xarray is taken too, and read block by block where it is lazy.

    Arguments:
        path: a file, a folder, a pattern ("out/flow_*.vtu") or a list of files. Several files are one run, in order of
            the times that they know, else of the numbers in their names (flow_2 before flow_10); see order. Each .npy is one
            snapshot then, unless snapshot_axis says that it is a stack.
        fields: the fields to read; by default all that every snapshot has.
        begin, end: first and last time, both included (snapshot numbers from 0 where the files have no times).
        step: every so many snapshots of those.
        region: a mesh region of OpenFOAM, or a named block of VTK's data.
        patch: a boundary patch instead of the cells (or a named block).
        zone: a cell zone of OpenFOAM, a CGNS zone, or a named block.
        zero: read OpenFOAM's initial state, the folder 0/, too.
        moving: of an OpenFOAM case whose points move (but not its cells): take the fields cell by cell, with the places and
            volumes of constant/polyMesh. Modes then follow the cells; refused without it.
        snapshot_axis: the axis of snapshots in arrays. By default 0; in .mat files the axis as long as the time vector,
            else the last, as is MATLAB's custom; in NetCDF and Zarr the time dimension.
        time: name of the axis of the snapshots, of what names its axes; by default that of CF's time coordinate, or one
            called "time", "frame", "sample" and so on.
        weights: name of the variable with the areas of cells, for the inner product of ``pod``; by default that of CF's
            cell_measures, or one called cell_area, TAREA, areacella and so on; else the cosine of the latitude is taken.
        times, time_unit, units: where the files do not say them, or wrongly; units is field -> unit.
        mesh: a Mesh, or a file to take one from; for arrays that have none.
        order: "given" keeps the files of a list as they are listed; where their times then run backwards, snapshots are
            counted. By default a list in another order than that of time is sorted, with a warning.
        external: read also values that an HDF5 file keeps in other files, and follow its links into them: only for files
            you trust, as they may point at any file of yours.

    Each file's times are taken in its own unit and from its own epoch, and put on the clock of the first. Snapshots that a
    continued run wrote twice count once, with a warning, in one file as in several. Times come from the files, else from the
    one number in which their names differ. Cell data stays on cells: nothing is interpolated.

    Returns:
        a source with ``fields``, ``times``, ``mesh`` and ``read(start, stop)``; for ``rom.pod``, ``rom.average``,
        ``ek.reduce`` or ``rom.ingest``.

    Raises:
        SnapshotFileError: a file is missing, cut short, or of another mesh than the first; it is named.
        StoreError: the same of HDF5 files, and where one points to other files and `external` is not given.
        UnknownFieldError: lists the fields there are.  InputError: an unknown suffix lists those known.
        MissingExtraError: pyvista is not installed.
    """
    if step < 1 or step != int(step):
        raise InputError(f"step is a whole number above 0; got {step!r}")
    check_order(order)
    options = Options(_names_of(fields), region, patch, zone, snapshot_axis, zero, moving, external, times is None, time,
                      weights)
    given = mesh if mesh is None or isinstance(mesh, Mesh) else _mesh_from(mesh, external)
    return _between(_with_given(_opened(path, options, order), times, time_unit, units, given), begin, end, int(step))


def _names_of(fields: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """The fields that are asked for; None for all."""
    names = (fields,) if isinstance(fields, str) else None if fields is None else tuple(fields)
    if names is not None and not names:
        raise InputError("fields names at least one field; leave it out for all")
    return names


def _with_given(source: FileSource | MeshedSource, times: ArrayLike | None, time_unit: str | None,
                units: Mapping[str, str] | None, mesh: Mesh | None) -> FileSource | MeshedSource:
    """The source with what was said instead of, or beside, what the files say."""
    said: FileSource | MeshedSource
    if isinstance(source, MeshedSource):
        table = source.stored.table
        if times is not None:
            table = replace(table, times=check_times(times, table.n), timed=True)
        if time_unit is not None:
            table = replace(table, time_unit=time_unit)
        said = replace(source, stored=replace(source.stored, table=table), units=units, mesh=mesh or source.mesh,
                       dated=times is None and time_unit is None)
    else:
        said = replace(source, times=source.times if times is None else check_times(times, len(source)), on=mesh, units=units,
                       time_unit=source.time_unit if time_unit is None else time_unit)
    if mesh is not None:
        for name, field in said.fields.items():
            mesh.where(name, field.shape)
    return said


def _between(source: FileSource | MeshedSource, begin: float | None, end: float | None,
             step: int) -> FileSource | MeshedSource:
    n = len(source)
    if begin is None and end is None:       # without the times, which may be many
        return source if step == 1 else source.window(0, n, step)
    clock = source.times if source.times is not None else np.arange(n, dtype=np.float64)
    slack = SLACK * max(np.abs(clock[[0, -1]]).max(), 1e-300) if n else 0.0
    first = 0 if begin is None else int(np.searchsorted(clock, begin - slack, "left"))
    last = n if end is None else int(np.searchsorted(clock, end + slack, "right"))
    if n and first >= last:
        raise InputError(f"no snapshot lies between begin={begin} and end={end}; "
                         f"{'times' if source.times is not None else 'numbers'} go from {clock[0]:g} to {clock[-1]:g}")
    return source if (first, last, step) == (0, n, 1) else source.window(first, last, step)


def paths_of(path: Paths) -> list[str]:
    """The files meant by a path, a pattern or a list."""
    if isinstance(path, str | os.PathLike):
        text = os.fspath(path)
        if ADDRESS.match(text):
            return [text]
        if os.path.exists(text) or not glob.has_magic(text):
            if not os.path.exists(text) and os.path.splitext(text)[1].lower() not in FOAM:
                raise SnapshotFileError(text, "there is no such file")
            return [text]
        matches = sorted(glob.glob(text, recursive=True), key=natural_key)
        if not matches:
            raise SnapshotFileError(text, "no file matches this pattern")
        return [matches[k] for k in order_of(matches, tell=False)]
    if isinstance(path, Sequence) and path:
        paths = [os.fspath(p) for p in path]
        for one in paths:
            if not os.path.exists(one) and not ADDRESS.match(one):
                raise SnapshotFileError(one, "there is no such file")
        return paths
    raise InputError(f"read takes a path, a pattern or a list of paths; got {path!r}")


def kind_of(path: str) -> str:
    """The format of a file, by its name (and for HDF5 by what is in it)."""
    from ensemblekit.rom.readers import vtk

    suffix = os.path.splitext(path)[1].lower()
    if FLUENT.search(path):
        raise InputError(f"{path} is a FLUENT case or data file, whose fields stand by zone and by number; export them from "
                         "FLUENT as EnSight Case Gold or CGNS (File > Export > Solution Data), and read that")
    if NEK_OLD.search(path):
        raise InputError(f"{path} is of Nek5000's former format (.fld), which is not read; write field files of today's "
                         "(.f00001), and read those")
    if is_zarr(path):
        return "zarr"
    if os.path.isdir(path):
        inside = os.listdir(path)
        if "system" in inside or "constant" in inside or any(name.startswith("processor") for name in inside):
            return "foam"
        raise InputError(f"{path} is a folder, but no OpenFOAM case (it has no system/, constant/ or processor0/). For the "
                         f"files in it pass a pattern, {os.path.join(path, '*.vtu')!r}")
    if suffix in FOAM or os.path.basename(path) == "controlDict":
        return "foam"
    if NEK.search(path) or suffix in NEK_LISTS:
        return "nek"
    if suffix in ARRAYS:
        return suffix
    if suffix in NETCDF:
        return "netcdf"
    if suffix in HDF5:
        return "hdf5"
    if suffix in vtk.SINGLE or suffix in vtk.TEMPORAL or suffix in (".pvd", ".series"):
        return "vtk"
    raise InputError(f"{path}: the suffix {suffix or '(none)'} is not known. Known are {known()}. Other data: load it as a "
                     "numpy array and pass that")


def _opened(path: Any, options: Options, order: Order) -> FileSource | MeshedSource:
    """The snapshots of files, or of an array with labels, as these say."""
    if not isinstance(path, str | os.PathLike | list | tuple) and is_labelled(path):
        what = f"the {type(path).__name__}"
        return file_series([reader_of(path, what, options)], [what], order, False, options.timed)
    paths, by_hand = paths_of(path), not isinstance(path, str | os.PathLike)
    kinds = {kind_of(path) for path in paths}
    if len(kinds) > 1:
        raise InputError(f"the files are of several formats ({', '.join(sorted(kinds))}); read them one by one")
    (kind,) = kinds
    for one in paths if kind not in ("foam", "zarr") else ():
        if not ADDRESS.match(one):
            check_readable(one)
    readers: list[Reader] = []
    if kind == "nek":
        from ensemblekit.rom.readers.nek import open_nek

        readers = [open_nek(paths, options)]
    elif kind == "vtk":
        from ensemblekit.rom.readers import vtk

        suffixes = {os.path.splitext(path)[1].lower() for path in paths}
        apart = len(paths) > 1 and suffixes & {*vtk.TEMPORAL, ".pvd", ".series"}
        readers = vtk.of_one_run([vtk.open_vtk([path], options) for path in paths]) if apart else [
            vtk.open_vtk(paths, options)]
    elif kind == "hdf5":
        opened = [_open_hdf5(path, options) for path in paths]
        if len(opened) == 1 and isinstance(opened[0], StoredSource):
            return MeshedSource(opened[0], mesh_of(opened[0]))
        from ensemblekit.rom.readers import vtk

        readers = vtk.of_one_run([StoredReader(path, x) if isinstance(x, StoredSource) else x
                                  for path, x in zip(paths, opened, strict=True)])
    else:
        readers = [_open_one(kind, path, options, len(paths) > 1) for path in paths]
    return file_series(readers, paths, order if options.timed else "given", by_hand, options.timed)


def _open_one(kind: str, path: str, options: Options, one_of_many: bool) -> Reader:
    if kind == "foam":
        from ensemblekit.rom.readers.openfoam import open_foam

        return open_foam(path, options)
    if kind in ("netcdf", "zarr"):
        return open_labelled(path, options)
    if kind == ".mat":
        from ensemblekit.rom.readers.mat import open_mat

        return open_mat(path, options)
    from ensemblekit.rom.readers import arrays

    if kind == ".npz":
        return arrays.open_npz(path, options)
    if one_of_many and options.snapshot_axis is None:
        return arrays.open_snapshot(path, options)
    return arrays.open_npy(path, options, one_of_many)


def _open_hdf5(path: str, options: Options) -> Any:
    from ensemblekit.rom.readers.hdf5 import open_hdf5
    from ensemblekit.rom.readers.vtkhdf import open_vtkhdf
    from ensemblekit.store.hdf5 import opened
    from ensemblekit.store.schema import SCHEMA

    with open(path, "rb") as file:
        if file.read(4) == b"\x0e\x03\x13\x01":
            raise InputError(f"{path} is of HDF version 4, which is another format than HDF5 and is not read; turn it into "
                             "HDF5 (h4toh5) or NetCDF (ncdump and ncgen, cdo -f nc4 copy), and read that")
    with opened(path, options.external) as f:
        vtkhdf = "VTKHDF" in f and SCHEMA not in f and not isinstance(f["VTKHDF"], AnyArray)
        if SCHEMA not in f and "settings" in f and ("results" in f or "meshes" in f):
            raise InputError(f"{path} is a FLUENT case or data file, whatever its name; export its fields from FLUENT as "
                             "EnSight Case Gold or CGNS, and read that")
    if vtkhdf:
        reader = open_vtkhdf(path, options)
        if reader is not None:
            return reader
        from ensemblekit.rom.readers.vtk import open_vtk

        return open_vtk([path], options)
    return open_hdf5(path, options)


@dataclass(frozen=True, eq=False)
class StoredReader:
    """A store or HDF5 file as one of several files."""

    path: str
    stored: StoredSource
    tiles: bool = False

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.stored.fields

    @property
    def n(self) -> int:
        return len(self.stored)

    @property
    def times(self) -> np.ndarray | None:
        return self.stored.times

    @property
    def time_unit(self) -> str:
        return self.stored.time_unit

    @property
    def labels(self) -> Labels | None:
        return self.stored.labels

    @property
    def epoch(self) -> str:
        """As `LabelledReader.epoch`."""
        labels = self.stored.labels
        return f"{labels.epoch} {labels.calendar}".strip() if labels is not None and labels.epoch else ""

    def mesh(self) -> Mesh | None:
        return mesh_of(self.stored)

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        window = replace(self.stored, names=tuple(names)).window(rows.start, rows.stop, rows.step)
        return MeshedSource(window, None).read()


def _mesh_from(path: Paths, external: bool) -> Mesh:
    source = read(path, external=external)
    if source.mesh is None:
        raise InputError(f"{path} holds no mesh")
    return source.mesh


def as_snapshots(x: Any, **options: Any) -> SnapshotSource:
    """What it is already (a source), or the files of that name; a DataArray or Dataset where there are options."""
    if isinstance(x, str | os.PathLike) or (isinstance(x, list | tuple) and x and all(
            isinstance(p, str | os.PathLike) for p in x)) or (is_labelled(x) and options):
        return read(x, **options)
    return x
