"""VTK's formats: written by VTK itself, read back through rom.read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ensemblekit import rom
from ensemblekit.errors import InputError, MissingExtraError, SnapshotFileError, StoreError, UnknownFieldError
from ensemblekit.rom.mesh import Mesh, inner_product

pv = pytest.importorskip("pyvista")
vtk = pytest.importorskip("vtk")

N = 5
TIMES = np.array([0.0, 0.25, 0.5, 1.0, 1.5])


def image() -> pv.ImageData:
    return pv.ImageData(dimensions=(4, 3, 3), spacing=(0.5, 1, 2), origin=(1, 2, 3))


def grid(kind: str) -> pv.DataSet:
    base = image()
    if kind == "vti":
        return base
    if kind == "vtr":
        return pv.RectilinearGrid(np.array([0, 1, 3.0, 4]), np.array([0, 1, 1.5]), np.array([0, 2, 3.0]))
    if kind == "vts":
        return base.cast_to_structured_grid()
    if kind == "vtp":
        return pv.Plane(i_resolution=4, j_resolution=3)
    if kind == "tets":
        return pv.ImageData(dimensions=(3, 3, 3)).to_tetrahedra()
    return base.cast_to_unstructured_grid()


def snapshot(mesh: pv.DataSet, k: int, time: bool = False) -> pv.DataSet:
    copied = mesh.copy()
    rng = np.random.default_rng(k)
    copied.cell_data["p"] = rng.normal(size=copied.n_cells)
    copied.point_data["U"] = rng.normal(size=(copied.n_points, 3)).astype("f4")
    if time:
        copied.field_data["TimeValue"] = [TIMES[k]]
    return copied


def series(folder: Path, kind: str, suffix: str, time: bool = False) -> list[Path]:
    mesh = grid(kind)
    paths = []
    for k in range(N):
        paths.append(folder / f"flow_{k}.{suffix}")
        snapshot(mesh, k, time).save(paths[-1])
    return paths


def assert_series(source, kind: str, times: np.ndarray | None) -> None:
    mesh = grid(kind)
    want = [snapshot(mesh, k) for k in range(N)]
    read = source.read()
    np.testing.assert_array_equal(read["p"], [w.cell_data["p"] for w in want])
    np.testing.assert_array_equal(read["U"], [w.point_data["U"] for w in want])
    if times is not None:
        np.testing.assert_allclose(source.times, times)
    np.testing.assert_allclose(source.mesh.volumes, volumes(mesh), rtol=1e-10)
    np.testing.assert_allclose(inner_product(source, "p"), source.mesh.volumes)
    np.testing.assert_allclose(inner_product(source, "U").sum(), source.mesh.volumes.sum())


def volumes(mesh: pv.DataSet) -> np.ndarray:
    sizes = mesh.compute_cell_sizes()
    return np.abs(sizes["Volume"]) + np.abs(sizes["Area"])      # VTK's own tetrahedra may stand on their heads


@pytest.mark.parametrize(("kind", "suffix"), [("vtu", "vtu"), ("tets", "vtu"), ("vti", "vti"), ("vtr", "vtr"), ("vts", "vts"),
                                              ("vtp", "vtp"), ("vtu", "vtk"), ("vti", "vtk")])
@pytest.mark.parametrize("time", [False, True])
def test_series_of_single_files(tmp_path: Path, kind: str, suffix: str, time: bool) -> None:
    series(tmp_path, kind, suffix, time)
    source = rom.read(tmp_path / f"flow_*.{suffix}")
    assert_series(source, kind, TIMES if time else np.arange(N))        # else from the names


def test_natural_order(tmp_path: Path) -> None:
    mesh = grid("vtu")
    for k in (1, 2, 10, 9):
        snapshot(mesh, k).save(tmp_path / f"step{k}.vtu")
    source = rom.read(f"{tmp_path}/step*.vtu")
    assert source.times.tolist() == [1, 2, 9, 10]
    np.testing.assert_array_equal(source.read()["p"][3], snapshot(mesh, 10).cell_data["p"])


def test_pvd_in_parts(tmp_path: Path) -> None:
    """A .pvd of two parts a time, their cells one after the other."""
    mesh = grid("vtu")
    halves = [mesh.extract_cells(range(6)), mesh.extract_cells(range(6, mesh.n_cells))]
    entries = []
    for k in range(N):
        for part, half in enumerate(halves):
            snapshot(half, k).save(tmp_path / f"part{part}_{k}.vtu")
            entries.append(f'<DataSet timestep="{TIMES[k]}" group="" part="{part}" file="part{part}_{k}.vtu"/>')
    (tmp_path / "run.pvd").write_text(
        '<?xml version="1.0"?><VTKFile type="Collection" version="0.1"><Collection>' + "\n".join(entries[::-1])
        + "</Collection></VTKFile>")
    source = rom.read(tmp_path / "run.pvd")
    np.testing.assert_allclose(source.times, TIMES)
    want = [np.concatenate([snapshot(half, k).cell_data["p"] for half in halves]) for k in range(N)]
    np.testing.assert_array_equal(source.read()["p"], want)
    np.testing.assert_allclose(source.mesh.volumes, mesh.compute_cell_sizes()["Volume"])
    one = rom.read(tmp_path / "run.pvd", region="part1_0")
    assert one.mesh.n_cells == halves[1].n_cells


def test_series_file(tmp_path: Path) -> None:
    paths = series(tmp_path, "vtu", "vtu")
    (tmp_path / "flow.vtu.series").write_text(json.dumps({"file-series-version": "1.0", "files": [
        {"name": p.name, "time": float(t)} for p, t in zip(paths, TIMES, strict=True)]}))
    assert_series(rom.read(tmp_path / "flow.vtu.series"), "vtu", TIMES)


def test_parallel_files_count_no_cell_twice(tmp_path: Path) -> None:
    """.pvtu with ghost cells: each cell once."""
    mesh = grid("vtu")
    whole = snapshot(mesh, 0)
    writer = vtk.vtkXMLPUnstructuredGridWriter()
    pieces = []
    for part, cells in enumerate((range(7), range(5, mesh.n_cells))):
        piece = whole.extract_cells(cells)
        piece.cell_data.remove("vtkOriginalCellIds")
        piece.point_data.remove("vtkOriginalPointIds")
        ghost = np.zeros(piece.n_cells, np.uint8)
        if part:
            ghost[:2] = 1       # the first two belong to the other piece
        piece.cell_data["vtkGhostType"] = ghost
        piece.save(tmp_path / f"a_{part}.vtu")
        pieces.append(f'<Piece Source="a_{part}.vtu"/>')
    del writer
    (tmp_path / "a.pvtu").write_text(
        '<?xml version="1.0"?><VTKFile type="PUnstructuredGrid" version="0.1" byte_order="LittleEndian"><PUnstructuredGrid '
        'GhostLevel="1"><PPointData><PDataArray type="Float32" Name="U" NumberOfComponents="3"/></PPointData><PCellData>'
        '<PDataArray type="Float64" Name="p"/><PDataArray type="UInt8" Name="vtkGhostType"/></PCellData><PPoints>'
        '<PDataArray type="Float32" NumberOfComponents="3"/></PPoints>' + "".join(pieces) + "</PUnstructuredGrid></VTKFile>")
    source = rom.read(tmp_path / "a.pvtu", "p")
    np.testing.assert_array_equal(source.read()["p"][0], whole.cell_data["p"])
    np.testing.assert_allclose(source.mesh.volumes.sum(), whole.compute_cell_sizes()["Volume"].sum())


def test_exodus(tmp_path: Path) -> None:
    mesh = grid("vtu")
    path = tmp_path / "run.ex2"
    exodus(path, mesh.cast_to_unstructured_grid())
    read = rom.read(path)
    np.testing.assert_allclose(read.times, TIMES)
    values = read.read()
    want = [snapshot(mesh, k) for k in range(N)]
    np.testing.assert_allclose(values["p"], [w.cell_data["p"] for w in want])
    # VTK lists points in the order of the cells
    order = [int(np.argmin(((mesh.points - p) ** 2).sum(1))) for p in read.mesh.points]
    np.testing.assert_allclose(values["w"], [w.point_data["U"][order, 2] for w in want])
    np.testing.assert_allclose(read.mesh.volumes, mesh.compute_cell_sizes()["Volume"])


def exodus(path: Path, mesh: pv.UnstructuredGrid) -> None:
    """An Exodus II file (a classic NetCDF) of one block of hexahedra, by its published layout."""
    from scipy.io import netcdf_file

    order = [0, 1, 3, 2, 4, 5, 7, 6] if mesh.celltypes[0] == 11 else list(range(8))
    cells = np.asarray(mesh.cell_connectivity).reshape(-1, 8)[:, order] + 1
    with netcdf_file(path, "w", version=2) as f:
        f.title, f.api_version, f.version = b"box", np.float32(5.14), np.float32(5.14)
        f.floating_point_word_size, f.file_size = np.int32(8), np.int32(1)
        for name, n in (("time_step", None), ("len_string", 33), ("num_dim", 3), ("num_nodes", mesh.n_points),
                        ("num_elem", mesh.n_cells), ("num_el_blk", 1), ("num_el_in_blk1", mesh.n_cells), ("num_nod_per_el1", 8),
                        ("num_nod_var", 1),
                        ("num_elem_var", 1)):
            f.createDimension(name, n)
        f.createVariable("eb_status", "i", ("num_el_blk",))[:] = 1
        ids = f.createVariable("eb_prop1", "i", ("num_el_blk",))
        ids[:] = 1
        ids.name = b"ID"
        for k, name in enumerate("xyz"):
            f.createVariable(f"coord{name}", "d", ("num_nodes",))[:] = mesh.points[:, k]
        connect = f.createVariable("connect1", "i", ("num_el_in_blk1", "num_nod_per_el1"))
        connect[:] = cells
        connect.elem_type = b"HEX8"
        for kind, name in (("nod", "w"), ("elem", "p")):
            label = f.createVariable(f"name_{kind}_var", "c", (f"num_{kind}_var", "len_string"))
            label[0] = np.array(list(name.ljust(33, "\0")), "S1")
        times = f.createVariable("time_whole", "d", ("time_step",))
        w = f.createVariable("vals_nod_var1", "d", ("time_step", "num_nodes"))
        p = f.createVariable("vals_elem_var1eb1", "d", ("time_step", "num_el_in_blk1"))
        for k, t in enumerate(TIMES):
            data = snapshot(mesh, k)
            times[k], w[k], p[k] = t, data.point_data["U"][:, 2], data.cell_data["p"]


def pv_temporal(mesh: pv.DataSet):
    """A VTK source with time steps, as a simulation has them."""
    from vtkmodules.util.vtkAlgorithm import VTKPythonAlgorithmBase

    class Steps(VTKPythonAlgorithmBase):
        def __init__(self):
            super().__init__(nInputPorts=0, nOutputPorts=1, outputType="vtkUnstructuredGrid")

        def RequestInformation(self, request, inputs, outputs):
            info = outputs.GetInformationObject(0)
            key = vtk.vtkStreamingDemandDrivenPipeline
            info.Remove(key.TIME_STEPS())
            for t in TIMES:
                info.Append(key.TIME_STEPS(), float(t))
            info.Set(key.TIME_RANGE(), [float(TIMES[0]), float(TIMES[-1])], 2)
            return 1

        def RequestData(self, request, inputs, outputs):
            info = outputs.GetInformationObject(0)
            key = vtk.vtkStreamingDemandDrivenPipeline.UPDATE_TIME_STEP()
            t = info.Get(key) if info.Has(key) else TIMES[0]
            k = int(np.argmin(np.abs(TIMES - t)))
            out = vtk.vtkUnstructuredGrid.GetData(outputs)
            out.ShallowCopy(snapshot(mesh, k))
            out.GetInformation().Set(vtk.vtkDataObject.DATA_TIME_STEP(), float(t))
            return 1

    return Steps()


def test_ensight(tmp_path: Path) -> None:
    mesh = grid("tets")
    writer = vtk.vtkEnSightWriter()
    writer.SetPath(str(tmp_path))
    writer.SetBaseName("run")
    writer.SetFileName("run")
    for k in range(N):
        data = snapshot(mesh, k)
        data.cell_data["BlockId"] = np.ones(data.n_cells, np.int32)
        writer.SetInputData(data)
        writer.SetTimeStep(k)
        writer.Write()
    writer.WriteCaseFile(N)
    cases = list(tmp_path.glob("*.case"))
    assert cases
    source = rom.read(cases[0])
    assert len(source) == N
    want = [snapshot(mesh, k) for k in range(N)]
    name = next(n for n in source.fields if n.startswith("p"))
    np.testing.assert_allclose(source.read()[name], [w.cell_data["p"].astype("f4") for w in want], rtol=1e-6)


def test_xdmf(tmp_path: Path) -> None:
    mesh = grid("vtu")
    path = tmp_path / "run.xdmf"
    writer = vtk.vtkXdmf3Writer() if hasattr(vtk, "vtkXdmf3Writer") else vtk.vtkXdmfWriter()
    writer.SetFileName(str(path))
    steps = pv_temporal(mesh)
    writer.SetInputConnection(steps.GetOutputPort())
    writer.WriteAllTimeStepsOn()
    writer.Write()
    source = rom.read(path)
    np.testing.assert_allclose(source.times, TIMES)
    np.testing.assert_allclose(source.read()["p"], [snapshot(mesh, k).cell_data["p"] for k in range(N)], rtol=1e-4)
    assert source.fields["U"].shape == (mesh.n_points, 3)


def cgns(path: Path) -> None:
    """A CGNS file of two structured zones with N solutions at times, by the published mapping of its nodes to HDF5."""
    import h5py

    def node(parent, name: str, label: str, kind: str = "MT", data=None):
        group = parent.create_group(name, track_order=True)
        for key, value, width in (("name", name, 33), ("label", label, 33), ("type", kind, 3)):
            group.attrs.create(key, np.bytes_(value), dtype=f"S{width}")
        group.attrs["flags"] = np.array([1], "i4")
        if data is not None:
            group.create_dataset(" data", data=np.frombuffer(data.encode(), "i1") if isinstance(data, str) else data)
        return group

    with h5py.File(path, "w", libver=("earliest", "v108"), track_order=True) as f:
        for key, value, width in (("name", "HDF5 MotherNode", 33), ("label", "Root Node of HDF5 File", 33), ("type", "MT", 3)):
            f.attrs.create(key, np.bytes_(value), dtype=f"S{width}")
        f.create_dataset(" format", data=np.frombuffer(b"IEEE_LITTLE_32\0", "i1"))
        f.create_dataset(" hdf5version", data=np.frombuffer(b"HDF5 Version 1.8.17".ljust(33, b"\0"), "i1"))
        node(f, "CGNSLibraryVersion", "CGNSLibraryVersion_t", "R4", np.array([3.3], "f4"))
        base = node(f, "Base", "CGNSBase_t", "I4", np.array([3, 3], "i4"))
        times = node(base, "BaseIterativeData", "BaseIterativeData_t", "I4", np.array([N], "i4"))
        node(times, "TimeValues", "DataArray_t", "R8", TIMES)
        for number, name in enumerate(("left", "right")):
            zone = node(base, name, "Zone_t", "I4", np.array([[4, 3, 2], [3, 2, 1], [0, 0, 0]], "i4"))
            node(zone, "ZoneType", "ZoneType_t", "C1", "Structured")
            grid = node(zone, "GridCoordinates", "GridCoordinates_t")
            z, y, x = np.meshgrid([0.0, 1], [0.0, 1, 2], np.arange(4.0) + 3 * number, indexing="ij")
            for axis, values in (("X", x), ("Y", y), ("Z", z)):
                node(grid, f"Coordinate{axis}", "DataArray_t", "R8", values)
            for k in range(N):
                solution = node(zone, f"Solution{k}", "FlowSolution_t")
                node(solution, "GridLocation", "GridLocation_t", "C1", "CellCenter")
                node(solution, "p", "DataArray_t", "R8", cgns_values(number, k).reshape(1, 2, 3))
            steps = node(zone, "ZoneIterativeData", "ZoneIterativeData_t")
            names = np.array([list(f"Solution{k}".ljust(32).encode()) for k in range(N)], "i1")
            node(steps, "FlowSolutionPointers", "DataArray_t", "C1", names)


def cgns_values(zone: int, k: int) -> np.ndarray:
    return 100.0 * k + 10 * zone + np.arange(6)


def test_cgns(tmp_path: Path) -> None:
    cgns(tmp_path / "a.cgns")
    source = rom.read(tmp_path / "a.cgns")
    np.testing.assert_allclose(source.times, TIMES)
    want = [np.concatenate([cgns_values(0, k), cgns_values(1, k)]) for k in range(N)]
    np.testing.assert_array_equal(source.read()["p"], want)
    np.testing.assert_allclose(source.mesh.volumes, np.ones(12))
    right = rom.read(tmp_path / "a.cgns", zone="right")
    np.testing.assert_array_equal(right.read()["p"], [cgns_values(1, k) for k in range(N)])


def test_vtkhdf_written_by_vtk(tmp_path: Path) -> None:
    mesh = grid("vtu")
    writer = vtk.vtkHDFWriter()
    writer.SetFileName(str(tmp_path / "run.vtkhdf"))
    steps = pv_temporal(mesh)
    writer.SetInputConnection(steps.GetOutputPort())
    writer.SetWriteAllTimeSteps(True)
    writer.Write()
    assert_series(rom.read(tmp_path / "run.vtkhdf"), "vtu", TIMES)
    for kind in ("vtp", "tets"):
        writer = vtk.vtkHDFWriter()
        writer.SetFileName(str(tmp_path / f"{kind}.vtkhdf"))
        writer.SetInputData(snapshot(grid(kind), 3))
        writer.Write()
        source = rom.read(tmp_path / f"{kind}.vtkhdf")
        np.testing.assert_array_equal(source.read()["U"][0], snapshot(grid(kind), 3).point_data["U"])
        np.testing.assert_allclose(source.mesh.volumes, volumes(grid(kind)))


def test_polyhedra_of_vtk(tmp_path: Path) -> None:
    mesh = pv.examples.cells.Polyhedron()
    mesh.cell_data["p"] = [1.0]
    mesh.save(tmp_path / "a.vtu")
    source = rom.read(tmp_path / "a.vtu").mesh
    assert source.types.tolist() == [42]
    np.testing.assert_allclose(source.volumes, mesh.compute_cell_sizes()["Volume"])
    back = rom.readers.vtk_mesh.vtk_of_mesh(source)
    np.testing.assert_allclose(back.compute_cell_sizes()["Volume"], source.volumes)


# -- what goes wrong ---------------------------------------------------------------------------------------------------

def test_a_file_cut_short_is_named_at_once(tmp_path: Path) -> None:
    paths = series(tmp_path, "vtu", "vtu")
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:len(whole) // 2])
    with pytest.raises(SnapshotFileError, match=r"flow_2.vtu.*cut short"):
        rom.read(tmp_path / "flow_*.vtu")


def test_another_mesh_is_named(tmp_path: Path) -> None:
    paths = series(tmp_path, "vtu", "vtu")
    moved = snapshot(grid("vtu"), 3)
    moved.points[0, 0] += 0.1
    moved.save(paths[3])
    source = rom.read(tmp_path / "flow_*.vtu")
    assert len(source.read(0, 3)["p"]) == 3
    with pytest.raises(SnapshotFileError, match=r"flow_3.vtu: has another mesh: .*moved by up to 0.1"):
        source.read()
    snapshot(grid("tets"), 3).save(paths[3])
    with pytest.raises(SnapshotFileError, match=r"flow_3.vtu: has another mesh: 27 points"):
        source.read()
    nearly = snapshot(grid("vtu"), 3)
    nearly.points[0, 0] += 1e-8                     # the same mesh, written with other digits
    nearly.save(paths[3])
    assert len(source.read()["p"]) == N


def test_missing_fields_are_listed(tmp_path: Path) -> None:
    paths = series(tmp_path, "vtu", "vtu")
    with pytest.raises(UnknownFieldError, match="no field 'T' here; the fields are: 'p', 'U'"):
        rom.read(tmp_path / "flow_*.vtu", "T")
    less = snapshot(grid("vtu"), 4)
    less.cell_data.remove("p")
    less.save(paths[4])
    with pytest.raises(UnknownFieldError, match=r"flow_4.vtu: no field 'p' here; the fields are: 'U'"):
        rom.read(tmp_path / "flow_*.vtu").read()


def test_blocks_are_listed(tmp_path: Path) -> None:
    blocks = pv.MultiBlock({"fluid": snapshot(grid("vtu"), 0), "solid": snapshot(grid("tets"), 1)})
    blocks.save(tmp_path / "a.vtm")
    fluid = rom.read(tmp_path / "a.vtm", region="fluid")
    np.testing.assert_array_equal(fluid.read()["p"][0], snapshot(grid("vtu"), 0).cell_data["p"])
    assert rom.read(tmp_path / "a.vtm").mesh.n_cells == blocks[0].n_cells + blocks[1].n_cells
    with pytest.raises(InputError, match="no zone 'gas'; its blocks are fluid, solid"):
        rom.read(tmp_path / "a.vtm", zone="gas")


def test_without_pyvista(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = series(tmp_path, "vtu", "vtu")
    monkeypatch.setitem(__import__("sys").modules, "pyvista", None)
    with pytest.raises(MissingExtraError, match=r"ensemblekit\[cfd\]"):
        rom.read(paths[0])


def test_a_point_and_a_cell_field_of_one_name(tmp_path: Path) -> None:
    data = snapshot(grid("vtu"), 0)
    data.point_data["p"] = np.arange(data.n_points, dtype=float)
    data.cell_data["a/b.c"] = np.ones(data.n_cells)
    data.save(tmp_path / "a.vtu")
    source = rom.read(tmp_path / "a.vtu")
    assert sorted(source.fields) == ["U", "a_b_c", "p", "p_point"]
    assert source.mesh.association["p"] == "cell"
    assert source.mesh.association["p_point"] == "point"
    np.testing.assert_array_equal(source.read()["p_point"][0], np.arange(data.n_points))


def test_mesh_from_a_file(tmp_path: Path) -> None:
    data = snapshot(grid("vtu"), 0)
    data.save(tmp_path / "mesh.vtu")
    np.save(tmp_path / "p.npy", np.random.default_rng(0).normal(size=(7, data.n_cells)))
    source = rom.read(tmp_path / "p.npy", mesh=tmp_path / "mesh.vtu")
    assert isinstance(source.mesh, Mesh)
    np.testing.assert_allclose(inner_product(source), data.compute_cell_sizes()["Volume"])
    np.save(tmp_path / "q.npy", np.zeros((3, 5)))
    with pytest.raises(InputError, match="fits neither"):
        rom.read(tmp_path / "q.npy", mesh=tmp_path / "mesh.vtu")


@pytest.mark.parametrize("mode", ["ascii", "binary", "appended", "appended raw"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("big", [True, False])
def test_times_are_found_without_reading_the_files(tmp_path: Path, mode: str, packed: bool, big: bool) -> None:
    from ensemblekit.rom.readers.vtk_time import time_in

    writer = vtk.vtkXMLUnstructuredGridWriter()
    writer.SetFileName(str(tmp_path / "a.vtu"))
    data = snapshot(grid("vtu"), 3)
    data.field_data["TimeValue"] = [12.625]
    writer.SetInputData(data)
    {"ascii": writer.SetDataModeToAscii, "binary": writer.SetDataModeToBinary}.get(mode, writer.SetDataModeToAppended)()
    writer.SetEncodeAppendedData(mode == "appended")
    writer.SetByteOrder(0 if big else 1)
    if packed:
        writer.SetCompressorTypeToZLib()
    else:
        writer.SetCompressorTypeToNone()
    writer.Write()
    whole: list[str] = []
    assert time_in(str(tmp_path / "a.vtu"), whole.append) == 12.625
    assert not whole


def test_read_by_several_workers(tmp_path: Path) -> None:
    import pickle

    import ensemblekit as ek

    series(tmp_path, "vtu", "vtu")
    source = rom.read(tmp_path / "flow_*.vtu")
    assert source.mesh.n_cells
    moments = ek.reduce(source, {"p": ek.Moments()}, engine=ek.Threads(3))
    np.testing.assert_allclose(moments["p"].mean, np.mean([snapshot(grid("vtu"), k).cell_data["p"] for k in range(N)], 0))
    travels = pickle.dumps(next(iter(source.pieces(["p"], "time", False, 1 << 20))))
    assert len(travels) < 4000      # no mesh
    (block,) = pickle.loads(travels).blocks()
    np.testing.assert_array_equal(block.only[0], snapshot(grid("vtu"), 0).cell_data["p"])


@pytest.mark.parametrize("name", ["a.vtu", "b.vtu", "a.vtk", "b.vtk", "a.vti", "a.ex2", "a.cgns", "a.vtkhdf"])
def test_no_file_cut_short_is_taken_for_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.ex2":
        exodus(path, grid("vtu").cast_to_unstructured_grid())
    elif name == "a.cgns":
        cgns(path)
    elif name == "a.vtkhdf":
        writer = vtk.vtkHDFWriter()
        writer.SetFileName(str(path))
        writer.SetInputData(snapshot(grid("vtu"), 0))
        writer.Write()
    else:
        snapshot(grid("vti" if name.endswith("i") else "vtu"), 0).save(path, binary=name.startswith("a"))
    want = rom.read(path).read()["U" if name != "a.ex2" and name != "a.cgns" else "p"]
    assert np.isfinite(want).all()
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.8, 0.97):
        path.write_bytes(whole[:int(share * len(whole))])
        with pytest.raises((SnapshotFileError, UnknownFieldError, StoreError), match=name):
            rom.read(path, "U" if name not in ("a.ex2", "a.cgns") else "p").read()
