"""The size and shape of molecules: radius of gyration and gyration tensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.scalar_mean import scalar_estimate
from ensemblekit.md.observables.base import Mean, Measurement, OfMean, OfSeries, Reading
from ensemblekit.md.observables.groups import check_weights_word, shares_by
from ensemblekit.md.system import Gather, System
from ensemblekit.md.updating import Updating, updating_selection
from ensemblekit.md.whole import frames_of
from ensemblekit.source import Block

AXES = ("x", "y", "z")
NAMES = ("", *(f"along_{axis}" for axis in AXES), *(f"about_{axis}" for axis in AXES))
"""Of the radius and its components."""


@dataclass(frozen=True)
class RadiusOfGyration:
    """sqrt(Σ m |r - c|² / Σ m) of each frame, c the centre of mass; in angstrom.

    MDAnalysis' `radius_of_gyration()` and `gmx gyrate`; mdtraj's `compute_rg` is ``weights=None``. What is averaged is
    the radius, as people quote it; scattering sees the root of its mean square, which is `rms`.

    With ``components=True`` come `along_x`, `along_y`, `along_z`, the roots of the mean squares along each axis, and
    `about_x`, `about_y`, `about_z`, the radii of gyration about each axis (of the other two components; gmx gyrate's
    Rg(X/Y/Z)); each a number with its own series and interval.
    """

    select: str = "protein"
    weights: str | None = "mass"
    """"mass", or None for all atoms alike."""
    components: bool = False
    """Components too, as `along_*` and `about_*`."""
    updating: bool = False
    """Choose the atoms anew in every frame."""

    def prepare(self, system: System) -> Measurement:
        if self.updating:
            squares = partial(_varying_squares, updating_selection(system, self.select), _masses(system, self.weights))
        else:
            atoms = system.select(self.select)
            squares = partial(_squares, system.assembled(atoms), shares_by(system, atoms, self.weights))
        if not self.components:
            return Measurement(partial(_radius, squares), Mean("Angstrom", bounds=(0.0, None)), uses_blas=self.updating)
        return Measurement(partial(_components, squares), {
            name: OfSeries(partial(_column, k), "Angstrom", bounds=(0.0, None)) for k, name in enumerate(NAMES)})


@dataclass(frozen=True)
class GyrationTensor:
    """The gyration tensor's shape: its three principal moments, largest first; in angstrom².

    Further: `asphericity` (λ1 - (λ2 + λ3)/2, angstrom²), `acylindricity` (λ2 - λ3, angstrom²) and `anisotropy` (relative
    shape anisotropy 1 - 3 (λ1 λ2 + λ2 λ3 + λ3 λ1) / (λ1 + λ2 + λ3)², from 0 for a sphere to 1 for a rod), each averaged
    over frames (Theodorou & Suter, Macromolecules 18, 1206, 1985).
    """

    select: str = "protein"
    weights: str | None = "mass"
    """"mass", or None for all atoms alike."""
    updating: bool = False
    """Choose the atoms anew in every frame."""

    def prepare(self, system: System) -> Measurement:
        if self.updating:
            second = partial(_varying_second_moments, updating_selection(system, self.select), _masses(system, self.weights))
        else:
            atoms = system.select(self.select)
            second = partial(_second_moments, system.assembled(atoms), shares_by(system, atoms, self.weights))
        moments = slice(0, 3)
        return Measurement(partial(_shape, second), {
            "": OfMean(partial(_take, moments), "Angstrom2", {"moment": (np.arange(1, 4), "")}, partial(_columns, moments),
                       (0.0, None)),
            "asphericity": OfMean(partial(_take, 3), "Angstrom2", series=partial(_columns, 3), bounds=(0.0, None)),
            "acylindricity": OfMean(partial(_take, 4), "Angstrom2", series=partial(_columns, 4), bounds=(0.0, None)),
            "anisotropy": OfMean(partial(_take, 5), series=partial(_columns, 5), bounds=(0.0, 1.0))})


def _take(k: int | slice, mean: np.ndarray) -> np.ndarray:
    return mean[k]


def _columns(k: int | slice, values: np.ndarray) -> np.ndarray:
    return values[:, k]


def _column(k: int, reading: Reading) -> Estimate:
    """The radius or one of its six components, from their series (n, 7)."""
    return scalar_estimate(reading.values[:, k], reading.weights, reading.times, reading.equilibration, reading.confidence,
                           "Angstrom", time_unit="ps", ordered=reading.run.ordered)


def _squares(gather: Gather, shares: np.ndarray, block: Block) -> np.ndarray:
    """Mean squares about the centre along x, y, z, (n, 3)."""
    from ensemblekit.md.kernels_gyration import gyration

    positions, index = gather(block)
    rows = frames_of(positions)
    out = np.empty((rows.n, 3))
    gyration(*rows, index, shares, out)
    return out


def _varying_squares(selection: Updating, weights: np.ndarray, block: Block) -> np.ndarray:
    from ensemblekit.md.kernels_gyration import varying_gyration

    positions, atoms, offsets = selection(block)
    rows = frames_of(positions)
    out = np.empty((rows.n, 3))
    varying_gyration(*rows, atoms, offsets, weights, out)
    return out


def _radius(squares: partial, block: Block) -> np.ndarray:
    return np.sqrt(squares(block).sum(1))


def _components(squares: partial, block: Block) -> np.ndarray:
    per_axis = squares(block)
    total = per_axis.sum(1, keepdims=True)
    return np.sqrt(np.concatenate([total, per_axis, np.clip(total - per_axis, 0, None)], axis=1))


def _masses(system: System, weights: str | None) -> np.ndarray:
    """Of all atoms: any of them may be chosen."""
    check_weights_word(weights)
    everyone = np.arange(len(system.topology))
    return np.ones(len(everyone)) if weights is None else system.masses(everyone)


def _second_moments(gather: Gather, shares: np.ndarray, block: Block) -> np.ndarray:
    """xx, yy, zz, xy, xz, yz of each frame, (n, 6)."""
    from ensemblekit.md.kernels_gyration import gyration_tensor

    positions, index = gather(block)
    rows = frames_of(positions)
    six = np.empty((rows.n, 6))
    gyration_tensor(*rows, index, shares, six)
    return six


def _varying_second_moments(selection: Updating, mass: np.ndarray, block: Block) -> np.ndarray:
    from ensemblekit.md.kernels_gyration import gyration_tensor

    positions, atoms, begin = selection(block)
    six = np.full((len(positions), 6), np.nan)
    for t in range(len(positions)):
        chosen = atoms[begin[t]:begin[t + 1]]
        if mass[chosen].sum() > 0:
            gyration_tensor(*frames_of(positions[t:t + 1]), chosen, mass[chosen] / mass[chosen].sum(), six[t:t + 1])
    return six


def _shape(second: partial, block: Block) -> np.ndarray:
    six = second(block)
    sound = np.asarray(np.isfinite(six).all(1))
    matrix = np.where(sound[:, None, None], six[:, [[0, 3, 4], [3, 1, 5], [4, 5, 2]]], 0.0)
    moments = np.linalg.eigvalsh(matrix)[:, ::-1]
    a, b, c = moments.T
    with np.errstate(invalid="ignore", divide="ignore"):
        anisotropy = 1 - 3 * (a * b + b * c + c * a) / (a + b + c) ** 2
    descriptors = np.column_stack([moments, a - (b + c) / 2, b - c, anisotropy])
    descriptors[~sound] = np.nan
    return descriptors


