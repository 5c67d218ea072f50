"""What is to be decomposed: fields, snapshots, inner product, centre and scale, checked and put in one form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.intake import as_array, bare, in_unit, unit_of
from ensemblekit.intake_labels import Labels, aligned, is_dataset, is_labelled
from ensemblekit.intake_tables import is_table
from ensemblekit.rom.decompose.inner_products import check_sparse, place_of, products_of
from ensemblekit.rom.decompose.units import OutOfRange, Unit
from ensemblekit.rom.product import GivenProduct, element_weights, is_sparse, without_missing
from ensemblekit.rom.readers.reader import bookkeeping
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import (
    ArraySource,
    BaseSource,
    DescribedSource,
    Field,
    ReplicaSet,
    SnapshotSource,
    StackedSource,
    as_source,
    described,
)
from ensemblekit.source_views import in_ordinary_weights

TINY = float(np.finfo(np.float64).tiny)
Snapshots: TypeAlias = SnapshotSource | ArrayLike | Mapping[str, SnapshotSource | ArrayLike]
"""What is decomposed: a source, an array with snapshots along axis 0, or a mapping of field to these."""
Scale: TypeAlias = str | Mapping[str, float] | None
""" "std", "max", "none" or a mapping of field to number."""
Center: TypeAlias = str | ArrayLike | Mapping[str, ArrayLike]
""" "mean", "first", "none", or a field (a mapping of field to one) that is subtracted."""


@dataclass(frozen=True, eq=False)
class FieldProblem:
    """One field of what is decomposed."""

    name: str
    key: str
    """Its name in the source."""
    source: DescribedSource
    field: Field
    product: Any
    """None, weights or a sparse matrix, as it is kept in the basis."""
    roots: np.ndarray | None
    """(size,) square roots of the inner product's weights; 0 where a number is masked. None: 1."""
    shift: np.ndarray | None
    """(size,) what is subtracted; None: the mean."""
    scale: float = 1.0
    mask: np.ndarray | None = None
    """(size,) bool, False where nothing is decomposed."""
    power: int = 0
    """The rows that are decomposed are in units of 2**power."""
    asked: int | None = None
    """The power that the field's own numbers asked for, where they said so."""
    product_power: int = 0
    """A sparse mass matrix enters divided by 4**product_power, so rows are in its units by 2**product_power too."""

    @property
    def sparse(self) -> bool:
        return is_sparse(self.product)

    @property
    def factors(self) -> np.ndarray | None:
        """(size,) what columns are multiplied with: root of the weight by the scale, 0 where masked."""
        roots = self.roots
        if self.mask is not None:
            roots = np.where(self.mask, 1.0 if roots is None else roots, 0.0)
        if self.scale != 1:
            roots = np.full(self.field.size, 1 / self.scale) if roots is None else roots / self.scale
        if self.power:
            used = np.ones(self.field.size) if roots is None else roots
            # a number that counts is not masked for being small
            roots = np.where(used > 0, np.maximum(ldexp(used, -self.power), TINY), 0.0)
        return roots

    @property
    def unit(self) -> Unit:
        """Of its rows, on their way through :class:`~ensemblekit.rom.decompose.slabs.RowTransform`."""
        return Unit(self.power, self.asked is not None, self.name)

    @property
    def whole_power(self) -> int:
        """That of singular values: of the rows and of the mass matrix."""
        return self.power + self.product_power

    def in_unit(self, power: int) -> FieldProblem:
        """The same for singular values in units of 2**power, whatever its own numbers are."""
        return replace(self, power=power - self.product_power, asked=power if self.asked is None else self.asked)

    @property
    def matrix(self) -> Any:
        """The sparse mass matrix divided by 4**product_power."""
        return self.product * 4.0**-self.product_power if self.product_power else self.product

    def masked(self, mask: np.ndarray) -> FieldProblem:
        return replace(self, mask=mask if self.mask is None else self.mask & mask)


@dataclass(frozen=True, eq=False)
class Problem:
    """All of it."""

    parts: tuple[FieldProblem, ...]
    n: int | None
    """Snapshots; None for a stream."""
    weights: np.ndarray | None
    """(n,) of mean 1; None: all 1."""
    times: np.ndarray | None
    time_unit: str
    mesh: Any
    center: str
    """ "mean", or another word where something known is subtracted."""
    scaling: Any = None
    """How the scales are found: None, "std" or "max" (they are in the parts where they are known)."""
    notes: tuple[str, ...] = ()
    """What was chosen where nothing was said."""
    labels: Labels | None = None
    """Names of axes, coordinates and the epoch of the times, where the snapshots came with any."""

    @property
    def power(self) -> int:
        """Singular values are in units of 2**power, once all fields are."""
        return self.parts[0].whole_power

    def of_unit(self, power: int) -> Problem:
        """The same in units of 2**power."""
        if all(part.whole_power == power for part in self.parts):
            return self
        return replace(self, parts=tuple(part.in_unit(power) for part in self.parts))

    def remeasured(self, misfit: OutOfRange, together: bool) -> Problem:
        """The same in the unit that numbers out of range asked for; the largest of all where the fields go `together`."""
        parts = tuple(replace(part, power=misfit.power, asked=misfit.power) if misfit.field in (None, part.name) else part
                      for part in self.parts)
        if together:
            top = max(part.asked for part in parts if part.asked is not None)
            parts = tuple(replace(part, power=top) for part in parts)
        return replace(self, parts=parts)

    @property
    def size(self) -> int:
        return sum(part.field.size for part in self.parts)

    @property
    def columns(self) -> list[slice]:
        """Where each field stands among the numbers of all."""
        edges = np.cumsum([0, *(part.field.size for part in self.parts)])
        return [slice(int(a), int(b)) for a, b in pairwise(edges)]

    @property
    def is_complex(self) -> bool:
        return any(part.field.dtype.kind == "c" for part in self.parts)

    @property
    def is_single(self) -> bool:
        """Whether every field is held in at most 4 bytes a number."""
        return all(part.field.dtype in (np.float32, np.complex64, np.float16) for part in self.parts)

    @property
    def sparse(self) -> bool:
        return any(part.sparse for part in self.parts)

    @property
    def of_one_source(self) -> bool:
        return len({id(part.source) for part in self.parts}) == 1

    @property
    def access(self) -> str:
        order = ["once", "rows", "tiles"]
        return order[min(order.index(part.source.access) for part in self.parts)]

    @property
    def nbytes(self) -> int:
        return (self.n or 0) * sum(part.field.nbytes for part in self.parts)

    @property
    def in_memory(self) -> bool:
        return all(isinstance(part.source, ArraySource) for part in self.parts)

    @property
    def roots(self) -> np.ndarray:
        """(n,) square roots of the statistical weights."""
        return np.ones(self.n or 0) if self.weights is None else np.sqrt(self.weights)

    @property
    def unit_vector(self) -> np.ndarray | None:
        """(n,) the direction in time that the mean takes up; None where the mean stays in."""
        return self.roots / math.sqrt(float((self.roots**2).sum())) if self.center == "mean" else None


def problem_of(x: Snapshots, snapshot_axis: int | None, inner_product: GivenProduct, scale: Scale, center: Center) -> Problem:
    """Check what came and put it into one form; nothing is read yet but a first snapshot where it is the centre."""
    sources = {name: (source if source.weights is None else in_ordinary_weights(source), key)
               for name, (source, key) in _sources(x, snapshot_axis).items()}
    first = next(iter(sources.values()))[0]
    lengths = {name: None if s.lengths is None else sum(s.lengths) for name, (s, _) in sources.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the fields differ in their number of snapshots: {lengths}")
    n = next(iter(lengths.values()))
    word = center if isinstance(center, str) else "given"
    if word not in ("mean", "first", "none", "given") or center is None:
        raise InputError(f'center is "mean", "first", "none" or a field to subtract; got {center!r}')
    if n == 0:
        raise InputError("pod needs at least 2 snapshots; got 0")
    if n == 1 and word in ("mean", "first"):
        raise InputError(f'pod needs at least 2 snapshots; got 1, which leaves nothing after center="{word}"')
    for name, (source, key) in sources.items():
        if source.fields[key].dtype.kind == "b" or source.fields[key].size == 0:
            raise InputError(f"field {name!r} holds {source.fields[key].dtype}; pod takes numbers")
    weights = _weights(first)
    products, masks, notes = products_of(sources, inner_product)
    scales = _scales(scale, list(sources))
    parts = []
    for name, (source, key) in sources.items():
        field = source.fields[key]
        product = products[name]
        roots, product_power = None, 0
        if product is not None and not is_sparse(product) and source.access != "once" and not (np.asarray(product) > 0).all():
            missing = np.isnan(snapshot_at(source, key, 0)) if field.dtype.kind in "fc" else np.zeros(field.size, bool)
            product, counts = without_missing(product, field.shape, missing)
            if counts is not None:
                masks[name] = counts if masks[name] is None else masks[name] & counts
        if product is not None and not is_sparse(product):
            weights_of = element_weights(product, field.shape)
            assert weights_of is not None
            roots = np.sqrt(weights_of)
        elif is_sparse(product):
            check_sparse(product, field)
            product_power = power_of_two(product.diagonal().max()) // 2
        shift = _shift(center, word, name, source, key, len(sources))
        parts.append(FieldProblem(name, key, source, field, product, roots, shift,
                                  scales.get(name, 1.0) if isinstance(scales, dict) else 1.0, masks[name],
                                  product_power=product_power))
    return Problem(tuple(parts), n, weights, times_of(first), first.time_unit, place_of(first), word,
                   scales if isinstance(scales, str) else None, notes, _labels(sources))


def _labels(sources: Mapping[str, tuple[DescribedSource, str]]) -> Labels | None:
    """The labels of all fields, by the names that they have here; None where they came with none."""
    labels: Labels | None = None
    for name, (source, key) in sources.items():
        one = source.labels
        if one is None:
            continue
        one = one.only([key]).renamed(key, name)
        labels = one if labels is None else replace(
            labels, dims={**labels.dims, **one.dims}, coords={**one.coords, **labels.coords},
            attributes={**labels.attributes, **one.attributes}, areas={**labels.areas, **one.areas})
    return labels


def _sources(x: Snapshots, snapshot_axis: int | None) -> dict[str, tuple[DescribedSource, str]]:
    """Name -> (source, its name there)."""
    labelled: Any = x if not isinstance(x, BaseSource) and is_labelled(x) and snapshot_axis is None else None
    if labelled is not None and (is_dataset(labelled) or labelled.ndim > 1):
        x = as_source(labelled)
    if isinstance(x, SnapshotSource) and not isinstance(x, Mapping):
        if snapshot_axis not in (None, 0):
            raise InputError("snapshot_axis is for arrays; a source has its snapshots in order of time")
        source: DescribedSource = x.stacked() if isinstance(x, ReplicaSet) else described(x)
        if not source.fields:
            raise InputError("the source has no fields")
        flow = [name for name, field in source.fields.items() if not bookkeeping(name, field.dtype)]
        return {name: (source, name) for name in flow or source.fields}
    if isinstance(x, Mapping):
        if not x:
            raise InputError('no fields: pass one array, or a mapping such as {"U": U, "p": p}')
        sources: dict[str, tuple[DescribedSource, str]] = {}
        for name, values in x.items():
            one = _sources(values, None) if isinstance(values, SnapshotSource) else {
                "values": (as_source(_turned(values, snapshot_axis)), "values")}
            if len(one) != 1:
                raise InputError(f"{name!r} is a source of several fields, {sorted(one)}; name one of them")
            sources[str(name)] = next(iter(one.values()))
        return sources
    return {"values": (as_source(_turned(x, snapshot_axis)), "values")}


def _turned(x: Any, axis: int | None) -> Any:
    unit = unit_of(x)
    if axis is None and (unit or is_table(x)) and np.ndim(x) > 1:
        return ArraySource.of(x, unit=unit)
    values = as_array(bare(x), "snapshots", tensors=True, named_axes=axis is not None)
    if values.ndim == 1 and axis is None:
        raise InputError(f"an array of shape {tuple(values.shape)} is one number a snapshot, or one snapshot: pass x[:, None] "
                         f"(or snapshot_axis=0) for {len(values)} snapshots of one number, x[None] for one of {len(values)}")
    if values.ndim == 1 and axis == 0:
        values = values[:, None]
    if values.ndim == 0:
        raise InputError("a single number is no set of snapshots; they lie along axis 0")
    if 0 in values.shape[1:] and axis in (None, 0):
        raise InputError(f"snapshots of shape {tuple(values.shape[1:])} hold nothing")
    if axis is None:
        return values
    if not isinstance(axis, int | np.integer) or not -values.ndim <= axis < values.ndim:
        raise InputError(f"snapshot_axis is an axis of the array, 0 to {values.ndim - 1}; got {axis!r}")
    return np.moveaxis(as_array(values, "snapshots"), axis, 0)


def times_of(source: DescribedSource) -> np.ndarray | None:
    """Times of the snapshots where the source has them at hand."""
    if isinstance(source, StackedSource):
        parts = [times_of(run) for run in source.runs] if source.joined else [None]
        return None if any(part is None for part in parts) else np.concatenate([p for p in parts if p is not None])
    if source.times is None:
        return None
    times = np.asarray(source.times, np.float64)
    return None if len(times) and np.isnan(times).all() else times


def runs_of(source: DescribedSource) -> tuple[tuple[int, ...], np.ndarray | None, str]:
    """Lengths of independent runs that are put one after the other, their times and the unit of those; () of a single run."""
    if not isinstance(source, StackedSource) or source.joined:
        return (), None, ""
    parts = [times_of(run) for run in source.runs]
    known = [part for part in parts if part is not None]
    times = np.concatenate(known) if len(known) == len(parts) else None
    return tuple(sum(run.lengths or ()) for run in source.runs), times, source.runs[0].time_unit


def _weights(source: DescribedSource) -> np.ndarray | None:
    if source.weights is None:
        return None
    weights = np.asarray(source.weights, np.float64)
    if weights.sum() <= 0:
        raise InputError("all statistical weights are zero")
    return weights * (len(weights) / weights.sum())


def sum_of_weights(source: DescribedSource) -> float:
    """That of the statistical weights of a source that has some, as it has them."""
    assert source.weights is not None
    return float(np.asarray(source.weights, np.float64).sum())


def _scales(scale: Scale, names: list[str]) -> dict[str, float] | str | None:
    """Given scales, or how they are to be found, or None."""
    if scale is None:
        return "std" if len(names) > 1 else None
    if isinstance(scale, str):
        if scale == "none":
            return None
        if scale not in ("std", "max"):
            raise InputError(f'scale is "std", "max", "none" or a mapping of field to number; got {scale!r}')
        return scale
    if not isinstance(scale, Mapping):
        raise InputError(f'scale is "std", "max", "none" or a mapping of field to number; got {scale!r}')
    for name, value in scale.items():
        if name not in names:
            raise UnknownFieldError(name, names)
        if not (isinstance(value, Real) and math.isfinite(value) and float(value) > 0):
            raise InputError(f"scale of {name!r} is a number above 0; got {value!r}")
    return {name: float(x) for name, x in scale.items()}


def _shift(center: Center, word: str, name: str, source: DescribedSource, key: str, count: int) -> np.ndarray | None:
    field = source.fields[key]
    if word == "mean":
        return None
    if word == "none":
        return np.zeros(field.size, np.result_type(field.dtype, np.float64))
    if word == "first":
        return first_snapshot(source, key)
    given = center
    if isinstance(center, Mapping):
        if name not in center:
            raise UnknownFieldError(name, center)
        given = center[name]
    elif count > 1:
        raise InputError("with several fields, center is a mapping of field to what is subtracted")
    given = in_unit(aligned(given, source.labels, key, "center"), field.unit, "center")
    values = as_array(given, "center", named_axes=True)
    if values.shape != field.shape or values.dtype.kind not in "iufc" or not np.isfinite(values).all():
        raise InputError(f"center has the shape of a snapshot of {name!r}, {field.shape}, and finite numbers; "
                         f"got {values.shape}")
    return values.astype(np.result_type(values.dtype, np.float64)).ravel()


def first_snapshot(source: DescribedSource, key: str) -> np.ndarray:
    """The first snapshot, flattened, in double precision."""
    if source.access == "once":
        raise InputError('center="first" reads the first snapshot beforehand, which a source read once does not allow')
    values = snapshot_at(source, key, 0)
    return values.astype(np.result_type(values.dtype, np.float64))


def snapshot_at(source: DescribedSource, key: str, index: int) -> np.ndarray:
    """A copy of one snapshot of a field, flattened."""
    for piece in source.window(index, index + 1).pieces([key], "time", False, 64 << 20):
        for block in piece.blocks():
            return np.array(as_array(block.fields[key], f"field {key!r}")[0]).reshape(-1)
    raise InputError("no snapshots")
