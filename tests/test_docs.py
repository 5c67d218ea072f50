"""The examples of the README and the manual run, page by page, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "<!-- not run -->"
"""Before a block that needs data of the reader's own."""

BLOCK = re.compile(rf"(?P<skip>{re.escape(NOT_RUN)}\n)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)#:\s]+)(?:#[^)\s]*)?\)")


def blocks(page: Path) -> str:
    """The Python of a page, every line at its own number, so that a traceback points into the page."""
    text = page.read_text("utf-8")
    lines = [""] * (text.count("\n") + 1)
    for match in BLOCK.finditer(text):
        if not match["skip"]:
            first = text[: match.start("code")].count("\n")
            code = match["code"].splitlines()
            lines[first:first + len(code)] = code
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(page), str(page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link["target"] for link in LINK.finditer(page.read_text("utf-8"))
               if not (page.parent / link["target"]).exists()]
    assert missing == []


def test_the_blocks_are_found() -> None:
    assert "class RootMeanSquare" in blocks(ROOT / "docs" / "contributing.md")
