"""Numbers of cycles for a budget; the end of a training whose time runs out."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402


@pytest.mark.parametrize(("epochs", "steps", "cycles"), [(200, 781, 5), (300, 781, 6), (90, 5005, 6), (20, 100, 1)])
def test_plans_of_published_budgets(epochs, steps, cycles):
    plan = neural.plan(epochs, steps)
    assert plan.n_cycles == cycles
    assert sum(plan.cycle_steps) == plan.total_steps == epochs * steps
    assert max(plan.cycle_steps) - min(plan.cycle_steps) <= 1
    assert bool(plan.warnings) == (epochs == 20)


def test_plan_says_what_is_doubtful():
    short = neural.plan(30, 100, n_cycles=10)
    assert "shorter" in short.warnings[0]
    assert "1 cycle would be safer" in str(short)
    cut = neural.plan(200, 500, seconds=3600, seconds_per_step=0.1)
    assert cut.total_steps == 36000
    assert cut.seconds == pytest.approx(3600)
    assert any("limit" in warning for warning in cut.warnings)
    assert any("12 members" in warning for warning in neural.plan(600, 1000, n_cycles=12).warnings)
    with pytest.raises(InputError, match="budget"):
        neural.plan()
    with pytest.raises(InputError, match="11 cycles"):
        neural.plan(total_steps=10, n_cycles=11)


def test_a_pilot_run_sets_the_length():
    losses = 2 * np.exp(-np.arange(1000) / 60) + 0.01 * np.random.default_rng(0).normal(size=1000)
    plan = neural.plan(total_steps=1500, pilot=losses)
    assert 150 < 1500 / plan.n_cycles < 1500 / 3
    assert plan.n_cycles >= 4
    assert neural.plan(total_steps=1500).n_cycles == 1


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def drive(total, cycles, seconds, duration, least=0.3):
    """Steps of a given duration until the deadline stops them: rates, ends that were passed, the time it took."""
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = neural.CyclicCosineLR(opt, total_steps=total, n_cycles=cycles)
    clock = Clock()
    deadline = neural.Deadline(schedule, seconds, clock=clock, least=least)
    rates, passed = [], []
    for t in range(1, total + 1):
        rates.append(opt.param_groups[0]["lr"])
        clock.now += duration(t)
        opt.step()
        schedule.step()
        if schedule.last_epoch in schedule.ends:
            passed.append(t)
        if deadline.reached():
            break
    return np.array(rates), passed, clock.now, deadline


@pytest.mark.parametrize("seconds", [37.0, 61.0, 75.0, 99.0, 120.0, 155.0])
def test_a_deadline_ends_at_a_minimum_in_time(seconds):
    rates, passed, took, deadline = drive(200, 4, seconds, lambda t: 1.0)
    assert took <= seconds
    assert passed[-1] == len(rates)                     # the last step is an end: a snapshot is due there
    assert rates[-1] < 0.02
    assert took > 0.6 * seconds                         # and the time was used
    assert deadline.finished_early


def test_a_deadline_that_is_far_away_changes_nothing():
    rates, passed, _, deadline = drive(200, 4, 1000.0, lambda t: 1.0)
    assert passed == [50, 100, 150, 200]
    assert len(rates) == 200
    assert not deadline.finished_early


def test_a_machine_grown_slow_and_a_first_step_that_compiles():
    rates, passed, took, _ = drive(200, 4, 100.0, lambda t: 1.0 if t < 70 else 1.6)
    assert took <= 105
    assert passed[-1] == len(rates)
    assert rates[-1] < 0.05
    rates, passed, took, deadline = drive(60, 2, 100.0, lambda t: 30.0 if t == 1 else 1.0)
    assert passed == [30, 60]
    assert not deadline.finished_early
