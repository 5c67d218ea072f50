"""Whether a file of VTK's is whole: its readers take what is cut short for empty, or crash."""

from __future__ import annotations

import os
import re

from ensemblekit.errors import SnapshotFileError
from ensemblekit.rom.readers.reader import (
    check_readable,
)

LEGACY = re.compile(
    rb"^(?:(?P<data>POINT_DATA|CELL_DATA)[ \t]+(?P<n>\d+)"
    rb"|(?P<kind>SCALARS|VECTORS|NORMALS|TENSORS6|TENSORS)[ \t]+\S+[ \t]+[a-z_]+"
    rb"(?:[ \t]+(?P<width>\d))?(?:\s+LOOKUP_TABLE[ \t]+\S+)?|[^\s<]+[ \t]+(?P<components>\d+)[ \t]+(?P<tuples>\d+)[ \t]+"
    rb"(?:double|float|int|long|short|char|vtktypeint64|vtkIdType|unsigned_\w+))[ \t]*\r?$", re.MULTILINE)
WIDTHS = {b"VECTORS": 3, b"NORMALS": 3, b"TENSORS6": 6, b"TENSORS": 9}


def suffix_of(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def check_whole(path: str) -> None:
    """An XML file ends in its closing tag, or it was cut short; found without parsing it."""
    check_readable(path)
    if suffix_of(path) == ".vtk":
        return
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 256))
        if b"</VTKFile>" not in file.read():
            raise SnapshotFileError(path, "is cut short: it has no closing </VTKFile>")


def check_complete(path: str) -> None:
    """What VTK's readers do not notice: a legacy file in ASCII, or an Exodus file, that was cut short.

    Raises SnapshotFileError.
    """
    suffix = suffix_of(path)
    if suffix in (".e", ".ex2", ".exo", ".exii"):
        with open(path, "rb") as file:
            classic = file.read(4) in (b"CDF\x01", b"CDF\x02")
        if classic:
            from ensemblekit.rom.readers.classic import check_classic

            check_classic(path)
    if suffix != ".vtk":
        return
    with open(path, "rb") as file:
        if b"ASCII" not in file.read(512):
            return
        file.seek(0)
        text = file.read()
    count, last = 0, None
    for match in LEGACY.finditer(text):
        if match["data"]:
            count = int(match["n"])
        else:
            last = (match.end(), int(match["components"]) * int(match["tuples"]) if match["components"] else
                    count * (WIDTHS.get(match["kind"]) or int(match["width"] or 1)))
    if last is not None and len(text[last[0]:].split(None, last[1])) < last[1]:
        raise SnapshotFileError(path, f"is cut short: its last array has less than its {last[1]} numbers")
