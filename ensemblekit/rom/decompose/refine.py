"""Further reads in order of time: modes that settle, coefficients by projection, what they leave of every snapshot and field.

A stream forgets what it leaves out, so its modes are a little off. Where the snapshots can be read again, one product with
all of them, Y = Cᴴ A for the coefficients C = A Qᴴ of the directions kept, costs nothing but arithmetic beside the projection
that is made anyway, and brings the modes closer by (sigma of the first direction not kept / sigma of the last mode)²: a step
of subspace iteration (Halko, Martinsson & Tropp 2011). The change it makes tells how far off they were; reading ends where
that is little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ensemblekit.engine import Engine, one_blas_thread
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.decomposition import LEAST, Decomposition, errors_of_fields, shares_of_fields, to_basis
from ensemblekit.rom.decompose.directions import Directions
from ensemblekit.rom.decompose.gram import orthonormalised
from ensemblekit.rom.decompose.problem import FieldProblem, Problem
from ensemblekit.rom.decompose.reading import rows_of
from ensemblekit.rom.decompose.task import Task

SLAB = 4096
ANGLE_TOLERANCE = 2e-7
"""Sine of the largest angle by which the modes may be off."""
GAP = 1.1
"""The modes are a space of their own where the last one's singular value is this many times the next one's."""


class Cut(NamedTuple):
    """Some columns of one field, and where they stand in all fields joined."""

    part: int
    own: slice
    joined: slice


@dataclass(frozen=True, eq=False)
class Read:
    """What one read with the directions Q (keep, size) finds."""

    products: np.ndarray
    """(n, fields, keep): what each field adds to the coefficients A Qᴴ."""
    energies: np.ndarray
    """(n, fields)."""
    rotated: np.ndarray | None
    """(keep, size): Cᴴ A, with the weights of the snapshots."""


def refine(task: Task, directions: Directions) -> Basis:
    """The modes of a stream that was read once, with the coefficients that suit them, exact errors and, where they are a
    space of their own, brought to within 1e-6 of it by as many further reads as that takes."""
    problem = replace(task.problem, parts=tuple(directions.scaled_parts(task.problem.parts)))
    roots, mean, k = problem.roots, directions.offset, directions.selected_rank
    q, read, sigma, turn = _iterate(task, problem, directions, k)
    # what rounding had made a direction is none
    k = max(1, min(k, int(np.count_nonzero(sigma > directions.floor * sigma[0]))))
    rows = np.empty((k, q.shape[1]), q.dtype)
    for _ in task.local_engine.map(_combined, _slabs(q.shape[1]), (turn[:k], q, rows)):
        pass
    back = turn[:k].conj().T
    coefficients = read.products.sum(1) @ back
    energy = read.energies.sum(1)
    total = float((energy * roots**2).sum())
    modes = [rows[:, at] for at in problem.columns]
    shares = shares_of_fields(problem, modes, [read.products[:, at] @ back for at in range(len(modes))], read.energies.T,
                              coefficients)
    errors = errors_of_fields([share._replace(lost=share.energy < LEAST and problem.power != 0) for share in shares])
    spectrum = sigma[sigma > directions.floor * sigma[0]]
    del read, q
    residual = max(total - float((sigma[:k] ** 2).sum()), 0.0)
    return to_basis(problem, Decomposition(spectrum, False, coefficients, modes, [mean[at] for at in problem.columns], total,
                                           residual, energy, errors, directions.error_floor, "incremental", sigma[:k],
                                           power=problem.power), task.reads.passes)


def _iterate(task: Task, problem: Problem, directions: Directions, k: int) -> tuple[np.ndarray, Read, np.ndarray, np.ndarray]:
    """Reads until the first k directions settle: (directions Q, what the last read found, singular values and right singular
    vectors of the coefficients in Q)."""
    roots, mean = problem.roots, directions.offset
    q, _ = orthonormalised(directions.modes.astype(task.accumulator_dtype))
    angle = directions.angle_bound(k)
    reads = task.plan.most_passes - task.reads.passes if task.plan.most_passes else 1
    with one_blas_thread():
        while True:
            reads -= 1
            more = angle > ANGLE_TOLERANCE and reads > 0
            read = _read(task, problem.parts, q, mean, roots if more else None)
            left, sigma, turn = np.linalg.svd(roots[:, None] * read.products.sum(1), full_matrices=False)
            apart = len(sigma) > k and sigma[k - 1] > GAP * sigma[k]
            if read.rotated is None or not apart:
                return q, read, sigma, turn
            nearer, change = _nearer(read.rotated, sigma, turn, q, k, task.local_engine)
            if change <= ANGLE_TOLERANCE:
                return q, read, sigma, turn
            q, angle = nearer, change
            del nearer, read, left


def _read(task: Task, parts: tuple[FieldProblem, ...], q: np.ndarray, mean: np.ndarray, roots: np.ndarray | None) -> Read:
    """One read; `roots` are those of the weights where the product with all snapshots is wanted too."""
    cuts = list(_cuts(parts))
    rotated = None if roots is None else np.zeros_like(q)
    products, energies, at = [], [], 0
    for values, _, _ in rows_of(task):
        rows = [np.asarray(values[part.name]).reshape(len(values[part.name]), -1) for part in parts]
        step = Step(parts, rows, q, mean)
        m = len(rows[0])
        by_part = np.zeros((m, len(parts), len(q)), q.dtype)
        energy = np.zeros((m, len(parts)))
        for part, projection, squares in task.local_engine.map(_projected, cuts, step):
            by_part[:, part] += projection
            energy[:, part] += squares
        if roots is not None and rotated is not None:
            weighted = (by_part.sum(1) * (roots[at:at + m, None] ** 2)).conj().T
            for _ in task.local_engine.map(_added, cuts, (step, weighted, rotated)):
                pass
        products.append(by_part)
        energies.append(energy)
        at += m
    return Read(np.concatenate(products), np.concatenate(energies), rotated)


@dataclass(frozen=True, eq=False)
class Step:
    """A block of snapshots beside the directions."""

    parts: tuple[FieldProblem, ...]
    rows: list[np.ndarray]
    q: np.ndarray
    mean: np.ndarray

    def values(self, cut: Cut) -> np.ndarray:
        """(m, width): about the mean, times the roots of the inner product."""
        deviations = self.rows[cut.part][:, cut.own] - self.mean[cut.joined]
        factors = self.parts[cut.part].factors
        return deviations if factors is None else np.where(factors[cut.own] > 0, deviations * factors[cut.own], 0)


def _projected(step: Step, cut: Cut) -> tuple[int, np.ndarray, np.ndarray]:
    values = step.values(cut)
    return cut.part, values @ step.q[:, cut.joined].conj().T, np.square(np.abs(values)).sum(1)


def _added(shared: tuple[Step, np.ndarray, np.ndarray], cut: Cut) -> None:
    step, weighted, rotated = shared
    rotated[:, cut.joined] += weighted @ step.values(cut)


def _nearer(rotated: np.ndarray, sigma: np.ndarray, turn: np.ndarray, q: np.ndarray, k: int,
            engine: Engine) -> tuple[np.ndarray, float]:
    """(directions after the step, sine of the largest angle between the first k of them and those before)."""
    usable = int(np.count_nonzero(sigma > 1e-7 * sigma[0]))
    usable = max(usable, min(k, len(sigma)))
    # with C = U S T, Cᴴ A = Tᴴ S Uᴴ A: rows of Uᴴ A, whose singular values are those of A within the span of U
    mix = turn[:usable] / sigma[:usable, None]
    for _ in engine.map(_combined, _slabs(q.shape[1]), (mix, rotated, rotated)):
        pass
    rows = rotated[:usable]
    gram: Any = 0
    for part in engine.map(_gram, _slabs(q.shape[1]), rows):
        gram = gram + part
    values, vectors = np.linalg.eigh(gram)
    order = (vectors[:, ::-1] / np.sqrt(np.maximum(values[::-1], 1e-300))).conj().T
    for _ in engine.map(_combined, _slabs(q.shape[1]), (order, rows, rows)):
        pass
    rows, _ = orthonormalised(rows)
    # orthonormalised by Cholesky: each row depends on those above it alone, so the first k still span the first k
    before = turn[:k]
    cosines: Any = 0
    for part in engine.map(_cosines, _slabs(q.shape[1]), (rows[:k], before, q)):
        cosines = cosines + part
    outside: Any = 0
    for part in engine.map(_outside, _slabs(q.shape[1]), (rows[:k], before, q, cosines)):
        outside = outside + part
    return rows, math.sqrt(max(float(np.linalg.eigvalsh(outside)[-1]), 0.0))


def _combined(shared: tuple[np.ndarray, np.ndarray, np.ndarray], at: slice) -> None:
    mix, rows, out = shared
    out[:len(mix), at] = mix @ rows[:, at]


def _gram(rows: np.ndarray, at: slice) -> np.ndarray:
    return rows[:, at] @ rows[:, at].conj().T


def _cosines(shared: tuple[np.ndarray, np.ndarray, np.ndarray], at: slice) -> np.ndarray:
    new, before, q = shared
    return new[:, at] @ (before @ q[:, at]).conj().T


def _outside(shared: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], at: slice) -> np.ndarray:
    new, before, q, cosines = shared
    rest = new[:, at] - cosines @ (before @ q[:, at])
    return rest @ rest.conj().T


def _slabs(size: int) -> Iterator[slice]:
    return (slice(a, min(a + SLAB, size)) for a in range(0, size, SLAB))


def _cuts(parts: tuple[FieldProblem, ...]) -> Iterator[Cut]:
    start = 0
    for at, part in enumerate(parts):
        for own in _slabs(part.field.size):
            yield Cut(at, own, slice(start + own.start, start + own.stop))
        start += part.field.size
