"""Trajectories as sources: what is read is what the file holds, whichever way it comes."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.series import Series
from ensemblekit.errors import EnsemblekitError, InputError, StoreError

pytest.importorskip("MDAnalysis")
data = pytest.importorskip("MDAnalysisTests.datafiles")

from ensemblekit import md  # noqa: E402
from ensemblekit.md.topology import Topology, mdanalysis  # noqa: E402
from ensemblekit.md.xtc import XtcIndex  # noqa: E402


def water(path: Path, n: int = 12, atoms: int = 30, seed: int = 1, *, first: float = 0.0, dt: float = 2.0,
          triclinic: bool = False) -> tuple[Path, np.ndarray]:
    """A random XTC with a box, and its positions to the file's precision."""
    rng = np.random.default_rng(seed)
    with mdanalysis() as mda, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        u = mda.Universe.empty(atoms, trajectory=True)
        positions = np.cumsum(rng.normal(size=(n, atoms, 3)), axis=0) * 2 + 40
        with mda.Writer(str(path), atoms) as writer:
            for k in range(n):
                u.atoms.positions = positions[k]
                u.dimensions = [60, 62, 64, 80, 70, 60] if triclinic else [60 + k, 62, 64, 90, 90, 90]
                u.trajectory.ts.time, u.trajectory.ts.frame = first + dt * k, k
                writer.write(u.atoms)
    return path, positions


def frames_of(source, name="position"):
    return ek.reduce(source, {name: (lambda block: block.fields[name], Series())}, fields=[name])[name]


@pytest.fixture(scope="module")
def adk():
    return md.read(data.PSF, data.DCD)


# -- XTC -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("file", ["XTC", "XTC_multi_frame", "XTC_sub_sol", "GRO_MEMPROT_xtc", "made", "small"])
def test_xtc_is_unpacked_to_the_same_bits_as_by_mdanalysis(file, tmp_path):
    if file == "made":
        path = str(water(tmp_path / "w.xtc", atoms=777, triclinic=True)[0])
    elif file == "small":       # nine atoms or fewer are not packed
        path = str(water(tmp_path / "w.xtc", atoms=7)[0])
    else:
        path = getattr(data, {"GRO_MEMPROT_xtc": "XTC_MEMPROT"}.get(file, file), None)
        if path is None:
            pytest.skip("this version of the test data has no such file")
    index = XtcIndex.of(path)
    from MDAnalysis.coordinates.XTC import XTCReader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = XTCReader(path)
    got = index.read(np.arange(len(index)))
    assert len(reader) == len(index)
    for k, now in enumerate(reader):
        np.testing.assert_array_equal(got.position[k], now.positions)
        assert got.times[k] == now.time == index.times()[k]
        np.testing.assert_allclose(got.box[k], now.triclinic_dimensions if now.dimensions is not None else 0, atol=2e-3)
    some = np.arange(0, index.n_atoms, 3)
    np.testing.assert_array_equal(index.read(np.array([1, 2]), some).position, got.position[1:3, some])
    reader.close()


def test_an_xtc_that_is_cut_off_gives_its_whole_frames_and_says_so(tmp_path):
    path, _ = water(tmp_path / "w.xtc")
    whole = XtcIndex.of(path)
    raw = path.read_bytes()
    cut = tmp_path / "cut.xtc"
    for end in (whole.offsets[5] + 3, whole.offsets[5] + 70, whole.offsets[6] - 1):
        cut.write_bytes(raw[:end])
        with pytest.warns(UserWarning, match="cut off within frame 5: its 5 whole frames"):
            index = XtcIndex.of(cut)
        np.testing.assert_array_equal(index.read(np.arange(5)).position, whole.read(np.arange(5)).position)
    cut.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        XtcIndex.of(cut)
    cut.write_bytes(raw[:40])
    with pytest.raises(InputError, match="first frame is cut off"):
        XtcIndex.of(cut)


def test_a_damaged_xtc_is_refused_with_the_frame(tmp_path):
    path, _ = water(tmp_path / "w.xtc", atoms=200)
    index = XtcIndex.of(path)
    raw = bytearray(path.read_bytes())
    raw[index.offsets[4]:index.offsets[4] + 4] = b"oops"
    bad = tmp_path / "bad.xtc"
    bad.write_bytes(raw)
    with pytest.raises(InputError, match=r"frame 4 \(byte .* The 4 frames before it are whole"):
        XtcIndex.of(bad)
    raw = bytearray(path.read_bytes())
    start = index.offsets[4] + 52 + 4 + 36
    raw[start:index.offsets[5]] = b"\xff" * (index.offsets[5] - start)
    bad.write_bytes(raw)
    with pytest.raises(InputError, match=r"frame 4 of bad\.xtc is damaged"):
        XtcIndex.of(bad).read(np.arange(12))


def test_frames_of_different_size_are_refused(tmp_path):
    a, b = water(tmp_path / "a.xtc", n=3, atoms=30)[0], water(tmp_path / "b.xtc", n=3, atoms=31)[0]
    both = tmp_path / "both.xtc"
    both.write_bytes(a.read_bytes() + b.read_bytes())
    with pytest.raises(InputError, match=r"frame 3 of both\.xtc has 31 atoms, frame 0 has 30"):
        XtcIndex.of(both)
    (tmp_path / "x.xyz").write_text("3\nfirst\n" + "C 0 0 0\n" * 3 + "4\nsecond\n" + "C 0 0 0\n" * 4)
    with pytest.raises(InputError, match=r"frame 1 of x\.xyz has 4 atoms"):
        md.read(tmp_path / "x.xyz")
    lines = [f"ATOM  {k:5d}  CA  ALA A{k:4d}    {k:8.3f}{0:8.3f}{0:8.3f}  1.00  0.00" for k in range(1, 4)]
    models = ["MODEL        1", *lines, "ENDMDL", "MODEL        2", *lines[:2], "ENDMDL", "END"]
    (tmp_path / "x.pdb").write_text("\n".join(models))
    with pytest.raises(EnsemblekitError, match=r"frame 1 of x\.pdb"):
        md.average(md.read(tmp_path / "x.pdb"), {"x": md.EndToEnd("all")})


# -- topology ------------------------------------------------------------------------------------------------------------

SELECTIONS = ["protein", "name CA and resid 10:20", "backbone", "type C", "element C", "prop charge > 0.2", "mass 11:13",
              "bonded name CA", "segid 4AKE", "resname LYS ARG", "nucleic", "chainID A", "altloc A", "icode A",
              "same residue as name CB", "id 5:10", "index 3:7", "record_type ATOM", "same fragment as index 0",
              "byres name CB", "radius 1:2", "not protein"]


@pytest.mark.parametrize("files", [("PSF", "DCD"), ("PRM_NCBOX", "TRJ_NCBOX"), ("PDB_multiframe",), ("mol2_molecules",),
                                   ("PQR_icodes",), ("PSF_TRICLINIC", "DCD_TRICLINIC"), ("GRO_sameresid_diffresname",)])
def test_every_selection_gives_the_same_atoms_from_the_stored_topology(files):
    import json

    paths = [getattr(data, name, None) for name in files]
    if None in paths:
        pytest.skip("this version of the test data has no such file")
    with mdanalysis() as mda, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = mda.Universe(*paths)
        topology = Topology.from_dict(json.loads(json.dumps(Topology.of(original.atoms).to_dict())))
        again = topology.universe()

        def chosen(u, text):
            try:
                return u.select_atoms(text).indices.tolist()
            except Exception as error:
                return type(error).__name__

        for text in SELECTIONS:
            assert chosen(again, text) == chosen(original, text), text
        if hasattr(original, "bonds"):
            assert sorted(b.indices.tolist() for b in again.bonds) == sorted(b.indices.tolist() for b in original.bonds)


def test_bonds_of_part_of_the_atoms_keep_their_meaning(adk):
    part = md.read(data.PSF, data.DCD, select="resid 20:25").topology
    whole = adk.topology
    kept = whole.select("resid 20:25")
    inside = {tuple(sorted(b)) for b in whole.bonds.tolist() if set(b) <= set(kept.tolist())}
    assert {tuple(sorted(kept[b].tolist())) for b in part.bonds} == inside
    assert set(part.segids) == set(whole.segids)


@pytest.mark.parametrize(("text", "match"), [("name XYZ", "is empty; there are 3341 atoms"),
                                             ("no such language", "cannot be read"), (7, "is text")])
def test_selections_that_give_nothing(adk, text, match):
    with pytest.raises(InputError, match=match):
        adk.topology.select(text)


# -- windows, parts, replicas --------------------------------------------------------------------------------------------

def test_read_is_the_file(adk):
    assert adk.fields["position"].shape == (3341, 3)
    assert adk.lengths == (98,)
    with mdanalysis() as mda:
        u = mda.Universe(data.PSF, data.DCD)
        expected = np.array([now.positions.copy() for now in u.trajectory])
        times = np.array([now.time for now in u.trajectory])
    np.testing.assert_array_equal(frames_of(adk), expected)
    np.testing.assert_allclose(adk.times, times, rtol=1e-12)
    for choice, rows in (({"start": 10, "stop": 40, "step": 10}, [10, 20, 30]), ({"frames": [3, 50, -1]}, [3, 50, 97]),
                         ({"frames": np.arange(98) % 40 == 0}, [0, 40, 80]),
                         ({"begin": 11.0, "end": 13.0}, [10, 11, 12]), ({"start": -2}, [96, 97])):
        np.testing.assert_array_equal(frames_of(md.read(data.PSF, data.DCD, **choice)), expected[rows])


@pytest.mark.parametrize(("choice", "match"), [
    ({"start": 98}, "leave none"), ({"begin": 1000.0}, "no frame between"), ({"frames": [5, 5]}, "frames rise"),
    ({"frames": [200]}, "frames run from 0 to 97"), ({"frames": np.ones(5, bool)}, "one entry a frame"),
    ({"start": 1, "begin": 2.0}, "not by both"), ({"frames": [1], "step": 2}, "one of the three"), ({"step": 0}, "above 0")])
def test_choices_that_cannot_be(choice, match):
    with pytest.raises(InputError, match=match):
        md.read(data.PSF, data.DCD, **choice)


def test_parts_of_one_run_are_joined_without_the_frames_that_come_twice(tmp_path):
    names = []
    for k, first in enumerate((0.0, 16.0, 40.0)):       # 0..22, 16..38 (a restart from a checkpoint), 40..62
        path, _ = water(tmp_path / f"{k}.xtc", seed=k, first=first)
        names.append(str(path))
    structure = tmp_path / "s.xyz"
    structure.write_text("30\n\n" + "C 0 0 0\n" * 30)
    with pytest.warns(UserWarning, match="4 frames from 16 ps on stand in 0.xtc and again in 1.xtc"):
        run = md.read(structure, names)
    np.testing.assert_array_equal(run.times, np.arange(0, 64, 2.0))
    got = frames_of(run)
    alone = [frames_of(md.read(structure, name)) for name in names]
    np.testing.assert_array_equal(got, np.concatenate([alone[0][:8], alone[1], alone[2]]))
    assert md.read(structure, replicas=names).lengths == (12, 12, 12)
    with pytest.warns(UserWarning, match="moved to go on"):
        again = md.read(structure, [names[0], names[0]])
    assert (np.diff(again.times) == 2.0).all()


def test_a_universe_in_memory_and_one_with_transformations_are_read_as_they_show_themselves(tmp_path):
    from MDAnalysis.transformations import translate

    with mdanalysis() as mda:
        held = mda.Universe(data.PSF, data.DCD, in_memory=True)
        np.testing.assert_array_equal(frames_of(md.read(held)), frames_of(md.read(data.PSF, data.DCD)))
        moved = md.read(data.PSF, data.DCD, transformations=[translate([1, 2, 3])], stop=5)
        still = frames_of(md.read(data.PSF, data.DCD, stop=5))
        np.testing.assert_allclose(frames_of(moved), still + np.array([1, 2, 3]), atol=1e-5)
        source = md.read(data.PSF, data.DCD, transformations=lambda u: [translate(-u.atoms[:1].positions[0])], stop=2)
        assert abs(frames_of(source)[0, 0]).max() < 1e-5


@pytest.mark.parametrize(("arguments", "match"), [
    (("nowhere.psf", "nowhere.dcd"), "nowhere.psf: there is no such file"), ((7,), "pass a topology file"),
    (("PSF", "XTC"), "has 47681 atoms, the topology 3341"), (("PSF", "no*.dcd"), "no file matches"),
    (("PSF", []), "a trajectory is a file")])
def test_what_cannot_be_read(arguments, match):
    files = [getattr(data, a, a) if isinstance(a, str) else a for a in arguments]
    with pytest.raises(InputError, match=match):
        md.read(*files)


def test_every_engine_reads_the_same(tmp_path):
    path, _ = water(tmp_path / "w.xtc", n=70)
    structure = tmp_path / "s.xyz"
    structure.write_text("30\n\n" + "C 0 0 0\n" * 30)
    source = md.read(structure, path)
    one = ek.reduce(source, {"x": ("position", ek.Moments())}, engine=ek.Serial())["x"]
    for engine in (ek.Threads(3), ek.Processes(2)):
        other = ek.reduce(source, {"x": ("position", ek.Moments())}, engine=engine)["x"]
        np.testing.assert_array_equal(one.variance, other.variance)


# -- the store -----------------------------------------------------------------------------------------------------------

def test_ingest_opens_in_mdanalysis_with_the_same_frames_and_atoms(tmp_path):
    path = tmp_path / "adk.h5md"
    store = md.ingest(data.PSF, data.DCD, path)
    names = [os.path.basename(one["path"]) for one in store.origin.inputs]
    assert names == [os.path.basename(name) for name in (data.PSF, data.DCD)]
    with mdanalysis() as mda:
        ours, theirs = mda.Universe(data.PSF, str(path)), mda.Universe(data.PSF, data.DCD)
        assert len(ours.trajectory) == len(theirs.trajectory) == 98
        for a, b in zip(ours.trajectory, theirs.trajectory, strict=True):
            assert (a.positions == b.positions).all()
            assert a.time == pytest.approx(b.time, rel=1e-12)
        again = md.universe(store)
        for text in ("protein and name CA", "resid 10:20", "bonded index 5", "around 4 resid 3"):
            np.testing.assert_array_equal(again.select_atoms(text).indices, theirs.select_atoms(text).indices)
    ours.trajectory.close()
    again.trajectory.close()


def test_velocities_forces_and_box_go_along(tmp_path):
    store = md.ingest(data.PRM_NCBOX, data.TRJ_NCBOX, tmp_path / "a.h5md")
    assert list(store.fields) == ["position", "velocity", "force", "box"]
    with mdanalysis() as mda:
        theirs = mda.Universe(data.PRM_NCBOX, data.TRJ_NCBOX)
        ours = md.universe(store)
        for a, b in zip(ours.trajectory, theirs.trajectory, strict=True):
            for name in ("positions", "velocities", "forces"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-6)
            np.testing.assert_allclose(a.dimensions, b.dimensions, rtol=1e-6)
        ours.trajectory.close()


@pytest.mark.parametrize("name", ["adk.h5", "adk", "adk.xtc"])
def test_the_name_must_be_h5md(tmp_path, name):
    with pytest.raises(InputError, match=r"ends in \.h5md"):
        md.ingest(data.PSF, data.DCD, tmp_path / name)


KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from ensemblekit import md
def tell(done, total):
    if done > 30:
        os.kill(os.getpid(), signal.SIGKILL)
sys.modules["ensemblekit.md.ingest"].BATCH = 10 * 3341 * 12
md.ingest(sys.argv[1], sys.argv[2], sys.argv[3], progress=tell)
"""


def test_ingest_goes_on_after_a_kill(tmp_path):
    path = tmp_path / "adk.h5md"
    done = subprocess.run([sys.executable, "-c", KILLED, data.PSF, data.DCD, str(path)], capture_output=True, timeout=600,
                          check=False)
    assert done.returncode == -9, done.stderr.decode()[-500:]
    before = len(ek.open(path))
    assert 30 < before < 98
    seen = []
    store = md.ingest(data.PSF, data.DCD, path, progress=lambda n, total: seen.append(n))
    assert len(store) == 98
    assert min(seen) > before
    np.testing.assert_array_equal(store["position"][:], frames_of(md.read(data.PSF, data.DCD)))
    stamp = os.stat(path).st_mtime_ns
    assert len(md.ingest(data.PSF, data.DCD, path)) == 98        # nothing left to do
    assert os.stat(path).st_mtime_ns == stamp
    with pytest.raises(StoreError, match="holds something else"):
        md.ingest(data.PSF, data.DCD, path, select="name CA")


def test_replicas_are_stores_of_their_own_and_open_together(tmp_path):
    runs = md.ingest(data.PSF, None, tmp_path / "r.h5md", replicas=[data.DCD, data.DCD2], select="name CA")
    assert runs.lengths == (98, 102)
    assert ek.open(str(tmp_path / "r-*.h5md")).lengths == (98, 102)
    assert md.average(str(tmp_path / "r-*.h5md"), {"rg": md.RadiusOfGyration("all")})["rg"].n <= 200
    with pytest.raises(InputError, match="a Universe holds one run"):
        md.universe(runs)


def test_overlapping_runs_are_not_taken_for_replicas_unless_told(tmp_path):
    md.ingest(data.PSF, data.DCD, tmp_path / "a.h5md", select="name CA")
    md.ingest(data.PSF, data.DCD2, tmp_path / "b.h5md", select="name CA")
    with pytest.raises(InputError, match='as_="replicas"'):
        ek.open(str(tmp_path / "*.h5md"))
    assert ek.open(str(tmp_path / "*.h5md"), as_="replicas").lengths == (98, 102)


def test_runs_that_follow_each_other_in_time_are_one(tmp_path):
    md.ingest(data.PSF, data.DCD, tmp_path / "a.h5md", select="name CA", stop=50)
    md.ingest(data.PSF, data.DCD, tmp_path / "b.h5md", select="name CA", start=50)
    run = ek.open(str(tmp_path / "*.h5md"))
    assert run.lengths == (98,)
    one = md.average(md.read(data.PSF, data.DCD), {"rg": md.RadiusOfGyration("name CA")})["rg"]
    assert md.average(str(tmp_path / "*.h5md"), {"rg": md.RadiusOfGyration("all")})["rg"].mean == pytest.approx(one.mean)


def test_nothing_but_xtc_headers_is_looked_at_when_it_is_opened(tmp_path):
    """The number of frames, their atoms and times come without unpacking."""
    path, _ = water(tmp_path / "w.xtc", n=3, atoms=100)
    raw = bytearray(path.read_bytes())
    index = XtcIndex.of(path)
    place = index.offsets[1] + 12
    raw[place:place + 4] = struct.pack(">f", 2.5)
    path.write_bytes(raw)
    np.testing.assert_array_equal(XtcIndex.of(path).times(), [0.0, 2.5, 4.0])


# --- plain DCD files, read in blocks ------------------------------------------------------------------------------------

def swapped(path, to, n_atoms, n_frames):
    """The same DCD file with its bytes in the other order."""
    data = bytearray(path.read_bytes())
    record = np.dtype([("<", "i4"), ("cell", "f8", 6), (">", "i4"), ("xyz", "i4", 3 * (n_atoms + 2))])
    begin = len(data) - n_frames * record.itemsize
    head = np.frombuffer(data, np.uint8, begin).copy()
    at = 0
    while at < begin:       # markers and numbers are turned, "CORD" and titles are not
        size = int(head[at:at + 4].view("i4")[0])
        body = head[at + 4:at + 4 + size]
        if size == 84:
            body[4:] = body[4:].view("i4").byteswap().view(np.uint8)
        else:
            body[:4] = body[:4].view("i4").byteswap().view(np.uint8)
        for marker in (at, at + 4 + size):
            head[marker:marker + 4] = head[marker:marker + 4][::-1].copy()
        at += size + 8
    to.write_bytes(head.tobytes() + np.frombuffer(data, record, offset=begin).byteswap().tobytes())


@pytest.fixture
def dcd(tmp_path):
    """40 frames of 7 atoms in a rectangular box that breathes, as DCD."""
    rng = np.random.default_rng(0)
    with mdanalysis() as mda:
        u = mda.Universe.empty(7, trajectory=True)
        with mda.Writer(str(tmp_path / "a.dcd"), 7, dt=2.0) as writer:
            for _ in range(40):
                u.atoms.positions = rng.normal(0, 9, (7, 3))
                u.dimensions = [*rng.uniform(10, 20, 3), 90, 90, 90]
                writer.write(u.atoms)
        u.load_new(str(tmp_path / "a.dcd"))
    return u


def matches(source, universe, rows, atoms=slice(None)):
    """Positions, boxes and times are bit for bit those of MDAnalysis' reader."""
    at = 0
    for piece in source.pieces(["position", "box"], "time", False, 1 << 10):
        for block in piece.blocks():
            for k, time in enumerate(block.times):
                now = universe.trajectory[int(rows[at])]
                np.testing.assert_array_equal(block.fields["position"][k], now.positions[atoms])
                np.testing.assert_array_equal(block.fields["box"][k], now.triclinic_dimensions)
                assert time == pytest.approx(now.time, rel=1e-9)
                at += 1
    assert at == len(rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["<", ">"])
def test_plain_dcd_is_read_without_its_reader(dcd, tmp_path, monkeypatch, order):
    if order == ">":
        swapped(tmp_path / "a.dcd", tmp_path / "b.dcd", 7, 40)
        dcd.load_new(str(tmp_path / "b.dcd"))
    source = md.read(dcd)
    assert source.parts[0].dcd.order == order
    with monkeypatch.context() as patch:
        patch.setattr("ensemblekit.md.trajectory._read_any", None)      # not even once
        matches(source, dcd, np.arange(40))
        matches(md.read(dcd, frames=[3, 4, 11, 39]), dcd, [3, 4, 11, 39])
        matches(md.read(dcd.atoms[[1, 5, 6]], start=7, step=5), dcd, np.arange(7, 40, 5), [1, 5, 6])
    assert dcd.trajectory.frame == np.arange(7, 40, 5)[-1]


@pytest.mark.filterwarnings("ignore")
def test_dcd_with_cells_that_are_not_rectangular_goes_through_the_reader(dcd, tmp_path):
    with mdanalysis() as mda, mda.Writer(str(tmp_path / "c.dcd"), 7, dt=2.0) as writer:
        for k in range(40):
            dcd.trajectory[k]
            dcd.dimensions = [12, 13, 14, 90, 90 if k < 30 else 80, 90]
            writer.write(dcd.atoms)
    dcd.load_new(str(tmp_path / "c.dcd"))
    matches(md.read(dcd), dcd, np.arange(40))


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_frame_of_a_dcd_is_named(dcd, tmp_path):
    frame = 56 + 3 * (7 * 4 + 8)
    data = bytearray((tmp_path / "a.dcd").read_bytes())
    at = len(data) - 9 * frame + 56         # the marker before x of frame 31
    data[at] ^= 1
    source = md.read(dcd)
    (tmp_path / "a.dcd").write_bytes(data)
    with pytest.raises(EnsemblekitError, match=r"frame 31 of a\.dcd is damaged"):
        md.average(source, {"rg": lambda atoms: atoms.positions.sum()})
    assert md.average(source, {"rg": lambda atoms: atoms.positions.sum()}, stop=31).n_frames == 31


def test_topologies_are_kept_ready_within_bounds(tmp_path, monkeypatch):
    from ensemblekit.md import topology
    from ensemblekit.md.topology import Topology

    first, second = (Topology({"names": np.array([name] * 60, object)}, {}, {}, np.zeros(60, int), np.zeros(1, int))
                     for name in ("C", "N"))
    monkeypatch.setattr(topology, "MOST_KEPT", 100)
    one = Topology.kept(first.to_dict())
    assert Topology.kept(first.to_dict()) is one
    other = Topology.kept(second.to_dict())
    assert set(other.names) == {"N"}                       # another topology is not taken for it
    again = Topology.kept(first.to_dict())
    assert again is not one                                # there was room for 100 atoms only
    assert len(again.select("name C")) == 60
    back = pickle.loads(pickle.dumps(again))               # its lock and its universe stay behind
    assert len(back.select("name C")) == 60
