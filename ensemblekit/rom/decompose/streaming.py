"""POD of snapshots that come one after the other: each is seen once, the leading directions are kept."""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, StoreError, UnknownFieldError
from ensemblekit.intake import as_array
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.directions import Directions
from ensemblekit.rom.decompose.state_file import StateFile
from ensemblekit.rom.decompose.stream import Stream
from ensemblekit.rom.decompose.stream_settings import Fields, StreamSettings
from ensemblekit.rom.decompose.stream_state import from_arrays, to_arrays
from ensemblekit.rom.product import InnerProduct
from ensemblekit.rom.rank import Rule
from ensemblekit.source import DescribedSource, SnapshotSource, described
from ensemblekit.store.checking import weights_of_logs
from ensemblekit.store.guarded import record
from ensemblekit.store.store import Store
from ensemblekit.store.stored import StoredSource

logger = logging.getLogger("ensemblekit")

STATE = "/rom/incremental"
"""The group of a state in its file."""


class IncrementalPOD:
    """POD of a running simulation, of a growing store, or of anything seen once.

    Snapshots are taken in blocks that are counted from the first one, so the result does not depend on how many are
    passed at a time. With a path the state is kept in a file, whole at every instant: after a crash, make it again with
    the same path and settings and go on feeding from snapshot ``n``; the result is the same to the last bit. The file is
    written whenever a block is full, and when a program ends (also by an exception), so only a kill loses the snapshots of
    a block not yet full. Whoever feeds first holds the file, until ``close()``, the end of a ``with`` block or of the program;
    others may look at it meanwhile.

    Arguments:
        path: of the state; None keeps it in memory only. Where the file exists its state is taken up, if it was made with
            the settings and weights given here.
        rank: how many modes; or `energy` or `tolerance` as in :func:`ensemblekit.rom.pod` (the number kept then follows
            the data, up to what `memory_limit` allows).
        inner_product: None, or weights of shape (n_cells,) or of the item; a mapping of field to these.
        center: "mean", "first", "none" or a field.
        keep: directions kept between blocks, 2 rank + 10 by default.
        block: snapshots a block, as many as directions kept by default.
        scale: with several fields, a mapping of field to the number it is divided by; by default the standard deviation
            of each in the first block.
        dtype: of the modes kept: "f4" or "f8"; by default that of the snapshots.

    Raises:
        InputError: settings or snapshots that cannot be used, or others than those the state was made with; StoreError: a
            state file that is another's; StoreBusyError: one that another IncrementalPOD is feeding.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, rank: int | None = None,
                 inner_product: InnerProduct | str | Mapping[str, InnerProduct] = None,
                 center: str | ArrayLike | Mapping[str, ArrayLike] = "mean", *,
                 energy: float | None = None, tolerance: float | None = None, keep: int | None = None,
                 block: int | None = None, scale: Mapping[str, float] | None = None, dtype: DTypeLike | None = None,
                 memory_limit: float | str = "2GiB", engine: Engine | None = None):
        self.path = None if path is None else os.fspath(path)
        rule = Rule.of(rank, energy, tolerance, None, None)
        self._stream = Stream(StreamSettings.of(rule, inner_product, center, keep=keep, block=block, scale=scale, dtype=dtype,
                                                memory_limit=memory_limit, engine=engine))
        self._unsaved = False
        self._file = None if self.path is None else StateFile(self.path, self._save_rest)
        if self._file is not None and self._file.exists:
            arrays = self._file.read(STATE)
            if "about" not in arrays:
                raise StoreError(f"{self.path} holds no state of an IncrementalPOD; give another path")
            with record(self.path or "the state", "state of an IncrementalPOD"):
                self._stream = from_arrays(self._stream.settings, arrays)

    @property
    def n(self) -> int:
        """Snapshots taken in, those of a block not yet full included."""
        return self._stream.n

    @property
    def fields(self) -> Fields:
        """Name -> field, once the first snapshots came."""
        return self._stream.fields

    # -- feeding ---------------------------------------------------------------------------------------------------

    def update(self, snapshots: ArrayLike | Mapping[str, ArrayLike] | SnapshotSource, times: ArrayLike | None = None,
               weights: ArrayLike | None = None, *, log_weights: ArrayLike | None = None) -> IncrementalPOD:
        """Take in more snapshots: (m, *item), one of shape (*item) once the shape is known, a mapping of field to these,
        or a source, of which all are taken. Returns itself.

        Weights, or their natural logarithms, are on one scale throughout, as later ones are not known: of logarithms so large
        that no number holds their exponential, subtract one number from all.

        Raises InputError for snapshots that cannot be used (those before them are kept), StoreBusyError where another
        IncrementalPOD feeds this state, ClosedError after close().
        """
        if self._file is not None:
            self._file.hold()
        self._stream.check_weighted()
        if isinstance(snapshots, SnapshotSource) and not isinstance(snapshots, Mapping):
            if log_weights is not None:
                raise InputError("log_weights= goes with arrays; a source carries its own weights")
            return self._from_source(described(snapshots))
        if log_weights is not None:
            if weights is not None:
                raise InputError("pass either weights= or log_weights=, not both")
            weights = weights_of_logs(np.atleast_1d(as_array(log_weights, "log_weights", kinds="biuf")))
        self._stream, *given = self._stream.given(snapshots, times, weights)
        before = self._stream.directions
        try:
            for later in self._stream.taking(*given):
                # the stream is replaced at once, so that an interrupt finds one moment or the next
                self._unsaved, self._stream = True, later
        finally:
            if self.path is not None and self._stream.directions is not before:
                self.save()
        return self

    def use_mesh_weights(self, source: SnapshotSource, names: Iterable[str]) -> IncrementalPOD:
        """Itself, with the volumes of the mesh that a source carries as inner product, as :func:`ensemblekit.rom.pod` takes
        them; say it before the first snapshot, and again after the state was taken up from a file.

        Raises InputError where the weights are others than those of the snapshots taken in so far, or were given already.
        """
        now = self._stream.settings
        if now.inner_product is not None and not now.of_mesh:
            raise InputError("this IncrementalPOD was made with an inner_product; leave that out, or do without "
                             "use_mesh_weights")
        settings, notes = now.with_mesh_weights(described(source), names)
        for note in notes:
            logger.info(note)
        self._stream = self._stream.with_mesh_weights(settings)
        return self

    def catch_up(self, source: SnapshotSource) -> int:
        """Take in what a growing store (or stored field) has that was not seen yet; returns how many came.

        Raises InputError where it holds another run than was followed so far, or fewer snapshots than were taken in.
        """
        refresh = getattr(source, "refresh", None)
        if refresh is not None:
            refresh()
        self._stream.check_weighted()
        before, known = self.n, self._stream.run
        run = source.run if isinstance(source, Store | StoredSource) else ""
        if known and run and run != known:
            raise InputError("the snapshots so far are of another run than this store holds; follow that one, or begin anew "
                             "with another path")
        (length,) = source.lengths if source.lengths is not None and len(source.lengths) == 1 else (None,)
        if length is not None and length < before:
            raise InputError(f"{before} snapshots were taken in, and this holds {length}: it is another store, or was cut "
                             "back; follow the one before, or begin anew with another path")
        self._stream = replace(self._stream, run=known or run)
        self._from_source(described(source.window(self.n)))
        return self.n - before

    def _from_source(self, source: DescribedSource) -> IncrementalPOD:
        names = list(self.fields) or list(source.fields)
        for name in names:
            if name not in source.fields:
                raise UnknownFieldError(name, source.fields)
        for piece in source.pieces(names, "time", False, 64 << 20):
            for block in piece.blocks():
                values = {name: np.asarray(block.fields[name]) for name in names}
                self.update(values, block.times, block.weights)
        return self

    # -- the answer ------------------------------------------------------------------------------------------------

    def result(self) -> Basis:
        """The basis of all snapshots so far; changes nothing, go on feeding as you like.

        Raises InputError with fewer than two snapshots, or where all are the same.
        """
        return self._stream.result()

    def flushed(self) -> Directions:
        """The directions kept, those of a block that is not yet full taken in.

        Raises InputError where there are no snapshots.
        """
        directions = self._stream.flushed().directions
        if directions is None:
            raise InputError("no snapshots were taken in yet")
        return directions

    # -- state and file --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays: :meth:`restored` makes the same of it."""
        return to_arrays(self._stream)

    def restored(self, state: Mapping[str, np.ndarray]) -> IncrementalPOD:
        """An IncrementalPOD with these settings and that state, in memory."""
        new = object.__new__(IncrementalPOD)
        new.path, new._file, new._unsaved = None, None, False
        with record("the state", "state of an IncrementalPOD"):
            new._stream = from_arrays(self._stream.settings, state)
        return new

    def save(self) -> None:
        """Write the state into the file, by temporary file and rename. Done by itself whenever a block is full, and at the
        end of a program."""
        if self._file is None:
            raise InputError("this IncrementalPOD has no path; give one, or keep state() yourself")
        self._file.write({f"{STATE}/{name}": value for name, value in to_arrays(self._stream).items()})
        self._unsaved = False

    def close(self) -> None:
        """Write what is not yet in the file and let go of it; nothing more can be fed, results can be asked for."""
        if self._file is None or self._file.closed:
            return
        try:
            self._save_rest()
        finally:
            self._file.release()

    def _save_rest(self) -> None:
        """Write what is not yet in the file."""
        if self._unsaved and self._file is not None and self._file.held:
            self.save()

    def __enter__(self) -> IncrementalPOD:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.__dict__.get("_file") is None:      # in memory only, or refused
            return
        try:
            self.close()
        except Exception as error:      # nobody is there to catch it
            warnings.warn(f"the last snapshots of an IncrementalPOD could not be saved: {error}", RuntimeWarning, stacklevel=2)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._file.keep = weakref.WeakMethod(self._save_rest)

    def __repr__(self) -> str:
        kept = 0 if self._stream.directions is None else len(self._stream.directions.sigma)
        return f"<IncrementalPOD: {self.n} snapshots, {kept} directions kept>"
