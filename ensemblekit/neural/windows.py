"""Volumes larger than a network takes at once: windows that overlap, blended for every member by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ensemblekit.errors import InputError, MissingExtraError
from ensemblekit.neural.batches import LABELS, Convention

TINY = 1e-30
"""The least probability in a logarithm of float32."""


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """A ``forward=`` of Ensemble and predict: MONAI's ``sliding_window_inference`` of one member over whole images.

    Windows are blended member by member and members are pooled after that, so that entropy and disagreement are those of
    members that saw the whole volume. Images smaller than a window are padded by MONAI and cut back.
    """

    roi: tuple[int, ...]
    """Voxels of a window along each axis of the image; what the network can halve as often as it does."""
    overlap: float = 0.25
    """Share of a window that its neighbor covers too, 0 to below 1."""
    mode: Literal["gaussian", "constant"] = "gaussian"
    """How voxels count by their place in a window: less at its border, or all alike."""
    batch: int = 4
    """Windows that go through the network together; the answer does not hang on it."""
    blend: Literal["logit", "probability"] = "logit"
    """What is averaged where windows overlap: logits, as MONAI and nnU-Net do, or probabilities."""

    def __post_init__(self) -> None:
        roi = tuple(int(x) for x in self.roi) if not isinstance(self.roi, int) else ()
        if len(roi) not in (1, 2, 3) or min(roi) < 1:
            raise InputError(f"roi is the size of a window along each of 1 to 3 axes, such as (96, 96, 96); got {self.roi!r}")
        object.__setattr__(self, "roi", roi)
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap is a share of the window, 0 to below 1; got {self.overlap!r}")
        if self.mode not in ("gaussian", "constant"):
            raise InputError(f'mode is "gaussian" or "constant"; got {self.mode!r}')
        if not isinstance(self.batch, int) or self.batch < 1:
            raise InputError(f"batch is a whole number of windows, 1 or more; got {self.batch!r}")
        if self.blend not in ("logit", "probability"):
            raise InputError(f'blend is "logit" or "probability"; got {self.blend!r}')

    def __call__(self, model: Any, batch: object) -> torch.Tensor:
        """Logits (n, classes, *image) of a batch of images (n, channels, *image).

        Raises InputError for images of another number of axes than roi, MissingExtraError where MONAI is not installed.
        """
        try:
            from monai.inferers import sliding_window_inference
        except ImportError as error:
            raise MissingExtraError("monai", "segmentation", "SlidingWindow") from error

        images = images_of(batch)
        if images.ndim != len(self.roi) + 2:
            raise InputError(f"roi {self.roi} is for images of {len(self.roi)} axes, (n, channels, ...); this batch is "
                             f"{tuple(images.shape)}")

        def answer(window: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(window)
            if self.blend == "logit":
                return logits
            return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()

        found = sliding_window_inference(images, self.roi, self.batch, answer, overlap=self.overlap, mode=self.mode)
        assert isinstance(found, torch.Tensor)
        found = found.as_subclass(torch.Tensor)     # MONAI's tensors carry their files along
        if self.blend == "logit":
            return found
        log_p = found.clamp(min=TINY).log()
        return log_p if found.shape[1] > 1 else log_p - (1 - found).clamp(min=TINY).log()


def images_of(batch: object) -> torch.Tensor:
    """The images of a batch, (n, channels, *image): a tensor, the first of a tuple, "image" of a mapping.

    Raises InputError where there is none.
    """
    if isinstance(batch, Mapping):
        named = {name: x for name, x in batch.items() if name not in LABELS and isinstance(x, torch.Tensor) and x.ndim > 2}
        found = named.get("image", next(iter(named.values()), None) if len(named) == 1 else None)
        if found is None:
            raise InputError(f'a batch has its images under "image"; this one holds {", ".join(map(str, batch))}')
        return found.as_subclass(torch.Tensor)
    arguments, _ = Convention().arguments_of(batch)
    if not arguments or not isinstance(arguments[0], torch.Tensor):
        raise InputError(f"a batch is a tensor of images, (images, labels), or a mapping with an \"image\"; got {type(batch)}")
    return arguments[0].as_subclass(torch.Tensor)
