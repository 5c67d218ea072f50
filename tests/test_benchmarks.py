"""The benchmarks: the clockwork is right, and every case runs (at a tiny size) and compares its answers."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import core, memory, report
from benchmarks import rom as rom_suite
from benchmarks.__main__ import parse
from benchmarks.pairing import Contender, paired


def test_pairing_takes_turns_and_gives_the_ratio() -> None:
    turns: list[str] = []

    def sleeper(name: str, seconds: float) -> Contender:
        def run(_: object) -> int:
            turns.append(name)
            time.sleep(seconds)
            return 1
        return Contender(name, run)

    case = paired("naps", [sleeper("a", 0.01), sleeper("b", 0.03)], np.testing.assert_equal, work=1.0, unit="naps",
                  repeats=3, warm=False)
    assert turns == ["a", "b"] * 3
    # b sleeps three times as long; a busy machine lengthens either nap, never shortens one
    assert case.timings[0].best >= 0.01
    assert case.timings[1].best >= 0.03
    assert case.timings[1].ratios == tuple(
        b / a for a, b in zip(case.timings[0].seconds, case.timings[1].seconds, strict=True))


def test_pairing_refuses_answers_that_differ() -> None:
    with pytest.raises(AssertionError):
        paired("sums", [Contender("a", lambda _: 1), Contender("b", lambda _: 2)], np.testing.assert_equal,
               work=1.0, unit="sums", repeats=1)


def test_preparing_and_finishing_are_not_timed() -> None:
    nap = Contender("a", lambda handle: handle + 1, prepare=lambda: time.sleep(0.05) or 1,
                    finish=lambda handle, answer: (time.sleep(0.05), handle, answer)[1:])
    case = paired("naps", [nap], np.testing.assert_equal, work=1.0, unit="naps", repeats=1, warm=False)
    assert case.timings[0].best < 0.05


def allocate(nbytes: int) -> int:
    """Writes to every page, so that the memory is really there."""
    return int(np.ones(nbytes // 8).sum())


@pytest.mark.skipif(not memory.STATUS.exists(), reason="RssAnon is Linux's")
def test_extra_memory_is_what_was_allocated() -> None:
    found = memory.extra_memory(allocate, 64 << 20, warm=(8,))
    assert found is not None
    assert 63 << 20 < found < 80 << 20


def test_bandwidth_is_of_this_world() -> None:
    assert 1e8 < report.bandwidth(8 << 20, 1, repeats=2) < 1e13


def test_machine_names_what_was_measured() -> None:
    about = report.machine()
    assert {"ensemblekit", "numpy", "h5py", "numba"} <= set(about["versions"])
    assert about["cores"] >= 1


def test_unknown_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["nonsense"])
    assert "no suite 'nonsense'; there are: core" in capsys.readouterr().err


def test_every_case_of_the_core_runs(tmp_path: Path) -> None:
    cases = list(core.run(core.TINY, tmp_path))
    assert len(cases) == len(core.TINY.snapshots) + 5
    for case in cases:
        report.show(Console(quiet=True), case)
        assert len(case.timings) >= 2
    assert list(tmp_path.iterdir()) == []           # it cleans up behind itself
    report.as_json(report.machine(), {"core": cases})


def test_every_case_of_rom_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_BENCH_PEERS", "scipy svd")
    sizes = dataclasses.replace(rom_suite.TINY, spectra=("knee",))
    cases = list(rom_suite.run(sizes, tmp_path))
    assert len(cases) == 4
    for case in cases:
        report.show(Console(quiet=True), case)
        assert len(case.timings) >= 2
    assert "fastest peer at that error" in cases[0].facts
    assert list(tmp_path.iterdir()) == []
