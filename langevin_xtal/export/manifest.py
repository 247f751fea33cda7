"""What an export wrote: one row per candidate, the same whenever the same export is run."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from langevin_xtal.crystal.cell import cell_key
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.files import write_rows

COLUMNS = (
    "uid",
    "folder",
    "formula",
    "space_group",
    "found_group",
    "e_above_all",
    "e_above_hull",
    "energy",
    "potential",
    "export",
    "input_set",
    "atoms",
    "potcar",
    "displacements",
    "structure_sha",
    "key",
)
"""Columns of every manifest; provenance follows, each name with ``provenance_`` before it."""


class ExportWarning(UserWarning):
    """Something about an export that its user should know."""


@dataclass(frozen=True)
class Manifest:
    """What was exported, in order of rank."""

    path: Path
    """The table, or the file itself where an export is one file."""
    rows: tuple[Mapping[str, str], ...]
    """One per candidate that is there, by rank; keys as in :data:`COLUMNS` and provenance."""
    written: int
    """Candidates written now."""
    kept: int
    """Candidates that were there already."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Identifier to reason, of candidates that could not be written."""
    notes: tuple[str, ...] = ()
    """What the user should know: one sentence for each kind of warning."""

    def __len__(self) -> int:
        return len(self.rows)


def structure_sha(entry: Entry) -> str:
    """SHA-256 of the stored cell; see :func:`langevin_xtal.crystal.cell.cell_key`."""
    return cell_key(entry.cell)


def export_key(entry: Entry, settings: Mapping[str, object]) -> str:
    """SHA-256 of what determines the files of a candidate: identifier, structure and settings."""
    content = {"uid": entry.uid, "structure": structure_sha(entry), "settings": dict(settings)}
    for name, values in (("moments", entry.moments), ("fixed", entry.fixed)):
        if values is not None:
            content[name] = values.tolist()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def entry_row(entry: Entry, columns: Mapping[str, str]) -> dict[str, str]:
    """The row of a candidate: what the entry says, and ``columns``."""
    row = dict.fromkeys(COLUMNS, "") | {
        "uid": entry.uid,
        "formula": entry.formula,
        "space_group": str(entry.space_group),
        "found_group": _text(entry.found_group),
        "e_above_all": _text(entry.properties.get("e_above_all")),
        "e_above_hull": _text(entry.e_above_hull),
        "energy": _text(entry.energy),
        "potential": entry.potential,
        "structure_sha": structure_sha(entry),
    }
    provenance = {f"provenance_{k}": _text(v) for k, v in sorted(entry.provenance.items())}
    return row | dict(columns) | provenance


def table_text(rows: Iterable[Mapping[str, str]]) -> str:
    """The rows as CSV."""
    rows = list(rows)
    further = sorted({name for row in rows for name in row} - set(COLUMNS))
    buffer = io.StringIO()
    write_rows(buffer, [*COLUMNS, *further], rows)
    return buffer.getvalue()


def read_kinds(path: Path) -> set[str]:
    """The exports a manifest tells of; ``{""}`` for a file that is no manifest."""
    if not os.path.lexists(path):
        return set()
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            kinds = {str(row["export"]) for row in reader}
            return kinds if tuple(reader.fieldnames or ())[: len(COLUMNS)] == COLUMNS else {""}
    except (OSError, ValueError, KeyError, csv.Error):
        return {""}


def _text(value: object) -> str:
    return "" if value is None else str(value)
