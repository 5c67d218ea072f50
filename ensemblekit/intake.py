"""The door for arrays: what callers pass as values, weights, times or labels, turned into arrays or refused with the remedy.

``numpy.asarray`` drops the mask of a masked array, the axis names of a DataArray and the unit of a quantity without a word,
and makes an array of one object of a generator or a sparse matrix. Every function that takes arrays passes them through here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.foreign import (
    AstropyQuantity,
    Chunked,
    Convertible,
    GivesArray,
    GivesBuffer,
    GivesInterface,
    HasIndexes,
    HasUnit,
    HasUnits,
    HasVariable,
    Indexed,
    MayLack,
    NamedAxes,
    OpenMMQuantity,
    PandasIndex,
    PintQuantity,
    SparseMatrix,
    Tensor,
)

NUMBERS = "biufc"
"""Kinds of dtypes that are numbers."""
SNAPSHOT_AXES = frozenset({"time", "t", "times", "snapshot", "snapshots", "frame", "frames", "sample", "samples", "step",
                           "steps", "draw", "iteration", "epoch", "valid_time", "date", "dates", "datetime"})
"""Names of axes along which snapshots lie."""
PLAIN = (bool, int, float, complex, np.generic)
NARROW = ("bfloat16", "float8", "float4", "int4", "int2")
"""Beginnings of the names of types that numpy lacks."""


def is_torch(x: Any) -> bool:
    """Whether x is a torch tensor, without importing torch."""
    return type(x).__module__.partition(".")[0] == "torch"


def as_array(x: Any, what: str = "the array", *, dtype: Any = None, kinds: str | None = NUMBERS, tensors: bool = False,
             named_axes: bool = False) -> Any:
    """The numbers of anything like an array, masked ones as NaN.

    Arguments:
        what: its name in errors, such as "weights" or "field 'u'".
        dtype: cast to it.
        kinds: of the dtypes allowed; None: any (labels may be words).
        tensors: torch tensors stay what they are, on their device; else they come to main memory. Those of a type that numpy
            lacks (bfloat16) become float32, which holds them all.
        named_axes: axes with names may come in any order, as none is taken for that of the snapshots.

    Raises:
        InputError: masked numbers of a type that has no NaN, quantities with a unit (:func:`bare` takes it off), axes with
            names of which none is that of the snapshots, paths, generators, sparse matrices, ragged lists, and what holds no
            numbers. Where an axis has the name of one of snapshots it is put first.
    """
    if type(x) is not np.ndarray:
        x = _of_tensor(x, what, tensors) if is_torch(x) else _of_anything(x, what, named_axes)
        if is_torch(x):
            return x
    if kinds is not None and x.dtype.kind not in kinds:
        raise _no_numbers(x, what, kinds)
    return x if dtype is None else x.astype(dtype, copy=False)


def unmasked(x: Any, what: str) -> Any:
    """x, or its numbers where it is a masked array, a quantity or an array whose axes have names."""
    hides = isinstance(x, np.ma.MaskedArray) or (type(x) is not np.ndarray and not is_torch(x) and (
        _is_quantity(x) or _has_named_axes(x)))
    return as_array(x, what, named_axes=True) if hides else x


def unit_of(x: Any) -> str:
    """The unit of a quantity, of one in a DataArray, or that which a DataArray carries among its attributes; "" without one."""
    if type(x) is np.ndarray or is_torch(x):
        return ""
    if _has_named_axes(x):
        said = x.attrs.get("units", "") if isinstance(x.attrs, Mapping) else ""
        if said or not in_memory(x):        # numbers in a file are not read for their unit
            return said if isinstance(said, str) and " since " not in said else ""
        return unit_of(x.data)
    if isinstance(x, list | tuple):
        return unit_of(x[0]) if len(x) and not isinstance(x[0], PLAIN) and _is_quantity(x[0]) else ""
    return _unit_text(_held_unit(x)) if _is_quantity(x) else ""


def in_memory(x: Any) -> bool:
    """Whether the numbers of a DataArray are there: not in a file that is still to be read, nor to be computed."""
    if isinstance(x, Chunked) and x.chunks is not None:
        return False
    if not isinstance(x, HasVariable):
        return True
    held = getattr(x.variable, "_data", None)       # x.data would read them
    return not type(held).__module__.startswith("xarray.") or bool(getattr(x.variable, "_in_memory", True))


def bare(x: Any, unit: str = "") -> Any:
    """The numbers of a quantity, of one in a DataArray or of a list of them, in `unit` where one is given; else x as it is.

    Raises InputError where a unit cannot be turned into the one wanted.
    """
    if type(x) is np.ndarray or is_torch(x) or isinstance(x, PLAIN):
        return x
    if isinstance(x, list | tuple):
        if not len(x) or isinstance(x[0], PLAIN) or type(x[0]) is np.ndarray or not _is_quantity(x[0]):
            return x
        first = unit or unit_of(x[0])
        return [bare(one, first) for one in x]
    if _has_named_axes(x):
        if not in_memory(x) or not _is_quantity(x.data):
            return x
        numbers = bare(x.data, unit)
        return x.copy(data=numbers) if isinstance(x, HasVariable) else type(x)(numbers, x.dims, x.attrs)
    if not _is_quantity(x):
        return x
    own = unit_of(x)
    if unit and own != unit:
        x = _converted(x, own, unit)
    if isinstance(x, PintQuantity):
        return x.magnitude
    if isinstance(x, OpenMMQuantity):
        return x.value_in_unit(x.unit)
    return x.value if isinstance(x, AstropyQuantity) else np.asarray(x)


def in_unit(x: Any, unit: str, what: str) -> Any:
    """The numbers of x in the unit of what they meet; x as it is where it has no unit of its own.

    Raises InputError where its unit is of another kind.
    """
    if not unit or not (type(x) is not np.ndarray and unit_of(x)):
        return bare(x) if not unit else x
    own = unit_of(x)
    if own == unit:
        return bare(x)
    try:
        if _has_named_axes(x) and (not in_memory(x) or not _is_quantity(x.data)):
            return _rescaled(x, own, unit)
        return bare(x, unit)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _rescaled(x: Any, own: str, unit: str) -> Any:
    """A DataArray whose attributes name its unit, in another one: as pint has it, and block by block where it is lazy."""
    try:
        import pint
    except ImportError as error:
        raise InputError(f"numbers in {own!r} where {unit!r} is wanted; pint turns one into the other (pip install pint), or "
                         "convert them first") from error
    ends = _converted(pint.get_application_registry().Quantity(np.array([0.0, 1.0]), _as_product_of_powers(own)), own, unit)
    zero, one = ends.magnitude.tolist()
    data = x.data * (one - zero)
    data = data + zero if zero else data
    attrs = {**x.attrs, "units": unit}
    return x.copy(data=data).assign_attrs(attrs) if isinstance(x, HasVariable) else type(x)(data, x.dims, attrs)


def _converted(x: Any, own: str, unit: str) -> Any:
    try:
        return (x.to if isinstance(x, Convertible) else x.in_unit)(_as_product_of_powers(unit))
    except Exception as error:      # each package of units raises its own
        raise InputError(f"numbers in {own!r} where {unit!r} is wanted, and one is not turned into the other "
                         f"({type(error).__name__}). Convert them first, or pass bare numbers in {unit!r}") from error


POWER = re.compile(r"([^\d\s*/^+-]+)(?:\*\*|\^)?([+-]?\d+)?")


def _as_product_of_powers(unit: str) -> str:
    """ "m s-1" as packages of units read it: "m*s**-1"."""
    parts = [POWER.fullmatch(part) for part in unit.split()]
    if any(part is None for part in parts):
        return unit
    return "*".join(part[1] + (f"**{part[2].lstrip('+')}" if part[2] else "") for part in parts if part is not None)


FACTOR = re.compile(r"([*/]?)\s*([^\s*/^()]+)(?:\^\(?([+-]?\d+)\)?)?")


def _unit_text(unit: Any) -> str:
    """A unit of another package in H5MD's notation, "m s-1"; "" where there is none."""
    if unit is None or isinstance(unit, str):
        text = unit or ""
    else:
        try:
            text = format(unit, "~C") if type(unit).__module__.partition(".")[0] == "pint" else str(unit)
        except (TypeError, ValueError):
            text = str(unit)
    if text in ("dimensionless", "None", "1", ""):
        return ""
    factors = []
    for operator, name, power in FACTOR.findall(text.replace("**", "^")):
        sign = -1 if operator == "/" else 1
        exponent = sign * int(power or 1)
        if name != "1":
            factors.append(name + (str(exponent) if exponent != 1 else ""))
    return " ".join(factors)


def check_index(x: Any, other: Any, what: str, whose: str) -> None:
    """Refuse weights or times whose pandas index is another than that of the values: numpy would pair them by place."""
    own: Any = x.index if isinstance(x, Indexed) else None
    theirs: Any = other.index if isinstance(other, Indexed) else None
    if isinstance(own, PandasIndex) and isinstance(theirs, PandasIndex) and len(own) == len(theirs) and not (
            own.equals(theirs)):
        raise InputError(f"{what} have another index than {whose}, and would be paired by place; put them in order first: "
                         f"{what}.reindex(values.index), or pass {what}.to_numpy() where the place is meant")
    own, theirs = (one.indexes if isinstance(one, HasIndexes) else None for one in (x, other))
    if isinstance(own, Mapping) and isinstance(theirs, Mapping):
        for axis in own:
            if axis in theirs and not own[axis].equals(theirs[axis]):
                raise InputError(f"{what} have other coordinates along {axis!r} than {whose}, and would be paired by place; "
                                 f"put them in order first: {what}.reindex({axis}=...), or pass {what}.to_numpy() where the "
                                 "place is meant")


def check_finite_weights(weights: np.ndarray, what: str = "weights") -> None:
    """Refuse weights that are no number or below 0, naming the first."""
    bad = ~np.isfinite(weights)
    if bad.any():
        k = int(np.argmax(bad))
        raise InputError(f"{what} must be finite; weight {k} is {weights[k]}. Pass log_weights= where "
                         "their range is huge")
    if (weights < 0).any():
        k = int(np.argmax(weights < 0))
        raise InputError(f"{what} must not be negative; weight {k} is {weights[k]:g}")


def refuse_path(x: Any, what: str = "") -> None:
    """Refuse the path of a file where the data are wanted, saying how it is opened."""
    if isinstance(x, str | bytes | os.PathLike):
        name = os.fspath(x) if isinstance(x, os.PathLike) else x
        raise InputError(f"{what}{': ' if what else ''}a path is not a source: open it first, ek.open({name!r}) for a store "
                         "(and name a field of it), "
                         f"rom.read({name!r}) for the files of a flow solver, md.read(topology, {name!r}) for a trajectory, "
                         "numpy.load for a bare array")


def _of_tensor(x: Any, what: str, keep: bool) -> Any:
    """A dense tensor of a type that numpy has too, or its numbers in main memory."""
    if type(x).__name__ == "MaskedTensor":
        if not x.dtype.is_floating_point:
            raise InputError(f"{what}: masked, and {x.dtype} has no NaN to stand for what is masked; convert it to float first")
        x = x.to_tensor(float("nan"))
    if not isinstance(x, Tensor):
        raise InputError(f"{what}: {type(x).__name__} is no tensor; pass its values")
    layout = str(x.layout)
    if layout != "torch.strided" or x.is_nested or x.is_quantized:
        remedy = "x.dequantize()" if x.is_quantized else "x.to_dense()" if layout != "torch.jagged" and not x.is_nested else (
            "x.to_padded_tensor(nan)")
        raise InputError(f"{what}: a tensor with one number a place is wanted; got layout {layout}. Pass {remedy}")
    if str(x.dtype).removeprefix("torch.").startswith(NARROW):
        x = x.float()
    x = x.detach()
    return x if keep else x.cpu().resolve_conj().resolve_neg().numpy()


def _of_anything(x: Any, what: str, named_axes: bool) -> np.ndarray:
    if isinstance(x, np.ma.MaskedArray):
        return _unmasked(x, what)
    if isinstance(x, PLAIN):
        return np.asarray(x)
    refuse_path(x, what)
    if isinstance(x, list | tuple):
        return _of_list(x, what, named_axes)
    if _is_quantity(x):
        return _of_quantity(x, what)
    if _has_named_axes(x):
        return _of_named_axes(x, what, named_axes)
    if type(x).__module__.startswith("scipy.sparse") or isinstance(x, SparseMatrix):
        raise InputError(f"{what}: a sparse matrix, {type(x).__name__}, where every number is wanted; pass x.toarray()")
    if isinstance(x, Iterator) or (isinstance(x, Iterable) and not isinstance(
            x, GivesArray | Sequence | GivesInterface | GivesBuffer)):
        raise InputError(f"{what}: {type(x).__name__} gives its items one by one, where an array is wanted. Pass "
                         "numpy.stack(list(x)), or append them to a store as they come, ek.create(...), and pass that")
    try:
        return _plain(np.asarray(x), x, what)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: {type(x).__name__} is no array of numbers: {error}") from error


def _of_list(x: Sequence[Any], what: str, named_axes: bool) -> np.ndarray:
    types = set(map(type, x))
    try:
        if all(issubclass(t, PLAIN) or t is np.ndarray or t is str for t in types):
            return np.asarray(x)
        return np.asarray([_of_item(e, what, named_axes) for e in x])
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: these rows do not make one array ({error}); every snapshot has the same shape") from error


def _of_item(e: Any, what: str, named_axes: bool) -> Any:
    if e is None or type(e) is np.ndarray or isinstance(e, (str, *PLAIN)):
        return e
    return _of_tensor(e, what, False) if is_torch(e) else _of_anything(e, what, named_axes)


def _unmasked(x: np.ma.MaskedArray, what: str) -> np.ndarray:
    """The numbers, NaN where they are masked."""
    hidden = np.ma.getmaskarray(x)
    if hidden.dtype.names is not None or not hidden.any():
        return np.asarray(x.data)
    if x.dtype.kind not in "fc":
        raise InputError(f"{what}: {int(hidden.sum())} of {hidden.size} numbers are masked, and {x.dtype} has no NaN to stand "
                         "for them. Pass x.astype(float), in which they are NaN, or leave those snapshots out")
    filled = np.array(x.data)
    filled[hidden] = np.nan
    return filled


def _is_quantity(x: Any) -> bool:
    """Whether x is numbers with a unit: of pint, astropy, unyt, OpenMM or alike."""
    return isinstance(x, PintQuantity | OpenMMQuantity | AstropyQuantity) or (
        isinstance(x, np.ndarray) and isinstance(x, HasUnits))


def _held_unit(x: Any) -> Any:
    """The unit of a quantity, an object of its own package."""
    return (x.units if isinstance(x, HasUnits) else None) or (x.unit if isinstance(x, HasUnit) else "")


def _of_quantity(x: Any, what: str) -> np.ndarray:
    unit = _held_unit(x)
    if str(unit) not in ("", "dimensionless", "None", "1"):
        numbers = ("x.magnitude" if isinstance(x, PintQuantity) else "x.value_in_unit(...)" if isinstance(x, OpenMMQuantity)
                   else "x.value")
        raise InputError(f"{what}: numbers in {str(unit)!r}, whose unit would be lost. Convert them to the unit you mean, pass "
                         f"the bare numbers ({numbers}), and say their unit where there is unit=")
    bare = x.magnitude if isinstance(x, PintQuantity) else x.value if isinstance(x, AstropyQuantity) else x
    return _of_anything(bare, what, True) if type(bare) is not type(x) else np.asarray(bare)


def _has_named_axes(x: Any) -> bool:
    """Whether x is an array whose axes have names, as those of xarray."""
    return isinstance(x, NamedAxes) and not isinstance(x, Mapping)


def _of_named_axes(x: Any, what: str, named_axes: bool) -> np.ndarray:
    names = tuple(map(str, x.dims))
    first = 0
    if len(names) > 1 and not named_axes and names[0].lower() not in SNAPSHOT_AXES:
        along = [k for k, name in enumerate(names) if name.lower() in SNAPSHOT_AXES]
        if len(along) != 1:
            raise InputError(f"{what}: snapshots lie along the first axis, and that of this array is {names[0]!r} of {names}. "
                             "Pass x.to_numpy() where that is meant, or transpose it so that they lie along the first")
        first = along[0]
    held = x.data
    values = np.asarray(held) if type(held) is np.ndarray else _of_anything(held, what, True)
    return np.moveaxis(values, first, 0) if first else values


def _plain(values: np.ndarray, x: Any, what: str) -> np.ndarray:
    """What numpy made of x, where missing numbers of pandas are NaN."""
    if values.dtype.kind == "O" and isinstance(x, MayLack):
        try:
            return np.asarray(x.to_numpy(dtype=np.float64, na_value=np.nan))
        except (TypeError, ValueError) as error:
            raise InputError(f"{what}: not every column holds numbers; select those that do, "
                             'x.select_dtypes("number")') from error
    return values


def _no_numbers(x: np.ndarray, what: str, kinds: str) -> InputError:
    """Why an array of such a dtype is none of numbers, and what to do."""
    wanted = "whole numbers" if "f" not in kinds else "numbers" if "c" in kinds else "real numbers"
    if x.dtype.kind in NUMBERS:
        return InputError(f"{what}: {wanted} are wanted; got dtype {x.dtype}"
                          + (". Pass real and imaginary parts one by one" if x.dtype.kind == "c" else ""))
    remedy = ""
    if x.dtype.kind in "mM":
        remedy = '. Pass a number of a unit: (x - x[0]) / numpy.timedelta64(1, "s")' if x.dtype.kind == "M" else (
            '. Pass a number of a unit: x / numpy.timedelta64(1, "s")')
    elif any(x.dtype.name.startswith(name) for name in NARROW):
        remedy = ". Pass x.astype(numpy.float32), which holds them all"
    elif x.dtype.kind == "O":
        one = next((type(e).__name__ for e in x.reshape(-1)[:1000] if not isinstance(e, PLAIN)), "")
        remedy = (" (NoneType). What is missing is written as NaN" if one == "NoneType" else f" ({one})" if one else
                  " (numbers as objects). Pass x.astype(float)")
    elif x.dtype.names:
        remedy = ". Pass its columns by name, {name: x[name] for name in x.dtype.names}"
    return InputError(f"{what} holds no numbers, and {wanted} are wanted: dtype {x.dtype}{remedy}")
