"""ASE databases in SQLite files, opened for reading only: a file that is none is not made one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from langevin_xtal.errors import DataError, RejectError
from langevin_xtal.structures.documents import vectors
from langevin_xtal.structures.record import (
    MOST_ATOMS,
    ReadStructure,
    Record,
    first_line,
    number,
    rejected,
)
from langevin_xtal.structures.xyz import of_atoms

if TYPE_CHECKING:
    from ase.constraints import FixConstraint
    from ase.db.row import AtomsRow
    from ase.db.sqlite import SQLite3Database


MAGIC = b"SQLite format 3\0"
SECONDS = 20.0
"""How long to wait for a writer."""


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write.

    Raises
    ------
    DataError
        When the file is no SQLite database.
    """
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=SECONDS)
    try:
        connection.execute("PRAGMA query_only = 1")
        yield connection
    except (sqlite3.Error, UnicodeDecodeError) as error:  # messages quote damaged names
        raise DataError(f"{path} cannot be read as a database: {first_line(error)}") from None
    finally:
        connection.close()


def is_ase_database(path: Path) -> bool:
    """Whether a SQLite file has ASE's table of systems.

    Raises
    ------
    DataError
        When it is damaged.
    """
    with read_only(path) as connection:
        found = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'systems'"
        ).fetchone()
    return bool(found[0])


def read_database(path: Path) -> tuple[Iterator[Record], int]:
    """A record for every row of an ASE database.

    Raises
    ------
    DataError
        When the file is no ASE database.
    """
    if not is_ase_database(path):
        raise DataError(f"{path} is a SQLite file without ASE's table of structures")
    with read_only(path) as connection:
        total = int(connection.execute("SELECT count(*) FROM systems").fetchone()[0])
    return _rows(path), total


def _database(path: Path) -> SQLite3Database:
    from ase.db.sqlite import SQLite3Database

    class ReadOnly(SQLite3Database):
        """ASE's database on a connection that cannot write."""

        def _connect(self) -> sqlite3.Connection:
            address = f"file:{quote(str(Path(str(self.filename)).absolute()))}?mode=ro"
            return sqlite3.connect(address, uri=True, timeout=SECONDS)

    return ReadOnly(str(path), create_indices=False, use_lock_file=False, serial=True)


def _rows(path: Path) -> Iterator[Record]:
    k = 0
    try:
        for row in _database(path).select():
            k += 1
            try:
                yield _record(row, path.stem)
            except Exception as error:  # ase decodes lazily
                reason = ("not a structure", first_line(error))
                yield Record(f"{path.stem}-{k}", reason, rejected)
    except GeneratorExit:
        raise
    except Exception as error:  # sqlite3 and ase raise anything on damaged files
        reason = ("the file cannot be read further", first_line(error))
        yield Record(f"{path.stem}-{k + 1}", reason, rejected)


def _record(row: Any, stem: str) -> Record:
    values = dict(row.key_value_pairs)
    name = str(values.pop("material_id", values.pop("id", f"{stem}-{row.id}")))
    properties = {k: n for k, v in values.items() if (n := number(v)) is not None}
    payload = {
        "numbers": np.array(row.numbers),
        "positions": np.array(row.positions),
        "cell": np.array(row.cell),
        "pbc": np.array(row.pbc),
        "energy": row.get("energy"),
        "magmoms": row.get("magmoms", row.get("initial_magmoms")),
        "constraints": _constraints(row),
    }
    return Record(name, payload, parse_row, properties)


def _constraints(row: AtomsRow) -> list[FixConstraint] | None:
    """Constraints of a row, None where this version of ase does not know them."""
    try:
        return list(row.constraints or ())
    except Exception:  # ase raises anything on damaged ones
        return None


def parse_row(row: dict[str, Any]) -> ReadStructure:
    """The crystal of a row.

    Raises
    ------
    RejectError
        When it is not three-dimensional or damaged.
    """
    from ase import Atoms

    numbers = row["numbers"]
    if numbers.ndim != 1:
        raise RejectError("not a structure", "the row has no atomic numbers")
    if len(numbers) > MOST_ATOMS:
        raise RejectError(f"more than {MOST_ATOMS} atoms", str(len(numbers)))
    try:
        atoms = Atoms(numbers, row["positions"], cell=row["cell"], pbc=row["pbc"])
        notes: tuple[str, ...] = ()
        if row["constraints"] is None:
            notes = ("constraints cannot be read and are not used",)
        else:
            atoms.set_constraint(row["constraints"])
        found = of_atoms(atoms, notes)
    except RejectError:
        raise
    except Exception as error:
        raise RejectError("not a structure", first_line(error)) from None
    magmoms = row["magmoms"]
    moments = None if magmoms is None else vectors(np.asarray(magmoms, dtype=float))
    return ReadStructure(
        id="",
        cell=found.cell,
        energy=number(row["energy"]),
        moments=moments,
        fixed=found.fixed,
        notes=found.notes,
    )
