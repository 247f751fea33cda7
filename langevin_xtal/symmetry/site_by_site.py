"""Assignments of Wyckoff positions made one site after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import comb, exp
from typing import NamedTuple

from langevin_xtal.symmetry.assignments import COST_UNIT, Search, minus
from langevin_xtal.symmetry.fitting import check_counts
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

LIKELY_SITES = 200
"""Numbers of sites of the elements distinguished by :class:`SiteBySite`, at most."""


MOST_SITES = 30
"""Sites of an assignment made by :class:`SiteBySite`, at most."""


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
    Parameters and errors are those of :func:`~langevin_xtal.symmetry.assignments.assignments`.
    """

    def __init__(self, number: int, counts: Sequence[int]) -> None:
        check_counts(number, counts)
        self.counts = tuple(counts)
        self._search = Search(number, counts)
        self._positions = wyckoff_positions(number)
        self._last_of: dict[int, int] = {}  # of each multiplicity with freedom
        for w in self._positions:
            if w.freedom:
                self._last_of[w.multiplicity] = w.index
        self._reach: dict[tuple[int, ...], list[int]] = {}
        self._known: dict[tuple[object, ...], bool] = {}

    def site_counts(self) -> dict[tuple[int, ...], float]:
        """Likely numbers of sites of each element and their shares, largest first.

        The share is what the costs that order enumerated assignments suggest. Numbers that no
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
                for use in search.uses(element, capacity):
                    ways = weight * exp(-search.cost(use) / COST_UNIT)
                    for c, u in zip(capacity, use, strict=True):
                        ways *= comb(c, u)
                    after = minus(capacity, use)
                    for n, more in free[search.left(element, use)].items():
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
            if self._others(sites, element + 1, minus(capacity, use)):
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
            weight = exp(-kind.cost / COST_UNIT)
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
