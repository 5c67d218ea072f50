"""How fast the loss rises about a set of weights: whether averaged weights do lie in broad valleys is measured, not said.

Directions are random and normalised filter by filter to the size of the weights (Li et al., NeurIPS 2018), so that networks of
other scale are comparable; biases and the weights of normalisations stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch

from ensemblekit.averaging.crossed import crossed
from ensemblekit.errors import InputError
from ensemblekit.neural.barrier import item_losses
from ensemblekit.neural.batches import Convention, device_of
from ensemblekit.neural.batchnorm import has_batch_norm, update_bn
from ensemblekit.neural.ensemble import Ensemble
from ensemblekit.neural.options import Predicting, Task, check_task
from ensemblekit.neural.parameters import to_vectors
from ensemblekit.neural.result_files import Saved
from ensemblekit.results import Result


@dataclass(frozen=True, slots=True, eq=False)
class Flatness(Saved, Result):
    """The rise of the loss along random directions; intervals of 95 % over directions and items."""

    FIGURE: ClassVar[str] = "trajectory.flatness"

    radius: np.ndarray
    """(k,): length of the step over that of the weights, filter by filter."""
    rise: np.ndarray
    """(k,): mean rise of the loss."""
    low: np.ndarray
    """(k,)."""
    high: np.ndarray
    """(k,)."""
    each: np.ndarray
    """(directions, k): along each direction, the mean over items."""
    loss: float
    """Where the steps begin."""
    n_items: int

    def __str__(self) -> str:
        lines = [f"loss {self.loss:.4g} over {self.n_items} items; its rise along {len(self.each)} random directions, 95 % "
                 "intervals over directions and items"]
        return "\n".join([*lines, *(f"radius {r:<8.3g} {x:.4g} ({a:.4g} to {b:.4g})" for r, x, a, b in zip(
            self.radius, self.rise, self.low, self.high, strict=True))])

    __repr__ = __str__


@torch.no_grad()
def flatness(model: torch.nn.Module | Ensemble[Any], loader: Iterable[Any], directions: int = 20, *,
             radius: float | Sequence[float] = (0.25, 0.5), seed: int = 0, train_loader: Iterable[Any] | None = None,
             task: Task = "classification", **options: Unpack[Predicting]) -> Flatness:
    """The rise of the loss of a model, or of the members of an ensemble together, along random directions.

    The same seed gives the same numbers for every model of one architecture, so that last snapshot, average and ensemble are
    compared along the same draws; of an ensemble every member is moved by the same draws at its own scale, and the loss is that
    of the pool. With a loader of corrupted items it is the flatness under drift.

    Arguments:
        directions: how many, 2 or more.
        radius: of the steps, one or several.
        train_loader: for the statistics of batch-norm layers after each step; without it they stay as they are.
        task: and the other options as :func:`predict`, of a model that is no Ensemble.

    Raises InputError for settings out of range, no labels, and models without weights of two axes or more.
    """
    check_task(task)
    steps = np.atleast_1d(np.asarray(radius, float))
    if steps.ndim != 1 or not len(steps) or not (np.isfinite(steps).all() and (steps > 0).all()):
        raise InputError(f"radius is the length of a step, above 0, or several; got {radius!r}")
    if not isinstance(directions, int | np.integer) or directions < 2:
        raise InputError(f"an interval needs two directions or more; got {directions!r}")
    loader = list(loader) if isinstance(loader, Iterator) else loader
    train = list(train_loader) if isinstance(train_loader, Iterator) else train_loader
    ensemble = isinstance(model, Ensemble)
    members = [copy.deepcopy(one) for one in model.members] if isinstance(model, Ensemble) else [copy.deepcopy(model)]
    convention = model.convention if isinstance(model, Ensemble) else Convention(
        options.get("forward"), options.get("target"), options.get("outputs"), task)
    task = model.task if isinstance(model, Ensemble) else task
    if not any(p.ndim > 1 for p in members[0].parameters()):
        raise InputError("the model has no weights of two axes or more to step along")
    device = options.get("device") or device_of(members[0])
    ignore = model.ignore_index if isinstance(model, Ensemble) else options.get("ignore_index")

    def losses() -> np.ndarray:
        if ensemble:
            assert isinstance(model, Ensemble)
            found = _pooled_losses(model, members, loader, options)
        else:
            found = item_losses(members[0], loader, task, convention, device, ignore)
        if found is None or not len(found):
            raise InputError("a loss needs labels: pass a loader of (input, label)")
        return found

    base = losses()
    if len(base) < 2:
        raise InputError(f"an error over items needs two items or more; got {len(base)}")
    before = [{name: x.clone() for name, x in one.state_dict().items()} for one in members]
    rises = np.empty((directions, len(steps), len(base)))
    for d, k in np.ndindex(directions, len(steps)):
        for one, state in zip(members, before, strict=True):
            one.load_state_dict(state)
            _move(one, float(steps[k]), [seed, d])
            if train is not None and has_batch_norm(one):
                update_bn(train, one, device, convention)
        rises[d, k] = losses() - base
    tables = [crossed(rises[:, k]) for k in range(len(steps))]
    low, high = np.array([one.interval for one in tables]).T
    return Flatness(steps, np.array([one.mean for one in tables]), low, high, rises.mean(2), float(base.mean()), len(base))


def _move(model: torch.nn.Module, step: float, seed: list[int]) -> None:
    """Move weights along a random direction: every filter by `step` times its own length."""
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        if p.ndim < 2:
            continue
        d = torch.from_numpy(rng.standard_normal(tuple(p.shape))).to(p)
        flat = (len(p), -1)
        lengths = d.reshape(flat).norm(dim=1).clamp(min=torch.finfo(p.dtype).tiny)
        scale = step * p.reshape(flat).norm(dim=1) / lengths
        p.add_(d * scale.reshape(-1, *(1,) * (p.ndim - 1)))


def _pooled_losses(ensemble: Ensemble[Any], members: Sequence[torch.nn.Module], loader: Iterable[Any],
                   options: Predicting) -> np.ndarray | None:
    """(n,): loss of the pool of these members, pixels averaged."""
    vectors = [to_vectors(one) for one in members]
    rows = {name: np.stack([one[name] for one in vectors]) for name in vectors[0]}
    convention = ensemble.convention
    together = Ensemble(members[0], rows, task=ensemble.task, weights=ensemble.shares, space=ensemble.space,
                        ignore_index=ensemble.ignore_index, forward=convention.forward, target=convention.target,
                        outputs=convention.outputs)
    pool: Any = together.predict(loader, device=options.get("device"))
    if pool.target is None:
        return None
    target = np.asarray(pool.target)
    if ensemble.task == "regression":
        losses = (np.asarray(pool.mean, np.float64) - target) ** 2
    else:
        kept = np.ones(target.shape, bool) if pool.ignore_index is None else target != pool.ignore_index
        own = np.take_along_axis(pool.probabilities, np.where(kept, target, 0)[:, None], 1)[:, 0]
        losses = np.where(kept, -np.log(np.maximum(own, np.finfo(np.float64).tiny)), 0.0)
    by_item: np.ndarray = losses.reshape(len(losses), -1).mean(1)
    return by_item
