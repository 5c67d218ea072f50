"""Loops over distances, angles and contacts, compiled; with the nearest image in boxes of any shape.

A box is three rows, the cell's vectors. It is reduced first (each vector made as short as the others allow), so that
after rounding the fractional coordinates the nearest image lies at most one cell away; those 27 cells are looked at
only where the distance exceeds half the smallest height of the cell, below which nothing else can be nearer.
"""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel, sum_kernel
from ensemblekit.md.kernels_superpose import gather

CELL = 20
"""Numbers a prepared cell takes: 0-8 reduced vectors, 9-17 the inverse, 18 square of the safe distance, 19 its kind:
0 no box, 1 a box with right angles, 2 any other."""


@kernel
def prepare_cell(box, cell):
    """Reduce a box (3, 3) and keep its inverse in cell (20,); a box of zeros or NaN means none."""
    for k in range(9):
        cell[k] = box[k // 3, k % 3]
    cell[19] = 0.0
    for _ in range(50):
        changed = False
        for i in range(3):
            for j in range(3):
                if i == j:
                    continue
                a, b = 3 * i, 3 * j
                length = cell[b] ** 2 + cell[b + 1] ** 2 + cell[b + 2] ** 2
                if not length > 0.0:
                    return
                k = np.rint((cell[a] * cell[b] + cell[a + 1] * cell[b + 1] + cell[a + 2] * cell[b + 2]) / length)
                if abs(k) >= 1.0 and k == k:
                    before = cell[a] ** 2 + cell[a + 1] ** 2 + cell[a + 2] ** 2
                    x, y, z = cell[a] - k * cell[b], cell[a + 1] - k * cell[b + 1], cell[a + 2] - k * cell[b + 2]
                    if x * x + y * y + z * z < before * (1.0 - 1e-12):
                        cell[a], cell[a + 1], cell[a + 2] = x, y, z
                        changed = True
        if not changed:
            break
    v = 0.0
    safe = np.inf
    for i in range(3):
        a, b, c = 3 * i, 3 * ((i + 1) % 3), 3 * ((i + 2) % 3)
        x = cell[b + 1] * cell[c + 2] - cell[b + 2] * cell[c + 1]
        y = cell[b + 2] * cell[c] - cell[b] * cell[c + 2]
        z = cell[b] * cell[c + 1] - cell[b + 1] * cell[c]
        v = cell[a] * x + cell[a + 1] * y + cell[a + 2] * z
        if not abs(v) > 0.0:
            return
        cell[9 + i] = x / v         # column i of the inverse: fractional = (x, y, z) @ inverse
        cell[12 + i] = y / v
        cell[15 + i] = z / v
        safe = min(safe, v * v / (x * x + y * y + z * z))
    cell[18] = 0.25 * safe
    small = 1e-6 * math.sqrt(safe)
    right = (abs(cell[1]) < small and abs(cell[2]) < small and abs(cell[3]) < small and abs(cell[5]) < small
             and abs(cell[6]) < small and abs(cell[7]) < small)
    cell[19] = 1.0 if right else 2.0


@kernel
def nearest(d0, d1, d2, cell):
    """The shortest of all images of a difference."""
    if cell[19] == 0.0:
        return d0, d1, d2
    if cell[19] == 1.0:
        return (d0 - cell[0] * np.rint(d0 * cell[9]), d1 - cell[4] * np.rint(d1 * cell[13]),
                d2 - cell[8] * np.rint(d2 * cell[17]))
    f0 = np.rint(d0 * cell[9] + d1 * cell[12] + d2 * cell[15])
    f1 = np.rint(d0 * cell[10] + d1 * cell[13] + d2 * cell[16])
    f2 = np.rint(d0 * cell[11] + d1 * cell[14] + d2 * cell[17])
    d0 -= f0 * cell[0] + f1 * cell[3] + f2 * cell[6]
    d1 -= f0 * cell[1] + f1 * cell[4] + f2 * cell[7]
    d2 -= f0 * cell[2] + f1 * cell[5] + f2 * cell[8]
    best = d0 * d0 + d1 * d1 + d2 * d2
    if best <= cell[18]:
        return d0, d1, d2
    b0, b1, b2 = d0, d1, d2
    for i in range(-1, 2):
        for j in range(-1, 2):
            for k in range(-1, 2):
                x = d0 + i * cell[0] + j * cell[3] + k * cell[6]
                y = d1 + i * cell[1] + j * cell[4] + k * cell[7]
                z = d2 + i * cell[2] + j * cell[5] + k * cell[8]
                square = x * x + y * y + z * z
                if square < best:
                    best, b0, b1, b2 = square, x, y, z
    return b0, b1, b2


@kernel
def enter_cell(boxes, t, cell):
    """The cell of frame t of boxes (n, 3, 3), of which there may be none."""
    if len(boxes) == 0:
        cell[19] = 0.0
    else:
        prepare_cell(boxes[t], cell)


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
    cell = np.zeros(CELL)
    for t in range(len(points)):
        enter_cell(boxes, t, cell)
        x = points[t]
        for p in range(len(pairs)):
            i, j = pairs[p, 0], pairs[p, 1]
            d0, d1, d2 = nearest(x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2], cell)
            out[t, p] = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2)


@kernel
def angles(points, triples, boxes, out):
    """Angles in radians at the middle one of triples (p, 3) of points (n, k, 3): out (n, p), 0 to pi."""
    cell = np.zeros(CELL)
    for t in range(len(points)):
        enter_cell(boxes, t, cell)
        x = points[t]
        for p in range(len(triples)):
            i, j, k = triples[p, 0], triples[p, 1], triples[p, 2]
            a0, a1, a2 = nearest(x[i, 0] - x[j, 0], x[i, 1] - x[j, 1], x[i, 2] - x[j, 2], cell)
            b0, b1, b2 = nearest(x[k, 0] - x[j, 0], x[k, 1] - x[j, 1], x[k, 2] - x[j, 2], cell)
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
    cell = np.zeros(CELL)
    for t in range(len(points)):
        enter_cell(boxes, t, cell)
        x = points[t]
        for p in range(len(quadruples)):
            i, j, k, m = quadruples[p, 0], quadruples[p, 1], quadruples[p, 2], quadruples[p, 3]
            a0, a1, a2 = nearest(x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2], cell)
            b0, b1, b2 = nearest(x[k, 0] - x[j, 0], x[k, 1] - x[j, 1], x[k, 2] - x[j, 2], cell)
            c0, c1, c2 = nearest(x[m, 0] - x[k, 0], x[m, 1] - x[k, 1], x[m, 2] - x[k, 2], cell)
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
    cell = np.zeros(CELL)
    for t in range(len(points)):
        enter_cell(boxes, t, cell)
        x = points[t]
        total = 0.0
        for p in range(len(pairs)):
            i, j = pairs[p, 0], pairs[p, 1]
            d0, d1, d2 = nearest(x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2], cell)
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
    """Number of pairs within `radius`, one atom of a and one of b; each pair once where b is a (`same`): out (n,)."""
    cell = np.zeros(CELL)
    m, k = len(a), len(b)
    x, y = np.empty(3 * m), np.empty(3 * k)
    square = radius * radius
    for t in range(n):
        enter_cell(boxes, t, cell)
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
            if cell[19] == 0.0:
                count += near_without_box(x[i], x[m + i], x[2 * m + i], y0, y1, y2, first, square)
                continue
            for j in range(first, k):
                if not same and a[i] == b[j]:
                    continue
                d0, d1, d2 = nearest(y0[j] - x[i], y1[j] - x[m + i], y2[j] - x[2 * m + i], cell)
                if d0 * d0 + d1 * d1 + d2 * d2 <= square:
                    count += 1
        out[t] = count


@kernel
def contact_map(flat, stride, n, width, a, b, row, column, rows, columns, radius, boxes, out):
    """1 where any atom of group row[i] of a lies within `radius` of one of group column[j] of b: out (n, rows, columns).

    An atom is not in contact with itself.
    """
    cell = np.zeros(CELL)
    m, k = len(a), len(b)
    x, y = np.empty(3 * m), np.empty(3 * k)
    square = radius * radius
    for t in range(n):
        enter_cell(boxes, t, cell)
        frame = flat[t * stride:t * stride + width]
        gather(frame, a, x)
        gather(frame, b, y)
        y0, y1, y2 = y[:k], y[k:2 * k], y[2 * k:]
        found = out[t]
        for i in range(m):
            x0, x1, x2 = x[i], x[m + i], x[2 * m + i]
            line = found[row[i]]
            for j in range(k):
                d0, d1, d2 = y0[j] - x0, y1[j] - x1, y2[j] - x2
                if cell[19] != 0.0:
                    d0, d1, d2 = nearest(d0, d1, d2, cell)
                if d0 * d0 + d1 * d1 + d2 * d2 <= square and a[i] != b[j]:
                    line[column[j]] = 1.0


@kernel
def add_counts(values, edges_low, width, bins, out):
    """Two-dimensional counts of pairs (n, p, 2) in a square of bins x bins: out (n, bins, bins), shares of the p pairs."""
    for t in range(len(values)):
        found = 0
        for p in range(values.shape[1]):
            a = (values[t, p, 0] - edges_low) / width
            b = (values[t, p, 1] - edges_low) / width
            if a == a and b == b:
                i, j = int(math.floor(a)), int(math.floor(b))
                out[t, min(max(i, 0), bins - 1), min(max(j, 0), bins - 1)] += 1.0
                found += 1
        if found > 0:
            for i in range(bins):
                for j in range(bins):
                    out[t, i, j] /= found
