"""Ensembles of conformers: all models read, spread, chosen, written and read back with their weights, bit for bit."""

from __future__ import annotations

import csv
import gzip
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("MDAnalysis")
gemmi = pytest.importorskip("gemmi")

from ensemblekit import md  # noqa: E402
from ensemblekit.errors import InputError, StatisticsError  # noqa: E402
from ensemblekit.md.conformers import ConformerEnsemble  # noqa: E402

DNA = Path(os.environ.get("ENSEMBLEKIT_DATA", "/nonexistent")) / "nmr_dna_2hkb" / "2hkb.pdb"
needs_data = pytest.mark.skipif(not DNA.exists(), reason="needs $ENSEMBLEKIT_DATA")


def pdb_of(models: np.ndarray, residues: str = "AG", head: str = "", skip: tuple[int, int] | None = None) -> str:
    """Models (n, 4 residues, 3) of a chain of N, CA, C, O; skip: an atom that a model lacks."""
    lines = [head]
    names = ("N", "CA", "C", "O")
    for m, x in enumerate(models, 1):
        lines.append(f"MODEL     {m:>4}\n")
        for k, (a, b, c) in enumerate(x):
            if skip == (m - 1, k):
                continue
            residue = "ALA" if residues[k // 4] == "A" else "GLY"
            lines.append(f"ATOM  {k + 1:>5}  {names[k % 4]:<3} {residue} A{k // 4 + 7:>4}    "
                         f"{a:8.3f}{b:8.3f}{c:8.3f}  1.00  0.00           {names[k % 4][0]}\n")
        lines.append("ENDMDL\n")
    return "".join([*lines, "END\n"])


@pytest.fixture
def models() -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.round(rng.normal(size=(1, 8, 3)) * 3 + rng.normal(size=(12, 8, 3)) * 0.3, 3)


@pytest.fixture
def small(models: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "small.pdb"
    path.write_text(pdb_of(models, head="REMARK 210  CONFORMERS, NUMBER CALCULATED   : 50\n"))
    return path


@pytest.fixture
def weights() -> np.ndarray:
    w = np.random.default_rng(1).dirichlet(np.ones(12))
    return w / w.sum()


@needs_data
def test_a_deposited_duplex() -> None:
    ensemble = md.ConformerEnsemble.read(DNA)
    d = ensemble.rmsd("not name H*")
    assert (ensemble.n, len(ensemble.topology.select("not name H*"))) == (10, 486)
    assert d[np.triu_indices(10, 1)].mean() == pytest.approx(0.26981532, abs=1e-8)
    assert np.unravel_index(d.argmax(), d.shape) in ((0, 7), (7, 0))
    assert d.max() == pytest.approx(0.47429019, abs=1e-8)
    assert ensemble.representative("not name H*").model == 6
    assert ensemble.spread("not name H*").pairwise_rmsd.mean == pytest.approx(0.26981532, abs=1e-8)
    assert "phi_spread" not in ensemble.spread("not name H*").derived


def test_a_deposited_protein() -> None:
    files = pytest.importorskip("MDAnalysisTests.datafiles")
    ensemble = md.ConformerEnsemble.read(files.PDB_multiframe)
    d = ensemble.rmsd()
    assert ensemble.n == 24
    assert ensemble.calculated == 200
    assert d[np.triu_indices(24, 1)].mean() == pytest.approx(0.99635990, abs=1e-8)
    assert ensemble.representative().model == 10
    assert ensemble.diverse(5).indices.tolist() == [14, 18, 22, 4, 7]
    rg = md.average(ensemble, {"rg": md.RadiusOfGyration("protein")})["rg"]
    assert (rg.mean, np.std(rg.series, ddof=1)) == pytest.approx((8.17279277, 0.10285643), abs=1e-7)
    assert rg.stderr == pytest.approx(0.10285643 / np.sqrt(24), abs=1e-8)
    assert rg.dof == pytest.approx(23)
    assert "200 were calculated" in rg.verdict
    assert rg.converged


def test_spread_is_that_of_the_superposed_models(small: Path, models: np.ndarray, weights: np.ndarray) -> None:
    ensemble = md.ConformerEnsemble.read(small).reweighted(weights)
    mean = ensemble.mean_structure("all")
    from ensemblekit.md.superpose import superposed

    moved = superposed(models, mean)
    assert np.einsum("t,tax->ax", weights, moved) == pytest.approx(mean, abs=1e-5)
    spread = ensemble.spread("all")
    squares = np.einsum("t,ta->a", weights, ((moved - mean) ** 2).sum(axis=2))
    mass = ensemble.topology.masses.reshape(2, 4)
    by_residue = np.sqrt((squares.reshape(2, 4) * mass).sum(1) / mass.sum(1))
    assert spread.mean == pytest.approx(by_residue, rel=1e-4)
    off = np.sqrt(((moved - mean) ** 2).sum(axis=2).mean(axis=1))
    assert spread.rmsd_to_mean.mean == pytest.approx(weights @ off, rel=1e-4)
    d = ensemble.rmsd("all")
    off_diagonal = ~np.eye(12, dtype=bool)
    both = np.outer(weights, weights)[off_diagonal]
    assert spread.pairwise_rmsd.mean == pytest.approx((both * d[off_diagonal]).sum() / both.sum())
    assert ensemble.representative("all").model == int(np.argmin(d @ weights))
    assert ensemble.diverse(3, "all", scores="weights").indices[0] == int(np.argmax(weights))


def test_the_error_of_the_mean_pairwise_rmsd_is_the_jackknife(small: Path) -> None:
    ensemble = md.ConformerEnsemble.read(small)
    d = ensemble.rmsd("all")

    def mean_of(k: list[int]) -> float:
        return float(d[np.ix_(k, k)][np.triu_indices(len(k), 1)].mean())

    left_out = np.array([mean_of([j for j in range(12) if j != k]) for k in range(12)])
    plain = np.sqrt(11 / 12 * ((left_out - left_out.mean()) ** 2).sum())
    answer = ensemble.spread("all").pairwise_rmsd
    assert answer.mean == pytest.approx(mean_of(list(range(12))))
    assert answer.stderr == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("name", ["out.cif", "out.cif.gz", "out.pdb", "out.pdb.gz", "out.tar.gz"])
def test_written_and_read_back(name: str, small: Path, models: np.ndarray, weights: np.ndarray, tmp_path: Path) -> None:
    ensemble = md.ConformerEnsemble.read(small).reweighted(weights)
    path = tmp_path / name
    ensemble.write(path, title="Models of \"it\", 5' to 3'", authors=["Doe, J.", "O'Neill, P."], data={"theta": 1.5})
    first = path.read_bytes()
    back = md.ConformerEnsemble.read(path)
    assert back.positions() == pytest.approx(models, abs=5e-4)
    assert np.array_equal(back.weights, ensemble.weights)
    assert back.calculated == 50
    for column in ("names", "resnames", "resids", "segids"):
        assert (getattr(back.topology, column) == getattr(ensemble.topology, column)).all()
    back.write(path, title="Models of \"it\", 5' to 3'", authors=["Doe, J.", "O'Neill, P."], data={"theta": 1.5})
    assert path.read_bytes() == first
    if name.startswith("out.pdb"):
        table = list(csv.DictReader((tmp_path / "out.weights.csv").open()))
        assert [float(row["weight"]) for row in table] == weights.tolist()
    if name == "out.tar.gz":
        with tarfile.open(path) as archive:
            assert sorted(archive.getnames()) == ["out.pdb", "out.weights.csv"]
    if ".cif" in name:
        assert back.provenance["data"] == {"theta": 1.5}


def test_other_programs_read_what_was_written(small: Path, models: np.ndarray, weights: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "out.cif"
    md.ConformerEnsemble.read(small).reweighted(weights).write(path)
    structure = gemmi.read_structure(str(path))
    assert len(structure) == 12
    assert structure[3]["A"][0]["CA"][0].pos.tolist() == pytest.approx(models[3, 1], abs=5e-4)
    mdtraj = pytest.importorskip("mdtraj")
    assert mdtraj.load(str(path)).xyz == pytest.approx(models / 10, abs=5e-5)
    pytest.importorskip("ihm")
    import ihm.reader

    with path.open() as file:
        (system,) = ihm.reader.read(file)
    states = [state for group in system.state_groups for state in group]
    assert [state.population_fraction for state in states][:12] == weights.tolist()


def test_no_weights_are_none(small: Path, tmp_path: Path) -> None:
    ensemble = md.ConformerEnsemble.read(small)
    ensemble.write(tmp_path / "plain.cif")
    back = md.ConformerEnsemble.read(tmp_path / "plain.cif")
    assert back.source.weights is None
    assert back.weights == pytest.approx(np.full(12, 1 / 12))
    assert back.n_eff == pytest.approx(12)
    assert back.n_eff_entropy == pytest.approx(12)
    assert "ihm" not in (tmp_path / "plain.cif").read_text()
    (tmp_path / "plain.weights.csv").write_text("model,weight\n1,1\n")
    with pytest.raises(InputError, match="have no weights"):
        ensemble.write(tmp_path / "plain.pdb")


def test_weights_from_fractions_lists_and_tables(small: Path, models: np.ndarray, weights: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "states.cif"
    md.ConformerEnsemble.read(small).reweighted(weights).write(path)
    text = path.read_text()
    begin = text.index("loop_\n_ensemblekit_conformer")
    path.write_text(text[:begin] + text[text.index("#", begin):])       # as others write it
    assert md.ConformerEnsemble.read(path).weights == pytest.approx(weights, rel=1e-15)
    for k in range(3):
        (tmp_path / f"m{k}.pdb").write_text(pdb_of(models[k:k + 1]))
    (tmp_path / "list.ens").write_text("% files and populations\nm0.pdb 0.5\nm1 0.25  % the second\nm2.pdb 0.25\n")
    assert md.ConformerEnsemble.read(tmp_path / "list.ens").weights.tolist() == [0.5, 0.25, 0.25]
    (tmp_path / "w.dat").write_text("# model weight\n1 2\n2 1\n3 1\n")
    several = [tmp_path / f"m{k}.pdb" for k in range(3)]
    assert md.ConformerEnsemble.read(several, weights=tmp_path / "w.dat").weights.tolist() == [0.5, 0.25, 0.25]
    assert md.ConformerEnsemble.read(several).positions() == pytest.approx(models[:3], abs=1e-6)
    (tmp_path / "a.pdb.gz").write_bytes(gzip.compress(pdb_of(models).encode()))
    assert md.ConformerEnsemble.read(tmp_path / "a.pdb.gz").n == 12


def test_averages_take_models_as_independent(small: Path, models: np.ndarray) -> None:
    ensemble = md.ConformerEnsemble.read(small)
    a, b = models[:, 1], models[:, 5]
    distance = np.linalg.norm(a - b, axis=1)
    answer = md.average(ensemble, {"d": md.Distance("resid 7 and name CA", "resid 8 and name CA")})
    same = md.average(ensemble.source, {"d": md.Distance("resid 7 and name CA", "resid 8 and name CA")})
    assert answer["d"].stderr == pytest.approx(distance.std(ddof=1) / np.sqrt(12), rel=1e-5)
    assert answer["d"].mean == same["d"].mean
    assert "12 deposited models" in answer["d"].verdict
    assert "50 were calculated" in answer["d"].verdict
    assert answer["d"].n_discarded == 0
    chosen = md.average(ensemble, {"d": md.Distance("resid 7 and name CA", "resid 8 and name CA")}, frames=[0, 3, 4, 9])
    assert chosen["d"].mean == pytest.approx(distance[[0, 3, 4, 9]].mean(), rel=1e-6)
    weighted = md.average(ensemble, {"d": md.Distance("resid 7 and name CA", "resid 8 and name CA")},
                          frame_weights=np.arange(1, 13))["d"]
    assert weighted.mean == pytest.approx(np.average(distance, weights=np.arange(1, 13)), rel=1e-6)
    assert weighted.dof == pytest.approx(78**2 / 650 - 1)
    with pytest.raises(InputError, match="which frame comes after which"):
        md.average(ensemble, {"msd": md.MSD("all")})


def test_a_trajectory_keeps_its_order(tmp_path: Path) -> None:
    files = pytest.importorskip("MDAnalysisTests.datafiles")
    run = md.read(files.PSF, files.DCD)
    ensemble = md.ConformerEnsemble.of(run, frames=range(0, 98, 4))
    assert ensemble.n == 25
    assert ensemble.source.ordered
    assert md.average(ensemble, {"rg": md.RadiusOfGyration()})["rg"].times is not None
    assert isinstance(ensemble.reweighted(np.arange(1, 26)), ConformerEnsemble)
    assert ensemble.reweighted(np.arange(1, 26)).weights == pytest.approx(np.arange(1, 26) / 325)


def test_models_that_differ_are_named_and_common_atoms_kept(models: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "other.pdb"
    path.write_text(pdb_of(models, skip=(4, 5)))
    with pytest.raises(InputError, match=r"model 4 .*other.pdb.* 7 and 8, .*atom 6, is C of GLY 8 in chain A and CA of GLY 8"):
        md.ConformerEnsemble.read(path)
    kept = md.ConformerEnsemble.read(path, common=True)
    assert kept.positions() == pytest.approx(np.delete(models, 5, axis=1), abs=1e-6)
    assert "7 atoms that all models have" in kept.notes[0]


def test_alternative_locations_are_left_out_and_told(models: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "alt.pdb"
    lines = pdb_of(models[:1]).splitlines(keepends=True)
    other = lines[3][:16] + "B" + lines[3][17:30] + "  99.000" + lines[3][38:]
    lines[3] = lines[3][:16] + "A" + lines[3][17:]
    path.write_text("".join([*lines[:4], other, *lines[4:]]))
    ensemble = md.ConformerEnsemble.read(path)
    assert ensemble.positions() == pytest.approx(models[:1], abs=1e-6)
    assert "1 atoms of further alternative locations" in ensemble.notes[0]


def test_one_model_has_no_spread(models: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "one.pdb"
    path.write_text(pdb_of(models[:1]))
    one = md.average(md.ConformerEnsemble.read(path), {"rg": md.RadiusOfGyration("all")})["rg"]
    assert not one.converged
    assert np.isnan(one.stderr)


@pytest.mark.parametrize(("weights", "words"), [
    (np.ones(5), r"shape \(12,\)"), (-np.ones(12), "negative|below 0"), (np.full(12, np.nan), "finite")])
def test_bad_weights(weights: np.ndarray, words: str, small: Path) -> None:
    with pytest.raises(InputError, match=words):
        md.ConformerEnsemble.read(small, weights=weights)


def test_bad_input_is_named(small: Path, models: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match="zero"):
        md.ConformerEnsemble.read(small, weights=np.zeros(12))
    (tmp_path / "no.pdb").write_text("HEADER\n")
    with pytest.raises(InputError, match="has no atoms"):
        md.ConformerEnsemble.read(tmp_path / "no.pdb")
    (tmp_path / "no.cif").write_text("loop_\n_a.b\n_c.d\n1\n")
    with pytest.raises(InputError, match="no structure that can be read"):
        md.ConformerEnsemble.read(tmp_path / "no.cif")
    (tmp_path / "no.tar.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no archive"):
        md.ConformerEnsemble.read(tmp_path / "no.tar.gz")
    with pytest.raises(InputError, match="no such file"):
        md.ConformerEnsemble.read(tmp_path / "gone.pdb")
    with pytest.raises(InputError, match="empty list"):
        md.ConformerEnsemble.read([])
    ensemble = md.ConformerEnsemble.read(small)
    with pytest.raises(InputError, match="written as"):
        ensemble.write(tmp_path / "out.xyz")
    with pytest.raises(InputError, match="from 0 to 11"):
        ensemble.model(12)
    far = md.ConformerEnsemble.read(small)
    far.source.position[0, 0, 0] = 20000.0
    with pytest.raises(InputError, match=r"write \.cif"):
        far.write(tmp_path / "far.pdb")
    assert not (tmp_path / "far.pdb").exists()
    far.write(tmp_path / "far.cif")


def test_figures(small: Path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    from ensemblekit.plot import ensemble as figures

    ensemble = md.ConformerEnsemble.read(small)
    ax = ensemble.plot(select="all")
    assert ax.get_xlabel() == "residue"
    assert ax.lines[0].get_xdata().tolist() == [7, 8]
    share = figures.weights(ensemble.reweighted(np.arange(12))).lines[0].get_ydata()
    assert share[-1] == pytest.approx(1)
    assert share[1] == pytest.approx(11 / 66)


def test_an_analysis_of_other_programs_sees_the_models(small: Path) -> None:
    ensemble = md.ConformerEnsemble.read(small)
    values = md.average(ensemble, {"d": lambda atoms: float(np.linalg.norm(atoms[1].position - atoms[5].position))})["d"]
    x = ensemble.positions()
    assert values.mean == pytest.approx(np.linalg.norm(x[:, 1] - x[:, 5], axis=1).mean(), rel=1e-5)


def test_what_one_structure_gets_wrong(small: Path, models: np.ndarray, tmp_path: Path) -> None:
    ensemble = md.ConformerEnsemble.read(small)
    wanted = {"d": md.Distance("resid 7 and name CA", "resid 8 and name CA"), "rg": md.RadiusOfGyration("all"),
              "noe": md.NOE([("resid 7 and name N", "resid 8 and name N")])}
    report = ensemble.single_structure_report(wanted, select="all")
    distance = np.linalg.norm(models[:, 1] - models[:, 5], axis=1)
    assert report.representative == ensemble.representative("all").model
    assert report.structures["representative"]["d"] == pytest.approx(distance[report.representative])
    assert report.ensemble["d"].mean == pytest.approx(distance.mean())
    mean = ensemble.mean_structure("all")
    assert report.structures["mean structure"]["d"] == pytest.approx(np.linalg.norm(mean[1] - mean[5]), rel=1e-6)
    alone = ensemble.model(2).single_structure_report(wanted, select="all")
    assert alone.structures["representative"]["d"] == pytest.approx(distance[2])
    assert report.deviations["best single"] <= report.deviations["representative"]
    assert "half intervals" in report.table()
    # one from elsewhere: other chain, an atom less, confidence as B-factors
    lines = [line[:21] + "Z" + line[22:60] + " 91.50" + line[66:] for line in pdb_of(models[4:5], skip=(0, 7)).splitlines()
             if line.startswith("ATOM")]
    (tmp_path / "model.pdb").write_text("\n".join([*lines, "END"]))
    other = ensemble.single_structure_report({"d": wanted["d"]}, select="all", structure=tmp_path / "model.pdb")
    assert other.structures["outside"]["d"] == pytest.approx(distance[4])
    assert other.confidence == pytest.approx(np.full(7, 91.5))
    assert "7 of 8 atoms" in other.notes[0]
    pytest.importorskip("matplotlib").use("agg")
    assert len(other.plot().get_yticks()) == 4
    lines = [line[:22] + " 900" + line[26:] for line in lines]
    (tmp_path / "model.pdb").write_text("\n".join([*lines, "END"]))
    with pytest.raises(InputError, match="no atom of the ensemble"):
        ensemble.single_structure_report({"d": wanted["d"]}, select="all", structure=tmp_path / "model.pdb")
