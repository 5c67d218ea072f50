"""A user's script over the three front-ends: `make lint` checks its types strictly, nothing runs it."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch

import ensemblekit as ek
from ensemblekit import md, neural, rom


def store_and_average(folder: Path) -> float:
    fields = {"energy": ek.Field(unit="kJ/mol"), "u": ek.Field((16, 2), "f4")}
    with ek.create(folder / "run.h5", fields, time_unit="ps") as store:
        for k in range(100):
            store.append({"energy": float(k % 7), "u": np.zeros((16, 2), "f4")}, time=0.5 * k)
    store = ek.open(folder / "run.h5")
    energy = ek.average(store["energy"])
    assert_type(energy, ek.Estimate)
    print(energy, energy.mean, energy.interval)
    moments = ek.reduce(store["u"], {"mean": ek.Moments()})["mean"]
    print(np.asarray(moments.mean).shape, ek.verify(folder / "run.h5").ok)
    return float(energy.mean)


def modes(snapshots: np.ndarray) -> np.ndarray:
    basis = rom.pod(snapshots, 3)
    assert_type(basis, rom.Basis)
    print(basis.singular_values)
    return basis.modes


def trajectory(topology: str, frames: str) -> float:
    averages = md.average(md.read(topology, frames), {"rg": md.RadiusOfGyration("protein")})
    assert_type(averages, md.Averages)
    return float(averages["rg"].mean)


def training(model: torch.nn.Module, loader: "torch.utils.data.DataLoader[tuple[torch.Tensor, torch.Tensor]]") -> float:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=100, n_cycles=5)
    with neural.Recorder("weights.h5", model, optimizer, schedule) as recorder:
        for _ in recorder.epochs(10):
            for x, y in recorder.batches(loader):
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                recorder.step(loss)
                schedule.step()
    ensemble = neural.Ensemble.from_store("weights.h5", model)
    prediction = ensemble.predict(loader)
    assert_type(prediction, neural.Prediction)
    assert_type(neural.predict(model, loader, task="regression"), neural.RegressionPrediction)
    return float(neural.scores(prediction)["nll"].value)
