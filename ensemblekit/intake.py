"""The door for arrays: what callers pass as values, weights, times or labels, turned into arrays or refused with the remedy.

``numpy.asarray`` drops the mask of a masked array, the axis names of a DataArray and the unit of a quantity without a word,
and makes an array of one object of a generator or a sparse matrix. Every function that takes arrays passes them through here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ensemblekit.errors import InputError

NUMBERS = "biufc"
"""Kinds of dtypes that are numbers."""
SNAPSHOT_AXES = frozenset({"time", "t", "times", "snapshot", "snapshots", "frame", "frames", "sample", "samples", "step",
                           "steps", "draw", "iteration", "epoch"})
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
        InputError: masked numbers of a type that has no NaN, quantities with a unit, axes with names of which the first is not
            that of the snapshots, paths, generators, sparse matrices, ragged lists, and what holds no numbers.
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
    """The unit that a DataArray carries among its attributes; "" where there is none."""
    attributes = getattr(x, "attrs", None)
    found = attributes.get("units", "") if _has_named_axes(x) and isinstance(attributes, Mapping) else ""
    return found if isinstance(found, str) else ""


def check_index(x: Any, other: Any, what: str, whose: str) -> None:
    """Refuse weights or times whose pandas index is another than that of the values: numpy would pair them by place."""
    mine: Any = getattr(x, "index", None)
    theirs: Any = getattr(other, "index", None)
    if hasattr(mine, "equals") and hasattr(theirs, "equals") and len(mine) == len(theirs) and not mine.equals(theirs):
        raise InputError(f"{what} have another index than {whose}, and would be paired by place; put them in order first: "
                         f"{what}.reindex(values.index), or pass {what}.to_numpy() where the place is meant")


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
    layout = str(getattr(x, "layout", "torch.strided"))
    if layout != "torch.strided" or getattr(x, "is_nested", False) or getattr(x, "is_quantized", False):
        remedy = "x.dequantize()" if getattr(x, "is_quantized", False) else "x.to_dense()" if layout != "torch.jagged" and not (
            getattr(x, "is_nested", False)) else "x.to_padded_tensor(nan)"
        raise InputError(f"{what}: a tensor with one number a place is wanted; got layout {layout}. Pass {remedy}")
    if not hasattr(x, "dtype"):
        raise InputError(f"{what}: {type(x).__name__} is no tensor; pass its values")
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
    if type(x).__module__.startswith("scipy.sparse") or (hasattr(x, "nnz") and hasattr(x, "todense")):
        raise InputError(f"{what}: a sparse matrix, {type(x).__name__}, where every number is wanted; pass x.toarray()")
    if isinstance(x, Iterator) or (hasattr(x, "__iter__") and not hasattr(x, "__array__") and not isinstance(x, Sequence)
                                   and not hasattr(x, "__array_interface__") and not hasattr(x, "__buffer__")):
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
    return (hasattr(x, "units") and (hasattr(x, "magnitude") or isinstance(x, np.ndarray))) or (
        hasattr(x, "unit") and (hasattr(x, "value_in_unit") or hasattr(x, "to_value")))


def _of_quantity(x: Any, what: str) -> np.ndarray:
    unit = getattr(x, "units", None) or getattr(x, "unit", "")
    if str(unit) not in ("", "dimensionless", "None", "1"):
        numbers = ("x.magnitude" if hasattr(x, "magnitude") else "x.value_in_unit(...)" if hasattr(x, "value_in_unit") else
                   "x.value")
        raise InputError(f"{what}: numbers in {str(unit)!r}, whose unit would be lost. Convert them to the unit you mean, pass "
                         f"the bare numbers ({numbers}), and say their unit where there is unit=")
    bare = x.magnitude if hasattr(x, "magnitude") else getattr(x, "value", x)
    return _of_anything(bare, what, True) if type(bare) is not type(x) else np.asarray(bare)


def _has_named_axes(x: Any) -> bool:
    """Whether x is an array whose axes have names, as those of xarray."""
    return hasattr(x, "dims") and hasattr(x, "attrs") and hasattr(x, "to_numpy") and not isinstance(x, Mapping)


def _of_named_axes(x: Any, what: str, named_axes: bool) -> np.ndarray:
    names = tuple(map(str, x.dims))
    if len(names) > 1 and not named_axes and names[0].lower() not in SNAPSHOT_AXES:
        along = next((name for name in names if name.lower() in SNAPSHOT_AXES), None)
        remedy = (f"x.transpose({along!r}, ...)" if along else
                  "x.to_numpy() where that is meant, or transpose it so that they lie along the first")
        raise InputError(f"{what}: snapshots lie along the first axis, and that of this array is {names[0]!r} of {names}. "
                         f"Pass {remedy}")
    held = x.data
    return np.asarray(held) if type(held) is np.ndarray else _of_anything(held, what, True)


def _plain(values: np.ndarray, x: Any, what: str) -> np.ndarray:
    """What numpy made of x, where missing numbers of pandas are NaN."""
    if values.dtype.kind == "O" and hasattr(x, "isna"):
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
