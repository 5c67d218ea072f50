"""Measures of cells with curved edges: exact integrals over their (bi)quadratic faces."""

from __future__ import annotations

import numpy as np

from ensemblekit.rom.cells import DIMENSIONS, QUADRATIC, SIZES, Cells

# Faces by the number of their nodes: (edges in order of the corners, then mid-edge nodes, then the middle)
QUADRATIC_FACES: dict[int, tuple[tuple[int, ...], ...]] = {
    24: ((0, 1, 3, 4, 8, 7), (1, 2, 3, 5, 9, 8), (2, 0, 3, 6, 7, 9), (0, 2, 1, 6, 5, 4)),
    25: ((0, 4, 7, 3, 16, 15, 19, 11), (1, 2, 6, 5, 9, 18, 13, 17), (0, 1, 5, 4, 8, 17, 12, 16),
         (3, 7, 6, 2, 19, 14, 18, 10), (0, 3, 2, 1, 11, 10, 9, 8), (4, 5, 6, 7, 12, 13, 14, 15)),
    26: ((0, 1, 2, 6, 7, 8), (3, 5, 4, 11, 10, 9), (0, 3, 4, 1, 12, 9, 13, 6), (1, 4, 5, 2, 13, 10, 14, 7),
         (2, 5, 3, 0, 14, 11, 12, 8)),
    27: ((0, 3, 2, 1, 8, 7, 6, 5), (0, 1, 4, 5, 10, 9), (1, 2, 4, 6, 11, 10), (2, 3, 4, 7, 12, 11), (3, 0, 4, 8, 9, 12)),
    29: ((0, 4, 7, 3, 16, 15, 19, 11, 20), (1, 2, 6, 5, 9, 18, 13, 17, 21), (0, 1, 5, 4, 8, 17, 12, 16, 22),
         (3, 7, 6, 2, 19, 14, 18, 10, 23), (0, 3, 2, 1, 11, 10, 9, 8, 24), (4, 5, 6, 7, 12, 13, 14, 15, 25)),
}
FLAT = {22: 6, 23: 8, 28: 9}
"""Quadratic surface cells and their number of nodes."""


def curved_measures(mesh: Cells, chosen: np.ndarray, volumes: np.ndarray, shares: np.ndarray) -> None:
    """Fill the volumes of the cells `chosen`, all curved, and add to the points' shares.

    Quadratic triangles, quadrilaterals, tetrahedra, hexahedra, wedges and pyramids are integrated exactly (surfaces that
    are curved in space to quadrature); cells of other kinds (Lagrange, Bezier) count as the straight cell of their
    corners. A point's share is the cell's measure over its number of points, as quadratic shape functions have
    negative integrals at corners, which make no inner product.
    """
    for kind in np.unique(mesh.types[chosen]):
        cells = chosen[mesh.types[chosen] == kind]
        straight = QUADRATIC[int(kind)]
        if DIMENSIONS[straight] < mesh.dimension:
            continue
        if int(kind) in QUADRATIC_FACES:
            part = np.abs(sum(_flux(mesh, cells, face) for face in QUADRATIC_FACES[int(kind)]))
        elif int(kind) in FLAT:
            part = _area(mesh, cells, FLAT[int(kind)])
        else:
            size = SIZES[straight]
            corners = mesh.connectivity[mesh.offsets[cells][:, None] + np.arange(size)]
            part = type(mesh).of(mesh.points, corners, straight).volumes
        volumes[cells] = part
        counts = np.diff(mesh.offsets)[cells]
        members = mesh.connectivity[np.repeat(mesh.offsets[cells] - np.append(0, np.cumsum(counts)[:-1]), counts)
                                    + np.arange(counts.sum())]
        np.add.at(shares, members, np.repeat(part / counts, counts))


def _nodes(mesh: Cells, cells: np.ndarray, local: tuple[int, ...]) -> np.ndarray:
    """(cells, nodes, 3), from each cell's first node, so that no digits go where the mesh is far from zero."""
    first = mesh.offsets[cells]
    return mesh.points[mesh.connectivity[first[:, None] + np.array(local)]] - mesh.points[mesh.connectivity[first]][:, None]


def _flux(mesh: Cells, cells: np.ndarray, face: tuple[int, ...]) -> np.ndarray:
    x = _nodes(mesh, cells, face)
    total = np.zeros(len(cells))
    for weight, values, along, across in _rule(len(face)):
        at, a, b = (np.einsum("n,cnk->ck", shape, x) for shape in (values, along, across))
        total += weight * np.einsum("ck,ck->c", at, np.cross(a, b))
    return total / 3


def _area(mesh: Cells, cells: np.ndarray, nodes: int) -> np.ndarray:
    x = _nodes(mesh, cells, tuple(range(nodes)))
    total = np.zeros(len(cells))
    for weight, _, along, across in _rule(nodes):
        a, b = (np.einsum("n,cnk->ck", shape, x) for shape in (along, across))
        total += weight * np.linalg.norm(np.cross(a, b), axis=1)
    return total


def _rule(nodes: int) -> list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
    """Quadrature of a face: weight, and values and two derivatives of the shape functions at each of its points."""
    rule = []
    if nodes == 6:
        for r, s, weight in _triangle_rule():
            t = 1 - r - s
            values = np.array([t * (2 * t - 1), r * (2 * r - 1), s * (2 * s - 1), 4 * r * t, 4 * r * s, 4 * s * t])
            along = np.array([1 - 4 * t, 4 * r - 1, 0, 4 * (t - r), 4 * s, -4 * s])
            across = np.array([1 - 4 * t, 0, 4 * s - 1, -4 * r, 4 * r, 4 * (t - s)])
            rule.append((weight, values, along, across))
        return rule
    abscissae, weights = np.polynomial.legendre.leggauss(4)
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    middles = ((0, -1), (1, 0), (0, 1), (-1, 0))
    for r, wr in zip(abscissae, weights, strict=True):
        for s, ws in zip(abscissae, weights, strict=True):
            if nodes == 9:
                at = [(_quadratic(r, a), _quadratic(s, b)) for a, b in (*corners, *middles, (0, 0))]
                values = np.array([f[0] * g[0] for f, g in at])
                along = np.array([f[1] * g[0] for f, g in at])
                across = np.array([f[0] * g[1] for f, g in at])
            else:
                values, along, across = np.empty(8), np.empty(8), np.empty(8)
                for k, (a, b) in enumerate(corners):
                    values[k] = (1 + a * r) * (1 + b * s) * (a * r + b * s - 1) / 4
                    along[k] = a * (1 + b * s) * (2 * a * r + b * s) / 4
                    across[k] = b * (1 + a * r) * (2 * b * s + a * r) / 4
                for k, (a, b) in enumerate(middles, 4):
                    if a == 0:
                        values[k], along[k], across[k] = (1 - r * r) * (1 + b * s) / 2, -r * (1 + b * s), b * (1 - r * r) / 2
                    else:
                        values[k], along[k], across[k] = (1 - s * s) * (1 + a * r) / 2, a * (1 - s * s) / 2, -s * (1 + a * r)
            rule.append((float(wr * ws), values, along, across))
    return rule


def _quadratic(r: float, node: int) -> tuple[float, float]:
    """Value and derivative of the quadratic polynomial that is 1 at `node` and 0 at the other two of -1, 0, 1."""
    if node == 0:
        return 1 - r * r, -2 * r
    return r * (r + node) / 2, r + node / 2


def _triangle_rule() -> list[tuple[float, float, float]]:
    """(r, s, weight) on the unit triangle, exact to degree 7: a Gauss rule on the square, folded."""
    abscissae, weights = np.polynomial.legendre.leggauss(4)
    u, w = (abscissae + 1) / 2, weights / 2
    return [(float(a * (1 - b)), float(b), float(wa * wb * (1 - b))) for a, wa in zip(u, w, strict=True)
            for b, wb in zip(u, w, strict=True)]
