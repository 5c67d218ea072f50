"""Correlated series of known mean: those that intervals are tried on, from plain to nasty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from ensemblekit.jit import kernel

Make = Callable[[np.random.Generator, int], np.ndarray]


class Process(NamedTuple):
    """A way to make one series (n,)."""

    make: Make
    mean: float
    g: float
    """Statistical inefficiency; a nominal one for series that have none."""


def autoregression(g: np.random.Generator, n: int, phi: float) -> np.ndarray:
    """Gaussian AR(1) of unit variance, stationary from the start."""
    noise = g.normal(size=n) * math.sqrt(1 - phi * phi)
    noise[0] /= math.sqrt(1 - phi * phi)
    return lfilter([1.0], [1.0, -phi], noise)


def filtered(ar: tuple[float, ...], ma: tuple[float, ...] = ()) -> Make:
    """ARMA noise: x_t = Σ ar x + e_t + Σ ma e."""
    return lambda g, n: lfilter([1.0, *ma], [1.0, *(-a for a in ar)], g.normal(size=n + 600))[600:]


def under_noise(height: float, phi: float) -> Process:
    """A small slow part under white noise."""
    return Process(lambda g, n: g.normal(size=n) + height * autoregression(g, n, phi), 0.0,
                   (1 + height**2 * (1 + phi) / (1 - phi)) / (1 + height**2))


def mixture(fast: float, height: float, slow: float) -> Process:
    """Two AR(1) processes added, the slow one of that standard deviation."""
    g_fast, g_slow = (1 + fast) / (1 - fast), (1 + slow) / (1 - slow)
    return Process(lambda g, n: autoregression(g, n, fast) + height * autoregression(g, n, slow), 0.0,
                   (g_fast + height**2 * g_slow) / (1 + height**2))


def two_states(up: float, down: float) -> Process:
    """0 and 1 with fixed chances of a change a step."""
    def make(g: np.random.Generator, n: int) -> np.ndarray:
        stays = [g.geometric(down if k % 2 else up, size=1 + int(4 * n * (up + down)) + 20) for k in range(2)]
        first = int(g.random() < up / (up + down))
        lengths = np.stack([stays[1] if first else stays[0], stays[0] if first else stays[1]], axis=1).reshape(-1)
        states = np.tile([first, 1 - first], len(lengths) // 2)
        states = np.repeat(states, np.minimum(lengths, n))[:n]
        return states.astype(float)

    return Process(make, up / (up + down), (2 - up - down) / (up + down))


def skewed(phi: float) -> Process:
    """Log-normal: exp of an AR(1)."""
    lags = phi ** np.arange(1.0, 6000)
    return Process(lambda g, n: np.exp(autoregression(g, n, phi)), math.exp(0.5),
                   1 + 2 * float(np.expm1(lags).sum() / np.expm1(1)))


@kernel
def _volatile(z):
    x = np.empty(len(z))
    h = 1.0
    for i in range(len(z)):
        x[i] = np.sqrt(h) * z[i]
        h = 0.02 + 0.1 * x[i] ** 2 + 0.88 * h
    return x


@kernel
def _double_well(z, q):
    x = np.empty(len(z))
    for i in range(len(z)):
        q = q - 0.2 * (q**3 - q) + np.sqrt(0.05) * z[i]
        x[i] = q
    return x


def counts(alpha: float, mean: float) -> Process:
    """Thinned Poisson counts, INAR(1)."""
    def make(g: np.random.Generator, n: int) -> np.ndarray:
        new = g.poisson(mean * (1 - alpha), n)
        new[0] = g.poisson(mean)
        x = np.empty(n)
        kept = 0
        for i in range(n):
            x[i] = kept + new[i]
            kept = g.binomial(int(x[i]), alpha) if x[i] else 0
        return x

    return Process(make, mean, (1 + alpha) / (1 - alpha))


def fractional(hurst: float) -> Process:
    """Fractional Gaussian noise: no correlation time exists."""
    def make(g: np.random.Generator, n: int) -> np.ndarray:
        k = np.arange(n + 1.0)
        c = 0.5 * ((k + 1) ** (2 * hurst) - 2 * k ** (2 * hurst) + np.abs(k - 1) ** (2 * hurst))
        power = np.fft.fft(np.concatenate([c, c[-2:0:-1]])).real.clip(0)
        noise = g.normal(size=len(power)) + 1j * g.normal(size=len(power))
        return np.fft.fft(np.sqrt(power / len(power)) * noise).real[:n]

    return Process(make, 0.0, 20.0)


def drifting(height: float) -> Process:
    """AR(0.5) on a line that rises by `height` over the run, whatever its length."""
    return Process(lambda g, n: autoregression(g, n, 0.5) + height * (np.arange(n) / n - 0.5), 0.0, 3.0)


def plain(phi: float) -> Process:
    """Gaussian AR(1)."""
    return Process(lambda g, n: autoregression(g, n, phi), 0.0, (1 + phi) / (1 - phi))


A1, A2 = 2 * 0.95 * math.cos(math.pi / 10), -0.95**2
OSCILLATION = (1 / (1 - A1 - A2)) ** 2 / ((1 - A2) / ((1 + A2) * ((1 - A2) ** 2 - A1**2)))

PROCESSES: dict[str, Process] = {
    "independent": plain(0.0), "AR .5": plain(0.5), "AR .9": plain(0.9), "AR .99": plain(0.99),
    "AR(2) oscillation": Process(filtered((A1, A2)), 0.0, OSCILLATION),
    "ARMA .9 -.5": Process(filtered((0.9,), (-0.5,)), 0.0, 25 / (1 + 0.16 / 0.19)),
    "ARMA .9 -.8": Process(filtered((0.9,), (-0.8,)), 0.0, 4 / (1 + 0.01 / 0.19)),
    "white + .35 AR .95": under_noise(0.35, 0.95), "white + .25 AR .98": under_noise(0.25, 0.98),
    "white + .15 AR .99": under_noise(0.15, 0.99), "AR .7 + .3 AR .99": mixture(0.7, 0.3, 0.99),
    "AR .5 + .7 AR .98": mixture(0.5, 0.7, 0.98), "telegraph .02 .18": two_states(0.02, 0.18),
    "telegraph .005 .02": two_states(0.005, 0.02),
    "double well": Process(lambda g, n: _double_well(g.normal(size=n + 2000), 1.0 if g.random() < 0.5 else -1.0)[2000:], 0.0,
                           142.0),
    "exp(AR .8)": skewed(0.8), "exp(AR .9)": skewed(0.9),
    "AR(.95) squared": Process(lambda g, n: autoregression(g, n, 0.95) ** 2, 1.0, 1.9025 / 0.0975),
    "Student t3": Process(lambda g, n: g.standard_t(3, size=n), 0.0, 1.0),
    "GARCH": Process(lambda g, n: _volatile(g.normal(size=n + 500))[500:], 0.0, 1.0),
    "counts .1": counts(0.5, 0.1), "counts 2": counts(0.8, 2.0), "AR -.7": plain(-0.7),
    "sine + .5 AR .5": Process(lambda g, n: 0.5 * autoregression(g, n, 0.5) + np.sin(
        2 * np.pi * (np.arange(n) / 25.3 + g.random())), 0.0, 4.0),
}
"""Series that have a mean which a run can tell."""
WITHOUT: dict[str, Process] = {
    "fractional noise .7": fractional(0.7), "fractional noise .8": fractional(0.8),
    "random walk": Process(lambda g, n: np.cumsum(g.normal(size=n)), 0.0, 20.0), "drift of 1/3 sd": drifting(1 / 3),
    "drift of 1 sd": drifting(1.0), "drift of 3 sd": drifting(3.0),
    "step of 1 sd": Process(lambda g, n: autoregression(g, n, 0.5) + (np.arange(n) > 0.7 * n), 0.0, 3.0),
}
"""Series that have none, or none that one run can tell: a step's is that before it."""
