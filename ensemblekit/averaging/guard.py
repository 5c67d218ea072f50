"""The half width of an interval that stays honest where a small slow part hides under faster noise.

What the lowest frequencies of a run (or its longest blocks) show is a few nearly independent sums of squares. No choice
of bandwidth from the data sees a slow part that carries most of the variance of the mean and a few per cent of that of
the snapshots. Of all half widths that are functions of these sums alone, scale with the data and cover one slow part,
the one of least mean length on white noise solves lam L f(u) = 1: L is the likelihood of the direction of the sums under
the slow shape over that under a flat one, f Student's density of the mean under the slow shape (Pratt, J. Am. Stat. Assoc.
56, 549, 1961; Elliott, Müller & Watson, Econometrica 83, 771, 2015). Solved, it is the root of a difference of two sums
of the squares. The multipliers lam are such that a slow part which the run holds `HELD` or better is covered in at least
93 % whatever its share, found by simulation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

HELD = 3.6
"""Half width, in cosine components, of the slowest part guarded against: the run holds 5.65 of its inefficiencies."""
KNEE = np.pi * HELD         # length of the run over the correlation time of that part
COMPONENTS = {24: (0.80, 2.188), 16: (0.85, 2.236), 12: (0.90, 2.276), 8: (1.0, 2.384), 6: (1.0, 2.409), 5: (1.0, 2.449),
              4: (1.0, 2.516), 3: (1.0, 2.718)}
"""Cosine components -> (share of the slow part in the spectrum at zero, log of its multiplier)."""
BLOCKS = {4: (0.75, 2.858), 5: (0.85, 2.664), 6: (0.85, 2.617), 7: (0.95, 2.489), 8: (1.0, 2.525), 9: (1.0, 2.502),
          10: (1.0, 2.533), 11: (1.0, 2.549), 12: (1.0, 2.491), 13: (1.0, 2.549), 14: (0.95, 2.420), 15: (0.95, 2.488),
          16: (0.90, 2.426), 17: (0.95, 2.509), 18: (0.90, 2.384), 19: (0.90, 2.439), 20: (0.85, 2.366),
          21: (0.90, 2.421), 22: (0.85, 2.326), 23: (0.85, 2.395), 24: (0.85, 2.331), 25: (0.85, 2.357),
          26: (0.85, 2.334), 27: (0.85, 2.348), 28: (0.80, 2.289), 29: (0.85, 2.371), 30: (0.80, 2.294), 31: (0.85, 2.380)}
"""The same for sums of squares between and within blocks, of so many of the shortest taken, doubled down to 4 or more."""
MOST_BLOCKS = 31
FEWEST_DOF = 2.0
"""An error is never reported so small that its interval would need Student's t with fewer degrees of freedom."""

MOST_DOF = 200.0


class Guard(NamedTuple):
    """What sums of squares are held against: see :func:`half_widths`."""

    dof: np.ndarray
    """Degrees of freedom of each sum, (sums,)."""
    shape: np.ndarray
    """Expected mean square of each under the slow part, over the spectrum at zero, (sums,)."""
    mean: float
    """n times the variance of the mean under it, over the spectrum at zero."""
    log_multiplier: float

    @property
    def q(self) -> int:
        """Degrees of freedom of all sums together."""
        return int(self.dof.sum())


def spectrum(q: int, h: float) -> tuple[np.ndarray, float]:
    """Variances of cosine components 1..q (q,), and of the mean, of an exponential correlation of half width h in components.

    Exact for a run of finite length, over the spectrum at zero.
    """
    k = np.pi * h
    j = np.arange(1, q + 1)
    d = k * k + (np.pi * j) ** 2
    return k * k / d - 2 * k**3 * (1 - (-1.0) ** j * np.exp(-k)) / d**2, float(variance_of_mean(k))


def variance_of_mean(x: float | np.ndarray) -> Any:
    """Variance of the mean over x correlation times, times x and over the spectrum at zero."""
    return 1 - (1 - np.exp(-x)) / x


@lru_cache
def of_components(q: int) -> Guard:
    """The guard of q cosine components (a number of `COMPONENTS`)."""
    share, log_multiplier = COMPONENTS[q]
    slow, mean = spectrum(q, HELD)
    return Guard(np.ones(q), 1 - share + share * slow, 1 - share + share * mean, log_multiplier)


@lru_cache(maxsize=256)
def of_blocks(lengths: tuple[int, ...], counts: tuple[int, ...], n: int) -> Guard:
    """The guard of sums of squares within pairs of blocks of rising `lengths`, the last between the longest ones."""
    share, log_multiplier = BLOCKS[min(counts[0], MOST_BLOCKS)]
    length, count = np.array(lengths, float), np.array(counts, float)

    def part(b: np.ndarray) -> np.ndarray:
        return 1 - share + share * variance_of_mean(KNEE * b / n)

    squares = count * part(length) - part(length * count)
    dof = np.append(count[:-1] - count[1:], count[-1] - 1)
    return Guard(dof, np.append(squares[:-1] - squares[1:], squares[-1]) / dof, float(part(np.array(n))), log_multiplier)


def half_widths(sums: np.ndarray, guard: Guard, floor: np.ndarray | float) -> np.ndarray:
    """Half width of the 95 % interval of a mean times sqrt(n), (*item,).

    Arguments:
        sums: (sums, *item) sums of squares whose mean under a flat spectrum is `guard.dof` times n var(mean).
        floor: (*item,) the least n var(mean): a periodic series has none in blocks of its period.

    Never below Student's t of a flat spectrum, so that a rising one is safe too.
    """
    q = guard.q
    rise = 2 / (q + 1) * (guard.log_multiplier - 0.5 * float(guard.dof @ np.log(guard.shape)) - 0.5 * np.log(guard.mean))
    total = sums.sum(axis=0)
    slow = np.tensordot(1 / guard.shape, sums, axes=1)
    # lam L f(u) = 1, solved for u²: the logarithms of likelihood and density add up to one of `slow` over `total`
    squares = guard.mean * (np.exp(rise) * total - slow)
    return np.sqrt(np.maximum(squares, student(q) ** 2 * np.maximum(total / q, floor)))


def matched(stderr: np.ndarray, half: np.ndarray, fewest: float = FEWEST_DOF) -> tuple[np.ndarray, np.ndarray]:
    """(standard error, degrees of freedom) whose Student's t at 95 % has this half width: the error given, where it can.

    Where t would need fewer degrees of freedom than `fewest`, 1 or more, the error is raised; with `MOST_DOF` the interval
    may be longer than that.
    """
    t, log_dof = _inverse()
    stderr = np.maximum(stderr, half / student(fewest))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = half / stderr
    return stderr, np.where(np.isfinite(ratio), np.exp(np.interp(ratio, t, log_dof)), 1.0)


@lru_cache(maxsize=64)
def student(dof: float) -> float:
    """Student's t of a two-sided 95 % interval."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, 0.975))


@lru_cache(maxsize=1)
def _inverse() -> tuple[np.ndarray, np.ndarray]:
    """t at 95 %, rising, and the logarithm of its degrees of freedom."""
    from scipy.special import stdtrit

    log_dof = np.linspace(np.log(MOST_DOF), 0.0, 2000)
    return stdtrit(np.exp(log_dof), 0.975), log_dof
