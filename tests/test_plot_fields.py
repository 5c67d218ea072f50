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
    found = md.average(md.read(*WATER), {
        "E": md.ElectricField(md.Midpoint("index 0", "index 1"), along="bond", by="molecule"),
        "V": md.ElectricPotential("index 0", by="molecule"), "atoms": md.ElectricField("index 0 1")})
    axes = fields.projection(found["E"])
    assert axes.shape == (2,)
    assert sum(one.get_width() for one in axes[1].patches[:5]) <= 10
    ax = fields.strongest(found["E"], most=7)
    widths = [abs(bar.get_width()) for bar in ax.patches]
    assert len(widths) == 7
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(np.abs(found["E"].groups.mean).max())
    assert len(fields.strongest(found["V"]).patches) == 20
    with pytest.raises(InputError, match="no series to draw"):
        fields.projection(found["atoms"])
    with pytest.raises(InputError, match="by= with along="):
        fields.strongest(found["atoms"])


def test_the_verb_gives_what_the_function_gives(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    words = ["--bond", "index 0; index 1", "--by", "molecule", "--unit", "MV/cm", "--stark", "0.05", "--potential"]
    code, out, _ = shell(capsys, monkeypatch, "md", "field", *WATER, *words, "--plot", str(tmp_path / "figures"), "--json", "-")
    assert code == 0
    found = json.loads(out)["results"]["estimates"]
    bond = md.Midpoint("index 0", "index 1")
    same = md.average(md.read(*WATER), {"E": md.ElectricField(bond, along="bond", unit="MV cm-1")})["E"]
    assert found["field"]["derived"]["projection"]["mean"] == pytest.approx(same.projection.mean)
    assert len(found["field"]["derived"]["groups"]["mean"]) == 125
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
    found = md.absorption(np.array([4.0, 5.0]) + 0.2 * rng.normal(size=(200, 2)), np.full((200, 2), 0.1))
    ax = spectra.absorption(found, experiment=[[3.5, 4.5], [1000.0, 2000.0]])
    assert len(ax.lines) == 4
    assert len(ax.collections) == 2
    with pytest.raises(InputError, match="one axis, energy"):
        spectra.absorption(found.maximum)


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
    found = md.average(u, {"ir": md.Infrared(temperature=300, resolution=100.0, by={"first": "index 0"})})["ir"]
    np.testing.assert_allclose(json.loads(out)["results"]["estimates"]["infrared"]["mean"], found.mean, rtol=1e-6)
    assert (tmp_path / "figures" / "infrared.png").exists()
    ax = spectra.infrared(found)
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
    assert [line.get_label() for line in ax.lines[1:]] == ["first", "other", "cross terms"]
    code, _, err = shell(capsys, monkeypatch, *words, "--range", "0", "90000")
    assert code == 2
    assert "16 678 cm-1" in " ".join(err.split())
