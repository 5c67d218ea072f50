"""Loops that bring a slab of snapshots into the cache: centred, weighted, and measured on the way."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

LANES = 16


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
    """out[i, j] = (values[i, j] - shift[j]) factors[j]; energy[i] += the squares of row i, in float64.

    Where a factor is 0 the result is 0, whatever the value (NaN too).
    """
    n, width = values.shape
    lanes = np.zeros(LANES)
    for i in range(n):
        row = values[i]
        to = out[i]
        for j in range(width):
            f = factors[j]
            x = (row[j] - shift[j]) * f
            to[j] = x if f != 0 else 0
        for t in range(LANES):
            lanes[t] = 0.0
        j = 0
        while j + LANES <= width:
            part = to[j:j + LANES]
            for t in range(LANES):
                x64 = np.float64(part[t])
                lanes[t] += x64 * x64
            j += LANES
        total = 0.0
        for t in range(LANES):
            total += lanes[t]
        while j < width:
            x64 = np.float64(to[j])
            total += x64 * x64
            j += 1
        energy[i] += total
