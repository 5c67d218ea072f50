"""CIFAR-10 on a GPU: ResNet-18, bfloat16, channels last, compiled; five cycles, what recording costs, 20 members' answers.

Runs where torch finds a GPU and ENSEMBLEKIT_DATA names a folder with CIFAR-10; says so where it does not. On a processor
`measure` takes toy sizes, so that a test keeps this file from rotting.

``python -m benchmarks.bench_gpu --part evidence --minutes 7 --out DIR [--data FOLDER] [--score]`` is ``bench_gpu_evidence``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import bench_gpu_evidence as evidence
from benchmarks.bench_snapshots import Problem, augmented, batches, cifar10, scale_of
from benchmarks.neural import Clocked, ResNet18
from ensemblekit import neural


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is trained and asked."""

    epochs: int = 50
    cycles: int = 5
    batch: int = 512
    width: int = 64
    members: int = 20
    """Of the streaming evaluation."""
    rate: float = 0.2
    compiled: bool = True
    repeats: int = 5


FULL = Sizes()
QUICK = Sizes(epochs=10)
TINY = Sizes(epochs=2, cycles=2, batch=8, width=4, members=3, compiled=False, repeats=2)


def run(quick: bool, results: Path | None = None) -> dict[str, Any]:
    """The figures of this machine's GPU; {} where there is none, or no data."""
    console = Console()
    root = os.environ.get("ENSEMBLEKIT_DATA")
    if not torch.cuda.is_available():
        console.print("CIFAR-10 on a GPU: skipped, torch finds none", style="dim")
        return {}
    problem = cifar10(Path(root), 50_000, lambda: ResNet18(64), shift=4) if root else None
    if problem is None:
        console.print("CIFAR-10 on a GPU: skipped, ENSEMBLEKIT_DATA names no folder with it", style="dim")
        return {}
    with tempfile.TemporaryDirectory(prefix="ensemblekit-bench-") as folder:
        figures = measure(problem, QUICK if quick else FULL, torch.device("cuda"), Path(folder))
    console.rule(f"CIFAR-10 on {torch.cuda.get_device_name()}", align="left")
    for name, value in figures.items():
        console.print(f"{name}: {value}", highlight=False)
    return {"CIFAR-10 on a GPU": figures}


def measure(problem: Problem, sizes: Sizes, device: torch.device, folder: Path) -> dict[str, Any]:
    """Train with a recorder, then let the snapshots answer."""
    torch.manual_seed(0)
    x, y = (part.to(device) for part in problem.train)
    scale = tuple(one.to(device) for one in scale_of(problem))
    model: Any = ResNet18(sizes.width).to(device, memory_format=torch.channels_last)
    bare = model
    if sizes.compiled:
        model = torch.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=sizes.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    n = len(x) // sizes.batch
    steps = sizes.epochs * n
    schedule = neural.CyclicCosineLR(optimizer, total_steps=steps, n_cycles=sizes.cycles)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    calls = Clocked()
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)

    def normalised(rows: torch.Tensor) -> torch.Tensor:
        return ((rows.float() - scale[0]) / scale[1]).contiguous(memory_format=torch.channels_last)

    began = time.perf_counter()
    with neural.Recorder(folder / "weights.h5", model, optimizer, schedule) as recorder:
        for epoch in recorder.epochs(sizes.epochs):
            model.train()
            for rows in recorder.batches(torch.randperm(len(x), device=device)[:n * sizes.batch].split(sizes.batch)):
                with torch.autocast(device.type, torch.bfloat16):
                    loss = loss_of(model(normalised(augmented(x[rows], problem))), y[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                calls(recorder.step, loss)
                calls(schedule.step)
            if epoch == 0:
                wait()
                compiled = time.perf_counter()      # what the compiler took is no part of the rate of training
                calls.seconds.clear()
    wait()
    ended = time.perf_counter()
    shell = ResNet18(sizes.width).to(device, memory_format=torch.channels_last)

    def forward(net: torch.nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return net(batch[0]).float()

    test = [(a.to(device), b.to(device)) for a, b in batches(problem, problem.test)]
    pooled = neural.Ensemble.from_store(folder / "weights.h5", shell, forward=forward)
    answers = pooled.predict(test)
    last = neural.predict(bare, test, forward=forward)
    many = neural.Ensemble(shell, _repeated(bare, sizes.members), forward=forward)
    share = _streaming(many, bare, forward, test, sizes, wait)
    return {"steps": steps, "snapshots": len(pooled), "training, s": round(ended - began, 1),
            "images a second, from the second epoch": round((sizes.epochs - 1) * n * sizes.batch / (ended - compiled)),
            "calls of recorder and schedule, share of the training's time, %":
                round(100 * sum(calls.seconds) / (ended - compiled), 3),
            "pooled accuracy, %": round(100 * float((answers.choice == answers.target).mean()), 2),
            "last snapshot alone, %": round(100 * float((last.choice == last.target).mean()), 2),
            f"streaming evaluation of {sizes.members} members, share of the rate of as many bare forwards, %":
                round(100 * share, 1)}


def _repeated(model: torch.nn.Module, members: int) -> dict[str, np.ndarray]:
    vectors = neural.parameters.to_vectors(model)
    return {kind: np.repeat(vector[None], members, 0) for kind, vector in vectors.items()}


def _streaming(ensemble: neural.Ensemble, model: torch.nn.Module, forward: Callable[..., torch.Tensor], test: list[Any],
               sizes: Sizes, wait: Callable[[], None]) -> float:
    """Time of as many bare forwards by the time of predict, both whole passes over the test items, in turn."""
    model.eval()
    ratios = []
    for _ in range(sizes.repeats + 1):
        wait()
        began = time.perf_counter()
        with torch.no_grad():
            for batch in test:
                for _ in range(sizes.members):
                    forward(model, batch)
        wait()
        middle = time.perf_counter()
        ensemble.predict(test)
        wait()
        ratios.append((middle - began) / (time.perf_counter() - middle))
    return float(np.median(ratios[1:]))     # the first warms up


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "evidence"), default="speed")
    parser.add_argument("--quick", action="store_true", help="of the speed: fewer epochs")
    parser.add_argument("--minutes", type=float, default=7, help="of the evidence: when to end; the same command goes on")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of the evidence: where predictions and figures are kept")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with any of the six files of CIFAR-10; by default cifar10 "
                                                                     "in ENSEMBLEKIT_DATA")
    parser.add_argument("--score", action="store_true", help="of the evidence: score what is kept, on the processor")
    args = parser.parse_args(argv)
    if args.part == "speed":
        run(args.quick)
        return
    if args.out is None:
        parser.error("--part evidence needs --out DIR")
    if not args.score:
        clock = evidence.Clock(args.minutes)
        data = args.data or Path(os.environ.get("ENSEMBLEKIT_DATA", "")) / "cifar10"
        problem = evidence.cifar10_in(data)
        if problem is None or not torch.cuda.is_available():
            raise SystemExit("torch finds no GPU" if problem is not None else f"{data} holds none of the files of CIFAR-10")
        if not evidence.evidence(problem, evidence.Evidence(), torch.device("cuda"), args.out, clock):
            Console().print(f"the {args.minutes:g} minutes are over: the same command goes on with what is missing")
    figures = evidence.scored(args.out)
    (args.out / "scores.json").write_text(json.dumps(figures, indent=1, default=str) + "\n")
    Console().print_json(data=figures, default=str)


if __name__ == "__main__":
    main()
