"""Can the run tell its mean at all: tests for drift and for memory without end, on the spectrum of one series.

Both compare likelihoods, with the scale profiled out, of families of spectra: those that a run of this length resolves
against those that it does not.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from ensemblekit.averaging.guard import HELD, spectrum

TREND = 1.7
"""Log likelihood by which a trend must beat every resolved spectrum, for false alarms below 1 % on plain series."""
SLOW = 1.3
"""The same of a part so slow that the run holds less than about two of its times, of steps and random walks."""
LONG = 1000
"""Snapshots from which long memory is looked for; a power law is told from a few time scales from about 10 000 on."""
REACH = 20_000
"""Components of the spectrum looked at for it, at most."""
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99, 1.0)
HEIGHTS = (5.0, 10.0, 30.0, 100.0, 1e3, 1e5)


class Spectra(NamedTuple):
    """A family of spectra over bins of components, prepared for their likelihoods."""

    counts: np.ndarray
    """Components in each bin, (bins,)."""
    shares: np.ndarray
    """counts / spectrum over all components, (spectra, bins)."""
    halves: np.ndarray
    """Half the logarithm of the determinant, (spectra,)."""

    @staticmethod
    def of(rows: list[np.ndarray], counts: np.ndarray) -> Spectra:
        table = np.array(rows)
        return Spectra(counts, counts / table / counts.sum(), 0.5 * (np.log(table) @ counts))

    def best(self, power: np.ndarray) -> float:
        """Largest log likelihood of mean powers (bins,), scale free."""
        return float((-self.halves - 0.5 * self.counts.sum() * np.log(self.shares @ power)).max())


def drifts(power: np.ndarray) -> bool:
    """Whether the lowest cosine powers (q,) are those of a trend, a step, a random walk, or of a part that the run holds
    less than about twice."""
    if not power.any():
        return False
    held, trends, slow = _drift_families(len(power))
    base = held.best(power)
    return trends.best(power) - base > TREND or slow.best(power) - base > SLOW


@lru_cache
def _drift_families(q: int) -> tuple[Spectra, Spectra, Spectra]:
    j = np.arange(1, q + 1.0)
    held = [np.ones(q)]
    for h in HELD * 2 ** np.arange(0, 8, 0.5):
        fall, _ = spectrum(q, h)
        held += [1 - f + f * fall for f in SHARES]
    held += [np.where(j > k, c, 1.0) for k in (3, 6, 12) for c in (4.0, 16.0, 256.0) if k < q]      # oscillations rise
    odd = np.where(j % 2 == 1, j**-4.0, 0.0)        # of a straight line
    trends = [1 + a * odd for a in HEIGHTS]
    falls = [spectrum(q, h)[0] for h in (0.1, 0.35, 0.6, 1.0, 1.5)]
    slow = [1 + a * fall / fall[0] for fall in falls for a in (3.0, *HEIGHTS[1:])]
    one = np.ones(q)
    return Spectra.of(held, one), Spectra.of(trends, one), Spectra.of(slow, one)


def remembers(power: np.ndarray, n: int) -> bool:
    """Whether the cosine powers 1.. of a series (n,) are those of a power law rather than of one or two time scales.

    False below `LONG` snapshots, where the two cannot be told apart.
    """
    if n < LONG:
        return False
    whole = _edges(REACH)
    edges = whole[whole <= min(n // 3, REACH) + 1]
    sums = np.concatenate([[0.0], np.cumsum(power[:edges[-1] - 1])])
    binned = np.diff(sums[edges - 1]) / np.diff(edges)
    if not binned.any():
        return False
    # tables for a length within a tenth of an octave: the sine in them differs by less than the noise of one bin
    held, laws = _memory_families(round(10 * math.log2(n)), len(edges))
    limit = 0.5 - 1.8 * min(max(math.log2(n / 2000) / 2, 0.0), 1.0)
    return laws.best(binned) - held.best(binned) > limit


@lru_cache(maxsize=1)
def _edges(most: int) -> np.ndarray:
    """Where bins of components begin: single ones to 16, then six an octave."""
    edges, x = list(range(1, 17)), 17.0
    while x <= most + 1:
        edges.append(int(x))
        x = max(x + 1, x * 2 ** (1 / 6))
    return np.array(edges)


@lru_cache(maxsize=16)
def _memory_families(tenths: int, size: int) -> tuple[Spectra, Spectra]:
    """Spectra over the first bins (`size` edges) of a series of 2^(tenths/10) snapshots: a floor with one or two exponential
    parts; power laws."""
    n = 2.0 ** (tenths / 10)
    edges = _edges(REACH)[:size]
    j = np.array([math.exp(np.log(np.arange(a, b)).mean()) for a, b in pairwise(edges)])
    angle = np.pi * j / 2 / n

    def part(h: float) -> np.ndarray:
        return 1 / (1 + (np.sin(angle) / (np.pi * h / 2 / n)) ** 2)

    parts = [part(h) for h in HELD * 2 ** np.arange(0, math.log2(n / HELD), 0.5)]
    rows = [np.ones(len(j)), *parts, *(floor + one for one in parts for floor in 2.0 ** np.arange(-9, 2))]
    rows += [one + share * (two + floor) for one, two in combinations(parts, 2) for share in 2.0 ** np.arange(-7, 2)
             for floor in (0.0, 0.3, 0.03)]
    laws = [(2 * np.sin(angle)) ** (-2 * d) for d in np.arange(0.1, 0.5, 0.05)]
    counts = np.diff(edges).astype(float)
    return Spectra.of(rows, counts), Spectra.of(laws, counts)
