"""Errors that are told are never less than the true ones, also where those are rounding."""

import numpy as np
import pytest

from ensemblekit import rom

ROUTES = ("gram", "covariance", "tsqr", "randomized", "incremental")
ROUNDING = 1 + 1e-5


def falling(n=60, size=200, seed=0):
    """Snapshots with singular values 1, 0.1, 0.01, ... down to 1e-19."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(m, 20)))[0] for m in (n, size))
    return u * 10.0 ** -np.arange(20) @ v.T


def errors(basis, x):
    """(of all, of each snapshot over the root mean square) from the snapshots themselves."""
    off = np.linalg.norm(x - basis.reconstruct(), axis=1)
    size = np.linalg.norm(x - basis.mean)
    return np.linalg.norm(off) / size, off / size * np.sqrt(len(x))


def assert_certified(basis, x):
    for k in range(1, basis.rank + 1):
        few = basis.truncate(k)
        true, each = errors(few, x)
        assert true <= few.relative_error * ROUNDING
        assert few.relative_error <= 1.01 * true + 10 * max(few.floor, 1e-7 if few.modes.dtype == np.float32 else 2e-8)
        assert few.relative_error == pytest.approx(basis.relative_errors[k - 1], rel=1e-12)
        if few.error_per_snapshot is not None:
            assert (each <= few.error_per_snapshot * ROUNDING).all()
        assert list(few.error_per_field.values()) in ([few.relative_error], [])
    assert basis.relative_error >= basis.floor > 0


@pytest.mark.filterwarnings("ignore:the cut after mode")
@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("method", ROUTES)
def test_an_error_is_never_below_the_floor_of_its_route(tmp_path, method, dtype):
    x = falling().astype(dtype)
    for how in ({"rank": 8}, {"rank": 12}, {"tolerance": 1e-6}):
        basis = rom.pod(x, method=method, center="none", **how)
        assert_certified(basis, x.astype("f8"))
    basis.save(tmp_path / "b.h5")
    again = rom.Basis.load(tmp_path / "b.h5")
    np.testing.assert_array_equal(again.relative_errors, basis.relative_errors)
    assert again.truncate(3).relative_error == basis.truncate(3).relative_error


@pytest.mark.filterwarnings("ignore:the cut after mode")
@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_a_stream_certifies_its_error(dtype):
    """It told 0.0 where 1e-8 is true."""
    for x, settings in ((falling(), {"rank": 8}), (falling(), {"rank": 8, "keep": 9}), (falling(), {"rank": 20, "block": 5}),
                        (falling(600, 100), {"rank": 10, "block": 4}), (falling(), {"energy": 1.0})):
        basis = rom.IncrementalPOD(center="none", **settings).update(x.astype(dtype)).result()
        assert_certified(basis, x.astype(dtype).astype("f8"))


@pytest.mark.filterwarnings("ignore:the cut after mode")
@pytest.mark.parametrize("method", [route for route in (*ROUTES, "stream") if route != "covariance"])
def test_every_field_is_certified_on_its_own(method):
    x = {"u": falling(), "p": 1e-3 * falling(seed=1) + falling(seed=2)[:, ::-1] * 1e-5}
    scale = {"u": 1.0, "p": 1.0}
    for rank in (3, 12):
        if method == "stream":
            basis = rom.IncrementalPOD(rank=rank, center="none", scale=scale).update(x).result()
        else:
            basis = rom.pod(x, rank=rank, method=method, center="none", scale=scale)
        for few in (basis, basis.truncate(2)):
            rebuilt = few.reconstruct()
            for name, values in x.items():
                true = np.linalg.norm(values - rebuilt[name]) / np.linalg.norm(values)
                assert true <= few[name].relative_error * ROUNDING


@pytest.mark.filterwarnings("ignore:the cut after mode")
@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_the_data_themselves_is_in_the_error(seed):
    """Numbers of 32 bits that were of low rank in 64: what is left beside the modes is a few roundings of the whole."""
    x = falling(40, 300, seed).astype("f4")
    assert_certified(rom.pod(x, 8, method="randomized", center="none"), x.astype("f8"))
