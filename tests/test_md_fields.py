"""Fields and potentials of trajectories: known figures, places, exclusions, groups, surfaces, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.errors import EnsemblekitError, InputError
from tests.field_oracles import ATOM_0, COULOMB, MIDPOINT, SODIUM, between_planes

mda = pytest.importorskip("MDAnalysis")
datafiles = pytest.importorskip("MDAnalysisTests.datafiles")
BOND = md.Midpoint("index 0", "index 1")
TIGHT = {"tolerance": 1e-9}


@pytest.fixture(scope="module")
def water() -> Any:
    return md.read(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)


def charged(positions: np.ndarray, charges: np.ndarray, box: np.ndarray | None = None, bonds: Any = None,
            residues: Any = None) -> Any:
    """A Universe of (frames, atoms, 3) positions; each atom a residue of its own unless said."""
    n = positions.shape[1]
    of = np.arange(n) if residues is None else np.asarray(residues)
    u = mda.Universe.empty(n, n_residues=int(of.max()) + 1, atom_resindex=of, trajectory=True)
    u.add_TopologyAttr("charges", charges)
    u.add_TopologyAttr("names", [f"A{k}" for k in range(n)])
    u.add_TopologyAttr("resnames", ["ION"] * (int(of.max()) + 1))
    if bonds is not None:
        u.add_TopologyAttr("bonds", bonds)
    u.load_new(np.asarray(positions, np.float32), dimensions=box, dt=1.0)
    return u


def averages(source: Any, **observables: Any) -> Any:
    return md.average(source, observables, equilibration=None)


def test_at_an_atom_of_a_very_skew_cell(water: Any) -> None:
    results = md.average(water, {"E": md.ElectricField("index 0", exclude="self", **TIGHT),
                                 "V": md.ElectricPotential("index 0", exclude="self", **TIGHT)}, stop=1)
    np.testing.assert_allclose(results["E"].mean, [ATOM_0["field"]], rtol=0, atol=1e-6)
    np.testing.assert_allclose(results["V"].mean, [ATOM_0["potential"]], rtol=0, atol=1e-6)
    assert "375 charges act, neutral together" in results.notes[0]


def test_on_a_bond_by_every_convention(water: Any) -> None:
    results = averages(water, E=md.ElectricField(BOND, along="bond", **TIGHT),
                       vacuum=md.ElectricField(BOND, along="bond", surface="vacuum", **TIGHT),
                       nearest=md.ElectricField(BOND, along="bond", method="nearest"), V=md.ElectricPotential(BOND, **TIGHT))
    projection = results["E"].projection
    assert projection.mean == pytest.approx(MIDPOINT["mean"], abs=1e-6)
    assert projection.series.std(ddof=1) == pytest.approx(MIDPOINT["sd"], abs=1e-6)
    assert results["vacuum"].projection.mean == pytest.approx(MIDPOINT["vacuum"], abs=1e-6)
    assert results["nearest"].projection.mean == pytest.approx(MIDPOINT["nearest"], abs=1e-6)
    assert results["V"].mean == pytest.approx(MIDPOINT["potential"], abs=1e-6)
    assert results["V"].series[0] == pytest.approx(MIDPOINT["potential_0"], abs=1e-6)
    first = md.average(water, {"E": md.ElectricField(BOND, **TIGHT)}, stop=1)["E"]
    np.testing.assert_allclose(first.mean, MIDPOINT["field_0"], rtol=0, atol=1e-6)
    assert first.magnitude.mean == pytest.approx(np.linalg.norm(MIDPOINT["field_0"]), abs=1e-6)


def test_numbers_of_a_frame_have_series_times_and_all_estimators(water: Any) -> None:
    estimate = averages(water, E=md.ElectricField(BOND, along="bond", stark=0.05, unit="MV/cm"))["E"]
    for name in ("projection", "angle", "magnitude", "shift"):
        one = estimate.derived[name]
        assert one.series.shape == (10,)
        assert len(one.times) == 10
        assert len(one.estimators) == 5
    assert estimate.unit == "MV cm-1"
    assert estimate.projection.mean == pytest.approx(100 * MIDPOINT["mean"], abs=0.05)
    np.testing.assert_allclose(estimate.shift.series, -0.05 * 16.79200537 * estimate.projection.series)
    cosine = estimate.projection.series / estimate.magnitude.series
    np.testing.assert_allclose(np.cos(np.radians(estimate.angle.series)), cosine, atol=1e-12)


@pytest.mark.skipif("ENSEMBLEKIT_DATA" not in os.environ, reason="ENSEMBLEKIT_DATA is not set")
def test_an_ion_near_dna() -> None:
    folder = Path(os.environ["ENSEMBLEKIT_DATA"]) / "md_dna_tpr"
    source = md.read(str(folder / "topology.tpr"), str(folder / "ref_image.xtc"))
    results = md.average(source, {"E": md.ElectricField("index 29471", exclude="self", tolerance=1e-7),
                                  "V": md.ElectricPotential("index 29471", exclude="self", tolerance=1e-7)}, stop=1)
    np.testing.assert_allclose(results["E"].mean, [SODIUM["field"]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(results["V"].mean, [SODIUM["potential"]], rtol=0, atol=1e-5)


def planes(density: float, distance: float, side: float, height: float) -> tuple[Any, np.ndarray]:
    """Two planes of 8 x 8 charges; each pair is a molecule."""
    x = (np.arange(8) + 0.5) * side / 8
    flat = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    low = np.column_stack([flat, np.full(64, 0.5 * (height - distance))])
    positions = np.concatenate([low, low + np.array([0, 0, distance])])[None]
    q = density * side**2 / 64
    universe = charged(positions, np.repeat([q, -q], 64), np.array([side, side, height, 90, 90, 90.0]),
                       [(k, k + 64) for k in range(64)])
    middle = [[0.3 * side, 0.4 * side, 0.5 * height], [0.3 * side, 0.4 * side, 0.0]]
    return universe, np.array(middle)


def test_planes_of_charge() -> None:
    density, distance, side, height = 0.01, 20.0, 16.0, 64.0
    universe, points = planes(density, distance, side, height)
    results = averages(universe, E=md.ElectricField(points, **TIGHT), slab=md.ElectricField(points, surface="slab-z", **TIGHT),
                       V=md.ElectricPotential([[0, 0, 0.5], [0, 0, 63.5]], surface="slab-z", **TIGHT))
    inside, outside = between_planes(density, distance, height)
    # the grid of charges is seen as exp(-2 pi z / spacing), 1e-13 half-way between the planes
    np.testing.assert_allclose(results["E"].mean[:, 2] / COULOMB, [inside, outside], rtol=0, atol=1e-8)
    np.testing.assert_allclose(results["E"].mean[:, :2], 0, atol=1e-7)
    np.testing.assert_allclose(results["slab"].mean[:, 2] / COULOMB, [4 * np.pi * density, 0], rtol=0, atol=1e-8)
    drop = results["V"].mean[1] - results["V"].mean[0]
    assert drop == pytest.approx(-4 * np.pi * COULOMB * density * distance, abs=1e-6)


@pytest.mark.parametrize("method", ["ewald", "nearest"])
def test_groups_add_up_to_the_total_of_a_run_without_them(water: Any, method: Any) -> None:
    at = "index 0 1 2"
    options = {"method": method, "exclude": 1}
    plain = averages(water, E=md.ElectricField(at, **options), V=md.ElectricPotential(at, **options))
    named = {"first": "index 0:9", "second": "index 10:20"}
    for by, count in (("resname", 1), ("residue", 1), ("molecule", 125), (named, 3)):
        results = averages(water, E=md.ElectricField(at, by=by, **options), V=md.ElectricPotential(at, by=by, **options))
        shares = results["E"].groups
        assert shares.mean.shape == (count, 3, 3)
        assert list(shares.coords) == ["group", "atom", "component"]
        np.testing.assert_allclose(shares.mean.sum(axis=0), plain["E"].mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(results["E"].mean, plain["E"].mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(results["V"].groups.mean.sum(axis=0), plain["V"].mean, rtol=0, atol=1e-10)


def test_surface_terms_are_shared_by_groups_of_molecules(water: Any) -> None:
    plain = averages(water, E=md.ElectricField(BOND, along="bond", surface="vacuum"))["E"]
    shared = averages(water, E=md.ElectricField(BOND, along="bond", surface="vacuum", by="molecule"))["E"]
    assert shared.groups.mean.shape == (125,)
    assert shared.groups.mean.sum() == pytest.approx(plain.projection.mean, abs=1e-10)
    assert list(shared.groups.coords["group"][0][:2]) == ["molecule 0", "molecule 1"]


def test_of_two_charges_without_a_box() -> None:
    universe = charged(np.array([[[0.0, 0, 0], [3.0, 0, 0]]]), np.array([2.0, -1.0]))
    results = averages(universe, E=md.ElectricField([[1.0, 0, 0]]), V=md.ElectricPotential([[1.0, 0, 0]]),
                       at=md.ElectricField("index 0", by="residue"))
    assert results["E"].mean[0] == pytest.approx([COULOMB * (2 / 1 + 1 / 4), 0, 0])
    assert results["V"].mean[0] == pytest.approx(COULOMB * (2 / 1 - 1 / 2))
    assert results["at"].mean[0] == pytest.approx([COULOMB / 9, 0, 0])
    assert any("no box" in note for note in results.notes)


def test_whose_charges_do_not_act() -> None:
    places = np.array([[[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0], [4.0, 0, 0]]])
    universe = charged(places, np.ones(5), bonds=[(0, 1), (1, 2), (2, 3)], residues=[0, 0, 1, 1, 2])

    def at_first(exclude: Any) -> float:
        return float(averages(universe, V=md.ElectricPotential("index 0", exclude=exclude))["V"].mean[0]) / COULOMB

    parts = np.array([1.0, 1 / 2, 1 / 3, 1 / 4])
    for exclude, acting in ((None, [1, 1, 1, 1]), ("self", [1, 1, 1, 1]), ("residue", [0, 1, 1, 1]), ("molecule", [0, 0, 0, 1]),
                            (0, [1, 1, 1, 1]), (1, [0, 1, 1, 1]), (2, [0, 0, 1, 1]), (3, [0, 0, 0, 1]),
                            ("index 1 4", [0, 1, 1, 0])):
        assert at_first(exclude) == pytest.approx(parts @ acting), exclude


def test_no_frame_needs_to_be_wrapped_or_whole(water: Any) -> None:
    u = mda.Universe(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)
    wanted = {"E": md.ElectricField(BOND, along="bond", tolerance=1e-6),
              "c": md.ElectricField(md.Center("index 0:2"), tolerance=1e-6)}
    results = averages(water, **wanted)
    rng = np.random.default_rng(1)
    frames = np.stack([ts.positions + rng.integers(-2, 3, (375, 3)) @ ts.triclinic_dimensions for ts in u.trajectory])
    boxes = np.stack([ts.dimensions for ts in u.trajectory])
    u.load_new(frames.astype(np.float32), dimensions=boxes)
    moved = averages(u, **wanted)
    np.testing.assert_allclose(moved["E"].mean, results["E"].mean, atol=2e-4)       # float32 positions, further away
    np.testing.assert_allclose(moved["c"].mean, results["c"].mean, atol=2e-4)
    assert moved["E"].projection.mean == pytest.approx(results["E"].projection.mean, abs=2e-4)


def test_centers_and_directions_between_groups(water: Any) -> None:
    center = md.Center("index 0 1 2")
    results = averages(water, a=md.ElectricField(center, along=("index 0", "index 1 2")),
                       b=md.ElectricField(center, along=[0, 0, -2.0]))
    assert results["a"].mean.shape == (3,)
    assert results["b"].projection.mean == pytest.approx(-results["b"].mean[2])
    assert results["a"].projection.mean != pytest.approx(results["b"].projection.mean)


def test_attached_points_go_with_a_tumbling_molecule() -> None:
    rng = np.random.default_rng(2)
    body = rng.normal(0, 2, (6, 3))
    q = rng.normal(size=6)
    frames = []
    for k in range(5):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if k else np.eye(3)
        turn = turn * np.sign(np.linalg.det(turn))
        frames.append(body @ turn + 3 * rng.normal(size=3) * bool(k))
    universe = charged(np.array(frames), q)
    point = np.array([[6.0, 1.0, 2.0]])
    results = averages(universe, V=md.ElectricPotential(md.Attached(point, "all")), fixed=md.ElectricPotential(point))
    expected = COULOMB * float((q / np.linalg.norm(point - body, axis=1)).sum())
    assert results["V"].mean[0] == pytest.approx(expected, rel=1e-5)
    assert results["V"].stderr[0] < 1e-5 * abs(expected)
    assert results["fixed"].stderr[0] > 1e-3 * abs(expected)


def test_points_of_each_frame() -> None:
    positions = np.zeros((4, 1, 3))
    points = np.arange(1, 5.0)[:, None, None] * np.array([1.0, 0, 0])
    universe = charged(positions, np.ones(1))
    estimate = averages(universe, V=md.ElectricPotential(points))["V"]
    assert estimate.mean[0] == pytest.approx(COULOMB * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    with pytest.raises(InputError, match=r"4 frames are averaged; got shape \(3, 1, 3\)"):
        averages(universe, V=md.ElectricPotential(points[:3]))


def test_charges_chosen_anew_in_every_frame() -> None:
    frames = np.array([[[0.0, 0, 0], [2.0, 0, 0], [9.0, 0, 0]], [[0.0, 0, 0], [8.0, 0, 0], [3.0, 0, 0]]])
    universe = charged(frames, np.array([0.0, 1.0, 1.0]))
    estimate = averages(universe, V=md.ElectricPotential("index 0", "around 5 index 0", updating=True))["V"]
    assert estimate.mean[0] == pytest.approx(COULOMB * (1 / 2 + 1 / 3) / 2)


def test_weights_replicas_and_engines(water: Any) -> None:
    wanted = {"E": md.ElectricField("index 0 1", by="molecule"), "V": md.ElectricPotential(BOND)}
    one = md.average(water, wanted, engine=ek.Serial(), equilibration=None)
    two = md.average(water, wanted, engine=ek.Threads(3), equilibration=None)
    np.testing.assert_array_equal(one["E"].groups.mean, two["E"].groups.mean)
    np.testing.assert_array_equal(one["V"].series, two["V"].series)
    weighted = md.average(water, wanted, frame_weights=np.arange(10.0), equilibration=None)
    series = one["V"].series
    assert weighted["V"].mean == pytest.approx(np.arange(10) @ series / 45)
    both = md.average(ek.ReplicaSet((water.window(0, 4), water.window(4, 10))), wanted, equilibration=None)
    assert both["V"].mean == pytest.approx(series.mean(), abs=1e-5)     # the split is of another frame
    assert len(both["V"].runs) == 2


def test_the_potential_does_not_depend_on_how_the_box_breathes_but_by_its_size() -> None:
    frames = np.array([[[1.0, 1, 1]], [[1.0, 1, 1]]])
    universe = charged(frames, np.ones(1), np.array([[10, 10, 10, 90, 90, 90], [12, 12, 12, 90, 90, 90]], np.float32))
    results = averages(universe, V=md.ElectricPotential("index 0", **TIGHT))
    expected = -2.8372974795 * COULOMB * (1 / 10 + 1 / 12) / 2
    assert results["V"].mean[0] == pytest.approx(expected, abs=1e-6)
    assert "a uniform background of -1 e makes the cell neutral" in results.notes[0]


def test_what_cannot_be(water: Any) -> None:
    field, potential = md.ElectricField, md.ElectricPotential
    open_water = charged(np.random.default_rng(1).normal(size=(3, 4, 3)) * 5, np.array([1.0, -1, 1, -1]))
    uncharged = charged(np.zeros((2, 2, 3)), np.zeros(2))
    without = mda.Universe.empty(2, trajectory=True)
    cases = [
        (water, field(BOND, method="pme"), "method=.*is one of 'auto', 'ewald'"),
        (water, field(BOND, surface="wet"), "surface=.*'tinfoil'"),
        (water, field(BOND, unit="V/m"), r"unit=.*'V Angstrom-1'"),
        (water, field(BOND, tolerance=0), "tolerance=.*1e-13 to 1"),
        (water, field(BOND, exclude=-1), "exclude=.*number of bonds"),
        (water, field(BOND, by="atom"), "by=.*'residue'"),
        (water, field(BOND, by={"a": "index 0:5", "b": "index 5:7"}), "do not overlap"),
        (water, field("index 0", along="bond"), "goes with md.Midpoint"),
        (water, field(BOND, along="bonds"), 'along= is "bond"'),
        (water, field(BOND, along=[0, 0, 0]), "not all 0"),
        (water, field(BOND, stark=1.0), "say along="),
        (water, field(BOND, along="bond", stark=float("nan")), "difference dipole in debye"),
        (water, field(BOND, stark=[0.0, 0, 0]), "stark= is three finite numbers, not all 0"),
        (water, field(BOND, stark=[1.0, 2.0]), "stark= is three finite numbers"),
        (water, field(BOND, stark=[1.0, 2.0, float("nan")]), "stark= is three finite numbers"),
        (water, field(BOND, along="bond", stark="big"), "difference dipole in debye"),
        (water, field(BOND, along=[float("nan"), 0, 1]), "along= is three finite numbers"),
        (water, field(BOND, tolerance=float("nan")), "tolerance=.*1e-13 to 1"),
        (water, potential(np.full((10, 1, 3), np.nan)), "those of frame 0 are not"),
        (water, potential(np.zeros((3, 1, 3))), "10 frames are averaged"),
        (water, field(md.Midpoint("index 0", "index 1 2")), "has 2. Of groups"),
        (water, field(md.Midpoint("index 0", "index 0")), "one and the same atom"),
        (water, field(md.Midpoint), "a place is a selection"),
        (water, field(np.zeros((2, 2))), r"points are \(points, 3\)"),
        (water, field([[0, 0, np.nan]]), "points are finite"),
        (water, field("index 0", updating=True), "by= gives the share"),
        (water, field("index 0", "index 0:374", surface="vacuum", method="nearest"), "method=\"ewald\""),
        (water, potential("index 0", "index 0:3", surface="vacuum"), "molecules are charged"),
        (open_water, field("index 0", method="ewald"), "these frames have none"),
        (uncharged, field("index 0"), "are 0, so there is no field"),
        (without, field("index 0"), "no charges"),
        (water, field(md.Attached([[0, 0, 0]], "index 0 1")), "three atoms or more"),
    ]
    for source, observable, message in cases:
        with pytest.raises(InputError, match=message):
            averages(source, x=observable)


def test_a_place_on_a_charge_names_frame_place_and_atom(water: Any) -> None:
    at = np.asarray(mda.Universe(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC).atoms.positions[[100, 7]], float)
    with pytest.raises(EnsemblekitError, match=r"frame 0.*place 1 lies within 0.01 angstrom of atom 7, whose charge acts"):
        averages(water, E=md.ElectricField(at + np.array([[0.5, 0, 0], [0, 0, 0]])))


def test_a_cut_that_makes_no_whole_charge_is_told(water: Any) -> None:
    results = averages(water, E=md.ElectricField("index 374", "index 0 1"))
    assert "no whole number: the selection cuts molecules" in results.notes[0]


def test_water_and_many_alike_are_one_group_of_residues() -> None:
    rng = np.random.default_rng(5)
    n = 63
    u = mda.Universe.empty(n, n_residues=n, atom_resindex=np.arange(n), trajectory=True)
    u.add_TopologyAttr("charges", rng.normal(size=n))
    u.add_TopologyAttr("resnames", ["ALA"] * 3 + ["NA"] * 60)
    u.add_TopologyAttr("resids", [*range(1, 4), *range(1, 61)])
    u.add_TopologyAttr("bonds", [(0, 1), (1, 2)])
    u.load_new(rng.normal(0, 10, (2, n, 3)).astype(np.float32))
    estimate = averages(u, E=md.ElectricField("index 0", by="residue"))["E"]
    assert list(estimate.groups.coords["group"][0]) == ["ALA1", "ALA2", "ALA3", "NA"]


def test_fixed_points_are_noted_where_the_solute_moves_away() -> None:
    u = mda.Universe(datafiles.PSF, datafiles.DCD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = md.average(u, {"V": md.ElectricPotential([[60.0, 60, 60]])}, frames=[0, 97], equilibration=None)
    assert any("md.Attached(xyz, selection) takes points and vectors along" in note for note in results.notes)


def test_a_difference_dipole_that_is_a_vector_turns_with_its_molecule(water: Any) -> None:
    bond = averages(water, number=md.ElectricField(BOND, along=[0, 0, 2.0], stark=0.5),
                    vector=md.ElectricField(BOND, stark=[0, 0, 0.5], unit="MV/cm"))
    np.testing.assert_allclose(bond["vector"].shift.series, bond["number"].shift.series, rtol=1e-12)
    assert bond["vector"].shift.series == pytest.approx(-0.5 * 16.79200537 * 100 * bond["number"].projection.series)
    rng = np.random.default_rng(2)
    body, q = rng.normal(0, 2, (6, 3)), rng.normal(size=6)
    frames, turns = [], []
    for k in range(4):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if k else np.eye(3)
        turns.append(turn * np.sign(np.linalg.det(turn)))
        frames.append(body @ turns[-1] + 3 * rng.normal(size=3) * bool(k))
    universe = charged(np.array(frames), q)
    point, dipole = np.array([[6.0, 1.0, 2.0], [-5.0, 4.0, 0.0]]), np.array([0.3, -0.2, 0.6])
    found = averages(universe, attached=md.ElectricField(md.Attached(point, "all"), stark=dipole),
                     fixed=md.ElectricField(md.Attached(point, "all"), along=dipole))
    way = point[:, None] - body
    first = COULOMB * (way * q[:, None] / np.linalg.norm(way, axis=2)[..., None] ** 3).sum(axis=1)
    assert found["attached"].shift.mean == pytest.approx(-1679.200537 * first @ dipole, rel=1e-4)
    assert (found["attached"].shift.stderr < 1e-4 * np.abs(found["attached"].shift.mean)).all()
    assert (found["fixed"].projection.stderr > 1e-2 * np.abs(found["fixed"].projection.mean)).all()


def test_points_of_each_frame_follow_the_frames_that_are_chosen() -> None:
    points = np.arange(1, 7.0)[:, None, None] * np.array([1.0, 0, 0])
    universe = charged(np.zeros((6, 1, 3)), np.ones(1))
    for options, chosen in (({"start": 2}, [2, 3, 4, 5]), ({"step": 2}, [0, 2, 4]), ({"frames": [1, 5]}, [1, 5])):
        found = md.average(universe, {"V": md.ElectricPotential(points[chosen])}, equilibration=None, **options)["V"]
        assert found.mean[0] == pytest.approx(COULOMB * np.mean(1 / (1.0 + np.array(chosen)))), options


def test_the_same_bits_on_every_engine(water: Any) -> None:
    """Of all observables of charges; processes of their own too."""
    wanted = {"E": md.ElectricField(BOND, along="bond", by="molecule", stark=0.1), "V": md.ElectricPotential("index 0 1"),
              "vacuum": md.ElectricPotential(BOND, surface="vacuum"), "near": md.ElectricField("index 5", method="nearest"),
              "map": md.PotentialMap(4.0, center="index 0:2"), "profile": md.PotentialProfile("z"),
              "energy": md.ElectrostaticEnergy("index 0:2", "index 3:374", by="molecule")}
    one, *others = (md.average(water, wanted, engine=engine, equilibration=None)
                    for engine in (ek.Serial(), ek.Threads(3), ek.Processes(2)))
    for other in others:
        for name in one:
            np.testing.assert_array_equal(one[name].mean, other[name].mean, err_msg=name)
            np.testing.assert_array_equal(one[name].stderr, other[name].stderr, err_msg=name)


def test_frames_that_are_no_numbers_are_named() -> None:
    rng = np.random.default_rng(1)
    x, box = rng.uniform(0, 9, (3, 4, 3)), np.tile([9, 9, 9, 90, 90, 90.0], (3, 1)).astype(np.float32)
    hole = x.copy()
    hole[1, 2] = np.nan
    flat = box.copy()
    flat[2, 2] = 0.0
    q = np.array([1.0, -1.0, 0.5, -0.5])
    for observable in (md.ElectricField([[1.0, 2, 3]]), md.ElectricPotential([[1.0, 2, 3]]), md.PotentialMap(3.0),
                       md.ElectricField([[1.0, 2, 3]], method="nearest"), md.PotentialProfile(n_bins=5),
                       md.ElectrostaticEnergy("index 0", "index 1 2 3")):
        with pytest.raises(EnsemblekitError, match=r"frame 1 .*atom 2 has coordinates that are not finite"):
            averages(charged(hole, q, box), E=observable)
        with pytest.raises(EnsemblekitError, match=r"frame 2 .*(no volume|box)"):
            averages(charged(x, q, flat), E=observable)


def test_one_frame_has_no_error_and_says_so(water: Any) -> None:
    wanted = {"E": md.ElectricField(BOND, along="bond"), "energy": md.ElectrostaticEnergy("index 0", "index 3:5")}
    found = md.average(water, wanted, stop=1)
    for one in (found["E"].projection, found["energy"]):
        assert np.isnan(one.stderr)
        assert not one.converged


def test_a_particle_mesh_gives_the_same(water: Any) -> None:
    """torch-pme's Ewald calculator: potentials at the charges, themselves left out."""
    torchpme = pytest.importorskip("torchpme")
    torch = pytest.importorskip("torch")
    u = mda.Universe(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)
    x, q = torch.tensor(u.atoms.positions.astype(float)), torch.tensor(u.atoms.charges.astype(float))[:, None]
    cell = torch.tensor(u.trajectory[0].triclinic_dimensions.astype(float))
    from MDAnalysis.lib.distances import self_capped_distance

    pairs, away = self_capped_distance(u.atoms.positions, 5.0, box=u.dimensions)
    calculator = torchpme.EwaldCalculator(torchpme.CoulombPotential(smearing=0.8), lr_wavelength=0.4)
    theirs = 2 * COULOMB * calculator(q, cell, x, torch.tensor(pairs), torch.tensor(away)).ravel()      # theirs: half of it
    found = md.average(water, {"V": md.ElectricPotential("all", exclude="self", tolerance=1e-7)}, stop=1)["V"]
    np.testing.assert_allclose(found.mean, theirs, rtol=0, atol=1e-4 * np.std(found.mean))


@pytest.mark.skipif(shutil.which("gmx") is None, reason="GROMACS is not installed")
def test_charge_times_field_is_the_force_of_gromacs(water: Any, tmp_path: Path) -> None:
    """Ions of the skew cell without Lennard-Jones, PME of order 8: force over charge."""
    u = mda.Universe(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)
    charges = np.round(np.asarray(u.atoms.charges), 3)
    kinds = sorted(set(charges))
    names = [f"Q{kinds.index(one)}" for one in charges]
    types = "".join(f"Q{k} 1 1.0 0.0 A 0.0 0.0\n" for k in range(len(kinds)))
    molecules = "".join(f"[ moleculetype ]\nQ{k} 0\n[ atoms ]\n1 Q{k} 1 ION Q{k} 1 {one:.3f} 1.0\n"
                        for k, one in enumerate(kinds))
    (tmp_path / "top.top").write_text("[ defaults ]\n1 2 no 1.0 1.0\n[ atomtypes ]\n" + types + molecules
                                      + "[ system ]\nions\n[ molecules ]\n" + "".join(f"{name} 1\n" for name in names))
    u.atoms.write(str(tmp_path / "conf.gro"))
    (tmp_path / "md.mdp").write_text(
        "integrator = md\nnsteps = 0\ncutoff-scheme = Verlet\ncoulombtype = PME\npme-order = 8\nfourierspacing = 0.04\n"
        "ewald-rtol = 1e-7\nrcoulomb = 0.9\nrvdw = 0.9\nnstfout = 1\nnstxout = 1\nverlet-buffer-tolerance = -1\nrlist = 0.9\n")
    for command in (["grompp", "-f", "md.mdp", "-c", "conf.gro", "-p", "top.top", "-o", "run.tpr", "-maxwarn", "9"],
                    ["mdrun", "-deffnm", "run", "-nt", "1", "-rerun", "conf.gro"]):
        subprocess.run(["gmx", "-quiet", *command], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    run = mda.Universe(str(tmp_path / "run.tpr"), str(tmp_path / "run.trr"))
    forces = run.trajectory[0].forces / 96.485332123        # kJ / (mol angstrom) to eV / angstrom
    found = md.average(run, {"E": md.ElectricField("all", exclude="self", tolerance=1e-7)})["E"]
    theirs = forces / np.asarray(run.atoms.charges)[:, None]
    assert np.sqrt(((found.mean - theirs) ** 2).mean()) < 1e-5 * np.sqrt((found.mean**2).mean())
