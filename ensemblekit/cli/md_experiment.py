"""``ensemblekit md field | spectrum``: what an experiment sees, from trajectories and snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblekit.cli.average import Place, Temperature, engine_of
from ensemblekit.cli.console import stderr
from ensemblekit.cli.md import (
    Begin,
    Confidence,
    Dt,
    End,
    EngineOption,
    Equilibration,
    Files,
    FrameWeights,
    Replicas,
    Whole,
    app,
    frame_weights,
    not_converged,
    opened,
    publish,
    start_of,
    window_of,
)
from ensemblekit.cli.output import (
    Csv,
    Json,
    Output,
    Overwrite,
    Plot,
    PlotFormat,
    RequireConverged,
    figure_of,
    figure_path,
    require,
    save_figure,
)
from ensemblekit.cli.verbs import add
from ensemblekit.errors import InputError
from ensemblekit.foreign import AnyArray

if TYPE_CHECKING:
    from ensemblekit.averaging.estimate import Estimate

spectrum = typer.Typer(no_args_is_help=True, help="Spectra with bands.",
                       context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(spectrum, name="spectrum")


def field(
    files: Files,
    at: Annotated[str | None, typer.Option("--at", metavar="SELECTION", help="At each of these atoms.")] = None,
    bond: Annotated[str | None, typer.Option("--bond", metavar="A;B", help="In the middle between two atoms, and along "
                                                                        "the bond from the first to the second.")] = None,
    center: Annotated[str | None, typer.Option("--center", metavar="SELECTION", help="At their center of mass.")] = None,
    points: Annotated[Path | None, typer.Option("--points", metavar="XYZ", help="At fixed points: a table of three columns, "
                                                                                "angstrom.")] = None,
    sources: Annotated[str, typer.Option("--sources", metavar="SELECTION", help="The charges that act.")] = "all",
    method: Annotated[str, typer.Option("--method", metavar="auto|ewald|nearest|open", help="All images, the nearest, or no "
                                                                                            "box.")] = "auto",
    exclude: Annotated[str, typer.Option("--exclude", metavar="residue|molecule|self|N|none|SELECTION",
                                         help="Whose charges do not act; N: atoms within so many bonds.")] = "residue",
    by: Annotated[str | None, typer.Option("--by", metavar="residue|segment|molecule|resname",
                                           help="What each group adds.")] = None,
    stark: Annotated[float | None, typer.Option("--stark", metavar="DEBYE", help="A difference dipole along the bond: the "
                                                                                "shift of its line in cm-1.")] = None,
    surface: Annotated[str, typer.Option("--surface", metavar="tinfoil|vacuum|slab-z")] = "tinfoil",
    tolerance: Annotated[float, typer.Option("--tolerance", help="Error of the field of a unit charge, V/Å.")] = 1e-4,
    unit: Annotated[str, typer.Option("--unit", metavar="V/A|MV/cm")] = "V/A",
    potential: Annotated[bool, typer.Option("--potential", help="The potential there, too.")] = False,
    begin: Begin = None, end: End = None, dt: Dt = None, replicas: Replicas = False, whole: Whole = False,
    equilibration: Equilibration = "auto", confidence: Confidence = 0.95, weights: FrameWeights = None,
    temperature: Temperature = None, engine: EngineOption = Place.threads, require_converged: RequireConverged = False,
    as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """The electric field at atoms, on a bond or at points, of all charges and their images, with intervals."""
    from ensemblekit import md

    place = _place(at, bond, center, points)
    left_out = {"none": None}.get(exclude, int(exclude) if exclude.isdigit() else exclude)
    options: dict[str, Any] = {"method": method, "exclude": left_out, "by": by, "surface": surface, "tolerance": tolerance}
    along = "bond" if bond is not None else None
    wanted: dict[str, Any] = {"field": md.ElectricField(place, sources, along=along, stark=stark, unit=unit, **options)}
    if potential:
        wanted["potential"] = md.ElectricPotential(place, sources, **options)
    source = opened(files, replicas, False, whole)
    found = md.average(source, wanted, whole=whole or None, engine=engine_of(engine), confidence=confidence,
                       equilibration=start_of(equilibration), progress=stderr.is_terminal,
                       frame_weights=frame_weights(source, weights, temperature), **window_of(source, begin, end, dt))
    publish(Output(as_json, as_csv, tuple(files)), found)
    if plot:
        save_figure(figure_of(found.plot()), figure_path(plot, "field", plot_format))
        if bond is not None:
            from ensemblekit.plot import fields

            if found["field"].projection.series is not None:
                save_figure(figure_of(fields.projection(found["field"])), figure_path(plot, "projection", plot_format))
            if by is not None:
                save_figure(figure_of(fields.strongest(found["field"])), figure_path(plot, "groups", plot_format))
    require(require_converged, not_converged(found))


def absorption(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False,
                                               help="Tables, a snapshot a row: E1 f1 E2 f2 ...; or outputs of ORCA, Gaussian "
                                                    "and others, a snapshot each.")],
    energy_unit: Annotated[str, typer.Option("--energy-unit", metavar="eV|nm|cm-1", help="Of the energies of tables.")] = "eV",
    width: Annotated[str, typer.Option("--width", metavar="EV|silverman|cv", help="Of a line: sigma of a Gaussian, half width "
                                                                                  "of a Lorentzian.")] = "0.1",
    shape: Annotated[str, typer.Option("--shape", metavar="gaussian|lorentzian")] = "gaussian",
    convention: Annotated[str, typer.Option("--convention", metavar="newton-x|plain|psi4", help="Of the factor (Delta E / E)^p."
                                            )] = "newton-x",
    unit: Annotated[str, typer.Option("--unit", metavar="M-1 cm-1|Angstrom2")] = "M-1 cm-1",
    range_: Annotated[tuple[float, float] | None, typer.Option("--range", metavar="LOW HIGH", help="Of the energies.")] = None,
    replicas: Annotated[bool, typer.Option("--replicas", help="Each table is an independent run.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Leave out outputs that hold no excitations.")] = False,
    confidence: Confidence = 0.95, equilibration: Equilibration = "auto", require_converged: RequireConverged = False,
    as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """The absorption spectrum of snapshots with vertical excitations, with interval and band."""
    import numpy as np

    from ensemblekit import md

    try:
        size: Any = width if width in ("silverman", "cv") else float(width)
    except ValueError:
        raise InputError(f"--width is a number in eV, silverman or cv; got {width!r}") from None
    missing: Any = "drop" if drop else "raise"
    read = ([md.excitations(file, unit=energy_unit, missing=missing) for file in files] if replicas else
            md.excitations(files, unit=energy_unit, missing=missing))
    options: dict[str, Any] = {"shape": shape, "convention": convention}
    found = md.absorption(read, width=size, unit=unit, confidence=confidence, equilibration=start_of(equilibration),
                          grid=None if range_ is None else np.linspace(*range_, 401), **options)
    n = sum(map(len, read)) if isinstance(read, list) else len(read)
    _publish(Output(as_json, as_csv, tuple(files)), found, "absorption", f"{n} snapshots")
    if plot:
        from ensemblekit.plot import spectra

        save_figure(figure_of(spectra.absorption(found)), figure_path(plot, "absorption", plot_format))
    require(require_converged, [] if found.converged else ["absorption"])


def infrared(
    files: Files,
    temperature: Annotated[float, typer.Option("--temperature", metavar="K", help="Of the run.")],
    select: Annotated[str, typer.Option("--select", metavar="SELECTION", help="The charges that move.")] = "all",
    flux: Annotated[str, typer.Option("--flux", metavar="auto|velocity|dipole")] = "auto",
    resolution: Annotated[float, typer.Option("--resolution", metavar="CM-1")] = 8.0,
    range_: Annotated[tuple[float, float], typer.Option("--range", metavar="LOW HIGH", help="In cm-1.")] = (0.0, 4000.0),
    normalise: Annotated[str, typer.Option("--normalise", metavar="volume|molar")] = "volume",
    quantum: Annotated[str, typer.Option("--quantum", metavar="harmonic|standard|schofield")] = "harmonic",
    begin: Begin = None, end: End = None, dt: Dt = None, replicas: Replicas = False, whole: Whole = False,
    confidence: Confidence = 0.95, engine: EngineOption = Place.threads, require_converged: RequireConverged = False,
    as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """The infrared absorption from the motion of the charges, in absolute units, with interval and band."""
    from ensemblekit import md

    options: dict[str, Any] = {"flux": flux, "normalise": normalise, "quantum": quantum}
    source = opened(files, replicas, False, whole)
    wanted = {"infrared": md.Infrared(select, temperature=temperature, resolution=resolution, range=range_, **options)}
    found = md.average(source, wanted, whole=whole or None, engine=engine_of(engine), confidence=confidence,
                       progress=stderr.is_terminal, **window_of(source, begin, end, dt))
    _publish(Output(as_json, as_csv, tuple(files)), found["infrared"], "infrared", "\n".join(found.notes))
    if plot:
        from ensemblekit.plot import spectra

        save_figure(figure_of(spectra.infrared(found["infrared"])), figure_path(plot, "infrared", plot_format))
    require(require_converged, not_converged(found))


def _publish(out: Output, found: Estimate, name: str, said: str) -> None:
    """A spectrum: its numbers as text and JSON, its points as CSV."""
    numbers = [f"{key}: {one}" for key, one in found.derived.items() if not isinstance(one.mean, AnyArray)]
    out.say("\n".join([f"{name}: {found}", *numbers, said]))
    axis, (x, unit) = next(iter(found.coords.items()))
    band = found.band if found.band is not None else (found.low, found.high)
    columns = [f"{axis} ({unit})", "mean", "low", "high", "band_low", "band_high"]
    rows = zip(x, found.mean, found.low, found.high, *band, strict=True)
    out.write({"estimates": {name: found.to_dict()}}, columns, (tuple(map(float, row)) for row in rows))


def _place(at: str | None, bond: str | None, center: str | None, points: Path | None) -> Any:
    """What of the options says where."""
    from ensemblekit import md

    given = [name for name, value in (("--at", at), ("--bond", bond), ("--center", center), ("--points", points))
             if value is not None]
    if len(given) != 1:
        raise InputError("say where, by one of --at SELECTION, --bond \"A;B\", --center SELECTION, --points FILE; got "
                         f"{', '.join(given) or 'none'}")
    if at is not None:
        return at
    if center is not None:
        return md.Center(center)
    if bond is not None:
        mark = ";" if ";" in bond else ":"
        pair = [one.strip() for one in bond.split(mark)]
        if len(pair) != 2:
            raise InputError("--bond takes two selections of one atom each with a semicolon (or one colon) between them; got "
                             f"{bond!r}")
        return md.Midpoint(pair[0], pair[1])
    assert points is not None
    return _table(points)


def _table(path: Path) -> Any:
    """Points of a table of three columns."""
    import numpy as np

    from ensemblekit.files import check_input

    check_input(path)
    try:
        found = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: points are a table of three columns of numbers, x y z in angstrom ({error})") from error
    if found.shape[1] != 3:
        raise InputError(f"{path}: points are a table of three columns, x y z in angstrom; this has {found.shape[1]}")
    return found


add(spectrum, infrared, "ensemblekit md spectrum ir run.h5md --temperature 300 --plot figures",
    "ensemblekit md spectrum ir top.psf run.dcd --temperature 300 --normalise molar --csv ir.csv", name="ir")
add(spectrum, absorption, "ensemblekit md spectrum absorption states.txt --width 0.05 --plot figures",
    "ensemblekit md spectrum absorption 'run/*/orca.out' --drop --csv spectrum.csv")
add(app, field, "ensemblekit md field run.h5md --bond 'resid 5 and name C; resid 5 and name O' --by residue --unit MV/cm",
    "ensemblekit md field top.psf run.dcd --at 'name NA' --exclude self --potential --json -")
