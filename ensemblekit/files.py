"""Files that appear whole or not at all: written under a random name beside their place, then renamed.

The name is made with O_EXCL and O_NOFOLLOW, so that what stands in its way (another call's file, a symlink that points
elsewhere) is never written to, and two calls for one target give one whole result each.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TOKEN = re.compile(r"\.tmp-[0-9a-f]{16}")


def temporary_beside(target: str | os.PathLike[str], suffix: str = "") -> str:
    """A new, empty file beside `target`, with the permissions that open() would give it. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        path = f"{os.fspath(target)}.tmp-{secrets.token_hex(8)}{suffix}"
        try:
            os.close(os.open(path, flags, 0o666))
        except FileExistsError:
            continue
        return path


@contextmanager
def replacing(target: str | os.PathLike[str], *, durable: bool = False, suffix: str = "") -> Iterator[str]:
    """The name of a temporary file that takes the place of `target` when the block ends without an error.

    Arguments:
        target: what is created or replaced.
        durable: wait until the disk has the bytes and the name.
        suffix: of the temporary name, for writers that go by it.

    Raises OSError where the file cannot be made, flushed or renamed. After any error the temporary is removed and
    `target` is as it was.
    """
    path = temporary_beside(target, suffix)
    try:
        yield path
        if durable:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        os.replace(path, target)
        if durable:
            sync_folder(os.fspath(target))
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def sync_folder(path: str) -> None:
    """The names in the folder of `path`, down to the disk."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
