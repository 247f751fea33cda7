"""A stage of the search: how many neighbours atoms have."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

WITHIN = 1.2
"""Neighbours are at most so many times the shortest distance away."""


def coordination(cell: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, float]:
    """Mean number of neighbours of an atom; the cell is rows [Å], fractional, atomic numbers."""
    lattice, frac, numbers = cell
    atoms = Atoms(numbers=numbers, cell=lattice, scaled_positions=frac, pbc=True)
    distances = neighbor_list("d", atoms, 6.0)
    if not len(distances):
        return {"neighbours": 0.0}
    near = distances <= WITHIN * distances.min()
    return {"neighbours": float(near.sum() / len(atoms))}
