"""How far a model is from snapshots: the part that its modes leave out, and the part that its dynamics get wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.rom.basis import Basis, FieldPart
from ensemblekit.rom.product import applied
from ensemblekit.rom.training import Training, percent
from ensemblekit.rom.trajectory import Trajectory
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import ArraySource, SnapshotSource, as_source

VALID = 0.5
"""A model is valid until its error exceeds this share of the fluctuation."""


class Simulated(Protocol):
    """What is asked of a model here."""

    @property
    def basis(self) -> Basis | None: ...
    @property
    def period(self) -> float | None: ...
    @property
    def time_unit(self) -> str: ...
    def simulate(self, x0: Any, times: Any, inputs: Any = None) -> Trajectory: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelError(Result):
    """Errors of a model against snapshots, in the basis' inner product; field error² = projection² + model², exactly."""

    FIGURE = "dynamics.model_error"

    times: np.ndarray
    """(n,)."""
    projection: np.ndarray
    """(n,): what the modes leave out of each snapshot."""
    model: np.ndarray
    """(n,): distance of the model's coefficients from those of the snapshot; infinite after it diverged."""
    persistence: np.ndarray
    """(n,): error of the field where nothing changes any more."""
    mean: np.ndarray
    """(n,): error of the field where the mean of the training is foretold."""
    fluctuation: float
    """Root mean square distance of the fields from their mean: the unit of `relative`."""
    time_unit: str = ""
    diverged_at: float | None = None

    @property
    def field(self) -> np.ndarray:
        """(n,): error of the field."""
        return np.hypot(self.projection, self.model)

    @property
    def total(self) -> float:
        """Root mean square field error over all times, as a share of the fluctuation."""
        return self._relative(self.field)

    @property
    def total_parts(self) -> tuple[float, float]:
        """(projection, model): the same of either part."""
        return self._relative(self.projection), self._relative(self.model)

    @property
    def total_trivial(self) -> tuple[float, float]:
        """(persistence, mean): the same of the trivial forecasts."""
        return self._relative(self.persistence), self._relative(self.mean)

    @property
    def worse_than_trivial(self) -> bool:
        """Whether persistence or the mean would have been better."""
        return not self.total <= min(self.total_trivial)

    @property
    def valid_time(self) -> float:
        """Time from the start until the model's error exceeds half the fluctuation; all of it where it never does."""
        beyond = np.flatnonzero(~(self.model <= VALID * self.fluctuation))
        return float(self.times[beyond[0] if len(beyond) else -1] - self.times[0])

    def _relative(self, errors: np.ndarray) -> float:
        return math.sqrt(float((errors**2).mean())) / (self.fluctuation or 1.0)

    def _facts(self) -> dict[str, object]:
        return {"total": self.total, "total_parts": self.total_parts, "total_trivial": self.total_trivial,
                "valid_time": self.valid_time, "worse_than_trivial": self.worse_than_trivial, "times": self.times,
                "projection": self.projection, "model": self.model, "persistence": self.persistence, "mean": self.mean,
                "fluctuation": self.fluctuation, "time_unit": self.time_unit, "diverged_at": self.diverged_at}

    def __str__(self) -> str:
        (p, m), (still, mean) = self.total_parts, self.total_trivial
        unit = f" {self.time_unit}" if self.time_unit else ""
        worse = "; WORSE THAN A TRIVIAL FORECAST" if self.worse_than_trivial else ""
        return (f"field error {percent(self.total)} of the fluctuation over {len(self.times)} times: modes {percent(p)}, "
                f"model {percent(m)} (persistence {percent(still)}, mean {percent(mean)}); valid for "
                f"{self.valid_time:.4g}{unit}{worse}")


def error_against(model: Simulated, training: Training | None, rank: int, source: Any, *, start: int = 0,
                  horizon: int | None = None, inputs: Any = None) -> ModelError:
    """Errors of a run from snapshot `start` on. See :meth:`Model.error_against`."""
    states, left, times = projected(model.basis, source, rank)
    n = len(states)
    if not -n <= start < n:
        raise InputError(f"start is a snapshot, 0 to {n - 1}; got {start!r}")
    start %= n
    stop = n if horizon is None else start + horizon + 1
    if (horizon is not None and horizon < 1) or stop - start < 2:
        raise InputError(f"horizon is a number of snapshots after the first, at least 1; got {horizon!r} from {start} of {n}")
    if stop > n:
        raise InputError(f"there are {n - 1 - start} snapshots after {start}; got horizon={horizon!r}")
    if times is None:
        step = model.period or (training.interval if training else 1.0)
        times = step * np.arange(float(n))
    rows = slice(start, stop)
    truth, left, times = states[rows], left[rows], times[rows]
    if inputs is not None and len(inputs) == n != len(truth):
        inputs = as_array(inputs, "inputs")[rows]
    if model.period is not None:        # rounded times of a file
        times_model = times[0] + model.period * np.round((times - times[0]) / model.period)
    else:
        times_model = times
    run = model.simulate(truth[0], times_model, inputs)
    errors = np.full(len(truth), np.inf)
    errors[:run.n] = np.sqrt((np.abs(run.coefficients - truth[:run.n]) ** 2).sum(axis=1))
    mean = training.mean if training is not None else truth.mean(axis=0)

    def field_error(other: np.ndarray) -> np.ndarray:
        return np.sqrt(left**2 + (np.abs(truth - other) ** 2).sum(axis=1))

    whole = field_error(mean)
    fluctuation = training.fluctuation if training is not None else math.sqrt(float((whole**2).mean()))
    return ModelError(times=times, projection=left, model=errors, persistence=field_error(truth[0]), mean=whole,
                      fluctuation=fluctuation, time_unit=model.time_unit, diverged_at=run.diverged_at)


def projected(basis: Basis | None, source: Any, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Coefficients (n, k) of snapshots, the norm (n,) of what the modes leave out of each, and their times.

    Of a basis these are what it holds; without one snapshots are states. Raises InputError where fields or units do not fit.
    """
    if isinstance(source, Basis):
        if source.rank != rank:
            raise InputError(f"the model has {rank} modes, this basis {source.rank}; truncate it")
        scale = math.sqrt(source.total_energy / max(source.n, 1))
        each = source.error_per_snapshot
        return source.coefficients, np.zeros(source.n) if each is None else each * scale, source.times
    states, left, times = [], [], []
    for a, rest, clock in projected_blocks(basis, _source(source), rank):
        states.append(a)
        left.append(rest)
        times.append(clock)
    if not states:
        raise InputError("the source holds no snapshots")
    known = [t for t in times if t is not None]
    together = np.concatenate(known) if len(known) == len(times) else None
    return (np.concatenate(states), np.concatenate(left),
            None if together is None or np.isnan(together).all() else together)


def _source(source: Any) -> SnapshotSource:
    if isinstance(source, Mapping) and not isinstance(source, SnapshotSource):
        return ArraySource.of(dict(source))
    return as_source(source)


def projected_blocks(basis: Basis | None, source: SnapshotSource,
                     rank: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Block by block: coefficients (n, k), the norm (n,) of what the modes leave out, times; a single read.

    Raises InputError where fields or units do not fit the basis, and for NaN outside its mask.
    """
    names = list(source.fields) if basis is None or len(source.fields) == 1 else _fitting(basis, source)
    if basis is not None:
        _check_units(basis, source, names)
    done = 0
    for piece in source.pieces(names, "time", False, 64 << 20):
        for block in piece.blocks():
            if basis is None:
                a, rest = np.array(np.asarray(block.only).reshape(len(block), -1)), np.zeros(len(block))
                if a.shape[1] != rank:
                    raise InputError(f"this model has no basis: snapshots are its states, of {rank} numbers; got {a.shape[1]}")
            else:
                a, rest = _coefficients(basis, block.fields, names)
            bad = ~np.isfinite(a).all(axis=1)
            if bad.any():
                raise InputError(f"snapshot {done + int(np.argmax(bad))} holds NaN or infinity"
                                 + (" outside the mask of the basis" if basis is not None else ""))
            done += len(a)
            yield a, rest, block.times


def _fitting(basis: Basis, source: SnapshotSource) -> list[str]:
    missing = [name for name in basis.fields if name not in source.fields]
    if missing:
        raise InputError(f"the basis holds {', '.join(map(repr, basis.fields))}; the source lacks "
                         f"{', '.join(map(repr, missing))} and has {', '.join(map(repr, source.fields))}")
    return list(basis.fields)


def _check_units(basis: Basis, source: SnapshotSource, names: list[str]) -> None:
    for name, own in zip(names, basis.fields.values(), strict=False):
        field = source.fields[name]
        if field.shape != own.shape:
            raise InputError(f"field {name!r} has snapshots of shape {field.shape}; the basis is of {own.shape}")
        if field.unit and own.unit and field.unit != own.unit:
            raise InputError(f"field {name!r} is in {field.unit}, the basis in {own.unit}; convert the snapshots")


def _coefficients(basis: Basis, fields: Mapping[str, Any], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (n, k) and the norm (n,) of the rest. The rest is formed, as differences of squares lose their digits."""
    arrays = {own: np.asarray(fields[name], np.result_type(fields[name], np.float64))
              for name, own in zip(names, list(basis.fields) or names, strict=True)}
    a = basis.project(next(iter(arrays.values())) if len(arrays) == 1 else arrays)
    energy = np.zeros(len(a))
    for part, values in zip(basis.parts(), arrays.values(), strict=True):
        flat = values.reshape(len(values), -1) - part.mean.reshape(-1) - a @ part.modes.reshape(len(part.modes), -1)
        energy += _squares(part, flat if part.mask is None else np.where(part.mask.reshape(-1), flat, 0))
    return a, np.sqrt(energy)


def _squares(part: FieldPart, rows: np.ndarray) -> np.ndarray:
    """Squared norm (n,) of rows of one field, as it counts in the inner product of all."""
    power = power_of_two(part.scale)
    scaled = ldexp(rows, -power) / ldexp(part.scale, -power)
    return np.clip((applied(part.inner_product, scaled, part.field.shape) * scaled.conj()).sum(axis=1).real, 0, None)
