"""Places to run independent work: this thread, several threads or processes, or any pool somebody else runs.

The data makes the pieces; an engine only runs them and yields their values in order. Kernels are single-threaded and
BLAS is held to one thread in every engine, so parallelism has one owner and every engine gives the same bits.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

from ensemblekit.errors import InputError

R = TypeVar("R", covariant=True)
S = TypeVar("S")
T = TypeVar("T")


@runtime_checkable
class Engine(Protocol):
    """A place to run independent work."""

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S) -> Iterator[R]:
        """Yield the values of ``[func(shared, item) for item in items]``, in that order.

        Pulls items as workers free up, ships `shared` once a worker, and cancels the rest at the first failure.
        """


@dataclass(frozen=True)
class Serial:
    """This thread, one piece after the other."""

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S) -> Iterator[R]:
        with blas_held(func):
            for item in items:
                yield func(shared, item)


@dataclass(frozen=True)
class Threads:
    """Threads of this process: the default, as kernels and mapped reads run outside Python's lock."""

    n: int | None = None
    """How many; None: one a core this process may use."""

    def __post_init__(self) -> None:
        check_workers(self.n)

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S) -> Iterator[R]:
        n = self.n or cores()
        with blas_held(func):
            pool = futures.ThreadPoolExecutor(n, thread_name_prefix="ensemblekit")
            yield from ordered(lambda item: pool.submit(func, shared, item), items, 2 * n, pool.shutdown)


@dataclass(frozen=True)
class Processes:
    """Fresh processes of this machine, for maps that hold Python's lock. What they run must be importable."""

    n: int | None = None
    """How many; None: one a core this process may use."""

    def __post_init__(self) -> None:
        check_workers(self.n)

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S) -> Iterator[R]:
        import multiprocessing

        n = self.n or cores()
        blob = pickled(shared)
        # spawn, not fork: a fork after threads (BLAS, numba, HDF5) can deadlock in the child
        pool = futures.ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), _start_worker, (blob,))
        yield from ordered(lambda item: pool.submit(_work, func, item), items, 2 * n, pool.shutdown)


@dataclass(frozen=True)
class Executor:
    """Any ``concurrent.futures`` executor: mpi4py's MPIPoolExecutor, a Slurm pool, your own. It stays open."""

    pool: futures.Executor
    lookahead: int = 16
    """Pieces submitted ahead of the one awaited; about twice the number of workers."""

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S) -> Iterator[R]:
        if isinstance(self.pool, futures.ThreadPoolExecutor):
            with blas_held(func):
                yield from ordered(lambda item: self.pool.submit(func, shared, item), items, self.lookahead)
            return
        blob = pickled(shared)
        yield from ordered(lambda item: self.pool.submit(_work_from, blob, func, item), items, self.lookahead)


def ordered(submit: Callable[[T], Any], items: Iterable[T], lookahead: int,
            shutdown: Callable[..., None] | None = None) -> Iterator[Any]:
    """The results of `submit(item)` in order, with at most `lookahead` items under way.

    At the first failure, at Ctrl-C or when the caller stops listening, what has not begun is cancelled and what has
    begun is waited for, so that no worker still reads a file when this returns.
    """
    waiting: deque[Any] = deque()
    feed = iter(items)
    try:
        waiting.extend(map(submit, islice(feed, lookahead)))
        while waiting:
            value = waiting.popleft().result()
            waiting.extend(map(submit, islice(feed, 1)))
            yield value
    finally:
        for future in waiting:
            future.cancel()
        if shutdown is not None:
            shutdown(wait=True, cancel_futures=True)
        else:
            futures.wait([f for f in waiting if isinstance(f, futures.Future)])


_shared: Any = None
_blob: bytes | None = None


def _start_worker(blob: bytes) -> None:
    import signal

    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C is the parent's to handle; it cancels and joins the pool
    _shared = pickle.loads(blob)
    limit_blas()


def _work(func: Callable[[Any, Any], Any], item: Any) -> Any:
    return func(_shared, item)


def _work_from(blob: bytes, func: Callable[[Any, Any], Any], item: Any) -> Any:
    global _shared, _blob
    if blob != _blob:
        _shared, _blob = pickle.loads(blob), blob
    with one_blas_thread():
        return func(_shared, item)


def pickled(shared: Any) -> bytes:
    """`shared` as bytes for another process, or an InputError that names what cannot travel."""
    try:
        return pickle.dumps(shared)
    except Exception as error:
        culprit = unpicklable(shared)
        raise InputError(
            f"{culprit} cannot be sent to another process ({error}). Define it at the top level of a module, or use "
            "Threads(), which shares memory, or Dask(client), which ships functions by value") from error


def unpicklable(x: Any, path: str = "") -> str:
    """The innermost named part of x that does not pickle."""
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(x, dict):
        parts = ((f"{path}[{k!r}]" if path else f"branch {k!r}", v) for k, v in x.items())
    elif isinstance(x, tuple | list):
        parts = ((f"{path}[{k}]", v) for k, v in enumerate(x))
    for name, part in parts:
        try:
            pickle.dumps(part)
        except Exception:
            return unpicklable(part, name)
    what = getattr(x, "__qualname__", None) or repr(x)
    return f"{path}: {what}" if path else what


def cores() -> int:
    """Cores this process may use (taskset and containers included)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:      # macOS, Windows
        return os.cpu_count() or 1


def check_workers(n: int | None) -> None:
    if n is not None and (not isinstance(n, int) or n < 1):
        raise InputError(f"the number of workers is a whole number above 0, or None for one a core; got {n!r}")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS held to one thread while this is open."""
    with _blas(len(sys.modules)).limit(limits=1, user_api="blas"):
        yield


def blas_held(func: Callable[..., Any]) -> AbstractContextManager[None]:
    """:func:`one_blas_thread`, but for work that says ``func.blas = False``.

    Telling OpenBLAS anything starts its threads again where a fork has ended them, and then they spin for 30 ms.
    """
    return one_blas_thread() if getattr(func, "blas", True) else nullcontext()


@lru_cache(maxsize=1)
def _blas(modules: int) -> Any:
    """The BLAS libraries of this process: looking for them takes milliseconds, so only once new modules are there."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def limit_blas() -> None:
    """BLAS held to one thread for the rest of this process."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")
