"""One table of exit codes, and the cases that are easily wrong."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import click
import pytest

from langevin_xtal.cli import EXIT_CODES, run
from langevin_xtal.errors import DataError, InputError, LangevinXtalError
from langevin_xtal.files import unwritable
from langevin_xtal.search.database import database_errors
from langevin_xtal.search.store import Store
from langevin_xtal.signals import Terminated
from tests.arena import POTENTIAL
from tests.test_store import SETTINGS, address, row, server  # noqa: F401
from tests.test_text import forgotten  # noqa: F401

DOCS = Path(__file__).parents[1] / "docs" / "promises.rst"


def test_the_table_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    reported = {int(code) for code in re.findall(r"^(\d+)  +\S", text, re.MULTILINE)}
    assert reported == set(EXIT_CODES)
    assert set(EXIT_CODES) == {0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (DataError("x"), 2),
        (LangevinXtalError("x"), 1),
        (unwritable("x", OSError(errno.ENOSPC, "full"), DataError), 1),
        (OSError(errno.ENOSPC, "full", "x"), 1),
        (OSError(errno.ENOENT, "no such file", "x"), 2),
        (OSError(errno.EROFS, "read-only", "x"), 2),
        (PermissionError(errno.EACCES, "denied", "x"), 2),
        (MemoryError(), 1),
        (click.UsageError("x"), 2),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
    ],
)
def test_of_errors(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("langevin_xtal.model.checkpoint.load_model", fail)
    assert run(["model", "info", "small"]) == code
    assert capsys.readouterr().err.strip().startswith("Error: ")


class TestNothingCameOfIt:
    HOPELESS = ("--levels", "2", "--seed", "1", "--sg", "225")

    def test_sample(self, tiny_path: Path, tmp_path: Path, capsys: Any) -> None:
        line = [
            "sample",
            "--elements",
            "Cu",
            "--n",
            "2",
            "--attempts",
            "1",
            "--min-distance",
            "50",
        ]
        more = ["--model", str(tiny_path), "--out", str(tmp_path / "o"), *self.HOPELESS,
                "--min-distance", "50"]  # fmt: skip
        assert run([*line, *more]) == 1
        assert "none of 2 candidates came about" in capsys.readouterr().err

    def test_search(self, tiny_path: Path, tmp_path: Path, capsys: Any) -> None:
        line = ["search", "--elements", "Cu,Au", "--max-samples", "2", "--max-atoms", "1"]
        more = ["--model", str(tiny_path), "--out", str(tmp_path / "s.db"), *self.HOPELESS]
        assert run([*line, *more]) == 1
        assert "none of 2 candidates is left" in capsys.readouterr().err

    def test_a_search_without_time(self, tiny_path: Path, tmp_path: Path, capsys: Any) -> None:
        """Time is looked at before anything is claimed, however much there is to do."""
        line = ["search", "--elements", "Cu,Au", "--samples-per-request", "1000000000"]
        more = ["--model", str(tiny_path), "--out", str(tmp_path / "s.db"), *self.HOPELESS]
        assert run([*line, *more, "--max-hours", "1e-12"]) == 0
        assert "no candidate yet" in capsys.readouterr().out

    def test_levels(self, tiny_path: Path, tmp_path: Path, capsys: Any) -> None:
        for command in (["sample", "--n", "1"], ["search"]):
            line = [*command, "--elements", "Cu", "--sg", "225", "--levels", "1000000000"]
            assert run([*line, "--model", str(tiny_path), "--out", str(tmp_path / "x")]) == 2
            assert "the most is" in capsys.readouterr().err


class TestServers:
    def test_one_that_was_never_there(self, capsys: Any) -> None:
        pytest.importorskip("psycopg2")
        assert run(["report", "postgresql://me:secret-word@localhost:1/db"]) == 2
        reported = capsys.readouterr().err
        assert "cannot be used" in reported
        assert "secret-word" not in reported

    def test_one_that_is_lost(self) -> None:
        psycopg2 = pytest.importorskip("psycopg2")
        with (
            pytest.raises(LangevinXtalError, match="was lost") as caught,
            database_errors("postgresql://me:secret-word@h/db", lost=True),
        ):
            raise psycopg2.OperationalError("connection refused")
        assert caught.value.exit_code == 1
        assert "secret-word" not in str(caught.value)

    def test_commands_on_its_stores(
        self,
        address: str,  # noqa: F811
        tmp_path: Path,
        capsys: Any,
    ) -> None:
        """What takes the store of a search takes one in PostgreSQL."""
        with Store(address, SETTINGS) as store:
            store.claim("sample", range(2), 2)
            store.add([row(0), row(1)])
        out = str(tmp_path)
        for line in (
            ["relax", address, "--out", f"{out}/r", "--potential", POTENTIAL, "--workers", "1"],
            ["hull", address, "--out", f"{out}/h.csv", "--workers", "1"],
            ["export", "cif", address, "--out", f"{out}/c"],
            ["report", address, "--out", f"{out}/r.html"],
        ):
            assert run(line) == 0, capsys.readouterr()


class TestDisks:
    def test_read_only_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tiny_path: Path
    ) -> None:
        """A search goes on without its cache, and says so once."""
        (tmp_path / "cache").write_text("no folder")
        monkeypatch.setenv("LANGEVIN_XTAL_CACHE", str(tmp_path / "cache"))
        line = ["search", "--elements", "Cu,Au", "--max-samples", "3", "--sg", "225"]
        more = ["--model", str(tiny_path), "--out", str(tmp_path / "s.db"), "--levels", "2"]
        assert run([*line, *more, "--workers", "1"]) == 0
        reported = capsys.readouterr().err
        assert reported.count("Warning: ") == 1
        assert "going on without it" in reported

    def test_a_locked_store(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        with (
            pytest.raises(LangevinXtalError, match="locked by another process") as caught,
            database_errors(path),
        ):
            raise sqlite3.OperationalError("database is locked")
        assert caught.value.exit_code == 1


def test_workers_that_are_not_started(tmp_path: Path, capsys: Any) -> None:
    from ase.build import bulk
    from ase.io import write

    write(tmp_path / "cu.cif", bulk("Cu", cubic=True))
    shutil.copy(tmp_path / "cu.cif", tmp_path / "cu2.cif")
    out = str(tmp_path / "r")
    line = ["relax", str(tmp_path / "cu.cif"), str(tmp_path / "cu2.cif"), "--out", out]
    more = ["--potential", POTENTIAL, "--cache", str(tmp_path / "cache"), "--workers"]
    assert run([*line, *more, "64"]) == 0
    reported = capsys.readouterr().err
    assert "1 of 64 processes are started: one more pays for every 8 structures" in reported
    assert run([*line, *more, "1"]) == 0
    assert "processes" not in capsys.readouterr().err
    assert os.listdir(out)
