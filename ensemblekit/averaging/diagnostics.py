"""Do several runs sample the same distribution? Rank-normalised split R-hat, effective sample sizes, MCSE.

All after Vehtari, Gelman, Simpson, Carpenter & Bürkner, Bayesian Analysis 16, 667 (2021). Runs are the rows of an
array (m, n) of equal length.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.scaling import ldexp, scaled

MIN_DRAWS = 4


def rhat(runs: Any, method: Literal["rank", "split"] = "rank") -> float:
    """Potential scale reduction: 1 where all halves of all runs look alike; distrust above 1.01.

    "rank" is the larger of R-hat of the rank-normalised values (place) and of their distances from the median
    (spread), so that heavy tails and runs that differ only in width are seen; "split" is the classic one of the values.
    A constant run beside moving ones gives what the formula gives; all values equal give NaN.

    Raises:
        InputError: not (m, n) finite real numbers.
        StatisticsError: fewer than 4 snapshots a run.
    """
    x = _split(_checked(runs)[0])
    if method == "split":
        return _rhat(x)
    if method == "rank":
        return max(_rhat(_rank_normalised(x)), _rhat(_rank_normalised(abs(x - np.median(x)))))
    raise InputError(f'method is "rank" or "split"; got {method!r}')


def ess(runs: Any, kind: Literal["bulk", "tail", "mean"] = "bulk") -> float:
    """Effective sample size of all runs together, between-run disagreement included.

    "bulk" of the rank-normalised values, "tail" the smaller one of the 5 % and 95 % quantiles, "mean" of the values as
    they are, for the error of the mean. All values equal give the number of snapshots. Errors as :func:`rhat`.
    """
    x, _ = _checked(runs)
    if kind == "bulk":
        return _ess(_rank_normalised(_split(x)))
    if kind == "mean":
        return _ess(_split(x))
    if kind == "tail":
        return min(_ess(_split((x <= np.quantile(x, p)).astype(np.float64))) for p in (0.05, 0.95))
    raise InputError(f'kind is "bulk", "tail" or "mean"; got {kind!r}')


def mcse(runs: Any) -> float:
    """Standard error of the mean over all runs, sd / sqrt(ess "mean"). Errors as :func:`rhat`."""
    x, e = _checked(runs)
    return ldexp(float(x.std(ddof=1) / np.sqrt(ess(x, "mean"))), e)


def single_run_ess(values: np.ndarray) -> float:
    """Effective sample size of one run (n,), not split: n over its statistical inefficiency (Geyer, monotone)."""
    return _ess(scaled(values)[0][None])


def _checked(runs: Any) -> tuple[np.ndarray, int]:
    """The runs over a power of two, and its exponent."""
    x = as_array(runs, "runs", named_axes=True)
    if x.dtype.kind not in "biuf" or x.ndim != 2 or x.shape[0] == 0:
        raise InputError(f"runs are real numbers, shape (m, n): m runs of n snapshots; got {x.dtype} {x.shape}")
    if x.shape[1] < MIN_DRAWS:
        raise StatisticsError(f"{x.shape[1]} snapshots a run; two halves of two need at least {MIN_DRAWS}")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        run, at = np.argwhere(~np.isfinite(x))[0]
        raise InputError(f"snapshot {at} of run {run} is {x[run, at]}; leave out or mend what is not finite")
    return scaled(x)


def _split(x: np.ndarray) -> np.ndarray:
    """The halves of every run as runs of their own; the middle snapshot of an odd length is left out."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _rank_normalised(x: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks over all runs, ties at their average rank (Blom's 3/8 offset)."""
    from scipy.special import ndtri

    _, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return ndtri((ranks - 0.375) / (x.size + 0.25))[where.reshape(x.shape)]


def _rhat(x: np.ndarray) -> float:
    n = x.shape[1]
    within = x.var(axis=1, ddof=1).mean()
    between = x.mean(axis=1).var(ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.sqrt((n - 1) / n + between / within))


def _ess(x: np.ndarray) -> float:
    m, n = x.shape
    if np.ptp(x) <= np.finfo(np.float64).eps * abs(x).max():
        return float(x.size)
    covariance = _autocovariance(x).mean(axis=0)
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + (x.mean(axis=1).var(ddof=1) if m > 1 else 0.0)
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    # Geyer's initial positive, then monotone sequence of the pair sums ρ(2k) + ρ(2k+1)
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(axis=1)
    pairs = pairs[: max((n - 3) // 2, 1)]       # the last lags hold too few products to be trusted
    last = int(np.argmax(pairs < 0)) if (pairs < 0).any() else len(pairs)
    last = max(last, 1)
    sums = np.minimum.accumulate(pairs[:last])
    # the lone even term after the last pair lowers the variance for antithetic runs (Vehtari et al., section 3.2)
    lone = rho[2 * last] if 2 * last < n else 0.0
    tau = -1 + 2 * sums.sum() + max(lone, 0.0)
    return float(x.size / max(tau, 1 / np.log10(x.size)))


def _autocovariance(x: np.ndarray) -> np.ndarray:
    """Biased (1/n) autocovariance of every row at all lags."""
    from scipy.fft import irfft, next_fast_len, rfft

    n = x.shape[1]
    size = next_fast_len(2 * n - 1, real=True)
    power = abs(rfft(x - x.mean(axis=1, keepdims=True), size, axis=1)) ** 2
    return irfft(power, size, axis=1)[:, :n] / n
