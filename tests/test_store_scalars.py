"""Many small fields of one clock share a dataset: the same store as if each had one of its own, small and quick."""

import gzip
import itertools
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import InputError, StoreDamagedError, UnknownFieldError
from ensemblekit.store import schema as layout_of
from ensemblekit.store.verify import verify

DATA = Path(__file__).parent / "data"
MANY = {f"e{k}": ek.Field(unit="kJ mol-1") for k in range(9)}
MIXED = {**{f"s{k}": ek.Field() for k in range(10)},
         **{f"i{k}": ek.Field((), "i4", unit="1") for k in range(8)},
         "u": ek.Field((300,), "f4", unit="m s-1"),
         **{f"v{k}": ek.Field((3,), "f4", finite=k == 1) for k in range(4)},
         **{f"t{k}": ek.Field((2, 2), "f4") for k in range(4)},
         "c": ek.Field((), "c16"), **{f"b{k} %b é": ek.Field((), "?") for k in range(8)},
         **{f"w{k}": ek.Field((), "f8", unit="K", clock="slow %") for k in range(8)}}
CLOCKS = {clock: [name for name, f in MIXED.items() if f.clock == clock] for clock in ("main", "slow %")}


def rows_of(clock, a, b, fields=MIXED, seed=0):
    """Values of all fields of a clock, those of a row the same whenever they are made."""
    rows = {name: [] for name, f in fields.items() if f.clock == clock}
    for k in range(a, b):
        rng = np.random.default_rng([seed, k])
        for name, some in rows.items():
            f = fields[name]
            some.append((rng.normal(size=f.shape) * 100).astype(f.dtype))
    return {name: np.array(some, fields[name].dtype).reshape(-1, *fields[name].shape) for name, some in rows.items()}


def row_of(clock, k, **options):
    return {name: values[0] for name, values in rows_of(clock, k, k + 1, **options).items()}


def assert_same(store, twin, fields=MIXED):
    for clock in dict.fromkeys(f.clock for f in fields.values()):
        names = [name for name, f in fields.items() if f.clock == clock]
        ours, theirs = store.clock(clock), twin.clock(clock)
        assert len(ours) == len(theirs)
        assert np.array_equal(ours.steps, theirs.steps)
        assert np.array_equal(ours.times, theirs.times)
        for name in names:
            a, b = store[name][:], twin[name][:]
            assert a.dtype == b.dtype, name
            assert np.array_equal(a, b), name
        for cut in ("time", "space"):
            for some in [names] if cut == "time" else [[name] for name in names[::9]]:
                for p, q in zip(ours.pieces(some, cut, False, 1 << 14), theirs.pieces(some, cut, False, 1 << 14), strict=True):
                    a, b = list(p.blocks()), list(q.blocks())
                    for name in some:
                        assert np.array_equal(np.concatenate([block.fields[name] for block in a]),
                                              np.concatenate([block.fields[name] for block in b])), name


def assert_seen_by_others(store, fields=MIXED):
    """Under the names of the fields any program finds values, step, time and unit, file by file."""
    at = dict.fromkeys((f.clock for f in fields.values()), 0)
    for file in store.segments:
        n = {}
        with h5py.File(file) as f:
            for name, field in fields.items():
                element = f["observables" if field.clock == "main" else f"ensemblekit/clocks/{field.clock}"][name]
                n.setdefault(field.clock, len(element["value"]))
                a = at[field.clock]
                assert element["value"].shape == (n[field.clock], *field.shape), name
                assert element["value"].attrs.get("unit", "") == field.unit
                assert np.array_equal(element["value"][:], store[name][a:a + n[field.clock]]), name
                assert np.array_equal(element["step"], store.clock(field.clock).steps[a:a + n[field.clock]])
                assert np.array_equal(element["time"], store.clock(field.clock).times[a:a + n[field.clock]])
        at = {clock: a + n[clock] for clock, a in at.items()}


# ---- small and quick ---------------------------------------------------------------------------------------------

THOUSAND = """
import os, sys, time, numpy as np, ensemblekit as ek
path, work = sys.argv[1], time.process_time
x = np.random.default_rng(0).normal(size=(20, 1000))
ek.create(path + ".first", {"x": ek.Field()}).close()       # what is imported at first use is
begin = work()
with ek.create(path, {f"e{k}": ek.Field(unit="kJ mol-1") for k in range(1000)}) as store:
    for row in x.tolist(): store.append({f"e{k}": value for k, value in enumerate(row)})
written = work()
store = ek.open(path)
opened = work()
assert np.array_equal(np.transpose([store[f"e{k}"][:] for k in range(1000)]), x)
print(written - begin, opened - written)
"""


def test_a_thousand_scalars(tmp_path):
    """By the processor's time, as the machine may be busy."""
    path = str(tmp_path / "a.h5")
    done = subprocess.run([sys.executable, "-c", THOUSAND, path], capture_output=True, text=True, check=True)
    written, opened = map(float, done.stdout.split())
    assert written < 4          # and several times that with a dataset for every field
    assert opened < 0.5
    assert os.path.getsize(path) < 2_000_000
    before = os.times()
    report = verify(path)
    after = os.times()
    assert report.ok
    assert report.snapshots == 20
    assert after.children_user + after.children_system - before.children_user - before.children_system < 6


def test_the_cost_of_an_append_is_that_of_its_bytes(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 1000))
    rows = [dict(zip((f"e{k}" for k in range(1000)), row, strict=True)) for row in x.tolist()]
    with ek.create(tmp_path / "a.h5", {f"e{k}": ek.Field() for k in range(1000)}) as store:
        begin = time.process_time()
        for row in rows:
            store.append(row)
        assert (time.process_time() - begin) / len(rows) < 2e-3     # tens of milliseconds with a dataset for every field
        assert np.array_equal(store["e999"], x[:, 999])


# ---- the same store ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("seed", "in_place"), [(0, True), (1, True), (0, False)])
def test_any_history_is_that_of_a_store_with_a_dataset_a_field(tmp_path, monkeypatch, seed, in_place):
    rng = np.random.default_rng(seed)
    capacity = [16, 50][seed]
    options = {"capacity": capacity, "in_place": in_place, "durability": ["process", "disk"][seed]}
    store = ek.create(tmp_path / "a.h5", MIXED, **options)
    with monkeypatch.context() as patch:
        patch.setattr(layout_of, "PACKED_FIELDS", 1 << 30)
        other = ek.create(tmp_path / "b.h5", MIXED, **options)
        assert "ensemblekit/packed" not in h5py.File(other.path)
    n = dict.fromkeys(CLOCKS, 0)
    for _ in range(8):
        clock = list(CLOCKS)[rng.integers(2)]
        move, m = rng.random(), int(rng.integers(1, 12))
        for s in (store, other):
            with monkeypatch.context() as patch:
                if s is other:
                    patch.setattr(layout_of, "PACKED_FIELDS", 1 << 30)
                if move < 0.25:
                    s.append(row_of(clock, n[clock]), clock=clock)
                    s.flush()
                elif move < 0.65:
                    s.extend(rows_of(clock, n[clock], n[clock] + m), clock=clock)
                elif move < 0.85:
                    s.truncate(max(0, n[clock] - m), clock=clock)
        n[clock] = n[clock] + 1 if move < 0.25 else n[clock] + m if move < 0.65 else max(0, n[clock] - m) if move < 0.85 else \
            n[clock]
        if move >= 0.85:
            store.close()
            store = ek.open(tmp_path / "a.h5", "a", capacity=capacity)
        assert len(store.clock(clock)) == n[clock]
    assert_same(store, other)
    assert_seen_by_others(store)
    assert verify(store.path).ok, str(verify(store.path))
    if not in_place:
        return
    for k, compression in enumerate((None, "lossless")):
        with store.seal(tmp_path / f"sealed{k}.h5", compression=compression) as sealed:
            assert_same(sealed, other)
            assert_seen_by_others(sealed)
            assert verify(sealed.path).ok, str(verify(sealed.path))
            if n["main"]:
                assert np.isclose(ek.reduce(sealed["s3"], {"m": ek.Moments()})["m"].mean, other["s3"][:].mean(), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i4", "?", "c8"])
def test_values_of_any_type_are_taken_or_refused_as_by_a_field_alone(tmp_path, dtype):
    fields = {f"e{k}": ek.Field((), dtype) for k in range(8)}
    values = {float, np.float64, np.float32, int, bool, np.asarray, np.int16, lambda x: np.array([x]), lambda x: str(x)[:1]}
    with ek.create(tmp_path / "a.h5", fields) as store, ek.create(tmp_path / "b.h5", {"e7": fields["e7"]}) as alone:
        for value, number in itertools.product(values, (1, 0.5, 1e30, 1e300, -7, np.nan)):
            try:
                with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                    good, one = value(1), value(number)
            except (ValueError, OverflowError):
                continue
            answers = []
            for s, others in ((alone, {}), (store, {f"e{k}": good for k in range(7)})):
                try:
                    s.append({**others, "e7": one})
                    answers.append(s["e7"][-1:].tolist())
                except InputError:
                    answers.append("refused")
            assert str(answers[0]) == str(answers[1]), (value, number)


def test_a_value_that_does_not_fit_is_named(tmp_path):
    fields = {**MANY, "e4": ek.Field(unit="K", finite=True)}
    with ek.create(tmp_path / "a.h5", fields) as store:
        good = dict.fromkeys(fields, 1.0)
        for bad, words in (({"e4": np.nan}, "'e4' holds NaN"), ({"e7": [1, 2]}, r"'e7' came with shape \(2,\)"),
                           ({"e7": "x"}, "'e7'"), ({"e7": 1j}, "'e7' came as complex"), ({"e7": 10**400}, "'e7'"),
                           ({"e7": None}, "'e7'")):
            with pytest.raises(InputError, match=words):
                store.append(good | bad)
        with pytest.raises(InputError, match="lacks the field 'e3'"):
            store.append({name: value for name, value in good.items() if name != "e3"})
        with pytest.raises(UnknownFieldError, match="more"):
            store.append(good | {"more": 1.0})
        store.append(good | {"e0": np.nan, "e5": np.inf})
        assert len(store) == 1
        assert np.isnan(store["e0"][0])
        assert store["e5"][0] == np.inf


def test_few_fields_keep_datasets_of_their_own(tmp_path):
    fields = {**{f"e{k}": ek.Field() for k in range(7)}, **{f"f{k}": ek.Field((), "f4") for k in range(7)},
              **{f"g{k}": ek.Field((17,)) for k in range(9)}, **{f"h{k}": ek.Field(clock="b") for k in range(7)}}
    with ek.create(tmp_path / "a.h5", fields) as store, h5py.File(store.path) as f:
        assert "packed" not in f["ensemblekit"]
        assert not any(f[f"observables/{name}/value"].is_virtual for name in store.clocks["main"])


def test_readers_follow_a_writer(tmp_path):
    with ek.create(tmp_path / "a.h5", MANY) as store:
        store.append(row_of("main", 0, fields=MANY))
        reader = ek.open(store.path)
        first = reader["e8"][:]
        held = list(reader.pieces(list(MANY), "time", False, 1 << 20))
        for k in range(1, 3000, 613):
            store.extend(rows_of("main", k, k + 613, fields=MANY))
            assert reader.refresh() == k + 613
            assert np.array_equal(reader["e8"][:], rows_of("main", 0, k + 613, fields=MANY)["e8"])
            with h5py.File(store.path) as f:
                assert np.array_equal(f["observables/e8/value"], reader["e8"])
    assert np.array_equal(first, held[0].blocks().__next__().fields["e8"])
    assert verify(store.path).ok


def test_the_commit_is_what_other_programs_count(tmp_path, monkeypatch):
    """At the instant before a commit no name shows the row that was written, in the order in which all is written."""
    from ensemblekit.store import segments

    with ek.create(tmp_path / "b.h5", MIXED) as store:
        assert all(commit.together for commit in store._contents.segment.commits.values()), "in one sector"
    with ek.create(tmp_path / "a.h5", MANY) as store:
        assert store._contents.segment.commits["main"].together
        store.extend(rows_of("main", 0, 5, fields=MANY))
        seen = []

        def look(commit, n, real=segments.ExtentCommit.__call__):
            for _ in range(2):
                with h5py.File(store.path, locking=False) as f:
                    seen.append({len(f[f"observables/{name}/{what}"]) for name in MANY for what in ("value", "step")})
                real(commit, n)

        monkeypatch.setattr(segments.ExtentCommit, "__call__", look)
        store.append(row_of("main", 5, fields=MANY))
    assert seen == [{5}, {6}]


# ---- damage ------------------------------------------------------------------------------------------------------

def test_a_damaged_row_names_the_fields_it_may_be(tmp_path):
    with ek.create(tmp_path / "a.h5", MIXED) as store:
        store.extend(rows_of("main", 0, 40))
        store.extend(rows_of("slow %", 0, 9), clock="slow %")
    for name, k in (("s4", 17), ("t2", 3), ("w7", 8)):
        (span,) = ek.open(store.path)[name].table.spans(name, k, k + 1, 1)
        with open(store.path, "r+b") as f:
            f.seek(span.dataset.offset + k * span.dataset.stride)
            byte = f.read(1)
            f.seek(-1, 1)
            f.write(bytes([byte[0] ^ 64]))
        report = verify(store.path)
        assert report.verdict == "damaged"
        assert report.by_field.pop(name) == (k,)
        alike = MIXED[name].dtype, MIXED[name].clock
        others = {other for other, f in MIXED.items() if f.size < 9 and (f.dtype, f.clock) == alike}
        assert set(report.by_field) == others - {name}
        assert len(report.problems) == 1
        assert f"one or more of {len(others)} fields" in report.problems[0]
        assert f"snapshots {k} are not" in report.problems[0]
        with open(store.path, "r+b") as f:
            f.seek(span.dataset.offset + k * span.dataset.stride)
            f.write(byte)
    assert verify(store.path).ok


@pytest.mark.parametrize("change", ["gone", "elsewhere", "neighbour", "unit", "plain", "step"])
def test_a_name_that_shows_something_else_is_reported(tmp_path, change):
    with ek.create(tmp_path / "a.h5", MANY) as store:
        store.extend(rows_of("main", 0, 4, fields=MANY))
    with h5py.File(store.path, "r+", libver=("earliest", "v110")) as f:
        element, other = f["observables/e3"], f["observables/e4"]
        if change == "unit":
            element["value"].attrs["unit"] = "K"
        elif change == "step":
            del element["step"]
            element["step"] = np.arange(4)
        else:
            del element["value"]
            if change == "elsewhere":
                f["mine"] = np.zeros((4, 9))
                layout = h5py.VirtualLayout((4,), "f8", maxshape=(None,))
                layout[:h5py.UNLIMITED] = h5py.VirtualSource(".", "mine", (4, 9), "f8", maxshape=(None, 9))[:h5py.UNLIMITED, 3]
                element.create_virtual_dataset("value", layout)
            elif change == "neighbour":
                element["value"] = other["value"]
            elif change == "plain":
                element["value"] = other["value"][:]
    report = verify(store.path)
    assert report.verdict == "damaged"
    assert "observables/e3/" in str(report)
    if change != "gone":
        assert len(report.problems) >= 1
    assert np.array_equal(ek.open(store.path)["e3"], rows_of("main", 0, 4, fields=MANY)["e3"])


def test_a_dataset_that_is_not_what_the_description_says(tmp_path):
    with ek.create(tmp_path / "a.h5", MANY) as store:
        store.extend(rows_of("main", 0, 4, fields=MANY))
    with h5py.File(store.path, "r+") as f:
        del f["ensemblekit/packed/main/f8"]
        f["ensemblekit/packed/main/f8"] = np.zeros((4, 8))
    with pytest.raises(StoreDamagedError, match=r"packed/main/f8.*shape \(4, 8\)"):
        ek.open(store.path)
    assert verify(store.path).verdict == "damaged"


@pytest.mark.parametrize("name", ["scalars", "whole"])
def test_a_store_of_the_first_format_goes_on(tmp_path, name):
    """There every field has a dataset; what is appended fills that file and goes on in one of today's."""
    path = tmp_path / "a.h5"
    with gzip.open(DATA / f"format1-{name}.h5.gz") as packed, open(path, "wb") as f:
        shutil.copyfileobj(packed, f)

    def rows(a, b):
        k = np.arange(a, b, dtype="f8")
        return {**{f"e{j}": k + 100 * j for j in range(9)}, "u": np.outer(k, [1, 2, 3]).astype("f4")}

    def check(n):
        store = ek.open(path)
        assert len(store) == n
        for field, values in rows(0, n).items():
            assert np.array_equal(store[field], values), field
        assert_seen_by_others(store, store.fields)
        return store

    assert check(6).layouts[0].schema.format == 1
    with ek.open(path, "a", capacity=8) as store:
        store.append({field: values[0] for field, values in rows(6, 7).items()})
        store.extend(rows(7, 20))
        assert len(store.segments) > 1
        assert len(store["e3"]) == 20
    check(20)
    with ek.open(path, "a", capacity=8) as store:
        store.truncate(3)
        store.extend(rows(3, 12))
    assert verify(check(12).path).ok
    check(12).seal(tmp_path / "b.h5").close()
    assert np.array_equal(ek.open(tmp_path / "b.h5")["e8"], rows(0, 12)["e8"])


def test_fields_on_a_small_mesh_are_shown(tmp_path):
    """A view of values that are a view themselves, and names with a % in them."""
    mesh = {"mesh/points": np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]]), "mesh/connectivity": np.array([0, 1, 2]),
            "mesh/offsets": np.array([0, 3]), "mesh/types": np.array([5], "u1")}
    fields = {f"p{k} %": ek.Field((3,), unit="Pa") for k in range(8)}
    x = np.arange(6.0).reshape(2, 3)
    with ek.create(tmp_path / "a.h5", fields, constants=mesh) as store:
        store.extend({name: x + k for k, name in enumerate(fields)})
        store.publish(tmp_path / "a.view.vtkhdf")
        with store.seal(tmp_path / "b.h5"), store.seal(tmp_path / "c.h5", compression="lossless"):
            for name in ("a.view.vtkhdf", "b.h5", "c.h5"):
                with h5py.File(tmp_path / name) as f:
                    assert np.array_equal(f["VTKHDF/PointData/p7 %"], (x + 7).ravel()), name
    assert np.array_equal(ek.open(tmp_path / "c.h5")["p7 %"], x + 7)
    assert verify(tmp_path / "c.h5").ok


def test_names_beyond_ascii_in_several_clocks(tmp_path):
    """Such groups take odd numbers of bytes, and what is patched in place has to stand at whole words."""
    fields = {f"{name} {k}": ek.Field(shape, clock=clock) for name, shape, clock in (
        ("é", (), "main"), ("Δ", (40,), "main"), ("温度", (), "b"), ("ö", (3,), "c")) for k in range(8)}
    with ek.create(tmp_path / "a.h5", fields) as store:
        assert store._contents.segment is not None
        for clock in ("main", "b", "c"):
            store.extend(rows_of(clock, 0, 3, fields=fields), clock=clock)
        assert_seen_by_others(store, fields)
    assert verify(store.path).ok, str(verify(store.path))
