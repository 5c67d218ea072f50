"""POD of many snapshots of few numbers: eigenvectors of the covariance of the numbers, two reads in order of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ensemblekit.averaging.reducer import TIME
from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.rom.gram import FLOOR
from ensemblekit.rom.problem import first_snapshot
from ensemblekit.source import Array, Block

if TYPE_CHECKING:
    from ensemblekit.rom.pod import Found, Job


@dataclass(frozen=True, eq=False)
class Rows:
    """The map from a block to rows of what is decomposed, less `shift`."""

    key: str
    shift: np.ndarray
    factors: np.ndarray | None
    dtype: np.dtype

    def __call__(self, block: Block) -> np.ndarray:
        values = np.asarray(block.fields[self.key])
        rows = values.reshape(len(values), -1).astype(self.dtype)
        rows -= self.shift
        if self.factors is not None:
            rows *= self.factors
            rows[:, self.factors == 0] = 0
        return rows


class Products:
    """Sums over the snapshots of x and of conj(x) x, weighted; merges in any order, as all rows have one shift."""

    cuts = TIME

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

    def beside(self, right: Self) -> None:
        raise NotImplementedError("Products is not cut in space")

    def shaped(self, item: tuple[int, ...]) -> None:
        pass

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
    from ensemblekit.rom.pod import Found, NotFinite, _refuse_nothing, _volume, with_scales

    problem = job.problem
    if problem.scaling == "max":
        problem = with_scales(job, problem, None, None)
    (part,) = problem.parts
    n = problem.n or 0
    limit = job.plan.limit
    shift = first_snapshot(part.source, part.key) if part.shift is None else part.shift
    shift = np.where(np.isfinite(shift), shift, 0)
    rows = Rows(part.key, shift, part.factors, job.wide)
    job.reads.add(problem.nbytes)
    total, matrix = reduce(part.source, {"p": (rows, Products())}, fields=[part.key], engine=job.engine, limit=limit,
                           progress=job.progress)["p"]
    if not (np.isfinite(total).all() and np.isfinite(matrix).all()):
        raise NotFinite
    # products come with the weights as the source has them; pod's have mean 1
    raw = n if problem.weights is None else _weight_of(part.source)
    total, matrix = total * (n / raw), matrix * (n / raw)
    mean = shift
    if problem.center == "mean":
        off = total / n
        matrix = matrix - n * np.outer(off.conj(), off)
        factors = part.factors
        mean = shift + (off if factors is None else np.divide(off, factors, out=np.zeros_like(off), where=factors != 0))
    scale = 1.0
    if problem.scaling == "std":
        scale = float(np.sqrt(np.trace(matrix).real / (n * _volume(part)))) or 1.0
        matrix = matrix / scale**2
    values, vectors = np.linalg.eigh(matrix)
    squared, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    sigma = np.sqrt(squared)
    usable = min(int(np.count_nonzero(sigma > FLOOR * sigma[0])) if sigma[0] > 0 else 0, n)
    _refuse_nothing(job, usable, sigma, [mean])
    k = job.rule.choose(squared, float(squared.sum()), usable, n, problem.size, True)
    modes = np.ascontiguousarray(vectors[:, :k].conj().T)
    factors = part.factors
    if scale != 1.0:
        factors = np.full(part.field.size, 1 / scale) if factors is None else factors / scale
    job.reads.add(problem.nbytes)
    again = Rows(part.key, mean, factors, job.wide)
    found = reduce(part.source, {"c": (Projected(again, modes), Series())}, fields=[part.key], engine=job.engine, limit=limit,
                   progress=job.progress)["c"]
    coefficients, energy = found[:, :k], found[:, k].real
    return Found(sigma[:min(n, problem.size)], True, coefficients, [modes], [mean], float(squared.sum()),
                 float(squared[k:].sum()), energy, [], FLOOR, "covariance", sigma[:k], scales=[part.scale * scale])


def _weight_of(source: Any) -> float:
    from ensemblekit.rom.problem import _weights

    weights = _weights(source, None)
    assert weights is not None
    return float(weights.sum())
