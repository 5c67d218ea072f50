"""The infrared absorption of a trajectory from the motion of its charges, with a band: ``md.Infrared``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import numpy as np

from ensemblekit.averaging.band import critical_value, noting_few, with_band
from ensemblekit.averaging.equilibration import discarded
from ensemblekit.averaging.estimate import Coords, Estimate
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.series import Series
from ensemblekit.errors import InputError
from ensemblekit.md.groups import molecules_of
from ensemblekit.md.observables.base import Measurement, OfSeries, Reading
from ensemblekit.md.observables.dipole import NEUTRAL
from ensemblekit.md.sources import groups_of
from ensemblekit.md.spilled_series import SpilledSeries
from ensemblekit.md.system import Gather, System
from ensemblekit.source import Block

INTENSITY = 38913.07639
"""cm-1 of n alpha at 300 K in 1 (e angstrom / ps)² ps / angstrom³: 1 / (6 c epsilon_0 k_B T)  (CODATA)."""
WAVENUMBER = 33.35640952
"""cm-1 of 1 / ps."""
PER_KELVIN = 1.438776877
"""h c / k_B in cm K."""
MOLAR = 1660.539067
"""mol / l of one in 1 angstrom³."""
KM_PER_MOL = 6.02214076e-6
"""km / mol of one molecule in 1 cm-2 angstrom³."""
OVERLAP = 1 / 36
"""Correlation of the powers of neighbouring segments that overlap by half, with Hann's window (Welch 1967)."""
GROUPS = 64
"""Groups of neighbouring segments that errors are made of, at the most."""
FEWEST_SEGMENTS = 8
UNEVEN = 1e-3
MANY = 64
QUANTUM = ("harmonic", "standard", "schofield")

Flux = Literal["auto", "velocity", "dipole"]


@dataclass(frozen=True, eq=False)
class Infrared:
    """The infrared spectrum n(nu) alpha(nu) of a trajectory, in cm-1 of absorption, with interval and band.

    ``38 913.08 (300 K / T) / V`` times the power spectrum of the flux of charge M' in (e angstrom / ps)² ps: the fluctuation-
    dissipation theorem with the harmonic quantum correction (Ramirez, Lopez-Ciudad, Kumar & Marx, J. Chem. Phys. 121,
    3973, 2004). Segments of 33.36 / resolution ps, Hann's window, half overlapping (Welch, IEEE Trans. Audio 15, 70, 1967).
    With it come ``integral`` over the range, and with `by` ``groups`` (groups, groups, points): the spectrum
    of each and their cross terms.
    """

    select: str = "all"
    _: KW_ONLY
    temperature: float
    """In K."""
    flux: Flux = "auto"
    """"velocity": the sum of q v, where velocities are stored ("auto" prefers it); "dipole": differences of the dipoles of
    whole molecules, and of charged ones charge times the step of their center to its nearest image."""
    resolution: float = 8.0
    """In cm-1: lines that are narrower are broadened to about this."""
    range: tuple[float, float] = (0.0, 4000.0)
    """Wavenumbers, cm-1."""
    normalise: Literal["volume", "molar"] = "volume"
    """"molar": n alpha over the concentration of the selected molecules, decadic, M-1 cm-1; `integral` the natural one,
    km / mol."""
    quantum: Literal["harmonic", "standard", "schofield"] = "harmonic"
    """The quantum correction: what the formula holds, or instead of it tanh, or exp (Schofield)."""
    by: Mapping[str, str] | None = None
    """{"name": selection}: groups whose spectra and cross terms add up to the whole."""

    def prepare(self, system: System) -> Measurement:
        self._check()
        atoms = system.select(self.select)
        charges = system.charges(atoms)
        if not charges.any():
            raise InputError(f"all charges of {self.select!r} are 0: nothing absorbs. Read with a topology that has them "
                             "(TPR, PSF, PRMTOP)")
        stored = "velocity" in system.source.fields
        flux = self.flux if self.flux != "auto" else "velocity" if stored else "dipole"
        if flux == "velocity" and not stored:
            raise InputError('flux="velocity" needs velocities, and these frames have none; flux="dipole" takes differences of '
                             "dipoles")
        if self.normalise == "volume" and not system.boxed:
            raise InputError('n alpha is per volume, and these frames have no box; normalise="molar" is per molecule')
        labels, names = groups_of(system, atoms, self.by, "Infrared")
        molecules = len(np.unique(molecules_of(system.topology)[atoms])) if self.normalise == "molar" else 1
        fluxes: Fluxes = _velocities(atoms, charges, labels, len(names), system.boxed) if flux == "velocity" else _dipoles(
            system, atoms, charges, labels, len(names))
        system.note(f"the flux of {len(atoms)} charges ({charges.sum():+.4g} e) from "
                    + ("velocities" if flux == "velocity" else "differences of dipoles"))
        keeper: Reducer = Series() if fluxes.width <= MANY else SpilledSeries()
        finish = _Spectrum(self, fluxes, names, molecules)
        unit = "cm-1" if self.normalise == "volume" else "M-1 cm-1"
        fields = ("velocity",) if flux == "velocity" else ()
        return Measurement(fluxes, OfSeries(finish, unit, keeper=keeper, scale="log", in_time="a spectrum"), fields)

    def _check(self) -> None:
        for option, value, known in (("flux", self.flux, ("auto", "velocity", "dipole")), ("quantum", self.quantum, QUANTUM),
                                     ("normalise", self.normalise, ("volume", "molar"))):
            if value not in known:
                raise InputError(f"Infrared({option}=) is one of {', '.join(map(repr, known))}; got {value!r}")
        for option, given in (("temperature", self.temperature), ("resolution", self.resolution)):
            number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
            if not (number and 0 < given < np.inf):
                unit = "K" if option == "temperature" else "cm-1"
                raise InputError(f"Infrared({option}=) is a number above 0 ({unit}); got {given!r}")
        try:
            low, high = (float(v) for v in self.range)
        except (TypeError, ValueError) as error:
            raise InputError(f"Infrared(range=) is two wavenumbers in cm-1; got {self.range!r}") from error
        if not 0 <= low < high < np.inf:
            raise InputError(f"Infrared(range=) rises from 0 or more; got {self.range!r}")
        if self.by is not None and not isinstance(self.by, Mapping):
            raise InputError(f'Infrared(by=) is {{"name": selection}}; got {self.by!r}')


@dataclass(frozen=True, eq=False)
class Fluxes:
    """Block -> rows: the volume, then what the flux of each group (groups, 3) is made of.

    Of dipoles: the cell (9), the dipoles (groups, 3), the centers of charged molecules (charged, 3).
    """

    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Of each group its atoms among those gathered, and their charges."""
    boxed: bool
    atoms: np.ndarray | None = None
    """Of velocities: numbers of all atoms in the frame."""
    gather: Gather | None = None
    shares: np.ndarray | None = None
    """Of the gathered atoms that belong to charged molecules: weight in the center."""
    members: np.ndarray | None = None
    """Which of the gathered atoms these are, molecule after molecule."""
    begin: np.ndarray | None = None
    """Where each charged molecule begins among them."""
    owned: np.ndarray | None = None
    """(groups, charged): the charge of each molecule that belongs to each group."""

    @property
    def charged(self) -> int:
        return 0 if self.begin is None else len(self.begin)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return 1 + 3 * len(self.parts) + (0 if self.gather is None else 9 + 3 * self.charged)

    def __call__(self, block: Block) -> np.ndarray:
        from ensemblekit.md.kernels_density import dipoles

        out = np.zeros((len(block), self.width))
        if self.boxed:
            box = np.asarray(block.fields["box"], np.float64)
            out[:, 0] = np.abs(np.linalg.det(box))
        if self.gather is None:
            assert self.atoms is not None
            values, index = np.asarray(block.fields["velocity"]), self.atoms
        else:
            values, index = self.gather(block)
            if self.boxed:
                out[:, 1:10] = box.reshape(-1, 9)
        first = 1 if self.gather is None else 10
        sums = np.empty((len(block), 3))
        for g, (atoms, charges) in enumerate(self.parts):
            dipoles(values, index[atoms], charges, np.zeros(len(charges)), sums)
            out[:, first + 3 * g:first + 3 * g + 3] = sums
        if self.charged:
            out[:, first + 3 * len(self.parts):] = self._centers(values, index).reshape(len(block), -1)
        return out

    def _centers(self, values: np.ndarray, index: np.ndarray) -> np.ndarray:
        assert self.members is not None
        assert self.shares is not None
        assert self.begin is not None
        x = np.asarray(values[:, index[self.members]], np.float64) * self.shares[:, None]
        return np.add.reduceat(x, self.begin, axis=1)

    def flux(self, rows: np.ndarray, step: float) -> np.ndarray:
        """(n, groups, 3) of rows in the order of time; of dipoles one fewer, between the frames."""
        groups = len(self.parts)
        if self.gather is None:
            return rows[:, 1:].reshape(len(rows), groups, 3)
        dipoles = rows[:, 10:10 + 3 * groups].reshape(len(rows), groups, 3)
        flux = np.diff(dipoles, axis=0)
        if self.charged:
            centers = rows[:, 10 + 3 * groups:].reshape(len(rows), self.charged, 3)
            assert self.owned is not None
            own = np.einsum("gm,nmk->ngk", self.owned, centers)
            flux -= np.diff(own, axis=0)        # the molecules about their centers,
            moved = _steps(centers, rows[:, 1:10].reshape(-1, 3, 3) if self.boxed else None)
            flux += np.einsum("gm,nmk->ngk", self.owned, moved)     # and these by their nearest images
        return flux / step


def _steps(centers: np.ndarray, boxes: np.ndarray | None) -> np.ndarray:
    """Of centers (n, m, 3) the steps from frame to frame, to the nearest image: (n - 1, m, 3)."""
    from ensemblekit.md.kernels_pbc import nearest_displacements

    out = np.diff(centers, axis=0)
    if boxes is not None:
        for t in range(len(out)):
            nearest_displacements(np.ascontiguousarray(centers[t]), np.ascontiguousarray(centers[t + 1]),
                                  np.ascontiguousarray(boxes[t + 1]), out[t])
    return out


def _velocities(atoms: np.ndarray, charges: np.ndarray, labels: np.ndarray, groups: int, boxed: bool) -> Fluxes:
    return Fluxes(_parts(charges, labels, groups), boxed, atoms=np.ascontiguousarray(atoms, np.int64))


def _dipoles(system: System, atoms: np.ndarray, charges: np.ndarray, labels: np.ndarray, groups: int) -> Fluxes:
    """Fluxes from dipoles; molecules that are charged, or of which a group has a charged part, go by their centers."""
    if system.topology.bonds is None:
        which = np.arange(len(atoms)) if not system.boxed or system.whole else molecules_of(system.topology)[atoms]
    else:
        which = molecules_of(system.topology)[atoms]
    _, which = np.unique(which, return_inverse=True)
    owned = np.zeros((groups, int(which.max()) + 1))
    np.add.at(owned, (labels, which), charges)
    charged = np.flatnonzero((np.abs(owned) > NEUTRAL).any(axis=0))
    parts, gather = _parts(charges, labels, groups), system.gather(atoms)
    if not len(charged):
        return Fluxes(parts, system.boxed, gather=gather)
    order = np.argsort(which, kind="stable")
    members = order[np.isin(which[order], charged)]
    molecule = which[members]
    begin = np.flatnonzero(np.diff(molecule, prepend=-1))
    masses = system.topology.masses[atoms][members]
    known = np.isfinite(masses).all() and (np.add.reduceat(masses, begin) > 0).all()
    weight = masses if known else np.ones(len(members))
    shares = weight / np.repeat(np.add.reduceat(weight, begin), np.diff([*begin, len(members)]))
    return Fluxes(parts, system.boxed, gather=gather, shares=shares, members=members, begin=begin, owned=owned[:, charged])


def _parts(charges: np.ndarray, labels: np.ndarray, groups: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    members = [np.flatnonzero((labels == g) & (charges != 0)) for g in range(groups)]
    return tuple((atoms, np.ascontiguousarray(charges[atoms])) for atoms in members)


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """From the fluxes of all frames to the Estimates."""

    settings: Infrared
    fluxes: Fluxes
    names: list[str]
    molecules: int

    def __call__(self, reading: Reading) -> dict[str, Estimate]:
        if reading.weights is not None and np.ptp(reading.weights) > 0:
            raise InputError("a spectrum of motion cannot be averaged over weighted frames: a weight says how likely a frame "
                             "is, not how it moves on. Pass frame_weights of one for each frame")
        rows = reading.values
        start = discarded(reading.equilibration, len(rows), reading.times) if reading.equilibration != "auto" else 0
        run = reading.run.since(start)
        rows = rows[start:]
        step = _even_step(run.times)
        flux = self.fluxes.flux(rows, step)
        if not np.isfinite(flux).all():
            bad = start + int(np.argmax(~np.isfinite(flux).all(axis=(1, 2))))
            raise InputError(f"the flux of charge of frame {bad} is not finite; cut the trajectory there (start=, stop=)")
        length = round(WAVENUMBER / self.settings.resolution / step)
        nu = np.arange(length // 2 + 1) * WAVENUMBER / (length * step) if length else np.zeros(1)
        self._check(len(flux), length, step)
        chosen = (nu >= self.settings.range[0]) & (nu <= self.settings.range[1])
        if chosen.sum() < 2:
            raise InputError(f"range={self.settings.range} holds fewer than two points {self.settings.resolution:g} cm-1 apart")
        power = _segments(flux, length, step)[..., chosen]          # (segments, groups, groups, points)
        factor = self._factor(nu[chosen], step, float(rows[:, 0].mean()))
        pseudo, each = _in_groups(power * factor)
        facts: dict[str, Any] = {**run.facts, "confidence": reading.confidence}
        axis: Coords = {"wavenumber": (nu[chosen], "cm-1")}
        whole = pseudo.sum(axis=(1, 2))
        answer = _estimate(whole, each, len(power), facts, step)
        if self.settings.quantum == "harmonic" or np.all(np.asarray(answer.mean) >= 0):
            critical, blocks = critical_value(whole, np.ones(len(whole)), 1, reading.confidence)
            answer = noting_few(with_band(answer, critical, "log"), blocks)
        width = np.full(int(chosen.sum()), nu[1])
        width[nu[chosen] == 0] /= 2
        width *= 1.0 if self.settings.normalise == "volume" else KM_PER_MOL * np.log(10) * MOLAR
        integral = _estimate(whole @ width, each, len(power), facts, step)
        integral = replace(integral, unit="cm-2" if self.settings.normalise == "volume" else "km mol-1")
        named = {"": replace(answer.judged(), coords=axis), "integral": integral}
        if self.settings.by is not None:
            words = np.array(self.names)
            unit = "cm-1" if self.settings.normalise == "volume" else "M-1 cm-1"
            shares = _estimate(pseudo, each, len(power), facts, step)
            named["groups"] = replace(shares, unit=unit, coords={"group": (words, ""), "with": (words, ""), **axis})
        return named

    def _check(self, n: int, length: int, step: float) -> None:
        settings = self.settings
        nyquist = WAVENUMBER / (2 * step)
        if settings.range[1] > nyquist * (1 + 1e-9):
            raise InputError(f"frames are {1000 * step:g} fs apart, which shows motion up to {nyquist:.5g} cm-1 (16 678"
                             f" cm-1 over the step in fs); got range={settings.range}. Take range=({settings.range[0]:g}, "
                             f"{np.floor(nyquist):g}), or frames closer in time")
        segments = 0 if length < 4 else max(0, (n - length) // (length // 2) + 1)
        if segments < FEWEST_SEGMENTS:
            needed = WAVENUMBER / settings.resolution * (1 + (FEWEST_SEGMENTS - 1) / 2)
            raise InputError(f"{n} frames, {n * step:.4g} ps, are {segments} segments at a resolution of "
                             f"{settings.resolution:g} cm-1; an error needs {FEWEST_SEGMENTS}, {needed:.4g} ps. Sample longer, "
                             "or take a coarser resolution")

    def _factor(self, nu: np.ndarray, step: float, volume: float) -> np.ndarray:
        """What the power of the flux is multiplied by."""
        settings = self.settings
        factor = INTENSITY * 300.0 / settings.temperature * np.ones_like(nu)
        factor /= volume if settings.normalise == "volume" else np.log(10) * MOLAR * self.molecules
        half = np.pi * nu / WAVENUMBER * step
        if self.fluxes.gather is not None:      # what differences of a wave are short of its slope
            factor *= np.where(half > 0, half / np.sin(np.where(half > 0, half, 1.0)), 1.0) ** 2
        x = np.maximum(PER_KELVIN * nu / settings.temperature, 1e-12)
        if settings.quantum == "standard":
            factor *= 2 / x * np.tanh(x / 2)
        elif settings.quantum == "schofield":
            factor *= 2 / x * np.sinh(x / 2)
        return factor


def _even_step(times: np.ndarray | None) -> float:
    """Time between frames in ps."""
    if times is None or len(times) < 2:
        raise InputError("a spectrum needs frames with times; say how far they are apart: md.read(..., dt=), in ps")
    steps = np.diff(times)
    step = float(times[-1] - times[0]) / (len(times) - 1)
    if not step > 0 or np.abs(steps - step).max() > UNEVEN * step + 1e-6 * np.abs(times).max():
        worst = int(np.argmax(np.abs(steps - step)))
        raise InputError(f"a spectrum needs frames evenly apart; from frame {worst} to the next it is {steps[worst]:g} ps, and "
                         f"{step:g} ps on average. Choose frames that are (step=), or cut the trajectory at the gap")
    return step


def _segments(flux: np.ndarray, length: int, step: float) -> np.ndarray:
    """Power of the flux (n, groups, 3) in each segment, two-sided: (segments, groups, groups, frequencies), (e A / ps)² ps."""
    from scipy.fft import rfft

    window = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    starts = range(0, len(flux) - length + 1, length // 2)
    scale = step / float(window @ window)
    flux = flux - flux.mean(axis=0)
    groups = flux.shape[1]
    out = np.empty((len(starts), groups, groups, length // 2 + 1))
    for k, a in enumerate(starts):
        waves = rfft(flux[a:a + length] * window[:, None, None], axis=0)
        for g in range(groups):
            for h in range(g, groups):
                out[k, g, h] = out[k, h, g] = scale * (waves[:, g] * waves[:, h].conj()).real.sum(axis=1)
    return out


def _in_groups(power: np.ndarray) -> tuple[np.ndarray, float]:
    """Means of neighbouring segments, and how many of these a mean is of."""
    count = len(power)
    each = -(-count // GROUPS)
    groups = count // each
    edges = np.linspace(0, count, groups + 1).astype(int)
    means = np.add.reduceat(power, edges[:-1], axis=0) / np.diff(edges).reshape(-1, *[1] * (power.ndim - 1))
    return means, count / groups


def _estimate(parts: np.ndarray, each: float, segments: int, facts: Mapping[str, Any], step: float) -> Estimate:
    """The mean of parts (groups, ...) of so many segments each, half overlapping."""
    count = len(parts)
    mean = parts.mean(axis=0)
    stderr = np.sqrt(parts.var(axis=0, ddof=1) / count * (1 + 2 * OVERLAP / each))
    n_eff = np.where(stderr > 0, segments / (1 + 2 * OVERLAP), np.nan)
    dof = np.full(np.shape(mean), count - 1.0)
    return Estimate.of(mean, stderr, dof, n_eff=n_eff, dt=step, estimators={"segments": stderr}, **facts)


__all__ = ["Infrared"]
