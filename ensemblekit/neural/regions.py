"""Connected parts of an image that an ensemble holds, or may hold, for a class, each with what it says of it and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ensemblekit.neural.result_files import Saved
from ensemblekit.results import Result

SIGHTED = 0.25
"""Share of a component that a member's mask must hold to count as a sighting of it."""
WRONG = 0.5
"""A region is wrong where its mask overlaps the truth by a Dice below this."""


@dataclass(frozen=True, slots=True, eq=False)
class Region(Saved, Result):
    """One part of one image that the pool or any member takes for a class, or that the pool gives a chance.

    A connected component, corners included, of {p of the class >= candidate} together with every member's mask. Its window is
    the component widened by a margin, without what belongs to others.
    """

    case: int
    """Number of the image."""
    label: int
    """The class."""
    number: int
    """In its image, 1 for the one with most doubt."""
    center: tuple[float, ...]
    """Voxels; weighted by p."""
    box: tuple[tuple[int, int], ...]
    """First voxel and the one behind the last, along each axis."""
    voxels: int
    """Of the pooled mask in the component."""
    size: int
    """Voxels of the component."""
    volume: float
    """Sum of p over the window: voxels, or mm² or ml where the spacing is known."""
    volume_low: float
    """Least of the members' own."""
    volume_high: float
    """Largest of the members' own."""
    support: float
    """Weight of the members whose mask holds a quarter of the component or more, 0 to 1."""
    sighted: int
    """How many members these are."""
    agreement: float
    """Mean Dice of two members' masks in the window, 1 where both are empty; what the members know, and no more."""
    entropy: float
    """Mean over the component, nats."""
    epistemic: float
    """Mean over the component of the entropy beyond the members' own, nats."""
    disagreement: float
    """Mean over the component of the share of members whose first choice is not the pool's."""
    largest: float
    """The largest p of the class."""
    in_pool: bool
    """Whether the pooled mask has voxels here."""
    expected_dice: float
    """Dice of the pooled mask and the truth to expect if p is right, 2 Σpm/(Σp + Σm) in the window; 0 without a mask."""
    doubt: float
    """1 - expected_dice where the pool has a mask; else the largest p, the chance that something is missed."""
    true_dice: float
    """Of the pooled mask and the label in the window, 1 where both are empty; NaN without labels."""
    peak_slice: int
    """Of a volume the slice (first axis) with the largest sum of entropy in the component; 0 for an image."""

    @property
    def wrong(self) -> bool | None:
        """Whether the true Dice is below 0.5; None without labels."""
        return None if np.isnan(self.true_dice) else bool(self.true_dice < WRONG)


@dataclass(frozen=True, slots=True, eq=False)
class ClassMaps:
    """What M members say of one class in one image."""

    p: np.ndarray
    """(*map): pooled probability."""
    members: np.ndarray
    """(M, *map): of each member."""
    mask: np.ndarray
    """(*map) bool: pooled first choice."""
    masks: np.ndarray
    """(M, *map) bool."""
    weights: np.ndarray
    """(M,), 1 in sum."""
    entropy: np.ndarray
    """(*map), nats; `epistemic` and `disagreement` likewise."""
    epistemic: np.ndarray
    disagreement: np.ndarray
    truth: np.ndarray | None
    """(*map) bool."""
    scored: np.ndarray | None = None
    """(*map) bool: where labels count; None: everywhere."""


def dice(a: np.ndarray, b: np.ndarray, empty: float = np.nan) -> float:
    """Of two masks: 2 |a and b| / (|a| + |b|); `empty` where both are."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else empty


def pairwise_dice(masks: np.ndarray, empty: float = 1.0) -> float:
    """Mean Dice of all pairs of masks (M, ...); NaN for one member."""
    m = len(masks)
    if m < 2:
        return float("nan")
    flat = masks.reshape(m, -1).astype(np.float32)
    size = flat.sum(1, dtype=np.float64)
    total = size[:, None] + size
    both = np.divide(2 * (flat @ flat.T), total, out=np.full((m, m), empty), where=total > 0)
    return float(both[np.triu_indices(m, 1)].mean())


def expected_dice(p: np.ndarray, mask: np.ndarray) -> float:
    """Dice of a mask with a truth that has the probability p at every voxel, 2 Σpm/(Σp + Σm); NaN where both are 0."""
    total = float(p.sum(dtype=np.float64)) + np.count_nonzero(mask)
    return float(2 * p[mask].sum(dtype=np.float64) / total) if total > 0 else float("nan")


def regions_of(case: int, label: int, maps: ClassMaps, *, candidate: float, min_size: int, margin: int,
               voxel: float) -> tuple[list[Region], int]:
    """Regions of one class in one image, by falling doubt, and how many components of the truth none of them touches.

    Arguments:
        min_size: components of fewer voxels are left out, unless the pooled mask has voxels there.
        voxel: what a voxel measures.
    """
    from scipy import ndimage

    structure = np.ones((3,) * maps.p.ndim)
    labelled, _ = ndimage.label((maps.p >= candidate) | maps.mask | maps.masks.any(0), structure)
    seen = np.zeros(maps.p.shape, bool)
    found: list[Region] = []
    for k, place in enumerate(ndimage.find_objects(labelled), start=1):
        wide = tuple(slice(max(at.start - margin, 0), min(at.stop + margin, size))
                     for at, size in zip(place, maps.p.shape, strict=True))
        part = labelled[wide]
        component = part == k
        if np.count_nonzero(component) < min_size and not (maps.mask[wide] & component).any():
            continue
        window = ndimage.binary_dilation(component, structure, iterations=margin) if margin else component.copy()
        window &= (part == 0) | component
        seen[wide] |= window
        found.append(_region(case, label, maps, wide, component, window, voxel))
    found.sort(key=lambda one: (-one.doubt, one.box))
    unseen = 0
    if maps.truth is not None:
        parts, n = ndimage.label(maps.truth, structure)
        unseen = n - len(np.setdiff1d(np.unique(parts[seen]), [0]))
    return [replace(one, number=at) for at, one in enumerate(found, start=1)], unseen


def _region(case: int, label: int, maps: ClassMaps, wide: Sequence[slice], component: np.ndarray, window: np.ndarray,
            voxel: float) -> Region:
    at = tuple(wide)
    p, mask = np.where(window, maps.p[at], 0), maps.mask[at] & window
    masks = maps.masks[(slice(None), *at)] & window
    own = np.array([member[window].sum(dtype=np.float64) for member in maps.members[(slice(None), *at)]]) * voxel
    size = int(np.count_nonzero(component))
    sighted = (masks & component).reshape(len(masks), -1).sum(1) >= SIGHTED * size
    in_pool = bool(mask.any())
    expected = expected_dice(p, mask)
    largest = float(maps.p[at][component].max())
    entropy = np.where(component, maps.entropy[at], 0)
    truth = None if maps.truth is None else maps.truth[at] & window
    scored = mask if maps.scored is None else mask & maps.scored[at]
    weighted = np.where(component, maps.p[at], 0).astype(np.float64)
    weighted = weighted if weighted.sum() > 0 else component.astype(float)
    center = tuple(float((np.moveaxis(weighted, axis, 0).reshape(n, -1).sum(1) @ np.arange(n)) / weighted.sum() + where.start)
                   for axis, (n, where) in enumerate(zip(component.shape, at, strict=True)))
    box = tuple((int(span.min()) + where.start, int(span.max()) + 1 + where.start)
                for span, where in zip(np.nonzero(component), at, strict=True))
    return Region(case, label, 0, center, box, int(np.count_nonzero(mask & component)), size,
                  float(p.sum(dtype=np.float64)) * voxel, float(own.min()), float(own.max()),
                  float(maps.weights[sighted].sum()), int(np.count_nonzero(sighted)), pairwise_dice(masks),
                  float(entropy.sum(dtype=np.float64)) / size,
                  float(maps.epistemic[at][component].mean(dtype=np.float64)),
                  float(maps.disagreement[at][component].mean(dtype=np.float64)), largest, in_pool, expected,
                  1 - expected if in_pool else largest, float("nan") if truth is None else dice(scored, truth, 1.0),
                  at[0].start + int(entropy.reshape(len(entropy), -1).sum(1).argmax()) if component.ndim == 3 else 0)
