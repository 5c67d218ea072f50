"""Sources as archives code them: one field at a time, its numbers scaled, times the roots of their weights, without gaps."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.decompose.inner_products import products_of
from ensemblekit.rom.decompose.problem import snapshot_at
from ensemblekit.rom.product import GivenProduct, element_weights, is_sparse, without_missing
from ensemblekit.scaling import ldexp
from ensemblekit.source import Block, Cut, DescribedSource, Field, Piece
from ensemblekit.source_cuts import WHOLE
from ensemblekit.source_protocol import SourceView
from ensemblekit.source_views import PieceView

JOB_BYTES = 32 << 20
RESIDUAL_CHUNK = 1 << 18
LEVEL = 6
LEAST = 1e-15
"""Of the roots of weights, over the largest: what weighs less is kept as if it weighed this."""
logger = logging.getLogger("ensemblekit")


@dataclass(frozen=True, eq=False)
class SingleField(SourceView):
    """One field of a source, every snapshot and every number counted alike: without weights and mesh."""

    name: str

    @property
    def fields(self) -> Mapping[str, Field]:
        return {self.name: self.source.fields[self.name]}

    @property
    def times(self) -> None:
        return None

    @property
    def weights(self) -> None:
        return None

    @property
    def mesh(self) -> None:
        return None

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> SingleField:
        return SingleField(self.source.window(start, stop, step), self.name)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for piece in self.source.pieces(names, cut, tiled, limit):
            yield PieceView(piece, _unweighted)


def _unweighted(block: Block) -> Block:
    """The block with snapshots that count alike."""
    return Block(block.fields, block.start, block.tile, None, block.times)


def run_length(source: DescribedSource) -> int:
    """Snapshots of a source that holds one run of known length."""
    (n,) = source.lengths or (0,)
    return n


def roots_of_weights(source: DescribedSource, inner_product: GivenProduct, norm: str) -> dict[str, Any]:
    """Field -> (size,) roots of the weights of its numbers over the largest, as they are kept; None: all alike."""
    if inner_product is None:
        return dict.fromkeys(source.fields)
    products, _, notes = products_of({name: (source, name) for name in source.fields}, inner_product)
    for note in notes:
        logger.info(note)
    roots: dict[str, Any] = {}
    for name, one in source.fields.items():
        product = products[name]
        if is_sparse(product):
            raise InputError("compress weighs each number by itself: inner_product is weights, and no sparse mass matrix")
        if product is not None and norm == "max":
            raise InputError('norm="max" is the largest error of any number, in which none weighs more than another: leave '
                             'inner_product away, or take norm="l2"')
        if product is not None and not (np.asarray(product) > 0).all():
            product, _ = without_missing(product, one.shape, np.isnan(snapshot_at(source, name, 0)).ravel())
        each = element_weights(product, one.shape)
        roots[name] = each if each is None else np.maximum(np.sqrt(each / each.max()), LEAST).astype(np.float32)
    return roots


def without_gaps(source: SingleField, name: str) -> tuple[Any, Gaps | None]:
    """A field with its mean wherever it is NaN in some snapshots, which adds nothing to a fluctuation, and where that is; the
    field itself, and None, where there are no such gaps. Two reads."""
    one, n = source.fields[name], run_length(source)
    total, count = np.zeros(one.size), np.zeros(one.size, np.int64)
    for x in _snapshots(source, name):
        there = ~np.isnan(x)
        count += there.sum(0)
        with np.errstate(invalid="ignore"):     # infinity is refused later, by name
            total += (np.where(there, x, 0.0) / n).sum(0, dtype=np.float64)     # sums of the largest numbers overflow
    some = (count > 0) & (count < n)
    if not some.any():
        return source, None
    with np.errstate(invalid="ignore"):
        mean = np.where(count > 0, total * (n / np.maximum(count, 1)), np.nan)
    rows = max(1, min(64, RESIDUAL_CHUNK // max(1, -(-one.size // 8))))
    chunks, held = [], np.empty((0, one.size), bool)
    for x in _snapshots(source, name):
        held = np.concatenate([held, np.isnan(x) & some])
        while len(held) >= rows:
            chunks.append(zlib.compress(np.packbits(held[:rows], axis=1).tobytes(), LEVEL))
            held = held[rows:]
    if len(held):
        last = np.zeros((rows, one.size), bool)
        last[:len(held)] = held
        chunks.append(zlib.compress(np.packbits(last, axis=1).tobytes(), LEVEL))
    return FilledField(source, name, mean), Gaps(rows, chunks)


def _snapshots(source: DescribedSource, name: str) -> Iterator[np.ndarray]:
    """(m, size) of consecutive snapshots, one read."""
    for piece in source.pieces([name], "time", False, JOB_BYTES):
        for block in piece.blocks():
            yield np.asarray(block.fields[name]).reshape(len(block.fields[name]), -1)


class Gaps(NamedTuple):
    """Where numbers are NaN that are there in other snapshots: bits of so many rows each, deflated."""

    rows: int
    chunks: list[bytes]


@dataclass(frozen=True, eq=False)
class FilledField(SourceView):
    """One field with the mean of each number where it is NaN."""

    name: str
    mean: np.ndarray

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> FilledField:
        return FilledField(self.source.window(start, stop, step), self.name, self.mean)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for piece in self.source.pieces(names, cut, tiled, limit):
            yield PieceView(piece, _Fill(self.mean))


@dataclass(frozen=True, slots=True)
class _Fill:
    """A block with the mean of each number where it is NaN."""

    mean: np.ndarray

    def __call__(self, block: Block) -> Block:
        mean = self.mean if block.tile == WHOLE else self.mean[block.tile]
        fields = {}
        for name, x in block.fields.items():
            flat = np.asarray(x).reshape(len(x), -1)
            fields[name] = np.where(np.isnan(flat), mean.astype(flat.dtype), flat).reshape(np.shape(x))
        return Block(fields, block.start, block.tile, block.weights, block.times)


@dataclass(frozen=True, eq=False)
class WeighedField(SourceView):
    """One field of a source, each number times the root of its weight: its sums of squares are those of the inner product."""

    name: str
    roots: np.ndarray

    @property
    def fields(self) -> Mapping[str, Field]:
        return {self.name: replace(self.source.fields[self.name], dtype=np.dtype("f8"))}

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> WeighedField:
        return WeighedField(self.source.window(start, stop, step), self.name, self.roots)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for piece in self.source.pieces(names, cut, tiled, limit):
            yield PieceView(piece, _Times(self.roots))


@dataclass(frozen=True, slots=True)
class _Times:
    """A block's numbers times the roots of their weights."""

    roots: np.ndarray

    def __call__(self, block: Block) -> Block:
        roots = (self.roots if block.tile == WHOLE else self.roots[block.tile]).astype(np.float64)
        fields = {name: (np.asarray(x).reshape(len(x), -1) * roots).reshape(np.shape(x)) for name, x in block.fields.items()}
        return Block(fields, block.start, block.tile, block.weights, block.times)


@dataclass(frozen=True, eq=False)
class ScaledField(SourceView):
    """One field of a source divided by a power of two, so that sums of its squares are ordinary numbers."""

    exponent: int

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> ScaledField:
        return ScaledField(self.source.window(start, stop, step), self.exponent)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for piece in self.source.pieces(names, cut, tiled, limit):
            yield PieceView(piece, _Divided(self.exponent))


@dataclass(frozen=True, slots=True)
class _Divided:
    """A block's numbers divided by a power of two."""

    exponent: int

    def __call__(self, block: Block) -> Block:
        fields = {name: ldexp(np.asarray(x), -self.exponent) for name, x in block.fields.items()}
        return Block(fields, block.start, block.tile, block.weights, block.times)
