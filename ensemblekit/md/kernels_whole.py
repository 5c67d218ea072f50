"""Loops that put broken molecules together, compiled."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel


@kernel
def inverse(box, out):
    """The inverse of a 3x3 matrix; False where it has none."""
    a, b, c = box[0, 0], box[0, 1], box[0, 2]
    d, e, f = box[1, 0], box[1, 1], box[1, 2]
    g, h, i = box[2, 0], box[2, 1], box[2, 2]
    det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if not abs(det) > 0.0:
        return False
    out[0, 0] = (e * i - f * h) / det
    out[0, 1] = (c * h - b * i) / det
    out[0, 2] = (b * f - c * e) / det
    out[1, 0] = (f * g - d * i) / det
    out[1, 1] = (a * i - c * g) / det
    out[1, 2] = (c * d - a * f) / det
    out[2, 0] = (d * h - e * g) / det
    out[2, 1] = (b * g - a * h) / det
    out[2, 2] = (a * e - b * d) / det
    return True


@kernel
def make_whole(position, boxes, walk, parent, place, out):
    """Each atom of the walk next to its parent, in the image its bond says; those selected go to out.

    position: (n, atoms, 3); boxes: (n, 3, 3), rows are cell vectors; walk: (m,) atoms, parents before their children;
    parent: (m,) places in the walk, -1 at the root of a molecule, which stays where it is; place: (m,) rows of out, -1 for
    atoms that are only on the way; out: (n, selected, 3). A bond is taken to be shorter than half the cell is high, so its
    nearest image is found by rounding in units of the cell. Returns the first frame whose box has no volume, or -1.
    """
    m = len(walk)
    image = np.zeros((m, 3), np.int64)
    box = np.empty((3, 3))
    inv = np.empty((3, 3))
    for f in range(len(position)):
        for j in range(3):
            for k in range(3):
                box[j, k] = boxes[f, j, k]
        if not inverse(box, inv):
            return f
        x = position[f]
        for j in range(m):
            a = walk[j]
            p = parent[j]
            if p < 0:
                image[j, 0] = 0
                image[j, 1] = 0
                image[j, 2] = 0
            else:
                b = walk[p]
                dx = np.float64(x[a, 0]) - np.float64(x[b, 0])
                dy = np.float64(x[a, 1]) - np.float64(x[b, 1])
                dz = np.float64(x[a, 2]) - np.float64(x[b, 2])
                for k in range(3):
                    s = dx * inv[0, k] + dy * inv[1, k] + dz * inv[2, k]
                    n = np.int64(np.floor(s + 0.5)) if abs(s) < 1e9 else 0
                    image[j, k] = image[p, k] - n
            r = place[j]
            if r >= 0:
                u, v, w = image[j, 0], image[j, 1], image[j, 2]
                if u == 0 and v == 0 and w == 0:
                    for k in range(3):
                        out[f, r, k] = x[a, k]
                else:
                    for k in range(3):
                        out[f, r, k] = x[a, k] + (u * box[0, k] + v * box[1, k] + w * box[2, k])
    return -1


@kernel
def unbroken(position, boxes, walk, parent):
    """Whether no bond of the walk crosses the box in any frame, so that make_whole would leave every atom where it is.

    position: (n, atoms, 3); boxes: (n, 3, 3); walk, parent: as in make_whole. The longest differences along x, y, z bound
    those in units of the cell; where they come near to half of it, the answer is no.
    """
    m = len(walk)
    box = np.empty((3, 3))
    inv = np.empty((3, 3))
    above = np.empty(m, np.int64)
    zero = position.dtype.type(0.0)
    for j in range(m):
        above[j] = walk[parent[j]] if parent[j] >= 0 else walk[j]
    for f in range(len(position)):
        for j in range(3):
            for k in range(3):
                box[j, k] = boxes[f, j, k]
        if not inverse(box, inv):
            return False
        x = position[f]
        first = 0
        while first < m:        # some at a time: a broken one is soon found
            last = min(first + 256, m)
            d0 = d1 = d2 = zero
            for j in range(first, last):
                a, b = np.uint64(walk[j]), np.uint64(above[j])
                e0, e1, e2 = abs(x[a, 0] - x[b, 0]), abs(x[a, 1] - x[b, 1]), abs(x[a, 2] - x[b, 2])
                d0 = e0 if e0 > d0 else d0          # NaN is left where it is, as make_whole does
                d1 = e1 if e1 > d1 else d1
                d2 = e2 if e2 > d2 else d2
            for k in range(3):
                if not abs(inv[0, k]) * d0 + abs(inv[1, k]) * d1 + abs(inv[2, k]) * d2 < 0.4999:
                    return False
            first = last
    return True


@kernel
def spread(roots, begin, ends, walk, before):
    """Atoms in the order in which bonds lead to them from the roots; how many there are.

    begin: (atoms + 1,) where the bonds of each atom begin in ends; walk, before: (atoms,), filled with the order and
    the atom each was reached from (left as it is for roots and what is not reached).
    """
    seen = np.zeros(len(begin) - 1, np.bool_)
    count = 0
    for root in roots:
        walk[count] = root
        seen[root] = True
        count += 1
    at = 0
    while at < count:
        a = walk[at]
        at += 1
        for k in range(begin[a], begin[a + 1]):
            b = ends[k]
            if not seen[b]:
                seen[b] = True
                before[b] = a
                walk[count] = b
                count += 1
    return count


@kernel
def upwards(walk, before, needed):
    """Mark as needed what lies between a needed atom and its root."""
    for k in range(len(walk) - 1, -1, -1):
        if needed[walk[k]] and before[walk[k]] >= 0:
            needed[before[walk[k]]] = True
