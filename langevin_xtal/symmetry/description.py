"""One description of a crystal among the many that its space group allows.

The same crystal can be written down from another origin, in another basis that keeps the group
(:mod:`langevin_xtal.symmetry.frames`), with another image of every site, in another order.
:func:`describe` chooses. First come the frames whose labels of Wyckoff positions are smallest in
lexicographic order: the cell need not be known for that. Of them, and of the images of each
site on the representative space of its position, it takes those with the smallest ::

    3 log Σ |aᵢ|² + ½ Σᵢ﹤ⱼ (log aᵢ/aⱼ)⁺ + Σᵢ﹤ⱼ (cos αᵢⱼ)⁺ + ⟨ Σₖ wₖ (1 − cos 2π(xₖ − tₖ)) ⟩,

that is: short basis vectors in the order of their lengths, no acute angles, and parameters x near
one point t, averaged over the sites. All of it changes continuously with the crystal, so that
crystals of one structure type are described alike, except where two descriptions are equally good,
and a model can learn their parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import SymmetryError
from langevin_xtal.symmetry.frames import frames, metric_after, reducing_turns
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.wyckoff import (
    polar_directions,
    position_arrays,
    shift_vectors,
    wyckoff_positions,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

EDGE = 0.02
"""Parameters are taken from −EDGE to 1 − EDGE, so that values near 0 stay together."""

GRAIN = 0.01
"""Descriptions whose parameters round to the same are one."""

TIE = 1e-7
"""Descriptions are equally good to this."""

QUARTER, QUARTER_OFFSET = 0.25, 0.37
"""Sites are ordered by the quarters of the cell they are in, all parameters, then within these.

The quarters lie about 0, 1/4, 1/2 and 3/4 (from −0.22 to 0.03 and so on), near which many are.
"""

TARGET = np.array([0.137, 0.171, 0.223])
"""Where parameters should be: no simple fraction, nor near the mean of two of them."""

TARGET_WEIGHT = np.array([1.0, 0.83, 0.67])
"""Of a site's parameters."""

SIZE_WEIGHT, ORDER_WEIGHT, ANGLE_WEIGHT = 3.0, 0.5, 1.0

WINDOW = 0.8
"""Bases whose cell is worse than the best by more than this are not tried."""

MOST_BASES = 24
"""Bases that are tried, those with the best cells."""


@dataclass(frozen=True, eq=False)
class Description:
    """Sites in their order, with the positions they occupy and where on them they are."""

    order: IntArray  #: (A,) sites as given, in the order of the description
    positions: tuple[int, ...]  #: (A,) index of each site's Wyckoff position, in that order
    parameters: tuple[FloatArray, ...]  #: (A,) arrays (freedom,) of fractional coordinates
    frac: FloatArray  #: (A, 3) sites on the representative spaces
    basis: IntArray  #: (3, 3) whole numbers: the cell is ``basis.T @ lattice``, rows


def smallest_labels(
    number: int, positions: Sequence[int], kinds: Sequence[int], *, turned: bool = False
) -> tuple[tuple[int, ...], IntArray]:
    """Labels of sites' positions from the best origins or in the best frames, and which these are.

    Parameters
    ----------
    positions
        (A,) indices within the group.
    kinds
        (A,) a number for each site's element, by which sites are ordered first.
    turned
        Whether the basis may change as well as the origin.

    Returns
    -------
    tuple
        (A,) labels of the sites as given, in the first of the best frames; (K,) rows of
        ``frames(number).names`` when ``turned``, and otherwise of
        :func:`~langevin_xtal.symmetry.wyckoff.shift_vectors`.
    """
    names = frames(number).names if turned else shift_vectors(number)[1]
    labels = names[:, list(positions)]
    kind = np.asarray(kinds)
    # the order of sites differs from frame to frame: sort each row by (kind, label)
    sorted_rows = np.sort(kind * 1000 + labels, axis=1)
    order = np.lexsort(sorted_rows.T[::-1])
    best = np.flatnonzero((sorted_rows == sorted_rows[order[0]]).all(axis=1))
    return tuple(labels[best[0]].tolist()), best


def describe(
    number: int,
    positions: Sequence[int],
    frac: FloatArray,
    kinds: Sequence[int],
    lattice: FloatArray,
) -> Description:
    """The description of a crystal of group ``number``.

    Parameters
    ----------
    positions
        (A,) Wyckoff position of each site, index within the group.
    frac
        (A, 3) fractional coordinates, on those positions to 1e-4.
    kinds
        (A,) a number for each site's element.
    lattice
        (3, 3) rows [Å], a cell of the group.

    Raises
    ------
    SymmetryError
        When a site is not on the position given.
    """
    return descriptions(number, positions, frac, kinds, lattice, most=1)[0]


def descriptions(
    number: int,
    positions: Sequence[int],
    frac: FloatArray,
    kinds: Sequence[int],
    lattice: FloatArray,
    *,
    most: int,
    window: float = np.inf,
) -> list[Description]:
    """The description of a crystal, and others nearly as good, best first.

    Parameters
    ----------
    most
        Returned at most.
    window
        By how much they may be worse.
    number, positions, frac, kinds, lattice
        Those of :func:`describe`.
    """
    table = frames(number)
    kind, label = np.asarray(kinds), np.asarray(positions)
    moved, basis = np.asarray(frac, dtype=float), np.eye(3, dtype=np.int64)
    metric = lattice @ lattice.T
    for m in reducing_turns(number, metric) if number <= 15 else ():
        moved, label = moved @ table.turn[m].T + table.origin[m], table.renamed[m][label]
        basis, metric = basis @ table.basis[m], metric_after(metric, table.basis[m])
    turn, shift, cost = _cells(number, label, kind, metric)
    frame = _Framed(
        np.einsum("qij,aj->qai", table.turn[turn], moved)
        + (table.origin[turn] + table.shifts[shift])[:, None],
        table.shifted[shift[:, None], table.renamed[turn][:, label]],
        cost,
        turn,
    ).from_polar_origins(number, kind)
    values, worst = frame.parameters(number)
    # elements count less and less, so that exchanging two of them shows
    weight = 1.0 / (1.0 + 0.3 * np.unique(kind, return_inverse=True)[1])
    score = frame.cost + worst @ weight / weight.sum()
    found: dict[tuple[float, ...], Description] = {}
    for q in np.argsort(score, kind="stable"):
        equal = score[q] < score.min() + TIE
        if not equal and (score[q] > score.min() + window or len(found) >= most):
            break
        after = basis @ table.basis[frame.turn[q]]
        description = _ordered(number, frame.label[q], values[q], kind, after)
        found.setdefault(_key(description, lattice @ lattice.T), description)
        if equal:  # of those that are equally good the first in lexicographic order
            found = dict(sorted(found.items()))
    return list(found.values())[:most]


def _key(description: Description, metric: FloatArray) -> tuple[float, ...]:
    """The same for descriptions that are the same but for rounding."""
    cell = metric_after(metric, description.basis)
    parts = [np.rint(v / GRAIN) for v in description.parameters]
    return tuple(np.concatenate([*parts, np.rint(cell / 0.05).ravel()]).tolist())


def represented(number: int, positions: Sequence[int], frac: FloatArray) -> FloatArray:
    """(A, 3) images of sites (A, 3) on the representative spaces of their positions (A,).

    Raises
    ------
    SymmetryError
        When a site is not on the position given.
    """
    label = np.asarray(positions)
    one = _Framed(frac[None], label[None], np.zeros(1), np.zeros(1, dtype=np.int64))
    values, table = one.parameters(number)[0][0], wyckoff_positions(number)
    return np.array(
        [table[w].point(x[: table[w].freedom]) for w, x in zip(label, values, strict=True)]
    )


@dataclass(frozen=True, eq=False)
class _Framed:
    """A crystal in Q frames."""

    frac: FloatArray  #: (Q, A, 3)
    label: IntArray  #: (Q, A)
    cost: FloatArray  #: (Q,) of the cell
    turn: IntArray  #: (Q,)

    def from_polar_origins(self, number: int, kind: IntArray) -> _Framed:
        """With an image of one of the first sites at the origin along polar directions."""
        polar = polar_directions(number)
        if np.abs(polar).max() < 1e-9:
            return self
        key = kind * 1000 + self.label
        q, a = np.nonzero(key == key.min(axis=1, keepdims=True))
        lifts = _lifts(number)
        height = (self.frac[q, a] @ polar.T)[:, None] + lifts
        frac = self.frac[q][:, None] - height[:, :, None]
        q = np.repeat(q, len(lifts))
        return _Framed(frac.reshape(len(q), -1, 3), self.label[q], self.cost[q], self.turn[q])

    def parameters(self, number: int) -> tuple[FloatArray, FloatArray]:
        """(Q, A, 3) those of the best image of every site, and (Q, A) how far they are off."""
        group, table = SpaceGroup(number), position_arrays(number)
        flat = self.frac @ group.rotations.reshape(-1, 3).T
        images = flat.reshape(*self.label.shape, -1, 3) + group.translations
        values = np.take_along_axis(images, table.axes[self.label][:, :, None], axis=3)
        values = (values + EDGE) % 1.0 - EDGE
        off = TARGET_WEIGHT * (1 - np.cos(2 * np.pi * (values - TARGET)))
        off = np.einsum("qagk,qak->qag", off, table.used[self.label])
        if (table.freedom[self.label] < 3).any():
            gap = images - table.base[self.label][:, :, None]
            gap = gap @ np.swapaxes(table.across[self.label], 2, 3)
            off[np.abs(gap - np.rint(gap)).max(axis=3) > 1e-3] = np.inf
        best = off.argmin(axis=2)[:, :, None]
        least = np.take_along_axis(off, best, axis=2)[:, :, 0]
        if not np.isfinite(least).all():
            q, a = np.argwhere(~np.isfinite(least))[0]
            point, where = np.round(self.frac[q, a] % 1.0, 5), self.label[q, a]
            raise SymmetryError(f"the point {point} is not on position {where}")
        return np.take_along_axis(values, best[..., None], axis=2)[:, :, 0], least


@cache
def _lifts(number: int) -> FloatArray:
    """(K, 3) how operations lift points along polar directions: screws and glides."""
    lifts = SpaceGroup(number).translations @ polar_directions(number).T
    return np.unique(np.round(lifts, 9) % 1.0, axis=0)


def _cells(
    number: int, label: IntArray, kind: IntArray, metric: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """(Q,) turns and shifts to the best frames by labels and cell, and the cost of their cells."""
    table = frames(number)
    best = np.zeros(len(table.names), dtype=bool)
    best[smallest_labels(number, label.tolist(), kind.tolist(), turned=True)[1]] = True
    right = best[table.name]
    turns = np.flatnonzero(right.any(axis=1))
    cost = _cell_cost(metric, table.basis[turns])
    few = np.argsort(cost, kind="stable")[:MOST_BASES]
    few = few[cost[few] <= cost[few[0]] + WINDOW]
    row, shift = np.nonzero(right[turns[few]])
    return turns[few][row], shift, cost[few][row]


def _cell_cost(metric: FloatArray, basis: IntArray) -> FloatArray:
    """(M,) of the cells after M changes: long, ordered otherwise than by length, or acute."""
    after = metric_after(metric, basis)
    size = np.log(np.einsum("mii->mi", after))
    cost = SIZE_WEIGHT * np.log(np.exp(size).sum(axis=1))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        cosine = after[:, i, j] / np.exp((size[:, i] + size[:, j]) / 2)
        cost += ORDER_WEIGHT * np.maximum(size[:, i] - size[:, j], 0.0) / 2
        cost += ANGLE_WEIGHT * np.where(cosine > 1e-9, cosine, 0.0)
    return cost


def _ordered(
    number: int, label: IntArray, values: FloatArray, kind: IntArray, basis: IntArray
) -> Description:
    """Sites of each kind and position in the order of their parameters."""
    table = wyckoff_positions(number)
    used = values * position_arrays(number).used[label]
    quarter = np.rint(used / QUARTER + QUARTER_OFFSET)
    order = np.lexsort((*used.T[::-1], *quarter.T[::-1], label, kind))
    mine = [values[s, : table[label[s]].freedom] for s in order]
    points = [table[label[s]].point(x) for s, x in zip(order, mine, strict=True)]
    positions = tuple(label[order].tolist())
    return Description(order, positions, tuple(mine), np.array(points), basis)
