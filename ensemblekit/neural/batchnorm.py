"""Batch-norm statistics of averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ensemblekit.averaging.moments import Moments, MomentsResult
from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Convention, Device, Forward, batches_of, modes_kept, moved, random_kept
from ensemblekit.neural.processes import gathered, has_share_of_data, rank_and_world


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Whether some layer keeps running statistics that a new set of weights would not fit."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


@torch.no_grad()
def update_bn(loader: Iterable[Any], model: torch.nn.Module, device: Device = None,
              forward: Forward | Convention | None = None, *, dropout: bool = True, distributed: bool | None = None) -> None:
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
    distributed = has_share_of_data(loader) if distributed is None else distributed and rank_and_world()[1] > 1
    convention = forward if isinstance(forward, Convention) else Convention(forward)
    refreshed = _Refresh(model)
    if not refreshed.layers:
        return
    try:
        with modes_kept(model), random_kept(model):
            refreshed.begin(dropout)
            for batch in batches_of(loader):
                refreshed.see(partial(convention.outputs_of, model, moved(batch, device)))
            if distributed:
                refreshed.merge_processes()
            if not refreshed.batches:
                raise InputError("no batches came: batch-norm layers need data to refresh their statistics")
    except BaseException:
        refreshed.restore()
        raise
    finally:
        refreshed.end()
    refreshed.write()


class _Refresh:
    """The batch-norm layers of a model while their statistics are taken anew."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
                       and (m.training or not model.training)]
        self.frozen = [m for m in model.modules() if isinstance(m, _BatchNorm) and model.training and not m.training]
        self.seen = {layer: _Seen() for layer in self.layers}
        self.batches = 0
        self._buffers = {layer: {name: b.clone() for name, b in layer.named_buffers(recurse=False)} for layer in self.layers}
        self._momenta = {layer: layer.momentum for layer in self.layers}
        self._hooks = [layer.register_forward_hook(self._after) if _plain(layer) else
                       layer.register_forward_pre_hook(self._look) for layer in self.layers]

    def begin(self, dropout: bool) -> None:
        """Have the layers take statistics, the frozen ones not, and dropout act or not."""
        self.model.train(dropout)
        for layer in self.layers:
            layer.training = True
        for layer in self.frozen:
            layer.training = False
        for layer in self.layers:
            if _plain(layer):
                layer.momentum = 1.0
                mean, variance = _running(layer)
                mean.zero_()        # else NaN there would stay, as 0 times NaN
                variance.zero_()

    def see(self, run: Callable[[], object]) -> None:
        """One batch, which `run` sends through the model."""
        for one in self.seen.values():
            one.begin()
        try:
            run()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            _one_alone(self.layers, self.seen, run)
        self.batches += 1

    def merge_processes(self) -> None:
        """Every process's moments merged on each, in the order of the processes; the batches are those of all."""
        states = [one.state() for one in self.seen.values()]
        shares = gathered((self.batches, states))
        for k, one in enumerate(self.seen.values()):
            one.moments = Moments()
            for _, states in shares:
                one.moments.merge(Moments().restored(states[k]))
        self.batches = sum(n for n, _ in shares)

    def restore(self) -> None:
        """All buffers as they were before."""
        for layer, buffers in self._buffers.items():
            for name, before in buffers.items():
                layer.get_buffer(name).copy_(before)

    def end(self) -> None:
        """Hooks and momenta as they were before."""
        for hook in self._hooks:
            hook.remove()
        for layer, momentum in self._momenta.items():
            layer.momentum = momentum

    def write(self) -> None:
        """What was seen, into the layers; a layer that saw nothing keeps what it had."""
        for layer in self.layers:
            moments, (mean, variance) = self.seen[layer].result(), _running(layer)
            if moments is None:
                mean.copy_(self._buffers[layer]["running_mean"])
                variance.copy_(self._buffers[layer]["running_var"])
            else:
                mean.copy_(torch.as_tensor(moments.mean))
                variance.copy_(torch.as_tensor(moments.variance))
                if layer.num_batches_tracked is not None:
                    layer.num_batches_tracked.fill_(self.batches)

    def _look(self, layer: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].detach()
        n = x.numel() // x.shape[1]
        if n:
            x = x if x.dtype == torch.float64 else x.float()
            variance, mean = torch.var_mean(x, [k for k in range(x.ndim) if k != 1], correction=0)
            self.seen[layer].take(n, mean, variance * n)

    def _after(self, layer: _BatchNorm, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        """What the layer itself found in this batch, for its momentum is 1."""
        x = inputs[0]
        n = x.numel() // x.shape[1]
        if not layer.training:      # a hook of the user's spared it this batch
            self._look(layer, inputs)
        elif n:
            mean, variance = _running(layer)
            self.seen[layer].take(n, mean.clone(), variance * (n - 1))


def _running(layer: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """The running mean and variance of a layer that has them."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None
    assert variance is not None
    return mean, variance


def _plain(layer: _BatchNorm) -> bool:
    """Whether the layer's own statistics of a batch are those of the batch, in float32 or better."""
    return (type(layer) in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
            and _running(layer)[0].dtype in (torch.float32, torch.float64))


def _one_alone(layers: list[_BatchNorm], seen: dict[_BatchNorm, _Seen], run: Callable[[], object]) -> None:
    """A batch of one item, which has no variance to be normalised by: the layers take the statistics of those before it."""
    for layer in layers:
        seen[layer].undo()
        moments = seen[layer].result()
        if moments is None:
            raise InputError("the first batch holds a single item, which batch-norm layers cannot normalise: larger batches, "
                             "or drop_last=True in the loader")
        mean, variance = _running(layer)
        mean.copy_(torch.as_tensor(moments.mean))
        variance.copy_(torch.as_tensor(moments.variance))
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

    def result(self) -> MomentsResult | None:
        """Mean and variance of them all; None where fewer than two were seen."""
        self._fold()
        return self.moments.result() if self.moments.n > 1 else None
