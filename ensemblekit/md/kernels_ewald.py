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


@kernel
def real_part(points, x, q, offsets, lower, alpha, cutoff, field, potential, close):
    """Add the screened charges within the cutoff, all their images: points (p, 3), x (3, m) in the brick, q (m,).

    field (p, groups, 3), potential (p, groups). close (p,): images within CLOSE, which are left out.
    """
    sides = (lower[0, 0], lower[1, 1], lower[2, 2])
    single = cutoff <= 0.5 * min(sides[0], sides[1], sides[2])
    r2c = cutoff * cutoff
    slope = 2.0 * alpha / math.sqrt(math.pi)
    for p in range(len(points)):
        for g in range(len(offsets) - 1):
            v = ex = ey = ez = 0.0
            for j in range(offsets[g], offsets[g + 1]):
                dz = points[p, 2] - x[2, j]
                s = np.rint(dz / lower[2, 2])
                dz -= s * lower[2, 2]
                if single and abs(dz) > cutoff:
                    continue
                dy = points[p, 1] - x[1, j] - s * lower[2, 1]
                dx = points[p, 0] - x[0, j] - s * lower[2, 0]
                s = np.rint(dy / lower[1, 1])
                dy -= s * lower[1, 1]
                dx -= s * lower[1, 0]
                dx -= np.rint(dx / lower[0, 0]) * lower[0, 0]
                c0 = c1 = 0
                if not single:
                    c0, c1 = math.ceil((-cutoff - dz) / lower[2, 2]), math.floor((cutoff - dz) / lower[2, 2])
                for c in range(c0, c1 + 1):
                    z = dz + c * lower[2, 2]
                    left = r2c - z * z
                    if left < 0.0:
                        continue
                    b0 = b1 = 0
                    y0 = dy + c * lower[2, 1]
                    if not single:
                        r = math.sqrt(left)
                        b0, b1 = math.ceil((-r - y0) / lower[1, 1]), math.floor((r - y0) / lower[1, 1])
                    for b in range(b0, b1 + 1):
                        y = y0 + b * lower[1, 1]
                        rest = left - y * y
                        if rest < 0.0:
                            continue
                        a0 = a1 = 0
                        x0 = dx + c * lower[2, 0] + b * lower[1, 0]
                        if not single:
                            r = math.sqrt(rest)
                            a0, a1 = math.ceil((-r - x0) / lower[0, 0]), math.floor((r - x0) / lower[0, 0])
                        for a in range(a0, a1 + 1):
                            w = x0 + a * lower[0, 0]
                            r2 = w * w + y * y + z * z
                            if r2 > r2c:
                                continue
                            if r2 < CLOSE * CLOSE:
                                close[p] += 1
                                continue
                            r = math.sqrt(r2)
                            screened = math.erfc(alpha * r) / r
                            v += q[j] * screened
                            f = q[j] * (screened + slope * math.exp(-alpha * alpha * r2)) / r2
                            ex += f * w
                            ey += f * y
                            ez += f * z
            potential[p, g] += v
            field[p, g, 0] += ex
            field[p, g, 1] += ey
            field[p, g, 2] += ez


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
def _both_sums(tr, ti, re, im, sign, many):
    a = b = 0.0
    for j in range(many):
        a += tr[j] * re[j] - sign * ti[j] * im[j]
        b += ti[j] * re[j] + sign * tr[j] * im[j]
    return a, b


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
        for n in range(len(whole)):
            if n == 0 or whole[n, 0] != whole[n - 1, 0] or whole[n, 1] != whole[n - 1, 1]:
                _of_row(whole[n, 0], whole[n, 1], r0, i0, r1, i1, many, q[a:b], tr, ti)
            m = whole[n, 2]
            re, im = _both_sums(tr, ti, r2[abs(m)], i2[abs(m)], 1.0 if m >= 0 else -1.0, many)
            sr[n] += re
            si[n] += im


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
