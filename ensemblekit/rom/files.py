"""A basis as one HDF5 file: its arrays by name under /rom/basis, the rest as JSON beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.errors import StoreError
from ensemblekit.rom.product import is_sparse
from ensemblekit.source import Field

FORMAT = "ensemblekit basis 1"
GROUP = "/rom/basis"
ARRAYS = ("modes", "singular_values", "coefficients", "mean", "times", "mask", "error_per_snapshot", "weights", "spectrum")
NUMBERS = ("total_energy", "time_unit", "spectrum_complete", "floor", "method", "passes", "residual")
"""`energies` joined later; a file without them has None."""


def save_basis(values: Mapping[str, Any], path: Any) -> str:
    """Write the fields of a Basis by temporary file and rename; returns the path."""
    from ensemblekit.store.hdf5 import write_arrays

    arrays: dict[str, np.ndarray] = {name: value for name in ARRAYS if (value := values[name]) is not None}
    about: dict[str, Any] = {"format": FORMAT, **{name: _plain(values[name]) for name in NUMBERS}}
    about["energies"] = values["energies"]
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
    write_arrays(os.fspath(path), {f"{GROUP}/{name}": value for name, value in arrays.items()})
    return os.fspath(path)


def load_basis(path: Any) -> dict[str, Any]:
    """The fields of a Basis that :func:`save_basis` wrote."""
    from ensemblekit.store.hdf5 import read_arrays

    arrays = read_arrays(os.fspath(path), GROUP)
    if "about" not in arrays:
        raise StoreError(f"{os.fspath(path)} holds no basis (no {GROUP}); Basis.save writes one")
    about = json.loads(arrays["about"].tobytes())
    if about.get("format") != FORMAT:
        raise StoreError(f"{os.fspath(path)} holds a basis of the format {about.get('format')!r}; this version reads "
                         f"{FORMAT!r}")
    products = {name: _get_product(arrays, f"inner_product/{k}", kind)
                for k, (name, kind) in enumerate(about["inner_product"].items())}
    mesh = None
    if about.get("mesh"):
        from ensemblekit.rom.mesh import Mesh

        mesh = Mesh.from_arrays({name.removeprefix("mesh/"): x for name, x in arrays.items() if name.startswith("mesh/")})
    columns: dict[str, Any] = {name: arrays.get(name) for name in ARRAYS} | {name: about[name] for name in NUMBERS}
    energies = about.get("energies")
    return dict(**columns, energies=None if energies is None else tuple(energies),
                fields={name: Field(tuple(f["shape"]), np.dtype(f["dtype"]), f["unit"], f["kind"])
                        for name, f in about["fields"].items()},
                scale=about["scale"], error_per_field=about["error_per_field"],
                inner_product=products[""] if list(products) == [""] else products, mesh=mesh)


def _put_product(arrays: dict[str, np.ndarray], at: str, product: Any) -> str:
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
    return csr_array((arrays[f"{at}/data"], arrays[f"{at}/indices"], indptr), shape=(len(indptr) - 1,) * 2)


def _plain(x: Any) -> Any:
    return x.item() if isinstance(x, np.generic) else x
