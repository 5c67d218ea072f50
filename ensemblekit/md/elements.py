"""Which element an atom is of, as far as its topology leaves no doubt: a bead's name begins with a letter, too."""

from __future__ import annotations

import re

import numpy as np

from ensemblekit.md.topology import Topology

MASSES = {"H": 1.008, "Li": 6.94, "B": 10.81, "C": 12.011, "N": 14.007, "O": 15.999, "F": 18.998, "Na": 22.99, "Mg": 24.305,
          "Si": 28.085, "P": 30.974, "S": 32.06, "Cl": 35.45, "K": 39.098, "Ca": 40.078, "Mn": 54.938, "Fe": 55.845,
          "Co": 58.933, "Cu": 63.546, "Zn": 65.38, "Se": 78.971, "Br": 79.904, "I": 126.904}
"""In u."""
NEAR = 0.1
"""In u, by which the mass of an element may be rounded; a mass between is that of a bead, or was moved to hydrogens."""
BACKBONE = frozenset(("CA", "C", "N", "O", "OW", "OH2", "CH3", "P", "C1'", "C1*"))
"""Names of which every residue of a protein, a nucleic acid or water has one that is all of atoms."""
BEADS = re.compile(r"BB\d?|SC\d|ST\d|W\w*")
"""Names of Martini's beads."""
IONS = {"NA": "Na", "NA+": "Na", "SOD": "Na", "CL": "Cl", "CL-": "Cl", "CLA": "Cl", "K": "K", "K+": "K", "POT": "K", "MG": "Mg",
        "MG2": "Mg", "ZN": "Zn", "ZN2": "Zn", "LI": "Li", "LIT": "Li"}
"""Residues of one atom."""
SMALL_MOLECULE = re.compile(r"(CL|BR|[CNOSPFH])\d*[A-Z]?'{0,2}")


def elements_of(topology: Topology, atoms: np.ndarray) -> list[str]:
    """The symbol of each atom, "" where it would be a guess.

    As the topology has it; else by a mass that it has (not one guessed from the name) of an element that the name begins
    with; else by the name, in residues of proteins, nucleic acids and water, in ions, and in small molecules with
    hydrogens.
    """
    known = topology.atoms.get("elements") if "elements" not in topology.guessed else None
    masses = topology.masses if "masses" not in topology.guessed else np.full(len(topology), np.nan)
    names, resnames, residue_of = topology.names, topology.resnames, topology.residue_of
    atomistic = _atomistic(topology, np.unique(residue_of[atoms]))
    symbols = []
    for atom in atoms:
        symbol = str(known[atom]).strip().capitalize() if known is not None else ""
        symbols.append(symbol or _by_mass(str(names[atom]), float(masses[atom]))
                       or _by_name(str(names[atom]).upper(), str(resnames[atom]).upper(), bool(atomistic[residue_of[atom]])))
    return symbols


def _atomistic(topology: Topology, residues: np.ndarray) -> np.ndarray:
    """Which residues (all,) have names of atoms alone, hydrogens among them, or are of those with standard names."""
    from MDAnalysis.core.selection import NucleicSelection, ProteinSelection, WaterSelection

    standard = ProteinSelection.prot_res | NucleicSelection.nucl_res | WaterSelection.water_res
    out = np.zeros(len(topology.segment_of), bool)
    order = np.argsort(topology.residue_of, kind="stable")
    resnames = np.array([str(name).upper() for name in topology.resnames])
    edges = np.searchsorted(topology.residue_of[order], np.arange(len(out) + 1))
    for residue in residues:
        members = order[edges[residue]:edges[residue + 1]]
        names = [str(name).upper() for name in topology.names[members]]
        if resnames[members[0]] in standard:
            out[residue] = not BACKBONE.isdisjoint(names) and not any(map(BEADS.fullmatch, names))
        else:
            hydrogens = any(name.lstrip("0123456789").startswith("H") for name in names)
            out[residue] = hydrogens and all(SMALL_MOLECULE.fullmatch(name.lstrip("0123456789")) for name in names)
    return out


def _by_mass(name: str, mass: float) -> str:
    first = name.lstrip("0123456789").upper()
    if BEADS.fullmatch(first):
        return ""
    near = [symbol for symbol, known in MASSES.items() if abs(known - mass) <= (0.015 if symbol == "N" else NEAR)]
    return next((symbol for symbol in near if first.startswith(symbol.upper())), "")


def _by_name(name: str, residue: str, atomistic: bool) -> str:
    if residue in IONS:
        return IONS[residue]
    if not atomistic:
        return ""
    first = name.lstrip("0123456789")
    if first.startswith(("CL", "BR")) or (residue == "MSE" and first.startswith("SE")):
        return first[:2].capitalize()
    return first[:1] if first[:1] in "HCNOPSF" else ""


__all__ = ["elements_of"]
