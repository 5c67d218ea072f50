"""Dipole moments and the static dielectric constant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.groups import molecules_of
from ensemblekit.md.observables.base import Derived, Prepared
from ensemblekit.md.system import Gather, System
from ensemblekit.source import Block

COULOMB = 14.399645478425668
"""e^2 / (4 pi epsilon_0), in eV angstrom (CODATA 2018)."""
BOLTZMANN = 8.617333262e-5
"""eV / K (SI 2019)."""
DEBYE = 4.803204712570263
"""1 e angstrom in debye."""
NEUTRAL = 1e-3
"""Charge, in e, that rounding in topology files leaves to a neutral molecule."""
XYZ = {"component": (np.arange(3), "")}


@dataclass(frozen=True)
class Dipole:
    """The dipole moment sum q (r - c) of the selected atoms, a vector, in e angstrom (1 e angstrom = 4.8032 D).

    Molecules are made whole first. For a neutral selection the origin c does not matter; a charged one is taken about its
    centre of mass (centre of geometry where no masses are known); of several charged molecules in a periodic box it jumps when
    one of them changes its image. With it comes ``magnitude``, the mean length.
    """

    select: str = "all"

    def prepare(self, system: System) -> Prepared:
        atoms = system.select(self.select)
        charges = system.charges(atoms)
        masses = system.topology.masses[atoms]
        if abs(charges.sum()) <= NEUTRAL:
            masses = np.zeros(len(atoms))
        elif not (np.isfinite(masses).all() and masses.sum() > 0):
            masses = np.ones(len(atoms))
        return Prepared(partial(_with_length, system.gather(atoms), charges, masses), "e Angstrom", XYZ,
                        function=_vector, further={"magnitude": Derived(_length, "e Angstrom")}, series=_lengths)


def _vector(mean: np.ndarray) -> np.ndarray:
    return mean[:3]


def _length(mean: np.ndarray) -> np.ndarray:
    return mean[3]


def _lengths(values: np.ndarray) -> np.ndarray:
    return values[:, 3]


def moments(gather: Gather, charges: np.ndarray, masses: np.ndarray, block: Block) -> np.ndarray:
    """Dipole of each frame, (n, 3)."""
    from ensemblekit.md.kernels_density import dipoles

    positions, index = gather(block)
    out = np.empty((len(positions), 3))
    dipoles(positions, index, charges, masses, out)
    return out


def _with_length(gather: Gather, charges: np.ndarray, masses: np.ndarray, block: Block) -> np.ndarray:
    m = moments(gather, charges, masses, block)
    return np.column_stack([m, np.sqrt((m**2).sum(1))])


@dataclass(frozen=True)
class DielectricConstant:
    """The static relative permittivity from the fluctuation of the dipole moment of the whole box.

    ``1 + (<M^2> - <M>^2) / (3 epsilon_0 <V> k_B T)`` with conducting (tin-foil) boundaries, as in simulations with Ewald
    sums: Neumann, Mol. Phys. 50, 841 (1983). Any triclinic box; molecules are made whole first. With it comes
    ``tensor`` (3, 3), whose trace is three times the constant.

    Charged molecules are refused: their dipole depends on the origin, and every ion that leaves the box adds a jump of
    q times a box vector; leave them out (``select="resname SOL"``) for the part of the solvent.
    """

    temperature: float = float("nan")
    """In K; must be given."""
    select: str = "all"

    def prepare(self, system: System) -> Prepared:
        if not (isinstance(self.temperature, int | float | np.number) and 0 < self.temperature < np.inf):
            raise InputError(f"DielectricConstant(temperature=) is in K, above 0; got {self.temperature!r}")
        atoms = system.select(self.select)
        charges = system.charges(atoms)
        first = system.first_frame()
        if first.box is None:
            raise InputError("the dielectric constant is a property of the bulk, and these frames have no box; give one with "
                             "MDAnalysis' set_dimensions transformation")
        self._check_neutral(system, atoms, charges)
        gather = system.gather(atoms)
        volume = abs(float(np.linalg.det(first.box)))
        start = Block({"position": first.position[None], "box": first.box[None]}, 0, slice(None), None, None)
        shift = moments(gather, charges, np.zeros(len(atoms)), start)[0]
        scale = 4 * np.pi * COULOMB / (BOLTZMANN * self.temperature * volume)
        ready = partial(_second_moments, gather, charges, shift, volume)
        further = {"tensor": Derived(partial(_tensor, scale), "", {"row": (np.arange(3), ""), "column": (np.arange(3), "")})}
        return Prepared(ready, "", function=partial(_epsilon, scale), further=further)

    def _check_neutral(self, system: System, atoms: np.ndarray, charges: np.ndarray) -> None:
        if system.topology.bonds is not None:
            _, which = np.unique(molecules_of(system.topology)[atoms], return_inverse=True)
            net = np.bincount(which, charges)
            bad = np.abs(net) > NEUTRAL
            if bad.any():
                names = sorted(set(np.asarray(system.topology.resnames, str)[atoms][bad[which]]))
                raise InputError(f"{int(bad.sum())} of {len(net)} molecules are charged (residues {', '.join(names[:8])}; net "
                                 f"{net.sum():+.4g} e): the dipole of a charged molecule depends on the origin and jumps with "
                                 "its image. Select neutral molecules only, for example select=\"resname SOL\"")
        elif abs(charges.sum()) > NEUTRAL:
            raise InputError(f"the selection has the net charge {charges.sum():+.4g} e: its dipole depends on the origin. "
                             "Select neutral molecules only, for example select=\"resname SOL\"")


def _second_moments(gather: Gather, charges: np.ndarray, shift: np.ndarray, volume: float, block: Block) -> np.ndarray:
    """M - M0, its products and V / V0: (n, 10). M0 is that of the first frame: no digits are lost in <M^2> - <M>^2."""
    m = moments(gather, charges, np.zeros(len(charges)), block) - shift
    volumes = np.abs(np.linalg.det(np.asarray(block.fields["box"], np.float64)))
    i, j = np.triu_indices(3)
    return np.column_stack([m, m[:, i] * m[:, j], volumes / volume])


def _tensor(scale: float, mean: np.ndarray) -> np.ndarray:
    tensor = np.empty((3, 3))
    i, j = np.triu_indices(3)
    tensor[i, j] = tensor[j, i] = mean[3:9] - mean[i] * mean[j]
    return np.eye(3) + scale / mean[9] * tensor


def _epsilon(scale: float, mean: np.ndarray) -> np.ndarray:
    return np.trace(_tensor(scale, mean)) / 3
