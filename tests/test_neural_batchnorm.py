"""Batch-norm statistics made anew: every sample alike, nothing else touched."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.optim import swa_utils  # noqa: E402

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402

nn = torch.nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def data(n=23):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1)) * 3 + 1


def assert_exact(model, x):
    with torch.no_grad():
        seen = model.first(x).double()
    torch.testing.assert_close(model.norm.running_mean.double(), seen.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var.double(), seen.var(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [[23], [5, 3, 15], [22, 1]])
def test_uneven_batches_are_one_pass_over_all(sizes):
    model, x = Net(), data()
    if 1 in sizes:          # a training pass cannot normalise one sample; the layer's eval mode can
        model.norm.register_forward_pre_hook(lambda layer, args: setattr(layer, "training", len(args[0]) > 1))
    neural.update_bn(list(zip(x.split(sizes), strict=True)), model)
    assert_exact(model, x)
    assert int(model.norm.num_batches_tracked) == len(sizes)


def test_torchs_own_is_the_same_on_even_batches_and_not_on_uneven():
    ours, theirs, x = Net(), Net(), data(24)
    even = [(b,) for b in x.split(8)]
    neural.update_bn(even, ours)
    swa_utils.update_bn(even, theirs)
    torch.testing.assert_close(ours.norm.running_mean, theirs.norm.running_mean, rtol=1e-5, atol=1e-6)
    swa_utils.update_bn([(x[:22],), (x[22:],)], theirs)
    assert (theirs.norm.running_mean - ours.norm.running_mean).abs().max() > 0.05


def test_order_of_arguments_and_kinds_of_batches():
    x = data()
    for loader, forward in (([x], None), ([(x, torch.zeros(23))], None), ([{"x": x, "labels": x}], None),
                            ([{"image": x}], lambda model, batch: model(batch["image"]))):
        model = Net()
        neural.update_bn(loader, model, "cpu", forward)
        assert_exact(model, x)


def test_nothing_else_is_touched():
    model, x = Net(), data()
    model.eval()
    model.drop.train()
    modes = [m.training for m in model.modules()]
    before = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=6, shuffle=True)
    neural.update_bn(shuffled, model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.norm.momentum == 0.1
    assert not model.norm._forward_pre_hooks
    assert_exact(model, x)


@pytest.mark.parametrize(("loader", "error"), [([], InputError), ([(data(),), (torch.zeros(2, 5),)], RuntimeError)])
def test_statistics_stay_where_the_pass_fails(loader, error):
    model = Net()
    model(data())
    before = [b.clone() for b in model.buffers()]
    with pytest.raises(error):
        neural.update_bn(loader, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert model.training


def test_frozen_layers_and_those_without_statistics():
    model, x = Net(), data()
    model.norm.eval()                   # frozen inside a model that trains
    neural.update_bn([x], model)
    torch.testing.assert_close(model.norm.running_mean, torch.zeros(3))
    assert not model.norm.training
    plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.GroupNorm(1, 3))
    neural.update_bn([], plain)         # no pass is needed, so none is missed
    model = Net()
    model.norm.momentum = None
    neural.update_bn([x], model, dropout=False)
    assert_exact(model, x)
    half = nn.Sequential(nn.BatchNorm1d(4)).to(torch.bfloat16)
    neural.update_bn([(x + 100).to(torch.bfloat16)], half)
    seen = (x + 100).to(torch.bfloat16).double()
    torch.testing.assert_close(half[0].running_mean.double(), seen.mean(0), rtol=2**-8, atol=0)
    torch.testing.assert_close(half[0].running_var.double(), seen.var(0), rtol=2**-7, atol=0)


def test_dropout_is_on_as_while_training_or_off():
    torch.manual_seed(3)
    x = torch.randn(64, 5) + 3
    seen = {}
    for dropout in (True, False):
        model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(5)).eval()
        neural.update_bn([x[:40], x[40:]], model, dropout=dropout)
        seen[dropout] = model[1].running_var.double()
        assert not model.training
        assert not model[0].training
    torch.testing.assert_close(seen[False], x.double().var(0))
    assert (seen[True] > 3 * seen[False]).all()     # E[x²] of those dropped: 2 (σ² + μ²) - μ², above 9 here


@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
def test_old_statistics_leave_no_trace(momentum):
    """Averaged weights may come with statistics that are not finite; a layer's momentum is its own again afterwards."""
    model, x = Net(), data()
    model.norm.momentum = momentum
    with torch.no_grad():
        model.norm.running_mean.fill_(float("nan"))
        model.norm.running_var.fill_(float("inf"))
    neural.update_bn(list(x.split([9, 14])), model)
    assert_exact(model, x)
    assert model.norm.momentum == momentum


def test_layers_of_low_precision_and_of_other_kinds():
    model, x = Net(), data()
    model.norm.to(torch.bfloat16)
    neural.update_bn([x], model, forward=lambda m, b: m.norm(m.first(b).bfloat16()))
    seen = model.first(x).detach().bfloat16().double()
    torch.testing.assert_close(model.norm.running_mean.double(), seen.mean(0), rtol=2**-8, atol=2**-8)

    class Own(nn.BatchNorm1d):
        def forward(self, x):
            return x                        # finds no statistics of its own

    model = Net()
    model.norm = Own(3)
    neural.update_bn(list(x.split([9, 14])), model)
    assert_exact(model, x)


# -- several processes -------------------------------------------------------------------------------------------------


def share(rank: int, port: int, out: str) -> None:
    """One of two processes, each with its share of 96 items: uneven by hand, then by a DistributedSampler."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    x, model = shared_items()
    statistics = []
    for loader, choice in ((list(x[:61].split(16) if rank == 0 else x[61:].split(8)), True),
                           (torch.utils.data.DataLoader(x, 8, sampler=torch.utils.data.DistributedSampler(x, 2, rank)), None)):
        neural.update_bn(loader, model, distributed=choice)
        statistics.append([model[1].running_mean.tolist(), model[1].running_var.tolist(), int(model[1].num_batches_tracked)])
    if rank == 0:       # one process alone, over all the data: waits for nobody
        neural.update_bn([x], model)
        statistics.append([model[1].running_mean.tolist(), model[1].running_var.tolist(), 1])
    error = ""
    try:
        neural.update_bn([], model, distributed=True)
    except InputError as raised:
        error = str(raised)
    with open(f"{out}.{rank}", "w") as file:
        json.dump([statistics, error], file)
    dist.destroy_process_group()


def shared_items() -> tuple[torch.Tensor, torch.nn.Sequential]:
    torch.manual_seed(3)
    x = torch.randn(96, 5) * torch.linspace(0.1, 3, 96)[:, None]
    return x, torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_processes_put_their_shares_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path / "out")],
                              env={**os.environ, "OMP_NUM_THREADS": "1"}) for rank in range(2)]
    try:
        assert [rank.wait(90) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    x, model = shared_items()
    seen = model[0](x).detach().double()
    for rank in range(2):
        document, error = json.loads((tmp_path / f"out.{rank}").read_text())
        for mean, variance, _ in document:
            np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(variance, seen.var(0), rtol=1e-5)
        assert [batches for *_, batches in document[:2]] == [9, 12]
        assert "no batches came" in error


if __name__ == "__main__":
    share(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
