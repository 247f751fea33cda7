"""What to sample: elements, sites and a space group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.errors import RequestError
from langevin_xtal.symmetry.groups import SpaceGroup

MAX_SITES = 64
"""Sites of one request."""


@dataclass(frozen=True)
class Request:
    """Sites per element of the asymmetric unit, and a space group.

    Parameters
    ----------
    space_group
        Number, short symbol or :class:`~langevin_xtal.symmetry.SpaceGroup`.
    sites
        Element symbol to number of sites in the asymmetric unit, e.g. ``{"Cu": 2, "Si": 1}``.

    Raises
    ------
    SymmetryError
        For a group that does not exist.
    RequestError
        For unknown elements, counts below 1, no sites or too many.
    """

    space_group: SpaceGroup
    sites: Mapping[str, int]
    numbers: tuple[int, ...] = field(init=False, repr=False)  #: atomic number of each site

    def __init__(self, space_group: SpaceGroup | int | str, sites: Mapping[str, int]) -> None:
        if not isinstance(space_group, SpaceGroup):
            space_group = SpaceGroup.parse(space_group)
        if not sites:
            raise RequestError("no sites were asked for: give at least one, for example Cu:2,Si:1")
        numbers: list[int] = []
        for symbol, count in sites.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise RequestError(f"{symbol}: {count!r} sites were asked for; give 1 or more")
            numbers += [atomic_number(symbol)] * count
        if len(numbers) > MAX_SITES:
            raise RequestError(f"{len(numbers)} sites were asked for; the most is {MAX_SITES}")
        object.__setattr__(self, "space_group", space_group)
        object.__setattr__(self, "sites", dict(sites))
        object.__setattr__(self, "numbers", tuple(numbers))

    def __str__(self) -> str:
        sites = ",".join(f"{symbol}:{count}" for symbol, count in self.sites.items())
        return f"{sites} in {self.space_group}"

    def __hash__(self) -> int:
        return hash((self.space_group, tuple(self.sites.items())))
