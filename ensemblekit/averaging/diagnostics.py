"""Do several runs sample the same distribution? Rank-normalised split R-hat, effective sample sizes, MCSE.

All after Vehtari, Gelman, Simpson, Carpenter & Bürkner, Bayesian Analysis 16, 667 (2021). Runs are the rows of an
array (m, n) of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ensemblekit.averaging.guard import variance_of_mean
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.scaling import ldexp, scaled

MIN_DRAWS = 4
DRAWS = 199
"""Exchanges of blocks from which chance is told."""
BLOCK = 3.0
"""Statistical inefficiencies that a block lasts which is exchanged between runs."""
MOST_BLOCKS, MOST_A_RUN = 4096, 32
"""Of them, of all runs together and of one."""


def rhat(runs: object, method: Literal["rank", "split"] = "rank") -> float:
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


def rhat_limit(runs: object, confidence: float = 0.95) -> float:
    """What rank R-hat stays below with this confidence where all runs are equal but short; errors as :func:`rhat`.

    R-hat of the same snapshots with their blocks exchanged between the runs (:func:`between_by_chance`), so that skewed and
    discrete values, and few visits to a rare state, are allowed for.
    """
    x = _split(_checked(runs)[0])
    m, n = x.shape
    rhats = []
    for values in (_rank_normalised(x), _rank_normalised(abs(x - np.median(x)))):
        if np.ptp(values) == 0:
            continue
        whole = np.concatenate([values[:m // 2], values[m // 2:]], axis=1)
        _, between = between_by_chance(list(values), inefficiency_within(list(whole)), DRAWS)
        within = values.var(axis=1, ddof=1).mean()
        with np.errstate(invalid="ignore", divide="ignore"):
            rhats.append(np.sqrt((n - 1) / n + between / within / n / (m - 1)))
    return float(np.quantile(np.max(rhats, axis=0), confidence, method="higher")) if rhats else 1.0


def between_by_chance(runs: Sequence[np.ndarray], g: float, draws: int) -> tuple[float, np.ndarray]:
    """Σ n (mean of a run - mean of all)² of runs (n,), and what it would be were they equal, (draws,).

    Blocks of some three statistical inefficiencies, two a run or more, are exchanged at random between all runs; what the
    correlation of neighbouring blocks adds to the variance of the mean of a run is put back as that of an exponential one.
    """
    lengths = np.array([len(x) for x in runs])
    length = max(1, int(min(max(BLOCK * g, lengths.sum() / MOST_BLOCKS, lengths.max() / MOST_A_RUN), lengths.min() / 2)))
    counts = lengths // length
    filled = [x[len(x) - k * length:].reshape(k, length) for x, k in zip(runs, counts, strict=True)]      # the end of each run
    blocks = np.concatenate([x.mean(axis=1) for x in filled])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    middle = blocks.mean()

    def between(blocks: np.ndarray) -> float:
        return length * float(((np.add.reduceat(blocks - middle, starts)) ** 2 / counts).sum())

    rng = np.random.default_rng(7)
    joined = variance_of_mean(2 * float(lengths.mean()) / g) / variance_of_mean(2 * length / g)
    return between(blocks), joined * np.array([between(rng.permutation(blocks)) for _ in range(draws)])


def inefficiency_within(runs: Sequence[np.ndarray]) -> float:
    """Statistical inefficiency of runs of one process about their own means (Geyer, monotone); 1 at least."""
    from ensemblekit.averaging.kernels_series import geyer_sums

    n = min(len(x) for x in runs)
    covariance = _autocovariance(np.array([x[len(x) - n:] for x in runs])).mean(axis=0)
    return max(float(geyer_sums(covariance)[1] / covariance[0]), 1.0) if covariance[0] > 0 else 1.0


def ess(runs: object, kind: Literal["bulk", "tail", "mean"] = "bulk") -> float:
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


def mcse(runs: object) -> float:
    """Standard error of the mean over all runs, sd / sqrt(ess "mean"). Errors as :func:`rhat`."""
    x, e = _checked(runs)
    return ldexp(float(x.std(ddof=1) / np.sqrt(ess(x, "mean"))), e)


def single_run_ess(values: np.ndarray) -> float:
    """Effective sample size of one run (n,), not split: n over its statistical inefficiency (Geyer, monotone)."""
    return _ess(scaled(values)[0][None])


def _checked(runs: object) -> tuple[np.ndarray, int]:
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
