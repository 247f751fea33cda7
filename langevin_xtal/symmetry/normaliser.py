"""Euclidean normalisers: isometries of the lattice that keep a space group.

A crystal and its image by an element of the normaliser (International Tables, chapter 3.5) are the
same crystal. The Wyckoff positions of one are a permutation of those of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.wyckoff import origin_shifts, renamed

_METRICS = {
    "triclinic": (5.0, 7.0, 11.0, 1.3, 1.7, 2.3),
    "monoclinic": (5.0, 7.0, 11.0, 0.0, 1.7, 0.0),
    "orthorhombic": (5.0, 7.0, 11.0, 0.0, 0.0, 0.0),
    "tetragonal": (5.0, 5.0, 11.0, 0.0, 0.0, 0.0),
    "trigonal": (5.0, 5.0, 11.0, 0.0, 0.0, -2.5),
    "hexagonal": (5.0, 5.0, 11.0, 0.0, 0.0, -2.5),
    "cubic": (5.0, 5.0, 5.0, 0.0, 0.0, 0.0),
}  # aa, bb, cc, bc, ac, ab of a lattice with no more symmetry than its system demands


@cache
def position_permutations(number: int) -> NDArray[np.int64]:
    """(P, W) how isometries of the lattice that keep the group relabel its W positions.

    They form a group of permutations: shifts of the origin (:func:`origin_shifts`), and inversions
    and rotations that the lattice of the crystal system has but the group lacks (its Euclidean
    normaliser). A crystal and its image, or mirror image, are the same crystal; position ``w`` of
    one is ``permutation[w]`` of the other. Row 0 changes nothing.
    """
    found = {tuple(row) for row in origin_shifts(number).tolist()}
    for rotation, shift in _isometries(number):
        found.add(tuple(renamed(number, rotation[None], shift[None])[0].tolist()))
    generators = list(found)
    new = list(found)
    while new:
        composed = {tuple(a[w] for w in b) for a in generators for b in new}
        new = list(composed - found)
        found |= composed
    return np.array(sorted(found), dtype=np.int64)


@cache
def permutations(number: int) -> tuple[tuple[int, ...], ...]:
    """The rows of :func:`position_permutations`."""
    return tuple(tuple(row) for row in position_permutations(number).tolist())


def _isometries(number: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """(3, 3) and (3,) one for each coset of the group's own rotations that the lattice has.

    The shift is found among multiples of 1/24; all others differ by shifts of the origin.
    """
    group = SpaceGroup(number)
    own = {r.tobytes() for r in group.rotations}
    seen = set(own)
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for rotation in _lattice_rotations(group.crystal_system):
        if rotation.tobytes() in seen:
            continue
        seen |= {np.ascontiguousarray(rotation @ r).tobytes() for r in group.rotations}
        shift = normalising_shift(group, rotation, grid)
        if shift is not None:
            yield rotation, shift / 24.0


def normalising_shift(
    group: SpaceGroup, rotation: NDArray[np.int64], grid: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """(3,) the first of the shifts ``grid`` (S, 3) [1/24] that keeps a group with a rotation.

    Conjugation with both maps the group onto itself. None where no shift does.
    """
    back = np.rint(np.linalg.inv(rotation)).astype(np.int64)
    centring = group.centring % 24
    if {tuple(v) for v in (group.centring @ rotation.T % 24).tolist()} != {
        tuple(v) for v in centring.tolist()
    }:
        return None
    own = {r.tobytes(): t for r, t in zip(group.rotations, group.translations24, strict=True)}
    rotations = np.array([np.frombuffer(r, dtype=np.int64).reshape(3, 3) for r in own])
    translations = np.array(list(own.values()))
    images = rotation @ rotations @ back
    found = [own.get(image.tobytes()) for image in images]
    if any(one is None for one in found):
        return None
    gaps = translations @ rotation.T - np.array(found)
    digits = np.array([576, 24, 1])
    is_centring = np.zeros(24**3, dtype=bool)
    is_centring[centring @ digits] = True
    # the first operations leave few shifts, for which all others are tried together
    for some in (slice(0, 4), slice(4, None)):
        turned = grid @ np.swapaxes(images[some], 1, 2)
        gap = (gaps[some][:, None] + grid - turned) % 24
        grid = grid[is_centring[gap @ digits].all(axis=0)]
        if not len(grid):
            return None
    return grid[0]


@cache
def _lattice_rotations(system: str) -> NDArray[np.int64]:
    """(L, 3, 3) rotations and inversions of a lattice of that system, identity first."""
    aa, bb, cc, bc, ac, ab = _METRICS[system]
    metric = np.array([[aa, ab, ac], [ab, bb, bc], [ac, bc, cc]])
    entries = np.array(list(product((-1, 0, 1), repeat=9)), dtype=np.int64).reshape(-1, 3, 3)
    turned = np.swapaxes(entries, 1, 2) @ metric @ entries
    return entries[np.abs(turned - metric).max(axis=(1, 2)) < 1e-9]
