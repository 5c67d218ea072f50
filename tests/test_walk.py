"""How many files of the package one snapshot passes on its way to an answer."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek

PACKAGE = os.path.dirname(ek.__file__) + os.sep
LEFT_OUT = ("errors.py", "jit.py", "provenance.py")     # said, compiled and noted down everywhere; kernels, too
MOST = {"trajectory": 49, "flow": 31}
"""Files entered at the most. What a change adds here, the next reader has to follow."""


def files_entered(answer: Callable[[], Any]) -> list[str]:
    """Files of the package of which a function is called, in the order of the first call."""
    seen: dict[str, None] = {}

    def look(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE) and frame.f_code.co_name != "<module>":
            name = name[len(PACKAGE):].replace(os.sep, "/")
            if "kernels" not in name and name not in LEFT_OUT:
                seen[name] = None

    answer()        # imports and compiles: what is entered for that is no part of the walk
    sys.setprofile(look)
    threading.setprofile(look)
    try:
        answer()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(seen)


def trajectory(folder: Path) -> Callable[[], Any]:
    """A radius of gyration from an XTC file."""
    mda = pytest.importorskip("MDAnalysis")
    from ensemblekit import md

    rng = np.random.default_rng(0)
    u = mda.Universe.empty(6, 1, atom_resindex=[0] * 6, trajectory=True)
    u.add_TopologyAttr("name", list("ABCDEF"))
    u.add_TopologyAttr("masses", [1.0] * 6)
    u.add_TopologyAttr("resname", ["X"])
    u.add_TopologyAttr("resid", [1])
    u.dimensions = [50, 50, 50, 90, 90, 90]
    u.atoms.write(folder / "a.gro")
    with mda.Writer(str(folder / "a.xtc"), 6) as writer:
        for k in range(200):
            u.atoms.positions = rng.normal(20, 1, (6, 3))
            u.dimensions = [50, 50, 50, 90, 90, 90]
            u.trajectory.ts.time = k
            writer.write(u.atoms)
    return lambda: md.average(md.read(folder / "a.gro", folder / "a.xtc", whole=True),
                              {"rg": md.RadiusOfGyration("all")}, engine=ek.Serial())


def flow(folder: Path) -> Callable[[], Any]:
    """Three modes of an array in a file."""
    from ensemblekit import rom

    rng = np.random.default_rng(0)
    np.save(folder / "a.npy", rng.normal(size=(60, 4)) @ rng.normal(size=(4, 500)))
    return lambda: rom.pod(rom.read(folder / "a.npy"), 3, engine=ek.Serial())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [trajectory, flow])
def test_files_on_the_way(make: Callable[[Path], Callable[[], Any]], tmp_path: Path) -> None:
    entered = files_entered(make(tmp_path))
    assert len(entered) <= MOST[make.__name__], entered
