"""``ensemblekit info`` and ``verify``: what is in a file, and whether it is what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from ensemblekit.cli.console import heading, size, stdout, table

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Stores, H5MD or plain HDF5 files.",
                                            show_default=False)]
External = Annotated[bool, typer.Option("--external", help="Read also what a file points to in other files: "
                                           "for files you trust.")]
DAMAGED, UNCHECKED = 3, 2
COLORS = {"sound": "green", "damaged": "red", "not checked": "yellow"}


def info(files: Files, external: External = False) -> None:
    """What is in a file: fields, shapes, units, snapshots, times, size on disk, where it comes from."""
    import ensemblekit as ek

    for file in files:
        store = ek.open(file, external=external)
        with heading(file):
            show_facts(store, file)
            stdout.print(fields_table(store))


def show_facts(store: Any, file: str) -> None:
    """What holds for the whole store, a line each; what is not known is left out."""
    real, apparent = (sum(x) for x in zip(*(sizes(Path(p)) for p in store.segments), strict=True))
    facts = {
        "size": f"{size(real)} on disk" + (f", {size(apparent)} apparent" if apparent > real else ""),
        "run": store.run, "replica": store.replica, "files": len(store.segments) if len(store.segments) > 1 else None,
        **{name: short(value) for name, value in store.provenance.items()},
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        if value not in (None, ""):
            stdout.print(f"  [dim]{name:<{width}}[/]  ", end="")
            stdout.print(str(value), markup=False, soft_wrap=True)


def short(value: Any, most: int = 160) -> str:
    """A provenance entry on a line or two: long ones by what they hold."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= most:
        return text
    if isinstance(value, dict):
        held = ", ".join(f"{key} ({len(item)})" if isinstance(item, list | dict) else str(key)
                         for key, item in value.items())
        text = held if len(held) <= most else f"{len(value)} entries"
    elif isinstance(value, list):
        text = f"{len(value)} values"
    return text if len(text) <= most else f"{text[:most]}…"


def fields_table(store: Any) -> Any:
    """A row a field."""
    made = table("field", "shape", "dtype", "unit", "snapshots", "time", right=("snapshots",))
    counted = getattr(store, "provenance", {}).get("timed") is False        # of frames whose files knew no times
    for name, field in store.all_fields.items():
        view = store[name]
        made.add_row(name, " × ".join(map(str, field.shape)) or "scalar", str(field.dtype), field.unit or "–",
                     " + ".join(f"{n:,}" for n in view.lengths), "–" if counted else time_range(view))
    return made


def time_range(view: Any) -> str:
    """First and last time with the unit; a dash where the file has no times."""
    if hasattr(view, "window") and len(view.lengths or ()) == 1 and view.lengths[0] > 1:     # these two only: they may be many
        n = view.lengths[0]
        ends = [view.window(0, 1).times, view.window(n - 1).times]
        times = None if ends[0] is None or ends[1] is None else np.concatenate(ends)
    else:
        times = view.times
    if times is None or not len(times):
        return "–"
    return f"{times[0]:g} … {times[-1]:g} {view.time_unit}".rstrip()


def sizes(path: Path) -> tuple[int, int]:
    """Bytes on disk and apparent bytes (a store is sparse while it is written) of a file."""
    stat = path.stat()
    return getattr(stat, "st_blocks", -(-stat.st_size // 512)) * 512, stat.st_size


def verify(files: Files, external: External = False) -> None:
    """Check every snapshot against its checksum, and the schema.

    Exit code 0: all are sound; 3: something is damaged; 2: something could not be checked.
    """
    import ensemblekit as ek

    verdicts = set()
    for file in files:
        report = ek.verify(file, external=external)
        verdicts.add(report.verdict)
        stdout.print(Text(report.verdict, f"bold {COLORS[report.verdict]}"), Text(file), soft_wrap=True)
        if not report.ok:
            stdout.print(f"  {report}", markup=False, soft_wrap=True)
    if verdicts != {"sound"}:
        raise typer.Exit(DAMAGED if "damaged" in verdicts else UNCHECKED)
