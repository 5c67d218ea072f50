"""The place of a training loop: which epoch, which batch, and the random numbers there, to be left and come back to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from ensemblekit.errors import InputError
from ensemblekit.neural import resume as saved

B = TypeVar("B")
NAMES = ("call", "batch", "random_epoch", "random_call", "random", "loader")
OVER = 1 << 62      # the epoch of a run that is finished


class Place:
    """A point of the loop: epoch, number of the loop over batches in it, batches done; with the random numbers there."""

    __slots__ = ("batch", "call", "epoch", "loader", "random", "random_call", "random_epoch")

    def __init__(self, epoch: int = 0):
        self.epoch, self.call, self.batch = epoch, 0, 0
        self.random_epoch: dict[str, Any] | None = None
        self.random_call: dict[str, Any] | None = None
        self.random: dict[str, Any] | None = None
        self.loader: Any = None

    def own(self) -> dict[str, Any]:
        """What every process of a distributed run has for itself."""
        return {"random_epoch": self.random_epoch, "random_call": self.random_call, "random": self.random,
                "loader": self.loader}


class LoopPosition:
    """Where a loop over epochs and batches stands; one that resumes skips what a killed run had trained on.

    `updates()` counts the optimizer's steps; `due(end_of_epoch)` says whether the state of the run is to be saved, which
    `save()` does, with `place` as it is then.
    """

    def __init__(self, updates: Callable[[], int], due: Callable[[bool], bool], save: Callable[[], None]):
        self._updates, self._due, self._save = updates, due, save
        self.place = Place()
        self.exhausted = False          # all epochs were given
        self.used_batches = False
        self.lengths: dict[int, int] = {}       # number of the loop over batches in an epoch -> its batches
        self._pending: Mapping[str, Any] | None = None      # the place of a killed run, until it is reached
        self._generators: list[torch.Generator] = []
        self._calls = 0                 # of `batches`, in this epoch
        self._in_epochs = False

    @property
    def batches_done(self) -> int:
        """Batches of the epoch now begun that a killed run trained on already."""
        return 0 if self._pending is None else self._pending["batch"]

    def epochs(self, n: int) -> Iterator[int]:
        """The numbers of the epochs that are left of n."""
        for epoch in range(self.place.epoch, n):
            place = self.place
            place.epoch, self._calls = epoch, 0
            if self._pending is not None and self._pending["random_epoch"] is not None:
                saved.restore_random(self._pending["random_epoch"], self._generators)   # for what the body draws first
            place.random_epoch = self.random()
            self._in_epochs = True
            yield epoch
            self._in_epochs = False
            self.place = place = Place(epoch + 1)
            self._pending = None
            if epoch + 1 < n and self._due(True):
                place.random_epoch = place.random = self.random()
                self._save()
        self.exhausted = True

    def batches(self, loader: Iterable[B], check: Callable[[], None], first: Callable[[], None]) -> Iterator[B]:
        """The batches that are left of a loader.

        check: called before each. first: called once, before the first of all.
        """
        call, self._calls = self._calls, self._calls + 1
        pending = self._meet(saved.generators_of(loader))
        if pending is not None and call < pending["call"]:
            return
        resuming = pending if pending is not None and call == pending["call"] else None
        done = 0 if resuming is None else resuming["batch"]
        if not self.used_batches:
            self.used_batches = True
            first()
        expected = saved.length_of(loader)
        self._check_length(call, expected, at_end=False)
        place = self.place
        saved.set_epoch(loader, place.epoch)
        if resuming is not None and resuming["random_call"] is not None:
            saved.restore_random(resuming["random_call"], self._generators)
        place.call, place.batch = call, done
        place.random_call = self.random()
        stateful = saved.stateful(loader)
        iterator = self._begin(loader, stateful, done, resuming)
        if resuming is not None:
            self._pending = None
        last_updates = self._updates() if not done else -1
        while True:
            check()
            if self._updates() != last_updates and place.batch:     # not between the parts of an accumulated gradient
                last_updates = self._updates()
                # After the last batch of an epoch the end of the epoch is waited for: what follows in the loop's body
                # (the mean loss, validation) counts on variables that a resumed epoch without batches would not have.
                if not (self._in_epochs and place.batch == expected) and self._due(False):
                    place.random = self.random()
                    place.loader = None if stateful is None else stateful.state_dict()
                    self._save()
            try:
                batch = next(iterator)
            except StopIteration:
                break
            place.batch += 1
            yield batch
        self._check_length(call, place.batch, at_end=True)

    def _begin(self, loader: Iterable[B], stateful: saved.Stateful | None, done: int,
               resuming: Mapping[str, Any] | None) -> Iterator[B]:
        """The loader's iterator behind the batches that are done."""
        if resuming is not None and stateful is not None and resuming["loader"] is not None:
            stateful.load_state_dict(resuming["loader"])
            iterator = iter(loader)
        else:
            iterator = iter(loader)
            saved.skip(iterator, done, loader)
        if resuming is not None and done and resuming["random"] is not None:     # else the loader's own first draws have just
            saved.restore_random(resuming["random"], self._generators)           # been made
        return iterator

    def _meet(self, generators: list[torch.Generator]) -> Mapping[str, Any] | None:
        """Keep the state of these generators too, from now on; the place that is still to be reached."""
        for one in generators:
            if all(one is not other for other in self._generators):
                k = len(self._generators)
                self._generators.append(one)
                if self._pending is not None and self._pending["random"] is not None:
                    states = self._pending["random"]["generators"]
                    if k < len(states):
                        one.set_state(states[k])
        return self._pending

    def _check_length(self, call: int, batches: int | None, at_end: bool) -> None:
        if batches is None:
            return
        known = self.lengths.get(call)
        if known is not None and known != batches:
            raise InputError(f"the loader {'gave' if at_end else 'has'} {batches} batches in epoch {self.place.epoch}, and "
                             f"{known} in those before; the schedule was made for {known}. Fix the number of batches "
                             "(drop_last=True, a sampler of fixed length), or make the schedule for the real total_steps")
        if at_end:
            self.lengths[call] = batches

    def random(self) -> dict[str, Any]:
        """The states of all random numbers that the loop draws."""
        return saved.random_state(self._generators)

    def state_dict(self) -> dict[str, Any]:
        """The place now, random numbers included."""
        place = self.place
        return {"epoch": place.epoch, "call": place.call, "batch": place.batch, "random_epoch": place.random_epoch,
                "random_call": place.random_call, "random": self.random(), "loader": None, "lengths": dict(self.lengths)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Come back to a place: `epochs` and `batches` go on from there."""
        self.place = Place(state["epoch"])
        self.lengths = dict(state["lengths"])
        self._pending = {name: state[name] for name in NAMES}

    def finish(self) -> None:
        """No epochs or batches are left."""
        self.place = Place(OVER)
        self._pending = {**dict.fromkeys(NAMES), "call": OVER}
