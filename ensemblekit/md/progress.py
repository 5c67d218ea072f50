"""A bar that counts frames: frames/s and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = bool | Callable[[int, int | None], None]


@contextmanager
def counted(progress: Progress, total: int, what: str = "", done: int = 0) -> Iterator[Callable[[int, int | None], None]]:
    """A function of (frames done, frames in all) that tells a bar on the terminal, the function given, or nobody."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield _quiet
        return
    from tqdm.auto import tqdm

    look = "{desc}: {percentage:3.0f} % |{bar}| {n_fmt}/{total_fmt} frames, {rate_fmt}, {remaining} left"
    with tqdm(total=total, initial=done, desc=what or "frames", unit=" frames", unit_scale=True, dynamic_ncols=True,
              bar_format=look) as bar:
        def tell(done: int, total: int | None) -> None:
            bar.update(done - bar.n)

        yield tell


def _quiet(done: int, total: int | None) -> None:
    pass
