"""A modelled loss of power for durability="disk", and a disk that is full: what was acknowledged is there, and right.

Every write, barrier, rename and removal of a real run is logged. A state of the disk after a loss of power is then:
all that stands before a file's last barrier, and of the writes after it any subset of 512-byte sectors, and its length as
then or after some of the changes that followed; names as
after the folder's last barrier, or after some of the changes that followed.
"""

import os
import random
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import StoreError
from ensemblekit.store import blocks
from tests import killing

SECTOR = 512


class Recorder:
    """Logs what a store does to its files, by patching the functions it does it with."""

    def __init__(self, monkeypatch, folder):
        self.log, self.folder = [], str(folder)
        for name in ("pwrite", "ftruncate", "fsync", "fdatasync", "replace", "unlink"):
            monkeypatch.setattr(os, name, getattr(self, name)(getattr(os, name)))

    def pwrite(self, real):
        def call(fd, data, at):
            self.log.append(("write", os.fstat(fd).st_ino, at, bytes(data)))
            return real(fd, data, at)
        return call

    def ftruncate(self, real):
        def call(fd, size):
            self.log.append(("length", os.fstat(fd).st_ino, size))
            return real(fd, size)
        return call

    def fsync(self, real):
        def call(fd):
            stat = os.fstat(fd)
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                self.log.append(("names",))
            else:       # first seen here: libhdf5 wrote it, this is when all of it is on the disk
                self.log.append(("sync", stat.st_ino, os.pread(fd, stat.st_size, 0)))
            return real(fd)
        return call

    fdatasync = fsync

    def replace(self, real):
        def call(a, b):
            self.log.append(("rename", os.stat(a).st_ino, str(a), str(b)))
            return real(a, b)
        return call

    def unlink(self, real):
        def call(a):
            self.log.append(("unlink", None, str(a), None))
            return real(a)
        return call


def after_loss(log, cut, rng):
    """One state of the disk: path -> bytes, when power went after the first `cut` events."""
    names = max((k for k in range(cut) if log[k][0] == "names"), default=-1)
    later = [k for k in range(names + 1, cut) if log[k][0] in ("rename", "unlink")]
    kept_until = rng.choice([names, *later]) if later else names
    there: dict[str, int] = {}
    for kind, inode, a, b in (event for k, event in enumerate(log[:cut]) if event[0] in ("rename", "unlink")
                              and k <= kept_until):
        if kind == "rename":
            there[b] = inode
        else:
            there.pop(a, None)
    disk = {}
    for path, inode in there.items():
        synced = max((k for k in range(cut) if log[k][:2] == ("sync", inode)), default=None)
        assert synced is not None, "a file was given its name before it was on the disk"
        data = bytearray(log[synced][2])
        lengths = [k for k in range(synced, cut) if log[k][:2] == ("length", inode)]
        longest = max([len(data), *(log[k][2] for k in lengths),
                       *(log[k][2] + len(log[k][3]) for k in range(synced, cut) if log[k][:2] == ("write", inode))])
        length = rng.choice([len(data), *(log[k][2] for k in lengths)])
        data += bytes(longest - len(data))
        for k in range(synced, cut):
            if log[k][:2] == ("write", inode):
                at, new = log[k][2:]
                while new:
                    n = min(SECTOR - at % SECTOR, len(new))
                    if rng.random() < 0.5:
                        data[at:at + n] = new[:n]
                        length = max(length, at + n) if not lengths else length
                    at, new = at + n, new[n:]
        del data[length:]
        disk[path] = bytes(data)
    return disk


def losses(tmp_path, monkeypatch, trials, in_place, seed=0, kind="field", shape=(300,)):
    """Try states of the disk at random; returns how many held a store, out of how many."""
    job = {"kind": kind, "shape": shape, "in_place": in_place, "durability": "disk", "capacity": 6}
    real = tmp_path / "real"
    real.mkdir()
    writer, events = killing.Writer(job), []
    with monkeypatch.context() as patch:
        recorder = Recorder(patch, real)
        writer.run(str(real / "run.h5"), lambda what, k: events.append((len(recorder.log), what, k)))
    log = recorder.log
    assert sum(event[0] == "sync" for event in log) > 10
    states = [[], *(state for _, state in writer.operations())]
    rng, opened = random.Random(seed), 0
    barriers = [k for k, event in enumerate(log) if event[0] in ("sync", "names")]     # most is at risk right before one
    for trial in range(trials):
        cut = rng.choice(barriers) if rng.random() < 0.8 else rng.randrange(len(log) + 1)
        disk = after_loss(log, cut, rng)
        begun = max((k for at, what, k in events if what == b"B" and at <= cut), default=0)
        ended = max((k for at, what, k in events if what == b"E" and at <= cut), default=-1)
        name = [name for (name, _), _ in writer.operations()][begun]
        if not disk:
            assert ended < 0, f"trial {trial}: the store is gone after {name}"
            continue
        folder = tmp_path / "lost"
        folder.mkdir()
        for path, data in disk.items():
            with open(folder / os.path.basename(path), "wb") as f:
                f.write(data)
        store = ek.open(folder / "run.h5")
        numbers = killing.numbers_in(store, kind, shape)
        assert killing.between(numbers, states[ended + 1], states[begun + 1]), (trial, cut, name, numbers, states[ended + 1])
        killing.look_with_h5py(str(folder / "run.h5"), kind, shape)
        if not store.sealed:
            with ek.open(folder / "run.h5", "a") as again:
                again.append({k: v[0] for k, v in killing.batch(kind, shape, [900]).items()})
            assert killing.numbers_in(ek.open(folder / "run.h5"), kind, shape) == [*numbers, 900]
        opened += 1
        blocks._maps.clear()
        for entry in os.scandir(folder):
            if entry.is_file():
                os.remove(entry.path)
            else:
                os.remove(folder / entry.name / "lock")
                os.rmdir(entry.path)
        folder.rmdir()
    return opened, trials


@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "whole-files"])
def test_loss_of_power(tmp_path, monkeypatch, in_place):
    opened, trials = losses(tmp_path, monkeypatch, 24, in_place)
    assert opened > trials / 2


def test_loss_of_power_with_many_scalars(tmp_path, monkeypatch):
    opened, trials = losses(tmp_path, monkeypatch, 15, True, kind="scalars", shape=(2,))
    assert opened > trials / 2


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "whole-files"])
def test_loss_of_power_many_times(tmp_path, monkeypatch, in_place):
    print(losses(tmp_path, monkeypatch, 2000, in_place, seed=1))
    (tmp_path / "scalars").mkdir()
    print(losses(tmp_path / "scalars", monkeypatch, 1000, in_place, seed=2, kind="scalars", shape=(2,)))


# ---- the disk is full --------------------------------------------------------------------------------------------

def limited(code, **given):
    """Run code in a process of its own, as a limit on file sizes cannot always be lifted again."""
    given = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    header = """
        import resource, hashlib, numpy as np, ensemblekit as ek
        from ensemblekit.errors import StoreError
        def limit(n): resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
        def digest(store): return [hashlib.sha1(open(p, "rb").read()).hexdigest() for p in store.segments]
    """
    done = subprocess.run([sys.executable, "-c", given + textwrap.dedent(header) + textwrap.dedent(code)],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    return done.stdout


FILL = """
store = ek.create(path, {"x": ek.Field((1000,), "f4"), "e": ek.Field()}, capacity=100, in_place=in_place)
rows = np.arange(300_000, dtype="f4").reshape(300, 1000)
put = lambda k: store.append({"x": rows[k], "e": k}) if in_place else store.extend({"x": rows[k:k + 1], "e": [k]})
for k in range(10): put(k)
before = digest(store)
limit(room)
refused = 0
for _ in range(3):
    n = len(store)
    try:
        for k in range(n, 250): put(k)
    except StoreError as error:
        assert "full" in str(error) and "free some space" in str(error), error
        refused += 1
    else:
        raise SystemExit("the limit was not felt")
    n = len(store)
    reader = ek.open(path)
    assert len(reader) == n and np.array_equal(reader["x"][:], rows[:n]), (len(reader), n)
    try:
        store.extend({"x": rows[n:], "e": np.arange(n, 300)})
    except StoreError as error:
        assert "full" in str(error), error
    n = len(store)
    assert np.array_equal(ek.open(path)["x"][:], rows[:n])
limit(resource.RLIM_INFINITY)
print(refused, len(store))
store.flush()
n = len(store)
store.extend({"x": rows[n:], "e": np.arange(n, 300)})
store.close()
store = ek.open(path)
assert np.array_equal(store["x"][:], rows) and np.array_equal(store["e"][:], np.arange(300)), len(store)
assert np.array_equal(store.steps, np.arange(300))
assert store.verify().ok, str(store.verify())
import os
assert not [name for name in os.listdir(os.path.dirname(path)) if ".tmp" in name]
"""


@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "whole-files"])
@pytest.mark.parametrize("room", [40_000, 400_000], ids=["anywhere", "in the rows"])
def test_a_full_disk_is_said_and_survived(tmp_path, in_place, room):
    if not in_place and room > 40_000:
        pytest.skip("whole files of this size fit")
    out = limited(FILL, path=str(tmp_path / "a.h5"), in_place=in_place, room=room)
    assert out.split()[0] == "3"


def test_a_batch_that_found_room_for_its_beginning(tmp_path):
    out = limited("""
        store = ek.create(path, {"x": ek.Field((1000,), "f4")}, capacity=100)
        rows = np.arange(450_000, dtype="f4").reshape(450, 1000)
        store.extend({"x": rows[:10]})
        store._writer.capacity = 1000       # the first file holds 100; the next one is to be larger than files may be
        limit(1_000_000)
        try: store.extend({"x": rows[10:]})
        except StoreError as error: print("refused")
        n = len(store)
        limit(resource.RLIM_INFINITY)
        store.extend({"x": rows[n:]})
        assert np.array_equal(store["x"][:], rows)
        assert np.array_equal(store.steps, np.arange(450)), store.steps
        print(n)
    """, path=str(tmp_path / "a.h5"))
    assert out.split() == ["refused", "100"]


def test_no_room_for_the_store_itself(tmp_path):
    path = str(tmp_path / "a.h5")
    out = limited("""
        limit(50_000)
        try: ek.create(path, {"x": ek.Field((1000,), "f4")})
        except StoreError as error: print(error)
        limit(resource.RLIM_INFINITY)
        with ek.create(path, {"x": ek.Field((1000,), "f4")}) as store: store.append({"x": np.zeros(1000, "f4")})
        print(len(ek.open(path)))
    """, path=path)
    assert "full" in out
    assert out.split()[-1] == "1"
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "a.h5.d"]


def test_sealing_without_room_leaves_the_store_as_it_was(tmp_path):
    limited("""
        store = ek.create(path, {"x": ek.Field((1000,), "f4")}, capacity=100)
        rows = np.random.default_rng(0).normal(size=(100, 1000)).astype("f4")
        store.extend({"x": rows[:60]})
        limit(100_000)
        try: store.seal()
        except StoreError as error: assert "full" in str(error), error
        else: raise SystemExit("the limit was not felt")
        limit(resource.RLIM_INFINITY)
        store.extend({"x": rows[60:]})
        assert np.array_equal(store["x"][:], rows)
        store.close()
        assert np.array_equal(ek.open(path)["x"][:], rows)
    """, path=str(tmp_path / "a.h5"))


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no such limit here")
def test_a_default_store_fits_under_a_limit_on_file_sizes(tmp_path):
    """Room is set aside for gigabytes; where files may not be that large it is less, and more files."""
    out = limited("""
        limit(20_000_000)
        store = ek.create(path, {"x": ek.Field((1000,), "f4")})
        rows = np.arange(8_000_000, dtype="f4").reshape(8000, 1000)
        store.extend({"x": rows})
        print(len(store.segments))
        assert np.array_equal(ek.open(path)["x"][:], rows)
    """, path=str(tmp_path / "a.h5"))
    assert int(out) > 1


def test_sectors_are_lost_in_the_model(tmp_path, monkeypatch):
    """The model itself: without barriers acknowledged snapshots do get lost."""
    job = {"kind": "field", "shape": [300], "durability": "disk", "capacity": 20}
    lost = 0
    with monkeypatch.context() as patch:
        recorder = Recorder(patch, tmp_path)
        store = ek.create(tmp_path / "run.h5", killing.fields_of("field", (300,)), capacity=20, durability="disk")
        for k in range(10):
            store.append({name: v[0] for name, v in killing.batch(job["kind"], (300,), [k]).items()})
    inodes = {event[1] for event in recorder.log if event[0] == "rename"}
    first = {inode: recorder.log.index(next(e for e in recorder.log if e[:2] == ("sync", inode))) for inode in inodes}
    log = [event for k, event in enumerate(recorder.log) if not (event[0] == "sync" and k > first[event[1]])]
    rng = random.Random(0)
    for _ in range(10):
        (data,) = after_loss(log, len(log), rng).values()
        (tmp_path / "lost.h5").write_bytes(data)
        try:
            store = ek.open(tmp_path / "lost.h5")
            lost += killing.numbers_in(store, "field", (300,)) != list(range(10))
        except (AssertionError, ValueError, StoreError):
            lost += 1
        blocks._maps.clear()
    assert lost
    assert np.isfinite(lost)
