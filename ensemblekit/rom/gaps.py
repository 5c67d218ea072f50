"""Numbers that are missing: where, and in which snapshots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.problem import Part, Problem
from ensemblekit.rom.task import Job


class GapsError(InputError):
    """Numbers are missing in some snapshots and not in others: `where` says which."""

    def __init__(self, where: str):
        super().__init__(f'{where}. Drop those snapshots, or pass missing="gappy" to fill them in from the modes')
        self.where = where


@dataclass(frozen=True, eq=False)
class GapsWork:
    """Where a tile holds numbers: in how many snapshots each column is finite, in which snapshots something is missing."""

    def __call__(self, tile: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        bad = ~np.isfinite(tile.values)
        return {"bad": bad.sum(1), "infinite": np.isinf(tile.values).sum(1)}, {"finite": len(tile) - bad.sum(0)}


def gaps_of(job: Job, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(finite a column, missing a snapshot, infinite a snapshot) of a field."""
    sums, columns = job.over_tiles(part, GapsWork())
    return np.concatenate([c["finite"] for c in columns]), sums["bad"], sums["infinite"]


def without_constant_gaps(job: Job) -> Problem | None:
    """The problem without the numbers that are NaN in every snapshot; None where others are missing too."""
    problem = job.problem
    if problem.access != "tiles":
        raise InputError("the snapshots hold NaN or infinity; ingest them into a store to have them masked, or drop them")
    parts = []
    for part in problem.parts:
        finite, _, infinite = gaps_of(job, part)
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


def _gaps(job: Job) -> str:
    for part in job.problem.parts:
        _, bad, _ = gaps_of(job, part)
        if bad.any():
            first = int(np.argmax(bad > 0))
            return (f"field {part.name!r} holds NaN or infinity: {int(bad.sum())} numbers in {int((bad > 0).sum())} snapshots, "
                    f"first in snapshot {first} ({int(bad[first])} of {part.field.size})")
    return "the snapshots hold NaN or infinity"
