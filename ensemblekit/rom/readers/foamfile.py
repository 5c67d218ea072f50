"""The text and binary files of OpenFOAM: headers, lists, entries and dimensions, from the published file format."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ensemblekit.errors import SnapshotFileError

COMPONENTS = {"scalar": 1, "vector": 3, "sphericalTensor": 1, "symmTensor": 6, "tensor": 9}
BASE_UNITS = ("kg", "m", "s", "K", "mol", "A", "cd")
VOLUME_FIELD = re.compile(r"vol(Scalar|Vector|SphericalTensor|SymmTensor|Tensor)Field(::Internal)?\Z")
FEW = 64
HEAD = 1 << 13
"""Bytes of a file that hold its header."""
_SPACES = bytes.maketrans(b"()", b"  ")
_BRACES = bytes.maketrans(b"{}", b"  ")
_STRING_OR_COMMENT = re.compile(rb'"[^"\n]*"|/\*.*?\*/|//[^\n]*', re.S)


@dataclass(frozen=True, slots=True, eq=False)
class FoamFile:
    """One file in memory: its header, and how the numbers of a binary one are stored."""

    path: str
    data: bytes
    body: int
    """First byte after the header."""
    header: dict[str, str]

    @property
    def binary(self) -> bool:
        return self.header.get("format", "ascii") == "binary"

    @property
    def kind(self) -> str:
        return self.header.get("class", "")

    @property
    def scalar(self) -> np.dtype:
        return np.dtype(f"{self._order}f{self._bits('scalar', 64) // 8}")

    @property
    def label(self) -> np.dtype:
        return np.dtype(f"{self._order}i{self._bits('label', 32) // 8}")

    @property
    def _order(self) -> str:
        return ">" if "MSB" in self.header.get("arch", "") else "<"

    def _bits(self, what: str, default: int) -> int:
        match = re.search(rf"{what}=(\d+)", self.header.get("arch", ""))
        return int(match.group(1)) if match else default

    # -- lists -----------------------------------------------------------------------------------------------------

    def numbers(self, at: int, dtype: np.dtype, components: int, end: int | None = None) -> tuple[np.ndarray, int]:
        """The list that begins at byte `at` ("N ( ... )", "N { one }" or binary): (N,) or (N, components), and its end."""
        head = re.compile(rb"\s*(?:List<\w+>\s*)?(\d+)\s*([({])").match(self.data, at)
        if head is None:
            raise self.wrong("a list of numbers is not where it should be")
        n, start = int(head.group(1)), head.end()
        count = n * components
        shape = (n,) if components == 1 else (n, components)
        if head.group(2) == b"{":
            stop = self.data.find(b"}", start)
            if self.binary and count:
                one = np.frombuffer(self.data, dtype, components, start)
                stop = start + one.nbytes
            else:
                one = self._text(start, stop, components)
            return np.broadcast_to(one.reshape(shape[1:]), shape), stop + 1
        if self.binary and count:
            stop = start + count * dtype.itemsize
            if len(self.data) < stop + 1:
                raise self.wrong(f"is cut short: a list of {n} ends before its time")
            return np.frombuffer(self.data, dtype, count, start).reshape(shape), stop + 1
        stop = self.data.find(b";", start) if end is None else end
        stop = len(self.data) if stop < 0 else stop
        stop = self.data.rfind(b")", start, stop)
        if stop < 0:
            raise self.wrong(f"is cut short: a list of {n} has no end")
        return self._text(start, stop, count).reshape(shape), stop + 1

    def _text(self, start: int, stop: int, count: int) -> np.ndarray:
        try:
            values = numbers_in(self.data, start, stop, count)
        except ValueError as error:
            raise self.wrong(f"holds what is no number ({error})") from error
        if len(values) != count:
            few = "more" if len(values) > count else f"{len(values)}"
            raise self.wrong(f"is cut short, or damaged: {few} numbers where {count} were announced")
        return values

    def labels(self) -> np.ndarray:
        """The only list of a file of whole numbers (owner, neighbour, cellProcAddressing), int64."""
        values, _ = self.numbers(self.list_start(), self.label, 1, len(self.data))
        return values.astype(np.int64)

    def list_start(self) -> int:
        """Where the first list of a file begins, comments left out."""
        at = self.body
        while True:
            space = re.compile(rb"\s*(/\*.*?\*/|//[^\n]*)", re.S).match(self.data, at)
            if space is None:
                return at
            at = space.end()

    # -- entries ---------------------------------------------------------------------------------------------------

    def entry(self, key: str, begin: int | None = None, end: int | None = None) -> int | None:
        """The byte behind a keyword at the start of a line or dictionary."""
        match = re.compile(rb"(?:^|[\s{;])" + key.encode() + rb"\s").search(self.data, self.body if begin is None else begin,
                                                                       len(self.data) if end is None else end)
        return match.end() if match else None

    def values(self, at: int, components: int, n: int) -> np.ndarray:
        """What follows a keyword: "uniform x;" or "nonuniform List<..> ..." as (n,) or (n, components) float."""
        word = re.compile(rb"\s*(uniform|nonuniform)\b").match(self.data, at)
        shape = (n,) if components == 1 else (n, components)
        if word is None:
            raise self.wrong("a value is neither uniform nor nonuniform: macros and code in a case are not run. Read the times "
                             "that the solver wrote, or name the fields that are numbers with fields=")
        if word.group(1) == b"uniform":
            stop = self.data.find(b";", word.end())
            if stop < 0:
                raise self.wrong("is cut short: a uniform value has no end")
            one = self._text(word.end(), stop, components)
            return np.broadcast_to(one.reshape(shape[1:]), shape)
        values, _ = self.numbers(word.end(), self.scalar, components)
        if len(values) != n:
            raise self.wrong(f"has {len(values)} values; the mesh has {n}")
        return values

    def dimensions(self) -> str:
        """As H5MD writes units: "[0 1 -1 0 0 0 0]" is "m s-1"; "" where there are none."""
        at = self.entry("dimensions")
        match = re.compile(rb"\s*\[([^\]]*)\]").match(self.data, at) if at is not None else None
        if match is None:
            return ""
        try:
            powers = [float(x) for x in match.group(1).split()]
        except ValueError:          # named units, "[m s^-1]"
            words = match.group(1).decode("ascii", "replace").replace("^", "").replace("*", " ").split()
            return " ".join(words)
        return " ".join(name + ("" if p == 1 else f"{p:g}") for name, p in zip(BASE_UNITS, powers, strict=False) if p)

    def block(self, begin: int) -> tuple[int, int]:
        """First and last byte inside the braces of the dictionary that begins at or after `begin`."""
        start = self.data.find(b"{", begin) + 1
        depth, at = 1, start
        token = re.compile(rb"[{}]|nonuniform\s+List<(\w+)>\s*(\d+)\s*\(")
        while depth:
            match = token.search(self.data, at)
            if match is None:
                raise self.wrong("is cut short: a dictionary has no end")
            at = match.end()
            if match.group(1) is not None:
                if self.binary:         # raw bytes may look like braces
                    kind = match.group(1).decode()
                    size = self.label.itemsize if kind == "label" else self.scalar.itemsize * COMPONENTS.get(kind, 1)
                    at += int(match.group(2)) * size
            else:
                depth += 1 if match.group() == b"{" else -1
        return start, at - 1

    def wrong(self, problem: str) -> SnapshotFileError:
        return SnapshotFileError(self.path, problem)


def numbers_in(data: bytes, start: int, stop: int, count: int) -> np.ndarray:
    """The numbers between two bytes of a text, blanks and parentheses between them; one more than `count` at the most.

    Raises ValueError at what is no number.
    """
    if count < FEW:
        return np.array(data[start:stop].translate(_SPACES).split()[:count + 1], np.float64)
    from ensemblekit.rom import kernels_text as kernels

    if 2 * count > stop - start + 1:        # not even room for a digit and a blank each
        return np.zeros(0)
    text = np.frombuffer(data, np.uint8, stop - start, start)
    values, odd = np.empty(count), np.empty((count, 3), np.int64)
    n_parsed, strange = kernels.parse_numbers(text, values, odd)
    for k, first, last in odd[:strange]:
        values[k] = float(data[start + first:start + last])
    return values[:n_parsed] if n_parsed <= count else np.append(values, 0.0)


def there(path: str) -> bool:
    path = on_disk(path)[0]
    return os.path.isfile(path) or os.path.isfile(path + ".gz")


def on_disk(path: str) -> tuple[str, int | None]:
    """(path, block): where a file of a collated case lies, and which of its blocks is meant.

    "processors4" (in OpenFOAM 5 plain "processors") holds the files of four processors, those of each as a block of one file.
    Here the folder of one of them is called "processors4#2", so that everything below reads as it does in "processor2".
    """
    match = re.search(r"(processors\d*(?:_\d+-\d+)?)#(\d+)(?=/|\\|\Z)", path)
    if match is None:
        return path, None
    return path[:match.end(1)] + path[match.end(2):], int(match.group(2))


def load(path: str, head: int | None = None) -> FoamFile:
    """Read a file, or its first bytes, compressed (.gz beside it) or not. Raises SnapshotFileError."""
    path, block = on_disk(path)
    packed = not os.path.isfile(path)
    name = path + ".gz" if packed else path
    try:
        opened: Any = gzip.open(name, "rb") if packed else open(name, "rb")
        with opened as file:
            if block is not None:
                return _load_block(name, file, block, head)
            data = file.read() if head is None else file.read(head)
    except FileNotFoundError as error:
        raise SnapshotFileError(path, "is missing") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SnapshotFileError(name, f"cannot be read, or is cut short ({error})") from error
    header = _header(data)
    if header is None:
        raise SnapshotFileError(name, "has no FoamFile header: it is no OpenFOAM file, or is cut short")
    return FoamFile(name, data, *header)


def _header(data: bytes) -> tuple[int, dict[str, str]] | None:
    """(first byte after the header, what it says)."""
    plain = _STRING_OR_COMMENT.sub(_blank, bytes(data[:1 << 14]))        # as long as before: comments may hold braces and words
    match = re.compile(rb"FoamFile\s*\{(.*?)\}", re.S).search(plain)
    if match is None:
        return None
    text = match.group(1).decode("utf-8", "replace")
    return match.end(), {key: value.strip().strip('"') for key, value in re.findall(r"(\w+)\s+(\"[^\"]*\"|[^;]*);", text)}


def _blank(match: re.Match[bytes]) -> bytes:
    """A comment as blanks, a string without the braces in it."""
    text = match.group()
    return text.translate(_BRACES) if text.startswith(b'"') else b" " * len(text)


def count_blocks(path: str) -> int:
    """How many processors a file of the collated format holds a block of. Raises SnapshotFileError."""
    try:
        with open(path, "rb") as file:
            return sum(1 for _ in _blocks(path, file)[1])
    except OSError as error:
        raise SnapshotFileError(path, f"cannot be read ({error})") from error


def _blocks(name: str, file: IO[bytes]) -> tuple[dict[str, str], Iterator[tuple[int, int]]]:
    """The header of a container, and first byte and size of each of its blocks: "N(...)", one a processor."""
    outer = _header(file.read(1 << 14))
    if outer is None or outer[1].get("class") != "decomposedBlockData":
        raise SnapshotFileError(name, "is no file of the collated format (of class decomposedBlockData), or is cut short")

    begin = re.compile(rb"\s*(?:(?:/\*.*?\*/|//[^\n]*)\s*)*(?:List<char>\s*)?(\d+)\s*\(", re.S)

    def places(at: int) -> Iterator[tuple[int, int]]:
        while True:
            file.seek(at)
            match = begin.match(file.read(1 << 12))
            if match is None:
                return
            size, start = int(match.group(1)), at + match.end()
            yield start, size
            at = start + size + 1

    return outer[1], places(outer[0])


def _load_block(name: str, file: IO[bytes], block: int, head: int | None) -> FoamFile:
    """The file of one processor, from a container. Blocks are files of their own, header and all; a block without one goes
    by the header of the first."""
    outer, places = _blocks(name, file)
    first, k = None, -1
    for k, (start, size) in enumerate(places):
        if k in (0, block):
            file.seek(start)
            count = size if head is None else min(head, size)
            whole, data = count == size, file.read(count)
            if len(data) < count or (whole and b")" not in file.read(2)):
                raise SnapshotFileError(name, f"is cut short in the block of processor {k}")
            own = _header(data)
            if k == 0:
                first = own
        if k == block:
            break
    if k < block:
        raise SnapshotFileError(name, f"is cut short: there is no block of processor {k + 1}")
    if own is None and first is not None:
        own = (0, {key: value for key, value in first[1].items() if key != "note"})
    if own is None:
        raise SnapshotFileError(name, f"has no FoamFile header in the block of processor {block}")
    return FoamFile(name, data, own[0], {**({"arch": outer["arch"]} if "arch" in outer else {}), **own[1]})
