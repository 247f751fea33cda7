"""Clocks and memory gauges: functions of the product are timed where they stand."""

from __future__ import annotations

import inspect
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypedDict, TypeVar

import torch

from langevin_xtal.report.roofline import (
    Tally,
)

P = ParamSpec("P")
R = TypeVar("R")


class Rate(TypedDict):
    """:class:`Spread` as a table."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def table(self) -> Rate:
        """The three by name."""
        return {"median": self.median, "low": self.low, "high": self.high}


class Stopwatch:
    """Seconds spent in named stages, each without the stages entered inside it.

    Every thread is timed on its own; seconds of all threads are added.

    Parameters
    ----------
    synchronise
        Waits for the device; called before every reading of the clock.
    clock
        Seconds from any origin.
    """

    def __init__(
        self,
        synchronise: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise, self._clock = synchronise, clock
        self._lock, self._here = threading.Lock(), threading.local()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        stack: list[str] = getattr(self._here, "stack", [])
        self._here.stack = stack
        self._lap(stack)
        stack.append(name)
        try:
            yield
        finally:
            self._lap(stack)
            stack.pop()

    def _lap(self, stack: list[str]) -> None:
        self._synchronise()
        now = self._clock()
        if stack:
            with self._lock:
                own = self.seconds.get(stack[-1], 0.0)
                self.seconds[stack[-1]] = own + now - self._here.since
        self._here.since = now


def _staged(watch: Stopwatch | Tally, function: Callable[P, R], name: str) -> Callable[P, R]:
    """The function as a stage."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with watch.stage(name):
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def watched(watch: Stopwatch | Tally, points: Mapping[str, str]) -> Iterator[None]:
    """Time or count the functions that ``points`` maps to stages; the keys are ``module:name``.

    A function is replaced wherever a module of the package holds it, a method
    (``module:Class.name``) in its class; both are put back afterwards.
    """
    undo: list[tuple[object, str, object]] = []
    try:
        for path, name in points.items():
            for owner, attribute, raw in _holders(path):
                inner = raw.__func__ if isinstance(raw, classmethod) else raw
                timed = _staged(watch, inner, name)
                undo.append((owner, attribute, raw))
                is_class_method = isinstance(raw, classmethod)
                setattr(owner, attribute, classmethod(timed) if is_class_method else timed)
        yield
    finally:
        for owner, attribute, raw in reversed(undo):
            setattr(owner, attribute, raw)


def _holders(path: str) -> list[tuple[object, str, Any]]:
    """(owner, attribute, value) everywhere the function is looked up."""
    module_name, _, name = path.partition(":")
    owner: object = import_module(module_name)
    *classes, attribute = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    raw = inspect.getattr_static(owner, attribute)
    found = [(owner, attribute, raw)]
    if not classes:
        mine = [m for k, m in list(sys.modules.items()) if k.startswith("langevin_xtal")]
        found += [
            (m, key, raw)
            for m in mine
            if m is not owner
            for key, value in list(vars(m).items())
            if value is raw
        ]
    return found


class PeakMemory:
    """Largest memory in use while a block runs [bytes]."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device.startswith("cuda")
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            _reset_peak()
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated() if self.on_cuda else _peak()


def _reset_peak() -> None:
    """On Linux the kernel forgets the peak so far; elsewhere it stands for the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(k.split()[1]) for k in lines if k.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def synchroniser(device: str) -> Callable[[], None]:
    """What waits for everything started on the device."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def seconds_of(
    run: Callable[[], object], repeat: int, synchronise: Callable[[], None]
) -> list[float]:
    """Of each of ``repeat`` runs."""
    found = []
    for _ in range(repeat):
        synchronise()
        start = time.perf_counter()
        run()
        synchronise()
        found.append(time.perf_counter() - start)
    return found


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch have so many threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
