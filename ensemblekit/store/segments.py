"""Writing: a segment is created whole, rows are written into it, and one aligned 8-byte write commits them.

libhdf5 never touches a file that holds committed snapshots. The file is a closed, valid HDF5 file at every instant:
rows beyond the extent of the first field are not there for any reader.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import mmap
import os
import re
import resource
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ensemblekit.errors import StoreBusyError, StoreError
from ensemblekit.files import TOKEN, replacing
from ensemblekit.store.hdf5 import (
    SECTOR,
    Dataset,
    Fill,
    Filters,
    Layout,
    View,
    closed_record,
    create_segment,
    read_layout,
    shapes_seen,
    write_all,
)
from ensemblekit.store.schema import CLOSED, Schema

FIRST_BYTES = 4 << 30       # sparse: what is not written takes no disk; most runs then are one file
LARGEST_BYTES = 64 << 30
LEAST_ROWS = 16
METADATA_BYTES = 4 << 20    # more than a file holds beside its rows, and than its last chunks reach beyond them
ALLOCATE_ROWS = 1 << 14

_digest = xxhash.xxh3_64_intdigest
_EXTENT = struct.Struct("<Q")
_pack = _EXTENT.pack


def digest_of(values: np.ndarray) -> int:
    """The checksum of an array's bytes."""
    return _digest(values.tobytes())


def segment_path(path: str, index: int) -> str:
    """run.h5, run.0001.h5, run.0002.h5, ...: the suffix stays, as other programs go by it."""
    p = Path(path)
    return path if index == 0 else str(p.with_name(f"{p.stem}.{index:04d}{p.suffix}"))


def segments_of(path: str) -> list[str]:
    """The segment files of the store at `path`, in order, the first being `path` itself."""
    p = Path(path)
    pattern = re.compile(re.escape(p.stem) + r"\.(\d{4,})" + re.escape(p.suffix) + r"\Z")
    found = {}
    for name in glob.glob(glob.escape(str(p.with_name(p.stem))) + ".*" + glob.escape(p.suffix)):
        match = pattern.match(os.path.basename(name))
        if match:
            found[int(match.group(1))] = name
    paths = [path]
    while len(paths) in found and os.path.exists(path):
        paths.append(found[len(paths)])
    return paths


def folder_of(path: str) -> Path:
    """What is overwritten or derived lives beside the store's real first file, in <store>.d/, whatever link leads there."""
    return Path(f"{os.path.realpath(path)}.d")


class Lock:
    """One writer a store: an exclusive lock on a file beside it, gone with the process that held it.

    The store's first file is held as well, by its inode, so that a store that was renamed, or lost its folder, under its
    writer gets no second one. That is a lock of open file descriptions on one byte far behind the end, which no other
    program asks for: they go by flock, and read on.
    """

    def __init__(self, path: str):
        self.path, self.held = path, -1
        folder = folder_of(path)
        with suppress(FileNotFoundError):
            names = os.stat(path).st_nlink
            if names > 1:
                raise StoreError(f"{path} has {names} names (hard links): what is appended under one changes the others, and a "
                                 "second writer could come by them. Append to a copy (cp), or remove the other names")
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise StoreError(f"{folder} is to be the folder of this store's lock, and is "
                             f"{'a symbolic link' if folder.is_symlink() else 'a file'}; move it elsewhere")
        try:
            folder.mkdir(exist_ok=True)
            self.fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(f"cannot write beside the store: {error}") from error
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self.fd)
            raise self._busy() from error
        self.by_inode = self._locks_apart(str(folder / "lock"))
        try:
            self.hold()
        except BaseException:
            self.release()
            raise

    def _busy(self) -> StoreBusyError:
        return StoreBusyError(f"{self.path} is being written by another process or another handle of this one. Open it "
                              "for reading (mode=\"r\"), or close the writer first")

    @staticmethod
    def _locks_apart(path: str) -> bool:
        """Whether the two kinds of lock know nothing of each other here; over some networks they are one, and readers that
        go by flock would be shut out."""
        if not hasattr(fcntl, "F_OFD_SETLK"):
            return False
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _byte_lock(fcntl.F_WRLCK))
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def hold(self) -> None:
        """Hold the store's first file as it is now; again where it was replaced. Raises StoreBusyError."""
        if not self.by_inode:
            return
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:         # not there yet, or nobody may write it: then later files are all that grows
            return
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _byte_lock(fcntl.F_WRLCK))
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise self._busy() from error
            return              # a file system without such locks
        before, self.held = self.held, fd
        if before >= 0:
            os.close(before)

    def release(self) -> None:
        fd = self.fd
        held = self.held
        if fd >= 0:
            unlock(fd)
        if held >= 0:
            with suppress(OSError):     # at once, also where a forked child still holds a descriptor
                fcntl.fcntl(held, fcntl.F_OFD_SETLK, _byte_lock(fcntl.F_UNLCK))
        self.disown()

    def disown(self) -> None:
        """In a forked child: let go without releasing what the parent holds through the same open files."""
        fds, self.fd, self.held = (self.fd, self.held), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _byte_lock(kind: int) -> bytes:
    """struct flock for one byte far behind the end of any file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 1 << 62, 1, 0)


def unlock(fd: int) -> None:
    """Release a lock at once, also where a forked child still holds a descriptor of the same open file."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def sync(fd: int) -> None:
    """Down to the disk itself."""
    if hasattr(fcntl, "F_FULLFSYNC"):       # macOS: fsync stops at the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


class NotInPlace(StoreError):
    """Here rows cannot be committed by writing an extent in place; files must be written whole."""


def new_segment(path: str, schema: Schema, durable: bool, fill: Fill | None = None, filters: Filters | None = None,
                over: bool = False, constants: Mapping[str, np.ndarray] | None = None, view: View | None = None) -> Layout:
    """Create a file by temporary name and rename: empty with room for rows, or whole with the rows of `fill` in it.

    Raises NotInPlace where an empty file cannot be appended to in place, StoreError where the disk is full or the name
    is taken (unless `over`).
    """
    if not over and os.path.lexists(path):
        raise StoreError(f"{path} is in the way of this store's next file and is not part of it; move it elsewhere")
    try:
        with replacing(path, durable=durable) as temporary:
            create_segment(temporary, schema, fill, filters, constants, view)
            fd = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
            try:
                layout = _try_commit(temporary, fd) if fill is None else read_layout(temporary)
            finally:
                os.close(fd)
            assert layout is not None
    except (OSError, RuntimeError, ValueError) as error:    # h5py tells of a full disk by any of the three
        raise disk_error(error, path) from error
    return replace(layout, path=path)


def _try_commit(path: str, fd: int) -> Layout:
    """Set every extent to 1 and back to 0 as a writer would, and ask libhdf5 each time whether it sees that."""
    layout = read_layout(path)
    assert layout is not None
    columns = {p: d for p, d in layout.datasets.items() if p != CLOSED}
    if any(d.offset is None or d.extent_at is None for d in columns.values()):
        raise NotInPlace(f"{path}: its bytes do not lie as expected")
    for n in (1, 0):
        for dataset in columns.values():
            write_all(fd, _pack(n), dataset.extent_at)      # type: ignore[arg-type]
        if any(seen != n for seen in shapes_seen(path, list(columns))):
            raise NotInPlace(f"{path}: libhdf5 does not see an extent written in place")
    return layout


def remove_leftovers(path: str) -> None:
    """Unfinished files of a writer that died. Only for who holds the writer's lock."""
    p = Path(path)
    pattern = re.compile(re.escape(p.stem) + r"(\.\d{4,})?" + re.escape(p.suffix) + rf"(\.tmp\d+|{TOKEN.pattern})\Z")
    for entry in os.scandir(p.parent):
        if pattern.match(entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


def share(path: str) -> int:
    """Keep other programs from opening the file for writing, until the descriptor returned is closed."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreBusyError(f"{path} is open for writing in another program; close it there") from error
    except OSError:         # a file system without locks
        pass
    return fd


def disk_error(error: Exception, path: str) -> StoreError:
    if isinstance(error, StoreError):
        return error
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if getattr(error, "errno", None) in full or any(f"errno = {code}," in str(error) for code in full):
        return StoreError(f"{path}: the disk is full, or the limit on file sizes is reached ({error}). Nothing was "
                          "committed; free some space and append again")
    return StoreError(f"{path}: {error}")


class Small:
    """Step, time, weight and checksums of one clock, and all extents but the commit, written through a mapping.

    That leaves two system calls a snapshot: its values and the commit. Everything here is invisible until the commit,
    so it needs no order among itself. Disk space is allocated ahead, as a full disk under a mapping would be a
    SIGBUS. With durability="disk" ordinary writes are used, whose order the barriers define.
    """

    def __init__(self, fields: int, columns: Sequence[Dataset], extents: Sequence[Dataset], n: int, mapped: mmap.mmap,
                 fd: int):
        self.fields, self.columns, self.fd, self.allocated = fields, columns, fd, n
        self.rows = [np.ndarray((c.rows, *c.shape[1:]), c.dtype, mapped, c.offset or 0) for c in columns]
        self.extents = [np.ndarray((1,), "<u8", mapped, c.extent_at or 0) for c in extents]

    def put(self, arrays: Sequence[np.ndarray], at: int, n: int) -> None:
        """Rows at to at + n. Raises OSError where the disk is full; then nothing was written."""
        if at + n > self.allocated:
            stop = min(self.columns[0].rows, max(at + n, self.allocated + ALLOCATE_ROWS))
            for c in self.columns:
                begin = c.offset + min(self.allocated, at) * c.stride                   # type: ignore[operator]
                end = min(c.offset + stop * c.stride, c.offset + c.rows * c.stride)     # type: ignore[operator]
                os.posix_fallocate(self.fd, begin, end - begin)
            self.allocated = stop
        for rows, data in zip(self.rows, arrays, strict=True):
            rows[at:at + n] = data
        for extent in self.extents:
            extent[0] = at + n


class Commit:
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
        self.fd = os.open(layout.path, os.O_RDWR)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self.fd)
            raise StoreBusyError(f"{layout.path} is open for writing in another program; close it there") from error
        self.clocks = {clock: self._columns(clock) for clock in layout.schema.clocks}
        self.counts = {clock: self.extent(columns[0]) for clock, columns in self.clocks.items()}
        self.marked = False
        self.commits = {clock: Commit(self.fd, columns[0], columns[len(layout.schema.clocks[clock])])
                        for clock, columns in self.clocks.items()}
        self.small = {} if durable else {clock: self._small(clock) for clock in self.clocks}

    def _small(self, clock: str) -> Small:
        fields = len(self.layout.schema.clocks[clock])
        columns = self.clocks[clock]
        mapped = mmap.mmap(self.fd, 0)
        return Small(fields, columns[fields:], self._others(clock), self.counts[clock], mapped, self.fd)

    def _others(self, clock: str) -> list[Dataset]:
        """The datasets whose extents may be ahead of the commit: all but the first field and step."""
        step = len(self.layout.schema.clocks[clock])
        return [column for k, column in enumerate(self.clocks[clock]) if k not in (0, step)]

    def _columns(self, clock: str) -> list[Dataset]:
        schema = self.layout.schema
        return [self.layout.datasets[c.path] for c in schema.columns(clock, (schema.capacity or {})[clock])]

    def extent(self, dataset: Dataset) -> int:
        assert dataset.extent_at is not None
        return struct.unpack("<Q", os.pread(self.fd, 8, dataset.extent_at))[0]

    def room(self, clock: str) -> int:
        return (self.layout.schema.capacity or {})[clock] - self.counts[clock]

    def mark_open(self) -> None:
        """Before the first change: the record of a clean close no longer holds."""
        if not self.marked:
            self._record(closed_record([0] * len(self.clocks), False))
            self.marked = True

    def write(self, clock: str, arrays: Sequence[Any], n: int) -> None:
        """Write n rows of every column after the committed ones, and commit them. Raises StoreError."""
        if not self.marked:
            self.mark_open()
        columns, at = self.clocks[clock], self.counts[clock]
        fd = self.fd
        small = self.small.get(clock)
        large = len(columns) if small is None else small.fields
        try:
            for column, data in zip(columns[:large], arrays, strict=False):
                where = column.offset + at * column.stride      # type: ignore[operator]
                if column.stride * n == data.nbytes:
                    write_all(fd, data, where)
                else:       # tiles that do not divide the item leave a gap behind every snapshot
                    for k in range(n):
                        write_all(fd, data[k] if n > 1 else data, where + k * column.stride)
            if small is not None:
                small.put(arrays[large:], at, n)
            else:
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
                self.counts[clock] = self.extent(columns[0])
            if isinstance(error, OSError):
                raise disk_error(error, self.layout.path) from error
            raise

    def cut(self, clock: str, n: int) -> None:
        """Keep the first n rows; the commit first, so that no reader sees a row without its step."""
        self.mark_open()
        self.commits[clock](n)
        if self.durable:
            sync(self.fd)
        for column in self._others(clock):
            os.pwrite(self.fd, _pack(n), column.extent_at)  # type: ignore[arg-type]
        if self.durable:
            sync(self.fd)
        self.counts[clock] = n

    def settle(self) -> None:
        """After a crash the extents of step and time may be ahead of the commit: bring them back."""
        for clock, columns in self.clocks.items():
            if any(self.extent(c) != self.counts[clock] for c in columns[1:]):
                self.cut(clock, self.counts[clock])

    def close(self) -> None:
        if self.fd < 0:
            return
        if self.marked:
            self._record(closed_record([self.counts[c] for c in self.clocks]))
            if self.durable:
                sync(self.fd)
        unlock(self.fd)
        self.disown()

    def disown(self) -> None:
        """Let go of the file and write nothing: what a forked child does with the file that its parent writes."""
        fd, self.fd = self.fd, -1
        self.small.clear()      # its mappings hold the shared lock as well
        for commit in self.commits.values():
            commit.fd = -1
        if fd >= 0:
            os.close(fd)

    def _record(self, record: np.ndarray) -> None:
        offset = self.layout.datasets[CLOSED].offset
        if offset is not None:
            os.pwrite(self.fd, record.tobytes(), offset)


def checksums(arrays: Sequence[np.ndarray], meta: np.ndarray, n: int) -> np.ndarray:
    """(n, fields + 1) uint64: xxh3_64 of every row of every field, and of its (step, time, weight)."""
    sums = np.empty((n, len(arrays) + 1), "<u8")
    for k, data in enumerate((*arrays, meta)):
        width = data.nbytes // n
        view = data.data.cast("B") if data.nbytes else memoryview(b"")
        sums[:, k] = [_digest(view[i:i + width]) for i in range(0, n * width, width)]
    return sums


def next_capacity(schema: Schema, wanted: Mapping[str, int], asked: int | Mapping[str, int] | None,
                  index: int) -> dict[str, int]:
    """Rows of the next segment, clock by clock: as asked for, else doubling from 4 GiB to 64 GiB, at least 16."""
    capacity = {}
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    share = (sys.maxsize if largest == resource.RLIM_INFINITY else max(0, largest - METADATA_BYTES)) // len(schema.clocks)
    for clock, names in schema.clocks.items():
        row = sum(schema.fields[name].nbytes for name in names) + 8 * (4 + len(names))
        most = max(LEAST_ROWS, min(LARGEST_BYTES, FIRST_BYTES << min(index, 40)) // row)
        fits = max(1, share // row)
        rows = asked.get(clock) if isinstance(asked, Mapping) else asked
        capacity[clock] = int(rows) if rows else max(1, min(most, 1 << 24, fits))
        capacity[clock] = max(capacity[clock], min(wanted.get(clock, 0), fits))
    return capacity
