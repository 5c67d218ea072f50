"""The electrostatic potential on a grid over the cell, of charges that are smeared as Gaussians, and files of it."""

from __future__ import annotations

import math
import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np

from ensemblekit.averaging.estimate import Coords, Estimate
from ensemblekit.errors import InputError
from ensemblekit.files import replacing
from ensemblekit.md.ewald import COULOMB
from ensemblekit.md.holes import bad_frame
from ensemblekit.md.observables.base import Mean, Measurement
from ensemblekit.md.observables.dipole import XYZ
from ensemblekit.md.observables.field import Part
from ensemblekit.md.places import Center, Vectors
from ensemblekit.md.sources import charges_of, net_in_words
from ensemblekit.md.system import System
from ensemblekit.md.whole import positions_of
from ensemblekit.source import Block

AXES = ("a", "b", "c")
BOHR, HARTREE = 0.529177210903, 27.211386245988
"""Angstrom, and V of one electron (CODATA 2018)."""
FINEST = 0.05
"""Angstrom: closer grid points are taken for a slip."""


@dataclass(frozen=True, eq=False)
class PotentialMap:
    """The potential on a grid over the cell, in V, of charges smeared as Gaussians, all images: (points along a, b, c).

    Every wave of the charges up to the error asked for, without interpolation (the long-ranged part of Ewald's sum); its mean
    over the cell is 0. The grid is one of fractions of the cell, so that it follows a box that breathes. With it come ``cell``
    (3, 3), the mean cell, and ``origin`` (3,), where the grid begins; :func:`write_map` writes all as .dx or .cube.
    """

    spacing: float = 1.0
    """Of the grid, at the most, in angstrom."""
    sources: str = "all"
    """The charges that act."""
    _: KW_ONLY
    width: float = 2.0
    """Standard deviation of the Gaussians, in angstrom."""
    center: str | None = None
    """Atoms whose center of mass stays in the middle of the grid, their molecules made whole; None: the grid begins at the
    corner of the cell. The cell does not turn along."""
    tolerance: float = 1e-4
    """Rms error of the waves that are left out, in V."""

    def prepare(self, system: System) -> Measurement:
        self._check()
        box = system.first_frame().box
        if box is None:
            raise InputError("PotentialMap is a grid over a periodic cell, and these frames have none; give one with "
                             "MDAnalysis' set_dimensions transformation, or ask for md.ElectricPotential at points")
        volume, sides = abs(float(np.linalg.det(box))), np.linalg.norm(box, axis=1)
        if not volume > 0:
            raise InputError(f"the box of the first frame has no volume: {box.tolist()}")
        atoms, values = charges_of(system, self.sources)
        shape = tuple(int(n) for n in np.maximum(1, np.ceil(sides / self.spacing - 1e-9)))
        middle = None if self.center is None else Center(self.center).placed(system).points
        start = None if middle is None else middle(_first_block(system))[0, 0]
        longest = _longest(self.tolerance, self.width, volume, math.sqrt(float(values @ values)))
        size = math.prod(shape)
        grid: Coords = {name: (np.arange(n) / n * side, "Angstrom") for name, n, side in zip(AXES, shape, sides, strict=True)}
        rows: Coords = {"vector": (np.array(AXES), "")}
        system.note(f"{net_in_words(values)}; Gaussians of {self.width:g} Å, all images with tin-foil around; the potential "
                    f"averages to 0 over the cell; wave vectors to {longest:.4g} / Å on {' x '.join(map(str, shape))} points")
        return Measurement(_Maps(atoms, values, shape, self.width, longest, middle, start), {
            "": Mean("V", grid, of=Part(0, shape)), "cell": Mean("Angstrom", {**rows, **XYZ}, of=Part(size, (3, 3))),
            "origin": Mean("Angstrom", XYZ, of=Part(size + 9, (3,)))})

    def _check(self) -> None:
        for name, value, least in (("spacing", self.spacing, FINEST), ("width", self.width, 0.1),
                                   ("tolerance", self.tolerance, 1e-12)):
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not (number and least <= value < np.inf):
                unit = "V" if name == "tolerance" else "angstrom"
                raise InputError(f"PotentialMap({name}=) is a number from {least:g} {unit} on; got {value!r}")
        for name, text in (("sources", self.sources), ("center", self.center)):
            if not isinstance(text, str) and not (name == "center" and text is None):
                raise InputError(f"PotentialMap({name}=) is a selection; got {text!r}")


def _longest(tolerance: float, width: float, volume: float, q: float) -> float:
    """The wave vector beyond which the waves add this rms potential, V; random places of charges whose squares add up to q²."""
    k = 1 / width
    while 2 * COULOMB * q / (width * k * math.sqrt(volume * k)) * math.exp(-0.5 * (k * width) ** 2) > tolerance:
        k *= 1.01
    return k


def _first_block(system: System) -> Block:
    first = system.first_frame()
    assert first.box is not None
    return Block({"position": first.position[None], "box": first.box[None]}, 0, slice(None), None, None)


@dataclass(frozen=True, eq=False)
class _Maps:
    """Block -> rows: the potential on the grid, the cell (9), and where the grid begins (3)."""

    atoms: np.ndarray
    charges: np.ndarray
    shape: tuple[int, ...]
    width: float
    longest: float
    middle: Vectors | None
    """Block -> (n, 1, 3): what stays in the middle of the grid."""
    start: np.ndarray | None
    """(3,): where that is in the first frame."""

    def __call__(self, block: Block) -> np.ndarray:
        positions, boxes = positions_of(block), np.array(block.fields["box"], np.float64, order="C")
        size = math.prod(self.shape)
        out = np.zeros((len(block), size + 12))
        middles = None if self.middle is None else self.middle(block)[:, 0]
        for t in range(len(block)):
            potential = self._of_frame(positions[t], boxes[t], None if middles is None else middles[t])
            if potential is None:
                raise bad_frame(block, t, np.asarray(positions[t][self.atoms]), boxes[t], self.atoms)
            out[t, :size] = potential.ravel()
            out[t, size:size + 9] = boxes[t].ravel()
            if self.start is not None:
                out[t, size + 9:] = self.start - 0.5 * boxes[t].sum(axis=0)
        return out

    def _of_frame(self, positions: np.ndarray, cell: np.ndarray, middle: np.ndarray | None) -> np.ndarray | None:
        from scipy.fft import ifftn

        from ensemblekit.md.kernels_ewald import fractions, structure_factor, waves_of
        from ensemblekit.md.kernels_pbc import into_brick, lower_triangular

        lower, turn = np.empty((3, 3)), np.empty((3, 3))
        x = np.empty((3, len(self.atoms)))
        if not lower_triangular(cell, lower, turn) > 0 or not into_brick(positions, self.atoms, lower, turn, x):
            return None
        whole, _, factor = waves_of(lower, 1 / (math.sqrt(2) * self.width), self.longest)
        s, real, imaginary = np.empty(x.shape), np.empty(len(whole)), np.empty(len(whole))
        fractions(x, lower, s)
        structure_factor(s, self.charges, 0, len(self.charges), whole, real, imaginary)
        waves = COULOMB * factor * (real - 1j * imaginary)
        if middle is not None:
            waves = waves * np.exp(2j * np.pi * (whole @ (middle @ np.linalg.inv(cell) - 0.5)))
        grid = np.zeros(self.shape, np.complex128)
        np.add.at(grid, tuple((whole % self.shape).T), waves)       # on the grid a wave is that of any index equal mod n
        return np.ascontiguousarray(ifftn(grid, norm="forward", workers=1).real)


def write_map(answer: Estimate, path: str | os.PathLike[str], *, value: str = "mean") -> None:
    """The map of an ``md.PotentialMap`` as a file for VMD, PyMOL or ChimeraX, on the mean cell.

    Arguments:
        path: .dx (OpenDX, V and angstrom) or .cube (Gaussian's, hartree / e and bohr).
        value: "mean", or "stderr".

    Raises InputError for another estimate or format; nothing half written is left.
    """
    if "cell" not in answer.derived or np.ndim(answer.mean) != 3:
        raise InputError(f"a map is that of md.PotentialMap; this estimate has shape {np.shape(answer.mean)}")
    if value not in ("mean", "stderr"):
        raise InputError(f'write_map(value=) is "mean" or "stderr"; got {value!r}')
    kind = map_suffix(path)
    values = np.asarray(answer.mean if value == "mean" else answer.stderr, np.float64)
    steps = np.asarray(answer.derived["cell"].mean) / np.array(values.shape)[:, None]
    with replacing(path, suffix=kind, follow=True) as temporary:
        origin = np.asarray(answer.derived["origin"].mean)
        (_write_dx if kind == ".dx" else _write_cube)(temporary, values, origin, steps, value)


def map_suffix(path: str | os.PathLike[str]) -> str:
    """.dx or .cube; InputError for another."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".dx", ".cube"):
        raise InputError(f"{os.fspath(path)}: maps are written as .dx or .cube")
    return suffix


def _write_dx(path: str | os.PathLike[str], values: np.ndarray, origin: np.ndarray, steps: np.ndarray, word: str) -> None:
    from gridData import OpenDX

    parts = {"positions": OpenDX.gridpositions(1, values.shape, origin, steps),
             "connections": OpenDX.gridconnections(2, values.shape), "data": OpenDX.array(3, values, type="double")}
    OpenDX.field("map", components=parts, comments=[f"electrostatic potential, {word}, V; lengths in angstrom"]).write(
        os.fspath(path))


def _write_cube(path: str | os.PathLike[str], values: np.ndarray, origin: np.ndarray, steps: np.ndarray, word: str) -> None:
    """Points along c run fastest, six a line, each row of them on lines of its own; one atom of no charge marks the origin."""
    with open(path, "w", encoding="ascii") as file:
        file.write(f"electrostatic potential, {word}\nhartree / e; lengths in bohr\n")
        file.write(("{:5d}" + " {:12.6f}" * 3 + "\n").format(1, *(origin / BOHR)))
        for n, step in zip(values.shape, steps / BOHR, strict=True):
            file.write(("{:5d}" + " {:12.6f}" * 3 + "\n").format(n, *step))
        file.write(("{:5d}" + " {:12.6f}" * 4 + "\n").format(1, 0.0, *(origin / BOHR)))
        for row in (values / HARTREE).reshape(-1, values.shape[2]):
            words = [f"{one: .6E}" for one in row]
            file.writelines(" ".join(words[k:k + 6]) + "\n" for k in range(0, len(words), 6))


__all__ = ["PotentialMap", "write_map"]
