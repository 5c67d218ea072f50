"""Which atoms belong together, and which are taken to move on their own."""

from __future__ import annotations

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.topology import Topology


def residues_of(topology: Topology) -> np.ndarray:
    """(atoms,) the residue of each atom, counted along the file: numbers of residues may repeat, these do not."""
    return np.asarray(topology.residue_of, np.int64)


def molecules_of(topology: Topology) -> np.ndarray:
    """(atoms,) the molecule of each atom, the atoms that bonds connect.

    Raises InputError where no bonds are known.
    """
    fragments = topology.fragments
    if fragments is None:
        raise InputError("molecules are what bonds connect, and this topology has no bonds; read with one that does (TPR, PSF, "
                         "PRMTOP), let them be guessed (guess_bonds=True in md.read or md.ingest), or work by residue")
    return np.asarray(fragments, np.int64)
