"""Figures of fields, and the verb that makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.cli import main
from ensemblekit.errors import InputError
from ensemblekit.plot import fields

datafiles = pytest.importorskip("MDAnalysisTests.datafiles")
WATER = (datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)


def shell(capsys: Any, monkeypatch: Any, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["ensemblekit", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_projection_and_groups_are_drawn() -> None:
    averages = md.average(md.read(*WATER), {
        "E": md.ElectricField(md.Midpoint("index 0", "index 1"), along="bond", by="molecule"),
        "V": md.ElectricPotential("index 0", by="molecule"), "atoms": md.ElectricField("index 0 1")})
    axes = fields.projection(averages["E"])
    assert axes.shape == (2,)
    assert sum(one.get_width() for one in axes[1].patches[:5]) <= 10
    ax = fields.strongest(averages["E"], most=7)
    widths = [abs(bar.get_width()) for bar in ax.patches]
    assert len(widths) == 7
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(np.abs(averages["E"].groups.mean).max())
    assert len(fields.strongest(averages["V"]).patches) == 20
    with pytest.raises(InputError, match="no series to draw"):
        fields.projection(averages["atoms"])
    with pytest.raises(InputError, match="by= with along="):
        fields.strongest(averages["atoms"])


def test_the_verb_gives_what_the_function_gives(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    words = ["--bond", "index 0; index 1", "--by", "molecule", "--unit", "MV/cm", "--stark", "0.05", "--potential"]
    code, out, _ = shell(capsys, monkeypatch, "md", "field", *WATER, *words, "--plot", str(tmp_path / "figures"), "--json", "-")
    assert code == 0
    document = json.loads(out)["results"]["estimates"]
    bond = md.Midpoint("index 0", "index 1")
    same = md.average(md.read(*WATER), {"E": md.ElectricField(bond, along="bond", unit="MV cm-1")})["E"]
    assert document["field"]["derived"]["projection"]["mean"] == pytest.approx(same.projection.mean)
    assert len(document["field"]["derived"]["groups"]["mean"]) == 125
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"field", "projection", "groups"}


def test_places_of_the_shell(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    table = tmp_path / "points.txt"
    table.write_text("# x y z\n1 2 3\n4 5 6\n")
    code, out, _ = shell(capsys, monkeypatch, "md", "field", *WATER, "--points", str(table), "--exclude", "none", "--json", "-")
    assert code == 0
    assert np.shape(json.loads(out)["results"]["estimates"]["field"]["mean"]) == (2, 3)
    table.write_text("1 2\n")
    for words, message in (((), "say where, by one of"), (("--at", "index 0", "--center", "index 0"), "got --at, --center"),
                           (("--bond", "index 0"), "two selections of one atom each"), (("--points", str(table)), "this has 2"),
                           (("--at", "index 0", "--surface", "wet"), "surface=")):
        code, _, err = shell(capsys, monkeypatch, "md", "field", *WATER, *words)
        assert code == 2
        assert message in " ".join(err.split())


def test_maps_profiles_and_arrows_of_the_shell(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("map.dx", "arrows.pml", "arrows.tcl")}
    words = ["--map", str(files["map.dx"]), "--spacing", "4", "--profile", "z", "--center", "index 0:2", "--plot",
             str(tmp_path / "figures")]
    code, out, err = shell(capsys, monkeypatch, "md", "field", *WATER, *words, "--json", "-")
    assert code == 0, err
    found = json.loads(out)["results"]["estimates"]
    assert list(found) == ["profile"]
    assert len(found["profile"]["mean"]) == 200
    assert files["map.dx"].read_text().count("delta") == 3
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"field", "map"}
    np.save(tmp_path / "points.npy", np.random.default_rng(1).uniform(0, 9, (10, 2, 3)))
    for name in ("arrows.pml", "arrows.tcl"):
        words = ["--points", str(tmp_path / "points.npy"), "--exclude", "none", "--stark", "0,0,0.5"]
        words += ["--pymol", str(files[name])]
        code, out, err = shell(capsys, monkeypatch, "md", "field", *WATER, *words, "--json", "-")
        assert code == 0, err
        assert np.shape(json.loads(out)["results"]["estimates"]["field"]["derived"]["shift"]["mean"]) == (2,)
    assert files["arrows.tcl"].read_text().count("draw cone") == 2
    np.save(tmp_path / "words.npy", np.array(["a"], dtype=object))
    new = str(tmp_path / "new")
    for words, message in ((["--map", f"{new}.ccp4"], ".dx or .cube"), (["--map", str(files["map.dx"])], "--overwrite"),
                           (["--map", f"{new}.dx", "--pymol", f"{new}.pml"], "say where"),
                           (["--at", "index 0", "--pymol", f"{new}.pdb"], ".pml (PyMOL) or .tcl (VMD)"),
                           (["--at", "index 0", "--stark", "1,2"], "three with commas"),
                           (["--points", str(tmp_path / "words.npy")], "no array of numbers")):
        code, _, err = shell(capsys, monkeypatch, "md", "field", *WATER, *words)
        assert code == 2
        assert message in " ".join(err.split())
    assert not list(tmp_path.glob("new*"))


def test_arrows_lie_at_their_places_and_point_along_the_field(tmp_path: Path) -> None:
    source = md.read(*WATER)
    field = md.average(source, {"E": md.ElectricField("index 0 1")})["E"]
    md.write_arrows(source, "index 0 1", field, tmp_path / "arrows.pml", scale=2.0)
    lines = (tmp_path / "arrows.pml").read_text().splitlines()
    rows = np.array([line.strip(" ,").split(",") for line in lines if line.startswith("  ")], float)
    first = next(next(iter(source.window(0, 1).pieces(["position"], "time", False, 1))).blocks()).fields["position"][0, :2]
    np.testing.assert_allclose(rows[:, 1:4], first, atol=1e-3)
    np.testing.assert_allclose(rows[:, 18:21] - rows[:, 1:4], 2.0 * field.mean, atol=2e-4)
    for answer, at, name, options, message in (
            (field, "index 0", "a.pml", {}, "averaged at 2 places"), (field, "index 0 1", "a.xyz", {}, r"\.pml"),
            (field.derived["magnitude"], "index 0 1", "a.pml", {}, "of an md.ElectricField"),
            (field, "index 0 1", "a.pml", {"scale": 0}, "above 0")):
        with pytest.raises(InputError, match=message):
            md.write_arrows(source, at, answer, tmp_path / name, **options)


def test_a_slice_of_a_map_is_drawn_as_its_cell_lies() -> None:
    found = md.average(md.read(*WATER), {"map": md.PotentialMap(3.0), "V": md.ElectricPotential("index 0 1")})
    ax = fields.map_slice(found["map"], across="a", at=0.25)
    mesh = next(one for one in ax.collections if one.get_array() is not None and np.size(one.get_array()) > 100)
    n = found["map"].mean.shape
    shown = np.reshape(mesh.get_array(), (n[1] + 1, n[2] + 1))
    np.testing.assert_array_equal(shown[:-1, :-1], found["map"].mean[round(n[0] / 4)])
    corners = np.asarray(mesh.get_coordinates())
    cell = found["map"].derived["cell"].mean
    assert np.linalg.norm(corners[-1, 0] - corners[0, 0]) == pytest.approx(np.linalg.norm(cell[1]))
    assert np.linalg.norm(corners[-1, -1] - corners[0, 0]) == pytest.approx(np.linalg.norm(cell[1] + cell[2]))
    with pytest.raises(InputError, match=r"by md\.PotentialMap"):
        fields.map_slice(found["V"])
    with pytest.raises(InputError, match="a share of it"):
        fields.map_slice(found["map"], at=2)


def test_the_spectrum_of_a_table(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lines = [np.column_stack([at + 0.2 * rng.normal(size=200), np.full(200, f)]) for at, f in ((4, 0.1), (5, 0.2))]
    rows = np.column_stack(lines)
    table = tmp_path / "states.txt"
    np.savetxt(table, rows)
    words = ("md", "spectrum", "absorption", str(table), "--width", "0.05", "--plot", str(tmp_path / "figures"))
    code, out, _ = shell(capsys, monkeypatch, *words, "--json", "-", "--csv", str(tmp_path / "spectrum.csv"))
    assert code == 0
    same = md.absorption(rows[:, ::2], rows[:, 1::2], width=0.05)
    np.testing.assert_allclose(json.loads(out)["results"]["estimates"]["absorption"]["band"], same.band)
    written = np.loadtxt(tmp_path / "spectrum.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(written[:, 1], same.mean)
    assert (tmp_path / "figures" / "absorption.png").exists()
    code, _, err = shell(capsys, monkeypatch, "md", "spectrum", "absorption", str(table), "--width", "wide")
    assert code == 2
    assert "silverman or cv" in err


def test_a_spectrum_is_drawn_with_its_states_and_an_experiment() -> None:
    from ensemblekit.plot import spectra

    rng = np.random.default_rng(1)
    spectrum = md.absorption(np.array([4.0, 5.0]) + 0.2 * rng.normal(size=(200, 2)), np.full((200, 2), 0.1))
    ax = spectra.absorption(spectrum, experiment=[[3.5, 4.5], [1000.0, 2000.0]])
    assert len(ax.lines) == 4
    pairs = md.Excitations(np.array([[4.0, 5.0], [4.2, 5.2]]), np.array([[0.1, 0.3], [0.1, 0.1]]))
    sticks = spectra.absorption(spectrum, excitations=pairs).collections[-1].get_segments()
    np.testing.assert_allclose([one[:, 0] for one in sticks], [[4.1, 4.1], [5.1, 5.1]])
    assert np.ptp(sticks[1][:, 1]) == pytest.approx(0.5 * spectrum.mean.max()) == pytest.approx(2 * np.ptp(sticks[0][:, 1]))
    with pytest.raises(InputError, match="energies and what was measured"):
        spectra.absorption(spectrum, experiment=[1.0, 2.0])
    assert len(ax.collections) == 2
    with pytest.raises(InputError, match="one axis, energy"):
        spectra.absorption(spectrum.maximum)


def test_an_infrared_spectrum_by_the_shell(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    from ensemblekit.plot import spectra
    from tests.test_md_infrared import universe

    rng = np.random.default_rng(1)
    u = universe(rng.normal(size=(1500, 2, 3)), rng.normal(size=(1500, 2, 3)), [0.5, -0.5], bonds=[(0, 1)])
    store = tmp_path / "run.h5md"
    md.ingest(u, None, store)
    words = ("md", "spectrum", "ir", str(store), "--temperature", "300", "--resolution", "100")
    code, out, _ = shell(capsys, monkeypatch, *words, "--json", "-", "--plot", str(tmp_path / "figures"))
    assert code == 0
    estimate = md.average(u, {"ir": md.Infrared(temperature=300, resolution=100.0, by={"first": "index 0"})})["ir"]
    np.testing.assert_allclose(json.loads(out)["results"]["estimates"]["infrared"]["mean"], estimate.mean, rtol=1e-6)
    assert (tmp_path / "figures" / "infrared.png").exists()
    ax = spectra.infrared(estimate)
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
    assert [line.get_label() for line in ax.lines[1:]] == ["first", "other", "cross terms"]
    code, _, err = shell(capsys, monkeypatch, *words, "--range", "0", "90000")
    assert code == 2
    assert "16 678 cm-1" in " ".join(err.split())
