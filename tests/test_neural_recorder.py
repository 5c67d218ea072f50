"""Which snapshots are taken, of what, and what is refused."""
# ruff: noqa: PT012  (what fails here is a training, a loop of several statements)

import json
import logging
import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError, StoreError  # noqa: E402
from ensemblekit.neural.parameters import Manifest, load_vectors, to_vectors  # noqa: E402
from ensemblekit.neural.ring import Ring, Slot  # noqa: E402
from ensemblekit.source import Field  # noqa: E402


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def second(folder):
    """Another folder, for another run of the same test."""
    (folder / "second").mkdir()
    return folder / "second"


class Loop:
    """A small training whose pieces are stepped by hand; remembers the weights after every update."""

    def __init__(self, tmp_path, total=12, cycles=3, mode="balanced", scaler=None, schedule=None, **options):
        self.model = net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.schedule = schedule(self.optimizer) if schedule else neural.CyclicCosineLR(
            self.optimizer, total_steps=total, n_cycles=cycles, mode=mode)
        self.path = tmp_path / "weights.h5"
        self.rec = neural.Recorder(self.path, self.model, self.optimizer, self.schedule, scaler, **options)
        self.generator = torch.Generator().manual_seed(1)
        self.weights, self.rates = [], []

    def backward(self):
        loss = self.model(torch.randn(5, 3, generator=self.generator)).square().mean()
        loss.backward()
        return loss

    def update(self):
        self.optimizer.zero_grad()
        loss = self.backward()
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.weights.append(to_vectors(self.model)["parameters"])
        return loss

    def check(self, steps):
        """Exactly the weights after these updates (counted from 1) are in the store, each at the lowest rate since the
        snapshot before."""
        self.rec.close()
        store = ek.open(self.path)
        assert self.rec.snapshot_steps == steps
        np.testing.assert_array_equal(store["parameters"].times, steps)
        np.testing.assert_array_equal(store["parameters"][:], [self.weights[t - 1] for t in steps])
        for start, end in zip([0, *steps], steps, strict=False):
            assert self.rates[end - 1] == min(self.rates[start:end])


@pytest.mark.parametrize("mode", ["balanced", "paper", "reference"])
@pytest.mark.parametrize(("total", "cycles"), [(12, 3), (13, 3), (5, 5), (1, 1), (4, 1)])
def test_one_snapshot_a_cycle_after_its_last_update(tmp_path, mode, total, cycles):
    loop = Loop(tmp_path, total, cycles, mode)
    with loop.rec:
        taken = []
        for _ in range(total):
            loss = loop.update()
            taken.append(loop.rec.step(loss))
            loop.schedule.step()
    loop.check(loop.schedule.ends)
    assert [t + 1 for t, yes in enumerate(taken) if yes] == loop.schedule.ends
    kept = neural.history(loop.path)
    np.testing.assert_array_equal(kept.step, np.arange(1, total + 1))
    np.testing.assert_allclose(kept.learning_rate[:, 0], loop.rates, rtol=1e-15)
    np.testing.assert_array_equal(kept.snapshot_steps, loop.schedule.ends)
    assert np.isfinite(kept.loss).all()


def test_a_schedule_stepped_before_the_recorder(tmp_path):
    loop = Loop(tmp_path)       # Lightning's order
    for _ in range(12):
        loop.update()
        loop.schedule.step()
        loop.rec.step()
    loop.check([4, 8, 12])


def test_a_loop_that_never_calls_step_but_crosses(tmp_path):
    loop = Loop(tmp_path)
    for _ in range(12):
        loop.update()
        loop.schedule.step()
    loop.check([4, 8, 12])


def test_a_loop_that_leaves_out_the_last_step_of_the_schedule(tmp_path):
    loop = Loop(tmp_path)
    with loop.rec:
        for t in range(12):
            loop.update()
            loop.rec.step()
            if t < 11:
                loop.schedule.step()
    loop.check([4, 8, 12])


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
@pytest.mark.parametrize("cycles", [2, 3])
def test_a_schedule_stepped_several_times_an_update(tmp_path, stride, cycles):
    loop = Loop(tmp_path, total=60, cycles=cycles)
    for _ in range(-(-60 // stride)):
        loop.update()
        loop.rec.step()
        for _ in range(stride):
            if loop.schedule.last_epoch < 60:
                loop.schedule.step()
    loop.check([-(-end // stride) for end in loop.schedule.ends])


def test_accelerate_on_four_processes(tmp_path, monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import PartialState

    accelerator = accelerate.Accelerator(cpu=True)
    loop = Loop(tmp_path, total=60, cycles=3)
    loop.rec.close()
    optimizer, schedule = accelerator.prepare(loop.optimizer, loop.schedule)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 4)
    loop.path = tmp_path / "accelerated.h5"
    loop.rec = neural.Recorder(loop.path, loop.model, optimizer, schedule)
    loop.optimizer = optimizer
    for _ in range(15):
        loop.update()
        loop.rec.step()
        schedule.step()
    loop.check([5, 10, 15])


def test_a_schedule_stepped_once_an_epoch(tmp_path):
    loop = Loop(tmp_path, total=6, cycles=2)
    for _ in range(6):
        for _ in range(5):
            loop.update()
            loop.rec.step()
        loop.schedule.step()
    loop.check([15, 30])
    loop = Loop(second(tmp_path), total=3, cycles=3)       # every epoch is a cycle
    for _ in range(3):
        for _ in range(4):
            loop.update()
            loop.rec.step()
        loop.schedule.step()
    loop.check([4, 8, 12])


@pytest.mark.parametrize("every_batch", [False, True])
def test_accumulated_gradients(tmp_path, every_batch):
    loop = Loop(tmp_path, total=6, cycles=2)
    for index in range(24):
        loop.backward()
        if index % 4 == 3:
            loop.rates.append(loop.optimizer.param_groups[0]["lr"])
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            loop.weights.append(to_vectors(loop.model)["parameters"])
            loop.rec.step()
            loop.schedule.step()
        elif every_batch:
            loop.rec.step()
    loop.check([3, 6])


@pytest.mark.parametrize("bad", [[], [0], [1, 2], [3], [7], [11, 12, 13]])
@pytest.mark.parametrize("before", [False, True])
def test_steps_that_a_scaler_skips_keep_the_phase(tmp_path, bad, before):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop = Loop(tmp_path, scaler=scaler)
    for t in range(12 + len(bad)):
        loop.optimizer.zero_grad()
        scaler.scale(loop.model(torch.randn(5, 3, generator=loop.generator)).square().mean()).backward()
        if t in bad:
            loop.model[0].weight.grad[0, 0] = float("inf")
        phase = loop.schedule.last_epoch
        rate = loop.optimizer.param_groups[0]["lr"]
        scaler.step(loop.optimizer)
        scaler.update()
        if t not in bad:
            loop.rates.append(rate)
            loop.weights.append(to_vectors(loop.model)["parameters"])
        for step in (loop.schedule.step, loop.rec.step) if before else (loop.rec.step, loop.schedule.step):
            step()
        assert loop.schedule.last_epoch == phase + (t not in bad)
    loop.check([4, 8, 12])
    assert scaler.step.__name__ == "step"       # the scaler is as it was


def test_a_training_that_ends_short_of_its_schedule(tmp_path, caplog):
    loop = Loop(tmp_path, total=12, cycles=3)
    with loop.rec:
        for _ in loop.rec.epochs(1):
            for _ in loop.rec.batches(range(11)):
                loop.update()
                loop.rec.step()
                loop.schedule.step()
    loop.check([4, 8, 11])
    loop = Loop(second(tmp_path), total=12, cycles=3)
    with caplog.at_level(logging.WARNING), loop.rec:
        for _ in loop.rec.epochs(1):
            for _ in loop.rec.batches(range(6)):
                loop.update()
                loop.rec.step()
                loop.schedule.step()
    loop.check([4])
    assert "1 of 3 snapshots, schedule at 6 of 12 after 6 updates" in caplog.text


@pytest.mark.parametrize("schedule", [
    lambda o: neural.TriangularLR(o, total_steps=12, n_cycles=4, alpha_1=0.1, alpha_2=0.01),
    lambda o: neural.TriangularLR(o, total_steps=4, n_cycles=4, alpha_1=0.1, alpha_2=0.01),
    lambda o: neural.SWAConstantLR(o, total_steps=12, n_cycles=3, swa_lr=0.05, start_step=3),
])
def test_other_schedules(tmp_path, schedule):
    loop = Loop(tmp_path, schedule=schedule)
    for _ in range(loop.schedule.total_steps):
        loop.update()
        loop.rec.step()
        loop.schedule.step()
    loop.check(loop.schedule.ends)


def test_an_early_finish_is_recorded_at_its_new_end(tmp_path):
    loop = Loop(tmp_path, total=30, cycles=3)
    for t in range(17):
        loop.update()
        loop.rec.step()
        loop.schedule.step()
        if t == 11:
            loop.schedule.finish(5)
    loop.check([10, 17])


def test_losses_of_all_kinds_go_to_the_history(tmp_path):
    loop = Loop(tmp_path, total=6, cycles=1)
    given = [1.5, None, torch.tensor(2.5), torch.tensor([3.5]), torch.tensor(4.5, dtype=torch.bfloat16), np.float64(5.5)]
    for loss in given:
        loop.update()
        loop.rec.step(loss)
        loop.schedule.step()
    loop.rec.close()
    np.testing.assert_array_equal(neural.history(loop.path).loss, [1.5, np.nan, 2.5, 3.5, 4.5, 5.5])


# -- what a snapshot holds -----------------------------------------------------------------------------------------

class Odd(torch.nn.Module):
    """Ties, several types, a buffer that stands in no state dict, one that is a mask, an empty parameter."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 3)
        self.head = torch.nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.low = torch.nn.Parameter(torch.randn(5).bfloat16())
        self.phase = torch.nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))
        self.none = torch.nn.Parameter(torch.empty(0, 3))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("count", torch.tensor(2**40 + 1))
        self.register_buffer("cache", torch.randn(3), persistent=False)
        self.register_buffer("scale", torch.randn(2).half())


def test_vectors_of_an_odd_model_come_back_bit_by_bit():
    torch.manual_seed(0)
    one, other = Odd(), Odd()
    manifest = Manifest.of(one)
    assert manifest.aliases == (("head.weight", "embed.weight"),)
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    vectors = to_vectors(one)
    assert {name: (v.dtype.str[1:], len(v)) for name, v in vectors.items()} == {
        "parameters": ("f4", 21 + 5 + 8), "buffers": ("f4", 2), "counters": ("i8", 4)}
    cache = other.cache.clone()
    load_vectors(other, vectors)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.cache, cache)
    state = manifest.state_dict(vectors)
    assert state["low"].dtype == torch.bfloat16
    assert state["head.weight"] is state["embed.weight"]
    assert list(sorted(state)) == sorted(one.state_dict())
    Odd().load_state_dict(state)
    one.low.data.add_(1)
    assert not np.array_equal(to_vectors(one)["parameters"], vectors["parameters"])     # copies, not views


def test_float64_stays_float64():
    model = net().double()
    model[0].float()
    vectors = to_vectors(model)
    assert vectors["parameters"].dtype == np.float64
    np.testing.assert_array_equal(vectors["parameters"][-2:], model[2].bias.detach().numpy())


def test_wrappers_are_taken_off():
    model = net()
    wrapped = torch.compile(model, backend="eager")
    assert Manifest.of(wrapped) == Manifest.of(torch.nn.DataParallel(model)) == Manifest.of(model)
    model[0] = torch.compile(model[0], backend="eager")
    assert Manifest.of(model) == Manifest.of(net())

    class FullyShardedDataParallel(torch.nn.Module):
        pass

    class DeepSpeedEngine(torch.nn.Module):
        pass

    for kind in (FullyShardedDataParallel, DeepSpeedEngine):
        with pytest.raises(InputError, match=kind.__name__):
            Manifest.of(kind())
    with pytest.raises(InputError, match="lazy"):
        Manifest.of(torch.nn.LazyLinear(3))
    with pytest.raises(InputError, match="meta"):
        Manifest.of(torch.nn.Linear(2, 2, device="meta"))


def test_a_differing_model_is_named():
    manifest = Manifest.of(net())
    other = net()
    other[2] = torch.nn.Linear(4, 9)
    with pytest.raises(InputError, match=r"2\.weight: stored \(2, 4\), model \(9, 4\)"):
        manifest.check(other)
    other[2] = torch.nn.Identity()
    with pytest.raises(InputError, match=r"2\.bias: stored \(2,\), model has it not"):
        manifest.check(other)


@pytest.mark.parametrize("chosen", ["trainable", lambda name, parameter: name.startswith("2.")])
def test_some_of_the_parameters(tmp_path, chosen):
    for wrong in ("some", lambda name, parameter: False):
        with pytest.raises(InputError, match="parameters"):
            Manifest.of(net(), wrong)
    loop = Loop(tmp_path, parameters="all")
    loop.rec.close()
    loop.path = tmp_path / "some.h5"
    for parameter in loop.model[:2].parameters():
        parameter.requires_grad = False
    loop.rec = neural.Recorder(loop.path, loop.model, loop.optimizer, loop.schedule, parameters=chosen)
    loop.update()
    loop.rec._capture(4)
    loop.rec.close()
    store = ek.open(loop.path)
    assert store["parameters"].shape == (1, 10)
    assert sorted(neural.state_dict(store)) == ["1.num_batches_tracked", "1.running_mean", "1.running_var", "2.bias",
                                                "2.weight"]
    manifest, fresh = Manifest.from_dict(store.provenance["manifest"]), net(5)
    manifest.check(fresh)
    own = fresh[0].weight.clone()
    load_vectors(fresh, {"parameters": store["parameters"][0]}, manifest)
    assert torch.equal(fresh[2].weight, loop.model[2].weight)
    assert torch.equal(fresh[0].weight, own)


def test_a_reader_beside_the_training_sees_each_snapshot_once_it_is_taken(tmp_path):
    loop = Loop(tmp_path, 12, 3)
    seen, reader = [], None
    for _ in range(12):
        loop.rec.step(loop.update())
        loop.schedule.step()
        if loop.rec.snapshot_steps:
            reader = reader or ek.open(loop.path)
            reader.refresh()
            again = [neural.Ensemble.from_store(loop.path, net(1)) for _ in range(2)]       # loading twice changes nothing
            seen.append(len(reader))
            assert len(again[0]) == len(again[1]) == len(reader) == len(loop.rec.snapshot_steps)
            np.testing.assert_array_equal(reader["parameters"][-1], loop.weights[loop.rec.snapshot_steps[-1] - 1])
            np.testing.assert_array_equal(again[0].vectors["parameters"][:], again[1].vectors["parameters"][:])
    assert seen == [1] * 4 + [2] * 4 + [3]
    loop.check([4, 8, 12])


def test_content_hashes_tell_weights_apart(tmp_path):
    loop, hashes = Loop(tmp_path), []
    for _ in range(12):
        loop.update()
        if loop.rec.step():
            hashes.append(neural.content_hash(loop.model))
        loop.schedule.step()
    loop.rec.close()
    assert [row.tobytes().hex() for row in ek.open(loop.path)["content_hash"][:]] == hashes
    assert len(set(hashes)) == 3


# -- what is refused -----------------------------------------------------------------------------------------------

def test_weights_and_losses_that_are_not_finite(tmp_path):
    loop = Loop(tmp_path)
    with pytest.raises(InputError, match=r"after step 8 are not finite: 2\.bias\."), loop.rec:
        for t in range(12):
            loop.update()
            if t == 7:
                loop.model[2].bias.data[0] = float("nan")
            loop.rec.step()
            loop.schedule.step()
    assert len(ek.open(loop.path)) == 1
    assert np.isfinite(ek.open(loop.path)["parameters"][:]).all()
    loop = Loop(second(tmp_path))
    with pytest.raises(InputError, match="loss of step 4 is nan"), loop.rec:
        for _ in range(12):
            loss = loop.update()
            loop.rec.step(loss * float("nan"))
            loop.schedule.step()
    assert len(ek.open(loop.path)) == 0


def test_a_loader_of_changing_length(tmp_path):
    loop = Loop(tmp_path, total=30)
    with pytest.raises(InputError, match="has 9 batches in epoch 1, and 10 in those before"), loop.rec:
        for epoch in loop.rec.epochs(3):
            for _ in loop.rec.batches(range(10 - epoch)):
                loop.update()
                loop.rec.step()
                loop.schedule.step()
    assert len(ek.open(loop.path)) == 1
    loop = Loop(second(tmp_path), total=30)
    with pytest.raises(InputError, match="gave 11 batches in epoch 1, and 10"), loop.rec:
        for epoch in loop.rec.epochs(3):
            for _ in loop.rec.batches(iter(range(10 + epoch))):
                loop.update()
                loop.rec.step()
                loop.schedule.step()
    assert len(ek.open(loop.path)) == 2


def test_what_a_recorder_does_not_take(tmp_path):
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = neural.CyclicCosineLR(opt, total_steps=4, n_cycles=2)
    with pytest.raises(InputError, match=r"capture\(\); got int"):
        neural.Recorder(tmp_path / "a.h5", model, opt, 3)
    with pytest.raises(InputError, match=r"torch\.optim"):
        neural.Recorder(tmp_path / "a.h5", model, model, schedule)
    with pytest.raises(InputError, match="no parameters"):
        neural.Recorder(tmp_path / "a.h5", torch.nn.ReLU(), opt, schedule)
    with pytest.raises(InputError, match="path"):
        neural.Recorder(None, model, opt, schedule)
    assert list(tmp_path.iterdir()) == []
    with ek.create(tmp_path / "other.h5", {"x": ek.Field()}):
        pass
    with pytest.raises(StoreError, match="not of a training run"):
        neural.Recorder(tmp_path / "other.h5", model, opt, schedule)
    neural.Recorder(tmp_path / "a.h5", model, opt, schedule).close()
    with pytest.raises(StoreError, match="there already"):
        neural.Recorder(tmp_path / "a.h5", model, opt, schedule, resume=False)


def test_a_recorder_lets_go_of_optimizer_and_schedule(tmp_path):
    loop = Loop(tmp_path, total=4, cycles=4)
    with pytest.raises(KeyboardInterrupt), loop.rec:
        loop.update()
        loop.rec.step()
        raise KeyboardInterrupt
    loop.schedule.step()
    loop.update()
    loop.schedule.step()
    assert len(ek.open(loop.path)) == 1
    assert loop.rec.updates == 1
    assert not loop.optimizer._optimizer_step_post_hooks


# -- the ring, with a device that takes its time -------------------------------------------------------------------

class SlowDevice:
    """Copies when it is waited for, not when it is asked to: the worst a side stream may do."""

    def __init__(self):
        self.copies = 0
        self.gate = threading.Event()
        self.gate.set()

    def slot(self, fields):
        return Slot(*({name: torch.zeros(one.size) for name, one in fields.items()} for _ in range(2)))

    def start(self, slot):
        return "asked"

    def wait(self, slot):
        assert slot.done == "asked"
        self.gate.wait(5)
        for name, vector in slot.device.items():
            slot.host[name].copy_(vector)
        self.copies += 1


def test_the_ring_writes_what_was_captured_whatever_happens_to_the_source():
    written, device, source = [], SlowDevice(), torch.zeros(1000)
    ring = Ring({"x": Field((1000,), np.dtype("f4"))}, device, lambda arrays, k: written.append((k, arrays["x"].copy())))
    for k in range(20):
        source.fill_(k)
        ring.put(lambda out: out["x"].copy_(source), k)
        source.fill_(float("nan"))
    ring.drain()
    assert [k for k, _ in written] == list(range(20))
    assert all((values == k).all() for k, values in written)
    ring.close()
    assert not ring._thread.is_alive()


def test_the_ring_holds_two_snapshots_and_then_waits():
    device = SlowDevice()
    device.gate.clear()
    ring = Ring({"x": Field((4,), np.dtype("f4"))}, device, lambda arrays, k: None)
    two = threading.Thread(target=lambda: [ring.put(lambda out: None, k) for k in range(2)], daemon=True)
    two.start()
    two.join(30)
    assert not two.is_alive()       # neither waited for the device, whose gate is closed
    third = threading.Thread(target=ring.put, args=(lambda out: None, 2))
    third.start()
    third.join(0.05)
    assert third.is_alive()
    device.gate.set()
    third.join(5)
    ring.close()
    assert device.copies == 3


def test_the_ring_tells_of_its_writer_and_writes_nothing_after():
    written = []

    def write(arrays, k):
        if k == 1:
            raise StoreError("the disk is full")
        written.append(k)

    ring = Ring({"x": Field((4,), np.dtype("f4"))}, SlowDevice(), write)
    with pytest.raises(StoreError, match="full"):
        for k in range(10):
            ring.put(lambda out: None, k)
        ring.drain()
    assert written == [0]
    ring.put(lambda out: None, 11)
    ring.close()
    assert written == [0]


def test_a_recorder_with_a_ring_records_the_same(tmp_path):
    loop = Loop(tmp_path)
    loop.rec._ring = Ring(loop.rec.manifest.fields, SlowDevice2(), loop.rec._write)
    with loop.rec:
        for _ in range(12):
            loop.update()
            loop.rec.step()
            loop.schedule.step()
    loop.check([4, 8, 12])
    loop = Loop(second(tmp_path))
    loop.rec._ring = Ring(loop.rec.manifest.fields, SlowDevice2(), loop.rec._write)
    with pytest.raises(InputError, match="not finite"), loop.rec:
        for t in range(12):
            loop.update()
            if t == 7:
                loop.model[0].bias.data[0] = float("inf")
            loop.rec.step()
            loop.schedule.step()
    assert len(ek.open(loop.path)) == 1


class SlowDevice2(SlowDevice):
    def slot(self, fields):
        halves = [{name: torch.from_numpy(np.zeros(one.size, one.dtype)) for name, one in fields.items()} for _ in range(2)]
        return Slot(*halves)


# -- what it costs -------------------------------------------------------------------------------------------------

def test_a_step_without_a_snapshot_costs_microseconds(tmp_path):
    loop = Loop(tmp_path, total=100_000, cycles=1)
    loss = loop.update().detach()
    rec, best = loop.rec, np.inf
    for _ in range(7):
        began = time.thread_time()      # of the processor, whoever else uses it
        for _ in range(400):
            rec._watch.updates += 1
            rec.step(loss)
        best = min(best, (time.thread_time() - began) / 400)
        rec._history.clear()
    assert best < 20e-6         # 1 to 2 microseconds on an idle machine
    rec._history.clear()
    rec.close()
