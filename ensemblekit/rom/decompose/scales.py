"""Scales of fields that are to be joined: their fluctuation, or its largest number, from a read in space or in time."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.rom.decompose.problem import FieldProblem, Problem
from ensemblekit.rom.decompose.reading import rows_of
from ensemblekit.rom.decompose.slabs import RowTransform, Tile
from ensemblekit.rom.decompose.task import Task, in_range
from ensemblekit.rom.product import applied
from ensemblekit.scaling import ldexp, power_of_two


def with_scales(task: Task, problem: Problem, energies: list[np.ndarray] | None, means: list[np.ndarray] | None) -> Problem:
    """The scales that were to be found: "std" from the energies of a first read, "max" from a read of their own."""
    if problem.scaling is None:
        return problem
    parts = []
    for k, part in enumerate(problem.parts):
        if problem.scaling == "std" and energies is not None:
            weights = problem.weights if problem.weights is not None else np.ones(problem.n or 0)
            volume = volume_of(part)
            scale = ldexp(math.sqrt(float((energies[k] * weights).sum()) / ((problem.n or 1) * volume)), part.power)
        else:
            one = replace(task, problem=replace(problem, parts=(part,)))
            scale = in_range(one, functools.partial(_scale_read, mean=None if means is None else means[k]))
        parts.append(replace(part, scale=scale if scale > 0 else 1.0))
    return replace(problem, parts=tuple(parts))


def scaled_by_tiles(task: Task) -> Problem:
    """The problem with the scales of its fields, found in a read of its own where they are not known."""
    if task.problem.scaling is None:
        return task.problem
    return with_scales(task, task.problem, None, None)


def _scale_read(task: Task, mean: np.ndarray | None) -> float:
    """The scale of one field, from a read of its own."""
    (part,) = task.problem.parts
    sums, _ = task.reduce_tiles(part, LargestWork(task.transform(part, task.accumulator_dtype, mean)), larger)
    if task.problem.scaling == "max":
        return float(sums["largest"][0])
    return ldexp(math.sqrt(float(sums["square"][0]) / ((task.problem.n or 1) * volume_of(part))), part.power)


def volume_of(part: FieldProblem) -> float:
    if part.sparse:
        ones = np.ones((1, part.field.size))
        return float((applied(part.matrix, ones, part.field.shape) @ ones.T)[0, 0])
    factors = replace(part, power=0).factors
    return float(part.field.size if factors is None else (factors**2).sum())


@dataclass(frozen=True, eq=False)
class LargestWork:
    """The largest deviation in a tile, and the sum of their squares times the weights of the inner product."""

    transform: RowTransform

    def __call__(self, tile: Tile) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        energy, largest = np.zeros(len(tile)), 0.0
        for slab in self.transform.slabs(tile, energy):
            values = np.abs(slab.values).max(0)
            if self.transform.factors is not None:
                factors = self.transform.factors[slab.start:slab.start + len(values)]
                values = np.divide(values, factors, out=np.zeros_like(values), where=factors > 0)
            largest = max(largest, float(values.max(initial=0.0)))
        return {"largest": np.array([largest]), "square": np.array([float(energy @ self.transform.share) * len(tile)])}, {}


def larger(left: dict, right: dict) -> dict:
    """The larger of two tiles, and the sum of squares."""
    return {"largest": np.maximum(left["largest"], right["largest"]), "square": left["square"] + right["square"]}


def scaled(task: Task) -> Problem:
    """The problem with the scales of its fields, where they have to be found in a read of its own."""
    if task.problem.scaling is None or task.problem.access == "tiles":
        return scaled_by_tiles(task)
    return scaled_by_rows(task)


def scaled_by_rows(task: Task) -> Problem:
    """The problem with the scales of its fields, found in a read in order of time."""
    problem = task.problem
    n = problem.n or 1
    sums: dict[str, Any] = {}
    for values, _, weights in rows_of(task):
        for part in problem.parts:
            x = values[part.name].reshape(len(values[part.name]), -1)
            w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
            one = sums.setdefault(part.name, _Spread(x[0].astype(task.accumulator_dtype), part.shift))
            one.add(x, w)
    parts = []
    for part in problem.parts:
        spread = sums[part.name]
        used = np.ones(part.field.size, bool) if part.mask is None else part.mask
        of = (np.ones(part.field.size) if part.roots is None else part.roots**2)[used]
        squares, largest = spread.result()
        squares, largest = np.nan_to_num(squares[used]), np.nan_to_num(largest[used])
        of = ldexp(of, -power_of_two(of))
        scale = ldexp(float(np.sqrt((squares * of).sum() / of.sum()) if problem.scaling == "std" else largest.max(initial=0.0)),
                      spread.power)
        parts.append(replace(part, scale=scale if scale > 0 and math.isfinite(scale) and n else 1.0))
    return replace(problem, parts=tuple(parts))


class _Spread:
    """Mean square and largest deviation of every number, about the mean or a given field, in units of 2**power."""

    def __init__(self, first: np.ndarray, shift: np.ndarray | None):
        self.about = first if shift is None else shift
        self.moving = shift is None
        self.power = 0
        self.weight = 0.0
        self.sum = np.zeros_like(self.about)
        self.squares = np.zeros(len(first))
        self.low = np.zeros(len(first))
        self.high = np.zeros(len(first))

    def add(self, x: np.ndarray, w: np.ndarray) -> None:
        off = x - self.about
        if x.dtype in (np.float64, np.complex128):
            off = self._in_unit(off)
        self.weight += float(w.sum())
        self.sum += w @ off
        self.squares += w @ np.square(np.abs(off))
        if np.iscomplexobj(off):        # about the first snapshot: no more than twice the largest about the mean
            self.high = np.maximum(self.high, np.abs(off).max(0))
        else:
            self.low, self.high = np.minimum(self.low, off.min(0)), np.maximum(self.high, off.max(0))

    def _in_unit(self, off: np.ndarray) -> np.ndarray:
        """Deviations in the unit, which is made larger where they do not fit, or smaller as long as all were zero."""
        if off.any():
            wanted = power_of_two(off) if not self.squares.any() else max(self.power, power_of_two(off))
            less, self.power = self.power - wanted, wanted
            self.sum, self.low, self.high = ldexp(self.sum, less), ldexp(self.low, less), ldexp(self.high, less)
            self.squares = ldexp(self.squares, 2 * less)
        return ldexp(off, -self.power)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.sum / self.weight
        if not self.moving:
            return self.squares / self.weight, np.maximum(self.high, -self.low)
        squares = np.maximum(self.squares / self.weight - np.abs(mean) ** 2, 0)
        return squares, self.high if np.iscomplexobj(mean) else np.maximum(self.high - mean, mean - self.low)
