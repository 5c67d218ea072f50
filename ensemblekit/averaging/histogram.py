"""Counts between edges, over all elements or for each; merges in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import join, like, real_only, same_item, wide
from ensemblekit.averaging.rows import rows_of
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.source import Array, is_torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HistogramResult(Result):
    """Counts of values in bins; half-open, the last one with its upper edge, as in numpy.histogram."""

    FIGURE = "averages.histogram"

    edges: np.ndarray
    """Shape (bins + 1,)."""
    counts: Array
    """Shape (bins,), or (*item, bins) elementwise: sums of weights, float64."""
    below: float
    """Weight of values below the first edge."""
    above: float
    """Weight of values above the last edge."""
    missing: float
    """Weight of values that are NaN."""
    n: int
    """Snapshots."""

    @property
    def density(self) -> Array:
        """Probability density: integrates to 1 over the edges (NaN where nothing was counted)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.counts / (self.counts.sum(-1)[..., None] * np.diff(self.edges))


class Histogram:
    """Histogram of all values of all snapshots; ``elementwise=True`` keeps one for every element of the item."""

    def __init__(self, edges: Any, elementwise: bool = False):
        edges = as_array(edges, "edges", dtype=np.float64)
        if edges.ndim != 1 or len(edges) < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise InputError("edges are at least two finite numbers that rise, for example np.linspace(0, 1, 51)")
        self.edges, self.elementwise = edges, bool(elementwise)
        step = np.diff(edges)
        even = np.allclose(step, step[0], rtol=1e-9, atol=0)
        self.scale = float((len(edges) - 1) / (edges[-1] - edges[0])) if even else 0.0
        self.n = 0
        self.item: tuple[int, ...] = ()
        self.counts: Array = None           # (width or 1, bins)
        self.outside: Array = np.zeros(3)   # below, above, NaN

    def empty(self) -> Self:
        return type(self)(self.edges, self.elementwise)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        real_only(values, "Histogram")
        if self.counts is not None:
            same_item(self.item, values, "Histogram")
        self.item = tuple(values.shape[1:])
        w = np.ones(len(values)) if weights is None else np.ascontiguousarray(as_array(weights, "weights"), dtype=np.float64)
        if is_torch(values):
            self._update_torch(values.reshape(len(values), -1), w)
        else:
            from ensemblekit.averaging import kernels

            rows = rows_of(values)
            if self.counts is None:
                self.counts = np.zeros((rows.width if self.elementwise else 1, len(self.edges) - 1))
            kernels.add_counts(rows.flat, rows.stride, w, rows.width, self.edges, self.scale, self.counts, self.outside,
                               self.elementwise)
        self.n += len(values)

    def _update_torch(self, flat: Array, weights: np.ndarray) -> None:
        import torch

        x = wide(flat).contiguous()
        edges = like(x, self.edges)
        bins = len(self.edges) - 1
        w = like(x, weights).reshape(-1, 1).expand_as(x)
        k = torch.searchsorted(edges, x, right=True) - 1
        k[x == edges[-1]] = bins - 1
        missing = torch.isnan(x)
        below, above = (x < edges[0]), (x > edges[-1])
        self.outside = self.outside + np.array([float(w[m].sum()) for m in (below, above, missing)])
        inside = ~(missing | below | above)
        width = x.shape[1] if self.elementwise else 1
        column = torch.arange(x.shape[1], device=x.device).expand_as(x) if self.elementwise else torch.zeros_like(k)
        counts = torch.zeros(width * bins, dtype=torch.float64, device=x.device)
        counts.index_add_(0, (column * bins + k)[inside], w[inside])
        self.counts = counts.reshape(width, bins) + (0 if self.counts is None else self.counts)

    def merge(self, later: Self) -> None:
        if later.counts is not None:
            self.item = later.item
            self.counts = later.counts + (0.0 if self.counts is None else self.counts)
            self.outside = self.outside + later.outside
            self.n += later.n

    def join(self, right: Self) -> None:
        if right.counts is not None:
            self.counts = join(self.counts, right.counts) if self.elementwise else self.counts + right.counts
            self.outside = self.outside + right.outside
            self.item = (self.item[0] + right.item[0],)

    def reshape(self, item: tuple[int, ...]) -> None:
        self.item = tuple(item)

    def result(self) -> HistogramResult:
        bins = len(self.edges) - 1
        shape = (*self.item, bins) if self.elementwise else (bins,)
        counts = np.zeros(shape) if self.counts is None else (self.counts + 0.0).reshape(shape)
        below, above, missing = (float(x) for x in self.outside)
        return HistogramResult(edges=self.edges.copy(), counts=counts, below=below, above=above, missing=missing, n=self.n)

    def state(self) -> dict[str, Array]:
        state = {"n": np.array(self.n), "item": np.array(self.item, dtype=np.int64), "outside": self.outside.copy()}
        return state if self.counts is None else {**state, "counts": self.counts + 0.0}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.item = int(state["n"]), tuple(int(k) for k in state["item"])
        new.outside = np.array(state["outside"], dtype=np.float64)
        if "counts" in state:
            new.counts = state["counts"] + 0.0
        return new
