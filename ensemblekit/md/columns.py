"""Columns of numbers that MD programs write beside a trajectory: .xvg, .edr, COLVAR, .csv; each a source with its times."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemblekit.averaging.seams import branches_of, turn_of, within
from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.files import check_input
from ensemblekit.md.frame_weights import FrameWeights, frame_weights_of
from ensemblekit.md.tables import read_table, unpacked_suffix
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
    row_weights: np.ndarray | None = None
    """(n,) statistical weights of the rows, where a column was said to hold them."""
    branches: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Name -> the ends of the turn that an angle is written in; these are averaged on the circle."""

    def __getitem__(self, name: str) -> ArraySource:
        if name not in self.numbers:
            raise UnknownFieldError(name, self.numbers)
        return ArraySource({name: self.numbers[name]}, self.row_weights, self.times,
                           "ps" if self.times is not None else "", {name: self.units[name]} if self.units.get(name) else {},
                           periods={name: self.branches[name]} if name in self.branches else {})

    def __iter__(self) -> Any:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        n = len(next(iter(self.numbers.values()), ()))
        return f"<{os.path.basename(self.path)}: {n} rows of {', '.join(self.numbers)}>"

    def weights(self, names: str | Sequence[str], temperature: float | None = None, *, unit: str | None = None,
                log: bool = False) -> FrameWeights:
        """Statistical weights of frames from a column of theirs, for ``md.average(..., frame_weights=)``.

        They are joined to the frames by time, so that the file may have more rows than there are frames.

        Arguments:
            names: the column; of biases also several, which are added.
            temperature: in K. With it the column is a bias potential V that the run was made with (PLUMED's
                ``metad.rbias``, walls, restraints), and the weights are exp(V / kT). Without it the column holds the
                weights themselves.
            unit: of the bias, "kJ/mol" (PLUMED's own), "kcal/mol", "eV" or "kT"; by default that of the column, else kJ/mol.
            log: the column holds natural logarithms of weights (PLUMED's REWEIGHT_BIAS).

        Raises InputError for numbers that cannot be weights, a bias without its temperature, or an unknown unit.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in self.numbers:
                raise UnknownFieldError(name, self.numbers)
        return frame_weights_of({name: self.numbers[name] for name in names}, self.times, self.units, temperature, unit, log,
                                file=os.path.basename(self.path))


def columns(path: str | os.PathLike[str], *, weights: str | Sequence[str] | None = None, temperature: float | None = None,
            periods: Mapping[str, float] | None = None) -> Columns:
    """The columns of a table that an MD program wrote.

    Arguments:
        path: GROMACS' .xvg (names from its legends, units from its axes) or .edr (needs pyedr), PLUMED's COLVAR (names
            from ``#! FIELDS``, turns of angles from ``#! SET min_phi -pi``), or plain text and .csv with a head (a column
            called time, Time (ps), ... gives the times); text also as .gz, .bz2 or .xz.
        weights: the column that holds statistical weights, which then go along with all others.
        temperature: in K; with it that column is a bias in kJ/mol, as in :meth:`Columns.weights`.
        periods: name -> period of columns of angles, where the file does not say it: {"phi": 360}.

    Angles are averaged on the circle: those whose period is known, and those in degrees or radians that lie outside
    the half turn in which an angle between two lines must be.

    Raises:
        InputError: no such file, rows that do not fit, words where numbers belong, times that run backwards (a COLVAR that
            restarts appended to is read from its last pass over a time on, with a warning).
        MissingExtraError: pyedr for .edr.
    """
    path = os.fspath(path)
    check_input(path)
    read = read_table(path)
    names, units, table = read.names, read.units, read.rows
    time = next((k for k, name in enumerate(names) if re.fullmatch(r"time|t", name.strip().lower())), None)
    times = None
    if time is not None:
        scale = TIMES.get(units.get(names[time], "ps") or "ps")
        times = table[:, time] * scale if scale is not None else None
    if times is not None:
        if not np.isfinite(times).all():
            raise InputError(f"{os.path.basename(path)}: row {int(np.argmin(np.isfinite(times))) + 1} has no time; remove it")
        table, times = _forward(table, times, path)
    values = {name: np.ascontiguousarray(table[:, k]) for k, name in enumerate(names) if k != time}
    branches = {**read.branches, **_branches(values, units), **_said(periods, values)}
    branches = {name: branch for name, branch in branches.items() if name in values}
    answer = Columns(path, times, values, units, None, branches)
    if weights is not None:
        held = answer.weights(weights, temperature).weights
        if temperature is None:         # a bias is a quantity of its own, weights are none
            values = {name: x for name, x in values.items() if name != weights}
        answer = Columns(path, times, values, units, held, branches)
    elif temperature is not None:
        raise InputError("temperature= goes with weights=, the column of the bias")
    if not answer.numbers:
        raise InputError(f"{os.path.basename(path)} has no column besides its times")
    return answer


def is_columns(path: str) -> bool:
    """Whether a path looks like a table of columns, not like a store."""
    name = os.path.basename(path)
    return unpacked_suffix(name)[0] in SUFFIXES or name.upper().startswith("COLVAR")


def _branches(values: Mapping[str, np.ndarray], units: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Of columns whose unit is that of an angle and that lie where only turning angles do: the turn they are written in."""
    branches = {}
    for name, x in values.items():
        turn = turn_of(units.get(name, ""))
        finite = x[np.isfinite(x)]
        if turn is None or not len(finite) or within(finite, (0.0, turn / 2)):
            continue
        for branch in branches_of(units[name]):
            if within(finite, branch):
                branches[name] = branch
                break
    return branches


def _said(periods: Mapping[str, float] | None, values: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    branches = {}
    for name, period in (periods or {}).items():
        if name not in values:
            raise UnknownFieldError(name, values)
        if isinstance(period, bool) or not isinstance(period, int | float) or not (math.isfinite(period) and period > 0):
            raise InputError(f"periods= is name -> the turn after which its angles repeat, 360 for degrees; got {period!r} "
                             f"for {name!r}")
        branches[name] = (-period / 2, period / 2) if np.nanmin(values[name], initial=0.0) < 0 else (0.0, float(period))
    return branches


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
