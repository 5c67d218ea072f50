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
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ensemblekit.engine import Engine, one_blas_thread
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decomposition import LEAST, Found, assembled
from ensemblekit.rom.gram import orthonormalised
from ensemblekit.rom.incremental import IncrementalPOD
from ensemblekit.rom.problem import Part, Problem
from ensemblekit.rom.rank import Rule
from ensemblekit.rom.reading import rows_of
from ensemblekit.rom.route import MOST_STEPS, Budget, Plan, Workload, held
from ensemblekit.rom.scales import scaled
from ensemblekit.rom.task import Job

SLAB = 4096
SETTLED = 2e-7
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
    turned: np.ndarray | None
    """(keep, size): Cᴴ A, with the weights of the snapshots."""


def settled(job: Job, stream: IncrementalPOD) -> Basis:
    """The modes of a stream that was read once, with the coefficients that suit them, exact errors and, where they are a
    space of their own, brought to within 1e-6 of it by as many further reads as that takes."""
    problem = replace(job.problem, parts=tuple(stream.dressed(job.problem.parts)))
    parts = problem.parts
    roots = problem.roots
    mean = stream.centre
    k = stream.chosen
    q, _ = orthonormalised(stream.modes.astype(job.wide))
    off = stream.off(k)
    reads = job.plan.most_passes - job.reads.passes if job.plan.most_passes else 1
    with one_blas_thread():
        while True:
            reads -= 1
            more = off > SETTLED and reads > 0
            read = _read(job, parts, q, mean, roots if more else None)
            products = read.products.sum(1)
            left, sigma, turn = np.linalg.svd(roots[:, None] * products, full_matrices=False)
            apart = len(sigma) > k and sigma[k - 1] > GAP * sigma[k]
            if not (more and apart):
                break
            nearer, change = _nearer(read.turned, sigma, turn, q, k, job.local)
            if change <= SETTLED:
                break
            q, off = nearer, change
            del nearer, read, left
    k = max(1, min(k, int(np.count_nonzero(sigma > stream.floor * sigma[0]))))      # what rounding had made a direction is none
    rows = np.empty((k, q.shape[1]), q.dtype)
    for _ in job.local.map(_combined, _slabs(q.shape[1]), (turn[:k], q, rows)):
        pass
    total = float((read.energies.sum(1) * roots**2).sum())
    coefficients = products @ turn[:k].conj().T
    edges = list(pairwise(np.cumsum([0, *(part.field.size for part in parts)])))
    errors = []
    if len(parts) > 1:
        c = roots[:, None] * coefficients
        for at, (a, b) in enumerate(edges):
            own = float((read.energies[:, at] * roots**2).sum())
            if own < LEAST and problem.power:
                errors.append(math.nan)
                continue
            gram = rows[:, a:b] @ rows[:, a:b].conj().T
            along = roots[:, None] * (read.products[:, at] @ turn[:k].conj().T)
            kept = 2 * np.sum(c.conj() * along).real - np.sum(gram.T * (c.conj().T @ c)).real
            errors.append(math.sqrt(max(own - float(kept), 0) / own) if own > 0 else 0.0)
    spectrum = sigma[sigma > stream.floor * sigma[0]]
    energy = read.energies.sum(1)
    del read, q
    residual = max(total - float((sigma[:k] ** 2).sum()), 0.0)
    return assembled(problem, Found(spectrum, False, coefficients, [rows[:, a:b] for a, b in edges],
                                    [mean[a:b] for a, b in edges], total, residual, energy, errors, stream.error_floor,
                                    "incremental", sigma[:k], power=problem.power), job.reads.passes)


def _read(job: Job, parts: tuple[Part, ...], q: np.ndarray, mean: np.ndarray, roots: np.ndarray | None) -> Read:
    """One read; `roots` are those of the weights where the product with all snapshots is wanted too."""
    cuts = list(_cuts(parts))
    turned = None if roots is None else np.zeros_like(q)
    products, energies, at = [], [], 0
    for values, _, _ in rows_of(job):
        rows = [np.asarray(values[part.name]).reshape(len(values[part.name]), -1) for part in parts]
        step = Step(parts, rows, q, mean)
        m = len(rows[0])
        found = np.zeros((m, len(parts), len(q)), q.dtype)
        energy = np.zeros((m, len(parts)))
        for part, made, squares in job.local.map(_projected, cuts, step):
            found[:, part] += made
            energy[:, part] += squares
        if roots is not None and turned is not None:
            weighted = (found.sum(1) * (roots[at:at + m, None] ** 2)).conj().T
            for _ in job.local.map(_added, cuts, (step, weighted, turned)):
                pass
        products.append(found)
        energies.append(energy)
        at += m
    return Read(np.concatenate(products), np.concatenate(energies), turned)


@dataclass(frozen=True, eq=False)
class Step:
    """A block of snapshots beside the directions."""

    parts: tuple[Part, ...]
    rows: list[np.ndarray]
    q: np.ndarray
    mean: np.ndarray

    def values(self, cut: Cut) -> np.ndarray:
        """(m, width): about the mean, times the roots of the inner product."""
        found = self.rows[cut.part][:, cut.own] - self.mean[cut.joined]
        factors = self.parts[cut.part].factors
        return found if factors is None else np.where(factors[cut.own] > 0, found * factors[cut.own], 0)


def _projected(step: Step, cut: Cut) -> tuple[int, np.ndarray, np.ndarray]:
    values = step.values(cut)
    return cut.part, values @ step.q[:, cut.joined].conj().T, np.square(np.abs(values)).sum(1)


def _added(shared: tuple[Step, np.ndarray, np.ndarray], cut: Cut) -> None:
    step, weighted, turned = shared
    turned[:, cut.joined] += weighted @ step.values(cut)


def _nearer(turned: Any, sigma: np.ndarray, turn: np.ndarray, q: np.ndarray, k: int,
            engine: Engine) -> tuple[np.ndarray, float]:
    """(directions after the step, sine of the largest angle between the first k of them and those before)."""
    usable = int(np.count_nonzero(sigma > 1e-7 * sigma[0]))
    usable = max(usable, min(k, len(sigma)))
    # with C = U S T, Cᴴ A = Tᴴ S Uᴴ A: rows of Uᴴ A, whose singular values are those of A within the span of U
    mix = turn[:usable] / sigma[:usable, None]
    for _ in engine.map(_combined, _slabs(q.shape[1]), (mix, turned, turned)):
        pass
    rows = turned[:usable]
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


def _cuts(parts: tuple[Part, ...]) -> Iterator[Cut]:
    start = 0
    for at, part in enumerate(parts):
        for own in _slabs(part.field.size):
            yield Cut(at, own, slice(start + own.start, start + own.stop))
        start += part.field.size


def incremental_pod(job: Job) -> Basis:
    """The incremental route of pod: one read, and where the source allows it further ones: see :mod:`projection`."""
    problem = scaled(job)
    products = {part.name: part.product for part in problem.parts if part.product is not None}
    shift: Any = problem.center
    if problem.center not in ("mean", "none", "first"):
        shift = {part.name: part.shift for part in problem.parts}
    n = problem.n
    rank = job.rule.rank
    feeding = IncrementalPOD.of_fields(
        {part.name: part.field for part in problem.parts},
        {part.name: part.mask for part in problem.parts if part.mask is not None}, job.rule, inner_product=products or None,
        center=shift, keep=None if rank is None else min(job.plan.block, max(n or rank, 1)), block=job.plan.width,
        memory_limit=job.memory, engine=job.local, scale={part.name: part.scale for part in problem.parts})
    for values, times, weights in rows_of(job):
        feeding.update(values, times, weights)
    if problem.access == "once":
        return replace(feeding.result(), time_unit=problem.time_unit, mesh=problem.mesh)
    return settled(replace(job, problem=problem), feeding.whole())


class Incremental:
    """Snapshots one block after the other, keeping the leading directions, and further reads until the modes settle."""

    name: ClassVar[str] = "incremental"
    finer: ClassVar[tuple[str, ...]] = ()

    def refusal(self, problem: Problem) -> str | None:
        if problem.sparse:
            return "a sparse mass matrix goes with the gram route"
        if problem.scaling is not None and problem.access == "once":
            return f'scale="{problem.scaling}" needs a read beforehand; give the scales as a mapping of field to number'
        return None

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        at = Workload.of(problem, rule)
        n, size, k, wide, itemsize = at.n, at.size, at.k, at.wide, at.itemsize
        keep = 2 * k + 10
        width = max(8, min(keep, n or keep))
        state = wide if not problem.single else wide // 2
        rows = keep + width
        peak = 2 * rows * size * state + 2 * width * size * itemsize + 3 * rows**2 * 8 * budget.workers + 3 * size * 8
        operations = (float(keep + width) ** 2 / width + 2.0 * (keep + width) * keep / width) * n * size
        # the modes that are turned until they settle and what they become, in double precision
        peak = max(peak, (2 * keep * wide + 2 * width * itemsize) * size) + (8 + k * wide) * size
        once = problem.access == "once"
        passes = (1 if once else 2) + at.scaling      # the second one projects
        return Plan(self.name, passes, at.nbytes * passes, held(at.factors + peak + 2 * n * keep * len(problem.parts) * 8),
                    at.times * operations, "", rule.rank, problem.n, size, int(max(width * size * itemsize, 1)), width,
                    block=keep, most_passes=passes if once else max(passes, MOST_STEPS + at.scaling))

    def decompose(self, task: Job) -> Basis:
        return incremental_pod(task)
