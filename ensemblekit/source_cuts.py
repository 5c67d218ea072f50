"""How runs are cut into pieces: edges in time and of the item, set by the data alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ensemblekit.errors import InputError

WHOLE = slice(None)
"""The tile of a block whose items are not cut."""
MIN_PIECES = 64
PIECE_BYTES = 4 << 30
TILE_BYTES = 128 << 10
REGION_BYTES = 1 << 30
STATE_ROWS = 256


@dataclass(frozen=True, slots=True)
class Cuts:
    """How a run is cut: edges in time (rising, from 0 to n) and edges of the flattened item (None: not cut)."""

    rows: tuple[int, ...]
    tiles: tuple[int, ...] | None

    def __iter__(self) -> Iterator[tuple[int, int, slice]]:
        for start, stop in zip(self.rows, self.rows[1:], strict=False):
            if self.tiles is None:
                yield start, stop, WHOLE
            else:
                for a, b in zip(self.tiles, self.tiles[1:], strict=False):
                    yield start, stop, slice(a, b)


def time_cuts(n: int, size: int, itemsize: int, tiled: bool, limit: int) -> Cuts:
    """Cut n snapshots of `size` numbers into pieces; by the data alone, so that every engine gives the same bits.

    Untiled: max(64, bytes / 4 GiB) pieces at the most and half as many at the least, each a power of two snapshots
    long, so that blocking bins never straddle two pieces. Tiled, for reducers that can be set beside each other: at
    least 256 snapshots a piece, as merging two states costs as much as reading a dozen snapshots, then tiles of the
    item so that the number of pieces stays about 64; never more than 1 GiB a piece in time, so that the tiles of
    one piece are read from the page cache.
    """
    if n == 0:
        return Cuts((0,), None)
    nbytes = size * itemsize
    total = n * nbytes
    if not tiled:
        count = max(MIN_PIECES, total // PIECE_BYTES)
        rows = 1 << (-(-n // count) - 1).bit_length()
        return Cuts((*range(0, n, rows), n), None)
    count = max(1, min(MIN_PIECES, n // STATE_ROWS), total // REGION_BYTES)
    rows = 1 << (-(-n // count) - 1).bit_length()
    in_time = -(-n // rows)
    tiles = max(1, min(MIN_PIECES // in_time, nbytes // TILE_BYTES), -(-nbytes // max(limit, 1)))
    if tiles == 1:
        return Cuts((*range(0, n, rows), n), None)
    return Cuts((*range(0, n, rows), n), space_edges(size, -(-size // tiles)))


def space_cuts(n: int, size: int, itemsize: int, limit: int) -> Cuts:
    """All n snapshots, tile by tile of at most `limit` bytes."""
    if n == 0:
        return Cuts((0,), None)
    return Cuts((0, n), space_edges(size, max(1, limit // (n * itemsize))))


def space_edges(size: int, width: int) -> tuple[int, ...]:
    """Edges of tiles `width` wide (rounded up to 16 numbers, a cache line of float32, where there is room)."""
    width = min(size, -(-width // 16) * 16) if width > 16 else width
    return (*range(0, size, width), size)


def check_window(start: int, stop: int | None, step: int) -> None:
    """Refuse what python slices allow and time does not: steps of zero or backwards."""
    if step < 1:
        raise InputError(f"window(step=) is a whole number above 0, as time runs forward; got {step!r}")
