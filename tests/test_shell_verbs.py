"""The verbs of `md` and `neural` as scripts use them: one JSON document on stdout, and tables that fit a narrow terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit.cli import app, console, info
from tests.test_shell import ELSEWHERE

UNTRIED = ("bench", "md field", "md spectrum", "md ensemble", "md compare", "md reweight")
"""How the names begin of those that have tests of their own."""
VERBS = {
    "md ingest": ["a.gro", "a.xtc", "-o", "{new}.h5md"],
    "md average": ["a.gro", "a.xtc", "--whole", "--rg", "all", "--distance", "index 0:index 1"],
    "md rdf": ["a.gro", "a.xtc", "--select-a", "name A", "--range", "0", "10"],
    "md report": ["a.gro", "a.xtc", "--whole", "--select", "all", "-o", "{new}.html"],
    "neural ingest": ["a.pt", "b.pt", "{new}.h5"],
    "neural plan": ["--epochs", "20", "--steps-per-epoch", "10"],
    "neural report": ["run0.h5"],
    "neural select": ["run0.h5", "--method", "best"],
    "neural equivalent": ["run0.h5", "--reference", "run1.h5", "run2.h5", "run3.h5"],
    "neural ergodicity": ["run0.h5", "run1.h5", "run2.h5", "run3.h5"],
    "neural detect": ["run0.h5"],
    "neural segment": ["maps.h5"],
    "neural trajectory": ["run0.h5", "--model", "verbs_of_tests:model", "--data", "verbs_of_tests:data", "--rank", "2"],
    "neural drift": ["run0.h5", "--model", "verbs_of_tests:model", "--data", "verbs_of_tests:data", "--corruptions", "table",
                     "--severities", "1,5"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trajectory, checkpoints, and four trainings with saved predictions."""
    mda = pytest.importorskip("MDAnalysis")
    torch = pytest.importorskip("torch")
    from ensemblekit import neural
    from ensemblekit.neural.parameters import to_vectors

    path = tmp_path_factory.mktemp("verbs")
    rng = np.random.default_rng(0)
    u = mda.Universe.empty(12, n_residues=2, atom_resindex=[0] * 6 + [1] * 6, trajectory=True)
    for name, values in (("name", list("ABCDEF") * 2), ("masses", [1.0] * 12), ("resname", ["X", "X"]), ("resid", [1, 2])):
        u.add_TopologyAttr(name, values)
    u.dimensions = [40, 40, 40, 90, 90, 90]
    u.atoms.positions = places = rng.normal(20, 3, (12, 3))
    u.atoms.write(path / "a.gro")
    with mda.Writer(str(path / "a.xtc"), 12) as writer:
        for _ in range(60):
            u.atoms.positions = places + rng.normal(0, 0.5, (12, 3))
            writer.write(u.atoms)
    x = torch.as_tensor(rng.normal(size=(60, 4)), dtype=torch.float32)
    y = (x[:, :3] + 0.7 * torch.as_tensor(rng.normal(size=(60, 3)))).argmax(1)
    for k in range(4):
        torch.manual_seed(k)
        model = torch.nn.Linear(4, 3)
        manifest = neural.Manifest.of(model)
        with ek.create(path / f"run{k}.h5", manifest.fields, provenance={"manifest": manifest.to_dict()}) as store:
            for _ in range(4):
                with torch.no_grad():
                    model.weight += 0.5 * torch.eye(3, 4) + 0.1 * torch.randn(3, 4)
                store.append(to_vectors(model, manifest))
        neural.report(path / f"run{k}.h5", model, [(x, y)], save=True)
        torch.save(model.state_dict(), path / f"{'abcd'[k]}.pt")
    maps(path / "maps.h5")
    (path / "verbs_of_tests.py").write_text("import torch\n\ntorch.manual_seed(0)\nx = torch.randn(40, 4)\n"
                                            "data = [(x, x[:, :3].argmax(1))]\n\n\ndef model():\n"
                                            "    return torch.nn.Linear(4, 3)\n", "utf-8")
    return path


def maps(path: Path) -> None:
    """A store of two snapshots of a network of maps, with its saved predictions."""
    import torch

    from ensemblekit import neural
    from ensemblekit.neural.parameters import to_vectors

    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 2, 3, padding=1)
    manifest = neural.Manifest.of(model)
    with ek.create(path, manifest.fields, provenance={"manifest": manifest.to_dict()}) as store:
        for _ in range(2):
            with torch.no_grad():
                model.weight += 0.3 * torch.randn(model.weight.shape)
            store.append(to_vectors(model, manifest))
    x = torch.randn(4, 1, 12, 12)
    neural.Ensemble.from_store(path, model, task="segmentation").predict([(x, (x[:, 0] > 0.4).long())], save=True)


def test_every_verb_is_tried() -> None:
    assert {*VERBS} == {verb for verb in ELSEWHERE if not verb.startswith(UNTRIED)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", [pytest.param(verb, marks=[pytest.mark.slow] * (verb == "md report")) for verb in VERBS])
def test_json_is_one_document_and_tables_fit_60_columns(verb: str, folder: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "60")
    words = [*verb.split(), *(word.format(new=tmp_path / "new") for word in VERBS[verb])]
    result = CliRunner().invoke(app, [*words, "--json", "-"])
    assert result.exit_code == 0, (result.output, result.exception)
    document = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["command"] == ["ensemblekit", *words, "--json", "-"]
    assert document["results"]
    assert document["versions"]["numpy"] == np.__version__
    if verb != "neural plan":
        assert all(len(one["xxh3_128_of_ends"]) == 32 for one in document["inputs"])
        assert document["inputs"]
    if verb.endswith("ingest"):
        return
    result = CliRunner().invoke(app, [*words, *(["--overwrite"] if "-o" in words else [])])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.strip()
    # sentences may be longer
    wide = [line for line in result.stdout.splitlines() if len(line) > 60 and "  " in line.strip()]
    assert wide == []


def test_a_unit_is_never_broken() -> None:
    facts = [info.FieldFacts(name, (64, 64, 3), "float64", "kJ mol-1 nm-2", (100_000,), 0.0, 123456.0, "ps")
             for name in ("a field with a long name", "b")]
    for width in (120, 80, 60):
        narrow = console.Console(file=io.StringIO(), width=width, markup=False)
        console.show(info.fields_table(facts), narrow)
        text = narrow.file.getvalue()       # type: ignore[attr-defined]
        assert text.count("kJ mol-1 nm-2") == 2, text
        assert max(map(len, text.splitlines())) <= width
    assert isinstance(info.fields_table(facts), Table)


def test_segment_writes_a_page_that_needs_no_other(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    words = ["neural", "segment", str(folder / "maps.h5"), "--out", "report", "--pictures", "2", "--spacing", "2,1"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, (found.output, found.exception)
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "mm²" in page
    assert "http" not in page
    assert (tmp_path / "report" / "cases.csv").read_text("utf-8").count("\n") == 5
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2 or "overwrite" in str(again.exception)
    for wrong, said in ((["--model", "a:b"], "both --model and --data"), (["--spacing", "x"], "--spacing takes numbers"),
                        (["--spacing", "1,2,3"], "one for each of 2 axes")):
        bad = CliRunner().invoke(app, ["neural", "segment", str(folder / "maps.h5"), *wrong])
        assert said in str(bad.exception) + bad.output
