"""Charges that act on places: which they are, in what groups, which are left out, and by what sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.ewald import Charges, Close, Excluded, Split, coulomb, surface_terms
from ensemblekit.md.groups import molecules_of, residues_of
from ensemblekit.md.holes import bad_frame, frame_in_words
from ensemblekit.md.places import Placed, placed
from ensemblekit.md.system import Gather, System
from ensemblekit.md.topology import Topology
from ensemblekit.md.updating import Updating, updating_selection
from ensemblekit.md.whole import positions_of
from ensemblekit.source import Block

Method = Literal["auto", "ewald", "nearest", "open"]
Surface = Literal["tinfoil", "vacuum", "slab-z"]
METHODS, SURFACES = ("auto", "ewald", "nearest", "open"), ("tinfoil", "vacuum", "slab-z")
COMMON = 50
"""Copies of a molecule of one residue above which all of them are one group."""
NEUTRAL = 1e-2
"""Charge, in e, by which files that round charges leave molecules from a whole number."""
GROUPINGS = ("residue", "segment", "molecule", "resname")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the observables of a field share."""

    sources: str = "all"
    method: Method = "auto"
    exclude: Any = "residue"
    by: Any = None
    surface: Surface = "tinfoil"
    tolerance: float = 1e-4
    updating: bool = False

    def check(self, name: str) -> None:
        """InputError where an option is none."""
        for option, value, known in (("method", self.method, METHODS), ("surface", self.surface, SURFACES)):
            if value not in known:
                raise InputError(f"{name}({option}=) is one of {', '.join(map(repr, known))}; got {value!r}")
        number = isinstance(self.tolerance, int | float | np.number) and not isinstance(self.tolerance, bool)
        if not (number and 1e-13 <= self.tolerance < 1):
            raise InputError(f"{name}(tolerance=) is the error of the field of a unit charge in V / angstrom, 1e-13 to 1; got "
                             f"{self.tolerance!r}")
        if not isinstance(self.sources, str):
            raise InputError(f"{name}(sources=) is a selection of the charges that act; got {self.sources!r}")


@dataclass(frozen=True, eq=False)
class Acting:
    """Block -> field (n, points, groups, 3) in V / angstrom and potential (n, points, groups) in V."""

    place: Placed
    charges: Charges
    names: np.ndarray
    """Of the groups."""
    unwanted: Sequence[np.ndarray]
    """Of each point the atoms that do not act on it."""
    excluded: Excluded
    split: Split | None
    periodic: bool
    surface: Surface
    whole: Gather | None
    """Of the charges, for the dipole of whole molecules that a surface asks for."""
    chosen: Updating | None = None
    """The charges anew in every frame."""

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        positions, points = positions_of(block), self.place.points(block)
        boxes = np.asarray(block.fields["box"], np.float64) if self.periodic else None
        shape = len(block), len(self.place), len(self.names)
        field, potential = np.empty((*shape, 3)), np.empty(shape)
        dipoles = None if self.whole is None else self._dipoles(block, self.whole)
        choice = None if self.chosen is None else self.chosen(block)
        for t in range(len(block)):
            cell = None if boxes is None else boxes[t]
            charges, excluded = self.charges, self.excluded
            if choice is not None:
                charges, excluded = self._of_frame(choice[1][choice[2][t]:choice[2][t + 1]])
            try:
                values = coulomb(points[t], positions[t], charges, cell, self.split, excluded)
            except Close as error:
                raise self._coincident(block, t, error.point, points[t], positions[t], charges, cell) from None
            if values is None:
                raise bad_frame(block, t, np.asarray(positions[t][charges.atoms]), cell, charges.atoms)
            field[t], potential[t] = values
            if dipoles is not None and cell is not None:
                more = surface_terms(points[t], dipoles[t], cell, self.surface)
                field[t] += more[0]
                potential[t] += more[1]
        return field, potential

    def _dipoles(self, block: Block, whole: Gather) -> np.ndarray:
        """Of each group (n, groups, 3), the molecules whole."""
        positions, index = whole(block)
        out = np.zeros((len(positions), len(self.names), 3))
        for g in range(len(self.names)):
            part = slice(self.charges.offsets[g], self.charges.offsets[g + 1])
            out[:, g] = np.einsum("j,njk->nk", self.charges.values[part], np.asarray(positions[:, index[part]], np.float64))
        return out

    def _of_frame(self, atoms: np.ndarray) -> tuple[Charges, Excluded]:
        """The charges among these atoms."""
        values = np.zeros(int(self.charges.atoms.max()) + 1)
        values[self.charges.atoms] = self.charges.values
        atoms = atoms[atoms < len(values)]
        atoms = np.ascontiguousarray(atoms[values[atoms] != 0], np.int64)
        return Charges(atoms, values[atoms], np.array([0, len(atoms)])), excluded_of(self.unwanted, atoms)

    def _coincident(self, block: Block, t: int, point: int, points: np.ndarray, positions: np.ndarray, charges: Charges,
                    cell: np.ndarray | None) -> InputError:
        from ensemblekit.md.kernels_pbc import nearest_displacements

        acting = charges.atoms[~np.isin(charges.atoms, self.unwanted[point])]
        there = np.asarray(positions[acting], np.float64)
        here = np.repeat(points[point][None], len(acting), axis=0)
        way = there - here
        if cell is not None:
            nearest_displacements(here, there, np.ascontiguousarray(cell), way)
        atom = int(acting[np.argmin((way**2).sum(axis=1))]) if len(acting) else -1
        return InputError(f"{frame_in_words(block, t)}: place {point} lies within 0.01 angstrom of atom {atom}, whose charge "
                          "acts on it. Leave that out (exclude=\"self\", or a selection), or ask at another place")


def acting(system: System, at: object, settings: Settings, name: str) -> Acting:
    """The charges that act at some places, made ready for one system; notes say by what conventions."""
    settings.check(name)
    place = placed(system, at)
    method = settings.method if settings.method != "auto" else "ewald" if system.boxed else "open"
    if method != "open" and not system.boxed:
        raise InputError(f'{name}(method="{method}") sums over the images of a box, and these frames have none: method="open", '
                         "or give the box with MDAnalysis' set_dimensions transformation")
    if settings.surface != "tinfoil" and method != "ewald":
        raise InputError(f'{name}(surface="{settings.surface}") is about all images together, method="ewald"; got {method!r}')
    if settings.updating and (method == "ewald" or settings.by is not None):
        raise InputError(f"{name}(updating=True) chooses the charges that act by place, and with Ewald's sum a cut-out of them "
                         'has no meaning: by= gives the share of each group, method="nearest" takes a cut-out (without by=)')
    if settings.updating:
        everyone = np.arange(len(system.topology))
        charges, names = _sorted(system.charges(everyone), everyone, np.zeros(len(everyone), np.int64), ["all"])
        chosen: Updating | None = updating_selection(system, settings.sources, as_it_is=True)
    else:
        atoms, chosen = system.select(settings.sources), None
        values = system.charges(atoms)
        labels, words = groups_of(system, atoms, settings.by, name)
        charges, names = _sorted(values, atoms, labels, words)
    if not len(charges.atoms):
        raise no_charges(settings.sources)
    unwanted = _unwanted(system, place, settings.exclude, name)
    whole, split = None, None
    if method == "ewald":
        box = system.first_frame().box
        assert box is not None
        volume = abs(float(np.linalg.det(box)))
        if not volume > 0:
            raise InputError(f"the box of the first frame has no volume: {box.tolist()}")
        split = Split.cheapest(settings.tolerance, volume, float((charges.values**2).sum()), len(charges.atoms), len(place))
        if settings.surface != "tinfoil":
            check_molecules(system, charges.atoms, charges.values, name, settings.surface)
            whole = system.gather(charges.atoms)
    system.note(_conventions(method, charges, split, settings))
    return Acting(place, charges, names, unwanted, excluded_of(unwanted, charges.atoms), split, method != "open",
                  settings.surface, whole, chosen)


def no_charges(sources: str) -> InputError:
    """Nothing acts."""
    return InputError(f"all charges of {sources!r} are 0, so there is no field; read with a topology that has them (TPR, PSF, "
                      "PRMTOP)")


def charges_of(system: System, sources: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and charges of the atoms of a selection whose charge is not 0; InputError where there are none."""
    atoms = system.select(sources)
    values = system.charges(atoms)
    if not values.any():
        raise no_charges(sources)
    return np.ascontiguousarray(atoms[values != 0], np.int64), values[values != 0]


def excluded_of(unwanted: Sequence[np.ndarray], atoms: np.ndarray) -> Excluded:
    """Which of the charges on these atoms do not act on each point."""
    last = max(int(one.max(initial=-1)) for one in (atoms, *unwanted))
    slot = np.full(last + 1, -1, np.int64)
    slot[atoms] = np.arange(len(atoms))
    slots = [slot[one] for one in unwanted]
    slots = [one[one >= 0] for one in slots]
    begin = np.concatenate([[0], np.cumsum([len(one) for one in slots])]).astype(np.int64)
    return Excluded(begin, np.concatenate([np.zeros(0, np.int64), *slots]))


def _sorted(values: np.ndarray, atoms: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> tuple[Charges, np.ndarray]:
    """The charges that are not 0, sorted by group."""
    acting = values != 0
    order = np.argsort(labels[acting], kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(labels[acting], minlength=len(names)))]).astype(np.int64)
    return Charges(np.ascontiguousarray(atoms[acting][order], np.int64), values[acting][order], offsets), np.array(names)


def groups_of(system: System, atoms: np.ndarray, by: Any, name: str) -> tuple[np.ndarray, list[str]]:
    """A number an atom, and the names of the groups."""
    topology = system.topology
    if by is None:
        return np.zeros(len(atoms), np.int64), ["all"]
    if isinstance(by, Mapping):
        return _named_groups(system, atoms, by)
    if by == "residue":
        words = _residue_words(system, atoms)
    elif by == "segment":
        words = np.asarray(topology.segids, str)[atoms]
    elif by == "resname":
        words = np.asarray(topology.resnames, str)[atoms]
    elif by == "molecule":
        words = np.array([f"molecule {k}" for k in molecules_of(topology)[atoms]])
    else:
        raise InputError(f'{name}(by=) is one of {", ".join(map(repr, GROUPINGS))}, or {{"name": selection}}; got {by!r}')
    distinct, first, labels = np.unique(words, return_index=True, return_inverse=True)
    order = np.argsort(first)           # as they come in the file
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place[labels], [str(word) for word in distinct[order]]


def _residue_words(system: System, atoms: np.ndarray) -> np.ndarray:
    """Of each atom the name of its residue, ALA5; of molecules of one residue of which there are many that of all."""
    topology = system.topology
    residue = residues_of(topology)[atoms]
    resnames = np.asarray(topology.resnames, str)[atoms]
    segids = np.asarray(topology.segids, str)[atoms]
    words = np.char.add(resnames, np.asarray(topology.resids).astype(str)[atoms])
    distinct = len(np.unique(residue))
    if len(np.unique(words)) < distinct:
        words = np.char.add(np.char.add(segids, ":"), words)
    if len(np.unique(words)) < distinct:
        words = np.char.add(np.char.add(words, "#"), residue.astype(str))
    alone = _alone(topology)[atoms]
    many, counts = np.unique(resnames[alone][np.unique(residue[alone], return_index=True)[1]], return_counts=True)
    return np.where(alone & np.isin(resnames, many[counts > COMMON]), resnames, words)


def _alone(topology: Topology) -> np.ndarray:
    """(atoms,) whether the residue of an atom is a molecule by itself; as far as bonds are known."""
    if topology.bonds is None:
        return np.ones(len(topology), bool)
    residue = residues_of(topology)
    a, b = topology.bonds[:, 0], topology.bonds[:, 1]
    linked = residue[a] != residue[b]
    return ~np.isin(residue, np.concatenate([residue[a][linked], residue[b][linked]]))


def _named_groups(system: System, atoms: np.ndarray, by: Mapping[Any, Any]) -> tuple[np.ndarray, list[str]]:
    labels, names = np.full(len(system.topology), -1, np.int64), []
    if not by:
        raise InputError('by={} names no group: {"name": selection}, or None')
    for k, (word, text) in enumerate(by.items()):
        members = system.select(text)
        if (labels[members] >= 0).any():
            both = int((labels[members] >= 0).sum())
            raise InputError(f"groups do not overlap, so that they add up to the total; {both} atoms of {word!r} belong to a "
                             "group before it")
        labels[members] = k
        names.append(str(word))
    labels = labels[atoms]
    if (labels < 0).any():
        labels[labels < 0] = len(names)
        names.append("other" if "other" not in names else "all others")
    return labels, names


def _unwanted(system: System, place: Placed, exclude: Any, name: str) -> list[np.ndarray]:
    """Of each point the atoms that do not act on it."""
    topology = system.topology
    own = [one if place.on_atoms else np.zeros(0, np.int64) for one in place.makers]
    if exclude is None:
        return own
    if exclude == "self":
        return list(place.makers)
    if isinstance(exclude, str) and exclude in ("residue", "molecule"):
        label = residues_of(topology) if exclude == "residue" else molecules_of(topology) if any(
            len(one) for one in place.makers) else residues_of(topology)
        order = np.argsort(label, kind="stable")
        begin = np.searchsorted(label[order], np.arange(label.max() + 2))
        return [np.concatenate([np.zeros(0, np.int64), *(order[begin[k]:begin[k + 1]] for k in np.unique(label[one]))])
                for one in place.makers]
    if isinstance(exclude, int | np.integer) and not isinstance(exclude, bool) and exclude >= 0:
        return [_within_bonds(topology, one, int(exclude)) for one in place.makers]
    if isinstance(exclude, str):
        atoms = system.select(exclude)
        return [np.union1d(atoms, one) for one in own]
    raise InputError(f'{name}(exclude=) is "residue", "molecule", "self", a whole number of bonds, a selection or None; got '
                     f"{exclude!r}")


def _within_bonds(topology: Topology, atoms: np.ndarray, most: int) -> np.ndarray:
    """Atoms so many bonds away at the most, these themselves too."""
    if topology.bonds is None:
        raise InputError("exclude= by bonds needs them, and this topology has none; exclude=\"residue\" goes by residue")
    near = np.unique(atoms)
    for _ in range(most if len(atoms) else 0):
        bonds = topology.bonds
        near = np.unique(np.concatenate([near, bonds[np.isin(bonds[:, 0], near), 1], bonds[np.isin(bonds[:, 1], near), 0]]))
    return near


def check_molecules(system: System, atoms: np.ndarray, charges: np.ndarray, name: str, surface: str) -> None:
    """Refuse a dipole of charged molecules, which depends on where they are counted from."""
    _, which = np.unique(molecules_of(system.topology)[atoms], return_inverse=True)
    net = np.bincount(which, charges)
    bad = np.abs(net) > NEUTRAL
    if bad.any():
        names = sorted(set(np.asarray(system.topology.resnames, str)[atoms][bad[which]]))
        raise InputError(f'{name}(surface="{surface}") is made of the dipole of the box, and {int(bad.sum())} of {len(net)} '
                         f"molecules are charged (residues {', '.join(names[:8])}): it depends on the image they are in. Take "
                         'surface="tinfoil", or sources= of neutral molecules')


def _conventions(method: str, charges: Charges, split: Split | None, settings: Settings) -> str:
    """How the numbers are to be read."""
    net = float(charges.net.sum())
    acts = f"charges of {settings.sources!r} act, chosen in every frame"
    said = [acts if settings.updating else net_in_words(charges.values)]
    if method == "ewald":
        said.append({"tinfoil": "all images, with tin-foil around", "vacuum": "all images, with vacuum around",
                     "slab-z": "all images, layers across z with vacuum between them"}[settings.surface])
        if abs(net) > NEUTRAL:
            said.append(f"a uniform background of {-net:+.4g} e makes the cell neutral")
        said.append("the potential averages to 0 over the cell")
        said.append(f"Ewald's sum: {split}")
    else:
        said.append("of each charge the nearest image" if method == "nearest" else "no box")
    return "; ".join(said)


def net_in_words(values: np.ndarray) -> str:
    """How many charges act, and what they are together: a selection with a slip is seen at once."""
    net = float(values.sum())
    said = f"{len(values)} charges act, " + (f"{net:+.4g} e together" if abs(net) >= 5e-5 else "neutral together")
    slip = abs(net - round(net)) > NEUTRAL
    return said + ("; no whole number: the selection cuts molecules, or the topology rounds charges" if slip else "")
