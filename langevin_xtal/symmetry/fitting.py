"""Whether the atoms of a composition fit a space group, without enumeration of assignments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import RequestError
from langevin_xtal.symmetry.groups import SpaceGroup, centring_orders
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

MAX_ATOMS = 2_000
"""Atoms of one element in the conventional cell."""


def fits(number: int, counts: Sequence[int]) -> bool:
    """Whether any assignment exists.

    Parameters
    ----------
    number
        Space-group number.
    counts
        Atoms of each element in the conventional cell.

    Raises
    ------
    SymmetryError, RequestError
        As :func:`check_counts`.
    """
    check_counts(number, counts)
    reach, fixed = _reach(number)
    # an element that positions with freedom can hold leaves the others to those that need them
    needy = tuple(sorted((n for n in counts if not reach >> n & 1), reverse=True))
    return _fits_fixed(needy, reach, fixed)


@cache
def _reach(number: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Bits of the atoms that positions with freedom can hold; (multiplicity, how many) of the
    others."""
    positions = wyckoff_positions(number)
    fixed = Counter(w.multiplicity for w in positions if not w.freedom)
    free = frozenset(w.multiplicity for w in positions if w.freedom)
    return _held_by(free), tuple(sorted(fixed.items()))


@cache
def _held_by(multiplicities: frozenset[int]) -> int:
    """Bits of the numbers up to :data:`MAX_ATOMS` that sums of these make."""
    reach, every = 1, (1 << (MAX_ATOMS + 1)) - 1
    for multiplicity in multiplicities:
        step = multiplicity
        while step <= MAX_ATOMS:
            reach |= (reach << step) & every
            step *= 2
    return reach


@cache
def _reach_table() -> NDArray[np.bool_]:
    """(231, MAX_ATOMS + 1) :func:`_reach` of every group, without its positions that are fixed."""
    table = np.zeros((231, MAX_ATOMS + 1), dtype=bool)
    for number in range(1, 231):
        packed = _reach(number)[0].to_bytes(MAX_ATOMS // 8 + 1, "little")
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
        table[number] = bits[: MAX_ATOMS + 1]
    return table


def fitting_groups(counts: Sequence[int]) -> NDArray[np.bool_]:
    """(231,) groups in which the atoms of a primitive cell fit; entry 0 is false.

    The same as :func:`fits` for every group, with at most :data:`MAX_ATOMS` atoms of an element
    in the conventional cell.

    Parameters
    ----------
    counts
        Atoms of each element in the primitive cell, 1 or more.

    Raises
    ------
    RequestError
        For counts below 1, or none.
    """
    if not counts or min(counts) < 1:
        check_counts(1, counts)
    numbers, kind = _alike()
    conventional = centring_orders()[numbers, None] * np.array(counts)
    mask = conventional.max(axis=1) <= MAX_ATOMS
    table = _reach_table()
    for place, number in enumerate(numbers.tolist()):
        row = conventional[place]
        if mask[place] and not table[number, row].all():
            mask[place] = fits(number, row.tolist())
    found = mask[kind]
    found[0] = False
    return found


@cache
def _alike() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A group of each kind, and (231,) the kind of every group: one with the same centring and
    multiplicities, in which the same atoms fit. That of entry 0 has no meaning."""
    places: dict[object, int] = {}
    numbers: list[int] = []
    kinds = [0]
    for number in range(1, 231):
        key = (int(centring_orders()[number]), _reach(number))
        if key not in places:
            places[key] = len(numbers)
            numbers.append(number)
        kinds.append(places[key])
    return np.array(numbers), np.array(kinds)


@lru_cache(maxsize=1 << 14)
def _fits_fixed(counts: tuple[int, ...], reach: int, fixed: tuple[tuple[int, int], ...]) -> bool:
    """Whether elements fit when each takes some positions without freedom."""
    if not counts:
        return True
    for use in product(*(range(min(n, counts[0] // m) + 1) for m, n in fixed)):
        left = counts[0] - sum(u * m for u, (m, _) in zip(use, fixed, strict=True))
        if left >= 0 and reach >> left & 1:
            after = tuple((m, n - u) for u, (m, n) in zip(use, fixed, strict=True))
            if _fits_fixed(counts[1:], reach, after):
                return True
    return False


def smallest_z(number: int, formula_counts: Sequence[int], upto: int = 24) -> tuple[int, ...]:
    """Formula units in the conventional cell, up to ``upto``, for which an assignment exists.

    Parameters
    ----------
    number
        Space-group number.
    formula_counts
        Atoms of each element in one formula unit.
    """
    return tuple(z for z in range(1, upto + 1) if fits(number, [z * n for n in formula_counts]))


def first_z(number: int, formula_counts: Sequence[int], upto: int = 24) -> int | None:
    """The first of :func:`smallest_z`, None where there is none; looks no further than that."""
    return next(
        (z for z in range(1, upto + 1) if fits(number, [z * n for n in formula_counts])), None
    )


def check_counts(number: int, counts: Sequence[int]) -> None:
    """Refuse numbers of atoms in the conventional cell that nothing is known of.

    Raises
    ------
    SymmetryError
        For a group that does not exist.
    RequestError
        For counts below 1 or above :data:`MAX_ATOMS`, or none.
    """
    SpaceGroup(number)
    if not counts:
        raise RequestError("no elements were asked for: give the atoms of at least one")
    for count in counts:
        if not 1 <= count <= MAX_ATOMS:
            raise RequestError(
                f"{count} atoms of an element in the cell were asked for; give 1 to {MAX_ATOMS}"
            )
