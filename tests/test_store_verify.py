"""The three verdicts of verify: no sound store is called damaged, no damage is called sound, and what is unknown is said."""

import os
import resource
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import StoreDamagedError, StoreError
from ensemblekit.store import verify as checking
from ensemblekit.store.memory import MemoryStore

TWO = {"u": ek.Field((), clock="a"), "v": ek.Field((), clock="b")}


def test_a_clock_that_was_cut_back_while_another_went_on(tmp_path):
    path = tmp_path / "run.h5"
    with ek.create(path, TWO, capacity=4) as store:
        store.extend({"v": np.arange(5.0)}, clock="b")
        store.extend({"u": np.arange(9.0)}, clock="a")
        store.truncate(4, clock="b")
        store.extend({"u": np.arange(5.0)}, clock="a")
        assert ek.verify(path).verdict == "sound"
    assert str(ek.verify(path)) == f"{path}: 18 snapshots, all as they were written"


def flip(file, at):
    with open(file, "r+b") as f:
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ 1]))


def spans(path, name):
    """The file and the byte of every committed row."""
    source = ek.open(path)[name]
    for span in source.table.spans(name, 0, len(source), 1):
        for k in range(span.n):
            yield span.path, span.dataset.offset + (span.first + k) * span.dataset.stride


@pytest.mark.parametrize("seed", range(3))
def test_any_history_is_sound_and_any_flipped_byte_is_not(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = str(tmp_path / "run.h5")
    store, twin = ek.create(path, TWO, capacity=4), MemoryStore(TWO)
    for k in range(20):
        clock, name = (("a", "u"), ("b", "v"))[rng.integers(2)]
        kept = len(twin[name])
        if rng.random() < 0.3 and kept:
            n = int(rng.integers(kept + 1))
            for s in (store, twin):
                s.truncate(n, clock=clock)
        elif rng.random() < 0.15:
            store.close()
            store = ek.open(path, "a", capacity=4)
        else:
            values = rng.normal(size=rng.integers(1, 8))
            for s in (store, twin):
                s.extend({name: values}, clock=clock)
        if k % 7 == 6:
            assert ek.verify(path).verdict == "sound", str(ek.verify(path))
    store.close()
    report = ek.verify(path)
    assert report.verdict == "sound", str(report)
    assert report.snapshots == len(twin["u"]) + len(twin["v"])
    rows = [(name, k, place) for name in ("u", "v") for k, place in enumerate(spans(path, name))]
    name, k, (file, at) = rows[rng.integers(len(rows))]
    flip(file, at)
    report = ek.verify(path)
    assert report.verdict == "damaged"
    assert report.by_field == {name: (k,)}          # by its number in the store, whatever was cut before it


def test_a_live_writer_is_no_damage(tmp_path):
    path = tmp_path / "run.h5"
    store = ek.create(path, TWO, capacity=500)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            store.append({"u": 1.0}, clock="a")
            if len(store["u"]) % 700 == 0:
                store.truncate(len(store["u"]) - 300, clock="a")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        verdicts = {ek.verify(path).verdict for _ in range(2)}
    finally:
        stop.set()
        writer.join()
        store.close()
    assert verdicts <= {"sound", "not checked"}
    assert ek.verify(path).verdict == "sound"


@pytest.mark.parametrize("limit", [5_000_000_000, 100_000_000])
def test_a_limit_on_memory_is_no_damage(tmp_path, limit):
    path = tmp_path / "run.h5"
    with ek.create(path, {"x": ek.Field((3,))}) as store:
        store.append({"x": [1, 2, 3]})

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    code = "import sys; from ensemblekit.store.file_check import check_file, main; main()"
    done = subprocess.run([sys.executable, "-c", code, "inside", str(path), "60"], capture_output=True, text=True,
                          preexec_fn=limited)
    if limit > 1 << 30:
        assert '"problems": [], "unchecked": []' in done.stdout, done.stdout + done.stderr
    else:
        assert checking._end_of(done, 60)["unchecked"], done.stdout + done.stderr
        assert not checking._end_of(done, 60)["problems"]


@pytest.mark.parametrize(("code", "verdict", "words"), [
    (-signal.SIGXCPU, "damaged", "libhdf5 hangs"), (-signal.SIGSEGV, "damaged", "libhdf5 dies"),
    (-signal.SIGKILL, "not checked", "memory"), (1, "not checked", "No module named 'h5py'"),
])
def test_how_the_child_ends_is_told_apart(tmp_path, monkeypatch, code, verdict, words):
    path = tmp_path / "run.h5"
    ek.create(path, {"x": ek.Field((3,))}).close()
    monkeypatch.setattr(checking.subprocess, "run", lambda *_, **__: SimpleNamespace(
        returncode=code, stdout="", stderr="Traceback ...\nModuleNotFoundError: No module named 'h5py'\n"))
    report = ek.verify(path)
    assert report.verdict == verdict
    assert words in str(report)
    with pytest.raises(StoreDamagedError if verdict == "damaged" else StoreError, match="run") as caught:
        ek.open(path, check=True)
    assert isinstance(caught.value, StoreDamagedError) == (verdict == "damaged")


def test_a_machine_too_busy_to_check_is_said(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    ek.create(path, {"x": ek.Field((3,))}).close()
    monkeypatch.setattr(checking, "PATIENCE", 1e-4)
    report = ek.verify(path)
    assert report.verdict == "not checked"
    assert "busy machine" in str(report)


def test_a_process_that_cannot_be_started_is_said(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    ek.create(path, {"x": ek.Field((3,))}).close()

    def fails(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(checking.subprocess, "run", fails)
    assert "Cannot allocate memory" in str(ek.verify(path))
    assert ek.verify(path).verdict == "not checked"


def test_files_without_checksums_and_files_that_are_not_there(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as f:
        f["x"] = np.arange(3)
    foreign, absent, folder = (ek.verify(tmp_path / name) for name in ("foreign.h5", "absent.h5", "."))
    assert {foreign.verdict, absent.verdict, folder.verdict} == {"not checked"}
    assert "no checksums" in str(foreign)
    assert "no such file" in str(absent)
    assert "is a folder" in str(folder)
    (tmp_path / "text.h5").write_text("not HDF5")
    assert ek.verify(tmp_path / "text.h5").verdict == "damaged"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "run.h5"
    ek.create(path, {"x": ek.Field((3,))}).close()
    path.chmod(0)
    assert "Permission denied" in str(ek.verify(path))
    assert ek.verify(path).verdict == "not checked"


def test_the_exit_codes_of_the_shell(tmp_path):
    path = tmp_path / "run.h5"
    with ek.create(path, {"x": ek.Field((3,))}) as store:
        store.append({"x": [1, 2, 3]})
    ((file, at),) = spans(str(path), "x")

    def shell(*files):
        done = subprocess.run([sys.executable, "-m", "ensemblekit", "verify", *map(str, files)], capture_output=True, text=True)
        return done.returncode, done.stdout

    assert shell(path)[0] == 0
    absent = shell(path, tmp_path / "absent.h5")
    assert absent[0] == 2
    assert "not checked" in absent[1]
    flip(file, at)
    assert shell(path, tmp_path / "absent.h5")[0] == 3


def test_a_file_that_ends_the_child_does_not_hide_the_others(tmp_path):
    path = tmp_path / "run.h5"
    with ek.create(path, {"x": ek.Field((3,))}, capacity=2) as store:
        for k in range(6):
            store.append({"x": [k, k, k]})
    flip(*list(spans(path, "x"))[5])
    os.truncate(tmp_path / "run.0001.h5", 100)
    report = ek.verify(path)
    assert report.verdict == "damaged"
    assert "run.0001.h5: libhdf5" in str(report)
    assert "run.0002.h5: x: snapshots" in str(report)


def test_a_sealed_store_of_zeros_is_sound_and_is_read(tmp_path):
    """zstd packs it more than a thousand times, which deflate cannot."""
    with ek.create(tmp_path / "a.h5", {"u": ek.Field((3, 7 << 20), "f4")}, capacity=2) as store:
        for _ in range(2):
            store.append({"u": np.zeros((3, 7 << 20), "f4")})
        store.seal(tmp_path / "b.h5", "zstd").close()
    assert (168 << 20) > 2000 * os.path.getsize(tmp_path / "b.h5")
    report = ek.verify(tmp_path / "b.h5")
    assert report.verdict == "sound", report
    assert not ek.open(tmp_path / "b.h5")["u"][1:].any()
