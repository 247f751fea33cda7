"""Lattice degrees of freedom: six real coordinates of the conventional cell.

A length ``a`` [Å] is represented by the real number ``ℓ`` with

    a = φ(ℓ) = k log(1 + exp(ℓ/k)),      ℓ = φ⁻¹(a) = k log(exp(a/k) − 1),      k = 10 Å,

so that Gaussian noise on ``ℓ`` never makes a length negative (Sultanov et al. 2023, section 2;
the paper prints L3 = φ(a), which would not range over all of ℝ).

Angles follow the same idea, which the paper leaves out: ``cos θ = −tanh(u/k)`` maps every angle
between 0 and 180 degrees to a real ``u``. Three such angles build the cell: γ and β of the cell,
and ω between the planes of a, b and of a, c,

    a = a (1, 0, 0),   b = b (cos γ, sin γ, 0),   c = c (cos β, sin β cos ω, sin β sin ω),

so that any six numbers are a cell of positive volume. Noise of 1 Å on ``u`` turns a right angle by
0.1 rad and moves an atom 10 Å from the origin by 1 Å. Symmetry fixes all angles for groups 16 to
230 and leaves β free in monoclinic cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import LatticeError
from langevin_xtal.symmetry.groups import SpaceGroup

SOFTPLUS_LENGTH = 10.0
"""k in φ [Å] (Sultanov et al. 2023)."""

ANGLE_LENGTH = 10.0
"""k in the map of angles [Å]."""

COORDINATES = 6
"""ℓ_a, ℓ_b, ℓ_c, u_γ, u_β, u_ω."""

FloatArray = NDArray[np.float64]


def length_from_coordinate(coordinate: FloatArray) -> FloatArray:
    """φ: lattice coordinate ℓ (any shape) to length [Å]."""
    return SOFTPLUS_LENGTH * np.logaddexp(0.0, np.asarray(coordinate) / SOFTPLUS_LENGTH)


def coordinate_from_length(length: FloatArray) -> FloatArray:
    """φ⁻¹: length [Å] (any shape, positive) to lattice coordinate ℓ."""
    scaled = np.asarray(length, dtype=float) / SOFTPLUS_LENGTH
    return SOFTPLUS_LENGTH * (scaled + np.log(-np.expm1(-scaled)))


def coordinate_from_cosine(cosine: FloatArray) -> FloatArray:
    """Angle coordinate u of the cosine of an angle, any shape."""
    return -ANGLE_LENGTH * np.arctanh(cosine) + 0.0  # no -0 for right angles


def lattice_coordinates(lattice: FloatArray) -> FloatArray:
    """(..., 6) coordinates of row lattices (..., 3, 3) [Å] of any orientation."""
    lengths = cell_lengths(lattice)
    unit = lattice / lengths[..., None]
    alpha, beta, gamma = (
        np.sum(unit[..., i, :] * unit[..., j, :], axis=-1) for i, j in ((1, 2), (0, 2), (0, 1))
    )
    omega = (alpha - beta * gamma) / np.sqrt((1 - beta**2) * (1 - gamma**2))
    angles = coordinate_from_cosine(np.stack([gamma, beta, omega], axis=-1))
    return np.concatenate([coordinate_from_length(lengths), angles], axis=-1)


def lattice_driver(number: int) -> NDArray[np.int64]:
    """(6,) index of the free coordinate that drives each coordinate in group ``number``.

    >>> lattice_driver(225), lattice_driver(194), lattice_driver(14)
    (array([0, 0, 0, 3, 4, 5]), array([0, 0, 2, 3, 4, 5]), array([0, 1, 2, 3, 4, 5]))
    """
    system = SpaceGroup(number).crystal_system
    if system == "cubic":
        return np.array([0, 0, 0, 3, 4, 5])
    if system in ("tetragonal", "trigonal", "hexagonal"):
        return np.array([0, 0, 2, 3, 4, 5])
    return np.arange(COORDINATES)


def lattice_freedom(number: int) -> NDArray[np.bool_]:
    """(6,) which coordinates are degrees of freedom in group ``number``."""
    free = lattice_driver(number) == np.arange(COORDINATES)
    angles = {"triclinic": [True] * 3, "monoclinic": [False, True, False]}
    free[3:] = angles.get(SpaceGroup(number).crystal_system, [False] * 3)
    return free


def fixed_coordinates(number: int) -> FloatArray:
    """(6,) what symmetry makes of the coordinates: 0 for lengths, right angles or γ = 120°."""
    values = np.zeros(COORDINATES)
    if SpaceGroup(number).crystal_system in ("trigonal", "hexagonal"):
        values[3] = coordinate_from_cosine(np.array(-0.5))
    return values


def has_fixed_angles(number: int) -> bool:
    """Whether symmetry fixes all cell angles: groups 16 to 230."""
    return number >= 16


def cell_directions(number: int) -> FloatArray:
    """(3, 3) unit row vectors along a, b, c where symmetry fixes the angles.

    Raises
    ------
    LatticeError
        For triclinic and monoclinic groups, whose angles are free.
    """
    system = SpaceGroup(number).crystal_system
    if not has_fixed_angles(number):
        raise LatticeError(
            f"space group {SpaceGroup(number)} is {system}: its cell angles are not fixed by "
            "symmetry; groups 16 to 230 have fixed angles"
        )
    if system in ("trigonal", "hexagonal"):
        return np.array([[1.0, 0.0, 0.0], [-0.5, np.sqrt(0.75), 0.0], [0.0, 0.0, 1.0]])
    return np.eye(3)


def cell_lengths(lattice: FloatArray) -> FloatArray:
    """(..., 3) lengths a, b, c [Å] of (..., 3, 3) row lattices."""
    return np.linalg.norm(lattice, axis=-1)


def ideal_cells(lattice: FloatArray, number: int) -> FloatArray:
    """Cells made exactly consistent with a group's crystal system, in standard orientation.

    Parameters
    ----------
    lattice
        (..., 3, 3) conventional cells near that shape, rows [Å]; for groups 1 to 15 already
        with a along x and b in the xy plane.
    number
        Space-group number.
    """
    lengths = cell_lengths(lattice)
    if number >= 195:
        lengths = np.broadcast_to(lengths.mean(axis=-1, keepdims=True), lengths.shape)
    elif number >= 75:
        ab = lengths[..., :2].mean(axis=-1)
        lengths = np.stack([ab, ab, lengths[..., 2]], axis=-1)
    if number >= 16:
        return lengths[..., None] * cell_directions(number)
    mask = np.tril(np.ones((3, 3)))
    if number >= 3:  # unique axis b: a along x, b along y, c in the xz plane
        mask = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 1]])
    return lattice * mask
