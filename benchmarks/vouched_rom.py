"""What ``rom.average`` is tried on: means and second moments of the velocity in one cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from benchmarks.processes import PROCESSES, Process
from benchmarks.vouched import Drawn, Sheet, Trial
from ensemblekit import rom
from ensemblekit.engine import Serial

RATIOS = (20, 50, 200)
COMPONENTS = 3


def cell(process: Process) -> Callable[[int], Trial]:
    """A cell whose three components are independent copies of a process of zero mean; second moments as of long runs."""
    square = float(np.mean(process.make(np.random.default_rng(0), 4_000_000) ** 2))

    def of(ratio: int) -> Trial:
        n = round(ratio * process.g)
        truths = {"mean": 0.0, "rms": square**0.5, "reynolds_stress": square, "tke": COMPONENTS * square / 2}

        def draw(rng: np.random.Generator) -> Mapping[str, Drawn]:
            u = np.stack([process.make(rng, n) for _ in range(COMPONENTS)], axis=1)[:, None]
            averages = rom.average(u, list(truths), equilibration=None, engine=Serial())
            drawn = {}
            for name, truth in truths.items():
                e = averages[name]
                low, high, mean = (np.ravel(a)[0] for a in (e.low, e.high, e.mean))     # xx of a tensor, u of a vector
                drawn["variance" if name == "reynolds_stress" else name] = Drawn(low, high, mean, e.converged, truth, e.verdict)
            return drawn
        return draw
    return of


class Lazily(Mapping[str, Callable[[int], Trial]]):
    """Rows whose truths are found when they are asked for."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def __getitem__(self, name: str) -> Callable[[int], Trial]:
        return cell(PROCESSES[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


TRIED = ("AR .9", "AR .5", "independent", "white + .35 AR .95")
SHEETS = {"cells": Sheet("rom.average of a cell", RATIOS, "n/g {}", Lazily(TRIED))}
