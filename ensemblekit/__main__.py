"""``python -m ensemblekit``: the same as ``ensemblekit``."""

from ensemblekit.cli import main

main()
