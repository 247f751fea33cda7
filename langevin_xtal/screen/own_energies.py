"""A user's own energies: a table of formulas and energies, and the hull of them."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.errors import DataError
from langevin_xtal.screen.hull import OWN, HullReferences

NAMES = ("name", "id", "uid")
"""Columns that may name a phase."""
PER_ATOM, TOTAL = "energy_per_atom", "energy"
MOST_ATOMS = 10_000


@dataclass(frozen=True, eq=False)
class OwnEnergy:
    """One phase of a user's table."""

    name: str
    formula: str  #: as written
    numbers: NDArray[np.int64]  #: (N,) atomic numbers of the formula's atoms
    energy: float  #: [eV/atom]


def read_energies(path: str | os.PathLike[str]) -> list[OwnEnergy]:
    """Phases of a CSV file with the columns ``formula`` and ``energy_per_atom`` or ``energy``.

    ``energy_per_atom`` is in eV/atom; ``energy`` in eV for all atoms of the formula as it is
    written, so that Na4Cl4 and NaCl differ by a factor of four. A column ``name``, ``id`` or
    ``uid`` names the phase; others are passed over.

    Raises
    ------
    DataError
        When the file cannot be read, lacks a column, or a line has no formula or no finite energy.
    """
    source = Path(path)
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source} cannot be read as CSV ({error})") from None
    unit = next((name for name in (PER_ATOM, TOTAL) if name in columns), None)
    if "formula" not in columns or unit is None:
        raise DataError(
            f"{source} has the columns {', '.join(columns) or 'none'}: it needs formula, and "
            f"{PER_ATOM} [eV/atom] or {TOTAL} [eV, of the formula as written]"
        )
    if PER_ATOM in columns and TOTAL in columns:
        raise DataError(f"{source} has both {PER_ATOM} and {TOTAL}: leave one of them")
    phases = [_phase(source, line, row, unit) for line, row in rows]
    if not phases:
        raise DataError(f"{source} has no line with a formula and an energy")
    return phases


def _phase(source: Path, line: int, row: dict[str, str | None], unit: str) -> OwnEnergy:
    from pymatgen.core import Composition

    formula, text = (row.get("formula") or "").strip(), (row.get(unit) or "").strip()
    where = f"{source}, line {line}"
    try:
        counts = {e.symbol: float(n) for e, n in Composition(formula, strict=True).items()}
        whole = {symbol: round(n) for symbol, n in counts.items()}
        if not whole or any(abs(counts[s] - n) > 1e-8 or n < 1 for s, n in whole.items()):
            raise ValueError
    except Exception:  # pymatgen raises several kinds
        raise DataError(
            f"{where}: {formula!r} is no formula with whole numbers of atoms, such as Na2O"
        ) from None
    count = sum(whole.values())
    if count > MOST_ATOMS:
        raise DataError(f"{where}: {formula!r} has {count} atoms; the most is {MOST_ATOMS}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: energy {text!r} of {formula} is no number")
    numbers = np.repeat([atomic_number(symbol) for symbol in whole], list(whole.values()))
    name = next((row[key] for key in NAMES if row.get(key)), None) or f"line {line}"
    return OwnEnergy(name, formula, numbers, value if unit == PER_ATOM else value / count)


def own_references(
    compositions: Sequence[NDArray[np.int64]],
    energy: Sequence[float],
    names: Sequence[str],
    source: str,
) -> HullReferences:
    """The hull of a user's own energies: of every composition the lowest.

    Parameters
    ----------
    compositions
        Atomic numbers of each phase's atoms.
    energy
        Of each [eV/atom]; those that are not finite are left out.
    names
        Of each phase.
    source
        What they come from, for reports.
    """
    return HullReferences.build(
        compositions,
        np.array(energy, dtype=float),
        names,
        potential=OWN,
        version=f"energies of {source}",
        statement="as they are given, all of one method, it is assumed",
        keep=math.inf,
    )
