"""Attributes of a file from a stranger: short text and numbers, or a word of what they are instead."""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np

from ensemblekit.errors import StoreError, one_line
from ensemblekit.store.guarded import Look

UNIT_BYTES = 1 << 16


def text_attribute(node: h5py.HLObject, name: str, look: Look) -> str:
    """An attribute that is text, "" where there is none or it is no short text."""
    texts = texts_attribute(node, name, look)
    return texts[0] if len(texts) == 1 else ""


def texts_attribute(node: h5py.HLObject, name: str, look: Look) -> list[str]:
    """The texts of an attribute, [] where there is none or they are no short texts."""
    if not h5py.h5a.exists(node.id, name.encode()):
        return []
    held = h5py.h5a.open(node.id, name.encode())
    if held.get_storage_size() > UNIT_BYTES:
        return []
    kind = held.get_type()
    if isinstance(kind, h5py.h5t.TypeStringID):
        if kind.is_variable_str() and look.metadata:
            look.metadata.check_text(h5py.h5o.get_info(node.id).addr, name.encode(), UNIT_BYTES)
    elif held.dtype.hasobject or kind.detect_class(h5py.h5t.VLEN):
        return []
    values = np.asarray(h5py.AttributeManager(node)[name]).ravel()      # looked at just now
    return [(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))[:UNIT_BYTES] for value in values]


def number_attribute(node: h5py.HLObject, name: str) -> float:
    """An attribute that is one number, 0 where there is none."""
    if not h5py.h5a.exists(node.id, name.encode()):
        return 0
    held = h5py.h5a.open(node.id, name.encode())
    if held.get_storage_size() > 64 or math.prod(held.shape) != 1 or held.dtype.kind not in "biuf":
        raise StoreError(f"{one_line(node.name)!r}: its attribute {name!r} is no number")
    return np.asarray(node.attrs[name]).ravel()[0].item()


def small_attribute(node: h5py.HLObject, name: str) -> Any:
    """An attribute of numbers or of text of fixed length. Raises StoreError where it is missing or another."""
    held = h5py.h5a.open(node.id, name.encode()) if h5py.h5a.exists(node.id, name.encode()) else None
    if held is None or held.get_storage_size() > UNIT_BYTES or held.dtype.kind not in "biufS":
        raise StoreError(f"{one_line(node.name)!r}: its attribute {name!r} is missing, or no short row of numbers or text")
    return node.attrs[name]
