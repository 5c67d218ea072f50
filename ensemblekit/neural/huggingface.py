"""Snapshots in a training by the Trainer of HuggingFace transformers."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemblekit.errors import InputError, MissingExtraError, StoreError, one_line
from ensemblekit.files import write_text
from ensemblekit.neural.parameters import Select
from ensemblekit.neural.recorder import Recorder
from ensemblekit.neural.resume import writing
from ensemblekit.neural.schedules_of import bare_schedule

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("transformers", "huggingface") from error

STEPS = "ensemblekit.json"
_open: dict[str, weakref.ref[Recorder]] = {}
"""Who records into which store: the Trainer tells nobody when a training fails, so the next one closes its recorder."""


class SnapshotCallback(TrainerCallback):
    """Takes a snapshot at the end of each cycle of one of our schedules.

    ::

        schedule = neural.CyclicCosineLR(optimizer, total_steps=steps, n_cycles=5)
        trainer = Trainer(model, args, train_dataset=data, optimizers=(optimizer, schedule),
                          callbacks=[neural.huggingface.SnapshotCallback("weights.h5")])

    Resuming is the Trainer's (``resume_from_checkpoint``): the store is cut back to the snapshots there were when the
    checkpoint was written. The rate of every step and what evaluation finds go to the history.
    """

    def __init__(self, store: str | os.PathLike[str], *, parameters: Select = "all", **options: Any):
        """
        Arguments:
            store: path of the store to make, or of that of the run to go on with.
            parameters: see :class:`ensemblekit.neural.Recorder`; options too.
        """
        self.store, self.parameters, self.options = os.fspath(store), parameters, options
        self.recorder: Recorder | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Makes the recorder. Raises InputError where the schedule is none of ours, or the weights are sharded."""
        for name, word in (("fsdp", "FSDP"), ("deepspeed", "DeepSpeed")):
            if getattr(args, name, None):
                raise InputError(f"{word} shards the weights over processes, and this callback needs them whole: train without "
                                 f"{name}=, or in a loop of your own with fully_shard, whose model a Recorder takes")
        self._close()
        path = os.path.abspath(self.store)
        before = _open[path]() if path in _open else None
        if before is not None:
            before.close()
        self.recorder = Recorder(self.store, kwargs["model"], kwargs["optimizer"], bare_schedule(kwargs["lr_scheduler"]),
                                 parameters=self.parameters, states=False, **self.options)
        _open[path] = weakref.ref(self.recorder)
        kept = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / STEPS
        updates = state.global_step
        if updates and kept.exists():       # steps that a GradScaler skipped are in the Trainer's count
            try:
                updates = int(json.loads(kept.read_text())["updates"])
            except (OSError, LookupError, TypeError, ValueError) as error:
                raise StoreError(f"{kept} does not say how many steps were made ({one_line(error)}); delete it where no "
                                 "GradScaler was in use, else resume from another checkpoint") from error
        try:
            self.recorder.resume_at(updates)
        except BaseException:
            self._close()
            raise

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keeps the rate of the step."""
        if self.recorder is not None:
            self.recorder.step()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                    metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keeps what evaluation found."""
        if self.recorder is not None and metrics:
            self.recorder.log(**{name: value for name, value in metrics.items() if isinstance(value, int | float)})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the number of optimizer steps really made beside the Trainer's checkpoint."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if self.recorder is not None and self.recorder.store is not None and folder.is_dir():
            with writing(folder / STEPS):
                write_text(folder / STEPS, json.dumps({"updates": self.recorder.updates}))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The last snapshot, if it is still due."""
        if self.recorder is not None:
            recorder, self.recorder = self.recorder, None
            recorder.end(as_planned=state.global_step >= state.max_steps)

    def _close(self) -> None:
        if self.recorder is not None:
            recorder, self.recorder = self.recorder, None
            recorder.close()
