"""Candidates as the report's page holds them: plain numbers and strings, kept short."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.entry import Entry, Value
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.errors import InputError, RejectError
from langevin_xtal.report.diagram import Diagram
from langevin_xtal.search.store import STATES

NOTES = ("note", "reason", "missing", "warning", "phonons")
"""Strings whose names contain one of these are shown in the table, the rest on demand."""
PATTERNS = 200
"""Candidates that have a powder pattern on the page."""
PATTERN_RANGE = (10.0, 80.0)
"""2θ [degrees]."""
MOST_PEAKS = 60
MUST_HOLD = {"converged": "not converged", "valid": "not valid"}
"""Flags that are worth a word when they are false."""


def page_rows(
    entries: Sequence[Entry], shared: Mapping[str, Value], diagram: Diagram | None
) -> list[dict[str, object]]:
    """One dictionary per candidate, in order; provenance without what is ``shared``.

    The first ``PATTERNS`` have a powder pattern.
    """
    rows = [_row(entry, shared, diagram) for entry in entries]
    for row, entry in zip(rows[:PATTERNS], entries, strict=False):
        row["xrd"] = pattern(entry.cell)
    return rows


def pattern(cell: Cell) -> list[list[float]]:
    """Cu Kα1 peaks of at least one per cent: 2θ [degrees], height; none where it has none."""
    from langevin_xtal.crystal.asymmetric import asymmetric_unit
    from langevin_xtal.diffraction.radiation import radiation
    from langevin_xtal.diffraction.simulate import peaks

    wavelength = radiation("CuKa1").lines[0][0]
    try:
        angles, heights = peaks(asymmetric_unit(*cell), wavelength, PATTERN_RANGE)
    except (RejectError, InputError):
        return []
    order = np.argsort(-heights, kind="stable")[:MOST_PEAKS]
    strong = np.sort(order[heights[order] >= 1.0])
    return [[round(float(angles[k]), 2), round(float(heights[k]), 1)] for k in strong]


def shared_provenance(entries: Sequence[Entry]) -> dict[str, Value]:
    """What all entries say alike about where they come from."""
    first, *others = (entry.provenance for entry in entries)
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


def _row(entry: Entry, shared: Mapping[str, Value], diagram: Diagram | None) -> dict[str, object]:
    numbers = entry.cell[2]
    notes = _notes(entry.properties)
    flags = [f for f in _flags(entry.properties) if not any(f in note for note in notes)]
    above, together = number(entry.e_above_hull), entry.properties.get("e_above_all")
    row: dict[str, object] = {
        "uid": entry.uid,
        "formula": entry.formula,
        "asked": entry.space_group,
        "found": entry.found_group,
        "above": None if above is None else number(1000 * above, 2),
        "all": number(1000 * together, 2) if isinstance(together, float) else None,
        "energy": number(entry.energy, 5),
        "potential": entry.potential,
        "flags": flags,
        "notes": notes,
        "more": _plain(entry.properties),
        "from": _plain({k: v for k, v in entry.provenance.items() if k not in shared}),
        "cell": pack_cell(entry.cell),
    }
    if entry.sampled is not None:
        row["sampled"] = pack_cell(entry.sampled)
    if diagram is not None:
        row["x"] = [round(x, 5) for x in diagram.fractions(numbers)]
        if row["energy"] is not None and entry.energy is not None:
            row["formation"] = number(diagram.formation_energy(numbers, entry.energy), 5)
    return row


def pack_cell(cell: Cell) -> dict[str, object]:
    """A cell in few characters: lattice rows [Å], ``[symbol, count]`` runs, coordinates.

    Six decimals, which is 10⁻⁵ Å for cells of 10 Å; ``d`` is the shortest distance [Å].
    """
    lattice, frac, numbers = cell
    runs = [[SYMBOLS[z], len(list(same))] for z, same in groupby(numbers.tolist())]
    return {
        "l": _short(lattice),
        "z": runs,
        "f": _short(np.round(frac % 1.0, 6) % 1.0),
        "d": number(shortest_distance(cell), 3),
    }


def shortest_distance(cell: Cell) -> float:
    """Between two atoms, or an atom and its copies [Å]; NaN where it cannot be found."""
    lattice, frac, _ = cell
    volume = abs(float(np.linalg.det(lattice)))
    if not (np.isfinite(frac).all() and math.isfinite(volume) and volume > 1e-6):
        return math.nan
    structure = to_structure(cell)
    # no lattice leaves a ball of this radius around each of its points empty of the others
    reach, enough = 4.0, 2.0 * float(np.linalg.norm(lattice, axis=1).min())
    while True:
        distances = structure.get_neighbor_list(reach)[3]
        if len(distances):
            return float(distances.min())
        if reach > enough:
            return math.nan
        reach *= 2


def number(value: float | None, digits: int = 6) -> float | None:
    """Rounded; None where it is unknown or not finite."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), digits) + 0.0


def _short(values: ArrayLike) -> list[float | int]:
    """Six decimals; whole numbers without a point."""
    rounded = (np.round(np.asarray(values, dtype=float).ravel(), 6) + 0.0).tolist()
    return [int(v) if v == int(v) else v for v in rounded]


def _plain(values: Mapping[str, Value]) -> dict[str, Value]:
    """Fit for JSON: numbers rounded to what is worth reading."""
    plain: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(value, (bool, np.bool_)):
            plain[str(key)] = bool(value)
        elif isinstance(value, (int, np.integer)):
            plain[str(key)] = int(value)
        elif isinstance(value, (float, np.floating)):
            plain[str(key)] = float(f"{value:.6g}") if math.isfinite(value) else str(value)
        else:
            plain[str(key)] = str(value)
    return plain


def _flags(properties: Mapping[str, Value]) -> list[str]:
    known = properties.get("known")
    flags = [f"known: {known}"] if isinstance(known, str) and known else []
    for key, value in properties.items():
        if not isinstance(value, (bool, np.bool_)):
            continue
        if key in MUST_HOLD:
            flags += [] if value else [MUST_HOLD[key]]
        elif value and key not in STATES:
            flags.append(str(key).replace("_", " "))
    return flags


def _notes(properties: Mapping[str, Value]) -> list[str]:
    return [
        str(value)
        for key, value in properties.items()
        if isinstance(value, str) and value and any(word in str(key).lower() for word in NOTES)
    ]
