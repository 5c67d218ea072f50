"""The shell's md commands, as somebody types them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit.cli import app

pytest.importorskip("MDAnalysis")
data = pytest.importorskip("MDAnalysisTests.datafiles")


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "adk.h5md"
    assert "98 frames of 3341 atoms, 1 to 98 ps (position" in run("md", "ingest", data.PSF, data.DCD, "-o", path)
    return path


def test_ingest_takes_windows_replicas_and_selections(tmp_path):
    run("md", "ingest", data.PSF, data.DCD, "-o", tmp_path / "a.h5md", "-b", 11, "-e", 50, "--dt", 2, "--select", "name CA")
    kept = ek.open(tmp_path / "a.h5md")
    assert kept["position"].shape == (20, 214, 3)
    np.testing.assert_allclose(kept.times, np.arange(11, 50, 2), rtol=1e-5)
    run("md", "ingest", data.PSF, data.DCD, data.DCD2, "--replicas", "-o", tmp_path / "r.h5md", "--select", "name CA")
    assert ek.open(str(tmp_path / "r-*.h5md")).lengths == (98, 102)
    assert "no multiple of 1 ps" in run("md", "ingest", data.PSF, data.DCD, "-o", tmp_path / "b.h5md", "--dt", 1.5, code=2)
    assert "ends in .h5md" in run("md", "ingest", data.PSF, data.DCD, "-o", tmp_path / "b.h5", code=2)


def test_average_prints_and_writes(store, tmp_path):
    pytest.importorskip("matplotlib")
    out = run("md", "average", store, "--rg", "protein", "--rmsf", "name CA", "--distance", "resid 30:resid 60", "--do",
              "q=NativeContacts('name CA', radius=8.0)", "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json", "--plot",
              tmp_path / "figures", "--pdb", tmp_path / "a.pdb")
    assert "18.3 ± 3.1" in out
    written = json.loads((tmp_path / "a.json").read_text())["results"]["estimates"]
    assert written["rg"]["mean"] == pytest.approx(18.2654955170, rel=1e-6)
    assert set(written) >= {"rg", "rmsf", "distance", "q"}
    assert (tmp_path / "figures" / "averages.png").stat().st_size > 10_000
    factors = [float(line[60:66]) for line in (tmp_path / "a.pdb").read_text().splitlines() if line.startswith("ATOM")]
    assert len(factors) == 214
    fluctuation = np.array(written["rmsf"]["mean"])
    np.testing.assert_allclose(factors, np.minimum(8 * np.pi**2 / 3 * fluctuation**2, 999.99), atol=0.01)
    direct = run("md", "average", data.PSF, data.DCD, "--rg", "protein", "-b", 20, "--equilibration", "10ps")
    assert "10 ps" in direct


@pytest.mark.parametrize(("words", "match"), [
    (["--rg", "name XYZ"], "is empty"), ([], "name an observable"), (["--do", "q=Nothing('a')"], "is no observable"),
    (["--do", "q=__import__('os')"], "is no observable"), (["--do", "q=1+1"], "NAME=OBSERVABLE"),
    (["--distance", "a"], "two selections"), (["--rg", "protein", "--equilibration", "soon"], "--equilibration is auto")])
def test_average_says_what_is_wrong(store, words, match):
    assert match in " ".join(run("md", "average", store, *words, code=2).split())


def test_rdf_names_its_peak(tmp_path):
    out = run("md", "rdf", data.PSF_TRICLINIC, data.DCD_TRICLINIC, "--select-a", "name OH2", "--range", 0, 6, "--bins", 60,
              "--csv", tmp_path / "g.csv")
    assert "highest peak: g = " in out
    peak = float(out.split("at r = ")[1].split()[0])
    assert 2.5 < peak < 3.1
    assert "coordination up to the minimum" in out


def test_report_and_topology(store, tmp_path):
    pytest.importorskip("matplotlib")
    out = run("md", "report", data.PSF, data.DCD, data.DCD2, "--replicas", "--select", "name CA", "-o", tmp_path / "r.png")
    assert "cannot say" in out
    assert (tmp_path / "r.png").stat().st_size > 50_000
    run("md", "report", store, "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "NOT CONVERGED" in page
    assert page.count("<svg") == 1
    run("md", "topology", store, "-o", tmp_path / "t.pdb", "--frame", 3)
    from ensemblekit.md.topology import mdanalysis

    with mdanalysis() as mda:
        written = mda.Universe(tmp_path / "t.pdb")
        assert len(written.select_atoms("name CA and resid 1:10")) == 10
        np.testing.assert_allclose(written.atoms.positions, ek.open(store)["position"][3], atol=1e-3)


def test_a_column_is_averaged_like_a_field(tmp_path):
    path = tmp_path / "energy.xvg"
    values = np.random.default_rng(2).normal(-50, 1, 300)
    path.write_text('@ xaxis label "Time (ps)"\n@ yaxis label "(kJ/mol)"\n@ s0 legend "Potential"\n'
                    + "".join(f"{k} {v:.6f}\n" for k, v in enumerate(values)))
    assert "kJ/mol" in run("average", path, "Potential", "--equilibration", "none")
    assert "Potential" in run("average", path, "Kinetic", code=2)
    path.write_text(path.read_text().replace("\n5 ", "\n5 nan # "))
    assert "not finite" in run("average", path, "Potential", "--equilibration", "none")
    assert "of 299" in run("average", path, "Potential", "--equilibration", "none", "--missing", "drop")
