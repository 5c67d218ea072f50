"""What five snapshots are worth, at the size of a GPU: CIFAR-10, ResNet-18, bfloat16, channels last.

Three runs of five cycles of six epochs and five networks of 20 epochs (190 epochs): the deep-ensemble equivalent of the
runs, the ergodicity of their trainings, and how a single network, averaged weights, the snapshots and the networks together
hold out when images are corrupted. ``python -m benchmarks.bench_gpu --part evidence --minutes 7 --out DIR`` trains what is
missing in DIR and ends in time; the same command goes on. What networks predict is kept there, so that ``--score`` scores it
again on any processor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_snapshots import Problem, augmented, batches, scale_of, tiles_of
from benchmarks.neural import ResNet18
from ensemblekit import neural
from ensemblekit.neural import corruptions
from ensemblekit.neural.parameters import Manifest

METHODS = ("single", "SWA", "snapshots", "seeds")
BIN_ROW = 3073
"""Bytes of an image in the binary files of CIFAR-10: its label, and three channels of 32 × 32."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How much is trained and asked."""

    runs: int = 3
    cycles: int = 5
    cycle_epochs: int = 6
    seeds: int = 5
    seed_epochs: int = 20
    batch: int = 512
    width: int = 64
    rate: float = 0.2
    compiled: bool = True
    severities: tuple[int, ...] = (1, 3, 5)
    corruptions: tuple[str, ...] = tuple(corruptions.IMAGES)
    drift_items: int = 5000
    """Test images that are corrupted."""
    swa_items: int = 10_000
    """Training images for the batch-norm statistics of averaged weights."""


TINY = Evidence(runs=2, cycles=2, cycle_epochs=1, seeds=3, seed_epochs=1, batch=8, width=4, compiled=False, severities=(3,),
                corruptions=("gaussian_noise", "contrast"), drift_items=16, swa_items=16)
"""For the test that keeps this file from rotting."""


class OutOfTime(Exception):
    """The minutes are over; what is done is kept."""


class Clock:
    """Seconds that are left of some minutes."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic):
        self._now, self._until = now, now() + 60 * minutes

    def check(self) -> None:
        """Raise OutOfTime where none are."""
        if self._now() > self._until:
            raise OutOfTime


# -- data --------------------------------------------------------------------------------------------------------------


def cifar10_in(folder: Path) -> Problem | None:
    """CIFAR-10 from as many of its six files as a folder has, binary (``data_batch_1.bin`` ... ``test_batch.bin``) or as
    mosaics beside ``labels.npz``; without that of the test images the last sixth of the others is tested on. None without any.
    """
    train, test = (_binary(folder), _binary(folder, "test_batch.bin")) if list(folder.glob("*_batch*.bin")) else (
        _mosaics(folder), _mosaics(folder, "test"))
    if train is None and test is None:
        return None
    x, y = (train if train is not None else test) or (np.empty(0), np.empty(0))
    if train is None or test is None:
        cut = len(x) - len(x) // 6
        (x, y), test = (x[:cut], y[:cut]), (x[cut:], y[cut:])
    held = [(torch.tensor(np.ascontiguousarray(a), dtype=torch.uint8), torch.tensor(b, dtype=torch.long))
            for a, b in ((x, y), (x[:0], y[:0]), test)]
    return Problem(f"CIFAR-10, {len(x)} images", held[0], held[1], held[2], lambda: ResNet18(64), 1, 512, 4, True)


def _binary(folder: Path, name: str = "data_batch_*.bin") -> tuple[np.ndarray, np.ndarray] | None:
    files = sorted(folder.glob(name))
    if not files:
        return None
    rows = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, BIN_ROW) for file in files])
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _mosaics(folder: Path, part: str = "train") -> tuple[np.ndarray, np.ndarray] | None:
    labels = folder / "labels.npz"
    files = {int(file.stem[6:] or 0) if part == "train" else 0: file for file in folder.glob(f"{part}*.webp")}
    if not files or not labels.exists():
        return None
    with np.load(labels) as held:
        y = held[f"y_{part}"].reshape(-1, 10_000)
    return np.concatenate([tiles_of(files[k]) for k in sorted(files)]), np.concatenate([y[k] for k in sorted(files)])


# -- parts -------------------------------------------------------------------------------------------------------------


class Parts:
    """The files of finished parts; those of other settings or data are refused."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        said, path = json.dumps(settings, indent=1, sort_keys=True), folder / "settings.json"
        if path.exists() and path.read_text() != said:
            raise SystemExit(f"{folder} holds parts of other settings or data (settings.json): name another folder")
        path.write_text(said)

    def has(self, name: str) -> bool:
        """Whether that part is finished."""
        return (self.folder / f"{name}.npz").exists()

    def write(self, name: str, **arrays: np.ndarray) -> None:
        """Keep a part, whole or not at all."""
        unfinished = self.folder / f".{name}.npz"
        np.savez_compressed(unfinished, **arrays)       # type: ignore[arg-type]  # of numpy's annotation: allow_pickle among them
        unfinished.replace(self.folder / f"{name}.npz")

    def read(self, name: str) -> dict[str, np.ndarray]:
        """Its arrays."""
        with np.load(self.folder / f"{name}.npz") as held:
            return dict(held)


class Bench:
    """One network that is compiled once and started anew for every member."""

    def __init__(self, problem: Problem, sizes: Evidence, device: torch.device, folder: Path, clock: Clock):
        self.problem, self.sizes, self.device, self.clock = problem, sizes, device, clock
        self.parts = Parts(folder, {**json.loads(json.dumps(asdict(sizes))), "train": len(problem.train[1]),
                                    "test": len(problem.test[1])})
        self.weights = folder / "weights"
        self.weights.mkdir(exist_ok=True)
        self.bare: torch.nn.Module = ResNet18(sizes.width).to(device, memory_format=torch.channels_last)   # type: ignore[call-overload]
        self.model: Any = torch.compile(self.bare) if sizes.compiled else self.bare
        self.x, self.y = (part.to(device) for part in problem.train)
        self.scale = (scale_of(problem)[0].to(device), scale_of(problem)[1].to(device))

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Bytes as the network takes them."""
        return ((images.float() - self.scale[0]) / self.scale[1]).contiguous(memory_format=torch.channels_last)

    def forward(self, net: torch.nn.Module, batch: Any) -> torch.Tensor:
        """In bfloat16."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return net(batch[0]).float()

    def train(self, name: str, seed: int, cycles: int, epochs: int) -> Path:
        """The store of a training from first weights of its own, gone on with where the time was over."""
        sizes, path = self.sizes, self.weights / f"{name}.h5"
        torch.manual_seed(seed)
        for module in self.bare.modules():
            again = getattr(module, "reset_parameters", None)
            if callable(again):
                again()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=sizes.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
        n = len(self.x) // sizes.batch
        schedule = neural.CyclicCosineLR(optimizer, total_steps=epochs * n, n_cycles=cycles)
        loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        with neural.Recorder(path, self.model, optimizer, schedule, save_every=n, configuration={"seed": seed}) as recorder:
            for _ in recorder.epochs(epochs):
                self.model.train()
                order = torch.randperm(len(self.x), device=self.device)[:n * sizes.batch].split(sizes.batch)
                for rows in recorder.batches(order):
                    with torch.autocast(self.device.type, torch.bfloat16):
                        loss = loss_of(self.model(self.normalised(augmented(self.x[rows], self.problem))), self.y[rows])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    recorder.step(loss)
                    schedule.step()
                self.clock.check()
        return path

    def test(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The test images, on the device."""
        return [(x.to(self.device), y.to(self.device)) for x, y in batches(self.problem, self.problem.test)]

    def ensemble(self, *names: str) -> neural.Ensemble[Any]:
        """The snapshots of trainings."""
        shell = ResNet18(self.sizes.width).to(self.device, memory_format=torch.channels_last)   # type: ignore[call-overload]
        return neural.Ensemble.from_store([self.weights / f"{name}.h5" for name in names], shell, forward=self.forward)

    def trainings(self) -> None:
        """Runs of cycles and networks of one, each with what its snapshots predict."""
        sizes = self.sizes
        plans = [(f"run-{k}", k, sizes.cycles, sizes.cycles * sizes.cycle_epochs) for k in range(sizes.runs)]
        plans += [(f"seed-{k}", 100 + k, 1, sizes.seed_epochs) for k in range(sizes.seeds)]
        for name, seed, cycles, epochs in plans:
            if not self.parts.has(name):
                self.clock.check()
                began = time.perf_counter()
                self.train(name, seed, cycles, epochs)
                members, prediction = self.ensemble(name).predict_members(self.test())
                assert prediction.target is not None
                self.parts.write(name, members=members.astype(np.float32), target=prediction.target,
                                 seconds=np.array(time.perf_counter() - began))

    def drift(self) -> None:
        """What a single network, averaged weights, the snapshots of a run and all networks say of corrupted images."""
        sizes = self.sizes
        missing = [(name, severity) for name in sizes.corruptions for severity in sizes.severities
                   if not self.parts.has(f"drift-{name}-{severity}")]
        if not missing:
            return
        snapshots, seeds = self.ensemble("run-0"), self.ensemble(*(f"seed-{k}" for k in range(sizes.seeds)))
        single = self.ensemble("seed-0")
        some = self.x[:sizes.swa_items]
        averaged = snapshots.averaged_model([(self.normalised(x), y) for x, y in zip(
            some.split(500), self.y[:sizes.swa_items].split(500), strict=True)], barrier="ignore")
        images, labels = (part[:sizes.drift_items].to(self.device) for part in self.problem.test)
        for name, severity in missing:
            self.clock.check()
            worse = corruptions.IMAGES[name](images.float() / 255, severity, torch.Generator().manual_seed(0)) * 255
            loader = [(self.normalised(x), y) for x, y in zip(worse.split(500), labels.split(500), strict=True)]
            self.parts.write(f"drift-{name}-{severity}", target=labels.cpu().numpy(), **{
                method: one.probabilities.astype(np.float32) for method, one in (
                    ("single", single.predict(loader)), ("SWA", neural.predict(averaged, loader, forward=self.forward)),
                    ("snapshots", snapshots.predict(loader)), ("seeds", seeds.predict(loader)))})

    def one_shard(self) -> None:
        """One capture through fully_shard in a single process, beside what ``full_tensor`` gives."""
        if self.parts.has("fully_shard"):
            return
        self.clock.check()
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        backend = "nccl" if self.device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            model: Any = ResNet18(self.sizes.width).to(self.device)
            manifest = Manifest.of(model)
            fully_shard(model, mesh=init_device_mesh(self.device.type, (1,)))
            optimizer = torch.optim.SGD(model.parameters(), lr=self.sizes.rate)
            path = self.weights / f"fully-shard-{time.time_ns()}.h5"
            with neural.Recorder(path, model, optimizer, None, states=False) as recorder:
                # channels last, torch 2.13 writes past its memory in the backward pass of a model in fully_shard on a processor
                loss = model(self.normalised(self.x[:8]).contiguous()).square().mean()
                loss.backward()
                optimizer.step()
                recorder.step(loss)
                recorder.capture()
                with torch.no_grad():
                    whole = np.concatenate([p.full_tensor().cpu().flatten().numpy() for p in model.parameters()])
            shell = ResNet18(self.sizes.width)
            stored = np.asarray(neural.Ensemble.from_store(path, shell).vectors["parameters"][0])
            assert sum(entry.size for entry in manifest.parameters) == len(stored)
            self.parts.write("fully_shard", same_bits=np.array(np.array_equal(stored, whole)), numbers=np.array(len(stored)))
        finally:
            torch.distributed.destroy_process_group()


def evidence(problem: Problem, sizes: Evidence, device: torch.device, folder: Path, clock: Clock) -> bool:
    """Make the parts that are missing in a folder; whether all are there now."""
    bench = Bench(problem, sizes, device, folder, clock)
    try:
        bench.trainings()
        bench.drift()
        bench.one_shard()
    except OutOfTime:
        return False
    about = folder / "machine.json"
    if not about.exists():
        about.write_text(json.dumps({"device": torch.cuda.get_device_name() if device.type == "cuda" else "processor",
                                     "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}, indent=1))
    return True


# -- scores ------------------------------------------------------------------------------------------------------------


def scored(folder: Path) -> dict[str, Any]:
    """The figures of what is kept in a folder, from predictions alone."""
    settings = json.loads((folder / "settings.json").read_text())
    runs, seeds = (list(_kept(folder, f"{kind}-*.npz")) for kind in ("run", "seed"))
    figures: dict[str, Any] = {"settings": settings}
    if (folder / "machine.json").exists():
        figures |= json.loads((folder / "machine.json").read_text())
    for name, kept in (("runs", runs), ("seeds", seeds)):
        if kept:
            figures[f"{name}, accuracy of the pool"] = [_accuracy(one["members"].mean(0), one["target"]) for one in kept]
            figures[f"{name}, seconds each"] = [float(one["seconds"]) for one in kept]
    if runs and len(seeds) >= 3:
        labels = seeds[0]["target"]
        figures["deep-ensemble equivalent"] = neural.deep_ensemble_equivalent(
            [(one["members"].mean(0), labels) for one in runs], [(one["members"][-1], labels) for one in seeds]).to_dict()
    if len(runs) > 1:
        figures["ergodicity"] = neural.training_ergodicity([one["members"] for one in runs], target=runs[0]["target"]).to_dict()
    figures["drift"] = _drift(folder, settings["severities"])
    for one in _kept(folder, "fully_shard.npz"):
        figures["capture through fully_shard, same bits as full_tensor"] = bool(one["same_bits"])
    return figures


def _kept(folder: Path, pattern: str) -> Iterator[dict[str, np.ndarray]]:
    for path in sorted(folder.glob(pattern)):
        with np.load(path) as held:
            yield dict(held)


def _drift(folder: Path, severities: list[int]) -> dict[str, dict[str, list[float]]]:
    """Severity -> method -> mean over the corruptions of accuracy and NLL (nats)."""
    found: dict[str, dict[str, list[float]]] = {}
    for severity in severities:
        kept = list(_kept(folder, f"drift-*-{severity}.npz"))
        for method in METHODS if kept else ():
            pairs = [(_accuracy(one[method], one["target"]), _nll(one[method], one["target"])) for one in kept]
            found.setdefault(str(severity), {})[method] = [float(x) for x in np.mean(pairs, axis=0)]
    return found


def _accuracy(p: np.ndarray, labels: np.ndarray) -> float:
    return float((p.argmax(1) == labels).mean())


def _nll(p: np.ndarray, labels: np.ndarray) -> float:
    own = p[np.arange(len(labels)), labels].astype(float)
    return float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean())
