"""Assignments of Wyckoff positions: every way to place the atoms of a formula in a space group.

An assignment gives each element positions whose multiplicities add up to its number of atoms in
the conventional cell. A position without freedom holds one site over all elements; the others hold
any number. Two assignments that an isometry of the lattice keeping the group turns into each other
(:mod:`~langevin_xtal.symmetry.normaliser`) describe the same crystals, and only one of them is
listed: the one that comes first in lexicographic order.

>>> found = assignments(225, [4, 4])                                # rock salt, in Fm-3m
>>> list(found), found.complete
([((0,), (1,))], True)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations, combinations_with_replacement, product

import numpy as np

from langevin_xtal.symmetry.fitting import check_counts
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.normaliser import permutations
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

Assignment = tuple[tuple[int, ...], ...]
"""Of each element the sorted indices of its positions within the group, one per site."""

LIMIT = 20_000
"""Assignments listed of one request, unless another limit is asked for."""
WORK_LIMIT = 200_000
"""Partial assignments looked at between two that are listed; then the enumeration stops."""


COST_UNIT = 4  # costs per unit of negative log-likelihood
_DIRECTION_COST = 4  # of a direction along which any site can move on a line


@dataclass(frozen=True)
class _Kind:
    """Positions of one multiplicity and freedom; where that is a line, of one direction."""

    multiplicity: int
    freedom: int
    direction: int  #: a bit for each direction of lines in a group with several; otherwise 0
    cost: int  #: of one site; cheap assignments are listed first
    positions: tuple[int, ...]


@dataclass(frozen=True)
class _Kinds:
    """A group's kinds, and what its kinds with freedom can do."""

    fixed: tuple[_Kind, ...]
    free: tuple[_Kind, ...]

    @cached_property
    def ordered(self) -> tuple[_Kind, ...]:
        """All kinds by their first position."""
        return tuple(sorted(self.fixed + self.free, key=lambda kind: kind.positions))

    @cached_property
    def place(self) -> dict[int, int]:
        """Of every position, its place where one kind follows another."""
        return {w: k for k, w in enumerate(w for kind in self.ordered for w in kind.positions)}

    @cached_property
    def _masks(self) -> list[list[dict[int, int]]]:
        return [[{0: 1}] for _ in range(len(self.free) + 1)]

    def free_costs(self, atoms: int, first: int = 0) -> dict[int, int]:
        """By the set of directions used: bit c is set where cost c can be had.

        Free kinds from ``first`` on hold the atoms. Directions add their cost elsewhere.
        """
        masks = self._masks
        for n in range(len(masks[0]), atoms + 1):
            masks[-1].append({})
            for k in reversed(range(len(self.free))):
                kind, mine = self.free[k], dict(masks[k + 1][n])
                if n >= kind.multiplicity:
                    for used, mask in masks[k][n - kind.multiplicity].items():
                        now = used | kind.direction
                        mine[now] = mine.get(now, 0) | mask << kind.cost
                masks[k].append(mine)
        return masks[first][atoms]

    def free_patterns(
        self, atoms: int, cost: int, directions: int, first: int = 0
    ) -> Iterator[tuple[int, ...]]:
        """Sites per free kind from ``first`` on, at that cost, with exactly those directions."""
        if first == len(self.free):
            yield ()
            return
        kind = self.free[first]
        if kind.direction & ~directions:
            most = 0
        else:
            most = min(atoms // kind.multiplicity, cost // kind.cost)
        for sites in range(most + 1):
            left = atoms - sites * kind.multiplicity, cost - sites * kind.cost
            known = self.free_costs(left[0], first + 1)
            needed = {directions, directions & ~kind.direction} if sites else {directions}
            for others in needed:
                if known.get(others, 0) >> left[1] & 1:
                    for rest in self.free_patterns(*left, others, first + 1):
                        yield (sites, *rest)


@cache
def _kinds(number: int) -> _Kinds:
    positions, order = wyckoff_positions(number), SpaceGroup(number).order
    directions = _directions(number)
    members: dict[tuple[int, int, int], list[int]] = {}
    for w in positions:
        key = w.multiplicity, w.freedom, directions[w.index]
        members.setdefault(key, []).append(w.index)
    kinds = [
        _Kind(*key, _site_cost(key[0], key[1], len(indices), order), tuple(indices))
        for key, indices in members.items()
    ]
    return _Kinds(tuple(k for k in kinds if not k.freedom), tuple(k for k in kinds if k.freedom))


def _directions(number: int) -> list[int]:
    """A bit for the direction of every line, 0 for other positions or where all lines agree.

    Directions that an operation of the group or a permutation maps onto each other are one.
    """
    rotations = SpaceGroup(number).rotations
    back = np.rint(np.linalg.inv(rotations)).astype(np.int64)
    positions = wyckoff_positions(number)
    images = [np.round(rotations @ w.projector @ back, 6) + 0.0 for w in positions]
    names = [min(map(tuple, image.reshape(len(image), 9).tolist())) for image in images]
    for row in permutations(number):
        for w in range(len(positions)):
            one, other = sorted((names[w], names[row[w]]))
            names = [one if name == other else name for name in names]
    lines = sorted({names[w.index] for w in positions if w.freedom == 1})
    several = len(lines) > 1
    return [
        1 << lines.index(names[w.index]) if several and w.freedom == 1 else 0 for w in positions
    ]


def _site_cost(multiplicity: int, freedom: int, positions: int, order: int) -> int:
    """Fitted to 700 crystals of MP-20's training part: 4 is one unit of negative log-likelihood.

    The last term adds up to the same for all assignments of a request, and makes costs positive.
    """
    cost = (0.41, -0.52, -1.83, -2.58)[freedom]
    cost += 0.20 * np.log2(positions) + 0.38 * np.log2(multiplicity)
    return max(1, round(4 * (cost + 4 * multiplicity / order)))


def canonical(number: int, assignment: Assignment) -> tuple[Assignment, int]:
    """The assignment listed for all those that describe the same crystals.

    Returns
    -------
    tuple
        The first in lexicographic order, kind by kind, and the row of
        :func:`~langevin_xtal.symmetry.normaliser.position_permutations` that leads to it.
    """
    place = _kinds(number).place
    images = [
        tuple(
            tuple(sorted((place[names[w]], names[w]) for w in element)) for element in assignment
        )
        for names in permutations(number)
    ]
    row = min(range(len(images)), key=images.__getitem__)
    return tuple(tuple(sorted(w for _, w in element)) for element in images[row]), row


def canonical_all(number: int, found: Iterable[Assignment]) -> list[Assignment]:
    """:func:`canonical` of many assignments of one group, without the rows."""
    place = _kinds(number).place
    at = {k: w for w, k in place.items()}
    images: list[dict[tuple[int, ...], tuple[int, ...]]] = [{} for _ in permutations(number)]
    result = []
    for assignment in found:
        best: Assignment | None = None
        for names, known in zip(permutations(number), images, strict=True):
            for element in assignment:
                if element not in known:
                    known[element] = tuple(sorted([place[names[w]] for w in element]))
            image = tuple([known[element] for element in assignment])
            if best is None or image < best:
                best = image
        result.append(tuple([tuple(sorted([at[k] for k in element])) for element in best or ()]))
    return result


class Assignments(Iterator[Assignment]):
    """All assignments of a request, each once, made as they are asked for.

    Attributes
    ----------
    complete
        Whether all have been listed; false while some may follow, and where a limit cut them off.
    """

    def __init__(
        self, number: int, counts: Sequence[int], limit: int, max_sites: int | None
    ) -> None:
        self.complete = False
        self._search = Search(number, counts, max_sites)
        self._found = self._upto(limit)

    def __next__(self) -> Assignment:
        return next(self._found)

    def _upto(self, limit: int) -> Iterator[Assignment]:
        for position, assignment in enumerate(self._search.run()):
            if position >= limit:
                return
            yield assignment
        self.complete = not self._search.stopped


def assignments(
    number: int,
    counts: Sequence[int],
    *,
    limit: int = LIMIT,
    max_sites: int | None = None,
) -> Assignments:
    """Assignments of Wyckoff positions, few special sites before many general ones.

    Parameters
    ----------
    number
        Space-group number.
    counts
        Atoms of each element in the conventional cell.
    limit
        Assignments listed at most. The enumeration also stops where it looks at
        :data:`WORK_LIMIT` partial assignments without finding another.
    max_sites
        Sites of all elements together at most.

    Returns
    -------
    Assignments
        An iterator; its ``complete`` says afterwards whether a limit cut it off.

    Raises
    ------
    SymmetryError
        For a group that does not exist.
    RequestError
        For counts below 1 or above :data:`~langevin_xtal.symmetry.fitting.MAX_ATOMS`, or none.
    """
    check_counts(number, counts)
    return Assignments(number, counts, limit, max_sites)


def count_assignments(number: int, counts: Sequence[int]) -> int:
    """How many assignments there are without any limit, by Burnside's lemma.

    Parameters and errors are those of :func:`assignments`.
    """
    check_counts(number, counts)
    names = permutations(number)
    return sum(_invariant(number, counts, row) for row in names) // len(names)


class Search:
    """The enumeration of one request."""

    def __init__(self, number: int, counts: Sequence[int], max_sites: int | None = None) -> None:
        self.number, self.counts = number, tuple(counts)
        self.kinds = _kinds(number)
        self.max_sites = max_sites
        self.work = 0
        self._known: dict[tuple[int, tuple[int, ...], int], int] = {}
        self.capacity = tuple(len(kind.positions) for kind in self.kinds.fixed)

    @property
    def stopped(self) -> bool:
        """Whether the bound on the work ended the enumeration."""
        return self.work > WORK_LIMIT

    def run(self) -> Iterator[Assignment]:
        """All assignments, cheap ones first, until the bound on the work."""
        rows = permutations(self.number)
        for total in _bits(self._costs(0, self.capacity, 0)):
            for pattern in self._patterns(0, self.capacity, 0, total):
                self.work += 1
                few = self.max_sites is None or sum(map(sum, pattern)) <= self.max_sites
                if few:
                    for found in self._expanded(pattern, rows):
                        self.work = 0
                        yield found
                if self.stopped:
                    return

    def uses(self, element: int, capacity: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Fixed positions of each kind that an element may take, where atoms are left or none."""
        atoms = self.counts[element]
        most = [
            min(c, atoms // kind.multiplicity)
            for c, kind in zip(capacity, self.kinds.fixed, strict=True)
        ]
        for use in product(*(range(m + 1) for m in most)):
            if self.left(element, use) >= 0:
                yield use

    def left(self, element: int, use: tuple[int, ...]) -> int:
        """Atoms of an element besides those on the fixed positions it takes."""
        held = sum(u * kind.multiplicity for u, kind in zip(use, self.kinds.fixed, strict=True))
        return self.counts[element] - held

    def cost(self, use: tuple[int, ...]) -> int:
        """Of fixed positions of each kind."""
        return sum(u * kind.cost for u, kind in zip(use, self.kinds.fixed, strict=True))

    def _costs(self, element: int, capacity: tuple[int, ...], seen: int) -> int:
        """Bit c is set where this element and those after it can be placed at cost c.

        ``seen`` are the directions that the elements before use.
        """
        if element == len(self.counts):
            return 1
        key = element, capacity, seen
        if key not in self._known:
            total = 0
            for use in self.uses(element, capacity):
                after, mine = minus(capacity, use), self.cost(use)
                for used, costs in self.kinds.free_costs(self.left(element, use)).items():
                    rest = self._costs(element + 1, after, seen | used)
                    total |= _sums(costs << (mine + _new(used, seen)), rest)
            self._known[key] = total
        return self._known[key]

    def _patterns(
        self, element: int, capacity: tuple[int, ...], seen: int, total: int
    ) -> Iterator[tuple[tuple[int, ...], ...]]:
        """Sites per kind (fixed ones first) of this element and those after it, at that cost."""
        if element == len(self.counts):
            yield ()
            return
        for use in self.uses(element, capacity):
            left, after = self.left(element, use), minus(capacity, use)
            for used, costs in self.kinds.free_costs(left).items():
                spare = total - self.cost(use) - _new(used, seen)
                if spare < 0:
                    continue
                now = seen | used
                rest = self._costs(element + 1, after, now)
                for cost in _bits(costs & ((1 << (spare + 1)) - 1)):
                    if rest >> (spare - cost) & 1:
                        for free in self.kinds.free_patterns(left, cost, used):
                            for others in self._patterns(element + 1, after, now, spare - cost):
                                yield ((*use, *free), *others)

    def _expanded(
        self, pattern: tuple[tuple[int, ...], ...], rows: tuple[tuple[int, ...], ...]
    ) -> Iterator[Assignment]:
        """Canonical assignments with the given numbers of sites of each kind.

        Parts, the positions of one kind that one element takes, are chosen one after the other.
        The permutations that leave all parts before unchanged must not make the next one smaller.
        """
        kinds = self.kinds.fixed + self.kinds.free
        parts = [
            (element, kind, sites)
            for element, row in enumerate(pattern)
            for kind, sites in sorted(
                zip(kinds, row, strict=True), key=lambda item: item[0].positions
            )
            if sites
        ]
        taken: list[list[int]] = [[] for _ in pattern]

        def place(
            step: int, used: frozenset[int], active: tuple[tuple[int, ...], ...]
        ) -> Iterator[Assignment]:
            if step == len(parts):
                yield tuple([tuple(sorted(element)) for element in taken])
                return
            element, kind, sites = parts[step]
            choices: Iterator[tuple[int, ...]]
            if kind.freedom:
                choices = combinations_with_replacement(kind.positions, sites)
            else:
                choices = combinations([w for w in kind.positions if w not in used], sites)
            mine = taken[element]
            for part in choices:
                self.work += 1
                if self.stopped:
                    return
                kept = _unchanged(part, active)
                if kept is None:
                    continue
                mine.extend(part)
                yield from place(step + 1, used if kind.freedom else used.union(part), kept)
                del mine[-sites:]

        return place(0, frozenset(), rows)


def _unchanged(
    part: tuple[int, ...], active: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...] | None:
    """Permutations that leave a part as it is; none where one makes it smaller."""
    if len(active) == 1:
        return active
    kept = []
    for names in active:
        image = tuple(sorted([names[w] for w in part]))
        if image < part:
            return None
        if image == part:
            kept.append(names)
    return tuple(kept)


def _invariant(number: int, counts: Sequence[int], names: tuple[int, ...]) -> int:
    """Number of assignments (not only canonical ones) that a permutation leaves unchanged.

    All positions of a cycle of the permutation are then used alike, by the same element.
    """
    kinds = _kinds(number)
    states = {tuple(counts): 1}  # atoms left to place, to number of ways
    for kind in kinds.fixed:
        for cycle in _cycles(kind.positions, names):
            atoms = kind.multiplicity * len(cycle)
            for left, ways in list(states.items()):
                for element, n in enumerate(left):
                    if n >= atoms:
                        after = (*left[:element], n - atoms, *left[element + 1 :])
                        states[after] = states.get(after, 0) + ways
    most = max(counts)
    free = [1] + [0] * most
    for kind in kinds.free:
        for cycle in _cycles(kind.positions, names):
            atoms = kind.multiplicity * len(cycle)
            for n in range(atoms, most + 1):
                free[n] += free[n - atoms]
    total = 0
    for left, ways in states.items():
        for n in left:
            ways *= free[n]
        total += ways
    return total


def _cycles(positions: tuple[int, ...], names: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    seen: set[int] = set()
    for start in positions:
        cycle = []
        while start not in seen:
            seen.add(start)
            cycle.append(start)
            start = names[start]
        if cycle:
            yield tuple(cycle)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _sums(a: int, b: int) -> int:
    """Bit i + j is set for all bits i of one and j of the other."""
    if a.bit_count() > b.bit_count():
        a, b = b, a
    total = 0
    for shift in _bits(a):
        total |= b << shift
    return total


def _new(used: int, seen: int) -> int:
    return _DIRECTION_COST * (used & ~seen).bit_count()


def minus(capacity: tuple[int, ...], use: tuple[int, ...]) -> tuple[int, ...]:
    """Positions of each kind that are left."""
    return tuple(c - u for c, u in zip(capacity, use, strict=True))
