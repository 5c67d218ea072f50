"""Room in a store's file: given as rows come, cut off at close, kept where a reader may look; and files of the first format."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.store.verify import verify

MIB = 1 << 20
DATA = Path(__file__).parent / "data"


def sizes(path):
    """(apparent, real) bytes of a file."""
    stat = os.stat(path)
    return stat.st_size, stat.st_blocks * 512


def rows_of(shape, a, b):
    return (np.arange(a, b, dtype="f8").reshape(-1, *(1,) * len(shape)) + np.zeros(shape)).astype("f4")


def assert_tight(store, nbytes):
    """Apparent and real size within a mebibyte of each other and of what is stored."""
    apparent, real = sizes(store.path)
    assert abs(apparent - real) <= MIB, (apparent, real)
    assert apparent <= nbytes * 1.07 + MIB, (apparent, nbytes)
    with h5py.File(store.path) as f:
        assert f.id.get_filesize() == apparent


@pytest.mark.parametrize("capacity", [None, 10**6])
@pytest.mark.parametrize("shape", [(2,), (6,), (5000,), (333_333,), (5_000_000,)], ids=str)
def test_a_closed_file_is_as_long_as_what_it_holds(tmp_path, shape, capacity):
    n = max(2, min(200, 4_000_000 // int(np.prod(shape))))
    with ek.create(tmp_path / "a.h5", {"x": ek.Field(shape, "f4")}, capacity=capacity) as store:
        store.extend({"x": rows_of(shape, 0, n)})
        for k in range(n, n + 2):
            store.append({"x": rows_of(shape, k, k + 1)[0]})
    assert_tight(store, (n + 2) * int(np.prod(shape)) * 4)
    with ek.open(tmp_path / "a.h5", "a") as store:
        store.append({"x": rows_of(shape, n + 2, n + 3)[0]})
    assert_tight(store, (n + 3) * int(np.prod(shape)) * 4)
    before = open(store.path, "rb").read(1 << 20), sizes(store.path)
    ek.open(tmp_path / "a.h5", "a").close()
    assert (open(store.path, "rb").read(1 << 20), sizes(store.path)) == before, "nothing was written"
    with ek.open(tmp_path / "a.h5", "a") as store:
        store.truncate(1)
    apparent, real = sizes(store.path)
    assert abs(apparent - real) <= MIB
    with ek.open(tmp_path / "a.h5", "a") as store:      # what was cut off has its room still
        store.extend({"x": rows_of(shape, 1, n + 3)})
    assert sizes(store.path)[0] <= apparent + 4096
    with h5py.File(store.path) as f:
        assert np.array_equal(f["observables/x/value"][n], rows_of(shape, n, n + 1)[0])
    assert np.array_equal(ek.open(store.path)["x"][:], rows_of(shape, 0, n + 3))
    assert verify(str(store.path)).ok


@pytest.mark.parametrize("order", ["ab", "ba", "abab", "aab", "b", ""])
def test_two_clocks_in_any_order(tmp_path, order):
    fields = {"u": ek.Field((700,), "f4"), "v": ek.Field((40, 3), "f8"), "e": ek.Field(),
              "w": ek.Field((3000,), "f4", clock="b"), "s": ek.Field(clock="b")}
    n = {"a": 0, "b": 0}
    nbytes = 0
    with ek.create(tmp_path / "a.h5", fields) as store:
        for name in order:
            m, k = n[name], 150
            if name == "a":
                store.extend({"u": rows_of((700,), m, m + k), "v": rows_of((40, 3), m, m + k), "e": np.arange(m, m + k)})
            else:
                store.extend({"w": rows_of((3000,), m, m + k), "s": np.arange(m, m + k)}, clock="b")
            n[name] += k
            nbytes += k * (700 * 4 + 120 * 8 + 100 if name == "a" else 12_100)
    assert_tight(store, nbytes)
    store = ek.open(store.path)
    assert np.array_equal(store["v"][:], rows_of((40, 3), 0, n["a"]))
    assert np.array_equal(store["w"][:], rows_of((3000,), 0, n["b"]))
    for block in (b for piece in store.pieces(["u", "v", "e"], "time", False, 1 << 16) for b in piece.blocks()):
        assert np.array_equal(block.fields["u"][:, 0], block.fields["e"])
        assert np.array_equal(block.fields["v"][:, 0, 0], block.fields["e"])
    report = verify(str(tmp_path / "a.h5"))
    assert report.ok, str(report)


READER = """
import sys, ensemblekit as ek, numpy as np
x = ek.open(sys.argv[1])["x"]
views = [span.view() for span in x.table.spans("x", 0, len(x), 1)]
assert not any(view.flags.owndata or view.flags.writeable for view in views)
print(sum(map(len, views)), flush=True)
sys.stdin.readline()
for piece in x.pieces(["x"], "time", False, 1 << 20):
    for block in piece.blocks(): block.only.sum()
print(sum(float(view.sum(dtype=float)) for view in views), float(views[-1][-1, -1]), flush=True)
"""


def test_a_view_outlives_the_cut(tmp_path):
    path = tmp_path / "a.h5"
    x = rows_of((5000,), 0, 300)
    store = ek.create(path, {"x": ek.Field((5000,), "f4")})
    store.extend({"x": x})
    with subprocess.Popen([sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as reader:
        assert reader.stdout.readline() == "300\n"
        assert sizes(path)[0] > x.nbytes + MIB, "there is something to cut"
        store.truncate(10)
        store.close()
        assert sizes(path)[0] < x.nbytes + MIB
        out, _ = reader.communicate("\n")
    assert reader.returncode == 0
    total, last = map(float, out.split())
    assert total == float(x.sum(dtype=float))
    assert last == 299
    with ek.open(path, "a") as store:
        store.extend({"x": x[10:]})
    assert sizes(path)[0] < x.nbytes + MIB
    assert np.array_equal(ek.open(path)["x"][:], x)


def test_a_reader_goes_on_as_the_file_grows(tmp_path):
    path = tmp_path / "a.h5"
    x = rows_of((700,), 0, 4000)
    with ek.create(path, {"x": ek.Field((700,), "f4"), "e": ek.Field()}) as store:
        store.append({"x": x[0], "e": 0})
        reader = ek.open(path)
        first = reader["x"][:]
        pieces = []
        for k in range(1, 4000, 333):
            m = min(4000, k + 333)
            store.extend({"x": x[k:m], "e": np.arange(k, m)})
            assert reader.refresh() == m
            assert np.array_equal(reader["x"][:], x[:m])
            assert np.array_equal(reader["e"][:], np.arange(m))
            pieces += list(reader["x"].pieces(["x"], "time", False, 1 << 24))
            with h5py.File(path) as f:
                assert np.array_equal(f["observables/x/value"][k - 1:m], x[k - 1:m])
        assert np.array_equal(first, x[:1])
    assert all(np.array_equal(block.only, x[block.start:block.start + len(block.only)]) for p in pieces for block in p.blocks())


def test_another_program_may_add_to_a_closed_file(tmp_path):
    path = tmp_path / "a.h5"
    x = rows_of((300,), 0, 50)
    with ek.create(path, {"x": ek.Field((300,), "f4")}) as store:
        store.extend({"x": x[:20]})
    with h5py.File(path, "r+") as f:
        f.create_dataset("mine", data=np.arange(1000))
        f["observables/x"].attrs["note"] = "added"
    for a in (20, 35):
        with ek.open(path, "a") as store:
            store.extend({"x": x[a:a + 15]})
    with h5py.File(path) as f:
        assert np.array_equal(f["mine"], np.arange(1000))
        assert f["observables/x"].attrs["note"] == "added"
        assert np.array_equal(f["observables/x/value"], x)
    assert verify(str(path)).ok


def test_a_full_table_begins_the_next_file(tmp_path):
    fields = {"u": ek.Field((3000,), "f4"), "v": ek.Field((3000,), "f4", clock="b")}
    with ek.create(tmp_path / "a.h5", fields) as store:
        for k in range(200):
            if k == 1:
                clock = store._contents.segment.space.clocks["main"]
                clock.free = clock.free[:4]
            store.append({"u": rows_of((3000,), k, k + 1)[0]})
            store.append({"v": rows_of((3000,), k, k + 1)[0]}, clock="b")
    store = ek.open(store.path)
    assert len(store.segments) > 1
    assert np.array_equal(store["u"][:], rows_of((3000,), 0, 200))
    assert np.array_equal(store["v"][:], rows_of((3000,), 0, 200))


# ---- the first format --------------------------------------------------------------------------------------------

def first_format(folder, *names):
    for name in names:
        with gzip.open(DATA / f"format1-{name}.gz") as packed, open(folder / name, "wb") as f:
            shutil.copyfileobj(packed, f)
    return folder / names[0]


def main_rows(a, b):
    k = np.arange(a, b, dtype="f8")
    return {"u": (k[:, None] + np.array([0, 0.25, 0.5])).astype("f4"), "e": k}


@pytest.mark.parametrize(("names", "n", "m"), [(["closed.h5"], 5, 2), (["killed.h5"], 5, 2), (["two.h5", "two.0001.h5"], 6, 3)],
                         ids=["closed", "killed", "two files"])
def test_stores_of_the_first_format(tmp_path, names, n, m):
    path = first_format(tmp_path, *names)

    def check(store, n):
        assert len(store) == n
        assert np.array_equal(store["u"][:], main_rows(0, n)["u"])
        assert np.array_equal(store["e"][:], main_rows(0, n)["e"])
        assert np.array_equal(store["slow"][:, 0], np.arange(len(store["slow"])))
        assert np.array_equal(store.constants["grid"], np.arange(6.0).reshape(2, 3))
        assert np.array_equal(store.times, np.arange(n) * 0.5)
        report = store.verify()
        assert report.ok, str(report)

    check(ek.open(path), n)
    assert ek.open(path).layouts[0].schema.format == 1
    with ek.open(path, "a") as store:
        store.extend(main_rows(n, n + 20), times=np.arange(n, n + 20) * 0.5)
        store.append({"slow": [m, -m]}, clock="slow")
        check(ek.open(path), n + 20)
        store.truncate(n + 1)
        store.extend(main_rows(n + 1, n + 4), times=np.arange(n + 1, n + 4) * 0.5)
    check(ek.open(path), n + 4)
    with ek.open(path, "a") as store:
        store.seal()
    check(ek.open(path), n + 4)
    assert ek.open(path).sealed


def test_a_reader_that_opened_before_sees_what_was_there(tmp_path):
    """Through plain libhdf5, without SWMR, while the file gets room: old rows rightly, more only when it opens anew."""
    def wrong_in(f, name):
        rows = f[f"observables/{name}/value"][...]
        return len(rows), np.flatnonzero(rows.reshape(len(rows), -1)[:, 0] != np.arange(len(rows))).tolist()

    def add(store, n):
        a = len(store)
        store.extend({name: rows_of(shape, a, a + n) for name, shape in (("u", (100,)), ("v", (7,)), ("e", ()))})

    fields = {"u": ek.Field((100,), "f4"), "v": ek.Field((7,), "f4"), "e": ek.Field((), "f4")}
    with ek.create(tmp_path / "a.h5", fields, capacity=100_000) as store:
        add(store, 5)
        with h5py.File(store.path, "r") as old:
            assert wrong_in(old, "u") == (5, [])
            for n in (3, 500, 5000, 20_000):
                add(store, n)
                assert wrong_in(old, "u") == (5, [])
                seen, wrong = wrong_in(old, "v")        # looked at for the first time after the first round
                assert 5 <= seen <= len(store)
                assert not wrong
                with h5py.File(store.path, "r") as beside:
                    assert wrong_in(beside, "u") == (5, [])
        with h5py.File(store.path, "r") as new:
            assert [wrong_in(new, name) for name in fields] == [(25_508, [])] * 3


def test_large_rows_begin_in_the_middle_of_a_page(tmp_path):
    """Copies between them and arrays of numpy, which begin with a page, would take three times as long."""
    import h5py

    for rows, place in ((300_000, 2048), (30, None)):
        with ek.create(tmp_path / f"{rows}.h5", {"u": ek.Field((rows,), "f4")}) as store:
            store.append({"u": np.arange(rows, dtype="f4")})
        with h5py.File(tmp_path / f"{rows}.h5") as file:
            at = file["observables/u/value"].id.get_chunk_info(0).byte_offset
        assert at % 64 == 0
        assert place is None or at % 4096 == place
        np.testing.assert_array_equal(ek.open(tmp_path / f"{rows}.h5")["u"][0], np.arange(rows))
