"""Wyckoff positions of the sites that chains are asked for: given, drawn, or ranked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.config.sampling import Positions
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import RequestError
from langevin_xtal.model.beam import BEAM
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.prior import WyckoffPrior
from langevin_xtal.model.ranking import AssignmentRanker
from langevin_xtal.sampling.streams import uniforms
from langevin_xtal.symmetry.assignments import Assignment, assignments
from langevin_xtal.symmetry.explanations import explain
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.lattice import (
    cell_directions,
)
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.symmetry.sites import snap_site
from langevin_xtal.symmetry.wyckoff import WyckoffPosition, locate, wyckoff_positions

FloatArray = NDArray[np.float64]

MOST_ASSIGNMENTS = 2_000
"""Assignments of a formula that are enumerated and ranked, beside those the ranker remembers and
those the prior finds likely."""


FIXED_WITHIN = 0.1
"""A fixed site this near to a special position is on it [Å]."""


SiteList = list[tuple[int, WyckoffPosition]]
"""Atomic number and position of each site."""


def assign_positions(
    requests: Sequence[Request],
    model: CrystalModel,
    keys: Tensor,
    mode: Positions,
    temperature: Tensor,
) -> list[SiteList | None]:
    """Positions of the sites of every request, None where they are free.

    Parameters
    ----------
    keys
        (B,) streams.
    mode
        Whether positions that the request leaves open are drawn by the prior, or free.
    temperature
        (B,) of what is drawn.
    """
    found: list[SiteList | None] = [None] * len(requests)
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
        elif mode == "assigned" and model.prior is not None:
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


def _with_fixed(request: Request, sites: SiteList) -> SiteList:
    """Fixed sites sit where they are, whatever was drawn for them."""
    for place, (number, where) in fixed_places(request):
        sites[place] = (number, where)
    return sites


def fixed_places(request: Request) -> list[tuple[int, tuple[int, WyckoffPosition]]]:
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
        places.append((place, (number, fixed_site(request.space_group, point)[0])))
    return places


def fixed_site(group: SpaceGroup, point: Sequence[float]) -> tuple[WyckoffPosition, FloatArray]:
    """The position of a fixed point, and the point exactly on it."""
    cell = np.eye(3) * 10.0
    if group.crystal_system in ("trigonal", "hexagonal"):
        cell = 10.0 * cell_directions(group.number)
    exact = snap_site(np.array(point), group.rotations, group.translations, cell, FIXED_WITHIN)
    return locate(group.number, exact, cell), exact


def _assign_formula(
    request: Request, model: CrystalModel, u: float, temperature: float
) -> SiteList:
    number = request.space_group.number
    elements = tuple(atomic_number(symbol) for symbol in request.elements)
    counts = list(request.counts.values())
    fixed = [
        (atomic_number(symbol), fixed_site(request.space_group, x)[0])
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
