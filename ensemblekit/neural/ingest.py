"""Checkpoints that are there already as a store of snapshots, and snapshots as checkpoints."""

from __future__ import annotations

import glob
import json
import logging
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
from ensemblekit.files import check_input, replacing
from ensemblekit.neural.parameters import KINDS, Manifest, bare_name, best_names, is_empty
from ensemblekit.neural.recorder import HASH, digest
from ensemblekit.neural.resume import writing
from ensemblekit.parts import Order, check_order, order_of
from ensemblekit.source import Field
from ensemblekit.store.names import folder_of
from ensemblekit.store.opening import open_store
from ensemblekit.store.store import Store

State = dict[str, torch.Tensor]
INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
"""Where programs put the weights in what they save, in the order in which they are looked for."""
HUGGINGFACE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
               "adapter_model.safetensors", "adapter_model.bin", "diffusion_pytorch_model.safetensors",
               "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.bin")
LFS = b"version https://git-lfs"
logger = logging.getLogger("ensemblekit.neural")


def ingest(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], store: str | os.PathLike[str],
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
    check_order(order)
    files = _listed(paths)
    if not files:
        raise InputError("no checkpoints to ingest")
    by_hand = not isinstance(paths, str | os.PathLike)
    for file in files:
        part = re.search(r"-(\d+)-of-(\d+)\.(?:safetensors|bin|pt|pth)\Z", file.name)
        if part and int(part[2]) > 1:
            raise InputError(f"{file} is one of the {int(part[2])} parts of a checkpoint, and a snapshot is the whole: give "
                             f"its folder ({file.parent}), or the index of its parts (*.index.json)")
    files = [files[k] for k in order_of(files, [step_of(file) for file in files], order=order, word="step", tell=by_hand)]
    path = os.fspath(store)
    manifest: Manifest | None = None if model is None else Manifest.of(model)
    made: Store | None = None
    fresh = not os.path.lexists(path) and not os.path.lexists(folder_of(path))
    steps = [step_of(file) for file in files]
    known = [float(step) for step in steps if step is not None]
    rising = len(known) == len(files) and all(a < b for a, b in pairwise(known))
    times = known if rising else [float(k + 1) for k in range(len(files))]
    try:
        for file, time in zip(files, times, strict=True):
            state = read_state(file, key)
            if model is not None and _is_adapter(file):
                state = _with_adapter_names(state, model, file)
                manifest = manifest if made is not None else Manifest.of(model, lambda name, _: bare_name(name) in state)  # noqa: B023
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
        if made is not None or fresh:       # a store that could not even be begun leaves its lock
            shutil.rmtree(folder_of(path), ignore_errors=True)
        raise
    made.close()
    return Store.open(path)


# -- reading -------------------------------------------------------------------------------------------------------

def read_state(path: str | os.PathLike[str], key: str | None = None) -> State:
    """The weights in a checkpoint, by name. See :func:`ingest` for what is read."""
    file = Path(path)
    if file.is_dir():
        return _read_folder(file, key)
    check_input(file)
    with open(file, "rb") as opened:
        head = opened.read(64)
    if head.startswith(LFS):
        raise InputError(f"{file} is a pointer of Git LFS, not the weights themselves: fetch them with git lfs pull")
    if not head:
        raise InputError(f"{file} is empty")
    if file.name.endswith(".index.json"):
        return _read_index(file)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in (".h5", ".hdf5", ".npz", ".onnx"):
        raise InputError(f"{file} is no checkpoint of torch: .pt, .pth, .bin, .ckpt, .safetensors or a HuggingFace folder")
    return _state_in(_load(file), file, key)


class _Inert(dict):
    """Stands in a checkpoint for an object of a class that is not read: takes whatever it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def append(self, item: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""

    extend = append
    __hash__ = object.__hash__      # type: ignore[assignment]


def _load(file: Path) -> Any:
    """By weights_only=True: nothing in the file is run. Objects of other classes (settings as argparse.Namespace, numpy's
    scalars, a trainer's own) are taken for inert ones, for the weights do not depend on them."""
    inert: dict[str, Any] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(one, name) for name, one in inert.items()]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            said = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
            blocked = re.search(r"GLOBAL `?([\w.]+)`? whose module", said)
            found = None if blocked else re.search(r"GLOBAL `?([\w.]+)`? was not an allowed global", said)
            if found and found[1] not in inert and len(inert) < 256:
                inert[found[1]] = type(found[1].rpartition(".")[2], (_Inert,), {})
                continue
            if blocked:
                reason = f"it calls {blocked[1]}, which is not run: do not trust the file"
            elif "weights_only" in said or "Unsupported" in said:
                names = ", ".join(re.findall(r"(?:GLOBAL|class|type) `?([\w.]+\.[\w.]+)", said)[:3] or list(inert)[:3])
                reason = (f"it holds more than tensors and plain data{f' ({names})' if names else ''}, which are not read for "
                          "safety: where it was written, save its state dict alone, torch.save(model.state_dict(), path)")
            else:
                reason = next(iter(said.splitlines()), type(error).__name__)
            raise InputError(f"{file} cannot be read as a checkpoint of torch: {reason}") from None


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(one, torch.Tensor) for one in value.values())


def _state_in(found: Any, file: Path, key: str | None = None) -> State:
    """The state dict in what was saved: under `key`, itself, or the first of the usual places that holds one."""
    if isinstance(found, _Inert):
        raise InputError(f"{file} holds an object of class {type(found).__name__} as a whole, which is not read for safety: "
                         "where it was written, save its state dict, torch.save(model.state_dict(), path)")
    held = {str(name): value for name, value in found.items() if _holds_tensors(value)} if isinstance(found, Mapping) else {}
    if key is not None:
        inner = found
        for part in [key] if isinstance(found, Mapping) and key in found else key.split("."):
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        if not _holds_tensors(inner):
            raise InputError(f"{file} holds no weights under key={key!r}; there are weights under: {', '.join(held) or 'none'}")
        return _tensors(inner, file)
    named = [name for name in INSIDE if name in held]
    others = [name for name in held if "optim" not in name.lower()]
    if not named and isinstance(found, Mapping) and any(isinstance(value, torch.Tensor) for value in found.values()):
        return _tensors(found, file)
    if not named and len(others) > 1:
        raise InputError(f"{file} holds several sets of weights, {', '.join(others)}: choose one with key=")
    if named or others:
        first = (named or others)[0]
        beside = [name for name in others if name != first]
        if beside:
            logger.warning("%s: the weights under %r were taken; there are others under %s (key=)", file, first,
                           ", ".join(map(repr, beside)))
        return _tensors(held[first], file)
    keys = ", ".join(map(str, list(found)[:8])) if isinstance(found, Mapping) else type(found).__name__
    raise InputError(f"{file} holds no state dict, neither itself nor under {', '.join(INSIDE[:3])}, ...; it holds: {keys}")


def _tensors(state: Mapping[str, Any], file: Path) -> State:
    found: State = {}
    for name, value in state.items():
        if str(name).endswith("_extra_state") and not is_empty(value):
            raise InputError(f"{file}: {name} is what a module keeps beside its tensors (get_extra_state), which a snapshot "
                             "does not hold: register it as a buffer, or take it out of the state dict")
        if str(name).endswith("_extra_state") or name == "n_averaged":
            continue            # the counter of torch's AveragedModel
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


def _read_folder(folder: Path, key: str | None = None) -> State:
    for name in HUGGINGFACE:
        if (folder / name).exists():
            return read_state(folder / name, key)
    raise InputError(f"{folder} holds no weights: one of {', '.join(HUGGINGFACE)} is looked for")


def _read_json(file: Path) -> Any:
    check_input(file)
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error


def _read_index(file: Path) -> State:
    """All parts that an index names; they lie in its own folder."""
    index = _read_json(file)
    parts = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(parts, dict) or not parts or not all(isinstance(part, str) for part in parts.values()):
        raise InputError(f"{file} is no index of weights: it has no weight_map of tensors and files")
    state: State = {}
    for part in sorted(set(parts.values())):
        if os.path.normpath(part) == "." or part.endswith(".index.json") or (file.parent / part).is_dir():
            raise InputError(f"{file} names {part!r} as a file of weights, which is a folder or another index: it is not read")
        if os.path.isabs(part) or "\\" in part or os.path.normpath(part).split(os.sep)[0] == "..":
            raise InputError(f"{file} names {part}, a file outside its own folder: it is not read")
        state |= read_state(file.parent / part)
    missing = [name for name in parts if name not in state and bare_name(name) not in state]
    if missing:
        raise InputError(f"{file} names {', '.join(missing[:4])}, which its files do not hold: is a part missing or of another "
                         "checkpoint?")
    return state


def _listed(paths: Any) -> list[Path]:
    """Files in order; a pattern stands for what it matches, by the numbers in the names."""
    found: list[Path] = []
    for one in [paths] if isinstance(paths, str | os.PathLike) else paths:
        text = os.fspath(one)
        if os.path.lexists(text) or not glob.has_magic(text):
            found.append(Path(text))
            continue
        matches = sorted(glob.glob(text, recursive=True), key=lambda name: [
            (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)])
        if not matches:
            raise InputError(f"no file matches {text}")
        found += map(Path, matches)
    return found


def _is_adapter(file: Path) -> bool:
    """Whether it is an adapter of PEFT, a folder or its file."""
    return any((file / name).exists() for name in ("adapter_model.safetensors", "adapter_model.bin")) or (
        file.name.startswith("adapter_model."))


def _with_adapter_names(state: State, model: torch.nn.Module, file: Path) -> State:
    """An adapter's tensors under the names that they have in the model, where the adapter's own name stands in them.

    PEFT leaves that name out of its files ("lora_A.weight" of "lora_A.default.weight"), and the whole of
    "modules_to_save.default" of modules that were trained in full. Raises InputError where the model has none of it.
    """
    found: dict[str, dict[str, str]] = {}       # name of an adapter -> name in the file -> name in the model
    for name in (bare_name(name) for name, _ in model.named_parameters()):
        parts = name.split(".")
        for k, part in enumerate(parts):
            kept = [*parts[:k - (k > 0 and parts[k - 1] == "modules_to_save")], *parts[k + 1:]]
            if part not in ("original_module", "base_layer", "modules_to_save") and ".".join(kept) in state:
                found.setdefault(part, {})[".".join(kept)] = name
    names = max(found.values(), key=len, default={}) if "default" not in found else found["default"]
    renamed = {names.get(name, name): tensor for name, tensor in state.items()}
    if not set(renamed) & {bare_name(name) for name, _ in model.named_parameters()}:
        raise InputError(f"{file} is an adapter of PEFT with {', '.join(list(state)[:3])}, ..., which the model has not: give "
                         "the model with the adapter in it (peft.get_peft_model)")
    return renamed


def step_of(path: Path) -> int | None:
    """The optimizer step a checkpoint says it was taken after; None where it does not say."""
    if path.is_dir():
        state = path / "trainer_state.json"
        if state.exists():
            held = _read_json(state)
            if isinstance(held, dict) and isinstance(held.get("global_step"), int):
                return int(held["global_step"])
        found = re.fullmatch(r"(?:checkpoint|step|global_step)[-_]?(\d+)", path.name)
        return int(found[1]) if found else None
    if path.suffix == ".ckpt" and path.exists():
        found = re.search(r"step=(\d+)", path.stem)
        if found:
            return int(found[1])
        held = _load(path)      # last.ckpt
        step = held.get("global_step") if isinstance(held, Mapping) else None
        return step if isinstance(step, int) and not isinstance(step, bool) else None
    return None


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
