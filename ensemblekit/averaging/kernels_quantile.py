"""Loops behind the histograms of Quantiles, compiled; one histogram an element, each on a grid of its own."""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel

SMALLEST_EXPONENT = -1000      # 2**1000 is still finite, so values divide by bin widths without overflow
DIGITS = 52                     # bins narrower than the last binary digit of the values would not be whole numbers


@kernel
def bin_of(value, scaled):
    """Number of the bin of a value, `scaled` by the width: -1 for what is below 0 and vanishes there."""
    index = np.int64(math.floor(scaled))
    if index == 0 and value < 0:
        return np.int64(-1)
    return index


@kernel
def fitting_exponent(low, high, bins):
    """Smallest e so that [low, high] lies in `bins` bins of width 2**e that begin at whole multiples of it."""
    largest = max(abs(low), abs(high))
    e = SMALLEST_EXPONENT
    if largest > 0:
        e = max(e, math.frexp(largest)[1] - 1 - DIGITS)
    span = 0.5 * high - 0.5 * low
    if span > 0:
        # the span alone asks for 2 span / 2**e < bins + 1; the grid may ask for one more
        e = max(e, math.frexp(span / (bins + 1))[1] - 1)
    while bin_of(high, math.ldexp(high, -e)) - bin_of(low, math.ldexp(low, -e)) >= bins:
        e += 1
    return e


@kernel
def regrid(counts, exponent, origin, low, high, new_low, new_high):
    """Bring every histogram (m, bins) onto the grid of its wider range; `low` > `high` marks an empty one."""
    m, bins = counts.shape
    moved = np.zeros(bins)
    for j in range(m):
        if new_low[j] > new_high[j] or (low[j] <= new_low[j] and high[j] >= new_high[j]):
            continue
        was_empty = low[j] > high[j]
        low[j] = min(low[j], new_low[j])
        high[j] = max(high[j], new_high[j])
        e = fitting_exponent(low[j], high[j], bins)
        first = bin_of(low[j], math.ldexp(low[j], -e))
        if not was_empty:
            step = e - exponent[j]
            for b in range(bins):
                moved[b] = 0.0
            for b in range(bins):
                if counts[j, b] > 0:
                    index = origin[j] + b
                    if step > 62:
                        index = -1 if index < 0 else 0
                    else:
                        index = index >> step
                    moved[index - first] += counts[j, b]
            for b in range(bins):
                counts[j, b] = moved[b]
        exponent[j] = e
        origin[j] = first


@kernel
def count(values, weights, counts, scale, origin):
    """Add rows (n, m) with weights (n,) to the histograms; every value lies on its element's grid."""
    n, m = values.shape
    for i in range(n):
        w = weights[i]
        if w > 0:
            for j in range(m):
                counts[j, bin_of(values[i, j], values[i, j] * scale[j]) - origin[j]] += w


@kernel
def add_counts(counts, exponent, origin, other, other_exponent, other_origin, other_low, other_high):
    """Add histograms (m, bins) on finer or equal grids to ours, whose range holds theirs."""
    m, bins = counts.shape
    for j in range(m):
        if other_low[j] > other_high[j]:
            continue
        step = exponent[j] - other_exponent[j]
        for b in range(bins):
            if other[j, b] > 0:
                index = other_origin[j] + b
                if step > 62:
                    index = -1 if index < 0 else 0
                else:
                    index = index >> step
                counts[j, index - origin[j]] += other[j, b]
