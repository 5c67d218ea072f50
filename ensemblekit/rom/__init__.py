"""Reduced-order models: proper orthogonal decomposition of stored flow fields, and flows to try it on."""

from ensemblekit.rom import testbeds as testbeds
from ensemblekit.rom.basis import Basis as Basis
from ensemblekit.rom.export import export as export
from ensemblekit.rom.ingest import ingest as ingest
from ensemblekit.rom.mesh import Mesh as Mesh
from ensemblekit.rom.pod import pod as pod
from ensemblekit.rom.read import read as read
