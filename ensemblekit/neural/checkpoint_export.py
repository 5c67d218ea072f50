"""Snapshots as checkpoints that other programs read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ensemblekit.errors import InputError, MissingExtraError, StoreError
from ensemblekit.files import replacing
from ensemblekit.neural.checkpoint_files import State
from ensemblekit.neural.parameters import KINDS, Manifest
from ensemblekit.neural.resume import writing
from ensemblekit.store.opening import open_store


def state_dict(store: str | os.PathLike[str] | Any, snapshot: int = -1) -> State:
    """The weights of one snapshot by name, in their own types, as ``model.load_state_dict`` takes them.

    Arguments:
        store: a path, or an open store of snapshots.
        snapshot: its number, negative from the end.

    Raises InputError where there is no such snapshot, or the store holds none of a network.
    """
    one = open_store(store) if isinstance(store, str | os.PathLike) else store
    if "manifest" not in one.provenance:
        raise InputError(f"{one.path} holds no snapshots of a network (fields: {', '.join(one.fields)})")
    manifest = Manifest.in_store(one)
    n = len(one)
    if not -n <= snapshot < n:
        raise InputError(f"the store holds {n} snapshots; there is no number {snapshot}")
    return manifest.state_dict({kind: one[kind][snapshot] for kind in KINDS if kind in one.fields})


def export(store: str | os.PathLike[str] | Any, out: str | os.PathLike[str], snapshot: int | None = -1) -> list[Path]:
    """Snapshots as files that other programs read: .pt (a state dict) or .safetensors.

    Arguments:
        store: a path, or an open store.
        out: a file name that ends in .pt, .pth or .safetensors.
        snapshot: its number, negative from the end; None for all of them, each under the name with its number in it
            (weights.pt: weights-0.pt, weights-1.pt, ...), or where "{}" stands in the name.

    Returns the files written. In .safetensors a tensor with several names stands once, the other names are in the
    metadata. Files are written whole or not at all.

    Raises InputError where there is no such snapshot or suffix; StoreError where a file cannot be written (a full disk).
    """
    one = open_store(store) if isinstance(store, str | os.PathLike) else store
    path = Path(out)
    if path.suffix not in WRITERS:
        raise InputError(f"out ends in {', '.join(WRITERS)}; got {path}")
    if not path.parent.is_dir():
        raise StoreError(f"the folder of {path} does not exist; make it first")
    numbers = range(len(one)) if snapshot is None else [snapshot]
    if not len(numbers):
        raise InputError("the store holds no snapshots to export")
    written = []
    for k in numbers:
        name = path.name.format(k) if "{" in path.name else path.name if snapshot is not None else (
            f"{path.stem}-{k}{path.suffix}")
        target = path.with_name(name)
        state, metadata = state_dict(one, k), _metadata(one, k)
        with writing(target), replacing(target, follow=True) as temporary:
            WRITERS[path.suffix](state, Path(temporary), metadata)
        written.append(target)
    return written


def _metadata(store: Any, k: int) -> dict[str, str]:
    manifest = Manifest.in_store(store)
    times = store["parameters"].times
    return {"format": "pt", "ensemblekit.run": store.run, "ensemblekit.step": f"{times[k]:g}",
            **{alias: first for alias, first in manifest.aliases}}


def _write_torch(state: State, path: Path, metadata: dict[str, str]) -> None:
    torch.save(state, path)


def _write_safetensors(state: State, path: Path, metadata: dict[str, str]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingExtraError("safetensors", "neural") from error
    save_file({name: tensor.contiguous() for name, tensor in state.items() if name not in metadata}, path, metadata)


WRITERS: dict[str, Callable[[State, Path, dict[str, str]], None]] = {
    ".pt": _write_torch, ".pth": _write_torch, ".safetensors": _write_safetensors}
