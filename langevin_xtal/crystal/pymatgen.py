"""Cells as pymatgen Structures, and back."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Structure


def to_structure(cell: Cell, properties: Mapping[str, object] | None = None) -> Structure:
    """pymatgen Structure of a cell; ``properties`` are those of the whole structure."""
    from pymatgen.core import Lattice, Structure

    lattice, frac, numbers = cell
    given = None if properties is None else dict(properties)
    return Structure(Lattice(lattice), [SYMBOLS[z] for z in numbers], frac, properties=given)


def from_structure(structure: Structure) -> Cell:
    """The cell of a pymatgen Structure.

    Raises
    ------
    DataError
        For a structure with partial occupancies.
    """
    if not structure.is_ordered:
        raise DataError("the structure has partial occupancies; give an ordered one")
    numbers = np.array([getattr(site.specie, "Z", 0) for site in structure], dtype=np.int64)
    return structure.lattice.matrix.copy(), structure.frac_coords.copy(), numbers


def plain_formula(numbers: Iterable[int]) -> str:
    """Reduced formula as pymatgen writes it, such as ``"NaCl"``."""
    counts = Counter(int(z) for z in numbers)
    return _formula(tuple(sorted(counts.items())))


@cache
def _formula(counts: tuple[tuple[int, int], ...]) -> str:
    from pymatgen.core import Composition

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # helium has no electronegativity to order it by
        return str(Composition({SYMBOLS[z]: n for z, n in counts}).reduced_formula)
