"""The loops of the flow solvers: plain, serial, outside Python's lock.

Lattice Boltzmann with nine velocities (D2Q9): rest, then four pairs of opposite directions (east, west), (north,
south), (north-east, south-west), (south-east, north-west). Populations are kept *minus* their weight, so that float32
keeps its digits where the fluid is at rest; the formulas below are the usual ones with that shift taken out.
"""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel

CX = np.array([0, 1, -1, 0, 0, 1, -1, 1, -1])
CY = np.array([0, 0, 0, 1, -1, 1, -1, -1, 1])
OPPOSITE = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7])

REST, STRAIGHT, DIAGONAL = np.float32(4 / 9), np.float32(1 / 9), np.float32(1 / 36)
ECHO = np.float32((1 - 3**-0.5) / (1 + 3**-0.5))
TWICE_STRAIGHT, TWICE_DIAGONAL = np.float32(2 / 9), np.float32(1 / 18)
THIRD, TWELFTH = np.float32(1 / 3), np.float32(1 / 12)
HALF, ONE, ONE_HALF, FOUR_HALF = np.float32(0.5), np.float32(1), np.float32(1.5), np.float32(4.5)


@kernel
def wake_steps(f, spare, steps, even_rate, odd_rate, inflow, links, mix, forces):
    """Advance the flow past a body by an even number of steps.

    f, spare: (9, ny, nx) float32, populations after collision; the result is in f. The outermost ring of cells is
    given by the boundaries: the undisturbed flow `inflow` (9,) at the left, below and above, a fixed pressure at the
    right. even_rate, odd_rate: (nx,) relaxation rates of the columns. links, mix: the body, see `bounce`.
    forces: (steps, 2) float64, filled with drag and lift after every step, in lattice units.
    """
    for step in range(steps):
        source, target = (f, spare) if step % 2 == 0 else (spare, f)
        far_field(source, inflow)
        bounce(source, links, mix, forces[step])
        collide(source, target, even_rate, odd_rate)


@kernel
def moments(f, y, x):
    """Density minus one and momentum of a cell."""
    rho = f[0, y, x]
    for i in range(1, 9):
        rho += f[i, y, x]
    return (rho, f[1, y, x] - f[2, y, x] + f[5, y, x] - f[6, y, x] + f[7, y, x] - f[8, y, x],
            f[3, y, x] - f[4, y, x] + f[5, y, x] - f[6, y, x] - f[7, y, x] + f[8, y, x])


@kernel
def far_field(f, inflow):
    """Fill the outermost ring of cells: the undisturbed flow comes in, and sound that arrives leaves without an echo.

    A plane wave of sound that moves outwards has a share of -ECHO of its populations moving inwards; giving just
    that, no wave comes back (with the undisturbed populations alone a quarter of it would).
    """
    _, ny, nx = f.shape
    for i in range(9):
        back = OPPOSITE[i]
        for y in range(ny):
            f[i, y, 0] = inflow[i] - ECHO * (f[back, y, 1] - inflow[back])
        for x in range(nx):
            f[i, 0, x] = inflow[i] - ECHO * (f[back, 1, x] - inflow[back])
            f[i, ny - 1, x] = inflow[i] - ECHO * (f[back, ny - 2, x] - inflow[back])
    x = nx - 2
    for y in range(1, ny - 1):      # anti-bounce-back: what leaves comes back with the sign of a fixed pressure
        rho, jx, jy = moments(f, y, x)
        ux, uy = jx / (ONE + rho), jy / (ONE + rho)
        square = ONE_HALF * (ux * ux + uy * uy)
        f[2, y, x + 1] = -f[1, y, x] + TWICE_STRAIGHT * (FOUR_HALF * ux * ux - square)
        f[6, y + 1, x + 1] = -f[5, y, x] + TWICE_DIAGONAL * (FOUR_HALF * (ux + uy) ** 2 - square)
        f[8, y - 1, x + 1] = -f[7, y, x] + TWICE_DIAGONAL * (FOUR_HALF * (ux - uy) ** 2 - square)


@kernel
def bounce(f, links, mix, force):
    """Give the cells inside a body what their neighbours will gather from them (Bouzidi, Firdaouss, Lallemand 2001).

    links: (n, 6) whole numbers, one a link from a fluid cell to a cell of the body: its direction and the opposite
    one, row and column of the fluid cell and of the body's cell. mix: (n, 3), the shares of the population that left
    along the link, of the one a cell upstream of it, and of the one that goes the other way. force: (2,), set to the
    momentum handed over in this step (drag, lift).
    """
    force[0], force[1] = 0.0, 0.0
    for k in range(len(links)):
        i, back, y, x, body_y, body_x = links[k]
        out = f[i, y, x]
        returned = mix[k, 0] * out + mix[k, 1] * f[i, y - CY[i], x - CX[i]] + mix[k, 2] * f[back, y, x]
        f[back, body_y, body_x] = returned
        force[0] += CX[i] * (out + returned)
        force[1] += CY[i] * (out + returned)


@kernel
def collide(f, out, even_rate, odd_rate):
    """Gather from the neighbours, then relax the even and the odd part of each pair with its own rate.

    Two relaxation times (Ginzburg 2008), second-order equilibrium. What is computed inside a body is overwritten by
    `bounce` before anyone reads it.
    """
    _, ny, nx = f.shape
    for y in range(1, ny - 1):
        for x in range(1, nx - 1):
            f0 = f[0, y, x]
            f1, f2 = f[1, y, x - 1], f[2, y, x + 1]
            f3, f4 = f[3, y - 1, x], f[4, y + 1, x]
            f5, f6 = f[5, y - 1, x - 1], f[6, y + 1, x + 1]
            f7, f8 = f[7, y + 1, x - 1], f[8, y - 1, x + 1]
            rho = f0 + f1 + f2 + f3 + f4 + f5 + f6 + f7 + f8
            jx, jy = f1 - f2 + f5 - f6 + f7 - f8, f3 - f4 + f5 - f6 - f7 + f8
            inverse = ONE / (ONE + rho)
            ux, uy = jx * inverse, jy * inverse
            energy = rho - ONE_HALF * (ux * jx + uy * jy)
            p, m = even_rate[x], odd_rate[x]

            out[0, y, x] = f0 - p * (f0 - REST * energy)
            even = p * (HALF * (f1 + f2) - STRAIGHT * (energy + FOUR_HALF * ux * jx))
            odd = m * (HALF * (f1 - f2) - THIRD * jx)
            out[1, y, x], out[2, y, x] = f1 - even - odd, f2 - even + odd
            even = p * (HALF * (f3 + f4) - STRAIGHT * (energy + FOUR_HALF * uy * jy))
            odd = m * (HALF * (f3 - f4) - THIRD * jy)
            out[3, y, x], out[4, y, x] = f3 - even - odd, f4 - even + odd
            even = p * (HALF * (f5 + f6) - DIAGONAL * (energy + FOUR_HALF * (ux + uy) * (jx + jy)))
            odd = m * (HALF * (f5 - f6) - TWELFTH * (jx + jy))
            out[5, y, x], out[6, y, x] = f5 - even - odd, f6 - even + odd
            even = p * (HALF * (f7 + f8) - DIAGONAL * (energy + FOUR_HALF * (ux - uy) * (jx - jy)))
            odd = m * (HALF * (f7 - f8) - TWELFTH * (jx - jy))
            out[7, y, x], out[8, y, x] = f7 - even - odd, f8 - even + odd


@kernel
def velocity(f, rows, columns, stride, out):
    """The velocity at every `stride`-th cell of a window into out (ny, nx, 2), in lattice units."""
    for j in range(out.shape[0]):
        for k in range(out.shape[1]):
            rho, jx, jy = moments(f, rows + j * stride, columns + k * stride)
            out[j, k, 0], out[j, k, 1] = jx / (ONE + rho), jy / (ONE + rho)
