"""Corruptions of images, of CT slices and of tables, in five severities: what a model meets when the world drifts.

Names and severities of images are those of the published CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019); the formulas are
our own, on whole batches of tensors. Each takes ``(x, severity, generator)``. Numbers are drawn item by item: a generator is
asked for one seed an item, so that an item gets the same bits in batches of any size, taken in the same order, on every device.

::

    generator = torch.Generator().manual_seed(0)
    foggy = corruptions.fog(images, 3, generator)           # images (n, channels, height, width) in [0, 1]
    for name, corrupt in corruptions.IMAGES.items(): ...

Not made here are those that need pictures or codecs (snow, frost, spatter, jpeg): :func:`from_folder` reads CIFAR-10-C's files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from ensemblekit.errors import InputError

L = TypeVar("L")
Corruption = Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]
"""(x, severity, generator) -> x."""
SEVERITIES = (1, 2, 3, 4, 5)
PUBLISHED = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
             "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise",
             "gaussian_blur", "spatter", "saturate")
"""All that CIFAR-10-C has."""


# -- noise -------------------------------------------------------------------------------------------------------------


def gaussian_noise(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Normal noise of deviation 0.04 to 0.10."""
    sigma = _of_image(x, severity, (0.04, 0.06, 0.08, 0.09, 0.10))
    return (x + sigma * _normal(x, generator)).clamp(0, 1)


def shot_noise(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Poisson noise of 500 to 50 photons where the image is white."""
    photons = _of_image(x, severity, (500, 250, 100, 75, 50))
    return (_by_item(x, generator, lambda one, g: torch.poisson(one * photons, generator=g)) / photons).clamp(0, 1)


def impulse_noise(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """1 to 7 % of the values become 0 or 1."""
    share = _of_image(x, severity, (0.01, 0.02, 0.03, 0.05, 0.07))
    u = _uniform(x, generator)
    return torch.where(u < share / 2, 0.0, torch.where(u < share, 1.0, x))


def speckle_noise(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Normal noise of deviation 0.06 to 0.20 of each value."""
    sigma = _of_image(x, severity, (0.06, 0.10, 0.12, 0.16, 0.20))
    return (x * (1 + sigma * _normal(x, generator))).clamp(0, 1)


# -- blur --------------------------------------------------------------------------------------------------------------


def gaussian_blur(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian of 0.4 to 1 pixel."""
    return _blurred(x, _of_image(x, severity, (0.4, 0.6, 0.7, 0.8, 1.0))).clamp(0, 1)


def defocus_blur(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """A disc of 0.3 to 1.5 pixels, its border smoothed."""
    radius, smooth = _of_image(x, severity, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)))
    half = int(np.ceil(radius)) + 1
    at = torch.arange(-half, half + 1, dtype=torch.float64)
    disc = ((at[:, None] ** 2 + at**2) <= radius**2).double()
    disc = _blurred(disc[None, None], smooth, reach=1)[0, 0]
    return _convolved(x, disc / disc.sum()).clamp(0, 1)


def motion_blur(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """A half Gaussian of 1 to 2.5 pixels along a direction of -45 to 45 degrees, each image's own."""
    radius, sigma = _of_image(x, severity, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)))
    out = torch.empty_like(x)
    step = torch.arange(radius + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * (step / sigma) ** 2)
    own = torch.Generator()
    for i, seed in enumerate(_generators(len(x), generator)):
        angle = (torch.rand(1, generator=own.manual_seed(seed), dtype=torch.float64).item() - 0.5) * np.pi / 2
        kernel = torch.zeros(2 * radius + 3, 2 * radius + 3, dtype=torch.float64)
        for s, w in zip(step.tolist(), weight.tolist(), strict=True):      # each weight to its four nearest pixels
            row, column = radius + 1 + s * np.sin(angle), radius + 1 + s * np.cos(angle)
            r, c = int(np.floor(row)), int(np.floor(column))
            for dr, dc in ((0, 0), (0, 1), (1, 0), (1, 1)):
                kernel[r + dr, c + dc] += w * (1 - abs(row - r - dr)) * (1 - abs(column - c - dc))
        out[i] = _convolved(x[i:i + 1], kernel / kernel.sum())[0]
    return out.clamp(0, 1)


def zoom_blur(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """The mean of the image and its enlargements, in steps of 1 %, by up to 5 to 25 %."""
    most = _of_image(x, severity, (5, 10, 15, 20, 25))
    total = 2 * x       # the published list holds the image twice
    for percent in range(1, most + 1):
        total = total + _moved(x, _grid(x) / (1 + percent / 100))
    return (total / (most + 2)).clamp(0, 1)


def glass_blur(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Each pixel shows one next to it, once or twice, between two Gaussians of 0.05 to 0.4 pixels."""
    sigma, times = _of_image(x, severity, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)))
    x = _blurred(x, sigma)
    n, _, height, width = x.shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    steps = _by_item(x.new_zeros(n, times, 2, height, width), generator,
                     lambda one, g: torch.randint(-1, 2, one.shape, generator=g).to(one.dtype)).long()
    for k in range(times):
        r = (rows.to(x.device) + steps[:, k, 0]).clamp(0, height - 1)
        c = (columns.to(x.device) + steps[:, k, 1]).clamp(0, width - 1)
        x = x.flatten(2).gather(2, (r * width + c).flatten(1)[:, None].expand(-1, x.shape[1], -1)).reshape(x.shape)
    return _blurred(x, sigma).clamp(0, 1)


# -- weather and light -------------------------------------------------------------------------------------------------


def fog(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """A bright cloud: noise of all scales, each coarser one larger by 3 to 1.75; then the whole as bright as before at most."""
    strength, decay = _of_image(x, severity, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)))
    height, width = x.shape[2:]
    octaves = max(int(np.ceil(np.log2(max(height, width)))), 1)

    def cloud(one: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        total = torch.zeros(1, 1, height, width)
        for k in range(1, octaves + 1):
            coarse = torch.rand(1, 1, 2**k + 1, 2**k + 1, generator=g)
            total += decay ** -k * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear",
                                                                   align_corners=True)
        total -= total.min()
        return (total / total.max().clamp_min(1e-12))[0].to(one.dtype)

    largest = x.amax((1, 2, 3), keepdim=True)
    clouds = _by_item(x[:, :1], generator, cloud)
    return ((x + strength * clouds) * largest / (largest + strength)).clamp(0, 1)


def brightness(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """The value (of hue, saturation, value) larger by 0.05 to 0.3; hue and saturation stay."""
    more = _of_image(x, severity, (0.05, 0.1, 0.15, 0.2, 0.3))
    value = x.amax(1, keepdim=True)
    lifted = (value + more).clamp(0, 1)
    return torch.where(value > 0, x * lifted / value.clamp_min(1e-12), lifted.expand_as(x))


def contrast(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Differences from each channel's mean times 0.75 to 0.15."""
    share = _of_image(x, severity, (0.75, 0.5, 0.4, 0.3, 0.15))
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * share + mean).clamp(0, 1)


def saturate(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """The saturation (of hue, saturation, value) times 0.3, 0.1, 1.5, 2, 2.5 (and up to 0.2 more); greys stay."""
    factor, more = _of_image(x, severity, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)))
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    saturation = chroma / value.clamp_min(1e-12)
    wanted = (saturation * factor + more).clamp(0, 1)
    return torch.where(chroma > 0, value - (value - x) * wanted / saturation.clamp_min(1e-12), x).clamp(0, 1)


# -- geometry ----------------------------------------------------------------------------------------------------------


def elastic(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """A random affine map of up to 8 to 3 % of the side, and displacements smoothed over 3 to 20 % of it."""
    strength, smooth, jitter = _of_image(x, severity, ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06),
                                                       (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)))
    height, width = x.shape[2:]

    def displacement(one: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        corner = jitter * (2 * torch.rand(2, 3, generator=g, dtype=torch.float64) - 1)
        grid = _grid(one[None]).double()[0].cpu()
        moved = torch.einsum("hwk,jk->jhw", torch.cat([grid, torch.ones(height, width, 1, dtype=torch.float64)], 2), corner)
        field = 2 * torch.rand(2, height, width, generator=g, dtype=torch.float64) - 1
        if strength:
            side = max(height, width)
            moved += 2 * strength * _blurred(field[None], smooth * side, reach=int(3 * smooth * side) + 1)[0]
        return moved.to(one.dtype)

    shift = _by_item(x.new_zeros(len(x), 2, height, width), generator, displacement)
    return _moved(x, _grid(x) + shift.movedim(1, 3)).clamp(0, 1)


def pixelate(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Shrunk to 95 to 65 % of its side by means over boxes, and enlarged again in blocks."""
    share = _of_image(x, severity, (0.95, 0.9, 0.85, 0.75, 0.65))
    for axis in (2, 3):
        size = x.shape[axis]
        small = max(int(size * share), 1)
        center = torch.arange(size, dtype=torch.float64) + 0.5
        box = (center * small / size).long()                # the box that a pixel's center lies in, and that it shows again
        sums = torch.zeros(*x.shape[:axis], small, *x.shape[axis + 1:], dtype=x.dtype, device=x.device)
        sums.index_add_(axis, box.to(x.device), x)
        mean = sums / torch.bincount(box, minlength=small).to(x).reshape(-1, *(1,) * (3 - axis))
        x = mean.index_select(axis, box.to(x.device))
    return x


IMAGES: Mapping[str, Corruption] = {f.__name__: f for f in (
    gaussian_noise, shot_noise, impulse_noise, speckle_noise, gaussian_blur, defocus_blur, glass_blur, motion_blur, zoom_blur,
    fog, brightness, contrast, saturate, elastic, pixelate)}
"""Of images in [0, 1], (n, channels, height, width)."""


# -- tables ------------------------------------------------------------------------------------------------------------


def table_noise(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Normal noise of 5 to 50 % of the training set's deviation; columns are in units of it, about its mean."""
    return x + _level(x, severity, SHARES) * _normal(x, generator)


def table_offset(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Every column moved by 5 to 50 % of a deviation, up or down, the same for all rows: a sensor that was changed."""
    share = _level(x, severity, SHARES)
    sign = 2 * (torch.arange(x[0].numel(), device=x.device) % 2).reshape(x.shape[1:]) - 1
    return x + share * sign.to(x.dtype)


def table_gain(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Every column larger by 5 to 50 %."""
    return x * (1 + _level(x, severity, SHARES))


def table_missing(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """5 to 50 % of the values are not there and stand at the mean, 0."""
    share = _level(x, severity, SHARES)
    return torch.where(_uniform(x, generator) < share, 0.0, x)


SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
TABLE: Mapping[str, Corruption] = {"noise": table_noise, "offset": table_offset, "gain": table_gain, "missing": table_missing}
"""Of columns in units of the training set's deviation about its mean, (n, columns)."""


# -- CT ----------------------------------------------------------------------------------------------------------------


def ct_noise(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """5 to 30 HU more of noise, correlated over 0.7 voxel."""
    sigma = _level(x, severity, (5.0, 10.0, 15.0, 20.0, 30.0))
    taps = _gaussian(0.7, 3)
    spread = float((taps**2).sum()) ** ((x.ndim - 2) / 2)
    white = _by_item(x.new_zeros(len(x), x.shape[1], *(size + 6 for size in x.shape[2:])), generator,
                     lambda one, g: torch.randn(one.shape, generator=g, dtype=one.dtype))
    for axis in range(2, x.ndim):       # from a larger field, so that edges are as noisy as the middle
        white = _along(white, axis, taps, pad=False)
    return x + sigma / spread * white


def ct_offset(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """All voxels 10 to 50 HU higher or lower, each item its own way."""
    offset = _level(x, severity, (10.0, 20.0, 30.0, 40.0, 50.0))
    sign = _by_item(x.new_zeros(len(x), *(1,) * (x.ndim - 1)), generator,
                    lambda one, g: (2 * torch.randint(0, 2, one.shape, generator=g) - 1).to(one.dtype))
    return x + offset * sign


def ct_gain(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers 2 to 10 % larger, as of air (-1000 HU) at rest."""
    return (x + 1000) * (1 + _level(x, severity, (0.02, 0.04, 0.06, 0.08, 0.1))) - 1000


def ct_blur(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian of 0.5 to 2 voxels."""
    return _blurred(x, _level(x, severity, (0.5, 0.75, 1.0, 1.5, 2.0)))


def ct_slices(x: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Slices 2 to 6 voxels thick along the first axis in space: means of so many, repeated."""
    thick = _level(x, severity, (2, 3, 4, 5, 6))
    parts = [part.mean(2, keepdim=True).expand_as(part) for part in x.split(thick, dim=2)]
    return torch.cat(parts, dim=2)


CT: Mapping[str, Corruption] = {"noise": ct_noise, "offset": ct_offset, "gain": ct_gain, "blur": ct_blur, "slices": ct_slices}
"""Of images in HU, (n, channels, height, width) or (n, channels, depth, height, width)."""


# -- files of CIFAR-10-C -----------------------------------------------------------------------------------------------


class Corrupted(NamedTuple):
    """The five severities of one published corruption, read where they lie."""

    images: np.ndarray
    """(5 n, height, width, channels) bytes, memory-mapped."""
    labels: np.ndarray
    """(5 n,)."""

    def batches(self, severity: int, size: int = 500) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Images (size, channels, height, width) in [0, 1] with labels."""
        n = len(self.images) // 5
        first = (_severity(severity) - 1) * n
        return [(torch.from_numpy(np.array(self.images[start:stop])).movedim(3, 1).float() / 255,
                 torch.from_numpy(np.array(self.labels[start:stop], dtype=np.int64)))
                for start, stop in ((k, min(k + size, first + n)) for k in range(first, first + n, size))]


def from_folder(path: str | os.PathLike[str]) -> dict[str, Corrupted]:
    """CIFAR-10-C as it is published: a folder of NAME.npy, five severities one after the other, and labels.npy.

    Raises InputError for a folder without labels.npy or without any corruption, and for files that do not fit.
    """
    folder = Path(path)
    if not (folder / "labels.npy").exists():
        raise InputError(f"{folder} holds no labels.npy; unpack CIFAR-10-C there: NAME.npy for each corruption, and labels.npy")
    labels = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False)
    corrupted = {}
    for file in sorted(folder.glob("*.npy")):
        if file.stem == "labels":
            continue
        images = np.load(file, mmap_mode="r", allow_pickle=False)
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels) or len(images) % 5:
            raise InputError(f"{file} is (5 n, height, width, channels) bytes like the {len(labels)} labels, n of each "
                             f"severity; got {images.dtype} {images.shape}")
        corrupted[file.stem] = Corrupted(images, labels)
    if not corrupted:
        raise InputError(f"{folder} holds no corruption; there are {', '.join(PUBLISHED)}")
    return corrupted


# -- how ---------------------------------------------------------------------------------------------------------------


def _severity(severity: int) -> int:
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer) or severity not in SEVERITIES:
        raise InputError(f"severity is a whole number from 1, the mildest, to 5; got {severity!r}")
    return int(severity)


def _level(x: torch.Tensor, severity: int, levels: tuple[L, L, L, L, L]) -> L:
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise InputError(f"what is corrupted is a tensor of floating-point numbers, (n, ...); got "
                         f"{f'{x.dtype} {tuple(x.shape)}' if isinstance(x, torch.Tensor) else type(x).__name__}")
    return levels[_severity(severity) - 1]


def _of_image(x: torch.Tensor, severity: int, levels: tuple[L, L, L, L, L]) -> L:
    level = _level(x, severity, levels)
    if x.ndim != 4:
        raise InputError(f"images are (n, channels, height, width); got {tuple(x.shape)}")
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"images lie in [0, 1]; got {float(x.min()):.3g} to {float(x.max()):.3g}. Were they normalised before "
                         "they were corrupted? Corrupt first")
    return level


def _generators(n: int, generator: torch.Generator) -> list[int]:
    """A seed for each item, so that it does not matter how items are put into batches."""
    if generator.device.type != "cpu":
        raise InputError("the generator is one of the CPU, torch.Generator(), so that every device gets the same numbers; "
                         f"got one of {generator.device}")
    seeds: list[int] = torch.randint(0, 2**62, (n,), generator=generator).tolist()
    return seeds


def _by_item(x: torch.Tensor, generator: torch.Generator,
             draw: Callable[[torch.Tensor, torch.Generator], torch.Tensor]) -> torch.Tensor:
    """What is drawn for each item, from the item and a generator of its own."""
    own, out = torch.Generator(), torch.empty(x.shape, dtype=x.dtype)
    source = x.cpu()
    for i, seed in enumerate(_generators(len(x), generator)):
        out[i] = draw(source[i], own.manual_seed(seed))
    return out.to(x.device)


def _normal(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _by_item(x, generator, lambda one, g: torch.randn(one.shape, generator=g, dtype=one.dtype))


def _uniform(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _by_item(x, generator, lambda one, g: torch.rand(one.shape, generator=g, dtype=one.dtype))


def _gaussian(sigma: float, reach: int) -> torch.Tensor:
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (at / sigma) ** 2)
    return taps / taps.sum()


def _blurred(x: torch.Tensor, sigma: float, reach: int | None = None) -> torch.Tensor:
    """By a Gaussian along every axis in space, edges repeated."""
    taps = _gaussian(sigma, max(int(np.ceil(4 * sigma)), 1) if reach is None else reach)
    for axis in range(2, x.ndim):
        x = _along(x, axis, taps)
    return x


def _along(x: torch.Tensor, axis: int, taps: torch.Tensor, pad: bool = True) -> torch.Tensor:
    reach = len(taps) // 2
    if pad:
        size = x.shape[axis]
        at = torch.arange(-reach, size + reach, device=x.device).clamp(0, size - 1)
        x = x.index_select(axis, at)
    size = x.shape[axis] - 2 * reach
    return sum((tap * x.narrow(axis, k, size) for k, tap in enumerate(taps.tolist())), start=torch.zeros((), dtype=x.dtype,
                                                                                                        device=x.device))


def _convolved(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Each channel by a kernel (odd, odd), edges repeated."""
    n, channels, height, width = x.shape
    half = kernel.shape[0] // 2
    padded = torch.nn.functional.pad(x, (half,) * 4, mode="replicate")
    out = torch.nn.functional.conv2d(padded.reshape(n * channels, 1, *padded.shape[2:]), kernel.flip(0, 1).to(x)[None, None])
    return out.reshape(n, channels, height, width)


def _grid(x: torch.Tensor) -> torch.Tensor:
    """(n, height, width, 2): where each pixel is, -1 to 1."""
    identity = torch.eye(2, 3, device=x.device, dtype=x.dtype).expand(len(x), 2, 3)
    return torch.nn.functional.affine_grid(identity, [len(x), 1, *x.shape[2:]], align_corners=False)


def _moved(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
