"""Batch-norm statistics of averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ensemblekit.averaging.moments import Moments
from ensemblekit.errors import InputError


@torch.no_grad()
def update_bn(loader: Iterable[Any], model: torch.nn.Module, device: Any = None,
              forward: Callable[[torch.nn.Module, Any], Any] | None = None) -> None:
    """Set the running mean and variance of all batch-norm layers to those of the whole data, in place.

    Unlike torch's own, which averages over batches, every sample (and pixel) counts the same, whatever the size of
    its batch, and the variance between batches is not lost. Which layers train and which do not is put back.

    Arguments:
        loader: batches: tensors, tuples that begin with the input, or anything `forward` takes.
        device: where to put the input; None leaves it.
        forward: (model, batch) -> anything, for batches that are not tensors or tuples.

    Raises InputError where the loader is empty and the model has batch-norm layers.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return
    seen = {layer: Moments() for layer in layers}
    counts = dict.fromkeys(layers, 0)

    def look(layer: Any, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].movedim(1, -1).reshape(-1, inputs[0].shape[1])
        seen[layer].update(rows, counts[layer])
        counts[layer] += len(rows)

    training = {module: module.training for module in model.modules()}
    kept = {layer: (layer.running_mean.clone(), layer.running_var.clone()) for layer in layers}
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    batches = 0
    try:
        model.train()
        for batch in loader:
            if forward is not None:
                forward(model, batch)
            else:
                x = batch[0] if isinstance(batch, list | tuple) else batch
                model(x if device is None else x.to(device))
            batches += 1
    except BaseException:
        for layer, (mean, variance) in kept.items():
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not batches:
        raise InputError("no batches came: batch-norm layers need data to refresh their statistics")
    for layer in layers:
        if counts[layer]:
            found = seen[layer].result()
            layer.running_mean.copy_(torch.as_tensor(found.mean))
            layer.running_var.copy_(torch.as_tensor(found.variance))
            layer.num_batches_tracked.fill_(batches)
