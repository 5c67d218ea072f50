"""Rates by formula, floors, peaks and groups; ends; states in mid-cycle; an early finish."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402


def optimizer(*rates, kind=torch.optim.SGD, **options):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates or (0.2,)]
    return kind(groups, **options)


def run(schedule, steps):
    """The rate of each group at each step, (steps, groups), and what the schedule says is due after which step."""
    opt, rates, ends = schedule.optimizer, [], []
    for t in range(1, steps + 1):
        rates.append([float(group["lr"]) for group in opt.param_groups])
        if schedule.at_cycle_end:
            ends.append(t)
        opt.step()
        schedule.step()
    return np.array(rates), ends


@settings(max_examples=60)
@given(st.integers(1, 300).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t))))
def test_paper_mode_is_equation_2_at_every_step(budget):
    total, cycles = budget
    lrs, ends = run(neural.CyclicCosineLR(optimizer(0.2), total_steps=total, n_cycles=cycles, mode="paper"), total)
    length = math.ceil(total / cycles)
    wanted = [0.1 * (math.cos(math.pi * ((t - 1) % length) / length) + 1) for t in range(1, total + 1)]
    np.testing.assert_allclose(lrs[:, 0], wanted, rtol=0, atol=1e-12)
    assert lrs[0, 0] == 0.2
    assert ends == [*range(length, total, length), total]


@settings(max_examples=60)
@given(st.integers(1, 300).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t))))
def test_balanced_cycles_differ_by_one_step_and_all_come_down(budget):
    total, cycles = budget
    schedule = neural.CyclicCosineLR(optimizer(0.2), total_steps=total, n_cycles=cycles)
    lrs, ends = run(schedule, total)
    lengths = np.diff([0, *ends])
    assert len(ends) == cycles
    assert ends[-1] == total
    assert lengths.max() - lengths.min() <= 1
    for start, end in zip([0, *ends], ends, strict=False):
        length = end - start
        wanted = 0.1 * (np.cos(np.pi * np.arange(length) / length) + 1)
        np.testing.assert_allclose(lrs[start:end, 0], wanted, rtol=0, atol=1e-12)
        assert lrs[end - 1, 0] == lrs[start:end, 0].min()


def test_the_published_figures_of_a_last_cycle_cut_short():
    def last(mode):
        return run(neural.CyclicCosineLR(optimizer(1.0), total_steps=100, n_cycles=3, mode=mode), 100)[0][-1, 0]

    assert last("paper") == pytest.approx(0.0191, abs=5e-5)     # 32 of 34 steps: not at the minimum
    assert last("balanced") < 0.0025
    assert last("reference") == pytest.approx(0.0085, abs=5e-4)


def test_reference_mode_is_one_step_ahead():
    paper = run(neural.CyclicCosineLR(optimizer(1.0), total_steps=60, n_cycles=3, mode="paper"), 60)[0][:, 0]
    ahead = run(neural.CyclicCosineLR(optimizer(1.0), total_steps=60, n_cycles=3, mode="reference"), 60)[0][:, 0]
    np.testing.assert_allclose(ahead[:19], paper[1:20], atol=1e-15)
    np.testing.assert_allclose(ahead[19::20], 0, atol=1e-15)
    assert ahead[0] < 1


def test_groups_floors_warmup_and_peaks():
    schedule = neural.CyclicCosineLR(optimizer(0.2, 0.02), total_steps=50, n_cycles=4, warmup_steps=10, peak_decay=0.5,
                                     eta_min=[0.001, 0.002], alphas=[1, 2, 1, 1], mode="reference")
    lrs, ends = run(schedule, 50)
    np.testing.assert_allclose(lrs[:10, 0], 0.2 * np.arange(1, 11) / 11, rtol=1e-12)
    np.testing.assert_allclose(lrs[:10, 1], 0.02 * np.arange(1, 11) / 11, rtol=1e-12)
    assert ends == [20, 30, 40, 50]
    for k, peak in enumerate((1, 2 * 0.5, 0.25, 0.125)):
        first = 0.5 * (1 + math.cos(math.pi / 10))
        row = lrs[10 + 10 * k]
        np.testing.assert_allclose(row, [0.2 * peak * first + 0.001 * (1 - first), 0.02 * peak * first + 0.002 * (1 - first)],
                                   rtol=1e-12)
        np.testing.assert_allclose(lrs[19 + 10 * k], [0.001, 0.002], rtol=1e-12)


def test_cycles_that_grow():
    schedule = neural.CyclicCosineLR(optimizer(), total_steps=70, n_cycles=3, T_mult=2)
    assert schedule.starts == [0, 10, 30, 70]
    with pytest.raises(InputError, match="no step at all"):
        neural.CyclicCosineLR(optimizer(), total_steps=20, n_cycles=10, T_mult=3)


@pytest.mark.parametrize(("options", "word"), [
    ({"n_cycles": 11}, "one step a cycle"), ({"n_cycles": 0}, "one step a cycle"), ({"n_cycles": 2.5}, "whole number"),
    ({"mode": "lua"}, "mode"), ({"T_mult": 2, "mode": "paper"}, "T_mult"), ({"alphas": [1]}, "alphas"),
    ({"eta_min": [0, 0, 0]}, "eta_min"), ({"warmup_steps": 9}, "one step a cycle"), ({"peak_decay": 0}, "peak_decay"),
    ({"momentum": "drop"}, "momentum"),
])
def test_schedules_that_cannot_be(options, word):
    with pytest.raises(InputError, match=word):
        neural.CyclicCosineLR(optimizer(), **{"total_steps": 10, "n_cycles": 2, **options})


def test_a_tensor_for_a_rate_is_filled_in_place():
    rate = torch.tensor(0.2)
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = neural.CyclicCosineLR(opt, total_steps=30, n_cycles=3)
    held = opt.param_groups[0]["lr"]
    for _ in range(14):
        opt.step()
        schedule.step()
    other = neural.CyclicCosineLR(optimizer(0.2), total_steps=30, n_cycles=3)
    assert opt.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(other.rate(14), rel=1e-6)
    schedule.load_state_dict(schedule.state_dict())
    assert opt.param_groups[0]["lr"] is held


MAKERS = {
    "cosine": lambda o: neural.CyclicCosineLR(o, total_steps=23, n_cycles=3, eta_min=0.01, warmup_steps=2),
    "reset": lambda o: neural.CyclicCosineLR(o, total_steps=23, n_cycles=3, momentum="reset"),
    "triangular": lambda o: neural.TriangularLR(o, total_steps=23, n_cycles=3, alpha_1=0.1, alpha_2=0.01, start_step=5),
    "constant": lambda o: neural.SWAConstantLR(o, total_steps=23, n_cycles=3, swa_lr=0.05, start_step=5),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("early", [False, True])
def test_states_are_exact_at_every_phase(name, early):
    whole = MAKERS[name](optimizer(0.2, 0.4))
    if early:
        run(whole, 9)
        whole.finish(7)
    wanted, _ = run(whole, 30)
    for phase in range(23):
        one = MAKERS[name](optimizer(0.2, 0.4))
        if early:
            run(one, 9)
            one.finish(7)
        run(one, phase)
        state = copy.deepcopy(one.state_dict())
        assert torch.load(_saved(state), weights_only=True)["last_epoch"] == one.last_epoch      # plain data
        fresh = MAKERS[name](optimizer(0.2, 0.4))
        fresh.load_state_dict(state)
        assert fresh.next_end == one.next_end
        assert fresh.ends == one.ends
        np.testing.assert_array_equal(run(fresh, 30 - phase)[0], wanted[phase:])


def _saved(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_state_of_another_schedule_is_refused_by_name():
    state = neural.CyclicCosineLR(optimizer(), total_steps=30, n_cycles=3).state_dict()
    with pytest.raises(InputError, match=r"n_cycles was 3 and is 5"):
        neural.CyclicCosineLR(optimizer(), total_steps=30, n_cycles=5).load_state_dict(state)
    with pytest.raises(InputError, match="kind"):
        MAKERS["constant"](optimizer()).load_state_dict(state)


@pytest.mark.parametrize("cycle", [1, 2, 3, 4, 5, 8, 9])
def test_triangles_reach_their_bottom_where_the_snapshot_is(cycle):
    schedule = neural.TriangularLR(optimizer(0.1, 1.0), total_steps=4 * cycle, n_cycles=4, alpha_1=0.05, alpha_2=0.01)
    lrs, ends = run(schedule, 4 * cycle)
    assert ends == [cycle * k + -(-cycle // 2) for k in range(4)]
    for end in ends:
        np.testing.assert_allclose(lrs[end - 1], [0.01, 0.1], rtol=1e-12)
    if cycle % 2 == 0:      # the published formula: alpha(t), t = (mod(i - 1, c) + 1) / c
        t = (np.arange(4 * cycle) % cycle + 1) / cycle
        wanted = np.where(t <= 0.5, (1 - 2 * t) * 0.05 + 2 * t * 0.01, (2 - 2 * t) * 0.01 + (2 * t - 1) * 0.05)
        np.testing.assert_allclose(lrs[:, 0], wanted, rtol=0, atol=1e-12)


def test_constant_rate_after_the_published_decay():
    schedule = neural.SWAConstantLR(optimizer(0.1), total_steps=300, n_cycles=4, swa_lr=0.05, start_step=200)
    lrs, ends = run(schedule, 300)
    assert ends == [225, 250, 275, 300]
    ratio, wanted = 0.5, []
    for t in np.arange(200) / 200:
        wanted.append(1 if t <= 0.5 else 1 - (1 - ratio) * (t - 0.5) / 0.4 if t <= 0.9 else ratio)
    np.testing.assert_allclose(lrs[:200, 0], 0.1 * np.array(wanted), rtol=1e-12)
    np.testing.assert_array_equal(lrs[200:, 0], 0.05)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_momenta_are_carried_or_forgotten_at_a_restart(kind):
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def after(momentum, steps=4):
        torch.manual_seed(0)
        opt = optimizer(0.1, kind=kind, **options)
        schedule = neural.CyclicCosineLR(opt, total_steps=6, n_cycles=2, momentum=momentum)
        weights = opt.param_groups[0]["params"][0]
        for t in range(steps):
            if t == 3:
                before = weights.detach().clone()
            weights.grad = torch.tensor([1.0, -3.0]) * (t + 1)
            opt.step()
            schedule.step()
        return before, weights.detach()

    start, weight = after("reset")
    fresh = torch.nn.Parameter(start.clone())
    opt = kind([fresh], lr=0.1, **options)
    fresh.grad = torch.tensor([1.0, -3.0]) * 4
    opt.step()
    assert torch.equal(weight, fresh)                    # the first update of a new optimizer
    start, weight = after("carry")
    assert not torch.allclose(weight, fresh)
    if kind is torch.optim.SGD:
        buffer = sum(0.9 ** (3 - t) * (t + 1) for t in range(4))
        torch.testing.assert_close(weight, start - 0.1 * buffer * torch.tensor([1.0, -3.0]))


def test_momenta_of_optimizers_that_begin_with_some_cannot_be_forgotten():
    with pytest.raises(InputError, match="Adagrad"):
        neural.CyclicCosineLR(optimizer(kind=torch.optim.Adagrad), total_steps=6, n_cycles=2, momentum="reset")


def test_finish_goes_on_where_the_cosine_stands_and_ends_at_its_bottom():
    schedule = neural.CyclicCosineLR(optimizer(1.0), total_steps=100, n_cycles=2)
    before, _ = run(schedule, 20)
    schedule.finish(10)
    assert schedule.total_steps == 30
    assert schedule.ends == [30]
    after, ends = run(schedule, 15)
    assert ends == [10]
    assert after[0, 0] == pytest.approx(0.5 * (1 + math.cos(math.pi * 20 / 50)), rel=1e-12)      # no jump
    assert (np.diff(after[:10, 0]) < 0).all()
    assert after[9, 0] == pytest.approx(0.5 * (1 + math.cos(math.pi * (0.4 + 0.6 * 0.9))), rel=1e-12)
    assert before[-1, 0] > after[0, 0]
    schedule = neural.TriangularLR(optimizer(0.1), total_steps=40, n_cycles=2, alpha_1=0.05, alpha_2=0.01)
    run(schedule, 25)
    schedule.finish(5)
    assert schedule.ends == [10, 30]
    assert run(schedule, 5)[0][-1, 0] < 0.02


def test_rates_worked_out_ahead_are_those_of_the_formula():
    """Over several blocks of them, two groups, an early finish and a base rate changed in the middle of a block."""
    from ensemblekit.neural.schedule import AHEAD

    total = 3 * AHEAD + 7
    sgd = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.4)], lr=0.1)
    schedule = neural.CyclicCosineLR(sgd, total_steps=total, n_cycles=4)

    def advance(steps):
        for _ in range(steps):
            sgd.step()
            schedule.step()
            due = [schedule.rate(schedule.last_epoch, g) for g in (0, 1)]
            assert [group["lr"] for group in sgd.param_groups] == due == schedule.get_last_lr() == schedule.rates

    advance(AHEAD + 3)
    schedule.base_lrs[1] = 0.8
    advance(5)
    assert schedule.rates[1] == pytest.approx(8 * schedule.rates[0])
    state = schedule.state_dict()
    schedule.finish(40)
    advance(40)
    assert schedule.rates[0] < 0.001
    fresh = neural.CyclicCosineLR(sgd, total_steps=total, n_cycles=4)
    fresh.load_state_dict(state)
    assert [group["lr"] for group in sgd.param_groups] == [fresh.rate(AHEAD + 8, g) for g in (0, 1)]


def test_a_minimum_above_the_rate_of_a_group_is_refused():
    def of(eta_min, **options):
        optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (0.1, 0.001)])
        return neural.CyclicCosineLR(optimizer, total_steps=8, n_cycles=2, eta_min=eta_min, **options)

    assert of([0.1, 0.001]).rate(3, 1) == 0.001
    for eta_min, options in [(0.01, {}), ([0.2, 0], {}), ([0.09, 0], {"peak_decay": 0.8}), ([0.09, 0], {"alphas": [1, 0.5]})]:
        with pytest.raises(InputError, match=r"eta_min .* group [01], .*one eta_min a group"):
            of(eta_min, **options)
