"""What VTK reads, through pyvista: its own formats, .pvd, EnSight, CGNS, Exodus and XDMF."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from xml.etree import ElementTree

import numpy as np

from ensemblekit.errors import SnapshotFileError
from ensemblekit.rom.mesh import Mesh
from ensemblekit.rom.readers.reader import (
    Options,
    Reader,
    all_timed,
    check_readable,
    lean,
)
from ensemblekit.rom.readers.vtk_data import (
    VTKHDF,
    Grid,
    Where,
    grid_of,
    instants_of,
    leaves,
    lock,
    places_of_fields,
    reader_of,
)
from ensemblekit.rom.readers.vtk_mesh import pyvista
from ensemblekit.rom.readers.vtk_time import time_in
from ensemblekit.rom.readers.vtk_whole import check_whole, suffix_of
from ensemblekit.source import Field

SINGLE = (".vtu", ".pvtu", ".vti", ".pvti", ".vtr", ".pvtr", ".vts", ".pvts", ".vtp", ".pvtp", ".vtk", ".vtm", ".vtmb",
          ".vtpd", ".vtpc")
"""One snapshot a file."""
TEMPORAL = (".case", ".encas", ".cgns", ".ex2", ".exo", ".exii", ".e", ".xdmf", ".xmf", ".hdf")
"""Snapshots and times inside."""


@dataclass(frozen=True, eq=False)
class VTKFiles:
    """A series of files of one snapshot each; a snapshot may be in several files (the parts of a .pvd)."""

    files: tuple[tuple[str, ...], ...]
    fields: Mapping[str, Field]
    where: Mapping[str, Where]
    options: Options
    times: np.ndarray | None
    digest: str
    """Of the first mesh: every snapshot must have it."""
    time_unit: str = ""
    tiles: bool = False
    __getstate__ = lean

    @property
    def path(self) -> str:
        return self.files[0][0]

    @property
    def n(self) -> int:
        return len(self.files)

    @cached_property
    def _mesh(self) -> Mesh:
        return grid_of(leaves(self.files[0], None), {}, self.options, self.path).mesh

    def mesh(self) -> Mesh:
        return self._mesh.with_fields({name: w.association for name, w in self.where.items()})

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        arrays = _empty(self.fields, names, len(rows))
        for k, row in enumerate(rows):
            path = self.files[row][0]
            grid = grid_of(leaves(self.files[row], None), {n: self.where[n] for n in names}, self.options, path)
            _check(grid, path, self)
            for name in names:
                arrays[name][k] = _fitting(grid.arrays[name], self.fields[name], name, path)
        return arrays


@dataclass(frozen=True, eq=False)
class VTKSeries:
    """One file or case with its own times."""

    path: str
    instants: np.ndarray
    fields: Mapping[str, Field]
    where: Mapping[str, Where]
    options: Options
    digest: str
    steps: bool = True
    """Whether VTK is asked for one of several instants."""
    said: bool = True
    """Whether the file says its times."""
    timed: bool = True
    """Whether they are taken: a lone 0 says something only beside the times of other files."""
    time_unit: str = ""
    tiles: bool = False
    __getstate__ = lean

    @property
    def n(self) -> int:
        return len(self.instants)

    @property
    def times(self) -> np.ndarray | None:
        return self.instants if self.timed else None

    @cached_property
    def _mesh(self) -> Mesh:
        return grid_of(leaves((self.path,), 0 if self.steps else None), {}, self.options, self.path).mesh

    def mesh(self) -> Mesh:
        return self._mesh.with_fields({name: w.association for name, w in self.where.items()})

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        arrays = _empty(self.fields, names, len(rows))
        for k, row in enumerate(rows):
            where = {name: self.where[name] for name in names}
            at = f"{self.path} at time {self.instants[row]:g}" if self.steps else self.path
            grid = grid_of(leaves((self.path,), row if self.steps else None), where, self.options, at)
            _check(grid, at, self)
            for name in names:
                arrays[name][k] = _fitting(grid.arrays[name], self.fields[name], name, at)
        return arrays


def _empty(fields: Mapping[str, Field], names: Sequence[str], n: int) -> dict[str, np.ndarray]:
    return {name: np.empty((n, *fields[name].shape), fields[name].dtype) for name in names}


def _fitting(values: np.ndarray, field: Field, name: str, path: str) -> np.ndarray:
    if values.shape != field.shape:
        raise SnapshotFileError(path, f"field {name!r} has shape {values.shape}; in the first snapshot it has {field.shape}")
    return values


def _check(grid: Grid, path: str, series: VTKFiles | VTKSeries) -> None:
    if grid.mesh.digest != series.digest:
        difference = series._mesh.unlike(grid.mesh)
        if difference is not None:
            raise SnapshotFileError(path, f"has another mesh: {difference}. Snapshots share one mesh; map them to one first")


# -- opening -----------------------------------------------------------------------------------------------------------

def open_vtk(paths: Sequence[str], options: Options) -> VTKFiles | VTKSeries:
    """One file or a series of them. Raises SnapshotFileError, MissingFieldError, MissingExtraError."""
    pyvista()
    suffix = suffix_of(paths[0])
    if suffix == ".series":
        files, times = _series(paths[0])
        return _open_files(files, times, options)
    if suffix == ".pvd":
        files, times = _collection(paths[0])
        return _open_files(files, times, options)
    if suffix in (*TEMPORAL, *VTKHDF) and len(paths) == 1:
        return _open_temporal(paths[0], options)
    return _open_files([(path,) for path in paths], None, options)


def _open_files(files: Sequence[tuple[str, ...]], times: np.ndarray | None, options: Options) -> VTKFiles:
    for path in (p for group in files for p in group):
        check_whole(path)
        _check_links(path, options)
    first = files[0][0]
    parts = leaves(files[0], None)
    where = places_of_fields(parts, options, first)
    grid = grid_of(parts, where, options, first)
    if times is None:
        stamps = [time_in(group[0], _time_by_vtk) if options.timed else None for group in files]
        if all_timed([t is not None for t in stamps], [group[0] for group in files], 6):
            times = np.array(stamps, np.float64)
    return VTKFiles(tuple(files), {name: Field(x.shape, x.dtype.newbyteorder("=")) for name, x in grid.arrays.items()}, where,
                    options, times, grid.mesh.digest)


def _time_by_vtk(path: str) -> float | None:
    """The time in the field data of a file that is read as a whole."""
    with lock:
        data = pyvista().read(path)
    names = [name for name in ("TimeValue", "TIME") if name in data.field_data]
    return float(np.asarray(data.field_data[names[0]]).ravel()[0]) if names else None


def _open_temporal(path: str, options: Options) -> VTKSeries:
    check_readable(path)
    _check_links(path, options)
    reader = reader_of(path)
    with lock:
        instants = instants_of(reader)
    steps = len(instants) > 1 or (len(instants) == 1 and instants[0] != 0)
    parts = leaves((path,), 0 if steps else None)
    if not steps and suffix_of(path) in VTKHDF:
        from ensemblekit.rom.readers.vtkhdf import time_of_blocks

        instants = time_of_blocks(path, options.external)       # VTK's reader leaves it out
    said = len(instants) > 0
    where = places_of_fields(parts, options, path)
    grid = grid_of(parts, where, options, path)
    return VTKSeries(path, instants if said else np.zeros(1), {
        name: Field(x.shape, x.dtype.newbyteorder("=")) for name, x in grid.arrays.items()}, where, options, grid.mesh.digest,
        steps, said, said and (len(instants) > 1 or instants[0] != 0))


def of_one_run(files: Sequence[Reader]) -> list[Reader]:
    """The files of a series: where one of them knows a time, the 0 of another is one too."""
    timed = any(file.times is not None for file in files)
    return [replace(file, timed=file.said) if timed and isinstance(file, VTKSeries) else file for file in files]


def _check_links(path: str, options: Options) -> None:
    """Raise StoreError where an HDF5 file that VTK is to read points to other files."""
    if not options.external:
        from ensemblekit.store.hdf5 import check_inside

        check_inside(path)


def _collection(path: str) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Files and times of a .pvd, by time."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise SnapshotFileError(path, f"cannot be read as .pvd, or is cut short ({error})") from error
    entries = [(float(entry.get("timestep", k)), int(entry.get("part") or 0),
                os.path.join(os.path.dirname(path), entry.get("file", ""))) for k, entry in enumerate(root.iter("DataSet"))]
    if not entries:
        raise SnapshotFileError(path, "names no files")
    stretches = [(time, list(several)) for time, several in itertools.groupby(entries, key=lambda entry: entry[0])]
    seen: set[tuple[float, int]] = set()
    for _, several in stretches:
        parts = {(time, part) for time, part, _ in several}
        if parts & seen:        # a run that was continued wrote this time again: the snapshots as they were written
            return [_files_of(one) for _, one in stretches], np.array([time for time, _ in stretches])
        seen |= parts
    groups: dict[float, list[tuple[float, int, str]]] = {}
    for entry in entries:
        groups.setdefault(entry[0], []).append(entry)
    times = sorted(groups)
    return [_files_of(groups[time]) for time in times], np.array(times)


def _files_of(entries: list[tuple[float, int, str]]) -> tuple[str, ...]:
    """The files of one snapshot by their part."""
    return tuple(name for _, _, name in sorted(entries, key=lambda entry: entry[1]))


def _series(path: str) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Files and times of ParaView's .series (JSON): by time, or as they were written where a time comes twice."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = [(float(e["time"]), os.path.join(os.path.dirname(path), e["name"])) for e in json.load(file)["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotFileError(path, f"cannot be read as a .series file ({error!r})") from error
    if len({time for time, _ in entries}) == len(entries):
        entries.sort()
    return [(name,) for _, name in entries], np.array([t for t, _ in entries])


# -- reading -----------------------------------------------------------------------------------------------------------
