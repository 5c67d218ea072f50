"""One compact file from a store, compressed or not, by temporary name and rename."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError, StoreError
from ensemblekit.store.checksums import checksums
from ensemblekit.store.creation import View
from ensemblekit.store.names import segments_of
from ensemblekit.store.schema import MAIN, META, Column, Compression, Schema
from ensemblekit.store.segments import new_segment

if TYPE_CHECKING:
    from ensemblekit.store.store import Store

AT_ONCE = 64 << 20      # bytes held in memory while copying
MESH = {"mesh/points", "mesh/connectivity", "mesh/offsets", "mesh/types"}


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Floats with `bits` bits of significand kept, round to nearest even; relative error at most 2**-(bits + 1)."""
    kinds = {2: ("u2", 10), 4: ("u4", 23), 8: ("u8", 52)}
    if values.dtype.kind == "c":
        return rounded(values.view(values.real.dtype), bits).view(values.dtype)
    if values.dtype.kind != "f" or values.dtype.itemsize not in kinds:
        return values
    kind, total = kinds[values.dtype.itemsize]
    drop = total - bits
    if drop <= 0:
        return values
    u = values.view(kind)
    one = u.dtype.type(1)
    half = u.dtype.type((1 << (drop - 1)) - 1)
    kept = (u + half + ((u >> u.dtype.type(drop)) & one)) & ~u.dtype.type((1 << drop) - 1)
    out = kept.view(values.dtype)
    bad = ~np.isfinite(values) | ~np.isfinite(out)      # NaN keeps its bits; the largest numbers do not round to infinity
    return np.where(bad, values, out)


def seal(store: Store, path: str | os.PathLike[str] | None, compression: Compression) -> Store:
    """See :meth:`Store.seal`."""
    if store._schema is None:
        raise StoreError(f"{store.path} was not written by ensemblekit; ingest it into a store to seal it")
    bits = _bits(compression)
    target = os.fspath(path) if path is not None else store.path
    if path is None or store.writable:
        store._flush()      # and see that its files are there
    if path is not None and os.path.lexists(target):
        raise StoreError(f"{target} is there already; choose another name or delete it first")
    if store["position" if "position" in store else next(iter(store))].field.kind == "position" and not str(
            target).endswith(".h5md"):
        raise InputError(f"a file of particle positions ends in .h5md, as MDAnalysis goes by the suffix; got {target!r}")
    counts = {clock: len(store.clock(clock)) for clock in store.clocks}
    schema = store._schema.at(0, dict.fromkeys(counts, 0), counts, sealed=True,
                              compression=list(compression) if isinstance(compression, tuple) else compression)
    old = segments_of(store.path)
    constants = dict(store.constants)
    view: View | None = None
    if MESH <= set(constants) and MAIN in counts:
        from ensemblekit.store.vtkhdf import sealed_view

        view = partial(sealed_view, schema=schema, constants=constants, times=store.clock().stamps)
    new_segment(target, schema, store.durability == "disk", lambda clock: _rows(store, schema, clock, bits),
                _filters(compression, plain=view is not None), over=path is None, constants=constants, view=view)
    if path is None:
        for extra in old[:0:-1]:        # the sealed file holds everything: until they are gone, they are ignored
            os.unlink(extra)
        store._end()        # its first file is another one now, as it should be
    return type(store).open(target)


def _rows(store: Store, schema: Schema, clock: str, bits: int | None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """All rows of a clock, a few megabytes at a time, as they stand in the sealed file."""
    names = store.clocks[clock]
    n = len(store.clock(clock))
    paths = [column.path for column in schema.columns(clock, max(1, n))]
    width = sum(store.all_fields[name].nbytes for name in names) + 8 * len(paths)
    step = max(1, AT_ONCE // width)
    step = 1 << (step.bit_length() - 1)
    for a in range(0, n, step):
        source = store.clock(clock).window(a, a + step)
        values = [store[name][a:a + step] for name in names]
        if bits is not None:
            values = [rounded(v, bits) for v in values]
        weights = source.weights
        meta = np.empty(len(source), META)
        meta["step"], meta["time"] = source.steps, source.stamps
        meta["weight"] = 1.0 if weights is None else weights
        values = schema.packed(clock, values, len(source))
        rows = [*values, meta["step"], meta["time"], meta["weight"], checksums(values, meta, len(source))]
        yield a, dict(zip(paths, rows, strict=True))


def _bits(compression: Compression) -> int | None:
    """Bits of the significand to keep; None: all."""
    if compression in (None, "lossless", "zstd"):
        return None
    if isinstance(compression, tuple | list) and list(compression[:1]) == ["round"] and (
            len(compression) == 2 or (len(compression) == 3 and compression[2] == "zstd")):
        wanted = compression[1]
        if isinstance(wanted, int) and not isinstance(wanted, bool) and 1 <= wanted <= 52:
            return wanted
        if isinstance(wanted, float) and 0 < wanted < 0.5:
            return max(1, math.ceil(-math.log2(wanted)) - 1)        # 2**-(bits + 1) is at most the error wanted
    raise InputError('compression is None, "lossless", "zstd" or ("round", k) with k of 1 to 52 bits, or a relative error '
                     f'below 0.5 (("round", k, "zstd") packs that with zstd); got {compression!r}')


def _filters(compression: Compression, plain: bool = False) -> Any:
    """The filters of a compressed file: shuffle and deflate, which every HDF5 library has, or zstd where that was asked for.

    `plain`: never the latter, for ParaView. Raises MissingExtraError.
    """
    if compression is None:
        return None
    if plain or (compression != "zstd" and "zstd" not in compression[2:]):
        return lambda column: {"shuffle": True, "compression": "gzip", "compression_opts": 4}
    try:
        import hdf5plugin
    except ImportError as error:
        raise MissingExtraError("hdf5plugin", "compress", 'compression="zstd"') from error

    def filters(column: Column) -> dict[str, Any]:
        level = 5 if column.dtype.kind in "fc" else 3
        return dict(hdf5plugin.Blosc2(cname="zstd", clevel=level, filters=hdf5plugin.Blosc2.SHUFFLE))

    return filters
