"""Places at which a field is asked for: atoms, the middle of a bond, centers, fixed points, points that go with a molecule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.estimate import Coords
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.md.observables.groups import Points, gathered, one_frame, points_of
from ensemblekit.md.superpose import superposed
from ensemblekit.md.system import Gather, System
from ensemblekit.md.whole import positions_of
from ensemblekit.source import Block, ReplicaSet

Vectors = Callable[[Block], np.ndarray]
"""Block -> (n, points, 3), angstrom: the points of each frame, or vectors (n, 3)."""
STRAY = 2.0
"""Angstrom that a molecule moves from the first frame to the last before fixed points are said to stay behind."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A place made ready for one system."""

    points: Vectors
    """Block -> (n, points, 3); in periodic boxes any image of each."""
    makers: Sequence[np.ndarray]
    """Of each point the atoms that make it, none of fixed points."""
    single: bool = False
    """One point by its nature, so that what is asked for at it has no axis of points."""
    coords: Coords = field(default_factory=dict)
    """Names the axis of points."""
    bond: Vectors | None = None
    """Block -> (n, 3), from one end to the other, where there are two."""
    on_atoms: bool = False
    """The points are the atoms that make them."""
    turned: Callable[[np.ndarray], Vectors] | None = None
    """A vector as it is in the first frame -> Block -> (n, 3), where the places know how their molecule has turned."""

    def __len__(self) -> int:
        return len(self.makers)


@runtime_checkable
class Place(Protocol):
    """What may stand for `at=`, besides a selection and an array of points."""

    def placed(self, system: System) -> Placed:
        """Atoms chosen and references made; InputError where the system lacks what is needed."""


@dataclass(frozen=True)
class Midpoint:
    """The middle between two atoms, nearest images of each other: a bond, which ``along="bond"`` leads along from a to b."""

    a: str
    b: str

    def placed(self, system: System) -> Placed:
        ends = [_one_atom(system, text, side) for text, side in ((self.a, "a"), (self.b, "b"))]
        if ends[0] == ends[1]:
            raise InputError(f"Midpoint({self.a!r}, {self.b!r}) are one and the same atom, number {ends[0][0]}")
        points = points_of(system, ends, None, True)
        return Placed(_Middle(points), [np.concatenate(ends)], True, bond=_Between(points))


@dataclass(frozen=True)
class Center:
    """The center of some atoms, their molecules made whole: of mass, or (weights=None) all atoms alike."""

    select: str
    weights: str | None = "mass"

    def placed(self, system: System) -> Placed:
        atoms = system.select(self.select)
        return Placed(_Centers(points_of(system, [atoms], self.weights, True)), [atoms], True)


@dataclass(frozen=True, eq=False)
class Attached:
    """Points that are given as they lie in the first frame and go with a molecule, as the selected atoms are superposed."""

    xyz: ArrayLike
    """(points, 3), angstrom."""
    select: str

    def placed(self, system: System) -> Placed:
        atoms = system.select(self.select)
        if len(atoms) < 3:
            raise InputError(f"Attached needs three atoms or more to know how it is turned; {self.select!r} has {len(atoms)}")
        xyz = _points(self.xyz)
        gather = system.gather(atoms)
        reference = gathered(gather, one_frame(system, 0))
        box = system.first_frame().box
        if box is not None:
            from ensemblekit.md.kernels_pbc import nearest_displacements

            center, moved = np.repeat(reference.mean(axis=0)[None], len(xyz), axis=0), np.empty_like(xyz)
            nearest_displacements(center, xyz, np.ascontiguousarray(box), moved)
            xyz = center + moved
        return Placed(_Carried(gather, reference, xyz), [np.zeros(0, np.int64)] * len(xyz), coords=_numbered(len(xyz)),
                      turned=partial(_Turned, gather, reference))


def placed(system: System, at: object) -> Placed:
    """The places that `at` stands for: a selection (each of its atoms), a Place, or an array of points."""
    if isinstance(at, str):
        atoms = system.select(at)
        return Placed(_Atoms(atoms), [atoms[k:k + 1] for k in range(len(atoms))], coords={"atom": (atoms, "")}, on_atoms=True)
    if isinstance(at, Place) and not isinstance(at, type):
        return at.placed(system)
    if at is None or isinstance(at, type | Mapping):
        raise InputError("a place is a selection (each of its atoms), md.Midpoint(a, b), md.Center(selection), "
                         f"md.Attached(xyz, selection), or an array of points (points, 3); got {at!r}")
    xyz = as_array(at, "points", kinds="biuf", dtype=np.float64)
    if xyz.ndim == 3:
        return _of_frames(system, xyz)
    xyz = _points(xyz)
    _note_moving(system, "the points stay where they are")
    return Placed(_Fixed(xyz), [np.zeros(0, np.int64)] * len(xyz), coords=_numbered(len(xyz)))


def direction(system: System, along: object, place: Placed) -> Vectors | None:
    """Block -> (n, 3) of what `along` stands for: None, "bond", a pair of selections, a vector."""
    if along is None:
        return None
    if isinstance(along, str):
        if along != "bond":
            raise InputError(f'along= is "bond", a pair of selections, a vector of three numbers or None; got {along!r}')
        if place.bond is None:
            raise InputError('along="bond" goes with md.Midpoint(a, b), which knows the two ends of one; along=(a, b) takes '
                             "two selections at any place")
        return place.bond
    if isinstance(along, tuple | list) and len(along) == 2 and all(isinstance(one, str) for one in along):
        atoms = [system.select(text) for text in along]
        return _Between(points_of(system, atoms, None, True))
    return _Constant(_vector(along, "along"))


def carried(system: System, vector: object, place: Placed, option: str) -> Vectors:
    """Block -> (n, 3) of a vector that belongs to the molecule at a place and is given as it is in the first frame.

    It turns with the selection of an Attached; at other places it stays, which the answer says where a solute tumbles.
    """
    first = _vector(vector, option)
    if place.turned is not None:
        return place.turned(first)
    _note_moving(system, f"the vector {option}= does not turn along")
    return _Constant(first)


def _vector(given: object, option: str) -> np.ndarray:
    vector = as_array(given, option, kinds="biuf", dtype=np.float64)
    if vector.shape != (3,) or not np.isfinite(vector).all() or not (vector**2).sum() > 0:
        raise InputError(f"{option}= is three finite numbers, not all 0; got {given!r}")
    return vector


def _one_atom(system: System, text: str, side: str) -> np.ndarray:
    if not isinstance(text, str):
        raise InputError(f"Midpoint takes two selections of one atom each; got {text!r} for {side}")
    atoms = system.select(text)
    if len(atoms) != 1:
        raise InputError(f"Midpoint takes two selections of one atom each; {side}, {text!r}, has {len(atoms)}. Of groups of "
                         "atoms md.Center is the middle")
    return atoms


def _points(xyz: ArrayLike) -> np.ndarray:
    points = as_array(xyz, "points", kinds="biuf", dtype=np.float64)
    if points.shape == (3,):
        points = points[None]
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise InputError(f"points are (points, 3) in angstrom, or (frames, points, 3); got shape {points.shape}")
    if not np.isfinite(points).all():
        raise InputError(f"points are finite; {int((~np.isfinite(points).all(axis=1)).sum())} of {len(points)} are not")
    return np.ascontiguousarray(points)


def _of_frames(system: System, xyz: np.ndarray) -> Placed:
    if isinstance(system.source, ReplicaSet):
        raise InputError("points of each frame, (frames, points, 3), go with one run; average replicas one by one")
    if xyz.shape[2] != 3 or not xyz.shape[1] or len(xyz) != system.n_frames:
        raise InputError(f"points of each frame are (frames, points, 3), and {system.n_frames} frames are averaged; got shape "
                         f"{xyz.shape}")
    if not np.isfinite(xyz).all():
        bad = int(np.argmax(~np.isfinite(xyz).all(axis=(1, 2))))
        raise InputError(f"points are finite; those of frame {bad} are not")
    return Placed(_OfFrames(np.ascontiguousarray(xyz)), [np.zeros(0, np.int64)] * xyz.shape[1], coords=_numbered(xyz.shape[1]))


def _note_moving(system: System, what: str) -> None:
    """Have the answer say where a solute moves away under points, or from vectors, that stay."""
    solute = np.flatnonzero(np.isin(system.topology.residue_of, _solute(system)))
    if system.n_frames < 2 or len(solute) < 3:
        return
    gather = system.gather(solute) if not system.boxed or system.whole or system.topology.bonds is not None else None
    if gather is None:
        return
    first, last = gathered(gather, one_frame(system, 0)), gathered(gather, one_frame(system, -1))
    away = float(np.sqrt(((last - first) ** 2).sum(axis=1).mean()))
    if away > STRAY:
        system.note(f"{what}, and the protein or nucleic acid has moved {away:.1f} angstrom between "
                    "the first frame and the last: md.Attached(xyz, selection) takes points and vectors along")


def _solute(system: System) -> np.ndarray:
    """Residues of proteins and nucleic acids."""
    try:
        return np.unique(system.topology.residue_of[system.topology.select("protein or nucleic")])
    except InputError:      # there is none
        return np.zeros(0, np.int64)


def _numbered(n: int) -> Coords:
    return {"point": (np.arange(n), "")}


@dataclass(frozen=True, eq=False)
class _Atoms:
    atoms: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        return np.asarray(positions_of(block)[:, self.atoms], np.float64)


@dataclass(frozen=True, eq=False)
class _Fixed:
    xyz: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        return np.broadcast_to(self.xyz, (len(block), *self.xyz.shape))


@dataclass(frozen=True, eq=False)
class _OfFrames:
    xyz: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        return self.xyz[block.start:block.start + len(block)]


@dataclass(frozen=True, eq=False)
class _Constant:
    vector: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        return np.broadcast_to(self.vector, (len(block), 3))


@dataclass(frozen=True, eq=False)
class _Centers:
    centers: Points

    def __call__(self, block: Block) -> np.ndarray:
        return np.concatenate([points for _, points, _ in self.centers.parts(block)])


@dataclass(frozen=True, eq=False)
class _Between:
    """From one center to the nearest image of the other."""

    ends: Points

    def __call__(self, block: Block) -> np.ndarray:
        return _ends(self.ends, block)[1]


@dataclass(frozen=True, eq=False)
class _Middle:
    ends: Points

    def __call__(self, block: Block) -> np.ndarray:
        start, way = _ends(self.ends, block)
        return (start + 0.5 * way)[:, None]


@dataclass(frozen=True, eq=False)
class _Carried:
    gather: Gather
    reference: np.ndarray
    xyz: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        positions, index = self.gather(block)
        body = np.concatenate([self.reference, self.xyz])[None]
        return np.stack([superposed(body, np.asarray(x[index], np.float64))[0, len(self.reference):] for x in positions])


@dataclass(frozen=True, eq=False)
class _Turned:
    """A vector of the first frame as atoms have turned since, by their superposition."""

    gather: Gather
    reference: np.ndarray
    vector: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        at = self.reference.mean(axis=0)
        ends = _Carried(self.gather, self.reference, np.stack([at, at + self.vector]))(block)
        return ends[:, 1] - ends[:, 0]


def _ends(ends: Points, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Where the first center is, and the way from there to the nearest image of the second: (n, 3) each."""
    from ensemblekit.md.kernels_pbc import nearest_displacements

    starts, ways = [], []
    for _, points, boxes in ends.parts(block):
        a, b = np.ascontiguousarray(points[:, 0]), np.ascontiguousarray(points[:, 1])
        way = b - a
        for t in range(len(boxes)):
            nearest_displacements(a[t:t + 1], b[t:t + 1], boxes[t], way[t:t + 1])
        starts.append(a)
        ways.append(way)
    return np.concatenate(starts), np.concatenate(ways)


__all__ = ["Attached", "Center", "Midpoint", "Place", "Placed", "carried", "direction", "placed"]
