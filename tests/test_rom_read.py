"""Files that need no extra: numpy, MATLAB, NetCDF, HDF5, Nek5000; one file and series of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, SnapshotFileError, UnknownFieldError
from ensemblekit.rom.mesh import inner_product
from ensemblekit.rom.readers.nek import lobatto
from tests.flowfiles import nek_file

N, NY, NX = 9, 4, 5
TIMES = np.arange(N) * 0.25


@pytest.fixture
def u() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, NY, NX))


# -- numpy -------------------------------------------------------------------------------------------------------------

def test_npy_and_its_snapshot_axis(tmp_path: Path, u: np.ndarray) -> None:
    np.save(tmp_path / "u.npy", u)
    source = rom.read(tmp_path / "u.npy", times=TIMES, time_unit="s", units={"u": "m s-1"})
    np.testing.assert_array_equal(source.read()["u"], u)
    assert source.access == "tiles"
    assert source.fields["u"].unit == "m s-1"
    np.testing.assert_array_equal(source.times, TIMES)
    np.save(tmp_path / "u.npy", np.moveaxis(u, 0, 2))
    np.testing.assert_array_equal(rom.read(tmp_path / "u.npy", snapshot_axis=2).read()["u"], u)
    np.testing.assert_array_equal(rom.read(tmp_path / "u.npy", snapshot_axis=-1).read(2, 5)["u"], u[2:5])
    with pytest.raises(InputError, match="snapshot_axis=3"):
        rom.read(tmp_path / "u.npy", snapshot_axis=3)


def test_a_series_of_npy_is_one_snapshot_each_or_stacks(tmp_path: Path, u: np.ndarray) -> None:
    for k, x in enumerate(u):
        np.save(tmp_path / f"u_{0.25 * k:.2f}.npy", x)
    source = rom.read(tmp_path / "u_*.npy")
    np.testing.assert_array_equal(source.read()["u"], u)
    np.testing.assert_allclose(source.times, TIMES)
    for k in range(3):
        np.save(tmp_path / f"part{k}.npy", u[3 * k:3 * k + 3])
    stacks = rom.read(tmp_path / "part*.npy", snapshot_axis=0)
    np.testing.assert_array_equal(stacks.read()["part"], u)
    np.testing.assert_array_equal(stacks.window(1, None, 3).read()["part"], u[1::3])
    np.testing.assert_array_equal(stacks.read(2, 7)["part"], u[2:7])
    assert stacks.times is None


@pytest.mark.parametrize("cut", ["time", "space"])
def test_reduced_on_the_fly(tmp_path: Path, u: np.ndarray, cut: str) -> None:
    np.save(tmp_path / "u.npy", u)
    source = rom.read(tmp_path / "u.npy")
    gram = ek.reduce(source, ek.Gram(center="none"), cut=cut, limit=1000) if cut == "space" else None
    if gram is not None:
        flat = u.reshape(N, -1)
        np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-12)
    moments = ek.reduce(source, ek.Moments(), limit=400)
    np.testing.assert_allclose(moments.mean, u.mean(0))
    part = source.window(1, 8, 3)
    np.testing.assert_array_equal(part.read()["u"], u[1:8:3])
    np.testing.assert_allclose(ek.reduce(part, ek.Moments(), engine=ek.Threads(2)).mean, u[1:8:3].mean(0))
    travels = pickle.dumps(next(iter(part.pieces(["u"], "time", False, 1 << 20))))
    assert len(travels) < 4000      # paths, not data
    np.testing.assert_array_equal(next(pickle.loads(travels).blocks()).only, u[1:2])


def test_npz(tmp_path: Path, u: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", u=u, p=u[..., 0], time=TIMES, note=np.array(["x"]), mu=np.float64(3))
    source = rom.read(tmp_path / "a.npz")
    assert sorted(source.fields) == ["p", "u"]
    np.testing.assert_array_equal(source.read()["p"], u[..., 0])
    np.testing.assert_array_equal(source.times, TIMES)
    assert rom.read(tmp_path / "a.npz", begin=0.5, end=1.0).times.tolist() == [0.5, 0.75, 1.0]
    with pytest.raises(UnknownFieldError, match=r"a.npz: no field 'v' here; the fields are: 'u', 'p'"):
        rom.read(tmp_path / "a.npz", "v")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(SnapshotFileError, match=r"a.npz"):
        rom.read(tmp_path / "a.npz")


# -- MATLAB ------------------------------------------------------------------------------------------------------------

def matlab73(path: Path, **arrays: np.ndarray) -> None:
    """As MATLAB's save -v7.3 lays arrays out: axes reversed, a user block in front."""
    with h5py.File(path, "w", userblock_size=512) as f:
        for name, x in arrays.items():
            if np.iscomplexobj(x):
                pair = np.empty(x.T.shape, [("real", "f8"), ("imag", "f8")])
                pair["real"], pair["imag"] = x.T.real, x.T.imag
                f[name] = pair
            else:
                f[name] = x.T
        f.create_group("#refs#")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + b"\0" * 8 + b"\x00\x02IM")


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_mat(tmp_path: Path, u: np.ndarray, version: str) -> None:
    from scipy.io import savemat

    path = tmp_path / "a.mat"
    arrays = {"U": np.moveaxis(u, 0, 2), "t": TIMES[None, :], "z": np.moveaxis(u, 0, 2) * (1 + 2j)}
    savemat(path, arrays) if version == "5" else matlab73(path, **arrays)
    source = rom.read(path)
    np.testing.assert_array_equal(source.read()["U"], u)
    np.testing.assert_array_equal(source.read(2, 4)["z"], u[2:4] * (1 + 2j))
    np.testing.assert_array_equal(source.times, TIMES)
    first = {"U": u, "t": TIMES[:, None]}               # snapshots first: found by the length of t
    savemat(path, first) if version == "5" else matlab73(path, **first)
    np.testing.assert_array_equal(rom.read(path).read()["U"], u)
    alone = {"U": np.moveaxis(u, 0, 2)}
    savemat(path, alone) if version == "5" else matlab73(path, **alone)
    np.testing.assert_array_equal(rom.read(path).read()["U"], u)        # MATLAB's custom: the last axis
    np.testing.assert_array_equal(rom.read(path, snapshot_axis=0).read()["U"], np.moveaxis(u, 0, 2))
    with pytest.raises(UnknownFieldError, match="'U'"):
        rom.read(path, "V")


# -- NetCDF ------------------------------------------------------------------------------------------------------------

def test_netcdf_classic(tmp_path: Path) -> None:
    from scipy.io import netcdf_file

    rng = np.random.default_rng(1)
    packed = rng.integers(-100, 100, (N, NY, NX)).astype("i2")
    packed[2, 1, 1] = -999
    with netcdf_file(tmp_path / "a.nc", "w") as f:
        f.createDimension("time", None)
        f.createDimension("lat", NY)
        f.createDimension("lon", NX)
        time = f.createVariable("time", "d", ("time",))
        time.units = b"days since 2000-01-01"
        lat = f.createVariable("lat", "f", ("lat",))
        lat[:] = np.arange(NY)
        sst = f.createVariable("sst", "h", ("time", "lat", "lon"))
        sst.units, sst.scale_factor, sst.add_offset, sst._FillValue = b"K", np.float32(0.5), np.float32(273), np.int16(-999)
        for k in range(N):
            time[k], sst[k] = TIMES[k], packed[k]
    source = rom.read(tmp_path / "a.nc")
    assert list(source.fields) == ["sst"]
    assert source.fields["sst"].unit == "K"
    assert source.time_unit == "days"
    want = packed * np.float32(0.5) + np.float32(273)
    want[2, 1, 1] = np.nan
    np.testing.assert_allclose(source.read()["sst"], want, rtol=1e-6)
    np.testing.assert_array_equal(source.times, TIMES)
    whole = (tmp_path / "a.nc").read_bytes()
    (tmp_path / "a.nc").write_bytes(whole[:-500])
    with pytest.raises(SnapshotFileError, match=r"a.nc"):
        rom.read(tmp_path / "a.nc").read()


def test_netcdf4(tmp_path: Path, u: np.ndarray) -> None:
    """Dimensions as NetCDF-4 writes them; time may be any axis."""
    with h5py.File(tmp_path / "a.nc", "w") as f:
        for k, (name, n) in enumerate((("time", N), ("y", NY), ("x", NX))):
            f[name] = TIMES if name == "time" else np.arange(n, dtype=float)
            f[name].make_scale(name)
            f[name].attrs["_Netcdf4Dimid"] = k
        f["time"].attrs["units"] = "seconds since 1970-01-01"
        f["T"] = np.moveaxis(u, 0, 2)
        f["T"].attrs["units"] = "K"
        for axis, name in enumerate(("y", "x", "time")):
            f["T"].dims[axis].attach_scale(f[name])
        f["mask"] = np.ones((NY, NX))
        for axis, name in enumerate(("y", "x")):
            f["mask"].dims[axis].attach_scale(f[name])
    source = rom.read(tmp_path / "a.nc")
    assert list(source.fields) == ["T"]
    assert (source.fields["T"].unit, source.time_unit) == ("K", "seconds")
    np.testing.assert_array_equal(source.read()["T"], u)
    np.testing.assert_array_equal(source.times, TIMES)


def test_netcdf4_of_the_library_itself(tmp_path: Path, u: np.ndarray) -> None:
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "a.nc", "w") as f:
        f.createDimension("time", None)
        f.createDimension("y", NY)
        f.createDimension("x", NX)          # without a variable of its own
        f.createVariable("time", "f8", ("time",))[:] = TIMES
        v = f.createVariable("T", "f4", ("time", "y", "x"), zlib=True, fill_value=1e20)
        v[:] = u
        v[3, 0, 0] = 1e20
    source = rom.read(tmp_path / "a.nc")
    want = u.astype("f4")
    want[3, 0, 0] = np.nan
    np.testing.assert_array_equal(source.read()["T"], want)
    np.testing.assert_array_equal(source.times, TIMES)


# -- HDF5 --------------------------------------------------------------------------------------------------------------

def test_plain_hdf5(tmp_path: Path, u: np.ndarray) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["flow/u"], f["t"], f["grid"] = u, TIMES, np.zeros(NX)
    source = rom.read(tmp_path / "a.h5", ["flow/u"])
    np.testing.assert_array_equal(source.read()["flow/u"], u)
    np.testing.assert_array_equal(source.times, TIMES)
    assert list(rom.read(tmp_path / "a.h5").fields) == ["flow/u"]
    assert source.access == "tiles"
    with pytest.raises(UnknownFieldError) as caught:
        rom.read(tmp_path / "a.h5", "p")
    assert all(name in str(caught.value) for name in ("'flow/u'", "'t'", "'grid'"))
    with h5py.File(tmp_path / "b.h5", "w") as f:
        f["u"], f["time"] = np.moveaxis(u, 0, 2), TIMES
    across = rom.read(tmp_path / "b.h5", snapshot_axis=-1)
    np.testing.assert_array_equal(across.read(1, 4)["u"], u[1:4])
    np.testing.assert_array_equal(across.times, TIMES)


def test_a_store_and_stores_in_a_row(tmp_path: Path, u: np.ndarray) -> None:
    for name, rows in (("a.h5", slice(0, 4)), ("b.h5", slice(4, N))):
        with ek.create(tmp_path / name, {"u": ek.Field((NY, NX), unit="m s-1")}, time_unit="s") as store:
            store.extend({"u": u[rows]}, times=TIMES[rows])
    one = rom.read(tmp_path / "a.h5", step=2)
    np.testing.assert_array_equal(one.read()["u"], u[:4:2])
    both = rom.read([tmp_path / "a.h5", tmp_path / "b.h5"])
    np.testing.assert_array_equal(both.read()["u"], u)
    np.testing.assert_array_equal(both.times, TIMES)
    assert (both.time_unit, both.fields["u"].unit) == ("s", "m s-1")
    with pytest.warns(UserWarning, match="in order of time: a.h5, b.h5"):
        reordered = rom.read([tmp_path / "b.h5", tmp_path / "a.h5"])
    np.testing.assert_array_equal(reordered.read()["u"], u)
    with pytest.raises(InputError, match="times run backwards"):
        rom.read([tmp_path / "a.h5", tmp_path / "a.h5"])


# -- Nek5000 -----------------------------------------------------------------------------------------------------------

def elements(order: tuple[int, int, int], counts: tuple[int, ...], bend: float = 0.0) -> np.ndarray:
    """Coordinates of a box of spectral elements, (elements, points, dimension)."""
    dimension = len(counts)
    nodes = [(lobatto(n)[0] + 1) / 2 for n in order[:dimension]]
    items = []
    for index in np.ndindex(*counts[::-1]):
        axes = [(i + x) / n for i, x, n in zip(index[::-1], nodes, counts, strict=True)]
        grid = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1], -1).reshape(-1, dimension)
        items.append(grid)
    x = np.array(items)
    if bend:
        x[..., 0] += bend * x[..., 1] ** 2      # Jacobian 1
    return x


@pytest.mark.parametrize(("order", "counts"), [((5, 5, 1), (3, 2)), ((4, 4, 4), (2, 2, 1))])
@pytest.mark.parametrize(("word", "big"), [(4, False), (8, True), (4, True), (8, False)])
def test_nek(tmp_path: Path, order: tuple, counts: tuple, word: int, big: bool) -> None:
    x = elements(order, counts, 0.1)
    n, points, dimension = x.shape
    rng = np.random.default_rng(0)
    want = {"U": [], "P": [], "S02": []}
    for k in range(3):
        blocks = {"U": rng.normal(size=(n, points, dimension)), "P": rng.normal(size=(n, points)),
                  "T": np.full((n, points), 2.0), "S01": rng.normal(size=(n, points)), "S02": rng.normal(size=(n, points))}
        if k == 0:
            blocks["X"] = x
        numbers = rng.permutation(n) + 1            # elements in any order
        nek_file(tmp_path / f"wake0.f{k + 1:05d}", order, n, 0.5 * k, 10 * k, blocks, word=word, big=big, numbers=numbers)
        for name in want:
            want[name].append(blocks[name].reshape(-1, *blocks[name].shape[2:]).astype(f"f{word}"))
    source = rom.read(tmp_path / "wake0.f*")
    assert list(source.fields) == ["U", "P", "T", "S01", "S02"]
    read = source.read()
    for name, values in want.items():
        np.testing.assert_array_equal(read[name], values)
    assert source.times.tolist() == [0, 0.5, 1]
    mesh = source.mesh
    assert mesh.dimension == dimension
    weights = inner_product(source, "P")
    assert weights.sum() == pytest.approx(1, rel=1e-5 if word == 4 else 1e-12)
    # the quadrature of the solver: exact for polynomials that the element resolves
    at = mesh.points
    assert (weights * at[:, 1] ** 3).sum() == pytest.approx(1 / 4, rel=1e-5)
    assert mesh.volumes.sum() == pytest.approx(1, abs=0.02)     # cells between points: straight-sided
    (tmp_path / "wake.nek5000").write_text("filetemplate: wake%01d.f%05d\nfirsttimestep: 1\nnumtimesteps: 3\n")
    np.testing.assert_array_equal(rom.read(tmp_path / "wake.nek5000", "P").read()["P"], want["P"])


def test_nek_files_that_do_not_fit(tmp_path: Path) -> None:
    x = elements((4, 4, 1), (2, 2))
    for k in range(3):
        nek_file(tmp_path / f"a0.f{k:05d}", (4, 4, 1), 4, k, k, {"X": x, "U": x, "P": x[..., 0]})
    with pytest.raises(UnknownFieldError, match="'U', 'P'"):
        rom.read(tmp_path / "a0.f*", "T")
    path = tmp_path / "a0.f00001"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(SnapshotFileError, match=r"a0.f00001: is cut short"):
        rom.read(tmp_path / "a0.f*")
    path.write_bytes(b"#std 4")
    with pytest.raises(SnapshotFileError, match=r"a0.f00001"):
        rom.read(tmp_path / "a0.f*")
    y = elements((4, 4, 1), (3, 2))
    nek_file(path, (4, 4, 1), 6, 1, 1, {"X": y, "U": y, "P": y[..., 0]})
    with pytest.raises(SnapshotFileError, match=r"a0.f00001: has 6 elements of .* has\s+4"):
        rom.read(tmp_path / "a0.f*")


def test_lobatto_is_exact_to_degree_2n_minus_3() -> None:
    for n in range(2, 10):
        x, w, d = lobatto(n)
        for power in range(2 * n - 2):
            assert (w * x**power).sum() == pytest.approx((1 + (-1) ** power) / (power + 1), abs=1e-13)
        np.testing.assert_allclose(d @ x ** (n - 1), (n - 1) * x ** max(n - 2, 0), atol=1e-11)


# -- what goes wrong ---------------------------------------------------------------------------------------------------

def test_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "a.plt").write_bytes(b"#!TDV112")
    with pytest.raises(InputError, match=r"the suffix .plt is not known. Known are .npy.*.vtkhdf.*OpenFOAM.*.pvd.*.cgns"):
        rom.read(tmp_path / "a.plt")
    with pytest.raises(SnapshotFileError, match="there is no such file"):
        rom.read(tmp_path / "b.vtu")
    with pytest.raises(SnapshotFileError, match="no file matches"):
        rom.read(tmp_path / "b_*.vtu")
    with pytest.raises(InputError, match="no OpenFOAM case"):
        rom.read(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    np.savez(tmp_path / "b.npz", u=np.zeros((3, 2)))
    with pytest.raises(InputError, match="several formats"):
        rom.read([tmp_path / "a.npy", tmp_path / "b.npz"])
    with pytest.raises(InputError, match="step"):
        rom.read(tmp_path / "a.npy", step=0)
    (tmp_path / "c.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(SnapshotFileError, match=r"c.npy: cannot be read as .npy, or is cut short"):
        rom.read(tmp_path / "c.npy")
    (tmp_path / "d.h5").write_bytes(b"nothing")
    with pytest.raises(ek.EnsemblekitError, match=r"d.h5"):
        rom.read(tmp_path / "d.h5")


def test_shapes_must_agree(tmp_path: Path) -> None:
    np.save(tmp_path / "a1.npy", np.zeros((3, 2)))
    np.save(tmp_path / "a2.npy", np.zeros((3, 4)))
    with pytest.raises(SnapshotFileError, match=r"a2.npy: field 'a' has shape \(3, 4\); in .*a1.npy it has \(3, 2\)"):
        rom.read(tmp_path / "a*.npy")


# -- grids of NetCDF ---------------------------------------------------------------------------------------------------

def test_latitudes_weigh_as_on_the_sphere(tmp_path: Path) -> None:
    from scipy.io import netcdf_file

    lat, lon = np.linspace(-85, 85, 18), np.arange(0, 360, 10.0)
    with netcdf_file(tmp_path / "a.nc", "w") as f:
        for name, values, unit in (("time", np.arange(3.0), b"hours"), ("lat", lat, b"degrees_north"),
                                   ("lon", lon, b"degrees_east")):
            f.createDimension(name, len(values))
            v = f.createVariable(name, "d", (name,))
            v[:], v.units = values, unit
        f.createVariable("T", "d", ("time", "lat", "lon"))[:] = 1.0
    weights = inner_product(rom.read(tmp_path / "a.nc"))
    assert weights.shape == (18, 36)
    np.testing.assert_allclose(weights, np.cos(np.deg2rad(lat))[:, None] * np.ones(36), rtol=1e-12)


def test_members_are_no_grid(tmp_path: Path) -> None:
    from scipy.io import netcdf_file

    with netcdf_file(tmp_path / "a.nc", "w") as f:
        for name, n in (("time", 3), ("member", 4), ("x", 5)):
            f.createDimension(name, n)
            f.createVariable(name, "d", (name,))[:] = np.arange(n)
        f.createVariable("T", "d", ("time", "member"))[:] = 1.0
        f.createVariable("u", "d", ("time", "x"))[:] = 1.0
    assert rom.read(tmp_path / "a.nc", "T").mesh is None
    np.testing.assert_allclose(inner_product(rom.read(tmp_path / "a.nc", "u")), [0.5, 1, 1, 1, 0.5])
