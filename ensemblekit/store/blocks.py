"""Reading: zero-copy views of mapped files where that can be, h5py where not; recipes that travel to any worker."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ensemblekit.errors import StoreError
from ensemblekit.source import Block
from ensemblekit.source_cuts import WHOLE
from ensemblekit.source_joined import JoinedField
from ensemblekit.store.datasets import Dataset, Identity

PAGE = mmap.PAGESIZE
OPEN_MAPS = 256
KEPT_BYTES = 512 << 20
"""Files up to this size in all stay mapped once read (pages of the page cache, which the system may take back)."""
MOST_RANGES = 4096
WILLNEED, DONTNEED = getattr(mmap, "MADV_WILLNEED", None), getattr(mmap, "MADV_DONTNEED", None)
POPULATE_READ = 22 if sys.platform == "linux" else None     # Linux 5.14; not yet among mmap's names
AHEAD = 1 << 20
"""Bytes a request to read ahead: of larger ones Linux takes the beginning."""
FORESEEN = 256 << 20
"""Bytes of a piece that are asked for before its turn has come."""
SMALL = 16 << 20
"""Bytes of a piece that is not worth asking for."""


def _system(name: str, *types: Any) -> Callable[..., int]:
    """A call of the system, outside of Python's lock, which mmap's own methods keep while pages come from the disk."""
    try:
        call = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return lambda *_: -1
    call.argtypes, call.restype = types, ctypes.c_int
    return call


madvise = _system("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
sync_file_range = _system("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
mincore = _system("mincore", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def write_back(fd: int, start: int, n: int) -> None:
    """Have the system write these bytes of a file to the disk, ahead of what follows; advice, no barrier."""
    sync_file_range(fd, start, n, 7)        # wait, write, wait


class Span(NamedTuple):
    """n rows of one dataset of one file, `step` apart, from row `first` on."""

    path: str
    identity: Identity
    dataset: Dataset
    first: int
    n: int
    step: int

    def view(self, start: int = 0, stop: int | None = None, tile: slice = WHOLE) -> np.ndarray:
        """Rows start to stop of the span: a read-only view of the mapped file, or a fresh array through h5py."""
        stop = self.n if stop is None else stop
        d = self.dataset
        first = self.first + start * self.step
        if d.offset is None:
            from ensemblekit.store.hdf5 import read_rows

            check_identity(self.path, self.identity)
            rows = slice(first, first + (stop - start) * self.step, self.step)
            part = None if tile == WHOLE else tile
            if d.within is not None:
                part = d.within if part is None else slice(d.within.start + tile.start, d.within.start + tile.stop)
            values = read_rows(self.path, d.path, rows, part, d.external).astype(d.dtype.newbyteorder("="), copy=False)
            return values.reshape(len(values), *(d.shape[1:] if tile == WHOLE else (tile.stop - tile.start,)))
        item = d.dtype.itemsize
        at = d.offset + first * d.stride
        shape: tuple[int, ...]
        if tile == WHOLE:
            shape, inner = (stop - start, *d.shape[1:]), _strides(d.shape[1:], item)
        else:
            shape, inner = (stop - start, tile.stop - tile.start), (item,)
            at += tile.start * item
        if stop <= start:
            return np.empty(shape, d.dtype)
        end = d.offset + (first + (stop - start - 1) * self.step) * d.stride + d.row_nbytes
        mapped = mapping(self.path, self.identity, end)
        return np.ndarray(shape, d.dtype, mapped, at, (d.stride * self.step, *inner))

    def populate(self, start: int, stop: int) -> None:
        """Map the pages of these rows in one go: a third of the time that a fault every 16 pages takes."""
        pages = self._pages(start, stop)
        if self.step == 1 and pages is not None and not _are_kept((self.path, self.identity), pages):
            _advise(mapping(self.path, self.identity), POPULATE_READ, *pages)

    def release(self, start: int, stop: int) -> None:
        """Tell the system that the pages of these rows are not needed any more (they stay in the page cache).

        Those of small files stay mapped for the next read.
        """
        pages = self._pages(start, stop)
        if pages is not None and not (self.step == 1 and _keep((self.path, self.identity), pages)):
            _advise(mapping(self.path, self.identity), DONTNEED, *pages)

    def prefetch(self, start: int, stop: int) -> None:
        """Have the system begin to read these rows where they still lie on the disk."""
        pages = self._pages(start, stop)
        if pages is None or self.step != 1:
            return
        mapped, page = mapping(self.path, self.identity), ctypes.create_string_buffer(1)
        base = _address(mapped)
        for at in range(*pages, AHEAD):
            if mincore(base + at, PAGE, page) == 0 and not page.raw[0] & 1:
                _advise(mapped, WILLNEED, at, min(at + AHEAD, pages[1]))

    def _pages(self, start: int, stop: int) -> tuple[int, int] | None:
        """Where the pages of these rows begin and end in the file; None where they are too few to bother."""
        d = self.dataset
        if d.offset is None or stop <= start:
            return None
        a = d.offset + (self.first + start * self.step) * d.stride
        b = d.offset + (self.first + (stop - 1) * self.step) * d.stride + d.row_nbytes
        if b - a <= 16 * PAGE:
            return None
        return a // PAGE * PAGE, min(-(-b // PAGE) * PAGE, len(mapping(self.path, self.identity, b)))


def _advise(mapped: mmap.mmap, advice: int | None, start: int, stop: int) -> None:
    if advice is not None:      # advice only: older systems do not know it
        madvise(_address(mapped) + start, stop - start, advice)


def _address(mapped: mmap.mmap) -> int:
    return int(np.frombuffer(mapped, np.uint8).__array_interface__["data"][0])


def _strides(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    strides = []
    for length in reversed(shape):
        strides.append(item)
        item *= length
    return tuple(reversed(strides))


_maps: OrderedDict[tuple[str, Identity], mmap.mmap] = OrderedDict()
_kept: OrderedDict[tuple[str, Identity], set[tuple[int, int]]] = OrderedDict()
"""Files whose pages stay mapped, and which pages: read last come last."""
_lock = threading.Lock()


def _are_kept(key: tuple[str, Identity], pages: tuple[int, int]) -> bool:
    with _lock:
        return pages in _kept.get(key, ())


def _keep(key: tuple[str, Identity], pages: tuple[int, int]) -> bool:
    """Whether these pages may stay mapped; where they do, files that were read longer ago may have to go."""
    gone = []
    with _lock:
        if key not in _maps or len(_maps[key]) > KEPT_BYTES:
            return False
        ranges = _kept.setdefault(key, set())
        if len(ranges) >= MOST_RANGES:
            ranges.clear()
        ranges.add(pages)
        _kept.move_to_end(key)
        for gone_before in [kept for kept in _kept if kept not in _maps]:
            del _kept[gone_before]
        while sum(len(_maps[kept]) for kept in _kept) > KEPT_BYTES:
            gone.append(_maps[_kept.popitem(last=False)[0]])
    for mapped in gone:
        _advise(mapped, DONTNEED, 0, len(mapped))
    return True


def check_identity(path: str, identity: Identity, file: int | None = None) -> None:
    """Raise StoreError where the name stands for another file than the one whose layout is known."""
    fd = -1
    try:
        if file is None:
            fd = os.open(path, os.O_RDONLY)
        there: bool | None = identity.is_of(fd if file is None else file)
    except FileNotFoundError:
        there = None
    finally:
        if fd >= 0:
            os.close(fd)
    if not there:
        what = "is gone" if there is None else "was replaced by another file (sealed or rewritten)"
        raise StoreError(f"{path} {what} since it was opened; open it again with ek.open")


def mapping(path: str, identity: Identity, stop: int = 0) -> mmap.mmap:
    """The file mapped read-only, once a process, up to byte `stop` at least; views keep a dropped mapping alive.

    A mapped file stays readable though its name may since stand for another one. One that has grown is mapped anew.
    """
    key = (path, identity)
    with _lock:
        mapped = _maps.get(key)
        if mapped is not None and len(mapped) >= stop:
            _maps.move_to_end(key)
            return mapped
        try:
            with open(path, "rb") as f:
                check_identity(path, identity, f.fileno())
                mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise StoreError(f"{path} is gone since it was opened; open it again with ek.open") from None
        if len(mapped) < stop:
            raise StoreError(f"{path} is cut off: its rows reach to byte {stop}, it has {len(mapped)}. Restore it from a copy")
        _maps[key] = mapped
        _kept.pop(key, None)
        while len(_maps) > OPEN_MAPS:
            _kept.pop(_maps.popitem(last=False)[0], None)
        return mapped


def _of_datasets(parts: Sequence[Span]) -> list[Span]:
    """One span a dataset, as fields may share the rows of one."""
    return list({part.dataset.path: part for part in parts}.values())


def _row_nbytes(parts: Sequence[Span]) -> int:
    """Bytes that one row of all these spans takes: in the mapped file, or as an array."""
    return sum(p.dataset.stride for p in _of_datasets([p for p in parts if p.dataset.offset is not None])) + \
        sum(p.dataset.row_nbytes for p in parts if p.dataset.offset is None)


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """Consecutive snapshots of stored fields: paths and ranges, opened where they are read."""

    run: int
    start: int
    stop: int
    tile: slice
    spans: Mapping[str, tuple[Span, ...]]
    """Field -> its rows in order, cut alike in every field."""
    weights: np.ndarray | None
    times: np.ndarray | None
    limit: int
    last_tile: bool

    def prefetch(self) -> None:
        """Have the system begin to read the first block."""
        for parts in zip(*self.spans.values(), strict=True):
            row = _row_nbytes(parts)
            if self.tile == WHOLE and parts[0].n * row > SMALL:
                stop = min(parts[0].n, max(1, min(self.limit, FORESEEN) // row))
                for part in _of_datasets(parts):
                    part.prefetch(0, stop)
            return

    def blocks(self) -> Iterator[Block]:
        names = list(self.spans)
        done = 0
        for parts in zip(*self.spans.values(), strict=True):
            n = parts[0].n
            row, apart = _row_nbytes(parts), _of_datasets(parts)
            if self.tile != WHOLE:
                row = (self.tile.stop - self.tile.start) * parts[0].dataset.dtype.itemsize
            step = max(1, self.limit // max(1, row))
            step = step // 64 * 64 or step
            for a in range(0, n, step):
                b = min(n, a + step)
                if self.tile == WHOLE or self.tile.start == 0:
                    for part in apart:
                        part.populate(a, b)
                        part.prefetch(b, min(n, b + step))
                views = {name: part.view(a, b, self.tile) for name, part in zip(names, parts, strict=True)}
                rows = slice(done + a, done + b)
                yield Block(views, self.start + done + a, self.tile,
                            None if self.weights is None else self.weights[rows],
                            None if self.times is None else self.times[rows])
                if self.tile == WHOLE:
                    for part in apart:
                        part.release(a, b)
            if self.tile != WHOLE and self.last_tile:
                for part in apart:
                    part.release(0, n)
            done += n


@dataclass(frozen=True, slots=True)
class SlabPiece:
    """All snapshots of a run for one tile of the item, as one block, joined where they lie in several stretches of a file."""

    run: int
    start: int
    stop: int
    tile: slice
    name: str
    spans: tuple[Span, ...]
    weights: np.ndarray | None
    times: np.ndarray | None

    def prefetch(self) -> None:
        """Nothing: a tile of every snapshot is a little from everywhere in the file."""

    def blocks(self) -> Iterator[Block]:
        parts = [span.view(tile=self.tile) for span in self.spans]
        fields = {self.name: parts[0]} if len(parts) == 1 else JoinedField(self.name, parts)
        yield Block(fields, 0, self.tile, self.weights, self.times)
        if len(parts) > 1 or parts[0].nbytes > (256 << 20):
            for span in self.spans:
                span.release(0, span.n)
