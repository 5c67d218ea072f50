"""The store's behaviour: what is written is read, what does not fit is refused and leaves the file as it was."""

import hashlib
import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import (
    ClosedError,
    EnsemblekitError,
    InputError,
    StoreBusyError,
    StoreError,
    UnknownFieldError,
)
from ensemblekit.store.file_check import check_file
from ensemblekit.store.store import Store

DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8", "c16", "?"]


def values(n, shape, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(scale=50, size=(n, *shape))
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.normal(size=x.shape)
    if np.dtype(dtype).kind == "u":
        x = np.abs(x)
    return (x > 0) if dtype == "?" else x.astype(dtype)


def fingerprint(path):
    """Digest of every file of the store that holds snapshots."""
    store = ek.open(path)
    return [hashlib.sha1(open(p, "rb").read()).hexdigest() for p in store.segments]


def assert_sound(path):
    """As ``verify``, in this process (a child for each file takes a second)."""
    for file in ek.open(path).segments:
        assert check_file(file)["problems"] == []


@pytest.fixture(params=[True, False], ids=["in-place", "whole-files"])
def in_place(request):
    return request.param


# ---- what is written is read ------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back(tmp_path, dtype):
    x, path = values(40, (3, 5), dtype), tmp_path / "a.h5"
    with ek.create(path, {"x": ek.Field((3, 5), dtype, unit="m"), "s": ek.Field((), dtype)}, capacity=16) as store:
        assert store._contents.segment is not None, "every type can be appended in place"
        assert all(commit.together for commit in store._contents.segment.commits.values()), "one sector holds the commit"
        for k in range(20):
            store.append({"x": x[k], "s": x[k, 0, 0]}, time=0.5 * k)
        store.extend({"x": x[20:], "s": x[20:, 0, 0]}, times=0.5 * np.arange(20, 40))
        assert len(store.segments) >= 2
    store = ek.open(path)
    assert store["x"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(store["x"][:], x)
    np.testing.assert_array_equal(store["s"][:], x[:, 0, 0])
    np.testing.assert_array_equal(store["x"].times, 0.5 * np.arange(40))
    np.testing.assert_array_equal(store["x"].steps, np.arange(40))
    assert (store["x"].unit, store["s"].unit, len(store), store.lengths) == ("m", "", 40, (40,))
    with h5py.File(path) as f:
        np.testing.assert_array_equal(f["observables/x/value"][:], x[:16])
        assert f["observables/s/step"] == f["observables/x/step"]
        assert f["h5md"].attrs["version"].tolist() == [1, 1]
    assert_sound(store.path)


def test_whole_files_and_in_place_read_alike(tmp_path, in_place):
    x, path = values(50, (4,)), tmp_path / "a.h5"
    store = ek.create(path, {"x": ek.Field((4,), "f4")}, in_place=in_place, capacity=16)
    for k in range(10):
        store.append({"x": x[k]})
    store.flush()
    assert len(ek.open(path)) == 10
    store.extend({"x": x[10:30]}, weights=np.arange(20))
    store.append({"x": x[30]})
    store.close()
    with ek.open(path, "a") as store:
        assert (store._contents.segment is not None) == in_place, "a store keeps its way of writing"
        store.extend({"x": x[31:]})
    store = ek.open(path)
    np.testing.assert_array_equal(store["x"][:], x)
    np.testing.assert_array_equal(store["x"].weights, [1] * 10 + [*range(20)] + [1] * 20)
    np.testing.assert_array_equal(store["x"].steps, np.arange(50))
    assert_sound(store.path)


def test_numpy_indexing(tmp_path):
    x = values(40, (3, 5))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((3, 5), "f4")}, capacity=16) as store:
        store.extend({"x": x})
    u = ek.open(tmp_path / "a.h5")["x"]
    mask = np.arange(40) % 3 == 0
    for key in (0, -1, 17, slice(None), slice(3, 30), slice(5, 38, 7), slice(None, None, -3), slice(30, 5), [1, 30, 2],
                [-1, 0], np.array([], int), mask, ..., (slice(10, 20), 1), (3, slice(None), 2), (..., 0)):
        np.testing.assert_array_equal(u[key], x[key], err_msg=repr(key))
    for bad in (40, -41, [40], mask[:5], "x", 1.5):
        with pytest.raises((IndexError, InputError)):
            u[bad]
    got = u[3:5]
    got[...] = 0        # an array of the caller's own
    np.testing.assert_array_equal(u[3:5], x[3:5])
    np.testing.assert_array_equal(u.window(2, 35, 3)[1:4], x[2:35:3][1:4])
    np.testing.assert_array_equal(u.window(2).window(1, 9, 2).steps, np.arange(40)[2:][1:9:2])
    assert u.shape == (40, 3, 5)
    assert u.ndim == 3
    np.testing.assert_array_equal(np.asarray(u), x)
    assert "'x'" in repr(u)
    assert "(3, 5)" in repr(u)


def read_back(source, name, **how):
    """All snapshots through the pieces, with what the blocks say of themselves checked."""
    (n,), field = source.lengths, source.fields[name]
    out = np.full((n, field.size), -1, field.dtype)
    times = np.full(n, -1.0)
    for piece in source.pieces([name], how.get("cut", "time"), how.get("tiled", False), how.get("limit", 64 << 20)):
        piece = pickle.loads(pickle.dumps(piece))
        for block in piece.blocks():
            v = block.only
            if v.size:
                rows = slice(block.start, block.start + len(v))
                out[rows, block.tile] = np.asarray(v).reshape(len(v), -1)
                times[rows] = block.times
    return out.reshape(n, *field.shape), times


@pytest.mark.parametrize("compression", [None, "lossless", "not sealed"])
def test_pieces_give_every_snapshot_once(tmp_path, compression):
    x = values(300, (7, 11))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((7, 11), "f4"), "e": ek.Field()}, capacity=128) as store:
        store.extend({"x": x, "e": np.arange(300.0)}, times=np.arange(300) * 0.25)
    if compression != "not sealed":
        ek.open(tmp_path / "a.h5").seal(tmp_path / "b.h5", compression=compression)
        source = ek.open(tmp_path / "b.h5")["x"]
    else:
        source = ek.open(tmp_path / "a.h5")["x"]
    for how in ({}, {"limit": 1000}, {"tiled": True, "limit": 100}, {"cut": "space", "limit": 40_000}):
        for window in ((0, None, 1), (5, 290, 1), (7, 280, 3), (10, 10, 1)):
            got, times = read_back(source.window(*window), "x", **how)
            rows = slice(*window)
            np.testing.assert_array_equal(got, x[rows])
            if window[0] != 10:
                np.testing.assert_array_equal(times, (np.arange(300) * 0.25)[rows])


def test_blocks_are_views_of_the_mapped_file(tmp_path):
    x = values(256, (100,))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((100,), "f4")}) as store:
        store.extend({"x": x})
    (piece,) = ek.open(tmp_path / "a.h5").window(0, 4).pieces(["x"], "time", True, 1 << 30)
    blocks = list(piece.blocks())
    assert len(blocks) == 1, "a block is the whole piece"
    assert not blocks[0].only.flags.writeable
    assert not blocks[0].only.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        blocks[0].only[0] = 1


def test_a_piece_travels_to_another_process(tmp_path):
    x = values(100, (6,))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((6,), "f4")}) as store:
        store.extend({"x": x})
    source = ek.open(tmp_path / "a.h5")["x"]
    here = ek.reduce(source, ek.Moments(), engine=ek.Serial())
    there = ek.reduce(source, ek.Moments(), engine=ek.Processes(2))
    np.testing.assert_allclose(here.mean, x.mean(0, dtype=float), rtol=1e-12)
    np.testing.assert_array_equal(here.mean, there.mean)
    np.testing.assert_array_equal(here.variance, there.variance)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2_500_000,), (3, 700_001), (4, 3, 262_144), (1, 5_000_001)])
def test_snapshots_small_and_large(tmp_path, shape):
    n = 3 if np.prod(shape, dtype=int) > 1000 else 5000
    x = values(n, shape)
    with ek.create(tmp_path / "a.h5", {"x": ek.Field(shape, "f4")}) as store:
        assert store._contents.segment is not None
        store.append({"x": x[0]})
        store.extend({"x": x[1:]})
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["x"][:], x)
    np.testing.assert_array_equal(store["x"][n - 1], x[n - 1])
    with h5py.File(tmp_path / "a.h5") as f:
        np.testing.assert_array_equal(f["observables/x/value"][:], x)
    got, _ = read_back(store["x"], "x", tiled=True, limit=1 << 20)
    np.testing.assert_array_equal(got, x)
    assert_sound(store.path)


@pytest.mark.slow
def test_a_snapshot_of_a_gibibyte(tmp_path):
    x = np.arange(1 << 28, dtype="f4")
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((1 << 14, 1 << 14), "f4")}) as store:
        store.append({"x": x.reshape(1 << 14, -1)})
    got = ek.open(tmp_path / "a.h5")["x"]
    assert got.shape == (1, 1 << 14, 1 << 14)
    (block,) = next(iter(got.pieces(["x"], "time", False, 1 << 40))).blocks()
    assert np.array_equal(block.only.reshape(-1), x)


def test_a_tiled_eight_gibibyte_snapshot_has_room(tmp_path):
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((1 << 31,), "f4")}, capacity=4) as store:
        assert store._contents.segment is not None
        assert store._contents.segment.room("main") == 4
        store._contents.segment.space.grow("main", 4)
        assert os.stat(tmp_path / "a.h5").st_size > 32 << 30
        assert os.stat(tmp_path / "a.h5").st_blocks * 512 < 1 << 20
    assert os.stat(tmp_path / "a.h5").st_size < 1 << 20


# ---- several clocks, weights, origin -----------------------------------------------------------------------------

def test_fields_run_on_their_own_clocks(tmp_path, in_place):
    fields = {"u": ek.Field((2,), "f4"), "e": ek.Field(), "slow": ek.Field((3,), "i4", clock="slow")}
    with ek.create(tmp_path / "a.h5", fields, capacity=8, in_place=in_place) as store:
        for k in range(20):
            store.append({"u": [k, k], "e": k}, time=0.1 * k)
            if k % 4 == 0:
                store.append({"slow": [k, k, k]}, time=0.1 * k, clock="slow", weight=2.0)
    store = ek.open(tmp_path / "a.h5")
    assert store.clocks == {"main": ["u", "e"], "slow": ["slow"]}
    assert (len(store), len(store["slow"]), len(store.clock("slow"))) == (20, 5, 5)
    np.testing.assert_array_equal(store["slow"][:, 0], np.arange(0, 20, 4))
    np.testing.assert_array_equal(store["slow"].weights, [2.0] * 5)
    assert store["u"].weights is None
    assert ek.reduce(store.clock("slow"), {"m": ("slow", ek.Moments())})["m"].n == 5
    with pytest.raises(UnknownFieldError, match="slow"):
        store.clock("fast")
    with pytest.raises(UnknownFieldError, match="slow"):       # another clock's: it lists none that it cannot give
        list(store.pieces(["u", "slow"], "time", False, 1 << 20))
    with h5py.File(tmp_path / "a.h5") as f:
        assert "slow" not in f["observables"]
    assert_sound(store.path)


def test_what_a_store_says_of_its_origin(tmp_path):
    store = ek.create(tmp_path / "a.h5", {"x": ek.Field()}, run="r7", replica=3, provenance={"seed": 1, "é": [1, None]},
                      time_unit="s", author="A. Author")
    store.append({"x": 1.0}, time=2.5, weight=0.25)
    store.close()
    store.close()
    store = ek.open(tmp_path / "a.h5")
    assert (store.run, store.replica, store.time_unit) == ("r7", "3", "s")
    assert store.provenance["seed"] == 1
    assert store.provenance["é"] == [1, None]
    assert "created" in store.provenance
    assert store.folder.is_dir()
    assert store.folder.name == "a.h5.d"
    np.testing.assert_array_equal(store.weights, [0.25])
    for word in ("a.h5", "1 snapshots", "x"):
        assert word in repr(store)
    with h5py.File(tmp_path / "a.h5") as f:
        assert f["observables/x/time"].attrs["unit"] == "s"
        assert f["h5md/author"].attrs["name"] == b"A. Author"
    other = ek.create(tmp_path / "b.h5", {"x": ek.Field()})
    assert len(other.run) == 32
    other.close()


# ---- what does not fit -------------------------------------------------------------------------------------------

GOOD = {"x": np.zeros((2, 3), "f4"), "k": 1}
REFUSED = {
    "a wrong shape": (lambda s: s.append({**GOOD, "x": np.zeros((3, 2), "f4")}), "shape (3, 2)"),
    "a scalar for an array": (lambda s: s.append({**GOOD, "x": 1.0}), "shape ()"),
    "complex into float": (lambda s: s.append({**GOOD, "x": np.zeros((2, 3), "c8")}), "complex64"),
    "float into int": (lambda s: s.append({**GOOD, "k": 1.5}), "float64"),
    "int too large": (lambda s: s.append({**GOOD, "k": 2**40}), "fit"),
    "float too large": (lambda s: s.append({**GOOD, "x": np.full((2, 3), 1e300)}), "too large"),
    "text": (lambda s: s.append({**GOOD, "x": np.full((2, 3), "a")}), "<U1"),
    "a ragged list": (lambda s: s.append({**GOOD, "x": [[1, 2, 3], [1]]}), "x"),
    "NaN": (lambda s: s.append({**GOOD, "x": np.full((2, 3), np.nan, "f4")}), "NaN"),
    "infinity in a batch": (lambda s: s.extend({"x": np.full((4, 2, 3), np.inf, "f4"), "k": [1] * 4}), "infinity"),
    "an unknown field": (lambda s: s.append({**GOOD, "y": 1}), "'y'"),
    "a missing field": (lambda s: s.append({"x": GOOD["x"]}), "'k'"),
    "a missing field of a batch": (lambda s: s.extend({"x": np.zeros((4, 2, 3), "f4")}), "'k'"),
    "no mapping": (lambda s: s.append(np.zeros((2, 3))), "x"),
    "time backwards": (lambda s: s.append(GOOD, time=0.5), "0.5"),
    "time NaN": (lambda s: s.append(GOOD, time=float("nan")), "nan"),
    "time infinite": (lambda s: s.append(GOOD, time=float("inf")), "inf"),
    "time text": (lambda s: s.append(GOOD, time="now"), "now"),
    "step backwards": (lambda s: s.append(GOOD, step=1, time=9), "got 1"),
    "step a fraction": (lambda s: s.append(GOOD, step=7.5, time=9), "7.5"),
    "step too large": (lambda s: s.append(GOOD, step=2**63, time=9), "step"),
    "weight negative": (lambda s: s.append(GOOD, time=9, weight=-1), "-1"),
    "weight NaN": (lambda s: s.append(GOOD, time=9, weight=float("nan")), "nan"),
    "weight text": (lambda s: s.append(GOOD, time=9, weight="heavy"), "heavy"),
    "lengths that differ": (lambda s: s.extend({"x": np.zeros((4, 2, 3), "f4"), "k": [1] * 3}), "number"),
    "times too few": (lambda s: s.extend({"x": np.zeros((2, 2, 3), "f4"), "k": [1, 2]}, times=[9]), "(1,)"),
    "times backwards": (lambda s: s.extend({"x": np.zeros((2, 2, 3), "f4"), "k": [1, 2]}, times=[9, 8]), "backwards"),
    "steps equal": (lambda s: s.extend({"x": np.zeros((2, 2, 3), "f4"), "k": [1, 2]}, steps=[9, 9], times=[9, 9]),
                    "rise"),
    "weights negative": (lambda s: s.extend({"x": np.zeros((2, 2, 3), "f4"), "k": [1, 2]}, times=[9, 9],
                                            weights=[1, -1]), "negative"),
    "an unknown clock": (lambda s: s.append(GOOD, clock="slow"), "slow"),
    "truncation beyond the end": (lambda s: s.truncate(4), "4"),
    "truncation below zero": (lambda s: s.truncate(-1), "-1"),
    "truncation to a fraction": (lambda s: s.truncate(1.5), "1.5"),
    "sealing by an unknown name": (lambda s: s.seal(compression="zip"), "zip"),
    "sealing over another file": (lambda s: s.seal(s.path), "there already"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path, what, in_place):
    act, word = REFUSED[what]
    path = tmp_path / "a.h5"
    fields = {"x": ek.Field((2, 3), "f4", finite=True), "k": ek.Field((), "i4")}
    with ek.create(path, fields, in_place=in_place, capacity=64) as store:
        for k in range(3):
            store.append(GOOD, time=k)
        store.flush()
        before = fingerprint(path)
        with pytest.raises(EnsemblekitError) as caught:
            act(store)
        assert word in str(caught.value)
        assert fingerprint(path) == before
        assert len(store) == 3
        store.append(GOOD, time=9)      # and the store goes on
    assert len(ek.open(path)) == 4
    assert_sound(path)


def test_files_that_cannot_be_written(tmp_path):
    path = tmp_path / "a.h5"
    fields = {"x": ek.Field()}
    store = ek.create(path, fields, capacity=64)
    store.append({"x": 1.0})
    with pytest.raises(StoreError, match="there already"):
        ek.create(path, fields)
    with pytest.raises(StoreBusyError, match="another"):
        ek.open(path, "a")
    store.close()
    for closed in (store, ek.open(path)):
        for act in (lambda s: s.append({"x": 1.0}), lambda s: s.extend({"x": [1.0]}), lambda s: s.truncate(0),
                    lambda s: s.flush()):
            before = fingerprint(path)
            with pytest.raises(ClosedError):
                act(closed)
            assert fingerprint(path) == before
    with pytest.raises(StoreError, match="folder"):
        ek.create(tmp_path / "none" / "a.h5", fields)
    with pytest.raises(StoreError, match="no file"):
        ek.open(tmp_path / "none.h5")
    with pytest.raises(StoreError, match="no file"):
        ek.open(tmp_path / "none*.h5")
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    with pytest.raises(StoreError, match=r"text\.h5"):
        ek.open(tmp_path / "text.h5")
    (tmp_path / "b.0001.h5").write_text("in the way")
    with pytest.raises(StoreError, match=r"b\.0001\.h5"):
        ek.create(tmp_path / "b.h5", fields)


def test_another_file_in_the_way_is_never_overwritten(tmp_path):
    store = ek.create(tmp_path / "a.h5", {"x": ek.Field()}, capacity=4)
    (tmp_path / "a.0001.h5").write_text("precious")
    store.extend({"x": np.arange(4.0)})
    with pytest.raises(StoreError, match="in the way"):
        store.append({"x": 4.0})
    assert (tmp_path / "a.0001.h5").read_text() == "precious"
    assert len(store) == 4
    (tmp_path / "a.0001.h5").unlink()
    store.append({"x": 4.0})
    store.close()
    np.testing.assert_array_equal(ek.open(tmp_path / "a.h5")["x"][:], np.arange(5.0))


@pytest.mark.parametrize("n", range(5))
def test_every_clock_is_appended_to_in_place_whatever_the_sizes(tmp_path, n):
    fields = {"x": ek.Field((171 + n,), "f4"), "b": ek.Field((16 + n,), "u1"), "loss": ek.Field((), "f4", clock="steps"),
              "rate": ek.Field((1,), "f8", clock="steps"), "late": ek.Field((3,), "c16", clock="late")}
    with ek.create(tmp_path / "a.h5", fields, capacity={"main": 3, "steps": 31}) as store:
        store.append({"loss": 1.0, "rate": [2.0]}, clock="steps")
        store.append({"late": np.ones(3)}, clock="late")
        assert len(ek.open(tmp_path / "a.h5")["rate"]) == 1         # nothing held back for a flush
        assert store["late"].shape == (1, 3)


def test_capacity_clock_by_clock(tmp_path):
    fields = {"x": ek.Field((3,), "f4"), "loss": ek.Field(clock="steps")}
    with ek.create(tmp_path / "a.h5", fields, capacity={"main": 2, "steps": 40}) as store:
        store.extend({"loss": np.arange(40.0)}, clock="steps")
        assert len(store.segments) == 1
        store.extend({"x": np.zeros((3, 3))})
        assert len(store.segments) == 2
    assert len(ek.open(tmp_path / "a.h5")["loss"]) == 40


@pytest.mark.parametrize(("fields", "options", "word"), [
    ({}, {}, "at least one"),
    ({"x": (2, 3)}, {}, "ek.Field"),
    ({"a/b": ek.Field()}, {}, "a/b"),
    ({"weight": ek.Field()}, {}, "weight"),
    ({"x": ek.Field((), "f16")}, {}, "machine"),
    ({"x": ek.Field((5, 2), kind="position", unit="nm")}, {}, "(particles, 3)"),
    ({"x": ek.Field((5, 3), kind="position")}, {}, "unit"),
    ({"x": ek.Field((5, 3), kind="position", unit="nm")}, {}, ".h5md"),
    ({"x": ek.Field((5, 3), kind="position", unit="nm"), "y": ek.Field((5, 3), kind="position", unit="nm")}, {}, "kind"),
    ({"b": ek.Field((3, 3), kind="box", unit="nm")}, {}, "particles"),
    ({"x": ek.Field()}, {"capacity": 0}, "capacity"),
    ({"x": ek.Field()}, {"capacity": 1.5}, "capacity"),
    ({"x": ek.Field()}, {"capacity": {"main": 0}}, "capacity"),
    ({"x": ek.Field()}, {"durability": "tape"}, "tape"),
    ({"x": ek.Field()}, {"provenance": {"f": object()}}, "JSON"),
    ({"x": ek.Field()}, {"time_unit": 1}, "time_unit"),
])
def test_stores_that_cannot_be(tmp_path, fields, options, word):
    with pytest.raises(InputError) as caught:
        ek.create(tmp_path / "a.h5", fields, **options)
    assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ---- cutting back, sealing -------------------------------------------------------------------------------------

@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 16, 23, 24, 25])
def test_truncation_over_segments(tmp_path, keep, in_place):
    x = values(25, (3,))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((3,), "f4")}, capacity=8, in_place=in_place) as store:
        for k in range(0, 25, 5):
            store.extend({"x": x[k:k + 5]}, times=np.arange(k, k + 5) * 2.0)
        reader = ek.open(tmp_path / "a.h5")
        store.truncate(keep)
        assert len(store) == keep
        assert reader.refresh() == keep
        np.testing.assert_array_equal(store["x"][:], x[:keep])
        store.append({"x": x[keep - 1]}, time=2.0 * keep)
        store.extend({"x": x[:10]}, times=2.0 * keep + 1 + np.arange(10))
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["x"][:], np.concatenate([x[:keep], x[keep - 1:][:1], x[:10]]))
    np.testing.assert_array_equal(store.steps, np.arange(keep + 11))
    assert_sound(store.path)


def test_truncation_cuts_only_the_clock_it_is_told(tmp_path, in_place):
    fields = {"a": ek.Field(), "b": ek.Field(clock="slow")}
    with ek.create(tmp_path / "a.h5", fields, capacity=4, in_place=in_place) as store:
        for k in range(10):
            store.append({"a": float(k)})
            store.append({"b": float(k)}, clock="slow")
        store.flush()
        store.truncate(3)
        np.testing.assert_array_equal(store["a"][:], np.arange(3.0))
        np.testing.assert_array_equal(store["b"][:], np.arange(10.0))
        store.append({"a": 99.0})
        store.truncate({"main": 2, "slow": 5})
        store.append({"a": 7.0})
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["a"][:], [0, 1, 7])
    np.testing.assert_array_equal(store["b"][:], np.arange(5.0))
    assert_sound(store.path)


def test_truncation_leaves_a_later_file_that_another_clock_needs(tmp_path, in_place):
    fields = {"u": ek.Field((3,), "f8"), "slow": ek.Field((), "i8", clock="slow")}
    x = np.arange(39.0).reshape(13, 3)
    path = tmp_path / "a.h5"
    with ek.create(path, fields, capacity=5, in_place=in_place) as store:
        store.extend({"u": x[:12]})
        store.extend({"u": x[12:]})
        store.append({"slow": 7}, clock="slow")         # in the third file
        store.truncate(2)
        assert (len(store["u"]), len(store["slow"])) == (2, 1)
        store.extend({"u": x[5:12]}, times=np.arange(2.0, 9.0))
    want = np.concatenate([x[:2], x[5:12]])
    with ek.open(path, "a") as store:
        np.testing.assert_array_equal(store["u"][:], want)
        np.testing.assert_array_equal(store["slow"][:], [7])
        store.append({"u": x[12]})
    np.testing.assert_allclose(ek.reduce(ek.open(path)["u"], ek.Moments()).mean, np.vstack([want, x[12:]]).mean(0))
    assert_sound(str(path))


@pytest.mark.parametrize("compression", [None, "lossless", ("round", 10), ("round", 1e-3), "zstd", ("round", 10, "zstd")])
@pytest.mark.parametrize("aside", [True, False])
def test_sealing(tmp_path, compression, aside, in_place):
    x = values(100, (50,), "f8")
    x[3, 4], x[5, 6] = np.nan, np.inf
    fields = {"x": ek.Field((50,), "f8", unit="m"), "k": ek.Field((), "i4"), "s": ek.Field(clock="slow")}
    with ek.create(tmp_path / "a.h5", fields, capacity=30, run="r", in_place=in_place) as store:
        store.extend({"x": x, "k": np.arange(100)}, times=np.arange(100) * 0.5, weights=np.arange(100))
        store.append({"s": 1.0}, clock="slow")
        path = tmp_path / "b.h5" if aside else tmp_path / "a.h5"
        sealed = store.seal(tmp_path / "b.h5" if aside else None, compression)
    assert len(sealed) == 100
    assert sealed.sealed
    assert sealed.segments == [str(path)]
    if not aside:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "a.h5.d"]
    got = ek.open(path)["x"][:]
    if isinstance(compression, tuple):
        np.testing.assert_allclose(got, x, rtol=2.0**-11 if compression[1] == 10 else 1e-3)
        assert not np.array_equal(got, x, equal_nan=True)
    else:
        np.testing.assert_array_equal(got, x)
    np.testing.assert_array_equal(sealed["k"][:], np.arange(100))
    np.testing.assert_array_equal(sealed["x"].weights, np.arange(100))
    np.testing.assert_array_equal(sealed["x"].times, np.arange(100) * 0.5)
    assert (sealed.run, sealed["x"].unit, len(sealed["s"])) == ("r", "m", 1)
    assert_sound(sealed.path)
    with pytest.raises(StoreError, match="sealed"):
        ek.open(path, "a")
    with pytest.raises(ClosedError):
        sealed.append({"x": x[0], "k": 1})
    np.testing.assert_allclose(ek.reduce(sealed["k"], ek.Moments()).mean, np.average(np.arange(100), weights=np.arange(100)))


def test_what_was_compressed_by_a_filter_that_is_missing_names_it(tmp_path):
    x = values(100, (50,), "f8")
    for name, compression in (("deflate.h5", "lossless"), ("zstd.h5", "zstd")):
        with ek.create(tmp_path / "a.h5", {"x": ek.Field((50,), "f8")}) as store:
            store.extend({"x": x})
            store.seal(tmp_path / name, compression)
        (tmp_path / "a.h5").unlink()
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "hdf5plugin.py").write_text("raise ImportError('not installed')")
    (tmp_path / "use.py").write_text("""if True:
        import numpy as np, ensemblekit as ek
        from ensemblekit.errors import MissingExtraError
        print(ek.open("deflate.h5")["x"][:].sum(), ek.verify("deflate.h5").verdict)
        for call in (lambda: ek.open("zstd.h5")["x"][:], lambda: ek.open("deflate.h5").seal("b.h5", "zstd"),
                     lambda: ek.reduce(ek.open("zstd.h5"), ek.Moments())):
            try:
                call()
            except MissingExtraError as error:
                print(error)
        report = ek.verify("zstd.h5")
        print(report.verdict, " ".join(str(report).split()))""")
    path = os.pathsep.join([str(tmp_path / "without"), os.path.dirname(os.path.dirname(ek.__file__))])
    process = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=True,
                             env=os.environ | {"PYTHONPATH": path})
    deflate, *zstd, checked = process.stdout.splitlines()
    assert deflate == f"{x.sum()} sound"
    assert len(zstd) == 3
    assert all("pip install 'ensemblekit[compress]'" in line for line in zstd)
    assert "zstd.h5: '/observables/x/value' is compressed by the filter" in zstd[0]
    assert checked.startswith("not checked ")
    assert "hdf5plugin" in checked


def test_readers_hold_on_to_a_file_that_was_replaced(tmp_path):
    x = values(20, (3,))
    store = ek.create(tmp_path / "a.h5", {"x": ek.Field((3,), "f4")}, capacity=8)
    store.extend({"x": x})
    before, untouched = ek.open(tmp_path / "a.h5"), ek.open(tmp_path / "a.h5")["x"]
    np.testing.assert_array_equal(before["x"][:], x)
    store.seal(compression="lossless")
    np.testing.assert_array_equal(before["x"][:], x)        # still mapped
    from ensemblekit.store import blocks

    blocks._maps.clear()
    with pytest.raises(StoreError, match="open it again"):
        untouched[:]
    assert before.refresh() == 20
    np.testing.assert_array_equal(before["x"][:], x)


def test_leftover_segments_of_a_killed_seal_are_ignored(tmp_path):
    x = values(20, (3,))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((3,), "f4")}, capacity=8) as store:
        store.extend({"x": x})
        leftovers = {p: open(p, "rb").read() for p in store.segments[1:]}
        store.seal()
    for p, data in leftovers.items():
        with open(p, "wb") as f:
            f.write(data)
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["x"][:], x)
    assert len(store.segments) == 1
    with pytest.raises(StoreError, match="sealed"):
        ek.open(tmp_path / "a.h5", "a")
    assert not any(os.path.exists(p) for p in leftovers)


# ---- several files, followers, other programs ----------------------------------------------------------------------

def piece_of(path, run, steps, replica=None):
    with ek.create(path, {"x": ek.Field((2,), "f4")}, run=run, replica=replica) as store:
        store.extend({"x": np.repeat(np.asarray(steps, "f4"), 2).reshape(-1, 2)}, steps=steps, times=np.asarray(steps) * 2.0)


def test_files_of_one_run_join_and_overlaps_are_dropped(tmp_path):
    piece_of(tmp_path / "run-b.h5", "r", np.arange(8, 20))
    piece_of(tmp_path / "run-a.h5", "r", np.arange(10))
    with pytest.warns(UserWarning, match="first 2 snapshots"):
        run = ek.open(tmp_path / "run-*.h5")
    assert run.lengths == (20,)
    np.testing.assert_array_equal(read_back(run, "x")[0][:, 0], np.arange(20))
    np.testing.assert_array_equal(read_back(run, "x")[1], np.arange(20) * 2.0)


def test_files_of_several_runs_are_replicas(tmp_path):
    piece_of(tmp_path / "run-a.h5", "r", np.arange(10))
    piece_of(tmp_path / "run-b.h5", "s", np.arange(12))
    piece_of(tmp_path / "more.h5", "r", np.arange(5), replica=2)
    both = ek.open(tmp_path / "run-*.h5")
    assert isinstance(both, ek.ReplicaSet)
    assert both.lengths == (10, 12)
    assert ek.open([tmp_path / "run-a.h5", tmp_path / "more.h5"]).lengths == (10, 5)
    assert ek.open([tmp_path / "run-a.h5"], as_="replicas").lengths == (10,)
    with pytest.warns(UserWarning, match="first 10 snapshots"):
        assert ek.open([tmp_path / "run-a.h5", tmp_path / "run-b.h5"], as_="run").lengths == (12,)


def test_files_that_do_not_say_are_refused(tmp_path):
    piece_of(tmp_path / "run-a.h5", "r", np.arange(10))
    piece_of(tmp_path / "run-b.h5", "r", np.arange(10, 20))
    piece_of(tmp_path / "run-c.h5", "s", np.arange(10))
    with pytest.raises(InputError, match="as_="):
        ek.open(tmp_path / "run-*.h5")
    with pytest.raises(InputError, match="as_"):
        ek.open(tmp_path / "run-a.h5", as_="one")
    with pytest.raises(InputError, match="reading only"):
        ek.open([tmp_path / "run-a.h5", tmp_path / "run-b.h5"], "a")


def test_a_pattern_takes_a_store_and_its_segments_as_one(tmp_path):
    for name in ("run-a", "run-b"):
        with ek.create(tmp_path / f"{name}.h5", {"x": ek.Field()}, capacity=4) as store:
            store.extend({"x": np.arange(10.0)})
        assert len(store.segments) > 1
    assert ek.open(tmp_path / "run-*.h5").lengths == (10, 10)
    assert ek.open(tmp_path / "run-a*.h5").lengths == (10,)


def test_a_reader_follows_the_writer_over_segments(tmp_path):
    x = values(40, (3,))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((3,), "f4")}, capacity=8) as store:
        reader = ek.open(tmp_path / "a.h5")
        for k in range(40):
            store.append({"x": x[k]})
            assert len(reader) == k
            assert reader.refresh() == k + 1
            np.testing.assert_array_equal(reader["x"][k], x[k])
        source = reader["x"]
        store.truncate(5)
        assert reader.refresh() == 5
        assert len(source) == 40, "a source is a fixed view"


@pytest.mark.parametrize("seal", [False, True], ids=["left open", "sealed"])
def test_readers_follow_a_writer_in_another_process(tmp_path, in_place, seal):
    """At full speed over changes of file; nothing wrong is ever seen, by ours or by h5py."""
    path = str(tmp_path / "a.h5")
    code = f"""
import numpy as np, ensemblekit as ek
store = ek.create({path!r}, {{"x": ek.Field((50,), "f4"), "k": ek.Field((), "i8")}}, capacity=40, in_place={in_place})
for k in range(0, {400 if in_place else 60}):
    store.append({{"x": np.full(50, k, "f4"), "k": k}})
    store.flush()
if {seal}: store.seal()
"""
    writer = subprocess.Popen([sys.executable, "-c", code])
    while not os.path.exists(path):
        assert writer.poll() is None
    reader, seen, looks = ek.open(path), 0, 0
    while True:
        running = writer.poll() is None
        n = reader.refresh()
        assert n >= seen
        try:
            k = reader["k"][seen:n]
        except StoreError:      # said, not wrong: the file went into the sealed one between the two calls
            assert seal
            continue
        np.testing.assert_array_equal(k, np.arange(seen, n))
        np.testing.assert_array_equal(reader["x"][seen:n], np.repeat(k, 50).reshape(-1, 50))
        np.testing.assert_array_equal(reader.window(seen).steps, k)
        with h5py.File(path, "r") as f:
            rows = len(f["observables/x/value"])
            np.testing.assert_array_equal(f["observables/x/value"][:, 7], np.arange(rows))
            assert all(len(f[name]) >= rows for name in ("observables/k/value", "observables/x/time"))
        seen, looks = n, looks + 1
        if not running:
            break
    assert writer.wait() == 0
    assert seen == (400 if in_place else 60)
    assert looks > 3


def test_a_reader_looks_again_where_a_file_is_gone(tmp_path, monkeypatch):
    with ek.create(tmp_path / "a.h5", {"x": ek.Field()}) as store:
        store.extend({"x": np.arange(6.0)})
    from ensemblekit.store import contents as module

    reader, real, calls = ek.open(tmp_path / "a.h5"), module.segments_of, []

    def listing(path):
        calls.append(path)
        return [*real(path), str(tmp_path / "a.0001.h5")] if len(calls) < 3 else real(path)

    monkeypatch.setattr(module, "segments_of", listing)
    assert reader.refresh() == 6
    assert len(calls) == 3


def test_h5py_holding_the_file_open_disturbs_nobody(tmp_path):
    x = values(20, (3,))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((3,), "f4")}) as store:
        store.extend({"x": x[:10]})
        for options in ({}, {"locking": False}):
            with h5py.File(tmp_path / "a.h5", "r", **options) as f:
                seen = len(f["observables/x/value"])
                store.append({"x": x[len(store)]})
                reader = ek.open(tmp_path / "a.h5")     # libhdf5 shares its stale view of the file with us
                assert len(reader) == len(store) == seen + 1
                np.testing.assert_array_equal(reader["x"][:], x[:seen + 1])
    with h5py.File(tmp_path / "a.h5"), ek.open(tmp_path / "a.h5", "a") as store:
        store.extend({"x": x[12:]})
    np.testing.assert_array_equal(ek.open(tmp_path / "a.h5")["x"][:], x)


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600,
                          env={**os.environ, **environment})


def test_other_writers_are_refused(tmp_path):
    path = str(tmp_path / "a.h5")
    store = ek.create(path, {"x": ek.Field()}, capacity=4)
    store.extend({"x": np.arange(6.0)})
    first, second = store.segments
    code = f"""
import h5py
import ensemblekit as ek
try: ek.open({path!r}, "a").close()
except ek.EnsemblekitError as error: print(type(error).__name__)
for file in ({first!r}, {second!r}):
    for mode in ("r+", "a"):
        try: h5py.File(file, mode); print("opened")
        except OSError: print("refused")
    with h5py.File(file, "r") as f: print(len(f["observables/x/value"]))
"""
    done = python(code)
    assert done.stdout.split() == ["StoreBusyError", *["refused"] * 2, "4", *["refused"] * 2, "2"], done.stderr
    store.close()
    done = python(code)
    assert done.stdout.split()[:2] == ["opened", "opened"], done.stdout + done.stderr


def test_a_file_changed_by_another_program_goes_on_or_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with ek.create(path, {"x": ek.Field()}, capacity=16) as store:
        store.extend({"x": np.arange(6.0)})
    with h5py.File(path, "r+") as f:
        f["observables/x/value"].attrs["note"] = "mine " * 100      # moves the header's messages
    with ek.open(path, "a") as store:
        store.extend({"x": np.arange(6.0, 30.0)})
    np.testing.assert_array_equal(ek.open(path)["x"][:], np.arange(30.0))


def test_store_is_a_source(tmp_path):
    with ek.create(tmp_path / "a.h5", {"x": ek.Field((3,), "f4"), "e": ek.Field()}, time_unit="s") as store:
        store.extend({"x": values(10, (3,)), "e": np.arange(10.0)})
    store = ek.open(tmp_path / "a.h5")
    for source in (store, store["x"], store.clock("main"), store.window(2)):
        assert isinstance(source, ek.SnapshotSource)
        assert source.time_unit == "s"
        assert source.access == "tiles"
    assert set(store.window(2).fields) == {"x", "e"}
    assert store.window(2).lengths == (8,)
    assert isinstance(store, Store)
    assert list(store) == ["x", "e"]
    assert "x" in store
    with pytest.raises(UnknownFieldError, match="'x', 'e'"):
        store["y"]


def test_open_with_check(tmp_path):
    with ek.create(tmp_path / "a.h5", {"x": ek.Field()}) as store:
        store.extend({"x": np.arange(6.0)})
    assert len(ek.open(tmp_path / "a.h5", check=True)) == 6
    assert ek.open(tmp_path / "a.h5").verify().ok
