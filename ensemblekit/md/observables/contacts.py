"""Contacts between atoms: how many, between which residues, and the fraction of native ones."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np

from ensemblekit.averaging.observed import in_places
from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Mean, Measurement, SameAtoms
from ensemblekit.md.observables.groups import (
    NO_BOX,
    Points,
    boxes_of,
    one_frame,
    points_of,
    reference_positions,
    residues_of,
    square,
    triangle,
)
from ensemblekit.md.system import AsStored, Gather, System
from ensemblekit.md.updating import Updating, updating_selection
from ensemblekit.md.whole import frames_of
from ensemblekit.source import Block

HEAVY = "protein and not name H* 1H* 2H* 3H*"
"""By name, as many topologies know no elements."""
MOST_PAIRS = 20_000_000
MOST_CELLS = 10_000_000
"""Of a map."""
FEW_PAIRS = 2_000
"""Below, all pairs are looked at: cell lists cost more than they save."""


@dataclass(frozen=True)
class Contacts:
    """Number of pairs of atoms within `radius`, one of each selection (or both of one), each pair once.

    To the nearest image where the frames have a box. The boundary counts as a contact.
    """

    select_a: str
    select_b: str | None = None
    """None: pairs within `select_a`."""
    radius: float = 4.5
    """In angstrom."""
    periodic: bool = True
    """To the nearest image where the frames have a box."""
    updating: bool = False
    """Choose the atoms anew in every frame."""

    def prepare(self, system: System) -> Measurement:
        _check_radius(self.radius)
        periodic = self.periodic and system.boxed
        second = self.select_a if self.select_b is None else self.select_b
        if self.updating:
            a = updating_selection(system, self.select_a, periodic, apart=True)
            b = a if second == self.select_a else updating_selection(system, second, periodic, apart=True)
            return Measurement(partial(_varying_contacts, a, b, self.radius, periodic), Mean(bounds=(0.0, None)))
        atoms_a, atoms_b = system.select(self.select_a), system.select(second)
        every = np.union1d(atoms_a, atoms_b)
        gather = AsStored(every) if periodic else system.in_place(every)
        return Measurement(partial(_contacts, gather, np.searchsorted(every, atoms_a), np.searchsorted(every, atoms_b),
                                   self.radius, periodic), Mean(bounds=(0.0, None)))


@dataclass(frozen=True)
class ContactMap(SameAtoms):
    """How often residues touch: the share of frames in which any two of their selected atoms lie within `radius`.

    An array (residues of a, residues of b) between 0 and 1, each element with its interval.
    """

    select_a: str = HEAVY
    select_b: str | None = None
    """None: those of `select_a`."""
    radius: float = 4.5
    """In angstrom."""
    periodic: bool = True
    """To the nearest image where the frames have a box."""

    _fixed = "its axes are the residues of a selection that stays; md.Contacts counts those of one that varies"

    def prepare(self, system: System) -> Measurement:
        _check_radius(self.radius)
        a = system.select(self.select_a)
        b = a if self.select_b is None else system.select(self.select_b)
        row, resids_a = residues_of(system, a)
        column, resids_b = residues_of(system, b)
        if len(resids_a) * len(resids_b) > MOST_CELLS:
            raise InputError(f"a map of {len(resids_a)} x {len(resids_b)} residues is too large to average with errors; the "
                             f"most is {MOST_CELLS} pairs. Leave the solvent out, or name fewer residues")
        every = np.union1d(a, b)
        periodic = self.periodic and system.boxed
        gather = AsStored(every) if periodic else system.in_place(every)
        shape = (len(resids_a), len(resids_b))
        half = triangle(len(resids_a), 0) if a is b else None       # symmetric: one half is averaged
        cells = Mean("", {"residue": (resids_a, ""), "residue_b": (resids_b, "")}, (0.0, 1.0), nonzero=True,
                     arrange=partial(_oblong, shape) if half is None else partial(square, len(resids_a), 0))
        return Measurement(partial(_map, gather, np.searchsorted(every, a), np.searchsorted(every, b), row, column, shape, half,
                                   self.radius, periodic), cells)


@dataclass(frozen=True)
class NativeContacts(SameAtoms):
    """Fraction Q of the contacts of a reference that a frame has, between 0 and 1.

    The contacts are the pairs of atoms within `radius` in the reference, one of each selection, in residues further
    apart along the chain than `separation`. With ``method="soft"`` each counts 1 / (1 + exp(beta (r - lambda_ r0))),
    r0 its length in the reference (Best, Hummer & Eaton, PNAS 110, 17874, 2013; MDAnalysis' `soft_cut`, mdtraj's recipe);
    "hard" counts 1 where r <= r0, "radius" where r <= radius (MDAnalysis' `hard_cut` and `radius_cut`).
    """

    select_a: str = HEAVY
    select_b: str | None = None
    """None: pairs within `select_a`."""
    reference: Any = None
    """First frame; or a frame's number, a structure's path, a Universe or AtomGroup, positions of all atoms."""
    radius: float = 4.5
    """In angstrom."""
    method: str = "soft"
    """"soft", "hard" or "radius"."""
    beta: float = 5.0
    """Of "soft", per angstrom."""
    _: KW_ONLY
    lambda_: float = 1.8
    """Of "soft": how far a contact may stretch; 1.8 for all atoms, 1.5 for one bead a residue."""
    separation: int = 3
    """Residues of one chain must differ by more; 0 counts all residues but the atom's own, -1 those within a residue too."""
    periodic: bool = True
    """To the nearest image where the frames have a box."""

    def prepare(self, system: System) -> Measurement:
        _check_radius(self.radius)
        if self.method not in ("soft", "hard", "radius"):
            raise InputError(f'method is "soft", "hard" or "radius"; got {self.method!r}')
        if not self.beta > 0 or not self.lambda_ > 0:
            raise InputError(f"beta and lambda_ are numbers above 0; got {self.beta!r} and {self.lambda_!r}")
        a = system.select(self.select_a)
        same = self.select_b is None or self.select_b == self.select_a
        b = a if same else system.select(self.select_b or "")
        if len(a) * len(b) > MOST_PAIRS:
            raise InputError(f"{len(a)} x {len(b)} atoms are too many pairs to look for native contacts in; leave the "
                             "hydrogens and the solvent out")
        every = np.union1d(a, b)
        label = " or ".join({f"({self.select_a})", f"({self.select_b or self.select_a})"})
        periodic = self.periodic and system.boxed
        x = reference_positions(system, self.reference, self.select_a if same else label, every,
                                as_it_is=periodic or system.topology.bonds is None)
        at_a, at_b = np.searchsorted(every, a), np.searchsorted(every, b)
        pairs, lengths = self._contacts_of(system, x, every, at_a, at_b, periodic)
        points = points_of(system, [every[k:k + 1] for k in range(len(every))], None, periodic)
        if self.method == "radius":
            lengths = np.full(len(pairs), float(self.radius))
        weights = np.full(len(pairs), 1.0 / len(pairs))
        soft = self.method == "soft"
        return Measurement(partial(_native, points, pairs, weights, lengths, soft, float(self.beta),
                                   float(self.lambda_) if soft else 1.0), Mean(bounds=(0.0, 1.0)))

    def _contacts_of(self, system: System, x: np.ndarray, every: np.ndarray, a: np.ndarray, b: np.ndarray,
                     periodic: bool) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (p, 2) of the reference's contacts and their lengths (p,)."""
        from ensemblekit.md.kernels_geometry import distances

        box = None
        if periodic and (self.reference is None or isinstance(self.reference, int | np.integer)):
            box = np.asarray(one_frame(system, int(self.reference or 0)).fields["box"][0], np.float64)
        boxes = NO_BOX if box is None else box[None]
        topology = system.topology
        residue, resids, segids = topology.residue_of[every], topology.resids[every], topology.segids[every]
        _, segment = np.unique(segids.astype(str), return_inverse=True)
        in_a, in_b = np.zeros(len(every), bool), np.zeros(len(every), bool)
        in_a[a], in_b[b] = True, True
        kept, lengths = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
        for i in range(len(every) - 1):
            j = np.arange(i + 1, len(every))
            apart = (segment[j] != segment[i]) | (abs(resids[j] - resids[i]) > self.separation)
            apart &= (in_a[i] & in_b[j]) | (in_b[i] & in_a[j])
            if self.separation >= 0:
                apart &= residue[j] != residue[i]
            pairs = np.column_stack([np.full(int(apart.sum()), i), j[apart]])
            separations = np.empty((1, len(pairs)))
            distances(x[None], pairs, boxes, separations)
            close = separations[0] <= self.radius
            kept.append(pairs[close])
            lengths.append(separations[0][close])
        near = np.concatenate(lengths)
        if not len(near):
            raise InputError(f"the reference has no contacts within {self.radius} angstrom between residues more than "
                             f"{self.separation} apart; raise radius=, or lower separation=")
        return np.concatenate(kept), near


def _check_radius(radius: object) -> None:
    if not (isinstance(radius, int | float | np.number) and np.isfinite(radius) and radius > 0):
        raise InputError(f"radius is a length above 0 in angstrom; got {radius!r}")


def count_contacts(positions: np.ndarray, a: np.ndarray, b: np.ndarray, radius: float, boxes: np.ndarray) -> np.ndarray:
    """Pairs of different atoms within `radius` in each frame (n,), one of a and one of b, each pair once."""
    from ensemblekit.md.kernels_geometry import contacts

    rows = frames_of(positions)
    out = np.zeros(rows.n)
    both = np.intersect1d(a, b)
    only_a, only_b = np.setdiff1d(a, both), np.setdiff1d(b, both)
    for first, second, same in ((only_a, b, False), (both, only_b, False), (both, both, True)):
        if not len(first) or not len(second):
            continue
        if len(first) * len(second) < FEW_PAIRS or (len(boxes) and not radius < _reach(boxes)):
            contacts(*rows, first, second, same, radius, boxes, out)
        else:
            out += _by_cells(positions, first, second, same, radius, boxes)
    return out


def _reach(boxes: np.ndarray) -> float:
    """Half the smallest height of all cells: up to there no pair has two images. 0 where a cell has no volume."""
    volumes = np.abs(np.linalg.det(boxes))
    faces = np.linalg.norm(np.cross(boxes[:, [1, 2, 0]], boxes[:, [2, 0, 1]]), axis=2)
    if not (volumes > 0).all():
        return 0.0
    return float((volumes[:, None] / faces).min() / 2)


def _by_cells(positions: np.ndarray, a: np.ndarray, b: np.ndarray, same: bool, radius: float,
              boxes: np.ndarray) -> np.ndarray:
    """As the kernel `contacts`, by cell lists: the cost grows with the atoms, not with their pairs."""
    from ensemblekit.md.kernels_rdf import pair_counts

    x = np.asarray(positions)
    edges = np.array([0.0, np.nextafter(float(radius), np.inf)])
    counts, volume = np.zeros((len(x), 2)), np.zeros(1)
    for t in range(len(x)):
        one = slice(t, t + 1)
        if pair_counts(x[one], boxes[one], a, b, a, b, same, edges, counts[one], volume) >= 0:
            counts[t] = np.nan      # a coordinate that is not a number: this frame has no count
    return counts[:, 1] / 2 if same else counts[:, 1]


def _contacts(gather: Gather, a: np.ndarray, b: np.ndarray, radius: float, periodic: bool, block: Block) -> np.ndarray:
    positions, index = gather(block)
    return count_contacts(positions, index[a], index[b], radius, boxes_of(block, periodic))


def _varying_contacts(a: Updating, b: Updating, radius: float, periodic: bool, block: Block) -> np.ndarray:
    positions, first, begin = a(block)
    second, begin_b = (first, begin) if b is a else b.choose(positions, block.fields.get("box"))
    boxes = boxes_of(block, periodic)
    counts = [count_contacts(positions[t:t + 1], first[begin[t]:begin[t + 1]], second[begin_b[t]:begin_b[t + 1]], radius,
                             boxes[t:t + 1]) for t in range(len(positions))]
    return np.concatenate(counts) if counts else np.zeros(0)


def _map(gather: Gather, a: np.ndarray, b: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, int],
         half: np.ndarray | None, radius: float, periodic: bool, block: Block) -> np.ndarray:
    positions, index = gather(block)
    maps = contact_maps(positions, index[a], index[b], row, column, shape, radius=radius, boxes=boxes_of(block, periodic))
    maps = maps.reshape(len(maps), -1)
    return maps if half is None else np.take(maps, half, axis=1)


def _oblong(shape: tuple[int, int], values: np.ndarray, other: float, elements: np.ndarray) -> np.ndarray:
    return in_places(np.append(values, other), elements, shape)


def contact_maps(positions: np.ndarray, a: np.ndarray, b: np.ndarray, row: np.ndarray, column: np.ndarray,
                 shape: tuple[int, int], *, radius: float, boxes: np.ndarray) -> np.ndarray:
    """True in (n, rows, columns) where an atom of a in group `row` lies within `radius` of another of b in group `column`.

    NaN, and numbers else, where a frame has a coordinate that is none.
    """
    from ensemblekit.md.kernels_contacts import touching
    from ensemblekit.md.kernels_geometry import contact_map

    rows = frames_of(positions)
    out = np.zeros((rows.n, *shape), np.uint8)
    x = np.asarray(positions)
    sound = np.isfinite(x[:, np.union1d(a, b)]).all(axis=(1, 2))
    if len(a) * len(b) < FEW_PAIRS or (len(boxes) and not radius < _reach(boxes)):
        contact_map(*rows, a, b, row, column, radius, boxes, out)
    else:
        for t in np.flatnonzero(sound):
            touching(x[t:t + 1], boxes[t:t + 1], a, b, row, column, float(radius), out[t:t + 1])
    if sound.all():
        return out.view(bool)
    out = out.astype(np.float32)
    out[~sound] = np.nan
    return out


def _native(points: Points, pairs: np.ndarray, weights: np.ndarray, lengths: np.ndarray, soft: bool, beta: float,
            stretch: float, block: Block) -> np.ndarray:
    from ensemblekit.md.kernels_geometry import native_fraction

    out = np.empty(len(block))
    for rows, x, boxes in points.parts(block):
        native_fraction(x, pairs, weights, lengths, boxes, soft, beta, stretch, out[rows])
    return out
