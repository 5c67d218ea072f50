"""Learning rates that come down to a minimum again and again, stepped once an iteration.

All of them are ``torch.optim.lr_scheduler.LRScheduler``: they go where torch's own go (Lightning, Accelerate, the
HuggingFace Trainer, compiled optimizers with a tensor for a rate, which is filled in place). What they add is that
they know where their cycles end, so that a snapshot can be taken there.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ensemblekit.errors import InputError
from ensemblekit.neural import schedule_shapes as shapes

Mode = Literal["balanced", "paper", "reference"]
Momentum = Literal["carry", "reset"]
AHEAD = 256     # steps whose rates are worked out together


class CycleLR(LRScheduler):
    """What the schedules share: a length, ends of cycles, an early finish, and a state that is exact in mid-cycle.

    `last_epoch` counts steps, as in torch: it is the number of steps made, and the phase.
    """

    kind = "cycle"

    def __init__(self, optimizer: Optimizer, total_steps: int, last_epoch: int = -1):
        self.total_steps = total_steps
        self.observers: list[Callable[[int], None]] = []
        self.held = False
        self._finish: dict[str, Any] | None = None
        self.ends: list[int] = self._ends()
        """After how many steps (optimizer updates, counted from 1) each snapshot is due, rising."""
        self.next_end: float = self.ends[0]
        """The end that comes next; infinity after the last."""
        self._ahead: list[list[float]] = []
        self._ahead_from, self._ahead_bases = 0, list[Any]()
        self.rates: list[float] = []
        """The rates now in force, one a parameter group, as numbers also where the optimizer holds tensors."""
        super().__init__(optimizer, last_epoch)

    # -- for subclasses --------------------------------------------------------------------------------------------

    def _ends(self) -> list[int]:
        raise NotImplementedError

    def _rate(self, step: int, group: int, base: float) -> float:
        """The rate of a parameter group with this base rate at `step`, counted from 0 and below total_steps."""
        raise NotImplementedError

    def _floor(self, group: int, base: float) -> float:
        """The rate at the bottom of a cycle."""
        raise NotImplementedError

    def _way(self, step: int, group: int, base: float) -> tuple[float, float]:
        """(rate at its top, share done) of the half cosine a step stands on; others stand at the top of one."""
        if self._finish is not None and step >= self._finish["start"]:
            high, begun = self._finish["way"][group]
            return high, begun + (1 - begun) * (step - self._finish["start"]) / self._finish["steps"]
        return self._rate(step, group, base), 0.0

    def _config(self) -> dict[str, Any]:
        """The settings, plain data."""
        raise NotImplementedError

    # -- what is read ----------------------------------------------------------------------------------------------

    @property
    def n_snapshots(self) -> int:
        """Snapshots that are due over the whole training."""
        return len(self.ends)

    @property
    def at_cycle_end(self) -> bool:
        """Whether the step now due is the last before a snapshot."""
        return self.last_epoch + 1 in self.ends

    @property
    def config(self) -> dict[str, Any]:
        """Kind and settings as plain data: two schedules with the same config give the same rates."""
        return {"kind": self.kind, "total_steps": self.total_steps, **self._config()}

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of the parameter groups at the step now due."""
        k = self.last_epoch - self._ahead_from
        if not 0 <= k < len(self._ahead) or self._ahead_bases != self.base_lrs:
            self._look_ahead()
            k = 0
        self.rates = self._ahead[k]
        return list(self.rates)

    def _look_ahead(self) -> None:
        """Rates of this step and those after it: one formula at a time would run in a cold cache, after each update."""
        groups = range(len(self.base_lrs))
        self._ahead = [[self.rate(self.last_epoch + k, g) for g in groups] for k in range(AHEAD)]
        self._ahead_from, self._ahead_bases = self.last_epoch, list(self.base_lrs)

    def _get_closed_form_lr(self) -> list[float | torch.Tensor]:
        return self.get_lr()

    def rate(self, step: int, group: int = 0) -> float:
        """The rate of a parameter group at any step, counted from 0. After total_steps it stays what it was last."""
        base = self.base_rate(group)
        step = min(max(step, 0), self.total_steps - 1)
        if self._finish is not None and step >= self._finish["start"]:
            high, share = self._way(step, group, base)
            low = min(self._floor(group, base), high)
            return high * shapes.cosine(share) + low * (1 - shapes.cosine(share))
        return self._rate(step, group, base)

    def base_rate(self, group: int) -> float:
        base = self.base_lrs[group]
        if isinstance(base, torch.Tensor):      # read once: on a GPU every look would wait for it
            self.base_lrs = [float(one) for one in self.base_lrs]
            base = self.base_lrs[group]
        return float(base)

    # -- moving ----------------------------------------------------------------------------------------------------

    def step(self, epoch: int | None = None) -> None:
        """One step on, after optimizer.step(). A step that a GradScaler skipped keeps the phase (see Recorder)."""
        if self.held:
            return
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            raise InputError(f"the schedule knows {len(self.base_lrs)} parameter groups and the optimizer has "
                             f"{len(self.optimizer.param_groups)}: make the schedule after add_param_group")
        before = self.last_epoch
        if epoch is None and self._step_count > 1 and before + 1 < self.next_end:
            self._step_count += 1       # within a cycle, where torch has nothing to warn of: this runs once an update
            self.last_epoch = before + 1
            self._last_lr = self._set(self.get_lr())
            return
        if self.observers and before >= 0:
            reached = before + 1 if epoch is None else epoch
            passed = slice(bisect_right(self.ends, before), bisect_right(self.ends, reached))
            for end in self.ends[passed]:
                for observer in self.observers:        # before the rate jumps, after the last update at its minimum
                    observer(end)
        super().step(epoch)
        self._look()
        self._moved(before)

    def _set(self, rates: list[float | torch.Tensor]) -> list[float | torch.Tensor]:
        """The optimizer's rates, tensors filled in place; returns them as `get_last_lr` does, tensors copied."""
        for k, group in enumerate(self.optimizer.param_groups):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rates[k])
                rates[k] = group["lr"].clone()
            else:
                group["lr"] = rates[k]
        return rates

    def _look(self) -> None:
        k = bisect_right(self.ends, self.last_epoch)
        self.next_end = self.ends[k] if k < len(self.ends) else math.inf

    def _moved(self, before: int) -> None:
        """For what happens at a restart."""

    @property
    def finishes_early(self) -> bool:
        """Whether :meth:`finish` brought its end forward."""
        return self._finish is not None

    def finish(self, steps: int) -> None:
        """Come down to the minimum within so many steps from here and end there: for a deadline.

        What is left of the cycle's cosine is run through in these steps (other schedules come down by half a cosine
        from the rate they have). The last snapshot is due after the last of them; those of cycles that would have ended
        later are given up.

        Raises InputError where `steps` is below 1.
        """
        if steps < 1:
            raise InputError(f"finish(steps) takes one step or more; got {steps!r}")
        start = max(self.last_epoch, 0)
        way = [list(self._way(start, g, self.base_rate(g))) for g in range(len(self.base_lrs))]
        self._finish = {"start": start, "steps": int(steps), "way": way}
        self.total_steps = start + int(steps)
        self.ends = [end for end in self.ends if end <= start] + [self.total_steps]
        self._ahead = []
        self._look()

    def state_dict(self) -> dict[str, Any]:
        """Settings and phase, plain data: no function, no reference to the optimizer."""
        return {"config": self.config, "last_epoch": self.last_epoch, "_step_count": self._step_count,
                "base_lrs": [self.base_rate(g) for g in range(len(self.base_lrs))],
                "_last_lr": [float(rate) for rate in self._last_lr],
                "finish": None if self._finish is None else dict(self._finish), "ends": list(self.ends)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the schedule of a `state_dict` stood; the optimizer's rates are set to those due there.

        Raises InputError where the state is of a schedule with other settings, naming them.
        """
        theirs = dict(state_dict["config"])
        ours = self.config
        if state_dict["finish"] is not None or self._finish is not None:
            theirs.pop("total_steps")
            ours.pop("total_steps")
        differing = shapes.differences(theirs, ours)
        if differing:
            raise InputError(f"this state is of another schedule: {differing}")
        self._finish = None if state_dict["finish"] is None else dict(state_dict["finish"])
        self.ends = list(state_dict["ends"])
        self.total_steps = state_dict["config"]["total_steps"]
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self.base_lrs = list(state_dict["base_lrs"])
        self._last_lr = list(state_dict["_last_lr"])
        self._look()
        self._ahead = []
        self._set(self.get_lr())


class CyclicCosineLR(CycleLR):
    """Cosine annealing with restarts, one step an iteration (Huang et al. 2017, equation 2).

    lr(t) = base/2 (cos(pi ((t - 1) mod C) / C) + 1) at iteration t = 1, 2, ..., with C = ceil(total_steps / n_cycles).

    Modes:
        "paper": the formula as printed; where n_cycles does not divide total_steps the last cycle is cut short, and
            there may be fewer cycles than asked for (7 steps in 5 cycles: four of ceil(7 / 5) = 2 steps).
        "balanced": cycles that differ by one step at most, so that each comes down to its minimum. The same as
            "paper" where n_cycles divides total_steps.
        "reference": the convention of the authors' code, one step ahead of the formula: the first iteration of a
            cycle is below the base rate, the last has the rate `eta_min` exactly.

    Arguments:
        total_steps: iterations (optimizer steps) in all, warm-up included.
        n_cycles: cycles, and snapshots.
        eta_min: the rate at the bottom, one number or one a parameter group.
        warmup_steps: iterations of linear warm-up before the first cycle: (s / (warmup_steps + 1)) of its peak at
            iteration s.
        peak_decay: peak of a cycle over that of the one before.
        alphas: peak of each cycle in multiples of the group's base rate; beside peak_decay they multiply.
        T_mult: length of a cycle over that of the one before; balanced mode only.
        momentum: "carry" keeps the optimizer's momenta over a restart, as the reference code does; "reset" forgets
            them (the optimizer's whole state) at the start of every cycle but the first.

    Rates of several parameter groups keep their ratio (above `eta_min`). After `total_steps` the rate stays what it
    was last. Raises InputError for what does not fit, among it more cycles than steps and an `eta_min` above a group's peak.
    """

    kind = "cyclic cosine"

    def __init__(self, optimizer: Optimizer, *, total_steps: int, n_cycles: int, mode: Mode = "balanced",
                 eta_min: float | Sequence[float] = 0.0, warmup_steps: int = 0, peak_decay: float = 1.0,
                 alphas: Sequence[float] | None = None, T_mult: float = 1.0, momentum: Momentum = "carry",
                 last_epoch: int = -1):
        total_steps, n_cycles, warmup_steps = shapes.check_counts(total_steps, n_cycles, warmup_steps, "warmup_steps")
        if shapes.shortened.get() and alphas is not None:
            alphas = alphas[:n_cycles]
        if mode not in ("balanced", "paper", "reference"):
            raise InputError(f'mode is "balanced", "paper" or "reference"; got {mode!r}')
        if momentum not in ("carry", "reset"):
            raise InputError(f'momentum is "carry" or "reset"; got {momentum!r}')
        if not (T_mult > 0 and math.isfinite(T_mult)) or (T_mult != 1 and mode != "balanced"):
            raise InputError(f"T_mult is above 0, and other than 1 in balanced mode only; got T_mult={T_mult!r}, mode={mode!r}")
        if not (peak_decay > 0 and math.isfinite(peak_decay)):
            raise InputError(f"peak_decay is above 0; got {peak_decay!r}")
        if alphas is not None and (len(alphas) != n_cycles or not all(math.isfinite(a) and a > 0 for a in alphas)):
            raise InputError(f"alphas are {n_cycles} numbers above 0, one a cycle; got {list(alphas)!r}")
        self.n_cycles, self.mode, self.warmup_steps = n_cycles, mode, warmup_steps
        self.peak_decay, self.T_mult, self.momentum = float(peak_decay), float(T_mult), momentum
        self.alphas = None if alphas is None else tuple(map(float, alphas))
        self.eta_min = shapes.per_group(eta_min, optimizer, "eta_min")
        if momentum == "reset" and last_epoch == -1 and optimizer.state:
            raise InputError(f"momentum=\"reset\" forgets the optimizer's state, and {type(optimizer).__name__} has some "
                             "before its first step (or has made steps already); make the schedule first, or carry it")
        steps = total_steps - warmup_steps
        if mode == "balanced":
            edges = ([steps * k // n_cycles for k in range(n_cycles + 1)] if T_mult == 1 else
                     shapes.geometric_edges(steps, n_cycles, T_mult))
        else:
            edges = [*range(0, steps, -(-steps // n_cycles)), steps]
        if shapes.shortened.get():     # cycles of uneven lengths may have no step at all in so few
            edges = sorted(set(edges))
        self._starts = [warmup_steps + edge for edge in edges]
        if any(b <= a for a, b in zip(self._starts, self._starts[1:], strict=False)):
            raise InputError(f"{n_cycles} cycles with T_mult={T_mult!r} do not fit into {steps} steps: a cycle would have "
                             "no step at all")
        super().__init__(optimizer, total_steps, last_epoch)
        lowest = min(self._peak(k) for k in range(len(self._starts) - 1))
        for k, low in enumerate(self.eta_min):
            if low > self.base_rate(k) * lowest:
                raise InputError(f"eta_min is the rate at the bottom of a cycle, and {low:g} lies above the peak of parameter "
                                 f"group {k}, {self.base_rate(k) * lowest:g}: its rate would rise. Give a list, one eta_min a "
                                 "group, none above the group's own peak")

    @property
    def starts(self) -> list[int]:
        """The first step (counted from 0) of each cycle, then total_steps."""
        return list(self._starts)

    @property
    def cycle(self) -> int:
        """The cycle of the step now due, counted from 0."""
        return min(max(0, bisect_right(self._starts, self.last_epoch) - 1), len(self._starts) - 2)

    def factor(self, step: int) -> float:
        """Rate over base rate at `step`, counted from 0, were eta_min 0 and no early finish asked for."""
        step = min(step, self._starts[-1] - 1)
        if step < self.warmup_steps:
            return self._peak(0) * (step + 1) / (self.warmup_steps + 1)
        cycle = bisect_right(self._starts, step) - 1
        return self._peak(cycle) * shapes.cosine(self._share(step, cycle))

    def _peak(self, cycle: int) -> float:
        return (1.0 if self.alphas is None else self.alphas[min(cycle, self.n_cycles - 1)]) * self.peak_decay**cycle

    def _share(self, step: int, cycle: int) -> float:
        """How far through its cycle a step is."""
        length = self._starts[cycle + 1] - self._starts[cycle]
        if self.mode != "balanced":     # the last one may be cut short: it does not get there
            length = self._starts[1] - self._starts[0]
        return (step - self._starts[cycle] + (self.mode == "reference")) / length

    def _ends(self) -> list[int]:
        return self._starts[1:]

    def _rate(self, step: int, group: int, base: float) -> float:
        low = self.eta_min[group]
        if step < self.warmup_steps:
            return self.factor(step) * base
        cycle = bisect_right(self._starts, step) - 1
        share = shapes.cosine(self._share(step, cycle))
        return self._peak(cycle) * base * share + low * (1 - share)

    def _floor(self, group: int, base: float) -> float:
        return self.eta_min[group]

    def _way(self, step: int, group: int, base: float) -> tuple[float, float]:
        if (self._finish is not None and step >= self._finish["start"]) or step < self.warmup_steps:
            return super()._way(step, group, base)
        cycle = bisect_right(self._starts, step) - 1
        return self._peak(cycle) * base, self._share(step, cycle)

    def _moved(self, before: int) -> None:
        if self.momentum == "reset" and before >= 0 and self.last_epoch < self.total_steps:
            if any(before < start <= self.last_epoch for start in self._starts[1:-1]):
                self.optimizer.state.clear()

    def _config(self) -> dict[str, Any]:
        return {"n_cycles": self.n_cycles, "mode": self.mode, "eta_min": list(self.eta_min),
                "warmup_steps": self.warmup_steps, "peak_decay": self.peak_decay,
                "alphas": None if self.alphas is None else list(self.alphas), "T_mult": self.T_mult,
                "momentum": self.momentum}


class TriangularLR(CycleLR):
    """The triangular cycles of fast geometric ensembling (Garipov et al. 2018), after training as usual.

    From `start_step` on, iteration j = 1 ... c of a cycle of c iterations has a rate that falls in a straight line
    from alpha_1 to alpha_2, reached at j = b, and rises again to alpha_1, reached at j = c; the snapshot is taken at
    the bottom, b = ceil(c / 2). For even c that is the paper's alpha(j / c) with its minimum at t = 1/2. For odd c, where
    t = 1/2 falls between two iterations, the bottom is reached all the same, and a cycle of one iteration is all bottom.

    Arguments:
        total_steps: iterations in all, those before start_step included.
        n_cycles: cycles, and snapshots; their lengths differ by one at most.
        alpha_1, alpha_2: rates at the top and at the bottom, of the first parameter group; those of the others keep
            the ratio of their base rates.
        start_step: iterations before the first cycle, with the rates of the published training: the base rate for
            half of them, then down in a straight line to alpha_1 at 9/10 of them.
    """

    kind = "triangular"

    def __init__(self, optimizer: Optimizer, *, total_steps: int, n_cycles: int, alpha_1: float, alpha_2: float,
                 start_step: int = 0, last_epoch: int = -1):
        total_steps, n_cycles, start_step = shapes.check_counts(total_steps, n_cycles, start_step, "start_step")
        if not 0 <= alpha_2 <= alpha_1 < math.inf:
            raise InputError(f"alpha_1 is the rate at the top, alpha_2 that at the bottom; got {alpha_1!r}, {alpha_2!r}")
        self.n_cycles, self.start_step = n_cycles, start_step
        self.alpha_1, self.alpha_2 = float(alpha_1), float(alpha_2)
        steps = total_steps - start_step
        self._starts = [start_step + steps * k // n_cycles for k in range(n_cycles + 1)]
        super().__init__(optimizer, total_steps, last_epoch)

    @property
    def starts(self) -> list[int]:
        """The first step (counted from 0) of each cycle, then total_steps."""
        return list(self._starts)

    def _ends(self) -> list[int]:
        return [a + -(-(b - a) // 2) for a, b in zip(self._starts, self._starts[1:], strict=False)]

    def _rate(self, step: int, group: int, base: float) -> float:
        ratio = shapes.ratio_of_rates(base, self.base_rate(0))
        if step < self.start_step:
            return shapes.published(step / self.start_step, base, self.alpha_1 * ratio)
        cycle = bisect_right(self._starts, step) - 1
        length = self._starts[cycle + 1] - self._starts[cycle]
        bottom = -(-length // 2)
        j = step - self._starts[cycle] + 1
        share = j / bottom if j <= bottom else (length - j) / (length - bottom)     # 0 at the top, 1 at the bottom
        return ratio * (self.alpha_1 * (1 - share) + self.alpha_2 * share)

    def _floor(self, group: int, base: float) -> float:
        return self.alpha_2 * shapes.ratio_of_rates(base, self.base_rate(0))

    def _config(self) -> dict[str, Any]:
        return {"n_cycles": self.n_cycles, "alpha_1": self.alpha_1, "alpha_2": self.alpha_2,
                "start_step": self.start_step}


class SWAConstantLR(CycleLR):
    """A constant rate after training as usual, for stochastic weight averaging (Izmailov et al. 2018).

    The base rate for the first half of `start_step` iterations, then down in a straight line to `swa_lr` at 9/10 of
    them, and `swa_lr` to the end; snapshots are taken at the ends of `n_cycles` equal parts of what follows start_step.

    Arguments:
        swa_lr: of the first parameter group; the rates of the others keep the ratio of their base rates.
    """

    kind = "SWA constant"

    def __init__(self, optimizer: Optimizer, *, total_steps: int, n_cycles: int, swa_lr: float, start_step: int = 0,
                 last_epoch: int = -1):
        total_steps, n_cycles, start_step = shapes.check_counts(total_steps, n_cycles, start_step, "start_step")
        if not 0 < swa_lr < math.inf:
            raise InputError(f"swa_lr is above 0; got {swa_lr!r}")
        self.n_cycles, self.start_step, self.swa_lr = n_cycles, start_step, float(swa_lr)
        super().__init__(optimizer, total_steps, last_epoch)

    def _ends(self) -> list[int]:
        steps = self.total_steps - self.start_step
        return [self.start_step + steps * k // self.n_cycles for k in range(1, self.n_cycles + 1)]

    def _rate(self, step: int, group: int, base: float) -> float:
        low = self._floor(group, base)
        return shapes.published(step / self.start_step, base, low) if step < self.start_step else low

    def _floor(self, group: int, base: float) -> float:
        return self.swa_lr * shapes.ratio_of_rates(base, self.base_rate(0))

    def _config(self) -> dict[str, Any]:
        return {"n_cycles": self.n_cycles, "swa_lr": self.swa_lr, "start_step": self.start_step}


