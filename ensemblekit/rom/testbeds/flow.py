"""What every testbed offers, and a run of one kept in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.source import ArraySource, Field


class FlowSnapshot(NamedTuple):
    """One instant of a flow."""

    time: float
    fields: Mapping[str, np.ndarray | float]
    """What a store of the flow's ``fields`` appends."""


class Flow(Protocol):
    """A solver with known answers."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """What is recorded, for ``ek.create``."""

    def snapshots(self, n: int, every: float, after: float) -> Iterator[Any]:
        """Run and yield `n` snapshots, `every` so much time, the first `after` so much time."""


def record(flow: Flow, n: int, every: float, after: float = 0.0) -> ArraySource:
    """Run a flow and keep its snapshots in memory, with their times.

    Arguments:
        flow: a testbed.
        n: how many snapshots.
        every: time between them.
        after: time before the first.
    """
    arrays = {name: np.empty((n, *field.shape), field.dtype) for name, field in flow.fields.items()}
    times = np.empty(n)
    for k, snapshot in enumerate(flow.snapshots(n, every, after)):
        times[k] = snapshot.time
        for name, values in snapshot.fields.items():
            arrays[name][k] = values
    return ArraySource(arrays, times=times, units={name: f.unit for name, f in flow.fields.items() if f.unit})


def check_schedule(n: int, every: float, after: float) -> None:
    """Refuse a number of snapshots or times that no run has."""
    if n < 1 or not every > 0 or not after >= 0 or not math.isfinite(every + after):
        raise InputError(f"n is at least 1, every above 0 and after not below 0; got {n!r}, {every!r}, {after!r}")


def steps_for(time: float, longest: float) -> tuple[int, float]:
    """How many equal steps, none longer than `longest`, make up a time, and their length."""
    count = max(1, math.ceil(time / longest - 1e-9))
    return count, time / count
