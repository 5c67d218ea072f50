"""Snapshots on their way from an accelerator to the store, while training goes on.

Two slots, each a vector on the device and one in pinned memory. A capture copies the weights into the slot's device
vector on the training's own stream (so it sees the last update and nothing of the next), hands the copy to the host to
a side stream, and returns; a thread waits for that copy's event and writes. When both slots are on their way a third
capture waits for one of them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ensemblekit.source import Field

Vectors = dict[str, torch.Tensor]


@dataclass(slots=True)
class Slot:
    """Room for one snapshot on the device and one on the host."""

    device: Vectors
    host: Vectors
    done: Any = field(default=None)
    """Whatever `Transfer.start` returned."""


class Transfer(Protocol):
    """How a snapshot gets to the host."""

    def slot(self, fields: Mapping[str, Field]) -> Slot: ...
    def start(self, slot: Slot) -> Any:
        """Begin the copy of slot.device to slot.host, behind what is already queued on the device."""
        ...
    def wait(self, slot: Slot) -> None:
        """Return when the copy is complete."""
        ...


class CudaTransfer:
    """Through pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def slot(self, fields: Mapping[str, Field]) -> Slot:
        dtypes = {name: torch.from_numpy(np.empty(0, one.dtype)).dtype for name, one in fields.items()}
        return Slot({name: torch.empty(one.size, dtype=dtypes[name], device=self.device) for name, one in fields.items()},
                    {name: torch.empty(one.size, dtype=dtypes[name], pin_memory=True) for name, one in fields.items()})

    def start(self, slot: Slot) -> Any:
        event = torch.cuda.Event()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for name, vector in slot.device.items():
                slot.host[name].copy_(vector, non_blocking=True)
            event.record(self.stream)
        return event

    def wait(self, slot: Slot) -> None:
        slot.done.synchronize()


class Ring:
    """`put` captures and returns; a thread calls `write(arrays, ticket)` for each capture, in order."""

    def __init__(self, fields: Mapping[str, Field], transfer: Transfer, write: Callable[[dict[str, np.ndarray], Any], None],
                 slots: int = 2):
        self.transfer, self.write = transfer, write
        self.error: BaseException | None = None
        """Of the writer: nothing is written after it; raised by the next `put`, `drain` or `close`."""
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._work: queue.Queue[tuple[Slot, Any] | None] = queue.Queue()
        for _ in range(slots):
            self._free.put(transfer.slot(fields))
        self._thread = threading.Thread(target=self._run, name="ensemblekit snapshot writer", daemon=True)
        self._thread.start()

    def put(self, pack: Callable[[Vectors], object], ticket: int) -> None:
        """Capture: pack(vectors) fills vectors on the device; `ticket` is handed to `write` with them."""
        self.check()
        slot = self._free.get()
        try:
            pack(slot.device)
            slot.done = self.transfer.start(slot)
        except BaseException:
            self._free.put(slot)
            raise
        self._work.put((slot, ticket))

    def drain(self) -> None:
        """Return when all captures are written."""
        self._work.join()
        self.check()

    def check(self) -> None:
        """Raise what the writer ran into, once."""
        if self.error is not None:
            error, self.error = self.error, None
            self._failed = True
            raise error

    _failed = False

    def close(self) -> None:
        """Write what is on its way and end the thread."""
        self._work.join()
        self._work.put(None)
        self._thread.join()
        self.check()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            slot, ticket = item
            try:
                self.transfer.wait(slot)
                if self.error is None and not self._failed:
                    self.write({name: vector.numpy() for name, vector in slot.host.items()}, ticket)
            except BaseException as error:
                self.error = error
            finally:
                self._free.put(slot)
                self._work.task_done()
        self._work.task_done()
