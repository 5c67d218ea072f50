"""Worker processes that end with their parent, however it ends, and whose own end is told.

``concurrent.futures`` cannot be used for this: its shutdown waits for all that was queued, a second Ctrl-C while it
does leaves its workers behind for ever, and a worker that dies takes the names of its work with it.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import chain, islice
from multiprocessing import connection, get_context, parent_process, util
from multiprocessing.context import SpawnProcess
from typing import Any

from ensemblekit.errors import EnsemblekitError, InputError, WorkerLostError

LOOK_SECONDS = 1.0      # how often a worker makes sure of its parent where no signal tells it
LEAVE_SECONDS = 10.0    # what a worker may take to leave after its last piece before it is killed
PR_SET_PDEATHSIG = 1
SIGNALS = {signal.SIGSEGV: "a crash in compiled code",
           signal.SIGBUS: "a file cut short while it was read, or a disk that is full",
           signal.SIGABRT: "an abort in compiled code", signal.SIGTERM: "ended from outside"}
if hasattr(signal, "SIGKILL"):
    SIGNALS[signal.SIGKILL] = "most likely the system ran out of memory: use fewer workers, or a smaller limit"


class Workers:
    """Fresh processes, each fed by a thread of this one; ``submit`` gives a future, ``close`` and ``kill`` end them.

    The threads are daemons and the processes are killed at the latest when the interpreter ends, so nothing that is
    interrupted here, at whatever line, can keep it alive.
    """

    def __init__(self, prepare: Callable[[], None], shared: bytes, n: int):
        self.todo: queue.SimpleQueue[tuple[Future, bytes, Any] | None] = queue.SimpleQueue()
        self.processes: list[SpawnProcess] = []
        self.threads: list[threading.Thread] = []
        self.last = util.Finalize(self, _kill, (self.processes,), exitpriority=100)     # before children are joined
        # The signal at a parent's death is sent at that of the thread that made the worker: only the main one lasts.
        lasting = threading.current_thread() is threading.main_thread()
        try:
            for _ in range(n):
                self._start(prepare, shared, lasting)
        except BaseException:
            self.kill()
            raise

    def _start(self, prepare: Callable[[], None], shared: bytes, lasting: bool) -> None:
        spawn = get_context("spawn")    # not fork: after threads (BLAS, numba, HDF5) it can deadlock in the child
        here, there = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(there, os.getpid(), lasting, prepare), name="ensemblekit worker")
        self.processes.append(process)      # before it lives: an interrupt between the two would lose it
        process.start()
        there.close()
        thread = threading.Thread(target=self._feed, args=(process, here, shared), daemon=True, name="ensemblekit feeder")
        thread.start()
        self.threads.append(thread)

    def submit(self, func: Callable[[Any, Any], Any], item: object) -> Future:
        """The future of ``func(shared, item)`` in a worker. Raises InputError where they cannot travel."""
        try:
            work = pickle.dumps((func, item), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise InputError(f"{item!r} cannot be sent to another process ({error}). Use Threads(), which shares "
                             "memory") from error
        future: Future = Future()
        self.todo.put((future, work, item))
        return future

    def _feed(self, process: SpawnProcess, pipe: connection.Connection, shared: bytes) -> None:
        """Hand one item after the other to one worker: the body of its thread."""
        begun = False
        while (task := self.todo.get()) is not None:
            future, work, item = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if not begun:
                    pipe.send_bytes(shared)
                    begun = True
                pipe.send_bytes(work)
                connection.wait([pipe, process.sentinel])
                answer = pipe.recv_bytes()      # what a worker sent before it died is still in the pipe
            except (EOFError, OSError):
                future.set_exception(WorkerLostError(_cause(process), (item,)))
                continue
            try:
                failed, value = pickle.loads(answer)
            except Exception as error:
                failed = True
                value = EnsemblekitError(f"what a worker answered cannot be read here: {type(error).__name__}: {error}")
            if failed:
                future.set_exception(value)
            else:
                future.set_result(value)
            del task, future, item, work, answer, value     # no result is kept while the next is awaited
        pipe.close()

    def close(self) -> None:
        """Let every worker leave after its work, and wait for that."""
        for _ in self.threads:
            self.todo.put(None)
        for thread in self.threads:
            thread.join()
        for process in self.processes:
            process.join(LEAVE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End every worker at once, whatever it does; an interrupt meanwhile is raised after it."""
        interrupt = None
        while True:
            try:
                _kill(self.processes)
                self.last.cancel()
                break
            except KeyboardInterrupt as again:
                interrupt = again
        for _ in self.threads:
            self.todo.put(None)
        if interrupt is not None:
            raise interrupt


def run_in_processes(func: Callable[[Any, Any], Any], items: Iterable[Any], shared: bytes, n: int,
                     prepare: Callable[[], None], ordered: Callable[..., Iterator[Any]]) -> Iterator[Any]:
    """The values of ``func(shared, item)`` in order, from up to `n` workers that are gone when this has returned.

    At the first failure, at Ctrl-C and when the caller stops listening the workers are killed, not waited for.
    """
    feed = iter(items)
    first = list(islice(feed, n))       # no worker without work
    if not first:
        return
    workers = Workers(prepare, shared, len(first))
    try:
        yield from ordered(lambda item: workers.submit(func, item), chain(first, feed), 2 * n, wait=False)
        workers.close()
    finally:
        workers.kill()


def _kill(processes: list[SpawnProcess]) -> None:
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join()


def _cause(process: SpawnProcess) -> str:
    """How a worker ended, in words."""
    process.join(1.0)
    code = process.exitcode
    if code is None:
        return "a worker process closed its end of the line"
    if code < 0:
        try:
            name, why = signal.Signals(-code).name, SIGNALS.get(signal.Signals(-code), "")
        except ValueError:
            name, why = f"signal {-code}", ""
        return f"a worker process died of {name}{f' ({why})' if why else ''}"
    return (f"a worker process ended with exit code {code}. If it ended as it began, put the call under "
            'if __name__ == "__main__": in the script (each worker imports it)')


# -- in the worker ------------------------------------------------------------------------------------------------------

def _serve(pipe: connection.Connection, parent: int, lasting: bool, prepare: Callable[[], None]) -> None:
    """The life of a worker: shared things once, then item after item, until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C is the parent's to handle: it kills its workers
    _end_with(parent, lasting)
    shared: Any = None
    problem: BaseException | None = None
    try:
        blob = pipe.recv_bytes()
        try:
            shared = pickle.loads(blob)
            prepare()
        except BaseException as error:
            problem = InputError(
                f"a worker process could not load what it was to run ({type(error).__name__}: {error}). Define maps at the "
                "top level of a module that can be imported (a script of its own, not a notebook or the prompt), or use "
                "Threads()")
        del blob
        while True:
            work = pipe.recv_bytes()
            pipe.send_bytes(_answer(shared, work) if problem is None else _packed(True, problem))
            del work
    except (EOFError, OSError):     # the parent has closed the line, or is gone
        return


def _answer(shared: object, work: bytes) -> bytes:
    try:
        func, item = pickle.loads(work)
        value = func(shared, item)
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        return _packed(True, EnsemblekitError(f"the work ended its process by {type(error).__name__}({error}); raise an "
                                              "ordinary error instead"))
    except BaseException as error:
        return _packed(True, error)
    return _packed(False, value)


def _packed(failed: bool, value: object) -> bytes:
    """An answer as bytes; an error that could not be read on the other side goes in words."""
    try:
        packed = pickle.dumps((failed, value), pickle.HIGHEST_PROTOCOL)
        if failed:
            pickle.loads(packed)
        return packed
    except Exception as error:
        words = (f"{type(value).__name__}: {value}" if failed else
                 f"the result, a {type(value).__name__}, cannot be sent back from another process ({error}). Return arrays or "
                 "plain data, or use Threads()")
        return pickle.dumps((True, EnsemblekitError(words)))


def _end_with(parent: int, lasting: bool) -> None:
    """Make this process end when its parent does: by the system where it can, else by a thread that watches."""
    if lasting and sys.platform == "linux":     # reaches a map, too, that never lets go of Python's lock
        try:
            import ctypes

            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        except (OSError, AttributeError):
            pass
    threading.Thread(target=_watch, args=(parent,), daemon=True, name="ensemblekit watch").start()


def _watch(parent: int) -> None:
    process = parent_process()
    while os.getppid() == parent and not (process is not None and connection.wait([process.sentinel], LOOK_SECONDS)):
        pass
    os._exit(1)
