"""The members of an ensemble at work: one after the other or all at once, whichever is measured to be quicker."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ensemblekit.neural.batches import Convention, Output
from ensemblekit.neural.parameters import Manifest, load_vectors

RESIDENT = 4 << 30
"""Bytes of weights above which members are loaded one at a time, batch after batch."""
TOGETHER = 32 << 20
"""Bytes of outputs collected before they are pooled."""
SLOW = 0.2
"""Seconds of one pass through all members above which the calls themselves cost nothing, and vmap is not tried."""
ADVANTAGE = 0.85
"""vmap is taken where it needs less than this share of the loop's time in the median of the rounds and in its best; a
busy machine is no reason."""
ROUNDS = 7
SHORT = 0.02
"""Seconds a measurement of either lasts at least, of several calls where one is shorter: of those the clock tells little."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Why members run as they do for batches of one shape on one device."""

    chosen: str
    """"sequential" or "vmap"."""
    sequential: float
    """Seconds of a pass of one batch through all members, one after the other."""
    vmap: float
    """The same in one call; NaN where it was not tried or failed."""
    why: str
    """In words."""


class Members:
    """Copies of a model with the stored weights; outputs in blocks of members, in order."""

    def __init__(self, template: torch.nn.Module, manifest: Manifest, vectors: Mapping[str, Any], count: int,
                 convention: Convention, resident: int = RESIDENT):
        self.template, self.manifest, self.vectors = template, manifest, vectors
        self.count, self.convention = count, convention
        self.held = sum(int(np.prod(v.shape)) * v.dtype.itemsize for v in vectors.values()) <= resident
        self.modules: list[torch.nn.Module] | None = None
        self.scratch: torch.nn.Module | None = None
        self.stack: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None
        self.measured: dict[Any, Measurement] = {}

    def copy_of(self, k: int, into: torch.nn.Module | None = None) -> torch.nn.Module:
        """The model with the weights of member k, in eval mode and frozen."""
        one = copy.deepcopy(self.template) if into is None else into
        load_vectors(one, {kind: np.asarray(rows[k]) for kind, rows in self.vectors.items()}, self.manifest)
        return one.eval().requires_grad_(False)

    def all(self) -> list[torch.nn.Module]:
        """All of them in memory."""
        if self.modules is None:
            self.modules = [self.copy_of(k) for k in range(self.count)]
        return self.modules

    def each(self, wanted: Sequence[int]) -> Iterator[torch.nn.Module]:
        """One after the other; what was yielded may be overwritten by the next where weights are not all in memory."""
        if self.held or self.modules is not None:
            every = self.all()
            yield from (every[k] for k in wanted)
            return
        for k in wanted:
            self.scratch = self.copy_of(k, self.scratch)
            yield self.scratch

    def forget(self) -> None:
        """The weights were moved or changed: what was derived from them is made anew."""
        self.stack, self.scratch = None, None
        self.measured.clear()

    # -- running ---------------------------------------------------------------------------------------------------

    def outputs(self, batch: object, wanted: Sequence[int], path: str = "auto") -> Iterator[tuple[Output, list[int]]]:
        """Outputs (m, n, ...), or tuples of such, with the numbers of the m members they are of."""
        if path == "auto":
            path = self.choice(batch, wanted).chosen
        if path == "vmap":
            yield self._vmapped(batch, wanted), list(wanted)
        else:
            yield from self._looped(batch, wanted)

    def choice(self, batch: object, wanted: Sequence[int]) -> Measurement:
        """What is quicker for batches like this one, measured on it.

        What holds for a batch holds for others between half and once its size where that was vmap, which the small
        ones favour, and between once and twice its size where it was the loop; others are measured anew.
        """
        size, rest = _shape(batch)
        for (known, others, count), measurement in self.measured.items():
            if others == rest and count == len(wanted):
                low, high = (known // 2, known) if measurement.chosen == "vmap" else (known, 2 * known)
                if low <= size <= high or size == known:
                    return measurement
        measurement = self.measured[size, rest, len(wanted)] = self._measure(batch, wanted)
        return measurement

    def _looped(self, batch: object, wanted: Sequence[int]) -> Iterator[tuple[Output, list[int]]]:
        block, numbers, nbytes = [], [], 0
        for k, model in zip(wanted, self.each(wanted), strict=True):
            output = self.convention.outputs_of(model, batch)
            nbytes += sum(x.numel() * 8 for x in (output if isinstance(output, tuple) else (output,)))
            block.append(output)
            numbers.append(k)
            if nbytes > TOGETHER:
                yield _stacked(block), numbers
                block, numbers, nbytes = [], [], 0
        if block:
            yield _stacked(block), numbers

    def _vmapped(self, batch: object, wanted: Sequence[int]) -> Output:
        if self.stack is None:
            self.stack = torch.func.stack_module_state(self.all())
        parameters, buffers = self.stack
        if len(wanted) != self.count:
            rows = list(wanted)
            parameters, buffers = ({name: x[rows] for name, x in part.items()} for part in (parameters, buffers))

        def one(p: dict[str, torch.Tensor], b: dict[str, torch.Tensor], x: object) -> Output:
            return self.convention.outputs_of(_Bound(self.template, p, b), x)

        self.template.eval()
        return torch.func.vmap(one, in_dims=(0, 0, None))(parameters, buffers, batch)

    def _measure(self, batch: object, wanted: Sequence[int]) -> Measurement:
        nan = float("nan")
        if len(wanted) < 2:
            return Measurement("sequential", nan, nan, "a single member")
        if not self.held:
            return Measurement("sequential", nan, nan, "the weights do not all fit into memory")
        with torch.no_grad():
            _, answer = _timed(lambda: list(self._looped(batch, wanted)))       # loads the members, warms the caches
            first = min(_timed(lambda: list(self._looped(batch, wanted)))[0] for _ in range(2))
            if first > SLOW:
                return Measurement("sequential", first, nan, f"a pass takes {first:.2f} s, its calls a small part of it")
            try:
                _, other = _timed(lambda: self._vmapped(batch, wanted))
            except Exception as error:
                return Measurement("sequential", first, nan, f"vmap cannot run this model: {type(error).__name__}: "
                                                             f"{str(error).splitlines()[0] if str(error) else ''}")
            if not _alike(_joined(answer), other):
                return Measurement("sequential", first, nan, "vmap gives other answers for this model")
            calls = max(1, round(SHORT / ROUNDS / max(first, 1e-9)))
            loop, at_once = [], []
            for k in range(ROUNDS):
                for one in (0, 1) if k % 2 else (1, 0):         # neither always follows the other
                    if one:
                        loop.append(_timed(lambda: list(self._looped(batch, wanted)), calls)[0])
                    else:
                        at_once.append(_timed(lambda: self._vmapped(batch, wanted), calls)[0])
        ours, theirs = float(np.median(at_once)), float(np.median(loop))
        shares = np.median(np.array(at_once) / np.array(loop)), min(at_once) / min(loop), ours / theirs
        chosen = "vmap" if max(shares) < ADVANTAGE else "sequential"
        if chosen == "sequential":
            self.stack = None           # a second copy of all weights that nobody needs
        return Measurement(chosen, theirs, ours, f"vmap {1e3 * ours:.3g} ms, loop {1e3 * theirs:.3g} ms a batch")


class _Bound:
    """A model called with other weights; for `forward` functions that only call it."""

    def __init__(self, model: torch.nn.Module, parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]):
        self.model, self.weights = model, (parameters, buffers)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights, args, kwargs)


def _stacked(block: list[Output]) -> Output:
    return _each(torch.stack, block)


def _joined(blocks: list[tuple[Output, list[int]]]) -> Output:
    return _each(torch.cat, [out for out, _ in blocks])


def _each(join: Callable[[list[torch.Tensor]], torch.Tensor], outputs: list[Output]) -> Output:
    """Outputs of several models as one; each part of tuples by itself."""
    tensors = [out for out in outputs if isinstance(out, torch.Tensor)]
    if tensors:
        return join(tensors)
    return tuple(join(list(parts)) for parts in zip(*outputs, strict=True))


def _alike(a: Output, b: Output) -> bool:
    if isinstance(a, tuple) or isinstance(b, tuple):
        return isinstance(a, tuple) and isinstance(b, tuple) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return bool(((a - b).abs() <= 1e-4 * a.abs().mean() + 1e-3 * a.abs()).all())


def _timed(run: Callable[[], Any], calls: int = 1) -> tuple[float, Any]:
    """Seconds of one of so many calls, and the last answer."""
    _synchronise()
    began = time.perf_counter()
    for _ in range(calls):
        answer = run()
    _synchronise()
    return (time.perf_counter() - began) / calls, answer


def _synchronise() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _shape(batch: object) -> tuple[int, Any]:
    """The number of items of a batch, and all else that its cost depends on."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.ndim else 0, (tuple(batch.shape[1:]), str(batch.device), batch.dtype)
    if isinstance(batch, Mapping):
        parts = {name: _shape(x) for name, x in batch.items()}
        return max((n for n, _ in parts.values()), default=0), tuple((name, rest) for name, (_, rest) in parts.items())
    if isinstance(batch, list | tuple):
        listed = [_shape(x) for x in batch]
        return max((n for n, _ in listed), default=0), tuple(rest for _, rest in listed)
    return 0, type(batch)
