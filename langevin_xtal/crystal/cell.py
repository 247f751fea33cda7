"""The P1 cell: three arrays that say everything about a crystal but its symmetry."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import SYMBOLS

if TYPE_CHECKING:
    from pymatgen.core import Structure

Cell = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]
"""Lattice (3, 3) rows [Å], fractional coordinates (N, 3), atomic numbers (N,)."""


def cell_key(cell: Cell) -> str:
    """Identifies a cell: SHA-256 over its arrays, lengths and coordinates rounded to 1e-9."""
    lattice, frac, numbers = cell
    digest = hashlib.sha256(b"cell%d" % len(numbers))
    digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    for values in (lattice, frac):
        digest.update((np.round(values, 9) + 0.0).astype("<f8").tobytes())  # + 0.0: no -0
    return digest.hexdigest()


def to_structure(cell: Cell) -> Structure:
    """pymatgen Structure of a P1 cell."""
    from pymatgen.core import Lattice, Structure

    lattice, frac, numbers = cell
    return Structure(Lattice(lattice), [SYMBOLS[z] for z in numbers], frac)


def reduced_formula(numbers: NDArray[np.int64]) -> str:
    """Such as ``"Cu2 K1 Si1"``: elements in alphabetical order, smallest whole counts."""
    elements, counts = np.unique(numbers, return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    return " ".join(
        sorted(f"{SYMBOLS[z]}{n}" for z, n in zip(elements, counts.tolist(), strict=True))
    )
