"""Snapshot ensembles against torchensemble, torch.optim.swa_utils and plain loops, on the processor.

What the training itself is worth (errors, likelihoods, calibration of five ways to spend one budget) is measured by
``benchmarks/bench_snapshots.py``, whose table follows these cases.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pairing import Case, Contender, paired
from ensemblekit import neural

nn = torch.nn


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    snapshots: int = 20
    width: int = 64
    """Channels of the first stage of the ResNet-18; 64 is He et al.'s."""
    epochs: int = 5
    """Of the training loop that is timed."""
    items: int = 1024
    members: int = 20
    candidates: int = 50
    """Members that are chosen from, on `labelled` items of ten classes."""
    labelled: int = 10_000
    repeats: int = 7


FULL = Sizes()
QUICK = Sizes(repeats=3, items=512, labelled=2000)
TINY = Sizes(snapshots=3, width=4, epochs=2, items=128, members=3, candidates=6, labelled=100, repeats=1)
"""For the test that keeps the benchmarks from rotting."""


def run(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """Every case, one after the other; `folder` is for files and is left empty."""
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        yield averaging(sizes, folder)
        torch.set_num_threads(1)            # a network this small only waits for a second thread
        yield training(sizes, folder)
        yield updates(sizes)
        yield from predictions(sizes)
        yield greedy(sizes)
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)


# -- the networks ------------------------------------------------------------------------------------------------------


class Basic(nn.Module):
    """Two 3 × 3 convolutions with batch norm, and a way past them (He et al. 2016)."""

    def __init__(self, inside: int, out: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.past = (nn.Identity() if stride == 1 and inside == out else
                     nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(x)) + self.past(x))


class ResNet18(nn.Sequential):
    """The ResNet-18 for images of 32 × 32: a 3 × 3 stem, four stages of two blocks; 11.2 million weights at width 64."""

    def __init__(self, width: int = 64, classes: int = 10):
        w = width
        blocks = [Basic(a, b, s) for a, b, s in (
            (w, w, 1), (w, w, 1), (w, 2 * w, 2), (2 * w, 2 * w, 1), (2 * w, 4 * w, 2), (4 * w, 4 * w, 1),
            (4 * w, 8 * w, 2), (8 * w, 8 * w, 1))]
        super().__init__(nn.Conv2d(3, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, classes))


class Small(nn.Module):
    """Three convolutions for images of 8 × 8; 15 thousand weights."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(128, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Strided(nn.Sequential):
    """Three convolutions for images of 28 × 28 or 32 × 32, two of them strided; 34 thousand weights."""

    def __init__(self, channels: int = 1, classes: int = 10):
        super().__init__(
            nn.Conv2d(channels, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Flatten(), nn.Linear(1024, classes))


def perceptron() -> nn.Module:
    """64 - 64 - 64 - 10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


# -- averaging checkpoints ---------------------------------------------------------------------------------------------


def averaging(sizes: Sizes, folder: Path) -> Case:
    """The mean of the weights of 20 snapshots of a ResNet-18, files warm in the page cache."""
    from torch.optim.swa_utils import AveragedModel

    work = folder / "averaging"
    work.mkdir()
    model = ResNet18(sizes.width)
    manifest = neural.Manifest.of(model)
    paths = []
    import ensemblekit as ek

    with ek.create(work / "weights.h5", manifest.fields, capacity=sizes.snapshots,
                   provenance={"manifest": manifest.to_dict()}) as store:
        for k in range(sizes.snapshots):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01 * torch.randn_like(p))
            store.append(neural.parameters.to_vectors(model, manifest))
            paths.append(work / f"{k}.pt")
            torch.save(model.state_dict(), paths[-1])
    shell = ResNet18(sizes.width)

    def ours(_: Any) -> torch.Tensor:
        mean = neural.Ensemble.from_store(work / "weights.h5", shell).reduce(ek.Moments()).mean
        neural.parameters.load_vectors(shell, {"parameters": mean}, manifest)
        return nn.utils.parameters_to_vector(shell.parameters()).detach()

    def torchs(_: Any) -> torch.Tensor:
        averaged: Any = None
        for path in paths:
            shell.load_state_dict(torch.load(path, weights_only=True))
            averaged = averaged or AveragedModel(shell)
            averaged.update_parameters(shell)
        return nn.utils.parameters_to_vector(averaged.module.parameters()).detach()

    def check(a: torch.Tensor, b: torch.Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    nbytes = sizes.snapshots * sum(e.size for e in manifest.parameters) * 4
    case = paired(f"mean of {sizes.snapshots} snapshots of a ResNet-18 ({nbytes / sizes.snapshots / 1e6:.0f} MB each)",
                  [Contender("ensemblekit: from_store, reduce", ours),
                   Contender("torch.load one by one, swa_utils.AveragedModel", torchs)],
                  check, work=nbytes / 1e9, unit="GB", repeats=sizes.repeats)
    shutil.rmtree(work)
    return case


# -- the training loop -------------------------------------------------------------------------------------------------


class Clocked:
    """Keeps the seconds of every call of some functions."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, call: Any, *args: Any) -> Any:
        began = time.perf_counter()
        answer = call(*args)
        self.seconds.append(time.perf_counter() - began)
        return answer


class _Given:
    """Batches that cost nothing."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


def training(sizes: Sizes, folder: Path) -> Case:
    """The same steps on the same batches: bare, with our schedule and recorder, and torchensemble's fit."""
    width = max(4, sizes.width // 8)
    x = torch.randn(sizes.items, 3, 32, 32)
    y = torch.arange(sizes.items) % 10
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64)
    loss_of = nn.CrossEntropyLoss()
    steps = sizes.epochs * len(loader)
    path = folder / "weights.h5"
    shares, begun, steady, each = [], [], [], []

    def bare(model: nn.Module) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.train()
        for _ in range(sizes.epochs):
            for a, b in loader:
                optimizer.zero_grad()
                loss_of(model(a), b).backward()
                optimizer.step()
        return sizes.epochs

    def ours(model: nn.Module) -> Any:
        once, work, added, moved, counted, fetched = (Clocked() for _ in range(6))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = once(lambda: neural.CyclicCosineLR(optimizer, total_steps=steps, n_cycles=sizes.epochs))
        recorder = once(lambda: neural.Recorder(path, model, optimizer, schedule))
        hooks = optimizer._optimizer_step_post_hooks        # ours counts the updates inside optimizer.step
        for key, hook in list(hooks.items()):
            hooks[key] = lambda *args, hook=hook: counted(hook, *args)
        model.train()
        with recorder:
            for _ in recorder.epochs(sizes.epochs):
                plain, recorded = iter(loader), recorder.batches(_Given(len(loader)))
                for a, b in plain:
                    fetched(next, recorded)     # what recorder.batches adds to the loader's own work, saved states too
                    work(train, model, optimizer, a, b)
                    added(recorder.step)
                    moved(schedule.step)
                fetched(next, recorded, None)
        step = float(np.median(work.seconds))
        every = (added, moved, counted, fetched)
        shares.append(sum(sum(one.seconds) for one in every) / (step * steps))
        begun.append(sum(once.seconds))
        steady.append([float(np.median(one.seconds)) for one in every])
        each.append(step)
        return sizes.epochs

    def train(model: nn.Module, optimizer: Any, a: torch.Tensor, b: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss_of(model(a), b).backward()
        optimizer.step()

    def theirs(_: Any) -> Any:
        from torchensemble import SnapshotEnsembleClassifier

        ensemble = SnapshotEnsembleClassifier(estimator=ResNet18, estimator_args={"width": width},
                                              n_estimators=sizes.epochs, cuda=False)
        ensemble.logger.setLevel(logging.ERROR)
        ensemble.set_optimizer("SGD", lr=0.1, momentum=0.9)
        with contextlib.redirect_stdout(io.StringIO()):
            ensemble.fit(loader, epochs=sizes.epochs, save_model=False, log_interval=10**9)
        return len(ensemble.estimators_)

    def clean(_: Any, answer: Any) -> Any:
        path.unlink(missing_ok=True)
        shutil.rmtree(f"{path}.d", ignore_errors=True)
        return answer

    def make() -> nn.Module:
        return ResNet18(width)

    contenders = [Contender("bare loop", bare, prepare=make),
                  Contender("with CyclicCosineLR and Recorder", ours, prepare=make, finish=clean)]
    facts: dict[str, Any] = {}
    if importlib.util.find_spec("torchensemble"):
        contenders.append(Contender("torchensemble.SnapshotEnsembleClassifier.fit", theirs))
    else:
        facts["skipped"] = "torchensemble is not installed"
    case = paired(f"training a ResNet-18 of width {width}: {steps} steps of 64, {sizes.epochs} snapshots (a ratio is time by "
                  "the bare loop's)", contenders, np.testing.assert_equal, work=steps, unit="steps", repeats=sizes.repeats)
    # The added calls are timed themselves: the difference of two loops is far smaller than what they vary by.
    middle = np.median(np.array(steady), 0)
    facts["all calls of Recorder (captures and saved states too) and schedule, by the bare loop's median step times steps"] = (
        f"{100 * min(shares):.2f} % at best, {100 * float(np.median(shares)):.2f} % in the median run")
    facts["a call"] = (f"Recorder.step {1e6 * middle[0]:.1f} µs, schedule.step {1e6 * middle[1]:.1f} µs, the optimizer's "
                       f"hook {1e6 * middle[2]:.1f} µs, Recorder.batches {1e6 * middle[3]:.1f} µs, "
                       f"beside a step of {1e3 * float(np.median(each)):.2f} ms")
    facts["once, to make schedule and store"] = f"{1e3 * float(np.median(begun)):.0f} ms"
    return Case(case.name, case.work, case.unit, case.timings, facts)


def updates(sizes: Sizes) -> Case:
    """One update of averaged weights a epoch, and the batch-norm pass: time, and what is left of the exact mean."""
    from torch.optim import swa_utils

    model = ResNet18(max(4, sizes.width // 4))
    batches = [(torch.randn(n, 3, 32, 32),) for n in (32, 32, 7)]

    def ours(_: Any) -> Any:
        averaged = neural.AveragedModel(model)
        for _ in range(5):
            averaged.update_parameters(model)
        neural.update_bn(batches, averaged.module)
        return averaged.module

    def theirs(_: Any) -> Any:
        averaged = swa_utils.AveragedModel(model)
        for _ in range(5):
            averaged.update_parameters(model)
        swa_utils.update_bn(batches, averaged.module)
        return averaged.module

    def check(a: Any, b: Any) -> None:
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q)

    return paired("five updates of averaged weights and a batch-norm pass of 71 images", [
        Contender("ensemblekit", ours), Contender("torch.optim.swa_utils", theirs)], check, work=1, unit="runs",
        repeats=sizes.repeats)


# -- predictions -------------------------------------------------------------------------------------------------------


def predictions(sizes: Sizes) -> Iterator[Case]:
    """Pooled probabilities of members in memory, against the loop one would write."""
    for label, make, shape in (("perceptron 64-64-64-10, one item", perceptron, (1, 64)),
                               ("perceptron 64-64-64-10, batch of 64", perceptron, (64, 64)),
                               ("three convolutions on 8 × 8, batch of 64", Small, (64, 1, 8, 8)),
                               ("three convolutions on 8 × 8, batch of 512", Small, (512, 1, 8, 8)),
                               ("ResNet-18 of a quarter of the width, batch of 32",
                                lambda: ResNet18(max(4, sizes.width // 4)), (32, 3, 32, 32))):
        models = [make().eval() for _ in range(sizes.members)]
        manifest = neural.Manifest.of(models[0])
        rows = [neural.parameters.to_vectors(m, manifest) for m in models]
        ensemble = neural.Ensemble(models[0], {kind: np.stack([r[kind] for r in rows]) for kind in rows[0]})
        x = torch.randn(shape)
        times = max(1, int(200 / shape[0] / (1 if len(shape) == 2 else 8)))

        def ours(_: Any, ensemble: Any = ensemble, x: torch.Tensor = x, times: int = times) -> torch.Tensor:
            with torch.no_grad():
                for _ in range(times):
                    probabilities = ensemble(x).exp()
            return probabilities

        def loop(_: Any, models: Any = models, x: torch.Tensor = x, times: int = times) -> torch.Tensor:
            with torch.no_grad():
                for _ in range(times):
                    total = torch.zeros(())
                    for model in models:
                        total = total + torch.softmax(model(x), 1).double()
            return total / len(models)

        def check(a: torch.Tensor, b: torch.Tensor) -> None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

        case = paired(f"prediction of {sizes.members} members: {label}", [
            Contender("Ensemble", ours), Contender("loop over models, softmax, mean", loop)], check,
            work=times * shape[0] * sizes.members, unit="forward items", repeats=max(sizes.repeats, 3))
        chosen = ensemble.measurements[0]
        yield Case(case.name, case.work, case.unit, case.timings, {"chosen": f"{chosen.chosen} ({chosen.why})"})


# -- selection ---------------------------------------------------------------------------------------------------------


def greedy(sizes: Sizes) -> Case:
    """A hundred steps of greedy selection by log loss, against AutoGluon's, or the published algorithm written plainly."""
    from ensemblekit.neural.evidence import evidence_of, rows_of
    from ensemblekit.neural.weightings import STEPS, Choice, fitted_weights

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, sizes.labelled)
    z = rng.standard_normal((sizes.candidates, sizes.labelled, 10)) * rng.uniform(0.5, 2, (sizes.candidates, 1, 1))
    z[:, np.arange(sizes.labelled), labels] += 2
    p = np.exp(z)
    p /= p.sum(2, keepdims=True)
    rows = rows_of(evidence_of(p, labels))
    at = np.arange(sizes.labelled)

    def loss(weights: np.ndarray) -> float:
        return float(-np.log(np.tensordot(weights, p[:, at, labels], 1)).mean())

    def ours(_: Any) -> float:
        task = Choice(rows, rows.own, "nll", "probability", None, 5, 0.0, "disagreement", 1.0, 0)
        return loss(fitted_weights(task, "greedy", at))

    def plain(_: Any) -> float:
        return loss(greedy_in_plain_numpy(p, labels, STEPS))

    def autogluon(_: Any) -> float:
        from autogluon.core.metrics import log_loss
        from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection

        selection = EnsembleSelection(ensemble_size=STEPS, problem_type="multiclass", metric=log_loss)
        selection.fit(predictions=list(p), labels=labels)
        return loss(selection.weights_)

    contenders = [Contender("neural.select's greedy choice", ours)]
    facts: dict[str, Any] = {}
    if importlib.util.find_spec("autogluon"):
        contenders.append(Contender("autogluon EnsembleSelection", autogluon, repeats=1))
    else:
        facts["skipped"] = "autogluon is not installed; its algorithm in plain numpy stands for it"
        contenders.append(Contender("the published algorithm in plain numpy", plain, repeats=min(sizes.repeats, 3)))
    name = f"greedy selection, {STEPS} steps: {sizes.candidates} members, {sizes.labelled} items, 10 classes"
    case = paired(name, contenders,
                  lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), work=STEPS * sizes.candidates,
                  unit="trials", repeats=sizes.repeats, warm=False)
    return Case(case.name, case.work, case.unit, case.timings, facts)


def greedy_in_plain_numpy(p: np.ndarray, labels: np.ndarray, steps: int) -> np.ndarray:
    """Weights (M,) by Caruana et al. 2004 with replacement, each trial a mean over all classes and its log loss."""
    total = np.zeros(p.shape[1:])
    order: list[int] = []
    path: list[float] = []
    for size in range(1, steps + 1):
        losses = []
        for one in p:
            trial = (total + one) / size
            trial /= trial.sum(axis=1, keepdims=True)
            losses.append(-np.log(np.clip(trial, 1e-15, 1)[np.arange(len(labels)), labels]).mean())
        order.append(int(np.argmin(losses)))
        path.append(min(losses))
        total += p[order[-1]]
    return np.bincount(order[:int(np.argmin(path)) + 1], minlength=len(p)) / (int(np.argmin(path)) + 1)
