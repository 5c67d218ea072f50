"""The electrostatic energy between two groups of atoms, and what each part of the second adds."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Mean, Measurement, Quantity
from ensemblekit.md.observables.field import Part
from ensemblekit.md.sources import Acting, Method, Settings, Surface, acting
from ensemblekit.md.system import System
from ensemblekit.source import Block

UNITS = {"kJ mol-1": 96.48533212331002, "kcal mol-1": 96.48533212331002 / 4.184, "eV": 1.0}
"""Of 1 eV (CODATA 2018)."""


@dataclass(frozen=True, eq=False)
class ElectrostaticEnergy:
    """The Coulomb energy of the charges of `a` in the potential of those of `b`: sum over a of q phi, in kJ / mol.

    A number a frame, with its series. All periodic images of `b`, by the split of :class:`ElectricPotential`; a charged group
    stands in a uniform background. With `by` comes ``groups``, (groups,): what each part of `b` adds. An energy of interaction
    of one conformation after the other, no free energy.
    """

    a: str
    """Selection: a ligand."""
    b: str
    """Selection that shares no atom with `a`: its protein and water."""
    _: KW_ONLY
    by: Any = None
    """Groups of `b`: "residue", "segment", "molecule", "resname", or {"name": selection}."""
    method: Method = "auto"
    exclude: Any = None
    """Of `b` what does not act on an atom of `a`: a number of bonds (3: as force fields exclude) where both are parts of one
    molecule, "residue", "molecule", a selection, None."""
    surface: Surface = "tinfoil"
    tolerance: float = 1e-4
    unit: str = "kJ mol-1"
    """Or "kcal mol-1", "eV"."""

    def prepare(self, system: System) -> Measurement:
        if self.unit not in UNITS:
            raise InputError(f"ElectrostaticEnergy(unit=) is one of {', '.join(map(repr, UNITS))}; got {self.unit!r}")
        for name, text in (("a", self.a), ("b", self.b)):
            if not isinstance(text, str):
                raise InputError(f"ElectrostaticEnergy({name}=) is a selection; got {text!r}")
        first, second = system.select(self.a), system.select(self.b)
        both = np.intersect1d(first, second)
        if len(both):
            raise InputError(f"{len(both)} atoms are in both groups, {self.a!r} and {self.b!r}: an energy between two groups "
                             f"counts each pair once. Take them out of one, such as \"({self.b}) and not ({self.a})\"")
        charges = system.charges(first)
        if not charges.any():
            raise InputError(f"all charges of {self.a!r} are 0, so there is no energy; read with a topology that has them "
                             "(TPR, PSF, PRMTOP)")
        found = acting(system, self.a, Settings(sources=self.b, method=self.method, exclude=self.exclude, by=self.by,
                                                surface=self.surface, tolerance=self.tolerance), "ElectrostaticEnergy")
        bonds = system.topology.bonds
        if self.exclude is None and bonds is not None and (np.isin(bonds, first).any(axis=1) & np.isin(bonds, second).any(
                axis=1)).any():
            system.note("both groups are parts of one molecule and their bonded neighbours act: exclude=3 leaves out what "
                        "force fields leave out")
        quantities: dict[str, Quantity] = {"": Mean(self.unit, of=Part(0, ()))}
        if self.by is not None:
            quantities["groups"] = Mean(self.unit, {"group": (found.names, "")}, of=Part(1, (len(found.names),)))
        return Measurement(_Energies(found, charges * UNITS[self.unit]), quantities)


@dataclass(frozen=True, eq=False)
class _Energies:
    """Block -> rows: the energy, and what each group adds."""

    acting: Acting
    charges: np.ndarray
    """(points,), with the unit of the energy in them."""

    def __call__(self, block: Block) -> np.ndarray:
        shares = np.einsum("npg,p->ng", self.acting(block)[1], self.charges)
        return np.column_stack([shares.sum(axis=1), shares])


__all__ = ["ElectrostaticEnergy"]
