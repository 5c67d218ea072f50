import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError


def snapshots(n=24, shape=(9, 7), seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    k = min(n, int(np.prod(shape)))
    left = np.linalg.qr(rng.normal(size=(n, k)))[0]
    right = np.linalg.qr(rng.normal(size=(int(np.prod(shape)), k)))[0]
    return ((left * 0.7 ** np.arange(k)) @ right.T).reshape(n, *shape) + offset


@pytest.mark.parametrize("center", ["mean", "none"])
def test_pod_is_numpys_svd(center):
    x = snapshots(offset=0.3)
    flat = x.reshape(len(x), -1)
    mean = flat.mean(0) if center == "mean" else 0
    u, s, vt = np.linalg.svd(flat - mean, full_matrices=False)
    basis = rom.pod(x, rank=6, center=center)
    np.testing.assert_allclose(basis.singular_values, s[:6], rtol=1e-10)
    np.testing.assert_allclose(basis.energy_fraction, s[:6] ** 2 / (s**2).sum(), rtol=1e-10)
    modes = basis.modes.reshape(6, -1)
    np.testing.assert_allclose(modes @ modes.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(modes * vt[:6], axis=1)), 1, rtol=1e-9)
    np.testing.assert_allclose(basis.coefficients @ modes, (u[:, :6] * s[:6]) @ vt[:6], atol=1e-10)
    np.testing.assert_allclose(basis.relative_error, np.sqrt((s[6:] ** 2).sum() / (s**2).sum()), rtol=1e-9)
    np.testing.assert_allclose(basis.mean.ravel(), np.broadcast_to(mean, flat.shape[1]), atol=1e-14)
    assert (modes[np.arange(6), np.abs(modes).argmax(1)] > 0).all()


def test_error_reported_is_the_error_made():
    x = snapshots().astype("f4")
    for k in (1, 3, 8):
        basis = rom.pod(x, rank=k)
        fluctuation = x - x.mean(0, dtype="f8")
        error = np.linalg.norm(basis.reconstruct() - x) / np.linalg.norm(fluctuation)
        np.testing.assert_allclose(basis.relative_error, error, rtol=1e-5)


def test_project_reconstruct_truncate():
    x = snapshots()
    basis = rom.pod(x, tolerance=1e-6)
    np.testing.assert_allclose(basis.project(x), basis.coefficients, atol=1e-12)
    np.testing.assert_allclose(basis.project(x[3]), basis.coefficients[3], atol=1e-12)
    np.testing.assert_allclose(basis.reconstruct(2), x[2], atol=1e-5)
    np.testing.assert_allclose(basis.reconstruct(slice(1, 4)), x[1:4], atol=1e-5)
    small = basis.truncate(2)
    np.testing.assert_array_equal(small.cumulative_energy, basis.cumulative_energy[:2])
    assert small.relative_error == basis.relative_errors[1]
    with pytest.raises(InputError, match="shape"):
        basis.project(x[:, :3])


@given(st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_energy_rule_takes_the_fewest_modes_that_do(energy):
    basis = rom.pod(snapshots(), energy=energy)
    assert basis.cumulative_energy[-1] >= energy - 1e-12
    assert basis.rank == 1 or basis.cumulative_energy[-2] < energy


def test_a_large_mean_costs_nothing():
    x = snapshots()
    there, here = rom.pod(x + 1e5, rank=5), rom.pod(x, rank=5)
    np.testing.assert_allclose(there.singular_values, here.singular_values, rtol=1e-8)
    np.testing.assert_allclose(np.abs(there.modes), np.abs(here.modes), atol=1e-8)


def test_slabs_do_not_matter():
    x = snapshots(n=12, shape=(40, 33))
    source = ek.ArraySource.of(x, times=np.arange(12.0))
    basis = rom.pod(source, rank=4)
    np.testing.assert_array_equal(basis.times, np.arange(12.0))
    again = rom.pod(source, rank=4, engine=ek.Serial())
    np.testing.assert_array_equal(basis.modes, again.modes)


@pytest.mark.parametrize(("source", "how", "message"), [
    (np.zeros((4, 3)), {}, "same"),
    (np.ones((1, 3)), {}, "at least 2"),
    (snapshots(), {"rank": 25}, "rank is 1 to"),
    (snapshots(), {"rank": 2, "energy": 0.5}, "one of rank"),
    (snapshots(), {"energy": 1.5}, "share"),
    (np.full((3, 4), np.nan), {}, "NaN"),
    ({"u": np.ones((3, 2)), "v": np.ones((3, 2))}, {}, "same"),
])
def test_what_cannot_be_decomposed(source, how, message):
    with pytest.raises(InputError, match=message):
        rom.pod(source, **how)


def test_a_stored_field_gives_what_the_array_gives(tmp_path):
    x = snapshots(n=16, shape=(30, 20, 2)).astype("f4")
    with ek.create(tmp_path / "u.h5", {"u": ek.Field(x.shape[1:], x.dtype, unit="m s-1")}) as store:
        store.extend({"u": x}, times=np.arange(16) / 4)
    stored, direct = rom.pod(ek.open(tmp_path / "u.h5")["u"], rank=5), rom.pod(x, rank=5)
    np.testing.assert_allclose(stored.modes, direct.modes, atol=1e-10)
    np.testing.assert_array_equal(stored.times, np.arange(16) / 4)
    assert stored.unit == "m s-1"


def test_a_basis_is_kept_in_one_file(tmp_path):
    basis = rom.pod(snapshots(), rank=4)
    again = rom.Basis.load(basis.save(tmp_path / "u.basis.h5"))
    for name in ("modes", "singular_values", "coefficients", "mean", "error_per_snapshot", "spectrum"):
        np.testing.assert_array_equal(getattr(again, name), getattr(basis, name))
    assert (again.fields, again.total_energy, str(again)) == (basis.fields, basis.total_energy, str(basis))
    with pytest.raises(ek.errors.StoreError, match="holds no basis"):
        rom.Basis.load(_store(tmp_path))


def _store(tmp_path):
    with ek.create(tmp_path / "x.h5", {"u": ek.Field((2,))}) as store:
        store.append({"u": [1, 2]})
    return tmp_path / "x.h5"


def energies(x):
    """Squares of the singular values of the fluctuations, largest first, from their inner products."""
    centered = x.astype("f8") - x.mean(0, dtype="f8")
    return np.linalg.eigvalsh(centered @ centered.T)[::-1]


def optimum(x, rank):
    values = energies(x)
    return np.sqrt(values[rank:].sum() / values.sum())


def decaying(n=400, size=40_000, power=1.5, seed=0):
    rng = np.random.default_rng(seed)
    k = n // 4
    left = np.linalg.qr(rng.standard_normal((n, k)))[0] * np.arange(1, k + 1.0) ** -power
    return (left @ rng.standard_normal((k, size))).astype("f4")


@pytest.mark.parametrize("power", [1, 2])
def test_one_read_is_enough_where_the_residuals_say_so(power):
    x = decaying(power=power) + np.float32(10)
    basis = rom.pod(x, rank=12)
    assert (basis.method, basis.passes) == ("randomized", 1)
    assert basis.relative_error == pytest.approx(optimum(x, 12), rel=1e-3)
    rebuilt = basis.reconstruct()
    error = np.linalg.norm(x - rebuilt.astype("f8")) / np.linalg.norm(x - x.mean(0, dtype="f8"))
    assert basis.relative_error == pytest.approx(error, rel=1e-4)
    np.testing.assert_allclose(basis.mean, x.mean(0, dtype="f8"), rtol=1e-6)


def test_what_the_sample_of_columns_misses_is_read_for_once_more():
    x = decaying()
    spot = np.random.default_rng(5).standard_normal((400, 1)).astype("f4")
    x[:, 20_001:20_003] += 300 * spot            # two cells of 40 000, and most of the energy
    basis = rom.pod(x, rank=12)
    assert basis.method == "randomized"
    assert basis.passes > 1
    assert basis.relative_error == pytest.approx(optimum(x, 12), rel=1e-3)


def test_an_odd_first_snapshot_and_a_drift_leave_the_energies_right():
    x = decaying(power=2)
    x[0] += 1000
    x += np.linspace(0, 500, 400, dtype="f4")[:, None]
    basis = rom.pod(x, rank=12)
    want = np.linalg.norm(x.astype("f8") - x.mean(0, dtype="f8"))
    assert np.sqrt(basis.total_energy) == pytest.approx(want, rel=1e-6)
    assert basis.singular_values[0] == pytest.approx(np.sqrt(energies(x)[0]), rel=1e-6)


@pytest.mark.parametrize("turn", [1, 1j])
@pytest.mark.parametrize("how", [{}, {"scale": "max"}, {"scale": "none"},
                                 {"inner_product": {"u": np.array([0.3, 1.0, 2.0, 0.1, 0.7, 1.5])}}], ids=str)
def test_many_snapshots_of_a_few_numbers_of_several_fields(how, turn):
    """The covariance of the numbers is the smaller matrix by far, and gives what the inner products of snapshots give."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(300, 6, 2)) * np.arange(1, 7)[:, None] + 3
    u = u if turn == 1 else u + turn * u[::-1]
    p = 1e3 * rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    source = ek.ArraySource.of({"u": u, "p": p}, weights=rng.random(300) + 0.1)
    basis, other = (rom.pod(source, rank=4, method=method, **how) for method in ("covariance", "gram"))
    assert rom.pod(source, rank=4, **how).method == "covariance"
    np.testing.assert_allclose(basis.singular_values, other.singular_values, rtol=1e-12)
    np.testing.assert_allclose(basis.modes, other.modes, atol=1e-9)
    np.testing.assert_allclose(basis.coefficients, other.coefficients, atol=1e-10 * np.abs(other.coefficients).max())
    assert basis.error_per_field == pytest.approx(dict(other.error_per_field), rel=1e-9)
    assert dict(basis.scale) == pytest.approx(dict(other.scale))
    assert basis.passes == rom.plan(source, rank=4, **how).passes


def test_weights_of_snapshots_leave_the_mesh_of_a_store_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    mesh = rom.Mesh.of(rng.random((40, 2)), np.array([[k, k + 1, k + 2] for k in range(38)]))
    np.savez(tmp_path / "x.npz", U=rng.normal(size=(30, 40, 2)))
    store = rom.ingest(rom.read(tmp_path / "x.npz", mesh=mesh), tmp_path / "x.vtkhdf")
    (name,) = store.fields
    want = rom.pod(store[name], rank=4)
    assert want.inner_product is not None
    weighted = rom.pod(store[name], rank=4, weights=np.ones(30))
    np.testing.assert_array_equal(weighted.inner_product, want.inner_product)
    np.testing.assert_allclose(weighted.singular_values, want.singular_values, rtol=1e-12)
    assert weighted.mesh is not None


def test_a_stream_takes_the_volumes_of_the_mesh_where_told(tmp_path):
    rng = np.random.default_rng(0)
    mesh = rom.Mesh.of(rng.random((40, 2)), np.array([[k, k + 1, k + 2] for k in range(38)]))
    values = rng.normal(size=(30, 40, 2))
    np.savez(tmp_path / "x.npz", U=values)
    source = rom.read(tmp_path / "x.npz", mesh=mesh)
    store = rom.ingest(source, tmp_path / "x.vtkhdf")
    name = next(iter(store.fields))
    stream = rom.IncrementalPOD(tmp_path / "state.h5", rank=4, keep=29).use_mesh_weights(store, [name])
    stream.catch_up(store[name])
    basis, want = stream.result(), rom.pod(source, rank=4, method="gram")
    np.testing.assert_allclose(basis.singular_values, want.singular_values, rtol=1e-9)
    stream.save()
    again = rom.IncrementalPOD(tmp_path / "state.h5", rank=4, keep=29).use_mesh_weights(store, [name])
    np.testing.assert_array_equal(again.result().modes, basis.modes)
    plain = rom.IncrementalPOD(rank=4, keep=29).update(values).result()
    assert abs(plain.singular_values / basis.singular_values - 1).max() > 0.1


def test_the_randomized_route_keeps_to_rules_that_do_not_count():
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(200, 5)) @ rng.normal(size=(5, 1000)) + rng.normal(size=(200, 1000))
    for how in ({"energy": 0.5}, {"tolerance": 0.5}, {"absolute_tolerance": 1200.0}):
        basis, want = (rom.pod(x, method=method, **how) for method in ("randomized", "gram"))
        assert basis.rank == want.rank <= 5
        assert basis.relative_error == pytest.approx(want.relative_error, rel=1e-9)
    with pytest.raises(InputError, match="leading ones"):
        rom.pod(x, "gavish-donoho", method="randomized")
    with pytest.raises(InputError, match="found leave an error of"):
        rom.pod(x, tolerance=0.01, method="randomized")
