"""What VTK reads, through pyvista: its own formats, .pvd, EnSight, CGNS, Exodus and XDMF."""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError, SnapshotFileError
from ensemblekit.rom.mesh import Association, Mesh, Polyhedra
from ensemblekit.rom.readers.openfoam import joined, taken
from ensemblekit.rom.readers.reader import (
    MissingFieldError,
    Options,
    Reader,
    all_timed,
    bookkeeping,
    check_readable,
    chosen,
    lean,
)
from ensemblekit.rom.readers.vtk_time import time_in
from ensemblekit.source import Field

SINGLE = (".vtu", ".pvtu", ".vti", ".pvti", ".vtr", ".pvtr", ".vts", ".pvts", ".vtp", ".pvtp", ".vtk", ".vtm", ".vtmb",
          ".vtpd", ".vtpc")
"""One snapshot a file."""
TEMPORAL = (".case", ".encas", ".cgns", ".ex2", ".exo", ".exii", ".e", ".xdmf", ".xmf", ".hdf")
"""Snapshots and times inside."""
VTKHDF = (".vtkhdf", ".hdf", ".h5", ".hdf5")
"""Of those, what VTK's reader of its HDF5 files is for."""
DUPLICATE = 1

lock = threading.RLock()        # VTK's error log is one for the process, and netCDF, CGNS and HDF5 are not thread-safe


def pyvista() -> Any:
    try:
        import pyvista
    except ImportError as error:
        raise MissingExtraError("pyvista", "cfd") from error
    return pyvista


@dataclass(frozen=True, slots=True, eq=False)
class Where:
    """A field's place in VTK's data."""

    association: Association
    array: str


class PlainReader:
    """VTK's reader of a format that pyvista has no class for."""

    def __init__(self, reader: Any, path: str):
        self.reader = reader
        reader.SetFileName(path)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """One snapshot in memory: its mesh and the arrays asked for."""

    mesh: Mesh
    arrays: dict[str, np.ndarray]


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
        found = _empty(self.fields, names, len(rows))
        for k, row in enumerate(rows):
            path = self.files[row][0]
            grid = grid_of(leaves(self.files[row], None), {n: self.where[n] for n in names}, self.options, path)
            _check(grid, path, self)
            for name in names:
                found[name][k] = _fitting(grid.arrays[name], self.fields[name], name, path)
        return found


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
        found = _empty(self.fields, names, len(rows))
        for k, row in enumerate(rows):
            where = {name: self.where[name] for name in names}
            at = f"{self.path} at time {self.instants[row]:g}" if self.steps else self.path
            grid = grid_of(leaves((self.path,), row if self.steps else None), where, self.options, at)
            _check(grid, at, self)
            for name in names:
                found[name][k] = _fitting(grid.arrays[name], self.fields[name], name, at)
        return found


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
    suffix = _suffix(paths[0])
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
        _whole(path)
        _check_links(path, options)
    first = files[0][0]
    parts = leaves(files[0], None)
    where = _places(parts, options, first)
    grid = grid_of(parts, where, options, first)
    if times is None:
        found = [time_in(group[0], _time_by_vtk) if options.timed else None for group in files]
        if all_timed([t is not None for t in found], [group[0] for group in files], 6):
            times = np.array(found, np.float64)
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
    reader = _reader(path)
    with lock:
        instants = _instants(reader)
    steps = len(instants) > 1 or (len(instants) == 1 and instants[0] != 0)
    parts = leaves((path,), 0 if steps else None)
    if not steps and _suffix(path) in VTKHDF:
        from ensemblekit.rom.readers.vtkhdf import time_of_blocks

        instants = time_of_blocks(path, options.external)       # VTK's reader leaves it out
    said = len(instants) > 0
    where = _places(parts, options, path)
    grid = grid_of(parts, where, options, path)
    return VTKSeries(path, instants if said else np.zeros(1), {
        name: Field(x.shape, x.dtype.newbyteorder("=")) for name, x in grid.arrays.items()}, where, options, grid.mesh.digest,
        steps, said, said and (len(instants) > 1 or instants[0] != 0))


def of_one_run(files: Sequence[Reader]) -> list[Reader]:
    """The files of a series: where one of them knows a time, the 0 of another is one too."""
    timed = any(file.times is not None for file in files)
    return [replace(file, timed=file.said) if timed and isinstance(file, VTKSeries) else file for file in files]


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _check_links(path: str, options: Options) -> None:
    """Raise StoreError where an HDF5 file that VTK is to read points to other files."""
    if not options.external:
        from ensemblekit.store.hdf5 import check_inside

        check_inside(path)


def _whole(path: str) -> None:
    """An XML file ends in its closing tag, or it was cut short; found without parsing it."""
    check_readable(path)
    if _suffix(path) == ".vtk":
        return
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 256))
        if b"</VTKFile>" not in file.read():
            raise SnapshotFileError(path, "is cut short: it has no closing </VTKFile>")


LEGACY = re.compile(
    rb"^(?:(?P<data>POINT_DATA|CELL_DATA)[ \t]+(?P<n>\d+)"
    rb"|(?P<kind>SCALARS|VECTORS|NORMALS|TENSORS6|TENSORS)[ \t]+\S+[ \t]+[a-z_]+"
    rb"(?:[ \t]+(?P<width>\d))?(?:\s+LOOKUP_TABLE[ \t]+\S+)?|[^\s<]+[ \t]+(?P<components>\d+)[ \t]+(?P<tuples>\d+)[ \t]+"
    rb"(?:double|float|int|long|short|char|vtktypeint64|vtkIdType|unsigned_\w+))[ \t]*\r?$", re.MULTILINE)
WIDTHS = {b"VECTORS": 3, b"NORMALS": 3, b"TENSORS6": 6, b"TENSORS": 9}


def _complete(path: str) -> None:
    """What VTK's readers do not notice: a legacy file in ASCII, or an Exodus file, that was cut short.

    Raises SnapshotFileError.
    """
    suffix = _suffix(path)
    if suffix in (".e", ".ex2", ".exo", ".exii"):
        with open(path, "rb") as file:
            classic = file.read(4) in (b"CDF\x01", b"CDF\x02")
        if classic:
            from ensemblekit.rom.readers.classic import check_classic

            check_classic(path)
    if suffix != ".vtk":
        return
    with open(path, "rb") as file:
        if b"ASCII" not in file.read(512):
            return
        file.seek(0)
        text = file.read()
    count, last = 0, None
    for found in LEGACY.finditer(text):
        if found["data"]:
            count = int(found["n"])
        else:
            last = (found.end(), int(found["components"]) * int(found["tuples"]) if found["components"] else
                    count * (WIDTHS.get(found["kind"]) or int(found["width"] or 1)))
    if last is not None and len(text[last[0]:].split(None, last[1])) < last[1]:
        raise SnapshotFileError(path, f"is cut short: its last array has less than its {last[1]} numbers")


def _collection(path: str) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Files and times of a .pvd, by time."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise SnapshotFileError(path, f"cannot be read as .pvd, or is cut short ({error})") from error
    groups: dict[float, list[tuple[int, str]]] = {}
    for k, entry in enumerate(root.iter("DataSet")):
        name = os.path.join(os.path.dirname(path), entry.get("file", ""))
        groups.setdefault(float(entry.get("timestep", k)), []).append((int(entry.get("part") or 0), name))
    if not groups:
        raise SnapshotFileError(path, "names no files")
    times = sorted(groups)
    return [tuple(name for _, name in sorted(groups[t], key=lambda e: e[0])) for t in times], np.array(times)


def _series(path: str) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Files and times of ParaView's .series (JSON)."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = [(float(e["time"]), os.path.join(os.path.dirname(path), e["name"])) for e in json.load(file)["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotFileError(path, f"cannot be read as a .series file ({error!r})") from error
    entries.sort()
    return [(name,) for _, name in entries], np.array([t for t, _ in entries])


# -- reading -----------------------------------------------------------------------------------------------------------

def _reader(path: str) -> Any:
    pv = pyvista()
    suffix = _suffix(path)
    kinds = {**dict.fromkeys(VTKHDF, pv.HDFReader), **dict.fromkeys((".e", ".ex2", ".exo", ".exii"), pv.ExodusIIReader),
             ".encas": pv.EnSightReader, ".xmf": pv.XdmfReader}
    if suffix in (".vtpd", ".vtpc"):
        from vtkmodules import vtkIOXML

        which = "vtkXMLPartitionedDataSetReader" if suffix == ".vtpd" else "vtkXMLPartitionedDataSetCollectionReader"
        return PlainReader(getattr(vtkIOXML, which)(), path)
    with lock, pv.VtkErrorCatcher(raise_errors=False, send_to_logging=False) as catcher:
        try:
            reader = kinds[suffix](path) if suffix in kinds else pv.get_reader(path)
        except Exception as error:
            raise SnapshotFileError(path, f"cannot be read ({error})") from error
        _raise_errors(catcher, path)
    return reader


def leaves(paths: Sequence[str], instant: int | None) -> list[tuple[tuple[str, ...], Any]]:
    """The data sets of one snapshot with the names of the blocks they are in."""
    found: list[tuple[tuple[str, ...], Any]] = []
    pv = pyvista()
    for path in paths:
        _complete(path)
        reader = _reader(path)
        with lock, pv.VtkErrorCatcher(raise_errors=False, send_to_logging=False) as catcher:
            try:
                _enable(reader)
                if instant is not None:
                    _turn_to(reader, instant)
                with warnings.catch_warnings():     # pyvista's own checks: what they warn of is checked here too
                    warnings.simplefilter("ignore")
                    if isinstance(reader, pv.HDFReader | PlainReader):      # pyvista's own look refuses what _walk takes apart
                        reader.reader.Update()
                        data = reader.reader.GetOutputDataObject(0)
                    else:
                        data = reader.read() if instant is None or _knows_times(reader) else pv.wrap(
                            reader.reader.GetOutputDataObject(0))
            except Exception as error:
                raise SnapshotFileError(path, f"cannot be read, or is cut short ({error})") from error
            _raise_errors(catcher, path)
        if data is not None and (data.IsA("vtkUniformGridAMR") or data.IsA("vtkHyperTreeGrid")):
            raise InputError(f"{path} holds an adaptive mesh ({data.GetClassName()[3:]}), whose cells are of many sizes, some "
                             "over others; bring it to one mesh (in ParaView: Resample To Image), and read that")
        name = os.path.splitext(os.path.basename(path))[0]
        found += list(_walk(data, (name,) if len(paths) > 1 else (), pv))
    if not found:
        raise SnapshotFileError(paths[0], "holds no data set with points")
    return found


def _knows_times(reader: Any) -> bool:
    """Whether pyvista has the times of this format, or VTK's pipeline has to be asked (CGNS)."""
    return callable(getattr(type(reader), "set_active_time_point", None))


def _instants(reader: Any) -> np.ndarray:
    if _knows_times(reader):
        return np.asarray(reader.time_values, np.float64)
    from vtkmodules.vtkCommonExecutionModel import vtkStreamingDemandDrivenPipeline

    reader.reader.UpdateInformation()
    about, key = reader.reader.GetOutputInformation(0), vtkStreamingDemandDrivenPipeline.TIME_STEPS()
    return np.array(about.Get(key) if about.Has(key) else [], np.float64)


def _turn_to(reader: Any, instant: int) -> None:
    if _knows_times(reader):
        reader.set_active_time_point(instant)
    else:
        reader.reader.UpdateTimeStep(float(_instants(reader)[instant]))


def _enable(reader: Any) -> None:
    for what in ("enable_all_bases", "enable_all_families", "enable_all_cell_arrays", "enable_all_point_arrays"):
        try:
            getattr(reader, what)()
        except (AttributeError, NotImplementedError, TypeError):     # readers without a choice read everything
            continue


def _raise_errors(catcher: Any, path: str) -> None:
    # that binary data end too early is only a warning to VTK's legacy reader
    events = [*catcher.error_events, *[e for e in catcher.events if "Error reading" in str(getattr(e, "alert", e))]]
    if events:
        message = " ".join(str(getattr(events[0], "alert", events[0])).split())
        raise SnapshotFileError(path, f"cannot be read, or is cut short (VTK: {message[:200]})")


def _walk(data: Any, names: tuple[str, ...], pv: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The data sets inside blocks of blocks, each with the names of the blocks that it is in, outermost first."""
    if data is None:
        return
    if data.IsA("vtkPartitionedDataSetCollection"):
        for k in range(data.GetNumberOfPartitionedDataSets()):
            yield from _walk(data.GetPartitionedDataSet(k), (*names, _block_name(data, k)), pv)
    elif data.IsA("vtkPartitionedDataSet"):
        for k in range(data.GetNumberOfPartitions()):
            yield from _walk(data.GetPartition(k), names, pv)
    elif data.IsA("vtkMultiBlockDataSet"):
        for k in range(data.GetNumberOfBlocks()):
            yield from _walk(data.GetBlock(k), (*names, _block_name(data, k)), pv)
    elif data.IsA("vtkDataSet") and data.GetNumberOfPoints():
        yield names, pv.wrap(data)


def _block_name(data: Any, k: int) -> str:
    from vtkmodules.vtkCommonDataModel import vtkCompositeDataSet

    about = data.GetMetaData(k) if data.HasMetaData(k) else None
    return str(about.Get(vtkCompositeDataSet.NAME()) or k) if about is not None else str(k)


def selected(parts: Sequence[tuple[tuple[str, ...], Any]], options: Options, path: str) -> list[Any]:
    """The blocks asked for by region, patch or zone, a name or "outer/inner"; by default those of the highest dimension."""
    for what in ("region", "zone", "patch"):
        wanted = getattr(options, what)
        if wanted is not None:
            kept = [(names, data) for names, data in parts if wanted in names or f"/{wanted}/" in f"/{'/'.join(names)}/"]
            if not kept:
                every = dict.fromkeys("/".join(names[:k]) for names, _ in parts for k in range(1, len(names) + 1))
                raise InputError(f"{path} has no {what} {wanted!r}; its blocks are {', '.join(every) or 'not named'}")
            parts = kept
    if len(parts) == 1:
        return [parts[0][1]]
    dimensions = [_dimension(data) for _, data in parts]
    top = max(dimensions)
    return [data for (_, data), d in zip(parts, dimensions, strict=True) if d == top]


def _dimension(data: Any) -> int:
    import vtk

    kinds = {data.GetCellType(0), data.GetCellType(data.n_cells - 1)} if data.n_cells else {0}
    return max(vtk.vtkCellTypeUtilities.GetDimension(k) if hasattr(vtk, "vtkCellTypeUtilities")
               else vtk.vtkGenericCell.InstantiateCell(k).GetCellDimension() for k in kinds if k) if kinds - {0} else 0


def _places(parts: Sequence[tuple[tuple[str, ...], Any]], options: Options, path: str) -> dict[str, Where]:
    """The fields asked for, by default all numbers that every block has; cell data goes before point data of its name."""
    blocks = selected(parts, options, path)
    present: dict[str, Where] = {}
    listed: list[str] = []
    associations: tuple[Association, ...] = ("cell", "point")
    for association in associations:
        arrays = _arrays(blocks[0], association)
        common = [name for name in arrays if all(name in _arrays(b, association) for b in blocks)]
        for name in common:
            plain = re.sub(r"[/.\0]", "_", name)
            plain = f"{plain}_field" if plain in ("weight", "step", "time") else plain
            label = plain if plain not in present else f"{plain}_point"
            present[label] = Where(association, name)
            if not bookkeeping(name, arrays[name].dtype):
                listed.append(label)
    names = chosen(options.fields, present if options.fields else listed, path)
    return {name: present[name] for name in names}


def _arrays(data: Any, association: str) -> Any:
    arrays, n = (data.cell_data, data.n_cells) if association == "cell" else (data.point_data, data.n_points)
    found = {}
    for name in arrays.keys():
        values = np.asarray(arrays[name])
        if values.dtype.kind in "biuf":
            # VTK's XDMF reader gives vectors as one long row
            long = values.ndim == 1 and n and len(values) > n and len(values) % n == 0
            found[name] = values.reshape(n, -1) if long else values
    return found


def grid_of(parts: Sequence[tuple[tuple[str, ...], Any]], where: Mapping[str, Where], options: Options, path: str) -> Grid:
    """Mesh and arrays of one snapshot, blocks one after the other."""
    blocks = selected(parts, options, path)
    meshes: list[Mesh] = []
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in where}
    for data in blocks:
        mesh = mesh_of_vtk(data)
        ghosts = data.cell_data["vtkGhostType"] if "vtkGhostType" in data.cell_data else None
        keep = np.flatnonzero((np.asarray(ghosts) & DUPLICATE) == 0) if ghosts is not None else None
        if keep is not None and len(keep) < mesh.n_cells:
            mesh = taken(mesh, keep)
        else:
            keep = None
        meshes.append(mesh)
        for name, place in where.items():
            present = _arrays(data, place.association)
            if place.array not in present:
                raise MissingFieldError(name, [*_arrays(data, "cell"), *_arrays(data, "point")], path)
            values = np.asarray(present[place.array])
            arrays[name].append(values[keep] if keep is not None and place.association == "cell" else values)
    joint = {name: np.concatenate(xs) if len(xs) > 1 else xs[0] for name, xs in arrays.items()}
    return Grid(joined(meshes), joint)


def mesh_of_vtk(data: Any) -> Mesh:
    """Points and cells of any VTK data set."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    grid = data if data.IsA("vtkUnstructuredGrid") else data.cast_to_unstructured_grid()
    points = np.asarray(grid.points, np.float64) if grid.n_points else np.zeros((0, 3))
    if not grid.n_cells:
        return Mesh(points, np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.uint8))
    cells = grid.GetCells()
    polyhedra = None
    types = np.array(grid.celltypes, np.uint8)
    if (types == 42).any():
        faces, of_cells = grid.GetPolyhedronFaces(), grid.GetPolyhedronFaceLocations()
        polyhedra = Polyhedra(*(np.array(vtk_to_numpy(a), np.int64) for a in (
            faces.GetOffsetsArray(), faces.GetConnectivityArray(), of_cells.GetOffsetsArray(),
            of_cells.GetConnectivityArray())))
    return Mesh(points, np.array(vtk_to_numpy(cells.GetConnectivityArray()), np.int64),
                np.array(vtk_to_numpy(cells.GetOffsetsArray()), np.int64), types, polyhedra)


def vtk_of_mesh(mesh: Mesh) -> Any:
    """A pyvista UnstructuredGrid of a mesh."""
    import vtk
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

    pv = pyvista()

    def array_of(offsets: np.ndarray, connectivity: np.ndarray) -> Any:
        cells = vtk.vtkCellArray()
        cells.SetData(numpy_to_vtkIdTypeArray(np.ascontiguousarray(offsets, np.int64), deep=True),
                      numpy_to_vtkIdTypeArray(np.ascontiguousarray(connectivity, np.int64), deep=True))
        return cells

    grid = vtk.vtkUnstructuredGrid()
    points = vtk.vtkPoints()
    points.SetData(numpy_to_vtk(mesh.points, deep=True))
    grid.SetPoints(points)
    types = numpy_to_vtk(mesh.types, deep=True, array_type=vtk.VTK_UNSIGNED_CHAR)
    cells = array_of(mesh.offsets, mesh.connectivity)
    if mesh.polyhedra is not None:
        p = mesh.polyhedra
        grid.SetPolyhedralCells(types, cells, array_of(p.cell_offsets, p.cell_faces), array_of(p.face_offsets, p.face_points))
    else:
        grid.SetCells(types, cells)
    return pv.wrap(grid)
