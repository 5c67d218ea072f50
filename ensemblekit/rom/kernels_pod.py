"""Loops that bring a slab of snapshots into the cache: centred, weighted, and measured on the way."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

LANES = 16
RUN = 256
"""Squares are added up in the type of the slab over this many numbers, sixteen at a time, and in float64 from there."""


@kernel
def column_means(values, share, mean):
    """mean[j] = sum_i share[i] values[i, j], in the precision of mean."""
    n, width = values.shape
    for j in range(width):
        mean[j] = 0
    i = 0
    while i + 4 <= n:
        r0, r1, r2, r3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        s0, s1, s2, s3 = share[i], share[i + 1], share[i + 2], share[i + 3]
        for j in range(width):
            mean[j] += (s0 * r0[j] + s1 * r1[j]) + (s2 * r2[j] + s3 * r3[j])
        i += 4
    while i < n:
        row = values[i]
        for j in range(width):
            mean[j] += share[i] * row[j]
        i += 1


@kernel
def squares(row, energy, i):
    """energy[i] += the squares of a row."""
    width = row.size
    lanes = np.zeros(LANES, row.dtype)
    total = 0.0
    j = 0
    while j + LANES <= width:
        for t in range(LANES):
            lanes[t] = 0
        end = min(j + RUN, width)
        while j + LANES <= end:
            part = row[j:j + LANES]
            for t in range(LANES):
                lanes[t] += part[t] * part[t]
            j += LANES
        for t in range(LANES):
            total += np.float64(lanes[t])
    while j < width:
        x64 = np.float64(row[j])
        total += x64 * x64
        j += 1
    energy[i] += total


@kernel
def load(values, shift, factors, out, energy):
    """out[i, j] = (values[i, j] - shift[j]) factors[j]; energy[i] += the squares of row i.

    Where a factor is 0 the result is 0, whatever the value (NaN too). Four rows at a time: rows lie far apart, and one
    stream from memory is half as fast as four.
    """
    n, width = values.shape
    i = 0
    while i + 4 <= n:
        r0, r1, r2, r3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        t0, t1, t2, t3 = out[i], out[i + 1], out[i + 2], out[i + 3]
        for j in range(width):
            s, f = shift[j], factors[j]
            a, b, c, d = (r0[j] - s) * f, (r1[j] - s) * f, (r2[j] - s) * f, (r3[j] - s) * f
            t0[j] = a if f != 0 else 0
            t1[j] = b if f != 0 else 0
            t2[j] = c if f != 0 else 0
            t3[j] = d if f != 0 else 0
        for k in range(4):
            squares(out[i + k], energy, i + k)
        i += 4
    while i < n:
        row, to = values[i], out[i]
        for j in range(width):
            x = (row[j] - shift[j]) * factors[j]
            to[j] = x if factors[j] != 0 else 0
        squares(to, energy, i)
        i += 1


@kernel
def load_and_sum(values, shift, factors, share, out, sums):
    """out as :func:`load`, and sums[j] += share[i] (values[i, j] - shift[j]) in float64: the mean on the way."""
    n, width = values.shape
    i = 0
    while i + 4 <= n:
        r0, r1, r2, r3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        t0, t1, t2, t3 = out[i], out[i + 1], out[i + 2], out[i + 3]
        s0, s1, s2, s3 = share[i], share[i + 1], share[i + 2], share[i + 3]
        for j in range(width):
            s, f = shift[j], factors[j]
            a, b, c, d = r0[j] - s, r1[j] - s, r2[j] - s, r3[j] - s
            t0[j] = a * f if f != 0 else 0
            t1[j] = b * f if f != 0 else 0
            t2[j] = c * f if f != 0 else 0
            t3[j] = d * f if f != 0 else 0
            sums[j] += (s0 * a + s1 * b) + (s2 * c + s3 * d)
        i += 4
    while i < n:
        row, to = values[i], out[i]
        for j in range(width):
            x = row[j] - shift[j]
            to[j] = x * factors[j] if factors[j] != 0 else 0
            sums[j] += share[i] * x
        i += 1
