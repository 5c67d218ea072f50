"""What structural observables share: groups of atoms and their centres, references, boxes of a block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.files import check_input
from ensemblekit.foreign import HasAtoms
from ensemblekit.intake import as_array
from ensemblekit.md.system import AsStored, Gather, System
from ensemblekit.md.updating import VaryingPoints, varying_points
from ensemblekit.md.whole import frames_of
from ensemblekit.source import Block
from ensemblekit.source_cuts import WHOLE

POINT_BYTES = 1 << 20
"""Centres are made for so many frames at a time that they stay in the cache."""
NO_BOX = np.zeros((0, 3, 3))
TILE = 64


def boxes_of(block: Block, periodic: bool) -> np.ndarray:
    """Cell vectors (n, 3, 3) of a block, or none, (0, 3, 3)."""
    box = block.fields.get("box") if periodic else None
    return NO_BOX if box is None else np.ascontiguousarray(box, np.float64)


@dataclass(frozen=True, eq=False)
class Points:
    """Centres of groups of atoms of each frame; a group of one atom is that atom."""

    gather: Gather
    offsets: np.ndarray
    """(groups + 1,): group g is atoms offsets[g] to offsets[g + 1] of the gathered ones."""
    shares: np.ndarray
    """Weights of the gathered atoms, which add up to 1 in each group."""
    periodic: bool
    """Whether boxes come along, for the nearest image."""

    def parts(self, block: Block) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(rows, points (rows, groups, 3) float64, boxes (rows, 3, 3) or none) of the block, some frames at a time."""
        from ensemblekit.md.kernels_geometry import centres

        positions, index = self.gather(block)
        boxes = boxes_of(block, self.periodic)
        groups = len(self.offsets) - 1
        step = max(1, POINT_BYTES // (24 * groups))
        for a in range(0, len(positions), step):
            rows = frames_of(positions[a:a + step])
            points = np.empty((rows.n, groups, 3))
            centres(*rows, index, self.offsets, self.shares, points)
            yield slice(a, a + rows.n), points, boxes[a:a + step]


def points_of(system: System, groups: Sequence[np.ndarray], weights: str | None, periodic: bool,
              together: Sequence[np.ndarray] | None = None) -> Points:
    """The centres of these groups of atoms: of mass, or (`weights` None) plain ones.

    Molecules of a group are put together; or those of each selection in `together`.
    """
    check_weights_word(weights)
    atoms = np.concatenate(groups)
    offsets = np.concatenate([[0], np.cumsum([len(group) for group in groups])]).astype(np.int64)
    single = all(len(group) == 1 for group in groups)
    if single or weights is None:       # one atom has a centre without a mass
        mass = np.ones(len(atoms))
    else:
        mass = system.masses(atoms)
    totals = np.add.reduceat(mass, offsets[:-1])
    if not (totals > 0).all():
        raise InputError("a group of atoms has no mass, so it has no centre of mass; pass weights=None")
    shares = mass / np.repeat(totals, np.diff(offsets))
    nearest = periodic and system.boxed
    if single and together is None and system.topology.bonds is None:
        return Points(AsStored(atoms), offsets, shares, nearest)       # atoms as they lie, of which nothing is to be made whole
    if system.boxed and not (periodic or together or system.whole or system.topology.bonds is not None):
        return Points(system.in_place(atoms), offsets, shares, nearest)
    gather = AsStored(atoms) if single and nearest else system.assembled(atoms, together or groups)
    return Points(gather, offsets, shares, nearest)


def points_for(system: System, selects: Sequence[str], weights: str | None, periodic: bool,
               updating: bool = False) -> Points | VaryingPoints:
    """The centres of these selections, chosen once or (`updating`) in every frame."""
    if updating:
        check_weights_word(weights)
        return varying_points(system, selects, weights, periodic)
    return points_of(system, [system.select(select) for select in selects], weights, periodic)


def check_weights_word(weights: object) -> None:
    """Refuse what is neither "mass" nor None."""
    if not (weights is None or (isinstance(weights, str) and weights == "mass")):
        raise InputError(f'weights is "mass", or None for all atoms alike; got {weights!r}. Weights of frames are '
                         "frame_weights= of md.average")


def shares_by(system: System, atoms: np.ndarray, weights: str | None) -> np.ndarray:
    """Weights of atoms that add up to 1: by mass, or (None) all alike."""
    check_weights_word(weights)
    mass = np.ones(len(atoms)) if weights is None else system.masses(atoms)
    return mass / mass.sum()


def one_frame(system: System, k: int) -> Block:
    """Frame k of the first run as a block of one."""
    names = [name for name in ("position", "box") if name in system.source.fields]
    if k < 0:
        k += (system.source.lengths or (0,))[0]
    if k >= 0:
        for piece in system.source.window(k, k + 1).pieces(names, "time", False, 1):
            for block in piece.blocks():
                if len(block):
                    fields = {name: np.array(block.fields[name][:1]) for name in names}
                    return Block(fields, 0, WHOLE, None, None)
    raise InputError(f"there is no frame {k}; the frames to average are {system.n_frames}")


def gathered(gather: Gather, block: Block) -> np.ndarray:
    """Positions (atoms, 3) float64 of the first frame of a block, whole."""
    positions, index = gather(block)
    return np.asarray(positions[0][index], np.float64)


def reference_positions(system: System, reference: object, select: str, atoms: np.ndarray,
                        as_it_is: bool = False) -> np.ndarray:
    """Positions (atoms, 3) to compare with, in angstrom.

    reference: None for the first frame; a number for that frame; positions of the selected atoms or of all; the path of
    a structure, a Universe or an AtomGroup, of which `select` chooses as many atoms. as_it_is: a frame's molecules need
    not be whole.
    """
    if reference is None or isinstance(reference, int | np.integer):
        return gathered(AsStored(atoms) if as_it_is else system.assembled(atoms),
                        one_frame(system, 0 if reference is None else int(reference)))
    if isinstance(reference, str | os.PathLike | HasAtoms):
        positions = _of_structure(reference, select, len(atoms))
    else:
        positions = as_array(reference, "the reference", kinds="biuf", dtype=np.float64, named_axes=True)
        if positions.ndim == 2 and len(positions) == len(system.topology) != len(atoms):
            positions = positions[atoms]
    if positions.shape != (len(atoms), 3):
        raise InputError(f"the reference has positions of shape {positions.shape}; the selection {select!r} has {len(atoms)} "
                         f"atoms, so ({len(atoms)}, 3) is wanted")
    if not np.isfinite(positions).all():
        raise InputError("the reference holds NaN or infinity")
    return np.ascontiguousarray(positions)


def _of_structure(reference: Any, select: str, n: int) -> np.ndarray:
    from ensemblekit.md.topology import mdanalysis

    with mdanalysis() as mda:
        whole = reference
        if isinstance(reference, str | os.PathLike):
            path = os.fspath(reference)
            check_input(path)
            whole = mda.Universe(path)
        chosen = whole.atoms.select_atoms(select)
        if len(chosen) != n and len(whole.atoms) == n:      # it holds just these atoms, perhaps under other names
            chosen = whole.atoms
        if len(chosen) != n:
            raise InputError(f"the selection {select!r} has {n} atoms in the trajectory and {len(chosen)} in the reference; "
                             "both must hold the same atoms in the same order")
        return np.array(chosen.positions, np.float64)


def residues_of(system: System, atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which residue each atom belongs to, counted from 0 in the order of the topology; and their residue numbers."""
    topology = system.topology
    residues, which = np.unique(topology.residue_of[atoms], return_inverse=True)
    first = np.zeros(len(residues), np.int64)
    first[which[::-1]] = atoms[::-1]
    return which, topology.resids[first]


def triangle(n: int, above: int) -> np.ndarray:
    """Flat places in an n x n map of its upper triangle row by row, from `above` its diagonal on."""
    return np.concatenate([np.arange(i * n + i + above, (i + 1) * n) for i in range(n)])


def square(n: int, above: int, values: np.ndarray, other: float, elements: np.ndarray | None) -> np.ndarray:
    """A symmetric map (n, n) of its upper triangle, row by row from `above` its diagonal on, and `other` where there is none.

    elements: places in the triangle that the values are of, `other` being everywhere else; None: all of them.
    """
    full = np.zeros((n, n)) if other == 0 else np.full((n, n), other)
    lengths = np.maximum(n - above - np.arange(n), 0)
    begin = np.concatenate([[0], np.cumsum(lengths)])
    if elements is not None:
        rows: np.ndarray = np.searchsorted(begin, elements, side="right") - 1
        columns = elements - begin[rows] + rows + above
        full[rows, columns] = values
        full[columns, rows] = values
        return full
    for i in range(n):
        full[i, i + above:] = values[begin[i]:begin[i + 1]]
    for a in range(0, n, TILE):         # mirrored tile by tile, which stay in the cache
        b = min(a + TILE, n)
        full[b:, a:b] = full[a:b, b:].T
        lower, left = np.tril_indices(b - a, -1)
        full[a + lower, a + left] = full[a + left, a + lower]
    return full
