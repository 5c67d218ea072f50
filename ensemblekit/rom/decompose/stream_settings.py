"""What a stream of snapshots is decomposed by: rule, inner product, center, scales and what is kept between blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.intake import as_array
from ensemblekit.rom.decompose.inner_products import products_of
from ensemblekit.rom.product import InnerProduct, element_weights, is_sparse, without_missing
from ensemblekit.rom.rank import Rule, as_bytes
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import DescribedSource, Field
from ensemblekit.store.checksums import digest_of

Fields: TypeAlias = Mapping[str, Field]
Digests: TypeAlias = Mapping[str, list[str | None]]
"""Field -> checksums of its weights and of the numbers left out; None for none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamSettings:
    """The settings of :class:`~ensemblekit.rom.decompose.streaming.IncrementalPOD`, checked."""

    rule: Rule
    inner_product: InnerProduct | Mapping[str, InnerProduct] = None
    """One for every field, or a mapping of field to its own."""
    center: str | ArrayLike | Mapping[str, ArrayLike] = "mean"
    keep: int | None = None
    """Directions kept between blocks; None: as many as the rule wants, within `memory`."""
    block: int = 64
    """Snapshots a block."""
    scale: Mapping[str, float] | None = None
    dtype: np.dtype | None = None
    """Of the modes, where it was asked for."""
    memory: int = 2 << 30
    engine: Engine | None = None
    masks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Field -> (size,) bool, False for numbers to leave out though they are finite."""
    of_mesh: bool = False
    """Whether the inner product is that of a mesh."""

    @classmethod
    def of(cls, rule: Rule, inner_product: InnerProduct | str | Mapping[str, InnerProduct],
           center: str | ArrayLike | Mapping[str, ArrayLike], *, keep: int | None, block: int | None,
           scale: Mapping[str, float] | None, dtype: DTypeLike | None, memory_limit: float | str,
           engine: Engine | None, masks: Mapping[str, np.ndarray] | None = None) -> StreamSettings:
        """From the arguments of IncrementalPOD.

        Raises:
            InputError: one of them cannot be used.
        """
        if isinstance(center, str) and center not in ("mean", "first", "none"):
            raise InputError(f'center is "mean", "first", "none" or a field to subtract; got {center!r}')
        if isinstance(inner_product, str):
            if inner_product != "auto":
                raise InputError(f"inner_product is None or weights; got {inner_product!r}")
            inner_product = None
        if is_sparse(inner_product):
            raise InputError('a sparse mass matrix goes with rom.pod(..., method="gram")')
        for name, value in {"keep": keep, "block": block}.items():
            if value is not None and (not isinstance(value, int | np.integer) or value < 1):
                raise InputError(f"{name} is a whole number above 0; got {value!r}")
        if keep is not None and rule.rank is not None and keep < rule.rank:
            raise InputError(f"keep={keep} is less than rank={rule.rank}")
        try:
            asked = None if dtype is None else np.dtype(dtype)
        except TypeError as error:
            raise InputError(f'dtype is "f4" or "f8"; got {dtype!r}') from error
        kept = int(keep) if keep is not None else (2 * int(rule.rank) + 10 if rule.rank is not None else None)
        return cls(rule=rule, inner_product=inner_product, center=center, keep=kept,
                   block=int(block) if block is not None else max(8, kept or 64), scale=scale, dtype=asked,
                   memory=as_bytes(memory_limit), engine=engine, masks=masks or {})

    @property
    def center_name(self) -> str:
        """ "mean", "first", "none", or "given" for a field."""
        return self.center if isinstance(self.center, str) else "given"

    @property
    def asked_scale(self) -> dict[str, float] | None:
        return None if not self.scale else {str(name): float(x) for name, x in self.scale.items()}

    @property
    def rule_numbers(self) -> list[float | int | None]:
        """Of the rule, as they are noted in a state."""
        return [self.rule.rank, self.rule.energy, self.rule.tolerance]

    def product_of(self, name: str) -> InnerProduct:
        return self.inner_product.get(name) if isinstance(self.inner_product, Mapping) else self.inner_product

    def used(self, fields: Fields) -> np.ndarray:
        """(size,) bool, False for numbers that were said beforehand to be left out."""
        return np.concatenate([np.ones(field.size, bool) if name not in self.masks else self.masks[name]
                               for name, field in fields.items()])

    def with_mesh_weights(self, source: DescribedSource, names: Iterable[str]) -> tuple[StreamSettings, tuple[str, ...]]:
        """The same with the volumes of the mesh of a source as inner product, and what that was, in words."""
        products, masks, notes = products_of({name: (source, name) for name in names}, "auto")
        some = any(p is not None for p in products.values())
        return replace(self, inner_product=products if some else None, of_mesh=True,
                       masks={name: mask for name, mask in masks.items() if mask is not None}), notes

    def without_weightless(self, first: Mapping[str, np.ndarray], fields: Fields) -> StreamSettings:
        """The same without the numbers of weight 0 or NaN, where they are missing in the first snapshot."""
        products: dict[str, InnerProduct] = dict.fromkeys(fields)
        masks = dict(self.masks)
        for name, field in fields.items():
            product = self.product_of(name)
            missing = np.isnan(first[name]).ravel() if field.dtype.kind in "fc" else np.zeros(field.size, bool)
            if product is None or is_sparse(product):
                continue
            products[name], counts = without_missing(product, field.shape, missing)
            if counts is not None:
                masks[name] = masks.get(name, True) & counts
        if len(masks) > len(self.masks) or any(masks[name] is not self.masks[name] for name in masks):
            return replace(self, inner_product=products, masks=masks)
        return self

    def check_names(self, fields: Fields) -> None:
        """Refuse weights and scales of fields that are not there: they would be passed over without a word."""
        for given in (self.inner_product, self.scale):
            for name in given if isinstance(given, Mapping) else ():
                if name not in fields and not self.of_mesh:
                    raise UnknownFieldError(name, fields)
        if self.of_mesh:
            for name in fields:
                if isinstance(self.inner_product, Mapping) and name not in self.inner_product:
                    raise InputError(f"use_mesh_weights was called for {', '.join(map(repr, self.inner_product))}, and the "
                                     f"snapshots are of field {name!r}; name the same fields in both")

    def digests(self, fields: Fields) -> dict[str, list[str | None]]:
        """Checksums of the weights, and of the numbers left out, that these settings give each field."""
        return {name: self._digest(name, field) for name, field in fields.items()}

    def _digest(self, name: str, field: Field) -> list[str | None]:
        weights, mask = element_weights(self.product_of(name), field.shape), self.masks.get(name)
        return [None if weights is None or (weights == 1).all() else f"{digest_of(weights):016x}",
                None if mask is None or mask.all() else f"{digest_of(np.asarray(mask, bool)):016x}"]

    def mode_dtype(self, dtype: np.dtype) -> np.dtype:
        """That of the modes of snapshots of a type."""
        if self.dtype is not None:
            return self.dtype
        if dtype in (np.float32, np.complex64):
            return np.dtype(dtype)
        return np.dtype("c16" if dtype.kind == "c" else "f8")

    def given_center(self, fields: Fields, dtype: DTypeLike) -> np.ndarray:
        """(size,) what the user said to subtract."""
        given = self.center if isinstance(self.center, Mapping) else {next(iter(fields)): self.center}
        for name in fields:
            if name not in given:
                raise UnknownFieldError(name, given)
        shift = np.concatenate([as_array(given[name], "center", dtype=dtype, named_axes=True).reshape(-1) for name in fields])
        if shift.shape != (sum(field.size for field in fields.values()),):
            raise InputError(f"center has the shape of a snapshot; got {np.shape(shift)}")
        return shift

    def scales(self, fields: Fields, rows: np.ndarray) -> dict[str, float]:
        """What the fields of a first block (m, size) are divided by; none of a single field that nobody gave one for."""
        if len(fields) == 1 and not self.scale:
            return {}
        given, scales, start = self.scale or {}, {}, 0
        for name, field in fields.items():
            scales[name] = float(given[name]) if name in given else _std(rows[:, start:start + field.size])
            start += field.size
        return scales

    def factors(self, fields: Fields, scales: Mapping[str, float], mask: np.ndarray | None, power: int) -> np.ndarray | None:
        """(size,) what columns are multiplied with: root of the weight by the scale, in units of 2**power, 0 where masked;
        None: 1."""
        factors, plain = [], True
        for name, field in fields.items():
            weights, scale = element_weights(self.product_of(name), field.shape), scales.get(name, 1.0)
            plain = plain and weights is None and scale == 1
            factors.append(np.full(field.size, 1 / scale) if weights is None else np.sqrt(weights) / scale)
        if plain and mask is None and not power:
            return None
        joined = ldexp(np.concatenate(factors), -power)
        return joined if mask is None else np.where(mask, joined, 0.0)


def _std(rows: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        off = np.abs(rows - np.nanmean(rows, axis=0, dtype=np.float64))
        power = power_of_two(off)
        return ldexp(float(np.sqrt(np.nanmean(ldexp(off, -power) ** 2))), power) or 1.0


def check_same_weights(before: Digests, now: Digests) -> None:
    """Raise InputError where a state was made with other weights, or without other numbers, than there are now."""
    for name, (weights, mask) in before.items():
        new_weights, new_mask = now[name]
        if weights != new_weights:
            how = ("without an inner product, and this has one" if weights is None else
                   "with an inner product, and this has none" if new_weights is None else "with another inner product")
            raise InputError(f"the state was made {how} for field {name!r}: coefficients of both would be mixed. Go on "
                             "with the same weights (inner_product=, or use_mesh_weights() for those of a mesh), or begin "
                             "anew with another path")
        if mask != new_mask:
            raise InputError(f"the state leaves out other numbers of field {name!r} than this; go on with the same mesh, "
                             "or begin anew with another path")
