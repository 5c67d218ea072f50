"""How files and results came about: in stores, bases, archives, reports and JSON, and what `ensemblekit info` shows of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit import provenance, rom
from ensemblekit.cli import app
from ensemblekit.provenance import Provenance
from ensemblekit.store.store import Store

WAVE = np.sin(6 * np.linspace(0, 1, 30) - np.arange(40.0)[:, None])


def shell(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture
def wave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with ek.create("wave.h5", {"U": ek.Field((30,), "f8", unit="m s-1")}, provenance={"mine": 3}) as store:
        store.extend({"U": WAVE + 0.1 * np.random.default_rng(0).normal(size=WAVE.shape)}, times=np.arange(40.0))
    return tmp_path / "wave.h5"


def checked(result: Provenance | None, function: str) -> Provenance:
    """What every record has."""
    assert result is not None
    assert result.ensemblekit == ek.__version__
    assert result.versions["python"].count(".") >= 2
    assert result.versions["numpy"] == np.__version__
    assert "MDAnalysis" not in result.versions or "MDAnalysis" in sys.modules
    assert result.caller.endswith(f"test_provenance.py: {function}")
    assert result.date.endswith("+00:00")
    assert result.command
    assert Provenance.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert "/" not in result.caller or not result.caller.startswith("/")
    return result


@pytest.mark.filterwarnings("ignore:the cut after mode")
def test_stores_bases_and_archives_say_how_they_came_about(wave: Path) -> None:
    here = "test_stores_bases_and_archives_say_how_they_came_about"
    store = ek.open(wave)
    checked(store.origin, "wave")
    assert store.provenance["mine"] == 3
    basis = rom.pod(store, rank=2, energy=None, method="gram")
    basis.save("basis.h5")
    for one in (basis, rom.Basis.load("basis.h5"), basis.truncate(1)):
        result = checked(one.provenance, here)
        assert result.settings == {"rank": 2, "method": "gram"}
        assert [one["path"] for one in result.inputs] == ["wave.h5"]
        assert result.inputs[0]["bytes"] == wave.stat().st_size
    stream = rom.IncrementalPOD(rank=2)
    stream.update(WAVE)
    stream.result().save("stream.h5")
    checked(rom.Basis.load("stream.h5").provenance, here)
    archive = rom.compress(store, "archive.h5", tolerance=0.01)
    for again in (archive, archive.save("copy.h5"), rom.Archive.open("archive.h5")):
        result = checked(again.provenance, here)
        assert result.settings == {"tolerance": 0.01}
        assert [one["path"] for one in result.inputs] == ["wave.h5"]
    rom.decompress("archive.h5", "again.h5")
    result = checked(ek.open("again.h5").origin, here)
    assert [one["path"] for one in result.inputs] == ["archive.h5"]
    np.save("wave.npy", WAVE)
    rom.ingest("wave.npy", "ingested.h5")
    result = checked(ek.open("ingested.h5").origin, here)
    assert [one["path"] for one in result.inputs] == ["wave.npy"]
    sealed = ek.open("ingested.h5").seal("sealed.h5")
    assert sealed.origin == result


def test_a_caller_is_named_however_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import ensemblekit as ek\n\n\ndef main():\n    ek.create('a.h5', {'x': ek.Field()})"
                                       ".close()\n\n\nmain()\n")
    subprocess.run([sys.executable, "train.py", "--token", "abc", "--seed=3", "--password=x"], cwd=tmp_path, check=True)
    result = ek.open(tmp_path / "a.h5").origin
    assert result is not None
    assert result.caller == "train.py: main"
    assert result.command == ("train.py", "--token", "***", "--seed=3", "--password=***")


@pytest.mark.filterwarnings("ignore:the cut after mode")
def test_files_of_before_open_as_before_and_odd_records_are_passed_over(wave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Provenance, "to_dict", lambda self: {})
    with ek.create("old.h5", {"x": ek.Field()}) as store:
        store.append({"x": 1.0})
    rom.pod(ek.open(wave), rank=2).save("old-basis.h5")
    rom.compress(ek.open(wave), "old-archive.h5", tolerance=0.01)
    assert ek.open("old.h5").origin is None
    assert rom.Basis.load("old-basis.h5").provenance is None
    assert rom.Archive.open("old-archive.h5").provenance is None
    for name in ("old.h5", "old-basis.h5", "old-archive.h5"):
        assert name in shell("info", name)
    monkeypatch.setattr(Provenance, "to_dict", lambda self: {"versions": 3, "command": "x", "inputs": {"a": 1}, "date": []})
    rom.pod(ek.open(wave), rank=2).save("odd-basis.h5")
    with ek.create("odd.h5", {"x": ek.Field()}) as store:
        store.append({"x": 1.0})
    assert rom.Basis.load("odd-basis.h5").provenance == Provenance(ensemblekit="")
    assert "odd.h5" in shell("info", "odd.h5")


@pytest.mark.filterwarnings("ignore:the cut after mode")
def test_info_shows_it_of_stores_bases_and_archives(wave: Path) -> None:
    rom.pod(ek.open(wave), rank=2).save("basis.h5")
    rom.compress(ek.open(wave), "archive.h5", tolerance=0.01)
    out = shell("rom", "pod", "wave.h5", "-k", "2", "-o", "from[shell].h5", "--json", "-")
    record = json.loads(out)
    assert rom.Basis.load("from[shell].h5").provenance.command == tuple(record["command"])      # type: ignore[union-attr]
    for name, word in (("wave.h5", "created"), ("basis.h5", "2 modes"), ("archive.h5", "times smaller"),
                       ("from[shell].h5", "2 modes")):
        out = " ".join(shell("info", name).split())
        assert word in out, out
        assert f"ensemblekit {ek.__version__}" in out
        assert f"numpy {np.__version__}" in out
        if name != "wave.h5":
            assert "input wave.h5" in out
    assert "'from[shell].h5'" in out
    assert "rank=2" in out
    document = json.loads(shell("info", "wave.h5", "basis.h5", "archive.h5", "--json", "-"))["results"]["files"]
    assert document["wave.h5"]["kind"] == "store"
    assert document["basis.h5"]["kind"] == "basis"
    assert document["archive.h5"]["kind"] == "archive"
    for one in document.values():
        assert one["origin"]["versions"]["numpy"] == np.__version__
    assert document["basis.h5"]["origin"]["inputs"][0]["path"] == "wave.h5"
    assert document["archive.h5"]["fields"][0]["name"] == "U"
    assert document["basis.h5"]["fields"][0]["snapshots"] == [40]


def test_text_of_the_user_in_it_is_no_markup(wave: Path) -> None:
    os.rename(wave, "[bold]\x1b[31m.h5")
    rom.pod(ek.open("[bold]\x1b[31m.h5"), rank=2, method="gram").save("basis.h5")
    out = shell("info", "basis.h5")
    assert "[bold]\\x1b[31m.h5" in out
    assert "\x1b" not in out


def test_the_date_can_be_set_and_the_same_work_writes_the_same_record(wave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    a, b = (rom.pod(ek.open(wave), rank=2, method="gram").provenance for _ in range(2))
    assert a == b
    assert a is not None
    assert a.date == "2001-09-09T01:46:40+00:00"
    for name in ("one.h5", "two.h5"):
        rom.compress(ek.open(wave), name, tolerance=0.01)
    assert Path("one.h5").read_bytes() == Path("two.h5").read_bytes()
    with ek.create("a.h5", {"x": ek.Field()}) as store:
        assert store.provenance["created"] == "2001-09-09T01:46:40Z"
    for wrong in ("soon", "-1", "9" * 40):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        assert abs(provenance.now().year - 2050) < 40


def test_nothing_in_it_names_the_machine(wave: Path) -> None:
    os.mkdir("below")
    os.chdir("below")
    with ek.create("a.h5", {"x": ek.Field()}) as store:
        text = json.dumps(store.origin.to_dict())       # type: ignore[union-attr]
    import socket

    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    assert str(wave.parent) not in text
    assert provenance.portable(str(wave)) == "wave.h5"
    assert provenance.portable(str(wave.parent / "below" / "x" / "a.h5")) == "x/a.h5"
    assert provenance.portable("s3://me:secret@bucket/era.zarr") == "s3://bucket/era.zarr"


def test_many_inputs_and_long_settings_are_counted(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{k}.bin") for k in range(provenance.MOST_INPUTS + 5)]
    for name in names:
        Path(name).write_bytes(b"12345678")
    result = Provenance.now(names, {"weights": np.zeros((100, 2)), "few": np.arange(3), "map": len, "many": list(range(1000))})
    assert len(result.inputs) == provenance.MOST_INPUTS + 1
    assert result.inputs[-1] == {"more_files": 5, "bytes": 40}
    assert result.settings == {"weights": "ndarray of shape (100, 2)", "few": [0, 1, 2], "map": "builtin_function_or_method",
                               "many": "1000 values"}
    assert json.dumps(result.to_dict())


def test_pipes_and_missing_files_are_told_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    one, two = Provenance.now([tmp_path / "pipe", tmp_path / "gone"]).inputs
    assert "xxh3_128_of_ends" not in one
    assert "No such file" in str(two["unreadable"])


def test_stores_of_the_shell_name_what_they_were_merged_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        with ek.create(f"part-{k}.h5", {"x": ek.Field()}, run="one") as store:
            store.extend({"x": np.arange(5.0)}, times=np.arange(5.0) + 5 * k, steps=np.arange(5) + 5 * k)
    shell("merge", "part-0.h5", "part-1.h5", "-o", "whole.h5")
    result = Store.open("whole.h5").origin
    assert result is not None
    assert [one["path"] for one in result.inputs] == ["part-0.h5", "part-1.h5"]
    assert result.command[:2] == ("ensemblekit", "merge")
    assert result.caller == ""
    rom.compress(np.random.default_rng(0).normal(size=(20, 4)), "a.h5", tolerance=0.5)
    ran = CliRunner().invoke(app, ["merge", "a.h5", "part-0.h5", "-o", "b.h5"])
    assert ran.exit_code == 2
    assert "a.h5 is an archive" in ran.stderr
    assert "decompress" in ran.stderr
