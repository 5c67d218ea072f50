"""What part of space each cell of a mesh, and each of its points, stands for."""

from __future__ import annotations

import numpy as np

from ensemblekit.rom.cells import (
    DIMENSIONS,
    FACES,
    PIXEL,
    POLYHEDRON,
    QUADRATIC,
    TRIANGLE_STRIP,
    Cells,
)
from ensemblekit.rom.curved import curved_measures


def measures_of(mesh: Cells) -> tuple[np.ndarray, np.ndarray]:
    """(volumes, point volumes) of the cells of the mesh's own dimension."""
    from ensemblekit.rom import kernels_mesh as kernels

    volumes, shares = np.zeros(mesh.n_cells), np.zeros(mesh.n_points)
    straight = mesh.types.copy()
    connectivity, offsets = mesh.connectivity, mesh.offsets
    curved = np.isin(straight, list(QUADRATIC))
    if curved.any():
        curved_measures(mesh, np.flatnonzero(curved), volumes, shares)
    for kind in np.unique(straight[~curved]):
        chosen = np.flatnonzero(mesh.types == kind)
        if DIMENSIONS[int(kind)] < mesh.dimension:
            continue
        if kind == POLYHEDRON:
            p = mesh.polyhedra
            assert p is not None
            starts = np.asarray(p.cell_offsets, np.int64)
            of_these = np.append(starts[chosen], starts[chosen[-1] + 1]) if len(chosen) == mesh.n_cells else None
            faces = np.asarray(p.cell_faces, np.int64)
            if of_these is None:
                counts = (starts[1:] - starts[:-1])[chosen]
                of_these = np.concatenate([[0], np.cumsum(counts)])
                faces = faces[np.repeat(starts[chosen] - of_these[:-1], counts) + np.arange(of_these[-1])]
            kernels.polyhedra(mesh.points, np.asarray(p.face_offsets, np.int64), np.asarray(p.face_points, np.int64), of_these,
                              faces, chosen, volumes, shares)
        elif int(kind) in FACES:
            kernels.solid_cells(mesh.points, connectivity, offsets, mesh.types, *_face_table(), chosen, volumes, shares)
        elif kind == TRIANGLE_STRIP:
            _strips(mesh, chosen, volumes, shares)
        elif kind == PIXEL:
            members = connectivity[offsets[chosen][:, None] + np.array([0, 1, 3, 2])]
            part = np.zeros(len(chosen))
            kernels.flat_cells(mesh.points, members.ravel(), np.arange(len(chosen) + 1) * 4, np.arange(len(chosen)), part,
                               shares)
            volumes[chosen] = part
        elif DIMENSIONS[int(kind)] == 2:
            kernels.flat_cells(mesh.points, connectivity, offsets, chosen, volumes, shares)
        elif DIMENSIONS[int(kind)] == 1:
            kernels.line_cells(mesh.points, connectivity, offsets, chosen, volumes, shares)
    if mesh.dimension == 0:
        volumes[:] = 1.0
        shares[:] = 1.0
    return volumes, shares


def _strips(mesh: Cells, chosen: np.ndarray, volumes: np.ndarray, shares: np.ndarray) -> None:
    from ensemblekit.rom import kernels_mesh as kernels

    for i in chosen:
        members = mesh.connectivity[mesh.offsets[i]:mesh.offsets[i + 1]]
        triangles = np.stack([members[:-2], members[1:-1], members[2:]], 1)
        areas = np.zeros(len(triangles))
        kernels.flat_cells(mesh.points, triangles.ravel(), np.arange(len(triangles) + 1) * 3, np.arange(len(triangles)), areas,
                           shares)
        volumes[i] = areas.sum()


def _face_table() -> tuple[np.ndarray, np.ndarray]:
    of_type = np.zeros((43, 2), np.int64)
    rows: list[tuple[int, ...]] = []
    for kind, faces in FACES.items():
        of_type[kind] = len(rows), len(rows) + len(faces)
        rows += [(len(face), *face, *[0] * (6 - len(face))) for face in faces]
    return of_type, np.array(rows, np.int64)
