"""Inner products by a sparse mass matrix: a group of snapshots at a time, against all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.rom.decompose.problem import FieldProblem
from ensemblekit.rom.decompose.slabs import RowTransform, Tile, TileColumns, TileSums
from ensemblekit.rom.decompose.task import Task
from ensemblekit.rom.product import applied


@dataclass(frozen=True, eq=False)
class AgainstWork:
    """A_tile Yᴴ for a group Y (m, size)."""

    transform: RowTransform
    group: np.ndarray

    def __call__(self, tile: Tile) -> tuple[TileSums, TileColumns]:
        energy = np.zeros(len(tile))
        total = np.zeros((len(tile), len(self.group)), self.transform.dtype)
        for slab in self.transform.slabs(tile, energy):
            total += slab.values @ self.group[:, slab.start:slab.start + slab.values.shape[1]].conj().T
        return {"products": total, "energy": energy}, {}


@dataclass(frozen=True, eq=False)
class MeanWork:
    """The mean alone, and whether all is finite."""

    transform: RowTransform

    def __call__(self, tile: Tile) -> tuple[TileSums, TileColumns]:
        energy = np.zeros(len(tile))
        return {"energy": energy}, {"mean": np.concatenate([slab.mean for slab in self.transform.slabs(tile, energy)])}


def gram_with_mass(task: Task, part: FieldProblem, transform: RowTransform) -> tuple[TileSums, list[TileColumns]]:
    """G = A M Aᴴ, M applied to a group of snapshots at a time: two reads a group, whatever the order of M's rows."""
    sums, columns = task.reduce_tiles(part, MeanWork(transform))
    if not np.isfinite(sums["energy"]).all():
        return {"gram": np.zeros((0, 0)), "energy": sums["energy"]}, columns
    mean = np.concatenate([c["mean"] for c in columns])
    n = task.problem.n or 0
    gram = np.empty((n, n), task.accumulator_dtype)
    centred = replace(transform, shift=mean)
    for a in range(0, n, max(1, task.plan.block)):
        b = min(n, a + max(1, task.plan.block))
        group = np.asarray(_snapshots(part, a, b, task), task.accumulator_dtype).reshape(b - a, -1) - mean
        if transform.factors is not None:
            group *= transform.factors
        products, _ = task.reduce_tiles(part, AgainstWork(centred, applied(part.matrix, group, part.field.shape)))
        gram[:, a:b] = products["products"]
    return {"gram": (gram + gram.conj().T) / 2, "energy": sums["energy"]}, columns


def _snapshots(part: FieldProblem, start: int, stop: int, task: Task) -> Any:
    task.reads.add(part.field.nbytes * (stop - start))
    return reduce(part.source.window(start, stop), {"x": (part.key, Series())}, fields=[part.key], engine=task.engine)["x"]
