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
