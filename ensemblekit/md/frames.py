"""What an average is asked of: anything that has frames and a topology."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ensemblekit.errors import InputError
from ensemblekit.md.distinct import check_distinct
from ensemblekit.md.opening import read
from ensemblekit.md.topology import Topology
from ensemblekit.md.trajectory import FrameSource
from ensemblekit.md.weighted import PickedSource, WeightedSource
from ensemblekit.source import ReplicaSet, SnapshotSource, StackedSource, described
from ensemblekit.source_protocol import SourceView
from ensemblekit.store.store import Store
from ensemblekit.store.stored import StoredSource


class HoldsFrames(ABC):
    """What holds frames and knows their atoms: an ensemble of conformers."""

    @property
    @abstractmethod
    def frames(self) -> Any:
        """The source of its frames."""


def as_frames(x: object) -> Any:
    """A source of positions from whatever holds a trajectory."""
    if isinstance(x, HoldsFrames):
        return x.frames
    if isinstance(x, str | os.PathLike | Sequence):
        from ensemblekit.md.stored import opened

        x = opened(x)
    if isinstance(x, ReplicaSet):
        check_distinct(x.runs)
        return x
    if isinstance(x, FrameSource | StackedSource | StoredSource | PickedSource | WeightedSource | Store):
        return x
    if isinstance(x, SnapshotSource) and described(x).provenance:
        return described(x)
    return read(x)


def topology_of(source: Any) -> Topology:
    """The topology that came with a source of frames."""
    from ensemblekit.md.stored import stored_topology

    if isinstance(source, FrameSource):
        return source.topology
    if isinstance(source, ReplicaSet):
        first = topology_of(source.runs[0])
        for k, run in enumerate(source.runs[1:], 1):
            other = topology_of(run)
            if len(other) != len(first) or (other.names != first.names).any():
                raise InputError(f"replica {k} has other atoms than replica 0: replicas are runs of one system")
        return first
    if isinstance(source, StackedSource):
        return topology_of(source.runs[0])
    if isinstance(source, SourceView):
        return topology_of(source.source)
    return stored_topology(source)
