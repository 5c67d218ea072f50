"""Numbers that tests of reduced models compare with: each with its formula or where it was published."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class LimitCycle(NamedTuple):
    """Of the wake of a cylinder at Re = 100."""

    frequency: float
    radius: float
    last: float
    """Mean of the last coefficient (the shift mode)."""


WAKE_CYCLES = {3: LimitCycle(0.1833, 2.55, 2.55), 9: LimitCycle(0.1792, 2.33, 2.27)}
"""Limit cycles of the Galerkin operators of 3 and 9 modes that pysindy distributes (dynamicslab/pysindy, examples/data, MIT);
integrated with scipy. The simulation itself: 0.17905, 2.304, 2.245. To ± 0.0002, 0.02, 0.02."""

WAKE_VIOLATIONS = {3: 7.7e-4, 9: 6.4e-4}
"""max |sym Q| / max |Q| over the six permutations of the same operators as published, where Q is not symmetric in its last two
axes. A quadratic form does not tell Q[i, j, k] from Q[i, k, j]: of the symmetric H the ratio is 2.56e-3 and 1.38e-3."""


def lotka_volterra() -> tuple[np.ndarray, np.ndarray]:
    """A (2, 2) and H (2, 2, 2) of x' = x - xy, y' = -y + xy."""
    h = np.zeros((2, 2, 2))
    h[0, 0, 1], h[1, 0, 1] = -1, 1
    return np.diag([1.0, -1.0]), h


# -- operator inference ---------------------------------------------------------------------------------------------

HEAT_ERRORS = {2: 0.031, 5: 9.1e-4, 8: 1.3e-4}
"""Relative error over all 1001 steps of models of so many modes of the heated rod (:func:`heated_rod`), trained on 200: the
first tutorial of opinf (Willcox-Research-Group/rom-operator-inference-Python3, MIT), computed again with numpy."""

BURGERS_RECOVERED, BURGERS_RAW = 1e-8, 2e-2
"""Re-projected trajectories give the intrusive operators (Peherstorfer 2020); those that are not miss them by far more."""


def heated_rod(cells: int = 1023, steps: int = 1001, dt: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """Temperatures (steps, cells) by backward Euler, both ends at u = 1 + sin(4πt)/4, and u (steps,)."""
    from scipy.linalg import solve_banded

    h = 1 / (cells + 1)
    x = h * np.arange(1, cells + 1)
    u = 1 + np.sin(4 * np.pi * dt * np.arange(steps)) / 4
    matrix = np.zeros((3, cells))
    matrix[0, 1:], matrix[1], matrix[2, :-1] = -dt / h**2, 1 + 2 * dt / h**2, -dt / h**2
    rows = [np.exp(100 * (x - 1)) + np.exp(-100 * x) - np.exp(-100)]
    for k in range(1, steps):
        right = rows[-1].copy()
        right[[0, -1]] += dt / h**2 * u[k]
        rows.append(solve_banded((1, 1), matrix, right))
    return np.array(rows), u


AFFINE_PROJECTION = {3: 2.4e-3, 5: 7.1e-5, 8: 1.5e-7}
"""Projection error of a run of :func:`rod_at` at mu = 1.4 on so many modes of runs at 0.5, 1 and 2."""


def rod_at(mu: float, u: np.ndarray, cells: int = 255, dt: float = 2e-3) -> np.ndarray:
    """Temperatures (steps, cells) of a rod of diffusivity mu by backward Euler, both ends at u (steps,), from 0."""
    from scipy.linalg import solve_banded

    h = 1 / (cells + 1)
    matrix = np.zeros((3, cells))
    matrix[0, 1:], matrix[1], matrix[2, :-1] = -mu * dt / h**2, 1 + 2 * mu * dt / h**2, -mu * dt / h**2
    rows = [np.zeros(cells)]
    for one in u[1:]:
        right = rows[-1].copy()
        right[[0, -1]] += mu * dt / h**2 * one
        rows.append(solve_banded((1, 1), matrix, right))
    return np.array(rows)


class StepBurgers:
    """One explicit step of Burgers' equation with an input, in the flux form that conserves energy."""

    def __init__(self, cells: int = 128, dt: float = 2e-3, viscosity: float = 0.05):
        self.h, self.dt, self.viscosity = 2 / cells, dt, viscosity
        self.x = -1 + self.h * np.arange(cells)
        self.shape = np.exp(-40 * self.x**2)

    def __call__(self, q: np.ndarray, u: float) -> np.ndarray:
        ahead, behind = np.roll(q, -1), np.roll(q, 1)
        flux = (ahead * ahead + q * ahead - q * behind - behind * behind) / (6 * self.h)
        return q + self.dt * (self.viscosity * (ahead - 2 * q + behind) / self.h**2 - flux + self.shape * u)

    def trajectories(self, runs: int, steps: int, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Snapshots and inputs of runs from several starts."""
        runs_of, inputs = [], [rng.normal(size=steps) for _ in range(runs)]
        for k in range(runs):
            rows = [-np.sin(np.pi * self.x) * (0.5 + 0.1 * k) + 0.2 * rng.normal() * np.cos(np.pi * self.x)]
            for u in inputs[k][:-1]:
                rows.append(self(rows[-1], u))
            runs_of.append(np.array(rows))
        return runs_of, inputs

    def projected(self, v: np.ndarray) -> np.ndarray:
        """The intrusive operators (r + r (r + 1) / 2 + 1, r) on modes v (r, cells): a step taken apart by its definition."""
        r = len(v)
        linear = np.array([v @ ((self(e, 0) - self(-e, 0)) / 2) for e in v])
        squares = {}
        for i in range(r):
            for j in range(i + 1):
                both = self._product(v[i], v[j])
                squares[i, j] = v @ (both if i == j else 2 * both)
        return np.concatenate([linear, [squares[i, j] for i in range(r) for j in range(i + 1)],
                               [self.dt * (v @ self.shape)]])

    def _product(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        a, b, c, d = np.roll(p, -1), np.roll(p, 1), np.roll(q, -1), np.roll(q, 1)
        return -self.dt * (a * c + (p * c + q * a) / 2 - (p * d + q * b) / 2 - b * d) / (6 * self.h)


WAKE_SHEDDING = (0.005, 0.08)
"""Relative errors of frequency and of the root mean square of the coefficients over 10 times a training of 30 D/U, that a
model of 6 modes of the wake at Re = 100 is to reach."""


def mean_field(n: int, dt: float = 0.1) -> np.ndarray:
    """(n, 3): the transient of a wake from near its unstable steady flow to its limit cycle of radius 1.

    The mean-field model of Noack et al., J. Fluid Mech. 497, 335 (2003): x' = 0.1 x - y - 0.1 x z, y' = 0.1 y + x - 0.1 y z,
    z' = -z + x² + y².
    """
    from scipy.integrate import solve_ivp

    def rate(_: float, s: np.ndarray) -> list[float]:
        x, y, z = s
        return [0.1 * x - y - 0.1 * x * z, 0.1 * y + x - 0.1 * y * z, -z + x * x + y * y]

    t = dt * np.arange(n)
    return np.asarray(solve_ivp(rate, (0, t[-1]), [0.02, 0.0, 0.0], t_eval=t, rtol=1e-10, atol=1e-12).y.T)


# -- dynamic modes --------------------------------------------------------------------------------------------------

OSCILLATORS = np.array([-0.05 + 2j * np.pi, -0.05 + 0.37 * 2j * np.pi])
"""Rates of two decaying oscillations, per time unit; their conjugates belong to them."""
CHANNELS, SAMPLES, EVERY, NOISE = 64, 200, 0.05, 0.1
"""Noise is white, of this size in each channel."""
OPT_BIAS, OPT_RMS, TLS_BIAS = 0.002, 0.006, 0.01
"""Of the growth rates over 30 seeds."""


def oscillators(times: np.ndarray, seed: int = 1) -> np.ndarray:
    """(n, 64): both, each in a random pattern of norm 1."""
    rng = np.random.default_rng(seed)
    shape = rng.normal(size=(2, CHANNELS)) + 1j * rng.normal(size=(2, CHANNELS))
    shape /= np.linalg.norm(shape, axis=1)[:, None]
    return (np.exp(np.outer(times, OSCILLATORS)) @ shape).real


# -- parameter studies ----------------------------------------------------------------------------------------------

THERMAL_PLATE = (0.0513, 0.319)
"""Median and worst left-out error of thin-plate RBF with 8 modes on the temperature of 49 steady flows (the sweep of
python-sensors), as shares of each field's own fluctuation; computed with scipy's RBFInterpolator."""
THERMAL_AUTO = (0.005, 0.06)
"""What the automatic choice has to reach there, as shares of the root mean square fluctuation."""


def bumps(points: np.ndarray) -> np.ndarray:
    """(m, 200): exp(-(x - c)² / 2 w²) on 0 ... 1 with c = center / 1000 and the width w, for points (m, 2) of both."""
    x = np.linspace(0, 1, 200)
    return np.exp(-((x - points[:, :1] / 1000) ** 2) / (2 * points[:, 1:] ** 2))
