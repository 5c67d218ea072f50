"""``ensemblekit rom ingest | export``: flow files into a store, and fields to where they are looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblekit.cli.average import Begin, End
from ensemblekit.cli.console import note, stderr
from ensemblekit.cli.export import Start, Step, Stop
from ensemblekit.cli.output import Json, Output, Overwrite, written
from ensemblekit.errors import InputError, StoreError

if TYPE_CHECKING:
    from ensemblekit.rom.basis import Basis

Files = Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False,
                                            help="Files, a case folder, or a quoted pattern.")]
Fields = Annotated[list[str] | None, typer.Option("--field", "-f", help="A field to read; again for more. Default: all.")]


def ingest(
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="STORE",
                                      help="*.vtkhdf for fields on a mesh, *.h5 else.")],
    field: Fields = None, begin: Begin = None, end: End = None, step: Step = 1,
    region: Annotated[str | None, typer.Option(help="A mesh region, or a named block.")] = None,
    patch: Annotated[str | None, typer.Option(help="A boundary patch instead of the cells.")] = None,
    zone: Annotated[str | None, typer.Option(help="A cell zone.")] = None,
    zero: Annotated[bool, typer.Option("--zero", help="Read OpenFOAM's 0/ too.")] = False,
    moving: Annotated[bool, typer.Option("--moving", help="Of an OpenFOAM mesh in motion: take fields cell by cell.")] = False,
    axis: Annotated[int | None, typer.Option("--snapshot-axis", help="The axis of snapshots in arrays.")] = None,
    mesh: Annotated[str | None, typer.Option("--mesh", help="A file to take the mesh from.")] = None,
    single: Annotated[bool, typer.Option("--single", help="Store 64-bit numbers in 32 bits.")] = False,
    compress: Annotated[bool, typer.Option("--compress", help="Compress without loss.")] = False,
    seal: Annotated[bool, typer.Option("--seal/--no-seal", help="End with one compact file that ParaView opens.")] = True,
    as_json: Json = None, overwrite: Overwrite = False,
) -> None:
    """Copy flow files into a store with their times, units and mesh. Cut short, the same command goes on."""
    from ensemblekit import rom

    source = rom.read(files[0] if len(files) == 1 else files, field, begin=begin, end=end, step=step, region=region,
                      patch=patch, zone=zone, zero=zero, moving=moving, snapshot_axis=axis, mesh=mesh)
    note(repr(source))
    store = rom.ingest(source, out, dtype="f4" if single else None, compression="lossless" if compress else None, seal=seal,
                       progress=stderr.is_terminal)
    nbytes = sum(os.stat(path).st_blocks * 512 for path in store.segments)
    output = Output(as_json, inputs=tuple(files))
    output.say(f"{out}: {len(store)} snapshots of {', '.join(store.fields)}")
    written(out)
    output.write({"store": str(out), "snapshots": len(store), "fields": list(store.fields), "bytes_on_disk": nbytes})


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False,
                                        help="A basis (*.basis.h5), a model, a store, or flow files.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="TARGET", help="*.vtkhdf, *.pvd, or a time folder of an OpenFOAM "
                                      "case; of a model *.mat or *.npz.")],
    reconstruct: Annotated[bool, typer.Option("--reconstruct", help="Of a basis: its reconstruction, not its modes.")] = False,
    start: Start = 0, stop: Stop = None, step: Step = 1,
    mesh: Annotated[str | None, typer.Option("--mesh", help="A file to take the mesh from.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write modes, reconstructions or snapshots for ParaView, pyvista or OpenFOAM; operators for Matlab or numpy."""
    from ensemblekit import rom

    if out.suffix.lower() in (".mat", ".npz"):
        model = rom.load(file)
        if isinstance(model, rom.Basis):
            raise InputError(f"{file} holds a basis, not a model; modes go to *.vtkhdf or *.pvd")
        rom.export_operators(model, out, overwrite=overwrite)
        written(out)
        return
    x = _basis(file)
    on = None
    if mesh is not None:
        on = rom.read(mesh).mesh
        if on is None:
            raise InputError(f"{mesh} holds no mesh")
    if x is None:
        if reconstruct:
            raise InputError(f"{file} holds no basis to reconstruct from; ensemblekit rom pod makes one")
        source = rom.read(file).window(start, stop, step)
        rom.export(source, out, mesh=on, overwrite=overwrite)
    else:
        rom.export(x, out, what="reconstruction" if reconstruct else "modes", which=slice(start, stop, step), mesh=on,
                   overwrite=overwrite)
    written(out)


def _basis(file: str) -> Basis | None:
    from ensemblekit.rom.basis import Basis

    if not file.endswith((".h5", ".hdf5")) or not os.path.isfile(file):
        return None
    try:
        return Basis.load(file)
    except StoreError:
        return None
