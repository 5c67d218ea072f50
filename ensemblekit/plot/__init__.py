"""Figures of results; matplotlib is imported when something is drawn."""

from ensemblekit.plot.averages import autocorrelation as autocorrelation
from ensemblekit.plot.averages import blocking as blocking
from ensemblekit.plot.averages import estimate as estimate
from ensemblekit.plot.averages import profile as profile
from ensemblekit.plot.averages import replicas as replicas
from ensemblekit.plot.averages import running_mean as running_mean
