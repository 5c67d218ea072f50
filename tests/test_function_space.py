"""What the snapshots of a run are worth: processes whose memory and effective number are known in closed form."""

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.function_space import function_space
from ensemblekit.errors import InputError, StatisticsError

CASES = [(4, 5, 0, 1, 0), (4, 5, 0.5, 0.5, 0), (4, 6, 0.3, 0.7, 0.5), (4, 6, 0, 1, 0.5), (4, 6, 0, 1, 0.9)]


def runs_of(seed, r, m, a, s, phi, n=400, drift=0.0):
    """μ + drift_t + a_r + AR(1) of variance s, (r, m, n)."""
    rng = np.random.default_rng(seed)
    e = np.empty((r, m, n))
    e[:, 0] = rng.standard_normal((r, n))
    for t in range(1, m):
        e[:, t] = phi * e[:, t - 1] + np.sqrt(1 - phi**2) * rng.standard_normal((r, n))
    return (rng.standard_normal(n) + drift * rng.standard_normal((m, n))
            + np.sqrt(a) * rng.standard_normal((r, 1, n)) + np.sqrt(s) * e)


def exact(r, m, a, s, phi):
    """n_eff, R-hat and memory."""
    k = np.arange(1, m)
    g = 1 + 2 * np.sum((1 - k / m) * float(phi) ** k)
    within = s * (m - g) / (m - 1)
    apart = abs(np.subtract.outer(np.arange(m), np.arange(m)))
    memory = (a + s * (float(phi) ** apart)[apart >= -(-m // 2)]).mean() / (a + s)
    return np.array([(a + s) / (a + s * g / m), np.sqrt(((m - 1) / m * within + a + s * g / m) / within), memory])


def trials(case, seeds, **options):
    results = [function_space(runs_of(seed, *case, **options)) for seed in range(seeds)]
    values = np.array([(f.n_eff, f.rhat, f.memory) for f in results])
    ends = np.array([(f.n_eff_interval, f.rhat_interval, f.memory_interval) for f in results])
    want = exact(*case)
    held = ((ends[..., 0] <= want) & (want <= ends[..., 1])).mean(0)
    return values.mean(0), want, held, [f.verdict for f in results]


@pytest.mark.parametrize("case", CASES)
def test_means_coverage_and_verdicts(case):
    mean, want, held, verdicts = trials(case, 20)
    np.testing.assert_allclose(mean[:2], want[:2], rtol=0.04)
    assert abs(mean[2] - want[2]) < 0.03
    assert (held >= 0.75).all()        # 4 binomial deviations of 20 below 95 %
    _check(case, verdicts, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_means_coverage_and_verdicts_over_two_hundred_seeds(case):
    mean, want, held, verdicts = trials(case, 200)
    np.testing.assert_allclose(mean[:2], want[:2], rtol=0.02)
    assert abs(mean[2] - want[2]) < 0.01
    assert (held >= 0.92).all()
    assert (held <= 0.99).all()
    _check(case, verdicts, 0.02)


def _check(case, verdicts, slack):
    share = {v: verdicts.count(v) / len(verdicts) for v in ("ergodic within error", "not ergodic", "cannot say")}
    if case == CASES[0]:
        assert share["ergodic within error"] >= 0.82 - slack
        assert share["not ergodic"] <= slack
    elif case == CASES[3]:
        assert share["not ergodic"] <= slack
    else:
        assert share["not ergodic"] >= 1 - slack


def test_everything_is_algebra_on_the_covariances():
    x = runs_of(3, 4, 6, 0.3, 0.7, 0.5, n=60)
    d = x - x.mean(0)
    c = np.einsum("rtn,rsn->ts", d, d) / (3 * 60)
    space = function_space(x)
    v, p = np.trace(c) / 6, c.mean()
    w = (np.trace(c) - 6 * p) / 5
    assert (space.single, space.pooled, space.within) == pytest.approx((v, p, w))
    assert space.n_eff == pytest.approx(v / p)
    assert space.rhat == pytest.approx(np.sqrt((5 / 6 * w + p) / w))
    np.testing.assert_allclose(space.correlation, c / v)
    np.testing.assert_allclose(space.autocorrelation, [np.diagonal(c, k).mean() / v for k in range(6)])
    assert space.drift == pytest.approx((x.mean(0).var(0, ddof=1).mean() - w / 4) / v)


def test_a_jackknife_of_the_runs_by_hand():
    """Two blocks as good as one: what is left is the error over runs and over blocks, less what both hold."""
    x = runs_of(3, 5, 4, 0.5, 0.5, 0.3, n=40)
    left = np.array([np.log(function_space(np.delete(x, k, 0)).n_eff) for k in range(5)])
    by_run = np.sqrt(4 / 5 * np.sum((left - left.mean()) ** 2))
    from ensemblekit.averaging.function_space import _block_of, _jackknife, _matrices, _numbers, _products, _without_each_run

    sums = _products(list(x), _block_of(20, 40), 0)
    total = sums.own.sum((0, 1))
    value = _numbers(*_matrices(total, sums.mean.sum(0), 40, 5), 5)
    ours = _without_each_run(sums, total, 5)
    np.testing.assert_allclose(ours[:, 0], left)
    np.testing.assert_allclose(ours[:, 3], [function_space(np.delete(x, k, 0)).drift for k in range(5)], atol=1e-12)
    assert _jackknife(ours, value, np.full(5, 0.2))[0] == pytest.approx(by_run)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e5])
def test_a_drift_common_to_all_runs_is_not_taken_for_memory(size):
    x = runs_of(1, 4, 6, 0.3, 0.7, 0.5)
    drifting = x + size * np.random.default_rng(3).standard_normal((6, 400))
    a, b = function_space(x), function_space(drifting)
    assert max(abs(a.n_eff - b.n_eff), abs(a.memory - b.memory), abs(a.rhat - b.rhat)) < 1e-9


def test_runs_that_drift_together_are_never_called_ergodic():
    _, _, _, verdicts = trials(CASES[0], 10, drift=1.0)
    assert set(verdicts) == {"cannot say"}
    assert "last=" in str(function_space(runs_of(0, *CASES[0], drift=1.0)))


@pytest.mark.parametrize(("r", "m"), [(2, 5), (4, 3)])
def test_few_runs_or_snapshots_say_so(r, m):
    space = function_space(runs_of(0, r, m, 0, 1, 0))
    assert space.verdict == "cannot say"
    assert "or more" in str(space)


def test_one_run_bounds_what_it_is_worth():
    free = function_space(runs_of(0, 1, 8, 0, 1, 0))
    stuck = function_space(runs_of(0, 1, 8, 0, 1, 0.95))
    assert free.verdict == stuck.verdict == "cannot say"
    assert np.isnan(free.n_eff)
    assert free.n_eff_bound > 6
    assert stuck.n_eff_bound < 4
    assert "at most" in str(free)


def test_runs_whose_snapshots_are_all_one_are_worth_one():
    x = np.random.default_rng(0).standard_normal((4, 1, 50)).repeat(5, axis=1)
    space = function_space(x)
    assert space.n_eff == pytest.approx(1, abs=1e-12)
    assert space.memory == pytest.approx(1)
    assert space.rhat == np.inf
    assert space.verdict == "not ergodic"
    assert "varies as that of 1 (1 to 1)" in str(space)


def test_runs_that_are_copies_are_refused():
    x = runs_of(0, 1, 5, 0, 1, 0).repeat(3, axis=0)
    with pytest.raises(StatisticsError, match="copies"):
        function_space(x)


def test_replica_sets_lists_and_maps_say_the_same():
    x = runs_of(1, 3, 5, 0.3, 0.7, 0.5, n=24)
    want = function_space(x)
    for given in (list(x), ek.ReplicaSet.of(list(x)), x.reshape(3, 5, 24, 1), x.astype(np.float32)):
        assert function_space(given).n_eff == pytest.approx(want.n_eff, rel=1e-5)
    assert function_space(x, last=4).n_snapshots == 4
    assert function_space(x, last=4).n_eff == function_space(x[:, 1:]).n_eff
    assert "n_eff" in want.to_dict()


def test_items_of_a_group_stay_together():
    """Every item four times: the error over items is that of the items, not of the copies."""
    x = runs_of(1, 4, 5, 0.3, 0.7, 0.5, n=60)
    four = x.repeat(4, axis=2)
    alone, grouped = function_space(x, blocks=np.arange(60)), function_space(four, blocks=np.arange(60).repeat(4))
    assert grouped.memory_interval == pytest.approx(alone.memory_interval)


@pytest.mark.parametrize("factor", [1e200, 1e-200])
def test_numbers_of_any_size(factor):
    x = runs_of(1, 4, 5, 0.3, 0.7, 0.5, n=60)
    a, b = function_space(x), function_space(x * factor)
    assert (b.n_eff, b.rhat, b.memory, b.drift) == pytest.approx((a.n_eff, a.rhat, a.memory, a.drift), rel=1e-10)


@pytest.mark.parametrize(("runs", "options", "error", "words"), [
    (lambda x: [x[0], x[1][:4]], {}, InputError, "run 1 has the shape"),
    (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 130, np.nan, x), {}, InputError, "snapshot 1 of run 1 .* at "
                                                                                               "item 10"),
    (lambda x: x[0], {"last": 9}, InputError, "shape"),
    (lambda x: x, {"last": 9}, InputError, "last is a whole number from 1 to 5"),
    (lambda x: x, {"blocks": 1}, InputError, "two or more"),
    (lambda x: x, {"blocks": np.zeros(20)}, StatisticsError, "one group"),
    (lambda x: x, {"tolerance": 0}, InputError, "tolerance"),
    (lambda x: x, {"confidence": 95}, InputError, "confidence"),
    (lambda x: x[:, :1], {}, StatisticsError, "two snapshots"),
    (lambda x: [], {}, InputError, "no runs"),
])
def test_refusals(runs, options, error, words):
    x = runs_of(1, 3, 5, 0.3, 0.7, 0.5, n=20)
    x = runs(x) if words != "shape" else x[0, 0]
    with pytest.raises(error, match=words):
        function_space(x, **options)
