"""Times and statistical weights of snapshots: what fits them, weights from logarithms and from steps of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array, check_finite_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

UNEVEN = 2.0
"""Factor between the largest and the least step of time above which it is told that snapshots are counted."""


def chosen_weights(weights: ArrayLike | None, log_weights: ArrayLike | None, n: int) -> np.ndarray | None:
    """The weights of n snapshots, from one of two that may be given: themselves, or their natural logarithms.

    Logarithms of any range and offset: the largest weight is 1. Raises InputError where both are given or one does not fit,
    StatisticsError where every log-weight is -inf.
    """
    if log_weights is None:
        return None if weights is None else check_weights(weights, n)
    if weights is not None:
        raise InputError("pass either weights= or log_weights=, not both")
    return weights_from_logs(log_weights, n)


def weights_from_logs(log_weights: ArrayLike, n: int) -> np.ndarray:
    """exp(log_weights) over the largest, (n,): -inf is a weight of zero."""
    logs = as_array(log_weights, "log_weights", kinds="biuf")
    if logs.shape != (n,):
        raise InputError(f"log_weights are one number a snapshot, shape ({n},); got shape {logs.shape}")
    logs = logs.astype(np.float64)
    bad = np.isnan(logs) | (logs == np.inf)
    if bad.any():
        k = int(np.argmax(bad))
        raise InputError(f"log_weights must be below infinity (-inf is a weight of zero); number {k} is {logs[k]}")
    if n and logs.max() == -np.inf:
        raise StatisticsError(f"all {n} log_weights are -inf: no snapshot is left to average over")
    return np.exp(logs - logs.max(initial=-np.inf)) if n else logs


def check_weights(weights: ArrayLike, n: int) -> np.ndarray:
    """Statistical weights of n snapshots as float64, or an InputError that says what is wrong with them."""
    given = as_array(weights, "weights", kinds="biuf")
    if given.shape != (n,):
        raise InputError(f"weights are one number a snapshot, shape ({n},); got shape {given.shape}")
    checked = given.astype(np.float64)
    check_finite_weights(checked)
    return checked


def check_times(times: ArrayLike, n: int) -> np.ndarray:
    """Times of n snapshots as float64, rising."""
    checked = as_array(times, "times", kinds="biuf", dtype=np.float64)
    if checked.shape != (n,):
        raise InputError(f"times are one number a snapshot, shape ({n},); got shape {checked.shape}")
    if not np.isfinite(checked).all():
        raise InputError("times must be finite")
    if n > 1:
        back = np.diff(checked) < 0
        if back.any():
            k = int(np.argmax(back))
            raise InputError(f"times must not run backwards; time {k + 1} is {checked[k + 1]:g} after {checked[k]:g}. "
                             "Sort the snapshots, or pass independent runs as replicas")
    return checked


def uneven_steps(times: np.ndarray | None) -> str:
    """In words, that a mean over snapshots is none over time; "" where steps of time are alike, or not known."""
    steps = np.diff(times) if times is not None else np.empty(0)
    steps = steps[steps > 0]
    if len(steps) < 2 or steps.max() <= UNEVEN * steps.min():
        return ""
    return (f"steps of time differ by a factor {steps.max() / steps.min():.3g}, and each snapshot counts alike: "
            'weights="time" gives the mean over time')


def time_weights(times: ArrayLike | None) -> np.ndarray:
    """The time that each snapshot stands for, (n,): half the steps beside it, as in the trapezoidal rule, over their mean.

    Raises InputError where times are not known or do not rise.
    """
    if times is None:
        raise InputError('weights="time" needs times, and these snapshots have none; say them, or pass weights')
    t = as_array(times, "times")
    t = check_times(t, len(t))
    if len(t) < 2 or t[-1] == t[0]:
        raise InputError('weights="time" needs times that rise; all of these are the same')
    steps = np.diff(t)
    weights = np.concatenate([[0.0], steps]) + np.concatenate([steps, [0.0]])
    return weights / weights.mean()
