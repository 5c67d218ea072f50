"""Averages of series with gaps: a missing snapshot keeps its place in time and carries no weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.averaging.estimate import Estimate
from ensemblekit.intake import as_array
from ensemblekit.source import Block


def without_gaps(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """A series (n,) with NaN as one with weights, zero where it is missing; and where it is not, (n,) bool.

    The error of the weighted mean is then that of a ratio, in which lags are still differences in time.
    """
    x = np.asarray(values)
    present = ~np.isnan(x) if x.dtype.kind == "f" else np.ones(len(x), bool)
    if present.all() or not present.any():
        return x, weights, present
    w = present.astype(np.float64) if weights is None else np.where(present, weights, 0.0)
    return np.where(present, x, x[present].mean()), w, present


def told(estimate: Estimate, values: np.ndarray, present: np.ndarray) -> Estimate:
    """The estimate of a series with gaps: it counts what is there, its correlation is that of the whole series."""
    n, missing = len(present), int((~present).sum())
    if not missing:
        return estimate
    kept = present[estimate.n_discarded:]
    g = estimate.statistical_inefficiency
    if np.isfinite(g) and g > 1 and kept.sum() > 1:
        lags = range(1, min(max(1, int(np.ceil(g))), len(kept) - 1, 1000) + 1)
        share = float(np.mean([(kept[:-k] & kept[k:]).mean() for k in lags])) / float(kept.mean())   # of pairs that are there
        whole = 1 + (g - 1) / max(share, 1 / len(kept))
        tau = estimate.correlation_time * whole / g
        estimate = replace(estimate, statistical_inefficiency=whole, correlation_time=tau)
    said = f"{missing} of {n} snapshots are missing; they keep their places in time"
    return replace(estimate, n=int(kept.sum()), series=values, verdict="; ".join(filter(None, [estimate.verdict, said])))


@dataclass(frozen=True, eq=False, slots=True)
class Present:
    """A map: 1 where a number is there, 0 where it is NaN."""

    field: str | None
    map: Any = None

    def values(self, block: Block) -> np.ndarray:
        if self.map is not None:
            return as_array(self.map(block), "values", kinds="biuf")
        assert self.field is not None
        return as_array(block.fields[self.field], "values", kinds="biuf")

    def __call__(self, block: Block) -> np.ndarray:
        return (~np.isnan(self.values(block))).astype(np.float64)


@dataclass(frozen=True, eq=False, slots=True)
class Departure:
    """A map: departures from `mean` over the share of snapshots in which a number is there, 0 where it is NaN."""

    present: Present
    mean: Any = 0.0
    share: Any = 1.0

    def __call__(self, block: Block) -> np.ndarray:
        x = self.present.values(block).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isnan(x) | ~(np.asarray(self.share) > 0), 0.0, (x - self.mean) / self.share)
