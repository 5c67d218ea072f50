"""Atoms chosen anew in every frame, what says that it does not do so, and the series and bounds of every observable."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.errors import InputError, ReductionError

mda = pytest.importorskip("MDAnalysis")
files = pytest.importorskip("MDAnalysisTests.datafiles")

NEAR = "name OH2 and around 4 index 0"
MOLECULES = f"byres ({NEAR})"


@pytest.fixture(scope="module")
def water() -> Any:
    """125 TIP3P in a triclinic box, 10 frames."""
    from ensemblekit.md.topology import mdanalysis

    with mdanalysis():
        return mda.Universe(files.PSF_TRICLINIC, files.DCD_TRICLINIC)


CASES = {
    "distance": lambda near, **kw: md.Distance("index 0", near, **kw),
    "angle": lambda near, **kw: md.Angle("index 0", near, "index 30", **kw),
    "dihedral": lambda near, **kw: md.Dihedral("index 0", near, "index 30", "index 60", **kw),
    "rdf": lambda near, **kw: md.RDF(near, "name OH2", range=(0.0, 6.0), n_bins=12, **kw),
    "rdf nearest": lambda near, **kw: md.RDF(near, near, range=(0.0, 9.0), n_bins=9, images="nearest", **kw),
    "pairs": lambda near, **kw: md.RDF(near, "name OH2", range=(0.0, 6.0), n_bins=12, norm="none", **kw),
    "atoms": lambda near, **kw: md.RDF(near, "name OH2", range=(2.0, 6.0), n_bins=8, norm="density", density="<1/V>", **kw),
    "density": lambda near, **kw: md.DensityProfile(near, n_bins=6, **kw),
    "centred": lambda near, **kw: md.DensityProfile("all", n_bins=6, centre=near, **kw),
    "dipole": lambda near, **kw: md.Dipole(f"byres ({near})", **kw),
    "tensor": lambda near, **kw: md.GyrationTensor(f"byres ({near})", **kw),
    "rg": lambda near, **kw: md.RadiusOfGyration(f"byres ({near})", **kw),
    "contacts": lambda near, **kw: md.Contacts(near, "name OH2", **kw),
    "bonds": lambda near, **kw: md.HydrogenBonds(between=("resname TIP3", f"byres ({near})"), **kw),
}


@pytest.mark.parametrize("name", CASES)
def test_a_selection_that_stays_gives_the_same_either_way(water: Any, name: str) -> None:
    make = CASES[name]
    averages = md.average(water, {"anew": make("name OH2", updating=True), "once": make("name OH2")}, equilibration=None)
    for key in ("", *(f".{more}" for more in averages.estimates["once"].derived)):
        np.testing.assert_allclose(averages[f"anew{key}"].mean, averages[f"once{key}"].mean, rtol=1e-9, atol=1e-12)
    assert averages.notes == ()


@pytest.mark.parametrize("name", CASES)
def test_a_selection_that_changes_is_followed_and_one_that_does_not_says_so(water: Any, name: str) -> None:
    make = CASES[name]
    averages = md.average(water, {"anew": make(NEAR, updating=True), "once": make(NEAR)}, equilibration=None)
    assert not np.allclose(averages["anew"].mean, averages["once"].mean)
    assert [note.split(":")[0] for note in averages.notes] == ["once"] * len(averages.notes) != []
    assert "first frame" in str(averages)
    pickle.loads(pickle.dumps(make(NEAR, updating=True)))


def test_groups_that_change_against_mdanalysis(water: Any) -> None:
    near = water.select_atoms(NEAR, updating=True)
    oxygen = water.select_atoms("name OH2")
    waters = water.select_atoms(MOLECULES, updating=True)
    pairs, apart, moments, volumes = np.zeros(12), [], [], []
    many = 0
    for _ in water.trajectory:
        box = water.dimensions
        d = mda.lib.distances.distance_array(near.positions, oxygen.positions, box=box)
        d[near.indices[:, None] == oxygen.indices] = np.inf
        pairs += np.histogram(d, bins=12, range=(0, 6))[0]
        many += int(np.isfinite(d).sum())
        volumes.append(mda.lib.mdamath.box_volume(box))
        apart.append(near.center_of_mass())
        whole = waters.residues.atoms
        moments.append(whole.charges @ whole.unwrap(inplace=False))
    averages = md.average(water, {"g": CASES["rdf"](NEAR, updating=True), "m": md.Dipole(MOLECULES, updating=True),
                                  "d": md.Distance("index 0", NEAR, updating=True, periodic=False)},
                          equilibration=None, whole=False)
    edges = np.linspace(0, 6, 13)
    want = pairs * np.mean(volumes) / (many * 4 / 3 * np.pi * np.diff(edges**3))
    np.testing.assert_allclose(averages["g"].mean, want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(averages["m"].series, moments, atol=2e-3)
    np.testing.assert_allclose(averages["m.magnitude"].series, np.linalg.norm(moments, axis=1), atol=2e-3)
    first = [np.linalg.norm(water.trajectory[k] and water.atoms[0].position - apart[k]) for k in range(len(apart))]
    np.testing.assert_allclose(averages["d"].series, first, rtol=1e-5)


def test_surfaces_of_atoms_that_change(water: Any) -> None:
    pytest.importorskip("mdtraj")
    anew = md.SASA(MOLECULES, n_points=60, updating=True)
    averages = md.average(water, {"anew": anew, "once": md.SASA(MOLECULES, n_points=60)}, stop=4, equilibration=None)
    assert averages["anew"].series[0] == pytest.approx(averages["once"].series[0], rel=1e-6)
    assert not np.allclose(averages["anew"].series[1:], averages["once"].series[1:])
    with pytest.raises(InputError, match="level='residue'"):
        md.average(water, {"s": md.SASA(MOLECULES, level="residue", updating=True)})


def test_a_group_that_is_empty_in_some_frames(water: Any) -> None:
    rare = "name OH2 and around 2.72 index 0"
    counts = [len(water.select_atoms(rare)) for _ in water.trajectory]
    assert 0 < np.count_nonzero(counts) < len(counts)
    averages = md.average(water, {"d": md.Distance("index 0", rare, updating=True), "m": md.Dipole(rare, updating=True),
                                  "g": md.RDF(rare, "name OH2", range=(0.0, 5.0), n_bins=5, updating=True)}, equilibration=None)
    np.testing.assert_array_equal(np.isnan(averages["d"].series), np.array(counts) == 0)
    assert not averages["d"].converged
    np.testing.assert_array_equal(averages["m.magnitude"].series == 0, np.array(counts) == 0)
    assert np.isfinite(averages["g"].mean).all()
    with pytest.raises(ReductionError, match="no atom of centre"):
        md.average(water, {"p": md.DensityProfile("all", centre=rare, updating=True)})


@pytest.mark.parametrize(("name", "why"), [
    ("RMSD", "same atoms"), ("RMSF", "same atoms"), ("PCA", "same atoms"), ("NativeContacts", "same atoms"),
    ("ContactMap", "residues"), ("EndToEnd", "ends"), ("Distances", "pairs"), ("DistanceMap", "same atoms"),
    ("Dihedrals", "same atoms"), ("Ramachandran", "same atoms"), ("SecondaryStructure", "same atoms"),
    ("HelixContent", "same atoms"), ("MSD", "path"), ("DielectricConstant", "fluctuations"),
])
def test_observables_of_the_same_atoms_refuse_to_update(name: str, why: str) -> None:
    with pytest.raises(InputError, match=rf"md\.{name} has no updating=.*{why}"):
        getattr(md, name)("all", updating=True)
    with pytest.raises(TypeError):
        getattr(md, name)("all", updating=False, misspelt=1)


def test_updating_that_means_nothing_is_refused(water: Any) -> None:
    for bad, match in ((md.HydrogenBonds(updating=True), "between"), (md.Angle("index 0:2", updating=True), "3 selections"),
                       (md.RDF(NEAR, "all", exclude=(1, 1), updating=True), "blocks of atoms"),
                       (md.Distance("index 0", "resname XXX", updating=True), "XXX")):
        with pytest.raises(InputError, match=match):
            md.average(water, {"bad": bad})


@pytest.fixture(scope="module")
def adk() -> Any:
    from ensemblekit.md.topology import mdanalysis

    with mdanalysis():
        return mda.Universe(files.PSF, files.DCD)


NUMBERS = {
    "rg": md.RadiusOfGyration("protein", components=True), "rmsd": md.RMSD("name CA"), "ends": md.EndToEnd(),
    "d": md.Distance("resid 1", "resid 30"), "a": md.Angle("resid 1", "resid 30", "resid 60"),
    "phi": md.Dihedral("resid 1", "resid 30", "resid 60", "resid 90"), "c": md.Contacts("name CA"),
    "q": md.NativeContacts("name CA", radius=8.0), "helix": md.HelixContent(), "f": lambda atoms: atoms.positions[0, 2],
}


def test_every_number_of_a_frame_keeps_its_series(adk: Any) -> None:
    more = {"shape": md.GyrationTensor("name CA"), "m": md.Dipole("resid 1:5"), "state": md.SecondaryStructure()}
    averages = md.average(adk, NUMBERS | more, equilibration=None)
    for name in NUMBERS:
        e = averages[name]
        assert e.series.shape == e.times.shape == (98,), name
        if name != "phi":
            assert np.mean(e.series) == pytest.approx(e.mean, rel=1e-9)
    for name in ("rg.along_x", "rg.about_z", "shape.asphericity", "shape.acylindricity", "shape.anisotropy", "m.magnitude"):
        assert averages[name].series.shape == averages[name].times.shape == (98,), name
        assert np.mean(averages[name].series) == pytest.approx(averages[name].mean, rel=1e-9)
    for name in ("shape", "m", "state.content"):
        assert averages[name].series.shape == (98, 3)
        np.testing.assert_allclose(averages[name].series.mean(axis=0), averages[name].mean, rtol=1e-9, atol=1e-9)
    averages.plot()


def test_intervals_of_what_cannot_be_negative(adk: Any) -> None:
    results = md.average(adk, {**NUMBERS, "rmsf": md.RMSF("name CA"), "pca": md.PCA("name CA"), "map": md.ContactMap("name CA"),
                               "rama": md.Ramachandran(), "state": md.SecondaryStructure()}, equilibration=None, quiet=True)
    shares = ("q", "helix", "pca", "pca.cumulated", "map", "rama", "rama.populations", "state", "state.content",
              "phi.resultant")
    for name, e in results.items():
        if name in ("phi", "f") or name.endswith((".phi", ".psi")):
            continue
        low, high, mean = (np.asarray(x) for x in (e.low, e.high, e.mean))
        known = np.isfinite(low)
        assert (low[known] >= 0).all(), name
        assert (low[known] <= mean[known] + 1e-12).all(), name
        assert (high[known] >= mean[known] - 1e-12).all(), name
        if name in shares:
            assert (high[known] <= 1).all(), name
    rmsf = results["rmsf"]
    assert (rmsf.mean - 12 * rmsf.stderr < 0).any()     # of three independent frames: symmetric intervals would reach below 0


def relaxing(n: int = 400, settle: int = 80) -> tuple[Any, np.ndarray]:
    """Five atoms that shake ten times as far at the start of a run, and steps of a walk that are ten times as long."""
    rng = np.random.default_rng(6)
    site = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 9, 9.0]])
    scale = np.where(np.arange(n) < settle, 3.0, 0.3)[:, None, None]
    u = mda.Universe.empty(5, n_residues=5, atom_resindex=np.arange(5), trajectory=True)
    u.add_TopologyAttr("masses", np.ones(5))
    return u, site + scale * rng.standard_normal((n, 5, 3))


def test_automatic_equilibration_of_observables_with_statistics_of_their_own() -> None:
    u, x = relaxing()
    u.load_new(x.astype(np.float32))
    auto = md.average(u, {"rmsf": md.RMSF("all", fit=False)}, quiet=True)
    e = auto["rmsf"]
    assert 70 <= e.n_discarded <= 110
    assert e.n == 400 - e.n_discarded
    np.testing.assert_allclose(e.mean, 0.3 * np.sqrt(3), rtol=0.1)
    assert any("the mean structure is that of all frames" in note for note in auto.notes)
    whole = md.average(u, {"rmsf": md.RMSF("all", fit=False)}, equilibration=None, quiet=True)
    assert whole["rmsf"].n_discarded == 0
    assert (whole["rmsf"].mean > 1.0).all()
    assert whole.notes == ()


def test_automatic_equilibration_of_displacements_goes_by_their_steps() -> None:
    u, x = relaxing(600, 150)
    u.load_new(np.cumsum(x - x.mean(axis=0), axis=0).astype(np.float32))
    e = md.average(u, {"msd": md.MSD("all")})["msd"]
    assert 140 <= e.n_discarded <= 190
    assert e.n == 600 - e.n_discarded
    assert e.mean[1] == pytest.approx(3 * 0.3**2, rel=0.1)
    assert md.average(u, {"msd": md.MSD("all")}, equilibration=None)["msd"].n_discarded == 0
    assert md.average(u, {"msd": md.MSD("all")}, equilibration=133)["msd"].n == 467
    rng = np.random.default_rng(1)
    u.load_new(np.cumsum(rng.standard_normal((600, 5, 3)), axis=0).astype(np.float32))
    assert md.average(u, {"msd": md.MSD("all")})["msd"].n_discarded == 0        # a path never rests: that is no start


def test_block_analyses_have_a_start_and_weights_by_single_frames(adk: Any) -> None:
    from MDAnalysis.analysis.rms import RMSF

    def of_blocks(**more: Any) -> Any:
        return md.from_analysis(lambda u: RMSF(u.select_atoms("name CA")), value=lambda a: a.results.rmsf.mean(), per="block",
                                unit="Angstrom", **more)

    estimate = md.average(adk, {"x": of_blocks(n_blocks=14)}, equilibration=21, quiet=True)["x"]
    assert (estimate.n_discarded, estimate.n) == (21, 77)
    w = np.random.default_rng(3).random(98)
    with pytest.raises(InputError, match="n_blocks=98"):
        md.average(adk, {"x": of_blocks()}, frame_weights=w, quiet=True)

    def height(u: Any) -> Any:
        from MDAnalysis.analysis.base import AnalysisFromFunction

        return AnalysisFromFunction(lambda atoms: atoms.positions[:, 2].mean(), u.trajectory, u.atoms)

    single = md.from_analysis(height, value=lambda a: a.results.timeseries[0], per="block", n_blocks=98)
    frame = md.from_analysis(height, value=lambda a: a.results.timeseries)
    both = md.average(adk, {"block": single, "frame": frame}, frame_weights=w, equilibration=None, quiet=True)
    assert both["block"].mean == pytest.approx(both["frame"].mean, rel=1e-6)
    assert both["block"].stderr == pytest.approx(both["frame"].stderr, rel=1e-6)


def test_an_atom_in_two_groups_is_made_whole_in_both(water: Any) -> None:
    """Fitted atoms are among those that go along, and groups overlap: each atom has one place among the whole ones."""
    averages = md.average(water, {"d": md.Distance("index 0 1", "name OH2", periodic=False),
                                  "r": md.RMSD("index 0:8", fit="index 0:5", weights="mass")}, equilibration=None)
    want, deviations = [], []
    pair, oxygen, three = water.atoms[:2], water.select_atoms("name OH2"), water.atoms[:9]
    first = None
    for _ in water.trajectory:
        whole = water.atoms.unwrap(reference=None, inplace=False).astype(float)
        mass = water.atoms.masses
        centres = [np.average(whole[g.indices], axis=0, weights=mass[g.indices]) for g in (pair, oxygen)]
        want.append(np.linalg.norm(centres[0] - centres[1]))
        x = whole[three.indices]
        first = x if first is None else first
        deviations.append(_carried_rmsd(x, first, mass[:9]))
    np.testing.assert_allclose(averages["d"].series, want, rtol=1e-4)
    np.testing.assert_allclose(averages["r"].series, deviations, atol=1e-3)


def _carried_rmsd(x: np.ndarray, first: np.ndarray, mass: np.ndarray) -> float:
    """Of nine atoms after superposition of the first six (Kabsch)."""
    w = mass[:6] / mass[:6].sum()
    a, b = x[:6] - w @ x[:6], first[:6] - w @ first[:6]
    u, _, v = np.linalg.svd((w[:, None] * a).T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v
    moved = (x - w @ x[:6]) @ turn + w @ first[:6]
    return float(np.sqrt(mass @ ((moved - first) ** 2).sum(axis=1) / mass.sum()))
