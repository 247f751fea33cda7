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
    that is dead on this computer, or whose heartbeat has stood still for :data:`LEASE_SECONDS`.
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
import math
import os
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import DataError, LangevinXtalError
from langevin_xtal.runtime import host as this_host
from langevin_xtal.runtime import is_running
from langevin_xtal.search.database import (
    MAGIC,
    SETTINGS,
    begin,
    database_errors,
    open_database,
    plain_address,
    reading,
    refuse_foreign,
    settings_of,
)
from langevin_xtal.search.rows import (
    MOST_INDEX,
    STATES,
    CampaignSummary,
    Change,
    Row,
    from_data,
    key_value_pairs,
    summarise,
    to_atoms,
    to_json,
)
from langevin_xtal.structures.databases import read_only
from langevin_xtal.text import is_address

__all__ = [
    "FINISHED",
    "FINISHED_RELAXED",
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

Item = TypeVar("Item")

FORMAT = 2
"""Version of the store's layout; others are refused."""
FINISHED, FINISHED_RELAXED = "finished", "finished relaxed"
"""Stages whose units are numbers of candidates for which everything asked for was done."""
LEASE_SECONDS = 120.0
"""A process whose heartbeat stood still so long is taken for dead."""
BEAT_SECONDS = 10.0
FILLED_LATER = (
    "relax", "relax_within", "reference", "model_settings", "properties", "target",
)  # fmt: skip
"""Settings that a campaign may begin without."""
BEFORE = {"allocate": "even"}
"""Settings that stores before 0.6 do not name, and what they were."""
MOST_MISSING = 1_000_000
"""Lines that processes of older versions may have left out."""
CHUNK = 200
"""Rows written in one transaction."""
LOOK = 256
"""Units looked up with one statement."""
ADVISORY_LOCK = 0x4C5853
"""Key of the writers' lock in PostgreSQL: ``LXS``."""
_ENDED: set[str] = set()
"""Owners that this process was, and is no more."""
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS langevin_xtal_open ON langevin_xtal_work (stage, done, unit)",
    "CREATE INDEX IF NOT EXISTS langevin_xtal_free ON langevin_xtal_work (stage, unit) "
    "WHERE done = 0 AND owner = ''",
    "CREATE INDEX IF NOT EXISTS langevin_xtal_held ON langevin_xtal_work (owner) WHERE done = 0",
    # ASE looks rows up by id in these, and has no index for it
    *(
        f"CREATE INDEX IF NOT EXISTS langevin_xtal_{table} ON {table} (id)"
        for table in ("species", "keys", "text_key_values", "number_key_values")
    ),
    # what reports ask for: counts by state, and the lowest energies
    "CREATE INDEX IF NOT EXISTS langevin_xtal_states ON text_key_values (key, value, id) "
    "WHERE key = 'state'",
    "CREATE INDEX IF NOT EXISTS langevin_xtal_above ON number_key_values (key, value, id) "
    "WHERE key = 'e_above_all'",
)
_TABLES = (
    "CREATE TABLE IF NOT EXISTS langevin_xtal_work (stage TEXT, unit INTEGER, owner TEXT, "
    "done INTEGER, entry INTEGER, PRIMARY KEY (stage, unit))",
    "CREATE TABLE IF NOT EXISTS langevin_xtal_owner (owner TEXT PRIMARY KEY, host TEXT, "
    "pid INTEGER, beat INTEGER)",
    "CREATE TABLE IF NOT EXISTS langevin_xtal_stage (stage TEXT PRIMARY KEY, seconds REAL)",
)
_KEYS = {
    "candidate": ("Candidate", "Index of the candidate in the campaign", ""),
    "state": ("State", "Stage the candidate has reached", ""),
    "reason": ("Reason", "Why it was rejected", ""),
    "group": ("Group asked for", "", ""),
    "found_group": ("Group found", "By spglib at 0.01 Å", ""),
    "energy_per_atom": ("Energy", "By the potential", "eV/atom"),
    "e_above_hull": ("Above hull", "Energy above the hull of the references", "eV/atom"),
    "e_above_all": ("Above all", "The same, with all candidates among the references", "eV/atom"),
    "dft_energy": ("Energy by DFT", "As collected", "eV/atom"),
    "dft_gap": ("Band gap by DFT", "0 for a metal", "eV"),
    "dft_magnetisation": ("Magnetisation by DFT", "", "μB/atom"),
    "duplicate_of": ("Equals", "Index of the candidate it equals", ""),
    "reference": ("Known as", "Reference crystal it equals", ""),
    "request": ("Request", "", ""),
    "setting_rank": ("Rank of setting", "From 0, the likeliest for what was searched", ""),
    "setting_probability": ("Probability of setting", "Given what was searched", ""),
}


@dataclass
class _Turn:
    """How far the claims of a list of units have come."""

    units: Sequence[int]
    ahead: deque[int] | None = None  #: neither done nor handed out as far as is known
    behind: deque[int] = field(default_factory=deque)  #: handed out, to whomever


class NoStoreError(DataError):
    """A database that no search has used."""


class Claim(NamedTuple):
    """Work handed to this process."""

    units: list[int]
    done: int  #: units finished by anyone
    left: int  #: units not finished, those handed out included


# -- the store


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
        settings: Mapping[str, Any],
        *,
        lease: float = LEASE_SECONDS,
    ) -> None:
        self.address = str(address)
        self.lease = lease
        self.owner = uuid.uuid4().hex
        self._seen: dict[str, tuple[int, float]] = {}
        self._turns: dict[str, _Turn] = {}
        self._was_there = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._database = open_database(self.address)
        self._prepare(json.loads(json.dumps(dict(settings))))

    def __enter__(self) -> Self:
        with self._transaction() as cursor:
            cursor.execute(  # no process is known to hold them: somebody edited the tables
                "UPDATE langevin_xtal_work SET owner = '' WHERE done = 0 AND owner <> '' "
                "AND owner NOT IN (SELECT owner FROM langevin_xtal_owner)"
            )
            self._register(cursor)
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
        _ENDED.add(self.owner)  # known here even when the disk is full and nothing can be written
        with suppress(LangevinXtalError), self._transaction() as cursor:
            self._free(cursor, self.owner)

    # -- work

    def claim(self, stage: str, units: Sequence[int], most: int) -> Claim:
        """Hand out up to ``most`` of the units, in their order, that no living process has.

        In a time that grows neither with their number nor with what is done. Of a list (pass the
        same one again) this holds for all claims but the first, and lines that other processes
        have added meanwhile are read once.
        """
        if isinstance(units, range) and units == range(len(units)):
            return self._claim_first(stage, len(units), most)
        turn = self._turns.get(stage)
        if turn is None or turn.units is not units:
            turn = self._turns[stage] = _Turn(units)
        try:
            with self._transaction() as cursor:
                mine = self._next(cursor, stage, turn, most)
        except BaseException:
            del self._turns[stage]  # what it says was not stored
            raise
        turn.behind.extend(mine)
        left = len(turn.ahead or ()) + len(turn.behind)
        return Claim(mine, len(units) - left, left)

    def _next(self, cursor: Any, stage: str, turn: _Turn, most: int) -> list[int]:
        """Take up to ``most`` units of a list."""
        if turn.ahead is None:
            turn.ahead = deque(self._unfinished(cursor, stage, turn.units))
        self._free_of_the_dead(cursor)
        # those handed out before are looked at first: they may be done, or left by the dead
        again = [turn.behind.popleft() for _ in range(min(len(turn.behind), LOOK))]
        mine: list[int] = []
        begun: set[int] = set()
        while again or (len(mine) < most and turn.ahead):
            part = again or [turn.ahead.popleft() for _ in range(min(len(turn.ahead), LOOK))]
            again = []
            state = self._state(cursor, stage, part)
            begun.update(state)
            for k, unit in enumerate(part):
                owner, finished = state.get(unit, ("", False))
                if finished:
                    continue
                if owner:
                    turn.behind.append(unit)
                elif len(mine) < most:
                    mine.append(unit)
                else:
                    turn.ahead.extendleft(reversed(part[k:]))
                    break
        self._take(cursor, stage, mine, begun)
        return mine

    def _unfinished(self, cursor: Any, stage: str, units: Iterable[int]) -> list[int]:
        """Those of the units that nobody has finished."""
        cursor.execute(
            "SELECT unit FROM langevin_xtal_work WHERE stage = ? AND done = 1", (stage,)
        )
        done = {_whole(unit, "work") for (unit,) in cursor.fetchall()}
        return [unit for unit in units if unit not in done]

    def _state(self, cursor: Any, stage: str, units: Sequence[int]) -> dict[int, tuple[str, bool]]:
        """Owner, and whether it is done, of those of the units that were begun."""
        cursor.execute(
            "SELECT unit, owner, done FROM langevin_xtal_work WHERE stage = ? "
            f"AND unit IN ({_marks(units)})",
            (stage, *units),
        )
        return {
            _whole(unit, "work"): (str(owner), bool(done))
            for unit, owner, done in cursor.fetchall()
        }

    def _claim_first(self, stage: str, total: int, most: int) -> Claim:
        """Of the units below ``total``: those left by others first, then those after the last."""
        with self._transaction() as cursor:
            self._free_of_the_dead(cursor)
            mine, after, left = self._begun(cursor, stage, total, most)
            if not left and after == total and self._fill(cursor, stage):  # an older version's
                mine, after, left = self._begun(cursor, stage, total, most)
            fresh = range(after, min(after + most - len(mine), total))
            self._take(cursor, stage, [*mine, *fresh], set(mine))
        done = after - left
        return Claim([*mine, *fresh], done, total - done)

    def _begun(self, cursor: Any, stage: str, total: int, most: int) -> tuple[list[int], int, int]:
        """Up to ``most`` free units, the first that was never claimed, and how many before it are
        not finished."""
        cursor.execute(
            "SELECT unit FROM langevin_xtal_work WHERE stage = ? AND done = 0 AND owner = '' "
            "AND unit < ? ORDER BY unit LIMIT ?",
            (stage, total, most),
        )
        free = [_whole(unit, "work") for (unit,) in cursor.fetchall()]
        cursor.execute(
            "SELECT MAX(unit) FROM langevin_xtal_work WHERE stage = ? AND unit < ?", (stage, total)
        )
        (last,) = cursor.fetchone()
        cursor.execute("SELECT MAX(unit) FROM langevin_xtal_work WHERE stage = ?", (stage,))
        (end,) = cursor.fetchone()
        if end is not None and _whole(end, "work") > MOST_INDEX:
            raise _ends_with(end)
        cursor.execute(
            "SELECT COUNT(*) FROM langevin_xtal_work WHERE stage = ? AND done = 0 AND unit < ?",
            (stage, total),
        )
        (left,) = cursor.fetchone()
        return free, (0 if last is None else _whole(last, "work") + 1), int(left)

    def _fill(self, cursor: Any, stage: str) -> bool:
        """Enter the units below the last that have no line; whether there were any.

        Versions before 0.6 removed the lines of what they had not finished.
        """
        cursor.execute(
            "SELECT COUNT(*), MAX(unit) FROM langevin_xtal_work WHERE stage = ?", (stage,)
        )
        count, last = cursor.fetchone()
        if last is None or count == _whole(last, "work") + 1:
            return False
        if last - count > MOST_MISSING:
            raise _ends_with(last)
        cursor.execute("SELECT unit FROM langevin_xtal_work WHERE stage = ?", (stage,))
        there = {_whole(row[0], "work") for row in cursor.fetchall()}
        missing = [unit for unit in range(_whole(last, "work")) if unit not in there]
        self._enter(cursor, stage, missing, "")
        return True

    def _take(self, cursor: Any, stage: str, units: Sequence[int], begun: Container[int]) -> None:
        """Make units this process's own."""
        for part in _parts([unit for unit in units if unit in begun], LOOK):
            cursor.execute(
                "UPDATE langevin_xtal_work SET owner = ? WHERE stage = ? "
                f"AND unit IN ({_marks(part)})",
                (self.owner, stage, *part),
            )
        self._enter(cursor, stage, [unit for unit in units if unit not in begun], self.owner)

    def _enter(self, cursor: Any, stage: str, units: Sequence[int], owner: str) -> None:
        """Add lines of units that have none."""
        for part in _parts(units, LOOK):
            lines = ", ".join(["(?, ?, ?, 0, NULL)"] * len(part))
            cursor.execute(
                f"INSERT INTO langevin_xtal_work VALUES {lines}",
                [value for unit in part for value in (stage, unit, owner)],
            )

    def add(self, rows: Iterable[Row], seconds: float = 0.0) -> int:
        """Store samples this process has claimed; returns how many.

        A sample that another process took over meanwhile is dropped: it is stored, or will be.
        """
        rows = list(rows)
        written = 0
        for part in _parts(rows, CHUNK):
            with self._transaction() as cursor:
                mine = self._mine(cursor, "sample", [row.index for row in part])
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
        for part in _parts(list(changes.items()), CHUNK):
            with self._transaction() as cursor:
                mine = self._mine(cursor, stage, [index for index, _ in part])
                self._change(cursor, {k: change for k, change in part if k in mine})
                self._finish(cursor, stage, sorted(mine))
                self._spend(cursor, stage, seconds)
            seconds = 0.0

    def settle_all(
        self, stage: str, unit: int, changes: Mapping[int, Change], seconds: float = 0.0
    ) -> None:
        """Change rows of a stage that looks at all candidates at once, and mark its unit done.

        ``unit`` grows with what there is to look at. Nothing is changed when another process has
        taken the unit over, or has looked at more.
        """
        parts = list(_parts(list(changes.items()), CHUNK)) or [[]]
        for k, part in enumerate(parts):
            with self._transaction() as cursor:
                if not self._mine(cursor, stage, [unit]):
                    return
                if self._newest(cursor, stage) <= unit:
                    self._change(cursor, dict(part))
                if k == len(parts) - 1:
                    self._finish(cursor, stage, [unit])
                    self._spend(cursor, stage, seconds)

    def note(self, changes: Mapping[int, Change]) -> None:
        """Change rows outside of any stage, each candidate's by index.

        Raises
        ------
        DataError
            When one is not there; nothing is changed then.
        """
        with self._transaction() as cursor:
            for part in _parts(list(changes.items()), CHUNK):
                self._change(cursor, dict(part))

    def done(self, stage: str) -> list[int]:
        """Units of a stage that are finished, in order."""
        with self._reading() as cursor:
            cursor.execute(
                "SELECT unit FROM langevin_xtal_work WHERE stage = ? AND done = 1", (stage,)
            )
            return sorted(_whole(row[0], "work") for row in cursor.fetchall())

    def rows(self, indices: Iterable[int] | None = None) -> list[Row]:
        """Candidates by index: all, or those of ``indices`` that are there."""
        with self._reading() as cursor:
            return _rows(cursor) if indices is None else _some_rows(cursor, sorted(set(indices)))

    def summary(self) -> CampaignSummary:
        """Counts and times."""
        with self._reading() as cursor:
            return _summary(cursor)

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
                for statement in (*_TABLES, *_INDEXES):
                    cursor.execute(self._dialect(statement))
                self._describe(mine)
            else:
                _check_format(self.address, theirs)
                for statement in _INDEXES:  # stores of earlier versions lack some
                    cursor.execute(statement)
                self._compare(mine, theirs)
                mine = theirs | {k: v for k, v in mine.items() if v is not None}
                cursor.execute(f"DELETE FROM information WHERE name = '{SETTINGS}'")
            mine = {"format": FORMAT, **mine}
            cursor.execute("INSERT INTO information VALUES (?, ?)", (SETTINGS, json.dumps(mine)))
        self.settings: Mapping[str, Any] = mine
        self._was_there = True

    def _compare(self, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        for name, value in mine.items():
            stored = theirs.get(name, BEFORE.get(name))
            later = name in FILLED_LATER and None in (value, stored)
            if name != "version" and stored != value and not later:
                raise DataError(
                    f"store {plain_address(self.address)} holds another campaign: its {name} is "
                    f"{_short(stored)}, not {_short(value)}; give another store, or the same "
                    "options to continue it"
                )

    def _describe(self, settings: Mapping[str, Any]) -> None:
        """For ASE's own table and web page."""
        self._database.metadata = {
            "title": f"langevin-xtal search of {settings.get('elements', 'crystals')}",
            "key_descriptions": _KEYS,
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
    def _transaction(self) -> Iterator[Any]:
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
    def _reading(self) -> Iterator[Any]:
        with (
            database_errors(self.address, lost=self._was_there),
            reading(self.address) as connection,
        ):
            yield connection.cursor()

    def _register(self, cursor: Any, beat: int = 0) -> None:
        """Enter this process among those that work."""
        cursor.execute(
            "INSERT INTO langevin_xtal_owner VALUES (?, ?, ?, ?)",
            (self.owner, this_host(), os.getpid(), beat),
        )

    def _free(self, cursor: Any, owner: str) -> None:
        """Free what a process holds, and forget it."""
        cursor.execute(
            "UPDATE langevin_xtal_work SET owner = '' WHERE owner = ? AND done = 0", (owner,)
        )
        cursor.execute("DELETE FROM langevin_xtal_owner WHERE owner = ?", (owner,))

    def _free_of_the_dead(self, cursor: Any) -> None:
        """Free what processes hold that are dead, or were silent for too long."""
        cursor.execute("SELECT owner, host, pid, beat FROM langevin_xtal_owner")
        now, here = time.monotonic(), this_host()
        registered = False
        for owner, host, pid, beat in cursor.fetchall():
            if owner == self.owner:
                registered = True
                continue
            if owner in _ENDED or (host == here and not is_running(_whole(pid, "owner"))):
                self._free(cursor, owner)
                continue
            # beats are compared by this process's clock: clocks of computers differ
            if self._seen.get(owner, (None, 0.0))[0] != beat:
                self._seen[owner] = (beat, now)
            if now - self._seen[owner][1] > self.lease:
                self._free(cursor, owner)
        if not registered:  # this process was silent for too long, as others saw it
            self._register(cursor, secrets.randbelow(10**9))  # not the beat that stood still

    def _mine(self, cursor: Any, stage: str, units: Sequence[int]) -> set[int]:
        """Those of the units that nobody has finished and no other process has.

        They were claimed by this process; one that is free was taken from it, and given to nobody
        since.
        """
        state = self._state(cursor, stage, units)
        return {
            unit
            for unit, (owner, finished) in state.items()
            if owner in (self.owner, "") and not finished
        }

    def _finish(self, cursor: Any, stage: str, units: Sequence[int]) -> None:
        if units:
            cursor.execute(
                "UPDATE langevin_xtal_work SET done = 1, owner = ? WHERE stage = ? "
                f"AND unit IN ({_marks(units)})",
                (self.owner, stage, *units),
            )

    def _newest(self, cursor: Any, stage: str) -> int:
        cursor.execute(
            "SELECT MAX(unit) FROM langevin_xtal_work WHERE stage = ? AND done = 1", (stage,)
        )
        return _whole(cursor.fetchone()[0] or 0, "work")

    def _change(self, cursor: Any, changes: Mapping[int, Change]) -> None:
        if not changes:
            return
        cursor.execute(
            "SELECT work.unit, systems.id, systems.data FROM systems, langevin_xtal_work AS work "
            f"WHERE work.stage = 'sample' AND work.unit IN ({_marks(changes)}) "
            "AND work.entry = systems.id",
            tuple(changes),
        )
        found = {
            _whole(unit, "work"): (int(entry), data) for unit, entry, data in cursor.fetchall()
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

    def _spend(self, cursor: Any, stage: str, seconds: float) -> None:
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
                    connection.cursor().execute(
                        "UPDATE langevin_xtal_owner SET beat = beat + 1 WHERE owner = ?",
                        (self.owner,),
                    )
                    connection.commit()
                finally:
                    connection.close()


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[k : k + size] for k in range(0, len(items), size))


def _marks(items: Collection[Any]) -> str:
    """Placeholders for so many values in a statement."""
    return ", ".join("?" * len(items))


def _rows(cursor: Any) -> list[Row]:
    cursor.execute("SELECT id, data FROM systems")
    rows: dict[int, Row] = {}
    for number, data in cursor.fetchall():
        row = from_data(data, number)
        if row.index in rows:
            raise DataError(f"the store is damaged: candidate {row.index} is there twice")
        rows[row.index] = row
    return [rows[index] for index in sorted(rows)]


def _some_rows(cursor: Any, indices: Sequence[int]) -> list[Row]:
    """Rows of candidates, found by the lines of their samples."""
    rows: list[Row] = []
    for k in range(0, len(indices), LOOK):
        part = indices[k : k + LOOK]
        cursor.execute(
            "SELECT work.unit, systems.id, systems.data FROM langevin_xtal_work AS work, systems "
            f"WHERE work.stage = 'sample' AND work.unit IN ({_marks(part)}) "
            "AND work.entry = systems.id ORDER BY work.unit",
            tuple(part),
        )
        for unit, number, data in cursor.fetchall():
            row = from_data(data, number)
            if row.index != unit:
                raise DataError(
                    f"the store is damaged: row {number} is candidate {row.index}, not {unit}"
                )
            rows.append(row)
    return rows


def _summary(cursor: Any) -> CampaignSummary:
    cursor.execute("SELECT stage, seconds FROM langevin_xtal_stage")
    seconds = {str(stage): _seconds(spent) for stage, spent in cursor.fetchall()}
    return summarise(settings_of(cursor) or {}, _rows(cursor), seconds)


def _lowest_rows(cursor: Any, count: int) -> list[Row] | None:
    """Rows left that are the lowest above the hull of all, ties with the last included.

    None where there are fewer than ``count``.
    """
    left = (
        "FROM number_key_values AS above, text_key_values AS state "
        "WHERE above.key = 'e_above_all' AND state.id = above.id "
        "AND state.key || '' = 'state' "  # so that states are looked up by id, not all by key
        "AND state.value NOT IN ('rejected', 'duplicate')"
    )
    cursor.execute(
        f"SELECT above.value {left} ORDER BY above.value LIMIT 1 OFFSET ?", (count - 1,)
    )
    last = cursor.fetchone()
    if last is None:
        return None
    cursor.execute(
        f"SELECT id, data FROM systems WHERE id IN (SELECT above.id {left} AND above.value <= ?)",
        (last[0],),
    )
    rows = [from_data(data, number) for number, data in cursor.fetchall()]
    return sorted(rows, key=lambda row: row.index)


def _whole(value: Any, table: str) -> int:
    """A whole number of a table of ours, which anybody may have edited."""
    if type(value) is not int or value < 0:
        raise DataError(f"the store's table of {table} is damaged: {_short(str(value))}")
    return value


def _ends_with(unit: int) -> DataError:
    return DataError(f"the store's table of work is damaged: it ends with unit {unit}")


def _seconds(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"the store's table of times is damaged: {_short(str(value))}")
    return float(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"


# -- reading a store


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


def reopened(source: str | os.PathLike[str]) -> Store:
    """A store that is there, to be opened for work with the settings it has.

    Raises
    ------
    DataError
        When there is none, or it is of another version.
    """
    return Store(source, {k: v for k, v in read_summary(source).settings.items() if k != "format"})


def read_rows(source: str | os.PathLike[str]) -> list[Row]:
    """All candidates of a store by index, those rejected included.

    Raises
    ------
    DataError
        When there is no store, or it is of another version.
    """
    with _opened(source) as cursor:
        return _rows(cursor)


def read_summary(source: str | os.PathLike[str]) -> CampaignSummary:
    """Settings, counts and times of a store.

    Raises
    ------
    DataError
        When there is no store, or it is of another version.
    """
    with _opened(source) as cursor:
        return _summary(cursor)


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
        return _lowest_rows(cursor, count)


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
                raise DataError(f"the store is damaged: a state is {_short(str(state))}")
            states[state] = int(count)
        cursor.execute("SELECT seconds FROM langevin_xtal_stage")
        return states, sum(_seconds(spent) for (spent,) in cursor.fetchall())


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
            f"({_marks(stages)})",
            stages,
        )
        return _whole(cursor.fetchone()[0] or 0, "work")


def _check_format(address: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    if settings.get("format") != FORMAT:
        raise DataError(
            f"store {plain_address(address)} has format {settings.get('format')!r}, written by "
            f"langevin-xtal {settings.get('version', 'of unknown version')}; this version reads "
            f"format {FORMAT}: use that version, or another store"
        )


@contextmanager
def _opened(source: str | os.PathLike[str]) -> Iterator[Any]:
    name = plain_address(source)
    if not is_address(source) and not Path(source).is_file():
        raise DataError(f"store {name} does not exist; langevin-xtal search makes one")
    with database_errors(source), reading(source) as connection:
        cursor = connection.cursor()
        settings = settings_of(cursor)
        if settings is None:
            raise NoStoreError(f"{name} is not the store of a search")
        _check_format(source, settings)
        yield cursor
