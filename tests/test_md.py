import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.series import Series
from ensemblekit.errors import InputError
from ensemblekit.md.superpose import superposed
from ensemblekit.md.topology import Topology, mdanalysis

pytest.importorskip("MDAnalysis")
datafiles = pytest.importorskip("MDAnalysisTests.datafiles")


def rotation(rng):
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


def test_superposition_undoes_a_rigid_motion_and_never_mirrors():
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(12, 3))
    frames = np.stack([reference @ rotation(rng) + rng.normal(size=3) for _ in range(5)])
    np.testing.assert_allclose(superposed(frames, reference), np.broadcast_to(reference, frames.shape), atol=1e-12)
    mirrored = reference * [1, 1, -1]
    assert np.abs(superposed(mirrored[None], reference)[0] - reference).max() > 0.1


def test_superposition_takes_other_atoms_along():
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(9, 3))
    moved = (reference @ rotation(rng) + 3)[None]
    np.testing.assert_allclose(superposed(moved, reference[:5])[0], reference, atol=1e-12)


@pytest.fixture(scope="module")
def adk():
    from ensemblekit import md

    return md.read(datafiles.PSF, datafiles.DCD)


def test_read_is_the_file(adk):
    assert adk.fields["position"].shape == (3341, 3)
    assert adk.lengths == (98,)
    frames = ek.reduce(adk.window(10, 40, 10), Series())
    with mdanalysis() as mda:
        u = mda.Universe(datafiles.PSF, datafiles.DCD)
        for k, frame in enumerate((10, 20, 30)):
            np.testing.assert_array_equal(frames[k], u.trajectory[frame].positions)


def test_gyration_and_fluctuation_of_adenylate_kinase(adk):
    """research oracles: MDAnalysis' radius_of_gyration and AverageStructure + AlignTraj + RMSF."""
    from ensemblekit import md
    from ensemblekit.md.system import System

    system = System(adk, adk.topology)
    gyration = md.RadiusOfGyration("protein").prepare(system)
    found = ek.reduce(adk, {"rg": (gyration.map, ek.Moments(), Series())})["rg"]
    np.testing.assert_allclose(found[0].mean, 18.2654955170, rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(found[0].variance), 1.0203954716, rtol=1e-6)
    np.testing.assert_allclose(found[1][[0, -1]], [16.6690183686, 19.5915751288], rtol=1e-6)


def test_topology_survives_json(adk):
    import json

    again = Topology.from_dict(json.loads(json.dumps(adk.topology.to_dict())))
    for text in ("protein", "name CA and resid 20:40", "resname LYS", "not backbone"):
        np.testing.assert_array_equal(again.select(text), adk.topology.select(text))
    np.testing.assert_array_equal(again.masses, adk.topology.masses)


@pytest.mark.parametrize("text", ["name XYZ", "no such language"])
def test_selections_that_give_nothing(adk, text):
    with pytest.raises(InputError, match="selection"):
        adk.topology.select(text)


def test_the_name_must_be_h5md(tmp_path):
    from ensemblekit import md

    with pytest.raises(InputError, match="h5md"):
        md.ingest(datafiles.PSF, datafiles.DCD, tmp_path / "adk.h5")


def test_ingest_opens_in_mdanalysis_and_averages_alike(adk, tmp_path):
    from ensemblekit import md

    path = tmp_path / "adk.h5md"
    store = md.ingest(datafiles.PSF, datafiles.DCD, path)
    with mdanalysis() as mda:
        ours, theirs = mda.Universe(datafiles.PSF, str(path)), mda.Universe(datafiles.PSF, datafiles.DCD)
        assert len(ours.trajectory) == len(theirs.trajectory) == 98
        for a, b in zip(ours.trajectory, theirs.trajectory, strict=True):
            assert (a.positions == b.positions).all()
            assert a.time == pytest.approx(b.time, rel=1e-12)
    again = md.universe(store)
    for text in ("protein and name CA", "resid 10:20"):
        np.testing.assert_array_equal(again.select_atoms(text).indices, theirs.select_atoms(text).indices)
    ours.trajectory.close()
    again.trajectory.close()

    observables = {"rg": md.RadiusOfGyration("protein"), "rmsf": md.RMSF("name CA")}
    stored, direct = md.average(path, observables), md.average(adk, observables)
    assert stored["rg"].mean == direct["rg"].mean == pytest.approx(18.2654955170, rel=1e-6)
    np.testing.assert_array_equal(stored["rmsf"].mean, direct["rmsf"].mean)
    rg, rmsf = stored["rg"], stored["rmsf"]
    assert not rg.converged
    assert rg.n_eff < 4
    assert (rg.series.shape, rg.times.shape, rg.unit) == ((98,), (98,), "Angstrom")
    assert rmsf.unit == "Angstrom"
    assert rmsf.mean[148] == pytest.approx(5.76921438, rel=1e-6)
    np.testing.assert_array_equal(rmsf.coords["residue"][0], np.arange(1, 215))
    assert (rmsf.interval[0] <= rmsf.mean).all()
    assert (rmsf.mean <= rmsf.interval[1]).all()


def test_part_of_the_atoms_goes_in_alone(tmp_path):
    from ensemblekit import md

    store = md.ingest(datafiles.PSF, datafiles.DCD, tmp_path / "ca.h5md", select="name CA")
    assert store["position"].shape == (98, 214, 3)
    whole = md.average(md.read(datafiles.PSF, datafiles.DCD), {"rmsf": md.RMSF("name CA")})["rmsf"]
    np.testing.assert_allclose(md.average(store, {"rmsf": md.RMSF("all")})["rmsf"].mean, whole.mean, rtol=1e-10)
