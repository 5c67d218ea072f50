"""Recorders beside several optimizers, and beside schedules that know no cycles."""

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import ClosedError, InputError  # noqa: E402
from ensemblekit.neural import remainder  # noqa: E402
from ensemblekit.neural.parameters import to_vectors  # noqa: E402


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def backward(model, k):
    generator = torch.Generator().manual_seed(k)
    loss = model(torch.randn(6, 3, generator=generator)).square().mean()
    loss.backward()
    return loss


def two(model):
    """The first layer's weights and the rest, each with a cyclic schedule."""
    parts = [torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(model[2].parameters(), lr=0.01)]
    return parts, [neural.CyclicCosineLR(one, total_steps=6, n_cycles=3) for one in parts]


ORDERS = {"recorder first": "oOrsS", "schedules first": "oOsSr", "each by itself": "osOSr", "other way round": "OSosr",
          "step never called": "osOS"}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_snapshot_holds_the_steps_of_all_optimizers(tmp_path, order):
    model = net()
    parts, schedules = two(model)
    kept = []
    with neural.Recorder(tmp_path / "a.h5", model, parts, schedules) as rec:
        for k in range(6):
            model.zero_grad()
            loss = backward(model, k)
            for letter in order:
                {"o": parts[0].step, "O": parts[1].step, "r": lambda loss=loss: rec.step(loss), "s": schedules[0].step,
                 "S": schedules[1].step}[letter]()
            kept.append(to_vectors(model)["parameters"])
    assert rec.snapshot_steps == [2, 4, 6]
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["parameters"][:], [kept[t - 1] for t in (2, 4, 6)])
    if "r" in order:
        assert neural.history(store).learning_rate.shape == (6, 2)
        assert neural.history(store).learning_rate[0].tolist() == [0.1, 0.01]


def test_a_critic_of_more_steps_than_its_generator(tmp_path):
    generator, critic = net(), net()
    parts = [torch.optim.SGD(critic.parameters(), lr=0.1), torch.optim.SGD(generator.parameters(), lr=0.1)]
    schedule = neural.CyclicCosineLR(parts[1], total_steps=4, n_cycles=2)
    kept = []
    with neural.Recorder(tmp_path / "a.h5", generator, parts, [schedule]) as rec:
        for k in range(12):
            backward(critic, k)
            parts[0].step()
            if k % 3 == 2:
                backward(generator, k)
                parts[1].step()
                kept.append(to_vectors(generator)["parameters"])
                schedule.step()
            rec.step()
    assert rec.snapshot_steps == [2, 4]
    np.testing.assert_array_equal(ek.open(tmp_path / "a.h5")["parameters"][:], [kept[1], kept[3]])


def train(path, optimizers_of, n_epochs=4, stop=None, **options):
    """Epochs of three batches with a snapshot after every other one; perhaps cut off."""
    model = net()
    optimizers, schedules = optimizers_of(model)
    listed = optimizers if isinstance(optimizers, list) else [optimizers]
    with neural.Recorder(path, model, optimizers, schedules, save_every=1, **options) as rec:
        for epoch in rec.epochs(n_epochs):
            for k in rec.batches([0, 1, 2]):
                model.zero_grad()
                loss = backward(model, 3 * epoch + k)
                for one in listed:
                    one.step()
                rec.step(loss)
                if rec.updates == stop:
                    raise OSError("killed")
            for one in schedules if isinstance(schedules, list) else [schedules]:
                if isinstance(one, torch.optim.lr_scheduler.ReduceLROnPlateau):
                    one.step(float(loss.detach()))
                elif one is not None:
                    one.step()
            if epoch % 2:
                rec.capture()
    return rec, to_vectors(model)["parameters"]


def of(make, n=1):
    def both(model):
        optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1)] if n == 1 else [
            torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(model[2].parameters(), lr=0.01)]
        schedules = [make(one) for one in optimizers]
        return (optimizers, schedules) if n > 1 else (optimizers[0], schedules[0])
    return both


schedulers = torch.optim.lr_scheduler
THEIRS = {
    "step": of(lambda o: schedulers.StepLR(o, 1, 0.5)),
    "milestones": of(lambda o: schedulers.MultiStepLR(o, [1, 2])),
    "restarts": of(lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2)),
    "plateau": of(lambda o: schedulers.ReduceLROnPlateau(o, patience=0)),
    "sequence": of(lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, 1.0, 2), schedulers.CosineAnnealingLR(o, 4)], milestones=[2])),
    "lambda": of(lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch)),
    "constant": of(lambda o: None),
    "two optimizers": of(lambda o: schedulers.ExponentialLR(o, 0.8), 2),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_schedules_without_cycles_record_by_hand_and_resume(tmp_path, kind):
    rec, last = train(tmp_path / "a.h5", THEIRS[kind])
    assert rec.snapshot_steps == [6, 12]
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["parameters"][1], last)
    with pytest.raises(OSError, match="killed"):
        train(tmp_path / "b.h5", THEIRS[kind], stop=8)
    again, weights = train(tmp_path / "b.h5", THEIRS[kind])
    assert again.resumed
    assert again.snapshot_steps == [6, 12]
    np.testing.assert_array_equal(weights, last)
    np.testing.assert_array_equal(neural.history(tmp_path / "b.h5").learning_rate, neural.history(store).learning_rate)
    _, left_alone = train(tmp_path / "b.h5", THEIRS[kind])
    np.testing.assert_array_equal(left_alone, last)
    assert len(ek.open(tmp_path / "b.h5")) == 2


def test_a_plain_loop_beside_a_schedule_of_torch(tmp_path, caplog):
    def loop(capture=True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
        with neural.Recorder(tmp_path / "a.h5", model, optimizer, schedule) as rec:
            for k in range(4):
                backward(model, k)
                optimizer.step()
                rec.step()
                schedule.step()
                assert rec.capture() == (capture and not rec._finished) if capture else True
                assert not rec.capture()
        return rec

    rec = loop()
    assert rec.snapshot_steps == [1, 2, 3, 4]
    with pytest.raises(ClosedError, match="with block"):
        rec.capture()
    loop()                  # finished: left alone
    assert len(ek.open(tmp_path / "a.h5")) == 4


def test_a_run_that_took_no_snapshot_says_so_and_begins_again(tmp_path, caplog):
    for make in (of(lambda o: torch.optim.lr_scheduler.StepLR(o, 1)), of(lambda o: neural.CyclicCosineLR(
            o, total_steps=12, n_cycles=2))):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5"
        model = net()
        optimizer, schedule = make(model)
        for complete in (False, True):
            model = net()
            optimizer, schedule = make(model)
            caplog.clear()
            with neural.Recorder(path, model, optimizer, schedule, save_every=1) as rec:
                for epoch in rec.epochs(4):
                    for k in rec.batches([0, 1, 2]):
                        backward(model, 3 * epoch + k)
                        optimizer.step()
                        rec.step()
                        if complete and isinstance(schedule, neural.CyclicCosineLR):
                            schedule.step()
                    if complete:
                        rec.capture()
            assert bool(rec.snapshot_steps) == complete
            assert complete or any(one.levelno == logging.WARNING and ("capture()" in one.message or "schedule.step()" in
                                                                       one.message) for one in caplog.records)


def test_snapshots_by_hand_beside_those_of_cycles(tmp_path, caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=8, n_cycles=2)
    with caplog.at_level(logging.INFO, "ensemblekit"), neural.Recorder(
            tmp_path / "a.h5", model, optimizer, schedule) as rec:
        for k in range(8):
            backward(model, k)
            optimizer.step()
            if k in (2, 3, 5):
                assert rec.capture()
            rec.step()
            schedule.step()
    assert rec.snapshot_steps == [3, 4, 6, 8]
    assert "2 of 2 snapshots and 2 taken by hand" in caplog.text


def test_optimizers_and_schedules_that_do_not_fit(tmp_path):
    model, other = net(), net()
    parts, schedules = two(model)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1)
    for optimizer, schedule, why in [
            ([], schedules, "empty list"), (parts[0], schedules, "another optimizer"), (parts, ["x"], "capture"),
            (theirs, None, "another model"), (parts[:1], [schedules[0], schedulers.StepLR(parts[0], 1)], "both set")]:
        with pytest.raises(InputError, match=why):
            neural.Recorder(tmp_path / "a.h5", model, optimizer, schedule)
    with pytest.raises(InputError, match="parameters="):
        neural.Recorder(tmp_path / "a.h5", model, parts, schedules, "trainable")
    parts[0].add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    with pytest.raises(InputError, match="after add_param_group"):
        neural.Recorder(tmp_path / "a.h5", model, parts, schedules)

    class Holds(torch.optim.lr_scheduler.StepLR):
        def __init__(self, optimizer):
            self.kept = {"x": object.__new__(Strange)}
            super().__init__(optimizer, 1)

    with pytest.raises(InputError, match="states=False"):
        neural.Recorder(tmp_path / "a.h5", other, theirs, Holds(theirs))


class Strange:
    """Of somebody's program."""


def test_a_frozen_base_is_hashed_once_and_its_changes_are_seen(tmp_path, monkeypatch):
    model = net()
    model[0].requires_grad_(False)
    hashed = []
    original = remainder._hash_of
    monkeypatch.setattr(remainder, "_hash_of", lambda tensor: hashed.append(tensor.shape) or original(tensor))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    rec = neural.Recorder(tmp_path / "a.h5", model, optimizer, None, parameters="trainable")

    def update(k):
        model.zero_grad()
        backward(model, k)
        optimizer.step()
        rec.step()
        return rec.capture()

    for k in range(4):
        assert update(k)
    assert hashed == [(4, 3), (4,)]

    def assigned():
        model[0].weight.data = model[0].weight.data * 1.1

    for change in (lambda: model[0].weight.add_(1), lambda: model[0].weight.data.mul_(1.01), assigned):
        with torch.no_grad():
            before = model[0].weight.clone()
            change()
        with pytest.raises(InputError, match=r"0\.weight changed"):
            update(9)
        with torch.no_grad():
            model[0].weight.copy_(before)
    rec.close()
