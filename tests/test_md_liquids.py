"""Liquids: g(r), density profiles, displacements, dipoles, the dielectric constant, against peers and known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import InputError
from ensemblekit.md.displacement import (
    brownian_covariance,
    brownian_error,
    finite_size_correction,
    slope_of,
    squared_displacements,
    wigner_constant,
)

mda = pytest.importorskip("MDAnalysis")
datafiles = pytest.importorskip("MDAnalysisTests.datafiles")
pytestmark = pytest.mark.filterwarnings("ignore")


def universe(positions, box=None, *, residues=None, names="A", masses=1.0, charges=None, bonds=None, dt=1.0):
    """Frames in memory: positions (n, atoms, 3), box (6,) or (n, 6)."""
    n = positions.shape[1]
    residues = np.arange(n) if residues is None else np.asarray(residues)
    u = mda.Universe.empty(n, n_residues=int(residues.max()) + 1, atom_resindex=residues, trajectory=True)
    u.add_TopologyAttr("names", [names] * n if isinstance(names, str) else list(names))
    u.add_TopologyAttr("resids", np.arange(int(residues.max()) + 1) + 1)
    u.add_TopologyAttr("resnames", ["X"] * (int(residues.max()) + 1))
    u.add_TopologyAttr("masses", np.broadcast_to(masses, n).copy())
    if charges is not None:
        u.add_TopologyAttr("charges", np.asarray(charges, float))
    if bonds is not None:
        u.add_TopologyAttr("bonds", [tuple(b) for b in bonds])
    u.load_new(np.asarray(positions, np.float32), dimensions=box, dt=dt)
    return u


def average(source, observable, **how):
    from ensemblekit import md

    return md.average(source, {"it": observable}, quiet=True, **how)["it"]


@pytest.fixture(scope="module")
def tip125():
    from ensemblekit import md

    return md.read(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)


# --- g(r) -----------------------------------------------------------------------------------------------------------------

def assert_same_rdf(ours, theirs, few=3):
    """Bin for bin; boxes are float32 with us, so a few pairs may fall on the other side of an edge."""
    off = ~np.isclose(ours, theirs, rtol=1e-6, atol=1e-9)
    assert off.sum() <= few
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_rdf_is_that_of_mdanalysis(tip125):
    """Very skew box (gamma 44 degrees), to half its shortest height: bin for bin."""
    from MDAnalysis.analysis.rdf import InterRDF

    from ensemblekit import md

    u = mda.Universe(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)
    oxygen, hydrogen = u.select_atoms("name OH2"), u.select_atoms("name H1 H2")
    estimate = average(tip125, md.RDF("name OH2", range=(0.0, 8.5), n_bins=85))
    theirs = InterRDF(oxygen, oxygen, nbins=85, range=(0, 8.5), exclusion_block=(1, 1)).run().results
    assert_same_rdf(estimate.mean, theirs.rdf)
    np.testing.assert_allclose(estimate.coords["r"][0], theirs.bins)
    crossed = average(tip125, md.RDF("name OH2", "name H1 H2", range=(0.0, 8.5), n_bins=85, exclude=(1, 2)))
    theirs = InterRDF(oxygen, hydrogen, nbins=85, range=(0, 8.5), exclusion_block=(1, 2)).run().results
    assert_same_rdf(crossed.mean, theirs.rdf)
    by_residue = average(tip125, md.RDF("name OH2", "name H1 H2", range=(0.0, 8.5), n_bins=85, exclude="residue"))
    by_molecule = average(tip125, md.RDF("name OH2", "name H1 H2", range=(0.0, 8.5), n_bins=85, exclude="molecule"))
    np.testing.assert_array_equal(by_residue.mean, crossed.mean)
    np.testing.assert_array_equal(by_molecule.mean, crossed.mean)


def test_rdf_is_that_of_mdtraj(tip125):
    """The box changes from frame to frame: <1/V>, not 1/<V>; and the nearest image beyond half the box."""
    mdtraj = pytest.importorskip("mdtraj")
    from ensemblekit import md

    u = mda.Universe(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)
    oxygen = u.select_atoms("name OH2")
    positions = np.array([oxygen.positions.copy() for _ in u.trajectory])
    boxes = np.array([ts.dimensions for ts in u.trajectory])
    top = mdtraj.Topology()
    chain = top.add_chain()
    for _ in oxygen:
        top.add_atom("O", mdtraj.element.oxygen, top.add_residue("HOH", chain))
    theirs = mdtraj.Trajectory(positions / 10, top, unitcell_lengths=boxes[:, :3] / 10, unitcell_angles=boxes[:, 3:])
    for high, images in ((8.5, "all"), (14.0, "nearest")):
        r, g = mdtraj.compute_rdf(theirs, top.select_pairs("all", "all"), r_range=(0, high / 10), n_bins=50)
        estimate = average(tip125, md.RDF("name OH2", range=(0.0, high), n_bins=50, density="<1/V>", images=images))
        # they measure in float32: pairs at an edge may fall on its other side
        np.testing.assert_allclose(estimate.mean, g, atol=0.02)
        np.testing.assert_allclose(estimate.mean[10:].mean(), g[10:].mean(), rtol=1e-3)
        np.testing.assert_allclose(estimate.coords["r"][0], r * 10, rtol=1e-5)
    volumes = np.array([ts.volume for ts in u.trajectory])
    other = average(tip125, md.RDF("name OH2", range=(0.0, 8.5), n_bins=50))
    whole = average(tip125, md.RDF("name OH2", range=(0.0, 8.5), n_bins=50, density="<1/V>"))
    ratio = volumes.mean() * (1 / volumes).mean()
    assert ratio > 1.005
    np.testing.assert_allclose(other.mean, whole.mean * ratio, rtol=1e-5)


def test_an_ideal_gas_has_g_of_one_beyond_half_the_box():
    """Skew and small box, 5 atoms: all images count, the atom itself does not; pairs N (N - 1)."""
    from ensemblekit import md

    rng = np.random.default_rng(3)
    cell = np.array([[9.0, 0, 0], [4.0, 8.0, 0], [-3.0, 3.5, 7.0]])
    x = rng.uniform(size=(4000, 5, 3)) @ cell
    u = universe(x, mda.lib.mdamath.triclinic_box(*cell))
    g = average(u, md.RDF("all", range=(1.0, 12.0), n_bins=11))
    assert np.abs((g.mean - 1) / g.stderr).max() < 4
    assert g.stderr.max() < 0.1
    assert g.converged
    shells = 4 / 3 * np.pi * g.coordination.coords["r"][0] ** 3
    np.testing.assert_allclose(g.coordination.mean, 4 / np.linalg.det(cell) * shells, rtol=0.02)
    nearest = average(u, md.RDF("all", range=(1.0, 12.0), n_bins=11, images="nearest"))
    np.testing.assert_allclose(nearest.mean[:2], g.mean[:2])
    assert nearest.mean[-1] < 0.1       # the box has ended


def test_exclusions_lower_the_number_of_pairs():
    """Dimers as an ideal gas: g is 1 with their bonds left out, and stays so however large a share they are."""
    from ensemblekit import md

    rng = np.random.default_rng(4)
    centre = rng.uniform(0, 10, (3000, 3, 1, 3))
    x = (centre + rng.normal(0, 0.3, (3000, 3, 2, 3))).reshape(3000, 6, 3)
    residues = np.repeat(np.arange(3), 2)
    u = universe(x, [10, 10, 10, 90, 90, 90], residues=residues, bonds=[(0, 1), (2, 3), (4, 5)])
    for exclude in ("residue", "molecule", (2, 2)):
        g = average(u, md.RDF("all", range=(0.0, 4.5), n_bins=3, exclude=exclude))
        assert np.abs((g.mean - 1) / g.stderr).max() < 4
        assert g.stderr[1:].max() < 0.05
    assert average(u, md.RDF("all", range=(0.0, 4.5), n_bins=3)).mean[0] > 3


def test_overlapping_groups_never_pair_an_atom_with_itself():
    from ensemblekit import md

    x = np.random.default_rng(5).uniform(0, 10, (20, 8, 3))
    u = universe(x, [10, 10, 10, 90, 90, 90])
    g = average(u, md.RDF("index 0:4", "index 3:7", range=(0.0, 4.9), n_bins=1))
    d = x[:, 3:8, None] - x[:, None, :5]
    d = np.linalg.norm(d - 10 * np.round(d / 10), axis=-1)
    counts = ((d < 4.9) & (d > 1e-3)).sum((1, 2)).mean()
    np.testing.assert_allclose(g.mean[0], counts / (25 - 2) * 1000 / (4 / 3 * np.pi * 4.9**3), rtol=1e-6)
    np.testing.assert_allclose(g.coordination.mean[0], counts / 5, rtol=1e-6)


def test_coordination_counts_what_is_nearer_than_the_range():
    from ensemblekit import md

    x = np.array(list(itertools.product(range(4), repeat=3)), float)[None].repeat(8, 0)
    u = universe(x + np.random.default_rng(0).normal(0, 1e-3, x.shape), [4, 4, 4, 90, 90, 90])
    estimate = average(u, md.RDF("all", range=(1.2, 1.6), n_bins=2)).coordination
    np.testing.assert_allclose(estimate.mean, [6, 18])


def test_norms_without_a_box():
    from ensemblekit import md

    x = np.random.default_rng(6).normal(0, 2, (50, 10, 3))
    u = universe(x)
    with pytest.raises(InputError, match=r"no box.*norm=.density."):
        average(u, md.RDF("all"))
    d = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
    edges = np.linspace(0.5, 6, 12)
    want = np.array([np.histogram(f[f > 0], edges)[0] for f in d]).mean(0)
    counts = average(u, md.RDF("all", range=(0.5, 6.0), n_bins=11, norm="none"))
    np.testing.assert_allclose(counts.mean, want, atol=0.05)
    density = average(u, md.RDF("all", range=(0.5, 6.0), n_bins=11, norm="density"))
    np.testing.assert_allclose(density.mean, counts.mean / 10 / (4 / 3 * np.pi * np.diff(edges**3)))
    assert density.unit == "Angstrom-3"


@pytest.mark.parametrize(("settings", "why"), [
    ({"range": (5, 1)}, "rises"), ({"range": 5}, "two distances"), ({"n_bins": 0}, "n_bins"), ({"exclude": "bonds"}, "exclude"),
    ({"exclude": (0, 1)}, "exclude"), ({"density": "V"}, "density"), ({"norm": "x"}, "norm"), ({"images": "two"}, "images"),
    ({"range": (0.0, 1e4)}, "more than fit"),
    ({"select_a": "name ZZ"}, "empty"), ({"select_a": "index 0"}, "no pair"), ({"exclude": "molecule"}, "no bonds"),
])
def test_rdf_refuses(settings, why):
    from ensemblekit import md

    u = universe(np.zeros((4, 3, 3)) + np.arange(3)[:, None], [10, 10, 10, 90, 90, 90])
    with pytest.raises(InputError, match=why):
        average(u, md.RDF(**{"select_a": "all", **settings}))


# --- density profiles -----------------------------------------------------------------------------------------------------

def test_profile_of_a_slab_in_a_skew_breathing_box():
    from ensemblekit import md

    rng = np.random.default_rng(7)
    n, bins = 64, 10
    heights = 20 + rng.normal(0, 0.5, n)
    cells = np.array([[[10.0, 0, 0], [3.0, 9.0, 0], [2.0, -4.0, h]] for h in heights])
    shares = rng.uniform(size=(n, 200, 3))
    shares[:, :100, 2] = 0.3 + 0.1 * shares[:, :100, 2]         # half of the atoms between 0.3 and 0.4 of the height
    x = np.einsum("nai,nij->naj", shares, cells)
    boxes = np.array([mda.lib.mdamath.triclinic_box(*c) for c in cells])
    u = universe(x, boxes, masses=12.0, charges=np.r_[np.ones(100), -np.ones(100)])
    number = average(u, md.DensityProfile("all", kind="number", n_bins=bins))
    volumes = np.linalg.det(cells)
    expected = np.array([np.histogram(s[:, 2], bins, (0, 1))[0] for s in shares]) / (volumes / bins)[:, None]
    np.testing.assert_allclose(number.mean, expected.mean(0), rtol=2e-2)        # float32 boxes: atoms at an edge
    mass = average(u, md.DensityProfile("all", kind="mass", n_bins=bins))
    np.testing.assert_allclose(mass.mean, number.mean * 12 * 1.66053906660)
    charge = average(u, md.DensityProfile("all", kind="charge", n_bins=bins))
    np.testing.assert_allclose(charge.mean.sum(), 0, atol=1e-6)
    assert charge.mean[3] > 0.02
    # a range in angstrom about the slab itself, which may lie across the face of the box
    moved = universe(x + cells[:, None, 2] * 0.65, boxes, masses=12.0)
    centred = average(moved, md.DensityProfile("index 0:99", kind="number", n_bins=4, range=(-2.0, 2.0), centre="index 0:99"))
    np.testing.assert_allclose(centred.mean[1:3], 100 / (10 * 9 * 2.0), rtol=0.1)
    assert centred.mean[0] < centred.mean[1]
    np.testing.assert_allclose(centred.coords["z"][0], [-1.5, -0.5, 0.5, 1.5])
    with pytest.raises(Exception, match="only"):
        average(u, md.DensityProfile("all", n_bins=4, range=(0.0, 30.0)))
    with pytest.raises(InputError, match="no box"):
        average(universe(x), md.DensityProfile())


# --- displacements --------------------------------------------------------------------------------------------------------

def plain_msd(x):
    return np.array([((x[m:] - x[:len(x) - m]) ** 2).sum(-1).mean() for m in range(len(x))])


def test_msd_of_the_random_walk_of_mdanalysis():
    from ensemblekit import md

    u = mda.Universe(datafiles.RANDOM_WALK_TOPO, datafiles.RANDOM_WALK)
    estimate = average(u, md.MSD("all"))
    np.testing.assert_allclose(np.linalg.norm(estimate.mean), 3932.39927487146, rtol=1e-10)
    assert estimate.unit == "Angstrom2"
    assert estimate.mean[0] == 0
    assert {"diffusion", "exponent"} <= set(estimate.derived)
    plane = average(u, md.MSD("all", dimensions="xy"))
    only_z = average(u, md.MSD("all", dimensions="z"))
    np.testing.assert_allclose(plane.mean + only_z.mean, estimate.mean, atol=1e-9)


@pytest.mark.parametrize("cell", [np.eye(3) * 8.0, np.array([[8.0, 0, 0], [5.0, 7.0, 0], [-3.0, 4.0, 6.0]]),
                                  np.array([[0.0, 8.0, 0], [-7.0, 1.0, 0], [1.0, 2.0, 9.0]])])
def test_displacements_of_wrapped_paths_are_those_of_the_paths(cell):
    rng = np.random.default_rng(8)
    x = np.cumsum(rng.normal(0, 0.5, (120, 9, 3)), 0)
    wrapped = x - np.floor(x @ np.linalg.inv(cell)) @ cell
    cells = np.broadcast_to(cell, (120, 3, 3)).copy()
    msd, longest = squared_displacements(wrapped, np.arange(9), cells=cells)
    np.testing.assert_allclose(msd, np.array([plain_msd(x[:, k]) for k in range(9)]), atol=1e-8)
    assert 0 < longest < 1.5
    without, none = squared_displacements(x, np.zeros(9, int), lags=20)
    np.testing.assert_allclose(without[0], plain_msd(x)[:20], atol=1e-9)
    assert none == 0.0


def test_a_breathing_box_adds_no_displacement():
    """A path through a wrapped NPT box, each step wrapped into the box of its frame: the steps come out, nothing else.

    Unwrapping by whole images of each frame's box would add its breathing times the images gone through.
    """
    rng = np.random.default_rng(9)
    n = 2000
    edges = 20 * (1 + 0.01 * rng.normal(size=n))
    steps = rng.normal(0, 0.5, (n, 4, 3))
    wrapped = np.empty((n, 4, 3))
    wrapped[0] = 10
    for t in range(1, n):
        wrapped[t] = (wrapped[t - 1] + steps[t]) % edges[t]
    walk = np.cumsum(np.concatenate([np.zeros((1, 4, 3)), steps[1:]]), 0)
    assert np.abs(walk).max() > 20
    msd, _ = squared_displacements(wrapped, np.zeros(4, int), cells=edges[:, None, None] * np.eye(3), lags=200)
    np.testing.assert_allclose(msd[0], plain_msd(walk)[:200], rtol=1e-3)


def test_frames_too_far_apart_to_unwrap_are_told():
    from ensemblekit import md

    x = np.random.default_rng(10).uniform(0, 10, (40, 12, 3))
    estimate = average(universe(x, [10, 10, 10, 90, 90, 90]), md.MSD("all"))
    assert "too far apart to unwrap" in estimate.verdict
    assert "too far apart" in estimate.diffusion.verdict
    assert not estimate.diffusion.converged        


def test_diffusion_of_brownian_particles():
    from ensemblekit import md

    rng = np.random.default_rng(11)
    d, dt = 0.23, 2.0
    x = np.cumsum(rng.normal(0, np.sqrt(2 * d * dt), (400, 60, 3)), 0) % 12.0
    estimate = average(universe(x, [12, 12, 12, 90, 90, 90], dt=dt), md.MSD("all", fit=(20.0, 200.0)))
    assert estimate.diffusion.unit == "Angstrom2 ps-1"
    assert estimate.diffusion.low < d < estimate.diffusion.high
    assert estimate.diffusion.stderr < 0.05
    assert abs(estimate.exponent.mean - 1) < 3 * estimate.exponent.stderr
    assert estimate.diffusion.converged
    np.testing.assert_allclose(estimate.coords["lag"][0][:3], [0, 2, 4])
    infinite = average(universe(x, [12, 12, 12, 90, 90, 90], dt=dt),
                       md.MSD("all", fit=(20.0, 200.0), temperature=300.0, viscosity=0.9)).diffusion_infinite
    added = 2.837297 * 1.380649e-23 * 300 / (6 * np.pi * 0.9e-3 * 12e-10) * 1e8
    np.testing.assert_allclose(infinite.mean - estimate.diffusion.mean, added, rtol=1e-6)
    still = average(universe(rng.normal(0, 1, (400, 60, 3))), md.MSD("all"))
    assert not still.diffusion.converged
    assert "not diffusive" in still.diffusion.verdict


def test_the_constant_of_finite_boxes():
    """Yeh & Hummer's cube; fcc and bcc lattices by the Madelung constants of Wigner crystals, 0.895929 and 0.895874 (r_s)."""
    assert wigner_constant(np.eye(3) * 31.0) == pytest.approx(2.837297479, rel=1e-9)
    bcc = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) * 4.0
    fcc = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 4.0
    sphere = (3 / (4 * np.pi)) ** (1 / 3)
    # energy per electron -0.895929 / r_s hartree is half the potential of the lattice at an electron
    assert wigner_constant(bcc) * sphere / 2 == pytest.approx(0.895929, abs=1e-6)
    assert wigner_constant(fcc) * sphere / 2 == pytest.approx(0.895874, abs=1e-6)
    skew = np.array([[1, 0, 0], [3, 1, 0], [-2, 5, 1]]) * 10.0      # the cube's lattice, other vectors
    assert wigner_constant(skew) == pytest.approx(2.837297479, rel=1e-9)
    small, large = (finite_size_correction(np.eye(3) * edge, 300, 1.0) for edge in (20, 40))
    assert small == pytest.approx(2 * large)


def test_brownian_errors_are_those_of_brownian_paths():
    rng = np.random.default_rng(12)
    n, lags = 60, np.array([1, 3, 10, 25, 40])
    np.testing.assert_allclose(np.sqrt(np.diag(brownian_covariance(np.arange(1, 59), n))),
                               brownian_error(np.arange(59.0), n, 1, 1)[1:])
    x = np.cumsum(rng.normal(size=(n, 20000, 1)), 0)
    each = np.array([((x[m:] - x[:-m]) ** 2).sum(-1).mean(0) for m in lags])
    np.testing.assert_allclose(np.cov(each), brownian_covariance(lags, n), rtol=0.15, atol=2)
    slopes, errors = [], []
    for k in range(300):
        msd = np.array([plain_msd(x[:, 3 * k:3 * k + 3])])
        line = slope_of(msd, np.array([3.0]), np.arange(n, dtype=float), np.arange(5, 31), n, 1, independent=3)
        slopes.append(line.slope)
        errors.append(line.stderr)
    assert np.mean(slopes) == pytest.approx(1, abs=0.15)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(slopes), rel=0.2)


@pytest.mark.parametrize(("settings", "why"), [
    ({"dimensions": "xx"}, "dimensions"), ({"temperature": 300}, "viscosity"), ({"fit": (5, 2)}, "fit"),
    ({"max_lag": -1}, "max_lag"), ({"unwrap": True}, "no box"),
    ({"temperature": 300, "viscosity": 1}, "periodic box"), ({"fit": (0.2, 0.4)}, "line needs"),
])
def test_msd_refuses(settings, why):
    from ensemblekit import md

    with pytest.raises(InputError, match=why):
        average(universe(np.random.default_rng(0).normal(size=(20, 3, 3))), md.MSD(**settings))


def test_long_paths_are_kept_on_disk(monkeypatch):
    from ensemblekit import md
    from ensemblekit.md import spilled_series

    u = universe(np.cumsum(np.random.default_rng(15).normal(size=(300, 10, 3)), 0), [9, 9, 9, 90, 90, 90])
    want = average(u, md.MSD("all"))
    monkeypatch.setattr(spilled_series, "HELD_BYTES", 200)
    kept = spilled_series.SpilledSeries()
    kept.update(np.arange(12.0).reshape(4, 3), 0)
    kept.update(np.arange(300.0).reshape(100, 3), 4)
    assert isinstance(kept.parts[0], np.memmap)
    np.testing.assert_array_equal(kept.result()[:, 0:2][4:], np.arange(300.0).reshape(100, 3)[:, :2])
    estimate = average(u, md.MSD("all"))
    np.testing.assert_array_equal(estimate.mean, want.mean)
    np.testing.assert_array_equal(estimate.stderr, want.stderr)


def test_replicas_of_a_liquid(tmp_path):
    """Runs of unequal length: g(r) and diffusion of all of them, each run's beside it."""
    from ensemblekit import md

    rng = np.random.default_rng(16)
    paths = []
    for k, n in enumerate((200, 120)):
        x = np.cumsum(rng.normal(0, 0.5, (n, 40, 3)), 0) + rng.uniform(0, 15, (40, 3))
        store = md.ingest(universe(x % 15, [15, 15, 15, 90, 90, 90]), None, tmp_path / f"run-{k}.h5md")
        paths.append(str(store.path))
    wanted = {"g": md.RDF("all", range=(0.0, 7.0), n_bins=7), "msd": md.MSD("all", max_lag=50.0)}
    sources = (ek.open(paths, as_="replicas"), *paths)
    pooled, *each = (md.average(source, wanted, equilibration=None, quiet=True) for source in sources)
    np.testing.assert_allclose(pooled["g"].mean, (200 * each[0]["g"].mean + 120 * each[1]["g"].mean) / 320, rtol=1e-9)
    np.testing.assert_allclose(pooled["msd"].mean, (200 * each[0]["msd"].mean + 120 * each[1]["msd"].mean) / 320, rtol=1e-9)
    assert abs(pooled["msd"].diffusion.mean - 0.125) < 4 * pooled["msd"].diffusion.stderr
    assert np.isfinite(pooled["g"].stderr[2:]).all()


def test_msd_of_weighted_or_uneven_frames_is_refused():
    from ensemblekit import md

    u = universe(np.random.default_rng(0).normal(size=(40, 3, 3)))
    with pytest.raises(InputError, match="weighted frames"):
        average(u, md.MSD(), frame_weights=np.linspace(1, 2, 40))
    even = average(u, md.MSD(), frame_weights=np.full(40, 2.0))
    np.testing.assert_array_equal(even.mean, average(u, md.MSD()).mean)
    with pytest.raises(InputError, match="evenly spaced"):
        average(u, md.MSD(), frames=[0, 1, 2, 5, 6, 9, 11, 20])


# --- dipoles --------------------------------------------------------------------------------------------------------------

def test_dielectric_constant_of_mdanalysis(tip125):
    """3.873596354874509 and 9.621 there, with the constants of 2010."""
    from ensemblekit import md

    estimate = average(tip125, md.DielectricConstant(temperature=300, corrected=False))
    assert estimate.mean == pytest.approx(3.873596354874509, rel=1e-6)
    assert average(tip125, md.DielectricConstant(temperature=100, corrected=False)).mean == pytest.approx(9.62079, rel=1e-5)
    assert np.trace(estimate.tensor.mean) / 3 == pytest.approx(estimate.mean)
    np.testing.assert_allclose(estimate.tensor.mean, estimate.tensor.mean.T)
    assert not estimate.converged          # ten frames


def test_dielectric_constant_of_free_dipoles():
    """Dipoles that point anywhere, whole or cut by the box: epsilon - 1 = N mu^2 / (3 epsilon_0 V k T), inside the bar."""
    from ensemblekit import md

    rng = np.random.default_rng(13)
    n, frames, edge, length = 20, 3000, 12.0, 1.4
    direction = rng.normal(size=(frames, n, 3))
    direction *= length / np.linalg.norm(direction, axis=-1, keepdims=True)
    centre = rng.uniform(0, edge, (frames, n, 3))
    x = np.stack([centre, centre + direction], 2).reshape(frames, 2 * n, 3) % edge
    u = universe(x, [edge] * 3 + [90] * 3, residues=np.repeat(np.arange(n), 2), charges=np.tile([-0.5, 0.5], n),
                 bonds=np.arange(2 * n).reshape(n, 2))
    estimate = average(u, md.DielectricConstant(temperature=300))
    truth = 1 + 4 * np.pi * 14.399645 * n * (0.5 * length) ** 2 / (3 * edge**3 * 8.617333262e-5 * 300)
    assert estimate.low < truth < estimate.high
    assert estimate.stderr < 0.05 * truth
    dipole = average(u, md.Dipole())
    assert np.abs(dipole.mean / dipole.stderr).max() < 4
    assert dipole.magnitude.mean == pytest.approx(0.5 * length * np.sqrt(n) * np.sqrt(8 / (3 * np.pi)), rel=0.05)


def test_charged_systems():
    """A dipole is taken about the centre of mass, whatever the place; a dielectric constant is refused with the reason."""
    from ensemblekit import md

    rng = np.random.default_rng(14)
    x = rng.normal(size=(10, 4, 3))
    masses, charges = np.array([1.0, 2, 3, 4]), np.array([1.0, 0.5, -0.25, 0.75])
    want = np.einsum("a,nai->ni", charges, x - np.einsum("a,nai->ni", masses / 10, x)[:, None])
    for shift in (0.0, 100.0):
        estimate = average(universe(x + shift, masses=masses, charges=charges), md.Dipole())
        np.testing.assert_allclose(estimate.mean, want.mean(0), atol=1e-4)
    boxed = universe(x, [50] * 3 + [90] * 3, charges=charges, bonds=[(0, 1), (2, 3)])
    with pytest.raises(InputError, match="2 of 2 molecules are charged"):
        average(boxed, md.DielectricConstant(temperature=300))
    with pytest.raises(InputError, match="temperature"):
        average(boxed, md.DielectricConstant())
    with pytest.raises(InputError, match="no charges"):
        average(universe(x), md.Dipole())
    with pytest.raises(InputError, match="no box"):
        average(universe(x, charges=charges - 0.5), md.DielectricConstant(temperature=300))


def test_four_point_water_moves_its_site_along():
    """TIP4P: the charge of oxygen sits on a massless site without a bond; it belongs to its molecule all the same."""
    from ensemblekit import md

    source = md.read(datafiles.TPR, datafiles.XTC)
    estimate = average(source.window(0, 4), md.DielectricConstant(temperature=300, select="resname SOL"))
    assert 1 < estimate.mean < 200
    dipole = average(source.window(0, 4), md.Dipole("resname SOL and resid 300"))
    assert dipole.magnitude.mean == pytest.approx(2.18 / 4.8032, rel=0.02)      # 2.18 D
    with pytest.raises(InputError, match="molecules are charged"):
        average(source, md.DielectricConstant(temperature=300))
