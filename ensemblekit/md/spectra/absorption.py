"""The absorption spectrum of an ensemble of nuclear configurations, with a band: ``md.absorption``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.average import check_confidence, estimate_of
from ensemblekit.averaging.equilibration import Equilibrate, check_equilibration
from ensemblekit.averaging.estimate import Coords, Estimate
from ensemblekit.averaging.function_of_mean import function_of_mean
from ensemblekit.averaging.observed import Observed
from ensemblekit.averaging.origin import origin_of, with_origin
from ensemblekit.averaging.pooling import pooled_with_further
from ensemblekit.averaging.run import partials
from ensemblekit.averaging.run_states import RunStates
from ensemblekit.averaging.weights import kish
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.md.spectra.excitations import Excitations
from ensemblekit.source import ArraySource, Block, ReplicaSet

CROSS_SECTION = 1.0976098671
"""pi e² hbar / (2 m_e c epsilon_0) in angstrom² eV: the integral of a cross section over the strength of its line (CODATA)."""
MOLAR = 26153.82501
"""M-1 cm-1 of a decadic extinction coefficient in 1 angstrom²: N_A / (1000 ln 10)."""
POWERS = {"newton-x": 1, "plain": 0, "psi4": -1}
"""Of Delta E / E in front of each line."""
UNITS = {"M-1 cm-1": MOLAR, "Angstrom2": 1.0}
SHAPES = ("gaussian", "lorentzian")
BEYOND = 7.0
"""Widths that the grid reaches beyond the lines: a Gaussian has 3e-12 of its area there."""
FINE = 8.0
"""Points of the grid in a width."""
MOST_POINTS = 4000
MOST_COMPARED = 1000
"""Lines that a width is sought by cross validation with."""
BRANCH, TOTAL, STATES, STRENGTH, CENTROID = "spectra", "total", "states", "strength", "centroid"

Shape = Literal["gaussian", "lorentzian"]
Convention = Literal["newton-x", "plain", "psi4"]


def absorption(energies: object, strengths: object = None, *, weights: object = None, times: object = None,
               width: float | Literal["silverman", "cv"] = 0.1, shape: Shape = "gaussian", convention: Convention = "newton-x",
               grid: ArrayLike | None = None, unit: str = "M-1 cm-1", refractive_index: float = 1.0, confidence: float = 0.95,
               equilibration: Equilibrate = "auto") -> Estimate:
    """The absorption spectrum of snapshots with vertical excitations, the nuclear-ensemble approach, with interval and band.

    ``sigma(E) = 1.0976 angstrom² eV <sum_n f_n (Delta E_n / E)^p g(E - Delta E_n)> / n_r`` (Crespo-Otero & Barbatti, Theor.
    Chem. Acc. 131, 1237, 2012). Snapshots may be correlated, weighted, and of several runs. With it come ``strength``, the
    oscillator strength that the area on the grid amounts to (of "plain" the sum of the mean strengths; less where the grid cuts
    a tail off); ``states`` (states, energies), what each adds; ``maximum``, the energy of the highest point, and
    ``mean_energy``, the centroid, in eV.

    Arguments:
        energies: of the excitations, (n,) or (n, states) in eV; or what :func:`~ensemblekit.md.excitations` read; of
            independent runs a list of either.
        strengths: oscillator strengths of the same shape; a list where `energies` is one.
        weights, times: of the snapshots, (n,); of runs a list.
        width: of a line in eV: the standard deviation of a Gaussian, the half width at half maximum of a Lorentzian
            (Newton-X' delta is twice that). "silverman": by that rule from the scatter within states and the effective number
            of snapshots; "cv": by leaving out snapshot after snapshot, for snapshots that are independent. The verdict says it.
        shape: "gaussian" or "lorentzian".
        convention: the power p: "newton-x" 1, "plain" 0 (PyNEAppLES), "psi4" -1.
        grid: energies (points,) in eV, rising; by default from seven widths below all lines to seven above, but above 0.
        unit: "M-1 cm-1", the decadic extinction coefficient, or "Angstrom2", the cross section.
        refractive_index: n_r of the solvent.
        confidence, equilibration: as for ``ensemblekit.average``.

    Raises InputError: energies not above 0, strengths below 0, shapes that do not fit, NaN, an unknown word.
    """
    check_confidence(confidence)
    check_equilibration(equilibration)
    words = (("shape", shape, SHAPES), ("convention", convention, tuple(POWERS)), ("unit", unit, tuple(UNITS)))
    for name, value, known in words:
        if value not in known:
            raise InputError(f"absorption({name}=) is one of {', '.join(map(repr, known))}; got {value!r}")
    if not 0 < _number("refractive_index", refractive_index) < np.inf:
        raise InputError(f"refractive_index is above 0; got {refractive_index!r}")
    runs = _runs(energies, strengths, weights, times)
    if len({run.arrays["energy"].shape[1] for run in runs}) > 1:
        raise InputError("runs of one spectrum have the same number of states; got "
                         f"{[run.arrays['energy'].shape[1] for run in runs]}")
    size, said = _width(width, runs)
    lines = Lines(_grid(grid, runs, size), size, shape, POWERS[convention], UNITS[unit] * CROSS_SECTION / refractive_index)
    source = runs[0] if len(runs) == 1 else ReplicaSet(tuple(runs))
    facts = _Facts(lines, unit, refractive_index, equilibration, confidence)
    read = partials(source, {BRANCH: (lines, Observed(of=_sum), Observed(), Observed(of=lines.strength),
                                      Observed(of=lines.moments))}, fields=["energy", "strength"])
    per_run = [_of_run(run, facts) for run in read]
    answer = per_run[0] if len(per_run) == 1 else pooled_with_further(
        per_run, confidence, {"strength": (0.0, None)}, {}, {"": "log", "states": "linear"})
    return with_origin(answer.noting(said), origin_of(source))


@dataclass(frozen=True, eq=False)
class Lines:
    """Block of energies and strengths -> spectra (n, states, points)."""

    grid: np.ndarray
    width: float
    shape: Shape
    power: int
    scale: float

    def __call__(self, block: Block) -> np.ndarray:
        energy, strength = block.fields["energy"], block.fields["strength"]
        out = np.empty((*energy.shape, len(self.grid)))
        for k in range(energy.shape[1]):
            e, f = energy[:, k, None], strength[:, k, None]
            x = (self.grid - e) / self.width
            if self.shape == "gaussian":
                line = np.exp(-0.5 * x * x) / (np.sqrt(2 * np.pi) * self.width)
            else:
                line = 1 / (np.pi * self.width * (1 + x * x))
            out[:, k] = self.scale * f * (e / self.grid)**self.power * line
        return out

    @property
    def steps(self) -> np.ndarray:
        """Weights of the points in an integral over the grid, by trapezoids."""
        d = np.diff(self.grid)
        return 0.5 * (np.append(d, 0.0) + np.append(0.0, d))

    def strength(self, spectra: np.ndarray) -> np.ndarray:
        """(n,) the area of each, over the scale."""
        return np.asarray(spectra.sum(axis=1) @ self.steps / self.scale)

    def moments(self, spectra: np.ndarray) -> np.ndarray:
        """(n, 2): the area, and with the energy in it."""
        total = spectra.sum(axis=1)
        return np.column_stack([total @ self.steps, total @ (self.steps * self.grid)]) / self.scale

    def maximum(self, spectrum: np.ndarray) -> float:
        """Energy of the highest point, by the parabola through it and its neighbours."""
        k = int(np.clip(np.argmax(spectrum), 1, len(self.grid) - 2))
        x, y = self.grid[k - 1:k + 2], spectrum[k - 1:k + 2]
        below, above = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
        curved = (above - below) / (x[2] - x[0])
        if not curved < 0:
            return float(self.grid[int(np.argmax(spectrum))])
        return float(np.clip(0.5 * (x[0] + x[1]) - 0.5 * below / curved, x[0], x[2]))


@dataclass(frozen=True, eq=False)
class _Facts:
    lines: Lines
    unit: str
    refractive_index: float
    equilibration: Equilibrate
    confidence: float


def _of_run(run: RunStates, facts: _Facts) -> Estimate:
    """The spectrum of one run with what comes with it."""
    names = TOTAL, STATES, STRENGTH, CENTROID
    own = [{name: [one] for name, one in zip(names, state[BRANCH], strict=True)} for state in run.states]
    run = replace(run, states=tuple(own))
    base = estimate_of(run, TOTAL, equilibration=facts.equilibration, confidence=facts.confidence, shown=False)
    start = base.n_discarded
    energy: Coords = {"energy": (facts.lines.grid, "eV")}
    spectrum = function_of_mean(run, TOTAL, _same, base, unit=facts.unit, scale="log")
    spectrum = replace(spectrum, coords=energy)
    high = np.asarray(base.mean) > 0.5 * np.max(base.mean)
    n_eff = np.asarray(base.n_eff)[high]
    about_peak = replace(base, n_eff=float(np.nanmin(n_eff)) if np.isfinite(n_eff).any() else np.nan)
    states = estimate_of(run, STATES, equilibration=start, confidence=facts.confidence, unit=facts.unit, shown=False)
    states = function_of_mean(run, STATES, _same, states, unit=facts.unit, scale="linear")
    state_of: Coords = {"state": (np.arange(1, len(np.asarray(states.mean)) + 1), ""), **energy}
    centroid = estimate_of(run, CENTROID, equilibration=start, confidence=facts.confidence, shown=False)
    derived = {
        "strength": estimate_of(run, STRENGTH, equilibration=start, confidence=facts.confidence),
        "states": replace(states, coords=state_of),
        "maximum": function_of_mean(run, TOTAL, facts.lines.maximum, about_peak, unit="eV"),
        "mean_energy": function_of_mean(run, CENTROID, _ratio, centroid, unit="eV"),
    }
    return replace(spectrum, derived=derived)


def _sum(spectra: np.ndarray) -> np.ndarray:
    return np.asarray(spectra.sum(axis=1))


def _same(mean: np.ndarray) -> np.ndarray:
    return mean


def _ratio(mean: np.ndarray) -> float:
    return float(mean[1] / mean[0]) if mean[0] > 0 else float("nan")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InputError(f"{name} is a number; got {value!r}")
    return float(value)


def _runs(energies: object, strengths: object, weights: object, times: object) -> list[ArraySource]:
    """A source of each run."""
    several = isinstance(energies, list | tuple) and len(energies) > 0 and all(
        isinstance(one, Excitations) or np.ndim(one) >= 1 for one in energies) and (
        all(isinstance(one, Excitations) for one in energies) or isinstance(strengths, list | tuple))
    if not several:
        return [_run(energies, strengths, weights, times, "")]
    assert isinstance(energies, list | tuple)
    sources = []
    for k, one in enumerate(energies):
        s, w, t = (_of_list(name, given, k, len(energies)) for name, given in (("strengths", strengths), ("weights", weights),
                                                                               ("times", times)))
        sources.append(_run(one, s, w, t, f"run {k}: "))
    return sources


def _of_list(name: str, given: object, k: int, n: int) -> object:
    if given is None:
        return None
    if not isinstance(given, list | tuple) or len(given) != n:
        raise InputError(f"{name} of {n} runs are a list of {n}; got {type(given).__name__}"
                         + (f" of {len(given)}" if isinstance(given, list | tuple) else ""))
    return given[k]


def _run(energies: object, strengths: object, weights: Any, times: Any, whose: str) -> ArraySource:
    if isinstance(energies, Excitations):
        if strengths is not None:
            raise InputError(f"{whose}excitations bring their strengths; leave strengths= out")
        weights = energies.weights if weights is None else weights
        times = energies.times if times is None else times
        strengths, energies = energies.strengths, energies.energies
    if strengths is None:
        raise InputError(f"{whose}absorption takes energies and strengths, arrays of one shape, or what md.excitations read")
    e, f = (as_array(x, f"{whose}{name}", kinds="biuf", dtype=np.float64) for x, name in ((energies, "energies"),
                                                                                        (strengths, "strengths")))
    if e.shape != f.shape or e.ndim not in (1, 2):
        raise InputError(f"{whose}energies and strengths are arrays of one shape, (snapshots,) or (snapshots, states); got "
                         f"{e.shape} and {f.shape}")
    if not e.size:
        raise InputError(f"{whose}there are no excitations: shape {e.shape}")
    e, f = (x[:, None] if x.ndim == 1 else x for x in (e, f))
    for name, x, bad, wanted in (("energies", e, ~(np.isfinite(e) & (e > 0)), "finite and above 0"),
                                 ("strengths", f, ~(np.isfinite(f) & (f >= 0)), "finite and not below 0")):
        if bad.any():
            n, k = np.argwhere(bad)[0]
            raise InputError(f"{whose}{name} are {wanted}; {int(bad.sum())} of {bad.size} are not, first that of snapshot {n}, "
                             f"state {k + 1}: {x[n, k]:g}. Leave such snapshots out, or find out where they come from")
    return ArraySource.of({"energy": e, "strength": f}, weights=weights, times=times)


def _width(width: Any, runs: Sequence[ArraySource]) -> tuple[float, str]:
    """The width in eV, and what is to be said of it."""
    if isinstance(width, str):
        if width not in ("silverman", "cv"):
            raise InputError(f'width is a number in eV, "silverman" or "cv"; got {width!r}')
        size = _silverman(runs)
        if not size > 0:
            raise InputError(f"width={width!r} is made of the scatter of the energies, and these do not scatter: give it in eV")
        if width == "cv":
            return _validated(runs, size)
        return size, f"width {size:.4g} eV by Silverman's rule"
    size = _number("width", width)
    if not 0 < size < np.inf:
        raise InputError(f"width is above 0 eV; got {width!r}")
    return size, ""


def _lines(runs: Sequence[ArraySource]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Of all lines what each energy is off the mean of its state, its weight, its snapshot, and effective snapshots."""
    energy = np.concatenate([run.arrays["energy"] for run in runs])
    own = np.concatenate([np.ones(len(run.arrays["energy"])) if run.weights is None else run.weights for run in runs])
    weight = own[:, None] * np.concatenate([run.arrays["strength"] for run in runs])
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = (weight * energy).sum(axis=0) / weight.sum(axis=0)
    snapshot = np.broadcast_to(np.arange(len(energy))[:, None], energy.shape)
    kept = weight > 0
    return (energy - middle)[kept], weight[kept], snapshot[kept], kish(weight.sum(axis=1), len(energy)) if kept.any() else 1.0


def _silverman(runs: Sequence[ArraySource]) -> float:
    """0.9 min(sd, interquartile range / 1.34) n^(-1/5) within states (Silverman 1986, equation 3.31), weighted."""
    off, weight, _, n = _lines(runs)
    if not len(off):
        return 0.0
    order = np.argsort(off)
    share = np.cumsum(weight[order]) / weight.sum()
    quarter, three = off[order][np.searchsorted(share, [0.25, 0.75])]
    sd = float(np.sqrt((weight * off**2).sum() / weight.sum()))
    between = float(three - quarter) / 1.34
    return 0.9 * (min(sd, between) if between > 0 else sd) * n**-0.2


def _validated(runs: Sequence[ArraySource], start: float) -> tuple[float, str]:
    """The width under which lines of other snapshots foretell those of each best: likelihood of a Gaussian kernel estimate."""
    off, weight, snapshot, _ = _lines(runs)
    some = np.linspace(0, len(off) - 1, min(len(off), MOST_COMPARED)).astype(int)
    off, weight, snapshot = off[some], weight[some], snapshot[some]
    squares = (off[:, None] - off) ** 2
    others = np.where(snapshot[:, None] == snapshot, 0.0, weight)
    widths = start * np.geomspace(0.2, 3.0, 28)
    with np.errstate(divide="ignore"):
        scores = [float(weight @ np.log((np.exp(-0.5 * squares / h**2) * others).sum(axis=1) / h)) for h in widths]
    best = float(widths[int(np.argmax(scores))])
    return best, f"width {best:.4g} eV by cross validation, for independent snapshots"


def _grid(grid: ArrayLike | None, runs: Sequence[ArraySource], width: float) -> np.ndarray:
    if grid is None:
        low = min(float(run.arrays["energy"].min()) for run in runs)
        high = max(float(run.arrays["energy"].max()) for run in runs) + BEYOND * width
        low = max(low - BEYOND * width, 0.05 * low)
        points = int(min(MOST_POINTS, np.ceil((high - low) / width * FINE) + 1))
        return np.linspace(low, high, points)
    axis = as_array(grid, "grid", kinds="biuf", dtype=np.float64)
    if axis.ndim != 1 or len(axis) < 3 or not np.isfinite(axis).all() or not (np.diff(axis) > 0).all() or not axis[0] > 0:
        raise InputError(f"grid is three energies in eV or more, above 0, rising; got {axis!r}" if axis.size < 9 else
                         "grid is energies in eV, above 0, finite, each larger than the one before")
    return axis


__all__ = ["Lines", "absorption"]
