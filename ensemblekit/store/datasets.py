"""Where a dataset stands in its file: evenly spaced rows that can be mapped, and the extent that can be written in place."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import h5py
import numpy as np

from ensemblekit.errors import StoreDamagedError
from ensemblekit.store import guarded
from ensemblekit.store.attributes import text_attribute

DATASPACE_MESSAGE, LAYOUT_MESSAGE, CONTINUATION_MESSAGE = 1, 8, 16
MOST_BLOCKS = 64                # of an object header
LARGEST_HEADER = 1 << 20        # bytes of one part of an object's header


class Identity(NamedTuple):
    """Which file a name stood for."""

    device: int
    inode: int
    token: int
    """Of a file of ours the checksum of its description, in which there is a random number; else its size."""
    token_at: int
    """Byte of that checksum; -1: none."""

    def is_of(self, file: str | int) -> bool:
        """Whether this is the identity of a file, by its descriptor or name."""
        stat = os.stat(file)
        if (stat.st_dev, stat.st_ino) != self[:2]:
            return False
        if self.token_at < 0:
            return stat.st_size == self.token
        fd = file if isinstance(file, int) else os.open(file, os.O_RDONLY)
        try:
            return os.pread(fd, 8, self.token_at) == struct.pack("<Q", self.token)
        finally:
            if fd != file:
                os.close(fd)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Where one dataset stands in a file."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    unit: str
    offset: int | None
    """Byte of row 0 where rows lie evenly spaced and can be mapped; else None."""
    stride: int
    """Bytes from row to row."""
    rows: int
    """Rows that are allocated, committed or not."""
    extent_at: int | None
    """Byte of the number of rows in the file (8 bytes, aligned), where it can be patched."""
    root: int | None = None
    """Address of the chunk index (a version 1 B-tree) in a file that grows."""
    external: bool = False
    """Its values may be read from other files that the file points to."""
    within: slice | None = None
    """Which numbers of the dataset's rows these values are, where fields share it; else None: all."""

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def identity_of(file: str | int) -> Identity:
    """The identity of a file that is not ours."""
    stat = os.stat(file)
    return Identity(stat.st_dev, stat.st_ino, stat.st_size, -1)


def locate(f: guarded.File, path: str, raw: BinaryIO, size: int, listed: bool = False,
           d: guarded.Values | None = None) -> Dataset:
    """Where a dataset stands, from its chunk index.

    Arguments:
        listed: its rows stand in a table of places.
        d: the dataset itself, where it was found before: looking a name up takes as long as all the rest.
    """
    try:
        d = f[path] if d is None else d
    except KeyError:
        raise StoreDamagedError(f"{f.filename}: the dataset {path!r} that its description names is missing") from None
    shape, dtype = d.shape, d.dtype
    item = dtype.itemsize * math.prod(shape[1:])
    if listed:
        where, root = _in_header(d, raw)
        return Dataset(path, shape, dtype, unit_of(d), None, item, shape[0], where, root)
    how = d.id.get_create_plist()
    filtered = how.get_nfilters() > 0
    virtual = how.get_layout() == h5py.h5d.VIRTUAL
    plain = dtype.isnative and not virtual and not how.get_external_count() and not filtered
    offset, stride, rows = (_even_rows(d, item) if plain else None) or (None, item, shape[0])
    aligned = offset is not None and offset % dtype.alignment == 0 and stride % dtype.alignment == 0
    if offset is None or not aligned or rows < shape[0] or offset + rows * stride > size:
        offset = None
    return Dataset(path, shape, dtype, unit_of(d), offset, stride, rows, None if filtered else _in_header(d, raw)[0],
                   external=f._look.external)


def _even_rows(d: guarded.Values, item: int) -> tuple[int, int, int] | None:
    """(offset of row 0, stride, rows allocated) where all rows lie evenly spaced in the file, each in one piece."""
    if d.chunks is None:
        offset = d.id.get_offset()
        return None if offset is None else (offset, item, len(d))
    parts = [-(-n // c) for n, c in zip(d.shape[1:], d.chunks[1:], strict=True)]
    a_row = math.prod(parts)        # chunks that one snapshot, or one stack of them, is cut into
    if a_row > 1 and not (d.chunks[0] == 1 and _follow(d.shape[1:], d.chunks[1:])):
        return None
    if a_row == 1 and d.chunks[1:] != d.shape[1:]:
        return None
    chunks: list[tuple[int, int]] = []
    look = d._look
    rows, *tile = d.chunks          # h5py asks the file each time

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        look.step()
        number = chunk.chunk_offset[0] // rows
        for at, extent, n in zip(chunk.chunk_offset[1:], tile, parts, strict=True):
            number = number * n + at // extent
        chunks.append((number, chunk.byte_offset))

    d.id.chunk_iter(note)
    if not chunks or len(chunks) % a_row:
        return None
    chunks.sort()
    first, nbytes = chunks[0][1], math.prod(d.chunks) * d.dtype.itemsize
    if any(chunk != (k, first + k * nbytes) for k, chunk in enumerate(chunks)):
        return None
    return first, nbytes * a_row // d.chunks[0], len(chunks) // a_row * d.chunks[0]


def _follow(item: tuple[int, ...], chunk: tuple[int, ...]) -> bool:
    """Whether the tiles of one snapshot, in their order, are its bytes in order (with a gap behind it at the most)."""
    axis = max(k for k, (n, c) in enumerate(zip(item, chunk, strict=True)) if c < n)
    return all(c == 1 for c in chunk[:axis]) and (item[axis] % chunk[axis] == 0 or math.prod(item[:axis]) == 1)


def messages(read: Callable[[int, int], bytes], address: int) -> Iterator[tuple[int, int, int]]:
    """(kind, where its data begin, their length) of the messages in a version 1 object header; none in any other."""
    head = read(address, 16)
    if len(head) < 16 or head[0] != 1:
        return
    blocks = [(address + 16, struct.unpack_from("<I", head, 8)[0])]
    seen: set[int] = set()
    while blocks and len(seen) < MOST_BLOCKS:
        start, length = blocks.pop(0)
        if start in seen or length > LARGEST_HEADER or start >> 62:
            return
        seen.add(start)
        body = read(start, length)
        at = 0
        while at + 8 <= len(body):
            kind, size, _ = struct.unpack_from("<HHB", body, at)
            if kind == CONTINUATION_MESSAGE and at + 24 <= len(body):
                blocks.append(struct.unpack_from("<QQ", body, at + 8))
            yield kind, start + at + 8, size
            at += 8 + size


def _in_header(d: h5py.Dataset, raw: BinaryIO) -> tuple[int | None, int | None]:
    """The byte of dim[0], where it can be patched, and the address of the chunk index; None where not as expected."""

    def read(at: int, n: int) -> bytes:
        raw.seek(at)
        return raw.read(min(n, 1 << 20))

    extent = root = None
    for kind, at, _ in messages(read, int(h5py.h5o.get_info(d.id).addr)):
        data = read(at, 16)
        if len(data) < 16:
            break
        if kind == DATASPACE_MESSAGE and extent is None:
            where = at + (8 if data[0] == 1 else 4)
            extent = where if where % 8 == 0 and data[1] == d.ndim > 0 else None
        if kind == LAYOUT_MESSAGE and data[0] == 3 and data[1] == 2:
            root = struct.unpack_from("<Q", data, 3)[0]
    return extent, root


def unit_of(node: guarded.Values | guarded.Group) -> str:
    return text_attribute(node, "unit", node._look)
