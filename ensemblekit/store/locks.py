"""Locks: one writer of a store at a time, and no other program that writes into its files."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress

from ensemblekit.errors import StoreBusyError, StoreError
from ensemblekit.store.names import folder_of


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
