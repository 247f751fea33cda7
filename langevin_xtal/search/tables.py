"""Tables of a store: how they are made, and how what they hold is read.

What stands in them is checked: anybody may have edited them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from langevin_xtal.errors import DataError
from langevin_xtal.search.database import Cursor, plain_address, settings_of
from langevin_xtal.search.rows import CampaignSummary, Row, from_data, summarise

Item = TypeVar("Item")

FORMAT = 2
"""Version of the store's layout; others are refused."""
LOOK = 256
"""Units looked up with one statement."""
INDEXES = (
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
"""Made in stores of earlier versions too, which lack some."""
TABLES = (
    "CREATE TABLE IF NOT EXISTS langevin_xtal_work (stage TEXT, unit INTEGER, owner TEXT, "
    "done INTEGER, entry INTEGER, PRIMARY KEY (stage, unit))",
    "CREATE TABLE IF NOT EXISTS langevin_xtal_owner (owner TEXT PRIMARY KEY, host TEXT, "
    "pid INTEGER, beat INTEGER)",
    "CREATE TABLE IF NOT EXISTS langevin_xtal_stage (stage TEXT PRIMARY KEY, seconds REAL)",
)
KEYS = {
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
"""Columns of ASE's own page, with descriptions and units."""


def parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Items, so many at a time."""
    return (items[k : k + size] for k in range(0, len(items), size))


def marks(items: Collection[object]) -> str:
    """Placeholders for so many values in a statement."""
    return ", ".join("?" * len(items))


def all_rows(cursor: Cursor) -> list[Row]:
    """Rows of all candidates by index."""
    cursor.execute("SELECT id, data FROM systems")
    rows: dict[int, Row] = {}
    for number, data in cursor.fetchall():
        row = from_data(data, number)
        if row.index in rows:
            raise DataError(f"the store is damaged: candidate {row.index} is there twice")
        rows[row.index] = row
    return [rows[index] for index in sorted(rows)]


def some_rows(cursor: Cursor, indices: Sequence[int]) -> list[Row]:
    """Rows of candidates, found by the lines of their samples."""
    rows: list[Row] = []
    for k in range(0, len(indices), LOOK):
        part = indices[k : k + LOOK]
        cursor.execute(
            "SELECT work.unit, systems.id, systems.data FROM langevin_xtal_work AS work, systems "
            f"WHERE work.stage = 'sample' AND work.unit IN ({marks(part)}) "
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


def summary_of(cursor: Cursor) -> CampaignSummary:
    """Settings, counts and times."""
    cursor.execute("SELECT stage, seconds FROM langevin_xtal_stage")
    seconds = {str(stage): seconds_spent(spent) for stage, spent in cursor.fetchall()}
    return summarise(settings_of(cursor) or {}, all_rows(cursor), seconds)


def lowest_rows(cursor: Cursor, count: int) -> list[Row] | None:
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


def whole(value: object, table: str) -> int:
    """A whole number of a table of ours, which anybody may have edited."""
    if type(value) is not int or value < 0:
        raise DataError(f"the store's table of {table} is damaged: {short(str(value))}")
    return value


def seconds_spent(value: object) -> float:
    """A time of a table of ours."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"the store's table of times is damaged: {short(str(value))}")
    return float(value)


def short(value: object) -> str:
    """A value as a message shows it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"


def check_format(address: str | os.PathLike[str], settings: Mapping[str, object]) -> None:
    """Refuse stores of other versions."""
    if settings.get("format") != FORMAT:
        raise DataError(
            f"store {plain_address(address)} has format {settings.get('format')!r}, written by "
            f"langevin-xtal {settings.get('version', 'of unknown version')}; this version reads "
            f"format {FORMAT}: use that version, or another store"
        )
