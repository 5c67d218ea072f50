"""Reduced-order models: proper orthogonal decomposition of stored flow fields, and flows to try it on."""

from typing import Any as _Any

from ensemblekit.rom import equations as equations
from ensemblekit.rom import testbeds as testbeds
from ensemblekit.rom.affine import AffineModel as AffineModel
from ensemblekit.rom.archive import Archive as Archive
from ensemblekit.rom.archive import ArchivedField as ArchivedField
from ensemblekit.rom.archive import decompress as decompress
from ensemblekit.rom.average import FieldAverages as FieldAverages
from ensemblekit.rom.average import average as average
from ensemblekit.rom.basis import Basis as Basis
from ensemblekit.rom.coefficients import coefficients as coefficients
from ensemblekit.rom.compress import compress as compress
from ensemblekit.rom.decay import DecayRate as DecayRate
from ensemblekit.rom.decay import decay_rate as decay_rate
from ensemblekit.rom.decompose import plan as plan
from ensemblekit.rom.decompose import pod as pod
from ensemblekit.rom.decompose.planning import Plan as Plan
from ensemblekit.rom.decompose.streaming import IncrementalPOD as IncrementalPOD
from ensemblekit.rom.dmd import dmd as dmd
from ensemblekit.rom.export import export as export
from ensemblekit.rom.galerkin import galerkin as galerkin
from ensemblekit.rom.ingest import ingest as ingest
from ensemblekit.rom.load import load as load
from ensemblekit.rom.mesh import Mesh as Mesh
from ensemblekit.rom.modal import ModalModel as ModalModel
from ensemblekit.rom.model import Model as Model
from ensemblekit.rom.model_error import ModelError as ModelError
from ensemblekit.rom.operator_files import export_operators as export_operators
from ensemblekit.rom.opinf import operator_inference as operator_inference
from ensemblekit.rom.parametric import parametric as parametric
from ensemblekit.rom.parametric_model import ParametricModel as ParametricModel
from ensemblekit.rom.quadratic import QuadraticModel as QuadraticModel
from ensemblekit.rom.rank import gavish_donoho as gavish_donoho
from ensemblekit.rom.read import read as read
from ensemblekit.rom.state_space import StateSpace as StateSpace
from ensemblekit.rom.trajectory import Forecast as Forecast
from ensemblekit.rom.trajectory import Trajectory as Trajectory


def __getattr__(name: str) -> _Any:
    if name == "POD":       # scikit-learn's estimator: imported where it is asked for
        from ensemblekit.rom import estimator

        return estimator.POD
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
