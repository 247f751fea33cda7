"""What a search asks for: site counts, or formulas, of a chemical system in a choice of groups.

Every crystal of a space contains all of its elements and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import combinations
from math import comb, gcd
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.request import MAX_SITES, Request, parse_formula
from langevin_xtal.errors import InputError, RequestError
from langevin_xtal.model.groups import Groups, compact, parse_groups
from langevin_xtal.symmetry.explanations import explain
from langevin_xtal.symmetry.fitting import first_z, fits
from langevin_xtal.symmetry.groups import SpaceGroup

if TYPE_CHECKING:
    from langevin_xtal.model.checkpoint import CrystalModel

MAX_ATOMS = (24, 52)
"""Most atoms in a primitive cell where the number of formula units is not given: the second where
the first leaves nothing. Models are trained on crystals of up to 52."""
FORMULA_ATOMS = 8
"""Most atoms in a formula unit, where formulas are enumerated."""
MAX_Z = 24
LARGEST = 1_000_000
"""Requests of one space."""


class SearchSpace:
    """Requests of a chemical system, in a fixed order.

    Iteration goes through the groups in the order given; within a group through site counts by
    their sum, then from the first element's largest count on; or through formulas by their number
    of atoms in the same way, and then through Z.

    Parameters
    ----------
    elements
        Symbols that all appear; may be left out when ``formulas`` are listed.
    space_groups
        ``"all"``, ``"common"`` (the 32 most frequent in the model's training data), a crystal
        system, numbers, symbols, ranges such as ``"225-230"``, or several of these in a list or
        separated by commas. By default, common ones where candidates are spread evenly, and all
        where they go to likely settings.
    max_sites
        Sites in the asymmetric unit at most, every element having one or more. By default four, or
        one more than there are elements, where candidates are spread evenly, and no limit where
        they go to likely settings.
    formulas
        Sample exact compositions instead: a list such as ``["Cu2KSi"]``, or ``"all"`` for every
        reduced formula of up to ``max_formula_atoms`` atoms.
    z
        Formula units in the conventional cell, with ``formulas``; by default, in each group, the
        smallest number for which the atoms fit.
    model
        Says what is common; a name, or a model.

    Raises
    ------
    InputError
        For options that contradict each other, unknown elements or groups, or an empty space.
    """

    def __init__(
        self,
        elements: Sequence[str] | None = None,
        space_groups: Groups | None = None,
        *,
        max_sites: int | None = None,
        formulas: Sequence[str] | Literal["all"] | None = None,
        z: int | Sequence[int] | None = None,
        max_formula_atoms: int | None = None,
        model: CrystalModel | str = "small",
    ) -> None:
        listed = formulas is not None and formulas != "all"
        compositions = [parse_formula(name) for name in formulas or ()] if listed else []
        self.elements = _elements(elements, formulas, compositions)
        self.groups = parse_groups("common" if space_groups is None else space_groups, model)
        self.named = () if space_groups is None else self.groups
        """Groups that were named; empty without any."""
        self.sites_named = max_sites is not None
        self.all_formulas = formulas == "all"
        self.max_formula_atoms = max_formula_atoms
        if formulas is None:
            _refuse("z", z, "--formula")
            _refuse("max_formula_atoms", max_formula_atoms, "all formulas")
            self.max_sites: int | None = _max_sites(max_sites, len(self.elements))
            self.formulas: tuple[str, ...] | None = None
            self.z: tuple[int, ...] | None = None
        else:
            if max_sites is not None:
                raise InputError(
                    "max_sites and formulas contradict each other: a formula says how many atoms "
                    "there are; give one of the two"
                )
            if listed:
                _refuse("max_formula_atoms", max_formula_atoms, "all formulas")
            self.max_sites = None
            self.z = _units(z)
            self.formulas = (
                tuple(formulas)
                if listed
                else _all_formulas(
                    self.elements,
                    FORMULA_ATOMS if max_formula_atoms is None else max_formula_atoms,
                )
            )
        if self.max_sites is not None:
            _check_size(len(self.groups) * comb(self.max_sites, len(self.elements)))
        else:
            _check_size(len(self.groups) * len(self.formulas or ()) * len(self.z or (1,)))
            if not len(self):
                raise RequestError(self._why_empty())

    def __len__(self) -> int:
        if self.max_sites is not None:
            return len(self.groups) * comb(self.max_sites, len(self.elements))
        return len(self._exact)

    def __iter__(self) -> Iterator[Request]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, k: int) -> Request:
        """Request ``k``, made anew."""
        if not 0 <= k < len(self):
            raise IndexError(k)
        if self.max_sites is not None:
            group, counts = divmod(k, len(self._counts))
            sites = dict(zip(self.elements, self._counts[counts], strict=True))
            return Request(SpaceGroup(self.groups[group]), sites)
        number, formula, units = self._exact[k]
        return Request(SpaceGroup(number), formula=formula, z=units)

    def __repr__(self) -> str:
        return f"SearchSpace({'-'.join(self.elements)}, {len(self)} requests)"

    def describe(self) -> dict[str, object]:
        """What defines the space, as plain values; equal for equal spaces."""
        return {
            "elements": ",".join(self.elements),
            "groups": compact(self.groups),
            "max_sites": self.max_sites,
            "formulas": None if self.formulas is None else ",".join(self.formulas),
            "z": None if self.formulas is None else ",".join(map(str, self.z or ("smallest",))),
        }

    def schedule(self, seed: int) -> NDArray[np.int64]:
        """(N,) the order in which requests take turns: candidate k asks for ``schedule[k % N]``.

        Groups take turns, in an order drawn from the seed; within a group its requests take turns,
        in an order drawn too. So a budget smaller than the space is spread evenly over the groups.
        """
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0x5EA5C4,)))
        group = self._group_of
        turns = rng.permutation(len(self))
        place = rng.permutation(len(self.groups))[group]
        # the how-manieth of its group each request is, in the drawn order
        by_group = turns[np.argsort(group[turns], kind="stable")]
        first = np.searchsorted(group[by_group], np.arange(len(self.groups)))
        round_of = np.empty(len(self), dtype=np.int64)
        round_of[by_group] = np.arange(len(self)) - first[group[by_group]]
        return np.lexsort((place, round_of))

    # -- inside

    @cached_property
    def _counts(self) -> list[tuple[int, ...]]:
        """Sites of each element: compositions of 1 to ``max_sites`` into that many parts."""
        n, most = len(self.elements), self.max_sites or 0
        return [counts for total in range(n, most + 1) for counts in _parts(total, n)]

    @cached_property
    def _exact(self) -> list[tuple[int, str, int]]:
        """(group, formula, Z) that some assignment of Wyckoff positions fits."""
        for most in MAX_ATOMS:
            found = []
            for number in self.groups:
                for formula in self.formulas or ():
                    counts = list(parse_formula(formula).values())
                    units = self._fitting(number, counts, most)
                    found += [(number, formula, n) for n in units]
            if found:
                break
        return found

    def _fitting(self, number: int, counts: list[int], atoms: int) -> list[int]:
        if self.z is not None:
            return [units for units in self.z if fits(number, [units * n for n in counts])]
        most = atoms * len(SpaceGroup(number).centring) // sum(counts)
        first = first_z(number, counts, min(most, MAX_Z))
        return [] if first is None else [first]

    @cached_property
    def _group_of(self) -> NDArray[np.int64]:
        """(N,) index of each request's group."""
        if self.max_sites is not None:
            return np.repeat(np.arange(len(self.groups)), len(self._counts))
        place = {number: k for k, number in enumerate(self.groups)}
        return np.array([place[number] for number, _, _ in self._exact], dtype=np.int64)

    def _why_empty(self) -> str:
        formulas = self.formulas or ()
        if len(formulas) == 1 and len(self.groups) == 1 and self.z and len(self.z) == 1:
            return explain(self.groups[0], parse_formula(formulas[0]), self.z[0])
        units = f"Z = {', '.join(map(str, self.z))}" if self.z else f"up to {MAX_ATOMS[-1]} atoms"
        return (
            f"none of {len(formulas)} formulas fits any of {len(self.groups)} groups with "
            f"{units}; allow more groups or other numbers of formula units (--z)"
        )


def _elements(
    elements: Sequence[str] | None, formulas: Any, compositions: Sequence[dict[str, int]]
) -> tuple[str, ...]:
    if isinstance(elements, str):
        elements = [part.strip() for part in elements.split(",") if part.strip()]
    if elements is None and compositions:
        elements = list(compositions[0])
    if not elements:
        raise RequestError("no elements were given: give symbols such as Cu,Si,K")
    for symbol in elements:
        atomic_number(symbol)
    twice = next((s for k, s in enumerate(elements) if s in elements[:k]), None)
    if twice:
        raise RequestError(f"element {twice} is given twice; name each element once")
    for name, counts in zip(formulas or (), compositions, strict=False):
        if set(counts) != set(elements):
            raise InputError(
                f"formula {name} and elements {','.join(elements)} contradict each other: every "
                "crystal of a search has all of its elements and no others"
            )
    return tuple(elements)


def _max_sites(asked: int | None, elements: int) -> int:
    most = max(4, elements + 1) if asked is None else asked
    if most < elements:
        raise RequestError(
            f"max_sites is {most}, fewer than the {elements} elements, of which each needs a site"
        )
    if most > MAX_SITES:
        raise RequestError(f"max_sites is {most}; the most is {MAX_SITES}")
    return most


def _units(z: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if z is None:
        return None
    units = tuple(dict.fromkeys([z] if isinstance(z, int) else z))
    wrong = [n for n in units if not 1 <= n <= 1000]
    if wrong or not units:
        raise RequestError(f"z is {wrong[0] if wrong else 'empty'}; give 1 or more formula units")
    return units


def _refuse(name: str, value: object, needs: str) -> None:
    if value is not None:
        raise InputError(f"{name} is of use with {needs} only; leave it out, or give both")


def _all_formulas(elements: Sequence[str], most: int) -> tuple[str, ...]:
    n = len(elements)
    if most < n:
        raise RequestError(
            f"formulas of up to {most} atoms cannot hold {n} elements; allow {n} or more"
        )
    _check_size(comb(min(most, 1000), n))
    return tuple(
        "".join(f"{s}{c if c > 1 else ''}" for s, c in zip(elements, counts, strict=True))
        for total in range(n, most + 1)
        for counts in _parts(total, n)
        if gcd(*counts) == 1
    )


def _parts(total: int, n: int) -> list[tuple[int, ...]]:
    """``total`` as sums of ``n`` positive whole numbers, the first one largest first."""
    cuts = combinations(range(1, total), n - 1)
    sums = [tuple(b - a for a, b in zip((0, *cut), (*cut, total), strict=True)) for cut in cuts]
    return sums[::-1]


def _check_size(requests: int) -> None:
    if requests > LARGEST:
        raise RequestError(
            f"the space has {requests:,} requests; the most is {LARGEST:,}: give fewer space "
            "groups, sites or formulas"
        )
