"""``ensemblekit rom``: averages, modes, reconstructions and archives of stored flow fields, from the shell."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblekit.cli import rom_files, rom_galerkin, rom_models, rom_parametric
from ensemblekit.cli.average import ESTIMATE, Begin, Confidence, Dropped, End, discarded, estimate_rows
from ensemblekit.cli.average import Gaps as Dropping
from ensemblekit.cli.console import note, table
from ensemblekit.cli.export import Start, Step, Stop
from ensemblekit.cli.output import (
    Csv,
    Json,
    Output,
    Overwrite,
    Plot,
    PlotFormat,
    RequireConverged,
    check_folder,
    figure_of,
    figure_path,
    require,
    save_figure,
    written,
)
from ensemblekit.cli.rom_inputs import BASIS, bar, followed, new_store, output_file, read, weights_from
from ensemblekit.cli.verbs import add
from ensemblekit.errors import EnsemblekitError, InputError
from ensemblekit.provenance import Provenance

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from ensemblekit.rom.basis import Basis

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Snapshots = Annotated[str, typer.Argument(metavar="FILE", help="A store, a snapshot file, a case folder or a quoted pattern.",
                                          show_default=False)]
Fields = Annotated[list[str] | None, typer.Option("--field", "-f", help="A field; may be given again. All by default.",
                                                  show_default=False)]
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
RequireCertified = Annotated[bool, typer.Option("--require-certified", help="End with code 4 where the error was not measured "
                                                "on every snapshot, or is above what was asked for.")]


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


def average(
    file: Snapshots, fields: Fields = None, begin: Begin = None, end: End = None, step: Step = 1, mesh: MeshFile = None,
    region: Region = None, snapshot_axis: Axis = None,
    statistics: Annotated[str, typer.Option("--statistics", help="Any of mean, rms, reynolds_stress, tke, with "
                                            "commas.")] = "mean",
    velocity: Annotated[str | None, typer.Option("--velocity", help="The velocity's field, or its components' with commas: "
                                                 "u,v.", show_default=False)] = None,
    equilibration: Annotated[str, typer.Option("--equilibration", metavar="auto|none|N",
                                               help="Snapshots to leave out at the start.")] = "auto",
    confidence: Confidence = 0.95, missing: Dropping = Dropped.raise_, memory_limit: Memory = "2GiB",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="FILE.averages.npz by default; .vtkhdf for "
                                             "ParaView.", show_default=False)] = None,
    require_converged: RequireConverged = False, as_json: Json = None, as_csv: Csv = None, plot: Plot = None,
    plot_format: PlotFormat = "png", overwrite: Overwrite = False, quiet: Quiet = False,
) -> None:
    """Mean, rms, Reynolds stresses and kinetic energy of every cell, each with its interval."""
    from ensemblekit import rom

    target = output_file(out, file, ".averages.npz", overwrite)
    output = Output(as_json, as_csv, (file,))
    source = read(file, fields, begin, end, step, mesh=mesh, region=region, snapshot_axis=snapshot_axis)
    parts = None if velocity is None else tuple(velocity.split(",")) if "," in velocity else velocity
    start = discarded(equilibration)
    with bar(source, quiet) as progress:
        averages = rom.average(source, [name.strip() for name in statistics.split(",")], velocity=parts,
                               equilibration=None if start == "none" else start, confidence=confidence,
                               missing=missing.value, memory_limit=memory_limit, progress=progress)
    output.say(averages)
    if target.suffix == ".npz":
        averages.save(target)
    else:
        from ensemblekit.rom.export import export

        export(averages, target, overwrite=overwrite)
    written(target)
    output.write(averages.to_dict() | {"file": str(target)}, ("statistic", *ESTIMATE),
                 ((name, *row) for name, one in averages.items() for row in estimate_rows(name, one)))
    if plot:
        from ensemblekit.plot import rom as draw

        for name in averages:
            save_figure(figure_of(draw.average(averages, name)), figure_path(plot, name, plot_format))
            save_figure(figure_of(draw.run_length(averages, name)), figure_path(plot, f"{name}-run-longer", plot_format))
    require(require_converged, [name for name, one in averages.items() if not one.converged])


def pod(
    file: Snapshots, fields: Fields = None, begin: Begin = None, end: End = None, step: Step = 1, rank: Rank = None,
    energy: Energy = None, tolerance: Tolerance = None, memory_limit: Memory = "2GiB", method: Method = "auto",
    mesh: MeshFile = None, inner_product: Weights = "auto", missing: Gaps = Missing.raise_, region: Region = None,
    snapshot_axis: Axis = None,
    center: Annotated[str, typer.Option("--center", help="What is subtracted: mean, first or none.")] = "mean",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="BASIS", help="FILE.basis.h5 by default.",
                                             show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Keep up with a store that is being written; the basis is "
                                         "written again as it grows.")] = False,
    idle: Annotated[float, typer.Option("--idle", help="With --follow: seconds without a new snapshot after which to stop.")]
        = 60.0,
    require_certified: RequireCertified = False, as_json: Json = None, as_csv: Csv = None, plot: Plot = None,
    plot_format: PlotFormat = "png", overwrite: Overwrite = False, quiet: Quiet = False,
) -> None:
    """The modes that carry most of the energy, and the error that is left; writes FILE.basis.h5."""
    from ensemblekit import rom

    target = output_file(out, file, BASIS, overwrite or follow)     # one that is followed is written again and again
    output = Output(as_json, as_csv, (file,))
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
            note("energy 0.99, an error of 10 % (--rank, --energy or --tolerance for others)")
        rule: dict[str, Any] = {"energy": energy, "tolerance": tolerance, "center": center, "method": method,
                                "memory_limit": memory_limit, "inner_product": weights_from(inner_product)}
        plan = rom.plan(source, rank, **rule)
        note(plan)
        with bar(source, quiet) as progress:
            basis = rom.pod(source, rank, progress=progress, missing=missing.value, **rule)
        basis.save(target)
    output.say(basis)
    show_modes(basis, output)
    written(target)
    output.write(basis.to_dict() | {"file": str(target)}, ("mode", "singular_value", "energy", "cumulative_energy",
                                                           "relative_error"), mode_rows(basis))
    if plot:
        draw_basis(basis, plot, None, None, suffix=plot_format)
    require(require_certified, uncertified(basis, energy, tolerance), "certified")


def plan(
    file: Snapshots, fields: Fields = None, begin: Begin = None, end: End = None, step: Step = 1, rank: Rank = None,
    energy: Energy = None, tolerance: Tolerance = None, memory_limit: Memory = "2GiB", method: Method = "auto",
    mesh: MeshFile = None, inner_product: Weights = "auto", region: Region = None, snapshot_axis: Axis = None,
    as_json: Json = None, overwrite: Overwrite = False,
) -> None:
    """What `rom pod` with the same options would do: route, reads, bytes, memory, and why. Nothing is read."""
    from ensemblekit import rom

    source = read(file, fields, begin, end, step, mesh=mesh, region=region, snapshot_axis=snapshot_axis)
    planned = rom.plan(source, rank, energy=energy, tolerance=tolerance, method=method, memory_limit=memory_limit,
                       inner_product=weights_from(inner_product))
    output = Output(as_json, inputs=(file,))
    output.say(planned)
    output.write(planned.to_dict())


def reconstruct(
    basis: Annotated[Path, typer.Argument(metavar="BASIS", help="What `rom pod` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A store (.h5), or .vtkhdf for ParaView where there "
                                      "is a mesh.")],
    rank: Annotated[int | None, typer.Option("--rank", "-k", help="So many modes; all by default.", show_default=False)] = None,
    start: Start = 0, stop: Stop = None, step: Step = 1, as_json: Json = None, overwrite: Overwrite = False,
) -> None:
    """Snapshots again from modes and coefficients, into a store or a file for ParaView."""
    import ensemblekit as ek
    from ensemblekit import rom
    from ensemblekit.store.store import Store

    held = rom.Basis.load(basis)
    held = held if rank is None else held.truncate(rank)
    rows = range(held.n)[slice(start, stop, step)]
    if not len(rows):
        raise InputError(f"no snapshot between --start {start} and --stop {stop}; the basis is of {held.n}")
    if out.suffix == ".vtkhdf" and held.mesh is not None:
        from ensemblekit.rom.export import export

        export(held, out, what="reconstruction", which=slice(start, stop, step), overwrite=overwrite)
    else:
        parts = list(held.parts())
        fields = {part.name: ek.Field(part.field.shape, part.field.dtype, part.unit) for part in parts}
        with new_store(out, overwrite) as path, Store.create(
                path, fields, capacity=len(rows), time_unit=held.time_unit, origin=Provenance.now([basis])) as store:
            for k in rows:
                time = None if held.times is None else float(held.times[k])
                store.append({part.name: part.reconstruct(int(k)).astype(part.field.dtype) for part in parts}, time=time)
    output = Output(as_json, inputs=(str(basis),))
    output.say(f"{len(rows)} snapshots from {held.rank} modes, error {100 * held.relative_error:.2g} % of the fluctuation")
    written(out)
    output.write({"file": str(out), "snapshots": len(rows), "modes": held.rank, "relative_error": held.relative_error})


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
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="ARCHIVE", help="FILE.archive.h5 by default.",
                                             show_default=False)] = None,
    require_certified: RequireCertified = False, as_json: Json = None, as_csv: Csv = None, overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """One archive of rounded modes and coefficients, its error checked against every snapshot."""
    from ensemblekit import rom

    target = output_file(out, file, ".archive.h5", overwrite)
    source = read(file, fields, begin, end, step, mesh=mesh, region=region, snapshot_axis=snapshot_axis)
    with bar(source, quiet) as progress:
        archive = rom.compress(source, target, tolerance=tolerance, norm=norm.value, relative_to=relative_to.value,
                               inner_product=weights_from(inner_product), missing=missing.value, memory_limit=memory_limit,
                               progress=progress)
    output = Output(as_json, as_csv, (file,))
    output.say(archive)
    written(target)
    output.write(archive.to_dict(), ("field", "modes", "error", "allowed", "snapshots"), (
        (name, one.rank, one.error, archive.tolerance, one.shape[0]) for name, one in archive.items()))
    require(require_certified, [name for name, one in archive.items() if not one.error <= archive.tolerance], "certified")


def decompress(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="What `rom compress` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The store to write.")],
    overwrite: Overwrite = False,
) -> None:
    """All snapshots of an archive, into a store."""
    from ensemblekit import rom

    with new_store(out, overwrite) as path:
        rom.decompress(archive, path)
    written(out)


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
    plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """Pictures of a basis: modes, spectrum, error of each snapshot, phase portrait, decay, reconstruction."""
    from ensemblekit import rom

    held = rom.Basis.load(basis)
    folder = out or basis.with_name(basis.name.removesuffix(".h5").removesuffix(".basis") + "-plots")
    check_folder(folder, overwrite)
    draw_basis(held, folder, length, speed, component, plot_format)
    if truth is not None:
        from ensemblekit.plot import rom as draw

        names = list(held.fields)
        source = read(truth, names, None, None, 1)
        k = range(held.n)[snapshot]
        (piece, *_) = source.window(k, k + 1).pieces(names, "time", False, 1 << 30)
        block = next(iter(piece.blocks()))
        for name in names:
            drawn = draw.reconstruction(held, block.fields[name][0], k, rank=rank, field=name, component=component)
            save_figure(figure_of(drawn), figure_path(folder, f"{name}-reconstruction", plot_format))


def uncertified(basis: Basis, energy: float | None, tolerance: float | None) -> list[str]:
    """What speaks against the error of a basis, in words."""
    said = []
    if basis.error_per_snapshot is None:
        said.append("the error was not measured snapshot by snapshot")
    if tolerance is not None and not basis.relative_error <= tolerance:
        said.append(f"the error is {basis.relative_error:.3g}, {tolerance:g} was asked for")
    if energy is not None and not basis.rank:
        said.append("no mode was found")
    elif energy is not None and not basis.cumulative_energy[-1] >= energy * (1 - 1e-12):
        said.append(f"the modes hold {basis.cumulative_energy[-1]:.6g} of the energy, {energy:g} was asked for")
    return said


def mode_rows(basis: Basis) -> Iterator[tuple[int | float, ...]]:
    """A row a mode: number from 1, singular value, energy, energy up to it, error then."""
    for k, row in enumerate(zip(basis.singular_values, basis.energy_fraction, basis.cumulative_energy, basis.relative_errors,
                                strict=True), 1):
        yield (k, *map(float, row))


def show_modes(basis: Basis, output: Output, most: int = 10) -> None:
    """A row a mode: its energy, what is kept up to it, the error then."""
    from ensemblekit.plot.rom import travelling_pairs

    pairs = {k: pair for pair in travelling_pairs(basis) for k in pair}
    rows = table("mode", "energy", "together", "error", "pair", right=("mode", "energy", "together", "error"))
    for k in range(min(basis.rank, most)):
        pair = f"{pairs[k][0] + 1}–{pairs[k][1] + 1}" if k in pairs else ""
        rows.add_row(str(k + 1), f"{100 * basis.energy_fraction[k]:.3g} %", f"{100 * basis.cumulative_energy[k]:.6g} %",
                     f"{100 * basis.relative_errors[k]:.3g} %", pair)
    if basis.rank > most:
        rows.add_row("…", "", "", "", "")
    output.show(rows)


def draw_basis(basis: Basis, folder: Path, length: float | None, speed: float | None, component: int | None = None,
               suffix: str = "png") -> None:
    """Every figure that the basis allows, into a folder."""
    from ensemblekit.plot import rom as draw

    def save(drawn: Axes | np.ndarray, label: str) -> None:
        save_figure(figure_of(drawn), figure_path(folder, label, suffix))

    for part in basis.parts():
        save(draw.modes(basis, field=part.name if len(basis.fields) > 1 else None, component=component), f"{part.name}-modes")
    save(draw.spectrum(basis), "spectrum")
    if basis.error_per_snapshot is not None:
        save(draw.snapshot_errors(basis), "errors")
    if basis.rank > 1:
        save(draw.phase_portrait(basis, length=length, speed=speed), "phase")
    try:
        save(draw.decay(basis), "decay")
    except EnsemblekitError as error:
        note(f"no decay drawn: {error}")


add(app, average, "ensemblekit rom average run.h5 -b 10 --statistics mean,tke",
    "ensemblekit rom average 'flow_*.vtu' --plot figures --json -")
add(app, pod, "ensemblekit rom pod run.h5 --energy 0.999",
    "ensemblekit rom pod run.h5 -k 20 -f U -o U.basis.h5 --csv modes.csv")
add(app, plan, "ensemblekit rom plan run.h5 -k 20",
    "ensemblekit rom plan case/ --tolerance 0.01 --memory-limit 8GiB --json -")
add(app, reconstruct, "ensemblekit rom reconstruct run.h5.basis.h5 -o back.h5 -k 10",
    "ensemblekit rom reconstruct run.h5.basis.h5 -o back.vtkhdf --start -20")
add(app, compress, "ensemblekit rom compress run.h5 --tolerance 0.01",
    "ensemblekit rom compress run.h5 --tolerance 0.001 --norm max -o run.archive.h5")
add(app, decompress, "ensemblekit rom decompress run.archive.h5 -o back.h5",
    "ensemblekit rom decompress run.archive.h5 -o run.h5 --overwrite")
add(app, plot, "ensemblekit rom plot run.h5.basis.h5", "ensemblekit rom plot run.h5.basis.h5 --truth run.h5 -o figures")
add(app, rom_files.ingest, "ensemblekit rom ingest case/ -o run.vtkhdf -f U -f p",
    "ensemblekit rom ingest 'flow_*.vtu' -o run.vtkhdf -b 1.5 --single")
add(app, rom_files.export, "ensemblekit rom export run.h5.basis.h5 -o modes.vtkhdf",
    "ensemblekit rom export run.vtkhdf -o last.pvd --start -1", "ensemblekit rom export run.model.h5 -o run.mat")
add(app, rom_models.opinf, "ensemblekit rom opinf run.h5.basis.h5 --form cAH",
    "ensemblekit rom opinf run.h5.basis.h5 --form cAHB --inputs run.h5:rotation -o run.model.h5")
add(app, rom_models.dmd, "ensemblekit rom dmd run.h5.basis.h5 --method tls",
    "ensemblekit rom dmd run.h5.basis.h5 -k 8 --method opt --constraint stable --plot figures",
    "ensemblekit rom dmd live.h5 --follow -k 6")
add(app, rom_models.forecast, "ensemblekit rom forecast run.model.h5 --steps 200 --plot figures",
    "ensemblekit rom forecast run.model.h5 --steps 50 --inputs next.csv --csv forecast.csv")
add(app, rom_models.simulate, "ensemblekit rom simulate run.model.h5 --inputs u.csv --csv run.csv",
    "ensemblekit rom simulate run.model.h5 --steps 500 --json -")
add(app, rom_parametric.parametric, "ensemblekit rom parametric sweep.h5 --parameters design.csv",
    "ensemblekit rom parametric sweep.h5 --parameters design.csv -k 8 --method gp --plot figures --csv errors.csv")
add(app, rom_galerkin.galerkin, "ensemblekit rom galerkin run.h5.basis.h5 --equation burgers --viscosity 0.05",
    "ensemblekit rom galerkin wake.h5.basis.h5 --equation navier-stokes --viscosity 0.01 --boundary open --spacing 0.1")
