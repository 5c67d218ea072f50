"""Who the atoms are: names, residues, masses, charges, bonds, as plain arrays that travel with a store."""

from __future__ import annotations

import base64
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Self

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError, StoreDamagedError, one_line

LINKS = ("bonds", "angles", "dihedrals", "impropers")
NUMBERED = {"indices", "resindices", "segindices"}      # say where an object stands, not what it is
SHOWN = 12
MOST_KEPT = 200_000
"""Atoms of topologies that are kept ready for the next average, in all: some 100 MB."""


LINKED = ("bonded", "fragment", "smarts", "molecule")
"""Words of MDAnalysis' selections that ask for bonds."""


@contextmanager
def mdanalysis() -> Iterator[Any]:
    """MDAnalysis, with those of its warnings held back that say nothing about the data at hand."""
    try:
        with warnings_held():
            import MDAnalysis
    except ImportError as error:
        raise MissingExtraError("MDAnalysis", "md") from error
    with warnings_held():
        yield MDAnalysis


@contextmanager
def warnings_held() -> Iterator[None]:
    """Without the warnings of MDAnalysis about itself. Filters belong to the process: not for use in worker threads."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for text in ("DCDReader currently makes independent", "No coordinate reader found for", "Element information",
                     "Unknown element", "Reader has no dt information", "Failed to guess the mass", "Guessing", "Found no",
                     "Reload offsets from trajectory", "Cannot write lock/offset file", "Unit cell dimensions not found",
                     "No coordinate formatters found", r"1 A\^3 CRYST1 record", "Unsupported", "Using the .* assumed",
                     "Supplied", "No hydrogen", ".*has no topology attribute", "guessed"):
            warnings.filterwarnings("ignore", message=text)
        yield


@dataclass(frozen=True, eq=False)
class Topology:
    """The atoms of a trajectory: every attribute MDAnalysis knew of them, so that every selection gives the same atoms."""

    atoms: Mapping[str, np.ndarray]
    """Attribute (plural, as in MDAnalysis: "names", "masses", "charges", "elements", ...) -> one value an atom."""
    residues: Mapping[str, np.ndarray]
    """Attribute -> one value a residue: "resids", "resnames", "icodes", ..."""
    segments: Mapping[str, np.ndarray]
    """Attribute -> one value a segment: "segids"."""
    residue_of: np.ndarray
    """(atoms,) number of the residue of each atom."""
    segment_of: np.ndarray
    """(residues,) number of the segment of each residue."""
    links: Mapping[str, np.ndarray] = field(default_factory=dict)
    """"bonds" (m, 2), "angles" (m, 3), "dihedrals" and "impropers" (m, 4): atoms by number; absent where not known."""
    guessed: tuple[str, ...] = ()
    """Attributes of the atoms that MDAnalysis guessed from their names: "masses", "types", ..."""
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        made_again = ("_lock", "_universe", "_unlinked_universe")
        return {name: value for name, value in self.__dict__.items() if name not in made_again}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @classmethod
    def of(cls, group: Any) -> Self:
        """From an MDAnalysis AtomGroup. Atoms outside it are left out, with the bonds that lead to them."""
        indices = np.asarray(group.indices)
        source = group.universe._topology
        residue_of, segment_of = source.tt.atoms2residues(indices), None
        kept_residues, residue_of = np.unique(residue_of, return_inverse=True)
        kept_segments, segment_of = np.unique(source.tt.residues2segments(kept_residues), return_inverse=True)
        kept = {"atom": indices, "residue": kept_residues, "segment": kept_segments}
        columns: dict[str, dict[str, np.ndarray]] = {"atom": {}, "residue": {}, "segment": {}}
        sizes = {"atom": source.n_atoms, "residue": source.n_residues, "segment": source.n_segments}
        from MDAnalysis.core import topologyattrs as kinds

        links: dict[str, np.ndarray] = {}
        guessed = []
        for attribute in source.attrs:
            name = attribute.attrname
            if name in NUMBERED:
                continue
            if name in LINKS:
                links[name] = _links_within(np.asarray(attribute.values, dtype=np.int64), indices, source.n_atoms)
                continue
            level = next((level for level, kind in (("atom", kinds.AtomAttr), ("residue", kinds.ResidueAttr),
                                                    ("segment", kinds.SegmentAttr)) if isinstance(attribute, kind)), None)
            values = np.asarray(getattr(attribute, "values", None))
            if level is None or values.shape != (sizes[level],) or not (values.dtype.kind in "biufU" or _all_text(values)):
                continue
            text = values.dtype.kind in "UO"
            if getattr(attribute, "is_guessed", False):
                guessed.append(name)
            columns[level][name] = (values.astype(str).astype(object) if text else values)[kept[level]]
        return cls(columns["atom"], columns["residue"], columns["segment"], residue_of, segment_of, links,
                   tuple(guessed))

    def __len__(self) -> int:
        return len(self.residue_of)

    # -- columns that everybody asks for, one entry an atom ----------------------------------------------------------

    @property
    def names(self) -> np.ndarray:
        return self.atoms.get("names", np.full(len(self), "", object))

    @property
    def masses(self) -> np.ndarray:
        """In u; NaN where they are not known (MDAnalysis writes 0.0 there; a mass of zero is one of a virtual site)."""
        return np.asarray(self.atoms.get("masses", np.full(len(self), np.nan)), np.float64)

    @property
    def charges(self) -> np.ndarray:
        """In e; NaN where the topology file has none."""
        return np.asarray(self.atoms.get("charges", np.full(len(self), np.nan)), np.float64)

    @property
    def resids(self) -> np.ndarray:
        return self.residues.get("resids", np.ones(len(self.segment_of), int))[self.residue_of]

    @property
    def resnames(self) -> np.ndarray:
        return self.residues.get("resnames", np.full(len(self.segment_of), "", object))[self.residue_of]

    @property
    def segids(self) -> np.ndarray:
        n = int(self.segment_of.max(initial=-1)) + 1
        return self.segments.get("segids", np.full(n, "", object))[self.segment_of][self.residue_of]

    @property
    def bonds(self) -> np.ndarray | None:
        """(m, 2) atoms by number; None where the topology says nothing of bonds."""
        return self.links.get("bonds")

    @cached_property
    def ties(self) -> np.ndarray | None:
        """(m, 2) what holds molecules together: bonds, and for each virtual site (no bond, no mass, like the M of TIP4P) one
        to the first bonded atom of its residue; None without bonds."""
        bonds = self.bonds
        if bonds is None:
            return None
        bonded = np.zeros(len(self), bool)
        bonded[bonds.ravel()] = True
        sites = np.flatnonzero(~bonded & (self.masses == 0))
        first = np.full(len(self.segment_of), -1, np.int64)
        hosts = np.flatnonzero(bonded)[::-1]
        first[self.residue_of[hosts]] = hosts
        host = first[self.residue_of[sites]]
        return np.concatenate([bonds, np.column_stack([host, sites])[host >= 0]])

    @cached_property
    def fragments(self) -> np.ndarray | None:
        """(atoms,) number of the molecule (atoms linked by bonds, and their virtual sites) of each atom; None without bonds."""
        pairs = self.ties
        if pairs is None:
            return None
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        n = len(self)
        graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (n, n))
        return connected_components(graph, directed=False)[1]

    # -- to and from what a file can hold ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Columns packed (zlib, base64) for JSON; text as its distinct words and numbers that point to them."""
        def packed(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
            return {name: _packed(values) for name, values in columns.items()}

        return {"version": 2, "n_atoms": len(self), "atoms": packed(self.atoms), "residues": packed(self.residues),
                "segments": packed(self.segments), "residue_of": _packed(self.residue_of),
                "segment_of": _packed(self.segment_of),
                "guessed": list(self.guessed),
                "links": {name: {"width": pairs.shape[1], **_packed(pairs.ravel())} for name, pairs in self.links.items()}}

    @classmethod
    def kept(cls, record: Mapping[str, Any]) -> Self:
        """:meth:`from_dict`, or the same topology again while it is among the last ones: its selections stay made ready."""
        n = record.get("n_atoms") if isinstance(record, Mapping) else None
        if not isinstance(n, int) or n > MOST_KEPT:
            return cls.from_dict(record)
        key = blake2b(repr(record).encode()).digest()
        with _kept_lock:
            cached = _kept.pop(key, None)
        topology = cached if isinstance(cached, cls) else cls.from_dict(record)
        with _kept_lock:
            _kept[key] = topology
            while sum(map(len, _kept.values())) > MOST_KEPT:
                del _kept[next(iter(_kept))]
        return topology

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`. Raises StoreDamagedError where the record is not what that wrote."""
        def unpacked(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return {name: _unpacked(values) for name, values in columns.items()}

        try:
            links = {name: _unpacked(c).reshape(-1, c["width"]).astype(np.int64) for name, c in record["links"].items()}
            topology = cls(unpacked(record["atoms"]), unpacked(record["residues"]), unpacked(record["segments"]),
                           _unpacked(record["residue_of"]).astype(np.int64), _unpacked(record["segment_of"]).astype(np.int64),
                           links, tuple(map(str, record.get("guessed", ()))))
            topology._check()
            return topology
        except (LookupError, TypeError, ValueError, AttributeError, MemoryError, zlib.error) as error:
            raise StoreDamagedError(f"the topology of this store cannot be read: {one_line(repr(error))}") from error

    def _check(self) -> None:
        """Raise ValueError where a column has another length, or names an atom, residue or segment that is not there."""
        atoms, residues = len(self.residue_of), len(self.segment_of)
        segments = int(self.segment_of.max(initial=-1)) + 1
        numbers = [(self.residue_of, residues), (self.segment_of, residues), *((pairs, atoms) for pairs in self.links.values())]
        if any(len(x) and not (0 <= x.min() and x.max() < below) for x, below in numbers):
            raise ValueError("it names atoms, residues or segments that are not there")
        for what, columns, n in (("atoms", self.atoms, atoms), ("residues", self.residues, residues),
                                 ("segments", self.segments, segments)):
            for name, values in columns.items():
                if len(values) != n:
                    raise ValueError(f"{name!r} has {len(values)} values for {n} {what}")

    # -- as MDAnalysis knows it --------------------------------------------------------------------------------------

    def universe(self, links: bool = True) -> Any:
        """An MDAnalysis Universe of these atoms without coordinates: every selection gives the same atoms.

        links: with bonds, angles and torsions, which MDAnalysis takes in one by one (100 ms for 3300 atoms).
        """
        with mdanalysis() as mda:
            universe = mda.Universe.empty(len(self), n_residues=len(self.segment_of),
                                          n_segments=int(self.segment_of.max(initial=-1)) + 1, atom_resindex=self.residue_of,
                                          residue_segindex=self.segment_of, trajectory=False)
            for columns in (self.atoms, self.residues, self.segments):
                for name, values in columns.items():
                    universe.add_TopologyAttr(name, values.copy() if values.dtype.kind != "O" else list(values))
            for name, pairs in self.links.items() if links else ():
                universe.add_TopologyAttr(name, [tuple(row) for row in pairs.tolist()])
        return universe

    @cached_property
    def _universe(self) -> Any:
        return self.universe()

    @cached_property
    def _unlinked_universe(self) -> Any:
        return self.universe(links=False)

    def select(self, text: str, position: np.ndarray | None = None, box: np.ndarray | None = None) -> np.ndarray:
        """Indices of the atoms of a selection in MDAnalysis' language, ascending.

        Arguments:
            position, box: (atoms, 3) and (3, 3) of the frame that decides, for selections by place ("around 5 protein").

        Raises InputError where the selection cannot be read, is empty, or is by place and no frame is given.
        """
        if not isinstance(text, str):
            raise InputError(f"a selection is text in MDAnalysis' language, such as \"protein and name CA\"; got {text!r}")
        with self._lock, mdanalysis() as mda:       # a topology may be shared by averages in several threads
            universe = self._universe if any(word in text for word in LINKED) else self._unlinked_universe
            if position is not None:
                from MDAnalysis.lib.mdamath import triclinic_box

                universe.load_new(np.asarray(position, np.float32)[None],
                                  dimensions=None if box is None else triclinic_box(*np.asarray(box, np.float64)))
            try:
                indices = universe.select_atoms(text).indices
            except mda.exceptions.SelectionError as error:
                raise InputError(f"the selection {text!r} cannot be read: {error}") from error
            except mda.exceptions.NoDataError as error:
                raise InputError(f"the selection {text!r} asks for what this topology does not know: {error}") from error
            except AttributeError as error:
                raise InputError(f"the selection {text!r} goes by the place of atoms, and there is no frame to look at "
                                 f"({error})") from error
        if not len(indices):
            known = sorted(set(map(str, self.resnames)))
            more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
            raise InputError(f"the selection {text!r} is empty; there are {len(self)} atoms in the residues "
                             f"{', '.join(known[:SHOWN])}{more}")
        return indices


_kept: dict[bytes, Topology] = {}
_kept_lock = threading.Lock()


def _links_within(pairs: np.ndarray, indices: np.ndarray, n_atoms: int) -> np.ndarray:
    """Bonds (or angles, ...) all of whose atoms are kept, by their new numbers."""
    if not len(pairs):
        return pairs.reshape(0, pairs.shape[1] if pairs.ndim == 2 else 2)
    new = np.full(n_atoms, -1, np.int64)
    new[indices] = np.arange(len(indices))
    moved = new[pairs]
    return moved[(moved >= 0).all(axis=1)]


def _all_text(values: np.ndarray) -> bool:
    return values.dtype == object and all(isinstance(v, str) for v in values)


def _packed(values: np.ndarray) -> dict[str, Any]:
    words: list[str] | None = None
    if values.dtype.kind in "OU":
        distinct, values = np.unique(values.astype(str), return_inverse=True)
        words = distinct.tolist()
    values = np.ascontiguousarray(values)
    if values.dtype.kind in "iu":
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        kind = next((k for k in ("<i1", "<i2", "<i4") if np.iinfo(k).min <= low and high <= np.iinfo(k).max), "<i8")
        values = values.astype(kind)
    elif values.dtype.itemsize > 1:
        values = values.astype(values.dtype.newbyteorder("<"))
    record = {"dtype": values.dtype.str, "data": base64.b64encode(zlib.compress(values.tobytes(), 6)).decode("ascii")}
    return record if words is None else {**record, "words": words}


def _unpacked(record: Mapping[str, Any]) -> np.ndarray:
    values = np.frombuffer(zlib.decompress(base64.b64decode(record["data"])), np.dtype(record["dtype"]))
    if "words" in record:
        return np.array(record["words"], dtype=object)[values]
    values = values.astype(values.dtype.newbyteorder("="))
    return values.astype(np.int64) if values.dtype.kind == "i" else values
