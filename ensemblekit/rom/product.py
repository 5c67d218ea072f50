"""Inner products of fields: none, a weight for each cell or number, or a sparse mass matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.scaling import ldexp


class SparseMatrix(Protocol):
    """What is used of a matrix or an array of scipy.sparse."""

    data: np.ndarray

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def T(self) -> SparseMatrix: ...
    def diagonal(self) -> np.ndarray: ...
    def tocsr(self) -> SparseMatrix: ...
    def max(self) -> float: ...
    def __abs__(self) -> SparseMatrix: ...
    def __sub__(self, other: SparseMatrix) -> SparseMatrix: ...
    def __mul__(self, factor: float) -> SparseMatrix: ...
    def __matmul__(self, columns: np.ndarray) -> np.ndarray: ...


InnerProduct: TypeAlias = np.ndarray | SparseMatrix | None
"""None (Euclidean), weights that fit the item from the left, or a mass matrix."""


GivenProduct: TypeAlias = ArrayLike | SparseMatrix | Mapping[str, ArrayLike | SparseMatrix | None] | None
"""What an argument inner_product= takes: one for all fields (or "auto", where it is offered), or a mapping of field to one."""


def is_sparse(product: object) -> TypeGuard[SparseMatrix]:
    """Whether it is a scipy sparse matrix or array (without importing scipy)."""
    return type(product).__module__.startswith("scipy.sparse")


def element_weights(product: ArrayLike | SparseMatrix | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Weights of every number of an item, flattened (size,); None where they are all 1.

    Weights fit the item from the left: (n_cells,) goes with (n_cells,) and with (n_cells, 3). Raises InputError.
    """
    if product is None:
        return None
    weights = as_array(product, "inner_product", kinds="biuf", dtype=np.float64, named_axes=True)
    if weights.shape != shape[:weights.ndim]:
        size = int(np.prod(shape))
        if weights.shape != (size,):
            raise InputError(f"inner_product has one weight a cell, shape {shape} or its first axes; got {weights.shape}")
        weights = weights.reshape(shape)
    if not np.isfinite(weights).all():
        raise InputError(f"inner_product must be finite; weight {int(np.argmin(np.isfinite(weights.ravel())))} is not")
    if (weights < 0).any():
        k = int(np.argmax(weights.ravel() < 0))
        raise InputError(f"inner_product must be positive; weight {k} is {weights.ravel()[k]:g}. Mend the mesh's cell "
                         "volumes, or leave those cells out")
    if (weights == 0).any():
        k = int(np.argmax(weights.ravel() == 0))
        raise InputError(f"inner_product must be positive; weight {k} is 0. Cells without volume do not count in any energy: "
                         "leave them out (a NaN in them masks them), or pass inner_product=None")
    wide = weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
    return np.ascontiguousarray(np.broadcast_to(wide, shape)).reshape(-1)


def without_missing(product: InnerProduct, shape: tuple[int, ...],
                    missing: np.ndarray) -> tuple[InnerProduct, np.ndarray | None]:
    """Weights whose 0 and NaN stand where numbers are missing, (size,), with the least of the others in their place, and the
    numbers that count, (size,); None for all of them. Weights that are otherwise wrong come back as they are."""
    weights = np.asarray(product, np.float64)
    with np.errstate(invalid="ignore"):
        bad = ~(weights > 0) & ~(weights < 0)
    fits = weights.shape == shape[:weights.ndim] or weights.shape == (int(np.prod(shape)),)
    if not fits or not bad.any() or bad.all():
        return product, None
    whole = weights.shape == (int(np.prod(shape)),) and weights.shape != shape
    wide = bad if whole else np.broadcast_to(bad.reshape(bad.shape + (1,) * (len(shape) - bad.ndim)), shape)
    if not missing[wide.ravel()].all():
        return product, None
    return np.where(bad, weights[~bad].min(), weights), ~wide.ravel()


def applied(product: InnerProduct, rows: np.ndarray, shape: tuple[int, ...], power: int = 0) -> np.ndarray:
    """Rows (m, size) times the inner product, and that times 2**power: rows @ W."""
    if product is None:
        return ldexp(rows, power)
    if power:
        product = product * 2.0**power if is_sparse(product) else ldexp(np.asarray(product, np.float64), power)
    if is_sparse(product):
        if product.shape[0] == rows.shape[1]:
            return np.asarray((product @ rows.T).T)
        each = rows.shape[1] // product.shape[0]        # the same matrix for every component
        parts = rows.reshape(len(rows), product.shape[0], each)
        return np.stack([np.asarray((product @ parts[:, :, c].T).T) for c in range(each)], axis=2).reshape(rows.shape)
    return rows * element_weights(product, shape)
