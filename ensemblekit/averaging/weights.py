"""Statistical weights of snapshots: normalised from weights or log-weights of any range, and what they are worth."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.correlation import chodera_window, closed
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.scaling import scaled
from ensemblekit.source_clock import check_weights, weights_from_logs

LARGEST = 0.1
"""Share of all weight that one snapshot may carry."""


def normalised_weights(weights: Any = None, *, log_weights: Any = None) -> np.ndarray:
    """Weights that sum to one, shape (n,), from weights or from their natural logarithms.

    Arguments:
        weights: (n,), finite and not negative, on any scale (1e-300 and 1e300 alike); zero leaves a snapshot out.
        log_weights: (n,), on any scale and offset (-1e6 and 1e6 alike), as Boltzmann factors -E/kT are; -inf leaves
            a snapshot out. The largest is subtracted before the exponential (log-sum-exp), so nothing overflows.

    Raises:
        InputError: both or neither given, none at all, a wrong shape, NaN, infinity or a negative weight.
        StatisticsError: every weight is zero.
    """
    if (weights is None) == (log_weights is None):
        raise InputError("pass either weights or log_weights=, not both and not neither")
    if log_weights is not None:
        log_weights = as_array(log_weights, "log_weights", kinds="biuf")
        _check_vector("log_weights", log_weights)
        shares = weights_from_logs(log_weights, len(log_weights))
        return shares / shares.sum()
    weights = as_array(weights, "weights", kinds="biuf")
    _check_vector("weights", weights)
    weights = check_weights(weights, len(weights))
    largest = weights.max()
    if largest == 0:
        raise StatisticsError(f"all {len(weights)} weights are zero: no snapshot is left to average over")
    shares = weights / largest          # the sum of weights near 1e308 would overflow
    return shares / shares.sum()


def effective_samples(weights: ArrayLike | None = None, kind: Literal["kish", "entropy"] = "kish", *,
                      log_weights: ArrayLike | None = None) -> float:
    """How many equally weighted snapshots the weights are worth: n for equal weights, 1 for a single one above zero.

    "kish" is (Σw)²/Σw² (Kish 1965), what a variance sees; "entropy" is exp(-Σ p ln p) with p = w/Σw, the measure of
    maximum-entropy reweighting. Correlation in time comes on top of either (see ``average``).
    Arguments and errors are those of :func:`normalised_weights`.
    """
    shares = normalised_weights(weights, log_weights=log_weights)
    if kind == "kish":
        return float(1.0 / (shares**2).sum())
    if kind == "entropy":
        held = shares[shares > 0]
        return float(np.exp(-(held * np.log(held)).sum()))
    raise InputError(f'kind is "kish" or "entropy"; got {kind!r}')


def _check_vector(name: str, values: np.ndarray) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise InputError(f"{name} are one number a snapshot, shape (n,) with n above 0; got shape {values.shape}")


def rests_on_few(weights: np.ndarray | None, columns: np.ndarray) -> tuple[str, ...]:
    """Why the weights of a run cannot carry an error; () where they can.

    One snapshot may not carry more than `LARGEST` of the weight, and `ENOUGH` correlated effective samples are needed:
    independent snapshots n / g of the values over 1 + v / m. v is the relative variance of the weights: that seen, or where
    it is more that of log-normal weights with the same upper half, as the largest are those that a run has yet to meet. m
    is 1 where weights are as slow as the values (their means over g snapshots scatter more than independent ones would),
    g where they are independent.

    Arguments:
        columns: (n,) or (n, k), the values or what stands for them.
    """
    if weights is None or np.ptp(weights) == 0:
        return ()
    weights = scaled(weights)[0]
    largest = float(weights.max() / weights.sum())
    if largest > LARGEST:
        return (f"one snapshot carries {100 * largest:.0f} % of all weight: no error can be told from the others",)
    columns = columns.reshape(len(columns), -1)
    g = float(np.median([closed(x, chodera_window)[1][0] for x in scaled(columns, 0)[0].T
                         if np.isfinite(x).all() and np.ptp(x) > 1e-12 * np.abs(x).max()] or [1.0]))
    n = len(weights)
    length = 1 << int(math.log2(min(g, n / 2)))
    stretches = np.add.reduceat(weights, np.arange(0, n - n % length, length))
    slow = float(stretches.var()) > 2 * length * float(weights.var())
    above = weights[weights > np.median(weights[weights > 0])]
    upper = np.log(above / np.median(weights[weights > 0]))
    log_variance = min(2 * float(upper @ upper) / np.count_nonzero(weights), 700.0)
    relative = max(n / kish(weights, n) - 1, math.expm1(log_variance))
    worth = n / g / (1 + relative / (1.0 if slow else g))
    if worth < ENOUGH:
        return (f"the weights rest on {worth:.2g} independent snapshots; an interval needs about {ENOUGH:g}",)
    return ()


def weighted_mean(x: np.ndarray, weights: np.ndarray | None) -> float:
    if weights is None:
        return x.mean()
    total = weights.sum()
    if total == 0:
        raise StatisticsError("all weights are zero: no snapshot is left to average over")
    shift = x[int(np.argmax(weights))]
    return shift + (weights @ (x - shift)) / total if np.isfinite(x).all() else (weights @ x) / total


def residual(x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """x - mean, with weights w (x - mean) / mean(w): its mean has the error of the weighted mean (delta method)."""
    if weights is None:
        return x - x.mean()
    return weights * (x - weighted_mean(x, weights)) / weights.mean()


def design_effect(weights: np.ndarray | None) -> float:
    """By how much uneven weights raise the variance of a mean of independent snapshots, n sum w^2 / (sum w)^2 (Kish 1992)."""
    if weights is None:
        return 1.0
    w = scaled(weights)[0]
    return len(w) * float(w @ w) / float(w.sum()) ** 2


def kish(weights: np.ndarray | None, n: int, start: int = 0) -> float:
    """Snapshots of equal weight that those of n from `start` on are worth (Kish 1965)."""
    if weights is None:
        return float(n - start)
    w = scaled(weights[start:])[0]
    return float(w.sum()) ** 2 / float(w @ w)
