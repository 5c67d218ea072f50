"""Heat in a rod or a plate whose edges are kept cold: each sine mode decays at a rate of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.testbeds.flow import FlowSnapshot, check_schedule, steps_for
from ensemblekit.source import Field


@dataclass(frozen=True)
class Heat:
    """The heat equation on the unit interval or the unit square; see :func:`heat`."""

    cells: int
    """Intervals a side; the recorded points are the cells - 1 between the edges."""
    diffusivity: float
    dimensions: int
    roughness: float
    step: float
    """Longest time step."""

    @property
    def x(self) -> np.ndarray:
        """Positions of the recorded points, (cells - 1,), between 0 and 1."""
        return np.arange(1, self.cells) / self.cells

    @property
    def y(self) -> np.ndarray:
        """As x."""
        return self.x

    @property
    def fields(self) -> Mapping[str, Field]:
        """The temperature: (cells - 1,), or (cells - 1, cells - 1) as [y, x]."""
        return {"temperature": Field((self.cells - 1,) * self.dimensions, np.dtype("f8"), "K", finite=True)}

    @property
    def start(self) -> np.ndarray:
        """The temperature at time 0: sine mode k with amplitude k^-roughness, all in phase at the lower left."""
        k = np.arange(1, self.cells)
        one = np.sin(np.pi * np.outer(self.x, k)) @ k.astype(float) ** -self.roughness
        return one if self.dimensions == 1 else np.outer(one, one)

    def rates(self, discrete: bool = True) -> np.ndarray:
        """Decay rate of each sine mode, (cells - 1,) or (cells - 1, cells - 1).

        discrete: of the differences on this grid, 4 a/h² sin²(kπh/2); else of the equation itself, a k²π².
        """
        k = np.arange(1, self.cells)
        one = (4 * self.diffusivity * self.cells**2 * np.sin(0.5 * np.pi * k / self.cells) ** 2 if discrete else
               self.diffusivity * (k * np.pi) ** 2)
        return one if self.dimensions == 1 else one[:, None] + one[None, :]

    def amplitudes(self, temperature: np.ndarray) -> np.ndarray:
        """Sine amplitudes of a recorded field (or several, the last axes being the field's)."""
        k = np.arange(1, self.cells)
        sines = 2 / self.cells * np.sin(np.pi * np.outer(k, self.x))
        amplitudes = temperature @ sines.T
        return amplitudes if self.dimensions == 1 else np.swapaxes(np.swapaxes(amplitudes, -1, -2) @ sines.T, -1, -2)

    def exact(self, time: float) -> np.ndarray:
        """The field at a time by its sine modes, each decayed at the rate of the equation."""
        k = np.arange(1, self.cells)
        decayed = k.astype(float) ** -self.roughness * np.exp(-self.diffusivity * (k * np.pi) ** 2 * time)
        one = np.sin(np.pi * np.outer(self.x, k)) @ decayed
        return one if self.dimensions == 1 else np.outer(one, one)

    def snapshots(self, n: int, every: float, after: float = 0.0) -> Iterator[FlowSnapshot]:
        """Run the solver (Crank-Nicolson; in two dimensions by Peaceman and Rachford) and yield `n` snapshots."""
        from ensemblekit.rom.testbeds.kernels import heat_plate_steps, heat_rod_steps

        check_schedule(n, every, after)
        u = self.start
        time = 0.0
        for k in range(n):
            gap = every if k else after
            if gap > 0:
                count, dt = steps_for(gap, self.step)
                number = 0.5 * self.diffusivity * dt * self.cells**2
                (heat_rod_steps if self.dimensions == 1 else heat_plate_steps)(u, number, count)
                time += gap
            yield FlowSnapshot(time, {"temperature": u.copy()})


def heat(cells: int = 128, *, diffusivity: float = 1.0, dimensions: int = 1, roughness: float = 1.0,
         step: float | None = None) -> Heat:
    """Heat conduction with cold edges, from a field of many sine modes.

    Known answer: sine mode k decays as exp(-a k²π² t), so the energies of POD modes fall exponentially and a handful
    suffices. Solved with central differences in space and the trapezoidal rule in time; the sines are exact
    eigenvectors of both.

    Arguments:
        cells: intervals a side.
        diffusivity: a, lengths squared by time; the side is 1 long.
        dimensions: 1 for a rod, 2 for a plate.
        roughness: sine mode k starts with amplitude k^-roughness.
        step: longest time step; by default a thousandth of the slowest mode's decay time.

    Raises:
        InputError: a number out of its range.
    """
    if cells < 4 or dimensions not in (1, 2):
        raise InputError(f"at least 4 cells, in 1 or 2 dimensions; got cells={cells!r}, dimensions={dimensions!r}")
    if not diffusivity > 0 or not math.isfinite(diffusivity):
        raise InputError(f"the diffusivity is a number above 0; got {diffusivity!r}")
    longest = 1e-3 / (diffusivity * math.pi**2) if step is None else step
    if not longest > 0:
        raise InputError(f"a time step is above 0; got {step!r}")
    return Heat(int(cells), float(diffusivity), int(dimensions), float(roughness), float(longest))
