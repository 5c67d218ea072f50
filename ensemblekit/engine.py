"""Places to run independent work: this thread, several threads or processes, or any pool somebody else runs.

The data makes the pieces; an engine only runs them and yields their values in order. Kernels are single-threaded and
BLAS is held to one thread in every engine, so parallelism has one owner and every engine gives the same bits.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

from ensemblekit.errors import InputError, WorkerLostError

R = TypeVar("R", covariant=True)
S = TypeVar("S")
T = TypeVar("T")


@runtime_checkable
class Engine(Protocol):
    """A place to run independent work."""

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S, *, blas: bool = True) -> Iterator[R]:
        """Yield the values of ``[func(shared, item) for item in items]``, in that order.

        Pulls items as workers free up, ships `shared` once a worker, and cancels the rest at the first failure. A worker
        that is lost is a WorkerLostError with the items it had. ``blas=False``: the work calls no BLAS, which then needs
        no holding to one thread.
        """


@runtime_checkable
class Stoppable(Protocol):
    """The values of an engine that stops its work when it is told that no more of them are wanted."""

    def close(self) -> None: ...


def stop(values: Iterator[object]) -> None:
    """Say that no more values of :meth:`Engine.map` are wanted: what has begun is let finish, nothing else begins."""
    if isinstance(values, Stoppable):
        values.close()


@dataclass(frozen=True)
class Serial:
    """This thread, one piece after the other."""

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S, *, blas: bool = True) -> Iterator[R]:
        with blas_held(blas):
            for item in items:
                yield func(shared, item)


@dataclass(frozen=True)
class Threads:
    """Threads of this process: the default, as kernels and mapped reads run outside Python's lock."""

    n: int | None = None
    """How many; None: one a core this process may use."""

    def __post_init__(self) -> None:
        check_workers(self.n)

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S, *, blas: bool = True) -> Iterator[R]:
        n = self.n or cores()
        with blas_held(blas):
            pool = futures.ThreadPoolExecutor(n, thread_name_prefix="ensemblekit")
            yield from ordered(lambda item: pool.submit(func, shared, item), items, 2 * n, pool.shutdown)


@dataclass(frozen=True)
class Processes:
    """Fresh processes of this machine, for maps that hold Python's lock. What they run must be importable.

    They end with this one, however it ends; at a failure, at Ctrl-C and when the caller stops listening they are killed.
    """

    n: int | None = None
    """How many; None: one a core this process may use."""

    def __post_init__(self) -> None:
        check_workers(self.n)

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S, *, blas: bool = True) -> Iterator[R]:
        from ensemblekit.engine_processes import run_in_processes

        return run_in_processes(func, items, pickled(shared), self.n or cores(), limit_blas, ordered)


@dataclass(frozen=True)
class Executor:
    """Any ``concurrent.futures`` executor: mpi4py's MPIPoolExecutor, a Slurm pool, your own. It stays open."""

    pool: futures.Executor
    lookahead: int = 16
    """Pieces submitted ahead of the one awaited; about twice the number of workers."""

    def map(self, func: Callable[[S, T], R], items: Iterable[T], shared: S, *, blas: bool = True) -> Iterator[R]:
        if isinstance(self.pool, futures.ThreadPoolExecutor):
            with blas_held(blas):
                yield from ordered(lambda item: self.pool.submit(func, shared, item), items, self.lookahead)
            return
        blob = pickled(shared)
        yield from ordered(lambda item: self.pool.submit(_work_from, blob, func, item), items, self.lookahead)


def ordered(submit: Callable[[T], Any], items: Iterable[T], lookahead: int, shutdown: Callable[..., None] | None = None,
            *, lost: Callable[[BaseException], str] = lambda error: "", wait: bool = True) -> Iterator[Any]:
    """The results of `submit(item)` in order, with at most `lookahead` items under way.

    Arguments:
        submit: gives a future.
        shutdown: of the pool, where it is ours to end.
        lost: says of an error, in words, that the pool lost a worker; nothing where it is the work's own.
        wait: at a failure or when the caller stops listening, what has begun is waited for, so that no worker still
            reads a file when this returns; but for Ctrl-C in a pool that is not ours.

    Raises WorkerLostError with the items that were under way.
    """
    waiting: deque[tuple[T, Any]] = deque()
    feed = iter(items)

    @contextmanager
    def named(also: Sequence[T] = ()) -> Iterator[None]:
        """An error of the pool, not of the work, with what was under way."""
        try:
            yield
        except (Exception, futures.CancelledError) as error:
            if isinstance(error, WorkerLostError) and error.items:
                raise
            words = error.cause if isinstance(error, WorkerLostError) else lost(error) or _pool_lost(error)
            if words:
                raise WorkerLostError(words, (*(item for item, _ in waiting), *also)) from error
            raise

    def begin(count: int) -> None:
        for item in islice(feed, count):
            with named((item,)):
                waiting.append((item, submit(item)))

    try:
        begin(lookahead)
        while waiting:
            with named():
                value = waiting[0][1].result()
            waiting.popleft()
            begin(1)
            yield value
    finally:
        begun = [future for _, future in waiting if not future.cancel()]    # a pool shut down never tells of what it cancelled
        if shutdown is not None:
            shutdown(wait=True, cancel_futures=True)
        elif wait and not _interrupted(sys.exception()):
            futures.wait([future for future in begun if isinstance(future, futures.Future)])


def _pool_lost(error: BaseException) -> str:
    """That a pool of ``concurrent.futures`` lost a worker or its work, in words."""
    if isinstance(error, RuntimeError) and "cannot schedule new futures" in str(error):
        return f"the pool takes no more work ({error})"
    if isinstance(error, futures.BrokenExecutor):
        return (f"a worker of the pool died ({error}); most likely the system ran out of memory or compiled code crashed. The "
                "pool is of no more use: make a new one, with fewer workers")
    return "the pool cancelled the work: it was shut down meanwhile" if isinstance(error, futures.CancelledError) else ""


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what ends this: here, or in the caller that has stopped listening."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


_shared: Any = None
_blob: bytes | None = None


def _work_from(blob: bytes, func: Callable[[Any, Any], Any], item: object) -> Any:
    global _shared, _blob
    if blob != _blob:
        _shared, _blob = pickle.loads(blob), blob
    with one_blas_thread():
        return func(_shared, item)


def pickled(shared: object) -> bytes:
    """`shared` as bytes for another process, or an InputError that names what cannot travel."""
    try:
        return pickle.dumps(shared)
    except Exception as error:
        culprit = unpicklable(shared)
        raise InputError(
            f"{culprit} cannot be sent to another process ({error}). Define it at the top level of a module, or use "
            "Threads(), which shares memory, or Dask(client), which ships functions by value") from error


def unpicklable(x: object, path: str = "") -> str:
    """The innermost named part of x that does not pickle."""
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(x, dict):
        parts = ((f"{path}[{k!r}]" if path else f"branch {k!r}", v) for k, v in x.items())
    elif isinstance(x, list) or type(x) is tuple:
        parts = ((f"{path}[{k}]", v) for k, v in enumerate(x))
    elif isinstance(x, tuple):      # whose fields have names that say nothing to who reads the error
        parts = ((path, v) for v in x)
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


def blas_held(blas: bool) -> AbstractContextManager[None]:
    """:func:`one_blas_thread`, but for work that calls no BLAS.

    Telling OpenBLAS anything starts its threads again where a fork has ended them, and then they spin for 30 ms.
    """
    return one_blas_thread() if blas else nullcontext()


@lru_cache(maxsize=1)
def _blas(modules: int) -> Any:
    """The BLAS libraries of this process: looking for them takes milliseconds, so only once new modules are there."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def limit_blas() -> None:
    """BLAS held to one thread for the rest of this process."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")
