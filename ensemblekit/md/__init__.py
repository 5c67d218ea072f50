"""Molecular dynamics: trajectories into the store, and averages of observables with honest error bars."""

from ensemblekit.md.average import average as average
from ensemblekit.md.functions import from_analysis as from_analysis
from ensemblekit.md.ingest import ingest as ingest
from ensemblekit.md.ingest import universe as universe
from ensemblekit.md.observables.gyration import RadiusOfGyration as RadiusOfGyration
from ensemblekit.md.observables.rmsf import RMSF as RMSF
from ensemblekit.md.result import Averages as Averages
from ensemblekit.md.topology import Topology as Topology
from ensemblekit.md.trajectory import read as read
