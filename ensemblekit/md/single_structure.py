"""What a single structure gets wrong: observables of one structure beside those of the ensemble."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.averaging.estimate import Estimate
from ensemblekit.errors import InputError
from ensemblekit.md.average import average
from ensemblekit.md.conformer_source import ConformerSource
from ensemblekit.md.ensemble_files import read_models
from ensemblekit.md.topology import Topology
from ensemblekit.results import Result

if TYPE_CHECKING:
    from ensemblekit.md.conformers import ConformerEnsemble

MOST_SINGLE = 200
"""Conformers that are tried as the best single one; of more, spread evenly."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SingleStructureReport(Result):
    """Each observable of the representative, the mean structure, the best single conformer (and a structure from elsewhere)
    beside that of the ensemble."""

    FIGURE = "ensemble.single_structures"

    ensemble: Mapping[str, Estimate]
    """Name -> the average over the ensemble, with its interval."""
    structures: Mapping[str, Mapping[str, np.ndarray]]
    """"representative", "mean structure", "best single" and perhaps "outside" -> name -> value."""
    representative: int
    """Its number, from 0."""
    best: int
    """The conformer whose observables deviate least, in half intervals, root mean square over all numbers."""
    deviations: Mapping[str, float]
    """Structure -> that deviation."""
    confidence: np.ndarray | None = None
    """Of the outside structure, its B-factors atom by atom: pLDDT where a predictor wrote it."""
    notes: tuple[str, ...] = ()

    def outside_interval(self, structure: str) -> dict[str, float]:
        """Of each observable the share of its numbers that a structure has outside the interval of the ensemble."""
        shares = {}
        for name, e in self.ensemble.items():
            x, low, high = (np.asarray(v, np.float64) for v in (self.structures[structure][name], e.low, e.high))
            shares[name] = float(np.mean(~((x >= low) & (x <= high))))
        return shares

    def table(self) -> str:
        """Observable, mean and interval of the ensemble, value of each structure; of arrays the share outside the interval."""
        names = list(self.structures)
        rows = [["observable", "ensemble", *names]]
        for name, e in self.ensemble.items():
            if np.ndim(e.mean) == 0:
                rows.append([name, f"{e.mean:.5g} ({e.low:.5g} to {e.high:.5g})",
                             *(f"{float(self.structures[one][name]):.5g}" for one in names)])
            else:
                rows.append([name, f"{np.size(e.mean)} numbers", *(
                    f"{100 * self.outside_interval(one)[name]:.0f} % outside" for one in names)])
        rows.append(["deviation", "", *(f"{self.deviations[one]:.3g} half intervals" for one in names)])
        wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows)

    def __repr__(self) -> str:
        return "\n".join([self.table(), *self.notes])


def single_structure_report(ensemble: ConformerEnsemble, observables: Mapping[str, object], *, select: str = "name CA",
                            structure: str | os.PathLike[str] | None = None, confidence: float = 0.95) -> SingleStructureReport:
    """Each observable of single structures beside the ensemble's interval: what one structure gets wrong.

    Arguments:
        observables: as for ``md.average``.
        select: by which the representative is chosen and the mean structure superposed.
        structure: one from elsewhere (the model of a predictor) with the same atoms; those that both have are compared, and
            its B-factors (pLDDT) come along.

    Raises InputError where the structure has no atom of the ensemble.
    """
    notes: list[str] = []
    held, outside, b_factors = ensemble, None, None
    if structure is not None:
        held, outside, b_factors, said = _with_structure(ensemble, structure)
        notes += said
    answers = average(held, observables, equilibration=None, confidence=confidence, quiet=True)
    main = {name: answers[name] for name in observables}
    middle = held.representative(select)
    tried = np.unique(np.linspace(0, held.n - 1, min(held.n, MOST_SINGLE)).astype(int))
    if len(tried) < held.n:
        notes.append(f"{len(tried)} of {held.n} conformers, spread evenly, were tried as the best single one")
    singles = {int(k): _of_one(held.positions("all")[k], held, observables) for k in tried}
    off = {k: _deviation(main, one) for k, one in singles.items()}
    best = min(off, key=lambda k: off[k] if np.isfinite(off[k]) else np.inf)
    every = held.positions("all")
    structures = {"representative": singles.get(middle.model) or _of_one(every[middle.model], held, observables),
                  "mean structure": _of_one(held.mean_structure("all"), held, observables), "best single": singles[best]}
    if outside is not None:
        structures["outside"] = _of_one(outside, held, observables)
    return SingleStructureReport(ensemble=main, structures=structures, representative=middle.model, best=best,
                                 deviations={name: _deviation(main, one) for name, one in structures.items()},
                                 confidence=b_factors, notes=(*notes, *held.notes, *answers.notes))


def _of_one(positions: np.ndarray, ensemble: ConformerEnsemble, observables: Mapping[str, object]) -> dict[str, np.ndarray]:
    """Observables of one structure."""
    source = ConformerSource(np.asarray(positions, np.float64)[None], ensemble.topology)
    answers = average(source, observables, equilibration=None, quiet=True)
    return {name: np.asarray(answers[name].mean, np.float64) for name in observables}


def _deviation(main: Mapping[str, Estimate], one: Mapping[str, np.ndarray]) -> float:
    """Root mean square over all numbers of what a structure deviates, in half intervals of the ensemble."""
    parts = []
    for name, e in main.items():
        half = (np.asarray(e.high, np.float64) - np.asarray(e.low, np.float64)) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(np.ravel((one[name] - np.asarray(e.mean)) / half))
    every = np.concatenate(parts)
    every = every[np.isfinite(every)]
    return float(np.sqrt(np.mean(every**2))) if len(every) else float("nan")


def _with_structure(ensemble: ConformerEnsemble, structure: str | os.PathLike[str]
                    ) -> tuple[ConformerEnsemble, np.ndarray, np.ndarray, list[str]]:
    """The ensemble of the atoms that a structure has too, its positions of these and their B-factors; what is to be said."""
    models = read_models(structure)
    there = {key: k for k, key in enumerate(_keys(models.topology))}
    keys = _keys(ensemble.topology)
    kept = np.array([k for k, key in enumerate(keys) if key in there], np.int64)
    name = os.path.basename(os.fspath(structure))
    if not len(kept):
        raise InputError(f"{name} has no atom of the ensemble, by residue number, residue and name: number alike")
    said = [] if len(kept) == len(keys) else [f"the {len(kept)} of {len(keys)} atoms that {name} has were compared"]
    if len(models.positions) > 1:
        said.append(f"{name} has {len(models.positions)} models; the first was taken")
    rows = np.array([there[keys[k]] for k in kept])
    universe = ensemble.topology.universe()
    topology = Topology.of(universe.atoms[kept])
    position = np.asarray(ensemble.positions("all"), np.float64)[:, kept]
    source = ConformerSource(position, topology, ensemble.source.weights, ensemble.source.caveat)
    return (replace(ensemble, source=source, topology=topology), models.positions[0][rows],
            np.asarray(models.topology.atoms["tempfactors"], np.float64)[rows], said)


def _keys(topology: Topology) -> list[tuple[int, str, str]]:
    """What atoms of two files are matched by: residue number, residue and name. Chains may be called otherwise."""
    return list(zip(map(int, topology.resids), map(str, topology.resnames), map(str, topology.names), strict=True))


__all__ = ["SingleStructureReport", "single_structure_report"]
