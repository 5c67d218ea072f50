"""The two consoles every command prints on, and the words that several commands use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ensemblekit.files import replacing

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """The one look of all tables: a rule under the head, no frame, numbers to the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def size(nbytes: float) -> str:
    """Bytes with three digits and the decimal unit that suits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} PB"


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """A matplotlib Figure as a file, whole or not at all."""
    with replacing(path, suffix=path.suffix, follow=True) as temporary:
        figure.savefig(temporary, **options)


class ToStderr(logging.Handler):
    """What the library tells its logger, as a line each below what the command prints."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        stderr.print(self.format(record), style=style, markup=False, soft_wrap=True)


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


@contextmanager
def heading(text: str) -> Iterator[None]:
    """A bold line above what follows, a blank one below."""
    stdout.print(text, style="bold", soft_wrap=True, markup=False)
    yield
    stdout.print()
