"""Block Krylov steps over slabs of space, one read each, until another would change little."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ensemblekit.engine import one_blas_thread
from ensemblekit.errors import InputError
from ensemblekit.rom.decompose.decomposition import Decomposition, check_fluctuation, errors_of_fields, shares_of_fields
from ensemblekit.rom.decompose.planning import MOST_STEPS, RUN, TILE, Budget, Plan, Workload, held, loadable, page_cache
from ensemblekit.rom.decompose.problem import Problem
from ensemblekit.rom.decompose.ritz import (
    First,
    Ritz,
    SampleWork,
    StepWork,
    adjoint,
    below_floor,
    block_width,
    first_block,
    floor_of,
    orthogonal,
    ritz,
)
from ensemblekit.rom.decompose.scales import scaled_by_tiles
from ensemblekit.rom.decompose.task import NotFinite, Task, in_range
from ensemblekit.rom.rank import Rule

GAIN_TOLERANCE = 1e-3
"""The randomized route reads once more where another step could lower the error by more than this share of it."""

LITTLE = 0.05
"""Share of what is left out, below which the gain of a step says that residuals are to be believed."""
SLAB_BYTES = 3 << 20
"""Bytes of a slab that is multiplied twice while it is in the cache."""
SAMPLE = 8192
"""Columns of the sample at the most."""
SAMPLE_GROUP = 1024
"""Columns of the sample that are multiplied at a time."""
CACHED_COLUMNS = 4096


def block_krylov(task: Task, dtype: np.dtype, accept_floor: bool = False) -> Decomposition | None:
    """Block Krylov steps, one read each, until another would change little. None below the floor of the arithmetic."""
    return in_range(replace(task, problem=scaled_by_tiles(task)), functools.partial(_steps, dtype=dtype,
                                                                                   accept_floor=accept_floor))


def _steps(task: Task, dtype: np.dtype, accept_floor: bool) -> Decomposition | None:
    problem = task.problem
    n, unit = problem.n or 0, problem.unit_vector
    most = min(n - (unit is not None), problem.size)
    width, rank = min(task.plan.block, most), min(task.rule.rank or 50, most)
    with one_blas_thread():     # slabs are worked on side by side: threads of BLAS would only wait for each other
        first = first_block(_known(task, problem, dtype), n, width, unit, task.seed, dtype)
        space = KrylovSpace.empty(task, dtype)
        pairs = _iterate(space, first, rank)
        check_fluctuation(problem, int(pairs.sigma[0] > 0), pairs.sigma, space.means)
        if not accept_floor and below_floor(pairs.sigma, rank, max(space.total - pairs.captured, 0.0), space.total, dtype):
            return None
        return _decomposition(space, pairs)


@dataclass(eq=False)
class KrylovSpace:
    """The blocks over time so far, and their products with the snapshots: each step reads the snapshots once."""

    task: Task
    dtype: np.dtype
    """Of the arithmetic."""
    basis: np.ndarray
    """Q (n, m), the blocks side by side."""
    field_products: list[np.ndarray]
    """A_f Aᴴ Q (n, m) of each field."""
    krylov_blocks: list[list[list[np.ndarray]]] = field(default_factory=list)
    """Step -> field -> parts of C = Aᴴ Q, from left to right."""
    means: list[np.ndarray] = field(default_factory=list)
    energies: list[np.ndarray] = field(default_factory=list)
    """(n,) of each field, from the last step."""
    total: float = math.inf

    @classmethod
    def empty(cls, task: Task, dtype: np.dtype) -> KrylovSpace:
        n = task.problem.n or 0
        return cls(task, dtype, np.empty((n, 0), task.accumulator_dtype),
                   [np.empty((n, 0), task.accumulator_dtype) for _ in task.problem.parts])

    def step(self, block: np.ndarray) -> None:
        """Take in another block (n, l) by a read of the snapshots."""
        task, problem = self.task, self.task.problem
        n, roots = problem.n or 0, problem.roots
        begun = bool(self.krylov_blocks)
        one_pass = not begun and problem.unit_vector is not None and block.shape[1] < n - 1
        weighted = (roots[:, None] * block).astype(self.dtype)
        self.energies, parts, products, mean_offset = [], [], [], 0.0
        for at, part in enumerate(problem.parts):
            transform = task.transform(part, self.dtype, self.means[at] if begun else None)
            if one_pass:
                transform = replace(transform, one_pass=True)
            sums, columns = task.reduce_tiles(part, StepWork(transform, weighted))
            if not np.isfinite(sums["energy"]).all():
                raise NotFinite
            if not begun:
                self.means.append(np.concatenate([c["mean"] for c in columns]))
            mean_offset += float(sums["mean_offset"])
            self.energies.append(sums["energy"])
            parts.append([c["adjoint"] for c in columns])
            # the first look subtracts about the mean: off by the same for all rows, whose mean is 0
            products.append(sums["next"] - transform.share @ sums["next"] if one_pass else sums["next"])
        self.krylov_blocks.append(parts)
        self.basis = np.hstack([self.basis, block])
        self.field_products = [np.hstack([old, new]) for old, new in zip(self.field_products, products, strict=True)]
        self.total = float((self.energy * roots**2).sum())
        if mean_offset * n > self.total:
            self.total = math.inf            # what was subtracted was no mean at all: the next step measures

    @property
    def energy(self) -> np.ndarray:
        """(n,) of each snapshot."""
        return np.sum(self.energies, axis=0)

    @property
    def adjoint_products(self) -> np.ndarray:
        """A Aᴴ Q (n, m)."""
        return np.sum(self.field_products, axis=0)

    @property
    def rotated(self) -> np.ndarray:
        """The same with the weights of the snapshots, less the direction of the mean."""
        unit = self.task.problem.unit_vector
        products = self.task.problem.roots[:, None] * self.adjoint_products
        return products if unit is None else products - unit[:, None] * (unit @ products)

    def gram(self) -> np.ndarray:
        """Cᴴ C over all blocks, in double precision."""
        engine, blocks = self.task.local_engine, self.krylov_blocks
        parts = (part for at in range(len(blocks[0])) for part in engine.map(_gram_of, _columns(blocks, at), None))
        return functools.reduce(operator.add, parts)

    def modes(self, mix: np.ndarray) -> list[np.ndarray]:
        """mixᴴ Cᴴ of each field, (k, size)."""
        modes = []
        for at, part in enumerate(self.task.problem.parts):
            rows = np.empty((mix.shape[1], part.field.size), self.dtype)
            for _ in self.task.local_engine.map(_combine, _columns(self.krylov_blocks, at), (rows, mix)):
                pass
            modes.append(rows)
        return modes


def _iterate(space: KrylovSpace, first: First, rank: int) -> Ritz:
    """Steps until another would change little."""
    problem, plan = space.task.problem, space.task.plan
    n, unit = problem.n or 0, problem.unit_vector
    width, block = first.block.shape[1], first.block
    before: float | None = None
    while True:
        space.step(block)
        rotated, total, steps = space.rotated, space.total, len(space.krylov_blocks)
        pairs = ritz(space.gram(), rotated, rank)
        gain = math.inf if before is None else pairs.captured - before
        before = pairs.captured
        left = max(total - pairs.captured, 0.0)
        if not total:
            return pairs
        room = n - (unit is not None) - space.basis.shape[1]
        # residuals know nothing of what no block has met yet: they are believed where the last step found little, or the
        # sample left nothing unseen that could be among the modes
        believed = gain <= LITTLE * left or (steps == 1 and first.unseen(rotated, unit) < pairs.least(rank))
        expected = 2 * pairs.gain(space.basis, rotated, width - first.probes) if believed else gain
        if room <= 0 or steps >= MOST_STEPS or (steps >= plan.steps and math.isfinite(total) and (
                min(gain, expected) <= 2 * GAIN_TOLERANCE * left or gain <= 1e-13 * total)):
            return pairs
        block = orthogonal(rotated[:, -block.shape[1]:], unit, space.basis)[:, :room]


def _decomposition(space: KrylovSpace, pairs: Ritz) -> Decomposition:
    """The modes of all blocks, as many as the rule takes."""
    task, problem, total, n = space.task, space.task.problem, space.total, space.task.problem.n or 0
    rule = task.rule.in_unit(problem.power)
    sigma, floor = pairs.sigma, floor_of(space.dtype)
    left = max(total - pairs.captured, 0.0)
    k = max(1, int(np.count_nonzero(sigma > floor * sigma[0])))
    if not rule.counted:
        k = _chosen(rule, sigma[:k] ** 2, total, n, problem.size)
    left += float((sigma[k:] ** 2).sum())
    sigma, mix = sigma[:k], pairs.mix[:, :k]
    coefficients = space.adjoint_products @ mix
    energy = space.energy
    residual = energy - (np.abs(coefficients) ** 2).sum(1)
    modes = space.modes(mix)
    errors = errors_of_fields(shares_of_fields(problem, modes, [one @ mix for one in space.field_products], space.energies,
                                               coefficients))
    space.krylov_blocks.clear()
    known = np.sqrt(pairs.values[pairs.values > (floor * sigma[0]) ** 2])
    spectrum = np.concatenate([sigma, known[k:]]) if len(known) > k else sigma
    return Decomposition(spectrum, False, coefficients, modes, space.means, total, left, energy, errors, floor, "randomized",
                         sigma, np.clip(residual, 0, None), [part.scale for part in problem.parts], problem.power)


def _chosen(rule: Rule, squared: np.ndarray, total: float, n: int, size: int) -> int:
    """How many of the modes that the randomized route found a rule takes that does not count them."""
    k = rule.choose(squared, total, len(squared), n, size, False)
    if total - float(squared[:k].sum()) > rule.allowed(total) * (1 + 1e-6) and k < min(n - 1, size):
        raise InputError(f"the {k} modes that the randomized route found leave an error of "
                         f"{100 * math.sqrt(max(total - float(squared.sum()), 0) / total):.3g} %, more than allowed; give a "
                         'larger rank, or method="gram"')
    return k


def _known(task: Task, problem: Problem, dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray] | None:
    """A Aᴴ times a block, from some thousand columns of all fields; None where picking them would cost a read of the file."""
    if not task.plan.sample:
        return None
    share = task.plan.sample / problem.size
    samples: list[np.ndarray] = []
    for part in problem.parts:
        # of what is in memory the columns alone are touched; of a file about every page
        sums, columns = task.reduce_tiles(part, SampleWork(task.transform(part, dtype), share, task.seed),
                                    counted=not problem.in_memory)
        if not np.isfinite(sums["energy"]).all():
            return None         # the step will say what is wrong
        some = max(1, SAMPLE_GROUP * len(columns) // task.plan.sample)
        groups = (columns[a:a + some] for a in range(0, len(columns), some))
        roots = None if problem.weights is None else problem.roots.astype(dtype)[:, None]
        samples += task.local_engine.map(_joined, groups, roots)
    scale = problem.size / sum(sample.shape[1] for sample in samples)

    def product(block: np.ndarray) -> np.ndarray:
        return scale * functools.reduce(operator.add, task.local_engine.map(_there_and_back, iter(samples), block))
    return product


def _joined(roots: np.ndarray | None, pieces: list[dict[str, np.ndarray]]) -> np.ndarray:
    sample = np.concatenate([piece.pop("sample") for piece in pieces], axis=1)
    return sample if roots is None else sample * roots


def _there_and_back(block: np.ndarray, sample: np.ndarray) -> np.ndarray:
    back = adjoint(sample) @ block
    return (sample @ back).astype(np.result_type(block.dtype, np.float64))


def _columns(blocks: list[list[list[np.ndarray]]], at: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """The parts of C of a field, those of all blocks together, with the column where they begin."""
    start = 0
    for pieces in zip(*(step[at] for step in blocks), strict=True):
        yield start, pieces
        start += len(pieces[0])


def _in_double(pieces: tuple[np.ndarray, ...]) -> Iterator[tuple[int, np.ndarray]]:
    wide = np.result_type(pieces[0].dtype, np.float64)
    for a in range(0, len(pieces[0]), CACHED_COLUMNS):
        yield a, np.concatenate([p[a:a + CACHED_COLUMNS] for p in pieces], axis=1, dtype=wide)


def _combine(shared: tuple[np.ndarray, np.ndarray], item: tuple[int, tuple[np.ndarray, ...]]) -> None:
    (rows, mix), (start, pieces) = shared, item
    for a, wide in _in_double(pieces):
        rows[:, start + a:start + a + len(wide)] = mix.conj().T @ wide.conj().T


def _gram_of(_: None, item: tuple[int, tuple[np.ndarray, ...]]) -> np.ndarray:
    return functools.reduce(operator.add, (wide.conj().T @ wide for _, wide in _in_double(item[1])))


def cost_in_space(problem: Problem, rule: Rule, budget: Budget) -> Plan:
    """One step where a sample of the columns makes its block, or several from random vectors where memory wants that."""
    plan = _cost(problem, rule, budget, True)
    return plan if plan.sample and plan.memory_bytes <= budget.memory else _cost(problem, rule, budget, False)


def _cost(problem: Problem, rule: Rule, budget: Budget, once: bool) -> Plan:
    load, at = loadable(problem), Workload.of(problem, rule)
    n, size, memory, workers = at.n, at.size, budget.memory, budget.workers
    work = at.wide // 2 if problem.is_single else at.wide
    slivers = 0 if problem.in_memory else RUN * n
    even = int(np.clip(-(-at.nbytes // (8 * workers)), TILE, 4 * TILE))     # few, as many for each worker
    limit = max(n * at.itemsize * 16, min(memory // 4, max(even, min(slivers, 1 << 30))))
    # a few hundred columns at least, a piece of every row worth its way to memory, where memory allows
    slab = min(max(SLAB_BYTES, 256 * n * work), memory // (16 * workers))
    width = int(min(max(64, slab // max(n * work, 1) // 64 * 64), 4096))
    tiles = max(1, math.ceil(at.nbytes / limit))
    block = block_width(at.k, budget.oversampling, n, once)
    columns = int(min(size, SAMPLE, max(4 * block, size // 16), max(4 * block, memory // (24 * max(n, 1) * work))))
    # of what stays in memory the sample is the one read from the disk
    if not problem.in_memory and at.nbytes > max(4 * memory, page_cache()):
        columns = 0             # picking columns would cost a read; random vectors cost a step
    steps = budget.steps if once else max(budget.steps, 2) + (0 if columns else 1)
    states = min(tiles, 2 * workers + math.ceil(math.log2(tiles + 1)) + 2) * n * block * at.wide
    peak = states + workers * width * n * work + steps * size * block * work + 2 * columns * n * work + 2 * size * 8
    other = at.scaling + (1 if columns and not problem.in_memory else 0)
    passes, most = (1, 1) if load else (steps + other, max(steps, MOST_STEPS) + other)
    extra = (at.nbytes if load else 0) + at.factors
    result = at.k * size * work + n * at.k * at.wide
    return Plan("randomized", passes, at.nbytes * passes, held(extra + peak + result),
                at.times * steps * 4.0 * n * size * block, "", rule.rank, problem.n, size, int(limit), width, block=block,
                sample=columns, load=load, steps=steps, most_passes=most)
