"""``ensemblekit md field``: electric fields, potentials, maps and profiles of a trajectory."""

from __future__ import annotations

from dataclasses import replace
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
    written,
)
from ensemblekit.cli.verbs import add
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    from ensemblekit.md.observables.base import Observable
    from ensemblekit.md.result import Averages

At = Annotated[str | None, typer.Option("--at", metavar="SELECTION", help="At each of these atoms.")]
Bond = Annotated[str | None, typer.Option(
    "--bond", metavar="A;B", help="In the middle between two atoms, and along the bond from the first to the second.")]
CenterOf = Annotated[str | None, typer.Option(
    "--center", metavar="SELECTION", help="At their center of mass; with --map or --profile what stays in the middle of it.")]
XYZ = Annotated[Path | None, typer.Option(
    "--points", metavar="XYZ", help="At points, angstrom: a table x y z, or .npy of (points, 3) or (frames, points, 3).")]
Map = Annotated[Path | None, typer.Option("--map", metavar="FILE", help="The potential on a grid of the cell: .dx, .cube.")]
Spacing = Annotated[float, typer.Option("--spacing", metavar="ANGSTROM", help="Of the grid of --map.")]
Width = Annotated[float, typer.Option("--width", metavar="ANGSTROM", help="Of the Gaussians of charges for --map.")]
Profile = Annotated[str | None, typer.Option("--profile", metavar="x|y|z", help="The potential along an axis of the box.")]
Pymol = Annotated[Path | None, typer.Option("--pymol", metavar="FILE", help="Arrows of the field: .pml (PyMOL), .tcl (VMD).")]
Sources = Annotated[str, typer.Option("--sources", metavar="SELECTION", help="The charges that act.")]
MethodOf = Annotated[str, typer.Option("--method", metavar="auto|ewald|nearest|open", help="All images, the nearest, no box.")]
Exclude = Annotated[str, typer.Option("--exclude", metavar="residue|molecule|self|N|none|SELECTION",
                                      help="Whose charges do not act; N: atoms within so many bonds.")]
By = Annotated[str | None, typer.Option("--by", metavar="residue|segment|molecule|resname", help="What each group adds.")]
Stark = Annotated[str | None, typer.Option(
    "--stark", metavar="D|X,Y,Z", help="A difference dipole in debye, along the bond or a vector: the shift of a line, cm-1.")]
SurfaceOf = Annotated[str, typer.Option("--surface", metavar="tinfoil|vacuum|slab-z", help="What is around the cells.")]


def field(
    files: Files, at: At = None, bond: Bond = None, center: CenterOf = None, points: XYZ = None, map_: Map = None,
    spacing: Spacing = 1.0, width: Width = 2.0, profile: Profile = None, pymol: Pymol = None, sources: Sources = "all",
    method: MethodOf = "auto", exclude: Exclude = "residue", by: By = None, stark: Stark = None, surface: SurfaceOf = "tinfoil",
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
    from ensemblekit.md.arrows import arrow_suffix
    from ensemblekit.md.observables.potential_map import map_suffix

    wanted: dict[str, Observable] = {}
    mapped = map_ is not None or profile is not None
    if not mapped or (at, bond, points) != (None, None, None):
        place = _place(at, bond, None if mapped else center, points)
        left_out = {"none": None}.get(exclude, int(exclude) if exclude.isdigit() else exclude)
        options: dict[str, Any] = {"method": method, "exclude": left_out, "by": by, "surface": surface, "tolerance": tolerance}
        wanted["field"] = md.ElectricField(place, sources, along="bond" if bond is not None else None, stark=_dipole(stark),
                                           unit=unit, **options)
        if potential:
            wanted["potential"] = md.ElectricPotential(place, sources, **options)
    elif pymol is not None or potential:
        raise InputError("--pymol and --potential are about places: say where, by one of --at, --bond, --points")
    if pymol is not None:
        arrow_suffix(pymol)
    if map_ is not None:
        map_suffix(map_)
        wanted["map"] = md.PotentialMap(spacing, sources, width=width, center=center)
    if profile is not None:
        around: Any = surface
        wanted["profile"] = md.PotentialProfile(profile, sources, surface=around, center=center)
    source = opened(files, replicas, False, whole)
    found = md.average(source, wanted, whole=whole or None, engine=engine_of(engine), confidence=confidence,
                       equilibration=start_of(equilibration), progress=stderr.is_terminal,
                       frame_weights=frame_weights(source, weights, temperature), **window_of(source, begin, end, dt))
    if map_ is not None:
        md.write_map(found["map"], map_)
        written(map_)
    if pymol is not None:
        md.write_arrows(source, place, found["field"], pymol)
        written(pymol)
    listed = replace(found, estimates={name: one for name, one in found.estimates.items() if name != "map"})
    if listed.estimates:
        publish(Output(as_json, as_csv, tuple(files)), listed)
    else:
        Output().say("\n".join(found.notes))
    if plot:
        _draw(found, plot, plot_format)
    require(require_converged, not_converged(found))


def _draw(found: Averages, folder: Path, suffix: str) -> None:
    """The figures that belong to what was asked for."""
    from ensemblekit.plot import fields

    shown = [name for name in found.estimates if name != "map"]
    if shown:
        save_figure(figure_of(found.plot(names=shown)), figure_path(folder, "field", suffix))
    if "map" in found.estimates:
        save_figure(figure_of(fields.map_slice(found["map"])), figure_path(folder, "map", suffix))
    one = found.estimates.get("field")
    if one is None or "projection" not in one.derived:
        return
    if one.derived["projection"].series is not None:
        save_figure(figure_of(fields.projection(one)), figure_path(folder, "projection", suffix))
    if "groups" in one.derived:
        save_figure(figure_of(fields.strongest(one)), figure_path(folder, "groups", suffix))


def _dipole(text: str | None) -> float | list[float] | None:
    """A number, or three with commas between them."""
    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise InputError(f"--stark is a number in debye, or three with commas between them; got {text!r}")
    return numbers[0] if len(numbers) == 1 else numbers


def _place(at: str | None, bond: str | None, center: str | None, points: Path | None) -> Any:
    """What of the options says where."""
    from ensemblekit import md

    given = [name for name, value in (("--at", at), ("--bond", bond), ("--center", center), ("--points", points))
             if value is not None]
    if len(given) != 1:
        raise InputError("say where, by one of --at SELECTION, --bond \"A;B\", --center SELECTION, --points FILE (or --map, "
                         f"--profile); got {', '.join(given) or 'none'}")
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
    """Points of a table of three columns, or of an array (points, 3) or (frames, points, 3)."""
    import numpy as np

    from ensemblekit.files import check_input

    check_input(path)
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{path}: no array of numbers ({error})") from error
    try:
        found = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: points are a table of three columns of numbers, x y z in angstrom ({error})") from error
    if found.shape[1] != 3:
        raise InputError(f"{path}: points are a table of three columns, x y z in angstrom; this has {found.shape[1]}")
    return found


add(app, field, "ensemblekit md field run.h5md --bond 'resid 5 and name C; resid 5 and name O' --by residue --unit MV/cm",
    "ensemblekit md field top.psf run.dcd --map potential.dx --center protein --plot figures")
