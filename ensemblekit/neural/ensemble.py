"""Many snapshots as one model: predictions averaged, or weights averaged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

import numpy as np
import torch
from numpy.typing import ArrayLike

from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.reducer import JoinsInSpace, Reducer
from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.weights import normalised_weights
from ensemblekit.errors import InputError
from ensemblekit.neural.barrier import LossIncrease, rise_of
from ensemblekit.neural.basis_members import BasisRows, GivesBasis, members_of_basis, with_own_statistics
from ensemblekit.neural.batches import Convention, Device, Forward, Outputs, Singles, device_of, random_kept
from ensemblekit.neural.batchnorm import has_batch_norm, update_bn
from ensemblekit.neural.collection import Asked, Distributed, Path, collect, predicted
from ensemblekit.neural.members import RESIDENT, Measurement, Members
from ensemblekit.neural.options import Classes, Constructing, Ensembling, Opening, Task, check_task
from ensemblekit.neural.outputs import TINY, Answers, averaged_values
from ensemblekit.neural.parameters import Manifest, load_vectors, unwrapped
from ensemblekit.neural.prediction import Prediction, RegressionPrediction
from ensemblekit.neural.saved import save_predictions
from ensemblekit.neural.stored_members import (
    FIELDS,
    Stores,
    Vectors,
    chosen_members,
    manifest_of,
    member_stores,
    rows_of,
    weights_of,
)
from ensemblekit.neural.swag import SWAG, Posterior
from ensemblekit.neural.uncertainty import Space, check_space
from ensemblekit.neural.weight_average import Average, mean_of, reducer_of
from ensemblekit.store.stored import StoredSource

P = TypeVar("P", Prediction, RegressionPrediction)
WIDE_ITEM = 1 << 20
"""Bytes of a snapshot from which all snapshots of a slab are averaged at a time."""


class Ensemble(torch.nn.Module, Generic[P]):
    """Snapshots of one model that answer together.

    Calling it gives the logarithm of the pooled probabilities (n, classes, ...) in float64, for regression the mean;
    :meth:`predict` gives them for a whole loader with their doubt. Members are always in eval mode and frozen; they
    are copies, and the model given is left as it is. They run one after the other or in one call (vmap), whichever
    was quicker when a batch of that shape first came; ``measurements`` says what was measured.

    Arguments:
        model: the architecture.
        vectors: field -> (members, size) array or stored field, as ``to_vectors`` makes them; an array alone is that of
            the parameters.
        manifest: of the vectors; that of the model by default.
        weights: (members,) statistical weights, not below 0; None: all alike.
        task: what outputs are. "classification": logits (n, classes); "binary": one logit (n,) or (n, 1), pooled as
            two classes; "segmentation": logits (n, classes, *map); "regression": numbers (n, ...), or a tuple (mean,
            variance) or a distribution. Log-probabilities do as well as logits.
        forward: (model, batch) -> outputs, for models that are not called with the first of the batch.
        target: batch -> labels, where they are not the last of a tuple or under "labels", "target", ...; the items before
            them are the arguments of the model then. ``target=lambda batch: batch[1]`` for (x, y, sample_weight).
        outputs: "logits" or "probabilities" (a model that ends in softmax or sigmoid). By default logits, and what can
            only be probabilities (rows not below 0 that sum to 1; binary: all in [0, 1]) is refused.
        space: "probability" pools probabilities, "logit" the logits.
        ignore_index: label of pixels or items that are not scored.
        resident: bytes of weights to hold in memory; above, members are read one at a time, batch after batch.
    """

    _runner: Members

    @overload
    def __init__(self: Ensemble[Prediction], model: torch.nn.Module, vectors: Vectors, *, task: Classes = "classification",
                 **options: Unpack[Constructing]) -> None: ...
    @overload
    def __init__(self: Ensemble[RegressionPrediction], model: torch.nn.Module, vectors: Vectors, *, task: Literal["regression"],
                 **options: Unpack[Constructing]) -> None: ...
    @overload
    def __init__(self, model: torch.nn.Module, vectors: Vectors, *, task: Task, **options: Unpack[Constructing]) -> None: ...

    def __init__(self, model: torch.nn.Module, vectors: Vectors, *, manifest: Manifest | None = None,
                 weights: ArrayLike | None = None,
                 task: Task = "classification",
                 forward: Forward | None = None, space: Space = "probability", ignore_index: int | None = None,
                 resident: int = RESIDENT, target: Callable[[Any], Any] | None = None, outputs: Outputs | None = None):
        super().__init__()
        convention = Convention(forward, target, outputs, task)
        check_task(task)
        check_space(space)
        vectors = dict(vectors) if isinstance(vectors, Mapping) else {"parameters": vectors}
        if "parameters" not in vectors or not vectors.keys() <= set(FIELDS):
            raise InputError(f"vectors are those of {', '.join(FIELDS)}, the first at least; got {sorted(vectors)}")
        count = len(vectors["parameters"])
        if not count:
            raise InputError("no snapshots were stored: an ensemble needs at least one")
        if any(len(rows) != count for rows in vectors.values()):
            raise InputError(f"one row a member everywhere; got { {name: len(rows) for name, rows in vectors.items()} }")
        shares = None
        if weights is not None:
            shares = normalised_weights(weights)
            if len(shares) != count:
                raise InputError(f"weights are one number a member, shape ({count},); got {shares.shape}")
            if np.ptp(shares) == 0:
                shares = None
        self.task, self.space, self.convention, self.ignore_index = task, space, convention, ignore_index
        self.shares = shares
        self.path: str | None = None
        template = copy.deepcopy(unwrapped(model))
        manifest = manifest or Manifest.of(template)
        object.__setattr__(self, "_runner", Members(template, manifest, vectors, count, convention, resident))
        self.eval()

    @overload
    @classmethod
    def from_store(cls, path: Stores, model: torch.nn.Module, *, task: Classes = "classification",
                   **options: Unpack[Opening]) -> Ensemble[Prediction]: ...
    @overload
    @classmethod
    def from_store(cls, path: Stores, model: torch.nn.Module, *, task: Literal["regression"],
                   **options: Unpack[Opening]) -> Ensemble[RegressionPrediction]: ...
    @overload
    @classmethod
    def from_store(cls, path: Stores, model: torch.nn.Module, *, task: Task,
                   **options: Unpack[Opening]) -> Ensemble[Any]: ...

    @classmethod
    def from_store(cls, path: Stores, model: torch.nn.Module, *, task: Task = "classification",
                   forward: Forward | None = None, members: slice | Sequence[int] | None = None,
                   last: int | None = None, weights: ArrayLike | None = None, space: Space = "probability",
                   ignore_index: int | None = None, resident: int = RESIDENT,
                   target: Callable[[Any], Any] | None = None, outputs: Outputs | None = None) -> Ensemble[Any]:
        """From a store that a Recorder or ``ingest`` wrote; `model` gives the architecture and is left as it is.

        Arguments:
            path: a store or its path; a pattern or a list of paths joins the snapshots of several runs.
            members: which snapshots: a slice or their numbers, negative from the end; all by default.
            last: only so many from the end, as the paper's ensembles of size m.
            weights: of the members chosen; by default those in the store.
            The others: as the class.

        Raises InputError naming the tensors that differ where the model is another one, where there are no snapshots,
        and where a member's weights are not finite.
        """
        stores = member_stores(path)
        manifest = manifest_of(stores, model)
        numbers = chosen_members(sum(map(len, stores)), members, last)
        if weights is None:
            weights = weights_of(stores, numbers)
        vectors = {name: rows_of(stores, name, numbers) for name in FIELDS if name in stores[0].fields}
        ensemble = cls(model, vectors, manifest=manifest, weights=weights, task=task, forward=forward, space=space,
                       ignore_index=ignore_index, resident=resident, target=target, outputs=outputs)
        ensemble.path = stores[0].path if len(stores) == 1 else None
        return ensemble

    @classmethod
    def from_basis(cls, basis: GivesBasis, model: torch.nn.Module, store: Stores | None = None, *,
                   loader: Iterable[Any] | None = None, device: Device = None, **options: Unpack[Ensembling]) -> Ensemble[Any]:
        """Of a mean and a few modes, as of ``rom.pod(ek.open(path)["parameters"])``; members are built one at a time.

        Arguments: `basis`, anything with `mean` (size,), `modes` (k, size) and `coefficients` (members, k); its `store`,
        whose batch-norm statistics go with the members, or a `loader` of training data to make them anew; others as the class.

        Raises InputError where the basis is not of this model's parameters, or batch-norm statistics come from nowhere.
        """
        vectors, manifest = members_of_basis(basis, unwrapped(model), store, loader, options, device)
        return cls(model, vectors, manifest=manifest, **options)       # type: ignore[call-overload]

    # -- the members -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._runner.count

    def __iter__(self) -> Iterator[torch.nn.Module]:
        return iter(self.members)

    @property
    def vectors(self) -> Mapping[str, Any]:
        """Field -> (members, size): the flat weights, arrays or stored fields."""
        return self._runner.vectors

    @property
    def weights(self) -> np.ndarray:
        """(members,): share of each, 1 in sum."""
        return np.full(len(self), 1 / len(self)) if self.shares is None else self.shares

    def extra_repr(self) -> str:
        """For ``print``: what there is, in one line."""
        return f"{len(self)} members, {self.task}, {self.space} pooled" + (f", from {self.path}" if self.path else "")

    @property
    def measurements(self) -> list[Measurement]:
        """What was measured to choose between the loop and vmap, one for each shape of batch."""
        return list(self._runner.measured.values())

    @property
    def members(self) -> torch.nn.ModuleList:
        """All members as modules, in eval mode; they are loaded when first asked for."""
        if "members" not in self._modules:
            self._modules["members"] = torch.nn.ModuleList(self._runner.all())
        members = self._modules["members"]
        assert isinstance(members, torch.nn.ModuleList)
        return members

    def member(self, k: int) -> torch.nn.Module:
        """A copy of the model with the weights of snapshot k (negative: from the end), in eval mode."""
        if not -len(self) <= k < len(self):
            raise InputError(f"there are members 0 to {len(self) - 1}; got {k}")
        return self._runner.copy_of(k % len(self))

    def train(self, mode: bool = True) -> Self:
        """Members do not train: nothing changes."""
        self.training = False
        for one in self._modules.values():
            if one is not None:
                one.train(False)
        return self

    def named_children(self) -> Iterator[Any]:
        if self._runner.held:
            _ = self.members
        return super().named_children()

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if self._runner.held:
            _ = self.members
        return super().named_modules(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        _ = self.members
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        _ = self.members
        self._runner.forget()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self._runner.template._apply(fn)
        if self._runner.modules is not None:
            _ = self.members
        self._runner.forget()
        return super()._apply(fn, recurse)

    # -- answers ---------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Pooled log-probabilities (n, classes, ...), for regression the mean (n, ...); float64.

        Inputs are those of the model; with a `forward` function of your own, one batch as it takes it.
        """
        batch: Any = named if named else inputs[0] if len(inputs) == 1 else [*inputs, None]
        if self.convention.forward is not None and (named or len(inputs) != 1):
            raise InputError("with a forward function of your own, call the ensemble with one batch")
        pooled: Moments | None = None
        mean: Any = None
        single = Singles(self.convention.outputs)
        for out, numbers in self._runner.outputs(batch, self._wanted()):
            if self.task == "binary":
                single.see(out)
            values = averaged_values(out, self.task, self.space, self.convention.outputs)
            if self.shares is None and len(numbers) == len(self):
                mean = values.mean(0)           # all in one block: what Moments would say, in one call
            else:
                pooled = pooled or Moments()
                pooled.update(values, 0, None if self.shares is None else self.shares[numbers])
        single.check()
        mean = pooled.result().mean if pooled else mean
        if self.task == "regression":
            return mean
        return mean.clamp(min=TINY).log() if self.space == "probability" else mean - mean.logsumexp(1, keepdim=True)

    @overload
    def predict(self, loader: Iterable[Any], *, device: Device = None, save: bool | str = False, path: Path = "auto",
                distributed: None = None) -> P: ...
    @overload
    def predict(self, loader: Iterable[Any], *, device: Device = None, save: bool | str = False, path: Path = "auto",
                distributed: Distributed) -> P | None: ...

    @torch.no_grad()
    def predict(self, loader: Iterable[Any], *, device: Device = None, save: bool | str = False, path: Path = "auto",
                distributed: Distributed = None) -> P | None:
        """Pooled answers and doubt about every item, in memory that does not grow with the number of members.

        Arguments:
            loader: batches of inputs, of (inputs, ..., target) or of mappings (labels under "labels", "target" ...);
                or one tensor of inputs, or one tuple (inputs, target).
            device: where batches go; by default where the members are.
            save: True, or a name: keep every member's probabilities and the labels beside the store, for reports.
            path: how members run; "auto" chooses by measurement.
            distributed: how the processes of torch.distributed share the work; each calls. "members": some of the members
                each, all see the same batches; "items": some of the items each, by the loader's DistributedSampler. The answer
                is that of one process, to the rounding of the model's own type, on every process; for maps on process 0 (None
                on the others).

        Returns a :class:`Prediction`, for regression a :class:`RegressionPrediction`.

        Raises InputError for an empty loader, labels out of range, outputs that do not fit the task, and members
        whose answers are not finite (it names them).
        """
        if save and self.path is None:
            raise InputError("save=True keeps predictions beside the store; make the ensemble with from_store")
        if save and self.task == "regression":
            raise InputError("predictions of numbers are not saved; only those of classes")

        def keep(prediction: Any, members: np.ndarray) -> None:
            save_predictions(self.path or "", "predictions" if save is True else str(save), members, prediction,
                             self.weights[self._wanted()])

        answers = Answers(self.task, self.ignore_index, bool(save), self.convention)
        prediction: Any = predicted(answers, self._asked(device, path), loader, distributed, keep if save else None)
        return prediction

    @torch.no_grad()
    def predict_members(self, loader: Iterable[Any], *, device: Device = None) -> tuple[np.ndarray, Prediction]:
        """Every member's probabilities (members, n, classes, ...), those of weight 0 left out, and their pool.

        Memory grows with the number of members. Errors as :meth:`predict`; regression has none.
        """
        if self.task == "regression":
            raise InputError("members' probabilities are those of classes; this ensemble is a regression")
        answers = Answers(self.task, self.ignore_index, True, self.convention)
        collect(answers, self._asked(device, "auto"), loader)
        prediction = answers.result(len(self._wanted()), self.space)
        assert isinstance(prediction, Prediction)
        return answers.members(), prediction

    def _asked(self, device: Device, path: Path) -> Asked:
        return Asked(self._runner, self._wanted(), self.shares, self.space, device or device_of(self._runner.template), path)

    def _wanted(self) -> list[int]:
        return list(range(len(self))) if self.shares is None else np.flatnonzero(self.shares).tolist()

    # -- weights ---------------------------------------------------------------------------------------------------

    def reduce(self, reducer: Reducer, field: str = "parameters") -> Any:
        """A reducer's result over the members' vectors, in their order and with their weights."""
        rows = self._runner.vectors[field]
        # of the store; they may be others than those asked for
        held = rows.weights if isinstance(rows, StoredSource) else None
        if self.shares is None and not isinstance(rows, BasisRows) and (held is None or np.ptp(held) == 0):
            if isinstance(reducer, JoinsInSpace) and int(np.prod(rows.shape[1:])) * rows.dtype.itemsize >= WIDE_ITEM:
                return reduce(rows, reducer, cut="space", limit=16 << 20)
            return reduce(rows, reducer)
        state = reducer.empty()
        for k in range(len(self)):
            state.update(np.asarray(rows[k])[None], k, None if self.shares is None else self.shares[k:k + 1])
        return state.result()

    def averaged_model(self, loader: Iterable[Any] | None = None, *,
                       average: Literal["swa", "ema", "lawa"] | Reducer = "swa",
                       barrier: Literal["refuse", "ignore"] = "refuse", tolerance: float = 0.02,
                       device: Device = None) -> torch.nn.Module:
        """One model with the average of the members' weights, in eval mode; its batch-norm statistics are made anew.

        Arguments:
            loader: training data. With labels it also serves to look for a loss barrier: the average of snapshots
                that lie in different valleys is worse than any of them.
            average: "swa", the mean; "ema", an exponential average that halves every second snapshot; "lawa", the
                mean of the last five; or any reducer of vectors, such as ``ek.Window(3)``.
            barrier: "refuse" an average beyond a barrier, or "ignore" it. Without labels nothing can be seen.
            tolerance: how much higher the average's loss may be than the members', as a share of the loss of knowing
                nothing (log of the number of classes; the variance of the targets).

        Raises InputError where the model has batch-norm layers and no loader is given (averaged weights do not fit
        anybody's old statistics), behind a barrier, and where a snapshot is not finite.
        """
        if barrier not in ("refuse", "ignore"):
            raise InputError(f'barrier is "refuse" or "ignore"; got {barrier!r}')
        one = copy.deepcopy(self._runner.template)
        vectors: dict[str, Any] = {}
        for name in self._runner.vectors:
            if name == "counters":
                vectors[name] = np.asarray(self._runner.vectors[name][len(self) - 1])
            else:
                vectors[name] = mean_of(self.reduce(reducer_of(average), name))
        if not np.isfinite(vectors["parameters"]).all():
            bad = [k for k in range(len(self)) if not np.isfinite(np.asarray(self.vectors["parameters"][k])).all()]
            raise InputError(f"the weights of snapshot {', '.join(map(str, bad))} are not finite; leave it out: members=")
        load_vectors(one, vectors, self._runner.manifest)
        loader = list(loader) if isinstance(loader, Iterator) else loader
        self._refresh(one, loader, device)
        if loader is not None and barrier == "refuse" and len(self) > 1:
            rise = self.loss_increase(one, loader, device)
            if rise is not None and rise.above(tolerance):
                raise InputError(f"the average of these {len(self)} snapshots lies behind a loss barrier: {rise}. They "
                                 "are in different valleys: pool their predictions, average fewer (members=, last=), or "
                                 'pass barrier="ignore"')
        return one.eval().requires_grad_(True)

    def barrier(self, loader: Iterable[Any], *, average: Average = "swa", device: Device = None) -> LossIncrease:
        """How much higher the loss of the averaged weights is than the mean of the members' losses (up to 2048 items).

        Raises InputError where the loader has no labels.
        """
        loader = list(loader) if isinstance(loader, Iterator) else loader
        averaged = self.averaged_model(loader, average=average, barrier="ignore", device=device)
        increase = self.loss_increase(averaged, loader, device)
        if increase is None:
            raise InputError("a loss needs labels: pass a loader of (input, label)")
        return increase

    def loss_increase(self, average: torch.nn.Module, loader: Iterable[Any], device: Device = None) -> LossIncrease | None:
        """The loss of a model above the members' (up to 2048 items); None where the loader has no labels."""
        with random_kept(self._runner.template):
            return rise_of(average, self._runner.each(self._wanted()), self.weights[self._wanted()], loader, self.task,
                           self.convention, device=device or device_of(self._runner.template), ignore_index=self.ignore_index)

    def _refresh(self, model: torch.nn.Module, loader: Iterable[Any] | None, device: Device) -> None:
        if has_batch_norm(model):
            if loader is None:
                raise InputError("the model has batch-norm layers: pass a loader of training data to refresh them")
            update_bn(loader, model, device or device_of(model), self.convention)

    def swag(self, rank: int = 20) -> Posterior:
        """SWAG's Gaussian about the mean of the snapshots: a diagonal and at most `rank` last deviations."""
        return self.reduce(SWAG(rank))

    def sample_swag(self, n: int, loader: Iterable[Any] | None = None, *, rank: int = 20, scale: float = 1.0, seed: int = 0,
                device: Device = None) -> Ensemble:
        """An ensemble of n models drawn from :meth:`swag`; batch-norm statistics of each are made anew.

        The draws are fixed: every batch sees the same members. Arguments as :meth:`averaged_model` and
        :meth:`Posterior.sample`.
        """
        posterior = self.swag(rank)
        loader = list(loader) if isinstance(loader, Iterator) else loader
        manifest = self._runner.manifest
        rows = posterior.sample(n, scale=scale, seed=seed).astype(manifest.dtype("parameters"))
        last = {name: np.asarray(v[len(self) - 1]) for name, v in self._runner.vectors.items() if name != "parameters"}
        return self.with_vectors(with_own_statistics(self._runner.template, manifest, rows, last,
                                                     lambda one: self._refresh(one, loader, device)), None)

    def with_vectors(self, vectors: Mapping[str, Any], weights: ArrayLike | None) -> Ensemble[P]:
        """Other members of the same model, read and pooled as these are; vectors and weights as the class takes them."""
        return Ensemble(self._runner.template, dict(vectors), manifest=self._runner.manifest, weights=weights, task=self.task,
                        space=self.space, ignore_index=self.ignore_index, forward=self.convention.forward,
                        target=self.convention.target, outputs=self.convention.outputs)
