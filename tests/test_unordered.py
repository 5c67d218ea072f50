"""Snapshots in no order in time: independent errors, Kish's n_eff, no equilibration, and what speaks of time refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import ensemblekit as ek
from ensemblekit.averaging.circular import circular_average
from ensemblekit.averaging.independent import NOTE
from ensemblekit.errors import InputError
from ensemblekit.source_protocol import described
from ensemblekit.source_views import weighted_by


def plain_error(x: np.ndarray, w: np.ndarray) -> tuple[float, float, float]:
    """Weighted mean, its standard error and Kish's n_eff, from the formula alone."""
    mean = np.average(x, weights=w)
    n_eff = w.sum() ** 2 / (w**2).sum()
    return mean, math.sqrt((w**2 * (x - mean) ** 2).sum() / w.sum() ** 2 * n_eff / (n_eff - 1)), n_eff


@pytest.fixture
def sorted_values() -> np.ndarray:
    """Independent numbers, sorted: to any estimator that asks for order they are one long drift."""
    return np.sort(np.random.default_rng(3).normal(5.0, 2.0, 40))


def test_a_scalar_has_the_textbook_error_whatever_its_order(sorted_values: np.ndarray) -> None:
    answer = ek.average(ek.ArraySource.of(sorted_values, ordered=False))
    half = stats.t.ppf(0.975, 39) * sorted_values.std(ddof=1) / math.sqrt(40)
    assert answer.mean == pytest.approx(sorted_values.mean(), rel=1e-14)
    assert answer.stderr == pytest.approx(sorted_values.std(ddof=1) / math.sqrt(40), rel=1e-12)
    assert answer.n_eff == pytest.approx(40)
    assert answer.dof == pytest.approx(39)
    assert answer.high - answer.mean == pytest.approx(half, rel=1e-9)
    assert answer.converged
    assert answer.n_discarded == 0
    assert NOTE in answer.verdict
    assert not ek.average(sorted_values).converged       # taken for a series it is a drift
    mixed = ek.average(ek.ArraySource.of(np.random.default_rng(0).permutation(sorted_values), ordered=False))
    assert mixed.stderr == pytest.approx(answer.stderr, rel=1e-12)


def test_weights_count_by_kish(sorted_values: np.ndarray) -> None:
    w = np.random.default_rng(5).uniform(0.2, 1.0, 40)
    mean, stderr, n_eff = plain_error(sorted_values, w)
    answer = ek.average(ek.ArraySource.of(sorted_values, weights=w * 1e200, ordered=False))
    assert (answer.mean, answer.stderr, answer.n_eff, answer.dof) == pytest.approx((mean, stderr, n_eff, n_eff - 1), rel=1e-11)
    array = ek.average(ek.ArraySource.of(np.stack([sorted_values, -3 * sorted_values], axis=1), weights=w, ordered=False))
    assert array.mean == pytest.approx(np.array([mean, -3 * mean]), rel=1e-12)
    assert array.stderr == pytest.approx(np.array([stderr, 3 * stderr]), rel=1e-9)
    assert array.n_eff == pytest.approx(np.array([n_eff, n_eff]))
    assert array.dof == pytest.approx(np.array([n_eff - 1, n_eff - 1]))


def test_views_windows_and_replicas_hand_it_on(sorted_values: np.ndarray) -> None:
    source = ek.ArraySource.of(sorted_values, ordered=False)
    seen = weighted_by(source, np.linspace(0.5, 1, 40), None)
    assert not seen.ordered
    assert not seen.window(2, None, 2).ordered
    assert not source.window(5).ordered
    both = ek.ReplicaSet.of([source, ek.ArraySource.of(np.random.default_rng(1).normal(5.0, 2.0, 500))])
    assert not both.ordered
    assert not both.stacked().ordered
    assert [run.ordered for run in ek.partials(both, {"m": ek.Moments()})] == [False, True]     # each run by its own order

    class Own:
        fields, lengths, access, time_unit, ordered = source.fields, source.lengths, "rows", "", False
        window, pieces = source.window, source.pieces

    assert not described(Own()).ordered
    assert ek.average(Own()).stderr == pytest.approx(sorted_values.std(ddof=1) / math.sqrt(40))
    assert all(not run.ordered for run in ek.partials(source, {"m": ek.Moments()}))


def test_a_function_of_the_mean_has_the_jackknife_over_single_snapshots(sorted_values: np.ndarray) -> None:
    from ensemblekit.averaging.average import VALUES, estimate_of
    from ensemblekit.averaging.function_of_mean import function_of_mean
    from ensemblekit.averaging.observed import Observed

    columns = np.stack([sorted_values, sorted_values**2], axis=1)
    (run,) = ek.partials(ek.ArraySource.of(columns, ordered=False), {VALUES: ("values", Observed())})
    answer = function_of_mean(run, VALUES, lambda m: m[1] / m[0], estimate_of(run, VALUES))
    n = len(columns)
    left_out = np.array([(rest := np.delete(columns, k, axis=0).mean(axis=0))[1] / rest[0] for k in range(n)])
    plain = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    assert answer.stderr == pytest.approx(plain, rel=1e-9)
    assert answer.dof == pytest.approx(n - 1)
    moments = ek.partials(ek.ArraySource.of(sorted_values, ordered=False), {"m": ek.Moments()})[0]
    spread = moments.estimate("m", lambda m: m.mean**2)
    left_out = np.array([np.delete(sorted_values, k).mean() ** 2 for k in range(n)])
    assert spread.stderr == pytest.approx(math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()), rel=1e-9)


def test_angles_are_averaged_on_the_circle_without_order() -> None:
    angles = np.sort((np.random.default_rng(2).normal(180.0, 20.0, 60) + 180) % 360 - 180)
    answer = ek.average(ek.ArraySource.of(angles, unit="degree", ordered=False), period=360.0)
    r = np.radians(angles)
    direction = math.atan2(np.sin(r).mean(), np.cos(r).mean())
    length = math.hypot(np.sin(r).mean(), np.cos(r).mean())
    plain = np.degrees((np.sin(r - direction) / length).std(ddof=1) / math.sqrt(60))
    assert answer.stderr == pytest.approx(plain, rel=1e-9)
    assert abs((answer.mean - math.degrees(direction) + 180) % 360 - 180) < 1e-9
    assert circular_average(angles, ordered=False).mean.stderr == pytest.approx(plain, rel=1e-9)


def test_intervals_cover_whatever_the_order() -> None:
    rng, hits = np.random.default_rng(11), 0
    for _ in range(400):
        x = np.sort(rng.normal(size=12))
        answer = ek.average(ek.ArraySource.of(x, ordered=False))
        hits += answer.low <= 0 <= answer.high
    assert 0.93 <= hits / 400 <= 0.97


def test_every_engine_gives_the_same_bits(sorted_values: np.ndarray) -> None:
    source = ek.ArraySource.of(np.outer(sorted_values, [1.0, 2.0, 3.0]), weights=np.linspace(0.1, 1, 40), ordered=False)
    first, *others = [ek.average(source, engine=engine) for engine in (ek.Serial(), ek.Threads(3))]
    assert all(np.array_equal(first.stderr, one.stderr) and np.array_equal(first.mean, one.mean) for one in others)


@pytest.mark.parametrize(("make", "words"), [
    (lambda x: ek.average(ek.ArraySource.of(x, ordered=False), equilibration=5), "in no order"),
    (lambda x: ek.average(ek.ArraySource.of(np.stack([x, x], 1), ordered=False), equilibration=1.5), "in no order"),
    (lambda x: ek.ArraySource.of(x, times=np.arange(40.0), ordered=False), "do not follow each other in time"),
])
def test_what_speaks_of_order_is_refused(make, words: str, sorted_values: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=words):
        make(sorted_values)


def test_few_snapshots_and_heavy_ones_are_doubted() -> None:
    few = ek.average(ek.ArraySource.of(np.array([1.0, 2.0, 4.0]), ordered=False))
    assert not few.converged
    assert "3 snapshots: an error needs at least 4" in few.verdict
    assert math.isnan(few.stderr)
    eight = ek.average(ek.ArraySource.of(np.arange(8.0), ordered=False))
    assert not eight.converged
    assert "only 8 independent snapshots" in eight.verdict
    w = np.ones(60)
    w[7] = 10.0
    heavy = ek.average(ek.ArraySource.of(np.arange(60.0), weights=w, ordered=False))
    assert not heavy.converged
    assert "one snapshot carries 14 % of all weight" in heavy.verdict
    alone = ek.average(ek.ArraySource.of(np.arange(60.0), weights=np.eye(60)[3], ordered=False))
    assert not alone.converged
    assert alone.mean == 3.0
    assert math.isnan(alone.stderr)
    same = ek.average(ek.ArraySource.of(np.full(20, 7.0), ordered=False))
    assert not same.converged
    assert same.stderr == 0


def test_missing_snapshots_have_no_weight() -> None:
    x = np.random.default_rng(6).normal(size=50)
    x[[3, 17]] = np.nan
    answer = ek.average(ek.ArraySource.of(x, ordered=False), missing="drop")
    there = x[~np.isnan(x)]
    assert answer.mean == pytest.approx(there.mean(), rel=1e-12)
    assert answer.stderr == pytest.approx(there.std(ddof=1) / math.sqrt(48), rel=1e-9)
