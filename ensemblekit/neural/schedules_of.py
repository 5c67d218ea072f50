"""The schedules that a loop has, whoever made them: bare, wrapped, torch's own, or none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from ensemblekit.errors import InputError
from ensemblekit.neural.schedule import CycleLR


class ManualSchedule:
    """The schedules of an optimizer that know no cycles, torch's own, as a Recorder sees them: snapshots are taken by hand.

    An optimizer without any has the rates it was made with.
    """

    CHANGING = frozenset({"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i", "base_lrs", "verbose"})
    """What moves while a schedule runs, and is no setting of it."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedules: Sequence[Any] = ()):
        self.optimizer, self.schedules = optimizer, list(schedules)
        self.base_lrs = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.config: dict[str, Any] = {"kind": " + ".join(type(one).__name__ for one in self.schedules) or "constant"}
        for k, one in enumerate(self.schedules):
            for name, value in vars(one).items():
                setting = sorted(value) if isinstance(value, Counter) else value
                if not name.startswith("_") and name not in self.CHANGING and is_plain(setting):
                    self.config[f"{name}{k or ''}"] = setting
        self.held = False

    def base_rate(self, group: int) -> float:
        return self.base_lrs[group]

    @property
    def rates(self) -> list[float]:
        """The rates now in force."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def last_epoch(self) -> int:
        """How often the first of the schedules was stepped."""
        return int(getattr(self.schedules[0], "last_epoch", 0)) if self.schedules else 0

    def state_dict(self) -> dict[str, Any]:
        """States of the schedules."""
        return {"states": [one.state_dict() for one in self.schedules]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the rates are those of the optimizer's own state."""
        for one, state in zip(self.schedules, state_dict["states"], strict=True):
            one.load_state_dict(state)


def bare_schedule(scheduler: object) -> CycleLR:
    """Our schedule inside what Accelerate wraps around it. Raises InputError where there is none."""
    one = unwrapped_schedule(scheduler)
    if not isinstance(one, CycleLR):
        raise InputError(f"the schedule is one of ensemblekit.neural (CyclicCosineLR, TriangularLR, SWAConstantLR), which "
                         f"know where their cycles end; got {type(scheduler).__name__}")
    return one


def unwrapped_schedule(scheduler: object) -> Any:
    """A schedule without what Accelerate wraps around it."""
    one = scheduler
    while not isinstance(one, LRScheduler) and hasattr(one, "scheduler"):
        one = one.scheduler
    return one


def schedules_of(scheduler: object, optimizers: Sequence[torch.optim.Optimizer]) -> list[CycleLR | ManualSchedule]:
    """One schedule for each optimizer, from one, several or none (None) of ours and of torch's.

    Raises InputError for what is no schedule, is that of another optimizer, or moves rates that a cycle of ours moves.
    """
    given = [] if scheduler is None else list(scheduler) if isinstance(scheduler, list | tuple) else [scheduler]
    bare = [unwrapped_schedule(one) for one in given]
    for one in bare:
        if not all(callable(getattr(one, name, None)) for name in ("step", "state_dict", "load_state_dict")) or (
                not hasattr(one, "optimizer")):
            raise InputError("the schedule is one of ensemblekit.neural (CyclicCosineLR, TriangularLR, SWAConstantLR), which "
                             "know where their cycles end, or one of torch's, or None, beside which snapshots are taken by "
                             f"recorder.capture(); got {type(one).__name__}")
    schedules: list[CycleLR | ManualSchedule] = []
    for optimizer in optimizers:
        own = [one for one in bare if unwrapped_optimizer(one.optimizer) is optimizer]
        cyclic = [one for one in own if isinstance(one, CycleLR)]
        if cyclic and len(own) > 1:
            raise InputError(f"{' and '.join(type(one).__name__ for one in own)} both set the rates of one optimizer; a cyclic "
                             "schedule of ensemblekit.neural is the only one of its optimizer")
        schedules.append(cyclic[0] if cyclic else ManualSchedule(optimizer, own))
        if len(optimizer.param_groups) != len(schedules[-1].base_lrs):
            raise InputError(f"the schedule knows {len(schedules[-1].base_lrs)} parameter groups and the optimizer has "
                             f"{len(optimizer.param_groups)}: make the schedule after add_param_group")
    for one in bare:
        if all(unwrapped_optimizer(one.optimizer) is not optimizer for optimizer in optimizers):
            raise InputError("the schedule was made for another optimizer than the one given: make it of this one")
    return schedules


def unwrapped_optimizer(optimizer: Any) -> Any:
    """The optimizer inside what Accelerate or Lightning wraps around it."""
    while type(optimizer).__name__ in ("AcceleratedOptimizer", "LightningOptimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def is_plain(value: object) -> bool:
    """Whether a setting is a finite number, a text, or a list of such."""
    return value is None or isinstance(value, str | int | bool) or (isinstance(value, float) and math.isfinite(value)) or (
        isinstance(value, list | tuple) and all(is_plain(one) for one in value))
