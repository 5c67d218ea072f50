"""What the verbs of ``ensemblekit rom`` share: sources, inner products, bars, names of outputs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemblekit.cli.console import note, stderr
from ensemblekit.cli.output import check_file
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from ensemblekit.rom.basis import Basis
    from ensemblekit.source import SnapshotSource

BASIS = ".basis.h5"


def read(file: str, fields: list[str] | None, begin: float | None, end: float | None, step: int,
         mesh: str | None = None, region: str | None = None, snapshot_axis: int | None = None) -> SnapshotSource:
    """A source from whatever the file is."""
    from ensemblekit import rom

    return rom.read(file, fields or None, begin=begin, end=end, step=step, mesh=mesh, region=region,
                    snapshot_axis=snapshot_axis)


def weights_from(text: str) -> str | np.ndarray | None:
    """An inner product in words, or from a file of weights."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    import numpy as np

    try:
        return np.load(text, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--inner-product is auto, none, or an .npy file with a weight for each cell; {text}: {error}"
                         ) from error


def sibling(file: str, suffix: str) -> Path:
    """FILE with another suffix, in its folder; a pattern or case gives its own name's beginning."""
    path = Path(file)
    if suffix == BASIS and path.is_file():      # beside run.h5, as its folder run.h5.d is: run.vtkhdf has another basis
        return path.with_name(path.name + suffix)
    stem = path.name if path.is_dir() else path.stem
    clean = "".join(c for c in stem if c not in "*?[]").rstrip("_-.") or "snapshots"
    folder = path.parent if path.parent.is_dir() else Path()
    return folder / f"{clean}{suffix}"


@contextmanager
def bar(source: SnapshotSource, quiet: bool) -> Iterator[Callable[[int, int | None], None] | bool]:
    """A bar a reading of the source, with bytes a second and the time left; nothing where no one looks."""
    if quiet or not stderr.is_terminal:
        yield False
        return
    from tqdm.auto import tqdm

    row = sum(field.nbytes for field in source.fields.values())
    reads: list[tqdm] = []

    def tell(done: int, total: int | None) -> None:
        nbytes = done * row
        if not reads or nbytes < reads[-1].n:
            if reads:
                reads[-1].close()
            reads.append(tqdm(desc=f"read {len(reads) + 1}", total=None if total is None else total * row, unit="B",
                              unit_scale=True, dynamic_ncols=True, leave=False))
        reads[-1].update(nbytes - reads[-1].n)

    try:
        yield tell
    finally:
        if reads:
            reads[-1].close()


def followed(file: str, fields: list[str] | None, target: Path, idle: float, inner_product: str,
             **rule: Any) -> Basis:     # those of rom.IncrementalPOD
    """POD of a store that is still being written, its basis written anew whenever there is more."""
    import time
    from dataclasses import replace

    import ensemblekit as ek
    from ensemblekit import rom
    from ensemblekit.rom.mesh import mesh_of

    store = ek.open(file)
    names = fields or list(store.fields)
    state = target.with_name(target.name.removesuffix(".h5") + ".state.h5")
    if inner_product == "auto":
        running = rom.IncrementalPOD(state, **rule).use_mesh_weights(store, names)
    else:
        running = rom.IncrementalPOD(state, inner_product=weights_from(inner_product), **rule)
    seen, since, basis = -1, time.monotonic(), None
    try:
        while True:
            store.refresh()
            running.catch_up(store[names[0]] if len(names) == 1 else store)       # a view is of one moment
            if running.n != seen:
                seen, since = running.n, time.monotonic()
                if running.n >= 2:
                    basis = replace(running.result(), mesh=mesh_of(store), time_unit=store.time_unit)
                    basis.save(target)
                    note(f"{running.n} snapshots: {basis}")
            elif time.monotonic() - since >= idle:      # and there was nothing new at a look after that
                break
            else:
                time.sleep(min(1.0, max(0.05, idle / 20)))
    except KeyboardInterrupt:
        note("stopped; run it again to go on")
    if basis is None:
        raise InputError(f"{file} had {max(seen, 0)} snapshots in {idle:g} s; POD needs at least 2")
    running.close()
    return basis


def output_file(out: Path | None, file: str, suffix: str, overwrite: bool) -> Path:
    """The file to write, by default beside what is read; looked at before the work. Raises InputError."""
    if out is not None:
        return out
    target = sibling(file, suffix)
    check_file(target, overwrite)
    return target


@contextmanager
def new_store(out: Path, overwrite: bool) -> Iterator[Path]:
    """The path to write a store to; where a store is replaced, another one that takes its place in the end."""
    if not (overwrite and os.path.lexists(out)):
        yield out
        return
    from ensemblekit.store.names import segments_of

    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=".ensemblekit-") as folder:
        yield Path(folder, out.name)
        old = segments_of(os.fspath(out))
        for part in segments_of(os.path.join(folder, out.name)):
            os.replace(part, out.with_name(os.path.basename(part)))
            old = [one for one in old if os.path.basename(one) != os.path.basename(part)]
        for left in old:
            os.unlink(left)
