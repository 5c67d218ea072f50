"""Labels in a store: names of axes, coordinates and the epoch of the times, among the constants of its first file.

The numbers of coordinates stand as arrays, ``labels/0`` and so on; the rest as one text in JSON, ``labels/about``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ensemblekit.intake_labels import Coordinate, Labels

PREFIX = "labels/"
"""Of what belongs to labels among the constants of a store."""


def constants_for(labels: Labels) -> dict[str, np.ndarray]:
    """Labels as constants of a store: ``ek.create(path, fields, constants=constants_for(labels))``."""
    numbers = {name: one for name, one in labels.coords.items() if one.values.dtype.kind in "biuf"}
    about = replace(labels, coords={name: one for name, one in labels.coords.items() if name not in numbers}).to_dict()
    about["numbers"] = [[name, list(one.dims), dict(one.attributes)] for name, one in numbers.items()]
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    arrays = {f"{PREFIX}{k}": one.values.astype("f8") if one.values.dtype.itemsize > 8 else one.values
              for k, one in enumerate(numbers.values())}
    return {f"{PREFIX}about": text, **arrays}


def labels_in(constants: Mapping[str, np.ndarray]) -> Labels | None:
    """The labels among the constants of a store; None where there are none.

    Raises ValueError, TypeError or LookupError where what stands there is none of :func:`constants_for`.
    """
    if f"{PREFIX}about" not in constants:
        return None
    about = json.loads(np.asarray(constants[f"{PREFIX}about"], np.uint8).tobytes())
    labels = Labels.from_dict(about)
    coords = dict(labels.coords)
    for k, (name, dims, attributes) in enumerate(about["numbers"]):
        values = np.asarray(constants[f"{PREFIX}{k}"])
        if values.ndim != len(dims):
            raise ValueError(f"the coordinate {name!r} has {values.ndim} axes, and {len(dims)} names of them")
        coords[str(name)] = Coordinate(tuple(map(str, dims)), values, {str(a): str(b) for a, b in attributes.items()})
    return replace(labels, coords=coords)
