import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ensemblekit as ek
from ensemblekit.averaging.blocking import blocking
from ensemblekit.averaging.circular import circular_average
from ensemblekit.averaging.weights import effective_samples, normalised_weights
from ensemblekit.errors import InputError, StatisticsError

logs = st.lists(st.floats(-50, 50), min_size=1, max_size=20)


@given(logs, st.floats(-1e6, 1e6))
def test_logarithms_and_weights_agree_whatever_the_offset(values, offset):
    direct = normalised_weights(np.exp(values))
    np.testing.assert_allclose(normalised_weights(log_weights=np.add(values, offset)), direct, rtol=1e-8, atol=1e-12)
    assert direct.sum() == pytest.approx(1, abs=1e-14)


def test_log_weights_of_huge_range():
    shares = normalised_weights(log_weights=[-1e6, 0.0, -1e6 + 1, -np.inf])
    np.testing.assert_array_equal(shares, [0, 1, 0, 0])
    np.testing.assert_allclose(normalised_weights(log_weights=[1e6, 1e6 + np.log(3)]), [0.25, 0.75], rtol=1e-9)


def test_weights_at_the_ends_of_float64():
    np.testing.assert_allclose(normalised_weights([1.5e308, 1.5e308]), [0.5, 0.5])
    np.testing.assert_allclose(normalised_weights([5e-324, 0, 5e-324]), [0.5, 0, 0.5])


def test_integers_and_booleans_are_weights():
    np.testing.assert_allclose(normalised_weights([1, 3]), [0.25, 0.75])
    np.testing.assert_allclose(normalised_weights(np.array([True, False, True])), [0.5, 0, 0.5])


@pytest.mark.parametrize("kind", ["kish", "entropy"])
def test_effective_samples_of_known_weights(kind):
    assert effective_samples(np.full(7, 3e-9), kind) == pytest.approx(7)
    assert effective_samples([0, 0, 5, 0], kind) == pytest.approx(1)
    assert effective_samples([0, 2, 2, 0], kind) == pytest.approx(2)
    assert effective_samples(log_weights=[800.0, 800.0], kind=kind) == pytest.approx(2)


def test_kish_and_entropy_follow_their_formulas():
    w = np.array([1.0, 2.0, 5.0])
    p = w / w.sum()
    assert effective_samples(w) == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-14)
    assert effective_samples(w, "entropy") == pytest.approx(np.prod(p**-p), rel=1e-14)


@given(logs)
def test_kish_never_exceeds_entropy_nor_either_the_count(values):
    kish, entropy = effective_samples(log_weights=values), effective_samples(None, "entropy", log_weights=values)
    assert 1 - 1e-12 <= kish <= entropy * (1 + 1e-12)
    assert entropy <= len(values) * (1 + 1e-12)


@pytest.mark.parametrize(("weights", "message"), [
    ([1, np.nan], "weight 1 is nan"),
    ([np.inf, 1], "weight 0 is inf"),
    ([1, 2, -0.5], "weight 2 is -0.5"),
    ([], "n above 0"),
    (3.0, "shape"),
    ([[1, 2]], "shape"),
    ([1j, 2], "real"),
    (["a", "b"], "real"),
])
def test_bad_weights_are_refused_by_name(weights, message):
    with pytest.raises(InputError, match=message):
        normalised_weights(weights)


@pytest.mark.parametrize(("logs", "message"), [
    ([0, np.nan], "number 1 is nan"),
    ([np.inf, 0], "number 0 is inf"),
    ([], "n above 0"),
    ([1j], "real"),
])
def test_bad_log_weights_are_refused_by_name(logs, message):
    with pytest.raises(InputError, match=message):
        normalised_weights(log_weights=logs)


def test_nothing_left_to_average_is_said():
    with pytest.raises(StatisticsError, match="all 3 weights are zero"):
        normalised_weights([0, 0, 0])
    with pytest.raises(StatisticsError, match="all 2 log_weights are -inf"):
        normalised_weights(log_weights=[-np.inf, -np.inf])


def test_exactly_one_of_the_two_and_a_known_kind():
    with pytest.raises(InputError, match="not both"):
        normalised_weights([1], log_weights=[0])
    with pytest.raises(InputError, match="not neither"):
        normalised_weights()
    with pytest.raises(InputError, match="kind"):
        effective_samples([1], "reliability")


@pytest.mark.parametrize("offset", [0.0, -1e6, 1e6])
def test_log_weights_are_taken_wherever_weights_are(offset: float) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 2))
    logs = 0.5 * rng.normal(size=400)
    w, logs = np.exp(logs), logs + offset
    calls = {
        "average": lambda **k: ek.average(x[:, 0], **k).interval,
        "average of arrays": lambda **k: ek.average(x, **k).interval,
        "source": lambda **k: ek.average(ek.ArraySource.of(x[:, 0], **k)).interval,
        "circular": lambda **k: circular_average(20 * x[:, 0], **k).mean.interval,
        "bootstrap": lambda **k: ek.statistics.block_bootstrap(x, n_resamples=50, **k).interval,
        "jackknife": lambda **k: ek.statistics.jackknife(x, **k).interval,
        "blocking": lambda **k: blocking(x, **k).stderr,
    }
    for name, call in calls.items():
        np.testing.assert_allclose(call(log_weights=logs), call(weights=w), rtol=1e-6, err_msg=name)
        with pytest.raises(InputError, match="not both"):
            call(log_weights=logs, weights=w)
        with pytest.raises(InputError, match="below infinity"):
            call(log_weights=np.full(400, np.inf))
        with pytest.raises(StatisticsError, match="-inf"):
            call(log_weights=np.full(400, -np.inf))


def test_stores_take_logarithms_that_they_can_hold(tmp_path):
    import ensemblekit as ek

    logs = np.linspace(-600, 600, 7)
    with ek.create(tmp_path / "w.h5", {"u": ek.Field((), "f8")}) as store:
        store.extend({"u": np.arange(7.0)}, log_weights=logs)
        store.append({"u": 7.0}, log_weight=-np.inf)
        np.testing.assert_allclose(store["u"].weights, np.exp([*logs, -np.inf]), rtol=1e-12)
        for call in (lambda: store.append({"u": 1.0}, log_weight=800.0),
                     lambda: store.extend({"u": np.ones(2)}, log_weights=[0.0, -1e4])):
            with pytest.raises(InputError, match="Subtract one number from those of all snapshots"):
                call()
        with pytest.raises(InputError, match="not both"):
            store.append({"u": 1.0}, log_weight=0.0, weight=2.0)
        with pytest.raises(InputError, match="not both"):
            store.extend({"u": np.ones(1)}, log_weights=[0.0], weights=[1.0])
        with pytest.raises(InputError, match="within ±700"):
            store.extend({"u": np.ones(1)}, log_weights=[np.nan])
        assert len(store) == 8


def test_flows_and_trajectories_take_weights_and_their_logarithms(tmp_path):
    from ensemblekit import rom
    from ensemblekit.source import ArraySource

    rng = np.random.default_rng(12)
    x, logs = rng.normal(size=(400, 3)), 0.3 * rng.normal(size=400) + 1e5
    w = np.exp(logs - 1e5)
    want = rom.average(ArraySource.of(x, weights=w), ["mean", "rms"], equilibration=None)
    for options in ({"weights": w}, {"log_weights": logs}):
        for source in (x, ArraySource.of(x)):
            averages = rom.average(source, ["mean", "rms"], equilibration=None, **options)
            for name in ("mean", "rms"):
                np.testing.assert_allclose(averages[name].mean, want[name].mean, rtol=1e-9)
                np.testing.assert_allclose(averages[name].stderr, want[name].stderr, rtol=1e-6)
    assert (want["mean"].n_eff <= effective_samples(w) * (1 + 1e-9)).all()
    for options in ({"weights": w, "log_weights": logs}, {"weights": "steps"}, {"log_weights": logs[:5]}):
        with pytest.raises(InputError, match=r"log_weights|time"):
            rom.average(x, **options)
    with pytest.raises(InputError, match="carries weights of its own"):
        rom.average(ArraySource.of(x, weights=w), log_weights=logs)
    pytest.importorskip("MDAnalysis")
    from ensemblekit import md
    from ensemblekit.md.topology import mdanalysis

    with mdanalysis() as mda:
        u = mda.Universe.empty(1, trajectory=True)
        u.load_new(x.astype(np.float32)[:, None, :])
    observable = {"x": lambda group: float(group.positions[0, 0])}
    one = md.average(u, observable, frame_weights=w, equilibration=None, quiet=True)["x"]
    other = md.average(u, observable, log_weights=logs, equilibration=None, quiet=True)["x"]
    assert other.mean == pytest.approx(one.mean, rel=1e-9)
    assert other.stderr == pytest.approx(one.stderr, rel=1e-6)
    with pytest.raises(InputError, match="not both"):
        md.average(u, observable, frame_weights=w, log_weights=logs)


def test_weights_that_rest_on_few_are_doubted_in_every_statistic():
    from ensemblekit import rom
    from ensemblekit.source import ArraySource

    rng = np.random.default_rng(13)
    x, logs = rng.normal(size=(800, 3)), np.linspace(0, 700, 800)
    late = np.zeros(800)
    late[0] = 20.0
    for weights, said in ((logs, "all weight"), (late, "one snapshot carries 100 % of all weight")):
        averages = rom.average(ArraySource.of(x, log_weights=weights), ["mean", "rms"])
        for name in ("mean", "rms"):
            assert not averages[name].converged
            assert said in averages[name].verdict or "independent snapshots" in averages[name].verdict
        assert averages["mean"].n_discarded == 0 or weights is logs
    pytest.importorskip("MDAnalysis")
    from ensemblekit import md
    from ensemblekit.md.topology import mdanalysis

    places = (rng.normal(size=(800, 4, 3)) + 5 * np.arange(4)[:, None]).astype(np.float32)
    with mdanalysis() as mda:
        u = mda.Universe.empty(4, trajectory=True)
        u.load_new(places)
    wanted = {"rmsf": md.RMSF("all")}
    few = md.average(u, wanted, log_weights=late, equilibration=None, quiet=True)["rmsf"]
    assert not few.converged
    assert "all weight" in few.verdict
