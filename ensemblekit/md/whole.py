"""Molecules that the periodic box has cut, made whole along their bonds."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ensemblekit.averaging.rows import Rows, rows_of
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.md.topology import Topology
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import Array, Block

LEAST, MOST = -50, 50
"""The largest coordinate lies in 2**LEAST ... 2**MOST (1e-15 ... 1e15): squares of such are numbers in float32 too."""


def frames_of(positions: Array) -> Rows:
    """Positions (n, atoms, 3) as the kernels read them: float32 or float64, in place where that can be."""
    x = as_array(positions, "positions")
    if x.ndim != 3 or x.shape[2] != 3:
        raise InputError(f"positions are (frames, atoms, 3); got shape {x.shape}")
    rows = rows_of(x)
    return rows if rows.flat.dtype in (np.float32, np.float64) else rows_of(x.astype(np.float64))


def positions_of(block: Block) -> np.ndarray:
    """The positions of a block, (n, atoms, 3).

    Raises InputError where they are so large or small that distances would be infinite or 0 in float32. All frames are
    looked at where they are float64, else the first of the block.
    """
    x = block.fields["position"]
    check_range(x if x.dtype.itemsize > 4 else x[:1], block.start)
    return x


def check_range(x: np.ndarray, frame: int) -> None:
    """InputError where positions, those of a frame or of a few from it, are beyond what distances are computed for."""
    if x.size and 2.0**LEAST <= max(float(x.max()), -float(x.min())) < 2.0**(MOST - 1):      # false for NaN: looked at below
        return
    e = power_of_two(x, always=True)
    if not LEAST <= e <= MOST:
        raise InputError(f"the coordinates from frame {frame} on are as large as {ldexp(0.75, e):.0e}; distances are computed "
                         "for coordinates of 1e-15 to 1e15. Give them in angstrom (or any unit of that size)")


class AsStored:
    """The positions of the block as they are, without a copy."""

    def __init__(self, atoms: np.ndarray):
        self.atoms = np.ascontiguousarray(atoms, dtype=np.int64)

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        return positions_of(block), self.atoms


class _Last(threading.local):
    """The positions that a thread made whole last, and what they were made of."""

    of: np.ndarray | None = None
    made: tuple[np.ndarray, np.ndarray]


class MadeWhole:
    """The positions of the selected atoms, every molecule in one piece: each atom in the image next to the one it is
    bonded to, walking from the first selected atom of a molecule. Molecules stay where their first atom is; those that
    `ties` (pairs of atoms, as bonds) lead to follow the first one of their complex."""

    def __init__(self, atoms: np.ndarray, topology: Topology, ties: np.ndarray | None = None):
        self.ties = np.zeros((0, 2), np.int64) if ties is None else ties
        wanted = np.concatenate([atoms, self.ties.ravel()])
        single, index = np.unique(wanted, return_inverse=True)      # an atom may be asked for twice: in two groups
        self.index = index[:len(atoms)]
        self._ends = index[len(atoms):].reshape(-1, 2)
        chosen = np.unique(atoms)
        self.walk, self.parent, self.place = walks(single, topology, chosen, self.ties)
        fragments = topology.fragments
        assert fragments is not None
        self.anchors = chosen[np.unique(fragments[chosen], return_index=True)[1]]
        self._anchors = np.searchsorted(single, self.anchors)
        self.atoms, self.many = np.ascontiguousarray(atoms, dtype=np.int64), len(single)
        self._last = _Last()

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        position = positions_of(block)
        last = self._last
        if last.of is not position:       # observables of one selection share the work
            last.of, last.made = position, self._made(position, block)
        return last.made

    def ends(self, positions: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """Where the ends of the ties are, (n, ties, 2, 3), of what a call gave for a block whose positions are `raw`."""
        return np.asarray(positions[:, self.ties if positions is raw else self._ends], np.float64)

    def anchored(self, whole: np.ndarray) -> np.ndarray:
        """Where the first atom of each molecule (`anchors`) was put, (n, molecules, 3)."""
        return whole[:, self._anchors]

    def _made(self, position: np.ndarray, block: Block) -> tuple[np.ndarray, np.ndarray]:
        from ensemblekit.md.kernels_whole import make_whole, unbroken

        if unbroken(position, block.fields["box"], self.walk, self.parent):
            return position, self.atoms         # nothing is to be mended, nor copied
        whole = np.empty((len(position), self.many, 3), np.float32)
        bad = make_whole(position, block.fields["box"], self.walk, self.parent, self.place, whole)
        if bad >= 0:
            raise InputError(f"the box of frame {block.start + bad} has no volume: {block.fields['box'][bad].tolist()}")
        return whole, self.index

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_last"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._last = _Last()


def walks(atoms: np.ndarray, topology: Topology, chosen: np.ndarray, ties: np.ndarray
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How to walk along bonds and ties to these atoms: (walk, parent, place) as `make_whole` takes them.

    A molecule, or what is tied to it, begins at its first atom among the `chosen` ones (some of `atoms`, rising).
    """
    from ensemblekit.md.kernels_whole import spread, upwards

    bonds, fragments, n = topology.ties, topology.fragments, len(topology)
    assert bonds is not None
    assert fragments is not None
    if len(ties):
        bonds, fragments = np.concatenate([bonds, ties]), joined(fragments, ties)
    ends = np.concatenate([bonds, bonds[:, ::-1]])
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    begin = np.searchsorted(ends[:, 0], np.arange(n + 1))
    wanted = np.sort(np.asarray(atoms, np.int64))
    roots = chosen[np.unique(fragments[chosen], return_index=True)[1]]
    walk, before = np.empty(n, np.int64), np.full(n, -1, np.int64)
    walk = walk[:spread(roots, begin, np.ascontiguousarray(ends[:, 1]), walk, before)]
    needed = np.zeros(n, bool)
    needed[wanted] = True
    upwards(walk, before, needed)
    walk = walk[needed[walk]]
    at = np.full(n + 1, -1, np.int64)       # the last one: where -1 looks
    at[walk] = np.arange(len(walk))
    place_of = np.full(n, -1, np.int64)
    place_of[atoms] = np.arange(len(atoms))
    return walk, at[before[walk]], place_of[walk]


def joined(labels: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Labels of molecules with those that are tied under one."""
    labels = labels.copy()
    for a, b in ties:
        labels[labels == labels[b]] = labels[a]
    return labels


def unbonded(n_atoms: int) -> InputError:
    """The refusal where a box may have cut molecules and no bonds say how they belong together."""
    return InputError(
        f"the frames have a periodic box and the topology no bonds, so the {n_atoms} selected atoms may lie in pieces on both "
        "sides of it. Read with a topology that has bonds (TPR, PSF, PRMTOP), or let them be guessed (guess_bonds=True in "
        "md.read or md.ingest), or unwrap the frames (transformations=[...]); where molecules are whole already, say so: "
        "whole=True")


__all__ = ["AsStored", "MadeWhole", "joined", "unbonded", "walks"]
