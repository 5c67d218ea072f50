"""``ensemblekit export``: fields of a store as .npz or .csv."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ensemblekit.cli.output import Overwrite, written
from ensemblekit.errors import InputError
from ensemblekit.files import csv_cell, replacing

if TYPE_CHECKING:
    import numpy as np

    from ensemblekit.source import Block
    from ensemblekit.store.stored import StoredSource

    Sources = Mapping[str, StoredSource]

Start = Annotated[int, typer.Option("--start", help="First snapshot, by number.")]
Stop = Annotated[int | None, typer.Option("--stop", help="The snapshot after the last.", show_default=False)]
Step = Annotated[int, typer.Option("--step", help="Every so many snapshots.")]
ROWS = 1024


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A store, or any HDF5 file.", show_default=False)],
    fields: Annotated[list[str], typer.Argument(metavar="FIELD...", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE|-", help="Ends in .npz or .csv; - is CSV on stdout.")],
    start: Start = 0, stop: Stop = None, step: Step = 1, overwrite: Overwrite = False,
) -> None:
    """Copy fields with their times (and weights, if any) into one .npz or .csv file."""
    import ensemblekit as ek

    to_stdout = str(out) == "-"
    if not to_stdout and out.suffix not in WRITERS:
        raise InputError(f"--out names a file that ends in {' or '.join(WRITERS)}; got {out}")
    store = ek.open(file)
    sources = {name: store[name].window(start, stop, step) for name in fields}
    if to_stdout:
        table_rows(sys.stdout, sources)
        return
    WRITERS[out.suffix](out, sources)
    written(out)


def write_npz(out: Path, sources: Sources) -> None:
    """Arrays by the names of the fields, and "<field>/time", "<field>/weight" where there are any."""
    import numpy as np

    arrays = {}
    for name, source in sources.items():
        blocks = list(blocks_of(name, source))
        if not blocks:
            arrays[name] = np.empty((0, *source.fields[name].shape), source.fields[name].dtype)
            continue
        block = joined(name, blocks)
        arrays[name] = block.only
        for extra, values in (("time", block.times), ("weight", block.weights)):
            if values is not None:
                arrays[f"{name}/{extra}"] = values
    with replacing(out, follow=True) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_csv(out: Path, sources: Sources) -> None:
    """The rows of :func:`table_rows` as a file."""
    with replacing(out, follow=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table_rows(file, sources)


def table_rows(file: TextIO, sources: Sources) -> None:
    """One row a snapshot: time (if there is one), weight (if there are any), then every element as name[i,j]."""
    import numpy as np

    lengths = {name: sum(source.lengths) for name, source in sources.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"a .csv has one row a snapshot, and these fields differ in their number: {lengths}. "
                         "Export them one by one, or to .npz")
    writer = csv.writer(file, lineterminator="\n")
    head: list[str] | None = None
    for blocks in zip(*(blocks_of(name, source) for name, source in sources.items()), strict=True):
        first = blocks[0]
        extras = {name: np.asarray(values)[:, None]
                  for name, values in (("time", first.times), ("weight", first.weights)) if values is not None}
        columns = list(extras.values())
        if head is None:
            head = list(extras)
            head += [label for name, source in sources.items() for label in labels(name, source.fields[name].shape)]
            writer.writerow(map(csv_cell, head))
        columns += [np.asarray(block.only).reshape(len(block), -1) for block in blocks]
        for row in zip(*(column.tolist() for column in columns), strict=True):
            writer.writerow([number for part in row for number in part])


def blocks_of(name: str, source: StoredSource) -> Iterator[Block]:
    """Blocks of the same rows whatever the size of the item, so that several fields go side by side."""
    (n,) = source.lengths
    for start in range(0, n, ROWS):
        window = source.window(start, min(start + ROWS, n))
        yield joined(name, [block for piece in window.pieces([name], "time", False, 64 << 20)
                            for block in piece.blocks()])


def joined(name: str, blocks: list[Block]) -> Block:
    """Consecutive blocks as one."""
    import numpy as np

    from ensemblekit.source import Block

    def whole(parts: list[np.ndarray | None]) -> np.ndarray | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None

    first = blocks[0]
    return Block({name: np.concatenate([block.fields[name] for block in blocks])}, first.start, first.tile,
                 whole([block.weights for block in blocks]), whole([block.times for block in blocks]))


def labels(name: str, shape: tuple[int, ...]) -> list[str]:
    """A column's name: "u" for a scalar, "u[0,3]" for an element of an array."""
    import numpy as np

    return [f"{name}[{','.join(map(str, index))}]" if shape else name for index in np.ndindex(*shape)]


WRITERS: dict[str, Callable[[Path, Sources], None]] = {".npz": write_npz, ".csv": write_csv}
