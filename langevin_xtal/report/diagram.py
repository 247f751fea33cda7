"""Where candidates lie in the phase diagram of their elements: what the report's plot shows.

Reference phases and their tie lines come from pymatgen's PhaseDiagram (S. P. Ong et al., Chem.
Mater. 20, 1798 (2008)) over the same table that energies above the hull are taken from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.entry import Entry

if TYPE_CHECKING:
    from langevin_xtal.screen.hull import HullReferences

CONSISTENT = 0.002
"""Energies above the hull that differ by more were not taken from these references [eV/atom]."""
STABLE = 1e-6
"""Reference phases this near to their own hull make it up [eV/atom]."""


@dataclass(frozen=True)
class DiagramPhase:
    """A reference phase."""

    formula: str
    source: str
    fractions: tuple[float, ...]  #: share of each element of the diagram
    formation: float  #: formation energy [eV/atom]
    above_hull: float  #: [eV/atom]


@dataclass(frozen=True)
class Diagram:
    """Reference phases of two or three elements and the hull they span."""

    elements: tuple[str, ...]
    phases: tuple[DiagramPhase, ...]
    lines: tuple[tuple[int, int], ...]  #: pairs of stable phases joined by an edge of the hull
    element_energy: tuple[float, ...]  #: of each element's lowest phase [eV/atom]

    def formation_energy(self, numbers: NDArray[np.int64], energy: float) -> float:
        """Of a crystal with that ``energy`` [eV/atom]: its distance from the pure elements."""
        return energy - float(np.dot(self.fractions(numbers), self.element_energy))

    def fractions(self, numbers: NDArray[np.int64]) -> tuple[float, ...]:
        """Share of each element of the diagram among (N,) atomic ``numbers``."""
        return tuple(float(np.mean(numbers == atomic_number(s))) for s in self.elements)


def elements_of(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Symbols of all elements that occur, in alphabetical order."""
    found = {int(z) for entry in entries for z in np.unique(entry.cell[2])}
    return tuple(sorted(SYMBOLS[z] for z in found))


def phases_of(references: HullReferences, elements: Sequence[str]) -> list[int]:
    """Rows of the references that hold these elements and no others, in their order."""
    rows = references.fractions[:, [atomic_number(s) for s in elements]].sum(axis=1) > 1 - 1e-9
    return np.flatnonzero(rows).tolist()


def make_diagram(
    entries: Sequence[Entry], references: HullReferences | None
) -> tuple[Diagram | None, str]:
    """The phase diagram to draw, or None and a sentence that says why there is none."""
    elements = elements_of(entries)
    if not any(entry.e_above_hull is not None for entry in entries):
        return None, "No candidate has an energy above the hull, so there is no diagram to draw."
    if len(elements) not in (2, 3):
        return None, f"By formula: the hull of {len(elements)} element{_s(elements)} is not drawn."
    if references is None:
        return None, (
            "The reference phases behind these energies are not at hand, so the hull itself is "
            "not drawn."
        )
    rows = phases_of(references, elements)
    pure = {references.formulas[row] for row in rows}
    missing = [symbol for symbol in elements if f"{symbol}1" not in pure]
    if missing:
        return None, f"No reference phase of pure {', '.join(missing)}: the hull is not drawn."
    return _diagram(elements, references, rows), ""


def _s(things: Sequence[str]) -> str:
    return "" if len(things) == 1 else "s"


def agree(entries: Sequence[Entry], references: HullReferences) -> bool:
    """Whether the entries' energies above the hull were taken from these references.

    True when there are some, and each is the energy less that of the references' hull.
    """
    known = [e for e in entries if e.energy is not None and e.e_above_hull is not None]
    for entry in known:
        hull = references.hull_energy(entry.cell[2])[0]
        # written so that NaN, a composition the references do not reach, is no agreement
        if not abs((entry.energy or 0.0) - hull - (entry.e_above_hull or 0.0)) <= CONSISTENT:
            return False
    return bool(known)


def _diagram(elements: tuple[str, ...], references: HullReferences, rows: list[int]) -> Diagram:
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    entries = []
    for row in rows:
        composition = Composition(references.formulas[row].replace(" ", ""))
        energy = float(references.energy[row]) * composition.num_atoms
        entries.append(PDEntry(composition, energy, name=str(row)))
    diagram: Any = PhaseDiagram(entries)
    place = {entry.name: k for k, entry in enumerate(entries)}
    phases = []
    for row, entry in zip(rows, entries, strict=True):
        above = float(diagram.get_e_above_hull(entry))
        phases.append(
            DiagramPhase(
                formula=references.formulas[row],
                source=references.ids[row],
                fractions=tuple(float(entry.composition.get_atomic_fraction(s)) for s in elements),
                formation=float(diagram.get_form_energy_per_atom(entry)),
                above_hull=above if above > STABLE else 0.0,
            )
        )
    corners = [[place[diagram.qhull_entries[k].name] for k in f] for f in diagram.facets]
    lines = {tuple(sorted(pair)) for facet in corners for pair in combinations(facet, 2)}
    if len(elements) == 2:  # also where pymatgen's facets skip a phase exactly on a tie line
        stable = [k for k, phase in enumerate(phases) if phase.above_hull == 0]
        lines = set(pairwise(sorted(stable, key=lambda k: phases[k].fractions)))
    lowest = {s: diagram.el_refs[_element(s)].energy_per_atom for s in elements}
    return Diagram(
        elements=elements,
        phases=tuple(phases),
        lines=tuple(sorted((a, b) for a, b in lines)),
        element_energy=tuple(float(lowest[s]) for s in elements),
    )


def _element(symbol: str) -> Any:
    from pymatgen.core import Element

    return Element(symbol)
