"""``ensemblekit neural segment``: the regions of segmented images by doubt, and a page of pictures of the most doubtful."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblekit.cli.console import table
from ensemblekit.cli.neural_evidence import Groups, Name, Seed, groups_of
from ensemblekit.cli.neural_report import named
from ensemblekit.cli.output import Cell, Csv, Json, Output, Overwrite, check_file, figure_of, written
from ensemblekit.errors import InputError
from ensemblekit.files import replacing

if TYPE_CHECKING:
    from ensemblekit.neural import Region, Segmentation

SHOWN = 12
"""Regions in the table of the terminal."""
STYLE = ("body{font:14px/1.45 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}"
         "table{border-collapse:collapse;margin:1em 0}"
         "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #ddd}img{max-width:100%;"
         "margin:.5em 0}pre{white-space:pre-wrap}")


def segment(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Snapshots, or saved predictions of maps.", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", metavar="MODULE:NAME", help="A function that makes the model, or the "
                                                                                     "model.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="MODULE:NAME", help="A function that makes the loader of "
                                                                                   "images, or the loader.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FOLDER", show_default=False,
                                             help="For index.html, cases.csv and regions.csv.")] = None,
    task: Annotated[str, typer.Option("--task", help="segmentation, or binary for one logit a pixel.")] = "segmentation",
    spacing: Annotated[str | None, typer.Option("--spacing", help="mm of a voxel: 0.7, or 5,0.7,0.7.")] = None,
    window: Annotated[str | None, typer.Option("--window", help="Level and width of the pictures' grey: 40,400.")] = None,
    candidate: Annotated[float, typer.Option("--candidate", help="p from which a voxel belongs to a region.")] = 0.2,
    margin: Annotated[int, typer.Option("--margin", help="Voxels about a region that are measured with it.")] = 2,
    keep: Annotated[int, typer.Option("--pictures", help="Of so many images, those with most doubt.")] = 8,
    groups: Groups = None, seed: Seed = 0, name: Name = "predictions", as_json: Json = None, as_csv: Csv = None,
    overwrite: Overwrite = False,
) -> None:
    """Regions that the members see in images, ranked by doubt; with --model and --data of images, else of saved predictions."""
    from ensemblekit import neural

    if (model is None) != (data is None):
        raise InputError("give both --model and --data, or neither for predictions that were saved")
    for file in ("index.html", "cases.csv", "regions.csv") if out is not None else ():
        assert out is not None
        check_file(out / file, overwrite) if out.is_dir() else None
    source = neural.load_predictions(store, name) if model is None else neural.Ensemble.from_store(
        store, named(model, called=True), task=task)      # type: ignore[call-overload]
    found = neural.segment(source, None if data is None else named(data, called=True), spacing=_numbers(spacing, "--spacing"),
                           candidate=candidate, margin=margin, keep=keep, groups=groups_of(groups), seed=seed)
    output = Output(as_json, as_csv, (store,))
    show(output, found)
    from ensemblekit.neural.segmentation import REGION_COLUMNS

    output.write(found.to_dict(), REGION_COLUMNS, _rows(found.regions))
    if out is not None:
        for path in found.to_csv(out):
            written(path)
        level = _numbers(window, "--window")
        if level is not None and len(level) != 2:
            raise InputError(f"--window is level and width, such as 40,400; got {window!r}")
        page = out / "index.html"
        with replacing(page, follow=True) as temporary:
            Path(temporary).write_text(html_page(found, None if level is None else (level[0], level[1])), "utf-8")
        written(page)


def show(out: Output, found: Segmentation) -> None:
    """What was found in a few lines, and the regions of most doubt."""
    for line in found.summary():
        out.say(line)
    rows = table("image", "class", "no.", "volume", "low – high", "seen by", "exp. Dice", "doubt",
                 right=("image", "class", "no.", "volume", "exp. Dice", "doubt"))
    for one in found.regions[:SHOWN]:
        rows.add_row(*map(str, (one.case, one.label, one.number)), f"{one.volume:.3g}",
                     f"{one.volume_low:.3g} – {one.volume_high:.3g}", f"{one.sighted} of {found.n_members}",
                     f"{one.expected_dice:.2f}" if one.in_pool else "no mask", f"{one.doubt:.2f}")
    out.show(rows)
    out.say(f"volumes in {found.unit}" + (f"; {len(found.regions) - SHOWN} regions of less doubt are not shown"
                                          if len(found.regions) > SHOWN else ""), "dim")
    for note in found.notes:
        out.say(f"note: {note}")


def html_page(found: Segmentation, window: tuple[float, float] | None) -> str:
    """A page that needs no other file: the figures over all images, and pictures of those with most doubt."""
    from ensemblekit.plot import segmentation as draw

    pictures = [("All images", draw.overview(found))]
    pictures += [(f"Image {held.case}", draw.case(found, held.case, window=window)) for held in found.kept]
    parts = [f"<h2>{html.escape(title)}</h2><img alt=\"{html.escape(title)}\" src=\"data:image/png;base64,{_png(axes)}\">"
             for title, axes in pictures]
    head = ("image", "class", "no.", f"volume ({found.unit})", "low", "high", "seen by", "expected Dice", "true Dice", "doubt")
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(one, found.n_members))}</tr>"
                   for one in found.regions)
    return (f"<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Segmentation</title><style>{STYLE}</style>"
            f"<h1>Segmentation</h1><pre>{html.escape(str(found))}</pre>{parts[0]}<h2>Regions by doubt</h2>"
            f"<table><tr>{''.join(f'<th>{html.escape(one)}</th>' for one in head)}</tr>{rows}</table>"
            f"{''.join(parts[1:])}</html>\n")


def _cells(one: Region, members: int) -> Iterator[str]:
    yield from (str(one.case), str(one.label), str(one.number), f"{one.volume:.3g}", f"{one.volume_low:.3g}",
                f"{one.volume_high:.3g}", f"{one.sighted} of {members}",
                f"{one.expected_dice:.2f}" if one.in_pool else "no mask",
                "" if one.true_dice != one.true_dice else f"{one.true_dice:.2f}", f"{one.doubt:.2f}")


def _rows(regions: Sequence[Region]) -> Iterator[tuple[Cell, ...]]:
    from ensemblekit.neural.segmentation import region_rows

    for row in region_rows(regions):
        yield tuple(value if isinstance(value, str | int | float | None) else str(value) for value in row)


def _png(axes: object) -> str:
    import numpy as np

    buffer = io.BytesIO()
    figure_of(np.asarray(axes, dtype=object)).savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"{option} takes numbers with commas between them; got {text!r}") from error
