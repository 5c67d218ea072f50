"""What ParaView and pyvista read of a store on a mesh: /VTKHDF, virtual datasets over the stored fields, no copy.

Geometry stands once (links to the constants "mesh/..."), every field is its rows one after the other, and the group
Steps says where each snapshot begins. See https://docs.vtk.org, "VTKHDF file format".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.files import replacing
from ensemblekit.source import Field
from ensemblekit.store.guarded import literal
from ensemblekit.store.schema import CONSTANTS, MAIN, Schema

if TYPE_CHECKING:
    from ensemblekit.store.store import Store

SUFFIX = ".vtkhdf"
VERSION = (2, 3)
WITH_POLYHEDRA = (2, 8)
GEOMETRY = {"points": "Points", "connectivity": "Connectivity", "offsets": "Offsets", "types": "Types"}
FACES = {"face_offsets": "FaceOffsets", "face_points": "FaceConnectivity", "cell_offsets": "PolyhedronOffsets",
         "cell_faces": "PolyhedronToFaces"}


class Rows(NamedTuple):
    """Consecutive snapshots of a field in a file ("." for the same one)."""

    file: str
    dataset: str
    n: int
    within: slice | None = None
    """Which numbers of the dataset's rows are the field's, where others share it."""
    width: int = 0
    """Numbers of such a row."""


def write_grid(f: h5py.File, mesh: Mapping[str, np.ndarray], linked: str | None, times: np.ndarray | None) -> h5py.Group:
    """The group /VTKHDF with its geometry, as links to `linked`/<name> or written out, and steps where there are times."""
    root = f.create_group("VTKHDF")
    polyhedra = "face_points" in mesh
    root.attrs["Version"] = np.array(WITH_POLYHEDRA if polyhedra else VERSION, "i8")
    kind = "UnstructuredGrid"
    root.attrs.create("Type", np.bytes_(kind), dtype=h5py.string_dtype("ascii", len(kind)))
    for ours, theirs in (GEOMETRY | FACES if polyhedra else GEOMETRY).items():
        if linked is not None:
            root[theirs] = f[f"{linked}/{ours}"]
        else:
            root.create_dataset(theirs, data=mesh[ours])
    counts = {"NumberOfPoints": len(mesh["points"]), "NumberOfCells": len(mesh["types"]),
              "NumberOfConnectivityIds": len(mesh["connectivity"])}
    if polyhedra:
        counts |= {"NumberOfFaces": len(mesh["face_offsets"]) - 1, "NumberOfFaceConnectivityIds": len(mesh["face_points"]),
                   "NumberOfPolyhedronToFaceIds": len(mesh["cell_faces"])}
    for name, n in counts.items():
        root.create_dataset(name, data=np.array([n], "i8"))
    for name in ("PointData", "CellData", "FieldData"):
        root.create_group(name)
    if times is not None:
        n = len(times)
        steps = root.create_group("Steps")
        steps.attrs["NSteps"] = n
        steps.create_dataset("Values", data=np.asarray(times, "f8"))
        steps.create_dataset("NumberOfParts", data=np.ones(n, "i8"))
        still = ["PartOffsets", "PointOffsets", "CellOffsets", "ConnectivityIdOffsets"]
        if polyhedra:
            still += ["FaceOffsetsOffsets", "FaceConnectivityOffsets", "PolyhedronToFaceIdOffsets"]
        for name in still:
            steps.create_dataset(name, data=np.zeros(n, "i8"))
        for name in ("PointDataOffsets", "CellDataOffsets", "FieldDataOffsets"):
            steps.create_group(name)
    return root


def add_steps(root: h5py.Group, association: str, name: str, count: int, n: int) -> None:
    """Where each step of a field begins."""
    root[f"Steps/{association.capitalize()}DataOffsets"].create_dataset(name, data=np.arange(n, dtype="i8") * count)


def add_virtual(root: h5py.Group, association: str, name: str, field: Field, count: int, parts: Sequence[Rows]) -> None:
    """A stored field as one flat array of points or cells, step after step; plane vectors get a third component, 0."""
    components = field.size // count
    width = 3 if components == 2 else components
    n = sum(part.n for part in parts)
    layout = h5py.VirtualLayout(shape=(n * count,) if components == 1 else (n * count, width), dtype=field.dtype)
    at = 0
    for part in parts:
        shape = (part.n, *field.shape) if part.within is None else (part.n, part.width)
        source = h5py.VirtualSource(literal(part.file), literal(part.dataset), shape=shape, dtype=field.dtype)
        if part.within is not None:
            source = source[:, part.within]
        end = at + part.n * count
        if components == 1:
            layout[at:end] = source
        else:
            layout[at:end, :components] = source
        at = end
    root[f"{association.capitalize()}Data"].create_virtual_dataset(name, layout, fillvalue=0)
    add_steps(root, association, name, count, n)


def mesh_in(constants: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
    """The arrays of the mesh among a store's constants, and field -> "cell" or "point"; None where there is none."""
    mesh = {name.removeprefix("mesh/"): values for name, values in constants.items() if name.startswith("mesh/")}
    if not all(name in mesh for name in GEOMETRY):
        return None
    about = json.loads(np.asarray(mesh["about"]).tobytes()) if "about" in mesh else {}
    return mesh, about.get("association", {})


def shown(fields: Mapping[str, Field], mesh: Mapping[str, np.ndarray],
          association: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """field -> (association, number of points or cells), for those fields that VTK can show."""
    counts = {"point": len(mesh["points"]), "cell": len(mesh["types"])}
    visible = {}
    for name, field in fields.items():
        if field.clock != MAIN or field.dtype.kind not in "iuf" or field.dtype.itemsize < 1 or field.dtype == np.float16:
            continue
        for where in [association[name]] if name in association else ("point", "cell"):
            n = counts[where]
            size, axes = 1, 0
            while axes < len(field.shape) and size < n:
                size *= field.shape[axes]
                axes += 1
            if size == n and n:
                visible[name] = where, n
                break
    return visible


def rows_of(schema: Schema, name: str, file: str, n: int) -> Rows:
    """Where a field's snapshots stand in a file of that description: not under its name where that is virtual itself, as
    libhdf5 does not ask such a source for its length, and shows fill values."""
    for column in schema.columns(schema.fields[name].clock, max(1, n)):
        for field, start, stop in schema.parts(column) if len(column.fields) > 1 else ():
            if field == name:
                return Rows(file, f"/{column.path}", n, slice(start, stop), column.shape[0])
    return Rows(file, f"/{schema.element(name)}/value", n)


def sealed_view(f: h5py.File, schema: Schema, constants: Mapping[str, np.ndarray], times: np.ndarray) -> None:
    """/VTKHDF in the file of a store itself; `times` are those of all its snapshots."""
    geometry = mesh_in(constants)
    if geometry is None or not len(times):
        return
    mesh, association = geometry
    root = write_grid(f, mesh, f"{CONSTANTS}/mesh", times)
    for name, (where, count) in shown(schema.fields, mesh, association).items():
        add_virtual(root, where, name, schema.fields[name], count, [rows_of(schema, name, ".", len(times))])


def publish(store: Store, path: str | os.PathLike[str] | None) -> str:
    """See :meth:`Store.publish`."""
    from ensemblekit.store.hdf5 import new_file
    from ensemblekit.store.segments import disk_error

    geometry = mesh_in(store.constants)
    if geometry is None:
        raise InputError(f"{store.path} has no mesh to show its fields on; rom.ingest stores it with them")
    mesh, association = geometry
    stem = os.path.splitext(store.path)[0]
    target = os.fspath(path) if path is not None else f"{stem}.view{SUFFIX}"
    if not target.endswith(SUFFIX):
        raise InputError(f"ParaView and pyvista go by the suffix {SUFFIX}; got {target!r}")
    if os.path.abspath(target) in [os.path.abspath(p) for p in store.segments]:
        raise InputError(f"{target} is the store itself; choose another name")
    source = store.clock()
    n = len(source)
    if n == 0:
        raise InputError(f"{store.path} has no snapshots yet")
    schemas = {layout.path: layout.schema for layout in store.layouts}
    home = os.path.dirname(os.path.abspath(target))
    try:
        with replacing(target, follow=True) as temporary, new_file(temporary, libver=("earliest", "v110")) as f:
            root = write_grid(f, mesh, None, source.stamps)
            for name, (where, count) in shown(store.all_fields, mesh, association).items():
                rows = [rows_of(schemas[part.path], name, os.path.relpath(part.path, home), part.n)
                        for part in source.table.parts]
                add_virtual(root, where, name, store.all_fields[name], count, rows)
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def file_of_steps(path: str, mesh: Mapping[str, np.ndarray], times: np.ndarray | None,
                  arrays: Mapping[str, tuple[str, np.ndarray | Any]]) -> None:
    """A new VTKHDF file: name -> ("cell" or "point", values (n, count[, components]) or, without times, (count, ...)).

    Values may be an iterator of such blocks of steps, so that not all of them are in memory. By temporary name and
    rename. Raises StoreError.
    """
    from ensemblekit.store.hdf5 import new_file
    from ensemblekit.store.segments import disk_error

    counts = {"point": len(mesh["points"]), "cell": len(mesh["types"])}
    try:
        with replacing(path, follow=True) as temporary, new_file(temporary, libver=("earliest", "v110")) as f:
            root = write_grid(f, mesh, None, times)
            for name, (where, blocks) in arrays.items():
                _write_steps(root, where, name, counts[where], None if times is None else len(times),
                             [blocks] if isinstance(blocks, np.ndarray) else blocks)
    except OSError as error:
        raise disk_error(error, path) from error


def _write_steps(root: h5py.Group, where: str, name: str, count: int, n: int | None, blocks: Iterable[Any]) -> None:
    data, at = None, 0
    for block in blocks:
        flat = np.asarray(block).reshape(-1, count, max(1, np.asarray(block)[0].size // count if n is not None
                                                        else np.asarray(block).size // count))
        if flat.shape[-1] == 2:
            flat = np.concatenate([flat, np.zeros_like(flat[..., :1])], -1)
        rows = flat.reshape(-1) if flat.shape[-1] == 1 else flat.reshape(-1, flat.shape[-1])
        if data is None:
            shape = ((n or 1) * count, *rows.shape[1:])
            data = root[f"{where.capitalize()}Data"].create_dataset(name, shape, rows.dtype,
                                                                    chunks=(count, *rows.shape[1:]) if n else None)
        data[at:at + len(rows)] = rows
        at += len(rows)
    if n is not None:
        add_steps(root, where, name, count, n)
