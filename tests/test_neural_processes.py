"""Training and predicting in two processes (gloo, on a processor): the same answers, and no process that waits for ever.

One program imports torch once and forks two processes for each act; what they found comes back as JSON. `MOST` is what an act
may take on a machine that is busy with others: a process that hangs is killed then, and the test fails.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError, ProcessFailedError, StoreError  # noqa: E402
from ensemblekit.neural.parameters import Manifest, to_vectors  # noqa: E402
from ensemblekit.store.names import folder_of  # noqa: E402
from ensemblekit.store.store import Store  # noqa: E402

MOST = 240.0
WORLD = 2
EPOCHS, BATCHES = 4, 5

Parallel = torch.nn.parallel.DistributedDataParallel

pytestmark = pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
                                reason="torch without gloo")


class Net(torch.nn.Module):
    """Tied weights, batch norm, dropout, a buffer outside the state dict; 7 rows do not divide by two."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 5)
        self.hidden = torch.nn.Linear(5, 5)
        self.norm = torch.nn.BatchNorm1d(5)
        self.drop = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += x.float().mean()
        return self.head(self.drop(self.norm(torch.relu(self.hidden(self.embed(x))))))


def spread(model: torch.nn.Module, *parts: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for part in (*parts, model):
        fully_shard(part, mesh=mesh)
    return model


class Items(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return WORLD * 4 * BATCHES

    def __getitem__(self, k: int) -> torch.Tensor:
        return (torch.randint(0, 7, ()) + k) % 7        # draws, as augmentation does


def training(path: str, *, end: Callable[[int], None] = lambda step: None, loss_of: Callable[[float], float] = lambda x: x,
             extra: dict[str, Any] | None = None, sharded: bool = True, epochs: int = EPOCHS,
             deadline: Callable[[Any], Any] = lambda schedule: None) -> dict[str, Any]:
    """A run of two cycles in `path`; every snapshot beside what ``full_tensor`` gives then."""
    rank = torch.distributed.get_rank()
    world = torch.distributed.get_world_size()
    torch.manual_seed(0)
    model: Any = Net()
    model = spread(model, model.hidden) if sharded else Parallel(model, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    torch.manual_seed(100 + rank)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=epochs * BATCHES, n_cycles=2)
    sampler = torch.utils.data.DistributedSampler(Items(), world, rank, shuffle=True)
    loader = torch.utils.data.DataLoader(Items(), batch_size=4 * WORLD // world, sampler=sampler)
    asked = torch.arange(7)
    until = deadline(schedule)
    wholes: dict[int, list[np.ndarray]] = {}
    with neural.Recorder(path, model, optimizer, schedule, save_every=4, configuration=extra) as recorder:
        for _ in recorder.epochs(epochs):
            for x in recorder.batches(loader):
                model.train()
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x), x)
                loss.backward()
                optimizer.step()
                model.eval()
                with torch.no_grad():
                    model(asked)        # a pass without a backward one leaves whole parameters in the modules
                if recorder.step(loss_of(loss.item())):
                    wholes[recorder.updates] = numbers_of(model)
                end(recorder.updates)
                schedule.step()
                if until is not None and until.reached():
                    recorder.stop()
                    break
            else:
                continue
            break
    return {"steps": recorder.snapshot_steps, "wholes": wholes, "resumed": recorder.resumed, "weights": numbers_of(model),
            "seen": [b.tolist() for b in model.buffers()], "drawn": torch.rand(2).tolist(), "end": schedule.last_epoch}


def numbers_of(model: torch.nn.Module) -> list[list[float]]:
    """Every parameter by ``full_tensor``, then the buffers of the state dict."""
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()
        found = [(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten().tolist() for p in model.parameters()]
    return [*found, *(b.flatten().tolist() for b in model.buffers())]


# -- acts: what one of the processes does ------------------------------------------------------------------------------


def whole(folder: str) -> dict[str, Any]:
    """A training from beginning to end."""
    return {"whole": training(f"{folder}/whole.h5")}


def killed(folder: str) -> dict[str, Any]:
    """The same, until SIGKILL."""
    training(f"{folder}/cut.h5", end=lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 14 else None)
    raise AssertionError


def resumed(folder: str) -> dict[str, Any]:
    """The same again; then all that is refused, or agreed upon."""
    answers = {"cut": training(f"{folder}/cut.h5"), "plain": training(f"{folder}/plain.h5", sharded=False)}
    rank = torch.distributed.get_rank()
    answers["nan"] = words(lambda: training(f"{folder}/nan.h5", loss_of=lambda x: float("nan") if rank == 1 else x), InputError)
    answers["settings"] = words(lambda: training(f"{folder}/cut.h5", extra={"data": "another"}), InputError)
    answers["sharding"] = words(lambda: training(f"{folder}/cut.h5", sharded=False), InputError)
    answers["steps"] = words(lambda: captured_at(f"{folder}/steps.h5", updates=1 + rank), InputError)
    answers["models"] = words(lambda: captured_at(f"{folder}/models.h5", width=3 + rank), InputError)
    answers["disk"] = words(lambda: on_a_full_disk(f"{folder}/disk.h5"), StoreError)
    # clocks that differ: process 1's is far ahead, so that by itself it would end long before the other
    clock = iter(np.arange(1000) * (1.0 if rank == 0 else 50.0))
    answers["deadline"] = training(f"{folder}/deadline.h5", epochs=16,
                                   deadline=lambda s: neural.Deadline(s, 40.0, clock=lambda: float(next(clock))))
    answers |= predictions(folder)
    answers["frozen"] = frozen(f"{folder}/frozen.h5")
    answers["fit"] = fitted(f"{folder}/fit.h5")
    answers["memory"] = memory_of_captures(f"{folder}/memory.h5")
    return answers


def words(call: Callable[[], object], kind: type[Exception]) -> str:
    """Of the error of that kind that a call ends with."""
    try:
        call()
    except kind as error:
        return str(error)
    return "no error"


def captured_at(path: str, updates: int = 1, width: int = 3) -> None:
    """One capture after so many steps, of a model that wide."""
    model = spread(torch.nn.Linear(width, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = neural.Recorder(path, model, optimizer, None)
    try:
        for _ in range(updates):
            optimizer.step()
            recorder.step(0.1)
        recorder.capture()
    finally:
        recorder.close()


def on_a_full_disk(path: str) -> None:
    """A state that process 1 cannot write."""
    from ensemblekit.neural.resume import Sidecar

    write = Sidecar.write

    def full(self: Any, name: str, state: object) -> None:
        if name.startswith("rank1"):
            raise StoreError(f"{name} could not be written: the disk is full")
        write(self, name, state)

    Sidecar.write = full        # type: ignore[method-assign]
    try:
        training(path)
    finally:
        Sidecar.write = write   # type: ignore[method-assign]


def frozen(path: str) -> dict[str, Any]:
    """Of a network with frozen layers the rest is recorded; one that changes all the same is an error everywhere."""
    torch.manual_seed(1)
    model: Any = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 3))
    model[0].requires_grad_(False)
    plain = copy.deepcopy(model)
    model = spread(model, model[0])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with neural.Recorder(path, model, optimizer, None, parameters="trainable") as recorder:
        for _ in range(2):
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
            recorder.step(0.1)
            recorder.capture()
    ensemble = neural.Ensemble.from_store(path, plain)

    def change() -> None:
        with neural.Recorder(path + "2", model, optimizer, None, parameters="trainable") as again:
            optimizer.step()
            again.step(0.1)
            with torch.no_grad():
                if torch.distributed.get_rank() == 1:
                    model[0].weight.to_local().add_(1)
            again.capture()

    return {"members": len(ensemble), "size": ensemble.vectors["parameters"].shape[1], "changed": words(change, InputError)}


def fitted(path: str) -> list[int]:
    """By ``neural.fit``, the norm of the gradient cut and in bfloat16."""
    torch.manual_seed(1)
    model = spread(torch.nn.Linear(6, 3))
    data = [(torch.randn(4, 6), torch.randint(0, 3, (4,))) for _ in range(3)]
    fit = neural.fit(model, torch.optim.Adam(model.parameters()), data, torch.nn.functional.cross_entropy, n_cycles=2,
                     n_epochs=2, store=path, val_loader=data, clip=1.0, amp="bf16", progress=False, max_seconds=600)
    return list(fit.snapshot_steps)


def memory_of_captures(path: str) -> dict[str, Any]:
    """Bytes of this process after 3 captures of 4 MB and after 30 more."""
    model: Any = spread(torch.nn.Linear(1000, 1000))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sizes = []
    with neural.Recorder(path, model, optimizer, None, states=False) as recorder:
        for k in range(33):
            with torch.no_grad():
                model.bias.to_local().add_(1)
            optimizer.step()
            recorder.step(0.1)
            recorder.capture()
            if k in (2, 32):
                sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return {"sizes": sizes, "snapshots": len(recorder.snapshot_steps)}


def failed(folder: str) -> dict[str, Any]:
    """An error on process 1 alone, while process 0 goes on to the next gradient."""
    def end(step: int) -> None:
        if step == 7 and torch.distributed.get_rank() == 1:
            raise ValueError("the picture 4711 is broken")

    try:
        training(f"{folder}/failed.h5", end=end)
    except (ValueError, ProcessFailedError) as error:
        return {"words": str(error), "kind": type(error).__name__}
    return {"words": "no error", "kind": ""}


def failed_first(folder: str) -> dict[str, Any]:
    """The same on process 0, with which the store that carries words goes."""
    def end(step: int) -> None:
        if step == 7 and torch.distributed.get_rank() == 0:
            raise ValueError("the picture 4711 is broken")

    try:
        training(f"{folder}/failed-first.h5", end=end, sharded=False)
    except (ValueError, ProcessFailedError) as error:
        return {"words": str(error), "kind": type(error).__name__}
    return {"words": "no error", "kind": ""}


def alone(folder: str) -> dict[str, Any]:
    """One process where there were two; and a model in fully_shard on its own."""
    return {"processes": words(lambda: training(f"{folder}/cut.h5"), InputError), "one": training(f"{folder}/one.h5")}


ACTS: dict[str, tuple[Callable[[str], dict[str, Any]], int]] = {
    "whole": (whole, WORLD), "killed": (killed, WORLD), "resumed": (resumed, WORLD), "failed": (failed, WORLD),
    "failed_first": (failed_first, WORLD), "alone": (alone, 1)}


# -- predictions -------------------------------------------------------------------------------------------------------


def ensemble_of(task: str, members: int = 5) -> tuple[neural.Ensemble[Any], torch.utils.data.TensorDataset]:
    """In double precision, so that the cut into batches makes no difference; and 101 items."""
    torch.manual_seed(5)
    outputs = {"classification": 4, "binary": 1, "regression": 2, "segmentation": 3}[task]
    model: Any = torch.nn.Conv2d(2, outputs, 3, padding=1) if task == "segmentation" else torch.nn.Linear(6, outputs)
    model.double()
    vectors = np.stack([to_vectors(model)["parameters"] * (1 + k) for k in range(members)])
    x = torch.randn(101, *((2, 4, 4) if task == "segmentation" else (6,)), dtype=torch.float64)
    y = {"classification": torch.randint(0, 4, (101,)), "binary": torch.randint(0, 2, (101,)),
         "regression": torch.randn(101, 2, dtype=torch.float64), "segmentation": torch.randint(0, 3, (101, 4, 4))}[task]
    kinds: Any = task
    weights = [3, 1, 0, 2, 1][:members] if task == "classification" else None
    return (neural.Ensemble(model, vectors, task=kinds, weights=weights, manifest=Manifest.of(model)),
            torch.utils.data.TensorDataset(x, y))


def loaders(data: torch.utils.data.Dataset[Any], **of_sampler: Any) -> tuple[Any, Any]:
    sampler = torch.utils.data.DistributedSampler(data, **of_sampler)
    return torch.utils.data.DataLoader(data, 16), torch.utils.data.DataLoader(data, 8, sampler=sampler)


def gap(one: Any, other: Any) -> float:
    """The largest difference of two predictions, in any of their arrays."""
    names = [name for name, value in vars_of(one).items() if isinstance(value, np.ndarray)]
    return max(float(np.abs(np.asarray(getattr(one, name), float) - np.asarray(getattr(other, name), float)).max())
               if getattr(one, name).shape == getattr(other, name).shape else np.inf for name in names)


def vars_of(prediction: Any) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in type(prediction).__dataclass_fields__}


def predictions(folder: str) -> dict[str, Any]:
    gaps: dict[str, Any] = {}
    for task in ("classification", "binary", "regression", "segmentation"):
        ensemble, data = ensemble_of(task)
        plain, shared = loaders(data, shuffle=True)
        shared.sampler.set_epoch(3)
        one = ensemble.predict(plain, path="sequential")
        for how, loader in (("members", plain), ("items", shared)):
            other = ensemble.predict(loader, path="sequential", distributed=how)
            gaps[f"{task} {how}"] = None if other is None else [gap(one, other), len(other)]
    few, data = ensemble_of("regression", 1)
    plain, shared = loaders(data)
    gaps["one member members"] = [gap(few.predict(plain), few.predict(plain, distributed="members")), 101]
    return {"gaps": gaps, "bad": refused_predictions(), "saved": saved_predictions(folder)}


def refused_predictions() -> dict[str, str]:
    ensemble, data = ensemble_of("classification")
    rank = torch.distributed.get_rank()
    plain, shared = loaders(data)
    shuffled = torch.utils.data.DataLoader(data, 16, shuffle=True)
    _, fewer = loaders(data, drop_last=True)
    _, others = loaders(data, rank=1 - rank)
    broken, _ = ensemble_of("regression")
    broken.vectors["parameters"][4] = np.nan        # a member of process 1
    wrong = torch.utils.data.TensorDataset(data.tensors[0], data.tensors[1] + 2)
    cases: dict[str, tuple[neural.Ensemble[Any], Any, Any]] = {
        "a shuffled loader": (ensemble, shuffled, "members"), "a share for members": (ensemble, shared, "members"),
        "no share": (ensemble, plain, "items"),
        "left out": (ensemble, fewer, "items"), "another's": (ensemble, others, "items"),
        "a word": (ensemble, plain, "rows"), "nothing": (ensemble, [], "members"),
        "NaN": (broken, torch.utils.data.DataLoader(data, 16), "members"),
        "labels by members": (ensemble, loaders(wrong)[0], "members"),
        "labels by items": (ensemble, loaders(wrong)[1], "items"),
        "one more batch": (ensemble, [(data.tensors[0][:8], data.tensors[1][:8])] * (2 + rank), "members")}
    torch.manual_seed(rank)
    return {name: words(partial(one.predict, loader, distributed=how), InputError)
            for name, (one, loader, how) in cases.items()}


def saved_predictions(folder: str) -> list[float]:
    """Every member's probabilities, kept by processes that each had some of the members, or of the items."""
    path = f"{folder}/members.h5"
    ensemble, data = ensemble_of("classification")
    if torch.distributed.get_rank() == 0:
        manifest = Manifest.of(ensemble.member(0))
        with Store.create(path, manifest.fields, provenance={"manifest": manifest.to_dict()}) as store:
            for row in ensemble.vectors["parameters"]:
                store.append({"parameters": row})
    torch.distributed.barrier()
    stored = neural.Ensemble.from_store(path, ensemble.member(0))
    plain, shared = loaders(data)
    each, _ = stored.predict_members(plain)
    gaps = []
    for how, loader in (("members", plain), ("items", shared)):
        stored.predict(loader, save=how, path="sequential", distributed=how)       # type: ignore[call-overload]
        torch.distributed.barrier()
        gaps.append(float(np.abs(neural.saved.load_predictions(path, how).members - each).max()))
    return gaps


# -- the program -------------------------------------------------------------------------------------------------------


def act(name: str, rank: int, world: int, port: int, folder: str) -> None:
    """One process of an act; leaves JSON and ends."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    answers = ACTS[name][0](folder)
    Path(folder, f"{name}-{rank}.json").write_text(json.dumps(answers))
    if "failed" not in name:
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)         # the threads of gloo are torn down in no order, which now and then ends in an abort


def program(folder: str) -> None:
    """All acts, one after the other; each in processes of its own."""
    import torch.distributed.fsdp
    import torch.distributed.tensor

    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight]).step()      # imports the compiler
    for name, (_, world) in ACTS.items():
        began = time.monotonic()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                try:
                    act(name, rank, world, port, folder)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    os._exit(3)
            children.append(pid)
        codes: dict[int, int] = {}
        while len(codes) < world and time.monotonic() - began < MOST:
            for rank, pid in enumerate(children):
                if rank not in codes:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        codes[rank] = os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        for rank, pid in enumerate(children):
            if rank not in codes:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        Path(folder, f"{name}.json").write_text(json.dumps({"codes": [codes.get(rank, "hangs") for rank in range(world)],
                                                            "seconds": time.monotonic() - began}))


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the processes of an act found, in their order; the folder of their stores as its attribute."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run([sys.executable, __file__, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
                          capture_output=True, text=True, timeout=len(ACTS) * MOST)

    def found(name: str) -> list[dict[str, Any]]:
        codes = json.loads((folder / f"{name}.json").read_text())["codes"]
        assert codes == [0] * ACTS[name][1], f"{codes}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(ACTS[name][1])]

    found.folder = folder       # type: ignore[attr-defined]
    return found


def test_a_spread_model_is_recorded_as_full_tensor_gives_it(stage: Any) -> None:
    ranks = [one["whole"] for one in stage("whole")]
    assert ranks[0]["steps"] == ranks[1]["steps"] == [10, 20]
    ensemble = neural.Ensemble.from_store(stage.folder / "whole.h5", Net())
    assert len(ensemble) == 2
    for k, step in enumerate(("10", "20")):
        *parameters, mean, variance, count, seen = map(np.ravel, list(map(np.array, ranks[0]["wholes"][step][:-4])) + [
            np.array(x) for x in reorder(ranks[0]["wholes"][step][-4:])])
        stored = {kind: np.asarray(rows[k]) for kind, rows in ensemble.vectors.items()}
        np.testing.assert_array_equal(stored["parameters"], np.concatenate(parameters).astype("f4"))
        np.testing.assert_array_equal(stored["buffers"], np.concatenate([mean, variance]).astype("f4"))
        assert stored["counters"] == count
        assert seen
    assert ranks[0]["wholes"]["20"][-3:] != ranks[1]["wholes"]["20"][-3:]       # buffers of each are its own
    plain = Manifest.of(Net())
    assert Manifest.in_store(Store.open(stage.folder / "whole.h5")) == plain
    assert dict(plain.aliases) == {"head.weight": "embed.weight"}


def reorder(buffers: list[list[float]]) -> list[list[float]]:
    """Buffers as named_buffers gives them (the model's own first) as mean, variance, count, seen."""
    seen, mean, variance, count = buffers
    return [mean, variance, count, seen]


def test_processes_that_were_killed_go_on_with_the_same_bits(stage: Any) -> None:
    assert json.loads((stage.folder / "killed.json").read_text())["codes"] == [-signal.SIGKILL] * WORLD
    for one, other in zip(stage("whole"), stage("resumed"), strict=True):
        assert other["cut"]["resumed"]
        assert not one["whole"]["resumed"]
        for name in ("weights", "seen", "drawn", "steps"):
            assert one["whole"][name] == other["cut"][name], name
    a, b = (Store.open(stage.folder / f"{name}.h5") for name in ("whole", "cut"))
    for field in a.all_fields:
        np.testing.assert_array_equal(np.asarray(a[field][:]), np.asarray(b[field][:]))


def test_what_one_process_finds_wrong_is_said_by_all(stage: Any) -> None:
    first, second = stage("resumed")
    for name, said in (("nan", "process 1: the loss of step 10 is nan"), ("settings", "configuration.data"),
                       ("sharding", "sharding"), ("steps", "different numbers of optimizer steps, 1, 2"),
                       ("models", "different models"), ("disk", "process 1: rank1-")):
        assert first[name] == second[name], name
        assert said in first[name]
    assert first["frozen"] == second["frozen"]
    assert (first["frozen"]["members"], first["frozen"]["size"]) == (2, 21)
    assert "0.weight changed" in first["frozen"]["changed"]
    assert first["fit"] == second["fit"] == [3, 6]


def test_the_clock_of_the_first_process_ends_all(stage: Any) -> None:
    first, second = (one["deadline"] for one in stage("resumed"))
    assert first["end"] == second["end"]
    assert first["steps"] == second["steps"]
    assert first["steps"][-1] == first["end"]
    assert 20 < first["end"] < 80


def test_captures_do_not_gather_in_memory(stage: Any) -> None:
    for rank in stage("resumed"):
        before, after = rank["memory"]["sizes"]
        assert rank["memory"]["snapshots"] == 33
        assert after - before < 10 * 4e6        # 30 vectors of 4 MB would be 120 MB


def test_processes_predict_as_one(stage: Any) -> None:
    for rank, answers in enumerate(stage("resumed")):
        for name, found in answers["gaps"].items():
            if rank and "segmentation" in name:
                assert found is None
            else:
                assert found[1] == 101, name
                assert found[0] <= (1e-6 if "segmentation" in name else 1e-12), name     # maps are kept in single precision
        assert max(answers["saved"]) <= 1e-12


def test_predictions_that_processes_cannot_share_are_refused_by_all(stage: Any) -> None:
    first, second = (one["bad"] for one in stage("resumed"))
    assert first == second
    for name, said in (("a shuffled loader", "these differ"), ("a share for members", "DistributedSampler"),
                       ("no share", "DataLoader has none"), ("left out", "leave out 1 of 101"),
                       ("another's", "DistributedSampler is"),
                       ("a word", "'rows'"), ("nothing", "nothing to predict"), ("NaN", "process 1: member 4 answers NaN"),
                       ("labels by members", "labels are whole numbers 0 to 3"),
                       ("labels by items", "labels are whole numbers 0 to 3"), ("one more batch", "these differ")):
        assert said in first[name], (name, first[name])


@pytest.mark.parametrize(("name", "culprit"), [("failed", 1), ("failed_first", 0)])
def test_an_error_on_one_process_ends_both(stage: Any, name: str, culprit: int) -> None:
    ranks = stage(name)
    assert ranks[culprit] == {"kind": "ValueError", "words": "the picture 4711 is broken"}
    assert ranks[1 - culprit]["kind"] == "ProcessFailedError"
    said = f"process {culprit} of this training ended with ValueError: the picture 4711 is broken"
    assert said in ranks[1 - culprit]["words"]


def test_another_number_of_processes_is_refused(stage: Any) -> None:
    (one,) = stage("alone")
    assert "processes" in one["processes"]
    assert one["one"]["steps"] == [10, 20]      # a model in fully_shard on one process is recorded
    ensemble = neural.Ensemble.from_store(stage.folder / "one.h5", Net())
    np.testing.assert_array_equal(ensemble.vectors["parameters"][1],
                                  np.concatenate([np.array(x) for x in one["one"]["weights"][:-4]]).astype("f4"))


def test_buffers_of_each_process_are_kept_beside_the_state(stage: Any) -> None:
    ranks = [one["plain"] for one in stage("resumed")]
    assert ranks[0]["seen"] != ranks[1]["seen"]
    files = sorted((folder_of(stage.folder / "plain.h5") / "training").glob("rank*"))
    assert [file.name for file in files] == ["rank0-20.pt", "rank1-20.pt"]
    held = [torch.load(file, weights_only=True)["buffers"] for file in files]
    assert not torch.equal(held[0]["norm.running_mean"], held[1]["norm.running_mean"])


def test_nothing_is_shared_without_processes() -> None:
    ensemble, data = ensemble_of("classification")
    with pytest.raises(InputError, match="init_process_group"):
        ensemble.predict(list(torch.utils.data.DataLoader(data, 16)), distributed="members")


if __name__ == "__main__":
    program(sys.argv[1])
