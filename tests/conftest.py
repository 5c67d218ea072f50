"""What every test finds, and leaves as it found it."""

import os
import signal
import sys

import hypothesis
import pytest

# a deadline would be of the clock, and other work may stand on the machine beside the tests
hypothesis.settings.register_profile("ensemblekit", deadline=None)
hypothesis.settings.load_profile("ensemblekit")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # started in the background of a shell: the processes that tests interrupt would not hear of it either
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.pop("COLUMNS", None)     # a worker of pytest-xdist sets it, and consoles would keep that width for all tests

LONGEST = ("test_store_kill", "test_store", "test_rom_acceptance", "test_benchmarks", "test_engine", "test_neural_resume",
           "test_store_strangers", "test_store_verify", "test_rom_pod", "test_interrupt", "test_store_power", "test_scaling",
           "test_rom_scale", "test_store_scalars", "test_average", "test_tour")
"""Files that take longest, in that order: handed out first, they leave no worker with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))     # stable: within a file as they stand


@pytest.fixture(autouse=True)
def _closed_figures():
    """Figures drawn through pyplot stay open until they are closed, and more than twenty are warned of."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
