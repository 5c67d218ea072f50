"""``ensemblekit export``: fields of a store as .npz or .csv."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ensemblekit.cli.console import size, stderr
from ensemblekit.errors import InputError
from ensemblekit.files import replacing

Start = Annotated[int, typer.Option("--start", help="First snapshot.")]
Stop = Annotated[int | None, typer.Option("--stop", help="The snapshot after the last.")]
Step = Annotated[int, typer.Option("--step", help="Every so many snapshots.")]
ROWS = 1024


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A store, or any HDF5 file.", show_default=False)],
    fields: Annotated[list[str], typer.Argument(metavar="FIELD...", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Ends in .npz or .csv.")],
    start: Start = 0, stop: Stop = None, step: Step = 1,
) -> None:
    """Copy fields with their times (and weights, if any) into one .npz or .csv file."""
    import ensemblekit as ek

    if out.suffix not in WRITERS:
        raise InputError(f"--out names a file that ends in {' or '.join(WRITERS)}; got {out}")
    store = ek.open(file)
    sources = {name: store[name].window(start, stop, step) for name in fields}
    WRITERS[out.suffix](out, sources)
    stderr.print(f"written: {out} ({size(out.stat().st_size)})", style="dim", markup=False)


def write_npz(out: Path, sources: dict[str, Any]) -> None:
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
        np.savez(file, **arrays)     # type: ignore[arg-type]  # its own keyword is a bool


def write_csv(out: Path, sources: dict[str, Any]) -> None:
    """One row a snapshot: time (if there is one), weight (if there are any), then every element as name[i,j]."""
    import csv

    import numpy as np

    lengths = {name: sum(source.lengths) for name, source in sources.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"a .csv has one row a snapshot, and these fields differ in their number: {lengths}. "
                         "Export them one by one, or to .npz")
    with replacing(out, follow=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head: list[str] | None = None
        for blocks in zip(*(blocks_of(name, source) for name, source in sources.items()), strict=True):
            first = blocks[0]
            extras = {name: np.asarray(values)[:, None]
                      for name, values in (("time", first.times), ("weight", first.weights)) if values is not None}
            columns = list(extras.values())
            if head is None:
                head = list(extras)
                head += [label for name, source in sources.items() for label in labels(name, source.fields[name].shape)]
                writer.writerow(head)
            columns += [np.asarray(block.only).reshape(len(block), -1) for block in blocks]
            for row in zip(*(column.tolist() for column in columns), strict=True):
                writer.writerow([number for part in row for number in part])


def blocks_of(name: str, source: Any) -> Any:
    """Blocks of the same rows whatever the size of the item, so that several fields go side by side."""
    (n,) = source.lengths
    for start in range(0, n, ROWS):
        window = source.window(start, min(start + ROWS, n))
        yield joined(name, [block for piece in window.pieces([name], "time", False, 64 << 20)
                            for block in piece.blocks()])


def joined(name: str, blocks: list[Any]) -> Any:
    """Consecutive blocks as one."""
    import numpy as np

    from ensemblekit.source import Block

    def whole(parts: list[Any]) -> Any:
        return None if parts[0] is None else np.concatenate(parts)

    first = blocks[0]
    return Block({name: whole([block.fields[name] for block in blocks])}, first.start, first.tile,
                 whole([block.weights for block in blocks]), whole([block.times for block in blocks]))


def labels(name: str, shape: tuple[int, ...]) -> list[str]:
    """A column's name: "u" for a scalar, "u[0,3]" for an element of an array."""
    import numpy as np

    return [f"{name}[{','.join(map(str, index))}]" if shape else name for index in np.ndindex(*shape)]


WRITERS = {".npz": write_npz, ".csv": write_csv}
