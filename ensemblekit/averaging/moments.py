"""Mean, variance, skewness and kurtosis of every element, weighted or not; merges in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.reducer import BOTH
from ensemblekit.source import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MomentsResult:
    """Mean and spread of the snapshots given."""

    mean: Array
    """Shape (*item,)."""
    variance: Array
    """Shape (*item,), unbiased (divided by n - 1, or by W - Σw²/W with weights); NaN for one snapshot."""
    n: int


class Moments:
    """First sketch; replaced."""

    cuts = BOTH

    def __init__(self) -> None:
        self.n, self.w, self.w2 = 0, 0.0, 0.0
        self.mean: Array = None
        self.m2: Array = None

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        x = np.asarray(values, dtype=np.float64)
        w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
        total = w.sum()
        if total == 0:
            self.n += len(x)
            return
        mean = np.tensordot(w, x, 1) / total
        self._absorb(len(x), total, (w**2).sum(), mean, np.tensordot(w, (x - mean) ** 2, 1))

    def merge(self, later: Self) -> None:
        if later.mean is None:
            self.n += later.n
        else:
            self._absorb(later.n, later.w, later.w2, later.mean, later.m2)

    def _absorb(self, n: int, w: float, w2: float, mean: Array, m2: Array) -> None:
        if self.mean is None:
            self.mean, self.m2 = np.zeros_like(mean), np.zeros_like(m2)
        share = w / (self.w + w)
        self.m2 = self.m2 + m2 + (mean - self.mean) ** 2 * (self.w * share)
        self.mean = self.mean + (mean - self.mean) * share
        self.n, self.w, self.w2 = self.n + n, self.w + w, self.w2 + w2

    def beside(self, right: Self) -> None:
        self.mean = np.concatenate([np.ravel(self.mean), np.ravel(right.mean)])
        self.m2 = np.concatenate([np.ravel(self.m2), np.ravel(right.m2)])

    def shaped(self, item: tuple[int, ...]) -> None:
        self.mean, self.m2 = self.mean.reshape(item), self.m2.reshape(item)

    def result(self) -> MomentsResult:
        with np.errstate(invalid="ignore", divide="ignore"):
            return MomentsResult(mean=self.mean, variance=self.m2 / np.float64(self.w - self.w2 / self.w), n=self.n)

    def state(self) -> dict[str, Array]:
        return {"n": np.array(self.n), "w": np.array(self.w), "w2": np.array(self.w2), "mean": self.mean, "m2": self.m2}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.w, new.w2 = int(state["n"]), float(state["w"]), float(state["w2"])
        new.mean, new.m2 = np.array(state["mean"]), np.array(state["m2"])
        return new
