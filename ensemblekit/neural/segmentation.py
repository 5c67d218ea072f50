"""What is known of segmented images: regions by doubt, images by expected overlap, and how well all of it holds."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.files import replacing
from ensemblekit.neural.calibration import Reliability
from ensemblekit.neural.detection import Detection
from ensemblekit.neural.regions import Region
from ensemblekit.neural.result_files import Saved
from ensemblekit.neural.scores import Scores
from ensemblekit.results import Result

SHOWN = 12
"""Regions that stand in the printed table."""


@dataclass(frozen=True, slots=True, eq=False)
class CaseScore(Saved, Result):
    """One class in one image."""

    case: int
    """Number of the image."""
    label: int
    """The class."""
    dice: float
    """Of the pooled mask and the label: 0 where one of them is empty, NaN where both are or there is no label."""
    expected_dice: float
    """To expect if p is right, 2 Σpm/(Σp + Σm); 0 without a mask."""
    calibrated_dice: float
    """The same as it came out on other, labelled images (`quality=`); NaN without them."""
    pairwise_dice: float
    """Mean Dice of two members; NaN where all are empty."""
    volume: float
    """Sum of p."""
    volume_low: float
    """Least of the members' own."""
    volume_high: float
    """Largest of the members' own."""
    n_regions: int
    unseen: int
    """Components of the label that no region touches: what nobody saw and p did not hint at."""
    doubt: float
    """The largest of its regions; 0 without any."""

    def calibrated(self, curve: tuple[np.ndarray, np.ndarray] | None) -> CaseScore:
        """With the Dice that such an expected Dice came out as."""
        if curve is None or np.isnan(self.expected_dice):
            return self
        return replace(self, calibrated_dice=float(np.interp(self.expected_dice, *curve)))


@dataclass(frozen=True, slots=True, eq=False)
class KeptCase(Saved, Result):
    """The maps of one image, for pictures."""

    case: int
    image: np.ndarray | None
    """(*map): its first channel."""
    probabilities: np.ndarray
    """(classes asked for, *map) float32, pooled."""
    choice: np.ndarray
    """(*map): the pooled first choice."""
    bits: Mapping[str, np.ndarray]
    """Class -> (M, bytes): members' masks, packed."""
    entropy: np.ndarray
    """(*map) float32, nats."""
    epistemic: np.ndarray
    """(*map) float32, nats."""
    target: np.ndarray | None
    """(*map) labels."""
    spacing: tuple[float, ...] | None
    """mm along each axis."""

    def masks(self, label: int) -> np.ndarray:
        """(M, *map) bool: what each member takes for the class."""
        shape = self.entropy.shape
        flat = np.unpackbits(self.bits[str(label)], axis=1, count=int(np.prod(shape)))
        return flat.reshape(-1, *shape).astype(bool)


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation(Saved, Result):
    """Segmented images: their regions, by falling doubt, and the images. Prints as a table."""

    FIGURE: ClassVar[str] = "segmentation.overview"

    regions: tuple[Region, ...]
    """By falling doubt."""
    cases: tuple[CaseScore, ...]
    """A row an image and class, in the order of the loader."""
    classes: tuple[int, ...]
    """Those whose regions were looked for."""
    n: int
    """Images."""
    n_members: int
    unit: str
    """Of volumes: voxels, mm² (images) or ml."""
    scores: Scores | None
    """Of all pixels, over images; None without labels."""
    reliability: Reliability | None
    """Of all pixels."""
    detection: Detection | None
    """How well doubt finds regions whose true Dice is below 0.5; resampled by image or group."""
    confusion: np.ndarray | None
    """(classes, classes): pixels of each label (rows) and first choice."""
    kept: tuple[KeptCase, ...]
    """Maps of the images with most doubt."""
    notes: tuple[str, ...] = ()

    def summary(self) -> list[str]:
        """What there is to say of all images, in lines."""
        wrong = [one for one in self.regions if one.wrong]
        lines = [f"{self.n} images, {self.n_members} members, {len(self.regions)} regions"
                 + (f", {len(wrong)} of them wrong (true Dice below 0.5)" if self.detection is not None else "")]
        for label in self.classes:
            own = [one for one in self.cases if one.label == label]
            true = np.array([one.dice for one in own])
            scored = np.isfinite(true)
            if self.reliability is not None:
                expected = np.array([one.expected_dice for one in own])
                lines.append(f"class {label}: mean Dice {_mean(true[scored])} of {scored.sum()} images with it in label or "
                             f"mask, expected {_mean(expected[scored])}; {sum(one.unseen for one in own)} parts unseen")
        if self.detection is not None:
            found = self.detection["doubt"].auroc
            lines.append(f"doubt tells wrong regions: AUROC {found.value:.3f} ({found.low:.3f} to {found.high:.3f})")
        return lines

    def __str__(self) -> str:
        lines = self.summary()
        rows = [("case", "class", "no.", f"volume ({self.unit})", "low to high", "seen by", "expected Dice", "doubt")]
        for one in self.regions[:SHOWN]:
            rows.append((str(one.case), str(one.label), str(one.number), f"{one.volume:.3g}",
                         f"{one.volume_low:.3g} to {one.volume_high:.3g}", f"{one.sighted} of {self.n_members}",
                         f"{one.expected_dice:.2f}" if one.in_pool else "no mask", f"{one.doubt:.2f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if len(self.regions) > SHOWN:
            lines.append(f"and {len(self.regions) - SHOWN} more, of less doubt")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _facts(self) -> dict[str, object]:
        return {"images": self.n, "members": self.n_members, "classes": self.classes, "unit": self.unit,
                "regions": [dict(zip(REGION_COLUMNS, _row(one, REGION_COLUMNS), strict=True)) for one in self.regions],
                "cases": [dict(zip(CASE_COLUMNS, _row(one, CASE_COLUMNS), strict=True)) for one in self.cases],
                "scores": None if self.scores is None else {name: {"value": s.value, "low": s.low, "high": s.high}
                                                            for name, s in self.scores.items()},
                "detection": self.detection, "confusion": self.confusion, "notes": list(self.notes)}

    def of_case(self, case: int) -> tuple[Region, ...]:
        """The regions of one image, by falling doubt. Raises InputError for an image that is not there."""
        if not 0 <= case < self.n:
            raise InputError(f"images are 0 to {self.n - 1}; got {case!r}")
        return tuple(one for one in self.regions if one.case == case)

    def n_scored(self, label: int) -> int:
        """Images whose Dice of the class is a number: those that have it in label or mask."""
        return sum(one.label == label and bool(np.isfinite(one.dice)) for one in self.cases)

    def to_csv(self, folder: str | os.PathLike[str]) -> tuple[str, str]:
        """Write regions.csv and cases.csv into a folder, which is made; their paths."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        return (_written(path / "regions.csv", REGION_COLUMNS, self.regions),
                _written(path / "cases.csv", CASE_COLUMNS, self.cases))


REGION_COLUMNS = (*(field.name for field in fields(Region)), "wrong")
CASE_COLUMNS = tuple(field.name for field in fields(CaseScore))


def region_rows(regions: Sequence[Region]) -> Iterator[list[object]]:
    """The values of `REGION_COLUMNS`, a row a region."""
    return (_row(one, REGION_COLUMNS) for one in regions)


def dice_curve(quality: Segmentation) -> tuple[np.ndarray, np.ndarray]:
    """Expected Dice, rising, and the mean true Dice at it, never falling, of labelled images (isotonic regression).

    Raises InputError where fewer than two images have a true Dice.
    """
    pairs = sorted((one.expected_dice, one.dice) for one in quality.cases
                   if np.isfinite(one.dice) and np.isfinite(one.expected_dice))
    if len(pairs) < 2:
        raise InputError(f"quality is a Segmentation of labelled images, two or more with a Dice; this one has {len(pairs)}")
    x, y = np.array(pairs).T
    return x, isotonic(y)


def isotonic(y: np.ndarray) -> np.ndarray:
    """(n,): the sequence that never falls and is nearest to y in squares, by pooling neighbors that fall."""
    means: list[float] = []
    sizes: list[int] = []
    for value in y:
        means.append(float(value))
        sizes.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            total = sizes[-2] + sizes[-1]
            means[-2:] = [(means[-2] * sizes[-2] + means[-1] * sizes[-1]) / total]
            sizes[-2:] = [total]
    return np.repeat(means, sizes)


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f}" if len(values) else "none"


def _row(one: Region | CaseScore, columns: Sequence[str]) -> list[object]:
    return [getattr(one, name) for name in columns]


def _written(path: Path, columns: Sequence[str], rows: Sequence[Region | CaseScore]) -> str:
    with replacing(path, follow=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(columns)
        for one in rows:
            out.writerow(["" if value is None or value != value else value for value in _row(one, columns)])
    return str(path)
