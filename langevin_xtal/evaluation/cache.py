"""Features on disk, so that a structure is worked on once however often it is evaluated."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import DataError, LangevinXtalWarning

FloatArray = NDArray[np.float64]

FILE = "features.sqlite"
VARIABLE = "LANGEVIN_XTAL_CACHE"
"""Environment variable with a folder for it."""
APPLICATION = 0x4C584643
"""SQLite's application_id of these files: ``LXFC``."""
MAGIC = b"SQLite format 3\0"
BUSY_SECONDS = 60.0
VARIABLES = 500
"""Keys per query; SQLite builds may allow as few as 999 variables."""

_CREATE = """
CREATE TABLE IF NOT EXISTS feature (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    data BLOB,
    reason TEXT,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID
"""


def default_folder() -> Path:
    """Where features are kept by default.

    ``$LANGEVIN_XTAL_CACHE``, else ``$XDG_CACHE_HOME/langevin-xtal``, else
    ``~/.cache/langevin-xtal``.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "langevin-xtal"


class Cache:
    """Arrays of float64 and reasons of failure by (kind, key), in one SQLite file.

    Several processes may use one folder at a time: a writer holds the file for one transaction
    and the others wait up to a minute. The rollback journal is kept (not WAL, which does not work
    on network file systems, where home directories of clusters are).

    Parameters
    ----------
    folder
        Made when missing; None keeps everything in memory.

    Raises
    ------
    DataError
        When the folder or the file in it cannot be used. Every method raises it too, for damage
        that shows later.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.path = None if folder is None else Path(folder) / FILE
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.exists():
                    self._look(self.path)
            self._connection = sqlite3.connect(
                self.path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(str(error)) from None
        try:
            with self._sql():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _look(self, path: Path) -> None:
        """Raise DataError for what SQLite would take for an empty file and write over."""
        with path.open("rb") as stream:
            begin = stream.read(len(MAGIC))
        if begin not in (b"", MAGIC):
            raise self._unusable("it is not a database")

    def _prepare(self) -> None:
        """Make the table, or see that the file is one of these.

        Raises
        ------
        DataError
            When it belongs to something else.
        """
        if self._number("PRAGMA application_id") == APPLICATION:
            return
        with self._transaction():
            if self._number("PRAGMA application_id") == APPLICATION:  # made while waiting
                return
            if self._number("SELECT count(*) FROM sqlite_master"):
                raise self._unusable("it is a database of something else")
            self._connection.execute(_CREATE)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION}")

    def get(self, kind: str, keys: Sequence[str]) -> dict[str, FloatArray]:
        """The arrays of those ``keys`` that have one."""
        found = {}
        for key, data, _ in self._rows(kind, keys):
            if data is None:
                continue
            if len(data) % 8:
                raise self._unusable("an entry is cut short")
            found[key] = np.frombuffer(data, "<f8").astype(np.float64)
        return found

    def failures(self, kind: str, keys: Sequence[str]) -> dict[str, str]:
        """The reasons of those ``keys`` that failed."""
        rows = self._rows(kind, keys)
        return {key: str(reason) for key, data, reason in rows if data is None}

    def put(
        self,
        kind: str,
        values: Mapping[str, FloatArray],
        failures: Mapping[str, str] | None = None,
    ) -> None:
        """Store 1-D arrays and reasons of failure in one transaction, over what was there."""
        rows: list[tuple[str, str, bytes | None, str | None]] = [
            (kind, key, np.ascontiguousarray(value, "<f8").tobytes(), None)
            for key, value in values.items()
        ]
        rows += [(kind, key, None, reason) for key, reason in (failures or {}).items()]
        if not rows:
            return
        with self._sql(), self._transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO feature (kind, key, data, reason) VALUES (?, ?, ?, ?)",
                rows,
            )

    def close(self) -> None:
        """Close the file; the cache cannot be used afterwards."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _rows(self, kind: str, keys: Sequence[str]) -> list[tuple[str, bytes | None, str | None]]:
        rows: list[tuple[str, bytes | None, str | None]] = []
        with self._sql():
            for begin in range(0, len(keys), VARIABLES):
                part = keys[begin : begin + VARIABLES]
                marks = ", ".join("?" * len(part))
                rows += self._connection.execute(
                    f"SELECT key, data, reason FROM feature WHERE kind = ? AND key IN ({marks})",
                    (kind, *part),
                ).fetchall()
        return rows

    def _number(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _sql(self) -> Iterator[None]:
        """SQLite's errors as this package's."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # also of its own messages
            raise self._unusable(str(error)) from None

    def _unusable(self, reason: str) -> DataError:
        return DataError(
            f"{self.path or 'the cache in memory'} cannot be used as a cache of features "
            f"({reason}); remove it, or give another folder with --cache or in the environment "
            f"variable {VARIABLE}"
        )


class SpareCache(Cache):
    """A cache that is not needed: what is wrong with it is one warning, and work goes on without.

    What is put there then is kept in memory.

    Parameters
    ----------
    folder
        See :class:`Cache`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        try:
            super().__init__(folder)
        except DataError as error:
            self._go_without(error)

    def get(self, kind: str, keys: Sequence[str]) -> dict[str, FloatArray]:
        """As :meth:`Cache.get`; nothing where the file cannot be used."""
        try:
            return super().get(kind, keys)
        except DataError as error:
            self._go_without(error)
            return {}

    def failures(self, kind: str, keys: Sequence[str]) -> dict[str, str]:
        """As :meth:`Cache.failures`; nothing where the file cannot be used."""
        try:
            return super().failures(kind, keys)
        except DataError as error:
            self._go_without(error)
            return {}

    def put(
        self,
        kind: str,
        values: Mapping[str, FloatArray],
        failures: Mapping[str, str] | None = None,
    ) -> None:
        """As :meth:`Cache.put`; in memory where the file cannot be used."""
        try:
            super().put(kind, values, failures)
        except DataError as error:
            self._go_without(error)
            super().put(kind, values, failures)

    def _go_without(self, error: DataError) -> None:
        if self.path is not None:
            warnings.warn(f"{error}; going on without it", LangevinXtalWarning, stacklevel=3)
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        super().__init__(None)
