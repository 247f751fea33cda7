"""Where a chain starts: its sites, their Wyckoff positions, coordinates, cell and noise level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.config.sampling import Positions
from langevin_xtal.crystal.distances import nearest_pair
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.request import Request, cell_coordinates
from langevin_xtal.errors import RequestError
from langevin_xtal.graph.contract import CrystalArrays
from langevin_xtal.graph.equivalence import distinct_images
from langevin_xtal.model.beam import BEAM
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.prior import WyckoffPrior, covalent_radii, element_rank
from langevin_xtal.model.proposal import Draw, Sites, draw, in_cell_like
from langevin_xtal.model.ranking import AssignmentRanker
from langevin_xtal.model.scores import cell_frame
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.sampling.known_types import OpenCrystal, drawn_type, type_in_turn
from langevin_xtal.sampling.streams import FIRST_DRAW, normals, uniforms
from langevin_xtal.symmetry.assignments import Assignment, assignments
from langevin_xtal.symmetry.description import smallest_labels
from langevin_xtal.symmetry.expansion import expand_sites
from langevin_xtal.symmetry.explanations import explain
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.lattice import (
    cell_directions,
    coordinate_from_length,
    fixed_coordinates,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
)
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.symmetry.sites import IDENTICAL, snap_site
from langevin_xtal.symmetry.wyckoff import WyckoffPosition, locate, wyckoff_positions

FloatArray = NDArray[np.float64]


PERIODS = 24.0
"""Cells spanned by the uniform start of a site confined to its Wyckoff position."""

USUAL_BETA = 105.0
"""Angle [degrees] at which monoclinic cells start without a proposal."""

MOST_ASSIGNMENTS = 2_000
"""Assignments of a formula that are enumerated and ranked, beside those the ranker remembers and
those the prior finds likely."""

MOST_DRAWN = 1024
"""Proposals drawn at once."""

REDRAWS = 8
"""Proposals drawn in turn for a chain while their atoms are too near to each other."""

REDRAW_POWER = 0.5**0.5
"""Power of the temperature that each of those is drawn at: at low ones the same
atoms overlap again."""

LIKELIEST = 0.2
"""Temperature of the proposal for the first sample of a setting that the model has chosen."""

MOST_PROPOSALS = (FIRST_DRAW - 3) // (2 * REDRAWS)
"""Drawn for a chain at each of those turns; every one uses two draws of its stream."""

CLOSEST = 0.65
"""Atoms of a proposal are too near at less than this share of the sum of their covalent radii."""

FIXED_WITHIN = 0.1
"""A fixed site this near to a special position is on it [Å]."""


@dataclass(frozen=True, eq=False)
class Start:
    """One chain before its first step. A sites."""

    numbers: tuple[int, ...]  #: (A,) atomic numbers
    positions: tuple[WyckoffPosition, ...] | None  #: of the sites; None where sites are free
    frac: FloatArray  #: (A, 3)
    coordinates: FloatArray  #: (6,) lattice
    tau: float  #: place on the noise schedule where the chain starts, 0 for the largest noise
    moves: NDArray[np.bool_]  #: (A,) sites that are not fixed
    free: NDArray[np.bool_]  #: (6,) lattice coordinates that are sampled
    sound: bool = True  #: false where the model proposed what is not finite: the chain is rejected


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """How starts are drawn."""

    positions: Positions
    assignment_temperature: float
    proposal_temperature: float
    proposal_noise: float  #: of the positions [Å] where a proposal is refined
    proposals: int  #: drawn for a chain, of which the likeliest is taken


def start_chains(
    requests: Sequence[Request],
    model: CrystalModel,
    keys: Tensor,
    options: StartOptions,
    attempts: Sequence[int] | None = None,
) -> list[Start]:
    """The start of every request's chain.

    A proposal with a smaller :func:`_clearance` than :data:`CLOSEST` is drawn again, up to
    :data:`REDRAWS` times in all, each time at a higher temperature; the one with the largest
    is taken.

    Parameters
    ----------
    keys
        (B,) streams.
    attempts
        (B,) at each request before this one, 0 by default. What is likeliest may be what was
        rejected: each attempt is drawn at the square root of the temperatures of the one before,
        nearer to 1.
    """
    share = 0.5 ** torch.tensor(attempts or [0] * len(requests), dtype=torch.float64)
    assigned = _assign(requests, model, keys, options, options.assignment_temperature**share)
    base = [
        min(options.proposal_temperature, LIKELIEST)
        if request.choice is not None and request.choice.draw == 0
        else options.proposal_temperature
        for request in requests
    ]
    temperatures = torch.tensor(base, dtype=torch.float64) ** share
    remembered = _known_types(requests, assigned, model, keys, options, temperatures, attempts)
    starts: list[Start | None] = [None] * len(requests)
    clearance = [0.0] * len(requests)
    waiting = list(range(len(requests)))
    for turns in _rounds():
        trials = [(k, turn) for k in waiting for turn in turns]
        own = [k for k, _ in trials]
        power = torch.tensor([REDRAW_POWER**turn for _, turn in trials], dtype=torch.float64)
        proposed = _proposals(
            [requests[k] for k in own],
            [assigned[k] for k in own],
            model,
            keys[own],
            options,
            temperatures[own] ** power,
            [turn for _, turn in trials],
            [None if turn else remembered[k] for k, turn in trials],
        )
        settled = set()
        for k, one in zip(own, proposed, strict=True):
            if k in settled:
                continue
            start = _start(requests[k], assigned[k], one, model, int(keys[k]), options)
            # where nothing is proposed, or all is given, there is nothing to draw again
            found = np.inf if one is None else _clearance(start, requests[k].space_group)
            if starts[k] is None or found > clearance[k]:
                starts[k], clearance[k] = start, found
            if found >= CLOSEST:
                settled.add(k)
        waiting = [k for k in waiting if k not in settled]
        if not waiting:
            break
    return [start for start in starts if start is not None]


def _rounds() -> Iterator[range]:
    """The turns at proposals, those drawn at once together: a draw of many costs little more."""
    first, count = 0, 1
    while first < REDRAWS:
        yield range(first, min(first + count, REDRAWS))
        first, count = first + count, 3 * count


def _clearance(start: Start, group: SpaceGroup) -> float:
    """Smallest distance of two atoms over the sum of their covalent radii."""
    if not start.sound or start.positions is None:
        return 0.0
    rows = cell_frame(torch.from_numpy(start.coordinates).unsqueeze(0)).rows[0].numpy()
    first = np.cumsum([0] + [w.multiplicity for w in start.positions])
    atoms, atom_site = _atoms(group, start.frac, rows)
    if not np.array_equal(np.searchsorted(atom_site, np.arange(len(first))), first):
        return 0.0  # a site has come to rest on a more special position
    radii = covalent_radii()[np.array(start.numbers)[atom_site]]
    return nearest_pair(atoms, rows, first[:-1], radii)[0]


def _atoms(
    group: SpaceGroup, frac: FloatArray, rows: FloatArray
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Images (N, 3) of sites (A, 3), those closer than ``IDENTICAL`` once; (N,) their sites."""
    start, number = np.array([0, len(frac)]), np.array([group.number])
    crystal = CrystalArrays.of_groups(rows[None], frac, start, number)
    images = distinct_images(crystal)
    if images is None:
        found = expand_sites(group, frac, rows, np.full(len(frac), IDENTICAL))
        return found.frac, found.atom_site
    site, op = images.site.numpy(), images.op.numpy()
    turned = np.einsum("nij,nj->ni", crystal.rotations[op], frac[site])
    return turned + crystal.translations[op], site


# -- Wyckoff positions

_Sites = list[tuple[int, WyckoffPosition]]
"""Atomic number and position of each site."""


def _assign(
    requests: Sequence[Request],
    model: CrystalModel,
    keys: Tensor,
    options: StartOptions,
    temperature: Tensor,
) -> list[_Sites | None]:
    """Positions of the sites of every request, None where they are free."""
    found: list[_Sites | None] = [None] * len(requests)
    by_prior = []
    for k, request in enumerate(requests):
        given = request.positions if request.start is None else request.start.positions
        if given is not None:
            table = wyckoff_positions(request.space_group.number)
            where = [table[w] for w in given]
            found[k] = list(zip(request.numbers, where, strict=True))
        elif request.assignment is not None:
            table = wyckoff_positions(request.space_group.number)
            found[k] = [
                (atomic_number(symbol), table[w])
                for symbol, own in zip(request.counts, request.assignment, strict=True)
                for w in own
            ]
        elif request.formula is not None:
            quantile = float(uniforms(keys[k : k + 1], torch.zeros(1, dtype=torch.int64), 1))
            found[k] = _assign_formula(request, model, quantile, float(temperature[k]))
        elif options.positions == "assigned" and model.prior is not None:
            by_prior.append(k)
    if by_prior:
        assert model.prior is not None
        longest = max(len(requests[k].numbers) for k in by_prior)
        slots = torch.arange(longest)
        u = torch.stack([uniforms(keys[k].expand(longest), slots, 1) for k in by_prior])
        asked = [requests[k] for k in by_prior]
        drawn = model.prior.draw(asked, u, temperature[by_prior])
        for k, row in zip(by_prior, drawn, strict=True):
            table = wyckoff_positions(requests[k].space_group.number)
            sites = zip(requests[k].numbers, (table[w] for w in row), strict=True)
            found[k] = _with_fixed(requests[k], list(sites))
    return found


def _with_fixed(request: Request, sites: _Sites) -> _Sites:
    """Fixed sites sit where they are, whatever was drawn for them."""
    for place, (number, where) in _fixed_places(request):
        sites[place] = (number, where)
    return sites


def _fixed_places(request: Request) -> list[tuple[int, tuple[int, WyckoffPosition]]]:
    """Sites of the request that are fixed: the first ones of their element."""
    taken: dict[int, int] = {}
    places = []
    for symbol, point in request.fixed:
        number = atomic_number(symbol)
        own = [k for k, z in enumerate(request.numbers) if z == number]
        if taken.get(number, 0) >= len(own):
            raise RequestError(f"{len(own)} {symbol} sites were asked for, and more are fixed")
        place = own[taken.get(number, 0)]
        taken[number] = taken.get(number, 0) + 1
        places.append((place, (number, _fixed_site(request.space_group, point)[0])))
    return places


def _fixed_site(group: SpaceGroup, point: Sequence[float]) -> tuple[WyckoffPosition, FloatArray]:
    """The position of a fixed point, and the point exactly on it."""
    cell = np.eye(3) * 10.0
    if group.crystal_system in ("trigonal", "hexagonal"):
        cell = 10.0 * cell_directions(group.number)
    exact = snap_site(np.array(point), group.rotations, group.translations, cell, FIXED_WITHIN)
    return locate(group.number, exact, cell), exact


def _assign_formula(request: Request, model: CrystalModel, u: float, temperature: float) -> _Sites:
    number = request.space_group.number
    elements = tuple(atomic_number(symbol) for symbol in request.elements)
    counts = list(request.counts.values())
    fixed = [
        (atomic_number(symbol), _fixed_site(request.space_group, x)[0])
        for symbol, x in request.fixed
    ]
    for z, where in fixed:
        counts[elements.index(z)] -= where.multiplicity
    taken = tuple(w.index for _, w in fixed if not w.freedom)
    ranked = ranked_assignments(model.ranker, model.prior, number, elements, tuple(counts), taken)
    if ranked is None:
        units = {s: n // (request.z or 1) for s, n in request.counts.items()}
        reason = explain(number, units, request.z or 1)
        raise RequestError(f"{request}: nothing fits beside the fixed sites" if fixed else reason)
    found, log_p = ranked
    share = np.exp((log_p - log_p.max()) / temperature)
    pick = int(np.searchsorted(np.cumsum(share), u * share.sum()))
    table = wyckoff_positions(number)
    chosen = found[min(pick, len(found) - 1)]
    sites = [(z, table[w]) for z, own in zip(elements, chosen, strict=True) for w in own]
    return fixed + sites


@lru_cache(maxsize=4096)
def ranked_assignments(
    ranker: AssignmentRanker | None,
    prior: WyckoffPrior | None,
    number: int,
    elements: tuple[int, ...],
    counts: tuple[int, ...],
    occupied: tuple[int, ...] = (),
    limit: int = MOST_ASSIGNMENTS,
    beam: int = BEAM,
) -> tuple[list[Assignment], FloatArray] | None:
    """Assignments of a composition, likeliest first, and their log-probabilities.

    Parameters
    ----------
    elements, counts
        Atomic numbers, and atoms of each in the conventional cell.
    occupied
        Positions without freedom that are taken already.
    limit, beam
        Assignments enumerated at most, and the width of the search for likely ones beyond.
    """
    present = [k for k, n in enumerate(counts) if n > 0]
    if min(counts) < 0:
        return None
    if not present:
        return [((),) * len(elements)], np.zeros(1)
    kinds, amounts = [elements[k] for k in present], [counts[k] for k in present]
    options = (
        list(assignments(number, amounts, limit=limit))
        if ranker is None
        else ranker.candidates(number, kinds, amounts, limit=limit, prior=prior, beam=beam)[0]
    )
    if occupied:
        # fixed sites fix the origin: the same crystals from other origins are other options now
        options = [a for option in options for a in _permuted(number, option)]
        options = [a for a in dict.fromkeys(options) if not _used(a) & set(occupied)]
    if not options:
        return None
    if ranker is None:
        log_p = -np.array([float(sum(len(own) for own in option)) for option in options])
    else:
        log_p = ranker.log_probabilities(number, kinds, amounts, options, prior)
    order = np.argsort(-log_p, kind="stable")
    whole = []
    for k in order:
        filled: list[tuple[int, ...]] = [()] * len(elements)
        for place, own in zip(present, options[k], strict=True):
            filled[place] = own
        whole.append(tuple(filled))
    return whole, log_p[order] - np.logaddexp.reduce(log_p)


def _permuted(number: int, assignment: Assignment) -> list[Assignment]:
    return [
        tuple(tuple(sorted(names[w] for w in own)) for own in assignment)
        for names in position_permutations(number).tolist()
    ]


def _used(assignment: Assignment) -> set[int]:
    return {w for own in assignment for w in own}


# -- coordinates and cell


def expected_coordinates(
    number: int, numbers: Sequence[int], multiplicity: FloatArray, statistics: Statistics
) -> FloatArray:
    """(6,) lattice of the size and shape that atoms and group suggest, by the statistics."""
    volume = statistics.atomic_volume[list(numbers)] @ multiplicity
    lengths = np.cbrt(volume) * np.exp(statistics.shape[number])
    driver = lattice_driver(number)[:3]
    lengths = np.array([lengths[driver == driver[k]].mean() for k in range(3)])
    coordinates = fixed_coordinates(number)
    coordinates[:3] = coordinate_from_length(lengths)
    if SpaceGroup(number).crystal_system == "monoclinic":
        coordinates[4] = cell_coordinates((1.0, 1.0, 1.0, 90.0, USUAL_BETA, 90.0))[4]
    return coordinates


def _start(
    request: Request,
    sites: _Sites | None,
    proposed: Draw | None,
    model: CrystalModel,
    key: int,
    options: StartOptions,
) -> Start:
    group = request.space_group
    number = group.number
    stream = torch.tensor([key])
    free = lattice_freedom(number)
    if sites is None:
        numbers, where = request.numbers, None
        multiplicity = np.full(len(numbers), model.statistics.site_multiplicity[number])
    else:
        numbers, where = tuple(z for z, _ in sites), tuple(w for _, w in sites)
        multiplicity = np.array([float(w.multiplicity) for w in where])
    tau, moves = 0.0, np.ones(len(numbers), dtype=bool)
    slots = torch.arange(3 * len(numbers))
    u = uniforms(stream.expand(len(slots)), slots, 2).view(-1, 3).numpy()
    if request.start is not None:
        frac = request.start.frac.copy()
        coordinates = lattice_coordinates(request.start.lattice)
        coordinates = np.where(
            free[lattice_driver(number)], coordinates, fixed_coordinates(number)
        )
        tau = model.levels.place(request.start.noise)
    elif proposed is not None:
        if request.lattice is not None:
            proposed = in_cell_like(proposed, number, cell_coordinates(request.lattice))
        table = wyckoff_positions(number)
        where = tuple(table[w] for w in proposed.positions)
        frac, coordinates = proposed.frac, proposed.coordinates
        tau = model.levels.place(options.proposal_noise)
    else:
        coordinates = expected_coordinates(number, numbers, multiplicity, model.statistics)
        frac = u
        if where is not None:
            # many periods, so that the projection is uniform on the position
            frac = np.array(
                [w.base + w.projector @ (PERIODS * x) for w, x in zip(where, u, strict=True)]
            )
    if request.lattice is not None:
        given = cell_coordinates(request.lattice)
        coordinates = np.where(
            free[lattice_driver(number)], given[lattice_driver(number)], fixed_coordinates(number)
        )
        free = np.zeros_like(free)
    if request.fixed:
        places = (
            [p for p, _ in _fixed_places(request)]
            if request.formula is None
            else range(len(request.fixed))
        )
        for place, (_, point) in zip(places, request.fixed, strict=True):
            frac[place] = _fixed_site(group, point)[1]
            moves[place] = False
    sound = bool(np.isfinite(frac).all() and np.isfinite(coordinates).all())
    if not sound:
        frac = np.zeros_like(frac)
        coordinates = expected_coordinates(number, numbers, multiplicity, model.statistics)
    return Start(numbers, where, frac, coordinates, tau, moves, free, sound)


def _proposals(
    requests: Sequence[Request],
    assigned: Sequence[_Sites | None],
    model: CrystalModel,
    keys: Tensor,
    options: StartOptions,
    temperature: Tensor,
    turns: Sequence[int],
    remembered: Sequence[Draw | None],
) -> list[Draw | None]:
    """For every chain that starts from one the likeliest of a few proposals, others each turn.

    Where a known type is ``remembered``, it is taken.
    """
    best = list(remembered)
    owners = [
        k
        for k, (request, sites) in enumerate(zip(requests, assigned, strict=True))
        if best[k] is None and _is_proposed(request, sites)
    ]
    proposal = model.precise_proposal
    if proposal is None or not options.proposals or not owners:
        return best
    turned = proposal.config.frames
    asked: list[Sites] = []
    owner: list[int] = []
    trial: list[int] = []
    for k in owners:
        sites = assigned[k]
        assert sites is not None
        group, numbers = requests[k].space_group.number, tuple(z for z, _ in sites)
        for labels in _labellings(group, numbers, tuple(w.index for _, w in sites), turned):
            asked += [Sites(group, numbers, labels)] * options.proposals
            owner += [k] * options.proposals
            trial += range(options.proposals * turns[k], options.proposals * (turns[k] + 1))
    for start in range(0, len(asked), MOST_DRAWN):
        part = slice(start, start + MOST_DRAWN)
        stream, draws = keys[owner[part]], torch.tensor(trial[part])
        count = 3 * (1 + max(len(sites.numbers) for sites in asked[part]))
        found = draw(
            proposal,
            model.statistics,
            asked[part],
            _slots(uniforms, stream, count, 3 + 2 * draws).view(len(stream), -1, 3),
            _slots(normals, stream, 6, 4 + 2 * draws),
            temperature[owner[part]],
        )
        for k, one in zip(owner[part], found, strict=True):
            known = best[k]
            if known is None or one.log_likelihood > known.log_likelihood:
                best[k] = one
    return best


def _is_proposed(request: Request, sites: _Sites | None) -> bool:
    """Whether a chain starts from a proposal: these choose their own origin, and fixed sites have
    one already."""
    return sites is not None and request.start is None and not request.fixed


def _known_types(
    requests: Sequence[Request],
    assigned: Sequence[_Sites | None],
    model: CrystalModel,
    keys: Tensor,
    options: StartOptions,
    temperature: Tensor,
    attempts: Sequence[int] | None,
) -> list[Draw | None]:
    """For every chain the crystal of a known structure type, or None for the proposal's turn."""
    found: list[Draw | None] = [None] * len(requests)
    if model.types is None or not options.proposals:
        return found
    nought = torch.zeros(len(requests), dtype=torch.int64)
    quantiles = torch.stack([uniforms(keys, nought + k, 0) for k in range(2)], 1).tolist()
    for k, (request, sites) in enumerate(zip(requests, assigned, strict=True)):
        if sites is None or not _is_proposed(request, sites):
            continue
        crystal = OpenCrystal.of_sites(request.space_group.number, sites)
        if request.choice is None:
            found[k] = drawn_type(model, crystal, float(temperature[k]), quantiles[k])
        else:
            turn = request.choice.draw + (attempts[k] if attempts else 0)
            found[k] = type_in_turn(model, crystal, turn)
    return found


def _slots(numbers: Callable[..., Tensor], keys: Tensor, count: int, draws: Tensor) -> Tensor:
    """(B, count) numbers of streams ``keys`` (B,) for their draws (B,)."""
    slots = torch.arange(count).repeat(len(keys))
    flat = numbers(keys.repeat_interleave(count), slots, draws.repeat_interleave(count))
    return flat.view(len(keys), count)


@lru_cache(maxsize=4096)
def _labellings(
    number: int, numbers: tuple[int, ...], where: tuple[int, ...], turned: bool
) -> list[tuple[int, ...]]:
    """The ways to label the same crystals, by turned cells: the proposal knows one of them best.

    Shifts of the origin are the description's to choose, and turns as well when it is ``turned``:
    then there is one labelling.
    """
    kinds = element_rank()[list(numbers)].tolist()
    found: dict[tuple[tuple[int, int], ...], tuple[int, ...]] = {}
    for names in position_permutations(number).tolist():
        labels, _ = smallest_labels(number, [names[w] for w in where], kinds, turned=turned)
        found.setdefault(tuple(sorted(zip(kinds, labels, strict=True))), labels)
    return list(found.values())
