"""``python -m benchmarks [suite ...] [--quick] [--json FILE]``: what is measured, on what, against whom."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pairing import Case
from benchmarks.report import as_json, bandwidth, machine, show, show_machine
from ensemblekit.engine import cores

SUITES = tuple(name for name in ("core", "md", "rom", "dynamics", "neural") if importlib.util.find_spec(f"benchmarks.{name}"))
TABLES = {"core": ("bench_coverage", "bench_statistics"), "md": ("bench_md_coverage",), "rom": ("bench_compress",),
          "neural": ("bench_neural_coverage", "bench_gpu", "bench_snapshots", "bench_evidence", "bench_diversity")}
"""Files that print tables of their own, after the suite's cases; each has ``run(quick)``."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the suites asked for; prints as it goes and writes JSON at the end."""
    args = parse(argv)
    if args.coverage:
        coverage(args)
        return
    for loud, where in ((DeprecationWarning, "MDAnalysis"), (UserWarning, "opinf"), (UserWarning, r"benchmarks\.rom")):
        warnings.filterwarnings("ignore", category=loud, module=where)      # of peers, between the tables
    console = Console()
    about = machine()
    size = (128 if args.quick else 512) << 20
    about["bandwidth_GBs"] = {str(n): bandwidth(size, n) / 1e9 for n in sorted({1, cores()})}
    show_machine(console, about)
    suites: dict[str, list[Case]] = {}
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ensemblekit-bench-", dir=args.folder) as folder:
        for name in args.suites:
            suites[name] = []
            if args.only:
                continue
            console.rule(name)
            for case in cases(name, args.quick, Path(folder)):
                suites[name].append(case)
                show(console, case)
    for suite in args.suites:
        for name in TABLES.get(suite, ()):
            if args.only in name and importlib.util.find_spec(f"benchmarks.{name}"):
                tables[name] = importlib.import_module(f"benchmarks.{name}").run(args.quick)
    if args.json:
        document = as_json(about, suites) | {"tables": tables}
        args.json.write_text(json.dumps(document, indent=1, default=str) + "\n")
        console.print(f"written: {args.json}", style="dim")


def coverage(args: argparse.Namespace) -> None:
    """The tables of ``--coverage``."""
    from benchmarks.vouched import tables

    document: dict[str, Any] = {}
    for name in args.suites:
        if importlib.util.find_spec(f"benchmarks.vouched_{name}"):
            document |= tables(f"vouched_{name}", args.repeats, args.seed, args.before, cores(), args.only)
        if name == "neural":
            from benchmarks import bench_neural_coverage

            rows = bench_neural_coverage.coverage_table(args.repeats, args.seed)
            bench_neural_coverage.show(rows)
            document["scores"] = rows
    if args.json:
        args.json.write_text(json.dumps(document, indent=1, default=str) + "\n")


def cases(suite: str, quick: bool, folder: Path) -> Iterator[Case]:
    """The cases of one suite."""
    module = importlib.import_module(f"benchmarks.{suite}")
    yield from module.run(module.QUICK if quick else module.FULL, folder)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"one of {', '.join(SUITES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="less data: a few minutes a suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--folder", type=Path, help="where the data is made and removed; the disk that is measured")
    parser.add_argument("--coverage", action="store_true", help="only the coverage of intervals that are vouched for, of many "
                                                                 "kinds of series")
    parser.add_argument("--repeats", type=int, default=2000, help="series a cell of --coverage")
    parser.add_argument("--seed", type=int, default=0, help="of --coverage")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout, whose intervals of the very same "
                                                                       "draws are set beside those of --coverage")
    parser.add_argument("--only", default="", metavar="TEXT", help="only tables with that name, such as diversity, or rows "
                                                                            "of --coverage")
    args = parser.parse_args(argv)
    args.suites = args.suites or list(SUITES)
    for name in args.suites:
        if name not in SUITES:
            parser.error(f"no suite {name!r}; there are: {', '.join(SUITES)}")
    return args


if __name__ == "__main__":      # Processes() starts fresh interpreters that import this file
    main()
