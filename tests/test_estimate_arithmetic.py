"""Calculating with estimates: as the delta method by hand, covering as often as said, refused where it would be wrong."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.estimate_arithmetic import power_unit, times_unit
from ensemblekit.errors import InputError

RNG = np.random.default_rng(11)
A = ek.average(RNG.normal(5, 1, 600), unit="m")
B = ek.average(RNG.normal(3, 1, 400), unit="m")
WIDE = ek.average(RNG.normal(5, 1, (600, 3)), unit="m", coords={"x": [1.0, 2.0, 3.0]})


def test_as_a_number() -> None:
    assert float(A) == A.mean
    assert np.asarray(A) == A.mean
    np.testing.assert_array_equal(np.asarray(WIDE), WIDE.mean)
    assert f"{A:.2f}" == f"{A.mean:.2f} ± {(A.high - A.low) / 2:.2f} m"
    assert f"{A}" == str(A)
    assert f"{A:>200}".endswith(str(A)) or f"{A:>200s}".endswith(str(A))
    with pytest.raises(InputError, match=r"use \.mean"):
        float(WIDE)
    with pytest.raises(InputError, match="one number"):
        f"{WIDE:.2f}"


@pytest.mark.parametrize(("make", "mean", "stderr", "unit"), [
    (lambda: A + B, A.mean + B.mean, np.hypot(A.stderr, B.stderr), "m"),
    (lambda: A - B, A.mean - B.mean, np.hypot(A.stderr, B.stderr), "m"),
    (lambda: A * B, A.mean * B.mean, np.hypot(A.stderr * B.mean, B.stderr * A.mean), "m2"),
    (lambda: A / B, A.mean / B.mean, A.mean / B.mean * np.hypot(A.stderr / A.mean, B.stderr / B.mean), ""),
    (lambda: 2 * A + 1, 2 * A.mean + 1, 2 * A.stderr, "m"),
    (lambda: 1 - A, 1 - A.mean, A.stderr, "m"),
    (lambda: A / 4, A.mean / 4, A.stderr / 4, "m"),
    (lambda: 1 / A, 1 / A.mean, A.stderr / A.mean**2, "m-1"),
    (lambda: A**2, A.mean**2, 2 * A.mean * A.stderr, "m2"),
    (lambda: abs(-A), A.mean, A.stderr, "m"),
    (lambda: np.sqrt(A * A), None, None, "m"),
    (lambda: np.sqrt(A), A.mean**0.5, A.stderr / 2 / A.mean**0.5, "(m)^0.5"),
    (lambda: np.log(A), np.log(A.mean), A.stderr / A.mean, ""),
    (lambda: np.exp(A), np.exp(A.mean), A.stderr * np.exp(A.mean), ""),
    (lambda: np.float64(2) * A, 2 * A.mean, 2 * A.stderr, "m"),
    (lambda: np.array([1.0, 2, 3]) * WIDE, np.array([1, 2, 3]) * WIDE.mean, np.array([1, 2, 3]) * WIDE.stderr, "m"),
], ids=range(16))
def test_errors_are_those_of_the_delta_method(make: Callable[[], Any], mean: Any, stderr: Any, unit: str) -> None:
    if mean is None:        # of one run: refused
        with pytest.raises(InputError, match="come from one run"):
            make()
        return
    e = make()
    np.testing.assert_allclose(e.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(e.stderr, stderr, rtol=1e-12)
    assert e.unit == unit
    assert np.all(np.asarray(e.low) < e.mean)
    assert np.all(e.mean < np.asarray(e.high))


def test_the_interval_goes_through_the_function() -> None:
    x = ek.average(RNG.normal(0.1, 1, 60), equilibration=None)
    assert x.low < 0
    squared = x**2
    assert squared.low == 0
    assert squared.high == max(x.low**2, x.high**2)
    inverse = 1 / x
    assert not inverse.converged
    assert (inverse.low, inverse.high) == (-np.inf, np.inf)
    np.testing.assert_allclose((-A).interval, (-A.high, -A.low))
    np.testing.assert_allclose(np.log(A).interval, np.log(A.interval))
    with pytest.raises(InputError, match="above 0"):
        np.log(-A)


def test_intervals_of_a_ratio_cover() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        ratio = ek.average(rng.normal(5, 1, 64), equilibration=None) / ek.average(rng.normal(3, 1, 64), equilibration=None)
        inside += ratio.low < 5 / 3 < ratio.high
    assert inside >= 200 * 0.95 - 4 * np.sqrt(200 * 0.95 * 0.05)


def test_two_of_one_run_are_refused(tmp_path: Any) -> None:
    x = RNG.normal(size=(300, 2))
    a, b = ek.average(x[:, 0]), ek.average(x[:, 1])
    for does in (operator.add, operator.sub, operator.mul, operator.truediv):
        for other in (b, a, a + 1, ek.Estimate.from_dict(b.to_dict())):
            with pytest.raises(InputError, match=r"come from one run.*map="):
                does(a, other)
    runs = RNG.normal(size=(2, 300))
    assert (ek.average(runs[0]) - ek.average(runs[1])).n == 600        # each its own memory: independent runs
    both = ek.average(ek.ReplicaSet.of([runs[0], runs[1]]))
    with pytest.raises(InputError, match="come from one run"):
        both - ek.average(runs[1])
    total = ek.average(runs[0]) + ek.average(runs[1])
    with pytest.raises(InputError, match="come from one run"):
        total - ek.average(runs[1])
    with ek.create(tmp_path / "a.h5", {"u": ek.Field(), "v": ek.Field()}) as store:
        store.extend({"u": x[:, 0], "v": x[:, 1]})
    store = ek.open(tmp_path / "a.h5")
    with pytest.raises(InputError, match="come from one run"):
        ek.average(store["u"]) - ek.average(store["v"])
    assert all(ek.average(np.random.default_rng(k).normal(size=50), unit="m") + A for k in range(3))  # memory used again


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="one unit"):
        A - ek.average(RNG.normal(5, 1, 100), unit="s")
    with pytest.raises(InputError, match="one shape"):
        WIDE + A
    with pytest.raises(InputError, match=r"shape \(3,\) meets numbers of shape \(4,\)"):
        WIDE * np.ones(4)
    with pytest.raises(InputError, match=r"numpy.sin has no rule"):
        np.sin(A)
    with pytest.raises(InputError, match="divided by 0"):
        A / 0
    with pytest.raises(TypeError):
        A + "a"     # type: ignore[operator]


def test_equal_by_value_and_there_and_back() -> None:
    x = RNG.normal(size=200)
    assert ek.average(x) == ek.average(x.copy())
    assert hash(ek.average(x)) == hash(ek.average(x.copy()))
    assert ek.average(x) != ek.average(x + 1)
    assert A != A.mean
    for e in (A, WIDE, ek.average(np.full(5, 2.0)), ek.average(RNG.normal(size=3)), A / B):
        record = json.loads(json.dumps(e.to_dict()))
        again = ek.Estimate.from_dict(record)
        assert again == e
        assert again.to_dict() == e.to_dict()
    with pytest.raises(InputError, match="no record of an Estimate"):
        ek.Estimate.from_dict({"mean": 3})


def test_units_of_products_and_powers() -> None:
    assert times_unit("m", "m s-1") == "m2 s-1"
    assert times_unit("m s-1", "s") == "m"
    assert power_unit("m s-1", 2) == "m2 s-2"
    assert power_unit("m2 s-2", 0.5) == "m s-1"
    assert power_unit("", 0.5) == ""
