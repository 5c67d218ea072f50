"""Loops that march a quadratic model in time. The operators are one array, a row a term of the right-hand side.

`o` (d, r) has the rows of the constant (1), of each state (r), of each product x_i x_j with j <= i (r (r + 1) / 2), of each
input (m) and of each input times each state (m r); `form` (5,) says which of these blocks are there.
"""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel

HALVINGS = 1e-13
"""A step below this share of the interval is no step any more: the solution goes to infinity there."""
MOST_STEPS = 1_000_000
"""Steps within one interval between outputs, before the march is given up as too stiff."""


@kernel
def rate(o, form, x, u, out):
    """out = c + A x + H (x, x) + B u + sum_l u_l N_l x."""
    r, m = x.shape[0], u.shape[0]
    for k in range(r):
        out[k] = 0
    row = 0
    if form[0]:
        for k in range(r):
            out[k] += o[0, k]
        row += 1
    if form[1]:
        for i in range(r):
            s = x[i]
            for k in range(r):
                out[k] += o[row + i, k] * s
        row += r
    if form[2]:
        for i in range(r):
            for j in range(i + 1):
                s = x[i] * x[j]
                for k in range(r):
                    out[k] += o[row, k] * s
                row += 1
    if form[3]:
        for i in range(m):
            s = u[i]
            for k in range(r):
                out[k] += o[row + i, k] * s
        row += m
    if form[4]:
        for q in range(m):
            for i in range(r):
                s = u[q] * x[i]
                for k in range(r):
                    out[k] += o[row, k] * s
                row += 1


@kernel
def jacobian(o, form, x, u, out):
    """out[k, i] = the derivative of rate k by state i."""
    r, m = x.shape[0], u.shape[0]
    for k in range(r):
        for i in range(r):
            out[k, i] = 0
    row = 1 if form[0] else 0
    if form[1]:
        for i in range(r):
            for k in range(r):
                out[k, i] += o[row + i, k]
        row += r
    if form[2]:
        for i in range(r):
            for j in range(i + 1):
                for k in range(r):
                    out[k, i] += o[row, k] * x[j]
                    out[k, j] += o[row, k] * x[i]
                row += 1
    if form[3]:
        row += m
    if form[4]:
        for q in range(m):
            for i in range(r):
                for k in range(r):
                    out[k, i] += o[row, k] * u[q]
                row += 1


@kernel
def solve_in_place(a, b):
    """b becomes the solution of a x = b, by elimination with pivots; False where a is singular."""
    n = len(b)
    for c in range(n):
        p = c
        for i in range(c + 1, n):
            if abs(a[i, c]) > abs(a[p, c]):
                p = i
        if abs(a[p, c]) == 0:
            return False
        if p != c:
            for j in range(c, n):
                a[c, j], a[p, j] = a[p, j], a[c, j]
            b[c], b[p] = b[p], b[c]
        for i in range(c + 1, n):
            f = a[i, c] / a[c, c]
            if f != 0:
                for j in range(c, n):
                    a[i, j] -= f * a[c, j]
                b[i] -= f * b[c]
    for c in range(n - 1, -1, -1):
        for j in range(c + 1, n):
            b[c] -= a[c, j] * b[j]
        b[c] /= a[c, c]
    return True


@kernel
def away(x, center):
    """Distance from the centre; infinite where a number is none."""
    s = 0.0
    for k in range(len(x)):
        d = abs(x[k] - center[k])
        s += d * d
    return math.sqrt(s) if s == s else math.inf


@kernel
def iterate(o, form, x0, counts, inputs, shocks, center, bound, out, work):
    """out[k] = the state after counts[k] more steps of x -> rate(x, u). Returns (rows filled, steps made).

    inputs (n, m) and shocks (n, r) or none belong to the steps that lead to the next row; where there are any, each count
    is 1. Stops before a state that is further than `bound` from the centre.
    """
    x, new = work[0], work[1]
    x[:] = x0
    done = 0
    for k in range(len(counts)):
        u = inputs[max(k - 1, 0)]
        for _ in range(counts[k]):
            rate(o, form, x, u, new)
            if len(shocks):
                for i in range(len(x)):
                    new[i] += shocks[k - 1, i]
            done += 1
            if not away(new, center) <= bound:
                return k, done
            x[:] = new
        out[k] = x
    return len(counts), done


@kernel
def at_time(inputs, k, share, out):
    """Inputs between row k and the next, which are joined by straight lines."""
    for i in range(out.shape[0]):
        a = inputs[k, i]
        out[i] = a + share * (inputs[k + 1, i] - a)


@kernel
def rk4(o, form, k, start, span, h, inputs, x, u, work):
    """One step of the classical Runge-Kutta method from the time `start` after row k; work[7] is the state after it."""
    for s in range(4):
        y = work[4]
        f = 0.0 if s == 0 else h if s == 3 else 0.5 * h
        for i in range(len(x)):
            y[i] = x[i] if s == 0 else x[i] + f * work[s - 1, i]
        at_time(inputs, k, (start + f) / span, u)
        rate(o, form, y, u, work[s])
    for i in range(len(x)):
        work[7, i] = x[i] + h / 6 * (work[0, i] + 2 * (work[1, i] + work[2, i]) + work[3, i])


@kernel
def midpoint(o, form, k, start, span, h, inputs, x, u, matrix, work):
    """One step of the implicit midpoint rule by Newton's method; work[7] is the state after it. False where that fails."""
    at_time(inputs, k, (start + 0.5 * h) / span, u)
    z, f, g = work[4], work[0], work[1]
    z[:] = x
    n = len(x)
    for turn in range(50):
        rate(o, form, z, u, f)
        jacobian(o, form, z, u, matrix)
        for i in range(n):
            g[i] = z[i] - x[i] - 0.5 * h * f[i]
            for j in range(n):
                matrix[i, j] *= -0.5 * h
            matrix[i, i] += 1
        if not solve_in_place(matrix, g):
            return False
        moved, size = 0.0, 1e-300
        for i in range(n):
            z[i] -= g[i]
            moved = max(moved, abs(g[i]))
            size = max(size, abs(z[i]))
        if not moved < math.inf:
            return False
        if moved <= 4e-16 * size or (turn > 5 and moved <= 1e-13 * size):
            for i in range(n):
                work[7, i] = 2 * z[i] - x[i]
            return True
    return False


NODES = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
STAGES = np.array([
    [0, 0, 0, 0, 0, 0],
    [1 / 5, 0, 0, 0, 0, 0],
    [3 / 40, 9 / 40, 0, 0, 0, 0],
    [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]])
DIFFERENCE = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])
"""Dormand and Prince, J. Comput. Appl. Math. 6, 19 (1980): the last stage is the solution of fifth order, and its rate the
first one of the next step; the difference is that to the solution of fourth order."""


@kernel
def dopri5(o, form, k, start, span, h, inputs, x, u, rtol, atol, work):
    """One step of Dormand and Prince 5(4): work[s] is the rate of stage s, the first one given; work[7] is the state after it.
    Returns its error in units of the tolerance."""
    new, n = work[7], len(x)
    for s in range(1, 7):
        for i in range(n):
            new[i] = 0
        for j in range(s):
            f = STAGES[s, j]
            for i in range(n):
                new[i] += f * work[j, i]
        for i in range(n):
            new[i] = x[i] + h * new[i]
        at_time(inputs, k, (start + NODES[s] * h) / span, u)
        rate(o, form, new, u, work[s])      # a call in a loop: six calls would be compiled in six times
    total = 0.0
    for i in range(n):
        e = work[0, i] * DIFFERENCE[0]
        for s in range(1, 7):
            e += work[s, i] * DIFFERENCE[s]
        total += (abs(h * e) / (atol + rtol * max(abs(x[i]), abs(new[i])))) ** 2
    return math.sqrt(total / n) if total == total else math.inf


@kernel
def integrate(o, form, x0, times, inputs, shocks, settings, center, bound, out, u, matrix, work):
    """out[k] = the state at times[k]. Returns (rows filled, the time at which it stopped).

    settings: (method: 0 Dormand-Prince, 1 Runge-Kutta 4, 2 implicit midpoint; longest step; rtol; size of states). Inputs
    (n, m) are joined by straight lines; shocks (n, r) or none are added at the end of each interval. Stops before a state
    that is further than `bound` from the centre, or where steps become too small or too many.
    """
    method, longest, rtol, scale = settings
    n = len(x0)
    for i in range(n):
        scale = max(scale, abs(x0[i]))
    atol = 1e-3 * rtol * (scale if scale > 0 else 1.0)
    x = work[8]
    x[:] = x0
    if not away(x, center) <= bound:
        return 0, times[0]
    out[0] = x
    h = 0.0
    for k in range(len(times) - 1):
        span = times[k + 1] - times[k]
        start, n_steps, fresh = 0.0, 0, k == 0 or len(shocks) > 0
        pieces = max(1, math.ceil(span / longest - 1e-9)) if longest > 0 else 1
        h = span / pieces if method > 0 or h <= 0 else h
        while start < span * (1 - 1e-14):
            n_steps += 1
            if n_steps > MOST_STEPS or not h > HALVINGS * span:
                return k + 1, times[k] + start
            if method > 0:
                start = (n_steps - 1) * span / pieces
                if method == 1:
                    rk4(o, form, k, start, span, h, inputs, x, u, work)
                elif not midpoint(o, form, k, start, span, h, inputs, x, u, matrix, work):
                    return k + 1, times[k] + start
                error, step = 0.0, h
                start = span if n_steps == pieces else start + h
            else:
                if fresh:
                    at_time(inputs, k, start / span, u)
                    rate(o, form, x, u, work[0])
                    fresh = False
                step = min(h, longest) if longest > 0 else h
                last = step >= (span - start) * (1 - 1e-10)
                if last:
                    step = span - start
                error = dopri5(o, form, k, start, span, step, inputs, x, u, rtol, atol, work)
                grow = 5.0 if error < 1.9e-4 else 0.9 * error ** -0.2 if error < math.inf else 0.1
                proposed = step * min(5.0, max(0.1, grow))
                h = max(h, proposed) if last and error <= 1 else proposed
                if error <= 1:
                    start = span if last else start + step
                    work[0] = work[6]
            if error <= 1:
                if not away(work[7], center) <= bound:
                    return k + 1, times[k] + start
                x[:] = work[7]
        if len(shocks):
            for i in range(n):
                x[i] += shocks[k, i]
            if not away(x, center) <= bound:
                return k + 1, times[k + 1]
        out[k + 1] = x
    return len(times), times[-1]


@kernel
def iterate_batch(o, form, x0, counts, inputs, shocks, center, bound, out, reached):
    """:func:`iterate` for each member: o (1 or b, d, r), x0 (b, r), shocks (b or 0, n, r), out (b, n, r), reached (b, 2)."""
    work = np.empty((2, x0.shape[1]), out.dtype)
    for b in range(len(x0)):
        own = shocks[b] if len(shocks) else np.empty((0, x0.shape[1]), out.dtype)
        rows, steps = iterate(o[min(b, len(o) - 1)], form, x0[b], counts, inputs, own, center, bound, out[b], work)
        reached[b, 0], reached[b, 1] = rows, steps


@kernel
def integrate_batch(o, form, x0, times, inputs, shocks, settings, center, bound, out, reached):
    """:func:`integrate` for each member: o (1 or b, d, r), x0 (b, r), shocks (b or 0, n, r), out (b, n, r), reached (b, 2)."""
    r = x0.shape[1]
    u, matrix, work = np.empty(inputs.shape[1], inputs.dtype), np.empty((r, r), out.dtype), np.empty((9, r), out.dtype)
    for b in range(len(x0)):
        own = shocks[b] if len(shocks) else np.empty((0, r), out.dtype)
        rows, at = integrate(o[min(b, len(o) - 1)], form, x0[b], times, inputs, own, settings, center, bound, out[b], u,
                             matrix, work)
        reached[b, 0], reached[b, 1] = rows, at
