"""What a loader gives, in the few shapes that training code uses, and models put back as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ensemblekit.errors import InputError

Forward = Callable[[torch.nn.Module, Any], Any]

LABELS = ("labels", "label", "target", "targets", "y")
"""Keys under which a mapping of a batch holds what is to be predicted."""
AT_ONCE = 1024
"""Items of a tensor that go through a model together."""


def batches_of(loader: Any) -> Iterator[Any]:
    """The batches of a loader, of a tensor of inputs, or of a tuple of tensors (inputs, ..., target).

    A list is a loader of batches, a tuple is one batch; tensors are cut into pieces of ``AT_ONCE`` items.
    """
    if isinstance(loader, np.ndarray):
        loader = torch.from_numpy(loader)
    if isinstance(loader, torch.Tensor):
        yield from loader.split(AT_ONCE)
    elif isinstance(loader, tuple) and loader and all(isinstance(x, torch.Tensor | np.ndarray) for x in loader):
        tensors = [torch.as_tensor(x) for x in loader]
        if len({len(x) for x in tensors}) != 1:
            raise InputError(f"inputs and labels are of one length; got {[len(x) for x in tensors]}")
        yield from zip(*(x.split(AT_ONCE) for x in tensors), strict=True)
    elif isinstance(loader, Mapping) or not isinstance(loader, Iterable):
        raise InputError(f"a loader of batches, a tensor of inputs or a tuple (inputs, labels) is needed; got {type(loader)}. "
                         "Put a single mapping into a list")
    else:
        yield from loader


def moved(batch: Any, device: Any) -> Any:
    """The batch with every tensor on the device; None leaves it."""
    if device is None:
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: moved(x, device) for name, x in batch.items()}
    if isinstance(batch, list | tuple):
        return [moved(x, device) for x in batch]
    return batch


def target_of(batch: Any) -> torch.Tensor | None:
    """What is to be predicted: the last of a tuple of two or more, or a mapping's labels; None where there is none."""
    if isinstance(batch, Mapping):
        for name in LABELS:
            if batch.get(name) is not None:
                return torch.as_tensor(batch[name])
        return None
    if isinstance(batch, list | tuple) and len(batch) > 1:
        return torch.as_tensor(batch[-1])
    return None


def outputs_of(model: Callable[..., Any], batch: Any, forward: Forward | None = None) -> Any:
    """What the model says about a batch.

    Without `forward` a tuple's items before the last are the arguments, a mapping's entries but the labels are
    keyword arguments; an output with ``.logits`` (transformers) is those.
    """
    if forward is not None:
        return forward(model, batch)        # type: ignore[arg-type]
    if isinstance(batch, Mapping):
        found = model(**{name: x for name, x in batch.items() if name not in LABELS})
    elif isinstance(batch, list | tuple):
        found = model(*batch[:-1]) if len(batch) > 1 else model(batch[0])
    else:
        found = model(batch)
    logits = getattr(found, "logits", None)
    if logits is None and isinstance(found, Mapping):
        logits = found.get("logits")
    return found if logits is None else logits


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Every module trains or not, afterwards, as it did before; one by one, for some may be frozen."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def random_kept(model: torch.nn.Module) -> Iterator[None]:
    """The random generators of the CPU and of the model's GPUs are left as they were."""
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        yield


def device_of(model: torch.nn.Module) -> torch.device | None:
    """Where the model's first parameter or buffer lives; None for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None
