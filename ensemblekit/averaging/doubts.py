"""What the numbers of an array have to say against their own errors, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.averaging.estimate import Estimate

ENOUGH = 10.0
"""Independent snapshots below which an interval is not vouched for."""


def judged(estimate: Estimate, *, independent: Any = None, enough: float = ENOUGH, size: int | None = None,
           word: str = "elements") -> Estimate:
    """The estimate, doubted where elements of it rest on too few independent snapshots, are not finite or never change.

    What is always 0 is empty by nature (the core of a g(r), a wall, a pair that never meets) and is not counted, unless
    there is nothing else.

    Arguments:
        independent: snapshots that say how well the error of each element is known; by default n_eff.
        size: elements in all, where the estimate holds only some of them.
        word: for what they are.
    """
    independent = np.asarray(estimate.n_eff if independent is None else independent, dtype=np.float64)
    mean, stderr = np.asarray(estimate.mean), np.asarray(estimate.stderr)
    size = mean.size if size is None else size
    few = independent < enough
    bad = ~np.isfinite(mean)
    still = (stderr == 0) & ~bad
    constant = still & (mean != 0)
    doubts, everything = [], still.size > 0 and bool(still.all())
    if few.any():
        fewest = float(np.nanmin(independent))
        doubts.append(f"only {fewest:.2g} independent snapshots; an interval needs about {enough:g}" if size == 1 else
                    f"{int(few.sum())} of {size} {word} have fewer than {enough:g} independent snapshots (fewest {fewest:.2g})")
    if bad.any():
        doubts.append(f"{int(bad.sum())} of {size} {word} are not finite" if size > 1 else "it is not finite")
    if everything or constant.any():
        doubts.append(f"{size if everything else int(constant.sum())} of {size} {word} never change")
    if not doubts:
        return estimate
    return replace(estimate, converged=estimate.converged and not (few.any() or bad.any() or everything),
                   verdict="; ".join([*filter(None, [estimate.verdict]), *doubts]))


def with_doubt(estimate: Estimate, why: str) -> Estimate:
    """The estimate, not vouched for: `why` comes first in its verdict."""
    return replace(estimate, converged=False, verdict="; ".join(filter(None, [why, estimate.verdict])))
