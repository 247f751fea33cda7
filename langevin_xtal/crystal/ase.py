"""Cells as ase.Atoms, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from langevin_xtal.crystal.cell import Cell

if TYPE_CHECKING:
    from ase import Atoms


def to_atoms(cell: Cell, info: Mapping[str, object] | None = None) -> Atoms:
    """ase.Atoms of a cell, periodic in three directions, with this ``info``."""
    from ase import Atoms

    lattice, frac, numbers = cell
    given = {} if info is None else dict(info)
    return Atoms(numbers=numbers, cell=lattice, scaled_positions=frac, pbc=True, info=given)


def from_atoms(atoms: Atoms) -> Cell:
    """The cell of ase.Atoms, positions not wrapped."""
    return (
        np.array(atoms.cell.array, dtype=np.float64),
        np.array(atoms.get_scaled_positions(wrap=False), dtype=np.float64),
        np.array(atoms.numbers, dtype=np.int64),
    )
