"""Fields as functions of design parameters: a basis of a parameter study, its coefficients between the samples, and the error
of each sample when it is left out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.extremes import Extremes
from ensemblekit.averaging.run import reduce
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose import pod
from ensemblekit.rom.interpolation import METHODS, Interpolation, checked_kernel
from ensemblekit.rom.leave_one_out import LeaveOneOut, leave_one_out
from ensemblekit.rom.masked import MaskedSource
from ensemblekit.rom.parametric_model import ParametricModel
from ensemblekit.rom.read import as_snapshots
from ensemblekit.source import as_source
from ensemblekit.source_views import Reweighted

MISSING = 1e300
"""Numbers this large stand for what is missing: some programs write the largest one there is."""
ENERGY = 0.9999
"""Of the modes kept where no rank was named."""


def parametric(source: Any, parameters: ArrayLike | Mapping[str, ArrayLike], rank: int | None = None, *,
               method: Literal["auto", "gp", "rbf", "linear"] = "auto", kernel: str = "auto", mask: Any = None,
               memory_limit: float | str = "2GiB") -> ParametricModel:
    """Fields as a function of design parameters, with the error of each sample when it is left out.

    Arguments:
        source: a snapshot a sample, as for :func:`rom.pod`.
        parameters: (n, p), or a mapping of name to (n,). They are scaled to one size inside.
        rank: modes; those of 99.99 % of the energy by default.
        method: "gp" (a Gaussian process a coefficient), "rbf" (radial basis functions), "linear" (piecewise, between
            neighbours), or "auto": that of least root mean square left-out error.
        kernel: of "rbf", one of scipy's RBFInterpolator; "auto": Matérn 5/2 of "gp", the thin plate of "rbf".
        mask: (*item) bool, False where the field is no number to predict; with several fields a mapping. Numbers that are
            missing (NaN, infinite, above 1e300) in some samples are left out as well, and that is said.
        memory_limit: all modes of the study are held while samples are left out: as much as the samples.

    Leaving a sample out takes its own modes (a downdate of rank one) and kernel parameters, and no further read.

    Raises InputError: parameters of another length, constant, NaN, or given twice; too few samples for the parameters; complex
    fields; a rank above what the samples hold.
    """
    if method not in ("auto", *METHODS):
        raise InputError(f'method is "auto", {", ".join(map(repr, METHODS))}; got {method!r}')
    if kernel != "auto" and method == "auto":
        raise InputError(f'kernel={kernel!r} goes with method="gp" or "rbf"')
    snapshots = as_source(as_snapshots(source))
    if snapshots.lengths is None or len(snapshots.lengths) != 1:
        raise InputError("a parameter study is one source with a snapshot a sample, not several runs")
    n = snapshots.lengths[0]
    if snapshots.weights is not None:       # every sample counts alike: they were chosen, not drawn
        snapshots = Reweighted(snapshots, np.ones(n))
    if any(field.dtype.kind == "c" for field in snapshots.fields.values()):
        raise InputError("complex fields are not offered here; take their real and imaginary parts as two fields")
    points, names = checked_parameters(parameters, n)
    held, notes = _without_missing(snapshots, mask)
    whole = pod(held, rank=n - 1, memory_limit=memory_limit, center="mean")
    _check_apart(points, names, whole)
    chosen = _rank(whole, rank, n)
    with warnings.catch_warnings():     # of half a wave: samples of a study are no times
        warnings.filterwarnings("ignore", "the cut after mode")
        basis = whole.truncate(chosen)
    x = (points - points.mean(axis=0)) / points.std(axis=0)
    table: dict[str, tuple[float, float]] = {}
    best: tuple[Interpolation, LeaveOneOut] | None = None
    for one in METHODS if method == "auto" else (method,):
        fit = Interpolation.fitted(one, checked_kernel(one, kernel), x, basis.coefficients)
        errors = leave_one_out(whole.coefficients, x, chosen, one, fit.kernel, near=fit)
        table[one] = errors.median, errors.worst
        if best is None or errors.total < best[1].total:     # the median alone would pass over what fails at an edge
            best = fit, errors
    assert best is not None
    rest = whole.modes.reshape(whole.rank, -1)[chosen:]
    dropped = ((whole.singular_values[chosen:] ** 2 / n) @ rest**2).reshape(basis.mean.shape)
    return ParametricModel(basis=basis, names=names, parameters=points, interpolation=best[0], left_out=best[1], table=table,
                           dropped=dropped, notes=notes)


def checked_parameters(parameters: Any, n: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Parameters (n, p) and their names. Raises InputError."""
    if isinstance(parameters, Mapping):
        names = tuple(map(str, parameters))
        columns = [as_array(parameters[name], f"parameter {name}", kinds="biuf", dtype=np.float64) for name in parameters]
        if not columns or any(column.shape != (n,) for column in columns):
            raise InputError(f"parameters are {n} numbers each, one a sample; got shapes {[one.shape for one in columns]}")
        points = np.stack(columns, axis=1)
    else:
        points = as_array(parameters, "parameters", kinds="biuf", dtype=np.float64)
        points = points.reshape(-1, 1) if points.ndim == 1 else points
        names = ("mu",) if points.ndim == 2 and points.shape[1] == 1 else tuple(f"mu{k + 1}" for k in range(points.shape[-1]))
    if points.ndim != 2 or len(points) != n or not points.shape[1]:
        raise InputError(f"parameters are (n, p), a row a sample, of {n} samples; got shape {points.shape}")
    if not np.isfinite(points).all():
        raise InputError(f"the parameters of sample {int(np.argmin(np.isfinite(points).all(axis=1)))} hold NaN or infinity")
    for k, name in enumerate(names):
        if not np.ptp(points[:, k]) > 0:
            raise InputError(f"the parameter {name} is {points[0, k]:g} in all samples; leave it out")
    if n < points.shape[1] + 3:
        raise InputError(f"{n} samples are too few for {points.shape[1]} parameters: at least {points.shape[1] + 3}")
    return points, names


def _check_apart(points: np.ndarray, names: Sequence[str], whole: Basis) -> None:
    """Raise InputError for parameters that were given twice."""
    order = np.lexsort(points.T)
    same = (np.abs(np.diff(points[order], axis=0)) <= 1e-12 * np.ptp(points, axis=0)).all(axis=1)
    if not same.any():
        return
    i, j = sorted(map(int, order[int(np.argmax(same)):][:2]))
    apart = float(np.linalg.norm(whole.coefficients[i] - whole.coefficients[j]))
    size = float(np.sqrt((whole.coefficients**2).sum() / whole.n))
    where = ", ".join(f"{name} {x:g}" for name, x in zip(names, points[i], strict=True))
    remedy = "leave one of them out" if apart <= 1e-9 * size else (
        "what makes them differ is a parameter too; name it, or leave one of them out")
    raise InputError(f"samples {i} and {j} have the same parameters ({where}) and fields that differ by "
                     f"{100 * apart / size:.3g} % of the fluctuation: {remedy}")


def _rank(whole: Basis, rank: int | None, n: int) -> int:
    most = min(whole.rank, n - 2)       # modes that are there when a sample is left out
    if rank is None:
        return min(most, int(np.searchsorted(whole.cumulative_energy, ENERGY)) + 1)
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= most:
        raise InputError(f"{n} samples hold {most} modes when one is left out; got rank={rank!r}")
    return int(rank)


def _without_missing(source: Any, mask: Any) -> tuple[Any, tuple[str, ...]]:
    """The source without numbers that are missing somewhere, and what is said of them."""
    ends = reduce(source, {name: (name, Extremes()) for name in source.fields})
    keep, notes = {}, []
    for name, field in source.fields.items():
        own = mask.get(name) if isinstance(mask, Mapping) else mask
        wanted = np.ones(field.size, bool) if own is None else _mask(own, name, field.shape)
        low, high = (np.asarray(x).reshape(-1) for x in (ends[name].low, ends[name].high))
        there = np.isfinite(low) & np.isfinite(high) & (np.maximum(np.abs(low), np.abs(high)) < MISSING)
        lost = int((wanted & ~there).sum())
        if lost:
            notes.append(f"{lost} of {field.size} numbers of {name} are missing in some samples and were left out")
        keep[name] = wanted & there
        if not keep[name].any():
            raise InputError(f"no number of {name} is there in all samples")
    if all(one.all() for one in keep.values()):
        return source, ()
    return MaskedSource(source, keep), tuple(notes)


def _mask(own: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    given = np.asarray(own)
    if given.shape != shape or given.dtype != bool:
        raise InputError(f"the mask of {name} is of bool, shape {shape}, False where nothing is to be predicted; got "
                         f"{given.dtype}, {given.shape}")
    return given.reshape(-1)
