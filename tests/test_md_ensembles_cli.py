"""``ensemblekit md ensemble | compare | reweight`` in this process."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("MDAnalysis")
pytest.importorskip("gemmi")
files = pytest.importorskip("MDAnalysisTests.datafiles")

from ensemblekit import md  # noqa: E402
from tests.test_cli import run  # noqa: E402


def test_an_ensemble_in_the_shell(tmp_path: Path) -> None:
    code, said, _ = run("md", "ensemble", files.PDB_multiframe, "--diverse", 5, "-o", tmp_path / "out.cif", "--json",
                        tmp_path / "a.json", "--csv", tmp_path / "a.csv", "--plot", tmp_path / "figures")
    assert code == 0
    assert "representative: model 10" in said
    assert "14, 18, 22, 4, 7" in said
    assert "200 were calculated" in " ".join(said.split())
    results = json.loads((tmp_path / "a.json").read_text())["results"]
    assert results["models"] == 24
    assert results["estimates"]["spread"]["derived"]["pairwise_rmsd"]["mean"] == pytest.approx(0.9963599, abs=1e-7)
    assert len(list(csv.DictReader((tmp_path / "a.csv").open()))) == 28
    assert md.ConformerEnsemble.read(tmp_path / "out.cif").n == 24
    assert sorted(one.name for one in (tmp_path / "figures").iterdir()) == ["spread.png", "weights.png"]


def test_averages_against_data_in_the_shell(tmp_path: Path) -> None:
    ensemble = md.ConformerEnsemble.read(files.PDB_multiframe)
    j = md.average(ensemble, {"j": md.JCoupling("HN-HA")})["j"]
    table = tmp_path / "j.dat"
    some = [3, 5, 8]
    table.write_text("# DATA=JCOUPLINGS\n" + "".join(f"{j.coords['residue'][0][k]} {j.mean[k] + 0.5} 0.5\n" for k in some))
    code, said, _ = run("md", "compare", files.PDB_multiframe, "--do", "j=JCoupling('HN-HA')", "--data", table, "--csv",
                        tmp_path / "a.csv")
    assert code == 0
    assert "3 data, χ² 1" in said
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [float(row["calculated"]) for row in rows] == pytest.approx(j.mean[some])
    code, _, error = run("md", "compare", files.PDB_multiframe, "--do", "j=JCoupling()", "--data", table, "--data", table)
    assert code == 2
    assert "--data is given once for each --do" in " ".join(error.split())


def test_reweighting_in_the_shell(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    r = rng.uniform(2.5, 6.0, (300, 2))
    np.savetxt(tmp_path / "noe_calc.dat", np.column_stack([np.arange(300), r]), fmt=["%d", "%.17g", "%.17g"])
    (tmp_path / "noe.dat").write_text("# DATA=NOE\nA 3.2 0.2\nB 3.1 0.2\n")
    out = tmp_path / "weights.dat"
    both = ("--exp", tmp_path / "noe.dat", "--calc", tmp_path / "noe_calc.dat")
    code, said, _ = run("md", "reweight", *both, "--theta", 2, "-o", out, "--unordered", "--json", tmp_path / "a.json")
    assert code == 0
    assert "300 frames reweighted by 2 data at theta 2" in said
    fit = md.reweight(r**-6, md.Data.read(tmp_path / "noe.dat"), theta=2.0, ordered=False)
    assert np.loadtxt(out)[:, 1] == pytest.approx(fit.weights, rel=1e-9)
    assert json.loads((tmp_path / "a.json").read_text())["results"]["reweighted"]["phi"] == pytest.approx(fit.phi)
    code, _, error = run("md", "reweight", *both, "-o", out)
    assert code == 2
    assert "is there already" in " ".join(error.split())
    (tmp_path / "three.dat").write_text("# DATA=CS\nA 3.2 0.2\nB 3.1 0.2\nC 1 1\nD 1 1\n")
    code, _, error = run("md", "reweight", "--exp", tmp_path / "three.dat", "--calc", tmp_path / "noe_calc.dat", "-o",
                         tmp_path / "w.dat")
    assert code == 2
    assert "3 columns, and there are 4 data" in " ".join(error.split())
    far = tmp_path / "far.dat"
    far.write_text("# DATA=CS\nA 30 0.01\nB 3.1 0.2\n")
    code, _, _ = run("md", "reweight", "--exp", far, "--calc", tmp_path / "noe_calc.dat", "--theta", 0.5, "-o",
                     tmp_path / "f.dat", "--require-converged")
    assert code == 4
