"""Angles and torsions, averaged on the circle; the Ramachandran map."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np

from ensemblekit.averaging.estimate import Coords
from ensemblekit.averaging.run_states import Periodic
from ensemblekit.errors import InputError
from ensemblekit.md.circle import directions, lengths, on_circle
from ensemblekit.md.observables.base import Mean, Measurement, OfMean, SameAtoms
from ensemblekit.md.observables.groups import Points, points_for, points_of
from ensemblekit.md.system import System
from ensemblekit.md.updating import VaryingPoints
from ensemblekit.source import Block

DEGREES = 180.0 / np.pi


@dataclass(frozen=True)
class Angle:
    """Angle at the middle one of three atoms (or centres of groups), 0 to 180 degrees."""

    select_a: str
    select_b: str | None = None
    """None: `select_a` chooses exactly three atoms, in the order of their indices."""
    select_c: str | None = None
    weights: str | None = "mass"
    """Of the atoms of a group: "mass" for the centre of mass, None for the plain centre."""
    periodic: bool = True
    """Along nearest images where the frames have a box."""
    updating: bool = False
    """Choose the atoms of the groups anew in every frame."""

    def prepare(self, system: System) -> Measurement:
        points = _points(system, (self.select_a, self.select_b, self.select_c), self.weights, self.periodic, self.updating)
        return Measurement(partial(_one_angle, points), Mean("degree", bounds=(0.0, 180.0)))


@dataclass(frozen=True)
class Dihedral:
    """Torsion about the middle two of four atoms (or centres of groups), -180 to 180 degrees, IUPAC's sign.

    The mean is the direction of the mean vector, so 179 and -179 average to 180. Further: `resultant`, the length of
    that vector (1: the torsion is fixed; 0: spread evenly).
    """

    select_a: str
    select_b: str | None = None
    """None: `select_a` chooses exactly four atoms, in the order of their indices."""
    select_c: str | None = None
    select_d: str | None = None
    weights: str | None = "mass"
    """Of the atoms of a group: "mass" for the centre of mass, None for the plain centre."""
    periodic: bool = True
    """Along nearest images where the frames have a box."""
    _: KW_ONLY
    updating: bool = False
    """Choose the atoms of the groups anew in every frame."""

    def prepare(self, system: System) -> Measurement:
        points = _points(system, (self.select_a, self.select_b, self.select_c, self.select_d), self.weights, self.periodic,
                         self.updating)
        return Measurement(partial(_one_dihedral, points), on_circle())


@dataclass(frozen=True)
class Dihedrals(SameAtoms):
    """Torsions of many sets of four atoms, each averaged on the circle; in degrees, an array (torsions,).

    Further: `resultant`, the length of each mean vector.
    """

    selects: tuple[tuple[str, str, str, str], ...]
    """Four selections of one atom (or a group) for each torsion."""
    weights: str | None = "mass"
    periodic: bool = True

    def prepare(self, system: System) -> Measurement:
        chosen = [_groups(system, tuple(four)) for four in self.selects]
        if not chosen or any(len(groups) != 4 for groups in chosen):
            raise InputError("Dihedrals takes four selections a torsion, such as [(\"index 4\", \"index 6\", ...), ...]")
        points = points_of(system, [group for groups in chosen for group in groups], self.weights, self.periodic)
        return _many(points, np.arange(4 * len(chosen)).reshape(-1, 4), {"torsion": (np.arange(len(chosen)), "")})


@dataclass(frozen=True)
class Ramachandran(SameAtoms):
    """Where the backbone torsions phi and psi of the residues are: shares of a map of bins x bins that add up to 1.

    All residues of the selection with both neighbours in their chain count alike. Further: `phi` and `psi`, the circular
    mean of each residue in degrees, and `populations`, the shares of the regions alpha (-160 < phi < -20,
    -120 < psi < 50), beta (phi < 0, the rest) and left (phi >= 0).
    """

    select: str = "protein"
    bins: int = 36
    """Along each axis, from -180 to 180 degrees."""

    def prepare(self, system: System) -> Measurement:
        if isinstance(self.bins, bool) or not isinstance(self.bins, int | np.integer) or not 1 <= self.bins <= 360:
            raise InputError(f"bins is a whole number from 1 to 360; got {self.bins!r}")
        atoms, resids = backbone_torsions(system, self.select)
        flat = atoms.ravel()
        points = points_of(system, [flat[k:k + 1] for k in range(len(flat))], None, True)
        n, bins = len(resids), int(self.bins)
        quadruples = np.arange(len(flat)).reshape(2 * n, 4)       # phi and psi of the first residue, of the second, ...
        width = 360.0 / bins
        middle = -180.0 + width * (np.arange(bins) + 0.5)
        residue = {"residue": (resids, "")}
        return Measurement(partial(_ramachandran, points, quadruples, bins), {
            "": OfMean(partial(_map, bins), "", {"phi": (middle, "degree"), "psi": (middle, "degree")}, bounds=(0.0, 1.0)),
            "phi": OfMean(Periodic(partial(_directions, bins * bins + 3, 0)), "degree", residue),
            "psi": OfMean(Periodic(partial(_directions, bins * bins + 3, 1)), "degree", residue),
            "populations": OfMean(partial(_part, bins * bins), "", {"region": (np.array(["alpha", "beta", "left"]), "")},
                                  bounds=(0.0, 1.0))})


def backbone_torsions(system: System, select: str) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (residues, 2, 4) of phi and psi of the residues that have both, and their numbers (residues,).

    A neighbour is the residue before or after in the same segment whose number differs by 1 (or by 0, as insertions
    have it).
    """
    topology = system.topology
    inside = np.zeros(len(topology), bool)
    inside[system.select(select)] = True
    residues: list[tuple[Any, int, dict[str, int], bool]] = []
    segids, resids, names = topology.segids, topology.resids, topology.names
    last = -1
    for atom, residue in enumerate(topology.residue_of):
        if residue != last:
            residues.append((segids[atom], int(resids[atom]), {}, bool(inside[atom])))
            last = residue
        if str(names[atom]) in ("N", "CA", "C"):
            residues[-1][2].setdefault(str(names[atom]), atom)
    quadruples, numbers = [], []
    for before, this, after in zip(residues, residues[1:], residues[2:], strict=False):
        if not this[3] or len(this[2]) < 3 or "C" not in before[2] or "N" not in after[2]:
            continue
        if not (before[0] == this[0] == after[0] and this[1] - before[1] in (0, 1) and after[1] - this[1] in (0, 1)):
            continue
        n, ca, c = this[2]["N"], this[2]["CA"], this[2]["C"]
        quadruples.append([[before[2]["C"], n, ca, c], [n, ca, c, after[2]["N"]]])
        numbers.append(this[1])
    if not quadruples:
        raise InputError(f"no residue of {select!r} has a phi and a psi: it needs atoms N, CA and C, and a neighbour on "
                         "each side in its chain")
    return np.array(quadruples), np.array(numbers)


def _groups(system: System, selects: tuple[Any, ...]) -> list[np.ndarray]:
    """A group of atoms for each selection; from a single selection its atoms, as many as there are places."""
    wanted = len(selects)
    if all(select is None for select in selects[1:]):
        atoms = system.select(selects[0])
        if len(atoms) != wanted:
            raise InputError(f"{selects[0]!r} has {len(atoms)} atoms where {wanted} are wanted; or pass {wanted} selections")
        return [atoms[k:k + 1] for k in range(wanted)]
    if any(select is None for select in selects):
        raise InputError(f"pass one selection of {wanted} atoms, or {wanted} selections; got {selects}")
    return [system.select(select) for select in selects]


def _points(system: System, selects: tuple[Any, ...], weights: str | None, periodic: bool, updating: bool
            ) -> Points | VaryingPoints:
    if not updating:
        return points_of(system, _groups(system, selects), weights, periodic)
    if any(select is None for select in selects):
        raise InputError(f"updating=True chooses the atoms of groups: pass {len(selects)} selections; got {selects}")
    return points_for(system, selects, weights, periodic, True)


def _many(points: Points, quadruples: np.ndarray, coords: Coords) -> Measurement:
    return Measurement(partial(torsion_vectors, points, quadruples), {
        "": OfMean(Periodic(partial(_directions, 0, None)), "degree", coords),
        "resultant": OfMean(lengths, "", coords, bounds=(0.0, 1.0))})


def _one_angle(points: Points | VaryingPoints, block: Block) -> np.ndarray:
    from ensemblekit.md.kernels_geometry import angles

    out = np.empty((len(block), 1))
    for rows, x, boxes in points.parts(block):
        angles(x, np.array([[0, 1, 2]]), boxes, out[rows])
    return out[:, 0] * DEGREES


def _torsions(points: Points | VaryingPoints, quadruples: np.ndarray, block: Block) -> np.ndarray:
    """In radians, (n, torsions)."""
    from ensemblekit.md.kernels_geometry import dihedrals

    out = np.empty((len(block), len(quadruples)))
    for rows, x, boxes in points.parts(block):
        dihedrals(x, quadruples, boxes, out[rows])
    return out


def _one_dihedral(points: Points | VaryingPoints, block: Block) -> np.ndarray:
    return _torsions(points, np.array([[0, 1, 2, 3]]), block)[:, 0] * DEGREES


def torsion_vectors(points: Points, quadruples: np.ndarray, block: Block) -> np.ndarray:
    found = _torsions(points, quadruples, block)
    return np.stack([np.cos(found), np.sin(found)], axis=-1)


def _ramachandran(points: Points, quadruples: np.ndarray, bins: int, block: Block) -> np.ndarray:
    """Shares of the map, of the regions, and the mean vectors: (n, bins² + 3 + residues * 4)."""
    from ensemblekit.md.kernels_geometry import add_counts

    torsions = _torsions(points, quadruples, block)
    n, residues = len(torsions), len(quadruples) // 2
    angles = (torsions * DEGREES).reshape(n, residues, 2)
    out = np.zeros((n, bins * bins + 3 + 4 * residues))
    counts = np.zeros((n, bins, bins))
    add_counts(angles, -180.0, 360.0 / bins, bins, counts)
    out[:, :bins * bins] = counts.reshape(n, -1)
    phi, psi = angles[..., 0], angles[..., 1]
    alpha = (phi > -160) & (phi < -20) & (psi > -120) & (psi < 50)
    left = phi >= 0
    at = bins * bins
    out[:, at], out[:, at + 1], out[:, at + 2] = alpha.mean(1), (~alpha & ~left).mean(1), left.mean(1)
    vectors = np.stack([np.cos(torsions), np.sin(torsions)], axis=-1).reshape(n, residues, 2, 2)
    out[:, at + 3:] = vectors.reshape(n, -1)
    return out


def _map(bins: int, mean: np.ndarray) -> np.ndarray:
    return mean[:bins * bins].reshape(bins, bins)


def _part(start: int, mean: np.ndarray) -> np.ndarray:
    return mean[start:start + 3]


def _directions(start: int, which: int | None, mean: np.ndarray) -> np.ndarray:
    """Directions of mean vectors in degrees; `which` of phi and psi, or all."""
    return directions(1 / DEGREES, mean[start:] if which is None else mean[start:].reshape(-1, 2, 2)[:, which])
