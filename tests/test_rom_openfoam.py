"""OpenFOAM cases: every way its files are written reads back to the same numbers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ensemblekit import rom
from ensemblekit.errors import InputError, SnapshotFileError, UnknownFieldError
from ensemblekit.rom.mesh import inner_product
from tests.flowfiles import Foam, box_faces, foam_field, foam_mesh
from tests.test_rom_mesh import trilinear_volume

NX, NY, NZ = 4, 3, 2
N = NX * NY * NZ
TIMES = ("0", "0.5", "1", "10")
FORMS = {"ascii": Foam(), "binary": Foam(binary=True), "single": Foam(binary=True, scalar=32, label=64),
         "gz": Foam(packed=True), "binary gz": Foam(binary=True, packed=True), "big": Foam(binary=True, big=True)}


def truth() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    n = len(TIMES)
    return {"U": rng.normal(size=(n, N, 3)).astype("f4").astype("f8"), "p": rng.normal(size=(n, N)).astype("f4").astype("f8"),
            "R": rng.normal(size=(n, N, 6)).astype("f4").astype("f8"),     # xx yy zz xy yz xz, as in VTK
            "G": rng.normal(size=(n, N, 9)).astype("f4").astype("f8"),
            "T": np.full((n, N), 300.0)}


DIMENSIONS = {"U": "0 1 -1 0 0 0 0", "p": "0 2 -2 0 0 0 0", "R": "0 2 -2 0 0 0 0", "G": "0 0 -1 0 0 0 0", "T": "0 0 0 1 0 0 0"}


def as_foam(name: str, values: np.ndarray) -> np.ndarray:
    """xx xy xz yy yz zz, the order of OpenFOAM's files."""
    return np.stack([values[:, k] for k in (0, 3, 5, 1, 4, 2)], 1) if name == "R" else values


def write_case(case: Path, foam: Foam, shake: float = 0.05, region: str = "") -> dict[str, np.ndarray]:
    points, faces, owner, neighbour, patches = box_faces(NX, NY, NZ, shake)
    foam_mesh(case / "constant" / region / "polyMesh", foam, points, faces, owner, neighbour, patches,
              {"left": [0, 4, 8], "right": [3, 7]})
    (case / "system").mkdir(exist_ok=True)
    fields = truth()
    for k, label in enumerate(TIMES):
        for name, values in fields.items():
            inlet = np.arange(patches["inlet"][1] * max(1, values[k][0].size), dtype=float).reshape(-1, *values[k].shape[1:])
            foam_field(case / label / region / name, foam, as_foam(name, values[k]), DIMENSIONS[name],
                       {"inlet": inlet, "outlet": "zeroGradient", "walls": "noSlip"}, uniform=name == "T")
    return fields


def write_decomposed(case: Path, foam: Foam, addressing: bool = True, parts: int = 3, region: str = "",
                     empty: int | None = None) -> dict[str, np.ndarray]:
    """The same case cut among processors by a random choice of cells; nothing but processor folders.

    empty: a processor without any of the region's cells.
    """
    points, faces, owner, neighbour, patches = box_faces(NX, NY, NZ, 0.05)
    inner = len(neighbour)
    whose = np.random.default_rng(1).permutation(np.arange(N) % parts)
    whose[whose == empty] = (empty or 0) + 1
    fields = truth()
    (case / "system").mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        cells = np.flatnonzero(whose == part)
        new = np.full(N, -1)
        new[cells] = np.arange(len(cells))
        owned, outer = [], {name: [] for name in patches}
        cut = []
        for f in range(len(faces)):
            a, b = owner[f], neighbour[f] if f < inner else -1
            if f < inner and whose[a] == part and whose[b] == part:
                owned.append((new[a], new[b], faces[f]))
            elif f < inner and whose[a] == part:
                cut.append((new[a], faces[f]))
            elif f < inner and whose[b] == part:
                cut.append((new[b], faces[f][::-1]))
            elif f >= inner and whose[a] == part:
                outer[next(n for n, (s, k) in patches.items() if s <= f < s + k)].append((new[a], faces[f]))
        owned.sort(key=lambda x: (x[0], x[1]))
        listed, own, places = [x[2] for x in owned], [x[0] for x in owned], {}
        for name, group in (*outer.items(), ("procBoundary", cut)):
            places[name] = (len(listed), len(group))
            listed += [x[1] for x in group]
            own += [x[0] for x in group]
        folder = case / f"processor{part}"
        extra = {"cellProcAddressing": cells} if addressing else {}
        foam_mesh(folder / "constant" / region / "polyMesh", foam, points, listed, np.array(own, int),
                  np.array([x[1] for x in owned], int), places, None, **extra)
        for k, label in enumerate(TIMES):
            for name, values in fields.items():
                foam_field(folder / label / region / name, foam, as_foam(name, values[k])[cells], DIMENSIONS[name],
                           {"walls": "noSlip"})
    return fields


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_back(tmp_path: Path, form: str) -> None:
    fields = write_case(tmp_path, FORMS[form])
    source = rom.read(tmp_path)
    assert source.times.tolist() == [0.5, 1, 10]        # numbers, not words; 0 is left out
    assert sorted(source.fields) == ["G", "R", "T", "U", "p"]
    read = source.read()
    for name, values in fields.items():
        np.testing.assert_array_equal(read[name], values[1:])
    units = {name: f.unit for name, f in source.fields.items()}
    assert units == {"U": "m s-1", "p": "m2 s-2", "R": "m2 s-2", "G": "s-1", "T": "K"}
    assert source.time_unit == "s"
    mesh = source.mesh
    assert (mesh.types == 12).all()
    assert mesh.volumes.sum() == pytest.approx(1, rel=1e-6)
    assert min(trilinear_volume(c) for c in mesh.points[mesh.connectivity.reshape(-1, 8)]) > 0       # the way round VTK wants
    # the cells built from the faces are the hexahedra that the flux through the faces measures
    again = type(mesh)(mesh.points, mesh.connectivity, mesh.offsets, mesh.types)
    np.testing.assert_allclose(again.volumes, mesh.volumes, rtol=1e-12)
    np.testing.assert_array_equal(inner_product(source, "U"), mesh.volumes)


def test_zero_is_read_where_asked_for(tmp_path: Path) -> None:
    fields = write_case(tmp_path, Foam())
    source = rom.read(tmp_path, ["p"], zero=True)
    np.testing.assert_array_equal(source.read()["p"], fields["p"])
    only = tmp_path / "only"
    write_case(only, Foam())
    for label in TIMES[1:]:
        shutil.rmtree(only / label)
    with pytest.raises(SnapshotFileError, match="zero=True"):
        rom.read(only)


def test_begin_end_and_step(tmp_path: Path) -> None:
    fields = write_case(tmp_path, Foam())
    assert rom.read(tmp_path, "p", begin=1).times.tolist() == [1, 10]
    assert rom.read(tmp_path, "p", end=1).times.tolist() == [0.5, 1]
    two = rom.read(tmp_path, "p", step=2, zero=True)
    assert two.times.tolist() == [0, 1]
    np.testing.assert_array_equal(two.read()["p"], fields["p"][::2])
    with pytest.raises(InputError, match="times go from"):
        rom.read(tmp_path, "p", begin=2, end=3)


@pytest.mark.parametrize(("form", "addressing"), [("ascii", True), ("binary", True), ("binary gz", False)])
def test_decomposed_cases(tmp_path: Path, form: str, addressing: bool) -> None:
    """In the order of the whole case where that was recorded; either way each cell with its own volume."""
    fields = write_decomposed(tmp_path / "parts", FORMS[form], addressing)
    write_case(tmp_path / "whole", FORMS[form])
    source, whole = rom.read(tmp_path / "parts"), rom.read(tmp_path / "whole")
    assert source.times.tolist() == [0.5, 1, 10]
    values, mesh = source.read(), source.mesh
    order = np.arange(N)
    if not addressing:
        where = {tuple(np.round(c, 9)): k for k, c in enumerate(whole.mesh.cell_centres)}
        order = np.array([where[tuple(np.round(c, 9))] for c in mesh.cell_centres])
    for name in fields:
        np.testing.assert_array_equal(values[name], fields[name][1:][:, order])
    np.testing.assert_allclose(mesh.volumes, whole.mesh.volumes[order], rtol=1e-12)
    np.testing.assert_allclose(mesh.cell_centres, whole.mesh.cell_centres[order], atol=1e-12)


def test_a_case_is_never_read_twice(tmp_path: Path) -> None:
    """Reconstructed times beside processors: one of the two, the one with more times."""
    write_decomposed(tmp_path, Foam())
    fields = write_case(tmp_path, Foam())
    source = rom.read(tmp_path, "p")
    assert len(source) == 3
    assert source.fields["p"].shape == (N,)
    np.testing.assert_array_equal(source.read()["p"], fields["p"][1:])
    assert source.parts[0].reader.folders == (str(tmp_path),)
    shutil.rmtree(tmp_path / "10")
    source = rom.read(tmp_path, "p")
    assert len(source) == 3
    assert len(source.parts[0].reader.folders) == 3
    np.testing.assert_array_equal(source.read()["p"], fields["p"][1:])


def test_region_zone_and_patch(tmp_path: Path) -> None:
    fields = write_case(tmp_path, Foam(binary=True), region="solid")
    with pytest.raises(SnapshotFileError, match=r"no time folders|regions are solid|has no field"):
        rom.read(tmp_path)
    source = rom.read(tmp_path, region="solid")
    np.testing.assert_array_equal(source.read()["U"], fields["U"][1:])
    left = rom.read(tmp_path, ["U", "p"], region="solid", zone="left")
    np.testing.assert_array_equal(left.read()["U"], fields["U"][1:, [0, 4, 8]])
    np.testing.assert_array_equal(left.mesh.volumes, source.mesh.volumes[[0, 4, 8]])
    np.testing.assert_allclose(left.mesh.cell_centres, source.mesh.cell_centres[[0, 4, 8]])
    with pytest.raises(InputError, match="left, right"):
        rom.read(tmp_path, region="solid", zone="middle")


@pytest.mark.parametrize("form", ["ascii", "binary"])
def test_patches(tmp_path: Path, form: str) -> None:
    fields = write_case(tmp_path, FORMS[form])
    inlet = rom.read(tmp_path, ["U", "p"], patch="inlet")
    read = inlet.read()
    np.testing.assert_array_equal(read["p"], np.tile(np.arange(NY * NZ), (3, 1)))
    np.testing.assert_array_equal(read["U"][0], np.arange(NY * NZ * 3).reshape(-1, 3))
    assert inlet.mesh.dimension == 2
    assert inlet.mesh.volumes.sum() == pytest.approx(1)
    outlet = rom.read(tmp_path, "p", patch="outlet").read()["p"]        # zeroGradient: the cells behind it
    last = np.arange(N).reshape(NZ, NY, NX)[:, :, -1].ravel()
    assert sorted(outlet[0]) == sorted(fields["p"][1][last])
    assert not rom.read(tmp_path, "U", patch="walls").read()["U"].any()     # noSlip
    with pytest.raises(InputError, match="inlet, outlet, walls"):
        rom.read(tmp_path, patch="lid")


def test_a_foam_file_is_its_case(tmp_path: Path) -> None:
    write_case(tmp_path, Foam())
    (tmp_path / "run.foam").touch()
    assert len(rom.read(tmp_path / "run.foam")) == 3
    assert len(rom.read(str(tmp_path / "new.foam"))) == 3       # ParaView's habit: the file need not be there


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    fields = write_case(tmp_path, Foam())
    with pytest.raises(UnknownFieldError, match="'G', 'R', 'T', 'U', 'p'"):
        rom.read(tmp_path, ["vorticity"])
    (tmp_path / "1" / "p").unlink()
    assert "p" not in rom.read(tmp_path).fields         # not in every time folder
    with pytest.raises(UnknownFieldError, match=r"1.*no field 'p'"):
        rom.read(tmp_path, ["p"])
    foam_field(tmp_path / "1" / "p", Foam(), fields["p"][2])
    whole = (tmp_path / "1" / "p").read_bytes()
    source = rom.read(tmp_path, ["p"])
    for k in (len(whole) // 2, len(whole) // 3, 300, 0):
        (tmp_path / "1" / "p").write_bytes(whole[:k])
        with pytest.raises(SnapshotFileError, match=f"{tmp_path / '1' / 'p'}"):
            source.read()
    (tmp_path / "1" / "p").write_bytes(whole)
    foam_field(tmp_path / "10" / "p", Foam(), fields["p"][2][:-1])
    with pytest.raises(SnapshotFileError, match="has 23 values; the mesh has 24"):
        source.read()


def test_binary_files_cut_short_are_named(tmp_path: Path) -> None:
    write_case(tmp_path, Foam(binary=True))
    source = rom.read(tmp_path, ["U"])
    path = tmp_path / "10" / "U"
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(SnapshotFileError, match=r"10.U.*cut short"):
        source.read()
    np.testing.assert_array_equal(source.read(0, 2)["U"], truth()["U"][1:3])        # the others are as they were


def test_other_cells(tmp_path: Path) -> None:
    """A tetrahedron, a pyramid, a wedge and a polyhedron each found for what it is."""
    ring = np.array([(np.cos(a), np.sin(a)) for a in 2 * np.pi * np.arange(5) / 5])
    shapes = {
        10: (np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1.0)]), [(0, 2, 1), (0, 1, 3), (1, 2, 3), (2, 0, 3)], 1 / 6),
        14: (np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0.5, 0.5, 1.0)]),
             [(0, 3, 2, 1), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)], 1 / 3),
        13: (np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1.0)]),
             [(0, 2, 1), (3, 4, 5), (0, 1, 4, 3), (1, 2, 5, 4), (2, 0, 3, 5)], 1 / 2),
        42: (np.concatenate([np.c_[ring, np.zeros(5)], np.c_[ring, np.ones(5)]]),
             [(4, 3, 2, 1, 0), (5, 6, 7, 8, 9), *[(k, (k + 1) % 5, (k + 1) % 5 + 5, k + 5) for k in range(5)]],
             2.5 * np.sin(2 * np.pi / 5)),
    }
    for kind, (points, faces, volume) in shapes.items():
        case = tmp_path / str(kind)
        foam_mesh(case / "constant" / "polyMesh", Foam(), points, faces, np.zeros(len(faces), int), np.zeros(0, int),
                  {"walls": (0, len(faces))})
        foam_field(case / "1" / "p", Foam(), np.array([2.0]))
        mesh = rom.read(case).mesh
        assert mesh.types.tolist() == [kind]
        assert mesh.volumes == pytest.approx([volume])
        if kind != 42:      # VTK's way round: a wedge stands on a face that points out, the others on one that points in
            corners = mesh.points[mesh.connectivity]
            top = corners[{10: 3, 14: 4, 13: 3}[kind]]
            signed = np.linalg.det([corners[1] - corners[0], corners[2] - corners[0], top - corners[0]])
            assert np.sign(signed) == (-1 if kind == 13 else 1)
        plain = type(mesh)(mesh.points, mesh.connectivity, mesh.offsets, mesh.types, mesh.polyhedra)
        assert plain.volumes == pytest.approx([volume])


def test_numbers_in_text_are_those_of_python() -> None:
    from ensemblekit.rom.readers.foamfile import numbers_in

    rng = np.random.default_rng(0)
    words = [f"{x:.{p}g}" for p in (1, 6, 12, 15, 16, 17) for x in rng.normal(size=40) * 10.0 ** rng.integers(-30, 30, 40)]
    words += ["0", "-0", "1e5", "1E-5", "+3.25", ".5", "5.", "nan", "-inf", "1e400", "1e-400", "4.9e-324", "9007199254740993",
              "123456789012345678901234567890", "0.00000000000000000000001", "00012.50", "1.7976931348623157e308"]
    text = ("(" + ")\n( ".join(" ".join(words[k:k + 3]) for k in range(0, len(words), 3)) + ")").encode()
    numbers = numbers_in(text, 0, len(text), len(words))
    np.testing.assert_array_equal(numbers, [float(w) for w in words])
    assert np.signbit(numbers[[float(w) == 0 and w[0] == "-" for w in words]]).all()
    assert len(numbers_in(text, 0, len(text), len(words) + 5)) == len(words)
    assert len(numbers_in(text, 0, len(text), len(words) - 5)) == len(words) - 4
    with pytest.raises(ValueError, match=r"1\.2\.3"):
        numbers_in(text + b" 1.2.3", 0, len(text) + 6, len(words) + 1)


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    write_case(tmp_path / "a", Foam())
    (tmp_path / "a" / "10" / "polyMesh").mkdir()
    shutil.copy(tmp_path / "a" / "constant" / "polyMesh" / "points", tmp_path / "a" / "10" / "polyMesh" / "points")
    with pytest.raises(SnapshotFileError, match=r"a mesh in motion\. Pass moving=True"):
        rom.read(tmp_path / "a")
    source = rom.read(tmp_path / "a", moving=True)
    assert source.times.tolist() == [0.5, 1, 10]
    assert source.mesh.volumes.sum() > 0
    shutil.copy(tmp_path / "a" / "constant" / "polyMesh" / "owner", tmp_path / "a" / "10" / "polyMesh" / "owner")
    with pytest.raises(SnapshotFileError, match="has cells of its own"):
        rom.read(tmp_path / "a", moving=True)
    (tmp_path / "b" / "processors4").mkdir(parents=True)
    (tmp_path / "b" / "system").mkdir()
    with pytest.raises(SnapshotFileError, match="has no time folders"):
        rom.read(tmp_path / "b")


def collate(case: Path, groups: list[list[int]], headers: bool, numbered: bool = True) -> None:
    """The files of processors joined into blocks of one file each; without `headers` only the first block has one."""
    parts = sum(len(group) for group in groups)
    for group in groups:
        number = "" if len(groups) == 1 else f"_{group[0]}-{group[-1]}"
        name = f"processors{parts}{number}" if numbered else "processors"
        for file in sorted((case / f"processor{group[0]}").rglob("*")):
            if file.is_dir():
                continue
            inside = file.relative_to(case / f"processor{group[0]}")
            out = b"FoamFile { version 2.0; format binary; class decomposedBlockData; object x; }\n// * * //\n"
            for k, part in enumerate(group):
                data = (case / f"processor{part}" / inside).read_bytes()
                if k and not headers:
                    data = data[data.index(b"}") + 1:]
                out += f"\n// Processor{part}\n{len(data)}\n(".encode() + data + b")\n"
            (case / name / inside).parent.mkdir(parents=True, exist_ok=True)
            (case / name / inside).write_bytes(out)
    for part in range(parts):
        shutil.rmtree(case / f"processor{part}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("groups", "headers"), [([[0, 1, 2]], True), ([[0, 1, 2]], False), ([[0, 1], [2]], True)])
def test_collated_cases_are_read_as_those_of_single_processors(tmp_path: Path, form: str, groups: list[list[int]],
                                                               headers: bool) -> None:
    fields = write_decomposed(tmp_path / "a", FORMS[form])
    if any(tmp_path.rglob("*.gz")):
        pytest.skip("containers are not compressed as a whole")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    collate(tmp_path / "b", groups, headers)
    one, other = rom.read(tmp_path / "a"), rom.read(tmp_path / "b")
    assert len(os.listdir(tmp_path / "b")) == len(groups) + 1
    read = other.read()
    for name, values in fields.items():
        np.testing.assert_array_equal(read[name], values[1:])
    assert (other.times.tolist(), {k: f.unit for k, f in other.fields.items()}) == (
        one.times.tolist(), {k: f.unit for k, f in one.fields.items()})
    np.testing.assert_array_equal(other.mesh.volumes, one.mesh.volumes)
    np.testing.assert_array_equal(other.mesh.points, one.mesh.points)
    rom.ingest(tmp_path / "b", tmp_path / "b.vtkhdf", fields=["U"])


def test_a_collated_file_cut_short_says_where(tmp_path: Path) -> None:
    write_decomposed(tmp_path, Foam())
    collate(tmp_path, [[0, 1, 2]], True)
    path = tmp_path / "processors3" / "10" / "U"
    whole = path.read_bytes()
    for keep, block in ((len(whole) - 40, 2), (whole.index(b"// Processor1") + 3, 1)):
        path.write_bytes(whole[:keep])
        with pytest.raises(SnapshotFileError, match=f"cut short.*of processor {block}"):
            rom.read(tmp_path, "U").read()
    path.write_bytes(whole.replace(b"decomposedBlockData", b"volVectorField"))
    with pytest.raises(SnapshotFileError, match="of class decomposedBlockData"):
        rom.read(tmp_path, "U").read()
    (tmp_path / "processors3").rename(tmp_path / "processors3_0-1")
    with pytest.raises(SnapshotFileError, match="hold 2"):
        rom.read(tmp_path)


def test_processors_that_were_stopped_while_writing(tmp_path: Path) -> None:
    """A time that not every processor has is no snapshot."""
    fields = write_decomposed(tmp_path, Foam(), True)
    shutil.rmtree(tmp_path / "processor2" / "10")
    source = rom.read(tmp_path, "p")
    assert source.times.tolist() == [0.5, 1]
    np.testing.assert_array_equal(source.read()["p"], fields["p"][1:3])


@pytest.mark.parametrize("header", [
    "// FoamFile { old }\nFoamFile // of {this}\n{\n  version 2.0; /* format binary; } */\n  format ascii;\n"
    '  note "see https://openfoam.org; {really}";\n  class volScalarField; // }\n  object p;\n}\n',
    "/* FoamFile\n{ class dictionary; }\n*/\nFoamFile{version 2.0;format ascii;class volScalarField;object p;}\n"])
def test_comments_in_headers_are_no_headers(tmp_path: Path, header: str) -> None:
    case = tmp_path / "case"
    fields = write_case(case, Foam())
    for label in TIMES:
        text = (case / label / "p").read_text()
        (case / label / "p").write_text(header + text[text.index("}") + 1:])
    source = rom.read(case, "p", zero=True)
    np.testing.assert_allclose(source.read()["p"], fields["p"])


@pytest.mark.parametrize("form", ["ascii", "binary"])
@pytest.mark.parametrize("collated", [True, False])
def test_regions_of_decomposed_cases(tmp_path: Path, form: str, collated: bool) -> None:
    """One processor has nothing of the solid."""
    for region, empty in (("fluid", None), ("solid", 1)):
        fields = write_decomposed(tmp_path, FORMS[form], region=region, empty=empty)
    if collated:
        collate(tmp_path, [[0, 1, 2]], False)
    for region in ("fluid", "solid"):
        source = rom.read(tmp_path, region=region)
        for name, values in source.read().items():
            np.testing.assert_array_equal(values, fields[name][1:])
        assert source.mesh.volumes.sum() == pytest.approx(1)
    with pytest.raises(SnapshotFileError, match="the regions are fluid, solid: name the one to read with region="):
        rom.read(tmp_path)


def test_collated_folders_without_a_number(tmp_path: Path) -> None:
    """What OpenFOAM 5 wrote."""
    fields = write_decomposed(tmp_path, Foam(binary=True))
    collate(tmp_path, [[0, 1, 2]], False, numbered=False)
    assert sorted(os.listdir(tmp_path)) == ["processors", "system"]
    source = rom.read(tmp_path)
    np.testing.assert_array_equal(source.read()["p"], fields["p"][1:])
    assert source.mesh.volumes.sum() == pytest.approx(1)


@pytest.mark.parametrize("collated", [True, False])
@pytest.mark.parametrize("region", ["", "solid"])
def test_meshes_in_motion_are_seen_in_decomposed_cases(tmp_path: Path, region: str, collated: bool) -> None:
    fields = write_decomposed(tmp_path, Foam(binary=True), region=region)
    for part in range(3):
        folder = tmp_path / f"processor{part}"
        shutil.copytree(folder / "constant" / region / "polyMesh", folder / "1" / region / "polyMesh",
                        ignore=lambda _, names: [name for name in names if name != "points"])
    if collated:
        collate(tmp_path, [[0, 1], [2]], False)
    with pytest.raises(SnapshotFileError, match=r"a mesh in motion\. Pass moving=True"):
        rom.read(tmp_path, region=region or None)
    source = rom.read(tmp_path, "U", region=region or None, moving=True)
    np.testing.assert_array_equal(source.read()["U"], fields["U"][1:])


def test_numbers_of_regions_and_processors_are_no_fields(tmp_path: Path) -> None:
    fields = write_case(tmp_path, Foam())
    for label in TIMES:
        for name in ("cellToRegion", "cellDist"):
            shutil.copy(tmp_path / label / "p", tmp_path / label / name)
    assert list(rom.read(tmp_path).fields) == sorted(fields)
    assert list(rom.read(tmp_path, "cellToRegion").fields) == ["cellToRegion"]


@pytest.mark.parametrize("entry", ["$internalField;", "#codeStream { code #{ return 1; #}; };", "#calc \"1\";"])
def test_macros_are_refused_with_what_to_do(tmp_path: Path, entry: str) -> None:
    write_case(tmp_path, Foam())
    path = tmp_path / "0" / "T"
    path.write_text(path.read_text().replace("uniform 300.0;", entry))
    with pytest.raises(SnapshotFileError, match=r"0/T: .*macros and code in a case are not run.*fields="):
        rom.read(tmp_path, zero=True).read()
    assert len(rom.read(tmp_path, ["p", "U"], zero=True).read()["p"]) == 4
