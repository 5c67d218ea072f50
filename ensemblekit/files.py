"""Files that appear whole or not at all: written under a random name beside their place, then renamed.

The name is made with O_EXCL and O_NOFOLLOW, so that what stands in its way (another call's file, a symlink that points
elsewhere) is never written to, and two calls for one target give one whole result each.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TOKEN = re.compile(r"\.tmp-[0-9a-f]{16}")
"""What is put behind the name of the target, before the suffix asked for."""


def temporary_beside(target: str | os.PathLike[str], suffix: str = "") -> str:
    """A new, empty file beside `target`, with the permissions that open() would give it. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        path = f"{os.fspath(target)}.tmp-{secrets.token_hex(8)}{suffix}"
        try:
            os.close(os.open(path, flags, 0o666))
        except FileExistsError:
            continue
        except OSError as error:        # of the name that the caller knows
            raise OSError(error.errno, error.strerror, os.fspath(target)) from None
        return path


@contextmanager
def replacing(target: str | os.PathLike[str], *, durable: bool = False, suffix: str = "",
              follow: bool = False) -> Iterator[str]:
    """The name of a temporary file that takes the place of `target` when the block ends without an error.

    Arguments:
        target: what is created or replaced. A file that is replaced hands its permissions on.
        durable: wait until the disk has the bytes and the name.
        suffix: of the temporary name, for writers that go by it.
        follow: treat `target` as open(target, "w") does, for a name that the user chose: a symlink stays and the file it
            leads to is replaced, a write-protected file is refused, and what is no file (/dev/stdout, a pipe) is written
            to directly. Without it a symlink is replaced itself.

    Raises OSError where the file cannot be made, flushed or renamed. After any error the temporary is removed and
    `target` is as it was.
    """
    target = os.fspath(target)
    if follow:
        target = os.path.realpath(target)
    try:
        before = os.lstat(target)
    except OSError:
        before = None
    if follow and before is not None and not stat.S_ISREG(before.st_mode):
        yield target
        return
    if follow and before is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
    path = temporary_beside(target, suffix)
    try:
        yield path
        if before is not None and stat.S_ISREG(before.st_mode):
            os.chmod(path, stat.S_IMODE(before.st_mode))
        if durable:
            _sync(path)
        os.replace(path, target)
        if durable:
            sync_folder(target)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """A text file in UTF-8 under a name that the user chose, whole or not at all. Raises OSError."""
    with replacing(path, follow=True) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def sync_folder(path: str) -> None:
    """The names in the folder of `path`, down to the disk."""
    _sync(os.path.dirname(os.path.abspath(path)))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
