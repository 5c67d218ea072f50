"""The weights in checkpoints of other programs (torch, safetensors, Lightning, HuggingFace); nothing in them is run."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ensemblekit.errors import InputError, MissingExtraError
from ensemblekit.files import check_input
from ensemblekit.neural.parameters import bare_name, is_empty

logger = logging.getLogger("ensemblekit")
State = dict[str, torch.Tensor]
INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
"""Where programs put the weights in what they save, in the order in which they are looked for."""
HUGGINGFACE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
               "adapter_model.safetensors", "adapter_model.bin", "diffusion_pytorch_model.safetensors",
               "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.bin")
LFS = b"version https://git-lfs"


def read_state(path: str | os.PathLike[str], key: str | None = None) -> State:
    """The weights in a checkpoint, by name. See :func:`ingest` for what is read."""
    file = Path(path)
    _check_not_distributed(file)
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


def _check_not_distributed(file: Path) -> None:
    """Raise InputError for what torch.distributed.checkpoint wrote, a folder or a file of it."""
    folder = file if file.is_dir() else file.parent
    if (folder / ".metadata").exists() if file.is_dir() else file.suffix == ".distcp" or file.name == ".metadata":
        raise InputError(f"{folder} is a checkpoint of torch.distributed.checkpoint, whose .metadata is a pickle: reading it "
                         "could run anything, so it is not read. Where you trust it, make one file of it by torch's own "
                         "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, 'checkpoint.pt'), and give that")


class _Inert(dict):
    """Stands in a checkpoint for an object of a class that is not read: takes whatever it is given and does nothing."""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__()

    def append(self, item: object) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""

    extend = append

    def __hash__(self) -> int:      # type: ignore[override]
        return id(self)


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
            match = None if blocked else re.search(r"GLOBAL `?([\w.]+)`? was not an allowed global", said)
            if match and match[1] not in inert and len(inert) < 256:
                inert[match[1]] = type(match[1].rpartition(".")[2], (_Inert,), {})
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


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(one, torch.Tensor) for one in value.values())


def _state_in(saved: object, file: Path, key: str | None = None) -> State:
    """The state dict in what was saved: under `key`, itself, or the first of the usual places that holds one."""
    if isinstance(saved, _Inert):
        raise InputError(f"{file} holds an object of class {type(saved).__name__} as a whole, which is not read for safety: "
                         "where it was written, save its state dict, torch.save(model.state_dict(), path)")
    held = {str(name): value for name, value in saved.items() if _holds_tensors(value)} if isinstance(saved, Mapping) else {}
    if key is not None:
        inner: Any = saved
        for part in [key] if isinstance(saved, Mapping) and key in saved else key.split("."):
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        if not _holds_tensors(inner):
            raise InputError(f"{file} holds no weights under key={key!r}; there are weights under: {', '.join(held) or 'none'}")
        return _tensors(inner, file)
    named = [name for name in INSIDE if name in held]
    others = [name for name in held if "optim" not in name.lower()]
    if not named and isinstance(saved, Mapping) and any(isinstance(value, torch.Tensor) for value in saved.values()):
        return _tensors(saved, file)
    if not named and len(others) > 1:
        raise InputError(f"{file} holds several sets of weights, {', '.join(others)}: choose one with key=")
    if named or others:
        first = (named or others)[0]
        beside = [name for name in others if name != first]
        if beside:
            logger.warning("%s: the weights under %r were taken; there are others under %s (key=)", file, first,
                           ", ".join(map(repr, beside)))
        return _tensors(held[first], file)
    keys = ", ".join(map(str, list(saved)[:8])) if isinstance(saved, Mapping) else type(saved).__name__
    raise InputError(f"{file} holds no state dict, neither itself nor under {', '.join(INSIDE[:3])}, ...; it holds: {keys}")


def _tensors(state: Mapping[str, Any], file: Path) -> State:
    tensors: State = {}
    for name, value in state.items():
        if str(name).endswith("_extra_state") and not is_empty(value):
            raise InputError(f"{file}: {name} is what a module keeps beside its tensors (get_extra_state), which a snapshot "
                             "does not hold: register it as a buffer, or take it out of the state dict")
        if str(name).endswith("_extra_state") or name == "n_averaged":
            continue            # the counter of torch's AveragedModel
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{file}: {name} is no tensor but {type(value).__name__}")
        tensors[bare_name(str(name))] = value
    return tensors


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


def step_of(path: Path) -> int | None:
    """The optimizer step a checkpoint says it was taken after; None where it does not say."""
    if path.is_dir():
        state = path / "trainer_state.json"
        if state.exists():
            held = _read_json(state)
            if isinstance(held, dict) and isinstance(held.get("global_step"), int):
                return int(held["global_step"])
        match = re.fullmatch(r"(?:checkpoint|step|global_step)[-_]?(\d+)", path.name)
        return int(match[1]) if match else None
    if path.suffix == ".ckpt" and path.exists():
        match = re.search(r"step=(\d+)", path.stem)
        if match:
            return int(match[1])
        held = _load(path)      # last.ckpt
        step = held.get("global_step") if isinstance(held, Mapping) else None
        return step if isinstance(step, int) and not isinstance(step, bool) else None
    return None
