import tracemalloc

import numpy as np
import pytest
from scipy.signal import lfilter

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, StatisticsError, UnknownFieldError
from ensemblekit.rom.products import Products
from ensemblekit.rom.rank import as_bytes
from ensemblekit.rom.stretches import Stretches, Target

PHI = 0.9
MIX = np.array([[1.0, 0.0], [0.6, 0.8]])         # covariance of the two components: 1, 0.6, 1
MEAN = np.array([5.0, -2.0])


def flow(n=4096, cells=300, seed=0, mix=MIX, mean=MEAN):
    """A velocity (n, cells, components) that forgets itself with PHI a snapshot, its covariance known."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n + 200, cells, len(mix)))
    return mean + lfilter([np.sqrt(1 - PHI**2)], [1, -PHI], noise, axis=0)[200:] @ mix.T


def kept_share(u, mean):
    """What the scatter of the mean leaves of a variance about it, 1 - 1/n_eff: (cells, components)."""
    squared = mean.stderr**2
    return 1 - np.clip(squared / (u.var(axis=0, ddof=1) + squared), 1 / len(u), 0.5)


def test_values_are_those_of_numpy():
    u = flow(n=1000, cells=7)
    averages = rom.average(u, ["mean", "rms", "reynolds_stress", "tke"], equilibration=None)
    a = u - u.mean(0)
    np.testing.assert_allclose(averages["mean"].mean, u.mean(0), rtol=1e-12)
    kept = kept_share(u, averages["mean"])
    np.testing.assert_allclose(averages["rms"].mean, u.std(0) / np.sqrt(kept), rtol=1e-11)
    stress = np.stack([(a[..., 0] ** 2).mean(0), (a[..., 1] ** 2).mean(0), (a[..., 0] * a[..., 1]).mean(0)], -1)
    stress /= np.concatenate([kept, np.sqrt(kept.prod(axis=-1, keepdims=True))], axis=-1)
    np.testing.assert_allclose(averages["reynolds_stress"].mean, stress, rtol=1e-11)
    np.testing.assert_allclose(averages["tke"].mean, 0.5 * (stress[:, 0] + stress[:, 1]), rtol=1e-11)
    assert averages["values_tke"] is averages["tke"]
    assert list(averages) == ["values_mean", "values_rms", "values_reynolds_stress", "values_tke"]


def test_intervals_hold_the_truth_as_often_as_they_say():
    averages = rom.average(flow(), ["mean", "rms", "reynolds_stress", "tke"], equilibration=None)
    truth = {"mean": MEAN, "rms": 1.0, "reynolds_stress": [1.0, 1.0, 0.6], "tke": 1.0}
    for name, true in truth.items():
        one = averages[name]
        inside = (np.asarray(one.low) <= true) & (true <= np.asarray(one.high))
        assert 0.90 <= inside.mean() <= 0.985, name
        assert one.converged
    # independent snapshots: (1 - φ) / (1 + φ) for the mean, with φ² for products
    assert np.median(averages["mean"].n_eff) == pytest.approx(4096 * 0.1 / 1.9, rel=0.15)
    assert np.median(averages["tke"].n_eff) == pytest.approx(4096 * (1 - 0.81) / 1.81, rel=0.2)


@pytest.mark.parametrize(("n", "vouched"), [(1000, (0, 0.3)), (2000, (0.1, 0.9)), (4000, (0.65, 1.0))])
def test_second_moments_have_no_bias_and_cover(n, vouched):
    """Correlated over 100 snapshots: 10, 20 and 40 independent ones. 200 cells; one sigma of coverage is 1.7 points."""
    phi = np.exp(-1 / 50)
    noise = np.random.default_rng(n).standard_normal((n + 500, 200, 3))
    u = lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise, axis=0)[500:]
    averages = rom.average(u, ["rms", "tke"], equilibration=None)
    assert averages["tke"].mean.mean() == pytest.approx(1.5, abs=0.06)
    ready = np.array([rom.average(u[:, k:k + 1], ["tke"], equilibration=None)["tke"].converged for k in range(40)])
    assert vouched[0] <= ready.mean() <= vouched[1]
    if n >= 2000:
        for name, true in (("rms", 1.0), ("tke", 1.5)):
            one = averages[name]
            assert 0.89 <= np.mean((one.low <= true) & (true <= one.high)) <= 0.99
    else:
        assert "fewer than 20" in averages["tke"].verdict


def test_errors_of_means_are_those_of_the_core():
    u = flow(cells=200)
    ours = rom.average(u, equilibration=None)["mean"]
    core = ek.average(u, equilibration=None)
    np.testing.assert_allclose(ours.mean, core.mean, rtol=1e-12)
    assert np.median(ours.stderr / core.stderr) == pytest.approx(1.0, abs=0.05)


def test_three_components_in_the_order_of_vtk():
    mix = np.array([[1.0, 0, 0], [0.5, 1, 0], [0, 0.3, 2]])
    u = flow(n=3000, cells=5, mix=mix, mean=np.zeros(3))
    averages = rom.average(u, ["mean", "reynolds_stress"], equilibration=None)
    kept = np.sqrt(kept_share(u, averages["mean"]))
    averages = averages["reynolds_stress"]
    c = np.array([np.cov(u[:, k].T, bias=True) for k in range(5)]) / (kept[:, :, None] * kept[:, None, :])
    np.testing.assert_allclose(averages.mean, np.stack([c[:, 0, 0], c[:, 1, 1], c[:, 2, 2], c[:, 0, 1], c[:, 1, 2], c[:, 0, 2]],
                                                       -1), rtol=1e-10)


def test_a_store_in_any_engine_and_the_names_for_export(tmp_path):
    u = flow(n=512, cells=24).astype("f4").reshape(512, 4, 6, 2)
    with ek.create(tmp_path / "run.h5", {"U": ek.Field((4, 6, 2), "f4", "m s-1"), "p": ek.Field((4, 6), "f4", "Pa")}) as store:
        for k in range(512):
            store.append({"U": u[k], "p": u[k, ..., 0] ** 2}, time=0.1 * k)
    store = ek.open(tmp_path / "run.h5")
    averages = rom.average(store, ["mean", "tke"], engine=ek.Serial())
    again = rom.average(store, ["mean", "tke"], engine=ek.Threads(3))
    assert set(averages) == {"U_mean", "U_tke", "p_mean"}
    arrays, more = averages.arrays(), again.arrays()
    assert set(arrays) >= {"U_mean", "U_mean_ci95", "U_mean_n_eff", "p_mean_ci95", "U_tke_ci95"}
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, more[name])
    assert arrays["U_mean_ci95"].shape == (4, 6, 2)
    assert averages["U_tke"].unit == "m2 s-2"
    assert averages["U_mean"].correlation_time.mean() == pytest.approx(0.1 * 19 / 2, rel=0.5)
    assert averages["U_tke"].mean.shape == (4, 6)
    np.testing.assert_allclose(averages["p_mean"].mean, (u[..., 0] ** 2).mean(0), rtol=1e-5)
    with np.load(averages.save(tmp_path / "mean.npz")) as held:
        np.testing.assert_array_equal(held["U_mean"], arrays["U_mean"])


def test_components_in_fields_of_their_own():
    u = flow(n=600, cells=9)
    source = ek.ArraySource.of({"u": u[..., 0], "v": u[..., 1], "T": u[..., 0]})
    averages = rom.average(source, ["mean", "reynolds_stress"], velocity=("u", "v"), equilibration=None)
    plain = rom.average(u, ["mean", "reynolds_stress"], equilibration=None)
    np.testing.assert_array_equal(averages["U_reynolds_stress"].mean, plain["reynolds_stress"].mean)
    assert set(averages) == {"U_mean", "U_reynolds_stress", "T_mean"}
    with pytest.raises(InputError, match="velocity="):
        rom.average(source, "tke")


def test_weights_count_snapshots():
    u = flow(n=2000, cells=4)
    w = np.zeros(2000)
    w[:1200] = 3.0
    averages = rom.average(ek.ArraySource.of(u, weights=w), ["mean", "rms"], equilibration=None)
    np.testing.assert_allclose(averages["mean"].mean, u[:1200].mean(0), rtol=1e-12)
    np.testing.assert_allclose(averages["rms"].mean, u[:1200].std(0), rtol=0.05)
    some = rom.average(u[:1200], ["mean", "rms"], equilibration=None)
    np.testing.assert_allclose(averages["mean"].stderr, some["mean"].stderr, rtol=0.5)


def test_a_large_mean_costs_no_digits():
    u = flow(n=800, cells=6)
    far = rom.average(u + 1e7, ["tke"], equilibration=None)["tke"]
    near = rom.average(u, ["tke"], equilibration=None)["tke"]
    np.testing.assert_allclose(far.mean, near.mean, rtol=1e-6)
    np.testing.assert_allclose(far.stderr, near.stderr, rtol=1e-5)


def test_the_start_up_is_left_out():
    u = flow(n=4096, cells=50)
    u[:400] += 6 * np.exp(-np.arange(400) / 80)[:, None, None]
    estimate = rom.average(u, ["mean"])["mean"]
    assert 100 < estimate.n_discarded < 1500
    assert np.abs(estimate.mean - MEAN).max() < 0.6


def test_a_wall_and_a_hole_are_said_to_be_so():
    u = flow(n=256, cells=4)
    u[:, 0] = 0
    u[7, 1] = np.nan
    averages = rom.average(u, ["mean", "tke", "rms"], equilibration=None)
    assert (averages["mean"].stderr[0] == 0).all()
    assert np.isnan(averages["mean"].n_eff[0]).all()
    assert averages["tke"].mean[0] == 0
    assert np.isnan(averages["mean"].mean[1]).all()
    assert not averages["mean"].converged
    assert "not finite" in averages["mean"].verdict
    assert np.isfinite(averages["tke"].mean[2:]).all()


def test_how_much_longer_to_run():
    averages = rom.average(flow(n=2048, cells=64), equilibration=None)
    factor = averages.run_length_factor("mean", target=0.05)
    half = (averages["mean"].high - averages["mean"].low) / 2
    np.testing.assert_allclose(factor, (half / 0.05) ** 2)
    assert averages.run_length_factor("values_mean").shape == (64, 2)


@pytest.mark.parametrize(("what", "options", "error"), [
    (np.zeros((10, 3, 2), complex), {}, InputError), (np.zeros((3, 5)), {}, StatisticsError),
    (np.zeros((10, 5)), {"statistics": "median"}, InputError), (np.zeros((10, 5)), {"statistics": []}, InputError),
    (np.zeros((10, 5)), {"statistics": "tke"}, InputError), (np.zeros((10, 5)), {"confidence": 95}, InputError),
    (np.zeros((10, 5)), {"velocity": "U"}, UnknownFieldError), (np.zeros((10, 5)), {"velocity": "values"}, InputError),
])
def test_what_cannot_be_averaged(what, options, error):
    with pytest.raises(error):
        rom.average(what, **options)


@pytest.mark.parametrize("n", [50, 640])
def test_a_glance_that_misleads_costs_little(n):
    u = flow(n=n, cells=200)
    honest = rom.average(u, ["rms", "tke"], equilibration=None)
    u[::-(-n // 16)] += 2.0                     # just where the first glance falls
    averages = rom.average(u, ["rms", "tke"], equilibration=None)
    for name in ("rms", "tke"):
        worth = np.minimum(n / averages[name].statistical_inefficiency, n)
        assert np.nanmedian(averages[name].n_eff / worth) == pytest.approx(1, rel=0.15)
        assert n < 100 or np.nanmedian(averages[name].n_eff) < 3 * np.nanmedian(honest[name].n_eff)


def test_what_is_summed_about_does_not_matter():
    u = flow(n=512, cells=8)
    target = Target("U", ("U",), ek.Field((8, 2)), 2, ("reynolds_stress", "tke"))
    averages = []
    for about in (np.tile(MEAN, 8), np.tile(np.add(MEAN, [0.7, -0.4]), 8)):
        bins = []
        for k in range(0, 512, 32):
            bins.append(Products(2, about))
            bins[-1].update(u[k:k + 32], k)
        stretches = Stretches(bins, target, 1.0)
        averages.append([np.array(stretches._second(i, j)[1]) for i, j in ((0, 0), (0, 1), (1, 1))])
    a = u - u.mean(0)
    plain = (a[..., 0] * a[..., 1]).reshape(16, 32, 8).mean(1) - (a[..., 0] * a[..., 1]).mean(0)
    np.testing.assert_allclose(averages[0][1], plain, atol=1e-12)
    np.testing.assert_allclose(averages[1], averages[0], atol=1e-12)


GLANCED = slice(None, None, 15)
"""Of 240 snapshots: those that the first glance sees."""


@pytest.mark.parametrize("power", [-960, -300, 0, 300, 960])
@pytest.mark.parametrize("quiet", ["glanced", "first half", "all but two"])
@pytest.mark.parametrize("engine", [ek.Serial(), ek.Threads(2)], ids=["serial", "threads"])
def test_what_the_first_glance_does_not_see_counts(power, quiet, engine):
    """Cells at rest wherever the glance looks ask for another power of two later on."""
    u = flow(n=240, cells=5)
    u[{"glanced": GLANCED, "first half": slice(0, 120), "all but two": np.r_[0:31, 33:240]}[quiet], 1:3] = 0.0
    want = rom.average(u, ["mean", "rms"], equilibration=None, engine=engine)
    got = rom.average(np.ldexp(u, power), ["mean", "rms"], equilibration=None, engine=engine)
    for name in want:
        np.testing.assert_array_equal(np.ldexp(got[name].mean, -power), want[name].mean)
        np.testing.assert_array_equal(np.ldexp(got[name].stderr, -power), want[name].stderr)
    np.testing.assert_allclose(want["mean"].mean, u.mean(0), rtol=1e-11)


@pytest.mark.parametrize("power", [-700, 700])
def test_a_burst_that_the_first_glance_does_not_see(power):
    u = flow(n=240, cells=5)
    u[33, 2] = np.ldexp(u[33, 2], power + 40)
    got = rom.average(u, ["mean", "rms"], equilibration=None)
    want = rom.average(np.ldexp(u, -power), ["mean", "rms"], equilibration=None)
    for name in ("mean", "rms"):
        assert np.isfinite(got[name].mean).all()
        np.testing.assert_allclose(got[name].mean, np.ldexp(want[name].mean, power), rtol=1e-11)
        np.testing.assert_allclose(got[name].stderr, np.ldexp(want[name].stderr, power), rtol=1e-9)
    over = -max(power + 40, 0)
    np.testing.assert_allclose(np.ldexp(got["mean"].mean[2], over), np.ldexp(u[:, 2], over).mean(0), rtol=1e-11)


@pytest.mark.parametrize("seen", [1e-290, 1.0, 1e290])
@pytest.mark.parametrize("others", [1e-290, 1.0, 1e290])
def test_weights_that_the_first_glance_does_not_see(seen, others):
    u = flow(n=240, cells=5)
    w = np.random.default_rng(1).random(240) + 0.1
    much = np.full(240, others)
    much[GLANCED] = seen
    got = rom.average(ek.ArraySource.of(u, weights=w * much), ["mean", "rms"], equilibration=None)
    share = w * (much / much.max())
    mean = share @ u.reshape(240, -1) / share.sum()
    np.testing.assert_allclose(got["mean"].mean.ravel(), mean, rtol=1e-11)
    assert (got["rms"].mean > 0).all()
    assert np.isfinite(got["mean"].stderr).all()


def test_cells_in_groups_give_the_same_bits_in_less_memory(tmp_path, capsys, caplog):
    rng = np.random.default_rng(5)
    n, cells = 130, 9000
    fields = {"U": ek.Field((cells, 3), "f4", unit="m s-1"), "p": ek.Field((cells,), "f8"), "v": ek.Field((cells,), "f8"),
              "w": ek.Field((cells,), "f8")}
    with ek.create(tmp_path / "x.h5", fields) as store:
        store.extend({name: rng.normal(size=(n, *f.shape)) * (1e-200 if name == "p" else 1) + 3.0 * (name == "U")
                      for name, f in fields.items()}, times=np.arange(float(n)), weights=rng.random(n) + 0.5)
    source = ek.open(tmp_path / "x.h5")
    caplog.set_level("INFO", "ensemblekit")
    for chosen, limits in (({}, ("2GiB", "48MiB", "36MiB")), ({"velocity": ("v", "w")}, ("2GiB", "36MiB"))):
        used = {}
        for limit in limits:
            tracemalloc.start()
            used[limit] = rom.average(source, ["mean", "rms", "reynolds_stress", "tke"], memory_limit=limit, **chosen), \
                tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert used[limit][1] < as_bytes(limit)
            for said in (" ".join(used[limit][0].notes), str(used[limit][0]), caplog.text):
                assert ("reads, each of some of the cells" in said) == (limit != "2GiB")
            caplog.clear()
        whole, most = used["2GiB"]
        for result, peak in list(used.values())[1:]:
            assert peak < 0.6 * most
            assert list(result) == list(whole)
            for name in whole:
                for what in ("mean", "stderr", "low", "high", "n_eff", "dof", "correlation_time"):
                    np.testing.assert_array_equal(getattr(result[name], what), getattr(whole[name], what), err_msg=name)
                assert (result[name].verdict, result[name].n, result[name].n_discarded) == (
                    whole[name].verdict, whole[name].n, whole[name].n_discarded)
    with pytest.raises(InputError, match="memory_limit="):
        rom.average(source, ["mean", "tke"], memory_limit="1MiB")


def test_replicas_of_a_flow_are_pooled():
    """The mean over all runs, its error from within and between them; what cannot be negative has no interval that is."""
    runs = [flow(n=400, cells=60, seed=k) for k in range(4)]
    averages = rom.average(ek.ReplicaSet.of(runs), ["mean", "rms", "reynolds_stress"], equilibration=None)
    np.testing.assert_allclose(averages["mean"].mean, np.concatenate(runs).mean(0), rtol=1e-12)
    assert averages["mean"].n == 1600
    assert set(averages["mean"].estimators) == {"within runs", "between runs"}
    inside = (averages["mean"].low < MEAN) & (averages["mean"].high > MEAN)
    assert 0.9 < inside.mean() <= 1
    assert np.all(averages["rms"].low > 0)
    assert (averages["reynolds_stress"].low[..., :2] > 0).all()
    alone = rom.average(runs[0], "mean", equilibration=None)["mean"]
    assert 0.3 < np.median((averages["mean"].high - averages["mean"].low) / (alone.high - alone.low)) < 0.9
    apart = rom.average(ek.ReplicaSet.of([x + 3 * k for k, x in enumerate(runs)]), "mean", equilibration=None)["mean"]
    assert not apart.converged
    assert "the 4 runs disagree beyond their own errors in 120 of 120 elements" in apart.verdict
