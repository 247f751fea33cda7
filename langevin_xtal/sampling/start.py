"""Where a chain starts: its sites, their Wyckoff positions, coordinates, cell and noise level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.config.sampling import Positions
from langevin_xtal.crystal.distances import nearest_pair
from langevin_xtal.crystal.request import Request, StartingPoint, cell_coordinates
from langevin_xtal.graph.contract import CrystalArrays
from langevin_xtal.graph.equivalence import distinct_images
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.prior import covalent_radii
from langevin_xtal.model.proposal import Draw, in_cell_like
from langevin_xtal.model.scores import cell_frame
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.sampling.positions import SiteList, assign_positions, fixed_places, fixed_site
from langevin_xtal.sampling.proposed import likeliest_proposals, remembered_types
from langevin_xtal.sampling.streams import FIRST_DRAW, chain_keys, uniforms
from langevin_xtal.symmetry.expansion import expand_sites
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.lattice import (
    coordinate_from_length,
    fixed_coordinates,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
)
from langevin_xtal.symmetry.sites import IDENTICAL
from langevin_xtal.symmetry.wyckoff import WyckoffPosition, wyckoff_positions

FloatArray = NDArray[np.float64]


PERIODS = 24.0
"""Cells spanned by the uniform start of a site confined to its Wyckoff position."""

USUAL_BETA = 105.0
"""Angle [degrees] at which monoclinic cells start without a proposal."""


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
    chain: Sequence[int] | None = None,
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
    chain
        (B,) which of the chains of a candidate it is, 0 by default. All of a candidate are on the
        same Wyckoff positions.
    """
    share = 0.5 ** torch.tensor(attempts or [0] * len(requests), dtype=torch.float64)
    assigned = assign_positions(
        requests, model, keys, options.positions, options.assignment_temperature**share
    )
    which = list(chain or [0] * len(requests))
    keys = chain_keys(keys, torch.tensor(which))
    base = [
        min(options.proposal_temperature, LIKELIEST)
        if request.choice is not None and request.choice.draw == 0
        else options.proposal_temperature
        for request in requests
    ]
    temperatures = torch.tensor(base, dtype=torch.float64) ** share
    remembered = remembered_types(
        requests, assigned, model, keys, options.proposals, temperatures, attempts, which
    )
    starts: list[Start | None] = [None] * len(requests)
    clearance = [0.0] * len(requests)
    waiting = list(range(len(requests)))
    for turns in _rounds():
        trials = [(k, turn) for k in waiting for turn in turns]
        own = [k for k, _ in trials]
        power = torch.tensor([REDRAW_POWER**turn for _, turn in trials], dtype=torch.float64)
        proposed = likeliest_proposals(
            [requests[k] for k in own],
            [assigned[k] for k in own],
            model,
            keys[own],
            options.proposals,
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
    sites: SiteList | None,
    proposed: Draw | None,
    model: CrystalModel,
    key: int,
    options: StartOptions,
) -> Start:
    group = request.space_group
    number = group.number
    free = lattice_freedom(number)
    if sites is None:
        numbers, where = request.numbers, None
        multiplicity = np.full(len(numbers), model.statistics.site_multiplicity[number])
    else:
        numbers, where = tuple(z for z, _ in sites), tuple(w for _, w in sites)
        multiplicity = np.array([float(w.multiplicity) for w in where])
    moves = np.ones(len(numbers), dtype=bool)
    expected = expected_coordinates(number, numbers, multiplicity, model.statistics)
    if request.start is not None:
        begun = _of_structure(request.start, number, model)
    elif proposed is not None:
        begun = _of_proposal(proposed, request, model, options.proposal_noise)
        where = begun.positions
    else:
        begun = _Place(_anywhere(key, where, len(numbers)), expected, 0.0)
    frac, coordinates = begun.frac, begun.coordinates
    if request.lattice is not None:
        given = cell_coordinates(request.lattice)
        coordinates = np.where(
            free[lattice_driver(number)], given[lattice_driver(number)], fixed_coordinates(number)
        )
        free = np.zeros_like(free)
    if request.fixed:
        places = (
            [p for p, _ in fixed_places(request)]
            if request.formula is None
            else range(len(request.fixed))
        )
        for place, (_, point) in zip(places, request.fixed, strict=True):
            frac[place] = fixed_site(group, point)[1]
            moves[place] = False
    sound = bool(np.isfinite(frac).all() and np.isfinite(coordinates).all())
    if not sound:
        frac = np.zeros_like(frac)
        coordinates = expected
    return Start(numbers, where, frac, coordinates, begun.tau, moves, free, sound)


# -- one source of coordinates for each origin


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a chain starts: coordinates, cell and noise."""

    frac: FloatArray  #: (A, 3)
    coordinates: FloatArray  #: (6,) lattice
    tau: float  #: place on the noise schedule
    positions: tuple[WyckoffPosition, ...] | None = None  #: where they are the source's choice


def _of_structure(given: StartingPoint, number: int, model: CrystalModel) -> _Place:
    """From a structure that is to be varied."""
    coordinates = lattice_coordinates(given.lattice)
    driven = lattice_freedom(number)[lattice_driver(number)]
    return _Place(
        given.frac.copy(),
        np.where(driven, coordinates, fixed_coordinates(number)),
        model.levels.place(given.noise),
    )


def _of_proposal(proposed: Draw, request: Request, model: CrystalModel, noise: float) -> _Place:
    """From a proposal, or a known structure type, which choose their own origin."""
    number = request.space_group.number
    if request.lattice is not None:
        proposed = in_cell_like(proposed, number, cell_coordinates(request.lattice))
    table = wyckoff_positions(number)
    return _Place(
        proposed.frac,
        proposed.coordinates,
        model.levels.place(noise),
        tuple(table[w] for w in proposed.positions),
    )


def _anywhere(key: int, positions: tuple[WyckoffPosition, ...] | None, sites: int) -> FloatArray:
    """(A, 3) uniform on the sites' Wyckoff positions, or in the cell."""
    slots = torch.arange(3 * sites)
    u = uniforms(torch.tensor([key]).expand(len(slots)), slots, 2).view(-1, 3).numpy()
    if positions is None:
        return u
    # many periods, so that the projection is uniform on the position
    return np.array(
        [w.base + w.projector @ (PERIODS * x) for w, x in zip(positions, u, strict=True)]
    )
