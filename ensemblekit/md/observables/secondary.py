"""Secondary structure, by MDAnalysis' DSSP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError
from ensemblekit.md.observables.base import Mean, Measurement, OfMean, SameAtoms
from ensemblekit.md.system import Gather, System
from ensemblekit.md.topology import mdanalysis
from ensemblekit.source import Block

STATES = np.array(["loop", "helix", "strand"])
BACKBONE = (("N",), ("CA",), ("C",), ("O", "O1", "OT1", "OC1", "OXT"))
"""Names of the atoms DSSP looks at."""


@dataclass(frozen=True)
class SecondaryStructure(SameAtoms):
    """How often each residue is loop, helix or strand: an array (residues, 3) of shares of the frames.

    Kabsch & Sander (Biopolymers 22, 2577, 1983) by MDAnalysis' DSSP, hydrogens placed on the backbone. Residues without a
    CA (caps) are left out, those with one must have N, C and O too. Further: `content`, the shares of all residues
    together, (3,), with their series (n, 3).
    """

    select: str = "protein"

    def prepare(self, system: System) -> Measurement:
        gather, donors, resids = _backbone(system, self.select)
        state = {"state": (STATES, "")}
        return Measurement(partial(_assigned, gather, donors), {
            "": Mean("", {"residue": (resids, ""), **state}, (0.0, 1.0)),
            "content": OfMean(_content, "", state, _contents, (0.0, 1.0))})


@dataclass(frozen=True)
class HelixContent(SameAtoms):
    """Share of the residues that are helix (or strand, or loop) in each frame, by MDAnalysis' DSSP."""

    select: str = "protein"
    state: str = "helix"
    """"helix", "strand" or "loop"."""

    def prepare(self, system: System) -> Measurement:
        if self.state not in STATES:
            raise InputError(f'state is "helix", "strand" or "loop"; got {self.state!r}')
        gather, donors, _ = _backbone(system, self.select)
        return Measurement(partial(_share, gather, donors, int(np.flatnonzero(self.state == STATES)[0])),
                           Mean(bounds=(0.0, 1.0)))


def _backbone(system: System, select: str) -> tuple[Gather, np.ndarray, np.ndarray]:
    """What gathers N, CA, C, O of each residue; which residues have an amide hydrogen; their numbers."""
    with mdanalysis():
        try:
            import MDAnalysis.analysis.dssp  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("MDAnalysis>=2.8", "md") from error
    topology = system.topology
    atoms = system.select(select)
    residues = np.unique(topology.residue_of[atoms[topology.names[atoms] == "CA"]])
    atoms = atoms[np.isin(topology.residue_of[atoms], residues)]
    if not len(residues):
        raise InputError(f"no residue of {select!r} has a CA: secondary structure is that of proteins")
    table = np.full((len(residues), 4), -1)
    place = {name: k for k, names in enumerate(BACKBONE) for name in names}
    for atom in atoms:
        k = place.get(str(topology.names[atom]))
        row = np.searchsorted(residues, topology.residue_of[atom])
        if k is not None and table[row, k] < 0:
            table[row, k] = atom
    whole = (table >= 0).all(1)
    if not whole.all():
        lost = np.flatnonzero(~whole)[0]
        first = atoms[topology.residue_of[atoms] == residues[lost]][0]
        raise InputError(f"{int((~whole).sum())} residues lack one of N, CA, C, O, the first being "
                         f"{topology.resnames[first]} {topology.resids[first]}; choose residues that have them all")
    if len(residues) < 6:
        raise InputError(f"secondary structure needs 6 residues; {select!r} has {len(residues)}")
    alpha = table[:, 1]
    return system.gather(table.ravel()), topology.resnames[alpha] != "PRO", topology.resids[alpha]


def _assigned(gather: Gather, donors: np.ndarray, block: Block) -> np.ndarray:
    """Loop, helix, strand as ones and zeros: (n, residues, 3)."""
    import inspect

    from MDAnalysis.analysis.dssp import assign

    masked = {"donor_mask": donors} if "donor_mask" in inspect.signature(assign).parameters else {}     # from 2.10 on
    positions, index = gather(block)
    out = np.empty((len(block), len(donors), 3))
    for t in range(len(block)):
        x = np.asarray(positions[t][index], np.float64).reshape(-1, 4, 3)
        out[t] = assign(x, **masked) if np.isfinite(x).all() else np.nan
    return out


def _share(gather: Gather, donors: np.ndarray, state: int, block: Block) -> np.ndarray:
    return _assigned(gather, donors, block)[..., state].mean(1)


def _contents(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=1)


def _content(mean: np.ndarray) -> np.ndarray:
    return mean.mean(0)
