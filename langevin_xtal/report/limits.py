"""What a report does not tell: sentences that depend on what is in it."""

from __future__ import annotations

from collections.abc import Sequence

from langevin_xtal.crystal.entry import Entry
from langevin_xtal.report.diagram import elements_of
from langevin_xtal.screen.hull import HullReferences, coverage_note

MOST_ELEMENTS = 8
"""Beyond, subsystems are too many to list."""


def limits(entries: Sequence[Entry], references: HullReferences | None) -> list[tuple[str, str]]:
    """Headings and what each is about, most important first."""
    found = [("Energies", _energies(entries))]
    if any(entry.energy is not None for entry in entries):
        found.append(("Hull", _hull(entries, references)))
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


def _hull(entries: Sequence[Entry], references: HullReferences | None) -> str:
    with_energy = sum(entry.energy is not None for entry in entries)
    unknown = sum(e.e_above_hull is None and e.energy is not None for e in entries)
    if unknown == with_energy:
        return "No energy above the hull is known: nothing says whether a candidate decomposes."
    parts = []
    if references is None:
        parts.append("Which reference phases the energies above the hull rest on is not recorded.")
    else:
        parts.append(f"Reference: {references.describe()}.")
        elements = elements_of(entries)
        if len(elements) <= MOST_ELEMENTS:
            parts.append(f"{coverage_note(elements, references)}.")
    if references is None or not references.gaps or len(elements_of(entries)) > MOST_ELEMENTS:
        parts.append("A phase that is missing makes candidates look more stable than they are.")
    if unknown:
        parts.append(f"{unknown} candidates have an energy but no place against the hull.")
    return " ".join(parts)


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
