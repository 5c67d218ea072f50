"""One training budget, spent in six ways: what is a snapshot ensemble worth beside what else it could have bought?

After Table 1 of Huang et al., ICLR 2017, on the processor: scikit-learn's digits, and the first images of MNIST and
CIFAR-10 where ENSEMBLEKIT_DATA names a folder with them. Every way gets the same number of steps and the same data; five
seeds each, differences paired by seed, 95 % intervals over seeds (Student's t). Errors and calibrated NLL are those of the
test items, of which a temperature sees one half to scale the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.neural import ResNet18, Small
from ensemblekit import neural
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import reduce
from ensemblekit.neural import schedule

METHODS = ("single cosine run", "NoCycle", "snapshot ensemble", "SWA", "FGE", "independent seeds")
SCORES = ("error", "nll", "calibrated_nll", "ece")
MEMBERS = 5
RATE = 0.2      # the paper's larger rate


@dataclass(frozen=True, slots=True)
class Problem:
    """Data and what is trained on it."""

    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    make: Callable[[], torch.nn.Module]
    epochs: int
    batch: int
    shift: int
    """Pixels by which images are moved at random, along both axes."""
    flip: bool = False


def run(quick: bool, seeds: int = 5, only: str = "") -> dict[str, Any]:
    """All problems there are, or those whose name has `only` in it; prints a table each and returns their figures."""
    console, tables = Console(), {}
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    try:
        for problem in problems(quick):
            if only not in problem.name:
                continue
            tables[problem.name] = compare(problem, seeds, console)
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
    return tables


def compare(problem: Problem, seeds: int, console: Console) -> dict[str, Any]:
    """The table of one problem."""
    began = time.perf_counter()
    found: dict[str, dict[str, list[float]]] = {m: {s: [] for s in SCORES} for m in METHODS}
    for seed in range(seeds):
        for method, prediction in ways(problem, seed):
            values = neural.scores(prediction)
            found[method]["error"].append(100 * (1 - values["accuracy"].value))
            for name in SCORES[1:]:
                found[method][name].append((100 if name == "ece" else 1) * values[name].value)
    steps = problem.epochs * (len(problem.train[0]) // problem.batch)
    console.rule(f"{problem.name}: {steps} steps of {problem.batch}, {seeds} seeds, "
                 f"{len(problem.test[0])} test items, {time.perf_counter() - began:.0f} s", align="left")
    from ensemblekit.cli.console import table

    shown = table("", "error %", "NLL", "calibrated NLL", "ECE %", right=("error %", "NLL", "calibrated NLL", "ECE %"))
    against = table("minus single", "error, points", "NLL", "calibrated NLL", "ECE, points",
                    right=("error, points", "NLL", "calibrated NLL", "ECE, points"))
    figures: dict[str, Any] = {"seeds": seeds, "steps": steps, "batch": problem.batch, "test": len(problem.test[0])}
    for method in METHODS:
        own = {s: interval(np.array(found[method][s])) for s in SCORES}
        gap = {s: interval(np.array(found[method][s]) - np.array(found[METHODS[0]][s])) for s in SCORES}
        figures[method] = {"scores": own, "minus single": gap}
        shown.add_row(method, *(f"{m:.3f} ± {h:.3f}" for m, h in own.values()))
        if method != METHODS[0]:
            against.add_row(method, *(f"{m:+.3f} ± {h:.3f}{'*' if abs(m) > h else ' '}" for m, h in gap.values()))
    console.print(shown, against)
    figures["verdict"] = verdict(found)
    console.print(figures["verdict"])
    return figures


def verdict(found: dict[str, dict[str, list[float]]]) -> str:
    """Whether the order of the paper's Table 1 (snapshot < NoCycle <= single in error) is there, beyond the seeds' noise."""
    error = {m: np.array(found[m]["error"]) for m in METHODS}
    said = []
    for better, worse in (("snapshot ensemble", "NoCycle"), ("NoCycle", "single cosine run"),
                          ("snapshot ensemble", "single cosine run"), ("snapshot ensemble", "independent seeds")):
        mean, half = interval(error[better] - error[worse])
        said.append(f"{better} - {worse}: {mean:+.2f} ± {half:.2f} points, "
                    + ("as in the paper" if mean < -half else "reversed" if mean > half else "not told apart"))
    return "Order of Table 1 by error: " + "; ".join(said)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the 95 % interval over seeds."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return float(values.mean()), float("nan")
    moments = reduce(values, Moments())
    return float(moments.mean), float(stdtrit(len(values) - 1, 0.975) * np.sqrt(moments.variance / len(values)))


# -- the ways ----------------------------------------------------------------------------------------------------------


def ways(problem: Problem, seed: int) -> Iterator[tuple[str, Any]]:
    """(method, prediction of the test items), each at the whole budget, from the same first weights."""
    steps = problem.epochs * (len(problem.train[0]) // problem.batch)
    test = [(x, y) for x, y in zip(problem.test[0].split(512), problem.test[1].split(512), strict=True)]
    plain = [(x, y) for x, y in zip(problem.train[0].split(512), problem.train[1].split(512), strict=True)]

    def cosine(cycles: int) -> Callable[[Any, int], Any]:
        return lambda optimizer, total: neural.CyclicCosineLR(optimizer, total_steps=total, n_cycles=cycles)

    single, states = trained(problem, seed, steps, cosine(1), [steps * (k + 1) // MEMBERS for k in range(MEMBERS)])
    yield "single cosine run", neural.predict(single, test)
    yield "NoCycle", ensemble(single, states).predict(test)
    last, states = trained(problem, seed, steps, cosine(MEMBERS))
    yield "snapshot ensemble", ensemble(last, states).predict(test)
    start = 3 * steps // 4
    last, states = trained(problem, seed, steps, lambda optimizer, total: schedule.SWAConstantLR(
        optimizer, total_steps=total, n_cycles=MEMBERS, swa_lr=RATE / 4, start_step=start))
    averaged = ensemble(last, states).averaged_model(plain, barrier="ignore")
    yield "SWA", neural.predict(averaged, test)
    last, states = trained(problem, seed, steps, lambda optimizer, total: schedule.TriangularLR(
        optimizer, total_steps=total, n_cycles=MEMBERS, alpha_1=RATE / 4, alpha_2=RATE / 40, start_step=start))
    yield "FGE", ensemble(last, states).predict(test)
    alone = [trained(problem, 1000 * (k + 1) + seed, steps // MEMBERS, cosine(1))[1][-1] for k in range(MEMBERS)]
    yield "independent seeds", ensemble(last, alone).predict(test)


def trained(problem: Problem, seed: int, steps: int, schedule_of: Callable[[Any, int], Any],
            captured: list[int] | None = None) -> tuple[torch.nn.Module, list[dict[str, np.ndarray]]]:
    """The model after so many steps, and its weights at the ends of cycles (or after the steps given)."""
    torch.manual_seed(seed)
    model = problem.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rates = schedule_of(optimizer, steps)
    loss_of = torch.nn.CrossEntropyLoss()
    x, y = problem.train
    states, step = [], 0
    model.train()
    while step < steps:
        for rows in torch.randperm(len(x)).split(problem.batch)[:len(x) // problem.batch]:
            if step == steps:
                break
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(augmented(x[rows], problem)), y[rows]).backward()
            optimizer.step()
            step += 1
            if step in captured if captured is not None else rates.at_cycle_end:
                states.append(neural.parameters.to_vectors(model))
            rates.step()
    return model, states


def ensemble(model: torch.nn.Module, states: list[dict[str, np.ndarray]]) -> neural.Ensemble:
    """Of weights in memory."""
    return neural.Ensemble(model, {kind: np.stack([s[kind] for s in states]) for kind in states[0]})


def augmented(x: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Images moved by up to `shift` pixels, and mirrored where that changes nothing."""
    s = problem.shift
    if problem.flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    if not s:
        return x
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x, (s, s, s, s), value=float(x.min()))
    down, right = torch.randint(0, 2 * s + 1, (2, len(x)))
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns]


# -- the problems ------------------------------------------------------------------------------------------------------


def problems(quick: bool) -> Iterator[Problem]:
    """What can be had: digits where scikit-learn is, MNIST and CIFAR-10 where ENSEMBLEKIT_DATA has them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        print("digits: skipped, scikit-learn is not installed")
    else:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(7).permutation(len(images))
        x = torch.tensor(images[order].reshape(-1, 1, 8, 8) / 8 - 1, dtype=torch.float32)
        y = torch.tensor(labels[order], dtype=torch.long)
        half = len(x) // 2
        yield Problem("digits", (x[:half], y[:half]), (x[half:], y[half:]), Small, 10 if quick else 25, 32, 1)
    root = os.environ.get("ENSEMBLEKIT_DATA")
    if not root:
        print("MNIST, CIFAR-10: skipped, ENSEMBLEKIT_DATA is not set")
        return
    mnist = Path(root) / "mnist" / "mnist.npz"
    if mnist.exists():
        with np.load(mnist) as held:
            x, y, u, v = (held[name] for name in ("x_train", "y_train", "x_test", "y_test"))
        n = 1000 if quick else 2000
        yield Problem(f"MNIST, {n} images", _images(x[:n, None], y[:n]), _images(u[:5000, None], v[:5000]), Small, 10, 64, 2)
    cifar = Path(root) / "cifar10"
    if (cifar / "labels.npz").exists() and not quick:
        from PIL import Image

        def tiles(name: str) -> np.ndarray:
            mosaic = np.asarray(Image.open(cifar / f"{name}.webp").convert("RGB"))
            return mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)

        with np.load(cifar / "labels.npz") as held:
            y, v = held["y_train"], held["y_test"]
        yield Problem("CIFAR-10, 5000 images", _images(tiles("train_0")[:5000], y[:5000]),
                      _images(tiles("test")[:2000], v[:2000]), lambda: ResNet18(8), 20, 64, 4, True)


def _images(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    floats = torch.tensor(x, dtype=torch.float32) / 255
    return (floats - floats.mean()) / floats.std(), torch.tensor(y, dtype=torch.long)
