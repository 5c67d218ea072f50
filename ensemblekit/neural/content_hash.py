"""The hash of a model's weights, by which equal snapshots are known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xxhash

from ensemblekit.neural.parameters import KINDS, to_vectors

HASH = "content_hash"


def digest(vectors: Mapping[str, np.ndarray]) -> bytes:
    """16 bytes (xxh3-128) that are the same for the same weights."""
    hasher = xxhash.xxh3_128()
    for kind in KINDS:
        if kind in vectors:
            hasher.update(np.ascontiguousarray(vectors[kind]).view(np.uint8).data)
    return hasher.digest()


def content_hash(model: torch.nn.Module) -> str:
    """The hash of a model's weights and buffers, as the store holds it (field "content_hash") of every snapshot."""
    return digest(to_vectors(model)).hex()
