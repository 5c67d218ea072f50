"""Loops for block sums, compiled: six levels of pair averages of 64 rows at a time, while the rows are in the cache."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

ROWS = 64       # rows of a chunk; their level-6 mean is all that leaves the loop
LEVELS = 6
TILE = 512      # columns at a time: eight rows of level 3 and the sums stay in the first cache


@kernel
def add_chunks(flat, stride, chunks, width, shift, total, squares, means):
    """Sums of `chunks` * 64 rows around shift (width,), which begin at a multiple of 64.

    total (width,) gets the sum of x - shift, squares (6, width) the sums of squares of block means of 1, 2, 4, ... 32
    rows, and means (chunks, width) the means of 64 rows, shift added again.
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
