"""Flows with known answers, computed on the spot: something real to try a reduced-order model on.

Each has ``fields``, the coordinates of its grid and ``snapshots(n, every, after)``; :func:`record` keeps a run in memory.
"""

from ensemblekit.rom.testbeds.burgers import Burgers as Burgers
from ensemblekit.rom.testbeds.burgers import burgers as burgers
from ensemblekit.rom.testbeds.cavity import Cavity as Cavity
from ensemblekit.rom.testbeds.cavity import startup_cavity as startup_cavity
from ensemblekit.rom.testbeds.flow import Flow as Flow
from ensemblekit.rom.testbeds.flow import FlowSnapshot as FlowSnapshot
from ensemblekit.rom.testbeds.flow import record as record
from ensemblekit.rom.testbeds.heat import Heat as Heat
from ensemblekit.rom.testbeds.heat import heat as heat
from ensemblekit.rom.testbeds.kolmogorov import Budget as Budget
from ensemblekit.rom.testbeds.kolmogorov import Kolmogorov as Kolmogorov
from ensemblekit.rom.testbeds.kolmogorov import kolmogorov_flow as kolmogorov_flow
from ensemblekit.rom.testbeds.wake import CylinderWake as CylinderWake
from ensemblekit.rom.testbeds.wake import WakeSnapshot as WakeSnapshot
from ensemblekit.rom.testbeds.wake import cylinder_wake as cylinder_wake
from ensemblekit.rom.testbeds.wake import equilibrium as equilibrium
