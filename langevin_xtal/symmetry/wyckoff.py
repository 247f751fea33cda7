"""Wyckoff positions of all groups: conjugacy classes of points with the same site symmetry.

A position is an affine space base + range(projector) of fractional coordinates (column vectors)
together with its images under the group. Positions are ordered by multiplicity, then by degrees of
freedom; the last one is the general position. The table is computed from the operations alone
(``scripts/make_wyckoff_positions.py``) and counts the 1731 positions of the International Tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import SymmetryError
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.sites import stabiliser

FloatArray = NDArray[np.float64]

_BOX = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class WyckoffPosition:
    """One Wyckoff position of a group."""

    index: int  #: place in the group's list, 0 the most special
    multiplicity: int  #: images in the conventional cell
    base: FloatArray  #: (3,) a point of its representative space, multiples of 1/24
    projector: FloatArray  #: (3, 3) onto its free directions, for fractional column vectors

    @property
    def freedom(self) -> int:
        """Degrees of freedom: 0 to 3."""
        return round(float(np.trace(self.projector)))

    def contains(self, point: FloatArray) -> bool:
        """Whether a point lies in the representative space, up to a lattice vector."""
        delta = point - self.base
        delta = delta - np.floor(delta) - _BOX
        return bool((np.abs(delta - delta @ self.projector.T).max(axis=1) < 1e-4).any())


@cache
def wyckoff_positions(number: int) -> tuple[WyckoffPosition, ...]:
    """All Wyckoff positions of group ``number``, most special first."""
    start, multiplicity, base, projector = _table()
    rows = range(start[number - 1], start[number])
    return tuple(
        WyckoffPosition(k, int(multiplicity[row]), base[row], projector[row])
        for k, row in enumerate(rows)
    )


@cache
def table_start() -> NDArray[np.int64]:
    """(231,) rows of group n in a table of all positions: ``start[n-1] : start[n]``."""
    return _table()[0]


@cache
def _table() -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray, FloatArray]:
    source = resources.files("langevin_xtal.symmetry").joinpath("wyckoff_positions.npz")
    with source.open("rb") as handle, np.load(handle, allow_pickle=False) as z:
        start = np.concatenate([[0], np.cumsum(z["counts"].astype(np.int64))])
        return (
            start,
            z["multiplicity"].astype(np.int64),
            z["base24"] / 24.0,
            z["projector12"] / 12.0,
        )


def locate(number: int, point: FloatArray, lattice: FloatArray) -> WyckoffPosition:
    """The Wyckoff position of a point placed exactly on it.

    Parameters
    ----------
    point
        (3,) fractional coordinates.
    lattice
        (3, 3) rows [Å], for the distance within which a point counts as fixed.

    Raises
    ------
    SymmetryError
        When no position fits: the point is near, but not on, a special position.
    """
    group = SpaceGroup(number)
    order = len(stabiliser(point, group.rotations, group.translations, lattice))
    images = point @ np.swapaxes(group.rotations, 1, 2) + group.translations
    for position in wyckoff_positions(number):
        if position.multiplicity * order != group.order:
            continue
        if any(position.contains(image) for image in images):
            return position
    raise SymmetryError(f"no Wyckoff position of {group} holds the point {np.round(point, 5)}")


@cache
def origin_shifts(number: int) -> NDArray[np.int64]:
    """(P, W) how shifts of the origin that keep the group relabel its W Wyckoff positions.

    A crystal described from another such origin is the same crystal with position ``w`` renamed to
    ``shift[w]``. Shifts of 1/4, 1/3 and 1/2 along the axes are tried; row 0 changes nothing. The
    set is part of the Euclidean normaliser of the group.
    """
    group, positions = SpaceGroup(number), wyckoff_positions(number)
    steps = np.array([0, 6, 8, 12, 16, 18]) / 24.0
    shifts = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    centring = group.centring / 24.0
    lattice = np.eye(3) * 50.0  # any cell: only equality up to rounding is asked for
    generic = [w.base + w.projector @ np.array([0.0127, 0.0211, 0.0173]) for w in positions]
    found = {tuple(range(len(positions)))}
    for shift in shifts:
        moved = shift @ np.swapaxes(group.rotations, 1, 2) - shift
        gap = moved[:, None] - centring[None]
        if (np.abs(gap - np.rint(gap)).max(axis=2) < 1e-9).any(axis=1).all():
            found.add(tuple(locate(number, p + shift, lattice).index for p in generic))
    return np.array(sorted(found), dtype=np.int64)
