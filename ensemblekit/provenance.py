"""How a file or result came about: versions, command line and caller, inputs, settings, date. One record for stores, bases,
archives, reports and JSON.

Nothing in it names the machine: paths are relative to the folder one was in, or bare names. With ``SOURCE_DATE_EPOCH`` set
(reproducible-builds.org) the date is that, and the same work writes the same record.
"""

from __future__ import annotations

import inspect
import math
import os
import platform
import re
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, Protocol, runtime_checkable

from ensemblekit import __version__
from ensemblekit.errors import one_line
from ensemblekit.intake_labels import is_dataset, is_labelled
from ensemblekit.results import plain

ENDS = 1 << 20
"""Bytes of the head and of the tail of an input that its hash is made of."""
MOST_INPUTS = 100
"""Files that are described one by one; of more, their number and size are told."""
MOST_WORDS, LONGEST = 1000, 4096
"""Words of a command line and letters of one that are kept."""
MOST_ITEMS = 64
"""Numbers and names of a setting that are kept; of a longer one its length is."""
PACKAGES = ("numpy", "scipy", "h5py", "numba", "hdf5plugin", "xarray", "zarr", "dask", "pandas", "pyvista", "torch",
            "lightning", "transformers", "MDAnalysis", "mdtraj", "sklearn")
"""Those that numbers may depend on; a version is told where the package was really imported."""
SECRET = re.compile(r"(?i)(token|passw|secret|api[-_]?key|credential)")
HIDDEN = "***"

COMMAND: ContextVar[tuple[str, ...]] = ContextVar("COMMAND", default=())
"""The command line of the shell that is under way; none where the library was called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How something came about, as plain text and numbers that JSON holds."""

    ensemblekit: str = __version__
    """The version that wrote it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python and of the packages that were imported."""
    command: tuple[str, ...] = ()
    """The command line, word by word, as it was typed; values of options named token, password and so on are left out."""
    caller: str = ""
    """File and function of the program that called the library, such as "train.py: main"; "" in the shell."""
    inputs: tuple[Mapping[str, object], ...] = ()
    """Files that were read: path, bytes, changed (UTC), hash of the first and last MiB."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What was asked for, where it was not left to us."""
    date: str = ""
    """UTC, ISO 8601."""

    @classmethod
    def now(cls, inputs: Iterable[str | os.PathLike[str]] = (), settings: Mapping[str, object] | None = None) -> Provenance:
        """That of what is being made: by whom, from which files, how."""
        command = COMMAND.get()
        return cls(versions=versions(), command=_words(command or _argv()), caller="" if command else _caller(),
                   inputs=tuple(described(list(dict.fromkeys(os.fspath(path) for path in inputs)))),
                   settings={name: _short(value) for name, value in (settings or {}).items()}, date=now().isoformat())

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON; what there is nothing of is left out."""
        held = {"ensemblekit": self.ensemblekit, "versions": dict(self.versions), "command": list(self.command),
                "caller": self.caller, "inputs": [dict(one) for one in self.inputs], "settings": dict(self.settings),
                "date": self.date}
        return {name: value for name, value in held.items() if value}

    @classmethod
    def from_dict(cls, record: object) -> Provenance | None:
        """What :meth:`to_dict` gave, read from a file; None where there is none. Entries of other kinds are passed over: what
        is told of a file is no reason not to read it."""
        if not isinstance(record, Mapping) or not record:
            return None
        named = {name: record[name] for name in ("ensemblekit", "caller", "date") if isinstance(record.get(name), str)}
        maps = {name: record[name] for name in ("versions", "settings") if isinstance(record.get(name), Mapping)}
        command, inputs = record.get("command"), record.get("inputs")
        return cls(**{"ensemblekit": ""} | named, **maps,
                   command=tuple(map(str, command)) if isinstance(command, list) else (),
                   inputs=tuple(one for one in inputs if isinstance(one, Mapping)) if isinstance(inputs, list) else ())

    def lines(self) -> dict[str, str]:
        """What is shown of it to people: a word each, and its text."""
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = {"written": self.date, "by": ", ".join(filter(None, [f"ensemblekit {self.ensemblekit}".strip(), packages])),
                 "command": " ".join(map(_quoted, self.command)), "called from": self.caller,
                 "settings": ", ".join(f"{name}={value}" for name, value in self.settings.items())}
        for number, one in enumerate(self.inputs, 1):
            lines[f"input {number}" if len(self.inputs) > 1 else "input"] = _input_in_words(one)
        return {name: text for name, text in lines.items() if text}


def now() -> datetime:
    """The time, UTC, in whole seconds; ``SOURCE_DATE_EPOCH`` where that is set."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    when = datetime.fromtimestamp(int(fixed), UTC) if fixed.isdecimal() and len(fixed) < 12 else datetime.now(UTC)
    return when.replace(microsecond=0)


def versions() -> dict[str, str]:
    """Of Python and of the packages that are loaded and that numbers may depend on."""
    loaded = {name: str(getattr(sys.modules[name], "__version__", "")) for name in PACKAGES if name in sys.modules}
    return {"python": platform.python_version(), **{name: version for name, version in loaded.items() if version}}


def given(function: Callable[..., object], values: Mapping[str, object], *but: str) -> dict[str, object]:
    """The arguments of a call that are not the function's defaults, `values` being its ``locals()``; without those in `but`."""
    return {name: values[name] for name, one in inspect.signature(function).parameters.items()
            if one.kind is not one.VAR_KEYWORD and name not in but and name in values and values[name] is not one.default
            and not (isinstance(values[name], str | int | float) and values[name] == one.default)}


# -- inputs ---------------------------------------------------------------------------------------------------------


def described(paths: list[str], *, as_named: bool = False, most: int = MOST_INPUTS) -> list[dict[str, object]]:
    """Files with size, time of change, and hash of head and tail, the first `most` of them; of more, their number and size.

    `as_named` keeps the paths as they are; else they are relative to the current folder, or bare names.
    """
    files = [_described(path, path if as_named else portable(path)) for path in paths[:most]]
    if len(paths) > most:
        files.append({"more_files": len(paths) - most, "bytes": sum(map(_size, paths[most:]))})
    return files


def portable(path: str) -> str:
    """A path that names no machine: relative to the current folder where it lies below that, else the file's name alone.
    Addresses of servers stay, without a name and password in them."""
    if "://" in path:
        return re.sub(r"(?<=://)[^/@]*@", "", path)
    if not os.path.isabs(path):
        return path
    try:
        return Path(path).relative_to(os.getcwd()).as_posix()
    except (OSError, ValueError):
        return os.path.basename(path.rstrip(os.sep)) or path


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0


def _described(path: str, name: str) -> dict[str, object]:
    import xxhash

    about: dict[str, object] = {"path": name}
    try:
        status = os.stat(path)
        about |= {"bytes": status.st_size,
                  "changed": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")}
        if stat.S_ISREG(status.st_mode):        # a pipe would wait, or lose what is read
            with open(path, "rb") as file:
                digest = xxhash.xxh3_128(file.read(ENDS))
                file.seek(max(ENDS, status.st_size - ENDS))
                digest.update(file.read(ENDS))
            about["xxh3_128_of_ends"] = digest.hexdigest()
    except (OSError, ValueError, OverflowError) as error:
        about["unreadable"] = one_line(error)
    return about


def _input_in_words(one: Mapping[str, object]) -> str:
    if "more_files" in one:
        return f"{one['more_files']} more files, {one.get('bytes')} bytes"
    words = [str(one.get("path", "?")), f"{one['bytes']} bytes" if "bytes" in one else "", str(one.get("changed", "")),
             f"xxh3 {one['xxh3_128_of_ends']}" if "xxh3_128_of_ends" in one else "", str(one.get("unreadable", ""))]
    return ", ".join(filter(None, words))


@runtime_checkable
class OfRuns(Protocol):
    """Several runs as one source."""

    runs: tuple[object, ...]


@runtime_checkable
class OfSource(Protocol):
    """A view of another source."""

    source: object


@runtime_checkable
class OfArrays(Protocol):
    """Arrays with a field's name each."""

    arrays: Mapping[str, object]


@runtime_checkable
class OfPaths(Protocol):
    """A source that reads files."""

    @property
    def paths(self) -> tuple[str, ...]: ...


@runtime_checkable
class OfTable(Protocol):
    """A stored field, whose table names the files of its run."""

    table: Any


@runtime_checkable
class OfSegments(Protocol):
    """A store: the files of its run."""

    @property
    def segments(self) -> tuple[str, ...]: ...


@runtime_checkable
class OfParts(Protocol):
    """A trajectory: files one after the other."""

    parts: Any


@runtime_checkable
class OfPath(Protocol):
    """An archive, or what else is one file."""

    path: str


def files_of(x: object) -> list[str]:
    """Paths of the files that a source, or what one is made of, reads; none where that is not known or it is in memory."""
    return list(dict.fromkeys(path for path in _files(x) if isinstance(path, str) and path))


def _files(x: object) -> Iterable[object]:
    if is_labelled(x):
        held: Any = x
        inside = list(held.data_vars.values()) if is_dataset(x) else []
        return [one.encoding.get("source") for one in (held, *inside)]
    if isinstance(x, OfPaths):
        return x.paths
    if isinstance(x, OfTable):
        return [part.path for part in x.table.parts]
    if isinstance(x, OfSegments):
        return x.segments
    below: Iterable[object] = ()
    if isinstance(x, OfRuns):
        below = x.runs
    elif isinstance(x, OfSource):
        below = (x.source,)
    elif isinstance(x, OfArrays):
        below = x.arrays.values()
    elif isinstance(x, OfParts):
        below = x.parts
    elif isinstance(x, OfPath):
        return [x.path]
    elif isinstance(x, Mapping):
        below = x.values()
    return [path for one in below for path in _files(one)]


# -- who called ----------------------------------------------------------------------------------------------------


def _argv() -> tuple[str, ...]:
    """The command line of the program; that of a notebook says nothing but where its kernel's files are."""
    if not sys.argv or "ipykernel" in sys.modules or not sys.argv[0]:
        return ()
    return portable(sys.argv[0]), *sys.argv[1:]


def _words(words: Iterable[str]) -> tuple[str, ...]:
    """A command line as it is kept: not too long, and without secrets."""
    kept: list[str] = []
    hide = False
    for word in words:
        option, sign, _ = word.partition("=")
        if hide and not word.startswith("-"):
            word = HIDDEN
        hide = word.startswith("-") and not sign and SECRET.search(word) is not None
        if sign and SECRET.search(option):
            word = f"{option}={HIDDEN}"
        kept.append(word if len(word) <= LONGEST else f"{word[:LONGEST]}...")
    more = len(kept) - MOST_WORDS
    text = [*kept[:MOST_WORDS], *([f"... and {more} more"] if more > 0 else [])]
    return tuple(word.encode("utf-8", "backslashreplace").decode() for word in text)       # bytes of a name that are no text


def _caller() -> str:
    """File and function outside of this package and of installed ones, from where the call came."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code, module = frame.f_code, str(frame.f_globals.get("__name__", ""))
        if not (module == "ensemblekit" or module.startswith(("ensemblekit.", "importlib."))
                or "site-packages" in code.co_filename or "dist-packages" in code.co_filename):
            if "ipykernel" in code.co_filename or code.co_filename.startswith("<ipython"):
                return "a notebook"
            name = portable(code.co_filename)
            return name if code.co_name == "<module>" else f"{name}: {code.co_qualname}"
        frame = frame.f_back
    return ""


def _quoted(word: str) -> str:
    """A word as one would type it; control characters are the reader's to show."""
    import shlex

    return word if re.fullmatch(r"[\w@%+=:,./-]+", word) else shlex.quote(word)


def _short(value: object) -> Any:
    """A setting as JSON holds it: numbers and words as they are, long or large ones by what they are."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and math.prod(shape) > MOST_ITEMS:
        return f"{type(value).__name__} of shape {shape}"
    if isinstance(value, os.PathLike):
        return portable(os.fspath(value))
    if isinstance(value, FunctionType):
        return value.__qualname__
    if isinstance(value, Mapping) and len(value) <= MOST_ITEMS:
        return {str(name): _short(one) for name, one in value.items()}
    if isinstance(value, list | tuple) and len(value) <= MOST_ITEMS:
        return [_short(one) for one in value]
    if isinstance(value, list | tuple | Mapping):
        return f"{len(value)} values"
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, int | bool | None):
        return value
    if isinstance(value, float) or isinstance(shape, tuple):
        return plain(value)
    return type(value).__name__
