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

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import PICK, Convention, moved
from ensemblekit.neural.history import History, history, snapshots_said
from ensemblekit.neural.plan import Deadline
from ensemblekit.neural.recorder import Recorder
from ensemblekit.neural.resume import length_of
from ensemblekit.neural.schedule import CycleLR, CyclicCosineLR, Mode

Loss = Callable[[Any, Any], torch.Tensor]
Forward = Callable[[torch.nn.Module, Any], Any]
LOOK = 50               # optimizer steps between two looks at the loss, each of which waits for the device


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """How a training went. The snapshots are in the store: ``neural.Ensemble.from_store(fit.store, model)``."""

    store: str
    captured: tuple[int, ...]
    """Optimizer steps, counted from 1, after which snapshots were taken, those before a resume included."""
    history: History
    seconds: float
    """Wall time of this call."""
    resumed: bool
    """Whether it went on where a killed run stood."""
    finished_early: bool
    """Whether max_seconds cut it short (at a minimum of the rate)."""

    def __repr__(self) -> str:
        said = [f"{snapshots_said(self.captured)} in {self.store}"]
        known = self.history.loss[np.isfinite(self.history.loss)]
        if len(known):
            said.append(f"last loss {known[-1]:.4g}")
        said.append(f"{self.seconds:.3g} s")
        said += ["resumed"] * self.resumed + ["cut short by max_seconds"] * self.finished_early
        return f"Fit({'; '.join(said)})"


def fit(model: torch.nn.Module, optimizer: Any, loader: Iterable[Any], loss: Loss, *, n_cycles: int, n_epochs: int,
        store: str | os.PathLike[str], resume: bool = True, mode: Mode = "balanced",
        scheduler: CycleLR | Callable[[Any, int], CycleLR] | None = None, val_loader: Iterable[Any] | None = None,
        device: Any = None, amp: bool | Literal["bf16", "fp16"] = False, channels_last: bool = False,
        compile: bool | str = False, clip: float | None = None, accumulate: int = 1, forward: Forward | None = None,
        progress: bool = True, log: Callable[[dict[str, float]], object] | None = None, max_seconds: float | None = None,
        parameters: Any = "all", save_every: int | None = None, also: Mapping[str, Any] | None = None,
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
    if not callable(loss):
        raise InputError(f"loss is a function of (output, target); got {type(loss).__name__}")
    for name, value in (("n_epochs", n_epochs), ("accumulate", accumulate)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is a whole number above 0; got {value!r}")
    if clip is not None and not clip > 0:
        raise InputError(f"clip is a norm above 0; got {clip!r}")
    if amp not in (False, True, "bf16", "fp16"):
        raise InputError(f'amp is False, True or "bf16", or "fp16"; got {amp!r}')
    batches = _batches_of(loader, steps_per_epoch)
    if val_loader is not None and length_of(val_loader) == 0:
        raise InputError("the validation loader is empty; pass none to train without scores")
    own = next(model.parameters(), None)
    if own is None:
        raise InputError("the model has no parameters to train")
    where = torch.device(device) if device is not None else own.device
    model.to(where)
    if channels_last:
        model.to(memory_format=torch.channels_last)     # type: ignore[call-overload]
    if not isinstance(optimizer, torch.optim.Optimizer):
        if not callable(optimizer):
            raise InputError(f"optimizer is one of torch.optim, or makes one of parameters; got {type(optimizer).__name__}")
        optimizer = optimizer(model.parameters())
    total = math.ceil(batches / accumulate) * n_epochs
    schedule = _schedule(scheduler, optimizer, total, n_cycles, mode)
    half = {False: None, True: torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    scaler = torch.amp.GradScaler(where.type) if amp == "fp16" else None
    configuration = {"n_epochs": n_epochs, "batches": batches, "batch_size": getattr(loader, "batch_size", None),
                     "amp": str(half), "clip": clip, "accumulate": accumulate, "loss": _name_of(loss)}
    run = torch.compile(model, mode=None if compile is True else compile) if compile else model
    convention = Convention(forward, target)

    def output_of(batch: Any) -> Any:
        with torch.autocast(where.type, half) if half is not None else contextlib.nullcontext():
            if forward is not None:
                return forward(run, batch)      # type: ignore[arg-type]
            if target is None:
                return run(_input_of(batch))
            arguments, named = convention.arguments_of(batch)
            return run(*arguments, **named)

    def target_of(batch: Any) -> Any:
        return _target_of(batch) if target is None else target(batch)

    def on_device(batch: Any) -> Any:
        return moved(batch, where, channels_last)

    with Recorder(store, model, optimizer, schedule, scaler, parameters, resume=resume, save_every=save_every, also=also,
                  configuration=configuration) as rec:
        deadline = None if max_seconds is None else Deadline(schedule, max_seconds)
        if deadline is not None and rec.resumed and schedule._finish is not None:
            deadline.finished_early = True
        with _bar(progress and rec._rank == 0, schedule, rec) as advance:
            for epoch in rec.epochs(n_epochs):
                model.train()
                seen, total_loss, stop = 0, torch.zeros((), dtype=torch.float64), False
                recent: list[torch.Tensor] = []
                for index, batch in enumerate(rec.batches(loader), rec.batches_done):
                    batch = on_device(batch)
                    size = min(accumulate, batches - index // accumulate * accumulate)
                    found = _scored(loss, output_of(batch), target_of(batch))
                    (found / size if scaler is None else scaler.scale(found / size)).backward()
                    recent.append(found.detach())
                    if (index + 1) % accumulate and index + 1 < batches:
                        continue
                    _update(optimizer, scaler, clip, model)
                    rec.step(torch.stack(recent[-size:]).mean() if size > 1 else recent[-1])
                    if rec.updates % LOOK == 0 or index + 1 >= batches:
                        seen, total_loss = _gather(recent, seen, total_loss, rec, scaler)
                        advance(float(total_loss) / max(seen, 1))
                    schedule.step()
                    if deadline is not None and deadline.reached():
                        stop = True
                        break
                seen, total_loss = _gather(recent, seen, total_loss, rec, scaler)
                scores = {"loss": float(total_loss) / seen} if seen else {}
                if val_loader is not None:
                    scores |= _validate(model, val_loader, loss, output_of, target_of, on_device)
                rec.log(**scores)
                if log is not None:
                    log({"epoch": epoch, "step": rec.updates, "lr": schedule.rates[0], **scores})
                if stop:
                    rec.stop()
                    break
    early = deadline is not None and deadline.finished_early
    return Fit(rec.path, tuple(rec.captured), history(rec.path), time.perf_counter() - began, rec.resumed, early)


def _batches_of(loader: Any, given: int | None) -> int:
    batches = length_of(loader) if given is None else given
    if batches is None:
        raise InputError("this loader has no len(): pass steps_per_epoch, as the schedule needs the number of steps")
    if batches < 1:
        raise InputError("the loader is empty: there is nothing to train on")
    return batches


def _schedule(scheduler: Any, optimizer: Any, total: int, n_cycles: int, mode: Mode) -> CycleLR:
    if scheduler is None:
        return CyclicCosineLR(optimizer, total_steps=total, n_cycles=n_cycles, mode=mode)
    made = scheduler if isinstance(scheduler, CycleLR) else scheduler(optimizer, total)
    if not isinstance(made, CycleLR):
        raise InputError(f"scheduler is one of ensemblekit.neural, or makes one; got {type(made).__name__}")
    if made.total_steps != total or made.n_snapshots != n_cycles:
        raise InputError(f"this training has {total} steps and {n_cycles} cycles; the schedule has {made.total_steps} and "
                         f"{made.n_snapshots}")
    return made


def _update(optimizer: Any, scaler: Any, clip: float | None, model: torch.nn.Module) -> None:
    if scaler is not None:
        if clip is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
    else:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _gather(recent: list[torch.Tensor], seen: int, total: torch.Tensor, rec: Recorder,
            scaler: Any) -> tuple[int, torch.Tensor]:
    """Add the losses since the last look to those of the epoch; one wait for the device."""
    if not recent:
        return seen, total
    losses = torch.stack([one.reshape(()) for one in recent]).double().cpu()
    recent.clear()
    finite = torch.isfinite(losses)
    if scaler is None and not bool(finite[-1]):
        raise InputError(f"the loss is {float(losses[-1])} at step {rec.updates}: training was stopped; the "
                         f"{len(rec.captured)} snapshots before it stay. Lower the rate, or clip gradients (clip=1.0)")
    return seen + int(finite.sum()), total + losses[finite].sum()


@torch.no_grad()
def _validate(model: torch.nn.Module, loader: Iterable[Any], loss: Loss, output_of: Callable[[Any], Any],
              target_of: Callable[[Any], Any], on_device: Callable[[Any], Any]) -> dict[str, float]:
    """Mean loss over items, and the share of right first choices where targets are labels; the model's modes are
    put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    total, right, n, labelled = 0.0, 0, 0, True
    try:
        for batch in loader:
            batch = on_device(batch)
            output, target = output_of(batch), target_of(batch)
            size = _size_of(batch)
            total, n = total + float(_scored(loss, output, target)) * size, n + size
            labelled = labelled and (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor) and output.ndim == 2
                                     and target.ndim == 1 and not target.is_floating_point())
            if labelled:
                right += int((output.argmax(1) == target).sum())
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not n:
        raise InputError("the validation loader is empty; pass none to train without scores")
    return {"val_loss": total / n, **({"val_accuracy": right / n} if labelled else {})}


@contextlib.contextmanager
def _bar(wanted: bool, schedule: CycleLR, rec: Recorder) -> Iterator[Callable[[float], None]]:
    from tqdm import tqdm

    with tqdm(total=schedule.total_steps, initial=rec.updates, unit="step", disable=None if wanted else True) as bar:
        def advance(loss: float) -> None:
            bar.total = schedule.total_steps
            bar.set_postfix(loss=f"{loss:.3g}", lr=f"{schedule.rates[0]:.2g}", snapshots=len(rec.captured), refresh=False)
            bar.update(rec.updates - bar.n)

        yield advance


def _input_of(batch: Any) -> Any:
    if isinstance(batch, list | tuple):
        return batch[0]
    if isinstance(batch, torch.Tensor):
        return batch
    raise InputError(f"a batch is (input, target), or pass forward=(model, batch) -> output; got {type(batch).__name__}")


def _target_of(batch: Any) -> Any:
    """The second of two items; a batch that is one thing as it is."""
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        return batch
    if len(batch) > 2:
        raise InputError(f"which of the {len(batch)} items of a batch is the target cannot be told. {PICK}")
    return batch[1]


def _size_of(batch: Any) -> int:
    """Items of a batch: the length of the first tensor in it."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((_size_of(part) for part in parts if isinstance(part, torch.Tensor | Mapping | list | tuple)), 1)


def _scored(loss: Loss, output: Any, target: Any) -> torch.Tensor:
    """The loss of a batch; where it fails, labels that are no class of the model's are said to be such."""
    try:
        return loss(output, target)
    except (IndexError, RuntimeError) as error:
        if (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor) and output.device.type != "cuda"
                and output.ndim >= 2 and not target.is_floating_point()
                and target.shape == output.shape[:1] + output.shape[2:]):
            kept, classes = target[target != getattr(loss, "ignore_index", -100)], output.shape[1]
            if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= classes):
                raise InputError(f"labels are whole numbers 0 to {classes - 1}, as the model has {classes} outputs; got "
                                 f"{int(kept.min())} to {int(kept.max())}. Count classes from 0, or give the model more "
                                 "outputs") from error
        raise


def _name_of(loss: Any) -> str:
    return getattr(loss, "__name__", type(loss).__name__)
