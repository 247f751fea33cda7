"""SQLite files and PostgreSQL addresses: opening them, and what goes wrong with them in words."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import DataError, LangevinXtalError
from langevin_xtal.extras import require
from langevin_xtal.text import (
    address_of,
    hide_secrets,
    is_address,
    learn_secrets,
    unclear_password,
)

MAGIC = b"SQLite format 3\0"
SETTINGS = "langevin_xtal"
"""Name under which a campaign's settings are kept among ASE's information."""
BUSY_SECONDS = 120.0
"""How long to wait for another process's transaction."""


class Cursor(Protocol):
    """What SQLite and PostgreSQL have in common."""

    def execute(self, statement: str, values: Sequence[object] = ..., /) -> object:
        """Run a statement, with values in place of question marks."""
        ...

    def fetchone(self) -> Any:
        """The next line, None after the last."""
        ...

    def fetchall(self) -> list[Any]:
        """All lines that are left."""
        ...


def plain_address(source: str | os.PathLike[str]) -> str:
    """The source as it may be shown: without a password."""
    return hide_secrets(str(source))


@contextmanager
def database_errors(address: str | os.PathLike[str], *, lost: bool = False) -> Iterator[None]:
    """What the databases raise as this package's errors.

    Parameters
    ----------
    lost
        Whether the database was there before: a server that does not answer is lost then, which
        is a failure and no bad input.
    """
    try:
        yield
    except LangevinXtalError:
        raise
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # also of SQLite's own messages
        raise _unusable(address, error) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "psycopg2":
            raise
        if lost and type(error).__name__ in ("OperationalError", "InterfaceError"):
            raise LangevinXtalError(
                f"the server of store {plain_address(address)} was lost; what was stored is kept: "
                "run the same command again when it is back"
            ) from None
        raise _unusable(address, error) from None


def _unusable(address: str | os.PathLike[str], error: Exception) -> LangevinXtalError:
    name, reason = plain_address(address), plain_address(first_line(error))
    if is_address(address) and unclear_password(str(address)):
        return DataError(
            f"store {name} cannot be used: in its password, write / @ : ? # and % as %2F %40 %3A "
            "%3F %23 and %25"
        )
    lower = reason.lower()
    if "readonly" in lower or "read-only" in lower or isinstance(error, PermissionError):
        return DataError(
            f"store {name} cannot be written: it is read-only; give one you may write to"
        )
    if "permission denied" in lower:
        return DataError(
            f"store {name} cannot be used ({reason}): its user needs the right to create schemas "
            "and tables; ask the owner of the database for it"
        )
    if ("disk" in lower and ("full" in lower or "i/o" in lower)) or "no space" in lower:
        return LangevinXtalError(
            f"store {name} cannot be written ({reason}): is the disk full? what was stored before "
            "is intact; make room and run the same command again"
        )
    if "locked" in lower:
        return LangevinXtalError(
            f"store {name} has been locked by another process for {BUSY_SECONDS:g} s; run the "
            "same command again"
        )
    if "not a database" in lower or "malformed" in lower:
        return DataError(f"store {name} is damaged or no database ({reason}); give another file")
    return DataError(f"store {name} cannot be used ({reason})")


@contextmanager
def reading(address: str | os.PathLike[str]) -> Iterator[Any]:
    """A connection for reading only, as far as the database goes."""
    if is_address(address):
        connection = _postgres(str(address))._connect()
    else:
        # not mode=ro, which could not undo what a killed writer left half done
        connection = sqlite3.connect(
            f"file:{quote(str(Path(address).absolute()))}?mode=rw", uri=True, timeout=BUSY_SECONDS
        )
    try:
        yield connection
    finally:
        connection.close()


def _postgres(address: str) -> Any:
    require("psycopg2", "postgres", "a store in PostgreSQL")
    require("ase_db_backends.postgresql", "postgres", "a store in PostgreSQL")
    from ase.db import connect

    learn_secrets([address])
    return connect(address_of(address))


def settings_of(cursor: Cursor) -> dict[str, Any] | None:
    """The campaign's settings, None where there are none."""
    try:
        cursor.execute(f"SELECT value FROM information WHERE name = '{SETTINGS}'")
        found = cursor.fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    except Exception as error:
        if type(error).__name__ == "UndefinedTable":
            return None
        raise
    if found is None:
        return None
    try:
        settings = json.loads(found[0])
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"the settings of the store are damaged ({first_line(error)})") from None
    return settings if isinstance(settings, dict) else {}


def open_database(address: str) -> Any:
    """ASE's database at an address, made when missing; nothing is written yet.

    Raises
    ------
    DataError
        When the path cannot be a database.
    MissingPackageError
        When PostgreSQL is asked for and its packages are not installed.
    """
    return _postgres(address) if is_address(address) else _sqlite(Path(address))


def _sqlite(path: Path) -> Any:
    from ase.db import connect

    if path.is_dir():
        raise DataError(f"store {path} is a folder; give the name of a file, such as search.db")
    if not path.absolute().parent.is_dir():
        raise DataError(f"store {path} cannot be made: there is no folder {path.parent}")
    if path.exists():
        try:
            with path.open("rb") as stream:
                begin = stream.read(len(MAGIC))
        except OSError as error:
            raise DataError(f"store {path} cannot be read ({error.strerror})") from None
        if begin not in (b"", MAGIC):  # SQLite would say no more than "not a database"
            raise DataError(f"{path} is not a store of langevin-xtal; give a new file")
    return connect(str(path), type="db", use_lock_file=False)


def refuse_foreign(path: Path) -> None:
    """Refuse an SQLite file with tables of something else than ASE, before any is added.

    Raises
    ------
    DataError
        For such a file, and for one that has views or triggers: ASE makes none.
    """
    if not path.exists() or not path.stat().st_size:
        return
    with database_errors(path), reading(path) as connection:
        found = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
    tables = {name for kind, name in found if kind == "table"}
    if (tables and "systems" not in tables) or any(k in ("view", "trigger") for k, _ in found):
        raise DataError(f"{path} is a database of something else; give a new file")


def begin(cursor: Cursor) -> None:
    """Take the write lock, waiting for other writers."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
