"""Does the average along one training stand for the average over independent trainings?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.function_space import FunctionSpace, function_space
from ensemblekit.errors import InputError
from ensemblekit.neural.evidence import Evidence, Source, runs_of
from ensemblekit.neural.items import Values
from ensemblekit.neural.saved import pooled
from ensemblekit.results import Result

FLOOR = 1e-12
"""Of probabilities, where their logarithms are compared."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingErgodicity(Result):
    """Scatter of predictions along trainings and between them, with the scores of every snapshot."""

    FIGURE: ClassVar[str] = "neural_evidence.ergodicity"

    function_space: FunctionSpace
    """All that is said about the scatter: `correlation`, `autocorrelation`, R-hat, drift."""
    accuracy: np.ndarray
    """(R, M), of each snapshot; NaN without labels."""
    nll: np.ndarray
    """(R, M)."""
    pooled_accuracy: np.ndarray
    """(R, M), of the last 1, 2, ... M snapshots pooled."""
    pooled_nll: np.ndarray
    """(R, M)."""
    space: str
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """"ergodic within error", "not ergodic" or "cannot say"."""
        return self.function_space.verdict

    @property
    def members(self) -> float:
        """Independent trainings whose mean varies as little as that of one run's snapshots."""
        return self.function_space.n_eff

    @property
    def memory(self) -> float:
        """Share of what a run began with that is still there at the other end."""
        return self.function_space.memory

    def __str__(self) -> str:
        f = self.function_space
        if f.n_runs == 1:
            lines = [f"{f.verdict}: {'; '.join(f.reasons)}",
                     f"  the mean over its {f.n_snapshots} snapshots varies as that of at most {f.n_eff_bound:.3g} "
                     f"independent trainings"]
        else:
            low, high = f.n_eff_interval
            lines = [f"the mean over {f.n_snapshots} snapshots of one run varies as that of {f.n_eff:.3g} ({low:.3g} to "
                     f"{high:.3g}) "
                     f"independent trainings; {100 * f.memory:.0f} % of what a run began with is still there at the other end "
                     f"({100 * f.memory_interval[0]:.0f} to {100 * f.memory_interval[1]:.0f} %)",
                     f"  {f.verdict}: {'; '.join(f.reasons)}"]
        if np.isfinite(self.nll).any():
            lines.append(f"  NLL of the first snapshot {self.nll[:, 0].mean():.4g}, of the last "
                         f"{self.nll[:, -1].mean():.4g}, of all pooled "
                         f"{self.pooled_nll[:, -1].mean():.4g}; accuracy {self.accuracy[:, 0].mean():.4g}, "
                         f"{self.accuracy[:, -1].mean():.4g}, {self.pooled_accuracy[:, -1].mean():.4g} (means over runs)")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _facts(self) -> dict[str, object]:
        return {**self.function_space.to_dict(), "members": self.members, "accuracy": self.accuracy.tolist(),
                "nll": self.nll.tolist(),
                "pooled_accuracy": self.pooled_accuracy.tolist(), "pooled_nll": self.pooled_nll.tolist(), "space": self.space,
                "notes": list(self.notes)}


def training_ergodicity(runs: Source | Sequence[Source], *, last: int | None = None,
                        space: Literal["probability", "logit"] = "probability", target: Values | None = None,
                        groups: ArrayLike | None = None, blocks: int = 20, tolerance: float = 0.1,
                        confidence: float = 0.95) -> TrainingErgodicity:
    """How many independent trainings the snapshots of one training are worth, and what of its start a training keeps.

    It is about variance: ``deep_ensemble_equivalent`` is its twin in score, where the bias of early snapshots counts too.

    Arguments:
        runs: one entry a training, on the same items: SavedPredictions, stores or paths with saved predictions, or arrays
            (M, n, classes, ...).
        last: take the last so many snapshots of each.
        space: compare "probability", or "logit": logarithms (of probabilities of 1e-12 or more) less their mean over the
        classes.
        target: labels, where arrays come without; only the scores need them.
        groups: (n,) what each item belongs to; the error over items is then over groups.
        blocks, tolerance, confidence: as ``ek.statistics.function_space``.

    Raises:
        InputError: runs of different members, items, classes or labels.
        StatisticsError: fewer than two snapshots, runs that are copies of each other.
    """
    if space not in ("probability", "logit"):
        raise InputError(f'space is "probability" or "logit"; got {space!r}')
    evidence = runs_of(runs, target)
    m, _n = evidence[0].members.shape[:2]
    if last is not None and (not isinstance(last, int | np.integer) or not 1 <= last <= m):
        raise InputError(f"last is a whole number from 1 to {m}, the snapshots of a run; got {last!r}")
    first = 0 if last is None else m - last
    arrays = [_compared(one, first, space) for one in evidence]
    scatter = function_space(arrays, blocks=blocks if groups is None else groups, tolerance=tolerance, confidence=confidence)
    scores = [_scored(one, first) for one in evidence]
    notes = () if all(one.target is not None for one in evidence) else ("without labels there are no scores",)
    accuracy, nll, pooled_accuracy, pooled_nll = (np.array([s[k] for s in scores]) for k in range(4))
    return TrainingErgodicity(scatter, accuracy, nll, pooled_accuracy, pooled_nll, space, notes)


def _compared(one: Evidence, first: int, space: str) -> np.ndarray:
    """(M, n, classes, ...), 0 where the label is the one to ignore."""
    x = one.members[first:]
    if space == "logit":
        x = np.log(np.maximum(np.asarray(x, np.float64), FLOOR))
        x = x - x.mean(axis=2, keepdims=True)
    if one.ignore_index is not None and one.target is not None and (one.target == one.ignore_index).any():
        x = np.where((one.target == one.ignore_index)[:, None], 0, x)
    return x


def _scored(one: Evidence, first: int) -> tuple[np.ndarray, ...]:
    """Accuracy and NLL (M,) of each snapshot, and of the last 1, 2, ... pooled."""
    members = one.members[first:]
    m = len(members)
    if one.target is None:
        return tuple(np.full(m, np.nan) for _ in range(4))
    kept = np.ones(one.target.shape, bool) if one.ignore_index is None else one.target != one.ignore_index
    label = np.where(kept, one.target, 0)[:, None]

    def score(p: np.ndarray) -> tuple[float, float]:
        own = np.take_along_axis(p, label, axis=1)[:, 0][kept]
        return float((p.argmax(1) == one.target)[kept].mean()), float(-np.log(np.maximum(own,
                                                                                         np.finfo(np.float64).tiny)).mean())

    alone = np.array([score(np.asarray(p, np.float64)) for p in members])
    together = np.array([score(pooled(members[m - k:], None, None, one.space).probabilities) for k in range(1, m + 1)])
    return alone[:, 0], alone[:, 1], together[:, 0], together[:, 1]
