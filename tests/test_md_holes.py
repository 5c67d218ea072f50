"""Frames that hold no numbers: every observable names the frame, its time and the atom, and spoils no other."""

from __future__ import annotations

import re

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.errors import EnsemblekitError

mda = pytest.importorskip("MDAnalysis")
WATERS, N = 8, 40
WHERE = r"frame 17 \(34 ps\): atom 5 has coordinates"


def water(hole=True):
    rng = np.random.default_rng(0)
    u = mda.Universe.empty(3 * WATERS, n_residues=WATERS, atom_resindex=np.repeat(np.arange(WATERS), 3), trajectory=True)
    for name, values in (("names", ["CA", "HW1", "HW2"] * WATERS), ("resnames", ["SOL"] * WATERS),
                         ("elements", ["O", "H", "H"] * WATERS), ("resids", np.arange(WATERS) + 1),
                         ("charges", [-0.8, 0.4, 0.4] * WATERS), ("masses", [16.0, 1, 1] * WATERS)):
        u.add_TopologyAttr(name, values)
    u.add_TopologyAttr("bonds", [(3 * k, 3 * k + j) for k in range(WATERS) for j in (1, 2)])
    shape = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    x = (rng.uniform(0, 20, (1, WATERS, 1, 3)) + shape + rng.normal(0, 0.1, (N, WATERS, 3, 3))).reshape(N, -1, 3)
    if hole:
        x[17, 5, 1] = np.nan
    return u.load_new(x.astype(np.float32), dimensions=np.tile([20.0, 20, 20, 90, 90, 90], (N, 1)), dt=2.0)


@pytest.fixture(scope="module")
def u():
    return water()


@pytest.mark.parametrize("observable", [
    md.RadiusOfGyration("all"), md.GyrationTensor("all"), md.RMSD("all"), md.RMSF("all"), md.RMSF("all", fit=False),
    md.PCA("all", n_components=2), md.Distance("index 5", "index 0"), md.Distances("index 4 5", "index 0 1"),
    md.DistanceMap("all"), md.EndToEnd("index 0:5"), md.Angle("index 3", "index 4", "index 5"),
    md.Dihedral("index 3", "index 4", "index 5", "index 6"),
    md.Contacts("all"), md.ContactMap("all"), md.NativeContacts("all", radius=9.0, separation=0), md.HydrogenBonds(),
    md.SASA("all"), md.RDF("all", "all", range=(0, 6)), md.DensityProfile("all"), md.MSD("all"), md.Dipole("all"),
    md.DielectricConstant(temperature=300), lambda atoms: atoms.positions.mean(), lambda atoms: atoms.positions.mean(axis=0)],
    ids=lambda x: type(x).__name__)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_frame_and_the_atom_are_named(u, observable):
    try:
        estimate = md.average(u, {"x": observable}, quiet=True)["x"]
    except EnsemblekitError as error:
        said = str(error)
    else:
        said = estimate.verdict
        assert not estimate.converged
        assert not np.isfinite(estimate.mean).all()
    assert re.search(WHERE, said), said


def test_others_of_the_same_call_are_as_they_were(u):
    near = md.Distance("index 0", "index 1")
    averages = md.average(u, {"bad": md.Distance("index 5", "index 0"), "good": near}, quiet=True)
    assert averages["good"].verdict == md.average(water(False), {"good": near}, quiet=True)["good"].verdict
    assert "17" in averages["bad"].verdict
    angle = md.average(u, {"a": md.Dihedral("index 3", "index 4", "index 5", "index 6")}, quiet=True)["a"]
    assert "1 of 40 snapshots are not finite (first: 17)" in angle.verdict


def test_runs_and_what_a_function_makes_are_named():
    frames = md.read(water(False))
    first = float(md.average(frames, {"x": lambda atoms: atoms.positions[0, 0]}, equilibration=None)["x"].series[3])

    def odd(atoms):
        x = float(atoms.positions[0, 0])
        return np.nan if abs(x - first) < 1e-6 else x

    assert "frame 3 (6 ps): its coordinates are numbers" in md.average(frames, {"f": odd}, quiet=True)["f"].verdict
    runs = ek.ReplicaSet.of([frames, md.read(water())])
    averages = md.average(runs, {"rg": md.RadiusOfGyration("all"), "map": md.DistanceMap("all")}, quiet=True)
    for name in averages:
        assert not averages[name].converged
        assert re.search("run 1: .*" + WHERE, averages[name].verdict), averages[name].verdict
    with pytest.raises(EnsemblekitError, match="run 1, " + WHERE):
        md.average(runs, {"rmsf": md.RMSF("all")}, quiet=True)
