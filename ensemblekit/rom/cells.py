"""VTK's cell types: their numbers, corners, faces and dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from ensemblekit.errors import InputError

# The numbers of VTK's linear cell types (vtkCellType.h)
VERTEX, POLY_VERTEX, LINE, POLY_LINE, TRIANGLE, TRIANGLE_STRIP, POLYGON, PIXEL, QUAD = 1, 2, 3, 4, 5, 6, 7, 8, 9
TETRA, VOXEL, HEXAHEDRON, WEDGE, PYRAMID, PENTAGONAL_PRISM, HEXAGONAL_PRISM, POLYHEDRON = 10, 11, 12, 13, 14, 15, 16, 42

# Corners of each face in VTK's numbering, ordered so that the normal points out
FACES: dict[int, tuple[tuple[int, ...], ...]] = {
    TETRA: ((0, 1, 3), (1, 2, 3), (2, 0, 3), (0, 2, 1)),
    VOXEL: ((0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6)),
    HEXAHEDRON: ((0, 4, 7, 3), (1, 2, 6, 5), (0, 1, 5, 4), (3, 7, 6, 2), (0, 3, 2, 1), (4, 5, 6, 7)),
    WEDGE: ((0, 1, 2), (3, 5, 4), (0, 3, 4, 1), (1, 4, 5, 2), (2, 5, 3, 0)),
    PYRAMID: ((0, 3, 2, 1), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)),
    PENTAGONAL_PRISM: ((0, 4, 3, 2, 1), (5, 6, 7, 8, 9), (0, 1, 6, 5), (1, 2, 7, 6), (2, 3, 8, 7), (3, 4, 9, 8),
                       (4, 0, 5, 9)),
    HEXAGONAL_PRISM: ((0, 5, 4, 3, 2, 1), (6, 7, 8, 9, 10, 11), (0, 1, 7, 6), (1, 2, 8, 7), (2, 3, 9, 8), (3, 4, 10, 9),
                      (4, 5, 11, 10), (5, 0, 6, 11)),
}
SIZES = {VERTEX: 1, LINE: 2, TRIANGLE: 3, PIXEL: 4, QUAD: 4, TETRA: 4, VOXEL: 8, HEXAHEDRON: 8, WEDGE: 6, PYRAMID: 5,
         PENTAGONAL_PRISM: 10, HEXAGONAL_PRISM: 12}
DIMENSIONS = {0: 0, VERTEX: 0, POLY_VERTEX: 0, LINE: 1, POLY_LINE: 1, TRIANGLE: 2, TRIANGLE_STRIP: 2, POLYGON: 2, PIXEL: 2,
              QUAD: 2, **dict.fromkeys((*FACES, POLYHEDRON), 3)}
QUADRATIC = {21: LINE, 22: TRIANGLE, 23: QUAD, 24: TETRA, 25: HEXAHEDRON, 26: WEDGE, 27: PYRAMID, 28: QUAD, 29: HEXAHEDRON,
             30: QUAD, 31: WEDGE, 32: WEDGE, 33: HEXAHEDRON, 34: TRIANGLE, 35: LINE, 37: PYRAMID, 68: LINE, 69: TRIANGLE,
             70: QUAD, 71: TETRA, 72: HEXAHEDRON, 73: WEDGE, 74: PYRAMID, 75: LINE, 76: TRIANGLE, 77: QUAD, 78: TETRA,
             79: HEXAHEDRON, 80: WEDGE, 81: PYRAMID}
"""Cells with curved edges -> the straight cell of their corners, which VTK lists first."""


class Cells(Protocol):
    """Points and cells, as a mesh has them."""

    @property
    def points(self) -> np.ndarray: ...
    @property
    def connectivity(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def types(self) -> np.ndarray: ...
    @property
    def polyhedra(self) -> Polyhedra | None: ...
    @property
    def n_points(self) -> int: ...
    @property
    def n_cells(self) -> int: ...
    @property
    def dimension(self) -> int: ...
    @property
    def volumes(self) -> np.ndarray: ...
    @classmethod
    def of(cls, points: np.ndarray, cells: np.ndarray, kind: int | None) -> Self: ...


@dataclass(frozen=True, slots=True, eq=False)
class Polyhedra:
    """Faces of the cells of type 42, as VTKHDF lists them; a face that two cells share stands once."""

    face_offsets: np.ndarray
    """(n_faces + 1,) int64."""
    face_points: np.ndarray
    """The points of the faces, one face after the other."""
    cell_offsets: np.ndarray
    """(n_cells + 1,) int64, for all cells; other types have none."""
    cell_faces: np.ndarray
    """The faces of the cells, one cell after the other."""

    def check(self, n_cells: int, n_points: int) -> None:
        """Raise InputError where faces or points are named that are not there."""
        n_faces = len(self.face_offsets) - 1
        for what, offsets, named, below, n in (("faces", self.face_offsets, self.face_points, n_points, n_faces),
                                               ("cells", self.cell_offsets, self.cell_faces, n_faces, n_cells)):
            if np.shape(offsets) != (n + 1,) or offsets[0] != 0 or offsets[-1] != len(named) or (np.diff(offsets) < 0).any():
                raise InputError(f"offsets of {n} {what} are {n + 1} rising numbers from 0 to {len(named)}")
            if len(named) and not (0 <= np.min(named) and np.max(named) < below):
                raise InputError(f"{what} name the numbers {np.min(named)} to {np.max(named)}, where there are {below}")
