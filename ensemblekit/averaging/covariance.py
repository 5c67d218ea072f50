"""Covariance of all pairs of elements; merges in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import chunks, like, plain, same_item
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.source import Array

MOST_BYTES = 8 << 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CovarianceResult:
    """Second moments of the flattened item of p numbers."""

    mean: Array
    """Shape (p,)."""
    covariance: Array
    """Shape (p, p), unbiased as in :class:`Moments`; complex: E[(x - μ)(x - μ)ᴴ]."""
    n: int
    """Snapshots, those of weight 0 included."""
    n_eff: float
    """Kish's (Σw)² / Σw²."""

    @property
    def correlation(self) -> Array:
        """Shape (p, p), ones on the diagonal; NaN for elements that do not vary."""
        std = self.covariance.diagonal().real ** 0.5
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.covariance / (std[:, None] * std[None, :])


class Covariance:
    """Covariance matrix of the p elements of an item, in O(p²) memory. Wide items: ``Gram`` costs O(n²) instead."""

    def __init__(self) -> None:
        self.n, self.weight, self.weight2 = 0, 0.0, 0.0
        self.item: tuple[int, ...] = ()
        self.mean: Array = None
        self.comoment: Array = None

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        if self.mean is not None:
            same_item(self.item, values, "Covariance")
        self.item = tuple(values.shape[1:])
        p = int(np.prod(self.item))
        if p * p * 8 > MOST_BYTES:
            raise InputError(f"the covariance of {p} elements takes {p * p * 8 / 2**30:.0f} GiB. For few snapshots of "
                             "many elements reduce with ek.Gram() and cut=\"space\"; else reduce fewer elements by a map")
        w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
        for rows, x in chunks(values):
            part = w[rows]
            total = float(part.sum())
            if total == 0.0:
                self.n += len(part)
                continue
            flat = x.reshape(len(x), -1)
            ww = like(flat, part).reshape(-1, 1)
            mean = (flat * (ww / total)).sum(0)
            gap = flat - mean
            self._absorb(len(part), total, float((part * part).sum()), mean, (gap * ww).T @ gap.conj())

    def merge(self, later: Self) -> None:
        if later.mean is None:
            self.n += later.n
        else:
            self.item = later.item
            self._absorb(later.n, later.weight, later.weight2, later.mean, later.comoment)

    def _absorb(self, n: int, w: float, w2: float, mean: Array, comoment: Array) -> None:
        if self.mean is None:
            self.mean, self.comoment = plain(mean), plain(comoment)
        else:
            share = w / (self.weight + w)
            gap = mean - self.mean
            self.comoment = self.comoment + comoment + gap[:, None] * gap.conj()[None, :] * (self.weight * share)
            self.mean = self.mean + gap * share
        self.n, self.weight, self.weight2 = self.n + n, self.weight + w, self.weight2 + w2

    def result(self) -> CovarianceResult:
        """Raises StatisticsError where no snapshot, or none with a weight above 0, was seen."""
        if self.mean is None:
            raise StatisticsError("no snapshots" if self.n == 0 else f"all weights of {self.n} snapshots are 0")
        freedom = self.weight - self.weight2 / self.weight
        scale = float("nan") if freedom <= 1e-12 * self.weight else 1.0 / freedom
        return CovarianceResult(mean=plain(self.mean), covariance=self.comoment * scale, n=self.n,
                                n_eff=self.weight**2 / self.weight2)

    def state(self) -> dict[str, Array]:
        if self.mean is None:
            return {"n": np.array(self.n)}
        return {"n": np.array(self.n), "weight": np.array(self.weight), "weight2": np.array(self.weight2),
                "item": np.array(self.item, dtype=np.int64), "mean": plain(self.mean), "comoment": plain(self.comoment)}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n = int(state["n"])
        if "mean" in state:
            new.weight, new.weight2 = float(state["weight"]), float(state["weight2"])
            new.item = tuple(int(k) for k in state["item"])
            new.mean, new.comoment = plain(state["mean"]), plain(state["comoment"])
        return new
