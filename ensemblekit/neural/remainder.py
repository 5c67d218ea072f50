"""What snapshots do not hold: tensors left out by choice and states outside the state dict, by their hashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.parameters import _named, bare_name, is_empty, unwrapped
from ensemblekit.neural.sharded import changed_anywhere, is_sharded, local, whole


class Remainder:
    """What a model has and its snapshots do not hold: parameters not selected, and extra states of modules.

    A base of billions of frozen weights is hashed once. Later a tensor is read again only where it is another one, where
    torch counts a change in place, or where a sample of its values differs (changes through ``.data`` are not counted).
    """

    SAMPLE = 64
    """Values of a tensor that are compared each time."""

    def __init__(self, model: torch.nn.Module, wanted: Callable[[str, torch.Tensor], bool]):
        self.model, self.wanted, self.sharded = model, wanted, is_sharded(model)
        self._known: dict[int, tuple[torch.Tensor, tuple[Any, ...], str]] = {}

    def hashes(self) -> dict[str, str]:
        """Name -> hash of its values now; collective where the model is spread over processes."""
        import pickle

        import xxhash

        bare = unwrapped(self.model, sharded=True)
        named = [(name, tensor) for name, tensor, is_parameter in _named(bare)
                 if is_parameter and not self.wanted(name, tensor)]
        tensors = {id(tensor): tensor for _, tensor in named}
        parts = [local(tensor) for tensor in tensors.values()]
        states: list[tuple[Any, ...]] = []
        for part, sample in zip(parts, _samples(parts, self.SAMPLE), strict=True):
            version = None if part.is_inference() else part._version
            states.append((version, part.data_ptr(), tuple(part.shape), part.dtype, sample))
        changed = []
        for (key, tensor), state in zip(tensors.items(), states, strict=True):
            before = self._known.get(key)
            changed.append(before is None or before[0] is not tensor or before[1] != state)
        if tensors and self.sharded:        # a tensor that is spread is gathered by all processes or by none
            changed = changed_anywhere(changed)
        self._known = {key: (tensor, state, _hash_of(whole(tensor)) if again else self._known[key][2]) for (key, tensor), state,
                       again in zip(tensors.items(), states, changed, strict=True)}
        hashes = {name: self._known[id(tensor)][2] for name, tensor in named}
        for prefix, module in bare.named_modules():
            if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
                extra = module.get_extra_state()
                if not is_empty(extra):
                    hashes[bare_name(f"{prefix}.get_extra_state" if prefix else "get_extra_state")] = xxhash.xxh3_128(
                        pickle.dumps(_comparable(extra))).hexdigest()
        return hashes


def left_out(model: torch.nn.Module, wanted: Callable[[str, torch.Tensor], bool]) -> dict[str, str]:
    """Name -> hash of what a model has and its snapshots do not hold; see :class:`Remainder`."""
    return Remainder(model, wanted).hashes()


def _hash_of(tensor: torch.Tensor) -> str:
    import xxhash

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return xxhash.xxh3_128(flat.data).hexdigest()


def _samples(tensors: list[torch.Tensor], n: int) -> list[bytes]:
    """Bytes of up to n values spread over each tensor; one wait for each device."""
    parts: dict[tuple[Any, Any], list[tuple[int, torch.Tensor]]] = {}
    for k, tensor in enumerate(tensors):
        one = tensor.detach()
        if not one.is_contiguous() and one.ndim == 4 and one.is_contiguous(memory_format=torch.channels_last):
            one = one.permute(0, 2, 3, 1)       # the same values in the order of memory
        if one.numel() and one.is_contiguous():
            parts.setdefault((one.device, one.dtype), []).append((k, one.reshape(-1)[::-(-one.numel() // n)]))
    samples = [b""] * len(tensors)
    for held in parts.values():
        raw = torch.cat([sample for _, sample in held]).view(torch.uint8).cpu().numpy().tobytes()
        at = 0
        for k, sample in held:
            size = sample.numel() * sample.element_size()
            samples[k] = raw[at:at + size]
            at += size
    return samples


def _comparable(value: object) -> Any:
    """Plain data whose bytes are the same for the same values."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return [str(value.dtype), list(value.shape), raw.numpy().tobytes()]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), value.tobytes()]
    if isinstance(value, Mapping):
        return [[str(name), _comparable(one)] for name, one in value.items()]
    return [_comparable(one) for one in value] if isinstance(value, list | tuple) else repr(value)


def check_left_out(stored: Mapping[str, str], model: torch.nn.Module) -> None:
    """Raise InputError naming what the snapshots do not hold and the model has other values of."""
    own = left_out(model, lambda name, _: name not in stored)
    differing = [name for name in {**stored, **own} if stored.get(name) != own.get(name)]
    if stored and differing:
        raise InputError(f"the snapshots do not hold {', '.join(differing[:4])}, and in this model it has other values than in "
                         "the one that was trained: load the same frozen parameters and extra states into it first")
