"""Trajectories in stores: their topology, provenance and universe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.topology import Topology, mdanalysis
from ensemblekit.source import DescribedSource, ReplicaSet
from ensemblekit.store.opening import open_store
from ensemblekit.store.store import Store
from ensemblekit.store.stored import StoredSource


def universe(store: object) -> Any:
    """An MDAnalysis Universe of a store's frames with its topology: every selection gives the original's atoms.

    Arguments:
        store: a store made by :func:`ingest`, or its path. Weights, replicas and further fields stay behind.
    """
    source = opened(store)
    if isinstance(source, ReplicaSet):
        raise InputError(f"a Universe holds one run, and this is {len(source.runs)}: name one of the files")
    if not isinstance(source, Store):
        raise InputError(f"md.universe opens a store made by md.ingest; got {type(source).__name__}")
    universe = stored_topology(source).universe()
    files = source.segments
    with mdanalysis():
        universe.load_new(files[0] if len(files) == 1 else files)
    return universe


def universe_and_rows(source: Any, topology: Topology) -> tuple[Any, np.ndarray]:
    """A Universe of a stored run, and the numbers of its frames that the source (a window of the run) chooses."""
    from ensemblekit.md.conformer_source import ConformerSource
    from ensemblekit.md.weighted import PickedSource, WeightedSource

    if isinstance(source, WeightedSource):
        return universe_and_rows(source.source, topology)
    if isinstance(source, PickedSource):
        universe, rows = universe_and_rows(source.source, topology)
        return universe, rows[source.rows]
    universe = topology.universe()
    if isinstance(source, ConformerSource):
        with mdanalysis():
            universe.load_new(np.asarray(source.position, np.float32))      # as a Universe holds them
        return universe, np.arange(len(source.position))
    window = source if isinstance(source, StoredSource) else source.window()
    files = [part.path for part in window.table.parts]
    with mdanalysis():
        universe.load_new(files[0] if len(files) == 1 else files)
    return universe, np.arange(window.start, window.stop, window.step)


def opened(x: object) -> Any:
    """The store or replicas behind a path, a pattern, a list, or what is open already."""
    if not isinstance(x, str | os.PathLike | Sequence):
        return x
    paths = [x] if isinstance(x, str | os.PathLike) else list(x)
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"a source is the path of a store, a Universe, an AtomGroup or what md.read gave; got {x!r}")
        suffix = os.path.splitext(os.fspath(path))[1].lower()
        if suffix in (".xtc", ".trr", ".dcd", ".nc", ".ncdf", ".pdb", ".gro", ".tpr", ".psf"):
            raise InputError(f"{os.path.basename(os.fspath(path))} is no store: read it with its topology, "
                             "md.read(topology, trajectory), or copy it into one with md.ingest")
    return open_store(x)


def stored_topology(source: DescribedSource) -> Topology:
    """The topology that a store was made with."""
    columns = source.provenance.get("topology")
    if columns is None:
        raise InputError("this store has no topology; make it with md.ingest(topology, trajectory, path), or read the file "
                         "with its topology: md.read(topology, file)")
    return Topology.kept(columns)
