"""CIF and magnetic CIF: gemmi reads the syntax, the crystallography is done here.

Where the symmetry comes from, in this order: the operations as listed; the Hall symbol; the
Hermann-Mauguin symbol with its setting, in the table of 530; the number of the group where its
settings leave no doubt. A symbol or number that several settings share is tried in all of them,
and what the file says of its contents (formula sum, Z, multiplicities, the shape of the cell)
must leave exactly one crystal. Nothing is guessed beyond that: the crystal is right, or refused
with what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import RejectError
from langevin_xtal.structures.cif_atoms import Made, expanded, oxidation_states
from langevin_xtal.structures.cif_block import (
    Block,
    tokenised,
)
from langevin_xtal.structures.cif_sites import Facts, Site, lattice_of, sites_of
from langevin_xtal.structures.cif_symmetry import (
    Choice,
    choices_of,
    listed_operations,
    other_symbol,
)
from langevin_xtal.structures.operations import group_of
from langevin_xtal.structures.record import ReadStructure, covalent_radii

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

IMPOSSIBLE, ORDINARY = 0.65, 0.75
"""Distances over the sum of covalent radii: no crystal has less; what is expected of one."""


def split_blocks(text: str) -> list[tuple[str, str]]:
    """(name, text) of the data blocks that hold atoms; the whole text when none does.

    Lines within text fields that look like the beginning of a block are none.
    """
    starts: list[tuple[int, str]] = []
    inside, place = False, 0
    for line in text.splitlines(keepends=True):
        if line.startswith(";"):
            inside = not inside
        elif not inside and line[:5].lower() == "data_":
            starts.append((place, line[5:].split(None, 1)[0] if line[5:].split() else ""))
        place += len(line)
    if not starts:
        return [("", text)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    blocks = [
        (name, text[start:end])
        for (start, name), end in zip(starts, ends, strict=True)
        if "_atom_site" in text[start:end].lower()
    ]
    return blocks or [("", text)]


def parse_cif(text: str) -> ReadStructure:
    """The crystal of one data block.

    Raises
    ------
    RejectError
        When it holds none that is known for certain; the reason names what is missing, or both
        sides of a contradiction.
    """
    block = tokenised(text)
    lattice = lattice_of(block)
    sites, notes = sites_of(block)
    facts = Facts.of(block, sites)
    sites = facts.with_elements(sites)
    made, more = _crystal(block, lattice, sites, facts)
    notes += more
    for note in block.notes:
        notes.insert(0, note)
    return ReadStructure(
        id="",
        cell=(lattice, made.frac, np.array([sites[k].number for k in made.owner], np.int64)),
        moments=made.moments,
        oxidation=oxidation_states(block, sites, made.owner),
        notes=tuple(notes),
    )


def _crystal(
    block: Block, lattice: FloatArray, sites: list[Site], facts: Facts
) -> tuple[Made, list[str]]:
    """The one crystal that the file describes, and notes on how it was found."""
    notes = list(facts.notes)
    listed = listed_operations(block)
    if listed is not None:
        made = expanded(listed, lattice, sites, block)
        against = facts.contradiction(_numbers(sites, made)) or made.contradiction
        symbol = other_symbol(block, listed)
        count = f"symmetry operations listed ({len(listed)})"
        if against:
            hint = f"; the {count} are not those of {symbol}" if symbol else ""
            raise RejectError("the atoms contradict the file", against + hint)
        notes += made.notes
        if symbol:
            notes.append(f"the {count} are not those of the symbol {symbol}; the operations count")
        return made, notes
    choices, said = choices_of(block, lattice)
    if not choices:
        made = expanded(group_of(("x,y,z",)), lattice, sites, block)
        if facts.formula is None or not facts.is_whole(_numbers(sites, made)):
            raise RejectError(
                "the symmetry is not given",
                "operations, Hall or Hermann-Mauguin symbol and number are missing",
            )
        return made, [*notes, *made.notes, "no symmetry is given; the sites make up the formula"]
    tried: list[tuple[Choice, Made]] = []
    reasons: list[str] = []
    for choice in choices:
        try:
            made = expanded(choice.operations, lattice, sites, block)
        except RejectError as reject:
            if len(choices) == 1:
                raise
            reasons.append(str(reject))
            continue
        against = facts.contradiction(_numbers(sites, made)) or made.contradiction
        if against:
            reasons.append(f"{against} in {choice.name}" if len(choices) > 1 else against)
        else:
            tried.append((choice, made))
    if not tried:
        raise RejectError("the atoms contradict the file", reasons[0])
    if len(tried) > 1:
        tried = _sensible(tried, lattice, sites)
    if len(tried) > 1:
        names = ", ".join(choice.name for choice, _ in tried[:4])
        more = f" and {len(tried) - 4} more" if len(tried) > 4 else ""
        raise RejectError(
            "the setting of the space group is not given",
            f"{said} may be {names}{more}, which give different crystals; add the symmetry "
            "operations, the Hall symbol or the choice of origin or axes",
        )
    choice, made = tried[0]
    notes += made.notes
    if len(choices) > 1:
        notes.append(f"{said} is read as {choice.name}, the only setting that fits")
    return made, notes


def _sensible(
    tried: list[tuple[Choice, Made]], lattice: FloatArray, sites: list[Site]
) -> list[tuple[Choice, Made]]:
    """Settings left when those with impossibly short distances are struck out.

    A setting is struck out only where another has ordinary distances.
    """
    if max(len(made.owner) for _, made in tried) > 1000:
        return tried
    closest = [_closest(made, lattice, sites) for _, made in tried]
    if max(closest) < ORDINARY:
        return tried
    return [pair for pair, ratio in zip(tried, closest, strict=True) if ratio > IMPOSSIBLE]


def _closest(made: Made, lattice: FloatArray, sites: list[Site]) -> float:
    """Smallest distance between atoms over the sum of their covalent radii."""
    radius = covalent_radii()[[site.number for site in sites]][made.owner]
    delta = made.frac[:, None] - made.frac
    delta -= np.rint(delta)
    length = np.sqrt(((delta @ lattice) ** 2).sum(axis=2))
    np.fill_diagonal(length, np.inf)
    return float((length / (radius[:, None] + radius)).min())


def _numbers(sites: Sequence[Site], made: Made) -> IntArray:
    return np.array([sites[k].number for k in made.owner], dtype=np.int64)
