"""The mean of a series of numbers, its standard error and interval, and what speaks against them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.averaging.blocking import BlockError, blocking
from ensemblekit.averaging.correlation import chodera_window, closed, sokal_window
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.equilibration import Equilibrate, count_discarded, run_doubts, significant_start, unless_carried
from ensemblekit.averaging.estimate import DISAGREE, Estimate, over_power_of_two, quantile
from ensemblekit.averaging.independent import check_unordered, independent_mean
from ensemblekit.averaging.observed import check_real
from ensemblekit.averaging.spectral import MeanError, mean_error, skewed_quantiles
from ensemblekit.averaging.times import spacing, time_at
from ensemblekit.averaging.weights import kish, residual, weighted_mean
from ensemblekit.errors import StatisticsError
from ensemblekit.scaling import scaled


def scalar_estimate(values: np.ndarray, weights: np.ndarray | None, times: np.ndarray | None, equilibration: Equilibrate,
                    confidence: float, unit: str, *, time_unit: str, ordered: bool = True) -> Estimate:
    """The average of one series (n,); see :func:`average`. ordered: False where the snapshots are independent, in no order."""
    check_real(values)
    x = values.astype(np.float64)
    n = len(x)
    if n == 0:
        raise StatisticsError("the source has no snapshots; there is nothing to average")
    small, e = scaled(x)
    if e:
        estimate = scalar_estimate(small, weights, times, equilibration, confidence, unit, time_unit=time_unit, ordered=ordered)
        return over_power_of_two(estimate, e)
    weights = None if weights is None else scaled(weights)[0]
    facts: dict[str, Any] = {"series": x, "times": times, "unit": unit, "confidence": confidence,
                             "time_unit": time_unit if times is not None else ""}
    if not np.isfinite(x).all():
        bad = ~np.isfinite(x)
        with np.errstate(invalid="ignore"):
            mean = float(weighted_mean(x, weights))
        return Estimate.of(mean, refused=f"{int(bad.sum())} of {n} snapshots are not finite (first: {int(np.argmax(bad))}); "
                           "leave them out, or find out where they come from", n=n, **facts)
    if not ordered:
        check_unordered(equilibration)
        return independent_mean(x, weights, {**facts, "n": n})
    start = count_discarded(equilibration, n, times, lambda: unless_carried(significant_start(residual(x, weights)), weights))
    facts |= {"n": n - start, "n_discarded": start, "equilibration_time": time_at(times, start)}
    return _of_kept(x[start:], None if weights is None else weights[start:], spacing(times),
                    run_doubts(start, n, equilibration, weights, x), facts)


def _of_kept(y: np.ndarray, w: np.ndarray | None, dt: float, grounds: tuple[str, ...], facts: Mapping[str, Any]) -> Estimate:
    """The estimate of what is kept of a series; `grounds`: what speaks against the run."""
    n = len(y)
    mean = float(weighted_mean(y, w))
    if n < 4:
        return Estimate.of(mean, refused=f"{n} snapshots: an error needs at least 4", **facts)
    if w is not None and w.sum() ** 2 < 2 * (w @ w):
        return Estimate.of(mean, refused=f"the weights rest on {w.sum() ** 2 / (w @ w):.2g} snapshots (Kish): "
                           "no error can be told", **facts)
    z = residual(y, w)
    largest = float(np.abs(y).max())
    if float(np.ptp(z)) <= 16 * np.finfo(float).eps * largest * (1.0 if w is None else float(np.max(w) / w.mean())):
        return Estimate.of(mean, 0.0, math.inf, interval=(mean, mean), estimators={"cosine": 0.0}, doubts=[
            "every snapshot is the same: a constant has no error that sampling could show"], **facts)
    estimators, error = _errors(z)
    stderr = estimators["cosine"]
    spread = float(z @ z) / (n - 1)
    variance = spread if w is None else float(w @ (y - mean) ** 2 / w.sum()) * n / (n - 1)
    g = stderr**2 * n / spread
    most, dof = kish(w, n), error.dof
    n_eff = min(variance / stderr**2, most)
    confidence = facts["confidence"]
    root = math.sqrt(error.spectrum / n)
    below, above = (root * q for q in skewed_quantiles(float(quantile(confidence, dof)) * stderr / root, error.skewness))
    middle = float(np.median(list(estimators.values())))
    share = (n - 1) / n       # g and n_eff of the methods speak of the variance over n
    if n_eff < ENOUGH and 0 < share * variance < ENOUGH * middle**2:
        # Too short for any one method: the series is shorter than the components that cosines need. What is reported
        # (and refused) is then the middle of all methods, with the degrees of freedom of its own n_eff.
        stderr, g, n_eff = middle, middle**2 * n / (share * spread), min(share * variance / middle**2, most)
        dof = max(n_eff - 1, 1.0)
        below = above = max(float(quantile(confidence, dof)) * stderr, below, above)
    doubts, converged = _doubts(n_eff, estimators)
    grounds = (*grounds, *error.doubts)
    return Estimate.of(mean, stderr, dof, interval=(mean - below, mean + above), n_eff=n_eff, g=g, dt=dt,
                       vouched=converged and not grounds, doubts=[*grounds, doubts], estimators=estimators, **facts)


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
