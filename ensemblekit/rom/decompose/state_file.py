"""A file of arrays that one object feeds: replaced whole, locked against a second one, and kept when a program ends."""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ensemblekit.errors import ClosedError, StoreBusyError, StoreError
from ensemblekit.store.locks import Lock

_held: weakref.WeakSet[StateFile] = weakref.WeakSet()
"""Those that this process writes."""


class StateFile:
    """The file of a state, and who may write it.

    Arguments:
        path: of the file, which need not be there.
        keep: a method of the object, which saves what is not yet in the file; called where the same process reads it anew,
            and when the program ends.

    Whoever holds it first writes it; another process or object that tries gets a StoreBusyError. Anybody may read.
    """

    def __init__(self, path: str, keep: Callable[[], None]):
        self.path = path
        self.keep: Callable[[], Callable[[], None] | None] = weakref.WeakMethod(keep)
        self.closed = False
        self._lock: Lock | None = None
        self._process = os.getpid()
        self._seen = _identity(path)

    @property
    def exists(self) -> bool:
        """Whether there was a file when it was last read or written."""
        return self._seen is not None

    @property
    def held(self) -> bool:
        """Whether this object is the one that writes."""
        return self._lock is not None and self._process == os.getpid()

    def hold(self) -> None:
        """Be the one who writes from now on.

        Raises:
            StoreBusyError: another one is.
            StoreError: the file was written since it was read here.
            ClosedError: after :meth:`release`.
        """
        if self.closed:
            raise ClosedError(f"this object let go of {self.path}; make it again with that path to go on")
        if self._lock is not None:
            return
        if self._process != os.getpid():
            raise StoreBusyError(f"{self.path} stays with the process that opened it; feed it there, or close it and make the "
                                 "object in this process")
        try:
            lock = Lock(os.path.realpath(self.path))
        except StoreBusyError as error:
            raise StoreBusyError(f"{self.path} is being fed by another process, or another object of this one; close that one "
                                 "first, or go on with another path") from error
        if _identity(self.path) != self._seen:
            lock.release()
            raise StoreError(f"{self.path} was written by another since it was read; make the object again, and feed from its "
                             "snapshot n on")
        self._lock = lock
        if not _held:               # after h5py was imported, so that it still works when the program ends
            atexit.unregister(_keep_all)
            atexit.register(_keep_all)
        _held.add(self)

    def read(self, group: str) -> dict[str, np.ndarray]:
        """All arrays below a group; what another object of this process has not saved yet is saved before."""
        from ensemblekit.store.hdf5 import read_arrays

        for other in list(_held):
            if os.path.realpath(other.path) == os.path.realpath(self.path):
                other._keep()
        self._seen = _identity(self.path)
        return read_arrays(self.path, group)

    def _keep(self) -> None:
        method = self.keep()
        if method is not None:
            method()

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the file, by temporary file and rename."""
        from ensemblekit.store.hdf5 import write_arrays

        self.hold()
        assert self._lock is not None
        write_arrays(self.path, arrays)
        self._seen = _identity(self.path)
        self._lock.hold()

    def release(self) -> None:
        """Let go for good, so that others may write."""
        self.closed = True
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        _held.discard(self)

    def disown(self) -> None:
        """In a forked child: let go of what the parent goes on holding."""
        if self._lock is not None:
            self._lock.disown()
            self._lock = None

    def __getstate__(self) -> dict[str, Any]:
        if self._lock is not None:
            raise StoreError(f"{self.path} is being written, and a writer stays in the process and the object that opened it: "
                             "it is neither pickled nor copied. Close it first")
        return self.__dict__ | {"keep": _nobody}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())


def _nobody() -> None:
    """Stands for the method of an object that was not yet made again."""


def _identity(path: str) -> tuple[int, int, int] | None:
    """What tells whether a file was replaced; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _keep_all() -> None:
    for file in list(_held):
        try:
            file._keep()
        except Exception as error:      # the others are to be kept too
            warnings.warn(f"the last snapshots could not be saved: {error}", RuntimeWarning, stacklevel=2)


def _after_fork() -> None:
    for file in list(_held):
        file.disown()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
