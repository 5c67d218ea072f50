"""The error of a mean from the lowest frequencies of the series: the equal-weighted cosine estimator.

n times the variance of a mean is the spectrum at frequency zero. The first cosine components of the series are nearly
independent numbers of just that variance, so the mean of their squares estimates it with as many degrees of freedom as
components are taken, and Student's t with these gives the interval (Müller, J. Econometrics 141, 1331, 2007; Lazarus,
Lewis, Stock & Watson, J. Bus. Econ. Stat. 36, 541, 2018). Its bias is of second order in the width of the band, where
that of block means is of first order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

SHARE = 0.15
"""Components an independent snapshot: widening the band lowers the scatter and raises the bias."""
FEWEST = 4
WIDEN = 1.0
"""Share of the squared skewness of the mean by which an interval widens: the Edgeworth term at 95 % is 1.08."""
MOST_SKEWED = 0.25
"""Larger skewness of a mean is taken as this: beyond, the cubic transformation reaches too far."""


class CosineError(NamedTuple):
    """Variance of a mean and the degrees of freedom of that variance."""

    variance: float
    dof: int


def cosine_error(x: np.ndarray, g: float) -> CosineError:
    """The variance of the mean of x (n,), with a band that suits a statistical inefficiency of about g.

    The spectrum is taken to fall off as that of an exponential correlation does, and its mean over the band is raised
    to the value at zero.
    """
    from scipy.fft import dct

    n = len(x)
    count = int(np.clip(round(SHARE * n / max(g, 1.0)), FEWEST, max(n - 1, 1)))
    count = min(count, n - 1)
    component = dct(x, axis=0)[1:count + 1]
    spectrum = float((component**2).sum()) / (2 * n * count)
    width = np.pi * max(g - 1.0 / max(g, 1.0), 0.0) / (2 * n)       # frequency spacing times correlation time
    fall = 1.0 + width**2 * (count + 1) * (2 * count + 1) / 6
    return CosineError(spectrum * fall / n, count)


def mean_skewness(z: np.ndarray, g: float) -> float:
    """Skewness of the mean of z (n,), from block means about one statistical inefficiency g long.

    Shrunk towards 0 by what m block means of a Gaussian show by chance (variance 6 / m), so that symmetric data keep
    a symmetric interval.
    """
    length = 1 << max(0, math.ceil(math.log2(max(g, 1.0))))
    count = len(z) // length
    if count < 8:
        return 0.0
    means = z[len(z) - count * length:].reshape(count, length).mean(axis=1)
    means = means - means.mean()
    second = float(means @ means) / count
    if not second > 0.0:
        return 0.0
    skewness = float((means**3).mean()) / second**1.5
    kept = max(0.0, 1.0 - 6.0 / count / skewness**2) if skewness else 0.0
    return kept * skewness / math.sqrt(count)


def skewed_quantiles(t: float, skewness: float) -> tuple[float, float]:
    """How many standard errors below and above the mean the interval reaches, (low, high), for a quantile t.

    Hall's cubic transformation T + s T²/3 + s² T³/27 + s/6 takes the skewness s of the mean out of the studentised
    mean T (J. R. Stat. Soc. B 54, 221, 1992); what is left of it, of order s², widens both sides.
    """
    if skewness == 0.0:
        return t, t
    s = math.copysign(min(abs(skewness), MOST_SKEWED), skewness)
    wide = t * (1.0 + WIDEN * s * s)
    ends = [3.0 / s * (float(np.cbrt(1.0 + s * (q - s / 6.0))) - 1.0) for q in (wide, -wide)]
    return ends[0], -ends[1]
