"""The benchmarks: the clockwork is right, and every case runs (at a tiny size) and compares its answers."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import shutil
import time
import types
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import core, memory, pairing, report
from benchmarks import rom as rom_suite
from benchmarks.__main__ import parse
from benchmarks.pairing import Contender, paired


@pytest.fixture
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage is collected before each timing: seconds in a process that has imported all the peers."""
    monkeypatch.setattr(pairing.gc, "collect", lambda: 0)


def test_pairing_takes_turns_and_gives_the_ratio(no_collection: None) -> None:
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


def test_pairing_refuses_answers_that_differ(no_collection: None) -> None:
    with pytest.raises(AssertionError):
        paired("sums", [Contender("a", lambda _: 1), Contender("b", lambda _: 2)], np.testing.assert_equal,
               work=1.0, unit="sums", repeats=1)


def test_preparing_and_finishing_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def takes(seconds: float, value: object) -> object:
        now[0] += seconds
        return value

    monkeypatch.setattr(pairing, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    nap = Contender("a", lambda handle: takes(1.0, handle + 1), prepare=lambda: takes(10.0, 1),
                    finish=lambda handle, answer: takes(100.0, (handle, answer)))
    case = paired("naps", [nap], np.testing.assert_equal, work=1.0, unit="naps", repeats=2, warm=False)
    assert case.timings[0].seconds == (1.0, 1.0)
    assert now == [222.0]


def allocate(nbytes: int) -> np.ndarray:
    """Writes to every page, so that the memory is really there; kept until it is measured."""
    return np.ones(nbytes // 8)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="RssAnon is Linux's")
def test_extra_memory_is_what_was_allocated() -> None:
    extra = memory.extra_memory(allocate, 64 << 20, warm=(8,))
    assert extra is not None
    assert 60 << 20 < extra < 80 << 20      # the system counts pages in batches, thread by thread


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


def test_the_first_cases_of_the_core_run(tmp_path: Path) -> None:
    """Processes of their own measure memory in each case: the rest of them belongs to the slow tests."""
    for case in itertools.islice(core.run(core.TINY, tmp_path), 1):
        report.show(Console(quiet=True), case)
        assert len(case.timings) >= 2
        report.as_json(report.machine(), {"core": [case]})


@pytest.mark.slow
def test_every_case_of_the_core_runs(tmp_path: Path) -> None:
    cases = list(core.run(core.TINY, tmp_path))
    assert len(cases) == len(core.TINY.snapshots) + 5
    for case in cases:
        report.show(Console(quiet=True), case)
        assert len(case.timings) >= 2
    assert list(tmp_path.iterdir()) == []           # it cleans up behind itself
    report.as_json(report.machine(), {"core": cases})


@pytest.mark.filterwarnings("ignore")
def test_every_case_of_dynamics_runs(tmp_path: Path, no_collection: None) -> None:
    """scipy and numpy always; the other peers where they are installed."""
    from benchmarks import dynamics

    cases = list(dynamics.run(dynamics.TINY, tmp_path))
    assert len(cases) == 5
    for case in cases:
        report.show(Console(quiet=True), case)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_case_of_md_runs(tmp_path: Path) -> None:
    """Its peers too, as far as they are installed: each answer is held to ours."""
    pytest.importorskip("MDAnalysisTests.datafiles")
    from benchmarks import md

    cases = list(md.run(md.TINY, tmp_path))
    assert len(cases) == 13
    for case in cases:
        report.show(Console(quiet=True), case)
        assert len(case.timings) >= 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_the_cases_of_fields_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small: each answer is held to that of its peer; memory is measured where all of md runs."""
    pytest.importorskip("MDAnalysis")
    from benchmarks import md_fields

    monkeypatch.setattr(md_fields, "extra_memory", lambda *_, **__: None)
    cases = list(md_fields.run(20, 2, 1, tmp_path))
    assert len(cases) == 4
    assert all(len(case.timings) == 2 for case in cases)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suite", ["core", "rom"])
def test_the_tables_of_vouched_intervals_count(suite: str, capsys: pytest.CaptureFixture) -> None:
    """Every case of every table once: truth, interval and estimate belong together."""
    from benchmarks import vouched

    sheets = importlib.import_module(f"benchmarks.vouched_{suite}").SHEETS
    for key, sheet in sheets.items():
        for name in sheet.rows if key == "weights" else list(sheet.rows)[:1]:
            for quantity, cell in vouched.cell(f"vouched_{suite}", key, name, sheet.columns[0], 3, 0).items():
                assert cell.drawn >= 3, (name, quantity)
                assert str(cell).startswith("refuses") or cell.width > 0.2
    one = [vouched.Drawn(k - 2.0, k + 2.0, float(k), k < 2, 0.0, "the run drifts, steps") for k in (-1, 0, 1, 3)]
    drawn = 40 * one
    counts = vouched.counted(drawn)
    assert (counts.drawn, counts.vouched, counts.coverage) == (160, 120, 1.0)
    assert counts.doubts["drift"] == 1.0
    assert counts.width == pytest.approx(2 / 1.96 / np.sqrt(11 / 4))
    assert str(counts) == "100.0 / 75 / 0.62"


def test_the_coverage_table_of_scores_counts() -> None:
    """Every case drawn a few times: not the coverage itself (that takes 2000), but that truth and interval belong together."""
    pytest.importorskip("torch")
    from benchmarks.bench_neural_coverage import coverage_table

    for row in coverage_table(12):
        assert row["coverage"] >= 0.6, row
        assert row["low"] < row["coverage"] <= row["high"]
        assert row["width"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_coverage_table_of_md_counts() -> None:
    """Twelve trajectories each: not the coverage itself (that takes 2000), but that truth and interval belong together."""
    pytest.importorskip("MDAnalysis")
    from benchmarks.bench_md_coverage import coverage_table

    rows = coverage_table(12)
    assert len(rows) == 6
    for row in rows:
        assert row["coverage"] >= 0.6, row         # below it once in 10^5 runs, were the intervals right
        assert row["low"] < row["coverage"] <= row["high"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_coverage_of_md_is_95_percent() -> None:
    """2000 trajectories: the 99 % binomial interval meets 94 to 96 %."""
    pytest.importorskip("MDAnalysis")
    from benchmarks.bench_md_coverage import coverage_table

    for row in coverage_table(2000):
        assert row["meets"], row


def test_the_first_case_of_rom_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_BENCH_PEERS", "scipy svd")
    sizes = dataclasses.replace(rom_suite.TINY, spectra=("knee",))
    for case in itertools.islice(rom_suite.run(sizes, tmp_path), 1):
        report.show(Console(quiet=True), case)
        assert len(case.timings) >= 2
        assert "fastest peer at that error" in case.facts


@pytest.mark.slow
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


@pytest.mark.slow
def test_every_case_of_neural_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from benchmarks import neural

    cases = list(neural.run(neural.TINY, tmp_path))
    assert len(cases) == 8
    for case in cases:
        report.show(Console(quiet=True), case)
    assert list(tmp_path.iterdir()) == []
    report.as_json(report.machine(), {"neural": cases})


def noise(channels: int, side: int) -> object:
    import torch

    from benchmarks import bench_snapshots

    torch.manual_seed(0)
    x, y = torch.randint(256, (80, channels, side, side), dtype=torch.uint8), torch.randint(10, (80,))
    return bench_snapshots.Problem("noise", (x[:40], y[:40]), (x[40:60], y[40:60]), (x[40:], y[40:]), bench_snapshots.Small,
                                   5, 8, 1, True)


def test_the_ways_to_spend_a_budget_run_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from benchmarks import bench_snapshots

    tiny, quiet = noise(1, 8), Console(quiet=True)
    comparison = bench_snapshots.compare(tiny, 2, quiet, tmp_path)
    assert set(bench_snapshots.METHODS) <= set(comparison)
    for method in bench_snapshots.METHODS:
        assert 50 < comparison[method]["scores"]["error"][0] <= 100      # there is nothing to be learnt from noise
    assert "snapshot ensemble - NoCycle" in comparison["verdict"]
    assert len(list((tmp_path / "noise").glob("*.npz"))) == 12
    (tmp_path / "noise" / "FGE-1.npz").write_bytes(b"torn")        # killed while it wrote, or another version's
    trained: list[int] = []
    original = bench_snapshots.trained

    def counted(problem: object, seed: int, *args: object, **kwargs: object) -> object:
        trained.append(seed)
        return original(problem, seed, *args, **kwargs)

    monkeypatch.setattr(bench_snapshots, "trained", counted)
    assert bench_snapshots.compare(tiny, 2, quiet, tmp_path) == comparison     # the same bits
    assert trained == [1]
    bench_snapshots.compare(dataclasses.replace(tiny, cycles=2, last=1), 2, quiet, tmp_path)
    assert trained == [1, 0, 1]                                     # the snapshot ensembles of other settings alone


def test_snapshots_and_networks_are_judged_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from benchmarks import bench_diversity, bench_evidence

    tiny, quiet = noise(1, 8), Console(quiet=True)
    result = bench_evidence.show(tiny, 3, tmp_path, quiet)
    assert len(result.selections) == 3
    assert result.equivalent.n_seeds == 5
    assert result.equivalent.n_runs == 3
    assert result.ergodicity.function_space.n_snapshots == tiny.cycles
    assert bench_evidence.facts(result)["minus all members"]
    monkeypatch.setattr(bench_diversity, "RATES", (0.2,))
    monkeypatch.setattr(bench_diversity, "CYCLES", (5, 2))
    monkeypatch.setattr(bench_diversity, "sized", lambda quick: [tiny])
    table = bench_diversity.run(True, results=tmp_path, figure=tmp_path / "diversity.svg")["noise"]
    assert [(row["rate"], row["epochs"], row["members"]) for row in table] == [(0.2, 1, 5), (0.2, 2.5, 2)]
    assert all(row["disagreement"][1] <= row["disagreement"][0] <= row["disagreement"][2] for row in table)
    assert (tmp_path / "diversity.svg").stat().st_size > 5000
    monkeypatch.setattr(bench_evidence, "trained", None)        # all of it is kept
    runs = [bench_evidence.members(tiny, seed, tmp_path, 5, 0.2).members for seed in range(3)]
    choices = [one.argmax(2) for one in runs]
    assert table[0]["disagreement"][0] == pytest.approx(np.mean([(one[i] != one[j]).mean() for one in choices for i in range(5)
                                                                 for j in range(i)]))
    assert len(bench_evidence.networks(tiny, tmp_path)) == 5


def test_only_runs_the_tables_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import __main__ as command
    from benchmarks import bench_diversity

    asked: list[bool] = []
    monkeypatch.setattr(bench_diversity, "run", lambda quick: asked.append(quick))
    monkeypatch.setattr(command, "cases", lambda *_: pytest.fail("no cases were asked for"))
    monkeypatch.setattr(command, "bandwidth", lambda *_: 1e9)
    command.main(["neural", "--quick", "--only", "diversity"])
    assert asked == [True]


def test_intervals_of_a_difference_are_paired() -> None:
    """Worse by 1 % of the items with every seed: told apart, though either error alone is uncertain by more."""
    pytest.importorskip("torch")
    from benchmarks import bench_snapshots

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    a, b = bench_snapshots.Measured(labels), bench_snapshots.Measured(labels)
    for _ in range(5):
        right = rng.random(2000) < 0.7
        for one, wrong in ((a, ~right), (b, ~right | (np.arange(2000) < 20))):
            first = np.where(wrong, 1 - labels, labels) == 0
            one.add(np.where(first, 0.8, 0.2)[:, None] * [1, -1] + [0, 1])
    mean, seeds, items = b.minus(a, "error")
    assert 0 < mean < 1
    assert bench_snapshots.told(mean, seeds, items)
    assert np.hypot(*a.mean("error")[1:]) > mean
    assert b.minus(a, "ece")[0] == pytest.approx(b.mean("ece")[0] - a.mean("ece")[0])
    measured = dict.fromkeys(bench_snapshots.METHODS, a)
    assert "not told from zero" in bench_snapshots.verdict(measured)
    assert "ABSENT" in bench_snapshots.verdict(measured | {"snapshot ensemble": b})
    assert "snapshot ensemble - NoCycle: -" in bench_snapshots.verdict(
        {m: b for m in bench_snapshots.METHODS} | {"snapshot ensemble": a})


def test_the_way_of_a_gpu_runs_at_toy_size(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks import bench_gpu

    figures = bench_gpu.measure(noise(3, 32), bench_gpu.TINY, torch.device("cpu"), tmp_path)
    assert figures["steps"] == 10
    assert figures["snapshots"] == 2
    assert all(np.isfinite(value) for value in figures.values())


def test_the_evidence_of_a_gpu_is_gathered_in_parts(tmp_path: Path) -> None:
    """At toy size: the time is over after two trainings, the same call goes on, and scores come from what is kept alone."""
    torch = pytest.importorskip("torch")
    from benchmarks import bench_gpu, bench_gpu_evidence

    problem, device, sizes = noise(3, 32), torch.device("cpu"), bench_gpu_evidence.TINY
    seconds = itertools.count(0, 10)        # the clock of a machine on which a look at it takes ten seconds
    clock = bench_gpu_evidence.Clock(1, lambda: float(next(seconds)))
    assert not bench_gpu_evidence.evidence(problem, sizes, device, tmp_path, clock)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert "run-0.npz" in before
    assert "seed-2.npz" not in before
    plenty = bench_gpu_evidence.Clock(1e6)
    assert bench_gpu_evidence.evidence(problem, sizes, device, tmp_path, plenty)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert len(after) == sizes.runs + sizes.seeds + len(sizes.corruptions) * len(sizes.severities) + 1
    assert {name: after[name] for name in before} == before
    shutil.rmtree(tmp_path / "weights")
    bench_gpu.main(["--part", "evidence", "--score", "--out", str(tmp_path)])
    figures = json.loads((tmp_path / "scores.json").read_text())
    assert figures["capture through fully_shard, same bits as full_tensor"] is True
    assert set(figures["drift"]["3"]) == set(bench_gpu_evidence.METHODS)
    assert figures["deep-ensemble equivalent"]["n_seeds"] == sizes.seeds
    assert len(figures["runs, accuracy of the pool"]) == sizes.runs
    assert len({one["members"].tobytes() for one in bench_gpu_evidence._kept(tmp_path, "seed-*.npz")}) == sizes.seeds
    with pytest.raises(SystemExit, match="other settings"):
        bench_gpu_evidence.evidence(problem, dataclasses.replace(sizes, rate=0.1), device, tmp_path, plenty)


def test_any_of_the_files_of_cifar10_will_do(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from benchmarks.bench_gpu_evidence import cifar10_in

    assert cifar10_in(tmp_path) is None
    rows = np.random.default_rng(0).integers(0, 10, (12, 3073), dtype=np.uint8)
    for name in ("data_batch_2.bin", "data_batch_4.bin"):
        rows.tofile(tmp_path / name)
    problem = cifar10_in(tmp_path)
    assert problem is not None
    assert (len(problem.train[1]), len(problem.test[1])) == (20, 4)     # the last sixth is tested on
    rows[:5].tofile(tmp_path / "test_batch.bin")
    problem = cifar10_in(tmp_path)
    assert problem is not None
    assert (len(problem.train[1]), len(problem.test[1])) == (24, 5)
    assert problem.train[0].shape == (24, 3, 32, 32)
    assert problem.test[1].tolist() == rows[:5, 0].tolist()
