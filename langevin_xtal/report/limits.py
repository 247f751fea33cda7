"""What a report does not tell: sentences that depend on what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langevin_xtal.report.diagram import Diagram, elements_of, subsystems
from langevin_xtal.search.entry import Entry

if TYPE_CHECKING:
    from langevin_xtal.screen.hull import HullReferences

MOST_ELEMENTS = 5
"""Beyond, subsystems are too many to list."""


def limits(
    entries: Sequence[Entry], references: HullReferences | None, diagram: Diagram | None
) -> list[tuple[str, str]]:
    """Headings and what each is about, most important first."""
    found = [("Energies", _energies(entries))]
    if any(entry.energy is not None for entry in entries):
        found.append(("Hull", _hull(entries, references, diagram)))
    found += [("Geometry", _geometry(entries)), ("Temperature", _temperature(entries))]
    found.append(
        (
            "Completeness",
            "Candidates are a finite number of samples of a model of known crystals. A structure "
            "or composition that is not listed is not ruled out, and one that is listed is not "
            "thereby known to be makeable: kinetics and precursors are not considered.",
        )
    )
    return found


def _energies(entries: Sequence[Entry]) -> str:
    potentials = sorted({e.potential for e in entries if e.energy is not None})
    if not potentials:
        return (
            "No candidate has an energy. The order of the table says nothing about stability; "
            "relax the candidates to rank them."
        )
    names = " and ".join(name or "a potential that is not named" for name in potentials)
    text = (
        f"Energies are those of {names}, a machine-learned model rather than DFT. Candidates a "
        "few tens of meV/atom apart may change places in DFT: take the order as a suggestion of "
        "what to compute first."
    )
    if len(potentials) > 1:
        text += " Energies of different potentials must not be compared with each other."
    without = sum(entry.energy is None for entry in entries)
    return text + (f" {without} of {len(entries)} candidates have no energy." if without else "")


def _hull(
    entries: Sequence[Entry], references: HullReferences | None, diagram: Diagram | None
) -> str:
    unknown = sum(e.e_above_hull is None and e.energy is not None for e in entries)
    if unknown == sum(entry.energy is not None for entry in entries):
        return "No energy above the hull is known: nothing says whether a candidate decomposes."
    parts = []
    elements = elements_of(entries)
    if references is not None and (diagram is not None or len(elements) not in (2, 3)):
        parts.append(f"Reference: {references.describe()}.")
        if len(elements) <= MOST_ELEMENTS:
            parts.append(_coverage(subsystems(references, elements)))
    else:
        parts.append("Which reference phases the energies above the hull rest on is not recorded.")
    parts.append("A phase that is missing makes candidates look more stable than they are.")
    if unknown:
        parts.append(f"{unknown} candidates have an energy but no place against the hull.")
    return " ".join(parts)


def _coverage(counts: dict[str, int]) -> str:
    present = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    absent = ", ".join(name for name, count in counts.items() if not count)
    text = f"Reference phases in this system: {present or 'none'}"
    return f"{text}; none for {absent}." if absent else f"{text}."


def _geometry(entries: Sequence[Entry]) -> str:
    relaxed = sum(entry.sampled is not None for entry in entries)
    start = {
        0: "No geometry here was relaxed: cells are as sampled or as read.",
        len(entries): "All geometries were relaxed with the potential.",
    }.get(relaxed, f"{relaxed} of {len(entries)} geometries were relaxed, the others were not.")
    return (
        f"{start} Groups found are those of spglib at 0.01 Å; a looser tolerance may find a "
        "higher one. Disorder, defects and magnetic order are not considered."
    )


def _temperature(entries: Sequence[Entry]) -> str:
    checked = sum(any("phonon" in k or "imaginary" in k for k in e.properties) for e in entries)
    return "Energies are static, without temperature, pressure or zero-point motion. " + (
        f"Phonons were computed for {checked} of {len(entries)} candidates."
        if checked
        else "Phonons were not computed: a low energy does not show that a structure is a minimum."
    )
