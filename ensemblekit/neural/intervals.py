"""95 % intervals of scores over independent clusters, also where they are few, uneven, or nearly all alike.

A share that is near 0 or 1 has no symmetric interval: Clopper & Pearson 1934 for one, Bonett & Price 2012 for the difference
of two on the same items. Clusters of several rows count as the number of independent rows that their scatter leaves (Korn &
Graubard 1998). Few clusters are widened by Student's t with the degrees of freedom that their sizes leave.
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.975
NORMAL = 1.959963984540054
"""Its quantile of the normal distribution."""


def degrees_of_freedom(sizes: np.ndarray) -> float:
    """Equal clusters that would weigh as much as these, less one; at least a half, where one cluster holds nearly all."""
    share = sizes / sizes.sum()
    return max(float(1 / (share @ share)) - 1, 0.5)


def student(sizes: np.ndarray) -> float:
    """The quantile of Student's t for a mean over clusters of these sizes (n,)."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom(sizes), LEVEL))


def standard_error(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Of sum over sum of clusters, by leaving out each of them: for clusters of one size the usual error of a mean."""
    n, total = len(sums), sizes.sum()
    value = sums.sum() / total
    rest = total - sizes
    if (rest <= 0).any():       # one cluster holds all there is
        return float("inf")
    moved = (sums - value * sizes) / rest
    largest = float(abs(moved).max())       # squares of what is left are numbers, whatever the unit
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.sqrt((n - 1) / n * np.sum((moved / largest) ** 2)))


def share_interval(value: float, stderr: float, sizes: np.ndarray) -> tuple[float, float]:
    """Of the share `value` of rows, in clusters of `sizes` rows (n,) with this standard error."""
    from scipy.special import betaincinv

    n = _independent(value * (1 - value), stderr, sizes)
    if not _single(sizes) and 0 < value < 1:
        n *= (NORMAL / student(sizes)) ** 2
    k = value * n
    low = float(betaincinv(k, n - k + 1, 1 - LEVEL)) if value > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, LEVEL)) if value < 1 else 1.0
    return min(low, value), max(high, value)


def paired_share_interval(gained: float, lost: float, stderr: float, sizes: np.ndarray) -> tuple[float, float]:
    """Of the difference of two shares of the same rows: `gained` minus `lost`, the shares of rows on which the two differ."""
    value = gained - lost
    n = _independent(gained + lost - value**2, stderr, sizes)
    first, second = ((share * n + 1) / (n + 2) for share in (gained, lost))
    middle = first - second
    half = student(sizes) * float(np.sqrt((first + second - middle**2) / (n + 2)))
    return max(min(middle - half, value), -1.0), min(max(middle + half, value), 1.0)


def widening(sizes: np.ndarray) -> float:
    """What deviations of resampled clusters are multiplied by: quantiles of Student's t for those of a normal distribution, and
    n/(n - 1), by which resampled clusters scatter less than ones left out do (about twice what their variance lacks)."""
    n = degrees_of_freedom(sizes) + 1
    return n / (n - 1) * student(sizes) / NORMAL


def _single(sizes: np.ndarray) -> bool:
    return bool((sizes == 1).all())


def _independent(variance: float, stderr: float, sizes: np.ndarray) -> float:
    """Independent rows that would scatter as the clusters do; where none scatter, as many as there are clusters."""
    if _single(sizes):
        return float(len(sizes))
    if variance <= 0 or not np.isfinite(stderr):
        return degrees_of_freedom(sizes) + 1
    return float(min(variance / stderr**2, sizes.sum())) if stderr > 0 else float(sizes.sum())
