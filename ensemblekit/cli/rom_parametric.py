"""``ensemblekit rom parametric``: a field as a function of design parameters."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblekit.cli.output import (
    Csv,
    Json,
    Output,
    Overwrite,
    Plot,
    PlotFormat,
    figure_of,
    figure_path,
    save_figure,
    written,
)
from ensemblekit.cli.rom_files import Fields
from ensemblekit.cli.rom_inputs import output_file, read
from ensemblekit.cli.rom_models import MODEL
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    import numpy as np


Samples = Annotated[str, typer.Argument(metavar="FILE", help="A store or snapshot file, a snapshot a sample.",
                                        show_default=False)]


class Interpolant(StrEnum):
    """How coefficients are interpolated between samples."""

    auto = "auto"
    gp = "gp"
    rbf = "rbf"
    linear = "linear"


def parametric(
    file: Samples,
    parameters: Annotated[Path, typer.Option("--parameters", metavar="FILE", help="A row a sample: a .csv with a head of "
                                             "names, or .npy.")],
    fields: Fields = None,
    rank: Annotated[int | None, typer.Option("--rank", "-k", help="So many modes; those of 99.99 % of the energy by default.",
                                             show_default=False)] = None,
    method: Annotated[Interpolant, typer.Option("--method", help="auto takes the one of least left-out error.")]
        = Interpolant.auto,
    kernel: Annotated[str, typer.Option("--kernel", help="Of rbf: one of scipy's RBFInterpolator.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="MODEL", help="FILE.model.h5 by default.",
                                             show_default=False)] = None,
    as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """A field as a function of design parameters, with the error of each sample left out; writes FILE.model.h5."""
    from ensemblekit import rom

    target = output_file(out, file, MODEL, overwrite)
    names, points = _parameters(parameters)
    source = read(file, fields, None, None, 1)
    model = rom.parametric(source, points if names is None else dict(zip(names, points.T, strict=True)), rank,
                           method=method.value, kernel=kernel)
    model.save(target)
    output = Output(as_json, as_csv, (file, str(parameters)))
    output.say(model)
    best = model.next_sample()
    output.say("next sample: " + ", ".join(f"{name} {x:.6g}" for name, x in zip(model.names, best, strict=True)))
    written(target)
    output.write(model.to_dict() | {"file": str(target), "next_sample": [float(x) for x in best]},
                 (*model.names, "error", "own_error"),
                 ([*map(float, point), float(a), float(b)] for point, a, b in zip(
                     model.parameters, model.errors, model.left_out.own_errors, strict=True)))
    if plot:
        from ensemblekit.plot import parametric as draw

        save_figure(figure_of(draw.model(model)), figure_path(plot, "error-map", plot_format))


def _parameters(path: Path) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Names, where the table has a head, and numbers (n, p)."""
    import numpy as np

    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
            return None, values.reshape(len(values), -1)
        with open(path, encoding="utf-8-sig") as file:
            head = [word.strip() for word in file.readline().split(",")]
        named = any(not _is_number(word) for word in head)
        values = np.loadtxt(path, delimiter=",", skiprows=int(named), ndmin=2, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"--parameters {path}: {error}") from error
    if named and len(head) != values.shape[1]:
        raise InputError(f"--parameters {path}: the head has {len(head)} names, the rows {values.shape[1]} numbers")
    return tuple(head) if named else None, values


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
