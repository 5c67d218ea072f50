"""Gaps that change from snapshot to snapshot, filled in from the modes of all (Everson & Sirovich 1995)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.gaps import gaps_of
from ensemblekit.rom.reading import in_memory
from ensemblekit.rom.task import Job
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import ArraySource

if TYPE_CHECKING:
    from ensemblekit.rom.basis import Basis
STEPS = 200
SETTLED = 1e-8


def gappy(job: Job, decompose: Callable[[Job], Basis]) -> Basis:
    """Fill the gaps with the mean, then with the reconstruction from the modes until that changes nothing, and decompose.

    The error reported is that of the filled snapshots. Numbers that are missing in every snapshot are left out.
    """
    problem = job.problem
    if job.rule.rank is None:
        raise InputError('missing="gappy" needs a rank: the gaps are filled in from that many modes')
    if 3 * problem.nbytes > max(job.memory, 3 << 20) and not problem.in_memory:
        raise InputError('missing="gappy" needs all snapshots in memory; raise memory_limit or take fewer')
    if problem.sparse:
        raise InputError('missing="gappy" does not go with a mass matrix')
    held = in_memory(problem, job.engine)
    parts, gaps, filled = [], [], []
    for part in held.parts:
        finite, bad, infinite = gaps_of(replace(job, problem=held), part)
        if infinite.any():
            raise InputError(f"field {part.name!r} holds infinity, first in snapshot {int(np.argmax(infinite > 0))}")
        if (bad == part.field.size).any():
            raise InputError(f"snapshot {int(np.argmax(bad == part.field.size))} of field {part.name!r} holds NaN only; "
                             "leave it out")
        if not (finite > 0).any():
            raise InputError(f"field {part.name!r} holds NaN only")
        values = np.array(part.source.arrays[part.key], job.wide).reshape(problem.n or 0, -1)   # type: ignore[attr-defined]
        gap = np.isnan(values) & (finite > 0)
        with np.errstate(invalid="ignore"):
            mean = np.where(gap, 0, np.nan_to_num(values)).sum(0) / np.maximum(finite, 1)
        values = np.where(gap, mean, values)
        parts.append(part.masked(finite > 0) if (finite == 0).any() else part)
        gaps.append(gap)
        filled.append(values)

    def of(values: list[np.ndarray]) -> Job:
        made = tuple(replace(part, source=ArraySource.of({part.key: v.reshape(-1, *part.field.shape)}))
                     for part, v in zip(parts, values, strict=True))
        return replace(job, problem=replace(held, parts=made))

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
        if change <= SETTLED**2 * max(size, 1e-300):
            break
    return basis
