"""Work on a dask.distributed cluster: the scheduler is dask's, the pieces and their order are ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ensemblekit.engine import one_blas_thread, ordered
from ensemblekit.errors import MissingExtraError


class Dask:
    """Runs pieces on the workers of a ``distributed.Client``.

    Only paths and ranges travel for stored fields; the branches (maps and reducers) are shipped once a worker, by
    value, so lambdas work. Workers need to see the files under the same paths.
    """

    def __init__(self, client: Any, lookahead: int | None = None):
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("dask.distributed", "dask") from error
        self.client = client
        self.lookahead = lookahead

    def map(self, func: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any) -> Iterator[Any]:
        ahead = self.lookahead or 2 * max(1, sum(self.client.nthreads().values()))
        (there,) = self.client.scatter([shared], broadcast=True, hash=False)
        yield from ordered(lambda item: self.client.submit(_work, func, there, item, pure=False), items, ahead)


def _work(func: Callable[[Any, Any], Any], shared: Any, item: Any) -> Any:
    with one_blas_thread():
        return func(shared, item)
