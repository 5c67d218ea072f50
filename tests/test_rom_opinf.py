"""Operator inference: what is recovered, what the search finds, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError
from tests import oracles_rom as oracles


def states(values: np.ndarray, dt: float = 1.0) -> ek.ArraySource:
    return ek.ArraySource.of(values, times=dt * np.arange(len(values)), time_unit="s")


def test_reprojected_burgers_gives_the_intrusive_operators() -> None:
    step = oracles.StepBurgers()
    fields, inputs = step.trajectories(10, 40, np.random.default_rng(0))
    v = np.linalg.svd(np.concatenate(fields), full_matrices=False)[2][:6]
    wanted = step.projected(v)
    again = []
    for run, u in zip(fields, inputs, strict=True):
        rows = [v @ run[0]]
        for one in u[:-1]:
            rows.append(v @ step(rows[-1] @ v, one))
        again.append(np.array(rows))
    options = {"form": "AHB", "inputs": inputs, "time": "discrete", "regularisation": 0.0, "n_resamples": 0}
    model = rom.operator_inference(again, **options)
    assert np.abs(model.matrix - wanted).max() < oracles.BURGERS_RECOVERED * np.abs(wanted[6:27]).max()
    assert model.energy_violation < 1e-6, "the flux form conserves energy"
    raw = rom.operator_inference([run @ v.T for run in fields], **options)
    assert np.abs(raw.matrix - wanted).max() > oracles.BURGERS_RAW * np.abs(wanted[6:27]).max()


@pytest.fixture(scope="module")
def rod() -> tuple[np.ndarray, np.ndarray]:
    return oracles.heated_rod()


@pytest.mark.filterwarnings("ignore:inputs")
@pytest.mark.parametrize("rank", [2, 5, 8])
def test_the_heated_rod(rod: tuple[np.ndarray, np.ndarray], rank: int) -> None:
    fields, u = rod
    v = np.linalg.svd(fields[:200], full_matrices=False)[2][:rank]
    a = fields @ v.T
    model = rom.operator_inference(states(a[:200], 1e-3), form="AB", inputs=u[:200], time="continuous", ddt="backward",
                                   regularisation=0.0, n_resamples=0)
    # the formula of opinf: least squares for (x[k] - x[k-1]) / dt with x[k] and u[k]
    left = np.linalg.lstsq(np.column_stack([a[1:200], u[1:200]]), np.diff(a[:200], axis=0) / 1e-3, rcond=None)[0]
    assert np.abs(model.matrix - left).max() < 1e-9 * np.abs(left).max()
    z = [a[0]]
    implicit = np.linalg.inv(np.eye(rank) - 1e-3 * model.A)
    for k in range(1, len(u)):
        z.append(implicit @ (z[-1] + 1e-3 * model.B[:, 0] * u[k]))
    assert np.linalg.norm(fields - z @ v) < oracles.HEAT_ERRORS[rank] * np.linalg.norm(fields)
    # the same as a discrete model: backward Euler's input is that at the end of its step
    later = np.append(u[1:], u[-1])
    sampled = rom.operator_inference(states(a[:200], 1e-3), form="AB", inputs=later[:200], regularisation=0.0, n_resamples=0)
    run = sampled.simulate(a[0], sampled.period * np.arange(1001), later)
    assert np.linalg.norm(fields - run.coefficients @ v) < oracles.HEAT_ERRORS[rank] * np.linalg.norm(fields)


def test_inputs_that_are_off_by_one_are_noticed() -> None:
    rng = np.random.default_rng(1)
    a, b = np.array([[0.9, 0.2], [-0.2, 0.9]]), np.array([1.0, 0.5])
    u, x = rng.normal(size=300), [np.zeros(2)]
    for one in u[:-1]:
        x.append(a @ x[-1] + b * one)
    right = rom.operator_inference(np.array(x), form="AB", inputs=u, regularisation=0.0, n_resamples=0)
    assert np.allclose(right.A, a, atol=1e-12)
    for shift, word in ((1, "later"), (-1, "earlier")):
        with pytest.warns(UserWarning, match=f"inputs {word} by one sample fit better.*lags -1"):
            rom.operator_inference(np.array(x), form="AB", inputs=np.roll(u, shift), regularisation=0.0, n_resamples=0)


def test_lotka_volterra_is_recovered() -> None:
    a, h = oracles.lotka_volterra()
    truth = rom.QuadraticModel.of(A=a, H=h)
    run = truth.simulate([0.6, 1.0], np.arange(0, 12, 0.02), rtol=1e-12)
    model = rom.operator_inference(states(run.coefficients, 0.02), form="AH", n_resamples=0)
    assert model.period is None, "the sampling resolves the derivative"
    assert np.abs(model.A - a).max() < 1e-6
    assert np.abs(model.tensor - (h + h.transpose(0, 2, 1)) / 2).max() < 1e-6
    error = model.error_against(states(run.coefficients, 0.02))
    assert error.total < 1e-5
    assert error.projection.max() == 0


def oscillation(n: int = 400, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = 0.1 * np.arange(n)
    wave = np.stack([np.cos(t), np.sin(t), 0.3 * np.cos(2 * t), 0.3 * np.sin(2 * t)], axis=1)
    return wave + noise * rng.normal(size=wave.shape)


def test_the_search_keeps_the_integrated_model_bounded_and_says_what_it_tried() -> None:
    x = oscillation(noise=0.002)
    model = rom.operator_inference(states(x, 0.1), form="cAH", time="discrete", n_resamples=0)
    assert model.fit.search.shape[1] == 4
    assert len(model.fit.search) > 40
    assert set(model.fit.regularisation) <= {"linear", "quadratic"}
    assert abs(model.fit.drift) < 0.2
    run = model.simulate(x[0], 0.1 * np.arange(4 * len(x)))
    assert run.diverged_at is None
    assert "regularisation" in str(model) or not model.fit.regularisation
    assert "drifts by" in str(model)
    assert str(model).count("\n") == 2


def test_a_search_with_nothing_left_explains() -> None:
    rng = np.random.default_rng(0)
    grows = np.exp(0.05 * np.arange(80))[:, None] * np.ones((1, 2)) + 0.001 * rng.normal(size=(80, 2))
    prior = rom.QuadraticModel.of(A=1.5 * np.eye(2), period=1.0)
    with pytest.raises(InputError, match=r"no candidate.*left it after .* % of it.*fewer modes"):
        rom.operator_inference(grows, form="A", prior=prior, horizon=20.0, bound=1.2)


def test_a_prior_is_what_strong_weights_lead_to() -> None:
    x = oscillation()
    prior = rom.QuadraticModel.of(A=0.9 * np.eye(4), period=0.1)
    near = rom.operator_inference(states(x, 0.1), form="A", time="discrete", regularisation=1e4, prior=prior, n_resamples=0)
    assert np.abs(near.A - prior.A).max() < 1e-4
    zero = rom.operator_inference(states(x, 0.1), form="A", time="discrete", regularisation=1e4, n_resamples=0)
    assert np.abs(zero.A).max() < 1e-4
    with pytest.raises(InputError, match="the prior has"):
        rom.operator_inference(states(x[:, :3], 0.1), form="A", time="discrete", prior=prior)


def test_runs_and_gaps_are_never_bridged() -> None:
    a = np.array([[0.8, 0.5], [-0.5, 0.8]])
    runs = []
    for start in ([1.0, 0.0], [0.0, 5.0]):
        x = [np.array(start)]
        for _ in range(30):
            x.append(a @ x[-1])
        runs.append(np.array(x))
    for given in (runs, ek.ReplicaSet.of(runs)):
        model = rom.operator_inference(given, form="A", regularisation=0.0, n_resamples=0)
        assert np.allclose(model.A, a, atol=1e-12)
        assert model.training.runs == 2
    joined = rom.operator_inference(np.concatenate(runs), form="A", regularisation=0.0, n_resamples=0)
    assert np.abs(joined.A - a).max() > 1e-3, "a step across the seam spoils it"
    times = np.concatenate([np.arange(31.0), 100 + np.arange(31.0)])
    gap = rom.operator_inference(ek.ArraySource.of(np.concatenate(runs), times=times), form="A", regularisation=0.0,
                                 n_resamples=0)
    assert np.allclose(gap.A, a, atol=1e-12)
    assert "1 gaps or restarts" in str(gap)


def test_a_basis_of_replicas_gives_runs() -> None:
    a = np.array([[0.8, 0.5], [-0.5, 0.8]])
    modes = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 2)))[0].T
    runs = []
    for start in ([1.0, 0.0], [0.0, 5.0]):
        x = [np.array(start)]
        for _ in range(30):
            x.append(a @ x[-1])
        runs.append(ek.ArraySource.of(np.array(x) @ modes, times=0.5 * np.arange(31), time_unit="s"))
    basis = rom.pod(ek.ReplicaSet.of(runs), 2, center="none")
    model = rom.operator_inference(basis, form="A", regularisation=0.0, n_resamples=0)
    assert model.training.runs == 2
    assert model.period == pytest.approx(0.5)
    assert model.time_unit == "s"
    assert np.allclose(np.sort_complex(np.linalg.eigvals(model.A)), np.sort_complex(np.linalg.eigvals(a)))
    assert model.simulate(runs[0].arrays["values"][0], [0, 0.5, 1.0]).fields().shape == (3, 12)


def test_uneven_times_go_with_continuous_models_only() -> None:
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(0, 20, 800))
    t = t[np.append(True, np.diff(t) > 1e-3)]
    x = np.stack([np.cos(t), np.sin(t)], axis=1)
    source = ek.ArraySource.of(x, times=t)
    with pytest.raises(InputError, match=r'steps from.*rom.dmd\(method="opt"\).*operator_inference\(time="continuous"\)'):
        rom.operator_inference(source, form="A")
    model = rom.operator_inference(source, form="A", time="continuous", regularisation=0.0, n_resamples=0)
    assert np.allclose(model.A, [[0, -1], [1, 0]], atol=1e-3)


@pytest.mark.parametrize(("change", "match"), [
    ({"form": "cAG"}, "Cubic terms"), ({"form": "AB"}, "none were given"), ({"inputs": np.arange(40.0)}, "no letter for them"),
    ({"form": "AB", "inputs": np.arange(39.0)}, "39 rows, the states 40"),
    ({"form": "AB", "inputs": np.ones(40)}, "throughout"),
    ({"form": "AB", "inputs": "feedback"}, "it is a feedback"),
    ({"form": "cAH", "rank": 8}, "39 steps of 40 snapshots are too few for 45 unknowns"),
    ({"nan": True}, r"state 7 \(time 7\) holds NaN"), ({"ddt": 3}, "order of central differences"),
    ({"ddt": "backward", "time": "discrete"}, "is of continuous models"), ({"time": "sometimes"}, 'time is "auto"'),
    ({"regularisation": -1.0}, "0 or more"), ({"regularisation": {"cubic": 1.0}}, "blocks"), ({"bound": 0.5}, "bound above 1"),
    ({"complex": True, "form": "AH"}, "products of complex"),
])
def test_bad_input_is_named(change: dict, match: str) -> None:
    rng = np.random.default_rng(0)
    options = {"form": "A"} | change
    x = rng.normal(size=(40, options.pop("rank", 3)))
    if options.pop("nan", False):
        x[7, 1] = np.nan
    if options.pop("complex", False):
        x = x + 1j
    if isinstance(options.get("inputs"), str):
        options["inputs"] = x @ rng.normal(size=3)
    with pytest.raises(InputError, match=match):
        rom.operator_inference(x, **options)


def test_ill_conditioned_fits_warn_with_the_remedy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1)) @ np.ones((1, 2)) + 1e-13 * rng.normal(size=(60, 2))
    with pytest.warns(UserWarning, match=r"ill-conditioned.*fewer modes"):
        rom.operator_inference(x, form="A", regularisation=0.0, n_resamples=0)


def test_complex_coefficients_are_taken_by_linear_forms() -> None:
    a = np.array([[0.9 * np.exp(0.3j), 0.1], [0, 0.8 * np.exp(-0.2j)]])
    x = [np.array([1.0 + 0.5j, -1.0j])]
    for _ in range(30):
        x.append(a @ x[-1])
    model = rom.operator_inference(np.array(x), form="A", regularisation=0.0, n_resamples=0)
    assert np.allclose(model.A, a, atol=1e-12)
    assert np.allclose(model.simulate(x[0], np.arange(31.0)).coefficients, x)


def test_outputs_are_read_off_the_states() -> None:
    x = process(400, 0)
    y = x @ np.array([[1.0], [2.0], [0.0], [-1.0]]) + 3
    model = rom.operator_inference(states(x, 0.1), form="A", outputs=y, time="discrete", regularisation=0.0, n_resamples=20)
    run = model.simulate(x[0], model.period * np.arange(5))
    assert np.allclose(run.outputs, run.coefficients @ [[1.0], [2.0], [0.0], [-1.0]] + 3)
    assert model.predict(3).outputs_low.shape == (3, 1)


def test_a_fitted_model_comes_back_with_all_it_knows(tmp_path: Path) -> None:
    x = oscillation()
    model = rom.operator_inference(states(x, 0.1), form="A", n_resamples=30)
    back = rom.load(model.save(tmp_path / "m.model.h5"))
    assert str(back) == str(model)
    assert np.array_equal(back.predict(20).low, model.predict(20).low)
    assert np.array_equal(back.fit.search, model.fit.search)
    assert dataclasses.asdict(back.training).keys() == dataclasses.asdict(model.training).keys()


# -- wakes ------------------------------------------------------------------------------------------------------------


def test_the_transient_of_a_wake_is_followed_or_its_failure_is_said() -> None:
    """From near the steady flow to shedding: products carry it; without them nothing can, and that is not passed over."""
    x = oracles.mean_field(1200)
    right = rom.operator_inference(states(x[:800], 0.1), form="AH", time="continuous", n_resamples=0)
    run = right.simulate(x[0], 0.1 * np.arange(1200))
    assert abs(run.coefficients[-200:, 0].std() / x[-200:, 0].std() - 1) < 0.02
    assert "DIES OUT" not in str(right)
    assert right.training.skill[-1] > 0.9
    for weight in (0.0, 0.1, 10.0, "search"):
        try:
            answer = str(rom.operator_inference(states(x[:800], 0.1), form="cA", time="discrete", regularisation=weight,
                                                n_resamples=0))
        except InputError as error:
            answer = str(error)
        assert any(word in answer for word in ("WORSE THAN", "DIES OUT", "LEAVES 1.5 times", "no candidate")), weight


@pytest.mark.parametrize(("factor", "said"), [(0.97, "DIES OUT"), (1.001, None), (1.0, None)])
def test_a_model_that_dies_out_says_so(factor: float, said: str | None) -> None:
    """Fitted to a steady oscillation; and the truth that dies down is no reproach."""
    from ensemblekit.rom.outlook import outlook

    angle = 0.1 * np.arange(800)
    wave = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    later = wave * factor ** np.maximum(np.arange(800) - 200, 0)[:, None]
    assert (outlook(wave[:200], later[200:]) != "") == (said is not None)
    assert said is None or said in outlook(wave[:200], later[200:])
    decaying = wave * 0.99 ** np.arange(800)[:, None]
    assert outlook(decaying[:200], decaying[200:]) == ""
    assert "GROWS" in outlook(wave[:200], wave[200:] * 1.01 ** np.arange(600)[:, None])
    assert outlook(np.zeros((200, 2)), np.zeros((600, 2))) == ""


@pytest.mark.slow
def test_shedding_is_kept_over_ten_times_the_training() -> None:
    flow = rom.testbeds.cylinder_wake(100.0, cells=10, stride=2)
    snapshots = rom.testbeds.record(flow, 1210, 0.25, after=60.0)
    velocity, times = snapshots.arrays["velocity"], snapshots.times
    basis = rom.pod(ek.ArraySource.of(velocity[:121], times=times[:121]), 6)
    model = rom.operator_inference(basis, form="cAH", n_resamples=0)
    truth = basis.project(velocity)
    run = model.simulate(truth[0], times[0] + 0.25 * np.arange(len(times)))
    assert run.diverged_at is None

    def frequency(a: np.ndarray) -> float:
        power = np.abs(np.fft.rfft((a - a.mean()) * np.hanning(len(a)), 32 * len(a)))
        return float(np.fft.rfftfreq(32 * len(a), 0.25)[power.argmax()])

    assert abs(frequency(run.coefficients[:, 0]) / frequency(truth[:, 0]) - 1) < oracles.WAKE_SHEDDING[0]
    size = np.sqrt((run.coefficients**2).mean(axis=0)[:2].sum() / (truth**2).mean(axis=0)[:2].sum())
    assert abs(size - 1) < oracles.WAKE_SHEDDING[1]
    assert "drifts by" in str(model)


# -- uncertainty ------------------------------------------------------------------------------------------------------


def process(n: int, seed: int, poles: tuple[complex, ...] = (0.97 * np.exp(0.3j), 0.9 * np.exp(1.1j))) -> np.ndarray:
    """A linear process of two oscillators driven by white noise, mixed."""
    rng = np.random.default_rng(seed)
    a = np.zeros((4, 4))
    for k, pole in enumerate(poles):
        a[2 * k:2 * k + 2, 2 * k:2 * k + 2] = [[pole.real, -pole.imag], [pole.imag, pole.real]]
    mix = np.linalg.qr(np.random.default_rng(99).normal(size=(4, 4)))[0]
    x = np.zeros((n + 200, 4))
    noise = rng.normal(size=x.shape)
    for k in range(1, len(x)):
        x[k] = a @ x[k - 1] + noise[k]
    return x[200:] @ mix.T


def covered(n: int, runs: int, seed: int, horizon: int = 50) -> tuple[float, float, float]:
    """Shares covered: growth, frequency, forecasts of all coefficients up to the horizon."""
    truth = np.log(np.array([0.97 * np.exp(0.3j), 0.9 * np.exp(1.1j)]))
    growth, frequency, ahead = [], [], []
    for k in range(runs):
        x = process(n + horizon, seed + k)
        model = rom.operator_inference(x[:n], form="A", regularisation=0.0, time="discrete", rng=k)
        e = model.eigenvalues
        for one in truth:
            at = int(np.argmin(np.abs(e.value - one)))
            growth.append(e.interval["growth"][0][at] <= one.real <= e.interval["growth"][1][at])
            frequency.append(e.interval["frequency"][0][at] <= one.imag / 2 / np.pi <= e.interval["frequency"][1][at])
        forecast = model.predict(horizon, rng=k)
        ahead.append(((forecast.low <= x[n:]) & (x[n:] <= forecast.high)).mean())
    return float(np.mean(growth)), float(np.mean(frequency)), float(np.mean(ahead))


def test_intervals_and_bands_cover() -> None:
    growth, frequency, ahead = covered(400, 50, 1000)
    # 100 eigenvalues: three standard deviations of a binomial at 94 % are 7 points; the table of many runs is below (slow)
    assert 0.87 < growth <= 1
    assert 0.87 < frequency <= 1
    assert 0.90 < ahead < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("n", [300, 1000])
def test_coverage_in_many_runs(n: int) -> None:
    growth, frequency, ahead = covered(n, 1000, 5000)
    assert 0.91 < growth < 0.97
    assert 0.91 < frequency < 0.97
    assert 0.92 < ahead < 0.97


def test_operators_alone_are_no_band() -> None:
    forecast = rom.operator_inference(process(400, 3), form="A", regularisation=0.0, time="discrete").predict(30)
    alone, both = forecast.spread
    assert (alone < both).all()
    assert alone[0].max() < 0.3 * both[0].min(), "residuals are most of a forecast one step on"


def test_where_no_interval_can_be_given_the_reason_stands_there() -> None:
    few = rom.operator_inference(process(9, 1)[:, :2], form="A", regularisation=0.0, time="discrete")
    assert few.eigenvalues.interval is None
    assert "blocks" in few.eigenvalues.reason
    forecast = few.predict(5)
    assert forecast.low is None
    assert "blocks" in str(forecast)
    off = rom.operator_inference(process(100, 1), form="A", regularisation=0.0, time="discrete", n_resamples=0)
    assert "n_resamples=0" in str(off.predict(3))
    with pytest.raises(InputError, match="1 period or more"):
        off.predict(0)
    with pytest.raises(InputError, match="begins after the last training state"):
        off.predict([50.0, 51.0])


def test_the_same_seed_gives_the_same_bits() -> None:
    one, two, other = (rom.operator_inference(process(200, 1), form="A", time="discrete", regularisation=0.0, rng=seed)
                       for seed in (0, 0, 1))
    assert np.array_equal(one.resamples.matrices, two.resamples.matrices)
    assert not np.array_equal(one.resamples.matrices, other.resamples.matrices)


# -- the way it is used -------------------------------------------------------------------------------------------------


def driven_wave(path: Path) -> None:
    """A store of a driven oscillation on 40 cells, and the input that drove it."""
    rng = np.random.default_rng(5)
    modes = np.linalg.qr(rng.normal(size=(40, 2)))[0].T
    a, b = 0.98 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]), np.array([0.0, 1.0])
    u, x = rng.normal(size=300), [np.array([1.0, 0.0])]
    for one in u[:-1]:
        x.append(a @ x[-1] + b * one)
    with ek.create(path, {"U": ek.Field((40,), "f8", unit="m s-1"), "rotation": ek.Field((), "f8")}, time_unit="s") as store:
        store.extend({"U": 2.0 + np.array(x) @ modes, "rotation": u}, times=0.1 * np.arange(300))


def test_store_basis_model_forecast(tmp_path: Path) -> None:
    driven_wave(tmp_path / "wake.h5")
    store = ek.open(tmp_path / "wake.h5")
    basis = rom.pod(store["U"], rank=2, center=store["U"][0])
    model = rom.operator_inference(basis, form="cAB", inputs=store["rotation"])
    assert model.inputs == ("rotation",)
    assert np.allclose(model.eigenvalues.growth, np.log(0.98) / 0.1, rtol=1e-6)
    assert model.stable
    forecast = model.predict(200, inputs=store["rotation"][-200:])
    assert forecast.coefficients.shape == forecast.low.shape == (200, 2)
    assert forecast.fields(slice(0, 3)).shape == (3, 40)
    low, high = forecast.field_interval("U", at=[3, 5])
    assert low.shape == (200, 2)
    assert (low <= high).all()
    error = model.error_against(store["U"], inputs=store["rotation"])
    assert error.total < 1e-6
    with pytest.raises(InputError, match="is in m, the basis in m s-1"):
        model.error_against(ek.ArraySource.of({"U": store["U"][:]}, unit="m"), inputs=store["rotation"])


def test_coefficients_are_streamed_into_a_store(tmp_path: Path) -> None:
    driven_wave(tmp_path / "wake.h5")
    store = ek.open(tmp_path / "wake.h5")
    basis = rom.pod(store["U"].window(0, 100), rank=2)
    kept = rom.coefficients(store["U"], basis, tmp_path / "a.h5")
    fields = store["U"][:]
    assert np.allclose(kept["coefficients"][:], basis.project(fields), atol=1e-12)
    left = np.linalg.norm(fields - basis.reconstruct(basis.project(fields)), axis=1)
    assert np.allclose(kept["projection_error"][:], left, atol=1e-12)
    model = rom.operator_inference(kept["coefficients"], form="cAB", inputs=store["rotation"], basis=basis)
    assert np.allclose(model.eigenvalues.growth, np.log(0.98) / 0.1, rtol=1e-6)
    assert model.time_unit == "s"
    assert model.simulate(fields[0], [0.0, 0.1], np.zeros(2)).fields().shape == (2, 40)
    holed = fields.copy()
    holed[17, 3] = np.nan
    with pytest.raises(InputError, match="snapshot 17 holds NaN"):
        rom.coefficients(holed, basis, tmp_path / "b.h5")


def test_the_same_from_the_shell(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ensemblekit.cli import app

    driven_wave(tmp_path / "wake.h5")
    run = str(tmp_path / "wake.h5")
    for words in (["pod", run, "-k", "2"], ["opinf", f"{run}.basis.h5", "--form", "cAB", "--inputs", "rotation"],
                  ["forecast", f"{run}.model.h5", "--steps", "20", "--inputs", f"{run}:rotation"]):
        result = CliRunner().invoke(app, ["rom", *words])
        if words[0] == "forecast":
            assert result.exit_code == 2
            assert "inputs have shape (300, 1); for 21 times" in result.stderr
        else:
            assert result.exit_code == 0, result.output
    np.savetxt(tmp_path / "u.csv", np.zeros(20), header="u", comments="")
    result = CliRunner().invoke(app, ["rom", "forecast", f"{run}.model.h5", "--inputs", str(tmp_path / "u.csv"), "--csv", "-"])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 21
    assert result.stdout.startswith("time,a1,a2,a1_low,a1_high")
    missing = CliRunner().invoke(app, ["rom", "opinf", f"{run}.basis.h5", "--form", "A", "-o", str(tmp_path / "b.h5"),
                                       "--inputs", "nothere"])
    assert missing.exit_code == 2
