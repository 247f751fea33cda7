"""Energies and hull distances by a second potential, each on the hull of its own references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.screen.cached import Progress, ResultCache
from langevin_xtal.screen.energies import PointEnergy, point_energies
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import relax_folded

DISAGREE = 0.05
"""Hull distances that differ by more are flagged [eV/atom]: twice a good potential's error."""
STABLE = 0.1
"""So are those on two sides of this distance that differ by more than half of ``DISAGREE``."""


@dataclass(frozen=True)
class Opinion:
    """What a second potential says of a crystal."""

    energy: float  #: [eV/atom], NaN with a reason
    e_above_hull: float | None = None  #: [eV/atom], on the hull of its own references
    reason: str = ""  #: why something is not known


def second_opinions(
    cells: Sequence[Cell],
    relaxation: RelaxOptions,
    references: HullReferences | None,
    *,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Opinion]:
    """What the potential of ``relaxation`` says of each crystal.

    Parameters
    ----------
    relaxation
        Whose potential is asked, and how it relaxes; with 0 steps it does not.
    references
        Of that potential; without any only energies are known.
    cache, workers, progress
        As in :func:`~langevin_xtal.screen.relax.relax`.

    Raises
    ------
    InputError
        When there is no such potential, or the references are of another.
    """
    potential = load_potential(relaxation.potential, relaxation.device)
    if references is not None:
        references.check(potential)
    if relaxation.steps:
        relaxed = relax_folded(cells, relaxation, cache=cache, workers=workers, progress=progress)
        results = [PointEnergy(result.energy, result.reason) for result in relaxed]
        cells = [result.cell for result in relaxed]
    else:
        results = point_energies(
            cells, relaxation, cache=cache, workers=workers, progress=progress
        )
    opinions = []
    for result, cell in zip(results, cells, strict=True):
        if result.reason or references is None:
            opinions.append(Opinion(result.energy, None, result.reason))
            continue
        energy = references.energy_for(cell, result.energy, potential)
        found = references.energy_above_hull(cell[2], energy)
        opinions.append(Opinion(result.energy, found.e_above_hull, found.missing))
    return opinions


def disagreement(first: float | None, second: float | None) -> tuple[float, bool]:
    """Second less first hull distance [eV/atom], NaN where one is unknown; whether to flag it."""
    if first is None or second is None:
        return math.nan, False
    difference = second - first
    sides = (first <= STABLE) != (second <= STABLE)
    return difference, abs(difference) > (DISAGREE / 2 if sides else DISAGREE)
