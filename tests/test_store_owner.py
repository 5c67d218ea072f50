"""A store open for appending has one owner: threads take turns, other processes, copies and names are refused."""

import copy
import os
import pickle
import signal
import stat
import threading
from contextlib import nullcontext, suppress

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import StoreBusyError, StoreError
from ensemblekit.files import replacing, write_text
from ensemblekit.store.hdf5 import write_arrays
from ensemblekit.store.segments import Segment
from ensemblekit.store.store import Store
from ensemblekit.store.writer import Writer

SCALAR = {"u": ek.Field((), np.dtype("f8"))}


def child(work):
    """Run in a forked child; the text of the error it met, "" where it met none."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            text = ""
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    return text


@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_threads_append_in_turn(tmp_path, n):
    path = tmp_path / "a.h5"
    whole = []
    with ek.create(path, SCALAR, capacity=3 * n) as store:
        def write(k):
            for i in range(n):
                store.append({"u": k * n + i})

        def read():
            for _ in range(20):
                seen = store["u"][:]
                whole.append(bool((seen[:] == seen.astype(int)).all() and len(seen) <= 8 * n))

        threads = [threading.Thread(target=write, args=(k,)) for k in range(8)] + [threading.Thread(target=read)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(store) == 8 * n
    values = ek.open(path)["u"][:]
    assert np.array_equal(np.sort(values), np.arange(8 * n))
    for k in range(8):
        assert (np.diff(values[values // n == k]) > 0).all()
    assert all(whole)
    assert ek.open(path).verify().ok


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("within", [lambda s: s, lambda s: {"kept": [s]}, lambda s: ek.ReplicaSet([s, s])])
def test_writer_is_neither_pickled_nor_copied(tmp_path, send, within):
    with ek.create(tmp_path / "a.h5", SCALAR) as store:
        store.append({"u": 1.0})
        if send is copy.copy and within(store) is not store:
            return      # a shallow copy of what holds the writer holds the same writer
        with pytest.raises(StoreError, match="open for appending"):
            send(within(store))
        assert pickle.loads(pickle.dumps(store["u"]))[:].tolist() == [1.0]      # views read, and go anywhere
        assert len(pickle.loads(pickle.dumps(store.clock()))) == 1
        if send is pickle.dumps and within(store) is store:
            assert ek.reduce(store, ek.Moments(), engine=ek.Processes(2)).mean == 1.0
    for reader in (store, ek.open(tmp_path / "a.h5")):
        assert pickle.loads(pickle.dumps(reader))["u"][:].tolist() == [1.0]


@pytest.mark.parametrize("call", [
    lambda s: s.append({"u": 5.0}), lambda s: s.extend({"u": np.ones(3)}), lambda s: s.flush(), lambda s: s.truncate(0),
    lambda s: s.seal()], ids=["append", "extend", "flush", "truncate", "seal"])
def test_forked_child_reads_and_does_not_write(tmp_path, call):
    with ek.create(tmp_path / "a.h5", SCALAR) as store:
        store.append({"u": 1.0})
        assert "a writer stays in its process" in child(lambda: call(store))

        def read():
            assert store["u"][:].tolist() == [1.0]
            assert len(store) == store.refresh() == 1

        assert child(read) == ""
        assert child(store.close) == ""
        with pytest.raises(StoreBusyError):         # the child released nothing
            ek.open(tmp_path / "a.h5", "a")
        store.append({"u": 2.0})
    with ek.open(tmp_path / "a.h5", "a") as again:      # and kept nothing
        assert again["u"][:].tolist() == [1.0, 2.0]
    assert ek.open(tmp_path / "a.h5").verify().ok


def test_child_of_a_store_in_whole_files_writes_nothing_at_close(tmp_path):
    with Store.create(tmp_path / "a.h5", SCALAR, in_place=False) as store:
        store.append({"u": 1.0})
        assert child(store.close) == ""
        assert len(ek.open(tmp_path / "a.h5")) == 0
    assert ek.open(tmp_path / "a.h5")["u"][:].tolist() == [1.0]


def test_child_does_not_keep_the_store_busy(tmp_path):
    store = ek.create(tmp_path / "a.h5", SCALAR)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)        # until the parent is done
        os._exit(0)
    store.append({"u": 1.0})
    store.close()
    ek.open(tmp_path / "a.h5", "a").close()
    os.close(write)
    os.waitpid(pid, 0)


def test_every_name_of_a_store_leads_to_one_writer(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "folder").symlink_to(home)
    monkeypatch.chdir(home)
    with ek.create("a.h5", SCALAR, capacity=2) as store:
        (tmp_path / "link.h5").symlink_to(home / "a.h5")
        os.link("a.h5", tmp_path / "hard.h5")
        store.append({"u": 0.0})
        monkeypatch.chdir(tmp_path)
        for name in ("home/a.h5", "home/../home/a.h5", "folder/a.h5", "link.h5", "hard.h5", str(home / "a.h5")):
            with pytest.raises(StoreError, match=r"being written|hard links"):
                ek.open(name, "a")
        for k in range(1, 5):
            store.append({"u": k})      # further files and the lock's folder stay with the first
        assert sorted(os.listdir(home)) == ["a.0001.h5", "a.0002.h5", "a.h5", "a.h5.d"]
        os.unlink("hard.h5")
    assert ek.open("link.h5")["u"][:].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    with ek.open("link.h5", "a") as again:
        again.append({"u": 5.0})
    assert sorted(os.listdir(tmp_path)) == ["folder", "home", "link.h5"]
    assert ek.open(home / "a.h5")["u"][:].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("lose", ["folder", "name"])
def test_store_that_loses_its_folder_or_name_gets_no_second_writer(tmp_path, lose):
    path = tmp_path / "a.h5"
    store = ek.create(path, SCALAR)
    store.append({"u": 1.0})
    if lose == "folder":
        os.unlink(tmp_path / "a.h5.d" / "lock")
        os.rmdir(tmp_path / "a.h5.d")
    else:
        path = path.rename(tmp_path / "b.h5")
    with pytest.raises(StoreBusyError):
        ek.open(path, "a")
    assert ek.open(path)["u"][:].tolist() == [1.0]
    with nullcontext() if lose == "folder" else pytest.raises(StoreError, match="renamed"):
        store.close()
    ek.open(path, "a").close()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_folder_of_the_lock_is_a_folder(tmp_path, kind):
    ek.create(tmp_path / "a.h5", SCALAR).close()
    os.unlink(tmp_path / "a.h5.d" / "lock")
    os.rmdir(tmp_path / "a.h5.d")
    if kind == "link":
        (tmp_path / "a.h5.d").symlink_to(tmp_path)
    else:
        (tmp_path / "a.h5.d").write_text("notes")
    with pytest.raises(StoreError, match="move it elsewhere"):
        ek.open(tmp_path / "a.h5", "a")


@pytest.mark.parametrize("call", [
    lambda s: s.append({"u": 9.0}), lambda s: s.extend({"u": np.ones(2)}), lambda s: s.flush(), lambda s: s.truncate(0)])
def test_signal_handler_within_an_append_is_refused(tmp_path, monkeypatch, call):
    from ensemblekit.store import writer as module

    met = []

    def handler(*_):
        try:
            call(store)
        except StoreError as error:
            met.append(error)
        assert len(store) == store.refresh() == 1       # reading is fine
        store.close()                                   # takes place when the append is over

    def interrupted(*args):
        signal.raise_signal(signal.SIGUSR1)
        return real(*args)

    store, real = ek.create(tmp_path / "a.h5", SCALAR), module.checksums
    store.append({"u": 1.0})
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monkeypatch.setattr(module, "checksums", interrupted)
        store.append({"u": 2.0})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [type(error) for error in met] == [StoreBusyError]
    assert not store.writable
    assert ek.open(tmp_path / "a.h5")["u"][:].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("where", [(Segment, "write"), (Writer, "commit")])
def test_interrupted_append_leaves_the_store_usable(tmp_path, monkeypatch, when, where):
    owner, name = where
    real = getattr(owner, name)

    def interrupted(*args, **options):
        if when == "after":
            real(*args, **options)
        raise KeyboardInterrupt

    with ek.create(tmp_path / "a.h5", SCALAR, capacity=2) as store:
        store.append({"u": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.append({"u": 2.0})
        there = [1.0, 2.0][:len(store)]
        assert len(there) == (2 if when == "after" else 1)
        store.extend({"u": [3.0, 4.0]})
        assert store.steps.tolist() == list(range(len(there) + 2))
    assert ek.open(tmp_path / "a.h5")["u"][:].tolist() == [*there, 3.0, 4.0]


# -- files written whole -------------------------------------------------------------------------------------------

def test_name_in_the_way_of_a_temporary_is_not_written_to(tmp_path):
    """What another user could guess of the names, the number of the process included, leads nowhere."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("a.h5", "s.h5", "x.h5"):
        for end in (f"tmp{os.getpid()}", f"{os.getpid()}.tmp", f"{os.getpid()}.part"):
            (tmp_path / f"{name}.{end}").symlink_to(precious)
    with ek.create(tmp_path / "a.h5", SCALAR) as store:
        store.append({"u": 1.0})
        store.seal(tmp_path / "s.h5")
    write_arrays(str(tmp_path / "x.h5"), {"u": np.ones(3)})
    assert precious.read_text() == "mine"


def test_calls_for_one_target_give_one_whole_result_each(tmp_path):
    with ek.create(tmp_path / "a.h5", SCALAR) as store:
        store.extend({"u": np.arange(50.0)})
    errors = []

    def write(k):
        try:
            write_arrays(str(tmp_path / "x.h5"), {"u": np.full(2000, float(k))})
            write_text(tmp_path / "x.txt", f"{k}" * 2000)
            with suppress(StoreError):      # is there already
                ek.open(tmp_path / "a.h5").seal(tmp_path / "s.h5")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert len(set(ek.open(tmp_path / "x.h5")["u"][:])) == 1
    text = (tmp_path / "x.txt").read_text()
    assert len(text) == 2000
    assert len(set(text)) == 1
    assert ek.open(tmp_path / "s.h5")["u"][:].tolist() == list(range(50))
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "a.h5.d", "s.h5", "x.h5", "x.txt"]


def test_replacing_treats_the_target_as_open_does(tmp_path):
    target, link = tmp_path / "out.csv", tmp_path / "link.csv"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "fresh", "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640
    write_text("/dev/null", "x")                # no file: written to directly
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(FileNotFoundError, match=r"nowhere/x\.csv'"):
        write_text(tmp_path / "nowhere" / "x.csv", "x")
    with suppress(RuntimeError), replacing(target) as temporary:
        assert os.path.dirname(temporary) == str(tmp_path)
        raise RuntimeError
    assert target.read_text() == "new"
    with replacing(link) as temporary:          # without follow, the name itself
        assert os.path.getsize(temporary) == 0
    assert not link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["fresh", "link.csv", "out.csv"]
