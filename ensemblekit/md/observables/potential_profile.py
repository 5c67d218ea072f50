"""The electrostatic potential along an axis of the box, of charges averaged over the planes across it: membranes, layers."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.ewald import COULOMB
from ensemblekit.md.holes import bad_frame
from ensemblekit.md.observables.base import Mean, Measurement
from ensemblekit.md.observables.dipole import moments
from ensemblekit.md.sources import charges_of, check_molecules, net_in_words
from ensemblekit.md.system import Gather, System
from ensemblekit.md.whole import positions_of
from ensemblekit.source import Block


@dataclass(frozen=True, eq=False)
class PotentialProfile:
    """The potential in planes across one vector of the box, in V, all images; its mean over the cell is 0: (bins,).

    The charge profile integrated twice with the period of the box, exactly for each charge, in the middle of `n_bins` slabs;
    any triclinic box, along the normal of the slabs. Slabs are shares of the box and follow it where it breathes; the axis
    shows them at the size of the first frame.
    """

    axis: str = "z"
    """"x", "y" or "z": along the first, second or third vector of the box."""
    sources: str = "all"
    """The charges that act."""
    n_bins: int = 200
    surface: Literal["tinfoil", "slab-z"] = "tinfoil"
    """What is around the periodic cells: "tinfoil", or "slab-z" for layers across z with vacuum between them, where the
    potential may differ from side to side."""
    _: KW_ONLY
    center: str | None = None
    """Atoms whose center of mass, taken on the circle that a periodic axis is, becomes the origin: the bilayer. None: the
    corner of the box."""

    def prepare(self, system: System) -> Measurement:
        self._check()
        box = system.first_frame().box
        if box is None:
            raise InputError("PotentialProfile goes round a periodic cell, and these frames have none; give one with "
                             "MDAnalysis' set_dimensions transformation")
        atoms, values = charges_of(system, self.sources)
        gather = None
        if self.surface == "slab-z":
            check_molecules(system, atoms, values, "PotentialProfile", self.surface)
            gather = system.gather(atoms)
        center = np.empty(0, np.int64) if self.center is None else system.select(self.center)
        weights = np.empty(0) if self.center is None else system.masses(center)
        axis = "xyz".index(self.axis)
        height = abs(float(np.linalg.det(box))) / float(np.linalg.norm(np.cross(box[(axis + 1) % 3], box[(axis + 2) % 3])))
        places = (np.arange(self.n_bins) + 0.5) / self.n_bins * height - (0.0 if self.center is None else height / 2)
        around = ("tin-foil around" if self.surface == "tinfoil" else
                  "layers with vacuum between them, which is to lie at the ends of the profile")
        system.note(f"{net_in_words(values)}; all images, {around}; the potential averages to 0 over the cell")
        return Measurement(_Sheets(atoms, values, axis, int(self.n_bins), center, weights, gather),
                           Mean("V", {self.axis: (places, "Angstrom")}))

    def _check(self) -> None:
        if self.axis not in ("x", "y", "z"):
            raise InputError(f'PotentialProfile(axis=) is "x", "y" or "z"; got {self.axis!r}')
        if not isinstance(self.n_bins, int | np.integer) or isinstance(self.n_bins, bool) or self.n_bins < 2:
            raise InputError(f"PotentialProfile(n_bins=) is a whole number above 1; got {self.n_bins!r}")
        if self.surface not in ("tinfoil", "slab-z"):
            raise InputError(f"PotentialProfile(surface=) is 'tinfoil' or 'slab-z'; got {self.surface!r}")
        if self.surface == "slab-z" and self.axis != "z":
            raise InputError(f'PotentialProfile(surface="slab-z") is about layers across z; got axis={self.axis!r}')
        for name, text in (("sources", self.sources), ("center", self.center)):
            if not isinstance(text, str) and not (name == "center" and text is None):
                raise InputError(f"PotentialProfile({name}=) is a selection; got {text!r}")


@dataclass(frozen=True, eq=False)
class _Sheets:
    """Block -> (n, bins), V."""

    atoms: np.ndarray
    charges: np.ndarray
    axis: int
    bins: int
    center: np.ndarray
    center_weights: np.ndarray
    whole: Gather | None
    """Of the charges, for the dipole of whole molecules between layers."""

    def __call__(self, block: Block) -> np.ndarray:
        from ensemblekit.md.kernels_density import add_sheets

        positions = positions_of(block)
        x = positions if positions.dtype == np.float32 else positions.astype(np.float64)
        cells = np.array(block.fields["box"], np.float64, order="C")
        out, heights = np.empty((len(x), self.bins)), np.empty(len(x))
        bad = add_sheets(x, self.atoms, self.charges, cells, self.axis, self.center, self.center_weights, out, heights)
        if bad >= 0:
            raise bad_frame(block, bad, x[bad][self.atoms], cells[bad], self.atoms)
        if self.whole is not None:
            across = moments(self.whole, self.charges, np.zeros(len(self.charges)), block)[:, 2]
            share = (np.arange(self.bins) + 0.5) / self.bins - 0.5
            out += (4 * np.pi * across * heights / np.abs(np.linalg.det(cells)))[:, None] * share
        return COULOMB * out


__all__ = ["PotentialProfile"]
