"""Loops over pairs of atoms for scattering, compiled."""

from __future__ import annotations

import math

from ensemblekit.jit import kernel


@kernel
def add_pair_distances(x, y, z, edges, width, out):
    """Count the distances of all pairs of atoms, by pairs of kinds, each shared linearly by the two nearest points of a grid.

    x, y, z: (atoms,), sorted by kind; edges: (kinds + 1,), where each begins; width: of the grid; out: (kinds, kinds, points),
    of which [a, b] with a <= b are added to.
    """
    kinds = len(edges) - 1
    inverse = 1.0 / width
    for a in range(kinds):
        for i in range(edges[a], edges[a + 1]):
            x0, y0, z0 = x[i], y[i], z[i]
            for b in range(a, kinds):
                counts = out[a, b]
                for j in range(max(i + 1, edges[b]), edges[b + 1]):
                    d0, d1, d2 = x[j] - x0, y[j] - y0, z[j] - z0
                    place = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2) * inverse
                    k = int(place)
                    share = place - k
                    counts[k] += 1.0 - share
                    counts[k + 1] += share
