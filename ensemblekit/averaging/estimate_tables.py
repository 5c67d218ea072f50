"""An estimate, and several by name, as a Dataset of xarray and as a table of pandas, on the coordinates they came with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.intake_dates import package
from ensemblekit.intake_labels import Coordinate, Labels, dataset_of, described

NUMBERS = ("mean", "stderr", "low", "high", "n_eff", "statistical_inefficiency", "correlation_time")


def axes_of(e: Any, prefix: str = "") -> tuple[str, ...]:
    """Names of the axes of an estimate's mean: those it came with, else "dim_0" and so on."""
    shape = np.shape(e.mean)
    if e.labels is not None and len(e.labels.dims.get("mean", ())) == len(shape):
        return e.labels.dims["mean"]
    if len(e.coords) == len(shape) and all(np.shape(x) == (n,) for (x, _), n in zip(e.coords.values(), shape, strict=True)):
        return tuple(e.coords)
    return described(None, shape, prefix)


def coordinates_of(e: Any, axes: tuple[str, ...]) -> dict[str, Coordinate]:
    """Coordinates along the axes of an estimate."""
    along = {} if e.labels is None else e.labels.along(axes)
    for name, (values, unit) in e.coords.items():
        if name in axes and name not in along:
            along[name] = Coordinate((name,), np.asarray(values), {"units": unit} if unit else {})
    return along


def estimate_dataset(e: Any) -> Any:
    """See ``Estimate.to_xarray``."""
    axes = axes_of(e)
    about = {} if e.labels is None else dict(e.labels.attributes.get("mean", {}))
    unit = {"units": e.unit} if e.unit else {}
    variables: dict[str, Any] = {}
    for name in NUMBERS:
        in_unit = unit if name in ("mean", "stderr", "low", "high") else (
            {"units": e.time_unit} if name == "correlation_time" and e.time_unit else {})
        values = np.asarray(getattr(e, name), np.float64)
        variables[name] = (axes if values.shape else (), values, {**(about if name == "mean" else {}), **in_unit})
    for name, end in band_of(e).items():
        variables[name] = (axes, end, unit)
    along, coords = coordinates_of(e, axes), {}
    if e.series is not None:
        time = (e.labels or Labels()).time
        variables["series"] = ((time,), e.series, unit)
        if e.times is not None and len(e.times) == len(e.series):
            dated = e.labels is not None and e.labels.epoch
            coords[time] = ((time,), e.dates, {"units": e.time_unit} if e.time_unit and not dated else {})
    for name, other in e.derived.items():
        own = axes_of(other, name)
        sizes = {axis: n for dims, values, _ in variables.values() for axis, n in zip(dims, np.shape(values), strict=True)}
        if any(sizes.get(axis, n) != n for axis, n in zip(own, np.shape(other.mean), strict=True)):
            own = described(None, np.shape(other.mean), name)
        for what in NUMBERS[:4]:
            variables[f"{name}_{what}"] = (own, np.asarray(getattr(other, what)), {"units": other.unit} if other.unit else {})
        along = {**coordinates_of(other, own), **along}
    return dataset_of(variables, along, coords, facts_of(e))


def band_of(e: Any) -> dict[str, np.ndarray]:
    """The ends of the band of a curve by name; nothing where there is none."""
    return {} if e.band is None else {"band_low": np.asarray(e.band[0]), "band_high": np.asarray(e.band[1])}


def facts_of(e: Any) -> dict[str, Any]:
    """What is one number or word for all elements of an estimate, as attributes."""
    return {"confidence": e.confidence, "n": e.n, "n_discarded": e.n_discarded, "equilibration_time": e.equilibration_time,
            "converged": int(e.converged), "verdict": e.verdict, "time_unit": e.time_unit}


def estimates_dataset(estimates: Mapping[str, Any]) -> Any:
    """Several estimates by name as one Dataset: "<name>" is the mean, beside "<name>_stderr", "_low", "_high" and "_n_eff"."""
    variables: dict[str, Any] = {}
    along: dict[str, Coordinate] = {}
    sizes: dict[str, int] = {}
    for name, e in estimates.items():
        axes = axes_of(e, name)
        own = coordinates_of(e, axes)
        shape = np.shape(e.mean)
        clash = any(sizes.get(axis, n) != n for axis, n in zip(axes, shape, strict=True)) or any(
            key in along and not np.array_equal(along[key].values, one.values) for key, one in own.items())
        if clash:
            renamed = {axis: f"{name}_{axis}" for axis in axes}
            axes = tuple(renamed.values())
            own = {renamed.get(key, f"{name}_{key}"): Coordinate(tuple(renamed[axis] for axis in one.dims), one.values,
                                                                 one.attributes) for key, one in own.items()}
        sizes |= dict(zip(axes, shape, strict=True))
        along |= own
        unit = {"units": e.unit} if e.unit else {}
        about = {} if e.labels is None else dict(e.labels.attributes.get("mean", {}))
        variables[name] = (axes, np.asarray(e.mean), {**about, **unit, **{k: x for k, x in facts_of(e).items() if x != ""}})
        for what in ("stderr", "low", "high", "n_eff"):
            values = np.asarray(getattr(e, what))
            variables[f"{name}_{what}"] = (axes if values.shape else (), values, unit if what != "n_eff" else {})
    return dataset_of(variables, along, {}, {})


def estimate_table(e: Any) -> Any:
    """See ``Estimate.to_dataframe``."""
    pandas = package("pandas")
    shape = np.shape(e.mean)
    columns = {name: np.broadcast_to(np.asarray(getattr(e, name), np.float64), shape).ravel() for name in NUMBERS[:5]}
    columns |= {name: end.ravel() for name, end in band_of(e).items()}
    if not shape:
        return pandas.DataFrame({**columns, "unit": [e.unit], "converged": [e.converged], "verdict": [e.verdict]})
    axes = axes_of(e)
    along = coordinates_of(e, axes)
    levels = [along[axis].values if axis in along and along[axis].dims == (axis,) else np.arange(n)
              for axis, n in zip(axes, shape, strict=True)]
    index = pandas.Index(levels[0], name=axes[0]) if len(axes) == 1 else pandas.MultiIndex.from_product(levels, names=axes)
    return pandas.DataFrame(columns, index=index)
