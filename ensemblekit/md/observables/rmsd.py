"""Deviation of frames from a reference structure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Mean, Measurement, SameAtoms
from ensemblekit.md.observables.groups import reference_positions, shares_by
from ensemblekit.md.superpose import Fit, split
from ensemblekit.md.system import Gather, System
from ensemblekit.source import Block


@dataclass(frozen=True)
class RMSD(SameAtoms):
    """Root mean square deviation of atoms from a reference after superposition; in angstrom.

    Least squares by quaternions (Theobald, Acta Cryst. A 61, 478, 2005), never mirrored: MDAnalysis' `rms.RMSD`, mdtraj's
    `rmsd`, `gmx rms`.
    """

    select: str = "name CA"
    reference: Any = None
    """First frame; or a frame's number, a structure's path, a Universe or AtomGroup, positions of the selected or of all
    atoms."""
    fit: str | Literal[False] | None = None
    """The atoms that are superposed; None: those of `select`; False: nothing is moved."""
    weights: str | None = None
    """Of the atoms, in the superposition and in the deviation: None for all alike, or "mass"."""

    def prepare(self, system: System) -> Measurement:
        atoms = system.select(self.select)
        shares = shares_by(system, atoms, self.weights)
        length = Mean("Angstrom", bounds=(0.0, None))
        if self.fit is False:
            target = reference_positions(system, self.reference, self.select, atoms)
            return Measurement(partial(_carried, system.assembled(atoms), Fit.none(), shares, target), length, uses_blas=False)
        fitted = atoms if self.fit is None else system.select(self.fit)
        check_fit(fitted, self.fit or self.select, 2)
        if np.array_equal(fitted, atoms):
            onto = Fit.onto(reference_positions(system, self.reference, self.select, atoms), shares)
            return Measurement(partial(_deviation, system.assembled(atoms), onto), length, uses_blas=False)
        target = reference_positions(system, self.reference, self.select, atoms)
        onto = Fit.onto(reference_positions(system, self.reference, self.fit or "", fitted),
                        shares_by(system, fitted, self.weights))
        return Measurement(partial(_carried, system.assembled(np.concatenate([fitted, atoms])), onto, shares, target), length,
                           uses_blas=False)


def check_fit(fitted: np.ndarray, select: str, least: int) -> None:
    """Refuse a superposition on too few atoms to mean anything."""
    if len(fitted) < least:
        raise InputError(f"a superposition needs {least} atoms or more; {select!r} gives {len(fitted)}. Choose others with "
                         "fit=, or fit=False to take the frames as they are")


def _deviation(gather: Gather, onto: Fit, block: Block) -> np.ndarray:
    positions, index = gather(block)
    return onto.rmsd(positions, index)


def _carried(gather: Gather, onto: Fit, shares: np.ndarray, target: np.ndarray, block: Block) -> np.ndarray:
    positions, index = gather(block)
    fitted, atoms = split(index, len(onto), False)
    return onto.carried_rmsd(positions, fitted, atoms, shares, target)
