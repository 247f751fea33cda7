"""Some attacks of each kind; ``scripts/attack.py`` makes thousands of them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.arena import Arena
from tests.attacks import Tally, warm_up
from tests.postgres import running_server

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forks, and limits memory by Linux's means"
)
QUICK = (
    *("mutated file", "edited store", "edited checkpoint", "edited cache", "edited folder"),
    *("hostile name", "secret", "foreign database", "random line"),
)
SLOW = ("full disk", "read only", "SIGKILL", "SIGINT", "SIGTERM", "several processes")


@pytest.fixture(scope="module")
def arena(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """What is attacked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "")  # put back afterwards
        patch.setenv("LANGEVIN_XTAL_CACHE", "")
        warm_up()
        root = tmp_path_factory.mktemp("arena")
        with running_server() as server:
            yield Arena(root, str(tiny_path), 0, Tally(), server)


@pytest.fixture(autouse=True)
def without_faults(arena: Arena) -> Iterator[None]:
    """Each test leaves the tally without a fault."""
    yield
    reported = arena.tally.faults
    arena.tally.faults = {}
    assert not reported


@pytest.mark.parametrize(
    "kind", [*QUICK[:5], *(pytest.param(kind, marks=pytest.mark.slow) for kind in QUICK[5:])]
)
def test_quick(arena: Arena, kind: str) -> None:
    before = sum(arena.tally.tries.values())
    for number in range(8):
        arena.kinds()[kind](number)
    assert sum(arena.tally.tries.values()) - before >= 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW)
def test_slow(arena: Arena, kind: str) -> None:
    before = sum(arena.tally.tries.values())
    arena.kinds()[kind](0)
    assert sum(arena.tally.tries.values()) - before >= 1


@pytest.mark.slow
def test_postgres(arena: Arena) -> None:
    if arena.server is None:
        pytest.skip("PostgreSQL is not installed")
    for number in range(3):
        assert arena.postgres(number) == ""


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGKILL])
def test_with_workers(arena: Arena, which: signal.Signals) -> None:
    assert arena.with_workers(0, which) == ""


def test_memory_and_time_were_bounded(arena: Any) -> None:
    """Of all tries above: the limits of a process would have shown as a crash or a hang."""
    assert arena.tally.mebibytes < 700
    assert arena.tally.seconds < 60
