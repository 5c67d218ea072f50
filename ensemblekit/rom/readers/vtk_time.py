"""The time that a file of VTK's says it stands for, found without VTK."""

from __future__ import annotations

import base64
import html
import os
import re
import struct
import zlib
from collections.abc import Callable

HEAD = 1 << 16
"""Bytes at the beginning of a file in which its time is looked for."""
DEEPEST = 8
"""Files that name files that name files."""


def time_in(path: str, by_vtk: Callable[[str], float | None]) -> float | None:
    """The time that a file says it stands for (TimeValue or TIME in its field data); None where it says none.

    Read from the beginning of the file, so that a series of thousands needs no parsing. A file that only names others
    (.vtm, .pvtu) and says no time itself has that of the first of them.

    by_vtk: reads the file as a whole, where the time is packed otherwise or stands further behind.
    """
    for _ in range(DEEPEST):
        time, piece = _time_or_piece(path, by_vtk)
        if time is not None or piece is None or not os.path.isfile(piece):
            return time
        path = piece
    return None


def _time_or_piece(path: str, by_vtk: Callable[[str], float | None]) -> tuple[float | None, str | None]:
    """The time in a file, or the first file that it names."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    time = _time_in_head(path, head, by_vtk)
    if time is not None or b"<VTKFile" not in head:
        return time, None
    piece = re.search(rb"<(?:DataSet|Piece)\b[^>]*?\b(?:file|Source)=[\"']([^\"']+)", head)
    if piece is None:
        return None, None
    return None, os.path.join(os.path.dirname(path), html.unescape(piece.group(1).decode("utf-8", "surrogateescape")))


def _time_in_head(path: str, head: bytes, by_vtk: Callable[[str], float | None]) -> float | None:
    legacy = re.search(rb"\n(?:TIME|TimeValue) 1 1 (double|float)\s*\n", head)
    if legacy:
        if b"\nASCII" in head[:512]:
            return float(head[legacy.end():].split(None, 1)[0])
        code = ">d" if legacy.group(1) == b"double" else ">f"
        return float(struct.unpack_from(code, head, legacy.end())[0])
    field = re.search(rb"<FieldData\b.*?(?:</FieldData>|\Z)", head, re.DOTALL)      # not in data of points, of any name
    match = re.search(rb"<DataArray([^>]*\bName=([\"'])(?:TimeValue|TIME)\2[^>]*)>([^<]*)", field.group()) if field else None
    if match is None:
        return None
    where, content = _attributes(match.group(1)), match.group(3)
    if where.get(b"format") == b"ascii":
        numbers = content.split(None, 1)
        return float(numbers[0]) if numbers else None
    try:
        return _binary_time(head, where, b"".join(content.split()))
    except (ValueError, KeyError, struct.error, zlib.error):
        return by_vtk(path)


def _attributes(tag: bytes) -> dict[bytes, bytes]:
    """Of an XML tag; in single quotes where OpenFOAM writes it."""
    return {name: one or other for name, one, other in re.findall(rb"""(\w+)=(?:"([^"]*)"|'([^']*)')""", tag)}


def _binary_time(head: bytes, where: dict[bytes, bytes], inline: bytes) -> float:
    """One number of an XML file's binary data: inline or appended, raw or base64, plain or by zlib."""
    opening = re.search(rb"<VTKFile\b[^>]*", head)
    about = _attributes(opening.group()) if opening else {}
    packed = about.get(b"compressor")
    if packed is not None and packed != b"vtkZLibDataCompressor":
        raise ValueError("a compressor that is not read here")
    size = 8 if about.get(b"header_type") == b"UInt64" else 4
    order = ">" if about.get(b"byte_order") == b"BigEndian" else "<"
    encoded = True
    if where.get(b"format") == b"appended":
        start = re.search(rb"<AppendedData\s+encoding=[\"'](\w+)[\"']\s*>\s*_", head)
        if start is None:
            raise ValueError("not in the first bytes")
        encoded = start.group(1) == b"base64"
        inline = head[start.end() + int(where[b"offset"]):]
    integer = f"{order}{'Q' if size == 8 else 'I'}"
    numbers = 4 if packed else 1                # blocks, their size, the last one's, each one's packed; or the bytes
    if encoded:
        width = -(-numbers * size // 3) * 4 if packed else len(inline) - len(inline) % 4
        first = base64.b64decode(inline[:width])
        data = base64.b64decode(inline[width:width + 4 * (len(inline[width:]) // 4)]) if packed else first[size:]
        if packed:
            data = data[:struct.unpack_from(integer, first, 3 * size)[0]]
    else:
        first = inline[:numbers * size]
        data = inline[numbers * size:]
        if packed:
            data = data[:struct.unpack_from(integer, first, 3 * size)[0]]
    if packed:
        data = zlib.decompress(data)
    code = {b"Float64": "d", b"Float32": "f", b"Int64": "q", b"Int32": "i"}[where[b"type"]]
    return float(struct.unpack_from(order + code, data)[0])
