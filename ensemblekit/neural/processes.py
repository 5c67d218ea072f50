"""The processes of one torch.distributed run: what they agree on, and how an error on one of them ends all.

A collective that some processes enter and others do not waits for ever. So what decides whether one is entered (a check
that may fail, a clock) is decided once for all of them, here: :func:`agreed` raises an error of any process on every one,
:func:`from_first` hands on what process 0 decided, and :class:`FailureWatch` carries the words of an error that nobody
could foresee past the collective in which the others stand.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch

from ensemblekit.errors import (
    ClosedError,
    EnsemblekitError,
    InputError,
    ProcessFailedError,
    StoreBusyError,
    StoreDamagedError,
    StoreError,
    one_line,
)
from ensemblekit.neural.batches import samplers_of

T = TypeVar("T")

POLL = 0.5                  # seconds between two looks for the failure of another process
HEARD = 10.0                # how long a process that failed waits until the others have read why
GRACE = 5.0                 # how long the others may take to end by themselves before their collectives are aborted
LAST = 40.0                 # after which one that still waits is ended: its collective will never be complete


def rank_and_world() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order, on each. Collective."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    torch.distributed.all_gather_object(values, value)
    return values


def gathered_on_first(value: T) -> list[T] | None:
    """The values of all processes, in their order, on process 0; None on the others. Collective."""
    rank, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Any] | None = [None] * world if rank == 0 else None
    torch.distributed.gather_object(value, values, dst=0)
    return values


def from_first(value: T) -> T:
    """The value that process 0 gives, on every process. Collective."""
    if rank_and_world()[1] == 1:
        return value
    held: list[Any] = [value]
    torch.distributed.broadcast_object_list(held, src=0)
    value = held[0]
    return value


KINDS: tuple[type[EnsemblekitError], ...] = (InputError, StoreBusyError, StoreDamagedError, StoreError, ClosedError)
"""Errors of ours that travel as what they are, the special before the general."""


class Failure(NamedTuple):
    """An error as it travels: by its kind and its words, as not every exception can be pickled."""

    kind: str
    words: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        for kind in KINDS:
            if isinstance(error, kind):
                return cls(kind.__name__, str(error))
        return cls("", f"{type(error).__name__}: {one_line(error)}")

    def error(self, rank: int, everywhere: bool) -> EnsemblekitError:
        """The same on every process; `rank` is named where not all failed alike."""
        words = self.words if everywhere else f"process {rank}: {self.words}"
        kind = {one.__name__: one for one in KINDS}.get(self.kind)
        return ProcessFailedError(rank, self.words) if kind is None else kind(words)


def agreed_values(check: Callable[[], T]) -> list[T]:
    """What a check of every process gives, in their order, once it went well on all. Collective.

    Raises the error of the first process that failed, in the same words on all of them.
    """
    value: T | None = None
    raised: Exception | None = None
    try:
        value = check()
    except Exception as error:
        if rank_and_world()[1] == 1:
            raise
        raised = error
    outcomes = gathered((value, None if raised is None else Failure.of(raised)))
    failures = [(rank, failure) for rank, (_, failure) in enumerate(outcomes) if failure is not None]
    if failures:
        rank, first = failures[0]
        alike = len(failures) == len(outcomes) and len({failure for _, failure in failures}) == 1
        raise first.error(rank, alike) from raised
    values: list[Any] = [value for value, _ in outcomes]
    return values


def agreed(check: Callable[[], T], at: int | None = None) -> T:
    """What a check of this process gives, once it went well on every process. Collective; with one process just the check.

    `at`: the step at which this process stands, which must be that of all.

    Raises the error of the first process that failed, in the same words on all of them.
    """
    answer: list[T] = []

    def step() -> int | None:
        answer.append(check())
        return at

    steps = agreed_values(step)
    if len(set(steps)) > 1:
        raise InputError(f"the processes stand after different numbers of optimizer steps, {', '.join(map(str, steps))}: every "
                         "process makes every step, and calls the recorder alike")
    return answer[0]


def has_share_of_data(loader: object) -> bool:
    """Whether a loader gives this process its share of the data only (DistributedSampler, Accelerate's shards)."""
    if rank_and_world()[1] == 1:
        return False
    return any(isinstance(one, torch.utils.data.DistributedSampler)
               or type(one).__name__ in ("BatchSamplerShard", "IterableDatasetShard") for one in samplers_of(loader)[1:])


class FailureWatch:
    """Tells the other processes of a run of an error on this one, and hears of theirs while this one waits in a collective.

    The words go by the key-value store through which the processes found each other. A process that fails waits until the
    others have read them and then ends; its connections close, so that the others come back from their collective with an
    error, and say why. Collectives of NCCL are aborted. A process that does not come back at all is ended.
    """

    def __init__(self) -> None:
        """Collective: every process begins to watch."""
        self.rank, self.world = rank_and_world()
        self.heard: tuple[int, str] | None = None
        """The first failure of another process: its number and words."""
        name = from_first(uuid.uuid4().hex)
        self._store = torch.distributed.PrefixStore(f"ensemblekit/{name}", _default_store())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ensemblekit failure watch", daemon=True)
        self._thread.start()

    def failed(self, error: BaseException) -> None:
        """This process leaves with an error.

        Raises ProcessFailedError from it where it only follows from the failure of another process.
        """
        with contextlib.suppress(Exception):        # process 0 may have gone, and the store with it
            self._look()
        victim = self.heard is not None and isinstance(error, RuntimeError)
        if not victim:
            with contextlib.suppress(Exception):
                self._store.set(f"failed/{self.rank}", f"{type(error).__name__}: {one_line(error)}")
                self._wait_until_heard()
        self.close()
        if victim and self.heard is not None:
            raise ProcessFailedError(*self.heard) from error

    def close(self) -> None:
        """This process has ended its part: nobody waits for it to hear of anything."""
        self._over.set()
        self._thread.join(2 * POLL)
        if self.heard is None:
            with contextlib.suppress(Exception):
                self._store.set(f"over/{self.rank}", "")

    def _look(self) -> None:
        """Take up the failure of another process, if there is one."""
        for rank in range(self.world):
            if self.heard is None and rank != self.rank and self._store.check([f"failed/{rank}"]):
                self.heard = rank, self._store.get(f"failed/{rank}").decode(errors="replace")
                self._store.set(f"heard/{self.rank}", "")

    def _wait_until_heard(self) -> None:
        until = time.monotonic() + HEARD
        waiting = [rank for rank in range(self.world) if rank != self.rank]
        while waiting and time.monotonic() < until:
            waiting = [rank for rank in waiting if not any(
                self._store.check([f"{key}/{rank}"]) for key in ("heard", "failed", "over"))]
            time.sleep(0.1 if waiting else 0)

    def _run(self) -> None:
        since = 0.0
        aborted = False
        while not self._over.wait(POLL):
            if self.heard is None:
                try:
                    self._look()
                except Exception:       # the store is gone, and process 0 with it: collectives end by themselves
                    return
                since = time.monotonic()
            elif not aborted and time.monotonic() - since > GRACE:
                aborted = True
                with contextlib.suppress(Exception):
                    torch.distributed.group.WORLD.abort()       # type: ignore[union-attr]
            elif time.monotonic() - since > LAST:
                sys.stderr.write(f"{ProcessFailedError(*self.heard)}\n")
                sys.stderr.flush()
                os._exit(1)


def _default_store() -> torch.distributed.Store:
    """The store through which the processes found each other, with a connection of its own where it can have one."""
    store: torch.distributed.Store = torch.distributed.distributed_c10d._get_default_store()
    try:
        # so that a wait of the program's own does not hold up ours; torch has it from 2.8 on
        store = store.clone()       # type: ignore[attr-defined]
    except (AttributeError, RuntimeError, NotImplementedError):
        return store
    store.set_timeout(timedelta(seconds=HEARD))
    return store
