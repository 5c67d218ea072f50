"""What five snapshots of a run are worth on real images: in networks, in variance, and after a choice out of fold.

The trainings of ``bench_snapshots`` with the predictions of every snapshot: five runs of five cycles, and five networks of
other first weights that get the whole budget each. ``python -m benchmarks neural --only evidence`` (or
``python -m benchmarks.bench_evidence [--only NAME] [--quick] [--runs N] [--results FOLDER]``) keeps predictions as that does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.bench_snapshots import RESULTS, Kept, Problem, batches, cosine, one_thread, pooled, problems, trained
from ensemblekit import neural
from ensemblekit.averaging.crossed import crossed
from ensemblekit.neural.saved import SavedPredictions
from ensemblekit.neural.scores import Score, Scores, both
from ensemblekit.neural.selection import Selection, with_choice

RUNS, SEEDS = 5, 5
OTHER = 100
"""First seed of the reference networks, so that they share no first weights with the runs."""
ALLOWED = 0.002
"""Nats by which a selection may be worse than the better of all members and the last, beside two standard errors."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one problem shows."""

    equivalent: neural.Equivalent
    ergodicity: neural.TrainingErgodicity
    selections: tuple[Selection, ...]
    """One a run."""
    minus_all: Score
    """NLL of the selected members minus all of them, out of fold: mean over the runs."""
    minus_last: Score
    worst: float
    """Of the runs: NLL minus that of the better of all and last, less two standard errors."""


def run(quick: bool, only: str = "", runs: int = RUNS, results: Path | None = None) -> dict[str, object]:
    """All problems there are, or those whose name has `only` in it; prints and returns what they show."""
    console, by_problem = Console(), {}
    results = results or Path(os.environ.get("ENSEMBLEKIT_BENCH_RESULTS", RESULTS))
    with one_thread():
        for problem in sized(quick):
            if only.lower() in problem.name.lower():
                console.rule(f"{problem.name}: {runs} runs of {problem.cycles} cycles, {SEEDS} networks of the whole budget of "
                             f"{problem.steps} steps of {problem.batch}, {len(problem.test[1])} test items", align="left")
                by_problem[problem.name] = facts(show(problem, runs, results, console))
    return by_problem


def sized(quick: bool) -> Iterator[Problem]:
    """The problems of ``bench_snapshots``; 2000 test items where it is to be quick."""
    for problem in problems(quick):
        yield replace(problem, test=(problem.test[0][:2000], problem.test[1][:2000])) if quick else problem


def members(problem: Problem, seed: int, results: Path, cycles: int, rate: float) -> SavedPredictions:
    """What each snapshot of a run says of the test items."""
    kept = Kept(problem, seed, results)
    name = f"members of {cycles} cycles at {rate}"
    p = kept.read(name)
    if p is None:
        model, states = trained(problem, seed, problem.steps, rate, cosine(cycles))
        kept.write(name, np.stack([pooled(problem, model, [state]) for state in states]))
        p = kept.read(name)
    assert p is not None
    return SavedPredictions(p, np.full(len(p), 1 / len(p)), problem.test[1].numpy(), {}, "probability", None)


def networks(problem: Problem, results: Path, seeds: int = SEEDS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and labels of independent networks, each trained with the whole budget."""
    labels, predictions = problem.test[1].numpy(), []
    for seed in range(OTHER, OTHER + seeds):
        kept = Kept(problem, seed, results)
        if kept.read("single cosine run") is None:
            model, _ = trained(problem, seed, problem.steps, problem.rate, cosine(1))
            kept.write("single cosine run", neural.predict(model, batches(problem, problem.test)).probabilities)
        p = kept.read("single cosine run")
        assert p is not None
        predictions.append((p, labels))
    return predictions


def show(problem: Problem, runs: int, results: Path, console: Console) -> Found:
    """One problem, printed."""
    given = [members(problem, seed, results, problem.cycles, problem.snapshot_rate) for seed in range(runs)]
    result = judged(given, networks(problem, results))
    console.print(str(result.equivalent), str(result.ergodicity), highlight=False, soft_wrap=True, sep="\n")
    console.print("selection by \"auto\", NLL out of fold, mean over the runs: minus all members "
                  f"{signed(result.minus_all)}; minus the last {signed(result.minus_last)}", highlight=False, soft_wrap=True)
    for k, one in enumerate(result.selections):
        console.print(f"  run {k}: {one.method}, members {[int(i) + 1 for i in one.indices]}; minus all "
                      f"{signed(one.differences['all members']['nll'])}, minus the last "
                      f"{signed(one.differences['last']['nll'])}", highlight=False, soft_wrap=True)
    console.print("  worse than the better of all and last by more than 0.002 nats and two standard errors: "
                  f"{'yes, by ' + format(result.worst - ALLOWED, '.4f') if result.worst > ALLOWED else 'in no run'}",
                  highlight=False, soft_wrap=True)
    return result


def judged(runs: list[SavedPredictions], seeds: list[tuple[np.ndarray, np.ndarray]]) -> Found:
    """What the members of some runs are worth."""
    chosen = tuple(neural.select(one) for one in runs)
    choice, folds = max(one.choice_variance for one in chosen), len(chosen[0].fold_weights[0])
    labels = runs[0].target
    assert labels is not None
    ours = losses([one.prediction.probabilities for one in chosen], labels)
    # paired by run and by item
    gaps = [with_choice(Scores({"nll": both(crossed(ours - losses(other, labels)))}), choice, folds)["nll"]
            for other in ([one.pooled().probabilities for one in runs], [one.members[-1] for one in runs])]
    worst = max(one.differences[other]["nll"].value - 2 * one.differences[other]["nll"].stderr for one in chosen
                for other in ("all members", "last"))
    return Found(neural.deep_ensemble_equivalent([one.pooled() for one in runs], seeds), neural.training_ergodicity(runs),
                 chosen, *gaps, worst)


def losses(runs: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """(R, n): NLL of each item."""
    return np.stack([-np.log(np.maximum(p[np.arange(len(labels)), labels], np.finfo(float).tiny)) for p in runs])


def signed(score: Score) -> str:
    """With its interval."""
    return f"{score.value:+.4f} ({score.low:+.4f} to {score.high:+.4f})"


def facts(result: Found) -> dict[str, object]:
    """As JSON has them."""
    return {"equivalent": result.equivalent.to_dict(), "ergodicity": result.ergodicity.to_dict(),
            "selected": [one.method for one in result.selections],
            "minus all members": result.minus_all.to_dict(), "minus last": result.minus_last.to_dict(), "worst": result.worst}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_evidence", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images, steps and test items")
    parser.add_argument("--only", default="", metavar="NAME", help="digits, MNIST or CIFAR")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--results", type=Path, default=None, metavar="FOLDER", help=f"default: {RESULTS}")
    args = parser.parse_args()
    run(args.quick, args.only, args.runs, args.results)


if __name__ == "__main__":
    main()
