"""How often the 95 % interval of a mean of correlated snapshots holds the truth: ours beside what is commonly done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter
from scipy.stats import t as student

import ensemblekit as ek
from ensemblekit.averaging.correlation import statistical_inefficiency

Process = Callable[[int, int, np.random.Generator], np.ndarray]


def run(quick: bool) -> list[dict[str, Any]]:
    """The table, printed and as rows."""
    rows = coverage_table(1000 if quick else 10_000)
    console = Console()
    console.width = max(console.width, 126)
    columns = ("process", "n/g", "n", "naive", "chodera g", "5 blocks", "ours", "ours, vouched for", "refused",
               "weighted", "array element", "width")
    table = Table(title=f"coverage in % of nominal 95 % intervals, {rows[0]['series']} series each "
                        f"(99 % of such tables lie within ±{rows[0]['margin']:.1f})")
    for name in columns:
        table.add_column(name, justify="left" if name == "process" else "right")
    for row in rows:
        table.add_row(*(str(row[c]) if not isinstance(row[c], float) else f"{row[c]:.{2 if c == 'width' else 1}f}"
                        for c in columns))
    console.print(table)
    return rows


def coverage_table(series: int = 10_000, seed: int = 0, ratios: tuple[int, ...] = (50, 20),
                   names: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """One row a process and length. Coverages are percentages; width is our mean interval over the ideal one.

    "naive" takes snapshots as independent; "chodera g" is sqrt(g s² / n) with the Gaussian quantile, as with pymbar's
    statistical_inefficiency; "5 blocks" is Student's t of five block means. "ours" is ek.average with its defaults
    (equilibration on), "weighted" the same with independent log-normal weights, "array element" elements of one
    array average.
    """
    rows = []
    for name in names or tuple(PROCESSES):
        make, g, truth = PROCESSES[name]
        for ratio in ratios:
            n = round(ratio * g)
            rng = np.random.default_rng([seed, ratio, len(rows)])
            hits: dict[str, list] = {k: [] for k in ("naive", "chodera g", "5 blocks", "ours", "weighted", "vouched")}
            elements, width, spread = [], [], []
            for done in range(0, series, 500):
                x = make(n, min(500, series - done), rng)
                w = np.exp(0.5 * rng.standard_normal(x.shape))
                for s, v in zip(x.T, w.T, strict=True):
                    e = ek.average(s)
                    hits["ours"].append(e.low <= truth <= e.high)
                    hits["vouched"].append(e.converged)
                    width.append((e.high - e.low) / 2)
                    e = ek.average(s, weights=v)
                    hits["weighted"].append(e.low <= truth <= e.high)
                    off, sd = abs(s.mean() - truth), s.std(ddof=1)
                    hits["naive"].append(off <= 1.96 * sd / np.sqrt(n))
                    hits["chodera g"].append(off <= 1.96 * statistical_inefficiency(s, "chodera").stderr)
                    blocks = s[n % 5:].reshape(5, -1).mean(axis=1)
                    hits["5 blocks"].append(off <= student.ppf(0.975, 4) * blocks.std(ddof=1) / np.sqrt(5))
                e = ek.average(x)
                elements.append((e.low <= truth) & (truth <= e.high))
                spread.append(x.var())
            ours, vouched = np.array(hits["ours"]), np.array(hits["vouched"])
            ideal = 1.96 * np.sqrt(np.mean(spread) * g / n)
            rows.append({"process": name, "n/g": ratio, "n": n, "series": series,
                         "margin": 2.576 * float(np.sqrt(0.95 * 0.05 / series)) * 100}
                        | {k: 100 * float(np.mean(hits[k])) for k in ("naive", "chodera g", "5 blocks", "ours",
                                                                      "weighted")}
                        | {"ours, vouched for": 100 * float(ours[vouched].mean()) if vouched.any() else float("nan"),
                           "refused": 100 * float(1 - vouched.mean()),
                           "array element": 100 * float(np.concatenate(elements).mean()),
                           "width": float(np.mean(width) / ideal)})
    return rows


def autoregression(phi: float) -> tuple[Process, float, float]:
    """Gaussian AR(1) of unit variance; (how to make it, g, mean)."""
    def make(n: int, runs: int, rng: np.random.Generator) -> np.ndarray:
        warm = int(30 / (1 - phi))
        return lfilter([np.sqrt(1 - phi**2)], [1, -phi], rng.standard_normal((n + warm, runs)), axis=0)[warm:]

    return make, (1 + phi) / (1 - phi), 0.0


def lognormal(phi: float = 0.9, width: float = 0.5) -> tuple[Process, float, float]:
    """exp of an AR(1): skewed."""
    make, _, _ = autoregression(phi)
    lags = phi ** np.arange(1, 5000)
    g = 1 + 2 * float((np.expm1(width**2 * lags) / np.expm1(width**2)).sum())
    return lambda n, runs, rng: np.exp(width * make(n, runs, rng)), g, float(np.exp(width**2 / 2))


def telegraph(flip: float = 0.05) -> tuple[Process, float, float]:
    """Two states, -1 and 1, that change with a fixed chance a step."""
    def make(n: int, runs: int, rng: np.random.Generator) -> np.ndarray:
        flips = rng.random((n, runs)) < flip
        flips[0] = rng.random(runs) < 0.5
        return 1.0 - 2.0 * (np.cumsum(flips, axis=0) % 2)

    return make, (2 - 2 * flip) / (2 * flip), 0.0


def exponential_steps(phi: float = 0.7) -> tuple[Process, float, float]:
    """AR(1) driven by exponential steps."""
    def make(n: int, runs: int, rng: np.random.Generator) -> np.ndarray:
        return lfilter([1], [1, -phi], rng.exponential(size=(n + 200, runs)) - 1, axis=0)[200:]

    return make, (1 + phi) / (1 - phi), 0.0


PROCESSES: dict[str, tuple[Process, float, float]] = {
    "independent": autoregression(0.0),
    "AR(1) 0.5": autoregression(0.5),
    "AR(1) 0.9": autoregression(0.9),
    "OU, dt = tau/20": autoregression(float(np.exp(-1 / 20))),
    "log-normal": lognormal(),
    "telegraph": telegraph(),
    "exponential steps": exponential_steps(),
}
"""name -> (make(n, runs, rng) -> (n, runs), statistical inefficiency, mean)."""
