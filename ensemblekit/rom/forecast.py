"""Forecasts: a model from its last training state on, its resampled twins, and the band that they leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.results import Result
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.operators import Dynamics
from ensemblekit.rom.simulate import bounds_of, checked_times, inputs_for, output_of
from ensemblekit.rom.training import Training
from ensemblekit.rom.trajectory import Forecast, band

FEWEST_BLOCKS = 10
"""Blocks of pairs below which no interval is given."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resamples(Result):
    """Operators fitted to resampled blocks of the training, and the residuals that no operator explains."""

    matrices: np.ndarray
    """(s, d, r): operators, as `Dynamics.matrix`; (0, d, r) where there are none (`reason`)."""
    residuals: np.ndarray
    """(n, r): what came less what the model says, one step on."""
    block_length: float = 1.0
    """Pairs a block."""
    n_blocks: int = 0
    reason: str = ""
    """Why there are none."""

    @property
    def known(self) -> bool:
        return len(self.matrices) > 1


def forecast_times(times: Any, training: Training) -> np.ndarray:
    """Times after the training: those given, or so many periods. Raises InputError."""
    if isinstance(times, int | np.integer) and not isinstance(times, bool):
        if times < 1:
            raise InputError(f"a forecast is of 1 period or more; got {times!r}")
        return training.time + training.interval * np.arange(1, int(times) + 1)
    clock = checked_times(times)
    if clock[0] <= training.time:
        raise InputError(f"a forecast begins after the last training state, at {training.time:.6g}; got times from "
                         f"{clock[0]:.6g}. "
                         "Runs from elsewhere: model.simulate(x0, times)")
    return clock


def forecast(dynamics: Dynamics, training: Training | None, resamples: Resamples | None, times: Any, inputs: Any, *,
             confidence: float, n_resamples: int, basis: Basis | None, time_unit: str, names: tuple[str, ...],
             readout: np.ndarray | None, rng: np.random.Generator | int = 0) -> Forecast:
    """The run from the last training state on, with the band of its resampled twins."""
    if training is None:
        raise InputError("this model was not fitted to data, so no forecast begins where they end: model.simulate(x0, times)")
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
    clock = np.concatenate([[training.time], forecast_times(times, training)])
    u = _inputs(inputs, clock, training, names, dynamics.period)
    center, bound = bounds_of(training, dynamics.rank)
    start = training.last[None]
    out, rows, stopped = dynamics.march(start, clock, u, center=center, bound=bound)
    kept = int(rows[0])
    members, reached, spread, reason = None, None, None, "" if resamples is None else resamples.reason
    if n_resamples == 0 or resamples is None:
        reason = reason or ("n_resamples=0" if n_resamples == 0 else "the model was fitted without resamples (n_resamples=0)")
    elif resamples.known:
        members, reached, spread = _members(dynamics, training, resamples, clock, u, n_resamples, rng)
    low = high = y_low = y_high = None
    if members is not None and reached is not None and spread is not None:
        members, reached = members[:, 1:kept], reached - 1
        spread = spread[0][1:kept], spread[1][1:kept]
        low, high = band(members, np.minimum(reached, members.shape[1]), confidence)
        if readout is not None:
            y = np.swapaxes(output_of(readout, np.swapaxes(members, 0, 1), u[1:kept]), 0, 1)
            y_low, y_high = band(y, reached, confidence)
    states = out[0, 1:kept]
    skill = np.full(len(clock) - 1, np.nan)
    leads = np.round((clock[1:] - training.time) / training.interval).astype(int)
    held = (leads >= 1) & (leads <= len(training.leads))
    skill[held] = training.skill[leads[held] - 1]
    return Forecast(times=clock[1:kept], coefficients=states, inputs=u[1:kept] if names else None,
                    outputs=None if readout is None else output_of(readout, states[:, None], u[1:kept])[:, 0],
                    diverged_at=None if kept == len(clock) else float(stopped[0]),
                    diverged=None if kept == len(clock) else np.array([0]), basis=basis, time_unit=time_unit, low=low,
                    high=high,
                    outputs_low=y_low, outputs_high=y_high, confidence=confidence, members=members, reached=reached,
                    spread=spread, skill=skill[:kept - 1], reason=reason, history=_history(basis))


def _history(basis: Basis | None) -> tuple[np.ndarray, np.ndarray] | None:
    return None if basis is None or basis.times is None else (basis.times, basis.coefficients)


def _inputs(inputs: Any, clock: np.ndarray, training: Training, names: tuple[str, ...], period: float | None) -> np.ndarray:
    """Inputs (n + 1, m) at the last training time and the n after it.

    n rows are those held during the n steps, the first from the last training time on (of a continuous model: those at the
    n times, joined to the last of the training); n + 1 rows are those at all times.
    """
    if names and inputs is not None and len(inputs) == len(clock) - 1 and period is None:
        after = inputs_for(inputs, len(clock) - 1, names)
        return np.concatenate([training.last_inputs[None], after])
    return inputs_for(inputs, len(clock), names, clock, period)


def _members(dynamics: Dynamics, training: Training, resamples: Resamples, clock: np.ndarray, u: np.ndarray, n_resamples: int,
             rng: np.random.Generator | int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Runs (s, n, r) of resampled operators with resampled residuals, how far each came, and both spreads (n, r)."""
    generator = np.random.default_rng(rng)
    have = len(resamples.matrices)
    chosen = np.arange(min(n_resamples, have)) if n_resamples <= have else generator.integers(0, have, n_resamples)
    matrices = resamples.matrices[chosen]
    drawn = generator.integers(0, len(resamples.residuals), (len(chosen), len(clock) - 1))
    shocks = resamples.residuals[drawn] - resamples.residuals.mean(axis=0)
    # an interval of several steps gathers as many residuals
    shocks *= np.sqrt(np.maximum(np.diff(clock) / training.interval, 0))[None, :, None]
    center, bound = bounds_of(training, dynamics.rank)
    start = np.repeat(training.last[None], len(chosen), axis=0)
    alone, far, _ = dynamics.march(start, clock, u, center=center, bound=bound, matrices=matrices)
    together, reached, _ = dynamics.march(start, clock, u, center=center, bound=bound, matrices=matrices, shocks=shocks)
    return together, reached, (_spread(alone, far), _spread(together, reached))


def _spread(runs: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Standard deviation (n, r) over the members that came so far; infinite where fewer than two did."""
    held = (np.arange(runs.shape[1])[None, :] < reached[:, None])[:, :, None]
    count = held.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(held, runs, 0).sum(axis=0) / count
        variance = (np.abs(np.where(held, runs - mean, 0)) ** 2).sum(axis=0) / (count - 1)
    return np.where(count > 1, np.sqrt(variance), np.inf)
