"""Files from strangers: each opens, or is refused in one line; nothing outside the file is read."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xxhash

import ensemblekit as ek
from ensemblekit.errors import StoreDamagedError, StoreError

SECRET = 4242.0
HUGE = 1 << 40


@pytest.fixture
def secret(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as f:
        f["x"] = np.full(8, SECRET)
    np.full(8, SECRET).tofile(tmp_path / "secret.bin")
    return tmp_path


def external_storage(f, folder):
    f.create_dataset("bad", (8,), "f8", external=[(str(folder / "secret.bin"), 0, 64)])


def external_link(f, folder):
    f["bad"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def external_step(f, folder):
    f["observables/bad/value"] = np.zeros(8)
    f["observables/bad/step"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def soft_through_external(f, folder):
    f["out"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")
    f["observables/bad/value"] = np.zeros(8)
    f["observables/bad/time"] = h5py.SoftLink("/out/x")


def virtual(f, folder):
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "/x", (8,))
    f.create_virtual_dataset("bad", layout)


OUTSIDE = [external_storage, external_link, external_step, soft_through_external, virtual]


@pytest.mark.parametrize("make", OUTSIDE, ids=lambda m: m.__name__)
def test_nothing_outside_the_file_is_read(secret, make, caplog):
    with h5py.File(secret / "a.h5", "w") as f:
        f["good"] = np.arange(5.0)
        make(f, secret)
    store = ek.open(secret / "a.h5")
    assert "good" in store
    assert "bad" not in store
    assert "points to another file" in caplog.text


@pytest.mark.parametrize("make", [external_storage, virtual], ids=lambda m: m.__name__)
def test_external_is_asked_for(secret, make):
    with h5py.File(secret / "a.h5", "w") as f:
        make(f, secret)
    with pytest.raises(StoreError, match="external=True") as error:
        ek.open(secret / "a.h5")
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(ek.open(secret / "a.h5", external=True)["bad"][:], SECRET)


def chunked(f):
    f.create_dataset("observables/x/value", (HUGE,), "f8", chunks=(1 << 20,))
    f.create_dataset("observables/x/step", (HUGE,), "i8", chunks=(1 << 20,))


def contiguous(f):
    f.create_dataset("x", (HUGE,), "f8")


def fixed_step(f):
    f.create_dataset("observables/x/value", (HUGE,), "f8", chunks=(1 << 20,))
    f["observables/x/step"], f["observables/x/time"] = 10, 0.5


def cycles(f):
    f["x"] = np.zeros(3)
    f["g/h/i"] = f["/"]
    f["loop"] = h5py.SoftLink("/loop")


@pytest.mark.parametrize("make", [chunked, contiguous, fixed_step, cycles], ids=lambda m: m.__name__)
def test_sizes_that_the_bytes_do_not_justify(tmp_path, make):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        make(f)
    code = ("import resource, sys; import ensemblekit as ek, ensemblekit.store.opening, h5py, hdf5plugin\n"
            "import ensemblekit.cli.info as i\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * 4096 + (200 << 20)\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used, used)); s = ek.open(sys.argv[1]); i.info([sys.argv[1]])\n"
            "assert 'x' in s and len(s['x'][0:3]) == 3")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def described(path, change):
    """A store whose description was changed, with the right checksum."""
    with ek.create(path, {"u": ek.Field((3,)), "v": ek.Field()}, capacity=8) as store:
        store.extend({"u": np.ones((4, 3)), "v": np.ones(4)})
    with h5py.File(path, "r+") as f:
        record = json.loads(f["ensemblekit/schema"][...].tobytes())
        text = change(record)
        text = json.dumps(record).encode() if text is None else text
        del f["ensemblekit/schema"]
        f["ensemblekit/schema"] = np.frombuffer(text, np.uint8)
        f["ensemblekit/schema_checksum"][()] = xxhash.xxh3_64_intdigest(text)


@pytest.mark.parametrize("change", [
    lambda r: b"[]", lambda r: b"{" * 5000, lambda r: b"[" * 200000, lambda r: b"\xff", lambda r: b"NaN",
    *[lambda r, v=v: r["fields"]["u"].update(shape=v)
      for v in ([-3], [1 << 70], 3, "3", [1.5], [True], [1] * 40, [1 << 41, 1 << 20])],
    *[lambda r, v=v: r["fields"]["u"].update(dtype=v) for v in ("O", "V8", "M8", "f4,f4", 8, None, "<f4")],
    *[lambda r, v=v: r["fields"].update({v: r["fields"].pop("u")}) for v in ("a/b", "..", "", "weight", "a\0")],
    *[lambda r, k=k, v=v: r.update({k: v}) for k in ("fields", "capacity", "starts", "constants", "format", "segment", "run",
      "provenance", "sealed") for v in (-1, [1], "x", {"main": -1}, {"main": 1 << 70})
      if not (k == "run" and v == "x") and not (k == "provenance" and isinstance(v, dict))],
    *[lambda r, k=k: r.pop(k) and None for k in ("fields", "capacity", "starts", "run")],
    lambda r: r["fields"]["u"].update(clock="other"), lambda r: r["fields"]["u"].update(kind="magic"),
])
def test_descriptions_of_any_shape_are_refused_in_one_line(tmp_path, change):
    described(tmp_path / "a.h5", change)
    with pytest.raises(StoreDamagedError) as error:
        ek.open(tmp_path / "a.h5")
    assert "\n" not in str(error.value)


FUZZ = """
import random, resource, sys, time
import h5py, hdf5plugin, numpy as np
import ensemblekit as ek, ensemblekit.store.opening
from ensemblekit.cli.info import time_range
from ensemblekit.errors import EnsemblekitError
first, last, folder, *sources = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
whole = [open(s, "rb").read() for s in sources]
used = [np.flatnonzero(np.frombuffer(w, np.uint8)) for w in whole]
for seed in range(int(first), int(last)):
    rng = random.Random(seed)
    k = rng.randrange(len(whole))
    data = bytearray(whole[k])
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = int(used[k][rng.randrange(len(used[k]))])
        at += rng.randrange(-8, 9)
        at = max(8, min(len(data) - 9, at))
        how = rng.randrange(5)
        if how == 0: data[at] ^= 1 << rng.randrange(8)
        elif how == 1: data[at] = rng.choice([0, 1, 255, 128])
        elif how == 2: data[at & ~7:(at & ~7) + 8] = rng.choice([1 << 40, 2 ** 63, 2 ** 64 - 1, 0, 96]).to_bytes(8, "little")
        elif how == 3: data[at & ~7:(at & ~7) + 8] = rng.randrange(len(data)).to_bytes(8, "little")
        else: data[at:at + 2] = rng.randbytes(2)
    path = folder + "/fuzzed.h5"
    open(path, "wb").write(data)
    print(seed, end=" ", flush=True)
    start = time.perf_counter()
    try:
        store = ek.open(path)
        for name in store.fields:
            time_range(store[name])
    except EnsemblekitError as error:
        assert "\\n" not in str(error), error
    assert time.perf_counter() - start < 5, "slow"
"""


def sources(folder):
    with ek.create(folder / "ours.h5", {"u": ek.Field((3,)), "v": ek.Field()}, capacity=8) as store:
        store.extend({"u": np.ones((4, 3)), "v": np.ones(4)})
    for name, options in (("old.h5", {}), ("new.h5", {"libver": "latest"})):
        with h5py.File(folder / name, "w", **options) as f:
            f.create_dataset("a/value", data=np.arange(12.0).reshape(4, 3), chunks=(1, 3), maxshape=(None, 3))
            f["a/step"], f["a/time"], f["b"] = np.arange(4), 0.5, np.arange(6)
            f.create_dataset("c", data=np.ones(50), compression="gzip")
            f["a/value"].attrs["unit"] = "nm"
    return [str(folder / name) for name in ("ours.h5", "old.h5", "new.h5")]


def fuzz(folder, first, last):
    done = subprocess.run([sys.executable, "-c", FUZZ, str(first), str(last), str(folder), *sources(folder)],
                          capture_output=True, text=True, timeout=3600)
    return done.returncode, done.stdout.split()[-1:], done.stderr[-2000:]


@pytest.mark.slow
def test_fuzzed_files_give_a_value_or_one_line(tmp_path):
    code, seed, words = fuzz(tmp_path, 0, 1500)
    assert code == 0, f"seed {seed}: exit {code}: {words}"
