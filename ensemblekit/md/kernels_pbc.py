"""Loops over periodic images: boxes in lower triangular form, atoms wrapped into them, nearest images.

A cell is three vectors in rows, (3, 3). Turned so that a lies along x and b in the plane of x and y it is lower
triangular, and the brick [0, a_x) x [0, b_y) x [0, c_z) holds every point of space exactly once (mod the lattice),
however skew the vectors are. All that follows works on bricks, so no cell needs to be reduced first.
"""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel


@kernel
def lower_triangular(cell, lower, turn):
    """Write the cell in lower triangular form, and the rotation (x @ turn) that takes positions along.

    cell, lower, turn: (3, 3). Returns the volume, 0.0 where the cell has none (or is not finite). A mirrored
    (left-handed) cell keeps its lattice; the rows of `lower` then have a negative diagonal turned positive.
    """
    for i in range(3):
        for j in range(3):
            if not math.isfinite(cell[i, j]):
                return 0.0
    flat = cell[0, 1] == 0.0 and cell[0, 2] == 0.0 and cell[1, 2] == 0.0
    if flat and cell[0, 0] > 0.0 and cell[1, 1] > 0.0 and cell[2, 2] > 0.0:
        for i in range(3):
            for j in range(3):
                lower[i, j] = cell[i, j]
                turn[i, j] = 1.0 if i == j else 0.0
        return lower[0, 0] * lower[1, 1] * lower[2, 2]
    for i in range(3):          # Gram & Schmidt: column i of `turn` is the new axis i
        for k in range(3):
            turn[k, i] = cell[i, k]
        for j in range(i):
            share = 0.0
            for k in range(3):
                share += cell[i, k] * turn[k, j]
            for k in range(3):
                turn[k, i] -= share * turn[k, j]
        size = math.sqrt(turn[0, i] ** 2 + turn[1, i] ** 2 + turn[2, i] ** 2)
        if not size > 0.0:
            return 0.0
        for k in range(3):
            turn[k, i] /= size
    for i in range(3):
        for j in range(3):
            lower[i, j] = 0.0
            if j <= i:
                for k in range(3):
                    lower[i, j] += cell[i, k] * turn[k, j]
    return lower[0, 0] * lower[1, 1] * lower[2, 2]


@kernel
def into_brick(positions, atoms, lower, turn, out):
    """Positions (any, 3) of `atoms`, turned and wrapped into the brick, to out (3, len(atoms)); False where one is not finite.

    What comes out lies in [0, length) along each axis, also where rounding would give the length itself.
    """
    for n in range(len(atoms)):
        p = positions[atoms[n]]
        px, py, pz = float(p[0]), float(p[1]), float(p[2])
        x = px * turn[0, 0] + py * turn[1, 0] + pz * turn[2, 0]
        y = px * turn[0, 1] + py * turn[1, 1] + pz * turn[2, 1]
        z = px * turn[0, 2] + py * turn[1, 2] + pz * turn[2, 2]
        if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
            return False
        s = math.floor(z / lower[2, 2])
        x, y, z = x - s * lower[2, 0], y - s * lower[2, 1], z - s * lower[2, 2]
        s = math.floor(y / lower[1, 1])
        x, y = x - s * lower[1, 0], y - s * lower[1, 1]
        x -= math.floor(x / lower[0, 0]) * lower[0, 0]
        out[0, n] = x if 0.0 <= x < lower[0, 0] else 0.0
        out[1, n] = y if 0.0 <= y < lower[1, 1] else 0.0
        out[2, n] = z if 0.0 <= z < lower[2, 2] else 0.0
    return True


@kernel
def nearest_image(dx, dy, dz, lower):
    """The shortest of the images of a displacement, exactly, in any box; the box lower triangular.

    Reduced axis by axis first, which ends within half a brick of zero; an image closer still can only lie where
    each of its components along z, y, x in turn is shorter than the best length so far, and all of those are tried.
    """
    s = round(dz / lower[2, 2])
    dx, dy, dz = dx - s * lower[2, 0], dy - s * lower[2, 1], dz - s * lower[2, 2]
    s = round(dy / lower[1, 1])
    dx, dy = dx - s * lower[1, 0], dy - s * lower[1, 1]
    dx -= round(dx / lower[0, 0]) * lower[0, 0]
    bx, by, bz = dx, dy, dz
    best = dx * dx + dy * dy + dz * dz
    half = 0.5 * min(lower[0, 0], lower[1, 1], lower[2, 2])
    if best <= half * half:     # a lattice vector has a component of a whole brick side at the least, so nothing is closer
        return bx, by, bz, best
    r = math.sqrt(best)
    for c in range(math.ceil((-r - dz) / lower[2, 2]), math.floor((r - dz) / lower[2, 2]) + 1):
        z = dz + c * lower[2, 2]
        left = best - z * z
        if left < 0.0:
            continue
        r = math.sqrt(left)
        y0 = dy + c * lower[2, 1]
        for b in range(math.ceil((-r - y0) / lower[1, 1]), math.floor((r - y0) / lower[1, 1]) + 1):
            y = y0 + b * lower[1, 1]
            x = dx + c * lower[2, 0] + b * lower[1, 0]
            x -= round(x / lower[0, 0]) * lower[0, 0]
            d2 = x * x + y * y + z * z
            if d2 < best:
                best, bx, by, bz = d2, x, y, z
        r = math.sqrt(best)
    return bx, by, bz, best


@kernel
def nearest_displacements(a, b, cell, out):
    """The shortest image of b - a: a, b (n, 3), cell (3, 3), out (n, 3), all in the cell's own orientation.

    Returns False where the cell has no volume.
    """
    lower, turn = np.empty((3, 3)), np.empty((3, 3))
    if not lower_triangular(cell, lower, turn) > 0.0:
        return False
    for n in range(len(a)):
        dx, dy, dz = float(b[n, 0]) - a[n, 0], float(b[n, 1]) - a[n, 1], float(b[n, 2]) - a[n, 2]
        x, y, z, _ = nearest_image(dx * turn[0, 0] + dy * turn[1, 0] + dz * turn[2, 0],
                                   dx * turn[0, 1] + dy * turn[1, 1] + dz * turn[2, 1],
                                   dx * turn[0, 2] + dy * turn[1, 2] + dz * turn[2, 2], lower)
        for k in range(3):
            out[n, k] = x * turn[k, 0] + y * turn[k, 1] + z * turn[k, 2]
    return True
