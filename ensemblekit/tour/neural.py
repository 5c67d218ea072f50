"""Third act: five networks for the price of one, and whether that was worth it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblekit.tour.act import Act, Figure, Number, size_of, with_error
from ensemblekit.tour.style import BLUE, INK, MUTED, ORANGE, RED, TEAL, VIOLET, figure

if TYPE_CHECKING:
    import torch

    from ensemblekit.neural.calibration import Reliability
    from ensemblekit.neural.prediction import Prediction
    from ensemblekit.neural.scores import Score, Scores

    Data = tuple[torch.Tensor, torch.Tensor]

CODE = """\
schedule = neural.CyclicCosineLR(optimizer, total_steps=steps, n_cycles=5)
with neural.Recorder("weights.h5", model, optimizer, schedule) as rec:
    for x, y in batches:
        optimizer.zero_grad(); loss(model(x), y).backward()
        optimizer.step(); rec.step(); schedule.step()

ens = neural.Ensemble.from_store("weights.h5", model)
together, averaged = ens.predict(test), ens.averaged_model(train)
neural.compare(together, single)"""

CYCLES, BATCH, RATE, SEED = 5, 32, 0.2, 7       # the rate is the one Huang et al. 2017 prefer
COLOURS = {"one cosine run": MUTED, "last snapshot": ORANGE, "snapshot ensemble": BLUE, "weight average": TEAL}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What each way to answer says about the digits held out, and how they compare with one cosine run."""

    history: dict[str, Any]
    predictions: dict[str, Prediction]
    scores: dict[str, Scores]
    against: dict[str, Mapping[str, Score]]
    bins: dict[str, Reliability]
    snapshots: str
    """How many, of how many weights, in words."""


def act(out: Path, quick: bool) -> Act:
    """Train, capture, pool, compare, draw."""
    began = time.perf_counter()
    path = out / "weights.h5"
    with one_thread():
        train, test = _digits()
        comparison, trained = _compared(train, test, 2 * CYCLES if quick else 8 * CYCLES, path, out / "single.h5")
        images = test[0].numpy()[:, 0]
    return Act(
        "neural", "Five networks for the price of one",
        "Is an ensemble of snapshots better than one network trained as long?",
        f"The handwritten digits of scikit-learn: {len(train[0])} to train on, {len(images)} held out, 8 × 8 pixels each.",
        "A small convolutional network was trained with a cyclic cosine learning rate, on digits moved by up to a "
        f"pixel; its weights at the end of each of {CYCLES} cycles went into a store ({size_of(path)}). Their "
        "predictions were averaged, and their weights too (with fresh batch-norm statistics), by the same Moments "
        f"reducer. A network with one long cosine had the same number of steps. Training both took {trained:.0f} s.",
        CODE, _numbers(comparison), _figures(out, comparison, images), _verdict(comparison.against), path,
        time.perf_counter() - began)


def _compared(train: Data, test: Data, epochs: int, path: Path, single_path: Path) \
        -> tuple[Comparison, float]:
    """Two trainings of the same length and what their models say; and the seconds of the trainings."""
    from ensemblekit import neural

    began = time.perf_counter()
    single = _network()
    _train(single, train, epochs, 1, single_path)
    model = _network()
    history = _train(model, train, epochs, CYCLES, path)
    trained = time.perf_counter() - began
    ens = neural.Ensemble.from_store(path, model)
    batches = _batches(*test, shuffle=False)
    predictions = {
        "one cosine run": neural.predict(single, batches),
        "last snapshot": neural.predict(ens.member(-1), batches),
        "snapshot ensemble": ens.predict(batches),
        "weight average": neural.predict(ens.averaged_model(_batches(*train, shuffle=False)), batches),
    }
    return Comparison(
        history, predictions, {name: neural.scores(p) for name, p in predictions.items()},
        {name: neural.compare(p, predictions["one cosine run"]) for name, p in predictions.items() if name != "one cosine run"},
        {name: neural.reliability(p.probabilities, p.target, 10) for name, p in predictions.items()},
        f"{len(ens)} × {ens.vectors['parameters'].shape[1]:,} weights".replace(",", " ")), trained


def _figures(out: Path, comparison: Comparison, images: np.ndarray) -> tuple[Figure, ...]:
    return (
        Figure(_training(out / "digits-training.png", comparison.history), "Learning rate and loss over the training",
               "The learning rate comes down five times; at the end of each cycle, where the "
               "network has settled, its weights go into the store (dots). Then the rate goes up again, to leave for "
               "another minimum."),
        Figure(_forest(out / "digits-compared.png", comparison.against), "Paired differences to one cosine run",
               "Difference to a single network trained for just as long, on the same digits, with 95 % intervals. "
               "Left of the line is better. A bar that crosses the line proves nothing."),
        Figure(_reliability(out / "digits-calibration.png", comparison.bins, comparison.scores), "Reliability diagrams",
               "How often a prediction was right against how sure it was. On the diagonal a model knows what it does "
               "not know; the size of a dot is the number of digits in its bin, the bar its 95 % interval."),
        Figure(_doubtful(out / "digits-doubt.png", images, comparison.predictions["snapshot ensemble"]),
               "The digits the ensemble doubts most",
               "The digits on which the ensemble is least sure. Above each: its first choice with its probability, "
               "and the label in brackets, in red where it is wrong."),
    )


def _numbers(comparison: Comparison) -> tuple[Number, ...]:
    ensemble = comparison.against["snapshot ensemble"]
    return (
        *(Number(f"accuracy, {name}", with_error(100 * s["accuracy"].value, 100 * s["accuracy"].stderr, "%"),
                 f"NLL {with_error(s['nll'].value, s['nll'].stderr)} · ECE {100 * s['ece'].value:.1f} %")
          for name, s in comparison.scores.items()),
        Number("ensemble − one run",
               with_error(100 * ensemble["accuracy"].value, 100 * ensemble["accuracy"].stderr, "points"),
               "paired on the same digits; NLL " + with_error(ensemble["nll"].value, ensemble["nll"].stderr)),
        Number("snapshots", comparison.snapshots,
               f"at steps {', '.join(str(step) for step in comparison.history['captured'])}"),
    )


def _verdict(against: dict[str, Mapping[str, Score]]) -> str:
    """Whichever wins, in words, and nothing that the intervals do not carry."""
    said = []
    for name, scores in against.items():
        if name == "last snapshot":
            continue
        accuracy, nll = scores["accuracy"], scores["nll"]
        right = (("more" if accuracy.value > 0 else "fewer") + " digits right" if accuracy.significant
                 else "as many digits right within the error")
        likely = (("a better" if nll.value < 0 else "a worse") + " likelihood" if nll.significant
                  else "no difference in likelihood that could be told from chance")
        said.append(f"the {name} got {right} and has {likely}")
    barrier = ("" if against["weight average"]["nll"].low <= 0 else
               " Snapshots of different cycles lie in different valleys of the loss, and the mean of their weights on "
               "the ridge between: average predictions across cycles, weights only within one.")
    return ("Against one network with the same budget, " + "; ".join(said) + "." + barrier +
            " One seed and a small data set: the bars cover the choice of digits, not the luck of the training.")


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread (two only wait for each other on a network this small), and as it was afterwards."""
    import torch

    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)


def _digits() -> tuple[Data, Data]:
    import torch
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(images))
    x = torch.tensor(images[order].reshape(-1, 1, 8, 8) / 8 - 1, dtype=torch.float32)
    y = torch.tensor(labels[order], dtype=torch.long)
    half = len(x) // 2
    return (x[:half], y[:half]), (x[half:], y[half:])


def _network() -> torch.nn.Module:
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 10))


def _batches(x: torch.Tensor, y: torch.Tensor, *, shuffle: bool) -> list[Data]:
    import torch

    order = torch.randperm(len(x)) if shuffle else torch.arange(len(x))
    parts = order.split(BATCH if shuffle else 256)
    if shuffle:
        parts = parts[:len(x) // BATCH]     # batch norm on a last batch of two or three throws the weights about
    return [(x[rows], y[rows]) for rows in parts]


def _shifted(x: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to a pixel along both axes, with background moved in."""
    import torch

    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    down, right = torch.randint(0, 3, (2, len(x)))
    rows = down[:, None, None] + torch.arange(8)[:, None]
    columns = right[:, None, None] + torch.arange(8)
    return padded[torch.arange(len(x))[:, None, None], 0, rows, columns][:, None]


def _train(model: torch.nn.Module, data: Data, epochs: int, cycles: int, path: Path) -> dict[str, Any]:
    """Train with a cyclic rate: "rates" and "losses" of every step, and the steps "captured"."""
    import torch

    from ensemblekit import neural

    steps = epochs * (len(data[0]) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=steps, n_cycles=cycles)
    loss_of = torch.nn.CrossEntropyLoss()
    rates, losses = [], []
    model.train()
    with neural.Recorder(path, model, optimizer, schedule) as recorder:
        for _ in range(epochs):
            for x, y in _batches(_shifted(data[0]), data[1], shuffle=True):
                optimizer.zero_grad()
                loss = loss_of(model(x), y)
                loss.backward()
                optimizer.step()
                recorder.step()
                rates.append(optimizer.param_groups[0]["lr"])
                losses.append(float(loss.detach()))
                schedule.step()
        return {"rates": np.array(rates), "losses": np.array(losses), "captured": list(recorder.snapshot_steps)}


def _training(path: Path, history: dict[str, Any]) -> Path:
    rates, losses, captured = history["rates"], history["losses"], np.array(history["captured"])
    steps = np.arange(1, len(rates) + 1)
    width = max(1, len(losses) // 120)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    with figure(path, 9.6, 4.1, nrows=2, sharex=True, height_ratios=[1, 1.4]) as (_, (above, below)):
        above.plot(steps, rates, color=ORANGE)
        above.set(ylabel="learning rate", xlim=(0, len(rates)))
        above.set_title("Five cycles of the learning rate")
        below.semilogy(steps, np.maximum(losses, 1e-6), color=MUTED, lw=0.5, alpha=0.35)
        below.semilogy(steps[width - 1:], smooth, color=BLUE, lw=1.7)
        at = np.interp(captured, steps[width - 1:], smooth)
        below.plot(captured, at, "o", color=RED, ms=7, zorder=4, label="snapshot into the store")
        below.set(xlabel="step", ylabel="training loss", ylim=(max(1e-5, smooth.min() / 3), None))
        below.legend(loc="upper right")
    return path


def _forest(path: Path, against: dict[str, Mapping[str, Score]]) -> Path:
    names = list(against)
    with figure(path, 9.6, 2.7, ncols=3, sharey=True) as (_, axes):
        for one, (score, title, factor) in zip(axes, (("accuracy", "error / points", -100), ("nll", "NLL / nats", 1),
                                                      ("ece", "ECE / points", 100)), strict=True):
            one.axvline(0, color=INK, lw=1)
            for row, name in enumerate(names):
                difference = against[name][score]
                ends = sorted((factor * difference.low, factor * difference.high))
                one.plot(ends, [row, row], color=COLOURS[name], lw=2.4)
                one.plot(factor * difference.value, row, "o", color=COLOURS[name], ms=7)
            one.set_title(title)
            one.set_yticks(range(len(names)), names)
            one.set_ylim(len(names) - 0.4, -0.6)
            one.tick_params(axis="y", colors=INK, length=0)
            one.grid(axis="y", visible=False)
        axes[0].set_xlabel("difference to one cosine run", loc="left")
    return path


def _reliability(path: Path, bins: dict[str, Reliability], scores: dict[str, Scores]) -> Path:
    with figure(path, 9.6, 3.0, ncols=len(bins), sharey=True) as (_, axes):
        for one, (name, curve) in zip(axes, bins.items(), strict=True):
            full = curve.counts > 0
            one.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (4, 3)))
            low, high = _wilson(curve.accuracy[full], curve.counts[full])
            one.vlines(curve.confidence[full], low, high, color=COLOURS[name], lw=1.3, alpha=0.55)
            one.scatter(curve.confidence[full], curve.accuracy[full], color=COLOURS[name], zorder=3,
                        s=12 + 130 * np.sqrt(curve.counts[full] / curve.counts.sum()))
            one.set(xlim=(0, 1.06), ylim=(-0.04, 1.06), xlabel="confidence", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            one.set_aspect("equal")
            one.set_title(name, fontsize=10.5)
            one.text(0.98, 0.06, f"ECE {100 * scores[name]['ece'].value:.1f} %", color=MUTED, fontsize=9.5, ha="right")
        axes[0].set_ylabel("share right")
    return path


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of n independent items (Wilson 1927), which holds for few of them too."""
    z2 = 1.96**2 / n
    centre, half = share + z2 / 2, np.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return (centre - half) / (1 + z2), (centre + half) / (1 + z2)


def _doubtful(path: Path, images: np.ndarray, prediction: Prediction) -> Path:
    assert prediction.target is not None
    worst = np.argsort(-prediction.entropy)[:8]
    with figure(path, 9.6, 1.9, ncols=len(worst)) as (_, axes):
        for one, k in zip(axes, worst, strict=True):
            first, label = int(prediction.probabilities[k].argmax()), int(prediction.target[k])
            one.imshow(images[k], cmap="bone_r", interpolation="nearest")
            one.set_title(f"{first}: {100 * prediction.probabilities[k, first]:.0f} %  ({label})", fontsize=10,
                          loc="center", color=RED if first != label else VIOLET)
            one.set_axis_off()
    return path
