"""Loops along time: unwrapping of paths, and squared displacements from running sums."""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel
from ensemblekit.md.kernels_pbc import lower_triangular, nearest_image


@kernel
def unwrap(paths, cells):
    """Undo the jumps through the faces of the box: paths (n, atoms, 3) float64, changed in place; cells (n, 3, 3).

    Each step becomes its nearest image in the box of the frame it leads to, and steps are summed: the scheme that keeps
    the displacements of a changing (NPT) box right, von Bulow, Bullerjahn & Hummer, J. Chem. Phys. 153, 021101 (2020),
    there for rectangular boxes, here for any. Returns the largest step as a share of half the shortest side of the
    brick (near 1 and above, frames lie too far apart to know the image), -1.0 where a cell has no volume.
    """
    n, atoms = paths.shape[0], paths.shape[1]
    lower, turn = np.empty((3, 3)), np.empty((3, 3))
    last = paths[0].copy()
    largest = 0.0
    for f in range(1, n):
        if not lower_triangular(cells[f], lower, turn) > 0.0:
            return -1.0
        half = 0.5 * min(lower[0, 0], lower[1, 1], lower[2, 2])
        for a in range(atoms):
            dx, dy, dz = paths[f, a, 0] - last[a, 0], paths[f, a, 1] - last[a, 1], paths[f, a, 2] - last[a, 2]
            for k in range(3):
                last[a, k] = paths[f, a, k]
            x, y, z, d2 = nearest_image(dx * turn[0, 0] + dy * turn[1, 0] + dz * turn[2, 0],
                                        dx * turn[0, 1] + dy * turn[1, 1] + dz * turn[2, 1],
                                        dx * turn[0, 2] + dy * turn[1, 2] + dz * turn[2, 2], lower)
            largest = max(largest, d2 / (half * half))
            for k in range(3):
                paths[f, a, k] = paths[f - 1, a, k] + x * turn[k, 0] + y * turn[k, 1] + z * turn[k, 2]
    return math.sqrt(largest)


@kernel
def add_squared(paths, correlation, owner, sums):
    """Add the mean squared displacement of each path, over all windows, to the sums of its group.

    paths: (columns, n) float64, three columns an atom or as many as there are dimensions; correlation: (columns, lags or
    more), sums over windows of x(t) x(t + lag); owner: (columns,) group; sums: (groups, lags). The squares in the windows of
    lag m are those of lag m - 1 without the two at the ends (Calandrini et al., nMoldyn 3, Collection SFN 12, 201, 2011).
    """
    columns, n = paths.shape
    lags = sums.shape[1]
    for c in range(columns):
        path, correlated, total = paths[c], correlation[c], sums[owner[c]]
        squares = 0.0
        for t in range(n):
            squares += path[t] * path[t]
        squares *= 2.0
        for m in range(1, lags):
            squares -= path[m - 1] * path[m - 1] + path[n - m] * path[n - m]
            total[m] += max(squares - 2.0 * correlated[m], 0.0) / (n - m)
