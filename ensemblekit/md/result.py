"""What `md.average` answers: Estimates by name, to print, to draw, and as tables and files."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.averaging.estimate import Estimate, printed, rounded
from ensemblekit.errors import MissingExtraError, UnknownFieldError
from ensemblekit.files import replacing, write_csv
from ensemblekit.results import Result

HEAD = ("observable", "coordinate", "mean", "stderr", "low", "high", "unit", "n", "n_eff", "correlation_time", "time_unit",
        "n_discarded", "converged", "verdict")
WIDTH = 110


@dataclass(frozen=True, eq=False)
class Averages(Result, Mapping[str, Estimate]):
    """Estimates by the names of their observables; print it for a table.

    Quantities that come with an observable have names of their own: ``found["rdf.coordination"]`` is
    ``found["rdf"].coordination``.
    """

    FIGURE = "md.averages"

    estimates: Mapping[str, Estimate]
    """Name -> Estimate, as they were asked for."""
    passes: tuple[str, ...]
    """What each read of the frames was for, the averaging one last."""
    n_frames: int
    """Frames that were read, over all replicas."""
    n_runs: int
    """Independent runs (replicas)."""
    notes: tuple[str, ...] = ()
    """What was assumed or left as it is, "name: sentence": static selections by place, structures made of all frames."""

    def __getitem__(self, name: str) -> Estimate:
        found = self._all().get(name)
        if found is None:
            raise UnknownFieldError(name, self._all())
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, Estimate]:
        return {key: estimate for name, main in self.estimates.items()
                for key, estimate in ((name, main), *((f"{name}.{more}", e) for more, e in main.further.items()))}

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
        """What belongs below the table: doubts, verdicts, notes, what was read."""
        runs = f" of {self.n_runs} replicas" if self.n_runs > 1 else ""
        reads = f"{len(self.passes)} passes: {', '.join(self.passes)}" if len(self.passes) > 1 else "one pass"
        return [*self._notes(), "", _wrapped(f"{self.n_frames} frames{runs}, {reads}", 0)]

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
            name, said = note.split(": ", 1)
            notes.setdefault(said, []).append(name)
        return [""] * bool(notes) + [_wrapped(f"{', '.join(names)}: {said}", 2) for said, names in notes.items()]

    def _row(self, name: str, e: Estimate) -> list[str]:
        unit = f" {printed(e.unit)}" if e.unit else ""
        if np.ndim(e.mean) == 0:
            value, bar = rounded(float(e.mean), float(e.high - e.low) / 2)
            said = f"{value} ± {bar}{unit}"
        else:
            half = (np.asarray(e.high, float) - np.asarray(e.low, float)) / 2
            axes = ", ".join(f"{axis}: {len(v)}" for axis, (v, _) in e.coords.items()) or " × ".join(
                map(str, np.shape(e.mean)))
            said = f"{_span(e.mean)}{unit}, ± {_span(half)} ({axes})"
        tau = f"{_span(e.correlation_time)} {e.time_unit or 'frames'}"
        if e.runs:
            left = f"{e.n_discarded} frames" if e.n_discarded else "-"
        else:
            left = f"{e.equilibration_time:.4g} {e.time_unit}" if e.n_discarded and e.time_unit else str(e.n_discarded or "-")
        verdict = ("converged" if not e.verdict else "converged, with a doubt") if e.converged else "NOT CONVERGED"
        return [name, said, f"{_span(e.n_eff)} of {e.n}", tau, left, verdict]

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

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """The rows as a CSV file with a head."""
        with replacing(path, follow=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            write_csv(file, HEAD, (row.values() for row in self.rows()))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, as JSON takes them."""
        return {"estimates": {name: e.to_dict() for name, e in self.items()}, "passes": list(self.passes),
                "n_frames": self.n_frames, "n_runs": self.n_runs, "notes": list(self.notes)}


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


def _span(x: Any) -> str:
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


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent)
