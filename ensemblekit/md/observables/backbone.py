"""How far the backbone torsions of an ensemble scatter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ensemblekit.md.observables.base import Measurement, OfMean, SameAtoms
from ensemblekit.md.observables.dihedrals import DEGREES, backbone_torsions, torsion_vectors
from ensemblekit.md.observables.groups import points_of
from ensemblekit.md.system import System


@dataclass(frozen=True)
class BackboneSpread(SameAtoms):
    """Circular standard deviations of phi and psi of each residue that has both, sqrt(-2 ln R) in degrees.

    An array (2, residues); `phi` and `psi` by themselves. R is the length of the mean vector (Mardia & Jupp 2000).
    """

    select: str = "protein"

    def prepare(self, system: System) -> Measurement:
        atoms, resids = backbone_torsions(system, self.select)
        flat = atoms.ravel()
        points = points_of(system, [flat[k:k + 1] for k in range(len(flat))], None, True)
        quadruples = np.arange(len(flat)).reshape(-1, 4)
        residue = {"residue": (resids, "")}
        return Measurement(partial(torsion_vectors, points, quadruples), {
            "": OfMean(partial(_spread, None), "degree", {"torsion": (np.array(["phi", "psi"]), ""), **residue},
                       bounds=(0.0, None)),
            "phi": OfMean(partial(_spread, 0), "degree", residue, bounds=(0.0, None)),
            "psi": OfMean(partial(_spread, 1), "degree", residue, bounds=(0.0, None))})


def _spread(which: int | None, mean: np.ndarray) -> np.ndarray:
    """Of mean vectors (2 residues, 2), phi and psi in turn."""
    length = np.hypot(mean[:, 0], mean[:, 1]).reshape(-1, 2).T
    with np.errstate(divide="ignore"):
        spread = DEGREES * np.sqrt(np.maximum(-2 * np.log(length), 0.0))
    return spread if which is None else spread[which]
