"""The tour: three fields through one store and one averaging core, on real input, in under two minutes."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ensemblekit.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console

    from ensemblekit.tour.act import Act

PACKAGES = ("MDAnalysis", "MDAnalysisTests", "torch", "sklearn", "matplotlib")


def run(out: str | Path = "tour", quick: bool = False) -> Path:
    """Play the three acts, write stores, pictures and one page into the folder `out`, and return the page's path.

    `quick` computes less (a coarser flow, fewer epochs) and says so on the page. What a former tour left in the
    folder is replaced.

    Raises MissingExtraError where a package of the extra "tour" is not installed.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "tour")
    from rich.console import Console

    from ensemblekit.tour import flow, md, neural
    from ensemblekit.tour.page import write

    console = Console()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    console.print("\n[bold]ensemblekit tour[/]  [dim]one store, one averaging core, three fields[/]\n")
    began = time.perf_counter()
    acts = []
    for number, (name, play) in enumerate((("molecular dynamics", md.act), ("fluid flow", flow.act),
                                           ("neural networks", neural.act)), 1):
        with console.status(f"act {number} of 3: {name} …"):
            acts.append(play(folder, quick))
        _tell(console, number, name, acts[-1])
    seconds = time.perf_counter() - began
    page = write(folder / "index.html", acts, seconds, quick)
    console.print(f"[bold]{seconds:.0f} s in all.[/] The page with the pictures: [bold cyan]{page}[/]\n")
    return page


def _clear(folder: Path) -> None:
    """Remove what a former tour wrote, and only that."""
    for path in [path for name in ("adk", "wake", "weights", "single") for path in folder.glob(f"{name}.*h5*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _tell(console: Console, number: int, name: str, act: Act) -> None:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold")
    table.add_column(style="dim")
    for one in act.numbers:
        table.add_row(one.label, one.value, one.note)
    console.print(Panel(Group(Text(act.question, style="italic"), "", table, "", Text(act.verdict)),
                        title=f"[bold]{number} · {act.title}[/]  [dim]{name}[/]", title_align="left",
                        subtitle=f"[dim]{act.seconds:.1f} s · {act.store}[/]", subtitle_align="right", padding=(1, 2)))
