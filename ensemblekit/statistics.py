"""Statistics of series, runs and ensembles: errors of correlated means, resampling, convergence of replicas, diversity.

``ek.average`` uses them for its intervals; here they are by themselves.
"""

from ensemblekit.averaging.blocking import blocking as blocking
from ensemblekit.averaging.consensus import Consensus as Consensus
from ensemblekit.averaging.consensus import consensus as consensus
from ensemblekit.averaging.correlation import autocorrelation as autocorrelation
from ensemblekit.averaging.correlation import autocovariance as autocovariance
from ensemblekit.averaging.correlation import integrated_time as integrated_time
from ensemblekit.averaging.correlation import statistical_inefficiency as statistical_inefficiency
from ensemblekit.averaging.crossed import CrossedMean as CrossedMean
from ensemblekit.averaging.crossed import crossed as crossed
from ensemblekit.averaging.crossed import crossed_difference as crossed_difference
from ensemblekit.averaging.diagnostics import ess as ess
from ensemblekit.averaging.diagnostics import mcse as mcse
from ensemblekit.averaging.diagnostics import rhat as rhat
from ensemblekit.averaging.distribution import histogram_estimate as histogram_estimate
from ensemblekit.averaging.diversity import diverse_subset as diverse_subset
from ensemblekit.averaging.diversity import pairwise as pairwise
from ensemblekit.averaging.equilibration import detect_equilibration as detect_equilibration
from ensemblekit.averaging.function_space import FunctionSpace as FunctionSpace
from ensemblekit.averaging.function_space import function_space as function_space
from ensemblekit.averaging.maxent import MaximumEntropy as MaximumEntropy
from ensemblekit.averaging.maxent import maximum_entropy as maximum_entropy
from ensemblekit.averaging.mixture import Mixture as Mixture
from ensemblekit.averaging.mixture import mixture_weights as mixture_weights
from ensemblekit.averaging.principal import Principal as Principal
from ensemblekit.averaging.principal import principal as principal
from ensemblekit.averaging.regression import Regression as Regression
from ensemblekit.averaging.replicas import Ergodicity as Ergodicity
from ensemblekit.averaging.replicas import ergodicity as ergodicity
from ensemblekit.averaging.replicas import ergodicity_breaking as ergodicity_breaking
from ensemblekit.averaging.replicas import fluctuation_metric as fluctuation_metric
from ensemblekit.averaging.resample import block_bootstrap as block_bootstrap
from ensemblekit.averaging.resample import jackknife as jackknife
from ensemblekit.averaging.resample import jackknife_states as jackknife_states
from ensemblekit.averaging.resample import optimal_block_length as optimal_block_length
from ensemblekit.averaging.weights import effective_samples as effective_samples
from ensemblekit.averaging.weights import normalised_weights as normalised_weights
