"""Is there a ridge between two models? Averages of weights are good only where there is none.

Garipov et al., NeurIPS 2018; Frankle et al., ICML 2020 (linear mode connectivity).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import reduce
from ensemblekit.errors import InputError
from ensemblekit.neural.batches import (
    Convention,
    Device,
    Forward,
    Outputs,
    Singles,
    batches_of,
    check_labels,
    device_of,
    modes_kept,
    moved,
    random_kept,
)
from ensemblekit.neural.batchnorm import has_batch_norm, update_bn
from ensemblekit.neural.outputs import log_probabilities, without_channel
from ensemblekit.neural.parameters import Manifest, load_vectors, to_vectors
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two

ITEMS = 2048
"""So many items of the loader settle whether there is a barrier."""


@dataclass(frozen=True, slots=True)
class LossIncrease(Result):
    """The loss of averaged weights above the mean of the members' losses, paired item by item."""

    value: float
    """In the units of the loss (nats; squared error)."""
    stderr: float
    average: float
    """Loss of the average."""
    members: float
    """Weighted mean of the members' losses."""
    chance_loss: float
    """Loss of knowing nothing: the entropy of the labels' classes taken as equal; the variance of the targets."""
    n: int
    """Items."""
    exponent: int = 0
    """Not 0 where squared errors are beyond float64: all losses here are over 4**exponent then."""

    def above(self, tolerance: float = 0.02) -> bool:
        """Whether the rise is more than this share of `nothing`, by two standard errors."""
        return self.value - 2 * self.stderr > tolerance * self.chance_loss

    def __str__(self) -> str:
        return (f"loss {self.average:.4g} against {self.members:.4g} of the members, a rise of {self.value:.3g} ± "
                f"{2 * self.stderr:.2g} over {self.n} items{f', times 4**{self.exponent}' if self.exponent else ''}")


@dataclass(frozen=True, slots=True, eq=False)
class Barrier(Result):
    """The loss on the straight line between two models."""

    at: np.ndarray
    """(points,): 0 at the first model, 1 at the second."""
    loss: np.ndarray
    """(points,)."""
    height: float
    """Largest loss above the straight line between the losses of the two ends; 0 where there is no barrier."""
    exponent: int = 0
    """Not 0 where squared errors are beyond float64: `loss` and `height` are over 4**exponent then."""


def loss_barrier(first: torch.nn.Module, second: torch.nn.Module, loader: Iterable[Any], *, points: int = 11,
                 task: str = "classification", forward: Forward | None = None, device: Device = None,
                 ignore_index: int | None = None, target: Callable[[Any], Any] | None = None,
                 outputs: Outputs | None = None) -> Barrier:
    """The loss between two models of one architecture, batch-norm statistics made anew at every point; both are left.

    Arguments:
        loader: batches with labels: cross entropy for classes, squared error for numbers; the first 2048 items count.
        points: of the line, the ends among them.
        task, forward, ignore_index, target, outputs: as :class:`Ensemble`.

    Raises InputError where the models differ in their tensors, or without labels.
    """
    if points < 3:
        raise InputError(f"points is 3 or more; got {points!r}")
    convention = Convention(forward, target, outputs, task)
    manifest = Manifest.of(first)
    manifest.check(second)
    a, b = to_vectors(first), to_vectors(second, manifest)
    loader = list(loader) if isinstance(loader, Iterator) else loader
    exponent = _exponent(_some(loader, convention), task, convention)
    one, device = copy.deepcopy(first), device or device_of(first)
    at, losses = np.linspace(0, 1, points), []
    with random_kept(first):
        for share in at:
            mixed = {kind: (1 - share) * a[kind].astype(np.float64) + share * b[kind] if kind != "counters" else a[kind]
                     for kind in a}
            load_vectors(one, mixed, manifest)
            if has_batch_norm(one):
                update_bn(loader, one, device, convention)
            losses.append(_labelled(item_losses(one, loader, task, convention, device, ignore_index, exponent=exponent)).mean())
    loss = np.array(losses)
    return Barrier(at, loss, float(max(0.0, (loss - ((1 - at) * loss[0] + at * loss[-1])).max())), exponent)


def rise_of(average: torch.nn.Module, members: Iterable[torch.nn.Module], shares: np.ndarray, loader: Iterable[Any],
            task: str, convention: Convention, *, device: Device, ignore_index: int | None) -> LossIncrease | None:
    """None where the loader has no labels.

    Batch-norm statistics of copies of both, average and members, are made anew from the items looked at: the models given
    stay, and new statistics are not charged to the average.
    """
    batches = _some(loader, convention)
    if not batches or convention.target_of(batches[0], task) is None:
        return None
    exponent = _exponent(batches, task, convention)

    def losses(model: torch.nn.Module) -> np.ndarray | None:
        if has_batch_norm(model):
            model = copy.deepcopy(model)
            update_bn(batches, model, device, convention, dropout=False)
        return item_losses(model, batches, task, convention, device, ignore_index, exponent=exponent)

    own = losses(average)
    if own is None or len(own) < 2:
        return None
    others = np.zeros(len(own))
    for share, model in zip(shares, members, strict=True):
        others += share * _labelled(losses(model))
    gap = reduce(own - others, Moments())
    if task == "regression":
        labels = [convention.target_of(b) for b in batches]
        targets = np.concatenate([np.asarray(t.cpu(), np.float64).reshape(-1) for t in labels if t is not None])
        nothing = float(ldexp(targets, -exponent).var())
    else:
        nothing = float(np.log(classes_of(average, batches[0], task, convention, device)))
    return LossIncrease(float(gap.mean), float(gap.std / np.sqrt(len(own))), float(own.mean()), float(others.mean()),
                nothing, len(own), exponent)


@torch.no_grad()
def item_losses(model: torch.nn.Module, loader: Iterable[Any], task: str, convention: Convention, device: Device,
                ignore_index: int | None, *, exponent: int = 0) -> np.ndarray | None:
    """(n,): cross entropy or squared error over 4**exponent of each item, pixels averaged; None without labels.

    Raises InputError for labels and outputs that do not fit each other.
    """
    losses, single = [], Singles(convention.outputs)
    with modes_kept(model):
        model.eval()
        for batch in batches_of(loader):
            batch = moved(batch, device)
            target = convention.target_of(batch, task)
            if target is None:
                return None
            out = convention.outputs_of(model, batch)
            if task == "regression":
                mean = out[0] if isinstance(out, tuple) else out
                if target.numel() != mean.numel():
                    check_labels(target, tuple(mean.shape), task)
                loss = ldexp(mean.double() - target.double().reshape(mean.shape), -exponent) ** 2
            else:
                if task == "binary":
                    single.see(out)
                log_p = log_probabilities(out, task, outputs=convention.outputs)
                target = without_channel(target, tuple(log_p.shape)) if task == "binary" else target
                check_labels(target, tuple(log_p.shape), task, ignore_index)
                labels = target.long().to(log_p.device)
                skip = torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else labels == ignore_index
                loss = -log_p.gather(1, labels.masked_fill(skip, 0)[:, None])[:, 0].masked_fill(skip, 0.0)
            losses.append(loss.flatten(1).mean(1).cpu() if loss.ndim > 1 else loss.cpu())
    single.check()
    return torch.cat(losses).numpy() if losses else None


def classes_of(model: torch.nn.Module, batch: object, task: str, convention: Convention, device: Device) -> int:
    """How many classes the model tells apart."""
    if task == "binary":
        return 2
    with torch.no_grad(), modes_kept(model):
        return int(convention.outputs_of(model.eval(), moved(batch, device)).shape[1])


def _labelled(losses: np.ndarray | None) -> np.ndarray:
    if losses is None:
        raise InputError("a loss needs labels: pass a loader of (input, label)")
    return losses


def _exponent(batches: list[Any], task: str, convention: Convention) -> int:
    """Power of two to divide errors of numbers by, so that their squares are numbers: that of the targets."""
    if task != "regression":
        return 0
    targets = [convention.target_of(b) for b in batches]
    return power_of_two(np.array([ldexp(0.5, power_of_two(t, always=True)) for t in targets if t is not None]))


def _some(loader: Iterable[Any], convention: Convention) -> list[Any]:
    """The first batches, up to ``ITEMS`` items."""
    kept, n = [], 0
    for batch in batches_of(loader):
        kept.append(batch)
        target = convention.target_of(batch)
        n += len(target) if target is not None else 1
        if n >= ITEMS or target is None:
            break
    return kept
