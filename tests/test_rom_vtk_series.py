"""Series and blocks of VTK's files: times from wherever the files say them, names of blocks inside blocks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, SnapshotFileError

pv = pytest.importorskip("pyvista")
vtk = pytest.importorskip("vtk")

TIMES = [0.0, 0.25, 0.5]
NUMBERS = [0, 70, 300]


def grid(k: int, shift: float = 0, time: float | None = None, field: bool = True) -> pv.UnstructuredGrid:
    result = pv.ImageData(dimensions=(4, 3, 3)).cast_to_unstructured_grid().translate((shift, 0, 0))
    if field:
        result.cell_data["p"] = np.arange(result.n_cells) + 100.0 * k + 1000 * shift
    if time is not None:
        result.field_data["TimeValue"] = [time]
    return result


def blocks(k: int, time: float | None = None) -> pv.MultiBlock:
    """Two regions of two blocks each, one of them a surface and one empty."""
    return pv.MultiBlock({"fluid": pv.MultiBlock({"a": grid(k, 0, time), "b": grid(k, 5, time)}),
                          "solid": pv.MultiBlock({"a": grid(k, 10, time), "wall": pv.Plane(i_resolution=2, j_resolution=2),
                                                  "none": None})})


def write_hdf(data: object, path: Path) -> None:
    writer = vtk.vtkHDFWriter()
    writer.SetFileName(str(path))
    writer.SetInputDataObject(data)
    assert writer.Write()


def write_xdmf(path: Path, k: int, time: float) -> None:
    numbers = " ".join(str(i + 100 * k) for i in range(12))
    path.write_text(f"""<?xml version="1.0" ?><Xdmf Version="2.0"><Domain><Grid GridType="Uniform"><Time Value="{time}"/>
<Topology TopologyType="3DCoRectMesh" Dimensions="2 2 3"/><Geometry GeometryType="ORIGIN_DXDYDZ">
<DataItem Dimensions="3" Format="XML">0 0 0</DataItem><DataItem Dimensions="3" Format="XML">1 1 1</DataItem></Geometry>
<Attribute Name="p" AttributeType="Scalar" Center="Node"><DataItem Dimensions="2 2 3" Precision="8" Format="XML">{numbers}
</DataItem></Attribute></Grid></Domain></Xdmf>""")


def write_parallel(path: Path, k: int, time: float) -> None:
    """Pieces that say the time, in a file that does not, as ParaView wrote it for long."""
    writer = vtk.vtkXMLPUnstructuredGridWriter()
    writer.SetInputData(grid(k, 0, time))
    writer.SetFileName(str(path))
    writer.SetNumberOfPieces(2)
    writer.SetStartPiece(0)
    writer.SetEndPiece(1)
    writer.Write()
    path.write_text(re.sub(r"<FieldData>.*?</FieldData>", "", path.read_text(), flags=re.DOTALL))


def write_single_quotes(path: Path, k: int, time: float, binary: bool) -> None:
    """As OpenFOAM's foamToVTK quotes."""
    grid(k, 0, time).save(path, binary=binary)
    head, appended, rest = path.read_bytes().partition(b"<AppendedData")
    path.write_bytes(re.sub(rb'(\w+)="([^"]*)"', rb"\1='\2'", head) + appended + rest)


def write_collection_with_time(path: Path, k: int, time: float) -> None:
    """A .vtm that says the time itself, its blocks not, as OpenFOAM writes it."""
    blocks(k).save(path)
    path.write_text(path.read_text().replace(
        "<vtkMultiBlockDataSet>", "<FieldData>\n<DataArray type='Float32' Name='TimeValue' NumberOfTuples='1' format='ascii'>\n"
                                  f"{time} </DataArray>\n</FieldData>\n<vtkMultiBlockDataSet>"))


WRITERS = {
    "vtu": lambda path, k, t: grid(k, 0, t).save(path), "text.vtu": lambda path, k, t: write_single_quotes(path, k, t, False),
    "quoted.vtu": lambda path, k, t: write_single_quotes(path, k, t, True), "pvtu": write_parallel,
    "vtm": lambda path, k, t: blocks(k, t).save(path), "own.vtm": write_collection_with_time, "xdmf": write_xdmf,
    "vtkhdf": lambda path, k, t: write_hdf(grid(k, 0, t), path), "hdf": lambda path, k, t: write_hdf(grid(k, 0, t), path),
    "blocks.vtkhdf": lambda path, k, t: write_hdf(blocks(k, t), path),
}


@pytest.mark.parametrize("form", WRITERS)
def test_the_times_that_files_say_go_before_the_numbers_in_their_names(tmp_path: Path, form: str) -> None:
    """Names count the other way round: what comes first is the file of time 0."""
    for k, time in enumerate(TIMES):
        WRITERS[form](tmp_path / f"flow_{NUMBERS[-1 - k]:03d}.{form}", k, time)
    source = rom.read(tmp_path / f"flow_*.{form}", "p")
    assert source.times.tolist() == TIMES
    np.testing.assert_array_equal(source.read()["p"][:, 0], [0, 100, 200])


def test_files_without_a_time_among_others_are_named(tmp_path: Path) -> None:
    for k, time in enumerate(TIMES):
        grid(k, 0, time if k else None).save(tmp_path / f"flow_{k}.vtu")
    with pytest.warns(UserWarning, match=r"1 of 3 files say no time .*flow_0.vtu first.*times="):
        source = rom.read(tmp_path / "flow_*.vtu")
    assert source.times.tolist() == [0, 1, 2]
    assert rom.read(tmp_path / "flow_*.vtu", times=TIMES).times.tolist() == TIMES


def test_data_of_points_named_like_a_time_is_none(tmp_path: Path) -> None:
    for k in range(3):
        mesh = grid(k)
        mesh.point_data["TIME"] = np.full(mesh.n_points, 7.0 + k)
        mesh.save(tmp_path / f"flow_{k}.vtu")
    assert rom.read(tmp_path / "flow_*.vtu", "p").times.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["a.vtm", "a.vtkhdf", "a.h5"])
def test_blocks_inside_blocks(tmp_path: Path, name: str) -> None:
    if name.endswith(".vtm"):
        blocks(2).save(tmp_path / name)
    else:
        write_hdf(blocks(2), tmp_path / name)
    cells = np.arange(12.0) + 200
    for region, shifts in ((None, (0, 5, 10)), ("fluid", (0, 5)), ("a", (0, 10)), ("solid/a", (10,))):
        source = rom.read(tmp_path / name, "p", region=region)
        np.testing.assert_array_equal(source.read()["p"][0], np.concatenate([cells + 1000 * s for s in shifts]))
        assert source.mesh.volumes.sum() == pytest.approx(12 * len(shifts))
        assert source.mesh.points[:, 0].min() == min(shifts)
    assert rom.read(tmp_path / name, patch="wall").mesh.n_cells == 4
    with pytest.raises(InputError, match="no region 'gas'; its blocks are fluid, fluid/a, fluid/b, solid, solid/a, solid/wall"):
        rom.read(tmp_path / name, region="gas")


@pytest.mark.parametrize("suffix", ["vtkhdf", "vtpc"])
def test_partitions_of_a_collection(tmp_path: Path, suffix: str) -> None:
    """What Catalyst and ParaView write by default; pyvista has no class for it."""
    collection, parts = vtk.vtkPartitionedDataSetCollection(), vtk.vtkPartitionedDataSet()
    parts.SetPartition(0, grid(0, 0, 0.25))
    parts.SetPartition(1, grid(0, 5, 0.25))
    collection.SetPartitionedDataSet(0, parts)
    collection.SetPartitionedDataSet(1, parts)
    collection.GetMetaData(0).Set(vtk.vtkCompositeDataSet.NAME(), "fluid")
    path = tmp_path / f"a.{suffix}"
    if suffix == "vtkhdf":
        write_hdf(collection, path)
    else:
        writer = vtk.vtkXMLPartitionedDataSetCollectionWriter()
        writer.SetFileName(str(path))
        writer.SetInputDataObject(collection)
        writer.Write()
    source = rom.read(path)
    assert source.fields["p"].shape == (48,)
    assert source.times.tolist() == [0.25]
    np.testing.assert_array_equal(rom.read(path, region="fluid").read()["p"][0],
                                  np.concatenate([np.arange(12.0), np.arange(12.0) + 5000]))


def test_adaptive_meshes_are_refused_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.vtkhdf", "w") as f:
        root = f.create_group("VTKHDF")
        root.attrs["Version"] = (1, 0)
        root.attrs.create("Type", b"OverlappingAMR", dtype=h5py.string_dtype("ascii", 14))
        root.attrs["Origin"], root.attrs["GridDescription"] = (0.0, 0, 0), np.bytes_("XYZ")
    with pytest.raises(InputError, match=r"a.vtkhdf holds an adaptive mesh \(OverlappingAMR\).*Resample"):
        rom.read(tmp_path / "a.vtkhdf")


@pytest.mark.parametrize(("lost", "message"), [
    ("Points", "lacks 'Points'"), ("Types", "lacks 'Types'"), ("NumberOfCells", "lacks 'NumberOfCells'"),
    ("@Type", "lacks 'Type'"), ("Steps/Values", "lacks 'Values'"), ("Steps@NSteps", "lacks 'NSteps'"),
    ("@WholeExtent", "lacks 'WholeExtent'"), ("@Origin", "lacks 'Origin'")])
def test_vtkhdf_that_is_not_whole_names_what_is_not_there(tmp_path: Path, lost: str, message: str) -> None:
    path = tmp_path / "a.hdf"
    if (lost[0] == "@" and lost != "@Type") or "Steps" in lost:
        with h5py.File(path, "w") as f:
            root = f.create_group("VTKHDF")
            root.attrs["Version"], root.attrs["Type"] = (2, 0), np.bytes_("ImageData")
            root.attrs.update({"WholeExtent": (0, 3, 0, 2, 0, 2), "Origin": (0.0, 0, 0), "Spacing": (1.0, 1, 1)})
            root["CellData/p"] = np.zeros((2, 2, 2, 3))
            root["Steps/Values"] = [0.0, 0.5]
            root["Steps"].attrs["NSteps"] = 2
    else:
        write_hdf(grid(0), path)
    assert rom.read(path).fields["p"].shape == (12,)
    where, _, attribute = lost.partition("@")
    with h5py.File(path, "a") as f:
        if attribute:
            del f["VTKHDF"][where or "."].attrs[attribute]
        else:
            del f["VTKHDF"][where]
    with pytest.raises(SnapshotFileError, match=f"a.hdf: {message}, which VTKHDF asks for"):
        rom.read(path)


def test_an_image_with_a_time_and_no_steps(tmp_path: Path) -> None:
    for k, time in enumerate(TIMES):
        with h5py.File(tmp_path / f"a{k}.vtkhdf", "w") as f:
            root = f.create_group("VTKHDF")
            root.attrs["Version"], root.attrs["Type"] = (2, 0), np.bytes_("ImageData")
            root.attrs.update({"WholeExtent": (0, 3, 0, 2, 0, 2), "Origin": (0.0, 0, 0), "Spacing": (1.0, 1, 1)})
            root["CellData/p"] = np.arange(12.0).reshape(2, 2, 3) + k
            root["FieldData/TimeValue"] = [time]
    source = rom.read(tmp_path / "a*.vtkhdf")
    assert source.times.tolist() == TIMES
    np.testing.assert_array_equal(source.read()["p"], np.arange(12.0) + np.arange(3)[:, None])


def test_a_surface_of_points_alone_has_no_data_of_cells(tmp_path: Path) -> None:
    surface = pv.PolyData(np.random.default_rng(0).normal(size=(5, 3)))
    surface.point_data["q"] = np.arange(5.0)
    surface.verts = np.zeros(0, int)
    surface.cell_data["p"] = np.zeros(0)
    write_hdf(surface, tmp_path / "a.vtkhdf")
    assert list(rom.read(tmp_path / "a.vtkhdf").fields) == ["q"]


def test_hdf_of_version_4_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "MOD021KM.hdf").write_bytes(b"\x0e\x03\x13\x01" + bytes(500))
    with pytest.raises(InputError, match=r"of HDF version 4.*h4toh5"):
        rom.read(tmp_path / "MOD021KM.hdf")


COLLECTION = '<?xml version="1.0"?><VTKFile type="Collection" version="0.1"><Collection>{}</Collection></VTKFile>'


@pytest.mark.parametrize("form", ["series", "pvd"])
def test_what_a_continued_run_wrote_again_counts_once(tmp_path: Path, form: str) -> None:
    """Times 0 1 2, then from 1 on again: the later files count, as in files of any other kind."""
    times = (0.0, 1.0, 2.0, 1.0, 2.0, 3.0)
    for k in range(6):
        grid = pv.ImageData(dimensions=(4, 3, 2))
        grid.point_data["p"] = np.full(grid.n_points, float(k))
        grid.save(tmp_path / f"f_{k}.vti")
    if form == "series":
        path = tmp_path / "run.vti.series"
        path.write_text(json.dumps({"file-series-version": "1.0",
                                    "files": [{"name": f"f_{k}.vti", "time": t} for k, t in enumerate(times)]}))
    else:
        path = tmp_path / "run.pvd"
        sets = "".join(f'<DataSet timestep="{t}" part="0" file="f_{k}.vti"/>' for k, t in enumerate(times))
        path.write_text(COLLECTION.format(sets))
    with pytest.warns(UserWarning, match="2 snapshots from 1 on stand twice"):
        source = rom.read(path)
    np.testing.assert_array_equal(source.times, [0, 1, 2, 3])
    np.testing.assert_array_equal(ek.reduce(source, ek.Series())[:, 0], [0, 3, 4, 5])


def test_parts_of_a_collection_may_stand_part_by_part(tmp_path: Path) -> None:
    for k in range(4):
        grid = pv.ImageData(dimensions=(4, 3, 2), origin=(10.0 * (k // 2), 0, 0))
        grid.point_data["p"] = np.full(grid.n_points, float(k))
        grid.save(tmp_path / f"f_{k}.vti")
    sets = "".join(f'<DataSet timestep="{k % 2}" part="{k // 2}" file="f_{k}.vti"/>' for k in range(4))
    path = tmp_path / "run.pvd"
    path.write_text(COLLECTION.format(sets))
    source = rom.read(path)
    assert source.lengths == (2,)
    assert set(ek.reduce(source, ek.Series())[0]) == {0.0, 2.0}
