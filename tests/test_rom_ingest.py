"""Ingest: what comes in is what stands in the store and what VTK sees of it; cut short, it goes on where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, SnapshotFileError, StoreError
from ensemblekit.rom.cells import Polyhedra
from ensemblekit.rom.mesh import Mesh, constants_for, inner_product, mesh_of
from tests.flowfiles import Foam
from tests.test_rom_openfoam import write_case

vtk = pytest.importorskip("vtk")
pv = pytest.importorskip("pyvista")

N = 6
TIMES = np.array([0, 0.1, 0.2, 0.4, 0.8, 1.6])


def seen(path: Path, k: int) -> pv.DataSet:
    """Step k as VTK's own reader gives it."""
    reader = vtk.vtkHDFReader()
    reader.SetFileName(str(path))
    reader.UpdateInformation()
    if reader.GetNumberOfSteps() > 1 or reader.GetHasTemporalData():
        reader.SetStep(k)
    reader.Update()
    out = pv.wrap(reader.GetOutputDataObject(0))
    return out.combine() if isinstance(out, pv.MultiBlock) else out


def steps_of(path: Path) -> np.ndarray:
    reader = vtk.vtkHDFReader()
    reader.SetFileName(str(path))
    reader.UpdateInformation()
    return np.array(reader.GetOutputInformation(0).Get(vtk.vtkStreamingDemandDrivenPipeline.TIME_STEPS()))


def meshed() -> tuple[Mesh, dict[str, np.ndarray]]:
    mesh = Mesh.rectilinear(np.linspace(0, 2, 5), [0, 1, 3.0], [0, 0.5, 1.0])
    rng = np.random.default_rng(0)
    arrays = {"p": rng.normal(size=(N, mesh.n_cells)), "U": rng.normal(size=(N, mesh.n_points, 3)).astype("f4"),
              "v": rng.normal(size=(N, 3, 3, 5, 2)), "id": np.arange(N * mesh.n_cells).reshape(N, -1),
              "mass": np.arange(N) * 1.0}
    return mesh.with_fields({"p": "cell", "U": "point", "v": "point", "id": "cell"}), arrays


def store_on_mesh(path: Path, **options) -> dict[str, np.ndarray]:
    mesh, arrays = meshed()
    fields = {name: ek.Field(x.shape[1:], x.dtype) for name, x in arrays.items()}
    with ek.create(path, fields, constants=constants_for(mesh), time_unit="s", **options) as store:
        store.extend(arrays, times=TIMES)
    return arrays


def assert_seen(path: Path, arrays: dict[str, np.ndarray], n: int = N) -> None:
    np.testing.assert_array_equal(steps_of(path), TIMES[:n])
    for k in (0, n - 1, n // 2):
        data = seen(path, k)
        np.testing.assert_array_equal(data.cell_data["p"], arrays["p"][k])
        np.testing.assert_array_equal(data.cell_data["id"], arrays["id"][k])
        np.testing.assert_array_equal(data.point_data["U"], arrays["U"][k])
        plane = arrays["v"][k].reshape(-1, 2)
        np.testing.assert_array_equal(data.point_data["v"], np.c_[plane, np.zeros(len(plane))])     # VTK's vectors have three
        assert "mass" not in data.array_names
    np.testing.assert_allclose(data.compute_cell_sizes()["Volume"].sum(), 6)


@pytest.mark.parametrize("compression", [None, "lossless"])
def test_a_sealed_store_opens_in_vtk(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "run.vtkhdf"
    arrays = store_on_mesh(path, capacity=4)
    ek.open(path, "a").seal(compression=compression)
    assert_seen(path, arrays)
    assert ek.verify(path).ok
    store = ek.open(path)
    for name, values in arrays.items():
        np.testing.assert_array_equal(store[name][:], values)
    mesh = mesh_of(store)
    assert mesh is not None
    np.testing.assert_allclose(inner_product(store["p"]), mesh.volumes)
    assert inner_product(store, "v").shape == (3, 3, 5)
    assert inner_product(store["U"].window(2)).shape == (mesh.n_points,)
    source = rom.read(path, ["U"])
    assert source.mesh.n_cells == mesh.n_cells


def test_publish_shows_a_store_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "run.vtkhdf"
    mesh, arrays = meshed()
    fields = {name: ek.Field(x.shape[1:], x.dtype) for name, x in arrays.items()}
    with ek.create(path, fields, constants=constants_for(mesh), capacity=2) as store:
        with pytest.raises(InputError, match="no snapshots yet"):
            store.publish()
        for k in range(N):
            store.append({name: x[k] for name, x in arrays.items()}, time=TIMES[k])
            if k == 2:
                view = store.publish()
                assert_seen(Path(view), arrays, 3)
        assert_seen(Path(view), arrays, 3)          # that of the moment it was written
        assert_seen(Path(store.publish()), arrays)
        assert Path(view).name == "run.view.vtkhdf"
        assert os.path.getsize(view) < 100_000
    (tmp_path / "else").mkdir()
    there = ek.open(path).publish(tmp_path / "else" / "look.vtkhdf")
    assert_seen(Path(there), arrays)
    with pytest.raises(InputError, match=r"go by the suffix .vtkhdf"):
        ek.open(path).publish(tmp_path / "look.h5")
    assert len(rom.read(view)) == N                 # and reads back through us too


def test_openfoam_to_vtk_and_back(tmp_path: Path) -> None:
    fields = write_case(tmp_path / "case", Foam(binary=True))
    store = rom.ingest(tmp_path / "case", tmp_path / "run.vtkhdf", zero=True)
    assert store.sealed
    assert store.time_unit == "s"
    assert store["U"].unit == "m s-1"
    np.testing.assert_array_equal(store.times, [0, 0.5, 1, 10])
    for name, values in fields.items():
        np.testing.assert_array_equal(store[name][:], values)
    data = seen(tmp_path / "run.vtkhdf", 2)
    np.testing.assert_array_equal(data.cell_data["U"], fields["U"][2])
    assert np.abs(data.compute_cell_sizes()["Volume"]).sum() == pytest.approx(1, rel=1e-3)     # VTK cuts warped faces
    np.testing.assert_allclose(mesh_of(store).volumes, rom.read(tmp_path / "case").mesh.volumes)
    again = rom.ingest(tmp_path / "case", tmp_path / "run.vtkhdf", zero=True)      # nothing to do
    assert len(again) == 4


def test_polyhedra_in_steps(tmp_path: Path) -> None:
    from ensemblekit.rom import cells as vtk

    hexes = Mesh.rectilinear([0, 1, 2.0], [0, 1.0], [0, 1.0])
    faces, cells = [], []
    for cell in hexes.connectivity.reshape(-1, 8):
        cells += range(len(faces), len(faces) + 6)
        faces += [cell[list(face)] for face in vtk.FACES[vtk.HEXAHEDRON]]
    poly = Polyhedra(np.arange(len(faces) + 1) * 4, np.concatenate(faces), np.arange(3) * 6, np.array(cells))
    mesh = Mesh(hexes.points, hexes.connectivity, hexes.offsets, np.full(2, 42), poly)
    p = np.arange(6.0).reshape(3, 2)
    with ek.create(tmp_path / "a.vtkhdf", {"p": ek.Field((2,))}, constants=constants_for(mesh)) as store:
        store.extend({"p": p}, times=[0, 1, 2])
        store.seal()
    for k in (0, 2):
        data = seen(tmp_path / "a.vtkhdf", k)
        np.testing.assert_array_equal(data.cell_data["p"], p[k])
        np.testing.assert_allclose(data.compute_cell_sizes()["Volume"], 1)
        assert (data.celltypes == 42).all()
    assert rom.read(tmp_path / "a.vtkhdf").mesh.volumes.tolist() == [1, 1]


def test_names_and_suffixes(tmp_path: Path) -> None:
    write_case(tmp_path / "case", Foam())
    with pytest.warns(UserWarning, match=r"opens in ParaView and pyvista"):
        rom.ingest(tmp_path / "case", tmp_path / "a.h5", fields="p")
    np.save(tmp_path / "u.npy", np.zeros((3, 4)))
    with pytest.raises(InputError, match="there is no mesh"):
        rom.ingest(tmp_path / "u.npy", tmp_path / "u.vtkhdf")
    store = rom.ingest(np.ones((3, 4)), tmp_path / "b.h5", dtype="f4")
    assert store.fields["values"].dtype == np.float32
    with pytest.raises(StoreError, match="holds something else"):
        rom.ingest(np.ones((3, 5)), tmp_path / "b.h5")
    with pytest.raises(StoreError, match="is not that of the files"):
        rom.ingest(np.zeros((3, 4)), tmp_path / "b.h5", dtype="f4")
    with pytest.raises(StoreError, match="there already"):
        rom.ingest(np.ones((3, 4)), tmp_path / "b.h5", dtype="f4", resume=False)
    with pytest.raises(InputError, match="begin"):
        rom.ingest(np.ones((3, 4)), tmp_path / "c.h5", begin=1)


def test_names_with_dots(tmp_path: Path) -> None:
    arrays = {"alpha.water": np.zeros((2, 3)), "alpha_water": np.ones((2, 3)), "a/time": np.ones(2)}
    store = rom.ingest(ek.ArraySource.of(arrays), tmp_path / "a.h5")
    first = {name: store[name][0].tolist() for name in store}
    assert first == {"alpha_water": [0, 0, 0], "alpha_water_2": [1, 1, 1], "a_time": 1}


def test_a_truncated_file_in_the_middle(tmp_path: Path) -> None:
    """It is named, what lies before it is kept, and the same call goes on when it is mended."""
    mesh = pv.ImageData(dimensions=(4, 3, 2)).cast_to_unstructured_grid()
    for k in range(N):
        mesh.cell_data["p"] = np.full(mesh.n_cells, float(k))
        mesh.save(tmp_path / f"a_{k}.vtu")
    source = rom.read(tmp_path / "a_*.vtu")
    whole = (tmp_path / "a_3.vtu").read_bytes()
    (tmp_path / "a_3.vtu").write_bytes(whole[:len(whole) // 2])        # after the series was looked at
    with pytest.raises(SnapshotFileError, match=r"a_3.vtu: .*The 3 snapshots before it are in .*run.vtkhdf; mend the file"):
        rom.ingest(source, tmp_path / "run.vtkhdf")
    assert ek.open(tmp_path / "run.vtkhdf")["p"][:, 0].tolist() == [0, 1, 2]
    (tmp_path / "a_3.vtu").write_bytes(whole)
    store = rom.ingest(source, tmp_path / "run.vtkhdf")
    assert store["p"][:, 0].tolist() == list(range(N))
    assert store.sealed
    assert ek.verify(tmp_path / "run.vtkhdf").ok


def test_what_lies_before_it_in_one_batch_is_kept(tmp_path: Path) -> None:
    for k in range(150):
        np.save(tmp_path / f"u_{k}.npy", np.full(3, float(k)))
    source = rom.read(tmp_path / "u_*.npy")
    assert any(piece.start < 101 < piece.stop - 1 for piece in source.pieces(["u"], "time", False, 1 << 20))
    (tmp_path / "u_101.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(SnapshotFileError, match=r"u_101.npy.*The 101 snapshots before it"):
        rom.ingest(source, tmp_path / "u.h5")
    np.save(tmp_path / "u_101.npy", np.full(3, 101.0))
    assert rom.ingest(source, tmp_path / "u.h5")["u"][:, 0].tolist() == list(range(150))


KILLED = """
import os, signal, sys
from ensemblekit import rom
def stop(done, n):
    if done >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
import ensemblekit.rom.ingest as ingest
ingest.BATCH = 1
import ensemblekit.rom.read as read
read.BATCH = 1
rom.ingest(sys.argv[1], sys.argv[2], zero=True, progress=stop)
"""


def test_killed_and_started_again(tmp_path: Path) -> None:
    fields = write_case(tmp_path / "case", Foam())
    import shutil

    for k in range(20, 24):
        shutil.copytree(tmp_path / "case" / "10", tmp_path / "case" / str(k))
    out = tmp_path / "run.vtkhdf"
    here = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "case", out], cwd=here, timeout=600)
    assert done.returncode == -signal.SIGKILL
    assert len(ek.open(out)) == 4
    store = rom.ingest(tmp_path / "case", out, zero=True)
    assert len(store) == 8
    np.testing.assert_array_equal(store["U"][:], fields["U"][[0, 1, 2, 3, 3, 3, 3, 3]])
    assert len(steps_of(out)) == 8
