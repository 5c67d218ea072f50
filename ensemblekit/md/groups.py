"""Which atoms belong together: residues and molecules as one number an atom."""

from __future__ import annotations

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.topology import Topology


def residues_of(topology: Topology) -> np.ndarray:
    """(atoms,) the residue of each atom, counted from 0 along the file: numbers of residues may repeat, these do not."""
    keys = [np.asarray(topology.segids, str), np.asarray(topology.resids), np.asarray(topology.resnames, str)]
    new = np.zeros(len(keys[0]), bool)
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.cumsum(new)


def bonds_of(topology: Topology) -> np.ndarray | None:
    """(bonds, 2) indices of bonded atoms; None where they are not known."""
    bonds = getattr(topology, "bonds", None)
    return None if bonds is None or not len(bonds) else np.asarray(bonds, np.int64).reshape(-1, 2)


def molecules_of(topology: Topology) -> np.ndarray:
    """(atoms,) the molecule of each atom, the atoms that bonds connect, from 0.

    Raises InputError where no bonds are known.
    """
    bonds = bonds_of(topology)
    if bonds is None:
        raise InputError("molecules are what bonds connect, and this topology has no bonds; read with one that does (TPR, PSF, "
                         "PRMTOP), let MDAnalysis guess them (Universe(..., guess_bonds=True)), or work by residue")
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(topology.names)
    graph = coo_array((np.ones(len(bonds), np.int8), (bonds[:, 0], bonds[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)
