"""``ensemblekit rom galerkin``: an equation on the modes of a basis."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblekit.cli.output import Csv, Json, Output, Overwrite, Plot, PlotFormat, check_file
from ensemblekit.cli.rom_models import BasisFile, Out, answer, draw_eigenvalues, model_file
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    from ensemblekit.rom.equations import Equation


class Named(StrEnum):
    """Equations that can be projected without a line of code."""

    heat = "heat"
    burgers = "burgers"
    navier_stokes = "navier-stokes"


class Boundary(StrEnum):
    """Of the box of Navier and Stokes."""

    periodic = "periodic"
    open = "open"


def galerkin(
    basis: BasisFile,
    equation: Annotated[Named, typer.Option("--equation", help="What the snapshots solve.")],
    viscosity: Annotated[float | None, typer.Option("--viscosity", help="Of burgers and navier-stokes.",
                                                    show_default=False)] = None,
    diffusivity: Annotated[float | None, typer.Option("--diffusivity", help="Of heat.", show_default=False)] = None,
    boundary: Annotated[Boundary, typer.Option("--boundary", help="Of navier-stokes.")] = Boundary.periodic,
    spacing: Annotated[float | None, typer.Option("--spacing", help="Of the points, of heat and navier-stokes.",
                                                  show_default=False)] = None,
    length: Annotated[float | None, typer.Option("--length", help="Of the interval of burgers; 2 by default.",
                                                 show_default=False)] = None,
    out: Out = None, as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png",
    overwrite: Overwrite = False,
) -> None:
    """An equation projected on the modes of a basis, and what it leaves on the snapshots; writes FILE.model.h5."""
    from ensemblekit import rom

    target = model_file(out, basis)
    check_file(target, overwrite)
    chosen = _equation(equation, viscosity, diffusivity, boundary.value, spacing, length=length)
    model = rom.galerkin(rom.Basis.load(basis), chosen)
    answer(model, target, Output(as_json, as_csv, (str(basis),)))
    if plot:
        draw_eigenvalues(model, plot, plot_format)


def _equation(name: Named, viscosity: float | None, diffusivity: float | None, boundary: str, spacing: float | None, *,
              length: float | None) -> Equation:
    from ensemblekit.rom import equations

    if name is Named.heat:
        return equations.heat(_needed(diffusivity, name, "--diffusivity"), spacing=spacing)
    nu = _needed(viscosity, name, "--viscosity")
    if name is Named.burgers:
        return equations.burgers(nu, length=2.0 if length is None else length)
    return equations.navier_stokes(nu, boundary="open" if boundary == "open" else "periodic", spacing=spacing)


def _needed(value: float | None, name: Named, option: str) -> float:
    if value is None:
        raise InputError(f"--equation {name.value} needs {option}")
    return value
