"""States that a model is fitted to: runs of coefficients with their inputs, cut where their times do not go on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.rom.basis import Basis, warn_of_split_pair
from ensemblekit.source import ArraySource, ReplicaSet, SnapshotSource, as_source

EVEN = 1e-3
"""Steps of time within this share of each other are even: files round their times."""
FEWEST_EVEN = 0.8
"""The share of even steps from which on the others are gaps, and below which the times are uneven."""
GAP = 10.0
"""Among uneven times a step so many times the usual one is a gap."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Consecutive states of one run, without a gap."""

    states: np.ndarray
    """(n, k)."""
    inputs: np.ndarray
    """(n, m)."""
    times: np.ndarray
    """(n,)."""

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """How far states lie from their mean."""

    mean: np.ndarray
    """(k,)."""
    fluctuation: float
    """Root mean square distance from the mean."""
    largest: float
    """Largest distance from the mean."""
    halves: tuple[float, ...]
    """Root mean square distance in the first and in the second half."""

    @classmethod
    def of(cls, states: np.ndarray) -> Spread:
        """Of states (n, k)."""
        mean = states.mean(axis=0)
        distance = np.sqrt((np.abs(states - mean) ** 2).sum(axis=1))
        halves = tuple(float(np.sqrt((part**2).mean())) for part in np.array_split(distance, 2) if len(part))
        return cls(mean, math.sqrt(float((distance**2).mean())), float(distance.max()), halves)


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """What is known of states that are larger than memory, of which only windows are held."""

    n: int
    """Snapshots."""
    n_runs: int
    """Stretches without a gap."""
    span: float
    """Time from beginning to end of the longest of them."""
    spread: Spread
    last: Run
    """The last snapshot."""
    windows: tuple[Run, ...]
    """Stretches all over them: for residuals and hindcasts."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """All runs that a model is fitted to."""

    runs: tuple[Run, ...]
    members: tuple[int, ...]
    """Of each run, the number of the replica it is from: gaps cut a replica into several."""
    interval: float
    """Between snapshots (the usual one, of uneven times)."""
    even: bool
    basis: Basis | None
    time_unit: str
    inputs: tuple[str, ...]
    notes: tuple[str, ...]
    whole: Whole | None = None
    """Where the states are larger than memory: `runs` are then the beginnings of the longest ones."""

    @property
    def rank(self) -> int:
        return self.runs[0].states.shape[1]

    @property
    def n(self) -> int:
        return sum(len(run) for run in self.runs) if self.whole is None else self.whole.n

    @property
    def n_runs(self) -> int:
        return len(self.runs) if self.whole is None else self.whole.n_runs

    @property
    def sampled(self) -> tuple[Run, ...]:
        """All runs, or windows of them where they are larger than memory."""
        return self.runs if self.whole is None else self.whole.windows

    @property
    def spread(self) -> Spread:
        return Spread.of(self.states) if self.whole is None else self.whole.spread

    @property
    def span(self) -> float:
        """Of the longest run."""
        return max(float(np.ptp(run.times)) for run in self.runs) if self.whole is None else self.whole.span

    @property
    def last(self) -> Run:
        """The run that ends last, or its last snapshot."""
        return self.runs[-1] if self.whole is None else self.whole.last

    @property
    def states(self) -> np.ndarray:
        """(n, k): of all runs."""
        return np.concatenate([run.states for run in self.runs])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Training(Result):
    """What a model remembers of the states it was fitted to."""

    n: int
    """Snapshots."""
    runs: int
    last: np.ndarray
    """(k,): the state where forecasts begin, the last of the last run."""
    last_inputs: np.ndarray
    """(m,): the inputs at that time."""
    time: float
    """Of that state."""
    interval: float
    """Between snapshots."""
    span: float
    """Of the longest run."""
    mean: np.ndarray
    """(k,)."""
    fluctuation: float
    """Root mean square distance from the mean."""
    largest: float
    """Largest distance from the mean."""
    leads: np.ndarray
    """(l,): steps of the hindcasts: forecasts from within the training, compared with what came."""
    errors: np.ndarray
    """(l, 3): root mean square error of the hindcasts after each lead: of the model, of persistence, of the mean. Infinite
    where a hindcast diverged."""

    @property
    def skill(self) -> np.ndarray:
        """(l,): 1 - mean square error of the hindcasts over that of the mean."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(1 - (self.errors[:, 0] / self.errors[:, 2]) ** 2, nan=-np.inf)

    @property
    def total_errors(self) -> tuple[float, float, float]:
        """Of the model, of persistence and of the mean over all leads, as shares of the fluctuation."""
        scale = self.fluctuation or 1.0
        if not len(self.errors):
            return math.nan, math.nan, math.nan
        a, b, c = (math.sqrt(float((self.errors[:, j] ** 2).mean())) / scale for j in range(3))
        return a, b, c

    def __str__(self) -> str:
        a, b, c = self.total_errors
        unit = f" {self.time_unit_text}" if self.time_unit_text else ""
        worse = "" if a <= min(b, c) else "; WORSE THAN THE MEAN" if a > c else "; WORSE THAN PERSISTENCE"
        return (f"hindcasts of up to {len(self.leads) * self.interval:.4g}{unit} within the training: error {percent(a)} of "
                f"the fluctuation (persistence {percent(b)}, mean {percent(c)}){worse}")

    time_unit_text: str = ""


def percent(share: float) -> str:
    """"4.3 %"; "diverged" where it is no number."""
    return f"{100 * share:.3g} %" if math.isfinite(share) else "infinite (diverged)"


def gathered(x: Any, inputs: Any = None, *, basis: Basis | None = None, even: bool = True) -> TrainingData:
    """Runs of states and inputs from a Basis, several on the same modes, or states by themselves (a source, an array, a list).

    Raises InputError for times that are uneven (where `even` is asked for) or run backwards, states or inputs that are no
    numbers, inputs of another length, or bases that do not share their modes.
    """
    parts = collected(x, inputs, basis=basis, even=even)
    runs, members = [], []
    for part in parts.parts:
        for rows in parts.stretches(part):
            runs.append(Run(part.states[rows], part.inputs[rows], part.times[rows]))
            members.append(part.member)
    _check_finite(runs)
    return TrainingData(tuple(runs), tuple(members), parts.interval, parts.even, parts.basis, parts.time_unit, parts.names,
                        parts.notes_of(len(runs)))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One run as it was given: it may have gaps."""

    states: Any
    """(n, k): an array, or a source that is not read yet."""
    inputs: np.ndarray
    times: np.ndarray
    member: int


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """All runs that were given, with their inputs and times."""

    parts: tuple[Part, ...]
    interval: float
    even: bool
    basis: Basis | None
    time_unit: str
    names: tuple[str, ...]
    notes: tuple[str, ...]

    def stretches(self, part: Part) -> Iterator[slice]:
        """Ranges of snapshots of a run whose times go on."""
        return _stretches(part.times, self.interval, self.even)

    def notes_of(self, n_stretches: int) -> tuple[str, ...]:
        """The notes, and what is said of gaps."""
        gaps = n_stretches - len(self.parts)
        return (*self.notes, *([f"{gaps} gaps or restarts in the times: no step across them is used"] if gaps > 0 else []))


def listed(x: Any) -> list[Any]:
    """What was given, run by run. Raises InputError where there is nothing."""
    several = list(x) if isinstance(x, list | tuple) else list(x.runs) if isinstance(x, ReplicaSet) else [x]
    if not several:
        raise InputError("no states to fit to: pass a Basis, a source of coefficients, or a list of them")
    return several


def collected(x: Any, inputs: Any = None, *, basis: Basis | None = None, even: bool = True, unread: bool = False) -> Collected:
    """Runs with their inputs and times; of sources the states are read unless `unread`. Arguments and errors as
    :func:`gathered`."""
    several = listed(x)
    given = _inputs_of(inputs, several)
    parts: list[tuple[Any, np.ndarray | None, int, int]] = []
    unit, notes = "", []
    for one in several:
        states, times, own_unit, lengths, own_basis = _states(one, unread)
        if own_basis is not None:
            if basis is not None and not _same_modes(basis, own_basis):
                raise InputError("the bases given do not share their modes: project all runs on one basis "
                                 "(basis.project), or make one of all of them, rom.pod(ek.ReplicaSet.of(runs))")
            basis = basis or own_basis
        unit = unit or own_unit
        start = 0
        for n in filter(None, lengths):
            rows = slice(start, start + n)
            parts.append((cut(states, rows), None if times is None else times[rows], n, len(parts)))
            start += n
    if basis is not None:
        warn_of_split_pair(basis)
    u, names = _aligned_inputs(given, [n for _, _, n, _ in parts])
    if all(times is None for _, times, _, _ in parts):
        notes.append("the snapshots have no times: a step is 1")
    clocks = [np.arange(float(n)) if times is None else times for _, times, n, _ in parts]
    interval, is_even = _interval(clocks, even)
    held = tuple(Part(states, own, clock, member) for (states, _, _, member), clock, own in zip(parts, clocks, u, strict=True))
    return Collected(held, interval, is_even, basis, unit, names, tuple(notes))


def cut(states: Any, rows: slice) -> Any:
    """Some snapshots of an array, or of a source."""
    return states[rows] if isinstance(states, np.ndarray) else states.window(rows.start, rows.stop)


def _states(x: Any, unread: bool) -> tuple[Any, np.ndarray | None, str, Sequence[int], Basis | None]:
    """(states (n, k), times, their unit, lengths of runs, basis); the states as a source where they stay unread."""
    if isinstance(x, Basis):
        lengths = x.run_lengths or (x.n,)
        states = ArraySource.of(x.coefficients) if unread else x.coefficients
        return states, x.times if x.times is not None else x.run_times, x.time_unit, lengths, x
    source = as_source(x)
    if source.lengths is None or len(source.lengths) != 1:
        raise InputError("states come in one run each, of known length; pass several runs as a list or a ReplicaSet")
    field = next(iter(source.fields.values()))
    if len(source.fields) > 1 or len(field.shape) != 1:
        raise InputError(f"states are one field of shape (k,); this source has {dict(source.fields)}. Fields are reduced "
                         "first: rom.pod(source, rank)")
    if unread:
        clock = None if source.times is None or np.isnan(source.times).all() else source.times
        return source, clock, source.time_unit, source.lengths, None
    values, times = read_whole(source)
    return values, times, source.time_unit, (len(values),), None


def read_whole(source: SnapshotSource) -> tuple[np.ndarray, np.ndarray | None]:
    """All values of the only field of a source, and its times."""
    values, times = [], []
    for block in _blocks(source):
        values.append(np.array(block.only))
        times.append(block.times)
    if not values:
        raise InputError("the source holds no snapshots")
    known = [t for t in times if t is not None]
    clock = np.concatenate(known) if len(known) == len(times) else None
    return np.concatenate(values), None if clock is None or np.isnan(clock).all() else clock


def _blocks(source: SnapshotSource) -> Iterator[Any]:
    for piece in source.pieces(list(source.fields), "time", False, 64 << 20):
        yield from piece.blocks()


def _same_modes(a: Basis, b: Basis) -> bool:
    return a is b or (a.modes.shape == b.modes.shape and np.array_equal(a.modes, b.modes, equal_nan=True)
                      and np.array_equal(a.mean, b.mean, equal_nan=True))


def _inputs_of(inputs: Any, several: list[Any]) -> list[Any] | None:
    """One set of inputs for each of the runs given; None without any."""
    if inputs is None:
        return None
    if isinstance(inputs, ReplicaSet):
        inputs = list(inputs.runs)
    if len(several) == 1 and not (isinstance(inputs, list | tuple) and len(inputs) == 1):
        return [inputs]
    if not isinstance(inputs, list | tuple) or len(inputs) != len(several):
        raise InputError(f"{len(several)} runs take a list of {len(several)} inputs, one of each; got "
                         f"{len(inputs) if isinstance(inputs, list | tuple) else type(inputs).__name__}")
    return list(inputs)


def input_columns(inputs: Any, what: str = "inputs") -> tuple[np.ndarray, tuple[str, ...]]:
    """Inputs as (n, m) numbers and their names, from an array, a source, or a mapping of name to either."""
    if isinstance(inputs, Mapping) and not isinstance(inputs, SnapshotSource):
        columns, names = [], []
        for name, one in inputs.items():
            values, own = input_columns(one, f"{what} {name!r}")
            columns.append(values)
            names += [name] if len(own) == 1 else [f"{name}[{k}]" for k in range(len(own))]
        if len({len(c) for c in columns}) > 1:
            raise InputError(f"{what} differ in length: {[len(c) for c in columns]}")
        return np.concatenate(columns, axis=1), tuple(names)
    if isinstance(inputs, SnapshotSource):
        (name, field), = inputs.fields.items() if len(inputs.fields) == 1 else ((", ".join(inputs.fields), None),)
        if field is None:
            raise InputError(f"{what}: name one field of the source, such as store[{name.split(', ')[0]!r}]")
        values = read_whole(inputs)[0]
    else:
        name, values = "u", as_array(inputs, what, kinds="biufc")
    values = values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
    if not np.isfinite(values).all():
        raise InputError(f"{what}: row {int(np.argmin(np.isfinite(values).all(axis=1)))} is not finite; leave those snapshots "
                         "out, or fill the gap")
    m = values.shape[1]
    kind = np.result_type(values.dtype, np.float64)
    return values.astype(kind), (name,) if m == 1 else tuple(f"{name}[{k}]" for k in range(m))


def _aligned_inputs(given: list[Any] | None, lengths: list[int]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Inputs (n, m) of each run, and their names."""
    if given is None:
        return [np.zeros((n, 0)) for n in lengths], ()
    aligned: list[np.ndarray] = []
    names: tuple[str, ...] = ()
    for one in given:
        values, names = input_columns(one)
        aligned.append(values)
    together = np.concatenate(aligned)
    if len(together) != sum(lengths):
        raise InputError(f"inputs have {len(together)} rows, the states {sum(lengths)}: one row a snapshot, that which is held "
                         "from its time to the next")
    for j, name in enumerate(names):
        if np.ptp(together[:, j].real) == 0 and np.ptp(together[:, j].imag) == 0:
            raise InputError(f"the input {name} is {together[0, j]:g} throughout, and what it does cannot be told from the "
                             'constant; leave it out ("c" of the form stands for it), or record a run in which it moves')
    edges = np.cumsum([0, *lengths])
    return [together[a:b] for a, b in pairwise(edges)], names


def _interval(clocks: list[np.ndarray], even: bool) -> tuple[float, bool]:
    """The usual step of time, and whether steps are even."""
    steps = np.concatenate([np.diff(clock) for clock in clocks])
    if not len(steps):
        raise InputError("a model needs at least 2 snapshots of a run")
    if not np.isfinite(steps).all():
        raise InputError("times of the snapshots hold NaN or infinity")
    forward = steps[steps > 0]
    if len(forward) < FEWEST_EVEN * len(steps):
        raise InputError(f"{len(steps) - len(forward)} of {len(steps)} steps of time run backwards or stand still; sort the "
                         "snapshots, or pass independent runs as a list")
    interval = float(np.median(forward))
    alike = np.abs(steps - interval) <= EVEN * interval
    is_even = bool(alike.mean() >= FEWEST_EVEN)
    if is_even:
        return float(forward[np.abs(forward - interval) <= EVEN * interval].mean()), True
    if even:
        raise InputError(f"the times are uneven: steps from {forward.min():.4g} to {forward.max():.4g}, {interval:.4g} as a "
                         'rule; a discrete model needs even ones. Use rom.dmd(method="opt") or '
                         'operator_inference(time="continuous"), which take any times')
    return interval, False


def _stretches(clock: np.ndarray, interval: float, even: bool) -> Iterator[slice]:
    """Ranges of snapshots whose times go on."""
    steps = np.diff(clock)
    cut = np.abs(steps - interval) > EVEN * interval * 2 if even else (steps <= 0) | (steps > GAP * interval)
    edges = [0, *(np.flatnonzero(cut) + 1), len(clock)]
    for a, b in pairwise(edges):
        if b > a:
            yield slice(int(a), int(b))


def _check_finite(runs: list[Run]) -> None:
    for k, run in enumerate(runs):
        check_run_finite(run, k if len(runs) > 1 else None)


def check_run_finite(run: Run, k: int | None = None, start: int = 0) -> None:
    """Raise InputError for states of run k that are no numbers; the first of them is its snapshot `start`."""
    bad = ~np.isfinite(run.states).all(axis=1)
    if bad.any():
        where = "" if k is None else f" of run {k}"
        raise InputError(f"state {start + int(np.argmax(bad))}{where} (time {run.times[np.argmax(bad)]:g}) holds NaN or "
                         "infinity; leave it out: a gap in the times is respected")
