"""The mean of a series of numbers, its standard error and interval, and what speaks against them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.averaging.blocking import BlockError, blocking
from ensemblekit.averaging.correlation import chodera_window, closed, sokal_window
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.equilibration import run_doubts, significant_start, start_after, unless_carried
from ensemblekit.averaging.estimate import DISAGREE, Estimate, over_power_of_two, quantile
from ensemblekit.averaging.observed import check_real
from ensemblekit.averaging.spectral import MeanError, mean_error, skewed_quantiles
from ensemblekit.averaging.times import elapsed, spacing
from ensemblekit.averaging.weights import kish, residual, weighted_mean
from ensemblekit.errors import StatisticsError
from ensemblekit.scaling import scaled


def scalar_estimate(values: np.ndarray, weights: np.ndarray | None, times: np.ndarray | None, equilibration: Any,
                    confidence: float, unit: str, time_unit: str) -> Estimate:
    """The average of one series (n,); see :func:`average`."""
    check_real(values)
    x = values.astype(np.float64)
    n = len(x)
    if n == 0:
        raise StatisticsError("the source has no snapshots; there is nothing to average")
    small, e = scaled(x)
    if e:
        return over_power_of_two(scalar_estimate(small, weights, times, equilibration, confidence, unit, time_unit), e)
    weights = None if weights is None else scaled(weights)[0]
    series: dict[str, Any] = {"series": x, "times": times, "unit": unit,
                              "time_unit": time_unit if times is not None else ""}
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        with np.errstate(invalid="ignore"):
            mean = float(weighted_mean(x, weights))
        return unknown(mean, n, confidence,
                        f"{bad} of {n} snapshots are not finite (first: {int(np.argmax(~np.isfinite(x)))}); "
                        "leave them out, or find out where they come from", **series)
    start = start_after(equilibration, n, times, lambda: unless_carried(significant_start(residual(x, weights)), weights))
    y = x[start:]
    w = None if weights is None else weights[start:]
    mean = float(weighted_mean(y, w))
    dt = spacing(times)
    series |= {"n_discarded": start, "equilibration_time": elapsed(times, start)}
    if len(y) < 4:
        return unknown(mean, len(y), confidence, f"{len(y)} snapshots: an error needs at least 4", **series)
    if w is not None and w.sum() ** 2 < 2 * (w @ w):
        return unknown(mean, len(y), confidence, f"the weights rest on {w.sum() ** 2 / (w @ w):.2g} snapshots (Kish): "
                        "no error can be told", **series)
    z = residual(y, w)
    scale = float(np.abs(y).max())
    if float(np.ptp(z)) <= 16 * np.finfo(float).eps * scale * (1.0 if w is None else float(np.max(w) / w.mean())):
        return Estimate(mean=mean, stderr=0.0, interval=(mean, mean), confidence=confidence, n=len(y), n_eff=math.nan,
                        statistical_inefficiency=math.nan, correlation_time=math.nan, dof=math.inf, converged=False,
                        verdict="every snapshot is the same: a constant has no error that sampling could show",
                        estimators={"cosine": 0.0}, **series)
    estimators, error = _errors(z)
    stderr = estimators["cosine"]
    spread = float(z @ z) / (len(z) - 1)
    variance = spread if w is None else float(w @ (y - mean) ** 2 / w.sum()) * len(y) / (len(y) - 1)
    g = stderr**2 * len(y) / spread
    most, dof = kish(w, len(y)), error.dof
    n_eff = min(variance / stderr**2, most)
    root = math.sqrt(error.spectrum / len(y))
    below, above = (root * q for q in skewed_quantiles(float(quantile(confidence, dof)) * stderr / root, error.skewness))
    middle = float(np.median(list(estimators.values())))
    share = (len(y) - 1) / len(y)       # g and n_eff of the methods speak of the variance over n
    if n_eff < ENOUGH and 0 < share * variance < ENOUGH * middle**2:
        # Too short for any one method: the series is shorter than the components that cosines need. What is reported
        # (and refused) is then the middle of all methods, with the degrees of freedom of its own n_eff.
        stderr, g, n_eff = middle, middle**2 * len(y) / (share * spread), min(share * variance / middle**2, most)
        dof = max(n_eff - 1, 1.0)
        below = above = max(float(quantile(confidence, dof)) * stderr, below, above)
    doubts, converged = _doubts(n_eff, estimators)
    grounds = [*run_doubts(start, len(x), equilibration, weights, x)]
    grounds += error.doubts
    return Estimate(mean=mean, stderr=stderr, interval=(mean - below, mean + above),
                    confidence=confidence, n=len(y), n_eff=n_eff, statistical_inefficiency=g,
                    correlation_time=g / 2 * dt, dof=dof, converged=converged and not grounds,
                    verdict="; ".join([*grounds, *filter(None, [doubts])]), estimators=estimators, **series)


def _errors(z: np.ndarray) -> tuple[dict[str, float], MeanError]:
    """Standard error of the mean of z by each method, and all that the first says."""
    from ensemblekit.averaging.kernels_series import geyer_sums

    n = len(z)

    def find(gamma: np.ndarray, n: int) -> Any:
        *sums, _, ended = geyer_sums(gamma)
        sokal, chodera = sokal_window(gamma, n), chodera_window(gamma, n)
        if len(gamma) < n and (not ended or sokal is None or chodera is None):
            return None
        return sums, sokal, chodera

    gamma, (sums, sokal, chodera) = closed(z, find)
    _, monotone, convex = sums
    floor = gamma[0] / n
    error = mean_error(z, max(monotone / gamma[0], chodera[0]))
    block: BlockError = blocking(z).chosen()
    return {"cosine": error.stderr, "blocking": float(block.stderr),
            "geyer": math.sqrt(max(convex, floor) / n), "sokal": math.sqrt(max(sokal[0], 1 / n) * gamma[0] / n),
            "chodera": math.sqrt(chodera[0] * gamma[0] / n)}, error


def _doubts(n_eff: float, estimators: Mapping[str, float]) -> tuple[str, bool]:
    """What is to be said about a scalar estimate, and whether it is vouched for."""
    doubts = []
    converged = n_eff >= ENOUGH
    if not converged:
        doubts.append(f"only {n_eff:.2g} independent snapshots; an interval needs about {ENOUGH:g}, so sample longer")
    low, high = min(estimators, key=estimators.__getitem__), max(estimators, key=estimators.__getitem__)
    if estimators[high] > DISAGREE * estimators[low] > 0:
        ratio = estimators[high] / estimators[low]
        doubts.append(f"estimators disagree: {high} gives {ratio:.2g} times the error of {low}")
    return "; ".join(doubts), converged


def unknown(mean: Any, n: int, confidence: float, why: str, **facts: Any) -> Estimate:
    """A mean without an error."""
    none = math.nan if np.ndim(mean) == 0 else np.full(np.shape(mean), np.nan)
    return Estimate(mean=mean, stderr=none, interval=(none, none), confidence=confidence, n=n, n_eff=none,
                    statistical_inefficiency=none, correlation_time=none, dof=none, converged=False, verdict=why,
                    **facts)
