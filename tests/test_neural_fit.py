"""The loop for those who want one."""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(12, 3))


def data(n=64, batch=8, seed=0, shuffle=True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    y = (x[:, :3] + 0.1 * torch.randn(n, 3, generator=generator)).argmax(1)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch, shuffle=shuffle)


def fit(path, model=None, loader=None, loss=None, **options):
    model = model or net()
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return model, neural.fit(model, optimizer, loader if loader is not None else data(), loss or torch.nn.CrossEntropyLoss(),
                             store=path, **{"n_cycles": 3, "n_epochs": 6, "progress": False, **options})


def test_fit_is_the_plain_loop(tmp_path):
    logged = []
    model, run = fit(tmp_path / "a.h5", val_loader=data(seed=1, shuffle=False), log=logged.append)
    plain = net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2, momentum=0.9)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=48, n_cycles=3)
    losses, kept = [], []
    for _ in range(6):
        for x, y in data():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(plain(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if schedule.at_cycle_end:
                kept.append(torch.cat([p.detach().flatten() for p in plain.parameters()]).numpy())
            schedule.step()
        list(data(seed=1, shuffle=False))       # validation draws a seed
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert run.snapshot_steps == (16, 32, 48)
    assert repr(run).startswith(f"Fit(3 snapshots at steps 16, 32, 48 in {run.store}; last loss {losses[-1]:.4g}; ")
    assert repr(run.history).startswith(f"History(48 steps; 3 snapshots at steps 16, 32, 48; loss {losses[0]:.4g} to ")
    assert repr(run.history).endswith(f"logged: {', '.join(n for n in run.history.logged if n not in ('step', 'epoch'))})")
    assert "val_accuracy" in repr(run.history)
    np.testing.assert_array_equal(ek.open(run.store)["parameters"][:], kept)
    np.testing.assert_allclose(run.history.loss, losses, rtol=1e-6)
    assert [one["epoch"] for one in logged] == list(range(6))
    assert logged[0]["loss"] == pytest.approx(np.mean(losses[:8]), rel=1e-6)
    plain.eval()
    x, y = data(seed=1, shuffle=False).dataset.tensors
    assert logged[-1]["val_accuracy"] == pytest.approx(float((plain(x).argmax(1) == y).float().mean()))
    assert logged[-1]["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(plain(x), y).item(), rel=1e-5)
    np.testing.assert_allclose(run.history.logged["val_loss"], [one["val_loss"] for one in logged])
    assert model.training


class Stop(Exception):
    pass


def test_fit_goes_on_where_it_was_cut_off(tmp_path):
    whole, _ = fit(tmp_path / "whole.h5")

    def stop(scores):
        if scores["epoch"] == 3:
            raise Stop

    with pytest.raises(Stop):
        fit(tmp_path / "cut.h5", log=stop, save_every=5)
    model, run = fit(tmp_path / "cut.h5")
    assert run.resumed
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    np.testing.assert_array_equal(*(ek.open(tmp_path / name)["parameters"][:] for name in ("cut.h5", "whole.h5")))
    for options, words in [({"n_epochs": 7}, "n_epochs was 6 and is 7"), ({"clip": 1.0}, "clip was None and is 1.0"),
                           ({"loader": data(batch=4)}, "batch_size was 8 and is 4"),
                           ({"n_cycles": 2}, "n_cycles was 3 and is 2"),
                           ({"loss": torch.nn.MultiMarginLoss()}, "loss was 'CrossEntropyLoss' and is 'MultiMarginLoss'"),
                           ({"model": torch.nn.Linear(6, 3)}, "weight: stored not at all")]:
        with pytest.raises(InputError, match=words):
            fit(tmp_path / "cut.h5", **options)
    again, run = fit(tmp_path / "cut.h5", model=net(3))
    assert run.snapshot_steps == (16, 32, 48)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_accumulated_batches_are_one_large_batch(tmp_path):
    def without_dropout():
        model = net()
        model[2] = torch.nn.Identity()
        return model

    large, one = fit(tmp_path / "large.h5", without_dropout(), data(batch=16, shuffle=False), clip=0.5)
    small, other = fit(tmp_path / "small.h5", without_dropout(), data(batch=4, shuffle=False), clip=0.5, accumulate=4)
    assert one.snapshot_steps == other.snapshot_steps == (8, 16, 24)
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.history.loss, other.history.loss, rtol=1e-4)
    _, rest = fit(tmp_path / "rest.h5", loader=data(batch=8), accumulate=3, n_epochs=2)       # 8 batches: 3 + 3 + 2
    assert rest.snapshot_steps == (2, 4, 6)


@pytest.mark.parametrize("options", [{"amp": "bf16"}, {"amp": True, "clip": 1.0}, {"channels_last": True}, {"amp": "fp16"},
                                     {"device": "cpu"}, {"optimizer": functools.partial(torch.optim.AdamW, lr=0.01)},
                                     {"scheduler": lambda o, n: neural.TriangularLR(o, total_steps=n, n_cycles=3, alpha_1=0.1,
                                                                                     alpha_2=0.01)}])
def test_options(tmp_path, options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
                                torch.nn.Linear(16, 2))
    x = torch.randn(32, 1, 4, 4)
    y = (x.mean((1, 2, 3)) > 0).long()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    _, run = fit(tmp_path / "a.h5", model, loader, **options)
    assert len(run.snapshot_steps) == 3
    assert run.history.loss[-4:].mean() < run.history.loss[:4].mean()


def test_batches_that_are_mappings(tmp_path):
    x, y = data().dataset.tensors
    batches = [{"x": x[k:k + 8], "y": y[k:k + 8]} for k in range(0, 64, 8)]
    logged = []
    _, run = fit(tmp_path / "a.h5", loader=batches, forward=lambda model, batch: model(batch["x"]), val_loader=batches,
                 loss=lambda output, batch: torch.nn.functional.cross_entropy(output, batch["y"]), log=logged.append)
    assert len(run.snapshot_steps) == 3
    assert set(logged[0]) == {"epoch", "step", "lr", "loss", "val_loss"}
    with pytest.raises(InputError, match="forward"):
        fit(tmp_path / "b.h5", loader=batches)


def test_a_limit_of_time_ends_at_a_minimum(tmp_path, monkeypatch):
    now = [0.0]

    def loss(output, target):
        now[0] += 1.0
        return torch.nn.functional.cross_entropy(output, target)

    defaults = neural.Deadline.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "clock", lambda: now[0])
    _, run = fit(tmp_path / "a.h5", loader=data(batch=2), loss=loss, max_seconds=100)
    assert run.finished_early
    assert now[0] <= 100
    assert run.snapshot_steps[-1] == len(run.history.step)
    rates = run.history.learning_rate[:, 0]
    assert rates[-1] < 0.05 * rates.max()
    steps = len(run.history.step)
    _, again = fit(tmp_path / "a.h5", loader=data(batch=2), loss=loss, max_seconds=100)
    assert len(again.history.step) == steps     # it is finished


@pytest.mark.parametrize(("options", "words"), [
    ({"n_cycles": 49}, "one step a cycle"), ({"n_epochs": 0}, "n_epochs"), ({"loader": []}, "empty"),
    ({"loader": iter([1])}, "steps_per_epoch"), ({"val_loader": []}, "validation loader is empty"), ({"clip": 0}, "clip"),
    ({"amp": "fp8"}, "amp"), ({"accumulate": 0}, "accumulate"), ({"loss": "mse"}, "loss"), ({"optimizer": "SGD"}, "optimizer"),
    ({"scheduler": lambda o, n: torch.optim.lr_scheduler.StepLR(o, n)}, "scheduler"),
    ({"scheduler": lambda o, n: neural.CyclicCosineLR(o, total_steps=n, n_cycles=5)}, "3 cycles"),
    ({"model": torch.nn.ReLU(), "optimizer": functools.partial(torch.optim.SGD, lr=1)}, "no parameters"),
])
def test_what_does_not_fit_is_said_before_anything_is_made(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        fit(tmp_path / "a.h5", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_explodes_stops_the_training(tmp_path):
    calls = []

    def loss(output, target):
        calls.append(1)
        return torch.nn.functional.cross_entropy(output, target) * (1 if len(calls) < 20 else float("nan"))

    with pytest.raises(InputError, match="loss is nan at step 24"):
        fit(tmp_path / "a.h5", loss=loss)
    assert len(ek.open(tmp_path / "a.h5")) == 1


def test_an_empty_stream_for_validation(tmp_path):
    with pytest.raises(InputError, match="validation loader is empty"):
        fit(tmp_path / "a.h5", val_loader=iter(()))


@pytest.mark.parametrize("where", ["training", "validation"])
def test_labels_out_of_range_are_told_and_the_store_stays_sound(tmp_path, where):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    good, bad = (torch.randn(6, 3), torch.tensor([0, 1] * 3)), (torch.randn(6, 3), torch.tensor([0, 1, 2, 7, -100, 1]))
    path = tmp_path / "weights.h5"
    with pytest.raises(InputError, match="labels are whole numbers 0 to 1, as the model has 2 outputs; got 0 to 7"):
        neural.fit(model, torch.optim.SGD(model.parameters(), lr=0.1), [good, bad if where == "training" else good],
                   torch.nn.CrossEntropyLoss(), n_cycles=2, n_epochs=2, store=path,
                   val_loader=[bad] if where == "validation" else None)
    assert len(ek.open(path, check=True)) == (1 if where == "validation" else 0)
    model = torch.nn.Linear(4, 2)       # what fails for another reason is said as it is
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        neural.fit(model, torch.optim.SGD(model.parameters(), lr=0.1), [good], torch.nn.CrossEntropyLoss(), n_cycles=1,
                   n_epochs=1, store=tmp_path / "other.h5")


def test_the_target_of_longer_batches_and_of_mappings_is_chosen(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    y = (x[:, 0] > 0).long()
    seen = []

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, x, mask):
            return self.layer(x * mask)

    def loss(output, target):
        seen.append(target)
        return torch.nn.functional.cross_entropy(output, target)

    def fitted(name, batch, **options):
        model = Two() if len(batch) == 3 and options.get("two", False) else torch.nn.Linear(4, 2)
        options.pop("two", None)
        return neural.fit(model, functools.partial(torch.optim.SGD, lr=0.1), [batch], loss, n_cycles=1, n_epochs=1,
                          store=tmp_path / f"{name}.h5", val_loader=[batch], progress=False, **options)

    weights = torch.ones(20)
    for name in ("a", "b"):
        with pytest.raises(InputError, match="target=lambda"):
            fitted(name, (x, y, weights), **({"forward": lambda model, batch: model(batch[0])} if name == "b" else {}))
    for name, batch, options in [
            ("c", (x, y, weights), {"target": lambda batch: batch[1]}),
            ("d", (x, weights[:, None], y), {"target": lambda batch: batch[2], "two": True}),
            ("e", {"input": x, "kind": y}, {"target": lambda batch: batch["kind"]})]:
        seen.clear()
        run = fitted(name, batch, **options).history.logged
        assert all(torch.equal(one, y) for one in seen)
        assert len(seen) == 2
        assert "val_accuracy" in run
