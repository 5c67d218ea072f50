"""One compact file from a store, compressed or not, by temporary name and rename."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblekit.errors import InputError, StoreError
from ensemblekit.store.schema import Column
from ensemblekit.store.segments import checksums, new_segment, segments_of

if TYPE_CHECKING:
    from ensemblekit.store.store import Store


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


def seal(store: Store, path: str | os.PathLike[str] | None, compression: Any) -> Store:
    """See :meth:`Store.seal`."""
    if store._schema is None:
        raise StoreError(f"{store.path} was not written by ensemblekit; ingest it into a store to seal it")
    bits = _bits(compression)
    target = os.fspath(path) if path is not None else store.path
    if path is not None and os.path.exists(target):
        raise StoreError(f"{target} is there already; choose another name or delete it first")
    if path is None:
        store._check_writing(next(iter(store.clocks)))
        if store._pending:
            store.flush()
    rows: dict[str, dict[str, np.ndarray]] = {}
    capacity = {}
    for clock, names in store.clocks.items():
        source = store.clock(clock)
        n = capacity[clock] = len(source)
        columns = store._schema.columns(clock, max(1, n))
        values = [store[name][:] for name in names]
        if bits is not None:
            values = [rounded(v, bits) for v in values]
        meta = np.empty(n, np.dtype([("step", "<i8"), ("time", "<f8"), ("weight", "<f8")]))
        weights = source.weights
        meta["step"], meta["time"] = source.steps, source.times
        meta["weight"] = 1.0 if weights is None else weights
        sums = checksums(values, meta, n) if n else np.empty((0, len(names) + 1), "<u8")
        rows[clock] = dict(zip([c.path for c in columns], [*values, meta["step"], meta["time"], meta["weight"], sums],
                               strict=True))
    old = segments_of(store.path)
    schema = store._schema.at(0, {c: 0 for c in capacity}, capacity)
    if path is None and store._segment is not None:
        store._segment.close()
        store._segment = None
    new_segment(target, schema, store.durability == "disk", rows=rows, filters=_filters(compression))
    if path is None:
        for extra in old[1:]:       # the sealed file says it has everything from row 0: leftovers are ignored, then gone
            os.unlink(extra)
        store._pending.clear()
        store.close()
    return type(store).open(target)


def _bits(compression: Any) -> int | None:
    if compression in (None, "lossless"):
        return None
    if isinstance(compression, tuple | list) and len(compression) == 2 and compression[0] == "round" and isinstance(
            compression[1], int) and 1 <= compression[1] <= 52:
        return compression[1]
    raise InputError(f'compression is None, "lossless" or ("round", bits) with 1 to 52 bits; got {compression!r}')


def _filters(compression: Any) -> Any:
    if compression is None:
        return lambda column: {}

    def filters(column: Column) -> dict[str, Any]:
        import hdf5plugin

        if column.dtype.kind in "fc":
            return dict(hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE))
        return dict(hdf5plugin.Blosc2(cname="zstd", clevel=3, filters=hdf5plugin.Blosc2.SHUFFLE))

    return filters
