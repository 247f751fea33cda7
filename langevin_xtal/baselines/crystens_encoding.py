"""CrysTens: a crystal as a picture of 64 × 64 pixels in four layers, and back.

After Alverson et al., "Generative adversarial networks and diffusion models in material
discovery" (2023). In every layer twelve rows hold, above the column of each atom, its atomic
number, its fractional coordinates, and what all atoms share: lengths, angles and space group, and
a row of zeros. The first twelve columns hold the same, so that every value occurs 8 times for
each atom. The square of 52 × 52 that is left holds distances between atoms in the first layer,
and differences of one coordinate each in the other three.

Values are divided by :data:`SCALES`, so that they are near 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell, cell_from_parameters
from langevin_xtal.errors import InputError, LatticeError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SIZE, EDGE = 64, 12
MOST_ATOMS = SIZE - EDGE
"""Of the cell that is drawn: 52."""
NUMBER, COORDINATES, LENGTHS, ANGLES, GROUP = 0, slice(1, 4), slice(4, 7), slice(7, 10), 10
"""Rows, and columns, of what is repeated."""

LENGTH_SCALE = 30.0
SCALES = np.array([100.0, *[1.0] * 3, *[LENGTH_SCALE] * 3, *[180.0] * 3, 230.0])
"""Of the first eleven rows."""
PRESENT = 0.5
"""An atom is there where the mean of its atomic numbers is above this."""
ELEMENTS, PLACES = 3, 12
"""Clusters of the atomic numbers, and of each coordinate, in a picture that is not exact."""


@dataclass(frozen=True)
class Decoded:
    """What a picture shows."""

    cell: Cell
    group: int  #: space group as it is drawn


@dataclass(frozen=True)
class Variances:
    """Variance of values that ought to be the same, as the paper's measure of a generator.

    In the units of the values: Å^2, degrees^2, group numbers squared, fractions squared.
    """

    length: float
    angle: float
    group: float
    coordinate: float


def encode(cell: Cell, group: int) -> FloatArray:
    """(4, 64, 64) picture of a cell with at most 52 atoms.

    Raises
    ------
    InputError
        For more atoms.
    """
    from ase.geometry import cell_to_cellpar

    lattice, frac, numbers = cell
    atoms = len(numbers)
    if atoms > MOST_ATOMS:
        raise InputError(f"a cell of {atoms} atoms; a CrysTens holds at most {MOST_ATOMS}")
    points = frac - np.floor(frac)
    order = np.lexsort((*np.round(points, 6).T[::-1], numbers))
    points = points[order]
    values = np.empty((GROUP + 1, atoms))
    values[NUMBER] = numbers[order]
    values[COORDINATES] = points.T
    values[LENGTHS.start : ANGLES.stop] = cell_to_cellpar(lattice)[:, None]
    values[GROUP] = group
    values /= SCALES[:, None]
    picture = np.zeros((4, SIZE, SIZE))
    inner = slice(EDGE, EDGE + atoms)
    picture[:, : GROUP + 1, inner] = values
    picture[:, inner, : GROUP + 1] = values.T
    step = points[None, :] - points[:, None]  # from the row's atom to the column's
    picture[0, inner, inner] = np.linalg.norm(step @ lattice, axis=2) / LENGTH_SCALE
    picture[1:, inner, inner] = step.transpose(2, 0, 1)
    return picture


def atoms_in(picture: FloatArray) -> int:
    """Atoms that a picture shows: those up to the first column that is empty."""
    numbers = _repeats(picture)[:, NUMBER].mean(axis=0) * SCALES[NUMBER]
    empty = np.flatnonzero(numbers <= PRESENT)
    return int(empty[0]) if len(empty) else MOST_ATOMS


def decode(picture: FloatArray, *, clustered: bool) -> Decoded:
    """The crystal of a picture.

    Repeated values are averaged. Each coordinate of an atom is the mean of what its own columns
    say and of what follows from every other atom and the difference between the two.

    Parameters
    ----------
    clustered
        Whether atomic numbers are drawn together to three elements and each coordinate to twelve
        places, as for a picture from a generator; one that was encoded needs neither.

    Raises
    ------
    InputError
        For a picture without atoms, or whose lengths and angles are those of no cell.
    """
    atoms = atoms_in(picture)
    if atoms == 0:
        raise InputError("no atoms: the picture is empty")
    values = _repeats(picture)[:, :, :atoms].mean(axis=0) * SCALES[:, None]
    shared = values[LENGTHS.start :].mean(axis=1)
    try:
        lattice = cell_from_parameters(shared[:6])
    except LatticeError as error:
        raise InputError(f"no cell: {error}") from None
    votes = coordinate_votes(picture)
    frac = votes.mean(axis=0)
    numbers = values[NUMBER]
    if clustered:
        numbers = _clustered(numbers[:, None], ELEMENTS)[:, 0]
        frac = np.column_stack([_on_places(frac[:, axis]) for axis in range(3)])
    elements = np.clip(np.rint(numbers), 1, 118).astype(np.int64)
    group = int(np.clip(round(float(shared[6])), 1, 230))
    return Decoded((lattice, frac - np.floor(frac), elements), group)


def coordinate_votes(picture: FloatArray) -> FloatArray:
    """(A, A, 3) coordinates of each atom (second axis), as each atom says (first axis)."""
    atoms = atoms_in(picture)
    own = _repeats(picture)[:, COORDINATES, :atoms].mean(axis=0).T
    inner = slice(EDGE, EDGE + atoms)
    step = picture[1:, inner, inner].transpose(1, 2, 0)
    votes = own[:, None] + step
    votes[np.arange(atoms), np.arange(atoms)] = own
    return np.asarray(votes)


def variances(picture: FloatArray) -> Variances | None:
    """How far repeated values differ; None for a picture without atoms."""
    atoms = atoms_in(picture)
    if atoms == 0:
        return None
    repeats = _repeats(picture)[:, :, :atoms] * SCALES[:, None]
    shared = repeats.transpose(1, 0, 2).reshape(len(SCALES), -1).var(axis=1)
    return Variances(
        length=float(shared[LENGTHS].mean()),
        angle=float(shared[ANGLES].mean()),
        group=float(shared[GROUP]),
        coordinate=float(repeats[:, COORDINATES].var(axis=0).mean()),
    )


def _repeats(picture: FloatArray) -> FloatArray:
    """(8, 11, 52) the repeated values: above the columns and beside the rows, in four layers."""
    above = picture[:, : GROUP + 1, EDGE:]
    beside = picture[:, EDGE:, : GROUP + 1].transpose(0, 2, 1)
    return np.concatenate([above, beside])


def _clustered(points: FloatArray, count: int) -> FloatArray:
    """(A, D) points (A, D) moved to the means of at most ``count`` clusters."""
    from scipy.cluster.vq import kmeans2

    distinct = len(np.unique(np.round(points, 6), axis=0))
    if distinct <= count:
        return points
    centres, label = kmeans2(points, count, minit="++", seed=0)
    return np.asarray(centres[label])


def _on_places(values: FloatArray) -> FloatArray:
    """Coordinates (A,) at the means of clusters on the circle, on which 0.99 is near 0.01."""
    angle = 2 * np.pi * values
    circle = _clustered(np.column_stack([np.cos(angle), np.sin(angle)]), PLACES)
    return np.arctan2(circle[:, 1], circle[:, 0]) / (2 * np.pi)
