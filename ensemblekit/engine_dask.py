"""Work on a dask.distributed cluster: the scheduler is dask's, the pieces and their order are ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ensemblekit.engine import one_blas_thread, ordered
from ensemblekit.errors import MissingExtraError, WorkerLostError

if TYPE_CHECKING:
    from distributed import Client, Future

LOOK_SECONDS = 2.0
LOOKS = 15      # a cluster that grows and shrinks by itself may be without workers for a while


class Dask:
    """Runs pieces on the workers of a ``distributed.Client``.

    Only paths and ranges travel for stored fields; the branches (maps and reducers) are shipped once a worker, by
    value, so lambdas work. Workers need to see the files under the same paths.
    """

    def __init__(self, client: Client, lookahead: int | None = None):
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("dask.distributed", "dask") from error
        self.client = client
        self.lookahead = lookahead

    def map(self, func: Callable[[Any, Any], Any], items: Iterable[Any], shared: object, *, blas: bool = True) -> Iterator[Any]:
        if self.client.status != "running":
            raise WorkerLostError(f"the client of the cluster is {self.client.status}; make a new one")
        try:
            threads = sum(self.client.nthreads().values())
            if not threads:
                raise WorkerLostError("the cluster has no workers; start some (dask worker ADDRESS)")
            (there,) = self.client.scatter([shared], broadcast=True, hash=False)
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            if isinstance(error, WorkerLostError):
                raise
            raise WorkerLostError(f"the cluster cannot be reached: its scheduler has gone "
                                  f"({type(error).__name__}: {error})") from error
        yield from ordered(lambda item: Awaited(self.client.submit(_work, func, there, item, pure=False), self.client), items,
                           self.lookahead or 2 * threads, lost=_lost)


class Awaited:
    """A future of the cluster that does not wait for ever where no worker is left to work on it."""

    def __init__(self, future: Future, client: Client):
        self.future, self.client = future, client

    def cancel(self) -> None:
        self.future.cancel()

    def result(self) -> Any:
        alone = 0
        while True:
            try:
                return self.future.result(timeout=LOOK_SECONDS)
            except TimeoutError as error:
                if self.future.done():      # the work's own
                    raise
                alone = 0 if self.client.nthreads() else alone + 1
                if alone > LOOKS:
                    raise WorkerLostError(f"the cluster has had no workers for {LOOKS * LOOK_SECONDS:g} s; start some, and "
                                          "call again") from error


def _lost(error: BaseException) -> str:
    """That the cluster, not the work, is what failed, in words."""
    import distributed

    if isinstance(error, distributed.scheduler.KilledWorker):
        return f"workers of the cluster died again and again under this work, most likely of memory ({error})"
    if type(error).__module__.partition(".")[0] == "distributed" or isinstance(error, distributed.comm.CommClosedError):
        return f"the cluster lost the work: a worker, the scheduler or the client has gone ({type(error).__name__}: {error})"
    return ""


def _work(func: Callable[[Any, Any], Any], shared: object, item: object) -> Any:
    with one_blas_thread():
        return func(shared, item)
