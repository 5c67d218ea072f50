"""POD of numbers of any size: in units of a power of two all singular values times it, everything relative the same bits."""

import math
import pickle
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError
from ensemblekit.rom.decompose.units import OutOfRange
from tests.test_rom_acceptance import Counted

POWERS = (-960, 530)
ROUTES = ("gram", "tsqr", "covariance", "randomized", "incremental")


def low_rank(seed, n=60, size=200, decay=0.5, offset=0.3):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 8)) * decay ** np.arange(8)) @ rng.normal(size=(8, size)) + 1e-3 * rng.normal(
        size=(n, size)) + offset


U, P = low_rank(0), low_rank(1, size=100, decay=0.6, offset=5.0)
SHARES = np.random.default_rng(2).random(200) + 0.1


C = U + 1j * U[::-1]
PLAIN = {"u": U, "complex": C, "float32": U.astype("f4"), "both": {"u": U, "p": P}}


@cache
def plain(name, rank, **how):
    """The answer for numbers of ordinary size, once for all powers."""
    return rom.pod(PLAIN[name], rank, **how)


def assert_scaled(basis, want, power):
    """`basis` is `want` for snapshots times 2**power, to the last bit."""
    for name in ("singular_values", "coefficients", "spectrum"):
        np.testing.assert_array_equal(_ldexp(getattr(want, name), power), getattr(basis, name), err_msg=name)
    for name in ("relative_errors", "energy_fraction", "error_per_snapshot", "mask", "times"):
        np.testing.assert_array_equal(getattr(want, name), getattr(basis, name), err_msg=name)
    assert basis.error_per_field == want.error_per_field
    assert (basis.rank, basis.method, basis.passes) == (want.rank, want.method, want.passes)
    assert 0 < basis.relative_error < 1


def _ldexp(x, power):
    return np.ldexp(x.real, power) + 1j * np.ldexp(x.imag, power) if np.iscomplexobj(x) else np.ldexp(x, power)


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("how", [{}, {"center": "none"}, {"center": "first"}], ids=str)
def test_singular_values_come_times_the_power_and_modes_are_the_same(method, power, how):
    for name in ("u", "complex"):
        x = PLAIN[name]
        basis, want = rom.pod(_ldexp(x, power), 3, method=method, **how), plain(name, 3, method=method, **how)
        assert_scaled(basis, want, power)
        np.testing.assert_array_equal(basis.modes, want.modes)
        np.testing.assert_allclose(_ldexp(basis.project(_ldexp(x[:2], power)), -power), want.project(x[:2]), rtol=1e-12)
        np.testing.assert_array_equal(_ldexp(basis.reconstruct(3), -power), want.reconstruct(3))
        assert basis.truncate(2).relative_error == want.truncate(2).relative_error


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("factor", [1e-290, 1e160])
def test_any_other_factor_is_as_good(method, factor):
    basis, want = rom.pod(U * factor, 3, method=method), plain("u", 3, method=method)
    np.testing.assert_allclose(basis.singular_values / factor, want.singular_values, rtol=1e-9)
    np.testing.assert_allclose(basis.modes, want.modes, atol=1e-7)
    assert basis.relative_error == pytest.approx(want.relative_error, rel=1e-7)
    assert basis.passes == want.passes


@pytest.mark.parametrize("rule", [{"energy": 0.99}, {"tolerance": 0.01}, {"rank": "gavish-donoho"}], ids=str)
@pytest.mark.parametrize("method", ["gram", "tsqr", "covariance"])
def test_every_rule_takes_as_many_modes(rule, method):
    want = rom.pod(U, method=method, **rule)
    for power in POWERS:
        assert_scaled(rom.pod(np.ldexp(U, power), method=method, **rule), want, power)


def test_an_absolute_tolerance_is_in_the_unit_of_the_field():
    for power in POWERS:
        assert_scaled(rom.pod(np.ldexp(U, power), absolute_tolerance=math.ldexp(3.0, power)),
                      rom.pod(U, absolute_tolerance=3.0), power)


@pytest.mark.parametrize("method", [m for m in ROUTES if m != "covariance"])
@pytest.mark.parametrize("scale", ["std", "max"])
@pytest.mark.parametrize("powers", [(960, 960), (-960, 530), (-560, 0), (0, 960)])
def test_fields_of_any_size_are_joined_by_their_fluctuations(method, scale, powers):
    basis = rom.pod({"u": np.ldexp(U, powers[0]), "p": np.ldexp(P, powers[1])}, 4, method=method, scale=scale)
    want = plain("both", 4, method=method, scale=scale)
    assert_scaled(basis, want, 0)
    for name, power in zip(("u", "p"), powers, strict=True):
        np.testing.assert_array_equal(basis[name].modes, np.ldexp(want[name].modes, power))
        assert basis.scale[name] == math.ldexp(want.scale[name], power)
    rows = {"u": np.ldexp(U, powers[0]), "p": np.ldexp(P, powers[1])}
    np.testing.assert_allclose(basis.project(rows), want.project({"u": U, "p": P}), rtol=1e-12)


def test_the_covariance_of_fields_of_any_size():
    for scale in ("std", "max"):
        want = rom.pod(ek.ArraySource.of({"u": U, "p": P}), 4, method="covariance", scale=scale)
        source = ek.ArraySource.of({"u": np.ldexp(U, 960), "p": np.ldexp(P, -960)})
        assert_scaled(rom.pod(source, 4, method="covariance", scale=scale), want, 0)


@pytest.mark.parametrize("method", ["gram", "tsqr"])
def test_the_error_of_a_field_next_to_nothing_beside_another_is_told_by_its_own_numbers(method):
    """Its energy is no part of the total, but modes that know it know it whatever its size."""
    together = {"u": U, "p": np.ldexp(U[:, :100], -700)}
    basis = rom.pod(together, 3, method=method, scale="none")
    want = rom.pod({"u": U, "p": np.ldexp(U[:, :100], -80)}, 3, method=method, scale="none")
    assert basis.error_per_field["p"] == pytest.approx(want.error_per_field["p"], rel=1e-6)
    assert basis.error_per_field["p"] > 1e-5
    np.testing.assert_allclose(np.ldexp(basis["p"].modes, 700), np.ldexp(want["p"].modes, 80), atol=1e-9)


def test_an_error_that_is_not_known_is_no_number():
    basis = rom.pod({"u": U, "p": np.ldexp(P, -700)}, 3, method="randomized", scale="none")
    assert math.isnan(basis.error_per_field["p"])
    assert 0 < basis.error_per_field["u"] < 1


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("power", [-664, 664])
def test_volumes_of_any_size(method, power):
    weighted = rom.pod(U, 3, method=method, inner_product=SHARES)
    assert_scaled(rom.pod(U, 3, method=method, inner_product=np.ldexp(SHARES, power)), weighted, power // 2)
    basis = rom.pod(np.ldexp(U, power // 2), 3, method=method, inner_product=np.ldexp(SHARES, -power))
    assert_scaled(basis, weighted, 0)
    np.testing.assert_allclose(basis.project(np.ldexp(U, power // 2)), weighted.project(U), rtol=1e-12)


def test_cells_of_a_nanometre_are_cells():
    """Roots of volumes count where rounding is judged."""
    basis = rom.pod(U, 3, inner_product=SHARES * 1e-36)
    assert basis.relative_error == pytest.approx(rom.pod(U, 3, inner_product=SHARES).relative_error, rel=1e-9)


@pytest.mark.parametrize("power", POWERS)
def test_a_mass_matrix_and_its_size(power):
    mass = scipy.sparse.diags_array([np.full(200, 2.0), np.full(199, 0.5), np.full(199, 0.5)], offsets=[0, 1, -1]).tocsr()
    want = rom.pod(U, 3, inner_product=mass)
    assert_scaled(rom.pod(np.ldexp(U, power), 3, inner_product=mass), want, power)
    half = power // 4 * 2
    assert_scaled(rom.pod(U, 3, inner_product=mass * 2.0**half), want, half // 2)


@pytest.mark.parametrize("power", [-100, 120])
@pytest.mark.parametrize("method", ROUTES)
def test_float32_to_its_ends(power, method):
    assert_scaled(rom.pod(np.ldexp(PLAIN["float32"], power), 3, method=method), plain("float32", 3, method=method), power)


@pytest.mark.parametrize("power", POWERS)
def test_gaps(power):
    x = U.copy()
    x[:, 5] = np.nan
    for method in ("auto", "incremental"):
        assert_scaled(rom.pod(np.ldexp(x, power), 3, method=method), rom.pod(x, 3, method=method), power)
    x[3, 7] = x[10, 9] = np.nan
    assert_scaled(rom.pod(np.ldexp(x, power), 3, missing="gappy"), rom.pod(x, 3, missing="gappy"), power)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("x", [np.ldexp(U, 960), U + 1j * U[::-1]], ids=["large", "complex"])
@pytest.mark.parametrize("method", ["auto", *ROUTES])
def test_what_is_no_number_is_still_refused(x, bad, method):
    x = x.copy()
    x[7, 5] = bad
    with pytest.raises(InputError, match=r"NaN|infinity"):
        rom.pod(x, 3, method=method)


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("power", [-500, 900])
def test_a_start_at_rest_and_a_quiet_corner(method, power):
    """The first snapshots, or the first cells, ask for another unit than what comes later."""
    x = np.r_[np.zeros((8, 200)), U * 1e-66, U]
    x[:, :30] *= 1e-66
    basis, want = rom.pod(np.ldexp(x, power), 3, method=method), rom.pod(x, 3, method=method)
    if method != "tsqr":
        assert_scaled(basis, want, power)
        return
    # LAPACK's QR of snapshots that are multiples of each other does not give the same bits for 2 A and A either
    np.testing.assert_allclose(np.ldexp(basis.singular_values, -power), want.singular_values, rtol=1e-13)
    assert basis.relative_error == pytest.approx(want.relative_error, rel=1e-12)


def test_what_grows_while_it_is_taken_in():
    x = np.r_[U * 1e-100, U * 1e-30, U, U * 1e40]

    def grown(power):
        pod, state = rom.IncrementalPOD(None, 3, center="none"), None
        for a, b in pairwise((0, 25, 26, 150, 240)):
            pod = pod if state is None else pod.restored(state)
            assert pod.n == a
            state = pod.update(np.ldexp(x[a:b], power)).state()
        return pod.result()
    want = grown(0)
    for power in (-560, 500, 800):
        basis = grown(power)
        np.testing.assert_array_equal(np.ldexp(want.singular_values, power), basis.singular_values)
        assert basis.relative_error == want.relative_error


@pytest.mark.parametrize("power", POWERS)
def test_a_stream_that_is_taken_up_again(tmp_path, power):
    def fed(x, path, stops):
        for stop in stops:
            pod = rom.IncrementalPOD(path, 3)
            pod.update(x[pod.n:stop])
            pod.save()
        return rom.IncrementalPOD(path, 3).result()
    want = fed(U, tmp_path / "u.h5", (25, 60))
    assert_scaled(fed(np.ldexp(U, power), tmp_path / "v.h5", (25, 60)), want, power)
    assert_scaled(rom.IncrementalPOD(None, 3).update(np.ldexp(U, power)).result(), want, power)


def test_fields_of_a_stream():
    want = rom.IncrementalPOD(None, 3).update({"u": U, "p": P}).result()
    basis = rom.IncrementalPOD(None, 3).update({"u": np.ldexp(U, 900), "p": np.ldexp(P, -900)}).result()
    np.testing.assert_array_equal(basis.singular_values, want.singular_values)
    assert basis.relative_error == want.relative_error


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("scale", ["std", "max"])
def test_in_order_of_time(power, scale):
    x, y = low_rank(3, n=900, size=300), low_rank(4, n=900, size=100)

    def of(a, b):
        counted = Counted(ek.ArraySource.of({"u": a, "p": b}), "rows")
        return rom.pod(counted, 4, method="randomized", scale=scale, memory_limit="16MiB", engine=ek.Serial())
    assert_scaled(of(np.ldexp(x, power), np.ldexp(y, -power)), of(x, y), 0)


def test_a_unit_is_asked_for_from_another_process():
    misfit = pickle.loads(pickle.dumps(OutOfRange(530, "u", 0.25)))
    assert (misfit.power, misfit.field, misfit.share) == (530, "u", 0.25)


@pytest.mark.parametrize("engine", [ek.Serial(), ek.Threads(2)], ids=str)
def test_from_a_store_larger_than_the_limit(tmp_path, engine):
    x = low_rank(5, n=120, size=16_000)
    basis = {}
    for power in (0, 930):
        with ek.create(tmp_path / f"{power}.h5", {"u": ek.Field((16_000,))}) as store:
            store.extend({"u": np.ldexp(x, power)}, times=np.arange(120.0))
        u = ek.open(tmp_path / f"{power}.h5")["u"]
        basis[power] = rom.pod(u, 4, memory_limit="12MiB", engine=engine)
    assert_scaled(basis[930], basis[0], 930)


def test_it_costs_no_read(tmp_path):
    x = low_rank(6, n=120, size=40_000)
    for method in ("gram", "tsqr", "randomized"):
        read = []
        for power in (0, 960):
            counted = Counted(ek.ArraySource.of(np.ldexp(x, power)), "tiles")
            passes = rom.pod(counted, 4, method=method, memory_limit="64MiB", engine=ek.Serial()).passes
            read.append((counted.bytes / x.nbytes, passes))
        assert read[1][1] == read[0][1]
        assert read[1][0] < read[0][0] + 0.6        # tiles of 16 MiB of 37


def test_a_basis_keeps_what_no_number_holds(tmp_path):
    basis = rom.pod(U * 1e160, 4)
    assert basis.total_energy == math.inf
    again = rom.Basis.load(basis.save(tmp_path / "u.basis.h5"))
    assert_scaled(again, basis, 0)
    assert str(again) == str(rom.pod(U, 4))
    value = basis.energy_intervals(n_resamples=50).value
    np.testing.assert_allclose(value, rom.pod(U, 4).energy_intervals(n_resamples=50).value, rtol=1e-9)


def test_singular_values_beyond_a_float64_are_refused():
    with pytest.raises(InputError, match="in another unit"):
        rom.pod(U * 1e290, 3, inner_product=np.full(200, 1e200))
    with pytest.raises(InputError, match="in another unit"):
        rom.pod(U * 1e-290, 3, inner_product=np.full(200, 1e-200))


@pytest.mark.parametrize("power", [-960, 500, 960])
@pytest.mark.parametrize("method", ["auto", "gram", "covariance", "incremental"])
def test_statistical_weights_of_any_size(power, method):
    rng = np.random.default_rng(5)
    u, w = rng.normal(size=(200, 6)), rng.uniform(0.5, 1.5, 200)
    plain, scaled = (rom.pod(ek.ArraySource.of(u, weights=weights), 3, method=method, snapshot_axis=0)
                     for weights in (w, np.ldexp(w, power)))
    np.testing.assert_allclose(scaled.singular_values, plain.singular_values, rtol=1e-13)
    np.testing.assert_allclose(np.abs(scaled.modes), np.abs(plain.modes), atol=1e-12)


@pytest.mark.parametrize("power", [-960, 500, 960])
def test_weights_of_any_size_beside_gaps(power):
    rng = np.random.default_rng(6)
    u, w = rng.normal(size=(200, 6)), rng.uniform(0.5, 1.5, 200)
    u[5, 2] = np.nan
    plain, scaled = (rom.average(u, ["mean", "rms"], weights=weights, missing="drop", equilibration=None)
                     for weights in (w, np.ldexp(w, power)))
    for name in plain:
        np.testing.assert_allclose(scaled[name].stderr, plain[name].stderr, rtol=1e-12)
