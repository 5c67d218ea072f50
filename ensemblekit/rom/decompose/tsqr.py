"""R of the QR factorisation of all snapshots, slab under slab: singular values down to the rounding of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.decomposition import FieldShare, to_basis
from ensemblekit.rom.decompose.gram import FirstRead, TimeVectors, cost_of_snapshots, method_of_snapshots
from ensemblekit.rom.decompose.planning import Budget, Plan, refusal_of_rows, refusal_of_streams
from ensemblekit.rom.decompose.problem import FieldProblem, Problem
from ensemblekit.rom.decompose.slabs import RowTransform, Tile, TileColumns, TileSums
from ensemblekit.rom.decompose.task import Task
from ensemblekit.rom.rank import Rule

FLOOR = 1e-14
"""Singular values below this share of the first are rounding: some eps of float64."""


class Tsqr:
    """R of the QR factorisation of all snapshots: singular values down to the rounding of the data."""

    name: ClassVar[str] = "tsqr"
    finer: ClassVar[tuple[str, ...]] = ()
    floor: ClassVar[float] = FLOOR

    def refusal(self, problem: Problem) -> str | None:
        sparse = "a sparse mass matrix goes with the gram route" if problem.sparse else None
        return refusal_of_streams(problem) or refusal_of_rows(problem) or sparse

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        return cost_of_snapshots(self.name, problem, rule, budget)

    def decompose(self, task: Task) -> Basis:
        return to_basis(task.problem, method_of_snapshots(task, self), task.reads.passes)

    def read(self, task: Task) -> tuple[FieldProblem, TileSums, list[TileColumns], np.ndarray]:
        (part,) = task.problem.parts
        work = TsqrWork(task.transform(part, task.accumulator_dtype),
                        None if task.problem.weights is None else task.problem.roots)
        sums, columns = task.reduce_tiles(part, work, stacked)
        return part, sums, columns, sums["r"]

    def decompose_matrices(self, first: FirstRead) -> TimeVectors:
        n, unit = first.problem.n or 0, first.problem.unit_vector
        r = triangle(np.concatenate([m / s for m, s in zip(first.matrices, first.scales, strict=True)]))
        if unit is not None:
            r = r - (r @ unit)[:, None] * unit
        _, sigma, vectors = np.linalg.svd(r)
        sigma = np.append(sigma, np.zeros(n - len(sigma)))
        squared = sigma**2
        return TimeVectors(sigma, squared, vectors.conj().T, float(squared.sum()))

    def gives_way(self, task: Task, problem: Problem) -> bool:
        return False

    def refined(self, time_vectors: TimeVectors, rows: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rows, lower

    def coefficients(self, first: FirstRead, time_vectors: TimeVectors, lower: np.ndarray) -> np.ndarray:
        k, roots = len(lower), first.problem.roots
        if (roots == 0).any():
            raise InputError('snapshots of weight 0 do not go with method="tsqr"; leave them out, or use method="gram"')
        return (time_vectors.vectors[:, :k] * time_vectors.sigma[:k]) @ lower / roots[:, None]

    def field_shares(self, first: FirstRead, time_vectors: TimeVectors, coefficients: np.ndarray,
                     rows: np.ndarray) -> list[FieldShare]:
        roots = first.problem.roots
        c = roots[:, None] * coefficients
        shares = []
        for at, (columns, lone) in enumerate(zip(first.problem.columns, first.lone, strict=True)):
            piece = rows[:, columns] * first.scales[at] if lone else rows[:, columns]
            energy = first.field_energies[at] if lone else first.energies[at]
            carried = float(np.real(np.sum((piece @ piece.conj().T).T * (c.conj().T @ c))))
            shares.append(FieldShare(float((energy * roots**2).sum()), carried, carried))
        return shares


@dataclass(frozen=True, eq=False)
class TsqrWork:
    """R (n, n) with Aᴴ = Q R of a tile (Demmel et al. 2012)."""

    transform: RowTransform
    roots: np.ndarray | None
    """(n,) square roots of the statistical weights; None: 1."""

    def __call__(self, tile: Tile) -> tuple[TileSums, TileColumns]:
        energy, means = np.zeros(len(tile)), []
        r = np.zeros((0, len(tile)), self.transform.dtype)
        for slab in self.transform.slabs(tile, energy):
            rows = slab.values if self.roots is None else slab.values * self.roots[:, None]
            r = triangle(np.concatenate([r, rows.conj().T]))
            means.append(slab.mean)
        return {"r": r, "energy": energy}, {"mean": np.concatenate(means)}


def triangle(rows: np.ndarray) -> np.ndarray:
    """R of the QR factorisation of rows (m, n)."""
    return np.asarray(np.linalg.qr(rows, mode="r"))


def stacked(left: TileSums, right: TileSums) -> TileSums:
    """R of two neighbouring tiles."""
    return {"r": triangle(np.concatenate([left["r"], right["r"]])), "energy": left["energy"] + right["energy"]}
