"""Reduced-order models: proper orthogonal decomposition of stored flow fields, and flows to try it on."""

from typing import Any as _Any

from ensemblekit.rom import testbeds as testbeds
from ensemblekit.rom.basis import Basis as Basis
from ensemblekit.rom.incremental import IncrementalPOD as IncrementalPOD
from ensemblekit.rom.plan import Plan as Plan
from ensemblekit.rom.plan import plan as plan
from ensemblekit.rom.pod import pod as pod
from ensemblekit.rom.rank import gavish_donoho as gavish_donoho


def __getattr__(name: str) -> _Any:
    if name == "POD":       # scikit-learn's estimator: imported where it is asked for
        from ensemblekit.rom import estimator

        return estimator.POD
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
