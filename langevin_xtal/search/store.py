"""Where a campaign is kept: one ASE database, SQLite in a file or PostgreSQL by its address.

Every candidate is a row of the ASE database, with its best geometry, what can be searched for
(``ase db cu-si-k.db state=ranked``), and its whole record as JSON under ``data["record"]``. Four
tables beside ASE's say who does what, so that several processes may share a store:

``langevin_xtal_work``
    One line for each unit of a stage that was begun: who claimed it, whether it is done, and for
    samples the row of the candidate. A unit's result and its mark are written in one transaction.
    A unit without an owner is free.
``langevin_xtal_owner``
    One line for each process, with a heartbeat. Whoever claims next frees what a process holds
    that is dead on this computer, or whose heartbeat has stood still for as long as its lease.
``langevin_xtal_stage``
    Seconds spent in each stage, over all processes.
``information`` (ASE's)
    Holds the campaign's settings under the name ``langevin_xtal``.

ASE's lock file is not used: a killed process would leave it behind and lock everyone out. Writers
take SQLite's write lock (PostgreSQL: an advisory lock, without which ASE may mix up the rows of
concurrent writers) for one short transaction.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import DataError, LangevinXtalError
from langevin_xtal.search.claims import LEASE_SECONDS, Claim, Claims, Turn
from langevin_xtal.search.database import (
    SETTINGS,
    Cursor,
    begin,
    database_errors,
    open_database,
    plain_address,
    reading,
    refuse_foreign,
    settings_of,
)
from langevin_xtal.search.readers import (
    FINISHED,
    FINISHED_RELAXED,
    NoStoreError,
    is_store,
    read_finished,
    read_lowest,
    read_progress,
    read_rows,
    read_summary,
)
from langevin_xtal.search.rows import (
    STATES,
    CampaignSummary,
    Change,
    Row,
    from_data,
    key_value_pairs,
    to_atoms,
    to_json,
)
from langevin_xtal.search.tables import (
    FORMAT,
    INDEXES,
    KEYS,
    LOOK,
    TABLES,
    all_rows,
    check_format,
    marks,
    parts,
    short,
    some_rows,
    summary_of,
    whole,
)
from langevin_xtal.text import is_address

__all__ = [
    "FINISHED",
    "FINISHED_RELAXED",
    "LEASE_SECONDS",
    "LOOK",
    "STATES",
    "CampaignSummary",
    "Change",
    "Claim",
    "NoStoreError",
    "Row",
    "Store",
    "is_address",
    "is_store",
    "plain_address",
    "read_finished",
    "read_lowest",
    "read_progress",
    "read_rows",
    "read_summary",
    "reopened",
]

BEAT_SECONDS = 10.0
FILLED_LATER = (
    "relax", "relax_within", "reference", "model_settings", "properties", "target",
)  # fmt: skip
"""Settings that a campaign may begin without."""
BEFORE = {"allocate": "even"}
"""Settings that stores before 0.6 do not name, and what they were."""
CHUNK = 200
"""Rows written in one transaction."""
ADVISORY_LOCK = 0x4C5853
"""Key of the writers' lock in PostgreSQL: ``LXS``."""


class Store:
    """A campaign's store, open for work; use it as a context manager.

    Parameters
    ----------
    address
        Path of an SQLite file, made when missing, or ``postgresql://…``.
    settings
        What the campaign is. A store with other settings is refused; those of
        :data:`FILLED_LATER` may be None there, or here.
    lease
        Seconds after which a process that shows no sign of life loses its claims.

    Raises
    ------
    DataError
        When the store cannot be used, is of another version or holds another campaign.
    LangevinXtalError
        When the disk is full. Every method raises the same.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        settings: Mapping[str, object],
        *,
        lease: float = LEASE_SECONDS,
    ) -> None:
        self.address = str(address)
        self._claims = Claims(lease)
        self._turns: dict[str, Turn] = {}
        self._was_there = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._database = open_database(self.address)
        self._prepare(json.loads(json.dumps(dict(settings))))

    @property
    def lease(self) -> float:
        """Seconds after which a silent process loses its claims."""
        return self._claims.lease

    @property
    def owner(self) -> str:
        """This process, as the tables call it."""
        return self._claims.owner

    def __enter__(self) -> Self:
        with self._transaction() as cursor:
            cursor.execute(  # no process is known to hold them: somebody edited the tables
                "UPDATE langevin_xtal_work SET owner = '' WHERE done = 0 AND owner <> '' "
                "AND owner NOT IN (SELECT owner FROM langevin_xtal_owner)"
            )
            self._claims.register(cursor)
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._claims.end()  # known here even when the disk is full and nothing can be written
        with suppress(LangevinXtalError), self._transaction() as cursor:
            self._claims.free(cursor, self._claims.owner)

    # -- work

    def claim(self, stage: str, units: Sequence[int], most: int) -> Claim:
        """Hand out up to ``most`` of the units, in their order, that no living process has.

        In a time that grows neither with their number nor with what is done. Of a list (pass the
        same one again) this holds for all claims but the first, and lines that other processes
        have added meanwhile are read once.
        """
        if isinstance(units, range) and units == range(len(units)):
            with self._transaction() as cursor:
                return self._claims.of_range(cursor, stage, len(units), most)
        turn = self._turns.get(stage)
        if turn is None or turn.units is not units:
            turn = self._turns[stage] = Turn(units)
        try:
            with self._transaction() as cursor:
                mine = self._claims.of_list(cursor, stage, turn, most)
        except BaseException:
            del self._turns[stage]  # what it says was not stored
            raise
        return turn.handed_out(mine)

    def add(self, rows: Iterable[Row], seconds: float = 0.0) -> int:
        """Store samples this process has claimed; returns how many.

        A sample that another process took over meanwhile is dropped: it is stored, or will be.
        """
        rows = list(rows)
        written = 0
        for part in parts(rows, CHUNK):
            with self._transaction() as cursor:
                mine = self._claims.mine(cursor, "sample", [row.index for row in part])
                for row in part:
                    if row.index not in mine:
                        continue
                    entry = self._write(row, None)
                    cursor.execute(
                        "UPDATE langevin_xtal_work SET done = 1, entry = ? "
                        "WHERE stage = 'sample' AND unit = ?",
                        (entry, row.index),
                    )
                    written += 1
                self._spend(cursor, "sample", seconds)
            seconds = 0.0
        return written

    def settle_each(self, stage: str, changes: Mapping[int, Change], seconds: float = 0.0) -> None:
        """Change rows of a stage whose units are candidates, and mark them done.

        Candidates that another process has taken over are left to it.
        """
        for part in parts(list(changes.items()), CHUNK):
            with self._transaction() as cursor:
                mine = self._claims.mine(cursor, stage, [index for index, _ in part])
                self._change(cursor, {k: change for k, change in part if k in mine})
                self._claims.finish(cursor, stage, sorted(mine))
                self._spend(cursor, stage, seconds)
            seconds = 0.0

    def settle_all(
        self, stage: str, unit: int, changes: Mapping[int, Change], seconds: float = 0.0
    ) -> None:
        """Change rows of a stage that looks at all candidates at once, and mark its unit done.

        ``unit`` grows with what there is to look at. Nothing is changed when another process has
        taken the unit over, or has looked at more.
        """
        every = list(parts(list(changes.items()), CHUNK)) or [[]]
        for k, part in enumerate(every):
            with self._transaction() as cursor:
                if not self._claims.mine(cursor, stage, [unit]):
                    return
                if self._claims.newest(cursor, stage) <= unit:
                    self._change(cursor, dict(part))
                if k == len(every) - 1:
                    self._claims.finish(cursor, stage, [unit])
                    self._spend(cursor, stage, seconds)

    def note(self, changes: Mapping[int, Change]) -> None:
        """Change rows outside of any stage, each candidate's by index.

        Raises
        ------
        DataError
            When one is not there; nothing is changed then.
        """
        with self._transaction() as cursor:
            for part in parts(list(changes.items()), CHUNK):
                self._change(cursor, dict(part))

    def done(self, stage: str) -> list[int]:
        """Units of a stage that are finished, in order."""
        with self._reading() as cursor:
            cursor.execute(
                "SELECT unit FROM langevin_xtal_work WHERE stage = ? AND done = 1", (stage,)
            )
            return sorted(whole(row[0], "work") for row in cursor.fetchall())

    def rows(self, indices: Iterable[int] | None = None) -> list[Row]:
        """Candidates by index: all, or those of ``indices`` that are there."""
        with self._reading() as cursor:
            return all_rows(cursor) if indices is None else some_rows(cursor, sorted(set(indices)))

    def summary(self) -> CampaignSummary:
        """Counts and times."""
        with self._reading() as cursor:
            return summary_of(cursor)

    # -- inside

    def _prepare(self, mine: dict[str, Any]) -> None:
        if not self._is_postgres:
            refuse_foreign(Path(self.address))
        with self._transaction():
            try:
                self._database.count()  # makes ASE's tables, and ends the transaction
            except (TypeError, ValueError, LookupError) as error:  # of what ASE says of itself
                raise DataError(
                    f"store {plain_address(self.address)} is damaged: ASE cannot read its table "
                    f"of information ({first_line(error)})"
                ) from None
        with self._transaction() as cursor:
            theirs = settings_of(cursor)
            if theirs is None:
                cursor.execute("SELECT COUNT(*) FROM systems")
                if cursor.fetchone()[0]:
                    raise DataError(
                        f"{plain_address(self.address)} is an ASE database of something else; "
                        "give a new file"
                    )
                for statement in (*TABLES, *INDEXES):
                    cursor.execute(self._dialect(statement))
                self._describe(mine)
            else:
                check_format(self.address, theirs)
                for statement in INDEXES:  # stores of earlier versions lack some
                    cursor.execute(statement)
                self._compare(mine, theirs)
                mine = theirs | {k: v for k, v in mine.items() if v is not None}
                cursor.execute(f"DELETE FROM information WHERE name = '{SETTINGS}'")
            mine = {"format": FORMAT, **mine}
            cursor.execute("INSERT INTO information VALUES (?, ?)", (SETTINGS, json.dumps(mine)))
        self.settings: Mapping[str, Any] = mine
        self._was_there = True

    def _compare(self, mine: Mapping[str, object], theirs: Mapping[str, object]) -> None:
        for name, value in mine.items():
            stored = theirs.get(name, BEFORE.get(name))
            later = name in FILLED_LATER and None in (value, stored)
            if name != "version" and stored != value and not later:
                raise DataError(
                    f"store {plain_address(self.address)} holds another campaign: its {name} is "
                    f"{short(stored)}, not {short(value)}; give another store, or the same "
                    "options to continue it"
                )

    def _describe(self, settings: Mapping[str, object]) -> None:
        """For ASE's own table and web page."""
        self._database.metadata = {
            "title": f"langevin-xtal search of {settings.get('elements', 'crystals')}",
            "key_descriptions": KEYS,
            "default_columns": [
                "id",
                "formula",
                "state",
                "group",
                "energy_per_atom",
                "e_above_hull",
            ],
        }

    def _dialect(self, statement: str) -> str:
        return statement.replace("REAL", "DOUBLE PRECISION") if self._is_postgres else statement

    @property
    def _is_postgres(self) -> bool:
        return bool(self._database.type == "postgresql")

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        """A cursor that holds the only right to write; all or nothing is kept."""
        with database_errors(self.address, lost=self._was_there):
            database = self._database
            database.__enter__()
            connection = database.connection
            try:
                cursor = connection.cursor()
                if self._is_postgres:
                    cursor.execute(
                        f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK}, "
                        "hashtext(current_schema()))"  # other schemas are other stores
                    )
                else:
                    begin(cursor)
                yield cursor
                connection.commit()
            except BaseException:
                # ASE's connection to PostgreSQL has no rollback of its own
                getattr(connection, "con", connection).rollback()
                raise
            finally:
                connection.close()
                database.connection = None

    @contextmanager
    def _reading(self) -> Iterator[Cursor]:
        with (
            database_errors(self.address, lost=self._was_there),
            reading(self.address) as connection,
        ):
            yield connection.cursor()

    def _change(self, cursor: Cursor, changes: Mapping[int, Change]) -> None:
        if not changes:
            return
        cursor.execute(
            "SELECT work.unit, systems.id, systems.data FROM systems, langevin_xtal_work AS work "
            f"WHERE work.stage = 'sample' AND work.unit IN ({marks(changes)}) "
            "AND work.entry = systems.id",
            tuple(changes),
        )
        found = {
            whole(unit, "work"): (int(entry), data) for unit, entry, data in cursor.fetchall()
        }
        for index, change in changes.items():
            if index not in found:
                raise DataError(f"candidate {index} is not in the store any more: it is damaged")
            entry, data = found[index]
            self._write(from_data(data, entry).changed(change), entry)

    def _write(self, row: Row, entry: int | None) -> int:
        record = json.dumps(to_json(row), allow_nan=False)
        made = self._database.write(
            to_atoms(row), key_value_pairs(row), {"record": record}, id=entry
        )
        return int(made)

    def _spend(self, cursor: Cursor, stage: str, seconds: float) -> None:
        if not seconds:
            return
        cursor.execute("SELECT seconds FROM langevin_xtal_stage WHERE stage = ?", (stage,))
        if cursor.fetchone() is None:
            cursor.execute("INSERT INTO langevin_xtal_stage VALUES (?, ?)", (stage, seconds))
        else:
            cursor.execute(
                "UPDATE langevin_xtal_stage SET seconds = seconds + ? WHERE stage = ?",
                (seconds, stage),
            )

    def _beat(self) -> None:
        """Show signs of life until asked to stop; a beat that fails is missed, no more."""
        while not self._stop.wait(min(BEAT_SECONDS, self.lease / 4)):
            with suppress(Exception):
                connection = self._database._connect()
                try:
                    self._claims.beat(connection.cursor())
                    connection.commit()
                finally:
                    connection.close()


def reopened(source: str | os.PathLike[str]) -> Store:
    """A store that is there, to be opened for work with the settings it has.

    Raises
    ------
    DataError
        When there is none, or it is of another version.
    """
    return Store(source, {k: v for k, v in read_summary(source).settings.items() if k != "format"})
