"""Every route of the POD by its name: what it refuses, what it costs, what it finds, without the choice between them."""

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.rom.decompose import ROUTES
from ensemblekit.rom.decompose.planning import Budget, Candidates
from ensemblekit.rom.decompose.problem import problem_of
from ensemblekit.rom.decompose.task import FloorReached, NotFinite, Reads, Task
from ensemblekit.rom.rank import Rule
from tests.test_rom_acceptance import Counted

BUDGET = Budget(memory=1 << 30, workers=2, steps=2)


def steep(decay=0.5, n=90, size=60):
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.normal(size=(m, 40)))[0] for m in (n, size))
    return (left * decay ** np.arange(40)) @ right.T + 2.0


def task(x, name, rank=4, method=None, **settings):
    problem, rule = problem_of(x, 0, None, None, "mean"), Rule(rank=rank)
    plan = ROUTES[name].cost(problem, rule, BUDGET)
    return Task(problem, rule, plan, method or name, BUDGET.memory, ek.Serial(), False, 0, Reads(problem.nbytes), **settings)


@pytest.mark.parametrize("name", ROUTES)
def test_each_is_called_alone(name):
    x = steep()
    assert ROUTES[name].refusal(problem_of(x, 0, None, None, "mean")) is None
    job = task(x, name)
    basis = ROUTES[name].decompose(job)
    want = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(basis.singular_values, want[:4], rtol=1e-6)
    assert (basis.method, basis.passes) == (name, job.reads.passes)
    assert job.plan.passes <= basis.passes <= max(job.plan.passes, job.plan.most_passes)
    assert basis.relative_error == pytest.approx(np.linalg.norm(want[4:]) / np.linalg.norm(want), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in ROUTES if name != "incremental"])
def test_what_is_no_number_is_passed_on(name):
    x = steep()
    x[4, 3] = np.nan
    with pytest.raises(NotFinite):
        ROUTES[name].decompose(task(x, name))


@pytest.mark.parametrize("name", ["gram", "randomized"])
def test_a_floor_is_told_where_the_choice_is_ours_and_taken_where_it_is_said(name):
    x, rank = steep(decay=0.1), 14
    with pytest.raises(FloorReached):
        ROUTES[name].decompose(task(x, name, rank, "auto"))
    basis = ROUTES[name].decompose(task(x, name, rank, "auto", accept_floor=True))
    assert 0 < basis.rank < rank
    assert ROUTES[ROUTES[name].finer[-1]].decompose(task(x, "tsqr", rank)).rank > basis.rank


def test_a_stream_is_for_one_route():
    problem = problem_of(Counted(ek.ArraySource.of(steep()), "once"), None, None, None, "mean")
    assert [name for name, route in ROUTES.items() if route.refusal(problem) is None] == ["incremental"]


def test_numbers_missing_in_every_snapshot_of_several_runs_are_masked():
    x = steep()
    x[:, 3] = np.nan
    runs, whole = rom.pod(ek.ReplicaSet.of([x[:40], x[40:]]), 4), rom.pod(x, 4, snapshot_axis=0)
    np.testing.assert_array_equal(runs.mask, whole.mask)
    np.testing.assert_allclose(runs.singular_values, whole.singular_values, rtol=1e-12)


def test_a_route_is_asked_for_its_cost_where_the_choice_hangs_on_it():
    problem = problem_of(steep(), 0, None, None, "mean")
    candidates = Candidates(ROUTES, problem, Rule(rank=4), BUDGET)
    assert candidates.choose().route == "gram"
    assert list(candidates._costs) == ["gram"]
