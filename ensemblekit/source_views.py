"""Sources that are another one seen otherwise: with other weights, some of its fields, or its numbers changed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.scaling import ldexp, power_of_two, scaled
from ensemblekit.source import Block, Cut, DescribedSource, Piece, ReplicaSet
from ensemblekit.source_clock import chosen_weights, time_weights
from ensemblekit.source_protocol import SourceView

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False, slots=True)
class PieceView:
    """A piece whose blocks are seen otherwise: all but them is the piece's own."""

    piece: Piece
    view: Callable[[Block], Block]

    @property
    def run(self) -> int:
        return self.piece.run

    @property
    def start(self) -> int:
        return self.piece.start

    @property
    def stop(self) -> int:
        return self.piece.stop

    @property
    def tile(self) -> slice:
        return self.piece.tile

    def prefetch(self) -> None:
        self.piece.prefetch()

    def blocks(self) -> Iterator[Block]:
        return map(self.view, self.piece.blocks())


@dataclass(frozen=True, eq=False, slots=True)
class Weighted:
    """The blocks of a piece with these weights, in the place of their own or times them."""

    weights: np.ndarray
    """Of the snapshots of the piece."""
    start: int
    """Its first snapshot."""
    times_own: bool = False

    @classmethod
    def piece(cls, piece: Piece, weights: np.ndarray, times_own: bool = False) -> PieceView:
        """The view of a piece, from the weights of all snapshots of its run."""
        return PieceView(piece, cls(weights[piece.start:piece.stop], piece.start, times_own))

    def __call__(self, block: Block) -> Block:
        a = block.start - self.start
        weights = self.weights[a:a + len(block)]
        if self.times_own and block.weights is not None:
            weights = weights * block.weights
        return Block(block.fields, block.start, block.tile, weights, block.times)


def weighted_by_time(source: DescribedSource) -> DescribedSource:
    """The same snapshots, each weighted by the time it stands for (times its own weight, where it has one)."""
    if isinstance(source, ReplicaSet):
        return ReplicaSet(tuple(map(weighted_by_time, source.runs)))
    return Reweighted(source, time_weights(source.times))


def in_ordinary_weights(source: DescribedSource) -> DescribedSource:
    """The same snapshots, weights of extraordinary size over one power of two for all runs, so that their squares exist."""
    runs = source.runs if isinstance(source, ReplicaSet) else (source,)
    held = [run.weights for run in runs]
    known = [np.asarray(one, np.float64) for one in held if one is not None]
    exponent = max((power_of_two(one) for one in known if len(one)), default=0)
    if not exponent or len(known) < len(runs):      # beside runs that count 1 each, it is they that would vanish
        return source
    factor = float(ldexp(np.ones(()), -exponent))
    views = tuple(Reweighted(run, np.full(sum(run.lengths or ()), factor)) for run in runs)
    return ReplicaSet(views) if isinstance(source, ReplicaSet) else views[0]


def weighted_by(source: DescribedSource, weights: ArrayLike | None, log_weights: ArrayLike | None) -> DescribedSource:
    """The snapshots of one run with these weights, (n,), or those of these logarithms; "time": see :func:`weighted_by_time`.

    Raises InputError where they do not fit, or where the source carries weights of its own.
    """
    if isinstance(weights, str):
        if weights != "time" or log_weights is not None:
            raise InputError(f'weights are (n,) numbers, or "time"; got {weights!r}')
        return weighted_by_time(source)
    if source.lengths is None or len(source.lengths) != 1:
        raise InputError("weights= and log_weights= go with one run of known length; give each run its own, "
                         "ek.ArraySource.of(x, weights=)")
    if source.weights is not None:
        raise InputError("the source carries weights of its own, and weights= or log_weights= would be others")
    chosen = chosen_weights(weights, log_weights, source.lengths[0])
    assert chosen is not None
    return Reweighted(source, scaled(chosen)[0])


@dataclass(frozen=True, eq=False)
class Reweighted(SourceView):
    """Another source of one run, whose snapshots have these weights (times their own)."""

    factors: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Of all snapshots, (n,)."""
        own = self.source.weights
        return self.factors if own is None else self.factors * own

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> Reweighted:
        return Reweighted(self.source.window(start, stop, step), self.factors[start:stop:step])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for piece in self.source.pieces(names, cut, tiled, limit):
            yield Weighted.piece(piece, self.factors, times_own=True)
