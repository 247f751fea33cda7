"""Quick reasons not to spend more time on a crystal: atoms too close, a strange volume, too many
atoms, charges that cannot balance.

The charge rule is SMACT's (D. W. Davies et al., Chem 1, 617 (2016)). It knows ionic crystals only:
alloys have no oxidation states to balance, so it calls everything made of metals alone valid, but
an intermetallic phase with a metalloid, such as Cu15Si4, not. :func:`reject_reason` therefore
lets metals with metalloids pass, and does not apply the rule at all unless asked to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from langevin_xtal.config.screening import VOLUME_PER_ATOM, FilterOptions
from langevin_xtal.crystal.cell import Cell, reduced_formula
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.extras import require

METALLOIDS = frozenset(("B", "Si", "Ge", "As", "Sb", "Te"))
"""What alloys contain besides metals."""
SMACT_STATES = "smact14"
"""Oxidation states, by their name in smact 3 and later: what was the default before."""


DEFAULT_FILTERS = FilterOptions()


def reject_reason(cell: Cell, options: FilterOptions = DEFAULT_FILTERS) -> str:
    """Why a crystal is not worth more time, in one phrase; empty when it passes.

    Raises
    ------
    MissingPackageError
        When ``charge_neutral`` is asked for and smact is not installed.
    """
    lattice, frac, numbers = cell
    if not len(numbers) or not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        return "the cell is not finite, or empty"
    if options.max_atoms is not None and len(numbers) > options.max_atoms:
        return f"{len(numbers)} atoms in the cell; the most is {options.max_atoms}"
    volume = abs(float(np.linalg.det(lattice))) / len(numbers)
    reason = wrong_volume(volume, options.volume_per_atom) or overlap(cell, options.min_distance)
    if reason or not options.charge_neutral:
        return reason
    formula = reduced_formula(numbers)
    return "" if is_alloy(formula) else composition_fault(formula)


def wrong_volume(per_atom: float, allowed: tuple[float, float] = VOLUME_PER_ATOM) -> str:
    """Says so when a volume per atom [Å³] lies outside of the range allowed."""
    low, high = allowed
    if low <= per_atom <= high:
        return ""
    return f"the volume per atom, {per_atom:.3g} Å³, lies outside {low:g} to {high:g}"


def overlap(cell: Cell, limit: float) -> str:
    """Says so when atoms or their images are closer than ``limit`` [Å]."""
    if limit == 0:
        return ""
    distances = to_structure(cell).get_neighbor_list(limit)[3]
    if not len(distances):
        return ""
    return f"atoms are {float(distances.min()):.3f} Å apart; the least is {limit:g}"


# -- composition


class _Element(NamedTuple):
    states: tuple[int, ...]
    electronegativity: float | None  #: Pauling
    metal: bool


def is_alloy(formula: str) -> bool:
    """Whether a composition has metals, and nothing but metals and metalloids.

    Metals are those of ``smact.metals``, metalloids those of :data:`METALLOIDS`.

    Raises
    ------
    MissingPackageError
        When smact is not installed.
    """
    from pymatgen.core import Composition

    symbols = set(Composition(formula).get_el_amt_dict())
    found = {symbol: _element(symbol) for symbol in symbols}
    metals = {symbol for symbol, element in found.items() if element and element.metal}
    return bool(metals) and symbols - metals <= METALLOIDS


@cache
def composition_fault(formula: str) -> str:
    """Why a composition is not valid; nothing when it is.

    The rules of ``smact_validity`` (Davies et al., Chem 1, 617, 2016; used by CDVAE): one element
    is valid, metals alone are; anything else needs one oxidation state for each element such that
    the formula is neutral and every cation is less electronegative than every anion. The answer
    is that of ``smact.screening.smact_validity(formula, oxidation_states_set="smact14")``, whose
    time grows with the product of the numbers of states: here cations and anions are split at
    each electronegativity in turn, and reachable charges are added element by element.

    An element without electronegativity (Pm, Rn and Lr of those with states) fails the comparison,
    as in that function. The smact of 2022 raised a TypeError there, which CDVAE took as passed.

    Parameters
    ----------
    formula
        Such as ``"Cu2 K1 Si1"``.

    Raises
    ------
    MissingPackageError
        When smact is not installed.
    """
    from pymatgen.core import Composition

    try:
        amounts = Composition(formula).get_el_amt_dict()
    except Exception:  # pymatgen raises several kinds
        return "the formula cannot be read"
    if not amounts:
        return "there are no atoms"
    if any(amount != int(amount) for amount in amounts.values()):
        return "amounts are not whole numbers"
    elements = {symbol: _element(symbol) for symbol in amounts}
    known = [element for element in elements.values() if element is not None]
    if len(known) < len(elements):
        strange = sorted(symbol for symbol, element in elements.items() if element is None)
        return f"smact does not know {', '.join(strange)}"
    if len(known) == 1 or all(element.metal for element in known):
        return ""
    inert = sorted(s for s, element in elements.items() if element and not element.states)
    if inert:
        return f"no oxidation states for {', '.join(inert)}"
    return _fault(known, [int(amount) for amount in amounts.values()])


def describe() -> str:
    """Version and oxidation states, for reports; such as "smact 4.0.2, smact14 oxidation states".

    Raises
    ------
    MissingPackageError
        When smact is not installed.
    """
    require("smact", "screen", "composition validity")
    return f"smact {version('smact')}, {SMACT_STATES} oxidation states"


def _fault(elements: Sequence[_Element], counts: Sequence[int]) -> str:
    """Why no choice of states will do; nothing when one does."""
    if not _neutral([element.states for element in elements], counts):
        return "no neutral combination of oxidation states"
    negativity = [element.electronegativity for element in elements]
    known = [value for value in negativity if value is not None]
    if len(known) == len(elements):
        for split in sorted(set(known)):
            states = [
                tuple(q for q in element.states if (q >= 0 if value <= split else q <= 0))
                for element, value in zip(elements, known, strict=True)
            ]
            if _neutral(states, counts):
                return ""
        return "neutral only with a cation at least as electronegative as an anion"
    return "an element has no electronegativity to compare"


def _neutral(states: Sequence[Sequence[int]], counts: Sequence[int]) -> bool:
    """Whether one state of each element can be chosen such that charges add up to 0."""
    charges = {0}
    for choices, count in zip(states, counts, strict=True):
        charges = {charge + count * state for charge in charges for state in choices}
    return 0 in charges


@cache
def _element(symbol: str) -> _Element | None:
    """What smact knows about an element; None when it does not know it."""
    smact = require("smact", "screen", "composition validity")
    try:
        found = smact.Element(symbol)
    except KeyError:
        return None
    return _Element(
        tuple(found.oxidation_states_smact14 or ()),
        found.pauling_eneg,
        symbol in smact.metals,
    )
