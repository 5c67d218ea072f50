"""The Gram matrix of the snapshots, their inner products with each other: POD's method of snapshots, distances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np

from ensemblekit.averaging.arrays import plain, wide
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.scaling import FREE, common, ldexp, power_of_two, representable
from ensemblekit.source import Array, is_torch

SLAB = 16 << 20     # bytes of float64 multiplied at a time


class Gram:
    """G[i, j] = <x_i, x_j> over all elements of the item, (n, n); read with ``cut="space"``, adds up over tiles.

    `center`: "none"; "mean" subtracts the mean over snapshots from every element, "first" the first snapshot, before
    multiplying and in float64, so that nothing cancels. Complex: G = X Xᴴ. Another inner product is a tiled map:
    scale the block by the square root of the weights of its elements (``block.tile``). Statistical weights of
    snapshots do not enter; multiply rows and columns of G.
    """

    def __init__(self, center: Literal["none", "mean", "first"] = "none"):
        if center not in ("none", "mean", "first"):
            raise InputError(f'center is "none", "mean" or "first"; got {center!r}')
        self.center = center
        self.matrix: Array = None
        self.exponent: np.ndarray | None = None
        """Powers of two that the snapshots are divided by in the matrix, (n,), each its own; None: none is."""

    def empty(self) -> Self:
        return type(self)(self.center)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        if self.matrix is not None:
            raise InputError("Gram needs all snapshots of a tile in one block; read with cut=\"space\"")
        flat = values.reshape(len(values), -1)
        step = max(16, SLAB // (8 * len(flat)))
        for a in range(0, flat.shape[1], step):
            slab = wide(flat[:, a:a + step])
            if self.center != "none":
                slab = slab - (slab.mean(0) if self.center == "mean" else slab[0])
            part, e = _products(slab), None
            if not _safe(part):
                e = np.asarray(power_of_two(slab.T, 0))
                part = _products(ldexp(slab, -e[:, None])) if e.any() else part
            self._add(part, e)

    def _add(self, part: Array, exponent: np.ndarray | None) -> None:
        """Inner products of snapshots that were divided by 2**exponent, over more elements."""
        if self.matrix is None:
            self.matrix, self.exponent = part, exponent
            return
        if exponent is not None or self.exponent is not None:
            zero = np.zeros(len(part), np.int64)
            own, its = (zero if e is None else e for e in (self.exponent, exponent))
            self.exponent = common(_unless_zero(own, self.matrix), _unless_zero(its, part))
            self.matrix, part = (_over(m, e - self.exponent) for m, e in ((self.matrix, own), (part, its)))
        self.matrix = self.matrix + part

    def join(self, right: Self) -> None:
        if right.matrix is not None:
            self._add(plain(right.matrix), right.exponent)

    def reshape(self, item: tuple[int, ...]) -> None:
        pass

    def result(self) -> Array:
        """The matrix (n, n), float64 or complex128.

        Raises StatisticsError where no snapshot was seen and where inner products are beyond the range of float64.
        """
        if self.matrix is None:
            raise StatisticsError("no snapshots")
        if self.exponent is None:
            return plain(self.matrix)
        return representable(plain(self.matrix), self.exponent[:, None] + self.exponent, "an inner product")

    def state(self) -> dict[str, Array]:
        named = {"matrix": self.matrix, "exponent": self.exponent}
        return {name: plain(x) for name, x in named.items() if x is not None}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        if "matrix" in state:
            new.matrix = plain(state["matrix"])
            new.exponent = np.array(state["exponent"]) if "exponent" in state else None
        return new


def _complex(x: Array) -> bool:
    return bool(x.is_complex() if is_torch(x) else np.iscomplexobj(x))


def _products(slab: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return slab @ (slab.conj().T if _complex(slab) else slab.T)     # a symmetric product: BLAS syrk


def _safe(matrix: Array) -> bool:
    """Whether no snapshot's square may have over- or underflowed."""
    own = abs(matrix.diagonal())
    return bool(((own < 2.0**900) & (own > 2.0**-800)).all())


def _unless_zero(exponent: np.ndarray, matrix: Array) -> np.ndarray:
    return np.where(plain(matrix.diagonal() == 0), FREE, exponent)


def _over(matrix: Array, step: np.ndarray) -> Array:
    return ldexp(matrix, step[:, None] + step) if step.any() else matrix
