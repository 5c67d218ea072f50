"""Density profiles along an axis of the box."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.holes import bad_frame
from ensemblekit.md.observables.base import Mean, Measurement
from ensemblekit.md.system import System
from ensemblekit.md.updating import Updating, updating_selection
from ensemblekit.md.whole import positions_of
from ensemblekit.source import Block

GRAMS = 1.66053906660
"""1 u / angstrom^3 in g / cm^3 (CODATA 2018)."""
KINDS = {"number": "Angstrom-3", "mass": "g cm-3", "charge": "e Angstrom-3"}


@dataclass(frozen=True)
class DensityProfile:
    """Density in slabs stacked along one vector of the box, parallel to the other two; any triclinic box.

    Distances are taken along the normal of the slabs. Without `range` the slabs are equal shares of the box and follow
    it where it breathes; the axis shows them at the size of the first frame.
    """

    select: str = "all"
    axis: str = "z"
    """"x", "y" or "z": along the first, second or third vector of the box."""
    kind: str = "mass"
    """"number" (per cubic angstrom), "mass" (g / cm^3) or "charge" (e per cubic angstrom)."""
    n_bins: int = 100
    range: tuple[float, float] | None = None
    """In angstrom from the origin, no wider than the box; None: the whole box."""
    centre: str | None = None
    """Atoms whose centre of mass, found on the circle that the periodic axis is, becomes the origin: the bilayer. None: the
    corner of the box."""
    _: KW_ONLY
    updating: bool = False
    """Choose the atoms, those of `centre` too, anew in every frame."""

    def prepare(self, system: System) -> Measurement:
        if self.axis not in ("x", "y", "z"):
            raise InputError(f'DensityProfile(axis=) is "x", "y" or "z"; got {self.axis!r}')
        if self.kind not in KINDS:
            raise InputError(f"DensityProfile(kind=) is one of {', '.join(map(repr, KINDS))}; got {self.kind!r}")
        if not isinstance(self.n_bins, int | np.integer) or self.n_bins < 1:
            raise InputError(f"DensityProfile(n_bins=) is a whole number above 0; got {self.n_bins!r}")
        if self.range is not None and not (len(self.range) == 2 and -np.inf < self.range[0] < self.range[1] < np.inf):
            raise InputError(f"DensityProfile(range=) is two rising distances in angstrom; got {self.range!r}")
        box = system.first_frame().box
        if box is None:
            raise InputError("a density needs the volume of the slabs, and these frames have no box; give one with MDAnalysis' "
                             "set_dimensions transformation")
        everyone = np.arange(len(system.topology))
        atoms = everyone if self.updating else system.select(self.select)
        weights = {"number": lambda: np.ones(len(atoms)), "mass": lambda: system.masses(atoms) * GRAMS,
                   "charge": lambda: system.charges(atoms)}[self.kind]()
        centre = np.empty(0, np.int64)
        if self.centre is not None:
            centre = everyone if self.updating else system.select(self.centre)
        centre_weights = np.empty(0) if self.centre is None else system.masses(centre)
        axis = "xyz".index(self.axis)
        height = abs(np.linalg.det(box)) / np.linalg.norm(np.cross(box[(axis + 1) % 3], box[(axis + 2) % 3]))
        low, high = (-height / 2, height / 2) if self.range is None and self.centre else self.range or (0.0, height)
        edges = np.linspace(low, high, self.n_bins + 1)
        profile = _Profile(np.unique(np.concatenate([atoms, centre])), atoms, weights, axis, centre, centre_weights,
                           self.range, int(self.n_bins), self._varying(system))
        return Measurement(profile, Mean(KINDS[self.kind], {self.axis: (0.5 * (edges[1:] + edges[:-1]), "Angstrom")},
                                         None if self.kind == "charge" else (0.0, None)))


    def _varying(self, system: System) -> tuple[Updating, Updating | None] | None:
        if not self.updating:
            return None
        return (updating_selection(system, self.select, True),
                None if self.centre is None else updating_selection(system, self.centre, True))


class _Profile:
    """Block -> (n, bins) densities."""

    def __init__(self, union: np.ndarray, atoms: np.ndarray, weights: np.ndarray, axis: int, centre: np.ndarray,
                 centre_weights: np.ndarray, range: tuple[float, float] | None, bins: int,
                 varying: tuple[Updating, Updating | None] | None = None):
        self.varying = varying
        self.union, self.weights, self.axis, self.range, self.bins = union, weights, axis, range, bins
        self.atoms, self.centre = np.searchsorted(union, atoms), np.searchsorted(union, centre)
        self.centre_weights = centre_weights

    def __call__(self, block: Block) -> np.ndarray:
        from ensemblekit.md.kernels_density import add_profile

        x = positions_of(block)[:, self.union]
        x = x if x.dtype == np.float32 else x.astype(np.float64)
        cells = np.array(block.fields["box"], np.float64, order="C")
        out, heights = np.empty((len(x), self.bins)), np.empty(len(x))
        low, high = self.range or (np.nan, np.nan)
        bad = -1
        if self.varying is None:
            bad = add_profile(x, self.atoms, self.weights, cells, self.axis, self.centre, self.centre_weights, low, high, out,
                              heights)
        else:
            _, atoms, begin = self.varying[0](block)
            none = np.zeros(0, np.int64), np.zeros(len(x) + 1, np.int64)
            centre, origin = none if self.varying[1] is None else self.varying[1](block)[1:]
            for t in range(len(x)):
                one, chosen, middle = slice(t, t + 1), atoms[begin[t]:begin[t + 1]], centre[origin[t]:origin[t + 1]]
                if self.varying[1] is not None and not len(middle):
                    raise InputError(f"no atom of centre={self.varying[1].text!r} is left in frame {block.start + t}: the "
                                     "profile has no origin there")
                if add_profile(x[one], chosen, self.weights[chosen], cells[one], self.axis, middle, self.centre_weights[middle],
                               low, high, out[one], heights[one]) >= 0:
                    bad = t
                    break
        if bad >= 0:
            raise bad_frame(block, bad, x[bad], cells[bad], self.union)
        if self.range is not None and (wide := high - low) > heights.min():
            k = int(heights.argmin())
            raise InputError(f"range={self.range} is {wide:g} angstrom wide, the box of frame {block.start + k} only "
                             f"{heights[k]:g}; take a range within it, or None for the whole box")
        return out
