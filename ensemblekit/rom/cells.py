"""VTK's cell types: their numbers, corners, faces and dimensions."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np

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
    def dimension(self) -> int: ...
    @property
    def volumes(self) -> np.ndarray: ...
    @classmethod
    def of(cls, points: Any, cells: Any, kind: Any) -> Self: ...
