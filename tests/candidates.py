"""Candidates made from random crystals, for the tests of what comes after sampling."""

from __future__ import annotations

import numpy as np

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.request import Request
from langevin_xtal.sampling.postprocess import PostprocessConfig, Rejection, finish
from langevin_xtal.sampling.start import Start
from langevin_xtal.symmetry.lattice import COORDINATES
from langevin_xtal.symmetry.wyckoff import wyckoff_positions
from tests.crystals import random_crystal

DEFAULT = PostprocessConfig()


def finished(
    request: Request,
    frac: np.ndarray | list[list[float]],
    lattice: np.ndarray,
    config: PostprocessConfig = DEFAULT,
    positions: tuple[int, ...] | None = None,
) -> Candidate | Rejection:
    """The end of a chain whose sites are at ``frac``, free or begun on Wyckoff ``positions``."""
    table = wyckoff_positions(request.space_group.number)
    start = Start(
        numbers=request.numbers,
        positions=None if positions is None else tuple(table[w] for w in positions),
        frac=np.array(frac, dtype=float),
        coordinates=np.zeros(COORDINATES),
        tau=0.0,
        moves=np.ones(len(request.numbers), dtype=bool),
        free=np.ones(COORDINATES, dtype=bool),
    )
    return finish(
        request,
        start,
        np.array(frac, dtype=float),
        np.array(lattice, dtype=float),
        seed=5,
        index=2,
        attempt=1,
        config=config,
        provenance={"weights": "0123456789abcdef"},
    )


def candidate(
    request: Request,
    frac: np.ndarray | list[list[float]],
    lattice: np.ndarray,
    config: PostprocessConfig = DEFAULT,
) -> Candidate:
    """As :func:`finished`, where no rejection is expected."""
    result = finished(request, frac, lattice, config)
    assert isinstance(result, Candidate), result
    return result


def random_candidate(number: int, n_sites: int = 2) -> Candidate:
    """A candidate of any group."""
    sites = dict.fromkeys(("Na", "Cl", "O", "Ti")[:n_sites], 1)
    request = Request(number, sites)
    for seed in range(20):
        crystal = random_crystal(number, n_sites, seed)
        result = finished(request, crystal.frac, crystal.lattice[0])
        if isinstance(result, Candidate):
            return result
    raise AssertionError(f"no candidate in group {number}: {result.reason}")
