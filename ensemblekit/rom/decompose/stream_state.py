"""A stream of snapshots as plain arrays, for the file that it is kept in."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, StoreError
from ensemblekit.rom.decompose.directions import Directions, columns_of
from ensemblekit.rom.decompose.history import History
from ensemblekit.rom.decompose.stream import Stream
from ensemblekit.rom.decompose.stream_settings import Fields, StreamSettings, check_same_weights
from ensemblekit.rom.files import fields_of

FORMAT = "ensemblekit incremental pod 1"
FORMAT_IN_UNITS = "ensemblekit incremental pod 2"
"""Of a state in units of a power of two, which the first format knows nothing of."""


def to_arrays(stream: Stream) -> dict[str, np.ndarray]:
    """Everything but the settings, which are noted to be compared: :func:`from_arrays` makes the same of it."""
    settings, held = stream.settings, stream.directions
    power = 0 if held is None else held.power
    about = {"format": FORMAT_IN_UNITS if power else FORMAT, "power": power, "n": stream.n,
             "weight": 0.0 if held is None else held.weight, "total": 0.0 if held is None else held.total,
             "left_out": 0.0 if held is None else held.left_out, "keep": settings.keep, "block": settings.block,
             "scales": {} if held is None else held.scales, "rule": settings.rule_numbers, "center": settings.center_name,
             "started": held is not None, "weights": stream.expected or settings.digests(stream.fields),
             "of_mesh": settings.of_mesh, "run": stream.run, "scale": settings.asked_scale,
             "fields": {name: {"shape": list(f.shape), "dtype": f.dtype.str, "unit": f.unit}
                        for name, f in stream.fields.items()}}
    arrays: dict[str, np.ndarray] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    if held is not None:
        arrays |= {"modes": held.modes, "sigma": held.sigma, "mean": held.mean, "shift": held.shift}
        arrays |= {"times": np.concatenate(held.times), "weights": np.concatenate(held.weights)}
        arrays |= {f"history/{name}": value for name, value in held.coefficients.state().items()}
        if held.mask is not None:
            arrays["mask"] = held.mask
    if stream.pending:
        arrays |= {"pending": np.array(stream.pending), "pending_meta": np.array(stream.pending_meta)}
    return arrays


def from_arrays(settings: StreamSettings, arrays: Mapping[str, np.ndarray]) -> Stream:
    """The stream of a state.

    Raises:
        InputError: it was made with other settings or weights than these. StoreError: a format that is not known.
        ValueError, KeyError, TypeError: arrays that do not fit each other.
    """
    about = json.loads(arrays["about"].tobytes())
    if about.get("format") not in (FORMAT, FORMAT_IN_UNITS):
        raise StoreError(f"this state has the format {about.get('format')!r}; this version reads {FORMAT!r}")
    _check_settings(settings, about)
    settings = replace(settings, of_mesh=about.get("of_mesh", False))
    fields = fields_of(about["fields"]) if about["fields"] else {}
    scales, power = about["scales"], about.get("power", 0)
    counts = (about["n"], about["weight"], about["total"], about["left_out"], power, *scales.values())
    if not all(isinstance(x, int | float) for x in counts) or about["n"] < 0 or not isinstance(power, int):
        raise ValueError(f"it counts {counts}")
    held = _directions(settings, fields, about, arrays) if about["started"] else None
    settings.check_names(fields)
    pending, meta = _pending(settings, fields, arrays)
    first = pending[0] if pending else None
    if held is not None and held.mask is not None:
        first = np.where(held.mask, 0, np.nan)
    if first is not None:
        settings = settings.without_weightless(
            {name: first[at] for name, at in zip(fields, columns_of(fields), strict=True)}, fields)
    expected = _check_weights(settings, fields, about) if about["n"] else None
    if held is not None:
        held = replace(held, settings=settings) if expected is not None else held.with_settings(settings)
    stream = Stream(settings, fields, held, pending, meta, about.get("run", ""), expected)
    if stream.n != about["n"]:
        raise ValueError(f"it counts {about['n']} snapshots, and holds {stream.n}")
    return stream


def _check_settings(settings: StreamSettings, about: Mapping[str, Any]) -> None:
    now: dict[str, object] = {"keep": settings.keep, "block": settings.block, "rule": settings.rule_numbers,
                              "center": settings.center_name}
    if about["n"] and "scale" in about:
        now["scale"] = settings.asked_scale
    for name, value in now.items():
        if about[name] != value:
            raise InputError(f"the state was made with {name}={about[name]!r}, and this has {value!r}; go on with the same "
                             "settings, or begin anew with another path")


def _directions(settings: StreamSettings, fields: Fields, about: Mapping[str, Any],
                arrays: Mapping[str, np.ndarray]) -> Directions:
    modes, sigma, mean, shift = (np.array(arrays[x]) for x in ("modes", "sigma", "mean", "shift"))
    history = History.restored({name.removeprefix("history/"): x for name, x in arrays.items() if name.startswith("history/")})
    held = Directions(settings=settings, fields=fields, scales=about["scales"], mask=arrays.get("mask"), factors=None,
                      shift=shift, mean=mean, modes=modes, sigma=sigma, weight=about["weight"], total=about["total"],
                      left_out=about["left_out"], coefficients=history, times=(arrays["times"],), weights=(arrays["weights"],),
                      power=about.get("power", 0))
    _check_shapes(held)
    dtype = settings.mode_dtype(np.result_type(*[field.dtype for field in fields.values()]))
    if dtype != modes.dtype:
        raise InputError(f"the state was made with modes of type {modes.dtype}, and this asks for {dtype}; go on with "
                         f"dtype={modes.dtype.str[1:]!r}, or begin anew with another path")
    if settings.center_name == "given" and not np.array_equal(settings.given_center(fields, shift.dtype), shift):
        raise InputError("the state was made with another center than the field given now; go on with the same one, or "
                         "begin anew with another path")
    return held


def _check_shapes(held: Directions) -> None:
    """Raise ValueError where the arrays of a state do not fit each other."""
    size, k = sum(field.size for field in held.fields.values()), len(held.sigma)
    times, weights = np.concatenate(held.times), np.concatenate(held.weights)
    arrays = [held.modes, held.mean, held.shift, held.sigma, held.coefficients.values(), times, weights]
    shapes = [np.asarray(x).shape for x in arrays]
    wanted = [(k, size), (size,), (size,), (k,), (len(times), k), (len(times),), (len(times),)]
    if held.mask is not None:
        shapes, wanted = [*shapes, held.mask.shape], [*wanted, (size,)]
    if shapes != wanted:
        raise ValueError(f"its arrays are of shape {shapes}, where {wanted} are wanted")


def _pending(settings: StreamSettings, fields: Fields,
             arrays: Mapping[str, np.ndarray]) -> tuple[tuple[np.ndarray, ...], tuple[tuple[float, float], ...]]:
    """The snapshots of a block that is not yet full, with their times and weights."""
    if "pending" not in arrays:
        return (), ()
    pending = tuple(arrays["pending"])
    meta = tuple((float(t), float(w)) for t, w in arrays["pending_meta"])
    size = sum(field.size for field in fields.values())
    if arrays["pending"].shape != (len(meta), size) or len(pending) > settings.block:
        raise ValueError(f"the snapshots that wait are of shape {arrays['pending'].shape}")
    return pending, meta


def _check_weights(settings: StreamSettings, fields: Fields, about: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Weights of a mesh that are yet to come; those at hand are compared with what the state was made with."""
    if "weights" not in about:
        warnings.warn("the state was made by an earlier version, which did not note its inner product; whether it is "
                      "the one given now cannot be told", UserWarning, stacklevel=4)
        return None
    if settings.of_mesh and settings.inner_product is None and any(x != [None, None] for x in about["weights"].values()):
        return about["weights"]
    check_same_weights(about["weights"], settings.digests(fields))
    return None
