"""The parts of one run: in order of time, each snapshot once, every file's times by its own clock."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.parts import counted_once, order_of
from ensemblekit.rom.readers.clock import epoch_seconds, seconds_in
from ensemblekit.rom.readers.reader import places_of
from tests.flowfiles import nek_file


def test_order_by_starts_by_numbers_or_as_they_came() -> None:
    names = ["run_1.xtc", "run_10.xtc", "run_2.xtc"]
    with pytest.warns(UserWarning, match=r"numbers in their names: run_1.xtc, run_2.xtc, run_10.xtc"):
        assert order_of(names) == [0, 2, 1]
    with pytest.warns(UserWarning, match="in order of step"):
        assert order_of(names, [3, 2, 1], word="step") == [2, 1, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert order_of(names, [3, 2, 1], order="given") == [0, 1, 2]
        assert order_of(names, [1, 3, 2], tell=False) == [0, 2, 1]
        assert order_of(["b.npy", "a.npy"]) == [0, 1]
        assert order_of(["x_0.5.vtu", "x_0.25.vtu"], tell=False) == [1, 0]
        assert order_of(["run0.f00010", "run0.f00002"], tell=False) == [1, 0]
        assert order_of(["run_2", "run_1"], [0.0, 0.0], tell=False) == [1, 0]       # each began anew
    with pytest.raises(InputError, match='"auto"'):
        order_of(names, order="name")       # type: ignore[arg-type]


def test_what_was_written_twice_counts_once() -> None:
    times = np.array([0.0, 100, 200, 300, 400, 300, 400, 500, 600])
    assert times[counted_once(times)].tolist() == [0, 100, 200, 300, 400, 500, 600]
    assert np.flatnonzero(counted_once(times)).tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert counted_once(np.array([0.0, 0, 1, 1])).all()


def netcdf(path: Path, times: Sequence[float], units: str, calendar: str = "", marks: Sequence[float] | None = None) -> Path:
    """A classic file whose field u holds `marks` (by default the times)."""
    from scipy.io import netcdf_file

    with netcdf_file(path, "w") as f:
        f.createDimension("time", None)
        f.createDimension("x", 3)
        clock = f.createVariable("time", "f8", ("time",))
        clock.units = units
        if calendar:
            clock.calendar = calendar
        u = f.createVariable("u", "f8", ("time", "x"))
        for k, t in enumerate(times):
            clock[k], u[k] = t, np.full(3, t if marks is None else marks[k])
    return path


def test_every_file_has_its_own_unit_and_epoch(tmp_path: Path) -> None:
    netcdf(tmp_path / "a_1.nc", [138, 139], "days since 1900-01-01")
    netcdf(tmp_path / "a_2.nc", [200, 201], "days since 2000-01-01")
    netcdf(tmp_path / "a_10.nc", [36530 * 24], "hours since 1900-01-01 00:00:00 UTC")
    source = rom.read(str(tmp_path / "a_*.nc"))
    assert source.times.tolist() == [138, 139, 36530, 36724, 36725]
    assert source.time_unit == "days"
    assert source.read()["u"][:, 0].tolist() == [138, 139, 36530 * 24, 200, 201]
    netcdf(tmp_path / "b_1.nc", [1], "days since 1900-01-01", "noleap")
    netcdf(tmp_path / "b_2.nc", [1], "days since 2000-01-01", "365_day")
    assert rom.read(str(tmp_path / "b_*.nc")).times.tolist() == [1, 36501]
    netcdf(tmp_path / "b_3.nc", [1], "days since 2000-01-01", "360_day")
    with pytest.raises(SnapshotFileError, match=r"b_3.nc: counts time in days since 2000-01-01 360_day"):
        rom.read(str(tmp_path / "b_*.nc"))
    netcdf(tmp_path / "c_1.nc", [1], "months since 2000-01-01")
    netcdf(tmp_path / "c_2.nc", [1], "s")
    with pytest.raises(SnapshotFileError, match="times="):
        rom.read(str(tmp_path / "c_*.nc"))
    assert rom.read(str(tmp_path / "c_*.nc"), times=[1, 2]).times.tolist() == [1, 2]


def test_units_and_instants() -> None:
    assert [seconds_in(u) for u in ("days", "hours", "h", "s", "seconds", "msec", "ps", "months")] == [
        86400, 3600, 3600, 1, 1, None, 1e-12, None]
    for epoch in ("1970-01-02", "1970-1-2 0:0:0", "1970-01-02T00:00:00 Z", "1970-01-02 01:00 +01:00"):
        assert epoch_seconds(epoch) == (86400.0, ""), epoch
    assert epoch_seconds("the big bang") is None
    gap = [epoch_seconds(f"1582-10-{day}")[0] for day in ("04", "15")]       # type: ignore[index]
    assert gap[1] - gap[0] == 86400        # the day after, where calendars changed


def test_missing_and_repeated_times_are_told(tmp_path: Path) -> None:
    netcdf(tmp_path / "n.nc", [0, np.nan, 2], "s")
    with pytest.warns(UserWarning, match=r"n.nc: 1 of 3 times are missing \(the first is number 1\)"):
        assert rom.read(tmp_path / "n.nc").times is None
    assert rom.read(tmp_path / "n.nc", times=[0, 1, 2]).times.tolist() == [0, 1, 2]
    netcdf(tmp_path / "r.nc", [0, 1, 2, 3, 2, 3, 4], "s", marks=range(7))
    with pytest.warns(UserWarning, match="r.nc: 2 snapshots from 2 on stand twice"):
        source = rom.read(tmp_path / "r.nc")
    assert source.times.tolist() == [0, 1, 2, 3, 4]
    assert source.read()["u"][:, 0].tolist() == [0, 1, 4, 5, 6]
    netcdf(tmp_path / "b.nc", [0, 1, 0, 1], "s")
    with pytest.warns(UserWarning, match="run backwards"):
        assert rom.read(tmp_path / "b.nc").times is None
    netcdf(tmp_path / "c.nc", [5, 5, 5], "s")
    with pytest.warns(UserWarning, match="all 3 snapshots have the time 5"):
        assert rom.read(tmp_path / "c.nc").times is None


def test_files_of_a_flow_in_order_of_time_or_number(tmp_path: Path) -> None:
    one = netcdf(tmp_path / "x.nc", [0, 1, 2], "s", marks=[0, 1, 2])
    two = netcdf(tmp_path / "a.nc", [2, 3], "s", marks=[10, 11])
    with pytest.warns(UserWarning, match="in order of time"), pytest.warns(UserWarning, match="1 snapshot from 2 on"):
        snapshots = rom.read([two, one])
    assert snapshots.read()["u"][:, 0].tolist() == [0, 1, 10, 11]
    with pytest.warns(UserWarning, match="are counted instead"):
        snapshots = rom.read([two, one], order="given")
    assert snapshots.times is None
    assert snapshots.read()["u"][:, 0].tolist() == [10, 11, 0, 1, 2]
    for k in (1, 2, 10, 11):
        np.save(tmp_path / f"run_{k}.npy", np.full(4, float(k)))
    listed = sorted(str(p) for p in tmp_path.glob("run_*.npy"))

    def first(source: Any) -> list[float]:
        (values,) = source.read().values()
        return values[:, 0].tolist()

    with pytest.warns(UserWarning, match="numbers in their names"):
        assert first(rom.read(listed)) == [1, 2, 10, 11]
    assert first(rom.read(str(tmp_path / "run_*.npy"))) == [1, 2, 10, 11]
    assert first(rom.read(listed, order="given")) == [1, 10, 11, 2]


def test_a_map_of_places_is_a_permutation(tmp_path: Path) -> None:
    x = np.arange(4 * 16 * 2.0).reshape(4, 16, 2)
    blocks = {"X": x, "U": x, "P": x[..., 0]}
    nek_file(tmp_path / "a0.f00001", (4, 4, 1), 4, 1, 1, blocks, numbers=[3, 1, 4, 2])
    np.testing.assert_array_equal(rom.read(tmp_path / "a0.f00001", "P").read()["P"][0], x[..., 0].ravel())
    for k, (numbers, said) in enumerate((([1, 2, 2, 4], "element 2 comes 2 times"), ([1, 2, 4, 4], "element 4 comes 2 times"))):
        nek_file(tmp_path / f"b{k}.f00001", (4, 4, 1), 4, 1, 1, blocks, numbers=numbers)
        with pytest.raises(SnapshotFileError, match=said):
            rom.read(tmp_path / f"b{k}.f00001", "P").read()
    with pytest.raises(SnapshotFileError, match="cell 0 does not come, 1 does"):
        places_of(np.array([2, 3, 1]), "cellProcAddressing", "cell")
    assert places_of(np.array([2, 0, 1]), "", "cell").tolist() == [1, 2, 0]


def test_nek_files_by_their_own_times(tmp_path: Path) -> None:
    x = np.ones((1, 16, 2))
    for name, t in (("a0.f00001", 2.0), ("a0.f00002", 1.0), ("a0.f00003", 3.0)):
        nek_file(tmp_path / name, (4, 4, 1), 1, t, 1, {"X": x, "U": x, "P": t * x[..., 0]})
    source = rom.read(str(tmp_path / "a0.f*"), "P")
    assert source.times.tolist() == [1, 2, 3]
    assert source.read()["P"][:, 0].tolist() == [1, 2, 3]


def test_checkpoints_in_order_of_training(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from ensemblekit import neural

    for k in (1, 2, 3, 10, 11, 12):
        torch.save({"w": torch.full((3,), float(k))}, tmp_path / f"epoch{k}.pt")
        folder = tmp_path / f"checkpoint-{k}"
        folder.mkdir()
        torch.save({"w": torch.full((3,), float(k))}, folder / "pytorch_model.bin")

    def last(paths: Any, name: str, **options: Any) -> tuple[list[float], list[float]]:
        store = neural.ingest(paths, tmp_path / name, **options)
        with store:
            return store["parameters"][:, 0].tolist(), store.times.tolist()

    rising = [1, 2, 3, 10, 11, 12]
    assert last(str(tmp_path / "epoch*.pt"), "a.h5")[0] == rising
    with pytest.warns(UserWarning, match="in order of the numbers in their names: epoch1.pt, epoch2.pt"):
        assert last(sorted(tmp_path.glob("epoch*.pt")), "b.h5")[0] == rising
    with pytest.warns(UserWarning, match="in order of step: checkpoint-1, checkpoint-2"):
        assert last(sorted(tmp_path.glob("checkpoint-*")), "c.h5") == (rising, rising)
    assert last(sorted(tmp_path.glob("epoch*.pt")), "d.h5", order="given")[0] == [1, 10, 11, 12, 2, 3]
    for name, step in (("last.ckpt", 30), ("epoch=0-step=10.ckpt", 10), ("best.ckpt", 20)):
        torch.save({"state_dict": {"w": torch.full((3,), float(step))}, "global_step": step}, tmp_path / name)
    with pytest.warns(UserWarning, match="in order of step"):
        assert last([tmp_path / n for n in ("best.ckpt", "last.ckpt", "epoch=0-step=10.ckpt")], "e.h5") == ([10, 20, 30],) * 2


def trajectory(path: Path, times: Sequence[float], x: Sequence[float] | None = None) -> Path:
    """Frames of 3 atoms at these times, whose first coordinate is `x` (by default the number of the frame)."""
    from ensemblekit.md.topology import mdanalysis

    with mdanalysis() as mda, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        u = mda.Universe.empty(3, trajectory=True)
        with mda.Writer(str(path), 3) as writer:
            for k, t in enumerate(times):
                u.atoms.positions = np.full((3, 3), float(k if x is None else x[k]))
                u.trajectory.ts.time = float(t)
                writer.write(u.atoms)
    return path


def seen(source: Any) -> list[float]:
    """The first coordinate of every frame."""
    return [float(x) for piece in source.pieces(["position"], "time", False, 1 << 20) for block in piece.blocks()
            for x in np.round(block.fields["position"][:, 0, 0])]


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    pytest.importorskip("MDAnalysis")
    path = tmp_path / "s.xyz"
    path.write_text("3\n\n" + "C 0 0 0\n" * 3)
    return path


@pytest.mark.parametrize("suffix", ["xtc", "trr"])
def test_frames_that_a_restart_wrote_twice_count_once(tmp_path: Path, topology: Path, suffix: str) -> None:
    from ensemblekit import md

    path = trajectory(tmp_path / f"w.{suffix}", [0, 100, 200, 300, 400, 300, 400, 500, 600])
    with pytest.warns(UserWarning, match="2 frames from 300 ps on stand twice"):
        source = md.read(topology, path)
    assert source.times.tolist() == [0, 100, 200, 300, 400, 500, 600]
    assert seen(source) == [0, 1, 2, 5, 6, 7, 8]
    path = trajectory(tmp_path / f"d.{suffix}", [0, 1, 1, 2, 2], x=[0, 1, 1, 2, 3])
    with pytest.warns(UserWarning, match="1 frame from 1 ps on stand twice"):
        source = md.read(topology, path)
    assert seen(source) == [0, 1, 2, 3]      # two frames of one time that differ are kept


def dump(path: Path, steps: Sequence[int], x: Sequence[float] | None = None) -> Path:
    """A LAMMPS dump of 3 atoms at these steps, whose first coordinate is `x` (by default the number of the frame)."""
    head = "ITEM: NUMBER OF ATOMS\n3\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\nITEM: ATOMS id type x y z\n"
    path.write_text("".join(f"ITEM: TIMESTEP\n{step}\n{head}" + "".join(
        f"{a + 1} 1 {k if x is None else x[k]} {a} 0\n" for a in range(3)) for k, step in enumerate(steps)))
    return path


RESTARTED = [0, 100, 200, 300, 400, 300, 400, 500, 600]
NUMBER = {"x": lambda group: float(np.sin(37 * group.positions[0, 0]))}


@pytest.mark.filterwarnings("ignore:Reader has no dt")
def test_steps_tell_frames_apart_and_are_no_times(tmp_path: Path, topology: Path) -> None:
    from ensemblekit import md

    path = dump(tmp_path / "w.lammpstrj", RESTARTED)
    with pytest.warns(UserWarning, match="2 frames from 300 on stand twice"):
        source = md.read(topology, path, format="LAMMPSDUMP")
    assert seen(source) == [0, 1, 2, 5, 6, 7, 8]
    assert source.times is None
    with pytest.warns(UserWarning, match="2 frames from 0.6 ps on stand twice"):
        timed = md.read(topology, path, format="LAMMPSDUMP", dt=0.002)
    np.testing.assert_allclose(timed.times, 0.002 * np.array([0, 100, 200, 300, 400, 500, 600]))
    dump(tmp_path / "a.lammpstrj", [0, 10, 20, 30], [0, 1, 2, 3])
    dump(tmp_path / "b.lammpstrj", [20, 30, 40], [12, 13, 14])
    with pytest.warns(UserWarning, match="2 frames from 20 on stand in a.lammpstrj and again in b.lammpstrj"):
        source = md.read(topology, [tmp_path / "a.lammpstrj", tmp_path / "b.lammpstrj"], format="LAMMPSDUMP")
    assert seen(source) == [0, 1, 12, 13, 14]
    with md.ingest(topology, tmp_path / "b.lammpstrj", tmp_path / "s.h5md", format="LAMMPSDUMP") as store:
        assert store.steps.tolist() == [20, 30, 40]


@pytest.mark.filterwarnings("ignore:Reader has no dt")
@pytest.mark.parametrize("kind", ["xyz", "lammpstrj", "dcd", "live"])
def test_no_time_is_told_where_files_know_none(tmp_path: Path, topology: Path, kind: str) -> None:
    from ensemblekit import md

    path, options = tmp_path / f"m.{kind}", {}
    if kind == "lammpstrj":
        dump(path, range(0, 40_000, 1000))
        options = {"format": "LAMMPSDUMP"}
    elif kind == "dcd":
        trajectory(path, range(40))
        data = bytearray(path.read_bytes())
        data[44:48] = np.float32(1).tobytes()       # a time step of 48.9 fs: that of programs which know none
        path.write_bytes(data)
    else:
        path = path.with_suffix(".xyz")
        path.write_text("".join("3\n\n" + f"C {k} 0 0\n" * 3 for k in range(40)))
    source = md.read(topology, path, transformations=[lambda now: now] if kind == "live" else None, **options)
    assert source.times is None
    with pytest.warns(UserWarning, match="these frames have no times: they are counted"):
        estimate = md.average(source, NUMBER, quiet=True)["x"]
    assert estimate.times is None
    assert "ps" not in str(estimate)
    assert estimate.time_unit == ""
    with pytest.raises(InputError, match=r"choose them by number, start and stop; or say the interval"):
        md.read(topology, path, begin=3, **options)
    with pytest.raises(InputError, match="needs times"):
        md.average(source, NUMBER, frame_weights="time", quiet=True)
    if kind == "live":
        return
    with md.ingest(topology, path, tmp_path / "m.h5md", **options) as store:
        with pytest.warns(UserWarning, match="no times"):
            assert md.average(store, NUMBER, quiet=True)["x"].times is None
        for held in (store, store.window(3), store.seal(tmp_path / "sealed.h5md")):
            assert (held.times, held.time_unit) == (None, "")
            in_memory = ek.average(held, map=lambda block: block.fields["position"][:, 0, 0])
            assert (in_memory.times, in_memory.time_unit) == (None, "")
            assert " ps" not in str(in_memory)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="these frames")
        estimate = md.average(md.read(topology, path, dt=2.0, **options), NUMBER, quiet=True)["x"]
    assert estimate.times is not None
    assert estimate.time_unit == "ps"


@pytest.mark.parametrize("name", ["time", "step", "h5md", "h5md steps"])
def test_rows_of_hdf5_that_were_written_twice_count_once(tmp_path: Path, name: str) -> None:
    import h5py

    import ensemblekit as ek

    u = np.arange(9.0)[:, None] * np.ones(4)
    with h5py.File(tmp_path / "w.h5", "w") as f:
        if name.startswith("h5md"):
            f.create_group("h5md").attrs["version"] = [1, 1]
            element = f.create_group("observables/u")
            element.create_dataset("value", data=u, chunks=(2, 4), compression="gzip")
            element["step"] = RESTARTED
            if name == "h5md":
                element["time"] = np.array(RESTARTED, float)
        else:
            f["u"], f[name] = u, RESTARTED
    with pytest.warns(UserWarning, match="w.h5: 2 snapshots from 300 on stand twice"):
        source = rom.read(tmp_path / "w.h5", "u")
    want = [0, 1, 2, 5, 6, 7, 8]
    assert source.read()["u"][:, 0].tolist() == want
    assert source.window(1, 6, 2).read()["u"][:, 0].tolist() == want[1:6:2]
    if "step" not in name:
        assert source.times.tolist() == [0, 100, 200, 300, 400, 500, 600]
    with pytest.warns(UserWarning, match="stand twice"):
        store = ek.open(tmp_path / "w.h5")
    assert store["u"][:, 0].tolist() == want
    assert store["u"][[5, 2]][:, 0].tolist() == [7, 2]
    assert ek.reduce(store["u"], ek.Moments()).mean[0] == pytest.approx(np.mean(want))


def test_hdf5_whose_times_are_no_clock_is_told(tmp_path: Path) -> None:
    import h5py

    for k, (times, said) in enumerate((([0, 1, np.nan, 3], "1 of 4 times are missing"), ([5, 6, 0, 1], "runs backwards"))):
        with h5py.File(tmp_path / f"{k}.h5", "w") as f:
            f["u"], f["time"] = np.ones((4, 3)), times
        with pytest.warns(UserWarning, match=said):
            assert rom.read(tmp_path / f"{k}.h5").times is None
        assert rom.read(tmp_path / f"{k}.h5", times=range(4)).times.tolist() == [0, 1, 2, 3]


def test_copies_of_one_time_are_left_out_and_told(tmp_path: Path) -> None:
    netcdf(tmp_path / "d.nc", [0, 1, 1, 2, 2], "s", marks=[0, 1, 1, 2, 3])
    with pytest.warns(UserWarning, match="1 snapshot from 1 on stand twice"):
        source = rom.read(tmp_path / "d.nc")
    assert source.read()["u"][:, 0].tolist() == [0, 1, 2, 3]


def test_parts_of_a_trajectory_in_order(tmp_path: Path, topology: Path) -> None:
    from ensemblekit import md

    for k, begin in ((1, 0), (2, 10), (10, 90), (11, 100)):
        trajectory(tmp_path / f"run_{k}.xtc", [begin, begin + 5], x=[k, k])
        trajectory(tmp_path / f"new_{k}.xtc", [0, 5], x=[k, k + 0.6])
    want = [1, 1, 2, 2, 10, 10, 11, 11]
    source = md.read(topology, str(tmp_path / "run_*.xtc"))
    assert seen(source) == want
    assert source.times.tolist() == [0, 5, 10, 15, 90, 95, 100, 105]
    listed = sorted(str(path) for path in tmp_path.glob("run_*.xtc"))
    with pytest.warns(UserWarning, match="in order of time: run_1.xtc, run_2.xtc"):
        assert seen(md.read(topology, listed)) == want
    with pytest.warns(UserWarning, match=r"its times are moved|stand in"):
        assert seen(md.read(topology, listed, order="given"))[:2] == [1, 1]
    with pytest.warns(UserWarning, match="its times are moved"):
        assert seen(md.read(topology, str(tmp_path / "new_*.xtc")))[::2] == [1, 2, 10, 11]      # each began anew: by number
    with pytest.raises(InputError, match=r"convert_units=False leaves run_1\.xtc in"):
        md.read(topology, tmp_path / "run_1.xtc", convert_units=False)


def test_h5md_without_units_reads_where_it_opens(tmp_path: Path, topology: Path) -> None:
    import h5py

    from ensemblekit import md

    with h5py.File(tmp_path / "l.h5md", "w") as f:
        f.create_group("h5md").attrs["version"] = [1, 1]
        group = f.create_group("particles/all")
        box = group.create_group("box")
        box.attrs["dimension"], box.attrs["boundary"] = 3, [b"none"] * 3
        element = group.create_group("position")
        element["value"] = np.arange(4.0)[:, None, None] * np.ones((4, 3, 3))
        element["step"], element["time"] = np.arange(4), np.arange(4.0)
    with pytest.warns(UserWarning, match="says no units"):
        source = md.read(topology, tmp_path / "l.h5md", convert_units=False)
    assert seen(source) == [0, 1, 2, 3]


def test_curves_of_an_xvg_are_columns(tmp_path: Path) -> None:
    from ensemblekit import md

    path = tmp_path / "rdf.xvg"
    head = '@ xaxis label "Time (ps)"\n@ yaxis label "(nm)"\n@ s0 legend "A"\n@ s1 legend "B"\n'
    path.write_text(head + "0 1\n1 2\n2 3\n&\n0 10\n1 20\n2 30\n&\n")
    columns = md.columns(path)
    assert {name: columns[name].arrays[name].tolist() for name in columns} == {"A": [1, 2, 3], "B": [10, 20, 30]}
    assert columns.times is not None
    assert columns.times.tolist() == [0, 1, 2]
    path.write_text(head + "0 1\n1 2\n&\n5 10\n6 20\n&\n")
    with pytest.raises(InputError, match="number 2 of them over another x"):
        md.columns(path)
    path.write_text(head + "0 1\n1 2\n&\n")
    assert md.columns(path)["A"].arrays["A"].tolist() == [1, 2]
