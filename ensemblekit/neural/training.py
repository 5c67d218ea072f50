"""The body of a training loop: batches to losses, losses to optimizer steps, epochs to scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import PICK, Convention, modes_kept, moved
from ensemblekit.neural.plan import Deadline
from ensemblekit.neural.recorder import Recorder
from ensemblekit.neural.schedule import CycleLR

Loss = Callable[[Any, Any], torch.Tensor]
LOOK = 50               # optimizer steps between two looks at the loss, each of which waits for the device


@dataclass(eq=False)
class EpochLoss:
    """The mean loss of an epoch, collected without waiting for the device at every step."""

    recorder: Recorder
    scaled: bool
    """Losses may be infinite now and then: a GradScaler skips such steps."""
    seen: int = 0
    total: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    recent: list[torch.Tensor] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return float(self.total) / max(self.seen, 1)

    def gather(self) -> None:
        """Add the losses since the last look; one wait for the device. Raises InputError where the last is not finite."""
        if not self.recent:
            return
        losses = torch.stack([one.reshape(()) for one in self.recent]).double().cpu()
        self.recent.clear()
        finite = torch.isfinite(losses)
        if not self.scaled and not bool(finite[-1]):
            raise InputError(f"the loss is {float(losses[-1])} at step {self.recorder.updates}: training was stopped; the "
                             f"{len(self.recorder.snapshot_steps)} snapshots before it stay. Lower the rate, or clip gradients "
                             "(clip=1.0)")
        self.seen, self.total = self.seen + int(finite.sum()), self.total + losses[finite].sum()


@dataclass(frozen=True, eq=False)
class TrainingLoop:
    """A model in training: how its batches are read, scored and stepped."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: CycleLR
    loss: Loss
    device: torch.device
    convention: Convention
    batches: int
    """Batches an epoch."""
    accumulate: int
    clip: float | None
    half: torch.dtype | None
    """What autocast casts to; None: no autocast."""
    scaler: torch.amp.GradScaler | None
    compiled: Callable[..., Any]
    """The model as it is called."""
    channels_last: bool

    def epoch(self, loader: Iterable[Any], recorder: Recorder, advance: Callable[[float], None],
              deadline: Deadline | None) -> tuple[dict[str, float], bool]:
        """One pass over the loader: its scores, and whether the deadline ended the training."""
        self.model.train()
        losses, stop = EpochLoss(recorder, self.scaler is not None), False
        for index, batch in enumerate(recorder.batches(loader), recorder.batches_done):
            batch = moved(batch, self.device, self.channels_last)
            size = min(self.accumulate, self.batches - index // self.accumulate * self.accumulate)
            loss = self._loss_of(batch)
            (loss / size if self.scaler is None else self.scaler.scale(loss / size)).backward()
            losses.recent.append(loss.detach())
            if (index + 1) % self.accumulate and index + 1 < self.batches:
                continue
            self._step()
            recorder.step(torch.stack(losses.recent[-size:]).mean() if size > 1 else losses.recent[-1])
            if recorder.updates % LOOK == 0 or index + 1 >= self.batches:
                losses.gather()
                advance(losses.mean)
            self.schedule.step()
            if deadline is not None and deadline.reached():
                stop = True
                break
        losses.gather()
        return {"loss": losses.mean} if losses.seen else {}, stop

    @torch.no_grad()
    def validate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Mean loss over items, and the share of right first choices where targets are labels; the model's modes are
        put back."""
        total, right, n, labelled = 0.0, 0, 0, True
        with modes_kept(self.model):
            self.model.eval()
            for batch in loader:
                batch = moved(batch, self.device, self.channels_last)
                output, target = self._output_of(batch), self._target_of(batch)
                size = _size_of(batch)
                total, n = total + float(_scored(self.loss, output, target)) * size, n + size
                labelled = labelled and (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)
                                         and output.ndim == 2 and target.ndim == 1 and not target.is_floating_point())
                if labelled:
                    right += int((output.argmax(1) == target).sum())
        if not n:
            raise InputError("the validation loader is empty; pass none to train without scores")
        return {"val_loss": total / n, **({"val_accuracy": right / n} if labelled else {})}

    def _loss_of(self, batch: object) -> torch.Tensor:
        return _scored(self.loss, self._output_of(batch), self._target_of(batch))

    def _output_of(self, batch: object) -> Any:
        forward = self.convention.forward
        with torch.autocast(self.device.type, self.half) if self.half is not None else contextlib.nullcontext():
            if forward is not None:
                return forward(self.compiled, batch)
            if self.convention.target is None:
                return self.compiled(_input_of(batch))
            arguments, named = self.convention.arguments_of(batch)
            return self.compiled(*arguments, **named)

    def _target_of(self, batch: object) -> Any:
        target = self.convention.target
        return _target_of(batch) if target is None else target(batch)

    def _step(self) -> None:
        if self.scaler is not None and self.clip is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _input_of(batch: object) -> Any:
    if isinstance(batch, list | tuple):
        return batch[0]
    if isinstance(batch, torch.Tensor):
        return batch
    raise InputError(f"a batch is (input, target), or pass forward=(model, batch) -> output; got {type(batch).__name__}")


def _target_of(batch: object) -> Any:
    """The second of two items; a batch that is one thing as it is."""
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        return batch
    if len(batch) > 2:
        raise InputError(f"which of the {len(batch)} items of a batch is the target cannot be told. {PICK}")
    return batch[1]


def _size_of(batch: object) -> int:
    """Items of a batch: the length of the first tensor in it."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((_size_of(part) for part in parts if isinstance(part, torch.Tensor | Mapping | list | tuple)), 1)


def _scored(loss: Loss, output: object, target: object) -> torch.Tensor:
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
