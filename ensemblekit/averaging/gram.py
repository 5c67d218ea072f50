"""The Gram matrix of the snapshots, their inner products with each other: POD's method of snapshots, distances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np

from ensemblekit.averaging.arrays import plain, wide
from ensemblekit.errors import InputError, StatisticsError
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
            part = slab @ (slab.conj().T if _complex(slab) else slab.T)     # a symmetric product: BLAS syrk
            if self.matrix is None:
                self.matrix = part
            else:
                self.matrix += part

    def join(self, right: Self) -> None:
        if right.matrix is not None:
            self.matrix = plain(right.matrix) if self.matrix is None else self.matrix + right.matrix

    def reshape(self, item: tuple[int, ...]) -> None:
        pass

    def result(self) -> Array:
        """The matrix (n, n), float64 or complex128. Raises StatisticsError where no snapshot was seen."""
        if self.matrix is None:
            raise StatisticsError("no snapshots")
        return plain(self.matrix)

    def state(self) -> dict[str, Array]:
        return {} if self.matrix is None else {"matrix": plain(self.matrix)}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        if "matrix" in state:
            new.matrix = plain(state["matrix"])
        return new


def _complex(x: Array) -> bool:
    return bool(x.is_complex() if is_torch(x) else np.iscomplexobj(x))
