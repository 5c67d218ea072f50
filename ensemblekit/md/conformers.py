"""Conformer ensembles: the models of an NMR deposit, a weighted ensemble of a disordered protein, or frames of a trajectory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.diversity import DiverseSubset, Method, choose
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.scalar_mean import scalar_estimate
from ensemblekit.averaging.weights import effective_samples, normalised_weights
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.md.average import average
from ensemblekit.md.compare import selected_positions
from ensemblekit.md.conformer_source import ConformerSource
from ensemblekit.md.ensemble_files import read_models, read_weights
from ensemblekit.md.ensemble_writing import write_models
from ensemblekit.md.frame_selection import FrameSelection
from ensemblekit.md.frame_weights import weighted
from ensemblekit.md.frames import HoldsFrames, as_frames, topology_of
from ensemblekit.md.observables.backbone import BackboneSpread
from ensemblekit.md.observables.dihedrals import backbone_torsions
from ensemblekit.md.observables.rmsf import RMSF
from ensemblekit.md.single_structure import SingleStructureReport, single_structure_report
from ensemblekit.md.superpose import rmsd, rmsd_matrix, superposed
from ensemblekit.md.system import System
from ensemblekit.md.topology import Topology
from ensemblekit.results import Result
from ensemblekit.source import DescribedSource, ReplicaSet

MOST_PAIRED = 5000
"""Conformers that are compared all with all; 200 MB of distances."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Representative(Result):
    """The conformer that all others are nearest to: the weighted medoid by RMSD."""

    model: int
    """Its number, from 0."""
    mean_rmsd: float
    """Weighted mean RMSD of all conformers to it (itself included, with 0), angstrom."""


@dataclass(frozen=True, eq=False, repr=False)
class ConformerEnsemble(HoldsFrames, Result):
    """Conformers of one molecule with statistical weights: models in no order, or frames of a trajectory, which keep theirs."""

    FIGURE = "ensemble.spread"

    source: DescribedSource
    """Of the conformers, for :func:`md.average`, which takes the ensemble itself as well."""
    topology: Topology
    calculated: int = 0
    """How many conformers the authors calculated; 0 where it is not known."""
    notes: tuple[str, ...] = ()
    """What was left out or assumed when it was read."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *,
             weights: ArrayLike | str | os.PathLike[str] | None = None, common: bool = False) -> ConformerEnsemble:
        """All models of a .cif or .pdb (also .gz), a .tar.gz of the Protein Ensemble Database, an .ens, or several files.

        Arguments:
            weights: (models,), or the path of a table of them (the last column, or that named "weight"). None: those that the
                files hold, or stand beside them (<name>.weights.csv); all alike where there are none.
            common: keep the atoms that all models have, instead of refusing models with others.

        Raises InputError where a file cannot be read, models differ in their atoms, or weights do not fit.
        """
        models = read_models(path, common=common)
        given = read_weights(weights) if isinstance(weights, str | os.PathLike) else weights
        given = models.weights if given is None else given
        n = len(models.positions)
        held = None if given is None else _checked_weights(given, n)
        many = f"; {models.calculated} were calculated" if models.calculated else ""
        words = (f"the spread of {n} deposited models tells how far the data restrain them, not a sampling error{many}"
                 if n > 1 else "one model has no spread")
        source = ConformerSource(models.positions, models.topology, held, words)
        return cls(source, models.topology, models.calculated, models.notes, models.provenance)

    @classmethod
    def of(cls, source: object, *, frame_weights: object = None, frames: ArrayLike | None = None) -> ConformerEnsemble:
        """The frames of a trajectory (one run), which keep their order in time and their times.

        Arguments:
            source, frame_weights, frames: as for :func:`md.average`.
        """
        given = as_frames(source)
        if isinstance(given, ReplicaSet):
            raise InputError("an ensemble is of one run; take md.ConformerEnsemble.of(run) of each, or md.average of all")
        chosen = weighted(given, FrameSelection(frames=frames), frame_weights, None) if frame_weights is not None else (
            FrameSelection(frames=frames).of(given))
        if not sum(chosen.lengths or ()):
            raise StatisticsError("there are no frames for an ensemble")
        return cls(chosen, topology_of(given))

    @property
    def frames(self) -> DescribedSource:
        return self.source

    @property
    def n(self) -> int:
        """Conformers."""
        return sum(self.source.lengths or ())

    @cached_property
    def weights(self) -> np.ndarray:
        """(n,), adding up to 1."""
        held = self.source.weights
        return np.full(self.n, 1 / self.n) if held is None else _checked_weights(held, self.n)

    @property
    def n_eff(self) -> float:
        """Conformers of equal weight that they are worth (Kish)."""
        return effective_samples(self.weights)

    @property
    def n_eff_entropy(self) -> float:
        """The same by the entropy of the weights, as BME's φ n."""
        return effective_samples(self.weights, "entropy")

    def _facts(self) -> dict[str, object]:
        return {"conformers": self.n, "atoms": len(self.topology), "weighted": self.source.weights is not None,
                "n_eff": self.n_eff, "n_eff_entropy": self.n_eff_entropy, "in order": self.source.ordered,
                "calculated": self.calculated or None, "notes": self.notes}

    def __repr__(self) -> str:
        weights = f", weights worth {self.n_eff:.4g}" if self.source.weights is not None else ""
        notes = "".join(f"\n  {note}" for note in self.notes)
        return f"<ensemble of {self.n} conformers of {len(self.topology)} atoms{weights}>{notes}"

    def positions(self, select: str = "all") -> np.ndarray:
        """Of the selected atoms in all conformers, (n, atoms, 3) angstrom, molecules whole."""
        return selected_positions(self.source, self.topology, select)

    def rmsd(self, select: str = "name CA") -> np.ndarray:
        """Of all conformers from each other after superposition, (n, n) angstrom."""
        if self.n > MOST_PAIRED:
            raise InputError(f"{self.n} conformers are {self.n**2 / 1e6:.0f} million pairs; the most is {MOST_PAIRED} of them: "
                             "choose some with ConformerEnsemble.of(source, frames=)")
        return rmsd_matrix(self.positions(select))

    def spread(self, select: str = "name CA", *, core: str | None = None, confidence: float = 0.95) -> Estimate:
        """How far conformers differ, residue by residue: RMSF about the weighted mean structure, angstrom.

        Further: `rmsd_to_mean` and `pairwise_rmsd`, angstrom; `phi_spread` and `psi_spread`, circular standard deviations of
        the backbone torsions, degrees, where residues have any; `bfactor`.

        Arguments:
            select: the atoms; a residue with several has the root of the mean of their squares.
            core: what is superposed; None: those of `select`. Loops that go everywhere are better left out of it.
        """
        more = {"torsions": BackboneSpread()} if self._has_torsions() else {}
        answers = average(self, {"spread": RMSF(select, core, rounds=None, corrected=False, level="residue"), **more},
                          equilibration=None, confidence=confidence, quiet=True)
        derived = {**answers["spread"].derived, "rmsd_to_mean": self._rmsd_to_mean(select, core, confidence)}
        if 1 < self.n <= MOST_PAIRED:
            derived["pairwise_rmsd"] = self._pairwise(select, confidence)
        if more:
            derived |= {"phi_spread": answers["torsions"].phi, "psi_spread": answers["torsions"].psi}
        return replace(answers["spread"], derived=derived)

    def _has_torsions(self) -> bool:
        """Whether a residue has phi and psi."""
        try:
            backbone_torsions(System(self.source, self.topology), "protein")
        except InputError:
            return False
        return True

    def _rmsd_to_mean(self, select: str, core: str | None, confidence: float) -> Estimate:
        """Of each conformer to the mean structure, after superposition on the core."""
        atoms = self.positions(select)
        fitted = atoms if core is None else self.positions(core)
        both = np.concatenate([fitted, atoms], axis=1)
        mean = _mean_structure(both, self.weights, fitted.shape[1])
        moved = superposed(both, mean[:fitted.shape[1]])[:, fitted.shape[1]:]
        off = np.sqrt(((moved - mean[fitted.shape[1]:]) ** 2).sum(axis=2).mean(axis=1))
        return self._mean_of(off, confidence)

    def _mean_of(self, series: np.ndarray, confidence: float) -> Estimate:
        """The mean of a number of each conformer, angstrom."""
        answer = scalar_estimate(series, self.source.weights, self.source.times, None, confidence, "Angstrom",
                                 time_unit=self.source.time_unit, ordered=self.source.ordered)
        return answer.noting(self.source.caveat)

    def _pairwise(self, select: str, confidence: float) -> Estimate:
        """The mean over pairs, weighted by both; its error by leaving out conformer after conformer (pseudo-values)."""
        d, w = self.rmsd(select), self.weights
        row = d @ w
        total, pairs = float(w @ row), 1.0 - float(w @ w)
        mean = total / pairs
        held = w > 0
        left_out = (total - 2 * w * row) / np.where(held, pairs - 2 * w * (1 - w), 1.0)
        pseudo = np.where(held, mean - (1 / np.where(held, w, 1.0) - 1) * (left_out - mean), mean)
        answer = self._mean_of(pseudo, confidence)
        shift = mean - answer.mean
        return replace(answer, mean=mean, interval=(max(answer.low + shift, 0.0), answer.high + shift), series=None, times=None)

    def representative(self, select: str = "name CA") -> Representative:
        """The conformer with the least weighted mean RMSD to all."""
        row = self.rmsd(select) @ self.weights
        model = int(np.argmin(row))
        return Representative(model=model, mean_rmsd=float(row[model]))

    def diverse(self, k: int, select: str = "name CA", *, scores: ArrayLike | Literal["weights"] | None = None,
                method: Method = "max-min") -> DiverseSubset:
        """A few conformers that are far from each other by RMSD: see ``statistics.diverse_subset``.

        scores: (n,), larger is better; "weights": heavy ones first.
        """
        if isinstance(scores, str):
            if scores != "weights":
                raise InputError(f'scores are one number a conformer, or "weights"; got {scores!r}')
            scores = self.weights
        return choose(self.rmsd(select), k, scores=scores, method=method)

    def mean_structure(self, select: str = "all") -> np.ndarray:
        """The weighted mean positions (atoms, 3) after each conformer was superposed on it: no structure that exists."""
        atoms = self.positions(select)
        return _mean_structure(atoms, self.weights, atoms.shape[1])

    def model(self, k: int) -> ConformerEnsemble:
        """One conformer as an ensemble of one."""
        if not -self.n <= k < self.n:
            raise InputError(f"there is no model {k}: they run from 0 to {self.n - 1}")
        return replace(self, source=self.source.window(k % self.n, k % self.n + 1))

    def reweighted(self, weights: ArrayLike) -> ConformerEnsemble:
        """The same conformers with these weights, (n,), in the place of their own."""
        w = _checked_weights(weights, self.n)
        source = self.source.reweighted(w) if isinstance(self.source, ConformerSource) else weighted(
            self.source, FrameSelection(), w, None)
        return replace(self, source=source)

    def single_structure_report(self, observables: Mapping[str, object], *, select: str = "name CA",
                                structure: str | os.PathLike[str] | None = None,
                                confidence: float = 0.95) -> SingleStructureReport:
        """What one structure gets wrong: the representative, the mean structure, the best single conformer, and `structure`
        from elsewhere, beside the ensemble; see :func:`~ensemblekit.md.single_structure.single_structure_report`."""
        return single_structure_report(self, observables, select=select, structure=structure, confidence=confidence)

    def write(self, path: str | os.PathLike[str], *, title: str = "", authors: Sequence[str] = (),
              data: Mapping[str, Any] | None = None) -> str:
        """All conformers with their weights as .cif, .pdb (either .gz) or .tar.gz; returns the path.

        In mmCIF weights stand as population fractions of the states of an integrative model (one a conformer), and once more
        in a category of ours; with PDB as remarks and in <name>.weights.csv beside it. They are read back bit for bit.

        data: what they were weighted by, or anything else that JSON holds: kept in mmCIF.
        """
        facts = dict(self.provenance)
        facts |= {key: value for key, value in (("title", title), ("authors", list(authors)), ("data", data)) if value}
        held = None if self.source.weights is None else self.weights
        return write_models(path, np.asarray(self.positions("all"), np.float64), self.topology, held,
                            title=title or str(facts.get("title", "")), authors=tuple(facts.get("authors", ())),
                            provenance=facts, calculated=self.calculated)


def _checked_weights(weights: object, n: int) -> np.ndarray:
    """Weights of n conformers that add up to 1: as they are, bit for bit, where they do."""
    shares = normalised_weights(weights)
    if shares.shape != (n,):
        raise InputError(f"weights are one a conformer, shape ({n},); got shape {shares.shape}")
    given = np.asarray(weights, np.float64)
    return given if abs(float(given.sum()) - 1) <= 1e-12 else shares


def _mean_structure(positions: np.ndarray, weights: np.ndarray, fitted: int) -> np.ndarray:
    """The weighted mean of positions (n, atoms, 3), whose first `fitted` atoms are superposed on their own mean."""
    if fitted < 3:
        raise InputError(f"a superposition takes at least 3 atoms; got {fitted}")
    mean = np.asarray(positions[int(np.argmax(weights))], np.float64)
    for _ in range(50):
        new = np.einsum("t,tax->ax", weights, superposed(positions, mean[:fitted]))
        shift = float(rmsd(new[None, :fitted], mean[:fitted])[0])
        mean = new
        if shift < 1e-6:
            break
    return mean


__all__ = ["ConformerEnsemble", "Representative"]
