"""Meshes of OpenFOAM: polyMesh folders as cells, patches and zones."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.rom.cells import POLYGON, QUAD, TRIANGLE, Polyhedra
from ensemblekit.rom.mesh import Mesh
from ensemblekit.rom.readers.foamfile import HEAD, load, there


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    name: str
    kind: str
    start: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class PolyMesh:
    """constant/polyMesh of a case or of one of its processors."""

    points: np.ndarray
    face_offsets: np.ndarray
    face_points: np.ndarray
    owner: np.ndarray
    neighbour: np.ndarray
    patches: tuple[Patch, ...]

    @property
    def n_cells(self) -> int:
        return int(max(self.owner.max(initial=-1), self.neighbour.max(initial=-1))) + 1

    @property
    def volumes(self) -> np.ndarray:
        """(n_cells,), by the divergence theorem over the faces; exact for planar and bilinear faces."""
        from ensemblekit.rom import kernels_mesh as kernels

        volumes = np.zeros(self.n_cells)
        kernels.face_flux(self.points, self.face_offsets, self.face_points, self.owner, self.neighbour, volumes)
        return volumes


def read_poly_mesh(folder: str) -> PolyMesh:
    """Points, faces, owner, neighbour and boundary of a polyMesh folder. Raises SnapshotFileError."""
    from ensemblekit.rom import kernels_mesh as kernels

    file = load(os.path.join(folder, "points"))
    points = file.numbers(file.list_start(), file.scalar, 3, len(file.data))[0].astype(np.float64)
    file = load(os.path.join(folder, "faces"))
    if file.binary:
        if "Compact" not in file.kind:
            raise file.wrong(f"is a binary {file.kind}; only faceCompactList is written in binary")
        offsets, at = file.numbers(file.list_start(), file.label, 1)
        members, _ = file.numbers(at, file.label, 1)
        offsets, members = offsets.astype(np.int64), members.astype(np.int64)
    elif "Compact" in file.kind:
        at = file.list_start()
        close = file.data.find(b")", at)
        offsets = file.numbers(at, file.label, 1, close + 1)[0].astype(np.int64)
        members = file.numbers(close + 1, file.label, 1, len(file.data))[0].astype(np.int64)
    else:
        head = re.compile(rb"\s*(\d+)\s*\(").match(file.data, file.list_start())
        end = file.data.rfind(b")")
        if head is None or end < 0:
            raise file.wrong("its list of faces is not where it should be, or is cut short")
        text = file.data[head.end():end].translate(bytes.maketrans(b"()", b"  "))
        flat = np.fromstring(text, np.int64, sep=" ") if text.strip() else np.zeros(0, np.int64)
        starts = np.zeros(int(head.group(1)) + 1, np.int64)
        if not kernels.face_starts(flat, starts):
            raise file.wrong(f"is cut short, or damaged: it does not hold the {head.group(1).decode()} faces it announces")
        members = np.delete(flat, starts[:-1])
        offsets = starts - np.arange(len(starts))
    owner = load(os.path.join(folder, "owner")).labels()
    neighbour = load(os.path.join(folder, "neighbour")).labels() if there(os.path.join(folder, "neighbour")) else np.zeros(
        0, np.int64)
    neighbour = neighbour[neighbour >= 0]       # very old cases pad it with -1 for the boundary
    if len(owner) != len(offsets) - 1 or (len(members) and members.max() >= len(points)):
        raise SnapshotFileError(folder, f"its files do not fit each other: {len(offsets) - 1} faces, {len(owner)} owners, "
                                        f"{len(points)} points")
    return PolyMesh(points, offsets, members, owner, neighbour, read_patches(folder))


def read_patches(folder: str) -> tuple[Patch, ...]:
    path = os.path.join(folder, "boundary")
    if not there(path):
        return ()
    file = load(path)
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", file.data[file.body:].decode("utf-8", "replace"), flags=re.S)
    patches = []
    for name, body in re.findall(r"([^\s{}();]+)\s*\{(.*?)\}", text, re.S):
        keys = dict(re.findall(r"(\w+)\s+([^;]*);", body))
        if "nFaces" in keys and "startFace" in keys:
            patches.append(Patch(name, keys.get("type", "patch"), int(keys["startFace"]), int(keys["nFaces"])))
    return tuple(patches)


def cells_of(poly: PolyMesh) -> Mesh:
    """Cells in VTK's types: tetrahedra, pyramids, wedges, hexahedra where they are, polyhedra else."""
    from ensemblekit.rom import kernels_mesh as kernels

    n = poly.n_cells
    whose = np.concatenate([poly.owner, poly.neighbour])
    which = np.concatenate([np.arange(len(poly.owner)), np.arange(len(poly.neighbour))])
    order = np.argsort(whose, kind="stable")
    faces = which[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(whose, minlength=n))])
    types, corners = np.zeros(n, np.uint8), np.zeros((n, 8), np.int64)
    kernels.recognise_cells(poly.face_offsets, poly.face_points, poly.owner, starts, faces, types, corners)
    sizes = np.zeros(43, np.int64)
    sizes[[10, 14, 13, 12]] = 4, 5, 6, 8
    counts = sizes[types]
    odd = np.flatnonzero(types == 42)
    polyhedra, members = None, {}
    if len(odd):
        for i in odd:
            subset = faces[starts[i]:starts[i + 1]]
            members[i] = np.unique(np.concatenate([poly.face_points[poly.face_offsets[f]:poly.face_offsets[f + 1]]
                                                   for f in subset]))
            counts[i] = len(members[i])
        own = np.zeros(n, np.int64)
        own[odd] = np.diff(starts)[odd]
        used = np.concatenate([faces[starts[i]:starts[i + 1]] for i in odd])
        kept, numbers = np.unique(used, return_inverse=True)
        lengths = np.diff(poly.face_offsets)[kept]
        face_points = poly.face_points[np.repeat(poly.face_offsets[kept] - np.append(0, np.cumsum(lengths)[:-1]), lengths)
                                       + np.arange(lengths.sum())]
        polyhedra = Polyhedra(np.concatenate([[0], np.cumsum(lengths)]), face_points, np.concatenate([[0], np.cumsum(own)]),
                              numbers.astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    connectivity = np.empty(offsets[-1], np.int64)
    for kind in (10, 12, 13, 14):
        subset = np.flatnonzero(types == kind)
        connectivity[offsets[subset][:, None] + np.arange(sizes[kind])] = corners[subset, :sizes[kind]]
    for i, points in members.items():
        connectivity[offsets[i]:offsets[i + 1]] = points
    return Mesh(poly.points, connectivity, offsets, types, polyhedra, unit="m", given_volumes=poly.volumes)


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """Several meshes as one, points and cells one after the other; a point on a common border stands in each."""
    if len(meshes) == 1:
        return meshes[0]
    points = np.cumsum([0] + [m.n_points for m in meshes])
    sizes = np.concatenate([np.diff(m.offsets) for m in meshes])
    polyhedra = None
    if any(m.polyhedra is not None for m in meshes):
        parts, first_face = [], 0
        for m, shift in zip(meshes, points, strict=False):
            p = m.polyhedra or Polyhedra(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(m.n_cells + 1, np.int64),
                                         np.zeros(0, np.int64))
            parts.append((np.diff(p.face_offsets), p.face_points + shift, np.diff(p.cell_offsets), p.cell_faces + first_face))
            first_face += len(p.face_offsets) - 1
        faces, members, cells, numbers = (np.concatenate(x) for x in zip(*parts, strict=True))
        polyhedra = Polyhedra(np.concatenate([[0], np.cumsum(faces)]), members, np.concatenate([[0], np.cumsum(cells)]),
                              numbers)
    given = None
    if all(m.given_volumes is not None for m in meshes):
        given = np.concatenate([m.given_volumes for m in meshes])
    weights = None
    if all(m.given_point_volumes is not None for m in meshes):
        weights = np.concatenate([m.given_point_volumes for m in meshes])
    return Mesh(np.concatenate([m.points for m in meshes]),
                np.concatenate([m.connectivity + shift for m, shift in zip(meshes, points, strict=False)]),
                np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([m.types for m in meshes]), polyhedra,
                meshes[0].association, meshes[0].unit, given, weights)


def taken(mesh: Mesh, cells: np.ndarray) -> Mesh:
    """Some cells of a mesh, in the order given; points stay as they are."""
    counts = np.diff(mesh.offsets)[cells]
    at = np.repeat(mesh.offsets[cells] - np.append(0, np.cumsum(counts)[:-1]), counts) + np.arange(counts.sum())
    polyhedra = None
    if mesh.polyhedra is not None:
        p = mesh.polyhedra
        own = np.diff(p.cell_offsets)[cells]
        which = np.repeat(p.cell_offsets[cells] - np.append(0, np.cumsum(own)[:-1]), own) + np.arange(own.sum())
        polyhedra = Polyhedra(p.face_offsets, p.face_points, np.concatenate([[0], np.cumsum(own)]), p.cell_faces[which])
    return Mesh(mesh.points, mesh.connectivity[at], np.concatenate([[0], np.cumsum(counts)]), mesh.types[cells], polyhedra,
                mesh.association, mesh.unit, None if mesh.given_volumes is None else mesh.given_volumes[cells])


def count_cells(folder: str) -> int:
    """From the note in the header of the owner file, else from its labels."""
    path = os.path.join(folder, "owner")
    note = re.search(r"nCells:\s*(\d+)", load(path, HEAD).header.get("note", ""))
    if note:
        return int(note.group(1))
    neighbour = os.path.join(folder, "neighbour")
    inner = load(neighbour).labels() if there(neighbour) else np.zeros(0, np.int64)
    return int(max(load(path).labels().max(initial=-1), inner.max(initial=-1))) + 1


def zone_cells(folder: str, zone: str) -> np.ndarray:
    path = os.path.join(folder, "cellZones")
    if not there(path):
        raise InputError(f"{folder} has no cell zones; zone={zone!r} was asked for")
    file = load(path)
    names: list[str] = []
    at = file.body
    while True:
        match = re.compile(rb"([^\s{}();]+)\s*\{\s*type\s+cellZone\s*;\s*cellLabels\s+List<label>").search(file.data, at)
        if match is None:
            raise InputError(f"{path} has no zone {zone!r}; the zones are {', '.join(names) or 'none'}")
        cells, at = file.numbers(match.end(), file.label, 1)
        if match.group(1).decode() == zone:
            return cells.astype(np.int64)
        names.append(match.group(1).decode())


def patch_mesh(poly: PolyMesh, name: str) -> Mesh:
    """The faces of a patch as polygons; no faces where this processor has none of it."""
    patch = next((p for p in poly.patches if p.name == name), Patch(name, "patch", 0, 0))
    offsets = poly.face_offsets[patch.start:patch.start + patch.size + 1]
    members = poly.face_points[offsets[0]:offsets[-1]] if patch.size else np.zeros(0, np.int64)
    used, connectivity = np.unique(members, return_inverse=True)
    sizes = np.diff(offsets) if patch.size else np.zeros(0, np.int64)
    types = np.full(len(sizes), POLYGON, np.uint8)
    types[sizes == 3], types[sizes == 4] = TRIANGLE, QUAD
    return Mesh(poly.points[used], connectivity, np.concatenate([[0], np.cumsum(sizes)]), types, unit="m")
