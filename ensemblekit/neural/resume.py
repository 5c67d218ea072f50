"""Where a training run stands: random numbers, the place in a loader, and the files that hold them beside the store.

In ``<store>.d/training/``: ``state.pt`` (everything a killed run needs to go on, by torch.save, read with
weights_only=True), ``rank<k>-<step>.pt`` (random numbers and buffers of each process of a distributed run), ``begun`` (the id
of a run that has started and not saved yet) and ``log.jsonl`` (validation scores). Each is written to a temporary file
and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sized
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from ensemblekit.errors import InputError, StoreError, one_line
from ensemblekit.files import replacing, why_unreadable
from ensemblekit.neural.batches import samplers_of
from ensemblekit.neural.parameters import bare_name, unwrapped
from ensemblekit.neural.schedules_of import is_plain
from ensemblekit.neural.sharded import assign
from ensemblekit.store.names import folder_of

FORMAT = 1
ANEW = "delete it to start the run anew, in another store or with this one deleted too"
OWN = re.compile(r"(state\.pt|rank\d+-\d+\.pt|begun|log\.jsonl)(\.tmp-\w+)?\Z")
"""Files that a run writes into its folder."""


# -- random numbers ------------------------------------------------------------------------------------------------

def random_state(generators: list[torch.Generator] | None = None) -> dict[str, Any]:
    """The state of every random number generator a training loop draws from: python, numpy, torch and its devices,
    and the loader's own. Tensors and plain data only."""
    version, numbers, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()    # noqa: NPY002  (what users' transforms draw from)
    state = {
        "python": [version, torch.tensor(numbers, dtype=torch.int64), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), int(place), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "generators": [one.get_state() for one in generators or []],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random(state: dict[str, Any], generators: list[torch.Generator] | None = None) -> None:
    """Put back what :func:`random_state` found."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))      # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for one, saved in zip(generators or [], state["generators"], strict=False):
        one.set_state(saved)
    if "cuda" in state and torch.cuda.is_available():
        for k, saved in enumerate(state["cuda"][:torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved, k)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


# -- loaders -------------------------------------------------------------------------------------------------------

def generators_of(loader: object) -> list[torch.Generator]:
    """The generators a loader and its samplers hold, each once, always in the same order."""
    generators: list[torch.Generator] = []
    for holder in samplers_of(loader):
        one = getattr(holder, "generator", None)
        if isinstance(one, torch.Generator) and all(one is not other for other in generators):
            generators.append(one)
    return generators


def set_epoch(loader: object, epoch: int) -> None:
    """Tell the samplers of a distributed loader which epoch it is, so that each has its own order."""
    seen: list[Any] = []
    for holder in samplers_of(loader)[:3]:
        tell = getattr(holder, "set_epoch", None)
        if callable(tell) and all(holder is not other for other in seen):
            seen.append(holder)
            tell(epoch)


@runtime_checkable
class Stateful(Protocol):
    """What keeps a state of its own: loaders, models, averages."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


def stateful(loader: object) -> Stateful | None:
    """A loader that keeps its own place (torchdata's StatefulDataLoader, and others with state_dict and
    load_state_dict; those that Accelerate makes of a torch loader have the methods and keep nothing)."""
    if isinstance(loader, Stateful) and not type(loader).__module__.startswith("accelerate."):
        return loader
    return None


def length_of(loader: object) -> int | None:
    """len(loader), or None where it has none."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:       # a loader of torch over a stream
        return None


def skip(iterator: Iterator[Any], batches: int, loader: object) -> None:
    """Pass over batches that a killed run has trained on.

    A torch loader without workers passes over their indices alone, the data is not read. With workers, and for other
    iterables, the batches are drawn and dropped, so that what stands behind them (augmentation in a worker, a stream)
    is where it was.

    Raises InputError where there are fewer.
    """
    indices = getattr(iterator, "_sampler_iter", None)
    quick = type(iterator).__name__ == "_SingleProcessDataLoaderIter" and indices is not None and not isinstance(
        samplers_of(loader)[-1], torch.utils.data.IterableDataset)
    drawn: Iterator[object] = indices if quick and indices is not None else iterator
    for k in range(batches):
        try:
            next(drawn)
        except StopIteration:
            raise InputError(f"the run was killed after batch {batches} of its epoch, and the loader has {k} only: it is "
                             "not the loader of that run") from None


# -- model and optimizer -------------------------------------------------------------------------------------------

def model_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by its bare name, those that stand in no state dict included; no copies."""
    bare = unwrapped(model, sharded=True)
    return {bare_name(name): one.detach() for part in (bare.named_parameters(), bare.named_buffers()) for name, one in part}


@runtime_checkable
class KeepsAverage(Protocol):
    """A module that holds an average of weights in more digits than its state dict does."""

    def averaging_state(self) -> dict[str, Any]: ...
    def load_averaging_state(self, state: dict[str, Any], /) -> None: ...


def averages_of(model: torch.nn.Module) -> dict[str, Any]:
    """What averages of weights inside a model hold in full precision, by name of their module."""
    return {name: one.averaging_state() for name, one in unwrapped(model, sharded=True).named_modules()
            if isinstance(one, KeepsAverage)}


def load_averages(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Put back what :func:`averages_of` found."""
    for name, one in unwrapped(model, sharded=True).named_modules():
        if name in state and isinstance(one, KeepsAverage):
            one.load_averaging_state(state[name])


@torch.no_grad()
def load_model(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`model_state` found, in place. Raises InputError naming what differs."""
    own = model_state(model)
    differing = [name for name in {**own, **state}
                 if name not in own or name not in state or own[name].shape != state[name].shape]
    if differing:
        raise InputError(f"the model is not the one of the run: {', '.join(differing[:5])} differ")
    for name, tensor in own.items():
        assign(tensor, state[name])


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """load_state_dict that keeps tensors of the rate the tensors they are: compiled optimizers hold on to them."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, torch.Tensor):
            rate.fill_(float(group["lr"]))
            group["lr"] = rate


def settings_of(optimizer: torch.optim.Optimizer, base_lrs: list[float]) -> dict[str, Any]:
    """What makes an optimizer the same in two runs: its kind and the options of its groups, plain data."""
    speed_only = {"params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable", "param_names"}
    groups = [{name: value for name, value in group.items() if name not in speed_only and is_plain(value)} |
              {"lr": base, "tensors": len(group["params"])}
              for group, base in zip(optimizer.param_groups, base_lrs, strict=True)]
    return {"kind": type(optimizer).__name__, "groups": groups}


V = TypeVar("V")


def one_or_list(values: list[V]) -> V | list[V]:
    """The only one, or all of them: states and settings of one optimizer stand by themselves."""
    return values[0] if len(values) == 1 else values


def as_list(values: V | list[V]) -> list[V]:
    """The inverse of :func:`one_or_list`."""
    return values if isinstance(values, list) else [values]


def check_readable(state: object, name: str) -> None:
    """Raise InputError where a state could be saved and not be read back, as it holds more than tensors and plain data."""
    held = io.BytesIO()
    try:
        torch.save(state, held)
        held.seek(0)
        torch.load(held, weights_only=True)
    except Exception as error:
        raise InputError(f"the state of {name} holds more than tensors and plain data, and a killed run could not go on from "
                         "it: pass states=False, and save states of your own") from error


def flattened(settings: object, name: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, so that a difference can be named."""
    if isinstance(settings, dict):
        parts = [(f"{name}.{key}" if name else str(key), value) for key, value in settings.items()]
    elif isinstance(settings, list) and any(isinstance(one, dict) for one in settings):
        parts = [(f"{name}[{k}]", value) for k, value in enumerate(settings)]
    else:
        return {name: settings}
    return {key: value for part, one in parts for key, value in flattened(one, part).items()}


# -- files ---------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """What fails while a file is written leaves as one StoreError of one line that names the file and the cause.

    For files that stand in for others by a rename: whatever stood there before is still whole.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StoreError) and not isinstance(error.__cause__, OSError):
            raise
        if not isinstance(error, OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
            raise
        raise StoreError(f"{os.fspath(path)} could not be written: {_cause_of(error)}. What stood there before is "
                         "unchanged") from error


def _cause_of(error: BaseException) -> str:
    """Why a file could not be written; the writers of torch and safetensors have texts of their own for a full disk."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    codes = [one.errno for one in chain if isinstance(one, OSError) and one.errno is not None]
    if any(code in full for code in codes) or any(f"os error {code})" in str(error) for code in full):
        return "the disk is full, or the limit on file sizes is reached; free some space and try again"
    if codes:
        return os.strerror(codes[0]).lower()
    if "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error):
        return "not all bytes could be written, as on a full disk; free some space and try again"
    return next(iter(str(error).splitlines()), type(error).__name__)


class Sidecar:
    """The folder beside a store for what a training run overwrites."""

    def __init__(self, store: str, durable: bool = False, mapped: bool = False):
        self.folder = folder_of(store) / "training"
        self.durable = durable
        self.mapped = mapped
        """Whether tensors are read where they are used, as by processes that need a part of each."""

    def write(self, name: str, state: object) -> None:
        """A file of torch.save, whole or not at all."""
        self._replace(name, lambda file: torch.save(state, file))

    def write_text(self, name: str, text: str) -> None:
        self._replace(name, lambda file: file.write(text.encode()))

    def _replace(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        with writing(self.folder / name):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / name, durable=self.durable) as temporary, open(temporary, "wb") as file:
                fill(file)

    def read(self, name: str) -> Any | None:
        """What `write` wrote, on the CPU; None where there is no such file."""
        path = self.folder / name
        if not self._is_there(path):
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=self.mapped)
        except Exception as error:
            raise StoreError(f"{path} cannot be read ({type(error).__name__}: {one_line(error)}); {ANEW}") from error

    def read_text(self, name: str) -> str | None:
        path = self.folder / name
        try:
            return path.read_text() if self._is_there(path) else None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); it belongs to the run beside it") from error

    def _is_there(self, path: Path) -> bool:
        """Whether there is such a file. Raises StoreError where there is something else."""
        why = why_unreadable(path)
        if why and os.path.lexists(path):
            raise StoreError(f"{path} {why}")
        return not why

    def remove(self, pattern: str, keep: str = "") -> None:
        """Files of a run by pattern, but one; what else lies there is left alone."""
        for path in self.folder.glob(pattern):
            if path.name != keep and OWN.match(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def log(self, entry: dict[str, Any]) -> None:
        """One more line of log.jsonl, whole or not at all."""
        path = self.folder / "log.jsonl"
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self._opened(path), "ab+", buffering=0) as file:
                length = file.seek(0, os.SEEK_END)
                if length and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    length = self._cut(file)            # a line that a kill cut short would swallow this one
                line = (json.dumps(entry) + "\n").encode()
                try:
                    if file.write(line) != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(length)
                    raise

    def _opened(self, path: Path) -> int:
        """A descriptor of the file of lines; not through a link, which may lead to any file of the user."""
        self._is_there(path)
        try:
            return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise StoreError(f"{path} cannot be written ({error.strerror}): what stands there is no file of the run") from error

    @staticmethod
    def _cut(file: FileIO) -> int:
        """Take off what stands behind the last end of a line; the length left."""
        file.seek(0)
        length = file.read().rfind(b"\n") + 1
        file.truncate(length)
        file.seek(0, os.SEEK_END)
        return int(length)

    def logged(self) -> list[dict[str, Any]]:
        """All lines of log.jsonl; what is no line of ours, as a last one that was cut short by a kill, is left out."""
        lines = (self.read_text("log.jsonl") or "").splitlines()
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict) and {"step", "epoch"} <= entry.keys() and all(
                        isinstance(value, int | float) for value in entry.values()):
                    entries.append(entry)
        return entries
