"""Checkpoints that are there already as a store of snapshots, and snapshots as checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemblekit.errors import InputError, MissingExtraError, StoreError
from ensemblekit.files import replacing
from ensemblekit.neural.parameters import KINDS, Manifest, bare_name
from ensemblekit.neural.recorder import HASH, digest
from ensemblekit.source import Field
from ensemblekit.store.opening import open_store
from ensemblekit.store.segments import folder_of
from ensemblekit.store.store import Store

State = dict[str, torch.Tensor]
INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
"""Where programs put the weights in what they save, in the order in which they are looked for."""
HUGGINGFACE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def ingest(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], store: str | os.PathLike[str],
           model: torch.nn.Module | None = None, *, replica: str | None = None) -> Store:
    """Existing checkpoints of one model as snapshots in a new store, in the order given.

    Arguments:
        paths: files of torch.save (.pt, .pth, .bin: a state dict, or a mapping that holds one), .safetensors, Lightning's
            .ckpt, and folders of the HuggingFace libraries (one file or several with an index). torch files are read
            with weights_only=True: nothing in them is run.
        store: path of the store to make; removed again where a checkpoint does not fit.
        model: the architecture. With it names are checked, prefixes ("module.", "model.") found out, and parameters told
            from buffers. Without it running statistics are taken for buffers, all else for parameters.

    The time of a snapshot is the optimizer step its checkpoint names (Lightning, HuggingFace) where all of them do
    and it rises, else its number, counted from 1. Returns the store, open for reading.

    Raises InputError naming the file and what differs where a checkpoint is of another model, holds NaN, or no weights;
    StoreError where the store is there already.
    """
    files = [Path(os.fspath(p)) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not files:
        raise InputError("no checkpoints to ingest")
    path = os.fspath(store)
    manifest: Manifest | None = None if model is None else Manifest.of(model)
    made: Store | None = None
    steps = [step_of(file) for file in files]
    known = [float(step) for step in steps if step is not None]
    rising = len(known) == len(files) and all(a < b for a, b in pairwise(known))
    times = known if rising else [float(k + 1) for k in range(len(files))]
    try:
        for file, time in zip(files, times, strict=True):
            state = read_state(file)
            if manifest is None:
                manifest = Manifest.of_state_dict(_without_wrapper(state))
            vectors = _vectors(manifest, state, file)
            if made is None:
                fields = {**manifest.fields, HASH: Field((16,), np.dtype("u1"))}
                made = Store.create(path, fields, capacity=len(files), replica=replica, provenance={
                    "manifest": manifest.to_dict(), "ingested": [str(one) for one in files]})
            made.append({**vectors, HASH: np.frombuffer(digest(vectors), np.uint8)}, time=time)
        assert made is not None
    except BaseException:
        if made is not None:
            made.close()
            for segment in made.segments:
                os.unlink(segment)
            shutil.rmtree(folder_of(made.path), ignore_errors=True)
        raise
    made.close()
    return Store.open(path)


# -- reading -------------------------------------------------------------------------------------------------------

def read_state(path: str | os.PathLike[str]) -> State:
    """The weights in a checkpoint, by name. See :func:`ingest` for what is read."""
    file = Path(path)
    if not file.exists():
        raise InputError(f"there is no checkpoint {file}")
    if file.is_dir():
        return _read_folder(file)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in (".h5", ".hdf5", ".npz", ".onnx"):
        raise InputError(f"{file} is no checkpoint of torch: .pt, .pth, .bin, .ckpt, .safetensors or a HuggingFace folder")
    return _state_in(_load(file), file)


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        advice = "" if "weights_only" not in str(error) and "Unsupported" not in str(error) else (
            " It holds more than tensors and plain data, which are not read for safety: save its state dict alone, "
            "torch.save(model.state_dict(), path)")
        raise InputError(f"{file} cannot be read as a checkpoint of torch: {reason}{advice}") from error


def _state_in(found: Any, file: Path) -> State:
    """The state dict in what was saved: itself, or the first of the usual places that holds one."""
    if isinstance(found, Mapping):
        for name in INSIDE:
            inner = found.get(name)
            if isinstance(inner, Mapping) and any(isinstance(value, torch.Tensor) for value in inner.values()):
                return _tensors(inner, file)
        if any(isinstance(value, torch.Tensor) for value in found.values()):
            return _tensors(found, file)
    keys = ", ".join(map(str, list(found)[:8])) if isinstance(found, Mapping) else type(found).__name__
    raise InputError(f"{file} holds no state dict, neither itself nor under {', '.join(INSIDE[:3])}, ...; it holds: {keys}")


def _tensors(state: Mapping[str, Any], file: Path) -> State:
    found: State = {}
    for name, value in state.items():
        if name.endswith("_extra_state") or name == "n_averaged":
            continue            # what modules keep beside their tensors, and the counter of torch's AveragedModel
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{file}: {name} is no tensor but {type(value).__name__}")
        found[bare_name(str(name))] = value
    return found


def _read_safetensors(file: Path) -> State:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "neural") from error
    try:
        with safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}
            named = opened.metadata() or {}
    except Exception as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from error
    for alias, first in named.items():      # how names of one tensor are kept, by safetensors' save_model too
        if first in state and alias not in state:
            state[alias] = state[first]
    return _tensors(state, file)


def _read_folder(folder: Path) -> State:
    for name in HUGGINGFACE:
        file = folder / name
        if not file.exists():
            continue
        if name.endswith(".index.json"):
            state: State = {}
            for part in sorted(set(json.loads(file.read_text())["weight_map"].values())):
                state |= read_state(folder / part)
            return state
        return read_state(file)
    raise InputError(f"{folder} holds no weights: one of {', '.join(HUGGINGFACE)} is looked for")


def step_of(path: Path) -> int | None:
    """The optimizer step a checkpoint says it was taken after; None where it does not say."""
    if path.is_dir():
        state = path / "trainer_state.json"
        if state.exists():
            return int(json.loads(state.read_text())["global_step"])
        found = re.fullmatch(r"checkpoint-(\d+)", path.name)
        return int(found[1]) if found else None
    if path.suffix == ".ckpt" and path.exists():
        found = re.search(r"step=(\d+)", path.stem)
        if found:
            return int(found[1])
    return None


# -- fitting to a model --------------------------------------------------------------------------------------------

def _without_wrapper(state: State) -> State:
    """Names without the "module." that every one has where a DataParallel model was saved."""
    return {n.removeprefix("module."): t for n, t in state.items()} if all(n.startswith("module.") for n in state) else state


def _vectors(manifest: Manifest, state: State, file: Path) -> dict[str, np.ndarray]:
    """The vectors of a checkpoint in the order of the manifest, or an InputError that names what differs."""
    wanted = {entry.name: entry for kind in KINDS for entry in getattr(manifest, kind)}
    names = set(wanted) | {alias for alias, _ in manifest.aliases}
    state = _best_names(state, names)
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
    said = [f"{what} {', '.join(found[:4])}{f' and {len(found) - 4} more' if len(found) > 4 else ''}"
            for what, found in (("lacks", missing), ("has besides", extra), ("shapes:", shapes), ("ties:", untied)) if found]
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


def _best_names(state: State, names: set[str]) -> State:
    """The state under the names a model has: as it is, or without (or below) a prefix that all its tensors share."""
    if names <= set(state):
        return dict(state)
    prefixes = ["module.", "model.", "net.", "network.", "_forward_module.", "module.model.", "model.module."]
    candidates = [{n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)} for prefix in prefixes]
    first = {n.partition(".")[0] + "." for n in state if "." in n}
    if len(first) == 1:
        prefix = first.pop()
        candidates.append({n.removeprefix(prefix): t for n, t in state.items()})
    candidates.append(dict(state))
    return max(candidates, key=lambda one: (len(names & set(one)), -len(set(one) - names)))


# -- export --------------------------------------------------------------------------------------------------------

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
    manifest = Manifest.from_dict(one.provenance["manifest"])
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
        with replacing(target, follow=True) as temporary:
            WRITERS[path.suffix](state_dict(one, k), Path(temporary), _metadata(one, k))
        written.append(target)
    return written


def _metadata(store: Any, k: int) -> dict[str, str]:
    manifest = Manifest.from_dict(store.provenance["manifest"])
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
