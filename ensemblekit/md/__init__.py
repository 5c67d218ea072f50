"""Molecular dynamics: trajectories into the store, and averages of observables with honest error bars."""

from ensemblekit.md.average import average as average
from ensemblekit.md.observables.density import DensityProfile as DensityProfile
from ensemblekit.md.observables.dipole import DielectricConstant as DielectricConstant
from ensemblekit.md.observables.dipole import Dipole as Dipole
from ensemblekit.md.ingest import ingest as ingest
from ensemblekit.md.ingest import universe as universe
from ensemblekit.md.observables.gyration import RadiusOfGyration as RadiusOfGyration
from ensemblekit.md.observables.msd import MSD as MSD
from ensemblekit.md.observables.rdf import RDF as RDF
from ensemblekit.md.observables.rmsf import RMSF as RMSF
from ensemblekit.md.topology import Topology as Topology
from ensemblekit.md.trajectory import read as read
