"""Changes of basis and origin that keep a space group: other ways to write down its crystals.

A crystal at x with the basis vectors B (rows) is at ``turn x + origin + shift`` with the rows
``basisᵀ B``, ``turn`` being the inverse of ``basis``. Both are whole numbers, and conjugation with
the change maps the group's operations onto themselves: it belongs to the group's affine
normaliser. Mirror images count as the same crystal. In triclinic and monoclinic groups these
changes are infinitely many; those that turn near-reduced bases into each other are listed, and
others are reached by several steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.lattice import ANGLE_LENGTH, length_from_coordinate
from langevin_xtal.symmetry.normaliser import normalising_shift
from langevin_xtal.symmetry.wyckoff import renamed, shift_vectors

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_STEPS = np.array([0, 3, 6, 8, 9, 12, 15, 16, 18, 21])
_GRID = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS, indexing="ij"), -1).reshape(-1, 3)
"""(1000, 3) shifts that are tried with a turn [1/24]."""


@dataclass(frozen=True, eq=False)
class Frames:
    """M turns, each with S shifts, and how they rename the W positions of a group."""

    basis: IntArray  #: (M, 3, 3) columns: the new basis vectors in the old ones; identity first
    turn: IntArray  #: (M, 3, 3) the inverse
    origin: FloatArray  #: (M, 3)
    renamed: IntArray  #: (M, W) position w is called renamed[m, w] after turn m
    shifts: FloatArray  #: (S, 3) see :func:`~langevin_xtal.symmetry.wyckoff.shift_vectors`
    shifted: IntArray  #: (S, W) and after shift s
    names: IntArray  #: (N, W) all different ways to rename, by a turn and a shift
    name: IntArray  #: (M, S) which of them it is


@cache
def frames(number: int) -> Frames:
    """The changes of group ``number``, one for each coset of its own operations.

    The names form a group of permutations: those of any change at all, listed or not.
    """
    shifts, shifted = shift_vectors(number)
    basis, turn, origin = _turns(number)
    # an inversion centre is half a lattice vector: only whether its terms are odd matters
    keys = turn % 2 if number <= 2 else turn
    _, first, place = np.unique(
        keys.reshape(len(turn), -1), axis=0, return_index=True, return_inverse=True
    )
    moved = renamed(number, turn[first], origin[first])[place.ravel()]
    every = shifted[:, moved].transpose(1, 0, 2)  # (M, S, W)
    names, name = np.unique(every.reshape(-1, every.shape[2]), axis=0, return_inverse=True)
    return Frames(
        basis,
        turn,
        origin,
        moved,
        shifts,
        shifted,
        names,
        name.reshape(every.shape[:2]),
    )


def metric_after(metric: FloatArray, basis: IntArray) -> FloatArray:
    """(..., 3, 3) of basis vectors' products after changes ``basis`` (..., 3, 3)."""
    return np.swapaxes(basis, -1, -2) @ metric @ basis


def reducing_turns(number: int, metric: FloatArray) -> list[int]:
    """Turns, one after the other, to the basis with the smallest sum of squared lengths.

    Parameters
    ----------
    metric
        (3, 3) products of the basis vectors [Å²].
    """
    table = frames(number)
    found: list[int] = []
    products = table.basis @ np.swapaxes(table.basis, 1, 2)
    while True:
        size = np.einsum("mij,ij->m", products, metric)
        best = int(size.argmin())
        if size[best] > size[0] * (1 - 1e-9):
            return found
        found.append(best)
        metric = metric_after(metric, table.basis[best])


def nearest_frame(
    number: int, coordinates: FloatArray, wanted: FloatArray
) -> tuple[IntArray, FloatArray, IntArray]:
    """The change after which a cell is most like another one of any size.

    Parameters
    ----------
    coordinates, wanted
        (6,) lattice coordinates (:mod:`langevin_xtal.symmetry.lattice`).

    Returns
    -------
    tuple
        ``turn`` (3, 3) and ``origin`` (3,), with which a point x moves to ``turn @ x + origin``,
        and (W,) the names of the positions afterwards.
    """
    table = frames(number)
    metric, goal = metric_of(coordinates), metric_of(wanted)
    goal = goal * (np.linalg.det(metric) / np.linalg.det(goal)) ** (1 / 3)
    turn, origin = np.eye(3, dtype=np.int64), np.zeros(3)
    names = np.arange(table.renamed.shape[1])
    while True:
        gap = np.abs(metric_after(metric, table.basis) - goal).sum(axis=(1, 2))
        best = int(gap.argmin())
        if gap[best] > gap[0] - 1e-9 * np.trace(goal):
            return turn, origin, names
        turn, origin = table.turn[best] @ turn, table.turn[best] @ origin + table.origin[best]
        metric, names = metric_after(metric, table.basis[best]), table.renamed[best][names]


def metric_of(coordinates: FloatArray) -> FloatArray:
    """(3, 3) products of the basis vectors [Å²] with lattice coordinates (6,)."""
    lengths = length_from_coordinate(coordinates[:3])
    gamma, beta, omega = -np.tanh(coordinates[3:] / ANGLE_LENGTH)
    alpha = beta * gamma + omega * np.sqrt((1 - beta**2) * (1 - gamma**2))
    cosines = np.array([[1.0, gamma, beta], [gamma, 1.0, alpha], [beta, alpha, 1.0]])
    return cosines * np.outer(lengths, lengths)


def _turns(number: int) -> tuple[IntArray, IntArray, FloatArray]:
    """(M, 3, 3) bases and their inverses, and (M, 3) origins, of one change in each coset.

    The identity comes first.
    """
    group = SpaceGroup(number)
    every = _bases(group.crystal_system)
    identity = (every == np.eye(3, dtype=np.int64)).all(axis=(1, 2))
    every = np.concatenate([every[identity], every[~identity]])
    rotations = np.unique(group.rotations, axis=0)
    # the members of a coset, each as one number: equal cosets have the same smallest one
    members = (every[:, None] @ rotations).reshape(len(every), len(rotations), 9)
    coset = ((members + 8) @ 17 ** np.arange(9)).min(axis=1)
    basis = every[np.sort(np.unique(coset, return_index=True)[1])]
    turn = np.rint(np.linalg.inv(basis)).astype(np.int64)
    if number <= 2:
        return basis, turn, np.zeros((len(turn), 3))
    origins = [_origin(group, one) for one in turn]
    kept = [k for k, origin in enumerate(origins) if origin is not None]
    return basis[kept], turn[kept], np.array([origins[k] for k in kept])


@cache
def _bases(system: str) -> IntArray:
    """(K, 3, 3) changes of basis of determinant ±1 that keep cells of that system."""
    if system == "monoclinic":
        entries = np.array(list(product(range(-2, 3), repeat=4)), dtype=np.int64)
        entries = entries[
            np.abs(entries[:, 0] * entries[:, 3] - entries[:, 1] * entries[:, 2]) == 1
        ]
        found = np.zeros((len(entries), 3, 3), dtype=np.int64)
        found[:, 0, 0], found[:, 0, 2], found[:, 2, 0], found[:, 2, 2] = entries.T
        found[:, 1, 1] = 1
        return np.concatenate([found, found * np.array([1, -1, 1])])
    every = np.array(list(product((-1, 0, 1), repeat=9)), dtype=np.int64).reshape(-1, 3, 3)
    if system == "triclinic":
        return every[np.abs(np.rint(np.linalg.det(every))) == 1]
    # the axes of orthorhombic cells may be exchanged, those of others as the metric allows
    metric = np.eye(3)
    if system in ("trigonal", "hexagonal"):
        metric = np.array([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 2.0]])
    elif system == "tetragonal":
        metric = np.diag([1.0, 1.0, 2.0])
    return every[np.abs(metric_after(metric, every) - metric).max(axis=(1, 2)) < 1e-9]


def _origin(group: SpaceGroup, turn: IntArray) -> FloatArray | None:
    """(3,) so that conjugation with (turn, origin) maps the group onto itself."""
    shift = normalising_shift(group, turn, _GRID)
    return None if shift is None else shift / 24.0
