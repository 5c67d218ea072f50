"""Correlation in time: autocovariance, statistical inefficiency, correlation time, and the error of a mean from them.

The *statistical inefficiency* g = 1 + 2 Σ C(t) is how many correlated snapshots are worth one independent one: the
variance of the mean of n of them is g σ² / n. The *integrated correlation time* is tau = g / 2 = 1/2 + Σ C(t)
(Sokal), in snapshots or in the unit of time. emcee calls our g its ``tau``; pymbar's g is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, representable, scaled

Method = Literal["geyer-convex", "geyer-monotone", "geyer-positive", "sokal", "chodera"]
METHODS: tuple[Method, ...] = ("geyer-convex", "geyer-monotone", "geyer-positive", "sokal", "chodera")
FULL = 1 << 13          # below this length all lags are found at once
FIRST_LAGS = 1 << 10    # above it, this many first, and eight times as many while the window is not closed


class ShortSeriesError(StatisticsError):
    """A series too short for its correlation time; carries the estimate ``tau`` (snapshots) and ``n``."""

    def __init__(self, tau: float, n: int, factor: float):
        self.tau, self.n, self.factor = tau, n, factor
        super().__init__(f"the series of {n} snapshots is shorter than {factor:g} times its statistical inefficiency, "
                         f"estimated as {2 * tau:.4g} (tau = {tau:.4g} snapshots): not to be trusted. "
                         'Sample longer, or take method="geyer-convex", which needs no such length')

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tau, self.n, self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelationTime(Result):
    """How correlated the snapshots of one series are, and what that makes of the error of their mean."""

    g: float
    """Statistical inefficiency 1 + 2 Σ C(t); below 1 where neighbours repel each other."""
    tau: float
    """Integrated correlation time g / 2, in `unit` (snapshots where no spacing was given)."""
    window: int
    """Lags summed, in snapshots."""
    stderr: float
    """Standard error of the mean, sqrt(g γ0 / n)."""
    n: int
    """Snapshots in the series."""
    n_eff: float
    """n / g: independent snapshots of the same worth."""
    variance: float
    """γ0, divided by n. Where the square of the values is beyond float64 it is infinity, or 0, and n stderr² / g is it."""
    method: str
    """How it was found."""
    unit: str
    """Of tau; "" for snapshots."""
    anticorrelated: bool
    """g < 1: not a reversible process (velocities, underdamped motion), for which Geyer's sequences are no bound."""


def autocovariance(x: Any, lags: int | None = None) -> np.ndarray:
    """Biased autocovariance γ(t) = Σ (x_i - x̄)(x_{i+t} - x̄) / n along axis 0, by FFT.

    Arguments:
        x: (n,) or (n, *item), real and finite.
        lags: how many lags, from 0 on; None for all n. Few lags of a long series are found in sections that stay in
            the cache.

    Returns:
        (lags,) or (lags, *item), float64.

    Raises:
        StatisticsError: a square of the values is beyond float64 (``autocorrelation`` has no such limit).
    """
    from scipy.fft import irfft, next_fast_len, rfft

    x, e = scaled(_series(x, flat=False), 0)
    if np.any(e):
        return representable(autocovariance(x, lags), 2 * e, "the autocovariance")
    n = len(x)
    lags = n if lags is None else min(int(lags), n)
    if lags < 1:
        raise InputError(f"lags is a whole number above 0; got {lags}")
    y = x - x.mean(axis=0)
    if n <= FULL or x.ndim > 1 or 16 * lags > n:
        size = next_fast_len(n + lags - 1, real=True)
        power = rfft(y, size, axis=0)
        return irfft(power.real**2 + power.imag**2, size, axis=0)[:lags] / n
    size = next_fast_len(max(8 * lags, FULL), real=True)
    step = size - lags + 1
    count = -(-n // step)
    padded = np.zeros((count - 1) * step + size)
    padded[:n] = y
    total = np.zeros(size // 2 + 1, dtype=np.complex128)
    for k in range(count):
        part = padded[k * step:k * step + size]
        total += rfft(part[:step], size).conj() * rfft(part)
    return irfft(total, size)[:lags] / n


def autocorrelation(x: Any, lags: int | None = None) -> np.ndarray:
    """Autocovariance over its value at lag 0; arguments as :func:`autocovariance`.

    Raises:
        StatisticsError: the series (or an element of it) is constant, so that there is nothing to divide by.
    """
    x = scaled(_series(x, flat=False), 0)[0]
    gamma = autocovariance(x, lags)
    if np.any(gamma[0] <= _rounding(x)):
        raise StatisticsError("a constant series has no autocorrelation; leave out the elements that do not change")
    return gamma / gamma[0]


def statistical_inefficiency(x: Any, method: Method = "geyer-convex", *, dt: float = 1.0, unit: str = "",
                             c: float = 5.0, tolerance: float = 50.0) -> CorrelationTime:
    """Statistical inefficiency, correlation time and standard error of the mean of one series.

    Arguments:
        x: (n,), real, finite, n >= 4.
        method: "geyer-convex" (default), "geyer-monotone", "geyer-positive": Geyer's initial sequences (Stat. Sci. 7,
            473, 1992), to the digit those of R's mcmc::initseq; valid for reversible processes.
            "sokal": the smallest window M >= c g(M), emcee's rule; refuses where n < tolerance * g.
            "chodera": pymbar's, lags up to the first C <= 0 beyond lag 3, weighted by 1 - t/n, never below 1.
        dt, unit: time between snapshots, and its unit, for tau.
        c, tolerance: of "sokal"; tolerance 0 never refuses.

    Raises:
        ShortSeriesError: "sokal" with too short a series; the error carries tau.
        StatisticsError: fewer than 4 snapshots, or a constant series.
        InputError: not numbers, complex, NaN or infinity, not one-dimensional, an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    if not (np.isfinite(dt) and dt > 0):
        raise InputError(f"dt is a time above 0 between snapshots; got {dt!r}")
    x, e = scaled(_series(x))
    if len(x) < 4:
        raise StatisticsError(f"correlation needs at least 4 snapshots; got {len(x)}")
    gamma, (g, window) = closed(x, lambda gamma, n: _window(gamma, n, method, c))
    if method == "sokal" and len(x) < tolerance * g:
        raise ShortSeriesError(g / 2, len(x), tolerance)
    answer = correlation_time(g, window, len(x), float(gamma[0]), method, dt, unit=unit)
    return answer if not e else replace(answer, stderr=ldexp(answer.stderr, e), variance=ldexp(answer.variance, 2 * e))


def integrated_time(x: ArrayLike, method: Method = "sokal", *, dt: float = 1.0, c: float = 5.0,
                    tolerance: float = 50.0) -> float:
    """tau = 1/2 + Σ C(t) in units of dt; arguments and errors of :func:`statistical_inefficiency`."""
    return statistical_inefficiency(x, method, dt=dt, c=c, tolerance=tolerance).tau


def correlation_time(g: float, window: int, n: int, variance: float, method: str, dt: float,
                     *, unit: str) -> CorrelationTime:
    """The result for a g found; a g that is not positive (noise in an anticorrelated series) becomes 1/n."""
    floored = max(g, 1.0 / n)
    return CorrelationTime(g=floored, tau=floored / 2 * dt, window=window,
                           stderr=float(np.sqrt(floored * variance / n)), n=n, n_eff=n / floored, variance=variance,
                           method=method, unit=unit, anticorrelated=g < 1.0)


def closed(x: np.ndarray, find: Callable[[np.ndarray, int], tuple[float, int] | None]) -> tuple[np.ndarray, Any]:
    """The autocovariance of x with as many lags as `find` needs to close its window, and what it found."""
    n = len(x)
    lags = n if n <= FULL else FIRST_LAGS
    while True:
        gamma = autocovariance(x, lags)
        if not gamma[0] > _rounding(x):
            raise StatisticsError("the series is constant: it has no correlation time")
        window = find(gamma, n)
        if window is not None:
            return gamma, window
        lags = min(n, 8 * lags)


def _window(gamma: np.ndarray, n: int, method: str, c: float = 5.0) -> tuple[float, int] | None:
    """(g, lags summed), or None where more lags are needed."""
    if method == "sokal":
        return sokal_window(gamma, n, c)
    if method == "chodera":
        return chodera_window(gamma, n)
    from ensemblekit.averaging.kernels_series import geyer_sums

    positive, monotone, convex, pairs, ended = geyer_sums(gamma)
    if not ended and len(gamma) < n:
        return None
    total = {"geyer-positive": positive, "geyer-monotone": monotone, "geyer-convex": convex}[method]
    return total / gamma[0], 2 * pairs


def sokal_window(gamma: np.ndarray, n: int, c: float = 5.0) -> tuple[float, int] | None:
    """The smallest window M with M >= c g(M) (Sokal 1997, as in emcee)."""
    g = 2.0 * np.cumsum(gamma) / gamma[0] - 1.0
    enough = np.arange(len(g)) >= c * g
    if not enough.any():
        return (float(g[-1]), len(g) - 1) if len(gamma) == n else None
    window = int(np.argmax(enough))
    return float(g[window]), window


def chodera_window(gamma: np.ndarray, n: int) -> tuple[float, int] | None:
    """Lags up to the first C <= 0 beyond lag 3, each weighted by 1 - t/n, and g at least 1 (pymbar)."""
    lag = np.arange(1, min(len(gamma), n - 1))
    weighted = gamma[lag] / gamma[0]        # C (1 - t/n) with the unbiased C is the biased one
    stop = (weighted <= 0) & (lag > 3)
    if not stop.any():
        return None if len(gamma) < n else (max(1.0, 1.0 + 2.0 * float(weighted.sum())), len(lag))
    window = int(np.argmax(stop))
    return max(1.0, 1.0 + 2.0 * float(weighted[:window].sum())), window


def _rounding(x: np.ndarray) -> np.ndarray:
    """The variance that rounding alone gives a series of this size."""
    return (8 * np.finfo(np.float64).eps * np.abs(x).max(axis=0)) ** 2


def _series(x: Any, flat: bool = True) -> np.ndarray:
    """A real, finite time series as float64."""
    x = as_array(x, "the series", kinds="biuf")
    if x.ndim == 0 or (flat and x.ndim != 1):
        raise InputError(f"a time series has one number a snapshot, shape (n,); got shape {x.shape}")
    if len(x) == 0:
        raise StatisticsError("the series is empty")
    x = x.astype(np.float64)
    bad = ~np.isfinite(x)
    if bad.any():
        k = int(np.argmax(bad.reshape(len(x), -1).any(axis=1)))
        raise InputError(f"snapshot {k} of the series is not finite; leave it out, or find out where it comes from")
    return x
