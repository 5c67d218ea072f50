"""Frames against frames: root-mean-square deviations of a sample of a trajectory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemblekit.md.topology import Topology, warnings_held
from ensemblekit.source import Block, ReplicaSet


def sampled_rmsd(source: Any, select: str, *, n: int = 200, whole: bool | None = None,
                 **window: Any) -> tuple[np.ndarray, list[int]]:
    """RMSD after superposition of about `n` frames with each other, replica after replica, and where each replica begins.

    Frames are spread evenly over the runs; `window` as for ``md.average``. Returns ((m, m) angstrom, (replicas + 1,)).
    """
    from ensemblekit.md.frame_selection import FrameSelection
    from ensemblekit.md.frames import as_frames, topology_of
    from ensemblekit.md.superpose import rmsd_matrix
    from ensemblekit.md.system import molecules_whole

    given = as_frames(source)
    topology = topology_of(given)
    chosen = FrameSelection(**window).of(given)
    runs: tuple[Any, ...] = chosen.runs if isinstance(chosen, ReplicaSet) else (chosen,)
    each = max(2, n // len(runs))
    parts, edges = [], [0]
    for run in runs:
        thin = run.window(step=max(1, run.lengths[0] // each))
        parts.append(selected_positions(thin, topology, select, whole=molecules_whole(given) if whole is None else whole))
        edges.append(edges[-1] + len(parts[-1]))
    return rmsd_matrix(np.concatenate(parts)), edges


def selected_positions(source: Any, topology: Topology, select: str, *, whole: bool | None = None) -> np.ndarray:
    """The atoms of a selection in all frames of one run, (n, atoms, 3) angstrom, their molecules whole."""
    from ensemblekit.averaging.run import reduce
    from ensemblekit.averaging.series import Series
    from ensemblekit.md.system import System

    with System(source, topology, whole=whole) as system:
        gather = system.assembled(system.select(select))

        def taken(block: Block) -> np.ndarray:
            positions, index = gather(block)
            return np.array(positions[:, index])

        names = [name for name in ("position", "box") if name in source.fields]
        with warnings_held():
            return np.asarray(reduce(source, {"x": (taken, Series())}, fields=names)["x"])
