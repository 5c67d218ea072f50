"""The steps of a loop's optimizers, seen as they are made: counted, with the phase of the schedule and the rates they had."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ensemblekit.neural.schedule import CycleLR
from ensemblekit.neural.schedules_of import ManualSchedule, unwrapped_optimizer


class StepWatch:
    """Counts updates, sees those that a GradScaler skips, and hears of the ends of cycles that a schedule crosses.

    Arguments:
        first: which optimizer counts the updates.
        scaler: a GradScaler, or what stands for one; None.
        iteration_begins: called when an optimizer that had made its step of an iteration makes another.
        crossed: called with the end of a cycle, before a cyclic schedule moves over it.
    """

    def __init__(self, optimizers: Sequence[Optimizer], schedules: Sequence[CycleLR | ManualSchedule], first: int,
                 scaler: torch.amp.GradScaler | None, *, iteration_begins: Callable[[], object],
                 crossed: Callable[[int], None]):
        self.optimizers, self.schedules, self.scaler = list(optimizers), list(schedules), scaler
        self.updates = 0
        """Optimizer steps made, those that a GradScaler skipped not counted."""
        self.phase = -1
        """Of the schedule, at the last update."""
        self.rates = [one.rates for one in self.schedules]
        """With which each optimizer made its last step."""
        self.crossing_only = False
        """Several updates a phase: the end of a cycle is known only when it is crossed."""
        self._first = first
        cyclic = self.schedules[first]
        self._cycles = cyclic if isinstance(cyclic, CycleLR) else None
        self._iteration_begins, self._crossed = iteration_begins, crossed
        self._stepped: set[int] = set()         # optimizers that have made their steps of this iteration
        self._handles: list[RemovableHandle] = []
        self._scaler_step: Callable[..., Any] | None = None

    def begin(self) -> None:
        """Hook into the optimizers, the scaler and the schedule."""
        for k, one in enumerate(self.optimizers):
            self._handles.append(one.register_step_post_hook(lambda optimizer, *_, k=k: self._after(k, optimizer)))
            if len(self.optimizers) > 1:
                self._handles.append(one.register_step_pre_hook(lambda *_, k=k: self._before(k)))
        if self._cycles is not None:
            self._cycles.observers.append(self._crossed)
        if hasattr(self.scaler, "step"):
            self._watch_scaler(self.scaler)

    def end(self) -> None:
        """Leave all of them as they were."""
        if self._cycles is not None:
            with contextlib.suppress(ValueError):
                self._cycles.observers.remove(self._crossed)
        for schedule in self.schedules:
            schedule.held = False
        for handle in self._handles:
            handle.remove()
        scaler: Any = self.scaler
        if self._scaler_step is not None:
            scaler.step = self._scaler_step

    def _before(self, k: int) -> None:
        if k in self._stepped:      # an iteration begins
            self._iteration_begins()
            self._stepped.clear()

    def _after(self, k: int, optimizer: Optimizer) -> None:
        schedule = self.schedules[k]
        found_inf = getattr(optimizer, "found_inf", None)       # fused optimizers skip inside their own kernel
        if found_inf is not None and float(found_inf) > 0:
            schedule.held = True
            return
        schedule.held = False
        self.rates[k] = schedule.rates
        self._stepped.add(k)
        if k != self._first:
            return
        if self._cycles is not None and self._cycles.last_epoch == self.phase:
            self.crossing_only = True
        self.phase = schedule.last_epoch
        self.updates += 1

    def _watch_scaler(self, scaler: Any) -> None:
        original = self._scaler_step = scaler.step

        def step(optimizer: Optimizer, *args: object, **kwargs: object) -> object:
            stepped = []
            bare = unwrapped_optimizer(optimizer)
            watched = [k for k, one in enumerate(self.optimizers) if one is bare]
            handle = bare.register_step_post_hook(lambda *_: stepped.append(True)) if watched else None
            try:
                out = original(optimizer, *args, **kwargs)
            finally:
                if handle is not None:
                    handle.remove()
            if watched and not stepped:
                self.schedules[watched[0]].held = True     # until the next real step: the phase stays
            return out

        scaler.step = step
