"""Snapshot ensembles of neural networks: capture weights while training, then average predictions or weights.

This is the only front-end that imports torch, and it is imported only when asked for.
"""

from typing import Any as _Any

from ensemblekit.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError("torch", "neural") from error

from ensemblekit.neural import corruptions as corruptions
from ensemblekit.neural.barrier import Barrier as Barrier
from ensemblekit.neural.barrier import LossIncrease as LossIncrease
from ensemblekit.neural.barrier import loss_barrier as loss_barrier
from ensemblekit.neural.batchnorm import update_bn as update_bn
from ensemblekit.neural.calibration import BrierParts as BrierParts
from ensemblekit.neural.calibration import Reliability as Reliability
from ensemblekit.neural.calibration import adaptive_calibration_error as adaptive_calibration_error
from ensemblekit.neural.calibration import brier_decomposition as brier_decomposition
from ensemblekit.neural.calibration import calibration_error as calibration_error
from ensemblekit.neural.calibration import classwise_calibration_error as classwise_calibration_error
from ensemblekit.neural.calibration import reliability as reliability
from ensemblekit.neural.checkpoint_export import export as export
from ensemblekit.neural.checkpoint_export import state_dict as state_dict
from ensemblekit.neural.compare import compare as compare
from ensemblekit.neural.compensated import Compensated as Compensated
from ensemblekit.neural.content_hash import content_hash as content_hash
from ensemblekit.neural.detection import Detection as Detection
from ensemblekit.neural.detection import error_detection as error_detection
from ensemblekit.neural.drift import Drift as Drift
from ensemblekit.neural.drift import drift as drift
from ensemblekit.neural.ensemble import Ensemble as Ensemble
from ensemblekit.neural.equivalent import Equivalent as Equivalent
from ensemblekit.neural.equivalent import deep_ensemble_equivalent as deep_ensemble_equivalent
from ensemblekit.neural.ergodicity import TrainingErgodicity as TrainingErgodicity
from ensemblekit.neural.ergodicity import training_ergodicity as training_ergodicity
from ensemblekit.neural.fit import Fit as Fit
from ensemblekit.neural.fit import fit as fit
from ensemblekit.neural.history import History as History
from ensemblekit.neural.history import history as history
from ensemblekit.neural.ingest import ingest as ingest
from ensemblekit.neural.parameters import Manifest as Manifest
from ensemblekit.neural.phantom import PhantomLesion as PhantomLesion
from ensemblekit.neural.phantom import Phantoms as Phantoms
from ensemblekit.neural.phantom import phantom as phantom
from ensemblekit.neural.plan import Deadline as Deadline
from ensemblekit.neural.plan import Plan as Plan
from ensemblekit.neural.plan import plan as plan
from ensemblekit.neural.prediction import Prediction as Prediction
from ensemblekit.neural.prediction import RegressionPrediction as RegressionPrediction
from ensemblekit.neural.recorder import Recorder as Recorder
from ensemblekit.neural.regions import Region as Region
from ensemblekit.neural.report import Report as Report
from ensemblekit.neural.report import report as report
from ensemblekit.neural.saved import SavedPredictions as SavedPredictions
from ensemblekit.neural.saved import load_predictions as load_predictions
from ensemblekit.neural.schedule import CyclicCosineLR as CyclicCosineLR
from ensemblekit.neural.schedule import SWAConstantLR as SWAConstantLR
from ensemblekit.neural.schedule import TriangularLR as TriangularLR
from ensemblekit.neural.scores import Score as Score
from ensemblekit.neural.scores import Scores as Scores
from ensemblekit.neural.scores import scores as scores
from ensemblekit.neural.segment import segment as segment
from ensemblekit.neural.segmentation import CaseScore as CaseScore
from ensemblekit.neural.segmentation import KeptCase as KeptCase
from ensemblekit.neural.segmentation import Segmentation as Segmentation
from ensemblekit.neural.selection import Selection as Selection
from ensemblekit.neural.selection import select as select
from ensemblekit.neural.single import predict as predict
from ensemblekit.neural.swag import SWAG as SWAG
from ensemblekit.neural.swag import Posterior as Posterior
from ensemblekit.neural.temperature import TemperatureScaler as TemperatureScaler
from ensemblekit.neural.vector_scaling import VectorScaler as VectorScaler
from ensemblekit.neural.weight_average import EMA as EMA
from ensemblekit.neural.weight_average import LAWA as LAWA
from ensemblekit.neural.weight_average import SWA as SWA
from ensemblekit.neural.weight_average import AveragedModel as AveragedModel
from ensemblekit.neural.weight_average import averaged as averaged
from ensemblekit.neural.windows import SlidingWindow as SlidingWindow


def __getattr__(name: str) -> _Any:
    """The adapters, at first use: they import the trainers they are for."""
    if name in ("lightning", "huggingface"):
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
