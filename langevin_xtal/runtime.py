"""The process as a whole: its allocator, limits on the time a block may take, other processes."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import Literal

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP = 1 << 30
_PR_SET_PDEATHSIG = 1
PARENT_SECONDS = 0.5
"""How often a worker looks whether its parent is there."""


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks instead of returning them to the system.

    With the default thresholds every large temporary is mapped, faulted in and returned, which
    costs a factor of 3 to 15 in training and sampling. Does nothing where there is no glibc.

    Returns
    -------
    bool
        Whether the thresholds were raised.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP)) and bool(
        mallopt(_M_TRIM_THRESHOLD, 2 * _KEEP - 1)
    )


class OutOfTime(BaseException):
    """A limit of time has been reached; not an Exception, so that few things swallow it."""


@contextmanager
def time_limit(seconds: float, clock: Literal["wall", "cpu"]) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block after so long.

    It is raised again until the block ends: Python drops exceptions raised inside finalisers and
    callbacks of the garbage collector. CPU time of the process, rather than the wall clock, gives
    the same answers on a busy machine. No limit outside the main thread, or without ``setitimer``.
    """
    possible = hasattr(signal, "setitimer")
    if not possible or threading.current_thread() is not threading.main_thread():
        yield
        return
    timer, number = (
        (signal.ITIMER_REAL, signal.SIGALRM)
        if clock == "wall"
        else (signal.ITIMER_PROF, signal.SIGPROF)
    )

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(number, stop)
    signal.setitimer(timer, seconds, min(seconds, 1.0))
    try:
        yield
    finally:
        signal.setitimer(timer, 0.0)
        signal.signal(number, before)


def host() -> str:
    """This computer; processes of another container on it are other ones' too."""
    with suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def is_running(pid: int) -> bool:
    """Whether there is such a process on this computer."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def follow_parent(parent: int, by_main_thread: bool = True) -> None:
    """End this process when the one that started it has ended, even by SIGKILL.

    Parameters
    ----------
    parent
        Its number.
    by_main_thread
        Whether its main thread started this one. Linux counts the end of the thread that did as
        the end of the parent, so only then it is asked to send a signal; a thread watches too.
    """
    if by_main_thread and sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)
