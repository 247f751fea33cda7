"""Who does what: units of work handed out to the processes that share a store.

Everything here happens within a transaction of the store, whose cursor is passed.
"""

from __future__ import annotations

import os
import secrets
import time
import uuid
from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from langevin_xtal.errors import DataError
from langevin_xtal.runtime import host as this_host
from langevin_xtal.runtime import is_running
from langevin_xtal.search.database import Cursor
from langevin_xtal.search.rows import MOST_INDEX
from langevin_xtal.search.tables import LOOK, marks, parts, whole

LEASE_SECONDS = 120.0
"""A process whose heartbeat stood still so long is taken for dead."""
MOST_MISSING = 1_000_000
"""Lines that processes of older versions may have left out."""
_ENDED: set[str] = set()
"""Owners that this process was, and is no more."""


@dataclass
class Turn:
    """How far the claims of a list of units have come."""

    units: Sequence[int]
    ahead: deque[int] | None = None  #: neither done nor handed out as far as is known
    behind: deque[int] = field(default_factory=deque)  #: handed out, to whomever

    def handed_out(self, mine: list[int]) -> Claim:
        """What a claim is, after its transaction."""
        self.behind.extend(mine)
        left = len(self.ahead or ()) + len(self.behind)
        return Claim(mine, len(self.units) - left, left)


class Claim(NamedTuple):
    """Work handed to this process."""

    units: list[int]
    done: int  #: units finished by anyone
    left: int  #: units not finished, those handed out included


class Claims:
    """Claims of this process.

    Parameters
    ----------
    lease
        Seconds after which a process that shows no sign of life loses its own.
    """

    def __init__(self, lease: float = LEASE_SECONDS) -> None:
        self.lease = lease
        self.owner = uuid.uuid4().hex
        self._seen: dict[str, tuple[int, float]] = {}

    def of_list(self, cursor: Cursor, stage: str, turn: Turn, most: int) -> list[int]:
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
            state = self.state(cursor, stage, part)
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

    def of_range(self, cursor: Cursor, stage: str, total: int, most: int) -> Claim:
        """Of the units below ``total``: those left by others first, then those after the last."""
        self._free_of_the_dead(cursor)
        mine, after, left = self.begun(cursor, stage, total, most)
        if not left and after == total and self._fill(cursor, stage):  # an older version's
            mine, after, left = self.begun(cursor, stage, total, most)
        fresh = range(after, min(after + most - len(mine), total))
        self._take(cursor, stage, [*mine, *fresh], set(mine))
        done = after - left
        return Claim([*mine, *fresh], done, total - done)

    def state(
        self, cursor: Cursor, stage: str, units: Sequence[int]
    ) -> dict[int, tuple[str, bool]]:
        """Owner, and whether it is done, of those of the units that were begun."""
        cursor.execute(
            "SELECT unit, owner, done FROM langevin_xtal_work WHERE stage = ? "
            f"AND unit IN ({marks(units)})",
            (stage, *units),
        )
        return {
            whole(unit, "work"): (str(owner), bool(done))
            for unit, owner, done in cursor.fetchall()
        }

    def mine(self, cursor: Cursor, stage: str, units: Sequence[int]) -> set[int]:
        """Those of the units that nobody has finished and no other process has.

        They were claimed by this process; one that is free was taken from it, and given to nobody
        since.
        """
        state = self.state(cursor, stage, units)
        return {
            unit
            for unit, (owner, finished) in state.items()
            if owner in (self.owner, "") and not finished
        }

    def finish(self, cursor: Cursor, stage: str, units: Sequence[int]) -> None:
        """Mark units done."""
        if units:
            cursor.execute(
                "UPDATE langevin_xtal_work SET done = 1, owner = ? WHERE stage = ? "
                f"AND unit IN ({marks(units)})",
                (self.owner, stage, *units),
            )

    def newest(self, cursor: Cursor, stage: str) -> int:
        """The largest unit of a stage that is done; 0 for none."""
        cursor.execute(
            "SELECT MAX(unit) FROM langevin_xtal_work WHERE stage = ? AND done = 1", (stage,)
        )
        return whole(cursor.fetchone()[0] or 0, "work")

    def begun(
        self, cursor: Cursor, stage: str, total: int, most: int
    ) -> tuple[list[int], int, int]:
        """Up to ``most`` free units, the first that was never claimed, and how many before it are
        not finished."""
        cursor.execute(
            "SELECT unit FROM langevin_xtal_work WHERE stage = ? AND done = 0 AND owner = '' "
            "AND unit < ? ORDER BY unit LIMIT ?",
            (stage, total, most),
        )
        free = [whole(unit, "work") for (unit,) in cursor.fetchall()]
        cursor.execute("SELECT MAX(unit) FROM langevin_xtal_work WHERE stage = ?", (stage,))
        (last,) = cursor.fetchone()
        if last is not None and whole(last, "work") > MOST_INDEX:
            raise _ends_with(last)
        if last is not None and last >= total:  # of a larger range
            cursor.execute(
                "SELECT MAX(unit) FROM langevin_xtal_work WHERE stage = ? AND unit < ?",
                (stage, total),
            )
            (last,) = cursor.fetchone()
        cursor.execute(
            "SELECT COUNT(*) FROM langevin_xtal_work WHERE stage = ? AND done = 0 AND unit < ?",
            (stage, total),
        )
        (left,) = cursor.fetchone()
        return free, (0 if last is None else whole(last, "work") + 1), int(left)

    def _unfinished(self, cursor: Cursor, stage: str, units: Iterable[int]) -> list[int]:
        """Those of the units that nobody has finished."""
        cursor.execute(
            "SELECT unit FROM langevin_xtal_work WHERE stage = ? AND done = 1", (stage,)
        )
        done = {whole(unit, "work") for (unit,) in cursor.fetchall()}
        return [unit for unit in units if unit not in done]

    def _fill(self, cursor: Cursor, stage: str) -> bool:
        """Enter the units below the last that have no line; whether there were any.

        Versions before 0.6 removed the lines of what they had not finished.
        """
        cursor.execute(
            "SELECT COUNT(*), MAX(unit) FROM langevin_xtal_work WHERE stage = ?", (stage,)
        )
        count, last = cursor.fetchone()
        if last is None or count == whole(last, "work") + 1:
            return False
        if last - count > MOST_MISSING:
            raise _ends_with(last)
        cursor.execute("SELECT unit FROM langevin_xtal_work WHERE stage = ?", (stage,))
        there = {whole(row[0], "work") for row in cursor.fetchall()}
        missing = [unit for unit in range(whole(last, "work")) if unit not in there]
        self._enter(cursor, stage, missing, "")
        return True

    def _take(
        self, cursor: Cursor, stage: str, units: Sequence[int], begun: Container[int]
    ) -> None:
        """Make units this process's own."""
        for part in parts([unit for unit in units if unit in begun], LOOK):
            cursor.execute(
                "UPDATE langevin_xtal_work SET owner = ? WHERE stage = ? "
                f"AND unit IN ({marks(part)})",
                (self.owner, stage, *part),
            )
        self._enter(cursor, stage, [unit for unit in units if unit not in begun], self.owner)

    def _enter(self, cursor: Cursor, stage: str, units: Sequence[int], owner: str) -> None:
        """Add lines of units that have none."""
        for part in parts(units, LOOK):
            lines = ", ".join(["(?, ?, ?, 0, NULL)"] * len(part))
            cursor.execute(
                f"INSERT INTO langevin_xtal_work VALUES {lines}",
                [value for unit in part for value in (stage, unit, owner)],
            )

    def register(self, cursor: Cursor, beat: int = 0) -> None:
        """Enter this process among those that work."""
        cursor.execute(
            "INSERT INTO langevin_xtal_owner VALUES (?, ?, ?, ?)",
            (self.owner, this_host(), os.getpid(), beat),
        )

    def free(self, cursor: Cursor, owner: str) -> None:
        """Free what a process holds, and forget it."""
        cursor.execute(
            "UPDATE langevin_xtal_work SET owner = '' WHERE owner = ? AND done = 0", (owner,)
        )
        cursor.execute("DELETE FROM langevin_xtal_owner WHERE owner = ?", (owner,))

    def end(self) -> None:
        """Count this process as ended from here on; nothing is written."""
        _ENDED.add(self.owner)

    def beat(self, cursor: Cursor) -> None:
        """Show a sign of life."""
        cursor.execute(
            "UPDATE langevin_xtal_owner SET beat = beat + 1 WHERE owner = ?", (self.owner,)
        )

    def _free_of_the_dead(self, cursor: Cursor) -> None:
        """Free what processes hold that are dead, or were silent for too long."""
        cursor.execute("SELECT owner, host, pid, beat FROM langevin_xtal_owner")
        now, here = time.monotonic(), this_host()
        registered = False
        for owner, host, pid, beat in cursor.fetchall():
            if owner == self.owner:
                registered = True
                continue
            if owner in _ENDED or (host == here and not is_running(whole(pid, "owner"))):
                self.free(cursor, owner)
                continue
            # beats are compared by this process's clock: clocks of computers differ
            if self._seen.get(owner, (None, 0.0))[0] != beat:
                self._seen[owner] = (beat, now)
            if now - self._seen[owner][1] > self.lease:
                self.free(cursor, owner)
        if not registered:  # this process was silent for too long, as others saw it
            self.register(cursor, secrets.randbelow(10**9))  # not the beat that stood still


def _ends_with(unit: int) -> DataError:
    return DataError(f"the store's table of work is damaged: it ends with unit {unit}")
