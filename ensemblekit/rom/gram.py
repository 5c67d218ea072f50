"""Inner products of all snapshots with each other, and sums of snapshots: the method of snapshots in two reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.slabs import Recipe, Tile

FLOOR = 2e-8
"""Singular values below this share of the first are rounding in a Gram matrix of float64: sqrt(eps)."""


@dataclass(frozen=True, eq=False)
class GramWork:
    """G = A Aᴴ of a tile, (n, n), in double precision; the lower triangle, added up in place."""

    recipe: Recipe

    def __call__(self, tile: Tile) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        from scipy.linalg.blas import dsyrk, zherk

        n = len(tile)
        complex_ = self.recipe.dtype.kind == "c"
        matrix = np.zeros((n, n), self.recipe.dtype, order="F")
        energy, means = np.zeros(n), []
        for slab in self.recipe.slabs(tile, energy):
            # A in C order is Aᵀ in Fortran's: the product without a copy
            part = np.ascontiguousarray(slab.values).T
            if complex_:
                matrix = zherk(1.0, part, beta=1.0, c=matrix, trans=2, lower=0, overwrite_c=1)
            else:
                matrix = dsyrk(1.0, part, beta=1.0, c=matrix, trans=1, lower=0, overwrite_c=1)
            means.append(slab.mean)
        return {"gram": matrix, "energy": energy}, {"mean": np.concatenate(means)}


def whole(matrix: np.ndarray) -> np.ndarray:
    """The full matrix from its upper triangle. zherk gives the conjugate of A Aᴴ, as it sees Aᵀ."""
    upper = np.triu(matrix, 1)
    full = upper + upper.conj().T
    full[np.diag_indices(len(full))] = matrix.diagonal().real
    return full.conj() if np.iscomplexobj(full) else full


@dataclass(frozen=True, eq=False)
class SumsWork:
    """Sums of snapshots over a tile, weights (k, n) @ A: modes from the vectors of the Gram matrix."""

    recipe: Recipe
    weights: np.ndarray

    def __call__(self, tile: Tile) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        energy = np.zeros(len(tile))
        found, means = np.empty((len(self.weights), tile.values.shape[1]), self.recipe.dtype), []
        for slab in self.recipe.slabs(tile, energy):
            a = slab.start - tile.at
            found[:, a:a + slab.values.shape[1]] = self.weights @ slab.values
            means.append(slab.mean)
        return {"energy": energy}, {"modes": found, "mean": np.concatenate(means)}


def orthonormalised(rows: np.ndarray, products: Callable[[np.ndarray], np.ndarray] | None = None) -> tuple[np.ndarray,
                                                                                                           np.ndarray]:
    """Orthonormal rows that span those given, and L with rows = L @ orthonormal; in place where it can.

    `products` gives the inner products of the rows with each other, (k, k), where they are not Euclidean.

    Cholesky QR twice (Fukaya et al. 2014): only k numbers a column are in memory. Householder's where that breaks down.
    """
    k = len(rows)
    total = np.eye(k, dtype=np.result_type(rows.dtype, np.float64))
    for _ in range(2):
        try:
            lower = np.linalg.cholesky((products or _products)(rows))
            if np.linalg.cond(lower) > 1e6 and products is None:
                raise np.linalg.LinAlgError
        except np.linalg.LinAlgError:
            if products is not None:
                raise InputError("the mass matrix is not positive definite, or these modes lie below its rounding; "
                                 "ask for fewer modes") from None
            q, r = np.linalg.qr(rows.conj().T)
            sign = np.where(r.diagonal().real < 0, -1.0, 1.0)
            return np.ascontiguousarray((q * sign).conj().T), total @ (r * sign[:, None]).conj().T
        inverse = np.linalg.inv(lower)
        for a in range(0, rows.shape[1], 1 << 16):
            rows[:, a:a + (1 << 16)] = inverse @ rows[:, a:a + (1 << 16)]
        total = total @ lower
    return rows, total


def _products(rows: np.ndarray) -> np.ndarray:
    wide = np.result_type(rows.dtype, np.float64)
    total = np.zeros((len(rows), len(rows)), wide)
    for a in range(0, rows.shape[1], 1 << 16):
        part = rows[:, a:a + (1 << 16)].astype(wide, copy=False)
        total += part @ part.conj().T
    return total
