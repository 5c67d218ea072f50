"""A closed cavity whose lid is set moving: the start-up dies away and a steady vortex is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.testbeds.flow import FlowSnapshot, check_schedule
from ensemblekit.rom.testbeds.wake import MAGIC
from ensemblekit.source import Field


@dataclass(frozen=True)
class Cavity:
    """The flow in a square box under a moving lid; see :func:`startup_cavity`. Lengths in sides, speeds in the lid's."""

    reynolds: float
    cells: int
    """Lattice cells a side."""
    speed: float
    """Of the lid, in lattice units."""

    @property
    def x(self) -> np.ndarray:
        """Positions of the recorded columns, the middles of the cells, (cells,)."""
        return (np.arange(self.cells) + 0.5) / self.cells

    @property
    def y(self) -> np.ndarray:
        """As x; the lid is at y = 1."""
        return self.x

    @property
    def fields(self) -> Mapping[str, Field]:
        """The velocity, (cells, cells, 2) as [y, x, component]."""
        return {"velocity": Field((self.cells, self.cells, 2), np.dtype("f4"), finite=True)}

    def snapshots(self, n: int, every: float, after: float = 0.0) -> Iterator[FlowSnapshot]:
        """Run the solver from rest and yield `n` snapshots; times in sides over the lid's speed."""
        from ensemblekit.rom.kernels import velocity
        from ensemblekit.rom.testbeds.kernels import cavity_steps

        check_schedule(n, every, after)
        d = self.cells
        f = np.zeros((9, d + 2, d + 2), np.float32)
        spare = f.copy()
        tau = 3 * self.speed * d / self.reynolds
        even = np.full(d + 2, 1 / (tau + 0.5), np.float32)
        odd = np.full(d + 2, 1 / (MAGIC / tau + 0.5), np.float32)
        per_time = d / self.speed
        done = 0
        for k in range(n):
            gap = every if k else after
            if gap > 0:
                steps = max(2, 2 * round(gap * per_time / 2))
                cavity_steps(f, spare, steps, even, odd, np.float32(self.speed))
                done += steps
            u = np.empty((d, d, 2), np.float32)
            velocity(f, 1, 1, 1, u)
            u /= np.float32(self.speed)
            yield FlowSnapshot(done / per_time, {"velocity": u})


def startup_cavity(reynolds: float = 100.0, *, cells: int = 64, speed: float = 0.1) -> Cavity:
    """A start-up transient that decays to a steady flow: a box of fluid at rest whose lid begins to move.

    Decomposed without subtracting the mean, mode 1 is the steady state and later modes are the transient. Known answer
    at Re = 100: on the vertical centre line the velocity along the lid falls to -0.2109 (Ghia, Ghia and Shin 1982);
    the flow is steady after about 20 times the side over the lid's speed.

    Arguments:
        reynolds: lid speed times side over viscosity; up to about 7000 the flow becomes steady.
        cells: lattice cells a side; the cost grows with its third power.
        speed: of the lid in lattice units, at most 0.2.

    Raises:
        InputError: a number out of its range, or too few cells for the Reynolds number.
    """
    if not 0 < speed <= 0.2 or cells < 16:
        raise InputError(f"at least 16 cells and a speed above 0 and at most 0.2; got cells={cells!r}, speed={speed!r}")
    if not 0 < reynolds <= 10 * cells:
        raise InputError(f"cells of the wall layers: the Reynolds number is above 0 and at most 10 a cell; got "
                         f"{reynolds!r} with {cells} cells")
    if speed * cells / reynolds > 0.5:
        raise InputError(f"viscosity speed * cells / reynolds = {speed * cells / reynolds:.3g} is above 0.5, where the "
                         f"method is inaccurate; for Re = {reynolds:g} choose fewer cells or a lower speed")
    return Cavity(float(reynolds), int(cells), float(speed))
