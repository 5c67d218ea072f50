"""What ``md.average`` is tried on: the trajectories of ``bench_md_coverage``, at several lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.bench_md_coverage import PHI, SYSTEMS
from benchmarks.vouched import Drawn, Sheet, Trial
from ensemblekit import md
from ensemblekit.engine import Serial

RATIOS = (20, 50, 200)
FRAMES_OF_DIFFUSION = 10
"""Frames in which a particle loses its direction many times over, for a column of 1."""


def system(name: str) -> Callable[[int], Trial]:
    """All observables of one system, read together; an array is vouched for as a whole."""
    each = FRAMES_OF_DIFFUSION if name == "particles" else (1 + PHI) / (1 - PHI)

    def of(ratio: int) -> Trial:
        observables, truths, make, universe = SYSTEMS[name](round(ratio * each))

        def draw(rng: np.random.Generator) -> Mapping[str, Drawn]:
            positions, box = make(rng)
            universe.load_new(positions.astype(np.float32), dimensions=box)
            averages = md.average(universe, observables, whole=True, engine=Serial(), quiet=True)
            drawn = {}
            for quantity, (take, truth) in truths.items():
                estimate, (low, high, _) = take(averages)
                drawn[quantity] = Drawn(low, high, (low + high) / 2, estimate.converged, float(truth), estimate.verdict)
            return drawn
        return draw
    return of


SHEETS = {"trajectories": Sheet("md.average", RATIOS, "n/g {}", {name: system(name) for name in SYSTEMS})}
