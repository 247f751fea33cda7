"""Shortest distances between the atoms of a cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_PAIRS = 1 << 16
"""Distances computed at a time in the search for overlaps."""

_STEPS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
"""(27, 3) the cell and its neighbours."""


def nearest_pair(
    frac: FloatArray,
    lattice: FloatArray,
    start: IntArray | None = None,
    radii: FloatArray | None = None,
) -> tuple[float, int, int]:
    """Shortest distance [Å] between two atoms or an atom and its copies, and the two atoms.

    Parameters
    ----------
    start
        The atoms to look from, by default all; one of each site is enough.
    radii
        (N,) of the atoms [Å]: what is looked for, and given, is the smallest ratio of a distance
        to the sum of two radii.
    """
    start = np.arange(len(frac)) if start is None else start
    delta = frac[None, :] - frac[start][:, None]
    delta -= np.rint(delta)
    best = np.full(delta.shape[:2], np.inf)
    own = (np.arange(len(start)), start)
    at_once = max(1, MOST_PAIRS // best.size)
    for k in range(0, len(_STEPS), at_once):
        steps = _STEPS[k : k + at_once]
        vectors = (delta + steps[:, None, None]) @ lattice
        vectors *= vectors
        square = vectors[..., 0] + vectors[..., 1] + vectors[..., 2]
        for step in np.flatnonzero(~steps.any(axis=1)):
            square[step][own] = np.inf
        best = np.minimum(best, square.min(axis=0))
    best = np.sqrt(best)
    if radii is not None:
        best /= radii[start][:, None] + radii
    i, j = np.unravel_index(int(best.argmin()), best.shape)
    return float(best[i, j]), int(start[i]), int(j)


def min_distance(lattice: FloatArray, frac: FloatArray, others: FloatArray | None = None) -> float:
    """Shortest distance [Å] between ``frac`` (N, 3) and ``others`` (default: itself).

    Exact below half the shortest height of the cell, which is all an overlap check needs.
    """
    others = frac if others is None else others
    delta = frac[:, None] - others
    delta -= np.rint(delta)
    square = np.full(delta.shape[:2], np.inf)
    for shift in _STEPS:
        length = ((delta + shift) @ lattice) ** 2
        total = length.sum(axis=-1)
        total[total < 1e-12] = np.inf  # the atom itself
        square = np.minimum(square, total)
    coincident = (np.abs(delta).max(axis=-1) < 1e-9).sum(axis=1).max() > 1
    return 0.0 if coincident else float(np.sqrt(square.min()))
