"""A basis with its labels: as a Dataset of xarray on the coordinates its snapshots came with, and as a table of pandas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.intake_labels import Labels, dataset_of, described, package


def basis_dataset(basis: Any) -> Any:
    """See ``Basis.to_xarray``, whose class would import this file in a circle."""
    labels = basis.labels or Labels()
    several = len(basis.fields) > 1
    time = labels.time if labels.time not in ("mode", "") else "time"
    variables: dict[str, tuple[tuple[str, ...], Any, Mapping[str, str]]] = {}
    dims: list[str] = []
    for part in basis.parts():
        axes = described(labels.dims.get(part.name), part.mean.shape, part.name if several else "")
        about = {**labels.attributes.get(part.name, {}), **({"units": part.unit} if part.unit else {})}
        before = f"{part.name}_" if several else ""
        variables[f"{before}modes"] = (("mode", *axes), part.modes, about)
        variables[f"{before}mean"] = (axes, part.mean, about)
        if part.mask is not None:
            variables[f"{before}mask"] = (axes, part.mask, {"long_name": "whether the number was decomposed"})
        dims += axes
    variables["coefficients"] = ((time, "mode"), basis.coefficients, {"long_name": "each snapshot in the modes"})
    variables["singular_values"] = (("mode",), basis.singular_values, {})
    variables["energy_fraction"] = (("mode",), basis.energy_fraction, {"long_name": "share of the total energy"})
    variables["relative_error_per_mode"] = (("mode",), basis.relative_errors, {
        "long_name": "error of the reconstruction from the first modes up to this one"})
    if basis.error_per_snapshot is not None:
        variables["error_per_snapshot"] = ((time,), basis.error_per_snapshot, {})
    if basis.weights is not None:
        variables["weights"] = ((time,), basis.weights, {"long_name": "statistical weights of the snapshots"})
    times = basis.dates
    about = {"units": basis.time_unit} if times is not None and not labels.epoch and basis.time_unit else {}
    coords: dict[str, Any] = {"mode": (("mode",), np.arange(1, basis.rank + 1), {"long_name": "number of the mode"})}
    if times is not None:
        coords[time] = ((time,), times, about)
    return dataset_of(variables, labels.along(dims), coords, {
        "title": str(basis), "method": basis.method, "relative_error": basis.relative_error, "total_energy": basis.total_energy,
        "rank": basis.rank, "notes": "; ".join(basis.notes)})


def basis_table(basis: Any) -> Any:
    """See ``Basis.to_dataframe``."""
    pandas = package("pandas")
    return pandas.DataFrame({
        "singular_value": basis.singular_values, "energy_fraction": basis.energy_fraction,
        "cumulative_energy": basis.cumulative_energy, "relative_error": basis.relative_errors},
        index=pandas.RangeIndex(1, basis.rank + 1, name="mode"))
