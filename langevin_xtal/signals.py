"""Ctrl-C and SIGTERM: the command line ends within two seconds, whatever is going on.

The first signal raises KeyboardInterrupt (or :class:`Terminated`) in the main thread, so that what
is finished is written and worker processes are ended on the way out. A thread watches: when that
takes longer than :data:`GRACE_SECONDS`, because some library computes on or waits, or when a
second signal comes, it ends the workers and the process itself. Files are whole or not there and
stores are written in transactions, so that nothing is lost by it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 1.5
"""From a signal to the end."""
SENTENCES = {
    signal.SIGINT: "interrupted; what was finished is kept",
    signal.SIGTERM: "terminated; what was finished is kept",
}
AGAIN_SECONDS = 0.3
"""Signals closer together than this are one: a shell and a terminal may both send it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where :func:`watch_signals` was called."""


class _State:
    first: int | None = None  #: the signal that came
    raising = True  #: whether the next one raises
    said = False  #: whether the sentence is on the terminal
    grace = GRACE_SECONDS


def watch_signals() -> None:
    """Let SIGINT and SIGTERM end this process; for programs, not for libraries.

    SIGINT stays ignored where it is, as in jobs that a script starts in the background. Nothing
    changes on Windows, where signals wake no pipe.
    """
    if sys.platform == "win32":
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _arrived)
    signal.signal(signal.SIGTERM, _arrived)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals").start()


def came() -> bool:
    """Whether a signal that ends this process has come."""
    return _State.first is not None


def code_of(error: BaseException | None) -> int:
    """Exit code of an interruption: 130, or 143 for SIGTERM."""
    return 128 + _number(error)


def sentence_of(error: BaseException | None) -> str:
    """What to say of an interruption; the watching thread says it no more."""
    _State.said = True
    return SENTENCES[_number(error)]


def _number(error: BaseException | None) -> signal.Signals:
    if _State.first is not None:
        return signal.Signals(_State.first)
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def raise_no_more() -> None:
    """The work is over: a signal from now on hastens the end and raises nothing."""
    _State.raising = False


def leave(code: int) -> NoReturn:
    """End this process and its workers now, without waiting for threads or taking Python down.

    That may last seconds, in which no thread watches any more.
    """
    for process in multiprocessing.active_children():
        process.kill()
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def allow(seconds: float) -> None:
    """Give what follows a signal so much time, where several processes stop together."""
    _State.grace = seconds


def _arrived(number: int, frame: FrameType | None) -> None:
    if not _State.raising:
        return
    _State.raising = False
    _State.first = number
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _watch(reader: int) -> None:
    number = _next(reader, None)
    while number is None:
        number = _next(reader, None)
    _State.first = number
    begin = time.monotonic()
    while (left := begin + _State.grace - time.monotonic()) > 0:
        again = _next(reader, left)
        if again is not None and time.monotonic() - begin > AGAIN_SECONDS:
            break
    _end(number)


def _next(reader: int, seconds: float | None) -> int | None:
    """A signal that ends the process, None for others and when the time is over."""
    ready, _, _ = select.select([reader], [], [], seconds)
    numbers = os.read(reader, 64) if ready else b""
    return next((n for n in numbers if n in SENTENCES), None)


def _end(number: int) -> None:
    with suppress(Exception):
        for process in multiprocessing.active_children():
            process.kill()
    with suppress(Exception):
        sys.stdout.flush()
    if not _State.said:
        with suppress(OSError):
            os.write(2, f"\nError: {SENTENCES[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)
