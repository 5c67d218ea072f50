"""Structure in md.average: the numbers MDAnalysis and mdtraj give for the same frames, and what happens at the edges."""

import pickle

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import InputError, MissingExtraError
from ensemblekit.md.topology import warnings_held

pytest.importorskip("MDAnalysis")
datafiles = pytest.importorskip("MDAnalysisTests.datafiles")
from ensemblekit import md  # noqa: E402
from ensemblekit.md.frames import topology_of  # noqa: E402
from ensemblekit.md.system import System  # noqa: E402


@pytest.fixture(scope="module")
def adk(tmp_path_factory):
    """The store of adenylate kinase: 3341 atoms, 98 frames."""
    path = tmp_path_factory.mktemp("structure") / "adk.h5md"
    with warnings_held():
        md.ingest(datafiles.PSF, datafiles.DCD, path)
    return path


@pytest.fixture(scope="module")
def universe():
    with warnings_held():
        import MDAnalysis

        yield MDAnalysis.Universe(datafiles.PSF, datafiles.DCD)


@pytest.fixture(autouse=True)
def quiet():
    with warnings_held():
        yield


def average(source, observable, **options):
    return md.average(source, {"it": observable}, quiet=True, **options)["it"]


# -- numbers of MDAnalysis ------------------------------------------------------------------------------------------------

def test_gyration_of_adenylate_kinase(adk):
    estimate = average(adk, md.RadiusOfGyration("protein"))
    assert estimate.mean == pytest.approx(18.2654955170, rel=1e-9)
    assert estimate.series.std(ddof=1) == pytest.approx(1.0203954716, rel=1e-9)
    assert estimate.series[0] == pytest.approx(16.6690183686, rel=1e-9)
    assert estimate.series[-1] == pytest.approx(19.5915751288, rel=1e-9)
    assert not estimate.converged
    assert 2 < estimate.n_eff < 4


def test_components_of_gyration(adk, universe):
    """The tensor written down plainly, and MDAnalysis' asphericity."""
    estimate = average(adk, md.RadiusOfGyration("protein", components=True))
    chosen = universe.select_atoms("name CA")
    along = average(adk, md.RadiusOfGyration("name CA", components=True))
    moments = average(adk, md.GyrationTensor("name CA"))
    tensors, asphericity, principal = [], [], []
    for _ in universe.trajectory:
        x = chosen.positions - chosen.center_of_mass()
        tensor = x.T @ x / len(x)
        tensors.append(tensor)
        principal.append(np.linalg.eigvalsh(tensor)[::-1])
        asphericity.append(chosen.asphericity())
    diagonal = np.array([np.diag(t) for t in tensors])
    for k, axis in enumerate("xyz"):
        want = np.sqrt(diagonal[:, k]).mean()
        assert along.derived[f"along_{axis}"].mean == pytest.approx(want, rel=1e-5)
        about = np.sqrt(diagonal.sum(1) - diagonal[:, k]).mean()
        assert along.derived[f"about_{axis}"].mean == pytest.approx(about, rel=1e-5)
    np.testing.assert_allclose(moments.mean, np.mean(principal, axis=0), rtol=1e-5)
    a, b, c = np.array(principal).T
    want = 1 - 3 * (a * b + b * c + c * a) / (a + b + c) ** 2
    np.testing.assert_allclose(want, asphericity, rtol=1e-5)        # MDAnalysis calls it so
    assert moments.anisotropy.mean == pytest.approx(want.mean(), rel=1e-5)
    assert moments.asphericity.mean == pytest.approx((a - (b + c) / 2).mean(), rel=1e-5)
    assert estimate.mean == pytest.approx(18.2654955170, rel=1e-9)
    assert estimate.series[0] == pytest.approx(16.6690183686, rel=1e-9)
    np.testing.assert_allclose(estimate.about_x.series, np.sqrt(estimate.series**2 - estimate.along_x.series**2), rtol=1e-9)
    plain = average(adk, md.RadiusOfGyration("protein"))
    assert estimate.stderr == plain.stderr


def test_rmsd_of_mdanalysis_tests(adk, universe):
    """Published in MDAnalysis' own tests: frame 49 from frame 0, and the backbone of first and last frame."""
    alike = average(adk, md.RMSD("name CA"))
    assert alike.series[0] == pytest.approx(0, abs=1e-10)
    assert alike.series[49] == pytest.approx(4.68953, abs=1e-5)
    heavy = average(adk, md.RMSD("all", weights="mass"))
    assert heavy.series[49] == pytest.approx(4.74920, abs=2e-5)
    backbone = average(adk, md.RMSD("backbone"))
    assert backbone.series[-1] == pytest.approx(6.820321761927, abs=1e-6)
    last = average(adk, md.RMSD("backbone", reference=-1))
    assert last.series[0] == pytest.approx(backbone.series[-1], rel=1e-9)


def test_rmsd_of_other_atoms_than_those_fitted(adk, universe):
    from MDAnalysis.analysis.rms import RMSD

    theirs = RMSD(universe, select="name CA and resid 1:29", groupselections=["name CA and resid 122:159"]).run()
    estimate = average(adk, md.RMSD("name CA and resid 122:159", fit="name CA and resid 1:29"))
    np.testing.assert_allclose(estimate.series, theirs.results.rmsd[:, 3], atol=2e-5)
    plain = average(adk, md.RMSD("name CA", fit=False))
    first = universe.trajectory[0].positions[universe.select_atoms("name CA").indices].astype("f8")
    there = universe.trajectory[20].positions[universe.select_atoms("name CA").indices]
    assert plain.series[20] == pytest.approx(np.sqrt(((there - first) ** 2).sum(1).mean()), rel=1e-6)


def test_references_come_in_many_forms(adk, universe):
    want = average(adk, md.RMSD("name CA", reference=7)).series
    universe.trajectory[7]
    chosen = universe.select_atoms("name CA")
    for reference in (chosen.positions, universe.atoms.positions, universe, chosen):
        np.testing.assert_allclose(average(adk, md.RMSD("name CA", reference=reference)).series, want, rtol=1e-6, atol=1e-6)


def test_a_structure_file_as_reference(adk):
    estimate = average(adk, md.RMSD("name CA", reference=datafiles.CRD))
    assert estimate.series.shape == (98,)
    from MDAnalysis import Universe
    from MDAnalysis.analysis.rms import rmsd as theirs

    crd, moving = Universe(datafiles.CRD), Universe(datafiles.PSF, datafiles.DCD)
    want = theirs(moving.select_atoms("name CA").positions, crd.select_atoms("name CA").positions, superposition=True)
    assert estimate.series[0] == pytest.approx(want, rel=1e-5)


def test_fluctuation_of_adenylate_kinase(adk):
    """AverageStructure(ref_frame=0), AlignTraj and RMSF in a row."""
    estimate = average(adk, md.RMSF("name CA", corrected=False))
    assert estimate.mean.mean() == pytest.approx(1.89619328, rel=1e-7)
    assert estimate.mean.max() == pytest.approx(5.76921438, rel=1e-7)
    assert estimate.mean.argmax() == 148
    np.testing.assert_array_equal(estimate.coords["residue"][0], np.arange(1, 215))
    np.testing.assert_allclose(estimate.bfactor.mean, 8 * np.pi**2 / 3 * estimate.mean**2, rtol=1e-12)
    assert not estimate.converged
    corrected = average(adk, md.RMSF("name CA"))
    assert (corrected.mean > estimate.mean).all()


def test_bare_fluctuation_is_mdanalysis_rmsf(adk, universe):
    from MDAnalysis.analysis.rms import RMSF

    theirs = RMSF(universe.select_atoms("name CA")).run()
    estimate = average(adk, md.RMSF("name CA", fit=False, corrected=False))
    np.testing.assert_allclose(estimate.mean, theirs.results.rmsf, rtol=1e-6)


def test_a_settled_mean_structure_leaves_the_least_fluctuation(adk):
    """The mean the frames are superposed on minimises the sum of squares: more rounds never raise it."""
    one, two, settled = (np.square(average(adk, md.RMSF("name CA", rounds=rounds, corrected=False)).mean).sum()
                         for rounds in (1, 2, None))
    assert one > two >= settled * (1 - 1e-12)


def test_fluctuation_of_residues_weighs_their_atoms(adk):
    atoms = average(adk, md.RMSF("backbone", fit="name CA"))
    residues = average(adk, md.RMSF("backbone", fit="name CA", level="residue"))
    assert residues.mean.shape == (214,)
    which = atoms.coords["residue"][0]
    topology = md.universe(adk).select_atoms("backbone")
    square = [np.average(atoms.mean[which == k] ** 2, weights=topology.masses[which == k]) for k in np.unique(which)]
    np.testing.assert_allclose(residues.mean, np.sqrt(square), rtol=1e-9)


def test_distances_angles_and_torsions_of_a_trajectory(adk, universe):
    from MDAnalysis.lib.distances import calc_angles, calc_bonds, calc_dihedrals

    four = ["resid 10 and name N", "resid 10 and name CA", "resid 11 and name CA", "resid 150 and name CA"]
    observables = {"bond": md.Distance(four[0], four[3]), "angle": md.Angle(*four[:3]), "torsion": md.Dihedral(*four),
                   "ends": md.EndToEnd("name CA"), "centres": md.Distance("resid 1:29", "resid 122:159"),
                   "pairs": md.Distances("name CA and resid 1:3", "name CA and resid 11:13"),
                   "together": md.Dihedral(" or ".join(f"({text})" for text in four))}
    averages = md.average(adk, observables, quiet=True)
    groups = [universe.select_atoms(text) for text in four]
    a, b = universe.select_atoms("resid 1:29"), universe.select_atoms("resid 122:159")
    ends = universe.select_atoms("name CA")
    want = {name: [] for name in ("bond", "angle", "torsion", "ends", "centres")}
    for _ in universe.trajectory:
        x = [group.positions for group in groups]
        want["bond"].append(calc_bonds(x[0], x[3])[0])
        want["angle"].append(np.degrees(calc_angles(*x[:3])[0]))
        want["torsion"].append(np.degrees(calc_dihedrals(*x)[0]))
        want["ends"].append(np.linalg.norm(ends.positions[-1].astype("f8") - ends.positions[0]))
        want["centres"].append(np.linalg.norm(a.center_of_mass() - b.center_of_mass()))
    for name, series in want.items():
        np.testing.assert_allclose(averages[name].series, series, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(averages["together"].series, averages["torsion"].series, rtol=1e-9)
    vector = np.exp(1j * np.radians(want["torsion"])).mean()
    assert averages["torsion"].mean == pytest.approx(np.degrees(np.angle(vector)), abs=1e-3)
    assert averages["torsion"].resultant.mean == pytest.approx(abs(vector), rel=1e-5)
    assert averages["pairs"].mean.shape == (3,)
    assert averages["bond"].unit == "Angstrom"
    assert averages["angle"].unit == averages["torsion"].unit == "degree"


def test_a_map_of_distances(adk, universe):
    from MDAnalysis.lib.distances import distance_array

    chosen = universe.select_atoms("name CA and resid 1:20")
    want = np.mean([distance_array(chosen.positions, chosen.positions) for _ in universe.trajectory], axis=0)
    estimate = average(adk, md.DistanceMap("name CA and resid 1:20"))
    np.testing.assert_allclose(estimate.mean, want, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(estimate.coords["residue"][0], np.arange(1, 21))
    other = average(adk, md.DistanceMap("name CA and resid 1:20", "name CA and resid 5:7"))
    np.testing.assert_allclose(other.mean, want[:, 4:7], rtol=1e-5, atol=1e-3)
    residues = average(adk, md.DistanceMap("resid 1:5", level="residue"))
    assert residues.mean.shape == (5, 5)


def test_ramachandran_is_mdanalysis(adk, universe):
    from MDAnalysis.analysis.dihedrals import Ramachandran

    theirs = Ramachandran(universe.select_atoms("protein and resid 2:213")).run().results.angles
    estimate = average(adk, md.Ramachandran("protein"))
    assert estimate.mean.shape == (36, 36)
    assert estimate.mean.sum() == pytest.approx(1)
    want = np.histogram2d(theirs[..., 0].ravel(), theirs[..., 1].ravel(), bins=36, range=[(-180, 180)] * 2)[0]
    np.testing.assert_allclose(estimate.mean, want / want.sum(), atol=3e-5)
    for k, name in enumerate(("phi", "psi")):
        mean = np.degrees(np.angle(np.exp(1j * np.radians(theirs[..., k])).mean(0)))
        gap = (estimate.derived[name].mean - mean + 180) % 360 - 180
        assert abs(gap).max() < 2e-3
    assert estimate.populations.mean.sum() == pytest.approx(1)
    np.testing.assert_array_equal(estimate.phi.coords["residue"][0], np.arange(2, 214))


def test_contacts_are_mdanalysis(adk, universe):
    from MDAnalysis.lib.distances import distance_array, self_distance_array

    acid, base = "(resname GLU ASP) and name OE* OD*", "(resname LYS ARG) and name NZ NH*"
    a, b, alpha = (universe.select_atoms(text) for text in (acid, base, "name CA"))
    between, within, share = [], [], np.zeros((20, 20))
    for _ in universe.trajectory:
        between.append((distance_array(a.positions, b.positions) <= 4.5).sum())
        within.append((self_distance_array(alpha.positions) <= 8).sum())
        share += distance_array(alpha.positions[:20], alpha.positions[:20]) <= 8
    averages = md.average(adk, {"between": md.Contacts(acid, base), "within": md.Contacts("name CA", radius=8.0),
                                "map": md.ContactMap("name CA and resid 1:20", radius=8.0)}, quiet=True)
    np.testing.assert_array_equal(averages["between"].series, between)
    np.testing.assert_array_equal(averages["within"].series, within)
    np.fill_diagonal(share, 0)
    np.testing.assert_allclose(averages["map"].mean, share / 98)


@pytest.mark.parametrize(("method", "theirs"), [("soft", "soft_cut"), ("hard", "hard_cut"), ("radius", "radius_cut")])
def test_native_contacts_are_mdanalysis(adk, universe, method, theirs):
    from MDAnalysis.analysis.contacts import Contacts

    acid, base = "(resname GLU ASP) and name OE* OD*", "(resname LYS ARG) and name NZ NH*"
    universe.trajectory[0]
    reference = (universe.select_atoms(acid), universe.select_atoms(base))
    want = Contacts(universe, select=(acid, base), refgroup=reference, radius=6.0, method=theirs).run().results.timeseries[:, 1]
    estimate = average(adk, md.NativeContacts(acid, base, radius=6.0, method=method, separation=-1))
    np.testing.assert_allclose(estimate.series, want, atol=1e-5)
    assert estimate.series[0] == pytest.approx(1, abs=1e-3)


def test_native_contacts_of_a_protein_leave_neighbours_out(adk, universe):
    """Best, Hummer & Eaton 2013, written down plainly for the first frames."""
    from scipy.spatial.distance import cdist

    heavy = universe.select_atoms("protein and not name H* 1H* 2H* 3H* and resid 1:40")
    resids = heavy.resids
    frames = [heavy.positions.astype("f8") for _ in universe.trajectory[:3]]
    first = cdist(frames[0], frames[0])
    i, j = np.nonzero(np.triu((first <= 4.5) & (abs(resids[:, None] - resids) > 3)))
    want = [(1 / (1 + np.exp(5 * (np.linalg.norm(x[i] - x[j], axis=1) - 1.8 * first[i, j])))).mean() for x in frames]
    estimate = average(adk, md.NativeContacts("protein and not name H* 1H* 2H* 3H* and resid 1:40"), stop=3)
    np.testing.assert_allclose(estimate.series, want, rtol=1e-9)


def test_hydrogen_bonds_are_mdanalysis(adk, universe):
    from MDAnalysis.analysis.hydrogenbonds import HydrogenBondAnalysis

    guessed = average(adk, md.HydrogenBonds(), stop=6)
    np.testing.assert_array_equal(guessed.series, HydrogenBondAnalysis(universe).run(stop=6).count_by_time())
    names = {"donors": "protein and name N*", "hydrogens": "protein and name HN", "acceptors": "protein and name O"}
    sides = ("resid 1:100", "resid 101:214")
    estimate = average(adk, md.HydrogenBonds(**names, between=sides, distance=3.5, angle=120.0), stop=6)
    theirs = HydrogenBondAnalysis(universe, donors_sel=names["donors"], hydrogens_sel=names["hydrogens"],
                                  acceptors_sel=names["acceptors"], between=list(sides), d_a_cutoff=3.5,
                                  d_h_a_angle_cutoff=120).run(stop=6)
    np.testing.assert_array_equal(estimate.series, theirs.count_by_time())


def test_secondary_structure_is_mdanalysis(adk, universe):
    dssp = pytest.importorskip("MDAnalysis.analysis.dssp")
    theirs = dssp.DSSP(universe).run(stop=8).results.dssp_ndarray
    estimate = average(adk, md.SecondaryStructure(), stop=8)
    np.testing.assert_allclose(estimate.mean, theirs.mean(0))
    np.testing.assert_allclose(estimate.content.mean, theirs.mean((0, 1)))
    helix = average(adk, md.HelixContent(), stop=8)
    np.testing.assert_allclose(helix.series, theirs[..., 1].mean(1))


@pytest.mark.parametrize("route", ["covariance", "gram"])
def test_components_of_the_motion_are_mdanalysis(adk, universe, route):
    from MDAnalysis.analysis.pca import PCA

    theirs = PCA(universe, select="name CA and resid 1:20", align=False).run()
    estimate = average(adk, md.PCA("name CA and resid 1:20", fit=False, n_components=3, route=route))
    np.testing.assert_allclose(estimate.variances.mean, theirs.results.variance[:3], rtol=1e-4)
    np.testing.assert_allclose(estimate.cumulated.mean, theirs.results.cumulated_variance[:3], rtol=1e-5)
    np.testing.assert_allclose(np.cumsum(estimate.mean), estimate.cumulated.mean, rtol=1e-12)
    modes = md.principal_components(adk, "name CA and resid 1:20", fit=False, n_components=3, route=route)
    assert modes.route == route
    overlap = abs(modes.components.reshape(3, -1) @ theirs.results.p_components[:, :3])
    np.testing.assert_allclose(overlap, np.eye(3), atol=2e-3)
    ours = modes.project(adk)
    want = theirs.transform(universe.select_atoms("name CA and resid 1:20"), n_components=3)
    np.testing.assert_allclose(abs(ours), abs(want), atol=2e-2)
    np.testing.assert_allclose(ours.var(0, ddof=1), modes.variances, rtol=1e-5)


def test_both_routes_to_the_components_agree_with_weights(adk):
    weights = np.random.default_rng(1).uniform(0, 2, 98)
    weights[5] = 0
    select = "name CA and resid 1:60"
    estimates = [average(adk, md.PCA(select, n_components=4, route=route), frame_weights=weights)
                 for route in ("covariance", "gram")]
    np.testing.assert_allclose(estimates[0].variances.mean, estimates[1].variances.mean, rtol=1e-5)
    gram, covariance = md.principal_components(adk, select), md.principal_components(adk, select, route="covariance")
    assert gram.route == "gram"         # 98 frames, 180 coordinates
    assert gram.overlap(covariance) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(gram.shares, covariance.shares, rtol=1e-4)


def test_drift_looks_like_a_cosine():
    t = (np.arange(400) + 0.5) / 400
    assert md.cosine_content(np.cos(np.pi * t)) == pytest.approx(1)
    assert md.cosine_content(np.stack([t, np.cos(2 * np.pi * t)], axis=1), 1) == pytest.approx(1)
    assert md.cosine_content(np.random.default_rng(0).normal(size=400)) < 0.1
    with pytest.raises(InputError, match="moves"):
        md.cosine_content(np.zeros(10))


# -- numbers of mdtraj ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def traj():
    mdtraj = pytest.importorskip("mdtraj")
    with warnings_held():
        return mdtraj.load_dcd(datafiles.DCD, top=datafiles.PSF)


def test_mdtraj_agrees(adk, traj):
    import mdtraj

    alpha = traj.topology.select("name CA")
    masses = np.array([atom.element.mass for atom in traj.topology.atoms])
    ours = md.average(adk, {"rg": md.RadiusOfGyration("all", weights=None), "heavy": md.RadiusOfGyration("all"),
                            "rmsd": md.RMSD("name CA", reference=3), "rmsf": md.RMSF("name CA", reference=0, corrected=False)},
                      quiet=True)
    np.testing.assert_allclose(ours["rg"].series, 10 * mdtraj.compute_rg(traj), rtol=1e-5)
    np.testing.assert_allclose(ours["heavy"].series, 10 * mdtraj.compute_rg(traj, masses), rtol=1e-4)
    np.testing.assert_allclose(ours["rmsd"].series, 10 * mdtraj.rmsd(traj, traj, 3, atom_indices=alpha), atol=2e-3)
    moved = traj.atom_slice(alpha)
    moved.superpose(moved, 0)
    mean = mdtraj.Trajectory(moved.xyz.mean(0)[None], moved.topology)
    theirs = 10 * mdtraj.rmsf(moved, mean, precentered=False)
    np.testing.assert_allclose(ours["rmsf"].mean, theirs, rtol=2e-3)


def test_surface_of_two_spheres():
    """A frame alone gives what it gives among others, and what the spheres' caps say."""
    import MDAnalysis as mda

    u = mda.Universe.empty(2, 1, atom_resindex=[0, 0], trajectory=True)
    u.add_TopologyAttr("names", ["C", "O"])
    u.add_TopologyAttr("elements", ["C", "O"])
    u.add_TopologyAttr("resids", [1])
    u.load_new(np.tile(np.array([[0, 0, 0], [1.2, 0, 0]], "f4"), (5, 1, 1)))
    a, b, d = 1.7 + 1.4, 1.52 + 1.4, 1.2
    want = 4 * np.pi * (a * a + b * b) - 2 * np.pi * (a * (a - (d * d + a * a - b * b) / (2 * d))
                                                      + b * (b - (d * d + b * b - a * a) / (2 * d)))
    estimate = average(u, md.SASA("all"))
    assert np.ptp(estimate.series) <= 1e-4
    np.testing.assert_allclose(estimate.series, want, rtol=5e-3)
    np.testing.assert_array_equal(average(u, md.SASA("all"), stop=1).series, estimate.series[:1])


def test_surface_is_mdtrajs(adk, traj):
    import mdtraj
    import threadpoolctl

    part = traj[:2].atom_slice(traj.topology.select("resid 0 to 30"))
    again = mdtraj.join([part[0]] * 8 + [part[1]] * 8)      # its first frames are off by 1 % (see SASA)
    with threadpoolctl.threadpool_limits(1, "openmp"):
        theirs = 100 * mdtraj.shrake_rupley(again, n_sphere_points=100, mode="residue")[7::8]
    estimate = average(adk, md.SASA("resid 1:31", level="residue", n_points=100), stop=2)
    np.testing.assert_allclose(estimate.mean, theirs.mean(0), rtol=1e-3, atol=0.5)
    total = average(adk, md.SASA("resid 1:31", n_points=100), stop=2)
    np.testing.assert_allclose(total.series, theirs.sum(1), rtol=1e-4)
    assert total.unit == "Angstrom2"


def test_a_surface_without_mdtraj_says_what_to_install(adk, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mdtraj", None)
    with pytest.raises(MissingExtraError, match=r"ensemblekit\[sasa\]"):
        average(adk, md.SASA())


# -- weights, replicas, engines -----------------------------------------------------------------------------------------------

SCALARS = {"rg": md.RadiusOfGyration("name CA"), "rmsd": md.RMSD("name CA"), "angle": md.Angle(
    "resid 30 and name CA", "resid 90 and name CA", "resid 150 and name CA"), "q": md.NativeContacts("name CA", radius=8.0),
    "torsion": md.Dihedral("resid 10 and name N", "resid 10 and name CA", "resid 10 and name C", "resid 11 and name N")}


def test_weights_of_whole_numbers_are_repetitions(adk, universe):
    """A frame of weight 2 counts as two frames, and one of weight 0 as none, in every mean and fluctuation."""
    weights = np.random.default_rng(2).integers(0, 3, 98).astype(float)
    averages = md.average(adk, {**SCALARS, "rmsf": md.RMSF("name CA", corrected=False),
                                "pca": md.PCA("name CA and resid 1:9", n_components=2)},
                          frame_weights=weights, quiet=True, equilibration=None)
    plain = md.average(adk, SCALARS, quiet=True, equilibration=None)
    for name in SCALARS:
        if name != "torsion":
            assert averages[name].mean == pytest.approx(np.average(plain[name].series, weights=weights), rel=1e-9)
    vector = np.average(np.exp(1j * np.radians(plain["torsion"].series)), weights=weights)
    assert averages["torsion"].mean == pytest.approx(np.degrees(np.angle(vector)), rel=1e-9)
    x = np.array([universe.select_atoms("name CA").positions for _ in universe.trajectory], "f8")
    repeated = np.repeat(x, weights.astype(int), axis=0)
    mean = md.superposed(repeated, x[0]).mean(0)
    moved = md.superposed(repeated, mean)
    np.testing.assert_allclose(averages["rmsf"].mean, np.sqrt(((moved - moved.mean(0)) ** 2).sum(-1).mean(0)), rtol=1e-9)


EVERY = {**SCALARS, "rmsf": md.RMSF("name CA", corrected=False), "rama": md.Ramachandran("resid 1:30"), "ends": md.EndToEnd(),
         "near": md.RadiusOfGyration("protein and around 8 resid 100", updating=True), "map": md.ContactMap("name CA"),
         "far": md.DistanceMap("name CA and resid 1:9"), "bonds": md.HydrogenBonds(), "fold": md.SecondaryStructure(),
         "shape": md.GyrationTensor(), "touch": md.Contacts("name CA", "resid 9", updating=True),
         "pca": md.PCA("name CA and resid 1:9"), "carried": md.RMSD("resid 9", fit="name CA")}


def test_every_engine_gives_the_same_bits(adk):
    """Threads here; for processes and clusters, what is sent there works as well as what stays."""
    results = [md.average(adk, EVERY, engine=engine, quiet=True, step=7) for engine in (ek.Serial(), ek.Threads(3))]
    for name in EVERY:
        np.testing.assert_array_equal(results[0][name].mean, results[1][name].mean)
        np.testing.assert_array_equal(results[0][name].stderr, results[1][name].stderr)
    source = ek.open(adk)
    system = System(source, topology_of(source))
    block = next(iter(next(iter(source.window(5, 8).pieces(["position"], "time", False, 1 << 20))).blocks()))
    for observable in EVERY.values():
        ready = observable.prepare(system)
        map, reducers = pickle.loads(pickle.dumps((ready.map, ready.reducers("auto", "raise"))))
        np.testing.assert_array_equal(map(block), ready.map(block))
        assert list(reducers) == list(ready.reducers("auto", "raise"))


def test_torsions_of_replicas_meet_on_the_circle(tmp_path):
    """One run about 170 degrees, one about -170: together 180, not 0."""
    runs = []
    for k, middle in enumerate((170.0, -170.0)):
        rng = np.random.default_rng(k)
        path = tmp_path / f"{k}.h5md"
        write_torsions(path, middle + 8 * rng.normal(size=200))
        runs.append(path)
    together = ek.open([str(run) for run in runs], as_="replicas")
    estimate = average(together, md.Dihedral("index 0", "index 1", "index 2", "index 3"))
    assert abs(estimate.mean) == pytest.approx(180, abs=2)
    many = average(together, md.Dihedrals((("index 0", "index 1", "index 2", "index 3"),)))
    assert abs(many.mean[0]) == pytest.approx(180, abs=2)
    one = average(runs[0], md.Dihedral("index 0 1 2 3"))
    assert one.mean == pytest.approx(170, abs=2)
    assert one.converged


def write_torsions(path, degrees):
    """A store of four atoms whose torsion goes through these values."""
    import MDAnalysis

    phi = np.radians(degrees)
    x = np.zeros((len(phi), 4, 3))
    x[:, 0], x[:, 2], x[:, 1] = [1, 0, 0], [0, 0, 1.5], [0, 0, 0]
    x[:, 3] = np.stack([np.cos(phi), np.sin(phi), np.full(len(phi), 1.5)], axis=1)
    u = MDAnalysis.Universe.empty(4, trajectory=True)
    u.load_new(x.astype("f4"), dt=1.0)
    file = str(path).replace(".h5md", ".xyz")
    u.add_TopologyAttr("names", ["C1", "C2", "C3", "C4"])
    u.add_TopologyAttr("elements", ["C"] * 4)
    with MDAnalysis.Writer(file, 4) as out:
        for _ in u.trajectory:
            out.write(u.atoms)
    md.ingest(file, None, path, dt=1.0)


# -- edges ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("observable", "words"), [
    (md.RadiusOfGyration("protein", weights="charge"), "weights is"),
    (md.RMSD("index 5"), "2 atoms or more"), (md.RMSF("index 5"), "3 atoms or more"), (md.RMSF("index 5 9"), "fit=False"),
    (md.RMSF("name CA", rounds=0), "rounds"), (md.RMSF("name CA", level="chain"), "level"),
    (md.RMSD("name CA", reference=98), "no frame 98"), (md.RMSD("name CA", reference=np.zeros((3, 3))), "shape"),
    (md.RMSD("name CA", reference="nowhere.pdb"), "nowhere.pdb"), (md.Distances("name CA", "index 1"), "as many atoms"),
    (md.Distance("name XX", "name CA"), "empty"), (md.EndToEnd("index 3"), "2 atoms"),
    (md.Dihedral("index 3 4 5"), "4 are wanted"),
    (md.Angle("index 1", "index 2"), "3 selections"),
    (md.Contacts("name CA", radius=-1.0), "radius"),
    (md.NativeContacts("name CA", radius=2.0), "no contacts"), (md.NativeContacts(method="medium"), "method"),
    (md.PCA("name CA", n_components=0), "n_components"), (md.PCA("name CA", route="svd"), "route"),
    (md.HydrogenBonds(angle=200.0), "angle"), (md.SecondaryStructure("name CA"), "lack"),
    (md.Ramachandran("name CA", bins=0), "bins"),
    (md.HelixContent(state="turn"), "state"), (md.RadiusOfGyration("around x", updating=True), "cannot be read"),
    (md.DistanceMap("name CA", level="chain"), "level"), (md.SASA(level="chain"), "level"),
])
def test_what_cannot_be_done_is_said(adk, observable, words):
    with pytest.raises(InputError, match=words):
        average(adk, observable)


def test_an_atom_on_its_own_and_frames_that_do_not_change(adk):
    alone = average(adk, md.RMSF("index 5", fit=False))
    assert alone.mean.shape == (1,)
    assert alone.mean[0] > 0
    beside = average(adk, md.RMSF("index 5", fit="name CA"))
    assert 0 < beside.mean[0] < alone.mean[0]
    still = average(adk, md.RMSF("name CA"), frames=[4])
    np.testing.assert_allclose(still.mean, 0, atol=1e-5)
    assert not still.converged
    two = average(adk, md.RMSD("index 5 9"))
    assert np.isfinite(two.series).all()


def test_a_frame_with_a_coordinate_that_is_not_a_number(adk, tmp_path):
    """It shows in the series of that frame alone, and the estimate says so."""
    store = ek.open(adk)
    x = np.array(store["position"][:12])
    x[7, 4] = np.nan        # a CA
    path = tmp_path / "broken.h5md"
    with ek.create(path, {"position": ek.Field((3341, 3), "f4", unit="Angstrom", kind="position")}, time_unit="ps",
                   provenance=store.provenance) as opened:
        opened.extend({"position": x}, times=np.arange(12.0))
    averages = md.average(path, {"rg": md.RadiusOfGyration("all"), "rmsd": md.RMSD("name CA"), "n": md.Contacts("name CA"),
                                 "far": md.Distance("index 200", "index 300")}, quiet=True)
    for name in ("rg", "rmsd", "n"):
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(averages[name].series)), [7])
        assert not averages[name].converged
        assert "not finite" in averages[name].verdict
    assert np.isfinite(averages["far"].series).all()


def test_selections_made_anew_in_every_frame(adk, universe):
    text = "protein and around 6 resid 100"
    averages = md.average(adk, {"rg": md.RadiusOfGyration(text, updating=True),
                                "n": md.Contacts("name CA and around 12 resid 100", "name CA", radius=8.0, updating=True),
                                "none": md.Contacts("name CA and prop x > 1e6", "name CA", updating=True)}, quiet=True, step=20)
    group = universe.select_atoms(text, updating=True)
    near = universe.select_atoms("name CA and around 12 resid 100", updating=True)
    alpha = universe.select_atoms("name CA")
    want, counts = [], []
    for _ in universe.trajectory[::20]:
        want.append(group.radius_of_gyration())
        d = np.linalg.norm(near.positions[:, None].astype("f8") - alpha.positions[None], axis=2) <= 8
        pairs = {tuple(sorted((int(near.indices[i]), int(alpha.indices[j])))) for i, j in zip(*np.nonzero(d), strict=True)}
        counts.append(sum(i != j for i, j in pairs))
    np.testing.assert_allclose(averages["rg"].series, want, rtol=1e-6)
    np.testing.assert_array_equal(averages["n"].series, counts)
    assert (averages["none"].series == 0).all()


def test_replicas_move_about_one_mean_structure(adk):
    """Halves of a run as replicas: the mean squares of the whole run come out, drift between the halves included."""
    frames = md.read(datafiles.PSF, datafiles.DCD)
    halves = ek.ReplicaSet.of([frames.window(0, 49), frames.window(49, 98)])
    observables = {"rmsf": md.RMSF("name CA", corrected=False), "pca": md.PCA("name CA and resid 1:20", n_components=3)}
    whole, parts = (md.average(source, observables, quiet=True, equilibration=None) for source in (adk, halves))
    np.testing.assert_allclose(parts["rmsf"].bfactor.mean, whole["rmsf"].bfactor.mean, rtol=1e-3)
    np.testing.assert_allclose(parts["pca"].variances.mean, whole["pca"].variances.mean, rtol=1e-3)


def test_frames_without_weight_take_no_part(adk):
    weights = np.r_[np.zeros(40), np.ones(58)]
    some = average(adk, md.RMSF("name CA"), frame_weights=weights)
    assert np.isfinite(some.stderr).all()
    first = np.array(ek.open(adk)["position"][0])
    np.testing.assert_allclose(
        average(adk, md.RMSF("name CA", corrected=False), frame_weights=weights).mean,
        average(adk, md.RMSF("name CA", reference=first, corrected=False), start=40).mean, rtol=1e-9)
    short = average(adk, md.RMSF("name CA"), stop=3)        # too short to tell what is to be put back
    np.testing.assert_array_equal(short.mean, average(adk, md.RMSF("name CA", corrected=False), stop=3).mean)
    assert not short.converged


def test_the_finite_sample_correction_finds_the_true_fluctuation():
    """Harmonic atoms, 40 short runs of correlated frames: the plain mean square is low by 1 / n_eff, the corrected is not."""
    from ensemblekit.averaging.moments import Moments
    from ensemblekit.averaging.run import partials
    from ensemblekit.md.observables.base import Reading
    from ensemblekit.md.observables.rmsf import SharesKept, fluctuation

    rng = np.random.default_rng(3)
    n, phi = 512, 0.9
    noise = rng.normal(size=(n, 60, 3)) * np.sqrt(1 - phi**2)
    x = np.empty_like(noise)
    x[0] = rng.normal(size=(60, 3))
    for t in range(1, n):
        x[t] = phi * x[t - 1] + noise[t]
    source = ek.ArraySource.of({"x": x})
    reading = Reading(partials(source, {"moments": ("x", Moments())})[0], None, 0.95)
    shares = SharesKept(1)
    plain, corrected = (fluctuation("bfactor", None, flag, shares, reading).mean / (8 * np.pi**2) for flag in (False, True))
    g = (1 + phi) / (1 - phi)
    assert plain.mean() == pytest.approx(1 - g / n, abs=3 * np.sqrt(2 * g / n / 180))
    assert abs(corrected.mean() - 1) < abs(plain.mean() - 1) / 2 + 0.01
