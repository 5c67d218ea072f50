"""The store in dicts: the same verbs without a file. The oracle in tests, and handy in notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblekit.errors import ClosedError, InputError, UnknownFieldError
from ensemblekit.intake import as_array
from ensemblekit.source import Access, ArraySource, BaseSource, Cut, Field, Piece
from ensemblekit.store.schema import MAIN, check_fields

if TYPE_CHECKING:
    pass


class MemoryStore(BaseSource):
    """Snapshots held in lists. ``append``, ``extend``, ``truncate``, ``store["field"]`` as of :class:`Store`.

    It is a source of the fields of its first clock; ``clock(name)`` gives another. Nothing survives the process.
    """

    time_unit: str = ""

    def __init__(self, fields: Mapping[str, Field], *, time_unit: str = ""):
        self._fields = check_fields(fields)
        self.time_unit = time_unit
        self.clocks: dict[str, list[str]] = {}
        for name, field in self.all_fields.items():
            self.clocks.setdefault(field.clock, []).append(name)
        self._rows: dict[str, list[tuple[int, float, float, dict[str, np.ndarray]]]] = {c: [] for c in self.clocks}
        self._closed = False

    def append(self, snapshot: Mapping[str, Any], time: float | None = None, step: int | None = None,
               weight: float = 1.0, clock: str = MAIN) -> None:
        """Keep one snapshot. Raises InputError, UnknownFieldError or ClosedError as the store on disk does."""
        if self._closed:
            raise ClosedError("this store is closed")
        if clock not in self.clocks:
            raise InputError(f"no clock {clock!r}; the clocks are {list(self.clocks)}")
        names = self.clocks[clock]
        extra = [name for name in snapshot if name not in names]
        if extra:
            raise UnknownFieldError(extra[0], names)
        values = {}
        for name in names:
            if name not in snapshot:
                raise InputError(f"the snapshot lacks the field {name!r}; it needs {names}")
            values[name] = np.array(as_array(snapshot[name], f"field {name!r}", named_axes=True), self.all_fields[name].dtype)
            if values[name].shape != self.all_fields[name].shape:
                raise InputError(f"field {name!r} came with shape {values[name].shape}; this store holds "
                                 f"{self.all_fields[name].shape}")
            if self.all_fields[name].finite and not np.isfinite(values[name]).all():
                raise InputError(f"field {name!r} holds NaN or infinity, which it was created to refuse")
        rows = self._rows[clock]
        last_step, last_time = rows[-1][:2] if rows else (-1, -np.inf)
        step = last_step + 1 if step is None else int(step)
        at = float(step) if time is None else float(time)
        if step <= last_step or not last_time <= at < np.inf or not 0 <= weight < np.inf:
            raise InputError(f"step {step}, time {at:g}, weight {weight:g} do not continue step {last_step}, time "
                             f"{last_time:g}: steps rise, times do not run backwards, weights are not negative")
        rows.append((step, at, float(weight), values))

    def extend(self, snapshots: Mapping[str, Any], times: Sequence[float] | np.ndarray | None = None,
               steps: Sequence[int] | np.ndarray | None = None, weights: Sequence[float] | np.ndarray | None = None,
               clock: str = MAIN) -> None:
        """Keep many snapshots, all or none."""
        lengths = {len(values) for values in snapshots.values()}
        if len(lengths) != 1:
            raise InputError(f"the fields differ in their number of snapshots: {sorted(lengths)}")
        kept = len(self._rows.get(clock, []))
        try:
            for k in range(lengths.pop()):
                self.append({name: values[k] for name, values in snapshots.items()},
                            None if times is None else times[k], None if steps is None else steps[k],
                            1.0 if weights is None else weights[k], clock)
        except Exception:
            if clock in self._rows:
                del self._rows[clock][kept:]
            raise

    def truncate(self, n: int, clock: str = MAIN) -> None:
        """Keep the first n snapshots of a clock."""
        if not 0 <= n <= len(self._rows[clock]):
            raise InputError(f"truncate(n) keeps between 0 and {len(self._rows[clock])} snapshots; got {n!r}")
        del self._rows[clock][n:]

    def flush(self) -> None:
        """Nothing to do: what was appended is there."""

    def refresh(self) -> int:
        """The snapshots of the first clock."""
        return len(self)

    def close(self) -> None:
        """No more appends."""
        self._closed = True

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._rows[next(iter(self.clocks))])

    def __contains__(self, name: object) -> bool:
        return name in self.all_fields

    def __getitem__(self, name: str) -> np.ndarray:
        """All values of a field as an array (n, *item)."""
        if name not in self.all_fields:
            raise UnknownFieldError(name, self.all_fields)
        field = self.all_fields[name]
        rows = self._rows[field.clock]
        return np.stack([row[3][name] for row in rows]) if rows else np.empty((0, *field.shape), field.dtype)

    @property
    def steps(self) -> np.ndarray:
        """Of the first clock, (n,)."""
        return self._steps(next(iter(self.clocks)))

    @property
    def times(self) -> np.ndarray:
        """Of the first clock, (n,)."""
        return self._times(next(iter(self.clocks)))

    @property
    def weights(self) -> np.ndarray | None:
        """Of the first clock, (n,); None where every weight is 1."""
        return self._weights(next(iter(self.clocks)))

    def _steps(self, clock: str) -> np.ndarray:
        return np.array([row[0] for row in self._rows[clock]], dtype=np.int64)

    def _times(self, clock: str) -> np.ndarray:
        return np.array([row[1] for row in self._rows[clock]], dtype=np.float64)

    def _weights(self, clock: str) -> np.ndarray | None:
        weights = np.array([row[2] for row in self._rows[clock]], dtype=np.float64)
        return None if (weights == 1.0).all() else weights

    def clock(self, name: str = MAIN) -> ArraySource:
        """All fields of one clock as a source."""
        if name not in self.clocks:
            raise UnknownFieldError(name, self.clocks)
        return ArraySource({field: self[field] for field in self.clocks[name]}, self._weights(name), self._times(name),
                           self.time_unit, {field: self.all_fields[field].unit for field in self.clocks[name]})

    @property
    def all_fields(self) -> Mapping[str, Field]:
        """Fields of every clock."""
        return self._fields

    @property
    def fields(self) -> Mapping[str, Field]:
        """Fields of the first clock: what it is a source of."""
        return {name: self.all_fields[name] for name in next(iter(self.clocks.values()))}

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self),)

    @property
    def access(self) -> Access:
        return "tiles"

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> ArraySource:
        return self.clock(next(iter(self.clocks))).window(start, stop, step)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        return self.clock(next(iter(self.clocks))).pieces(names, cut, tiled, limit)
