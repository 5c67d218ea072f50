"""Checkpoints that are there already as a store of snapshots, and snapshots as checkpoints."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.checkpoint_files import State, read_state, step_of
from ensemblekit.neural.content_hash import HASH, digest
from ensemblekit.neural.parameters import KINDS, Manifest, bare_name, best_names
from ensemblekit.parts import Order, check_order, order_of
from ensemblekit.provenance import Provenance, given
from ensemblekit.source import Field
from ensemblekit.store.names import folder_of
from ensemblekit.store.store import Store

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def ingest(paths: Paths, store: str | os.PathLike[str],
           model: torch.nn.Module | None = None, *, replica: str | None = None, key: str | None = None,
           order: Order = "auto") -> Store:
    """Existing checkpoints of one model as snapshots in a new store, in the order of training.

    Arguments:
        paths: files of torch.save (.pt, .pth, .bin: a state dict, or a mapping that holds one), .safetensors, Lightning's
            .ckpt, and folders of the HuggingFace libraries (one file or several with an index; PEFT's adapters). A pattern
            ("ckpt/*.pt") stands for its files by the numbers in their names. torch files are read with
            weights_only=True: nothing in them is run, and settings saved beside the weights are passed over.
        store: path of the store to make; removed again where a checkpoint does not fit.
        model: the architecture. With it names are checked, prefixes ("module.", "model.") found out, and parameters told
            from buffers; of a folder of PEFT the adapter's parameters are those held. Without it running statistics are taken
            for buffers, all else for parameters.

        key: name of the weights where a file holds several ("state_dict_ema"), dotted within others. By default the
            usual names are looked for, and a warning says what lies beside.

        order: "given" takes a list as it is listed. By default checkpoints are put in the order of the optimizer steps that
            they name, else of the numbers in their names (epoch2 before epoch10), with a warning where the list had another.

    The time of a snapshot is the optimizer step its checkpoint names (Lightning, HuggingFace) where all of them do
    and it rises, else its number, counted from 1. Returns the store, open for reading.

    Raises InputError naming the file and what differs where a checkpoint is of another model, holds NaN, or no weights;
    StoreError where the store is there already.
    """
    settings = given(ingest, locals(), "paths", "store", "model")
    files = _sorted_files(paths, order)
    path = os.fspath(store)
    manifest: Manifest | None = None if model is None else Manifest.of(model)
    created: Store | None = None
    fresh = not os.path.lexists(path) and not os.path.lexists(folder_of(path))
    try:
        for file, time in zip(files, _times_of(files), strict=True):
            state = read_state(file, key)
            if model is not None and _is_adapter(file):
                state = _with_adapter_names(state, model, file)
                if created is None:
                    manifest = Manifest.of(model, partial(_is_in, frozenset(state)))
            if manifest is None:
                manifest = Manifest.of_state_dict(_without_wrapper(state))
            vectors = _vectors(manifest, state, file)
            if created is None:
                fields = {**manifest.fields, HASH: Field((16,), np.dtype("u1"))}
                created = Store.create(path, fields, capacity=len(files), replica=replica, origin=Provenance.now(
                    _inputs(files), settings), provenance={
                    "manifest": manifest.to_dict(), "ingested": [str(one) for one in files]})
            created.append({**vectors, HASH: np.frombuffer(digest(vectors), np.uint8)}, time=time)
        assert created is not None
    except BaseException:
        _remove(created, path, fresh)
        raise
    created.close()
    return Store.open(path)


def _inputs(files: list[Path]) -> list[str]:
    """Files, those of folders included."""
    return [str(inside) for one in files for inside in (sorted(one.rglob("*")) if one.is_dir() else [one])
            if not inside.is_dir()]


def _sorted_files(paths: Paths, order: Order) -> list[Path]:
    """The checkpoints in the order of training. Raises InputError where there are none, or one is a part of another."""
    check_order(order)
    files = _listed(paths)
    if not files:
        raise InputError("no checkpoints to ingest")
    for file in files:
        part = re.search(r"-(\d+)-of-(\d+)\.(?:safetensors|bin|pt|pth)\Z", file.name)
        if part and int(part[2]) > 1:
            raise InputError(f"{file} is one of the {int(part[2])} parts of a checkpoint, and a snapshot is the whole: give "
                             f"its folder ({file.parent}), or the index of its parts (*.index.json)")
    by_hand = not isinstance(paths, str | os.PathLike)
    return [files[k] for k in order_of(files, [step_of(file) for file in files], order=order, word="step", tell=by_hand)]


def _times_of(files: list[Path]) -> list[float]:
    """The optimizer steps that checkpoints name, where all do and they rise; else their numbers, counted from 1."""
    steps = [step_of(file) for file in files]
    known = [float(step) for step in steps if step is not None]
    rising = len(known) == len(files) and all(a < b for a, b in pairwise(known))
    return known if rising else [float(k + 1) for k in range(len(files))]


def _is_in(names: frozenset[str], name: str, _: torch.Tensor) -> bool:
    return bare_name(name) in names


def _remove(created: Store | None, path: str, fresh: bool) -> None:
    """All of a store that was begun in vain."""
    if created is not None:
        created.close()
        for segment in created.segments:
            os.unlink(segment)
    if created is not None or fresh:        # a store that could not even be begun leaves its lock
        shutil.rmtree(folder_of(path), ignore_errors=True)


def _listed(paths: Paths) -> list[Path]:
    """Files in order; a pattern stands for what it matches, by the numbers in the names."""
    files: list[Path] = []
    for one in [paths] if isinstance(paths, str | os.PathLike) else paths:
        text = os.fspath(one)
        if os.path.lexists(text) or not glob.has_magic(text):
            files.append(Path(text))
            continue
        matches = sorted(glob.glob(text, recursive=True), key=lambda name: [
            (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)])
        if not matches:
            raise InputError(f"no file matches {text}")
        files += map(Path, matches)
    return files


def _is_adapter(file: Path) -> bool:
    """Whether it is an adapter of PEFT, a folder or its file."""
    return any((file / name).exists() for name in ("adapter_model.safetensors", "adapter_model.bin")) or (
        file.name.startswith("adapter_model."))


def _with_adapter_names(state: State, model: torch.nn.Module, file: Path) -> State:
    """An adapter's tensors under the names that they have in the model, where the adapter's own name stands in them.

    PEFT leaves that name out of its files ("lora_A.weight" of "lora_A.default.weight"), and the whole of
    "modules_to_save.default" of modules that were trained in full. Raises InputError where the model has none of it.
    """
    adapters: dict[str, dict[str, str]] = {}       # name of an adapter -> name in the file -> name in the model
    for name in (bare_name(name) for name, _ in model.named_parameters()):
        parts = name.split(".")
        for k, part in enumerate(parts):
            kept = [*parts[:k - (k > 0 and parts[k - 1] == "modules_to_save")], *parts[k + 1:]]
            if part not in ("original_module", "base_layer", "modules_to_save") and ".".join(kept) in state:
                adapters.setdefault(part, {})[".".join(kept)] = name
    names = max(adapters.values(), key=len, default={}) if "default" not in adapters else adapters["default"]
    renamed = {names.get(name, name): tensor for name, tensor in state.items()}
    if not set(renamed) & {bare_name(name) for name, _ in model.named_parameters()}:
        raise InputError(f"{file} is an adapter of PEFT with {', '.join(list(state)[:3])}, ..., which the model has not: give "
                         "the model with the adapter in it (peft.get_peft_model)")
    return renamed


# -- fitting to a model --------------------------------------------------------------------------------------------

def _without_wrapper(state: State) -> State:
    """Names without the "module." that every one has where a DataParallel model was saved."""
    return {n.removeprefix("module."): t for n, t in state.items()} if all(n.startswith("module.") for n in state) else state


def _vectors(manifest: Manifest, state: State, file: Path) -> dict[str, np.ndarray]:
    """The vectors of a checkpoint in the order of the manifest, or an InputError that names what differs."""
    wanted = {entry.name: entry for kind in KINDS for entry in getattr(manifest, kind)}
    names = set(wanted) | {alias for alias, _ in manifest.aliases}
    state = best_names(state, names)
    for alias, first in manifest.aliases:       # a file may hold any one name of a tied tensor
        if first not in state and alias in state:
            state[first] = state[alias]
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in names]
    shapes = [f"{name} is {tuple(state[name].shape)}, wanted {entry.shape}" for name, entry in wanted.items()
              if name in state and tuple(state[name].shape) != entry.shape]
    untied = [f"{alias} and {first} differ, and are one tensor in the model" for alias, first in manifest.aliases
              if alias in state and first in state and state[alias] is not state[first]
              and not torch.equal(state[alias], state[first])]
    said = [f"{what} {', '.join(items[:4])}{f' and {len(items) - 4} more' if len(items) > 4 else ''}"
            for what, items in (("lacks", missing), ("has besides", extra), ("shapes:", shapes), ("ties:", untied)) if items]
    if said:
        raise InputError(f"{file} is of another model: it {'; '.join(said)}")
    vectors = {}
    for kind, field in manifest.fields.items():
        parts = []
        for entry in getattr(manifest, kind):
            tensor = state[entry.name]
            if (kind == "counters") == (tensor.is_floating_point() or tensor.is_complex()):
                raise InputError(f"{file}: {entry.name} is {tensor.dtype}, wanted {entry.dtype}")
            if entry.dtype.startswith("complex"):
                tensor = torch.view_as_real(tensor.to(getattr(torch, entry.dtype)))
            dtype = {"f4": torch.float32, "f8": torch.float64, "i8": torch.int64}[field.dtype.str[1:]]
            parts.append(tensor.detach().reshape(-1).to(dtype))
            if kind != "counters" and not torch.isfinite(parts[-1]).all():
                raise InputError(f"{file}: {entry.name} holds NaN or infinity")
        vectors[kind] = torch.cat(parts).numpy()
    return vectors


# -- export --------------------------------------------------------------------------------------------------------


