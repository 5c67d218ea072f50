"""Which groups of atoms touch, by cell lists: the cost grows with the atoms, not with their pairs."""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel
from ensemblekit.md.kernels_pbc import into_brick, lower_triangular
from ensemblekit.md.kernels_rdf import _bounded, _images

MOST_CELLS = 1 << 21
"""Cells of a frame; where atoms are far apart they become larger."""


def touching(positions, boxes, a, b, row, column, radius, out):
    """Mark groups of which two atoms lie within `radius`: out[t, row[i], column[j]] = 1 for frame t, a[i] and b[j].

    positions: (n, atoms, 3); boxes: (n, 3, 3), or (0, 3, 3) without periodicity, each with a volume and higher than twice
    the radius; a, b: indices of atoms, all finite, which are not in contact with themselves; out: (n, rows, columns) of
    uint8. Not compiled itself, as pair_counts is not.
    """
    lower, turn = np.zeros((3, 3)), np.zeros((3, 3))
    x, y = np.empty((3, len(a))), np.empty((3, len(b)))
    images, owner = np.empty((3, 2 * len(b))), np.empty(2 * len(b), np.int64)
    reach = float(np.nextafter(radius, np.inf))
    for t in range(len(positions)):
        periodic = len(boxes) > 0
        if periodic:
            lower_triangular(boxes[t], lower, turn)
            into_brick(positions[t], a, lower, turn, x)
            into_brick(positions[t], b, lower, turn, y)
        else:
            lower[...] = 0.0
            _bounded(positions[t], a, b, reach, x, y, lower)
        total = _images(y, lower, reach, False, periodic, False, images, owner)
        if total > len(owner):
            images, owner = np.empty((3, total + total // 8)), np.empty(total + total // 8, np.int64)
        _images(y, lower, reach, False, periodic, True, images, owner)
        low = images[:, :total].min(axis=1)
        span = images[:, :total].max(axis=1) - low
        size = np.full(3, reach)
        while np.prod(np.floor(span / size) + 1) > min(MOST_CELLS, 8 * total + 64):
            size *= 1.26
        shape = (np.floor(span / size) + 1).astype(np.int64)
        _mark(x, images, owner, total, low, size, shape, a, b, row, column, radius * radius, out[t])


@kernel
def _mark(x, images, owner, total, low, size, shape, a, b, row, column, square, out):
    """One frame: sort the images into cells (shape) of `size` from `low` on, and look at the 27 about each atom of x."""
    nx, ny, nz = shape[0], shape[1], shape[2]
    begin = np.zeros(nx * ny * nz + 1, np.int64)
    where = np.empty(total, np.int64)
    for n in range(total):
        cx = min(max(math.floor((images[0, n] - low[0]) / size[0]), 0), nx - 1)
        cy = min(max(math.floor((images[1, n] - low[1]) / size[1]), 0), ny - 1)
        cz = min(max(math.floor((images[2, n] - low[2]) / size[2]), 0), nz - 1)
        where[n] = (cz * ny + cy) * nx + cx
        begin[where[n] + 1] += 1
    for cell in range(nx * ny * nz):
        begin[cell + 1] += begin[cell]
    at = begin[:-1].copy()
    y = np.empty((3, total))
    who = np.empty(total, np.int64)
    for n in range(total):
        to = at[where[n]]
        at[where[n]] += 1
        y[0, to], y[1, to], y[2, to] = images[0, n], images[1, n], images[2, n]
        who[to] = owner[n]
    for i in range(x.shape[1]):
        x0, x1, x2 = x[0, i], x[1, i], x[2, i]
        line = out[row[i]]
        cx = math.floor((x0 - low[0]) / size[0])
        cy = math.floor((x1 - low[1]) / size[1])
        cz = math.floor((x2 - low[2]) / size[2])
        left, right = max(cx - 1, 0), min(cx + 1, nx - 1)
        if left > right:
            continue
        for layer in range(max(cz - 1, 0), min(cz + 1, nz - 1) + 1):
            for lane in range(max(cy - 1, 0), min(cy + 1, ny - 1) + 1):
                cell = (layer * ny + lane) * nx
                for j in range(begin[cell + left], begin[cell + right + 1]):
                    d0, d1, d2 = y[0, j] - x0, y[1, j] - x1, y[2, j] - x2
                    if d0 * d0 + d1 * d1 + d2 * d2 <= square and a[i] != b[who[j]]:
                        line[column[who[j]]] = 1


__all__ = ["touching"]
