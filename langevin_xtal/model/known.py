"""Compositions of training crystals, and those of them that resemble one that is asked for.

A crystal is kept as its elements, its atoms in the primitive cell and its space group. Crystals
whose reduced compositions have the same numbers, whatever the elements, form a family: all
perovskites and whatever else is ABX3. Within a family crystals are as far apart as their elements
are, summed over the elements, each matched with one of the other crystal that is as abundant; of
several ways to match them the nearest is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, permutations, product
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import InputError
from langevin_xtal.model.prior import element_rank

IntArray = NDArray[np.int64]

ELEMENTS = 119
MOST_ELEMENTS = 8
"""Crystals of more elements are left out."""
MOST_ATOMS = 255
"""Atoms of one element in the primitive cell."""
MOST_MATCHES = 120
"""Ways to match elements that are looked at; beyond, elements are matched in their order."""
CHUNK = 4_000_000
"""Distances held in memory at once."""


def ordered(elements: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Places of the elements from the rarest to the most abundant, then by Mendeleev number."""
    rank = element_rank()
    return sorted(range(len(elements)), key=lambda k: (counts[k], rank[elements[k]]))


def reduced(counts: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Counts over their greatest common divisor, and the divisor."""
    divisor = gcd(*counts)
    return tuple(n // divisor for n in counts), divisor


@dataclass(frozen=True)
class KnownCrystals:
    """C crystals of at most :data:`MOST_ELEMENTS` elements.

    Raises
    ------
    InputError
        When the arrays do not fit each other.
    """

    elements: IntArray  #: (C, K) atomic numbers in the order of :func:`ordered`, 0 for padding
    counts: IntArray  #: (C, K) atoms in the primitive cell, 0 for padding
    group: IntArray  #: (C,) space-group numbers
    stable: IntArray  #: (C,) 1 where near-stable, 0 where known to be far above the hull

    def __post_init__(self) -> None:
        crystals = len(self.group)
        shape = (crystals, MOST_ELEMENTS)
        real = self.counts > 0
        sound = (
            self.elements.shape == self.counts.shape == shape
            and self.stable.shape == (crystals,)
            and ((self.elements >= 0) & (self.elements < ELEMENTS)).all()
            and ((self.counts >= 0) & (self.counts <= MOST_ATOMS)).all()
            and ((self.elements > 0) == real).all()
            and (self.elements[:, :1] > 0).all()
            and (real[:, 1:] <= real[:, :-1]).all()
            and ((self.group >= 1) & (self.group <= 230)).all()
            and np.isin(self.stable, (0, 1)).all()
        )
        if not sound:
            raise InputError("its table of known crystals is damaged")

    def __len__(self) -> int:
        return len(self.group)

    @cached_property
    def units(self) -> IntArray:
        """(C,) formula units in the primitive cell."""
        return np.gcd.reduce(self.counts, axis=1) if len(self) else np.zeros(0, dtype=np.int64)

    @cached_property
    def families(self) -> dict[tuple[int, ...], IntArray]:
        """Rows of the crystals by their reduced counts in ascending order."""
        if not len(self):
            return {}
        names = self.counts // self.units[:, None]
        # eight numbers of a byte each are one number, which sorts like them, and faster
        keys = np.ascontiguousarray(names.astype(np.uint8)).view(">u8")[:, 0].astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        _, first = np.unique(keys[order], return_index=True)
        rows = np.split(order, first[1:])
        kinds = names[order[first]]
        return {tuple(k[k > 0].tolist()): row for k, row in zip(kinds, rows, strict=True)}


@dataclass(frozen=True)
class Neighbours:
    """For each of Q compositions the K nearest crystals of its family, nearest first."""

    row: IntArray  #: (Q, K) of the table, -1 where there are fewer
    matched: NDArray[
        np.integer[Any]
    ]  #: (Q, K, MOST_ELEMENTS) their elements in the order of the composition's

    def __getitem__(self, pick: slice | IntArray) -> Neighbours:
        return Neighbours(self.row[pick], self.matched[pick])


def matches(counts: Sequence[int]) -> IntArray:
    """(P, E) ways to match elements with elements of the same counts, in ascending order."""
    runs = [list(members) for _, members in groupby(range(len(counts)), counts.__getitem__)]
    ways = prod(prod(range(1, len(run) + 1)) for run in runs)
    if ways > MOST_MATCHES:
        return np.arange(len(counts))[None]
    found = [list(chain(*way)) for way in product(*(permutations(run) for run in runs))]
    return np.array(found, dtype=np.int64)


def nearest(
    known: KnownCrystals,
    distances: NDArray[np.float32],
    family: Sequence[int],
    elements: IntArray,
    most: int,
    *,
    among: IntArray | None = None,
    without: IntArray | None = None,
) -> Neighbours:
    """Nearest crystals of the compositions of one family.

    Parameters
    ----------
    distances
        (119, 119) of the elements.
    family
        Reduced counts, in ascending order.
    elements
        (Q, E) of each composition, in the order of :func:`ordered`.
    most
        Neighbours kept.
    among
        Rows of the table to look at, by default the whole family.
    without
        (Q,) row that each composition must not find: its own.
    """
    rows = known.families.get(tuple(family), np.zeros(0, dtype=np.int64))
    rows = rows if among is None else among
    queries, kinds = elements.shape
    found = np.full((queries, most), -1)
    matched = np.zeros((queries, most, MOST_ELEMENTS), dtype=np.int64)
    kept = min(most, len(rows))
    if not kept or not queries:
        return Neighbours(found, matched)
    ways = matches(family)
    theirs = known.elements[rows]
    step = max(1, CHUNK // (len(rows) * len(ways)))
    for start in range(0, queries, step):
        part = slice(start, start + step)
        asked = elements[part]
        apart = np.zeros((len(asked), len(rows), len(ways)), dtype=np.float32)
        for k in range(kinds):
            apart += distances[asked[:, k]][:, theirs[:, ways[:, k]]]
        way = apart.argmin(2)
        least = np.take_along_axis(apart, way[..., None], 2)[..., 0]
        if without is not None:
            least[rows[None] == without[part, None]] = np.inf
        if kept < len(rows):
            pick = np.argpartition(least, kept - 1, axis=1)[:, :kept]
        else:
            pick = np.tile(np.arange(len(rows)), (len(asked), 1))
        order = np.argsort(np.take_along_axis(least, pick, 1), 1, kind="stable")
        pick = np.take_along_axis(pick, order, 1)
        near = np.isfinite(np.take_along_axis(least, pick, 1))
        way = np.take_along_axis(way, pick, 1)
        found[part, :kept] = np.where(near, rows[pick], -1)
        matched[part, :kept, :kinds] = np.where(
            near[..., None], theirs[pick[..., None], ways[way]], 0
        )
    return Neighbours(found, matched)
