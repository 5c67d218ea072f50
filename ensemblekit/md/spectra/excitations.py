"""Vertical excitations of many snapshots, from tables and the outputs of quantum-chemistry programs: ``md.excitations``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError, one_line
from ensemblekit.files import check_input
from ensemblekit.results import Result

PER_EV = 8065.543937
"""cm-1 in 1 eV (CODATA)."""
NM = 1239.841984
"""eV nm."""
UNITS = ("eV", "nm", "cm-1")
TABLES = (".txt", ".dat", ".csv", ".tsv", ".xy")


@dataclass(frozen=True, eq=False)
class Excitations(Result):
    """Energies and oscillator strengths of the excited states of snapshots."""

    energies: np.ndarray
    """(n, states) in eV."""
    strengths: np.ndarray
    """(n, states)."""
    times: np.ndarray | None = None
    """(n,) of the snapshots."""
    weights: np.ndarray | None = None
    """(n,) statistical weights of the snapshots."""
    names: tuple[str, ...] = ()
    """The file of each snapshot, where each has one."""
    dropped: tuple[str, ...] = ()
    """Files that held no excitations and were left out."""

    def __len__(self) -> int:
        return len(self.energies)

    def __str__(self) -> str:
        left = f", {len(self.dropped)} outputs left out" if self.dropped else ""
        low, high = self.energies.min(), self.energies.max()
        return f"{self.energies.shape[1]} states of {len(self)} snapshots, {low:.4g} to {high:.4g} eV{left}"

    __repr__ = __str__


def excitations(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, unit: str = "eV",
                missing: Literal["raise", "drop"] = "raise") -> Excitations:
    """Excitation energies and oscillator strengths of snapshots.

    Arguments:
        paths: a table (.txt, .dat, .csv, .tsv), one snapshot a row, its columns E1 f1 E2 f2 ...; or outputs of ORCA,
            Gaussian, Q-Chem, Turbomole and others, one snapshot each, which cclib reads (the extra "spectra"). A pattern such
            as "run/*/orca.out" stands for its files in order of name.
        unit: of the energies of a table: "eV", "nm" (wavelengths) or "cm-1".
        missing: "raise" where an output holds no excitations (a run that failed), naming all such; "drop" leaves them out.

    Raises InputError: no file, rows of unlike length, outputs with unlike numbers of states, energies that are not above 0.
    """
    if unit not in UNITS:
        raise InputError(f"unit of excitation energies is one of {', '.join(map(repr, UNITS))}; got {unit!r}")
    if missing not in ("raise", "drop"):
        raise InputError(f'missing is "raise" or "drop"; got {missing!r}')
    files = _files(paths)
    if all(Path(file).suffix.lower() in TABLES for file in files):
        tables = [_table(file) for file in files]
        if len({one.shape[1] for one in tables}) > 1:
            raise InputError(f"tables of one ensemble have as many columns each; got {[one.shape[1] for one in tables]}")
        rows = np.concatenate(tables)
        return _checked(Excitations(_in_ev(rows[:, ::2], unit), rows[:, 1::2]))
    return _outputs(files, missing)


def _files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    import glob

    files: list[str] = []
    for one in [paths] if isinstance(paths, str | os.PathLike) else list(paths):
        name = os.fspath(one)
        matches = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        if not matches:
            raise InputError(f"no file matches {one_line(name)}")
        files += matches
    if not files:
        raise InputError("name at least one table or output of excitations")
    return files


def _table(file: str) -> np.ndarray:
    check_input(file)
    text = Path(file).read_text(encoding="utf-8", errors="replace")
    lines = [line.split("#")[0].replace(",", " ").replace(";", " ").split() for line in text.splitlines()]
    lines = [words for words in lines if words]
    try:
        rows = [[float(word) for word in words] for words in lines]
    except ValueError as error:
        raise InputError(f"{one_line(file)}: a table of excitations is rows of numbers, E1 f1 E2 f2 ... ({error})") from error
    widths = {len(row) for row in rows}
    if not rows or len(widths) > 1 or min(widths) % 2:
        raise InputError(f"{one_line(file)}: a table of excitations has a row a snapshot, as many pairs E f in each; got "
                         f"{len(rows)} rows of {sorted(widths)} numbers")
    return np.array(rows)


def _in_ev(energies: np.ndarray, unit: str) -> np.ndarray:
    if unit == "nm":
        with np.errstate(divide="ignore"):
            return NM / energies
    return energies / PER_EV if unit == "cm-1" else energies


def _outputs(files: Sequence[str], missing: str) -> Excitations:
    import logging

    try:
        from cclib.io import ccread
    except ImportError as error:
        raise MissingExtraError("cclib", "spectra") from error
    energies, strengths, failed, kept, unread = [], [], [], [], ""
    for file in files:
        check_input(file)
        try:
            read = ccread(file, loglevel=logging.CRITICAL)
        except Exception as error:      # whatever a parser trips over: a format newer than it
            why = f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__}: no reason given"
            read, unread = None, f". cclib could not read {one_line(file)} ({why})"
        e, f = (np.asarray(getattr(read, name, []), np.float64) for name in ("etenergies", "etoscs"))
        if not len(e) or len(e) != len(f):
            failed.append(file)
            continue
        energies.append(e / PER_EV)
        strengths.append(f)
        kept.append(file)
    if failed and (missing == "raise" or not kept):
        shown = ", ".join(one_line(name) for name in failed[:8]) + (" ..." if len(failed) > 8 else "")
        raise InputError(f"{len(failed)} of {len(files)} outputs hold no excitations with strengths: {shown}{unread}. They may "
                         'have failed; missing="drop" leaves them out')
    counts = {len(one) for one in energies}
    if len(counts) > 1:
        raise InputError(f"outputs of one ensemble have as many states each; got {sorted(counts)}. Ask for the same number in "
                         "each, or pass arrays with as many columns as all have")
    return _checked(Excitations(np.array(energies), np.array(strengths), names=tuple(kept), dropped=tuple(failed)))


def _checked(lines: Excitations) -> Excitations:
    bad = ~(np.isfinite(lines.energies) & (lines.energies > 0)) | ~(np.isfinite(lines.strengths) & (lines.strengths >= 0))
    if bad.any():
        n, k = np.argwhere(bad)[0]
        whose = f" ({one_line(lines.names[n])})" if lines.names else ""
        raise InputError(f"energies are above 0 and strengths not below; those of snapshot {n}{whose}, state {k + 1}, are "
                         f"{lines.energies[n, k]:g} eV and {lines.strengths[n, k]:g}")
    return lines


__all__ = ["Excitations", "excitations"]
