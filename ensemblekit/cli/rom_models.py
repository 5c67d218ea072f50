"""``ensemblekit rom opinf | dmd | forecast | simulate``: reduced models of a basis, and what they say of times to come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblekit.cli.output import (
    Csv,
    Json,
    Output,
    Overwrite,
    Plot,
    PlotFormat,
    check_file,
    figure_of,
    figure_path,
    save_figure,
    written,
)
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from ensemblekit.rom.modal import ModalModel
    from ensemblekit.rom.quadratic import QuadraticModel

MODEL = ".model.h5"

BasisFile = Annotated[Path, typer.Argument(metavar="BASIS", help="What `rom pod` wrote.", show_default=False)]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="What `rom opinf` or `rom dmd` wrote.", show_default=False)]
Inputs = Annotated[str | None, typer.Option("--inputs", metavar="FILE[:NAME]", show_default=False,
                                            help="Inputs, a row a snapshot: a .csv or .npy file, or a field of a store.")]
Steps = Annotated[int | None, typer.Option("--steps", help="How many periods.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="MODEL", help="FILE.model.h5 by default.",
                                          show_default=False)]
Resamples = Annotated[int, typer.Option("--resamples", help="Fits to resampled blocks, for intervals; 0: none.")]


def opinf(
    basis: BasisFile,
    form: Annotated[str, typer.Option("--form", help="Letters of the terms: constant c, linear A, quadratic H, input B, input "
                                      "times state N.")] = "cAH",
    inputs: Inputs = None,
    time: Annotated[str, typer.Option("--time", help="auto, continuous or discrete.")] = "auto",
    regularisation: Annotated[str, typer.Option("--regularisation", metavar="search|X", help="Weight on the operators, or "
                                                "search.")] = "search",
    horizon: Annotated[float, typer.Option("--horizon", help="The search integrates so many spans beyond the training.")] = 3.0,
    bound: Annotated[float, typer.Option("--bound", help="And rejects models that leave its range so many times.")] = 1.5,
    resamples: Resamples = 200, out: Out = None, as_json: Json = None, as_csv: Csv = None, plot: Plot = None,
    plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """A quadratic model learned from the coefficients of a basis; writes FILE.model.h5."""
    from ensemblekit import rom

    target = out or basis.with_name(basis.name.removesuffix(".h5").removesuffix(".basis") + MODEL)
    check_file(target, overwrite)
    held = rom.Basis.load(basis)
    model = rom.operator_inference(held, form=form, inputs=_inputs(inputs, basis), time=_word(time),
                                   regularisation=_weight(regularisation), horizon=horizon, bound=bound, n_resamples=resamples)
    _answer(model, target, Output(as_json, as_csv, (str(basis),)))
    if plot:
        from ensemblekit.plot import dynamics as draw

        save_figure(figure_of(draw.eigenvalues(model.eigenvalues)), figure_path(plot, "eigenvalues", plot_format))
        if model.fit is not None and model.fit.search is not None:
            save_figure(figure_of(draw.search(model)), figure_path(plot, "regularisation", plot_format))


def dmd(
    basis: BasisFile,
    rank: Annotated[int | None, typer.Option("--rank", "-k", help="So many modes; all by default.", show_default=False)] = None,
    method: Annotated[str, typer.Option("--method", help="exact, tls, fb or opt.")] = "exact",
    constraint: Annotated[str | None, typer.Option("--constraint", help="With opt: stable or neutral.",
                                                   show_default=False)] = None,
    inputs: Inputs = None, resamples: Resamples = 200, out: Out = None, as_json: Json = None, as_csv: Csv = None,
    plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """Dynamic modes of a basis, each with its growth and frequency; writes FILE.model.h5."""
    from ensemblekit import rom

    target = out or basis.with_name(basis.name.removesuffix(".h5").removesuffix(".basis") + MODEL)
    check_file(target, overwrite)
    options: dict[str, Any] = {"method": method, "constraint": constraint}
    model = rom.dmd(rom.Basis.load(basis), rank, inputs=_inputs(inputs, basis), n_resamples=resamples, **options)
    _answer(model, target, Output(as_json, as_csv, (str(basis),)))
    if plot:
        from ensemblekit.plot import dynamics as draw

        save_figure(figure_of(draw.eigenvalues(model.eigenvalues)), figure_path(plot, "eigenvalues", plot_format))
        if isinstance(model, rom.ModalModel):
            save_figure(figure_of(draw.modal(model, kind="power")), figure_path(plot, "power", plot_format))


def _answer(model: QuadraticModel | ModalModel, target: Path, output: Output) -> None:
    """Save a model and show it, an eigenvalue a row."""
    model.save(target)
    output.say(model)
    written(target)
    values = model.eigenvalues
    none = (None, None)
    low_high = values.interval or {}
    output.write(model.to_dict() | {"file": str(target)}, EIGENVALUES, (
        (k + 1, float(values.growth[k]), float(values.frequency[k]),
         *(None if ends is None else float(ends[k]) for name in ("growth", "frequency") for ends in low_high.get(name, none)))
        for k in range(len(values))))


EIGENVALUES = ("mode", "growth", "frequency", "growth_low", "growth_high", "frequency_low", "frequency_high")


def forecast(
    model: ModelFile, steps: Steps = None, inputs: Inputs = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the band.")] = 0.95,
    resamples: Resamples = 200, as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png",
    overwrite: Overwrite = False,
) -> None:
    """Coefficients after the end of the training, each with its band."""
    held = _model(model)
    u = _inputs(inputs, model)
    n = steps if steps is not None else 100 if u is None else len(u)
    predicted = held.predict(n, u, confidence=confidence, n_resamples=resamples)
    output = Output(as_json, as_csv, (str(model),))
    output.say(predicted)
    names = [f"a{k + 1}" for k in range(held.rank)]
    ends = [] if predicted.low is None else [f"{name}_{end}" for name in names for end in ("low", "high")]

    def row(j: int) -> list[float]:
        bands = [] if predicted.low is None or predicted.high is None else [
            float(x) for pair in zip(predicted.low[j], predicted.high[j], strict=True) for x in pair]
        return [float(predicted.times[j]), *map(float, predicted.coefficients[j].real), *bands]

    output.write(predicted.to_dict(), ("time", *names, *ends), (row(j) for j in range(predicted.n)))
    if plot:
        from ensemblekit.plot import dynamics as draw

        save_figure(figure_of(draw.forecast(predicted)), figure_path(plot, "forecast", plot_format))


def simulate(
    model: ModelFile, steps: Steps = None, inputs: Inputs = None,
    start: Annotated[int, typer.Option("--start", help="The snapshot of the basis to start from.")] = 0,
    as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """A run of a model from a snapshot of its basis on."""
    import numpy as np

    held = _model(model)
    if held.basis is None or held.training is None:
        raise InputError(f"{model} holds no basis to start from; in Python: model.simulate(x0, times)")
    if not -held.basis.n <= start < held.basis.n:
        raise InputError(f"--start is a snapshot of the basis, 0 to {held.basis.n - 1}; got {start}")
    u = _inputs(inputs, model)
    n = steps + 1 if steps is not None else held.basis.n - start % held.basis.n if u is None else len(u)
    clock = held.basis.times
    begin = 0.0 if clock is None else float(clock[start])
    times = begin + (held.period or held.training.interval) * np.arange(float(n))
    run = held.simulate(held.basis.coefficients[start], times, u)
    output = Output(as_json, as_csv, (str(model),))
    output.say(run)
    output.write(run.to_dict(), ("time", *(f"a{k + 1}" for k in range(held.rank))),
                 ([float(t), *map(float, x.real)] for t, x in zip(run.times, run.coefficients, strict=True)))
    if plot:
        from ensemblekit.plot import dynamics as draw

        save_figure(figure_of(draw.trajectory(run)), figure_path(plot, "trajectory", plot_format))


def _model(path: Path) -> QuadraticModel | ModalModel:
    from ensemblekit import rom

    held = rom.load(path)
    if isinstance(held, rom.Basis):
        raise InputError(f"{path} holds a basis; ensemblekit rom opinf and dmd make models of it")
    if isinstance(held, rom.ParametricModel):
        raise InputError(f"{path} holds a model of design parameters, which does not run in time; in Python: model.predict(mu)")
    return held


def _word(time: str) -> Any:
    if time not in ("auto", "continuous", "discrete"):
        raise InputError(f"--time is auto, continuous or discrete; got {time}")
    return time


def _weight(text: str) -> Any:
    try:
        return text if text == "search" else float(text)
    except ValueError as error:
        raise InputError(f"--regularisation is search or a number; got {text}") from error


def _inputs(text: str | None, beside: Path) -> np.ndarray | None:
    """Inputs (n, m) from a .csv or .npy file, FILE:NAME of a store, or NAME of the store that a basis file stands beside."""
    if text is None:
        return None
    import numpy as np

    path, _, name = text.rpartition(":")
    if text.endswith((".csv", ".txt")):
        return _csv(text)
    if text.endswith(".npy"):
        try:
            return np.load(text, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"--inputs {text}: {error}") from error
    from ensemblekit import rom
    from ensemblekit.rom.training import input_columns

    if not path:
        store = beside.with_name(beside.name.removesuffix(".h5").removesuffix(".basis").removesuffix(".model"))
        if not store.is_file():
            raise InputError(f"--inputs {text}: there is no {store} beside {beside.name} to read it from; name the file, "
                             f"FILE:{text}")
        path = str(store)
    return input_columns(rom.read(path, [name]))[0]


def _csv(path: str) -> np.ndarray:
    """Numbers of a table, a head of names left out."""
    import numpy as np

    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline()
        has_head = any(c.isalpha() for c in first.lower().replace("e", "").replace("nan", "").replace("inf", ""))
        return np.loadtxt(path, delimiter=",", skiprows=int(has_head), ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"--inputs {path}: {error}") from error
