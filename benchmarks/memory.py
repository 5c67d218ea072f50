"""How much memory of its own a piece of work takes: anonymous pages, sampled in a fresh process."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
INTERVAL = 0.0005


def anonymous_bytes() -> int:
    """Anonymous memory of this process (RssAnon): mapped files are left out, the kernel can drop their pages."""
    for line in STATUS.read_text("ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no line RssAnon")


def extra_memory(work: Callable[..., Any], *args: Any, warm: tuple[Any, ...] | None = None) -> int | None:
    """Bytes of anonymous memory that ``work(*args)`` takes at its peak, above that before; None off Linux.

    Measured in a fresh process, after ``work(*warm)`` on something small: neither imports nor kernels are part of it.
    """
    if not STATUS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])       # imported once, in a process that does nothing else
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measured, work, args, warm).result()


def _measured(work: Callable[..., Any], args: tuple[Any, ...], warm: tuple[Any, ...] | None) -> int:
    if warm is not None:
        work(*warm)
    before = anonymous_bytes()
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(INTERVAL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        kept = work(*args)
        peak = max(peak, anonymous_bytes())
        del kept
    finally:
        done.set()
        watcher.join()
    return peak - before
