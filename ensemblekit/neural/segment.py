"""What an ensemble sees in images, part by part: every region with its doubt, every image with its expected overlap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Device
from ensemblekit.neural.calibration import Reliability, reliability_of
from ensemblekit.neural.dense import DenseRows, DenseSums
from ensemblekit.neural.detection import Detection, detected
from ensemblekit.neural.ensemble import Ensemble
from ensemblekit.neural.evidence import Source, cluster_of
from ensemblekit.neural.items import Values
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.regions import ClassMaps, Region, dice, expected_dice, pairwise_dice, regions_of
from ensemblekit.neural.scores import Scores, scores_of
from ensemblekit.neural.segmentation import CaseScore, KeptCase, Segmentation, dice_curve
from ensemblekit.neural.segmented_cases import ImageCase, cases_of
from ensemblekit.neural.uncertainty import entropy_of


def segment(source: Ensemble[Prediction] | Source, loader: Iterable[object] | None = None, *, target: Values | None = None,
            classes: Sequence[int] | None = None, spacing: float | Sequence[float] | None = None, candidate: float = 0.2,
            min_size: int = 4, margin: int = 2, keep: int = 8, groups: ArrayLike | None = None,
            quality: Segmentation | None = None, n_bins: int = 15, seed: int = 0, device: Device = None) -> Segmentation:
    """Every region that the pool or any member sees in images or volumes, ranked by doubt, and every image.

    One image is worked on after the other: in memory are the members' probabilities of one batch, so give volumes in batches of
    one. Images may differ in size. Labels are not needed; with them regions and images have their true Dice, all pixels have
    scores, and it is asked how well doubt finds the wrong regions.

    Arguments:
        source: an Ensemble of task "segmentation" or "binary"; or members' probabilities: SavedPredictions, a store or its
            path, an array (M, n, classes, *map) with `target`.
        loader: of images and labels for an ensemble; for saved predictions of images alone, which the pictures show.
        classes: those whose regions are looked for; all but 0 by default.
        spacing: of voxels in mm, a number or one an axis; a batch's "spacing" by default; else volumes are in voxels.
        candidate: p of a class from which a voxel belongs to a region, also where no member's first choice is the class.
        min_size: voxels of the smallest region, where the pool has no mask there.
        margin: voxels by which a region is widened to be measured.
        keep: images whose maps are kept for pictures, those with most doubt.
        groups: (n,) what each image belongs to, a patient; resampled together.
        quality: a Segmentation of other, labelled images: from it the expected Dice is calibrated by isotonic regression (the
            idea of quality from samples: Roy et al., NeuroImage 195, 11, 2019).

    Raises InputError for settings out of range, no images, members that are not finite, labels out of range.
    """
    _check(candidate, min_size, margin, keep)
    curve = None if quality is None else dice_curve(quality)
    found = _Collected(classes, candidate, min_size, margin, keep, n_bins)
    for case in cases_of(source, loader, target=target, spacing=spacing, device=device):
        found.update(case)
    if not found.n:
        raise InputError("nothing to segment: the loader is empty")
    return found.result(groups, curve, seed)


class _Collected:
    """Regions, images and sums of pixels as images come."""

    def __init__(self, classes: Sequence[int] | None, candidate: float, min_size: int, margin: int, keep: int, n_bins: int):
        self.classes = None if classes is None else [int(c) for c in classes]
        self.candidate, self.min_size, self.margin, self.keep, self.n_bins = candidate, min_size, margin, keep, n_bins
        self.n = self.members = 0
        self.unit: str | None = None
        self.labelled: bool | None = None
        self.rows: DenseRows | None = None
        self.regions: list[Region] = []
        self.cases: list[CaseScore] = []
        self.kept: list[tuple[float, KeptCase]] = []
        self.pixels: dict[int, int] = {}

    def update(self, case: ImageCase) -> None:
        """One image."""
        count = case.members.shape[1]
        if self.classes is None:
            self.classes = list(range(1, count))
        if not self.classes or not set(self.classes) <= set(range(count)) or len(set(self.classes)) < len(self.classes):
            raise InputError(f"classes are different numbers of 0 to {count - 1}; got {self.classes}")
        if self.labelled not in (None, case.target is not None):
            raise InputError("some images have labels and some have not")
        if self.unit not in (None, case.unit):
            raise InputError(f"volumes of image {self.n} are in {case.unit}, those before it in {self.unit}: give all a "
                             "spacing or none, and images of as many axes")
        self.labelled, self.unit, self.members = case.target is not None, case.unit, len(case.members)
        if case.target is not None:
            self.rows = self.rows or DenseRows(count, self.n_bins, ignore_index=case.ignore_index)
            self.rows.update(case.probabilities, case.target)
        entropy = entropy_of(np.asarray(case.probabilities, np.float64)[None])[0]
        epistemic = np.clip(entropy - case.aleatoric, 0, None)
        choice, choices = case.probabilities.argmax(0), case.members.argmax(1)
        masks: dict[int, np.ndarray] = {}
        worst = 0.0
        for c in self.classes:
            truth, scored = case.truth_of(c)
            maps = ClassMaps(case.probabilities[c], case.members[:, c], choice == c, choices == c, case.weights, entropy,
                             epistemic, case.disagreement, truth, scored)
            regions, unseen = regions_of(self.n, c, maps, candidate=self.candidate, min_size=self.min_size, margin=self.margin,
                                         voxel=case.voxel)
            self.pixels[c] = self.pixels.get(c, 0) + int(np.count_nonzero(maps.masks)) + (
                0 if truth is None else int(np.count_nonzero(truth)))
            score = _case_score(self.n, c, maps, regions, unseen, case.voxel)
            worst = max(worst, score.doubt)
            masks[c] = np.packbits(maps.masks.reshape(len(maps.masks), -1), axis=1)
            self.regions += regions
            self.cases.append(score)
        self._keep(worst, case, entropy, epistemic, masks)
        self.n += 1

    def _keep(self, doubt: float, case: ImageCase, entropy: np.ndarray, epistemic: np.ndarray,
              masks: dict[int, np.ndarray]) -> None:
        """The maps of the images with most doubt; of equal ones the first."""
        if self.keep and (len(self.kept) < self.keep or doubt > self.kept[-1][0]):
            assert self.classes is not None
            one = KeptCase(self.n, case.image, case.probabilities[self.classes].astype(np.float32),
                           case.probabilities.argmax(0).astype(np.int16),
                           {str(c): bits for c, bits in masks.items()}, entropy.astype(np.float32),
                           epistemic.astype(np.float32), case.target, case.spacing)
            self.kept = sorted([*self.kept, (doubt, one)], key=lambda pair: -pair[0])[:self.keep]

    def result(self, groups: ArrayLike | None, curve: tuple[np.ndarray, np.ndarray] | None, seed: int) -> Segmentation:
        """Everything together. Raises InputError for groups of another number, and where every pixel is ignored."""
        cluster = cluster_of(groups, self.n)
        classes = tuple(self.classes or ())
        regions = sorted(self.regions, key=lambda one: -one.doubt)
        notes = [f"class {c} has no pixels: no member's first choice and no label is {c}, and its Dice is not a number"
                 for c in classes if not self.pixels[c]]
        scores: Scores | None = None
        reliability: Reliability | None = None
        detection: Detection | None = None
        if self.rows is not None:
            sums = self.rows.result(groups)
            reliability = reliability_of(sums.bins)
            if sums.n > 1:
                scores = scores_of(sums, self.n_bins, seed)
            else:
                notes.append("scores: an error over images needs two images or groups of them, or more")
            detection = _detection(regions, cluster, seed, notes)
            confusion: np.ndarray | None = _confusion(sums)
        else:
            confusion = None
        cases = tuple(one.calibrated(curve) for one in self.cases)
        return Segmentation(tuple(regions), cases, classes, self.n, self.members, self.unit or "voxels", scores, reliability,
                            detection, confusion, tuple(one for _, one in self.kept), tuple(notes))


def _confusion(sums: DenseSums) -> np.ndarray:
    return sums.confusion.sum(0)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Regions in independent images, or groups of them."""

    cluster: np.ndarray
    n: int

    @property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.cluster, minlength=self.n).astype(float)


def _detection(regions: Sequence[Region], cluster: np.ndarray, seed: int, notes: list[str]) -> Detection | None:
    """How well doubt tells wrong regions; None where fewer than two images have any."""
    scored = [one for one in regions if not np.isnan(one.true_dice)]
    names, owner = np.unique(cluster[[one.case for one in scored]], return_inverse=True)
    if len(names) < 2:
        notes.append("whether doubt finds wrong regions is not asked: fewer than two images have regions")
        return None
    doubts = {"doubt": [one.doubt for one in scored], "entropy": [one.entropy for one in scored],
              "epistemic": [one.epistemic for one in scored],
              "1 - agreement": [0.0 if np.isnan(one.agreement) else 1 - one.agreement for one in scored]}
    return detected({name: np.array(values) for name, values in doubts.items()},
                    np.array([float(bool(one.wrong)) for one in scored]), _Rows(owner.reshape(-1), len(names)), (), seed)


def _case_score(case: int, label: int, maps: ClassMaps, regions: Sequence[Region], unseen: int, voxel: float) -> CaseScore:
    """Of one class in one image."""
    own = maps.members.reshape(len(maps.members), -1).sum(1, dtype=np.float64) * voxel
    scored = maps.mask if maps.scored is None else maps.mask & maps.scored
    masks = maps.masks if len(maps.masks) > 1 else maps.masks[:1]
    return CaseScore(case, label, float("nan") if maps.truth is None else dice(scored, maps.truth),
                     expected_dice(maps.p, maps.mask), float("nan"), pairwise_dice(masks, np.nan),
                     float(maps.p.sum(dtype=np.float64)) * voxel, float(own.min()), float(own.max()), len(regions), unseen,
                     max((one.doubt for one in regions), default=0.0))


def _check(candidate: float, min_size: int, margin: int, keep: int) -> None:
    if not 0 < candidate < 1:
        raise InputError(f"candidate is a probability between 0 and 1; got {candidate!r}")
    for name, value, least in (("min_size", min_size, 1), ("margin", margin, 0), ("keep", keep, 0)):
        if not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} is a whole number of {least} or more; got {value!r}")


