"""Statistical weights of snapshots: normalised from weights or log-weights of any range, and what they are worth."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.source import check_weights, weights_from_logs


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


def effective_samples(weights: Any = None, kind: Literal["kish", "entropy"] = "kish", *,
                      log_weights: Any = None) -> float:
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
