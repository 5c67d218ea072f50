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
    made = torch.Generator().manual_seed(3)
    x = torch.randn(n, 5, generator=made)
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
