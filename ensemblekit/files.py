"""Files that appear whole or not at all: written under a random name beside their place, then renamed; and what may be read.

The name is made with O_EXCL and O_NOFOLLOW, so that what stands in its way (another call's file, a symlink that points
elsewhere) is never written to, and two calls for one target give one whole result each.
"""

from __future__ import annotations

import csv
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from ensemblekit.errors import InputError
from ensemblekit.foreign import Scalar

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


FREE_BYTES = 64 << 20
"""Bytes that a file may have read at once, all in all, that do not stand in it: fill values, text packed tightly."""
DENSEST = 1100
"""Times that a filter may unpack its bytes (deflate reaches 1032)."""
NOT_FILES = {stat.S_IFDIR: "is a folder, not a file", stat.S_IFCHR: "is a device, not a file",
             stat.S_IFBLK: "is a device, not a file", stat.S_IFSOCK: "is a socket, not a file",
             stat.S_IFIFO: "is a named pipe, not a file: copy what comes out of it into one"}


def why_unreadable(path: str | os.PathLike[str]) -> str:
    """Why no file can be read under a name, in words; "" where one can.

    Asked before a file is opened, as opening a named pipe or a device may wait for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "there is no such file" if not os.path.islink(path) else "is a link to a file that is not there"
    except (OSError, ValueError) as error:      # links in a circle, folders that may not be entered, a name with a zero
        return f"cannot be read: {(error.strerror if isinstance(error, OSError) else None) or error}"
    if not stat.S_ISREG(mode):
        return NOT_FILES.get(stat.S_IFMT(mode), "is no file")
    return "" if os.access(path, os.R_OK) else "cannot be read: you have no permission to; ask its owner, or chmod u+r"


def real_bytes(stat: os.stat_result) -> int:
    """Bytes of a file that stand on the disk: less than its size where it has holes. A file system may pack them, or count them
    late."""
    return min(stat.st_size, disk_bytes(stat)) or stat.st_size


def disk_bytes(stat: os.stat_result) -> int:
    """Bytes of the blocks of a file, as its file system counts them."""
    return int(getattr(stat, "st_blocks", -(-stat.st_size // 512))) * 512


def most_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that what a file holds may take when it is read as a whole: more than its own can be unpacked to is a lie."""
    return max(FREE_BYTES, DENSEST * real_bytes(os.stat(path)))


def check_input(path: str | os.PathLike[str]) -> None:
    """Raise InputError where no file can be read under a name that the user gave."""
    why = why_unreadable(path)
    if why:
        raise InputError(f"{os.fspath(path)}: {why}")


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
        try:
            special = not stat.S_ISREG(os.stat(target).st_mode)     # also where the link leads to no name: a pipe as stdout
        except OSError:
            special = False
        if special:
            yield target
            return
        target = os.path.realpath(target)
    try:
        before = os.lstat(target)
    except OSError:
        before = None
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


def csv_cell(value: object) -> object:
    """A value as a cell of a .csv: text that a spreadsheet would take for a formula (= + - @ first) behind a quote.

    Numbers stay numbers, also where they are text such as "-1.5"; control characters are shown by their numbers.
    """
    if isinstance(value, Scalar):
        value = value.item()
    if not isinstance(value, str):
        return value
    text = "".join(c if c >= " " and not "\x7f" <= c <= "\x9f" else f"\\x{ord(c):02x}" for c in value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_csv(file: TextIO, head: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Rows under a head as CSV, safe to open in a spreadsheet (:func:`csv_cell`)."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(csv_cell, head))
    writer.writerows(map(csv_cell, row) for row in rows)


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
