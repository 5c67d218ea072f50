"""Pair distances by cell lists, any box and any range.

The atoms that are looked for are wrapped into the brick of the box (kernels_pbc) and every image of them within the
range is written down beside it, so that the search knows no periodicity: cells are bricks too, rows of cells along x
lie one after the other in memory, and the distances of an atom to a row are one loop that the compiler vectorises.
Where both groups are one, an atom looks only at what comes after it in the order of (z, y, x) cells, which boxes shift
by whole cells: of the two ways to see a pair exactly one counts. Images of an atom itself and of those of its label
are left out, all of them.

Work: per atom about 1.6 (4 pi / 3 r^3 density) candidates, half of that where the groups are one; each costs a distance, a
square root and a bin. These are taken in single precision, eight or sixteen at a time, and once more in double precision
where they come so near to an edge that rounding could decide: the counts are those of double precision. 4.2 ms a frame of
10 648 atoms to 10 angstrom (751 000 pairs), 0.12 ms of 500 atoms of a protein (38 000 pairs) on a Zen 4 core.
"""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel
from ensemblekit.md.kernels_pbc import into_brick, lower_triangular, nearest_image

PER_RANGE = 2
"""Cells across the range along y and z; along x, where rows are cut exactly, four times as many."""
FEW = 1500
"""So many atoms and images have one cell across the range: there, fewer and longer rows are quicker."""
WIDTH = 16
"""Rows are gone through so many atoms at a time."""


def pair_counts(positions, cells, group_a, group_b, label_a, label_b, same, edges, counts, volumes):
    """Ordered pairs per bin of distance, of each frame.

    positions: (n, atoms, 3); cells: (n, 3, 3), or (0, 3, 3) without periodicity; group_a, group_b: (na,), (nb,) indices
    of atoms, equal where `same`; label_a, label_b: pairs of equal labels (or of one atom) are left out; edges:
    (bins + 1,) rising and evenly spaced; counts: (n, bins + 1), the first for pairs closer than edges[0]; volumes: (n,).
    Returns -1, or the first frame whose positions are not finite or whose cell has no volume.

    Not compiled itself: one kernel of it all would be compiled twice over, ten seconds instead of four, to save some
    microseconds a frame.
    """
    reach = float(edges[-1])
    lower, turn, brick = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    a, b = np.empty((3, len(group_a))), np.empty((3, len(group_b)))
    images = np.empty((3, 2 * len(group_b)))          # grown where there are more
    owner = np.empty(2 * len(group_b), np.int64)
    periodic = len(cells) > 0
    plain = np.array_equal(label_a, group_a) and np.array_equal(label_b, group_b)
    counts[...] = 0.0
    # boxes whose vectors lie as they are wanted, so that what is measured along x, y, z is measured along the box
    upright = (cells[:, [0, 0, 1], [1, 2, 2]] == 0.0).all(1) & (cells.diagonal(0, 1, 2) > 0.0).all(1) if periodic else []
    for f in range(len(positions)):
        volumes[f] = volume = lower_triangular(cells[f], lower, turn) if periodic else np.nan
        alone = not periodic
        if periodic and volume > 0.0 and upright[f]:
            # a molecule in the midst of its box meets no image: cells for where it is, not for all of the box
            alone = _bounded(positions[f], group_a, group_b, reach, a, b, brick) and _inside(brick, lower, reach)
        if alone and periodic:
            lower[...], placed = brick, True
        elif periodic:
            placed = volume > 0.0 and into_brick(positions[f], group_a, lower, turn, a) and (
                same or into_brick(positions[f], group_b, lower, turn, b))
        else:
            placed = _bounded(positions[f], group_a, group_b, reach, a, b, lower)
        if not placed:
            return f
        of = a if same else b
        if not alone:
            total = _images(of, lower, reach, same, True, False, images, owner)
            if total > len(owner):
                images, owner = np.empty((3, total + total // 8)), np.empty(total + total // 8, np.int64)
            _images(of, lower, reach, same, True, True, images, owner)
        else:
            total = _images(of, lower, reach, same, False, True, images, owner)
        # an atom never meets itself among those after it, nor an image of its own that lies beyond the range
        labelled = not (plain and same and (alone or _inside(None, lower, reach)))
        _count(a, images, owner, total, lower, reach, same, labelled, group_a, group_b, label_a, label_b, edges, counts[f])
    if same:
        counts *= 2.0
    return -1


def _inside(brick, lower, reach):
    """Whether a brick (or None, a point) and `reach` beyond it end before the box does, so that nothing meets its own image."""
    for k in range(3):
        if not (0.0 if brick is None else brick[k, k]) + reach < lower[k, k] * (1.0 - 1e-9):
            return False
    return True


@kernel
def _bounded(positions, group_a, group_b, reach, a, b, lower):
    """Without a box: both groups moved to start at zero, `lower` a brick that holds them, `reach` wide at least; False: not
    finite."""
    for k in range(3):
        low, high = np.inf, -np.inf
        for n in range(len(group_a)):
            x = float(positions[group_a[n], k])
            if not math.isfinite(x):
                return False
            low, high = min(low, x), max(high, x)
        for n in range(len(group_b)):
            x = float(positions[group_b[n], k])
            if not math.isfinite(x):
                return False
            low, high = min(low, x), max(high, x)
        for n in range(len(group_a)):
            a[k, n] = positions[group_a[n], k] - low
        for n in range(len(group_b)):
            b[k, n] = positions[group_b[n], k] - low
        for j in range(3):
            lower[k, j] = 0.0
        lower[k, k] = max((high - low) * (1.0 + 1e-9), reach)
    return True


@kernel
def _images(b, lower, reach, same, periodic, write, images, owner):
    """All atoms and those of their images within `reach` of the brick; where `same`, none below the brick.

    Returns how many there are; they are written down where `write`, the atoms themselves first.
    """
    nb = b.shape[1]
    lx, ly, lz = lower[0, 0], lower[1, 1], lower[2, 2]
    if write:
        for n in range(nb):
            images[0, n], images[1, n], images[2, n] = b[0, n], b[1, n], b[2, n]
            owner[n] = n
    n_images = nb
    if not periodic:
        return n_images
    deep = math.ceil(reach / lz)
    for c in range(0 if same else -deep, deep + 1):
        sz = c * lz
        y0 = c * lower[2, 1]
        # y0 + j ly + [0, ly) must meet [-reach, ly + reach]
        for j in range(math.floor((-reach - y0) / ly) - 1, math.floor((ly + reach - y0) / ly) + 1):
            sy = y0 + j * ly
            x0 = c * lower[2, 0] + j * lower[1, 0]
            for i in range(math.floor((-reach - x0) / lx) - 1, math.floor((lx + reach - x0) / lx) + 1):
                if c == 0 and j == 0 and i == 0:
                    continue
                sx = x0 + i * lx
                for n in range(nb):
                    x, y, z = b[0, n] + sx, b[1, n] + sy, b[2, n] + sz
                    if (-reach <= x <= lx + reach) and (-reach <= y <= ly + reach) and (-reach <= z <= lz + reach):
                        if write:
                            images[0, n_images], images[1, n_images], images[2, n_images] = x, y, z
                            owner[n_images] = n
                        n_images += 1
    return n_images


@kernel
def _count(a, images, owner, total, lower, reach, same, labelled, group_a, group_b, label_a, label_b, edges, counts):
    """One frame: sort the images by cell, then go through the rows of cells around each atom."""
    na, nb = a.shape[1], len(group_b)
    bins = len(edges) - 1
    # cells: whole numbers of them along the brick, so that images after it lie in later layers than the atoms in it
    per_range = 1 if total < FEW else PER_RANGE
    wish_x, wish = reach / (4 * PER_RANGE), reach / per_range
    kx, ky, kz = (max(1, math.floor(lower[0, 0] / wish_x)), max(1, math.floor(lower[1, 1] / wish)),
                  max(1, math.floor(lower[2, 2] / wish)))
    while kx * ky * kz > 8 * total + 64:        # few atoms far apart: more cells than atoms help nobody
        kx, ky, kz = max(1, kx // 2), max(1, ky // 2), max(1, kz // 2)
    hx, hy, hz = lower[0, 0] / kx, lower[1, 1] / ky, lower[2, 2] / kz
    ex, ey, ez = math.ceil(reach / hx), math.ceil(reach / hy), math.ceil(reach / hz)
    nx, ny = kx + 2 * ex, ky + 2 * ey
    oz = 0 if same else ez                      # no layers below the brick where only images after it count
    nz = kz + ez + oz
    where = np.empty(total, np.int64)
    begin = np.zeros(nx * ny * nz + 1, np.int64)
    for n in range(total):
        cx = math.floor(images[0, n] / hx)
        cy = math.floor(images[1, n] / hy)
        cz = math.floor(images[2, n] / hz)
        if n < nb:                              # in the brick, whatever rounding says
            cx, cy, cz = min(max(cx, 0), kx - 1), min(max(cy, 0), ky - 1), min(max(cz, 0), kz - 1)
        else:
            if same:                            # the order of cells is that of whole boxes, whatever rounding says
                o = owner[n]
                if images[2, n] != images[2, o]:
                    cz = max(cz, kz)
                else:
                    steps = round((images[1, n] - images[1, o]) / lower[1, 1])
                    cz = where[o] // (nx * ny) - oz
                    cy = where[o] // nx % ny - ey + ky * steps
                    if steps == 0:
                        cx = where[o] % nx - ex + kx * round((images[0, n] - images[0, o]) / lower[0, 0])
            cx, cy, cz = min(max(cx, -ex), kx + ex - 1), min(max(cy, -ey), ky + ey - 1), min(max(cz, -oz), kz + ez - 1)
        cell = ((cz + oz) * ny + cy + ey) * nx + cx + ex
        where[n] = cell
        begin[cell + 1] += 1
    for cell in range(nx * ny * nz):
        begin[cell + 1] += begin[cell]
    at = begin[:-1].copy()
    sorted64, sorted32 = np.empty((3, total)), np.empty((3, total + WIDTH), np.float32)
    label, atom = np.zeros(total + WIDTH, np.int32), np.zeros(total + WIDTH, np.int32)
    sorted32[:, total:] = np.float32(0.0)
    rank = np.empty(nb, np.int64)
    centre = (0.5 * lower[0, 0], 0.5 * lower[1, 1], 0.5 * lower[2, 2])
    furthest = max(centre[0], centre[1], centre[2])
    for n in range(total):
        to = at[where[n]]
        at[where[n]] += 1
        for k in range(3):
            sorted64[k, to] = images[k, n]
            from_centre = images[k, n] - centre[k]
            sorted32[k, to] = from_centre
            furthest = max(furthest, abs(from_centre))
        label[to], atom[to] = label_b[owner[n]], group_b[owner[n]]
        if n < nb:
            rank[n] = to
    x, y, z = sorted32[0], sorted32[1], sorted32[2]
    # as many as one atom may have before it, and what the last run writes beyond its end
    squared, fine = np.full(total + WIDTH + 32, np.float32(np.inf)), np.zeros(total + WIDTH + 32, np.uint32)
    runs = np.empty((3, (2 * ey + 1) * (2 * ez + 1)), np.int64)
    # Adding one to one place twice in a row makes the second wait for the first: four counts of each bin, taken in turn,
    # and what lies beyond the range keeps to its distance, in bins of its own that nobody reads.
    some = np.zeros((4, 2 * bins + 16), np.uint32)
    limit = reach * reach
    low, per = edges[0], bins / (edges[-1] - edges[0])
    # bins as whole numbers of 2^-shift of one; the upper bits are the bin
    shift = np.uint64(max(0, math.floor(23.0 - math.log2(2.0 * bins + 4.0))))
    steps = 2.0**np.float64(shift)
    # How far single precision may put a distance from where it is: both positions are rounded (sqrt 3 x 2 x 2^-24 of the
    # largest coordinate), then their difference, squares, root (3 ulp of the range), scale and offset. What comes so near
    # to an edge is done again in double precision.
    doubt = ((4.0 * furthest + 6.0 * reach) * per + 4.0 * (bins + 2)) * 2.0**-24
    if not 1e-15 < reach < 1e15:                # squares that single precision does not hold
        doubt = 1.0
    near, within = np.int32(min(doubt * steps + 2.0, steps)), np.int32(steps - 1.0)
    twice = np.int32(2 * near)
    scale, offset = np.float32(per * steps), np.float32((1.0 - low * per) * steps)
    least, most = np.float32(0.5 * steps), np.float32((2.0 * bins + 1.5) * steps)
    excluded = np.float32(np.inf)
    per_x = 1.0 / hx
    for i in range(na):
        xi, yi, zi = a[0, i], a[1, i], a[2, i]
        x32, y32, z32 = np.float32(xi - centre[0]), np.float32(yi - centre[1]), np.float32(zi - centre[2])
        label_i, me = np.int32(label_a[i]), np.int32(group_a[i])
        cy = min(math.floor(yi / hy), ky - 1)
        cz = min(math.floor(zi / hz), kz - 1)
        m = np.uint64(0)
        n_runs = 0
        for layer in range(cz if same else cz - ez, cz + ez + 1):
            dz = 0.0
            if layer > cz:
                dz = max(0.0, layer * hz - zi)
            elif layer < cz:
                dz = max(0.0, zi - (layer + 1) * hz)
            if dz > reach or layer + oz >= nz:
                continue
            for row in range(cy if same and layer == cz else cy - ey, cy + ey + 1):
                dy = 0.0
                if row > cy:
                    dy = max(0.0, row * hy - yi)
                elif row < cy:
                    dy = max(0.0, yi - (row + 1) * hy)
                left = limit - dy * dy - dz * dz
                if left < 0.0:
                    continue
                width = math.sqrt(left) * (1.0 + 1e-9)      # more than rounding takes away
                line = ((layer + oz) * ny + row + ey) * nx + ex
                first = begin[line + max(math.floor((xi - width) * per_x), -ex)]
                last = begin[line + min(math.floor((xi + width) * per_x), kx + ex - 1) + 1]
                if same and layer == cz and row == cy:
                    first = rank[i] + 1
                if last <= first:
                    continue
                runs[0, n_runs], runs[1, n_runs], runs[2, n_runs] = first, last, m
                n_runs += 1
                # whole vectors: what is written beyond the end of the run is overwritten by the next
                at_j, upto = np.uint64(first), np.uint64((last - first + WIDTH - 1) // WIDTH * WIDTH)
                for t in range(upto):
                    j = at_j + t
                    dx, ddy, ddz = x[j] - x32, y[j] - y32, z[j] - z32
                    squared[m + t] = dx * dx + ddy * ddy + ddz * ddz
                if labelled:
                    for t in range(upto):
                        j = at_j + t
                        apart = (label[j] != label_i) & (atom[j] != me)
                        squared[m + t] = squared[m + t] if apart else excluded
                m += np.uint64(last - first)
        # bin 0: below the range, from bins + 1 on: beyond it. No branch, so that square roots and bins come many at a time;
        # nor a rest, as the arrays go on: what is found for it counts nowhere
        doubtful = np.int32(0)
        for t in range((m + np.uint64(31)) // np.uint64(32) * np.uint64(32)):
            v = math.sqrt(squared[t]) * scale + offset
            v = least if v < least else v
            v = most if v > most else v
            bin = np.int32(v)
            doubtful = np.int32(doubtful | np.int32(np.int32(np.int32(bin + near) & within) - twice))
            fine[t] = np.uint32(bin)
        if doubtful < 0:
            _exactly(xi, yi, zi, sorted64, label_i, me, label, atom, runs, n_runs, edges, near, within, shift, fine)
        whole = m - m % np.uint64(4)
        for t in range(np.uint64(0), whole, np.uint64(4)):
            some[0, np.uint64(fine[t]) >> shift] += np.uint32(1)
            some[1, np.uint64(fine[t + np.uint64(1)]) >> shift] += np.uint32(1)
            some[2, np.uint64(fine[t + np.uint64(2)]) >> shift] += np.uint32(1)
            some[3, np.uint64(fine[t + np.uint64(3)]) >> shift] += np.uint32(1)
        for t in range(whole, m):
            some[0, np.uint64(fine[t]) >> shift] += np.uint32(1)
    for k in range(bins + 1):
        counts[k] += np.float64(some[0, k]) + some[1, k] + some[2, k] + some[3, k]


@kernel
def _exactly(xi, yi, zi, positions, label_i, me, label, atom, runs, n_runs, edges, near, within, shift, fine):
    """The bins of those candidates of one atom that lie near an edge: in double precision and against the very edges.

    positions: (3, total), sorted; runs: (3, n_runs) first, last and where in the candidates; fine: their bins in whole
    numbers of 1 / (within + 1), 2^shift of them a bin; near: how far of those from an edge is near.
    """
    bins = len(edges) - 1
    low, per, limit = edges[0], bins / (edges[-1] - edges[0]), edges[-1] * edges[-1]
    for run in range(n_runs):
        for j in range(runs[0, run], runs[1, run]):
            t = runs[2, run] + j - runs[0, run]
            if ((np.int64(fine[t]) + near) & within) >= 2 * near:
                continue
            k = bins + 1
            if label[j] != label_i and atom[j] != me:
                dx, dy, dz = positions[0, j] - xi, positions[1, j] - yi, positions[2, j] - zi
                d2 = dx * dx + dy * dy + dz * dz
                if d2 < limit:
                    r = math.sqrt(d2)
                    k = min(max(int((r - low) * per + 1.0), 0), bins)
                    if k > 0 and r < edges[k - 1]:
                        k -= 1
                    elif k < bins and r >= edges[k]:
                        k += 1
            fine[t] = np.uint32(np.uint64(k) << shift)


@kernel
def nearest_counts(positions, cells, group_a, group_b, label_a, label_b, edges, counts, volumes):
    """As `pair_counts`, each pair once at its nearest image, found for every pair: for ranges beyond half a box."""
    bins = len(edges) - 1
    na, nb = len(group_a), len(group_b)
    lower, turn = np.zeros((3, 3)), np.zeros((3, 3))
    a, b = np.empty((3, na)), np.empty((3, nb))
    low, per, limit = edges[0], bins / (edges[-1] - edges[0]), edges[-1] ** 2
    for f in range(len(positions)):
        for k in range(bins + 1):
            counts[f, k] = 0.0
        volumes[f] = lower_triangular(cells[f], lower, turn)
        if not volumes[f] > 0.0:
            return f
        if not (into_brick(positions[f], group_a, lower, turn, a) and into_brick(positions[f], group_b, lower, turn, b)):
            return f
        for i in range(na):
            for j in range(nb):
                if label_a[i] == label_b[j] or group_a[i] == group_b[j]:
                    continue
                _, _, _, d2 = nearest_image(b[0, j] - a[0, i], b[1, j] - a[1, i], b[2, j] - a[2, i], lower)
                if d2 >= limit:
                    continue
                r = math.sqrt(d2)
                if r < low:
                    counts[f, 0] += 1.0
                    continue
                k = min(int((r - low) * per), bins - 1)
                if r < edges[k]:
                    k -= 1
                elif r >= edges[k + 1]:
                    k = min(k + 1, bins - 1)
                counts[f, k + 1] += 1.0
    return -1
