"""Flows with known answers, computed on the spot: something real to try a reduced-order model on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.source import Field

MAGIC = 1 / 12
"""Product of the two relaxation times less a half each: 1/12 takes the third-order error out of advection and is
stable with few cells a diameter (Ginzburg, Verhaeghe and d'Humières 2008)."""


class WakeSnapshot(NamedTuple):
    """One instant of a wake; lengths in cylinder diameters D, speeds in the inflow speed U, times in D/U."""

    time: float
    velocity: np.ndarray
    """(ny, nx, 2) float32."""
    drag: float
    """Drag coefficient, the mean since the last snapshot."""
    lift: float
    """Lift coefficient at this instant."""

    @property
    def fields(self) -> dict[str, np.ndarray | float]:
        """What a store of :attr:`CylinderWake.fields` appends."""
        return {"velocity": self.velocity, "drag": self.drag, "lift": self.lift}


@dataclass(frozen=True)
class CylinderWake:
    """The flow past a circular cylinder between two frictionless walls far away; see :func:`cylinder_wake`."""

    reynolds: float
    cells: int
    """Lattice cells a diameter."""
    speed: float
    """Inflow speed in lattice units; its square measures the error by compressibility."""
    size: tuple[float, float, float]
    """Diameters before the cylinder, behind it, and from wall to wall."""
    window: tuple[float, float, float]
    """Diameters recorded: before the cylinder, behind it, and to either side."""
    stride: int
    """Every how many cells the velocity is recorded."""

    @property
    def x(self) -> np.ndarray:
        """Positions of the recorded columns, in diameters from the cylinder's centre."""
        before, behind, _ = self.window
        return self._positions(before, behind)

    @property
    def y(self) -> np.ndarray:
        """Positions of the recorded rows, in diameters from the cylinder's centre."""
        return self._positions(self.window[2], self.window[2])

    @property
    def inside(self) -> np.ndarray:
        """(ny, nx) of bool: inside the cylinder, where the recorded velocity is zero."""
        return np.hypot(*np.meshgrid(self.x, self.y)) < 0.5

    @property
    def fields(self) -> Mapping[str, Field]:
        """What is recorded, for `ek.create`: the velocity, and the coefficients of drag and lift."""
        shape = (len(self.y), len(self.x), 2)
        return {"velocity": Field(shape, np.dtype("f4"), finite=True), "drag": Field(), "lift": Field()}

    @property
    def viscosity(self) -> float:
        """In lattice units."""
        return self.speed * self.cells / self.reynolds

    def _positions(self, before: float, behind: float) -> np.ndarray:
        first, last = -round(before * self.cells), round(behind * self.cells)
        return (np.arange(first, last + 1, self.stride)) / self.cells

    def snapshots(self, n: int, every: float, after: float) -> Iterator[WakeSnapshot]:
        """Run the solver and yield `n` snapshots.

        Arguments:
            n: how many.
            every: time between them, in D/U (a shedding period is about 6).
            after: time before the first, in D/U; the shedding needs about 60 to settle.
        """
        from ensemblekit.rom.kernels import velocity, wake_steps

        state = _Lattice(self)
        per_time = self.cells / self.speed
        gap = max(2, 2 * round(every * per_time / 2))
        settle = max(2, 2 * round(after * per_time / 2))
        row, column = (round(state.centre[k] - (self.window[2], self.window[0])[k] * self.cells) for k in (0, 1))
        inside = self.inside
        force_unit = 0.5 * self.speed**2 * self.cells
        done = 0
        for k in range(n):
            steps = gap if k else settle
            forces = np.empty((steps, 2))
            wake_steps(state.f, state.spare, steps, state.even_rate, state.odd_rate, state.inflow, state.links,
                       state.mix, forces)
            done += steps
            u = np.empty(self.fields["velocity"].shape, np.float32)
            velocity(state.f, row, column, self.stride, u)
            u /= np.float32(self.speed)
            u[inside] = 0
            forces /= force_unit
            yield WakeSnapshot(done / per_time, u, float(forces[-gap:, 0].mean()), float(forces[-1, 1]))


def cylinder_wake(reynolds: float = 100.0, *, cells: int = 14, speed: float = 0.1,
                  size: tuple[float, float, float] = (10.0, 13.0, 20.0),
                  window: tuple[float, float, float] = (2.0, 10.0, 3.0), stride: int = 1) -> CylinderWake:
    """The wake of a circular cylinder: steady up to Reynolds number 47, then a street of vortices.

    Solved by a lattice Boltzmann method with two relaxation times and an interpolated wall (Ginzburg 2008; Bouzidi et
    al. 2001). Known answers at Re = 100: Strouhal number 0.164 to 0.166, mean drag 1.32 to 1.36 in an unbounded
    flow (Williamson 1989; Park et al. 1998); walls `size[2]` diameters apart raise both by a few per cent.

    Arguments:
        reynolds: inflow speed times diameter over viscosity.
        cells: lattice cells a diameter; the cost grows with its third power.
        speed: inflow speed in lattice units, at most 0.2.
        size: diameters before the cylinder, behind it, and from wall to wall.
        window: diameters recorded before the cylinder, behind it, and to either side of its centre.
        stride: record every so many cells.

    Raises:
        InputError: a number out of its range, or a viscosity too small for so few cells.
    """
    if not 0 < speed <= 0.2:
        raise InputError(f"speed is in lattice units, above 0 and at most 0.2 (a third of sound); got {speed!r}")
    if cells < 6 or stride < 1:
        raise InputError(f"at least 6 cells a diameter and a stride of 1; got cells={cells!r}, stride={stride!r}")
    if window[0] >= size[0] or window[1] >= size[1] or 2 * window[2] >= size[2]:
        raise InputError(f"the window {window} recorded must lie inside the channel {size}")
    wake = CylinderWake(float(reynolds), cells, speed, size, window, stride)
    if not 0 < reynolds <= 10 * cells:
        raise InputError(f"the layer at the wall needs a cell for every 10 of the Reynolds number; for Re = "
                         f"{reynolds:g} pass cells={math.ceil(reynolds / 10)} or more, got {cells}" if reynolds > 0 else
                         f"a Reynolds number is above 0; got {reynolds!r}")
    if wake.viscosity > 0.5:
        raise InputError(f"viscosity speed * cells / reynolds = {wake.viscosity:.3g} is above 0.5, where the method is "
                         f"inaccurate; for Re = {reynolds:g} choose fewer cells or a lower speed")
    return wake


class _Lattice:
    """Populations, rates and the cylinder's links of one run."""

    def __init__(self, wake: CylinderWake):
        d = wake.cells
        nx = round((wake.size[0] + wake.size[1]) * d) + 2
        ny = 2 * (round(wake.size[2] * d) // 2) + 1 + 2
        self.centre = (ny // 2, round(wake.size[0] * d))
        y, x = np.ogrid[:ny, :nx]
        y, x = y - self.centre[0], x - self.centre[1]
        self.body = np.hypot(y, x) < d / 2
        self.links, self.mix = _cylinder_links(self.body, self.centre, d / 2)

        # the last two diameters are made more and more viscous, so that vortices leave without an echo
        column = np.arange(nx)
        sponge = np.clip((column - (nx - 1 - 2 * d)) / (2 * d), 0, 1)
        tau = 3 * wake.viscosity * (1 + 20 * sponge**2)
        self.even_rate = (1 / (tau + 0.5)).astype(np.float32)
        self.odd_rate = (1 / (MAGIC / tau + 0.5)).astype(np.float32)

        self.inflow = equilibrium(np.float64(wake.speed), np.float64(0)).astype(np.float32)
        # a swirl behind the cylinder breaks the symmetry that would keep the wake steady for long
        blob = 0.5 * wake.speed * np.exp(-((x - 1.5 * d) ** 2 + y**2) / d**2)
        still = np.broadcast_to(wake.speed * ~self.body, (ny, nx))
        self.f = equilibrium(still, blob * ~self.body).astype(np.float32)
        self.spare = self.f.copy()


def equilibrium(ux: np.ndarray | float, uy: np.ndarray | float) -> np.ndarray:
    """(9, *shape) equilibrium populations of a fluid of density 1, minus their weights."""
    from ensemblekit.rom.kernels import CX, CY

    weights = np.array([4 / 9] + [1 / 9] * 4 + [1 / 36] * 4)
    along = np.multiply.outer(CX, ux) + np.multiply.outer(CY, uy)
    return weights.reshape(9, *[1] * np.ndim(ux)) * (3 * along + 4.5 * along**2 - 1.5 * (ux**2 + uy**2))


def _cylinder_links(body: np.ndarray, centre: tuple[int, int], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Links between fluid and body, and the shares of the populations that come back along each (see `bounce`)."""
    from ensemblekit.rom.kernels import CX, CY, OPPOSITE

    links, mix = [], []
    for i in range(1, 9):
        for by, bx in np.argwhere(body):
            y, x = by - CY[i], bx - CX[i]
            if body[y, x]:
                continue
            # where on the link is the wall: |p + q c| = radius, the smaller root
            py, px = y - centre[0], x - centre[1]
            cc, pc = CX[i] ** 2 + CY[i] ** 2, px * CX[i] + py * CY[i]
            q = (-pc - math.sqrt(pc**2 - cc * (px**2 + py**2 - radius**2))) / cc
            links.append((i, OPPOSITE[i], y, x, by, bx))
            mix.append((2 * q, 1 - 2 * q, 0) if q < 0.5 else (0.5 / q, 0, 1 - 0.5 / q))
    return np.array(links, np.int64), np.array(mix, np.float32)


__all__ = ["CylinderWake", "WakeSnapshot", "cylinder_wake"]
