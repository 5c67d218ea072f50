"""Does a model that says 90 % err one time in ten?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.dense import first_choice_bins, is_dense
from ensemblekit.neural.items import Items, Values, items_of
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.result_files import Saved
from ensemblekit.results import Result

Edges = Literal["right", "left"]
Norm = Literal["l1", "l2", "max"]


@dataclass(frozen=True, slots=True, eq=False)
class Reliability(Saved, Result):
    """Items binned by the probability of the model's first choice."""

    FIGURE = "neural.bins"

    edges: np.ndarray
    """(n_bins + 1,)."""
    counts: np.ndarray
    """(n_bins,): items, or pixels."""
    confidence: np.ndarray
    """(n_bins,): mean probability of the first choice; NaN in empty bins."""
    accuracy: np.ndarray
    """(n_bins,): share of first choices that were right; NaN in empty bins."""
    low: np.ndarray
    """(n_bins,): lower end of the 95 % interval of the accuracy; NaN in empty bins."""
    high: np.ndarray
    """(n_bins,): its upper end."""

    def __repr__(self) -> str:
        rows = [f"{self.edges[b]:6.3f} to {self.edges[b + 1]:5.3f}{n:10d}{self.confidence[b]:12.4f}{self.accuracy[b]:10.4f}"
                f"  ({self.low[b]:.4f} to {self.high[b]:.4f})" for b, n in enumerate(self.counts) if n]
        return "\n".join(["confidence             items        mean  accuracy", *rows])


def reliability(preds: Prediction | Values, target: Values | None = None, n_bins: int = 15, edges: Edges = "right", *,
                groups: ArrayLike | None = None) -> Reliability:
    """Accuracy against confidence in bins of equal width, with intervals over items.

    Wilson's interval (1927), on the effective number of items where pixels or `groups` of items go together (the
    design effect of Kish, from the spread of the groups).

    Arguments:
        preds: (n, classes, ...) probabilities, or a Prediction, which brings its labels.
        target: (n, ...) labels.
        edges: "right": bins (lo, hi], as Guo et al. 2017; "left": [lo, hi), as torchmetrics, with 1 in the last. A
            confidence within rounding of an edge lies on it.

    Raises InputError where shapes do not fit, probabilities are none, or labels are out of range.
    """
    n_bins = _bins(n_bins)
    parts = _cluster_bins(preds, target, n_bins, edges, groups)
    return reliability_of(parts)


def reliability_of(parts: np.ndarray) -> Reliability:
    """From (n, n_bins, 3): rows, sum of confidence and right answers of each cluster, by confidence."""
    n_bins = parts.shape[1]
    counts, sums, right = parts.sum(0).T
    with np.errstate(invalid="ignore"):
        accuracy, confidence = right / counts, sums / counts
    low, high = np.full(n_bins, np.nan), np.full(n_bins, np.nan)
    for b in np.flatnonzero(counts):
        low[b], high[b] = _wilson(accuracy[b], _effective(parts[:, b, 0], parts[:, b, 2], accuracy[b]))
    return Reliability(np.arange(n_bins + 1) / n_bins, counts.astype(np.int64), confidence, accuracy, low, high)


def _cluster_bins(preds: Prediction | Values, target: Values | None, n_bins: int, edges: Edges,
                  groups: ArrayLike | None) -> np.ndarray:
    """(n, n_bins, 3): rows, sum of confidence and right answers of each item, image or group."""
    _check_edges(edges)
    if is_dense(preds):
        return first_choice_bins(preds, target, n_bins, edges, groups)
    items = items_of(preds, target, groups)
    first, right = _first(items)
    at = items.cluster * n_bins + bin_of(first, n_bins, edges, items.rounding)
    return np.stack([np.bincount(at, x, items.n * n_bins).reshape(items.n, n_bins) for x in (None, first, right)], axis=-1)


def bin_of(confidence: np.ndarray, n_bins: int, edges: Edges = "right",
           rounding: float = float(np.finfo(np.float64).eps)) -> np.ndarray:
    """The bin each confidence falls into; what is within four roundings of an edge lies on it."""
    _check_edges(edges)
    scaled = as_array(confidence, "confidence", kinds="biuf", dtype=np.float64) * n_bins
    nearest = np.rint(scaled)
    on_edge = abs(scaled - nearest) <= 4 * rounding * n_bins
    if edges == "right":
        where = np.where(on_edge, nearest - 1, np.ceil(scaled) - 1)
    else:
        where = np.where(on_edge, nearest, np.floor(scaled))
    return np.clip(where.astype(np.int64), 0, n_bins - 1)


def _check_edges(edges: str) -> None:
    if edges not in ("right", "left"):
        raise InputError(f'edges is "right" or "left"; got {edges!r}')


def calibration_error(preds: Prediction | Values, target: Values | None = None, n_bins: int = 15, norm: Norm = "l1",
                      edges: Edges = "right") -> float:
    """Expected calibration error: |accuracy - confidence| over bins, weighted by their share of the items.

    Naeini et al. 2015, Guo et al. 2017. With few items it is too large even for a calibrated model; ``scores`` gives
    the bias and an interval.

    Arguments:
        norm: "l1" the mean (ECE), "l2" the root mean square, "max" the largest. The others as :func:`reliability`.
    """
    n_bins = _bins(n_bins)
    _check_edges(edges)
    if is_dense(preds):
        counts, sums, hits = first_choice_bins(preds, target, n_bins, edges).sum(0).T
        return _norm_of(counts, hits - sums, norm)
    items = items_of(preds, target)
    first, right = _first(items)
    return _norm(bin_of(first, n_bins, edges, items.rounding), right - first, n_bins, norm)


def adaptive_calibration_error(preds: Prediction | Values, target: Values | None = None, n_bins: int = 15,
                               norm: Norm = "l1") -> float:
    """The same with bins that hold equally many items (Nguyen & O'Connor 2015); ties are never parted.

    With fewer items than bins every distinct confidence is a bin.
    """
    items = items_of(preds, target)
    first, right = _first(items)
    return _norm(adaptive_bins(first, _bins(n_bins)), right - first, n_bins, norm)


def adaptive_bins(confidence: np.ndarray, n_bins: int) -> np.ndarray:
    """The bin of each: by rank, equal confidences together in the bin of their middle rank."""
    _, inverse, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return np.minimum((middle[inverse] * n_bins / len(confidence)).astype(np.int64), n_bins - 1)


def classwise_calibration_error(preds: Prediction | Values, target: Values | None = None, n_bins: int = 15, norm: Norm = "l1",
                                edges: Edges = "right") -> float:
    """Mean over classes of the error of that class's probability (Kull et al. 2019), rather than the first choice's."""
    items = items_of(preds, target)
    n_bins = _bins(n_bins)
    errors = [_norm(bin_of(items.p[:, k], n_bins, edges, items.rounding), (items.labels == k) - items.p[:, k], n_bins, norm)
              for k in range(items.p.shape[1])]
    return float(np.mean(errors))


@dataclass(frozen=True, slots=True, kw_only=True)
class BrierParts(Result):
    """Brier score (sum over classes, 0 to 2) = reliability - resolution + uncertainty + within_bins.

    Murphy 1973, class by class in bins of its probability; `within_bins` is what binning leaves over (Stephenson,
    Coelho & Jolliffe 2008), so that the sum is exact.
    """

    brier: float
    reliability: float
    """Mean square of (probability - frequency) of bins: 0 for a calibrated model, small is good."""
    resolution: float
    """Mean square of (frequency of the bin - frequency of the class): large is good."""
    uncertainty: float
    """Of the labels themselves: sum over classes of f (1 - f)."""
    within_bins: float


def brier_decomposition(preds: Prediction | Values, target: Values | None = None, n_bins: int = 15,
                        edges: Edges = "right") -> BrierParts:
    """The Brier score in its parts. Arguments and errors as :func:`calibration_error`."""
    items = items_of(preds, target)
    n_bins = _bins(n_bins)
    k = len(items.labels)
    brier = rel = res = unc = 0.0
    for c in range(items.p.shape[1]):
        p, hit = items.p[:, c], (items.labels == c).astype(float)
        where = bin_of(p, n_bins, edges, items.rounding)
        counts = np.bincount(where, minlength=n_bins)
        full = counts > 0
        share = counts[full] / k
        said = np.bincount(where, p, n_bins)[full] / counts[full]
        came = np.bincount(where, hit, n_bins)[full] / counts[full]
        base = hit.mean()
        brier += float(((p - hit) ** 2).mean())
        rel += float(share @ (said - came) ** 2)
        res += float(share @ (came - base) ** 2)
        unc += float(base * (1 - base))
    return BrierParts(brier=brier, reliability=rel, resolution=res, uncertainty=unc,
                      within_bins=brier - (rel - res + unc))


def _first(items: Items) -> tuple[np.ndarray, np.ndarray]:
    return items.p.max(1), (items.p.argmax(1) == items.labels).astype(float)


def _bins(n_bins: object) -> int:
    if not isinstance(n_bins, int | np.integer) or n_bins < 1:
        raise InputError(f"n_bins is a whole number of 1 or more; got {n_bins!r}")
    return int(n_bins)


def _norm(where: np.ndarray, gap: np.ndarray, n_bins: int, norm: Norm) -> float:
    """Of the mean gaps of the bins; gap (k,) of each item."""
    return _norm_of(np.bincount(where, minlength=n_bins), np.bincount(where, gap, n_bins), norm)


def _norm_of(counts: np.ndarray, gaps: np.ndarray, norm: Norm) -> float:
    """The same from the rows and the sums of gaps (n_bins,) of each bin."""
    if norm not in ("l1", "l2", "max"):
        raise InputError(f'norm is "l1", "l2" or "max"; got {norm!r}')
    full = counts > 0
    mean = abs(gaps[full]) / counts[full]
    share = counts[full] / counts.sum()
    if norm == "max":
        return float(mean.max())
    return float(share @ mean) if norm == "l1" else float(np.sqrt(share @ mean**2))


def _effective(rows: np.ndarray, right: np.ndarray, accuracy: float) -> float:
    """Independent items worth as much as the rows (n,) of each cluster with so many right (n,) among them."""
    k, alone = int(rows.sum()), float(np.count_nonzero(rows))
    if k == alone:
        return float(k)
    left = right - accuracy * rows
    own, between = accuracy * (1 - accuracy) * k, float((left**2).sum())
    return alone if own == 0 or between == 0 else min(float(k), max(1.0, k * own / between))


def _wilson(share: float, n: float) -> tuple[float, float]:
    z2 = 1.959963984540054**2 / n
    centre, half = share + z2 / 2, np.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return float((centre - half) / (1 + z2)), float((centre + half) / (1 + z2))
