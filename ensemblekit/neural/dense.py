"""Scores of maps: every pixel is looked at once, and what remains of an image is one row of sums.

All scores, calibration curves and their intervals follow from these rows (Score -> ratio of sums over images), so that memory
grows with the number of images and not with that of pixels, and an image gives the same bits whatever batch it came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.series import Series
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.items import as_numpy
from ensemblekit.neural.prediction import Predicted, Prediction
from ensemblekit.neural.temperature import PRIOR, fold_of

LOG_T = np.linspace(np.log(1 / 4), np.log(8), 17)
"""Logarithms of the temperatures at which the NLL is summed; between them Hermite's cubic."""
NOTE = "ece_adaptive: pixels are parted by 4096 fine bins of their confidence, 128 an octave of 1 - confidence"
WRONG = ("", "they are not finite", "they are not below 0 and 1 in sum; apply a softmax to logits first",
         "its labels are not 0 to {last}")


@dataclass(frozen=True, slots=True, eq=False)
class DenseSums:
    """Sums over the pixels of each of n images, or of groups of them."""

    sizes: np.ndarray
    """(n,): pixels that are scored, above 0."""
    right: np.ndarray
    """(n,): pixels whose first choice is the label."""
    nll: np.ndarray
    """(n,), nats."""
    brier: np.ndarray
    """(n,)."""
    bins: np.ndarray
    """(n, n_bins, 3): pixels, sum of confidence and right answers by the confidence of the first choice."""
    class_bins: np.ndarray
    """(n, classes, n_bins, 3): pixels, sum of the probability and labels by the probability of each class."""
    confusion: np.ndarray
    """(n, classes, classes): pixels of each label (rows) and first choice."""
    curve: np.ndarray
    """(n, 17, 2): NLL and its slope in log T at the temperatures of `LOG_T`; (n, 0, 2) where it was not asked for."""
    gaps: np.ndarray
    """(n, 4096): right answers less confidence, in fine bins that part 1 - confidence, in the order of rising confidence."""
    counts: np.ndarray
    """(4096,): pixels in these, of all images."""
    tempered: bool = False
    """Whether each image was scaled by a temperature of the others."""

    @property
    def n(self) -> int:
        """Independent images, or groups."""
        return len(self.sizes)

    def score_sums(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Name -> sums (n,) of the scores that are means over pixels."""
        found = {"accuracy": self.right, "nll": self.nll, "brier": self.brier}
        if self.curve.shape[1]:
            found["calibrated_nll"] = self.nll if self.tempered else self.calibrated_nll(seed)
        return found

    def calibrated_nll(self, seed: int = 0, folds: int = 2, repeats: int = 5) -> np.ndarray:
        """(n,): NLL of each image at a temperature of the other half, the mean over several halvings."""
        if self.n < folds:
            raise InputError(f"an error over items needs two items or groups of items, or more; got {self.n}")
        total = np.zeros(self.n)
        for k in range(repeats):
            fold = fold_of(self.n, folds, seed + k)
            for f in range(folds):
                inside = fold == f
                total[inside] += hermite(self.curve[inside], self.log_temperature(~inside))
        return total / repeats

    def log_temperature(self, chosen: np.ndarray) -> float:
        """log T that makes the labels of the chosen images most likely, under the weak prior of TemperatureScaler; T in
        [1/4, 8]."""
        curve = self.curve[chosen].sum(0) / self.sizes[chosen].sum()
        share = PRIOR / np.count_nonzero(chosen)

        def slope(t: float) -> float:
            return float(hermite_slope(curve, t)) + share * (1 - float(np.exp(-t)))

        if slope(LOG_T[0]) >= 0:
            return float(LOG_T[0])
        if slope(LOG_T[-1]) <= 0:
            return float(LOG_T[-1])
        from scipy.optimize import brentq

        return float(brentq(slope, LOG_T[0], LOG_T[-1], xtol=1e-10))

    def calibration_curves(self) -> dict[str, Iterator[np.ndarray]]:
        """Calibration error -> for each of its curves the sums (n, n_bins) of right answer less confidence."""
        n_bins = self.bins.shape[1]
        middle = np.cumsum(self.counts) - self.counts / 2           # in the order of rising confidence
        bin_of = np.minimum((middle * n_bins / self.counts.sum()).astype(np.int64), n_bins - 1)
        adaptive = np.zeros((self.n, n_bins))
        for b in np.unique(bin_of):
            adaptive[:, b] = self.gaps[:, bin_of == b].sum(1)
        return {"ece": iter([self.bins[..., 2] - self.bins[..., 1]]), "ece_adaptive": iter([adaptive]),
                "ece_classwise": (self.class_bins[:, c, :, 2] - self.class_bins[:, c, :, 1]
                                  for c in range(self.class_bins.shape[1]))}


class DenseRows:
    """Images with labels in, one row of sums an image out: nothing of an image is kept but its row.

    Arguments:
        classes: how many.
        n_bins: of equal width in the confidence.
        ignore_index: label of pixels that are not scored.
        temperatures: whether NLL at other temperatures is wanted, which costs most of the time.
    """

    def __init__(self, classes: int, n_bins: int = 15, *, ignore_index: int | None = None, temperatures: bool = True,
                 edges: str = "right"):
        if not isinstance(n_bins, int | np.integer) or n_bins < 1:
            raise InputError(f"n_bins is a whole number of 1 or more; got {n_bins!r}")
        from ensemblekit.neural.kernels_dense import FINE

        self.classes, self.n_bins, self.ignore_index, self.right = classes, int(n_bins), ignore_index, edges == "right"
        self.log_t = LOG_T if temperatures else LOG_T[:0]
        self.shapes: dict[str, tuple[int, ...]] = {
            "sums": (4,), "bins": (n_bins, 3), "class_bins": (classes, n_bins, 3), "confusion": (classes, classes),
            "curve": (len(self.log_t), 2), "gaps": (FINE,)}
        self.series = Series()
        self.counts = np.zeros(FINE)
        self.n = 0

    def update(self, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """One image: probabilities (classes, *map), labels (*map). Returns its sums by name.

        Raises InputError for what are no probabilities, and for labels out of range; the image is named by its number.
        """
        from ensemblekit.neural.kernels_dense import add_image

        p = flat_image(probabilities)
        label = flat_labels(labels, self.classes)
        rounding = rounding_of(probabilities)
        row = {name: np.zeros(shape) for name, shape in self.shapes.items()}
        add_choices(p, label, self.ignore_index, self.right, rounding, row["bins"], image=self.n)
        floor = float(np.finfo(np.float32 if rounding > 1e-10 else np.float64).tiny)
        add_image(p, label, self.ignore_index or 0, self.ignore_index is not None, self.right, rounding, floor,
                  np.exp(-self.log_t), row["sums"], row["class_bins"], row["confusion"], row["curve"], row["gaps"], self.counts,
                  np.empty(self.classes))
        self.series.update(np.concatenate([x.ravel() for x in row.values()])[None], self.n)
        self.n += 1
        return row

    def result(self, groups: ArrayLike | None = None, *, tempered: bool = False) -> DenseSums:
        """Of all images that came, those without a pixel to score left out; groups (n,) say what each belongs to.

        Raises InputError where nothing is left.
        """
        rows = self.series.result()
        if not self.n:
            raise InputError("nothing to score: no images came")
        if groups is not None:
            rows = joined(rows, groups)
        rows = rows[rows[:, 0] > 0]
        if not len(rows):
            raise InputError(f"every label is ignore_index, {self.ignore_index}: nothing is left to score")
        parts, at = {}, 0
        for name, shape in self.shapes.items():
            width = int(np.prod(shape))
            parts[name] = rows[:, at:at + width].reshape(len(rows), *shape)
            at += width
        sums = parts.pop("sums")
        return DenseSums(sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3], **parts, counts=self.counts, tempered=tempered)


def is_dense(preds: object) -> bool:
    """Whether these are predictions of maps: (n, classes, ...) with more axes."""
    if isinstance(preds, Prediction):
        return preds.probabilities.ndim > 2
    return not isinstance(preds, Predicted) and np.ndim(as_numpy(preds, "preds")) > 2


def dense_of(preds: Predicted | object, target: object = None, groups: ArrayLike | None = None, n_bins: int = 15, *,
             temperatures: bool = True) -> DenseSums:
    """The sums of a Prediction of maps, or of probabilities (n, classes, *map) with labels (n, *map); as ``items_of``."""
    p, labels, ignore, tempered = maps_of(preds, target)
    rows = DenseRows(p.shape[1], n_bins, ignore_index=ignore, temperatures=temperatures)
    for image, drawn in zip(p, labels, strict=True):
        rows.update(image, drawn)
    return rows.result(groups, tempered=tempered)


def maps_of(preds: Predicted | object, target: object = None) -> tuple[np.ndarray, np.ndarray, int | None, bool]:
    """Probabilities (n, classes, *map), labels (n, *map), the label that is ignored, and whether they were scaled."""
    ignore, tempered = None, False
    if isinstance(preds, Prediction):
        tempered = preds.tempered and target is None
        target = preds.target if target is None else target
        ignore, preds = preds.ignore_index, preds.probabilities
        if target is None:
            raise InputError("these predictions have no labels; predict from a loader of (input, label)")
    p, labels = as_numpy(preds, "preds"), as_numpy(target, "labels")
    if p.ndim < 3 or labels.shape != p.shape[:1] + p.shape[2:] or not len(p) or not labels[0].size:
        raise InputError(f"preds are (n, classes, ...) with labels (n, ...), n > 0; got {p.shape} and {labels.shape}")
    return p, labels, ignore, tempered


def first_choice_bins(preds: Predicted | object, target: object, n_bins: int, edges: str,
                      groups: ArrayLike | None = None) -> np.ndarray:
    """(n, n_bins, 3): pixels, sum of confidence and right answers of each image or group, by confidence."""
    p, labels, ignore, _ = maps_of(preds, target)
    found = np.zeros((len(p), n_bins, 3))
    for i, (image, drawn) in enumerate(zip(p, labels, strict=True)):
        add_choices(flat_image(image), flat_labels(drawn, p.shape[1]), ignore, edges == "right", rounding_of(p), found[i],
                    image=i)
    if not found[..., 0].any():
        raise InputError(f"every label is ignore_index, {ignore}: nothing is left to score")
    return found if groups is None else joined(found, groups)


def joined(rows: np.ndarray, groups: ArrayLike) -> np.ndarray:
    """Rows (n, ...) of images summed over the groups (n,) that they belong to. Raises InputError for another number."""
    names = as_array(groups, "groups", kinds=None)
    if names.shape != rows.shape[:1]:
        raise InputError(f"groups are one name an item, shape ({len(rows)},); got {names.shape}")
    kinds, owner = np.unique(names, return_inverse=True)
    found = np.zeros((len(kinds), *rows.shape[1:]))
    np.add.at(found, owner.reshape(-1), rows)
    return found


def add_choices(p: np.ndarray, labels: np.ndarray, ignore: int | None, right: bool, rounding: float, bins: np.ndarray,
                *, image: int) -> None:
    """Bin the first choices of an image. Raises InputError where it holds no probabilities, or labels out of range."""
    from ensemblekit.neural.kernels_dense import add_first_choices

    status = add_first_choices(p, labels, ignore or 0, ignore is not None, right, rounding, bins)
    if status == 3:
        kept = labels if ignore is None else labels[labels != ignore]
        raise InputError(f"labels are whole numbers 0 to {len(p) - 1}; got {kept.dtype}, {kept.min()} to {kept.max()} in image "
                         f"{image}")
    if status:
        raise InputError(f"preds are probabilities; those of image {image}: {WRONG[status]}")


def flat_image(probabilities: np.ndarray) -> np.ndarray:
    """(classes, pixels) float64, in one piece."""
    return np.ascontiguousarray(probabilities.reshape(len(probabilities), -1), np.float64)


def flat_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """(pixels,) int64. Raises InputError for fractions."""
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels are whole numbers 0 to {classes - 1}; got {labels.dtype}, {labels.min()} to {labels.max()}")
    return np.ascontiguousarray(labels.reshape(-1), np.int64)


def rounding_of(p: np.ndarray) -> float:
    """Of the type in which probabilities came."""
    return float(np.finfo(p.dtype if p.dtype.kind == "f" else np.float64).eps)


def pixels_gained_and_lost(a: Predicted | object, b: Predicted | object,
                           groups: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(n,) each: pixels of every image, or group, that only a has right, and only b; images without any to score left out."""
    (p, labels, ignore, _), (q, _, _, _) = (maps_of(*(x if isinstance(x, tuple) else (x,))) for x in (a, b))
    rows = np.zeros((len(p), 3))
    for row, first, second, drawn in zip(rows, p, q, labels, strict=True):
        kept = np.ones(drawn.shape, bool) if ignore is None else drawn != ignore
        ours, theirs = (first.argmax(0) == drawn) & kept, (second.argmax(0) == drawn) & kept
        row[:] = np.count_nonzero(ours & ~theirs), np.count_nonzero(theirs & ~ours), np.count_nonzero(kept)
    if groups is not None:
        rows = joined(rows, groups)
    rows = rows[rows[:, 2] > 0]
    return rows[:, 0], rows[:, 1]


def hermite(curve: np.ndarray, t: float) -> np.ndarray:
    """(n,): the cubic through values and slopes (n, 17, 2) at `LOG_T`, at t within them."""
    k, u, h = _interval(t)
    y0, y1 = curve[:, k, 0], curve[:, k + 1, 0]
    s0, s1 = h * curve[:, k, 1], h * curve[:, k + 1, 1]
    v = 1 - u
    found: np.ndarray = (1 + 2 * u) * v**2 * y0 + u * v**2 * s0 + u**2 * (3 - 2 * u) * y1 - u**2 * v * s1
    return found


def hermite_slope(curve: np.ndarray, t: float) -> float:
    """Slope in t of that cubic, of one curve (17, 2)."""
    k, u, h = _interval(t)
    (y0, s0), (y1, s1) = curve[k], curve[k + 1]
    return float((6 * u**2 - 6 * u) * (y0 - y1) / h + (1 - 4 * u + 3 * u**2) * s0 + (3 * u**2 - 2 * u) * s1)


def _interval(t: float) -> tuple[int, float, float]:
    h = float(LOG_T[1] - LOG_T[0])
    k = int(np.clip(np.searchsorted(LOG_T, t, side="right") - 1, 0, len(LOG_T) - 2))
    return k, (t - float(LOG_T[k])) / h, h
