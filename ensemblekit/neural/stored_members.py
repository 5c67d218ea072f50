"""The members of an ensemble in stores: which snapshots, their vectors and their weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.parameters import Manifest
from ensemblekit.neural.remainder import check_left_out
from ensemblekit.source import ReplicaSet
from ensemblekit.store.opening import open_store
from ensemblekit.store.store import Store
from ensemblekit.store.stored import StoredField

Stores = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Store | ReplicaSet
"""Where members are: paths, a pattern, or what was opened."""
Vectors = Mapping[str, np.ndarray | StoredField] | np.ndarray | StoredField
"""Field -> (members, size); alone those of the parameters."""
FIELDS = ("parameters", "buffers", "counters")


def member_stores(path: Stores) -> list[Store]:
    """The stores that hold the members, by path, pattern or list, or open already. Raises InputError where one holds none."""
    given: object = open_store(path) if isinstance(path, str | os.PathLike | list | tuple) else path
    stores: list[Store] = []
    for one in given.runs if isinstance(given, ReplicaSet) else [given]:
        if not isinstance(one, Store) or "manifest" not in one.provenance or "parameters" not in one.fields:
            raise InputError("this store holds no snapshots of a model: it has no field \"parameters\" with a manifest. "
                             "A neural.Recorder or neural.ingest writes such")
        stores.append(one)
    return stores


def manifest_of(stores: Sequence[Store], model: torch.nn.Module) -> Manifest:
    """The manifest of all stores, checked against the model. Raises InputError naming what differs."""
    manifest = Manifest.in_store(stores[0])
    for one in stores:
        if one.provenance.get("manifest") != stores[0].provenance["manifest"]:
            raise InputError(f"{one.path} holds snapshots of another model than {stores[0].path}")
    if "ingested" in stores[0].provenance:      # perhaps without the model
        manifest = manifest.renamed(model)
        try:
            manifest.check(model)
        except InputError as error:
            raise InputError(f"{error}. Checkpoints of this model are ingested with it, neural.ingest(paths, store, model)"
                             ) from None
    manifest.check(model)
    for one in stores:
        check_left_out(one.provenance.get("left_out", {}), model)
    return manifest


def weights_of(stores: Sequence[Store], numbers: list[int]) -> np.ndarray | None:
    """The statistical weights that stores hold of the members chosen; None where they are all alike."""
    weights = [one.weights for one in stores]
    if all(w is None for w in weights):
        return None
    return np.concatenate([np.ones(len(one)) if w is None else w for one, w in zip(stores, weights, strict=True)])[numbers]


def chosen_members(total: int, members: slice | Sequence[int] | None, last: int | None) -> list[int]:
    """The numbers of the members, from 0. Raises InputError where there are none such."""
    if not total:
        raise InputError("no snapshots were stored: an ensemble needs at least one")
    if members is not None and last is not None:
        raise InputError("choose members= or last=, not both")
    if last is not None:
        if not isinstance(last, int | np.integer) or not 1 <= last <= total:
            raise InputError(f"last is a whole number from 1 to {total}, the snapshots there are; got {last!r}")
        return list(range(total - last, total))
    if members is None:
        return list(range(total))
    numbers = list(range(total))[members] if isinstance(members, slice) else [int(k) for k in members]
    if not numbers or any(not -total <= k < total for k in numbers):
        raise InputError(f"members are numbers of snapshots, 0 to {total - 1}; got {members!r}")
    return [k % total for k in numbers]


def rows_of(stores: Sequence[Store], name: str, numbers: list[int]) -> StoredField | np.ndarray:
    """(members, size) of one field: the stored field itself where its snapshots follow each other, read when used."""
    total = sum(len(one) for one in stores)
    if len(stores) == 1:
        field = stores[0][name]
        if numbers == list(range(total)):
            return field
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return field.window(numbers[0], numbers[-1] + 1)
        return field[numbers]
    where = [(s, k) for s, one in enumerate(stores) for k in range(len(one))]
    return np.stack([np.asarray(stores[s][name][k]) for s, k in (where[n] for n in numbers)])
