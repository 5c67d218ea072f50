"""Intervals that are vouched for: how many there are, how often they hold the truth, how wide they are; before and after.

A suite lists what it draws in ``SHEETS``; every draw goes through the functions that a user calls.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

FEWEST = 50
"""Intervals vouched for below which their coverage says nothing: the cell says "refuses"."""
DOUBTS = {"few": "independent snapshots; an interval needs", "rare": "rare excursions", "drift": "drifts, steps",
          "late": "still drifting", "memory": "long memory", "weights": "eight", "apart": "disagree beyond", "R-hat": "R-hat",
          "copies": "copies"}
"""What a verdict says, by the words that tell it."""


class Drawn(NamedTuple):
    """Intervals of one draw, numbers or arrays of one shape."""

    low: Any
    high: Any
    estimate: Any
    """What the interval is compared with to say how wide it must be; its scatter over all draws is the ideal one."""
    vouched: Any
    truth: Any
    verdict: str = ""


Trial = Callable[[np.random.Generator], Mapping[str, Drawn]]


class Sheet(NamedTuple):
    """One table: rows of cases, columns of lengths."""

    title: str
    columns: tuple[int, ...]
    heading: str
    """Of a column, with {} for its number."""
    rows: Mapping[str, Callable[[int], Trial]]
    """Case -> the trial of a column."""
    each: int = 1
    """Intervals that one draw gives."""


class Cell(NamedTuple):
    """What the draws of one case and column say."""

    drawn: int
    vouched: int
    coverage: float
    """Of those vouched for."""
    width: float
    """Mean width of those vouched for, over that of the interval that knows the scatter of the estimate."""
    doubts: dict[str, float]
    """Share of the draws of which the verdict says so."""

    def __str__(self) -> str:
        share = 100 * self.vouched / self.drawn
        if self.vouched < FEWEST:
            return f"refuses ({share:.1f})"
        return f"{100 * self.coverage:.1f} / {share:.0f} / {self.width:.2f}"

    def said(self) -> str:
        """The doubts, in % of the draws."""
        return " ".join(f"{name} {100 * share:.1f}" for name, share in self.doubts.items() if share > 0)


def tables(suite: str, runs: int, seed: int, before: Path | None = None, workers: int = 2,
           only: str = "") -> dict[str, dict[str, list[Cell]]]:
    """The sheets of a suite (a module of this folder with ``SHEETS``), printed one after the other, and as cells.

    Arguments:
        before: another checkout, whose package is tried on the very same draws.
        only: part of a sheet's title, or of a row's name; the others are left out.
    """
    sheets: dict[str, dict[str, list[Cell]]] = {}
    console = Console()
    console.width = max(console.width, 150)
    for key, sheet in importlib.import_module(f"benchmarks.{suite}").SHEETS.items():
        names = [name for name in sheet.rows if only in name or only in sheet.title]
        if not names:
            continue
        checkouts = [before, None] if before else [None]
        jobs = [(suite, key, name, column, runs, seed) for column in sorted(sheet.columns, reverse=True) for name in names]
        cells = [_measured(folder, workers, jobs) for folder in checkouts]
        rows = {name: _joined([[each[name, column] for each in cells] for column in sheet.columns]) for name in names}
        sheets[sheet.title] = {", ".join(filter(None, [name, quantity])): row for name in names
                               for quantity, row in rows[name].items()}
        about = f"{sheet.title}; {runs} draws a cell, seed {seed}: coverage of vouched / % vouched / width over ideal"
        console.print(_table(about, sheet, sheets[sheet.title], str, before is not None))
        console.print(_table("what verdicts say, in % of the draws", sheet, sheets[sheet.title], Cell.said, before is not None))
    return sheets


def cell(suite: str, sheet: str, name: str, column: int, runs: int, seed: int) -> dict[str, Cell]:
    """The cells of one case and column: one for each quantity that its trial draws."""
    import warnings

    warnings.simplefilter("ignore")
    chosen = importlib.import_module(f"benchmarks.{suite}").SHEETS[sheet]
    trial = chosen.rows[name](column)
    rng = np.random.default_rng([seed, column, *name.encode()])
    draws = [trial(rng) for _ in range(-(-runs // chosen.each))]
    return {quantity: counted([one[quantity] for one in draws]) for quantity in draws[0]}


def counted(draws: list[Drawn]) -> Cell:
    """What the draws of one quantity say."""
    low, high, estimate, vouched, truth = (
        np.concatenate([np.ravel(np.broadcast_to(one[k], np.shape(one.low))) for one in draws]) for k in range(5))
    vouched = vouched.astype(bool)
    ideal = 2 * 1.96 * np.sqrt(np.nanmean((estimate - truth) ** 2))
    kept = vouched.any()
    doubts = {name: float(np.mean([words in one.verdict for one in draws])) for name, words in DOUBTS.items()}
    return Cell(len(low), int(vouched.sum()), float(((low <= truth) & (truth <= high))[vouched].mean()) if kept else np.nan,
                float((high - low)[vouched].mean() / ideal) if kept else np.nan, doubts)


def _measured(folder: Path | None, workers: int, jobs: list[tuple[str, str, str, int, int, int]]
              ) -> dict[tuple[str, int], dict[str, Cell]]:
    """(case, column) -> its cells, from fresh interpreters whose package is that of this checkout, or of another."""
    with tempfile.TemporaryDirectory(prefix="ensemblekit-bench-") as links:
        path = list(sys.path)
        if folder is not None:
            package = folder.resolve() / "ensemblekit"
            if not package.is_dir():
                raise SystemExit(f"{package} is no folder; --before wants the root of another checkout")
            (Path(links) / "ensemblekit").symlink_to(package)
            sys.path.insert(0, links)       # fresh interpreters are given this path
        try:
            with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                done = pool.map(_cell_of, jobs)
                return {(job[2], job[3]): cells for job, cells in zip(jobs, done, strict=True)}
        finally:
            sys.path[:] = path


def _cell_of(job: tuple[str, str, str, int, int, int]) -> dict[str, Cell]:
    return cell(*job)


def _joined(columns: list[list[dict[str, Cell]]]) -> dict[str, list[Cell]]:
    """Quantity -> its cells, column by column, before and after."""
    return {quantity: [one[quantity] for column in columns for one in column] for quantity in columns[0][-1]}


def _table(title: str, sheet: Sheet, rows: Mapping[str, list[Cell]], text: Callable[[Cell], str], both: bool) -> Table:
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("")
    for column in sheet.columns:
        for when in (" before", "") if both else ("",):
            table.add_column(sheet.heading.format(column) + when, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *map(text, cells))
    return table
