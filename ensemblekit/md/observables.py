"""Functions of the frames that people average. Small frozen settings; `prepare` gives a map over blocks of frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import reduce
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.md.superpose import superposed
from ensemblekit.md.topology import Topology
from ensemblekit.source import Block, SnapshotSource

Map = Callable[[Block], np.ndarray]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An observable made ready for one source."""

    map: Map
    """Block -> (n, *out), what is averaged over the frames."""
    unit: str
    coords: dict[str, tuple[np.ndarray, str]]
    """Axis of `out` -> (values, unit)."""
    finish: Callable[[Any], Any] = lambda estimate: estimate
    """From the Estimate of the map's mean to that of the observable."""
    passes: int = 1
    """Reads of the trajectory in all, the averaging one included."""


class Observable(Protocol):
    """What `md.average` can average."""

    def prepare(self, topology: Topology, source: SnapshotSource, engine: Engine | None) -> Prepared:
        """Atoms chosen and references made."""


@dataclass(frozen=True)
class RadiusOfGyration:
    """sqrt(sum m |r - c|^2 / sum m) of each frame, c the centre of mass; in angstrom."""

    select: str = "protein"
    weights: str | None = "mass"
    """"mass", or None for all atoms alike."""

    def prepare(self, topology: Topology, source: SnapshotSource, engine: Engine | None) -> Prepared:
        if self.weights not in ("mass", None):
            raise InputError(f'weights is "mass" or None; got {self.weights!r}')
        atoms = topology.select(self.select)
        masses = topology.masses[atoms] if self.weights else np.ones(len(atoms))
        if not np.isfinite(masses).all() or masses.sum() <= 0:
            raise InputError("the topology has no masses for this selection; pass weights=None")
        return Prepared(partial(_gyration, atoms, masses / masses.sum()), "Angstrom", {})


def _gyration(atoms: np.ndarray, shares: np.ndarray, block: Block) -> np.ndarray:
    x = block.fields["position"][:, atoms].astype(np.float64)
    x -= np.einsum("a,nai->ni", shares, x)[:, None]
    return np.sqrt(np.einsum("a,nai,nai->n", shares, x, x))


@dataclass(frozen=True)
class RMSF:
    """Root mean square fluctuation of each atom about its mean position after superposition; in angstrom.

    Frames are superposed on the mean structure, which is itself the mean of the frames superposed on the first one:
    MDAnalysis' AverageStructure(ref_frame=0), AlignTraj and RMSF in a row.
    """

    select: str = "name CA"
    fit: str | None = None
    """The atoms that are superposed; None: those of `select`."""

    def prepare(self, topology: Topology, source: SnapshotSource, engine: Engine | None) -> Prepared:
        atoms = topology.select(self.select)
        fit = atoms if self.fit is None or self.fit == self.select else topology.select(self.fit)
        if len(fit) < 3:
            raise InputError(f"a superposition needs 3 atoms or more; {self.fit or self.select!r} gives {len(fit)}")
        (first,) = (block.fields["position"][0] for piece in source.window(0, 1).pieces(["position"], "time", False, 1)
                    for block in piece.blocks())
        reference = _mean(source, partial(_fitted, fit, fit, np.asarray(first[fit], np.float64)), engine)
        mean = _mean(source, partial(_fitted, fit, atoms, reference), engine)
        return Prepared(partial(_squared_deviation, fit, atoms, reference, mean), "Angstrom2",
                        {"residue": (topology.resids[atoms], "")}, _root, passes=3)


def _mean(source: SnapshotSource, map: Map, engine: Engine | None) -> np.ndarray:
    return reduce(source, {"mean": (map, Moments())}, engine=engine)["mean"].mean


def _fitted(fit: np.ndarray, atoms: np.ndarray, reference: np.ndarray, block: Block) -> np.ndarray:
    x = block.fields["position"].astype(np.float64)
    anchor, rest = x[:, fit], x[:, atoms]
    if len(fit) == len(atoms) and (fit == atoms).all():
        return superposed(anchor, reference)
    both = np.concatenate([anchor, rest], axis=1)
    return superposed(both, reference)[:, len(fit):]


def _squared_deviation(fit: np.ndarray, atoms: np.ndarray, reference: np.ndarray, mean: np.ndarray,
                       block: Block) -> np.ndarray:
    return ((_fitted(fit, atoms, reference, block) - mean) ** 2).sum(-1)


def _root(squared: Any) -> Any:
    """The Estimate of a root from that of the square: the interval's ends by the root, the error by its slope."""
    root = np.sqrt(squared.mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        stderr = squared.stderr / (2 * root)
    interval = tuple(np.sqrt(np.clip(end, 0, None)) for end in squared.interval)
    return replace(squared, mean=root, stderr=stderr, interval=interval, unit="Angstrom")
