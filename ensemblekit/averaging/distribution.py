"""A histogram whose every bar has an error that accounts for correlation in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.averaging.average import average
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.run import Map
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.source import Block, as_source


def histogram_estimate(source: object, edges: Any, *, map: Map | None = None, density: bool = True,
                       **options: Any) -> Estimate:
    """Distribution of the values of a source, an Estimate with one number a bin.

    Arguments:
        source: one real field (any item shape: all its elements are counted), or any source with a map.
        edges: (bins + 1,), rising. Bins hold their left edge, the last also its right one; values outside are in none,
            but count in the total.
        map: block -> (n, *out), the values to count.
        density: the share of values in a bin divided by its width (integrates to the share inside the edges), or the
            share itself.
        options: as for ``average`` (weights, equilibration, confidence, engine, ...).

    Each snapshot gives the share of its values in each bin; the bars are the averages of these shares, with errors by
    blocking, bin by bin. Bars of one histogram are correlated with each other: they add up to at most one.
    The Estimate has the coordinate "value", the middle of each bin.

    Raises InputError for edges that do not rise or values that are complex or NaN, and what ``average`` raises.
    """
    edges = as_array(edges, "edges", dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        raise InputError(f"edges are at least two finite numbers that rise, shape (bins + 1,); got {edges!r}")
    fields = as_source(source).fields
    unit = next(iter(fields.values())).unit if map is None and len(fields) == 1 else ""
    scale = 1 / np.diff(edges) if density else np.ones(len(edges) - 1)
    return average(source, map=BinShares(edges, scale, map), unit=_inverse(unit) if density else "",
                   coords={"value": ((edges[1:] + edges[:-1]) / 2, unit)}, **options)


def _inverse(unit: str) -> str:
    """"1/nm"; "1/(m s-1)"."""
    return "" if not unit else f"1/({unit})" if " " in unit else f"1/{unit}"


@dataclass(frozen=True, eq=False, slots=True)
class BinShares:
    """A map: the share of each snapshot's values in each bin, times a scale, (n, bins)."""

    edges: np.ndarray
    scale: np.ndarray
    map: Map | None = None

    def __call__(self, block: Block) -> np.ndarray:
        values = block.only if self.map is None else self.map(block)
        values = as_array(values, "values")
        if values.dtype.kind == "c":
            raise InputError("a histogram needs an order, which complex numbers lack; map to abs, real or imag first")
        rows = values.reshape(len(values), -1)
        if np.isnan(rows).any():
            raise InputError(f"snapshot {block.start + int(np.argmax(np.isnan(rows).any(axis=1)))} holds NaN, which is "
                             "in no bin")
        bins = len(self.edges) - 1
        where = np.searchsorted(self.edges, rows, side="right") - 1
        where[rows == self.edges[-1]] = bins - 1
        where = np.where((where >= 0) & (where < bins), where, bins)        # one more bin for what lies outside
        flat = where + (bins + 1) * np.arange(len(rows))[:, None]
        counts = np.bincount(flat.ravel(), minlength=len(rows) * (bins + 1)).reshape(len(rows), bins + 1)
        return counts[:, :bins] / rows.shape[1] * self.scale
