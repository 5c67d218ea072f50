"""Random damage to whole files, metadata included: verify never dies or hangs and reports every change."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import StoreDamagedError
from ensemblekit.store.file_check import check_file
from ensemblekit.store.places import ENTRY
from ensemblekit.store.verify import verify

# What a reader sees of a file, through libhdf5; runs in a child, as damage can crash it. Prints a digest.
LOOK = """
import sys, json, hashlib, resource, numpy as np, h5py
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
def look(path):
    out = []
    with h5py.File(path, "r", locking=False) as f:
        for name in ("particles/trajectory/position", "observables/energy", "observables/weight"):
            for part in ("value", "step", "time"):
                d = f[name][part]
                out.append((name, part, d.shape, d.dtype.str, str(d.attrs.get("unit", "")),
                            hashlib.sha1(np.ascontiguousarray(d[...]).tobytes()).hexdigest()))
    return out
print(json.dumps(look(sys.argv[1])))
"""


def make(path):
    rng = np.random.default_rng(0)
    fields = {"position": ek.Field((7, 3), "f4", unit="Angstrom", kind="position"),
              "energy": ek.Field((), "f8", unit="kJ mol-1")}
    with ek.create(path, fields, capacity=40) as store:
        store.extend({"position": rng.normal(size=(33, 7, 3)).astype("f4"), "energy": rng.normal(size=33)},
                     times=0.5 * np.arange(33))


def seen(path):
    done = subprocess.run([sys.executable, "-c", LOOK, path], capture_output=True, text=True, timeout=600)
    return done.stdout if done.returncode == 0 else None


def damage(data, rng, metadata):
    """One random change: a bit flipped, bytes overwritten, a range zeroed, or the file cut."""
    data = bytearray(data)
    kind = rng.random()
    at = rng.choice(metadata) if rng.random() < 0.8 else rng.randrange(len(data))
    if kind < 0.6:
        data[at] ^= 1 << rng.randrange(8)
    elif kind < 0.75:
        data[at:at + 8] = rng.randbytes(8)[:len(data) - at]
    elif kind < 0.9:
        stop = min(len(data), at + rng.choice([8, 64, 512, 4096]))
        data[at:stop] = bytes(stop - at)
    else:
        del data[at:]
    return bytes(data)


def interesting(data):
    """Bytes near something that is not zero: the metadata and the rows."""
    used = np.flatnonzero(np.frombuffer(data, np.uint8))
    near = np.unique(np.concatenate([used + k for k in range(-4, 5)]))
    return near[(near >= 0) & (near < len(data))].tolist()


def test_random_damage_is_reported(tmp_path):
    """By verify itself a few times, else by what its child runs, in a fork: that takes a tenth of the time."""
    path = str(tmp_path / "run.h5md")
    make(path)
    assert verify(path).ok
    truth = seen(path)
    assert truth is not None
    with open(path, "rb") as f:
        data = f.read()
    rng, metadata = random.Random(1), interesting(data)
    for k in range(12):
        with open(path, "wb") as f:
            f.write(damage(data, rng, metadata))
        sound = verdict_of(path) == "ok"
        if k % 8 == 0:
            assert verify(path, timeout=20).ok == sound
        assert not sound or seen(path) == truth, k


@pytest.mark.slow
def test_thousands_of_random_damages_are_reported(tmp_path):
    """The checker runs in forks here, a hundred times faster than in fresh processes."""
    path = str(tmp_path / "run.h5md")
    make(path)
    truth = seen(path)
    with open(path, "rb") as f:
        data = f.read()
    rng, metadata = random.Random(2), interesting(data)
    outcomes = {"reported": 0, "unchanged": 0, "signal or hang": 0}
    for k in range(4000):
        with open(path, "wb") as f:
            f.write(damage(data, rng, metadata))
        verdict = verdict_of(path)
        if verdict != "ok":
            outcomes["reported" if verdict == "bad" else "signal or hang"] += 1
            continue
        assert seen(path) == truth, k
        outcomes["unchanged"] += 1
    print(outcomes)
    assert outcomes["reported"] > 500


def verdict_of(path):
    """"ok" or "bad" as a fork that checks the file says; "" where it died or hung."""
    def look():
        report = check_file(path)
        return "bad" if report["problems"] or report["damaged"] or report["unchecked"] else "ok"

    return forked(look)


def forked(function, seconds=20):
    import select
    import signal

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, function().encode())
        finally:
            os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], seconds)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    answer = os.read(read, 100).decode() if ready else ""
    os.close(read)
    return answer


def test_damaged_rows_are_named(tmp_path):
    path = str(tmp_path / "run.h5md")
    make(path)
    (span,) = ek.open(path)["position"].table.spans("position", 5, 6, 1)
    with open(path, "r+b") as f:
        f.seek(span.dataset.offset + 5 * span.dataset.stride + 11)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 4]))
    report = ek.open(path).verify()
    assert not report.ok
    assert report.damaged == (5,)
    assert report.by_field == {"position": (5,)}
    assert "snapshots 5 are not" in str(report)
    with pytest.raises(StoreDamagedError, match="position"):
        ek.open(path, check=True)


def test_a_lost_commit_is_reported(tmp_path):
    path = str(tmp_path / "run.h5md")
    make(path)
    layout = ek.open(path).layouts[0]
    where = layout.datasets["particles/trajectory/position/value"].extent_at
    with open(path, "r+b") as f:
        f.seek(where)
        f.write((32).to_bytes(8, "little"))
    assert "at the last clean close" in str(verify(path)) or "other datasets" in str(verify(path))
    assert not verify(path).ok


def test_places_that_moved_are_reported(tmp_path):
    path = str(tmp_path / "run.h5md")
    make(path)
    layout = ek.open(path).layouts[0]
    table = layout.places["main"]
    with open(path, "r+b") as f:
        f.seek(table)
        entries = np.frombuffer(f.read(ENTRY.itemsize * 8), ENTRY).copy()
        slot = int(np.flatnonzero(entries["group"] == 2)[0])
        entries["address"][slot] += 64
        f.seek(table)
        f.write(entries.tobytes())
    report = verify(path)
    assert "where the table of places says" in str(report)
    with open(path, "r+b") as f:
        entries["group"][slot] = 0
        f.seek(table)
        f.write(entries.tobytes())
    assert "has room for 0 of" in str(verify(path))
    with pytest.raises(StoreDamagedError, match="table of places"):
        ek.open(path)["position"][:]


def test_whole_stores_of_every_kind_are_ok(tmp_path):
    path = str(tmp_path / "a.h5")
    fields = {"u": ek.Field((3,), "f4"), "c": ek.Field((), "c16"), "b": ek.Field((2,), "?"),
              "slow": ek.Field((4,), "i4", clock="slow")}
    rng = np.random.default_rng(0)
    with ek.create(path, fields, capacity=8) as store:
        for k in range(20):
            store.append({"u": rng.normal(size=3).astype("f4"), "c": 1j * k, "b": [True, k % 2 == 0]}, time=k, weight=k)
            if k % 5 == 0:
                store.append({"slow": np.arange(4, dtype="i4")}, clock="slow")
        assert len(store.segments) == 3
    assert verify(path).ok, str(verify(path))
    with ek.open(path, "a") as store:
        store.append({"u": np.zeros(3, "f4"), "c": 0, "b": [True, True]})
    assert verify(path).ok, str(verify(path))
    sealed = str(tmp_path / "sealed.h5")
    ek.open(path).seal(sealed, compression="lossless")
    assert verify(sealed).ok, str(verify(sealed))
    report = verify(str(tmp_path / "absent.h5"))
    assert not report.ok
