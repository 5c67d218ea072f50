"""POD of many snapshots of few numbers: eigenvectors of the covariance of the numbers, two reads in order of time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decomposition import LEAST, Found, assembled, refuse_nothing
from ensemblekit.rom.gram import FLOOR
from ensemblekit.rom.problem import Part, Problem, _weights, first_snapshot
from ensemblekit.rom.rank import Rule
from ensemblekit.rom.route import TILE, Budget, Plan, Workload, held, refusal_of_streams
from ensemblekit.rom.scales import _volume, scaled_by_rows, scaled_by_tiles
from ensemblekit.rom.snapshots import _common_power
from ensemblekit.rom.task import Job, NotFinite, in_range
from ensemblekit.rom.units import Unit, magnitude
from ensemblekit.scaling import ldexp
from ensemblekit.source import Array, Block


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


def _finite_magnitude(values: np.ndarray) -> float:
    """The largest magnitude; NaN where numbers are NaN or infinite, which no unit mends."""
    found = magnitude(values)
    return found if math.isfinite(found) else math.nan


class Products:
    """Sums over the snapshots of x and of conj(x) x, weighted; merges in any order, as all rows have one shift."""

    def __init__(self, units: tuple[tuple[slice, Unit], ...] = ()) -> None:
        self.units = units
        """Columns, and the unit that they are in."""
        self.sum: Array = None
        self.matrix: Array = None

    def empty(self) -> Self:
        return type(self)(self.units)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if not len(values):
            return
        weighted = values if weights is None else values * np.asarray(weights)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):      # sums that are no numbers are met by those who get them
            total, matrix = weighted.sum(0), values.conj().T @ weighted
        for at, unit in self.units:
            unit.check(float(matrix.diagonal()[at].real.sum()), partial(_finite_magnitude, values[:, at]), False)
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
    if job.problem.scaling == "max":
        problem = scaled_by_tiles(job) if job.problem.access == "tiles" else scaled_by_rows(job)
        job = replace(job, problem=problem)
    return in_range(job, _covariance, together=job.problem.scaling != "std")


def _covariance(job: Job) -> Found:
    problem = job.problem
    parts = problem.parts
    source = parts[0].source
    keys = tuple(part.key for part in parts)
    n = problem.n or 0
    limit = job.plan.limit
    shift = np.concatenate([first_snapshot(part.source, part.key) if part.shift is None else part.shift for part in parts])
    shift = np.where(np.isfinite(shift), shift, 0)
    factors = _factors(parts)
    edges = list(pairwise(np.cumsum([0, *(part.field.size for part in parts)])))
    units: tuple[tuple[slice, Unit], ...] = ((slice(None), replace(parts[0].unit, field=None)),)
    if problem.scaling == "std":
        units = tuple((slice(a, b), part.unit) for part, (a, b) in zip(parts, edges, strict=True))
    elif any(part.asked is not None for part in parts):
        units = ((slice(None), Unit(problem.power, True)),)
    with job.reads.counted(problem.nbytes):
        total, matrix = reduce(source, {"p": (Rows(keys, shift, factors, job.wide), Products(units))},
                               fields=list(dict.fromkeys(keys)), engine=job.engine, limit=limit, progress=job.progress)["p"]
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
    power = problem.power
    if problem.scaling == "std":
        energies = [float(np.trace(matrix[a:b, a:b]).real) for a, b in edges]
        scales = [ldexp(float(np.sqrt(energy / (n * _volume(part)))), part.power) or 1.0
                  for energy, part, (a, b) in zip(energies, parts, edges, strict=True)]
        power = _common_power(energies, parts, scales)
        each = np.concatenate([np.full(part.field.size, ldexp(scale, power - part.power))
                               for part, scale in zip(parts, scales, strict=True)])
        matrix = matrix / each / each[:, None]
        problem = replace(problem, parts=tuple(
            replace(part, scale=part.scale * scale) for part, scale in zip(parts, scales, strict=True))).of_unit(power)
        parts = problem.parts
        factors = _factors(parts)
    values, vectors = np.linalg.eigh(matrix)
    squared, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    sigma = np.sqrt(squared)
    usable = min(int(np.count_nonzero(sigma > FLOOR * sigma[0])) if sigma[0] > 0 else 0, n)
    means = [mean[a:b] for a, b in edges]
    refuse_nothing(problem, usable, sigma, means)
    k = job.rule.in_unit(power).choose(squared, float(squared.sum()), usable, n, problem.size, True)
    modes = np.ascontiguousarray(vectors[:, :k].conj().T)
    job.reads.add(problem.nbytes)
    found = reduce(source, {"c": (Projected(Rows(keys, mean, factors, job.wide), modes), Series())},
                   fields=list(dict.fromkeys(keys)), engine=job.engine, limit=limit, progress=job.progress)["c"]
    coefficients, energy = found[:, :k], found[:, k].real
    # of eigenvalues that are rounding some are above the floor; the snapshots themselves tell
    carried = np.linalg.norm(problem.roots[:, None] * coefficients, axis=0)
    k = max(1, int(np.argmin(np.append(carried > FLOOR * carried[0], False))))
    coefficients, modes = coefficients[:, :k], modes[:k]
    errors = []
    if len(parts) > 1:      # what C = A Vᴴ leaves of a field, all from Aᴴ A
        across = modes @ matrix
        within = across @ modes.conj().T
        for a, b in edges:
            own = float(np.trace(matrix[a:b, a:b]).real)
            if own < LEAST and problem.power:
                errors.append(math.nan)
                continue
            gram = modes[:, a:b] @ modes[:, a:b].conj().T
            kept = float(2 * np.sum(across[:, a:b] * modes[:, a:b].conj()).real - np.sum(gram.T * within).real)
            errors.append(math.sqrt(max(own - kept, 0.0) / own) if own > 0 else 0.0)
    return Found(sigma[:min(n, problem.size)], True, coefficients, [modes[:, a:b] for a, b in edges], means,
                 float(squared.sum()), float(squared[k:].sum()), energy, errors, FLOOR, "covariance", sigma[:k],
                 scales=[part.scale for part in parts], power=power)


def _factors(parts: tuple[Part, ...]) -> np.ndarray | None:
    """(size,) of all fields together."""
    if all(part.factors is None for part in parts):
        return None
    return np.concatenate([np.ones(part.field.size) if part.factors is None else part.factors for part in parts])


def _weight_of(source: Any) -> float:
    weights = _weights(source, None)
    assert weights is not None
    return float(weights.sum())


class Covariance:
    """The covariance of the numbers of a snapshot, where they are fewer than the snapshots."""

    name: ClassVar[str] = "covariance"
    finer: ClassVar[tuple[str, ...]] = ()

    def refusal(self, problem: Problem) -> str | None:
        if problem.sparse and not refusal_of_streams(problem):
            return "a sparse mass matrix goes with the gram route"
        one = None if problem.of_one_source else "the covariance route takes fields of one source"
        return refusal_of_streams(problem) or one

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        at = Workload.of(problem, rule)
        size, wide = at.size, at.wide
        limit = max(size * at.itemsize, min(budget.memory // 16, TILE))
        peak = (2 * budget.workers + 9) * size * size * wide + budget.workers * (limit // at.itemsize) * wide
        operations = float(size) * size * at.n + 2.0 * at.n * at.k * size
        passes = 3 if problem.scaling == "max" else 2
        return Plan(self.name, passes, passes * at.nbytes, held(at.factors + peak + at.result), at.times * operations, "",
                    rule.rank, problem.n, size, int(limit))

    def decompose(self, task: Job) -> Basis:
        return assembled(task.problem, covariance(task), task.reads.passes)
