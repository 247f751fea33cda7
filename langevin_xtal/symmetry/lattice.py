"""Lattice degrees of freedom: conventional cell lengths and their map to the real line.

A length ``a`` [Å] is represented by the real number ``ℓ`` with

    a = φ(ℓ) = k log(1 + exp(ℓ/k)),      ℓ = φ⁻¹(a) = k log(exp(a/k) − 1),      k = 10 Å,

so that Gaussian noise on ``ℓ`` never makes a length negative (Sultanov et al. 2023, section 2;
the paper prints L3 = φ(a), which would not range over all of ℝ). The angles of the conventional
cell are fixed by symmetry for groups 16 to 230; triclinic and monoclinic cells keep the angles
they have. A cell is ``lattice = diag(a, b, c) @ directions`` with unit row vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import LatticeError
from langevin_xtal.symmetry.groups import SpaceGroup

SOFTPLUS_LENGTH = 10.0
"""k in φ [Å] (Sultanov et al. 2023)."""

FloatArray = NDArray[np.float64]


def length_from_coordinate(coordinate: FloatArray) -> FloatArray:
    """φ: lattice coordinate ℓ (any shape) to length [Å]."""
    return SOFTPLUS_LENGTH * np.logaddexp(0.0, np.asarray(coordinate) / SOFTPLUS_LENGTH)


def coordinate_from_length(length: FloatArray) -> FloatArray:
    """φ⁻¹: length [Å] (any shape, positive) to lattice coordinate ℓ."""
    scaled = np.asarray(length, dtype=float) / SOFTPLUS_LENGTH
    return SOFTPLUS_LENGTH * (scaled + np.log(-np.expm1(-scaled)))


def axis_coordinate(number: int) -> NDArray[np.int64]:
    """(3,) index of the free lattice coordinate that drives a, b and c in group ``number``.

    >>> axis_coordinate(225), axis_coordinate(194), axis_coordinate(62)
    (array([0, 0, 0]), array([0, 0, 1]), array([0, 1, 2]))
    """
    system = SpaceGroup(number).crystal_system
    if system == "cubic":
        return np.array([0, 0, 0])
    if system in ("tetragonal", "trigonal", "hexagonal"):
        return np.array([0, 0, 1])
    return np.array([0, 1, 2])


def free_lengths(number: int) -> int:
    """Number of independent cell lengths of group ``number``: 1, 2 or 3."""
    return int(axis_coordinate(number).max()) + 1


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
