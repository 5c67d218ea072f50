"""Averages over lineages and over populations of cells that divide: one history against a growing colony."""

from ensemblekit.averaging.populations import LineageTree as LineageTree
from ensemblekit.averaging.populations import division_weights as division_weights
from ensemblekit.averaging.populations import growth_rate as growth_rate
from ensemblekit.averaging.populations import lineage_average as lineage_average
from ensemblekit.averaging.populations import lineage_weights as lineage_weights
from ensemblekit.averaging.populations import population_average as population_average
