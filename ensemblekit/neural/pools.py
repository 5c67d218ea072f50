"""Pools of independently trained networks, and the losses they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemblekit.neural.evidence import Rows
from ensemblekit.neural.summed import SCORES
from ensemblekit.neural.temperature import PRIOR, best_temperature, fold_of, scaled

REPEATS, FOLDS = 5, 2
"""Of the cross-fitted temperatures, as in ``scores``."""
TINY = float(np.finfo(np.float64).tiny)


@dataclass(slots=True)
class ClassPools:
    """Pools of class probabilities, and their loss over each item or group."""

    seeds: np.ndarray               # (K, rows, classes), probabilities or their logarithms
    runs: list[np.ndarray]          # (rows, classes) of each run, pooled
    by_members: list[np.ndarray]
    rows: Rows
    score: str
    space: str
    seed: int
    exponent: int = 0
    temperatures: dict[tuple[int, int], float] | None = None

    @property
    def sizes(self) -> np.ndarray:
        """(n,): rows of each item or group."""
        return np.bincount(self.rows.cluster, minlength=self.rows.n).astype(float)

    def pool(self, which: Sequence[int]) -> np.ndarray:
        """(rows, classes)."""
        mean = self.seeds[list(which)].mean(axis=0)
        return mean if self.space == "probability" else scaled(mean, 1.0)

    def loss(self, p: np.ndarray) -> np.ndarray:
        """(n,): summed over each item or group."""
        labels = self.rows.labels
        if self.score == "calibrated_nll":
            values = self._calibrated(p)
        else:
            values = SCORES[self.score](p, labels)
            values = 1 - values if self.score == "accuracy" else values
        return np.bincount(self.rows.cluster, values, self.rows.n)

    def _calibrated(self, p: np.ndarray) -> np.ndarray:
        """NLL of each row at a temperature of other items, as ``scaled_nll``; each fit starts from that of the pool before."""
        if self.temperatures is None:
            self.temperatures = {}
        z = np.log(np.maximum(p, TINY))
        z = z - z.max(1, keepdims=True)
        labels, cluster = self.rows.labels, self.rows.cluster
        own = z[np.arange(len(z)), labels]
        total = np.zeros(len(z))
        for repeat in range(REPEATS):
            fold = fold_of(self.rows.n, FOLDS, self.seed + repeat)[cluster]
            for f in range(FOLDS):
                inside = fold == f
                others = ~inside
                t = _temperature(z[others], float(own[others].mean()), labels[others], len(np.unique(cluster[others])),
                                 self.temperatures.get((repeat, f), 1.0))
                self.temperatures[repeat, f] = t
                total[inside] += np.log(np.exp(z[inside] / t).sum(1)) - own[inside] / t
        return total / REPEATS


@dataclass(slots=True)
class NumberPools:
    """Pools of answers that are numbers: their mean, and its squared error."""

    seeds: np.ndarray               # (K, n, width)
    runs: list[np.ndarray]
    by_members: list[np.ndarray]
    target: np.ndarray
    cluster: np.ndarray
    exponent: int = 0

    @property
    def sizes(self) -> np.ndarray:
        """(n,): numbers of each item or group."""
        return np.bincount(self.cluster).astype(float) * self.target.shape[1]

    def pool(self, which: Sequence[int]) -> np.ndarray:
        """(n, width)."""
        mean: np.ndarray = self.seeds[list(which)].mean(axis=0)
        return mean

    def loss(self, answer: np.ndarray) -> np.ndarray:
        """(n,): squared errors summed over each item or group."""
        return np.bincount(self.cluster, ((answer - self.target) ** 2).sum(1))


def _temperature(z: np.ndarray, own: float, labels: np.ndarray, n: int, start: float) -> float:
    """``best_temperature`` by Newton's steps in the logarithm from a neighbour's; bracketed where they do not settle."""
    share, x = PRIOR / n, -np.log(start)
    for _ in range(8):
        beta = float(np.exp(x))
        e = np.exp(beta * z)
        norm = e.sum(1)
        first = np.einsum("ij,ij->i", e, z) / norm
        second = np.einsum("ij,ij,ij->i", e, z, z) / norm
        slope = float(first.mean()) - own + share * (1 - 1 / beta)
        curvature = float((second - first**2).mean()) + share / beta**2
        by_log = beta * beta * curvature + beta * slope        # in x = log beta
        step = -beta * slope / by_log if by_log > 0 else -np.sign(slope)
        step = float(np.clip(step, -1, 1))
        x += step
        if abs(x) > 4:
            break
        if abs(step) < 1e-9:
            return float(np.exp(-x))
    return best_temperature(z, labels, n)
