"""Numbers that are missing: where, in which snapshots, and filled in from the modes of all (Everson & Sirovich 1995)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.problem import FieldProblem, Problem
from ensemblekit.rom.decompose.reading import in_memory
from ensemblekit.rom.decompose.slabs import Tile, TileColumns, TileSums
from ensemblekit.rom.decompose.task import Task
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import ArraySource

STEPS = 200
"""Fillings at the most."""
FILLED_TOLERANCE = 1e-8
"""Change of the filled numbers, by their own size, at which they have settled."""


class GapsError(InputError):
    """Numbers are missing in some snapshots and not in others: `where` says which."""

    def __init__(self, where: str):
        super().__init__(f'{where}. Drop those snapshots, or pass missing="gappy" to fill them in from the modes')
        self.where = where


@dataclass(frozen=True, eq=False)
class GapsWork:
    """Where a tile holds numbers: in how many snapshots each column is finite, in which snapshots something is missing."""

    def __call__(self, tile: Tile) -> tuple[TileSums, TileColumns]:
        values = tile.values[:, :]      # of several runs put together here
        bad = ~np.isfinite(values)
        return {"bad": bad.sum(1), "infinite": np.isinf(values).sum(1)}, {"finite": len(tile) - bad.sum(0)}


def gaps_of(task: Task, part: FieldProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(finite a column, missing a snapshot, infinite a snapshot) of a field."""
    sums, columns = task.reduce_tiles(part, GapsWork())
    return np.concatenate([c["finite"] for c in columns]), sums["bad"], sums["infinite"]


def without_constant_gaps(task: Task) -> Problem | None:
    """The problem without the numbers that are NaN in every snapshot; None where others are missing too."""
    problem = task.problem
    if problem.access != "tiles":
        raise InputError("the snapshots hold NaN or infinity; ingest them into a store to have them masked, or drop them")
    parts = []
    for part in problem.parts:
        finite, _, infinite = gaps_of(task, part)
        if infinite.any():
            raise InputError(f"field {part.name!r} holds infinity, first in snapshot {int(np.argmax(infinite > 0))}; drop or "
                             "mend those snapshots")
        if not (finite > 0).any():
            raise InputError(f"field {part.name!r} holds NaN or infinity only")
        if ((finite > 0) & (finite < (problem.n or 0))).any():
            return None
        parts.append(part.masked(finite > 0) if (finite == 0).any() else part)
    if any(part.sparse for part in problem.parts):
        raise InputError("a mass matrix does not go with masked numbers: leave them out of fields and matrix")
    return replace(problem, parts=tuple(parts))


def gaps_in_words(task: Task) -> str:
    for part in task.problem.parts:
        _, bad, _ = gaps_of(task, part)
        if bad.any():
            first = int(np.argmax(bad > 0))
            return (f"field {part.name!r} holds NaN or infinity: {int(bad.sum())} numbers in {int((bad > 0).sum())} snapshots, "
                    f"first in snapshot {first} ({int(bad[first])} of {part.field.size})")
    return "the snapshots hold NaN or infinity"


def gappy(task: Task, decompose: Callable[[Task], Basis]) -> Basis:
    """Fill the gaps with the mean, then with the reconstruction from the modes until that changes nothing, and decompose.

    The error reported is that of the filled snapshots. Numbers that are missing in every snapshot are left out.
    """
    problem = task.problem
    if task.rule.rank is None:
        raise InputError('missing="gappy" needs a rank: the gaps are filled in from that many modes')
    if 3 * problem.nbytes > max(task.memory, 3 << 20) and not problem.in_memory:
        raise InputError('missing="gappy" needs all snapshots in memory; raise memory_limit or take fewer')
    if problem.sparse:
        raise InputError('missing="gappy" does not go with a mass matrix')
    held = in_memory(problem, task.engine)
    parts, gaps, filled = [], [], []
    for part in held.parts:
        finite, bad, infinite = gaps_of(replace(task, problem=held), part)
        if infinite.any():
            raise InputError(f"field {part.name!r} holds infinity, first in snapshot {int(np.argmax(infinite > 0))}")
        if (bad == part.field.size).any():
            raise InputError(f"snapshot {int(np.argmax(bad == part.field.size))} of field {part.name!r} holds NaN only; "
                             "leave it out")
        if not (finite > 0).any():
            raise InputError(f"field {part.name!r} holds NaN only")
        values = np.array(part.source.arrays[part.key], task.accumulator_dtype).reshape(problem.n or 0, -1)   # type: ignore[attr-defined]
        gap = np.isnan(values) & (finite > 0)
        with np.errstate(invalid="ignore"):
            mean = np.where(gap, 0, np.nan_to_num(values)).sum(0) / np.maximum(finite, 1)
        values = np.where(gap, mean, values)
        parts.append(part.masked(finite > 0) if (finite == 0).any() else part)
        gaps.append(gap)
        filled.append(values)

    def of(values: list[np.ndarray]) -> Task:
        filled = tuple(replace(part, source=ArraySource.of({part.key: v.reshape(-1, *part.field.shape)}))
                       for part, v in zip(parts, values, strict=True))
        return replace(task, problem=replace(held, parts=filled))

    basis = decompose(of(filled))
    for _ in range(STEPS):
        change = size = 0.0
        power = power_of_two(basis.coefficients)
        for fitted, gap, values in zip(basis.parts(), gaps, filled, strict=True):
            rebuilt = (basis.coefficients @ fitted.modes.reshape(basis.rank, -1) + fitted.mean.ravel())[gap]
            change += float(np.square(np.abs(ldexp(rebuilt - values[gap], -power))).sum())
            off = ldexp(rebuilt - np.broadcast_to(fitted.mean.ravel(), gap.shape)[gap], -power)
            size += float(np.square(np.abs(off)).sum())
            values[gap] = rebuilt
        basis = decompose(of(filled))
        if change <= FILLED_TOLERANCE**2 * max(size, 1e-300):
            break
    return basis
