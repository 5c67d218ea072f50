"""Equations of a model to be fitted, D O = Y with a row a snapshot: held in memory, or summed up in one read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ensemblekit.averaging.extremes import Extremes
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.regression import Regression, RegressionResult
from ensemblekit.averaging.run import partials, reduce
from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.derivative import Scheme, equations
from ensemblekit.rom.forecast import Resamples
from ensemblekit.rom.least_squares import Problem, resampled, resampled_blocks, stacked, without_known
from ensemblekit.rom.operators import n_terms
from ensemblekit.rom.training import (
    Collected,
    Run,
    Spread,
    TrainingData,
    Whole,
    check_run_finite,
    collected,
    listed,
    read_whole,
)
from ensemblekit.source import Block, as_source
from ensemblekit.source_views import Reweighted

Terms = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""States (n, r) and inputs (n, m) -> D (n, d)."""
COPIES = 3
"""Of D in memory while it is solved."""
LARGEST = Extremes()
WINDOW = 4000
"""Snapshots of the windows that stand for states larger than memory."""
WINDOWS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The equations of all runs, in memory."""

    data: TrainingData
    states: np.ndarray
    inputs: np.ndarray
    right: np.ndarray
    """(n, r): the next states, or derivatives."""
    runs: list[int]
    """Rows of each run."""
    design: np.ndarray
    """(n, d)."""

    @classmethod
    def of(cls, data: TrainingData, terms: Sequence[Terms], scheme: Scheme, period: float | None) -> Rows:
        """From runs, each with its terms, stepped or differentiated."""
        parts = [equations(run, scheme, period) for run in data.runs]
        x, u, y = (np.concatenate([part[k] for part in parts]) for k in range(3))
        design = np.concatenate([own(part[0], part[1]) for own, part in zip(terms, parts, strict=True)])
        return cls(data, x, u, y, [len(part[0]) for part in parts], design)

    @property
    def n(self) -> int:
        return len(self.design)

    @property
    def n_unknowns(self) -> int:
        return self.design.shape[1]

    def problem(self, prior: np.ndarray | None) -> Problem:
        return Problem.of(self.design, self.right, prior)

    def given(self, known: np.ndarray) -> Rows:
        """The equations of the other operators where the last ones (m, r) are known."""
        free = self.n_unknowns - len(known)
        return replace(self, design=self.design[:, :free], right=self.right - self.design[:, free:] @ known)

    def feedback(self) -> np.ndarray:
        """(m,): the share of each input's variation that does not follow from the state."""
        n, r = self.states.shape
        if n <= 2 * (r + 1):
            return np.ones(self.inputs.shape[1])
        regressors = np.concatenate([np.ones((n, 1)), self.states], axis=1)
        regressors = regressors / np.maximum(np.sqrt((np.abs(regressors) ** 2).mean(axis=0)), 1e-300)
        left = self.inputs - regressors @ np.linalg.lstsq(regressors, self.inputs, rcond=1e-13)[0]
        varies = self.inputs - self.inputs.mean(axis=0)
        return np.sqrt((np.abs(left) ** 2).sum(axis=0) / np.maximum((np.abs(varies) ** 2).sum(axis=0), 1e-300))

    def resampled(self, operators: np.ndarray, weights: np.ndarray, problem: Problem, residuals: np.ndarray, *,
                  n_resamples: int, rng: np.random.Generator | int) -> Resamples:
        """Operators of resampled blocks of rows."""
        return resampled(self.design, self.right, self.runs, operators, weights, problem, residuals=residuals,
                         n_resamples=n_resamples, rng=rng)

    def readout(self, outputs: np.ndarray) -> np.ndarray:
        """(p, 1 + r + m): outputs (n, p), a row a snapshot, read off states and inputs."""
        u = np.concatenate([run.inputs for run in self.data.runs])
        columns = np.concatenate([np.ones((self.data.n, 1)), self.data.states, u], axis=1)
        return np.linalg.lstsq(columns, outputs, rcond=1e-13)[0].T


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Consecutive snapshots of a run that is not held."""

    source: Any
    """Of states (k,)."""
    inputs: np.ndarray
    times: np.ndarray
    first: int
    """Of its snapshots, in all that were given."""

    def __len__(self) -> int:
        return len(self.times)

    def read(self, start: int, stop: int) -> Run:
        """Some of the snapshots, in memory."""
        return Run(read_whole(self.source.window(start, stop))[0], self.inputs[start:stop], self.times[start:stop])


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """How states, inputs, outputs and the time lie side by side in a row."""

    r: int
    m: int
    p: int

    def joined(self, block: Block, inputs: np.ndarray, outputs: np.ndarray, times: np.ndarray, *, offset: int) -> np.ndarray:
        """(n, r + m + p + 1) of a block of states."""
        rows = slice(offset + block.start, offset + block.start + len(block))
        return np.concatenate([np.asarray(block.only), inputs[rows], outputs[rows], times[rows, None]], axis=1)

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """States, inputs, outputs, times."""
        r, m, p = self.r, self.m, self.p
        return values[:, :r], values[:, r:r + m], values[:, r + m:r + m + p], values[:, -1].real

    def of_model(self, values: np.ndarray, *, terms: Terms, scheme: Scheme,
                 period: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the model's equations."""
        x, u, _, t = self.split(values)
        left, inputs, right = equations(Run(x, u, t), scheme, period)
        return terms(left, inputs), right

    def of_feedback(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of inputs as functions of the state."""
        x, u, _, _ = self.split(values)
        return np.concatenate([np.ones((len(x), 1)), x], axis=1), u

    def of_outputs(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of outputs as functions of state and inputs."""
        x, u, y, _ = self.split(values)
        return np.concatenate([np.ones((len(x), 1)), x, u], axis=1), y


@dataclass(frozen=True, slots=True, eq=False)
class SummedRows:
    """The equations of states larger than memory, as triangles of consecutive blocks: made in one read, and one for the
    largest distance from the mean."""

    data: TrainingData
    blocks: list[list[RegressionResult]]
    """Of each stretch, in order; equations across their cuts are in `total` alone."""
    total: RegressionResult
    inputs: RegressionResult | None
    outputs: RegressionResult | None
    input_variation: np.ndarray
    """(m,): root mean square of each input about its mean."""

    @property
    def n(self) -> int:
        return self.total.n

    @property
    def n_unknowns(self) -> int:
        return self.total.n_regressors

    def problem(self, prior: np.ndarray | None) -> Problem:
        return Problem.of_triangle(self.total.triangle, self.total.n, self.total.n_regressors, prior)

    def given(self, known: np.ndarray) -> SummedRows:
        """The equations of the other operators where the last ones (m, r) are known."""
        return replace(self, total=without_known(self.total, known),
                       blocks=[[without_known(one, known) for one in run] for run in self.blocks])

    def feedback(self) -> np.ndarray:
        """(m,): the share of each input's variation that does not follow from the state."""
        if self.inputs is None:
            return np.ones(0)
        return self.inputs.residual / np.maximum(self.input_variation, 1e-300)

    def resampled(self, operators: np.ndarray, weights: np.ndarray, problem: Problem, residuals: np.ndarray, *,
                  n_resamples: int, rng: np.random.Generator | int) -> Resamples:
        """Operators of resampled blocks, from their triangles."""
        return resampled_blocks(self.blocks, operators, weights, problem, residuals=residuals, n_resamples=n_resamples, rng=rng)

    def readout(self, outputs: np.ndarray) -> np.ndarray:
        """(p, 1 + r + m): the outputs that were read along."""
        assert self.outputs is not None, f"outputs {outputs.shape} that were not read along"
        return self.outputs.coefficients.T


@dataclass(frozen=True, slots=True, eq=False)
class Unread:
    """Runs of states larger than memory; windows of them are."""

    stretches: list[Stretch]
    data: TrainingData
    """Its spread is not known yet."""

    def summed(self, terms: Terms, scheme: Scheme, period: float | None, outputs: np.ndarray | None) -> SummedRows:
        """Their equations, in one read, and their spread, in another."""
        columns = Columns(self.data.rank, len(self.data.inputs), 0 if outputs is None else outputs.shape[1])
        patterns = {"model": Regression(partial(columns.of_model, terms=terms, scheme=scheme, period=period),
                                        1 if period is not None or isinstance(scheme, str) else int(scheme))}
        if columns.m:
            patterns["inputs"] = Regression(columns.of_feedback)
        if outputs is not None:
            patterns["outputs"] = Regression(columns.of_outputs)
        middle = (self.data.n + 1) // 2
        blocks: list[list[RegressionResult]] = []
        totals: dict[str, list[RegressionResult]] = {name: [] for name in patterns}
        halves: list[Moments] = [Moments(), Moments()]
        for one in self.stretches:
            whole = {name: pattern.empty() for name, pattern in patterns.items()}
            blocks.append([])
            y = np.empty((len(one), 0)) if outputs is None else outputs[one.first:one.first + len(one)]
            edge = min(max(middle - one.first, 0), len(one))
            for half, (a, b) in enumerate(((0, edge), (edge, len(one)))):
                if b <= a:
                    continue
                joined = partial(columns.joined, inputs=one.inputs, outputs=y, times=one.times, offset=a)
                (run,) = partials(one.source.window(a, b), {
                    "values": Moments(), **{name: (joined, pattern) for name, pattern in patterns.items()}})
                for states in run.states:
                    values: Any = states["values"][0]
                    halves[half].merge(values)
                    model: Any = states["model"][0]
                    blocks[-1] += [model.result()] if model.n else []
                    for name, total in whole.items():
                        more: Any = states[name][0]
                        total.merge(more)
            for name, total in whole.items():
                totals[name] += [total.result()] if total.n else []
        if not totals["model"]:
            raise InputError(f"{self.data.n} snapshots in {len(self.stretches)} stretches make no equation: take longer runs")
        data = self._spread(halves)
        u = np.concatenate([one.inputs for one in self.stretches])
        return SummedRows(data, blocks, stacked(totals["model"]), stacked(totals["inputs"]) if columns.m else None,
                          stacked(totals["outputs"]) if outputs is not None else None,
                          np.sqrt((np.abs(u - u.mean(axis=0)) ** 2).mean(axis=0)))

    def _spread(self, halves: list[Moments]) -> TrainingData:
        """The data with their spread: means of the halves are there, the largest distance from the mean takes a read."""
        parts = [half.result() for half in halves if half.n]
        mean = np.sum([np.asarray(part.mean) * (part.n / self.data.n) for part in parts], axis=0)
        if not np.isfinite(mean).all():
            several = len(self.stretches) > 1
            for k, one in enumerate(self.stretches):
                for start in range(0, len(one), WINDOW):
                    check_run_finite(one.read(start, min(start + WINDOW, len(one))), k if several else None, start)
        squares = [float((np.nan_to_num(np.asarray(part.variance)) * (part.n - 1) / part.n
                          + np.abs(np.asarray(part.mean) - mean) ** 2).sum()) for part in parts]
        largest = 0.0
        for one in self.stretches:
            extremes = reduce(one.source, {"distance": (partial(_distance, mean=mean), LARGEST)})["distance"]
            largest = max(largest, float(extremes.high))
        total = sum(square * part.n for square, part in zip(squares, parts, strict=True)) / self.data.n
        spread = Spread(mean, float(np.sqrt(total)), largest, tuple(float(np.sqrt(square)) for square in squares))
        assert self.data.whole is not None
        return replace(self.data, whole=replace(self.data.whole, spread=spread))


def _distance(block: Block, mean: np.ndarray) -> np.ndarray:
    """(n,): of states from their mean."""
    return np.sqrt((np.abs(np.asarray(block.only) - mean) ** 2).sum(axis=1))


def unread(x: Any, inputs: Any, *, basis: Basis | None, even: bool, form: str, memory: int) -> Unread | None:
    """Runs whose equations would take more than `memory` bytes, not read yet; None where they take less."""
    shapes = [_shape(one) for one in listed(x)]
    if any(shape is None for shape in shapes):
        return None
    n, r = sum(shape[0] for shape in shapes if shape), max(shape[1] for shape in shapes if shape)
    if 8 * n * (COPIES * (n_terms(form, r, 1) + r) + r) <= memory:
        return None
    parts = collected(x, inputs, basis=basis, even=even, unread=True)
    stretches, first = [], 0
    for part in parts.parts:
        for rows in parts.stretches(part):
            states = part.states.window(rows.start, rows.stop)
            if states.weights is not None:      # they do not enter the fit, nor the mean of the states
                states = Reweighted(states, np.ones(rows.stop - rows.start))
            stretches.append(Stretch(states, part.inputs[rows], part.times[rows], first + rows.start))
        first += len(part.times)
    return Unread(stretches, _windows(parts, stretches))


def _windows(parts: Collected, stretches: list[Stretch]) -> TrainingData:
    """Beginnings of the longest stretches, and windows all over them."""
    longest = sorted(range(len(stretches)), key=lambda k: -len(stretches[k]))[:WINDOWS]
    runs = tuple(stretches[k].read(0, min(WINDOW, len(stretches[k]))) for k in sorted(longest))
    n, n_each = sum(len(one) for one in stretches), max(1, WINDOWS // len(longest))
    windows = []
    for k in sorted(longest):
        one = stretches[k]
        size = min(WINDOW, len(one))
        starts = np.unique(np.linspace(0, len(one) - size, n_each).astype(int))
        windows += [one.read(int(start), int(start) + size) for start in starts]
    last = stretches[-1].read(len(stretches[-1]) - 1, len(stretches[-1]))
    unknown = Spread(np.zeros(runs[0].states.shape[1]), 0.0, 0.0, ())
    whole = Whole(n, len(stretches), max(float(one.times[-1] - one.times[0]) for one in stretches), unknown, last,
                  tuple(windows))
    notes = (*parts.notes_of(len(stretches)), f"fitted in two reads of {n} states, which were not held in memory")
    return TrainingData(runs, tuple(range(len(runs))), parts.interval, parts.even, parts.basis, parts.time_unit, parts.names,
                        notes, whole)


def _shape(x: Any) -> tuple[int, int] | None:
    """Snapshots and states of one run, or of a basis; None where they are known after reading only."""
    if isinstance(x, Basis):
        return x.coefficients.shape
    source = as_source(x)
    if source.lengths is None or len(source.lengths) != 1 or source.access == "once":
        return None
    return source.lengths[0], max(field.size for field in source.fields.values())
