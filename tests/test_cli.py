"""The shell commands, in this process (CliRunner) and as real ones."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit.cli import app
from ensemblekit.cli.average import chosen, discarded
from ensemblekit.cli.console import size
from ensemblekit.cli.export import labels
from ensemblekit.errors import InputError
from ensemblekit.results import plain

SERIES = np.random.default_rng(0).normal(18.0, 1.0, 400)
FIELDS = np.arange(400 * 6, dtype=np.float32).reshape(400, 2, 3)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    fields = {"rg": ek.Field((), "f8", unit="angstrom"), "u": ek.Field((2, 3), "f4", unit="m s-1")}
    with ek.create(path, fields) as opened:
        opened.extend({"rg": SERIES, "u": FIELDS}, times=0.5 * np.arange(400))
    return path


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def shell(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ensemblekit", *map(str, args)], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=600, check=False)


def test_version() -> None:
    process = shell("--version")
    assert (process.returncode, process.stdout, process.stderr) == (0, f"ensemblekit {ek.__version__}\n", "")


def test_help_names_the_commands() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in ("info", "verify", "average", "export", "tour", "bench"))


def test_an_error_of_ours_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    process = shell("export", tmp_path / "run.h5", "rg", "--out", "rg.txt")
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("error: --out names a file that ends in .npz or .csv; got rg.txt")


def test_debug_shows_where(tmp_path: Path) -> None:
    process = shell("--debug", "export", tmp_path / "run.h5", "rg", "--out", "rg.txt")
    assert "Traceback" in process.stderr


def test_bench_without_a_clone_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ek, "__file__", str(tmp_path / "site-packages" / "ensemblekit" / "__init__.py"))
    code, _, err = run("bench")
    assert code == 2
    assert "has no folder benchmarks/" in " ".join(err.split())


def test_info(store: Path) -> None:
    code, out, _ = run("info", store)
    assert code == 0
    for word in ("rg", "scalar", "float64", "angstrom", "2 × 3", "float32", "m s-1", "400", "199.5"):
        assert word in out


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    code, _, err = run("info", tmp_path / "nothere.h5")
    assert code == 2
    assert "nothere.h5" in err.replace("\n", "")


def test_an_unknown_field_lists_those_there_are(store: Path) -> None:
    code, _, err = run("average", store, "velocity")
    assert code == 2
    assert "'rg', 'u'" in err


def test_verify_of_a_sound_store(store: Path) -> None:
    code, out, _ = run("verify", store)
    assert code == 0
    assert out.startswith("sound")


def test_verify_of_a_damaged_store_ends_with_3(store: Path) -> None:
    whole = bytearray(store.read_bytes())
    at = whole.find(FIELDS[7].tobytes()[4:])
    whole[at] ^= 1
    store.write_bytes(whole)
    code, out, _ = run("verify", store)
    assert code == 3
    assert out.startswith("damaged")
    assert "7" in out


def test_export_csv(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert run("export", store, "rg", "u", "--out", out, "--start", 10, "--step", 3)[0] == 0
    head, *rows = list(csv.reader(out.open()))
    assert head == ["time", "rg", *(f"u[{i},{j}]" for i in range(2) for j in range(3))]
    values = np.array(rows, dtype=float)
    np.testing.assert_array_equal(values[:, 0], 0.5 * np.arange(400)[10::3])
    np.testing.assert_array_equal(values[:, 1], SERIES[10::3])
    np.testing.assert_array_equal(values[:, 2:], FIELDS[10::3].reshape(-1, 6))


def test_export_npz(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    assert run("export", store, "u", "--out", out)[0] == 0
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["u"], FIELDS)
        np.testing.assert_array_equal(arrays["u/time"], 0.5 * np.arange(400))


def test_average_prints_and_writes(store: Path, tmp_path: Path) -> None:
    code, out, _ = run("average", store, "rg", "--json", tmp_path / "rg.json", "--csv", tmp_path / "rg.csv")
    assert code == 0
    assert "±" in out
    document = json.loads((tmp_path / "rg.json").read_text())["results"]["estimates"]["rg"]
    assert document["mean"] == pytest.approx(ek.average(ek.open(store)["rg"]).mean)
    head, row = list(csv.reader((tmp_path / "rg.csv").open()))
    assert head == ["element", "mean", "stderr", "low", "high", "unit", "n", "n_eff", "converged"]
    assert float(row[3]) < float(row[1]) < float(row[4])


def test_average_by_time_is_average_by_number(store: Path, tmp_path: Path) -> None:
    run("average", store, "rg", "--begin", 50, "--end", 149.9, "--json", tmp_path / "time.json")
    run("average", store, "rg", "--start", 100, "--stop", 300, "--json", tmp_path / "number.json")
    time, number = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("time", "number"))
    assert time["results"] == number["results"]


class View:
    """What `chosen` asks of a stored field."""

    times = 0.5 * np.arange(400)
    time_unit = "ps"

    def window(self, *range_: int) -> tuple[int, ...]:
        return range_


def test_times_become_numbers() -> None:
    assert chosen(View(), 50, 149.5, 0, None, 2) == (100, 300, 2)
    assert chosen(View(), None, 1.0, 0, None, 1) == (0, 3, 1)
    with pytest.raises(InputError, match="not by both"):
        chosen(View(), 50, None, 3, None, 1)
    with pytest.raises(InputError, match=r"from 0 to 199\.5 ps"):
        chosen(View(), 300, 400, 0, None, 1)


def test_equilibration_is_a_word_or_a_number() -> None:
    assert [discarded(word) for word in ("auto", "none", "12")] == ["auto", None, 12]
    with pytest.raises(InputError, match="'soon'"):
        discarded("soon")


def test_json_knows_no_nan() -> None:
    assert plain({"a": np.array([1.0, np.nan]), "b": (np.float64(2.0), np.inf)}) == {"a": [1.0, None], "b": [2.0, None]}


def test_labels_and_sizes() -> None:
    assert labels("u", ()) == ["u"]
    assert labels("u", (2, 2)) == ["u[0,0]", "u[0,1]", "u[1,0]", "u[1,1]"]
    assert [size(n) for n in (0, 999, 1000, 12_340_000, 999_999_999)] == ["0 B", "999 B", "1 kB", "12.3 MB", "1 GB"]


def test_info_shortens_long_provenance():
    from ensemblekit.cli.info import short

    assert short("a note") == "a note"
    assert short({"n": 3}) == '{"n": 3}'
    assert short({"names": ["CA"] * 500, "bonds": [[0, 1]] * 9}) == "names (500), bonds (9)"
    assert short(list(range(1000))) == "1000 values"
    assert len(short("x" * 10000)) < 200
