"""Clean batches made worse, name by name and severity by severity, before they are normalised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import batches_of
from ensemblekit.neural.corruptions import CT, IMAGES, SEVERITIES, TABLE, Corrupted, Corruption

Loader = Iterable[Any]
Worse = Corruption | Corrupted | Mapping[int, Loader]
"""A function (x, severity, generator) -> x, or severity -> a loader of its own."""
Named = Literal["images", "ct", "table"]
Corruptions = Named | Mapping[str, Worse]
Prepare = Callable[[torch.Tensor], torch.Tensor]
NAMED: Mapping[str, Mapping[str, Corruption]] = {"images": IMAGES, "ct": CT, "table": TABLE}
OF_COLORS = ("saturate",)
"""What grey images cannot have."""


def chosen_corruptions(corruptions: Corruptions, severities: Sequence[int], first: torch.Tensor
                       ) -> tuple[dict[str, Worse], tuple[str, ...]]:
    """Name -> corruption, and notes. Raises InputError for other names, severities that are not there, or none at all."""
    if isinstance(corruptions, str):
        if corruptions not in NAMED:
            raise InputError(f"corruptions are {', '.join(map(repr, NAMED))}, or a mapping name -> function or name -> "
                             f"severity -> loader; got {corruptions!r}")
        found: dict[str, Worse] = dict(NAMED[corruptions])
        if corruptions == "images" and first.ndim == 4 and first.shape[1] != 3:
            return ({name: one for name, one in found.items() if name not in OF_COLORS},
                    (f"{', '.join(OF_COLORS)}: left out, as these images have {first.shape[1]} channels and not 3",))
        return found, ()
    if not isinstance(corruptions, Mapping) or not corruptions:
        raise InputError("corruptions are a mapping name -> function or name -> severity -> loader, with one name or more")
    for name, one in corruptions.items():
        if isinstance(one, Mapping):
            if missing := [k for k in severities if k not in one]:
                raise InputError(f"{name!r} has loaders of severity {', '.join(map(str, one))}, and none of "
                                 f"{', '.join(map(str, missing))}; severities= names those that are there")
        elif not isinstance(one, Corrupted) and not callable(one):
            raise InputError(f"{name!r} is a function (x, severity, generator) or a mapping severity -> loader; got {one!r}")
    return dict(corruptions), ()


def check_severities(severities: Sequence[int], corruptions: Corruptions) -> tuple[int, ...]:
    """Raises InputError for severities that are no whole numbers from 1 to 5 (any number for loaders of one's own)."""
    found = tuple(severities)
    own = isinstance(corruptions, Mapping) and all(isinstance(one, Mapping) for one in corruptions.values())
    if not found or len(set(found)) < len(found) or (not own and not set(found) <= set(SEVERITIES)):
        raise InputError(f"severities are different whole numbers from 1, the mildest, to 5; got {found}")
    return found


def worse_batches(loader: Loader, one: Worse, severity: int, limits: tuple[float, float] | None, prepare: Prepare | None,
                  seed: int) -> Iterator[object]:
    """The batches that models are asked, corrupted and then prepared; the same bits for batches of any size."""
    if isinstance(one, Corrupted):
        loader, function = one.batches(severity), None
    elif isinstance(one, Mapping):
        loader, function = one[severity], None
    else:
        function = one
    generator = torch.Generator().manual_seed(seed)
    for batch in batches_of(loader):
        x = inputs_of(batch)
        if function is not None:
            low, high = limits or (0.0, 1.0)
            scaled = x if (low, high) == (0.0, 1.0) else (x - low) / (high - low)
            x = function(scaled, severity, generator)
            x = x if (low, high) == (0.0, 1.0) else x * (high - low) + low
        yield with_inputs(batch, x if prepare is None else prepare(x))


def clean_batches(loader: Loader, limits: tuple[float, float] | None, prepare: Prepare | None) -> Iterator[object]:
    """The batches as they are, prepared. Raises InputError for inputs outside the limits."""
    for batch in batches_of(loader):
        x = inputs_of(batch)
        if limits is not None and x.numel() and not (float(x.min()) >= limits[0] and float(x.max()) <= limits[1]):
            raise InputError(f"inputs lie in range={limits}; got {float(x.min()):.3g} to {float(x.max()):.3g}. Were they "
                             "normalised before they were corrupted? Give them as they are, and the normalisation as prepare=")
        yield batch if prepare is None else with_inputs(batch, prepare(x))


def inputs_of(batch: object) -> torch.Tensor:
    """What of a batch is corrupted: a tensor, the first of a tuple; of a mapping "image", "x" or its only tensor of fractions.

    Raises InputError where that cannot be told.
    """
    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, Mapping):
        return _of_mapping(batch)[1]
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], torch.Tensor):
        return batch[0]
    raise InputError(f"what is corrupted is the first tensor of a batch; got {type(batch).__name__}")


def with_inputs(batch: object, x: torch.Tensor) -> object:
    """The batch with other inputs."""
    if isinstance(batch, torch.Tensor):
        return x
    if isinstance(batch, Mapping):
        return {**batch, _of_mapping(batch)[0]: x}
    assert isinstance(batch, list | tuple)
    return (x, *batch[1:])


def _of_mapping(batch: Mapping[str, object]) -> tuple[str, torch.Tensor]:
    tensors = {name: x for name, x in batch.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    named: list[str] = [name for name in ("image", "images", "x", "input", "inputs") if name in tensors]
    named = named or (list(tensors) if len(tensors) == 1 else [])
    name = named[0] if named else None
    if name is None:
        raise InputError(f'which tensor of a batch is corrupted cannot be told: it holds {", ".join(map(str, batch))}; call it '
                         '"image"')
    return name, tensors[name]
