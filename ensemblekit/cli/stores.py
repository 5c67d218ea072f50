"""``ensemblekit pack`` and ``merge``: one compact file from a store, and one store from the files of a run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ensemblekit.cli.console import size
from ensemblekit.cli.info import expanded, looked_at
from ensemblekit.cli.output import Json, Output, Overwrite, written
from ensemblekit.errors import InputError
from ensemblekit.provenance import Provenance

if TYPE_CHECKING:
    from ensemblekit.store.store import Store

    Filter = Literal["lossless", "zstd"] | tuple[Literal["round"], float] | None

AT_ONCE = 64 << 20
Compression = Annotated[str, typer.Option("--compression", metavar="none|lossless|zstd|BITS|ERROR", help="BITS of the "
                                          "significand of floats are kept (1 to 52), or as many as a relative ERROR asks for.")]


def pack(
    store: Annotated[str, typer.Argument(metavar="STORE", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", show_default=False,
                                             help="Another file; by default it takes the place of the store.")] = None,
    compression: Compression = "lossless", overwrite: Overwrite = False, as_json: Json = None,
) -> None:
    """Seal a store: one compact file, compressed, with what was allocated ahead left out. No more can be appended to it.

    Values that are rounded cannot be had back, so that asks for -o, or for --overwrite.
    """
    import ensemblekit as ek

    how = compression_of(compression)
    if isinstance(how, tuple) and out is None and not overwrite:
        raise InputError("rounding changes the values of the store for good: -o names another file for them, --overwrite "
                         "replaces the store")
    output = Output(as_json, inputs=(store,))
    before = on_disk(store)
    with ek.open(store, "a" if out is None else "r") as opened:
        if out is not None and overwrite and os.path.lexists(out):
            sealed = replaced(opened, out, how)
        else:
            sealed = opened.seal(out, how)
    after = on_disk(sealed.path)
    target = store if out is None else str(out)
    output.say(f"{target}: {len(sealed)} snapshots, {size(before)} before, {size(after)} now")
    output.write({"store": target, "snapshots": len(sealed), "bytes_before": before, "bytes": after})
    written(target)


def replaced(store: Store, out: Path, how: Filter) -> Store:
    """The sealed file in the place of one that is there."""
    import ensemblekit as ek

    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=".ensemblekit-") as folder:
        sealed = store.seal(os.path.join(folder, out.name), how)
        os.replace(sealed.path, out.resolve())
    return ek.open(out)


def compression_of(word: str) -> Filter:
    """What Store.seal takes."""
    if word == "none":
        return None
    if word == "lossless":
        return "lossless"
    if word == "zstd":
        return "zstd"
    try:
        return ("round", int(word) if word.isdecimal() else float(word))
    except ValueError:
        raise InputError("--compression is none, lossless, zstd, a number of bits, or a relative error such as 1e-4; got "
                         f"{word!r}") from None


def on_disk(path: str | Path) -> int:
    """Bytes of a store, its further files included."""
    from ensemblekit.cli.info import sizes
    from ensemblekit.store.names import segments_of

    return sum(min(sizes(Path(part))) for part in segments_of(os.fspath(path)))


def merge(
    files: Annotated[list[str], typer.Argument(metavar="STORE...", show_default=False,
                                               help="Stores of one run, in any order; quoted patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The store to write.", show_default=False)],
    run: Annotated[bool, typer.Option("--run", help="They are parts of one run, also where the files do not say so.")] = False,
    overwrite: Overwrite = False, as_json: Json = None,
) -> None:
    """One store from several of one run: in the order of their steps, snapshots that are there twice once."""
    import ensemblekit as ek
    from ensemblekit.source import ReplicaSet, StackedSource
    from ensemblekit.store.store import Store
    from ensemblekit.store.stored import StoredSource

    paths = expanded(files)
    for path in paths:
        kind = looked_at(path)[0]["kind"] if os.path.isfile(path) else "store"
        if kind == "archive":
            raise InputError(f"{path} is an archive, whose modes are those of its own snapshots alone: turn each into a store "
                             "(ensemblekit rom decompress), merge those, and compress the whole")
        if kind == "basis":
            raise InputError(f"{path} is a basis, whose modes are those of its own snapshots alone: merge the stores that they "
                             "are from, and decompose the whole (ensemblekit rom pod)")
    if len(paths) < 2:
        raise InputError(f"merge joins several stores; got {', '.join(paths)}")
    stores = [ek.open(path) for path in paths]
    check_alike(stores)
    joined = ek.open(paths, as_="run" if run else None)
    if isinstance(joined, ReplicaSet):
        raise InputError(f"these {len(paths)} are independent runs (replicas): open them together by their names, or say by "
                         "--run that they are parts of one run")
    assert isinstance(joined, StackedSource)
    names = list(joined.fields)
    first = stores[0]
    provenance = dict(first.provenance) | {"merged_from": [os.path.basename(path) for path in paths]}
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=".ensemblekit-") as folder:
        with Store.create(os.path.join(folder, out.name), dict(joined.fields), run=first.run or None, replica=first.replica,
                          provenance=provenance, time_unit=first.time_unit, constants=dict(first.constants) or None,
                          origin=Provenance.now([path for store in stores for path in store.segments])) as whole:
            for part in joined.runs:
                # forced together, they may count anew
                steps = part.steps if isinstance(part, Store | StoredSource) and not run else None
                for piece in part.pieces(names, "time", False, AT_ONCE):
                    for block in piece.blocks():
                        rows = slice(block.start, block.start + len(block))
                        whole.extend({name: block.fields[name] for name in names}, times=block.times,
                                     steps=None if steps is None else steps[rows], weights=block.weights)
        sealed = ek.open(whole.path).seal(os.path.join(folder, f"sealed-{out.name}"))
        os.replace(sealed.path, out.resolve())
    n, nbytes = len(ek.open(out)), on_disk(out)
    output = Output(as_json, inputs=tuple(paths))
    output.say(f"{out}: {n} snapshots of {len(paths)} stores, {sum(len(s) for s in stores) - n} of them there twice")
    output.write({"store": str(out), "snapshots": n, "snapshots_of_inputs": [len(s) for s in stores], "bytes": nbytes})
    written(out)


def check_alike(stores: list[Store]) -> None:
    """One clock each, and the same constants. Raises InputError."""
    import numpy as np

    first = stores[0]
    for store in stores:
        if len(store.clocks) > 1:
            raise InputError(f"{store.path} has the clocks {sorted(store.clocks)}; merge joins stores of one clock")
        if store.time_unit != first.time_unit:
            raise InputError(f"{store.path} counts its time in {store.time_unit!r}, {first.path} in {first.time_unit!r}")
        a, b = store.constants, first.constants
        differing = sorted(set(a) ^ set(b)) or [name for name in a if not np.array_equal(a[name], b[name])]
        if differing:
            raise InputError(f"{store.path} and {first.path} differ in what is constant: {', '.join(differing)}")
