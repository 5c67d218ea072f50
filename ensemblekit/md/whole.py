"""Molecules that the periodic box has cut, made whole along their bonds."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.topology import Topology
from ensemblekit.source import Block


class Plain:
    """The positions of the block as they are, without a copy."""

    def __init__(self, atoms: np.ndarray):
        self.atoms = np.ascontiguousarray(atoms, dtype=np.int64)

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        return block.fields["position"], self.atoms


class Whole:
    """The positions of the selected atoms, every molecule in one piece: each atom in the image next to the one it is
    bonded to, walking from the first selected atom of a molecule. Molecules stay where their first atom is."""

    def __init__(self, atoms: np.ndarray, topology: Topology):
        self.walk, self.parent, self.place = walks(atoms, topology)
        self.index = np.arange(len(atoms))
        self._last = threading.local()

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        position = block.fields["position"]
        last = self._last
        if getattr(last, "of", None) is not position:       # observables of one selection share the work
            from ensemblekit.md.kernels_whole import make_whole

            made = np.empty((len(position), len(self.index), 3), np.float32)
            bad = make_whole(position, block.fields["box"], self.walk, self.parent, self.place, made)
            if bad >= 0:
                raise InputError(f"the box of frame {block.start + bad} has no volume: {block.fields['box'][bad].tolist()}")
            last.of, last.made = position, made
        return last.made, self.index

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_last"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._last = threading.local()


def walks(atoms: np.ndarray, topology: Topology) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How to walk along bonds to every selected atom: (walk, parent, place) as `make_whole` takes them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order

    bonds, fragments, n = topology.bonds, topology.fragments, len(topology)
    assert bonds is not None
    assert fragments is not None
    graph = coo_matrix((np.ones(2 * len(bonds), np.int8), (np.concatenate([bonds[:, 0], bonds[:, 1]]),
                                                            np.concatenate([bonds[:, 1], bonds[:, 0]]))), (n, n)).tocsr()
    place_of = np.full(n, -1, np.int64)
    place_of[atoms] = np.arange(len(atoms))
    order = np.argsort(fragments[atoms], kind="stable")
    mine = np.asarray(atoms)[order]
    counts = np.unique(fragments[mine], return_counts=True)[1]
    walk: list[np.ndarray] = []
    parent: list[np.ndarray] = []
    done, at = 0, 0
    for count in counts:
        group = mine[at:at + count]
        at += count
        if count == 1:
            path, before = group, np.array([-1])
        else:
            path, before = _tree(graph, int(group[0]), group, breadth_first_order)
        walk.append(path)
        parent.append(np.where(before >= 0, before + done, -1))
        done += len(path)
    steps = np.concatenate(walk)
    return steps, np.concatenate(parent), place_of[steps]


def _tree(graph: Any, root: int, wanted: np.ndarray, breadth_first_order: Any) -> tuple[np.ndarray, np.ndarray]:
    """Atoms on the shortest ways from the root to those wanted, and the place of each one's parent among them."""
    reached, before = breadth_first_order(graph, root, directed=False)
    needed = np.zeros(len(before), bool)
    needed[wanted] = True
    for atom in reached[::-1]:
        if needed[atom] and before[atom] >= 0:
            needed[before[atom]] = True
    path = reached[needed[reached]]
    at = np.full(len(before), -1, np.int64)
    at[path] = np.arange(len(path))
    parents = before[path]
    return path.astype(np.int64), np.where(parents >= 0, at[parents], -1)


def unbonded(n_atoms: int) -> InputError:
    """The refusal where a box may have cut molecules and no bonds say how they belong together."""
    return InputError(
        f"the frames have a periodic box and the topology no bonds, so the {n_atoms} selected atoms may lie in pieces on both "
        "sides of it. Read with a topology that has bonds (TPR, PSF, PRMTOP), or let them be guessed (guess_bonds=True in "
        "md.read or md.ingest), or unwrap the frames (transformations=[...]); where molecules are whole already, say so: "
        "whole=True")


__all__ = ["Plain", "Whole", "unbonded", "walks"]
