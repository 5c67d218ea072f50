"""Batch-norm statistics of averaged weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ensemblekit.averaging.moments import Moments
from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Forward, batches_of, modes_kept, moved, outputs_of, random_kept


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Whether some layer keeps running statistics that a new set of weights would not fit."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


@torch.no_grad()
def update_bn(loader: Iterable[Any], model: torch.nn.Module, device: Any = None, forward: Forward | None = None, *,
              dropout: bool = True) -> None:
    """Set the running mean and variance of all batch-norm layers to those of the whole data, in place.

    Order of arguments as torch.optim.swa_utils.update_bn. Unlike there every sample (and pixel) counts the same,
    whatever the size of its batch; the variance between batches is not lost; random generators are put back (the
    loader's own among them, where it draws from torch's); each module trains or not as before. A layer that is in
    eval mode inside a model that trains is frozen: it is used and left as it is.

    Arguments:
        loader: batches: tensors, tuples that begin with the inputs, mappings, or anything `forward` takes.
        device: where to put the batches; None leaves them.
        forward: (model, batch) -> anything, for models that are not called with the first of the batch.
        dropout: False: dropout is off during the pass; True: on, as while training (and in torch's function).

    Raises InputError where the loader is empty and the model has batch-norm layers; the model is as before then.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
                         and (m.training or not model.training)]
    if not layers:
        return
    frozen = [m for m in model.modules() if isinstance(m, _BatchNorm) and model.training and not m.training]
    seen = {layer: Moments() for layer in layers}

    def look(layer: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        x = x if x.dtype == torch.float64 else x.float()
        axes = [k for k in range(x.ndim) if k != 1]
        n = x.numel() // x.shape[1]
        if n:
            variance, mean = torch.var_mean(x, axes, correction=0)
            seen[layer].merge(_state_of(n, mean, variance))

    kept = {layer: {name: b.clone() for name, b in layer.named_buffers(recurse=False)} for layer in layers}
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    batches = 0
    try:
        with modes_kept(model), random_kept(model):
            if dropout:
                model.train()
            else:
                model.eval()
                for layer in layers:
                    layer.training = True
            for layer in frozen:
                layer.training = False
            for batch in batches_of(loader):
                outputs_of(model, moved(batch, device), forward)
                batches += 1
            if not batches:
                raise InputError("no batches came: batch-norm layers need data to refresh their statistics")
    except BaseException:
        for layer, buffers in kept.items():
            for name, before in buffers.items():
                getattr(layer, name).copy_(before)
        raise
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if seen[layer].n > 1:
            found = seen[layer].result()
            layer.running_mean.copy_(torch.as_tensor(found.mean))
            layer.running_var.copy_(torch.as_tensor(found.variance))
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(batches)


def _state_of(n: int, mean: torch.Tensor, variance: torch.Tensor) -> Moments:
    """A batch as the state it would have left in the reducer."""
    mean, variance = mean.cpu().double(), variance.cpu().double()
    return Moments().restored({"n": np.array(n), "weight": np.array(float(n)), "weight2": np.array(float(n)),
                               "item": np.array(mean.shape), "complex": np.array(False),
                               "sum1": mean.numpy(), "sum2": (variance * n).numpy()})
