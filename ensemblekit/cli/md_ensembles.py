"""``ensemblekit md ensemble | compare | reweight``: conformers, what was measured of them, and weights that agree with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    app,
    not_converged,
    opened,
    parsed,
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

MODELS = (".cif", ".cif.gz", ".pdb", ".pdb.gz", ".ent", ".tar.gz", ".tgz", ".ens")
"""Suffixes of files that hold models by themselves."""


def ensemble(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False,
                                               help="A .cif, .pdb (also .gz), .tar.gz or .ens, or several of one model each.")],
    weights: Annotated[Path | None, typer.Option("--weights", metavar="TABLE", help="Of the models: the last column, or that "
                                                                                    "named weight.")] = None,
    select: Annotated[str, typer.Option("--select", metavar="SELECTION", help="The atoms that are compared.")] = "name CA",
    core: Annotated[str | None, typer.Option("--core", metavar="SELECTION", help="What is superposed.")] = None,
    diverse: Annotated[int | None, typer.Option("--diverse", metavar="K", help="Choose so many that are far apart.")] = None,
    common: Annotated[bool, typer.Option("--common", help="Keep the atoms that all models have.")] = False,
    title: Annotated[str, typer.Option("--title", help="Of the file that is written.")] = "",
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write all models with their weights: .cif, "
                                                                                ".pdb or .tar.gz.")] = None,
    confidence: Confidence = 0.95, as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png",
    overwrite: Overwrite = False,
) -> None:
    """An ensemble of conformers: how far they differ, which one stands for all, a few that are far apart."""
    from ensemblekit import md

    held = md.ConformerEnsemble.read(files[0] if len(files) == 1 else files, weights=weights, common=common)
    output = Output(as_json, as_csv, tuple(files))
    output.say(repr(held))
    spread = held.spread(select, core=core, confidence=confidence)
    middle = held.representative(select)
    output.say(f"spread of {select!r}, residue by residue: {spread}")
    for name in ("rmsd_to_mean", "pairwise_rmsd"):
        if name in spread.derived:
            output.say(f"{name}: {spread.derived[name]}")
    output.say(f"representative: model {middle.model} (from 0), mean RMSD to it {middle.mean_rmsd:.4g} Å")
    results: dict[str, object] = {"models": held.n, "atoms": len(held.topology), "n_eff": held.n_eff,
                                  "estimates": {"spread": spread.to_dict()}, "representative": middle.to_dict()}
    if diverse is not None:
        chosen = held.diverse(diverse, select, scores="weights" if held.source.weights is not None else None)
        output.say(f"{diverse} that are far apart: models {', '.join(map(str, chosen.indices))} "
                   f"(at least {chosen.separation:.4g} Å)")
        results["diverse"] = chosen.to_dict()
    rows = zip(spread.coords["residue"][0].tolist(), spread.mean, spread.low, spread.high, strict=True)
    output.write(results, ("residue", "spread", "low", "high"), (tuple(row) for row in rows))
    if out is not None:
        held.write(out, title=title)
        written(out)
    if plot:
        from ensemblekit.plot import ensemble as figures

        save_figure(figure_of(figures.spread(spread)), figure_path(plot, "spread", plot_format))
        save_figure(figure_of(figures.weights(held)), figure_path(plot, "weights", plot_format))


def _source(files: list[str], replicas: bool, whole: bool) -> Any:
    """The models of a single file that holds them, else a trajectory."""
    from ensemblekit import md

    if len(files) == 1 and files[0].lower().endswith(MODELS):
        return md.ConformerEnsemble.read(files[0])
    return opened(files, replicas, False, whole)


def compare(
    files: Files,
    do: Annotated[list[str], typer.Option("--do", metavar="NAME=OBSERVABLE", help="What was measured, such as "
                                                                                  "\"j=JCoupling('HN-HA')\".")],
    data: Annotated[list[str], typer.Option("--data", metavar="TABLE", help="Its data, one for each --do, in their order: "
                                                                            "label, value, sigma.")],
    fit: Annotated[str, typer.Option("--fit", metavar="no|scale|scale+offset", help="Of what is calculated.")] = "no",
    q_unit: Annotated[str, typer.Option("--q-unit", metavar="Angstrom-1|nm-1", help="Of profiles.")] = "Angstrom-1",
    begin: Begin = None, end: End = None, dt: Dt = None, replicas: Replicas = False, whole: Whole = False,
    equilibration: Equilibration = "auto", confidence: Confidence = 0.95, engine: EngineOption = Place.threads,
    require_converged: RequireConverged = False, as_json: Json = None, as_csv: Csv = None, plot: Plot = None,
    plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """Averages held against what was measured, datum by datum, with the errors of both."""
    from ensemblekit import md

    if len(do) != len(data):
        raise InputError(f"--data is given once for each --do, in their order; got {len(data)} for {len(do)}")
    scaling: Any = fit
    wanted = dict(parsed(text) for text in do)
    tables = {name: md.Data.read(path, unit=q_unit) for name, path in zip(wanted, data, strict=True)}
    source = _source(files, replicas, whole)
    window = {} if isinstance(source, md.ConformerEnsemble) else window_of(source, begin, end, dt)
    answers = md.average(source, wanted, whole=whole or None, engine=engine_of(engine), confidence=confidence,
                         equilibration=start_of(equilibration), progress=stderr.is_terminal, **window)
    output = Output(as_json, as_csv, (*files, *data))
    results, rows = {}, []
    for name, table in tables.items():
        one = md.compare(answers[name], table, fit=scaling)
        output.say(f"{name}: {one!r}")
        output.say(one.table())
        results[name] = one.to_dict()
        labels = table.labels or tuple(map(str, range(len(table))))
        rows += [(name, *row) for row in zip(labels, table.values, table.sigma, one.calculated, one.stderr, one.z, strict=True)]
        if plot:
            save_figure(figure_of(one.plot()), figure_path(plot, name, plot_format))
    for note in answers.remarks():
        output.say(note)
    output.write({"comparisons": results}, ("set", "datum", "measured", "sigma", "calculated", "stderr", "z"), rows)
    require(require_converged, not_converged(answers))


def reweight(
    exp: Annotated[list[str], typer.Option("--exp", metavar="TABLE", help="Data: label, value, sigma (# DATA=NOE as BME).")],
    calc: Annotated[list[str], typer.Option("--calc", metavar="TABLE", help="What was calculated, one for each --exp: a frame "
                                                                            "a row, a datum a column (before them a number "
                                                                            "of the frame, or none). Of NOEs distances.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The weights, frame and weight a line.")],
    theta: Annotated[str, typer.Option("--theta", metavar="auto|NUMBER", help="How much the prior is trusted.")] = "auto",
    prior: Annotated[Path | None, typer.Option("--prior", metavar="TABLE", help="Weights before.")] = None,
    fit: Annotated[str, typer.Option("--fit", metavar="no|scale|scale+offset", help="Of what was calculated.")] = "no",
    refit: Annotated[bool, typer.Option("--refit", help="Scale again with the new weights until nothing changes.")] = False,
    unordered: Annotated[bool, typer.Option("--unordered", help="The frames are in no order: models of an ensemble.")] = False,
    require_converged: RequireConverged = False, as_json: Json = None, as_csv: Csv = None, plot: Plot = None,
    plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """Weights of frames that agree with data and differ least from those before (maximum entropy), with a verdict."""
    from ensemblekit import md
    from ensemblekit.md.ensemble_files import read_weights

    if len(exp) != len(calc):
        raise InputError(f"--calc is given once for each --exp, in their order; got {len(calc)} for {len(exp)}")
    try:
        price: Any = theta if theta == "auto" else float(theta)
    except ValueError:
        raise InputError(f"--theta is auto or a number; got {theta!r}") from None
    scaling: Any = fit
    sets = {}
    for measured, calculated in zip(exp, calc, strict=True):
        data = md.Data.read(measured)
        values = _calculated(calculated, len(data))
        sets[Path(measured).stem] = (values**-data.power if data.kind == "NOE" else values, data)
    if len(sets) < len(exp):
        raise InputError("two --exp have one name; give their files different ones")
    answer = md.reweight(sets, theta=price, prior=None if prior is None else read_weights(prior), fit=scaling, refit=refit,
                         ordered=not unordered)
    output = Output(as_json, as_csv, (*exp, *calc))
    output.say(repr(answer))
    output.say(answer.table())
    answer.write(out)
    written(out)
    output.write({"reweighted": answer.to_dict()}, ("frame", "weight"), enumerate(map(float, answer.weights)))
    if plot:
        from ensemblekit.plot import ensemble as figures

        save_figure(figure_of(figures.reweighted(answer)), figure_path(plot, "theta", plot_format))
    require(require_converged, [] if answer.converged else ["weights"])


def _calculated(path: str, m: int) -> Any:
    """A table (frames, m), or (frames, m + 1) with a number of each frame first."""
    import numpy as np

    from ensemblekit.files import check_input

    check_input(path)
    try:
        table = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: what was calculated is a table of numbers, a frame a row ({error})") from error
    if table.shape[1] not in (m, m + 1):
        raise InputError(f"{path} has {table.shape[1]} columns, and there are {m} data: one column each, and perhaps a number "
                         "of the frame before them")
    return table[:, -m:]


add(app, ensemble, "ensemblekit md ensemble 2kod.cif --select 'name CA' --diverse 5 --plot figures",
    "ensemblekit md ensemble PED00001e001.tar.gz -o weighted.cif --json -")
add(app, compare, "ensemblekit md compare 2kod.cif --do \"j=JCoupling('HN-HA')\" --data couplings.dat",
    "ensemblekit md compare top.psf run.dcd --do \"s2=OrderParameter()\" --data s2.csv --csv -")
add(app, reweight, "ensemblekit md reweight --exp noe.dat --calc noe_calc.dat --theta 2 -o weights.dat",
    "ensemblekit md reweight --exp noe.dat --calc noe_calc.dat --exp j.dat --calc j_calc.dat -o weights.dat --plot figures")
