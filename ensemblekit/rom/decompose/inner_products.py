"""Inner products of fields: what each number stands for by the mesh, the labels, or as it was given, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.intake import as_array
from ensemblekit.intake_labels import aligned
from ensemblekit.rom.grid import areas_of, grid_of
from ensemblekit.rom.mesh import inner_product as volumes_of
from ensemblekit.rom.mesh import mesh_of
from ensemblekit.rom.product import GivenProduct, SparseMatrix, is_sparse
from ensemblekit.source import (
    DescribedSource,
    Field,
)


def place_of(source: DescribedSource) -> Any:
    """What the fields of a source live on: a mesh, a grid of coordinates; None where it does not say."""
    mesh = mesh_of(source) or source.mesh       # of a store, a stored field, files; of a kind of someone's own
    return grid_of(source.labels, tuple(source.fields)) if mesh is None and source.labels is not None else mesh


def products_of(sources: Mapping[str, tuple[DescribedSource, str]],
              given: GivenProduct) -> tuple[dict[str, Any], dict[str, np.ndarray | None], tuple[str, ...]]:
    """The inner product of each field, a mask where the mesh gives some cells no volume, and what was chosen, in words."""
    masks: dict[str, np.ndarray | None] = dict.fromkeys(sources)
    if isinstance(given, str):
        if given != "auto":
            return _named_product(sources, given), masks, ()
        products: dict[str, Any] = {}
        said = set()
        areas: dict[str, None] = {}
        unsaid: list[str] = []
        for name, (source, key) in sources.items():
            labels, shape = source.labels, source.fields[key].shape
            product: np.ndarray | None = None
            known = None if labels is None else areas_of(labels, key, shape)
            if known is not None:
                product, areas[known[1]] = known[0], None
            elif (mesh := mesh_of(source)) is not None and (product := volumes_of(source, key)) is not None:
                if (product > 0).any():
                    said.add(f"{'cell' if mesh.where(key, shape) == 'cell' else 'dual'} {mesh.measure}s")
            if product is not None:
                product, masks[name] = _positive(np.array(product, np.float64), shape)
            products[name] = product
            if product is None and labels is not None:
                unsaid.append(name)
        chosen = [*(f"{' and '.join(sorted(said))} of the mesh" for _ in range(bool(said))), *areas]
        notes = [f"inner product: {' and '.join(chosen)} (inner_product=None for none)"] if chosen else []
        if unsaid:
            notes.append(f"inner product: none for {', '.join(unsaid)}: no areas of cells, no latitudes, no lengths came with "
                         "the snapshots, and each number counts alike")
        return products, masks, tuple(notes)
    if isinstance(given, Mapping):
        for name in given:
            if name not in sources:
                raise UnknownFieldError(name, sources)
        return {name: _as_product(aligned(given.get(name), source.labels, key, "inner_product"))
                for name, (source, key) in sources.items()}, masks, ()
    return {name: _as_product(aligned(given, source.labels, key, "inner_product"))
            for name, (source, key) in sources.items()}, masks, ()


def _positive(product: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Weights, the least of them in the place of those of 0, and which numbers (size,) count; None: none, or all of them.

    What has no volume carries no energy: boundary cells of a lower dimension, a pole.
    """
    empty = product <= 0
    if empty.all():
        return None, None
    if not empty.any():
        return product, None
    wide = empty.reshape(empty.shape + (1,) * (len(shape) - empty.ndim))
    product[empty] = product[~empty].min()
    return product, ~np.broadcast_to(wide, shape).ravel()


def _named_product(sources: Mapping[str, tuple[DescribedSource, str]], given: str) -> dict[str, Any]:
    """The inner product of a variable that came with the snapshots. Raises InputError where there is none of that name."""
    products: dict[str, Any] = {}
    for name, (source, key) in sources.items():
        labels = source.labels
        along = {} if labels is None else labels.along(labels.dims.get(key, ()))
        if given not in along or labels is None:
            known = f" (here {', '.join(along)})" if along else ""
            raise InputError('inner_product is "auto", None, weights, a sparse mass matrix or the name of a variable that came '
                             f"with the snapshots{known}; got {given!r}")
        areas = areas_of(replace(labels, areas={key: given}), key, source.fields[key].shape)
        products[name] = None if areas is None else areas[0]
    return products


def _as_product(product: ArrayLike | SparseMatrix | None) -> Any:
    if product is None:
        return None
    if is_sparse(product):
        return product.tocsr()
    try:
        return as_array(product, "inner_product", kinds="biuf", dtype=np.float64, named_axes=True)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f'inner_product is "auto", None, weights or a sparse mass matrix; got {product!r}') from error


def check_sparse(matrix: SparseMatrix, field: Field) -> None:
    rows, columns = matrix.shape
    if rows != columns or rows == 0 or field.size % rows or (rows != field.size and rows != field.shape[0]):
        raise InputError(f"a mass matrix is square, one row for each of the field's {field.size} numbers (or for each of its "
                         f"first axis); got {matrix.shape}")
    diagonal = matrix.diagonal()
    if not np.isfinite(matrix.data).all() or (diagonal <= 0).any():
        raise InputError("a mass matrix is positive definite: finite, with a positive diagonal")
    if abs(matrix - matrix.T).max() > 1e-10 * abs(matrix).max():
        raise InputError("a mass matrix is symmetric")
