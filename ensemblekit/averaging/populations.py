"""Growing populations: the average over the cells alive at one time, and the average along their lineages.

A cell that divides fast is over-represented among the living: a snapshot of the population and the history of a
single line of descent show different averages of the same trait. The weights here make one from the other.
Let cell i, alive at time t, have D_i divisions behind it since its founder, into m daughters each.

- *forward* (a walk from the founders that takes one daughter at random at each division, what a mother machine
  sees): w_i = m^-D_i / N_0;
- *population* (retrospective, every living cell counts alike): w_i = 1 / N(t).

They relate exactly by w_population = w_forward m^D N_0 / N(t), so the mean of m^D over forward lineages is
N(t)/N_0 = exp(Λ t).

Sources: Nozoe, Kussell & Wakamoto, PLoS Genetics 13, e1006653 (2017); Thomas, Sci. Rep. 7, 17803 (2017); Powell,
J. Gen. Microbiol. 15, 492 (1956) for the ages of a growing population, 2 Λ exp(-Λ a) times the chance to live to a.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.resample import MIN_BLOCKS, jackknife_values
from ensemblekit.averaging.weights import normalised_weights
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two, scaled

LineageKind = Literal["forward", "population"]
Trait = Callable[[np.ndarray, float], Any]
"""(cells, time) -> the trait of these living cells at that time, (len(cells),)."""


@dataclass(frozen=True, slots=True, eq=False)
class LineageTree:
    """The cells of a growing population: who came from whom, and when each was born and divided."""

    parent: np.ndarray
    """Shape (cells,), index of the mother; -1 for a founder."""
    birth: np.ndarray
    """Shape (cells,), time of birth."""
    division: np.ndarray
    """Shape (cells,), time of division or death; infinity where it was not seen. A cell that dies has no daughters."""

    def __post_init__(self) -> None:
        parent = as_array(self.parent, "parent")
        birth, division = (as_array(x, "birth and division", dtype=np.float64) for x in (self.birth, self.division))
        n = parent.size
        if not parent.shape == birth.shape == division.shape == (n,) or n == 0 or parent.dtype.kind not in "iu":
            raise InputError("parent (whole numbers), birth and division are one number a cell; got shapes "
                             f"{parent.shape}, {birth.shape} and {division.shape}")
        parent = parent.astype(np.int64)
        if ((parent < -1) | (parent >= n)).any():
            k = int(np.argmax((parent < -1) | (parent >= n)))
            raise InputError(f"parent of cell {k} is {parent[k]}; it is the index of a cell, or -1 for a founder")
        if not np.isfinite(birth).all() or np.isnan(division).any() or (division <= birth).any():
            bad = ~np.isfinite(birth) | ~(division > birth)
            raise InputError(f"cell {int(np.argmax(bad))} is born at {birth[bad][0]} and divides at "
                             f"{division[bad][0]}; births are finite, divisions later or infinity (none seen)")
        young = (parent >= 0) & (birth < division[parent])
        if young.any():
            k = int(np.argmax(young))
            raise InputError(f"cell {k} is born at {birth[k]:g}, before its mother divides at {division[parent[k]]:g}")
        for name, x in (("parent", parent), ("birth", birth), ("division", division)):
            object.__setattr__(self, name, x)

    def alive(self, time: float) -> np.ndarray:
        """Indices of the cells with birth ≤ time < division. Raises StatisticsError where there are none."""
        cells = np.flatnonzero((self.birth <= time) & (time < self.division))
        if len(cells) == 0:
            raise StatisticsError(f"no cell is alive at time {time:g}; births range from {self.birth.min():g} to "
                                  f"{self.birth.max():g}")
        return cells

    @property
    def founders(self) -> np.ndarray:
        """Shape (cells,), index of the founder each cell descends from."""
        return self._descend(np.arange(len(self.parent)), np.zeros(len(self.parent), np.int64))

    @property
    def generations(self) -> np.ndarray:
        """Shape (cells,), divisions between the founder and the cell."""
        return self._descend(np.zeros(len(self.parent), np.int64), np.ones(len(self.parent), np.int64))

    @property
    def log_forward(self) -> np.ndarray:
        """Shape (cells,), logarithm of the chance that a walk forward in time comes to the cell: -Σ ln(daughters)."""
        n = len(self.parent)
        roots = self.parent < 0
        daughters = np.bincount(self.parent[~roots], minlength=n)
        steps = np.where(roots, 0.0, -np.log(np.maximum(daughters[self.parent], 1)))
        return self._descend(np.full(n, -np.log(roots.sum())), steps)

    def _descend(self, start: np.ndarray, step: np.ndarray) -> np.ndarray:
        """start of the founder plus the steps of all cells down to each (mothers are born before daughters)."""
        total = start.copy()
        for cell in np.argsort(self.birth, kind="stable"):
            mother = self.parent[cell]
            if mother >= 0:
                total[cell] = total[mother] + step[cell]
        return total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PopulationAverage(Result):
    """Average of a trait over lineages that end in the cells alive at one time."""

    mean: float
    stderr: float
    """Delete-one-founder jackknife, as cells of one founder are relatives; NaN for fewer than 4 founders alive."""
    weights: np.ndarray
    """Shape (living cells,), they sum to one."""
    cells: np.ndarray
    """Shape (living cells,), their indices."""
    n_founders: int
    """Founders with living descendants."""
    kind: LineageKind

    def __str__(self) -> str:
        return (f"{self.mean:.6g} ± {self.stderr:.2g} ({self.kind} average over {len(self.cells)} living cells of "
                f"{self.n_founders} founders)")


def lineage_weights(tree: LineageTree, time: float, kind: LineageKind = "forward") -> np.ndarray:
    """Weights of the cells alive at `time`, in the order of ``tree.alive(time)``; they sum to one.

    "forward": the chance that a walk from a random founder, taking one daughter at random at each division, ends in
    this cell (walks that end in a death are left out); "population": all alike.
    """
    cells = tree.alive(time)
    if kind == "population":
        return np.full(len(cells), 1 / len(cells))
    if kind == "forward":
        return normalised_weights(log_weights=tree.log_forward[cells])
    raise InputError(f'kind is "forward" or "population"; got {kind!r}')


def division_weights(divisions: ArrayLike, *, offspring: float = 2.0, to: LineageKind = "population") -> np.ndarray:
    """Weights for lineages known only by how often each divided, (lineages,), that sum to one.

    Arguments:
        divisions: D of each lineage over the time observed.
        offspring: daughters a division, m.
        to: "population": single lineages as a mother machine follows them are weighted by m^D and give the
            population's average; "forward": living cells of a population are weighted by m^-D and give the average
            along a single lineage.
    """
    d = as_array(divisions, "divisions", dtype=np.float64)
    if not offspring > 1:
        raise InputError(f"offspring is the number of daughters a division, above 1; got {offspring!r}")
    if (d < 0).any():
        raise InputError("divisions are counts, not negative")
    if to not in ("population", "forward"):
        raise InputError(f'to is "population" or "forward"; got {to!r}')
    return normalised_weights(log_weights=(d if to == "population" else -d) * np.log(offspring))


def population_average(tree: LineageTree, trait: Any, time: float) -> PopulationAverage:
    """The plain average over all cells alive at `time`: what a snapshot of the growing population shows.

    trait: (cells,), one number a cell of the tree, or a function (living cells, time) -> (living cells,), such as
    the age ``lambda cells, t: t - tree.birth[cells]``.
    """
    return lineage_average(tree, trait, time, kind="population")


def lineage_average(tree: LineageTree, trait: Any, time: float, *, kind: LineageKind = "forward",
                    since: float | None = None) -> PopulationAverage:
    """The average of a trait along the lineages that end in the cells alive at `time`.

    Arguments:
        trait: as :func:`population_average`.
        kind: weights of the lineages, as :func:`lineage_weights`.
        since: None: the trait at `time`, the end of each lineage; a time: its average over [since, time] along each
            line of descent, exact for a trait that is constant through the life of a cell ((cells,) values only).
    """
    cells, weights = tree.alive(time), lineage_weights(tree, time, kind)
    values = _at_end(tree, trait, cells, time) if since is None else _history(tree, trait, cells, since, time)
    founders = tree.founders[cells]
    clones = np.unique(founders)
    mean = float(weights @ values)
    mass = np.array([weights[founders == f].sum() for f in clones])
    sums = np.array([weights[founders == f] @ (values[founders == f] - mean) for f in clones])
    stderr = float("nan")
    if len(clones) >= MIN_BLOCKS:
        left_out = mean + (sums.sum() - sums) / (1 - mass)
        stderr = jackknife_values(np.asarray(mean), left_out, mass).stderr
    return PopulationAverage(mean=mean, stderr=stderr, weights=weights, cells=cells, n_founders=len(clones), kind=kind)


def growth_rate(tree: LineageTree, time: float, since: float | None = None) -> float:
    """Λ = ln(N(time)/N(since)) / (time - since); since: the last birth of a founder by default."""
    start = float(tree.birth[tree.parent < 0].max()) if since is None else since
    if not time > start:
        raise InputError(f"a growth rate needs time after {start:g}; got {time:g}")
    return float(np.log(len(tree.alive(time)) / len(tree.alive(start))) / (time - start))


def _at_end(tree: LineageTree, trait: Any, cells: np.ndarray, time: float) -> np.ndarray:
    if callable(trait):
        values = as_array(trait(cells, time), "the trait", dtype=np.float64)
        want: tuple[int, ...] = cells.shape
    else:
        values = as_array(trait, "the trait", dtype=np.float64)
        want = tree.parent.shape
    if values.shape != want:
        raise InputError(f"the trait has shape {values.shape}; one number a cell is {want}")
    values = values if callable(trait) else values[cells]
    if not np.isfinite(values).all():
        k = int(np.argmax(~np.isfinite(values)))
        raise InputError(f"the trait of living cell {cells[k]} is {values[k]}")
    return values


def _history(tree: LineageTree, trait: Any, cells: np.ndarray, since: float, time: float) -> np.ndarray:
    """Average of a per-cell trait over [since, time] along the line of descent of each cell."""
    values = as_array(trait, "the trait", dtype=np.float64) if not callable(trait) else None
    if values is None or values.shape != tree.parent.shape:
        raise InputError(f"since= takes a trait with one number a cell of the tree, shape {tree.parent.shape}")
    founders = tree.founders[cells]
    if not since < time or (tree.birth[founders] > since).any():
        raise InputError(f"since lies before time={time:g} and after the founders' births "
                         f"({tree.birth[founders].max():g}); got {since:g}")
    # times and values over powers of two: their products may leave float64 where their average does not
    values, e = scaled(values)
    scale = power_of_two(np.array(time - since))
    # a gap between a mother's division and her daughters' births (two frames of a film) counts as the mother's
    total, span, at = np.zeros(len(cells)), np.zeros(len(cells)), cells.copy()
    until = np.full(len(cells), float(time))
    while (at >= 0).any():
        here = at >= 0
        begin = np.maximum(tree.birth[at], since)
        lived = np.where(here, ldexp(np.maximum(until - begin, 0.0), -scale), 0.0)
        total += lived * np.where(here, values[at], 0.0)
        span += lived
        until = np.where(here, np.minimum(until, np.maximum(tree.birth[at], since)), until)
        at = np.where(here, tree.parent[at], -1)
    return ldexp(total / span, e)
