"""Runs of a model: start, times and inputs as users give them, the march, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.operators import METHODS, UNBOUNDED, Dynamics, Method
from ensemblekit.rom.training import Run, Training, TrainingData, input_columns
from ensemblekit.rom.trajectory import Trajectory

FARTHEST = 1e3
"""A run that leaves so many times the range of the training has diverged."""
HINDCASTS = 24
"""Forecasts from within the training that are compared with what came."""


def simulated(dynamics: Dynamics, x0: Any, times: ArrayLike, inputs: Any, *, method: Method, step: float | None, rtol: float,
              basis: Basis | None, training: Training | None, time_unit: str, names: tuple[str, ...],
              readout: np.ndarray | None) -> Trajectory:
    """The trajectory of a model from a state, a snapshot or a batch of either."""
    clock = checked_times(times)
    check_method(method, dynamics.period)
    start, single = state_of(x0, dynamics.rank, basis)
    u = inputs_for(inputs, len(clock), names, clock, dynamics.period)
    center, bound = bounds_of(training, dynamics.rank)
    out, rows, stopped = dynamics.march(start, clock, u, method=method, step=step or 0.0, rtol=rtol, center=center, bound=bound)
    kept = int(rows.min())
    states = np.swapaxes(out, 0, 1)[:kept]
    outputs = None
    if readout is not None:
        outputs = output_of(readout, states, u[:kept])
    return Trajectory(times=clock[:kept], coefficients=states[:, 0] if single else states,
                      inputs=u[:kept] if names else None,
                      outputs=outputs if outputs is None or not single else outputs[:, 0],
                      diverged_at=None if np.isinf(stopped).all() else float(stopped.min()),
                      diverged=None if np.isinf(stopped).all() else np.flatnonzero(stopped == stopped.min()),
                      basis=basis, time_unit=time_unit)


def output_of(readout: np.ndarray, states: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """y = readout [1, x, u]: (n, m, p) of states (n, m, r) and inputs (n, inputs)."""
    r = states.shape[-1]
    return readout[:, 0] + states @ readout[:, 1:1 + r].T + (inputs @ readout[:, 1 + r:].T)[:, None, :]


def checked_times(times: ArrayLike) -> np.ndarray:
    """Times as rising numbers. Raises InputError."""
    clock = as_array(times, "times", kinds="biuf", dtype=np.float64)
    if clock.ndim != 1 or not len(clock) or not np.isfinite(clock).all() or (np.diff(clock) <= 0).any():
        raise InputError(f"times of a run are an array of rising numbers, the first that of x0; got shape {clock.shape}"
                         + (", which do not rise" if clock.ndim == 1 and len(clock) else ""))
    return clock


def check_method(method: str, period: float | None) -> None:
    """Raise InputError for a method that there is none of."""
    if method not in METHODS:
        raise InputError(f"method is one of {', '.join(map(repr, METHODS))}; got {method!r}")
    if period is not None and method != "auto":
        raise InputError(f"a discrete model (period {period:.6g}) is stepped, not integrated: method={method!r} goes with "
                         'continuous ones (time="continuous")')


def bounds_of(training: Training | None, rank: int) -> tuple[np.ndarray, float]:
    """Centre of the states, and the distance from it that is called divergence."""
    if training is None or not training.largest > 0:
        return np.zeros(rank), UNBOUNDED
    return training.mean, FARTHEST * training.largest


def state_of(x0: Any, rank: int, basis: Basis | None) -> tuple[np.ndarray, bool]:
    """Start states (m, rank), and whether it is a single one. Raises InputError naming what x0 may be."""
    if isinstance(x0, Mapping) and basis is not None:
        coefficients = basis.project(x0)
        return np.atleast_2d(coefficients), coefficients.ndim == 1
    values: np.ndarray = as_array(x0, "x0", kinds="biufc") if not isinstance(x0, Mapping) else np.empty(0)
    item: tuple[int, ...] | None = basis.mean.shape if basis is not None else None
    if values.shape in ((rank,), ()) or (values.ndim == 2 and values.shape[1] == rank and values.shape != item):
        if values.shape == () and rank > 1:
            raise InputError(f"x0 is a single number; a state has {rank} coefficients")
        states, single = values.reshape(-1, rank), values.ndim < 2
    elif basis is not None and item is not None and values.shape[values.ndim - len(item):] == item and (
            values.ndim <= len(item) + 1):
        coefficients = basis.project(x0)
        states, single = np.atleast_2d(coefficients), coefficients.ndim == 1
    else:
        snapshot = "" if item is None else (f", or a snapshot of shape {item} (it is projected), or several of either along "
                                            "axis 0")
        raise InputError(f"x0 is a state of {rank} coefficients, shape ({rank},){snapshot}; got shape {values.shape}")
    if not np.isfinite(states).all():
        raise InputError("x0 holds NaN or infinity")
    return states.astype(np.result_type(states.dtype, np.float64)), single


def inputs_for(inputs: Any, n: int, names: tuple[str, ...], times: np.ndarray | None = None,
               period: float | None = None) -> np.ndarray:
    """Inputs (n, m) of a run of n times; the last of them leads nowhere and may be left out."""
    if not names:
        if inputs is not None:
            raise InputError('this model has no inputs; fit it with inputs= and "B" in the form')
        return np.zeros((n, 0))
    if inputs is None:
        raise InputError(f"this model has the inputs {', '.join(names)}: pass inputs=, ({n}, {len(names)}), that of each time "
                         "held until the next")
    values, _ = input_columns(inputs)
    if values.shape[1] != len(names) or len(values) not in (n, n - 1):
        raise InputError(f"inputs have shape {values.shape}; for {n} times and the inputs {', '.join(names)} it is "
                         f"({n}, {len(names)}), or one row fewer as the last leads nowhere")
    if times is not None and period is not None:
        steps = np.diff(times) / period
        if len(steps) and np.abs(steps - 1).max() > 1e-4:
            raise InputError(f"a discrete model takes one row of inputs a step: times one period ({period:.6g}) apart; got "
                             f"{np.diff(times)[np.argmax(np.abs(steps - 1))]:.6g}")
    return values if len(values) == n else np.concatenate([values, values[-1:]])


# -- the training again ---------------------------------------------------------------------------------------------


def one_step(dynamics: Dynamics, states: np.ndarray, before: np.ndarray, after: np.ndarray, interval: np.ndarray) -> np.ndarray:
    """States (n, r) one interval later, each from its own with its own inputs (n, m) before and after."""
    if dynamics.period is not None:
        return dynamics.rate(states, before)
    parts = 4
    x = states
    h = (interval / parts)[:, None]

    def inputs(share: float) -> np.ndarray:
        return before + share * (after - before)

    for j in range(parts):
        with np.errstate(over="ignore", invalid="ignore"):
            a = dynamics.rate(x, inputs(j / parts))
            b = dynamics.rate(x + h / 2 * a, inputs((j + 0.5) / parts))
            c = dynamics.rate(x + h / 2 * b, inputs((j + 0.5) / parts))
            d = dynamics.rate(x + h * c, inputs((j + 1) / parts))
            x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


def residuals_of(dynamics: Dynamics, runs: tuple[Run, ...]) -> np.ndarray:
    """What came less what the model says, one step on, (n, r) of all pairs."""
    residuals = []
    for run in runs:
        if len(run) > 1:
            residuals.append(run.states[1:] - one_step(dynamics, run.states[:-1], run.inputs[:-1], run.inputs[1:],
                                                       np.diff(run.times)))
    return np.concatenate(residuals)


def trained_on(data: TrainingData, dynamics: Dynamics) -> Training:
    """What a model remembers of its training, hindcasts included."""
    spread, last = data.spread, data.last
    without = Training(n=data.n, runs=data.n_runs, last=last.states[-1], last_inputs=last.inputs[-1],
                       time=float(last.times[-1]), interval=data.interval, span=data.span, mean=spread.mean,
                       fluctuation=spread.fluctuation, largest=spread.largest, leads=np.empty(0, int),
                       errors=np.empty((0, 3)), time_unit_text=data.time_unit)
    leads, errors = _hindcasts(data, dynamics, without)
    return replace(without, leads=leads, errors=errors)


def _hindcasts(data: TrainingData, dynamics: Dynamics, training: Training) -> tuple[np.ndarray, np.ndarray]:
    """Leads (l,) and root mean square errors (l, 3) of the model, of persistence and of the mean."""
    runs = data.sampled
    longest = max(len(run) for run in runs)
    reach = max(1, longest // 2)
    if longest < 2:
        return np.empty(0, int), np.empty((0, 3))
    center, bound = bounds_of(training, dynamics.rank)
    sums, counts = np.zeros((reach, 3)), np.zeros(reach)
    useful = [run for run in runs if len(run) > reach]
    for run in useful[:HINDCASTS]:
        starts = np.unique(np.linspace(0, len(run) - 1 - reach, max(1, HINDCASTS // len(useful))).astype(int))
        for start in starts:
            clock, u = run.times[start:start + reach + 1], run.inputs[start:start + reach + 1]
            truth = run.states[start + 1:start + reach + 1]
            if dynamics.period is not None:
                clock = clock[0] + dynamics.period * np.arange(len(clock))
            out, rows, _ = dynamics.march(run.states[start][None], clock, u, center=center, bound=bound)
            model = np.where(np.arange(1, reach + 1) < rows[0], (np.abs(out[0, 1:] - truth) ** 2).sum(axis=1), np.inf)
            sums[:, 0] += model
            sums[:, 1] += (np.abs(truth - run.states[start]) ** 2).sum(axis=1)
            sums[:, 2] += (np.abs(truth - training.mean) ** 2).sum(axis=1)
            counts += 1
    return np.arange(1, reach + 1), np.sqrt(sums / counts[:, None])
