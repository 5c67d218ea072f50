"""Snapshots as coefficients of a basis, block by block into a store: what models are fitted to where data grow."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.model_error import projected_blocks
from ensemblekit.rom.read import as_snapshots
from ensemblekit.source import Field, as_source
from ensemblekit.store.store import Store

COEFFICIENTS, LEFT_OUT = "coefficients", "projection_error"


def coefficients(source: Any, basis: Basis, path: str | os.PathLike[str]) -> Store:
    """Project all snapshots of a source on a basis, in one read, into a store that is opened.

    Its fields are "coefficients" (k,) and "projection_error", the norm of what the modes leave out of each snapshot, in the
    basis' inner product; times go along. ``rom.operator_inference(store["coefficients"], basis=basis)`` fits a model to them.

    Arguments:
        source: files as for :func:`rom.read`, a source or an array, of the fields of the basis; one run.
        basis: may be of other snapshots.
        path: of the store, which is not there yet.

    Raises InputError where fields, shapes or units do not fit, or for NaN outside the mask; StoreError where the name is taken.
    """
    snapshots = as_source(as_snapshots(source))
    if snapshots.lengths is not None and len(snapshots.lengths) > 1:
        raise InputError("a store holds one run; project independent runs one by one")
    kind = np.dtype("c16" if np.iscomplexobj(basis.modes) else "f8")
    fields = {COEFFICIENTS: Field((basis.rank,), kind), LEFT_OUT: Field()}
    store = Store.create(path, fields, time_unit=snapshots.time_unit or basis.time_unit,
                         provenance={"made by": "rom.coefficients", "modes": basis.rank})
    with store:
        for a, rest, times in projected_blocks(basis, snapshots, basis.rank):
            known = times if times is not None and np.isfinite(times).all() else None
            store.extend({COEFFICIENTS: a, LEFT_OUT: rest}, times=known)
    return Store.open(path)
