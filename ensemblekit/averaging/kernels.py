"""Loops over plain arrays, compiled. Parallel work is the engine's affair.

Snapshots come as one flat array with a row stride, so that a tile of the item (rows apart, numbers adjacent) is read
in place and the compiler still sees adjacent numbers. Columns are taken a tile at a time: the state of a tile stays
in the cache while all rows of the block pass, eight rows an iteration. Rows are sliced before the loop over columns:
indexing flat[row + column] instead is 3 to 5 times slower, as numba must then check every index for being negative.
"""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

TILE = 2048
LARGEST_SQUARES, SMALLEST_SQUARES = 2.0**900, 2.0**-800
"""Sums of squares between these have lost nothing to over- or underflow that their own rounding would not hide."""
LARGEST_MEAN, SMALLEST_MEAN = 2.0**440, 2.0**-350
"""A difference from a mean above the latter is 0 or so large that its square is an ordinary number."""


@kernel
def marked_largest(flat, stride, n, width, marked, largest):
    """Largest magnitude of each marked column into largest (width,), runs of them at a time; infinity where not finite."""
    a = 0
    while a < width:
        if marked[a] == 0:
            a += 1
            continue
        b = a + 1
        while b < width and b - a < TILE and marked[b] != 0:
            b += 1
        out = largest[a:b]
        for j in range(b - a):
            out[j] = 0.0
        for t in range(n):
            x = flat[t * stride + a:t * stride + b]
            for j in range(b - a):
                size = abs(np.float64(x[j]))
                out[j] = size if size > out[j] or size != size else out[j]
        a = b


@kernel
def fold_guarded(total, square, shift, size, count, before, share, mean, m2, unsafe):
    """The end of a tile: sums about a shift into mean and m2 (width,), but for columns that are unsafe; how many are.

    The columns already marked in `unsafe`, and those whose new mean and m2 may have over- or underflowed, keep what they
    had and are marked. `size`: sums of magnitudes where the shift is 0, to tell columns of zeros, which are safe.
    """
    width = len(mean)
    bad = 0
    for j in range(width):
        bad += unsafe[j]
    for j in range(width):
        part = total[j] / count
        gap = shift[j] + part - mean[j] if before > 0 else 0.0
        squares = m2[j] + (square[j] - total[j] * part + gap * gap * (before * share))
        middle = mean[j] + gap * share if before > 0 else shift[j] + part
        total[j] = mean[j]
        square[j] = m2[j]
        mean[j] = middle
        m2[j] = squares
        magnitude = abs(middle)
        zero = (squares == 0.0) & (shift[j] == 0.0) & (size[j] == 0.0)
        safe = (squares < LARGEST_SQUARES) & (magnitude < LARGEST_MEAN) & (
            (squares > SMALLEST_SQUARES) | (magnitude > SMALLEST_MEAN) | zero)
        bad += 0 if safe else 1
    if bad == 0:
        return 0
    bad = 0
    for j in range(width):
        magnitude = abs(mean[j])
        zero = (m2[j] == 0.0) & (shift[j] == 0.0) & (size[j] == 0.0)
        safe = (m2[j] < LARGEST_SQUARES) & (magnitude < LARGEST_MEAN) & (
            (m2[j] > SMALLEST_SQUARES) | (magnitude > SMALLEST_MEAN) | zero)
        if unsafe[j] != 0 or not safe:
            mean[j] = total[j]
            m2[j] = square[j]
            unsafe[j] = 1
            bad += 1
    return bad


@kernel
def add_moments(flat, stride, n, width, before, mean, m2, unsafe, room):
    """Take n rows into mean and m2 (width,), which hold `before` rows: one pass around a shift, Chan et al. 1983.

    The shift is the running mean (the first row where there is none), so the sums of squares do not cancel.
    Columns marked in unsafe (width,), and those where the new sums may have over- or underflowed, which are then marked
    (by LARGEST_SQUARES and the like), stay as they were. An empty `unsafe` takes all. room (4, TILE) is to work in.
    Returns how many are marked.
    """
    marked = 0
    guarded = len(unsafe) > 0
    shift = room[0]
    total = room[1]
    square = room[2]
    size = room[3]
    for a in range(0, width, TILE):
        w = TILE if width - a > TILE else width - a
        for j in range(w):
            shift[j] = mean[a + j] if before > 0 else flat[a + j]
            if not np.isfinite(shift[j]):
                shift[j] = 0.0          # one infinite number must not make NaN of a mean that is infinite
            total[j] = 0.0
            square[j] = 0.0
            size[j] = 0.0
        zeros = 0
        if guarded:
            for j in range(w):
                zeros += shift[j] == 0.0
        t = 0
        while t + 8 <= n:
            r = t * stride + a
            x0 = flat[r:r + w]
            x1 = flat[r + stride:r + stride + w]
            x2 = flat[r + 2 * stride:r + 2 * stride + w]
            x3 = flat[r + 3 * stride:r + 3 * stride + w]
            x4 = flat[r + 4 * stride:r + 4 * stride + w]
            x5 = flat[r + 5 * stride:r + 5 * stride + w]
            x6 = flat[r + 6 * stride:r + 6 * stride + w]
            x7 = flat[r + 7 * stride:r + 7 * stride + w]
            for j in range(w):
                h = shift[j]
                d0 = x0[j] - h
                d1 = x1[j] - h
                d2 = x2[j] - h
                d3 = x3[j] - h
                d4 = x4[j] - h
                d5 = x5[j] - h
                d6 = x6[j] - h
                d7 = x7[j] - h
                total[j] += ((d0 + d1) + (d2 + d3)) + ((d4 + d5) + (d6 + d7))
                square[j] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7))
            if zeros > 0:
                for i in range(8):
                    x = flat[r + i * stride:r + i * stride + w]
                    for j in range(w):
                        size[j] += abs(x[j])
            t += 8
        while t < n:
            x = flat[t * stride + a:t * stride + a + w]
            for j in range(w):
                d = x[j] - shift[j]
                total[j] += d
                square[j] += d * d
            if zeros > 0:
                for j in range(w):
                    size[j] += abs(x[j])
            t += 1
        share = n / (before + n)
        if guarded:
            marked += fold_guarded(total[:w], square[:w], shift[:w], size[:w], n, before, share,
                                   mean[a:a + w], m2[a:a + w], unsafe[a:a + w])
            continue
        for j in range(w):
            part = total[j] / n
            gap = shift[j] + part - mean[a + j] if before > 0 else 0.0
            m2[a + j] += square[j] - total[j] * part + gap * gap * (before * share)
            if before > 0:
                mean[a + j] += gap * share
            else:
                mean[a + j] = shift[j] + part
    return marked


@kernel
def add_row(row, before, mean, m2):
    """One row of finite numbers into mean and m2 of its width, which hold `before` rows, above 0: Welford 1962."""
    share = 1.0 / (before + 1.0)
    spread = before * share
    for j in range(len(row)):
        gap = row[j] - mean[j]
        mean[j] += gap * share
        m2[j] += gap * gap * spread


@kernel
def add_faded(row, decay, total):
    """total (width,) becomes decay * total + row."""
    for j in range(len(row)):
        total[j] = decay * total[j] + row[j]


@kernel
def add_weighted_moments(flat, stride, weights, width, before, mean, m2, unsafe, room):
    """The same with weights (n,), of sum above 0; `before` is the weight that mean and m2 hold."""
    marked = 0
    guarded = len(unsafe) > 0
    n = len(weights)
    shift = room[0]
    total = room[1]
    square = room[2]
    size = room[3]
    weight = 0.0
    for t in range(n):
        weight += weights[t]
    share = weight / (before + weight)
    for a in range(0, width, TILE):
        w = TILE if width - a > TILE else width - a
        for j in range(w):
            shift[j] = mean[a + j] if before > 0 else flat[a + j]
            if not np.isfinite(shift[j]):
                shift[j] = 0.0
            total[j] = 0.0
            square[j] = 0.0
            size[j] = 0.0
        zeros = 0
        if guarded:
            for j in range(w):
                zeros += shift[j] == 0.0
        for t in range(n):
            weight_t = weights[t]
            if weight_t == 0.0:
                continue
            x = flat[t * stride + a:t * stride + a + w]
            for j in range(w):
                d = x[j] - shift[j]
                total[j] += weight_t * d
                square[j] += weight_t * d * d
            if zeros > 0:
                for j in range(w):
                    size[j] += abs(x[j])
        if guarded:
            marked += fold_guarded(total[:w], square[:w], shift[:w], size[:w], weight, before, share,
                                   mean[a:a + w], m2[a:a + w], unsafe[a:a + w])
            continue
        for j in range(w):
            part = total[j] / weight
            gap = shift[j] + part - mean[a + j] if before > 0 else 0.0
            m2[a + j] += square[j] - total[j] * part + gap * gap * (before * share)
            if before > 0:
                mean[a + j] += gap * share
            else:
                mean[a + j] = shift[j] + part
    return marked


@kernel
def central_sums(flat, stride, weights, width, mean, m2, m3, m4):
    """Mean and weighted sums of powers 2, 3, 4 of the deviation from it, of one block: two looks at each tile.

    Unlike the second moment alone, higher powers around a shift would cancel, so the mean is found first; the second
    look finds the tile in the cache.
    """
    n = len(weights)
    weight = 0.0
    for t in range(n):
        weight += weights[t]
    for a in range(0, width, TILE):
        w = TILE if width - a > TILE else width - a
        first, middle = flat[a:a + w], mean[a:a + w]
        p2, p3, p4 = m2[a:a + w], m3[a:a + w], m4[a:a + w]
        for j in range(w):
            middle[j] = 0.0
            p2[j] = 0.0
            p3[j] = 0.0
            p4[j] = 0.0
        for t in range(n):
            share = weights[t] / weight
            if share == 0.0:
                continue
            x = flat[t * stride + a:t * stride + a + w]
            for j in range(w):
                middle[j] += share * (np.float64(x[j]) - np.float64(first[j]))
        for j in range(w):
            middle[j] += first[j]
        for t in range(n):
            weight_t = weights[t]
            if weight_t == 0.0:
                continue
            x = flat[t * stride + a:t * stride + a + w]
            for j in range(w):
                d = x[j] - middle[j]
                square = d * d
                p2[j] += weight_t * square
                p3[j] += weight_t * square * d
                p4[j] += weight_t * square * square


@kernel
def add_extremes(flat, stride, n, width, start, low, high, at_low, at_high):
    """Take n rows into the extremes (width,) and the snapshots where they stand; the first of equals, NaN above all."""
    for a in range(0, width, TILE):
        w = TILE if width - a > TILE else width - a
        lo, hi, where_lo, where_hi = low[a:a + w], high[a:a + w], at_low[a:a + w], at_high[a:a + w]
        for t in range(n):
            x = flat[t * stride + a:t * stride + a + w]
            at = start + t
            for j in range(w):
                v = x[j]
                less = (v < lo[j]) | ((v != v) & (lo[j] == lo[j]))
                more = (v > hi[j]) | ((v != v) & (hi[j] == hi[j]))
                lo[j] = v if less else lo[j]
                where_lo[j] = at if less else where_lo[j]
                hi[j] = v if more else hi[j]
                where_hi[j] = at if more else where_hi[j]


@kernel
def add_counts(flat, stride, weights, width, edges, scale, counts, outside, per_element):
    """Count numbers between edges (bins + 1,), rising; the last bin holds its upper edge, as numpy does.

    counts is (width or 1, bins); outside is (3,): weight below, above and not a number. A positive scale says that
    the bins are equal and where to look first.
    """
    bins = len(edges) - 1
    for t in range(len(weights)):
        x = flat[t * stride:t * stride + width]
        for j in range(width):
            v = x[j]
            if v != v:
                outside[2] += weights[t]
                continue
            if v < edges[0]:
                outside[0] += weights[t]
                continue
            if v > edges[bins]:
                outside[1] += weights[t]
                continue
            if scale > 0.0:
                k = min(int((v - edges[0]) * scale), bins - 1)
                while k > 0 and v < edges[k]:
                    k -= 1
                while k < bins - 1 and v >= edges[k + 1]:
                    k += 1
            else:
                lo, hi = 0, bins
                while hi - lo > 1:
                    mid = (lo + hi) // 2
                    if v >= edges[mid]:
                        lo = mid
                    else:
                        hi = mid
                k = lo
            counts[j if per_element else 0, k] += weights[t]
