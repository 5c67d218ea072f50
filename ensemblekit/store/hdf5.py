"""HDF5 files opened and written with the library's lock held: new files, rows that cannot be mapped, arrays by their paths."""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ensemblekit.errors import EnsemblekitError, StoreError, one_line
from ensemblekit.files import replacing
from ensemblekit.store import guarded
from ensemblekit.store.filters import filters_registered
from ensemblekit.store.guarded import Look, door

if TYPE_CHECKING:
    from typing_extensions import Buffer

lock = threading.RLock()        # libhdf5 can crash where two threads open and read files at once


def write_all(fd: int, data: Buffer | np.ndarray, at: int) -> None:
    """pwrite until everything is written; a short write is how a full disk begins."""
    view = data.data if isinstance(data, np.ndarray) else memoryview(data)
    if view.nbytes and (view.ndim != 1 or view.itemsize != 1):
        view = view.cast("B")
    while view.nbytes:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


class NewFile(io.RawIOBase):
    """A file that libhdf5 writes without ever hearing of an error, as it dies of a disk that is full.

    The first error is kept in ``error``; what is written after it is dropped.
    """

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self.at, self.size = 0, 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        got = os.pread(self.fd, len(view), self.at)
        view[:len(got)] = got
        view[len(got):] = bytes(len(view) - len(got))
        self.at += len(view)
        return len(view)

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += os.pwrite(self.fd, view[done:], self.at + done)
            except OSError as error:
                self.error = error
        self.at += len(view)
        self.size = max(self.size, self.at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self.fd, self.size)
            except OSError as error:
                self.error = error
        return self.size

    def close(self) -> None:
        if not self.closed:
            os.close(self.fd)
        super().close()


@contextmanager
def new_file(path: str, **options: Any) -> Iterator[h5py.File]:
    """A new file to fill, with the library's lock held meanwhile. Raises OSError where it could not all be written."""
    with lock, NewFile(path) as raw:
        with h5py.File(raw, "w", **options) as f:
            yield f
        if raw.error is not None:
            raise raw.error


@contextmanager
def opened(path: str, external: bool = False) -> Iterator[guarded.File]:
    """The file for reading, with the library's lock held meanwhile; or a StoreError, also for what goes wrong inside.

    Nothing outside the file is read unless `external`.
    """
    filters_registered()
    with lock:
        try:
            look = Look(path, external)
            file = _open(path, look)
        except FileNotFoundError as error:
            raise StoreError(f"no file {path!r}") from error
        except EnsemblekitError:
            raise
        except guarded.ODD as error:
            raise StoreError(f"{path}: HDF5 cannot open it ({one_line(error)}). If it is no HDF5 file, ingest it first; if it "
                             "was damaged, `ensemblekit verify` says where") from error
        with door(look), file:
            yield file


def is_hdf5(path: str) -> bool:
    """Whether a file is one of HDF5, by its first bytes."""
    return bool(h5py.is_hdf5(path))


def check_inside(path: str) -> None:
    """Raise StoreError where anything in an HDF5 file points to another one; for files that another library reads then."""
    if h5py.is_hdf5(path):
        with opened(path) as f:
            for _ in guarded.walk(f, f._look):
                pass


def _open(path: str, look: Look) -> guarded.File:
    """With HDF5's own locks (shared, so they do not stop our writer); as the caller has it, where it is open already."""
    try:
        return guarded.File(path, look)
    except OSError as error:
        if "locking flag values don't match" not in str(error):
            raise
        return guarded.File(path, look, locking=False)


def shapes_seen(path: str, names: list[str]) -> dict[str, tuple[int, int]]:
    """The number of rows that libhdf5 sees in each dataset, and the place of its first chunk."""
    with opened(path) as f:
        seen = {name: f[name] for name in names}
        return {name: (d.shape[0], d.id.get_chunk_info_by_coord((0,) * d.ndim).byte_offset) for name, d in seen.items()}


def lengths_seen(path: str, names: list[str]) -> list[int]:
    """The number of rows that libhdf5 sees in each dataset."""
    if not names:
        return []
    with opened(path) as f:
        return [len(f[name]) for name in names]


def read_rows(path: str, name: str, rows: slice, tile: slice | None = None, external: bool = False) -> np.ndarray:
    """Rows of a dataset through h5py; with `tile`, a range of the flattened item."""
    with opened(path, external) as f:
        f._look.asked = True
        d = f[name]
        if tile is None or d.ndim == 1:
            return d[rows]
        if d.ndim == 2:
            return d[rows, tile]
        # Only the part of the first item axis that holds the tile is read.
        inner = math.prod(d.shape[2:])
        a, b = tile.start // inner, -(-tile.stop // inner)
        part = d[rows, a:b]
        return part.reshape(len(part), -1)[:, tile.start - a * inner:tile.stop - a * inner]


def write_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """A new HDF5 file of arrays by their paths in it, by temporary file and rename: a result kept whole or not at all."""
    try:
        with replacing(path, durable=True, follow=True) as temporary, new_file(temporary) as f:
            for name, values in arrays.items():
                f.create_dataset(name, data=np.ascontiguousarray(values))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def read_arrays(path: str, group: str) -> dict[str, np.ndarray]:
    """All arrays below a group, by their paths in it; empty where there is no such group."""
    arrays: dict[str, np.ndarray] = {}
    with opened(path) as f:
        if group in f:
            for name, node in guarded.walk(f[group], f._look):
                if isinstance(node, h5py.Dataset):
                    f._look.at = f"{group}/{name}"
                    arrays[name] = node[()]
    return arrays


