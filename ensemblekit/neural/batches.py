"""What a loader gives, in the few shapes that training code uses, and models put back as they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from ensemblekit.errors import InputError
from ensemblekit.neural.tensors import tensor_of

Forward = Callable[[Any, Any], Any]
"""(model, batch) -> outputs; the model may be a compiled one."""
Outputs = Literal["logits", "probabilities"]
Output = torch.Tensor | tuple[torch.Tensor, ...]
"""Of a model: logits, or (mean, variance)."""
Device = str | int | torch.device | None

LABELS = ("labels", "label", "target", "targets", "y")
"""Keys under which a mapping of a batch holds what is to be predicted."""
AT_ONCE = 1024
"""Items of a tensor that go through a model together."""


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, of a tensor of inputs, or of a tuple of tensors (inputs, ..., target).

    A list is a loader of batches, a tuple is one batch; tensors are cut into pieces of ``AT_ONCE`` items.
    """
    if isinstance(loader, np.ndarray):
        loader = tensor_of(loader, "the array of inputs")
    if isinstance(loader, torch.Tensor):
        yield from loader.split(AT_ONCE)
    elif isinstance(loader, tuple) and loader and all(isinstance(x, torch.Tensor | np.ndarray) for x in loader):
        tensors = [tensor_of(x, f"item {k} of the tuple") for k, x in enumerate(loader)]
        if len({len(x) for x in tensors}) != 1:
            raise InputError(f"inputs and labels are of one length; got {[len(x) for x in tensors]}")
        yield from zip(*(x.split(AT_ONCE) for x in tensors), strict=True)
    elif isinstance(loader, Mapping) or not isinstance(loader, Iterable):
        raise InputError(f"a loader of batches, a tensor of inputs or a tuple (inputs, labels) is needed; got {type(loader)}. "
                         "Put a single mapping into a list")
    else:
        yield from loader


def moved(batch: object, device: Device, channels_last: bool = False) -> Any:
    """The batch with every tensor on the device, tuples with names as they are; None leaves it.

    `channels_last`: tensors of four axes in that memory layout.
    """
    if device is None:
        return batch
    if isinstance(batch, torch.Tensor):
        layout = torch.channels_last if channels_last and batch.ndim == 4 else torch.preserve_format
        return batch.to(device, non_blocking=True, memory_format=layout)
    if isinstance(batch, Mapping):
        return {name: moved(x, device, channels_last) for name, x in batch.items()}
    if isinstance(batch, PackedSequence):
        return batch.to(torch.device(device))     # type: ignore[arg-type]  # its annotation knows dtypes only
    if isinstance(batch, list | tuple):
        parts = [moved(x, device, channels_last) for x in batch]
        return type(batch)(*parts) if names_of_items(batch) else type(batch)(parts)
    return batch


@dataclass(frozen=True, slots=True)
class Convention:
    """How a program's batches and outputs are read: the one place that knows."""

    forward: Forward | None = None
    """(model, batch) -> outputs; None: the items before the target are the arguments."""
    target: Callable[[Any], Any] | None = None
    """batch -> labels; None: see :func:`target_of`."""
    outputs: Outputs | None = None
    """What classes are given as: "logits", "probabilities"; None: logits, refused where they look like probabilities."""
    task: str | None = None
    """What the outputs are for; None: not told."""

    def __post_init__(self) -> None:
        if self.outputs not in (None, "logits", "probabilities"):
            raise InputError(f'outputs is "logits" or "probabilities"; got {self.outputs!r}')
        for name in ("forward", "target"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise InputError(f"{name} is a function; got {getattr(self, name)!r}")

    def target_of(self, batch: object, task: str = "regression") -> torch.Tensor | None:
        """The labels of a batch; None where it has none. Raises InputError where which item they are cannot be told."""
        labels = _item(batch) if self.target is None else self.target(batch)
        if labels is None:
            return None
        try:
            labels = tensor_of(labels, "the labels") if isinstance(labels, np.ndarray) else torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"labels are a tensor; got {type(labels).__name__}. {PICK}") from error
        items = _items(batch)
        if self.target is None and task != "regression" and items is not None and len(items) > 2:
            if labels.is_floating_point():
                raise InputError(f"the last of {len(items)} items of a batch holds fractions ({labels.dtype}), and labels are "
                                 f"whole numbers: are they sample weights? {PICK}")
            rivals = [x for x in items[1:-1] if isinstance(x, torch.Tensor) and x.shape == labels.shape
                      and not x.is_floating_point()]
            if self.forward is not None and rivals:
                raise InputError(f"which of the {len(items)} items of a batch is the label cannot be told: several hold "
                                 f"whole numbers of shape {tuple(labels.shape)}. {PICK}")
        return labels

    def outputs_of(self, model: Callable[..., Any], batch: object) -> Any:
        """What a model says about a batch: a tensor, or a tuple (mean, variance)."""
        if self.forward is not None:
            return plain_outputs(self.forward(model, batch), self.task)
        arguments, named = self.arguments_of(batch)
        try:
            return plain_outputs(model(*arguments, **named), self.task)
        except TypeError as error:
            said = str(error)
            if "positional argument" in said or "keyword argument" in said:
                raise InputError(f"the model does not take what a batch holds ({said}). Pass target=lambda batch: ... that "
                                 "picks the labels, or forward=lambda model, batch: ... that calls the model") from error
            raise

    def arguments_of(self, batch: object) -> tuple[list[Any], dict[str, Any]]:
        """What of a batch the model is called with: items before the labels, or a mapping's without them."""
        chosen = None if self.target is None else self.target(batch)
        if isinstance(batch, Mapping):
            return [], {name: x for name, x in batch.items() if name not in LABELS and (chosen is None or x is not chosen)}
        items = _items(batch)
        if items is None:
            return [batch], {}
        if len(items) == 1:
            return items, {}
        at = next((k for k, x in enumerate(items) if k and x is chosen), None) if chosen is not None else None
        if at is None:
            at = next((k for k, name in enumerate(names_of_items(batch)) if k and name in LABELS), None)
        return items[:-1] if at is None else items[:at], {}


PICK = "Pass target=lambda batch: ... that picks the labels, such as target=lambda batch: batch[1]"


def names_of_items(batch: object) -> tuple[str, ...]:
    """Of a tuple with names (NamedTuple) its names; none of anything else."""
    return getattr(batch, "_fields", ())


def samplers_of(loader: object) -> list[object]:
    """A loader of torch, or one like it, and all that decides what it gives: samplers and data set; None where it has none."""
    batches = getattr(loader, "batch_sampler", None)
    return [loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None),
            getattr(loader, "dataset", None)]


def _items(batch: object) -> list[Any] | None:
    """Of a tuple or list; None for what is one thing."""
    return list(batch) if isinstance(batch, list | tuple) and not isinstance(batch, PackedSequence) else None


def _item(batch: object) -> Any:
    """A mapping's labels, those of a tuple with names, or the last of two items or more; None where there is none."""
    if isinstance(batch, Mapping):
        return next((batch[name] for name in LABELS if batch.get(name) is not None), None)
    items = _items(batch)
    if items is None or len(items) < 2:
        return None
    named = {name: getattr(batch, name) for name in names_of_items(batch) if name in LABELS}
    return next(iter(named.values()), items[-1])


def plain_outputs(outputs: object, task: str | None = None) -> Any:
    """``.logits`` where there are some, (mean, variance) of a distribution of numbers; else as it is."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, torch.distributions.Distribution):
        return _of_distribution(outputs, task)
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if logits is not None:
        return logits
    if isinstance(outputs, Mapping):
        what = "a tensor, or a tuple (mean, variance), out" if task == "regression" else "the logits"
        raise InputError(f"outputs are a mapping with {', '.join(map(str, list(outputs)[:6]))}: pass forward=lambda model, "
                         f"batch: ... that picks {what} of it, model(batch[0])[...]")
    return outputs


def _of_distribution(distribution: torch.distributions.Distribution, task: str | None) -> Any:
    """Logits of a distribution over classes, (mean, variance) of one over numbers.

    Raises InputError where the task is another one, and where a distribution has neither; warns of those that are no normal
    distributions, as which they count from there on.
    """
    one: Any = distribution
    while isinstance(one, torch.distributions.Independent):
        one = one.base_dist
    name = type(one).__name__
    if name in ("Categorical", "OneHotCategorical", "OneHotCategoricalStraightThrough", "Bernoulli"):
        if task == "regression":
            raise InputError(f"the model answers with a {name}, a distribution over classes: task=\"classification\", or "
                             "\"binary\" for one yes or no an item")
        return one.logits
    if task not in (None, "regression"):
        raise InputError(f"the model answers with a {name}, a distribution of numbers: task=\"regression\", or pass "
                         "forward=lambda model, batch: ... that gives logits")
    try:
        mean, variance = distribution.mean, distribution.variance
    except (NotImplementedError, AttributeError) as error:
        raise InputError(f"the model answers with a {name}, of which torch knows no mean and variance: pass forward=lambda "
                         "model, batch: ... that gives (mean, variance)") from error
    if name not in ("Normal", "MultivariateNormal", "LowRankMultivariateNormal"):
        warnings.warn(f"the model answers with a {name}, of which the mean and the variance are taken: its nll and coverage "
                      "are those of a normal distribution with them, and not of its own log_prob", stacklevel=2)
    return mean, variance


def check_labels(target: torch.Tensor, shape: tuple[int, ...], task: str, ignore_index: int | None = None) -> None:
    """Raise InputError where targets do not fit outputs of a shape (n, classes, ...), for regression (n, ...)."""
    wanted = shape if task == "regression" else shape[:1] + shape[2:]
    if tuple(target.shape) != wanted:
        hint = ""
        if task != "regression" and tuple(target.shape) == shape:
            hint = _hint_of_rows(target)
        elif task != "regression" and tuple(target.shape) == (*shape[:1], 1, *shape[2:]):
            hint = ". An axis of one: target=lambda batch: batch[1].squeeze(1)"
        raise InputError(f"targets of these outputs have shape {wanted}; got {tuple(target.shape)}{hint}")
    if task == "regression" or not target.numel():
        return
    if target.is_floating_point() and (task != "binary" or not (target == target.round()).all()):
        raise InputError(f"labels are whole numbers, the index of the class; got fractions ({target.dtype}). If the label is "
                         "another item of the batch, or of another type: target=lambda batch: batch[1].long()")
    kept = target if ignore_index is None else target[target != ignore_index]
    if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= shape[1]):
        raise InputError(f"labels are whole numbers 0 to {shape[1] - 1}; got {int(kept.min())} to {int(kept.max())}. "
                         "A label that marks what is not to be scored: ignore_index=")


def _hint_of_rows(target: torch.Tensor) -> str:
    """What labels of the shape of the outputs (n, classes, ...) are, and what to do."""
    rows = target.double()
    if bool(((rows == 0) | (rows == 1)).all()):
        if bool((rows.sum(1) == 1).all()):
            return ". One-hot labels: target=lambda batch: batch[1].argmax(1)"
        return ". Several classes of an item may be right (multi-label): " + ONE_BY_ONE
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        return ". Soft labels are not scored; the likeliest class: target=lambda batch: batch[1].argmax(1)"
    return ". Numbers to be met: task=\"regression\""


ONE_BY_ONE = ("each is a question of its own, task=\"binary\" with forward=lambda model, batch: model(batch[0])[:, k] and "
              "target=lambda batch: batch[1][:, k]")


class Singles:
    """Outputs of one number an item, batch after batch: whether all of them lie in [0, 1], as what a sigmoid gives.

    Fewer than eight may do so by chance, and are not taken for probabilities.
    """

    def __init__(self, outputs: Outputs | None):
        self.asked = outputs is None
        self.n, self.inside = 0, True

    def see(self, outputs: Any) -> None:
        if self.asked and self.inside and isinstance(outputs, torch.Tensor):
            self.n += outputs.numel()
            self.inside = bool(((outputs >= 0) & (outputs <= 1)).all())

    def merge(self, other: Singles) -> None:
        """Those that another process saw."""
        self.n += other.n
        self.inside = self.inside and other.inside

    def check(self) -> None:
        """Raises InputError where all were probabilities."""
        if self.asked and self.inside and self.n >= FEW:
            raise InputError(PROBABILITIES.format("all lie between 0 and 1"))


def looks_like_probabilities(outputs: torch.Tensor, axis: int = 1) -> bool:
    """Whether every row is not below 0 and 1 in sum, to the rounding of its type."""
    if not outputs.numel() or bool((outputs < 0).any()):
        return False
    rounding = 2e-2 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool(((outputs.double().sum(axis) - 1).abs() <= rounding).all())


FEW = 8
PROBABILITIES = ('outputs are logits, and these are probabilities already ({}): a model that ends in softmax or sigmoid. Pass '
                 'outputs="probabilities"; if they are logits all the same: outputs="logits"')


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Every module trains or not, afterwards, as it did before; one by one, for some may be frozen."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def random_kept(model: torch.nn.Module) -> Iterator[None]:
    """The random generators of the CPU and of the model's GPUs are left as they were."""
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        yield


def device_of(model: torch.nn.Module) -> torch.device | None:
    """Where the model's first parameter or buffer lives; None for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None
