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
    for i in range(n):
        row = values[i]
        s = share[i]
        for j in range(width):
            mean[j] += s * row[j]


@kernel
def load(values, shift, factors, out, energy):
    """out[i, j] = (values[i, j] - shift[j]) factors[j]; energy[i] += the squares of row i.

    Where a factor is 0 the result is 0, whatever the value (NaN too).
    """
    n, width = values.shape
    lanes = np.zeros(LANES, out.dtype)
    for i in range(n):
        row = values[i]
        to = out[i]
        for j in range(width):
            f = factors[j]
            x = (row[j] - shift[j]) * f
            to[j] = x if f != 0 else 0
        total = 0.0
        j = 0
        while j + LANES <= width:
            for t in range(LANES):
                lanes[t] = 0
            end = min(j + RUN, width)
            while j + LANES <= end:
                part = to[j:j + LANES]
                for t in range(LANES):
                    lanes[t] += part[t] * part[t]
                j += LANES
            for t in range(LANES):
                total += np.float64(lanes[t])
        while j < width:
            x64 = np.float64(to[j])
            total += x64 * x64
            j += 1
        energy[i] += total


@kernel
def load_and_sum(values, shift, factors, share, out, sums):
    """out as :func:`load`, and sums[j] += share[i] (values[i, j] - shift[j]) in float64: the mean on the way."""
    n, width = values.shape
    for i in range(n):
        row = values[i]
        to = out[i]
        s = share[i]
        for j in range(width):
            d = row[j] - shift[j]
            f = factors[j]
            to[j] = d * f if f != 0 else 0
            sums[j] += s * d
