"""The snapshot store: one run in one or more HDF5 files, appended to by one writer, read by anyone at any time.

One class, and longer than most files here: it is the door to all the others of this folder, and its methods share one
lock, one owner and one state of "open, changing, stale, closed" that would have to be handed about if they were apart.
"""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ensemblekit.errors import (
    ClosedError,
    EnsemblekitError,
    InputError,
    LengthError,
    StoreBusyError,
    StoreError,
    UnknownFieldError,
)
from ensemblekit.files import most_bytes
from ensemblekit.intake_labels import Labels
from ensemblekit.provenance import Provenance
from ensemblekit.source import Access, BaseSource, Cut, Field, Piece
from ensemblekit.store.checking import (
    Checks,
    Durability,
    check_free,
    check_options,
    checked_provenance,
    meta_of_many,
    meta_of_one,
    weights_of_logs,
)
from ensemblekit.store.checksums import digest_of
from ensemblekit.store.contents import Contents
from ensemblekit.store.foreign import Foreign
from ensemblekit.store.layout import Layout, read_file
from ensemblekit.store.locks import Lock
from ensemblekit.store.names import first_of, folder_of
from ensemblekit.store.schema import MAIN, Compression, Schema, check_constants, check_fields
from ensemblekit.store.stored import StoredField, StoredSource, Table
from ensemblekit.store.writer import Writer, new_writer, writer_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ensemblekit.store.verify import Report


class _Change:
    """One call that changes a store: others wait for it, and a signal handler that interrupts it is refused another."""

    __slots__ = ("guard", "store")

    def __init__(self, store: Store):
        self.store, self.guard = store, store._guard    # the same to the end, also in a child forked in the middle

    def __enter__(self) -> None:
        store = self.store
        if store.mode != "a" or not store._owned:
            store._writing("")      # refused, and without a lock that another thread of the parent may hold
        self.guard.acquire()
        if store._changing:
            self.guard.release()
            raise store._within()
        store._changing = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        store = self.store
        store._changing = False
        try:
            if kind is not None and not issubclass(kind, EnsemblekitError):
                store._interrupted()
            if store._close_after:
                store._close()
        finally:
            self.guard.release()


class Store(BaseSource):
    """One run of snapshots in a file, or several files that continue each other. Made by ``ek.create`` and ``ek.open``.

    A snapshot whose ``append`` returned survives the death of the process (with ``durability="disk"`` also the loss
    of power); a half-written one is never visible; readers may follow (``refresh``). See docs/file-format.md.

    Threads may share it: their calls follow one another. A store open for appending belongs to its process: it cannot be
    pickled or copied, and in a forked child it can only be read; there every writing call raises StoreError.
    """

    def __init__(self, contents: Contents, mode: Literal["r", "a"], durability: Durability = "process"):
        self.path, self.mode, self.durability = contents.path, mode, durability
        self._contents = contents
        self._checks = None if contents.schema is None else Checks(contents.schema)
        self._lock: Lock | None = None
        self._writer: Writer | None = None
        self._guard = threading.RLock()     # one call at a time changes the store, or counts its snapshots meanwhile
        self._owner = os.getpid()
        self._owned = True                  # until a fork: in the child False
        self._changing = False              # a signal handler may run in the middle of an append, in the same thread
        self._close_after = False
        self._stale = False                 # look at the files again before the next change
        self._closed = False

    # -- opening and closing ---------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | os.PathLike[str], fields: Mapping[str, Field], *,
               capacity: int | Mapping[str, int] | None = None, run: str | None = None, replica: str | None = None,
               provenance: Mapping[str, Any] | None = None, time_unit: str = "", durability: Durability = "process",
               author: str = "unknown", in_place: bool = True, constants: Mapping[str, Any] | None = None,
               origin: Provenance | None = None) -> Store:
        """See :func:`ensemblekit.create`; ``in_place=False`` writes every file whole, as is done by itself where rows
        cannot be committed in place: then a snapshot is safe when ``flush`` or ``extend`` returned. `origin`: how the run
        came about; by default versions, command and caller of this call."""
        path = os.fspath(path)
        fields = check_fields(fields)
        check_options(durability, capacity)
        if not isinstance(time_unit, str) or not isinstance(author, str):
            raise InputError(f"time_unit and author are text; got {time_unit!r}, {author!r}")
        md = any(f.kind == "position" for f in fields.values())
        check_free(path, md)
        fixed = check_constants(constants or {})
        schema = Schema(fields, run or uuid.uuid4().hex, None if replica is None else str(replica),
                        time_unit or ("ps" if md else ""), checked_provenance(provenance), author,
                        constants={name: digest_of(values) for name, values in fixed.items()} or None,
                        origin=(origin or Provenance.now()).to_dict())
        # the real path: links, and a later change of folder, lead to the same lock, segments and folder
        store = cls(Contents(os.path.realpath(path), schema), "a", durability)
        store._begin(lambda lock, checks: new_writer(store._contents, lock, checks, durability, capacity, fixed,
                                                     in_place=in_place))
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str], mode: Literal["r", "a"] = "r", *, durability: Durability = "process",
             capacity: int | Mapping[str, int] | None = None, incomplete: bool = False, external: bool = False) -> Store:
        """See :func:`ensemblekit.open`."""
        path = os.path.realpath(path)       # its other files stand beside the file itself, not beside a link to it
        if mode not in ("r", "a"):
            raise InputError(f'mode is "r" (read) or "a" (append); got {mode!r}. A new store: ek.create')
        check_options(durability, capacity)
        first = read_file(path, external)
        if isinstance(first, dict):
            if mode == "a":
                raise StoreError(f"{path} was not written by ensemblekit: it opens for reading only. "
                                 "Append to a store made by ek.create")
            if not first:
                raise StoreError(f"{path} holds no numeric dataset with snapshots along its first axis")
            return cls(Contents(path, None, first), mode)
        if first.schema.segment:
            raise StoreError(f"{path} is part {first.schema.segment + 1} of a store, not the whole: open its first file"
                             f"{first_of(path)}")
        if incomplete and mode == "a":
            raise InputError("a store that lacks files opens for reading only")
        contents = Contents(path, first.schema)
        contents.incomplete = incomplete
        store = cls(contents, mode, durability)
        if mode == "r":
            contents.layouts = [first]      # as it was just read; looked at again where the file has changed since
            contents.refresh()
        else:
            store._begin(lambda lock, checks: _appending(contents, lock, checks, durability, capacity))
        return store

    def _begin(self, writer: Callable[[Lock, Checks], Writer]) -> None:
        """Take the lock, then what writes under it."""
        assert self._checks is not None
        self._lock = Lock(self.path)
        _writers.add(self)
        try:
            self._writer = writer(self._lock, self._checks)
        except BaseException:
            self._lock.release()
            self._closed = True
            raise

    def close(self) -> None:
        """Write what is pending and let go of the files. Closing twice does nothing.

        In a forked child nothing is written or released: that is left to the process that opened the store. Within an
        append (in a signal handler) it takes place as soon as that append is over.
        """
        if not self._owned:
            self._disown()
            self._closed = True
            return
        with self._guard:
            if self._changing:
                self._close_after = True
                return
            self._close()

    def _close(self) -> None:
        if self._closed:
            return
        try:
            if self._writer is not None:
                if not any(map(self._writer.held, self.clocks)):
                    self._contents.check()
                else:
                    self._flush()
        finally:
            self._end()

    def _end(self) -> None:
        """Let go of all files."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            self._writer = None
            self._closed = True
            if self._lock is not None:
                self._lock.release()

    def _disown(self) -> None:
        """In a forked child: what is left is a reader of the store, without any of the descriptors of its parent."""
        self._owned = False
        self._guard = threading.RLock()     # another thread of the parent may have held it
        self._changing = False
        if self._writer is not None:
            self._writer.disown()
            self._writer = None
        if self._lock is not None:
            self._lock.disown()
            self._lock = None
        self._stale = True

    def __getstate__(self) -> dict[str, Any]:
        if self.writable:
            raise StoreError(f"{self.path} is open for appending, and a writer stays in the process and the object that "
                             f"opened it: it is neither pickled nor copied. Send the path and read there with "
                             f"ek.open({self.path!r}), send snapshots back to append them here, or close it first")
        if self._stale:
            self.refresh()
        state = self.__dict__.copy()
        del state["_guard"]
        return state | {"mode": "r", "_lock": None, "_writer": None, "_stale": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _guard=threading.RLock())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is there ---------------------------------------------------------------------------------------------

    @property
    def fields(self) -> Mapping[str, Field]:
        """Fields of the first clock: what the store is a source of. ``store.clock(name)`` gives those of another."""
        fields = self.all_fields
        return {name: fields[name] for name in self.clocks[self._contents.first_clock]}

    @property
    def foreign(self) -> Mapping[str, Foreign]:
        """Fields of a file that is not ours, with their places and clocks; {} of a store."""
        return self._contents.foreign

    @property
    def all_fields(self) -> Mapping[str, Field]:
        """Fields of every clock: what ``store[name]`` gives."""
        return self._contents.fields

    @property
    def clocks(self) -> dict[str, list[str]]:
        """Clock -> its fields."""
        return self._contents.clocks

    @property
    def _schema(self) -> Schema | None:
        return self._contents.schema

    @property
    def run(self) -> str:
        return self._schema.run if self._schema else ""

    @property
    def replica(self) -> str | None:
        return self._schema.replica if self._schema else None

    @property
    def provenance(self) -> Mapping[str, Any]:
        return dict(self._schema.provenance or {}) if self._schema else {}

    @property
    def origin(self) -> Provenance | None:
        """How the store came about: versions, command line or caller, inputs, settings; None where its file does not say."""
        return Provenance.from_dict(self._schema.origin) if self._schema else None

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The arrays of the run that do not change with time, as given to ``ek.create``: name -> array, read-only."""
        return self._contents.constants

    @property
    def folder(self) -> Path:
        """The folder beside the store for what is overwritten or derived; made when first asked for."""
        folder = folder_of(self.path)
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def segments(self) -> list[str]:
        """The files of this store, in order."""
        return [layout.path for layout in self.layouts] or [self.path]

    @property
    def layouts(self) -> list[Layout]:
        """What is known of each of these files; empty for another program's."""
        return self._contents.layouts

    @property
    def sealed(self) -> bool:
        return any(layout.schema.sealed for layout in self.layouts)

    @property
    def writable(self) -> bool:
        return self.mode == "a" and not self._closed and self._owned

    def __len__(self) -> int:
        """Committed snapshots of the main clock (of the first clock where there is no main).

        Raises LengthError where another program's file says it has more than its bytes can hold.
        """
        (n,) = self.lengths
        if self._schema is None and n > most_bytes(self.path):
            raise LengthError(f"{self.path} says it has {n} snapshots, more than its bytes can hold: len() does not stand for "
                              "them. store.lengths has the number")
        return n

    def __bool__(self) -> bool:
        return self.lengths != (0,)

    def clock(self, name: str = MAIN) -> StoredSource:
        """All fields of one clock as a source."""
        if name not in self.clocks:
            raise UnknownFieldError(name, self.clocks)
        table = self._table(name)
        return StoredSource(table, tuple(table.fields), 0, table.n, 1, self.run)

    def __getitem__(self, name: str) -> StoredField:
        """The one-field view. Raises UnknownFieldError, which lists the fields there are."""
        if name not in self.all_fields:
            raise UnknownFieldError(name, self.all_fields)
        table = self._table(self.all_fields[name].clock)
        return StoredField(table, (name,), 0, table.n, 1, self.run)

    def __contains__(self, name: object) -> bool:
        return name in self.all_fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.all_fields)

    # -- as a source: the fields of the first clock ----------------------------------------------------------------

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self._table(self._contents.first_clock).n,)

    @property
    def access(self) -> Access:
        return "tiles"

    @property
    def time_unit(self) -> str:
        return self._table(self._contents.first_clock).time_unit

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> StoredSource:
        return self.clock(self._contents.first_clock).window(start, stop, step)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        return self.clock(self._contents.first_clock).pieces(names, cut, tiled, limit)

    @property
    def times(self) -> np.ndarray | None:
        return self.clock(self._contents.first_clock).times

    @property
    def labels(self) -> Labels | None:
        """Names of axes, coordinates and the epoch of the times, where the store was made with any."""
        return self.clock(self._contents.first_clock).labels if self.clocks else None

    @property
    def steps(self) -> np.ndarray:
        return self.clock(self._contents.first_clock).steps

    @property
    def weights(self) -> np.ndarray | None:
        return self.clock(self._contents.first_clock).weights

    def _table(self, clock: str) -> Table:
        contents = self._contents
        if self._closed and contents.schema is not None and not contents.layouts:
            raise ClosedError(f"{self.path} is closed")
        if self.mode != "a":
            return contents.table(clock)
        with self._guard:
            if self._stale and not self._owned:
                self._stale = False
                self.refresh()
            return contents.table_of_writer(clock)

    def refresh(self) -> int:
        """Look again at a store that another process writes; returns the snapshots of the first clock there are now."""
        if self._schema is None:
            return self.lengths[0]
        with self._guard:
            return self.lengths[0] if self._changing else self._refresh()     # in a signal handler: as is

    def _refresh(self) -> int:
        self._contents.refresh()
        return self.lengths[0]

    def __repr__(self) -> str:
        state = "closed" if self._closed else "writing" if self.writable else "sealed" if self.sealed else "reading"
        names = ", ".join(f"{name} {field.shape}" for name, field in self.all_fields.items())
        return f"<Store {os.path.basename(self.path)!r} ({state}): {self.lengths[0]} snapshots of {names}>"

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, snapshot: Mapping[str, Any], time: float | None = None, step: int | None = None,
               weight: float = 1.0, clock: str = MAIN, log_weight: float | None = None) -> None:
        """Commit one snapshot: a value for every field of the clock.

        Arguments:
            snapshot: field name -> array of the field's shape.
            time: in ``time_unit``; not before the last. By default the step number.
            step: above the last step. By default the last step + 1.
            weight: statistical weight, 0 or more.
            log_weight: its natural logarithm instead, -inf for 0; beyond float64 (±700) it is refused, as what counts is by
                how much the logarithms of a run differ.

        Raises:
            InputError, UnknownFieldError: what does not fit, and how to mend it; the file stays as it was.
            StoreError: the disk is full or cannot be written; nothing was committed.
            ClosedError: the store is closed or open for reading.
        """
        with self._guard:                   # as _Change, at a third of its time
            if self._changing:
                raise self._within()
            self._changing = True
            try:
                if log_weight is not None:
                    if weight != 1.0:
                        raise InputError("pass either weight= or log_weight=, not both")
                    (weight,) = weights_of_logs([log_weight])
                self._append(snapshot, time, step, weight, clock)
            except EnsemblekitError:
                raise
            except BaseException:
                self._interrupted()
                raise
            finally:
                self._changing = False
                if self._close_after:
                    self._close()

    def _within(self) -> StoreBusyError:
        return StoreBusyError(f"{self.path} is in the middle of an append or another change, which a signal handler has "
                              "interrupted: set a flag in the handler, and write when that is over (close may be called: "
                              "it waits for it)")

    def _interrupted(self) -> None:
        """An interrupt may have come after the commit, or between two files: look again before the next change."""
        if self._writer is not None:
            self._writer.forget()
        self._stale = True

    def _append(self, snapshot: Mapping[str, Any], time: float | None, step: int | None, weight: float,
                clock: str) -> None:
        writer, checks = self._writing(clock)
        arrays = checks.columns(snapshot, clock)
        writer.commit(clock, arrays, meta_of_one(time, step, weight, writer.last(clock)), at_once=False)

    def extend(self, snapshots: Mapping[str, Any], times: ArrayLike | None = None, steps: ArrayLike | None = None,
               weights: ArrayLike | None = None,
               clock: str = MAIN, log_weights: ArrayLike | None = None) -> None:
        """Commit many snapshots at once: arrays (n, *field shape); one commit a file. Else as :meth:`append`."""
        if log_weights is not None:
            if weights is not None:
                raise InputError("pass either weights= or log_weights=, not both")
            weights = weights_of_logs(log_weights)
        with _Change(self):
            self._extend(snapshots, times, steps, weights, clock)

    def _extend(self, snapshots: Mapping[str, Any], times: ArrayLike | None, steps: ArrayLike | None,
                weights: ArrayLike | None, clock: str) -> None:
        writer, checks = self._writing(clock)
        n = checks.length(snapshots, clock)
        arrays = checks.columns(snapshots, clock, n)
        if n:
            writer.commit(clock, arrays, meta_of_many(n, times, steps, weights, writer.last(clock)), at_once=True)

    def _writing(self, clock: str) -> tuple[Writer, Checks]:
        """What writes a clock, and what it takes. Raises ClosedError, StoreError, InputError."""
        if self._closed:
            raise ClosedError(f"{self.path} is closed; open it again with ek.open(path, \"a\")")
        if self._checks is None or self.mode != "a":
            raise ClosedError(f"{self.path} is open for reading; open it with ek.open(path, \"a\") to append")
        if not self._owned:
            raise StoreError(f"{self.path} was opened for appending by process {self._owner}, and a writer stays in its "
                             f"process; this one is {os.getpid()}. Send snapshots there, or open the store here once it is "
                             "closed there")
        writer = self._writer
        assert writer is not None
        if self._stale:
            writer.resume()
            self._stale = False
        if clock not in self.clocks:
            raise InputError(f"no clock {clock!r}; the clocks are {list(self.clocks)}")
        return writer, self._checks

    def flush(self) -> None:
        """Commit what a store that writes whole files still holds; elsewhere every append is committed already.

        Raises StoreError where a file of the store was removed, renamed or replaced meanwhile.
        """
        with _Change(self):
            self._flush()

    def _flush(self) -> None:
        self._writing(self._contents.first_clock)[0].flush()

    def truncate(self, n: int | Mapping[str, int], clock: str = MAIN) -> None:
        """Cut back to the first n snapshots of a clock: the checkpoint a restarted run continues from.

        Arguments:
            n: snapshots to keep; or clock -> snapshots to keep, for several clocks at once.
            clock: the one that is cut, where n is a number. Other clocks keep all they have.
        """
        with _Change(self):
            try:
                self._truncate(n, clock)
            except StoreError:
                self._stale = True      # some files may be cut
                raise

    def _truncate(self, n: int | Mapping[str, int], clock: str) -> None:
        wanted = n if isinstance(n, Mapping) else {clock: n}
        for name, keep in wanted.items():
            writer, _ = self._writing(name)
            total = self._table(name).n + writer.held(name)
            if not isinstance(keep, int | np.integer) or isinstance(keep, bool) or not 0 <= keep <= total:
                raise InputError(f"truncate(n) keeps between 0 and {total} snapshots; got {keep!r}")
        if wanted:
            writer.truncate(wanted)

    def seal(self, path: str | os.PathLike[str] | None = None, compression: Compression = None) -> Store:
        """Write one compact file, with what was allocated ahead left out; returns it open for reading.

        Arguments:
            path: of the new file; by default it takes the place of this store and its segments.
            compression: None, "lossless" (byte shuffle and deflate, which every HDF5 library reads), "zstd" (several times
                faster; who reads it needs hdf5plugin, too), or ("round", k): floats are rounded, then as
                lossless. A whole number k of 1 to 52 keeps that many bits of the significand (relative error
                2**-(k + 1)); a fraction such as 1e-4 is the largest relative error allowed; ("round", k, "zstd") packs
                with zstd. On a mesh it is deflate always, for ParaView.

        Raises:
            InputError, StoreError; MissingExtraError for zstd without hdf5plugin.
        """
        from ensemblekit.store.sealing import seal

        if self.mode != "a" or not self._owned:
            return seal(self, path, compression)
        with _Change(self):
            return seal(self, path, compression)

    def publish(self, path: str | os.PathLike[str] | None = None) -> str:
        """Write a small file beside the store through which ParaView and pyvista see the snapshots of this moment.

        It holds no values of its own but points to the store's files, so it has to stay beside them. Publish again to
        show more. A sealed store needs none: it opens there itself.

        Arguments:
            path: of the new file, ending in .vtkhdf; by default ``<store>.view.vtkhdf``.

        Returns the path. Raises InputError where the store has no mesh (constants "mesh/..."), or the name has
        another suffix.
        """
        from ensemblekit.store.vtkhdf import publish

        return publish(self, path)

    def verify(self, timeout: float = 60.0) -> Report:
        """Compare every byte that matters with its checksum, with libhdf5 in a child process; see ``Report``."""
        from ensemblekit.store.verify import verify

        return verify(self.path, timeout=timeout)


def _appending(contents: Contents, lock: Lock, checks: Checks, durability: Durability,
               capacity: int | Mapping[str, int] | None) -> Writer:
    """The writer of a store, as its files are now that nobody else writes them."""
    contents.refresh()
    return writer_of(contents, lock, checks, durability, capacity)


_writers: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked child keeps none of its parent's locks and descriptors: they would outlive the parent."""
    for store in list(_writers):
        store._disown()


os.register_at_fork(after_in_child=_after_fork)
