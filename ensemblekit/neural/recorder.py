"""Snapshots of a model's weights while it trains, and a run that goes on where it was killed.

The store holds one snapshot a cycle on its main clock: the fields of :mod:`ensemblekit.neural.parameters` ("parameters",
"buffers", "counters") and "content_hash", whose time is the optimizer step after which it was taken. The history (fields
"loss" and "learning_rate", one row an optimizer step) runs on the clock "steps"; what `Recorder.log` is given, and all
that a killed run needs to go on, stands in ``<store>.d/training/``. :func:`ensemblekit.neural.history` reads it back.

Longer than most files here: what watches the optimizers, the place in the loop, the history and the run's store are files
of their own; what is left is the one order in which a step, a snapshot and a state follow each other.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ensemblekit.errors import ClosedError, EnsemblekitError, InputError, StoreError, one_line
from ensemblekit.neural import resume as saved
from ensemblekit.neural import sharded
from ensemblekit.neural.content_hash import HASH, digest
from ensemblekit.neural.history import CLOCK, LOSS
from ensemblekit.neural.loop_position import B, LoopPosition
from ensemblekit.neural.optimizers import check_optimizers, optimizers_of
from ensemblekit.neural.parameters import Manifest, Select, pack, selector, to_vectors
from ensemblekit.neural.processes import FailureWatch, agreed, from_first, rank_and_world
from ensemblekit.neural.recorded_run import capacity_of, check_run, create_run, opened_by_first, steps_of_snapshots
from ensemblekit.neural.remainder import Remainder, check_left_out
from ensemblekit.neural.ring import CudaTransfer, Ring
from ensemblekit.neural.schedule import CycleLR
from ensemblekit.neural.schedules_of import schedules_of
from ensemblekit.neural.step_history import StepHistory, mean_loss
from ensemblekit.neural.step_watch import StepWatch
from ensemblekit.store.store import Store

SHARE = 0.002               # of the time that saving states may take where save_every is not given
logger = logging.getLogger("ensemblekit")


class Recorder:
    """Takes a snapshot at the end of each cycle of the learning rate, and lets a killed run go on where it stood.

    ::

        with neural.Recorder("weights.h5", model, optimizer, scheduler) as rec:
            for epoch in rec.epochs(n):
                for x, y in rec.batches(loader):
                    ...
                    optimizer.step(); rec.step(loss); scheduler.step()

    The same script, run again after it was killed, finds the store: weights, optimizer, schedule, random numbers and
    the place in the epoch are put back, and `epochs` and `batches` go on from there; on a CPU with the same bits as if
    nothing had happened. A loop of your own without `epochs` and `batches` is recorded too, but does not resume.

    A snapshot belongs to the last optimizer step before the schedule crosses the end of a cycle, however the schedule is
    stepped: after `step` or before it (Lightning), several times an update (Accelerate on several processes), once an
    epoch. Steps that a GradScaler skips keep the phase of the schedule, if the scaler is passed.

    Beside one of torch's own schedules, or none, snapshots are taken by hand::

        with neural.Recorder("weights.h5", model, optimizer, torch_schedule) as rec:
            ...
                optimizer.step(); rec.step(loss)
            rec.capture()

    Several optimizers (of a generator and a critic, of matrices and the rest) come as a list, their schedules as another. The
    first that has a cyclic schedule, else the first, counts the updates; a snapshot is taken when all that step in an
    iteration have made their steps. Call `step` after the last of them.

    On a GPU a snapshot is copied aside and written while training goes on; elsewhere `step` returns when it is in the
    store. In a torch.distributed run process 0 writes, and every process makes a Recorder and calls it alike; random numbers
    and buffers are kept for each. A model in ``fully_shard`` (FSDP2) is gathered for a snapshot, one tensor at a time, and
    written before `step` returns. An error on one process ends all of them, with its words. FSDP1 and DeepSpeed are refused.

    Arguments:
        store: path of the store; made, or gone on with where it holds a run of the same model and settings.
        model: bare, compiled, in DataParallel or DistributedDataParallel, or spread by ``fully_shard``.
        optimizer, scheduler, scaler: those of the loop; those that Accelerate wraps too. Lists where there are several;
            `scheduler` may be one of torch's, or None for a constant rate: then see :meth:`capture`.
        parameters: those a snapshot holds: "all", "trainable" (require a gradient), or a function of (name,
            parameter). Buffers of the state dict are always held.
        resume: go on with a store that is there; False makes that an error.
        save_every: optimizer steps between two saves of the state a killed run goes on from. By default as often
            as 0.2 % of the time allow; in distributed runs at snapshots and ends of epochs.
        states: whether such states are saved at all (Lightning and HuggingFace save their own).
        also: name -> anything with state_dict and load_state_dict (weight averages, ...) that is to resume too.
        configuration: plain data of your own; another one at resume is an error that names the difference.
        durability: "disk" survives the loss of power as well.

    Raises InputError where model, schedule or settings do not fit each other or the run in the store; StoreError
    where the store is no run to go on with.
    """

    def __init__(self, store: str | os.PathLike[str], model: torch.nn.Module, optimizer: Optimizer | Sequence[Optimizer],
                 scheduler: LRScheduler | Sequence[LRScheduler] | None, scaler: torch.amp.GradScaler | None = None,
                 parameters: Select = "all", *, resume: bool = True, save_every: int | None = None,
                 states: bool = True, extra_state: Mapping[str, Any] | None = None,
                 configuration: Mapping[str, Any] | None = None, durability: Literal["process", "disk"] = "process",
                 replica: str | None = None):
        _check_arguments(store, save_every, scaler)
        self.path = os.fspath(store)
        self.model = model
        self.optimizers = optimizers_of(optimizer)
        """All of them, bare."""
        self.schedules = schedules_of(scheduler, self.optimizers)
        """One an optimizer."""
        first = next((k for k, one in enumerate(self.schedules) if isinstance(one, CycleLR)), 0)
        self.optimizer, self.scheduler = self.optimizers[first], self.schedules[first]
        self._cycles = self.scheduler if isinstance(self.scheduler, CycleLR) else None
        self.scaler = scaler
        self._sharded = sharded.is_sharded(model)
        if self._sharded:
            sharded.reshard(model)
        self.manifest = Manifest.of(model, parameters, sharded=self._sharded)
        if self._sharded:
            sharded.check_sharded(model, self.manifest)
        check_optimizers(self.optimizers, model)
        for one in self.schedules if states else ():
            if not isinstance(one, CycleLR):
                saved.check_readable(one.state_dict(), one.config["kind"])
        self._remainder = Remainder(model, selector(parameters))
        self._left = self._remainder.hashes()
        self._last_digest = b""
        if not self.manifest.parameters:
            raise InputError("the model has no parameters to record")
        self.snapshot_steps: list[int] = []
        """The optimizer steps, counted from 1, after which a snapshot was taken."""
        self.resumed = False
        """Whether this run goes on where another was killed."""
        self._also = dict(extra_state or {})
        self._durability = durability
        self._save_every, self._states = save_every, states
        self._rank, self._world = rank_and_world()
        self._settings = self._settings_with(configuration or {})
        self._sidecar = saved.Sidecar(self.path, durability == "disk", mapped=self._sharded)
        self._failures: FailureWatch | None = None
        self._loop = LoopPosition(lambda: self.updates, self._due_now, self._save)
        self._seen = 0                  # updates at the last call of step
        self._watch = StepWatch(self.optimizers, self.schedules, first, scaler, iteration_begins=self._take_crossed,
                                crossed=self._crossed)
        self._captured_end, self._end_step = 0, 0       # the last end that has its snapshot, and the update that was after
        self._crossed_end: int | None = None    # its snapshot waits for the other optimizers
        self._by_hand: list[int] = []
        self._history = StepHistory()
        self._last_loss: torch.Tensor | float | None = None
        self._saved_at, self._saved_updates, self._cost = time.perf_counter(), 0, 0.0
        self._due = False
        self._ring: Ring | None = None
        self._closed = False
        self.store: Store | None = None
        self._store_lock = threading.Lock()
        self._stopped = self._finished = False
        self._begin(resume, replica)

    def _begin(self, resume: bool, replica: str | None) -> None:
        """Open the store and watch the loop, from where a killed run stood."""
        try:
            state = opened_by_first(lambda: self._open(resume, replica), lambda: self._sidecar.read("state.pt"))
            self.snapshot_steps = from_first(self.snapshot_steps)
            self._watch.begin()
            if state is not None:
                self._go_on_from(state)
            if self.store is not None:
                weakref.finalize(self, self.store.close)    # lets go of the lock where a failed training forgets us
                self._start_ring()
        except BaseException:
            self.close()
            raise

    @property
    def captured(self) -> list[int]:
        """``snapshot_steps`` by its earlier name, with a DeprecationWarning."""
        warnings.warn("Recorder.captured is Recorder.snapshot_steps now", DeprecationWarning, stacklevel=2)
        return self.snapshot_steps

    @property
    def updates(self) -> int:
        """Optimizer steps made, those that a GradScaler skipped not counted."""
        return self._watch.updates

    @property
    def is_writer(self) -> bool:
        """Whether this process writes: the only one, or the first of a distributed run."""
        return self._rank == 0

    def _settings_with(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """What a resumed run must have too, as JSON gives it back."""
        return dict(json.loads(json.dumps({
            "schedule": saved.one_or_list([one.config for one in self.schedules]),
            "optimizer": saved.one_or_list([
                saved.settings_of(one, [schedule.base_rate(g) for g in range(len(schedule.base_lrs))])
                for one, schedule in zip(self.optimizers, self.schedules, strict=True)]),
            "processes": self._world, "configuration": dict(configuration),
            **({"sharding": "fully_shard"} if self._sharded else {})})))

    # -- the loop --------------------------------------------------------------------------------------------------

    def epochs(self, n: int) -> Iterator[int]:
        """The numbers of the epochs that are left of n, from the one a killed run stood in."""
        return self._loop.epochs(n)

    def batches(self, loader: Iterable[B]) -> Iterator[B]:
        """The batches of a loader, without those that a killed run had trained on.

        Samplers with `set_epoch` are told the epoch. Raises InputError where the loader has another number of batches
        than in the first epoch, as the schedule was made for that number of steps.
        """
        return self._loop.batches(loader, self._check_ring, self._mark_begun)

    def _check_ring(self) -> None:
        if self._ring is not None and self._ring.error is not None:
            self._ring.check()

    def _mark_begun(self) -> None:
        """Say in the folder that the loop is one that can be gone on with."""
        if self._rank == 0 and self._states and self.store is not None and not self.resumed:
            self._sidecar.write_text("begun", self.store.run)

    def step(self, loss: torch.Tensor | ArrayLike | None = None) -> bool:
        """Call after optimizer.step(); whether a snapshot was taken.

        loss: that of the step, a tensor or a number, for the history. It is not waited for: on a GPU it is read when
        some hundreds have gathered.

        Raises InputError where a snapshot was due and its weights, or its loss, are not finite. Those before it stay.
        """
        taken = self._take_crossed()
        if self.updates == self._seen:      # part of an accumulated gradient, or skipped by the scaler
            return taken
        self._seen = self.updates
        phase = self._watch.phase
        number = None if loss is None else mean_loss(loss)
        if number is not None:
            self._last_loss = number
        if self._finished:          # a run that ended is left alone
            return False
        rates = self._watch.rates
        if self._history.add(self.updates, number, rates[0] if len(rates) == 1 else [rate for one in rates for rate in one]):
            self._flush()
        # An end is known before it is crossed where the schedule moves by one step an update, and after this call.
        schedule = self._cycles
        if schedule is not None and phase + 1 == schedule.next_end and phase == schedule.last_epoch and (
                not self._watch.crossing_only):
            return self._capture(phase + 1)
        return taken

    def capture(self) -> bool:
        """Take a snapshot of the weights as they are now, wherever a schedule stands; whether one was taken.

        For schedules that know no cycles (torch's own, a constant rate), or besides the snapshots of one that does. Call it
        after `step`; after one update there is one snapshot, and nothing is taken of a finished run. In a distributed run
        every process calls it.

        Raises InputError where the weights, or the last loss, are not finite; ClosedError after `close`.
        """
        if self._closed:
            raise ClosedError(f"the recorder of {self.path} is closed: capture() belongs into its with block")
        self._take_crossed()
        if self._finished or (self.snapshot_steps and self.snapshot_steps[-1] == self.updates):
            return False
        self._snapshot()
        self._by_hand.append(self.updates)
        return True

    @property
    def batches_done(self) -> int:
        """Batches of the epoch now begun that a killed run trained on already; 0 in every later one."""
        return self._loop.batches_done

    def stop(self) -> None:
        """The training ends here by decision (a deadline, early stopping): leaving the block marks the run as finished,
        and the same script run again does not go on."""
        self._stopped = True

    def log(self, **scores: float) -> None:
        """Keep scores of this epoch (validation loss, ...) in the history."""
        if self._rank == 0:
            self._sidecar.log({"step": self.updates, "epoch": self._loop.place.epoch,
                               **{name: float(value) for name, value in scores.items()}})

    # -- snapshots -------------------------------------------------------------------------------------------------

    def _crossed(self, end: int) -> None:
        """The schedule is about to move over an end of a cycle."""
        if self.updates and not self._closed and not self._finished:
            self._take_crossed()
            if len(self.optimizers) == 1:
                self._capture(end)
            else:               # the others may still have to make their steps
                self._crossed_end = end

    def _take_crossed(self) -> bool:
        """The snapshot of an end that was crossed, now that all optimizers have made their steps."""
        end, self._crossed_end = self._crossed_end, None
        return end is not None and self._capture(end)

    def _capture(self, end: int) -> bool:
        """Take the snapshot of an end, unless that was done; again where another update came after it."""
        if end == self._captured_end:
            if self.snapshot_steps and self._end_step == self.updates:
                return False
            self._watch.crossing_only = True
            if self.snapshot_steps and self.snapshot_steps[-1] == self._end_step:
                self._undo()
        self._captured_end, self._end_step = end, self.updates
        if self._by_hand and self.snapshot_steps and self.snapshot_steps[-1] == self._by_hand[-1] == self.updates:
            self._by_hand.pop()
            return False        # these weights were taken by hand
        self._snapshot()
        return True

    def _snapshot(self) -> None:
        """One more snapshot, after the last update; of all processes or of none."""
        if self._sharded:
            sharded.reshard(self.model)
        left = self._remainder.hashes()
        agreed(lambda: self._check_snapshot(left), at=self.updates)
        if self._sharded:
            vectors = sharded.vectors_of(self.model, self.manifest)
            agreed(lambda: self._write(vectors, self.updates) if self._rank == 0 else None)
        elif self._on_gpu:
            if self._ring is not None:      # its errors come up at the next check
                self._ring.put(lambda out: pack(self.model, self.manifest, out), self.updates)
        else:
            agreed(lambda: self._write(to_vectors(self.model, self.manifest), self.updates) if self._rank == 0 else None)
        self.snapshot_steps.append(self.updates)
        self._due = True

    def _check_snapshot(self, left: Mapping[str, str]) -> None:
        """Raise InputError where this process sees that the snapshot due now must not be taken."""
        loss = self._last_loss
        self._check_left(left)
        self._check_ring()
        if loss is not None and not np.isfinite(float(loss)):
            raise InputError(f"the loss of step {self.updates} is {float(loss)}: the snapshot due there was refused; "
                             f"the {len(self.snapshot_steps)} before it stay. Lower the rate, or clip gradients")

    def _undo(self) -> None:
        self.snapshot_steps.pop()
        if self.store is not None:
            if self._ring is not None:
                self._ring.drain()
            self.store.truncate(len(self.snapshot_steps))

    def _write(self, vectors: dict[str, np.ndarray], step: int) -> None:
        """One snapshot into the store; in a run on a GPU the writer's thread comes here."""
        assert self.store is not None
        bad = [name for name, vector in vectors.items() if vector.dtype.kind == "f" and not np.isfinite(vector).all()]
        if bad:
            raise InputError(f"the weights after step {step} are not finite: {', '.join(self._not_finite(vectors))}. The "
                             "snapshot was refused; those before it stay. Lower the rate, or clip gradients")
        checksum = digest(vectors)
        if checksum == self._last_digest:
            logger.warning("the snapshot after step %d holds the same weights as the one before it: does the optimizer train "
                           "this model?", step)
        self._last_digest = checksum
        with self._store_lock:
            self.store.append({**vectors, HASH: np.frombuffer(checksum, np.uint8)}, time=float(step))

    def _check_left(self, now: Mapping[str, str]) -> None:
        """Raise InputError where what snapshots do not hold began to train, or is no longer what it was."""
        changed = [name for name in {**self._left, **now} if self._left.get(name) != now.get(name)]
        if changed:
            raise InputError(f"{', '.join(changed[:3])} changed or began to train after the recorder was made, and snapshots "
                             "do not hold it: make a new recorder with another store after unfreezing, record "
                             'parameters="all", or register extra states as buffers')

    def _not_finite(self, vectors: Mapping[str, np.ndarray], most: int = 3) -> list[str]:
        names = []
        for kind in ("parameters", "buffers"):
            at = 0
            for entry in getattr(self.manifest, kind):
                if kind in vectors and not np.isfinite(vectors[kind][at:at + entry.size]).all():
                    names.append(entry.name)
                at += entry.size
        return names[:most] + ([f"and {len(names) - most} more"] if len(names) > most else [])

    # -- history ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._history.write(self.store, self._store_lock)

    # -- states ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the recorder itself needs to go on: place, random numbers, count of steps; for checkpoints of your own,
        beside those of model, optimizer and schedule. Call it at the end of the loop's body, or between epochs."""
        return {"updates": self.updates, **self._loop.state_dict(), "captured": list(self.snapshot_steps),
                "captured_end": self._captured_end, "end_step": self._end_step, "by_hand": list(self._by_hand),
                "crossing_only": self._watch.crossing_only,
                "also": {name: one.state_dict() for name, one in self._also.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`; the store is cut back to the snapshots there were then."""
        self._watch.updates = self._seen = state["updates"]
        self._loop.load_state_dict(state)
        self._watch.crossing_only, self._captured_end = state["crossing_only"], state["captured_end"]
        self._by_hand = list(state.get("by_hand", []))
        self._end_step = state.get("end_step", state["captured"][-1] if state["captured"] else 0)
        for name, one in self._also.items():
            if name not in state["also"]:
                raise InputError(f"the run in the store kept no state of {name!r}")
            one.load_state_dict(state["also"][name])
        self.rewind(state["updates"], state["epoch"])
        if self._rank:
            self.snapshot_steps = list(state["captured"])

    def rewind(self, updates: int, epoch: int | None = None) -> None:
        """Cut the store back to what there was after so many optimizer steps (and before an epoch, for what was logged),
        to go on from a checkpoint of then."""
        self._watch.updates = self._seen = updates
        self.snapshot_steps = [step for step in self.snapshot_steps if step <= updates]
        self._by_hand = [step for step in self._by_hand if step <= updates]
        if self.store is None:
            return
        if self._ring is not None:
            self._ring.drain()
        self._history.clear()
        with self._store_lock:
            times, steps = self.store["parameters"].times, self.store[LOSS].steps
            keep = {"main": int((np.asarray(times) <= updates).sum()) if len(self.store) else 0,
                    CLOCK: int((steps <= updates).sum())}
            self.store.truncate(keep)
            self.snapshot_steps = steps_of_snapshots(self.store)
        entries = self._sidecar.logged()
        kept = [entry for entry in entries if entry["step"] <= updates and (epoch is None or entry["epoch"] < epoch)]
        if len(kept) < len(entries):
            self._sidecar.write_text("log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))

    def resume_at(self, updates: int) -> None:
        """Begin to record a run that others resume: cut the store back to what there was after so many optimizer steps,
        with the schedule where it stands now. For callbacks of trainers that keep checkpoints of their own.

        Raises StoreError where the run begins anew and the store holds snapshots.
        """
        if not updates and self.snapshot_steps:
            raise StoreError(f"{self.path} holds {len(self.snapshot_steps)} snapshots of another run, and this one begins "
                             "anew: resume it from its checkpoint, or name another file")
        self.rewind(updates)
        ends = [] if self._cycles is None else self._cycles.ends
        self._captured_end = max((end for end in ends if end <= self.scheduler.last_epoch), default=0)
        self._end_step = self.snapshot_steps[-1] if self.snapshot_steps else 0

    def _due_now(self, end_of_epoch: bool) -> bool:
        if not self._states:
            return False
        if self._save_every is not None:
            return self.updates - self._saved_updates >= self._save_every
        if self._world > 1:     # every process must come to the same answer: no clock
            return end_of_epoch or self._due
        return time.perf_counter() - self._saved_at > self._patience()

    def _patience(self) -> float:
        """Seconds between two states: their cost over the share of the time they may take."""
        if not self._cost:      # nothing saved yet: a guess from the size
            nbytes = sum(one.nbytes for one in saved.model_state(self.model).values())
            self._cost = 1e-2 + 3 * nbytes / 3e8
        return self._cost / SHARE

    def _save(self, finished: bool = False) -> None:
        """All a killed run needs, in one file; in a distributed run every process's random numbers and buffers first."""
        began = time.perf_counter()
        self._take_crossed()
        agreed(self._write_out)
        if self._sharded:
            sharded.reshard(self.model)
        own = self._loop.place.own()
        if self._world > 1:
            buffers = sharded.buffers_of(self.model)
            agreed(lambda: self._sidecar.write(f"rank{self._rank}-{self.updates}.pt", {**own, "buffers": buffers}))
        model = saved.model_state(self.model)
        optimizers: list[dict[str, Any]] = [
            sharded.optimizer_state(one) if self._sharded else one.state_dict() for one in self.optimizers]
        if self._sharded:
            model = sharded.gathered_states(model)

        def write() -> None:
            self._sidecar.write("state.pt", {
                "format": saved.FORMAT, "run": self.store.run if self.store is not None else "", "finished": finished,
                "settings": self._settings, "recorder": {**self.state_dict(), **own},
                "model": model, "averages": saved.averages_of(self.model), "optimizer": saved.one_or_list(optimizers),
                "schedule": saved.one_or_list([one.state_dict() for one in self.schedules]),
                "scaler": None if self.scaler is None else self.scaler.state_dict()})

        agreed(lambda: write() if self._rank == 0 else None)
        if self._world > 1:
            self._sidecar.remove(f"rank{self._rank}-*.pt", keep=f"rank{self._rank}-{self.updates}.pt")
        self._saved_at = time.perf_counter()
        self._cost = max(self._saved_at - began, 1e-4)
        self._saved_updates, self._due = self.updates, False

    def _write_out(self) -> None:
        """Have what is on its way in the store."""
        if self._ring is not None:
            self._ring.drain()
        self._flush()

    def _go_on_from(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`_save` wrote. Raises StoreError where the file holds something else."""
        try:
            self._load(state)
        except EnsemblekitError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise StoreError(f"{self._sidecar.folder / 'state.pt'} is not what a run of these settings saves "
                             f"({type(error).__name__}: {one_line(error)}); {saved.ANEW}") from error

    def _load(self, state: dict[str, Any]) -> None:
        saved.load_model(self.model, state["model"])
        saved.load_averages(self.model, state.get("averages", {}))
        self._left = self._remainder.hashes()
        if self.store is not None:
            check_left_out(self.store.provenance.get("left_out", {}), self.model)
        for optimizer, held in zip(self.optimizers, saved.as_list(state["optimizer"]), strict=True):
            saved.load_optimizer(optimizer, sharded.spread_optimizer_state(optimizer, held) if self._sharded else held)
        for schedule, held in zip(self.schedules, saved.as_list(state["schedule"]), strict=True):
            schedule.load_state_dict(held)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        recorder = dict(state["recorder"])
        if self._world > 1:
            own = self._sidecar.read(f"rank{self._rank}-{recorder['updates']}.pt")
            if own is None:
                raise StoreError(f"process {self._rank} finds no state of its own after step {recorder['updates']} in "
                                 f"{self._sidecar.folder}; is the folder shared by all machines?")
            sharded.load_buffers(self.model, own.pop("buffers", {}))
            recorder |= own
        self.load_state_dict(recorder)
        self._saved_updates = self.updates
        self.resumed = True
        if state["finished"]:
            self._loop.finish()
            self._finished = True
            logger.warning("the run in %s is finished: it is left alone, and nothing more is recorded", self.path)

    # -- opening and closing ---------------------------------------------------------------------------------------

    def _open(self, resume: bool, replica: str | None) -> dict[str, Any] | None:
        """Make the store or open the one there is; the state to go on from, if any. On process 0 only."""
        capacity = capacity_of(self._cycles)
        if not os.path.lexists(self.path):
            self._sidecar.remove("*")
            self.store = create_run(self.path, self.manifest, self.schedules, capacity=capacity, settings=self._settings,
                                    left_out=self._left, replica=replica, durability=self._durability)
            return None
        if not resume:
            raise StoreError(f"{self.path} is there already; resume=True goes on with it, else name another file")
        self.store = Store.open(self.path, "a", capacity=capacity, durability=self._durability)
        try:
            check_run(self.store, self.path, self.manifest, self.model, self._settings)
            self.snapshot_steps = steps_of_snapshots(self.store)
            return self._state_of(self.store)
        except BaseException:
            self.store.close()
            raise

    def _state_of(self, store: Store) -> dict[str, Any] | None:
        """The state of the run in a store to go on from; None where whoever saved it will give it, or the run begins again."""
        if not self._states:
            return None         # whoever saves them will say where to go on (rewind, load_state_dict)
        state = self._sidecar.read("state.pt")
        if state is not None and not isinstance(state, dict):
            raise StoreError(f"{self._sidecar.folder / 'state.pt'} holds no state of a run but a {type(state).__name__}; "
                             f"{saved.ANEW}")
        if state is not None and state.get("run") == store.run:
            return state
        if self.snapshot_steps and self._sidecar.read_text("begun") != store.run:
            raise StoreError(f"{self.path} holds {len(self.snapshot_steps)} snapshots and no state of the run to go on from; "
                             "name another file, or delete this one and the folder beside it")
        self.rewind(0, 0)       # killed before its first state was saved: the run begins again
        return None

    def _start_ring(self) -> None:
        if self._on_gpu:
            device = next(iter(self.manifest.tensors(self.model)["parameters"])).device
            self._ring = Ring(self.manifest.fields, CudaTransfer(device), self._write)

    @property
    def _on_gpu(self) -> bool:
        """Whether snapshots are written while training goes on; the same on every process."""
        return not self._sharded and next(iter(self.manifest.tensors(self.model)["parameters"])).device.type == "cuda"

    def _end(self) -> None:
        """The training is over as planned, as far as one can see from here."""
        self._take_crossed()
        schedule = self._cycles
        through = schedule is None or schedule.last_epoch >= schedule.total_steps
        over = self._loop.exhausted or self._stopped or through
        if schedule is not None and self._loop.exhausted and not (self._finished or self._stopped) \
                and schedule.next_end == schedule.ends[-1] \
                and self.updates > (self.snapshot_steps[-1] if self.snapshot_steps else 0):
            self._capture(schedule.ends[-1])        # the training ended a few steps short of the schedule
        if not self._finished:
            self._log_end()
        agreed(self._write_out)
        if not self._states or not over or self._finished or not (self._loop.used_batches or through):
            return
        if self.snapshot_steps or self._stopped:
            self._save(finished=True)
        elif self._rank == 0:       # the same script, once mended, begins again
            self._sidecar.remove("state.pt")

    def _log_end(self) -> None:
        schedule = self._cycles
        if schedule is None:
            logger.log(logging.INFO if self.snapshot_steps or self._stopped else logging.WARNING,
                       "the training ended: %d snapshots, taken by hand, after %d updates%s",
                       len(self.snapshot_steps), self.updates,
                       "" if self.snapshot_steps else
                       ": a schedule without cycles takes none, call recorder.capture() for each")
            return
        by_hand = len(set(self._by_hand) & set(self.snapshot_steps))
        due = len(self.snapshot_steps) - by_hand
        short = due < schedule.n_snapshots and not self._stopped
        past = self.updates > schedule.total_steps
        advice = ("" if not (short or past) else ": schedule.step() belongs after every optimizer step"
                  if schedule.last_epoch < min(self.updates, schedule.total_steps) and not schedule.last_epoch else
                  ": total_steps is epochs times optimizer steps an epoch, not batches of an accumulated gradient; the "
                  "training went past it" if past else
                  ": the others were not taken. total_steps is epochs times optimizer steps an epoch (not micro-batches)")
        logger.log(logging.WARNING if short or past else logging.INFO,
                   "the training ended: %d of %d snapshots%s, schedule at %d of %d after %d updates%s", due,
                   schedule.n_snapshots, f" and {by_hand} taken by hand" if by_hand else "", schedule.last_epoch,
                   schedule.total_steps, self.updates, advice)

    def end(self, as_planned: bool = True) -> None:
        """The training is over: take the last snapshot, if the loop ended a few steps short of it, and close. What leaving
        the `with` block does; `as_planned=False` where it was stopped by decision, which takes none."""
        if self._closed:
            return
        try:
            self._loop.exhausted = self._loop.exhausted or as_planned
            self._stopped = self._stopped or not as_planned
            self._end()
        finally:
            self.close()

    def close(self) -> None:
        """Write what is on its way and let go of the store, the optimizer and the schedule. Twice does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._ring is not None:
                self._ring.close()
        finally:
            self._watch.end()
            if self.store is not None:
                try:
                    self._flush()
                finally:
                    self.store.close()

    def __enter__(self) -> Self:
        if self._world > 1:
            self._failures = FailureWatch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._end()
            elif self._failures is not None:
                self._failures.failed(error)
        except BaseException as late:
            if error is None and self._failures is not None:
                self._failures.failed(late)
            raise
        finally:
            if self._failures is not None:
                self._failures.close()
            self.close()


def _check_arguments(store: object, save_every: int | None, scaler: object) -> None:
    """Raise InputError where arguments of a Recorder stand in each other's place."""
    if not isinstance(store, str | os.PathLike):
        raise InputError(f"store is the path of a file, made by the recorder; got {type(store).__name__}")
    if save_every is not None and save_every < 1:
        raise InputError(f"save_every is a number of steps, 1 or more; got {save_every!r}")
    if isinstance(scaler, str) or callable(scaler):
        raise InputError(f"scaler is a GradScaler; got {scaler!r}. Pass which parameters to record by name: parameters=")
