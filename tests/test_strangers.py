"""Files from strangers at the doors of the front-ends: an answer or one line of error, and nothing beyond the file's bytes."""

import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import h5py
import numpy as np
import pytest
from scipy.io import netcdf_file, savemat

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import EnsemblekitError, InputError, SnapshotFileError, StoreError

HUGE = 1 << 40
MOST = 200 << 20
SECRET = 4242.0


@pytest.fixture(autouse=True)
def _ends():
    """A call that waits for a pipe would wait for ever."""
    signal.alarm(600)
    yield
    signal.alarm(0)


def refused(match, call, *arguments, kind=EnsemblekitError, **options):
    """The call ends in one line of error, without having asked for memory that the file's bytes do not justify."""
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=match) as error:
            call(*arguments, **options)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    return str(error.value)


def checkpoint(path):
    pytest.importorskip("torch")
    from ensemblekit.neural.checkpoint_files import read_state

    return read_state(path)


def trajectory(path, **options):
    pytest.importorskip("MDAnalysis")
    from ensemblekit import md

    top = path.parent / "top.gro"
    top.write_text("two\n2\n" + "".join(f"    1SOL     OW{k:5}   0.000   0.000   0.000\n" for k in (1, 2)) + "1 1 1\n")
    return md.read(top, path, **options)


def topology(path):
    pytest.importorskip("MDAnalysis")
    from ensemblekit import md

    return md.read(path)


def columns(path):
    from ensemblekit import md

    return md.columns(path)


def series(path):
    """A ParaView collection that names the file."""
    pytest.importorskip("pyvista")
    path.with_suffix(".series").write_text(json.dumps({"files": [{"name": path.name, "time": 0}]}))
    return rom.read(path.with_suffix(".series"))


def state(path):
    return rom.IncrementalPOD(path, 2)


DOORS = [("a.h5", ek.open), *((name, rom.read) for name in ("a.npy", "a.npz", "a.mat", "a.nc", "a.h5", "a.vtkhdf", "a0.f00001",
         "a.nek5000", "a.pvd", "a.vtu", "a.vtk", "a.cgns")), ("a.vtu", series), ("a.h5", rom.Archive.open),
         ("a.h5", rom.Basis.load), ("a.h5", state), ("a.xvg", columns), ("a.csv", columns),
         ("a.xtc", trajectory), ("a.dcd", trajectory), ("a.h5md", trajectory), ("a.gro", topology), ("a.pt", checkpoint),
         ("a.safetensors", checkpoint), ("a.index.json", checkpoint)]


@pytest.mark.parametrize(("name", "door"), DOORS, ids=[f"{door.__name__}-{name}" for name, door in DOORS])
def test_what_is_no_file_is_refused_at_once(tmp_path, name, door):
    """A named pipe, where opening waits for ever; links that lead nowhere, or in a circle; a folder; nothing at all; an empty
    file; words."""
    path = tmp_path / name
    if door is rom.read and name in ("a.pvd", "a.vtu", "a.vtk", "a.cgns"):
        pytest.importorskip("pyvista")
    os.mkfifo(path)
    assert name in refused("is a named pipe", door, path)
    path.unlink()
    path.symlink_to("nowhere")
    if door is not state:       # which begins there
        refused("no such file|not there|no file", door, path)
        path.unlink()
        path.symlink_to(name)
        refused("symbolic links|no such file", door, path)
    path.unlink()
    path.mkdir()
    refused("folder|holds no weights", door, path)
    path.rmdir()
    path.write_bytes(b"")
    refused(name.partition(".")[0], door, path)
    path.write_text("these are\nwords\n")
    refused(name.partition(".")[0], door, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize(("name", "door"), DOORS, ids=[f"{door.__name__}-{name}" for name, door in DOORS])
def test_what_may_not_be_read_says_so(tmp_path, name, door):
    path = tmp_path / name
    path.write_bytes(b"x" * 1000)
    path.chmod(0)
    refused("permission", door, path)


def test_verify_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    report = ek.verify(tmp_path / "a.h5")
    assert report.verdict == "not checked"
    assert "named pipe" in str(report)


# -- sizes that the bytes do not justify ---------------------------------------------------------------------------------

def npy(shape, dtype="<f8", body=b""):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + body


@pytest.mark.parametrize("shape", [(HUGE,), (HUGE, 0), (1 << 62, 4), (-3,), (3, 1 << 33), (0,)])
def test_arrays_that_say_they_are_larger(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(npy(shape, body=bytes(64)))
    refused("a.npy", rom.read, tmp_path / "a.npy", kind=SnapshotFileError)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as out:
        out.writestr("u.npy", npy(shape, body=bytes(64)))
    refused("a.npz", rom.read, tmp_path / "a.npz", kind=SnapshotFileError)


def test_zip_files_within_themselves(tmp_path):
    """Members that share their bytes (42 kB that unpack to petabytes), and one that lies about its size."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("u.npy", npy((1 << 16,), body=bytes(8 << 16)))
        first = out.infolist()[0]
        for k in range(2000):
            again = zipfile.ZipInfo(f"u{k}.npy")
            for name in ("compress_type", "CRC", "compress_size", "file_size", "header_offset", "external_attr", "flag_bits"):
                setattr(again, name, getattr(first, name))
            out.filelist.append(again)
    refused("a.npz", rom.read, tmp_path / "a.npz", kind=SnapshotFileError)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_objects_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", u=np.ones((4, 3)), bad=np.array([Payload()], object))
    np.save("a.npy", np.array([Payload()], object))
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Payload()))
    savemat("a.mat", {"u": np.ones((3, 4)), "cell": np.array([1, "x"], object)})
    assert set(rom.read("a.npz").fields) == set(rom.read("a.mat").fields) == {"u"}
    for name in ("a.npy", "b.npy", "b.npz"):
        refused(name, rom.read, name, kind=SnapshotFileError)
    assert not os.path.exists("ran")


@pytest.mark.parametrize("packed", [False, True])
def test_matlab_files_that_say_they_are_larger(tmp_path, packed):
    savemat(tmp_path / "a.mat", {"u": np.arange(12.0).reshape(3, 4)})
    data = bytearray((tmp_path / "a.mat").read_bytes())
    for at, value in ((128 + 32, 1 << 30), (128 + 36, 1 << 30), (128 + 4, 1 << 30), (128, 99 << 8), (128 + 48, 77)):
        changed = bytearray(data)
        struct.pack_into("<I", changed, at, value)
        if packed:
            body = zlib.compress(bytes(changed[128:]))
            changed = changed[:128] + struct.pack("<II", 15, len(body)) + body
        (tmp_path / "a.mat").write_bytes(changed)
        if at != 128:       # an element of another kind is stepped over
            refused("a.mat", rom.read, tmp_path / "a.mat", kind=SnapshotFileError)


def test_old_matlab_files_that_lead_back(tmp_path):
    (tmp_path / "a.mat").write_bytes(struct.pack("<5i", 0, -4, 5, 0, 2) + b"u\0" + bytes(200))
    refused("a.mat", rom.read, tmp_path / "a.mat", kind=SnapshotFileError)


@pytest.mark.parametrize("kind", ["f8", "f4", "i2", "u1", "c16"])
@pytest.mark.parametrize("options", [{}, {"do_compression": True}, {"format": "4"}], ids=["5", "packed", "4"])
def test_matlab_arrays_are_what_was_saved(tmp_path, kind, options):
    values = (np.random.default_rng(1).random((3, 4)) * 100).astype(kind)
    values = values + (1j * values.real if kind == "c16" else 0)
    savemat(tmp_path / "a.mat", {"u": values, "t": np.arange(4.0), "words": "x", "one": 3.0}, **options)
    source = rom.read(tmp_path / "a.mat", fields="u")
    np.testing.assert_array_equal(source.read()["u"], values.T)
    np.testing.assert_array_equal(source.times, np.arange(4.0))
    assert source.fields["u"].dtype == (values.dtype if options.get("format") != "4" or kind != "c16" else np.dtype("c16"))


def test_netcdf_records_of_nothing(tmp_path):
    with netcdf_file(tmp_path / "a.nc", "w") as f:
        f.createDimension("time", None)
        f.createDimension("x", 2)
        f.createVariable("u", "f4", ("time", "x"))[:] = np.ones((3, 2))
    data = bytearray((tmp_path / "a.nc").read_bytes())
    at = data.index(b"x\0\0\0") + 4
    struct.pack_into(">i", data, 4, 0x7FFFFFFF)
    struct.pack_into(">i", data, at, 0)
    (tmp_path / "a.nc").write_bytes(data)
    refused("a.nc", rom.read, tmp_path / "a.nc", kind=SnapshotFileError)


def grid(path, **steps):
    with h5py.File(path, "w") as f:
        root = f.create_group("VTKHDF")
        root.attrs["Type"] = np.bytes_("UnstructuredGrid")
        root["NumberOfPoints"], root["NumberOfCells"], root["NumberOfConnectivityIds"] = [3], [1], [3]
        root["Points"], root["Connectivity"], root["Offsets"] = np.eye(3), [0, 1, 2], [0, 3]
        root["Types"] = np.array([5], "u1")
        root["PointData/u"] = np.arange(6.0)
        held = root.create_group("Steps")
        held.attrs["NSteps"] = 2
        held["Values"], held["NumberOfParts"], held["PartOffsets"] = [0.0, 1.0], [1, 1], [0, 0]
        held["PointOffsets"], held["CellOffsets"], held["ConnectivityIdOffsets"] = [0, 0], [0, 0], [0, 0]
        held["PointDataOffsets/u"] = [0, 3]
        for name, value in steps.items():
            if name == "NSteps":
                held.attrs[name] = value
            else:
                del held[name]
                held.create_dataset(name, **value) if isinstance(value, dict) else held.__setitem__(name, value)


@pytest.mark.parametrize("steps", [
    {"NSteps": HUGE}, {"NSteps": HUGE, "Values": {"shape": (HUGE,), "dtype": "f8", "chunks": (1024,)}}, {"NSteps": -1},
    {"NumberOfParts": [HUGE, 1]}, {"PartOffsets": [7, 0]}, {"PointDataOffsets/u": [0, 1 << 50]}])
def test_vtkhdf_steps_that_are_not_there(tmp_path, steps):
    grid(tmp_path / "a.vtkhdf")
    np.testing.assert_array_equal(rom.read(tmp_path / "a.vtkhdf").read()["u"], np.arange(6.0).reshape(2, 3))
    grid(tmp_path / "a.vtkhdf", **steps)
    refused("a.vtkhdf", lambda: rom.read(tmp_path / "a.vtkhdf").read())


def test_vtkhdf_images_of_more_points_than_bytes(tmp_path):
    with h5py.File(tmp_path / "a.vtkhdf", "w") as f:
        root = f.create_group("VTKHDF")
        root.attrs["Type"], root.attrs["WholeExtent"] = np.bytes_("ImageData"), [0, 4000, 0, 4000, 0, 4000]
        root.attrs["Origin"], root.attrs["Spacing"] = np.zeros(3), np.ones(3)
        root["PointData/u"] = np.ones((2, 2, 2))
    refused("a.vtkhdf", rom.read, tmp_path / "a.vtkhdf", kind=StoreError)


def test_a_plain_file_of_endless_snapshots_opens_and_is_read_by_windows(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("x", (HUGE, 2), "f8", chunks=(1024, 2))
    source = rom.read(tmp_path / "a.h5")
    assert len(source) == HUGE
    np.testing.assert_array_equal(source.window(5, 8).read()["x"], np.zeros((3, 2)))


def test_lists_of_files_without_end(tmp_path):
    for text in ("filetemplate: a%01d.f%05d\nfirsttimestep: 1\nnumtimesteps: 1000000000000\n",
                 "filetemplate: a%0999999999d.f%05d\nfirsttimestep: 1\nnumtimesteps: 3\n",
                 "filetemplate: a%s%s%s\nfirsttimestep: 1\nnumtimesteps: 3\n"):
        (tmp_path / "a.nek5000").write_text(text)
        refused("a0|a.nek5000", rom.read, tmp_path / "a.nek5000", kind=SnapshotFileError)


@pytest.mark.parametrize("change", [{"shape": [HUGE]}, {"n": HUGE}, {"tile": [0]}, {"tile": [1, 1]}, {"dtype": "O"},
                                    {"dtype": "V9"}, {"shape": None}, {"error": "x"}, {"residual_step": [1]}])
def test_archives_that_say_they_are_larger(tmp_path, change):
    rng = np.random.default_rng(0)
    archive = rom.compress(rng.standard_normal((9, 3)) @ rng.standard_normal((3, 40)), tmp_path / "a.h5", tolerance=1e-3,
                           norm="max")
    (name,) = archive
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        about = json.loads(f.attrs["ensemblekit_archive"])
        about["fields"][name].update(change)
        f.attrs["ensemblekit_archive"] = json.dumps(about)
    refused("a.h5", rom.Archive.open, tmp_path / "a.h5", kind=StoreError)


def rewritten(path, at, change):
    """A file of arrays with one of them changed or gone; "about" is the record of the others."""
    with h5py.File(path, "r+") as f:
        files = []
        f.visit(files.append)
        name = next(name for name in files if name.endswith("/about")).removesuffix("about") + at
        values = f[name][...]
        del f[name]
        new = change(values)
        assert new is None or not np.array_equal(new, values)
        if new is not None:
            f[name] = new


def replaced(old, new):
    return lambda values: np.frombuffer(values.tobytes().replace(old, new), np.uint8)


@pytest.mark.parametrize(("at", "change"), [
    ("modes", lambda x: x[:, :3]), ("modes", lambda x: None), ("singular_values", lambda x: None),
    ("mean", lambda x: x[:2]), ("coefficients", lambda x: x[:, :1]), ("about", lambda x: np.frombuffer(b"\xff[", np.uint8)),
    ("about", replaced(b"gram", b"\\x")),
    ("about", lambda x: np.frombuffer(b"[" * 100000, np.uint8)),
    ("about", replaced(b'"shape": [20]', b'"shape": [-2]')),
    ("about", replaced(b'"total_energy"', b'"total_Energy"')),
    ("about", replaced(b'"inner_product": {', b'"inner_product": 3, "x": {')),
])
def test_bases_whose_parts_do_not_fit(tmp_path, at, change):
    rom.pod(np.random.default_rng(0).standard_normal((6, 20)), 2).save(tmp_path / "a.h5")
    rewritten(tmp_path / "a.h5", at, change)
    refused("a.h5", rom.Basis.load, tmp_path / "a.h5", kind=StoreError)


def test_a_mass_matrix_that_points_beyond_its_columns(tmp_path):
    from scipy.sparse import diags_array

    mass = diags_array(np.ones(20)).tocsr()
    rom.pod(np.random.default_rng(0).standard_normal((6, 20)), 2, inner_product=mass, method="gram").save(tmp_path / "a.h5")
    rewritten(tmp_path / "a.h5", "inner_product/0/indices", lambda x: x + (1 << 28))
    refused("a.h5", rom.Basis.load, tmp_path / "a.h5", kind=StoreError)


@pytest.mark.parametrize(("at", "change"), [
    ("modes", lambda x: x[:, :3]), ("sigma", lambda x: None), ("shift", lambda x: x[:2]),
    ("history/0/rows", lambda x: None), ("about", lambda x: np.frombuffer(b"\xff[", np.uint8)),
    ("about", replaced(b'"n": 6', b'"n": []')), ("times", lambda x: x[:1]),
    ("pending", lambda x: x[:, :2]), ("pending_meta", lambda x: x.ravel()),
])
def test_states_whose_parts_do_not_fit(tmp_path, at, change):
    rom.IncrementalPOD(tmp_path / "a.h5", 2, block=4).update(np.random.default_rng(0).standard_normal((6, 20))).save()
    assert rom.IncrementalPOD(tmp_path / "a.h5", 2, block=4).n == 6
    rewritten(tmp_path / "a.h5", at, change)
    refused("a.h5", rom.IncrementalPOD, tmp_path / "a.h5", 2, block=4, kind=StoreError)


def test_faces_that_are_not_there():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    faces = rom.mesh.Polyhedra(np.arange(5) * 3, np.array([0, 1, 2, 0, 1, 3, 1, 2, 3, 0, 2, 9]), np.array([0, 4]), np.arange(4))
    with pytest.raises(InputError, match="faces name the numbers"):
        rom.Mesh(points, np.arange(4), np.array([0, 4]), np.array([42]), faces)


def test_topologies_that_name_what_is_not_there():
    pytest.importorskip("MDAnalysis")
    from ensemblekit.errors import StoreDamagedError
    from ensemblekit.md.topology import Topology, _packed

    whole = Topology({"names": np.array(["A", "B", "C"], object)}, {"resids": np.array([1, 2])}, {}, np.array([0, 0, 1]),
                     np.array([0, 0]), {"bonds": np.array([[0, 1], [1, 2]])}).to_dict()
    assert len(Topology.kept(whole)) == 3
    for change in ({"residue_of": _packed(np.array([0, 0, 1 << 40]))}, {"segment_of": _packed(np.array([0, 1 << 62]))},
                   {"links": {"bonds": {"width": 2, **_packed(np.array([0, 99]))}}}, {"atoms": {"names": _packed(np.zeros(2))}},
                   {"n_atoms": []}, {"residues": 3}, {"atoms": {"names": {"dtype": "O", "data": "AAAA"}}}):
        if "n_atoms" in change:
            assert len(Topology.kept({**whole, **change})) == 3     # only said, not needed
        else:
            refused("topology of this store", Topology.kept, {**whole, **change}, kind=StoreDamagedError)
    refused("topology of this store", Topology.kept, [], kind=StoreDamagedError)


# -- other files -----------------------------------------------------------------------------------------------------

def external_storage(f, name, shape, folder):
    np.full(shape, SECRET).tofile(folder / "secret.bin")
    f.create_dataset(name, shape, "f8", external=[(str(folder / "secret.bin"), 0, int(np.prod(shape)) * 8)])


def external_link(f, name, shape, folder):
    with h5py.File(folder / "secret.h5", "w") as other:
        other["x"] = np.full(shape, SECRET)
    f[name] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def virtual(f, name, shape, folder):
    with h5py.File(folder / "secret.h5", "w") as other:
        other["x"] = np.full(shape, SECRET)
    layout = h5py.VirtualLayout(shape, "f8")
    layout[...] = h5py.VirtualSource(str(folder / "secret.h5"), "/x", shape)
    f.create_virtual_dataset(name, layout)


OUTSIDE = [external_storage, external_link, virtual]


@pytest.mark.parametrize("make", OUTSIDE, ids=lambda m: m.__name__)
@pytest.mark.parametrize(("name", "options"), [("a.h5", {}), ("a.h5", {"snapshot_axis": 1}), ("a.nc", {"snapshot_axis": 0}),
                                               ("a.mat", {}), ("a.vtkhdf", {})], ids=lambda x: str(x))
def test_nothing_outside_a_file_of_snapshots_is_read(tmp_path, make, name, options):
    if name == "a.vtkhdf":
        grid(tmp_path / name)
        with h5py.File(tmp_path / name, "r+") as f:
            del f["VTKHDF/PointData/u"]
            make(f, "VTKHDF/PointData/u", (6,), tmp_path)
    else:
        with h5py.File(tmp_path / name, "w") as f:
            make(f, "u", (4, 4), tmp_path)
    refused("external=True|points to another file", rom.read, tmp_path / name, **options)
    if make is external_link and name != "a.vtkhdf":
        return              # h5py's walk over a file does not follow them
    source = rom.read(tmp_path / name, external=True, **options)
    np.testing.assert_array_equal(source.read()["u"], SECRET)
    again = pickle.loads(pickle.dumps(source))      # as a worker gets it
    np.testing.assert_array_equal(again.read()["u"], SECRET)


@pytest.mark.parametrize("make", OUTSIDE, ids=lambda m: m.__name__)
def test_nothing_outside_a_trajectory_is_read(tmp_path, make):
    with h5py.File(tmp_path / "a.h5md", "w") as f:
        f.attrs["x"] = 1
        h5md = f.create_group("h5md")
        h5md.attrs["version"] = [1, 1]
        position = f.create_group("particles/trajectory/position")
        make(position, "value", (3, 2, 3), tmp_path)
        position["step"], position["time"] = np.arange(3), np.arange(3.0)
        position["value"].attrs["unit"], position["time"].attrs["unit"] = "Angstrom", "ps"
        box = f.create_group("particles/trajectory/box")
        box.attrs["dimension"], box.attrs["boundary"] = 3, np.array([b"none"] * 3)
    refused("points to another file.*external=True", trajectory, tmp_path / "a.h5md", kind=StoreError)
    source = trajectory(tmp_path / "a.h5md", external=True)
    piece = next(iter(source.pieces(["position"], "time", False, 1 << 20)))
    np.testing.assert_array_equal(next(iter(piece.blocks())).fields["position"], np.float32(SECRET))


def test_a_trajectory_of_endless_frames(tmp_path):
    with h5py.File(tmp_path / "a.h5md", "w") as f:
        f.create_group("h5md").attrs["version"] = [1, 1]
        position = f.create_group("particles/trajectory/position")
        position.create_dataset("value", (HUGE, 2, 3), "f4", chunks=(64, 2, 3))
        position.create_dataset("step", (HUGE,), "i8", chunks=(1024,))
        position.create_dataset("time", (HUGE,), "f8", chunks=(1024,))
        position["value"].attrs["unit"], position["time"].attrs["unit"] = "Angstrom", "ps"
        box = f.create_group("particles/trajectory/box")
        box.attrs["dimension"], box.attrs["boundary"] = 3, np.array([b"none"] * 3)
    refused("a.h5md", trajectory, tmp_path / "a.h5md")


# -- changes at random -----------------------------------------------------------------------------------------------

def fuzz(folder, first, last, *readers):
    """Open changed files in a process of their own, as damage may end it."""
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, os.path.join(here, "fuzz_readers.py"), str(first), str(last), str(folder), *readers],
                          capture_output=True, text=True, errors="replace", timeout=7200)
    seed = done.stdout.split()[-1:]
    assert done.returncode == 0, f"seed {seed}: exit {done.returncode}: {done.stderr[-2000:]}"
    assert seed == [str(last - 1)]


def test_fuzzed_files_of_every_reader(tmp_path):
    fuzz(tmp_path, 0, 180, "quick")


@pytest.mark.slow
def test_many_fuzzed_files_of_every_reader(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("MDAnalysis")
    fuzz(tmp_path, 180, 20450)
