"""``ensemblekit rom ingest | export``: flow files into a store, and fields to where they are looked at."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ensemblekit.cli.console import size, stderr
from ensemblekit.errors import InputError, StoreError

Files = Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False,
                                            help="Files, a case folder, or a quoted pattern.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to.")]
Fields = Annotated[list[str] | None, typer.Option("--field", "-f", help="A field to read; again for more. Default: all.")]
Begin = Annotated[float | None, typer.Option("--begin", help="First time.")]
End = Annotated[float | None, typer.Option("--end", help="Last time.")]
Step = Annotated[int, typer.Option("--step", help="Every so many snapshots.")]


def ingest(
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="The store: *.vtkhdf for fields on a mesh, *.h5 else.")],
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
) -> None:
    """Copy flow files into a store with their times, units and mesh. Cut short, the same command goes on."""
    from ensemblekit import rom

    source = rom.read(files[0] if len(files) == 1 else files, field, begin=begin, end=end, step=step, region=region,
                      patch=patch, zone=zone, zero=zero, moving=moving, snapshot_axis=axis, mesh=mesh)
    stderr.print(f"{source!r}", style="dim", markup=False)
    with warnings.catch_warnings(record=True) as hints:
        warnings.simplefilter("always", UserWarning)
        store = rom.ingest(source, out, dtype="f4" if single else None, compression="lossless" if compress else None, seal=seal,
                           progress=True)
    for hint in hints:
        stderr.print(f"hint: {hint.message}", markup=False, soft_wrap=True)
    nbytes = sum(os.stat(path).st_blocks * 512 for path in store.segments)
    stderr.print(f"written: {out} ({len(store)} snapshots, {size(nbytes)})", style="dim", markup=False)


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False,
                                        help="A basis (*.basis.h5), a store, or flow files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="*.vtkhdf, *.pvd, or a time folder of an OpenFOAM case.")],
    reconstruct: Annotated[bool, typer.Option("--reconstruct", help="Of a basis: its reconstruction, not its modes.")] = False,
    start: Annotated[int, typer.Option(help="First snapshot.")] = 0,
    stop: Annotated[int | None, typer.Option(help="The snapshot after the last.")] = None,
    step: Step = 1,
    mesh: Annotated[str | None, typer.Option("--mesh", help="A file to take the mesh from.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write modes, reconstructions or snapshots for ParaView, pyvista or OpenFOAM."""
    from ensemblekit import rom

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
    stderr.print(f"written: {out}", style="dim", markup=False)


def _basis(file: str) -> Any:
    from ensemblekit.rom.basis import Basis

    if not file.endswith((".h5", ".hdf5")) or not os.path.isfile(file):
        return None
    try:
        return Basis.load(file)
    except StoreError:
        return None
