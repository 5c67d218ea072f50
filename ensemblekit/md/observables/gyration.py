"""The size of a molecule: its radius of gyration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Prepared
from ensemblekit.md.system import Gather, System
from ensemblekit.source import Block


@dataclass(frozen=True)
class RadiusOfGyration:
    """sqrt(sum m |r - c|^2 / sum m) of each frame, c the centre of mass; in angstrom."""

    select: str = "protein"
    weights: str | None = "mass"
    """"mass", or None for all atoms alike."""

    def prepare(self, system: System) -> Prepared:
        if self.weights not in ("mass", None):
            raise InputError(f'weights is "mass" or None; got {self.weights!r}')
        atoms = system.select(self.select)
        masses = system.masses(atoms) if self.weights else np.ones(len(atoms))
        return Prepared(partial(_gyration, system.gather(atoms), masses / masses.sum()), "Angstrom")


def _gyration(gather: Gather, shares: np.ndarray, block: Block) -> np.ndarray:
    positions, index = gather(block)
    x = positions[:, index].astype(np.float64)
    x -= np.einsum("a,nai->ni", shares, x)[:, None]
    return np.sqrt(np.einsum("a,nai,nai->n", shares, x, x))
