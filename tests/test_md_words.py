"""What is said where a call cannot be answered, and what sources print."""

from __future__ import annotations

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.errors import InputError

mda = pytest.importorskip("MDAnalysis")
data = pytest.importorskip("MDAnalysisTests.datafiles")


@pytest.mark.parametrize("file", ["XTC", "DCD", "TRR"])
def test_a_trajectory_without_its_topology_is_named(file):
    with pytest.raises(InputError, match="is a trajectory, which does not say of which atoms: name its topology before it"):
        md.read(getattr(data, file))


def test_the_selection_comes_first():
    assert md.DielectricConstant("resname SOL", temperature=300).select == "resname SOL"
    with pytest.raises(InputError, match="the selection first, then temperature="):
        md.average(md.read(data.PSF, data.DCD), {"e": md.DielectricConstant(300)})


def test_sources_print_one_line():
    for source in (md.read(data.PSF, data.DCD), md.read(mda.Universe(data.PSF, data.DCD, in_memory=True))):
        assert str(source) == repr(source) == "<98 frames of 3341 atoms: position>"
    assert "weighted" in repr(md.read(data.PSF, data.DCD).reweighted(np.ones(98)))


def test_distances_of_atoms_as_they_lie_need_no_bonds():
    u = mda.Universe.empty(2, trajectory=True)
    x = np.tile(np.array([[0, 0, 0], [9, 0, 0]], np.float32), (8, 1, 1))
    u.load_new(x, dimensions=np.tile([10, 10, 10, 90, 90, 90], (8, 1)))
    found = md.average(u, {"far": md.Distance("index 0", "index 1", periodic=False), "near": md.Distance("index 0", "index 1")})
    assert (found["far"].mean, found["near"].mean) == pytest.approx((9.0, 1.0))
    with pytest.raises(InputError, match="whole=True"):
        md.average(u, {"ends": md.EndToEnd("all")})
