"""POD of many snapshots of few numbers: eigenvectors of the covariance of the numbers, two reads in order of time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.decomposition import (
    LEAST,
    Decomposition,
    FieldShare,
    check_fluctuation,
    errors_of_fields,
    to_basis,
)
from ensemblekit.rom.decompose.gram import FLOOR, common_power
from ensemblekit.rom.decompose.planning import TILE, Budget, Plan, Workload, held, refusal_of_streams
from ensemblekit.rom.decompose.problem import FieldProblem, Problem, first_snapshot, sum_of_weights
from ensemblekit.rom.decompose.scales import scaled, volume_of
from ensemblekit.rom.decompose.task import NotFinite, Task, in_range
from ensemblekit.rom.decompose.units import Unit, magnitude
from ensemblekit.rom.rank import Rule
from ensemblekit.scaling import ldexp
from ensemblekit.source import Array, Block


@dataclass(frozen=True, eq=False)
class JoinedRows:
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
    largest = magnitude(values)
    return largest if math.isfinite(largest) else math.nan


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

    rows: JoinedRows
    modes: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        rows = self.rows(block)
        energy = np.square(np.abs(rows)).sum(1)
        return np.concatenate([rows @ self.modes.conj().T, energy[:, None]], axis=1)


def covariance(task: Task) -> Decomposition:
    """Modes from the (size, size) matrix, coefficients in a second read."""
    if task.problem.scaling == "max":
        problem = scaled(task)
        task = replace(task, problem=problem)
    return in_range(task, _covariance, together=task.problem.scaling != "std")


def _covariance(task: Task) -> Decomposition:
    problem = task.problem
    shift = np.concatenate([first_snapshot(part.source, part.key) if part.shift is None else part.shift
                            for part in problem.parts])
    shift = np.where(np.isfinite(shift), shift, 0)
    factors = _factors(problem.parts)
    total, matrix = _products(task, shift, factors)
    n, mean = problem.n or 0, shift
    if problem.center == "mean":
        offset = total / n
        matrix = matrix - n * np.outer(offset.conj(), offset)
        mean = shift + (offset if factors is None else
                        np.divide(offset, factors, out=np.zeros_like(offset), where=factors != 0))
    if problem.scaling == "std":
        problem, matrix = _over_scales(problem, matrix)
        factors = _factors(problem.parts)
    values, vectors = np.linalg.eigh(matrix)
    squared, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    sigma = np.sqrt(squared)
    usable = min(int(np.count_nonzero(sigma > FLOOR * sigma[0])) if sigma[0] > 0 else 0, n)
    means = [mean[at] for at in problem.columns]
    check_fluctuation(problem, usable, sigma, means)
    k = task.rule.in_unit(problem.power).choose(squared, float(squared.sum()), usable, n, problem.size, True)
    modes = np.ascontiguousarray(vectors[:, :k].conj().T)
    coefficients, energy = _coefficients(task, problem, mean, factors, modes)
    # of eigenvalues that are rounding some are above the floor; the snapshots themselves tell
    carried = np.linalg.norm(problem.roots[:, None] * coefficients, axis=0)
    k = max(1, int(np.argmin(np.append(carried > FLOOR * carried[0], False))))
    coefficients, modes = coefficients[:, :k], modes[:k]
    return Decomposition(sigma[:min(n, problem.size)], True, coefficients, [modes[:, at] for at in problem.columns], means,
                         float(squared.sum()), float(squared[k:].sum()), energy,
                         errors_of_fields(_shares(problem, matrix, modes)), FLOOR, "covariance", sigma[:k],
                         scales=[part.scale for part in problem.parts], power=problem.power)


def _products(task: Task, shift: np.ndarray, factors: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The first read: sums of the rows less `shift`, and of their products with each other, weights of mean 1 applied."""
    problem = task.problem
    parts = problem.parts
    units: tuple[tuple[slice, Unit], ...] = ((slice(None), replace(parts[0].unit, field=None)),)
    if problem.scaling == "std":
        units = tuple((at, part.unit) for part, at in zip(parts, problem.columns, strict=True))
    elif any(part.asked is not None for part in parts):
        units = ((slice(None), Unit(problem.power, True)),)
    with task.reads.counted(problem.nbytes):
        total, matrix = _reduced(task, JoinedRows(_keys(problem), shift, factors, task.accumulator_dtype), Products(units))
    if not (np.isfinite(total).all() and np.isfinite(matrix).all()):
        raise NotFinite
    # products come with the weights as the source has them; pod's have mean 1
    n = problem.n or 0
    raw = n if problem.weights is None else sum_of_weights(parts[0].source)
    return total * (n / raw), matrix * (n / raw)


def _over_scales(problem: Problem, matrix: np.ndarray) -> tuple[Problem, np.ndarray]:
    """The problem with the scales that the products tell, in one unit for all fields, and the products in it."""
    parts, n = problem.parts, problem.n or 0
    energies = [float(np.trace(matrix[at, at]).real) for at in problem.columns]
    scales = [ldexp(float(np.sqrt(energy / (n * volume_of(part)))), part.power) or 1.0
              for energy, part in zip(energies, parts, strict=True)]
    power = common_power(energies, parts, scales)
    each = np.concatenate([np.full(part.field.size, ldexp(scale, power - part.power))
                           for part, scale in zip(parts, scales, strict=True)])
    scaled = tuple(replace(part, scale=part.scale * scale) for part, scale in zip(parts, scales, strict=True))
    return replace(problem, parts=scaled).of_unit(power), matrix / each / each[:, None]


def _coefficients(task: Task, problem: Problem, mean: np.ndarray, factors: np.ndarray | None,
                  modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The second read: coefficients (n, k), and the energy of each snapshot (n,)."""
    task.reads.add(problem.nbytes)
    rows = JoinedRows(_keys(problem), mean, factors, task.accumulator_dtype)
    series = _reduced(task, Projected(rows, modes), Series())
    return series[:, :len(modes)], series[:, len(modes)].real


def _shares(problem: Problem, matrix: np.ndarray, modes: np.ndarray) -> list[FieldShare]:
    """What C = A Vᴴ carries of each field, all from Aᴴ A; none for a single one, whose error is that of all."""
    if len(problem.parts) == 1:
        return []
    across = modes @ matrix
    within = across @ modes.conj().T
    shares = []
    for at in problem.columns:
        own = float(np.trace(matrix[at, at]).real)
        gram = modes[:, at] @ modes[:, at].conj().T
        shares.append(FieldShare(own, float(np.sum(across[:, at] * modes[:, at].conj()).real),
                                 float(np.sum(gram.T * within).real), own < LEAST and problem.power != 0))
    return shares


def _keys(problem: Problem) -> tuple[str, ...]:
    return tuple(part.key for part in problem.parts)


def _reduced(task: Task, rows: JoinedRows | Projected, reducer: Products | Series) -> Any:
    """One read in order of time."""
    problem = task.problem
    return reduce(problem.parts[0].source, {"rows": (rows, reducer)}, fields=list(dict.fromkeys(_keys(problem))),
                  engine=task.engine, limit=task.plan.limit, progress=task.progress)["rows"]


def _factors(parts: tuple[FieldProblem, ...]) -> np.ndarray | None:
    """(size,) of all fields together."""
    if all(part.factors is None for part in parts):
        return None
    return np.concatenate([np.ones(part.field.size) if part.factors is None else part.factors for part in parts])


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

    def decompose(self, task: Task) -> Basis:
        return to_basis(task.problem, covariance(task), task.reads.passes)
