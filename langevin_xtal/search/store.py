"""Where a campaign is kept: one ASE database, SQLite in a file or PostgreSQL by its address."""

from __future__ import annotations

import os

from langevin_xtal.search.entry import Entry


def is_store(source: str | os.PathLike[str]) -> bool:
    """Whether ``source`` is the store of a search."""
    return False


def stored_entries(source: str | os.PathLike[str]) -> list[Entry]:
    """Candidates of a store that were neither rejected nor equal an earlier one."""
    return []
