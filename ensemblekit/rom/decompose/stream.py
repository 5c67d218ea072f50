"""Snapshots taken in one after the other: what was decomposed of them, and those of a block that is not yet full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.intake import as_array
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.directions import Directions
from ensemblekit.rom.decompose.stream_settings import Digests, Fields, StreamSettings, check_same_weights
from ensemblekit.source import Field


@dataclass(frozen=True, eq=False)
class Stream:
    """A moment of a stream of snapshots. More of them give another one; nothing is changed in place."""

    settings: StreamSettings
    fields: Fields = field(default_factory=dict)
    """Empty until the first snapshots come."""
    directions: Directions | None = None
    """None before the first block is full."""
    pending: tuple[np.ndarray, ...] = ()
    """Snapshots (size,) of a block that is not yet full."""
    pending_meta: tuple[tuple[float, float], ...] = ()
    """Their times and weights."""
    run: str = ""
    """The id of the store that they come from."""
    expected: Digests | None = None
    """Weights of a state that was taken up, which those of a mesh that are yet to come must match."""

    @property
    def n(self) -> int:
        """Snapshots taken in, those of a block not yet full included."""
        return (0 if self.directions is None else self.directions.n) + len(self.pending)

    def after(self, snapshots: ArrayLike | Mapping[str, ArrayLike], times: ArrayLike | None = None,
              weights: ArrayLike | None = None) -> Stream:
        """The one that has taken in these snapshots too."""
        stream, rows, t, w = self.given(snapshots, times, weights)
        for later in stream.taking(rows, t, w):
            stream = later
        return stream

    def given(self, snapshots: ArrayLike | Mapping[str, ArrayLike], times: ArrayLike | None,
              weights: ArrayLike | None) -> tuple[Stream, np.ndarray, np.ndarray, np.ndarray]:
        """The stream that knows its fields, and what :meth:`taking` takes of snapshots: rows (m, size), times and weights (m,).

        Raises:
            InputError: they have another shape than those before, or are no numbers.
        """
        stream, rows = self._rows(snapshots)
        m = len(rows)
        t = np.full(m, np.nan) if times is None else np.atleast_1d(as_array(times, "times", kinds="biuf", dtype=np.float64))
        w = np.ones(m) if weights is None else np.atleast_1d(as_array(weights, "weights", kinds="biuf", dtype=np.float64))
        if t.shape != (m,) or w.shape != (m,):
            raise InputError(f"times and weights are one number a snapshot, shape ({m},); got {t.shape} and {w.shape}")
        if not np.isfinite(w).all() or (w < 0).any():
            raise InputError("weights must be finite and not negative")
        return stream, rows, t, w

    def _rows(self, snapshots: ArrayLike | Mapping[str, ArrayLike]) -> tuple[Stream, np.ndarray]:
        given = snapshots if isinstance(snapshots, Mapping) else {next(iter(self.fields), "values"): snapshots}
        arrays = {str(name): as_array(values, f"field {name!r}") for name, values in given.items()}
        stream = self if self.fields else self._of_first(arrays)
        missing = [name for name in stream.fields if name not in arrays]
        if missing:
            raise UnknownFieldError(missing[0], arrays)
        rows = []
        for name, of in stream.fields.items():
            values = arrays[name]
            if values.shape == of.shape:
                values = values[None]
            if values.shape[1:] != of.shape:
                raise InputError(f"snapshots of {name!r} have shape (m, *{of.shape}); got {values.shape}")
            rows.append(values.reshape(len(values), of.size))
        if len({len(r) for r in rows}) > 1:
            raise InputError(f"the fields differ in their number of snapshots: {[len(r) for r in rows]}")
        return stream, rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)

    def _of_first(self, arrays: Mapping[str, np.ndarray]) -> Stream:
        for name, values in arrays.items():
            if values.ndim < 2:
                raise InputError(f"the first snapshots have shape (m, *item), so that the item is known; got {values.shape}")
            if values.dtype.kind not in "iufc":
                raise InputError(f"snapshots are numbers; field {name!r} has dtype {values.dtype}")
        fields = {name: Field(values.shape[1:], values.dtype) for name, values in arrays.items()}
        self.settings.check_names(fields)
        settings = self.settings.without_weightless({name: values[0] for name, values in arrays.items()}, fields)
        return replace(self, settings=settings, fields=fields)

    def taking(self, rows: np.ndarray, times: np.ndarray, weights: np.ndarray) -> Iterator[Stream]:
        """The streams that have taken in more and more of the rows (m, size), a block or what is left of one at a time.

        Raises:
            InputError: a snapshot cannot be used; the streams before it have those that can.
        """
        stream, start, block = self, 0, self.settings.block
        while start < len(rows):
            at = slice(start, min(start + block - len(stream.pending), len(rows)))
            stream = stream._with(rows[at], times[at], weights[at])
            yield stream
            start = at.stop

    def _with(self, rows: np.ndarray, times: np.ndarray, weights: np.ndarray) -> Stream:
        full = not self.pending and len(rows) == self.settings.block
        if not full or self.directions is None:         # else its inner products tell
            self._check(rows)
        if full:
            return replace(self, directions=self._decomposed(rows, times, weights))
        meta = zip(times.tolist(), weights.tolist(), strict=True)
        later = replace(self, pending=(*self.pending, *np.array(rows)), pending_meta=(*self.pending_meta, *meta))
        return later.flushed() if len(later.pending) == self.settings.block else later

    def flushed(self) -> Stream:
        """The one that has decomposed the block that is not yet full, too."""
        if not self.pending:
            return self
        meta = np.array(self.pending_meta)
        directions = self._decomposed(np.array(self.pending), meta[:, 0], meta[:, 1])
        return replace(self, directions=directions, pending=(), pending_meta=())

    def _decomposed(self, rows: np.ndarray, times: np.ndarray, weights: np.ndarray) -> Directions:
        held = Directions.start(self.settings, self.fields, rows) if self.directions is None else self.directions
        return held.with_block(rows, times, weights)

    def _check(self, rows: np.ndarray) -> None:
        """Refuse what is not finite before it is held."""
        if self.directions is not None:
            used = slice(None) if self.directions.mask is None else self.directions.mask
            good = np.isfinite(rows[:, used]).all(1)
        else:
            used = self.settings.used(self.fields)
            good = ~np.isinf(rows[:, used]).any(1)
        if not good.all():
            raise InputError(f"snapshot {self.n + int(np.argmin(good))} holds NaN or infinity; leave it out")
        if self.directions is None:      # no block yet that says which numbers are missing: as in the first snapshot
            first = self.pending[0] if self.pending else rows[0]
            missing = np.isnan(first[used])
            same = (np.isnan(rows[:, used]) == missing).all(1)
            if not same.all():
                k = int(np.argmin(same))
                if (np.isnan(rows[k, used]) & ~missing).any():
                    raise InputError(f"snapshot {self.n + k} holds NaN where snapshot 0 does not; leave it out (numbers "
                                     "missing in every snapshot are masked)")
                raise InputError(f"snapshot 0 holds NaN where snapshot {self.n + k} does not; begin anew without it (numbers "
                                 "missing in every snapshot are masked)")

    def with_mesh_weights(self, settings: StreamSettings) -> Stream:
        """The one with settings that have the weights of a mesh.

        Raises:
            InputError: they are others than those of the snapshots taken in so far.
        """
        if self.fields:
            settings.check_names(self.fields)
        if self.n:
            check_same_weights(self.expected or self.settings.digests(self.fields), settings.digests(self.fields))
        directions = None if self.directions is None else self.directions.with_settings(settings)
        return replace(self, settings=settings, directions=directions, expected=None)

    def check_weighted(self) -> None:
        """Raise InputError where the weights of a mesh are still to come."""
        if self.expected is not None:
            raise InputError("the state was made with the volumes of a mesh as inner product; call use_mesh_weights(source, "
                             "names) before anything else, as when it was made")

    def result(self) -> Basis:
        """The basis of all snapshots so far.

        Raises:
            InputError: there are fewer than two, or all are the same.
        """
        self.check_weighted()
        if self.n < (2 if self.settings.center_name in ("mean", "first") else 1):
            raise InputError(f"pod needs at least 2 snapshots; got {self.n}")
        directions = self.flushed().directions
        assert directions is not None
        return directions.result()
