"""``ensemblekit md ingest | average | rdf | report | topology``: trajectories into stores, and averages of them."""

from __future__ import annotations

import ast
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblekit.cli.average import Dropped, Gaps, Place, Temperature, discarded, engine_of, weights_of
from ensemblekit.cli.console import size, stderr, table
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
from ensemblekit.files import write_text
from ensemblekit.source import ReplicaSet, described

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from MDAnalysis import Universe
    from MDAnalysis.coordinates.timestep import Timestep

    from ensemblekit.md.frame_weights import FrameWeights as Weights
    from ensemblekit.md.result import Averages
    from ensemblekit.source import SnapshotSource

app = typer.Typer(no_args_is_help=True, help="Trajectories of molecular dynamics: into a store, and averages with error bars.",
                  context_settings={"help_option_names": ["-h", "--help"]})

Files = Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False,
                                            help="A store (.h5md), several of them (replicas), or a topology and its "
                                                 "trajectory (several files: the parts of one run).")]
Begin = Annotated[float | None, typer.Option("-b", "--begin", metavar="PS", help="First time.")]
End = Annotated[float | None, typer.Option("-e", "--end", metavar="PS", help="Last time.")]
Dt = Annotated[float | None, typer.Option("--dt", metavar="PS", help="Only frames this far apart.")]
Replicas = Annotated[bool, typer.Option("--replicas", help="The trajectories are independent runs, not parts of one.")]
Whole = Annotated[bool, typer.Option("--whole", help="Molecules are whole already; nothing is mended at the box.")]
GuessBonds = Annotated[bool, typer.Option("--guess-bonds", help="Guess bonds from distances, where the topology has none.")]
Equilibration = Annotated[str, typer.Option("--equilibration", metavar="auto|none|N|PSps",
                                            help="What is left out at the start: 500 is frames, 500ps a time.")]
Confidence = Annotated[float, typer.Option("--confidence", help="Of the intervals.")]
EngineOption = Annotated[Place, typer.Option("--engine", help="Where the work is done; the answer is the same.")]
FrameWeights = Annotated[list[str] | None, typer.Option(
    "--weights", metavar="FILE:COLUMN", help="Statistical weights of the frames, joined by time: COLVAR:w, or with "
                                             "--temperature those of a bias, COLVAR:metad.rbias (several: a,b). Of replicas "
                                             "once for each.")]


def ingest(
    topology: Annotated[str, typer.Argument(metavar="TOPOLOGY", show_default=False)],
    trajectories: Annotated[list[str], typer.Argument(metavar="TRAJECTORY...", show_default=False,
                                                      help="Parts of one run, in order; with --replicas a run each.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="STORE", help="Ends in .h5md.")],
    select: Annotated[str, typer.Option("--select", help="The atoms to keep, in MDAnalysis' language.")] = "all",
    begin: Begin = None, end: End = None, dt: Dt = None, replicas: Replicas = False,
    unwrap: Annotated[bool, typer.Option("--unwrap", help="Make molecules whole along their bonds.")] = False,
    center: Annotated[str | None, typer.Option("--center", metavar="SELECTION", help="Put these atoms into the middle of the "
                                                                                     "box and wrap the others around.")] = None,
    guess_bonds: GuessBonds = False, whole: Whole = False, engine: EngineOption = Place.threads,
    append: Annotated[bool, typer.Option("--append", help="Take up the frames after the last one of a store that is "
                                                          "there: the run went on.")] = False,
    as_json: Json = None, overwrite: Overwrite = False,
) -> None:
    """Copy a trajectory into a store that opens in MDAnalysis and VMD, too. What was interrupted goes on where it was."""
    from ensemblekit import md
    from ensemblekit.md.system import times_known

    changes = _transformations(unwrap, center)
    chosen: dict[str, Any] = {"select": select, "transformations": changes, "whole": whole, "begin": begin, "end": end}
    if guess_bonds:
        chosen["guess_bonds"] = True
    if dt is not None:
        first = md.read(topology, trajectories[0] if replicas else trajectories)
        chosen["step"] = step_of(first.times, dt)
    what: Any = None if replicas else trajectories if len(trajectories) > 1 else trajectories[0]
    store = md.ingest(topology, what, out, replicas=trajectories if replicas else None, append=append,
                      engine=engine_of(engine), progress=stderr.is_terminal, **chosen)
    output = Output(as_json, inputs=(topology, *trajectories))
    stores = []
    runs: Any = store.runs if isinstance(store, ReplicaSet) else (store,)
    for one in runs:
        times = one.times if times_known(one) else None
        span = f", {times[0]:g} to {times[-1]:g} ps" if times is not None and len(times) else ""
        nbytes = sum(Path(p).stat().st_size for p in one.segments)
        atoms = one.fields["position"].shape[0]
        output.say(f"{one.path}: {len(one)} frames of {atoms} atoms{span} ({', '.join(one.fields)}; {size(nbytes)})")
        stores.append({"store": one.path, "frames": len(one), "atoms": atoms, "fields": list(one.fields), "bytes": nbytes,
                       "first_time": None if times is None or not len(times) else times[0],
                       "last_time": None if times is None or not len(times) else times[-1], "time_unit": "ps"})
    output.write({"stores": stores})



def average(
    files: Files,
    rg: Annotated[list[str] | None, typer.Option("--rg", metavar="SELECTION", help="Radius of gyration.")] = None,
    rmsd: Annotated[list[str] | None, typer.Option("--rmsd", metavar="SELECTION", help="RMSD from the first frame.")] = None,
    rmsf: Annotated[list[str] | None, typer.Option("--rmsf", metavar="SELECTION", help="Fluctuation of each atom.")] = None,
    distance: Annotated[list[str] | None, typer.Option("--distance", metavar="A:B", help="Distance of two selections.")] = None,
    do: Annotated[list[str] | None, typer.Option(
        "--do", metavar="NAME=OBSERVABLE", help="Any observable, such as \"q=NativeContacts('name CA')\".")] = None,
    begin: Begin = None, end: End = None, dt: Dt = None, replicas: Replicas = False, whole: Whole = False,
    guess_bonds: GuessBonds = False, equilibration: Equilibration = "auto", confidence: Confidence = 0.95,
    weights: FrameWeights = None, temperature: Temperature = None, missing: Gaps = Dropped.raise_,
    engine: EngineOption = Place.threads, require_converged: RequireConverged = False, as_json: Json = None,
    as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
    pdb: Annotated[Path | None, typer.Option("--pdb", metavar="FILE",
                                             help="The first frame with B-factors from the first --rmsf.")] = None,
) -> None:
    """Averages of observables over the frames, all in one read, each with its interval and whether it can be trusted."""
    from ensemblekit import md

    wanted: dict[str, Any] = {}
    for word, texts, kind in (("rg", rg, md.RadiusOfGyration), ("rmsd", rmsd, md.RMSD), ("rmsf", rmsf, md.RMSF)):
        for k, text in enumerate(texts or []):
            wanted[word if k == 0 else f"{word} {k + 1}"] = kind(text)
    for k, text in enumerate(distance or []):
        pair = text.split(":")
        if len(pair) != 2:
            raise InputError(f"--distance takes two selections with one colon between them; got {text!r}. For selections that "
                             "hold colons: --do \"d=Distance('...', '...')\"")
        wanted["distance" if k == 0 else f"distance {k + 1}"] = md.Distance(pair[0], pair[1])
    for text in do or []:
        name, observable = parsed(text)
        wanted[name] = observable
    if not wanted:
        raise InputError("name an observable: --rg protein, --rmsd \"name CA\", --do \"q=NativeContacts('name CA')\"")
    fluctuation = next((name for name in wanted if name.startswith("rmsf")), "")
    if pdb is not None and not fluctuation:
        raise InputError("--pdb needs --rmsf, whose squares are the B-factors")
    source = opened(files, replicas, guess_bonds, whole)
    averages = md.average(source, wanted, whole=whole or None, engine=engine_of(engine), confidence=confidence,
                          equilibration=start_of(equilibration), progress=stderr.is_terminal, missing=missing.value,
                          frame_weights=frame_weights(source, weights, temperature), **window_of(source, begin, end, dt))
    out = Output(as_json, as_csv, tuple(files))
    publish(out, averages)
    if plot:
        draw(averages, figure_path(plot, "averages", plot_format))
    if pdb is not None:
        md.write_bfactors(source, averages[fluctuation], wanted[fluctuation].select, pdb)
        written(pdb)
    require(require_converged, not_converged(averages))


def rdf(
    files: Files,
    select_a: Annotated[str, typer.Option("--select-a", metavar="SELECTION", help="From these atoms.")],
    select_b: Annotated[str | None, typer.Option("--select-b", metavar="SELECTION",
                                                    help="To these; by default among themselves.")] = None,
    range_: Annotated[tuple[float, float], typer.Option("--range", metavar="LOW HIGH", help="In angstrom.")] = (0.0, 15.0),
    bins: Annotated[int, typer.Option("--bins")] = 75,
    begin: Begin = None, end: End = None, dt: Dt = None, replicas: Replicas = False, confidence: Confidence = 0.95,
    weights: FrameWeights = None, temperature: Temperature = None,
    engine: EngineOption = Place.threads, require_converged: RequireConverged = False, as_json: Json = None,
    as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """The radial distribution function with its band, its first peak, and the running coordination number."""
    import numpy as np

    from ensemblekit import md

    source = opened(files, replicas, False, False)
    observable = md.RDF(select_a, select_b or select_a, range=range_, n_bins=bins)
    averages = md.average(source, {"rdf": observable}, engine=engine_of(engine), confidence=confidence,
                          frame_weights=frame_weights(source, weights, temperature), progress=stderr.is_terminal,
                          **window_of(source, begin, end, dt))
    g = averages["rdf"]
    r = next(iter(g.coords.values()))[0]
    top = int(np.nanargmax(g.mean))
    out = Output(as_json, as_csv, tuple(files))
    half = (g.high[top] - g.low[top]) / 2
    extra: dict[str, object] = {"highest_peak": {"g": g.mean[top], "half_interval": half, "r": r[top]}}
    said = [f"highest peak: g = {g.mean[top]:.3f} ± {half:.3f} at r = {r[top]:.3g} Å"]
    if "coordination" in g.derived:
        n = g.coordination
        after = top + int(np.argmin(g.mean[top:])) if top < len(r) - 1 else top
        half = (n.high[after] - n.low[after]) / 2
        said.append(f"coordination up to the minimum behind it, {r[after]:.3g} Å: {n.mean[after]:.3f} ± {half:.3f}")
        extra["coordination"] = {"n": n.mean[after], "half_interval": half, "r": r[after]}
    publish(out, averages, "\n".join(["", *said]), **extra)
    if plot:
        draw(averages, figure_path(plot, "rdf", plot_format))
    require(require_converged, not_converged(averages))


def report(
    files: Files,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The page: .html, .pdf, .png or .svg.")],
    select: Annotated[str, typer.Option("--select", help="The atoms it is about.")] = "protein and name CA",
    begin: Begin = None, end: End = None, dt: Dt = None, replicas: Replicas = False, whole: Whole = False,
    guess_bonds: GuessBonds = False, require_converged: RequireConverged = False, as_json: Json = None, as_csv: Csv = None,
    overwrite: Overwrite = False,
) -> None:
    """One page on the quality of the sampling: intervals, n_eff, correlation times, verdicts, RMSD of all to all frames."""
    from ensemblekit import md
    from ensemblekit.plot import md as figures

    if out.suffix.lower() not in PAGES:
        raise InputError(f"--out names a page that ends in {', '.join(PAGES)}; got {out.name!r}")
    source = opened(files, replicas, guess_bonds, whole)
    window = window_of(source, begin, end, dt)
    wanted = {"gyration": md.RadiusOfGyration(select), "rmsd": md.RMSD(select), "end to end": md.EndToEnd(select)}
    averages = md.average(source, wanted, whole=whole or None, progress=stderr.is_terminal, **window)
    publish(Output(as_json, as_csv, tuple(files)), averages)
    matrix, edges = md.sampled_rmsd(source, select, whole=whole or None, **window)
    page = figures.report(averages, matrix, edges, title=", ".join(Path(file).name for file in files))
    saved(figure_of(page), out, str(averages))
    require(require_converged, not_converged(averages))


def topology(
    store: Annotated[str, typer.Argument(metavar="STORE", show_default=False, help="Made by md ingest.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Any format MDAnalysis writes: .pdb, .gro, ...")],
    frame: Annotated[int, typer.Option("--frame", help="The frame whose positions go along.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write the topology of a store, with the positions of one frame, for other programs."""
    from ensemblekit import md

    md.write_topology(store, out, frame=frame)
    written(out)


def opened(files: list[str], replicas: bool, guess_bonds: bool, whole: bool) -> SnapshotSource:
    """A source from the files of a command line."""
    from ensemblekit import md
    from ensemblekit.md.frames import as_frames

    if files[0].endswith((".h5md", ".h5")):
        return as_frames(files[0] if len(files) == 1 else files)
    options: dict[str, Any] = {"guess_bonds": True} if guess_bonds else {}
    if len(files) == 1:
        return md.read(files[0], whole=whole, **options)
    if replicas:
        return md.read(files[0], replicas=files[1:], whole=whole, **options)
    return md.read(files[0], files[1:], whole=whole, **options)


def frame_weights(source: SnapshotSource, texts: list[str] | None, temperature: float | None) -> Weights | list[Weights] | None:
    """What --weights names, one of a run or a list of replicas."""
    if not texts:
        if temperature is not None:
            raise InputError("--temperature goes with --weights FILE:COLUMN, the bias of the run")
        return None
    weights = [weights_of(text, temperature) for text in texts]
    runs = len(source.runs) if isinstance(source, ReplicaSet) else 1
    if len(weights) != runs:
        raise InputError(f"--weights is given once for each of the {runs} runs, in their order; got {len(weights)}")
    return weights if isinstance(source, ReplicaSet) else weights[0]


def start_of(word: str) -> str | int | float | None:
    """ "auto", "none", frames, or a time such as 500ps."""
    if word.endswith("ps"):
        try:
            return float(word[:-2])
        except ValueError:
            raise InputError("--equilibration is auto, none, a number of frames, or a time such as 500ps; got "
                             f"{word!r}") from None
    return discarded(word)


def step_of(times: np.ndarray | None, dt: float) -> int:
    """Every how many frames make `dt` ps."""
    if times is None or len(times) < 2:
        raise InputError("--dt needs frames with times")
    spacing = float(times[-1] - times[0]) / (len(times) - 1)
    step = round(dt / spacing) if spacing > 0 else 0
    if step < 1 or abs(step * spacing - dt) > 1e-3 * dt:
        raise InputError(f"--dt {dt:g} is no multiple of {spacing:g} ps, by which the frames are apart")
    return step


def parsed(text: str) -> tuple[str, Any]:
    """``q=NativeContacts('name CA', radius=4.5)`` as its name and observable; only names of md and plain values."""
    from ensemblekit import md

    name, _, call = text.partition("=")
    try:
        tree = ast.parse(call.strip(), mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError("no observable with its settings in brackets")
        arguments = [ast.literal_eval(one) for one in tree.args]
        options = {str(one.arg): ast.literal_eval(one.value) for one in tree.keywords}
    except (SyntaxError, ValueError) as error:
        raise InputError(f"--do takes NAME=OBSERVABLE, such as \"q=NativeContacts('name CA')\"; got {text!r} "
                         f"({error})") from error
    from ensemblekit.md.observables.base import Observable

    known: dict[str, Any] = {
        kind: value for kind, value in vars(md).items()
        if isinstance(value, Observable) and value not in (Observable, md.Function)}
    if tree.func.id not in known:
        raise InputError(f"{tree.func.id!r} is no observable; there are {', '.join(sorted(known))}")
    try:
        return name.strip(), known[tree.func.id](*arguments, **options)
    except TypeError as error:
        raise InputError(f"{tree.func.id}: {error}") from error


def window_of(source: SnapshotSource, begin: float | None, end: float | None, dt: float | None) -> dict[str, Any]:
    """Which frames -b, -e and --dt leave, as md.average takes it."""
    window: dict[str, Any] = {"begin": begin, "end": end}
    if dt is not None:
        first = source.runs[0] if isinstance(source, ReplicaSet) else source
        window["step"] = step_of(described(first).times, dt)
    return window


def _transformations(unwrap: bool, center: str | None) -> Callable[[Universe], list[Callable[[Timestep], Timestep]]] | None:
    if not unwrap and center is None:
        return None

    def steps_of(u: Universe) -> list[Callable[[Timestep], Timestep]]:
        from MDAnalysis import transformations as change

        steps = [change.unwrap(u.atoms)] if unwrap else []
        if center is not None:
            steps += [change.center_in_box(u.select_atoms(center)), change.wrap(u.atoms, compound="fragments" if unwrap else
                                                                               "residues")]
        return steps

    return steps_of


PAGES = (".html", ".pdf", ".png", ".svg")


def saved(figure: Figure, path: Path, text: str) -> None:
    """A figure as a file; as .html a page of its own with the text above it."""
    if path.suffix.lower() != ".html":
        save_figure(figure, path)
        return
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    drawn = buffer.getvalue()
    write_text(path, '<!doctype html><html lang="en"><meta charset="utf-8"><title>Averages</title>\n'
                     '<body style="font: 14px sans-serif; margin: 2em">\n'
                     f"<pre>{html.escape(text)}</pre>\n{drawn[drawn.index('<svg'):]}\n</body></html>\n")
    written(path)


def draw(averages: Averages, path: Path) -> None:
    """The averages, a panel each, as a file."""
    save_figure(figure_of(averages.plot()), path)


def publish(out: Output, averages: Averages, more: str = "", **extra: object) -> None:
    """Averages as a table with what there is to say of them, and as JSON and CSV where asked for."""
    head, *body = averages.cells()
    rows = table(*head)
    for row in body:
        rows.add_row(*row)
    out.show(rows)
    out.say("\n".join([*averages.remarks(), *([more] if more else [])]))
    columns = [dict(row) for row in averages.rows()]
    out.write(averages.to_dict() | extra, list(columns[0]), (tuple(row.values()) for row in columns))


def not_converged(averages: Averages) -> list[str]:
    """Names of the averages that have not converged."""
    return [name for name, estimate in averages.items() if not estimate.converged]


add(app, ingest, "ensemblekit md ingest top.psf run.dcd -o run.h5md",
    "ensemblekit md ingest top.gro a.xtc b.xtc --replicas --select protein -o run.h5md")
add(app, average, "ensemblekit md average run.h5md --rg protein --rmsd 'name CA'",
    "ensemblekit md average top.psf run.dcd --do \"q=NativeContacts('name CA')\" -b 1000 --json -")
add(app, rdf, "ensemblekit md rdf run.h5md --select-a 'name OH2'",
    "ensemblekit md rdf top.gro run.xtc --select-a 'name NA' --select-b 'name CL' --plot figures")
add(app, report, "ensemblekit md report run.h5md -o sampling.html",
    "ensemblekit md report top.psf a.dcd b.dcd --replicas -o sampling.pdf")
add(app, topology, "ensemblekit md topology run.h5md -o run.pdb",
    "ensemblekit md topology run.h5md --frame 10 -o frame.gro")
