"""Columns of numbers that MD programs write beside a trajectory: .xvg, .edr, COLVAR, .csv; each a source with its times."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError, UnknownFieldError
from ensemblekit.files import check_input
from ensemblekit.source import ArraySource

SUFFIXES = (".xvg", ".edr", ".colvar", ".csv", ".dat", ".txt")
TIMES = {"fs": 1e-3, "ps": 1.0, "ns": 1e3, "us": 1e6, "µs": 1e6, "ms": 1e9}


@dataclass(frozen=True, eq=False)
class Columns(Mapping[str, ArraySource]):
    """The columns of one file by name, in ps; ``columns["Potential"]`` goes into ``ek.average``."""

    path: str
    times: np.ndarray | None
    """(n,) in ps; None where the file has none."""
    numbers: Mapping[str, np.ndarray]
    """Name -> (n,)."""
    units: Mapping[str, str]
    weights: np.ndarray | None = None

    def __getitem__(self, name: str) -> ArraySource:
        if name not in self.numbers:
            raise UnknownFieldError(name, self.numbers)
        return ArraySource.of({name: self.numbers[name]}, times=self.times, weights=self.weights, unit=self.units.get(name, ""),
                              time_unit="ps" if self.times is not None else "")

    def __iter__(self) -> Any:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        n = len(next(iter(self.numbers.values()), ()))
        return f"<{os.path.basename(self.path)}: {n} rows of {', '.join(self.numbers)}>"


def columns(path: str | os.PathLike[str], *, weights: str | None = None) -> Columns:
    """The columns of a table that an MD program wrote.

    Arguments:
        path: GROMACS' .xvg (names from its legends, units from its axes) or .edr (needs pyedr), PLUMED's COLVAR (names
            from ``#! FIELDS``), or plain text and .csv with a head (a column called time, Time (ps), ... gives the times).
        weights: the column that holds statistical weights, which then go along with all others.

    Raises:
        InputError: no such file, rows that do not fit, words where numbers belong, times that run backwards (a COLVAR that
            restarts appended to is read from its last pass over a time on, with a warning).
        MissingExtraError: pyedr for .edr.
    """
    path = os.fspath(path)
    check_input(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".edr":
        names, units, table = _edr(path)
    else:
        names, units, table = _text(path, suffix)
    time = next((k for k, name in enumerate(names) if re.fullmatch(r"time|t", name.strip().lower())), None)
    times = None
    if time is not None:
        scale = TIMES.get(units.get(names[time], "ps") or "ps")
        times = table[:, time] * scale if scale is not None else None
    if times is not None:
        table, times = _forward(table, times, path)
    values = {name: np.ascontiguousarray(table[:, k]) for k, name in enumerate(names) if k != time}
    found = None
    if weights is not None:
        if weights not in values:
            raise UnknownFieldError(weights, values)
        found = values.pop(weights)
    if not values:
        raise InputError(f"{os.path.basename(path)} has no column besides its times")
    return Columns(path, times, values, units, found)


def is_columns(path: str) -> bool:
    """Whether a path looks like a table of columns, not like a store."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in SUFFIXES or name.upper().startswith("COLVAR")


def _forward(table: np.ndarray, times: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose times rise: where a restarted run wrote a stretch again, the later rows count; the same row twice is one."""
    twice = np.flatnonzero((np.diff(times) == 0) & (table[1:] == table[:-1]).all(1))
    if len(twice):
        warnings.warn(f"{os.path.basename(path)}: {len(twice)} row{'s' if len(twice) > 1 else ''} written twice, as by a "
                      f"restart (the first at row {twice[0] + 1}), count{'' if len(twice) > 1 else 's'} once", stacklevel=3)
        table, times = np.delete(table, twice, 0), np.delete(times, twice)
    back = np.flatnonzero(np.diff(times) < 0)
    if not len(back):
        return table, times
    keep = np.ones(len(times), bool)
    least = np.inf
    for k in range(len(times) - 1, -1, -1):
        keep[k] = times[k] < least
        least = min(least, times[k])
    warnings.warn(f"{os.path.basename(path)}: its times run backwards at row {back[0] + 1}, as after a restart; the "
                  f"{int((~keep).sum())} rows that were written again later are left out", stacklevel=3)
    return table[keep], times[keep]


def _text(path: str, suffix: str) -> tuple[list[str], dict[str, str], np.ndarray]:
    names: list[str] = []
    units: dict[str, str] = {}
    legends: dict[int, str] = {}
    x_label, y_label = "", ""
    rows: list[list[float]] = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not line or line == "&":
                continue
            if line.startswith("@"):
                axis = re.match(r'@\s*([xy])axis\s+label\s+"(.*)"', line)
                legend = re.match(r'@\s*s(\d+)\s+legend\s+"(.*)"', line)
                if axis:
                    x_label, y_label = (axis[2], y_label) if axis[1] == "x" else (x_label, axis[2])
                elif legend:
                    legends[int(legend[1])] = _plain(legend[2])
                continue
            if line.startswith("#!"):
                words = line[2:].split()
                if words[:1] == ["FIELDS"]:
                    names = words[1:]
                continue
            if line.startswith(("#", ";")):
                head = line.lstrip("#; ")
                if not rows and not names and suffix != ".xvg" and head:
                    candidate = _split(head, suffix)
                    names = candidate if len(candidate) > 1 or not names else names
                continue
            cells = _split(line.split("#")[0].strip(), suffix)
            try:
                row = [float(cell) for cell in cells]
            except ValueError:
                if not rows and suffix != ".xvg":
                    names = cells
                    continue
                raise InputError(f"{os.path.basename(path)}, line {number}: {line[:60]!r} holds words where numbers "
                                 "belong") from None
            if rows and len(row) != len(rows[0]):
                raise InputError(f"{os.path.basename(path)}, line {number} has {len(row)} numbers, the rows before have "
                                 f"{len(rows[0])}: the file is cut off or damaged. Remove that line")
            rows.append(row)
    if not rows:
        raise InputError(f"{os.path.basename(path)} holds no rows of numbers")
    width = len(rows[0])
    if suffix == ".xvg":
        kinds = [k.strip() for k in re.findall(r"\(([^()]*)\)", y_label)]
        names = ["time", *(legends.get(k, _plain(y_label.split("(")[0].strip()) or f"column {k + 1}" if width == 2 else
                                       f"column {k + 1}") for k in range(width - 1))]
        x_unit = re.search(r"\(([^()]*)\)", x_label)
        units = {"time": x_unit[1].strip() if x_unit else "ps"}
        for k, name in enumerate(names[1:]):
            units[name] = kinds[k] if len(kinds) == width - 1 else kinds[0] if len(set(kinds)) == 1 else ""
        if x_label and not re.match(r"\s*time", x_label, re.IGNORECASE):
            names[0], units = _plain(x_label.split("(")[0].strip()) or "x", {**units}
    elif len(names) != width:
        names = [f"column {k}" for k in range(width)]
    else:
        bare = {}
        for k, name in enumerate(names):
            unit = re.fullmatch(r"(.*?)\s*[\[(]([^\])]*)[\])]", name)
            if unit and unit[1]:
                names[k], bare[unit[1]] = unit[1], unit[2]
        units |= bare
    return _distinct(names), units, np.array(rows)


def _split(line: str, suffix: str) -> list[str]:
    if suffix == ".csv" or ("," in line and "\t" not in line):
        return [cell.strip().strip('"') for cell in line.split(",")]
    if line.count('"') and line.count('"') % 2 == 0:
        return shlex.split(line)
    return line.split("\t") if "\t" in line.strip() else line.split()


def _plain(text: str) -> str:
    r"""Without Grace's marks for super- and subscript (``\S2\N``)."""
    return re.sub(r"\\[a-zA-Z]", "", text).strip()


def _distinct(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return made


def _edr(path: str) -> tuple[list[str], dict[str, str], np.ndarray]:
    try:
        import pyedr
    except ImportError as error:
        raise MissingExtraError("pyedr", "md") from error
    try:
        found = pyedr.edr_to_dict(path)
        units = pyedr.get_unit_dictionary(path)
    except Exception as error:
        raise InputError(f"{os.path.basename(path)} cannot be read as GROMACS energies ({type(error).__name__}: {error}); "
                         "`gmx energy -o energy.xvg` writes a table that can") from error
    names = list(found)
    kinds = {name: str(units.get(name, "")) for name in names}
    kinds["Time"] = "ps"
    return names, kinds, np.column_stack([np.asarray(found[name], float) for name in names])
