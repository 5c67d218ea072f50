"""Other programs' files open in ours, and ours in theirs."""

import shutil
import subprocess
import warnings

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import ClosedError, StoreError
from ensemblekit.store.hdf5 import opened

T, N = 12, 5
POSITIONS = np.random.default_rng(3).normal(size=(T, N, 3)).astype("f4")
STEPS, TIMES = np.arange(T) * 10, np.arange(T) * 0.02


def head(f):
    f.create_group("h5md").attrs["version"] = [1, 1]


def element(group, values, step=STEPS, time=TIMES, unit=None, time_unit=None, **options):
    group.create_dataset("value", data=values, **options)
    if unit is not None:
        group["value"].attrs["unit"] = unit
    if step is not None:
        group["step"] = step
    if time is not None:
        group["time"] = time
        if time_unit is not None:
            group["time"].attrs["unit"] = time_unit


def trajectory(f, group="trajectory", **options):
    head(f)
    options = {"unit": "nm", "time_unit": "ps", **options}
    element(f.create_group(f"particles/{group}/position"), POSITIONS, **options)
    return f[f"particles/{group}"]


def plain(f):
    trajectory(f)


def another_name(f):
    trajectory(f, "system")


def fixed_step(f):
    p = trajectory(f, step=None, time=None)["position"]
    p["step"], p["time"] = 10, 0.02
    p["time"].attrs["unit"] = "ps"


def fixed_step_with_offset(f):
    fixed_step(f)
    f["particles/trajectory/position/step"].attrs["offset"] = 100
    f["particles/trajectory/position/time"].attrs["offset"] = 5.0


def no_time(f):
    trajectory(f, time=None)


def fixed_length_units(f):
    trajectory(f, unit=np.bytes_("nm"), time_unit=np.bytes_("ps"))


def no_units(f):
    trajectory(f, unit=None, time_unit=None)


def fixed_edges(f):
    box = trajectory(f).create_group("box")
    box["edges"] = [3.0, 4.0, 5.0]


def edges_in_time(f):
    t = trajectory(f)
    element(t.create_group("box/edges"), np.tile(np.eye(3, dtype="f4") * 3, (T, 1, 1)), step=None, time=None, unit="nm")
    t["box/edges/step"], t["box/edges/time"] = t["position/step"], t["position/time"]


def edge_lengths_in_time(f):
    t = trajectory(f)
    element(t.create_group("box/edges"), np.full((T, 3), 3.0), step=t["position/step"], time=t["position/time"])


def with_observables(f):
    trajectory(f)
    element(f.create_group("observables/temperature"), np.arange(T) + 300.0, unit="K")
    element(f.create_group("observables/energy/kinetic"), np.arange(T) * 2.0)
    f["observables/mass"] = 18.0


def slower_velocities(f):
    t = trajectory(f)
    element(t.create_group("velocity"), POSITIONS[::4], step=STEPS[::4], time=TIMES[::4], unit="nm ps-1")


def compressed(f):
    trajectory(f, chunks=(4, N, 3), compression="gzip", shuffle=True)


def big_endian(f):
    head(f)
    element(f.create_group("particles/all/position"), POSITIONS.astype(">f8"))


def chunked_in_space(f):
    trajectory(f, chunks=(3, 2, 3))


def newest_format(f):
    trajectory(f, chunks=(1, N, 3), maxshape=(None, N, 3))


VARIANTS = [plain, another_name, fixed_step, fixed_step_with_offset, no_time, fixed_length_units, no_units, fixed_edges,
            edges_in_time, edge_lengths_in_time, with_observables, slower_velocities, compressed, big_endian,
            chunked_in_space, newest_format]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.__name__)
def test_h5md_of_others_opens(tmp_path, variant):
    path = tmp_path / "theirs.h5md"
    with h5py.File(path, "w", libver="latest" if variant is newest_format else None) as f:
        variant(f)
    store = ek.open(path)
    x = store["position"]
    np.testing.assert_array_equal(x[:], POSITIONS)
    np.testing.assert_array_equal(x[2:9:3], POSITIONS[2:9:3])
    assert x.field.kind == "position"
    offset = (100, 5.0) if variant is fixed_step_with_offset else (0, 0.0)
    np.testing.assert_array_equal(x.steps, STEPS + offset[0])
    if variant is no_time:
        assert x.times is None
    else:
        np.testing.assert_allclose(x.times, TIMES + offset[1], rtol=1e-15)
    assert x.unit == ("" if variant in (no_units, big_endian) else "nm")
    if variant not in (no_units, big_endian, no_time):
        assert store.time_unit == "ps"
    assert x.dtype.isnative
    mean = ek.reduce(x, ek.Moments()).mean
    np.testing.assert_allclose(mean, POSITIONS.mean(0, dtype=float), atol=1e-12)
    seen = np.concatenate([b.only for p in x.window(1, None, 2).pieces(["position"], "time", False, 100)
                           for b in p.blocks()])
    np.testing.assert_array_equal(seen, POSITIONS[1::2])
    tiles = list(x.pieces(["position"], "space", True, T * 16 * 4))
    got = np.concatenate([next(iter(p.blocks())).only for p in tiles], axis=1)
    np.testing.assert_array_equal(got, POSITIONS.reshape(T, -1))
    with pytest.raises(ClosedError, match="reading"):
        store.append({"position": POSITIONS[0]})
    with pytest.raises(StoreError, match="not written by ensemblekit"):
        ek.open(path, "a")


def test_what_else_they_hold(tmp_path):
    for variant in (edges_in_time, edge_lengths_in_time, with_observables, slower_velocities):
        with h5py.File(tmp_path / f"{variant.__name__}.h5", "w") as f:
            variant(f)
    store = ek.open(tmp_path / "edges_in_time.h5")
    assert store["box"].shape == (T, 3, 3)
    assert store.all_fields["box"].kind == "box"
    assert store.clocks == {"main": ["box", "position"]}
    assert ek.open(tmp_path / "edge_lengths_in_time.h5")["box"].shape == (T, 3)
    store = ek.open(tmp_path / "with_observables.h5")
    np.testing.assert_array_equal(store["temperature"][:], np.arange(T) + 300.0)
    np.testing.assert_array_equal(store["energy/kinetic"][:], np.arange(T) * 2.0)
    assert store["temperature"].unit == "K"
    assert "mass" not in store
    store = ek.open(tmp_path / "slower_velocities.h5")
    assert store.all_fields["velocity"].clock != store.fields["position"].clock
    np.testing.assert_array_equal(store["velocity"][:], POSITIONS[::4])
    np.testing.assert_array_equal(store["velocity"].steps, STEPS[::4])
    np.testing.assert_array_equal(store["position"].steps, STEPS)


def test_plain_hdf5_opens(tmp_path):
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(20, 4, 4)), rng.normal(size=20).astype("f4"), rng.integers(0, 9, (7, 2))
    sparse = np.zeros((30, 3))
    with h5py.File(tmp_path / "plain.h5", "w") as f:
        f["a"], f["deep/b"], f["c"], f["scalar"], f["text"] = a, b, c, 3.0, "hello"
        d = f.create_dataset("holes", (30, 3), chunks=(10, 3), dtype="f8")
        d[10:20] = sparse[10:20] = 7.0
        layout = h5py.VirtualLayout((40, 4, 4), "f8")
        layout[:20] = h5py.VirtualSource(f["a"])
        layout[20:] = h5py.VirtualSource(f["a"])
        f.create_virtual_dataset("twice", layout)
    store = ek.open(tmp_path / "plain.h5")
    assert set(store.all_fields) == {"a", "deep/b", "c", "holes", "twice"}
    for name, want in (("a", a), ("deep/b", b), ("c", c), ("holes", sparse), ("twice", np.concatenate([a, a]))):
        np.testing.assert_array_equal(store[name][:], want)
    assert store.all_fields["a"].clock == store.all_fields["deep/b"].clock != store.all_fields["c"].clock
    assert store.run == ""
    assert len(store.clocks) == 4
    np.testing.assert_array_equal(store["a"].steps, np.arange(20))
    assert store["a"].times is None
    assert store.verify().ok is False       # no checksums in it: it cannot vouch for anything


def test_a_file_without_snapshots_is_refused(tmp_path):
    with h5py.File(tmp_path / "empty.h5", "w") as f:
        f["scalar"] = 1.0
    with pytest.raises(StoreError, match="no numeric dataset"):
        ek.open(tmp_path / "empty.h5")


# ---- ours in MDAnalysis and h5dump -----------------------------------------------------------------------------

FRAMES = 30


def md_store(path, box=True, frames=FRAMES, **options):
    rng = np.random.default_rng(5)
    fields = {"energy": ek.Field(unit="kJ mol-1"),
              "force": ek.Field((N, 3), "f4", unit="kJ mol-1 Angstrom-1", kind="force"),
              "velocity": ek.Field((N, 3), "f4", unit="Angstrom ps-1", kind="velocity"),
              "position": ek.Field((N, 3), "f4", unit="Angstrom", kind="position"),
              "slow": ek.Field((2,), clock="slow")}
    if box:
        fields["box"] = ek.Field((3, 3), "f4", unit="Angstrom", kind="box")
    data = {name: rng.normal(size=(frames, *f.shape)).astype(f.dtype) for name, f in fields.items() if name != "slow"}
    if box:
        data["box"] = np.tile(np.array([[30, 0, 0], [3, 31, 0], [1, 2, 32]], "f4"), (frames, 1, 1))
        data["box"][:, 0, 0] += np.arange(frames, dtype="f4")
    return ek.create(path, fields, **options), data


def universes(path, topology):
    mda = pytest.importorskip("MDAnalysis")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield mda.Universe(str(path))
        if topology:
            u = mda.Universe.empty(N, trajectory=False)
            u.load_new(str(path))
            yield u


def assert_same_frames(universe, data, times, start=0, n=FRAMES):
    from MDAnalysis.lib.mdamath import triclinic_box

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, frame in enumerate(universe.trajectory, start):
            np.testing.assert_array_equal(frame.positions, data["position"][k])
            np.testing.assert_array_equal(frame.velocities, data["velocity"][k])
            np.testing.assert_array_equal(frame.forces, data["force"][k])
            assert frame.time == times[k]
            assert frame.data["energy"] == data["energy"][k]
            assert frame.data["step"] == k
            if "box" in data:
                np.testing.assert_array_equal(frame.dimensions, triclinic_box(*data["box"][k]))
            else:
                assert frame.dimensions is None
        assert k == start + n - 1
        assert universe.trajectory.n_frames == n
        frame = universe.trajectory[-1]
        np.testing.assert_array_equal(frame.positions, data["position"][start + n - 1])
    universe.trajectory.close()


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("how", ["live", "closed", "sealed", "whole files"])
def test_mdanalysis_reads_ours_to_the_bit(tmp_path, how, box):
    path, times = tmp_path / "run.h5md", np.arange(FRAMES) * 0.25
    store, data = md_store(path, box, in_place=how != "whole files", capacity=64)
    store.extend(data, times=times)
    store.append({"slow": [1.0, 2.0]}, clock="slow")
    if how == "closed":
        store.close()
    if how == "sealed":
        store.seal()
    for universe in universes(path, topology=True):
        assert_same_frames(universe, data, times)
    store.close()


def test_mdanalysis_follows_the_segments_as_a_list(tmp_path):
    mda = pytest.importorskip("MDAnalysis")
    times = np.arange(FRAMES) * 0.25
    store, data = md_store(tmp_path / "run.h5md", capacity=12)
    live = []
    for k in range(FRAMES):
        store.append({name: x[k] for name, x in data.items()}, time=times[k])
        if k == 5:
            live += universes(tmp_path / "run.h5md", topology=False)
    assert len(store.segments) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_frames(live[0], data, times, 0, 12)     # opened at 6 frames; it opens its file again to iterate
        for k, file in enumerate(store.segments):
            assert_same_frames(mda.Universe(file), data, times, 12 * k, min(12, FRAMES - 12 * k))
        chain = mda.Universe.empty(N, trajectory=False).load_new(store.segments)
        assert chain.trajectory.n_frames == FRAMES
        for k, frame in enumerate(chain.trajectory):
            np.testing.assert_array_equal(frame.positions, data["position"][k])
    store.close()


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="no h5dump here")
def test_h5dump_reads_ours(tmp_path):
    store, data = md_store(tmp_path / "run.h5md", capacity=64)
    store.extend(data)
    done = subprocess.run(["h5dump", "-d", "/observables/energy/value", tmp_path / "run.h5md"], capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"( {FRAMES} )" in done.stdout
    store.close()


def test_ours_is_valid_h5md(tmp_path):
    store, data = md_store(tmp_path / "run.h5md", capacity=64, author="A. Author")
    store.extend(data)
    store.append({"slow": [1.0, 2.0]}, clock="slow")
    store.close()
    with h5py.File(tmp_path / "run.h5md") as f:
        assert f["h5md"].attrs["version"].dtype.kind == "i"
        assert f["h5md"].attrs["version"].tolist() == [1, 1]
        assert set(f["h5md"]) >= {"author", "creator"}
        assert f["h5md/author"].attrs["name"] == b"A. Author"
        assert {"name", "version"} <= set(f["h5md/creator"].attrs)
        assert list(f["particles"]) == ["trajectory"]
        box = f["particles/trajectory/box"]
        assert box.attrs["dimension"] == 3
        assert box.attrs["boundary"].tolist() == [b"periodic"] * 3
        main = f["particles/trajectory/position"]
        elements = [main, *(f["particles/trajectory"][name] for name in ("velocity", "force", "box/edges")),
                    *(f["observables"][name] for name in ("energy", "weight"))]
        assert set(f["observables"]) == {"energy", "weight"}
        for e in elements:
            assert e["step"] == main["step"]
            assert e["time"] == main["time"]
            assert len(e["value"]) == len(e["step"]) == len(e["time"]) == FRAMES
        assert main["time"].attrs["unit"] == "ps"
        assert set(f) == {"h5md", "particles", "observables", "ensemblekit"}


def test_objects_of_many_groups_are_found_by_their_names(tmp_path):
    """Groups that were found are kept open for their neighbours, some of them; a name in two groups is two objects."""
    path = tmp_path / "many.h5"
    with h5py.File(path, "w") as f:
        for k in range(40):
            f[f"a/g{k}/x"], f[f"a/g{k}/deep/x"] = k, 100 + k
        f["soft"] = h5py.SoftLink("/a/g7/deep")
    with opened(str(path)) as f:
        for k in [*range(40), *range(40)]:
            assert int(f[f"a/g{k}/x"][()]) == k
            assert int(f[f"/a//g{k}/./deep/x"][()]) == 100 + k
            assert int(f["a"][f"g{k}/x"][()]) == k
        assert int(f["soft/x"][()]) == 107
        assert int(f["soft/x"][()]) == 107
        assert "soft/y" not in f
        assert "a/g1/x/y" not in f
