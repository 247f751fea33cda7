"""Independent items of work, in order, with bounded memory: in parallel processes, or elsewhere.

An :class:`Engine` does the work somewhere else, as on a cluster (:mod:`langevin_xtal.cluster`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

from langevin_xtal.errors import LangevinXtalError
from langevin_xtal.runtime import follow_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # threads inside workers cost far more than they gain
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "SPGLIB_WARNING": "OFF",  # spglib's C code writes each retry to stderr
}
"""Environment of the work."""


class Engine(Protocol):
    """Does work in another place than this computer's processes."""

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], chunk: int
    ) -> Iterator[Result]:
        """As :func:`parallel_map`; a piece whose worker is lost is done again by another."""
        ...


_ENGINE: ContextVar[Engine | None] = ContextVar("engine", default=None)


@contextmanager
def use_engine(engine: Engine) -> Iterator[None]:
    """Let :func:`parallel_map` do its work there in this block."""
    token = _ENGINE.set(engine)
    try:
        yield
    finally:
        _ENGINE.reset(token)


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    chunk: int = 16,
) -> Iterator[Result]:
    """``function`` of every item, in the order of the items.

    Parameters
    ----------
    function
        Picklable: a function of a module, or a :func:`functools.partial` of one.
    workers
        Processes; one per CPU by default. One worker runs in this process. Processes are spawned:
        a script that uses more than one must guard its entry point with
        ``if __name__ == "__main__"``. Of no meaning where an :class:`Engine` is in use.
    chunk
        Items sent to a worker at a time.

    Raises
    ------
    LangevinXtalError
        When a worker dies. What ``function`` raises is passed on.

    Workers end with this process, however it ends, and when the iterator is closed or an exception
    passes through it: at once then, whatever they are doing. SIGINT and SIGTERM do not reach them.
    """
    engine = _ENGINE.get()
    if engine is not None:
        yield from engine.map(function, items, chunk)
        return
    workers = workers or os.cpu_count() or 1
    with _environment(ENVIRONMENT):
        if workers == 1:
            yield from map(function, items)
        else:
            yield from _spawned(function, items, workers, chunk)


def _spawned(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, chunk: int
) -> Iterator[Result]:
    source = iter(items)
    chunks = iter(lambda: list(islice(source, chunk)), [])
    apply = partial(apply_to, function)
    in_main = threading.current_thread() is threading.main_thread()
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=follow_parent,
        initargs=(os.getpid(), in_main),
    )
    _let_end_quietly(pool)
    finished = False
    try:
        waiting: dict[int, Future[list[Any]]] = {}
        submitted = delivered = 0
        exhausted = False
        while not exhausted or waiting:
            while not exhausted and len(waiting) < 4 * workers:  # bounded memory
                batch = next(chunks, [])
                if not batch:
                    exhausted = True
                    break
                with _signals_blocked():  # a submission may start a process
                    waiting[submitted] = pool.submit(apply, batch)
                submitted += 1
            if waiting:
                wait([waiting[delivered]], return_when=FIRST_COMPLETED)
                yield from waiting.pop(delivered).result()
                delivered += 1
        finished = True
    except BrokenProcessPool:
        raise LangevinXtalError(
            "a worker process died; run again with one worker, or guard the calling script "
            'with if __name__ == "__main__"'
        ) from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        if not finished:
            for process in processes:  # they heed no SIGTERM, and may be busy for minutes
                process.kill()


def _let_end_quietly(pool: ProcessPoolExecutor) -> None:
    """Print nothing where workers that were killed cannot hear any more that work is over.

    The pool's queue prints a traceback then: its end marker (None) meets a closed pipe.
    """
    queue: Any = getattr(pool, "_call_queue", None)
    report = getattr(queue, "_on_queue_feeder_error", None)
    if report is None:
        return

    def only_of_work(error: Exception, item: object) -> None:
        if item is not None:
            report(error, item)

    queue._on_queue_feeder_error = only_of_work


def apply_to(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """``function`` of every item."""
    return [function(item) for item in items]


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """SIGINT and SIGTERM held back, also in processes started meanwhile, from their first moment.

    Both may reach the whole process group; only the parent acts on them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Environment variables for the workers, and as they were afterwards."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
