"""Tables of numbers as MD programs write them, read into names, units, the turns of angles, and rows."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import re
import shlex
import warnings
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError

PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
GREEK = dict(zip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
                 "αβχδεφγηιϕκλμνοπθρστυϖωξψζΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ", strict=True))
"""What the letters of Grace's symbol font show."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers with their names."""

    names: list[str]
    """Of the columns, each once."""
    units: dict[str, str]
    """Of those whose unit the file says."""
    rows: np.ndarray
    """(n, columns) float64."""
    branches: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Name -> the ends between which it comes round, of those where the file says it."""


def unpacked_suffix(path: str) -> tuple[str, str]:
    """The suffix of a file's name in small letters without that of its packing, and that of its packing, or ""."""
    base, suffix = os.path.splitext(path)
    if suffix.lower() in PACKED:
        return os.path.splitext(base)[1].lower(), suffix.lower()
    return suffix.lower(), ""


def read_table(path: str) -> Table:
    """The table in a file: .edr by pyedr, everything else as text, also packed (.gz, .bz2, .xz).

    Raises:
        InputError: rows that do not fit, words where numbers belong, a file that cannot be unpacked.
        MissingExtraError: pyedr for .edr.
    """
    suffix, packing = unpacked_suffix(path)
    if suffix == ".edr" and not packing:
        return _edr(path)
    name = os.path.basename(path)
    try:
        with PACKED.get(packing, open)(path, "rt", encoding="utf-8", errors="replace") as file:
            return _Reading(name, suffix, file).table()
    except (EOFError, OSError, lzma.LZMAError) as error:
        if not packing:
            raise
        raise InputError(f"{name} cannot be unpacked ({error}): it is damaged or cut off") from error


class _Reading:
    """A text file as far as it was read."""

    def __init__(self, name: str, suffix: str, file: TextIO):
        self.name, self.suffix, self.file = name, suffix, file
        self.names: list[str] = []
        self.legends: dict[int, str] = {}
        self.labels = {"x": "", "y": ""}
        self.heads: list[list[str]] = []        # remarks before the rows, one of which may name the columns
        self.ends: dict[str, str] = {}
        self.rows: list[list[float]] = []
        self.curves: list[int] = []     # rows before each "&", which ends a curve

    def table(self) -> Table:
        for number, line in enumerate(self.file, 1):
            line = line.strip()
            if line == "&":
                self.curves.append(len(self.rows))
            if not line or line == "&":
                continue
            if line.startswith("@"):
                self._grace(line)
            elif line.startswith("#!"):
                self._plumed(line[2:].split(), number)
            elif line.startswith(("#", ";")):
                if not self.rows and self.suffix != ".xvg":
                    self.heads.append(_split(line.lstrip("#; "), self.suffix))
            else:
                self._row(line, number)
        if not self.rows:
            raise InputError(f"{self.name} holds no rows of numbers")
        rows = self._beside() if self.curves else np.array(self.rows)
        width = rows.shape[1]
        if self.suffix == ".xvg":
            names, units = self._xvg(width)
        else:
            named = [names for names in (self.names, *reversed(self.heads)) if len(names) == width]
            names, units = _without_units(named[0] if named else [f"column {k}" for k in range(width)])
        return Table(_distinct(names), units, rows, self._branches(names))

    def _beside(self) -> np.ndarray:
        """Curves that stand one after the other, each ended by "&", as columns beside each other."""
        rows = np.array(self.rows)
        curves = [part for part in np.split(rows, [k for k in self.curves if k < len(rows)]) if len(part)]
        for k, curve in enumerate(curves[1:], 1):
            if not np.array_equal(curve[:, 0], curves[0][:, 0]):
                raise InputError(f"{self.name} holds {len(curves)} curves (ended by &), number {k + 1} of them over another x "
                                 f"than the first ({len(curve)} rows from {curve[0, 0]:g} to {curve[-1, 0]:g}, not "
                                 f"{len(curves[0])} from {curves[0][0, 0]:g} to {curves[0][-1, 0]:g}). Save them in files of "
                                 "their own")
        return np.column_stack([curves[0], *(curve[:, 1:] for curve in curves[1:])])

    def _grace(self, line: str) -> None:
        axis = re.match(r'@\s*([xy])axis\s+label\s+"(.*)"', line)
        legend = re.match(r'@\s*s(\d+)\s+legend\s+"(.*)"', line)
        if axis:
            self.labels[axis[1]] = axis[2]
        elif legend:
            self.legends[int(legend[1])] = without_marks(legend[2])

    def _plumed(self, words: list[str], number: int) -> None:
        if words[:1] == ["FIELDS"]:
            if self.rows and self.names and words[1:] != self.names:
                raise InputError(f"{self.name}, line {number}: the columns change there, from {' '.join(self.names)} to "
                                 f"{' '.join(words[1:])}. Cut the file there, and read the parts one by one")
            self.names = words[1:]
        elif words[:1] == ["SET"] and len(words) == 3:
            self.ends[words[1]] = words[2]

    def _branches(self, names: list[str]) -> dict[str, tuple[float, float]]:
        """Of PLUMED's periodic columns: ``#! SET min_phi -pi`` and ``#! SET max_phi pi``."""
        branches = {}
        for name in names:
            ends = [self.ends.get(f"{end}_{name}") for end in ("min", "max")]
            if None in ends:
                continue
            low, high = (_with_pi(str(end)) for end in ends)
            if low is not None and high is not None and low < high:
                branches[name] = (low, high)
            else:
                warnings.warn(f"{self.name}: {name} comes round between {ends[0]} and {ends[1]}, which are no numbers that "
                              "rise; it is taken as one that does not. Say it in columns(..., periods={name: period})",
                              stacklevel=5)
        return branches

    def _row(self, line: str, number: int) -> None:
        cells = _split(line.split("#")[0].strip(), self.suffix)
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            if not self.rows and self.suffix != ".xvg":
                self.names = cells
                return
            raise InputError(f"{self.name}, line {number}: {line[:60]!r} holds words where numbers belong") from None
        if self.rows and len(row) != len(self.rows[0]):
            raise InputError(f"{self.name}, line {number} has {len(row)} numbers, the rows before have {len(self.rows[0])}: "
                             "the file is cut off or damaged. Remove that line")
        self.rows.append(row)

    def _xvg(self, width: int) -> tuple[list[str], dict[str, str]]:
        x_label, y_label = without_marks(self.labels["x"]), without_marks(self.labels["y"])
        kinds = [k.strip() for k in re.findall(r"\(([^()]*)\)", y_label)]
        alone = y_label.split("(")[0].strip() if width == 2 else ""
        names = ["time", *(self.legends.get(k, alone or f"column {k + 1}") for k in range(width - 1))]
        x_unit = re.search(r"\(([^()]*)\)", x_label)
        units = {"time": x_unit[1].strip() if x_unit else "ps"}
        for k, name in enumerate(names[1:]):
            units[name] = kinds[k] if len(kinds) == width - 1 else kinds[0] if len(set(kinds)) == 1 else ""
        if x_label and not re.match(r"\s*time", x_label, re.IGNORECASE):
            names[0] = x_label.split("(")[0].strip() or "x"
        return names, units


def _without_units(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names such as "Time (ps)" as name and unit."""
    bare, units = [], {}
    for name in names:
        unit = re.fullmatch(r"(.*?)\s*[\[(]([^\])]*)[\])]", name)
        if unit and unit[1]:
            units[unit[1]] = unit[2]
        bare.append(unit[1] if unit and unit[1] else name)
    return bare, units


def _with_pi(text: str) -> float | None:
    """A number as PLUMED writes ends: -pi, 2*pi, pi/2, 180; None where it is none."""
    parts = re.fullmatch(r"([+-]?)(\d*\.?\d*(?:e[+-]?\d+)?)\*?(pi)?(?:/(\d+\.?\d*))?", text.strip().lower())
    if parts is None or not (parts[2] or parts[3]):
        return None
    try:
        size = (float(parts[2]) if parts[2] else 1.0) * (math.pi if parts[3] else 1.0) / (float(parts[4]) if parts[4] else 1.0)
    except (ValueError, ZeroDivisionError):
        return None
    return -size if parts[1] == "-" else size


def _split(line: str, suffix: str) -> list[str]:
    if suffix == ".csv" or ("," in line and "\t" not in line):
        return [cell.strip().strip('"') for cell in line.split(",")]
    if line.count('"') and line.count('"') % 2 == 0:
        return shlex.split(line)
    return line.split("\t") if "\t" in line.strip() else line.split()


def without_marks(text: str) -> str:
    r"""A label without Grace's marks: fonts, super- and subscript (``nm\S2\N``), Greek letters as such (``\xl\f{}``)."""
    characters, greek, at = [], False, 0
    while at < len(text):
        mark = re.compile(r"\\(?:[a-zA-Z]\{[^}]*\}|[a-zA-Z0-9+\-])").match(text, at)
        if mark is None:
            characters.append(GREEK.get(text[at], text[at]) if greek else text[at])
            at += 1
            continue
        kind = mark[0]
        if kind[1] in "xfF0123456789":      # a font, until another
            greek = kind in ("\\x", "\\8") or kind.lower() == "\\f{symbol}"
        at = mark.end()
    return "".join(characters).strip()


def _distinct(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    distinct: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return distinct


def _edr(path: str) -> Table:
    try:
        import pyedr
    except ImportError as error:
        raise MissingExtraError("pyedr", "md") from error
    try:
        columns = pyedr.edr_to_dict(path)
        units = pyedr.get_unit_dictionary(path)
    except Exception as error:
        raise InputError(f"{os.path.basename(path)} cannot be read as GROMACS energies ({type(error).__name__}: {error}); "
                         "`gmx energy -o energy.xvg` writes a table that can") from error
    names = list(columns)
    kinds = {name: str(units.get(name, "")) for name in names}
    kinds["Time"] = "ps"
    return Table(names, kinds, np.column_stack([np.asarray(columns[name], float) for name in names]))
