"""Structure files of a trajectory: topology with one frame, fluctuations as B-factors."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.files import replacing
from ensemblekit.intake import as_array
from ensemblekit.md.stored import universe
from ensemblekit.md.topology import warnings_held


def write_topology(store: object, path: str | os.PathLike[str], *, frame: int = 0, bfactors: np.ndarray | None = None) -> None:
    """The atoms of a store with the positions of one frame, in any format MDAnalysis writes (by the suffix).

    Arguments:
        bfactors: (atoms,) for the B-factor column of a .pdb.

    Raises InputError for a frame that is not there, or a format that cannot be written.
    """
    u = universe(store)
    try:
        n = len(u.trajectory)
        if not -n <= frame < n:
            raise InputError(f"frame {frame} of {n}")
        u.trajectory[frame]
        with warnings_held(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)        # fields a format has and these atoms have not
            if bfactors is not None:
                u.add_TopologyAttr("tempfactors", as_array(bfactors, "bfactors", dtype=float))
            try:
                with replacing(path, suffix=_format(path), follow=True) as temporary:
                    u.atoms.write(temporary)
            except (TypeError, ValueError, NotImplementedError) as error:
                raise InputError(f"{os.path.basename(os.fspath(path))} cannot be written: {error}") from error
    finally:
        u.trajectory.close()


def write_bfactors(source: Any, rmsf: Any, select: str, path: str | os.PathLike[str]) -> None:
    """A .pdb of the selected atoms in the first frame with B = 8 pi^2 / 3 RMSF^2 (angstrom^2) in the B-factor column.

    Arguments:
        rmsf: the Estimate of ``md.RMSF(select)``, one value an atom.
    """
    from ensemblekit.md.frames import as_frames, topology_of
    from ensemblekit.md.functions import dimensions
    from ensemblekit.md.system import System

    frames = as_frames(source)
    system = System(frames, topology_of(frames))
    atoms = system.select(select)
    values = np.asarray(rmsf.mean)
    if values.shape != (len(atoms),):
        raise InputError(f"B-factors are one an atom: {select!r} has {len(atoms)} atoms, the RMSF shape {values.shape}")
    first = system.first_frame()
    u = system.topology.universe()
    with warnings_held(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        u.load_new(first.position[None], dimensions=None if first.box is None else dimensions(first.box[None])[0])
        b = np.zeros(len(u.atoms))
        b[atoms] = 8 * np.pi**2 / 3 * values**2
        u.add_TopologyAttr("tempfactors", np.clip(b, 0, 999.99))
        with replacing(path, suffix=_format(path), follow=True) as temporary:
            u.atoms[atoms].write(temporary)


def _format(path: str | os.PathLike[str]) -> str:
    """The end of a file's name, by which MDAnalysis knows its format: ".pdb", ".gro", ".pdb.gz"."""
    name = Path(path)
    return "".join(name.suffixes[-2:]) if name.suffix in (".gz", ".bz2") else name.suffix
