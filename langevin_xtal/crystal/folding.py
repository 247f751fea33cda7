"""Cells and their primitive cells, with the way back: what is done to one is done to the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.symmetry import wrap
from langevin_xtal.symmetry.detection import symmetry_dataset

FloatArray = NDArray[np.float64]

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Folded:
    """A cell and its primitive cell, with the way back.

    With T the integer rows such that ``lattice = T @ primitive lattice``, atom i of the cell lies
    at ``x_i T = y_(own i) + offset_i`` of the primitive one.
    """

    primitive: Cell
    rows: FloatArray  #: (3, 3) T
    own: NDArray[np.int64]  #: (N,) atom of the primitive cell
    offset: FloatArray  #: (N, 3) whole numbers

    def expand(self, moved: Cell) -> Cell:
        """The whole cell where the primitive one has become ``moved``, atom by atom."""
        lattice, frac, numbers = moved
        frac = frac - np.rint(frac - self.primitive[1])  # undoes wrapping
        whole = (frac[self.own] + self.offset) @ np.linalg.inv(self.rows)
        return self.rows @ lattice, wrap(whole), numbers[self.own]


def fold(cell: Cell, symprec: float) -> Folded:
    """The primitive cell of a cell, by the translations spglib finds within ``symprec`` [Å].

    The cell itself where there is no smaller one, or spglib finds nothing.
    """
    lattice, frac, numbers = cell
    unchanged = Folded(cell, np.eye(3), np.arange(len(numbers)), np.zeros_like(frac))
    found = symmetry_dataset(cell, symprec)
    if found is None:
        return unchanged
    own = np.asarray(found.mapping_to_primitive, dtype=np.int64)
    first = np.unique(own, return_index=True)[1]
    basis = np.asarray(found.primitive_lattice)
    exact = lattice @ np.linalg.inv(basis)
    rows = np.rint(exact)
    ratio = abs(round(float(np.linalg.det(rows))))
    if len(first) == len(numbers) or ratio * len(first) != len(numbers):
        return unchanged
    basis = np.linalg.inv(rows) @ lattice
    inside = frac @ rows
    difference = inside - inside[first][own]
    offset = np.rint(difference)
    away = np.linalg.norm((difference - offset) @ basis, axis=1).max()
    if away > 2 * symprec or np.abs(exact - rows).max() > 0.1:
        return unchanged
    small = wrap(inside[first])
    offset += np.rint(inside[first] - small)[own]
    return Folded((basis, small, numbers[first]), rows, own, offset)
