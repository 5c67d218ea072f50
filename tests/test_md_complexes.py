"""Complexes whose chains lie in different images of the box: put together where they touch, doubted where that cannot be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.md.complexes import ImageJumps

mda = pytest.importorskip("MDAnalysis")
from MDAnalysis.lib.mdamath import triclinic_vectors  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

N = 64
CHAIN = 12
CUBE, SKEW = [60, 60, 60, 90, 90, 90], [60, 60, 60, 70, 80, 65]


def complex_of(chains=2, apart=5.0, seed=1):
    """Positions (N, atoms, 3) of chains side by side that wiggle, tumble and wander as one: longer than half the box."""
    rng = np.random.default_rng(seed)
    chain = np.column_stack([np.arange(CHAIN) * 3.5, np.zeros(CHAIN), np.zeros(CHAIN)])
    body = np.concatenate([chain + np.array([0, k * apart, 0]) for k in range(chains)])
    body -= body.mean(0)
    turns = Rotation.random(N, random_state=2)
    walk = np.cumsum(rng.normal(0, 4, (N, 1, 3)), axis=0)
    return np.array([turn.apply(body + rng.normal(0, 0.4, body.shape)) for turn in turns]) + walk


def universe(x, chains=2, cell=CUBE, bonds=True):
    atoms = x.shape[1]
    each = atoms // chains
    u = mda.Universe.empty(atoms, n_residues=atoms // 2, n_segments=chains, atom_resindex=np.arange(atoms) // 2,
                           residue_segindex=np.arange(atoms // 2) // (each // 2), trajectory=True)
    u.add_TopologyAttr("names", ["CA"] * atoms)
    u.add_TopologyAttr("masses", np.full(atoms, 12.0))
    u.add_TopologyAttr("resids", np.tile(np.arange(each // 2), chains))
    u.add_TopologyAttr("segids", [str(k) for k in range(chains)])
    if bonds:
        u.add_TopologyAttr("bonds", [(a, a + 1) for a in range(atoms - 1) if (a + 1) % each])
    return u.load_new(x.astype(np.float32), dimensions=np.tile(cell, (len(x), 1)), dt=1.0)


def scattered(x, chains, cell, seed=3):
    """Each chain whole, in an image of its own (gmx trjconv -pbc mol)."""
    shifts = np.random.default_rng(seed).integers(-1, 2, (len(x), chains, 3)) @ triclinic_vectors(cell)
    return x + np.repeat(shifts, x.shape[1] // chains, axis=1)


def wrapped(x, cell):
    """Every atom in the box."""
    h = triclinic_vectors(cell).astype(float)
    return x - np.floor(x @ np.linalg.inv(h)) @ h


WANTED = {"rmsd": md.RMSD("all"), "rg": md.RadiusOfGyration("all"), "rmsf": md.RMSF("all"),
          "pca": md.PCA("all", n_components=2), "ends": md.EndToEnd("all"), "tensor": md.GyrationTensor("all"),
          "center": md.Distance("all", "index 0 2 4", periodic=False)}


@pytest.mark.parametrize(("chains", "cell"), [(2, CUBE), (3, SKEW)])
@pytest.mark.parametrize("how", [scattered, "atoms"])
def test_chains_in_different_images_are_put_together_and_it_is_told(chains, cell, how):
    truth = complex_of(chains)
    moved = scattered(truth, chains, cell) if how is scattered else wrapped(truth, cell)
    want = md.average(universe(truth, chains, cell), WANTED, whole=True, equilibration=None, quiet=True)
    averages = md.average(universe(moved, chains, cell), WANTED, equilibration=None, quiet=True)
    for name in want:
        np.testing.assert_allclose(np.abs(averages[name].mean), np.abs(want[name].mean), atol=2e-3, err_msg=name)
        assert "box vector" not in averages[name].verdict
    assert averages["rg"].verdict == want["rg"].verdict
    assert any(note.startswith("rg: ") and f"its {chains} molecules lay in different images in" in note
               for note in averages.notes)
    unmoved = md.average(universe(truth, chains, cell), {"rg": WANTED["rg"]}, equilibration=None)
    assert not unmoved.notes           # it did not matter
    assert unmoved["rg"].mean == pytest.approx(want["rg"].mean, abs=1e-4)


def test_stores_replicas_and_engines_agree(tmp_path):
    truth = complex_of()
    u = universe(scattered(truth, 2, CUBE))
    store = md.ingest(u, None, tmp_path / "run.h5md")
    want = md.average(universe(truth), {"rg": WANTED["rg"]}, whole=True, equilibration=None)["rg"]
    one = md.average(store, {"rg": WANTED["rg"]}, equilibration=None, engine=ek.Serial())
    assert one["rg"].mean == pytest.approx(want.mean, abs=1e-4)
    assert md.average(store, {"rg": WANTED["rg"]}, equilibration=None, engine=ek.Threads(3))["rg"].mean == one["rg"].mean
    runs = ek.ReplicaSet((md.read(u, stop=N // 2), md.read(u, start=N // 2)))
    halves = md.average(runs, {"rg": WANTED["rg"]}, equilibration=None)
    assert [note.partition(":")[0] for note in halves.notes] == ["rg (run 0)", "rg (run 1)"]
    assert halves["rg"].mean == pytest.approx(want.mean, abs=1e-4)
    matrix, _ = md.sampled_rmsd(store, "all", n=8)
    plain, _ = md.sampled_rmsd(universe(truth), "all", n=8, whole=True)
    np.testing.assert_allclose(matrix, plain, atol=2e-3)


@pytest.mark.parametrize("bonds", [True, False])
def test_whole_true_stays_and_jumps_are_doubted(bonds):
    u = universe(scattered(complex_of(), 2, CUBE), bonds=bonds)
    averages = md.average(u, WANTED, whole=True, equilibration=None, quiet=True)
    for name in ("rmsd", "rg", "rmsf", "pca", "ends", "center"):
        assert not averages[name].converged, name
        assert "move apart by about a box vector at frame" in averages[name].verdict, name
    assert averages["rg"].mean > 15
    steady = md.average(universe(complex_of(), bonds=bonds), WANTED, whole=True, equilibration=None, quiet=True)
    assert "box vector" not in str(steady)


def test_chains_that_do_not_touch_stay_where_they_are_and_are_doubted_where_they_jump():
    truth = complex_of(apart=20.0)
    kept = md.average(universe(truth), {"rg": WANTED["rg"]}, equilibration=None)
    assert kept["rg"].mean == pytest.approx(md.average(universe(truth), {"rg": WANTED["rg"]}, whole=True)["rg"].mean, abs=1e-4)
    assert not kept.notes
    jumping = md.average(universe(scattered(truth, 2, CUBE)), {"rg": WANTED["rg"]}, equilibration=None)["rg"]
    assert "put them together with transformations=" in jumping.verdict
    assert not jumping.converged


def test_chains_that_leave_each_other_are_doubted():
    x = complex_of()
    away = np.linspace(0, 40, N)[:, None]
    x[:, CHAIN:] += away[:, None] * np.array([0.0, 0.0, 1.0])
    estimate = md.average(universe(wrapped(x, CUBE)), {"rg": WANTED["rg"]}, equilibration=None)["rg"]
    assert not estimate.converged
    assert "half the box" in estimate.verdict or "box vector" in estimate.verdict


def test_one_chain_of_many_or_lone_atoms_are_no_complex():
    x = complex_of(24, apart=4.0)[:8]
    averages = md.average(universe(scattered(x, 24, CUBE), 24), {"rg": WANTED["rg"]}, equilibration=None)
    assert "box vector" not in str(averages)      # more than twenty: as they are
    assert not averages.notes
    alone = md.average(universe(scattered(x, 24, CUBE), 24), {"rg": md.RadiusOfGyration("segid 3")}, equilibration=None)
    assert alone["rg"].mean == pytest.approx(3.5 * np.sqrt((CHAIN**2 - 1) / 12), rel=0.02)


def test_jumps_are_the_same_for_every_cut():
    rng = np.random.default_rng(5)
    rows = np.column_stack([rng.uniform(size=40) < 0.3, rng.uniform(size=40), rng.normal(0, 0.02, (40, 8))])
    rows[8:, 2] += 1.0          # and stays as far away: it turned round
    rows[17:, [3, 5]] += [1.0, 0.8]
    rows[30:, [7, 9]] += [-1.03, 0.9]
    whole = ImageJumps()
    whole.update(rows, 0)
    assert whole.result().jump == 17
    for edges in ([0, 17, 40], [0, 1, 18, 40], [0, 0, 16, 17, 40, 40], range(0, 41, 5)):
        total = ImageJumps()
        for a, b in itertools.pairwise(edges):
            part = total.empty()
            part.update(rows[a:b], a)
            total.merge(part.restored(part.state()))
        assert total.result() == whole.result()
    quiet = ImageJumps()
    quiet.update(rows[:17], 0)
    assert quiet.result().jump is None


def test_selections_that_vary_are_not_put_together_and_say_so():
    truth = complex_of()
    u = universe(scattered(truth, 2, CUBE))
    varying = md.RadiusOfGyration("all", updating=True)
    averages = md.average(u, {"fixed": WANTED["rg"], "varying": varying}, equilibration=None)
    assert averages["varying"].mean > averages["fixed"].mean + 1
    assert any(note.startswith("varying: ") and "not brought into one image" in note for note in averages.notes)
    alone = md.average(u, {"one": md.RadiusOfGyration("index 0:5", updating=True)}, equilibration=None)
    assert not any("one image" in note for note in alone.notes)
