from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest

from ensemblekit.averaging.populations import (
    LineageTree,
    division_weights,
    growth_rate,
    lineage_average,
    lineage_weights,
    population_average,
)
from ensemblekit.errors import InputError, StatisticsError


def grown(rng, lifetime, until, founders=1):
    """A tree of cells that divide in two after lifetime(rng, mother's trait) -> (life, trait)."""
    parent, birth, division, trait = [], [], [], []
    queue = [(-1, 0.0, 0.0)] * founders
    while queue:
        mother, born, inherited = queue.pop()
        life, value = lifetime(rng, inherited)
        parent.append(mother)
        birth.append(born)
        trait.append(value)
        division.append(born + life if born + life <= until else np.inf)
        if born + life <= until:
            queue += [(len(parent) - 1, born + life, value)] * 2
    return LineageTree(np.array(parent), np.array(birth), np.array(division)), np.array(trait)


def markov(rng, inherited):
    """Trait 0 divides after 3 steps, trait 1 after 1; daughters keep it with chance 3/4."""
    value = inherited if rng.uniform() < 0.75 else 1 - inherited
    return (1.0 if value == 1 else 3.0), value


def test_the_identity_between_the_two_weightings_on_a_tree():
    tree, trait = grown(np.random.default_rng(1), markov, 10.5, founders=3)
    cells = tree.alive(10.5)
    forward, population = (lineage_weights(tree, 10.5, kind) for kind in ("forward", "population"))
    divisions = tree.generations[cells]
    assert forward.sum() == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(forward, 2.0**-divisions / 3, rtol=1e-12)
    np.testing.assert_allclose(forward * 2.0**divisions * 3 / len(cells), population, rtol=1e-12)
    assert forward @ 2.0**divisions == pytest.approx(len(cells) / 3, rel=1e-12)
    assert np.log(forward @ 2.0**divisions) / 10.5 == pytest.approx(growth_rate(tree, 10.5), rel=1e-12)
    np.testing.assert_allclose(division_weights(divisions, to="forward"), forward, rtol=1e-12)
    by_hand = (forward * 2.0**divisions * trait[cells]).sum() / (forward * 2.0**divisions).sum()
    assert population_average(tree, trait, 10.5).mean == pytest.approx(by_hand, rel=1e-12)


def test_all_lineages_of_a_markov_trait_in_exact_fractions():
    """Every step a cell in state s divides in b[s] = 1 (no) or 2 daughters, and its line moves to a state with P.

    Sum over all 2^(T+1) single lineages with their exact chances: weighted by 2^D they give the population's average
    n_T f / n_T 1 with n_{t+1} = n_t diag(b) P, unweighted the one of the Markov chain p_{t+1} = p_t P.
    """
    f = Fraction
    move, daughters, steps = [[f(3, 4), f(1, 4)], [f(1, 3), f(2, 3)]], [1, 2], 8
    chain, expected = [f(1), f(0)], [f(1), f(0)]
    for _ in range(steps):
        chain = [sum(chain[s] * move[s][r] for s in (0, 1)) for r in (0, 1)]
        expected = [sum(expected[s] * daughters[s] * move[s][r] for s in (0, 1)) for r in (0, 1)]
    chances, divisions, ends = [], [], []
    for path in product((0, 1), repeat=steps):
        states = (0, *path)
        chance = f(1)
        for s, r in pairwise(states):
            chance *= move[s][r]
        chances.append(chance)
        divisions.append(sum(daughters[s] == 2 for s in states[:-1]))
        ends.append(states[-1])
    weighted = [c * 2**d for c, d in zip(chances, divisions, strict=True)]
    assert sum(w * e for w, e in zip(weighted, ends, strict=True)) / sum(weighted) == expected[1] / sum(expected)
    assert sum(c * e for c, e in zip(chances, ends, strict=True)) == chain[1]
    # the package's weights, given each lineage's division count
    shares = division_weights(divisions) * np.array(chances, dtype=float)
    assert shares @ ends / shares.sum() == pytest.approx(float(expected[1] / sum(expected)), rel=1e-12)
    back = np.array(weighted, dtype=float) * division_weights(divisions, to="forward")
    assert back @ ends / back.sum() == pytest.approx(float(chain[1]), rel=1e-12)


def test_simulated_trees_agree_with_the_closed_form_within_their_errors():
    move, steps = np.array([[0.75, 0.25], [1 / 3, 2 / 3]]), 8
    chain = expected = np.array([1.0, 0.0])
    for _ in range(steps):
        chain, expected = chain @ move, (expected * [1, 2]) @ move
    rng = np.random.default_rng(2)
    parent, birth, division, state = [], [], [], []
    queue = [(-1, 0, 0)] * 300
    while queue:        # one entry of the tree a cell and step: a cell that does not divide has one "daughter"
        mother, t, s = queue.pop()
        parent.append(mother)
        birth.append(t)
        state.append(s)
        division.append(t + 1 if t < steps else np.inf)
        if t < steps:
            queue += [(len(parent) - 1, t + 1, int(rng.uniform() < move[s, 1])) for _ in range(1 + s)]
    tree = LineageTree(np.array(parent), np.array(birth), np.array(division))
    state = np.array(state, dtype=float)
    for estimate, truth in ((population_average(tree, state, steps), expected[1] / expected.sum()),
                            (lineage_average(tree, state, steps), chain[1])):
        assert abs(estimate.mean - truth) < 4 * estimate.stderr
        assert 0 < estimate.stderr < 0.05
    assert expected[1] / expected.sum() - chain[1] > 0.1        # the two averages do differ


def test_ages_of_a_growing_population_and_of_a_lineage():
    """Lifetimes exponential with rate 1: Λ = 1; ages 2 exp(-2 a) in the population, exp(-a) along a lineage."""
    tree, _ = grown(np.random.default_rng(3), lambda r, _: (r.exponential(), 0.0), 5.0, founders=200)

    def age(cells, time):
        return time - tree.birth[cells]

    population, lineage = population_average(tree, age, 5.0), lineage_average(tree, age, 5.0)
    assert abs(population.mean - 0.5 * (1 - np.exp(-2 * 5.0))) < 4 * population.stderr + 0.01
    assert abs(lineage.mean - (1 - np.exp(-5.0))) < 4 * lineage.stderr
    assert growth_rate(tree, 5.0) == pytest.approx(1, abs=0.06)
    ages = np.sort(age(population.cells, 5.0))
    distance = abs((1 - np.exp(-2 * ages)) - np.arange(1, len(ages) + 1) / len(ages)).max()
    assert distance < 0.03
    assert "population average" in str(population)


def test_the_error_over_founders_is_the_spread_of_repeats():
    rng = np.random.default_rng(4)
    estimates = [population_average(tree, trait, 8.5) for tree, trait in (grown(rng, markov, 8.5, 25) for _ in range(60))]
    assert np.mean([x.stderr for x in estimates]) == pytest.approx(np.std([x.mean for x in estimates]), rel=0.3)


def test_history_along_lineages_by_hand():
    #  founder [0, 2) trait 1; daughters at 2: A (divides at 3) trait 2, B trait 3; A's daughters: 4 and 5
    tree = LineageTree(np.array([-1, 0, 0, 1, 1]), np.array([0, 2, 2, 3, 3]), np.array([2, 3, np.inf, np.inf, np.inf]))
    trait = np.array([1.0, 2, 3, 4, 5])
    lines = {2: (2 * 1 + 2 * 3) / 4, 3: (2 * 1 + 1 * 2 + 1 * 4) / 4, 4: (2 * 1 + 1 * 2 + 1 * 5) / 4}
    average = lineage_average(tree, trait, 4.0, since=0.0)
    assert list(average.cells) == [2, 3, 4]
    np.testing.assert_allclose(average.weights, [0.5, 0.25, 0.25])
    assert average.mean == pytest.approx(0.5 * lines[2] + 0.25 * lines[3] + 0.25 * lines[4])
    alike = lineage_average(tree, trait, 4.0, kind="population", since=0.0)
    assert alike.mean == pytest.approx(np.mean([*lines.values()]))
    assert lineage_average(tree, trait, 4.0, since=2.5).mean == pytest.approx(
        0.5 * 3 + 0.25 * (0.5 * 2 + 4) / 1.5 + 0.25 * (0.5 * 2 + 5) / 1.5)
    assert np.isnan(average.stderr)       # one founder


def test_death_leaves_the_walks_that_survive():
    tree = LineageTree(np.array([-1, 0, 0]), np.array([0.0, 1, 1]), np.array([1.0, 2, np.inf]))
    np.testing.assert_array_equal(lineage_weights(tree, 3.0), [1.0])
    np.testing.assert_array_equal(lineage_weights(tree, 1.5), [0.5, 0.5])


def test_deep_lineages_do_not_underflow():
    weights = division_weights([0, 5000, 5001])
    np.testing.assert_allclose(weights, [0, 1 / 3, 2 / 3], atol=1e-12)


@pytest.mark.parametrize(("call", "message"), [
    (lambda t: LineageTree(np.array([-1, 0]), np.array([0.0]), np.array([1.0])), "shapes"),
    (lambda t: LineageTree(np.array([-1, 5]), np.zeros(2), np.ones(2)), "parent of cell 1 is 5"),
    (lambda t: LineageTree(np.array([-1]), np.array([1.0]), np.array([1.0])), "cell 0 is born at 1.0"),
    (lambda t: LineageTree(np.array([-1, 0]), np.array([0, 0.5]), np.array([1, np.inf])), "before its mother"),
    (lambda t: LineageTree(np.array([-1.0]), np.array([0.0]), np.array([1.0])), "whole numbers"),
    (lambda t: lineage_weights(t, 0.5, "backward"), "kind"),
    (lambda t: division_weights([1], offspring=1), "offspring"),
    (lambda t: division_weights([-1]), "not negative"),
    (lambda t: division_weights([1], to="cells"), "to is"),
    (lambda t: population_average(t, [1.0, 2.0], 0.5), "shape"),
    (lambda t: population_average(t, [np.nan], 0.5), "living cell 0 is nan"),
    (lambda t: lineage_average(t, lambda c, s: c, 0.5, since=0.0), "one number a cell"),
    (lambda t: lineage_average(t, [1.0], 0.5, since=-1.0), "since"),
    (lambda t: growth_rate(t, 0.0), "after"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(LineageTree(np.array([-1]), np.array([0.0]), np.array([1.0])))


def test_nobody_alive_is_said():
    with pytest.raises(StatisticsError, match="no cell is alive"):
        population_average(LineageTree(np.array([-1]), np.array([0.0]), np.array([1.0])), [1.0], 2.0)
