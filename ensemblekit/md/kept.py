"""What observables with statistics of their own get of a run that was read: its states, without the discarded start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.averaging.blocking import FEWEST, blocking
from ensemblekit.averaging.derived import Periodic
from ensemblekit.averaging.doubts import ENOUGH, judged
from ensemblekit.averaging.estimate import Estimate, student_interval
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.run import States
from ensemblekit.averaging.second import STRETCHES, interval_above
from ensemblekit.md.observables.base import Coords


@dataclass(frozen=True, eq=False)
class KeptRun:
    """One run as it was read: see :class:`~ensemblekit.md.observables.base.Kept`."""

    n: int
    times: np.ndarray | None
    weights: np.ndarray | None
    confidence: float
    states: list[tuple[int, list[Reducer]]]
    n_discarded: int = 0
    equilibration_time: float = 0.0
    time_unit: str = ""
    equilibration: Any = None
    run: int = 0

    def merged(self) -> tuple[Any, ...]:
        """The results of the reducers over all frames kept."""
        return tuple(r.result() for r in _join([states for _, states in self.states]))

    def estimate(self, function: Callable[..., Any], unit: str = "", coords: Coords = {},      # noqa: B006
                 independent: Any = None, degree: int = 1) -> Estimate:
        """The Estimate of `function(*results of the reducers)`: its error from pseudo-values of the parts, each left out."""
        weighty = self._weights() > 0
        parts = [states for (_, states), held in zip(self.states, weighty, strict=True) if held]
        value = np.asarray(function(*self.merged()), np.float64)
        facts: dict[str, Any] = {"confidence": self.confidence, "n": self.n, "n_discarded": self.n_discarded,
                                 "equilibration_time": self.equilibration_time, "unit": unit, "coords": dict(coords),
                                 "times": self.times, "time_unit": self.time_unit if self.times is not None else ""}
        weights = self._weights()[weighty]
        shares = weights / weights.sum()
        if len(parts) < FEWEST:
            none = np.full(value.shape, np.nan)
            why = f"{len(parts)} parts of the run have weight: an error needs at least {FEWEST}"
            return Estimate(mean=_plain(value), stderr=_plain(none), interval=(_plain(none), _plain(none)),
                            n_eff=_plain(none), statistical_inefficiency=_plain(none), correlation_time=_plain(none),
                            dof=_plain(none), converged=False, verdict=why, **facts)
        before = [parts[0]]
        for part in parts[1:-1]:
            before.append(_join([before[-1], part]))
        pseudo = np.empty((len(parts), *value.shape))
        after: list[Reducer] | None = None
        for k in range(len(parts) - 1, -1, -1):
            rest = _join([p for p in (before[k - 1] if k else None, after) if p is not None])
            without = np.asarray(function(*(r.result() for r in rest)), np.float64)
            if isinstance(function, Periodic):
                without = function.near(value, without)
            pseudo[k] = value - (1 / shares[k] - 1) * (without - value)
            after = parts[k] if after is None else _join([parts[k], after])
        block = blocking(pseudo, weights).chosen()
        with np.errstate(invalid="ignore", divide="ignore"):
            n_eff = np.where(np.ptp(pseudo, axis=0) > 0, len(parts) / np.maximum(block.g, 1.0), np.nan)
            g = self.n / n_eff
        interval = student_interval(value, block.stderr, block.dof, self.confidence) if independent is None else (
            interval_above(0.0, value, block.stderr, block.dof, self.confidence, degree, independent=independent))
        return judged(Estimate(
            mean=_plain(value), stderr=_plain(block.stderr), n_eff=_plain(n_eff), statistical_inefficiency=_plain(g),
            interval=interval, correlation_time=_plain(g / 2 * self.spacing()), dof=_plain(block.dof),
            estimators={"jackknife": _plain(block.stderr)}, **facts),
            independent=independent, enough=ENOUGH if independent is None else STRETCHES)

    def _weights(self) -> np.ndarray:
        """Of each part, its frames' together."""
        starts = np.array([start for start, _ in self.states]) - self.states[0][0]
        w = np.ones(self.n) if self.weights is None else self.weights
        return np.add.reduceat(w, starts)

    def spacing(self) -> float:
        times = self.times
        if times is None or len(times) < 2 or times[-1] == times[0]:
            return 1.0
        return float((times[-1] - times[0]) / (len(times) - 1))


def kept_run(states: list[tuple[int, States]], name: str, time_unit: str = "", confidence: float = 0.95) -> KeptRun:
    """The run of branch `name`, of which no frame is discarded; "clock" holds its times and weights."""
    clock = np.concatenate([np.asarray(state["clock"][0].result()).reshape(-1, 2) for _, state in states])
    times = None if np.isnan(clock[:, 0]).all() else clock[:, 0]
    weights = None if np.isnan(clock[:, 1]).all() else clock[:, 1]
    return KeptRun(len(clock), times, weights, confidence, [(start, state[name]) for start, state in states],
                   time_unit=time_unit)


def _join(parts: list[list[Any]]) -> list[Reducer]:
    total = [r.restored(r.state()) for r in parts[0]]
    for part in parts[1:]:
        for a, b in zip(total, part, strict=True):
            a.merge(b)
    return total


def _plain(x: Any) -> Any:
    return float(x) if np.ndim(x) == 0 else np.asarray(x)
