"""Averages of angles: the direction of the mean vector, with an error that knows of correlation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.equilibration import Equilibrate
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.pooling import doubt_of_runs, near_by_periods, pooled
from ensemblekit.averaging.scalar_mean import scalar_estimate
from ensemblekit.averaging.seams import NO_DIRECTION
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.source_clock import check_times, chosen_weights, uneven_steps

SCATTERED = 3.0
"""A mean vector shorter than this many of its standard errors has no direction to speak of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CircularResult:
    """Angles of snapshots, averaged on the circle."""

    mean: Estimate
    """Direction of the mean vector, within half a period of zero; its `series` are the angles as they came."""
    resultant: Estimate
    """Length R of the mean vector: 1 for a fixed angle, 0 for one spread evenly (Mardia & Jupp 2000)."""
    spread: float
    """Circular standard deviation sqrt(-2 ln R), in the unit of the angles; infinite where R is 0."""


def circular_average(angles: ArrayLike, *, period: float = 360.0, weights: ArrayLike | None = None,
                     log_weights: ArrayLike | None = None, times: ArrayLike | None = None, equilibration: Equilibrate = "auto",
                     confidence: float = 0.95, unit: str = "degree", time_unit: str = "", ordered: bool = True
                     ) -> CircularResult:
    """The mean of angles (n,) that come round after `period`, with its error.

    179 and -179 degrees average to 180, not to 0. The error of the direction is that of the mean of sin(θ - mean) / R
    (delta method), found as for any series: by cosine components, checked against the other estimators. Where the mean
    vector is too short to have a direction the estimate refuses (`converged` False).

    Arguments:
        angles: in `unit`, any branch; times (n,) and weights (n,), or the logarithms of these, go with them.
        equilibration, confidence: as for ``average``.
        ordered: False where the angles are independent, in no order in time.

    Raises InputError for a period that is not above 0; else as ``average``.
    """
    if not (isinstance(period, int | float) and math.isfinite(period) and period > 0):
        raise InputError(f"period is the turn after which angles repeat, 360 for degrees; got {period!r}")
    x = as_array(angles, "angles", kinds="biuf", dtype=np.float64)
    turn = 2 * math.pi / period
    w = chosen_weights(weights, log_weights, len(x))
    facts: Mapping[str, Any] = {"equilibration": equilibration, "confidence": confidence}

    def estimate(values: np.ndarray, start: Equilibrate, unit: str) -> Estimate:
        return scalar_estimate(values, w, None if times is None else check_times(times, len(x)), start,
                               facts["confidence"], unit, time_unit=time_unit, ordered=ordered)

    direction, length = _vector(x * turn, w)
    linearized = estimate(_influence(x * turn, direction, length) / turn + np.nan_to_num(direction) / turn, equilibration, unit)
    start = linearized.n_discarded
    if start:           # about the direction of what is kept
        direction, length = _vector(x[start:] * turn, None if w is None else w[start:])
        linearized = estimate(_influence(x * turn, direction, length) / turn + np.nan_to_num(direction) / turn, start, unit)
    resultant = estimate(np.cos(x * turn - direction), start, "")
    resultant = replace(resultant, series=None, times=None)
    verdict, converged = linearized.verdict, linearized.converged
    if w is None and times is not None:
        verdict = "; ".join(filter(None, [verdict, uneven_steps(check_times(times, len(x)))]))
    error = resultant.stderr
    if math.isfinite(error) and not length > SCATTERED * max(error, linearized.stderr * turn * length):
        converged = False
        verdict = "; ".join(filter(None, [f"{NO_DIRECTION}: their mean vector is {length:.2g} long, "
                                          f"with an error of {max(error, linearized.stderr * turn * length):.2g}", verdict]))
    mean = replace(linearized, series=x, converged=converged, verdict=verdict)
    spread = math.sqrt(-2 * math.log(length)) / turn if 0 < length <= 1 else 0.0 if length > 1 else math.inf
    return CircularResult(mean=mean, resultant=resultant, spread=spread)


def circular_runs(runs: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]], branch: tuple[float, float],
                  equilibration: Equilibrate, confidence: float, unit: str, time_unit: str, *,
                  ordered: Sequence[bool]) -> Estimate:
    """The circular mean of one run or several, (angles, times, weights) each, within the branch (low, high).

    ordered: of each run, whether its angles follow each other in time.

    Comes with `resultant`, the length of the mean vector.
    """
    low, high = branch
    period, middle = high - low, (low + high) / 2
    averages = [circular_average(x, period=period, weights=w, times=times, equilibration=equilibration, confidence=confidence,
                                 unit=unit, time_unit=time_unit if times is not None else "", ordered=in_order)
                for (x, times, w), in_order in zip(runs, ordered, strict=True)]
    means = [near_by_periods(one.mean, period, middle) for one in averages]
    if len(averages) == 1:
        return replace(means[0], derived={"resultant": averages[0].resultant})
    means = [near_by_periods(mean, period, means[0].mean) for mean in means]
    answer = near_by_periods(doubt_of_runs(pooled(means, confidence), means), period, middle)
    return replace(answer, derived={"resultant": pooled([one.resultant for one in averages], confidence)})


def _vector(x: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    """Direction in radians and length of the mean vector."""
    c, s = np.average(np.cos(x), weights=weights), np.average(np.sin(x), weights=weights)
    return math.atan2(s, c), math.hypot(s, c)


def _influence(x: np.ndarray, direction: float, length: float) -> np.ndarray:
    """What each angle adds to the direction, to first order; its mean is zero."""
    if math.isnan(length):      # some are no numbers: those are said, not all
        return np.where(np.isfinite(x), 0.0, np.nan)
    if not length > 0:
        return np.where(np.isfinite(x), np.nan, x)
    return np.sin(x - direction) / length
