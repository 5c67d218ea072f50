import gc
import os
import sys

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, StoreError, UnknownFieldError
from ensemblekit.rom import quantise

MESH = sys.modules["ensemblekit.rom.mesh"]


def wave(n=120, ny=24, nx=40, noise=1e-3, seed=0, dtype="f4"):
    """A travelling wave over a mean, two components, with some noise."""
    t, y, x = np.ogrid[0:6:n * 1j, 0:1:ny * 1j, 0:4:nx * 1j]
    u = np.stack([1 + y + 0.3 * np.sin(3 * x - 2 * np.pi * t) * np.sin(np.pi * y),
                  0.2 * np.cos(3 * x - 2 * np.pi * t) + 0.05 * np.cos(6 * x - 4 * np.pi * t) + 0 * y], -1)
    return (u + noise * np.random.default_rng(seed).standard_normal(u.shape)).astype(dtype)


def relative(x, back, norm, relative_to):
    x, back = x.astype(float), np.asarray(back, dtype=float)
    base = x - x.mean(0) if relative_to == "fluctuation" else x
    if norm == "max":
        return np.abs(x - back).max() / np.abs(base).max()
    return np.linalg.norm(x - back) / np.linalg.norm(base)


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("relative_to", ["fluctuation", "total"])
@pytest.mark.parametrize("tolerance", [0.1, 1e-2, 1e-3])
def test_the_tolerance_holds_as_read_back(tmp_path, norm, relative_to, tolerance):
    u = wave()
    archive = rom.compress(u, tmp_path / "a.h5", tolerance=tolerance, norm=norm, relative_to=relative_to)
    got = relative(u, rom.decompress(tmp_path / "a.h5"), norm, relative_to)
    assert got <= tolerance
    assert archive.error == pytest.approx(got, rel=1e-4)
    assert archive.ratio == pytest.approx(u.nbytes / os.path.getsize(tmp_path / "a.h5"))
    if norm == "l2":
        assert got > 0.5 * tolerance         # nothing is given away


def test_a_wave_is_small_and_the_limit_is_told(tmp_path):
    u = wave(n=400, noise=0)
    archive = rom.compress(u, tmp_path / "a.h5", tolerance=0.01)
    assert archive.ratio > 60
    one = rom.decompress(archive)
    assert one.limit == pytest.approx(400 / one.rank)
    assert "n/k" in str(archive)
    assert "checked on all 400 snapshots" in str(archive)


@pytest.mark.parametrize("norm", ["l2", "max"])
def test_slices_are_those_of_the_whole(tmp_path, norm, monkeypatch):
    monkeypatch.setattr(quantise, "TILE", 400)
    u = wave(n=70)
    rom.compress(u, tmp_path / "a.h5", tolerance=0.003, norm=norm)
    lazy = rom.decompress(tmp_path / "a.h5")
    whole = lazy[...]
    assert whole.dtype == u.dtype
    assert lazy.shape == u.shape == whole.shape
    for index in [5, -1, slice(3, 40, 7), (slice(None), 3), (..., 1), (slice(60, 10, -9), slice(2, 9), -4, 0),
                  ([3, 1, 60], slice(0, 24, 5)), (2, ..., slice(1, None)), slice(9, 9), np.arange(70) % 9 == 0,
                  (slice(None), slice(None), slice(39, None, -13))]:
        np.testing.assert_allclose(lazy[index], whole[index], rtol=0, atol=2e-7)
    np.testing.assert_allclose(np.asarray(lazy - u), whole - u)
    assert np.abs(lazy).max() == np.abs(whole).max()
    with pytest.raises(IndexError):
        lazy[70]
    with pytest.raises(IndexError):
        lazy[0, 0, 0, 0, 0]


def test_only_the_tiles_touched_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, "TILE", 100)
    rom.compress(wave(n=50), tmp_path / "a.h5", tolerance=0.01)
    lazy = rom.decompress(tmp_path / "a.h5")
    assert lazy.tile[0] < 24
    seen = []
    true = quantise.unzigzag
    monkeypatch.setattr("ensemblekit.rom.archive.unzigzag", lambda z: seen.append(z.size) or true(z))
    lazy[7, 2, 3]
    assert sum(seen) < (lazy.rank + 1) * 3 * np.prod(lazy.tile) + 50 * lazy.rank


def test_several_fields_times_and_back_into_a_store(tmp_path):
    u = wave(n=64)
    with ek.create(tmp_path / "run.h5", {"U": ek.Field(u.shape[1:], "f4", "m s-1"), "p": ek.Field((24, 40), "f8", "Pa")},
                   time_unit="s") as store:
        for k in range(64):
            store.append({"U": u[k], "p": u[k, ..., 0].astype(float) ** 2}, time=0.25 * k)
    archive = rom.compress(ek.open(tmp_path / "run.h5"), tmp_path / "a.h5", tolerance=0.01)
    assert set(archive) == {"U", "p"}
    assert archive["U"].unit == "m s-1"
    np.testing.assert_allclose(archive.times, 0.25 * np.arange(64))
    assert relative(u[..., 0].astype(float) ** 2, archive["p"], "l2", "fluctuation") <= 0.01
    back = rom.decompress(archive, tmp_path / "back.h5")
    assert back.fields["U"].unit == "m s-1"
    assert back["p"].time_unit == "s"
    np.testing.assert_array_equal(back["U"].times, archive.times)
    np.testing.assert_allclose(np.asarray(ek.reduce(back["U"], ek.Moments()).mean), archive["U"][...].mean(0), atol=1e-6)
    with pytest.raises(UnknownFieldError):
        archive["T"]
    with pytest.raises(InputError):
        archive[3]


def test_noise_is_kept_to_the_tolerance_too(tmp_path):
    u = np.random.default_rng(1).standard_normal((60, 500)).astype("f4")
    for norm in ("l2", "max"):
        archive = rom.compress(u, tmp_path / f"{norm}.h5", tolerance=0.02, norm=norm)
        assert relative(u, archive["values"], norm, "fluctuation") <= 0.02
        assert archive.ratio > 2


def test_outliers_are_kept_in_the_maximum_norm():
    u = wave(n=200)
    u[77, 3, 5, 0] += 40
    archive = rom.compress(u, tolerance=1e-3, norm="max", relative_to="total")
    assert relative(u, archive["values"], "max", "total") <= 1e-3


def test_fewer_modes_than_needed_are_made_up_for_by_the_residual(tmp_path, monkeypatch):
    u = wave(noise=0.05)
    true = rom.pod
    monkeypatch.setattr("ensemblekit.rom.encode.pod", lambda source, tolerance, engine: true(source, rank=2, engine=engine))
    archive = rom.compress(u, tmp_path / "a.h5", tolerance=0.01)
    assert rom.decompress(archive).rank <= 2
    assert rom.decompress(archive).residual_step > 0
    assert relative(u, archive["values"], "l2", "fluctuation") <= 0.01
    assert rom.Archive.open(tmp_path / "a.h5").error == archive.error


def test_land_stays_land_and_a_field_at_rest_is_kept(tmp_path):
    u = wave(n=40)[..., 0].copy()
    u[:, :5, :7] = np.nan
    archive = rom.compress(u, tmp_path / "a.h5", tolerance=0.01)
    back = archive["values"][...]
    np.testing.assert_array_equal(np.isnan(back), np.isnan(u))
    assert relative(u[:, 5:], back[:, 5:], "l2", "fluctuation") < 0.012
    still = np.broadcast_to(np.linspace(1, 2, 300, dtype="f4"), (20, 300))
    back = rom.compress(still, tolerance=0.01)["values"][...]
    np.testing.assert_allclose(back, still, rtol=1e-6)
    u[3, 10, 10] = np.nan
    with pytest.raises(InputError, match="NaN"):
        rom.compress(u, tolerance=0.01)


def test_engines_agree_and_a_temporary_archive_is_cleaned_up(tmp_path):
    u = wave(n=64)
    a = rom.compress(u, tolerance=0.01, engine=ek.Serial())
    b = rom.compress(u, tolerance=0.01, engine=ek.Threads(3))
    np.testing.assert_array_equal(a["values"][...], b["values"][...])
    path = a.path
    kept = a.save(tmp_path / "kept.h5")
    del a
    gc.collect()
    assert not os.path.exists(path)
    assert kept["values"].shape == u.shape


def test_whole_numbers_there_and_back():
    q = np.random.default_rng(0).integers(-1000, 1000, (3, 5, 6, 2))
    np.testing.assert_array_equal(quantise.unzigzag(quantise.zigzag(q)), q)
    for axes in range(8):
        np.testing.assert_array_equal(quantise.summed(quantise.differenced(q, axes), axes), q)
    smooth = np.add.outer(50 * np.arange(30), 7 * np.arange(40))
    assert quantise.best_axes(smooth, (30, 40)) == 3


def test_water_filling_spends_what_is_allowed():
    squared = 100 * 0.5 ** np.arange(20.0)
    share = quantise.water_fill(squared, squared.sum(), 1e-2 * squared.sum(), 50.0, 5000, 200)
    left_out = squared[share.k:].sum()
    assert left_out + (share.k + 1) * share.noise == pytest.approx(1e-2 * squared.sum())
    assert squared[share.k - 1] > share.noise
    fine = quantise.water_fill(squared, squared.sum(), 1e-4 * squared.sum(), 50.0, 5000, 200)
    assert fine.k > share.k
    assert fine.noise < share.noise


@pytest.mark.parametrize(("what", "options"), [
    (np.zeros((5, 3)), {"tolerance": 0}), (np.zeros((5, 3)), {"tolerance": 1.5}), (np.zeros((5, 3)), {"tolerance": "1%"}),
    (np.zeros((5, 3), int), {"tolerance": 0.1}), (np.zeros((5, 3), complex), {"tolerance": 0.1}),
    (np.zeros((0, 3)), {"tolerance": 0.1}), (np.zeros((5, 3)), {"tolerance": 0.1, "norm": "l1"}),
    (np.zeros((5, 3)), {"tolerance": 0.1, "relative_to": "mean"}),
])
def test_what_cannot_be_compressed(what, options):
    with pytest.raises(InputError):
        rom.compress(what, **options)


def test_nowhere_to_write(tmp_path):
    with pytest.raises(StoreError, match="no folder"):
        rom.compress(wave(n=8), tmp_path / "none" / "a.h5", tolerance=0.1)
    (tmp_path / "a.h5").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        rom.compress(wave(n=8), tmp_path / "a.h5", tolerance=0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_no_archive(tmp_path):
    with pytest.raises(StoreError):
        rom.decompress(tmp_path / "none.h5")
    with ek.create(tmp_path / "run.h5", {"u": ek.Field((2,), "f4")}) as store:
        store.append({"u": np.zeros(2)})
    with pytest.raises(StoreError, match="no archive"):
        rom.decompress(tmp_path / "run.h5")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_an_error_below_rounding_is_kept_too(dtype):
    u = np.random.default_rng(0).random((9, 50)).astype(dtype)
    back = rom.compress(u, tolerance=1e-9 if dtype == "f4" else 1e-14, norm="max")["values"][...]
    assert relative(u, back, "max", "fluctuation") <= (1e-9 if dtype == "f4" else 1e-14)


def test_the_mesh_stays_with_the_snapshots(tmp_path):
    mesh = rom.Mesh.of(np.random.default_rng(0).random((42, 2)), np.array([[k, k + 1, k + 2] for k in range(40)]))
    u = wave(n=60).reshape(60, -1)[:, :40]
    with ek.create(tmp_path / "u.h5", {"u": ek.Field((40,), "f4")}, constants=MESH.constants_for(mesh)) as store:
        store.extend({"u": u}, times=np.arange(60.0))
    archive = rom.compress(ek.open(tmp_path / "u.h5"), tmp_path / "a.h5", tolerance=0.01)
    np.testing.assert_array_equal(archive.mesh.points, mesh.points)
    assert archive.stored_bytes == os.path.getsize(tmp_path / "a.h5")
    assert archive.ratio == pytest.approx(u.nbytes / archive.stored_bytes)
    assert f"({archive.mesh_bytes / 1e6:.4g} MB of it the mesh)" in str(archive)
    back = rom.decompress(tmp_path / "a.h5", tmp_path / "back.h5")
    again = MESH.mesh_of(back)
    np.testing.assert_array_equal(again.connectivity, mesh.connectivity)
    np.testing.assert_array_equal(again.points, mesh.points)
    assert rom.compress(u, tmp_path / "b.h5", tolerance=0.01).mesh is None


def test_gaps_that_come_and_go_say_what_an_archive_holds(tmp_path):
    u = wave(n=60)
    u[17, 3, 4] = np.nan
    with pytest.raises(InputError, match=r"first in snapshot 17 .*there in every snapshot or in none") as caught:
        rom.compress(u, tmp_path / "a.h5", tolerance=0.01)
    assert "pass missing" not in str(caught.value)


def far_and_near(dtype):
    """A few waves, and beside them noise where the weights are next to nothing; its weights."""
    rng = np.random.default_rng(0)
    t, s = np.linspace(0, 9, 60)[:, None], np.linspace(0, 1, 400)
    x = sum(np.sin((k + 1) * t + k) * np.cos(7 * (k + 2) * s) * 0.6**k for k in range(9))
    x[:, 300:] += 3 * rng.normal(size=(60, 100))
    return x.astype(dtype), np.where(np.arange(400) < 300, 2.0, 1e-8)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("tolerance", [0.1, 1e-4])
@pytest.mark.parametrize("relative_to", ["fluctuation", "total"])
def test_the_error_of_an_inner_product_is_what_was_allowed(tmp_path, dtype, tolerance, relative_to):
    x, weights = far_and_near(dtype)
    path = tmp_path / "a.h5"
    archive = rom.compress(x, path, tolerance=tolerance, relative_to=relative_to, inner_product=weights)
    read = rom.decompress(path)
    assert read[...].dtype == x.dtype
    wide = x.astype("f8")
    off = np.sqrt((weights * (read[...] - wide) ** 2).sum())
    size = np.sqrt((weights * (wide - (wide.mean(0) if relative_to == "fluctuation" else 0)) ** 2).sum())
    assert 0.8 * tolerance < off / size <= tolerance
    assert archive.error == pytest.approx(off / size, rel=1e-6)
    assert archive.ratio > 1.5 * rom.compress(x, tolerance=tolerance, relative_to=relative_to).ratio
    assert "weighted root mean square" in str(archive)
    np.testing.assert_allclose(read[5:9, 3:390:7], read[...][5:9, 3:390:7], rtol=1e-6, atol=1e-9)


def test_weights_of_cells_masks_and_meshes(tmp_path):
    rng = np.random.default_rng(1)
    mesh = rom.Mesh.rectilinear(np.linspace(0, 1, 9) ** 3, np.linspace(0, 1, 6))
    x = rng.normal(size=(30, 40, 3)).astype("f4")
    x[:, 7] = np.nan                # an island
    np.save(tmp_path / "x.npy", x)
    source = rom.read(tmp_path / "x.npy", mesh=mesh)
    volumes = mesh.volumes.copy()
    volumes[7] = 0
    archives = [rom.compress(source, tmp_path / "a.h5", tolerance=0.2, inner_product="auto"),
                rom.compress(x, tmp_path / "b.h5", tolerance=0.2, inner_product=volumes)]
    for archive in archives:
        read = archive[next(iter(archive))][...]
        assert np.isnan(read[:, 7]).all()
        off = np.nansum(volumes[:, None] * (read - x.astype("f8")) ** 2)
        assert off <= 0.04 * np.nansum(volumes[:, None] * (x - x.astype("f8").mean(0)) ** 2)
    with h5py.File(tmp_path / "b.h5") as f:
        assert f["fields/values/roots"].shape == (40,)         # one a cell
    with h5py.File(tmp_path / "b.h5", "a") as f:
        f["fields/values/roots"][3] = 0
    with pytest.raises(StoreError, match="weights of 'values' are damaged"):
        rom.decompress(tmp_path / "b.h5")[...]


@pytest.mark.parametrize(("how", "said"), [
    ({"inner_product": np.ones(400), "norm": "max"}, "norm=\"max\""), ({"inner_product": -np.ones(400)}, "must be positive"),
    ({"inner_product": np.ones(7)}, "one weight a cell"), ({"missing": "gappy"}, "raise. or .keep.*gappy"),
    ({"missing": "keep", "relative_to": "total"}, "goes with relative_to=.fluctuation"),
    ({"center": "none"}, "compress takes no center="), ({"rank": 3}, "compress takes no rank=")])
def test_options_that_would_be_dropped_are_refused(how, said):
    with pytest.raises(InputError, match=said):
        rom.compress(far_and_near("f8")[0], tolerance=0.1, **how)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("how", [{}, {"norm": "max"}, {"inner_product": np.linspace(0.1, 3, 400).reshape(20, 20)}])
def test_what_is_missing_now_and_then_stays_missing(tmp_path, dtype, how):
    rng = np.random.default_rng(3)
    x = far_and_near(dtype)[0].reshape(60, 20, 20)
    x[rng.random(x.shape) < 0.07] = np.nan
    x[:, 3, 3] = np.nan
    for scale in (1, *([1e300] if dtype == "f8" and not how else [])):
        data = x * x.dtype.type(scale)
        with pytest.raises(InputError, match=r"missing=.keep"):
            rom.compress(data, tolerance=0.05, **how)
        archive = rom.compress(data, tmp_path / f"{scale}.h5", tolerance=0.05, missing="keep", **how)
        read = rom.decompress(tmp_path / f"{scale}.h5")
        np.testing.assert_array_equal(np.isnan(read[...]), np.isnan(data))
        np.testing.assert_array_equal(np.isnan(read[7:50:9, 2:5, 3:19:2]), np.isnan(data[7:50:9, 2:5, 3:19:2]))
        back, wide = read[...] / scale, x.astype("f8")
        off = back - wide
        size = wide - np.nansum(wide, axis=0) / np.maximum((~np.isnan(wide)).sum(0), 1)
        weights = how.get("inner_product", 1.0)
        true = (np.nanmax(np.abs(off)) / np.nanmax(np.abs(size)) if "norm" in how else
                np.sqrt(np.nansum(weights * off**2) / np.nansum(weights * size**2)))
        assert true <= archive.error * (1 + 1e-6) <= 0.05
        assert archive.ratio > 1
    whole = np.nan_to_num(x)
    assert rom.compress(whole, tolerance=0.05, missing="keep", **how).error == rom.compress(whole, tolerance=0.05, **how).error
