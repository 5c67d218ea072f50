"""The two consoles: what people read on stdout and stderr, shown as it is, whatever characters it holds.

Text of the user (names of files and fields, units, provenance, labels) is never parsed as markup. Characters that would
steer the terminal are shown by their numbers, and those that its encoding lacks in ASCII.
"""

from __future__ import annotations

import codecs
import io
import logging
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)

ASCII = {"±": "+/-", "×": "x", "·": ".", "−": "-", "–": "-", "—": "-", "─": "-", "━": "-", "│": "|", "…": "...", "Å": "A",
         "µ": "u", "μ": "u", "°": "deg", "τ": "tau", "χ": "chi", "ε": "eps", "σ": "sigma", "δ": "delta", "Δ": "Delta",
         "ρ": "rho", "λ": "lambda", "π": "pi", "φ": "phi", "ψ": "psi", "θ": "theta", "α": "alpha", "β": "beta",
         "γ": "gamma", "≤": "<=", "≥": ">=", "≈": "~", "√": "sqrt", "→": "->", "Σ": "sum", "∞": "inf",
         "\N{NO-BREAK SPACE}": " ",         "’": "'", "‘": "'", "“": '"', "”": '"', "•": "*", "█": "#"}
RAISED = {ord(high): low for high, low in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True)}
ASCII_HEAD = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""A rule of - under the head, and no frame."""
POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
STEERING = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
"""Categories of characters that have no look of their own: controls, directions of writing, halves of characters."""


def escaped(text: str, keep: str = "\n") -> str:
    """Text whose control characters stand as \\x1b, bytes of a name that are no text as \\xff; those in `keep` stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in STEERING else _number(c) for c in text)


def _number(c: str) -> str:
    code = ord(c)
    if 0xDC80 <= code <= 0xDCFF:        # a byte of a file name that is no text in the encoding of file names
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def encodable(text: str, encoding: str) -> str:
    """Text in the characters of an encoding: what it lacks in ASCII (±: +/-, m²: m^2), or by its number."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = POWER.sub(lambda run: run[0] if _known(run[0], encoding) else "^" + run[0].translate(RAISED), text)
        return "".join(c if _known(c, encoding) else _ascii(c) for c in text)
    return text


def _known(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _ascii(c: str) -> str:
    plain = ASCII.get(c) or unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
    return plain or _number(c)


def shown(text: object, console: Console = stdout, keep: str = "\n") -> str:
    """Text as this console can show it; `keep`: control characters that stay as they are."""
    return encodable(escaped(str(text), keep), console.encoding)


def say(text: object, style: str = "", *, console: Console = stdout) -> None:
    """Lines of text, as they are and however long."""
    console.print(Text(shown(text, console), style), soft_wrap=True)


def note(text: object, style: str = "dim") -> None:
    """A line about the work, on stderr."""
    say(text, style, console=stderr)


class Rows(Table):
    """A table whose cells are text and nothing else; Text for a styled one."""

    def add_row(self, *cells: RenderableType | None, style: object = None, end_section: bool = False) -> None:
        super().add_row(*(cell_of(cell) if isinstance(cell, str) else cell for cell in cells), end_section=end_section)


def cell_of(text: object, style: str = "") -> Text:
    """A text as a cell of a table, in one line."""
    return Text(shown(text, keep=""), style)


def table(*columns: str, right: tuple[str, ...] = ()) -> Rows:
    """The one look of all tables: a rule under the head, no frame, numbers to the right."""
    rows = Rows(box=box.SIMPLE_HEAD if _known("─", stdout.encoding) else ASCII_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        # a unit that is broken at its spaces reads as two: it makes a block of the rows before that
        rows.add_column(cell_of(name), justify="right" if name in right else "left", overflow="fold", no_wrap=name == "unit")
    return rows


def show(rows: Table, console: Console = stdout) -> None:
    """A table where it fits without breaking a word; else a block a row, a line a column."""
    if Measurement.get(console, console.options.update(max_width=10_000), rows).minimum <= console.width:
        console.print(rows)
        return
    heads = [column.header for column in rows.columns]
    width = max(len(str(head)) for head in heads)
    columns = [list(column.cells) for column in rows.columns]
    for row in zip(*columns, strict=True):
        block = Table.grid(padding=(0, 2))
        block.add_column(style="dim", width=width)
        block.add_column(overflow="fold")
        for head, value in zip(heads, row, strict=True):
            if str(value):
                block.add_row(head, value)
        console.print(block)
        console.print()


def show_text(text: str, console: Console = stdout) -> None:
    """Lines of text, those that are a table (cells apart by two spaces or more) as one where they do not fit."""
    lines = text.splitlines()
    if max(map(len, lines), default=0) <= console.width:
        say(text, console=console)
        return
    cells = [re.split(r" {2,}", line.rstrip()) for line in lines]
    at = 0
    while at < len(lines):
        end = at + 1
        while end < len(lines) and len(cells[end]) == len(cells[at]) > 2:
            end += 1
        if end - at < 2:
            say(lines[at], console=console)
        else:
            rows = table(*cells[at], right=tuple(cells[at][1:]))
            for row in cells[at + 1:end]:
                rows.add_row(*row)
            show(rows, console)
        at = end


def size(nbytes: float) -> str:
    """Bytes with three digits and the decimal unit that suits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} PB"


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """What a stream writes for the characters that it cannot: the help's, a library's."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return encodable(escaped(error.object[error.start:error.end]), error.encoding), error.end


codecs.register_error("ensemblekit.ascii", _replaced)


def forgiving_streams() -> None:
    """Let stdout and stderr write ASCII for what their encoding lacks, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ensemblekit.ascii")


@contextmanager
def library_warnings() -> Iterator[None]:
    """Meanwhile each warning of the library stands on stderr as a line, once."""
    seen: set[str] = set()

    def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            note(f"note: {escaped(str(message), keep='')}", "yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show_warning
        yield


class ToStderr(logging.Handler):
    """What the library tells its logger, as a line each below what the command prints."""

    def emit(self, record: logging.LogRecord) -> None:
        note(self.format(record), "yellow" if record.levelno >= logging.WARNING else "dim")


@contextmanager
def library_notes() -> Iterator[None]:
    """Meanwhile the notes of the library, from INFO on, stand on stderr."""
    logger, handler = logging.getLogger("ensemblekit"), ToStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
