"""What every test leaves as it found it."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _closed_figures():
    """Figures drawn through pyplot stay open until they are closed, and more than twenty are warned of."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
