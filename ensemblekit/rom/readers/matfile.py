"""The arrays of numbers in MATLAB's files of version 4 and 5 to 7.2, by the published formats.

A file is taken at its bytes, not at its word: what it says of sizes is held against what is there, and what is no array of
numbers (text, cells, structs, objects, sparse matrices) is stepped over unread.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of data elements."""
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
"""Classes of arrays."""
OLD_NUMBERS = ("f8", "f4", "i4", "i2", "u2", "u1")
MATRIX, PACKED = 14, 15
COMPLEX = 0x0800
HEADER = 128
OLD_HEADER = 20
LONGEST_NAME = 1 << 12
FEW_AXES = 64


class Element(NamedTuple):
    """One data element: its type, and where its bytes stand."""

    kind: int
    begin: int
    end: int
    following: int
    """Where the next element begins."""


def arrays_in(data: bytes | memoryview, most: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array in MATLAB's own shape and class) of a file's bytes.

    Arguments:
        most: bytes that the arrays may take together.

    Raises ValueError where they would take more, or the bytes are not what they should be.
    """
    view = memoryview(data)
    if len(view) < 4:
        raise ValueError("it is cut short")
    for name, array in _old_arrays(view) if 0 in view[:4] else _arrays(view, most):
        most -= array.nbytes
        if most < 0:
            raise ValueError(f"its arrays up to {name!r} are larger than its bytes can be unpacked to")
        yield name, array


def _old_arrays(view: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """Version 4: a header of five numbers, the name, the real and the imaginary part of each matrix."""
    at = 0
    while at < len(view):
        if len(view) - at < OLD_HEADER:
            raise ValueError("it is cut short")
        order = "<" if 0 <= struct.unpack_from("<i", view, at)[0] < 5000 else ">"
        kind, rows, columns, imaginary, named = struct.unpack_from(f"{order}5i", view, at)
        precision, content = kind // 10 % 10, kind % 10
        if not (0 <= kind < 5000 and precision < len(OLD_NUMBERS) and content < 3 and imaginary in (0, 1)
                and min(rows, columns) >= 0 and 0 < named <= LONGEST_NAME):
            raise ValueError(f"no matrix begins at byte {at}")
        dtype = np.dtype(order + OLD_NUMBERS[precision])
        begin = at + OLD_HEADER + named
        size = rows * columns * dtype.itemsize
        at = begin + size * (1 + imaginary)
        if at > len(view):
            raise ValueError(f"it is cut short: a matrix of {rows} x {columns} numbers ends before its time")
        if content:
            continue
        parts = [np.frombuffer(view, dtype, rows * columns, begin + k * size) for k in range(1 + imaginary)]
        yield _text(view[begin - named:begin]), _shaped(parts, (rows, columns), dtype.newbyteorder("="))


def _arrays(view: memoryview, most: int) -> Iterator[tuple[str, np.ndarray]]:
    """Version 5 to 7.2: a header of 128 bytes, then one element a variable, packed or not."""
    mark = bytes(view[HEADER - 2:HEADER])
    if mark not in (b"IM", b"MI"):
        raise ValueError("it has no MATLAB header")
    order = "<" if mark == b"IM" else ">"
    at = HEADER
    while at < len(view):
        if not any(view[at:at + 8]) and not any(view[at:]):
            return              # padding
        element = _element(view, at, len(view), order, packed=True)
        at = element.following
        body, begin, end = view, element.begin, element.end
        if element.kind == PACKED:
            body = _unpacked(view[element.begin:element.end], order, most)
            if not len(body):
                continue
            inner = _element(body, 0, len(body), order)
            element, begin, end = inner, inner.begin, inner.end
        variable = _matrix(body, begin, end, order) if element.kind == MATRIX else None
        if variable is not None and variable[0]:      # the workspace of functions has no name
            yield variable


def _element(view: memoryview, at: int, end: int, order: str, packed: bool = False) -> Element:
    """The element that begins at byte `at` and must end by `end`. Those of four bytes and less stand in their own head."""
    if end - at < 8:
        raise ValueError("it is cut short")
    kind, size = struct.unpack_from(f"{order}II", view, at)
    if kind >> 16:
        kind, size, begin, following = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if size > 4:
            raise ValueError(f"the element at byte {at} says that {size} bytes stand in four")
    else:
        begin = at + 8
        following = begin + (size if packed and kind == PACKED else -(-size // 8) * 8)
    if begin + size > end:
        raise ValueError(f"it is cut short: an element says it has {size} bytes, where {end - begin} follow")
    return Element(kind, begin, begin + size, following)


def _unpacked(view: memoryview, order: str, most: int) -> memoryview:
    """A packed variable, nothing where it is no array of numbers: the others are not unpacked beyond their heads."""
    unpacking = zlib.decompressobj()
    head = unpacking.decompress(view, 24)
    if len(head) < 24:
        raise ValueError("a packed variable is cut short")
    kind, size = struct.unpack_from(f"{order}II", head)
    if kind != MATRIX or head[16 if order == "<" else 19] not in CLASSES:
        return memoryview(b"")
    if size > most:
        raise ValueError(f"a packed variable says it has {size} bytes, more than the file can be unpacked to")
    data = head + unpacking.decompress(unpacking.unconsumed_tail, max(1, size + 8 - len(head)))
    if len(data) != size + 8 or unpacking.decompress(unpacking.unconsumed_tail, 1) or not unpacking.eof:   # with its checksum
        raise ValueError(f"a packed variable has not the {size} bytes it says")
    return memoryview(data)


def _matrix(view: memoryview, at: int, end: int, order: str) -> tuple[str, np.ndarray] | None:
    """The name and the numbers of a matrix; None where it holds something else."""
    flags = _element(view, at, end, order)
    if flags.end - flags.begin < 8:
        raise ValueError("a variable does not say of what class it is")
    word = struct.unpack_from(f"{order}I", view, flags.begin)[0]
    if word & 0xFF not in CLASSES:
        return None
    axes = _element(view, flags.following, end, order)
    shape = tuple(_numbers(view, axes, order).tolist())
    if not 2 <= len(shape) <= FEW_AXES or min(shape) < 0:
        raise ValueError(f"a variable says it has the shape {shape[:FEW_AXES]}")
    named = _element(view, axes.following, end, order)
    name, at = _text(view[named.begin:named.end]), named.following
    parts = []
    for _ in range(2 if word & COMPLEX else 1):
        element = _element(view, at, end, order)
        values, at = _numbers(view, element, order), element.following
        if len(values) != math.prod(shape):
            raise ValueError(f"{name!r} says it has the shape {shape}, and has {len(values)} numbers")
        parts.append(values)
    return name, _shaped(parts, shape, np.dtype(CLASSES[word & 0xFF]))


def _numbers(view: memoryview, element: Element, order: str) -> np.ndarray:
    if element.kind not in NUMBERS:
        raise ValueError(f"numbers of the type {element.kind} are not known")
    dtype = np.dtype(order + NUMBERS[element.kind])
    return np.frombuffer(view, dtype, (element.end - element.begin) // dtype.itemsize, element.begin)


def _shaped(parts: list[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Numbers of one or two parts (real and imaginary) in columns, as MATLAB keeps them, as a writable array of a class."""
    if len(parts) == 2:
        values = parts[0] + 1j * parts[1]
        dtype = np.dtype("c8" if dtype == np.float32 else "c16")
    else:
        values = parts[0]
    return values.astype(dtype).reshape(shape, order="F")


def _text(data: memoryview) -> str:
    return bytes(data[:LONGEST_NAME]).split(b"\0")[0].decode("utf-8", "replace")
