"""Averages of weights as reducers, and as a model that is averaged while it trains.

SWA: Izmailov et al., UAI 2018. LAWA: Kaddour 2022. SWAG: Maddox et al., NeurIPS 2019. The averages themselves are
the core's: Moments, Exponential, Window.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from ensemblekit.averaging.exponential import Exponential
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.window import Window
from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Device
from ensemblekit.neural.parameters import Manifest, _real, load_vectors, pack
from ensemblekit.scaling import ldexp
from ensemblekit.source import Array, is_torch

HALF_LIFE, LENGTH = 2.0, 5
SWA = Moments
"""Equal weights: the core's mean and variance under the field's name."""
EMA = Exponential
"""``EMA(0.999)`` or ``EMA(half_life=...)``: the core's exponential average."""
LAWA = Window
"""``LAWA(5)``: the core's mean of the last k."""


Average = Literal["swa", "ema", "lawa"] | Reducer[Any]
"""How snapshots of weights are averaged."""


def reducer_of(average: Average) -> Reducer:
    """ "swa", "ema", "lawa", or a reducer as it is."""
    if isinstance(average, Reducer) and not isinstance(average, type):
        return average
    reducers: dict[str, Callable[[], Reducer]] = {
        "swa": Moments, "ema": lambda: Exponential(half_life=HALF_LIFE), "lawa": lambda: Window(LENGTH)}
    if average not in reducers:
        raise InputError(f'average is "swa", "ema", "lawa" or a reducer such as ek.Exponential(0.99); got {average!r}')
    return reducers[average]()


def _weight(moments: Moments) -> float:
    return ldexp(moments.weight, moments.weight_exponent)


@runtime_checkable
class _HasMean(Protocol):
    mean: Array


def mean_of(result: object) -> Array:
    """Of a reducer: an array, or a result with a mean."""
    return result.mean if isinstance(result, _HasMean) and not isinstance(result, np.ndarray) else result


class AveragedModel(torch.nn.Module):
    """A copy of a model that holds the average of its weights while it trains; in place of torch's class of this name.

    ``update_parameters(model)``, ``.module``, ``.n_averaged``, calls and ``state_dict`` are as there. What differs:

    - The average is kept in float64 whatever the type of the weights (pairs of float32 on devices without it); torch's
      is in the type of the weights, where steps of a bfloat16 run round to nothing.
    - With ``use_buffers=True`` whole-number buffers are those of the last model, not averaged.
    - ``module`` takes over the average when it is looked at, called or saved, not at every update.
    - NaN and infinity in the weights are refused by an InputError that names the tensor; the average stays.

    Arguments:
        model: as torch.
        device: where the average lives; None: where the model is.
        avg_fn: (averaged, current, n_averaged) -> averaged, torch's own protocol, called with float64 vectors.
        multi_avg_fn: (averaged list, current list, n_averaged) in place, torch's other protocol, with float64 vectors.
        use_buffers: average floating-point buffers too; False copies them from the last model.
        average: "swa", "ema", "lawa", or a reducer (``ek.Exponential(0.999, start="first")``, ``neural.SWAG(20)``),
            where no function is given.
    """

    n_averaged: torch.Tensor
    """How many models the average holds; a buffer, as in torch."""

    def __init__(self, model: torch.nn.Module, device: Device = None,
                 avg_fn: Callable[..., Any] | None = None, multi_avg_fn: Callable[..., Any] | None = None,
                 use_buffers: bool = False, *, average: Average = "swa"):
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise InputError("give one of avg_fn and multi_avg_fn")
        self._fresh, self._watched = True, False
        self.__dict__["_modules"]["module"] = copy.deepcopy(model)
        if device is not None:
            self._own.to(device)
        self.register_load_state_dict_post_hook(_loaded)
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long, device=device))
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers
        self.manifest = Manifest.of(model)
        self.device = device
        pattern = reducer_of(average)
        self.averaged: dict[str, Any] = {kind: pattern.empty() for kind in ("parameters", "buffers")}
        """Field -> reducer, or (avg_fn) the float64 vector itself."""
        self._watched = False

    @property
    def module(self) -> torch.nn.Module:
        """The model with the averaged weights."""
        module = self._modules["module"]
        assert module is not None
        return module

    @property
    def _modules(self) -> dict[str, torch.nn.Module | None]:
        """What everything of torch.nn.Module looks at. Whoever looked may keep what it saw: from then on the weights are
        in place after every update, as torch's are."""
        self._watched = True
        self._sync()
        return self.__dict__["_modules"]

    @_modules.setter
    def _modules(self, modules: dict[str, torch.nn.Module | None]) -> None:
        self.__dict__["_modules"] = modules

    @property
    def _own(self) -> torch.nn.Module:
        """The model as it is, the average not yet put into it."""
        return self.__dict__["_modules"]["module"]

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        """Take the model's weights as the next of those averaged; the model is left as it is."""
        theirs = self.manifest.tensors(model)
        averages = self.manifest.tensors(self._own)
        for kind in ("parameters", "buffers"):
            if not _finite(theirs[kind]):
                raise InputError(f"{_first_bad(model, self.manifest, kind)} is not finite; the average of "
                                 f"{int(self.n_averaged)} stays as it was")
        averaging = ("parameters", "buffers") if self.use_buffers else ("parameters",)
        for kind in theirs.keys() - set(averaging):
            for target, tensor in zip(averages[kind], theirs[kind], strict=True):
                target.copy_(tensor)
        where = next((p.device for p in averages["parameters"]), None)
        for kind in averaging:
            if theirs[kind]:
                self._take(kind, [_real(tensor.detach()).to(where) for tensor in theirs[kind]])
        self.n_averaged += 1
        self._fresh = False
        if self._watched:
            self._sync()

    def _take(self, kind: str, tensors: list[torch.Tensor]) -> None:
        """One more model's tensors of a kind into its average."""
        held = self.averaged[kind]
        if self.avg_fn is None and self.multi_avg_fn is None:
            if isinstance(held, Moments | Exponential) and tensors[0].device.type != "mps":
                held.add(tensors)
            else:
                held.update(_joined(tensors)[None], int(self.n_averaged))
            return
        x = _double(_joined(tensors))
        if int(self.n_averaged) == 0:
            self.averaged[kind] = x.clone()
        elif self.avg_fn is not None:
            self.averaged[kind] = self.avg_fn(held, x, self.n_averaged)
        elif self.multi_avg_fn is not None:
            self.multi_avg_fn([held], [x], self.n_averaged)

    def _sync(self) -> None:
        if self._fresh or int(self.n_averaged) == 0:
            return
        self._fresh = True
        vectors = {kind: self._mean(kind) for kind in (("parameters", "buffers") if self.use_buffers else ("parameters",))}
        load_vectors(self._own, {k: x for k, x in vectors.items() if x is not None}, self.manifest)

    def _mean(self, kind: str) -> Any:
        held = self.averaged[kind]
        if isinstance(held, torch.Tensor):
            return held
        if not getattr(self.manifest, kind):
            return None
        if isinstance(held, Moments):
            return held.mean
        result = held.result()
        return result if isinstance(result, torch.Tensor) else result.mean

    def result(self, kind: str = "parameters") -> Any:
        """What the reducer answers, in float64: a :class:`Posterior` for SWAG, moments for "swa"."""
        held = self.averaged[kind]
        return held if isinstance(held, torch.Tensor) else held.result()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._sync()
        return self._own(*args, **kwargs)

    def averaging_state(self) -> dict[str, Any]:
        """The average in full precision, beside the rounded weights."""
        held = {}
        for kind, x in self.averaged.items():
            state = {"vector": x} if isinstance(x, torch.Tensor) else x.state()
            held[kind] = {name: y.clone() if isinstance(y, torch.Tensor) else torch.as_tensor(np.asarray(y))
                          for name, y in state.items()}
        return held

    def load_averaging_state(self, state: Mapping[str, Any]) -> None:
        """The inverse; the reducer is that of this instance."""
        for kind, tensors in (state or {}).items():
            if "vector" in tensors:
                self.averaged[kind] = tensors["vector"].clone()
            else:
                big = {"sum1", "sum2", "first", "total", "values", "last", "means", "high", "low", "moments_sum1",
                       "moments_sum2"}
                self.averaged[kind] = self.averaged[kind].restored(
                    {name: x.clone() if name in big else x.cpu().numpy() for name, x in tensors.items()})
        self._fresh = False

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The names of torch's class and no others; the average in full precision travels in the state's metadata."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})["averaged"] = self.averaging_state()

    _carried: Any = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any],
                              *args: Any) -> None:
        """From a state of this class (exact), or of torch's: the average goes on from its rounded weights."""
        before = state_dict.pop(f"{prefix}_extra_state", None)      # as states of this class were once
        self._carried = local_metadata.get("averaged") or before
        self._fresh = True          # what is loaded is not to be written over by what was averaged before
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _took(self) -> None:
        """All is loaded: the reducers are those of the state."""
        carried, self._carried = self._carried, None
        n = int(self.n_averaged)
        if carried:
            self.load_averaging_state(carried)
        elif n:
            vectors = pack(self._own, self.manifest)
            for kind in ("parameters", "buffers") if self.use_buffers else ("parameters",):
                if kind in vectors:
                    self.averaged[kind] = self._begun(self.averaged[kind], vectors[kind], n)
            self._fresh = False
        else:
            for kind, held in self.averaged.items():
                if not isinstance(held, torch.Tensor):
                    self.averaged[kind] = held.empty()
        if self._watched:
            self._sync()

    def _begun(self, held: Reducer[Any], vector: torch.Tensor, n: int) -> Any:
        if self.avg_fn is not None or self.multi_avg_fn is not None:
            return _double(vector)
        new = held.empty()
        if isinstance(new, Moments):
            new.update(vector[None], 0, np.array([float(n)]))
            new.n = n
            return new
        if isinstance(new, Exponential):
            new.update(vector[None], 0)
            return new
        raise InputError(f"a state of torch's AveragedModel holds no more than a mean, which {type(held).__name__} cannot "
                         'go on from; use average="swa" or "ema"')


def _loaded(module: AveragedModel, incompatible: Any) -> None:
    module._took()


def averaged(models: Iterable[torch.nn.Module], average: Literal["swa", "ema", "lawa"] | Reducer = "swa") -> torch.nn.Module:
    """One model with the average of the weights of several of one architecture; batch-norm statistics are the last one's.

    Raises InputError where there is none, and naming the tensors that differ.
    """
    total: AveragedModel | None = None
    for model in models:
        if total is None:
            total = AveragedModel(model, average=average)
        else:
            total.manifest.check(model)
        total.update_parameters(model)
    if total is None:
        raise InputError("no models came: an average needs at least one")
    return total.module


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.clone() if x.device.type == "mps" else x.double()


def _numpy(x: Array) -> np.ndarray:
    return x.detach().cpu().numpy() if is_torch(x) else np.asarray(x)


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return torch.cat([x.reshape(-1).to(dtype) for x in tensors])


def _finite(tensors: list[torch.Tensor]) -> bool:
    """By their sums, one wait for the device; number by number only where a sum is not finite."""
    sums: dict[Any, list[torch.Tensor]] = {}
    for x in tensors:
        sums.setdefault((x.device, x.dtype), []).append(_real(x.detach()).sum())
    return all(bool(torch.stack(group).isfinite().all()) for group in sums.values()) or (
        all(bool(torch.isfinite(x).all()) for x in tensors))


def _first_bad(model: torch.nn.Module, manifest: Manifest, kind: str) -> str:
    for entry, tensor in zip(getattr(manifest, kind), manifest.tensors(model)[kind], strict=True):
        if not torch.isfinite(tensor).all():
            return entry.name
    return kind
