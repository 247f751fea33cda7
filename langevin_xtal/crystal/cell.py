"""The P1 cell: three arrays that say everything about a crystal but its symmetry."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import LatticeError
from langevin_xtal.symmetry import SpaceGroup, wrap
from langevin_xtal.symmetry.expansion import orbits

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
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


def reduced_formula(numbers: NDArray[np.int64]) -> str:
    """Such as ``"Cu2 K1 Si1"``: elements in alphabetical order, smallest whole counts."""
    elements, counts = np.unique(numbers, return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    return " ".join(
        sorted(f"{SYMBOLS[z]}{n}" for z, n in zip(elements, counts.tolist(), strict=True))
    )


def cell_from_parameters(parameters: ArrayLike) -> NDArray[np.float64]:
    """(3, 3) rows [Å], a along x and b in the xy plane, from cell lengths and angles.

    Parameters
    ----------
    parameters
        (6,) a, b, c [Å], alpha, beta, gamma [degrees].

    Raises
    ------
    LatticeError
        When no cell has these lengths and angles.
    """
    given = np.asarray(parameters, dtype=float)
    a, b, c = given[:3]
    # cos(90°) is 6e-17 in floating point; right angles are to give exact zeros
    cosines = np.where(given[3:] == 90, 0.0, np.cos(np.radians(given[3:])))
    sine = math.sqrt(max(0.0, 1 - cosines[2] ** 2))
    along = (cosines[0] - cosines[1] * cosines[2]) / sine if sine else math.nan
    height = 1 - cosines[1] ** 2 - along**2
    if not (np.isfinite(given).all() and height > 0 and given[:3].min() > 0):
        raise LatticeError(f"no cell has the lengths and angles {given.tolist()}")
    return np.array(
        [
            [a, 0, 0],
            [b * cosines[2], b * sine, 0],
            [c * cosines[1], c * along, c * math.sqrt(height)],
        ]
    )


def cell_parameters(lattice: NDArray[np.float64]) -> tuple[float, ...]:
    """a, b, c [Å], α, β, γ [degrees]."""
    lengths = np.linalg.norm(lattice, axis=1)
    unit = lattice / lengths[:, None]
    cosines = np.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
    return (*lengths.tolist(), *np.degrees(np.arccos(np.clip(cosines, -1, 1))).tolist())


def expanded(group: SpaceGroup, lattice: FloatArray, frac: FloatArray, numbers: IntArray) -> Cell:
    """Primitive P1 cell of A sites.

    Parameters
    ----------
    lattice
        (3, 3) conventional cell, rows [Å].
    frac
        (A, 3) one representative of each orbit.
    numbers
        (A,) atomic numbers.
    """
    images, site = orbits(group, frac, lattice)
    return primitive(group, (lattice, wrap(images), numbers[site]))


def primitive(group: SpaceGroup, cell: Cell) -> Cell:
    """The primitive cell of a conventional one, exactly, by the group's centring vectors."""
    lattice, frac, numbers = cell
    centring = group.centring / 24.0
    if len(centring) == 1:
        return cell
    basis = _primitive_basis(tuple(map(tuple, group.centring.tolist())))
    new = wrap(frac @ np.linalg.inv(basis))
    new = np.where(new > 1 - 1e-7, 0.0, new)
    key = np.column_stack([numbers, np.rint(new * 1e6).astype(np.int64) % 1_000_000])
    _, first = np.unique(key, axis=0, return_index=True)
    if len(first) * len(centring) != len(numbers):  # a coordinate on the edge of the grid
        return cell
    first = np.sort(first)
    return basis @ lattice, new[first], numbers[first]


_BASES: dict[tuple[tuple[int, ...], ...], FloatArray] = {}


def _primitive_basis(centring: tuple[tuple[int, ...], ...]) -> FloatArray:
    """(3, 3) rows: three lattice vectors (fractions) that span a primitive cell."""
    if centring not in _BASES:
        shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3) * 24
        vectors = (np.array(centring)[:, None] + shifts).reshape(-1, 3)
        vectors = vectors[np.any(vectors != 0, axis=1)]
        vectors = vectors[np.argsort((vectors**2).sum(1), kind="stable")]
        volume = 24**3 // len(centring)
        count = len(vectors)
        for i in range(count):
            for j in range(i + 1, count):
                for k in range(j + 1, count):
                    rows = vectors[[i, j, k]]
                    determinant = round(float(np.linalg.det(rows)))
                    if abs(determinant) == volume:
                        signed = rows if determinant > 0 else -rows
                        _BASES[centring] = signed / 24.0
                        return _BASES[centring]
    return _BASES[centring]
