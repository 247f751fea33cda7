"""Training crystals of a ranker by template, and requests as arrays that refer to them.

A template is an assignment of Wyckoff positions without its elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.errors import InputError
from langevin_xtal.model.prior import element_rank
from langevin_xtal.symmetry.assignments import Assignment, canonical_all
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.symmetry.wyckoff import table_start, wyckoff_positions

ELEMENTS = 119
ORDERS = 720
"""Ways to match elements with a remembered crystal that are looked at."""

MEMORY_TYPES = {
    "groups": torch.uint8,
    "roles": torch.int32,
    "positions": torch.uint8,
    "templates": torch.int32,
    "elements": torch.uint8,
}
"""How the arrays of a memory are written."""

Template = tuple[tuple[int, ...], ...]
"""An assignment without its elements: the first of all permutations, elements sorted."""


def template_of(number: int, assignment: Assignment) -> tuple[Template, tuple[int, ...]]:
    """The template of an assignment, and the place of its elements (the template's roles)."""
    best: tuple[Template, tuple[int, ...]] | None = None
    for names in position_permutations(number).tolist():
        image = [tuple(sorted([names[w] for w in element])) for element in assignment]
        order = sorted(range(len(image)), key=image.__getitem__)
        found = tuple(image[k] for k in order), tuple(order)
        if best is None or found[0] < best[0]:
            best = found
    assert best is not None
    return best


@dataclass(frozen=True)
class Memory:
    """Training crystals by template."""

    groups: NDArray[np.int64]  #: (T,) group of each template, in ascending order
    roles: NDArray[np.int64]  #: (R, 2) template and role of every position that follows
    positions: NDArray[np.int64]  #: (R,) indices within the group
    templates: NDArray[np.int64]  #: (C,) template of each crystal, in ascending order
    elements: NDArray[np.int64]  #: (C, K) atomic number in each role, 0 for padding

    def __post_init__(self) -> None:
        templates, crystals = len(self.groups), len(self.templates)
        template, role = self.roles.reshape(-1, 2).T
        inside = (
            self.roles.shape == (len(self.positions), 2)
            and self.elements.ndim == 2
            and len(self.elements) == crystals
            and _within(self.groups, 1, 231)
            and _within(template, 0, templates)
            and _within(self.templates, 0, templates)
            and _within(self.elements, 0, ELEMENTS)
            and _within(role, 0, self.elements.shape[1])
        )
        new, step = np.diff(template, prepend=-1), np.diff(role, prepend=0)
        counted = (
            bool(np.isin(new, (0, 1)).all())  # every template follows the one before,
            and new.sum() == templates
            and not role[new > 0].any()  # and its roles are counted from 0
            and bool(np.isin(step[new == 0], (0, 1)).all())
        )
        if not inside or not counted or (np.diff(self.templates) < 0).any():
            raise InputError("its memory of crystals is damaged")
        start = table_start()
        known = np.diff(start)[self.groups[template] - 1]
        if (self.positions < 0).any() or (self.positions >= known).any():
            raise InputError("its memory names Wyckoff positions that do not exist")

    def of_request(self, number: int, counts: Sequence[int]) -> list[tuple[int, Template]]:
        """Templates of a group whose roles hold these atoms, in any order, and their rows."""
        if number not in self._by_group:  # one group at a time: a command seldom needs them all
            found: dict[tuple[int, ...], list[tuple[int, Template]]] = {}
            for index in np.flatnonzero(self.groups == number).tolist():
                template = self._template(index)
                found.setdefault(tuple(sorted(_atoms(number, template))), []).append(
                    (index, template)
                )
            self._by_group[number] = found
        return self._by_group[number].get(tuple(sorted(counts)), [])

    @cached_property
    def _by_group(self) -> dict[int, dict[tuple[int, ...], list[tuple[int, Template]]]]:
        """By group and sorted counts of atoms, as far as they were asked for."""
        return {}

    @cached_property
    def start(self) -> NDArray[np.int64]:
        """(T + 1,) offsets of each template's crystals."""
        return np.searchsorted(self.templates, np.arange(len(self.groups) + 1))

    @cached_property
    def _first_role(self) -> NDArray[np.int64]:
        """(T + 1,) offsets of each template's rows in ``roles``."""
        return np.searchsorted(self.roles[:, 0], np.arange(len(self.groups) + 1))

    def _template(self, index: int) -> Template:
        rows = slice(self._first_role[index], self._first_role[index + 1])
        roles: list[list[int]] = []
        for role, position in zip(
            self.roles[rows, 1].tolist(), self.positions[rows].tolist(), strict=True
        ):
            if role == len(roles):
                roles.append([])
            roles[role].append(position)
        return tuple(map(tuple, roles))


def remember(
    crystals: Sequence[tuple[int, Sequence[int], Assignment]],
) -> tuple[Memory, list[int]]:
    """A memory of crystals, each a group, atomic numbers and an assignment.

    Returns
    -------
    tuple
        The memory, and the row in it of every crystal.
    """
    keys = []
    for number, elements, assignment in crystals:
        template, order = template_of(number, assignment)
        keys.append(((number, template), tuple(int(elements[k]) for k in order)))
    templates = sorted({key for key, _ in keys})
    index = {key: t for t, key in enumerate(templates)}
    rows = sorted(range(len(keys)), key=lambda k: index[keys[k][0]])
    most = max((len(template) for _, template in templates), default=1)
    place = [0] * len(keys)
    elements_of = np.zeros((len(keys), most), dtype=np.int64)
    for row, k in enumerate(rows):
        elements_of[row, : len(keys[k][1])] = keys[k][1]
        place[k] = row
    roles = [
        (t, r, w)
        for t, (_, template) in enumerate(templates)
        for r, role in enumerate(template)
        for w in role
    ]
    flat = np.array(roles, dtype=np.int64).reshape(-1, 3)
    memory = Memory(
        groups=np.array([number for number, _ in templates], dtype=np.int64),
        roles=flat[:, :2],
        positions=flat[:, 2],
        templates=np.array([index[keys[k][0]] for k in rows], dtype=np.int64),
        elements=elements_of,
    )
    return memory, place


class Encoded(NamedTuple):
    """One request and its assignments as arrays; element k is the k-th by Mendeleev number.

    A unit is an element with the positions it takes; assignments share units.
    """

    group: int
    elements: NDArray[np.int64]  #: (E,) atomic numbers
    counts: NDArray[np.int64]  #: (E,) atoms in the conventional cell
    placed: NDArray[np.int64]  #: (P, 2) element and position row of every placement that occurs
    unit_element: NDArray[np.int64]  #: (U,) element of every unit
    unit_of: NDArray[np.int64]  #: (S,) unit of every site
    site_of: NDArray[np.int64]  #: (S,) placement of every site
    units: NDArray[np.int64]  #: (N, E) units of every assignment
    match: NDArray[np.int64]  #: (M, 2) assignment and template of every match in the memory
    roles: NDArray[np.int64]  #: (M, K) atomic number that a match has in each role, 0 for padding


def encode(
    memory: Memory,
    number: int,
    elements: Sequence[int],
    counts: Sequence[int],
    assignments: Sequence[Assignment],
) -> Encoded:
    """Arrays of a request whose elements are in the order of :func:`mendeleev_order`."""
    first = int(table_start()[number - 1])
    placements: dict[tuple[int, int], int] = {}
    units: dict[tuple[int, tuple[int, ...]], int] = {}
    unit_element, unit_of, site_of = [], [], []
    rows = np.empty((len(assignments), len(elements)), dtype=np.int64)
    for n, assignment in enumerate(assignments):
        for e, positions in enumerate(assignment):
            key = e, positions
            if key not in units:
                units[key] = len(units)
                unit_element.append(e)
                for w in positions:
                    unit_of.append(units[key])
                    site_of.append(placements.setdefault((e, w), len(placements)))
            rows[n, e] = units[key]
    match, roles = _matches(memory, number, elements, counts, assignments)
    placed = np.array(list(placements), dtype=np.int64).reshape(-1, 2)
    return Encoded(
        number,
        np.array(elements, dtype=np.int64),
        np.array(counts, dtype=np.int64),
        placed + np.array([0, first]),
        np.array(unit_element, dtype=np.int64),
        np.array(unit_of, dtype=np.int64),
        np.array(site_of, dtype=np.int64),
        rows,
        match,
        roles,
    )


def _matches(
    memory: Memory,
    number: int,
    elements: Sequence[int],
    counts: Sequence[int],
    assignments: Sequence[Assignment],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    index = {a: n for n, a in enumerate(assignments)}
    match, roles = [], []
    for assignment, template, order in remembered(memory, number, counts):
        if assignment in index:
            match.append((index[assignment], template))
            roles.append([elements[e] for e in order])
    padded = np.zeros((len(roles), memory.elements.shape[1]), dtype=np.int64)
    for k, row in enumerate(roles):
        padded[k, : len(row)] = row
    return np.array(match, dtype=np.int64).reshape(-1, 2), padded


def remembered(
    memory: Memory, number: int, counts: Sequence[int]
) -> list[tuple[Assignment, int, tuple[int, ...]]]:
    """Assignments of a request by template and by which element takes which role."""
    known: list[tuple[Assignment, int, tuple[int, ...]]] = []
    for index, template in memory.of_request(number, counts):
        atoms = _atoms(number, template)
        orders = list(islice(_orders(atoms, counts), ORDERS))
        placed = []
        for order in orders:
            mine: list[tuple[int, ...]] = [()] * len(template)
            for role, element in enumerate(order):
                mine[element] = template[role]
            placed.append(tuple(mine))
        names = canonical_all(number, placed)
        known += [(a, index, order) for a, order in zip(names, orders, strict=True)]
    return known


def _orders(atoms: Sequence[int], counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Elements in every order in which their counts are the atoms of the roles."""
    if not atoms:
        yield ()
    for element, count in enumerate(counts):
        if atoms and count == atoms[0]:
            used = [*counts[:element], -1, *counts[element + 1 :]]
            for rest in _orders(atoms[1:], used):
                yield (element, *rest)


def _atoms(number: int, template: Template) -> tuple[int, ...]:
    positions = wyckoff_positions(number)
    return tuple(sum(positions[w].multiplicity for w in role) for role in template)


def _within(values: NDArray[np.int64], low: int, high: int) -> bool:
    return bool(((values >= low) & (values < high)).all())


def mendeleev_order(elements: Sequence[int]) -> list[int]:
    """Places of the elements by Mendeleev number."""
    return np.argsort(element_rank()[list(elements)], kind="stable").tolist()
