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
"""Components a independent snapshot: widening the band lowers the scatter and raises the bias."""
FEWEST = 4


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


def skew_allowance(z: np.ndarray, g: float, confidence: float) -> float:
    """How much wider an interval by Student's t must be for the skewness of the mean of z (n,); 1 or more.

    The Edgeworth expansion of the studentised mean (Hall, The Bootstrap and Edgeworth Expansion, 1992, section 2.6)
    loses 2 φ(q) q s (q⁴ + 2 q² - 3) / (18 q²)... of coverage for a skewness whose square is s.
    """
    length = 1 << max(0, math.ceil(math.log2(max(g, 1.0))))
    count = len(z) // length
    if count < 8:
        return 1.0
    means = z[len(z) - count * length:].reshape(count, length).mean(axis=1)
    means = means - means.mean()
    second = float(means @ means) / count
    if not second > 0.0:
        return 1.0
    skewness = float((means**3).mean()) / second**1.5
    squared = max(0.0, skewness**2 - 6.0 / count) / count
    return 1.0 + squared
