"""Assignments of Wyckoff positions: every way to place the atoms of a formula in a space group.

An assignment gives each element positions whose multiplicities add up to its number of atoms in
the conventional cell. A position without freedom holds one site over all elements; the others hold
any number. Two assignments that an isometry of the lattice keeping the group turns into each other
(:func:`position_permutations`) describe the same crystals, and only one of them is listed: the
one that comes first in lexicographic order.

>>> found = assignments(225, [4, 4])                                # rock salt, in Fm-3m
>>> list(found), found.complete
([((0,), (1,))], True)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import combinations, combinations_with_replacement, product
from math import comb, exp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import RequestError
from langevin_xtal.symmetry.groups import CRYSTAL_SYSTEMS, SpaceGroup, centring_orders
from langevin_xtal.symmetry.wyckoff import locate, origin_shifts, wyckoff_positions

Assignment = tuple[tuple[int, ...], ...]
"""Of each element the sorted indices of its positions within the group, one per site."""

LIMIT = 20_000
"""Assignments listed of one request, unless another limit is asked for."""
WORK_LIMIT = 200_000
"""Partial assignments looked at between two that are listed; then the enumeration stops."""
MAX_ATOMS = 2_000
"""Atoms of one element in the conventional cell."""

LIKELY_SITES = 200
"""Numbers of sites of the elements distinguished by :class:`SiteBySite`, at most."""
MOST_SITES = 30
"""Sites of an assignment made by :class:`SiteBySite`, at most."""

_COST_UNIT = 4  # costs per unit of negative log-likelihood
_DIRECTION_COST = 4  # of a direction along which any site can move on a line

_METRICS = {
    "triclinic": (5.0, 7.0, 11.0, 1.3, 1.7, 2.3),
    "monoclinic": (5.0, 7.0, 11.0, 0.0, 1.7, 0.0),
    "orthorhombic": (5.0, 7.0, 11.0, 0.0, 0.0, 0.0),
    "tetragonal": (5.0, 5.0, 11.0, 0.0, 0.0, 0.0),
    "trigonal": (5.0, 5.0, 11.0, 0.0, 0.0, -2.5),
    "hexagonal": (5.0, 5.0, 11.0, 0.0, 0.0, -2.5),
    "cubic": (5.0, 5.0, 5.0, 0.0, 0.0, 0.0),
}  # aa, bb, cc, bc, ac, ab of a lattice with no more symmetry than its system demands


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
    for row in _rows(number):
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
        found.add(_moved_positions(number, rotation, shift))
    generators = list(found)
    new = list(found)
    while new:
        composed = {tuple(a[w] for w in b) for a in generators for b in new}
        new = list(composed - found)
        found |= composed
    return np.array(sorted(found), dtype=np.int64)


def canonical(number: int, assignment: Assignment) -> tuple[Assignment, int]:
    """The assignment listed for all those that describe the same crystals.

    Returns
    -------
    tuple
        The first in lexicographic order, kind by kind, and the row of
        :func:`position_permutations` that leads to it.
    """
    place = _kinds(number).place
    images = [
        tuple(
            tuple(sorted((place[names[w]], names[w]) for w in element)) for element in assignment
        )
        for names in _rows(number)
    ]
    row = min(range(len(images)), key=images.__getitem__)
    return tuple(tuple(sorted(w for _, w in element)) for element in images[row]), row


def canonical_all(number: int, found: Iterable[Assignment]) -> list[Assignment]:
    """:func:`canonical` of many assignments of one group, without the rows."""
    place = _kinds(number).place
    at = {k: w for w, k in place.items()}
    images: list[dict[tuple[int, ...], tuple[int, ...]]] = [{} for _ in _rows(number)]
    result = []
    for assignment in found:
        best: Assignment | None = None
        for names, known in zip(_rows(number), images, strict=True):
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
        self._search = _Search(number, counts, max_sites)
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
        For counts below 1 or above :data:`MAX_ATOMS`, or none.
    """
    _check(number, counts)
    return Assignments(number, counts, limit, max_sites)


def fits(number: int, counts: Sequence[int]) -> bool:
    """Whether any assignment exists; parameters and errors as for :func:`assignments`."""
    _check(number, counts)
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
        _check(1, counts)
    conventional = centring_orders()[:, None] * np.array(counts)
    mask = conventional.max(axis=1) <= MAX_ATOMS
    mask[0] = False
    table = _reach_table()
    for number in np.flatnonzero(mask).tolist():
        row = conventional[number]
        if not table[number, row].all():
            mask[number] = fits(number, row.tolist())
    return mask


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


def count_assignments(number: int, counts: Sequence[int]) -> int:
    """How many assignments there are without any limit, by Burnside's lemma.

    Parameters and errors are those of :func:`assignments`.
    """
    _check(number, counts)
    names = _rows(number)
    return sum(_invariant(number, counts, row) for row in names) // len(names)


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


def explain(number: int, formula: Mapping[str, int], z: int) -> str:
    """Why no assignment exists and what would fit, in one sentence.

    Parameters
    ----------
    number
        Space-group number.
    formula
        Element symbol to its number of atoms in one formula unit.
    z
        Formula units in the conventional cell.

    Returns
    -------
    str
        For instance "Cu3Si with Z = 2 (6 Cu and 2 Si) does not fit Pnma (62): its positions hold
        4 or 8 atoms, which cannot add up to 6 Cu and 2 Si; Z = 4 (12 Cu and 4 Si), 8 or 12 fits,
        and Z = 2 in Pmmn (59), Cmmm (65) or Pnnm (58)". Where assignments exist it says how many.
    """
    name, group = _formula(formula), SpaceGroup(number)
    per_unit = list(formula.values())
    counts = [z * n for n in per_unit]
    if fits(number, counts):
        ways = count_assignments(number, counts)
        return f"{name} with Z = {z} fits {group}, in {ways} way{'s' if ways > 1 else ''}"
    given = _atoms(formula, z)
    alone = [e for e, n in zip(formula, counts, strict=True) if not fits(number, [n])]
    if alone:
        sizes = sorted({w.multiplicity for w in wyckoff_positions(number)})
        lacking = _listed([f"{z * formula[e]} {e}" for e in alone], "and")
        why = f"its positions hold {_listed(sizes, 'or')} atoms, which cannot add up to {lacking}"
        why += _single_use(number, [z * formula[e] for e in alone])
    else:
        why = (
            "its positions without freedom hold one site over all elements, and there are too "
            "few of them"
        )
    units = smallest_z(number, per_unit, 24) or (_general_z(number, per_unit),)
    better = f"Z = {units[0]} ({_atoms(formula, units[0])})"
    if len(units) > 1:
        better = _listed([better, *map(str, units[1:3])], "or")
    elsewhere = ""
    near = _nearest_groups(number, counts)
    if near:
        elsewhere = f", and Z = {z} in {_listed(list(map(str, near)), 'or')}"
    return f"{name} with Z = {z} ({given}) does not fit {group}: {why}; {better} fits{elsewhere}"


def _single_use(number: int, counts: Sequence[int]) -> str:
    """A remark where multiplicities would add up if each position held many sites."""
    sizes = [w.multiplicity for w in wyckoff_positions(number)]
    reached = {0}
    for n in range(1, max(counts) + 1):
        if any(n - size in reached for size in sizes):
            reached.add(n)
    return ", as those without freedom hold one site" if reached.issuperset(counts) else ""


def _general_z(number: int, per_unit: Sequence[int]) -> int:
    """The smallest Z that fits; the general position alone makes one of at most its size fit."""
    most = wyckoff_positions(number)[-1].multiplicity
    return next(z for z in range(1, most + 1) if fits(number, [z * n for n in per_unit]))


def _nearest_groups(number: int, counts: Sequence[int], most: int = 3) -> list[SpaceGroup]:
    """Groups that the counts fit: of the same crystal system first, then by number."""

    def distance(other: int) -> tuple[bool, int]:
        return not first <= other <= last, abs(other - number)

    first, last = next((a, b) for _, a, b in CRYSTAL_SYSTEMS if a <= number <= b)
    near = sorted(range(1, 231), key=distance)
    fitting = (SpaceGroup(other) for other in near if fits(other, counts))
    return [group for group, _ in zip(fitting, range(most), strict=False)]


def _formula(formula: Mapping[str, int]) -> str:
    return "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in formula.items())


def _atoms(formula: Mapping[str, int], z: int) -> str:
    return _listed([f"{z * n} {symbol}" for symbol, n in formula.items()], "and")


def _listed(items: Sequence[object], last: str) -> str:
    words = list(map(str, items))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


class Partial(NamedTuple):
    """An assignment of which some sites are placed already."""

    sites: tuple[int, ...]  #: sites of each element
    element: int  #: the first element with sites to place; their number when none is left
    sites_left: int  #: of that element
    atoms_left: int  #: of that element
    last: int  #: position of its last site, which no site after it comes before
    taken: int  #: bit w is set where position w, without freedom, is taken


class SiteBySite:
    """Assignments made one site after the other, each step of which can still be completed.

    Elements come in the order of their counts, the sites of one element by their positions.
    Parameters and errors are those of :func:`assignments`.
    """

    def __init__(self, number: int, counts: Sequence[int]) -> None:
        _check(number, counts)
        self.counts = tuple(counts)
        self._search = _Search(number, counts)
        self._positions = wyckoff_positions(number)
        self._last_of: dict[int, int] = {}  # of each multiplicity with freedom
        for w in self._positions:
            if w.freedom:
                self._last_of[w.multiplicity] = w.index
        self._reach: dict[tuple[int, ...], list[int]] = {}
        self._known: dict[tuple[object, ...], bool] = {}

    def site_counts(self) -> dict[tuple[int, ...], float]:
        """Likely numbers of sites of each element and their shares, largest first.

        The share is what the costs that order :func:`assignments` suggest. Numbers that no
        assignment has, those with more than :data:`MOST_SITES` sites in all, and the least likely
        beyond :data:`LIKELY_SITES` are left out.
        """
        search, free = self._search, self._free_weights()
        most = max(w.multiplicity for w in self._positions)
        states: dict[tuple[tuple[int, ...], tuple[int, ...]], float]
        states = {((), search.capacity): 1.0}
        for element in range(len(self.counts)):
            allowed = MOST_SITES - sum(-(-n // most) for n in self.counts[element + 1 :])
            new: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
            for (sites, capacity), weight in states.items():
                for use in search._uses(element, capacity):
                    ways = weight * exp(-search._cost(use) / _COST_UNIT)
                    for c, u in zip(capacity, use, strict=True):
                        ways *= comb(c, u)
                    after = _minus(capacity, use)
                    for n, more in free[search._left(element, use)].items():
                        key = (*sites, n + sum(use)), after
                        if sum(key[0]) <= allowed:
                            new[key] = new.get(key, 0.0) + ways * more
            states = dict(sorted(new.items(), key=_by_share)[: 4 * LIKELY_SITES])
        found: dict[tuple[int, ...], float] = {}
        for (sites, _), weight in states.items():
            found[sites] = found.get(sites, 0.0) + weight
        total = sum(found.values())
        likely = sorted(found.items(), key=_by_share)[:LIKELY_SITES]
        return {sites: weight / total for sites, weight in likely}

    def start(self, sites: tuple[int, ...]) -> Partial | None:
        """Nothing placed yet; None where no assignment has such numbers of sites."""
        begun = Partial(sites, 0, sites[0], self.counts[0], 0, 0)
        return begun if self._completes(begun) else None

    def after(self, partial: Partial, position: int) -> Partial | None:
        """With one more site at the position; None where that cannot be completed."""
        sites, element, sites_left, atoms_left, last, taken = partial
        w = self._positions[position]
        if position < last or taken >> position & 1:
            return None
        sites_left, atoms_left, last = sites_left - 1, atoms_left - w.multiplicity, position
        if not w.freedom:
            taken |= 1 << position
        if not sites_left and not atoms_left and element + 1 < len(sites):
            element, last = element + 1, 0
            sites_left, atoms_left = sites[element], self.counts[element]
        now = Partial(sites, element, sites_left, atoms_left, last, taken)
        return now if atoms_left >= 0 and self._completes(now) else None

    def _completes(self, partial: Partial) -> bool:
        untaken = [
            [w for w in kind.positions if not partial.taken >> w & 1]
            for kind in self._search.kinds.fixed
        ]
        capacity = tuple(map(len, untaken))
        ahead = tuple(sum(w >= partial.last for w in own) for own in untaken)
        free = tuple(m for m, last in self._last_of.items() if last >= partial.last)
        key = (*partial[:4], capacity, ahead, free)
        if key not in self._known:
            self._known[key] = self._placeable(
                partial.sites, partial.element, *partial[2:4], capacity, ahead, free
            )
        return self._known[key]

    def _placeable(
        self,
        sites: tuple[int, ...],
        element: int,
        sites_left: int,
        atoms_left: int,
        capacity: tuple[int, ...],
        ahead: tuple[int, ...],
        free: tuple[int, ...],
    ) -> bool:
        """Whether the element's sites fit positions ahead, and other elements what is left."""
        fixed = self._search.kinds.fixed
        for use in product(*(range(n + 1) for n in ahead)):
            n = sites_left - sum(use)
            atoms = atoms_left - sum(
                u * kind.multiplicity for u, kind in zip(use, fixed, strict=True)
            )
            if n < 0 or atoms < 0 or not self._reached(free, atoms) >> n & 1:
                continue
            if self._others(sites, element + 1, _minus(capacity, use)):
                return True
        return False

    def _others(self, sites: tuple[int, ...], element: int, capacity: tuple[int, ...]) -> bool:
        if element >= len(sites):
            return True
        key = sites[element:], element, capacity
        if key not in self._known:
            self._known[key] = self._placeable(
                sites,
                element,
                sites[element],
                self.counts[element],
                capacity,
                capacity,
                tuple(self._last_of),
            )
        return self._known[key]

    def _reached(self, free: tuple[int, ...], atoms: int) -> int:
        """Bit n is set where n sites of such multiplicities can hold the atoms."""
        reach = self._reach.setdefault(free, [1])
        while len(reach) <= atoms:
            mask = 0
            for m in free:
                if m <= len(reach):
                    mask |= reach[len(reach) - m] << 1
            reach.append(mask)
        return reach[atoms]

    def _free_weights(self) -> list[dict[int, float]]:
        """By atoms, and by the sites with freedom that hold them, the weight of all ways."""
        most = max(self.counts)
        found: list[dict[int, float]] = [{} for _ in range(most + 1)]
        found[0][0] = 1.0
        for kind in self._search.kinds.free:
            weight = exp(-kind.cost / _COST_UNIT)
            for _ in kind.positions:
                for atoms in range(kind.multiplicity, most + 1):
                    here = found[atoms]
                    for n, ways in found[atoms - kind.multiplicity].items():
                        if n < MOST_SITES:
                            here[n + 1] = here.get(n + 1, 0.0) + ways * weight
        return found


def _by_share(item: tuple[tuple[object, ...], float]) -> tuple[float, tuple[object, ...]]:
    """Largest first; of equal ones, those with few sites of the first elements."""
    return -item[1], item[0]


class _Search:
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
        rows = _rows(self.number)
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

    def _uses(self, element: int, capacity: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Fixed positions of each kind that an element may take, where atoms are left or none."""
        atoms = self.counts[element]
        most = [
            min(c, atoms // kind.multiplicity)
            for c, kind in zip(capacity, self.kinds.fixed, strict=True)
        ]
        for use in product(*(range(m + 1) for m in most)):
            if self._left(element, use) >= 0:
                yield use

    def _left(self, element: int, use: tuple[int, ...]) -> int:
        held = sum(u * kind.multiplicity for u, kind in zip(use, self.kinds.fixed, strict=True))
        return self.counts[element] - held

    def _cost(self, use: tuple[int, ...]) -> int:
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
            for use in self._uses(element, capacity):
                after, mine = _minus(capacity, use), self._cost(use)
                for used, costs in self.kinds.free_costs(self._left(element, use)).items():
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
        for use in self._uses(element, capacity):
            left, after = self._left(element, use), _minus(capacity, use)
            for used, costs in self.kinds.free_costs(left).items():
                spare = total - self._cost(use) - _new(used, seen)
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


def _minus(capacity: tuple[int, ...], use: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(c - u for c, u in zip(capacity, use, strict=True))


def _check(number: int, counts: Sequence[int]) -> None:
    SpaceGroup(number)
    if not counts:
        raise RequestError("no elements were asked for: give the atoms of at least one")
    for count in counts:
        if not 1 <= count <= MAX_ATOMS:
            raise RequestError(
                f"{count} atoms of an element in the cell were asked for; give 1 to {MAX_ATOMS}"
            )


@cache
def _rows(number: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in position_permutations(number).tolist())


def _moved_positions(
    number: int, rotation: NDArray[np.int64], shift: NDArray[np.float64]
) -> tuple[int, ...]:
    """Index of every position's image."""
    lattice = np.eye(3) * 50.0  # any cell: only equality up to rounding is asked for
    inside = np.array([0.0127, 0.0211, 0.0173])
    points = [rotation @ (w.base + w.projector @ inside) for w in wyckoff_positions(number)]
    return tuple(locate(number, point + shift, lattice).index for point in points)


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
    own = {r.tobytes(): t for r, t in zip(group.rotations, group.translations24, strict=True)}
    centring = {tuple(vector) for vector in (group.centring % 24).tolist()}
    if {tuple(vector) for vector in ((group.centring @ rotation.T) % 24).tolist()} != centring:
        return None
    for r, t in zip(group.rotations, group.translations24, strict=True):
        image = np.ascontiguousarray(rotation @ r @ back)
        if image.tobytes() not in own:
            return None
        gap = rotation @ t - own[image.tobytes()] + grid - grid @ image.T
        fits = np.zeros(len(grid), dtype=bool)
        for vector in centring:
            fits |= (gap % 24 == vector).all(axis=1)
        grid = grid[fits]
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
