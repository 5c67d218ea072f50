"""Radial distribution functions."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.groups import molecules_of, residues_of
from ensemblekit.md.holes import bad_frame
from ensemblekit.md.observables.base import Measurement, OfMean
from ensemblekit.md.system import System
from ensemblekit.md.updating import Updating, updating_selection
from ensemblekit.md.whole import positions_of
from ensemblekit.source import Block

NORMS = ("rdf", "density", "none")
DENSITIES = ("1/<V>", "<1/V>")
IMAGES = ("all", "nearest")
MOST_IMAGES = 2e7
"""Of atoms within the range of the box; they take 64 bytes each."""


@dataclass(frozen=True)
class RDF:
    """How many atoms of one group lie at a distance from one of another, relative to an ideal gas of the same density.

    ``g(r) = <pairs in the bin> / (pairs in all x volume of the shell x density)``, any triclinic box. Distances beyond
    half the box are right: by default every image counts, as in an endless crystal of boxes, so that g goes on to 1
    whatever the range; ``images="nearest"`` counts each pair once, as MDAnalysis and mdtraj do, and falls off beyond
    half the box (it looks at every pair there: slow). Within half the box both are the same.

    With it comes ``coordination``: the mean number of atoms of `select_b` within r of one of `select_a`, running over the
    upper edges of the bins, those nearer than the range included.
    """

    select_a: str
    select_b: str | None = None
    """None: the same as `select_a`."""
    range: tuple[float, float] = (0.0, 15.0)
    """Of distances, in angstrom."""
    n_bins: int = 75
    exclude: str | tuple[int, int] | None = None
    """Pairs left out, which also lowers the number of pairs that g is relative to: "residue", "molecule" (bonds must be
    known), or (k, l), pairs of the i-th k atoms of a with the i-th l of b (MDAnalysis' exclusion_block). An atom never
    pairs with itself."""
    density: str = "1/<V>"
    """"1/<V>" as in MDAnalysis, "<1/V>" as in mdtraj; they differ where the box breathes (NPT)."""
    _: KW_ONLY
    norm: str = "rdf"
    """"rdf": g(r). "density": atoms of b per cubic angstrom at r from one of a. "none": pairs per frame. The last two need
    no box."""
    images: str = "all"
    updating: bool = False
    """Choose the atoms anew in every frame. g is then <pairs in the bin> <V> over <pairs in all> and the volume of the shell:
    a frame counts by its pairs. Exclusions by blocks of atoms need atoms that stay."""

    def prepare(self, system: System) -> Measurement:
        edges = self._edges()
        if self.updating:
            return self._varying(system, edges)
        a = system.select(self.select_a)
        b = a if self.select_b is None else system.select(self.select_b)
        label_a, label_b = self._labels(system, a, b)
        same = np.array_equal(a, b) and np.array_equal(label_a, label_b)
        pairs = n_pairs(a, b, label_a, label_b)
        if pairs == 0:
            raise InputError(f"no pair is left between {self.select_a!r} and {self.select_b or self.select_a!r}"
                             + (f" with exclude={self.exclude!r}" if self.exclude else "; a pair needs two atoms"))
        box = system.first_frame().box
        if box is None and (self.norm == "rdf" or self.images == "nearest"):
            raise InputError("g(r) is relative to the density, and these frames have no box: take norm=\"density\" (atoms per "
                             "cubic angstrom) or norm=\"none\" (pairs), or give the box with MDAnalysis' set_dimensions, "
                             "transformations=[set_dimensions([a, b, c, 90, 90, 90])]")
        union = np.unique(np.concatenate([a, b]))
        volume = 1.0 if box is None else abs(float(np.linalg.det(box)))
        if box is not None and (many := _images(box, edges[-1]) * len(b)) > MOST_IMAGES:
            raise InputError(f"within {edges[-1]:g} angstrom of this box lie {many:.2g} images of the atoms, more than fit in "
                             f"memory; take a range of about half the box, {0.5 * _sides(box[None]).min():.3g} angstrom")
        shells = 4 / 3 * np.pi * np.diff(edges**3)
        # what is averaged is of the size of g: bins over their ideal count at the first volume, then V and 1/V over it
        below = max(4 / 3 * np.pi * edges[0]**3, shells[0])
        ideal = pairs * np.concatenate([[below], shells]) / volume
        counter = _Counter(union, np.searchsorted(union, a), np.searchsorted(union, b), label_a, label_b,
                           same, edges, self.images == "nearest", ideal, volume)
        r = {"r": (0.5 * (edges[1:] + edges[:-1]), "Angstrom")}
        function = partial(_g, self.density) if self.norm == "rdf" else partial(
            _scaled, ideal[1:] / (len(a) * shells if self.norm == "density" else 1.0))
        unit = {"rdf": "", "density": "Angstrom-3", "none": ""}[self.norm]
        return Measurement(counter, {
            "": OfMean(function, unit, r, bounds=(0.0, None), scale="linear"),
            "coordination": OfMean(partial(_running, ideal / len(a)), "", {"r": (edges[1:], "Angstrom")}, bounds=(0.0, None))})

    def _varying(self, system: System, edges: np.ndarray) -> Measurement:
        if self.exclude not in (None, "residue", "molecule"):
            raise InputError(f"RDF(updating=True) excludes by \"residue\" or \"molecule\"; got {self.exclude!r}, blocks of "
                             "atoms that change from frame to frame")
        first = system.first_frame()
        if first.box is None and (self.norm == "rdf" or self.images == "nearest"):
            raise InputError("g(r) is relative to the density, and these frames have no box: take norm=\"density\" or "
                             "norm=\"none\", or give the box with MDAnalysis' set_dimensions transformation")
        a = updating_selection(system, self.select_a, True)
        b = a if self.select_b in (None, self.select_a) else updating_selection(system, self.select_b or "", True)
        everyone = np.arange(len(system.topology))
        labels = self._labels(system, everyone, everyone)[0]
        volume = 1.0 if first.box is None else abs(float(np.linalg.det(first.box)))
        shells = 4 / 3 * np.pi * np.diff(edges**3)
        ideal = np.concatenate([[max(4 / 3 * np.pi * edges[0]**3, shells[0])], shells]) / volume
        counter = _VaryingCounter(a, b, labels, edges, self.images == "nearest", ideal, volume)
        per = {"rdf": None, "density": ideal[1:] / shells, "none": ideal[1:]}[self.norm]
        unit = {"rdf": "", "density": "Angstrom-3", "none": ""}[self.norm]
        return Measurement(counter, {
            "": OfMean(partial(_varying_g, self.density, self.norm, per), unit,
                       {"r": (0.5 * (edges[1:] + edges[:-1]), "Angstrom")}, bounds=(0.0, None), scale="linear"),
            "coordination": OfMean(partial(_varying_running, ideal), "", {"r": (edges[1:], "Angstrom")}, bounds=(0.0, None))})

    def _edges(self) -> np.ndarray:
        for name, value, known in (("norm", self.norm, NORMS), ("density", self.density, DENSITIES),
                                   ("images", self.images, IMAGES)):
            if value not in known:
                raise InputError(f"RDF({name}=) is one of {', '.join(map(repr, known))}; got {value!r}")
        try:
            low, high = (float(v) for v in self.range)
        except (TypeError, ValueError) as error:
            raise InputError(f"RDF(range=) is two distances in angstrom, (low, high); got {self.range!r}") from error
        if not (0 <= low < high < np.inf):
            raise InputError(f"RDF(range=) rises from 0 or more; got {self.range!r}")
        if not isinstance(self.n_bins, int | np.integer) or self.n_bins < 1:
            raise InputError(f"RDF(n_bins=) is a whole number above 0; got {self.n_bins!r}")
        return np.linspace(low, high, int(self.n_bins) + 1)

    def _labels(self, system: System, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A number an atom; pairs of equal numbers are left out."""
        if self.exclude is None:
            return a, b
        if self.exclude == "residue":
            labels = residues_of(system.topology)
            return labels[a], labels[b]
        if self.exclude == "molecule":
            labels = molecules_of(system.topology)
            return labels[a], labels[b]
        try:
            exclude: Any = self.exclude
            k, m = exclude
            good = int(k) == k and int(m) == m and k > 0 and m > 0
        except (TypeError, ValueError):
            good = False
        if not good:
            raise InputError("RDF(exclude=) is \"residue\", \"molecule\", two whole numbers (atoms a block in a and in b) or "
                             f"None; got {self.exclude!r}")
        return np.arange(len(a)) // int(k), np.arange(len(b)) // int(m)


def n_pairs(a: np.ndarray, b: np.ndarray, label_a: np.ndarray, label_b: np.ndarray) -> int:
    """Ordered pairs of an atom of a with one of b, without those of one atom or of one label."""
    labels, which = np.unique(np.concatenate([label_a, label_b]), return_inverse=True)
    alike = int(np.bincount(which[:len(a)], minlength=len(labels)) @ np.bincount(which[len(a):], minlength=len(labels)))
    _, in_a, in_b = np.intersect1d(a, b, return_indices=True)
    return len(a) * len(b) - alike - int((label_a[in_a] != label_b[in_b]).sum())


class _Counter:
    """Block -> (n, bins + 3): pairs over their ideal number, those below the range first; then V / V0 and V0 / V."""

    def __init__(self, union: np.ndarray, a: np.ndarray, b: np.ndarray, label_a: np.ndarray, label_b: np.ndarray, same: bool,
                 edges: np.ndarray, nearest: bool, ideal: np.ndarray, volume: float):
        self.union, self.a, self.b = union, a.astype(np.int64), b.astype(np.int64)
        self.label_a, self.label_b = label_a.astype(np.int64), label_b.astype(np.int64)
        self.same, self.edges, self.nearest, self.ideal, self.volume = same, edges, nearest, ideal, volume

    def __call__(self, block: Block) -> np.ndarray:
        from ensemblekit.md.kernels_rdf import nearest_counts, pair_counts

        x = positions_of(block)[:, self.union]      # a copy, of these atoms only: one layout for the kernel
        x = x if x.dtype == np.float32 else x.astype(np.float64)
        cells = np.array(block.fields["box"], np.float64, order="C") if "box" in block.fields else np.empty((0, 3, 3))
        counts, volumes = np.empty((len(x), len(self.edges))), np.empty(len(x))
        groups = (self.a, self.b, self.label_a, self.label_b)
        if self.nearest and not _within_half(cells, self.edges[-1]):
            bad = nearest_counts(x, cells, *groups, self.edges, counts, volumes)
        else:
            bad = pair_counts(x, cells, *groups, self.same, self.edges, counts, volumes)
        if bad >= 0:
            raise bad_frame(block, bad, x[bad], cells[bad] if len(cells) else None, self.union)
        out = np.empty((len(x), len(self.edges) + 2))
        out[:, :-2] = counts / self.ideal
        out[:, -2] = volumes / self.volume
        out[:, -1] = self.volume / volumes
        if not len(cells):
            out[:, -2:] = 1.0
        return out


class _VaryingCounter:
    """Block -> (n, bins + 5): pairs over shell / V0, those below the range first; V / V0, V0 / V; pairs in all, atoms of a."""

    def __init__(self, a: Updating, b: Updating, labels: np.ndarray, edges: np.ndarray, nearest: bool, ideal: np.ndarray,
                 volume: float):
        self.a, self.b, self.labels, self.edges = a, b, labels.astype(np.int64), edges
        self.nearest, self.ideal, self.volume = nearest, ideal, volume

    def __call__(self, block: Block) -> np.ndarray:
        from ensemblekit.md.kernels_rdf import nearest_counts, pair_counts

        x, chosen, begin = self.a(block)
        other, begin_b = (chosen, begin) if self.b is self.a else self.b(block)[1:]
        x = x if x.dtype == np.float32 else x.astype(np.float64)
        cells = np.array(block.fields["box"], np.float64, order="C") if "box" in block.fields else np.empty((0, 3, 3))
        nearest = self.nearest and not _within_half(cells, self.edges[-1])
        out, volumes = np.zeros((len(x), len(self.edges) + 4)), np.full(len(x), self.volume)
        if len(cells):
            volumes = np.abs(np.linalg.det(cells))
        for t in range(len(x)):
            one = slice(t, t + 1)
            a, b = (atoms[k[t]:k[t + 1]].astype(np.int64) for atoms, k in ((chosen, begin), (other, begin_b)))
            out[t, -2:] = n_pairs(a, b, self.labels[a], self.labels[b]), len(a)
            if not out[t, -2]:
                continue
            counts, volume = np.empty((1, len(self.edges))), np.empty(1)
            groups = (x[one], cells[one], a, b, self.labels[a], self.labels[b])
            bad = (nearest_counts(*groups, self.edges, counts, volume) if nearest else
                   pair_counts(*groups, np.array_equal(a, b), self.edges, counts, volume))
            if bad >= 0:
                raise bad_frame(block, t, x[t], cells[t] if len(cells) else None, np.arange(x.shape[1]))
            out[t, :-4] = counts[0] / self.ideal
        out[:, -4], out[:, -3] = volumes / self.volume, self.volume / volumes
        return out


def _sides(cells: np.ndarray) -> np.ndarray:
    """Sides of the brick of each cell (see kernels_pbc): (n, 3, 3) -> (n, 3)."""
    lengths = np.linalg.norm(cells[:, 0], axis=1)
    areas = np.linalg.norm(np.cross(cells[:, 0], cells[:, 1]), axis=1)
    return np.column_stack([lengths, areas / lengths, np.abs(np.linalg.det(cells)) / areas])


def _images(cell: np.ndarray, reach: float) -> float:
    """About how many boxes lie within reach of one, itself included."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.prod(1 + 2 * reach / _sides(cell[None])[0])))


def _within_half(cells: np.ndarray, reach: float) -> bool:
    """Whether no pair has two images within reach: no lattice vector is shorter than twice the shortest side."""
    return bool((_sides(cells) >= 2 * reach).all())


def _g(density: str, mean: np.ndarray) -> np.ndarray:
    return mean[1:-2] * (mean[-2] if density == "1/<V>" else 1 / mean[-1])


def _varying_g(density: str, norm: str, per: np.ndarray | None, mean: np.ndarray) -> np.ndarray:
    if norm == "none":
        return mean[1:-4] * per
    with np.errstate(invalid="ignore", divide="ignore"):
        if norm == "density":
            return mean[1:-4] * per / mean[-1]
        return mean[1:-4] * (mean[-4] if density == "1/<V>" else 1 / mean[-3]) / mean[-2]


def _varying_running(scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.cumsum(mean[:-4] * scale)[1:] / mean[-1]


def _scaled(scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return mean[1:-2] * scale


def _running(scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return np.cumsum(mean[:-2] * scale)[1:]
