"""Labels: the names of axes, the coordinates along them and the dates of snapshots, as arrays with labels carry them.

They are read from anything that speaks as xarray's DataArray and Dataset do (``dims``, ``coords``, ``attrs``), by the CF
conventions, and given back by ``to_xarray``; xarray itself is imported only where dates or files need it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.foreign import DataArray, Dataset
from ensemblekit.intake import SNAPSHOT_AXES, in_memory, unit_of
from ensemblekit.intake_dates import dates_of, is_cftime, numbers_of_dates, package

DESCRIPTIONS = ("long_name", "standard_name", "units", "axis", "positive", "cell_methods")
"""Attributes of variables that are kept, the field's unit apart."""
AREAS = ("cell_area", "areacella", "areacello", "tarea", "uarea", "area_t", "cell_areas", "gridarea", "area")
"""Names of variables that hold the areas of cells, in lower case."""


@dataclass(frozen=True, slots=True, eq=False)
class Coordinate:
    """Numbers or words along some axes of a snapshot: latitudes, levels, areas of cells."""

    dims: tuple[str, ...]
    values: np.ndarray
    """One axis for each name in `dims`."""
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return self.attributes.get("units", "")


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Names of the axes of snapshots, coordinates along them, and what the times of the snapshots are counted from."""

    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Field -> names of the axes of a snapshot."""
    coords: Mapping[str, Coordinate] = field(default_factory=dict)
    time: str = "time"
    """Name of the axis of the snapshots."""
    epoch: str = ""
    """The instant that times are counted from, "1900-01-01 00:00:00"; "": times are numbers, no dates."""
    calendar: str = ""
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Field -> its long_name, standard_name and so on."""
    areas: Mapping[str, str] = field(default_factory=dict)
    """Field -> the coordinate with the areas of its cells, where one is known."""

    def only(self, names: Sequence[str]) -> Labels:
        """The labels of some of the fields."""
        return replace(self, dims={name: x for name, x in self.dims.items() if name in names},
                       attributes={name: x for name, x in self.attributes.items() if name in names},
                       areas={name: x for name, x in self.areas.items() if name in names})

    def renamed(self, old: str, new: str) -> Labels:
        """The same with a field under another name."""
        return replace(self, dims={new if name == old else name: x for name, x in self.dims.items()},
                       attributes={new if name == old else name: x for name, x in self.attributes.items()},
                       areas={new if name == old else name: x for name, x in self.areas.items()})

    def along(self, dims: Sequence[str]) -> dict[str, Coordinate]:
        """The coordinates that lie along these axes and no others."""
        return {name: one for name, one in self.coords.items() if set(one.dims) <= set(dims)}

    def dates(self, times: np.ndarray, time_unit: str) -> np.ndarray:
        """Times (n,) as they are written: datetime64, dates of cftime on other calendars, or numbers where there are no dates.

        Raises MissingExtraError where a calendar needs xarray and cftime, and they are not installed.
        """
        return dates_of(times, time_unit, self.epoch, self.calendar)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings; :meth:`from_dict` is the inverse."""
        return {"dims": {name: list(dims) for name, dims in self.dims.items()}, "time": self.time, "epoch": self.epoch,
                "calendar": self.calendar, "attributes": {name: dict(one) for name, one in self.attributes.items()},
                "areas": dict(self.areas),
                "coords": {name: {"dims": list(one.dims), "dtype": one.values.dtype.str, "shape": list(one.values.shape),
                                  "values": _listed(one.values), "attributes": dict(one.attributes)}
                           for name, one in self.coords.items()}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Labels:
        """Raises ValueError, TypeError or LookupError where the record is none of :meth:`to_dict`."""
        coords = {}
        for name, one in record["coords"].items():
            dtype = np.dtype(one["dtype"])
            if dtype.kind not in "biufmMU":
                raise ValueError(f"the coordinate {name!r} is {dtype}")
            values = np.asarray(one["values"], "i8").view(dtype) if dtype.kind in "mM" else np.asarray(
                [np.nan if x is None else x for x in one["values"]], dtype)
            coords[str(name)] = Coordinate(tuple(map(str, one["dims"])), values.reshape(one["shape"]),
                                           {str(k): str(x) for k, x in one["attributes"].items()})
        return cls({str(name): tuple(map(str, dims)) for name, dims in record["dims"].items()}, coords, str(record["time"]),
                   str(record["epoch"]), str(record["calendar"]),
                   {str(name): {str(k): str(x) for k, x in one.items()} for name, one in record["attributes"].items()},
                   {str(name): str(x) for name, x in record["areas"].items()})


def _listed(values: np.ndarray) -> list[Any]:
    if values.dtype.kind in "mM":
        return values.ravel().view("i8").tolist()
    return [None if x != x else x for x in values.ravel().tolist()]


# -- what carries labels -------------------------------------------------------------------------------------------------

def is_dataset(x: object) -> bool:
    """Whether x is several arrays that share the names of their axes, as a Dataset of xarray."""
    return isinstance(x, Dataset)


def is_labelled(x: object) -> bool:
    """Whether x is an array, or several, with names of axes and coordinates along them."""
    return isinstance(x, Dataset | DataArray)


def is_lazy(x: Any) -> bool:
    """Whether the numbers of a DataArray or Dataset are not in memory yet: in files, or still to be computed."""
    if is_dataset(x):
        return any(map(is_lazy, x.data_vars.values()))
    return not in_memory(x)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledArrays:
    """Fields of a DataArray or Dataset that have the axis of the snapshots, that axis first, and what goes with them."""

    arrays: Mapping[str, Any]
    """Name -> DataArray, snapshots along its first axis, not read yet where it is lazy."""
    labels: Labels
    times: np.ndarray | None
    """(n,) float64, since the epoch of the labels."""
    time_unit: str
    units: Mapping[str, str]

    def chunk_rows(self) -> int:
        """How many snapshots lie in one chunk of the field with the largest ones; 1 where there are no chunks."""
        return max(map(chunk_rows, self.arrays.values()), default=1)


def chunk_rows(x: Any) -> int:
    """Snapshots in a chunk of a DataArray along its first axis: of dask, or of the file; 1 where it has none."""
    if x.chunks is not None:
        return int(max(x.chunks[0]))
    chunks = x.encoding.get("chunks") or x.encoding.get("chunksizes")
    preferred = x.encoding.get("preferred_chunks") or {}
    if x.dims and x.dims[0] in preferred:
        return int(preferred[x.dims[0]])
    return int(chunks[0]) if chunks and x.dims and len(chunks) == x.ndim else 1


def labelled_arrays(x: Any, time: str | None = None, names: Sequence[str] | None = None,
                    area: str | None = None) -> LabelledArrays:
    """Put the snapshots of a DataArray or Dataset along the first axis, and read the labels; nothing else is read.

    Arguments:
        time: name of the axis of the snapshots; by default that of CF's time axis, else one that is called "time", "frame",
            "sample" and so on.
        names: the variables to take of a Dataset; by default all numbers that have that axis (and as many axes as any).
        area: name of the variable that holds the areas of cells; by default as CF's cell_measures say, or its name does.

    Raises InputError where there is no such axis or no variable over it.
    """
    if not is_dataset(x):
        name = str(x.name) if x.name is not None else "values"
        variables, every = {name: x}, {str(k): v for k, v in x.coords.items()}
        sizes = dict(zip(x.dims, x.shape, strict=True))
    else:
        variables = {str(k): v for k, v in x.data_vars.items()}
        every = {**{str(k): v for k, v in x.coords.items()}, **variables}
        sizes = dict(x.sizes)
    axis = snapshot_axis(sizes, every, time, asked=variables)
    bounds = {str(one.attrs.get("bounds", one.encoding.get("bounds", ""))) for one in every.values()} - {""}
    numeric = {name: one for name, one in variables.items() if one.dtype.kind in "biufc" and axis in one.dims and one.size}
    if names is not None:
        missing = [name for name in names if name not in variables]
        chosen = {name: variables[name] for name in names if name not in missing}
        if missing or any(name not in numeric for name in names):
            wrong = missing[0] if missing else next(name for name in names if name not in numeric)
            raise UnknownFieldError(wrong, numeric)
    else:
        chosen = {name: one for name, one in numeric.items()
                  if name not in bounds and not name.endswith(("_bnds", "_bounds")) and name != axis}
        most = max((one.ndim for one in chosen.values()), default=0)
        chosen = {name: one for name, one in chosen.items() if one.ndim == most}
    if not chosen:
        raise InputError(f"no variable of numbers has the axis {axis!r}; the variables are "
                         f"{ {name: tuple(map(str, one.dims)) for name, one in variables.items()} }")
    arrays = {name: one if one.dims[0] == axis else one.transpose(axis, ...) for name, one in chosen.items()}
    dims = {name: tuple(map(str, one.dims[1:])) for name, one in arrays.items()}
    used = {axis_name for one in dims.values() for axis_name in one}
    times, time_unit, epoch, calendar, clock = _clock(axis, every)
    areas_named = {area, *_measures(chosen.values())}
    coords = {name: _coordinate(one) for name, one in every.items()
              if name not in chosen and axis not in one.dims and one.dims and set(map(str, one.dims)) <= used
              and (name not in variables or name.lower() in AREAS or name in areas_named) and _is_plain(one)}
    labels = Labels(dims, coords, str(clock or axis), epoch, calendar, {name: _described(one, unit=False)
                                                                        for name, one in arrays.items()})
    if area is not None and area not in coords:
        raise InputError(f"{area!r} names no variable of numbers along the axes of a snapshot, whose areas it would be; those "
                         f"along {sorted(used)} are {sorted(set(every) - set(chosen))}")
    areas = {name: cells for name, one in arrays.items()
             if (cells := _area(one, dims[name], coords) if area is None else area) is not None}
    return LabelledArrays(arrays, replace(labels, areas=areas), times, time_unit,
                          {name: unit_of(one) for name, one in arrays.items()})


def _is_plain(one: Any) -> bool:
    """Whether a variable holds numbers, dates or words."""
    return one.dtype.kind in "biufmMUT" or (one.dtype.kind == "O" and all(isinstance(k, str) for k in one.to_numpy().ravel()))


def _coordinate(one: Any) -> Coordinate:
    """A variable of numbers, dates or words along some axes of a snapshot."""
    values = one.to_numpy()
    return Coordinate(tuple(map(str, one.dims)), values.astype(str) if values.dtype.kind in "OT" else values, _described(one))


def snapshot_axis(sizes: Mapping[Hashable, int], variables: Mapping[str, Any], time: str | None = None,
                  asked: Mapping[str, Any] | None = None) -> Any:
    """The name of the axis of the snapshots: `time`, that of CF's time coordinate, or one with a name of SNAPSHOT_AXES.

    Raises InputError where there is none, or several and nothing says which.
    """
    if time is not None:
        if time in sizes:
            return time
        clock = variables.get(time)
        if clock is not None and len(clock.dims) == 1:
            return clock.dims[0]
        raise InputError(f"time={time!r} names no axis; there are {', '.join(map(repr, map(str, sizes)))}")
    dated = [name for name in dict.fromkeys(one.dims[0] for key, one in variables.items() if _is_clock(key, one))
             if name in sizes]
    named = [name for name in sizes if str(name).lower() in SNAPSHOT_AXES]
    for candidates in ([name for name in dated if name in named], dated, named):
        if len(candidates) == 1:
            return candidates[0]
        if len(candidates) > 1:
            exact = [name for name in candidates if str(name).lower() == "time"]
            if len(exact) == 1:
                return exact[0]
            raise InputError(f"snapshots may lie along {' or '.join(map(repr, map(str, candidates)))}; say which with "
                             f"rom.read(x, time={str(candidates[0])!r}) (or rename the axis meant to 'time')")
    if len(sizes) == 1:
        return next(iter(sizes))
    shown = ", ".join(map(repr, map(str, sizes)))
    raise InputError(f"no axis of {shown or 'x'} is that of the snapshots: none is called 'time', none has dates or the CF "
                     "attribute axis='T'. Say it with time=..., or pass x.to_numpy() where the first axis is meant")


def _is_clock(name: str, one: Any) -> bool:
    """Whether a variable along one axis says its times, by the CF conventions."""
    if len(one.dims) != 1:
        return False
    attributes = one.attrs
    if one.dtype.kind == "M" or attributes.get("standard_name") == "time" or attributes.get("axis") == "T":
        return True
    if one.dtype.kind in "iuf" and " since " in str(attributes.get("units", "")) and (
            name == one.dims[0] or name.lower() in SNAPSHOT_AXES or "time" in name.lower()):
        return "forecast_reference_time" not in str(attributes.get("standard_name", ""))
    return one.dtype.kind == "O" and one.size > 0 and is_cftime(one.to_numpy().flat[0])


def _clock(axis: Any, variables: Mapping[str, Any]) -> tuple[np.ndarray | None, str, str, str, str | None]:
    """Times of the snapshots, their unit, epoch and calendar, and the name of the variable; None where there are none."""
    along = {name: one for name, one in variables.items() if one.dims == (axis,) and one.dtype.kind in "iufMmO"}
    dated = [name for name, one in along.items() if _is_clock(name, one)]
    called = [name for name in along if name.lower() in ("time", "times", "t")]
    name = next((name for name in (str(axis), *dated, *called) if name in along), None)
    if name is None:
        return None, "", "", "", None
    one = along[name]
    if one.dtype.kind == "O" and not (one.size and is_cftime(one.to_numpy().flat[0])):
        return None, "", "", "", None
    if one.dtype.kind in "iuf":
        unit, _, epoch = str(one.attrs.get("units", "")).partition(" since ")
        calendar = str(one.attrs.get("calendar", "")) if epoch else ""
        values = one.to_numpy().astype(np.float64)
        known = np.isfinite(values).all()
        return (values if known else None), unit.strip() if known else "", epoch.strip(), calendar, name
    return *numbers_of_dates(one.to_numpy(), str(one.encoding.get("units", "")), str(one.encoding.get("calendar", ""))), name


# -- coordinates ---------------------------------------------------------------------------------------------------------

def _described(one: Any, unit: bool = True) -> dict[str, str]:
    return {key: str(one.attrs[key]) for key in DESCRIPTIONS if key in one.attrs and (unit or key != "units")}


def _measures(arrays: Any) -> set[str]:
    """The names of the variables that CF's cell_measures of some arrays say hold areas."""
    names = set()
    for one in arrays:
        words = str(one.attrs.get("cell_measures", one.encoding.get("cell_measures", ""))).replace(":", " : ").split()
        names |= {words[k + 2] for k in range(len(words) - 2) if words[k] == "area" and words[k + 1] == ":"}
    return names


def _area(one: Any, dims: tuple[str, ...], coords: Mapping[str, Coordinate]) -> str | None:
    """The coordinate that holds the areas of an array's cells: that of cell_measures, else one of a known name."""
    said = [name for name in _measures([one]) if name in coords]
    by_name = sorted((name for name in coords if name.lower() in AREAS), key=lambda name: AREAS.index(name.lower()))
    return next((name for name in (*said, *by_name) if coords[name].dims and set(coords[name].dims) <= set(dims)
                 and coords[name].values.dtype.kind in "iuf"), None)


def is_latitude(name: str, one: Coordinate) -> bool:
    """Whether a coordinate is the latitude: of the sphere, or of a rotated pole, whose cosine goes with areas too."""
    unit, said = one.unit.lower(), one.attributes.get("standard_name", "")
    if one.values.dtype.kind not in "iuf" or said in ("longitude", "grid_longitude"):
        return False
    return (said in ("latitude", "grid_latitude") or unit in ("degrees_north", "degree_north", "degrees_n", "degree_n")
            or name.lower() in ("lat", "latitude", "latitudes", "nav_lat", "tlat", "ulat", "xlat", "rlat", "lats"))


def is_longitude(name: str, one: Coordinate) -> bool:
    """Whether a coordinate is the longitude."""
    unit, said = one.unit.lower(), one.attributes.get("standard_name", "")
    if one.values.dtype.kind not in "iuf":
        return False
    return (said in ("longitude", "grid_longitude") or unit in ("degrees_east", "degree_east", "degrees_e", "degree_e")
            or name.lower() in ("lon", "longitude", "longitudes", "nav_lon", "tlong", "ulong", "xlong", "rlon", "lons"))


def aligned(x: Any, labels: Labels | None, name: str, what: str) -> Any:
    """x, its axes in the order of those of a field where both have names: weights of an inner product, a center, snapshots.

    Axes that the field has not stay first. Raises InputError where coordinates along an axis are others than the field's.
    """
    if labels is None or name not in labels.dims or not is_labelled(x) or is_dataset(x):
        return x
    wanted = labels.dims[name]
    have = tuple(map(str, x.dims))
    inside = [axis for axis in wanted if axis in have]
    if not inside:
        return x
    for axis in inside:
        known, theirs = labels.coords.get(axis), x.coords.get(axis) if axis in x.coords else None
        if known is not None and theirs is not None and known.values.shape == theirs.shape:
            values = theirs.to_numpy()
            same = np.array_equal(values, known.values) or (values.dtype.kind in "iuf" and known.values.dtype.kind in "iuf"
                                                            and np.allclose(values, known.values, rtol=1e-6, atol=0))
            if not same:
                raise InputError(f"{what} has other coordinates along {axis!r} than the snapshots ({values.flat[0]} first, "
                                 f"where they have {known.values.flat[0]}), and would be paired by place; put it in order: "
                                 f"x.reindex({axis}=...), or pass x.to_numpy() where the place is meant")
    order = (*(axis for axis in x.dims if str(axis) not in inside), *inside)
    return x if tuple(x.dims) == order else x.transpose(*order)


# -- and back ------------------------------------------------------------------------------------------------------------

def described(dims: Sequence[str] | None, shape: Sequence[int], prefix: str = "") -> tuple[str, ...]:
    """Names of the axes of an item: those it came with, else "dim_0", "dim_1" and so on behind a prefix."""
    if dims is not None and len(dims) == len(shape):
        return tuple(dims)
    return tuple(f"{prefix}{'_' if prefix else ''}dim_{k}" for k in range(len(shape)))


def dataset_of(variables: Mapping[str, tuple[Sequence[str], Any, Mapping[str, Any]]], along: Mapping[str, Coordinate],
               coords: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:
    """A Dataset of xarray: variables as (dims, values, attributes), and coordinates along their axes where they fit.

    Raises MissingExtraError where xarray is not installed.
    """
    xarray = package("xarray")
    sizes: dict[str, int] = {}
    for dims, values, _ in variables.values():
        sizes |= dict(zip(dims, np.shape(values), strict=True))
    fitting = {name: (one.dims, one.values, dict(one.attributes)) for name, one in along.items()
               if all(sizes.get(axis) == n for axis, n in zip(one.dims, one.values.shape, strict=True))
               and name not in variables and name not in coords and (name not in sizes or one.dims == (name,))}
    return xarray.Dataset(dict(variables), {**fitting, **coords}, {key: x for key, x in attributes.items() if x != ""})
