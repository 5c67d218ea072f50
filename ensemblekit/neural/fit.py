"""A training loop for those who want one: cycles, snapshots, validation, resume."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.optim import Optimizer

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Convention, Device, Forward
from ensemblekit.neural.history import History, history, snapshots_said
from ensemblekit.neural.parameters import Select
from ensemblekit.neural.plan import Deadline
from ensemblekit.neural.recorder import Recorder
from ensemblekit.neural.resume import length_of
from ensemblekit.neural.schedule import CycleLR, CyclicCosineLR, Mode
from ensemblekit.neural.training import Loss, TrainingLoop
from ensemblekit.results import Result


@dataclass(frozen=True, slots=True, eq=False)
class Fit(Result):
    """How a training went. The snapshots are in the store: ``neural.Ensemble.from_store(fit.store, model)``."""

    store: str
    snapshot_steps: tuple[int, ...]
    """Optimizer steps, counted from 1, after which snapshots were taken, those before a resume included."""
    history: History
    seconds: float
    """Wall time of this call."""
    resumed: bool
    """Whether it went on where a killed run stood."""
    finished_early: bool
    """Whether max_seconds cut it short (at a minimum of the rate)."""

    def __repr__(self) -> str:
        said = [f"{snapshots_said(self.snapshot_steps)} in {self.store}"]
        known = self.history.loss[np.isfinite(self.history.loss)]
        if len(known):
            said.append(f"last loss {known[-1]:.4g}")
        said.append(f"{self.seconds:.3g} s")
        said += ["resumed"] * self.resumed + ["cut short by max_seconds"] * self.finished_early
        return f"Fit({'; '.join(said)})"


def fit(model: torch.nn.Module, optimizer: Optimizer | Callable[[Any], Optimizer], loader: Iterable[Any],
        loss: Loss, *, n_cycles: int, n_epochs: int, store: str | os.PathLike[str], resume: bool = True,
        mode: Mode = "balanced", scheduler: CycleLR | Callable[[Optimizer, int], CycleLR] | None = None,
        val_loader: Iterable[Any] | None = None, device: Device = None, amp: bool | Literal["bf16", "fp16"] = False,
        channels_last: bool = False, compile: bool | str = False, clip: float | None = None,
        accumulate: int = 1, forward: Forward | None = None, progress: bool = True,
        log: Callable[[dict[str, float]], object] | None = None, max_seconds: float | None = None,
        parameters: Select = "all", save_every: int | None = None, extra_state: Mapping[str, Any] | None = None,
        steps_per_epoch: int | None = None, target: Callable[[Any], Any] | None = None) -> Fit:
    """Train with a cyclic rate and take a snapshot at the end of every cycle.

    Arguments:
        model: trained in place; holds the last weights afterwards.
        optimizer: any of torch's, made for the model's parameters; or a function of them that makes one
            (``functools.partial(torch.optim.SGD, lr=0.1)``).
        loader: batches (input, target), or anything that `forward` takes.
        loss: (output, target) -> mean loss of the batch; (output, batch) where batches are mappings and no `target` is given.
        n_cycles, n_epochs: snapshots, and passes over the loader.
        store: path; the same call again goes on where a killed one stood (`resume`), and does nothing where it ended.
            Another model or configuration there is an error that names the difference.
        mode, scheduler: of the cycles, see :class:`CyclicCosineLR`; or a schedule of your own, or a function of
            (optimizer, total_steps) that makes one.
        val_loader: batches scored after every epoch: "val_loss", and "val_accuracy" where targets are labels.
        device: where to train; batches are moved there. By default where the model is.
        amp: True or "bf16": autocast to bfloat16; "fp16": to float16 with a GradScaler.
        channels_last: memory layout of 4-D weights and inputs; quicker on tensor cores.
        compile: torch.compile the model; a text is its `mode`.
        clip: largest norm of the gradient, over all parameters.
        accumulate: batches an optimizer step; their mean gradient counts. What is left at the end of an epoch makes a
            step of its own.
        forward: (model, batch) -> output; by default model(input).
        target: batch -> what `loss` compares with, for batches of more than two items or mappings; the items before it, or the
            others of a mapping, are the model's arguments then. ``target=lambda batch: batch[1]`` for (x, y, sample_weight).
        progress: a bar, where standard error is a terminal.
        log: called after every epoch with its scores: "epoch", "step", "loss", "lr", those of validation.
        max_seconds: the rate comes down early so that the last snapshot is at its minimum within this time.
        parameters, save_every, also: see :class:`Recorder`.
        steps_per_epoch: batches an epoch, for loaders without len().

    Raises InputError for what does not fit (an empty loader, batches in which the target cannot be told, more cycles than
    steps, another run in the store) and where the loss or the weights are not finite; snapshots taken before stay.
    """
    began = time.perf_counter()
    _check_settings(loss, n_epochs, accumulate, clip, amp, val_loader)
    batches = _batches_of(loader, steps_per_epoch)
    where = _moved_to(model, device, channels_last)
    optimizer = _optimizer(optimizer, model)
    schedule = _schedule(scheduler, optimizer, math.ceil(batches / accumulate) * n_epochs, n_cycles, mode)
    half, scaler = _precision(amp, where)
    configuration = {"n_epochs": n_epochs, "batches": batches, "batch_size": getattr(loader, "batch_size", None),
                     "amp": str(half), "clip": clip, "accumulate": accumulate, "loss": _name_of(loss)}
    training = TrainingLoop(model, optimizer, schedule, loss, where, Convention(forward, target), batches, accumulate, clip,
                            half, scaler, _compiled(model, compile), channels_last)
    with Recorder(store, model, optimizer, schedule, scaler, parameters, resume=resume, save_every=save_every,
                  extra_state=extra_state, configuration=configuration) as rec:
        deadline = _deadline(max_seconds, schedule, rec.resumed)
        with _bar(progress and rec.is_writer, schedule, rec) as advance:
            _train(training, rec, n_epochs, loader, val_loader, log=log, advance=advance, deadline=deadline)
    return Fit(rec.path, tuple(rec.snapshot_steps), history(rec.path), time.perf_counter() - began, rec.resumed,
               deadline is not None and deadline.finished_early)


def _precision(amp: bool | Literal["bf16", "fp16"],
               where: torch.device) -> tuple[torch.dtype | None, torch.amp.GradScaler | None]:
    """What autocast casts to, and the scaler that float16 needs."""
    half = {False: None, True: torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return half, torch.amp.GradScaler(where.type) if amp == "fp16" else None


def _compiled(model: torch.nn.Module, how: bool | str) -> Callable[..., Any]:
    """The model as it is called."""
    return torch.compile(model, mode=None if how is True else how) if how else model


def _deadline(max_seconds: float | None, schedule: CycleLR, resumed: bool) -> Deadline | None:
    """When the rate is to be at a minimum at the latest; None where nobody asked."""
    if max_seconds is None:
        return None
    deadline = Deadline(schedule, max_seconds)
    if resumed:
        deadline.finished_early = schedule.finishes_early
    return deadline


def _train(training: TrainingLoop, rec: Recorder, n_epochs: int, loader: Iterable[Any],
           val_loader: Iterable[Any] | None, *, log: Callable[[dict[str, float]], object] | None,
           advance: Callable[[float], None], deadline: Deadline | None) -> None:
    """The epochs that are left, each with its scores in the record, and told to `log`."""
    for epoch in rec.epochs(n_epochs):
        scores, stop = training.epoch(loader, rec, advance, deadline)
        if val_loader is not None:
            scores |= training.validate(val_loader)
        rec.log(**scores)
        if log is not None:
            log({"epoch": epoch, "step": rec.updates, "lr": training.schedule.rates[0], **scores})
        if stop:
            rec.stop()
            return


def _check_settings(loss: object, n_epochs: object, accumulate: object, clip: float | None, amp: object,
                    val_loader: Iterable[Any] | None) -> None:
    """Raise InputError for settings that do not fit, before anything is touched."""
    if not callable(loss):
        raise InputError(f"loss is a function of (output, target); got {type(loss).__name__}")
    for name, value in (("n_epochs", n_epochs), ("accumulate", accumulate)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is a whole number above 0; got {value!r}")
    if clip is not None and not clip > 0:
        raise InputError(f"clip is a norm above 0; got {clip!r}")
    if amp not in (False, True, "bf16", "fp16"):
        raise InputError(f'amp is False, True or "bf16", or "fp16"; got {amp!r}')
    if val_loader is not None and length_of(val_loader) == 0:
        raise InputError("the validation loader is empty; pass none to train without scores")


def _moved_to(model: torch.nn.Module, device: Device, channels_last: bool) -> torch.device:
    """Where the model is, now that it was moved to where it trains."""
    first = next(model.parameters(), None)
    if first is None:
        raise InputError("the model has no parameters to train")
    where = torch.device(device) if device is not None else first.device
    model.to(where)
    if channels_last:
        model.to(memory_format=torch.channels_last)     # type: ignore[call-overload]
    return where


def _optimizer(given: object, model: torch.nn.Module) -> Optimizer:
    """The optimizer, or what a function of the parameters makes."""
    if isinstance(given, Optimizer):
        return given
    if not callable(given):
        raise InputError(f"optimizer is one of torch.optim, or makes one of parameters; got {type(given).__name__}")
    optimizer: Optimizer = given(model.parameters())
    return optimizer


def _batches_of(loader: Iterable[Any], given: int | None) -> int:
    batches = length_of(loader) if given is None else given
    if batches is None:
        raise InputError("this loader has no len(): pass steps_per_epoch, as the schedule needs the number of steps")
    if batches < 1:
        raise InputError("the loader is empty: there is nothing to train on")
    return batches


def _schedule(scheduler: CycleLR | Callable[[Optimizer, int], CycleLR] | None, optimizer: Optimizer, total: int,
              n_cycles: int, mode: Mode) -> CycleLR:
    if scheduler is None:
        return CyclicCosineLR(optimizer, total_steps=total, n_cycles=n_cycles, mode=mode)
    schedule: object = scheduler if isinstance(scheduler, CycleLR) else scheduler(optimizer, total)
    if not isinstance(schedule, CycleLR):
        raise InputError(f"scheduler is one of ensemblekit.neural, or makes one; got {type(schedule).__name__}")
    if schedule.total_steps != total or schedule.n_snapshots != n_cycles:
        raise InputError(f"this training has {total} steps and {n_cycles} cycles; the schedule has {schedule.total_steps} "
                         f"and {schedule.n_snapshots}")
    return schedule


@contextlib.contextmanager
def _bar(wanted: bool, schedule: CycleLR, rec: Recorder) -> Iterator[Callable[[float], None]]:
    from tqdm.auto import tqdm

    with tqdm(total=schedule.total_steps, initial=rec.updates, unit="step", disable=None if wanted else True) as bar:
        def advance(loss: float) -> None:
            bar.total = schedule.total_steps
            bar.set_postfix(loss=f"{loss:.3g}", lr=f"{schedule.rates[0]:.2g}", snapshots=len(rec.snapshot_steps), refresh=False)
            bar.update(rec.updates - bar.n)

        yield advance


def _name_of(loss: object) -> str:
    return getattr(loss, "__name__", type(loss).__name__)
