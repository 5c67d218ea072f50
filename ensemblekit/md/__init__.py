"""Molecular dynamics: trajectories into the store, and averages of observables with honest error bars."""

from ensemblekit.md.average import average as average
from ensemblekit.md.observables.gyration import RadiusOfGyration as RadiusOfGyration
from ensemblekit.md.observables.rmsf import RMSF as RMSF
from ensemblekit.md.topology import Topology as Topology
from ensemblekit.md.trajectory import ingest as ingest
from ensemblekit.md.trajectory import read as read
from ensemblekit.md.trajectory import universe as universe
