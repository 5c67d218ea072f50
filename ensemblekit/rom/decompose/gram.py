"""The method of snapshots: all inner products of the snapshots in one read, the modes that they belong to in a second.

What the singular values and their vectors over time are taken from is the Gram matrix here (Sirovich 1987), and R of the QR
factorisation in :mod:`tsqr`; all else is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.decomposition import (
    LEAST,
    Decomposition,
    FieldShare,
    check_fluctuation,
    errors_of_fields,
    to_basis,
)
from ensemblekit.rom.decompose.mass import gram_with_mass
from ensemblekit.rom.decompose.planning import TILE, Budget, Plan, Workload, held, loadable, refusal_of_rows, refusal_of_streams
from ensemblekit.rom.decompose.problem import FieldProblem, Problem
from ensemblekit.rom.decompose.scales import with_scales
from ensemblekit.rom.decompose.slabs import RowTransform, Tile, TileColumns, TileSums
from ensemblekit.rom.decompose.task import FloorReached, NotFinite, Task, in_range
from ensemblekit.rom.product import applied
from ensemblekit.rom.rank import Rule
from ensemblekit.scaling import ldexp

FLOOR = 2e-8
"""Singular values below this share of the first are rounding in a Gram matrix of float64: sqrt(eps)."""
WORTHWHILE = 1e-6
"""Below this share of the first singular value Gram matrices are rounding for the most part; QR is exact there."""


@dataclass(frozen=True, eq=False)
class TimeVectors:
    """Singular values of all fields together, falling, with the vectors over time that belong to them."""

    sigma: np.ndarray
    """(n,); those of the modes are refined in place once the modes were read."""
    squared: np.ndarray
    vectors: np.ndarray
    """(n, n), one a column."""
    total: float
    """Energy of all snapshots."""


@dataclass(frozen=True, eq=False)
class FirstRead:
    """The mean of each field, the energies of its snapshots and the matrix of all of them, once in the unit of the field and
    once in that of all fields."""

    problem: Problem
    """With the scales that were found, in the unit of all."""
    means: list[np.ndarray]
    field_energies: list[np.ndarray]
    """(n,) of each field, in its own unit."""
    energies: list[np.ndarray]
    """The same in the unit of all."""
    matrices: list[np.ndarray]
    """(n, n) of each field, in its own unit."""
    scales: list[float]
    """What matrices and energies are divided by, the latter squared, to be in the unit of all."""

    @property
    def lone(self) -> list[bool]:
        """Fields of next to nothing beside the others: their errors are told by their own numbers."""
        return [len(self.scales) > 1 and float(energy.sum()) < LEAST for energy in self.energies]


class SnapshotMatrix(Protocol):
    """The matrix of all snapshots that singular values and their vectors over time are taken from."""

    name: ClassVar[str]
    floor: ClassVar[float]
    """Singular values below this share of the first are rounding."""

    def read(self, task: Task) -> tuple[FieldProblem, TileSums, list[TileColumns], np.ndarray]:
        """The one field of a task in the unit that it turned out to need, its sums and columns, and its matrix (n, n)."""

    def decompose_matrices(self, first: FirstRead) -> TimeVectors:
        """The singular values of all fields together."""

    def gives_way(self, task: Task, problem: Problem) -> bool:
        """Whether a finer route may be taken where this one's floor is reached."""

    def refined(self, time_vectors: TimeVectors, rows: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The modes (k, size) and L that are kept, with `time_vectors.sigma` brought to what they know."""

    def coefficients(self, first: FirstRead, time_vectors: TimeVectors, lower: np.ndarray) -> np.ndarray:
        """(n, k)."""

    def field_shares(self, first: FirstRead, time_vectors: TimeVectors, coefficients: np.ndarray,
                     rows: np.ndarray) -> list[FieldShare]:
        """What the modes carry of each field."""


def method_of_snapshots(task: Task, matrix: SnapshotMatrix) -> Decomposition:
    """The matrix of all snapshots in one read, modes in a second (Sirovich 1987).

    Raises FloorReached where the choice is ours and a finer route would tell more.
    """
    first = _first_read(task, matrix)
    problem = first.problem
    time_vectors = matrix.decompose_matrices(first)
    k = _rank(task, matrix, first, time_vectors)
    rows = _modes(task, first, _weights_of_snapshots(problem, time_vectors, k))
    # eps (sigma_1 / sigma_k)^2 of orthogonality was lost on the way
    rows, lower = orthonormalised(rows, _products_with_mass(problem) if problem.sparse else None)
    rows, lower = matrix.refined(time_vectors, rows, lower)
    k = len(rows)
    coefficients = matrix.coefficients(first, time_vectors, lower)
    errors = errors_of_fields(matrix.field_shares(first, time_vectors, coefficients, rows) if len(problem.parts) > 1 else [])
    return Decomposition(
        np.sort(time_vectors.sigma)[::-1][:min(problem.n or 0, problem.size)], True, coefficients, _split(rows, problem),
        first.means, time_vectors.total, float(time_vectors.squared[k:].sum()), np.sum(first.energies, axis=0), errors,
        matrix.floor, matrix.name, time_vectors.sigma[:k], scales=[part.scale for part in problem.parts], power=problem.power)


def _first_read(task: Task, matrix: SnapshotMatrix) -> FirstRead:
    parts, means, energies, matrices = [], [], [], []
    for given in task.problem.parts:
        one = replace(task, problem=replace(task.problem, parts=(given,)))
        part, sums, columns, products = in_range(one, matrix.read)
        if not np.isfinite(sums["energy"]).all():
            raise NotFinite
        parts.append(part)
        means.append(np.concatenate([c["mean"] for c in columns]))
        energies.append(products.diagonal().real.copy() if part.sparse else sums["energy"])
        matrices.append(products)
    problem = replace(task.problem, parts=tuple(parts))
    if problem.scaling is not None:
        problem = with_scales(task, problem, energies, means)
    scales = [part.scale / old.scale for part, old in zip(problem.parts, task.problem.parts, strict=True)]
    power = common_power([float((e * problem.roots**2).sum()) for e in energies], problem.parts, scales)
    scales = [ldexp(s, power - part.whole_power) for s, part in zip(scales, parts, strict=True)]
    return FirstRead(problem.of_unit(power), means, energies, [e / _squared(s) for e, s in zip(energies, scales, strict=True)],
                     matrices, scales)


def _rank(task: Task, matrix: SnapshotMatrix, first: FirstRead, time_vectors: TimeVectors) -> int:
    """How many modes the rule takes; FloorReached where another route would tell more of them from rounding."""
    problem, rule, sigma, total = first.problem, task.rule.in_unit(first.problem.power), time_vectors.sigma, time_vectors.total
    n, mean_kept = problem.n or 0, problem.unit_vector is not None
    usable = int(np.count_nonzero(sigma > matrix.floor * sigma[0])) if sigma[0] > 0 else 0
    check_fluctuation(problem, usable, sigma, first.means)
    usable = min(usable, problem.size)
    k = rule.choose(time_vectors.squared, total, usable, n, problem.size, True)
    short = rule.rank is not None and k < min(rule.rank, n - mean_kept, problem.size)
    short = short or (rule.rank is None and not rule.noise and k == usable < min(n, problem.size)
                      and float(time_vectors.squared[k:].sum()) > rule.allowed(total))
    if matrix.gives_way(task, problem) and (short or sigma[k - 1] < WORTHWHILE * sigma[0]):
        raise FloorReached
    return k


def _weights_of_snapshots(problem: Problem, time_vectors: TimeVectors, k: int) -> np.ndarray:
    """(k, n): what each snapshot enters each mode with."""
    unit = problem.unit_vector
    weights = (time_vectors.vectors[:, :k] / time_vectors.sigma[:k]).conj().T
    if unit is not None:
        weights = weights - (weights @ unit)[:, None] * unit      # exact, so that a large mean leaves no trace
    return weights * problem.roots


def _modes(task: Task, first: FirstRead, weights: np.ndarray) -> np.ndarray:
    """(k, size): the second read."""
    problem, dtype = first.problem, task.accumulator_dtype
    rows = np.empty((len(weights), problem.size), dtype)
    for part, mean, at in zip(problem.parts, first.means, problem.columns, strict=True):
        _, columns = task.reduce_tiles(part, SumsWork(task.transform(part, dtype, mean), weights.astype(dtype)))
        start = at.start
        for piece in columns:
            rows[:, start:start + piece["modes"].shape[1]] = piece["modes"]
            start += piece["modes"].shape[1]
    return rows


def common_power(energies: list[float], parts: Sequence[FieldProblem], scales: list[float]) -> int:
    """The power of the unit in which the energies of all fields together are ordinary numbers; 0 where they are."""
    exponents = [math.frexp(e)[1] // 2 + part.whole_power - math.frexp(s)[1]
                 for e, part, s in zip(energies, parts, scales, strict=True) if e > 0]
    largest = max(exponents, default=0)
    return largest if abs(largest) > 190 else 0


def _squared(scale: float) -> float:
    return scale**2 if abs(scale) < 1e150 else math.inf


def _without_direction(matrix: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """What is left of a Hermitian matrix without the direction `unit`."""
    along = matrix @ unit
    return matrix - np.outer(along, unit) - np.outer(unit, along.conj()) + np.outer(unit, unit) * (unit @ along).real


def _products_with_mass(problem: Problem) -> Callable[[np.ndarray], np.ndarray]:
    def products(rows: np.ndarray) -> np.ndarray:
        total = np.zeros((len(rows), len(rows)), rows.dtype)
        for part, piece in zip(problem.parts, _split(rows, problem), strict=True):
            total += applied(part.matrix if part.sparse else None, piece, part.field.shape) @ piece.conj().T
        return total
    return products


def _split(rows: np.ndarray, problem: Problem) -> list[np.ndarray]:
    return [rows[:, at] for at in problem.columns]


class Gram:
    """All inner products of the snapshots: exact, with the whole spectrum down to sqrt(eps)."""

    name: ClassVar[str] = "gram"
    finer: ClassVar[tuple[str, ...]] = ("tsqr",)
    floor: ClassVar[float] = FLOOR

    def refusal(self, problem: Problem) -> str | None:
        return refusal_of_streams(problem) or refusal_of_rows(problem)

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        return cost_of_snapshots(self.name, problem, rule, budget)

    def decompose(self, task: Task) -> Basis:
        return to_basis(task.problem, method_of_snapshots(task, self), task.reads.passes)

    def read(self, task: Task) -> tuple[FieldProblem, TileSums, list[TileColumns], np.ndarray]:
        (part,) = task.problem.parts
        transform = task.transform(part, task.accumulator_dtype)
        if part.sparse:
            sums, columns = gram_with_mass(task, part, transform)
            return part, sums, columns, sums["gram"]
        sums, columns = task.reduce_tiles(part, GramWork(transform))
        return part, sums, columns, full_matrix(sums["gram"])

    def decompose_matrices(self, first: FirstRead) -> TimeVectors:
        # the weights of snapshots are applied here, so that coefficients come out for snapshots of weight 0 too
        roots, unit = first.problem.roots, first.problem.unit_vector
        weighted = roots[:, None] * np.sum(self._in_one_unit(first), axis=0) * roots
        if unit is not None:
            weighted = _without_direction(weighted, unit)
        values, vectors = np.linalg.eigh(weighted)
        squared, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
        return TimeVectors(np.sqrt(squared), squared, vectors, float(np.trace(weighted).real))

    def gives_way(self, task: Task, problem: Problem) -> bool:
        return task.method == "auto" and not task.accept_floor and not problem.sparse

    def refined(self, time_vectors: TimeVectors, rows: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Rayleigh-Ritz: the modes as read know the eps (sigma_1 / sigma_k)^2 of sigma that eigenvalues lost
        k, sigma = len(rows), time_vectors.sigma
        sigma[:k] = np.linalg.svd(sigma[:k, None] * lower, compute_uv=False)
        # of eigenvalues that are rounding some are above the floor
        kept = int(np.count_nonzero(sigma[:k] > self.floor * sigma[0]))
        return rows[:kept], lower[:kept, :kept]

    def coefficients(self, first: FirstRead, time_vectors: TimeVectors, lower: np.ndarray) -> np.ndarray:
        k, sigma = len(lower), time_vectors.sigma
        if first.problem.weights is None:
            return (time_vectors.vectors[:, :k] * sigma[:k]) @ lower
        weighted = first.problem.roots[:, None] * time_vectors.vectors[:, :k]
        return (np.sum(self._in_one_unit(first), axis=0) @ weighted / sigma[:k]) @ np.linalg.inv(lower).conj().T

    def field_shares(self, first: FirstRead, time_vectors: TimeVectors, coefficients: np.ndarray,
                     rows: np.ndarray) -> list[FieldShare]:
        # A ≈ V Vᴴ A for the exact vectors: the error of a field is what V leaves of it
        roots, vectors = first.problem.roots, time_vectors.vectors[:, :len(rows)]
        shares = []
        for at, lone in enumerate(first.lone):
            gram = first.matrices[at] if lone else first.matrices[at] / _squared(first.scales[at])
            energy = first.field_energies[at] if lone else first.energies[at]
            weighted = roots[:, None] * gram * roots
            carried = float(np.real(np.sum(vectors.conj() * (weighted @ vectors))))
            shares.append(FieldShare(float((energy * roots**2).sum()), carried, carried))
        return shares

    def _in_one_unit(self, first: FirstRead) -> list[np.ndarray]:
        return [m / _squared(s) for m, s in zip(first.matrices, first.scales, strict=True)]


def cost_of_snapshots(route: str, problem: Problem, rule: Rule, budget: Budget) -> Plan:
    """Tiles of all snapshots, a matrix (n, n) for each that is on its way, and a second read for the modes."""
    load, at = loadable(problem), Workload.of(problem, rule)
    n, size, k, wide = at.n, at.size, at.k, at.wide
    extra = (at.nbytes if load else 0) + at.factors
    limit = max(n * at.itemsize * 16, min(budget.memory // 16, TILE))
    width = int(min(max(1, limit // max(n * at.itemsize, 1)), max(256 if route == "gram" else 2 * n,
                                                                  (4 << 20) // max(n * wide, 1))))
    tiles = max(1, math.ceil(at.nbytes / max(limit, 1)))
    if tiles > 8 and n * n * wide * 12 > budget.memory // 2:    # fewer tiles, as each holds a matrix meanwhile
        limit = max(limit, at.nbytes // 4)
        tiles = 4
    # pieces on their way: two a worker, and the logarithm of their number that waits to be joined
    matrices = min(tiles, 2 * budget.workers + math.ceil(math.log2(tiles + 1))) + 2
    peak = matrices * n * n * wide + budget.workers * (1 if route == "gram" else 3) * width * n * wide
    after = 4 * n * n * wide + 2 * k * size * wide
    operations = float(n) * n * size * (1 if route == "gram" else 2) + 2.0 * n * k * size
    if problem.sparse:
        columns = max(1, budget.memory // (4 * wide * max(size, 1)))
        # the mean, each group of snapshots and all against it, the modes
        passes = 1 if load else math.ceil(n / columns) + 3 + (1 if problem.scaling == "max" else 0)
        return Plan(route, passes, at.nbytes * passes, held(extra + peak + columns * size * wide * 2 + at.result),
                    operations * 2, "", rule.rank, problem.n, size, int(limit), width, block=int(columns), load=load)
    passes = 1 if load else 3 if problem.scaling == "max" else 2
    return Plan(route, passes, at.nbytes * passes, held(extra + max(peak, after + at.result)), at.times * operations, "",
                rule.rank, problem.n, size, int(limit), width, load=load)


@dataclass(frozen=True, eq=False)
class GramWork:
    """G = A Aᴴ of a tile, (n, n), in double precision; the lower triangle, added up in place."""

    transform: RowTransform

    def __call__(self, tile: Tile) -> tuple[TileSums, TileColumns]:
        from scipy.linalg.blas import dsyrk, zherk

        n = len(tile)
        is_complex = self.transform.dtype.kind == "c"
        matrix = np.zeros((n, n), self.transform.dtype, order="F")
        energy, means = np.zeros(n), []
        for slab in self.transform.slabs(tile, energy):
            # A in C order is Aᵀ in Fortran's: the product without a copy
            part = np.ascontiguousarray(slab.values).T
            if is_complex:
                matrix = zherk(1.0, part, beta=1.0, c=matrix, trans=2, lower=0, overwrite_c=1)
            else:
                matrix = dsyrk(1.0, part, beta=1.0, c=matrix, trans=1, lower=0, overwrite_c=1)
            means.append(slab.mean)
        return {"gram": matrix, "energy": energy}, {"mean": np.concatenate(means)}


def full_matrix(matrix: np.ndarray) -> np.ndarray:
    """The full matrix from its upper triangle. zherk gives the conjugate of A Aᴴ, as it sees Aᵀ."""
    upper = np.triu(matrix, 1)
    full = upper + upper.conj().T
    full[np.diag_indices(len(full))] = matrix.diagonal().real
    return full.conj() if np.iscomplexobj(full) else full


@dataclass(frozen=True, eq=False)
class SumsWork:
    """Sums of snapshots over a tile, weights (k, n) @ A: modes from the vectors of the Gram matrix."""

    transform: RowTransform
    weights: np.ndarray

    def __call__(self, tile: Tile) -> tuple[TileSums, TileColumns]:
        energy = np.zeros(len(tile))
        modes, means = np.empty((len(self.weights), tile.values.shape[1]), self.transform.dtype), []
        for slab in self.transform.slabs(tile, energy):
            a = slab.start - tile.at
            modes[:, a:a + slab.values.shape[1]] = self.weights @ slab.values
            means.append(slab.mean)
        return {"energy": energy}, {"modes": modes, "mean": np.concatenate(means)}


def orthonormalised(rows: np.ndarray, products: Callable[[np.ndarray], np.ndarray] | None = None) -> tuple[np.ndarray,
                                                                                                           np.ndarray]:
    """Orthonormal rows that span those given, and L with rows = L @ orthonormal; in place where it can.

    `products` gives the inner products of the rows with each other, (k, k), where they are not Euclidean.

    Cholesky QR twice (Fukaya et al. 2014): only k numbers a column are in memory. Householder's where that breaks down.
    """
    k = len(rows)
    total = np.eye(k, dtype=np.result_type(rows.dtype, np.float64))
    for _ in range(2):
        try:
            lower = np.linalg.cholesky((products or _products)(rows))
            if np.linalg.cond(lower) > 1e6 and products is None:
                raise np.linalg.LinAlgError
        except np.linalg.LinAlgError:
            if products is not None:
                raise InputError("the mass matrix is not positive definite, or these modes lie below its rounding; "
                                 "ask for fewer modes") from None
            q, r = np.linalg.qr(rows.conj().T)
            sign = np.where(r.diagonal().real < 0, -1.0, 1.0)
            return np.ascontiguousarray((q * sign).conj().T), total @ (r * sign[:, None]).conj().T
        inverse = np.linalg.inv(lower)
        for a in range(0, rows.shape[1], 1 << 16):
            rows[:, a:a + (1 << 16)] = inverse @ rows[:, a:a + (1 << 16)]
        total = total @ lower
    return rows, total


def _products(rows: np.ndarray) -> np.ndarray:
    wide = np.result_type(rows.dtype, np.float64)
    total = np.zeros((len(rows), len(rows)), wide)
    for a in range(0, rows.shape[1], 1 << 16):
        part = rows[:, a:a + (1 << 16)].astype(wide, copy=False)
        total += part @ part.conj().T
    return total
