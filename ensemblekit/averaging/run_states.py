"""One run as it was read: its partial states in time order; where it begins, and the error of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.band import Scale, critical_value, noting_few, with_band
from ensemblekit.averaging.blocking import FEWEST, blocking
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.equilibration import Equilibrate, count_discarded, detect_common_start, run_doubts
from ensemblekit.averaging.estimate import Coords, Estimate, student_interval
from ensemblekit.averaging.independent import check_unordered, doubts_of_independent
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.second import STRETCHES, interval_above
from ensemblekit.averaging.times import spacing, time_at
from ensemblekit.averaging.weights import kish
from ensemblekit.errors import InputError

States = dict[str, list[Reducer]]
"""Name of a branch -> the states of its reducers."""


@dataclass(frozen=True)
class Periodic:
    """A function whose values come round after `period`, such as the direction of a mean vector (360 degrees).

    Where leaving a part out takes the value over the seam it is brought back before it is compared.
    """

    function: Callable[..., ArrayLike]
    period: float = 360.0

    def __call__(self, *statistics: Any) -> ArrayLike:
        return self.function(*statistics)

    def near(self, value: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The other value, by whole periods as near as can be."""
        return other - self.period * np.rint((other - value) / self.period)


@dataclass(frozen=True, eq=False)
class RunStates:
    """One run as it was read once: partial states in time order, and the times and weights of its snapshots.

    What :func:`~ensemblekit.partials` gives for each run. Nothing here changes the states it holds.
    """

    run: int
    """Which of the runs of the source, from 0."""
    n: int
    """Snapshots, those discarded left out."""
    starts: tuple[int, ...]
    """Of each state its first snapshot, counted from the beginning of the run."""
    states: tuple[States, ...]
    """Of consecutive parts of the run: name of the branch -> its reducers."""
    times: np.ndarray | None = None
    """Of the snapshots, (n,)."""
    weights: np.ndarray | None = None
    """Their statistical weights, (n,)."""
    time_unit: str = ""
    n_discarded: int = 0
    """Snapshots left out at the beginning."""
    equilibration_time: float = 0.0
    """How much time they take; in snapshots where there are no times."""
    ordered: bool = True
    """Whether the snapshots follow each other in time. False: each is independent of the others, and none is left out."""
    doubts: tuple[str, ...] = field(default=())
    """Why no interval of this run can be vouched for, in words."""

    @property
    def spacing(self) -> float:
        """Mean time between snapshots; 1 where they are only counted."""
        return spacing(self.times)

    @property
    def facts(self) -> dict[str, Any]:
        """What an Estimate says of the run it is of."""
        return {"n": self.n, "n_discarded": self.n_discarded, "equilibration_time": self.equilibration_time,
                "times": self.times, "time_unit": self.time_unit if self.times is not None else ""}

    def of(self, name: str) -> RunStates:
        """The run with the states of one branch alone."""
        return replace(self, states=tuple({name: state[name]} for state in self.states))

    def reducers(self, name: str) -> list[list[Reducer]]:
        """The reducers of a branch in each part."""
        return [state[name] for state in self.states]

    def series(self, name: str, which: int = 0) -> np.ndarray:
        """All values (n, ...) kept by a branch's reducer number `which`, which is a :class:`~ensemblekit.Series`."""
        return np.concatenate([np.asarray(reducers[which].result()) for reducers in self.reducers(name)])

    def since(self, start: int) -> RunStates:
        """The run from its snapshot `start` on, and of its states those that begin there or later."""
        if not start:
            return self
        first = next((k for k, begin in enumerate(self.starts) if begin >= start + self.n_discarded), len(self.starts))
        return replace(self, n=self.n - start, starts=self.starts[first:], states=self.states[first:],
                       times=None if self.times is None else self.times[start:],
                       weights=None if self.weights is None else self.weights[start:],
                       n_discarded=self.n_discarded + start, equilibration_time=time_at(self.times, start))

    def after(self, equilibration: Equilibrate, proxies: np.ndarray | None = None, *,
              values: np.ndarray | None = None) -> RunStates:
        """The run without its start: rounded up to where a state begins, so that nothing is read again.

        Arguments:
            equilibration: as for :func:`~ensemblekit.average`.
            proxies: (n, k) series in which "auto" seeks the start: the values or what stands for them.
            values: (n,) or (n, k), what correlates with the weights; by default these themselves.
        """
        if not self.starts:
            raise InputError("the run holds no states")
        if not self.ordered:
            check_unordered(equilibration)
            return replace(self, doubts=doubts_of_independent(self.weights))
        wanted = count_discarded(equilibration, self.n, self.times,
                             lambda: 0 if proxies is None else detect_common_start(proxies, self.weights))
        columns = values if values is not None else np.zeros(self.n) if self.weights is None else self.weights
        doubts = run_doubts(wanted, self.n, equilibration, self.weights, columns)
        begins = [begin - self.n_discarded for begin in self.starts]
        return replace(self.since(next((begin for begin in begins if begin >= wanted), begins[-1])), doubts=doubts)

    def merged(self, start: int = 0) -> States:
        """The states from snapshot `start` of the run on, merged in time order."""
        kept = [state for begin, state in zip(self.starts, self.states, strict=True) if begin >= start]
        if not kept:
            raise InputError(f"no partial state begins at or after snapshot {start}; they begin at {list(self.starts)}")
        total = copied(kept[0])
        for state in kept[1:]:
            merge_into(total, state)
        return total

    def results(self, name: str) -> tuple[Any, ...]:
        """What the reducers of a branch give for the whole run."""
        return tuple(reducer.result() for reducer in self.of(name).merged()[name])

    @property
    def part_weights(self) -> np.ndarray:
        """Of each state, the weight of its snapshots together; their number where they have none."""
        w = np.ones(self.n) if self.weights is None else self.weights
        return np.add.reduceat(w, np.array(self.starts) - self.starts[0])

    def without(self) -> Iterator[tuple[int, States]]:
        """(number of a part, the others merged), the last part first; of parts that have weight.

        Each side of the hole is merged once, from its end: as many merges as there are parts, thrice.
        """
        held = [k for k, weight in enumerate(self.part_weights) if weight > 0]
        parts = [self.states[k] for k in held]
        if len(parts) < 2:
            return
        before = [parts[0]]
        for part in parts[1:-1]:
            before.append(joined([before[-1], part]))
        after: States | None = None
        for k in range(len(parts) - 1, -1, -1):
            yield held[k], joined([p for p in (before[k - 1] if k else None, after) if p is not None])
            after = parts[k] if after is None else joined([parts[k], after])

    def estimate(self, name: str, function: Callable[..., ArrayLike], *, confidence: float = 0.95, unit: str = "",
                 coords: Coords | None = None, independent: ArrayLike | None = None, degree: int = 1,
                 scale: Scale = "") -> Estimate:
        """The Estimate of ``function(*results of the reducers of a branch)``, its error by leaving out part after part.

        Pseudo-values of the parts (Quenouille 1956; of unequal weight by Busing, Meijer & van der Leeden, Stat. Comput. 9,
        3, 1999), and blocking over these. For reducers that do not ask what comes after what: the snapshots on both sides of
        the hole are merged.

        Arguments:
            independent: of a variance or its root, the independent stretches of what varies, (*item,): its interval grows
                with it, and these say whether it is vouched for.
            degree: 2 of the root.
            scale: of a curve that is to have a band, "linear" or "log".
        """
        run = self.of(name)
        value = np.asarray(function(*run.results(name)), np.float64)
        facts = {**self.facts, "confidence": confidence, "unit": unit, "coords": dict(coords or {}), "dt": self.spacing}
        weights = self.part_weights
        held = weights > 0
        count = int(held.sum())
        if count < FEWEST:
            return Estimate.of(value, refused=f"{count} parts of the run have weight: an error needs at least {FEWEST}",
                               **facts)
        shares = weights / weights[held].sum()
        pseudo = np.empty((len(weights), *value.shape))
        for k, rest in run.without():
            other = np.asarray(function(*(r.result() for r in rest[name])), np.float64)
            if isinstance(function, Periodic):
                other = function.near(value, other)
            pseudo[k] = value - (1 / shares[k] - 1) * (other - value)
        pseudo = pseudo[held]
        curve = blocking(pseudo, weights[held])
        block = curve.chosen() if self.ordered else curve.of_independent(kish(weights[held], count))
        with np.errstate(invalid="ignore", divide="ignore"):
            n_eff = np.where(np.ptp(pseudo, axis=0) > 0, count / np.maximum(block.g, 1.0), np.nan)
        interval = student_interval(value, block.stderr, block.dof, confidence) if independent is None else (
            interval_above(0.0, value, block.stderr, block.dof, confidence, degree, independent=independent))
        answer = Estimate.of(value, block.stderr, block.dof, n_eff=n_eff, interval=interval,
                             estimators={"jackknife": block.stderr}, **facts)
        answer = answer.judged(independent=independent, enough=ENOUGH if independent is None else STRETCHES)
        if not scale or not value.ndim:
            return answer
        joined = 2 ** int(np.quantile(block.level, 0.5, method="lower"))
        critical, blocks = critical_value(pseudo, weights[held], joined, confidence)
        return noting_few(with_band(answer, critical, scale), blocks)


def copied(states: States) -> States:
    """States that may be merged into without changing those given."""
    return {name: [r.restored(r.state()) for r in reducers] for name, reducers in states.items()}


def joined(parts: Sequence[Mapping[str, list[Reducer]]]) -> States:
    """Consecutive states merged in time order; those given are left as they are."""
    total = copied(dict(parts[0]))
    for part in parts[1:]:
        merge_into(total, part)
    return total


def merge_into(total: States, later: Mapping[str, list[Reducer]]) -> None:
    """Merge the state of the snapshots right after those of `total` into it."""
    for name, reducers in total.items():
        for a, b in zip(reducers, later[name], strict=True):
            merging: Any = a        # partials refuses those that do not merge; to ask each again costs more than merging
            merging.merge(b)


__all__ = ["Periodic", "RunStates", "States", "copied", "joined", "merge_into"]
