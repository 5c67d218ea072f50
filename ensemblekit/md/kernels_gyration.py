"""Loops for the spread of groups of atoms about their centre, compiled. Each frame is read once."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel, sum_kernel
from ensemblekit.md.kernels_superpose import gather


@sum_kernel
def second_moments(buffer, shares, out):
    """Weighted covariance xx, yy, zz, xy, xz, yz of gathered atoms into out (6,); sums about the first atom."""
    m = len(shares)
    x0, x1, x2 = buffer[:m], buffer[m:2 * m], buffer[2 * m:3 * m]
    o0, o1, o2 = x0[0], x1[0], x2[0]
    c0 = c1 = c2 = s0 = s1 = s2 = s3 = s4 = s5 = 0.0
    for i in range(m):
        w = shares[i]
        d0 = x0[i] - o0
        d1 = x1[i] - o1
        d2 = x2[i] - o2
        w0 = w * d0
        w1 = w * d1
        w2 = w * d2
        c0 += w0
        c1 += w1
        c2 += w2
        s0 += w0 * d0
        s1 += w1 * d1
        s2 += w2 * d2
        s3 += w0 * d1
        s4 += w0 * d2
        s5 += w1 * d2
    out[0] = max(s0 - c0 * c0, 0.0) if s0 == s0 else s0
    out[1] = max(s1 - c1 * c1, 0.0) if s1 == s1 else s1
    out[2] = max(s2 - c2 * c2, 0.0) if s2 == s2 else s2
    out[3] = s3 - c0 * c1
    out[4] = s4 - c0 * c2
    out[5] = s5 - c1 * c2


@sum_kernel
def squares(buffer, shares, out):
    """Weighted mean squares along x, y, z about the centre into out (3,)."""
    m = len(shares)
    x0, x1, x2 = buffer[:m], buffer[m:2 * m], buffer[2 * m:3 * m]
    o0, o1, o2 = x0[0], x1[0], x2[0]
    c0 = c1 = c2 = s0 = s1 = s2 = 0.0
    for i in range(m):
        w = shares[i]
        d0 = x0[i] - o0
        d1 = x1[i] - o1
        d2 = x2[i] - o2
        w0 = w * d0
        w1 = w * d1
        w2 = w * d2
        c0 += w0
        c1 += w1
        c2 += w2
        s0 += w0 * d0
        s1 += w1 * d1
        s2 += w2 * d2
    out[0] = max(s0 - c0 * c0, 0.0) if s0 == s0 else s0
    out[1] = max(s1 - c1 * c1, 0.0) if s1 == s1 else s1
    out[2] = max(s2 - c2 * c2, 0.0) if s2 == s2 else s2


@sum_kernel
def squares_in_place(x, shares, out):
    """:func:`squares` of atoms that lie one after the other in memory, x (3 m,): no gathering, 2.5x faster."""
    o0, o1, o2 = np.float64(x[0]), np.float64(x[1]), np.float64(x[2])
    c0 = c1 = c2 = s0 = s1 = s2 = 0.0
    for i in range(len(shares)):
        w = shares[i]
        d0 = x[3 * i] - o0
        d1 = x[3 * i + 1] - o1
        d2 = x[3 * i + 2] - o2
        w0 = w * d0
        w1 = w * d1
        w2 = w * d2
        c0 += w0
        c1 += w1
        c2 += w2
        s0 += w0 * d0
        s1 += w1 * d1
        s2 += w2 * d2
    out[0] = max(s0 - c0 * c0, 0.0) if s0 == s0 else s0
    out[1] = max(s1 - c1 * c1, 0.0) if s1 == s1 else s1
    out[2] = max(s2 - c2 * c2, 0.0) if s2 == s2 else s2


@kernel
def gyration(flat, stride, n, width, atoms, shares, out):
    """Mean squares about the centre along x, y, z: out (n, 3)."""
    m = len(atoms)
    neighbours = True
    for i in range(1, m):
        neighbours = neighbours and atoms[i] == atoms[i - 1] + 1
    buffer = np.empty(0 if neighbours else 3 * m)
    for t in range(n):
        if neighbours:
            first = t * stride + 3 * atoms[0]
            squares_in_place(flat[first:first + 3 * m], shares, out[t])
        else:
            gather(flat[t * stride:t * stride + width], atoms, buffer)
            squares(buffer, shares, out[t])


@kernel
def gyration_tensor(flat, stride, n, width, atoms, shares, out):
    """The gyration tensor xx, yy, zz, xy, xz, yz: out (n, 6)."""
    buffer = np.empty(3 * len(atoms))
    for t in range(n):
        gather(flat[t * stride:t * stride + width], atoms, buffer)
        second_moments(buffer, shares, out[t])


@kernel
def varying_gyration(flat, stride, n, width, atoms, offsets, weights, out):
    """:func:`gyration` of another choice in each frame: atoms[offsets[t]:offsets[t + 1]]; none: NaN. weights (atoms,)."""
    longest = 0
    for t in range(n):
        longest = max(longest, offsets[t + 1] - offsets[t])
    buffer = np.empty(3 * longest)
    shares = np.empty(longest)
    for t in range(n):
        chosen = atoms[offsets[t]:offsets[t + 1]]
        m = len(chosen)
        total = 0.0
        for i in range(m):
            shares[i] = weights[chosen[i]]
            total += shares[i]
        if not total > 0.0:
            out[t, :] = np.nan
            continue
        for i in range(m):
            shares[i] /= total
        gather(flat[t * stride:t * stride + width], chosen, buffer)
        squares(buffer, shares[:m], out[t])
