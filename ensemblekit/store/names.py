"""The files of a store by their names: a.h5, a.0001.h5, ..., and the folder a.h5.d of what is derived."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from ensemblekit.files import TOKEN


def segment_path(path: str, index: int) -> str:
    """run.h5, run.0001.h5, run.0002.h5, ...: the suffix stays, as other programs go by it."""
    p = Path(path)
    return path if index == 0 else str(p.with_name(f"{p.stem}.{index:04d}{p.suffix}"))


def segments_of(path: str) -> list[str]:
    """The segment files of the store at `path`, in order, the first being `path` itself."""
    p = Path(path)
    pattern = re.compile(re.escape(p.stem) + r"\.(\d{4,})" + re.escape(p.suffix) + r"\Z")
    numbered = {}
    for name in glob.glob(glob.escape(str(p.with_name(p.stem))) + ".*" + glob.escape(p.suffix)):
        match = pattern.match(os.path.basename(name))
        if match:
            numbered[int(match.group(1))] = name
    paths = [path]
    while len(paths) in numbered and os.path.exists(path):
        paths.append(numbered[len(paths)])
    return paths


def first_of(path: str) -> str:
    """``, run.h5`` for run.0001.h5: the first file of the store that a file is part of, as far as its name tells."""
    first = re.sub(r"\.\d{4,}(\.[^.]*)\Z", r"\1", path)
    return "" if first == path else f", {first}"


def missing_files(path: str, there: int, needed: int) -> str:
    """Which files of a store are missing, in words, where `there` of at least `needed` are; nothing where none is."""
    lost = [segment_path(path, k) for k in range(there, needed)]
    if not lost:
        return ""
    strange = [p for p in lost if os.path.lexists(p)]
    gone = [p for p in lost if p not in strange]
    words = [f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} missing"] if gone else []
    words += [f"{p} is there, but is not the part of this store that it should be" for p in strange if p == lost[0]]
    return f"{' and '.join(words)}: {path} had at least {needed} files when it was last closed, and {there} can be read"


def folder_of(path: str) -> Path:
    """What is overwritten or derived lives beside the store's real first file, in <store>.d/, whatever link leads there."""
    return Path(f"{os.path.realpath(path)}.d")


def remove_leftovers(path: str) -> None:
    """Unfinished files of a writer that died. Only for who holds the writer's lock."""
    p = Path(path)
    pattern = re.compile(re.escape(p.stem) + r"(\.\d{4,})?" + re.escape(p.suffix) + rf"(\.tmp\d+|{TOKEN.pattern})\Z")
    for entry in os.scandir(p.parent):
        if pattern.match(entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)
