"""How the candidates of a campaign are spread over what may be asked for.

Candidate k of a campaign asks for ``allocation.request(k)``. That depends on the space, the model
and the seed alone, not on how many candidates are asked for: a larger budget, a continued run and
a second process ask for the same, each candidate by its index.

:class:`Even`
    Requests of the space take turns, groups first.
:class:`Likely`
    Most candidates go where the model's distribution over settings (stoichiometry, cell content,
    space group, Wyckoff positions) says that crystals are, in the order of
    :class:`~langevin_xtal.sampling.spread.Spread`; a share is spread evenly all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Protocol

import torch

from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import InputError
from langevin_xtal.model.groups import compact
from langevin_xtal.sampling.spread import Spread, SpreadOptions
from langevin_xtal.search.space import FORMULA_ATOMS, SearchSpace

if TYPE_CHECKING:
    from langevin_xtal.model.checkpoint import CrystalModel

EXPLORE = 0.2
"""Share of the candidates that are spread evenly, where the others go to likely settings."""
SAMPLES = 1000
"""Candidates of a campaign that goes to likely settings, where no number is given."""
SAMPLES_PER_REQUEST = 60
"""Candidates for each request of an even spread, where no number is given."""


class Allocation(Protocol):
    """Says what each candidate asks for."""

    def request(self, index: int) -> Request:
        """What candidate ``index`` asks for."""
        ...

    def describe(self) -> dict[str, object]:
        """What defines the allocation beside its space and seed, as plain values."""
        ...


class Even:
    """Requests of a space in turn; see :meth:`SearchSpace.schedule`."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self._schedule = space.schedule(seed)

    def request(self, index: int) -> Request:
        """What candidate ``index`` asks for."""
        return self.space[int(self._schedule[index % len(self._schedule)])]

    def describe(self) -> dict[str, object]:
        """Plain values."""
        return {"allocate": "even"}


class Likely:
    """Likely settings of a chemical system or of formulas, and a share of even exploration.

    Parameters
    ----------
    space
        Its elements or formulas; groups and ``max_sites`` that were named narrow the settings,
        those it has by default do not. Of listed formulas, and numbers of formula units, each gets
        as many candidates.
    model
        With a distribution over settings.
    explore
        Share of the candidates that is spread evenly over the space.
    subsystems
        Share of the others that goes to crystals with some of the elements only, two or more; each
        such subsystem gets as many.
    max_atoms
        In the conventional cell.

    Raises
    ------
    InputError
        For shares out of range.
    """

    def __init__(
        self,
        space: SearchSpace,
        model: CrystalModel,
        seed: int,
        *,
        explore: float = EXPLORE,
        subsystems: float = 0.0,
        max_atoms: int | None = None,
    ) -> None:
        check_share("explore", explore)
        check_share("subsystems", subsystems)
        self.space, self.model, self.seed = space, model, seed
        self.explore, self.subsystems = _exact(explore), _exact(subsystems)
        self.options = SpreadOptions(
            most_atoms=max_atoms,
            most_sites=space.max_sites if space.sites_named else None,
            most_formula_atoms=(
                (space.max_formula_atoms or FORMULA_ATOMS) if space.all_formulas else None
            ),
        )

    def request(self, index: int) -> Request:
        """What candidate ``index`` asks for; with how its setting was chosen, where it was.

        Raises
        ------
        RequestError
            When nothing fits.
        """
        exploring, others = _split(index, self.explore)
        if exploring is not None:
            return self._even.request(exploring)
        with _one_thread():
            part, whole = _split(others, self.subsystems if self._parts else Fraction(0))
            spreads, turn = (self._whole, whole) if part is None else (self._parts, part)
            return spreads[turn % len(spreads)][turn // len(spreads)]

    def describe(self) -> dict[str, object]:
        """Plain values."""
        return {
            "allocate": "likely",
            "explore": float(self.explore),
            "subsystems": float(self.subsystems),
            "likely_groups": compact(self.space.named) if self.space.named else "all",
            "likely_sites": self.options.most_sites,
        }

    # -- inside

    @cached_property
    def _even(self) -> Even:
        return Even(self.space, self.seed)

    @cached_property
    def _whole(self) -> list[Spread]:
        """Of everything that is searched; made when first asked for, as it takes seconds."""
        return self._spreads(self._requests())

    @cached_property
    def _parts(self) -> list[Spread]:
        """Of subsystems."""
        some = self._of_subsystems() if self.subsystems else []
        return self._spreads(some, may_be_empty=True)

    def _requests(self) -> list[Request]:
        space = self.space
        if space.formulas is None or space.all_formulas:
            return [Request(elements=space.elements, groups=space.named)]
        return [
            Request(formula=formula, z=z, groups=space.named)
            for formula in space.formulas
            for z in space.z or (None,)
        ]

    def _of_subsystems(self) -> list[Request]:
        elements = self.space.elements
        return [
            Request(elements=some, groups=self.space.named)
            for size in range(len(elements) - 1, 1, -1)
            for some in combinations(elements, size)
        ]

    def _spreads(self, requests: list[Request], may_be_empty: bool = False) -> list[Spread]:
        """Those of the requests that anything fits."""
        found, why = [], None
        for request in requests:
            try:
                spread = Spread(request, self.model, self.options)
                spread[0]
            except InputError as error:
                why = error
            else:
                found.append(spread)
        if why is not None and not found and not may_be_empty:
            raise why
        return found


def why_even(space: SearchSpace, model: CrystalModel) -> str:
    """Why a model cannot say which settings of a space are likely; empty when it can."""
    settings = model.settings
    if settings is None:
        return f"model {model.name} does not know which settings are likely"
    if space.all_formulas and space.z is not None:
        return "all formulas with given numbers of formula units have no likely ones"
    numbers = [atomic_number(symbol) for symbol in space.elements]
    unknown = settings.unknown_elements(numbers)
    if unknown:
        names = ", ".join(SYMBOLS[z] for z in unknown)
        return f"no training crystal of model {model.name} has {names}"
    if space.formulas is None or space.all_formulas:
        try:
            settings.compositions(numbers)
        except InputError:
            return f"no training crystal of model {model.name} has {len(numbers)} elements"
    return ""


def check_share(name: str, share: float) -> None:
    """Raise InputError unless a share is from 0 to 1."""
    if not 0 <= share <= 1:
        raise InputError(f"{name} is {share}; give a share from 0 to 1")


def _exact(share: float) -> Fraction:
    """So that, say, one in five is every fifth, without rounding."""
    return Fraction(share).limit_denominator(10_000)


def _split(index: int, share: Fraction) -> tuple[int | None, int]:
    """The how-manieth of the share candidate ``index`` is, or None; and the how-manieth other."""
    before = index * share.numerator // share.denominator
    after = (index + 1) * share.numerator // share.denominator
    return (before if after > before else None), index - before


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
