"""POD of many snapshots of few numbers: eigenvectors of the covariance of the numbers, two reads in order of time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.rom.gram import FLOOR
from ensemblekit.rom.problem import first_snapshot
from ensemblekit.source import Array, Block

if TYPE_CHECKING:
    from ensemblekit.rom.pod import Found, Job
    from ensemblekit.rom.problem import Part


@dataclass(frozen=True, eq=False)
class Rows:
    """The map from a block to rows of what is decomposed, all fields one after the other, less `shift`."""

    keys: tuple[str, ...]
    shift: np.ndarray
    factors: np.ndarray | None
    dtype: np.dtype

    def __call__(self, block: Block) -> np.ndarray:
        parts = [np.asarray(block.fields[key]).reshape(len(block), -1) for key in self.keys]
        rows = (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)).astype(self.dtype)
        rows -= self.shift
        if self.factors is not None:
            rows *= self.factors
            rows[:, self.factors == 0] = 0
        return rows


class Products:
    """Sums over the snapshots of x and of conj(x) x, weighted; merges in any order, as all rows have one shift."""

    def __init__(self) -> None:
        self.sum: Array = None
        self.matrix: Array = None

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if not len(values):
            return
        weighted = values if weights is None else values * np.asarray(weights)[:, None]
        total, matrix = weighted.sum(0), values.conj().T @ weighted
        self.sum = total if self.sum is None else self.sum + total
        self.matrix = matrix if self.matrix is None else self.matrix + matrix

    def merge(self, later: Self) -> None:
        if later.sum is not None:
            self.sum = later.sum if self.sum is None else self.sum + later.sum
            self.matrix = later.matrix if self.matrix is None else self.matrix + later.matrix

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        return self.sum, self.matrix

    def state(self) -> dict[str, Array]:
        return {} if self.sum is None else {"sum": self.sum, "matrix": self.matrix}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.sum, new.matrix = state.get("sum"), state.get("matrix")
        return new


@dataclass(frozen=True, eq=False)
class Projected:
    """The map from a block to coefficients and, last, the energy of each snapshot."""

    rows: Rows
    modes: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        rows = self.rows(block)
        energy = np.square(np.abs(rows)).sum(1)
        return np.concatenate([rows @ self.modes.conj().T, energy[:, None]], axis=1)


def covariance(job: Job) -> Found:
    """Modes from the (size, size) matrix, coefficients in a second read."""
    from ensemblekit.rom.incremental import scaled_by_rows
    from ensemblekit.rom.pod import Found, NotFinite, _volume, refuse_nothing, with_scales

    problem = job.problem
    if problem.scaling == "max":
        problem = with_scales(job, problem, None, None) if problem.access == "tiles" else scaled_by_rows(job)
    parts = problem.parts
    source = parts[0].source
    keys = tuple(part.key for part in parts)
    n = problem.n or 0
    limit = job.plan.limit
    shift = np.concatenate([first_snapshot(part.source, part.key) if part.shift is None else part.shift for part in parts])
    shift = np.where(np.isfinite(shift), shift, 0)
    factors = _factors(parts)
    job.reads.add(problem.nbytes)
    total, matrix = reduce(source, {"p": (Rows(keys, shift, factors, job.wide), Products())}, fields=list(dict.fromkeys(keys)),
                           engine=job.engine, limit=limit, progress=job.progress)["p"]
    if not (np.isfinite(total).all() and np.isfinite(matrix).all()):
        raise NotFinite
    # products come with the weights as the source has them; pod's have mean 1
    raw = n if problem.weights is None else _weight_of(source)
    total, matrix = total * (n / raw), matrix * (n / raw)
    mean = shift
    if problem.center == "mean":
        off = total / n
        matrix = matrix - n * np.outer(off.conj(), off)
        mean = shift + (off if factors is None else np.divide(off, factors, out=np.zeros_like(off), where=factors != 0))
    edges = list(pairwise(np.cumsum([0, *(part.field.size for part in parts)])))
    if problem.scaling == "std":
        scales = [float(np.sqrt(np.trace(matrix[a:b, a:b]).real / (n * _volume(part)))) or 1.0
                  for part, (a, b) in zip(parts, edges, strict=True)]
        parts = tuple(replace(part, scale=part.scale * scale) for part, scale in zip(parts, scales, strict=True))
        each = np.concatenate([np.full(part.field.size, scale) for part, scale in zip(parts, scales, strict=True)])
        matrix = matrix / each / each[:, None]
        factors = _factors(parts)
    values, vectors = np.linalg.eigh(matrix)
    squared, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    sigma = np.sqrt(squared)
    usable = min(int(np.count_nonzero(sigma > FLOOR * sigma[0])) if sigma[0] > 0 else 0, n)
    means = [mean[a:b] for a, b in edges]
    refuse_nothing(job, usable, sigma, means)
    k = job.rule.choose(squared, float(squared.sum()), usable, n, problem.size, True)
    modes = np.ascontiguousarray(vectors[:, :k].conj().T)
    job.reads.add(problem.nbytes)
    found = reduce(source, {"c": (Projected(Rows(keys, mean, factors, job.wide), modes), Series())},
                   fields=list(dict.fromkeys(keys)), engine=job.engine, limit=limit, progress=job.progress)["c"]
    coefficients, energy = found[:, :k], found[:, k].real
    errors = []
    if len(parts) > 1:      # what C = A Vᴴ leaves of a field, all from Aᴴ A
        across = modes @ matrix
        within = across @ modes.conj().T
        for a, b in edges:
            own = float(np.trace(matrix[a:b, a:b]).real)
            gram = modes[:, a:b] @ modes[:, a:b].conj().T
            kept = float(2 * np.sum(across[:, a:b] * modes[:, a:b].conj()).real - np.sum(gram.T * within).real)
            errors.append(math.sqrt(max(own - kept, 0.0) / own) if own > 0 else 0.0)
    return Found(sigma[:min(n, problem.size)], True, coefficients, [modes[:, a:b] for a, b in edges], means,
                 float(squared.sum()), float(squared[k:].sum()), energy, errors, FLOOR, "covariance", sigma[:k],
                 scales=[part.scale for part in parts])


def _factors(parts: tuple[Part, ...]) -> np.ndarray | None:
    """(size,) of all fields together."""
    if all(part.factors is None for part in parts):
        return None
    return np.concatenate([np.ones(part.field.size) if part.factors is None else part.factors for part in parts])


def _weight_of(source: Any) -> float:
    from ensemblekit.rom.problem import _weights

    weights = _weights(source, None)
    assert weights is not None
    return float(weights.sum())
