"""What people meet with flow data of their own: land, ids, ranks, rates, shells."""

import numpy as np
import pytest
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.cli import app
from ensemblekit.errors import EnsemblekitError, InputError

ROUTES = ("gram", "covariance", "tsqr", "randomized", "incremental")
RNG = np.random.default_rng(3)
LAND = RNG.random((6, 7)) < 0.3
OCEAN = RNG.normal(size=(50, 6, 7)) * 0.7 ** np.arange(7)
OCEAN[:, LAND] = np.nan
AREA = RNG.random((6, 7)) + 0.5


@pytest.mark.parametrize(("method", "mean"), [*((route, 0.0) for route in ROUTES), ("gram", 1e3), ("covariance", 1e3)])
def test_data_of_rank_two_has_two_modes(method, mean):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 12)) + mean * rng.normal(size=12)
        basis = rom.pod(x, rank=6, method=method, snapshot_axis=0)
        assert basis.rank == 2
        np.testing.assert_allclose(basis.modes @ basis.modes.T, np.eye(2), atol=1e-9)
    if method != "randomized":          # which asks for a rank there
        assert rom.pod(x, energy=1.0, method=method, snapshot_axis=0).rank == 2


@pytest.mark.parametrize("method", ROUTES)
def test_land_is_nan_in_the_modes_too(tmp_path, method):
    basis = rom.pod(OCEAN, rank=4, method=method)
    for one in (basis.modes, basis.mean[None], basis.reconstruct(slice(0, 3))):
        assert (np.isnan(one) == LAND).all()
    np.testing.assert_allclose(basis.project(OCEAN), basis.coefficients, atol=1e-9)
    basis.save(tmp_path / "b.h5")
    again = rom.Basis.load(tmp_path / "b.h5").truncate(2)
    assert (np.isnan(again.modes) == LAND).all()
    np.testing.assert_allclose(again.project(OCEAN[3]), basis.coefficients[3, :2], atol=1e-9)
    two = rom.pod({"a": OCEAN, "b": OCEAN[:, 0]}, rank=4, method=method) if method != "covariance" else None
    if two is not None:
        assert (np.isnan(two["a"].modes) == LAND).all()
        assert np.isfinite([two.truncate(2)[name].relative_error for name in "ab"]).all()
        np.testing.assert_allclose(two.project({"a": OCEAN, "b": OCEAN[:, 0]}), two.coefficients, atol=1e-9)
    filled = np.where(LAND, np.nan, OCEAN)
    filled[7, ~LAND] = np.where(np.arange((~LAND).sum()) == 3, np.nan, filled[7, ~LAND])
    assert (np.isnan(rom.pod(filled, rank=3, missing="gappy").modes) == LAND).all()


@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize("method", ROUTES)
def test_weights_of_land_may_be_nothing(method, value):
    want = rom.pod(OCEAN, rank=4, method=method, inner_product=AREA)
    basis = rom.pod(OCEAN, rank=4, method=method, inner_product=np.where(LAND, value, AREA))
    np.testing.assert_array_equal(basis.modes, want.modes)
    np.testing.assert_allclose(basis.project(OCEAN), basis.coefficients, atol=1e-9)
    np.testing.assert_array_equal(basis.truncate(2).singular_values, want.singular_values[:2])
    bad = np.where(LAND, value, AREA)
    bad[tuple(np.argwhere(~LAND)[4])] = value
    with pytest.raises(InputError, match="inner_product must be"):
        rom.pod(OCEAN, rank=4, method=method, inner_product=bad)
    with pytest.raises(InputError, match="must be positive"):
        rom.pod(OCEAN, rank=4, method=method, inner_product=np.where(LAND, -1.0, AREA))


def test_weights_of_land_may_be_nothing_in_a_stream(tmp_path):
    weights = np.where(LAND, np.nan, AREA)
    for stop in (5, 20, 50):
        with rom.IncrementalPOD(tmp_path / "s.h5", rank=3, inner_product=weights) as pod:
            pod.update(OCEAN[pod.n:stop])
    want = rom.IncrementalPOD(rank=3, inner_product=AREA).update(OCEAN).result()
    np.testing.assert_array_equal(pod.result().modes, want.modes)
    with pytest.raises(InputError, match="another inner product"):
        rom.IncrementalPOD(tmp_path / "s.h5", rank=3, inner_product=2 * weights)
    with pytest.raises(InputError, match="must be finite"):
        rom.IncrementalPOD(rank=3, inner_product=weights).update(np.nan_to_num(OCEAN)).result()


def test_a_rate_of_decay_is_that_of_the_whole_spectrum():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 24)))[0] for n in (60, 200))
    x = u * np.r_[0.9 ** np.arange(8), 0.9**7 * 0.5 ** np.arange(1, 17)] @ v.T
    rates = [rom.decay_rate(rom.pod(x, rank=k, center="none", method="tsqr")) for k in (3, 8, 20)]
    assert len({(one.rate, one.modes, one.kind) for one in rates}) == 1
    assert rates[0].modes == (1, 24)


def test_a_plain_list_of_numbers_is_no_set_of_snapshots():
    for x in (np.arange(1500.0), {"u": np.arange(1500.0)}):
        with pytest.raises(InputError, match=r"x\[:, None\]"):
            rom.pod(x)
    assert rom.pod(np.arange(15.0), snapshot_axis=0).n == 15


def test_ids_are_no_fields(tmp_path):
    fields = {"u": ek.Field((8,), "f8"), "GlobalNodeId": ek.Field((8,), "i8"), "cell_id": ek.Field((8,), "i4"),
              "levels": ek.Field((8,), "i4")}
    with ek.create(tmp_path / "x.h5", fields) as store:
        for _ in range(12):
            store.append({"u": RNG.normal(size=8), "GlobalNodeId": np.arange(8), "cell_id": np.arange(8),
                          "levels": RNG.integers(0, 9, 8)})
    for source in (ek.open(tmp_path / "x.h5"), rom.read(tmp_path / "x.h5")):
        assert list(rom.pod(source, rank=2).fields) == ["u", "levels"]
    assert list(rom.read(tmp_path / "x.h5", "GlobalNodeId").fields) == ["GlobalNodeId"]


def test_how_much_longer_is_not_told_from_a_run_of_few_independent_snapshots():
    slow = np.cumsum(RNG.normal(size=(400, 5)), axis=0)
    fast = RNG.normal(size=(400, 5))
    averages = rom.average(np.concatenate([slow, fast], axis=1), equilibration=None)
    factor = averages.run_length_factor("mean", 0.01)
    assert np.isnan(factor[:5]).all()
    assert np.isfinite(factor[5:]).all()


def test_the_shell_takes_meshes_weights_gaps_and_axes(tmp_path):
    x = np.where(LAND, 0, OCEAN)[:, 0].T.copy()         # (7, 50)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", AREA[0])
    holed = x.copy()
    holed[2, 5] = np.nan
    np.save(tmp_path / "holed.npy", holed)

    def shell(*words):
        done = CliRunner().invoke(app, ["rom", *map(str, words)])
        assert done.exception is None or isinstance(done.exception, SystemExit | EnsemblekitError), done.exception
        return done

    axis = ("--snapshot-axis", 1)
    want = rom.pod(x.T, rank=2, snapshot_axis=0, inner_product=AREA[0])
    assert shell("pod", tmp_path / "x.npy", "-k", 2, *axis, "--inner-product", tmp_path / "w.npy", "-o",
                 tmp_path / "b.h5").exit_code == 0
    np.testing.assert_allclose(rom.Basis.load(tmp_path / "b.h5").singular_values, want.singular_values)
    assert shell("pod", tmp_path / "x.npy", "-k", 2, *axis, "--inner-product", "none", "-o", tmp_path / "b.h5",
                 "--overwrite").exit_code == 0
    assert rom.Basis.load(tmp_path / "b.h5").n == 50
    assert shell("pod", tmp_path / "holed.npy", "-k", 2, *axis).exit_code
    assert shell("pod", tmp_path / "holed.npy", "-k", 2, *axis, "--missing", "gappy", "-o", tmp_path / "g.h5").exit_code == 0
    assert shell("pod", tmp_path / "x.npy", "-k", 2, "--inner-product", tmp_path / "no.npy").exit_code
    assert shell("average", tmp_path / "x.npy", *axis, "-o", tmp_path / "a.npz").exit_code == 0
    assert np.load(tmp_path / "a.npz")["x_mean"].shape == (7,)
    assert shell("compress", tmp_path / "x.npy", "--tolerance", 0.1, *axis, "-o", tmp_path / "a.h5").exit_code == 0
    assert rom.decompress(tmp_path / "a.h5").shape == (50, 7)
    done = shell("compress", tmp_path / "x.npy", "--tolerance", 0.1, *axis, "--inner-product", tmp_path / "w.npy", "-o",
                 tmp_path / "c.h5")
    assert done.exit_code == 0
    assert "weighted root mean square" in done.output
    assert shell("compress", tmp_path / "holed.npy", "--tolerance", 0.1, *axis, "-o", tmp_path / "d.h5").exit_code
    assert shell("compress", tmp_path / "holed.npy", "--tolerance", 0.1, *axis, "--missing", "keep", "-o",
                 tmp_path / "d.h5").exit_code == 0
    np.testing.assert_array_equal(np.isnan(rom.decompress(tmp_path / "d.h5")[...]), np.isnan(holed.T))
    assert shell("plan", tmp_path / "x.npy", "-k", 2, *axis).exit_code == 0
    assert shell("pod", tmp_path / "x.npy", "--follow", *axis).exit_code
    for command in ("pod", "average", "compress", "plan"):
        said = shell(command, "--help").output
        assert all(option in said for option in ("--mesh", "--region", "--snapshot-axis"))


def test_formats_that_only_look_like_others_are_refused_by_name(tmp_path):
    import h5py

    for name in ("wing.cas.h5", "wing.dat.h5", "renamed.h5"):
        with h5py.File(tmp_path / name, "w") as f:
            f["settings/Solver"] = np.arange(3)
            f["results/1/residuals/phase-1/iterations"] = np.arange(580.0)
        with pytest.raises(InputError, match="FLUENT"):
            rom.read(tmp_path / name)
    (tmp_path / "pipe0.fld01").write_bytes(b"old")
    with pytest.raises(InputError, match="former format"):
        rom.read(tmp_path / "pipe0.fld01")
