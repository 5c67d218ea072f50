"""The shapes of cyclic schedules, and the numbers that they are set by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from numbers import Integral
from typing import Any

from torch.optim import Optimizer

from ensemblekit.errors import InputError

shortened: ContextVar[bool] = ContextVar("shortened", default=False)
"""Whether a schedule longer than its training is cut to it, as where a trainer tries a program out on a batch or two."""


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What differs between two settings, in words; "" where nothing does."""
    return "; ".join(f"{name} was {theirs.get(name, 'not set')!r} and is {ours.get(name, 'not set')!r}"
                     for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))


def cosine(share: float) -> float:
    return 0.5 * (math.cos(math.pi * share) + 1)


def published(share: float, high: float, low: float) -> float:
    """The rate of the FGE and SWA code before it begins: constant to 1/2, falling in a straight line to 9/10."""
    if share <= 0.5:
        return high
    return low if share >= 0.9 else high + (low - high) * (share - 0.5) / 0.4


def ratio_of_rates(base: float, first: float) -> float:
    return base / first if first else 1.0


def geometric_edges(steps: int, n_cycles: int, ratio: float) -> list[int]:
    """Edges of n cycles, each `ratio` times as long as the one before, rounded to steps."""
    lengths = [ratio**k for k in range(n_cycles)]
    total, edges, done = math.fsum(lengths), [0], 0.0
    for length in lengths:
        done += length
        edges.append(round(steps * done / total))
    edges[-1] = steps
    return edges


def check_counts(total_steps: object, n_cycles: object, before: object, name: str) -> tuple[int, int, int]:
    values = []
    for what, value in (("total_steps", total_steps), ("n_cycles", n_cycles), (name, before)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise InputError(f"{what} is a whole number; got {value!r}")
        values.append(int(value))
    total_steps, n_cycles, before = values
    if shortened.get() and total_steps > 0 and n_cycles > 0 and before >= 0:
        before = min(before, total_steps - 1)
        n_cycles = min(n_cycles, total_steps - before)
    if n_cycles < 1 or before < 0 or n_cycles > total_steps - before:
        raise InputError(f"there is at least one step a cycle; got total_steps={total_steps!r}, n_cycles={n_cycles!r}"
                         + (f", {name}={before!r}" if before else "") + ". Train longer, or ask for fewer cycles")
    return total_steps, n_cycles, before


def per_group(value: float | Sequence[float], optimizer: Optimizer, name: str) -> tuple[float, ...]:
    groups = len(optimizer.param_groups)
    values = tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) * groups
    if len(values) != groups or not all(0 <= v < math.inf for v in values):
        raise InputError(f"{name} is one number of 0 or more, or one for each of the {groups} parameter groups; got {value!r}")
    return values
