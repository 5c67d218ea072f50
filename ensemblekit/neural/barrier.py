"""Is there a ridge between two models? Averages of weights are good only where there is none.

Garipov et al., NeurIPS 2018; Frankle et al., ICML 2020 (linear mode connectivity).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import reduce
from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Forward, batches_of, device_of, modes_kept, moved, outputs_of, random_kept, target_of
from ensemblekit.neural.batchnorm import has_batch_norm, update_bn
from ensemblekit.neural.parameters import Manifest, load_vectors, to_vectors

ITEMS = 2048
"""So many items of the loader settle whether there is a barrier."""


@dataclass(frozen=True, slots=True)
class Rise:
    """The loss of averaged weights above the mean of the members' losses, paired item by item."""

    value: float
    """In the units of the loss (nats; squared error)."""
    stderr: float
    average: float
    """Loss of the average."""
    members: float
    """Weighted mean of the members' losses."""
    nothing: float
    """Loss of knowing nothing: the entropy of the labels' classes taken as equal; the variance of the targets."""
    n: int
    """Items."""

    def above(self, tolerance: float = 0.02) -> bool:
        """Whether the rise is more than this share of `nothing`, by two standard errors."""
        return self.value - 2 * self.stderr > tolerance * self.nothing

    def __str__(self) -> str:
        return (f"loss {self.average:.4g} against {self.members:.4g} of the members, a rise of {self.value:.3g} ± "
                f"{2 * self.stderr:.2g} over {self.n} items")


@dataclass(frozen=True, slots=True, eq=False)
class Barrier:
    """The loss on the straight line between two models."""

    at: np.ndarray
    """(points,): 0 at the first model, 1 at the second."""
    loss: np.ndarray
    """(points,)."""
    height: float
    """Largest loss above the straight line between the losses of the two ends; 0 where there is no barrier."""


def loss_barrier(first: torch.nn.Module, second: torch.nn.Module, loader: Iterable[Any], *, points: int = 11,
                 task: str = "classification", forward: Forward | None = None, device: Any = None,
                 ignore_index: int | None = None) -> Barrier:
    """The loss between two models of one architecture, batch-norm statistics made anew at every point; both are left.

    Arguments:
        loader: batches with labels: cross entropy for classes, squared error for numbers; the first 2048 items count.
        points: of the line, the ends among them.

    Raises InputError where the models differ in their tensors, or without labels.
    """
    if points < 3:
        raise InputError(f"points is 3 or more; got {points!r}")
    manifest = Manifest.of(first)
    manifest.check(second)
    a, b = to_vectors(first), to_vectors(second, manifest)
    loader = list(loader) if isinstance(loader, Iterator) else loader
    one, device = copy.deepcopy(first), device or device_of(first)
    at, losses = np.linspace(0, 1, points), []
    with random_kept(first):
        for share in at:
            mixed = {kind: (1 - share) * a[kind].astype(np.float64) + share * b[kind] if kind != "counters" else a[kind]
                     for kind in a}
            load_vectors(one, mixed, manifest)
            if has_batch_norm(one):
                update_bn(loader, one, device, forward)
            losses.append(_labelled(item_losses(one, loader, task, forward, device, ignore_index)).mean())
    found = np.array(losses)
    return Barrier(at, found, float(max(0.0, (found - ((1 - at) * found[0] + at * found[-1])).max())))


def rise_of(average: torch.nn.Module, members: Iterable[torch.nn.Module], shares: np.ndarray, loader: Iterable[Any],
            task: str, forward: Forward | None, device: Any, ignore_index: int | None) -> Rise | None:
    """None where the loader has no labels."""
    batches = _some(loader)
    own = item_losses(average, batches, task, forward, device, ignore_index)
    if own is None or len(own) < 2:
        return None
    others = np.zeros(len(own))
    for share, model in zip(shares, members, strict=True):
        others += share * _labelled(item_losses(model, batches, task, forward, device, ignore_index))
    gap = reduce(own - others, Moments())
    if task == "regression":
        found = [target_of(b) for b in batches]
        targets = np.concatenate([np.asarray(t.cpu(), np.float64).reshape(-1) for t in found if t is not None])
        nothing = float(targets.var())
    else:
        nothing = float(np.log(classes_of(average, batches[0], task, forward, device)))
    return Rise(float(gap.mean), float(np.sqrt(gap.variance / len(own))), float(own.mean()), float(others.mean()),
                nothing, len(own))


@torch.no_grad()
def item_losses(model: torch.nn.Module, loader: Any, task: str, forward: Forward | None, device: Any,
                ignore_index: int | None) -> np.ndarray | None:
    """(n,): cross entropy or squared error of each item, pixels averaged; None without labels."""
    from ensemblekit.neural.ensemble import log_probabilities

    found = []
    with modes_kept(model):
        model.eval()
        for batch in batches_of(loader):
            batch = moved(batch, device)
            target = target_of(batch)
            if target is None:
                return None
            out = outputs_of(model, batch, forward)
            if task == "regression":
                mean = out[0] if isinstance(out, tuple) else out
                loss = (mean.double() - target.double().reshape(mean.shape)) ** 2
            else:
                labels = target.long()
                skip = torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else labels == ignore_index
                log_p = log_probabilities(out, task)
                loss = -log_p.gather(1, labels.masked_fill(skip, 0)[:, None])[:, 0].masked_fill(skip, 0.0)
            found.append(loss.flatten(1).mean(1).cpu() if loss.ndim > 1 else loss.cpu())
    return torch.cat(found).numpy() if found else None


def classes_of(model: torch.nn.Module, batch: Any, task: str, forward: Forward | None, device: Any) -> int:
    """How many classes the model tells apart."""
    if task == "binary":
        return 2
    with torch.no_grad(), modes_kept(model):
        return int(outputs_of(model.eval(), moved(batch, device), forward).shape[1])


def _labelled(losses: np.ndarray | None) -> np.ndarray:
    if losses is None:
        raise InputError("a loss needs labels: pass a loader of (input, label)")
    return losses


def _some(loader: Iterable[Any]) -> list[Any]:
    """The first batches, up to ``ITEMS`` items."""
    kept, n = [], 0
    for batch in batches_of(loader):
        kept.append(batch)
        target = target_of(batch)
        n += len(target) if target is not None else 1
        if n >= ITEMS or target is None:
            break
    return kept
