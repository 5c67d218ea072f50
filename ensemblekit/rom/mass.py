"""Inner products by a sparse mass matrix: a group of snapshots at a time, against all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.rom.problem import Part
from ensemblekit.rom.product import applied
from ensemblekit.rom.slabs import Recipe, Tile
from ensemblekit.rom.task import Job


@dataclass(frozen=True, eq=False)
class AgainstWork:
    """A_tile Yᴴ for a group Y (m, size)."""

    recipe: Recipe
    group: np.ndarray

    def __call__(self, tile: Tile) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        energy = np.zeros(len(tile))
        total = np.zeros((len(tile), len(self.group)), self.recipe.dtype)
        for slab in self.recipe.slabs(tile, energy):
            total += slab.values @ self.group[:, slab.start:slab.start + slab.values.shape[1]].conj().T
        return {"products": total, "energy": energy}, {}


@dataclass(frozen=True, eq=False)
class MeanWork:
    """The mean alone, and whether all is finite."""

    recipe: Recipe

    def __call__(self, tile: Tile) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        energy = np.zeros(len(tile))
        return {"energy": energy}, {"mean": np.concatenate([slab.mean for slab in self.recipe.slabs(tile, energy)])}


def gram_with_mass(job: Job, part: Part, recipe: Recipe) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """G = A M Aᴴ, M applied to a group of snapshots at a time: two reads a group, whatever the order of M's rows."""
    sums, columns = job.over_tiles(part, MeanWork(recipe))
    if not np.isfinite(sums["energy"]).all():
        return {"gram": np.zeros((0, 0)), "energy": sums["energy"]}, columns
    mean = np.concatenate([c["mean"] for c in columns])
    n = job.problem.n or 0
    gram = np.empty((n, n), job.wide)
    centred = replace(recipe, shift=mean)
    for a in range(0, n, max(1, job.plan.block)):
        b = min(n, a + max(1, job.plan.block))
        group = np.asarray(_snapshots(part, a, b, job), job.wide).reshape(b - a, -1) - mean
        if recipe.factors is not None:
            group *= recipe.factors
        products, _ = job.over_tiles(part, AgainstWork(centred, applied(part.matrix, group, part.field.shape)))
        gram[:, a:b] = products["products"]
    return {"gram": (gram + gram.conj().T) / 2, "energy": sums["energy"]}, columns


def _snapshots(part: Part, start: int, stop: int, job: Job) -> Any:
    job.reads.add(part.field.nbytes * (stop - start))
    return reduce(part.source.window(start, stop), {"x": (part.key, Series())}, fields=[part.key], engine=job.engine)["x"]
