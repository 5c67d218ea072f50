"""The error of a mean from the lowest frequencies of the series: cosine components.

n times the variance of a mean is the spectrum at frequency zero. The first cosine components of the series are nearly
independent numbers of just that variance (Müller, J. Econometrics 141, 1331, 2007; Lazarus, Lewis, Stock & Watson,
J. Bus. Econ. Stat. 36, 541, 2018). The standard error is the mean of as many squares as the correlation allows. The
interval rests on the lowest 24 alone, however long the run, and on what a slow part would do to these: see
:mod:`~ensemblekit.averaging.guard`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ensemblekit.averaging.guard import COMPONENTS, half_widths, matched, of_components
from ensemblekit.averaging.stationarity import drifts, remembers

SHARE = 0.15
"""Components an independent snapshot in the standard error: widening the band lowers the scatter and raises the bias."""
FEWEST = 4
NOISE = 9.0
"""Variance of the skewness of m block means times m that is taken for noise: a Gaussian's is 6."""
MOST_SKEWED = 0.3
"""Larger skewness of a mean is taken as this: beyond, the cubic transformation reaches too far."""
BENT = 2.5
"""The largest t that is bent by skewness; what is beyond is scaled in proportion."""
RARE = 0.5
"""Skewness of the mean beyond which a few rare excursions carry it."""
FLAT_BELOW = 0.995
"""Confidence with which the spectrum must rise above a narrower band for that to be taken."""


class MeanError(NamedTuple):
    """The error of the mean of one series."""

    stderr: float
    dof: float
    """Of Student's t, such that t times `stderr` is half the 95 % interval before skewness."""
    spectrum: float
    """Mean square of the components that the interval rests on: n times the variance of the mean were they flat."""
    skewness: float
    """Of the mean."""
    doubts: tuple[str, ...]
    """Why the interval cannot be vouched for, besides too few independent snapshots."""


def mean_error(z: np.ndarray, g: float) -> MeanError:
    """The error of the mean of a series z (n,) about its mean, n at least 4, with a statistical inefficiency of about g."""
    from scipy.fft import dct

    n = len(z)
    power = dct(z)[1:]
    power = power * power / (2 * n)
    low = power[:_band(power, n)]
    spread = float(z @ z) / n
    guard = of_components(len(low))
    half = half_widths(low[:, None], guard, spread / n)[0] / math.sqrt(n)
    stderr, dof = matched(np.asarray(_consistent(power, n, g)), np.asarray(half))
    flat = max(float(low.mean()), spread / n)
    skewness = mean_skewness(z, flat / spread)
    doubts = []
    if abs(skewness) > RARE:
        doubts.append(f"a few rare excursions carry the mean (its skewness is {skewness:.2g}); sample until they have come "
                      "many times")
    if drifts(low):
        doubts.append("the run drifts, steps or wanders as a whole, or holds fewer than two of its slowest times; sample "
                      "longer, or leave out its start")
    if remembers(power, n):
        doubts.append("correlation falls off as a power of time, without an end (long memory): one run cannot tell the "
                      "error of its mean; take independent runs")
    return MeanError(float(stderr), float(dof), flat, skewness, tuple(doubts))


def _band(power: np.ndarray, n: int) -> int:
    """Components that the interval rests on: 24 or as many as half of the snapshots, fewer where the spectrum rises.

    A spectrum that is higher above a narrow band than within it is that of an oscillation.
    """
    used = max((q for q in COMPONENTS if q <= n / 2), default=min(COMPONENTS))
    used = max(used, max(q for q in COMPONENTS if q <= min(n - 1, 6)))
    for q in (q for q in COMPONENTS if 6 <= q < used):
        if power[q:used].mean() > _rise(used - q, q) * power[:q].mean():
            used = q
    return used


@lru_cache
def _rise(above: int, below: int) -> float:
    from scipy.special import fdtri

    return float(fdtri(above, below, FLAT_BELOW))


def _consistent(power: np.ndarray, n: int, g: float) -> float:
    """The standard error from a band that suits a statistical inefficiency of about g, and grows with the run.

    The spectrum is taken to fall off as that of an exponential correlation does, and its mean over the band is raised
    to the value at zero.
    """
    count = min(int(np.clip(round(SHARE * n / max(g, 1.0)), FEWEST, max(n - 1, 1))), n - 1)
    width = np.pi * max(g - 1.0 / max(g, 1.0), 0.0) / (2 * n)       # frequency spacing times correlation time
    fall = 1.0 + width**2 * (count + 1) * (2 * count + 1) / 6
    return math.sqrt(float(power[:count].mean()) * fall / n)


def mean_skewness(z: np.ndarray, g: float) -> float:
    """Skewness of the mean of z (n,), from block means about one statistical inefficiency g long, eight or more.

    Shrunk towards 0 by what m block means show by chance, so that symmetric data keep a symmetric interval.
    """
    length = 1 << max(0, math.ceil(math.log2(max(g, 1.0))))
    while length > 1 and len(z) // length < 8:
        length //= 2
    count = len(z) // length
    if count < 8:
        return 0.0
    means = z[len(z) - count * length:].reshape(count, length).mean(axis=1)
    means = means - means.mean()
    second = float(means @ means) / count
    if not second > 0.0:
        return 0.0
    skewness = float((means**3).mean()) / second**1.5
    kept = max(0.0, 1.0 - NOISE / count / skewness**2) if skewness else 0.0
    return kept * skewness / math.sqrt(count)


def skewed_quantiles(t: float, skewness: float) -> tuple[float, float]:
    """How many standard errors below and above the mean the interval reaches, (low, high), for a quantile t.

    Hall's cubic transformation T + s T²/3 + s² T³/27 + s/6 takes the skewness s of the mean out of the studentised
    mean T (J. R. Stat. Soc. B 54, 221, 1992); what is left of it, of order s², widens both sides. Quantiles beyond
    `BENT` are those of an error that is hardly known: their excess is no skewness and scales both ends alike.
    """
    if skewness == 0.0:
        return t, t
    s = math.copysign(min(max(abs(skewness), 1e-4), MOST_SKEWED), skewness)
    bent = min(t, BENT)
    wide = bent * (1.0 + s * s)
    ends = [3.0 / s * (float(np.cbrt(1.0 + s * (q - s / 6.0))) - 1.0) for q in (wide, -wide)]
    return t / bent * ends[0], -t / bent * ends[1]
