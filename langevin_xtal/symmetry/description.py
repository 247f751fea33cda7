"""One description of a crystal among the many that its space group allows.

The same crystal can be written down from another origin, with another image of every site, in
another order. :func:`describe` chooses: origins whose labels of Wyckoff positions come first in
lexicographic order; the image of each site on the representative space of its position with the
smallest parameters; and of all these the smallest parameters. Crystals of one structure type are
described alike, so that a model can learn their parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import SymmetryError
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.wyckoff import (
    WyckoffPosition,
    polar_directions,
    shift_vectors,
    wyckoff_positions,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

EDGE = 0.02
"""Parameters are taken from −EDGE to 1 − EDGE, so that values near 0 stay together."""

GRAIN = 0.01
"""Parameters closer than this are equal when descriptions are compared."""


@dataclass(frozen=True, eq=False)
class Description:
    """Sites in their order, with the positions they occupy and where on them they are."""

    order: IntArray  #: (A,) sites as given, in the order of the description
    positions: tuple[int, ...]  #: (A,) index of each site's Wyckoff position, in that order
    parameters: tuple[FloatArray, ...]  #: (A,) arrays (freedom,) of fractional coordinates
    frac: FloatArray  #: (A, 3) sites on the representative spaces


def smallest_labels(
    number: int, positions: Sequence[int], kinds: Sequence[int]
) -> tuple[tuple[int, ...], IntArray]:
    """Labels of sites' positions from the best origins, and which shifts those are.

    Parameters
    ----------
    positions
        (A,) indices within the group.
    kinds
        (A,) a number for each site's element, by which sites are ordered first.

    Returns
    -------
    tuple
        (A,) labels of the sites as given, from the first of the best origins; (K,) rows of
        :func:`~langevin_xtal.symmetry.wyckoff.shift_vectors`.
    """
    labels = shift_vectors(number)[1][:, list(positions)]
    kind = np.asarray(kinds)
    # the order of sites differs from shift to shift: sort each row by (kind, label)
    sorted_rows = np.sort(kind * 1000 + labels, axis=1)
    order = np.lexsort(sorted_rows.T[::-1])
    best = np.flatnonzero((sorted_rows == sorted_rows[order[0]]).all(axis=1))
    return tuple(labels[best[0]].tolist()), best


def describe(
    number: int, positions: Sequence[int], frac: FloatArray, kinds: Sequence[int]
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

    Raises
    ------
    SymmetryError
        When a site is not on the position given.
    """
    vectors, labels = shift_vectors(number)
    _, shifts = smallest_labels(number, positions, kinds)
    polar = polar_directions(number)
    best: tuple[list[tuple[float, ...]], Description] | None = None
    for row in shifts:
        label = labels[row][list(positions)]
        moved = frac + vectors[row]
        for origin in _polar_origins(number, label, kinds, moved):
            found = _ordered(number, label, moved - polar @ origin, kinds)
            if best is None or found[0] < best[0]:
                best = found
    assert best is not None
    return best[1]


def _polar_origins(
    number: int, label: IntArray, kinds: Sequence[int], frac: FloatArray
) -> FloatArray:
    """(K, 3) points that may become the origin along polar directions: images of first sites."""
    polar = polar_directions(number)
    if np.abs(polar).max() < 1e-9:
        return np.zeros((1, 3))
    group, key = SpaceGroup(number), np.asarray(kinds) * 1000 + label
    first = frac[key == key.min()]
    images = np.einsum("gij,aj->agi", group.rotations, first) + group.translations
    heights = (images.reshape(-1, 3) @ polar.T) % 1.0
    return np.unique(np.round(heights, 9) % 1.0, axis=0)


def _ordered(
    number: int, label: IntArray, frac: FloatArray, kinds: Sequence[int]
) -> tuple[list[tuple[float, ...]], Description]:
    table = wyckoff_positions(number)
    group = SpaceGroup(number)
    values = []
    for w, x in zip(label.tolist(), frac, strict=True):
        values.append(_parameters(group, table[w], x))
    rounded = [tuple((np.rint(v / GRAIN) * GRAIN).tolist()) for v in values]
    order = sorted(range(len(label)), key=lambda s: (kinds[s], label[s], rounded[s]))
    points = np.array([table[label[s]].point(values[s]) for s in order])
    description = Description(
        np.array(order),
        tuple(int(label[s]) for s in order),
        tuple(values[s] for s in order),
        points,
    )
    return [rounded[s] for s in order], description


def _parameters(group: SpaceGroup, position: WyckoffPosition, point: FloatArray) -> FloatArray:
    """(freedom,) the smallest parameters of the images on the representative space."""
    images = point @ np.swapaxes(group.rotations, 1, 2) + group.translations
    values = images[:, position.parameters]
    values = (values + EDGE) % 1.0 - EDGE
    gap = images - position.point(values)
    inside = np.abs(gap - np.rint(gap)).max(axis=1) < 1e-3
    if not inside.any():
        raise SymmetryError(f"the point {np.round(point, 5)} is not on position {position.index}")
    values = values[inside]
    if not values.shape[1]:
        return values[0]
    first = np.lexsort(np.rint(values / GRAIN).T[::-1])[0]
    return values[first]
