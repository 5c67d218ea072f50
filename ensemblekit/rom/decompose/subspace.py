"""Leading modes in order of time: for files whose slabs of space would be read in slivers, or cannot be read at all.

With A the centred snapshots (n, size) and V a block of orthonormal fields (l, size), a read gives, block of snapshots by
block, Y = A Vᴴ (kept: the coefficients) and adds up Yᴴ A (the fields of the next block): one step of subspace iteration with
AᴴA and the Rayleigh–Ritz of the one before, from each snapshot once. The first block comes from snapshots picked at random,
with Gaussian fields beside it for what they missed; a read makes a step of both, and a second one measures what that found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.engine import one_blas_thread
from ensemblekit.rom.decompose.decomposition import Decomposition, check_fluctuation, errors_of_fields, shares_of_fields
from ensemblekit.rom.decompose.gram import orthonormalised
from ensemblekit.rom.decompose.krylov import GAIN_TOLERANCE
from ensemblekit.rom.decompose.planning import CACHEFUL, MOST_STEPS, Budget, Plan, Workload, held
from ensemblekit.rom.decompose.problem import Problem, snapshot_at
from ensemblekit.rom.decompose.ritz import PROBES, adjoint, below_floor, block_width, floor_of, gain_of, probes_in
from ensemblekit.rom.decompose.scales import scaled
from ensemblekit.rom.decompose.slabs import RowTransform, Tile
from ensemblekit.rom.decompose.task import NotFinite, Task, in_range
from ensemblekit.rom.decompose.units import OutOfRange
from ensemblekit.rom.rank import Rule
from ensemblekit.source import Array, Block
from ensemblekit.source_cuts import MIN_PIECES

WIDE = 1 << 14
"""Columns that are turned into double precision at a time."""


class SnapshotRows(NamedTuple):
    """Snapshots on their way to a reducer: the values (m, size) of each field."""

    values: tuple[Array, ...]

    def __len__(self) -> int:  # snapshots, as a reducer counts them
        return len(self.values[0])


@dataclass(frozen=True)
class TakeRows:
    """The map from a block to the snapshots of the fields named."""

    names: tuple[str, ...]

    def __call__(self, block: Block) -> SnapshotRows:
        return SnapshotRows(tuple(np.asarray(block.fields[name]).reshape(len(block), -1) for name in self.names))


@dataclass(frozen=True, eq=False)
class SubspaceStep:
    """What a read finds out about a block of fields V (l, size): see :class:`SubspaceReducer`."""

    transforms: tuple[RowTransform, ...]
    """Of each field, with what is subtracted known."""
    rows: np.ndarray
    """V (l, size), the fields one after the other, and in a row of its own what should be subtracted beyond the transforms'
    shift, which is a number of the arithmetic: (l + 1, size)."""
    weights: np.ndarray | None
    """(n,) statistical weights; None: 1."""

    def add(self, snapshots: SnapshotRows, start: int, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Y of each field (fields, m, l), energies (fields, m)); ``sums[:l]`` += Yᴴ W A and ``sums[l]`` += 1ᴴ W A."""
        m, vectors = len(snapshots), len(self.rows) - 1
        wide = np.result_type(self.rows.dtype, np.float64)
        y, energy = np.zeros((len(self.transforms), m, vectors + 1), wide), np.zeros((len(self.transforms), m))
        for k, at, slab in self._slabs(snapshots, energy):
            y[k] += slab @ adjoint(self.rows[:, at])
        energy -= 2 * y[..., vectors].real
        y = y[..., :vectors]
        whole = np.ones((vectors + 1, m), self.rows.dtype)
        whole[:vectors] = adjoint(y.sum(0))
        if self.weights is not None:
            whole *= self.weights[start:start + m].astype(whole.real.dtype)
        for _, at, slab in self._slabs(snapshots, np.zeros_like(energy)):
            sums[:, at] += whole @ slab
        return y, energy

    def _slabs(self, snapshots: SnapshotRows, energy: np.ndarray) -> Any:
        """(field, columns, values centred and times the roots of the inner product), a cacheful at a time."""
        start = 0
        for k, (transform, values) in enumerate(zip(self.transforms, snapshots.values, strict=True)):
            width = max(256, CACHEFUL // (len(values) * transform.dtype.itemsize) // 64 * 64)
            for slab in replace(transform, width=width).slabs(Tile(values, 0), energy[k]):
                yield k, slice(start + slab.start, start + slab.start + slab.values.shape[1]), slab.values
            start += values.shape[1]


class SubspaceReducer:
    """Reducer of snapshots in order of time: (Y (fields, n, l), energies (fields, n), sums (l + 1, size))."""

    def __init__(self, step: SubspaceStep):
        self.step = step
        self.sums: np.ndarray | None = None
        self.y: list[np.ndarray] = []
        self.energy: list[np.ndarray] = []

    def empty(self) -> Self:
        return type(self)(self.step)

    def update(self, values: SnapshotRows, start: int, weights: Array | None = None) -> None:
        if not len(values):
            return
        if self.sums is None:
            self.sums = np.zeros_like(self.step.rows)
        try:
            with np.errstate(over="ignore", invalid="ignore"):      # sums that are no numbers are met by those who get them
                y, energy = self.step.add(values, start, self.sums)
        except OutOfRange as misfit:
            n = len(self.step.transforms[0].share)
            raise OutOfRange(misfit.power, misfit.field, start / n) from None
        self.y.append(y)
        self.energy.append(energy)

    def merge(self, later: Self) -> None:
        if later.sums is None:
            return
        if self.sums is None:
            self.sums = later.sums
        else:
            self.sums += later.sums
        self.y += later.y
        self.energy += later.energy

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.sums is not None
        return np.concatenate(self.y, axis=1), np.concatenate(self.energy, axis=1), self.sums

    def state(self) -> dict[str, Array]:
        if self.sums is None:
            return {}
        return {"sums": self.sums, "y": np.concatenate(self.y, axis=1), "energy": np.concatenate(self.energy, axis=1)}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        if state:
            new.sums, new.y, new.energy = state["sums"], [state["y"]], [state["energy"]]
        return new


def subspace_iteration(task: Task, dtype: np.dtype, accept_floor: bool = False) -> Decomposition | None:
    """Subspace iteration, one read a step, until another would change little. None below the floor of the arithmetic."""
    work = partial(_steps, dtype=dtype, accept_floor=accept_floor)
    with one_blas_thread():     # blocks are worked on side by side: threads of BLAS would only wait for each other
        return in_range(replace(task, problem=scaled(task)), work)


def _steps(task: Task, dtype: np.dtype, accept_floor: bool) -> Decomposition | None:
    problem = task.problem
    most = min((problem.n or 0) - (problem.center == "mean"), problem.size)
    rank = min(task.rule.rank or 50, most)
    read = _iterate(task, min(task.plan.block, most), rank, dtype)
    sigma = np.sqrt(read.values[:read.rank(rank)])
    check_fluctuation(problem, int(sigma[0] > 0), sigma, read.means)
    if not accept_floor and below_floor(sigma, rank, read.left(rank), read.total, dtype):
        return None
    return _decomposition(problem, read, sigma, read.left(rank))


@dataclass(eq=False)
class SubspaceRead:
    """What one read finds of the fields V, and the Ritz values and vectors that follow."""

    means: list[np.ndarray]
    """Of each field, measured by the read."""
    rows: np.ndarray
    """V (l, size), orthonormal."""
    field_coefficients: np.ndarray
    """A_f V_fᴴ (fields, n, l)."""
    energies: np.ndarray
    """(fields, n)."""
    adjoint_products: np.ndarray
    """V Aᴴ A (l, size), what the next fields are made of."""
    total: float
    """Energy of all snapshots."""
    values: np.ndarray
    """Ritz values of AᴴA, falling, (l,)."""
    turn: np.ndarray
    """(l, l) Ritz vectors in V, one a column."""

    @property
    def coefficients(self) -> np.ndarray:
        """A Vᴴ (n, l)."""
        return self.field_coefficients.sum(0)

    def rank(self, rank: int) -> int:
        """Ritz values that are no rounding, `rank` at the most."""
        return min(rank, int(np.count_nonzero(self.values > 1e-28 * self.values[0])) or 1)

    def left(self, rank: int) -> float:
        """Energy outside of the leading vectors."""
        return max(self.total - float(self.values[:self.rank(rank)].sum()), 0.0)


def _iterate(task: Task, width: int, rank: int, dtype: np.dtype) -> SubspaceRead:
    """Reads until another would change little."""
    means, rows = _first(task, task.problem, width, dtype)
    steps = 0
    while True:
        steps += 1
        read = _measured(task, means, rows)
        means, values, turn, k = read.means, read.values, read.turn, read.rank(rank)
        left = read.left(rank)
        # ‖AᴴA v - theta v‖² of a Ritz vector v, from the norm of the rotated sums
        away = np.maximum(_squares(adjoint(turn[:, :k]), read.adjoint_products) - values[:k]**2, 0)
        gain = gain_of(values[:k], away, float(values[-1 - min(PROBES, width // 6)])) if values[0] > 0 else 0.0
        # fields that no snapshot of the sample knew show after a step, in what the Gaussian ones have become
        enough = steps >= 2 and (gain <= GAIN_TOLERANCE * left or gain <= 1e-13 * read.total)
        if not read.total or (enough and steps >= task.plan.steps) or steps >= MOST_STEPS:
            return read
        scale = np.where(values > 0, 1 / np.maximum(values, 1e-300), 0.0)
        rows = _rotated(adjoint(turn * scale), read.adjoint_products)
        del read
        rows, _ = orthonormalised(_filled(rows, values, task.seed + steps))


def _measured(task: Task, means: list[np.ndarray], rows: np.ndarray) -> SubspaceRead:
    """One read. The mean subtracted is that of a few: what it is off by is taken out of products and energies."""
    problem, dtype = task.problem, rows.dtype
    n, roots, centered = problem.n or 0, problem.roots, problem.center == "mean"
    field_coefficients, energies, sums = _read(task, problem, means, rows)
    if not np.isfinite(energies).all():
        raise NotFinite
    lost = _lost(problem, means, dtype)
    offset = sums[-1].astype(np.result_type(dtype, np.float64)) / n if centered else lost
    shares = offset @ adjoint(rows)
    measured = []
    for k, at in enumerate(problem.columns):
        field_coefficients[k] -= offset[at] @ adjoint(rows[:, at])
        energies[k] += float((np.abs(lost[at]) ** 2).sum())
        factors, mean = problem.parts[k].factors, means[k]
        if centered:
            more = offset[at] if mean.dtype.kind == "c" else offset[at].real
            with np.errstate(divide="ignore", invalid="ignore"):
                more = more if factors is None else np.where(factors > 0, more / factors, 0.0)
            mean = _rounded(mean, dtype) + more
        measured.append(mean)
    missing = float((np.abs(offset - lost) ** 2).sum())
    total = float((energies * roots**2).sum()) - n * missing
    y = field_coefficients.sum(0)
    adjoint_products = sums[:-1]
    for row, share in zip(adjoint_products, n * shares.conj(), strict=True):
        row -= share * offset
    values, turn = np.linalg.eigh(adjoint(y * (roots**2)[:, None]) @ y)
    return SubspaceRead(measured, rows, field_coefficients, energies, adjoint_products, total, np.clip(values[::-1], 0, None),
                        turn[:, ::-1])


def _decomposition(problem: Problem, read: SubspaceRead, sigma: np.ndarray, left: float) -> Decomposition:
    """The leading modes of the last read, those that are no rounding."""
    floor = floor_of(read.rows.dtype)
    k = max(1, int(np.count_nonzero(sigma > floor * sigma[0])))
    spectrum = np.sqrt(read.values[read.values > (floor * sigma[0]) ** 2])
    left += float((sigma[k:] ** 2).sum())
    sigma, turn = sigma[:k], read.turn[:, :k]
    coefficients, energy = read.coefficients @ turn, read.energies.sum(0)
    read.adjoint_products = np.empty((0, 0))        # not needed any more, and as large as the modes
    modes = _rotated(adjoint(turn), read.rows)
    parts = [modes[:, at] for at in problem.columns]
    residual = energy - (np.abs(coefficients) ** 2).sum(1)
    errors = errors_of_fields(shares_of_fields(problem, parts, [one @ turn for one in read.field_coefficients], read.energies,
                                               coefficients))
    return Decomposition(spectrum if len(spectrum) > k else sigma, False, coefficients,
                         [np.ascontiguousarray(part) for part in parts], read.means, read.total, left, energy, errors, floor,
                         "randomized", sigma, np.clip(residual, 0, None), [part.scale for part in problem.parts], problem.power)


def _read(task: Task, problem: Problem, means: list[np.ndarray],
          rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One read of all fields in order of time."""
    names = tuple(part.key for part in problem.parts)
    transforms = tuple(task.transform(part, rows.dtype, _rounded(mean, rows.dtype))
                    for part, mean in zip(problem.parts, means, strict=True))
    step = SubspaceStep(transforms, np.vstack([rows, _lost(problem, means, rows.dtype)], dtype=rows.dtype), problem.weights)
    with task.reads.counted(problem.nbytes):
        return reduce(problem.parts[0].source, {"rows": (TakeRows(names), SubspaceReducer(step))},
                      fields=list(dict.fromkeys(names)), limit=task.plan.limit, engine=task.engine,
                      progress=task.progress)["rows"]


def _rounded(mean: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A mean as numbers that the arithmetic has."""
    return mean.astype(dtype if mean.dtype.kind == "c" else dtype.type(0).real.dtype).astype(mean.dtype)


def _lost(problem: Problem, means: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """(size,) what is lost of the means in the type of the arithmetic, times the roots of the inner product."""
    lost = []
    for part, mean in zip(problem.parts, means, strict=True):
        one = mean - _rounded(mean, dtype)
        lost.append(one if part.factors is None else np.where(part.factors > 0, one * part.factors, 0.0))
    return np.concatenate(lost)


def _first(task: Task, problem: Problem, width: int, dtype: np.dtype) -> tuple[list[np.ndarray], np.ndarray]:
    """What is subtracted from each field at first, and the fields to begin with (width, size), orthonormal."""
    n, rng = problem.n or 0, np.random.default_rng([task.seed, 2])
    count = min(n, max(task.plan.sample, 2))
    # one of every stretch, at random within it: a fixed stride could beat in time with the flow
    edges = np.linspace(0, n, count + 1)
    picked = np.minimum((edges[:-1] + rng.random(count) * np.diff(edges)).astype(int), n - 1)
    sample = np.empty((count, problem.size), dtype)
    means = []
    for part, at in zip(problem.parts, problem.columns, strict=True):
        raw = np.stack([snapshot_at(part.source, part.key, int(i)) for i in picked])
        task.reads.add(raw.nbytes)
        mean = raw.mean(0, dtype=np.result_type(raw.dtype, np.float64)) if part.shift is None else part.shift
        used = slice(None) if part.factors is None else part.factors > 0
        if not np.isfinite(raw[:, used]).all():
            raise NotFinite
        means.append(np.asarray(mean))
        energy = np.zeros(count)
        for slab in task.transform(part, dtype, mean).slabs(Tile(raw, 0), energy):
            sample[:, at.start + slab.start:at.start + slab.start + slab.values.shape[1]] = slab.values
    probes = probes_in(width)
    values, vectors = np.linalg.eigh(_inner(sample))
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    good = min(width - probes, int(np.count_nonzero(values > 1e-8 * values[0])))
    rows = np.zeros((width, problem.size), dtype)
    _rotated(adjoint(vectors[:, :good] / np.sqrt(values[:good])), sample, rows[:good])
    del sample
    known = np.r_[np.ones(good), np.zeros(width - good)]
    rows, _ = orthonormalised(_filled(rows, known, task.seed))
    for part, at in zip(problem.parts, problem.columns, strict=True):
        if part.factors is not None and not part.factors.all():
            rows[:, at][:, part.factors == 0] = 0       # what is masked has no share in any field
    return means, rows


def _filled(rows: np.ndarray, values: np.ndarray, seed: int) -> np.ndarray:
    """Gaussian fields, orthogonal to the others, in the place of rows of no energy; all of about unit norm."""
    empty = np.flatnonzero(values <= 1e-12 * values[0]) if values[0] > 0 else np.arange(len(rows))
    norms = np.sqrt(_squares(None, rows))
    norms[norms == 0] = 1
    for a in range(0, rows.shape[1], WIDE):
        rows[:, a:a + WIDE] /= norms[:, None].astype(rows.real.dtype)
        if len(empty):
            rng = np.random.default_rng([seed, a])
            piece = rows[empty, a:a + WIDE]
            piece[:] = rng.standard_normal(piece.shape) / math.sqrt(rows.shape[1])
            if rows.dtype.kind == "c":
                piece += 1j * rng.standard_normal(piece.shape) / math.sqrt(rows.shape[1])
            rows[empty, a:a + WIDE] = piece
    return rows


def _inner(rows: np.ndarray) -> np.ndarray:
    """Inner products of rows with each other, added up in double precision."""
    total = np.zeros((len(rows), len(rows)), np.result_type(rows.dtype, np.float64))
    for a in range(0, rows.shape[1], WIDE):
        part = rows[:, a:a + WIDE]
        total += part @ adjoint(part)
    return total


def _rotated(matrix: np.ndarray, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """matrix @ rows in double precision, a piece at a time."""
    out = np.empty((len(matrix), rows.shape[1]), rows.dtype) if out is None else out
    for a in range(0, rows.shape[1], WIDE):
        out[:, a:a + WIDE] = matrix @ rows[:, a:a + WIDE].astype(np.result_type(rows.dtype, np.float64))
    return out


def _squares(turn: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """(k,) squared norms of the rows of turn @ rows, or of those given, in double precision."""
    total = np.zeros(len(rows if turn is None else turn))
    for a in range(0, rows.shape[1], WIDE):
        wide = rows[:, a:a + WIDE].astype(np.result_type(rows.dtype, np.float64))
        total += np.square(np.abs(wide if turn is None else turn @ wide)).sum(1)
    return total


def cost_in_time(problem: Problem, rule: Rule, budget: Budget) -> Plan:
    """From the first snapshot to the last: a sample of them, a step, and a read that measures what it found."""
    at = Workload.of(problem, rule)
    n, size, memory = at.n, at.size, budget.memory
    work = at.wide // 2 if problem.is_single else at.wide
    block = block_width(at.k, budget.oversampling, n, True)
    rows = min(n, max(2 * block, min(8 * block, n // 16, memory // (8 * size * work))))
    limit = max(memory // 8, 64 * size * at.itemsize)
    states = 2 * budget.workers + math.ceil(math.log2(MIN_PIECES)) // 2
    peak = (states * (block + 1) + block) * size * work + 2 * size * 8
    at_first = rows * size * (at.itemsize + work) + block * size * work
    steps = max(budget.steps, 2)
    own = max(peak, at_first) + budget.workers * CACHEFUL + n * block * at.wide * len(problem.parts)
    result = at.k * size * work + n * at.k * at.wide
    return Plan("randomized", steps + at.scaling, at.nbytes * (steps + at.scaling), held(at.factors + own + result),
                at.times * steps * 4.0 * n * size * block, "", rule.rank, problem.n, size, int(limit), block=block,
                sample=rows, steps=steps, streams_in_time=True, most_passes=max(steps, MOST_STEPS) + at.scaling)
