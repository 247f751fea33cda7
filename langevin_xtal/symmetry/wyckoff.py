"""Wyckoff positions of all groups: conjugacy classes of points with the same site symmetry.

A position is an affine space base + range(projector) of fractional coordinates (column vectors)
together with its images under the group. Positions are ordered by multiplicity, then by degrees of
freedom; the last one is the general position. The table is computed from the operations alone
(``scripts/make_wyckoff_positions.py``) and counts the 1731 positions of the International Tables.
Letters are those of the International Tables (``scripts/make_wyckoff_letters.py``).

>>> [w.name for w in wyckoff_positions(62)], position_index(62, "4c")
(['4a', '4b', '4c', '8d'], 2)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import SymmetryError
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.sites import stabiliser

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GENERIC = np.array([0.0127, 0.0211, 0.0173])
"""A step into a representative space from its base that leads to no more special point."""

_BOX = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class WyckoffPosition:
    """One Wyckoff position of a group."""

    index: int  #: place in the group's list, 0 the most special
    multiplicity: int  #: images in the conventional cell
    base: FloatArray  #: (3,) a point of its representative space, multiples of 1/24
    projector: FloatArray  #: (3, 3) onto its free directions, for fractional column vectors
    letter: str  #: of the International Tables; ``A`` stands for the alpha of group 47

    @property
    def name(self) -> str:
        """Multiplicity and letter, such as ``'4c'``."""
        return f"{self.multiplicity}{self.letter}"

    @property
    def freedom(self) -> int:
        """Degrees of freedom: 0 to 3."""
        return round(float(np.trace(self.projector)))

    @cached_property
    def parameters(self) -> IntArray:
        """(freedom,) coordinates that parametrise the position: those the others follow from.

        As in the International Tables, the others are whole multiples of them, plus a constant.
        """
        return self._parametrisation[0]

    @cached_property
    def directions(self) -> FloatArray:
        """(3, freedom) change of the point with each parameter, whole numbers."""
        return self._parametrisation[1]

    @cached_property
    def _parametrisation(self) -> tuple[IntArray, FloatArray]:
        for chosen in combinations(range(3), self.freedom):
            axes = np.array(chosen, dtype=np.int64)
            # least squares for the matrix that is the identity in the chosen rows
            block = self.projector[axes]
            if np.linalg.matrix_rank(block, tol=1e-6) < self.freedom:
                continue
            directions = self.projector @ np.linalg.pinv(block)
            if np.abs(directions - np.rint(directions)).max(initial=0.0) < 1e-6:
                return axes, np.rint(directions)
        raise SymmetryError(f"Wyckoff position {self.index} has no whole parametrisation")

    def point(self, values: FloatArray) -> FloatArray:
        """(..., 3) points with parameters (..., freedom)."""
        return self.base + (values - self.base[self.parameters]) @ self.directions.T

    def contains(self, point: FloatArray) -> bool:
        """Whether a point lies in the representative space, up to a lattice vector."""
        delta = point - self.base
        delta = delta - np.floor(delta) - _BOX
        return bool((np.abs(delta - delta @ self.projector.T).max(axis=1) < 1e-4).any())


@cache
def wyckoff_positions(number: int) -> tuple[WyckoffPosition, ...]:
    """All Wyckoff positions of group ``number``, most special first."""
    start, multiplicity, base, projector = _table()
    rows, letters = range(start[number - 1], start[number]), _letters()[number - 1]
    return tuple(
        WyckoffPosition(k, int(multiplicity[row]), base[row], projector[row], letters[k])
        for k, row in enumerate(rows)
    )


def position_index(number: int, text: str) -> int:
    """Index of the position that is called ``"4c"`` or ``"c"`` in group ``number``.

    Raises
    ------
    SymmetryError
        Where the group has no position of that letter, or of another multiplicity.
    """
    positions, group = wyckoff_positions(number), SpaceGroup(number)
    split = re.fullmatch(r"\s*([0-9]{0,4})\s*([A-Za-z\u03b1])\s*", text)
    letter = "" if split is None else split[2].replace("\u03b1", "A")
    found = next((w for w in positions if w.letter == letter), None)
    if split is None or found is None:
        names = ", ".join(w.name for w in positions)
        shown = text if len(text) < 40 else text[:40] + "…"
        raise SymmetryError(f"group {group} has no Wyckoff position {shown!r}; it has {names}")
    if split[1] and int(split[1]) != found.multiplicity:
        raise SymmetryError(
            f"Wyckoff position {text.strip()} of group {group} does not exist: {letter} has "
            f"multiplicity {found.multiplicity} in the conventional cell; give {found.name}"
        )
    return found.index


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


@cache
def _letters() -> tuple[str, ...]:
    """Of each group its positions' letters, in their order."""
    source = resources.files("langevin_xtal.symmetry").joinpath("wyckoff_letters.txt")
    return tuple(source.read_text(encoding="ascii").split())


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
def polar_directions(number: int) -> FloatArray:
    """(3, 3) projector onto the vectors that no operation turns: along axes of the cell."""
    return np.mean(SpaceGroup(number).rotations, axis=0)


@cache
def shift_vectors(number: int) -> tuple[FloatArray, IntArray]:
    """(S, 3) shifts of the origin that keep the group, and (S, W) how they relabel its positions.

    A point at x is at x + shift from the other origin, and position ``w`` is called ``label[w]``
    there. Shifts of 1/4, 1/3 and 1/2 along the axes are tried; they belong to the Euclidean
    normaliser of the group. Shifts by a centring vector change nothing and are left out; row 0 is
    no shift. Those along :func:`polar_directions` are a continuum, relabel nothing, and are left
    out too.
    """
    group = SpaceGroup(number)
    steps = np.array([0, 6, 8, 12, 16, 18]) / 24.0
    shifts = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    centring = group.centring / 24.0
    moved = np.swapaxes(shifts @ np.swapaxes(group.rotations, 1, 2), 0, 1) - shifts[:, None]
    kept = _is_lattice_vector(moved, centring).all(axis=1)
    kept &= np.abs(shifts @ polar_directions(number).T).max(axis=1) <= 1e-9
    shifts = shifts[kept]
    alike = _is_lattice_vector(shifts[:, None] - shifts, centring)
    vectors = shifts[alike.argmax(axis=1) == np.arange(len(shifts))]
    return vectors, renamed(number, np.eye(3, dtype=np.int64)[None], vectors)


def _is_lattice_vector(vectors: FloatArray, centring: FloatArray) -> NDArray[np.bool_]:
    """(...) of vectors (..., 3), with centring vectors (C, 3)."""
    gap = vectors[..., None, :] - centring
    found: NDArray[np.bool_] = (np.abs(gap - np.rint(gap)).max(axis=-1) < 1e-9).any(axis=-1)
    return found


def renamed(number: int, turn: IntArray, origin: FloatArray) -> IntArray:
    """(M, W) what each position is called after M changes that keep the group.

    Parameters
    ----------
    turn, origin
        (M, 3, 3), or one for all, and (M, 3): a point at x is at ``turn x + origin`` afterwards.
    """
    group, positions = SpaceGroup(number), wyckoff_positions(number)
    table = position_arrays(number)
    inside = np.array([w.projector @ GENERIC for w in positions])
    points = (table.base + inside) @ np.swapaxes(turn, 1, 2) + origin[:, None]
    found = np.full(points.shape[:2], -1, dtype=np.int64)
    kinds = np.array([(w.multiplicity, w.freedom) for w in positions])
    for kind in np.unique(kinds, axis=0):
        own = np.flatnonzero((kinds == kind).all(axis=1))
        flat = points[:, own] @ group.rotations.reshape(-1, 3).T
        images = flat.reshape(len(points), len(own), -1, 3) + group.translations
        for other in own[::-1]:
            # up to lattice vectors, which a whole parametrisation maps onto each other
            gap = (images - table.base[other]) @ table.across[other].T
            on_it = (np.abs(gap - np.rint(gap)).max(axis=3) < 1e-6).any(axis=2)
            found[:, own] = np.where(on_it, other, found[:, own])
    assert (np.sort(found, axis=1) == np.arange(len(positions))).all()
    return found


@dataclass(frozen=True, eq=False)
class PositionArrays:
    """The W positions of a group as arrays."""

    freedom: IntArray  #: (W,)
    axes: IntArray  #: (W, 3) coordinates that are parameters, the rest 0
    used: FloatArray  #: (W, 3) 1 where there is a parameter
    base: FloatArray  #: (W, 3)
    across: FloatArray  #: (W, 3, 3) what is left of a step from the base off the position


@cache
def position_arrays(number: int) -> PositionArrays:
    """The positions of group ``number`` as arrays."""
    positions = wyckoff_positions(number)
    axes = np.zeros((len(positions), 3), dtype=np.int64)
    used = np.zeros((len(positions), 3))
    across = np.tile(np.eye(3), (len(positions), 1, 1))
    for w in positions:
        axes[w.index, : w.freedom] = w.parameters
        used[w.index, : w.freedom] = 1.0
        across[w.index][:, w.parameters] -= w.directions
    freedom = np.array([w.freedom for w in positions])
    return PositionArrays(freedom, axes, used, np.array([w.base for w in positions]), across)


@cache
def origin_shifts(number: int) -> IntArray:
    """(P, W) the different relabellings of :func:`shift_vectors`; row 0 changes nothing."""
    return np.unique(shift_vectors(number)[1], axis=0)
