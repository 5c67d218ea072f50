"""``ensemblekit rom``: averages, modes, reconstructions and archives of stored flow fields, from the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ensemblekit.cli.average import Dropped, discarded
from ensemblekit.cli.average import Gaps as Dropping
from ensemblekit.cli.console import save_figure, size, stderr, stdout
from ensemblekit.errors import InputError

BASIS = ".basis.h5"
app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Snapshots = Annotated[str, typer.Argument(metavar="FILE", help="A store, a snapshot file, a case folder or a quoted pattern.",
                                          show_default=False)]
Fields = Annotated[list[str] | None, typer.Option("--field", "-f", help="A field; may be given again. All by default.",
                                                  show_default=False)]
Begin = Annotated[float | None, typer.Option("--begin", help="First time.", show_default=False)]
End = Annotated[float | None, typer.Option("--end", help="Last time.", show_default=False)]
Step = Annotated[int, typer.Option("--step", help="Every so many snapshots.")]
Rank = Annotated[int | None, typer.Option("--rank", "-k", help="How many modes.", show_default=False)]
Energy = Annotated[float | None, typer.Option("--energy", help="Or: the share of the energy to keep, as 0.99.",
                                              show_default=False)]
Tolerance = Annotated[float | None, typer.Option("--tolerance", help="Or: the relative error allowed, as 0.01.",
                                                 show_default=False)]
Memory = Annotated[str, typer.Option("--memory-limit", help="What it may use.")]
Method = Annotated[str, typer.Option("--method", help="auto, gram, covariance, tsqr, randomized or incremental.")]
MeshFile = Annotated[str | None, typer.Option("--mesh", help="A file to take the mesh from, for arrays that have none.",
                                              show_default=False)]
Region = Annotated[str | None, typer.Option("--region", help="A mesh region, or a named block.", show_default=False)]
Axis = Annotated[int | None, typer.Option("--snapshot-axis", help="The axis of snapshots in arrays.", show_default=False)]
Weights = Annotated[str, typer.Option("--inner-product", metavar="auto|none|FILE",
                                      help="Volumes of the mesh, plain sums, or weights from an .npy file.")]


class Missing(StrEnum):
    """What becomes of NaN that comes and goes."""

    raise_ = "raise"
    gappy = "gappy"


class Kept(StrEnum):
    """What becomes of such NaN in an archive."""

    raise_ = "raise"
    keep = "keep"


Gaps = Annotated[Missing, typer.Option("--missing", help="NaN that comes and goes: refuse it, or fill it in from the modes.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No bar.")]


class Norm(StrEnum):
    """How an error is measured."""

    l2 = "l2"
    max = "max"


class Reference(StrEnum):
    """What an error is relative to."""

    fluctuation = "fluctuation"
    total = "total"


@app.callback()
def rom() -> None:
    """Flow fields: averages with error bars, POD, archives, ParaView."""


@app.command(no_args_is_help=True)
def average(
    file: Snapshots, fields: Fields = None, begin: Begin = None, end: End = None, step: Step = 1, mesh: MeshFile = None,
    region: Region = None, snapshot_axis: Axis = None,
    statistics: Annotated[str, typer.Option("--statistics", "-s", help="Any of mean, rms, reynolds_stress, tke, with "
                                            "commas.")] = "mean",
    velocity: Annotated[str | None, typer.Option("--velocity", help="The velocity's field, or its components' with commas: "
                                                 "u,v.", show_default=False)] = None,
    equilibration: Annotated[str, typer.Option("--equilibration", metavar="auto|none|N",
                                               help="Snapshots to leave out at the start.")] = "auto",
    confidence: Annotated[float, typer.Option("--confidence", help="Of the interval.")] = 0.95,
    missing: Dropping = Dropped.raise_, memory_limit: Memory = "2GiB",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.averages.npz by default; .vtkhdf for ParaView.",
                                             show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FOLDER", help="Draw averages and where to run longer.",
                                              show_default=False)] = None,
    quiet: Quiet = False,
) -> None:
    """Mean, rms, Reynolds stresses and kinetic energy of every cell, each with its interval."""
    from ensemblekit import rom

    source = read(file, fields, begin, end, step, mesh=mesh, region=region, snapshot_axis=snapshot_axis)
    parts = None if velocity is None else tuple(velocity.split(",")) if "," in velocity else velocity
    start = discarded(equilibration)
    with bar(source, quiet) as progress:
        found = rom.average(source, [name.strip() for name in statistics.split(",")], velocity=parts,
                            equilibration=None if start == "none" else start, confidence=confidence,
                            missing=missing.value, memory_limit=memory_limit, progress=progress)
    stdout.print(str(found), markup=False, soft_wrap=True)
    target = out or beside(file, ".averages.npz")
    if target.suffix == ".npz":
        found.save(target)
    else:
        from ensemblekit.rom.export import export

        export(found, target, overwrite=True)
    written(target)
    if plot:
        from ensemblekit.plot import rom as draw

        plot.mkdir(parents=True, exist_ok=True)
        for name in found:
            save(draw.average(found, name), plot / f"{name}.png")
            save(draw.run_longer(found, name), plot / f"{name}-run-longer.png")


@app.command(no_args_is_help=True)
def pod(
    file: Snapshots, fields: Fields = None, begin: Begin = None, end: End = None, step: Step = 1, rank: Rank = None,
    energy: Energy = None, tolerance: Tolerance = None, memory_limit: Memory = "2GiB", method: Method = "auto",
    mesh: MeshFile = None, inner_product: Weights = "auto", missing: Gaps = Missing.raise_, region: Region = None,
    snapshot_axis: Axis = None,
    center: Annotated[str, typer.Option("--center", help="What is subtracted: mean, first or none.")] = "mean",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.basis.h5 by default.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FOLDER", help="Draw modes, spectrum and errors.",
                                              show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Keep up with a store that is being written; the basis is "
                                         "written again as it grows.")] = False,
    idle: Annotated[float, typer.Option("--idle", help="With --follow: seconds without a new snapshot after which to stop.")]
        = 60.0,
    quiet: Quiet = False,
) -> None:
    """The modes that carry most of the energy, and the error that is left; writes FILE.basis.h5."""
    from ensemblekit import rom

    target = out or beside(file, BASIS)
    if follow:
        for name, given in (("--mesh", mesh), ("--region", region), ("--snapshot-axis", snapshot_axis),
                            ("--missing gappy", missing is Missing.gappy or None), ("--begin", begin), ("--end", end)):
            if given is not None:
                raise InputError(f"--follow takes a store as it grows, and {name} does not go with it")
        basis = followed(file, fields, target, idle, inner_product, rank=rank, energy=energy, tolerance=tolerance,
                         center=center, memory_limit=memory_limit)
    else:
        source = read(file, fields, begin, end, step, mesh=mesh, region=region, snapshot_axis=snapshot_axis)
        if all(x is None for x in (rank, energy, tolerance)):
            energy = 0.99
            stderr.print("energy 0.99, an error of 10 % (--rank, --energy or --tolerance for others)", style="dim")
        rule: dict[str, Any] = {"energy": energy, "tolerance": tolerance, "center": center, "method": method,
                                "memory_limit": memory_limit, "inner_product": weights_from(inner_product)}
        plan = rom.plan(source, rank, **rule)
        stderr.print(str(plan), style="dim", markup=False, soft_wrap=True)
        with notes(), bar(source, quiet) as progress:
            basis = rom.pod(source, rank, progress=progress, missing=missing.value, **rule)
        basis.save(target)
    stdout.print(str(basis), markup=False, soft_wrap=True)
    show_modes(basis)
    written(target)
    if plot:
        draw_basis(basis, plot, None, None)


@app.command(no_args_is_help=True)
def plan(
    file: Snapshots, fields: Fields = None, begin: Begin = None, end: End = None, step: Step = 1, rank: Rank = None,
    energy: Energy = None, tolerance: Tolerance = None, memory_limit: Memory = "2GiB", method: Method = "auto",
    mesh: MeshFile = None, inner_product: Weights = "auto", region: Region = None, snapshot_axis: Axis = None,
) -> None:
    """What `rom pod` with the same options would do: route, reads, bytes, memory, and why. Nothing is read."""
    from ensemblekit import rom

    source = read(file, fields, begin, end, step, mesh=mesh, region=region, snapshot_axis=snapshot_axis)
    found = rom.plan(source, rank, energy=energy, tolerance=tolerance, method=method, memory_limit=memory_limit,
                     inner_product=weights_from(inner_product))
    stdout.print(str(found), markup=False, soft_wrap=True)


@app.command(no_args_is_help=True)
def reconstruct(
    basis: Annotated[Path, typer.Argument(metavar="BASIS", help="What `rom pod` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="A store (.h5), or .vtkhdf for ParaView where there is a mesh.")],
    rank: Annotated[int | None, typer.Option("--rank", "-k", help="So many modes; all by default.", show_default=False)] = None,
    start: Annotated[int, typer.Option("--start", help="First snapshot.")] = 0,
    stop: Annotated[int | None, typer.Option("--stop", help="The snapshot after the last.", show_default=False)] = None,
    step: Step = 1,
) -> None:
    """Snapshots again from modes and coefficients, into a store or a file for ParaView."""
    import ensemblekit as ek
    from ensemblekit import rom

    held = rom.Basis.load(basis)
    with notes():
        held = held if rank is None else held.truncate(rank)
    rows = range(held.n)[slice(start, stop, step)]
    if not len(rows):
        raise InputError(f"no snapshot between --start {start} and --stop {stop}; the basis is of {held.n}")
    if out.suffix == ".vtkhdf" and held.mesh is not None:
        from ensemblekit.rom.export import export

        export(held, out, what="reconstruction", which=slice(start, stop, step), overwrite=True)
    else:
        parts = list(held.parts())
        fields = {part.name: ek.Field(part.field.shape, part.field.dtype, part.unit) for part in parts}
        with ek.create(out, fields, capacity=len(rows), time_unit=held.time_unit) as store:
            for k in rows:
                time = None if held.times is None else float(held.times[k])
                store.append({part.name: part.reconstruct(int(k)).astype(part.field.dtype) for part in parts}, time=time)
    stdout.print(f"{len(rows)} snapshots from {held.rank} modes, error {100 * held.relative_error:.2g} % of the fluctuation")
    written(out)


@app.command(no_args_is_help=True)
def compress(
    file: Snapshots,
    tolerance: Annotated[float, typer.Option("--tolerance", help="The relative error allowed, as 0.01.", show_default=False)],
    fields: Fields = None, begin: Begin = None, end: End = None, step: Step = 1,
    norm: Annotated[Norm, typer.Option("--norm", help="Of all numbers together, or of the worst.")] = Norm.l2,
    relative_to: Annotated[Reference, typer.Option("--relative-to", help="What the error is compared with.")]
        = Reference.fluctuation,
    memory_limit: Memory = "2GiB", mesh: MeshFile = None, region: Region = None, snapshot_axis: Axis = None,
    inner_product: Annotated[str, typer.Option("--inner-product", metavar="none|auto|FILE", help="What weighs a number in "
                                               "the error: nothing, volumes of the mesh, or weights from an .npy file.")]
        = "none",
    missing: Annotated[Kept, typer.Option("--missing", help="NaN that comes and goes: refuse it, or keep it as NaN.")]
        = Kept.raise_,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.archive.h5 by default.", show_default=False)] = None,
    quiet: Quiet = False,
) -> None:
    """One archive of rounded modes and coefficients, its error checked against every snapshot."""
    from ensemblekit import rom

    source = read(file, fields, begin, end, step, mesh=mesh, region=region, snapshot_axis=snapshot_axis)
    target = out or beside(file, ".archive.h5")
    with bar(source, quiet) as progress:
        archive = rom.compress(source, target, tolerance=tolerance, norm=norm.value, relative_to=relative_to.value,
                               inner_product=weights_from(inner_product), missing=missing.value, memory_limit=memory_limit,
                               progress=progress)
    stdout.print(str(archive), markup=False, soft_wrap=True)
    written(target)


@app.command(no_args_is_help=True)
def decompress(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="What `rom compress` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The store to write.")],
) -> None:
    """All snapshots of an archive, into a store."""
    from ensemblekit import rom

    rom.decompress(archive, out)
    written(out)


@app.command(no_args_is_help=True)
def plot(
    basis: Annotated[Path, typer.Argument(metavar="BASIS", help="What `rom pod` wrote.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="BASIS without its suffixes by default.",
                                             show_default=False)] = None,
    truth: Annotated[str | None, typer.Option("--truth", metavar="FILE", help="The snapshots: draws one beside its "
                                              "reconstruction.", show_default=False)] = None,
    snapshot: Annotated[int, typer.Option("--snapshot", help="Which one.")] = -1,
    rank: Annotated[int | None, typer.Option("--rank", "-k", help="So many modes in the reconstruction.",
                                             show_default=False)] = None,
    component: Annotated[int | None, typer.Option("--component", help="Of a vector, from 0.", show_default=False)] = None,
    length: Annotated[float | None, typer.Option("--length", help="With --speed: frequencies as Strouhal numbers.",
                                                 show_default=False)] = None,
    speed: Annotated[float | None, typer.Option("--speed", help="See --length.", show_default=False)] = None,
) -> None:
    """Pictures of a basis: modes, spectrum, error of each snapshot, phase portrait, decay, reconstruction."""
    from ensemblekit import rom

    held = rom.Basis.load(basis)
    folder = out or basis.with_name(basis.name.removesuffix(".h5").removesuffix(".basis") + "-plots")
    draw_basis(held, folder, length, speed, component)
    if truth is not None:
        from ensemblekit.plot import rom as draw

        names = list(held.fields)
        source = read(truth, names, None, None, 1)
        k = range(held.n)[snapshot]
        (piece, *_) = source.window(k, k + 1).pieces(names, "time", False, 1 << 30)
        block = next(iter(piece.blocks()))
        for name in names:
            with notes():
                figure = draw.reconstruction(held, block.fields[name][0], k, rank=rank, field=name, component=component)
            save(figure, folder / f"{name}-reconstruction.png")


# -- shared ---------------------------------------------------------------------------------------------------------


def read(file: str, fields: list[str] | None, begin: float | None, end: float | None, step: int, **options: Any) -> Any:
    """A source from whatever the file is."""
    from ensemblekit import rom

    return rom.read(file, fields or None, begin=begin, end=end, step=step, **options)


def weights_from(text: str) -> Any:
    """An inner product in words, or from a file of weights."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    import numpy as np

    try:
        return np.load(text, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--inner-product is auto, none, or an .npy file with a weight for each cell; {text}: {error}"
                         ) from error


def beside(file: str, suffix: str) -> Path:
    """FILE with another suffix, in its folder; a pattern or case gives its own name's beginning."""
    path = Path(file)
    if suffix == BASIS and path.is_file():      # beside run.h5, as its folder run.h5.d is: run.vtkhdf has another basis
        return path.with_name(path.name + suffix)
    stem = path.name if path.is_dir() else path.stem
    clean = "".join(c for c in stem if c not in "*?[]").rstrip("_-.") or "snapshots"
    folder = path.parent if path.parent.is_dir() else Path()
    return folder / f"{clean}{suffix}"


@contextmanager
def notes() -> Iterator[None]:
    """Warnings as a line each, without a traceback's look."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning)):
        stderr.print("[yellow]note:[/]", text, soft_wrap=True)


@contextmanager
def bar(source: Any, quiet: bool) -> Iterator[Callable[[int, int | None], None] | bool]:
    """A bar a reading of the source, with bytes a second and the time left; nothing where no one looks."""
    if quiet or not stderr.is_terminal:
        yield False
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    row = sum(field.nbytes for field in source.fields.values())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as shown:
        reads: list[Any] = []
        last = [0]

        def tell(done: int, total: int | None) -> None:
            if not reads or done < last[0]:
                reads.append(shown.add_task(f"read {len(reads) + 1}", total=None if total is None else total * row))
            last[0] = done
            shown.update(reads[-1], completed=done * row)

        yield tell


def followed(file: str, fields: list[str] | None, target: Path, idle: float, inner_product: str, **rule: Any) -> Any:
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
                    with notes():
                        basis = replace(running.result(), mesh=mesh_of(store), time_unit=store.time_unit)
                    basis.save(target)
                    stderr.print(f"{running.n} snapshots: {basis}", style="dim", markup=False, soft_wrap=True)
            elif time.monotonic() - since >= idle:      # and there was nothing new at a look after that
                break
            else:
                time.sleep(min(1.0, max(0.05, idle / 20)))
    except KeyboardInterrupt:
        stderr.print("stopped; run it again to go on", style="dim")
    if basis is None:
        raise InputError(f"{file} had {max(seen, 0)} snapshots in {idle:g} s; POD needs at least 2")
    running.close()
    return basis


def show_modes(basis: Any, most: int = 10) -> None:
    """A row a mode: its energy, what is kept up to it, the error then."""
    from ensemblekit.cli.console import table
    from ensemblekit.plot.rom import travelling_pairs

    pairs = {k: pair for pair in travelling_pairs(basis) for k in pair}
    made = table("mode", "energy", "together", "error", "pair", right=("mode", "energy", "together", "error"))
    for k in range(min(basis.rank, most)):
        pair = f"{pairs[k][0] + 1}–{pairs[k][1] + 1}" if k in pairs else ""
        made.add_row(str(k + 1), f"{100 * basis.energy_fraction[k]:.3g} %", f"{100 * basis.cumulative_energy[k]:.6g} %",
                     f"{100 * basis.relative_errors[k]:.3g} %", pair)
    if basis.rank > most:
        made.add_row("…", "", "", "", "")
    stdout.print(made)


def draw_basis(basis: Any, folder: Path, length: float | None, speed: float | None, component: int | None = None) -> None:
    """Every picture that the basis allows, into a folder."""
    from ensemblekit.errors import EnsemblekitError
    from ensemblekit.plot import rom as draw

    folder.mkdir(parents=True, exist_ok=True)
    for part in basis.parts():
        figure = draw.modes(basis, field=part.name if len(basis.fields) > 1 else None, component=component)
        save(figure, folder / f"{part.name}-modes.png")
    save(draw.spectrum(basis).figure, folder / "spectrum.png")
    if basis.error_per_snapshot is not None:
        save(draw.snapshot_errors(basis).figure, folder / "errors.png")
    if basis.rank > 1:
        save(draw.phase_portrait(basis, length=length, speed=speed), folder / "phase.png")
    try:
        save(draw.decay(basis).figure, folder / "decay.png")
    except EnsemblekitError as error:
        stderr.print(f"no decay drawn: {error}", style="dim", markup=False, soft_wrap=True)


def save(figure: Any, path: Path) -> None:
    save_figure(figure, path)
    written(path)


def written(path: Path) -> None:
    from ensemblekit.cli.info import sizes

    stderr.print(f"written: {path} ({size(min(sizes(path)))})", style="dim", markup=False, soft_wrap=True)
