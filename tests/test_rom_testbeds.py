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
    snapshots = list(wake.snapshots(160, every=0.3, after=55.0))
    lift, drag = np.array([s.lift for s in snapshots]), np.array([s.drag for s in snapshots])
    up = np.flatnonzero((lift[:-1] < 0) & (lift[1:] >= 0))
    crossings = up - lift[up] / (lift[up + 1] - lift[up])
    times = np.array([s.time for s in snapshots])
    period = np.diff(np.interp(crossings, np.arange(len(times)), times)).mean()
    assert 0.16 < 1 / period < 0.173
    assert 1.30 < drag.mean() < 1.42


@pytest.mark.parametrize("dimensions", [1, 2])
def test_each_sine_of_the_heat_decays_at_its_own_rate(dimensions):
    flow = rom.testbeds.heat(32, dimensions=dimensions, step=1e-5)
    run = rom.testbeds.record(flow, 3, 2e-3, after=1e-3)
    amplitudes = flow.amplitudes(run.arrays["temperature"])
    assert run.times.tolist() == pytest.approx([1e-3, 3e-3, 5e-3])
    # the trapezoidal rule takes a factor of (1 - λdt/2)/(1 + λdt/2) a step, along each axis
    half = 0.5e-5 * rom.testbeds.heat(32).rates()
    factor = ((1 - half) / (1 + half)) ** 500
    expected = flow.amplitudes(flow.start) * (factor if dimensions == 1 else np.outer(factor, factor))
    np.testing.assert_allclose(amplitudes[-1], expected, rtol=1e-8, atol=1e-15)
    slow = (0,) * dimensions
    assert amplitudes[-1][slow] / amplitudes[0][slow] == pytest.approx(np.exp(-flow.rates(False)[slow] * 4e-3), rel=1e-4)
    np.testing.assert_allclose(run.arrays["temperature"][-1], flow.exact(5e-3), atol=2e-2)


def test_the_rates_of_one_plate_mode_add():
    assert rom.testbeds.heat(16, dimensions=2).rates(False)[0, 2] == pytest.approx(np.pi**2 * (1 + 9))


def test_burgers_follows_cole_and_hopf_with_second_order():
    errors = []
    for cells in (256, 512):
        flow = rom.testbeds.burgers(0.02, cells=cells, drift=0.5)
        run = rom.testbeds.record(flow, 4, 0.25)
        np.testing.assert_allclose(run.arrays["velocity"][0], flow.exact(0.0), atol=1e-14)
        errors.append(max(np.abs(u - flow.exact(t)).max()
                          for u, t in zip(run.arrays["velocity"], run.times, strict=True)))
        assert run.arrays["velocity"].mean(1) == pytest.approx(0.5, abs=1e-12)      # momentum is kept
    assert errors[1] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.6


def test_the_exact_solution_of_burgers_solves_its_equation():
    flow, dt = rom.testbeds.burgers(0.1, cells=400, drift=-0.3), 1e-4
    h = flow.x[1] - flow.x[0]
    u = flow.exact(0.3)
    rate = (flow.exact(0.3 + dt) - flow.exact(0.3 - dt)) / (2 * dt)
    slope = (np.roll(u, -1) - np.roll(u, 1)) / (2 * h)
    bend = (np.roll(u, -1) - 2 * u + np.roll(u, 1)) / h**2
    assert np.abs(rate + u * slope - 0.1 * bend).max() < 3e-3 * np.abs(slope).max()


def test_the_cavity_settles_into_the_published_vortex():
    flow = rom.testbeds.startup_cavity(100, cells=48)
    run = rom.testbeds.record(flow, 25, 1.0)
    u = run.arrays["velocity"].astype(float)
    assert (u[0] == 0).all()
    assert np.abs(u[-1] - u[-2]).max() < 1e-3 * np.abs(u[-1]).max()
    middle = u[-1, :, 23:25, 0].mean(1)
    assert middle.min() == pytest.approx(-0.2109, abs=0.007)             # Ghia, Ghia and Shin 1982
    assert flow.y[middle.argmin()] == pytest.approx(0.4531, abs=0.03)
    mass = np.abs(u[-1, :, 23:25, 0].mean(1).sum())                      # what goes right comes back left
    assert mass < 0.02 * np.abs(middle).sum()


def test_energy_of_the_chaotic_flow_is_accounted_for():
    flow = rom.testbeds.kolmogorov_flow(40, cells=32, step=0.01)
    u = np.array([s.fields["velocity"] for s in flow.snapshots(41, 0.05, after=2.0)], dtype=float)
    budgets = [flow.budget(field) for field in u]
    assert max(abs(b.transfer) for b in budgets) < 1e-8 * budgets[0].dissipation + 1e-12
    rate = np.array([b.input - b.dissipation for b in budgets])
    gained = 0.05 * (rate[:-1] + rate[1:]).sum() / 2
    turned_over = 0.05 * sum(b.dissipation for b in budgets)
    assert budgets[-1].energy - budgets[0].energy == pytest.approx(gained, abs=2e-4 * turned_over)
    divergence = np.fft.ifft(1j * np.fft.fftfreq(32, 1 / 32) * np.fft.fft(u[-1, ..., 0], axis=1), axis=1) + (
        np.fft.ifft(1j * np.fft.fftfreq(32, 1 / 32)[:, None] * np.fft.fft(u[-1, ..., 1], axis=0), axis=0))
    assert np.abs(divergence).max() < 1e-4


def test_the_laminar_flow_is_a_solution_in_balance():
    flow = rom.testbeds.kolmogorov_flow(8, cells=32)
    budget = flow.budget(flow.laminar)
    assert budget.input == pytest.approx(budget.dissipation, rel=1e-12)
    assert budget.dissipation == pytest.approx(8 / 32)                    # Re / 2 waves²


@pytest.mark.slow
def test_work_and_dissipation_of_the_chaotic_flow_balance_in_the_mean():
    flow = rom.testbeds.kolmogorov_flow(40, cells=48, step=0.03)
    run = rom.testbeds.record(flow, 600, 0.5, after=30.0)
    work, heat = run.arrays["input"], run.arrays["dissipation"]
    assert np.std(heat) > 0.05 * heat.mean()                             # it is not steady
    assert work.mean() == pytest.approx(heat.mean(), rel=0.02)


@pytest.mark.parametrize("make", [
    lambda: rom.testbeds.heat(2), lambda: rom.testbeds.heat(dimensions=3), lambda: rom.testbeds.heat(diffusivity=0),
    lambda: rom.testbeds.burgers(0.001, cells=64), lambda: rom.testbeds.burgers(-1),
    lambda: rom.testbeds.startup_cavity(1e5), lambda: rom.testbeds.startup_cavity(cells=4),
    lambda: rom.testbeds.startup_cavity(0.1), lambda: rom.testbeds.kolmogorov_flow(cells=15),
    lambda: rom.testbeds.kolmogorov_flow(waves=30), lambda: rom.testbeds.kolmogorov_flow(-4),
    lambda: rom.testbeds.record(rom.testbeds.heat(16), 0, 0.1), lambda: rom.testbeds.record(rom.testbeds.heat(16), 2, 0),
])
def test_flows_that_cannot_be(make):
    with pytest.raises(InputError):
        make()
