"""The path of the weights: snapshots in the plane of their two largest principal directions, and the loss about them.

The directions are those of the Gram matrix of the snapshots about their mean (the method of snapshots, Sirovich 1987); the loss
in such a plane: Garipov et al., NeurIPS 2018; Li et al., NeurIPS 2018.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch

from ensemblekit.averaging.diversity import from_gram, gram_over
from ensemblekit.averaging.principal import Principal, principal
from ensemblekit.errors import InputError
from ensemblekit.neural.barrier import item_losses
from ensemblekit.neural.batches import Convention, device_of
from ensemblekit.neural.batchnorm import has_batch_norm, update_bn
from ensemblekit.neural.options import Predicting, Task, check_task
from ensemblekit.neural.parameters import Manifest, load_vectors, unwrapped
from ensemblekit.neural.result_files import Saved
from ensemblekit.neural.stored_members import FIELDS, Stores, manifest_of, member_stores
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp
from ensemblekit.source import ReplicaSet
from ensemblekit.store.store import Store


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory(Saved, Result):
    """Snapshots of weights in their principal plane; with losses where points were asked for."""

    FIGURE: ClassVar[str] = "trajectory.plane"

    plane: np.ndarray
    """(M, 2): each snapshot in the plane, in units of distance."""
    scores: np.ndarray
    """(M, M): along every principal direction."""
    explained: np.ndarray
    """(M,): share of the variance in the first 1, 2, ... directions; NaN where all snapshots are one."""
    off_plane: np.ndarray
    """(M,): distance of each snapshot from the plane."""
    distances: np.ndarray
    """(M, M): between snapshots."""
    run: np.ndarray
    """(M,): number of the store each is of."""
    steps: np.ndarray
    """(M,): optimizer steps when each was captured; NaN where unknown."""
    a: np.ndarray
    """(points,): places along the first direction; (0,) without points."""
    b: np.ndarray
    """(points,): along the second."""
    loss: np.ndarray
    """(points, points): mean loss at mean + a[i] φ1 + b[j] φ2."""
    foot_loss: np.ndarray
    """(M,): at each snapshot's foot in the plane; (0,) without points."""
    snapshot_loss: np.ndarray
    """(M,): of each snapshot itself, with its own batch-norm statistics; (0,) without points."""
    mean_loss: float
    """Of the mean of the weights; NaN without points."""

    def __str__(self) -> str:
        share = self.explained[min(1, len(self.explained) - 1)]
        runs = len(np.unique(self.run))
        lines = [f"{len(self.plane)} snapshots of {runs} run{'s' * (runs > 1)}; the plane "
                 f"holds {100 * share:.4g} % of their variance, and they lie {self.off_plane.mean():.3g} from it on average",
                 f"{'snapshot':>10}{'run':>6}{'step':>10}{'first':>12}{'second':>12}{'off plane':>12}"
                 + (f"{'loss':>12}{'at its foot':>14}" if len(self.foot_loss) else "")]
        for k, (x, y) in enumerate(self.plane):
            step = "" if np.isnan(self.steps[k]) else f"{self.steps[k]:g}"
            lines.append(f"{k:10d}{self.run[k]:6d}{step:>10}{x:12.4g}{y:12.4g}{self.off_plane[k]:12.4g}"
                         + (f"{self.snapshot_loss[k]:12.4g}{self.foot_loss[k]:14.4g}" if len(self.foot_loss) else ""))
        if len(self.foot_loss):
            lines.append(f"loss of the mean of the weights: {self.mean_loss:.4g}; least on the grid: {self.loss.min():.4g}")
        return "\n".join(lines)

    __repr__ = __str__


def trajectory(store: Stores, model: torch.nn.Module | None = None, loader: Iterable[Any] | None = None, *,
               train_loader: Iterable[Any] | None = None, points: int = 0, half: float = 1.2, task: Task = "classification",
               **options: Unpack[Predicting]) -> Trajectory:
    """The path of a run's weights, or of several runs in one plane; with `points` the loss on a grid of it.

    Arguments:
        store: a store or its path; a list of them puts their runs into one plane. The weights are read once, in slabs.
        model: the architecture, for the loss; left as it is.
        loader: labelled items, for the loss.
        train_loader: for the statistics of batch-norm layers, which are made anew at every point.
        points: of the grid along each direction; 0: no loss.
        half: the grid reaches so many times as far from the mean as the farthest snapshot, along each direction.
        task: and the other options as :func:`predict`.

    Raises InputError for stores without snapshots, of different models, or with fewer than two snapshots (three for a grid).
    """
    check_task(task)
    if not isinstance(points, int | np.integer) or points < 0 or points == 1:
        raise InputError(f"points is 0, or a whole number of 2 or more along each direction; got {points!r}")
    if not (np.isfinite(half) and half > 0):
        raise InputError(f"half is how far the grid reaches, above 0; got {half!r}")
    stores = member_stores(store)
    for one in stores:
        if one.provenance["manifest"] != stores[0].provenance["manifest"]:
            raise InputError(f"{one.path} holds snapshots of another model than {stores[0].path}")
    run = np.repeat(np.arange(len(stores)), [len(one) for one in stores])
    if len(run) < (3 if points else 2):
        raise InputError(f"a {'plane' if points else 'path'} needs {'three' if points else 'two'} snapshots or more; there are "
                         f"{len(run)}")
    fields = [one["parameters"] for one in stores]
    gram, e = gram_over(fields[0] if len(fields) == 1 else ReplicaSet.of(fields), "mean")
    directions = principal(gram)
    scores = ldexp(directions.scores, e)
    steps = np.concatenate([np.full(len(one), np.nan) if one["parameters"].times is None else np.asarray(
        one["parameters"].times, float) for one in stores])
    off = np.sqrt((scores[:, 2:] ** 2).sum(1))
    empty = np.zeros(0)
    found = (scores[:, :2], scores, directions.explained, off, ldexp(from_gram(gram), e), run, steps)
    if not points:
        return Trajectory(*found, empty, empty, np.zeros((0, 0)), empty, empty, float("nan"))
    if model is None or loader is None:
        raise InputError("the loss in the plane needs a model and a loader of labelled items")
    if not directions.values[1] > 0:
        raise InputError("all snapshots lie on a line: there is no plane to draw a loss on; leave points= away")
    batches = list(loader) if isinstance(loader, Iterator) else loader
    about = _Loss(stores, model, batches, list(train_loader) if isinstance(train_loader, Iterator) else train_loader,
                  task, options)
    origin, first, second = about.frame(directions, e)
    a, b = (half * float(abs(scores[:, k]).max()) * np.linspace(-1, 1, points) for k in (0, 1))
    loss = np.array([[about.at(origin + x * first + y * second) for y in b] for x in a])
    foot = np.array([about.at(origin + x * first + y * second) for x, y in scores[:, :2]])
    own = np.array([about.of_snapshot(k) for k in range(len(run))])
    return Trajectory(*found, a, b, loss, foot, own, about.at(origin))


class _Loss:
    """The mean loss of a model with other weights. Raises InputError for models that do not fit, and without labels."""

    def __init__(self, stores: Sequence[Store], model: torch.nn.Module, loader: Iterable[Any],
                 train_loader: Iterable[Any] | None, task: Task, options: Predicting):
        self.stores, self.loader, self.train_loader, self.task = stores, loader, train_loader, task
        self.manifest: Manifest = manifest_of(stores, model)
        self.model = copy.deepcopy(unwrapped(model))
        self.device = options.get("device") or device_of(self.model)
        self.ignore_index = options.get("ignore_index")
        self.convention = Convention(options.get("forward"), options.get("target"), options.get("outputs"), task)
        if has_batch_norm(self.model) and train_loader is None:
            raise InputError("the model has batch-norm layers: pass train_loader= of training data to make their statistics "
                             "anew at every point")

    def frame(self, directions: Principal, e: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean of the snapshots and the two directions, unit vectors (size,), snapshot by snapshot."""
        lengths = ldexp(np.sqrt(directions.values[:2]), e)
        m = len(directions.values)
        origin, first, second = (np.zeros(self.stores[0]["parameters"].shape[1]) for _ in range(3))
        k = 0
        for store in self.stores:
            for i in range(len(store)):
                row = np.asarray(store["parameters"][i], np.float64)
                origin += row / m
                first += row * (directions.vectors[k, 0] / lengths[0])
                second += row * (directions.vectors[k, 1] / lengths[1])
                k += 1
        return origin, first, second

    def at(self, parameters: np.ndarray) -> float:
        """Mean loss with these parameters, batch-norm statistics made anew."""
        self._load(len(self.stores) - 1, len(self.stores[-1]) - 1)
        load_vectors(self.model, {"parameters": parameters}, self.manifest)
        if self.train_loader is not None and has_batch_norm(self.model):
            update_bn(self.train_loader, self.model, self.device, self.convention)
        return self._mean()

    def of_snapshot(self, k: int) -> float:
        """Mean loss of a snapshot as it was stored."""
        for s, store in enumerate(self.stores):
            if k < len(store):
                self._load(s, k)
                return self._mean()
            k -= len(store)
        raise IndexError(k)

    def _load(self, s: int, k: int) -> None:
        store = self.stores[s]
        load_vectors(self.model, {name: np.asarray(store[name][k]) for name in FIELDS if name in store.fields}, self.manifest)

    def _mean(self) -> float:
        losses = item_losses(self.model, self.loader, self.task, self.convention, self.device, self.ignore_index)
        if losses is None:
            raise InputError("a loss needs labels: pass a loader of (input, label)")
        return float(losses.mean())
