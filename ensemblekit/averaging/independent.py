"""Means of snapshots in no order (deposited models, independent draws): no correlation, no equilibration, Kish's n_eff."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.equilibration import Equilibrate
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.weights import LARGEST, kish, weighted_mean
from ensemblekit.errors import InputError
from ensemblekit.scaling import scaled

FEWEST = 4
"""Snapshots below which no error is told."""
NOTE = "the snapshots are taken as independent, in no order in time"
"""What the verdict says where the source says nothing more."""


def check_unordered(equilibration: Equilibrate) -> None:
    """Refuse to leave out the start of what has none."""
    if equilibration is not None and not isinstance(equilibration, str) and equilibration > 0:
        raise InputError(f"equilibration={equilibration!r} leaves out the first snapshots, and these are in no order "
                         "(ordered=False): choose those that count by their numbers, or by weights of zero")


def doubts_of_independent(weights: np.ndarray | None) -> tuple[str, ...]:
    """Why the weights of independent snapshots cannot carry an error; () where they can."""
    if weights is None or np.ptp(weights) == 0:
        return ()
    w = scaled(weights)[0]
    largest = float(w.max() / w.sum())
    if largest > LARGEST:
        return (f"one snapshot carries {100 * largest:.0f} % of all weight: no error can be told from the others",)
    return ()


def independent_mean(x: np.ndarray, weights: np.ndarray | None, facts: Mapping[str, Any]) -> Estimate:
    """The Estimate of the mean of independent numbers (n,), weighted (n,) or alike.

    SE² = Σ w² (x - μ)² / (Σ w)² · n_eff / (n_eff - 1), with n_eff = (Σ w)² / Σ w² (Kish 1965) and Student's t of n_eff - 1
    degrees of freedom: for equal weights the textbook's s² / n.

    facts: of the estimate, by name; among them `n` and `confidence`.
    """
    n, mean = len(x), float(weighted_mean(x, weights))
    n_eff = kish(weights, n)
    if n < FEWEST or n_eff < 2:
        few = f"{n} snapshots" if n < FEWEST else f"the weights rest on {n_eff:.2g} snapshots (Kish)"
        return Estimate.of(mean, refused=f"{few}: an error needs at least {FEWEST if n < FEWEST else 2}", **facts)
    share = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    off = x - mean
    if float(np.ptp(x[share > 0])) <= 16 * np.finfo(float).eps * float(np.abs(x).max()):
        return Estimate.of(mean, 0.0, math.inf, interval=(mean, mean), estimators={"independent": 0.0}, doubts=[
            "every snapshot is the same: a constant has no error that sampling could show"], **facts)
    stderr = math.sqrt(float(np.square(share * off).sum()) * n_eff / (n_eff - 1))
    doubts = [*doubts_of_independent(weights)]
    if n_eff < ENOUGH:
        doubts.append(f"only {n_eff:.2g} independent snapshots; an interval needs about {ENOUGH:g}")
    return Estimate.of(mean, stderr, n_eff - 1, n_eff=n_eff, doubts=doubts, estimators={"independent": stderr}, **facts)
