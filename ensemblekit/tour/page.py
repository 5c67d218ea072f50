"""The page that shows the tour: one file with everything in it."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from string import Template

from ensemblekit import __version__
from ensemblekit.engine import cores
from ensemblekit.files import write_text
from ensemblekit.tour.act import Act, Figure, Number

QUICK = '<p class="quick">A quick run: a coarser flow and a shorter training than the full tour.</p>'
FIELDS = {"md": "molecular dynamics", "rom": "fluid flow", "neural": "neural networks"}


def write(path: Path, acts: Sequence[Act], seconds: float, quick: bool) -> Path:
    """Fill the template and write it; returns the path."""
    template = Template((files("ensemblekit.tour") / "page.html").read_text("utf-8"))
    write_text(path, template.substitute(
        version=__version__, seconds=f"{seconds:.0f}", machine=escape(_machine()),
        quick=QUICK if quick else "",
        contents="".join(f'<li><a href="#{act.key}"><b>{escape(act.title)}</b><span>{FIELDS[act.key]}</span></a></li>'
                         for act in acts),
        acts="".join(_section(number, act) for number, act in enumerate(acts, 1))))
    return path


def _machine() -> str:
    versions = []
    for package in ("numpy", "h5py", "numba", "torch", "MDAnalysis"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    where = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {cores()} cores"
    return f"{where}; {', '.join(versions)}"


def _section(number: int, act: Act) -> str:
    return f"""
<section class="act {act.key}" id="{act.key}">
  <header><p class="kicker"><span>{number}</span>{FIELDS[act.key]}</p>
  <h2>{escape(act.title)}</h2><p class="question">{escape(act.question)}</p></header>
  <div class="story">
    <div><h3>What came in</h3><p>{escape(act.came_in)}</p></div>
    <div><h3>What was done</h3><p>{escape(act.done)}</p></div>
  </div>
  <figure class="code"><figcaption>the code</figcaption><pre><code>{escape(act.code)}</code></pre></figure>
  <dl class="numbers">{"".join(map(_number, act.numbers))}</dl>
  {"".join(map(_figure, act.figures))}
  <p class="verdict"><b>Verdict</b>{escape(act.verdict)}</p>
  <p class="small">Store: <code>{escape(act.store.name)}</code> · {act.seconds:.1f} s</p>
</section>"""


def _number(one: Number) -> str:
    label, value, note = map(escape, (one.label, one.value, one.note))
    return f'<div><dt>{label}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>'


def _figure(one: Figure) -> str:
    image = base64.b64encode(one.path.read_bytes()).decode("ascii")
    return (f'<figure class="picture"><img alt="{escape(one.alt)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{escape(one.caption)}</figcaption></figure>")
