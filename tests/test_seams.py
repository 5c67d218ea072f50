"""Angles that jump from one end of their turn to the other are told from numbers that only spread."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.seams import Seams, seam_of
from ensemblekit.errors import InputError


def walk(n=800, memory=0.9, step=0.2, seed=1):
    x = np.zeros(n)
    noise = np.random.default_rng(seed).normal(0, step, n)
    for k in range(1, n):
        x[k] = memory * x[k - 1] + noise[k]
    return x


def wrapped(x, low, high):
    return (x - low) % (high - low) + low


@pytest.mark.parametrize(("unit", "branch"), [("", (-180.0, 180.0)), ("degrees", (0.0, 360.0)), ("rad", (-math.pi, math.pi)),
                                              ("", (0.0, 2 * math.pi))])
def test_an_angle_at_the_end_of_its_turn_is_doubted_and_the_period_mends_it(unit, branch):
    turn = branch[1] - branch[0]
    x = wrapped(branch[1] + walk() * turn / (2 * math.pi), *branch)
    plain = ek.average(x, unit=unit)
    assert not plain.converged
    assert "comes round" in plain.verdict
    mended = ek.average(x, unit=unit, period=turn)
    assert mended.converged
    assert abs(math.remainder(mended.mean - branch[1], turn)) < 2.5 * (mended.high - mended.low) / 2 < 0.1 * turn
    assert 0 < mended.resultant.mean < 1
    both = ek.average(ek.ReplicaSet.of([ek.ArraySource.of(part, unit=unit) for part in (x, x[100:])]))
    assert "comes round" in both.verdict
    assert not both.converged


def test_numbers_that_only_spread_are_no_angles():
    rng = np.random.default_rng(2)
    for x in (rng.normal(size=2000), rng.uniform(-2, 2, 500), 360 * (rng.uniform(size=500) < 0.5) - 180.0 + 30,
              wrapped(0.5 * walk(), -math.pi, math.pi), 3 * walk(), rng.normal(180, 20, 500)):
        assert seam_of(x) is None
    jumps = wrapped(math.pi + walk(), -math.pi, math.pi)
    assert seam_of(jumps) == (-math.pi, math.pi)
    assert seam_of(jumps, "nm") is None         # its unit says that it is none
    assert seam_of(np.degrees(jumps), "rad") is None


def test_one_slow_passage_over_the_end_tells():
    x = wrapped(np.linspace(150.0, 215.0, 200), -180, 180)
    assert seam_of(x) == (-180.0, 180.0)


def test_seams_are_the_same_for_every_cut():
    x = np.column_stack([walk(), wrapped(math.pi + walk(seed=3), -math.pi, math.pi)])
    whole = Seams()
    whole.update(x, 0)
    for edges in ([0, 1, 2, 800], [0, 0, 400, 401, 800], range(0, 801, 100)):
        total = Seams()
        for a, b in itertools.pairwise(edges):
            part = total.empty()
            part.update(x[a:b], a)
            total.merge(part.restored(part.state()))
        assert total.result() == whole.result() == (-math.pi, math.pi)
        for name, value in whole.parts.items():
            np.testing.assert_allclose(total.parts[name], value, rtol=1e-12, err_msg=name)


def test_periods_that_are_none():
    for period in (0, -360.0, math.nan):
        with pytest.raises(InputError, match="period is the turn"):
            ek.average(walk(), period=period)
    with pytest.raises(InputError, match="one number a snapshot"):
        ek.average(walk().reshape(-1, 2), period=360)
