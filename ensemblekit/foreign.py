"""The objects of other packages as they are known here, none of which is imported: by the members that make them what they are.

``isinstance(x, Quantity)`` asks for all members of a protocol at once. Names that one package's objects may lack stay questions
(``getattr``) where they are asked, and are listed with their package in tests/test_layers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

# -- numbers with a unit -------------------------------------------------------------------------------------------------

@runtime_checkable
class HasUnits(Protocol):
    """A quantity of pint or unyt."""

    @property
    def units(self) -> Any: ...


@runtime_checkable
class HasUnit(Protocol):
    """A quantity of astropy or OpenMM."""

    @property
    def unit(self) -> Any: ...


@runtime_checkable
class PintQuantity(HasUnits, Protocol):
    """A quantity of pint."""

    @property
    def magnitude(self) -> Any: ...


@runtime_checkable
class AstropyQuantity(HasUnit, Protocol):
    """A quantity of astropy."""

    @property
    def value(self) -> Any: ...
    def to_value(self, unit: Any) -> Any: ...


@runtime_checkable
class OpenMMQuantity(HasUnit, Protocol):
    """A quantity of OpenMM."""

    def value_in_unit(self, unit: Any) -> Any: ...


@runtime_checkable
class Convertible(Protocol):
    """A quantity of pint, astropy or unyt, which can be had in another unit."""

    def to(self, unit: str) -> Any: ...


# -- arrays with names ---------------------------------------------------------------------------------------------------

@runtime_checkable
class NamedAxes(Protocol):
    """An array of xarray, or another whose axes have names."""

    @property
    def dims(self) -> Any: ...
    @property
    def attrs(self) -> Any: ...
    def to_numpy(self) -> Any: ...


@runtime_checkable
class DataArray(Protocol):
    """xarray's DataArray."""

    @property
    def dims(self) -> Any: ...
    @property
    def coords(self) -> Any: ...
    def transpose(self, *dims: Any) -> Any: ...
    def isel(self, *indexers: Any) -> Any: ...


@runtime_checkable
class Dataset(Protocol):
    """xarray's Dataset."""

    @property
    def data_vars(self) -> Mapping[Any, Any]: ...
    @property
    def dims(self) -> Any: ...
    @property
    def coords(self) -> Any: ...


@runtime_checkable
class HasVariable(Protocol):
    """A DataArray, whose numbers are those of a Variable."""

    @property
    def variable(self) -> Any: ...
    def copy(self, *, data: Any) -> Any: ...


@runtime_checkable
class Chunked(Protocol):
    """A DataArray, whose numbers may be still to be computed; an array of dask."""

    @property
    def chunks(self) -> Any: ...


@runtime_checkable
class HasIndexes(Protocol):
    """A DataArray or Dataset with coordinates along its axes."""

    @property
    def indexes(self) -> Any: ...


# -- tables --------------------------------------------------------------------------------------------------------------

@runtime_checkable
class Indexed(Protocol):
    """A Series or DataFrame of pandas; a list, whose ``index`` is another thing, too."""

    @property
    def index(self) -> Any: ...


@runtime_checkable
class Table(Indexed, Protocol):
    """A Series or DataFrame of pandas."""

    @property
    def iloc(self) -> Any: ...
    def to_numpy(self) -> Any: ...


@runtime_checkable
class DataFrame(Table, Protocol):
    """A DataFrame of pandas."""

    @property
    def columns(self) -> Any: ...


@runtime_checkable
class PandasIndex(Protocol):
    """An index of pandas."""

    def equals(self, other: Any) -> bool: ...
    def __len__(self) -> int: ...


@runtime_checkable
class MayLack(Protocol):
    """A column of pandas, some of whose numbers may be missing."""

    def isna(self) -> Any: ...
    def to_numpy(self, *, dtype: Any, na_value: Any) -> Any: ...


# -- arrays --------------------------------------------------------------------------------------------------------------

@runtime_checkable
class HasDtype(Protocol):
    """An array of any package, an index of pandas."""

    @property
    def dtype(self) -> Any: ...


@runtime_checkable
class AnyArray(HasDtype, Protocol):
    """An array of any package."""

    @property
    def shape(self) -> Any: ...


@runtime_checkable
class Tensor(HasDtype, Protocol):
    """A tensor of torch."""

    @property
    def layout(self) -> Any: ...
    @property
    def is_nested(self) -> bool: ...
    @property
    def is_quantized(self) -> bool: ...
    def float(self) -> Any: ...
    def detach(self) -> Any: ...


@runtime_checkable
class SparseMatrix(Protocol):
    """A sparse matrix of scipy, or one like it."""

    @property
    def nnz(self) -> Any: ...
    def todense(self) -> Any: ...


@runtime_checkable
class GivesArray(Protocol):
    """What says itself how it becomes an array."""

    def __array__(self) -> Any: ...


@runtime_checkable
class GivesInterface(Protocol):
    """What says where its numbers lie in memory."""

    @property
    def __array_interface__(self) -> Any: ...


@runtime_checkable
class GivesBuffer(Protocol):
    """What hands out its memory."""

    def __buffer__(self, flags: int) -> Any: ...


@runtime_checkable
class GivesDict(Protocol):
    """Anything that says itself what it holds as plain values."""

    def to_dict(self) -> Any: ...


@runtime_checkable
class Scalar(Protocol):
    """A number of numpy, or an array of one number, of any package."""

    def item(self) -> Any: ...


@runtime_checkable
class HasKind(Protocol):
    """A dtype of numpy or pandas."""

    @property
    def kind(self) -> str: ...


@runtime_checkable
class GivesList(Protocol):
    """An array or a scalar of any package."""

    def tolist(self) -> Any: ...


# -- analyses ------------------------------------------------------------------------------------------------------------

@runtime_checkable
class HasRun(Protocol):
    """An analysis of MDAnalysis, or one like it."""

    def run(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Analysis(HasRun, Protocol):
    """An analysis of MDAnalysis."""

    @property
    def results(self) -> Any: ...


@runtime_checkable
class HasTrajectory(Protocol):
    """A Universe of MDAnalysis that has frames."""

    @property
    def trajectory(self) -> Any: ...


@runtime_checkable
class HasAtoms(Protocol):
    """A Universe or AtomGroup of MDAnalysis, or another group of its atoms."""

    @property
    def atoms(self) -> Any: ...


@runtime_checkable
class AtomGroup(HasAtoms, Protocol):
    """A Universe or AtomGroup of MDAnalysis."""

    @property
    def universe(self) -> Any: ...
