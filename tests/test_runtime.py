"""Limits on the time a block may take."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import time
from typing import Any, Literal

import pytest

from langevin_xtal.runtime import OutOfTime, time_limit

CLOCKS: list[Literal["wall", "cpu"]] = ["wall", "cpu"]


def spin(seconds: float) -> None:
    """Burn CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize("clock", CLOCKS)
class TestTimeLimit:
    def test_a_long_block_ends(self, clock: Literal["wall", "cpu"]) -> None:
        with pytest.raises(OutOfTime), time_limit(0.05, clock):
            spin(20)

    def test_a_short_one_is_left_alone(self, clock: Literal["wall", "cpu"]) -> None:
        before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGPROF)
        with time_limit(60, clock):
            spin(0.01)
        assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGPROF)) == before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)

    def test_a_block_that_swallows_it_once(self, clock: Literal["wall", "cpu"]) -> None:
        def stubborn() -> None:
            with contextlib.suppress(BaseException):
                spin(20)
            spin(20)

        with pytest.raises(OutOfTime), time_limit(0.05, clock):
            stubborn()

    def test_raised_inside_the_garbage_collector(
        self, clock: Literal["wall", "cpu"], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # pytest's own takes long, and may be cut short by the next alarm
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)

        def slow(phase: str, info: dict[str, Any]) -> None:
            spin(0.1)

        def collect() -> None:
            gc.collect()
            spin(20)

        gc.callbacks.append(slow)
        try:
            with pytest.raises(OutOfTime), time_limit(0.05, clock):
                collect()
        finally:
            gc.callbacks.remove(slow)

    def test_no_limit_in_another_thread(self, clock: Literal["wall", "cpu"]) -> None:
        done = []

        def work() -> None:
            with time_limit(0.01, clock):
                spin(0.05)
                done.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert done == [True]
