"""Angles of frames on the circle: what observables and functions that come round share."""

from __future__ import annotations

from functools import partial

import numpy as np

from ensemblekit.averaging.circular import circular_average
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.md.observables.base import OfSeries, Reading


def on_circle(period: float = 360.0, unit: str = "degree") -> OfSeries:
    """The quantity of one angle a frame: its circular mean, and with it `resultant`, the length of the mean vector."""
    return OfSeries(partial(_circular, period, unit), unit, bounds={"resultant": (0.0, 1.0)}, period=period)


def _circular(period: float, unit: str, reading: Reading) -> dict[str, Estimate]:
    answer = circular_average(reading.values, period=period, weights=reading.weights, times=reading.times,
                              equilibration=reading.equilibration, confidence=reading.confidence, unit=unit,
                              time_unit="ps" if reading.times is not None else "", ordered=reading.run.ordered)
    return {"": answer.mean, "resultant": answer.resultant}


def directions(turn: float, vectors: np.ndarray) -> np.ndarray:
    """Of mean vectors (..., 2), in units of which `turn` make a radian."""
    return np.arctan2(vectors[..., 1], vectors[..., 0]) / turn


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Of mean vectors (..., 2)."""
    return np.hypot(vectors[..., 0], vectors[..., 1])
