"""Files from strangers: each opens, or is refused in one line; nothing outside the file is read."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xxhash

import ensemblekit as ek
from ensemblekit.errors import LengthError, StoreDamagedError, StoreError

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


def virtual_by_pattern(f, folder):
    """One source a block: secret0.h5, secret1.h5, …"""
    with h5py.File(folder / "secret0.h5", "w") as other:
        other["x"] = np.full(8, SECRET)
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    space = h5py.h5s.create_simple((8,), (h5py.h5s.UNLIMITED,))
    space.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (8,), (8,))
    how.set_virtual(space, str(folder / "secret%b.h5").encode(), b"/x", h5py.h5s.create_simple((8,)))
    h5py.h5d.create(f.id, b"bad", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((8,), (h5py.h5s.UNLIMITED,)), how)


OUTSIDE = [external_storage, external_link, external_step, soft_through_external, virtual, virtual_by_pattern]


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


@pytest.mark.parametrize("name", ["run.view.vtkhdf", "other.vtkhdf"])
def test_views_read_the_store_beside_them_by_their_name(tmp_path, name):
    with ek.create(tmp_path / "run.h5", {"x": ek.Field((3,))}, capacity=4) as store:
        store.extend({"x": np.ones((4, 3))})
    layout = h5py.VirtualLayout((4, 3), "f8")
    layout[:] = h5py.VirtualSource("run.h5", "/observables/x/value", (4, 3))
    with h5py.File(tmp_path / name, "w") as f:
        f.create_virtual_dataset("x", layout)
    if name.startswith("run.view."):
        np.testing.assert_array_equal(ek.open(tmp_path / name)["x"][:], np.ones((4, 3)))
    else:
        with pytest.raises(StoreError, match="points to another file"):
            ek.open(tmp_path / name)


def resigned(path, change):
    """A store in which something of its structure was changed, not its description."""
    with ek.create(path, {"u": ek.Field((3,))}, capacity=8) as store:
        store.extend({"u": np.ones((4, 3))})
    with h5py.File(path, "r+") as f:
        change(f)


def linked_away(f):
    with h5py.File(f.filename + ".other", "w") as other:
        other["x"] = f["observables/u/value"][...]
    del f["observables/u/value"]
    f["observables/u/value"] = h5py.ExternalLink(f.filename + ".other", "/x")


def sparse(f):
    del f["observables/u/value"]
    f.create_dataset("observables/u/value", (HUGE, 3), "f8", chunks=(1024, 3), maxshape=(None, 3))


@pytest.mark.parametrize("change", [linked_away, sparse], ids=lambda c: c.__name__)
def test_verify_calls_it_damage_at_once(tmp_path, change):
    resigned(tmp_path / "run.h5", change)
    report = ek.verify(tmp_path / "run.h5")
    assert report.verdict == "damaged"
    assert all("\n" not in words for words in report.problems)
    if change is linked_away:
        assert "points to another file" in str(report)
        assert "points to another file" not in str(ek.verify(tmp_path / "run.h5", external=True))


def test_texts_that_libhdf5_would_walk_forever(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["x"], f["y"] = np.zeros(3), np.zeros(3)
        f["x"].attrs["unit"] = "nm"
    data = bytearray((tmp_path / "a.h5").read_bytes())
    at = data.index(b"GCOL")
    data[at + 24:at + 32] = bytes(8)        # the entry has no bytes: what follows is read as entries of none
    (tmp_path / "a.h5").write_bytes(data)
    code = "import sys, ensemblekit as ek; print(sorted(ek.open(sys.argv[1]).fields))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "['y']", done.stderr


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
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_names_of_a_file_that_says_it_has_endless_snapshots(tmp_path):
    """list() makes room for what len() says: 8 TiB for two names."""
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("x", (HUGE,), "f8")
        f.create_dataset("y", (HUGE,), "f8", chunks=(1024,))
    store = ek.open(tmp_path / "a.h5")
    assert list(store) == [*store] == sorted(store) == ["x", "y"]
    assert tuple(store) == ("x", "y")
    assert set(store) == {"x", "y"}
    assert store
    assert store.lengths == (HUGE,)
    assert str(HUGE) in repr(store)
    with pytest.raises(LengthError, match=r"store\.lengths"):
        len(store)
    with h5py.File(tmp_path / "b.h5", "w") as f:
        f["x"] = np.zeros(8)
    assert len(ek.open(tmp_path / "b.h5")) == 8


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
      for v in ([-3], [1 << 70], 3, "3", [1.5], [True], [1] * 40, [1 << 41, 1 << 20], [2, (1 << 38) - 45])],
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


def fuzz(folder, first, last, *how):
    """Open changed files in a process of their own, as damage may end it."""
    done = subprocess.run([sys.executable, os.path.join(os.path.dirname(__file__), "fuzz_files.py"), str(first), str(last),
                           str(folder), *how], capture_output=True, text=True, errors="replace", timeout=7200)
    seed = done.stdout.split()[-1:]
    assert done.returncode == 0, f"seed {seed}: exit {done.returncode}: {done.stderr[-2000:]}"
    assert seed == [str(last - 1)]


def test_fuzzed_files_give_a_value_or_one_line(tmp_path):
    fuzz(tmp_path, 0, 600)


def test_fuzzed_files_are_verified_or_told_in_one_line(tmp_path):
    fuzz(tmp_path, 0, 100, "verify")


@pytest.mark.slow
def test_many_fuzzed_files(tmp_path):
    fuzz(tmp_path, 600, 21500)
