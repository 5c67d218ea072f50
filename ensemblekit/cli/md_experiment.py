"""``ensemblekit md spectrum``: what an experiment sees, from trajectories and snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblekit.cli.average import Place, engine_of
from ensemblekit.cli.console import stderr
from ensemblekit.cli.md import (
    Begin,
    Confidence,
    Dt,
    End,
    EngineOption,
    Equilibration,
    Files,
    Replicas,
    Whole,
    not_converged,
    opened,
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
    estimate = md.absorption(read, width=size, unit=unit, confidence=confidence, equilibration=start_of(equilibration),
                             grid=None if range_ is None else np.linspace(*range_, 401), **options)
    n = sum(map(len, read)) if isinstance(read, list) else len(read)
    _publish(Output(as_json, as_csv, tuple(files)), estimate, "absorption", f"{n} snapshots")
    if plot:
        from ensemblekit.plot import spectra

        save_figure(figure_of(spectra.absorption(estimate)), figure_path(plot, "absorption", plot_format))
    require(require_converged, [] if estimate.converged else ["absorption"])


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
    averages = md.average(source, wanted, whole=whole or None, engine=engine_of(engine), confidence=confidence,
                          progress=stderr.is_terminal, **window_of(source, begin, end, dt))
    _publish(Output(as_json, as_csv, tuple(files)), averages["infrared"], "infrared", "\n".join(averages.notes))
    if plot:
        from ensemblekit.plot import spectra

        save_figure(figure_of(spectra.infrared(averages["infrared"])), figure_path(plot, "infrared", plot_format))
    require(require_converged, not_converged(averages))


def _publish(out: Output, estimate: Estimate, name: str, said: str) -> None:
    """A spectrum: its numbers as text and JSON, its points as CSV."""
    numbers = [f"{key}: {one}" for key, one in estimate.derived.items() if not isinstance(one.mean, AnyArray)]
    out.say("\n".join([f"{name}: {estimate}", *numbers, said]))
    axis, (x, unit) = next(iter(estimate.coords.items()))
    band = estimate.band if estimate.band is not None else (estimate.low, estimate.high)
    columns = [f"{axis} ({unit})", "mean", "low", "high", "band_low", "band_high"]
    rows = zip(x, estimate.mean, estimate.low, estimate.high, *band, strict=True)
    out.write({"estimates": {name: estimate.to_dict()}}, columns, (tuple(map(float, row)) for row in rows))


add(spectrum, infrared, "ensemblekit md spectrum ir run.h5md --temperature 300 --plot figures",
    "ensemblekit md spectrum ir top.psf run.dcd --temperature 300 --normalise molar --csv ir.csv", name="ir")
add(spectrum, absorption, "ensemblekit md spectrum absorption states.txt --width 0.05 --plot figures",
    "ensemblekit md spectrum absorption 'run/*/orca.out' --drop --csv spectrum.csv")
