"""The nearest neighbours of every atom, periodic images included, for batches of small cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.symmetry.detection import niggli_cell

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

REACH = 2
"""Images of the reduced cell that are looked at, along each axis and either way."""


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """N atoms with K edges each, in B crystals; edges run to the atom that they are of."""

    crystal: IntArray  #: (N,)
    src: IntArray  #: (E,)
    dst: IntArray  #: (E,)
    vector: FloatArray  #: (E, 3) from dst to the image of src [Å]
    weight: FloatArray  #: (E,) falls smoothly from 1 to 0 at the first atom that is left out


def nearest_neighbours(cells: Sequence[Cell], count: int) -> NeighbourGraph:
    """Edges to the ``count`` nearest atoms of every atom.

    The search runs in the Niggli-reduced cell, so that the edges do not depend on which cell of
    the lattice is given.
    """
    lattices, positions = [], []
    for lattice, frac, _ in cells:
        rows, reduced = niggli_cell(lattice, frac)
        lattices.append(rows)
        positions.append(reduced)
    sizes = np.array([len(p) for p in positions], dtype=np.int64)
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    src, vector, far = _search(np.array(lattices), np.concatenate(positions), start, count)
    length = np.linalg.norm(vector, axis=2)
    weight = np.clip(1.0 - (length / far[:, None]) ** 2, 0.0, None) ** 2
    atoms = int(start[-1])
    return NeighbourGraph(
        crystal=np.repeat(np.arange(len(cells)), sizes),
        src=src.ravel(),
        dst=np.repeat(np.arange(atoms), count),
        vector=vector.reshape(-1, 3),
        weight=weight.ravel(),
    )


@njit(cache=True)
def _search(
    lattices: FloatArray, frac: FloatArray, start: IntArray, count: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    """(N, K) neighbours, (N, K, 3) vectors to them, and (N,) distance of the next one [Å]."""
    atoms = len(frac)
    src = np.zeros((atoms, count), dtype=np.int64)
    vector = np.zeros((atoms, count, 3))
    far = np.zeros(atoms)
    images = (2 * REACH + 1) ** 3
    shifts = np.empty((images, 3))
    square = np.empty(count + 1)
    other = np.empty(count + 1, dtype=np.int64)
    path = np.empty((count + 1, 3))
    for crystal in range(len(lattices)):
        lattice = lattices[crystal]
        place = 0
        for a in range(-REACH, REACH + 1):
            for b in range(-REACH, REACH + 1):
                for c in range(-REACH, REACH + 1):
                    for x in range(3):
                        shifts[place, x] = (
                            a * lattice[0, x] + b * lattice[1, x] + c * lattice[2, x]
                        )
                    place += 1
        for i in range(start[crystal], start[crystal + 1]):
            square[:] = np.inf
            for j in range(start[crystal], start[crystal + 1]):
                u = frac[j, 0] - frac[i, 0]
                v = frac[j, 1] - frac[i, 1]
                w = frac[j, 2] - frac[i, 2]
                u -= np.rint(u)
                v -= np.rint(v)
                w -= np.rint(w)
                x = u * lattice[0, 0] + v * lattice[1, 0] + w * lattice[2, 0]
                y = u * lattice[0, 1] + v * lattice[1, 1] + w * lattice[2, 1]
                z = u * lattice[0, 2] + v * lattice[1, 2] + w * lattice[2, 2]
                for k in range(images):
                    if i == j and k == images // 2:
                        continue
                    p, q, r = x + shifts[k, 0], y + shifts[k, 1], z + shifts[k, 2]
                    d = p * p + q * q + r * r
                    if d >= square[count]:
                        continue
                    at = count
                    while at > 0 and square[at - 1] > d:
                        square[at], other[at] = square[at - 1], other[at - 1]
                        path[at] = path[at - 1]
                        at -= 1
                    square[at], other[at] = d, j
                    path[at, 0], path[at, 1], path[at, 2] = p, q, r
            for k in range(count):
                src[i, k] = other[k]
                vector[i, k] = path[k]
            far[i] = np.sqrt(square[count])
    return src, vector, far
