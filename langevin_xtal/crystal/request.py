"""What to sample: elements, sites or a formula, with a space group or without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.formula import whole_counts
from langevin_xtal.errors import RequestError
from langevin_xtal.symmetry import SpaceGroup, lattice_coordinates
from langevin_xtal.symmetry.assignments import Assignment
from langevin_xtal.symmetry.explanations import explain
from langevin_xtal.symmetry.fitting import fits
from langevin_xtal.symmetry.wyckoff import position_index, wyckoff_positions

MAX_SITES = 64
"""Sites of one request."""

MAX_ATOMS = 512
"""Atoms of a formula in the conventional cell."""

CENTRINGS = (1, 2, 3, 4)
"""Lattice points of a conventional cell: P, A C or I, R, F."""

MAX_UNITS = 48
"""Formula units tried where Z is not given."""


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """A crystal from which chains start, with noise added to its positions and cell."""

    positions: tuple[int, ...]  #: (A,) Wyckoff position of each site, index within the group
    frac: NDArray[np.float64]  #: (A, 3) sites, exactly on those positions
    lattice: NDArray[np.float64]  #: (3, 3) rows of the conventional cell [Å]
    noise: float  #: of the positions at the start [Å]; the cell's noise goes with it


@dataclass(frozen=True)
class Choice:
    """How a setting was chosen for a request that left it open."""

    probability: float  #: of the whole setting, given the request
    group_probability: float  #: of stoichiometry, cell content and space group
    assignment_probability: float  #: of the Wyckoff positions, given the others
    rank: int  #: place among the settings of the request, 0 for the likeliest
    draw: int  #: samples of this setting before this one


@dataclass(frozen=True)
class Request:
    """Elements, sites or a formula, and a space group.

    A request that names no space group, or elements without a formula, is open: the model chooses
    the rest. A request that names nothing is drawn from everything the model knows.

    Parameters
    ----------
    space_group
        Number, short symbol or :class:`~langevin_xtal.symmetry.SpaceGroup`; by default the
        model's to choose.
    sites
        Element symbol to number of sites in the asymmetric unit, e.g. ``{"Cu": 2, "Si": 1}``.
    positions
        With ``sites``, optionally the Wyckoff position of each, in their order: ``"4c"``, ``"c"``,
        or its index within :func:`~langevin_xtal.symmetry.wyckoff.wyckoff_positions` of the group.
    formula
        Instead of ``sites``: the exact composition, e.g. ``"Cu2KSi"``; sites are then placed on
        Wyckoff positions whose multiplicities add up to it.
    z
        Formula units in the conventional cell; by default the fewest that fit the group, and
        without a group the model's to choose.
    atoms
        With a formula and no group, atoms in the primitive cell; by default the model's to choose.
    elements
        Instead of ``sites`` and ``formula``: elements that all appear and no others.
    groups
        With no ``space_group``, numbers of those that the model may choose; by default all.
    assignment
        With a formula and a group, the Wyckoff positions of each element's sites, as for
        ``positions``; elements in the order of the formula.
    choice
        How the model came to this request, where it answers an open one.
    lattice
        Lengths [Å] and angles [degrees] of the conventional cell to keep, (a, b, c) or
        (a, b, c, alpha, beta, gamma); by default the cell is sampled.
    fixed
        Sites to keep where they are, as (symbol, (x, y, z)); they count among the sites or the
        formula.
    start
        A crystal to start from, made by ``langevin_xtal.request_from_structure``.

    Raises
    ------
    SymmetryError
        For a group, or a Wyckoff position of it, that does not exist.
    RequestError
        For unknown elements, counts below 1, no sites or too many, a formula that does not fit the
        group (the message says what would), a cell at odds with the group.
    """

    space_group: SpaceGroup
    """The group; not there (None) where the model chooses it."""
    sites: Mapping[str, int]
    positions: tuple[int, ...] | None
    formula: str | None
    z: int | None
    atoms: int | None
    groups: tuple[int, ...]
    assignment: Assignment | None
    choice: Choice | None = field(compare=False)
    chemical_system: tuple[str, ...] = field(repr=False)
    """Elements asked for without a stoichiometry; empty otherwise."""
    lattice: tuple[float, ...] | None
    fixed: tuple[tuple[str, tuple[float, float, float]], ...]
    start: StartingPoint | None
    counts: Mapping[str, int] = field(repr=False)
    """Atoms of each element in the conventional cell; empty without a formula and a group."""
    units: Mapping[str, int] = field(repr=False)
    """Atoms of each element in the formula; empty without one."""
    numbers: tuple[int, ...] = field(init=False, repr=False)
    """Atomic number of each site; empty with a formula, whose sites are not known yet."""

    def __init__(
        self,
        space_group: SpaceGroup | int | str | None = None,
        sites: Mapping[str, int] | None = None,
        *,
        positions: Sequence[int | str] | None = None,
        formula: str | None = None,
        z: int | None = None,
        atoms: int | None = None,
        elements: Sequence[str] | None = None,
        groups: Sequence[int] = (),
        assignment: Sequence[Sequence[int | str]] | None = None,
        choice: Choice | None = None,
        lattice: Sequence[float] | None = None,
        fixed: Sequence[tuple[str, Sequence[float]]] = (),
        start: StartingPoint | None = None,
    ) -> None:
        if space_group is not None and not isinstance(space_group, SpaceGroup):
            space_group = SpaceGroup.parse(space_group)
        ways = {"sites": bool(sites), "a formula": formula is not None,
                "elements": elements is not None}  # fmt: skip
        given = [name for name, there in ways.items() if there]
        if len(given) > 1:
            raise RequestError(f"both {given[0]} and {given[1]} were given; give one of them")
        units: dict[str, int] = {}
        counts: dict[str, int] = {}
        numbers: tuple[int, ...] = ()
        if formula is not None:
            units = parse_formula(formula)
            if space_group is not None:
                if atoms is not None:
                    z = _units_of_atoms(space_group, formula, units, atoms, z)
                z = _formula_units(space_group, units, z)
                counts = {symbol: z * count for symbol, count in units.items()}
                _check_size(formula, z, counts)
            else:
                _check_open(formula, units, z, atoms)
        elif z is not None:
            raise RequestError("z counts formula units: give a formula with it")
        elif atoms is not None:
            raise RequestError("atoms counts those of a formula's primitive cell: give a formula")
        elif elements is not None:
            elements = _checked_elements(elements)
        elif space_group is not None or sites is not None:
            numbers = _site_numbers(sites)
        placed = (
            None if assignment is None else _checked_assignment(space_group, counts, assignment)
        )
        is_open = space_group is None or elements is not None
        if space_group is None and numbers:
            raise RequestError(
                "sites are placed in a space group: name it, or give a formula or elements"
            )
        if is_open and (positions is not None or fixed or start is not None):
            raise RequestError(
                "Wyckoff positions, fixed sites and starting crystals belong to a space group: "
                "name it, with sites or a formula"
            )
        if lattice is not None and space_group is None:
            raise RequestError("a cell belongs to a space group: name it")
        for number in groups:
            SpaceGroup(number)
        if groups and space_group is not None:
            raise RequestError("both a space group and groups to choose from were given")
        values = {
            "space_group": space_group,
            "sites": dict(sites or {}),
            "positions": (
                None
                if positions is None or space_group is None
                else _checked_positions(space_group, positions, len(numbers))
            ),
            "formula": formula,
            "z": z,
            "atoms": atoms,
            "groups": tuple(sorted(set(groups))),
            "assignment": placed,
            "choice": choice,
            "chemical_system": tuple(elements or ()),
            "lattice": (
                None
                if lattice is None or space_group is None
                else _checked_cell(space_group, lattice)
            ),
            "fixed": tuple((symbol, _point(symbol, x)) for symbol, x in fixed),
            "start": start,
            "counts": counts,
            "units": units,
            "numbers": numbers,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if fixed and (positions is not None or start is not None):
            raise RequestError(
                "fixed sites were given along with positions or a starting crystal; give one"
            )
        for symbol, _ in self.fixed:
            if symbol not in self.elements:
                raise RequestError(f"a fixed site holds {symbol}, which the request does not have")

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols in the order asked for."""
        return tuple(self.sites or self.units) or self.chemical_system

    @property
    def is_open(self) -> bool:
        """Whether the model has to choose the group or the stoichiometry."""
        return self.space_group is None or bool(self.chemical_system)

    @property
    def lacks_assignment(self) -> bool:
        """Whether the model has to choose the Wyckoff positions of a formula in a group."""
        return bool(self.counts) and self.assignment is None and not self.fixed

    @property
    def leaves_choice(self) -> bool:
        """Whether its samples are spread over settings: it is open, or lacks an assignment."""
        return self.is_open or self.lacks_assignment

    @property
    def is_empty(self) -> bool:
        """Whether nothing is named but, perhaps, the groups that may be chosen."""
        return self.space_group is None and not self.elements

    def __str__(self) -> str:
        if self.formula is not None:
            text = self.formula
            if self.z is not None:
                text += f", Z = {self.z}"
            if self.atoms is not None and self.space_group is None:
                text += f", {self.atoms} atoms in the primitive cell"
            text += "," if text != self.formula else ""
        elif self.chemical_system:
            text = ", ".join(self.chemical_system)
        elif self.sites:
            text = ",".join(f"{symbol}:{count}" for symbol, count in self.sites.items())
        else:
            text = "any elements"
        if self.space_group is not None:
            return f"{text} in {self.space_group}"
        some = f"one of {len(self.groups)} space groups" if self.groups else "any space group"
        return f"{text} in {some}"

    def __hash__(self) -> int:
        return hash((self.space_group, tuple(self.sites.items()), self.formula, self.z,
                     self.atoms, self.chemical_system, self.groups, self.assignment))  # fmt: skip


def parse_formula(formula: str) -> dict[str, int]:
    """Element symbols and counts of a formula such as ``Cu2KSi``.

    Raises
    ------
    RequestError
        For text that is no such formula, unknown elements, counts of zero.
    """
    counts = whole_counts(formula)
    for symbol, number in counts.items():
        if not 0 < number <= MAX_ATOMS:
            raise RequestError(
                f"formula {formula!r} has {number} {symbol}; give 1 to {MAX_ATOMS} of each element"
            )
    return counts


def _formula_units(group: SpaceGroup, units: Mapping[str, int], z: int | None) -> int:
    per_unit = list(units.values())
    if z is None:
        for possible in range(1, MAX_UNITS + 1):
            if fits(group.number, [possible * n for n in per_unit]):
                return possible
        raise RequestError(explain(group.number, units, 1))
    if not isinstance(z, int) or isinstance(z, bool) or z < 1:
        raise RequestError(
            f"z is {z!r}; give the formula units in the conventional cell, 1 or more"
        )
    if sum(per_unit) * z > MAX_ATOMS:
        return z  # refused by the caller
    if not fits(group.number, [z * n for n in per_unit]):
        raise RequestError(explain(group.number, units, z))
    return z


def _check_size(formula: str, z: int, counts: Mapping[str, int]) -> None:
    total = sum(counts.values())
    if total > MAX_ATOMS:
        raise RequestError(
            f"{formula} with Z = {z} has {total} atoms in the conventional cell; the most is "
            f"{MAX_ATOMS}"
        )


def _check_open(formula: str, units: Mapping[str, int], z: int | None, atoms: int | None) -> None:
    """Refuse a formula without a group whose z or atoms cannot be."""
    per_unit = sum(units.values())
    if per_unit > MAX_ATOMS:
        _check_size(formula, 1, units)
    if z is not None and (not isinstance(z, int) or isinstance(z, bool) or z < 1):
        raise RequestError(
            f"z is {z!r}; give the formula units in the conventional cell, 1 or more"
        )
    if z is not None:
        _check_size(formula, z, {symbol: z * n for symbol, n in units.items()})
    if atoms is None:
        return
    if not isinstance(atoms, int) or isinstance(atoms, bool) or not 1 <= atoms <= MAX_ATOMS:
        raise RequestError(
            f"atoms is {atoms!r}; give those of the primitive cell, 1 to {MAX_ATOMS}"
        )
    reduced = per_unit // math.gcd(*units.values())
    if atoms % reduced:
        raise RequestError(
            f"{formula} has {reduced} atoms in a formula unit, so {atoms} atoms in the primitive "
            f"cell cannot be; give a multiple of {reduced}"
        )
    if z is not None and not any(z * per_unit == atoms * c for c in CENTRINGS):
        possible = ", ".join(
            str(c * atoms // per_unit) for c in CENTRINGS if not c * atoms % per_unit
        )
        raise RequestError(
            f"z = {z} contradicts {atoms} atoms in the primitive cell of {formula}: its "
            f"conventional cell then has Z = {possible or 'none'}"
        )


def _units_of_atoms(
    group: SpaceGroup, formula: str, units: Mapping[str, int], atoms: int, z: int | None
) -> int:
    """Z of the conventional cell whose primitive cell has so many atoms."""
    _check_open(formula, units, z, atoms)
    per_unit, total = sum(units.values()), atoms * len(group.centring)
    if total % per_unit or (z is not None and z * per_unit != total):
        raise RequestError(
            f"{formula} with {atoms} atoms in the primitive cell has {total} in the conventional "
            f"cell of {group}, not {'a multiple of ' if z is None else ''}"
            f"{per_unit if z is None else z * per_unit}; leave out z or atoms"
        )
    return total // per_unit


def _checked_elements(elements: Sequence[str]) -> tuple[str, ...]:
    symbols = tuple(elements)
    if not symbols:
        raise RequestError("no elements were asked for: give at least one, for example Cu,Si,K")
    for symbol in symbols:
        atomic_number(symbol)
    if len(set(symbols)) < len(symbols):
        twice = next(s for s in symbols if symbols.count(s) > 1)
        raise RequestError(f"{twice} was given twice; give each element once")
    return symbols


def _checked_assignment(
    group: SpaceGroup | None, counts: Mapping[str, int], named: Sequence[Sequence[int | str]]
) -> Assignment:
    """Positions whose multiplicities add up to the formula."""
    if group is None or not counts:
        raise RequestError("an assignment places a formula in a space group: give both")
    table = wyckoff_positions(group.number)
    assignment = tuple(tuple(_index(group, w) for w in own) for own in named)
    if len(assignment) != len(counts):
        raise RequestError(
            f"the assignment places {len(assignment)} elements and the formula has {len(counts)}"
        )
    used: set[int] = set()
    for (symbol, count), own in zip(counts.items(), assignment, strict=True):
        for w in own:
            if not 0 <= w < len(table):
                raise RequestError(
                    f"group {group} has positions 0 to {len(table) - 1}; {w} was given"
                )
            if w in used and not table[w].freedom:
                raise RequestError(
                    f"position {table[w].name} of group {group} is a point: it holds one site"
                )
            used.add(w)
        placed = sum(table[w].multiplicity for w in own)
        if placed != count:
            raise RequestError(
                f"the assignment places {placed} {symbol} in the conventional cell; the formula "
                f"has {count}"
            )
    return assignment


def _site_numbers(sites: Mapping[str, int] | None) -> tuple[int, ...]:
    if not sites:
        raise RequestError("no sites were asked for: give at least one, for example Cu:2,Si:1")
    numbers: list[int] = []
    for symbol, count in sites.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise RequestError(f"{symbol}: {count!r} sites were asked for; give 1 or more")
        numbers += [atomic_number(symbol)] * count
    if len(numbers) > MAX_SITES:
        raise RequestError(f"{len(numbers)} sites were asked for; the most is {MAX_SITES}")
    return tuple(numbers)


def _index(group: SpaceGroup, position: int | str) -> int:
    """Of a Wyckoff position given by name or by index."""
    return position_index(group.number, position) if isinstance(position, str) else int(position)


def _checked_positions(
    group: SpaceGroup, named: Sequence[int | str], sites: int
) -> tuple[int, ...]:
    table = wyckoff_positions(group.number)
    positions = [_index(group, w) for w in named]
    if len(positions) != sites:
        raise RequestError(
            f"{len(positions)} positions were given for {sites} sites; give as many"
        )
    for w in positions:
        if not 0 <= w < len(table):
            raise RequestError(f"group {group} has positions 0 to {len(table) - 1}; {w} was given")
        if not table[w].freedom and positions.count(w) > 1:
            raise RequestError(
                f"position {table[w].name} of group {group} is a point: it holds one site"
            )
    return tuple(positions)


def _point(symbol: str, x: Sequence[float]) -> tuple[float, float, float]:
    if symbol not in SYMBOLS[1:]:
        atomic_number(symbol)
    if len(x) != 3 or not all(math.isfinite(v) for v in x):
        raise RequestError(f"{symbol}: {tuple(x)} is no position; give three fractional numbers")
    return (float(x[0]), float(x[1]), float(x[2]))


def _checked_cell(group: SpaceGroup, cell: Sequence[float]) -> tuple[float, ...]:
    """(6,) lengths and angles that the group allows."""
    if len(cell) not in (3, 6) or not all(math.isfinite(v) and v > 0 for v in cell):
        raise RequestError(
            f"cell {tuple(cell)} cannot be used; give a,b,c [Å] or a,b,c,alpha,beta,gamma "
            "[Å, degrees], all positive"
        )
    gamma = 120.0 if group.crystal_system in ("trigonal", "hexagonal") else 90.0
    if len(cell) == 3:
        if group.number < 16:
            raise RequestError(
                f"group {group} is {group.crystal_system}: give its cell with angles, "
                "a,b,c,alpha,beta,gamma"
            )
        cell = (*cell, 90.0, 90.0, gamma)
    a, b, c, alpha, beta, ga = cell
    same = {"cubic": (a, b, c), "tetragonal": (a, b), "trigonal": (a, b), "hexagonal": (a, b)}
    lengths = same.get(group.crystal_system, (a,))
    angles = {"triclinic": (), "monoclinic": ((alpha, 90.0), (ga, 90.0))}.get(
        group.crystal_system, ((alpha, 90.0), (beta, 90.0), (ga, gamma))
    )
    if max(lengths) - min(lengths) > 1e-4 or any(abs(x - y) > 1e-3 for x, y in angles):
        raise RequestError(
            f"cell {a:g},{b:g},{c:g},{alpha:g},{beta:g},{ga:g} does not fit the "
            f"{group.crystal_system} group {group}; its lengths and angles must obey the symmetry"
        )
    if alpha + beta + ga >= 360 or any(
        x >= y + z for x, y, z in ((alpha, beta, ga), (beta, ga, alpha), (ga, alpha, beta))
    ):
        raise RequestError(f"angles {alpha:g}, {beta:g} and {ga:g} make no cell; change them")
    return tuple(float(v) for v in cell)


def cell_coordinates(cell: Sequence[float]) -> NDArray[np.float64]:
    """(6,) lattice coordinates of lengths [Å] and angles [degrees]."""
    a, b, c = cell[:3]
    alpha, beta, gamma = np.cos(np.radians(cell[3:]))
    sine = math.sqrt(1 - gamma**2)
    y = (alpha - beta * gamma) / sine
    rows = np.array(
        [[a, 0, 0], [b * gamma, b * sine, 0], [c * beta, c * y, c * math.sqrt(1 - beta**2 - y**2)]]
    )
    return lattice_coordinates(rows)
