"""Snapshot ensembles: one HDF5 store and one averaging core for neural networks, molecular dynamics and flow fields.

A snapshot is one array per field at one instant; an ensemble is a stack of snapshots with weights, perhaps from
several independent runs; every answer is a reduction over that stack, with an honest error.
"""

__version__ = "0.1.0"

from ensemblekit.averaging.average import average as average
from ensemblekit.averaging.blocking import BlockSums as BlockSums
from ensemblekit.averaging.blocking import blocking as blocking
from ensemblekit.averaging.correlation import autocorrelation as autocorrelation
from ensemblekit.averaging.correlation import autocovariance as autocovariance
from ensemblekit.averaging.correlation import integrated_time as integrated_time
from ensemblekit.averaging.correlation import statistical_inefficiency as statistical_inefficiency
from ensemblekit.averaging.equilibration import detect_equilibration as detect_equilibration
from ensemblekit.averaging.estimate import Estimate as Estimate
from ensemblekit.averaging.moments import Moments as Moments
from ensemblekit.averaging.reducer import Reducer as Reducer
from ensemblekit.averaging.run import merged as merged
from ensemblekit.averaging.run import partials as partials
from ensemblekit.averaging.run import reduce as reduce
from ensemblekit.engine import Engine as Engine
from ensemblekit.engine import Executor as Executor
from ensemblekit.engine import Processes as Processes
from ensemblekit.engine import Serial as Serial
from ensemblekit.engine import Threads as Threads
from ensemblekit.errors import EnsemblekitError as EnsemblekitError
from ensemblekit.source import ArraySource as ArraySource
from ensemblekit.source import Block as Block
from ensemblekit.source import Field as Field
from ensemblekit.source import ReplicaSet as ReplicaSet
from ensemblekit.source import SnapshotSource as SnapshotSource
