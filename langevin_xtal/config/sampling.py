"""How requests are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langevin_xtal.config.fields import check, preset, setting

Positions = Literal["assigned", "free"]
Start = Literal["proposal", "noise"]
LatticeEstimate = Literal["least_squares", "mean"]
STRUCTURE_NOISE = 0.5
"""Added to the positions of a structure that is varied [Å]."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """All that makes a difference to a candidate beside the model, the request and the seed.

    :meth:`langevin_xtal.sampling.sample.SampleOptions.of` makes what sampling takes of it.
    """

    positions: Positions = setting(
        "assigned",
        "Where no formula is given. assigned: Wyckoff positions are drawn first, from a learned "
        "prior; free: as the paper.",
        choices=("assigned", "free"),
    )
    assignment_temperature: float = setting(
        1.0,
        "Below 1, likelier Wyckoff positions of sites are drawn more often: fewer different "
        "crystals. Samples of a formula are spread over its own, the likeliest first.",
        low=0.01,
    )
    start: Start = setting(
        "proposal",
        "proposal: chains start from a learned guess at a middle noise level; noise: from "
        "uniform positions at the largest, as the paper.",
        choices=("proposal", "noise"),
    )
    proposals: int = setting(
        1,
        "Guesses drawn for a chain, of which the likeliest is refined.",
        low=1,
        metavar="N",
    )
    proposal_temperature: float = setting(
        1.0, "Below 1, likelier guesses are drawn more often.", low=0.01
    )
    proposal_noise: float = setting(0.4, "Noise at which a guess is refined [Å].", above=0.0)
    sampler: str = setting(
        "ancestral",
        "ancestral; langevin, which is the paper's Algorithm 1, and slower; or module:attribute.",
        metavar="NAME",
    )
    levels: int | None = setting(
        None,
        "Noise levels.  [default: of ancestral 10 from a proposal and 20 from noise; of another "
        "the sampler's]",
        low=2,
    )
    steps: int | None = setting(None, "Langevin steps per level.", low=1)
    lattice_estimate: LatticeEstimate = setting(
        "least_squares",
        "How the changes of all edges make that of the cell: least_squares; mean: of the smallest "
        "change that each edge asks for, as the paper.",
        choices=("least_squares", "mean"),
    )
    attempts: int = setting(
        8,
        "Tries for a candidate whose atoms overlap or leave their Wyckoff positions, each at "
        "temperatures nearer to 1.",
        low=1,
    )
    min_distance: float = setting(0.7, "Shortest distance allowed between atoms [Å].", low=0.0)
    merge: float = setting(
        0.3, "Free sites this near a special position are placed on it [Å].", low=0.0
    )
    round_within: float = setting(
        0.0,
        "Free coordinates this near a multiple of 1/8 or 1/12 are set to it [Å].",
        low=0.0,
    )
    chains: int = setting(
        1,
        "Chains of a candidate, on the same Wyckoff positions, of which the one that the model "
        "finds likeliest is kept; best from noise.",
        low=1,
        metavar="N",
    )
    batch_size: int = setting(
        64, "Most chains side by side; fewer of large crystals.", low=1, metavar="N"
    )

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SamplingConfig:
        """A preset of :data:`PRESETS`, with changes.

        Raises
        ------
        InputError
            For an unknown preset, and for values out of range.
        """
        return preset(cls, PRESETS, name, **changes)


PRESETS: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "accurate": {
        "assignment_temperature": 0.1,
        "proposal_temperature": 0.2,
        "proposal_noise": 0.25,
        "levels": 20,
    },
    "paper": {
        "positions": "free",
        "start": "noise",
        "sampler": "langevin",
        "lattice_estimate": "mean",
    },
}
"""``default``: many different candidates; ``accurate``: what match rates with one sample are
measured with (formula, or Wyckoff positions, and group given), fewer different candidates;
``paper``: as Sultanov et al. 2023."""

PRESET_HELP = (
    "Settings by name, which options change. accurate: lower temperatures and 20 evaluations, as "
    "match rates with one sample are measured with; fewer different crystals. paper: free sites "
    "from noise, Algorithm 1, the mean lattice estimate."
)
