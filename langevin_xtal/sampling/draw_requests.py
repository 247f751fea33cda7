"""Requests from elements and groups alone: site counts drawn as training data have them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.request import Request
from langevin_xtal.model.statistics import MAX_SITES, Statistics
from langevin_xtal.symmetry.groups import SpaceGroup

MAX_ATOMS = 24
"""Most atoms expected in a primitive cell; the shipped models know crystals of up to 20."""

TRIES = 100


def draw_sites(
    elements: Sequence[str], group: SpaceGroup, statistics: Statistics, seed: int, index: int
) -> Request:
    """A request for candidate ``index`` of ``seed``: 1, 2, … sites for each element.

    Counts follow :meth:`Statistics.site_count_probabilities`. Draws whose primitive cell would
    hold more than ``MAX_ATOMS`` atoms are drawn again; after ``TRIES`` every element gets one.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    options = [
        statistics.site_count_probabilities(group.number, atomic_number(e)) for e in elements
    ]
    per_site = statistics.site_multiplicity[group.number] / len(group.centring)
    for _ in range(TRIES):
        counts = [1 + int(rng.choice(MAX_SITES, p=p)) for p in options]
        if sum(counts) * per_site <= MAX_ATOMS:
            break
    else:
        counts = [1] * len(elements)
    return Request(group, dict(zip(elements, counts, strict=True)))
