"""The shell as scripts use it: what stands on stdout, exit codes, text that is not markup, outputs checked before the work."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit import provenance
from ensemblekit.cli import app, console, output, verbs
from ensemblekit.files import csv_cell

ROOT = get_command(app)
VERBS = dict(verbs.verbs_of(ROOT))
NASTY = "[bold]x"


def run(*words: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stdout, result.stderr


def shell(*words: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ensemblekit", *map(str, words)], capture_output=True, encoding="utf-8",
                          cwd=cwd, errors="replace", stdin=subprocess.DEVNULL, check=False, timeout=300, env=os.environ | env)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores with names that are markup, a wave, and a store in two parts."""
    path = tmp_path_factory.mktemp("shell")
    rng = np.random.default_rng(0)
    with ek.create(path / "run[a].h5", {NASTY: ek.Field((), "f8", unit="[red]m"), "=u": ek.Field((3,), "f4")},
                   provenance={"note": "[link=x]\x1b[31mred", "[dim]key": ":smile:"}) as store:
        store.extend({NASTY: rng.normal(size=200), "=u": rng.normal(size=(200, 3)).astype("f4")}, times=np.arange(200) * 0.5)
    t, x = np.arange(40.0)[:, None], np.linspace(0, 1, 30)
    with ek.create(path / "wave.h5", {"U": ek.Field((30,), "f8", unit="m s-1")}, time_unit="s") as store:
        store.extend({"U": np.sin(6 * x - t) + 0.1 * rng.normal(size=(40, 30))}, times=np.arange(40.0))
    np.savetxt(path / "design.csv", np.arange(40.0)[:, None], header="angle", comments="")
    for k, (start, stop) in enumerate(((0, 60), (40, 100))):
        with ek.create(path / f"part-{k}.h5", {"rg": ek.Field((), "f8", unit="nm")}, run="one", time_unit="ps") as store:
            steps = np.arange(start, stop)
            store.extend({"rg": np.sin(steps)}, times=steps * 2.0, steps=steps)
    return path


# -- JSON and CSV of every verb ------------------------------------------------------------------------------------


def answers(folder: Path) -> dict[str, list[str]]:
    """A command line for each verb that has numbers and needs no extra."""
    wave = str(folder / "wave.h5")
    return {
        "info": ["info", str(folder / "run[a].h5")], "verify": ["verify", wave], "average": ["average", wave, "U"],
        "merge": ["merge", str(folder / "part-0.h5"), str(folder / "part-1.h5"), "-o", "{new}.h5"],
        "pack": ["pack", wave, "-o", "{new}.h5"], "rom average": ["rom", "average", wave, "-o", "{new}.npz"],
        "rom pod": ["rom", "pod", wave, "-k", "3", "-o", "{new}.h5"], "rom plan": ["rom", "plan", wave, "-k", "3"],
        "rom compress": ["rom", "compress", wave, "--tolerance", "0.1", "-o", "{new}.h5"],
        "rom reconstruct": ["rom", "reconstruct", str(folder / "wave.basis.h5"), "-o", "{new}.h5"],
        "rom ingest": ["rom", "ingest", str(folder / "wave.npy"), "-o", "{new}.h5"],
        "rom opinf": ["rom", "opinf", str(folder / "wave.basis.h5"), "--form", "A", "-o", "{new}.h5"],
        "rom dmd": ["rom", "dmd", str(folder / "wave.basis.h5"), "-o", "{new}.h5"],
        "rom galerkin": ["rom", "galerkin", str(folder / "wave.basis.h5"), "--equation", "burgers", "--viscosity", "0.05",
                         "--spacing", "0.1", "-o", "{new}.h5"],
        "rom parametric": ["rom", "parametric", wave, "--parameters", str(folder / "design.csv"), "-k", "2",
                           "--method", "linear", "-o", "{new}.h5"],
        "rom forecast": ["rom", "forecast", str(folder / "wave.model.h5"), "--steps", "5"],
        "rom simulate": ["rom", "simulate", str(folder / "wave.model.h5"), "--steps", "5"],
    }


NUMBERS = ("info", "verify", "average", "merge", "pack", "rom average", "rom pod", "rom plan", "rom compress",
           "rom reconstruct", "rom ingest", "rom opinf", "rom dmd", "rom galerkin", "rom parametric", "rom forecast",
           "rom simulate")
ELSEWHERE = {"md ingest", "md average", "md rdf", "md report", "md field", "md spectrum absorption",
             "md spectrum ir", "md ensemble", "md compare", "md reweight",
             "neural ingest", "neural plan", "neural report", "bench",
             "neural select", "neural equivalent", "neural ergodicity", "neural detect", "neural segment",
             "neural drift", "neural trajectory"}
"""With numbers too; run where their packages are."""
NO_NUMBERS = {"export", "tour", "md topology", "rom export", "rom decompress", "rom plot", "neural export"}


@pytest.mark.filterwarnings("ignore:the cut after mode")
@pytest.mark.parametrize("verb", NUMBERS)
def test_json_on_stdout_is_one_document(verb: str, folder: Path, tmp_path: Path) -> None:
    from ensemblekit import rom

    np.save(folder / "wave.npy", ek.open(folder / "wave.h5")["U"][:])
    if verb.startswith(("rom reconstruct", "rom opinf", "rom dmd", "rom galerkin", "rom forecast", "rom simulate")):
        basis = rom.pod(ek.open(folder / "wave.h5"), rank=2)
        basis.save(folder / "wave.basis.h5")
        rom.operator_inference(basis, form="A").save(folder / "wave.model.h5")
    words = [word.format(new=tmp_path / "new") for word in answers(folder)[verb]]
    out, _ = run(*words, "--json", "-")
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (document["schema"], document["schema_version"]) == ("ensemblekit.results", 1)
    assert document["ensemblekit"] == ek.__version__
    assert document["command"] == ["ensemblekit", *words, "--json", "-"]
    assert document["results"]
    assert document["versions"]["numpy"] == np.__version__
    assert document["inputs"][0]["bytes"] == os.path.getsize(document["inputs"][0]["path"])
    assert len(document["inputs"][0]["xxh3_128_of_ends"]) == 32
    if "--csv" in {opt for param in VERBS[tuple(verb.split())].params for opt in param.opts}:
        out, _ = run(*words, "--csv", "-", "--overwrite")
        head, *rows = csv.reader(io.StringIO(out))
        assert rows
        assert all(len(row) == len(head) for row in rows)


def test_every_verb_says_whether_it_has_numbers() -> None:
    assert {" ".join(path) for path in VERBS} == {*NUMBERS, *ELSEWHERE, *NO_NUMBERS}
    for path, verb in VERBS.items():
        has = any("--json" in param.opts for param in verb.params)
        assert has == (" ".join(path) not in NO_NUMBERS), path


def test_the_text_for_people_moves_to_stderr_where_data_take_stdout(folder: Path) -> None:
    out, err = run("average", folder / "wave.h5", "U", "--json", "-")
    assert json.loads(out)
    assert "± " in err
    out, err = run("average", folder / "wave.h5", "U")
    assert "± " in out
    assert err == ""


def test_inputs_are_told_apart_by_head_and_tail(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(3 * provenance.ENDS))
    (before,) = output.inputs_of(str(path))
    with path.open("r+b") as file:
        file.seek(3 * provenance.ENDS - 1)
        file.write(b"1")
    (after,) = output.inputs_of(str(path))
    assert before["bytes"] == after["bytes"]
    assert before["xxh3_128_of_ends"] != after["xxh3_128_of_ends"]


# -- text that is not markup ---------------------------------------------------------------------------------------


def test_text_of_the_user_is_shown_as_it_is(folder: Path) -> None:
    out, _ = run("info", folder / "run[a].h5")
    for word in ("run[a].h5", NASTY, "[red]m", "[link=x]\\x1b[31mred", "[dim]key", ":smile:"):
        assert word in out, out
    assert "\x1b" not in out
    out, _ = run("average", folder / "run[a].h5", NASTY)
    assert "[red]m" in out
    assert "run[a].h5" in run("verify", folder / "run[a].h5")[0]


def test_errors_show_the_names_they_are_about(folder: Path, tmp_path: Path) -> None:
    assert "[/bold]y" in run("average", folder / "wave.h5", "[/bold]y", code=2)[1]
    assert "[nothere]" in run("info", tmp_path / "x[nothere]\x1b[31m.h5", code=2)[1]
    _, err = run("average", folder / "wave.h5", "U", "--begin", "\x1b]0;x", code=2)
    assert "\x1b" not in err
    assert run("info", "[bold]", code=2)[1].startswith("error:")


def test_what_steers_a_terminal_is_shown_by_its_number() -> None:
    assert console.escaped("a\x1b[0m\x9b\u202eb\r\n") == "a\\x1b[0m\\x9b\\u202eb\\x0d\n"
    assert console.escaped("a\nb", keep="") == "a\\x0ab"
    assert console.escaped(os.fsdecode(b"\xff.h5")) == "\\xff.h5"
    assert console.escaped("Å ± 3 µm") == "Å ± 3 µm"
    assert console.encodable("3 ± 1 m² s⁻¹ (τ)", "ascii") == "3 +/- 1 m^2 s^-1 (tau)"
    assert console.encodable("3 ± 1 m²", "cp1252") == "3 ± 1 m²"


def test_cells_are_no_formulas(folder: Path) -> None:
    assert [csv_cell(x) for x in ("=1+1", "+x", "-x", "@x", "-1.5", "+2e3", -1.5, "a\x1b", np.float64(2), None)] == [
        "'=1+1", "'+x", "'-x", "'@x", "-1.5", "+2e3", -1.5, "a\\x1b", 2.0, None]
    out, _ = run("average", folder / "run[a].h5", "=u", "--csv", "-")
    _, *rows = csv.reader(io.StringIO(out))
    assert rows[0][0] == "'=u[0]"
    assert float(rows[0][1]) == pytest.approx(ek.average(ek.open(folder / "run[a].h5")["=u"]).mean[0])
    assert run("export", folder / "run[a].h5", "=u", "-o", "-")[0].splitlines()[0] == "time,'=u[0],'=u[1],'=u[2]"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_any_encoding_of_stdout(encoding: str, folder: Path) -> None:
    for words in (["average", folder / "wave.h5", "U"], ["info", folder / "run[a].h5"], ["--help"]):
        result = CliRunner(charset=encoding).invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        if words[0] == "average":
            assert ("+/-" if encoding == "ascii" else "±") in result.output
        if words[0] == "info":
            assert "[bold]x" in result.output
            assert "| " not in result.output     # no frame


@pytest.mark.parametrize("columns", [80, 60])
def test_tables_fit_the_terminal(columns: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in (["info", "wave.h5"], ["rom", "pod", "wave.h5", "-k", "6", "-o", "x.h5", "--overwrite"]):
        monkeypatch.chdir(folder)
        out, _ = run(*words)
        assert max(map(len, out.splitlines())) <= columns + (20 if "pod" in words else 0), out   # its sentence is longer
        assert "…" not in out.replace("0 … 39 s", "")


def test_a_table_that_does_not_fit_is_a_block_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = console.Console(file=io.StringIO(), width=30, markup=False)
    rows = console.table("a column", "another one", "the third", right=("the third",))
    rows.add_row("some-word-that-is-long", "[bold]x", "1.2345678")
    console.show(rows, narrow)
    lines = [line.rstrip() for line in narrow.file.getvalue().splitlines()]      # type: ignore[attr-defined]
    assert lines[0].split()[:2] == ["a", "column"]
    assert any(line.split() == ["another", "one", "[bold]x"] for line in lines)
    assert max(map(len, lines)) <= 30


# -- exit codes ----------------------------------------------------------------------------------------------------


def test_wrong_use_is_2_in_one_line_and_how() -> None:
    out, _ = run("average", code=2)
    assert "Usage: " in out
    _, err = run("info", "x.h5", "--nothing", code=2)
    assert err.startswith("error: No such option: --nothing")
    assert "ensemblekit info --help" in err.replace("root", "ensemblekit")


def test_an_average_that_has_not_converged_is_4_where_that_is_asked_for(tmp_path: Path) -> None:
    with ek.create(tmp_path / "drift.h5", {"x": ek.Field((), "f8")}) as store:
        store.extend({"x": np.arange(300.0)}, times=np.arange(300.0))
    run("average", tmp_path / "drift.h5", "x")
    _, err = run("average", tmp_path / "drift.h5", "x", "--require-converged", "--json", tmp_path / "x.json", code=4)
    assert "not converged: x" in err
    assert json.loads((tmp_path / "x.json").read_text())["results"]["estimates"]["x"]["converged"] is False
    run("rom", "average", tmp_path / "drift.h5", "--require-converged", "-o", tmp_path / "a.npz", code=4)


@pytest.mark.filterwarnings("ignore:the cut after mode")
def test_an_error_that_is_above_what_was_asked_for_is_4(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("rom", "pod", folder / "wave.h5", "-k", 3, "-o", tmp_path / "a.h5", "--require-certified")
    from dataclasses import replace

    from ensemblekit import rom

    whole = rom.pod
    monkeypatch.setattr(rom, "pod", lambda *args, **options: replace(whole(*args, **options), error_per_snapshot=None))
    _, err = run("rom", "pod", folder / "wave.h5", "-k", 3, "-o", tmp_path / "b.h5", "--require-certified", code=4)
    assert "not measured snapshot by snapshot" in err


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_goes_away_ends_it_with_141(folder: Path) -> None:
    for words in (["info", "wave.h5"], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.Popen([sys.executable, "-m", "ensemblekit", *words], stdout=writer, stderr=subprocess.PIPE,
                                   cwd=folder)
        os.close(writer)
        _, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (141, b""), words


def test_head_ends_without_a_traceback(folder: Path) -> None:
    line = f"{shlex.quote(sys.executable)} -m ensemblekit info {'wave.h5 ' * 40} | head -1; exit ${{PIPESTATUS[0]}}"
    process = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert (process.stdout, process.stderr) == ("wave.h5\n", "")
    assert process.returncode in (0, 141)


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ek, "average", stopped)
    assert "interrupted" in run("average", folder / "wave.h5", "U", code=130)[1]


@pytest.mark.parametrize("number", [28, 13, 30, 5, 24])     # no space, no permission, read-only, input/output, too many files
def test_an_error_of_the_system_is_one_line(number: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "some[file]")

    monkeypatch.setattr(ek, "average", failing)
    _, err = run("average", folder / "wave.h5", "U", code=2)
    assert err.startswith(f"error: some[file]: {os.strerror(number)}")
    assert err.count("\n") == 1


def test_damage_is_3_wherever_it_is_met(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ek.errors.StoreDamagedError("snapshot 3 is not what was written")

    import ensemblekit.errors  # noqa: F401  (as ek.errors)

    monkeypatch.setattr(ek, "average", failing)
    run("average", folder / "wave.h5", "U", code=3)


# -- outputs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading fails the test."""
    monkeypatch.setattr(ek, "average", lambda *_, **__: pytest.fail("the work began"))


@pytest.mark.usefixtures("no_work")
def test_outputs_are_looked_at_before_the_work(folder: Path, tmp_path: Path) -> None:
    wave = folder / "wave.h5"
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").write_text("mine")
    for words, said in (
            (["--json", tmp_path / "no" / "x.json"], "there is no folder"),
            (["--json", tmp_path / "there.json"], "--overwrite"),
            (["--csv", tmp_path], "is a folder"), (["--json", wave, "--overwrite"], "is what is read"),
            (["--json", "-", "--csv", "-"], "stdout takes one"), (["--plot", tmp_path / "x.png"], "go to a folder"),
            (["--plot", tmp_path / "figures"], "figures already"), (["--plot", tmp_path / "there.json"], "is a file"),
            (["--json", tmp_path / "a", "--csv", tmp_path / "a"], "two outputs have one name")):
        _, err = run("average", wave, "U", *words, code=2)
        assert said in err, words
    assert (tmp_path / "there.json").read_text() == "mine"


@pytest.mark.usefixtures("no_work")
def test_a_place_without_room_is_found_before_the_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (28, 30, 13):
        def refused(path: object, number: int = number) -> str:
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(output, "temporary_beside", refused)
        for words in (["--json", tmp_path / "x.json"], ["--plot", tmp_path / "figures"]):
            _, err = run("average", folder / "wave.h5", "U", *words, code=2)
            assert os.strerror(number) in err


def test_overwrite_replaces_and_pipes_are_written_to(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("mine")
    run("average", folder / "wave.h5", "U", "--json", path, "--overwrite")
    assert json.loads(path.read_text())["results"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    reader, writer = os.pipe()
    with os.fdopen(reader) as pipe:
        run("average", folder / "wave.h5", "U", "--csv", f"/dev/fd/{writer}")
        os.close(writer)
        assert pipe.read().startswith("element,mean")


def test_a_full_device_is_one_line(folder: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-m", "ensemblekit", "average", str(folder / "wave.h5"), "U"], stdout=full,
                                 stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    assert process.returncode == 2
    assert process.stderr.startswith("error:")
    assert "No space left on device" in process.stderr
    assert "Traceback" not in process.stderr


# -- words ---------------------------------------------------------------------------------------------------------


def test_a_letter_has_one_meaning_over_all_verbs() -> None:
    meaning = defaultdict(set)
    long_names = defaultdict(set)
    for verb in VERBS.values():
        for param in verb.params:
            letters = [opt for opt in param.opts if len(opt) == 2 and opt.startswith("-")]
            words = [opt for opt in param.opts if opt.startswith("--")]
            for letter in letters:
                meaning[letter].update(words)
            if words and words[0] in ("--begin", "--end", "--out"):
                long_names[words[0]].update(letters or {"none"})
    assert {letter: len(words) for letter, words in meaning.items() if len(words) > 1} == {}
    assert meaning["-b"] == {"--begin"}
    assert meaning["-e"] == {"--end"}
    assert meaning["-o"] == {"--out"}
    assert long_names == {"--begin": {"-b"}, "--end": {"-e"}, "--out": {"-o"}}


def test_plot_is_a_folder_and_overwrite_is_there_wherever_files_are_written() -> None:
    for path, verb in VERBS.items():
        names = {opt: param for param in verb.params for opt in param.opts}
        if "--plot" in names:
            assert names["--plot"].metavar == "FOLDER", path
        if output_options := {"--json", "--csv", "--out", "--plot", "--pdb"} & set(names):
            assert "--overwrite" in names, (path, output_options)
            assert "--plots" not in names


def test_every_help_has_two_examples_that_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shown = defaultdict(list)
    for example in verbs.EXAMPLES:
        line = example.partition(" | ")[0]
        program, *words = shlex.split(line)
        assert program == "ensemblekit"
        command, path = ROOT, []
        while hasattr(command, "commands"):
            path.append(words.pop(0))
            command = command.commands[path[-1]]
        command.make_context(" ".join(path), words)     # parsed, not run
        shown[tuple(path)].append(example)
    assert shown.keys() == VERBS.keys()
    assert {path: len(lines) for path, lines in shown.items() if not 2 <= len(lines) <= 3} == {}
    for path, lines in shown.items():
        assert all(f"$ {line}".replace("[", "\\[") in (VERBS[path].epilog or "") for line in lines), path
    out, _ = run("info", "--help")
    assert all(line in " ".join(out.split()) for line in shown["info",])


def test_completion_is_on() -> None:
    process = shell(_ENSEMBLEKIT_COMPLETE="complete_bash", COMP_WORDS="ensemblekit rom re", COMP_CWORD="2")
    assert "reconstruct" in process.stdout.split()


# -- pack and merge ------------------------------------------------------------------------------------------------


def test_pack_seals_and_compresses(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    values = np.repeat(np.arange(256.0), 256).reshape(256, 256)
    with ek.create(path, {"u": ek.Field((256,), "f8", unit="m")}, capacity=1000) as store:
        store.extend({"u": values}, times=np.arange(256.0))
    run("pack", path, "-o", tmp_path / "packed.h5")
    packed = ek.open(tmp_path / "packed.h5")
    assert packed.sealed
    np.testing.assert_array_equal(packed["u"][:], values)
    assert (tmp_path / "packed.h5").stat().st_size < values.nbytes / 2
    assert "there already" in run("pack", path, "-o", tmp_path / "packed.h5", code=2)[1]
    run("pack", path, "-o", tmp_path / "packed.h5", "--compression", "1e-3", "--overwrite")
    np.testing.assert_allclose(ek.open(tmp_path / "packed.h5")["u"][:], values, rtol=1e-3)
    assert "for good" in run("pack", path, "--compression", "8", code=2)[1]
    run("pack", path)
    assert ek.open(path).sealed
    np.testing.assert_array_equal(ek.open(path)["u"][:], values)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["packed.h5", "run.h5"]
    assert "--compression is" in run("pack", path, "--compression", "much", code=2)[1]


def test_merge_joins_parts_of_a_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "whole.h5"
    said, err = run("merge", folder / "part-1.h5", folder / "part-0.h5", "-o", out)
    assert "first 20 snapshots" in err
    assert "100 snapshots of 2 stores, 20 of them there twice" in said
    whole = ek.open(out)
    np.testing.assert_array_equal(whole["rg"][:], np.sin(np.arange(100)))
    np.testing.assert_array_equal(whole.times, 2.0 * np.arange(100))
    np.testing.assert_array_equal(whole.steps, np.arange(100))
    assert (whole.run, whole.fields["rg"].unit, whole.time_unit) == ("one", "nm", "ps")
    assert ek.verify(out).ok
    assert [p.name for p in tmp_path.iterdir()] == ["whole.h5"]
    assert "several stores" in run("merge", out, "-o", tmp_path / "x.h5", code=2)[1]
    with ek.create(tmp_path / "other.h5", {"rg": ek.Field((), "f8", unit="nm")}, time_unit="ps") as other:
        other.extend({"rg": np.zeros(3)}, times=np.arange(3.0))
    assert "independent runs" in run("merge", out, tmp_path / "other.h5", "-o", tmp_path / "x.h5", code=2)[1]
    assert "is what is read" in run("merge", out, tmp_path / "other.h5", "-o", out, "--overwrite", code=2)[1]
