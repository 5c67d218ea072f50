"""One training budget, spent in six ways: what is a snapshot ensemble worth beside what else it could have bought?

After Table 1 of Huang et al., ICLR 2017, on the processor: scikit-learn's digits, and MNIST and CIFAR-10 where
ENSEMBLEKIT_DATA names a folder with them. Every way gets the same number of steps on the same data; five seeds each;
differences from the snapshot ensemble are paired by seed and by test item. An interval "over seeds" is Student's, for
another training on this data; one "over items" is for other test items and these trainings; a star stands where zero
lies outside both together (the root of the sum of their squares).

``python -m benchmarks.bench_snapshots [--only NAME] [--quick] [--seeds N] [--results FOLDER]`` keeps what every training
predicts in a folder, so that a killed benchmark goes on and a finished one is printed again at once. ``--tune`` shows what
the settings in `problems` were chosen by: validation images, which are neither trained on nor tested.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.neural import Small, Strided
from ensemblekit import neural
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import reduce
from ensemblekit.neural import schedule
from ensemblekit.neural.items import items_of
from ensemblekit.neural.summed import item_scores

METHODS = ("snapshot ensemble", "single cosine run", "NoCycle", "SWA", "FGE", "independent seeds")
SCORES = ("error", "nll", "calibrated_nll", "ece")
HEADS = ("error %", "NLL", "calibrated NLL", "ECE %")
ORDER = (("snapshot ensemble", "NoCycle"), ("NoCycle", "single cosine run"), ("snapshot ensemble", "single cosine run"),
         ("snapshot ensemble", "independent seeds"))
"""Pairs (fewer errors, more) of the paper's Table 1; independent seeds are its SingleCycle ensembles."""
MEMBERS = 5
RESULTS = Path("benchmark-results")
RATES = (0.1, 0.2, 0.4)
DRAWS = 400


@dataclass(frozen=True, slots=True)
class Problem:
    """Data and what is trained on it. Images are bytes (n, channels, height, width)."""

    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]
    """What settings are chosen by (``--tune``)."""
    test: tuple[torch.Tensor, torch.Tensor]
    make: Callable[[], torch.nn.Module]
    epochs: int
    batch: int
    shift: int
    """Pixels by which images are moved at random, along both axes."""
    flip: bool = False
    rate: float = 0.1
    """Peak of every way but the snapshot ensemble."""
    snapshot_rate: float = 0.2
    cycles: int = MEMBERS
    last: int = MEMBERS
    """Members pooled: those of the last cycles."""

    @property
    def steps(self) -> int:
        """The budget."""
        return self.epochs * (len(self.train[0]) // self.batch)

    def settings(self, method: str) -> dict[str, Any]:
        """What a training's result depends on, as far as this file knows."""
        own = ({"rate": self.snapshot_rate, "cycles": self.cycles, "last": self.last} if method == "snapshot ensemble" else
               {"rate": self.rate, "members": MEMBERS})
        return {"problem": self.name, "method": method, "train": len(self.train[0]), "test": len(self.test[0]),
                "epochs": self.epochs, "batch": self.batch, "shift": self.shift, "flip": self.flip,
                "weights": sum(p.numel() for p in self.make().parameters()), **own}


def run(quick: bool, seeds: int = 5, only: str = "", results: Path | None = None) -> dict[str, Any]:
    """All problems there are, or those whose name has `only` in it; prints a table each and returns their figures."""
    console, tables = Console(), {}
    results = results or Path(os.environ.get("ENSEMBLEKIT_BENCH_RESULTS", RESULTS))
    with one_thread():
        for problem in problems(quick):
            if quick:       # asking 10 000 images six times a seed would take longer than the training
                problem = replace(problem, test=(problem.test[0][:2000], problem.test[1][:2000]))
            if only.lower() in problem.name.lower():
                tables[problem.name] = compare(problem, seeds, console, results)
    return tables


class one_thread:
    """One thread and torch's random numbers put back: networks as small as these only wait for a second one."""

    def __enter__(self) -> None:
        self.threads, self.state = torch.get_num_threads(), torch.random.get_rng_state()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)
        torch.random.set_rng_state(self.state)


# -- the table ---------------------------------------------------------------------------------------------------------


def compare(problem: Problem, seeds: int, console: Console, results: Path) -> dict[str, Any]:
    """The table of one problem."""
    from ensemblekit.cli.console import table

    labels = problem.test[1].numpy()
    measured = {method: Measured(labels) for method in METHODS}
    for seed in range(seeds):
        for method, p in ways(problem, seed, results, console):
            measured[method].add(p)
    console.rule(f"{problem.name}: {problem.steps} steps of {problem.batch}, {seeds} seeds, {len(labels)} test items; "
                 "± over seeds, ± over items", align="left")
    shown = table("", *HEADS, right=HEADS)
    against = table("minus the snapshot ensemble", *HEADS, right=HEADS)
    figures: dict[str, Any] = {"seeds": seeds, "steps": problem.steps, "batch": problem.batch, "test": len(labels)}
    best = measured[METHODS[0]]
    for method, one in measured.items():
        own = {name: one.mean(name) for name in SCORES}
        gap = {name: one.minus(best, name) for name in SCORES}
        figures[method] = {"scores": own, "minus the snapshot ensemble": gap}
        shown.add_row(method, *(f"{m:.3f} ± {a:.3f} ± {b:.3f}" for m, a, b in own.values()))
        if one is not best:
            against.add_row(method, *(f"{m:+.3f} ± {a:.3f} ± {b:.3f}{'*' if told(m, a, b) else ' '}"
                                      for m, a, b in gap.values()))
    console.print(shown, against)
    figures["verdict"] = verdict(measured)
    console.print(figures["verdict"], highlight=False)
    return figures


class Measured:
    """What one way got with each seed: scores of every test item, and bins of confidence for the ECE."""

    def __init__(self, labels: np.ndarray):
        self.labels = labels
        self.items: dict[str, list[np.ndarray]] = {name: [] for name in SCORES[:3]}
        self.ece: list[float] = []
        self.drawn: list[np.ndarray] = []

    def add(self, p: np.ndarray) -> None:
        """One more seed's probabilities (n, classes)."""
        each = item_scores(items_of(p, self.labels))
        for name, x in (("error", 100 * (1 - each["accuracy"])), ("nll", each["nll"]),
                        ("calibrated_nll", each["calibrated_nll"])):
            self.items[name].append(x)
        self.ece.append(100 * float(neural.calibration_error(p, self.labels)))
        confidence = p.max(1)
        gap = (p.argmax(1) == self.labels) - confidence
        bins = np.zeros((len(p), 15))
        bins[np.arange(len(p)), np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)] = gap
        counts = np.random.default_rng(0).multinomial(len(p), np.full(len(p), 1 / len(p)), DRAWS)  # the same for all
        self.drawn.append(100 * np.abs(counts @ bins).sum(1) / len(p))

    def mean(self, name: str) -> tuple[float, float, float]:
        """Mean over seeds, half its 95 % interval over seeds, and over items."""
        if name == "ece":
            return self._ece(np.array(self.ece), np.mean(self.drawn, 0))
        return self._both(np.array(self.items[name]))

    def minus(self, other: Measured, name: str) -> tuple[float, float, float]:
        """The same of the difference from another way's, paired."""
        if name == "ece":
            return self._ece(np.array(self.ece) - np.array(other.ece), np.mean(self.drawn, 0) - np.mean(other.drawn, 0))
        return self._both(np.array(self.items[name]) - np.array(other.items[name]))

    @staticmethod
    def _both(x: np.ndarray) -> tuple[float, float, float]:
        mean, half = interval(x.mean(1))
        return mean, half, interval(x.mean(0))[1]

    @staticmethod
    def _ece(seeds: np.ndarray, drawn: np.ndarray) -> tuple[float, float, float]:
        return *interval(seeds), float(1.96 * np.sqrt(reduce(drawn, Moments()).variance))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the 95 % interval of independent values (Student's t)."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return float(values.mean()), float("nan")
    moments = reduce(values, Moments())
    return float(moments.mean), float(stdtrit(len(values) - 1, 0.975) * np.sqrt(moments.variance / len(values)))


def told(mean: float, over_seeds: float, over_items: float) -> bool:
    """Whether a difference is told apart from zero by both intervals together."""
    return abs(mean) > np.hypot(over_seeds, over_items)


def verdict(measured: Mapping[str, Measured]) -> str:
    """Whether the order of the paper's Table 1 is there, beyond the noise of seeds and items."""
    said, signs = [], []
    for better, worse in ORDER:
        mean, seeds, items = measured[better].minus(measured[worse], "error")
        clear = told(mean, seeds, items)
        signs.append((mean < 0 or (mean == 0 and worse == "single cosine run"), clear))
        said.append(f"  {better} - {worse}: {mean:+.2f} ± {np.hypot(seeds, items):.2f} points, "
                    + ("not told from zero" if not clear else "as in the paper" if mean < 0 else "REVERSED"))
    if all(down and clear for down, clear in signs):
        head = "reproduced, every step of it beyond the noise"
    elif all(down for down, _ in signs):
        head = "reproduced in the means; the steps not told from zero are so marked"
    elif any(clear and not down for down, clear in signs):
        head = "ABSENT: a step is reversed beyond the noise"
    else:
        head = "NOT reproduced: the means are in another order, within the noise"
    return "\n".join([f"Order of the paper's Table 1 by error: {head}", *said])


# -- the ways ----------------------------------------------------------------------------------------------------------


def ways(problem: Problem, seed: int, results: Path, console: Console) -> Iterator[tuple[str, np.ndarray]]:
    """(method, probabilities of the test items), each at the whole budget, from the same first weights."""
    kept = Kept(problem, seed, results)
    for names, train in ((("single cosine run", "NoCycle"), _single), (("snapshot ensemble",), _snapshots),
                         (("SWA",), _swa), (("FGE",), _fge), (("independent seeds",), _independent)):
        if any(kept.read(name) is None for name in names):
            began = time.perf_counter()
            for name, p in zip(names, train(problem, seed), strict=True):
                kept.write(name, p)
            error = 100 * (p.argmax(1) != problem.test[1].numpy()).mean()
            console.print(f"{problem.name}, seed {seed}, {' and '.join(names)}: {time.perf_counter() - began:.0f} s, error "
                          f"{error:.2f} %", style="dim", highlight=False)
        for name in names:
            p = kept.read(name)
            assert p is not None
            yield name, p


class Kept:
    """Predictions in files, one a problem, seed and method; of other settings they are made anew."""

    def __init__(self, problem: Problem, seed: int, folder: Path):
        self.problem, self.seed = problem, seed
        self.folder = folder / "".join(c if c.isalnum() else "-" for c in problem.name)

    def _path(self, method: str) -> Path:
        return self.folder / f"{method.replace(' ', '-')}-{self.seed}.npz"

    def read(self, method: str) -> np.ndarray | None:
        """(n, classes), or None."""
        try:
            with np.load(self._path(method)) as held:
                return held["p"].astype(float) if json.loads(str(held["settings"])) == self.problem.settings(method) else None
        except (OSError, KeyError, ValueError):
            return None

    def write(self, method: str, p: np.ndarray) -> None:
        """Whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(method)
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, p=p.astype(np.float32), settings=json.dumps(self.problem.settings(method)))
        os.replace(path.with_suffix(".part"), path)


def cosine(cycles: int) -> Callable[[Any, int], Any]:
    """The schedule of so many cycles."""
    return lambda optimizer, total: neural.CyclicCosineLR(optimizer, total_steps=total, n_cycles=cycles)


def _single(problem: Problem, seed: int) -> Iterator[np.ndarray]:
    captured = [problem.steps * (k + 1) // MEMBERS for k in range(MEMBERS)]
    model, states = trained(problem, seed, problem.steps, problem.rate, cosine(1), captured)
    yield neural.predict(model, batches(problem, problem.test)).probabilities
    yield pooled(problem, model, states)


def _snapshots(problem: Problem, seed: int) -> Iterator[np.ndarray]:
    model, states = trained(problem, seed, problem.steps, problem.snapshot_rate, cosine(problem.cycles))
    yield pooled(problem, model, states[-problem.last:])


def _swa(problem: Problem, seed: int) -> Iterator[np.ndarray]:
    model, states = trained(problem, seed, problem.steps, problem.rate, lambda optimizer, total: schedule.SWAConstantLR(
        optimizer, total_steps=total, n_cycles=MEMBERS, swa_lr=problem.rate / 4, start_step=3 * total // 4))
    averaged = ensemble(model, states).averaged_model(batches(problem, problem.train), barrier="ignore")
    yield neural.predict(averaged, batches(problem, problem.test)).probabilities


def _fge(problem: Problem, seed: int) -> Iterator[np.ndarray]:
    model, states = trained(problem, seed, problem.steps, problem.rate, lambda optimizer, total: schedule.TriangularLR(
        optimizer, total_steps=total, n_cycles=MEMBERS, alpha_1=problem.rate / 4, alpha_2=problem.rate / 40,
        start_step=3 * total // 4))
    yield pooled(problem, model, states)


def _independent(problem: Problem, seed: int) -> Iterator[np.ndarray]:
    alone = [trained(problem, 1000 * (k + 1) + seed, problem.steps // MEMBERS, problem.rate, cosine(1))
             for k in range(MEMBERS)]
    yield pooled(problem, alone[0][0], [states[-1] for _, states in alone])


def trained(problem: Problem, seed: int, steps: int, rate: float, schedule_of: Callable[[Any, int], Any],
            captured: Sequence[int] | None = None) -> tuple[torch.nn.Module, list[dict[str, np.ndarray]]]:
    """The model after so many steps, and its weights at the ends of cycles (or after the steps given)."""
    torch.manual_seed(seed)
    model = problem.make().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rates = schedule_of(optimizer, steps)
    loss_of = torch.nn.CrossEntropyLoss()
    x, y = problem.train
    scale = scale_of(problem)
    states, step = [], 0
    model.train()
    while step < steps:
        for rows in torch.randperm(len(x)).split(problem.batch)[:len(x) // problem.batch]:
            if step == steps:
                break
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(as_input(augmented(x[rows], problem), scale)), y[rows]).backward()
            optimizer.step()
            step += 1
            if step in captured if captured is not None else rates.at_cycle_end:
                states.append(neural.parameters.to_vectors(model))
            rates.step()
    return model, states


def ensemble(model: torch.nn.Module, states: Sequence[dict[str, np.ndarray]]) -> neural.Ensemble:
    """Of weights in memory."""
    return neural.Ensemble(model, {kind: np.stack([s[kind] for s in states]) for kind in states[0]})


def pooled(problem: Problem, model: torch.nn.Module, states: Sequence[dict[str, np.ndarray]],
           part: tuple[torch.Tensor, torch.Tensor] | None = None) -> np.ndarray:
    """Probabilities of the test items, or those of another part."""
    # the way is named, as one chosen by the clock could differ in the last bits from run to run
    return ensemble(model, states).predict(batches(problem, part or problem.test), path="sequential").probabilities


# -- images ------------------------------------------------------------------------------------------------------------


def scale_of(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel over (at most 10 000 of) the training images."""
    x = problem.train[0][:10_000].float()
    return x.mean((0, 2, 3))[None, :, None, None], x.std((0, 2, 3))[None, :, None, None]


def as_input(x: torch.Tensor, scale: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Bytes as numbers of mean 0 and deviation 1."""
    return ((x.float() - scale[0]) / scale[1]).contiguous(memory_format=torch.channels_last)


def batches(problem: Problem, part: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of 500, not augmented."""
    scale = scale_of(problem)
    return [(as_input(x, scale), y) for x, y in zip(part[0].split(500), part[1].split(500), strict=True)]


def augmented(x: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Images moved by up to `shift` pixels, and mirrored where that changes nothing."""
    s, device = problem.shift, x.device
    if problem.flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(3), x)
    if not s:
        return x
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x, (s, s, s, s))
    down, right = torch.randint(0, 2 * s + 1, (2, len(x)), device=device)
    rows = (down[:, None] + torch.arange(height, device=device))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width, device=device))[:, None, None, :]
    items, channels = torch.arange(len(x), device=device), torch.arange(x.shape[1], device=device)
    return padded[items[:, None, None, None], channels[:, None, None], rows, columns]


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
        x, y = 15 * images[order].reshape(-1, 1, 8, 8), labels[order]
        yield Problem("digits" + ", quick" * quick, _images(x[:700], y[:700]), _images(x[700:900], y[700:900]),
                      _images(x[900:], y[900:]), Small, 15 if quick else 40, 32, 1, rate=0.2)
    root = os.environ.get("ENSEMBLEKIT_DATA")
    if not root:
        print("MNIST, CIFAR-10: skipped, ENSEMBLEKIT_DATA is not set")
        return
    mnist = Path(root) / "mnist" / "mnist.npz"
    if mnist.exists():
        with np.load(mnist) as held:
            x, y, u, v = (held[name] for name in ("x_train", "y_train", "x_test", "y_test"))
        n = 1000 if quick else 5000
        yield Problem(f"MNIST, {n} images", _images(x[:n, None], y[:n]), _images(x[50_000:, None], y[50_000:]),
                      _images(u[:, None], v), Strided, 10 if quick else 20, 64, 2, rate=0.2)
    else:
        print(f"MNIST: skipped, {mnist} is not there")
    problem = cifar10(Path(root), 2000 if quick else 10_000, lambda: Strided(3), epochs=5 if quick else 20)
    if problem is None:
        print(f"CIFAR-10: skipped, {Path(root) / 'cifar10' / 'labels.npz'} is not there")
    else:
        yield problem


def cifar10(root: Path, n: int, make: Callable[[], torch.nn.Module], *, epochs: int = 1, shift: int = 0) -> Problem | None:
    """The first n training images of CIFAR-10, the 5000 after the first 10 000 (or n) to choose settings by; mirrored."""
    folder = root / "cifar10"
    if not (folder / "labels.npz").exists():
        return None
    with np.load(folder / "labels.npz") as held:
        y, v = held["y_train"], held["y_test"]
    start = min(max(n, 10_000), 45_000)
    x = np.concatenate([tiles_of(folder / f"train_{k}.webp") for k in range(-(-(start + 5000) // 10_000))])
    return Problem(f"CIFAR-10, {n} images", _images(x[:n], y[:n]), _images(x[start:start + 5000], y[start:start + 5000]),
                   _images(tiles_of(folder / "test.webp"), v), make, epochs, 64, shift, True, rate=0.05, snapshot_rate=0.05,
                   last=4)


def tiles_of(path: Path) -> np.ndarray:
    """(10 000, 3, 32, 32) from a mosaic of 100 by 100."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as picture:
        mosaic = np.asarray(picture.convert("RGB"))
    return mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


def _images(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(np.ascontiguousarray(x), dtype=torch.uint8), torch.tensor(y, dtype=torch.long)


# -- how the settings were chosen --------------------------------------------------------------------------------------


def tune(problem: Problem, console: Console, rates: Sequence[float] = RATES, cycles: Sequence[int] = (3, 5),
         seed: int = 100) -> None:
    """Error and calibrated NLL of validation images: single runs by rate; snapshot ensembles by rate, cycles, members."""
    labels = problem.validation[1].numpy()

    def say(what: str, p: np.ndarray) -> None:
        each = item_scores(items_of(p, labels))
        console.print(f"{problem.name}, validation, {what}: error {100 * (1 - each['accuracy'].mean()):.2f} %, calibrated NLL "
                      f"{each['calibrated_nll'].mean():.4f}", highlight=False)

    for rate in rates:
        model, _ = trained(problem, seed, problem.steps, rate, cosine(1))
        say(f"single, rate {rate}", neural.predict(model, batches(problem, problem.validation)).probabilities)
        for n in cycles:
            model, states = trained(problem, seed, problem.steps, rate, cosine(n))
            for last in range(1, n + 1):
                say(f"{n} cycles, rate {rate}, last {last}", pooled(problem, model, states[-last:], problem.validation))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_snapshots", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and steps")
    parser.add_argument("--only", default="", metavar="NAME", help="digits, MNIST or CIFAR")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help=f"default: {RESULTS}")
    parser.add_argument("--tune", action="store_true", help="show the validation figures that settings were chosen by")
    args = parser.parse_args()
    if not args.tune:
        run(args.quick, args.seeds, args.only, args.results)
        return
    with one_thread():
        for problem in problems(args.quick):
            if args.only.lower() in problem.name.lower():
                tune(problem, Console())


if __name__ == "__main__":
    main()
