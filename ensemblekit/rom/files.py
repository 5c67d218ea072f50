"""A basis as one HDF5 file: its arrays by name under /rom/basis, the rest as JSON beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.errors import StoreError
from ensemblekit.intake_labels import Labels
from ensemblekit.provenance import Provenance
from ensemblekit.rom.product import InnerProduct, is_sparse
from ensemblekit.source import Field

FORMAT = "ensemblekit basis 1"
GROUP = "/rom/basis"
ARRAYS = ("modes", "singular_values", "coefficients", "mean", "times", "mask", "error_per_snapshot", "weights", "spectrum",
          "run_times")
NUMBERS = ("total_energy", "time_unit", "spectrum_complete", "floor", "method", "passes", "residual")
"""`energies` and the runs joined later; a file without them has none."""


def save_basis(values: Mapping[str, Any], path: str | os.PathLike[str]) -> str:
    """Write the fields of a Basis by temporary file and rename; returns the path."""
    from ensemblekit.store.hdf5 import write_arrays

    write_arrays(os.fspath(path), basis_arrays(values))
    return os.fspath(path)


def basis_arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The fields of a Basis as arrays by their paths in a file."""
    arrays: dict[str, np.ndarray] = {name: value for name in ARRAYS if (value := values[name]) is not None}
    about: dict[str, Any] = {"format": FORMAT, **{name: _plain(values[name]) for name in NUMBERS}}
    about["energies"] = values["energies"]
    about["run_lengths"] = [int(n) for n in values["run_lengths"]]
    about["notes"] = list(values["notes"])
    about["provenance"] = None if values["provenance"] is None else values["provenance"].to_dict()
    about["labels"] = None if values["labels"] is None else values["labels"].to_dict()
    about["fields"] = {name: {"shape": list(f.shape), "dtype": f.dtype.str, "unit": f.unit, "kind": f.kind}
                       for name, f in values["fields"].items()}
    about["scale"] = {name: float(x) for name, x in values["scale"].items()}
    about["error_per_field"] = {name: float(x) for name, x in values["error_per_field"].items()}
    product = values["inner_product"]
    products = product if isinstance(product, Mapping) else {"": product}
    about["inner_product"] = {name: _put_product(arrays, f"inner_product/{k}", product)
                              for k, (name, product) in enumerate(products.items())}
    if values["mesh"] is not None:
        about["mesh"] = True
        for name, value in values["mesh"].to_arrays().items():
            arrays[f"mesh/{name}"] = np.asarray(value)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    return {f"{GROUP}/{name}": value for name, value in arrays.items()}


def is_basis(path: str | os.PathLike[str]) -> bool:
    """Whether an HDF5 file is one that :func:`save_basis` wrote. Raises StoreError where it cannot be opened."""
    from ensemblekit.store.hdf5 import opened

    with opened(os.fspath(path)) as f:
        return f"{GROUP}/about" in f


def load_basis(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a Basis that :func:`save_basis` wrote. Raises StoreError."""
    from ensemblekit.store.guarded import record
    from ensemblekit.store.hdf5 import read_arrays

    arrays = read_arrays(os.fspath(path), GROUP)
    if "about" not in arrays:
        raise StoreError(f"{os.fspath(path)} holds no basis (no {GROUP}); Basis.save writes one")
    with record(os.fspath(path), "basis"):
        about = json.loads(arrays["about"].tobytes())
        if about.get("format") != FORMAT:
            raise StoreError(f"{os.fspath(path)} holds a basis of the format {about.get('format')!r}; this version reads "
                             f"{FORMAT!r}")
        fields = fields_of(about["fields"])
        products = {name: _get_product(arrays, f"inner_product/{k}", kind)
                    for k, (name, kind) in enumerate(about["inner_product"].items())}
        mesh = None
        if about.get("mesh"):
            from ensemblekit.rom.mesh import Mesh

            mesh = Mesh.from_arrays({name.removeprefix("mesh/"): x for name, x in arrays.items() if name.startswith("mesh/")})
        columns: dict[str, Any] = {name: arrays.get(name) for name in ARRAYS} | {name: about[name] for name in NUMBERS}
        _check_shapes(columns, fields)
        numbers = [columns[name] for name in ("total_energy", "floor", "passes")] + [*about["scale"].values()]
        if not all(isinstance(x, int | float) for x in numbers) or not isinstance(columns["method"], str):
            raise ValueError(f"{numbers} are no numbers")
        energies = about.get("energies")
        if energies is not None:
            power, total, left = energies
            energies = int(power), float(total), float(left)
        notes = tuple(str(note) for note in about.get("notes", ()))
        labels = None if about.get("labels") is None else Labels.from_dict(about["labels"])
        provenance = Provenance.from_dict(about.get("provenance"))
        run_lengths = tuple(int(n) for n in about.get("run_lengths", ()))
        if run_lengths and (min(run_lengths) < 0 or sum(run_lengths) != len(columns["coefficients"])):
            raise ValueError(f"its runs of {run_lengths} snapshots are none of {len(columns['coefficients'])} in all")
        return dict(**columns, energies=energies, run_lengths=run_lengths, notes=notes, labels=labels, fields=fields,
                    provenance=provenance, scale=about["scale"], error_per_field=about["error_per_field"], mesh=mesh,
                    inner_product=products[""] if list(products) == [""] else products)


def fields_of(record: Mapping[str, Any]) -> dict[str, Field]:
    """Fields as a record in JSON names them. Raises ValueError where it speaks of no arrays of numbers."""
    fields = {}
    for name, one in record.items():
        shape, dtype = tuple(one["shape"]), np.dtype(one["dtype"])
        if dtype.kind not in "biufc" or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"the field {name!r} is of shape {shape} and type {dtype}")
        fields[name] = Field(shape, dtype, str(one["unit"]), one.get("kind", "observable"))
    if not fields:
        raise ValueError("it speaks of no fields")
    return fields


def _check_shapes(arrays: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    """Raise ValueError where the arrays of a basis do not fit each other."""
    item = next(iter(fields.values())).shape if len(fields) == 1 else (sum(field.size for field in fields.values()),)
    for name in ("modes", "singular_values", "coefficients", "mean"):
        if arrays[name] is None:
            raise ValueError(f"it has no {name}")
    k, n = len(arrays["singular_values"]), len(arrays["coefficients"])
    wanted = {"modes": (k, *item), "singular_values": (k,), "coefficients": (n, k), "mean": item, "times": (n,), "mask": item,
              "error_per_snapshot": (n,), "weights": (n,), "run_times": (n,)}
    for name, shape in wanted.items():
        values = arrays[name]
        if values is not None and (values.shape != shape or values.dtype.kind not in "biufc"):
            raise ValueError(f"its {name} are {values.dtype} of shape {values.shape}, where {shape} is wanted")


def _put_product(arrays: dict[str, np.ndarray], at: str, product: InnerProduct) -> str:
    if product is None:
        return "none"
    if is_sparse(product):
        csr = product.tocsr()
        for name in ("data", "indices", "indptr"):
            arrays[f"{at}/{name}"] = getattr(csr, name)
        return "sparse"
    arrays[at] = np.asarray(product, np.float64)
    return "weights"


def _get_product(arrays: Mapping[str, np.ndarray], at: str, kind: str) -> Any:
    if kind == "none":
        return None
    if kind == "weights":
        return arrays[at]
    from scipy.sparse import csr_array

    indptr = arrays[f"{at}/indptr"]
    matrix = csr_array((arrays[f"{at}/data"], arrays[f"{at}/indices"], indptr), shape=(len(indptr) - 1,) * 2)
    matrix.check_format(full_check=True)      # products follow the indices unasked
    return matrix


def _plain(x: object) -> Any:
    return x.item() if isinstance(x, np.generic) else x
