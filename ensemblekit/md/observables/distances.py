"""Distances between atoms or centres of groups: one, several pairs, end to end, all pairs of two selections."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Mean, Measurement, SameAtoms
from ensemblekit.md.observables.groups import Points, points_for, points_of, residues_of, square, triangle
from ensemblekit.md.system import System
from ensemblekit.md.updating import VaryingPoints
from ensemblekit.source import Block

MOST_PAIRS = 10_000_000
"""Of a map; 3000 x 3000 atoms are fine."""
"""Of a distance map: its average keeps a dozen numbers a pair."""


@dataclass(frozen=True)
class Distance:
    """Distance between two atoms or two groups of atoms, centre to centre; in angstrom, to the nearest image."""

    select_a: str
    select_b: str
    weights: str | None = "mass"
    """Of the atoms of a group: "mass" for the centre of mass, None for the plain centre."""
    periodic: bool = True
    """To the nearest image where the frames have a box."""
    updating: bool = False
    """Choose the atoms anew in every frame."""

    def prepare(self, system: System) -> Measurement:
        points = points_for(system, (self.select_a, self.select_b), self.weights, self.periodic, self.updating)
        return Measurement(partial(_first, partial(_distances, points, np.array([[0, 1]]))),
                           Mean("Angstrom", bounds=(0.0, None)))


@dataclass(frozen=True)
class Distances(SameAtoms):
    """Distances of the first atom of one selection from the first of the other, second from second, ...; in angstrom."""

    select_a: str
    select_b: str
    periodic: bool = True
    """To the nearest image where the frames have a box."""

    _fixed = "its pairs are the same in every frame; md.Distance(updating=True) is between centres that vary"

    def prepare(self, system: System) -> Measurement:
        a, b = system.select(self.select_a), system.select(self.select_b)
        if len(a) != len(b):
            raise InputError(f"pairs need as many atoms on each side; {self.select_a!r} has {len(a)}, {self.select_b!r} "
                             f"{len(b)}. All pairs are md.DistanceMap")
        points = points_of(system, [a[k:k + 1] for k in range(len(a))] + [b[k:k + 1] for k in range(len(b))],
                           None, self.periodic)
        pairs = np.stack([np.arange(len(a)), np.arange(len(a), 2 * len(a))], axis=1)
        return Measurement(partial(_distances, points, pairs), Mean("Angstrom", {"pair": (np.arange(len(a)), "")}, (0.0, None)))


@dataclass(frozen=True)
class EndToEnd(SameAtoms):
    """Distance between the first and the last atom of a selection, such as the ends of a chain; in angstrom.

    Of the whole chain: not to the nearest image.
    """

    select: str = "protein and name CA"

    _fixed = "the ends of a chain stay its ends; md.Distance(updating=True) is between centres that vary"

    def prepare(self, system: System) -> Measurement:
        atoms = system.select(self.select)
        if len(atoms) < 2:
            raise InputError(f"an end-to-end distance needs 2 atoms; {self.select!r} has {len(atoms)}")
        points = points_of(system, [atoms[:1], atoms[-1:]], None, False, [atoms])
        return Measurement(partial(_first, partial(_distances, points, np.array([[0, 1]]))),
                           Mean("Angstrom", bounds=(0.0, None)))


@dataclass(frozen=True)
class DistanceMap(SameAtoms):
    """Mean distances between all atoms (or residues) of one selection and all of another, or of itself; in angstrom.

    An array (a, b); of a selection with itself symmetric, zeros on the diagonal.
    """

    select_a: str = "name CA"
    select_b: str | None = None
    """None: those of `select_a`."""
    level: str = "atom"
    """"atom", or "residue" for the centres of mass of each residue's selected atoms."""
    periodic: bool = True
    """To the nearest image where the frames have a box."""

    def prepare(self, system: System) -> Measurement:
        if self.level not in ("atom", "residue"):
            raise InputError(f'level is "atom" or "residue"; got {self.level!r}')
        same = self.select_b is None or self.select_b == self.select_a
        sides = [system.select(self.select_a)] if same else [system.select(self.select_a), system.select(self.select_b or "")]
        groups: list[np.ndarray] = []
        labels, counts = [], []
        for atoms in sides:
            which, resids = residues_of(system, atoms)
            if self.level == "residue":
                members = [atoms[which == k] for k in range(len(resids))]
                labels.append(resids)
            else:
                members = [atoms[k:k + 1] for k in range(len(atoms))]
                labels.append(resids[which])
            groups += members
            counts.append(len(members))
        n_pairs = counts[0] * (counts[0] - 1) // 2 if same else counts[0] * counts[1]
        if n_pairs > MOST_PAIRS:
            raise InputError(f"a map of {n_pairs} pairs is too large to average with errors; the most is {MOST_PAIRS}. "
                             'Choose fewer atoms, or level="residue"')
        if same:
            pairs = np.stack(np.divmod(triangle(counts[0], 1), counts[0]), axis=1)
            if not len(pairs):
                raise InputError(f"a distance map needs 2 atoms; {self.select_a!r} has 1")
        else:
            pairs = np.stack(np.divmod(np.arange(n_pairs), counts[1]), axis=1) + np.array([0, counts[0]])
        points = points_of(system, groups, "mass" if self.level == "residue" else None, self.periodic)
        fill: Any = partial(square, counts[0], 1) if same else partial(_oblong, (counts[0], counts[1]))
        names = ("residue", "residue_b")
        coords = {name: (labels[k if not same else 0], "") for k, name in enumerate(names)}
        return Measurement(partial(_distances, points, pairs), Mean("Angstrom", coords, (0.0, None), arrange=fill))


def _oblong(shape: tuple[int, int], values: np.ndarray, *_: object) -> np.ndarray:
    return np.broadcast_to(values, (shape[0] * shape[1],)).reshape(shape)


def _distances(points: Points | VaryingPoints, pairs: np.ndarray, block: Block) -> np.ndarray:
    from ensemblekit.md.kernels_geometry import distances

    out = np.empty((len(block), len(pairs)))
    for rows, x, boxes in points.parts(block):
        distances(x, pairs, boxes, out[rows])
    return out


def _first(values: partial, block: Block) -> np.ndarray:
    return values(block)[:, 0]
