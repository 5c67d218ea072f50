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
    both = md.average(u, {"far": md.Distance("index 0", "index 1", periodic=False), "near": md.Distance("index 0", "index 1")})
    assert (both["far"].mean, both["near"].mean) == pytest.approx((9.0, 1.0))
    with pytest.raises(InputError, match="whole=True"):
        md.average(u, {"ends": md.EndToEnd("all")})


def test_groups_as_they_lie_need_no_bonds_either():
    """periodic=False without bonds: every atom where it is, and it is told."""
    u = mda.Universe.empty(12, n_residues=4, atom_resindex=np.repeat(np.arange(4), 3), trajectory=True)
    for name, values in (("names", ["CA", "CB", "C"] * 4), ("resids", np.arange(4) + 1), ("masses", np.ones(12)),
                         ("resnames", ["ALA"] * 4)):
        u.add_TopologyAttr(name, values)
    x = np.random.default_rng(1).uniform(0, 20, (10, 12, 3)).astype(np.float32)
    box = np.tile([20.0, 20, 20, 90, 90, 90], (10, 1))
    alike = {"groups": md.Distance("index 0:2", "index 3:5", periodic=False), "contacts": md.Contacts("all", periodic=False),
             "map": md.ContactMap("all", radius=8, periodic=False),
             "residues": md.DistanceMap("all", level="residue", periodic=False),
             "native": md.NativeContacts("all", radius=9, separation=0, periodic=False),
             "varying": md.Distance("index 0:2 and prop x < 30", "index 3:5", periodic=False, updating=True),
             "touching": md.Contacts("index 0:5", "index 6:9", radius=8, periodic=False, updating=True)}
    averages = md.average(u.load_new(x, dimensions=box), alike, equilibration=None)
    free = md.average(u.load_new(x, dimensions=None), alike, equilibration=None)
    for name in alike:
        np.testing.assert_allclose(averages[name].mean, free[name].mean, rtol=1e-6, err_msg=name)
    for name in ("groups", "contacts", "map", "residues", "varying", "touching"):
        assert any(note.startswith(f"{name}: taken as the atoms lie") for note in averages.notes), name
    assert not free.notes
    u.load_new(x, dimensions=box)
    for refused in (md.Distance("index 0:2", "index 3:5"), md.RadiusOfGyration("all")):
        with pytest.raises(InputError, match="whole=True"):
            md.average(u, {"x": refused})
