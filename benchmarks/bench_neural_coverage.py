"""How often the 95 % intervals of scores hold the truth: few items, nearly all of them right, few groups, uneven groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from scipy.stats import t as student

from ensemblekit.neural.items import items_of
from ensemblekit.neural.scores import Score, draws, mean_of, paired_share, resampled, spread
from ensemblekit.neural.summed import calibration_curves

LEVELS = np.array([0.65, 0.75, 0.85])
"""Confidences of the model whose calibration is scored."""
OFF = 0.1
"""By how much it is right less often than it says."""

Drawn = tuple[Score, tuple[float, float], float]
"""Our score, Student's interval (of calibration errors the basic bootstrap's), the truth."""


def run(quick: bool) -> list[dict[str, Any]]:
    """The table, printed and as rows."""
    rows = coverage_table(300 if quick else 2000)
    show(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=f"coverage of nominal 95 % intervals of scores, {rows[0]['repeats']} draws each")
    for name in ("score", "ours", "99 % interval", "at least 92 %", "width", "as usual", "width"):
        table.add_column(name, justify="left" if name == "score" else "right")
    for row in rows:
        table.add_row(row["score"], f"{100 * row['coverage']:.1f} %", f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %",
                      "yes" if row["high"] >= 0.92 else "NO", f"{row['width']:.3f}", f"{100 * row['usual']:.1f} %",
                      f"{row['usual_width']:.3f}")
    Console().print(table)


def coverage_table(repeats: int, seed: int = 0, names: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """One row a score. "Usual" is Student's t over items or groups; of calibration errors the basic bootstrap."""
    rows = []
    for k, name in enumerate(CASES):
        if names is not None and name not in names:
            continue
        rng = np.random.default_rng([seed, k])
        drawn = [CASES[name](rng) for _ in range(repeats)]
        hits = [score.low <= truth <= score.high for score, _, truth in drawn]
        usual = [low <= truth <= high for _, (low, high), truth in drawn]
        low, high = binomtest(sum(hits), repeats).proportion_ci(0.99)
        rows.append({"score": name, "repeats": repeats, "coverage": float(np.mean(hits)),
                     "low": float(low), "high": float(high),
                     "width": float(np.mean([s.high - s.low for s, _, _ in drawn])), "usual": float(np.mean(usual)),
                     "usual_width": float(np.mean([high - low for _, (low, high), _ in drawn]))})
    return rows


def accuracy(p: float, n: int, groups: int = 0, uneven: bool = False) -> Callable[[np.random.Generator], Drawn]:
    """n items, each right with probability p; in groups whose own p is from a beta distribution."""
    def draw(rng: np.random.Generator) -> Drawn:
        owner = _groups(rng, n, groups, uneven)
        chance = rng.beta(10 * p, 10 * (1 - p), owner.max() + 1)[owner] if groups else np.full(len(owner), p)
        right = rng.random(len(owner)) < chance
        items = items_of(np.full((len(owner), 2), [0.9, 0.1]), np.where(right, 0, 1), owner)
        sums = items.sums(right.astype(float))
        return mean_of("accuracy", sums, items.sizes), _usual(sums, items.sizes), p
    return draw


def difference(gained: float, lost: float, n: int) -> Callable[[np.random.Generator], Drawn]:
    """n items, of which one model alone gets a share right, and the other another."""
    def draw(rng: np.random.Generator) -> Drawn:
        u = rng.random(n)
        first, second = u < gained, (u >= gained) & (u < gained + lost)
        one = np.ones(n)
        return (paired_share(first.astype(float), second.astype(float), one), _usual(first * 1.0 - second, one), gained - lost)
    return draw


def calibration(groups: int, each: int, uneven: bool = False) -> Callable[[np.random.Generator], Drawn]:
    """Calibration error of a model that is off by ten points, in groups that differ by five."""
    def draw(rng: np.random.Generator) -> Drawn:
        owner = _groups(rng, groups * each, groups, uneven)
        conf = rng.choice(LEVELS, len(owner))
        right = rng.random(len(owner)) < conf - OFF + rng.normal(0, 0.05, owner.max() + 1)[owner]
        items = items_of(np.stack([conf, 1 - conf], 1), np.where(right, 0, 1), owner)
        value, sample = resampled(calibration_curves(items, 10)["ece"], items.sizes, draws(items.n, 0))
        a, b = np.quantile(sample, [0.025, 0.975])
        return (spread(value, sample, items.sizes, positive=True),
                (min(max(2 * value - b, 0.0), value), max(2 * value - a, value)), OFF)
    return draw


def _groups(rng: np.random.Generator, n: int, groups: int, uneven: bool) -> np.ndarray:
    if not groups:
        return np.arange(n)
    share = rng.lognormal(0, 1 if uneven else 0, groups)
    return np.arange(groups).repeat(np.maximum(1, np.rint(n * share / share.sum())).astype(int))


def _usual(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    n, value = len(sums), sums.sum() / sizes.sum()
    half = student.ppf(0.975, n - 1) * np.std((sums - value * sizes) * (n / sizes.sum()), ddof=1) / np.sqrt(n)
    return value - half, value + half


CASES: dict[str, Callable[[np.random.Generator], Drawn]] = {
    **{f"accuracy {p:g}, {n} items": accuracy(p, n) for p in (0.9, 0.98, 0.998) for n in (50, 200)},
    **{f"accuracy {p:g}, {g} groups of 20{', uneven' * uneven}": accuracy(p, 20 * g, g, uneven)
       for p in (0.7, 0.98) for g in (4, 8, 12) for uneven in (False, True)},
    **{f"difference of {p:g} and {q:g}, {n} items": difference(p, q, n)
       for p, q in ((0.02, 0.02), (0.02, 0.0), (0.1, 0.05)) for n in (50, 200)},
    **{f"calibration error, {g} groups of {each}{', uneven' * uneven}": calibration(g, each, uneven)
       for g, each in ((4, 50), (8, 50), (12, 50)) for uneven in (False, True)},
    **{f"calibration error, {n} items": calibration(n, 1) for n in (50, 200)},
}
"""Name -> one draw."""
