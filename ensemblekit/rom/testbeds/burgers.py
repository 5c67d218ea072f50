"""The viscous Burgers equation: a wave that steepens into a front, with its exact solution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.testbeds.flow import FlowSnapshot, check_schedule, steps_for
from ensemblekit.source import Field


@dataclass(frozen=True)
class Burgers:
    """u_t + u u_x = ν u_xx on the periodic interval [-1, 1); see :func:`burgers`."""

    cells: int
    viscosity: float
    drift: float
    """Speed at which the whole solution is carried to the right."""

    @property
    def x(self) -> np.ndarray:
        """Positions of the points, (cells,), from -1."""
        return -1 + 2 * np.arange(self.cells) / self.cells

    @property
    def fields(self) -> Mapping[str, Field]:
        """The velocity u, (cells,)."""
        return {"velocity": Field((self.cells,), np.dtype("f8"), finite=True)}

    def exact(self, time: float) -> np.ndarray:
        """The solution at a time by the transformation of Cole (1951) and Hopf (1950).

        u - c = 2ν times the logarithmic derivative of a solution of the heat equation; here, periodic, that is a
        quotient of two integrals over the heat kernel, done by the trapezoidal rule, which converges faster than any
        power of its spacing.
        """
        x = self.x - self.drift * time
        if time == 0:
            return self.drift - np.sin(np.pi * x)
        width = math.sqrt(2 * self.viscosity * time)
        # the integrand's weight exp(-cos(πs)/2πν) favours s = ±1, up to a distance of 1 from any x
        s = np.linspace(-1 - 12 * width, 1 + 12 * width, 6001) if width > 1 / 6 else np.linspace(-3, 3, 12001)
        exponent = (-np.cos(np.pi * (x[:, None] - s)) / (2 * np.pi * self.viscosity)
                    - s**2 / (4 * self.viscosity * time))
        weight = np.exp(exponent - exponent.max(1, keepdims=True))
        return self.drift - (np.sin(np.pi * (x[:, None] - s)) * weight).sum(1) / weight.sum(1)

    def snapshots(self, n: int, every: float, after: float = 0.0) -> Iterator[FlowSnapshot]:
        """Run the solver (energy-conserving central differences, Runge-Kutta of fourth order) and yield `n` snapshots."""
        from ensemblekit.rom.testbeds.kernels import burgers_steps

        check_schedule(n, every, after)
        u = self.drift - np.sin(np.pi * self.x)
        h = 2 / self.cells
        # stability of Runge-Kutta 4: 2.8 along the imaginary axis, 2.78 along the real one; a third of either
        longest = min(0.9 * h / (1 + abs(self.drift)), 0.22 * h**2 / self.viscosity)
        work = np.empty((3, self.cells))
        time = 0.0
        for k in range(n):
            gap = every if k else after
            if gap > 0:
                count, dt = steps_for(gap, longest)
                burgers_steps(u, work, self.viscosity, h, dt, count)
                time += gap
            yield FlowSnapshot(time, {"velocity": u.copy()})


def burgers(viscosity: float = 0.02, *, cells: int = 512, drift: float = 0.0) -> Burgers:
    """A sine wave that steepens into a front and fades: u(x, 0) = drift - sin(πx).

    Known answer: :meth:`Burgers.exact`. With a drift the front moves, and a moving front is what linear reduction finds
    hard: the energies of its modes fall slowly until the front is resolved.

    Arguments:
        viscosity: ν; the front is about 2ν wide in units of half the period.
        cells: points in the period.
        drift: speed at which the solution is carried along.

    Raises:
        InputError: a number out of its range, or too few cells for the front.
    """
    if not viscosity > 0 or not math.isfinite(viscosity + drift):
        raise InputError(f"the viscosity is above 0 and the drift finite; got {viscosity!r} and {drift!r}")
    if cells < 4 or 2 / cells > 2 * viscosity:
        raise InputError(f"a front {2 * viscosity:.2g} wide needs cells no wider; pass cells={math.ceil(1 / viscosity)} "
                         f"or more, got {cells!r}")
    return Burgers(int(cells), float(viscosity), float(drift))
