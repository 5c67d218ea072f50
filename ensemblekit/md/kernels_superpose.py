"""Loops that superpose frames, compiled: least squares by the quaternion method, no singular values needed.

Frames come as one flat array, `stride` numbers from one to the next, and an index array of atoms. The chosen atoms of
one frame are gathered into a buffer that stays in the cache (a loop that does nothing else lets the processor fetch
many at once: 2x faster than gathering inside the sums); from it come centre, spread and covariance with the reference
(13 sums an atom, in lanes), and the moved positions. Sums are float64 about the first atom, so that coordinates far
from the origin lose nothing.

Horn, J. Opt. Soc. Am. A 4, 629 (1987): the rotation is the eigenvector of the largest eigenvalue of a traceless
symmetric 4 x 4 matrix. Theobald, Acta Cryst. A 61, 478 (2005): that eigenvalue by Newton's method from above, of
lambda^4 - 2 n lambda^2 - 8 det(S) lambda + 2 |S'S|^2 - n^2 with n = |S|^2. Where the largest root is nearly double
(collinear atoms, mirror images) Newton is slow and inexact, and Jacobi's method takes over.
"""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel, sum_kernel

WORK = 64
"""Numbers of scratch a call needs: 0-2 centre of the frame, 3-11 rotation, 12-20 covariance, 21-36 and 37-52 matrices."""

ONE, TWO = np.uint64(1), np.uint64(2)


@kernel
def horn(work):
    """The 4 x 4 matrix of the covariance work[12:21] into work[21:37]."""
    xx, xy, xz = work[12], work[13], work[14]
    yx, yy, yz = work[15], work[16], work[17]
    zx, zy, zz = work[18], work[19], work[20]
    work[21] = xx + yy + zz
    work[22] = yz - zy
    work[23] = zx - xz
    work[24] = xy - yx
    work[25] = work[22]
    work[26] = xx - yy - zz
    work[27] = xy + yx
    work[28] = zx + xz
    work[29] = work[23]
    work[30] = work[27]
    work[31] = yy - xx - zz
    work[32] = yz + zy
    work[33] = work[24]
    work[34] = work[28]
    work[35] = work[32]
    work[36] = zz - xx - yy


@kernel
def mix(work, i, j, c, s):
    """Numbers i and j of work as a rotation by the angle of cosine c and sine s has them."""
    u = work[i]
    v = work[j]
    work[i] = c * u - s * v
    work[j] = s * u + c * v


@kernel
def jacobi(work):
    """Eigenvalues onto the diagonal of work[21:37], eigenvectors into the columns of work[37:53]."""
    for i in range(4):
        for j in range(4):
            work[37 + 4 * i + j] = 1.0 if i == j else 0.0
    for _ in range(30):
        off = 0.0
        diagonal = 0.0
        for i in range(4):
            diagonal += work[21 + 5 * i] ** 2
            for j in range(i):
                off += work[21 + 4 * i + j] ** 2
        if not off > 1e-34 * diagonal:      # also where a coordinate is not a number
            break
        for p in range(3):
            for q in range(p + 1, 4):
                a = work[21 + 4 * p + q]
                if a == 0.0:
                    continue
                theta = (work[21 + 5 * q] - work[21 + 5 * p]) / (2.0 * a)
                t = 1.0 / (abs(theta) + math.sqrt(theta * theta + 1.0))
                if theta < 0.0:
                    t = -t
                c = 1.0 / math.sqrt(t * t + 1.0)
                s = t * c
                for k in range(21, 37, 4):
                    mix(work, k + p, k + q, c, s)
                for k in range(21, 25):
                    mix(work, k + 4 * p, k + 4 * q, c, s)
                for k in range(37, 53, 4):
                    mix(work, k + p, k + q, c, s)


@kernel
def rotation_from(q0, q1, q2, q3, work):
    """The rotation of a quaternion of any length into work[3:12]."""
    n = q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3
    if not n > 0.0:
        for k in range(9):
            work[3 + k] = 1.0 if k % 4 == 0 else 0.0
        return
    s = 2.0 / n
    work[3] = 1.0 - s * (q2 * q2 + q3 * q3)
    work[4] = s * (q1 * q2 - q0 * q3)
    work[5] = s * (q1 * q3 + q0 * q2)
    work[6] = s * (q1 * q2 + q0 * q3)
    work[7] = 1.0 - s * (q1 * q1 + q3 * q3)
    work[8] = s * (q2 * q3 - q0 * q1)
    work[9] = s * (q1 * q3 - q0 * q2)
    work[10] = s * (q2 * q3 + q0 * q1)
    work[11] = 1.0 - s * (q1 * q1 + q2 * q2)


@kernel
def by_jacobi(work):
    """Largest eigenvalue, and of all best rotations the smallest, into work[3:12]."""
    horn(work)
    jacobi(work)
    best = 0
    for i in range(1, 4):
        if work[21 + 5 * i] > work[21 + 5 * best]:
            best = i
    top = work[21 + 5 * best]
    q0 = q1 = q2 = q3 = 0.0
    for i in range(4):
        if work[21 + 5 * i] >= top - 1e-9 * abs(top):       # project the identity onto their span
            first = work[37 + i]
            q0 += first * work[37 + i]
            q1 += first * work[41 + i]
            q2 += first * work[45 + i]
            q3 += first * work[49 + i]
    if not q0 > 1e-18:
        q0, q1, q2, q3 = work[37 + best], work[41 + best], work[45 + best], work[49 + best]
    rotation_from(q0, q1, q2, q3, work)
    return top


@kernel
def cofactor(m, i, j):
    """Cofactor of row i and column j of the 4 x 4 matrix at m[21:37]."""
    a = 25 if i == 0 else 21
    b = 29 if i <= 1 else 25
    c = 33 if i <= 2 else 29
    p = 1 if j == 0 else 0
    q = 2 if j <= 1 else 1
    r = 3 if j <= 2 else 2
    minor = (m[a + p] * (m[b + q] * m[c + r] - m[b + r] * m[c + q])
             - m[a + q] * (m[b + p] * m[c + r] - m[b + r] * m[c + p])
             + m[a + r] * (m[b + p] * m[c + q] - m[b + q] * m[c + p]))
    return minor if (i + j) % 2 == 0 else -minor


@kernel
def best_rotation(work, turn):
    """Largest eigenvalue for the covariance work[12:21]; with `turn` the rotation too, into work[3:12]."""
    n = 0.0
    for k in range(12, 21):
        n += work[k] * work[k]
    if not n > 0.0:         # nothing to turn, or a coordinate that is not a number
        rotation_from(0.0, 0.0, 0.0, 0.0, work)
        return n
    scale = math.sqrt(n)
    a, b, c = work[12] / scale, work[13] / scale, work[14] / scale
    d, e, f = work[15] / scale, work[16] / scale, work[17] / scale
    g, h, i = work[18] / scale, work[19] / scale, work[20] / scale
    c1 = -8.0 * (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
    aa, bb, cc = a * a + d * d + g * g, b * b + e * e + h * h, c * c + f * f + i * i
    ab, ac, bc = a * b + d * e + g * h, a * c + d * f + g * i, b * c + e * f + h * i
    c0 = 2.0 * (aa * aa + bb * bb + cc * cc + 2.0 * (ab * ab + ac * ac + bc * bc)) - 1.0
    x = 1.7320508075688774      # |S| = 1: the singular values add up to at most the root of 3
    slope = 0.0
    for _ in range(60):
        square = x * x
        value = (square - 2.0) * square + c1 * x + c0
        slope = 4.0 * x * (square - 1.0) + c1
        if not slope > 1e-2:
            break
        step = value / slope
        x -= step
        if not step > 1e-15:
            break
    if not slope > 1e-2:
        return by_jacobi(work)
    if turn:
        horn(work)
        top = x * scale
        for k in range(4):
            work[21 + 5 * k] -= top
        # the adjugate is a multiple of q q'; its column with the largest diagonal is the most exact
        column = np.int64(0)        # not a literal, for which numba would compile the callee once more
        largest = -1.0
        for k in range(4):
            size = abs(cofactor(work, k, k))
            if size > largest:
                largest = size
                column = np.int64(k)
        for k in range(4):
            work[37 + k] = cofactor(work, k, column)
        rotation_from(work[37], work[38], work[39], work[40], work)
    return x * scale


@kernel
def gather(x, atoms, buffer):
    """The chosen atoms of one frame x (3 atoms,) into buffer (3 m,): all x, all y, all z."""
    m = len(atoms)
    x0, x1, x2 = buffer[:m], buffer[m:2 * m], buffer[2 * m:3 * m]
    for i in range(m):
        j = np.uint64(3 * atoms[i])     # numba looks for no negative index then
        x0[i] = x[j]
        x1[i] = x[j + ONE]
        x2[i] = x[j + TWO]


@sum_kernel
def sums(buffer, weights, reference, work):
    """Centre into work[0:3], covariance with reference (3, m) into work[12:21]; returns the weighted mean square."""
    m = len(weights)
    x0, x1, x2 = buffer[:m], buffer[m:2 * m], buffer[2 * m:3 * m]
    y0, y1, y2 = reference[0], reference[1], reference[2]
    o0, o1, o2 = x0[0], x1[0], x2[0]
    c0 = c1 = c2 = own = 0.0
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = 0.0
    for i in range(m):
        w = weights[i]
        d0 = x0[i] - o0
        d1 = x1[i] - o1
        d2 = x2[i] - o2
        w0 = w * d0
        w1 = w * d1
        w2 = w * d2
        c0 += w0
        c1 += w1
        c2 += w2
        own += w0 * d0 + w1 * d1 + w2 * d2
        s0 += w0 * y0[i]
        s1 += w0 * y1[i]
        s2 += w0 * y2[i]
        s3 += w1 * y0[i]
        s4 += w1 * y1[i]
        s5 += w1 * y2[i]
        s6 += w2 * y0[i]
        s7 += w2 * y1[i]
        s8 += w2 * y2[i]
    work[0] = o0 + c0
    work[1] = o1 + c1
    work[2] = o2 + c2
    work[12] = s0
    work[13] = s1
    work[14] = s2
    work[15] = s3
    work[16] = s4
    work[17] = s5
    work[18] = s6
    work[19] = s7
    work[20] = s8
    return own - c0 * c0 - c1 * c1 - c2 * c2


@kernel
def turn(buffer, m, work, t0, t1, t2):
    """Move the gathered atoms of one frame in place: rotation @ (x - centre) + t."""
    x0, x1, x2 = buffer[:m], buffer[m:2 * m], buffer[2 * m:3 * m]
    c0, c1, c2 = work[0], work[1], work[2]
    r0, r1, r2 = work[3], work[4], work[5]
    r3, r4, r5, r6, r7, r8 = work[6], work[7], work[8], work[9], work[10], work[11]
    for i in range(m):
        d0 = x0[i] - c0
        d1 = x1[i] - c1
        d2 = x2[i] - c2
        x0[i] = r0 * d0 + r1 * d1 + r2 * d2 + t0
        x1[i] = r3 * d0 + r4 * d1 + r5 * d2 + t1
        x2[i] = r6 * d0 + r7 * d1 + r8 * d2 + t2


@sum_kernel
def mean_square(buffer, weights, target):
    """Weighted mean square distance of gathered atoms from target (3, m)."""
    m = len(weights)
    x0, x1, x2 = buffer[:m], buffer[m:2 * m], buffer[2 * m:3 * m]
    y0, y1, y2 = target[0], target[1], target[2]
    total = 0.0
    for i in range(m):
        e0 = x0[i] - y0[i]
        e1 = x1[i] - y1[i]
        e2 = x2[i] - y2[i]
        total += weights[i] * (e0 * e0 + e1 * e1 + e2 * e2)
    return total


@kernel
def fit_one(x, atoms, weights, reference, spread, work, buffer, rotate):
    """Superpose one frame x (3 atoms,) on a centred reference (3, m) of the given atoms: returns the weighted RMSD.

    weights (m,) add up to 1; spread is the weighted mean square of the reference. Centre and (with `rotate`) rotation
    go to `work`, the atoms as they came to `buffer`.
    """
    gather(x, atoms, buffer)
    both = sums(buffer, weights, reference, work) + spread
    square = both - 2.0 * best_rotation(work, rotate)
    if square > 1e-6 * both or not both > 0.0:
        return math.sqrt(square) if square > 0.0 or square != square else 0.0
    if rotate:          # nearly alike: the difference lost its digits, but whoever turns does not ask for it
        return math.sqrt(max(square, 0.0))
    best_rotation(work, not rotate)
    turn(buffer, len(atoms), work, 0.0, 0.0, 0.0)
    return math.sqrt(mean_square(buffer, weights, reference))


@kernel
def as_it_is(work):
    """No superposition: centre 0, rotation 1."""
    for k in range(3):
        work[k] = 0.0
    rotation_from(0.0, 0.0, 0.0, 0.0, work)


@kernel
def moved_one(x, same, fitted, fit_weights, reference, spread, centre, atoms, work, buffer):
    """The chosen atoms of one frame, moved, into buffer; `same` where they are the fitted ones."""
    superposed = len(fitted) > 0
    if superposed:
        fit_one(x, fitted, fit_weights, reference, spread, work, buffer, superposed)
    if not same:
        gather(x, atoms, buffer)
    turn(buffer, len(atoms), work, centre[0], centre[1], centre[2])


@kernel
def rmsd(flat, stride, n, width, atoms, weights, reference, spread, out):
    """RMSD after superposition of the same atoms: out (n,)."""
    work = np.zeros(WORK)
    buffer = np.empty(3 * len(atoms))
    turned = n < 0          # False, but not the literal, for which numba would compile what is called once more
    for t in range(n):
        out[t] = fit_one(flat[t * stride:t * stride + width], atoms, weights, reference, spread, work, buffer, turned)


@kernel
def carried_rmsd(flat, stride, n, width, same, fitted, fit_weights, reference, spread, centre, atoms, weights, target, out):
    """RMSD from target (3, m) of atoms that go along with the superposition of others: out (n,).

    centre (3,) is where the centre of the fitted atoms goes; no fitted atoms: nothing is moved.
    """
    work = np.zeros(WORK)
    as_it_is(work)
    buffer = np.empty(3 * max(len(atoms), len(fitted)))
    for t in range(n):
        frame = flat[t * stride:t * stride + width]
        moved_one(frame, same, fitted, fit_weights, reference, spread, centre, atoms, work, buffer)
        out[t] = math.sqrt(mean_square(buffer, weights, target))


@kernel
def moved(flat, stride, n, width, same, fitted, fit_weights, reference, spread, centre, atoms, origin, out):
    """Positions of atoms after the superposition of `fitted`, less origin (3, m): out (n, 3 m)."""
    work = np.zeros(WORK)
    as_it_is(work)
    m = len(atoms)
    buffer = np.empty(3 * max(m, len(fitted)))
    for t in range(n):
        frame = flat[t * stride:t * stride + width]
        moved_one(frame, same, fitted, fit_weights, reference, spread, centre, atoms, work, buffer)
        row = out[t]
        for i in range(m):
            row[3 * i] = buffer[i] - origin[0, i]
            row[3 * i + 1] = buffer[m + i] - origin[1, i]
            row[3 * i + 2] = buffer[2 * m + i] - origin[2, i]


@kernel
def add_moved(flat, stride, n, width, frame_weights, same, fitted, fit_weights, reference, spread, centre, atoms, origin,
              total):
    """Add the weighted positions of :func:`moved` to total (3, m); frame_weights (n,), or empty for ones."""
    work = np.zeros(WORK)
    as_it_is(work)
    m = len(atoms)
    buffer = np.empty(3 * max(m, len(fitted)))
    for t in range(n):
        w = frame_weights[t] if len(frame_weights) > 0 else 1.0
        if w == 0.0:
            continue
        frame = flat[t * stride:t * stride + width]
        moved_one(frame, same, fitted, fit_weights, reference, spread, centre, atoms, work, buffer)
        for k in range(3):
            row, start, x = total[k], origin[k], buffer[k * m:(k + 1) * m]
            for i in range(m):
                row[i] += w * (x[i] - start[i])


@kernel
def squared_deviations(flat, stride, n, width, same, fitted, fit_weights, reference, spread, centre, atoms, mean, out):
    """Square distance of each atom from mean (3, m) after the superposition of `fitted`: out (n, m)."""
    work = np.zeros(WORK)
    as_it_is(work)
    m = len(atoms)
    buffer = np.empty(3 * max(m, len(fitted)))
    x0, x1, x2 = buffer[:m], buffer[m:2 * m], buffer[2 * m:3 * m]
    y0, y1, y2 = mean[0], mean[1], mean[2]
    for t in range(n):
        frame = flat[t * stride:t * stride + width]
        moved_one(frame, same, fitted, fit_weights, reference, spread, centre, atoms, work, buffer)
        row = out[t]
        for i in range(m):
            e0 = x0[i] - y0[i]
            e1 = x1[i] - y1[i]
            e2 = x2[i] - y2[i]
            row[i] = e0 * e0 + e1 * e1 + e2 * e2


@sum_kernel
def covariance_of(a, b, work):
    """Covariance of two centred structures (3, m) into work[12:21]."""
    m = a.shape[1]
    a0, a1, a2 = a[0], a[1], a[2]
    b0, b1, b2 = b[0], b[1], b[2]
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = 0.0
    for i in range(m):
        s0 += a0[i] * b0[i]
        s1 += a0[i] * b1[i]
        s2 += a0[i] * b2[i]
        s3 += a1[i] * b0[i]
        s4 += a1[i] * b1[i]
        s5 += a1[i] * b2[i]
        s6 += a2[i] * b0[i]
        s7 += a2[i] * b1[i]
        s8 += a2[i] * b2[i]
    work[12] = s0 / m
    work[13] = s1 / m
    work[14] = s2 / m
    work[15] = s3 / m
    work[16] = s4 / m
    work[17] = s5 / m
    work[18] = s6 / m
    work[19] = s7 / m
    work[20] = s8 / m


@kernel
def rmsd_against(a, b, spread_a, spread_b, out):
    """All RMSDs between centred structures a (n, 3, m) and b (k, 3, m): out (n, k); spreads are mean squares."""
    work = np.zeros(WORK)
    turned = len(a) < 0     # False, but not the literal
    for t in range(len(a)):
        for u in range(len(b)):
            covariance_of(a[t], b[u], work)
            square = spread_a[t] + spread_b[u] - 2.0 * best_rotation(work, turned)
            out[t, u] = math.sqrt(square) if square > 0.0 or square != square else 0.0
