"""Writing: a segment is created whole, rows are written into it, and one aligned 8-byte write commits them.

libhdf5 never touches a file that holds committed snapshots. The file is a closed, valid HDF5 file at every instant:
rows beyond the extent of the first field are not there for any reader.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.errors import StoreBusyError, StoreError
from ensemblekit.files import replacing
from ensemblekit.store.closing import closed_record, files_in, open_record
from ensemblekit.store.creation import SECTOR, Fill, Filters, NotInPlace, View, write_empty, write_filtered
from ensemblekit.store.datasets import Dataset
from ensemblekit.store.hdf5 import lengths_seen, shapes_seen, write_all
from ensemblekit.store.layout import Layout, read_layout
from ensemblekit.store.locks import unlock
from ensemblekit.store.schema import CLOSED, Schema
from ensemblekit.store.space import Space

FIRST_BYTES = 4 << 30       # sparse: what is not written takes no disk; most runs then are one file
LARGEST_BYTES = 64 << 30
LEAST_ROWS = 16
METADATA_BYTES = 4 << 20    # more than a file holds beside its rows, and than its last chunks reach beyond them
ALLOCATE_ROWS = 1 << 14

_EXTENT = struct.Struct("<Q")
_pack = _EXTENT.pack


def sync(fd: int) -> None:
    """Down to the disk itself."""
    if hasattr(fcntl, "F_FULLFSYNC"):       # macOS: fsync stops at the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def new_segment(path: str, schema: Schema, durable: bool, fill: Fill | None = None, filters: Filters | None = None,
                over: bool = False, *, constants: Mapping[str, np.ndarray] | None = None, view: View | None = None) -> Layout:
    """Create a file by temporary name and rename: empty with room for rows, or whole with the rows of `fill` in it.

    Raises NotInPlace where an empty file cannot be appended to in place, StoreError where the disk is full or the name
    is taken (unless `over`).
    """
    if not over and os.path.lexists(path):
        raise StoreError(f"{path} is in the way of this store's next file and is not part of it; move it elsewhere")
    try:
        with replacing(path, durable=durable) as temporary:
            if filters is not None and fill is not None:
                write_filtered(temporary, schema, fill, filters, constants or {}, view)
            else:
                write_empty(temporary, schema, fill is not None, constants or {}, view)
            fd = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
            try:
                layout = read_layout(temporary)
                assert layout is not None
                if fill is None:
                    _try_commit(layout, fd)
                elif filters is None:
                    _fill(layout, fd, fill)
            finally:
                os.close(fd)
    except (OSError, RuntimeError, ValueError) as error:    # h5py tells of a full disk by any of the three
        raise disk_error(error, path) from error
    return replace(layout, path=path)


def _try_commit(layout: Layout, fd: int) -> None:
    """Give every clock room and set every extent to 1 and back to 0 as a writer would; does libhdf5 see that?"""
    columns = {p: d for p, d in layout.datasets.items() if p != CLOSED}
    clocks = layout.schema.clocks
    if any(d.root is None or d.extent_at is None for d in columns.values()) or len(layout.places) < len(clocks):
        raise NotInPlace(f"{layout.path}: its bytes do not lie as expected")
    space = Space(fd, layout, dict.fromkeys(clocks, 0), clean=False, durable=False)
    firsts: dict[str, int] = {}
    views = [f"{layout.schema.element(names[0])}/value" for some in layout.schema.stored.values() for names in some
             if len(names) > 1]
    for name, clock in space.clocks.items():
        space.grow(name, 1)
        for group, runs in zip(clock.groups, clock.runs, strict=True):
            firsts |= dict(zip((c.path for c in group.columns), group.starts(runs[0]), strict=True))
    for n in (1, 0):
        for dataset in columns.values():
            write_all(fd, _pack(n), dataset.extent_at)      # type: ignore[arg-type]
        if any(seen != (n, firsts[path]) for path, seen in shapes_seen(layout.path, list(columns)).items()) or \
                any(rows != n for rows in lengths_seen(layout.path, views)):
            raise NotInPlace(f"{layout.path}: libhdf5 does not see what is written in place")


def _fill(layout: Layout, fd: int, fill: Fill) -> None:
    """All rows of a file that is written whole."""
    schema = layout.schema
    capacity = schema.capacity or {}
    space = Space(fd, layout, dict.fromkeys(schema.clocks, 0), clean=False, durable=False)
    for name, clock in space.clocks.items():
        if capacity[name]:
            space.grow(name, capacity[name])
        for start, rows in fill(name):
            arrays = [np.ascontiguousarray(rows[column.path]) for column in schema.columns(name, capacity[name])]
            for g in range(len(clock.groups)):
                space.write(clock, g, arrays, start, len(arrays[0]))
        for column in schema.columns(name, capacity[name]):
            write_all(fd, _pack(capacity[name]), layout.datasets[column.path].extent_at)    # type: ignore[arg-type]
    space.close(capacity)


def disk_error(error: Exception, path: str) -> StoreError:
    if isinstance(error, StoreError):
        return error
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if (isinstance(error, OSError) and error.errno in full) or any(f"errno = {code}," in str(error) for code in full):
        return StoreError(f"{path}: the disk is full, or the limit on file sizes is reached ({error}). Nothing was "
                          "committed; free some space and append again")
    return StoreError(f"{path}: {error}")


class MappedColumns:
    """Scalars, step, time, weight and checksums of one clock, and all extents but the commit, written through a mapping.

    That leaves two system calls a snapshot: its values and the commit. Everything here is invisible until the commit,
    so it needs no order among itself. Disk space is allocated ahead, as a full disk under a mapping would be a
    SIGBUS. With durability="disk" ordinary writes are used, whose order the barriers define.
    """

    def __init__(self, space: Space, clock: str, extents: Sequence[Dataset], n: int):
        self.space, self.clock, self.allocated = space, clock, n
        group = space.clocks[clock].groups[0]
        self.numbers, self.columns, self.strides = group.numbers, group.columns, group.strides
        stop = max([0, *(d.extent_at or 0 for d in extents)]) + 8
        mapped = mmap.mmap(space.fd, stop)
        self.extents = [self._array(1, (), np.dtype("<u8"), mapped, d.extent_at or 0) for d in extents]
        self.first = self.stop = 0
        self.rows: list[tuple[int, np.ndarray]] = []
        """Number of a column in the clock, and those of its rows, first to stop, that are mapped."""

    def _array(self, rows: int, shape: tuple[int, ...], dtype: np.dtype, mapped: mmap.mmap, at: int) -> np.ndarray:
        return np.ndarray((rows, *shape), dtype, mapped, at)

    def _map(self, row: int) -> None:
        """Map the run that holds a row."""
        clock = self.space.clocks[self.clock]
        run = clock.run_at(0, row)
        starts = clock.groups[0].starts(run)
        base = min(starts) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        stop = max(start + run.rows * stride for start, stride in zip(starts, self.strides, strict=True))
        mapped = mmap.mmap(self.space.fd, stop - base, offset=base)
        self.rows = [(number, self._array(run.rows, c.shape, c.dtype, mapped, start - base))
                     for number, c, start in zip(self.numbers, self.columns, starts, strict=True)]
        self.first, self.stop = run.first, run.first + run.rows

    def put(self, arrays: Sequence[np.ndarray], at: int, n: int) -> None:
        """Rows at to at + n; `arrays` are those of all columns. Raises OSError where the disk is full."""
        if self.space.fixed and at + n > self.allocated:
            self._allocate(at, n)
        done = 0
        while done < n:
            if not self.first <= at + done < self.stop:
                self._map(at + done)
            first = at + done - self.first
            k = min(n - done, self.stop - at - done)
            for number, rows in self.rows:
                rows[first:first + k] = arrays[number] if k == n else arrays[number][done:done + k]
            done += k
        for extent in self.extents:
            extent[0] = at + n

    def _allocate(self, at: int, n: int) -> None:
        """The disk's room for rows whose places are fixed."""
        clock = self.space.clocks[self.clock]
        stop = min(clock.capacity, max(at + n, self.allocated + ALLOCATE_ROWS))
        for start, stride in zip(clock.groups[0].starts(clock.runs[0][0]), self.strides, strict=True):
            begin = start + min(self.allocated, at) * stride
            os.posix_fallocate(self.space.fd, begin, start + stop * stride - begin)
        self.allocated = stop


class ExtentCommit:
    """The extents of a clock's first field and of its step: set by one write.

    The first field's is what counts. They change together because other programs take the number of frames from the
    one and the end of the file from the other (MDAnalysis). The write covers the bytes between, which nothing ever
    changes, and lies in one sector, so that it is seen, and survives the death of process or power, whole or not at all.
    """

    def __init__(self, fd: int, first: Dataset, step: Dataset):
        assert first.extent_at is not None
        assert step.extent_at is not None
        self.fd, self.at, self.step_at = fd, first.extent_at, step.extent_at
        start, stop = min(self.at, self.step_at), max(self.at, self.step_at) + 8
        self.together = start // SECTOR == (stop - 1) // SECTOR     # else another program has moved a header
        self.start, self.data = start, bytearray(os.pread(fd, stop - start, start))

    def __call__(self, n: int) -> None:
        if self.together:
            _EXTENT.pack_into(self.data, self.at - self.start, n)
            _EXTENT.pack_into(self.data, self.step_at - self.start, n)
            os.pwrite(self.fd, self.data, self.start)
        else:
            os.pwrite(self.fd, _pack(n), self.step_at)
            os.pwrite(self.fd, _pack(n), self.at)


class Segment:
    """One file that is being written, held by a shared lock so that no other program opens it to write."""

    def __init__(self, layout: Layout, durable: bool):
        self.layout, self.durable = layout, durable
        self.files = layout.schema.segment + 1
        """Files of the store, as far as this one is to say."""
        self.fd = os.open(layout.path, os.O_RDWR)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self.fd)
            raise StoreBusyError(f"{layout.path} is open for writing in another program; close it there") from error
        try:
            self.clocks = {clock: self._columns(clock) for clock in layout.schema.clocks}
            self.counts = {clock: self.extent(columns[0]) for clock, columns in self.clocks.items()}
            self.marked = False
            self.space = Space(self.fd, layout, self.counts, self._was_closed(), durable)
            self.commits = {clock: ExtentCommit(self.fd, columns[0], columns[len(columns) - 4])
                            for clock, columns in self.clocks.items()}
            self.small = {} if durable else {clock: MappedColumns(self.space, clock, self._others(clock), self.counts[clock])
                                             for clock in self.clocks}
        except BaseException:
            os.close(self.fd)
            raise

    def _was_closed(self) -> bool:
        offset = self.layout.datasets[CLOSED].offset
        return offset is not None and any(os.pread(self.fd, self.layout.datasets[CLOSED].shape[0] * 8, offset))

    def _others(self, clock: str) -> list[Dataset]:
        """The datasets whose extents may be ahead of the commit: all but the first field and step."""
        step = len(self.clocks[clock]) - 4
        return [column for k, column in enumerate(self.clocks[clock]) if k not in (0, step)]

    def _columns(self, clock: str) -> list[Dataset]:
        schema = self.layout.schema
        return [self.layout.datasets[c.path] for c in schema.columns(clock, (schema.capacity or {})[clock])]

    def extent(self, dataset: Dataset) -> int:
        assert dataset.extent_at is not None
        return struct.unpack("<Q", os.pread(self.fd, 8, dataset.extent_at))[0]

    def room(self, clock: str) -> int:
        """Rows that the file still takes."""
        place = self.space.clocks[clock]
        return (place.have if place.full else place.capacity) - self.counts[clock]

    def mark_open(self) -> None:
        """Before the first change: the record of a clean close no longer holds."""
        if not self.marked:
            self._record(open_record(len(self.clocks), self.layout.schema.format))
            self.space.tidy()
            self.marked = True

    def write(self, clock: str, arrays: Sequence[Any], n: int) -> None:
        """Write n rows of every column after the committed ones, and commit them. Raises StoreError."""
        if not self.marked:
            self.mark_open()
        at = self.counts[clock]
        fd, place = self.fd, self.space.clocks[clock]
        small = self.small.get(clock)
        try:
            if at + n > place.have:
                self.space.grow(clock, at + n)
            if len(place.groups) > 1:
                self.space.write(place, 1, arrays, at, n)
            if small is not None:
                small.put(arrays, at, n)
            else:
                self.space.write(place, 0, arrays, at, n)
                extent = _pack(at + n)
                for column in self._others(clock):
                    os.pwrite(fd, extent, column.extent_at)     # type: ignore[arg-type]
            if self.durable:
                sync(fd)
            self.commits[clock](at + n)
            if self.durable:
                sync(fd)
            self.counts[clock] = at + n
        except BaseException as error:      # an interrupt may come after the commit: what counts is what the file says
            if self.fd >= 0:
                self._look_again(clock)
            if isinstance(error, OSError):
                raise disk_error(error, self.layout.path) from error
            raise

    def _look_again(self, clock: str) -> None:
        """What is committed and where, from the file itself: an error or an interrupt came while it changed."""
        self.counts[clock] = self.extent(self.clocks[clock][0])
        self.space = Space(self.fd, self.layout, self.counts, False, self.durable)
        self.small = {} if self.durable else {c: MappedColumns(self.space, c, self._others(c), self.counts[c])
                                              for c in self.clocks}
        self.marked = False         # so that the next change puts its tables in order first

    def cut(self, clock: str, n: int) -> None:
        """Keep the first n rows; the commit first, so that no reader sees a row without its step."""
        self.mark_open()
        self.space.reach(clock, self.counts[clock])
        self.commits[clock](n)
        if self.durable:
            sync(self.fd)
        for column in self._others(clock):
            os.pwrite(self.fd, _pack(n), column.extent_at)  # type: ignore[arg-type]
        if self.durable:
            sync(self.fd)
        self.counts[clock] = n

    def repair_extents(self) -> None:
        """After a crash the extents of step and time may be ahead of the commit: bring them back."""
        for clock, columns in self.clocks.items():
            if any(self.extent(c) != self.counts[clock] for c in columns[1:]):
                self.cut(clock, self.counts[clock])

    def close(self) -> None:
        if self.fd < 0:
            return
        self.small.clear()      # its mappings hold the shared lock as well
        try:
            if not self.marked and not self._was_closed():
                self.mark_open()
            self.space.close(self.counts)
            if self.marked:     # last: where it stands, nothing is behind the rows but what other programs add
                if self.durable:
                    sync(self.fd)
                self._record(closed_record([self.counts[c] for c in self.clocks],
                                           None if self.layout.schema.format == 1 else self.files))
                if self.durable:
                    sync(self.fd)
        finally:
            unlock(self.fd)
            self.disown()

    def disown(self) -> None:
        """Let go of the file and write nothing: what a forked child does with the file that its parent writes."""
        fd, self.fd = self.fd, -1
        self.small.clear()      # its mappings hold the shared lock as well
        self.space.fd = -1
        for commit in self.commits.values():
            commit.fd = -1
        if fd >= 0:
            os.close(fd)

    def _record(self, record: np.ndarray) -> None:
        offset = self.layout.datasets[CLOSED].offset
        if offset is not None:
            os.pwrite(self.fd, record.tobytes(), offset)


def files_of(layout: Layout) -> int:
    """The files that a store had at least, by what one of them says; 0 where it does not."""
    place = layout.datasets[CLOSED]
    if layout.schema.format == 1 or place.offset is None:
        return 0
    with open(layout.path, "rb") as file:
        record = np.frombuffer(os.pread(file.fileno(), 8 * place.shape[0], place.offset), "<u8")
    return files_in(record, len(layout.schema.clocks))


def set_files(layout: Layout, files: int, durable: bool) -> None:
    """Have a file that was cleanly closed say how many files its store has. Raises OSError."""
    place, clocks = layout.datasets[CLOSED], len(layout.schema.clocks)
    if layout.schema.format == 1 or place.offset is None:
        return
    fd = os.open(layout.path, os.O_RDWR)
    try:
        record = np.frombuffer(os.pread(fd, 8 * place.shape[0], place.offset), "<u8")
        if files_in(record, clocks) not in (0, files):
            os.pwrite(fd, closed_record(record[:-2].tolist(), files).tobytes(), place.offset)
            if durable:
                sync(fd)
    finally:
        os.close(fd)


def next_capacity(schema: Schema, wanted: Mapping[str, int], asked: int | Mapping[str, int] | None,
                  index: int) -> dict[str, int]:
    """Rows of the next segment, clock by clock: as asked for, else doubling from 4 GiB to 64 GiB, at least 16."""
    capacity = {}
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    share = (sys.maxsize if largest == resource.RLIM_INFINITY else max(0, largest - METADATA_BYTES)) // len(schema.clocks)
    for clock, names in schema.clocks.items():
        row = sum(schema.fields[name].nbytes for name in names) + 8 * (4 + len(schema.stored[clock]))
        most = max(LEAST_ROWS, min(LARGEST_BYTES, FIRST_BYTES << min(index, 40)) // row)
        fits = max(1, share // row)
        rows = asked.get(clock) if isinstance(asked, Mapping) else asked
        capacity[clock] = int(rows) if rows else max(1, min(most, 1 << 24, fits))
        capacity[clock] = max(capacity[clock], min(wanted.get(clock, 0), fits))
    return capacity
