"""Loops that bring a slab of snapshots into the cache: centred, weighted, and measured on the way."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel, sum_kernel

RUN = 256
"""Squares are added up in the type of the slab over this many numbers, in several lanes, and in float64 from there."""


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


@sum_kernel
def load(values, shift, factors, out, energy):
    """out[i, j] = (values[i, j] - shift[j]) factors[j]; energy[i] += the squares of row i.

    Where a factor is 0 the result is 0, whatever the value (NaN too). Four rows at a time: rows lie far apart, and one
    stream from memory is half as fast as four.
    """
    n, width = values.shape
    none = out.dtype.type(0)
    i = 0
    while i + 4 <= n:
        r0, r1, r2, r3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        t0, t1, t2, t3 = out[i], out[i + 1], out[i + 2], out[i + 3]
        for at in range(0, width, RUN):
            e0, e1, e2, e3 = none, none, none, none
            for j in range(at, min(at + RUN, width)):
                s, f = shift[j], factors[j]
                a, b, c, d = (r0[j] - s) * f, (r1[j] - s) * f, (r2[j] - s) * f, (r3[j] - s) * f
                if f == 0:
                    a, b, c, d = none, none, none, none
                t0[j], t1[j], t2[j], t3[j] = a, b, c, d
                e0 += a * a
                e1 += b * b
                e2 += c * c
                e3 += d * d
            energy[i] += np.float64(e0)
            energy[i + 1] += np.float64(e1)
            energy[i + 2] += np.float64(e2)
            energy[i + 3] += np.float64(e3)
        i += 4
    while i < n:
        row, to = values[i], out[i]
        for at in range(0, width, RUN):
            e = none
            for j in range(at, min(at + RUN, width)):
                a = (row[j] - shift[j]) * factors[j]
                if factors[j] == 0:
                    a = none
                to[j] = a
                e += a * a
            energy[i] += np.float64(e)
        i += 1


@sum_kernel
def load_and_sum(values, shift, factors, share, out, energy, sums):
    """out and energy as :func:`load`, and sums[j] += share[i] (values[i, j] - shift[j]) in float64: the mean on the way."""
    n, width = values.shape
    none = out.dtype.type(0)
    i = 0
    while i + 4 <= n:
        r0, r1, r2, r3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        t0, t1, t2, t3 = out[i], out[i + 1], out[i + 2], out[i + 3]
        s0, s1, s2, s3 = share[i], share[i + 1], share[i + 2], share[i + 3]
        for at in range(0, width, RUN):
            e0, e1, e2, e3 = none, none, none, none
            for j in range(at, min(at + RUN, width)):
                s, f = shift[j], factors[j]
                a, b, c, d = r0[j] - s, r1[j] - s, r2[j] - s, r3[j] - s
                sums[j] += (s0 * a + s1 * b) + (s2 * c + s3 * d)
                a, b, c, d = a * f, b * f, c * f, d * f
                if f == 0:
                    a, b, c, d = none, none, none, none
                t0[j], t1[j], t2[j], t3[j] = a, b, c, d
                e0 += a * a
                e1 += b * b
                e2 += c * c
                e3 += d * d
            energy[i] += np.float64(e0)
            energy[i + 1] += np.float64(e1)
            energy[i + 2] += np.float64(e2)
            energy[i + 3] += np.float64(e3)
        i += 4
    while i < n:
        row, to = values[i], out[i]
        for at in range(0, width, RUN):
            e = none
            for j in range(at, min(at + RUN, width)):
                a = row[j] - shift[j]
                sums[j] += share[i] * a
                a = a * factors[j]
                if factors[j] == 0:
                    a = none
                to[j] = a
                e += a * a
            energy[i] += np.float64(e)
        i += 1
