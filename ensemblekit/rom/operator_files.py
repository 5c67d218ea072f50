"""Operators of reduced models as files that other programs read: Matlab's .mat and numpy's .npz."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.modal import ModalModel
from ensemblekit.rom.parametric_model import ParametricModel
from ensemblekit.rom.quadratic import QuadraticModel

SUFFIXES = (".mat", ".npz")


def export_operators(model: QuadraticModel | ModalModel | ParametricModel, path: str | os.PathLike[str], *,
                     overwrite: bool = False) -> str:
    """Write what a model is made of, a name an array, as `.mat` or `.npz`; returns the path.

    Quadratic models: c (r,), A (r, r), H (r, r (r + 1) / 2; columns x_i x_j with j ≤ i), H_full (r, r, r), B (r, m),
    N (m, r, r), C and D of outputs, period (0: continuous). Modal models: eigenvalues (k,) per time unit, vectors (k, r),
    amplitudes. Parametric models: parameters (n, p) and coefficients (n, r). All with the modes (k, size) and the mean
    (size,) of their basis, where they have one.

    Raises InputError for another suffix, or a file that is there already.
    """
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in SUFFIXES:
        raise InputError(f"operators are written as {' or '.join(SUFFIXES)}; got {name}. Modes for ParaView: rom.export(basis, "
                         "...); the whole model: model.save(...)")
    if os.path.lexists(name) and not overwrite:
        raise InputError(f"{name} is there already; pass overwrite=True to replace it")
    arrays: dict[str, Any] = operators_of(model)
    folder = os.path.dirname(os.path.abspath(name))
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".ensemblekit-", suffix=suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            if suffix == ".npz":
                np.savez_compressed(file, **arrays)
            else:
                from scipy.io import savemat

                savemat(file, arrays, do_compression=True, oned_as="column")
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, name)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return name


def operators_of(model: QuadraticModel | ModalModel | ParametricModel) -> dict[str, np.ndarray]:
    """Name -> array, as :func:`export_operators` writes them."""
    if isinstance(model, ParametricModel):
        own = {"parameters": model.parameters, "coefficients": model.basis.coefficients, "errors": model.errors}
    elif isinstance(model, ModalModel):
        own = {"eigenvalues": model.values, "vectors": model.vectors, "amplitudes": model.amplitudes,
               "period": np.array(model.period or 0.0)}
    else:
        own = {letter: np.asarray(model.dynamics.block(letter)) for letter in model.form}
        if "H" in own:
            own["H_full"] = np.asarray(model.tensor)
        if model.readout is not None:
            r = model.rank
            own |= {"offset": model.readout[:, 0], "C": model.readout[:, 1:1 + r], "D": model.readout[:, 1 + r:]}
        own["period"] = np.array(model.period or 0.0)
    return own | _of_basis(model.basis)


def _of_basis(basis: Basis | None) -> dict[str, np.ndarray]:
    if basis is None:
        return {}
    return {"modes": basis.modes.reshape(basis.rank, -1), "mean": basis.mean.reshape(-1),
            "singular_values": basis.singular_values}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
