"""Averages by name: Estimates to print, to draw, and as tables and files."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.estimate import Estimate, printed, rounded
from ensemblekit.averaging.estimate_tables import estimates_dataset
from ensemblekit.errors import InputError, MissingExtraError, UnknownFieldError
from ensemblekit.files import replacing, write_csv
from ensemblekit.results import Result

HEAD = ("observable", "coordinate", "mean", "stderr", "low", "high", "unit", "n", "n_eff", "correlation_time", "time_unit",
        "n_discarded", "converged", "verdict")
WIDTH = 110


@dataclass(frozen=True, eq=False, repr=False)
class Averages(Result, Mapping[str, Estimate]):
    """Estimates by name; print it for a table.

    Quantities that come with one have names of their own: ``averages["rdf.coordination"]`` is
    ``averages["rdf"].coordination``.
    """

    FIGURE: ClassVar[str] = "md.averages"
    WORD: ClassVar[str] = "snapshots"
    """What is averaged over."""

    estimates: Mapping[str, Estimate]
    """Name -> Estimate, as they were asked for."""
    notes: tuple[str, ...] = ()
    """What was assumed or left as it is; where it is about one of them as "name: sentence"."""

    def __getitem__(self, name: str) -> Estimate:
        every = self._all()
        if name not in every:
            raise UnknownFieldError(name, every)
        return every[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, Estimate]:
        return {key: estimate for name, main in self.estimates.items()
                for key, estimate in ((name, main), *((f"{name}.{more}", e) for more, e in main.derived.items()))}

    def __str__(self) -> str:
        return "\n".join([self.table(), *self.remarks()])

    __repr__ = __str__

    def table(self) -> str:
        """The answers as aligned text: value ± half the interval, n_eff, correlation time, what was left out, verdict."""
        rows = self.cells()
        wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]
        return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])

    def cells(self) -> list[list[str]]:
        """The cells of :meth:`table`, its head first."""
        return [self._head(), *(self._row(name, estimate) for name, estimate in self.items())]

    def remarks(self) -> list[str]:
        """What belongs below the table: doubts, verdicts, notes."""
        return self._notes()

    def _head(self) -> list[str]:
        confidence = next(iter(self.estimates.values())).confidence
        return ["observable", f"mean ± {100 * confidence:g} % CI", "n_eff", "τ", "discarded", "verdict"]

    def _notes(self) -> list[str]:
        """Doubts, verdicts on replicas and notes, in sentences; alike ones together."""
        notes: dict[str, list[str]] = {}
        for name, e in self.items():
            if e.verdict:
                notes.setdefault(e.verdict, []).append(name)
            if e.ergodicity is not None:
                notes.setdefault(f"{e.ergodicity.verdict}: {'; '.join(e.ergodicity.reasons)}", []).append(name)
        for note in self.notes:
            name, _, words = note.partition(": ")
            about = name.partition(" (")[0] in self.estimates
            notes.setdefault(words if about else note, []).extend([name] if about else [])
        lines = [": ".join(filter(None, [", ".join(names), words])) for words, names in notes.items()]
        return [""] * bool(notes) + [wrapped(line, 2) for line in lines]

    def _row(self, name: str, e: Estimate) -> list[str]:
        unit = f" {printed(e.unit)}" if e.unit else ""
        if np.ndim(e.mean) == 0:
            value, bar = rounded(float(e.mean), float(e.high - e.low) / 2)
            text = f"{value} ± {bar}{unit}"
        else:
            half = (np.asarray(e.high, float) - np.asarray(e.low, float)) / 2
            axes = ", ".join(f"{axis}: {len(v)}" for axis, (v, _) in e.coords.items()) or " × ".join(
                map(str, np.shape(e.mean)))
            text = f"{_span(e.mean)}{unit}, ± {_span(half)} ({axes})"
        tau = f"{_span(e.correlation_time)} {e.time_unit or self.WORD}"
        discarded = str(e.n_discarded or "-")
        if e.n_discarded and (e.runs or e.time_unit):
            discarded = f"{e.n_discarded} {self.WORD}" if e.runs else f"{e.equilibration_time:.4g} {e.time_unit}"
        verdict = ("converged" if not e.verdict else "converged, with a doubt") if e.converged else "NOT CONVERGED"
        return [name, text, f"{_span(e.n_eff)} of {e.n}", tau, discarded, verdict]

    def _repr_html_(self) -> str:
        import html

        head = self._head()
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in self._row(name, e)) + "</tr>"
                       for name, e in self.items())
        notes = "".join(f"<br>{html.escape(note)}" for note in self._notes() if note)
        return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{rows}</table><small>{notes}</small>"

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping a number, with the columns of the files: an array has a row for each of its elements."""
        for name, e in self.items():
            shape = np.shape(e.mean)
            columns = [np.broadcast_to(np.asarray(x, float), shape).ravel() for x in
                       (e.mean, e.stderr, e.low, e.high, e.n_eff, e.correlation_time)]
            for at, (mean, stderr, low, high, n_eff, tau) in zip(np.ndindex(*shape), zip(*columns, strict=True), strict=True):
                yield dict(zip(HEAD, (name, _place(e, at), mean, stderr, low, high, e.unit, e.n, n_eff, tau, e.time_unit,
                                      e.n_discarded, e.converged, e.verdict), strict=True))

    def to_dataframe(self) -> Any:
        """A pandas DataFrame of :meth:`rows`; MissingExtraError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("pandas", "md") from error
        return pandas.DataFrame(list(self.rows()), columns=list(HEAD))

    def to_xarray(self) -> Any:
        """A Dataset: of each average "name" its mean, "name_stderr", "name_low", "name_high" and "name_n_eff".

        They lie on the coordinates that the snapshots came with. Raises MissingExtraError where xarray is not installed.
        """
        return estimates_dataset({name.replace(".", "_"): one for name, one in self.items()})

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """The rows as a CSV file with a head."""
        with replacing(path, follow=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            write_csv(file, HEAD, (row.values() for row in self.rows()))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """:meth:`to_dict` as a JSON file."""
        with replacing(path, follow=True) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Each average, half its interval as "<name>_ci95", its independent snapshots as "<name>_n_eff"."""
        named: dict[str, np.ndarray] = {}
        for name, one in self.items():
            named[name] = np.asarray(one.mean)
            named[f"{name}_ci{100 * one.confidence:g}"] = 0.5 * (np.asarray(one.high) - np.asarray(one.low))
            named[f"{name}_n_eff"] = np.asarray(one.n_eff)
        return named

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write :meth:`arrays` to an .npz file; returns its path."""
        path = os.fspath(path)
        if not path.endswith(".npz"):
            raise InputError(f"averages are saved as .npz (those of fields also for ParaView, by rom.export); got {path!r}")
        with replacing(path, follow=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **self.arrays())
        return path

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, as JSON takes them."""
        return {"estimates": {name: e.to_dict() for name, e in self.items()}, "notes": list(self.notes)}


def _place(e: Estimate, at: tuple[int, ...]) -> str:
    """An element's place: "residue=12", "r=2.55", or its indices."""
    axes = list(e.coords.items())
    words = []
    for k, index in enumerate(at):
        if k < len(axes):
            value = axes[k][1][0][index]
            words.append(f"{axes[k][0]}={value:.6g}" if isinstance(value, float | np.floating) else f"{axes[k][0]}={value}")
        else:
            words.append(str(index))
    return " ".join(words)


def _span(x: ArrayLike) -> str:
    """A number in three digits, or the smallest to the largest of an array."""
    values = np.asarray(x, float)
    values = values[np.isfinite(values)] if values.ndim else values
    if values.size == 0 or (values.ndim == 0 and not np.isfinite(values)):
        return "-"
    if values.ndim == 0:
        return _short(float(values))
    low, high = _short(float(values.min())), _short(float(values.max()))
    return low if low == high else f"{low} … {high}"


def _short(x: float) -> str:
    return f"{x:.0f}" if 100 <= abs(x) < 1e6 else f"{x:.3g}"


def wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent)
