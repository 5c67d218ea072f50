"""How verbs are made: their examples, the checks of their outputs before the work, and what their exit codes mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ensemblekit.cli.console import forgiving_streams, library_notes, library_warnings, note
from ensemblekit.cli.output import STDOUT, check_file, check_folder, check_folder_of, check_room
from ensemblekit.errors import EnsemblekitError, InputError, StoreDamagedError, one_line
from ensemblekit.provenance import COMMAND

WRONG, DAMAGED, INTERRUPTED, CLOSED_PIPE = 2, 3, 130, 141
"""Exit codes: wrong use or input, what was read is damaged, Ctrl-C, who read stdout has gone. 4 is in cli/output.py."""

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Of click, which some versions of typer bring along under another name."""

F = TypeVar("F", bound=Callable[..., None])


class Verb(TyperCommand):
    """A command that looks at its outputs before it works: the metavar of an option says what it names.

    FILE and FILE|- are files, FOLDER one of figures, STORE a store (which the library refuses, or goes on with).
    """

    def invoke(self, ctx: Any) -> object:       # a Context of click, or of the one in typer
        given = [(param, ctx.params.get(param.name or "")) for param in self.params]
        outputs = [(param, value) for param, value in given if isinstance(value, Path) and value != STDOUT
                   and set(param.opts) & OUTPUTS]
        inputs = [one for param, value in given if not set(param.opts) & OUTPUTS
                  for one in (value if isinstance(value, list) else [value]) if isinstance(one, str | Path)]
        if sum(value == STDOUT for _, value in given) > 1:
            raise InputError("stdout takes one of --json - and --csv -; write the other to a file")
        for param, value in outputs:
            overwrite = bool(ctx.params.get("overwrite"))
            same = next((one for one in inputs if _same(one, value)), None)
            if same is not None:
                raise InputError(f"{param.opts[0]} {one_line(value)} is what is read; choose another name")
            if param.metavar == "FOLDER":
                check_folder(value, overwrite)
            elif param.metavar == "STORE":
                check_folder_of(value)
                check_room(value)
            else:
                check_file(value, overwrite)
        twice = {os.path.realpath(value) for _, value in outputs}
        if len(twice) < len(outputs):
            raise InputError("two outputs have one name; choose another for one of them")
        return super().invoke(ctx)


OUTPUTS = {"--json", "--csv", "--out", "--plot", "--pdb", "--map", "--pymol"}


def _same(one: str | Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def add(app: typer.Typer, verb: F, *examples: str, bare: bool = False, name: str | None = None) -> F:
    """Make a function a verb of a group, with examples below its help; `bare`: it can be called without a word."""
    text = "\n\n".join(["Examples:", *(f"$ {one}".replace("[", "\\[") for one in examples)])
    app.command(name, cls=Verb, no_args_is_help=not bare, epilog=text)(verb)
    EXAMPLES.extend(examples)
    return verb


EXAMPLES: list[str] = []
"""Every command line that a help shows."""


class Commands(TyperGroup):
    """The root of all verbs: turns what goes wrong into a line on stderr and an exit code."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:   # those of click
        forgiving_streams()
        words = extra.get("args", args[0] if args else None)
        token = COMMAND.set(("ensemblekit", *(sys.argv[1:] if words is None else words)))
        try:
            code = self._main(*args, **extra)
            sys.stdout.flush()
        except BrokenPipeError:
            code = CLOSED_PIPE
        finally:
            COMMAND.reset(token)
        if code == CLOSED_PIPE:
            _hush()
        sys.exit(code)

    def _main(self, *args: Any, **extra: Any) -> int:
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except UsageError as error:
            return _usage(error)
        except typer.Abort:
            return INTERRUPTED
        except SystemExit as stop:      # rich and click end so where they meet a closed pipe
            if isinstance(stop.__context__, BrokenPipeError):
                return CLOSED_PIPE
            raise
        return code if isinstance(code, int) else 0

    def invoke(self, ctx: Any) -> object:
        try:
            with library_notes(), library_warnings():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            note("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (EnsemblekitError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            note(f"error: {one_line(said(error))}", "bold red")
            raise typer.Exit(DAMAGED if isinstance(error, StoreDamagedError) else WRONG) from error


REMEDIES = {"No space left on device": "make room, or choose another place", "Permission denied": "ask its owner, or chmod",
            "Read-only file system": "choose another place", "Disk quota exceeded": "make room, or choose another place",
            "Too many open files": "raise the limit (ulimit -n), or open fewer at once"}


def said(error: BaseException) -> str:
    """An error in one sentence; of the operating system's, which file it is about and what helps."""
    if isinstance(error, EnsemblekitError) or not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    where = ": ".join(map(os.fsdecode, filter(None, (error.filename, error.filename2)))) if isinstance(
        error.filename, str | bytes) else ""
    remedy = REMEDIES.get(error.strerror)
    return ": ".join(filter(None, (where, error.strerror))) + (f"; {remedy}" if remedy else "")


def _usage(error: Any) -> int:      # a UsageError of click, or of the one in typer
    if type(error).__name__ == "NoArgsIsHelpError":
        if error.format_message():      # typer has shown the help already
            error.show()
        return WRONG
    note(f"error: {one_line(error.format_message())}", "bold red")
    if error.ctx is not None:
        usage = " ".join(error.ctx.get_usage().removeprefix("Usage: ").split())
        note(f"usage: {usage}; more by {error.ctx.command_path} --help")
    return WRONG


def _hush() -> None:
    """Nothing more is written to a stdout that nobody reads, not even what is left when Python ends."""
    try:
        empty = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(empty, stream.fileno())
        os.dup2(empty, sys.stdout.fileno())
        os.close(empty)
    except (OSError, ValueError):       # no file behind it
        return


def verbs_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every verb below a command of typer."""
    if isinstance(command, TyperGroup):
        for name, below in sorted(command.commands.items()):
            yield from verbs_of(below, (*path, name))
    else:
        yield path, command
