"""Loops for block sums, compiled: six levels of pair averages of 64 rows at a time, while the rows are in the cache."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

ROWS = 64       # rows of a chunk; their level-6 mean is all that leaves the loop
LEVELS = 6
TILE = 512      # columns at a time: eight rows of level 3 and the sums stay in the first cache


@kernel
def add_chunks(flat, stride, chunks, width, shift, total, squares, means):
    """Second moments of `chunks` * 64 rows, which begin at a multiple of 64, in one pass around shift (width,).

    squares (6, width), zero at first, get the squared deviations of block means of 1, 2, 4, ... 32 rows from their
    mean, means (chunks, width) the means of 64 rows; total (width,), zero at first, the sum of x - shift.
    """
    eight = np.empty((8, TILE))
    for a in range(0, width, TILE):
        w = min(TILE, width - a)
        h = shift[a:a + w]
        sums = total[a:a + w]
        q0 = squares[0, a:a + w]
        q1 = squares[1, a:a + w]
        q2 = squares[2, a:a + w]
        q3 = squares[3, a:a + w]
        q4 = squares[4, a:a + w]
        q5 = squares[5, a:a + w]
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
                    d0 = x0[j] - h[j]
                    d1 = x1[j] - h[j]
                    d2 = x2[j] - h[j]
                    d3 = x3[j] - h[j]
                    d4 = x4[j] - h[j]
                    d5 = x5[j] - h[j]
                    d6 = x6[j] - h[j]
                    d7 = x7[j] - h[j]
                    q0[j] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7))
                    b0 = d0 + d1
                    b1 = d2 + d3
                    b2 = d4 + d5
                    b3 = d6 + d7
                    q1[j] += 0.25 * ((b0 * b0 + b1 * b1) + (b2 * b2 + b3 * b3))
                    f0 = b0 + b1
                    f1 = b2 + b3
                    q2[j] += 0.0625 * (f0 * f0 + f1 * f1)
                    up[j] = 0.125 * (f0 + f1)
            for j in range(w):
                d0 = eight[0, j]
                d1 = eight[1, j]
                d2 = eight[2, j]
                d3 = eight[3, j]
                d4 = eight[4, j]
                d5 = eight[5, j]
                d6 = eight[6, j]
                d7 = eight[7, j]
                q3[j] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7))
                b0 = d0 + d1
                b1 = d2 + d3
                b2 = d4 + d5
                b3 = d6 + d7
                q4[j] += 0.25 * ((b0 * b0 + b1 * b1) + (b2 * b2 + b3 * b3))
                f0 = b0 + b1
                f1 = b2 + b3
                q5[j] += 0.0625 * (f0 * f0 + f1 * f1)
                mean = 0.125 * (f0 + f1)
                sums[j] += 64.0 * mean
                means[c, a + j] = mean + h[j]
        n = float(chunks * ROWS)
        for j in range(w):          # around the mean instead of the shift; rounding must not make it negative
            s = sums[j] * sums[j] / n
            r0, r1, r2 = q0[j] - s, q1[j] - s / 2, q2[j] - s / 4
            r3, r4, r5 = q3[j] - s / 8, q4[j] - s / 16, q5[j] - s / 32
            q0[j] = 0.0 if r0 < 0.0 else r0
            q1[j] = 0.0 if r1 < 0.0 else r1
            q2[j] = 0.0 if r2 < 0.0 else r2
            q3[j] = 0.0 if r3 < 0.0 else r3
            q4[j] = 0.0 if r4 < 0.0 else r4
            q5[j] = 0.0 if r5 < 0.0 else r5


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
