"""Loops over charges: Coulomb sums to the nearest image, and both parts of Ewald's sum, of field and potential at once.

All positions are turned with the cell, which is lower triangular (:mod:`~ensemblekit.md.kernels_pbc`); charges are sorted by
group, group g being offsets[g] to offsets[g + 1]. Sums are in e / angstrom (potential) and e / angstrom² (field).
"""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel, sum_kernel
from ensemblekit.md.kernels_pbc import nearest_image

CLOSE = 0.01
"""Angstrom: charges this near to a place make no field that means anything."""
ROW = 128
"""Atoms whose phases are in the cache together."""
FINE, COARSE, FAR = 64, 4, 16
"""Nodes of the table per squared angstrom: from 1, and from FAR on."""


@kernel
def screened_table(alpha, cutoff, table):
    """Of squared distances u: erfc(alpha r) / r, the factor f of the field d f, and the slope of f, to table (nodes, 3).

    Nodes lie 1 / FINE apart from 1 on, and 1 / COARSE from FAR on, which cubics between them follow to 1e-7. With a table that
    is too short it only counts: returns how many nodes there are.
    """
    near = (FAR - 1) * FINE
    n = near + max(0, math.ceil((cutoff * cutoff - FAR) * COARSE)) + 2
    if len(table) < n:
        return n
    slope = 2.0 * alpha / math.sqrt(math.pi)
    for k in range(n):
        u = 1.0 + k / FINE if k < near else FAR + (k - near) / COARSE
        r = math.sqrt(u)
        gauss = slope * math.exp(-alpha * alpha * u)
        table[k, 0] = math.erfc(alpha * r) / r
        table[k, 1] = (table[k, 0] + gauss) / u
        table[k, 2] = -(1.5 * table[k, 1] + alpha * alpha * gauss) / u
    return n


@kernel
def _screened(r2, alpha, table):
    """erfc(alpha r) / r and the factor of the field d f, from a table where there is one and it reaches (r >= 1 angstrom)."""
    if r2 < 1.0 or len(table) == 0:
        r = math.sqrt(r2)
        value = math.erfc(alpha * r) / r
        return value, (value + 2.0 * alpha / math.sqrt(math.pi) * math.exp(-alpha * alpha * r2)) / r2
    if r2 < FAR:
        at, h = (r2 - 1.0) * FINE, 1.0 / FINE
        k = int(at)
        t = at - k
    else:
        at, h = (r2 - FAR) * COARSE, 1.0 / COARSE
        k = int(at)
        t = at - k
        k += (FAR - 1) * FINE
    # cubics of Hermite; the slope of the first is -f / 2
    rest = 1.0 - t
    one, two = rest * rest * (1.0 + 2.0 * t), t * t * (3.0 - 2.0 * t)
    left, right = h * t * rest * rest, -h * t * t * rest
    f0, f1 = table[k, 1], table[k + 1, 1]
    return (one * table[k, 0] + two * table[k + 1, 0] - 0.5 * (left * f0 + right * f1),
            one * f0 + two * f1 + left * table[k, 2] + right * table[k + 1, 2])


@kernel
def real_part(points, x, q, offsets, lower, alpha, cutoff, table, field, potential, close):
    """Add the screened charges within the cutoff, all their images: points (p, 3), x (3, m) in the brick, q (m,).

    table: of :func:`screened_table`, or empty: every pair by itself. field (p, groups, 3), potential (p, groups). close (p,):
    images within CLOSE, which are left out.
    """
    single = cutoff <= 0.5 * min(lower[0, 0], lower[1, 1], lower[2, 2])
    work, near = np.empty((4, ROW)), np.empty(ROW, np.int64)
    for p in range(len(points)):
        for g in range(len(offsets) - 1):
            if single:
                sums = _of_nearest(points[p], x, q, offsets[g], offsets[g + 1], lower, alpha, cutoff, table, work, near)
            else:
                sums = _of_images(points[p], x, q, offsets[g], offsets[g + 1], lower, alpha, cutoff, table)
            potential[p, g] += sums[0]
            for i in range(3):
                field[p, g, i] += sums[1 + i]
            close[p] += int(sums[4])


@kernel
def _of_nearest(point, x, q, begin, end, lower, alpha, cutoff, table, work, near):
    """Potential, field (3) and images within CLOSE at one point, the cutoff at most half of each side of the brick."""
    r2c, v, ex, ey, ez, close = cutoff * cutoff, 0.0, 0.0, 0.0, 0.0, 0.0
    a, b, c = 1.0 / lower[0, 0], 1.0 / lower[1, 1], 1.0 / lower[2, 2]
    for first in range(begin, end, ROW):
        many = min(ROW, end - first)
        for j in range(many):       # all of them, in lanes,
            dz = point[2] - x[2, first + j]
            s = np.rint(dz * c)
            dz -= s * lower[2, 2]
            dy = point[1] - x[1, first + j] - s * lower[2, 1]
            dx = point[0] - x[0, first + j] - s * lower[2, 0]
            s = np.rint(dy * b)
            dy -= s * lower[1, 1]
            dx -= s * lower[1, 0]
            dx -= np.rint(dx * a) * lower[0, 0]
            work[0, j], work[1, j], work[2, j] = dx, dy, dz
            work[3, j] = dx * dx + dy * dy + dz * dz
        n = 0
        for j in range(many):       # then those within the cutoff, without a branch
            near[n] = j
            n += work[3, j] <= r2c
        for i in range(n):
            j = near[i]
            r2 = work[3, j]
            if r2 < CLOSE * CLOSE:
                close += 1.0
                continue
            value, f = _screened(r2, alpha, table)
            v += q[first + j] * value
            f *= q[first + j]
            ex += f * work[0, j]
            ey += f * work[1, j]
            ez += f * work[2, j]
    return v, ex, ey, ez, close


@kernel
def _of_images(point, x, q, begin, end, lower, alpha, cutoff, table):
    """As :func:`_of_nearest`, of several images of a charge."""
    r2c, v, ex, ey, ez, close = cutoff * cutoff, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(begin, end):
        dz = point[2] - x[2, j]
        s = np.rint(dz / lower[2, 2])
        dz -= s * lower[2, 2]
        dy = point[1] - x[1, j] - s * lower[2, 1]
        dx = point[0] - x[0, j] - s * lower[2, 0]
        s = np.rint(dy / lower[1, 1])
        dy -= s * lower[1, 1]
        dx -= s * lower[1, 0]
        dx -= np.rint(dx / lower[0, 0]) * lower[0, 0]
        for c in range(math.ceil((-cutoff - dz) / lower[2, 2]), math.floor((cutoff - dz) / lower[2, 2]) + 1):
            z = dz + c * lower[2, 2]
            left = r2c - z * z
            if left < 0.0:
                continue
            y0, r = dy + c * lower[2, 1], math.sqrt(left)
            for b in range(math.ceil((-r - y0) / lower[1, 1]), math.floor((r - y0) / lower[1, 1]) + 1):
                y = y0 + b * lower[1, 1]
                rest = left - y * y
                if rest < 0.0:
                    continue
                x0, s = dx + c * lower[2, 0] + b * lower[1, 0], math.sqrt(rest)
                for a in range(math.ceil((-s - x0) / lower[0, 0]), math.floor((s - x0) / lower[0, 0]) + 1):
                    w = x0 + a * lower[0, 0]
                    r2 = w * w + y * y + z * z
                    if r2 > r2c:
                        continue
                    if r2 < CLOSE * CLOSE:
                        close += 1.0
                        continue
                    value, f = _screened(r2, alpha, table)
                    v += q[j] * value
                    f *= q[j]
                    ex += f * w
                    ey += f * y
                    ez += f * z
    return v, ex, ey, ez, close


@kernel
def plain_part(points, x, q, offsets, lower, periodic, field, potential, close):
    """Add the bare charges, of each the nearest image (or, not periodic, itself); as :func:`real_part`."""
    for p in range(len(points)):
        for g in range(len(offsets) - 1):
            v = ex = ey = ez = 0.0
            for j in range(offsets[g], offsets[g + 1]):
                dx, dy, dz = points[p, 0] - x[0, j], points[p, 1] - x[1, j], points[p, 2] - x[2, j]
                r2 = dx * dx + dy * dy + dz * dz
                if periodic:
                    dx, dy, dz, r2 = nearest_image(dx, dy, dz, lower)
                if r2 < CLOSE * CLOSE:
                    close[p] += 1
                    continue
                v += q[j] / math.sqrt(r2)
                f = q[j] / (r2 * math.sqrt(r2))
                ex += f * dx
                ey += f * dy
                ez += f * dz
            potential[p, g] += v
            field[p, g, 0] += ex
            field[p, g, 1] += ey
            field[p, g, 2] += ez


@kernel
def take_out(points, x, q, group, begin, slots, lower, alpha, periodic, field, potential, close):
    """Take out what the nearest image of excluded charges does: of point p those slots[begin[p]:begin[p + 1]].

    group (m,): of each charge. alpha: of the screening of the sums, 0 where there is none. What lies within CLOSE was left out
    of the screened sum already; its counter charge in reciprocal space is what remains to be taken out.
    """
    slope = 2.0 * alpha / math.sqrt(math.pi)
    for p in range(len(points)):
        for k in range(begin[p], begin[p + 1]):
            j = slots[k]
            g = group[j]
            dx, dy, dz = points[p, 0] - x[0, j], points[p, 1] - x[1, j], points[p, 2] - x[2, j]
            r2 = dx * dx + dy * dy + dz * dz
            if periodic:
                dx, dy, dz, r2 = nearest_image(dx, dy, dz, lower)
            if r2 < CLOSE * CLOSE:
                close[p] -= 1
                potential[p, g] -= q[j] * slope * (1.0 - alpha * alpha * r2 / 3.0)
                f = -q[j] * slope * alpha * alpha * 2.0 / 3.0
            else:
                potential[p, g] -= q[j] / math.sqrt(r2)
                f = -q[j] / (r2 * math.sqrt(r2))
            field[p, g, 0] += f * dx
            field[p, g, 1] += f * dy
            field[p, g, 2] += f * dz


@kernel
def wave_vectors(lower, alpha, longest, whole, kvec, factor):
    """Half of the wave vectors up to a length, in rows of equal (h, k) and rising l: whole (n, 3), kvec (n, 3), factor (n,).

    factor: 2 * 4 pi / V exp(-k²/4 alpha²) / k², the 2 for the other half. Returns how many there are; with arrays that are too
    short (or empty) it only counts.
    """
    turn = 2.0 * math.pi
    volume = lower[0, 0] * lower[1, 1] * lower[2, 2]
    n = 0
    for h in range(math.floor(longest * lower[0, 0] / turn) + 1):
        kx = turn * h / lower[0, 0]
        left = longest * longest - kx * kx
        if left < 0.0:
            continue
        r = math.sqrt(left)
        y0 = -kx * lower[1, 0] / lower[1, 1]
        step = turn / lower[1, 1]
        k0 = math.ceil((-r - y0) / step)
        if h == 0:
            k0 = 0
        for k in range(k0, math.floor((r - y0) / step) + 1):
            ky = y0 + k * step
            rest = left - ky * ky
            if rest < 0.0:
                continue
            s = math.sqrt(rest)
            z0 = -(kx * lower[2, 0] + ky * lower[2, 1]) / lower[2, 2]
            stride = turn / lower[2, 2]
            l0 = math.ceil((-s - z0) / stride)
            if h == 0 and k == 0:
                l0 = 1
            for m in range(l0, math.floor((s - z0) / stride) + 1):
                if n < len(factor):
                    kz = z0 + m * stride
                    k2 = kx * kx + ky * ky + kz * kz
                    whole[n, 0], whole[n, 1], whole[n, 2] = h, k, m
                    kvec[n, 0], kvec[n, 1], kvec[n, 2] = kx, ky, kz
                    factor[n] = 8.0 * math.pi / volume * math.exp(-k2 / (4.0 * alpha * alpha)) / k2
                n += 1
    return n


@kernel
def waves_of(lower, alpha, longest):
    """The arrays of :func:`wave_vectors`, of the length they need."""
    n = wave_vectors(lower, alpha, longest, np.empty((0, 3), np.int64), np.empty((0, 3)), np.empty(0))
    whole, kvec, factor = np.empty((n, 3), np.int64), np.empty((n, 3)), np.empty(n)
    wave_vectors(lower, alpha, longest, whole, kvec, factor)
    return whole, kvec, factor


@kernel
def _phases(s, begin, end, most, re, im):
    """exp(2 pi i n s) of fractions s[begin:end] for n = 0 ... most, by powers: re, im (most + 1, atoms)."""
    for j in range(end - begin):
        angle = 2.0 * math.pi * (s[begin + j] - math.floor(s[begin + j]))
        re[0, j], im[0, j] = 1.0, 0.0
        if most > 0:
            re[1, j], im[1, j] = math.cos(angle), math.sin(angle)
    for n in range(2, most + 1):
        for j in range(end - begin):
            re[n, j] = re[n - 1, j] * re[1, j] - im[n - 1, j] * im[1, j]
            im[n, j] = re[n - 1, j] * im[1, j] + im[n - 1, j] * re[1, j]


@kernel
def _of_row(h, k, r0, i0, r1, i1, many, q, tr, ti):
    """q exp(2 pi i (h s0 + k s1)) of so many atoms; k may be negative."""
    sign = 1.0 if k >= 0 else -1.0
    n = abs(k)
    for j in range(many):
        re, im = r1[n, j], sign * i1[n, j]
        tr[j] = q[j] * (r0[h, j] * re - i0[h, j] * im)
        ti[j] = q[j] * (r0[h, j] * im + i0[h, j] * re)


@sum_kernel
def _four_sums(tr, ti, re, im, many):
    """The products of which the waves of l and of -l are made, each summed."""
    rr = ii = ir = ri = 0.0
    for j in range(many):
        rr += tr[j] * re[j]
        ii += ti[j] * im[j]
        ir += ti[j] * re[j]
        ri += tr[j] * im[j]
    return rr, ii, ir, ri


@kernel
def structure_factor(s, q, begin, end, whole, sr, si):
    """S(k) = sum q exp(i k r) of charges begin to end: s (3, m) in fractions of the cell, whole (n, 3), to sr, si (n,)."""
    h, k0, l0 = np.max(whole[:, 0]), np.max(np.abs(whole[:, 1])), np.max(np.abs(whole[:, 2]))
    r0, i0 = np.empty((h + 1, ROW)), np.empty((h + 1, ROW))
    r1, i1 = np.empty((k0 + 1, ROW)), np.empty((k0 + 1, ROW))
    r2, i2 = np.empty((l0 + 1, ROW)), np.empty((l0 + 1, ROW))
    tr, ti = np.empty(ROW), np.empty(ROW)
    sr[:] = 0.0
    si[:] = 0.0
    for a in range(begin, end, ROW):
        b = min(a + ROW, end)
        many = b - a
        _phases(s[0], a, b, h, r0, i0)
        _phases(s[1], a, b, k0, r1, i1)
        _phases(s[2], a, b, l0, r2, i2)
        n = 0
        while n < len(whole):       # a row of equal (h, k): l rises by one
            last = n
            while last + 1 < len(whole) and whole[last + 1, 0] == whole[n, 0] and whole[last + 1, 1] == whole[n, 1]:
                last += 1
            _of_row(whole[n, 0], whole[n, 1], r0, i0, r1, i1, many, q[a:b], tr, ti)
            low, high = whole[n, 2], whole[last, 2]
            least = 0 if low <= 0 <= high else min(abs(low), abs(high))
            for m in range(least, max(abs(low), abs(high)) + 1):
                rr, ii, ir, ri = _four_sums(tr, ti, r2[m], i2[m], many)
                if low <= m <= high:
                    sr[n + m - low] += rr - ii
                    si[n + m - low] += ir + ri
                if m > 0 and low <= -m <= high:
                    sr[n - m - low] += rr + ii
                    si[n - m - low] += ir - ri
            n = last + 1


@kernel
def _at_points(s, begin, end, g, whole, kvec, factor, sr, si, field, potential):
    """Add the waves to points begin to end: s (3, p) in fractions."""
    h, k0, l0 = np.max(whole[:, 0]), np.max(np.abs(whole[:, 1])), np.max(np.abs(whole[:, 2]))
    many = end - begin
    r0, i0 = np.empty((h + 1, many)), np.empty((h + 1, many))
    r1, i1 = np.empty((k0 + 1, many)), np.empty((k0 + 1, many))
    r2, i2 = np.empty((l0 + 1, many)), np.empty((l0 + 1, many))
    _phases(s[0], begin, end, h, r0, i0)
    _phases(s[1], begin, end, k0, r1, i1)
    _phases(s[2], begin, end, l0, r2, i2)
    one, tr, ti = np.ones(many), np.empty(many), np.empty(many)
    v, e0, e1, e2 = np.zeros(many), np.zeros(many), np.zeros(many), np.zeros(many)
    for n in range(len(whole)):
        if n == 0 or whole[n, 0] != whole[n - 1, 0] or whole[n, 1] != whole[n - 1, 1]:
            _of_row(whole[n, 0], whole[n, 1], r0, i0, r1, i1, many, one, tr, ti)
        m = abs(whole[n, 2])
        sign = 1.0 if whole[n, 2] >= 0 else -1.0
        a, b = factor[n] * sr[n], factor[n] * si[n]
        kx, ky, kz = kvec[n, 0], kvec[n, 1], kvec[n, 2]
        for j in range(many):
            re = tr[j] * r2[m, j] - sign * ti[j] * i2[m, j]
            im = ti[j] * r2[m, j] + sign * tr[j] * i2[m, j]
            v[j] += re * a + im * b
            wave = im * a - re * b
            e0[j] += kx * wave
            e1[j] += ky * wave
            e2[j] += kz * wave
    for j in range(many):
        potential[begin + j, g] += v[j]
        field[begin + j, g, 0] += e0[j]
        field[begin + j, g, 1] += e1[j]
        field[begin + j, g, 2] += e2[j]


@kernel
def fractions(x, lower, out):
    """Positions (3, m), turned, in units of the cell vectors."""
    for j in range(x.shape[1]):
        c = x[2, j] / lower[2, 2]
        b = (x[1, j] - c * lower[2, 1]) / lower[1, 1]
        out[2, j] = c
        out[1, j] = b
        out[0, j] = (x[0, j] - c * lower[2, 0] - b * lower[1, 0]) / lower[0, 0]


@kernel
def reciprocal_part(points, x, q, offsets, lower, alpha, longest, field, potential):
    """Add the waves of all groups, one group at a time; as :func:`real_part`."""
    whole, kvec, factor = waves_of(lower, alpha, longest)
    many = len(whole)
    if many == 0:
        return
    sr, si = np.empty(many), np.empty(many)
    s, t = np.empty(x.shape), np.empty((3, len(points)))
    fractions(x, lower, s)
    columns = np.empty((3, len(points)))
    for p in range(len(points)):
        for i in range(3):
            columns[i, p] = points[p, i]
    fractions(columns, lower, t)
    for g in range(len(offsets) - 1):
        if offsets[g] == offsets[g + 1]:
            continue
        structure_factor(s, q, offsets[g], offsets[g + 1], whole, sr, si)
        for a in range(0, len(points), ROW):
            _at_points(t, a, min(a + ROW, len(points)), g, whole, kvec, factor, sr, si, field, potential)
