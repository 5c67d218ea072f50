"""Who the atoms are: names, residues, masses and charges, as plain arrays that travel with a store."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError


@contextmanager
def mdanalysis() -> Iterator[Any]:
    """MDAnalysis, with those of its warnings held back that say nothing about the data at hand."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)     # of libraries it imports
            import MDAnalysis
    except ImportError as error:
        raise MissingExtraError("MDAnalysis", "md") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="MDAnalysis")
        warnings.filterwarnings("ignore", message="DCDReader currently makes independent timesteps")
        warnings.filterwarnings("ignore", message="No coordinate reader found for")
        yield MDAnalysis


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """The atoms of a trajectory, one entry an atom."""

    names: np.ndarray
    masses: np.ndarray
    """In u."""
    charges: np.ndarray
    """In e; NaN where the topology file has none."""
    resids: np.ndarray
    resnames: np.ndarray
    segids: np.ndarray

    @classmethod
    def of(cls, atoms: Any) -> Self:
        """From an MDAnalysis AtomGroup."""
        n = len(atoms)

        def column(name: str, missing: Any) -> np.ndarray:
            return np.asarray(getattr(atoms, name)) if hasattr(atoms, name) else np.full(n, missing)

        return cls(column("names", ""), column("masses", np.nan).astype(float), column("charges", np.nan).astype(float),
                   column("resids", 1).astype(int), column("resnames", ""), column("segids", ""))

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists, for JSON; charges that are not known become None."""
        return {"names": self.names.tolist(), "masses": self.masses.tolist(),
                "charges": [None if np.isnan(q) else float(q) for q in self.charges],
                "resids": self.resids.tolist(), "resnames": self.resnames.tolist(), "segids": self.segids.tolist()}

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        charges = np.array([np.nan if q is None else q for q in columns["charges"]], float)
        return cls(np.array(columns["names"], object), np.array(columns["masses"], float), charges,
                   np.array(columns["resids"], int), np.array(columns["resnames"], object),
                   np.array(columns["segids"], object))

    def universe(self) -> Any:
        """An MDAnalysis Universe of these atoms without coordinates: every selection gives the same atoms."""
        n = len(self.names)
        keys = list(zip(self.segids, self.resids, self.resnames, strict=True))
        new = np.array([True] + [a != b for a, b in itertools.pairwise(keys)])
        residue = np.cumsum(new) - 1
        segments, of_residue = np.unique(np.asarray(self.segids, str)[new], return_inverse=True)
        with mdanalysis() as mda:
            made = mda.Universe.empty(n, n_residues=int(new.sum()), n_segments=len(segments), atom_resindex=residue,
                                      residue_segindex=of_residue, trajectory=False)
            made.add_TopologyAttr("names", list(self.names))
            made.add_TopologyAttr("masses", self.masses)
            made.add_TopologyAttr("resids", self.resids[new])
            made.add_TopologyAttr("resnames", list(self.resnames[new]))
            made.add_TopologyAttr("segids", list(segments))
            if not np.isnan(self.charges).any():
                made.add_TopologyAttr("charges", self.charges)
        return made

    def select(self, text: str) -> np.ndarray:
        """Indices of the atoms of a selection in MDAnalysis' language.

        Raises InputError where the selection cannot be read or is empty.
        """
        with mdanalysis() as mda:
            try:
                indices = self.universe().select_atoms(text).indices
            except mda.exceptions.SelectionError as error:
                raise InputError(f"the selection {text!r} cannot be read: {error}") from error
        if not len(indices):
            raise InputError(f"the selection {text!r} is empty; there are {len(self.names)} atoms in the residues "
                             f"{', '.join(sorted(set(map(str, self.resnames)))[:12])}")
        return indices
