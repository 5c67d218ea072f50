"""Models as plain HDF5 files: one dataset an operator under /rom/model, the basis beside it, the rest as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ensemblekit.errors import StoreError
from ensemblekit.provenance import Provenance
from ensemblekit.rom import files
from ensemblekit.rom.basis import NAMES, Basis
from ensemblekit.rom.training import Training

GROUP = "/rom/model"
FORMAT = "ensemblekit model 1"


def write(path: str | os.PathLike[str], kind: str, about: dict[str, Any], arrays: dict[str, np.ndarray | None],
          basis: Basis | None) -> str:
    """One file of a model: its arrays, its basis, and a record of what it is; by temporary file and rename."""
    from ensemblekit.store.hdf5 import write_arrays

    kept = {f"{GROUP}/{name}": np.asarray(x) for name, x in arrays.items() if x is not None}
    record = {"format": FORMAT, "kind": kind, "provenance": Provenance.now().to_dict(), **about}
    kept[f"{GROUP}/about"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    if basis is not None:
        kept |= files.basis_arrays({name: getattr(basis, name) for name in NAMES})
    write_arrays(os.fspath(path), kept)
    return os.fspath(path)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray], Basis | None] | None:
    """The record, the arrays and the basis of a model's file; None where it holds no model. Raises StoreError."""
    from ensemblekit.store.guarded import record
    from ensemblekit.store.hdf5 import read_arrays

    name = os.fspath(path)
    arrays = read_arrays(name, GROUP)
    if "about" not in arrays:
        return None
    with record(name, "model"):
        about = json.loads(arrays.pop("about").tobytes())
        if about.get("format") != FORMAT:
            raise StoreError(f"{name} holds a model of the format {about.get('format')!r}; this version reads {FORMAT!r}")
    basis = Basis.load(path) if read_arrays(name, files.GROUP) else None
    return about, arrays, basis


def put_training(training: Training | None, about: dict[str, Any], arrays: dict[str, np.ndarray | None]) -> None:
    """What a model remembers of its training, into its record and arrays."""
    if training is None:
        return
    about["training"] = {}
    for f in fields(training):
        value = getattr(training, f.name)
        if isinstance(value, np.ndarray):
            arrays[f"training/{f.name}"] = value
        else:
            about["training"][f.name] = value


def get_training(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Training | None:
    """The inverse of :func:`put_training`."""
    if "training" not in about:
        return None
    kept: dict[str, Any] = {name.removeprefix("training/"): x for name, x in arrays.items() if name.startswith("training/")}
    return Training(**kept, **about["training"])


def plain(x: Any) -> Any:
    """A value as JSON keeps it, NaN and infinity too (as Python writes them)."""
    if isinstance(x, np.generic):
        return x.item()
    return dict(x) if isinstance(x, dict) else list(x) if isinstance(x, tuple) else x
