"""Members as a mean and a few modes: built one at a time when they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Convention, Device, device_of
from ensemblekit.neural.batchnorm import has_batch_norm, update_bn
from ensemblekit.neural.options import Ensembling
from ensemblekit.neural.parameters import Manifest, load_vectors, to_vectors
from ensemblekit.neural.stored_members import FIELDS, Stores, manifest_of, member_stores, rows_of


class GivesBasis(Protocol):
    """What members are made of, such as the result of ``rom.pod``: snapshot k is mean + coefficients[k] @ modes."""

    @property
    def mean(self) -> np.ndarray: ...
    @property
    def modes(self) -> np.ndarray: ...
    @property
    def coefficients(self) -> np.ndarray: ...


class BasisRows:
    """Rows (members, size) of a basis, each made when it is read.

    Raises InputError where the arrays of the basis do not fit each other, or not the model.
    """

    def __init__(self, basis: GivesBasis, size: int, dtype: np.dtype):
        self.mean = np.asarray(basis.mean).reshape(-1)
        self.coefficients = np.asarray(basis.coefficients, np.float64)
        modes = np.asarray(basis.modes)
        self.modes = modes.reshape(len(modes), -1)
        if self.mean.size != size or self.modes.shape[1] != size:
            raise InputError(f"the model has {size} parameters, and the basis is of snapshots of {self.mean.size}: it is made "
                             "of the field \"parameters\" of the model's store")
        if self.coefficients.ndim != 2 or self.coefficients.shape[1] != len(self.modes) or not len(self.coefficients):
            raise InputError(f"coefficients are (members, modes) of {len(self.modes)} modes; got {self.coefficients.shape}")
        for name, x in (("mean", self.mean), ("modes", self.modes), ("coefficients", self.coefficients)):
            if x.dtype.kind != "f" or not np.isfinite(x).all():
                raise InputError(f"the {name} of a basis of weights are finite real numbers")
        self.shape, self.dtype = (len(self.coefficients), size), dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, k: int) -> np.ndarray:
        row: np.ndarray = (self.mean + self.coefficients[k] @ self.modes).astype(self.dtype)
        return row


def members_of_basis(basis: GivesBasis, model: torch.nn.Module, store: Stores | None, loader: Iterable[Any] | None,
                     options: Ensembling, device: Device) -> tuple[dict[str, Any], Manifest]:
    """Field -> rows: parameters of a basis; buffers of the store, or made anew with the loader; and the manifest.

    Raises InputError where the model has batch-norm layers and neither is given, and where the store has other snapshots.
    """
    convention = Convention(options.get("forward"), options.get("target"), options.get("outputs"), options.get("task"))
    manifest = Manifest.of(model) if store is None else manifest_of(member_stores(store), model)
    width = sum(entry.size for entry in manifest.parameters)
    rows = BasisRows(basis, width, manifest.dtype("parameters"))
    vectors: dict[str, Any] = {"parameters": rows}
    if store is not None:
        stores = member_stores(store)
        total = sum(map(len, stores))
        if total != len(rows):
            raise InputError(f"a basis of {len(rows)} snapshots is given, and a store of {total}; they are of one run")
        return vectors | {name: rows_of(stores, name, list(range(total))) for name in FIELDS[1:] if name in stores[0].fields
                          }, manifest
    last = to_vectors(model, manifest)
    others = {name: x for name, x in last.items() if name != "parameters"}
    if not has_batch_norm(model):
        return vectors | {name: np.repeat(x[None], len(rows), 0) for name, x in others.items()}, manifest
    if loader is None:
        raise InputError("the model has batch-norm layers: pass the store= that the basis is of, for the statistics of its "
                         "snapshots, or a loader= of training data to make them anew")
    batches = list(loader) if isinstance(loader, Iterator) else loader
    return with_own_statistics(model, manifest, rows, others, lambda one: update_bn(batches, one, device or device_of(one),
                                                                                    convention)), manifest


def with_own_statistics(model: torch.nn.Module, manifest: Manifest, rows: np.ndarray | BasisRows,
                        others: Mapping[str, np.ndarray], refresh: Callable[[torch.nn.Module], None]) -> dict[str, Any]:
    """Field -> rows: parameters (members, size) as they are, and what a model with each of them has after `refresh`.

    Arguments:
        others: field -> (size,) of buffers and counters to begin with.
    """
    one = copy.deepcopy(model)
    found: dict[str, list[np.ndarray]] = {name: [] for name in others}
    for k in range(len(rows)):
        load_vectors(one, {**others, "parameters": rows[k]}, manifest)
        refresh(one)
        vectors = to_vectors(one, manifest)
        for name, kept in found.items():
            kept.append(vectors[name])
    return {"parameters": rows, **{name: np.array(x) for name, x in found.items()}}
