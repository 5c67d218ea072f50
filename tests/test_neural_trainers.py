"""Snapshots in trainings by Lightning and by the Trainer of transformers."""

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError, StoreError  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore")]      # those of the trainers


def items(n=40):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 5, generator=generator)
    return x, (x.sum(1) > 0).long()


def weights_after(steps, kind=torch.optim.SGD, order=None):
    """The plain loop on the same batches: weights after each update."""
    model = net()
    optimizer = kind(model.parameters(), lr=0.1)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=steps, n_cycles=3)
    x, y = items()
    kept = []
    for t in range(steps):
        rows = slice(8 * (t % 5), 8 * (t % 5) + 8)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        kept.append(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy())
        schedule.step()
    return kept


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


# -- Lightning -----------------------------------------------------------------------------------------------------

def lightning_parts(interval="step", ours=True):
    lightning = pytest.importorskip("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = net()

        def training_step(self, batch, index):
            x, y = batch
            return torch.nn.functional.cross_entropy(self.model(x), y)

        def validation_step(self, batch, index):
            x, y = batch
            self.log("val_loss", torch.nn.functional.cross_entropy(self.model(x), y))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = neural.CyclicCosineLR(optimizer, total_steps=30, n_cycles=3) if ours else (
                torch.optim.lr_scheduler.StepLR(optimizer, 5))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    return lightning, Module


def lightning_fit(store, folder, epochs=6, ckpt=None, module="model", callbacks=(), **parts):
    lightning, module_of = lightning_parts(**parts)
    data = torch.utils.data.TensorDataset(*items())
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, num_sanity_val_steps=1,
        callbacks=[neural.lightning.SnapshotCallback(store, module=module),
                   lightning.callbacks.ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=5), *callbacks])
    one = module_of()
    trainer.fit(one, torch.utils.data.DataLoader(data, batch_size=8), torch.utils.data.DataLoader(data, batch_size=40),
                ckpt_path=ckpt)
    return one, trainer


def test_lightning_captures_and_resumes_from_its_checkpoint(tmp_path):
    lightning_fit(tmp_path / "a.h5", tmp_path / "a")
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["parameters"].times, [10, 20, 30])
    np.testing.assert_allclose(store["parameters"][:], [weights_after(30)[t] for t in (9, 19, 29)], rtol=1e-6)
    kept = neural.history(store)
    assert np.isfinite(kept.loss).all()
    assert len(kept.loss) == 30
    assert len(kept.logged["val_loss"]) == 6
    assert kept.learning_rate[10, 0] == pytest.approx(0.1)
    assert len(neural.Ensemble.from_store(tmp_path / "a.h5", net())) == 3

    lightning, _ = lightning_parts()

    class Dies(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 24:
                raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        lightning_fit(tmp_path / "b.h5", tmp_path / "b", callbacks=[Dies()])
    assert len(ek.open(tmp_path / "b.h5")) == 2
    with pytest.raises(StoreError, match="begins anew"):
        lightning_fit(tmp_path / "b.h5", tmp_path / "c")
    (checkpoint,) = (tmp_path / "b").glob("*step=15*.ckpt")
    lightning_fit(tmp_path / "b.h5", tmp_path / "b", ckpt=checkpoint)
    again = ek.open(tmp_path / "b.h5")
    np.testing.assert_array_equal(again["parameters"].times, [10, 20, 30])
    np.testing.assert_array_equal(again["content_hash"][:], store["content_hash"][:])
    np.testing.assert_array_equal(neural.history(again).loss, kept.loss)


@pytest.mark.parametrize("make", [
    lambda o, n: neural.CyclicCosineLR(o, total_steps=n, n_cycles=3, warmup_steps=5, alphas=[1, 2, 1]),
    lambda o, n: neural.CyclicCosineLR(o, total_steps=n, n_cycles=3, T_mult=4),
    lambda o, n: neural.TriangularLR(o, total_steps=n, n_cycles=3, alpha_1=0.1, alpha_2=0.01, start_step=5),
    lambda o, n: neural.SWAConstantLR(o, total_steps=n, n_cycles=3, swa_lr=0.05, start_step=5)])
def test_a_fast_dev_run_of_lightning_tries_everything_and_leaves_nothing(tmp_path, make):
    lightning, module_of = lightning_parts()

    class Module(module_of):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = make(optimizer, self.trainer.estimated_stepping_batches)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def fit(**options):
        trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                                    default_root_dir=tmp_path, enable_checkpointing=False, callbacks=[callback], **options)
        trainer.fit(Module(), loader, loader)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*items()), batch_size=8)
    callback = neural.lightning.SnapshotCallback(tmp_path / "a.h5", module="model")
    for fast in (True, 3):
        fit(fast_dev_run=fast)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="one step a cycle"):
        make(torch.optim.SGD(net().parameters(), lr=0.1), 2)
    fit(max_epochs=6)
    assert len(ek.open(tmp_path / "a.h5")) == 3


def test_lightning_with_two_optimizers(tmp_path):
    lightning, module_of = lightning_parts()
    kept = []

    class Module(module_of):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.zero_grad()
            self.manual_backward(loss)
            first, second = self.optimizers()
            first.step()
            self.lr_schedulers().step()
            second.step()
            kept.append(torch.cat([p.detach().flatten() for p in self.model.parameters()]).numpy())
            return loss

        def configure_optimizers(self):
            parts = [torch.optim.SGD(self.model[k].parameters(), lr=0.1) for k in (0, 2)]
            schedule = neural.CyclicCosineLR(parts[0], total_steps=self.trainer.max_epochs * 5, n_cycles=2)
            return parts, [{"scheduler": schedule, "interval": "step"}]

    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
                                enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
                                callbacks=[neural.lightning.SnapshotCallback(tmp_path / "a.h5", module="model")])
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*items()), batch_size=8))
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["parameters"].times, [5, 10])
    np.testing.assert_array_equal(store["parameters"][:], [kept[4], kept[9]])


def test_what_lightning_gets_wrong_is_said(tmp_path):
    for options, words in [({"interval": "epoch"}, "interval 'epoch'"), ({"ours": False}, "no schedule of ensemblekit"),
                           ({"module": "training"}, "names no torch module")]:
        with pytest.raises(InputError, match=words):
            lightning_fit(tmp_path / "a.h5", tmp_path, **options)
    assert not (tmp_path / "a.h5").exists()

    class FSDPStrategy:
        pass

    callback = neural.lightning.SnapshotCallback(tmp_path / "a.h5")
    with pytest.raises(InputError, match="FSDPStrategy"):
        callback.setup(type("Trainer", (), {"strategy": FSDPStrategy()})(), None, "fit")


# -- transformers --------------------------------------------------------------------------------------------------

class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x=None, labels=None):
        logits = self.net(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def huggingface_fit(store, folder, resume=None, stop=None, **options):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    x, y = items()
    data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=30, n_cycles=3) if not options.pop("foreign", False) else (
        torch.optim.lr_scheduler.StepLR(optimizer, 5))

    class Dies(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == stop:
                raise OSError("killed")

    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=6, per_device_train_batch_size=8, use_cpu=True, save_steps=7, report_to=[],
        disable_tqdm=True, logging_steps=1000, max_grad_norm=0.0, train_sampling_strategy="sequential", **options)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, schedule),
                                   callbacks=[neural.huggingface.SnapshotCallback(store), Dies()])
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_huggingface_captures_and_resumes_from_its_checkpoint(tmp_path):
    huggingface_fit(tmp_path / "a.h5", tmp_path / "a")
    store = ek.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(store["parameters"].times, [10, 20, 30])
    np.testing.assert_allclose(store["parameters"][:], [weights_after(30)[t] for t in (9, 19, 29)], rtol=1e-5)
    assert len(neural.history(store).step) == 30
    with pytest.raises(OSError, match="killed"):
        huggingface_fit(tmp_path / "b.h5", tmp_path / "b", stop=24)
    with pytest.raises(StoreError, match="begins anew"):
        huggingface_fit(tmp_path / "b.h5", tmp_path / "c")
    huggingface_fit(tmp_path / "b.h5", tmp_path / "b", resume=str(tmp_path / "b" / "checkpoint-14"))
    again = ek.open(tmp_path / "b.h5")
    np.testing.assert_array_equal(again["parameters"].times, [10, 20, 30])
    np.testing.assert_array_equal(again["content_hash"][:], store["content_hash"][:])
    with pytest.raises(InputError, match="StepLR"):
        huggingface_fit(tmp_path / "d.h5", tmp_path / "d", foreign=True)
