"""Scores, calibration and temperature against brute force, and the coverage of their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402
from ensemblekit.neural.temperature import best_temperature  # noqa: E402


def drawn(n=300, classes=4, seed=0, sharp=0.5):
    """Probabilities and labels drawn from them: a calibrated model."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, sharp), n)
    return p, np.array([rng.choice(classes, p=row) for row in p])


def prediction(p, y, **more):
    zero = np.zeros(np.shape(p)[:1])
    return neural.Prediction(np.asarray(p), None if y is None else np.asarray(y), zero, zero, **more)


def brute(p, y, n_bins, edges, norm="l1"):
    """Item by item, bin by bin, edges as exact fractions."""
    gaps, shares = [], []
    for b in range(n_bins):
        rows = []
        for i, row in enumerate(p):
            c = max(row)
            low, high = b / n_bins, (b + 1) / n_bins
            inside = (low < c <= high or (b == 0 and c == 0)) if edges == "right" else \
                (low <= c < high or (b == n_bins - 1 and c == 1))
            if inside:
                rows.append(i)
        if rows:
            conf = math.fsum(max(p[i]) for i in rows) / len(rows)
            acc = sum(int(np.argmax(p[i])) == y[i] for i in rows) / len(rows)
            gaps.append(abs(acc - conf))
            shares.append(len(rows) / len(p))
    if norm == "max":
        return max(gaps)
    total = math.fsum(s * g ** (2 if norm == "l2" else 1) for s, g in zip(shares, gaps, strict=True))
    return math.sqrt(total) if norm == "l2" else total


def on_edges(n_bins):
    """First choices of 0.5, 0.6, 0.7 ... 1, of every edge and just beside it."""
    rows = []
    for k in range(math.ceil(n_bins / 2), n_bins + 1):
        for c in (k / n_bins, k / n_bins - 1e-9, k / n_bins + 1e-9):
            if 0.5 < c <= 1:
                rows.append([c, 1 - c])
    return np.array([*rows, [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize("edges", ["right", "left"])
@pytest.mark.parametrize("n_bins", [1, 2, 7, 10, 15])
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_calibration_error_is_the_brute_one_at_the_edges_too(edges, n_bins, norm):
    p = on_edges(n_bins)
    for y in (np.zeros(len(p), int), np.arange(len(p)) % 2):
        assert neural.calibration_error(p, y, n_bins, norm, edges) == pytest.approx(brute(p, y, n_bins, edges, norm), abs=1e-12)
    p, y = drawn(60, 3)
    assert neural.calibration_error(p, y, n_bins, norm, edges) == pytest.approx(brute(p, y, n_bins, edges, norm), abs=1e-12)


def test_both_conventions_part_at_an_edge_only():
    p, y = np.array([[0.6, 0.4], [0.55, 0.45]]), np.array([0, 1])
    # (0.5, 0.6] holds both; [0.5, 0.6) the second only
    assert neural.calibration_error(p, y, 10, edges="right") == pytest.approx(abs(0.5 - 0.575))
    assert neural.calibration_error(p, y, 10, edges="left") == pytest.approx(0.5 * 0.4 + 0.5 * 0.55)
    f4 = torch.tensor(p, dtype=torch.float32)           # 0.6 lies on the edge in its own precision
    for edges in ("right", "left"):
        assert neural.calibration_error(f4, torch.tensor(y), 10, edges=edges) == pytest.approx(
            neural.calibration_error(p, y, 10, edges=edges), abs=1e-6)


def test_few_items_ties_and_one_class():
    assert neural.calibration_error([[1.0, 0.0]], [0]) == 0
    assert neural.calibration_error([[1.0, 0.0]], [1]) == 1
    assert neural.calibration_error([[1.0]], [0]) == 0
    assert neural.adaptive_calibration_error([[0.7, 0.3]] * 3, [0, 1, 0], 15) == pytest.approx(abs(2 / 3 - 0.7))
    p, y = drawn(2)
    assert np.isfinite(neural.adaptive_calibration_error(p, y, 15))


def test_the_upward_bias_of_few_items_is_told():
    """Labels drawn from the very probabilities: the true error is 0, all that 60 items show is bias, and the interval knows."""
    estimates = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = rng.dirichlet(np.ones(4), 60)
        y = np.array([rng.choice(4, p=row) for row in p])
        one = neural.scores((p, y))["ece"]
        estimates.append((one.value, one.bias, one.low))
    value, bias, low = np.mean(estimates, axis=0)
    assert value > 0.1
    assert bias > value / 4
    assert low < value / 4


def test_adaptive_bins_hold_equally_many():
    p, y = drawn(600, 3, seed=1)
    order = np.argsort(p.max(1))
    wanted = sum(abs((p.argmax(1) == y)[rows].mean() - p.max(1)[rows].mean()) for rows in np.split(order, 15)) / 15
    assert neural.adaptive_calibration_error(p, y) == pytest.approx(wanted, abs=1e-12)


def test_classwise_is_the_mean_over_classes():
    p, y = drawn(200, 3)
    total = []
    for c in range(3):
        where = np.clip(np.ceil(p[:, c] * 15).astype(int) - 1, 0, 14)
        total.append(sum(abs(((y == c) - p[:, c])[where == b].sum()) for b in range(15)) / 200)
    assert neural.classwise_calibration_error(p, y) == pytest.approx(np.mean(total), abs=1e-12)


def test_brier_parts_add_up():
    p, y = drawn(500)
    parts = neural.brier_decomposition(p, y)
    assert parts.brier == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(1).mean(), rel=1e-12)
    f = np.bincount(y, minlength=4) / 500
    assert parts.uncertainty == pytest.approx((f * (1 - f)).sum(), rel=1e-12)
    grid = np.array([[0.2, 0.8], [0.8, 0.2]])[np.random.default_rng(2).integers(0, 2, 400)]       # one value a bin
    exact = neural.brier_decomposition(grid, (np.random.default_rng(3).random(400) < grid[:, 1]).astype(int), 10)
    assert exact.within_bins == pytest.approx(0, abs=1e-12)
    assert exact.resolution > 0.1
    assert exact.reliability < 0.01


def test_scores_are_means_with_their_standard_errors():
    p, y = drawn()
    scores = neural.scores((p, y))
    nll = -np.log(p[np.arange(300), y])
    assert scores["nll"].value == pytest.approx(nll.mean(), rel=1e-12)
    assert scores["nll"].stderr == pytest.approx(nll.std(ddof=1) / np.sqrt(300), rel=1e-12)
    assert scores["brier"].value == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(1).mean(), rel=1e-12)
    assert scores["accuracy"].value == (p.argmax(1) == y).mean()
    assert scores["ece"].value == pytest.approx(neural.calibration_error(p, y), abs=1e-12)
    assert scores["ece_classwise"].value == pytest.approx(neural.classwise_calibration_error(p, y), abs=1e-12)
    assert scores["ece_adaptive"].value == pytest.approx(neural.adaptive_calibration_error(p, y), abs=1e-12)
    for score in scores.values():
        assert score.low <= score.value <= score.high
        assert score.n == 300
    again = neural.scores(prediction(torch.tensor(p).numpy(), y))
    assert {k: v.value for k, v in again.items()} == {k: v.value for k, v in scores.items()}


def test_groups_are_resampled_whole():
    """Each item ten times over: the error must be that of the items alone, not √10 smaller."""
    p, y = drawn(60)
    many, labels, names = p.repeat(10, 0), y.repeat(10), np.arange(60).repeat(10)
    alone, grouped = neural.scores((p, y)), neural.scores((many, labels), groups=names)
    for name in ("accuracy", "nll", "brier"):
        assert grouped[name].value == pytest.approx(alone[name].value)
        assert grouped[name].stderr == pytest.approx(alone[name].stderr)
    assert grouped["ece"].stderr == pytest.approx(alone["ece"].stderr, rel=0.15)
    assert neural.scores((many, labels))["nll"].stderr < 0.4 * alone["nll"].stderr
    shuffled = np.random.default_rng(1).permutation(600)
    mixed = neural.scores((many[shuffled], labels[shuffled]), groups=[f"patient {k}" for k in names[shuffled]])
    assert mixed["nll"].stderr == pytest.approx(alone["nll"].stderr)
    bins = neural.reliability(many, labels, groups=names)
    narrow, wide = neural.reliability(many, labels), neural.reliability(p, y)
    full = bins.counts > 0
    assert (bins.high - bins.low)[full].mean() == pytest.approx((wide.high - wide.low)[full].mean(), rel=0.25)
    assert (narrow.high - narrow.low)[full].mean() < 0.6 * (wide.high - wide.low)[full].mean()
    with pytest.raises(InputError, match="groups"):
        neural.scores((p, y), groups=[1, 2])
    with pytest.raises(InputError, match="two items or groups"):
        neural.scores((p, y), groups=np.zeros(60))


def test_pixels_are_not_items():
    rng = np.random.default_rng(4)
    p = np.repeat(np.repeat(rng.dirichlet([1, 1, 1], 30)[:, :, None, None], 4, 2), 4, 3)       # whole images alike
    y = np.repeat(np.repeat(rng.integers(0, 3, 30)[:, None, None], 4, 1), 4, 2)
    maps = neural.scores(prediction(p, y))
    alone = neural.scores((p[:, :, 0, 0], y[:, 0, 0]))
    for name in ("nll", "accuracy"):
        assert maps[name].stderr == pytest.approx(alone[name].stderr)
        assert maps[name].n == 30


def test_intervals_cover_the_truth():
    """A model that is off by a known amount, 100 times over: 95 % intervals hold the truth nearly as often as they say."""
    held = {"nll": 0, "accuracy": 0, "ece": 0}
    rng = np.random.default_rng(5)
    truth_ece = 0.1
    for _ in range(100):
        conf = rng.choice([0.65, 0.75, 0.85, 0.95], 400)       # middles of ten bins; right 10 points less often
        right = rng.random(400) < conf - truth_ece
        p = np.stack([conf, 1 - conf], 1)
        scores = neural.scores((p, np.where(right, 0, 1)), n_bins=10)
        c = np.array([0.65, 0.75, 0.85, 0.95])
        nll = -np.mean((c - truth_ece) * np.log(c) + (1 - c + truth_ece) * np.log(1 - c))
        for name, truth in (("nll", nll), ("accuracy", 0.8 - truth_ece), ("ece", truth_ece)):
            held[name] += scores[name].low <= truth <= scores[name].high
    assert min(held.values()) >= 87         # 95 are expected; 87 is 3.7 standard errors of a binomial below


def test_shares_near_one_are_covered():
    """Exactly, over all that 50 items of a model that is right with probability p can be; Student's covers 63 % at 0.98."""
    from scipy.stats import beta, binom

    from ensemblekit.neural.scores import mean_scores

    def scored(right, groups=None):
        return mean_scores((np.full((len(right), 2), [0.9, 0.1]), np.where(right, 0, 1)), groups)["accuracy"]

    bounds = np.array([(s.low, s.high) for s in (scored(np.arange(50) < k) for k in range(51))])
    np.testing.assert_allclose(bounds[1:, 0], beta.ppf(0.025, np.arange(1, 51), 51 - np.arange(1, 51)), rtol=1e-9)
    assert bounds[50, 1] == 1
    assert bounds[50, 0] == pytest.approx(0.025 ** (1 / 50))
    for p in (0.5, 0.9, 0.98, 0.998):
        held = (bounds[:, 0] <= p) & (p <= bounds[:, 1])
        assert binom.pmf(np.arange(51), 50, p)[held].sum() >= 0.95
    whole = scored(np.ones(500, bool), np.arange(500) % 10)
    assert whole.low == pytest.approx(0.025 ** (1 / 10))         # ten groups are ten items at most
    numbers = neural.RegressionPrediction(mean=np.zeros(50), aleatoric=np.ones(50), epistemic=np.zeros(50), target=np.zeros(50))
    assert neural.scores(numbers)["coverage"].low == pytest.approx(0.025 ** (1 / 50))


def test_paired_differences_of_few_items_are_covered():
    """Exactly, over numbers of items of 50 that only one of two models gets right; Student's covers 62 % at 0.02."""
    from scipy.stats import multinomial

    from ensemblekit.neural.scores import paired_share

    n, by_counts = 50, {}
    for gained in range(12):
        for lost in range(12):
            k = np.arange(n)
            s = paired_share((k < gained).astype(float), (k >= n - lost).astype(float), np.ones(n))
            assert s.value == pytest.approx((gained - lost) / n)
            by_counts[gained, lost] = s
    one, other = (np.where((np.arange(n) < k)[:, None], [0.1, 0.9], [0.9, 0.1]) for k in (1, 4))
    assert neural.compare((one, np.zeros(n, int)), (other, np.zeros(n, int)))["accuracy"] == by_counts[3, 0]
    for p, q in ((0.02, 0.02), (0.02, 0.0), (0.06, 0.02)):
        held = sum(multinomial.pmf([a, b, n - a - b], n, [p, q, 1 - p - q]) for (a, b), s in by_counts.items()
                   if s.low <= p - q <= s.high)
        assert held >= 0.94
    assert not by_counts[2, 0].significant
    assert by_counts[11, 0].significant


@pytest.mark.parametrize("groups", [4, 8])
def test_few_groups_are_covered(groups):
    """Calibration error, accuracy and NLL of groups that differ; before, 75 and 84 % for the first."""
    from ensemblekit.neural.items import items_of
    from ensemblekit.neural.scores import draws, mean_of, resampled, spread
    from ensemblekit.neural.summed import calibration_curves

    rng = np.random.default_rng(groups)
    level, off, repeats = np.array([0.65, 0.75, 0.85]), 0.1, 150
    held = dict.fromkeys(("ece", "accuracy", "brier"), 0)
    for _ in range(repeats):
        names = np.arange(groups).repeat(50)
        conf = rng.choice(level, len(names))
        right = rng.random(len(names)) < conf - off + rng.normal(0, 0.05, groups)[names]
        items = items_of(np.stack([conf, 1 - conf], 1), np.where(right, 0, 1), names)
        value, sample = resampled(calibration_curves(items, 10)["ece"], items.sizes, draws(items.n, 0))
        score = spread(value, sample, items.sizes, positive=True)
        held["ece"] += score.low <= off <= score.high
        brier = np.mean(2 * ((level - off) * (1 - level) ** 2 + (1 - level + off) * level**2))
        values = {"accuracy": (items.p.argmax(1) == items.labels).astype(float), "brier": np.where(
            right, 2 * (1 - conf) ** 2, 2 * conf**2)}
        for name, truth in (("accuracy", 0.65), ("brier", brier)):
            score = mean_of(name, items.sums(values[name]), items.sizes)
            held[name] += score.low <= truth <= score.high
    assert min(held.values()) >= 0.89 * repeats, held       # 95 % are asked for; 3.4 standard errors below


def test_one_large_group_among_small_ones_is_one_group():
    p, y = drawn(300)
    alike, uneven = np.arange(300) % 10, np.minimum(np.arange(300), 9)
    scores, other = (neural.scores((p, y), groups=g) for g in (alike, uneven))
    for name in ("accuracy", "nll", "ece"):
        assert other[name].high - other[name].low > 3 * (scores[name].high - scores[name].low), name


def test_scores_of_numbers_without_a_variance_say_so():
    rng = np.random.default_rng(0)
    mean, target = rng.normal(size=(2, 40))
    sure = neural.RegressionPrediction(mean=mean, aleatoric=np.zeros(40), epistemic=np.zeros(40), target=target)
    scores = neural.scores(sure)
    assert scores["mse"].value == pytest.approx(np.mean((mean - target) ** 2))
    assert scores["nll"].value == np.inf
    assert scores["coverage"].value == 0
    assert "nll and coverage: no answer has a variance" in str(scores)
    some = neural.RegressionPrediction(mean=mean, aleatoric=np.arange(40.0), epistemic=np.zeros(40), target=target)
    assert "1 of 40 answers have no variance" in str(neural.scores(some))
    assert "no answer has a variance" in str(neural.compare(some, sure))
    assert np.isfinite(neural.scores(neural.RegressionPrediction(
        mean=mean, aleatoric=np.ones(40), epistemic=np.zeros(40), target=target))["nll"].value)


def test_comparison_is_paired():
    p, y = drawn()
    q = 0.9 * p + 0.025
    scores = neural.compare((p, y), (q, y))
    gap = -np.log(p[np.arange(300), y]) + np.log(q[np.arange(300), y])
    assert scores["nll"].value == pytest.approx(gap.mean(), rel=1e-10)
    assert scores["nll"].stderr == pytest.approx(gap.std(ddof=1) / np.sqrt(300), rel=1e-10)
    assert scores["accuracy"].value == 0
    assert scores["nll"].stderr < 0.5 * neural.scores((p, y))["nll"].stderr
    back = neural.compare((q, y), (p, y))
    for name, score in scores.items():
        assert back[name].value == pytest.approx(-score.value, abs=1e-15)
        assert back[name].low == pytest.approx(-score.high, abs=1e-12)
    with pytest.raises(InputError, match="other labels"):
        neural.compare((p, y), (q, (y + 1) % 4))
    with pytest.raises(InputError, match="same items"):
        neural.compare((p, y), (q[:-1], y[:-1]))


@pytest.mark.parametrize(("p", "y", "why"), [
    ([[3.0, -1.0]] * 2, [0, 0], "softmax"), ([[0.5, 0.5]] * 2, [0, 2], "0 to 1"), ([[0.5, 0.5]] * 2, [0, -1], "0 to 1"),
    ([[0.5, 0.5]] * 2, [0.0, 1.0], "whole"), ([[0.5, 0.5]] * 2, [0], "labels"), (np.zeros((0, 2)), [], "n > 0"),
    ([[np.nan, 0.5]] * 2, [0, 0], "not finite"),
])
def test_what_cannot_be_scored(p, y, why):
    with pytest.raises(InputError, match=why):
        neural.scores((np.array(p), np.array(y)))
    with pytest.raises(InputError, match=why):
        neural.calibration_error(np.array(p), np.array(y))


def test_a_prediction_without_labels_cannot_be_scored():
    with pytest.raises(InputError, match="no labels"):
        neural.scores(neural.Prediction(np.array([[1.0, 0]]), None, np.zeros(1), np.zeros(1)))
    for wrong in ({"n_bins": 0}, {"norm": "l3"}, {"edges": "middle"}):
        with pytest.raises(InputError):
            neural.calibration_error([[1.0, 0]], [0], **wrong)


# -- temperature -------------------------------------------------------------------------------------------------------


def heated(p, t):
    q = p ** (1 / t)
    return q / q.sum(1, keepdims=True)


@pytest.mark.parametrize("t", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_comes_out(t):
    p, y = drawn(20_000, 5, seed=6)
    wrong = heated(p, 1 / t)                # too sure by t
    scaler = neural.TemperatureScaler().fit(wrong, y)
    assert scaler.temperature == pytest.approx(t, rel=0.04)
    np.testing.assert_allclose(scaler.transform(wrong), heated(wrong, scaler.temperature), rtol=1e-9, atol=1e-12)
    logits = np.log(wrong) + 7
    same = neural.TemperatureScaler("logits").fit(torch.tensor(logits), torch.tensor(y))
    assert same.temperature == pytest.approx(scaler.temperature, rel=1e-6)


def test_it_is_the_minimum_and_keeps_every_choice():
    p, y = drawn(200, 3, seed=7)
    scaler = neural.TemperatureScaler().fit(p, y)

    def nll(t):
        return -np.log(heated(p, t)[np.arange(200), y]).mean()

    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    best = grid[np.argmin([nll(t) + (1 / t + np.log(t)) / 200 for t in grid])]      # one item's worth of Gamma(2, 1)
    assert scaler.temperature == pytest.approx(best, rel=2e-3)
    assert nll(scaler.temperature) <= nll(1)
    likeliest = grid[np.argmin([nll(t) for t in grid])]
    assert best_temperature(np.log(p), y, prior=0) == pytest.approx(likeliest, rel=2e-3)
    assert scaler.temperature == pytest.approx(likeliest, rel=0.02)                  # which 200 items hardly feel
    np.testing.assert_array_equal(scaler.transform(p).argmax(1), p.argmax(1))


def test_it_scales_the_pool_not_the_members():
    """Rahaman & Thiery: pool, then scale. Scaling members first gives another answer."""
    rng = np.random.default_rng(8)
    members = rng.dirichlet(np.ones(3), (4, 500))
    pooled = members.mean(0)
    y = np.array([rng.choice(3, p=heated(row[None], 0.5)[0]) for row in pooled])
    pool = prediction(pooled, y, n_members=4)
    scaler = neural.TemperatureScaler().fit(pool)
    after = scaler.transform(pool)
    np.testing.assert_allclose(after.probabilities, heated(pooled, scaler.temperature), rtol=1e-9)
    first = np.mean([heated(m, scaler.temperature) for m in members], 0)
    assert abs(after.probabilities - first).max() > 0.05
    assert scaler.temperature == pytest.approx(0.5, abs=0.1)
    assert (after.epistemic >= 0).all()


def test_cross_fitting_never_uses_an_items_own_label():
    p, y = drawn(40, 3, seed=9)
    wrong = prediction(heated(p, 0.5), y)
    before = neural.TemperatureScaler().cross_fit(wrong, folds=4, seed=1).probabilities
    for i in (0, 13, 39):
        other = y.copy()
        other[i] = (other[i] + 1) % 3
        after = neural.TemperatureScaler().cross_fit(prediction(wrong.probabilities, other), folds=4, seed=1).probabilities
        np.testing.assert_array_equal(after[i], before[i])
        assert (after != before).any()
    groups = np.arange(40) // 2
    before = neural.TemperatureScaler().cross_fit(wrong, groups=groups).probabilities
    other = y.copy()
    other[6] = (other[6] + 1) % 3
    after = neural.TemperatureScaler().cross_fit(prediction(wrong.probabilities, other), groups=groups).probabilities
    np.testing.assert_array_equal(after[7], before[7])          # nor that of another item of its group


def test_certain_and_separable_items():
    p, y = np.log([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
    assert best_temperature(p, y, prior=0) == pytest.approx(0.01)                  # always right: no T is small enough
    assert best_temperature(p, y[::-1], prior=0) == pytest.approx(100)
    assert 0.5 < neural.TemperatureScaler().fit(np.exp(p), y).temperature < 1
    assert 1 < neural.TemperatureScaler().fit(np.exp(p), y[::-1]).temperature < 10
    many = neural.TemperatureScaler().fit(np.exp(p).repeat(500, 0), y.repeat(500)).temperature
    assert 0.1 < many < 0.5                                                        # the more, the surer, never without end
    zeros = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    assert np.isfinite(neural.TemperatureScaler().fit(zeros, [0, 0, 1]).transform(zeros)).all()
    p, y = drawn(4000, 3, seed=10)
    gap = neural.scores((heated(p, 0.5), y))
    assert gap["calibrated_nll"].value < gap["nll"].value
    fair = neural.scores((p, y))
    assert fair["calibrated_nll"].value == pytest.approx(fair["nll"].value, abs=2e-3)


def test_a_nearly_perfect_model_is_not_ruined_by_its_temperature():
    """One error among many right answers: the fold without it must not make it cost hundreds of nats."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        n = 300
        y = rng.integers(0, 10, n)
        logits = rng.normal(size=(n, 10)) + 7.0 * np.eye(10)[y]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p[0] = np.roll(p[0], 1)                                     # sure, and wrong
        plain = prediction(p, y)
        tempered = neural.TemperatureScaler().cross_fit(plain)
        before, after = neural.scores(plain), neural.scores(tempered)
        assert 0 < before["nll"].value < 0.1
        assert after["nll"].value < 1.5 * before["nll"].value
        assert before["calibrated_nll"].value < 1.5 * before["nll"].value
        assert tempered.tempered
        assert after["calibrated_nll"] == after["nll"]              # it is calibrated by the labels of other items already
        assert before["calibrated_nll"] != before["nll"]
        both = neural.compare(tempered, plain)
        assert both["calibrated_nll"].value == pytest.approx(
            after["nll"].value - before["calibrated_nll"].value, abs=1e-12)


def test_intervals_stay_within_what_a_score_can_be():
    p = np.full((40, 2), [0.999, 0.001])
    y = np.zeros(40, int)
    y[3] = 1                                                        # one error: half of Student's interval is below 0
    scores = neural.scores((p, y))
    for name in ("nll", "calibrated_nll", "brier"):
        assert scores[name].low == 0.0 < scores[name].value < scores[name].high
        assert scores[name].value < 1.96 * scores[name].stderr        # what would have been below
    assert 1.0 > scores["accuracy"].high > scores["accuracy"].value
    assert neural.compare((p, y), (p[:, ::-1], y))["nll"].low < 0   # differences have two signs
    numbers = neural.RegressionPrediction(mean=np.zeros(9), aleatoric=np.full(9, 1e-4), epistemic=np.zeros(9),
                                          target=np.eye(9)[0])
    assert neural.scores(numbers)["mse"].low == 0.0
    sure = neural.RegressionPrediction(mean=np.zeros(9), aleatoric=np.full(9, 1e-4), epistemic=np.zeros(9),
                                       target=np.zeros(9))
    assert neural.scores(sure)["nll"].low < 0                       # a density may be above 1


def test_what_is_printed_is_short_and_says_it():
    p, y = drawn(50, 4, seed=3)
    one = prediction(p, y, n_members=5)
    said = repr(one)
    assert len(said) < 200
    right = 100 * (p.argmax(1) == y).mean()
    for part in ("50 items", "4 classes", "5 members", f"accuracy {right:.4g} %", f"{one.entropy.mean():.3g}",
                 f"epistemic {one.epistemic.mean():.3g}"):
        assert part in said
    assert "cross-fitted" in repr(neural.TemperatureScaler().cross_fit(one))
    assert "accuracy" not in repr(prediction(p, None))
    pixels = np.moveaxis(p.reshape(2, 5, 5, 4), -1, 1)
    labels = y.reshape(2, 5, 5).copy()
    labels[0, 0, 0] = -1
    dense = neural.Prediction(pixels, labels, np.zeros((2, 5, 5)), np.zeros((2, 5, 5)), ignore_index=-1)
    kept = labels != -1
    assert f"accuracy {100 * (pixels.argmax(1) == labels)[kept].mean():.4g} %" in repr(dense)
    assert "2 items of 5 × 5" in repr(dense)
    repr(prediction(p[:0], y[:0]))
    numbers = neural.RegressionPrediction(mean=np.zeros((9, 2)), aleatoric=np.ones((9, 2)), epistemic=np.zeros((9, 2)),
                                          target=np.full((9, 2), 2.0))
    assert "9 items of 2" in repr(numbers)
    assert "error 2" in repr(numbers)
    table = neural.compare((p, y), (heated(p, 2.0), y))
    lines = str(table).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(table)
    assert lines[1].split()[1] == f"{table['accuracy'].value:.4g}"
    assert all(line.endswith("*") == score.significant for line, score in zip(lines[1:], table.values(), strict=True))
    assert any(score.significant for score in table.values())
    assert "*" not in repr(neural.scores((p, y)))
    assert repr(table["nll"]) == str(table["nll"])


def test_temperatures_that_are_refused():
    with pytest.raises(InputError, match="fit a temperature first"):
        neural.TemperatureScaler().transform([[0.5, 0.5]])
    with pytest.raises(InputError, match="softmax"):
        neural.TemperatureScaler().fit([[3.0, -1.0]], [0])
    with pytest.raises(InputError, match="logits"):
        neural.TemperatureScaler().fit([[0.5, 0.5]], [0]).transform([[3.0, -1.0]])
    with pytest.raises(InputError, match="inputs"):
        neural.TemperatureScaler("scores")
    p, y = drawn(5)
    with pytest.raises(InputError, match="folds"):
        neural.TemperatureScaler().cross_fit(prediction(p, y), folds=6)
    with pytest.raises(InputError, match="0 to 3"):
        neural.TemperatureScaler("logits").fit(np.log(p), [0, 1, 2, 3, 4])
