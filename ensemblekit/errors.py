"""What can go wrong, said so that it can be mended.

Every error of ours is an :class:`EnsemblekitError` *and* the built-in error a caller would expect, so
``except ValueError`` keeps working. A message says what came, what was wanted and how to mend it.
"""

from collections.abc import Iterable


def one_line(text: object) -> str:
    """Text of an error as one line that a terminal can show, cut where it is long."""
    line = str(text)[:4000]
    if not line.isprintable():
        line = "".join(c if c.isprintable() else " " for c in line)
    line = " ".join(line.split())
    return line if len(line) <= 600 else f"{line[:600]}…"


class EnsemblekitError(Exception):
    """The parent of all errors raised on purpose."""


class InputError(EnsemblekitError, ValueError):
    """A value that cannot be used: wrong shape, type, unit, weight, range, or not a number where that is refused."""


class UnknownFieldError(EnsemblekitError, KeyError):
    """A field that is not there; the message lists those that are."""

    def __init__(self, name: object, present: Iterable[object]):
        self.name, self.present = name, tuple(present)
        super().__init__(name, self.present)

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        listed = ", ".join(map(repr, self.present)) or "none"
        return f"no field {self.name!r} here; the fields are: {listed}"


class StoreError(EnsemblekitError, OSError):
    """A store that cannot be created, opened, read or written as asked."""


class StoreBusyError(StoreError, BlockingIOError):
    """Another writer holds this store."""


class StoreDamagedError(StoreError):
    """The bytes of a store are not what was written."""


class LengthError(EnsemblekitError, TypeError):
    """A number of snapshots that a file says it has and its bytes do not justify: ``lengths`` gives it, ``len()`` does not.

    Python asks for len() to make room for ``list(store)``, the names of its fields, and goes on without it after a TypeError.
    """


class ClosedError(EnsemblekitError, RuntimeError):
    """The store was closed before this call."""


class ReadOnceError(EnsemblekitError, RuntimeError):
    """A source that can be read only once was asked for a second read, or for a read it cannot give."""


class ReductionError(EnsemblekitError, RuntimeError):
    """A map or reducer failed; the message names the run and the snapshots it was working on."""

    def __init__(self, message: str, run: int = 0, start: int = 0, stop: int = 0):
        self.run, self.start, self.stop = run, start, stop
        super().__init__(message)

    def __reduce__(self):  # keeps its attributes on the way back from another process
        return type(self), (self.args[0], self.run, self.start, self.stop)


class WorkerLostError(EnsemblekitError, RuntimeError):
    """A worker process, or the pool it belonged to, that ended before its work did.

    Attributes:
        cause: how it ended, in words.
        items: what it had, or what was under way where that cannot be told.
    """

    def __init__(self, cause: str, items: tuple = ()):
        self.cause, self.items = cause, items
        super().__init__(cause)

    def __reduce__(self):
        return type(self), (self.cause, self.items)


class ProcessFailedError(EnsemblekitError, RuntimeError):
    """An error on one process of a distributed training, as the others raise it.

    Attributes:
        rank: the process that failed.
        cause: the kind and the words of its error.
    """

    def __init__(self, rank: int, cause: str):
        self.rank, self.cause = rank, cause
        super().__init__(f"process {rank} of this training ended with {cause}. The others end with it: mend it there, and run "
                         "the same script again in all processes")

    def __reduce__(self):
        return type(self), (self.rank, self.cause)


class StatisticsError(EnsemblekitError, ValueError):
    """A statistic that the data given cannot answer (too few snapshots, all weights zero, ...)."""


class MissingExtraError(EnsemblekitError, ImportError):
    """A package of an optional extra is not installed; `what`: what it is needed for."""

    def __init__(self, package: str, extra: str, what: str = ""):
        self.package, self.extra, self.what = package, extra, what
        super().__init__(f"{what + ': ' if what else ''}{package} is not installed; get it with: "
                         f"pip install 'ensemblekit[{extra}]'")

    def __reduce__(self):
        return type(self), (self.package, self.extra, self.what)


class SnapshotFileError(EnsemblekitError, OSError):
    """A file of snapshots that is missing, cut short, or not what its name says; the message names it."""

    def __init__(self, path: object, problem: str):
        self.path, self.problem = str(path), one_line(problem)
        super().__init__(f"{path}: {self.problem}")

    def __reduce__(self):
        return type(self), (self.path, self.problem)
