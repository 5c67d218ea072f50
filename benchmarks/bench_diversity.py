"""Do larger rates and shorter cycles give more diverse and better ensembles, as the authors of snapshot ensembles say?

One training budget, spent with several peak rates and numbers of cycles: how often two snapshots disagree, how many
independent trainings the run's mean is worth in variance (n_eff) and in score (DEE, against five networks of the whole budget),
and the calibrated NLL of all snapshots pooled; means over three runs with 95 % intervals. Digits, and MNIST where
ENSEMBLEKIT_DATA has it: ``python -m benchmarks neural --only diversity``, or
``python -m benchmarks.bench_diversity [--only NAME] [--quick] [--figure FILE] [--results FOLDER]``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.bench_evidence import members, networks, sized
from benchmarks.bench_snapshots import RESULTS, Problem, interval, one_thread
from ensemblekit import neural
from ensemblekit.neural.saved import SavedPredictions
from ensemblekit.plot.neural_evidence import Schedule

RATES = (0.05, 0.2, 0.5)
CYCLES = (10, 5, 2)
"""In the budget."""
RUNS = 3
HEADS = ("max rate", "epochs a cycle", "snapshots", "disagreement %", "n_eff", "DEE", "calibrated NLL", "error %")


def run(quick: bool, only: str = "", results: Path | None = None,
        figure: Path | None = None) -> dict[str, list[dict[str, object]]]:
    """Digits and MNIST, as far as they are there; prints a table each, and returns it."""
    console, tables, drawn = Console(), {}, {}
    results = results or Path(os.environ.get("ENSEMBLEKIT_BENCH_RESULTS", RESULTS))
    with one_thread():
        for problem in sized(quick):
            if problem.name.startswith("CIFAR") or only.lower() not in problem.name.lower():
                continue
            rows = [schedule(problem, rate, cycles, results) for rate in RATES for cycles in CYCLES]
            show(problem, rows, console)
            tables[problem.name] = [row.to_dict() for row in rows]
            drawn[problem.name] = rows
    if not drawn:
        console.print("diversity: skipped, no data: install scikit-learn, or set ENSEMBLEKIT_DATA")
    elif figure is not None:
        draw(drawn, figure)
    return tables


def schedule(problem: Problem, rate: float, cycles: int, results: Path) -> Schedule:
    """What one way of spending the budget gives."""
    return judged(rate, problem.epochs / cycles, [members(problem, seed, results, cycles, rate) for seed in range(RUNS)],
                  networks(problem, results))


def judged(rate: float, epochs: float, runs: Sequence[SavedPredictions],
           seeds: list[tuple[np.ndarray, np.ndarray]]) -> Schedule:
    """Of runs of one schedule."""
    apart, half = interval(np.array([disagreement(one.members) for one in runs]))
    varied = neural.training_ergodicity(list(runs))
    pools = [one.pooled() for one in runs]
    worth = neural.deep_ensemble_equivalent(pools, seeds)
    scores = neural.scores(pools)
    nll, accuracy = scores["calibrated_nll"], scores["accuracy"]
    return Schedule(rate=rate, epochs=epochs, members=len(runs[0].members), disagreement=(apart, apart - half, apart + half),
                    n_eff=(varied.members, *varied.function_space.n_eff_interval),
                    equivalent=(worth.value, worth.low, worth.high), beyond=worth.beyond, n_seeds=worth.n_seeds,
                    score=(nll.value, nll.low, nll.high),
                    error=(1 - accuracy.value, 1 - accuracy.high, 1 - accuracy.low))


def disagreement(p: np.ndarray) -> float:
    """Share of items on which two members' first choices differ, over all pairs."""
    choices = p.argmax(2)
    return float(np.mean([(a != b).mean() for a, b in combinations(choices, 2)]))


def show(problem: Problem, rows: Sequence[Schedule], console: Console) -> None:
    """The table."""
    from ensemblekit.cli.console import table

    console.rule(f"{problem.name}: {problem.steps} steps of {problem.batch} spent in {len(rows)} ways, {RUNS} runs each, "
                 f"{len(problem.test[1])} test items", align="left")
    shown = table("", *HEADS[1:], right=HEADS[1:])
    for row in rows:
        shown.add_row(f"rate {row.rate:g}", f"{row.epochs:g}", str(row.members), ranged(row.disagreement, 100, 2),
                      ranged(row.n_eff, 1, 2),
                      {"below": "< ", "above": "> ", "": ""}[row.beyond] + ranged(row.equivalent, 1, 2),
                      ranged(row.score, 1, 4), ranged(row.error, 100, 2))
    console.print(shown)
    console.print(verdict(rows), highlight=False, soft_wrap=True)


def verdict(rows: Sequence[Schedule]) -> str:
    """Whether the most diverse schedule is the best one."""
    diverse = max(rows, key=lambda row: row.disagreement[0])
    best = min(rows, key=lambda row: row.score[0])
    order = np.corrcoef([row.disagreement[0] for row in rows], [row.score[0] for row in rows])[0, 1]
    return (f"most disagreement: {diverse}; lowest calibrated NLL: {best}; over the schedules, disagreement and calibrated "
            f"NLL have the correlation {order:+.2f} (below 0: the more diverse, the better)")


def ranged(x: tuple[float, float, float], scale: float, digits: int) -> str:
    """Value (low to high)."""
    return f"{scale * x[0]:.{digits}f} ({scale * x[1]:.{digits}f} to {scale * x[2]:.{digits}f})"


def draw(tables: dict[str, list[Schedule]], path: Path) -> None:
    """One row of panels a problem."""
    from ensemblekit.plot import neural_evidence
    from ensemblekit.plot.style import new_figure

    figure = new_figure((6.9, 2.2 * len(tables)))
    for row, (name, rows) in zip(np.atleast_2d(figure.subplots(len(tables), 3)), tables.items(), strict=True):
        neural_evidence.diversity(rows, ax=row)
        row[0].set_title(name, fontsize=7.5, loc="left")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_diversity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images, steps and test items")
    parser.add_argument("--only", default="", metavar="NAME", help="digits or MNIST")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw it there, too")
    parser.add_argument("--results", type=Path, default=None, metavar="FOLDER", help=f"default: {RESULTS}")
    args = parser.parse_args()
    run(args.quick, args.only, args.results, args.figure)


if __name__ == "__main__":
    main()
