"""Loops over distances, angles and contacts, compiled; with the nearest image in boxes of any shape."""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel, sum_kernel
from ensemblekit.md.kernels_pbc import lower_triangular, nearest_image
from ensemblekit.md.kernels_superpose import gather


@kernel
def enter_cell(boxes, t, lower, turn):
    """Make ready the cell of frame t of boxes (n, 3, 3), of which there may be none.

    Returns 0 where there is no (whole) box, 1 where it is lower triangular as it came, 2 where it had to be turned.
    """
    if len(boxes) == 0:
        return 0
    if not lower_triangular(boxes[t], lower, turn) > 0.0:
        return 0
    return 1 if turn[0, 0] == 1.0 and turn[1, 1] == 1.0 and turn[2, 2] == 1.0 else 2


@kernel
def nearest(d0, d1, d2, kind, lower, turn):
    """The shortest of all images of a difference, turned with the cell: lengths and angles stay what they are."""
    if kind == 0:
        return d0, d1, d2
    if kind == 2:
        d0, d1, d2 = (d0 * turn[0, 0] + d1 * turn[1, 0] + d2 * turn[2, 0],
                      d0 * turn[0, 1] + d1 * turn[1, 1] + d2 * turn[2, 1],
                      d0 * turn[0, 2] + d1 * turn[1, 2] + d2 * turn[2, 2])
    if not abs(d0 + d1 + d2) < np.inf:
        return d0, d1, d2
    e0, e1, e2, _ = nearest_image(d0, d1, d2, lower)
    return e0, e1, e2


@kernel
def centres(flat, stride, n, width, atoms, offsets, shares, out):
    """Weighted centres of groups of atoms: out (n, groups, 3); group g is atoms[offsets[g]:offsets[g + 1]]."""
    for t in range(n):
        x = flat[t * stride:t * stride + width]
        for g in range(len(offsets) - 1):
            first = 3 * atoms[offsets[g]]
            o0, o1, o2 = np.float64(x[first]), np.float64(x[first + 1]), np.float64(x[first + 2])
            c0 = c1 = c2 = 0.0
            for i in range(offsets[g] + 1, offsets[g + 1]):
                j = 3 * atoms[i]
                c0 += shares[i] * (x[j] - o0)
                c1 += shares[i] * (x[j + 1] - o1)
                c2 += shares[i] * (x[j + 2] - o2)
            out[t, g, 0] = o0 + c0
            out[t, g, 1] = o1 + c1
            out[t, g, 2] = o2 + c2


@kernel
def distances(points, pairs, boxes, out):
    """Distances of pairs (p, 2) of points (n, k, 3): out (n, p); boxes (n, 3, 3), or none."""
    lower, turn = np.zeros((3, 3)), np.zeros((3, 3))
    for t in range(len(points)):
        kind = enter_cell(boxes, t, lower, turn)
        x = points[t]
        for p in range(len(pairs)):
            i, j = pairs[p, 0], pairs[p, 1]
            d0, d1, d2 = nearest(x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2], kind, lower, turn)
            out[t, p] = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2)


@kernel
def angles(points, triples, boxes, out):
    """Angles in radians at the middle one of triples (p, 3) of points (n, k, 3): out (n, p), 0 to pi."""
    lower, turn = np.zeros((3, 3)), np.zeros((3, 3))
    for t in range(len(points)):
        kind = enter_cell(boxes, t, lower, turn)
        x = points[t]
        for p in range(len(triples)):
            i, j, k = triples[p, 0], triples[p, 1], triples[p, 2]
            a0, a1, a2 = nearest(x[i, 0] - x[j, 0], x[i, 1] - x[j, 1], x[i, 2] - x[j, 2], kind, lower, turn)
            b0, b1, b2 = nearest(x[k, 0] - x[j, 0], x[k, 1] - x[j, 1], x[k, 2] - x[j, 2], kind, lower, turn)
            c0 = a1 * b2 - a2 * b1
            c1 = a2 * b0 - a0 * b2
            c2 = a0 * b1 - a1 * b0
            sine, cosine = math.sqrt(c0 * c0 + c1 * c1 + c2 * c2), a0 * b0 + a1 * b1 + a2 * b2
            # a point on the vertex leaves no angle
            lengths = (a0 * a0 + a1 * a1 + a2 * a2) * (b0 * b0 + b1 * b1 + b2 * b2)
            out[t, p] = math.atan2(sine, cosine) if lengths > 0.0 else np.nan


@kernel
def dihedrals(points, quadruples, boxes, out):
    """Torsions in radians about the middle bond of quadruples (p, 4): out (n, p), -pi to pi, IUPAC's sign."""
    lower, turn = np.zeros((3, 3)), np.zeros((3, 3))
    for t in range(len(points)):
        kind = enter_cell(boxes, t, lower, turn)
        x = points[t]
        for p in range(len(quadruples)):
            i, j, k, m = quadruples[p, 0], quadruples[p, 1], quadruples[p, 2], quadruples[p, 3]
            a0, a1, a2 = nearest(x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2], kind, lower, turn)
            b0, b1, b2 = nearest(x[k, 0] - x[j, 0], x[k, 1] - x[j, 1], x[k, 2] - x[j, 2], kind, lower, turn)
            c0, c1, c2 = nearest(x[m, 0] - x[k, 0], x[m, 1] - x[k, 1], x[m, 2] - x[k, 2], kind, lower, turn)
            u0, u1, u2 = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
            v0, v1, v2 = b1 * c2 - b2 * c1, b2 * c0 - b0 * c2, b0 * c1 - b1 * c0
            length = math.sqrt(b0 * b0 + b1 * b1 + b2 * b2)
            sine = length * (a0 * v0 + a1 * v1 + a2 * v2)
            cosine = u0 * v0 + u1 * v1 + u2 * v2
            # three points in a line leave no torsion
            defined = (u0 * u0 + u1 * u1 + u2 * u2) * (v0 * v0 + v1 * v1 + v2 * v2) > 0.0
            out[t, p] = math.atan2(sine, cosine) if defined else np.nan


@kernel
def native_fraction(points, pairs, weights, lengths, boxes, soft, beta, stretch, out):
    """Fraction of native contacts: out (n,); pairs (p, 2) of points, weights (p,) add up to 1, lengths (p,) native.

    soft: 1 / (1 + exp(beta (r - stretch r0))) each; else 1 where r <= stretch r0.
    """
    lower, turn = np.zeros((3, 3)), np.zeros((3, 3))
    for t in range(len(points)):
        kind = enter_cell(boxes, t, lower, turn)
        x = points[t]
        total = 0.0
        for p in range(len(pairs)):
            i, j = pairs[p, 0], pairs[p, 1]
            d0, d1, d2 = nearest(x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2], kind, lower, turn)
            r = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2)
            edge = stretch * lengths[p]
            if soft:
                total += weights[p] / (1.0 + math.exp(min(beta * (r - edge), 700.0)))
            elif r <= edge:
                total += weights[p]
            elif r != r:
                total = np.nan
        out[t] = total


@sum_kernel
def near_without_box(x0, x1, x2, y0, y1, y2, first, square):
    """How many of points y from `first` on lie within the root of `square` of one point."""
    count = 0
    for j in range(first, len(y0)):
        d0 = y0[j] - x0
        d1 = y1[j] - x1
        d2 = y2[j] - x2
        if d0 * d0 + d1 * d1 + d2 * d2 <= square:
            count += 1
    return count


@kernel
def contacts(flat, stride, n, width, a, b, same, radius, boxes, out):
    """Add to out (n,) the pairs within `radius`: one atom of a and one of b, which share none, or (`same`) two of a."""
    lower, turn = np.zeros((3, 3)), np.zeros((3, 3))
    m, k = len(a), len(b)
    x, y = np.empty(3 * m), np.empty(3 * k)
    square = radius * radius
    for t in range(n):
        kind = enter_cell(boxes, t, lower, turn)
        frame = flat[t * stride:t * stride + width]
        gather(frame, a, x)
        gather(frame, b, y)
        sound = True
        for i in range(3 * m):
            sound = sound and math.isfinite(x[i])
        for i in range(3 * k):
            sound = sound and math.isfinite(y[i])
        if not sound:
            out[t] = np.nan
            continue
        y0, y1, y2 = y[:k], y[k:2 * k], y[2 * k:]
        count = 0
        for i in range(m):
            first = i + 1 if same else 0
            if kind == 0:
                count += near_without_box(x[i], x[m + i], x[2 * m + i], y0, y1, y2, first, square)
                continue
            for j in range(first, k):
                d0, d1, d2 = nearest(y0[j] - x[i], y1[j] - x[m + i], y2[j] - x[2 * m + i], kind, lower, turn)
                if d0 * d0 + d1 * d1 + d2 * d2 <= square:
                    count += 1
        out[t] += count


@kernel
def contact_map(flat, stride, n, width, a, b, row, column, radius, boxes, out):
    """1 where an atom of group row[i] of a is within `radius` of one of group column[j] of b: out (n, rows, columns) uint8.

    An atom is not in contact with itself.
    """
    lower, turn = np.zeros((3, 3)), np.zeros((3, 3))
    m, k = len(a), len(b)
    x, y = np.empty(3 * m), np.empty(3 * k)
    square = radius * radius
    for t in range(n):
        kind = enter_cell(boxes, t, lower, turn)
        frame = flat[t * stride:t * stride + width]
        gather(frame, a, x)
        gather(frame, b, y)
        y0, y1, y2 = y[:k], y[k:2 * k], y[2 * k:]
        flags = out[t]
        for i in range(m):
            x0, x1, x2 = x[i], x[m + i], x[2 * m + i]
            line = flags[row[i]]
            for j in range(k):
                d0, d1, d2 = y0[j] - x0, y1[j] - x1, y2[j] - x2
                if kind != 0:
                    d0, d1, d2 = nearest(d0, d1, d2, kind, lower, turn)
                if d0 * d0 + d1 * d1 + d2 * d2 <= square and a[i] != b[j]:
                    line[column[j]] = 1


@kernel
def add_counts(values, edges_low, width, bins, out):
    """Two-dimensional counts of pairs (n, p, 2) in a square of bins x bins: out (n, bins, bins), shares of the p pairs."""
    for t in range(len(values)):
        inside = 0
        for p in range(values.shape[1]):
            a = (values[t, p, 0] - edges_low) / width
            b = (values[t, p, 1] - edges_low) / width
            if a == a and b == b:
                i, j = math.floor(a), math.floor(b)
                out[t, min(max(i, 0), bins - 1), min(max(j, 0), bins - 1)] += 1.0
                inside += 1
        if inside > 0:
            for i in range(bins):
                for j in range(bins):
                    out[t, i, j] /= inside
