"""The loops of the solvers with closed answers: heat, Burgers, the cavity, and products of the spectral flow."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel
from ensemblekit.rom.kernels import CX, CY, DIAGONAL, OPPOSITE, STRAIGHT, collide

SIX = np.float32(6)


@kernel
def solve_cold(u, number, spare):
    """Solve (1 + 2c) x_i - c (x_i-1 + x_i+1) = u_i with x = 0 at both ends, in place (Thomas). spare: (n,)."""
    n = len(u)
    pivot = 1 + 2 * number
    u[0] /= pivot
    for i in range(1, n):
        spare[i] = -number / pivot
        pivot = 1 + 2 * number + number * spare[i]
        u[i] = (u[i] + number * u[i - 1]) / pivot
    for i in range(n - 2, -1, -1):
        u[i] -= spare[i + 1] * u[i + 1]


@kernel
def spread_cold(u, number, out):
    """out_i = (1 - 2c) u_i + c (u_i-1 + u_i+1), zero beyond both ends."""
    n = len(u)
    for i in range(n):
        left = u[i - 1] if i else 0.0
        right = u[i + 1] if i < n - 1 else 0.0
        out[i] = (1 - 2 * number) * u[i] + number * (left + right)


@kernel
def heat_rod_steps(u, number, steps):
    """Advance u (n,) by steps of the trapezoidal rule; number = a dt / 2h²."""
    old, spare = np.empty_like(u), np.empty_like(u)
    for _ in range(steps):
        spread_cold(u, number, old)
        u[:] = old
        solve_cold(u, number, spare)


@kernel
def heat_plate_steps(u, number, steps):
    """Advance u (n, n) by alternating directions (Peaceman and Rachford 1955); number = a dt / 2h²."""
    n = len(u)
    old, line, spare = np.empty_like(u), np.empty(n), np.empty(n)
    for _ in range(steps):
        for x in range(n):
            spread_cold(u[:, x], number, line)
            old[:, x] = line
        for y in range(n):
            solve_cold(old[y], number, spare)
        for y in range(n):
            spread_cold(old[y], number, u[y])
        for x in range(n):
            line[:] = u[:, x]
            solve_cold(line, number, spare)
            u[:, x] = line


@kernel
def burgers_rate(u, viscosity, h, out):
    """-u u_x + ν u_xx with fluxes (a² + ab + b²)/6 between neighbours, which neither make nor lose energy."""
    n = len(u)
    for i in range(n):
        left, mid, right = u[i - 1], u[i], u[i + 1 if i < n - 1 else 0]
        flux_right = (mid * mid + mid * right + right * right) / 6
        flux_left = (left * left + left * mid + mid * mid) / 6
        out[i] = (flux_left - flux_right) / h + viscosity * (left - 2 * mid + right) / h**2


@kernel
def burgers_steps(u, work, viscosity, h, dt, steps):
    """Advance u (n,) by steps of the classical Runge-Kutta rule. work: (3, n)."""
    n = len(u)
    rate, stage, total = work[0], work[1], work[2]
    for _ in range(steps):
        burgers_rate(u, viscosity, h, rate)
        for i in range(n):
            total[i] = rate[i]
            stage[i] = u[i] + 0.5 * dt * rate[i]
        burgers_rate(stage, viscosity, h, rate)
        for i in range(n):
            total[i] += 2 * rate[i]
            stage[i] = u[i] + 0.5 * dt * rate[i]
        burgers_rate(stage, viscosity, h, rate)
        for i in range(n):
            total[i] += 2 * rate[i]
            stage[i] = u[i] + dt * rate[i]
        burgers_rate(stage, viscosity, h, rate)
        for i in range(n):
            u[i] += dt / 6 * (total[i] + rate[i])


@kernel
def cavity_steps(f, spare, steps, even_rate, odd_rate, lid):
    """Advance the flow under a moving lid by an even number of steps.

    f, spare: (9, n + 2, n + 2) float32, populations after collision in a ring of walls; the result is in f.
    """
    for step in range(steps):
        source, target = (f, spare) if step % 2 == 0 else (spare, f)
        closed_walls(source, lid)
        collide(source, target, even_rate, odd_rate)


@kernel
def closed_walls(f, lid):
    """Fill the ring with what bounces back half a cell beyond the fluid (Ladd 1994); the last row's wall moves.

    A number in the ring is read by a single cell of the fluid, so corners need no rule of their own.
    """
    last = f.shape[1] - 1
    for k in range(1, last):
        wall_cell(f, 1, k, lid)
        wall_cell(f, last - 1, k, lid)
        wall_cell(f, k, 1, lid)
        wall_cell(f, k, last - 1, lid)


@kernel
def wall_cell(f, y, x, lid):
    """What one cell at a wall will gather from the ring."""
    last = f.shape[1] - 1
    for i in range(1, 9):
        from_y, from_x = y - CY[i], x - CX[i]
        if from_y == 0 or from_y == last or from_x == 0 or from_x == last:
            back = f[OPPOSITE[i], y, x]
            if from_y == last:
                back += SIX * (STRAIGHT if i < 5 else DIAGONAL) * np.float32(CX[i]) * lid
            f[i, from_y, from_x] = back


@kernel
def advection(u, v, wx, wy, out):
    """out = -(u ω_x + v ω_y), all (n, n)."""
    for i in range(u.shape[0]):
        for j in range(u.shape[1]):
            out[i, j] = -(u[i, j] * wx[i, j] + v[i, j] * wy[i, j])
