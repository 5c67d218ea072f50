"""Angles of frames on the circle: what observables and functions that come round share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ensemblekit.averaging.circular import circular_average
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.md.observables.base import Kept


@dataclass(frozen=True)
class OnCircle:
    """The `finish` of one angle a frame: its circular mean, and with it `resultant`, the length of the mean vector."""

    period: float = 360.0
    unit: str = "degree"

    def __call__(self, kept: Kept) -> dict[str, Estimate]:
        (angles,) = kept.merged()
        found = circular_average(angles, period=self.period, weights=kept.weights, times=kept.times,
                                 equilibration=kept.equilibration, confidence=kept.confidence, unit=self.unit,
                                 time_unit="ps" if kept.times is not None else "")
        return {"": replace(found.mean, coords={}), "resultant": found.resultant}


def directions(turn: float, vectors: np.ndarray) -> np.ndarray:
    """Of mean vectors (..., 2), in units of which `turn` make a radian."""
    return np.arctan2(vectors[..., 1], vectors[..., 0]) / turn


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Of mean vectors (..., 2)."""
    return np.hypot(vectors[..., 0], vectors[..., 1])
