"""The answers of an ensemble's members to the batches of a loader, collected in one process or by several together.

By members every process sees all items and has some of the members; process 0 merges what they say of a batch, in the order
of the members. By items every process has all members and its share of the items; process 0 puts them into the order of the
data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xxhash

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Device, batches_of, moved, samplers_of
from ensemblekit.neural.members import Members
from ensemblekit.neural.outputs import Answers, check_finite
from ensemblekit.neural.prediction import Predicted
from ensemblekit.neural.processes import (
    agreed,
    agreed_values,
    from_first,
    gathered_on_first,
    has_share_of_data,
    rank_and_world,
)
from ensemblekit.neural.uncertainty import Space

Distributed = Literal["members", "items"] | None
"""How processes share a prediction; None: this process does all of it."""
Path = Literal["auto", "vmap", "sequential"]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Who is asked, and how."""

    runner: Members
    wanted: list[int]
    """Numbers of the members that count."""
    shares: np.ndarray | None
    """Statistical weight of every member; None: all alike."""
    space: Space
    device: Device
    path: Path = "auto"

    def answer(self, answers: Answers, batch: object, members: list[int]) -> None:
        """What some members say of a batch that is where they are, into `answers`."""
        answers.start(batch, self.space)
        for out, numbers in self.runner.outputs(batch, members, self.path) if members else ():
            check_finite(out, numbers)
            answers.update(out, None if self.shares is None else self.shares[numbers])


def collect(answers: Answers, asked: Asked, loader: Iterable[Any], distributed: Distributed = None) -> None:
    """Fill `answers`, in a distributed prediction on process 0, with what the members say of every item.

    Raises InputError as :meth:`Ensemble.predict`; in a distributed prediction the same on every process.
    """
    if distributed is None:
        for batch in batches_of(loader):
            asked.answer(answers, moved(batch, asked.device), asked.wanted)
            answers.end()
        return
    if distributed not in ("members", "items"):
        raise InputError(f'distributed is "members", "items" or None; got {distributed!r}')
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise InputError(f"distributed={distributed!r} spreads a prediction over the processes of torch.distributed, and there "
                         "are none: call torch.distributed.init_process_group first (torchrun), or leave distributed away")
    if distributed == "members":
        _by_members(answers, asked, loader)
    else:
        _by_items(answers, asked, loader)


def predicted(answers: Answers, asked: Asked, loader: Iterable[Any], distributed: Distributed = None,
              keep: Callable[[Predicted, np.ndarray], object] | None = None) -> Predicted | None:
    """What members say of every item; of a distributed prediction all processes get it, of maps process 0 alone (others: None).

    keep: takes the prediction and every member's probabilities, to save them; on process 0 only.
    """
    collect(answers, asked, loader, distributed)

    def finish() -> Predicted:
        prediction = answers.result(len(asked.wanted), asked.space)
        if keep is not None:
            keep(prediction, answers.members())
        return prediction

    if distributed is None:
        return finish()
    prediction = agreed(lambda: finish() if rank_and_world()[0] == 0 else None)
    return prediction if answers.task == "segmentation" else from_first(prediction)


# -- by members --------------------------------------------------------------------------------------------------------


def _by_members(answers: Answers, asked: Asked, loader: Iterable[Any]) -> None:
    rank, world = rank_and_world()
    own = [int(k) for k in np.array_split(np.array(asked.wanted, np.int64), world)[rank]]
    begun: list[bool] = []

    def open_() -> Iterator[Any]:
        if has_share_of_data(loader):
            raise InputError('distributed="members" has every process see all items, and this loader gives it a share: pass '
                             'the loader without its DistributedSampler, or distributed="items"')
        return iter(batches_of(loader))

    batches = agreed(open_)

    def ask() -> str:
        if begun and rank == 0:
            answers.end()           # of the batch before: its errors are told to all with those of this one
        begun[:] = []
        for batch in batches:
            digest = _digest_of(batch)
            asked.answer(answers, moved(batch, asked.device), own)
            begun[:] = [True]
            return digest
        return ""

    while True:
        digests = agreed_values(ask)
        if len(set(digests)) > 1:
            raise InputError('with distributed="members" every process sees the same batches, and these differ: a loader that '
                             "shuffles or augments at random gives each its own (shuffle=False, a generator of one seed)")
        if not digests[0]:
            return
        parts = gathered_on_first(answers.partial())
        if parts is not None:
            answers.join_members(parts)


def _digest_of(batch: object) -> str:
    """The same for the same tensors."""
    digest = xxhash.xxh3_128()
    for tensor in _tensors_in(batch):
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
    return digest.hexdigest()


def _tensors_in(batch: object) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for one in batch.values():
            yield from _tensors_in(one)
    elif isinstance(batch, list | tuple):
        for one in batch:
            yield from _tensors_in(one)


# -- by items ----------------------------------------------------------------------------------------------------------


def _by_items(answers: Answers, asked: Asked, loader: Iterable[Any]) -> None:
    def own() -> tuple[list[int], int]:
        sampler = _sampler_of(loader)
        collect(answers, asked, loader)
        numbers = [int(k) for k in sampler]
        if len(numbers) != answers.n:
            raise InputError(f"the sampler gives this process {len(numbers)} items, and the loader {answers.n} of them: with "
                             "drop_last=True some are never asked about, pass drop_last=False")
        return numbers, len(sampler.dataset)    # type: ignore[arg-type]  # whoever samples it knows its length

    numbers, n = agreed(own)
    shares = gathered_on_first((numbers, answers.share()))

    def join() -> None:
        if shares is not None:
            answers.join_items([share for _, share in shares], _places([numbers for numbers, _ in shares], n))

    agreed(join)


def _sampler_of(loader: object) -> torch.utils.data.DistributedSampler[Any]:
    """The sampler that gives this process its share. Raises InputError where there is none, or it is that of another."""
    rank, world = rank_and_world()
    for one in samplers_of(loader)[1:]:
        if isinstance(one, torch.utils.data.DistributedSampler):
            if (one.num_replicas, one.rank) != (world, rank):
                raise InputError(f"the DistributedSampler is that of process {one.rank} of {one.num_replicas}, and this is "
                                 f"process {rank} of {world}")
            return one
    raise InputError('distributed="items" takes a loader whose DistributedSampler gives each process its share of the items; '
                     f'{type(loader).__name__} has none: DataLoader(data, sampler=DistributedSampler(data, shuffle=False)), or '
                     'distributed="members"')


def _places(numbers: list[list[int]], n: int) -> np.ndarray:
    """(n,): where each item of the data set stands first among the items of all processes, one process after the other."""
    items, places = np.unique(np.concatenate([np.array(one, np.int64) for one in numbers]), return_index=True)
    if len(items) != n or not np.array_equal(items, np.arange(n)):
        missing = np.setdiff1d(np.arange(n), items)
        raise InputError(f"the samplers leave out {len(missing)} of {n} items of the data ({', '.join(map(str, missing[:5]))})"
                         ": DistributedSampler(..., drop_last=False), and the same seed and epoch on every process")
    return places
