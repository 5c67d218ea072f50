"""Benchmarks against the tools one would use instead: the same data, answers compared, ratios with their spread.

Run ``python -m benchmarks core --quick``, or the same as ``ensemblekit bench core --quick``.
"""
