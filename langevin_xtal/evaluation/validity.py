"""Validity of structures and compositions by the rules of CDVAE (Xie et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.extras import require

BoolArray = NDArray[np.bool_]

MIN_DISTANCE = 0.5
"""Shortest distance between atoms [Å]: CDVAE's ``structure_validity``."""

MIN_VOLUME = 0.1
"""Smallest volume of a cell [Å³]: CDVAE's ``structure_validity``."""

SMACT_STATES = "smact14"
"""Oxidation states, by their name in smact 3 and later: what was the default before."""


class _Element(NamedTuple):
    states: tuple[int, ...]
    electronegativity: float | None  #: Pauling
    metal: bool


def structure_valid(min_distance: ArrayLike, volume: ArrayLike) -> BoolArray:
    """(B,) whether atoms keep :data:`MIN_DISTANCE` and cells have :data:`MIN_VOLUME`.

    Parameters
    ----------
    min_distance
        (B,) shortest distance between atoms [Å]; infinite where there is one atom.
    volume
        (B,) of the cells [Å³]. NaN in either is not valid.
    """
    distances, volumes = np.asarray(min_distance, float), np.asarray(volume, float)
    return np.asarray((distances >= MIN_DISTANCE) & (volumes >= MIN_VOLUME))


def composition_valid(formula: str) -> bool:
    """Whether SMACT's rules allow a composition, see :func:`composition_fault`."""
    return not composition_fault(formula)


def compositions_valid(formulas: Sequence[str]) -> tuple[BoolArray, dict[str, str]]:
    """(B,) :func:`composition_valid` of each formula, and the reason for each that is not.

    Raises
    ------
    MissingPackageError
        When smact is not installed.
    """
    faults = {formula: composition_fault(formula) for formula in formulas}
    valid = np.array([not faults[formula] for formula in formulas], dtype=bool)
    return valid, {formula: fault for formula, fault in faults.items() if fault}


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
    require("smact", "evaluate", "composition validity")
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
    smact = require("smact", "evaluate", "composition validity")
    try:
        found = smact.Element(symbol)
    except KeyError:
        return None
    return _Element(
        tuple(found.oxidation_states_smact14 or ()),
        found.pauling_eneg,
        symbol in smact.metals,
    )
