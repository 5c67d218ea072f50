"""Writers of a store: rows into its files in place, each committed at once, or whole files of rows held till then.

A writer belongs to one process and one thread at a time; ``Store`` sees to both.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from ensemblekit.errors import StoreError
from ensemblekit.files import sync_folder
from ensemblekit.store.checking import Checks, Durability
from ensemblekit.store.checksums import checksums
from ensemblekit.store.contents import Contents
from ensemblekit.store.creation import NotInPlace
from ensemblekit.store.layout import Layout
from ensemblekit.store.locks import Lock, share, unlock
from ensemblekit.store.names import remove_leftovers, segment_path, segments_of
from ensemblekit.store.schema import META, Schema
from ensemblekit.store.segments import Segment, new_segment, next_capacity, set_files
from ensemblekit.store.stored import Part, Table, column_stretches

WHOLE_BATCH = 64 << 20      # bytes that are gathered before a whole file is written


class Writer(ABC):
    """What commits snapshots to the files of one store, and cuts them back.

    `contents` is kept true to the files; `lock` is the store's, held by who made it.
    """

    def __init__(self, contents: Contents, lock: Lock, checks: Checks, durability: Durability):
        self.contents, self.lock, self.checks = contents, lock, checks
        self.durable = durability == "disk"
        self.shares: list[int] = []             # shared locks on the files that are full
        self._last: dict[str, tuple[int, float]] = {}

    @property
    def schema(self) -> Schema:
        assert self.contents.schema is not None
        return self.contents.schema

    def last(self, clock: str) -> tuple[int, float]:
        """Step and time of the last snapshot; (-1, -inf) before the first."""
        if clock not in self._last:
            self._last[clock] = self._read_last(clock)
        return self._last[clock]

    def _read_last(self, clock: str) -> tuple[int, float]:
        table = self.contents.table_of_writer(clock)
        n = table.n
        if not n:
            return -1, -float("inf")
        return int(table.column(" step", n - 1, n, 1)[0]), float(table.column(" time", n - 1, n, 1)[0])

    def commit(self, clock: str, arrays: list[np.ndarray], meta: np.ndarray, at_once: bool) -> None:
        """Take snapshots: their columns of values, and META (n,). `at_once`: not to wait for others. Raises StoreError."""
        rows = [*arrays, np.ascontiguousarray(meta["step"]), np.ascontiguousarray(meta["time"]),
                np.ascontiguousarray(meta["weight"]), checksums(arrays, meta, len(meta))]
        try:
            self._write(clock, rows, len(meta), at_once)
        except BaseException:
            self._last.pop(clock, None)     # part of the batch may be committed: look again
            raise
        self._last[clock] = int(meta["step"][-1]), float(meta["time"][-1])

    def truncate(self, wanted: Mapping[str, int]) -> None:
        """Keep the first snapshots of each clock named: clock -> how many. Raises StoreError."""
        self.flush()
        contents = self.contents
        for name in wanted:
            self._last.pop(name, None)
        counts = [{c: one.n for c, one in contents.rows(layout).items()} for layout in contents.layouts]
        starts = dict.fromkeys(contents.clocks, 0)
        left = []
        for have in counts:
            left.append({c: max(0, min(have[c], int(wanted[c]) - starts[c])) if c in wanted else have[c] for c in have})
            starts = {c: starts[c] + have[c] for c in starts}
        for k in reversed(range(len(counts))):      # the newest first, so that what is there is always a beginning
            # a file in the middle stays, empty, where a later one holds snapshots of another clock
            if k and k == len(contents.layouts) - 1 and not any(left[k].values()):
                self._drop_last()
            elif left[k] != counts[k]:
                self._cut(k, left[k])
                contents.changed()
        contents.refresh()

    def _drop_last(self) -> None:
        """Remove the newest file, which is to hold nothing any more, and write on in the one before it."""
        layouts = self.contents.layouts
        path = layouts.pop().path
        self._leave()
        for layout in {id(one): one for one in (layouts[0], layouts[-1])}.values():
            set_files(layout, len(layouts), self.durable)       # before it goes: none is missed that was not lost
        os.close(self.shares.pop())
        os.unlink(path)
        if self.durable:
            sync_folder(path)       # before rows are written that the file would follow again after a loss of power
        self.contents.changed()
        self._enter()

    def forget(self) -> None:
        """What was last written is to be looked up: an interrupt may have come after the commit."""
        self._last.clear()

    def resume(self) -> None:
        """Begin again from what the files say: an interrupt may have come between a file and what is known of it."""
        self.close()
        self.contents.refresh()
        self._last.clear()
        self.take()

    def take(self) -> None:
        """Hold the files, and write on in the last one. Raises StoreError where the store is sealed."""
        layouts, path = self.contents.layouts, self.contents.path
        remove_leftovers(path)
        if layouts[-1].schema.sealed:
            for extra in segments_of(path)[1:]:         # a seal that was killed before it had removed them
                os.unlink(extra)
            raise StoreError(f"{path} is sealed, that is complete: it opens for reading only. To go on, create a "
                             "new store with the same run id and open both: ek.open([old, new])")
        self.shares = [share(layout.path) for layout in layouts[:-1]]
        self._enter()

    def close(self) -> None:
        """Let go of the files, which then say how many they are."""
        layouts = self.contents.layouts
        try:
            self._leave()
        finally:
            if len(layouts) > 1:
                with suppress(OSError):     # the next to last file says so in any case
                    if layouts[0].identity.is_of(layouts[0].path):      # not where it was sealed meanwhile
                        set_files(layouts[0], len(layouts), self.durable)
            for fd in self.shares:
                unlock(fd)
                os.close(fd)
            self.shares.clear()

    def disown(self) -> None:
        """In a forked child: let go of the descriptors of the parent, and write nothing."""
        for fd in self.shares:
            os.close(fd)
        self.shares.clear()

    @abstractmethod
    def start(self, wanted: Mapping[str, int], constants: Mapping[str, np.ndarray] | None = None) -> None:
        """Make the next file, or the first of all, which holds the constants."""

    @abstractmethod
    def flush(self) -> None:
        """Commit what is held."""

    @abstractmethod
    def held(self, clock: str) -> int:
        """Snapshots that are not committed yet."""

    @abstractmethod
    def _write(self, clock: str, rows: list[np.ndarray], n: int, at_once: bool) -> None: ...

    @abstractmethod
    def _cut(self, k: int, left: Mapping[str, int]) -> None:
        """Keep only the first rows of file k."""

    @abstractmethod
    def _enter(self) -> None:
        """Take the last file, to write on in it."""

    @abstractmethod
    def _leave(self) -> None:
        """Let go of the file that is written."""


class InPlaceWriter(Writer):
    """Rows into room that a file has ahead: each is committed when `commit` returns."""

    def __init__(self, contents: Contents, lock: Lock, checks: Checks, durability: Durability,
                 capacity: int | Mapping[str, int] | None):
        super().__init__(contents, lock, checks, durability)
        self.capacity = capacity

    @property
    def segment(self) -> Segment:
        assert self.contents.segment is not None
        return self.contents.segment

    def start(self, wanted: Mapping[str, int], constants: Mapping[str, np.ndarray] | None = None) -> None:
        """See :meth:`Writer.start`; raises NotInPlace where rows cannot be committed so in this folder or of these fields."""
        contents = self.contents
        index = len(contents.layouts)
        starts = {clock: contents.table_of_writer(clock).n if index else 0 for clock in contents.clocks}
        capacity = next_capacity(self.schema, wanted, self.capacity, index)
        layout = new_segment(segment_path(contents.path, index), self.schema.at(index, starts, capacity), self.durable,
                             constants=constants)
        before, contents.segment = contents.segment, Segment(layout, self.durable)
        if before is not None:
            self.shares.append(share(before.layout.path))
            before.files = index + 1        # it says so only now that the next one is there
            before.close()
        contents.layouts.append(layout)

    def _write(self, clock: str, rows: list[np.ndarray], n: int, at_once: bool) -> None:
        done = 0
        while done < n:
            segment = self.segment
            room = segment.room(clock)
            if room == 0:
                self.contents.check()
                self.start({clock: n - done})
                continue
            k = min(room, n - done)
            part = rows if k == n else [r[done:done + k] for r in rows]
            schema = segment.layout.schema
            if schema.format == 1:
                part = self._in_first_format(schema, clock, part, k)
            segment.write(clock, part, k)
            done += k

    def _in_first_format(self, schema: Schema, clock: str, rows: list[np.ndarray], n: int) -> list[np.ndarray]:
        """Rows of columns as new files have them as those of a file in which every field has a dataset."""
        if len(rows) == len(schema.clocks[clock]) + 4:
            return rows
        *values, steps, times, weights, _ = rows
        fields = schema.fields
        alone: dict[str, np.ndarray] = {}
        for (names, *_), value in zip(self.checks.datasets[clock], values, strict=True):
            ends = np.cumsum([fields[name].size for name in names])
            alone |= zip(names, np.split(value, ends[:-1], axis=1) if len(names) > 1 else [value], strict=True)
        arrays = [np.ascontiguousarray(alone[name]).reshape(n, *fields[name].shape) for name in schema.clocks[clock]]
        return _with_checksums(arrays, steps, times, weights)

    def flush(self) -> None:
        self.contents.check()

    def held(self, clock: str) -> int:
        return 0

    def _cut(self, k: int, left: Mapping[str, int]) -> None:
        newest = k == len(self.contents.layouts) - 1
        segment = self.segment if newest else Segment(self.contents.layouts[k], self.durable)
        for clock, n in left.items():
            if segment.counts[clock] != n:
                segment.cut(clock, n)
        if not newest:
            segment.close()

    def take(self) -> None:
        super().take()
        self.segment.repair_extents()

    def _enter(self) -> None:
        self.contents.segment = Segment(self.contents.layouts[-1], self.durable)

    def _leave(self) -> None:
        segment, self.contents.segment = self.contents.segment, None
        if segment is not None:
            segment.close()

    def disown(self) -> None:
        super().disown()
        segment, self.contents.segment = self.contents.segment, None
        if segment is not None:
            segment.disown()


class WholeFileWriter(Writer):
    """Files that are written once, with all their rows: snapshots are committed by `flush`, and where many are held."""

    def __init__(self, contents: Contents, lock: Lock, checks: Checks, durability: Durability):
        super().__init__(contents, lock, checks, durability)
        self._pending: dict[str, list[list[np.ndarray]]] = {}       # clock -> batches of all columns

    def start(self, wanted: Mapping[str, int], constants: Mapping[str, np.ndarray] | None = None) -> None:
        """See :meth:`Writer.start`: the first file, without rows, as every other comes with its rows."""
        contents = self.contents
        contents.schema = replace(self.schema, in_place=False)
        path, none = segment_path(contents.path, 0), dict.fromkeys(contents.clocks, 0)
        new_segment(path, contents.schema.at(0, none, none), self.durable, lambda clock: (), constants=constants)
        self.shares.append(share(path))
        contents.refresh()

    def _write(self, clock: str, rows: list[np.ndarray], n: int, at_once: bool) -> None:
        held = self._pending.setdefault(clock, [])
        columns = self.schema.at(0, {}, {}).columns(clock, n)
        held.append([np.array(r).reshape(n, *column.shape) for r, column in zip(rows, columns, strict=True)])
        if at_once or sum(r.nbytes for batch in held for r in batch) > WHOLE_BATCH:
            try:
                self.flush()
            except BaseException:
                held.pop()      # refused as a whole, so that it can be given again
                raise

    def flush(self) -> None:
        contents = self.contents
        contents.check()
        if not any(self._pending.values()):
            return
        starts = {clock: contents.table_of_writer(clock).n for clock in contents.clocks}
        first = len(contents.layouts) == 1 and not any(starts.values())     # the empty file of the beginning is replaced:
        index = 0 if first else len(contents.layouts)                       # other programs open no file without frames
        held = {clock: [np.concatenate(part) for part in zip(*self._pending[clock], strict=True)]
                for clock in contents.clocks if self._pending.get(clock)}
        capacity = {clock: len(held[clock][0]) if clock in held else 0 for clock in contents.clocks}
        schema = self.schema.at(index, starts, capacity)

        def fill(clock: str) -> list[tuple[int, dict[str, np.ndarray]]]:
            paths = [column.path for column in schema.columns(clock, capacity[clock])]
            return [(0, dict(zip(paths, held[clock], strict=True)))] if clock in held else []

        path = segment_path(contents.path, index)
        new_segment(path, schema, self.durable, fill, over=first, constants=contents.constants if first else None)
        if first:
            os.close(self.shares.pop())
        elif contents.layouts:
            set_files(contents.layouts[-1], index + 1, self.durable)
        self.shares.append(share(path))
        if first:
            self.lock.hold()
        self._pending.clear()
        contents.refresh()

    def held(self, clock: str) -> int:
        return sum(len(batch[-1]) for batch in self._pending.get(clock, []))

    def _read_last(self, clock: str) -> tuple[int, float]:
        if self._pending.get(clock):
            *_, steps, times, _weights, _sums = self._pending[clock][-1]
            return int(steps[-1]), float(times[-1])
        return super()._read_last(clock)

    def _cut(self, k: int, left: Mapping[str, int]) -> None:
        """File k, written again with fewer rows."""
        contents = self.contents
        layout = contents.layouts[k]
        schema = layout.schema.at(k, layout.schema.starts or {}, left)
        contents.layouts[k] = new_segment(layout.path, schema, self.durable, lambda clock: self._first_rows(
            layout, schema, clock, left[clock]), over=True, constants=contents.constants if k == 0 else None)
        set_files(contents.layouts[k], len(contents.layouts), self.durable)
        os.close(self.shares[k])
        self.shares[k] = share(layout.path)
        if k == 0:
            self.lock.hold()

    def _first_rows(self, layout: Layout, schema: Schema, clock: str, n: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The first n rows of a file as one of another schema takes them, some megabytes at a time."""
        have = self.contents.rows(layout)[clock]
        columns = dict(zip((c.path for c in layout.schema.columns(clock, 1)), column_stretches(layout, clock, *have),
                           strict=True))
        table = Table({}, (Part(layout.path, layout.identity, have.n, columns),), "")
        step = max(1, WHOLE_BATCH // sum(some[0].dataset.stride for some in columns.values()))
        for a in range(0, n, step):
            b = min(n, a + step)
            rows = [table.column(path, a, b, 1) for path in columns]
            if layout.schema.stored[clock] != schema.stored[clock]:     # of the first format
                *values, steps, times, weights, _ = rows
                rows = _with_checksums(schema.packed(clock, values, b - a), steps, times, weights)
            yield a, dict(zip((c.path for c in schema.columns(clock, 1)), rows, strict=True))

    def _enter(self) -> None:
        if len(self.shares) < len(self.contents.layouts):
            self.shares.append(share(self.contents.layouts[-1].path))

    def _leave(self) -> None:
        pass

    def disown(self) -> None:
        super().disown()
        self._pending.clear()


def new_writer(contents: Contents, lock: Lock, checks: Checks, durability: Durability,
               capacity: int | Mapping[str, int] | None, constants: Mapping[str, np.ndarray], *, in_place: bool) -> Writer:
    """The writer of a store that is to be made, with its first file; `in_place` where that can be done."""
    remove_leftovers(contents.path)
    writer: Writer
    try:
        if not in_place:
            raise NotInPlace
        writer = InPlaceWriter(contents, lock, checks, durability, capacity)
        writer.start({}, constants)
    except NotInPlace:
        writer = WholeFileWriter(contents, lock, checks, durability)
        writer.start({}, constants)
    lock.hold()
    return writer


def writer_of(contents: Contents, lock: Lock, checks: Checks, durability: Durability,
              capacity: int | Mapping[str, int] | None) -> Writer:
    """The writer of a store that is there, in the way it was begun."""
    writer = InPlaceWriter(contents, lock, checks, durability, capacity) if contents.layouts[-1].schema.in_place else \
        WholeFileWriter(contents, lock, checks, durability)
    try:
        writer.take()
    except BaseException:
        writer.close()
        raise
    return writer


def _with_checksums(arrays: list[np.ndarray], steps: np.ndarray, times: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """All columns of rows of a clock."""
    n = len(steps)
    meta = np.empty(n, META)
    meta["step"], meta["time"], meta["weight"] = steps, times, weights
    return [*arrays, steps, times, weights, checksums(arrays, meta, n)]
