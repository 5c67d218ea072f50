"""What happens while kernels are compiled."""

from __future__ import annotations

import gc
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import event

from ensemblekit import jit

KERNEL = """
from ensemblekit.jit import kernel

@kernel
def {name}(x, out):
    for i in range(len(x)):
        out[i] = 2.0 * x[i]
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def compiled(name: str, module: str = "ensemblekit.some_kernels") -> None:
    """Compile and run a new kernel, as one of a module."""
    space = {"__name__": module}
    exec(KERNEL.format(name=name), space)
    out = np.zeros(3)
    space[name](np.arange(3.0), out)        # type: ignore[operator]
    np.testing.assert_array_equal(out, [0.0, 2.0, 4.0])


@pytest.mark.parametrize("watched", [True, False])
def test_it_is_said_once_and_as_loud_as_somebody_sits_there(watched: bool, monkeypatch: pytest.MonkeyPatch,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    listener = jit.Compiling()
    monkeypatch.setattr(sys, "stderr", Terminal() if watched else io.StringIO())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    collecting: list[bool] = []

    def ended(one: event.Event) -> None:
        collecting.append(gc.isenabled())
        jit.Compiling.on_end(listener, one)

    monkeypatch.setattr(listener, "on_end", ended)
    monkeypatch.setattr(jit, "COMPILING", "compiling")
    event.unregister("numba:compile", jit.LISTENER)
    event.register("numba:compile", listener)
    try:
        with caplog.at_level(logging.DEBUG, "ensemblekit"):
            compiled("theirs", "some_program")
            assert "compiling" not in caplog.text
            compiled("first")
            compiled("second")
    finally:
        event.unregister("numba:compile", listener)
        event.register("numba:compile", jit.LISTENER)
    assert [one.levelname for one in caplog.records if one.message == "compiling"] == ["WARNING" if watched else "DEBUG"]
    assert collecting == [True, False, False]       # that of others is none of ours
    assert gc.isenabled()


def test_a_fresh_place_is_told_once(tmp_path: Path) -> None:
    code = ("import logging; logging.basicConfig(level=logging.DEBUG, format='%(name)s %(message)s'); import numpy as np\n"
            "from ensemblekit.averaging.kernels import add_row\n"
            "add_row(np.ones(3), 1.0, np.zeros(3), np.zeros(3))")
    said = []
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                             env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)})
        said.append([line for line in ran.stderr.splitlines() if line.startswith("ensemblekit ")])
    assert len(said[0]) == 1
    assert "once" in said[0][0]
    assert said[1] == []        # it was kept
