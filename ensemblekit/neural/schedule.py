"""Learning rates that come down to a minimum again and again."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler

from ensemblekit.errors import InputError

Mode = Literal["balanced", "paper", "reference"]


class CyclicCosineLR(LRScheduler):
    """Cosine annealing with restarts, one step an iteration (Huang et al. 2017, equation 2).

    lr(t) = base/2 (cos(pi ((t - 1) mod C) / C) + 1) at iteration t = 1, 2, ..., with C = ceil(total_steps / n_cycles).

    Modes:
        "paper": the formula as printed; where n_cycles does not divide total_steps the last cycle is cut short.
        "balanced": cycles that differ by one step at most, so that each comes down to its minimum.
        "reference": the authors' code, one step ahead of the formula: the last iteration of a cycle has rate 0.

    After `total_steps` the rate stays what it was last.
    """

    def __init__(self, optimizer: Any, *, total_steps: int, n_cycles: int, mode: Mode = "balanced",
                 last_epoch: int = -1):
        if total_steps < 1 or not 1 <= n_cycles <= total_steps:
            raise InputError(f"there is at least one step a cycle; got total_steps={total_steps!r}, "
                             f"n_cycles={n_cycles!r}")
        if mode not in ("balanced", "paper", "reference"):
            raise InputError(f'mode is "balanced", "paper" or "reference"; got {mode!r}')
        self.total_steps, self.n_cycles, self.mode = total_steps, n_cycles, mode
        super().__init__(optimizer, last_epoch)

    @property
    def starts(self) -> list[int]:
        """The first step (counted from 0) of each cycle, then total_steps."""
        if self.mode == "balanced":
            return [self.total_steps * k // self.n_cycles for k in range(self.n_cycles + 1)]
        length = -(-self.total_steps // self.n_cycles)
        return [*range(0, self.total_steps, length), self.total_steps]

    @property
    def at_cycle_end(self) -> bool:
        """Whether the step now due is the last of its cycle, the one after which a snapshot is taken."""
        return self.last_epoch + 1 in self.starts[1:]

    def factor(self, step: int) -> float:
        """Rate over base rate at `step`, counted from 0."""
        step = min(step, self.total_steps - 1)
        starts = self.starts
        cycle = max(k for k in range(len(starts) - 1) if starts[k] <= step)
        length = starts[cycle + 1] - starts[cycle] if self.mode == "balanced" else -(-self.total_steps // self.n_cycles)
        ahead = 1 if self.mode == "reference" else 0
        return 0.5 * (math.cos(math.pi * (step - starts[cycle] + ahead) / length) + 1)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of the parameter groups at the step now due."""
        factor = self.factor(self.last_epoch)
        return [float(base) * factor for base in self.base_lrs]
