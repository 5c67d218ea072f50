"""Snapshots in a training by Lightning, under either of its names."""

from __future__ import annotations

import os
import sys
import tempfile
from contextvars import Token
from typing import TYPE_CHECKING, Any

import torch

from ensemblekit.errors import InputError, MissingExtraError
from ensemblekit.neural.parameters import Select
from ensemblekit.neural.recorder import Recorder
from ensemblekit.neural.schedule import CycleLR
from ensemblekit.neural.schedule_shapes import shortened
from ensemblekit.neural.schedules_of import bare_schedule, unwrapped_optimizer

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


def _base() -> type:
    """Callback of the package the program uses; of the one that is installed where it has imported neither yet."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda one: one not in sys.modules):
        try:
            return __import__(f"{name}.callbacks", fromlist=["Callback"]).Callback
        except ImportError:
            continue
    raise MissingExtraError("lightning", "lightning")


class SnapshotCallback(_base()):    # type: ignore[misc]
    """Takes a snapshot at the end of each cycle of one of our schedules.

    ::

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
            schedule = neural.CyclicCosineLR(optimizer, total_steps=self.trainer.estimated_stepping_batches, n_cycles=5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        trainer = lightning.Trainer(callbacks=[neural.lightning.SnapshotCallback("weights.h5")])

    Resuming is Lightning's (``trainer.fit(..., ckpt_path=...)``): the store is cut back to the snapshots there were when
    the checkpoint was written. Loss and rate of every step, and what validation logs, go to the history.

    Under ``fast_dev_run`` everything runs as in a real training, into a store that is thrown away, and schedules made meanwhile
    are cut to the few steps there are; nothing is left in the way of the real training.
    """

    def __init__(self, store: str | os.PathLike[str], *, module: str | None = None, parameters: Select = "all",
                 **options: Any):
        """
        Arguments:
            store: path of the store to make, or of that of the run to go on with.
            module: name of the attribute of the LightningModule that is the network ("model"), so that snapshots load
                into the bare network; by default the LightningModule as a whole.
            parameters: see :class:`ensemblekit.neural.Recorder`; options too.
        """
        super().__init__()
        self.store, self.module, self.parameters, self.options = os.fspath(store), module, parameters, options
        self.recorder: Recorder | None = None
        self._updates: int | None = None
        self._trial: tuple[tempfile.TemporaryDirectory[str], Token[bool]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies under which no process holds the weights whole."""
        if getattr(trainer, "fast_dev_run", False) and self._trial is None:
            self._trial = tempfile.TemporaryDirectory(prefix="ensemblekit-"), shortened.set(True)
        name = type(trainer.strategy).__name__
        for word in ("FSDP", "DeepSpeed", "ModelParallel"):
            if word in name:
                raise InputError(f"{name} shards the weights over processes, and this callback needs them whole: train with "
                                 "strategy=\"ddp\", or in a loop of your own with fully_shard, whose model a Recorder takes")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the recorder: optimizer, schedule and checkpoint are in place now.

        Raises InputError where there is no schedule of ours, or it is stepped once an epoch.
        """
        schedule = _schedule_of(trainer)
        model = pl_module if self.module is None else getattr(pl_module, self.module)
        if not isinstance(model, torch.nn.Module):
            raise InputError(f"module={self.module!r} names no torch module of {type(pl_module).__name__}")
        plugin = getattr(trainer, "precision_plugin", None)
        optimizers = [unwrapped_optimizer(one) for one in getattr(trainer, "optimizers", None) or [schedule.optimizer]]
        store = self.store if self._trial is None else os.path.join(self._trial[0].name, "trial.h5")
        self.recorder = Recorder(store, model, optimizers, schedule, getattr(plugin, "scaler", None),
                                 self.parameters, states=False, **self.options)
        try:
            self.recorder.resume_at(trainer.global_step if self._updates is None else self._updates)
        except BaseException:
            self._close()
            raise

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object,
                           batch_idx: int) -> None:
        """Keeps the loss and the rate of the step."""
        if self.recorder is not None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self.recorder.step(loss if isinstance(loss, torch.Tensor) else None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps what was logged."""
        if self.recorder is not None and not trainer.sanity_checking:
            self.recorder.log(**{name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last snapshot, if it is still due."""
        if self.recorder is not None:
            recorder, self.recorder = self.recorder, None
            self._updates = recorder.updates if self._trial is None else None
            recorder.end(as_planned=not trainer.should_stop)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets go of the store."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the store."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint: how many optimizer steps were really made."""
        return {"updates": self.recorder.updates if self.recorder is not None else self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._updates = state_dict["updates"]

    def _close(self) -> None:
        if self.recorder is not None:
            recorder, self.recorder = self.recorder, None
            recorder.close()
        if self._trial is not None:
            (folder, token), self._trial = self._trial, None
            shortened.reset(token)
            folder.cleanup()


def _schedule_of(trainer: Trainer) -> CycleLR:
    for config in trainer.lr_scheduler_configs:
        try:
            schedule = bare_schedule(config.scheduler)
        except InputError:
            continue
        if config.interval != "step":
            raise InputError(f"the schedule is stepped at interval {config.interval!r}, its cycles are counted in optimizer "
                             'steps: return {"scheduler": schedule, "interval": "step"} as "lr_scheduler" from '
                             "configure_optimizers")
        return schedule
    raise InputError("no schedule of ensemblekit.neural among the trainer's: return a CyclicCosineLR (TriangularLR, "
                     "SWAConstantLR) from configure_optimizers, at interval \"step\"")
