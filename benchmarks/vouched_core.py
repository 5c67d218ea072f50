"""What ``ek.average`` is tried on: series, elements of arrays, weighted series, replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

import ensemblekit as ek
from benchmarks.processes import PROCESSES, WITHOUT, Process, autoregression
from benchmarks.vouched import Drawn, Sheet, Trial

RATIOS = (20, 50, 200)
SHORTEST = 12
ELEMENTS = 100
"""Of an array."""
RUNS = 6
"""Replicas."""
FEW = 10.0
"""Independent snapshots below which an element of an array is not vouched for."""


def drawn(e: ek.Estimate, estimate: float, truth: float) -> Mapping[str, Drawn]:
    """One interval."""
    return {"": Drawn(e.low, e.high, estimate, e.converged, truth, e.verdict)}


def length(process: Process, ratio: int) -> int:
    return max(SHORTEST, round(ratio * process.g))


def series(process: Process) -> Callable[[int], Trial]:
    """One series; an interval is compared with the scatter of the means of whole series."""
    def of(ratio: int) -> Trial:
        def draw(rng: np.random.Generator) -> Mapping[str, Drawn]:
            x = process.make(rng, length(process, ratio))
            return drawn(ek.average(x), float(x.mean()), process.mean)
        return draw
    return of


def elements(process: Process) -> Callable[[int], Trial]:
    """An array of independent series; its elements are vouched for one by one, unless the whole run drifts."""
    def of(ratio: int) -> Trial:
        def draw(rng: np.random.Generator) -> Mapping[str, Drawn]:
            x = np.stack([process.make(rng, length(process, ratio)) for _ in range(ELEMENTS)], axis=1)
            e = ek.average(x)
            vouched = (e.n_eff >= FEW) & ("still drifting" not in e.verdict)
            return {"": Drawn(e.low, e.high, x.mean(axis=0), vouched, process.mean, e.verdict)}
        return draw
    return of


def weighted(log_weights: Callable[[np.random.Generator, np.ndarray], np.ndarray], truth: float) -> Callable[[int], Trial]:
    """A Gaussian AR(.9) with weights that may depend on it."""
    process = PROCESSES["AR .9"]

    def of(ratio: int) -> Trial:
        def draw(rng: np.random.Generator) -> Mapping[str, Drawn]:
            x = process.make(rng, length(process, ratio))
            logs = log_weights(rng, x)
            e = ek.average(x, weights=np.exp(logs - logs.max()))
            return drawn(e, float(e.mean), truth)
        return draw
    return of


def replicas(process: Process, offset: float, runs: int = RUNS) -> Callable[[int], Trial]:
    """Runs whose own means scatter about the true one by `offset` standard deviations of a snapshot."""
    def of(ratio: int) -> Trial:
        def draw(rng: np.random.Generator) -> Mapping[str, Drawn]:
            x = [process.make(rng, length(process, ratio)) for _ in range(runs)]
            spread = float(np.std(np.concatenate(x)))
            x = [one + offset * spread * rng.normal() for one in x]
            e = ek.average(ek.ReplicaSet.of(x))
            return drawn(e, float(e.mean), process.mean)
        return draw
    return of


SHEETS = {
    "series": Sheet("ek.average of a series", RATIOS, "n/g {}", {name: series(p) for name, p in (PROCESSES | WITHOUT).items()}),
    "arrays": Sheet("elements of ek.average of an array", RATIOS, "n/g {}", {
        name: elements(PROCESSES[name]) for name in PROCESSES}, each=ELEMENTS),
    "weights": Sheet("ek.average of a weighted AR(.9)", RATIOS, "n/g {}", {
        "half of the weights zero": weighted(lambda rng, x: np.where(rng.random(len(x)) < 0.5, 0.0, -np.inf), 0.0),
        "independent, log-normal .5": weighted(lambda rng, x: 0.5 * rng.normal(size=len(x)), 0.0),
        "independent, log-normal 1": weighted(lambda rng, x: rng.normal(size=len(x)), 0.0),
        "independent, log-normal 5": weighted(lambda rng, x: 5 * rng.normal(size=len(x)), 0.0),
        "slow, log-normal .5": weighted(lambda rng, x: 0.5 * autoregression(rng, len(x), 0.95), 0.0),
        "reweighted to N(.5, 1)": weighted(lambda rng, x: 0.5 * x, 0.5),
        "reweighted to N(1, 1)": weighted(lambda rng, x: x, 1.0),
        "reweighted to N(2, 1)": weighted(lambda rng, x: 2 * x, 2.0),
        "rising e-fold": weighted(lambda rng, x: np.linspace(0, 1, len(x)), 0.0),
        "rising 60 e-folds": weighted(lambda rng, x: np.linspace(0, 60, len(x)), 0.0),
    }),
    "replicas": Sheet("ek.average of replicas", RATIOS, "n/g {} each", {
        f"{runs} runs of {name}, {offset:g} sd apart" if offset else f"{runs} runs of {name}":
        replicas(PROCESSES[name], offset, runs)
        for name, offset, runs in (("AR .5", 0.0, 6), ("AR .9", 0.0, 6), ("AR .9", 0.0, 2), ("AR .9", 0.0, 20),
                                   ("independent", 0.0, 6), ("exp(AR .9)", 0.0, 6), ("telegraph .02 .18", 0.0, 6),
                                   ("AR .5", 0.2, 6), ("AR .9", 0.2, 6), ("AR .9", 0.2, 3), ("AR .9", 0.2, 20),
                                   ("AR .9", 1.0, 6))}),
}
