"""Loops for block sums, compiled: six levels of pair averages of 64 rows at a time, while the rows are in the cache."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

ROWS = 64       # rows of a chunk; their level-6 mean is all that leaves the loop
LEVELS = 6
TILE = 512      # columns at a time: eight rows of level 3 and the sums stay in the first cache
NONE = np.uint64(0)     # numba looks for no negative index where it is unsigned: no slices, half the time to compile


@kernel
def add_chunks(flat, stride, chunks, width, details, means, eight):
    """Pair averages and differences of `chunks` * 64 rows, which begin at a multiple of 64, in one pass.

    details (6, width), zero at first, get the sums of squared differences between the two halves of blocks of 2, 4,
    ... 64 rows; means (chunks, width) the means of 64 rows. A sum of squared deviations is that of the pair averages
    twice and half of these (Haar), so nothing cancels, and no mean need be known. eight (8, TILE) is room to work in.
    """
    step = np.uint64(stride)
    for a in range(0, width, TILE):
        w = TILE if width - a > TILE else width - a
        q0 = details[0, a:a + w]
        q1 = details[1, a:a + w]
        q2 = details[2, a:a + w]
        q3 = details[3, a:a + w]
        q4 = details[4, a:a + w]
        q5 = details[5, a:a + w]
        for c in range(chunks):
            for e in range(8):
                r0 = np.uint64((c * ROWS + e * 8) * stride + a)
                r1 = r0 + step
                r2 = r1 + step
                r3 = r2 + step
                r4 = r3 + step
                r5 = r4 + step
                r6 = r5 + step
                r7 = r6 + step
                up = eight[e]
                for j in range(np.uint64(w)):
                    y0 = np.float64(flat[r0 + j])
                    y1 = np.float64(flat[r1 + j])
                    y2 = np.float64(flat[r2 + j])
                    y3 = np.float64(flat[r3 + j])
                    y4 = np.float64(flat[r4 + j])
                    y5 = np.float64(flat[r5 + j])
                    y6 = np.float64(flat[r6 + j])
                    y7 = np.float64(flat[r7 + j])
                    d0 = y0 - y1
                    d1 = y2 - y3
                    d2 = y4 - y5
                    d3 = y6 - y7
                    b0 = y0 + y1
                    b1 = y2 + y3
                    b2 = y4 + y5
                    b3 = y6 + y7
                    q0[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
                    d0 = b0 - b1
                    d1 = b2 - b3
                    b0 = b0 + b1
                    b1 = b2 + b3
                    q1[j] += 0.25 * (d0 * d0 + d1 * d1)
                    d0 = b0 - b1
                    q2[j] += 0.0625 * (d0 * d0)
                    up[j] = 0.125 * (b0 + b1)
            up = means[c, a:a + w]
            for j in range(w):
                y0 = eight[0, j]
                y1 = eight[1, j]
                y2 = eight[2, j]
                y3 = eight[3, j]
                y4 = eight[4, j]
                y5 = eight[5, j]
                y6 = eight[6, j]
                y7 = eight[7, j]
                d0 = y0 - y1
                d1 = y2 - y3
                d2 = y4 - y5
                d3 = y6 - y7
                b0 = y0 + y1
                b1 = y2 + y3
                b2 = y4 + y5
                b3 = y6 + y7
                q3[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
                d0 = b0 - b1
                d1 = b2 - b3
                b0 = b0 + b1
                b1 = b2 + b3
                q4[j] += 0.25 * (d0 * d0 + d1 * d1)
                d0 = b0 - b1
                q5[j] += 0.0625 * (d0 * d0)
                up[j] = 0.125 * (b0 + b1)


@kernel
def climb_level(bins, n, skip, m2, above, pairs, mean):
    """Squared deviations m2 (width,) of bins (n * width,), and the pair averages above (pairs * width,) from bin `skip`.

    mean (TILE,) is room to work in.
    """
    columns = np.uint64(len(m2))
    for a in range(NONE, columns, np.uint64(TILE)):
        end = columns if columns - a < np.uint64(TILE) else a + np.uint64(TILE)
        for j in range(a, end):
            mean[j - a] = 0.0
            m2[j] = 0.0
        for i in range(1, n):
            row = np.uint64(i) * columns
            for j in range(a, end):
                mean[j - a] += bins[row + j] - bins[j]
        for j in range(a, end):
            mean[j - a] = bins[j] + mean[j - a] / n
        for i in range(n):
            row = np.uint64(i) * columns
            for j in range(a, end):
                d = bins[row + j] - mean[j - a]
                m2[j] += d * d
        for p in range(pairs):
            left = np.uint64(skip + 2 * p) * columns
            right = left + columns
            up = np.uint64(p) * columns
            for j in range(a, end):
                above[up + j] = 0.5 * (bins[left + j] + bins[right + j])


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
