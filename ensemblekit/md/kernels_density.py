"""Profiles along one axis of the box."""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel


@kernel
def normal_of(cell, axis):
    """The volume of a cell (signed), its height along the normal of the other two vectors, and the reciprocal vector of an
    axis: the share of a position along it is r . n. The vector is not finite where the cell has no volume."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    nx = cell[one, 1] * cell[two, 2] - cell[one, 2] * cell[two, 1]
    ny = cell[one, 2] * cell[two, 0] - cell[one, 0] * cell[two, 2]
    nz = cell[one, 0] * cell[two, 1] - cell[one, 1] * cell[two, 0]
    area = math.sqrt(nx * nx + ny * ny + nz * nz)
    volume = cell[axis, 0] * nx + cell[axis, 1] * ny + cell[axis, 2] * nz
    return volume, abs(volume) / area, nx / volume, ny / volume, nz / volume


@kernel
def middle_of(positions, atoms, weights, nx, ny, nz):
    """The weighted mean share along an axis of some atoms, on the circle that a periodic axis is."""
    sine, cosine = 0.0, 0.0
    for n in range(len(atoms)):
        p = positions[atoms[n]]
        angle = 2.0 * math.pi * (p[0] * nx + p[1] * ny + p[2] * nz)
        sine += weights[n] * math.sin(angle)
        cosine += weights[n] * math.cos(angle)
    return math.atan2(sine, cosine) / (2.0 * math.pi)


@kernel
def add_profile(positions, atoms, weights, cells, axis, centre_atoms, centre_weights, low, high, out, heights):
    """Sums of weights in slabs parallel to two box vectors, of each frame, divided by the volume of a slab.

    positions: (n, any, 3); atoms, weights: (m,); cells: (n, 3, 3); axis: 0, 1 or 2, the vector the slabs are stacked
    along; centre_atoms, centre_weights: whose mean (on the circle, as the box is one) becomes the origin, or empty for
    the corner of the box; low, high: distances along the normal, or NaN for the whole box (shares of its height);
    out: (n, bins); heights: (n,) of the box along the normal. Returns -1 or the first frame that is not finite or has no
    volume.
    """
    bins = out.shape[1]
    for f in range(len(positions)):
        for k in range(bins):
            out[f, k] = 0.0
        c = cells[f]
        volume, height, nx, ny, nz = normal_of(c, axis)
        if not (math.isfinite(volume) and volume != 0.0):
            return f
        heights[f] = height
        origin = 0.0
        if len(centre_atoms):
            origin = middle_of(positions[f], centre_atoms, centre_weights, nx, ny, nz)
        whole = math.isnan(low)
        start = low / height
        width = 1.0 / bins if whole else (high - low) / height / bins
        if whole:
            start = -0.5 if len(centre_atoms) else 0.0
        for n in range(len(atoms)):
            p = positions[f, atoms[n]]
            s = p[0] * nx + p[1] * ny + p[2] * nz - origin - start
            if not math.isfinite(s):
                return f
            s -= math.floor(s)      # one image of each atom lies in [start, start + 1)
            k = int(s / width)
            if k < bins:
                out[f, k] += weights[n]
            elif whole:
                out[f, bins - 1] += weights[n]
        slab = abs(volume) * width
        for k in range(bins):
            out[f, k] /= slab
    return -1


@kernel
def add_sheets(positions, atoms, charges, cells, axis, center_atoms, center_weights, out, heights):
    """The potential of charges spread over the planes they lie in, of all periodic images, in the middle of slabs: of a sheet
    with charge q on an area A in a cell of height h, 2 pi q / A (-|d| + d² / h + h / 6), whose mean is 0.

    Arguments as those of :func:`add_profile`; out (n, bins) in e / angstrom. Returns -1 or the first frame that is not finite
    or has no volume.
    """
    bins = out.shape[1]
    sums, moments = np.empty(bins), np.empty(bins)
    for f in range(len(positions)):
        volume, height, nx, ny, nz = normal_of(cells[f], axis)
        if not (math.isfinite(volume) and volume != 0.0):
            return f
        heights[f] = height
        start = 0.0
        if len(center_atoms):
            start = middle_of(positions[f], center_atoms, center_weights, nx, ny, nz) - 0.5
        sums[:] = 0.0
        moments[:] = 0.0
        out[f] = 0.0
        squares = 0.0
        for n in range(len(atoms)):
            p = positions[f, atoms[n]]
            s = p[0] * nx + p[1] * ny + p[2] * nz - start
            if not math.isfinite(s):
                return f
            s -= math.floor(s)
            k = min(int(s * bins), bins - 1)
            sums[k] += charges[n]
            moments[k] += charges[n] * s
            squares += charges[n] * s * s
            out[f, k] -= charges[n] * abs((k + 0.5) / bins - s)     # its own slab charge by charge, the others by their sums
        total, moment = sums.sum(), moments.sum()
        left = turn = 0.0
        scale = 2.0 * math.pi * height * height / abs(volume)
        for k in range(bins):
            t = (k + 0.5) / bins
            right, other = total - left - sums[k], moment - turn - moments[k]
            apart = (t * left - turn) - (t * right - other)
            out[f, k] = scale * (out[f, k] - apart + t * t * total - 2.0 * t * moment + squares + total / 6.0)
            left += sums[k]
            turn += moments[k]
    return -1


@kernel
def dipoles(positions, atoms, charges, masses, out):
    """Sum of q (r - c) of each frame, c the centre of the masses (none: masses all zero); positions as they are.

    positions: (n, any, 3); atoms, charges, masses: (m,); out: (n, 3) float64.
    """
    total = 0.0
    for n in range(len(masses)):
        total += masses[n]
    charge = 0.0
    for n in range(len(charges)):
        charge += charges[n]
    for f in range(len(positions)):
        x = positions[f]
        mx, my, mz, cx, cy, cz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for n in range(len(atoms)):
            a = atoms[n]
            q, w = charges[n], masses[n]
            mx += q * x[a, 0]
            my += q * x[a, 1]
            mz += q * x[a, 2]
            cx += w * x[a, 0]
            cy += w * x[a, 1]
            cz += w * x[a, 2]
        shift = charge / total if total > 0.0 else 0.0
        out[f, 0] = mx - shift * cx
        out[f, 1] = my - shift * cy
        out[f, 2] = mz - shift * cz
