"""Snapshot ensembles of neural networks: capture weights while training, then average predictions or weights.

This is the only front-end that imports torch, and it is imported only when asked for.
"""

from ensemblekit.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError("torch", "neural") from error

from ensemblekit.neural.batchnorm import update_bn as update_bn
from ensemblekit.neural.calibration import Reliability as Reliability
from ensemblekit.neural.calibration import calibration_error as calibration_error
from ensemblekit.neural.calibration import reliability as reliability
from ensemblekit.neural.ensemble import Ensemble as Ensemble
from ensemblekit.neural.ensemble import Prediction as Prediction
from ensemblekit.neural.ensemble import predict as predict
from ensemblekit.neural.history import History as History
from ensemblekit.neural.history import history as history
from ensemblekit.neural.parameters import Manifest as Manifest
from ensemblekit.neural.recorder import Recorder as Recorder
from ensemblekit.neural.recorder import content_hash as content_hash
from ensemblekit.neural.schedule import CyclicCosineLR as CyclicCosineLR
from ensemblekit.neural.schedule import SWAConstantLR as SWAConstantLR
from ensemblekit.neural.schedule import TriangularLR as TriangularLR
from ensemblekit.neural.scores import Comparison as Comparison
from ensemblekit.neural.scores import compare as compare
from ensemblekit.neural.scores import scores as scores
