"""``ensemblekit info`` and ``verify``: what is in a file, and whether it is what was written."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from ensemblekit.cli.console import Rows, cell_of, escaped, size, table
from ensemblekit.cli.output import Csv, Json, Output, Overwrite
from ensemblekit.cli.verbs import DAMAGED, WRONG
from ensemblekit.files import disk_bytes
from ensemblekit.provenance import Provenance

if TYPE_CHECKING:
    from ensemblekit.rom.archive import Archive
    from ensemblekit.rom.basis import Basis
    from ensemblekit.store.store import Store
    from ensemblekit.store.stored import StoredField

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Stores, H5MD or plain HDF5 files, quoted patterns.",
                                            show_default=False)]
External = Annotated[bool, typer.Option("--external", help="Read also what a file points to in other files: "
                                           "for files you trust.")]
COLORS = {"sound": "green", "damaged": "red", "not checked": "yellow"}


def info(files: Files, external: External = False, as_json: Json = None, as_csv: Csv = None,
         overwrite: Overwrite = False) -> None:
    """What is in a store, basis or archive: fields, shapes, units, snapshots, times, size on disk, how it came about."""
    paths = expanded(files)
    out = Output(as_json, as_csv, tuple(paths))
    contents: dict[str, object] = {}
    rows: list[tuple[str | int | float | None, ...]] = []
    for path in paths:
        facts, fields = looked_at(path, external)
        with out.heading(path):
            out.print(facts_table(facts))
            out.show(fields_table(fields))
        contents[path] = {**facts, "fields": [one._asdict() for one in fields]}
        rows += [(path, one.name, "x".join(map(str, one.shape)), *one[2:4], sum(one.snapshots), *one[5:]) for one in fields]
    out.write({"files": contents}, ("file", "field", *FieldFacts._fields[1:]), rows)


def expanded(files: list[str]) -> list[str]:
    """The stores that names and patterns stand for; further files of a store belong to its first."""
    from ensemblekit.errors import StoreError
    from ensemblekit.store.names import segments_of

    stores: list[str] = []
    for file in files:
        if os.path.exists(file) or not glob.has_magic(file):
            stores.append(file)
            continue
        there = sorted(path for path in glob.glob(file) if os.path.isfile(path))
        further = {part for path in there for part in segments_of(path)[1:]}
        if not there:
            raise StoreError(f"no file matches {file!r}")
        stores += [path for path in there if path not in further]
    return stores


def looked_at(path: str, external: bool = False) -> tuple[dict[str, object], list[FieldFacts]]:
    """What holds for a whole file, and what is known of its fields."""
    import ensemblekit as ek
    from ensemblekit.rom.archive import Archive, is_archive
    from ensemblekit.rom.basis import Basis
    from ensemblekit.rom.files import is_basis
    from ensemblekit.store.hdf5 import is_hdf5

    if os.path.isfile(path) and is_hdf5(path):
        if is_basis(path):
            return facts_of_basis(path, Basis.load(path))
        if is_archive(path):
            return facts_of_archive(path, Archive.open(path))
    store = ek.open(path, external=external)
    return facts_of(store), fields_of(store)


def facts_of_basis(path: str, basis: Basis) -> tuple[dict[str, object], list[FieldFacts]]:
    """The same of a file that ``Basis.save`` wrote."""
    real, apparent = sizes(Path(path))
    modes = f"{basis.rank} mode{'s' * (basis.rank != 1)}, error {100 * basis.relative_error:.3g} % of the fluctuation"
    facts = {"kind": "basis", "bytes_on_disk": real, "bytes": apparent, "holds": modes, "route": basis.method,
             "notes": list(basis.notes), "origin": basis.provenance and basis.provenance.to_dict()}
    first, last = (None, None) if basis.times is None else (float(basis.times[0]), float(basis.times[-1]))
    fields = [FieldFacts(name, field.shape, str(field.dtype), field.unit, (basis.n,), first, last, basis.time_unit)
              for name, field in basis.fields.items()]
    return known_facts(facts), fields


def facts_of_archive(path: str, archive: Archive) -> tuple[dict[str, object], list[FieldFacts]]:
    """The same of a file that ``rom.compress`` wrote."""
    real, apparent = sizes(Path(path))
    facts = {"kind": "archive", "bytes_on_disk": real, "bytes": apparent,
             "holds": f"snapshots {archive.ratio:.3g} times smaller, error {100 * archive.error:.3g} % of the "
                      f"{archive.relative_to} (allowed {100 * archive.tolerance:g} %)",
             "origin": archive.provenance and archive.provenance.to_dict()}
    times = archive.times
    first, last = (None, None) if times is None else (float(times[0]), float(times[-1]))
    fields = [FieldFacts(name, one.shape[1:], str(one.dtype), one.unit, one.shape[:1], first, last, archive.time_unit)
              for name, one in archive.items()]
    return known_facts(facts), fields


def known_facts(facts: dict[str, object]) -> dict[str, object]:
    """Without what is not known."""
    return {name: value for name, value in facts.items() if value not in (None, "", {}, [])}


def facts_of(store: Store) -> dict[str, object]:
    """What holds for the whole store; what is not known is left out."""
    real, apparent = (sum(x) for x in zip(*(sizes(Path(p)) for p in store.segments), strict=True))
    return known_facts({
        "kind": "store", "bytes_on_disk": real, "bytes": apparent, "run": store.run, "replica": store.replica,
        "files": len(store.segments), "provenance": dict(store.provenance),
        "origin": store.origin and store.origin.to_dict()})


def facts_table(facts: dict[str, object]) -> Table:
    """A line a fact."""
    real, apparent = facts["bytes_on_disk"], facts["bytes"]
    assert isinstance(real, int)
    assert isinstance(apparent, int)
    provenance = facts.get("provenance", {})
    assert isinstance(provenance, dict)
    shown = {"size": f"{size(real)} on disk" + (f", {size(apparent)} apparent" if apparent > real else ""),
             **{name: facts[name] for name in ("holds", "route", "notes", "run", "replica") if name in facts},
             **({"files": facts["files"]} if facts.get("files", 1) != 1 else {}),
             **{name: short(value) for name, value in provenance.items()}}
    origin = Provenance.from_dict(facts.get("origin"))
    for name, text in (origin.lines() if origin is not None else {}).items():
        shown[name if name not in shown else f"{name} (by ensemblekit)"] = short(text, 400)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", overflow="fold", max_width=24)
    lines.add_column(overflow="fold")
    for name, value in shown.items():
        lines.add_row(Text("  ") + cell_of(name), cell_of("; ".join(value) if isinstance(value, list) else value))
    return lines


def short(value: object, most: int = 160) -> str:
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


class FieldFacts(NamedTuple):
    """What is known of a field without reading its snapshots."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: str
    snapshots: tuple[int, ...]
    """Of each run."""
    first_time: float | None
    last_time: float | None
    time_unit: str


def fields_of(store: Store) -> list[FieldFacts]:
    """The fields of every clock."""
    facts = []
    for name, field in store.all_fields.items():
        view = store[name]
        first, last = time_range(view)
        facts.append(FieldFacts(name, tuple(field.shape), str(field.dtype), field.unit, tuple(view.lengths or ()), first, last,
                                view.time_unit))
    return facts


def fields_table(fields: list[FieldFacts]) -> Rows:
    """A row a field."""
    rows = table("field", "shape", "dtype", "unit", "snapshots", "time", right=("snapshots",))
    for one in fields:
        times = "–" if one.first_time is None else f"{one.first_time:g} … {one.last_time:g} {one.time_unit}".rstrip()
        rows.add_row(one.name, " × ".join(map(str, one.shape)) or "scalar", one.dtype, one.unit or "–",
                     " + ".join(f"{n:,}" for n in one.snapshots), times)
    return rows


def time_range(view: StoredField) -> tuple[float | None, float | None]:
    """First and last time; None where the file has no times."""
    if len(view.lengths) == 1 and view.lengths[0] > 1:     # these two only: they may be many
        n = view.lengths[0]
        ends = [view.window(0, 1).times, view.window(n - 1).times]
        return (None, None) if ends[0] is None or ends[1] is None else (float(ends[0][0]), float(ends[1][-1]))
    times = view.times
    return (None, None) if times is None or not len(times) else (float(times[0]), float(times[-1]))


def sizes(path: Path) -> tuple[int, int]:
    """Bytes on disk and apparent bytes (a store is sparse while it is written) of a file."""
    stat = path.stat()
    return disk_bytes(stat), stat.st_size


def verify(files: Files, external: External = False, as_json: Json = None, as_csv: Csv = None,
           overwrite: Overwrite = False) -> None:
    """Check every snapshot against its checksum, and the schema.

    Exit code 0: all are sound; 3: something is damaged; 2: something could not be checked.
    """
    import ensemblekit as ek

    paths = expanded(files)
    out = Output(as_json, as_csv, tuple(paths))
    reports = {path: ek.verify(path, external=external) for path in paths}
    for path, report in reports.items():
        name = escaped(path, keep="")
        out.print(Text(report.verdict, f"bold {COLORS[report.verdict]}"), Text(f" {name}"))
        if not report.ok:
            out.say(f"  {report}")
    verdicts = {report.verdict for report in reports.values()}
    out.write({"verdict": max(verdicts, key=SEVERITY.index), "files": {path: {
        "verdict": r.verdict, "snapshots": r.snapshots, "damaged": r.damaged, "by_field": r.by_field, "problems": r.problems,
        "unchecked": r.unchecked} for path, r in reports.items()}},
        ("file", "verdict", "snapshots", "damaged", "problems"),
        ((path, r.verdict, r.snapshots, len(r.damaged), "; ".join((*r.problems, *r.unchecked))) for path, r in reports.items()))
    if verdicts != {"sound"}:
        raise typer.Exit(DAMAGED if "damaged" in verdicts else WRONG)


SEVERITY = ("sound", "not checked", "damaged")
