"""How many cycles a budget carries, and how to end well when time runs out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.processes import from_first, rank_and_world
from ensemblekit.neural.schedule import CycleLR
from ensemblekit.results import Result

GOOD_EPOCHS = 40        # a cycle of Huang et al. 2017 on CIFAR and of their ImageNet M = 2 (45); at 30 M = 3 lost its gain
SHORT_EPOCHS = 20       # below it no published run of theirs stands but SVHN, whose epochs are 9400 iterations long
LONG_CYCLE = 30_000     # iterations of a cycle of theirs on CIFAR; data sets of long epochs need fewer epochs
TIMED = 20              # steps before a deadline trusts their mean duration
QUIET, QUIET_SHARE = 0.5, 0.01      # seconds, and share of the time, for which several processes go on without asking
MOST = 6                # 4 to 8 worked; 10 were no better than 8 (DenseNet-40 on CIFAR-100, 300 epochs)


@dataclass(frozen=True, slots=True)
class Plan(Result):
    """What :func:`plan` proposes."""

    n_cycles: int
    total_steps: int
    """Optimizer steps in all."""
    cycle_steps: tuple[int, ...]
    """Optimizer steps of each cycle: they differ by one at most."""
    cycle_epochs: float | None
    """Epochs a cycle, where steps an epoch are known."""
    seconds: float | None
    """How long it takes, where the time of a step is known."""
    warnings: tuple[str, ...]
    """What speaks against it, in words; empty where nothing does."""

    def __str__(self) -> str:
        length = f"{min(self.cycle_steps)}" + (f" to {max(self.cycle_steps)}" if len(set(self.cycle_steps)) > 1 else "")
        said = f"{self.n_cycles} {'cycle' if self.n_cycles == 1 else 'cycles'} of {length} steps"
        if self.cycle_epochs is not None:
            said += f" ({self.cycle_epochs:.3g} epochs)"
        said += f", {self.total_steps} steps in all"
        if self.seconds is not None:
            said += f", about {_duration(self.seconds)}"
        return "\n".join([said, *(f"warning: {warning}" for warning in self.warnings)])


def plan(n_epochs: float | None = None, steps_per_epoch: int | None = None, *, total_steps: int | None = None,
         n_cycles: int | None = None, seconds: float | None = None, seconds_per_step: float | None = None,
         pilot: Sequence[float] | None = None, accumulate: int = 1) -> Plan:
    """Propose a number of cycles for a budget, and say what is doubtful about it.

    A cycle has to be long enough for a single model to train in: 40 epochs and more in the experiments of Huang et al.
    2017 on CIFAR (30 000 iterations), 45 on ImageNet, where cycles of 30 epochs lost what the ensemble had gained. More
    than six to eight members bring little.

    Arguments:
        n_epochs, steps_per_epoch: of the budget, steps_per_epoch as batches of the loader; or total_steps instead.
        n_cycles: check this number instead of proposing one.
        seconds: a limit of time; with seconds_per_step it cuts the budget.
        seconds_per_step: measured, for one optimizer step.
        pilot: training losses, one a step, of a short run with a single cosine cycle: the cycle is then at least as long
            as that run needed to make 95 % of its way down.
        accumulate: batches an optimizer step.

    Raises InputError where the budget is not given, or has fewer steps than cycles.
    """
    if total_steps is None:
        if n_epochs is None or steps_per_epoch is None:
            raise InputError("a plan needs a budget: n_epochs and steps_per_epoch, or total_steps")
        total_steps = round(n_epochs * math.ceil(steps_per_epoch / accumulate))
    for name, value in (("total_steps", total_steps), ("n_cycles", n_cycles), ("seconds", seconds),
                        ("seconds_per_step", seconds_per_step), ("steps_per_epoch", steps_per_epoch)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is above 0; got {value!r}")
    warnings = []
    if seconds is not None and seconds_per_step is not None and total_steps * seconds_per_step > seconds:
        fits = int(seconds / seconds_per_step)
        warnings.append(f"{total_steps} steps take {_duration(total_steps * seconds_per_step)}, more than the limit of "
                        f"{_duration(seconds)}: cut to {fits} steps")
        total_steps = fits
    per_epoch = None if steps_per_epoch is None else math.ceil(steps_per_epoch / accumulate)
    needed = _needed(per_epoch, pilot)
    proposed = max(1, min(MOST, total_steps // needed))
    m = proposed if n_cycles is None else n_cycles
    if m > total_steps:
        raise InputError(f"{m} cycles need {m} steps at least; the budget is {total_steps}")
    length = total_steps / m
    if length < needed:
        what = "the pilot run took to come down" if pilot is not None else (
            f"a cycle has in the published runs ({GOOD_EPOCHS} epochs, or {LONG_CYCLE} iterations)")
        unit = f" ({length / per_epoch:.3g} epochs)" if per_epoch else ""
        strong = per_epoch is not None and length < min(SHORT_EPOCHS * per_epoch, LONG_CYCLE)
        better = f"; {proposed} {'cycle' if proposed == 1 else 'cycles'} would be safer" if proposed < m else (
            ". Compare with a single run of this budget, and with its weight average")
        warnings.append(f"cycles of {length:.0f} steps{unit} are {'much ' if strong else ''}shorter than the {needed} steps "
                        f"{what}: members may be too weak to help{better}")
    if m > 10:
        warnings.append(f"{m} members: in the published runs more than 8 were no better")
    edges = [total_steps * k // m for k in range(m + 1)]
    return Plan(m, total_steps, tuple(b - a for a, b in pairwise(edges)),
                None if per_epoch is None else length / per_epoch,
                None if seconds_per_step is None else total_steps * seconds_per_step, tuple(warnings))


def _needed(per_epoch: int | None, pilot: Sequence[float] | None) -> int:
    if pilot is not None:
        losses = as_array(pilot, "pilot", kinds="biuf", dtype=np.float64)
        if losses.ndim != 1 or len(losses) < 20 or not np.isfinite(losses).all():
            raise InputError(f"pilot is 20 finite training losses or more, one a step; got shape {losses.shape}")
        width = max(1, len(losses) // 20)
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        low = smooth.min()
        return int(np.argmax(smooth <= low + 0.05 * (smooth[0] - low))) + width
    return LONG_CYCLE if per_epoch is None else min(GOOD_EPOCHS * per_epoch, LONG_CYCLE) or 1


class Decision(NamedTuple):
    """What a deadline says after a step."""

    stop: bool = False
    finish: int | None = None
    """Come down to the minimum in so many steps."""
    quiet: int = 1
    """Steps until it is asked again, in a run of several processes."""


class Deadline:
    """Ends a training in time, with its last snapshot at a minimum of the rate.

    ::

        deadline = neural.Deadline(scheduler, seconds=3600)
        for batch in batches:
            ...
            optimizer.step(); rec.step(); scheduler.step()
            if deadline.reached():
                break

    It watches how long steps take. Where the cycle under way would not end in time, the rate comes down early
    (``scheduler.finish``); where a cycle ends with too little time left for another, the training ends there. After a
    finish that turns out too long for a machine grown slow, the rest is shortened again.

    In a torch.distributed run the clock of process 0 decides for all, as clocks differ and every process must end after the
    same step: each calls :meth:`reached` after every step.
    """

    def __init__(self, scheduler: CycleLR, seconds: float, *, reserve: float = 0.05, least: float = 0.3,
                 clock: Callable[[], float] = time.monotonic, distributed: bool | None = None):
        """
        Arguments:
            seconds: from now on.
            reserve: share of the time kept back, for steps that take longer than those before.
            least: a cycle is begun only if this share of its length fits.
            distributed: whether process 0 decides for all; None: where there are several. False where one process asks and
                the program itself tells the others.
        """
        if not seconds > 0:
            raise InputError(f"seconds is above 0; got {seconds!r}")
        self.scheduler, self.least = scheduler, least
        self._clock, self._began = clock, clock()
        self._until = self._began + seconds * (1 - reserve)
        self._timed: tuple[int, float] | None = None
        self._stop = False
        self._together = rank_and_world()[1] > 1 if distributed is None else distributed
        self._asked_again = 0       # the phase from which on the processes ask again
        self.finished_early = False
        """Whether the schedule was cut short."""

    def reached(self) -> bool:
        """Call after scheduler.step(): whether to stop training now. Collective in a torch.distributed run."""
        schedule = self.scheduler
        if self._stop or schedule.last_epoch >= schedule.total_steps:
            return True
        if not self._together:
            return self._enact(self._decision())
        if schedule.last_epoch < self._asked_again and schedule.last_epoch not in schedule.ends:
            return False
        decision = self._decision() if rank_and_world()[0] == 0 else None
        return self._enact(from_first(decision))

    def _decision(self) -> Decision:
        """By the clock of this process."""
        schedule, now = self.scheduler, self._clock()
        if self._timed is None:     # the first step compiles and warms up: it says nothing of those to come
            self._timed = (schedule.last_epoch, now)
        steps, seconds = schedule.last_epoch - self._timed[0], now - self._timed[1]
        if now >= self._until and schedule.last_epoch in schedule.ends:
            return Decision(stop=True)
        if steps < 1 or (steps < TIMED and now - self._began < 0.2 * (self._until - self._began)):
            return Decision()
        rate = steps / max(seconds, 1e-12)
        affordable = max(0, int((self._until - now) * rate))
        left = int(schedule.next_end - schedule.last_epoch)
        if schedule.last_epoch in schedule.ends and affordable < self.least * left:
            return Decision(stop=True)
        quiet = max(1, min(int(rate * min(QUIET, QUIET_SHARE * (self._until - self._began))), affordable, left))
        if affordable < left * (0.9 if self.finished_early else 1.0):       # not anew for every wavering of the clock
            return Decision(finish=max(1, affordable), quiet=quiet)
        return Decision(quiet=quiet)

    def _enact(self, decision: Decision | None) -> bool:
        """Do what was decided, here or on process 0; whether to stop."""
        assert decision is not None
        if decision.stop:
            return self._give_up()
        self._asked_again = self.scheduler.last_epoch + decision.quiet
        if decision.finish is not None:
            self.scheduler.finish(decision.finish)
            self.finished_early = True
        return False

    def _give_up(self) -> bool:
        """Stop here: a snapshot has just been taken, and too little time is left for another cycle."""
        self.finished_early = self._stop = True
        return True

    @property
    def seconds_left(self) -> float:
        """Until the end, the reserve not counted."""
        return self._until - self._clock()


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"

