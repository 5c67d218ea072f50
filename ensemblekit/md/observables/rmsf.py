"""Fluctuation of atoms about their mean positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ensemblekit.averaging.moments import Moments
from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Prepared
from ensemblekit.md.superpose import superposed
from ensemblekit.md.system import Gather, System
from ensemblekit.source import Block


@dataclass(frozen=True)
class RMSF:
    """Root mean square fluctuation of each atom about its mean position after superposition; in angstrom.

    Frames are superposed on the mean structure, which is itself the mean of the frames superposed on the first one:
    MDAnalysis' AverageStructure(ref_frame=0), AlignTraj and RMSF in a row.
    """

    select: str = "name CA"
    fit: str | None = None
    """The atoms that are superposed; None: those of `select`."""

    def prepare(self, system: System) -> Prepared:
        atoms = system.select(self.select)
        fit = atoms if self.fit is None or self.fit == self.select else system.select(self.fit)
        if len(fit) < 3:
            raise InputError(f"a superposition needs 3 atoms or more; {self.fit or self.select!r} gives {len(fit)}")
        gather = system.gather(np.concatenate([fit, atoms]))
        first = system.first_frame().position[fit].astype(np.float64)
        reference = system.reduce({"mean": (partial(_fitted, gather, len(fit), False, first), Moments())},
                                  "mean structure of RMSF")["mean"].mean
        mean = system.reduce({"mean": (partial(_fitted, gather, len(fit), True, reference), Moments())},
                             "mean positions of RMSF")["mean"].mean
        return Prepared(partial(_squared_deviation, gather, len(fit), reference, mean), "Angstrom",
                        {"residue": (system.topology.resids[atoms], "")}, function=np.sqrt)


def _fitted(gather: Gather, n_fit: int, rest: bool, reference: np.ndarray, block: Block) -> np.ndarray:
    """The atoms behind the first n_fit (`rest`), or those, after superposition of the first n_fit."""
    positions, index = gather(block)
    x = positions[:, index].astype(np.float64)
    moved = superposed(x, reference)
    return moved[:, n_fit:] if rest else moved[:, :n_fit]


def _squared_deviation(gather: Gather, n_fit: int, reference: np.ndarray, mean: np.ndarray, block: Block) -> np.ndarray:
    return ((_fitted(gather, n_fit, True, reference, block) - mean) ** 2).sum(-1)
