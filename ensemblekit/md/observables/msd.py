"""Mean squared displacement and diffusion."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.equilibration import count_discarded, significant_start
from ensemblekit.averaging.estimate import Estimate, bounded_interval, student_interval
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.md.displacement import (
    FEWEST_GROUPS,
    brownian_error,
    finite_size_correction,
    slope_of,
    squared_displacements,
    wigner_constant,
)
from ensemblekit.md.groups import molecules_of, residues_of
from ensemblekit.md.holes import frame_in_words
from ensemblekit.md.observables.base import VALUES, Measurement, OfSeries, Reading, SameAtoms
from ensemblekit.md.spilled_series import Parts, SpilledSeries
from ensemblekit.md.system import System
from ensemblekit.md.whole import positions_of
from ensemblekit.source import Block

MOST_GROUPS = 32
FIT = (0.1, 0.5)
"""Of the longest lag, where the line is fitted by default."""
LOST = 0.9
"""Step of an atom, as a share of half the shortest side of the box, above which its image is a guess."""
SAMPLED = 256
"""Atoms, about, whose steps say where a run begins to move as it goes on."""
EVEN = 1e-3
"""Relative unevenness of frame times that is taken for rounding."""


@dataclass(frozen=True)
class MSD(SameAtoms):
    """Mean squared displacement against lag, averaged over atoms and over all windows of the run (Einstein), in angstrom^2.

    The error is that of groups of molecules left out one by one (molecules, or residues where no bonds are known, are taken
    to move on their own); with fewer than eight of them, that of Brownian paths.

    With it come ``diffusion``, the slope of a weighted straight line over `fit` divided by twice the dimensions, in
    angstrom^2 / ps (x 10 is 1e-5 cm^2 / s), and ``exponent``, d ln MSD / d ln t there, which must be 1 for the former to mean
    anything: its verdict says so. With `temperature` and `viscosity` also ``diffusion_infinite``: that of an endless box (Yeh &
    Hummer 2004; any box shape).
    """

    select: str = "all"
    dimensions: str = "xyz"
    """Which of x, y, z count: "xy" for a membrane in that plane."""
    unwrap: bool | None = None
    """Whether jumps through the faces of the box are undone (from each frame to the next the nearest image is meant). None:
    where there is a box. False for paths that are whole already and step farther than half a box."""
    max_lag: float | None = None
    """Longest lag, in ps; None: that of the run."""
    fit: tuple[float, float] | None = None
    """Lags of the straight line, in ps; None: from a tenth to half of the longest lag."""
    temperature: float | None = None
    """In K, for the finite-size correction."""
    _: KW_ONLY
    viscosity: float | None = None
    """Of the simulated solvent, in mPa s, for the finite-size correction."""

    _fixed = "a path is that of one atom"

    def prepare(self, system: System) -> Measurement:
        if not self.dimensions or not set(self.dimensions) <= set("xyz") or len(set(self.dimensions)) != len(self.dimensions):
            raise InputError(f'MSD(dimensions=) names some of x, y and z, for example "xyz" or "xy"; got {self.dimensions!r}')
        if (self.temperature is None) != (self.viscosity is None):
            raise InputError("the finite-size correction needs both temperature= (K) and viscosity= (mPa s, of the model)")
        for name in ("temperature", "viscosity", "max_lag"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"MSD({name}=) is a number above 0; got {value!r}")
        if self.fit is not None and not (len(self.fit) == 2 and 0 < self.fit[0] < self.fit[1]):
            raise InputError(f"MSD(fit=) is two rising lags in ps, above 0; got {self.fit!r}")
        atoms = system.select(self.select)
        boxed = system.first_frame().box is not None
        if self.unwrap and not boxed:
            raise InputError("MSD(unwrap=True): these frames have no box to unwrap with; pass unwrap=None or False")
        if self.temperature is not None and not boxed:
            raise InputError("the finite-size correction is that of a periodic box, and these frames have none")
        known = system.topology.bonds is not None
        _, molecule = np.unique((molecules_of if known else residues_of)(system.topology)[atoms], return_inverse=True)
        many = int(molecule.max()) + 1
        groups = molecule * min(many, MOST_GROUPS) // many
        displacements = _Displacements(self, len(atoms), groups, many, boxed, known)
        return Measurement(_Paths(atoms, boxed), OfSeries(displacements, bounds=(0.0, None), keeper=SpilledSeries(),
                                                              in_time="a displacement in time"))


class _Paths:
    """Block -> (n, atoms + 6, 3) float32: positions, then the box as its rounded vectors and what rounding took."""

    def __init__(self, atoms: np.ndarray, boxed: bool):
        self.atoms, self.boxed = atoms, boxed

    def __call__(self, block: Block) -> np.ndarray:
        x = positions_of(block)
        out = np.empty((len(x), len(self.atoms) + (6 if self.boxed else 0), 3), np.float32)
        out[:, :len(self.atoms)] = x[:, self.atoms]
        if self.boxed:
            box = np.asarray(block.fields["box"], np.float64)
            out[:, -6:-3] = box
            out[:, -3:] = box - out[:, -6:-3]
        bad = ~np.isfinite(out).all(axis=(1, 2))
        if bad.any():
            t = int(np.argmax(bad))
            missing = ~np.isfinite(out[t, :len(self.atoms)]).all(axis=1)
            what = f"atom {self.atoms[np.argmax(missing)]} has coordinates" if missing.any() else "its box has numbers"
            raise InputError(f"{frame_in_words(block, t)}: {what} that are not finite; a path with a hole has no "
                             "displacements. Cut the trajectory there (start=, stop=)")
        return out


class _Displacements:
    """From the paths to the Estimates."""

    def __init__(self, settings: MSD, atoms: int, groups: np.ndarray, independent: int, boxed: bool, bonds_known: bool):
        self.settings, self.atoms, self.groups, self.independent = settings, atoms, groups, independent
        self.boxed, self.bonds_known = boxed, bonds_known

    def __call__(self, reading: Reading) -> dict[str, Estimate]:
        if reading.weights is not None and np.ptp(reading.weights) > 0:
            raise InputError("displacements in time cannot be averaged over weighted frames: a weight says how likely a frame "
                             "is, not how it moves on. Pass frame_weights of one for each frame")
        paths = Parts([part for (spilled,) in reading.run.reducers(VALUES) if isinstance(spilled, SpilledSeries)
                       for part in spilled.parts])
        start = count_discarded(reading.equilibration, len(paths), reading.times, lambda: self._start(paths))
        if start:
            paths = paths.after(start)
        kept = replace(reading, run=reading.run.since(start))
        settings, n = self.settings, len(paths)
        if n < 4:
            raise StatisticsError(f"{n} frames; displacements need at least 4")
        step, unit = _step(kept.times, n)
        lags = n if settings.max_lag is None else min(n, int(settings.max_lag / step * (1 + 1e-9)) + 1)
        if lags < 3:
            raise InputError(f"MSD(max_lag={settings.max_lag:g}) leaves {lags - 1} lags; frames are {step:g} {unit} apart")
        cells = mean_cell = None
        if self.boxed:
            box = paths[:, self.atoms:].astype(np.float64)
            cells = np.ascontiguousarray(box[:, :3] + box[:, 3:])
            mean_cell = cells.mean(axis=0)
        unwrapping = self.boxed if settings.unwrap is None else settings.unwrap
        columns = tuple("xyz".index(d) for d in settings.dimensions)
        view: Any = _Atoms(paths, self.atoms)
        by_group, longest = squared_displacements(view, self.groups, cells=cells if unwrapping else None, columns=columns,
                                                  lags=lags)
        if longest < 0:
            raise InputError("a frame has a box without volume; leave it out, or pass unwrap=False")
        sizes = np.bincount(self.groups).astype(float)
        times = step * np.arange(lags)
        doubts = []
        lost = longest > LOST
        if lost:
            doubts.append(f"an atom moves {longest:.0%} of half the box between two frames: they lie too far apart to unwrap")
        if not self.bonds_known and self.independent > 1:
            doubts.append("no bonds known: residues are taken to move on their own")
        msd = self._msd(by_group, sizes, n, times, unit, kept, doubts, lost)
        further = self._diffusion(by_group, sizes, n, times, unit, kept, mean_cell, doubts, lost)
        return {"": msd, **further}

    def _start(self, paths: Parts) -> int:
        """Where the run begins to move as it goes on: sought in the mean square of the steps of some of its atoms, as paths
        themselves never come to rest."""
        every = max(1, self.atoms // SAMPLED)
        x = np.concatenate([np.asarray(part[:, :self.atoms:every], np.float64) for part in paths.parts])
        steps = np.diff(x, axis=0)
        if self.boxed and self.settings.unwrap is not False:
            box = paths[:, self.atoms:].astype(np.float64)
            cells = (box[:, :3] + box[:, 3:])[1:]
            with np.errstate(all="ignore"):
                volumes = np.linalg.det(cells)
                if not (np.isfinite(volumes).all() and (volumes != 0).all()):
                    return 0        # refused later, by name
                steps -= np.rint(steps @ np.linalg.inv(cells)) @ cells
        columns = ["xyz".index(d) for d in self.settings.dimensions]
        return significant_start(np.square(steps[..., columns]).sum(axis=-1).mean(axis=-1)) if len(steps) >= 8 else 0

    # Displacements of many molecules are worth more than the frames they are seen in; n_eff, which counts frames, ends at n.

    def _msd(self, by_group: np.ndarray, sizes: np.ndarray, n: int, times: np.ndarray, unit: str, kept: Reading,
             doubts: list[str], lost: bool) -> Estimate:
        d = len(self.settings.dimensions)
        share = sizes / sizes.sum()
        mean = share @ by_group
        brownian = brownian_error(mean, n, self.independent, d)
        with np.errstate(invalid="ignore", divide="ignore"):
            estimators = {"brownian": brownian}
            stderr, dof = brownian, np.maximum(0.5 * (mean / brownian) ** 2, 1.0)
            if len(sizes) >= FEWEST_GROUPS:
                stderr, dof = _scatter(by_group, share), np.full(len(mean), len(sizes) - 1.0)
                estimators = {"groups of molecules": stderr, **estimators}
            n_eff = 2 / d * (mean / stderr) ** 2        # squares of Gaussian steps: variance 2/d of the square of their mean
            n_eff[0] = dof[0] = np.nan
            g = (n - np.arange(len(mean))) * self.independent / n_eff
        few = int((n_eff[1:] < ENOUGH).sum())
        verdict = list(doubts)
        if few:
            verdict.append(f"{few} of {len(mean) - 1} lags have fewer than {ENOUGH:g} independent displacements")
        low, high = student_interval(mean, stderr, np.where(np.isnan(dof), 1.0, dof), kept.confidence)
        return Estimate.of(mean, stderr, dof, interval=(low, high), n_eff=np.minimum(n_eff, n), g=g, dt=times[1],
                           doubts=verdict, vouched=not few and not lost, estimators=estimators, unit="Angstrom2",
                           coords={"lag": (times, unit)}, **_facts(kept, unit))

    def _diffusion(self, by_group: np.ndarray, sizes: np.ndarray, n: int, times: np.ndarray, unit: str, kept: Reading,
                   cell: np.ndarray | None, doubts: list[str], lost: bool) -> dict[str, Estimate]:
        settings, d = self.settings, len(self.settings.dimensions)
        low, high = settings.fit or (FIT[0] * times[-1], FIT[1] * times[-1])
        tiny = 1e-9 * times[-1]
        lags = np.flatnonzero((times >= low - tiny) & (times <= high + tiny))
        lags = lags[lags > 0]
        if len(lags) < 2:
            raise InputError(f"MSD(fit=({low:g}, {high:g})) holds {len(lags)} lags; a line needs 2 or more. They are "
                             f"{times[1]:g} {unit} apart and end at {times[-1]:g}")
        line = slope_of(by_group, sizes, times, lags, n, d, independent=self.independent)

        def estimate(value: float, stderr: float, doubts: list[str], converged: bool, **more: Any) -> Estimate:
            n_eff = 2 / d * (line.slope / line.stderr) ** 2 if line.stderr > 0 else math.nan
            g = n * self.independent / n_eff
            shift = value - line.slope / (2 * d) if more.get("unit") else 0.0
            interval = student_interval(value, stderr, line.dof, kept.confidence)
            if more.get("unit"):        # a diffusion coefficient is not negative; its correction is no matter of chance
                interval = bounded_interval(value, interval, (shift, None))
            return Estimate.of(value, stderr, line.dof, interval=interval, n_eff=min(n_eff, n), g=g, dt=times[1], doubts=doubts,
                               vouched=converged, **_facts(kept, unit), **more)

        few = 2 / d * (line.slope / max(line.stderr, 1e-300)) ** 2 < ENOUGH
        slope_doubts = list(doubts)
        if few:
            slope_doubts.append(f"fewer than {ENOUGH:g} independent displacements")
        if abs(line.exponent - 1) > max(0.1, 3 * line.exponent_stderr):
            few = True
            slope_doubts.append(f"not diffusive from {times[lags[0]]:g} to {times[lags[-1]]:g} {unit}: the displacement "
                                f"grows as t^{line.exponent:.2f}; choose later lags with fit=")
        few = few or lost
        per = 1 / (2 * d)
        value, error = line.slope * per, line.stderr * per
        each = {name: e * per for name, e in line.estimators.items()}
        estimates = {"diffusion": estimate(value, error, slope_doubts, not few, unit=f"Angstrom2 {unit}-1", estimators=each),
                     "exponent": estimate(line.exponent, line.exponent_stderr, doubts, True)}
        if settings.temperature is not None and settings.viscosity is not None and cell is not None:
            if d < 3 or unit != "ps":
                raise InputError("the finite-size correction holds for all three dimensions and for times in ps")
            more = finite_size_correction(cell, settings.temperature, settings.viscosity)
            note = [*slope_doubts, f"{more:.3g} added for the size of the box (xi {wigner_constant(cell):.6f})"]
            estimates["diffusion_infinite"] = estimate(value + more, error, note, not few, unit="Angstrom2 ps-1",
                                                       estimators=each)
        return estimates


def _scatter(by_group: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Standard error of the mean over groups by leaving out one at a time; groups of unequal size count by it."""
    mean = share @ by_group
    left_out = (mean - share[:, None] * by_group) / (1 - share)[:, None]
    h = 1 / share[:, None]
    pseudo = h * mean - (h - 1) * left_out
    return np.sqrt(((pseudo - pseudo.mean(axis=0)) ** 2 / (h - 1)).mean(axis=0))


def _step(times: np.ndarray | None, n: int) -> tuple[float, str]:
    """Time between frames and its unit; frames are counted where there are no times or they stand still."""
    if times is None or len(times) < 2 or not np.isfinite(times).all() or times[-1] == times[0]:
        return 1.0, "frame"
    steps = np.diff(times)
    step = float(times[-1] - times[0]) / (n - 1)
    if abs(steps - step).max() > EVEN * step + 1e-6 * abs(times[-1]):
        k = int(np.argmax(abs(steps - step)))
        raise InputError(f"lags need evenly spaced frames; frame {k + 1} comes {steps[k]:g} after the one before, the mean is "
                         f"{step:g}. Read an evenly spaced part (start=, stop=, step=)")
    return step, "ps"


def _facts(kept: Reading, unit: str) -> dict[str, Any]:
    """What the estimates say of the run."""
    return {**kept.run.facts, "confidence": kept.confidence, "time_unit": unit if unit != "frame" else ""}


class _Atoms:
    """The columns of the paths that are atoms."""

    def __init__(self, paths: Parts, atoms: int):
        self.paths, self.shape = paths, (len(paths), atoms, 3)
        self.dtype = paths[:, :1].dtype

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        rows, columns = where
        return self.paths[rows, columns.start:min(columns.stop, self.shape[1])]
