"""A store as it is read, by whoever does not work on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from langevin_xtal.errors import DataError
from langevin_xtal.search.database import (
    MAGIC,
    Cursor,
    database_errors,
    plain_address,
    reading,
    settings_of,
)
from langevin_xtal.search.rows import STATES, CampaignSummary, Row
from langevin_xtal.search.tables import (
    all_rows,
    check_format,
    lowest_rows,
    marks,
    seconds_spent,
    short,
    summary_of,
    whole,
)
from langevin_xtal.structures.databases import read_only
from langevin_xtal.text import is_address

FINISHED, FINISHED_RELAXED = "finished", "finished relaxed"
"""Stages whose units are numbers of candidates for which everything asked for was done."""


class NoStoreError(DataError):
    """A database that no search has used."""


def is_store(source: str | os.PathLike[str]) -> bool:
    """Whether ``source`` is the store of a search, or an address of PostgreSQL.

    Raises
    ------
    DataError
        When it is a damaged SQLite file.
    """
    if is_address(source):
        return True
    path = Path(source)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                return False
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    with suppress(DataError), read_only(path) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in found}
        if not {"systems", "information"} <= tables:  # a view may be anything, and endless
            return False
        return settings_of(connection.cursor()) is not None
    with database_errors(path), reading(path) as connection:  # a writer was killed half-way
        return settings_of(connection.cursor()) is not None


def read_rows(source: str | os.PathLike[str]) -> list[Row]:
    """All candidates of a store by index, those rejected included.

    Raises
    ------
    DataError
        When there is no store, or it is of another version.
    """
    with _opened(source) as cursor:
        return all_rows(cursor)


def read_summary(source: str | os.PathLike[str]) -> CampaignSummary:
    """Settings, counts and times of a store.

    Raises
    ------
    DataError
        When there is no store, or it is of another version.
    """
    with _opened(source) as cursor:
        return summary_of(cursor)


def read_lowest(source: str | os.PathLike[str], count: int) -> list[Row] | None:
    """Rows among which the best ``count`` candidates are, by index, without reading all.

    None where only reading all can tell: with a target, or where fewer have an energy above the
    hull of references and candidates.

    Raises
    ------
    DataError
        When there is no store, or it is of another version.
    """
    with _opened(source) as cursor:
        if (settings_of(cursor) or {}).get("target"):
            return None
        return lowest_rows(cursor, count)


def read_progress(source: str | os.PathLike[str]) -> tuple[dict[str, int], float]:
    """Candidates in each of :data:`STATES`, and seconds spent by all processes, without reading
    the candidates.

    Raises
    ------
    DataError
        When there is no store, or it is of another version.
    """
    with _opened(source) as cursor:
        states = dict.fromkeys(STATES, 0)
        cursor.execute(
            "SELECT value, COUNT(*) FROM text_key_values WHERE key = 'state' GROUP BY value"
        )
        for state, count in cursor.fetchall():
            if state not in states:
                raise DataError(f"the store is damaged: a state is {short(str(state))}")
            states[state] = int(count)
        cursor.execute("SELECT seconds FROM langevin_xtal_stage")
        return states, sum(seconds_spent(spent) for (spent,) in cursor.fetchall())


def read_finished(source: str | os.PathLike[str], relaxed: bool) -> int:
    """Candidates of the largest search that was done to its end in this store; 0 without one.

    Parameters
    ----------
    relaxed
        Whether it is to have relaxed them.

    Raises
    ------
    DataError
        When there is no store, or it is of another version.
    """
    stages = (FINISHED_RELAXED,) if relaxed else (FINISHED, FINISHED_RELAXED)
    with _opened(source) as cursor:
        cursor.execute(
            "SELECT MAX(unit) FROM langevin_xtal_work WHERE done = 1 AND stage IN "
            f"({marks(stages)})",
            stages,
        )
        return whole(cursor.fetchone()[0] or 0, "work")


@contextmanager
def _opened(source: str | os.PathLike[str]) -> Iterator[Cursor]:
    name = plain_address(source)
    if not is_address(source) and not Path(source).is_file():
        raise DataError(f"store {name} does not exist; langevin-xtal search makes one")
    with database_errors(source), reading(source) as connection:
        cursor = connection.cursor()
        settings = settings_of(cursor)
        if settings is None:
            raise NoStoreError(f"{name} is not the store of a search")
        check_format(source, settings)
        yield cursor
