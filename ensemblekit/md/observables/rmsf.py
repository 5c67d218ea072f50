"""Fluctuation of atoms about their mean positions, and B-factors."""

from __future__ import annotations

import math
import weakref
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ensemblekit.averaging.blocking import FEWEST, blocking
from ensemblekit.averaging.estimate import Coords, Estimate
from ensemblekit.averaging.moments import Moments, MomentsResult
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.run_states import RunStates
from ensemblekit.averaging.second import kept_together, share_kept, stretches
from ensemblekit.averaging.weights import kish
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.md.holes import MEND
from ensemblekit.md.observables.base import Measurement, OfStates, Reading, SameAtoms
from ensemblekit.md.observables.groups import reference_positions, residues_of, shares_by
from ensemblekit.md.observables.rmsd import check_fit
from ensemblekit.md.superpose import Fit, MeanStructure, mean_structure, split
from ensemblekit.md.system import Gather, System
from ensemblekit.source import Block

MOMENTS = "moments"
B_FACTOR = 8 * math.pi**2 / 3
"""B = 8 π² <Δr²> / 3, isotropic (Willis & Pryor 1975)."""


@dataclass(frozen=True)
class RMSF(SameAtoms):
    """Root mean square fluctuation of each atom about its mean position after superposition; in angstrom.

    Frames are superposed on the (weighted) mean structure, which is made out of core: with ``rounds=1`` it is the mean of
    the frames superposed on the first, which is MDAnalysis' AverageStructure(ref_frame=0), AlignTraj and RMSF in a row;
    ``rounds=None`` goes on until the mean is that of the frames superposed on itself (to 1e-6 angstrom). Further:
    `bfactor`, 8 π² / 3 times the mean square, in angstrom².
    """

    select: str = "name CA"
    fit: str | Literal[False] | None = None
    """The atoms that are superposed; None: those of `select`; False: nothing is moved, as MDAnalysis' bare RMSF."""
    weights: str | None = None
    """Of the atoms in the superposition: None for all alike, or "mass"."""
    reference: Any = None
    """Where the first superposition goes: the first frame, or what md.RMSD takes."""
    rounds: int | None = 1
    """Mean structures made, each from the last, each one read; None: until it settles."""
    corrected: bool = True
    """Put back what the mean position takes away from a run of finite length, correlation counted (a factor n_eff /
    (n_eff - 1) or so on the mean square). False: as other programs have it."""
    _: KW_ONLY
    level: Literal["atom", "residue"] = "atom"
    """"residue": the root of the mean of its selected atoms' mean squares, weighted by mass where known."""

    def prepare(self, system: System) -> Measurement:
        if self.level not in ("atom", "residue"):
            raise InputError(f'level is "atom" or "residue"; got {self.level!r}')
        if self.rounds is not None and (isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1):
            raise InputError(f"rounds is a whole number above 0, or None to go on until it settles; got {self.rounds!r}")
        atoms = system.select(self.select)
        gather, structure, same = fitted_mean(system, atoms, self.select, self.fit, self.weights, self.reference,
                                              rounds=self.rounds, why="RMSF")
        which, resids = residues_of(system, atoms)
        groups = None
        if self.level == "residue":
            mass = system.topology.masses[atoms]
            mass = mass if np.isfinite(mass).all() and (mass > 0).all() else np.ones(len(atoms))
            system.note_guessed(atoms)
            groups = (which, mass)
        coords: Coords = {"residue": (resids if groups else resids[which], "")}
        statistics: dict[str, Reducer] = {MOMENTS: Moments()}
        settings = (groups, self.corrected, SharesKept(n_runs(system)))
        return Measurement(partial(moved_atoms, gather, structure.fit, same, structure.mean), {
            "": OfStates(partial(fluctuation, "rmsf", *settings), statistics, "Angstrom", coords, (0.0, None), spread=True),
            "bfactor": OfStates(partial(fluctuation, "bfactor", *settings), statistics, "Angstrom2", coords, (0.0, None),
                                spread=True)}, note="the mean structure")


def fitted_mean(system: System, atoms: np.ndarray, select: str, fit: str | Literal[False] | None, weights: str | None,
                reference: object, *, rounds: int | None, why: str) -> tuple[Gather, MeanStructure, bool]:
    """The mean structure of atoms for a superposition; what gathers the fitted atoms and then them; whether they are one."""
    if fit is False:
        fitted, start, shares, same = np.zeros(0, np.int64), np.zeros((0, 3)), None, False
    else:
        fitted = atoms if fit is None else system.select(fit)
        check_fit(fitted, fit or select, 3)
        start = reference_positions(system, reference, fit or select, fitted)
        shares = shares_by(system, fitted, weights)
        same = np.array_equal(fitted, atoms)
    gather = system.assembled(atoms if same else np.concatenate([fitted, atoms]))
    try:
        structure = mean_structure(lambda branches: system.reduce(branches, f"mean structure of {why}"), gather, start,
                                   same=same, others=len(atoms), weights=shares, rounds=rounds)
    except StatisticsError as error:
        where = system.first_hole(gather)
        if not where:
            raise
        raise StatisticsError(f"{where}; there is no mean structure then: {MEND}") from error
    return gather, structure, same


def moved_atoms(gather: Gather, onto: Fit, same: bool, mean: np.ndarray, block: Block) -> np.ndarray:
    """Deviations (n, m, 3) of the atoms from the mean structure after superposition."""
    positions, index = gather(block)
    fitted, atoms = split(index, len(onto), same)
    return onto.moved(positions, fitted, atoms, mean)


def n_runs(system: System) -> int:
    """How many runs there are; several move about one mean structure, not each about its own."""
    return len(system.source.lengths or ())


def several(system: System) -> bool:
    """Whether there are several runs."""
    return n_runs(system) > 1


Groups = tuple[np.ndarray, np.ndarray] | None


class SharesKept:
    """What a run of finite length leaves of each variance, worked out once for the quantities of a run.

    runs: about whose common mean the variances are.
    """

    def __init__(self, runs: int):
        self.runs = runs
        self._of: weakref.ref[RunStates] | None = None
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def of(self, run: RunStates) -> tuple[np.ndarray, np.ndarray]:
        """Of each coordinate (atoms, 3), 1 where it is too short to tell; and the variances."""
        if self._found is None or self._of is None or self._of() is not run:
            self._of, self._found = weakref.ref(run), _share_kept(run, self.runs)
        return self._found


def fluctuation(kind: Literal["rmsf", "bfactor"], groups: Groups, corrected: bool, shares: SharesKept,
                reading: Reading) -> Estimate:
    """The root mean square fluctuation of atoms (or of `groups` of them), or their B-factors, of one run of several."""
    run = reading.run
    share, variance = shares.of(run)
    independent = stretches(kept_together(share, variance))
    if groups is not None:
        which, mass = groups
        moved = mass * variance.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            independent = np.bincount(which, moved) / np.bincount(which, moved / independent)
    divisor = share if corrected else np.ones_like(share)
    function, degree = (_root, 2) if kind == "rmsf" else (_b_factor, 1)
    return run.estimate(MOMENTS, partial(function, groups, divisor, shares.runs > 1), confidence=reading.confidence,
                        independent=independent, degree=degree)


def _share_kept(run: RunStates, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the variance of each coordinate (atoms, 3) about the mean of all runs, 1 where it is too short to tell; and that."""
    parts = [state.result() for (state,) in run.reducers(MOMENTS) if isinstance(state, Moments) and state.weight > 0]
    moments: MomentsResult = run.results(MOMENTS)[0]
    if len(parts) < FEWEST:
        return np.ones(moments.mean.shape), np.zeros(moments.mean.shape)
    weights = np.array([part.sum_weights for part in parts])
    curve = blocking(np.array([part.mean for part in parts]), weights)
    stderr = (curve.chosen() if run.ordered else curve.of_independent(kish(weights, len(weights)))).stderr
    with np.errstate(invalid="ignore", divide="ignore"):
        n_eff = np.where(stderr > 0, runs * moments.variance / stderr**2, np.nan)
    return share_kept(n_eff, runs * run.n), moments.variance


def _mean_square(groups: Groups, divisor: np.ndarray, common: bool, moments: MomentsResult) -> np.ndarray:
    """Of each atom (or residue) about its mean, over all frames: not divided by one less, but by what the mean took away.

    common: about the mean structure of all runs, which is where the deviations start.
    """
    share = 1 - 1 / moments.n_eff
    spread = np.zeros(moments.mean.shape) if share <= 1e-12 else moments.variance * share
    if common:
        spread = spread + moments.mean**2
    mean_square = (spread / divisor).sum(-1)
    if groups is None:
        return mean_square
    which, mass = groups
    return np.bincount(which, mass * mean_square) / np.bincount(which, mass)


def _root(groups: Groups, divisor: np.ndarray, common: bool, moments: MomentsResult) -> np.ndarray:
    return np.sqrt(_mean_square(groups, divisor, common, moments))


def _b_factor(groups: Groups, divisor: np.ndarray, common: bool, moments: MomentsResult) -> np.ndarray:
    return B_FACTOR * _mean_square(groups, divisor, common, moments)
