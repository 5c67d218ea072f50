"""VTKHDF: what ParaView and others write, one mesh and many steps, read without VTK."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import EnsemblekitError, InputError, SnapshotFileError
from ensemblekit.rom.cells import LINE, POLY_LINE, POLYGON, QUAD, TRIANGLE, TRIANGLE_STRIP, VERTEX, Polyhedra
from ensemblekit.rom.mesh import Association, Mesh
from ensemblekit.rom.readers.reader import Options, bookkeeping, chosen, lean
from ensemblekit.source import Field
from ensemblekit.store.hdf5 import opened

PART_BYTES = 64
"""Of a part of a mesh, at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a field's values stand: (steps,) first rows in a flat array, or None where the first axis is the step."""

    association: Association
    dataset: str
    starts: np.ndarray | None


@dataclass(frozen=True, eq=False)
class VTKHDF:
    """The steps of one file on one mesh."""

    path: str
    fields: Mapping[str, Field]
    places: Mapping[str, Place]
    n: int
    times: np.ndarray | None
    on: Mesh | None
    options: Options = Options()        # noqa: RUF009  (immutable)
    stepped: bool = True
    """Whether the file has steps, which arrays of an image then have as their first axis."""
    time_unit: str = ""
    tiles: bool = False
    __getstate__ = lean

    def mesh(self) -> Mesh:
        if self.on is None:             # it did not travel
            again = open_vtkhdf(self.path, self.options)
            assert again is not None
            assert again.on is not None
            return again.on
        return self.on

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        arrays = {}
        with opened(self.path, self.options.external) as f:
            f._look.asked = True
            for name in names:
                place, field = self.places[name], self.fields[name]
                values = np.empty((len(rows), *field.shape), field.dtype)
                data = f[place.dataset]
                for k, row in enumerate(rows):
                    if place.starts is None:
                        values[k] = data[row].reshape(field.shape) if self.stepped else data[...].reshape(field.shape)
                    else:
                        start = int(place.starts[row])
                        part = data[start:start + field.shape[0]]
                        if len(part) < field.shape[0]:
                            raise SnapshotFileError(self.path, f"step {row} of {name!r} is cut short")
                        values[k] = part
                arrays[name] = values
        return arrays


def open_vtkhdf(path: str, options: Options) -> VTKHDF | None:
    """A file of an unstructured grid, surface or image; None where VTK itself has to read it (blocks of such).

    Raises SnapshotFileError where what the format asks for is not there.
    """
    with opened(path, options.external) as f:
        try:
            return _described(f, path, options)
        except KeyError as error:
            if isinstance(error, EnsemblekitError):
                raise
            lacking = re.findall(r"'(\w+)'", str(error))
            raise SnapshotFileError(path, f"lacks {lacking[-1] if lacking else 'a part'!r}, which VTKHDF asks for: it is "
                                          "damaged, or of another format") from error


def _described(f: Any, path: str, options: Options) -> VTKHDF | None:
    root = f["VTKHDF"]
    kind = root.attrs["Type"]
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if kind not in ("UnstructuredGrid", "PolyData", "ImageData"):
        return None
    steps = root.get("Steps")
    n = int(steps.attrs["NSteps"]) if steps is not None else 1
    times = np.asarray(steps["Values"][:n], np.float64) if steps is not None else None
    if steps is None and "FieldData/TimeValue" in root:
        times = np.asarray(root["FieldData/TimeValue"][...], np.float64).ravel()[:1]
    if times is not None and len(times) != n:
        raise SnapshotFileError(path, f"says it has {n} steps, and has the times of {len(times)}")
    build = {"UnstructuredGrid": _unstructured, "PolyData": _surface, "ImageData": _image}[kind]
    mesh = build(root, steps, path, 0)
    _check_still(root, steps, path, mesh, build)
    present: dict[str, tuple[Field, Place]] = {}
    associations: tuple[Association, ...] = ("cell", "point")
    for association in associations:
        group = f"{association.capitalize()}Data"
        count = mesh.count(association)
        for name, data in (root[group].items() if group in root else ()):
            if data.dtype.kind not in "biuf" or not count:
                continue
            label = name if name not in present else f"{name}_point"
            starts, item = None, data.shape[1:]
            if kind == "ImageData":
                grid = data.shape[1:] if steps is not None else data.shape
                axes = 3 if int(np.prod(grid[:3])) == count else len(grid)
                item = grid[axes:]
            else:
                starts = np.zeros(n, np.int64)
                if steps is not None and f"{group}Offsets/{name}" in steps:
                    starts = np.asarray(steps[f"{group}Offsets/{name}"][:n], np.int64)
                elif steps is not None:
                    starts = np.asarray(steps["PointOffsets"][:n] if association == "point" else
                                        steps["CellOffsets"][:n].reshape(n, -1).sum(1), np.int64)
                    if not starts.any() and len(data) == n * count:
                        starts = np.arange(n) * count
            present[label] = (Field((count, *item), data.dtype.newbyteorder("=")),
                              Place(association, f"VTKHDF/{group}/{name}", starts))
    names = chosen(options.fields, present if options.fields else [
        name for name, (field, _) in present.items() if not bookkeeping(name, field.dtype)], path)
    places = {name: present[name][1] for name in names}
    on = mesh.with_fields({name: place.association for name, place in places.items()})
    return VTKHDF(path, {name: present[name][0] for name in names}, places, n, times, on, options,
                  steps is not None)


def time_of_blocks(path: str, external: bool) -> np.ndarray:
    """(1,): the time in the field data of a file of blocks, or of the first block that says one; (0,) where none does."""
    with opened(path, external) as f:
        root = f["VTKHDF"]
        for name in ("FieldData/TimeValue", *(f"{block}/FieldData/TimeValue" for block in root)):
            if name in root:
                return np.asarray(root[name][...], np.float64).ravel()[:1]
    return np.zeros(0)


def _check_still(root: Any, steps: Any, path: str, mesh: Mesh, build: Any) -> None:
    """Every step must have the mesh of the first; writers that repeat it are compared with it."""
    if steps is None:
        return
    n = int(steps.attrs["NSteps"])
    tables = [steps[name][:n].reshape(n, -1) for name in ("PartOffsets", "PointOffsets", "CellOffsets", "ConnectivityIdOffsets")
              if name in steps]
    if not tables:
        return
    places = np.concatenate(tables, axis=1)
    _, first = np.unique(places, axis=0, return_index=True)
    for step in sorted(first):
        difference = mesh.unlike(build(root, steps, path, int(step))) if step else None
        if difference is not None:
            raise SnapshotFileError(path, f"has another mesh at step {step}: {difference}. Snapshots share one mesh; map them "
                                          "to one first")


def _first_part(steps: Any, step: int) -> int:
    return int(steps["PartOffsets"][step]) if steps is not None and "PartOffsets" in steps else 0


def _parts(root: Any, steps: Any, path: str, first: int, step: int) -> range:
    there = len(root["NumberOfPoints"])
    count = int(steps["NumberOfParts"][step]) if steps is not None and "NumberOfParts" in steps else there
    if not 0 <= first <= first + count <= there:
        raise SnapshotFileError(path, f"says step {step} is made of the parts {first} to {first + count - 1}, and has {there}")
    root._look.check_some(count * PART_BYTES, "NumberOfParts")
    return range(first, first + count)


def _unstructured(root: Any, steps: Any, path: str, step: int) -> Mesh:
    first = _first_part(steps, step)
    at = {name: int(np.ravel(steps[f"{name}Offsets"][step])[0]) if steps is not None and f"{name}Offsets" in steps else 0
          for name in ("Point", "Cell", "ConnectivityId")}
    points_at, cells_at, ids_at, offsets_at = at["Point"], at["Cell"], at["ConnectivityId"], at["Cell"] + first
    points: list[np.ndarray] = []
    connectivity, offsets, types = [], [np.zeros(1, np.int64)], []
    for part in _parts(root, steps, path, first, step):
        n, m, k = (int(root[f"NumberOf{x}"][part]) for x in ("Points", "Cells", "ConnectivityIds"))
        shift, before = sum(len(p) for p in points), int(offsets[-1][-1])
        points.append(root["Points"][points_at:points_at + n])
        connectivity.append(root["Connectivity"][ids_at:ids_at + k].astype(np.int64) + shift)
        offsets.append(root["Offsets"][offsets_at + 1:offsets_at + m + 1].astype(np.int64) + before)
        types.append(root["Types"][cells_at:cells_at + m])
        points_at, cells_at, ids_at, offsets_at = points_at + n, cells_at + m, ids_at + k, offsets_at + m + 1
    all_types = np.concatenate(types) if types else np.zeros(0, np.uint8)
    polyhedra = None
    if (all_types == 42).any():
        if len(types) > 1 or "PolyhedronOffsets" not in root:
            raise InputError(f"{path}: polyhedra in several parts are not read here; merge them first")
        polyhedra = Polyhedra(*(root[name][...].astype(np.int64) for name in (
            "FaceOffsets", "FaceConnectivity", "PolyhedronOffsets", "PolyhedronToFaces")))
    return Mesh(np.concatenate(points), np.concatenate(connectivity), np.concatenate(offsets), all_types, polyhedra)


def _surface(root: Any, steps: Any, path: str, step: int) -> Mesh:
    first = _first_part(steps, step)
    parts = _parts(root, steps, path, first, step)
    if len(parts) != 1:
        raise InputError(f"{path}: a surface in {len(parts)} parts is not read here; merge them first")
    start = int(steps["PointOffsets"][step]) if steps is not None else 0
    points = root["Points"][start:start + int(root["NumberOfPoints"][first])]
    connectivity, offsets, types = [], [np.zeros(1, np.int64)], []
    for column, name in enumerate(("Vertices", "Lines", "Polygons", "Strips")):
        group = root.get(name)
        m = int(group["NumberOfCells"][first]) if group is not None else 0
        if not m:
            continue
        at = int(steps["CellOffsets"][step][column]) + first if steps is not None and "CellOffsets" in steps else first
        ids = int(steps["ConnectivityIdOffsets"][step][column]) if steps is not None and "ConnectivityIdOffsets" in steps else 0
        ends = group["Offsets"][at:at + m + 1].astype(np.int64)
        connectivity.append(group["Connectivity"][ids:ids + int(ends[-1])].astype(np.int64))
        offsets.append(ends[1:] + int(offsets[-1][-1]))
        sizes = np.diff(ends)
        types.append({"Vertices": np.where(sizes == 1, VERTEX, 2), "Lines": np.where(sizes == 2, LINE, POLY_LINE),
                      "Polygons": np.where(sizes == 3, TRIANGLE, np.where(sizes == 4, QUAD, POLYGON)),
                      "Strips": np.full(m, TRIANGLE_STRIP)}[name])
    empty = np.zeros(0, np.int64)
    return Mesh(points, np.concatenate(connectivity or [empty]), np.concatenate(offsets), np.concatenate(types or [empty]))


def _image(root: Any, steps: Any, path: str, step: int) -> Mesh:
    extent, origin, spacing = (np.asarray(root.attrs[name]) for name in ("WholeExtent", "Origin", "Spacing"))
    turn = np.asarray(root.attrs.get("Direction", np.eye(3).ravel()), np.float64).reshape(3, 3)
    if extent.shape != (6,) or origin.shape != (3,) or spacing.shape != (3,):
        raise SnapshotFileError(path, f"is no image: WholeExtent is {extent}, Origin {origin}, Spacing {spacing}")
    points = math.prod(max(0, int(extent[2 * k + 1]) - int(extent[2 * k]) + 1) for k in range(3))
    root._look.check_some(24 * points, "WholeExtent")
    axes = [np.arange(extent[2 * k], extent[2 * k + 1] + 1) * spacing[k] for k in range(3)]
    grid = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1], -1)
    return Mesh.structured(grid @ turn.T + origin)
