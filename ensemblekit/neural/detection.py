"""Does a model know when it is wrong? Errors told from right answers by doubt, and the risk of keeping only the surest
items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.evidence import Source, evidence_of
from ensemblekit.neural.items import Items, Values
from ensemblekit.neural.prediction import Prediction, RegressionPrediction
from ensemblekit.neural.result_files import Saved
from ensemblekit.neural.saved import SavedPredictions, pooled
from ensemblekit.neural.scores import Score, draws, given
from ensemblekit.neural.uncertainty import entropy_of
from ensemblekit.results import Result

MEASURES = ("confidence", "entropy", "epistemic", "disagreement")
OF_MEMBERS = ("epistemic", "disagreement")
Classified = Prediction | tuple[Values, Values]
"""Predictions of classes with labels."""
FEW = 10
"""Wrong (or right) answers, below which resamples cannot tell how far the areas scatter."""
AT_ONCE = 1 << 18
"""Numbers of resampled rows in memory: what the caches hold (2.2 times as fast as 1 << 22 with 10 000 items)."""


class Clusters(Protocol):
    """Rows in independent clusters, which are resampled whole."""

    @property
    def cluster(self) -> np.ndarray: ...
    @property
    def n(self) -> int: ...
    @property
    def sizes(self) -> np.ndarray: ...


@dataclass(frozen=True, slots=True, eq=False)
class Measure(Saved, Result):
    """How well one measure of doubt finds errors. Ties count by their mean over all orders."""

    auroc: Score
    """Chance that a wrong item has more doubt than a right one, ties half; NaN without errors, or with nothing else."""
    aurc: Score
    """Mean over k = 1 ... n of the share of errors among the k surest (Geifman & El-Yaniv 2017); less is better."""
    e_aurc: Score
    """The same less that of the best possible order."""
    augrc: Score
    """Mean over k of (errors among the k surest)/n (Traub et al. 2024); less is better."""
    curve: tuple[np.ndarray, np.ndarray]
    """Coverage k/n, rising to 1, and risk, the share of errors among the items kept; (n,) each."""

    def risk_at(self, coverage: float) -> float:
        """Share of errors among the surest items that are this share of all."""
        if not 0 < coverage <= 1:
            raise InputError(f"a coverage lies above 0 and up to 1; got {coverage!r}")
        n = len(self.curve[0])
        return float(self.curve[1][max(int(np.ceil(coverage * n - 1e-9)), 1) - 1])

    def coverage_at(self, risk: float) -> float:
        """The largest share of items that can be kept at this share of errors or less; 0 where none can."""
        if not 0 <= risk <= 1:
            raise InputError(f"a risk lies between 0 and 1; got {risk!r}")
        fine = np.flatnonzero(self.curve[1] <= risk + 1e-12)
        return float(self.curve[0][fine[-1]]) if len(fine) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Detection(Saved, Result):
    """Measure of doubt -> :class:`Measure`, with 95 % intervals over items or groups. Prints as a table."""

    FIGURE: ClassVar[str] = "neural_evidence.detection"

    measures: Mapping[str, Measure]
    error: float
    """Share of wrong items."""
    n: int
    """Independent items, or groups of items."""
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Measure:
        if name not in self.measures:
            raise InputError(f"no measure {name!r} here; there are {', '.join(self.measures)}")
        return self.measures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.measures)

    def __len__(self) -> int:
        return len(self.measures)

    def __str__(self) -> str:
        names = ("auroc", "aurc", "e_aurc", "augrc")
        width = max(map(len, self.measures)) + 2
        lines = [f"{100 * self.error:.3g} % of answers are wrong; {self.n} items or groups, 95 % intervals",
                 "".ljust(width) + "".join(f"{name:>27}" for name in names)]
        for name, one in self.measures.items():
            lines.append(name.ljust(width) + "".join(f"{_shown(getattr(one, score)):>27}" for score in names))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _facts(self) -> dict[str, object]:
        def plain(s: Score) -> dict[str, float]:
            return {"value": s.value, "stderr": s.stderr, "low": s.low, "high": s.high}
        return {"measures": {name: {score: plain(getattr(one, score)) for score in ("auroc", "aurc", "e_aurc", "augrc")}
                             for name, one in self.measures.items()}, "error": self.error, "n": self.n,
                             "notes": list(self.notes)}


def error_detection(prediction: Classified | Source, *, measures: Sequence[str] = MEASURES, target: Values | None = None,
                    groups: ArrayLike | None = None, seed: int = 0) -> Detection:
    """How well doubt tells wrong answers from right ones: AUROC, AURC, its excess, and AUGRC, each with an interval.

    Arguments:
        prediction: a Prediction with labels; (probabilities, labels), which have no members' doubt; or members:
        SavedPredictions, a
            store or its path, an array (M, n, classes, ...) with `target`.
        measures: "confidence" (of the first choice), "entropy", "epistemic" and "disagreement" of members.
        groups: (n,) what each item belongs to; resampled together, as are the pixels of an image.

    Intervals: percentiles of resampled items or groups, the same resamples as for calibration errors; further out where wrong
    (or right) items are few.

    Raises InputError without labels, for an unknown measure, or with fewer than two items or groups.
    """
    wanted = [measures] if isinstance(measures, str) else list(measures)
    for name in wanted:
        if name not in MEASURES:
            raise InputError(f"measures are {', '.join(MEASURES)}; got {name!r}")
    one = _prediction(prediction, target)
    notes = []
    items = given(one, groups)
    if items.n < 2:
        raise InputError(f"an error over items needs two items or groups of items, or more; got {items.n}")
    if not isinstance(one, Prediction):
        if left := [name for name in wanted if name in OF_MEMBERS]:
            notes.append(f"{' and '.join(left)}: not measured, as these are no members' predictions")
        wanted = [name for name in wanted if name not in OF_MEMBERS]
    elif one.n_members == 1 and (left := [name for name in wanted if name in OF_MEMBERS]):
        notes.append(f"{' and '.join(left)}: one member has none, so that all items tie")
    if not wanted:
        raise InputError("no measure is left; pass members' predictions")
    wrong = (items.p.argmax(1) != items.labels).astype(float)
    return detected({name: _doubt(one, items, name) for name in wanted}, wrong, items, tuple(notes), seed)


def detected(doubts: Mapping[str, np.ndarray], wrong: np.ndarray, items: Clusters, notes: tuple[str, ...] = (),
             seed: int = 0) -> Detection:
    """How well measures of doubt, name -> (rows,), tell the wrong rows (1) from the right ones (0), in clusters of rows."""
    few = int(min(wrong.sum(), len(wrong) - wrong.sum()))
    if 0 < few < FEW:
        notes += (f"only {few} answers are {'wrong' if wrong.mean() < 0.5 else 'right'}: intervals from so few are not to be "
                  "relied on",)
    if not few:
        notes += (f"{'all' if wrong.any() else 'no'} answers are wrong: there is nothing to tell apart, and auroc is not a "
                  "number",)
    return Detection({name: _measured(doubt, wrong, items, seed) for name, doubt in doubts.items()}, float(wrong.mean()),
                     items.n, notes)


def _prediction(source: Classified | Source, target: Values | None) -> Classified:
    if isinstance(source, RegressionPrediction):
        raise InputError("these predictions are of numbers; whether an answer is wrong is asked of classes")
    if isinstance(source, Prediction) or (isinstance(source, tuple) and len(source) == 2):
        return source
    if isinstance(source, SavedPredictions) and target is None:
        return source.pooled()
    evidence = evidence_of(source, target)
    return pooled(evidence.members, None, evidence.labels(), evidence.space, evidence.ignore_index)


def _doubt(one: Classified, items: Items, name: str) -> np.ndarray:
    """(rows,)."""
    if name == "confidence":
        return 1 - items.p.max(1)
    if name == "entropy":
        return entropy_of(items.p)
    assert isinstance(one, Prediction)
    values = np.asarray(one.epistemic if name == "epistemic" else one.disagreement, np.float64).reshape(-1)
    if one.ignore_index is not None:
        values = values[np.asarray(one.target).reshape(-1) != one.ignore_index]
    return values


def _measured(doubt: np.ndarray, wrong: np.ndarray, items: Clusters, seed: int) -> Measure:
    order = np.argsort(doubt, kind="stable")
    doubt, wrong, cluster = doubt[order], wrong[order], items.cluster[order]
    starts = np.flatnonzero(np.r_[True, doubt[1:] != doubt[:-1]])      # of each value of doubt
    n = len(wrong)
    sizes, errors = np.diff(np.r_[starts, n]).astype(float), np.add.reduceat(wrong, starts)
    harmonic = _harmonic(n)
    value = _areas(sizes[None], errors[None], harmonic)[:, 0]
    drawn = draws(items.n, seed)
    most = int((drawn @ items.sizes).max())
    harmonic = _harmonic(most)
    sample = []
    step = max(1, AT_ONCE // n)
    for first in range(0, len(drawn), step):
        counts = drawn[first:first + step][:, cluster]
        bad = counts * wrong
        if len(starts) < n:
            counts, bad = np.add.reduceat(counts, starts, axis=1), np.add.reduceat(bad, starts, axis=1)
        sample.append(_areas(counts, bad, harmonic))
    every = np.concatenate(sample, axis=1)
    tail = _tail(min(len(np.unique(cluster[wrong == right])) for right in (0, 1)))
    auroc, aurc, excess, augrc = (_percentile(v, x, items.n, tail) for v, x in zip(value, every, strict=True))
    # of the k surest: errors of surer values of doubt, and this value's share
    before = np.cumsum(errors) - errors
    within = np.arange(n) + 1 - np.repeat(starts, sizes.astype(int))
    risk = (np.repeat(before, sizes.astype(int)) + within * np.repeat(errors / sizes, sizes.astype(int))) / np.arange(1, n + 1)
    return Measure(auroc, aurc, excess, augrc, (np.arange(1, n + 1) / n, risk))


def _areas(sizes: np.ndarray, errors: np.ndarray, harmonic: np.ndarray) -> np.ndarray:
    """AUROC, AURC, excess AURC and AUGRC (4, b) from the items (b, g) of each value of doubt, rising, and the wrong among
    them."""
    n, bad = sizes.sum(1), errors.sum(1)
    good = n - bad
    upto = np.cumsum(sizes, axis=1)
    before, surer = upto - sizes, np.cumsum(errors, axis=1) - errors
    rate = np.divide(errors, sizes, out=np.zeros_like(errors), where=sizes > 0)
    right = sizes - errors
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (errors * (before - surer + right / 2)).sum(1) / np.where((bad > 0) & (good > 0), bad * good, np.nan)
    steps = harmonic[upto.astype(int)] - harmonic[before.astype(int)]
    aurc = ((surer - before * rate) * steps + errors).sum(1) / n
    best = (bad - good * (harmonic[n.astype(int)] - harmonic[good.astype(int)])) / n
    augrc = (sizes * surer + rate * sizes * (sizes + 1) / 2).sum(1) / n**2
    return np.array([auroc, aurc, aurc - best, augrc])


def _harmonic(n: int) -> np.ndarray:
    """(n + 1,): 1 + 1/2 + ... + 1/k."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])


def _tail(few: int) -> float:
    """Share of the resamples beyond each end of a 95 % interval that rests on `few` items of the rarer kind, wrong or right.

    2.5 % where they are many; resamples of few scatter too little, and lean less than they should (the expanded percentile of
    Hesterberg, The American Statistician 69, 371, 2015).
    """
    from scipy.special import ndtr, stdtrit

    few = max(few, 2)
    return float(ndtr(-np.sqrt(few / (few - 1)) * stdtrit(few - 1, 0.975)))


def _percentile(value: float, sample: np.ndarray, n: int, tail: float) -> Score:
    kept = sample[np.isfinite(sample)]
    if not np.isfinite(value) or len(kept) < 2:
        nan = float("nan")
        return Score(float(value), nan, nan, nan, n)
    low, high = np.quantile(kept, [tail, 1 - tail])
    return Score(float(value), float(kept.std(ddof=1)), float(min(low, value)), float(max(high, value)), n,
                 float(kept.mean() - value))


def _shown(s: Score) -> str:
    return f"{s.value:.4f} ({s.low:.4f}, {s.high:.4f})"
