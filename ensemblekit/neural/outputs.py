"""What networks answer: outputs as log-probabilities, and the answers of members pooled over the batches of a loader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ensemblekit.averaging.moments import Moments
from ensemblekit.errors import InputError
from ensemblekit.neural.batches import (
    ONE_BY_ONE,
    PROBABILITIES,
    Convention,
    Output,
    Outputs,
    Singles,
    check_labels,
    looks_like_probabilities,
)
from ensemblekit.neural.prediction import Prediction, RegressionPrediction
from ensemblekit.neural.swag import over_n
from ensemblekit.neural.uncertainty import Pool, Space, on_cpu

TINY = float(np.finfo(np.float64).tiny)


def log_probabilities(out: Output, task: str, axis: int = 1, outputs: Outputs | None = None,
                      of: Callable[..., torch.Tensor] = torch.log_softmax) -> torch.Tensor:
    """Logits, log-probabilities or (`outputs`) probabilities as log-probabilities in float64.

    Classes stand along `axis`; the axes before it are batches.

    `of`: torch.softmax for the probabilities themselves, where the task is not binary.

    Raises InputError where the shape does not fit the task, and for probabilities that nobody said to be such.
    """
    if not isinstance(out, torch.Tensor):
        raise InputError(f"outputs are a tensor of logits; got {type(out).__name__}. Pass forward=lambda model, batch: "
                         "... that picks it")
    x = wide(out)
    shape = tuple(x.shape[axis - 1:])
    if task == "binary":
        if len(shape) > 1 and shape[1] != 1:
            raise InputError(f'task="binary" takes one logit an item, (n,) or (n, 1), or a pixel, (n, 1, *map); got {shape}. '
                             f"Several questions an item, or labels that overlap (multi-label): {ONE_BY_ONE}")
        x = x.squeeze(axis) if len(shape) > 1 else x
        if outputs == "probabilities":
            _check_probabilities(x, x <= 1)
            return torch.stack([1 - x, x], axis).clamp(min=TINY).log()
        return torch.stack([torch.nn.functional.logsigmoid(-x), torch.nn.functional.logsigmoid(x)], axis)
    if task == "classification" and (len(shape) != 2 or shape[1] < 2):
        raise InputError(f'task="classification" takes logits (n, classes) of two classes or more; got {shape}. One logit '
                         'an item: task="binary"; maps: task="segmentation"; numbers: task="regression"')
    if task == "segmentation" and (len(shape) < 3 or shape[1] < 2):
        raise InputError(f'task="segmentation" takes logits (n, classes, *map); got {shape}')
    if outputs == "probabilities":
        total = x.sum(axis, keepdim=True)
        _check_probabilities(x, (total - 1).abs() <= 2e-2)
        p = x / total
        return p if of is torch.softmax else p.clamp(min=TINY).log()
    if outputs is None and looks_like_probabilities(out, axis):
        raise InputError(PROBABILITIES.format("every row is not below 0 and 1 in sum"))
    return of(x, axis)


def _check_probabilities(x: torch.Tensor, others: torch.Tensor) -> None:
    if not (bool((x >= 0).all()) and bool(others.all())):
        raise InputError('outputs="probabilities" are not below 0 and 1 in sum (binary: 0 to 1); these are not: leave outputs= '
                         "away for logits")


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """What some members say of one batch, on its way to process 0."""

    pool: Pool
    mean: Moments
    variance: Moments
    own: list[np.ndarray]
    single: Singles
    """Of this batch alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What all members say of the items of one process, on its way to process 0; arrays begin with the items."""

    values: dict[str, np.ndarray]
    labels: np.ndarray | None
    each: np.ndarray | None
    """(members, items, classes, ...)."""
    single: Singles


class Answers:
    """Pooled answers of members, batch after batch, and the prediction that they make together."""

    def __init__(self, task: str, ignore_index: int | None, keep: bool, convention: Convention):
        self.task, self.ignore_index, self.keep, self.convention = task, ignore_index, keep, convention
        self.single, self.seen = Singles(convention.outputs), Singles(convention.outputs)      # seen: by other processes
        self.parts: dict[str, list[np.ndarray]] = {}
        self.labels: list[np.ndarray] = []
        self.each: list[np.ndarray] = []
        self.n = 0

    def start(self, batch: object, space: Space) -> None:
        self.target = self.convention.target_of(batch, self.task)
        self.pool = Pool(space)
        self.own: list[np.ndarray] = []
        self.mean, self.variance = Moments(), Moments()     # of regression: of means and of the variances that members give

    def update(self, out: Output, shares: np.ndarray | None) -> None:
        if self.task == "regression":
            mean, variance = out if isinstance(out, tuple) else (out, None)
            self.mean.update(wide(mean), 0, shares)
            if variance is not None:
                if torch.isinf(variance).any():
                    raise InputError("a variance that is infinite came from a member: some distributions have none (StudentT "
                                     "of 2 degrees of freedom or fewer). Pass forward=lambda model, batch: ... that gives "
                                     "(mean, variance), or the mean alone")
                if (variance < 0).any():
                    raise InputError("a variance below 0 came from a member; outputs of regression are (mean, variance)")
                self.variance.update(wide(variance), 0, shares)
            return
        if self.task == "binary":
            self.single.see(out)
        log_p = log_probabilities(out, self.task, 2, self.convention.outputs)
        self.pool.update(log_p, shares)
        if self.keep:
            self.own.append(log_p.exp().cpu().numpy())

    def end(self) -> None:
        if self.task == "regression":
            moments = self.mean.result()
            epistemic, spread = over_n(moments)
            values = {"mean": moments.mean, "epistemic": epistemic, "spread": spread,
                      "aleatoric": self.variance.result().mean if self.variance.n else moments.mean * 0.0}
        else:
            doubt = self.pool.result()
            values = {"probabilities": doubt.log_probabilities.exp(), "aleatoric": doubt.aleatoric,
                      "disagreement": doubt.disagreement, "variation_ratio": doubt.variation_ratio}
        n = len(values["aleatoric"])
        shape = tuple(next(iter(values.values())).shape)
        maps = self.task == "segmentation" or (self.task == "binary" and len(shape) > 2)
        if self.target is not None:
            if self.task == "binary":
                self.target = without_channel(self.target, shape)
            check_labels(self.target, shape, self.task, self.ignore_index)
            self.labels.append(self.target.detach().cpu().numpy())
        elif self.labels:
            raise InputError("some batches have labels and some have not")
        if self.n and self.target is not None and len(self.labels) == 1:
            raise InputError("some batches have labels and some have not")
        for name, x in values.items():
            kept = x.cpu().numpy()
            self.parts.setdefault(name, []).append(kept.astype(np.float32) if maps else kept)
        if self.keep:
            self.each.append(np.concatenate(self.own))
        self.n += n

    # -- of several processes --------------------------------------------------------------------------------------

    def partial(self) -> Partial:
        """What was said of the batch under way."""
        single, self.single = self.single, Singles(self.convention.outputs)
        return Partial(self.pool.on_cpu(), on_cpu(self.mean), on_cpu(self.variance), self.own, single)

    def join_members(self, parts: Sequence[Partial]) -> None:
        """Have what the members of all processes say of the batch under way, in their order, for what was said here."""
        self.pool, self.own = Pool(self.pool.space), []
        self.mean, self.variance = Moments(), Moments()
        for part in parts:
            self.pool.merge(part.pool)
            self.mean.merge(part.mean)
            self.variance.merge(part.variance)
            self.own += part.own
            self.seen.merge(part.single)
        self.single = Singles(self.convention.outputs)

    def share(self) -> Share:
        """All that was said here."""
        return Share({name: np.concatenate(parts) for name, parts in self.parts.items()},
                     np.concatenate(self.labels) if self.labels else None,
                     np.concatenate(self.each, axis=1) if self.each else None, self.single)

    def join_items(self, shares: Sequence[Share], places: np.ndarray) -> None:
        """Have what all processes say for what was said here: item k stands at places[k] of their items, one after the other.

        Raises InputError where some have labels and some have not.
        """
        full = [share for share in shares if share.values]
        if len({share.labels is None for share in full}) > 1:
            raise InputError("some processes have labels and some have not")
        self.parts = {name: [np.concatenate([share.values[name] for share in full])[places]]
                      for name in (full[0].values if full else ())}
        self.labels = [np.concatenate(labels)[places]] if (labels := [x.labels for x in full if x.labels is not None]) else []
        self.each = [np.concatenate(each, axis=1)[:, places]] if (each := [x.each for x in full if x.each is not None]) else []
        self.single = Singles(self.convention.outputs)
        for share in shares:
            self.single.merge(share.single)
        self.n = len(places)

    def members(self) -> np.ndarray:
        """(members, n, classes, ...)."""
        return np.concatenate(self.each, axis=1)

    def result(self, members: int, space: Space) -> Prediction | RegressionPrediction:
        """A Prediction; InputError where nothing came."""
        if not self.n:
            raise InputError("nothing to predict: the loader is empty")
        self.single.merge(self.seen)
        self.single.check()
        values: dict[str, Any] = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        target = np.concatenate(self.labels) if self.labels else None
        if self.task == "regression":
            return RegressionPrediction(**values, target=target, index=np.arange(self.n), n_members=members)
        if target is not None and target.dtype.kind not in "iu":
            target = target.astype(np.int64)
        return Prediction(**values, target=target, index=np.arange(self.n), n_members=members, space=space,
                          ignore_index=self.ignore_index)


def without_channel(target: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Labels (n, *map) of outputs of a shape (n, 2, *map), where they came as (n, 1, *map)."""
    return target.squeeze(1) if len(shape) > 2 and tuple(target.shape) == (*shape[:1], 1, *shape[2:]) else target


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float64; devices without it hand their outputs to the processor."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def check_finite(out: Output, numbers: Sequence[int]) -> None:
    """Raise InputError for outputs of members, by their numbers, that are NaN or no tensors."""
    for x in out if isinstance(out, tuple) else (out,):
        if not isinstance(x, torch.Tensor):
            raise InputError(f"outputs are tensors; got {type(x).__name__}. Pass forward=lambda model, batch: ... that picks "
                             "the logits")
        if torch.isnan(x).any():
            bad = [k for k, row in zip(numbers, torch.isnan(x).flatten(1).any(1).tolist(), strict=True) if row]
            without = (". Where all do: distributions without a mean (Cauchy, StudentT of 1 degree of freedom) answer so; "
                       "forward=lambda model, batch: ... that gives the location") if isinstance(out, tuple) else ""
            raise InputError(f"member {', '.join(map(str, bad))} answers NaN; leave it out: members=, or give it weight "
                             f"0{without}")
