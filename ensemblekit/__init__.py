"""Snapshot ensembles: one HDF5 store and one averaging core for neural networks, molecular dynamics and flow fields.

A snapshot is one array per field at one instant; an ensemble is a stack of snapshots with weights, perhaps from
several independent runs; every answer is a reduction over that stack, with an honest error.
"""

__version__ = "0.1.0"

from collections.abc import Mapping as _Mapping
from collections.abc import Sequence as _Sequence
from os import PathLike as _PathLike
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any
from typing import Literal as _Literal
from typing import overload as _overload

from ensemblekit.averaging.average import average as average
from ensemblekit.averaging.blocking import BlockSums as BlockSums
from ensemblekit.averaging.covariance import Covariance as Covariance
from ensemblekit.averaging.estimate import Estimate as Estimate
from ensemblekit.averaging.exponential import Exponential as Exponential
from ensemblekit.averaging.extremes import Extremes as Extremes
from ensemblekit.averaging.gram import Gram as Gram
from ensemblekit.averaging.histogram import Histogram as Histogram
from ensemblekit.averaging.moments import Moments as Moments
from ensemblekit.averaging.quantile import Quantiles as Quantiles
from ensemblekit.averaging.quantile import QuantileSketch as QuantileSketch
from ensemblekit.averaging.reducer import Reducer as Reducer
from ensemblekit.averaging.run import merged as merged
from ensemblekit.averaging.run import partials as partials
from ensemblekit.averaging.run import reduce as reduce
from ensemblekit.averaging.series import Series as Series
from ensemblekit.averaging.window import Window as Window
from ensemblekit.engine import Engine as Engine
from ensemblekit.engine import Executor as Executor
from ensemblekit.engine import Processes as Processes
from ensemblekit.engine import Serial as Serial
from ensemblekit.engine import Threads as Threads
from ensemblekit.engine_dask import Dask as Dask
from ensemblekit.errors import EnsemblekitError as EnsemblekitError
from ensemblekit.source import ArraySource as ArraySource
from ensemblekit.source import Block as Block
from ensemblekit.source import Field as Field
from ensemblekit.source import ReplicaSet as ReplicaSet
from ensemblekit.source import SnapshotSource as SnapshotSource
from ensemblekit.source_labelled import LazySource as _LazySource  # noqa: F401  (makes `as_source` take arrays with labels)


def __getattr__(name: str) -> object:
    """`statistics` and `lineages`, imported when they are first asked for; their names by the earlier place, at the top of the
    package, with a DeprecationWarning."""
    import importlib

    if name.startswith("_"):
        raise AttributeError(f"module 'ensemblekit' has no attribute {name!r}")
    if name in ("statistics", "lineages"):
        return importlib.import_module(f"ensemblekit.{name}")
    for module in (importlib.import_module("ensemblekit.statistics"), importlib.import_module("ensemblekit.lineages")):
        if name in vars(module):
            import warnings

            place = module.__name__.rpartition(".")[2]
            warnings.warn(f"ek.{name} is ek.{place}.{name} now", DeprecationWarning, stacklevel=2)
            return vars(module)[name]
    raise AttributeError(f"module 'ensemblekit' has no attribute {name!r}")


if _TYPE_CHECKING:
    from ensemblekit import lineages as lineages
    from ensemblekit import statistics as statistics
    from ensemblekit.store.store import Store as _Store
    from ensemblekit.store.verify import Report as _Report


def create(path: str | _PathLike[str], fields: _Mapping[str, Field], *, capacity: int | _Mapping[str, int] | None = None,
           run: str | None = None, replica: str | None = None, provenance: _Mapping[str, _Any] | None = None,
           time_unit: str = "", durability: _Literal["process", "disk"] = "process", author: str = "unknown",
           in_place: bool = True, constants: _Mapping[str, _Any] | None = None) -> "_Store":
    """A new store at `path`, open for appending.

    Arguments:
        path: of the file; ``.h5md`` for particles (MDAnalysis goes by the suffix), ``.h5`` else.
        fields: name -> :class:`Field`.
        capacity: snapshots each file has room for (which a file gets as they come), one number or clock -> number; 4 GiB by
            default, then doubling.
        run, replica: id of the run (random by default) and name of the replica.
        provenance: anything that JSON can hold.
        time_unit: of the times, e.g. "s"; "ps" by default for particles.
        constants: arrays of the run that do not change with time, name -> array; ``store.constants`` gives them back. Those
            of a mesh ("mesh/points", ...) let ParaView open the sealed file.
        durability: "process" (an append survives the death of the process) or "disk" (also the loss of power).
        author: who is named in the file, as H5MD wants it.
        in_place: False writes every file whole, as is done by itself where rows cannot be committed in place: a snapshot is
            safe then when ``flush`` or ``extend`` returned.

    Raises:
        InputError, StoreError, StoreBusyError.
    """
    from ensemblekit.store.store import Store

    return Store.create(path, fields, capacity=capacity, run=run, replica=replica, provenance=provenance, time_unit=time_unit,
                        durability=durability, author=author, in_place=in_place, constants=constants)


@_overload
def open(path: str | _PathLike[str], mode: _Literal["r", "a"] = "r", *, as_: None = None, check: bool = False,
         external: bool = False, incomplete: bool = False, durability: _Literal["process", "disk"] = "process",
         capacity: int | _Mapping[str, int] | None = None) -> "_Store": ...
@_overload
def open(path: str | _PathLike[str] | _Sequence[str | _PathLike[str]], mode: _Literal["r"] = "r", *,
         as_: _Literal["replicas"], check: bool = False, external: bool = False, incomplete: bool = False) -> ReplicaSet: ...
@_overload
def open(path: str | _PathLike[str] | _Sequence[str | _PathLike[str]], mode: _Literal["r"] = "r", *,
         as_: _Literal["run"] | None = None, check: bool = False, external: bool = False, incomplete: bool = False
         ) -> _Any: ...


def open(path: _Any, mode: _Literal["r", "a"] = "r", *, as_: _Literal["run", "replicas"] | None = None, check: bool = False,
         external: bool = False, incomplete: bool = False, durability: _Literal["process", "disk"] = "process",
         capacity: int | _Mapping[str, int] | None = None) -> _Any:
    """Open a store, or any HDF5 or H5MD file for reading.

    Arguments:
        path: one path, a pattern ("run-*.h5") or a list. Several files are one run where their run id and steps
            continue (overlaps are dropped and reported), replicas where every run id is another.
        mode: "r" to read (also while another process writes; ``refresh`` sees more), "a" to append.
        as_: "run" or "replicas" where the files do not say it themselves.
        check: verify everything first; raises StoreDamagedError where that finds damage, StoreError where it could not be
            checked.
        incomplete: True reads the snapshots that are there where files of the store are missing, which is an error else.
        external: read also values that a file of another program keeps in other files, and follow its links into them:
            only for files you trust, as they may point at any file of yours.
        durability, capacity: as :func:`create`, for what is appended.

    Returns:
        a Store (of one file or pattern that matches one), a source of one joined run, or a ReplicaSet.
    """
    from ensemblekit.store.opening import open_store

    return open_store(path, mode, as_=as_, check=check, external=external, incomplete=incomplete,
                      durability=durability, capacity=capacity)


def verify(path: str | _PathLike[str], *, timeout: float = 60.0, external: bool = False) -> "_Report":
    """Compare a store with its checksums, with libhdf5 in a child process, as damage can crash or hang it.

    Returns a report: ``.ok``, ``.damaged`` (snapshots), ``.by_field``, ``.problems`` in words. A file that hangs for
    `timeout` seconds, and a second more for every 30 MB of it, is damaged; so is one that points to other files, unless
    `external` says that they are to be read.
    """
    from ensemblekit.store.verify import verify

    return verify(path, timeout=timeout, external=external)
