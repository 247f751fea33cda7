"""Starting points from the structure types that a model knows.

Known types and the learned proposal are two sources. With temperature 1 a chain starts from the
proposal with probability :data:`LEARNED`, and otherwise from a type drawn by its probability;
below, the likelier is taken more often. Samples of a setting that the model has chosen take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.proposal import Draw, expected_log_volume
from langevin_xtal.model.structure_types import Known
from langevin_xtal.symmetry.wyckoff import WyckoffPosition

FloatArray = NDArray[np.float64]

LEARNED = 0.25
"""Chance that a chain starts from the proposal where structure types are known too, at temperature
1. Of validation targets that the likeliest type misses, the proposal finds a tenth."""

LEAST_SHARE = 0.02
"""Weight of the known types, beside that of something new, below which chains start from the
proposal; and share of a type below which no draw of a setting starts from it."""


@dataclass(frozen=True)
class OpenCrystal:
    """A crystal whose coordinates and cell are open. A sites."""

    group: int  #: space-group number
    numbers: tuple[int, ...]  #: (A,) atomic numbers
    positions: tuple[WyckoffPosition, ...]  #: (A,)

    @classmethod
    def of_sites(cls, group: int, sites: Iterable[tuple[int, WyckoffPosition]]) -> OpenCrystal:
        """From atomic number and position of each site."""
        numbers, positions = zip(*sites, strict=True)
        return cls(group, numbers, positions)

    def known(self, model: CrystalModel) -> tuple[list[Known], FloatArray]:
        """Types it could have, likeliest first, and their probabilities (K,); none where something
        new is far likelier."""
        if model.types is None:
            return [], np.zeros(0)
        kinds = tuple(dict.fromkeys(self.numbers))
        of = np.array(self.numbers)
        where = np.array([w.index for w in self.positions])
        assignment = tuple(tuple(sorted(where[of == z].tolist())) for z in kinds)
        found, novel = model.types.known(model.element_distances, self.group, kinds, assignment)
        shares = np.array([one.share for one in found])
        return ([], np.zeros(0)) if shares.sum() < LEAST_SHARE * novel else (found, shares)

    def drawn(self, known: Known, model: CrystalModel) -> Draw:
        """Coordinates and cell by a type."""
        assert model.types is not None
        multiplicity = np.array([w.multiplicity for w in self.positions])
        volume = expected_log_volume(np.array(self.numbers), multiplicity, model.statistics)
        return model.types.draw(known, self.numbers, volume)


def drawn_type(
    model: CrystalModel, crystal: OpenCrystal, temperature: float, quantiles: Sequence[float]
) -> Draw | None:
    """A known type drawn by two numbers in (0, 1), or None for the proposal's turn."""
    found, shares = crystal.known(model)
    learned, known = LEARNED ** (1 / temperature), (1 - LEARNED) ** (1 / temperature)
    if not found or quantiles[0] * (learned + known) < learned:
        return None
    weight = np.cumsum((shares / shares.max()) ** (1 / temperature))
    pick = int(np.searchsorted(weight, quantiles[1] * weight[-1]))
    return crystal.drawn(found[pick], model)


def type_in_turn(model: CrystalModel, crystal: OpenCrystal, turn: int) -> Draw | None:
    """The type that a setting's sample starts from, or None for the proposal's turn.

    The likeliest type comes first, then the proposal, and so on with two types for every proposal.
    """
    found, shares = crystal.known(model)
    likely = np.flatnonzero(shares >= LEAST_SHARE * shares.sum()).tolist() if found else []
    order = [*likely[:1], -1]
    for first in range(1, len(likely), 2):
        order += [*likely[first : first + 2], -1]
    pick = order[turn] if turn < len(order) and likely else -1
    return None if pick < 0 else crystal.drawn(found[pick], model)
