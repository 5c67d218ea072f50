"""Images like slices of a CT whose every pixel has a known probability of being labelled: the oracle of an uncertainty map.

An organ with lesions, each with a border blurred by a width w of its own. An observer labels what lies nearer than δ ~ N(0, w²)
beyond that border (d < δ, d the signed distance), one δ for the whole of it, as a hand does. So the probability that a pixel is
labelled is Φ(-d/w), exactly, and the pixels of one lesion are labelled together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.results import Result

ORGAN, AROUND, DARKER, BRIGHTER = 60.0, -200.0, -40.0, 45.0
"""Hounsfield units: of the organ, of what is about it, and what a lesion and a mimic add."""
CORRELATED = 0.7
"""Voxels over which noise is smoothed."""
TRIES = 200
"""Places that are tried for a lesion."""


@dataclass(frozen=True, slots=True, eq=False)
class PhantomLesion:
    """A lesion of one image, or a mimic, which looks different and is one in half of the cases."""

    center: np.ndarray
    """(d,), voxels."""
    radius: float
    """Of the ball of the same volume, voxels."""
    axes: np.ndarray
    """(d, d): rows are directions over their stretch, so that the distance is ``|axes @ (x - center)| - radius``."""
    width: float
    """w, of the blurred border, voxels."""
    mimic: bool

    def distance(self, shape: Sequence[int]) -> np.ndarray:
        """(*shape), voxels, below 0 inside; along the stretched axes."""
        grid = np.stack(np.meshgrid(*(np.arange(size) - at for size, at in zip(shape, self.center, strict=True)),
                                    indexing="ij"))
        distance: np.ndarray = np.sqrt((np.tensordot(self.axes, grid, 1) ** 2).sum(0)) - self.radius
        return distance

    def labelled(self, distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(*shape) bool: where one observer sees it."""
        border, seen = self.width * rng.standard_normal(), rng.random() < 0.5
        return distance < (border if seen or not self.mimic else -np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Phantoms(Result):
    """Images with the labels of one observer, and the probability of each label."""

    FIGURE: ClassVar[str] = "segmentation.phantoms"


    images: np.ndarray
    """(n, 1, *shape) float32, Hounsfield units."""
    labels: np.ndarray
    """(n, *shape) uint8: 1 where the observer drew a lesion."""
    probability: np.ndarray
    """(n, *shape): of label 1, over observers."""
    regions: tuple[tuple[PhantomLesion, ...], ...]
    """Lesions and mimics of each image."""
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def _facts(self) -> dict[str, object]:
        regions = [region for image in self.regions for region in image]
        return {"images": len(self), "shape": self.labels.shape[1:], "lesions": sum(not region.mimic for region in regions),
                "mimics": sum(region.mimic for region in regions), "labelled": float(self.labels.mean()),
                "probability": float(self.probability.mean()), "seed": self.seed}

    def observers(self, m: int) -> np.ndarray:
        """(m, n, *shape) uint8: what m further observers draw on the same images."""
        if not isinstance(m, int | np.integer) or m < 1:
            raise InputError(f"observers are a whole number of 1 or more; got {m!r}")
        out = np.zeros((m, *self.labels.shape), np.uint8)
        for i, regions in enumerate(self.regions):
            for lesion, distance, at in _pairs(regions, self.labels.shape[1:]):
                for k in range(m):
                    # numbers of an observer hang on image and lesion alone: more observers change none of the first
                    out[k, i] |= lesion.labelled(distance, np.random.default_rng([self.seed, i, 2 + k, at]))
        return out


def phantom(n: int, shape: Sequence[int] = (64, 64), *, seed: int = 0, noise: float = 12.0, lesions: tuple[int, int] = (1, 4),
            widths: Sequence[float] = (0.5, 1.0, 2.0), mimics: float = 0.25,
            radii: tuple[float, float] = (3.0, 7.0)) -> Phantoms:
    """Images of an organ with lesions, in two or three dimensions, with labels whose probability is known.

    A lesion makes the organ darker by 40 Φ(-d/w) HU, a mimic brighter by 45 Φ(-d/w); half of the observers label a mimic.
    The same seed gives the same images, however many.

    Arguments:
        n: images.
        shape: (height, width) or (depth, height, width), voxels.
        noise: deviation of the noise, HU, correlated over 0.7 voxel.
        lesions: fewest and most of an image, mimics among them; they do not overlap. Where so many do not fit, fewer.
        widths: of borders, voxels, one drawn for each lesion.
        mimics: share of the lesions.
        radii: smallest and largest, voxels.

    Raises:
        InputError: settings out of range, an organ too small for the fewest lesions.
    """
    size = _checked(n, shape, noise, lesions, widths, mimics, radii)
    from scipy.ndimage import gaussian_filter
    from scipy.special import ndtr

    images, labels = np.empty((n, 1, *size), np.float32), np.zeros((n, *size), np.uint8)
    probability, regions = np.zeros((n, *size)), []
    middle = (np.array(size) - 1) / 2
    organ = PhantomLesion(middle, 1.0, np.diag(1 / (0.44 * np.array(size))), 1.0, False).distance(size) < 0
    impulse = np.zeros(size)
    impulse[(0,) * len(size)] = 1
    spread = float(np.sqrt((gaussian_filter(impulse, CORRELATED, mode="wrap") ** 2).sum()))
    for i in range(n):
        placed = tuple(_placed(np.random.default_rng([seed, i, 0]), size, lesions, widths, mimics, radii))
        image = np.where(organ, ORGAN, AROUND)
        missed = np.ones(size)
        for lesion, distance, at in _pairs(placed, size):
            inside = ndtr(-distance / lesion.width)
            image += (BRIGHTER if lesion.mimic else DARKER) * inside
            missed *= 1 - inside / (2 if lesion.mimic else 1)
            labels[i] |= lesion.labelled(distance, np.random.default_rng([seed, i, 1, at]))
        white = np.random.default_rng([seed, i, 0, 1]).standard_normal(size)
        images[i, 0] = image + noise / spread * gaussian_filter(white, CORRELATED, mode="wrap")
        probability[i] = 1 - missed
        regions.append(placed)
    return Phantoms(images, labels, probability, tuple(regions), seed)


def _pairs(regions: Sequence[PhantomLesion], shape: Sequence[int]) -> Iterator[tuple[PhantomLesion, np.ndarray, int]]:
    """Each lesion with its distances and its number."""
    for at, lesion in enumerate(regions):
        yield lesion, lesion.distance(shape), at


def _placed(rng: np.random.Generator, size: tuple[int, ...], lesions: tuple[int, int], widths: Sequence[float], mimics: float,
            radii: tuple[float, float]) -> Iterator[PhantomLesion]:
    """Lesions inside the organ, whose borders keep clear of each other."""
    d = len(size)
    middle, reach = (np.array(size) - 1) / 2, 0.44 * np.array(size)
    placed: list[tuple[np.ndarray, float]] = []
    wanted = int(rng.integers(lesions[0], lesions[1] + 1))
    for _ in range(wanted):
        stretch = np.exp(rng.uniform(-0.25, 0.25, d))
        stretch /= stretch.prod() ** (1 / d)
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
        width, mimic = float(rng.choice(np.asarray(widths, float))), bool(rng.random() < mimics)
        radius = float(rng.uniform(*radii))
        out = radius * float(stretch.max()) + width
        center = _free(rng, middle, reach - out, placed, out)
        if center is not None:
            placed.append((center, out))
            yield PhantomLesion(center, radius, turn / stretch[:, None], width, mimic)
    if len(placed) < lesions[0]:
        raise InputError(f"{lesions[0]} lesions of radius {radii[0]:g} to {radii[1]:g} do not fit into the organ of an image "
                         f"of {' x '.join(map(str, size))}: take a larger shape=, smaller radii= or fewer lesions=")


def _free(rng: np.random.Generator, middle: np.ndarray, inside: np.ndarray, placed: list[tuple[np.ndarray, float]],
          out: float) -> np.ndarray | None:
    """A place for a lesion that reaches `out` from its center: within the ellipsoid `inside`, clear of the others."""
    if (inside <= 0).any():
        return None
    for _ in range(TRIES):
        step = rng.standard_normal(len(middle))
        center: np.ndarray = middle + inside * step / np.linalg.norm(step) * rng.random() ** (1 / len(middle))
        if all(np.linalg.norm(center - other) > out + theirs for other, theirs in placed):
            return center
    return None


def _checked(n: int, shape: Sequence[int], noise: float, lesions: tuple[int, int], widths: Sequence[float], mimics: float,
             radii: tuple[float, float]) -> tuple[int, ...]:
    if not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"images are a whole number of 1 or more; got {n!r}")
    size = tuple(int(x) for x in shape)
    if len(size) not in (2, 3) or min(size) < 8:
        raise InputError(f"shape is (height, width) or (depth, height, width), 8 voxels or more; got {tuple(shape)}")
    if len(lesions) != 2 or not 0 <= lesions[0] <= lesions[1]:
        raise InputError(f"lesions are (fewest, most), 0 or more; got {lesions}")
    if len(radii) != 2 or not 0 < radii[0] <= radii[1]:
        raise InputError(f"radii are (smallest, largest), above 0; got {radii}")
    if not len(widths) or not all(np.isfinite(w) and w > 0 for w in widths):
        raise InputError(f"widths of borders are above 0; got {tuple(widths)}")
    if not 0 <= mimics <= 1:
        raise InputError(f"mimics is the share of lesions that are mimics, 0 to 1; got {mimics!r}")
    if not (np.isfinite(noise) and noise >= 0):
        raise InputError(f"noise is a deviation in HU, 0 or more; got {noise!r}")
    return size
