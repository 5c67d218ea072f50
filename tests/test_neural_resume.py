"""A run that was killed goes on with the same bits: real processes, SIGKILL, two processes that work together."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError, StoreDamagedError, StoreError  # noqa: E402
from ensemblekit.neural.resume import Sidecar  # noqa: E402
from ensemblekit.store.names import folder_of  # noqa: E402


class Noisy(torch.utils.data.Dataset):
    """Items with noise from every generator that transforms draw from."""

    def __init__(self, n=40):
        generator = torch.Generator().manual_seed(3)
        self.x, self.y = torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        return self.x[k] + 0.1 * torch.randn(5) + 0.1 * random.random() + 0.1 * np.random.rand(), self.y[k]  # noqa: NPY002


def loader_of(kind):
    data = Noisy()
    if kind == "generator":
        return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(9))
    if kind == "workers":
        return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, num_workers=1)
    return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)


def train(path, kind="plain", save_every=3, epochs=6, stop_at=None, tell=None, pause=0.0, momentum="carry", seed=0):
    """A training with dropout, batch norm, momenta, a running average and noise of all kinds; perhaps cut off."""
    torch.manual_seed(seed)
    random.seed(1)
    np.random.seed(2)       # noqa: NPY002
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=5 * epochs, n_cycles=3, momentum=momentum)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    loss_of = torch.nn.CrossEntropyLoss()
    loader = None if kind == "in the body" else loader_of(kind)
    data = Noisy()
    with neural.Recorder(path, model, optimizer, schedule, save_every=save_every, extra_state={"ema": ema}) as rec:
        for _ in rec.epochs(epochs):
            if kind == "in the body":       # batches made anew, from numbers drawn before `batches` is called
                order = torch.randperm(len(data))
                loader = [(data.x[rows], data.y[rows]) for rows in order.split(8)]
            losses = []
            for x, y in rec.batches(loader):
                optimizer.zero_grad()
                loss = loss_of(model(x), y)
                loss.backward()
                optimizer.step()
                rec.step(loss)
                if stop_at is not None and rec.updates == stop_at:
                    raise KeyboardInterrupt
                schedule.step()
                ema.update_parameters(model)
                losses.append(loss.item())
                if tell is not None:
                    tell(rec.updates)
                if pause:
                    time.sleep(pause)
            rec.log(last=losses[-1], drawn=torch.rand(()).item())
    return model, ema


def same(path, other):
    """Whether two stores hold the same bits: weights, buffers, history and log."""
    a, b = ek.open(path), ek.open(other)
    one, two = neural.history(a), neural.history(b)
    return (all(np.array_equal(a[name][:], b[name][:], equal_nan=True) for name in a.all_fields)
            and all(np.array_equal(getattr(one, name), getattr(two, name), equal_nan=True)
                    for name in ("step", "loss", "learning_rate"))
            and list(one.logged) == list(two.logged)
            and all(np.array_equal(one.logged[name], two.logged[name]) for name in one.logged))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", ["plain", "generator", "in the body"])
def test_a_run_cut_off_at_any_step_goes_on_with_the_same_bits(tmp_path, kind):
    wanted = train(tmp_path / "whole.h5", kind)
    assert not same(tmp_path / "whole.h5", _other(tmp_path, kind))
    for stop in (1, 5, 9, 16, 30) if kind != "plain" else (1, 2, 4, 9, 10, 11, 16, 29, 30):
        path = tmp_path / f"{stop}.h5"
        with pytest.raises(KeyboardInterrupt):
            train(path, kind, stop_at=stop)
        if stop in (9, 16):
            with pytest.raises(KeyboardInterrupt):
                train(path, kind, stop_at=stop + 4)
        outcome = train(path, kind)
        assert same(tmp_path / "whole.h5", path), stop
        assert all(map(equal, wanted, outcome)), stop


def _other(tmp_path, kind):
    train(tmp_path / "other.h5", kind, seed=1)
    return tmp_path / "other.h5"


@pytest.mark.parametrize("share", [1e9, 1e-9])
def test_states_are_saved_by_the_share_of_the_time_they_may_take(tmp_path, monkeypatch, share):
    from ensemblekit.neural import recorder as module

    monkeypatch.setattr(module, "SHARE", share)
    train(tmp_path / "whole.h5", save_every=None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut.h5", save_every=None, stop_at=13)
    state = tmp_path / "cut.h5.d" / "training" / "state.pt"
    assert state.exists() == (share > 1)
    if share > 1:
        assert torch.load(state, weights_only=True)["recorder"]["updates"] == 12
    train(tmp_path / "cut.h5", save_every=None)
    assert same(tmp_path / "whole.h5", tmp_path / "cut.h5")


def test_workers_are_gone_through_again(tmp_path):
    train(tmp_path / "whole.h5", "workers", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut.h5", "workers", epochs=3, stop_at=8)
    train(tmp_path / "cut.h5", "workers", epochs=3)
    assert same(tmp_path / "whole.h5", tmp_path / "cut.h5")


def test_a_finished_run_is_left_alone_and_its_weights_come_back(tmp_path):
    model, _ = train(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    again, _ = train(tmp_path / "a.h5", stop_at=1)      # not one step is made
    assert equal(model, again)
    assert (tmp_path / "a.h5").read_bytes() == before


def test_momenta_forgotten_at_a_restart_resume_too(tmp_path):
    train(tmp_path / "whole.h5", momentum="reset")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut.h5", momentum="reset", stop_at=13)
    train(tmp_path / "cut.h5", momentum="reset")
    assert same(tmp_path / "whole.h5", tmp_path / "cut.h5")


def child(path, *arguments):
    """This file as a program that trains and tells after every step."""
    return subprocess.Popen([sys.executable, __file__, str(path), *arguments], stdout=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_at_random_instants_of_real_processes(tmp_path, kills):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)            # as many as the children have: sums have one order then
    train(tmp_path / "whole.h5", save_every=3)
    rng = random.Random(int(os.environ.get("ENSEMBLEKIT_SEED", "4")))
    path, deaths, last = tmp_path / "killed.h5", 0, 0
    for _ in range(kills):
        process = child(path, "0.003")
        wait = rng.randrange(2, 9) if kills < 4 else rng.randrange(1, 5)
        heard = [process.stdout.readline() for _ in range(wait)]
        time.sleep(rng.uniform(0, 0.004))
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        deaths += process.wait() == -signal.SIGKILL
        here = max((int(line) for line in heard if line.strip()), default=0)
        assert here >= last - 3         # it went on from the last state saved, three steps ago at most
        last = max(last, here)
        ek.open(path, check=True)       # sound, and readable
    train(path, save_every=3)
    torch.set_num_threads(threads)
    assert deaths == kills
    assert same(tmp_path / "whole.h5", path)


def test_killed_before_anything_was_saved(tmp_path):
    train(tmp_path / "whole.h5")
    process = child(tmp_path / "killed.h5", "0.003", "1000")
    for _ in range(14):                 # one snapshot is in the store, no state
        process.stdout.readline()
    process.kill()
    process.stdout.close()
    process.wait()
    assert len(ek.open(tmp_path / "killed.h5")) == 1
    train(tmp_path / "killed.h5", save_every=1000)
    assert same(tmp_path / "whole.h5", tmp_path / "killed.h5")


# -- what does not fit ---------------------------------------------------------------------------------------------

def recorder(path, model=None, rate=0.1, cycles=3, momentum=0.9, **options):
    model = model or torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=12, n_cycles=cycles)
    return neural.Recorder(path, model, optimizer, schedule, **options)


def test_another_model_or_configuration_is_named_and_the_store_stays(tmp_path):
    path = tmp_path / "a.h5"
    recorder(path, configuration={"data": "one", "size": 3}).close()
    before = path.read_bytes()
    for options, words in [
        ({"model": torch.nn.Linear(4, 2)}, r"weight: stored \(2, 3\), model \(2, 4\)"),
        ({"model": torch.nn.Linear(3, 2, bias=False)}, "bias"),
        ({"model": torch.nn.Linear(3, 2).double()}, "float64"),
        ({"rate": 0.2}, r"optimizer\.groups\[0\]\.lr was 0\.1 and is 0\.2"),
        ({"momentum": 0.8}, r"optimizer\.groups\[0\]\.momentum was 0\.9 and is 0\.8"),
        ({"cycles": 4}, r"schedule\.n_cycles was 3 and is 4"),
        ({"configuration": {"data": "two", "size": 3}}, r"configuration\.data was 'one' and is 'two'"),
        ({"parameters": lambda name, parameter: name == "bias"}, "weight"),
    ]:
        with pytest.raises(InputError, match=words):
            recorder(path, **{"configuration": {"data": "one", "size": 3}, **options})
        assert path.read_bytes() == before
    recorder(path, configuration={"data": "one", "size": 3}).close()


def test_snapshots_without_a_state_are_not_thrown_away(tmp_path):
    rec = recorder(tmp_path / "a.h5")
    for _ in range(12):
        rec.model(torch.randn(4, 3)).square().mean().backward()
        rec.optimizer.step()
        rec.step()
        rec.scheduler.step()
    rec.close()                     # a loop of its own, without `batches`: it does not resume
    with pytest.raises(StoreError, match="3 snapshots and no state"):
        recorder(tmp_path / "a.h5")
    assert len(ek.open(tmp_path / "a.h5")) == 3


def test_a_damaged_state_is_told(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a.h5", stop_at=20)
    state = tmp_path / "a.h5.d" / "training" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"state\.pt cannot be read"):
        train(tmp_path / "a.h5")
    assert len(ek.open(tmp_path / "a.h5")) == 2


def test_checkpoints_of_ones_own(tmp_path):
    """The recorder's state beside those of model, optimizer and schedule, saved and loaded by the user."""
    def run(path, state=None, until=30):
        kept = None
        torch.manual_seed(0)
        random.seed(1)
        np.random.seed(2)       # noqa: NPY002
        model = torch.nn.Linear(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = neural.CyclicCosineLR(optimizer, total_steps=30, n_cycles=3)
        loader = torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True)
        with neural.Recorder(path, model, optimizer, schedule, states=False) as rec:
            if state is not None:
                for one, saved in zip((model, optimizer, schedule, rec), state, strict=True):
                    one.load_state_dict(saved)
            for _ in rec.epochs(6):
                for x, y in rec.batches(loader):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    rec.step()
                    schedule.step()
                    if rec.updates == 17:
                        kept = json_of([one.state_dict() for one in (model, optimizer, schedule, rec)])
                    if rec.updates == until:
                        rec.stop()
                        return kept
        return None

    def json_of(states):
        import io

        file = io.BytesIO()
        torch.save(states, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    run(tmp_path / "whole.h5", until=30)
    state = run(tmp_path / "cut.h5", until=24)
    assert len(ek.open(tmp_path / "cut.h5")) == 2
    run(tmp_path / "cut.h5", state)
    assert same(tmp_path / "whole.h5", tmp_path / "cut.h5")


# -- processes that work together ----------------------------------------------------------------------------------

def together(rank, world, path, port, stop, out):
    """One of two processes of a distributed run."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(rank)         # each with random numbers of its own
    random.seed(rank)
    np.random.seed(rank)    # noqa: NPY002
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3))
    model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=20, n_cycles=2)
    sampler = torch.utils.data.DistributedSampler(Noisy(), world, rank, shuffle=True)
    loader = torch.utils.data.DataLoader(Noisy(), batch_size=4, sampler=sampler)
    with neural.Recorder(path, model, optimizer, schedule, save_every=4) as rec:
        for _ in rec.epochs(4):
            for x, y in rec.batches(loader):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                rec.step()
                if rec.updates == stop:
                    os._exit(9)
                schedule.step()
        assert (rec.store is None) == (rank > 0)
    drawn, error = torch.rand(3).tolist(), ""
    try:
        neural.Recorder(path, model, optimizer, schedule, configuration={"data": "another"})
    except InputError as raised:        # every process is told, none waits for the others
        error = str(raised)
    with open(f"{out}.{rank}", "w") as file:
        json.dump({"drawn": drawn, "captured": rec.snapshot_steps, "error": error}, file)
    dist.barrier()
    os._exit(0)         # the threads of gloo are torn down in no order, which now and then ends in an abort


def two_processes(path, stop, out):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [subprocess.Popen([sys.executable, __file__, "together", str(rank), str(path), str(port), str(stop), str(out)],
                              env={**os.environ, "OMP_NUM_THREADS": "1"}) for rank in range(2)]
    try:
        return [rank.wait(90) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
def test_two_processes_resume_with_random_numbers_of_each(tmp_path):
    assert two_processes(tmp_path / "whole.h5", 0, tmp_path / "whole") == [0, 0]
    assert two_processes(tmp_path / "cut.h5", 11, tmp_path / "cut") == [9, 9]
    assert two_processes(tmp_path / "cut.h5", 0, tmp_path / "cut") == [0, 0]
    assert same(tmp_path / "whole.h5", tmp_path / "cut.h5")
    states = [[json.loads((tmp_path / f"{run}.{rank}").read_text()) for rank in range(2)] for run in ("whole", "cut")]
    for name in ("drawn", "captured"):
        assert [one[name] for one in states[0]] == [one[name] for one in states[1]]
    assert states[0][0]["drawn"] != states[0][1]["drawn"]
    assert states[0][0]["captured"] == states[0][1]["captured"] == [10, 20]
    assert all("configuration.data" in one["error"] for one in states[1])


if __name__ == "__main__":
    if sys.argv[1] == "together":
        _, _, rank, path, port, stop, out = sys.argv
        together(int(rank), 2, path, int(port), int(stop), out)
    else:
        every = int(sys.argv[3]) if len(sys.argv) > 3 else 3
        train(sys.argv[1], pause=float(sys.argv[2]), save_every=every,
              tell=lambda step: os.write(1, f"{step}\n".encode()))


def test_what_lies_beside_a_store_is_not_trusted(tmp_path):
    """A folder from elsewhere: a log that leads out of it, files that are none, lines and records of another kind."""
    sidecar = Sidecar(str(tmp_path / "run.h5"))
    sidecar.folder.mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("mine\n")
    log = sidecar.folder / "log.jsonl"
    log.symlink_to(tmp_path / "mine.txt")
    with pytest.raises(StoreError, match=r"log\.jsonl"):
        sidecar.log({"step": 1, "epoch": 0})
    assert (tmp_path / "mine.txt").read_text() == "mine\n"
    log.unlink()
    os.mkfifo(log)
    for call in (sidecar.logged, lambda: sidecar.log({"step": 1})):
        with pytest.raises(StoreError, match="named pipe"):
            call()
    log.unlink()
    log.write_text('{"step": 3, "epoch": 0, "loss": 0.5}\n[1]\n7\n"x"\n{"step": "x", "epoch": 1}\n{"loss": 2}\n' + "[" * 9999
                   + "\n{")
    assert sidecar.logged() == [{"step": 3, "epoch": 0, "loss": 0.5}]
    log.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match=r"log\.jsonl cannot be read"):
        sidecar.logged()
    os.mkfifo(sidecar.folder / "state.pt")
    with pytest.raises(StoreError, match="named pipe"):
        sidecar.read("state.pt")
    (sidecar.folder / "notes.txt").write_text("mine")
    sidecar.remove("*")
    assert [path.name for path in sidecar.folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("change", [
    lambda state: [1, 2], lambda state: {**state, "recorder": 7}, lambda state: {"run": state["run"]},
    lambda state: {**state, "model": {}}, lambda state: {**state, "schedule": {"x": 1}},
    lambda state: {**state, "optimizer": None},
], ids=["a list", "a number", "the run alone", "another model", "no schedule", "no optimizer"])
def test_a_state_of_another_kind_is_an_error_of_ours(tmp_path, change):
    path = tmp_path / "run.h5"
    with pytest.raises(KeyboardInterrupt):
        train(path, save_every=3, stop_at=7)
    state = torch.load(folder_of(path) / "training/state.pt", weights_only=True)
    torch.save(change(state), folder_of(path) / "training/state.pt")
    before = path.read_bytes()
    with pytest.raises((StoreError, InputError)) as error:
        train(path, save_every=3)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", [
    lambda m: [], lambda m: {**m, "parameters": 3}, lambda m: {**m, "parameters": [["a", [1 << 60], "float32"]]},
    lambda m: {**m, "parameters": [["a", [2], "load"]]}, lambda m: {**m, "aliases": [["a", "nowhere"]]},
    lambda m: {**m, "parameters": m["parameters"][:1]}])
def test_records_of_tensors_are_held_against_the_snapshots(tmp_path, change):
    model = torch.nn.Linear(3, 2)
    manifest = neural.parameters.Manifest.of(model)
    with ek.create(tmp_path / "a.h5", manifest.fields, provenance={"manifest": change(manifest.to_dict())}) as store:
        store.append(neural.parameters.to_vectors(model))
    for call in (neural.state_dict, lambda path: neural.Ensemble.from_store(path, model)):
        with pytest.raises(StoreDamagedError, match="record of") as error:
            call(tmp_path / "a.h5")
        assert "\n" not in str(error.value)
