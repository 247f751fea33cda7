"""What to sample: elements and a space group, with sites or a formula."""

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
from langevin_xtal.symmetry.assignments import explain, fits
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

MAX_SITES = 64
"""Sites of one request."""

MAX_ATOMS = 512
"""Atoms of a formula in the conventional cell."""

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
class Request:
    """Elements, sites or a formula, and a space group.

    Parameters
    ----------
    space_group
        Number, short symbol or :class:`~langevin_xtal.symmetry.SpaceGroup`.
    sites
        Element symbol to number of sites in the asymmetric unit, e.g. ``{"Cu": 2, "Si": 1}``.
    positions
        With ``sites``, optionally the Wyckoff position of each, in their order: indices within
        :func:`~langevin_xtal.symmetry.wyckoff.wyckoff_positions` of the group.
    formula
        Instead of ``sites``: the exact composition, e.g. ``"Cu2KSi"``; sites are then placed on
        Wyckoff positions whose multiplicities add up to it.
    z
        Formula units in the conventional cell; by default the fewest that fit the group.
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
        For a group that does not exist.
    RequestError
        For unknown elements, counts below 1, no sites or too many, a formula that does not fit the
        group (the message says what would), a cell at odds with the group.
    """

    space_group: SpaceGroup
    sites: Mapping[str, int]
    positions: tuple[int, ...] | None
    formula: str | None
    z: int | None
    lattice: tuple[float, ...] | None
    fixed: tuple[tuple[str, tuple[float, float, float]], ...]
    start: StartingPoint | None
    counts: Mapping[str, int] = field(repr=False)
    """Atoms of each element in the conventional cell; empty without a formula."""
    numbers: tuple[int, ...] = field(init=False, repr=False)
    """Atomic number of each site; empty with a formula, whose sites are not known yet."""

    def __init__(
        self,
        space_group: SpaceGroup | int | str,
        sites: Mapping[str, int] | None = None,
        *,
        positions: Sequence[int] | None = None,
        formula: str | None = None,
        z: int | None = None,
        lattice: Sequence[float] | None = None,
        fixed: Sequence[tuple[str, Sequence[float]]] = (),
        start: StartingPoint | None = None,
    ) -> None:
        if not isinstance(space_group, SpaceGroup):
            space_group = SpaceGroup.parse(space_group)
        if formula is not None and sites:
            raise RequestError("both sites and a formula were given; give one of them")
        counts: dict[str, int] = {}
        if formula is not None:
            units = parse_formula(formula)
            z = _formula_units(space_group, units, z)
            counts = {symbol: z * count for symbol, count in units.items()}
            if sum(counts.values()) > MAX_ATOMS:
                raise RequestError(
                    f"{formula} with Z = {z} has {sum(counts.values())} atoms in the conventional "
                    f"cell; the most is {MAX_ATOMS}"
                )
        elif z is not None:
            raise RequestError("z counts formula units: give a formula with it")
        numbers = () if formula is not None else _site_numbers(sites)
        values = {
            "space_group": space_group,
            "sites": dict(sites or {}),
            "positions": (
                None
                if positions is None
                else _checked_positions(space_group, positions, len(numbers))
            ),
            "formula": formula,
            "z": z,
            "lattice": None if lattice is None else _checked_cell(space_group, lattice),
            "fixed": tuple((symbol, _point(symbol, x)) for symbol, x in fixed),
            "start": start,
            "counts": counts,
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
        return tuple(self.sites or self.counts)

    def __str__(self) -> str:
        if self.formula is not None:
            return f"{self.formula}, Z = {self.z}, in {self.space_group}"
        sites = ",".join(f"{symbol}:{count}" for symbol, count in self.sites.items())
        return f"{sites} in {self.space_group}"

    def __hash__(self) -> int:
        return hash((self.space_group, tuple(self.sites.items()), self.formula, self.z))


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


def _checked_positions(group: SpaceGroup, positions: Sequence[int], sites: int) -> tuple[int, ...]:
    table = wyckoff_positions(group.number)
    if len(positions) != sites:
        raise RequestError(
            f"{len(positions)} positions were given for {sites} sites; give as many"
        )
    for w in positions:
        if not 0 <= w < len(table):
            raise RequestError(f"group {group} has positions 0 to {len(table) - 1}; {w} was given")
        if not table[w].freedom and list(positions).count(w) > 1:
            raise RequestError(f"position {w} of group {group} is a point: it holds one site")
    return tuple(int(w) for w in positions)


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
