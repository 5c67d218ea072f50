"""Profiles along one axis of the box."""

from __future__ import annotations

import math

from ensemblekit.jit import kernel


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
        # the reciprocal vector of the axis: share along it = r . normal
        one, two = (axis + 1) % 3, (axis + 2) % 3
        nx = c[one, 1] * c[two, 2] - c[one, 2] * c[two, 1]
        ny = c[one, 2] * c[two, 0] - c[one, 0] * c[two, 2]
        nz = c[one, 0] * c[two, 1] - c[one, 1] * c[two, 0]
        area = math.sqrt(nx * nx + ny * ny + nz * nz)
        volume = c[axis, 0] * nx + c[axis, 1] * ny + c[axis, 2] * nz
        if not (math.isfinite(volume) and volume != 0.0):
            return f
        nx, ny, nz = nx / volume, ny / volume, nz / volume
        height = abs(volume) / area
        heights[f] = height
        origin = 0.0
        if len(centre_atoms):
            sine, cosine = 0.0, 0.0
            for n in range(len(centre_atoms)):
                p = positions[f, centre_atoms[n]]
                angle = 2.0 * math.pi * (p[0] * nx + p[1] * ny + p[2] * nz)
                sine += centre_weights[n] * math.sin(angle)
                cosine += centre_weights[n] * math.cos(angle)
            origin = math.atan2(sine, cosine) / (2.0 * math.pi)
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
