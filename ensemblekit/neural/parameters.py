"""A model's weights as flat vectors, and back.

A snapshot has up to three fields: "parameters" (float32; float64 where the model has any parameter of float64),
"buffers" (the floating-point buffers that stand in the state dict) and "counters" (int64: its whole numbers and
booleans). bfloat16, float16 and float8 are exact in float32, so they come back bit by bit. The manifest says which
number is whose; it travels in the store's provenance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch

from ensemblekit.errors import InputError, StoreDamagedError
from ensemblekit.neural.tensors import tensor_of
from ensemblekit.source import Field
from ensemblekit.store.store import Store

T = TypeVar("T")
Select = Literal["all", "trainable"] | Callable[[str, torch.Tensor], bool]
"""Which parameters a snapshot holds: all, those that require a gradient, or those of which a function says True."""

KINDS = ("parameters", "buffers", "counters")
WIDE = {"float64", "complex128"}
PREFIXES = ("module.", "model.", "net.", "network.", "module.model.", "model.module.")
"""Under which programs keep a model inside another, most often."""
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
INNER = re.compile(r"(?<![^.])module\.")
REFUSED = ("FullyShardedDataParallel", "DeepSpeedEngine")


class Entry(NamedTuple):
    """One tensor of a model: where it stands in the vector follows from those before it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """torch's name of it: "float32", "bfloat16", "int64", "bool", ..."""

    @property
    def size(self) -> int:
        """Numbers in the vector; a complex number is two."""
        return math.prod(self.shape) * (2 if self.dtype.startswith("complex") else 1)


def _entry(name: object, shape: Sequence[object], dtype: object) -> Entry:
    """An entry of a record. Raises ValueError where it speaks of no tensor."""
    sizes = tuple(n for n in shape if isinstance(n, int) and n >= 0)
    if not isinstance(name, str) or not isinstance(getattr(torch, str(dtype), None), torch.dtype) or len(sizes) < len(shape):
        raise ValueError(f"{name!r} of shape {shape!r} and type {dtype!r} is no tensor")
    return Entry(name, sizes, str(dtype))


@dataclass(frozen=True, slots=True)
class Manifest:
    """Names, shapes and types in the order in which they stand in the vectors.

    Names are those of the bare model: "_orig_mod." of torch.compile, the "module." of DataParallel and
    DistributedDataParallel, around the model or a part of it, and what FSDP and activation checkpointing put in are taken off.
    """

    parameters: tuple[Entry, ...] = ()
    buffers: tuple[Entry, ...] = ()
    counters: tuple[Entry, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    """(name, first name) of tensors that stand in the model under several names; the vectors hold them once."""
    partial: bool = False
    """Whether the model has parameters that the snapshots do not hold; they stay what they are in the model."""

    @classmethod
    def of(cls, model: torch.nn.Module, parameters: Select = "all", *, sharded: bool = False) -> Self:
        """Of a model; `sharded` takes one that ``fully_shard`` has spread over processes, too.

        Raises InputError where a parameter has no values yet (lazy modules, the meta device), where the model is
        sharded otherwise (FSDP1, DeepSpeed), and where no parameter is selected.
        """
        wanted = selector(parameters)
        bare = unwrapped(model, sharded=sharded)
        by_kind: dict[str, list[Entry]] = {kind: [] for kind in KINDS}
        first: dict[int, str] = {}
        aliases, left = [], False
        for name, tensor, is_parameter in _named(bare):
            _check_tensor(name, tensor, sharded)
            if is_parameter and not wanted(name, tensor):
                left = True
            elif id(tensor) in first:
                aliases.append((name, first[id(tensor)]))
            else:
                first[id(tensor)] = name
                kind = "counters" if not _is_float(tensor) else "parameters" if is_parameter else "buffers"
                by_kind[kind].append(Entry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")))
        if left and not by_kind["parameters"]:
            raise InputError(f"parameters={parameters!r} selects none of the model's parameters")
        return cls._made(by_kind, aliases, left)

    @classmethod
    def of_state_dict(cls, state: Mapping[str, torch.Tensor]) -> Self:
        """Of tensors by name where no model is at hand: running statistics are taken for buffers, other
        floating-point tensors for parameters, tensors that share their memory and shape for one under two names."""
        by_kind: dict[str, list[Entry]] = {kind: [] for kind in KINDS}
        first: dict[tuple[Any, ...], str] = {}
        aliases = []
        for name, tensor in state.items():
            _check_tensor(name, tensor)
            where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if tensor.numel() and where in first:
                aliases.append((name, first[where]))
                continue
            first[where] = name
            running = name.rpartition(".")[2] in ("running_mean", "running_var")
            kind = "counters" if not _is_float(tensor) else "buffers" if running else "parameters"
            by_kind[kind].append(Entry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")))
        return cls._made(by_kind, aliases, False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`. Raises StoreDamagedError where the record is not what that wrote."""
        try:
            by_kind = {kind: [_entry(*one) for one in raw[kind]] for kind in KINDS}
            names = {entry.name for entries in by_kind.values() for entry in entries}
            aliases = [(str(a), str(b)) for a, b in raw["aliases"]]
            if len(names) < sum(map(len, by_kind.values())) or not {b for _, b in aliases} <= names:
                raise ValueError("names come twice, or stand for what is not there")
            return cls._made(by_kind, aliases, bool(raw["partial"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreDamagedError(f"the record of the tensors in the snapshots cannot be read: {error!r}") from error

    @classmethod
    def in_store(cls, store: Store) -> Self:
        """The manifest of the snapshots in a store. Raises StoreDamagedError where they are not the vectors it speaks of."""
        manifest = cls.from_dict(store.provenance["manifest"])
        wanted = {kind: field.shape for kind, field in manifest.fields.items()}
        there = {kind: store.all_fields[kind].shape for kind in KINDS if kind in store.all_fields}
        if wanted != there:
            raise StoreDamagedError(f"{store.path}: the record of its tensors speaks of vectors of {wanted}; the snapshots "
                                    f"hold {there}")
        return manifest

    @classmethod
    def _made(cls, by_kind: Mapping[str, list[Entry]], aliases: list[tuple[str, str]], partial: bool) -> Self:
        parameters, buffers, counters = (tuple(by_kind[kind]) for kind in KINDS)
        return cls(parameters, buffers, counters, tuple(aliases), partial)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {**{kind: [[e.name, list(e.shape), e.dtype] for e in getattr(self, kind)] for kind in KINDS},
                "aliases": [list(pair) for pair in self.aliases], "partial": self.partial}

    @property
    def fields(self) -> dict[str, Field]:
        """The fields of the store, those of the three that hold anything; NaN and infinity are refused."""
        fields = {}
        for kind in KINDS:
            size = sum(entry.size for entry in getattr(self, kind))
            if size:
                fields[kind] = Field((size,), self.dtype(kind), finite=kind != "counters")
        return fields

    def dtype(self, kind: str) -> np.dtype:
        """The type of a field's numbers."""
        if kind == "counters":
            return np.dtype("i8")
        return np.dtype("f8" if any(entry.dtype in WIDE for entry in getattr(self, kind)) else "f4")

    def check(self, model: torch.nn.Module, *, sharded: bool = False) -> None:
        """Raise InputError naming what differs between this manifest and a model.

        Names, shapes and ties must agree, and whole numbers be whole numbers. Precision need not: weights of a
        bfloat16 run go into a float32 model.
        """
        other = Manifest.of(model, sharded=sharded)
        own, theirs = self._looks(), other._looks()
        theirs = {name: look for name, look in theirs.items() if name in own or not look.startswith("tied")}
        if self.partial:
            parameters = {entry.name for entry in other.parameters}
            theirs = {name: look for name, look in theirs.items() if name in own or name not in parameters}
        differing = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
        if differing:
            listed = "; ".join(f"{name}: stored {own.get(name, 'not at all')}, model {theirs.get(name, 'has it not')}"
                               for name in differing[:5])
            raise InputError(f"the model is not the one whose weights were stored; {len(differing)} of "
                             f"{len({**own, **theirs})} tensors differ: {listed}"
                             + (f"; and {len(differing) - 5} more" if len(differing) > 5 else ""))

    def renamed(self, model: torch.nn.Module) -> Self:
        """The same under the names that a model has for its tensors, where they differ by wrappers and prefixes alone, or in
        which of the names of a tied tensor comes first; as it is where they differ otherwise."""
        other = Manifest.of(model)
        firsts = {name: first for name, first in other.aliases}
        own = {entry.name for kind in KINDS for entry in getattr(other, kind)} | set(firsts)
        names = {e.name: e.name for kind in KINDS for e in getattr(self, kind)} | {name: name for name, _ in self.aliases}
        new = {old: name for name, old in best_names(names, own).items()}
        if len(new) < len(names) or not set(new.values()) <= own:
            return self
        stored = {new[e.name] for kind in KINDS for e in getattr(self, kind)}
        first = {old: firsts.get(name, name) if firsts.get(name, name) not in stored else name for old, name in new.items()}
        aliases = [(new[name], first[of]) for name, of in self.aliases if new[name] != first[of]]
        aliases += [(new[e.name], first[e.name]) for kind in KINDS for e in getattr(self, kind) if new[e.name] != first[e.name]]
        moved = {kind: [e._replace(name=first[e.name]) for e in getattr(self, kind)] for kind in KINDS}
        return self._made(moved, aliases, self.partial)

    def _looks(self) -> dict[str, str]:
        looks = {entry.name: f"{entry.shape}{' of whole numbers' if kind == 'counters' else ''}"
                 for kind in KINDS for entry in getattr(self, kind)}
        return looks | {name: f"tied to {first}" for name, first in self.aliases}

    def tensors(self, model: torch.nn.Module, *, sharded: bool = False) -> dict[str, list[torch.Tensor]]:
        """The model's own tensors, kind by kind in the manifest's order.

        Raises InputError where the model lacks one.
        """
        own = {name: tensor for name, tensor, _ in _named(unwrapped(model, sharded=sharded))}
        missing = [e.name for kind in KINDS for e in getattr(self, kind) if e.name not in own]
        if missing:
            raise InputError(f"the model lacks {', '.join(missing[:5])}, of which the snapshots hold values")
        return {kind: [own[entry.name] for entry in getattr(self, kind)] for kind in KINDS}

    def state_dict(self, vectors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Vectors as tensors by name, in their own types; tensors of one memory where they were tied."""
        tensors: dict[str, torch.Tensor] = {}
        for kind in KINDS:
            if kind not in vectors:
                continue
            vector, at = tensor_of(np.array(vectors[kind])), 0
            for entry in getattr(self, kind):
                values = vector[at:at + entry.size].clone()
                at += entry.size
                if entry.dtype.startswith("complex"):
                    values = torch.view_as_complex(values.reshape(-1, 2))
                tensors[entry.name] = values.reshape(entry.shape).to(getattr(torch, entry.dtype))
        tensors |= {name: tensors[first] for name, first in self.aliases if first in tensors}
        return tensors


def selector(parameters: Select) -> Callable[[str, torch.Tensor], bool]:
    """A choice of parameters as a function of name and parameter."""
    if callable(parameters):
        return parameters
    if parameters == "all":
        return lambda name, parameter: True
    if parameters == "trainable":
        return lambda name, parameter: parameter.requires_grad
    raise InputError(f'parameters is "all", "trainable" or a function of (name, parameter); got {parameters!r}')


def unwrapped(model: torch.nn.Module, *, sharded: bool = False) -> torch.nn.Module:
    """The bare model inside torch.compile, DataParallel and DistributedDataParallel; `sharded`: one in ``fully_shard`` will do.

    Raises InputError for a model whose weights are sharded over processes otherwise: one process does not hold them all.
    """
    while True:
        if type(model).__name__ == "OptimizedModule":
            inner = model._orig_mod
            assert isinstance(inner, torch.nn.Module)
            model = inner
        elif isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            break
    kinds = {base.__name__ for kind in {type(module) for module in model.modules()} for base in kind.__mro__}
    for refused in REFUSED:
        if refused in kinds:
            raise InputError(f"{refused} shards the weights over processes, and a snapshot needs them whole. Shard with "
                             "torch.distributed.fsdp.fully_shard (FSDP2), which a Recorder takes; train with "
                             "DistributedDataParallel; or gather a full state dict and neural.ingest it")
    if "FSDPModule" in kinds and not sharded:
        raise InputError("fully_shard has spread the weights of this model over processes, and they are needed whole here. A "
                         "Recorder takes the model as it is; pass the bare architecture to what reads its snapshots")
    return model


def _named(bare: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Parameters, then the buffers of the state dict, every name of each; "_orig_mod." of compiled parts taken off."""
    named, wrappers = [], []
    for prefix, module in bare.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            wrappers.append(f"{prefix}.module")
        for wrapper in reversed(wrappers):
            if f"{prefix}.".startswith(f"{wrapper}."):
                prefix = wrapper.removesuffix(".module") + prefix[len(wrapper):]
        named.append((bare_name(prefix), module))
    modules = [(f"{prefix}." if prefix else "", module) for prefix, module in named]
    for prefix, module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, True
    for prefix, module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield prefix + name, buffer, False


def bare_name(name: str) -> str:
    """A name without what torch.compile, FSDP, DeepSpeed and activation checkpointing put into it."""
    return WRAPPERS.sub("", f"{name}.")[:-1]


def best_names(state: Mapping[str, T], names: set[str]) -> dict[str, T]:
    """Tensors under the names a model has: as they are, or without prefixes that all (or those below one) share, and without
    the "module." of parts that were in a DataParallel."""
    if names <= set(state):
        return dict(state)
    candidates = [{n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)} for prefix in PREFIXES]
    while True:
        first = {n.partition(".")[0] if "." in n else "" for n in state}
        candidates.append(dict(state))
        if len(first) != 1 or "" in first:
            break
        state = {n.partition(".")[2]: t for n, t in state.items()}
    for one in list(candidates):
        plain = {INNER.sub("", n): t for n, t in one.items()}
        if len(plain) == len(one):
            candidates.append(plain)
    return max(candidates, key=lambda one: (len(names & set(one)), -len(set(one) - names)))


def is_empty(extra: object) -> bool:
    """Whether an extra state of a module holds nothing."""
    return extra is None or (isinstance(extra, torch.Tensor) and not extra.numel()) or (
        isinstance(extra, Mapping | list | tuple | bytes | str) and not extra)


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _check_tensor(name: str, tensor: torch.Tensor, sharded: bool = False) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is no tensor but {type(tensor).__name__}; a snapshot holds tensors only")
    if torch.nn.parameter.is_lazy(tensor):
        raise InputError(f"{name} has no shape yet (a lazy module): run one batch through the model first")
    if not sharded and (type(tensor).__name__ == "DTensor" or type(tensor.data).__name__ == "DTensor"):
        raise InputError(f"{name} is a DTensor, a shard of a tensor (tensor parallelism): one process does not hold it whole. "
                         "Shard with fully_shard alone, train with DistributedDataParallel, or gather a full state dict and "
                         "neural.ingest it")
    if tensor.is_meta:
        raise InputError(f"{name} is on the meta device and has no values")
    if tensor.is_quantized or tensor.layout is not torch.strided:
        raise InputError(f"{name} is {'quantised' if tensor.is_quantized else 'sparse'}; a snapshot holds dense tensors")


@torch.no_grad()
def pack(model: torch.nn.Module, manifest: Manifest, out: Mapping[str, torch.Tensor] | None = None) \
        -> dict[str, torch.Tensor]:
    """A copy of the model's numbers as one vector a field, where the first tensor of each field is.

    `out` takes vectors of an earlier call, which are written over.
    """
    vectors = {}
    tensors = manifest.tensors(model)
    for kind, field in manifest.fields.items():
        flat = [_real(tensor.detach()).reshape(-1) for tensor in tensors[kind]]
        if out is None:
            dtype = {"f8": torch.float64, "f4": torch.float32, "i8": torch.int64}[field.dtype.str[1:]]
            vector = torch.empty(field.size, dtype=dtype, device=flat[0].device)
        else:
            vector = out[kind]
        if all(one.dtype == vector.dtype and one.device == vector.device for one in flat):
            torch.cat(flat, out=vector)
        else:
            at = 0
            for one in flat:
                vector[at:at + len(one)].copy_(one)
                at += len(one)
        vectors[kind] = vector
    return vectors


def to_vectors(model: torch.nn.Module, manifest: Manifest | None = None) -> dict[str, np.ndarray]:
    """Copies of the numbers of a model, flat: field -> array; of the three fields those that hold anything."""
    return {kind: vector.cpu().numpy() for kind, vector in pack(model, manifest or Manifest.of(model)).items()}


@torch.no_grad()
def load_vectors(model: torch.nn.Module, vectors: Mapping[str, Any], manifest: Manifest | None = None) -> None:
    """Put vectors of :func:`to_vectors` into a model of the same shape, in place; fields not given stay as they are.

    Arguments:
        vectors: field -> (size,) array or tensor; of any precision, so that a float64 mean of many goes in too.
        manifest: of the snapshots, where they hold only some of the parameters or come from another model.

    Raises InputError where a length does not fit; nothing is changed then.
    """
    manifest = manifest or Manifest.of(model)
    unknown = [kind for kind in vectors if kind not in KINDS]
    if unknown:
        raise InputError(f"no field {unknown[0]!r}; a model has {', '.join(KINDS)}")
    tensors = manifest.tensors(model)
    for kind, vector in vectors.items():
        wanted = sum(_real(tensor).numel() for tensor in tensors[kind])
        if tuple(vector.shape) != (wanted,):
            raise InputError(f"the model has {wanted} numbers in its {kind}, shape ({wanted},); got {tuple(vector.shape)}")
    for kind, vector in vectors.items():
        flat = vector if isinstance(vector, torch.Tensor) else tensor_of(np.array(vector))
        at = 0
        for tensor in tensors[kind]:
            target = _real(tensor)
            target.copy_(flat[at:at + target.numel()].reshape(target.shape))
            at += target.numel()


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
