"""Paired timing: A B A B ..., so that a busy or throttled machine slows both sides of a ratio alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the job."""

    name: str
    run: Callable[[Any], Any]
    """What is timed; it takes what `prepare` returned and returns the answer."""
    prepare: Callable[[], Any] = lambda: None
    """Before the clock starts: an empty file, an open store."""
    finish: Callable[[Any, Any], Any] = lambda prepared, answer: answer
    """After the clock has stopped: close, read back what was written; returns the answer that is compared."""
    repeats: int | None = None
    """Rounds it takes part in; None: all. For peers that take minutes."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one contender took."""

    name: str
    seconds: tuple[float, ...]
    """Each round."""
    ratios: tuple[float, ...]
    """Its seconds by those of the first contender, in the same round: above 1 where the first is quicker."""

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


@dataclass(frozen=True, slots=True)
class Case:
    """One job, its contenders and what else is known about them."""

    name: str
    work: float
    """How much was done in one run, in `unit`."""
    unit: str
    """Of the work: "GB", "snapshots"."""
    timings: tuple[Timing, ...]
    """Ours first, then the peers."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures beside the clock: memory, the share of the read bandwidth."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"name": self.name, "work": self.work, "unit": self.unit, "facts": dict(self.facts),
                "contenders": [{"name": t.name, "seconds": list(t.seconds), "median_seconds": t.median,
                                "rate": self.work / t.median, "ratio": t.ratio,
                                "ratio_low": min(t.ratios), "ratio_high": max(t.ratios)} for t in self.timings]}


def paired(name: str, contenders: Sequence[Contender], check: Callable[[Any, Any], None], *, work: float, unit: str,
           repeats: int, warm: bool = True) -> Case:
    """Time the contenders in turn, `repeats` rounds, and hold each answer to the first contender's.

    Arguments:
        check: called as ``check(ours, theirs)`` once for each peer; raises AssertionError where the answers differ.
        warm: one run of each before the clock counts: compiled kernels, the page cache.
    """
    if warm:
        for contender in contenders:
            _once(contender)
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    for k in range(repeats):
        answers = {}
        for contender in contenders:
            if contender.repeats is None or k < contender.repeats:
                took, answer = _once(contender)
                seconds[contender.name].append(took)
                if k == 0:
                    answers[contender.name] = answer
        for other in contenders[1:]:
            if k == 0:
                check(answers[contenders[0].name], answers[other.name])
    ours = seconds[contenders[0].name]
    return Case(name, work, unit, tuple(
        Timing(c.name, tuple(seconds[c.name]),
               tuple(theirs / own for theirs, own in zip(seconds[c.name], ours, strict=False)))
        for c in contenders))


def _once(contender: Contender) -> tuple[float, Any]:
    prepared = contender.prepare()
    gc.collect()
    began = time.perf_counter()
    answer = contender.run(prepared)
    took = time.perf_counter() - began
    return took, contender.finish(prepared, answer)
