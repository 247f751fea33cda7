"""Signals and worker processes: nothing computes on, nothing is left, and the code says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from langevin_xtal import runtime
from langevin_xtal.cli import EXIT_CODES
from langevin_xtal.parallel import _let_end_quietly
from tests.arena import environment, session
from tests.attacks import STOP_SECONDS

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="looks at processes by /proc"
)

BUSY = """
import sys, threading, time
from langevin_xtal import runtime, signals
from langevin_xtal.errors import LangevinXtalError
from langevin_xtal.parallel import parallel_map

def slow(x):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(10_000))
    return x

def work():
    try:
        list(parallel_map(slow, range(8), workers=2, chunk=1))
    except LangevinXtalError as error:
        print(error)

if __name__ == "__main__":
    if "watched" in sys.argv:
        signals.watch_signals()
    if "deaf" in sys.argv:  # as a library that swallows what Python raises
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    if "thread" in sys.argv:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
"""


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a script whose two workers are busy for a minute, and wait until they are there."""
    (tmp_path / "busy.py").write_text(BUSY)

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "busy.py"), *words],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + 60
        wanted = 1 if "deaf" in words else 4  # itself, the tracker of semaphores, two workers
        while len(session(process.pid)) < wanted and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.7)
        assert process.poll() is None, process.communicate()
        return process

    return start


def end(process: subprocess.Popen[str], which: int, everyone: bool = False) -> tuple[float, str]:
    """Send a signal; seconds until all processes are gone, and what was said."""
    began = time.monotonic()
    (os.killpg if everyone else os.kill)(process.pid, which)
    try:
        _, reported = process.communicate(timeout=30)
        while session(process.pid) and time.monotonic() < began + 30:
            time.sleep(0.02)
        return time.monotonic() - began, reported
    finally:
        for pid in session(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


class TestOrphans:
    @pytest.mark.parametrize("words", [(), ("thread",)])
    @pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGTERM])
    def test_workers_notice_that_their_parent_is_gone(
        self, begin: Callable[..., subprocess.Popen[str]], which: int, words: tuple[str, ...]
    ) -> None:
        process = begin(*words)
        took, _ = end(process, which)
        assert process.returncode == -which
        assert took < STOP_SECONDS

    def test_a_process_whose_parent_is_gone_already(self) -> None:
        child = os.fork()
        if not child:
            try:
                runtime.follow_parent(os.getppid() + 1)
            finally:
                os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    def test_when_one_dies_the_others_go(
        self, begin: Callable[..., subprocess.Popen[str]]
    ) -> None:
        process = begin()
        victim = max(session(process.pid))
        os.kill(victim, signal.SIGKILL)
        out, err = process.communicate(timeout=30)
        assert "a worker process died" in out
        assert not err
        assert process.returncode == 0
        until = time.monotonic() + STOP_SECONDS
        while session(process.pid) and time.monotonic() < until:
            time.sleep(0.02)
        assert not session(process.pid)


class TestWatched:
    @pytest.mark.parametrize("everyone", [False, True])
    def test_an_interrupt(
        self, begin: Callable[..., subprocess.Popen[str]], everyone: bool
    ) -> None:
        process = begin("watched")
        took, reported = end(process, signal.SIGINT, everyone)
        # a script that does not catch it prints a traceback; its workers print none
        assert reported.count("Traceback") == 1
        assert reported.rstrip().endswith("KeyboardInterrupt")
        assert took < STOP_SECONDS

    @pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
    def test_what_heeds_nothing_is_ended(
        self, begin: Callable[..., subprocess.Popen[str]], which: signal.Signals
    ) -> None:
        process = begin("watched", "deaf")
        took, reported = end(process, which)
        assert process.returncode == 128 + which
        assert process.returncode in EXIT_CODES
        assert reported.strip().startswith("Error: ")
        assert reported.strip().endswith("; what was finished is kept")
        assert took < STOP_SECONDS

    def test_a_second_signal_hastens_it(self, begin: Callable[..., subprocess.Popen[str]]) -> None:
        process = begin("watched", "deaf")
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 143
        assert time.monotonic() - began < 1.4  # less than the grace of 1.5 s


class TestCommand:
    @pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
    def test_before_it_has_begun(self, which: signal.Signals, tmp_path: Path) -> None:
        """While the packages are imported, as soon as signals are watched."""
        code = (
            "import langevin_xtal.signals as s, os, sys\n"
            "watch = s.watch_signals\n"
            "def watch_and_tell():\n"
            "    watch()\n"
            "    print('ready', flush=True)\n"
            "s.watch_signals = watch_and_tell\n"
            "from langevin_xtal.cli import main\n"
            "main(['sample', '--elements', 'Cu', '--sg', '225', '--n', '100000'])\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        took, reported = end(process, which, everyone=True)
        assert process.returncode == 128 + which
        assert "Traceback" not in reported
        assert reported.strip().startswith("Error: ")
        assert took < STOP_SECONDS


def test_an_end_marker_that_no_worker_takes_is_not_reported() -> None:
    reported = []
    with ProcessPoolExecutor(1) as pool:
        queue = pool._call_queue
        queue._on_queue_feeder_error = lambda error, item: reported.append(item)
        _let_end_quietly(pool)
        for item in (None, "work"):
            queue._on_queue_feeder_error(OSError(9, "Bad file descriptor"), item)
    assert reported == ["work"]
