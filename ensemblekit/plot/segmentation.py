"""Pictures of images and their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, RED, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.neural.phantom import Phantoms


def phantoms(found: Phantoms, image: int = 0, *, ax: Axes | None = None) -> Axes:
    """One image of a phantom (of a volume its middle slice), what the observer drew and where half of all would; the axes.

    Raises InputError for an image that is not there.
    """
    if not isinstance(image, int | np.integer) or not 0 <= image < len(found):
        raise InputError(f"image is a number from 0 to {len(found) - 1}; got {image!r}")
    ax = new_axes(ax)
    layers = [found.images[image, 0], found.labels[image], found.probability[image]]
    shown, drawn, probability = (layer[len(layer) // 2] if layer.ndim == 3 else layer for layer in layers)
    ax.imshow(shown, cmap="gray", interpolation="nearest")
    for values, color in ((drawn, RED), (probability, BLUE)):
        if values.min() < 0.5 < values.max():
            ax.contour(values, [0.5], colors=[color], linewidths=1.2)
    ax.set_xlabel("voxel")
    ax.set_ylabel("voxel")
    ax.set_title("red: one observer; blue: half of all", fontsize=9)
    return ax


__all__ = ["phantoms"]
