"""What VTK's own readers give: the pieces of a data set, the fields on them, and the instants of a reader."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.rom.mesh import Association, Mesh
from ensemblekit.rom.readers.foam_mesh import joined, taken
from ensemblekit.rom.readers.reader import (
    MissingFieldError,
    Options,
    bookkeeping,
    chosen,
)
from ensemblekit.rom.readers.vtk_mesh import mesh_of_vtk, pyvista
from ensemblekit.rom.readers.vtk_whole import check_complete, suffix_of

VTKHDF = (".vtkhdf", ".hdf", ".h5", ".hdf5")
"""Of those, what VTK's reader of its HDF5 files is for."""
lock = threading.RLock()        # VTK's error log is one for the process, and netCDF, CGNS and HDF5 are not thread-safe

DUPLICATE = 1


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


def reader_of(path: str) -> Any:
    pv = pyvista()
    suffix = suffix_of(path)
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
    datasets: list[tuple[tuple[str, ...], Any]] = []
    pv = pyvista()
    for path in paths:
        check_complete(path)
        reader = reader_of(path)
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
                        data = reader.read() if instant is None or knows_times(reader) else pv.wrap(
                            reader.reader.GetOutputDataObject(0))
            except Exception as error:
                raise SnapshotFileError(path, f"cannot be read, or is cut short ({error})") from error
            _raise_errors(catcher, path)
        if data is not None and (data.IsA("vtkUniformGridAMR") or data.IsA("vtkHyperTreeGrid")):
            raise InputError(f"{path} holds an adaptive mesh ({data.GetClassName()[3:]}), whose cells are of many sizes, some "
                             "over others; bring it to one mesh (in ParaView: Resample To Image), and read that")
        name = os.path.splitext(os.path.basename(path))[0]
        datasets += list(_walk(data, (name,) if len(paths) > 1 else (), pv))
    if not datasets:
        raise SnapshotFileError(paths[0], "holds no data set with points")
    return datasets


def knows_times(reader: Any) -> bool:
    """Whether pyvista has the times of this format, or VTK's pipeline has to be asked (CGNS)."""
    return callable(getattr(type(reader), "set_active_time_point", None))


def instants_of(reader: Any) -> np.ndarray:
    if knows_times(reader):
        return np.asarray(reader.time_values, np.float64)
    from vtkmodules.vtkCommonExecutionModel import vtkStreamingDemandDrivenPipeline

    reader.reader.UpdateInformation()
    about, key = reader.reader.GetOutputInformation(0), vtkStreamingDemandDrivenPipeline.TIME_STEPS()
    return np.array(about.Get(key) if about.Has(key) else [], np.float64)


def _turn_to(reader: Any, instant: int) -> None:
    if knows_times(reader):
        reader.set_active_time_point(instant)
    else:
        reader.reader.UpdateTimeStep(float(instants_of(reader)[instant]))


def _enable(reader: Any) -> None:
    for what in ("enable_all_bases", "enable_all_families", "enable_all_cell_arrays", "enable_all_point_arrays"):
        try:
            getattr(reader, what)()
        except (AttributeError, NotImplementedError, TypeError):     # readers without a choice read everything
            continue


def _said(event: Any) -> str:
    """What an event of VTK says; pyvista's older ones are texts."""
    return str(getattr(event, "alert", event))


def _raise_errors(catcher: Any, path: str) -> None:
    # that binary data end too early is only a warning to VTK's legacy reader
    texts = [*map(_said, catcher.error_events), *(text for text in map(_said, catcher.events) if "Error reading" in text)]
    if texts:
        message = " ".join(texts[0].split())
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


def places_of_fields(parts: Sequence[tuple[tuple[str, ...], Any]], options: Options, path: str) -> dict[str, Where]:
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
    numeric = {}
    for name in arrays.keys():
        values = np.asarray(arrays[name])
        if values.dtype.kind in "biuf":
            # VTK's XDMF reader gives vectors as one long row
            long = values.ndim == 1 and n and len(values) > n and len(values) % n == 0
            numeric[name] = values.reshape(n, -1) if long else values
    return numeric


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



