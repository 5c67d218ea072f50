"""Models that ``torch.distributed.fsdp.fully_shard`` (FSDP2) has spread over processes: tensors made whole, and spread again.

Every parameter is a DTensor then, of which a process holds a part. Tensors are gathered one at a time in the model's own
order, so that beside its part a process holds one whole tensor, and process 0 what it collects in memory of the CPU. A
parameter that stands in the model under two names is gathered once. Nothing that comes from here shares its memory with the
model or the optimizer (``get_state_dict`` of torch hands out buffers and Adam's step that live on, and steps the optimizer
to fill its state). Collective, all but where a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.parameters import Entry, Manifest, _named, _real, unwrapped
from ensemblekit.neural.processes import agreed, gathered, rank_and_world

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether ``fully_shard`` spread a model, or parts of it, over processes. Not collective."""
    return any(base.__name__ == "FSDPModule" for module in unwrapped(model, sharded=True).modules()
               for base in type(module).__mro__)


def check_sharded(model: torch.nn.Module, manifest: Manifest) -> None:
    """Raise InputError, on every process, where the processes do not all hold a part of the same model."""
    reshard(model)
    world = rank_and_world()[1]
    looks = gathered([entry for kind in ("parameters", "buffers", "counters") for entry in _entries(manifest, kind)])
    if any(look != looks[0] for look in looks):
        raise InputError("the processes hold different models (pipeline parallelism?), and a snapshot needs one: shard the "
                         "same model in all of them with fully_shard")
    for name, tensor, _ in _named(unwrapped(model, sharded=True)):
        if _is_dtensor(tensor) and _dtensor(tensor).device_mesh.size() != world:
            raise InputError(f"{name} is spread over {_dtensor(tensor).device_mesh.size()} of {world} processes (tensor or "
                             "pipeline parallelism?), and a snapshot needs fully_shard over all of them")


def _entries(manifest: Manifest, kind: str) -> tuple[Entry, ...]:
    return {"parameters": manifest.parameters, "buffers": manifest.buffers, "counters": manifest.counters}[kind]


def reshard(model: torch.nn.Module) -> None:
    """Have the modules hold their parts again, where a pass without a backward one (validation) left the whole parameters in
    them. Not collective."""
    from torch.distributed.fsdp import FSDPModule

    for module in unwrapped(model, sharded=True).modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor: a new one where it is spread, else itself."""
    tensor = tensor.detach()
    if not _is_dtensor(tensor):
        return tensor
    part = _dtensor(tensor)
    kind = part.device_mesh.device_type
    if part.device.type != kind:        # parts that are kept on the CPU, gathered where the processes can
        part = _dtensor(part.to(kind))
    values: torch.Tensor = part.full_tensor()
    return values


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds, in its own memory. Not collective."""
    return _dtensor(tensor.detach()).to_local() if _is_dtensor(tensor) else tensor


@torch.no_grad()
def assign(target: torch.Tensor, values: torch.Tensor) -> None:
    """Put a whole tensor into one that may be spread: each process takes its part. Not collective."""
    if _is_dtensor(target):
        _dtensor(target).to_local().copy_(_part_of(values, _dtensor(target)))
    else:
        target.copy_(values)


@torch.no_grad()
def vectors_of(model: torch.nn.Module, manifest: Manifest) -> dict[str, np.ndarray]:
    """What ``to_vectors`` gives of the whole model, on process 0; {} on the others. Buffers are those of process 0."""
    reshard(model)
    first = rank_and_world()[0] == 0
    vectors: dict[str, np.ndarray] = {}
    for kind, tensors in manifest.tensors(model, sharded=True).items():
        field = manifest.fields.get(kind)
        vector = torch.from_numpy(np.empty(field.size, field.dtype)) if first and field is not None else None
        at = 0
        for tensor in tensors:
            values = whole(tensor)
            if vector is not None:
                flat = _real(values).reshape(-1)
                vector[at:at + len(flat)].copy_(flat)
                at += len(flat)
        if vector is not None:
            vectors[kind] = vector.numpy()
    return vectors


@torch.no_grad()
def gathered_states(states: Any) -> Any:
    """Nested states with every tensor whole and on the CPU, on process 0; None stands for tensors on the others."""
    first = rank_and_world()[0] == 0
    if isinstance(states, torch.Tensor):
        values = whole(states)
        return values.detach().to("cpu", copy=True) if first else None
    if isinstance(states, Mapping):
        return {name: gathered_states(one) for name, one in states.items()}
    if isinstance(states, list | tuple):
        return [gathered_states(one) for one in states] if isinstance(states, list) else tuple(map(gathered_states, states))
    return states


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``state_dict`` of an optimizer with whole tensors, on process 0.

    Raises InputError where it keeps spread tensors of other shapes than its parameters.
    """
    state = optimizer.state_dict()

    def check() -> None:
        for k, parameter in enumerate(_parameters_of(optimizer)):
            for name, value in state["state"].get(k, {}).items():
                if _is_dtensor(value) and not (_is_dtensor(parameter) and value.shape == parameter.shape and
                                               _dtensor(value).placements == _dtensor(parameter).placements):
                    raise InputError(f"{type(optimizer).__name__} keeps {name!r} of shape {tuple(value.shape)} spread over the "
                                     f"processes for a parameter of shape {tuple(parameter.shape)}, and a killed run could not "
                                     "go on from it: pass states=False, and save states of your own")

    agreed(check)
    whole_state: dict[str, Any] = gathered_states(state)
    return whole_state


def spread_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`optimizer_state` for ``load_state_dict``, from a state that every process has whole."""
    from torch.distributed.tensor import DTensor

    parameters, spread = _parameters_of(optimizer), {}
    for k, values in state["state"].items():
        spread[k] = dict(values)
        parameter = parameters[k] if k < len(parameters) else None
        if parameter is None or not _is_dtensor(parameter):
            continue
        own = _dtensor(parameter)
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape == own.shape:
                part = _part_of(value, own).to(own.to_local().device).clone()
                spread[k][name] = DTensor.from_local(part, own.device_mesh, own.placements, run_check=False, shape=own.shape,
                                                     stride=own.stride())
    return {**state, "state": spread}


def buffers_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that this process has for itself, by name; no copies. Not collective."""
    return {name: one.detach() for name, one in unwrapped(model, sharded=True).named_buffers() if not _is_dtensor(one)}


@torch.no_grad()
def load_buffers(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put back what :func:`buffers_of` gave. Not collective."""
    for name, one in buffers_of(model).items():
        if name in state and state[name].shape == one.shape:
            one.copy_(state[name])


def changed_anywhere(flags: Sequence[bool]) -> list[bool]:
    """Which of some flags are set on any process."""
    return [any(one) for one in zip(*gathered(list(flags)), strict=True)]


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """In the order of the numbers that stand for them in its state."""
    return [one for group in optimizer.param_groups for one in group["params"]]


def _part_of(values: torch.Tensor, like: DTensor) -> torch.Tensor:
    """This process's part of a whole tensor, where `like` has its own."""
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    there = values.detach().to(mesh.device_type, like.dtype)
    return distribute_tensor(there, mesh, like.placements, src_data_rank=None).to_local().to(like.to_local().device)


def _is_dtensor(tensor: object) -> bool:
    return type(tensor).__name__ == "DTensor" or (
        isinstance(tensor, torch.nn.Parameter) and type(tensor.data).__name__ == "DTensor")


def _dtensor(tensor: torch.Tensor) -> DTensor:
    from torch.distributed.tensor import DTensor

    data = tensor if isinstance(tensor, DTensor) else tensor.data
    assert isinstance(data, DTensor)
    return data
