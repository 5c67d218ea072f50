"""Kolmogorov's flow: a sheared periodic box that turns chaotic, with its energy accounted for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.testbeds.flow import FlowSnapshot, check_schedule, steps_for
from ensemblekit.source import Field


class Budget(NamedTuple):
    """Energy and what changes it, per area: d energy / dt = input - dissipation + transfer."""

    energy: float
    input: float
    """Work of the force."""
    dissipation: float
    transfer: float
    """By advection: zero but for rounding, as it only moves energy between scales."""


@dataclass(frozen=True)
class Kolmogorov:
    """Two-dimensional flow in a periodic box, driven by a sine of the height; see :func:`kolmogorov_flow`."""

    reynolds: float
    cells: int
    waves: int
    """Periods of the force in the box."""
    step: float
    seed: int

    @property
    def x(self) -> np.ndarray:
        """Positions of the columns, (cells,), from 0 to 2π."""
        return 2 * np.pi * np.arange(self.cells) / self.cells

    @property
    def y(self) -> np.ndarray:
        """As x."""
        return self.x

    @property
    def fields(self) -> Mapping[str, Field]:
        """The velocity, (cells, cells, 2) as [y, x, component]; its work, and its dissipation by viscosity."""
        return {"velocity": Field((self.cells, self.cells, 2), np.dtype("f4"), finite=True), "input": Field(),
                "dissipation": Field()}

    @property
    def laminar(self) -> np.ndarray:
        """The steady flow (cells, cells, 2), u = Re / waves² sin(waves y): unstable but for small Reynolds numbers."""
        u = np.zeros((self.cells, self.cells, 2))
        u[..., 0] = self.reynolds / self.waves**2 * np.sin(self.waves * self.y)[:, None]
        return u

    def budget(self, velocity: np.ndarray) -> Budget:
        """The energy budget of a velocity field (cells, cells, 2), per area."""
        return _Spectral(self).budget(np.asarray(velocity, np.float64))

    def snapshots(self, n: int, every: float, after: float = 0.0) -> Iterator[FlowSnapshot]:
        """Run the solver and yield `n` snapshots; times in units of 1 over wavenumber and speed of the force."""
        check_schedule(n, every, after)
        state = _Spectral(self)
        w = state.start(self.seed)
        time = 0.0
        for k in range(n):
            gap = every if k else after
            if gap > 0:
                count, dt = steps_for(gap, self.step)
                w = state.advance(w, dt, count)
                time += gap
            u = state.velocity(w)
            if not np.isfinite(u).all():
                raise InputError(f"the flow blew up at time {time:g}: a step of {self.step:g} is too long for "
                                 f"{self.cells} cells at Reynolds number {self.reynolds:g}; pass a shorter step=")
            budget = state.budget(u)
            yield FlowSnapshot(time, {"velocity": u.astype(np.float32), "input": budget.input,
                                      "dissipation": budget.dissipation})


def kolmogorov_flow(reynolds: float = 40.0, *, cells: int = 64, waves: int = 4, step: float | None = None,
                    seed: int = 0) -> Kolmogorov:
    """A chaotic flow: the periodic box [0, 2π]² driven by sin(waves y) along x (Chandler and Kerswell 2013).

    Fourier modes in space with products free of aliasing (two thirds are kept), Runge-Kutta of fourth order in time
    with the viscous part exact. Known answers: advection neither makes nor loses energy or enstrophy, so work and
    dissipation balance (:meth:`Kolmogorov.budget`, and :attr:`Kolmogorov.laminar` is a solution); with four waves the
    flow is chaotic from a Reynolds number of about 40, and its modes' energies fall slowly.

    Arguments:
        reynolds: sqrt(force) / viscosity for a box of this size.
        cells: points a side.
        waves: periods of the force in the box.
        step: longest time step; by default half a cell at speed 4.
        seed: of the first field, large eddies of random phase.

    Raises:
        InputError: a number out of its range.
    """
    if cells < 16 or cells % 2:
        raise InputError(f"an even number of cells, at least 16; got {cells!r}")
    if not reynolds > 0 or not math.isfinite(reynolds):
        raise InputError(f"a Reynolds number is above 0; got {reynolds!r}")
    if not 1 <= waves < cells // 3:
        raise InputError(f"waves is 1 to {cells // 3 - 1}, what {cells} cells resolve; got {waves!r}")
    longest = math.pi / cells / 4 if step is None else step
    if not longest > 0:
        raise InputError(f"a time step is above 0; got {step!r}")
    return Kolmogorov(float(reynolds), int(cells), int(waves), float(longest), int(seed))


class _Spectral:
    """Vorticity in Fourier modes, (n, n // 2 + 1)."""

    def __init__(self, flow: Kolmogorov):
        n = flow.cells
        self.n, self.waves, self.nu = n, flow.waves, 1 / flow.reynolds
        self.kx = np.arange(n // 2 + 1.0)[None, :]
        self.ky = np.fft.fftfreq(n, 1 / n)[:, None]
        self.k2 = self.kx**2 + self.ky**2
        self.inverse = np.divide(1.0, self.k2, out=np.zeros_like(self.k2), where=self.k2 > 0)
        self.kept = (np.abs(self.kx) < n / 3) & (np.abs(self.ky) < n / 3)
        # the force sin(waves y) along x has the curl -waves cos(waves y)
        self.force = np.zeros((n, n // 2 + 1), complex)
        self.force[flow.waves, 0] = self.force[-flow.waves, 0] = -flow.waves * n * n / 2
        self.y = flow.y

    def start(self, seed: int) -> np.ndarray:
        """Random large eddies with a root mean square speed of 1."""
        from scipy.fft import irfft2, rfft2

        rng = np.random.default_rng(seed)
        w = rfft2(rng.standard_normal((self.n, self.n))) * np.exp(-self.k2 / 18) * self.kept
        w[0, 0] = 0
        w = rfft2(irfft2(w, s=(self.n, self.n)))
        speed = self.velocity(w)
        return w / math.sqrt((speed**2).sum(-1).mean())

    def velocity(self, w: np.ndarray) -> np.ndarray:
        """(n, n, 2) from the vorticity's modes."""
        from scipy.fft import irfft2

        stream = w * self.inverse
        s = (self.n, self.n)
        return np.stack([irfft2(1j * self.ky * stream, s=s), irfft2(-1j * self.kx * stream, s=s)], -1)

    def advected(self, w: np.ndarray) -> np.ndarray:
        """Modes of -u·∇ω."""
        from scipy.fft import irfft2, rfft2

        from ensemblekit.rom.testbeds.kernels import advection

        stream = w * self.inverse
        modes = np.stack([1j * self.ky * stream, -1j * self.kx * stream, 1j * self.kx * w, 1j * self.ky * w])
        u, v, wx, wy = irfft2(modes, s=(self.n, self.n))
        product = np.empty_like(u)
        advection(u, v, wx, wy, product)
        return rfft2(product) * self.kept

    def advance(self, w: np.ndarray, dt: float, steps: int) -> np.ndarray:
        """Runge-Kutta of fourth order on exp(νk²t) ω, so that viscosity is exact."""
        half = np.exp(-0.5 * self.nu * self.k2 * dt)
        full = half * half

        def rate(w: np.ndarray) -> np.ndarray:
            return self.advected(w) + self.force

        for _ in range(steps):
            a = rate(w)
            b = rate(half * (w + 0.5 * dt * a))
            c = rate(half * w + 0.5 * dt * b)
            d = rate(full * w + dt * half * c)
            w = full * w + dt / 6 * (full * a + 2 * half * (b + c) + d)
        return w

    def budget(self, u: np.ndarray) -> Budget:
        from scipy.fft import irfft2, rfft2

        hat = rfft2(u, axes=(0, 1))
        w = 1j * self.kx * hat[..., 1] - 1j * self.ky * hat[..., 0]
        vorticity = irfft2(w, s=(self.n, self.n))
        work = float((u[..., 0] * np.sin(self.waves * self.y)[:, None]).mean())
        stream = irfft2(w * self.inverse, s=(self.n, self.n))
        moved = irfft2(self.advected(w * self.kept), s=(self.n, self.n))
        return Budget(0.5 * float((u**2).sum(-1).mean()), work, self.nu * float((vorticity**2).mean()),
                      float((stream * moved).mean()))
