"""A model's weights as one flat vector, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch

from ensemblekit.errors import InputError


@dataclass(frozen=True, slots=True)
class Manifest:
    """Names and shapes in the order in which they stand in the vectors."""

    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    """Float32 in the store's field "parameters"."""
    buffers: tuple[tuple[str, tuple[int, ...]], ...]
    """Float64 in the field "buffers", which holds whole numbers up to 2^53 exactly."""

    @classmethod
    def of(cls, model: torch.nn.Module) -> Self:
        """Of a model; a tied parameter stands once, under its first name."""
        kept = set(model.state_dict())
        return cls(tuple((name, tuple(p.shape)) for name, p in model.named_parameters()),
                   tuple((name, tuple(b.shape)) for name, b in model.named_buffers() if name in kept))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(*(tuple((name, tuple(shape)) for name, shape in raw[part]) for part in ("parameters", "buffers")))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return asdict(self)

    def check(self, model: torch.nn.Module) -> None:
        """Raise InputError naming what differs between this manifest and a model."""
        mine, other = dict(self.parameters + self.buffers), Manifest.of(model)
        theirs = dict(other.parameters + other.buffers)
        differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if differing:
            listed = "; ".join(f"{name}: stored {mine.get(name)}, model {theirs.get(name)}" for name in differing[:5])
            raise InputError(f"the model is not the one whose weights were stored; {len(differing)} differ: {listed}")


def to_vectors(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters (float32) and buffers (float64), flat; those of the two that the model has."""
    manifest = Manifest.of(model)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    found = {}
    if manifest.parameters:
        found["parameters"] = _flat([parameters[name] for name, _ in manifest.parameters]).astype(np.float32)
    if manifest.buffers:
        found["buffers"] = _flat([buffers[name] for name, _ in manifest.buffers])
    return found


def _flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([t.detach().cpu().to(torch.float64).numpy().ravel() for t in tensors])


@torch.no_grad()
def load_vectors(model: torch.nn.Module, parameters: np.ndarray, buffers: np.ndarray | None = None) -> None:
    """Put vectors of :func:`to_vectors` into a model of the same shape; without `buffers` its own stay."""
    manifest = Manifest.of(model)
    own, held = dict(model.named_parameters()), dict(model.named_buffers())
    _fill(parameters, [own[name] for name, _ in manifest.parameters], "parameters")
    if buffers is not None:
        _fill(buffers, [held[name] for name, _ in manifest.buffers], "buffers")


def _fill(vector: np.ndarray, tensors: list[torch.Tensor], what: str) -> None:
    wanted = sum(t.numel() for t in tensors)
    if vector.shape != (wanted,):
        raise InputError(f"the model has {wanted} {what}, shape ({wanted},); got {vector.shape}")
    at = 0
    for tensor in tensors:
        values = torch.from_numpy(np.array(vector[at:at + tensor.numel()])).reshape(tensor.shape)
        tensor.copy_(values)
        at += tensor.numel()
