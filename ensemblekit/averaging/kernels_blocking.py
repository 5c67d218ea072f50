"""Loops for block sums, compiled: six levels of pair averages of 64 rows at a time, while the rows are in the cache."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

ROWS = 64       # rows of a chunk; their level-6 mean is all that leaves the loop
LEVELS = 6
TILE = 512      # columns at a time: eight rows of level 3 and the sums stay in the first cache


@kernel
def add_chunks(flat, stride, chunks, width, details, means):
    """Pair averages and differences of `chunks` * 64 rows, which begin at a multiple of 64, in one pass.

    details (6, width), zero at first, get the sums of squared differences between the two halves of blocks of 2, 4,
    ... 64 rows; means (chunks, width) the means of 64 rows. A sum of squared deviations is that of the pair averages
    twice and half of these (Haar), so nothing cancels, and no mean need be known.
    """
    eight = np.empty((8, TILE))
    for a in range(0, width, TILE):
        w = min(TILE, width - a)
        q0 = details[0, a:a + w]
        q1 = details[1, a:a + w]
        q2 = details[2, a:a + w]
        q3 = details[3, a:a + w]
        q4 = details[4, a:a + w]
        q5 = details[5, a:a + w]
        for c in range(chunks):
            for e in range(8):
                r = (c * ROWS + e * 8) * stride + a
                x0 = flat[r:r + w]
                x1 = flat[r + stride:r + stride + w]
                x2 = flat[r + 2 * stride:r + 2 * stride + w]
                x3 = flat[r + 3 * stride:r + 3 * stride + w]
                x4 = flat[r + 4 * stride:r + 4 * stride + w]
                x5 = flat[r + 5 * stride:r + 5 * stride + w]
                x6 = flat[r + 6 * stride:r + 6 * stride + w]
                x7 = flat[r + 7 * stride:r + 7 * stride + w]
                up = eight[e]
                for j in range(w):
                    y0, y1, y2, y3 = np.float64(x0[j]), np.float64(x1[j]), np.float64(x2[j]), np.float64(x3[j])
                    y4, y5, y6, y7 = np.float64(x4[j]), np.float64(x5[j]), np.float64(x6[j]), np.float64(x7[j])
                    d0, d1, d2, d3 = y0 - y1, y2 - y3, y4 - y5, y6 - y7
                    b0, b1, b2, b3 = y0 + y1, y2 + y3, y4 + y5, y6 + y7
                    q0[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
                    d0, d1 = b0 - b1, b2 - b3
                    b0, b1 = b0 + b1, b2 + b3
                    q1[j] += 0.25 * (d0 * d0 + d1 * d1)
                    d0 = b0 - b1
                    q2[j] += 0.0625 * (d0 * d0)
                    up[j] = 0.125 * (b0 + b1)
            up = means[c, a:a + w]
            for j in range(w):
                y0, y1, y2, y3 = eight[0, j], eight[1, j], eight[2, j], eight[3, j]
                y4, y5, y6, y7 = eight[4, j], eight[5, j], eight[6, j], eight[7, j]
                d0, d1, d2, d3 = y0 - y1, y2 - y3, y4 - y5, y6 - y7
                b0, b1, b2, b3 = y0 + y1, y2 + y3, y4 + y5, y6 + y7
                q3[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
                d0, d1 = b0 - b1, b2 - b3
                b0, b1 = b0 + b1, b2 + b3
                q4[j] += 0.25 * (d0 * d0 + d1 * d1)
                d0 = b0 - b1
                q5[j] += 0.0625 * (d0 * d0)
                up[j] = 0.125 * (b0 + b1)


@kernel
def climb_level(bins, skip, m2, above):
    """Squared deviations m2 (width,) of bins (n, width), and the pair averages above (pairs, width) from bin `skip`."""
    n, width = bins.shape
    mean = np.empty(TILE)
    for a in range(0, width, TILE):
        w = min(TILE, width - a)
        first = bins[0, a:a + w]
        square = m2[a:a + w]
        for j in range(w):
            mean[j] = 0.0
            square[j] = 0.0
        for i in range(1, n):
            row = bins[i, a:a + w]
            for j in range(w):
                mean[j] += row[j] - first[j]
        for j in range(w):
            mean[j] = first[j] + mean[j] / n
        for i in range(n):
            row = bins[i, a:a + w]
            for j in range(w):
                d = row[j] - mean[j]
                square[j] += d * d
        for p in range(len(above)):
            left = bins[skip + 2 * p, a:a + w]
            right = bins[skip + 2 * p + 1, a:a + w]
            up = above[p, a:a + w]
            for j in range(w):
                up[j] = 0.5 * (left[j] + right[j])


@kernel
def join_level(m2, later, total, total_later, n, n_later, length, seam, seams):
    """Pool the second moments of two neighbours at one level into m2 (width,), and that of the block at their seam.

    total (width,) sums the snapshots in the n blocks of this length, so means need no array of their own; seam
    (width,) is read where `seams` is 1. Chan, Golub & LeVeque (1983).
    """
    a = 1.0 / (n * length) if n > 0 else 0.0
    b = 1.0 / (n_later * length) if n_later > 0 else 0.0
    both = n + n_later
    share = n * n_later / both if both > 0 else 0.0
    part = n_later / both if both > 0 else 0.0
    last = both / (both + 1.0)
    for j in range(len(m2)):
        mean = total[j] * a
        gap = total_later[j] * b - mean
        pooled = m2[j] + later[j] + gap * gap * share if share > 0.0 else m2[j] + later[j]
        if seams == 1:
            off = seam[j] - (mean + gap * part if n > 0 else total_later[j] * b)
            pooled = pooled + off * off * last if both > 0 else 0.0
        m2[j] = pooled
