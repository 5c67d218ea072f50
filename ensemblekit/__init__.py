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
from ensemblekit.averaging.blocking import blocking as blocking
from ensemblekit.averaging.consensus import Consensus as Consensus
from ensemblekit.averaging.consensus import consensus as consensus
from ensemblekit.averaging.correlation import autocorrelation as autocorrelation
from ensemblekit.averaging.correlation import autocovariance as autocovariance
from ensemblekit.averaging.correlation import integrated_time as integrated_time
from ensemblekit.averaging.correlation import statistical_inefficiency as statistical_inefficiency
from ensemblekit.averaging.covariance import Covariance as Covariance
from ensemblekit.averaging.diagnostics import ess as ess
from ensemblekit.averaging.diagnostics import mcse as mcse
from ensemblekit.averaging.diagnostics import rhat as rhat
from ensemblekit.averaging.distribution import histogram_estimate as histogram_estimate
from ensemblekit.averaging.diversity import diverse_subset as diverse_subset
from ensemblekit.averaging.diversity import pairwise as pairwise
from ensemblekit.averaging.equilibration import detect_equilibration as detect_equilibration
from ensemblekit.averaging.estimate import Estimate as Estimate
from ensemblekit.averaging.exponential import Exponential as Exponential
from ensemblekit.averaging.extremes import Extremes as Extremes
from ensemblekit.averaging.gram import Gram as Gram
from ensemblekit.averaging.histogram import Histogram as Histogram
from ensemblekit.averaging.moments import Moments as Moments
from ensemblekit.averaging.populations import LineageTree as LineageTree
from ensemblekit.averaging.populations import division_weights as division_weights
from ensemblekit.averaging.populations import growth_rate as growth_rate
from ensemblekit.averaging.populations import lineage_average as lineage_average
from ensemblekit.averaging.populations import lineage_weights as lineage_weights
from ensemblekit.averaging.populations import population_average as population_average
from ensemblekit.averaging.quantile import Quantiles as Quantiles
from ensemblekit.averaging.quantile import QuantileSketch as QuantileSketch
from ensemblekit.averaging.reducer import Reducer as Reducer
from ensemblekit.averaging.replicas import Ergodicity as Ergodicity
from ensemblekit.averaging.replicas import ergodicity as ergodicity
from ensemblekit.averaging.replicas import ergodicity_breaking as ergodicity_breaking
from ensemblekit.averaging.replicas import fluctuation_metric as fluctuation_metric
from ensemblekit.averaging.resample import block_bootstrap as block_bootstrap
from ensemblekit.averaging.resample import jackknife as jackknife
from ensemblekit.averaging.resample import jackknife_states as jackknife_states
from ensemblekit.averaging.resample import optimal_block_length as optimal_block_length
from ensemblekit.averaging.run import merged as merged
from ensemblekit.averaging.run import partials as partials
from ensemblekit.averaging.run import reduce as reduce
from ensemblekit.averaging.series import Series as Series
from ensemblekit.averaging.weights import effective_samples as effective_samples
from ensemblekit.averaging.weights import normalised_weights as normalised_weights
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

if _TYPE_CHECKING:
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
