"""Export: what is written is read back with VTK's own readers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, StoreError
from ensemblekit.rom.export import dimensions_of
from ensemblekit.rom.mesh import Mesh, constants_for
from tests.flowfiles import Foam
from tests.test_rom_ingest import seen, steps_of
from tests.test_rom_openfoam import N as CELLS
from tests.test_rom_openfoam import write_case

pv = pytest.importorskip("pyvista")

N = 12
TIMES = np.linspace(0, 1.1, N)
MESH = Mesh.rectilinear(np.linspace(0, 2, 5), [0, 1, 3.0]).with_fields({"p": "cell", "U": "point"})


def store(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    p = rng.normal(size=(N, 3)) @ rng.normal(size=(3, MESH.n_cells))
    u = (rng.normal(size=(N, 3)) @ rng.normal(size=(3, MESH.n_points * 2))).reshape(N, 3, 5, 2)
    with ek.create(path, {"p": ek.Field((MESH.n_cells,), unit="Pa"), "U": ek.Field((3, 5, 2), unit="m s-1")},
                   constants=constants_for(MESH), time_unit="s") as opened:
        opened.extend({"p": p, "U": u}, times=TIMES)
        opened.seal()
    return {"p": p, "U": u}


@pytest.fixture
def basis(tmp_path: Path) -> rom.Basis:
    store(tmp_path / "run.vtkhdf")
    return rom.pod(ek.open(tmp_path / "run.vtkhdf")["U"], rank=3)


def plane(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1, 2)
    return np.c_[flat, np.zeros(len(flat))]


def test_modes(tmp_path: Path, basis: rom.Basis) -> None:
    assert basis.mesh is not None
    assert rom.export(basis, tmp_path / "modes.vtkhdf") == str(tmp_path / "modes.vtkhdf")
    rom.export(basis, tmp_path / "modes.pvd")
    for data in (seen(tmp_path / "modes.vtkhdf", 0), pv.read(tmp_path / "modes.vtu"), pv.read(tmp_path / "modes.vtkhdf")):
        assert sorted(data.point_data.keys()) == ["U_mean", "U_mode_0001", "U_mode_0002", "U_mode_0003"]
        np.testing.assert_array_equal(data.point_data["U_mode_0002"], plane(basis.modes[1]))
        np.testing.assert_array_equal(data.point_data["U_mean"], plane(basis.mean))
        np.testing.assert_allclose(data.compute_cell_sizes()["Area"], MESH.volumes)
    with pytest.raises(StoreError, match="there already"):
        rom.export(basis, tmp_path / "modes.vtkhdf")
    rom.export(basis.truncate(1), tmp_path / "modes.vtkhdf", overwrite=True)
    assert len(pv.read(tmp_path / "modes.vtkhdf").point_data.keys()) == 2


def test_reconstruction_in_time(tmp_path: Path, basis: rom.Basis) -> None:
    path = tmp_path / "again.vtkhdf"
    rom.export(basis, path, what="reconstruction", which=slice(2, 8))
    np.testing.assert_allclose(steps_of(path), TIMES[2:8])
    want = basis.reconstruct(slice(2, 8))
    for k in (0, 5):
        np.testing.assert_allclose(seen(path, k).point_data["U"], plane(want[k]), rtol=1e-13)
    import h5py

    with h5py.File(path) as f:
        assert len(f["VTKHDF/Points"]) == MESH.n_points         # geometry once
    rom.export(basis, tmp_path / "own.vtkhdf", what="reconstruction", which=2 * basis.coefficients[:4], times=[0, 1, 2, 9])
    np.testing.assert_array_equal(steps_of(tmp_path / "own.vtkhdf"), [0, 1, 2, 9])
    want = basis.reconstruct(2 * basis.coefficients[:4])
    np.testing.assert_allclose(seen(tmp_path / "own.vtkhdf", 3).point_data["U"], plane(want[3]))
    rom.export(basis, tmp_path / "again.pvd", what="reconstruction", which=slice(0, 3))
    reader = pv.get_reader(tmp_path / "again.pvd")
    np.testing.assert_allclose(reader.time_values, TIMES[:3])
    np.testing.assert_allclose(rom.read(tmp_path / "again.pvd").read()["U"][1], plane(basis.reconstruct(1)))


def test_several_fields(tmp_path: Path) -> None:
    store(tmp_path / "run.vtkhdf")
    basis = rom.pod(ek.open(tmp_path / "run.vtkhdf"), rank=4)
    rom.export(basis, tmp_path / "modes.vtkhdf")
    data = pv.read(tmp_path / "modes.vtkhdf")
    np.testing.assert_array_equal(data.cell_data["p_mode_0004"], basis["p"].modes[3])
    np.testing.assert_array_equal(data.point_data["U_mode_0001"], plane(basis["U"].modes[0]))
    rom.export(basis, tmp_path / "all.vtkhdf", what="reconstruction")
    np.testing.assert_allclose(seen(tmp_path / "all.vtkhdf", 7).cell_data["p"], basis.reconstruct(7)["p"])


def averages() -> rom.FieldAverages:
    """Means of two fields of a run, with intervals, on the points and in the cells of a mesh."""
    rng = np.random.default_rng(0)
    source = ek.ArraySource.of({"U": 1 + 0.1 * rng.normal(size=(200, 3, 5, 2)),
                                "p": np.arange(8.0) + rng.normal(size=(200, 8))})
    results = rom.average(source, ["mean"])
    return dataclasses.replace(results, mesh=MESH, association={"U_mean": "point", "p_mean": "cell"})


def test_averages_and_arrays(tmp_path: Path) -> None:
    results = averages()
    rom.export(results, tmp_path / "mean.vtkhdf")
    data = pv.read(tmp_path / "mean.vtkhdf")
    np.testing.assert_array_equal(data.cell_data["p_mean"], results["p_mean"].mean)
    np.testing.assert_array_equal(data.point_data["U_mean_ci95"], plane(results.arrays()["U_mean_ci95"]))
    values = np.arange(3 * 8.0).reshape(3, 8)
    rom.export({"a/b": values}, tmp_path / "steps.vtkhdf", mesh=MESH, times=[0, 1, 5])
    np.testing.assert_array_equal(seen(tmp_path / "steps.vtkhdf", 2).cell_data["a_b"], values[2])
    rom.export({"z": np.exp(1j * np.arange(15))}, tmp_path / "z.vtkhdf", mesh=MESH)
    np.testing.assert_allclose(pv.read(tmp_path / "z.vtkhdf").point_data["z_im"], np.sin(np.arange(15)))


def test_averages_of_a_store(tmp_path: Path) -> None:
    arrays = store(tmp_path / "run.vtkhdf")
    results = rom.average(ek.open(tmp_path / "run.vtkhdf"), ["mean"], velocity="U", equilibration=0)
    rom.export(results, tmp_path / "mean.vtkhdf")
    data = pv.read(tmp_path / "mean.vtkhdf")
    np.testing.assert_allclose(data.point_data["U_mean"], plane(arrays["U"].mean(0)), rtol=1e-12)
    assert {"U_mean_ci95", "U_mean_n_eff"} <= set(data.point_data.keys())


def test_snapshots(tmp_path: Path) -> None:
    arrays = store(tmp_path / "run.vtkhdf")
    rom.export(ek.open(tmp_path / "run.vtkhdf").window(3, 9, 2), tmp_path / "some.vtkhdf")
    np.testing.assert_allclose(steps_of(tmp_path / "some.vtkhdf"), TIMES[3:9:2])
    np.testing.assert_array_equal(seen(tmp_path / "some.vtkhdf", 1).cell_data["p"], arrays["p"][5])
    rom.export(str(tmp_path / "run.vtkhdf"), tmp_path / "all.pvd")
    np.testing.assert_array_equal(rom.read(tmp_path / "all.pvd").read()["p"], arrays["p"])


@pytest.mark.filterwarnings("ignore:steps of time")      # of a case that is written more often at its beginning
def test_openfoam(tmp_path: Path) -> None:
    """Modes of a case stand in a time folder of it; OpenFOAM's own reader in VTK sees them too."""
    fields = write_case(tmp_path, Foam())
    source = rom.read(tmp_path, ["U", "R"], zero=True)
    basis = rom.pod(source["U"], rank=2)
    rom.export(basis, tmp_path / "1000")
    assert rom.read(tmp_path, zero=True).times.max() == 10        # the modes are no snapshots of the run
    again = rom.read(tmp_path, ["U_mode_0001", "U_mode_0002"])
    assert again.fields["U_mode_0001"].unit == "m s-1"
    np.testing.assert_array_equal(again.read()["U_mode_0002"][0], basis.modes[1])
    reader = pv.POpenFOAMReader(str(tmp_path / "a.foam")) if (tmp_path / "a.foam").write_text("") == 0 else None
    reader.set_active_time_value(1000)
    reader.cell_to_point_creation = False
    inner = reader.read()["internalMesh"]
    np.testing.assert_allclose(inner.cell_data["U_mode_0001"], basis.modes[0], rtol=1e-6)
    with pytest.raises(StoreError, match="there already"):
        rom.export(basis, tmp_path / "1000")
    case = tmp_path / "copy"
    write_case(case, Foam())
    rom.export(source, case, overwrite=True)
    np.testing.assert_array_equal(rom.read(case, ["U", "R"], zero=True).read()["R"], fields["R"])
    with pytest.raises(InputError, match="such as"):
        rom.export(basis, case)
    with pytest.raises(InputError, match="time folders; give the case"):
        rom.export(source, case / "7")
    with pytest.raises(InputError, match="live on cells"):
        rom.export({"x": np.zeros(60)}, case / "8", mesh=source.mesh)
    assert source.mesh.n_cells == CELLS


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="goes by the suffix"):
        rom.export({"p": np.zeros(8)}, tmp_path / "a.vtu", mesh=MESH)
    with pytest.raises(InputError, match="no mesh to show"):
        rom.export({"p": np.zeros(8)}, tmp_path / "a.vtkhdf")
    with pytest.raises(InputError, match="fits neither"):
        rom.export({"q": np.zeros(9)}, tmp_path / "a.vtkhdf", mesh=MESH)
    with pytest.raises(InputError, match="first axis"):
        rom.export({"p": np.zeros((2, 8)), "q": np.zeros((3, 8))}, tmp_path / "a.vtkhdf", mesh=MESH, times=[0, 1])
    with pytest.raises(InputError, match="a source of snapshots"):
        rom.export(3, tmp_path / "a.vtkhdf", mesh=MESH)
    assert not list(tmp_path.iterdir())


def test_dimensions() -> None:
    assert dimensions_of("m s-1") == "0 1 -1 0 0 0 0"
    assert dimensions_of("kg m-1 s-2") == "1 -1 -2 0 0 0 0"
    assert dimensions_of("m0.5") == "0 0.5 0 0 0 0 0"
    assert dimensions_of("Pa") == "0 0 0 0 0 0 0"
