"""Lines of the table of ``langevin-xtal hull``, and what its numbers rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from langevin_xtal.cli import structures
from langevin_xtal.cli.terminal import echo

if TYPE_CHECKING:
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.screen.hull import HullReferences, HullResult
    from langevin_xtal.screen.own_energies import OwnEnergy

TABLE = ("name", "formula", "energy", "e_above_hull", "phases", "note")
YTTERBIUM = 70
NOTES = 3
"""Chemical systems whose references are described on the terminal."""


def row_of(entry: Entry, energy: float, found: HullResult, reason: str) -> dict[str, str]:
    """The line of a structure."""
    return {
        "name": entry.uid,
        "formula": entry.formula,
        "energy": structures.number_text(energy, 6),
        **place(found),
        "note": reason or found.missing or _doubt(entry),
    }


def place(found: HullResult) -> dict[str, str]:
    """Distance to the hull, and the phases that make it up."""
    above = found.e_above_hull
    return {
        "e_above_hull": "" if above is None else f"{round(above, 4) + 0.0:.4f}",  # + 0.0: no -0
        "phases": " + ".join(f"{share:.3f} {_pretty(f)}" for f, share in found.phases.items()),
    }


def by_distance(row: Mapping[str, str]) -> tuple[bool, float]:
    """Key to sort lines by: the nearest to the hull first, unknown distances last."""
    return row["e_above_hull"] == "", float(row["e_above_hull"] or 0)


def _doubt(entry: Entry) -> str:
    """What is known to be wrong with the references of an element."""
    if YTTERBIUM not in entry.cell[2]:
        return ""
    return (
        "the references of Yb rest on the pseudopotential Yb_2, which suits Yb2+ only: of Yb3+ "
        "the energy above hull is too high"
    )


def _pretty(formula: str) -> str:
    """``"Cl1 Na1"`` as ``"NaCl"``."""
    from pymatgen.core import Composition

    return str(Composition(formula).reduced_formula)


def elements_of(entry: Entry) -> frozenset[str]:
    """Symbols of a structure."""
    from langevin_xtal.crystal.elements import SYMBOLS

    return frozenset(SYMBOLS[z] for z in entry.cell[2].tolist())


def symbols_of(phases: Sequence[OwnEnergy]) -> set[str]:
    """Symbols of all phases."""
    from langevin_xtal.crystal.elements import SYMBOLS

    return {SYMBOLS[z] for phase in phases for z in phase.numbers.tolist()}


def show_references(of: Mapping[frozenset[str], HullReferences]) -> None:
    """What the numbers rest on."""
    from langevin_xtal.screen.hull import coverage_note

    first = next(iter(of.values()))
    gaps = f"; {first.gaps}" if first.gaps else ""
    echo(f"\nReferences: {first.describe()}{gaps}")
    for system, table in list(of.items())[:NOTES]:
        echo(f"  {coverage_note(sorted(system), replace(table, gaps=''))}")
    if len(of) > NOTES:
        echo(f"  and {len(of) - NOTES} more chemical systems")
