"""What a store takes: snapshots checked against its fields, as the columns they become, or an error that names what is off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsFloat

import numpy as np

from ensemblekit.errors import InputError, StoreError, UnknownFieldError
from ensemblekit.foreign import AnyArray
from ensemblekit.intake import as_array, in_unit, unit_of
from ensemblekit.provenance import now
from ensemblekit.source import Field
from ensemblekit.store.names import segment_path
from ensemblekit.store.schema import META, Schema

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LARGEST_LOG = 700.0
"""Of a weight that is stored."""
NO_UNIT = ("1", "dimensionless")
"""What numbers without a unit may say it is."""
Durability = Literal["process", "disk"]


class Stored(NamedTuple):
    """The fields of a clock whose values one dataset holds."""

    names: tuple[str, ...]
    field: Field
    """The only one, or all of them as if they were one."""
    scalars: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None
    """Takes the values of all of them from a snapshot, where they are several and each is a number."""

    @classmethod
    def of(cls, names: tuple[str, ...], fields: Mapping[str, Field]) -> Stored:
        first = fields[names[0]]
        if len(names) == 1:
            return cls(names, first, None)
        together = Field((sum(fields[name].size for name in names),), first.dtype,
                         finite=any(fields[name].finite for name in names))
        return cls(names, together, itemgetter(*names) if not any(fields[name].shape for name in names) else None)



class Checks:
    """The fields of a store as conditions on a snapshot."""

    def __init__(self, schema: Schema):
        self.fields, self.clocks = schema.fields, schema.clocks
        self.datasets = {clock: [Stored.of(names, schema.fields) for names in some]
                         for clock, some in schema.at(0, {}, {}).stored.items()}     # as new files hold them

    def columns(self, snapshot: Mapping[str, Any], clock: str, n: int | None = None) -> list[np.ndarray]:
        """One snapshot, or n of them, as arrays in the order and type of the clock's datasets.

        Raises InputError, UnknownFieldError.
        """
        arrays = [self._checked(some.names[0], snapshot, n) if len(some.names) == 1 else self._together(some, snapshot, n)
                  for some in self.datasets[clock]]
        if len(snapshot) != len(self.clocks[clock]):
            self._refuse_names(snapshot, clock)
        return arrays

    def length(self, snapshots: Mapping[str, Any], clock: str) -> int:
        """How many snapshots came. Raises InputError where the fields differ in it."""
        if not isinstance(snapshots, Mapping):
            raise InputError(f"snapshots are a mapping of field to array, with {list(self.clocks[clock])}; got "
                             f"{type(snapshots).__name__}")
        lengths = {}
        for name in self.clocks[clock]:
            if name in snapshots:
                given = snapshots[name]
                shape = given.shape if isinstance(given, AnyArray) and isinstance(given.shape, tuple) else (
                    as_array(given, f"field {name!r}", kinds=None).shape)
                if shape:
                    lengths[name] = int(shape[0])
        if len(set(lengths.values())) > 1:
            raise InputError(f"the fields differ in their number of snapshots: {lengths}")
        return next(iter(lengths.values()), 0)

    def _checked(self, name: str, snapshot: Mapping[str, Any], n: int | None) -> np.ndarray:
        """The values of a field as they are stored, or an error that says what does not fit."""
        field = self.fields[name]
        try:
            value = snapshot[name]
        except (KeyError, TypeError, IndexError):
            raise InputError(f"the snapshot lacks the field {name!r}; it needs {self.clocks[field.clock]}") from None
        want = field.shape if n is None else (n, *field.shape)
        array = value if type(value) is np.ndarray else as_array(
            self._in_its_unit(name, field, value), f"field {name!r}", kinds=None, named_axes=n is None)
        if array.shape != want:
            raise InputError(f"field {name!r} came with shape {array.shape}; this store holds {want}"
                             f"{'' if n is None else ' (snapshots first)'}. Reshape it, or create a store for the new shape")
        return self._as_stored(name, field, array)

    @staticmethod
    def _in_its_unit(name: str, field: Field, value: Any) -> Any:
        """The numbers of a value in the unit of its field. Raises InputError where it has another kind."""
        own = "" if isinstance(value, float | int | np.number) else unit_of(value)
        if own and not field.unit and own not in NO_UNIT:
            raise InputError(f"field {name!r} came in {own!r}, and this store says no unit for it. Create it with "
                             f"ek.Field(..., unit={own!r}), or append the bare numbers")
        return in_unit(value, field.unit, f"field {name!r}") if own else value

    @staticmethod
    def _as_stored(name: str, field: Field, array: np.ndarray) -> np.ndarray:
        """An array of the field's shape in the type of number that is stored."""
        if array.dtype != field.dtype:
            if array.dtype.kind not in "biufc" or not np.can_cast(array.dtype, field.dtype, "same_kind"):
                raise InputError(f"field {name!r} came as {array.dtype}; this store holds {field.dtype}, and the cast "
                                 f"loses more than precision. Convert it: values.astype({field.dtype.str!r})")
            with np.errstate(over="ignore"):
                cast = array.astype(field.dtype)
            if field.dtype.kind in "iu":
                if not np.array_equal(cast, array):
                    raise InputError(f"field {name!r} holds numbers that do not fit {field.dtype}")
            elif field.dtype.itemsize < array.dtype.itemsize and not np.array_equal(np.isfinite(cast), np.isfinite(array)):
                raise InputError(f"field {name!r} holds numbers too large for {field.dtype}")
            array = cast
        if field.finite and not np.isfinite(array).all():
            raise InputError(f"field {name!r} holds NaN or infinity, which it was created to refuse (finite=True)")
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        return np.ascontiguousarray(array)

    def _together(self, stored: Stored, snapshot: Mapping[str, Any], n: int | None) -> np.ndarray:
        """The values of several fields that share a dataset, as they are stored: (n, numbers)."""
        if n is None and stored.scalars is not None:
            with suppress(LookupError, TypeError, InputError):      # one by one, that the field is named
                values = stored.scalars(snapshot)
                kind = type(values[0])
                if (kind in (float, int, bool) or issubclass(kind, np.number | np.bool_)) and set(map(type, values)) == {kind}:
                    return self._as_stored("", stored.field, np.array(values)).reshape(1, -1)
        rows = 1 if n is None else n
        return np.concatenate([self._checked(name, snapshot, n).reshape(rows, -1) for name in stored.names], axis=1)

    def _refuse_names(self, snapshot: Mapping[str, Any], clock: str) -> None:
        names = self.clocks[clock]
        extra = [name for name in snapshot if name not in names]
        if any(name in self.fields for name in extra):
            raise InputError(f"{extra} run on another clock than {clock!r}; append them with clock="
                             f"{self.fields[next(n for n in extra if n in self.fields)].clock!r}")
        raise UnknownFieldError(extra[0], names)


def meta_of_one(time: float | None, step: int | None, weight: float, last: tuple[int, float]) -> np.ndarray:
    """Step, time and weight of a snapshot that follows the last (step, time): META (1,). Raises InputError."""
    last_step, last_time = last
    step = last_step + 1 if step is None else _check_step(step, last_step)
    at = float(step) if time is None else _number(time, "time")
    if not (at >= last_time) or at == float("inf"):
        raise InputError(f"time {at:g} comes after time {last_time:g}: time runs forward and is finite. To cut the "
                         "store back to a checkpoint: store.truncate(n)")
    weight = _number(weight, "weight")
    if not 0.0 <= weight < float("inf"):
        raise InputError(f"a weight is finite and not negative; got {weight!r}")
    return np.array([(step, at, weight)], dtype=META)


def meta_of_many(n: int, times: ArrayLike | None, steps: ArrayLike | None, weights: ArrayLike | None,
                 last: tuple[int, float]) -> np.ndarray:
    """Steps, times and weights of n snapshots that follow the last (step, time): META (n,). Raises InputError."""
    last_step, last_time = last
    meta = np.empty(n, META)
    if steps is None:
        meta["step"] = np.arange(last_step + 1, last_step + 1 + n)
    else:
        given = as_array(steps, "steps")
        if given.shape != (n,) or given.dtype.kind not in "iu":
            raise InputError(f"steps are {n} whole numbers; got shape {given.shape}, dtype {given.dtype}")
        if (np.diff(given.astype(np.int64), prepend=np.int64(last_step)) <= 0).any():
            raise InputError(f"steps must rise, from above {last_step}, the last step of the store")
        meta["step"] = given
    meta["time"] = meta["step"] if times is None else _numbers(times, n, "times")
    if (np.diff(meta["time"], prepend=last_time) < 0).any() or not np.isfinite(meta["time"]).all():
        since = f" after {last_time:g}, the last time of the store" if np.isfinite(last_time) else ""
        raise InputError(f"times must be finite and must not run backwards{since}{_backwards(meta['time'])}. Sort the "
                         "snapshots, or write independent runs into stores of their own")
    meta["weight"] = 1.0 if weights is None else _numbers(weights, n, "weights")
    if not (np.isfinite(meta["weight"]) & (meta["weight"] >= 0)).all():
        raise InputError("weights are finite and not negative")
    return meta


def weights_of_logs(log_weights: ArrayLike) -> np.ndarray:
    """Weights from their natural logarithms as they are: those of a store are on one scale, whenever they came."""
    logs = as_array(log_weights, "log_weights", kinds="biuf", dtype=np.float64)
    if logs.ndim != 1:
        raise InputError(f"log_weights are one number a snapshot; got shape {logs.shape}")
    beyond = ~((np.abs(logs) <= LARGEST_LOG) | (logs == -np.inf))
    if beyond.any():
        k = int(np.argmax(beyond))
        raise InputError(f"log_weights are numbers within ±{LARGEST_LOG:g}, or -inf for a weight of 0; number {k} is "
                         f"{logs[k]:g}, a weight that float64 does not hold. Subtract one number from those of all snapshots "
                         "of the run, such as the largest: weights count only against each other")
    return np.exp(logs)


def check_options(durability: object, capacity: object) -> None:
    """Raise InputError where they are not what ``ek.create`` and ``ek.open`` take."""
    if durability not in ("process", "disk"):
        raise InputError(f'durability is "process" or "disk"; got {durability!r}')
    for rows in capacity.values() if isinstance(capacity, Mapping) else [] if capacity is None else [capacity]:
        if not isinstance(rows, int | np.integer) or isinstance(rows, bool) or rows < 1:
            raise InputError("capacity is the number of snapshots a file has room for, above 0, or clock -> that number; "
                             f"got {capacity!r}")


def _number(value: SupportsFloat | str, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{what} is a number; got {value!r}") from None


def _numbers(values: ArrayLike, n: int, what: str) -> np.ndarray:
    array = as_array(values, what)
    if array.shape != (n,) or array.dtype.kind not in "iuf":
        raise InputError(f"{what} are {n} real numbers; got shape {array.shape}, dtype {array.dtype}")
    return array.astype(np.float64)


def _check_step(step: int, last: int) -> int:
    if not isinstance(step, int | np.integer) or not last < step < 1 << 63:
        raise InputError(f"a step is a whole number of 64 bits above the last one, {last}; got {step!r}")
    return int(step)


def _backwards(times: np.ndarray) -> str:
    """Which of these times is before the one before it, in words; nothing where none is."""
    back = np.flatnonzero(np.diff(times) < 0)
    return f"; {times[back[0] + 1]:g} comes after {times[back[0]]:g}" if len(back) else ""


def check_free(path: str, particles: bool) -> None:
    """Raise InputError, StoreError where no new store can be made under this name."""
    if particles and not path.endswith(".h5md"):
        raise InputError(f"a store of particle positions ends in .h5md, as MDAnalysis goes by the suffix; got {path!r}. "
                         f"Call it {Path(path).with_suffix('.h5md').name!r}")
    for taken in (path, segment_path(path, 1)):
        if os.path.lexists(taken):
            raise StoreError(f"{taken} is there already; ek.open(path, \"a\") appends to a store, or delete it first")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise StoreError(f"the folder of {path!r} does not exist; make it first")


def checked_provenance(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is said of where a run is from, with the time. Raises InputError where JSON does not hold it."""
    try:
        provenance = json.loads(json.dumps(dict(given or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"provenance is data that JSON can hold (text, numbers, lists, mappings): {error}") from error
    provenance.setdefault("created", now().strftime("%Y-%m-%dT%H:%M:%SZ"))
    return provenance
