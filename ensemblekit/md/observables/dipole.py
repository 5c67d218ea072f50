"""Dipole moments and the static dielectric constant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ensemblekit.averaging.function_of_mean import SecondMoment
from ensemblekit.errors import InputError
from ensemblekit.md.groups import molecules_of
from ensemblekit.md.observables.base import Measurement, OfMean, SameAtoms
from ensemblekit.md.system import Gather, System
from ensemblekit.md.updating import Updating, updating_selection
from ensemblekit.scaling import ldexp, scaled
from ensemblekit.source import Block

COULOMB = 14.399645478425668
"""e^2 / (4 pi epsilon_0), in eV angstrom (CODATA 2018)."""
BOLTZMANN = 8.617333262e-5
"""eV / K (SI 2019)."""
NEUTRAL = 1e-3
"""Charge, in e, that rounding in topology files leaves to a neutral molecule."""
XYZ = {"component": (np.array(["x", "y", "z"]), "")}


@dataclass(frozen=True)
class Dipole:
    """The dipole moment sum q (r - c) of the selected atoms, a vector, in e angstrom (1 e angstrom = 4.8032 D).

    Molecules are made whole first. For a neutral selection the origin c does not matter; a charged one is taken about its
    centre of mass (centre of geometry where no masses are known); of several charged molecules in a periodic box it jumps when
    one of them changes its image. With it comes ``magnitude``, the mean length. The series are
    the vector (n, 3) and its length of each frame.
    """

    select: str = "all"
    updating: bool = False
    """Choose the atoms anew in every frame. The dipole of none is 0."""

    def prepare(self, system: System) -> Measurement:
        atoms = np.arange(len(system.topology)) if self.updating else system.select(self.select)
        charges = system.charges(atoms)
        masses = system.topology.masses[atoms]
        if abs(charges.sum()) > NEUTRAL:
            system.note_guessed(atoms)
        vectors = partial(moments, system.gather(atoms), charges, _about(charges, masses))
        if self.updating:
            vectors = partial(_varying_moments, updating_selection(system, self.select), charges, masses)
        return Measurement(partial(_with_length, vectors), {
            "": OfMean(_vector, "e Angstrom", XYZ, _vectors),
            "magnitude": OfMean(_length, "e Angstrom", series=_lengths, bounds=(0.0, None))})


def _about(charges: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Weights of the atoms in the origin: none where it does not matter, masses where they are known."""
    if abs(charges.sum()) <= NEUTRAL:
        return np.zeros(len(charges))
    return masses if np.isfinite(masses).all() and masses.sum() > 0 else np.ones(len(charges))


def _varying_moments(selection: Updating, charges: np.ndarray, masses: np.ndarray, block: Block) -> np.ndarray:
    from ensemblekit.md.kernels_density import dipoles

    positions, atoms, begin = selection(block)
    out = np.zeros((len(positions), 3))
    for t in range(len(positions)):
        chosen = atoms[begin[t]:begin[t + 1]]
        if len(chosen):
            dipoles(positions[t:t + 1], chosen, charges[chosen], _about(charges[chosen], masses[chosen]), out[t:t + 1])
    return out


def _vector(mean: np.ndarray) -> np.ndarray:
    return mean[:3]


def _length(mean: np.ndarray) -> np.ndarray:
    return mean[3]


def _vectors(values: np.ndarray) -> np.ndarray:
    return values[:, :3]


def _lengths(values: np.ndarray) -> np.ndarray:
    return values[:, 3]


def moments(gather: Gather, charges: np.ndarray, masses: np.ndarray, block: Block) -> np.ndarray:
    """Dipole of each frame, (n, 3)."""
    from ensemblekit.md.kernels_density import dipoles

    positions, index = gather(block)
    out = np.empty((len(positions), 3))
    dipoles(positions, index, charges, masses, out)
    return out


def _with_length(vectors: partial, block: Block) -> np.ndarray:
    m = vectors(block)
    small, e = scaled(m, 1)
    return np.column_stack([m, ldexp(np.sqrt((small**2).sum(1)), e)])


@dataclass(frozen=True)
class DielectricConstant(SameAtoms):
    """The static relative permittivity from the fluctuation of the dipole moment of the whole box.

    ``1 + (<M^2> - <M>^2) / (3 epsilon_0 <V> k_B T)`` with conducting (tin-foil) boundaries, as in simulations with Ewald
    sums: Neumann, Mol. Phys. 50, 841 (1983). Any triclinic box; molecules are made whole first. With it comes
    ``tensor`` (3, 3), whose trace is three times the constant.

    What the scatter of <M> takes from the fluctuation of a run of finite length is put back (a factor n_eff / (n_eff - 1)
    or so; ``corrected=False``: as other programs have it). The interval is vouched for from twenty independent stretches
    of M on.

    Charged molecules are refused: their dipole depends on the origin, and every ion that leaves the box adds a jump of
    q times a box vector; leave them out (``select="resname SOL"``) for the part of the solvent.
    """

    select: str = "all"
    temperature: float = float("nan")
    """In K; must be given."""
    corrected: bool = True
    """Put back what the mean of a run of finite length takes away; False: as other programs have it."""

    _fixed = "fluctuations are those of one body; md.Dipole(updating=True) follows atoms that come and go"

    def prepare(self, system: System) -> Measurement:
        if not isinstance(self.select, str):
            raise InputError(f"DielectricConstant takes the selection first, then temperature=; got {self.select!r} for it")
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
        tensor = SecondMoment(partial(_tensor, scale), slice(0, 3), np.where(np.eye(3) == 1, 1.0, -np.inf), self.corrected)
        return Measurement(ready, {
            "": OfMean(SecondMoment(partial(_epsilon, scale), slice(0, 3), 1.0, self.corrected), bounds=(1.0, None)),
            "tensor": OfMean(tensor, "", {"row": (np.arange(3), ""), "column": (np.arange(3), "")})})

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


def _tensor(scale: float, mean: np.ndarray, kept: np.ndarray) -> np.ndarray:
    tensor = np.empty((3, 3))
    i, j = np.triu_indices(3)
    tensor[i, j] = tensor[j, i] = (mean[3:9] - mean[i] * mean[j]) / np.sqrt(kept[i] * kept[j])
    return np.eye(3) + scale / mean[9] * tensor


def _epsilon(scale: float, mean: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.trace(_tensor(scale, mean, kept)) / 3
