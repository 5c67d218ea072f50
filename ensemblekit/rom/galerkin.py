"""Galerkin projection: an equation's own terms between the modes of a basis, in the basis' inner product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.derivative import equations, order_for
from ensemblekit.rom.equations import Equation, Fields
from ensemblekit.rom.operators import Dynamics, packed
from ensemblekit.rom.quadratic import Fit, QuadraticModel
from ensemblekit.rom.simulate import trained_on
from ensemblekit.rom.training import TrainingData, gathered


def galerkin(basis: Basis, equation: Equation, *, inputs: Sequence[str] = ()) -> QuadraticModel:
    """The quadratic model da/dt = c + A a + H (a, a) + B u of an equation on the modes of a basis.

    Arguments:
        basis: its mean enters c and A; its inner product is that of the projection.
        equation: of :mod:`rom.equations`: heat, burgers, linear, or quadratic with a solver's own functions of fields.
        inputs: names of the equation's inputs.

    What the equation leaves on the snapshots of the basis (their derivative by differences, less the right-hand side) is
    measured and printed: truncation, and whatever terms were left out. Raises InputError for complex modes with products, a
    masked basis, or terms that give another shape.
    """
    if not isinstance(basis, Basis) or not isinstance(equation, Equation):
        raise InputError(f"galerkin takes a Basis and an equation of rom.equations; got {type(basis).__name__} and "
                         f"{type(equation).__name__}")
    if basis.mask is not None:
        raise InputError("the basis is masked: an equation needs values in every cell. Take a POD of the region that has them")
    if np.iscomplexobj(basis.modes) and equation.bilinear is not None:
        raise InputError("products of complex modes are not offered (they would have to know conjugates)")
    form, matrix = packed(_operators(basis, equation))
    names = tuple(inputs) or tuple("u" if len(equation.inputs) == 1 else f"u[{k}]" for k in range(len(equation.inputs)))
    if len(names) != len(equation.inputs):
        raise InputError(f"the equation has {len(equation.inputs)} inputs, and {len(names)} names were given")
    dynamics = Dynamics(form, matrix, len(names), equation.period)
    data = gathered(basis, even=equation.period is not None) if basis.n > 2 else None
    measured = data is not None and not names and (equation.period is None or abs(data.interval / equation.period - 1) < 1e-3)
    residual = _residual(data, dynamics) if measured and data else np.nan
    fit = Fit(method=f"Galerkin projection ({equation.name})", residual=residual,
              notes=() if data is None else data.notes)
    return QuadraticModel(form=form, matrix=matrix, basis=basis, period=equation.period, time_unit=basis.time_unit,
                          inputs=names, fit=fit, training=trained_on(data, dynamics) if measured and data else None)


def _operators(basis: Basis, equation: Equation) -> dict[str, np.ndarray | None]:
    """Operators by letter."""
    r = basis.rank
    modes = [_fields(basis, row) for row in basis.modes.reshape(r, -1)]
    mean = _fields(basis, basis.mean.reshape(-1))
    moved = bool(basis.mean.any())
    flat = {"c": np.zeros(basis.mean.size), "A": np.zeros((r, basis.mean.size))}
    if equation.constant is not None:
        flat["c"] = flat["c"] + _flat(basis, equation.constant)
    if equation.linear is not None:
        flat["A"] = np.array([_flat(basis, equation.linear(mode)) for mode in modes])
        if moved:
            flat["c"] = flat["c"] + _flat(basis, equation.linear(mean))
    operators: dict[str, np.ndarray | None] = {"H": None}
    if equation.bilinear is not None:
        pair = equation.bilinear
        if moved:
            flat["c"] = flat["c"] + _flat(basis, pair(mean, mean))
            flat["A"] = flat["A"] + np.array([_flat(basis, pair(mean, mode)) + _flat(basis, pair(mode, mean))
                                              for mode in modes])
        columns = [_flat(basis, pair(modes[i], modes[j])) + (0 if i == j else _flat(basis, pair(modes[j], modes[i])))
                   for i in range(r) for j in range(i + 1)]
        operators["H"] = _between(basis, np.array(columns)).T
    operators["A"] = _between(basis, flat["A"]).T if flat["A"].any() else None
    operators["c"] = _between(basis, flat["c"][None])[0] if flat["c"].any() else None
    operators["B"] = _between(basis, np.array([_flat(basis, one) for one in equation.inputs])).T if equation.inputs else None
    return operators


def _fields(basis: Basis, row: np.ndarray) -> Fields:
    """A flattened item as fields: an array, or a mapping where there are several."""
    if len(basis.fields) < 2:
        return row.reshape(basis.mean.shape).astype(np.result_type(row, np.float64))
    fields, start = {}, 0
    for name, field in basis.fields.items():
        fields[name] = row[start:start + field.size].reshape(field.shape).astype(np.result_type(row, np.float64))
        start += field.size
    return fields


def _flat(basis: Basis, fields: Fields) -> np.ndarray:
    """Fields, flattened one after the other."""
    if len(basis.fields) < 2:
        values = np.asarray(fields)
        if values.size != basis.mean.size:
            raise InputError(f"a term of the equation gives shape {values.shape}; a snapshot has {basis.mean.shape}")
        return values.reshape(-1)
    parts = []
    for name, field in basis.fields.items():
        if name not in fields or np.shape(fields[name]) != field.shape:
            raise InputError(f"a term of the equation gives {sorted(fields)}; snapshots have {name!r} of shape {field.shape}")
        parts.append(np.asarray(fields[name]).reshape(-1))
    return np.concatenate(parts)


def _between(basis: Basis, rows: np.ndarray) -> np.ndarray:
    """Inner products (m, r) of rows (m, size) with the modes."""
    shifted = rows + basis.mean.reshape(-1)
    return basis.project(shifted.reshape(len(rows), *basis.mean.shape))


def _residual(data: TrainingData, dynamics: Dynamics) -> float:
    """Root mean square of derivative less right-hand side on the snapshots, over that of the derivative."""
    scheme = order_for(data.runs)
    left = size = 0.0
    for run in data.runs:
        x, u, y = equations(run, scheme, dynamics.period)
        left += float((np.abs(y - dynamics.rate(x, u)) ** 2).sum())
        size += float((np.abs(y) ** 2).sum())
    return float(np.sqrt(left / size)) if size else 0.0
