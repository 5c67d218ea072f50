"""Batch-norm statistics of averaged weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ensemblekit.averaging.moments import Moments
from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Convention, Forward, batches_of, modes_kept, moved, random_kept


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Whether some layer keeps running statistics that a new set of weights would not fit."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


@torch.no_grad()
def update_bn(loader: Iterable[Any], model: torch.nn.Module, device: Any = None, forward: Forward | Convention | None = None, *,
              dropout: bool = True, distributed: bool | None = None) -> None:
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
        distributed: whether each process of a torch.distributed run brings its share of the data: their statistics are
            put together, the same on all. Every process must call then. None: where the loader's sampler is a
            DistributedSampler (which repeats some items where the shares would differ in size) or one of Accelerate's
            shards. False, or another loader: the data of this process alone, so that one process may call.

    Raises InputError where the loader (of all processes) is empty and the model has batch-norm layers; the model is as
    before then.
    """
    distributed = _shares(loader) if distributed is None else distributed and _processes() > 1
    convention = forward if isinstance(forward, Convention) else Convention(forward)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
                         and (m.training or not model.training)]
    if not layers:
        return
    frozen = [m for m in model.modules() if isinstance(m, _BatchNorm) and model.training and not m.training]
    seen = {layer: _Seen() for layer in layers}

    def look(layer: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        n = x.numel() // x.shape[1]
        if n:
            x = x if x.dtype == torch.float64 else x.float()
            variance, mean = torch.var_mean(x, [k for k in range(x.ndim) if k != 1], correction=0)
            seen[layer].take(n, mean, variance * n)

    def read(layer: Any, inputs: tuple[Any, ...], _: Any) -> None:
        """What the layer itself found in this batch, for its momentum is 1."""
        x = inputs[0]
        n = x.numel() // x.shape[1]
        if not layer.training:      # a hook of the user's spared it this batch
            look(layer, inputs)
        elif n:
            seen[layer].take(n, layer.running_mean.clone(), layer.running_var * (n - 1))

    kept = {layer: {name: b.clone() for name, b in layer.named_buffers(recurse=False)} for layer in layers}
    momenta = {layer: layer.momentum for layer in layers}
    hooks = [layer.register_forward_hook(read) if _plain(layer) else layer.register_forward_pre_hook(look) for layer in layers]
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
            for layer in layers:
                if _plain(layer):
                    layer.momentum = 1.0
                    layer.running_mean.zero_()      # else NaN there would stay, as 0 times NaN
                    layer.running_var.zero_()
            for batch in batches_of(loader):
                batch = moved(batch, device)
                for one in seen.values():
                    one.begin()
                try:
                    convention.outputs_of(model, batch)
                except ValueError as error:
                    if "more than 1 value per channel" not in str(error):
                        raise
                    _one_alone(layers, seen, lambda batch=batch: convention.outputs_of(model, batch))
                batches += 1
            if distributed:
                batches = _together(list(seen.values()), batches)
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
        for layer, momentum in momenta.items():
            layer.momentum = momentum
    for layer in layers:
        found = seen[layer].result()
        if found is None:
            layer.running_mean.copy_(kept[layer]["running_mean"])
            layer.running_var.copy_(kept[layer]["running_var"])
        else:
            layer.running_mean.copy_(torch.as_tensor(found.mean))
            layer.running_var.copy_(torch.as_tensor(found.variance))
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(batches)


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def _shares(loader: Any) -> bool:
    """Whether the loader gives this process its share of the data only."""
    if _processes() == 1:
        return False
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None),
                getattr(loader, "dataset", None))
    return any(isinstance(one, torch.utils.data.DistributedSampler)
               or type(one).__name__ in ("BatchSamplerShard", "IterableDatasetShard") for one in samplers)


def _together(seen: list[_Seen], batches: int) -> int:
    """Every process's moments merged on each, in the order of the processes; returns the batches of all."""
    own = (batches, [one.state() for one in seen])
    all_of_them: list[Any] = [None] * _processes()
    torch.distributed.all_gather_object(all_of_them, own)
    for k, one in enumerate(seen):
        one.moments = Moments()
        for _, states in all_of_them:
            one.moments.merge(Moments().restored(states[k]))
    return sum(n for n, _ in all_of_them)


def _plain(layer: Any) -> bool:
    """Whether the layer's own statistics of a batch are those of the batch, in float32 or better."""
    return (type(layer) in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
            and layer.running_mean.dtype in (torch.float32, torch.float64))


def _one_alone(layers: list[Any], seen: dict[Any, _Seen], run: Any) -> None:
    """A batch of one item, which has no variance to be normalised by: the layers take the statistics of those before it."""
    for layer in layers:
        seen[layer].undo()
        found = seen[layer].result()
        if found is None:
            raise InputError("the first batch holds a single item, which batch-norm layers cannot normalise: larger batches, "
                             "or drop_last=True in the loader")
        layer.running_mean.copy_(torch.as_tensor(found.mean))
        layer.running_var.copy_(torch.as_tensor(found.variance))
    training = [layer for layer in layers if layer.training]
    try:
        for layer in training:
            layer.training = False
        run()
    finally:
        for layer in training:
            layer.training = True


class _Seen:
    """Batches that a layer saw, in Moments; a few at a time, so that a pass waits for nothing."""

    AT_ONCE = 64

    def __init__(self) -> None:
        self.moments = Moments()
        self.batches: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._before = 0

    def take(self, n: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """n samples (and pixels) with their mean and sum of squares about it."""
        self.batches.append((n, mean, squares))

    def begin(self) -> None:
        """A batch begins: what was seen before it stays, whatever comes of it."""
        if len(self.batches) >= self.AT_ONCE:
            self._fold()
        self._before = len(self.batches)

    def undo(self) -> None:
        """As if the batch had not begun."""
        del self.batches[self._before:]

    def _fold(self) -> None:
        if not self.batches:
            return
        n = np.array([one[0] for one in self.batches], np.float64)
        both = torch.stack([x for _, mean, squares in self.batches for x in (mean, squares)]).cpu().double().numpy()
        means, squares = both[::2], both[1::2]
        self.batches.clear()
        total = n.sum()
        mean = n @ means / total
        m2 = squares.sum(0) + n @ (means - mean) ** 2
        self.moments.merge(Moments().restored({
            "n": np.array(int(total)), "weight": np.array(total), "weight2": np.array(total),
            "item": np.array(mean.shape), "complex": np.array(False), "sum1": mean, "sum2": m2}))

    def state(self) -> dict[str, Any]:
        """Plain arrays, for the other processes."""
        self._fold()
        return self.moments.state()

    def result(self) -> Any:
        """Mean and variance of them all; None where fewer than two were seen."""
        self._fold()
        return self.moments.result() if self.moments.n > 1 else None
