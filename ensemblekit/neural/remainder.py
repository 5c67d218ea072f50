"""What snapshots do not hold: tensors left out by choice and states outside the state dict, by their hashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.parameters import _named, bare_name, is_empty, unwrapped


class Remainder:
    """What a model has and its snapshots do not hold: parameters not selected, and extra states of modules.

    A base of billions of frozen weights is hashed once. Later a tensor is read again only where it is another one, where
    torch counts a change in place, or where a sample of its values differs (changes through ``.data`` are not counted).
    """

    SAMPLE = 64
    """Values of a tensor that are compared each time."""

    def __init__(self, model: torch.nn.Module, wanted: Callable[[str, torch.Tensor], bool]):
        self.model, self.wanted = model, wanted
        self._known: dict[int, tuple[torch.Tensor, tuple[Any, ...], str]] = {}

    def hashes(self) -> dict[str, str]:
        """Name -> hash of its values now."""
        import pickle

        import xxhash

        bare = unwrapped(self.model)
        named = [(name, tensor) for name, tensor, is_parameter in _named(bare)
                 if is_parameter and not self.wanted(name, tensor)]
        tensors = {id(tensor): tensor for _, tensor in named}
        known = {}
        for (key, tensor), sample in zip(tensors.items(), _samples(list(tensors.values()), self.SAMPLE), strict=True):
            version = None if tensor.is_inference() else tensor._version
            state = (version, tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, sample)
            before = self._known.get(key)
            same = before is not None and before[0] is tensor and before[1] == state
            known[key] = (tensor, state, before[2] if same and before is not None else _hash_of(tensor))
        self._known = known
        found = {name: known[id(tensor)][2] for name, tensor in named}
        for prefix, module in bare.named_modules():
            if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
                extra = module.get_extra_state()
                if not is_empty(extra):
                    found[bare_name(f"{prefix}.get_extra_state" if prefix else "get_extra_state")] = xxhash.xxh3_128(
                        pickle.dumps(_comparable(extra))).hexdigest()
        return found


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
    found = [b""] * len(tensors)
    for held in parts.values():
        raw = torch.cat([sample for _, sample in held]).view(torch.uint8).cpu().numpy().tobytes()
        at = 0
        for k, sample in held:
            size = sample.numel() * sample.element_size()
            found[k] = raw[at:at + size]
            at += size
    return found


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
