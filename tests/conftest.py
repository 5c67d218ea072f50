"""What every test finds, and leaves as it found it."""

import signal
import sys

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # started in the background of a shell: the processes that tests interrupt would not hear of it either
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _closed_figures():
    """Figures drawn through pyplot stay open until they are closed, and more than twenty are warned of."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
