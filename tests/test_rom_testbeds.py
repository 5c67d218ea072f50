import numpy as np
import pytest

from ensemblekit import rom
from ensemblekit.errors import InputError


def test_a_slow_wake_is_steady_and_symmetric():
    wake = rom.testbeds.cylinder_wake(reynolds=20, cells=8, size=(4.0, 6.0, 8.0), window=(1.0, 4.0, 2.0))
    *_, last = wake.snapshots(2, every=1.0, after=40.0)
    u = last.velocity
    assert u.shape == (len(wake.y), len(wake.x), 2)
    assert abs(last.lift) < 0.02
    np.testing.assert_allclose(u[..., 0], u[::-1, :, 0], atol=0.02)     # mirror symmetry about the axis
    assert 2.0 < last.drag < 3.0                                        # 2.05 unbounded, more between close sides
    assert (u[wake.inside] == 0).all()
    behind = u[len(wake.y) // 2, wake.x > 0.55, 0]
    assert behind.min() < 0 < behind[-1]                                # a bubble of reversed flow, then recovery


def test_nothing_moves_without_a_pressure_to_move_it():
    from ensemblekit.rom.testbeds import equilibrium

    f = equilibrium(np.float64(0), np.float64(0))
    assert (f == 0).all()
    moving = equilibrium(np.float64(0.1), np.float64(-0.05))
    from ensemblekit.rom.kernels import CX, CY

    np.testing.assert_allclose([moving.sum(), moving @ CX, moving @ CY], [0, 0.1, -0.05], atol=1e-15)


@pytest.mark.parametrize("how", [{"speed": 0.5}, {"cells": 2}, {"reynolds": 1e5}, {"window": (11.0, 3.0, 2.0)}])
def test_settings_that_cannot_work(how):
    with pytest.raises(InputError):
        rom.testbeds.cylinder_wake(**how)


@pytest.mark.slow
def test_the_wake_sheds_at_the_known_frequency():
    wake = rom.testbeds.cylinder_wake(reynolds=100)
    found = list(wake.snapshots(160, every=0.3, after=55.0))
    lift, drag = np.array([s.lift for s in found]), np.array([s.drag for s in found])
    up = np.flatnonzero((lift[:-1] < 0) & (lift[1:] >= 0))
    crossings = up - lift[up] / (lift[up + 1] - lift[up])
    times = np.array([s.time for s in found])
    period = np.diff(np.interp(crossings, np.arange(len(times)), times)).mean()
    assert 0.16 < 1 / period < 0.173
    assert 1.30 < drag.mean() < 1.42
