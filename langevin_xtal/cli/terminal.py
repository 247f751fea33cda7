"""What the commands print: without passwords, and without what steers a terminal."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from langevin_xtal.errors import LangevinXtalWarning
from langevin_xtal.text import printable

LINE_SECONDS = 60.0
"""Between lines on how far something is, where there is no terminal for a bar."""


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line; names of files and structures in it may hold anything."""
    click.echo(printable(str(text)), err=err)


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Warnings of the package are a line each on stderr while the block runs."""
    with warnings.catch_warnings():
        shown = warnings.showwarning
        warnings.filterwarnings("always", category=LangevinXtalWarning)

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, LangevinXtalWarning):
                echo(f"Warning: {' '.join(str(message).split())}", err=True)
            else:
                shown(message, category, *rest, **more)

        warnings.showwarning = show
        yield


@contextmanager
def lines(line: Callable[[], str]) -> Iterator[None]:
    """A line on stderr every :data:`LINE_SECONDS` while the block runs; none while it is empty."""
    over = threading.Event()

    def speak() -> None:
        while not over.wait(LINE_SECONDS):
            if text := line():
                echo(text, err=True)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Pace:
    """How far something is, as a line."""

    def __init__(self) -> None:
        self._start: tuple[str, int, float] | None = None
        self._now = (0, 0)

    def update(self, title: str, done: int, planned: int) -> None:
        """Take note."""
        if self._start is None or self._start[0] != title:
            self._start = (title, done, time.monotonic())
        self._now = (done, planned)

    def __call__(self) -> str:
        """Such as ``"relaxing: 32 of 200 in 4 min, about 20 min left"``."""
        if self._start is None:
            return ""
        title, first, begin = self._start
        done, planned = self._now
        seconds = time.monotonic() - begin
        of = f" of {planned}" if planned else ""
        text = f"{title}: {done}{of} in {duration(seconds)}"
        if not first < done < planned:  # what was done before does not count for the rate
            return text
        return f"{text}, about {duration(seconds / (done - first) * (planned - done))} left"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
