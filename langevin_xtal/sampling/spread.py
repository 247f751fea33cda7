"""Requests that leave the setting open: which settings they have, and how samples are spread.

A request without a space group or a stoichiometry, or for a formula in a group, is answered by
requests that name everything discrete: space group, formula units, Wyckoff positions. Settings
are enumerated best first: cell contents and groups by the model's
:class:`~langevin_xtal.model.settings.SettingModel`, unless they are given, then the assignments
of each as its ranker orders them. No setting's assignments are looked at before the group itself
is likelier than everything found so far.

The first sample is the likeliest setting; each further one goes where it is likeliest to find
something new. The first draw of a setting finds its crystal with a chance that falls with the
number of free coordinates, and each further draw adds less; a setting without free coordinates is
hardly drawn twice. The order does not depend on how many samples are asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import count
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.request import CENTRINGS, MAX_ATOMS, Choice, Request
from langevin_xtal.errors import RequestError
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.settings import MOST_UNITS, Composition, SettingModel
from langevin_xtal.sampling.positions import MOST_ASSIGNMENTS, ranked_assignments
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.assignments import Assignment
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

FloatArray = NDArray[np.float64]

SUCCESS = (0.99, 0.97, 0.97, 0.96, 0.93, 0.93, 0.92, 0.92, 0.82, 0.71)
"""Chance that the first draw of the right setting finds its crystal, by free coordinates, the last
for nine and more: match rates of ``small`` on MP-20's validation split, smoothed."""
PERSISTENCE = 0.7
"""Chances differ from crystal to crystal: those of a beta distribution with this total count."""

KNOWN_SHARE = 0.3
"""Probability given to the settings that training crystals of the very composition have."""

AGREEMENT = 0.01
"""Added to the probability of a known setting when the known ones are weighed."""

SMALLEST = 1e-6
"""Probability of a cell content and group that is not looked into."""
ENUMERATED = 200
"""Assignments of one group of many that are ranked, beside those that training crystals have."""
BEAM = 32
"""Width of the search for likely assignments where there are more."""
PER_COMPOSITION = 8
"""Cell contents of a composition that are looked at, beside those of known crystals."""
UNLIKELY = 1e-3
"""Share of the likeliest cell content below which another is not looked at."""
MOST_COMPOSITIONS = 32
"""Stoichiometries of a request for elements that are looked into."""
TRIES = 100
"""Draws of :func:`de_novo` that may fit nothing."""


@dataclass(frozen=True)
class Setting:
    """Everything discrete about a crystal, and how likely it is for a request."""

    composition: Composition
    units: int  #: formula units in the primitive cell
    group: int  #: space-group number
    assignment: Assignment  #: Wyckoff positions of each element, in the composition's order
    probability: float  #: of the whole setting
    group_probability: float  #: of composition, cell content and group
    assignment_probability: float  #: of the assignment, given the others
    rank: int  #: place among the settings of the request, 0 for the likeliest

    @property
    def freedom(self) -> int:
        """Free coordinates of all sites."""
        table = wyckoff_positions(self.group)
        return sum(table[w].freedom for own in self.assignment for w in own)


@dataclass(frozen=True)
class SpreadOptions:
    """How settings are weighed."""

    known_share: float = KNOWN_SHARE
    """Share of the probability for settings that training crystals of the very composition have;
    the rest goes by crystals of other elements. 0 is for known crystals held out: training
    crystals of the composition then speak against their own settings, which a composition seldom
    has twice."""
    most_atoms: int | None = None
    """Atoms in the conventional cell."""
    most_sites: int | None = None
    """Sites in the asymmetric unit."""
    most_formula_atoms: int | None = None
    """Atoms in a formula unit, where the stoichiometry is open."""


def settings_of(
    request: Request, model: CrystalModel, options: SpreadOptions | None = None
) -> Iterator[Setting]:
    """Settings of a request that leaves a choice, likeliest first, made as they are asked for.

    Raises
    ------
    RequestError
        Where nothing fits, or the model has no distribution over settings.
    """
    search = _Search(request, model, options or SpreadOptions())
    return search.run()


class Spread:
    """Concrete requests for the samples of one that leaves a choice, in their order."""

    def __init__(
        self, request: Request, model: CrystalModel, options: SpreadOptions | None = None
    ) -> None:
        self.request = request
        self._search = _Search(request, model, options or SpreadOptions())
        self._settings = self._search.run()
        self._next: Setting | None = None
        self._heap: list[tuple[float, int, Setting, int]] = []
        self._made: list[Request] = []

    def __getitem__(self, index: int) -> Request:
        while len(self._made) <= index:
            self._made.append(self._another())
        return self._made[index]

    def settings(self) -> Iterator[Setting]:
        """All settings, likeliest first, whatever was sampled."""
        return self._search.run()

    def group_order(self) -> list[int]:
        """Space groups from the likeliest to the least likely, over all compositions."""
        share: dict[int, float] = {}
        for group in self._search.groups:
            share[group.number] = share.get(group.number, 0.0) + group.probability
        return sorted(share, key=lambda number: (-share[number], number))

    @property
    def left_out(self) -> float:
        """Probability of all settings that were not enumerated."""
        return self._search.left_out

    def _another(self) -> Request:
        if self._next is None:
            self._pull()
        while self._next is not None and (
            not self._heap or self._next.probability >= -self._heap[0][0]
        ):
            new = self._next
            gain = new.probability * _gain(new.freedom, 0)
            heapq.heappush(self._heap, (-gain, new.rank, new, 0))
            self._pull()
        if not self._heap:
            raise RequestError(f"{self.request}: no setting fits")
        # the first sample is the likeliest setting, however hard its crystal is to find
        chosen = self._heap[0] if self._made else min(self._heap, key=lambda one: one[1])
        _, rank, setting, draws = chosen
        gain = setting.probability * _gain(setting.freedom, draws + 1)
        self._heap[self._heap.index(chosen)] = (-gain, rank, setting, draws + 1)
        heapq.heapify(self._heap)
        return _concrete(self.request, setting, draws)

    def _pull(self) -> None:
        self._next = next(self._settings, None)


def settled(
    requests: Sequence[Request],
    model: CrystalModel,
    seed: int = 0,
    options: SpreadOptions | None = None,
    known: dict[Request, Spread] | None = None,
) -> list[Request]:
    """Requests with every one that leaves a choice replaced by a concrete one.

    The k-th of several equal requests gets the k-th sample of their :class:`Spread`: open ones,
    and formulas whose Wyckoff positions are the model's to choose. Requests that name nothing at
    all are drawn at random, from ``seed`` and their place in the list. Spreads made on the way are
    kept in ``known`` for further calls with this model and these options.

    Raises
    ------
    RequestError
        Where a request cannot be answered.
    """
    if not any(request.leaves_choice for request in requests):
        return list(requests)
    known = {} if known is None else known
    places: dict[Request, Iterator[int]] = {}
    result = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors gain nothing from more
    try:
        for place, request in enumerate(requests):
            if not request.leaves_choice:
                result.append(request)
            elif request.is_empty:
                result.append(de_novo(request, model, seed, place))
            else:
                if request not in known:
                    known[request] = Spread(request, model, options)
                result.append(known[request][next(places.setdefault(request, count()))])
    finally:
        torch.set_num_threads(threads)
    return result


def de_novo(request: Request, model: CrystalModel, seed: int, index: int) -> Request:
    """A concrete request drawn from the whole distribution: elements, stoichiometry, setting."""
    settings = _settings_model(model)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    for _ in range(TRIES):
        composition = settings.draw_composition(rng)
        log_units = settings.log_units([composition], as_new=True)[0]
        units = _drawn(rng, np.exp(log_units))
        groups = np.exp(settings.log_groups([(composition, units)], as_new=True)[0])
        allowed = groups * _group_filter(request)
        if not allowed.sum() > 0:
            continue
        number = _drawn(rng, allowed)
        counts = tuple(units * n * len(SpaceGroup(number).centring) for n in composition.counts)
        if sum(counts) > MAX_ATOMS:
            continue
        ranked = ranked_assignments(
            model.ranker,
            model.prior,
            number,
            composition.elements,
            counts,
            limit=ENUMERATED,
            beam=BEAM,
        )
        if ranked is None:
            continue
        assignment_of, log_p = ranked
        place = _drawn(rng, np.exp(log_p))
        setting = Setting(
            composition,
            units,
            number,
            assignment_of[place],
            float(groups[number] * np.exp(log_units[units] + log_p[place])),
            float(groups[number] * np.exp(log_units[units])),
            float(np.exp(log_p[place])),
            0,
        )
        return _concrete(request, setting, 0)
    raise RequestError(f"{request}: nothing that fits was drawn in {TRIES} tries")


def _drawn(rng: np.random.Generator, shares: Sequence[float] | FloatArray) -> int:
    p = np.asarray(shares, dtype=np.float64)
    return int(rng.choice(len(p), p=p / p.sum()))


def _group_filter(request: Request) -> FloatArray:
    """(231,) 1 for the groups that a request allows."""
    allowed = np.zeros(231)
    numbers = request.groups or range(1, 231)
    if request.space_group is not None:
        numbers = (request.space_group.number,)
    allowed[list(numbers)] = 1.0
    return allowed


@cache
def _centrings() -> NDArray[np.int64]:
    """(231,) lattice points in the conventional cell of each group; 1 for entry 0."""
    return np.array([1] + [len(SpaceGroup(number).centring) for number in range(1, 231)])


@lru_cache(maxsize=4096)
def _gain(freedom: int, draws: int) -> float:
    """Chance that a draw finds a crystal that all before it have missed."""
    mean = SUCCESS[min(freedom, len(SUCCESS) - 1)]
    missing = 1.0
    for before in range(draws):
        missing *= ((1 - mean) * PERSISTENCE + before) / (PERSISTENCE + before)
    return missing * mean * PERSISTENCE / (PERSISTENCE + draws)


def _concrete(request: Request, setting: Setting, draw: int) -> Request:
    group = SpaceGroup(setting.group)
    formula, z = request.formula, request.z
    if request.is_open:
        counts = {SYMBOLS[z]: n for z, n in zip(*setting.composition, strict=True)}
        formula = "".join(f"{s}{n if n > 1 else ''}" for s, n in counts.items())
        z = setting.units * len(group.centring)
    return Request(
        group,
        formula=formula,
        z=z,
        assignment=setting.assignment,
        choice=Choice(
            probability=setting.probability,
            group_probability=setting.group_probability,
            assignment_probability=setting.assignment_probability,
            rank=setting.rank,
            draw=draw,
        ),
        lattice=request.lattice,
    )


def _settings_model(model: CrystalModel) -> SettingModel:
    if model.settings is None:
        raise RequestError(
            f"model {model.name} has no distribution over space groups: name one (--sg), or use a "
            "model that has"
        )
    return model.settings


class _Search:
    """Best-first enumeration of the settings of one request."""

    def __init__(self, request: Request, model: CrystalModel, options: SpreadOptions) -> None:
        self.request, self.model, self.options = request, model, options
        self.left_out = 1.0
        if request.lacks_assignment:
            self.groups = [_given_group(request)]
            return
        self.settings = _settings_model(model)
        self.as_new = options.known_share > 0
        # of reduced formula units
        self.z = None if request.z is None else request.z * gcd(*request.units.values())
        unknown = self.settings.unknown_elements([atomic_number(e) for e in request.elements])
        if unknown:
            names = ", ".join(SYMBOLS[z] for z in unknown)
            raise RequestError(
                f"{request}: no training crystal of model {model.name} has {names}; ask for other "
                "elements, or name the space group"
            )
        self.groups = self._groups()
        if not self.groups:
            raise RequestError(self._why_not())

    def run(self) -> Iterator[Setting]:
        """Settings, likeliest first."""
        ties = count()
        # probability of a group bounds those of its settings
        heap: list[tuple[float, int, _Group | Setting]] = [
            (-group.probability, next(ties), group) for group in self.groups
        ]
        heapq.heapify(heap)
        rank = 0
        self.left_out = 1.0
        while heap:
            _, _, best = heapq.heappop(heap)
            if isinstance(best, Setting):
                self.left_out = max(0.0, self.left_out - best.probability)
                yield replace(best, rank=rank)
                rank += 1
                continue
            for setting in self._expanded(best):
                heapq.heappush(heap, (-setting.probability, next(ties), setting))

    def _expanded(self, group: _Group) -> list[Setting]:
        centring = len(SpaceGroup(group.number).centring)
        elements, counts = group.composition
        ranked = ranked_assignments(
            self.model.ranker,
            self.model.prior,
            group.number,
            elements,
            tuple(group.units * centring * n for n in counts),
            limit=MOST_ASSIGNMENTS if self.request.lacks_assignment else ENUMERATED,
            beam=BEAM,
        )
        if ranked is None:
            return []
        found, log_p = ranked
        most = self.options.most_sites
        return [
            Setting(
                group.composition,
                group.units,
                group.number,
                assignment,
                group.probability * float(p),
                group.probability,
                float(p),
                0,
            )
            for assignment, p in zip(found, np.exp(log_p), strict=True)
            if most is None or sum(map(len, assignment)) <= most
        ]

    def _groups(self) -> list[_Group]:
        """Compositions, cell contents and groups with what probability they have together."""
        allowed = _group_filter(self.request)
        likely = [(one, share) for one, share in self._compositions() if share >= SMALLEST]
        if not likely:
            return []
        tables = self._tables([composition for composition, _ in likely])
        found: list[_Group] = []
        for (composition, share), table in zip(likely, tables, strict=True):
            table = table * allowed
            found += [
                _Group(composition, int(units), int(number), float(share * table[units, number]))
                for units, number in zip(*np.nonzero(table > 0), strict=True)
            ]
        total = sum(group.probability for group in found)
        if not total > 0:
            return []
        return [
            replace(group, probability=group.probability / total)
            for group in found
            if group.probability / total >= SMALLEST
        ]

    def _tables(self, compositions: Sequence[Composition]) -> list[FloatArray]:
        """(MOST_UNITS + 1, 231) probability of cell content and group, of each composition."""
        units_of = self._units(compositions)
        cells = [
            (composition, n)
            for composition, units in zip(compositions, units_of, strict=True)
            for n in units
        ]
        if not cells:
            return [np.zeros((MOST_UNITS + 1, 231)) for _ in compositions]
        groups = iter(np.exp(self.settings.log_groups(cells, as_new=self.as_new)))
        tables = []
        for composition, units in zip(compositions, units_of, strict=True):
            table = np.zeros((MOST_UNITS + 1, 231))
            for n, share in units.items():
                table[n] = share * next(groups)
            tables.append(self._weighed(composition, units, table))
        return tables

    def _weighed(
        self, composition: Composition, units: dict[int, float], table: FloatArray
    ) -> FloatArray:
        """A table with what does not fit left out, and known settings given their share."""
        units_of_cell = np.arange(MOST_UNITS + 1)[:, None] * _centrings()  # the conventional one
        sizes = units_of_cell * composition.atoms
        fitting = sizes <= min(MAX_ATOMS, self.options.most_atoms or MAX_ATOMS)
        if self.z is not None:
            fitting &= units_of_cell == self.z
        table = table * fitting
        if self.options.known_share:
            known = np.zeros_like(table)
            for (n, number), share in self.settings.known_settings(composition).items():
                if n in units:  # the more so where crystals of other elements agree
                    known[n, number] = share * (AGREEMENT + table[n, number])
            known *= fitting
            if known.sum() > 0 and table.sum() > 0:
                share = self.options.known_share
                table = (1 - share) * table / table.sum() + share * known / known.sum()
        return table

    def _units(self, compositions: Sequence[Composition]) -> list[dict[int, float]]:
        """Formula units in the primitive cell with their probabilities, of each composition."""
        if self.request.atoms is not None:
            found = []
            for composition in compositions:
                units, rest = divmod(self.request.atoms, composition.atoms)
                found.append({} if rest or not 1 <= units <= MOST_UNITS else {units: 1.0})
            return found
        shares = np.exp(self.settings.log_units(compositions, as_new=self.as_new))
        if self.z is not None:
            sizes = sorted({self.z // c for c in CENTRINGS if self.z % c == 0})
            return [
                {n: max(float(p[n]), SMALLEST) for n in sizes if n <= MOST_UNITS} for p in shares
            ]
        found = []
        for composition, p in zip(compositions, shares, strict=True):
            best = np.argsort(-p, kind="stable")[:PER_COMPOSITION]
            known = {n for n, _ in self.settings.known_settings(composition)}
            likely = {int(n) for n in best if p[n] >= UNLIKELY * p[best[0]]}
            found.append({n: float(p[n]) for n in sorted(likely | known) if n <= MOST_UNITS})
        return found

    def _compositions(self) -> list[tuple[Composition, float]]:
        elements = [atomic_number(symbol) for symbol in self.request.elements]
        if self.request.formula is not None:
            counts = zip(elements, self.request.units.values(), strict=True)
            return [(Composition.of(dict(counts)), 1.0)]
        most = self.options.most_formula_atoms
        found = [
            (composition.ordered(elements), share)
            for composition, share in self.settings.compositions(elements)
            if most is None or composition.atoms <= most
        ]
        return found[:MOST_COMPOSITIONS]

    def _why_not(self) -> str:
        request = self.request
        if request.formula is not None and request.atoms is not None:
            atoms = sum(request.units.values())
            if request.atoms % atoms:
                return (
                    f"{request.formula} has {atoms} atoms in a formula unit, which "
                    f"{request.atoms} atoms in the primitive cell cannot hold; give a multiple of "
                    f"{atoms}"
                )
        return (
            f"{request}: its atoms fit none of the space groups allowed; allow others, or another "
            "number of atoms"
        )


@dataclass(frozen=True)
class _Group:
    """A composition in a cell content and a group."""

    composition: Composition
    units: int
    number: int
    probability: float


def _given_group(request: Request) -> _Group:
    """Of a formula in a group, in the order of the formula."""
    group = request.space_group
    counts = tuple(request.counts.values())
    units = gcd(*counts)
    composition = Composition(
        tuple(atomic_number(symbol) for symbol in request.counts),
        tuple(n // units for n in counts),
    )
    return _Group(composition, units // len(group.centring), group.number, 1.0)
