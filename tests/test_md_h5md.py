"""H5MD files of every layout the standard allows: boxes that stay, steps as increments, no times, any group."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.errors import InputError
from ensemblekit.md.h5md import factor

h5py = pytest.importorskip("h5py")
mda = pytest.importorskip("MDAnalysis")

N, ATOMS = 5, 4
X = np.random.default_rng(0).uniform(0, 10, (N, ATOMS, 3)).astype(np.float32)
BOX = np.array([10.0, 11.0, 12.0])
TILTED = np.array([[10.0, 0, 0], [2, 11, 0], [1, 3, 12]])


def element(group, name, values, unit="Angstrom", step=True, time=True, time_unit="ps"):
    group_of = group.create_group(name)
    group_of["value"] = values
    group_of["value"].attrs["unit"] = unit
    if step is not None:
        group_of["step"] = np.arange(N) if step is True else np.int64(step)
    if time is not None:
        group_of["time"] = 2.0 * np.arange(N) if time is True else time
        group_of["time"].attrs["unit"] = time_unit
    return group_of


def boxed(group, edges=None, boundary=("periodic",) * 3):
    box = group.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = list(boundary)
    if edges is not None:
        box["edges"] = edges
    return box


def plain(f, name="trajectory", edges=BOX, **options):
    group = f.create_group(f"particles/{name}")
    boxed(group, edges)
    return element(group, "position", X, **options)


def fixed_strings(f):
    plain(f, edges=None)
    box = f["particles/trajectory/box"]
    box.attrs["boundary"] = np.array([b"periodic"] * 3)
    box["edges"] = TILTED


def offset(f):
    node = plain(f, step=10, time=np.float64(2.0))
    node["step"].attrs["offset"], node["time"].attrs["offset"] = 100, 7.0


def moving(f):
    plain(f, edges=None, time=None)
    element(f["particles/trajectory/box"], "edges", np.tile(BOX, (N, 1)), time=None)


def several(f):
    group = f.create_group("particles/water")
    boxed(group, BOX)
    element(group, "position", np.zeros((N, 7, 3)))
    plain(f, "protein")


def nanometres(f):
    node = plain(f, edges=BOX / 10, unit="nm", time_unit="fs")
    node["value"][...] = X / 10
    node.parent.create_group("velocity")["value"] = X
    node.parent["velocity/value"].attrs["unit"] = "nm ns-1"
    node.parent["velocity/step"], node.parent["velocity/time"] = node["step"], node["time"]


def open_ends(f):
    group = f.create_group("particles/trajectory")
    boxed(group, None, ("none",) * 3)
    element(group, "position", X, step=1, time=np.float64(2.0))


def no_box(f):
    element(f.create_group("particles/trajectory"), "position", X)


TIMES = 2.0 * np.arange(N)
LAYOUTS = {
    "vector": (plain, BOX, TIMES),
    "matrix": (lambda f: plain(f, edges=TILTED), TILTED, TIMES),
    "fixed strings": (fixed_strings, TILTED, TIMES),
    "moving, no times": (moving, BOX, None),
    "no times": (lambda f: plain(f, time=None), BOX, None),
    "increment": (lambda f: plain(f, step=10, time=2.0), BOX, TIMES),
    "offset": (offset, BOX, TIMES + 7),
    "other name": (lambda f: plain(f, "all"), BOX, TIMES),
    "several groups": (several, BOX, TIMES),
    "nm": (nanometres, BOX, TIMES / 1000),
    "no boundary": (open_ends, None, TIMES),
    "no box": (no_box, None, TIMES)}


@pytest.fixture
def topology(tmp_path):
    path = tmp_path / "top.pdb"
    u = mda.Universe.empty(ATOMS, n_residues=ATOMS, atom_resindex=np.arange(ATOMS), trajectory=True)
    for name, values in (("names", ["CA"] * ATOMS), ("resnames", ["ALA"] * ATOMS), ("resids", np.arange(ATOMS) + 1)):
        u.add_TopologyAttr(name, values)
    u.atoms.positions = X[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        u.atoms.write(str(path))
    return str(path)


def made(tmp_path, write, name="x.h5md"):
    path = str(tmp_path / name)
    with h5py.File(path, "w") as f:
        f.create_group("h5md").attrs["version"] = [1, 1]
        write(f)
    return path


def blocks(source):
    return [block for piece in source.pieces(list(source.fields), "time", False, 1 << 20)
            for block in pickle.loads(pickle.dumps(piece)).blocks()]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_frames(tmp_path, topology, name):
    write, box, times = LAYOUTS[name]
    source = md.read(topology, made(tmp_path, write))
    read = blocks(source)
    np.testing.assert_allclose(np.concatenate([block.fields["position"] for block in read]), X, rtol=1e-6)
    assert ("box" in source.fields) == (box is not None)
    if box is not None:
        for block in read:
            for cell in block.fields["box"]:
                vectors = np.diag(box) if box.ndim == 1 else box
                np.testing.assert_allclose(np.linalg.norm(cell, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-6)
                np.testing.assert_allclose(abs(np.linalg.det(cell)), 10 * 11 * 12, rtol=1e-5)
    if name == "nm":
        np.testing.assert_allclose(read[0].fields["velocity"][0], X[0] * 0.01, rtol=1e-6)
    estimate = md.average(source, {"d": md.Distance("index 0", "index 1", periodic=False)}, equilibration=None, quiet=True)["d"]
    assert estimate.mean == pytest.approx(np.linalg.norm(X[:, 0] - X[:, 1], axis=1).mean(), rel=1e-6)
    if times is None:
        assert estimate.times is None
        assert estimate.time_unit == ""
    else:
        np.testing.assert_allclose(estimate.times, times, rtol=1e-6)
    few = md.read(topology, made(tmp_path, write), select="index 1:2", start=1, stop=4)
    np.testing.assert_allclose(blocks(few)[0].fields["position"][0], X[1, 1:3], rtol=1e-6)


def no_units(f):
    value = plain(f)["value"]
    del value.attrs["unit"]


def twins(f):
    plain(f, "one")
    plain(f, "two")


@pytest.mark.parametrize(("write", "words"), [
    (no_units, "no units; convert_units=False"), (twins, r"one \(4 atoms\), two \(4 atoms\): which is meant"),
    (lambda f: plain(f, edges=np.array([1.0, np.nan, 1])), "three finite lengths"),
    (lambda f: element(boxed(f.create_group("particles/a"), BOX, ("periodic", "periodic", "none")).parent, "position", X),
     "some of their axes"),
    (lambda f: plain(f, unit="furlong"), "'furlong' of position is not known"),
    (lambda f: element(f.create_group("particles/a"), "position", X[:, :3]), "4 atoms are wanted")])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_file_cannot_say_is_refused(tmp_path, topology, write, words):
    with pytest.raises(InputError, match=words):
        md.read(topology, made(tmp_path, write))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_options_and_transformations_go_with_such_files(tmp_path, topology):
    source = md.read(topology, made(tmp_path, no_units), convert_units=False, dt=0.5)
    np.testing.assert_allclose(source.times, 0.5 * np.arange(N))
    np.testing.assert_allclose(blocks(source)[0].fields["position"][0], X[0], rtol=1e-6)

    def shifted(ts):
        ts.positions = ts.positions + 1
        return ts

    path = made(tmp_path, plain)
    moved = md.read(topology, path, transformations=[shifted])
    np.testing.assert_allclose(md.average(moved, {"x": lambda atoms: atoms.positions[0, 0]}, equilibration=None)["x"].series,
                               X[:, 0, 0] + 1, rtol=1e-5)
    later = made(tmp_path, lambda f: plain(f, time=10 + 2.0 * np.arange(N)), "y.h5md")
    for listed in ([path, later], [later, path]):
        parts = md.read(topology, listed)
        np.testing.assert_allclose(parts.times, 2.0 * np.arange(2 * N))
        np.testing.assert_allclose(np.concatenate([block.fields["position"] for block in blocks(parts)]), np.tile(X, (2, 1, 1)))


def test_units_of_h5md():
    assert factor("nm ps-1", "velocity", "f") == pytest.approx(10)
    assert factor("kcal mol-1 Angstrom-1", "force", "f") == pytest.approx(4.184)
    assert factor("kJ mol-1 nm-1", "force", "f") == pytest.approx(0.1)
    assert factor("eV Angstrom-1", "force", "f") == pytest.approx(96.485, rel=1e-4)
    for unit, kind in (("nm", "time"), ("J m-1", "force"), ("kJ mol-1", "force"), ("", "velocity")):
        with pytest.raises(InputError, match=f"no unit of {kind}"):
            factor(unit, kind, "f")
